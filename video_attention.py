"""How video transformers attend: every mechanism of five papers and the full backbone, in one file to read.

A clip becomes a grid of patch tokens, and attention must decide which of them look at which. Looking at all
of them costs the square of their number, so every paper here answers one question: who may see whom?

NOTATION    in shapes, in einops patterns and in costs
    B   clips in the batch                      D   width of a token
    T   frames after tokenisation               h   heads
    H   rows of the patch grid                  d   width of a head, d = D / h
    W   columns of the patch grid               P   prototypes or landmarks
    S   patches in a frame, S = H * W           M   random features
    C   class tokens: 0, 1, or T (one a frame)  K   classes
    N   tokens, N = C + T * S                   grid   the triple (T, H, W)

    A video is (B, channels, frames, height, width). Tokens are (B, C + T*S, D): class tokens first, then the
    patches frame by frame and row by row, so that patch (t, y, x) is token C + t*S + y*W + x.
    T, H and W belong to the call: a model built for 8 frames of 14 x 14 patches also runs 5 frames of 9 x 13.
    A comment such as  # (B, h, N, d)  is the shape of what its line has just made.
    In equations s is a place and t a frame, a prime marks what is seen, ~ and ^ what is derived, ^T a
    transpose, ^+ a pseudo-inverse; Q, K and V stack q, k and v, W is a weight and I the identity.

SKELETON    each mechanism is
    1. a pure function of q, k and v (B, h, C + T*S, d), split into heads, and the grid -> the same shape;
    2. a module that holds the projections: module(x, (T, H, W)), x (B, C + T*S, D) -> the same shape.
    In a picture Q is the patch that asks and # what it sees, in four frames of 4 x 6 patches. Cost counts a
    clip's multiply-accumulates without the qkv and output projections, with c = min(C, 1). Differs says where
    paper, released code and this file part; Copy with what must come along, in file order, beside imports.

CONTENTS    search for the words in capitals; numbers on arXiv, in brackets what the five are compared with
    SOFTMAX ATTENTION, GROUPS OF TOKENS, PROJECTIONS    what all of them are built from
    SPACE, JOINT SPACE-TIME, DIVIDED,
    SPARSE LOCAL-GLOBAL, AXIAL                          TimeSformer 2102.05095; joint also ViViT 2103.15691
    POOLED                                              simplified (MViT 2104.11227)
    SPACE-TIME MIXING, SUMMARY TOKENS                   X-ViT 2106.05968
    TRAJECTORY, ORTHOFORMER                             Motionformer 2106.05392
    NYSTROM                                             (Nystromformer 2102.03902)
    LINEAR, FEATURE FIXATION, NEIGHBOURHOOD ASSOCIATION LVT, the Linear Video Transformer 2210.08164
    PERFORMER                                           (Performer, FAVOR+ 2009.14794)
    THE TABLE                                           ATTENTION: a scheme is a short list of steps
    TOKENS, BLOCKS, HEADS, THE BACKBONE                 VideoTransformer, preset
    RELEASED WEIGHTS                                    from_released, load_image_weights
"""

import math
import re
import warnings
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch.utils.checkpoint import checkpoint

# ==== SOFTMAX ATTENTION =====================================================================================
def attend(q, k, v, return_weights=False):
    """Exact softmax attention: every query takes a weighted mean of the values.

        out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j

    q (..., I, d), k (..., J, d), v (..., J, e) -> (..., I, e); the leading axes are attended independently.
    With return_weights also the weights (..., I, J), by the readable path; without, torch's fused kernel does
    the same but for NaN and stores no I x J table. ValueError names shapes that do not fit.

    Cost          I*J*(d + e)
    """
    alike = q.ndim > 1 and q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.shape[-1] == k.shape[-1] > 0
    one_dtype = q.dtype == k.dtype == v.dtype or torch.is_autocast_enabled(q.device.type)
    one_device = q.device == k.device == v.device
    if not (alike and k.shape[-2] == v.shape[-2] > 0 and one_dtype and one_device and q.is_floating_point()):
        given = ", ".join(f"{tuple(x.shape)} {x.dtype} {x.device}" for x in (q, k, v))
        raise ValueError(f"needs q (..., I, d), k (..., J, d), v (..., J, e), floats of a kind: got {given}")
    if not return_weights:
        return F.scaled_dot_product_attention(q, k, v)
    scores = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(q.shape[-1])
    weights = scores.softmax(dim=-1)
    return torch.einsum("...ij,...je->...ie", weights, v), weights


# ==== GROUPS OF TOKENS: many mechanisms are exact attention, but inside small groups ========================
def count_class_tokens(x, grid, *others):
    """C, how many class tokens x (B, C + T*S, D) has, or q beside k and v; ValueError if they do not fit."""
    axes = 4 if others else 3
    if any(y.shape != x.shape or y.ndim != axes or not y.is_floating_point() for y in (x, *others)):
        given = ", ".join(f"{tuple(y.shape)} {y.dtype}" for y in (x, *others))
        raise ValueError(f"needs floats x (B, C + T*S, D), or q, k and v all (B, h, C + T*S, d), got {given}")
    C = x.shape[-2] - math.prod(grid)
    if len(grid) != 3 or min(grid) < 1 or C not in (0, 1, grid[0]) or isinstance(C, float):
        given = f"{x.shape[-2]} tokens do not fit (T, H, W) = {tuple(grid)}"
        raise ValueError(f"{given}: it takes T*H*W = {math.prod(grid)} patches after 0, 1 or T class tokens")
    return C


def attend_within_frames(q, k, v, grid, pattern, kernel=attend, summary=False):
    """Attention inside groups of patches of one frame, `pattern` saying in einops what a group is.

    q, k, v (B, h, C + T*S, d) -> the same shape. "B h (T H W) d -> (B T H) h W d" makes every row a group. A
    class token joins every group of its frame, and what it becomes is the mean of what its copies found; a
    clip's only class token is copied into every frame in this way. With `summary` the mean of every frame's
    patches joins the keys and values of every group. The right side must begin "(B T"; `kernel` attends.
    """
    C = count_class_tokens(q, grid, k, v)
    T, H, W = grid
    B, h, N, d = q.shape
    groups = []
    for i, x in enumerate((q, k, v)):
        group = rearrange(x[:, :, C:], pattern, T=T, H=H, W=W)  # (B*T*n, h, H*W // n, d)
        n = H * W // group.shape[2]  # groups in a frame
        parts = [group]
        if C > 0:
            parts.insert(0, repeat(x[:, :, :C].expand(B, h, T, d), "B h T d -> (B T n) h 1 d", n=n))
        if summary and i > 0:
            means = reduce(x[:, :, C:], "B h (T S) d -> B h T d", "mean", T=T)  # (B, h, T, d)
            parts.append(repeat(means, "B h R d -> (B T n) h R d", T=T, n=n))  # R = T: each frame hears all
        groups.append(torch.cat(parts, dim=2) if len(parts) > 1 else group)
    out = kernel(*groups)  # (B*T*n, h, min(C, 1) + H*W // n, d)
    backwards = " -> ".join(reversed(pattern.split(" -> ")))
    patches = rearrange(out[:, :, min(C, 1) :], backwards, T=T, H=H, W=W)  # (B, h, N - C, d)
    if C == 0:
        return patches
    class_token = reduce(out[:, :, :1], "(B T n) h 1 d -> B h T d", "mean", T=T, n=n)  # (B, h, T, d)
    if C == 1:
        class_token = class_token.mean(dim=2, keepdim=True)  # (B, h, 1, d)
    return torch.cat([class_token, patches], dim=2)  # (B, h, N, d)


def attend_in_boxes(q, k, v, grid, boxes):
    """Attention inside boxes or lattices: triples of slices over frames, rows and columns that tile the clip.

    q, k, v (B, h, C + T*S, d) -> the same shape. Boxes may differ in size, so an odd grid needs no padding.
    The class tokens join every box, and what they become is the mean of what they found.
    """
    C = count_class_tokens(q, grid, k, v)
    B, h, N, d = q.shape
    number = torch.arange(N, device=q.device)  # (N,)
    place = number[C:].view(grid)  # (*grid,)
    boxes = [place[box].flatten() for box in boxes]
    boxes = [box for box in boxes if len(box) > 0]  # an axis of length one has no second half
    if (held := sum(len(box) for box in boxes)) != N - C:
        raise ValueError(f"the boxes hold {held} patches of {N - C}; each patch must be in exactly one")
    found = []
    for box in boxes:
        tokens = torch.cat([number[:C], box])  # (C + len(box),)
        found.append(attend(q[:, :, tokens], k[:, :, tokens], v[:, :, tokens]))
    class_tokens = torch.stack([x[:, :, :C] for x in found]).mean(dim=0)  # (B, h, C, d)
    patches = torch.cat([x[:, :, C:] for x in found], dim=2)  # (B, h, N - C, d), box after box
    patches = torch.full_like(patches, torch.nan).index_copy(2, torch.cat(boxes) - C, patches)  # holes: NaN
    return torch.cat([class_tokens, patches], dim=2)  # (B, h, N, d)


# ==== PROJECTIONS: what every attention module shares; a mechanism fills in `mechanism` =====================
def check_tokens(x, weight):
    """ValueError unless x (B, N, D) has the width, the device and, but for autocast, the dtype of weight."""
    castable = x.is_floating_point() and x.itemsize < 8
    mixed = x.dtype != weight.dtype and not (castable and torch.is_autocast_enabled(x.device.type))
    if x.ndim != 3 or x.shape[2] != weight.shape[-1] or x.device != weight.device or mixed:
        needed = f"(B, N, {weight.shape[-1]}) {weight.dtype} {weight.device}"
        raise ValueError(f"needs {needed}, got {tuple(x.shape)} {x.dtype} {x.device}")


