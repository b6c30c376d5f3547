"""Inside, without tricks: what attention modules and whole models attend to, found by calling them.

    attention_map(module, x, grid, query)     how much a query takes from every token, for each head
    trajectory_maps(module, x, grid, query)   the map in each frame, and the weights along the path
    prototypes_of(module, x, grid)            the prototypes, and which tokens they are
    mixed_keys(module, x, grid)               the keys that were put together from several frames
    gates_of(module, x, grid)                 the gates of feature fixation
    layer_map(model, video, layer, query)     the attention maps of one layer of a model
    rollout(model, video, query)              how much reaches the query through all layers

`module` is an attention module and x (B, C + T*S, D) what enters it, `grid` is (T, H, W), and
`query` is a patch (t, y, x) or the number of a class token. Letters are those of
video_attention.py. The patches of a map (B, h, C + T*S) become pictures (B, h, T, H, W) with
map[..., C:].unflatten(-1, grid).

WHY IT IS EXACT
    With q and k held fixed, every mechanism is linear in its values: out_i = sum_j A_ij v_j. So the
    gradient of one output with respect to the values is the attention that it pays, whatever the
    mechanism does to be fast. What else depends on the values is held fixed too: the gates of
    feature fixation, and in trajectory attention the weights along the path. The projection W_v of
    trajectory attention, which comes after both stages and joins the heads, is left out. Where
    channels of a head come from different frames (mixing, neighbours), a map is the mean over the
    channels.

WHAT A MAP SUMS TO
    1           softmax attention of all kinds, Orthoformer, Performer
    about 1     linear attention: its eps takes up to 1e-6. Nystrom: as well as the inverse has
                converged, and single weights may be negative
    below 1     mixing near the ends of the clip and neighbours near the border, 0 where a whole
                head is moved: the rest are zeros that were shifted in
    0           a class token in attention along time, where it takes no part; in factorised
                dot-product attention in half of the heads
"""

import inspect
import math
import operator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import rearrange

import video_attention as va

# ==== ONE MODULE ==================================================================================


def attention_map(module, x, grid, query):
    """How much the query takes from every token: x (B, C + T*S, D) -> (B, h, C + T*S)."""
    i = number_of(query, x.shape[1], grid)
    with gradients():
        mix, v = linear_in_values(module, x, grid)
        (taken,) = torch.autograd.grad(mix(v)[:, :, i].sum(), v)
    return taken.mean(dim=-1)


def trajectory_maps(module, x, grid, query):
    """Both stages of trajectory attention: the maps in each frame (B, h, T, H, W), each of which
    sums to 1, and the weights along the path (B, h, T). The query is a patch."""
    needs(module, va.TrajectoryAttention, "trajectories")
    T, H, W = grid
    C, i = x.shape[1] - T * H * W, number_of(query, x.shape[1], grid)
    va.require(i >= C, "query={}: a class token has no trajectory, use a patch (t, y, x)", query)
    with gradients():
        q, k, v = projected(module, x, grid)
        v.requires_grad_()
        y = module.first_stage(q[:, :, C:], k[:, :, C:], v[:, :, C:], T)  # (B, h, T*S, T, d)
        (taken,) = torch.autograd.grad(y[:, :, i - C].sum(), v)
    t, position = divmod(i - C, H * W)
    # The path of one position of the frame, in all frames: a clip of T tokens, S = 1.
    weights = path_weights(module, y.detach()[:, :, position :: H * W])[:, :, t]  # (B, h, T)
    return taken[:, :, C:].mean(dim=-1).unflatten(-1, tuple(grid)), weights


def prototypes_of(module, x, grid):
    """The prototypes of an Orthoformer: (B, h, P, d), their tokens (B, h, P), and whether each is
    the token's key (True) or its query (False). A prototype that is no token, such as a mean, is
    token -1."""
    needs(module, va.OrthoformerAttention, "prototypes")
    q, k, _ = projected(module, x, grid)
    C = q.shape[2] - math.prod(grid) if isinstance(module, va.TrajectoryAttention) else 0
    q, k = q[:, :, C:], k[:, :, C:]  # the first stage of trajectory attention has the patches alone
    prototypes = module.prototypes(q, k)
    candidates = torch.cat([q, k], dim=2)  # (B, h, 2*N, d)
    nearest = closest(prototypes.detach(), candidates)  # (B, h, P)
    found = candidates.gather(2, nearest[..., None].expand(*nearest.shape, q.shape[3]))
    same = (found == prototypes).all(dim=-1)
    tokens = (nearest % q.shape[2] + C).where(same, -1)
    return prototypes.detach(), tokens, (nearest >= q.shape[2]) & same


