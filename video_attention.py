"""How video transformers attend: the attention mechanisms of nine papers and the full backbone.

A clip becomes a grid of patch tokens, and attention decides which of them exchange information. If
every patch attends to every patch, the cost is the square of their number. So each paper here
answers one question: which patches may a patch attend to?

NOTATION    one meaning for each letter, in shapes, einops patterns and costs
    B   clips in the batch                      D   width of a token
    T   frames after tokenisation               h   heads
    H   rows of the patch grid                  d   width of a head, d = D / h
    W   columns of the patch grid               P   prototypes or landmarks
    S   patches in a frame, S = H * W           M   random features
    C   class tokens: 0, 1, or T (one a frame)  K   classes
    N   tokens given, mostly C + T * S          I, J   queries and keys of one attention
    c   class tokens in a frame, min(C, 1)      L   tokens in a group or a frame

    A video is (B, channels, frames, height, width). Tokens are (B, C + T*S, D): class tokens first,
    then the patches frame by frame and row by row, so that the patch at position (t, y, x) is token
    C + t*S + y*W + x. T, H and W belong to the call: a model built for 8 frames of 14 x 14 patches
    also runs 5 frames of 9 x 13. A comment such as  # (B, h, N, d)  is the shape of what its line
    has just made; a test checks them all. In equations s is a position in a frame and t a frame, a
    prime marks what is attended to, W_q is a weight, the rows of Q, K, V, P are q, k, v and the
    prototypes, ^T is a transpose and ^+ a pseudo-inverse.

SKELETON    a step is one attention module, a scheme lists the steps of one block. Every step has
    1. a pure function of q, k, v (B, h, C + T*S, d), already split into heads, and the grid
       (T, H, W), which gives the same shape; its equation is in the docstring or above the line;
    2. for trajectories only, an equivalent that is faster, ..._fast;
    3. a module with the projections: module(x, (T, H, W)), x (B, C + T*S, D) -> the same shape.
    Picture     Q is the querying patch, # what it attends to, in four frames of 4 x 6 patches;
                without a picture it attends to everything
    Class token what happens to it; without this line it is a token like any other
    Cost        multiply-accumulates for one clip without the qkv and output projections
    Source      the paper, and file and line of its released code, in the repositories named below
    Differs     where paper, released code and this file differ
    Copy with   what must come along, in the order of this file, beside the imports; lines with
                @shapes(...) and require(...) only check, and may be left out

CONTENTS    search for the words in capitals
    CONTRACT (skip it at first), SOFTMAX ATTENTION, GROUPS OF TOKENS, PROJECTIONS    foundations
    SPACE, JOINT SPACE-TIME, DIVIDED, SPARSE LOCAL-GLOBAL, AXIAL  TimeSformer
    FACTORISED DOT-PRODUCT                                        ViViT
    TEMPORAL WINDOW, SHIFTED WINDOWS, POOLED                      X-ViT; Video Swin; MViT
    SUMMARY TOKENS, SPACE-TIME MIXING                             X-ViT
    TRAJECTORY, ORTHOFORMER                                       Motionformer
    NYSTROM                                                       Nystromformer
    LINEAR, FEATURE FIXATION, NEIGHBOURHOOD ASSOCIATION           LVT
    PERFORMER                                                     Performer
    REGISTRY                                                      ATTENTION: schemes, lists of steps
    TOKENS, BLOCKS, HEADS, BACKBONE                               VideoTransformer

    Released code: github.com/facebookresearch/TimeSformer a5ef29a (timesformer/models), and, all in
    slowfast/models, facebookresearch/Motionformer bf43d50, 1adrianb/video-transformers 82ca176
    (X-ViT) and OpenNLPLab/Linear_VideoTransformer 185d74a (LVT)
"""

import functools
import inspect
import itertools
import math
import re
from functools import partial

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch.utils.checkpoint import checkpoint

# ==== CONTRACT: what a function takes, stated and checked in one line above it ====================
def require(condition, message, *values):
    """ValueError unless the condition holds; the values fill the braces of the message."""
    if not condition:
        raise ValueError(message.format(*values)[:2000])

def shapes(contract):
    """State above a function which shapes its tensors have, and check them in every call.

    @shapes("q (..., I, d), k (..., J, d)") asks for two tensors. A letter is one size wherever it
    stands, "..." any leading axes, the same in all. C + T*S is compared with the argument `grid`.
    """
    parts = re.findall(r"((?:\w+, )*\w+) \(([^)]*)\)", contract)
    wanted = {name: axes.split(", ") for names, axes in parts for name in names.split(", ")}
    def decorate(function):
        arguments = list(inspect.signature(function).parameters)
        @functools.wraps(function)
        def checked(*args, **options):
            check_shapes(contract, wanted, dict(zip(arguments, args)) | options)
            return function(*args, **options)
        return checked
    return decorate

def check_shapes(contract, wanted, given):
    """ValueError with the contract, what was given and what to mend, unless all sizes fit."""
    sizes = dict(getattr(given.get("self"), "expects", {}))  # what the module was built for
    got = {name: getattr(given.get(name), "shape", None) for name in wanted}
    for name, axes in wanted.items():
        n, shape = len(axes) - 1, got[name] if isinstance(given.get(name), torch.Tensor) else ()
        shape = (shape[:-n], *shape[-n:]) if axes[0] == "..." else shape
        fits = len(shape) == len(axes) and all(sizes.setdefault(axis, size) == size
            and (size != 0 or axis not in "JdD") for axis, size in zip(axes, shape))
        require(fits, "needs {}, got {}: make {} a torch.Tensor of {}", contract, got, name, sizes)
    N, grid = sizes.get("C + T*S", sizes.get("T*S")), given.get("grid")
    if N is not None and grid is not None:
        fits = isinstance(grid, (tuple, list)) and len(grid) == 3
        fits = fits and all(hasattr(n, "__index__") and n >= 1 for n in grid)
        C = (0, 1, grid[0])[: 3 if "C + T*S" in sizes else 1] if fits else ()
        fits = fits and N - math.prod(grid) in C
        require(fits, "{} tokens on {}: needs T*H*W patches and C in {}; got {}", N, grid, C, got)

def check_input(module, x):
    """Where tokens or video enter: dtype and device are those of the weights, or autocast casts."""
    weight = next(module.parameters(), x)
    fits = (x.dtype, x.device) == (weight.dtype, weight.device) or (x.device == weight.device
        and x.is_floating_point() and x.itemsize < 8 and torch.is_autocast_enabled(x.device.type))
    require(fits, "input {} {}, weights {} {}", x.dtype, x.device, weight.dtype, weight.device)

# ==== SOFTMAX ATTENTION ===========================================================================
@shapes("q (..., I, d), k (..., J, d), v (..., J, e)")
def attend(q, k, v, return_weights=False):
    """Exact softmax attention: every query takes a weighted mean of the values.

    q (..., I, d), k (..., J, d), v (..., J, e) -> (..., I, e), the leading axes independently. With
    return_weights also the weights (..., I, J); without, torch's fused kernel, which stores none.

    Cost        I*J*(d + e)
    """
    # out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j
    if not return_weights:
        out = F.scaled_dot_product_attention(q, k, v)
        # On a CPU, below 16 keys, this kernel loses a NaN in q; adding 0 * NaN restores it.
        return out if k.shape[-2] >= 16 else out + (0 * q.detach()).sum(dim=-1, keepdim=True)
    d = q.shape[-1]
    scores = torch.einsum("...id,...jd->...ij", q / math.sqrt(d), k)  # (..., I, J)
    weights = scores.softmax(dim=-1)
    out = torch.einsum("...ij,...je->...ie", weights, v)  # (..., I, e)
    return out, weights

def in_float32(function):
    """Numerical safety, apart from the mathematics: half precision is raised to float32 inside."""
    @functools.wraps(function)
    def raised(*args, **options):
        x, half = [*args, *options.values()][0], (torch.float16, torch.bfloat16)
        up = lambda y: y.float() if torch.is_tensor(y) and y.dtype in half else y
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            out = function(*map(up, args), **{name: up(y) for name, y in options.items()})
        return out.to(x.dtype) if x.dtype in half and out.is_floating_point() else out
    return raised

# ==== GROUPS OF TOKENS: many mechanisms are exact attention inside small groups ===================
def attend_in_groups(q, k, v, grid, groups, attention=None):
    """Attention inside groups of patches, all of the same size, each within one frame.

    `groups` is the right side of an einops pattern whose left side is "B h (T H W) d": "(B T H)
    h W d" makes every row a group. `attention` is the function that attends, `attend` if left out.
    """
    C = q.shape[2] - math.prod(grid)
    q, k, v = (into_groups(x, grid, groups) for x in (q, k, v))
    out = (attention or attend)(q, k, v)
    return out_of_groups(out, grid, groups, C)

def into_groups(x, grid, groups):
    """Tokens (B, h, C + T*S, d) -> groups, the class token in front of the patches.

    With C = 1 it is copied into every group, with C = T into every group of its frame.
    """
    T, H, W = grid
    B, h, N, d = x.shape
    C = N - T * H * W
    patches = rearrange(x[:, :, C:], f"B h (T H W) d -> {groups}", T=T, H=H, W=W)
    if C == 0:
        return patches
    n = H * W // patches.shape[2]  # groups in a frame
    class_token = repeat(x[:, :, :C].expand(B, h, T, d), "B h T d -> (B T n) h 1 d", n=n)
    return torch.cat([class_token, patches], dim=2)

def out_of_groups(x, grid, groups, C):
    """The reverse of into_groups; the copies of a class token are averaged."""
    T, H, W = grid
    patches = rearrange(x[:, :, min(C, 1) :], f"{groups} -> B h (T H W) d", T=T, H=H, W=W)
    if C == 0:
        return patches
    n = H * W // (x.shape[2] - 1)  # groups in a frame
    class_token = reduce(x[:, :, :1], "(B T n) h 1 d -> B h T d", "mean", T=T, n=n)
    class_token = class_token if C == T else class_token.mean(dim=2, keepdim=True)
    return torch.cat([class_token, patches], dim=2)  # (B, h, C + T*H*W, d)