class Attention(nn.Module):
    """Project to q, k and v, let the mechanism attend, project back.

    module(x, (T, H, W)) with x (B, C + T*S, D) -> the same shape; **options are those of the mechanism.

    With zero_init one more D x D layer follows, which VideoTransformer.init_weights sets to zero: a block of
    several steps then starts as if it had only the last, divided attention as an image transformer whose time
    branch grows from nothing. A mechanism that skips_class_token adds nothing to it, not even a bias.

    Differs       TimeSformer's paper does not mention that layer but counts its parameters. Its code has
                  stochastic depth before the layer, this file after it, as everywhere.
    Cost          4*N*D**2        beside the mechanism's own; 5*N*D**2 with zero_init
    """

    mechanism = None  # the pure function, or a method that calls it
    skips_class_token = False

    def __init__(self, dim, heads, dropout=0.0, zero_init=False, qkv_bias=True, **options):
        super().__init__()
        if min(dim, heads) < 1 or heads % 1 or dim % heads != 0:
            raise ValueError(f"width dim={dim} does not divide into heads={heads}; use a multiple of heads")
        self.heads = int(heads)  # 4.0 would pass these checks and fail in einops
        self.options = options
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.zero = nn.Linear(dim, dim) if zero_init else None

    def forward(self, x, grid):
        check_tokens(x, self.qkv.weight)
        C = count_class_tokens(x, grid) if self.skips_class_token else 0
        B, N, D = x.shape
        q, k, v = self.project(x[:, C:])  # (B, self.heads, N - C, D // self.heads)
        out = self.merge(self.mechanism(q, k, v, grid, **self.options))  # (B, N - C, D)
        return F.pad(out, (0, 0, C, 0)) if C > 0 else out  # (B, N, D)

    def project(self, x):
        """x (B, N, D) -> q, k and v (B, h, N, d)"""
        return rearrange(self.qkv(x), "B N (three h d) -> three B h N d", three=3, h=self.heads).unbind(dim=0)

    def merge(self, x):
        """x (B, h, N, d) -> (B, N, D)"""
        B, h, N, d = x.shape
        x = self.dropout(self.proj(rearrange(x, "B h N d -> B N (h d)")))  # (B, N, h*d)
        return x if self.zero is None else self.zero(x)


# ==== SPACE: every patch sees its own frame ============================= TimeSformer (S), equation 6 =======
def space_attention(q, k, v, grid):
    """Attention inside each frame. Frames never meet, so their order cannot matter.

        t=0     t=1     t=2     t=3
        ......  ######  ......  ......
        ......  ##Q###  ......  ......
        ......  ######  ......  ......
        ......  ######  ......  ......

    Class token   One per clip is copied into every frame, the T results averaged; one per frame stays there.
    Cost          2*T*(S + c)**2*D
    Differs       The paper leaves open what the class token's own query sees; this follows its released code.
    Copy with     attend, count_class_tokens, attend_within_frames
    """
    return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T) h (H W) d")


class SpaceAttention(Attention):
    mechanism = staticmethod(space_attention)


# ==== JOINT SPACE-TIME: every patch sees the whole clip ============ TimeSformer (ST), equation 5; ViViT ====
def joint_attention(q, k, v, grid):
    """Attention over all tokens at once: the most it can see, and the price that the others avoid.

        t=0     t=1     t=2     t=3
        ######  ######  ######  ######
        ######  ##Q###  ######  ######
        ######  ######  ######  ######
        ######  ######  ######  ######

    Class token   A token like any other.
    Cost          2*(C + T*S)**2*D
    Copy with     attend
    """
    return attend(q, k, v)


class JointAttention(Attention):
    mechanism = staticmethod(joint_attention)


# ==== DIVIDED: the same place in every frame, then the own frame === TimeSformer (T+S), equations 12-13 =====
def time_attention(q, k, v, grid, kernel=attend):
    """Attention along time at one place. Space attention after it, with weights of its own, makes it divided
    attention: two cheap steps, and every patch has heard from the whole clip. `kernel` does the attending.

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ..#...  ..Q...  ..#...  ..#...
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token   Stands aside: it receives zeros, so that the residual leaves it as it was.
    Cost          2*S*T**2*D
    Differs       The paper has the class token among the keys; its released code, and this, do not.
    Copy with     attend, count_class_tokens
    """
    C = count_class_tokens(q, grid, k, v)
    T, H, W = grid
    B, h, N, d = q.shape
    places = "B h (T H W) d -> (B H W) h T d"
    q, k, v = (rearrange(x[:, :, C:], places, T=T, H=H, W=W) for x in (q, k, v))  # (B*H*W, h, T, d)
    out = rearrange(kernel(q, k, v), "(B H W) h T d -> B h (T H W) d", H=H, W=W)  # (B, h, T*H*W, d)
    return F.pad(out, (0, 0, C, 0)) if C > 0 else out  # (B, h, N, d)


class TimeAttention(Attention):
    mechanism = staticmethod(time_attention)
    skips_class_token = True


# ==== SPARSE LOCAL-GLOBAL: a quarter of every frame, then an eighth of the clip === TimeSformer (L+G) =======
def local_attention(q, k, v, grid):
    """Attention inside one of four windows, each half the rows and half the columns, through all frames.

        t=0     t=1     t=2     t=3
        ###...  ###...  ###...  ###...
        ###...  ##Q...  ###...  ###...
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token   Joins all four windows; the mean of what it finds there is its result.
    Cost          8*(C + T*S/4)**2*D        with H and W even
    Differs       No code was released. In the paper a query has its own T x H/2 x W/2 neighbours; here four
                  windows tile the frame, as in Swin and MaxViT, and the global step joins what the cuts part.
    Copy with     attend, count_class_tokens, attend_in_boxes
    """
    H, W = grid[-2:]
    rows = slice(0, (H + 1) // 2), slice((H + 1) // 2, H)
    columns = slice(0, (W + 1) // 2), slice((W + 1) // 2, W)
    return attend_in_boxes(q, k, v, grid, [(slice(None), y, x) for y in rows for x in columns])


def global_attention(q, k, v, grid):
    """Attention over every other frame, row and column: an eighth of the clip, spread over all of it.

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  #.Q.#.  ......  #.#.#.
        ......  ......  ......  ......
        ......  #.#.#.  ......  #.#.#.

    Class token   Joins all eight lattices; the mean of what it finds there is its result.
    Cost          16*(C + T*S/8)**2*D        with T, H and W even
    Differs       No code was released. The paper asks for stride 2 along all axes and leaves open where it
                  begins: here at the query, which so sees itself, and eight lattices tile the clip.
    Copy with     attend, count_class_tokens, attend_in_boxes
    """
    every_other = slice(0, None, 2), slice(1, None, 2)
    boxes = [(t, y, x) for t in every_other for y in every_other for x in every_other]
    return attend_in_boxes(q, k, v, grid, boxes)


class LocalAttention(Attention):
    mechanism = staticmethod(local_attention)


class GlobalAttention(Attention):
    mechanism = staticmethod(global_attention)


# ==== AXIAL: time, then the own row, then the own column ======================== TimeSformer (T+W+H) =======
def width_attention(q, k, v, grid):
    """Attention along the row of a patch, in its own frame.

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  ##Q###  ......  ......
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token   As in space attention, but copied into every row.
    Cost          2*T*H*(W + c)**2*D
    Differs       No code was released. The paper does not say what the class token does, in any of the steps.
    Copy with     attend, count_class_tokens, attend_within_frames
    """
    return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T H) h W d")


def height_attention(q, k, v, grid):
    """Attention along the column of a patch, in its own frame: the last of three steps that span the clip.

        t=0     t=1     t=2     t=3
        ......  ..#...  ......  ......
        ......  ..Q...  ......  ......
        ......  ..#...  ......  ......
        ......  ..#...  ......  ......

    Class token   As in space attention, but copied into every column.
    Cost          2*T*W*(H + c)**2*D
    Copy with     attend, count_class_tokens, attend_within_frames
    """
    return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T W) h H d")


class WidthAttention(Attention):
    mechanism = staticmethod(width_attention)


class HeightAttention(Attention):
    mechanism = staticmethod(height_attention)


# ==== POOLED: fewer keys, the means over blocks of neighbours ====================== MViT, simplified =======
def pooled_attention(q, k, v, grid, stride=(1, 2, 2)):
    """Every patch sees the whole clip, but blurred: keys and values are means over blocks of patches.
    A block is stride = (frames, rows, columns) patches, less at an odd end. (1, 1, 1) is joint attention.

    Sees          everything
    Class token   A token like any other, never pooled.
    Cost          2*(C + T*S)*(C + T*S/4)*D        with the default stride, H and W even
    Differs       MViT pools by a learned depthwise convolution and a norm, and may pool the queries too.
    Copy with     attend, count_class_tokens
    """
    C = count_class_tokens(q, grid, k, v)
    T, H, W = grid
    B, h, N, d = q.shape
    if isinstance(stride, int) or len(stride) != 3 or min(stride) < 1:
        raise ValueError(f"stride={stride} must be three numbers (frames, rows, columns), none below 1")
    pooled = []
    for x in (k, v):
        patches = x[:, :, C:].unflatten(2, grid)  # (B, h, T, H, W, d)
        for axis, step in zip((2, 3, 4), stride):
            means = [part.mean(dim=axis) for part in patches.split(step, dim=axis)]
            patches = torch.stack(means, dim=axis)  # (B, h, *patches.shape[2:5], d)
        pooled.append(torch.cat([x[:, :, :C], patches.flatten(2, 4)], dim=2))
    return attend(q, *pooled)  # (B, h, N, d)


class PooledAttention(Attention):
    mechanism = staticmethod(pooled_attention)