def mixed_keys(module, x, grid):
    """The keys that the queries of every frame meet, put together from several frames:
    (B, h, T, L, d), L = c + S, and T more with summaries. Neighbours along time mix S patches."""
    _, k, _ = projected(module, x, grid)
    T, C = grid[0], k.shape[2] - math.prod(grid)
    # A subclass of it may shift in another way, such as within segments of frames.
    if type(module) is va.LinearAttention and module.neighbours:
        return module.neighbourhood(k, grid).unflatten(2, (T, -1))
    needs(module, va.MixingAttention, "mixed keys")
    frames = va.into_groups(k, grid, "(B T) h (H W) d")
    options = options_of(module)
    mixed = va.mix_frames(frames, T, options["window"], options["moved"])
    if options["summary"]:
        mixed = torch.cat([mixed, va.frame_means(frames, T, C)], dim=2)
    return rearrange(mixed, "(B T) h L d -> B h T L d", T=T)


def gates_of(module, x, grid):
    """The gates of feature fixation, g_q and g_k (B, h, N, d), in 0..1 for each feature. Attention
    along time takes no class token and has no gates for it: N = T*S there, C + T*S otherwise."""
    needs(module, va.LinearAttention, "gates")
    va.require(module.fixation, "this LinearAttention has no gates; build it with fixation='qkv'")
    q, k, v = projected(module, x, grid)
    gates, C = gates_in_use(module, q, k, v, grid), q.shape[2] - math.prod(grid)
    if module.axis == "space":  # they are those of groups, one for each frame
        return tuple(va.out_of_groups(g, grid, "(B T) h (H W) d", C) for g in gates)
    if module.axis == "time":
        along = "(B H W) h T d -> B h (T H W) d"
        return tuple(rearrange(g, along, H=grid[1], W=grid[2]) for g in gates)
    return gates


# ==== A WHOLE MODEL ===============================================================================


def layer_map(model, video, layer, query):
    """The attention maps of one layer, a list with one (B, h, C + T*S) for every step of its block.
    Negative layers count from the last."""
    layer = range(len(model.blocks))[layer]
    for i, (inputs, grid) in enumerate(inputs_of_steps(model, video)):
        if i == layer:
            steps = model.blocks[i].steps
            return [attention_map(step, x, grid, query) for step, x in zip(steps, inputs)]


def rollout(model, video, query=None):
    """Attention rollout (https://arxiv.org/abs/2005.00928): how much of every token reaches the
    query through all layers, (B, C + T*S), which sums to 1 for each clip.

        R = A_L ... A_2 A_1,   A_l = (mean over heads of the map + identity) / (sum of each row)

    one A for every step of every block; the MLPs and norms count as the identity. `query` left out
    is what the head pools: the class tokens or the mean of the patches. The row R_query is computed
    from the last layer to the first, as a gradient of every step, so that no N x N matrix is ever
    needed.
    """
    layers = list(inputs_of_steps(model, video))
    first, grid = layers[0][0][0], layers[0][1]
    row = start_of_rollout(model, first, grid, query)  # (B, N)
    for block, (inputs, grid) in zip(reversed(model.blocks), reversed(layers)):
        for step, x in zip(reversed(block.steps), reversed(inputs)):
            row = back_through(step, x, grid, row)
    return row


def back_through(step, x, grid, row):
    """row (B, N) times A, the mean over heads of the step's map + identity, scaled by its rows."""
    with gradients():
        mix, v = linear_in_values(step, x, grid)
        sums = 1 + mix(torch.ones_like(v)).mean(dim=(1, 3))  # (B, N)
        row = row / sums
        B, h, N, d = v.shape
        weights = row[:, None, :, None].expand(B, h, N, d) / (h * d)
        (taken,) = torch.autograd.grad(mix(v), v, weights)
    return row + taken.sum(dim=(1, 3))


def start_of_rollout(model, x, grid, query):
    """A row (B, N) with 1 at the query, or what the head pools in equal parts."""
    B, N = x.shape[:2]
    C, row = N - math.prod(grid), x.new_zeros(B, N)
    if query is not None:
        row[:, number_of(query, N, grid)] = 1
        return row
    head = model.head
    class_tokens = head.pool == "class" or head.pool == "temporal" and head.per_frame
    pooled = slice(0, C) if class_tokens else slice(C, N)
    row[:, pooled] = 1
    return row / row.sum(dim=1, keepdim=True)