def attend_in_boxes(q, k, v, grid, boxes):
    """Attention inside boxes that tile the clip; a box is three slices: frames, rows, columns.
    The class tokens join every box, and their outputs are averaged."""
    C = q.shape[2] - math.prod(grid)
    index = torch.arange(q.shape[2], device=q.device)  # (C + T*S,)
    token_at = index[C:].view(grid)  # (T, H, W)
    boxes = [token_at[tuple(box)].flatten() for box in boxes]  # from slices to token numbers
    boxes = [box for box in boxes if len(box) > 0]  # an axis of length 1 has no odd positions
    tokens = [torch.cat([index[:C], box]) for box in boxes]
    sizes = [len(box) for box in tokens]
    parts = [x.index_select(2, torch.cat(tokens)).split(sizes, dim=2) for x in (q, k, v)]
    out = [attend(*box) for box in zip(*parts)]
    class_token = torch.stack([x[:, :, :C] for x in out]).mean(dim=0)  # (B, h, C, d)
    patches = torch.cat([x[:, :, C:] for x in out], dim=2)  # (B, h, T*S, d), box after box
    patches = patches.index_select(2, torch.cat(boxes).argsort())  # in the order of the grid
    return torch.cat([class_token, patches], dim=2)

def cut(n, size, displaced=0):
    """Slices of an axis of n positions, cut every `size` from `displaced` on; one if n <= size."""
    if n <= size:
        return [slice(0, n)]
    edges = sorted({0, *range(displaced % size, n, size), n})
    return [slice(start, stop) for start, stop in zip(edges, edges[1:])]

# ==== PROJECTIONS: what every attention module shares =============================================
def whole(number, name, least=1):
    """An int from an int, a numpy integer or a float without a fraction."""
    fits = isinstance(number, (int, float, np.number)) and number % 1 == 0 and number >= least
    require(fits, "{}={!r} must be a whole number, {} or more", name, number, least)
    return int(number)