# ==== SPACE-TIME MIXING: keys put together from channels of several frames ==== X-ViT, equations 9-10 =======
def borrow(x, steps, share):
    """Channels on loan from the neighbours: a look around that costs no multiplication.

    x (B, T, H, W, channels) -> the same shape. The first `share` channels of patch (t, y, x) become those of
    patch (t, y, x) + steps[0], the next `share` those of (t, y, x) + steps[1], and so on; the rest stay. Past
    the border are zeros, but for diagonal steps, which leave a patch its own (the rule of LVT's code).
    """
    widths = [share] * len(steps) + [x.shape[-1] - share * len(steps)]
    if min(widths) < 0 or x.ndim != 5 or any(len(step) != 3 for step in steps):
        raise ValueError(f"{steps=} of {share} channels do not fit (B, T, H, W, channels) = {tuple(x.shape)}")
    *lent, rest = x.split(widths, dim=4)  # (*x.shape[:4], widths[-1])
    parts = []
    for own, step in zip(lent, steps if share > 0 else []):  # torch 2.8 cannot pad zero channels
        pad = [0, 0]
        for move, size in zip(reversed(step), reversed(x.shape[1:4])):
            move = max(-size, min(size, move))
            pad += [-move, move]  # crop in front what is appended behind, or the other way round
        part = F.pad(own, pad)  # (*x.shape[:4], share)
        if len([move for move in step if move != 0]) > 1:
            part = torch.where(F.pad(torch.ones_like(own[..., :1]), pad) > 0, part, own)
        parts.append(part)
    return torch.cat([*parts, rest], dim=4)  # x.shape


def mixing_attention(q, k, v, grid, window=1, moved=0.5, whole_heads=False, summary=False, segment=None):
    """Space attention whose keys and values are put together from 2 * window + 1 frames.

        k~_{s,t} = [a few channels of k_{s,t+1}, a few of k_{s,t-1}, ..., the rest of k_{s,t}],  v~ likewise
        y_{s,t} = sum_s' softmax_s'(q_{s,t} . k~_{s',t} / sqrt(d)) v~_{s',t}

    A share `moved` of the channels comes from the other frames in equal parts, zeros past the ends of the
    clip. n layers reach n * window frames to either side, as full attention in such a window would.

        t=0     t=1     t=2     t=3
        ######  ######  ######  ......
        ######  ##Q###  ######  ......
        ######  ######  ######  ......
        ######  ######  ######  ......

    Class token   One per frame, mixed like the patches; a clip's only one is copied into every frame.
    Cost          2*T*(S + c)**2*D        what space attention costs
    Differs       1. The paper mixes channels of every head; the released models slice the joined heads, so
                     that mostly whole heads look ahead, look back or stay, in that order (whole_heads).
                  2. The released Kinetics models mix within segments of 8 of a clip's 16 frames (segment).
                  3. Summary tokens, see there, are in the paper only (summary).
    Copy with     attend, count_class_tokens, attend_within_frames, borrow
    """
    t = grid[0] if segment is None else segment  # frames that mix among themselves
    j = q.shape[1] if whole_heads else 1  # heads whose channels are shared out together
    share = int(moved * j * q.shape[-1] / max(1, 2 * window))
    if window < 0 or not 0.0 <= moved <= 1.0 or t < 1 or grid[0] % t or (window * moved > 0 and share < 1):
        given = f"window={window}, moved={moved}, segment={segment} for {grid[0]} frames, d={q.shape[-1]}"
        raise ValueError(f"{given}: use window >= 0, moved in 0..1, a channel a frame, a segment dividing T")
    steps = [(sign * i, 0, 0) for i in range(1, window + 1) for sign in (1, -1)]

    def attend_mixed(q, k, v):
        n, (h, L, d) = q.shape[0] // t, q.shape[1:]  # keys after the first L are summaries, of no frame
        g = h // j  # to `borrow`, n segments are clips of t frames, L tokens and g groups of heads H and W
        mixed = []
        for y in (k, v):
            x = rearrange(y[:, :, :L], "(n t) (g j) L d -> n t L g (j d)", t=t, j=j)  # (n, t, L, g, j*d)
            x = rearrange(borrow(x, steps, share), "n t L g (j d) -> (n t) (g j) L d", j=j)  # (n*t, h, L, d)
            mixed.append(torch.cat([x, y[:, :, L:]], dim=2) if summary else x)
        return attend(q, *mixed)

    return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T) h (H W) d", attend_mixed, summary)


class MixingAttention(Attention):
    mechanism = staticmethod(mixing_attention)


# ==== SUMMARY TOKENS: space attention that hears one word from every frame ========================= X-ViT ==
def summary_attention(q, k, v, grid):
    """Space attention, the mean of every frame's patches among the keys and values of every frame.
    The mean of projections is the projection of the mean, so the pooling comes after the projections.

    Sees          everything, the other frames by one token each
    Class token   As in space attention.
    Cost          2*T*(S + c)*(S + c + T)*D
    Differs       No code was released. The paper's summary may be any function of a frame; it takes the mean.
    Copy with     attend, count_class_tokens, attend_within_frames
    """
    return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T) h (H W) d", summary=True)


class SummaryAttention(Attention):
    mechanism = staticmethod(summary_attention)


# ==== TRAJECTORY: look in every frame, then along the path that this gives === Motionformer, equations 4-6 ==
def attend_per_frame(q, k, v, T, kernel=attend):
    """The first stage: what each query finds in each frame, the softmax taken inside that frame.

        y~_{st,t'} = sum_s' softmax_s'(q_st . k_{s't'} / sqrt(d)) v_{s't'}

    q (B, h, I, d), k and v (B, h, T*S, d) -> (B, h, I, T, d). `kernel` does the attending.
    """
    if not q.ndim == k.ndim == v.ndim == 4 or k.shape[:3] != v.shape[:3] or T < 1 or k.shape[2] % T:
        raise ValueError(f"needs q (B, h, I, d), k, v (B, h, T*S, d), {T=}: {q.shape}, {k.shape}, {v.shape}")
    B, h, I, d = q.shape
    keys_and_values = [rearrange(x, "B h (T S) d -> (B T) h S d", T=T) for x in (k, v)]
    q = repeat(q, "B h I d -> (B T) h I d", T=T)  # (B*T, h, I, d)
    return rearrange(kernel(q, *keys_and_values), "(B T) h I d -> B h I T d", T=T)


def trajectory_attention(q, k, v, grid, proj_q, proj_kv, first_stage=attend_per_frame, project_values=True):
    """A patch looks for itself in every frame, then attends along the T places that it found, its trajectory.

        y_st = sum_t' softmax_t'(W_q y~_{st,t} . W_k y~_{st,t'} / sqrt(d)) W_v y~_{st,t'}

    proj_q is W_q, a linear layer D -> D, and proj_kv is W_k above W_v, D -> 2*D; they see the heads joined.

    y~ is what first_stage finds. In each head u . (W_k y~) = (W_k^T u) . y~ with u = W_q y~; a bias in W_k
    adds one number to all T scores, which a softmax does not see; a mean of W_v y~ + b_v is W_v of the mean
    + b_v. So 2*D**2 a patch do, not 2*T*D**2 for its trajectory; scores and means run over D channels, not d.

    Sees          everything
    Class token   Sees everything, itself too, and skips the second stage. No patch sees it.
    Cost          2*(T*S)**2*D + 2*C*(C + T*S)*D + 3*T*S*D**2 + 2*T*S*h*T*D
    Differs       The published weights were trained with a slip: the second stage takes y~ itself as its
                  value, and W_v is never used. project_values=False is that.
    Copy with     attend, count_class_tokens, attend_per_frame
    """
    C = count_class_tokens(q, grid, k, v)
    T, H, W = grid
    B, h, N, d = q.shape
    if proj_q.weight.shape != (h * d, h * d) or proj_kv.weight.shape != (2 * h * d, h * d):
        raise ValueError(f"proj_q must be a linear layer {h * d} -> {h * d}, proj_kv {h * d} -> {2 * h * d}")
    y = first_stage(q[:, :, C:], k[:, :, C:], v[:, :, C:], T)  # (B, h, N - C, T, d)
    w_k, w_v = rearrange(proj_kv.weight, "(two h d) D -> two h d D", two=2, h=h)  # (h, d, h*d)
    b_v = 0 if proj_kv.bias is None else proj_kv.bias[h * d :].view(h, 1, d)  # (h, 1, d)
    out = [attend(q[:, :, :C], k, v)]  # what the class tokens find
    for t, path in enumerate(rearrange(y, "B h (t S) T d -> t B S T (h d)", t=T)):  # the patches of frame t
        u = rearrange(proj_q(path[:, :, t]), "B S (h d) -> B S h d", h=h)  # (B, H*W, h, d)
        u = torch.einsum("BShd,hdD->BShD", u, w_k)  # (B, H*W, h, h*d), u = W_k^T W_q y~
        weights = (torch.einsum("BShD,BSTD->BShT", u, path) / math.sqrt(d)).softmax(dim=-1)  # (B, H*W, h, T)
        if project_values:
            mean = torch.einsum("BShT,BSTD->BShD", weights, path)  # (B, H*W, h, h*d)
            found = torch.einsum("BShD,hdD->BhSd", mean, w_v) + b_v  # (B, h, H*W, d)
        else:
            found = torch.einsum("BShT,BSThd->BhSd", weights, path.unflatten(3, (h, d)))  # (B, h, H*W, d)
        out.append(found)
    return torch.cat(out, dim=2)  # (B, h, N, d)


class TrajectoryAttention(Attention):  # **options are those of the first stage
    first_stage = staticmethod(attend_per_frame)

    def __init__(self, dim, heads, *args, project_values=True, **options):
        super().__init__(dim, heads, *args, **options)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_kv = nn.Linear(dim, 2 * dim)
        self.project_values = project_values

    def mechanism(self, q, k, v, grid, **options):
        look = partial(self.first_stage, **options)
        return trajectory_attention(q, k, v, grid, self.proj_q, self.proj_kv, look, self.project_values)


