"""What attention modules and whole models attend to, found by calling them.

`module` is an attention module and x (B, C + T*S, D) what enters it, `grid` is (T, H, W), and
`query` is a patch (t, y, x) or the number of a class token. The patches of a map (B, h, C + T*S)
become pictures (B, h, T, H, W) with map[..., C:].unflatten(-1, grid).

Once q and k are fixed, every mechanism is linear in its values: y_i = sum_j A_ij v_j. So the
gradient of one output with respect to the values is the attention that it pays, whatever the
mechanism does to be fast. What else depends on the values is held fixed too: the gates of feature
fixation, and in trajectory attention the weights along the path. The projection W_v of trajectory
attention, which joins the heads, is left out. Where the channels of a head come from different
frames (mixing, neighbours), a map is the mean over the channels.

Maps sum to 1, but for Nystrom, whose inverse has not converged and whose weights may be negative,
for zeros from beyond the clip (mixing, neighbours), and for class tokens that take no part.
"""

import copy
import math

import torch
import torch.nn as nn
from einops import rearrange


# ==== A TWIN THAT IS LINEAR IN ITS VALUES ========================================================
class Instead(nn.Module):
    """In the place of a layer: a function of what enters the layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def twin_of(module, x):
    """A copy of the module whose output (B, N, h*d) is linear in twin.qkv.values (B, N, D): its
    queries and keys are fixed, and what a layer inside the mechanism makes is taken as given."""
    q, k, values = module.qkv(x).detach().chunk(3, dim=-1)  # each (B, N, D)
    values = values.clone().requires_grad_()
    layers = {}
    for name, layer in module.named_children():
        layers[name] = Instead(lambda *inputs, layer=layer: layer(*inputs).detach())
    if "proj_kv" in layers:  # trajectory attention's: its keys, fixed, and y itself for values
        keys = layers["proj_kv"]
        layers["proj_kv"] = Instead(lambda y: torch.cat([keys(y).chunk(2, dim=-1)[0], y], dim=-1))
    layers |= dict.fromkeys(("proj", "extra", "dropout"), nn.Identity())
    layers["qkv"] = Instead(lambda x: torch.cat([q, k, values], dim=-1))  # (B, N, 3*D)
    layers["qkv"].values, twin = values, copy.copy(module)
    twin._modules = layers
    return twin


def with_gradients(function):
    """Gradients are recorded inside, also where the caller has switched them off."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


# ==== MAPS =======================================================================================
@with_gradients
def attention_map(module, x, grid, query):
    """How much the query takes from every token: x (B, C + T*S, D) -> (B, h, C + T*S)."""
    twin, i = twin_of(module, x), number_of(query, x.shape[1], grid)
    (taken,) = torch.autograd.grad(twin(x, grid)[:, i].sum(), twin.qkv.values)  # (B, N, D)
    return heads_of(taken, module).mean(dim=-1)


@with_gradients
def everybodys_map(module, x, grid):
    """How much each of the tokens x (1, N, D) takes from each: (N, N), the mean over heads. The
    clip is taken once for each token that asks, so that one backward pass answers them all."""
    N = x.shape[1]
    twin = twin_of(module, x.expand(N, -1, -1))
    asks = twin(x.expand(N, -1, -1), grid)[torch.arange(N), torch.arange(N)]  # (N, D)
    (taken,) = torch.autograd.grad(asks.sum(), twin.qkv.values)  # (N, N, D)
    return taken.mean(dim=-1)


@with_gradients
def trajectory_maps(module, x, grid, query):
    """Both stages of trajectory attention: the maps in each frame (B, h, T, H, W), each of which
    sums to 1, and the weights along the path (B, h, T). The query is a patch."""
    twin, stages = twin_of(module, x), []

    def first_stage(*inputs):
        stages.append(module.first_stage(*inputs))
        return stages[-1]

    twin.first_stage, twin.at_once = first_stage, None  # all positions at a time
    N, C = x.shape[1], x.shape[1] - math.prod(grid)
    i = number_of(query, N, grid)
    out, (y,) = twin(x, grid), stages  # (B, N, D) and (B, h, T*S, T, d)
    (along,) = torch.autograd.grad(out[:, i].sum(), y, retain_graph=True)
    (found,) = torch.autograd.grad(y[:, :, i - C].sum(), twin.qkv.values)  # (B, N, D)
    found = heads_of(found, module)[:, :, C:].mean(dim=-1)  # (B, h, T*S)
    return found.unflatten(-1, tuple(grid)), along[:, :, i - C].mean(dim=-1)


def heads_of(x, module):
    return rearrange(x, "B N (h d) -> B h N d", h=module.heads)


def number_of(query, N, grid):
    """The number of the token that is asked about: of a patch (t, y, x), or a class token's."""
    C = N - math.prod(grid)
    if isinstance(query, int):
        assert 0 <= query < C, f"query={query}: a patch (t, y, x) or one of {C} class tokens"
        return query
    assert all(0 <= i < n for i, n in zip(query, grid, strict=True)), f"{query=} of {tuple(grid)}"
    t, y, x = query
    return C + (t * grid[1] + y) * grid[2] + x


# ==== A WHOLE MODEL ==============================================================================
@torch.no_grad()
def inputs_of_steps(model, video):
    """What enters each attention step: for each block a list of (x (B, C + T*S, D), grid)."""
    assert not model.training, "call model.eval() first: dropout would change what is shown"
    steps, entered = [step for block in model.blocks for step in block.steps], []
    hooks = [s.register_forward_pre_hook(lambda _, inputs: entered.append(inputs)) for s in steps]
    model(video)
    for hook in hooks:
        hook.remove()
    inputs = iter(entered)
    return [[next(inputs) for _ in block.steps] for block in model.blocks]


def layer_map(model, video, layer, query):
    """The attention maps of one layer, a list with one (B, h, C + T*S) for every step of its block.
    Negative layers count from the last."""
    steps, inputs = model.blocks[layer].steps, inputs_of_steps(model, video)[layer]
    return [attention_map(step, *entered, query) for step, entered in zip(steps, inputs)]