class Attention(nn.Module):
    """Project to q, k and v, let the mechanism attend, project back.

    module(x, (T, H, W)) with x (B, C + T*S, D) -> the same shape. A subclass names its `mechanism`:
    the pure function, whose options the module takes, or a method where it needs layers of its own.
    zero_init   what starts at zero, so that the residual passes x through unchanged at first: None,
                "proj" (the output projection, ViViT) or "extra" (one more D x D layer, TimeSformer)

    Cost        4*N*D**2        beside the mechanism's own; 5*N*D**2 with an extra layer
    Differs     TimeSformer's paper counts the parameters of the extra layer but does not describe
                it. Its code has stochastic depth before that layer, this file after it.
    """
    mechanism, skips_class_token = None, False
    known = {}  # every subclass by its name

    def __init_subclass__(cls):
        Attention.known[cls.__name__] = cls

    def __init__(self, dim, heads, dropout=0.0, zero_init=None, qkv_bias=True, **options):
        super().__init__()
        dim, self.heads = whole(dim, "dim"), whole(heads, "heads")
        fits = dim % self.heads == 0 and zero_init in (None, "proj", "extra")
        require(fits, "dim={} over heads={}; zero_init={}: proj, extra", dim, heads, zero_init)
        self.expects = {"D": dim}
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.extra = nn.Linear(dim, dim) if zero_init == "extra" else None
        self.dropout, self.zero_init = nn.Dropout(dropout), zero_init
        self.start_at_zero()
        is_whole = lambda x: isinstance(x, (int, float, np.number)) and x % 1 == 0  # 2.0, not 0.5
        self.options = {o: whole(x, o, least=0) if is_whole(x) else x for o, x in options.items()}
        if options:  # try them on 2 x 2 x 2 patches, so that a bad value is found here
            x = torch.empty(1, self.heads, 8, dim // self.heads, device="meta")
            known = list(inspect.signature(self.mechanism).parameters)[4:]  # after the grid
            try:
                self.mechanism(x, x, x, (2, 2, 2), **self.options)
            except Exception as error:
                raise ValueError(f"options {options}, known {known}: {error}"[:2000]) from None

    def start_at_zero(self):
        if self.zero_init is not None:
            layer = self.proj if self.zero_init == "proj" else self.extra
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @shapes("x (B, C + T*S, D)")
    def forward(self, x, grid):
        check_input(self, x)
        C = x.shape[1] - math.prod(grid) if self.skips_class_token else 0
        q, k, v = self.project(x[:, C:])
        out = self.merge(self.mechanism(q, k, v, grid, **self.options))
        # A skipped class token gets zeros, which the bias of the output projection must not change.
        return F.pad(out, (0, 0, C, 0)) if C > 0 else out

    def project(self, x):
        """x (B, N, D) -> q, k and v (B, h, N, d)"""
        qkv = rearrange(self.qkv(x), "B N (three h d) -> three B h N d", three=3, h=self.heads)
        return qkv.unbind(dim=0)

    def merge(self, x):
        """x (B, h, N, d) -> (B, N, D)"""
        x = self.dropout(self.proj(rearrange(x, "B h N d -> B N (h d)")))
        return x if self.extra is None else self.extra(x)

# ==== SPACE: every patch attends to its own frame =================================================
@shapes("q, k, v (B, h, C + T*S, d)")
def space_attention(q, k, v, grid, attention=None):
    """Attention inside each frame. Frames exchange nothing, so their order cannot matter.

        t=0     t=1     t=2     t=3
        ......  ######  ......  ......
        ......  ##Q###  ......  ......
        ......  ######  ......  ......
        ......  ######  ......  ......

    Class token One per clip is copied into all frames, the copies averaged; one per frame stays.
    Cost        2*T*(S + c)**2*D
    Source      https://arxiv.org/abs/2102.05095 eq. 6, TimeSformer (S); vit.py:137
    Differs     The paper leaves open what the class token attends to; this follows its code.
    Copy with   attend, attend_in_groups, into_groups, out_of_groups
    """
    return attend_in_groups(q, k, v, grid, "(B T) h (H W) d", attention)

class SpaceAttention(Attention):
    mechanism = staticmethod(space_attention)

# ==== JOINT SPACE-TIME: every patch attends to the whole clip =====================================
@shapes("q, k, v (B, h, C + T*S, d)")
def joint_attention(q, k, v, grid):
    """Attention over all tokens at once: the most that a patch can attend to, and the highest cost.

        t=0     t=1     t=2     t=3
        ######  ######  ######  ######
        ######  ##Q###  ######  ######
        ######  ######  ######  ######
        ######  ######  ######  ######

    Cost        2*(C + T*S)**2*D
    Source      https://arxiv.org/abs/2102.05095 eq. 5, TimeSformer (ST); vit.py:57
    Copy with   attend
    """
    return attend(q, k, v)

class JointAttention(Attention):
    mechanism = staticmethod(joint_attention)

# ==== DIVIDED: time attention first, then space attention =========================================
@shapes("q, k, v (B, h, C + T*S, d)")
def time_attention(q, k, v, grid, attention=None):
    """Attention along time: a patch attends to the same position in every frame.

    Divided attention, ATTENTION["divided"], is this step and then space attention, with weights of
    its own: two cheap steps, after which every patch has information from the whole clip.

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ..#...  ..Q...  ..#...  ..#...
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token Takes no part: it gets zeros, so that the residual leaves it as it was. The bias of
                an output projection must skip it too, see skips_class_token.
    Cost        2*S*T**2*D
    Source      https://arxiv.org/abs/2102.05095 section 3, eq. 11 (13 in the HTML); vit.py:126
    Differs     The paper has the class token among the keys; its released code, and this, do not.
    Copy with   attend
    """
    T, H, W = grid
    C = q.shape[2] - T * H * W
    groups = "B h (T H W) d -> (B H W) h T d"  # one group for every position in the frame
    q, k, v = (rearrange(x[:, :, C:], groups, T=T, H=H, W=W) for x in (q, k, v))
    out = (attention or attend)(q, k, v)
    out = rearrange(out, "(B H W) h T d -> B h (T H W) d", H=H, W=W)
    return F.pad(out, (0, 0, C, 0)) if C > 0 else out  # (B, h, C + T*H*W, d)

class TimeAttention(Attention):
    skips_class_token = True
    mechanism = staticmethod(time_attention)

# ==== SPARSE LOCAL-GLOBAL: a quarter of every frame, then an eighth of the clip ===================
@shapes("q, k, v (B, h, C + T*S, d)")
def local_attention(q, k, v, grid):
    """Attention inside one of four windows: half of the rows, half of the columns, all frames.

        t=0     t=1     t=2     t=3
        ###...  ###...  ###...  ###...
        ###...  ##Q...  ###...  ###...
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token Joins all four windows and its outputs are averaged.
    Cost        8*(C + T*S/4)**2*D        with H and W even
    Source      https://arxiv.org/abs/2102.05095 section 3, TimeSformer (L+G)
    Differs     No code was released. The paper gives each query T x H/2 x W/2 neighbours; here four
                windows tile the frame, and the global step after it connects them.
    Copy with   attend, attend_in_boxes, cut
    """
    T, H, W = grid
    boxes = itertools.product([slice(0, T)], cut(H, (H + 1) // 2), cut(W, (W + 1) // 2))
    return attend_in_boxes(q, k, v, grid, boxes)

@shapes("q, k, v (B, h, C + T*S, d)")
def global_attention(q, k, v, grid):
    """Attention over every other frame, row and column: an eighth of the clip, spread over it.

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  #.Q.#.  ......  #.#.#.
        ......  ......  ......  ......
        ......  #.#.#.  ......  #.#.#.

    Class token Joins all eight lattices and its outputs are averaged.
    Cost        16*(C + T*S/8)**2*D        with T, H and W even
    Source      https://arxiv.org/abs/2102.05095 section 3, TimeSformer (L+G)
    Differs     No code was released. The paper asks for stride 2 along all axes and leaves open
                where a lattice starts. It starts at the query, so that a query attends to itself.
    Copy with   attend, attend_in_boxes
    """
    even_and_odd = slice(0, None, 2), slice(1, None, 2)
    boxes = itertools.product(even_and_odd, repeat=3)
    return attend_in_boxes(q, k, v, grid, boxes)

class LocalAttention(Attention):
    mechanism = staticmethod(local_attention)

class GlobalAttention(Attention):
    mechanism = staticmethod(global_attention)

# ==== AXIAL: time, then the row, then the column ==================================================
@shapes("q, k, v (B, h, C + T*S, d)")
def width_attention(q, k, v, grid):
    """Attention along the row of a patch, in its own frame.

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  ##Q###  ......  ......
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token As in space attention, with a copy in every row.
    Cost        2*T*H*(W + c)**2*D
    Source      https://arxiv.org/abs/2102.05095 section 3, TimeSformer (T+W+H)
    Differs     No code was released, and the paper does not say what the class token attends to.
    Copy with   attend, attend_in_groups, into_groups, out_of_groups
    """
    return attend_in_groups(q, k, v, grid, "(B T H) h W d")

@shapes("q, k, v (B, h, C + T*S, d)")
def height_attention(q, k, v, grid):
    """Attention along the column of a patch, in its own frame; the three steps span the clip.

        t=0     t=1     t=2     t=3
        ......  ..#...  ......  ......
        ......  ..Q...  ......  ......
        ......  ..#...  ......  ......
        ......  ..#...  ......  ......

    Class token As in space attention, with a copy in every column.
    Cost        2*T*W*(H + c)**2*D
    Source      https://arxiv.org/abs/2102.05095 section 3, TimeSformer (T+W+H)
    Copy with   attend, attend_in_groups, into_groups, out_of_groups
    """
    return attend_in_groups(q, k, v, grid, "(B T W) h H d")

class WidthAttention(Attention):
    mechanism = staticmethod(width_attention)

class HeightAttention(Attention):
    mechanism = staticmethod(height_attention)

# ==== FACTORISED DOT-PRODUCT: half of the heads in space, half in time ============================
@shapes("q, k, v (B, h, C + T*S, d)")
def factorised_heads_attention(q, k, v, grid):
    """Space and time attention side by side: each takes half of the heads of one layer.

        t=0     t=1     t=2     t=3
        ......  ######  ......  ......
        ..#...  ##Q###  ..#...  ..#...
        ......  ######  ......  ......
        ......  ######  ......  ......

    Class token As in space attention in the first half of the heads, zeros in the second.
    Cost        T*(S + c)**2*D + S*T**2*D
    Source      https://arxiv.org/abs/2103.15691 section 3.3, ViViT, model 4
    Copy with   attend, attend_in_groups, into_groups, out_of_groups, space_attention,
                time_attention
    """
    h = q.shape[1]
    require(h % 2 == 0, "h={} heads do not divide into halves; use an even number", h)
    in_space = space_attention(*(x[:, : h // 2] for x in (q, k, v)), grid)
    in_time = time_attention(*(x[:, h // 2 :] for x in (q, k, v)), grid)
    return torch.cat([in_space, in_time], dim=1)  # (B, h, N, d)

class FactorisedHeadsAttention(Attention):
    mechanism = staticmethod(factorised_heads_attention)

# ==== TEMPORAL WINDOW: the frames around, and all patches of them =================================
@shapes("q, k, v (B, h, C + T*S, d)")
def window_attention(q, k, v, grid, window=1):
    """Every patch attends to all patches of the frames t - w .. t + w, w = window.

    The keys and values of every frame are projected once, not once for each of the 2w + 1 windows
    that they are in: the window of frame t is a slice of the stack of frames, shifted by t. At the
    ends of the clip it has fewer frames, so that no query attends to padding. Window 0 is space
    attention, a window over the whole clip joint attention; n layers reach n*w frames.

        t=0     t=1     t=2     t=3
        ######  ######  ######  ......
        ######  ##Q###  ######  ......
        ######  ######  ######  ......
        ######  ######  ######  ......

    Class token One per frame belongs to its frame; a clip's only one is copied into every frame.
    Cost        2*sum(min(T, t + w + 1) - max(0, t - w) for t in range(T))*(S + c)**2*D
    Source      https://arxiv.org/abs/2106.05968 eq. 7, X-ViT
    Copy with   attend, into_groups, out_of_groups
    """
    require(hasattr(window, "__index__") and window >= 0, "window={!r}: 0, 1, ... frames", window)
    T, C = grid[0], q.shape[2] - math.prod(grid)
    frames = [into_groups(x, grid, "(B T) h (H W) d") for x in (q, k, v)]
    q, k, v = (rearrange(x, "(B T) h L d -> B h T L d", T=T) for x in frames)
    out = []
    for t in range(T):
        near = slice(max(0, t - window), t + window + 1)
        # y_st = sum_{t' = t-w .. t+w} sum_s' softmax_{s't'}(q_st . k_s't' / sqrt(d)) v_s't'
        out.append(attend(q[:, :, t], k[:, :, near].flatten(2, 3), v[:, :, near].flatten(2, 3)))
    out = rearrange(torch.stack(out), "T B h L d -> (B T) h L d")
    return out_of_groups(out, grid, "(B T) h (H W) d", C)

class WindowAttention(Attention):
    mechanism = staticmethod(window_attention)

# ==== SHIFTED WINDOWS: boxes of frames, rows and columns, displaced in every other layer ==========
@shapes("q, k, v (B, h, C + T*S, d)")
def shifted_window_attention(q, k, v, grid, size=(8, 7, 7), displaced=(0, 0, 0)):
    """Attention inside windows of (frames, rows, columns), whose borders are moved by `displaced`.

    Steps alternate between displaced=(0, 0, 0) and half a window, so that patches separated in one
    meet in the next. With size=(2, 2, 3) and displaced=(1, 1, 1):

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  .#Q#..  .###..  ......
        ......  .###..  .###..  ......
        ......  ......  ......  ......

    Class token Joins every window and its outputs are averaged.
    Cost        2*T*S*(8*7*7)*D        with windows that divide the grid, no class token
    Source      https://arxiv.org/abs/2106.13230 section 3.3, Video Swin
    Differs     No relative position bias, no hierarchy; an MLP after both steps, not after each.
    Copy with   attend, attend_in_boxes, cut
    """
    require(min(size) >= 1, "size={} must be 1 or more in every axis", size)
    cuts = [cut(*axis) for axis in zip(grid, size, displaced, strict=True)]
    return attend_in_boxes(q, k, v, grid, itertools.product(*cuts))

class ShiftedWindowAttention(Attention):
    """Windows of `size`, see as_sizes, displaced by half of it if `displaced`."""
    def __init__(self, dim, heads, size=(8, 7, 7), displaced=False, **shared):
        super().__init__(dim, heads, **shared)
        self.size = as_sizes(size)
        self.displaced = [n // 2 if displaced else 0 for n in self.size]

    def mechanism(self, q, k, v, grid):
        return shifted_window_attention(q, k, v, grid, self.size, self.displaced)

# ==== POOLED: fewer keys, the means of neighbouring patches =======================================
def pool(x, grid, stride):
    """Means over blocks of stride patches, the last smaller: (B, h, T*S, d) -> fewer tokens."""
    x = x.unflatten(2, grid)  # (B, h, T, H, W, d)
    for axis, step in zip((2, 3, 4), stride):
        x = torch.stack([block.mean(dim=axis) for block in x.split(step, dim=axis)], dim=axis)
    return x.flatten(2, 4)

def unpool(x, grid, stride):
    """The reverse: every patch of a block gets the block's token, -> (B, h, T*S, d)."""
    x = x.unflatten(2, [math.ceil(n / step) for n, step in zip(grid, stride)])
    for axis, n, step in zip((2, 3, 4), grid, stride):
        x = x.repeat_interleave(step, dim=axis).narrow(axis, 0, n)
    return x.flatten(2, 4)

@shapes("q, k, v (B, h, C + T*S, d)")
def pooled_attention(q, k, v, grid, stride=(1, 2, 2), pool_queries=False):
    """Every patch attends to the whole clip at a lower resolution: to means over blocks of patches.

    With pool_queries the queries are means too, and every patch of a block gets the block's result;
    the residual is not pooled, so the patches of a block still differ.

    Class token A token like any other, never pooled.
    Cost        2*(C + T*S)*(C + T*S/4)*D        with the default stride, H and W even
    Cost, pool  2*(C + T*S/4)**2*D        with pool_queries
    Source      https://arxiv.org/abs/2104.11227 section 3.1, MViT; X-ViT compares with such pooling
    Differs     MViT pools by a learned convolution and a norm, and its residual is pooled as well.
    Copy with   attend, pool, unpool
    """
    require(len(stride) == 3 and min(stride) >= 1, "stride={}: three numbers, 1 or more", stride)
    C = q.shape[2] - math.prod(grid)
    shrink = lambda x: torch.cat([x[:, :, :C], pool(x[:, :, C:], grid, stride)], dim=2)
    if not pool_queries:
        return attend(q, shrink(k), shrink(v))
    out = attend(shrink(q), shrink(k), shrink(v))
    return torch.cat([out[:, :, :C], unpool(out[:, :, C:], grid, stride)], dim=2)  # (B, h, N, d)

class PooledAttention(Attention):
    mechanism = staticmethod(pooled_attention)

# ==== SUMMARY TOKENS: space attention with the mean of every frame among the keys =================
def frame_means(x, T, C):
    """The patch means of all T frames, given to each: (B*T, h, c + S, d) -> (B*T, h, T, d)."""
    means = x[:, :, min(C, 1) :].mean(dim=2)  # (B*T, h, d)
    return repeat(means, "(B means) h d -> (B T) h means d", means=T, T=T)  # all T to each frame

@shapes("q, k, v (B, h, C + T*S, d)")
def summary_attention(q, k, v, grid):
    """Space attention; the means of all frames join the keys and values of every frame.

    So a patch attends to its own frame patch by patch, to the others through their means.

    Class token As in space attention.
    Cost        2*T*(S + c)*(S + c + T)*D
    Source      https://arxiv.org/abs/2106.05968 section 3.3, X-ViT
    Differs     No code was released. The paper's summary may be any function of a frame.
    Copy with   attend, into_groups, out_of_groups, frame_means
    """
    T, C = grid[0], q.shape[2] - math.prod(grid)
    q, k, v = (into_groups(x, grid, "(B T) h (H W) d") for x in (q, k, v))
    k, v = (torch.cat([x, frame_means(x, T, C)], dim=2) for x in (k, v))
    return out_of_groups(attend(q, k, v), grid, "(B T) h (H W) d", C)

class SummaryAttention(Attention):
    mechanism = staticmethod(summary_attention)

# ==== SPACE-TIME MIXING: keys put together from channels of several frames ========================
def shift(x, offset, axis):
    """Move x along an axis: position i gets what was at i + offset, and zeros beyond the ends."""
    n = x.shape[axis]
    offset = max(-n, min(n, offset))
    zeros = torch.zeros_like(x.narrow(axis, 0, abs(offset)))
    if offset >= 0:
        return torch.cat([x.narrow(axis, offset, n - offset), zeros], dim=axis)
    return torch.cat([zeros, x.narrow(axis, 0, n + offset)], dim=axis)

def mix_frames(x, T, window=1, moved=0.5):
    """Replace channels of every frame by the same channels of the frames around it.

        k~_st = [some channels of k_{s,t+1}, some of k_{s,t-1}, ..., the rest of k_st]

    x (B*T, h, L, d), L tokens a frame -> the same shape. The share `moved` of the d channels comes
    in equal parts from the 2*window other frames.
    """
    frames = rearrange(x, "(B T) h L d -> B T h L d", T=T)
    d = x.shape[-1]
    share = int(moved * d / max(1, 2 * window) + 1e-6)  # channels from each; .58 * 50 is 28.99...
    fits = hasattr(window, "__index__") and window >= 0 and 0 <= moved <= 1
    fits = fits and (share > 0 or moved * window == 0)
    require(fits, "window={}, moved={} (0..1) of d={} leaves no channels to move", window, moved, d)
    offsets = [sign * i for i in range(1, window + 1) for sign in (1, -1)]  # 1, -1, 2, -2, ...
    mixed = [shift(frames[..., i * share : (i + 1) * share], offset, axis=1)
             for i, offset in enumerate(offsets)]
    rest = frames[..., len(offsets) * share :]
    return torch.cat([*mixed, rest], dim=-1).flatten(0, 1)  # (B*T, h, L, d)

@shapes("q, k, v (B, h, C + T*S, d)")
def mixing_attention(q, k, v, grid, window=1, moved=0.5, summary=False):
    """Space attention, but keys and values hold channels of the 2*window frames around.

    It stands in for attention in a temporal window: instead of 2w + 1 times as many keys, each key
    takes some channels from every frame of the window, at no cost. The two agree on a clip that
    stands still, away from its ends; on random tokens they differ by 138% of the norm (a test
    measures both). n layers reach n*w frames. # marks patches with channels in the keys:

        t=0     t=1     t=2     t=3
        ######  ######  ######  ......
        ######  ##Q###  ######  ......
        ######  ######  ######  ......
        ######  ######  ######  ......

    Class token One per frame, mixed like the patches; a clip's only one is copied into every frame.
    Cost        2*T*(S + c)**2*D        as space attention, if without summary
    Source      https://arxiv.org/abs/2106.05968 eq. 9 and 10; temporal_shift.py:44
    Differs     The released models mix the channels of all heads joined, so that whole heads move.
                With `summary` the means of all frames join the keys, see summary_attention.
    Copy with   attend, into_groups, out_of_groups, frame_means, shift, mix_frames
    """
    T, C = grid[0], q.shape[2] - math.prod(grid)
    q, k, v = (into_groups(x, grid, "(B T) h (H W) d") for x in (q, k, v))
    k_mixed, v_mixed = (mix_frames(x, T, window, moved) for x in (k, v))
    if summary:
        k_mixed = torch.cat([k_mixed, frame_means(k, T, C)], dim=2)
        v_mixed = torch.cat([v_mixed, frame_means(v, T, C)], dim=2)
    # y_st = sum_s' softmax_s'(q_st . k~_s't / sqrt(d)) v~_s't
    return out_of_groups(attend(q, k_mixed, v_mixed), grid, "(B T) h (H W) d", C)

class MixingAttention(Attention):
    mechanism = staticmethod(mixing_attention)

# ==== TRAJECTORY: attend to every frame separately, then along the path that this gives ===========
# Objects move, so the same position in another frame is another object. Each patch first attends to
# every frame separately; the T tokens found are its trajectory. Then it attends to these T tokens.
@shapes("q (B, h, I, d), k, v (B, h, T*S, d)")
def attend_per_frame(q, k, v, T, attention=None):
    """First stage: what each query finds in each frame, its trajectory of T tokens.

        y~_{st,t'} = sum_s' softmax_s'(q_st . k_{s't'} / sqrt(d)) v_{s't'}

    q (B, h, I, d), k and v (B, h, T*S, d) -> (B, h, I, T, d). `attention` attends inside a frame.
    """
    k, v = (rearrange(x, "B h (T S) d -> (B T) h S d", T=T) for x in (k, v))
    q = repeat(q, "B h I d -> (B T) h I d", T=T)
    out = (attention or attend)(q, k, v)
    return rearrange(out, "(B T) h I d -> B h I T d", T=T)

@shapes("y (B, h, T*S, T, d)")
def attend_along_trajectories(y, proj_q, proj_kv, return_weights=False):
    """Second stage: every patch attends to the T tokens of its trajectory.

    y (B, h, T*S, T, d) -> (B, h, T*S, d); with return_weights also the weights (B, h, T*S, 1, T).
    proj_q is W_q, a linear layer D -> D; proj_kv is W_k stacked on W_v; both act on joined heads.
    """
    B, h, N, T, d = y.shape
    # q~_st = W_q y~_{st,t}
    own = torch.einsum("BhTSTd->BhTSd", y.unflatten(2, (T, N // T)))  # (B, h, T, S, d), t' = t
    q = proj_q(rearrange(own, "B h T S d -> B (T S) (h d)"))  # (B, T*S, D)
    # k~_{st,t'} = W_k y~_{st,t'}  and  v~_{st,t'} = W_v y~_{st,t'}
    k, v = proj_kv(rearrange(y, "B h N T d -> B N T (h d)")).chunk(2, dim=-1)  # (B, T*S, T, D)
    q = rearrange(q, "B N (h d) -> B h N 1 d", h=h)
    k, v = (rearrange(x, "B N T (h d) -> B h N T d", h=h) for x in (k, v))
    # y_st = sum_t' softmax_t'(q~_st . k~_{st,t'} / sqrt(d)) v~_{st,t'}
    out, weights = attend(q, k, v, return_weights=True)  # (B, h, T*S, 1, d), only T keys
    return (out.squeeze(3), weights) if return_weights else out.squeeze(3)

@shapes("y (B, h, T*S, T, d)")
def attend_along_trajectories_fast(y, proj_q, proj_kv):
    """The same, without projecting all T*S*T tokens; proj_kv must be a plain nn.Linear.

    q~ . (W_k y~) = (W_k^T q~) . y~, so the query is projected and not T keys; W_k's bias adds the
    same to all T scores and cancels. sum_t a_t (W_v y~_t + b_v) = W_v (sum_t a_t y~_t) + b_v, so
    one mean is projected and not T values. Half of the patches at a time saves memory.
    """
    B, h, N, T, d = y.shape
    W_k, W_v = rearrange(proj_kv.weight, "(two h d) D -> two h d D", two=2, h=h)
    own = torch.einsum("BhTSTd->BhTSd", y.unflatten(2, (T, N // T)))  # (B, h, T, S, d), t' = t
    q = proj_q(rearrange(own, "B h T S d -> B (T S) (h d)")).unflatten(2, (h, d))  # (B, T*S, h, d)
    y = rearrange(y, "B h N T d -> B N T (h d)")  # (B, T*S, T, D)
    out = []
    for q, path in zip(q.chunk(2, dim=1), y.chunk(2, dim=1)):  # I = T*S/2 patches
        q = torch.einsum("BIhd,hdD->BIhD", q, W_k) / math.sqrt(d)
        weights = torch.einsum("BIhD,BITD->BIhT", q, path).softmax(dim=-1)
        mean = torch.einsum("BIhT,BITD->BIhD", weights, path)
        out.append(torch.einsum("BIhD,hdD->BhId", mean, W_v))
    out = torch.cat(out, dim=2)  # (B, h, N, d)
    return out if proj_kv.bias is None else out + proj_kv.bias[h * d :].view(h, 1, d)

@shapes("q, k, v (B, h, C + T*S, d)")
def trajectory_attention(q, k, v, grid, proj_q, proj_kv, first_stage=None, second_stage=None):
    """Find the trajectory of every patch, then attend along it.

    `first_stage` is attend_per_frame, or an approximation such as orthoformer_per_frame, and
    `second_stage`, with the layers proj_q and proj_kv, attend_along_trajectories.

    Class token Attends to all tokens and skips the second stage. No patch attends to it.
    Cost        2*(T*S)**2*D + 2*C*(C + T*S)*D + T*S*D**2 + 2*T*S*T*D**2 + 2*T*S*T*D
    Cost, fast  2*(T*S)**2*D + 2*C*(C + T*S)*D + 3*T*S*D**2 + 2*T*S*h*T*D
    Source      https://arxiv.org/abs/2106.05392 eq. 4 to 6; vit_helper.py:146
    Differs     The published weights were trained with a slip: the value of the second stage is y~,
                not W_v y~. Here that is W_v = identity, b_v = 0.
    Copy with   attend, attend_per_frame, attend_along_trajectories
    """
    C = q.shape[2] - math.prod(grid)
    class_token = attend(q[:, :, :C], k, v)  # (B, h, C, d)
    y = (first_stage or attend_per_frame)(q[:, :, C:], k[:, :, C:], v[:, :, C:], grid[0])
    out = (second_stage or attend_along_trajectories)(y, proj_q, proj_kv)
    return torch.cat([class_token, out], dim=2)  # (B, h, N, d)

class TrajectoryAttention(Attention):
    def __init__(self, dim, heads, **shared):
        super().__init__(dim, heads, **shared)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_kv = nn.Linear(dim, 2 * dim)

    def first_stage(self, q, k, v, T):
        return attend_per_frame(q, k, v, T)

    def second_stage(self, y, proj_q, proj_kv):
        # The fast form reads proj_kv.weight; an adapter or a quantised layer has to be called.
        hooked = any(hooks for name, hooks in vars(proj_kv).items() if name.endswith("_hooks"))
        if type(proj_kv) is not nn.Linear or hooked or "forward" in vars(proj_kv):
            return attend_along_trajectories(y, proj_q, proj_kv)
        return attend_along_trajectories_fast(y, proj_q, proj_kv)

    def mechanism(self, q, k, v, grid):
        stages = self.first_stage, self.second_stage
        return trajectory_attention(q, k, v, grid, self.proj_q, self.proj_kv, *stages)

# ==== ORTHOFORMER: a few tokens stand for all, those that differ most =============================
@in_float32
def most_orthogonal_subset(x, count, start=0, criterion="cosine"):
    """Pick `count` vectors greedily, each as orthogonal as can be to those before it (algorithm 1).

    x (..., n, d) -> their indices (..., count) in the order of picking, `start` first. Each vector
    keeps one score, its similarity to the picks so far, and the lowest is picked next.

    criterion   "cosine": a score is the largest |cosine| (the released code); "inner product": it
                is the sum of |x_i . p_j| for vectors as they are (the authors' slides)
    Cost        n**2*d        for every leading index
    Differs     The paper starts from a random one, this from `start`. Scores that agree to five
                decimals, of numbers up to 1, are a tie, which the first vector wins.
    """
    fits = 1 <= count <= x.shape[-2] > start >= 0 and criterion in ("cosine", "inner product")
    require(fits, "count={} of {}, start={}, criterion={}", count, x.shape, start, criterion)
    x = x.detach()
    over = (-1,) if criterion == "cosine" else (-2, -1)  # scale each or all alike: squares fit
    x = x / x.abs().amax(over, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    x = F.normalize(x, dim=-1) if criterion == "cosine" else x
    similarity = (x @ x.transpose(-1, -2)).abs()  # (..., n, n)
    pick = torch.full((*x.shape[:-2], 1, 1), start, dtype=torch.long, device=x.device)
    score, picked = torch.zeros_like(similarity[..., :1, :]), [pick]  # score (..., 1, n)
    for _ in range(count - 1):
        newest = similarity.gather(-2, pick.expand_as(score))  # (..., 1, n), to the newest pick
        score = torch.maximum(score, newest) if criterion == "cosine" else score + newest
        score = score.scatter(-1, pick, torch.inf)  # never the same twice
        pick = score.round(decimals=5).argmin(dim=-1, keepdim=True)
        picked.append(pick)
    return torch.cat(picked, dim=-1).squeeze(-2)  # (..., count)

def orthogonal_prototypes(q, k, count, oversample=3, criterion="cosine"):
    """The most orthogonal among oversample * count queries and keys, evenly spaced in [q, k].

    Differs     The paper draws these candidates at random, its code takes all queries and no keys.
    """
    n = min(oversample * count, q.shape[2] + k.shape[2])
    spaced = torch.linspace(0, q.shape[2] + k.shape[2] - 1, n, device=q.device).round().long()
    candidates = torch.cat([q, k], dim=2).index_select(2, spaced)
    picked = most_orthogonal_subset(candidates, count, criterion=criterion)  # (B, h, count)
    return candidates.gather(2, picked.unsqueeze(3).expand(-1, -1, -1, q.shape[3]))

def random_prototypes(q, k, count, generator=None):
    """Queries and keys drawn at random, different in every clip and head. Without a generator the
    whole batch is the seed: the same batch repeats itself."""
    tokens = torch.cat([q, k], dim=2)  # (B, h, 2*N, d)
    require(1 <= count <= tokens.shape[2], "count={} of {} tokens", count, tokens.shape[2])
    seed = hash(tokens.detach().double().sum().item())
    generator = generator or torch.Generator(q.device).manual_seed(seed)
    order = torch.rand(tokens.shape[:3], generator=generator, device=q.device).argsort(dim=2)
    return tokens.gather(2, order[:, :, :count, None].expand(-1, -1, -1, q.shape[3]))

def segment_means(x, count, T=1):
    """Means of `count` segments of consecutive tokens, the first ones shorter by one if need be.

    x (B, h, n, d) -> (B, h, count, d). With T the tokens are those of T frames, and a segment runs
    through time first, as in Motionformer's code.
    """
    n = x.shape[2]
    require(1 <= count <= n and n % T == 0, "count={} of {} tokens in T={} frames", count, n, T)
    x = rearrange(x, "B h (T S) d -> B h (S T) d", T=T)
    length = n // count
    shorter = (length + 1) * count - n  # segments of `length` tokens, the others have one more
    first, rest = x[:, :, : shorter * length], x[:, :, shorter * length :]
    means = [reduce(first, "B h (P s) d -> B h P d", "mean", s=length)]
    if shorter < count:
        means.append(reduce(rest, "B h (P s) d -> B h P d", "mean", s=length + 1))
    return torch.cat(means, dim=2)

def segment_prototypes(q, k, count):
    """Means of `count` segments of the queries, then the keys."""
    return segment_means(torch.cat([q, k], dim=2), count)

@shapes("q, k, v (B, h, C + T*S, d), prototypes (B, h, P, d)")
def orthoformer_attention(q, k, v, grid, prototypes):
    """Attention in two steps, from the queries to P prototypes and from these to the keys.

        Y = softmax(Q P^T / sqrt(d)) (softmax(P K^T / sqrt(d)) V)

    Two softmaxes average twice, so it is not exact even if every token is a prototype. It becomes
    exact when every key is a prototype and clearly closest to itself: for 48 orthogonal keys of
    norm 4, 8, 12 and 16 in 64 dimensions the relative error is 0.4, 0.01, 6e-7 and 6e-13.

    Cost        4*(C + T*S)*P*D        beside choosing the prototypes
    Source      https://arxiv.org/abs/2106.05392 eq. 10; orthoformer_helper.py:69
    Copy with   attend, in_float32, most_orthogonal_subset, orthogonal_prototypes
    """
    found = attend(prototypes, k, v)  # (B, h, P, d)
    return attend(q, prototypes, found)

@shapes("q (B, h, I, d), k, v (B, h, T*S, d), prototypes (B, h, P, d)")
def orthoformer_per_frame(q, k, v, T, prototypes):
    """The first stage of trajectory attention in two steps; all frames share the prototypes.

    -> (B, h, I, T, d); with I = T*S queries linear in S, but still quadratic in T
    """
    found = attend_per_frame(prototypes, k, v, T)  # (B, h, P, T, d)
    out = attend(q, prototypes, found.flatten(3))
    return out.unflatten(3, found.shape[3:])  # (B, h, I, T, d)

class OrthoformerAttention(Attention):
    """choose(q, k, count) gives the prototypes (B, h, count, d), orthogonal_prototypes if left out.
    A class, such as an nn.Module with weights of its own, is instantiated once per layer."""
    def __init__(self, dim, heads, prototypes=128, choose=None, **shared):
        super().__init__(dim, heads, **shared)
        self.count = whole(prototypes, "prototypes")
        self.choose = choose() if isinstance(choose, type) else choose

    def prototypes(self, q, k):
        """(B, h, P, d); as many as there are tokens when these are fewer."""
        return (self.choose or orthogonal_prototypes)(q, k, min(self.count, q.shape[2]))

    def mechanism(self, q, k, v, grid):
        return orthoformer_attention(q, k, v, grid, self.prototypes(q, k))

class OrthoformerTrajectoryAttention(TrajectoryAttention, OrthoformerAttention):  # its prototypes
    def first_stage(self, q, k, v, T):
        return orthoformer_per_frame(q, k, v, T, self.prototypes(q, k))

# ==== NYSTROM: two steps over segment means, with an inverse between ==============================
@in_float32
def iterative_inverse(A, iterations=6):
    """The pseudo-inverse of softmax matrices A (..., P, P), rows sum to 1, by products alone.

        Z <- Z (13 - A Z (15 - A Z (7 - A Z))) / 4,   from   Z = A^T / |A|_1
    """
    eye = torch.eye(A.shape[-1], device=A.device, dtype=A.dtype)  # the identity, left out above
    largest_column = A.sum(dim=-2, keepdim=True).amax(dim=-1, keepdim=True)  # |A|_1
    Z = A.transpose(-1, -2) / largest_column
    for _ in range(iterations):
        AZ = A @ Z
        Z = 0.25 * Z @ (13 * eye - AZ @ (15 * eye - AZ @ (7 * eye - AZ)))
    return Z

def landmark_inverse(q_means, k_means, iterations):
    """softmax(Q~ K~^T / sqrt(d))^+ of mean queries Q~ and keys K~: (B, h, P, d) -> (B, h, P, P)"""
    scores = q_means / math.sqrt(q_means.shape[-1]) @ k_means.transpose(-1, -2)
    return iterative_inverse(scores.softmax(dim=-1), iterations)

@shapes("q, k, v (B, h, C + T*S, d)")
def nystrom_attention(q, k, v, grid, landmarks=128, iterations=6):
    """The softmax matrix from P columns (mean keys), P rows (mean queries) and their crossing.

        Y = softmax(Q K~^T) softmax(Q~ K~^T)^+ (softmax(Q~ K^T) V),   all scores / sqrt(d)

    Q~ and K~ are means of `landmarks` segments of tokens, all of them if fewer. With every token a
    landmark it becomes exact as iterations grow, A A^+ A = A; 6 leave an error of a few per cent.

    Cost        4*(C + T*S)*P*D + 2*P**2*D + 24*h*P**3        with 6 iterations
    Source      https://arxiv.org/abs/2102.03902 eq. 13; Motionformer's nystrom_helper.py:35
    Differs     Nystromformer adds a convolution of v along the tokens, needs P to divide N, and its
                code divides by the largest |A|_1 of the batch, so that clips influence each other.
    Copy with   attend, in_float32, segment_means, iterative_inverse, landmark_inverse
    """
    P = min(landmarks, q.shape[2])
    q_means, k_means = segment_means(q, P), segment_means(k, P)  # (B, h, P, d)
    found = attend(q_means, k, v)
    return attend(q, k_means, landmark_inverse(q_means, k_means, iterations) @ found)

@shapes("q, k, v (B, h, T*S, d)")
def nystrom_per_frame(q, k, v, T, landmarks=128, iterations=6):
    """The first stage of trajectory attention over segment means, which all frames share.

    q, k, v (B, h, T*S, d) -> (B, h, T*S, T, d)
    """
    P = min(landmarks, q.shape[2])
    q_means, k_means = segment_means(q, P, T), segment_means(k, P, T)  # (B, h, P, d)
    found = attend_per_frame(q_means, k, v, T)  # (B, h, P, T, d)
    out = landmark_inverse(q_means, k_means, iterations) @ found.flatten(3)
    return attend(q, k_means, out).unflatten(3, found.shape[3:])  # (B, h, T*S, T, d)

class NystromAttention(Attention):
    mechanism = staticmethod(nystrom_attention)

class NystromTrajectoryAttention(TrajectoryAttention):
    def __init__(self, dim, heads, landmarks=128, iterations=6, **shared):
        super().__init__(dim, heads, **shared)
        self.sizes = whole(landmarks, "landmarks"), whole(iterations, "iterations", least=0)

    def first_stage(self, q, k, v, T):
        return nystrom_per_frame(q, k, v, T, *self.sizes)

# ==== LINEAR: weights that are products, so that K^T V is computed first ==========================
@shapes("q (..., I, M), k (..., J, M), v (..., J, e)")
@in_float32
def attend_linearly(q, k, v, eps=1e-6):
    """Attention with weights q_i . k_j instead of exp(q_i . k_j); q and k are never negative.

    q (..., I, M), k (..., J, M), v (..., J, e) -> (..., I, e). I x J weights only for few keys.

    Cost        min((I + J)*M*e, I*J*(M + e)) + I*M
    """
    # out_i = q_i (sum_j k_j^T v_j) / (q_i . sum_j k_j + eps)
    (I, M), (J, e) = q.shape[-2:], v.shape[-2:]
    total = torch.einsum("...im,...m->...i", q, k.sum(dim=-2)) + eps  # (..., I)
    if I * J * (M + e) < (I + J) * M * e:  # so few keys that the weights q_i . k_j are cheaper
        return q @ k.transpose(-1, -2) @ v / total[..., None]
    return q @ (k.transpose(-1, -2) @ v) / total[..., None]  # (..., I, e)

def relu_features(x):
    """phi(x) = ReLU(x) + 1/sqrt(d): never negative, and never all zero."""
    return F.relu(x) + x.shape[-1] ** -0.5

@shapes("q, k, v (B, h, C + T*S, d)")
def linear_attention(q, k, v, grid, gates=None, feature_map=None):
    """Joint attention in linear time.

        out = attend_linearly(q^, k^, v),   q^ = g_q * phi(q),   k^ = g_k * phi(k)

    `feature_map` is phi, relu_features if left out. `gates` is a function (phi(q), phi(k), v) ->
    (g_q, g_k), see feature fixation; without it both are 1.

    Cost        min(2*(C + T*S)*d*D, 2*(C + T*S)**2*D) + (C + T*S)*D        beside the gates
    Source      https://arxiv.org/abs/2210.08164, LVT; linear_block_v2.py:287
    Differs     All of LVT here follows its released code; the paper's section could not be read.
    Copy with   in_float32, attend_linearly, relu_features
    """
    phi = feature_map or relu_features
    q, k = phi(q), phi(k)
    if gates is not None:
        g_q, g_k = gates(q, k, v)
        q, k = g_q * q, g_k * k
    return attend_linearly(q, k, v)

# ==== FEATURE FIXATION: a gate that says which features of q and k count ==========================
def fixation_gate(layer, *read):
    """A gate in 0..1 for each feature, from a linear layer on the features that it reads, joined.

        g = sigmoid(W_g [phi(q); phi(k); v] + b_g)

    Each of `read` is (B, h, N, d), -> (B, h, N, d). The layer is shared by all heads.
    Cost        3*N*d*D        reading q, k and v
    Source      https://arxiv.org/abs/2210.08164; linear_block_v2.py:436
    """
    return torch.sigmoid(layer(torch.cat(read, dim=-1)))

# ==== NEIGHBOURHOOD ASSOCIATION: shift channels from neighbouring patches =========================
NEXT_AND_PREVIOUS = [(1, 0, 0), (-1, 0, 0)]  # (frames, rows, columns), for attention in space
EIGHT_AROUND = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1),  # for attention along time
                (0, -1, -1), (0, 1, 1), (0, -1, 1), (0, 1, -1)]

@shapes("x (B, h, T*S, d)")
def shift_from_neighbours(x, grid, steps, share):
    """Replace channels of every patch by the same channels of its neighbours.

    x (B, h, T*S, d) -> the same shape; channels are those of all heads joined. The first `share`
    come from the patch at (t, y, x) + steps[0], the next from + steps[1], and so on; the rest stay.
    Beyond the border are zeros; in a diagonal step a patch keeps its own channels there.
    Source      https://arxiv.org/abs/2210.08164; temporal_shift.py:97
    Copy with   shift
    """
    T, H, W = grid
    require(len(steps) * share <= x.shape[1] * x.shape[3], "{} x {} channels", len(steps), share)
    clip = rearrange(x, "B h (T H W) d -> B T H W (h d)", T=T, H=H, W=W)
    parts = []
    for i, step in enumerate(steps):
        own = clip[..., i * share : (i + 1) * share]  # (B, T, H, W, share)
        moved, inside = own, torch.ones_like(own[..., :1])  # inside: where the neighbour exists
        for axis, offset in enumerate(step, start=1):
            if offset != 0:
                moved, inside = shift(moved, offset, axis), shift(inside, offset, axis)
        diagonal = step.count(0) < 2  # two axes move
        parts.append(torch.where(inside > 0, moved, own) if diagonal else moved)
    clip = torch.cat([*parts, clip[..., len(steps) * share :]], dim=4)
    return rearrange(clip, "B T H W (h d) -> B h (T H W) d", h=x.shape[1])

# ==== LVT: linear attention along an axis, with fixation and neighbours ===========================
class LinearAttention(Attention):
    """Linear attention along an axis, with LVT's additions.

    axis        "joint" (all tokens), "space" (inside each frame) or "time" (same position)
    fixation    what the gates read: None (no gates), "own" (q for q, k for k: LVT's first release),
                "qk" or "qkv" (LVT); shared_gate=True has one layer for q and k, False one for each
    feature_map phi, relu_features if left out
    neighbours  shift channels of k and v from other frames (space) or around in the frame (time),
                the share `moved` of all channels in equal parts
    """
    def __init__(self, dim, heads, axis="joint", fixation=None, shared_gate=True, feature_map=None,
                 neighbours=False, moved=0.5, **shared):
        super().__init__(dim, heads, **shared)
        reads = {None: 0, "own": 1, "qk": 2, "qkv": 3}
        fits = axis in ("time", "space") or axis == "joint" and not neighbours
        message = "axis={}: time, space, joint (no neighbours); fixation={}: own, qk, qkv; moved={}"
        require(fits and fixation in reads and 0 <= moved <= 1, message, axis, fixation, moved)
        self.axis, self.fixation, self.feature_map = axis, fixation, feature_map
        self.neighbours, self.moved = neighbours, moved
        self.skips_class_token = axis == "time"
        d = dim // self.heads
        self.gate_q = nn.Linear(reads[fixation] * d, d) if fixation else None
        self.gate_k = nn.Linear(reads[fixation] * d, d) if fixation and not shared_gate else None

    def gates(self, q, k, v):
        """Features q and k, and v, (B, h, N, d) -> the gates g_q and g_k, (B, h, N, d)."""
        layer_k = self.gate_k or self.gate_q
        if self.fixation == "own":
            return fixation_gate(self.gate_q, q), fixation_gate(layer_k, k)
        read = [q, k] if self.fixation == "qk" else [q, k, v]
        g_q = fixation_gate(self.gate_q, *read)
        return g_q, g_q if self.gate_k is None else fixation_gate(self.gate_k, *read)

    def neighbourhood(self, x, grid):
        """k or v with channels of the neighbours that this axis does not attend to."""
        steps = EIGHT_AROUND if self.axis == "time" else NEXT_AND_PREVIOUS
        share = int(self.moved * x.shape[1] * x.shape[3] / len(steps) + 1e-6)  # see mix_frames
        return shift_from_neighbours(x, grid, steps, share)

    def mechanism(self, q, k, v, grid):
        if self.neighbours:
            k, v = self.neighbourhood(k, grid), self.neighbourhood(v, grid)
        gates = self.gates if self.fixation else None
        attention = lambda q, k, v: linear_attention(q, k, v, None, gates, self.feature_map)
        if self.axis == "joint":
            return attention(q, k, v)
        along = time_attention if self.axis == "time" else space_attention
        return along(q, k, v, grid, attention)

# ==== PERFORMER: linear attention with random features that stand for the softmax =================
def orthogonal_projection(features, d):
    """Random directions (features, d), orthogonal in blocks of d, as long as Gaussian vectors."""
    blocks = [torch.linalg.qr(torch.randn(d, d))[0] for _ in range(math.ceil(features / d))]
    lengths = torch.randn(features, d).norm(dim=1, keepdim=True)  # (features, 1)
    return torch.cat(blocks)[:features] * lengths

@shapes("x (..., N, d), projection (M, d)")
@in_float32
def favor_features(x, projection, over, eps=1e-6):
    """Positive features with phi(q) . phi(k) = exp(q . k / sqrt(d)) on average over projections.

        phi(x)_m = (exp(w_m . x~ - |x~|^2 / 2 - largest) + eps) / sqrt(M),   x~ = x / d^(1/4)

    x (..., N, d) and rows w_m of projection (M, d) -> (..., N, M). `largest`, the maximum of
    w_m . x~ over the axes `over`, (-1,) for queries and (-2, -1) for keys, keeps exp in range.
    """
    x = x * x.shape[-1] ** -0.25
    projected = x @ projection.to(x.dtype).T  # (..., N, M)
    largest = projected.max(dim=-1, keepdim=True).values.amax(over, keepdim=True)
    half_norm = x.square().sum(dim=-1, keepdim=True) / 2  # (..., N, 1)
    return ((projected - (half_norm + largest)).exp() + eps) * len(projection) ** -0.5

@shapes("q, k, v (B, h, C + T*S, d), projection (M, d)")
def performer_attention(q, k, v, grid, projection):
    """Softmax attention by random features: a noisy, unbiased estimate of exp(q . k / sqrt(d)).

    For N=64 and d=32 the relative error with 32, 128, 512, 2048 and 8192 features is .12 .06 .03
    .02 .01 if q and k have scale 1/4, and 1.6 1.5 1.3 1.1 .9 if they have scale 1.

    Cost        4*(C + T*S)*M*D + (C + T*S)*h*M        with C + T*S >= 2*M*d / (M + d)
    Source      https://arxiv.org/abs/2009.14794 eq. 5; Motionformer's performer_helper.py:199
    Copy with   in_float32, attend_linearly, orthogonal_projection, favor_features
    """
    out = []
    for q, k, v in zip(*(x.chunk(3, dim=1) for x in (q, k, v))):  # some heads at a time save memory
        q = favor_features(q, projection, over=(-1,))
        k = favor_features(k, projection, over=(-2, -1))
        out.append(attend_linearly(q, k, v, eps=0.0))
    return torch.cat(out, dim=1)

class PerformerAttention(Attention):
    def __init__(self, dim, heads, features=256, **shared):
        super().__init__(dim, heads, **shared)
        projection = orthogonal_projection(whole(features, "features"), dim // self.heads)
        self.register_buffer("projection", projection)

    def mechanism(self, q, k, v, grid):
        return performer_attention(q, k, v, grid, self.projection)

class PerformerTrajectoryAttention(TrajectoryAttention, PerformerAttention):
    def first_stage(self, q, k, v, T):
        q = favor_features(q, self.projection, over=(-1,))  # (B, h, I, M)
        k = favor_features(k, self.projection, over=(-2, -1))  # (B, h, T*S, M)
        k, v = (rearrange(x, "B h (T S) m -> T B h S m", T=T) for x in (k, v))
        frames = [attend_linearly(q, k_t, v_t, eps=0.0) for k_t, v_t in zip(k, v)]
        return torch.stack(frames, dim=3)

# ==== REGISTRY: a scheme is a short list of steps, each with weights of its own ===================
ATTENTION = {
    "space": [SpaceAttention],
    "joint": [JointAttention],
    "divided": [partial(TimeAttention, zero_init="extra"), SpaceAttention],
    "local_global": [partial(LocalAttention, zero_init="extra"), GlobalAttention],
    "axial": [partial(TimeAttention, zero_init="extra"), partial(WidthAttention, zero_init="extra"),
              HeightAttention],
    "factorised": [SpaceAttention, partial(TimeAttention, zero_init="proj")],  # ViViT, model 3
    "factorised_heads": [FactorisedHeadsAttention],  # ViViT, model 4
    "window": [WindowAttention],
    "shifted_windows": [ShiftedWindowAttention, partial(ShiftedWindowAttention, displaced=True)],
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
    "linear_fixation": [partial(LinearAttention, fixation="qkv")],
    "lvt": [partial(LinearAttention, axis="time", fixation="qkv", neighbours=True),
            partial(LinearAttention, axis="space", fixation="qkv", neighbours=True)],
}
# A class token shared by all frames would let frames exchange information where a paper limits it.
CLASS_TOKEN = dict.fromkeys(["space", "window", "mixing", "summary", "mixing_summary"], "frame")
CLASS_TOKEN |= dict.fromkeys(["factorised", "factorised_heads", "shifted_windows", "lvt"], "none")

# ==== TOKENS: pixels to patches, and position embeddings ==========================================
class PatchEmbedding(nn.Module):
    """Cut a clip into patches of (frames, rows, columns) pixels and project each to D numbers.

    video (B, channels, frames, height, width) -> tokens (B, T*S, D) and their grid (T, H, W)

    Patches of one frame are TimeSformer's, of several frames (tubelets) ViViT's and Motionformer's.
    The convolution is one linear layer on each patch. With a smaller stride they overlap (LVT).
    """
    expects = property(lambda self: {"channels": self.proj.in_channels})  # also of a new proj
    def __init__(self, patch_size, dim, channels=3, stride=None):
        super().__init__()
        self.patch_size, self.overlap = as_sizes(patch_size), stride is not None
        stride = as_sizes(stride) if self.overlap else self.patch_size
        padding = [n // 2 for n in self.patch_size] if self.overlap else 0
        self.proj = nn.Conv3d(channels, dim, self.patch_size, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim) if self.overlap else nn.Identity()

    @shapes("video (B, channels, frames, height, width)")
    def forward(self, video):
        check_input(self, video)
        grid = self.grid(video.shape[2:])
        return self.norm(rearrange(self.proj(video), "B D T H W -> B (T H W) D")), grid

    def grid(self, sizes):
        """The grid (T, H, W) of a video of (frames, height, width)."""
        sizes, patch, stride = tuple(sizes), self.patch_size, self.proj.stride
        fits = all(n >= p and n % p == 0 for n, p in zip(sizes, patch)) or self.overlap
        fits = fits and all(n <= p for n, p in zip(stride, patch))
        message = "video of {} must divide into patches {}; patch_stride {} must leave no gaps"
        require(fits, message, sizes, patch, stride)
        axes = zip(sizes, patch, stride, self.proj.padding)
        return tuple((n + 2 * padding - p) // stride + 1 for n, p, stride, padding in axes)

def as_sizes(size):
    """An int p -> (1, p, p), a pair (rows, columns) -> (1, rows, columns), a triple as it is."""
    size = list(size) if isinstance(size, (tuple, list, np.ndarray)) else [size, size]
    size = [1, *size] if len(size) == 2 else size
    require(len(size) == 3, "size {}: an int, (rows, columns) or (frames, rows, columns)", size)
    return tuple(whole(n, "size") for n in size)

def resize_positions(table, old, new):
    """Interpolate a position embedding (1, prod(old), D) to (1, prod(new), D).

    Linear in time, bicubic in space, trilinear in both, as in Motionformer.
    """
    if tuple(old) == tuple(new):
        return table
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(new)]
    table = F.interpolate(table.transpose(1, 2).unflatten(2, old), size=tuple(new), mode=mode)
    return table.flatten(2).transpose(1, 2)

class PositionEmbedding(nn.Module):
    """Learned position embeddings, added to the tokens: x (B, C + T*S, D) -> the same shape.

    kind        "none"      attention cannot tell positions apart
                "space"     one for every position in a frame
                "time"      one for every frame; the MLP's convolution tells positions apart (LVT)
                "separate"  both; the one for time starts at zero, as image checkpoints lack it
                "joint"     one for every position in the clip
    grid        (T, H, W) of the embeddings; in a call with another grid they are interpolated
    class_token "clip", "frame" or "none"; with an embedding of its own, but for "none" and "time";
                one per frame also gets its frame's (X-ViT), one per clip does not (TimeSformer).
    """
    def __init__(self, kind, grid, dim, class_token):
        super().__init__()
        kinds = ("none", "space", "time", "separate", "joint")
        require(kind in kinds, "position={!r}: use one of {}", kind, kinds)
        T, S = grid[0], math.prod(grid[1:])
        embedding = lambda n, used: nn.Parameter(torch.zeros(1, n, dim)) if used else None
        in_space = kind in ("space", "separate", "joint")
        self.grid, self.per_frame = tuple(grid), class_token == "frame"
        self.for_class = embedding(1, in_space and class_token != "none")
        self.space = embedding(S, kind in ("space", "separate"))
        self.time = embedding(T, kind in ("time", "separate"))
        self.joint = embedding(T * S, kind == "joint")

    @shapes("x (B, C + T*S, D)")
    def forward(self, x, grid):
        T, H, W = grid
        C = x.shape[1] - T * H * W
        class_token, patches = x[:, :C], x[:, C:]
        if self.for_class is not None:
            class_token = class_token + self.for_class
        if self.space is not None:
            patches = patches + resize_positions(self.space, self.grid[1:], (H, W)).repeat(1, T, 1)
        if self.time is not None:
            time = resize_positions(self.time, self.grid[:1], (T,))  # (1, T, D)
            patches = patches + time.repeat_interleave(H * W, dim=1)
            class_token = class_token + time if self.per_frame else class_token
        if self.joint is not None:
            patches = patches + resize_positions(self.joint, self.grid, grid)
        return torch.cat([class_token, patches], dim=1)  # (B, C + T*H*W, D)

# ==== BLOCKS: the steps of a scheme and an MLP, each with a residual ==============================
class StochasticDepth(nn.Dropout):
    """In training, drop a clip's branch x (B, ...) with probability p and scale up the others."""
    def forward(self, x):
        keep = x.new_ones(x.shape[:1] + (1,) * (x.ndim - 1))  # dropout makes it 0 or 1 / (1 - p)
        return x * super().forward(keep) if self.training and self.p > 0 else x

class MLP(nn.Module):
    """Every token by itself, x (B, N, D) -> (B, N, D). With depthwise, hidden channels also see
    their 3 x 3 neighbours in the frame, which tells positions apart (LVT; patches only)."""
    def __init__(self, dim, hidden, dropout=0.0, depthwise=False, gelu="none"):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden) if depthwise else None
        self.gelu = nn.GELU(approximate=gelu)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, grid):
        T, H, W = grid
        x = self.fc1(x)  # (B, N, hidden)
        if self.depthwise is not None:
            x = rearrange(x, "B (T H W) hidden -> (B T) hidden H W", T=T, H=H, W=W)
            x = rearrange(self.depthwise(x), "(B T) hidden H W -> B (T H W) hidden", T=T)
        return self.dropout(self.fc2(self.dropout(self.gelu(x))))

class Block(nn.Module):
    """Pre-norm: x = x + step(norm(x)) for every step of the scheme, then x = x + mlp(norm(x)).

    block(x, (T, H, W)) with x (B, C + T*S, D) -> the same shape
    """
    def __init__(self, dim, steps, mlp, drop_path=0.0, eps=1e-6):
        super().__init__()
        self.expects = {"D": dim}
        self.steps = nn.ModuleList(steps)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for step in self.steps)
        self.mlp = mlp
        self.mlp_norm = nn.LayerNorm(dim, eps=eps)
        self.drop_path = StochasticDepth(drop_path)

    @shapes("x (B, C + T*S, D)")
    def forward(self, x, grid):
        for norm, step in zip(self.norms, self.steps):
            x = x + self.drop_path(step(norm(x), grid))
        return x + self.drop_path(self.mlp(self.mlp_norm(x), grid))

# ==== HEADS: tokens to classes ====================================================================
class TemporalAttentionHead(nn.Module):
    """A new class token and the T frames in `depth` more transformer layers: x (B, T, D) -> (B, D).
    X-ViT's temporal attention, and the temporal half of ViViT's model 2."""
    def __init__(self, dim, heads, depth=1):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList()
        for _ in range(whole(depth, "head_depth")):
            step = JointAttention(dim, heads, qkv_bias=False)
            self.blocks.append(Block(dim, [step], MLP(dim, 4 * dim), eps=1e-5))

    def forward(self, x):
        B, T, D = x.shape
        x = torch.cat([self.class_token.expand(B, 1, D), x], dim=1)  # (B, 1 + T, D)
        for block in self.blocks:
            x = block(x, (T, 1, 1))  # T frames of one patch
        return x[:, 0]  # (B, D)

class Head(nn.Module):
    """Pool the tokens (B, C + T*S, D) of a clip into one and classify it: logits (B, K).

    pool        "class"     the class token, or the mean of the frames' class tokens
                "mean"      the mean of the patches
                "temporal"  a TemporalAttentionHead over the frames' class tokens, or patch means
    mlp         None        a linear layer (TimeSformer's code; its paper has a hidden layer)
                "tanh"      linear, tanh, linear (Motionformer)
                "gelu"      norm, linear, GELU, dropout, linear (X-ViT, LVT)
    """
    def __init__(self, dim, num_classes, pool, mlp, hidden, heads, depth, per_frame, dropout):
        super().__init__()
        hidden = hidden or dim
        layers = {None: [nn.Linear(dim, num_classes)],
                  "tanh": [nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, num_classes)],
                  "gelu": [nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(),
                           nn.Dropout(dropout), nn.Linear(hidden, num_classes)]}
        known = pool in ("class", "mean", "temporal") and mlp in layers
        require(known, "head={}: class, mean, temporal; head_mlp={}: None, tanh, gelu", pool, mlp)
        self.pool, self.per_frame = pool, per_frame
        self.temporal = TemporalAttentionHead(dim, heads, depth) if pool == "temporal" else None
        self.norm = nn.Identity()
        self.classify = nn.Sequential(*layers[mlp])

    @shapes("x (B, C + T*S, D)")
    def forward(self, x, grid):
        C = x.shape[1] - math.prod(grid)
        if self.pool == "class":
            x = x[:, :C].mean(dim=1)  # (B, D)
        elif self.pool == "mean":
            x = x[:, C:].mean(dim=1)  # (B, D)
        else:
            patches = reduce(x[:, C:], "B (T S) D -> B T D", "mean", T=grid[0])
            x = self.temporal(x[:, :C] if self.per_frame else patches)  # (B, D)
        return self.classify(self.norm(x))

# ==== BACKBONE ====================================================================================
class VideoTransformer(nn.Module):
    """Patches, positions, blocks and a head: the vision transformer with attention over video.

    model(video) with video (B, channels, frames, height, width) -> logits (B, K)
    model.forward_features(video) -> tokens (B, C + T*S, D), normed unless norm_after_pool
    VideoTransformer(**model.config) -> a new model of the same form

    attention   a name in ATTENTION, or a list of steps like [partial(MixingAttention, window=2)],
                or, for blocks that differ, a list of those or a function of the block's number
    num_frames  frames of a video, and image_size its height and width, for position embeddings
    patch_size  an int, (rows, columns) or (frames, rows, columns); patch_stride makes them overlap
    position    a kind of PositionEmbedding
    class_token "clip", "frame" or "none"; left out, what CLASS_TOKEN says of all blocks, or "clip"
    head        "class", "mean" or "temporal", of head_depth layers; left out, "class" or, without
                class tokens, "mean". head_mlp and its width head_hidden: see Head
    dropout     after the embedding, the output projections, in the MLPs and in a "gelu" head
    drop_path   stochastic depth, from 0 in the first block to this in the last
    depthwise   see MLP; gelu: "none" is exact, "tanh" is ViViT's approximation
    norm_after_pool  the last norm comes after pooling (TimeSformer's released space-only models)
    checkpoint  in training keep only what enters a block and compute the rest again for gradients
    """
    def __init__(
        self, attention="divided", num_classes=400, num_frames=8, image_size=224, patch_size=16,
        dim=768, depth=12, heads=12, mlp_ratio=4.0, position="separate", class_token=None,
        head=None, head_mlp=None, head_hidden=None, head_depth=1, dropout=0.0, drop_path=0.0,
        patch_stride=None, depthwise=False, gelu="none", norm_after_pool=False, channels=3,
        checkpoint=False,
    ):
        super().__init__()
        dim, heads, depth = whole(dim, "dim"), whole(heads, "heads"), whole(depth, "depth", least=0)
        num_classes, num_frames = whole(num_classes, "num_classes"), whole(num_frames, "num_frames")
        config = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self.config = completed(config)
        schemes, class_token, head = map(self.config.get, ("attention", "class_token", "head"))
        self.patches = PatchEmbedding(patch_size, dim, channels, patch_stride)
        grid = self.patches.grid((num_frames, *as_sizes(image_size)[1:]))
        self.class_token = None if class_token == "none" else nn.Parameter(torch.zeros(1, 1, dim))
        self.position = PositionEmbedding(position, grid, dim, class_token)
        self.dropout, self.checkpoint = nn.Dropout(dropout), checkpoint
        self.blocks = nn.ModuleList()
        for i, scheme in enumerate(schemes):
            steps = [step(dim, heads, **(dict(dropout=dropout) | step.keywords))
                     for step in steps_of(scheme)]
            mlp = MLP(dim, whole(round(dim * mlp_ratio), "dim*mlp_ratio"), dropout, depthwise, gelu)
            self.blocks.append(Block(dim, steps, mlp, drop_path * i / max(depth - 1, 1)))
        pooling = head, head_mlp, head_hidden, heads, head_depth, class_token == "frame"
        self.head = Head(dim, num_classes, *pooling, dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        if norm_after_pool:  # the head's norm is the identity otherwise
            self.norm, self.head.norm = self.head.norm, self.norm
        self.init_weights()

    def init_weights(self):
        """Linear layers, class token and position embeddings from a truncated normal of .02, biases
        zero; norms and convolutions as torch makes them. What image checkpoints lack starts at
        zero: embeddings of time, a temporal head's class token, the layers of zero_init."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention):
                module.start_at_zero()
        position = self.position
        for table in (self.class_token, position.for_class, position.space, position.joint):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def forward_features(self, video):
        x, grid = self.patches(video)
        if self.class_token is not None:
            C = grid[0] if self.position.per_frame else 1
            x = torch.cat([self.class_token.expand(x.shape[0], C, -1), x], dim=1)
        x = self.dropout(self.position(x, grid))
        again = self.checkpoint and self.training
        for block in self.blocks:
            x = checkpoint(block, x, grid, use_reentrant=False) if again else block(x, grid)
        return self.norm(x)

    def forward(self, video):
        return self.head(self.forward_features(video), self.patches.grid(video.shape[2:]))

def completed(config):
    """The config with defaults filled in, each block's scheme a name or a list of dicts."""
    attention, depth = config["attention"], config["depth"]
    if callable(attention) and not isinstance(attention, (type, partial)):
        schemes = [attention(i) for i in range(depth)]
    elif isinstance(attention, (list, tuple)) and {str, list} & set(map(type, attention)):
        schemes = attention
    else:
        schemes = [attention] * depth
    require(len(schemes) == depth, "{} schemes for depth={}", len(schemes), depth)
    kinds = {CLASS_TOKEN.get(str(scheme), "clip") for scheme in schemes}
    class_token = config["class_token"] or (kinds.pop() if len(kinds) == 1 else "clip")
    head = config["head"] or ("mean" if class_token == "none" else "class")
    fits = class_token in ("clip", "frame", "none") and (class_token, head) != ("none", "class")
    near = any(step.keywords.get("neighbours") for scheme in schemes for step in steps_of(scheme))
    fits = fits and (class_token == "none" or not (near or config["depthwise"]))  # patches only
    fits = fits and config["gelu"] in ("none", "tanh") and as_sizes(config["image_size"])[0] == 1
    message = "class_token={!r}: clip, frame, none (not with head={!r}; neighbours, depthwise: none"
    message += "); gelu={!r}: none, tanh; image_size={!r}: an int or (height, width)"
    require(fits, message, class_token, head, config["gelu"], config["image_size"])
    words = lambda steps: [dict(step=step.func.__name__, **step.keywords) for step in steps]
    schemes = [scheme if isinstance(scheme, str) else words(steps_of(scheme)) for scheme in schemes]
    return config | dict(attention=schemes, class_token=class_token, head=head)

def steps_of(scheme):
    """A name in ATTENTION, or a list of steps -> the steps, each as a partial of its class.

    A step may be a class, a partial of it or {"step": "MixingAttention", "window": 2}.
    """
    steps = []
    for step in scheme if isinstance(scheme, (list, tuple)) else ATTENTION.get(str(scheme), ()):
        if isinstance(step, dict) and step.get("step") in Attention.known:
            options = dict(step)
            step = partial(Attention.known[options.pop("step")], **options)
        step = partial(step) if isinstance(step, type) else step
        fits = isinstance(step, partial) and step.func in Attention.known.values() and not step.args
        require(fits, "step {!r}: no imported Attention class, or partial of one by keyword", step)
        steps.append(step)
    require(len(steps) > 0, "attention={!r}: a list of steps or one of {}", scheme, list(ATTENTION))
    return steps