# ==== ORTHOFORMER: a few tokens stand for all, those that differ most ========= Motionformer, equation 10 ===
def most_orthogonal_subset(x, count, start=0, criterion="max"):
    """Pick `count` vectors greedily, each as orthogonal as can be to those before it (algorithm 1).

    x (..., n, d) -> their numbers (..., count) in the order of picking, number `start` first. A candidate's
    score is its largest |cosine| to those picked, or with criterion "sum" their sum; the lowest is next.

    Cost          n**2*d        for every leading index
    Differs       The paper and its code start from a random one; then eval would not repeat itself.
    """
    *leading, n, d = x.shape
    if not 1 <= count <= n or not 0 <= start < n or criterion not in ("max", "sum"):
        raise ValueError(f"{count=} of {n}, {start=}, {criterion=}: use 1..{n}, 0..{n - 1}, max or sum")
    with torch.no_grad():
        x = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, n, d)  # (R, n, d)
        x, R = F.normalize(x, dim=2), x.shape[0]
        cosine = x @ x.transpose(1, 2)  # (R, n, n), each pick will read one row of it
        cosine.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # never the same twice
        cosine = cosine.flatten(0, 1)  # (R*n, n), one table below the other
        top = torch.arange(0, R * n, n, device=x.device)  # (R,), the first row of each
        picked = [top + start]
        score = torch.zeros_like(x[:, :, 0])  # (R, n)
        for _ in range(count - 1):
            newest = cosine.index_select(0, picked[-1]).abs()  # (R, n)
            score = torch.maximum(score, newest) if criterion == "max" else score + newest
            picked.append(top + score.min(dim=1).indices)
        return torch.stack(picked, dim=1).remainder(n).view(*leading, count)


def choose_prototypes(q, k, prototypes=128, choice="orthogonal", queries_only=False, oversample=3, **options):
    """Prototypes (B, h, P, d) from the tokens of a clip; as many as there are tokens when these are fewer.

    choice        "orthogonal", see most_orthogonal_subset for **options; "random"; "segments" (table 3b)
    queries_only  candidates are the queries alone (Motionformer's code), else queries and keys (algorithm 1)
    oversample    candidates per prototype (the paper's c), so that any N costs the same; None (its code): all

    Copy with     most_orthogonal_subset, segment_means
    """
    fits = (choice == "orthogonal" or choice in ("random", "segments") and not options) and q.ndim == 4
    if not fits or q.shape != k.shape or prototypes < 1 or (oversample is not None and oversample < 1):
        given = f"{prototypes=} of {tuple(q.shape)} and {tuple(k.shape)}, {choice=}, {oversample=}, {options}"
        raise ValueError(f"{given}: use two (B, h, N, d), numbers >= 1; orthogonal, random or segments")
    B, h, N, d = q.shape
    n, P = N if queries_only else 2 * N, min(prototypes, N)
    if choice == "segments":
        return segment_means(q if queries_only else torch.cat([q, k], dim=2), P)
    i = torch.arange(n, device=q.device)  # (n,), candidate i is query i or key i - N
    c = 1 if choice == "random" else oversample
    if c is not None:
        shuffle = ((i + 104729) ** 3 % 1000003).argsort(stable=True)  # scattered by cubes, but fixed
        i = shuffle[: c * P]  # (min(n, c * P),)
    x = torch.where(i[:, None] < N, q.index_select(2, i % N), k.index_select(2, i % N))  # (B, h, len(i), d)
    if choice == "random":
        return x
    return x.gather(2, most_orthogonal_subset(x, P, **options)[..., None].expand(-1, -1, -1, d))


def orthoformer_attention(q, k, v, grid, prototypes):
    """Attention in two hops, from the query to prototypes (B, h, P, d) and from these to the keys.

        Y = softmax(Q P^T / sqrt(d)) (softmax(P K^T / sqrt(d)) V)

    It smooths twice, so it is not exact even when every token is a prototype. It becomes exact when every
    key is a prototype and clearly nearest to itself: for 48 orthogonal keys of norm 4, 8, 12 and 16 in 64
    dimensions the relative error is 0.4, 0.01, 6e-7 and 6e-13.

    Sees          everything; a class token is a token like any other
    Cost          4*(C + T*S)*P*D        beside choosing the prototypes
    Copy with     attend
    """
    return attend(q, prototypes, attend(prototypes, k, v))


def orthoformer_per_frame(q, k, v, T, prototypes):
    """Trajectory attention's first stage in two hops, the prototypes (B, h, P, d) shared by all frames.

    q (B, h, I, d), k and v (B, h, T*S, d) -> (B, h, I, T, d)
    Cost          2*P*T*S*D + I*P*(1 + T)*D        linear in S, but with I = T*S still quadratic in T
    """
    found = attend_per_frame(prototypes, k, v, T).flatten(3)  # (*prototypes.shape[:3], T * v.shape[3])
    return attend(q, prototypes, found).unflatten(3, (T, v.shape[3]))


class OrthoformerAttention(Attention):  # **options are those of choose_prototypes
    def mechanism(self, q, k, v, grid, **options):
        return orthoformer_attention(q, k, v, grid, choose_prototypes(q, k, **options))


class OrthoformerTrajectoryAttention(TrajectoryAttention):
    def first_stage(self, q, k, v, T, **options):
        return orthoformer_per_frame(q, k, v, T, choose_prototypes(q, k, **options))


# ==== NYSTROM: two hops over segment means, with an inverse between =================== Nystromformer =======
def segment_means(x, count, T=1):
    """Means of `count` consecutive stretches of tokens; where they do not divide, the first are one shorter.

    x (B, h, n, d) -> (B, h, count, d). With T the tokens are T frames, and stretches go through time first.
    """
    n = x.shape[-2]
    if x.ndim != 4 or not x.is_floating_point() or not 1 <= count <= n or T < 1 or n % T:
        raise ValueError(f"{count} means of {tuple(x.shape)} {x.dtype}, {T=}: use 1..n, floats, T dividing n")
    x = rearrange(x, "B h (T S) d -> B h (S T) d", T=T)
    short = n // count
    shorter = (short + 1) * count - n  # how many stretches are short
    means = [reduce(x[:, :, : shorter * short], "B h (P s) d -> B h P d", "mean", s=short)]
    if shorter < count:
        means.append(reduce(x[:, :, shorter * short :], "B h (P s) d -> B h P d", "mean", s=short + 1))
    return torch.cat(means, dim=2)


def iterative_inverse(A, iterations=6, one_scale=False):
    """The pseudo-inverse of softmax matrices A (..., P, P) by matrix products alone.

        Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4,   from   Z = A^T / (|A|_1 |A|_inf),   |A|_inf = 1
    Differs       Nystromformer's code divides by the batch's largest |A|_1 (one_scale), so that clips mix.
    """
    *leading, rows, P = A.shape
    if rows != P or iterations < 0:
        raise ValueError(f"needs square matrices and iterations >= 0, got {tuple(A.shape)}, {iterations=}")
    I = torch.eye(P, device=A.device, dtype=A.dtype)  # (P, P)
    norm = A.sum(dim=-2, keepdim=True).amax(dim=-1, keepdim=True)  # (*leading, 1, 1)
    Z = A.transpose(-1, -2) / (norm.max() if one_scale and len(norm) > 0 else norm)
    for _ in range(iterations):
        AZ = A @ Z
        Z = 0.25 * Z @ (13 * I - AZ @ (15 * I - AZ @ (7 * I - AZ)))
    return Z


def nystrom_attention(q, k, v, grid, landmarks=128, iterations=6, one_scale=False):
    """The softmax matrix rebuilt from a few of its rows and columns.

        Y = softmax(Q K~^T) softmax(Q~ K~^T)^+ (softmax(Q~ K^T) V),   all scores / sqrt(d)

    Q~ and K~ are means of `landmarks` stretches of tokens, all tokens when they are fewer. With every token a
    landmark it becomes exact as iterations grow, A A^+ A = A (6 leave a few per cent); Orthoformer does not.

    Sees          everything; a class token is a token like any other
    Cost          4*(C + T*S)*P*D + 2*P**2*D + 24*h*P**3        with 6 iterations
    Differs       Nystromformer adds a convolution of v along the tokens and needs P to divide N.
    Copy with     attend, segment_means, iterative_inverse
    """
    B, h, N, d = q.shape
    P = min(landmarks, N)
    q_means, k_means = (segment_means(x, P) for x in (q, k))  # (B, h, P, d)
    found = attend(q_means, k, v)
    scores = q_means / math.sqrt(d) @ k_means.transpose(-1, -2)  # (B, h, P, P)
    return attend(q, k_means, iterative_inverse(scores.softmax(dim=-1), iterations, one_scale) @ found)


def nystrom_per_frame(q, k, v, T, landmarks=128, iterations=6):
    """Trajectory attention's first stage over segment means, which span time and are shared by all frames.

    q, k, v (B, h, T*S, d) -> (B, h, T*S, T, d)
    """
    B, h, N, d = q.shape
    P = min(landmarks, N)
    q_means, k_means = (segment_means(x, P, T) for x in (q, k))  # (B, h, P, d)
    found = attend_per_frame(q_means, k, v, T).flatten(3)  # (B, h, P, T * v.shape[3])
    scores = q_means / math.sqrt(d) @ k_means.transpose(-1, -2)  # (B, h, P, P)
    found = iterative_inverse(scores.softmax(dim=-1), iterations) @ found
    return attend(q, k_means, found).unflatten(3, (T, v.shape[3]))


class NystromAttention(Attention):
    mechanism = staticmethod(nystrom_attention)


class NystromTrajectoryAttention(TrajectoryAttention):
    first_stage = staticmethod(nystrom_per_frame)


# ==== LINEAR: weights that factor, so that keys and values meet first =========================== LVT =======
def attend_linearly(q, k, v, eps=1e-6):
    """Attention with weights q_i . k_j of features that are not negative: no table of N x N is needed.

        out_i = q_i . (sum_j k_j^T v_j) / (q_i . sum_j k_j + eps),   k_j^T v_j an outer product, M x d

    q (..., I, M), k (..., J, M), v (..., J, d) and eps, a number or (..., I, 1) -> (..., I, d). When keys are
    so few that the weights themselves are cheaper, the products are taken in that order.

    Cost          min((I + J)*M*d, I*J*(M + d)) + I*M
    """
    (I, M), (J, d) = q.shape[-2:], v.shape[-2:]
    alike = q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and k.shape[-2:] == (J, M)
    one_dtype = q.dtype == k.dtype == v.dtype or torch.is_autocast_enabled(q.device.type)
    if not (alike and one_dtype and q.device == k.device == v.device):
        given = ", ".join(f"{tuple(x.shape)} {x.dtype} {x.device}" for x in (q, k, v))
        raise ValueError(f"needs q (..., I, M), k (..., J, M), v (..., J, d), floats of a kind: got {given}")
    total = q @ k.sum(dim=-2).unsqueeze(-1) + eps  # (*q.shape[:-1], 1)
    if I * J * (M + d) < (I + J) * M * d:
        return (q @ k.transpose(-1, -2)) @ v / total
    return q @ (k.transpose(-1, -2) @ v) / total