@torch.no_grad()
def inputs_of_steps(model, video):
    """For every block what enters each of its attention steps, (B, C + T*S, D), and the grid."""
    va.require(not model.training, "call model.eval() first: dropout would change what is shown")
    x, grid = model.patches(video)
    if model.class_token is not None:
        C = grid[0] if model.config["class_token"] == "frame" else 1
        x = torch.cat([model.class_token.expand(len(x), C, -1), x], dim=1)
    x = model.position(x, grid)
    for block in model.blocks:
        inputs = []
        for norm, step in zip(block.norms, block.steps):
            inputs.append(norm(x))
            x = x + step(inputs[-1], grid)
        yield inputs, grid
        x = x + block.mlp(block.mlp_norm(x), grid)


# ==== HOW IT IS DONE ==============================================================================


def linear_in_values(module, x, grid):
    """The mechanism as a function of its values alone, all else held fixed, and the values v.

    mix(v) is (B, h, C + T*S, d) as v is. A channel of it depends on the same channel of v only.
    """
    q, k, v = projected(module, x, grid)
    N, T = x.shape[1], grid[0]
    skipped = N - v.shape[2]  # class tokens that take no part, and get zeros
    if isinstance(module, va.TrajectoryAttention):
        C = N - math.prod(grid)
        y = module.first_stage(q[:, :, C:], k[:, :, C:], v[:, :, C:], T)
        weights = path_weights(module, y)  # (B, h, T*S, T)

        def mix(v):
            y = module.first_stage(q[:, :, C:], k[:, :, C:], v[:, :, C:], T)
            path = torch.einsum("BhNT,BhNTd->BhNd", weights, y)
            return torch.cat([va.attend(q[:, :, :C], k, v), path], dim=2)

    elif isinstance(module, va.LinearAttention) and module.fixation:
        held = gates_in_use(module, q, k, v, grid)
        mix = lambda v: with_gates(module, lambda *features: held, q, k, v, grid)
    else:
        mix = lambda v: module.mechanism(q, k, v, grid, **module.options)
    v = F.pad(v, (0, 0, skipped, 0)).requires_grad_()
    return (lambda v: F.pad(mix(v[:, :, skipped:]), (0, 0, skipped, 0))), v


def projected(module, x, grid):
    """What the mechanism gets: q, k and v (B, h, N, d), without the class tokens that it skips."""
    C = x.shape[1] - math.prod(grid) if module.skips_class_token else 0
    with torch.no_grad():
        return tuple(y.contiguous() for y in module.project(x[:, C:]))


@torch.no_grad()
def gates_in_use(module, q, k, v, grid):
    """The gates g_q and g_k that the mechanism asks for on the way, for groups of tokens."""
    used, own = [], module.gates

    def gates(*features):
        used.extend(own(*features))
        return used

    with_gates(module, gates, q, k, v, grid)
    return tuple(used)


def with_gates(module, gates, q, k, v, grid):
    """What the mechanism gives with other gates in the place of its own."""
    with patch.object(module, "gates", gates):
        return module.mechanism(q, k, v, grid)


def options_of(module):
    """The options of its mechanism, {name: value}, given or by default."""
    known = inspect.signature(module.mechanism).parameters.values()
    return {option.name: option.default for option in known} | module.options


def path_weights(module, y):
    """y (B, h, T*S, T, d) -> the weights along every path (B, h, T*S, T)"""
    layers = module.proj_q, module.proj_kv
    with torch.no_grad():
        weights = va.attend_along_trajectories(y, *layers, return_weights=True)[1]
    return weights.squeeze(3)


def closest(x, y):
    """Which of y (B, h, n, d) is nearest to every vector of x (B, h, P, d) -> (B, h, P)"""
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # (B, h, P, n)
    return distance.argmin(dim=-1)


def number_of(query, N, grid):
    """The number of the token that is asked about: of a patch (t, y, x), or a class token's."""
    C = N - math.prod(grid)
    if isinstance(query, (tuple, list)):
        inside = len(query) == 3 and all(0 <= i < n for i, n in zip(query, grid))
        va.require(inside, "query={} is no patch (t, y, x) of the grid {}", query, tuple(grid))
        t, y, x = map(operator.index, query)
        return C + (t * grid[1] + y) * grid[2] + x
    message = "query={!r}: a patch (t, y, x) or one of {} class tokens"
    va.require(query in range(C), message, query, C)
    return operator.index(query)


def needs(module, kind, what):
    message = "{} has no {}; this is for {}"
    va.require(isinstance(module, kind), message, type(module).__name__, what, kind.__name__)


@contextmanager
def gradients():
    """Gradients are recorded inside, also where the caller has switched them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