# ==== FEATURE FIXATION: a gate that says which features of q and k to trust ===================== LVT =======
def fixate(q, k, v, gate_q, gate_k=None):
    """Reweigh the features of q and k by what q, k and v say together: linear attention finds focus again.

        g = sigmoid(W [q; k; v] + b),   q^ = g_q * q,   k^ = g_k * k

    q and k, features already, and v (B, h, N, d) -> q^, k^. The gates are linear layers 3*d -> d shared by
    all heads; without gate_k one gate serves both and is evaluated once.
    Cost          3*N*d*D        for each gate
    """
    (B, h, N, d), e = q.shape, v.shape[-1]
    gates = [gate.weight.shape for gate in (gate_q, gate_k) if isinstance(gate, nn.Linear)]  # or any function
    if q.shape != k.shape or q.shape[:3] != v.shape[:3] or any(gate != (d, 2 * d + e) for gate in gates):
        raise ValueError(f"needs q and k alike, gate {2 * d + e} -> {d}: {q.shape}, {k.shape}, {v.shape}")
    x = torch.cat([q, k, v], dim=-1)  # (B, h, N, 3*d)
    g_q = torch.sigmoid(gate_q(x))  # (B, h, N, d)
    g_k = g_q if gate_k is None else torch.sigmoid(gate_k(x))
    return g_q * q, g_k * k


def linear_attention(q, k, v, grid, gate_q=None, gate_k=None):
    """Joint attention in linear time: its weights are products of features that are not negative.

        phi(x) = ReLU(x) + 1/sqrt(d),   then fixation if there is a gate, then attend_linearly

    Sees          everything; a class token is a token like any other
    Cost          min(2*(C + T*S)*d*D, 2*(C + T*S)**2*D) + (C + T*S)*D        and the gates', see fixate
    Differs       All of LVT here is written from its released code; the paper's section could not be read.
    Copy with     attend_linearly, fixate
    """
    if q.shape != k.shape or q.device != k.device or (gate_q is None and gate_k is not None):
        given = " and ".join(f"{tuple(x.shape)} {x.dtype} {x.device}" for x in (q, k))
        raise ValueError(f"q and k must be alike, and gate_k comes with gate_q; got {given}, {gate_q=}")
    q, k = (F.relu(x) + x.shape[-1] ** -0.5 for x in (q, k))  # the floor keeps every token in view
    if gate_q is not None:
        q, k = fixate(q, k, v, gate_q, gate_k)
    tiny = torch.finfo(q.dtype).tiny  # s and z cancel in the ratio: no gradient, but half precision holds it
    s = 1 / q.shape[-1] / q.detach().amax(dim=-1, keepdim=True).clamp_min(tiny)  # (*q.shape[:-1], 1)
    z = k.shape[-2] ** -0.5 / k.detach().amax((-2, -1), keepdim=True).clamp_min(tiny)  # (*s.shape[:-2], 1, 1)
    return attend_linearly(q * s, k * z, v, 1e-6 * s * z)


# ==== NEIGHBOURHOOD ASSOCIATION: keys and values hear along the axis not attended =============== LVT =======
NEXT_AND_PREVIOUS = [(1, 0, 0), (-1, 0, 0)]  # frames, for attention in space
EIGHT_AROUND = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (0, -1, -1), (0, 1, 1), (0, -1, 1), (0, 1, -1)]


def borrow_from_neighbours(x, grid, steps, share, segment=None):
    """Keys, or values, with `share` channels of the joined heads from each neighbour in `steps` (see borrow).

    x (B, h, T*S, d) -> the same shape. With `segment`, nothing crosses from one stretch of so many frames to
    the next. Attention in space borrows from other frames, attention in time from other places.
    """
    C = count_class_tokens(x, grid, x)
    T, H, W = grid
    B, h, N, d = x.shape
    t = T if segment is None else segment
    if C > 0 or t < 1 or T % t or not 1 <= share <= h * d // len(steps):
        given = f"{N} tokens, {grid}, segment={segment}, {len(steps)} shares of {share} in {h * d} channels"
        raise ValueError(f"{given}: needs no class tokens, a segment that divides T, and shares that fit")
    x = rearrange(x, "B h (n t H W) d -> (B n) t H W (h d)", t=t, H=H, W=W)  # (B*T // t, t, H, W, h*d)
    x = borrow(x, steps, share)
    return rearrange(x, "(B n) t H W (h d) -> B h (n t H W) d", n=T // t, h=h)  # (B, h, N, d)


class LinearAttention(Attention):
    """Linear attention along `axis` "joint" (see linear_attention), "time" or "space", and LVT's additions.

    fixation      None, "shared" (one gate) or "separate" (one for q, one for k)
    neighbours    k and v borrow channels: along time a sixteenth from each of the eight around, in space one
                  part in `divisor` from the next and the previous frame of a `segment` (moved = 2 / divisor)
    """

    def __init__(self, dim, heads, *args, axis="joint", fixation=None, **options):
        super().__init__(dim, heads, *args, **options)
        self.axis, self.skips_class_token = axis, axis == "time"
        known = axis in ("joint", "time", "space") and fixation in (None, "shared", "separate")
        if not known or axis == "joint" and options.get("neighbours"):  # joint attention sees them anyway
            raise ValueError(f"{axis=}: time, space, joint (no neighbours); {fixation=}: shared, separate")
        d = dim // heads
        self.gate_q = nn.Linear(3 * d, d) if fixation else None
        self.gate_k = nn.Linear(3 * d, d) if fixation == "separate" else None

    def mechanism(self, q, k, v, grid, neighbours=False, divisor=4, segment=None):
        if neighbours:
            steps, parts = (EIGHT_AROUND, 16) if self.axis == "time" else (NEXT_AND_PREVIOUS, divisor)
            share = self.qkv.in_features // parts if parts else 0
            k, v = (borrow_from_neighbours(x, grid, steps, share, segment) for x in (k, v))
        kernel = partial(linear_attention, grid=grid, gate_q=self.gate_q, gate_k=self.gate_k)
        if self.axis == "time":
            return time_attention(q, k, v, grid, kernel)
        if self.axis == "space":
            return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T) h (H W) d", kernel)
        return kernel(q, k, v)


# ==== PERFORMER: linear again, with random features that stand for the softmax =============== FAVOR+ =======
def orthogonal_projection(features, d):
    """Random directions (features, d), orthogonal in blocks of d and as long as Gaussian vectors are."""
    if min(features, d) < 1:
        raise ValueError(f"{features=} and {d=} must be 1 or more")
    blocks = [torch.linalg.qr(torch.randn(d, d))[0] for _ in range(math.ceil(features / d))]
    lengths = torch.randn(features, d).norm(dim=1, keepdim=True)  # (features, 1)
    return torch.cat(blocks)[:features] * lengths


def favor_features(x, projection, over, eps=1e-6):
    """Positive features with phi(q) . phi(k) = exp(q . k / sqrt(d)) on average over projections, up to c.

        phi(x) = (exp(W x~ - |x~|^2 / 2 - c) + eps) / sqrt(M),   x~ = x / d^(1/4)

    x (..., N, d), W = projection (M, d) -> (..., N, M). c, the maximum of W x~ over the axes `over`, (-1,)
    for queries, (-2, -1) for keys, cancels but for eps. float16 is too short for exp: NaN from scale 1 on.
    """
    if projection.shape[1:] != x.shape[-1:]:
        raise ValueError(f"projection {tuple(projection.shape)} must be (M, d), d={x.shape[-1]}")
    x = x * x.shape[-1] ** -0.25
    logits = x @ projection.T.to(x)  # (*x.shape[:-1], len(projection))
    logits = logits - (x.square().sum(-1, keepdim=True) / 2 + logits.detach().amax(over, keepdim=True))
    return (logits.exp_() + eps).mul_(len(projection) ** -0.5)  # in place, for nothing here is larger


def performer_attention(q, k, v, grid, projection):
    """Softmax attention by random features, projection (M, d): right on average, far off with large scores.
    For N=64 and d=32 the relative error with 32, 128, 512, 2048 and 8192 features is .12 .06 .03 .02 .01 if
    q and k have scale 1/4, and 1.6 1.5 1.3 1.1 .9 if they have scale 1: the size of the scores is what hurts.

    Sees          everything; a class token is a token like any other
    Cost          4*(C + T*S)*M*D + (C + T*S)*h*M
    Copy with     favor_features, attend_linearly
    """
    heads = max(1, 2**22 // (q.shape[-2] * len(projection)))  # at a time: features are M/d times their tokens
    found = []
    for q, k, v in zip(*(x.split(heads, dim=-3) for x in (q, k, v)), strict=True):
        q = favor_features(q, projection, over=(-1,))  # (*v.shape[:3], len(projection))
        k = favor_features(k, projection, over=(-2, -1))  # (*v.shape[:3], len(projection))
        found.append(attend_linearly(q, k, v, eps=0.0))
    return torch.cat(found, dim=-3)


class PerformerAttention(Attention):
    def __init__(self, dim, heads, *args, features=256, **options):
        super().__init__(dim, heads, *args, **options)
        self.register_buffer("projection", orthogonal_projection(features, dim // heads))

    def mechanism(self, q, k, v, grid):
        return performer_attention(q, k, v, grid, self.projection)


class PerformerTrajectoryAttention(TrajectoryAttention, PerformerAttention):
    def first_stage(self, q, k, v, T):
        q = favor_features(q, self.projection, over=(-1,))  # (*v.shape[:3], len(self.projection))
        k = favor_features(k, self.projection, over=(-2, -1))  # (*v.shape[:3], len(self.projection))
        frames = zip(*(rearrange(x, "B h (T S) d -> T B h S d", T=T) for x in (k, v)))  # no copies of q
        return torch.stack([attend_linearly(q, k, v, eps=0.0) for k, v in frames], dim=3)


# ==== THE TABLE: a scheme is a short list of steps, each with weights of its own ============================
ATTENTION = {
    "space": [SpaceAttention],
    "joint": [JointAttention],
    "divided": [TimeAttention, SpaceAttention],
    "local_global": [LocalAttention, GlobalAttention],
    "axial": [TimeAttention, WidthAttention, HeightAttention],
    "pooled": [PooledAttention],
    "mixing": [MixingAttention],
    "summary": [SummaryAttention],
    "mixing_summary": [partial(MixingAttention, summary=True)],
    "trajectory": [TrajectoryAttention],
    "trajectory_orthoformer": [OrthoformerTrajectoryAttention],
    "trajectory_nystrom": [NystromTrajectoryAttention],
    "trajectory_performer": [PerformerTrajectoryAttention],
    "orthoformer": [OrthoformerAttention],
    "nystrom": [NystromAttention],
    "performer": [PerformerAttention],
    "linear": [LinearAttention],
    "linear_fixation": [partial(LinearAttention, fixation="shared")],
    "lvt": [partial(LinearAttention, axis=a, fixation="shared", neighbours=True) for a in ("time", "space")],
}

# A clip's only class token, as others have it, would carry news where these limit how frames meet.
CLASS_TOKEN = dict.fromkeys(("space", "mixing", "summary", "mixing_summary"), "frame") | {"lvt": "none"}


# ==== TOKENS: pixels to patches, and where each patch was ===================================================
class PatchEmbedding(nn.Module):
    """Cut a clip into patches of (frames, rows, columns) pixels and project each to D numbers.

    video (B, channels, frames, height, width) -> tokens (B, T*S, D) and their grid (T, H, W)

    Patches of one frame are TimeSformer's; of several (tubelets), ViViT's and Motionformer's. A convolution
    with stride = kernel is one linear layer on each; with less they overlap, zeros around, norm after (LVT).
    """

    def __init__(self, patch_size, dim, channels=3, stride=None):
        super().__init__()
        self.patch_size, self.channels, self.overlap = as_sizes(patch_size), channels, stride is not None
        padding = [size // 2 for size in self.patch_size] if self.overlap else 0
        stride = as_sizes(stride if self.overlap else patch_size)
        self.proj = nn.Conv3d(channels, dim, self.patch_size, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim) if self.overlap else nn.Identity()

    def forward(self, video):
        self.check(video)
        x = self.proj(video)  # (B, D, T, H, W)
        B, D, T, H, W = x.shape
        return self.norm(rearrange(x, "B D T H W -> B (T H W) D")), (T, H, W)

    def check(self, video):
        dtype, device = self.proj.weight.dtype, self.proj.weight.device
        castable = video.is_floating_point() and video.itemsize < 8
        mixed = video.dtype != dtype and not (castable and torch.is_autocast_enabled(device.type))
        if video.ndim != 5 or video.shape[1] != self.channels or video.device != device or mixed:
            swapped = video.ndim == 5 and video.shape[2] == self.channels
            hint = "; (B, T, C, H, W) has frames before channels: video.transpose(1, 2)" if swapped else ""
            wanted = f"(B, {self.channels} channels, frames, height, width) {dtype} {device}"
            raise ValueError(f"needs {wanted}, got {tuple(video.shape)} {video.dtype} {video.device}{hint}")
        for name, size, patch in zip(("frames", "height", "width"), video.shape[2:], self.patch_size):
            if size < patch or (size % patch != 0 and not self.overlap):
                near = max(patch, size // patch * patch)
                raise ValueError(f"{name}={size} does not divide into patches of {patch}; use {near}, say")

    def grid(self, video_size):
        """The grid (T, H, W) of a video of (frames, height, width)."""
        sizes = zip(video_size, self.patch_size, self.proj.stride, self.proj.padding)
        grid = tuple((size + 2 * padding - patch) // stride + 1 for size, patch, stride, padding in sizes)
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"a video of {tuple(video_size)} is smaller than one patch of {self.patch_size}")
        return grid


def central_frame_kernel(kernel, frames):
    """An image model's patch kernel (D, channels, p, q) for tubelets: zeros but for the central frame.

    -> (D, channels, frames, p, q). The tubelet model starts as the image model on the frame at frames // 2 of
    each tubelet: 1.6 points better than an even spread on Kinetics-400 (ViViT, table 1; also Motionformer).
    """
    if frames < 1 or kernel.ndim != 4:
        raise ValueError(f"{frames=} must be 1 or more, and {tuple(kernel.shape)} be (D, channels, p, q)")
    return F.pad(kernel.unsqueeze(2), (0, 0, 0, 0, frames // 2, (frames - 1) // 2))


def resize_table(table, old, new, how="smooth"):
    """Resample a position table (1, prod(old), D) to (1, prod(new), D).

    "smooth" is linear in time, bicubic in space, trilinear in both (Motionformer), "nearest" the nearest
    (TimeSformer's code), "repeat" is smooth, but a table of times starts over at its end (X-ViT's and LVT's).
    """
    if table.shape[1] != math.prod(old) or len(old) != len(new) or how not in ("smooth", "nearest", "repeat"):
        raise ValueError(f"{tuple(table.shape)} must fit {old} to {new}, {how=}: smooth, nearest, repeat")
    if tuple(old) == tuple(new):
        return table
    if how == "repeat" and len(new) == 1:
        return table[:, torch.arange(new[0], device=table.device) % old[0]]
    mode = "nearest" if how == "nearest" else {1: "linear", 2: "bicubic", 3: "trilinear"}[len(new)]
    table = F.interpolate(table.transpose(1, 2).unflatten(2, tuple(old)), size=tuple(new), mode=mode)
    return table.flatten(2).transpose(1, 2)


class PositionEmbedding(nn.Module):
    """Learned position tables, added to the tokens: x (B, C + T*S, D) -> the same shape.

    kind          "none"      to attention alone all places are alike
                  "space"     one entry per place in a frame
                  "time"      one per frame; places then come from convolutions (LVT)
                  "separate"  one per place and one per frame, these zero at first: no image model has them
                  "joint"     one per place and frame
    grid          (T, H, W) of the tables; another grid in a call resizes them, see resize_table for `resize`
    class_token   "clip", "frame" or "none". It has an entry of its own among the places. One per frame also
                  gets the entry of its frame (X-ViT); one per clip has no time (TimeSformer, Motionformer).
    """

    def __init__(self, kind, grid, dim, class_token, resize="smooth"):
        super().__init__()
        T, S = grid[0], math.prod(grid[1:])
        sizes = {"none": (0, 0), "space": (S, 0), "time": (0, T), "separate": (S, T), "joint": (T * S, 0)}
        if kind not in sizes or class_token not in ("clip", "frame", "none"):
            raise ValueError(f"position={kind!r} ({', '.join(sizes)}) or {class_token=} (clip, frame, none)?")
        places, frames = sizes[kind]
        self.kind, self.grid, self.resize = kind, tuple(grid), resize
        self.class_has_time = class_token == "frame"
        self.c = 0 if class_token == "none" else 1  # the class token's entries
        self.place = nn.Parameter(torch.zeros(1, self.c + places, dim)) if places else None
        self.time = nn.Parameter(torch.zeros(1, frames, dim)) if frames else None

    def forward(self, x, grid):
        C = count_class_tokens(x, grid)
        T, H, W = grid
        B, N, D = x.shape
        if C != (own := T if self.class_has_time else self.c):
            raise ValueError(f"{C} class tokens on {grid}, but class_token= made the tables for {own}")
        check_tokens(x, [*self.parameters(), x][0])  # a table, if there is one
        class_tokens = x[:, :C]  # (B, C, D)
        patches = x[:, C:]  # (B, N - C, D)
        if self.place is not None:
            old, new = (self.grid, grid) if self.kind == "joint" else (self.grid[1:], (H, W))
            places = resize_table(self.place[:, self.c :], old, new, self.resize)  # (1, math.prod(new), D)
            patches = patches + places.repeat(1, T * H * W // math.prod(new), 1)
            class_tokens = class_tokens + self.place[:, : self.c]
        if self.time is not None:
            time = resize_table(self.time, self.grid[:1], (T,), self.resize)  # (1, T, D)
            patches = patches + time.repeat_interleave(H * W, dim=1)
            class_tokens = class_tokens + time if self.class_has_time else class_tokens
        return torch.cat([class_tokens, patches], dim=1)  # (B, N, D)


# ==== BLOCKS: the steps of a scheme and an MLP, each added to what came in ==================================
class StochasticDepth(nn.Dropout):
    """In training, drop a clip's whole branch x (B, ...) with probability p and scale up the others."""

    def forward(self, x):
        drops = self.training and self.p > 0.0
        return x * super().forward(x.new_ones(x.shape[:1] + (1,) * (x.ndim - 1))) if drops else x


class MLP(nn.Module):
    """Each token by itself, x (B, N, D) -> (B, N, D). With depthwise, hidden channels also see their 3 x 3
    neighbours in the frame, so that a patch knows its place (LVT; patches only). gelu="tanh" is ViViT's.
    Cost          2*N*D*hidden        and 9*N*hidden with depthwise
    """

    def __init__(self, dim, hidden, dropout=0.0, depthwise=False, gelu="none"):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if depthwise else None
        self.gelu = nn.GELU(approximate=gelu)

    def forward(self, x, grid):
        check_tokens(x, self.fc1.weight)
        T, H, W = grid
        B, N, D = x.shape
        x = self.fc1(x)  # (B, N, self.fc1.out_features)
        if self.depthwise is not None:
            if count_class_tokens(x, grid) > 0:
                raise ValueError(f"{N} tokens on {grid}: depthwise needs {T * H * W} patches, no class token")
            frames = self.depthwise(rearrange(x, "B (T H W) c -> (B T) c H W", T=T, H=H, W=W))
            x = rearrange(frames, "(B T) c H W -> B (T H W) c", T=T)
        return self.dropout(self.fc2(self.dropout(self.gelu(x))))


class Block(nn.Module):
    """Pre-norm: x = x + step(norm(x)) for every step of the scheme, then x = x + mlp(norm(x)).
    block(x, (T, H, W)) with x (B, C + T*S, D) -> the same shape
    """

    def __init__(self, dim, steps, mlp, drop_path=0.0, eps=1e-6):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for step in self.steps)
        self.mlp = mlp
        self.mlp_norm = nn.LayerNorm(dim, eps=eps)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x, grid):
        check_tokens(x, self.mlp_norm.weight)
        for norm, step in zip(self.norms, self.steps):
            x = x + self.drop_path(step(norm(x), grid))
        return x + self.drop_path(self.mlp(self.mlp_norm(x), grid))


# ==== HEADS: tokens to classes ==============================================================================
class TemporalAttentionHead(nn.Module):
    """X-ViT's temporal attention: a new class token and the T frames in one more transformer layer.
    x (B, T, D), a token per frame -> (B, D). There are no positions here; the frames carry their own. As in
    the code it is a whole block, where the paper has the new token alone attend.
    """

    def __init__(self, dim, heads):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.block = Block(dim, [JointAttention(dim, heads, qkv_bias=False)], MLP(dim, 4 * dim), eps=1e-5)

    def forward(self, x):
        check_tokens(x, self.class_token)
        B, T, D = x.shape
        x = torch.cat([self.class_token.expand(B, 1, D), x], dim=1)  # (B, 1 + T, D)
        return self.block(x, (T, 1, 1))[:, 0]  # (B, D)


class Head(nn.Module):
    """Pool the tokens (B, C + T*S, D) of a clip into one and classify it: logits (B, K).

    pool          "class"     the class token, or the mean of the frames' class tokens
                  "mean"      the mean of the patches
                  "temporal"  a TemporalAttentionHead over the frames' class tokens, or patch means
    mlp           None        a linear layer (TimeSformer's code; its paper has a hidden one)
                  "tanh"      linear, tanh, linear (Motionformer)
                  "gelu"      norm, linear, GELU, dropout, linear (X-ViT, LVT)
    """

    def __init__(self, dim, num_classes, pool, mlp, hidden, heads, dropout):
        super().__init__()
        hidden = hidden or dim
        layers = {
            None: [nn.Linear(dim, num_classes)],
            "tanh": [nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, num_classes)],
            "gelu": [nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout)]
            + [nn.Linear(hidden, num_classes)],
        }
        if pool not in ("class", "mean", "temporal") or mlp not in layers:
            raise ValueError(f"head={pool!r}, head_mlp={mlp!r}: use class, mean, temporal; None, tanh, gelu")
        self.pool = pool
        self.temporal = TemporalAttentionHead(dim, heads) if pool == "temporal" else None
        self.classify = nn.Sequential(*layers[mlp])

    def forward(self, x, grid):
        check_tokens(x, self.classify[0].weight)
        C = count_class_tokens(x, grid)
        T, H, W = grid
        B, N, D = x.shape
        if self.pool == "class" and C == 0:
            raise ValueError(f"{N} tokens on {grid} have no class token to classify: use pool='mean'")
        if self.pool == "class":
            x = x[:, :C].mean(dim=1)  # (B, D)
        elif self.pool == "mean":
            x = x[:, C:].mean(dim=1)  # (B, D)
        else:
            frames = x[:, :T] if C == T else reduce(x[:, C:], "B (T S) D -> B T D", "mean", T=T)  # (B, T, D)
            x = self.temporal(frames)  # (B, D)
        return self.classify(x)


# ==== THE BACKBONE ==========================================================================================
class VideoTransformer(nn.Module):
    """Patches, positions, blocks and a head: the vision transformer with attention over video.

    model(video) with video (B, channels, frames, height, width) -> logits (B, K)
    model.forward_features(video) -> tokens (B, C + T*S, D) after the last norm (T = 1 with merge_frames)

    attention     a name in ATTENTION or a list of steps, where partial(Step, option=...) sets an option
    num_frames    frames of a video, and image_size its height and width, which size the position tables only
    patch_size    an int, (rows, columns) or (frames, rows, columns); with a smaller patch_stride they overlap
    position      a kind of PositionEmbedding, and resize, how its tables meet another grid, see resize_table
    class_token   "clip", "frame" or "none"; left out, what CLASS_TOKEN says for the scheme, or "clip"
    head          "class", "mean" or "temporal", and head_mlp None, "tanh" or "gelu", of width head_hidden,
                  see Head; left out, "class", or "mean" without class tokens
    dropout       after the embedding, after the output projections, in the MLPs and in a "gelu" head
    drop_path     stochastic depth, from 0 in the first block to this in the last; neither acts in eval
    zero_init     a block's steps start at zero but for the last, see Attention
    depthwise     MLPs with a 3 x 3 convolution; gelu "none" is exact, "tanh" approximate, see MLP
    merge_frames  average all frames before the last norm, as released space-only TimeSformers do
    checkpoint    in training keep only what enters each block and compute the rest again on the way back
    """

    def __init__(
        self, attention="divided", num_classes=400, num_frames=8, image_size=224, patch_size=16, dim=768,
        depth=12, heads=12, mlp_ratio=4.0, position="separate", class_token=None, head=None, head_mlp=None,
        head_hidden=None, dropout=0.0, drop_path=0.0, patch_stride=None, zero_init=True, depthwise=False,
        gelu="none", resize="smooth", merge_frames=False, channels=3, checkpoint=False,
    ):
        super().__init__()
        steps = steps_of(attention)
        class_token = CLASS_TOKEN.get(str(attention), "clip") if class_token is None else class_token
        head = head or ("mean" if class_token == "none" else "class")
        if depth < 0 or min(num_classes, channels, dim, int(dim * mlp_ratio)) < 1:
            raise ValueError(f"{depth=} >= 0, {num_classes=}, {channels=}, {dim=}, {mlp_ratio=} * dim >= 1")
        if class_token == "none" and head == "class" or class_token != "none" and depthwise:
            raise ValueError(f"class_token={class_token!r}: head='class' needs one, depthwise needs 'none'")
        self.patches = PatchEmbedding(patch_size, dim, channels, patch_stride)
        grid = self.patches.grid((num_frames, *as_sizes(image_size)[1:]))
        self.class_token_kind, self.merge_frames, self.checkpoint = class_token, merge_frames, checkpoint
        self.class_token = None if class_token == "none" else nn.Parameter(torch.zeros(1, 1, dim))
        self.position = PositionEmbedding(position, grid, dim, class_token, resize)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for i in range(depth):
            zeros = [zero_init] * (len(steps) - 1) + [False]
            modules = [step(dim, heads, dropout, zero) for step, zero in zip(steps, zeros)]
            mlp = MLP(dim, int(dim * mlp_ratio), dropout, depthwise, gelu)
            self.blocks.append(Block(dim, modules, mlp, drop_path * i / max(depth - 1, 1)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = Head(dim, num_classes, head, head_mlp, head_hidden, heads, dropout)
        self.init_weights()

    def init_weights(self):
        """As published: linear layers and tables from a truncated normal of .02, biases zero. Exactly zero is
        what no image model has: the time table, a temporal head's class token, the zero_init layers."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention) and module.zero is not None:
                nn.init.zeros_(module.zero.weight)
        for table in (self.class_token, self.position.place):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def encode(self, video):
        """video (B, channels, frames, height, width) -> normed tokens (B, C + T*S, D) and their grid"""
        x, grid = self.patches(video)  # (B, T*H*W, D)
        T, H, W = grid
        B, N, D = x.shape
        if self.class_token is not None:
            C = T if self.class_token_kind == "frame" else 1
            x = torch.cat([self.class_token.expand(B, C, D), x], dim=1)  # (B, C + T*H*W, D)
        x = self.dropout(self.position(x, grid))
        for block in self.blocks:
            again = self.checkpoint and self.training
            x = checkpoint(block, x, grid, use_reentrant=False) if again else block(x, grid)
        if self.merge_frames:
            C = count_class_tokens(x, grid)
            class_token = x[:, :C].mean(dim=1, keepdim=True)[:, :C]  # (B, min(C, 1), D)
            patches = reduce(x[:, C:], "B (T S) D -> B S D", "mean", T=T)  # (B, H*W, D)
            x = torch.cat([class_token, patches], dim=1)  # (B, min(C, 1) + H*W, D)
            grid = 1, H, W
        return self.norm(x), grid

    def forward_features(self, video):
        return self.encode(video)[0]

    def forward(self, video):
        return self.head(*self.encode(video))


def as_sizes(size):
    """An int p is (1, p, p), a pair (rows, columns) is (1, rows, columns), a triple with frames is itself."""
    sizes = (1, size, size) if isinstance(size, int) else (1,) * (len(size) == 2) + tuple(size)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"size {size} must be an int, (rows, columns) or (frames, rows, columns), all >= 1")
    return sizes


def steps_of(attention):
    """The steps behind a name in ATTENTION; a list of steps is already one."""
    if isinstance(attention, (list, tuple)) and all(callable(step) for step in attention):
        return list(attention)
    if not isinstance(attention, str) or attention not in ATTENTION:
        raise ValueError(f"{attention=} is unknown; give a list of steps or one of {', '.join(ATTENTION)}")
    return ATTENTION[attention]


TUBELETS = dict(patch_size=(2, 16, 16))
MOTIONFORMER = dict(attention="trajectory", num_frames=16, head_mlp="tanh", drop_path=0.2, **TUBELETS)
XVIT = dict(attention="mixing", resize="repeat", head="temporal", head_mlp="gelu")
LVT = dict(patch_stride=14, position="time", class_token="none", depthwise=True, resize="repeat")

PRESETS = {
    "timesformer": dict(attention="divided"),  # TimeSformer, table 5
    "timesformer_hr": dict(attention="divided", num_frames=16, image_size=448),
    "timesformer_l": dict(attention="divided", num_frames=96),
    "motionformer": MOTIONFORMER,  # Motionformer, table 6
    "motionformer_l": MOTIONFORMER | dict(num_frames=32),
    "motionformer_hr": MOTIONFORMER,  # its clips have 336 pixels, its table of places those of 224
    "xvit": XVIT,  # X-ViT, tables 5 and 6
    "xvit_16": XVIT,  # its clips have 16 frames, its table of times 8
    "vivit": dict(attention="joint", num_frames=32, position="joint", gelu="tanh", **TUBELETS),  # table 2
    "lvt": dict(attention="lvt", dim=512, heads=8, zero_init=False, head_mlp="gelu", head_hidden=768, **LVT),
}


def preset(name, **overrides):
    """A published model, untrained; **overrides are arguments of VideoTransformer: preset("lvt", depth=4)."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return VideoTransformer(**PRESETS[name] | overrides)


# ==== RELEASED WEIGHTS: the authors' files under the names used here ========================================
RENAMES = [  # in this order; {last} is the last step of a block, {out} the last layer of the head
    (r"^((timesformer|vivit|base_model|embeddings|encoder)\.)+", ""),
    (r"^consensus\.cls_token", "head.temporal.class_token"),
    (r"^consensus\.temporal_encoder\.0", "head.temporal.block"),
    (r"^consensus\.mlp_head", "head.classify"),
    (r"^cls_token", "class_token"),
    (r"^(pos_embed|position_embeddings|st_embed)", "position.place"),
    (r"^(time_embed|temp_embed|time_embeddings)$", "position.time"),
    (r"^(patch_embed_3d|patch_embed|patch_embeddings)\.", "patches."),
    (r"^patches\.projection", "patches.proj"),
    (r"^layer\.", "blocks."),
    (r"\.temporal_(norm1|layernorm)\.", ".norms.0."),
    (r"\.temporal_(fc|dense)\.", ".steps.0.zero."),
    (r"\.temporal_attention\.output\.dense\.", ".steps.0.proj."),
    (r"\.(temporal_attention\.attention|temporal_attn)\.", ".steps.0."),
    (r"\.attention\.output\.dense\.", ".steps.{last}.proj."),
    (r"\.(attention\.attention|attn)\.", ".steps.{last}."),
    (r"\.(norm1|layernorm_before)\.", ".norms.{last}."),
    (r"\.(norm2|layernorm_after)\.", ".mlp_norm."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.dwconv\.dwconv\.", ".depthwise."),
    (r"\.(p|q_)gate\.", ".gate_q."),
    (r"\.k_gate\.", ".gate_k."),
    (r"^layernorm\.", "norm."),
    (r"^pre_logits\.fc\.", "head.classify.0."),
    (r"^(head|classifier|new_fc)\.(?=weight|bias)", "head.classify.{out}."),
]


def read_weights(source):
    """A path, or what a file held -> {key: tensor}. Only weights are read; torch refuses a file with code."""
    if not isinstance(source, dict):
        source = torch.load(source, map_location="cpu", weights_only=True)
    for wrapping in ("model_state", "state_dict", "model"):
        source = source[wrapping] if isinstance(source.get(wrapping), dict) else source
    return {re.sub(r"^((module|model)\.)+", "", key): x for key, x in source.items() if torch.is_tensor(x)}


def never_used(family, weights):
    """Prefixes of what a release carries and its own model never reads."""
    if family == "motionformer":  # one of two patch embeddings, and the table of places beside a joint one
        tubelets = weights["patch_embed_3d.proj.weight"].shape[2] > 1
        return ("patch_embed." if tubelets else "patch_embed_3d.",) + ("pos_embed",) * ("st_embed" in weights)
    spare = family in ("xvit", "lvt") and "consensus.mlp_head.0.weight" in weights
    return ("new_fc.", "base_model.head.") if spare else ()  # a classifier before the head, by either name


def renamed(weights):
    """The weights under the names of VideoTransformer."""
    last = int(any("temporal_att" in key for key in weights))
    out = 2 if "pre_logits.fc.weight" in weights else 0
    result = {}
    for key, value in weights.items():
        for pattern, name in RENAMES:
            key = re.sub(pattern, name.format(last=last, out=out), key)
        result[key] = value
    for key in [key for key in result if ".query." in key]:  # ViViT's three layers are one here
        parts = [result.pop(key.replace("query", name)) for name in ("query", "key", "value")]
        result[key.replace("query", "qkv")] = torch.cat(parts)
    kernel, time = result.get("patches.proj.weight"), result.get("position.time")
    if kernel is not None and kernel.ndim == 4:
        result["patches.proj.weight"] = kernel.unsqueeze(2)
    if time is not None:
        result["position.time"] = time.flatten(1, -2)
    return result


def inferred(family, weights, image_size):
    """VideoTransformer's arguments as far as the renamed weights tell; image_size is for a joint table."""
    D, channels, frames, rows, columns = weights["patches.proj.weight"].shape
    head = sorted(key for key in weights if re.fullmatch(r"head\.classify\.\d\.weight", key))
    depth = 1 + max((int(key.split(".")[1]) for key in weights if key.startswith("blocks.")), default=-1)
    options = dict(dim=D, depth=depth, heads=max(1, D // 64), channels=channels)
    options |= dict(patch_size=(frames, rows, columns))
    if "blocks.0.mlp.fc1.weight" in weights:
        options |= dict(mlp_ratio=len(weights["blocks.0.mlp.fc1.weight"]) / D)
    if head:
        options |= dict(num_classes=len(weights[head[-1]]))
    if len(head) > 1:
        options |= dict(head_mlp="tanh" if len(head) == 2 else "gelu", head_hidden=len(weights[head[-2]]))
    time, place = weights.get("position.time"), weights.get("position.place")
    if time is None and family in ("vivit", "motionformer"):
        height, width = as_sizes(image_size)[1:]
        frames *= (place.shape[1] - 1) // (height // rows * (width // columns))
        return options | dict(position="joint", image_size=(height, width), num_frames=frames)
    if place is not None:
        side = math.isqrt(place.shape[1] - 1)
        options |= dict(image_size=(side * rows, side * columns))
    return options | (dict(position="space") if time is None else dict(num_frames=frames * time.shape[1]))


def as_released(family, weights):
    """What no tensor tells, as each family's release has it."""
    if family == "timesformer":
        divided, timed = "blocks.0.steps.1.qkv.weight" in weights, "position.time" in weights
        attention = "divided" if divided else "joint" if timed else "space"
        return dict(attention=attention, resize="nearest", merge_frames=attention == "space")
    if family == "motionformer":
        slip = [partial(TrajectoryAttention, project_values=False)]
        return dict(attention=slip if "blocks.0.steps.0.proj_q.weight" in weights else "joint")
    if family == "xvit":  # Kinetics: a quarter of the channels, within segments of 8 frames
        mixing = [partial(MixingAttention, whole_heads=True, moved=0.25, segment=8)]
        head = "temporal" if "head.temporal.class_token" in weights else "class"
        return dict(attention=mixing, class_token="frame", head=head, resize="repeat")
    if family == "lvt":
        gates = sum(f"blocks.0.steps.0.gate_{x}.weight" in weights for x in "qk")
        step = partial(LinearAttention, fixation=(None, "shared", "separate")[gates], neighbours=True)
        stride = weights["patches.proj.weight"].shape[-1] * 7 // 8
        steps = [partial(step, axis="time"), partial(step, axis="space")]
        return PRESETS["lvt"] | dict(attention=steps, patch_stride=stride)
    return dict(attention="joint", gelu="tanh")  # vivit


def load(model, weights, source):
    """Fill the model, or raise one ValueError that lists all that is missing, unexpected or misshapen."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit. {error}") from error
    nan = [key for key, value in weights.items() if value.isnan().any()]
    if nan:
        warnings.warn(f"{source} holds NaN in {', '.join(nan)}")
    return model


def from_released(family, state_dict, **overrides):
    """A model in eval mode with released weights: from_released("timesformer", "TimeSformer_K400.pyth").

    family        "timesformer", "motionformer", "xvit", "lvt"; as Hugging Face's "timesformer", "vivit"
    state_dict    a path, or what the file held; the usual nestings and prefixes are removed
    overrides     VideoTransformer's arguments that no tensor tells, where they are not the release's usual:
                  heads (64 channels each), attention=[partial(MixingAttention, whole_heads=True, moved=0.5)]
                  for X-ViT on Something-Something, patch_stride for LVT, image_size for a joint table

    ValueError lists every key that is missing, unexpected or misshapen; only `never_used` is dropped.
    """
    if family not in ("timesformer", "motionformer", "xvit", "lvt", "vivit"):
        raise ValueError(f"family={family!r} is unknown; use timesformer, motionformer, xvit, lvt or vivit")
    weights = read_weights(state_dict)
    try:
        unused = never_used(family, weights)
        weights = renamed({key: value for key, value in weights.items() if not key.startswith(unused)})
        image_size = overrides.get("image_size", 224)
        options = as_released(family, weights) | inferred(family, weights, image_size) | overrides
    except (LookupError, ArithmeticError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"these {len(weights)} tensors are not a released {family}: {error!r}") from error
    return load(VideoTransformer(**options), weights, f"the {family} file").eval()


def load_image_weights(model, state_dict):
    """Start a video model from an image transformer (timm's keys) as the papers do -> model.

    Its patch kernel goes to the central frame of a tubelet, its attention to every step, its table of places
    is resized. What it does not have, like the table of times, stays as it was, and so does the head.
    """
    image = renamed(read_weights(state_dict))
    weights = model.state_dict()
    if "patches.proj.weight" not in image.keys() & weights.keys():
        raise ValueError(f"{len(image)} tensors without patch_embed.proj.weight, or {type(model)} has none")
    for key, own in weights.items():
        value = image.get(re.sub(r"(steps|norms)\.\d", r"\1.0", key))
        if value is None or key.startswith("head."):
            continue
        if key == "patches.proj.weight":
            value = central_frame_kernel(value.squeeze(2), own.shape[2])
        if key == "position.place":
            side, (T, H, W) = math.isqrt(value.shape[1] - 1), model.position.grid
            places = resize_table(value[:, 1:], (side, side), (H, W))
            places = places.repeat(1, T if model.position.kind == "joint" else 1, 1)
            value = torch.cat([value[:, :1], places], dim=1)[:, -own.shape[1] :]
        weights[key] = value
    return load(model, weights, "the image model")


if __name__ == "__main__":
    from tiny_data.benchmark import main  # what every mechanism costs, measured

    main()
