"""How video transformers attend: the attention mechanisms of nine papers and the full backbone.

A clip becomes a grid of patch tokens, and attention decides which of them exchange information.
The cost of attention among all patches is the square of their number. So each paper here asks:
which patches may a patch attend to, and at what cost?

NOTATION    for code, shapes, equations and costs
    B   clips in the batch                      D   width of a token
    T   frames of tokens, "frames" below        h   heads
    H   rows of the patch grid                  d   width of a head, d = D / h
    W   columns of the patch grid               e   width of a value, d unless said
    S   patches in a frame, S = H * W           P   prototypes or landmarks
    C   class tokens and registers, see below   M   random features
    c   class tokens in a group, see below      I, J   queries and keys of one attention
    N   tokens in all, N = C + T * S            L   patches of a group;  n   how many there are

    A video is (B, channels, frames, height, width). Tokens are (B, C + T*S, D): class tokens first,
    then the patches frame by frame and row by row, so that the patch at (t, y, x) is token
    C + t*S + y*W + x. A model built for one grid (T, H, W) of patches also runs on others.

    C = T class tokens are one a frame. Any other C belong to the clip: its class token and its
    registers, which are treated alike. A group of patches of one frame gets the class token of that
    frame, c = 1, or copies of all C of the clip, c = C. A group along time gets none by default.

    A comment such as  # (B, h, N, d)  gives the shape of what its line makes. In equations q, k, v
    and out are one query, key, value and output: out_i that of token i, out_st that of position s
    in frame t, out_tyx that of the patch at (t, y, x). A prime marks what is attended to, W_q is a
    matrix of weights, and softmax_j runs over j. Vectors are columns after a W, otherwise rows.

BEFORE YOU PASTE a mechanism into your own model
    Tokens are ordered (t y x), class tokens first; TimeSformer's own code has (h w t), with which
    results are 30% off and no error appears. q, k, v are (B, h, N, d), as in torch's
    scaled_dot_product_attention, and the grid is (T, H, W), in this order. Keep the line with
    count_class_tokens: it notices another layout, such as (B, N, h, d), but no other order. After
    time attention no bias of `proj` may reach class tokens: use skips_class_token in Attention.
    python -m tiny_data.copy trajectory_attention > trajectory.py  makes a file that runs alone.

SKELETON    A mechanism is a function of q, k, v (B, h, C + T*S, d) and the grid (T, H, W), which
    returns (B, h, C + T*S, d). The module Attention puts it between its projections: that is a
    step. A scheme is a row of ATTENTION: the steps of one block. Each equation stands above the
    line that computes it. In docstrings:
    Picture     Q is the querying patch, # what it attends to, in four frames of 4 x 6 patches;
                without a picture it attends to everything
    Class token what happens to class tokens; without this line they are tokens like any other
    Cost        multiply-accumulates for one clip, without the qkv and output projections
    Source      the paper, and file and line of its released code, in the repositories named below
    Differs     where paper, released code and this file differ
    Today       systems that people meet now and that attend in this way
    Copy with   the definitions that must come along, beside the imports; "X and theirs" is X and
                what X names under its own Copy with. VideoTransformer needs the whole file.

CONTENTS    search for the words in capitals
    SOFTMAX ATTENTION, MODULE, JOINT SPACE-TIME                    what all others restrict
    GROUPS OF TOKENS, SPACE, DIVIDED, AXIAL, FACTORISED            TimeSformer; ViViT
    BOXES OF TOKENS, SPARSE LOCAL-GLOBAL, SHIFTED WINDOWS          TimeSformer; Video Swin
    TEMPORAL WINDOW, SUMMARY TOKENS, SPACE-TIME MIXING             X-ViT
    HALF PRECISION, POOLED, LINEAR, PERFORMER                      MViT; LVT; Performer
    NYSTROM, ORTHOFORMER, TRAJECTORY                               Nystromformer; Motionformer
    FEATURE FIXATION, NEIGHBOURHOOD ASSOCIATION, LVT               LVT
    ROTARY POSITIONS                                               RoFormer, in most models of today
    REGISTRY; TOKENS, BLOCKS, HEADS, BACKBONE                      ATTENTION; VideoTransformer
    Released code: github.com/facebookresearch/TimeSformer a5ef29a (timesformer/models), and, all in
    slowfast/models, facebookresearch/Motionformer bf43d50, 1adrianb/video-transformers 82ca176
    (X-ViT) and OpenNLPLab/Linear_VideoTransformer 185d74a (LVT)
"""

import functools
import itertools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch.utils.checkpoint import checkpoint

# ==== SOFTMAX ATTENTION ===========================================================================
def attend(q, k, v, causal=False):
    """Softmax attention: every query takes a weighted mean of the values.
    q (..., I, d), k (..., J, d), v (..., J, e) -> (..., I, e), the leading axes independently. With
    causal, query i attends to the keys 0 .. i. Torch has kernels that store no I x J weights.
    Cost        I*J*(d + e)        for every leading index
    """
    # out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (..., I, e)

def attention_weights(q, k):
    """The weights that attend does not store: q (..., I, d), k (..., J, d) -> (..., I, J)."""
    # softmax_j(q_i . k_j / sqrt(d))
    scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)  # (..., I, J)
    return scores.softmax(dim=-1)  # (..., I, J)

def count_class_tokens(x, grid):
    """C, the class tokens that precede the patches of x (..., N, d or D): T, one a frame, or any
    number of the clip's that is below T * min(H, W), as more could be a row of patches."""
    T, H, W = grid
    C = x.shape[-2] - T * H * W
    fits = C == T or 0 <= C < T * min(H, W)
    assert fits, f"{x.shape[-2]} tokens do not fit the grid (T, H, W) = {grid}"
    return C

# ==== MODULE: a mechanism between its projections =================================================
class Attention(nn.Module):
    """Project tokens to q, k and v, let the mechanism attend, project back.
    module(x, (T, H, W)) with x (B, C + T*S, D) -> the same shape
    mechanism   a function of q, k, v and the grid, called with `options`. A subclass, which has
                state of its own, overrides the method of this name instead.
    zero_init   what starts at zero, so that the residual passes x through unchanged at first: None,
                "proj" (the output projection, ViViT) or "extra" (one more D x D layer, TimeSformer)
    skips_class_token   class tokens get zeros after the last layer, so that no bias reaches them
                and the residual leaves them as they were
    rotary      the base of rotary positions for q and k, see rotate; None is without
    Cost        4*N*D**2        beside the mechanism's own; 5*N*D**2 with an extra layer
    Differs     TimeSformer's paper counts the extra layer's parameters and does not describe it.
                ViViT's zeroes all weights of its time attention: then only a bias gets a gradient.
    Copy with   count_class_tokens, rotate and theirs
    """
    def __init__(self, dim, heads, mechanism=None, dropout=0.0, zero_init=None, qkv_bias=True,
                 skips_class_token=False, rotary=None, **options):
        super().__init__()
        assert dim % heads == 0, f"dim={dim} does not divide into heads={heads}"
        assert mechanism or not options, f"{type(self).__name__} does not know {options}"
        self.heads, self.function, self.options = heads, mechanism, options
        self.zero_init, self.skips_class_token, self.rotary = zero_init, skips_class_token, rotary
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.extra = nn.Linear(dim, dim) if zero_init == "extra" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.start_at_zero()

    def start_at_zero(self):
        if self.zero_init is not None:
            layer = getattr(self, self.zero_init)  # self.proj or self.extra
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def mechanism(self, q, k, v, grid):
        return self.function(q, k, v, grid, **self.options)  # (B, h, N, d)

    def forward(self, x, grid):
        C = count_class_tokens(x, grid)
        qkv = self.qkv(x)  # (B, N, 3*D)
        q, k, v = rearrange(qkv, "B N (n h d) -> n B h N d", n=3, h=self.heads)  # each (B, h, N, d)
        if self.rotary is not None:
            q, k = (rotate(x, grid, self.rotary) for x in (q, k))  # each (B, h, N, d)
        out = self.mechanism(q, k, v, grid)  # (B, h, N, d)
        out = self.proj(rearrange(out, "B h N d -> B N (h d)"))  # (B, N, D)
        out = self.extra(self.dropout(out))  # (B, N, D)
        if self.skips_class_token and C > 0:
            out = F.pad(out[:, C:], (0, 0, C, 0))  # (B, N, D)
        return out

# ==== JOINT SPACE-TIME: every patch attends to the whole clip =====================================
def joint_attention(q, k, v, grid):
    """Attention over all tokens at once: the most that a patch can attend to.
    Cost        2*(C + T*S)**2*D
    Source      https://arxiv.org/abs/2102.05095 eq. 5, TimeSformer (ST); vit.py:57
    Today       VideoMAE, V-JEPA 2, Wan 2.1 and HunyuanVideo, the last three with rotary positions
    Copy with   attend, count_class_tokens
    """
    count_class_tokens(q, grid)  # only checks
    # out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j,   j: all N tokens
    return attend(q, k, v)  # (B, h, N, d)

# ==== GROUPS OF TOKENS: many mechanisms are exact attention inside small groups ===================
IN_FRAMES = "(B T) h (H W) d"  # every frame is a group; "(B T H) h W d" makes every row one

def attend_in_groups(q, k, v, grid, pattern, attention=attend):
    """Let `attention` attend inside groups of patches of one size, each within one frame. The
    groups are `pattern`, the right side of an einops pattern for "B h (T H W) d".
    Copy with   attend, count_class_tokens, into_groups, out_of_groups
    """
    C = count_class_tokens(q, grid)
    q, k, v = (into_groups(x, grid, pattern) for x in (q, k, v))  # each (B*T*n, h, c + L, d)
    return out_of_groups(attention(q, k, v), grid, pattern, C)  # (B, h, N, d)

def into_groups(x, grid, pattern):
    """Tokens (B, h, C + T*S, d) -> (B*T*n, h, c + L, d), n groups a frame, class tokens first: a
    clip's are copied into every group, a frame's into the groups of that frame."""
    T, H, W = grid
    C = count_class_tokens(x, grid)
    own, patches = x[:, :, :C], x[:, :, C:]  # (B, h, C, d) and (B, h, T*S, d)
    patches = rearrange(patches, f"B h (T H W) d -> {pattern}", T=T, H=H, W=W)  # (B*T*n, h, L, d)
    n = H * W // patches.shape[2]
    if C == T:
        own = repeat(own, "B h T d -> (B T n) h 1 d", n=n)  # (B*T*n, h, c, d)
    else:
        own = repeat(own, "B h c d -> (B T n) h c d", T=T, n=n)  # (B*T*n, h, c, d)
    return torch.cat([own, patches], dim=2)  # (B*T*n, h, c + L, d)

def out_of_groups(x, grid, pattern, C):
    """The reverse, -> (B, h, C + T*S, d); the copies of a class token are averaged."""
    T, H, W = grid
    c = 1 if C == T else C
    own, patches = x[:, :, :c], x[:, :, c:]  # (B*T*n, h, c, d) and (B*T*n, h, L, d)
    n = H * W // patches.shape[2]
    patches = rearrange(patches, f"{pattern} -> B h (T H W) d", T=T, H=H, W=W)  # (B, h, T*S, d)
    copies = "(B T n) h c d -> B h (T c) d" if C == T else "(B T n) h c d -> B h c d"
    own = reduce(own, copies, "mean", T=T, n=n)  # (B, h, C, d)
    return torch.cat([own, patches], dim=2)  # (B, h, N, d)

# ==== SPACE: every patch attends to its own frame =================================================
def space_attention(q, k, v, grid, attention=attend):
    """Attention inside each frame, by `attention`: patches of different frames exchange nothing.
        t=0     t=1     t=2     t=3
        ......  ######  ......  ......
        ......  ##Q###  ......  ......
        ......  ######  ......  ......
        ......  ######  ......  ......
    Class token A clip's are copied into all frames and the copies averaged; a frame's stays in it.
    Cost        2*T*(S + c)**2*D
    Source      https://arxiv.org/abs/2102.05095 eq. 6, TimeSformer (S); vit.py:137
    Differs     The paper leaves open what the class token attends to; this follows its code.
    Copy with   IN_FRAMES, attend_in_groups and theirs
    """
    # out_st = sum_s' softmax_s'(q_st . k_s't / sqrt(d)) v_s't
    return attend_in_groups(q, k, v, grid, IN_FRAMES, attention)  # (B, h, N, d)

# ==== DIVIDED: time attention first, then space attention =========================================
# Two cheap steps, each with weights of its own, after which every patch has met the whole clip.
def time_attention(q, k, v, grid, attention=attend, causal=False, class_key=False):
    """Attention along time, by `attention`: a patch attends to the same position in every frame,
    with causal in none that is later. With class_key, as in the paper, the class tokens are keys of
    every patch as well and attend to all tokens themselves.
        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ..#...  ..Q...  ..#...  ..#...
        ......  ......  ......  ......
        ......  ......  ......  ......
    Class token Without class_key they take no part and get zeros, so that a residual leaves them as
                they were; a module needs skips_class_token, so that no bias reaches them either.
    Cost        2*S*T**2*D
    Cost, class_key  2*(S*T*(T + C) + C*(C + T*S))*D
    Source      https://arxiv.org/abs/2102.05095 section 3 and eq. 11; vit.py:126
    Differs     The released code, and this by default, has no class token among the keys. What it
                attends to with class_key is Motionformer's choice; the paper leaves that open.
    Today       AnimateDiff, Latte and Open-Sora 1, between attention in space
    Copy with   attend, count_class_tokens
    """
    assert not (causal and class_key), "a class token that has seen the whole clip is not causal"
    T, H, W = grid
    C = count_class_tokens(q, grid)
    along = "B h (T H W) d -> (B H W) h T d"  # one group for every position in the frame
    q_t, k_t, v_t = (rearrange(x[:, :, C:], along, T=T, H=H, W=W)
                     for x in (q, k, v))  # each (B*S, h, T, d)
    if class_key:
        class_token = attend(q[:, :, :C], k, v)  # (B, h, C, d)
        class_k = k[:, :, :C].repeat_interleave(H * W, dim=0)  # (B*S, h, C, d)
        class_v = v[:, :, :C].repeat_interleave(H * W, dim=0)  # (B*S, h, C, d)
        k_t = torch.cat([class_k, k_t], dim=2)  # (B*S, h, C + T, d)
        v_t = torch.cat([class_v, v_t], dim=2)  # (B*S, h, C + T, d)
    if causal:
        attention = functools.partial(attention, causal=True)
    # out_st = sum_t' softmax_t'(q_st . k_st' / sqrt(d)) v_st'
    out = attention(q_t, k_t, v_t)  # (B*S, h, T, d)
    out = rearrange(out, "(B H W) h T d -> B h (T H W) d", H=H, W=W)  # (B, h, T*S, d)
    if class_key:
        return torch.cat([class_token, out], dim=2)  # (B, h, N, d)
    return F.pad(out, (0, 0, C, 0)) if C > 0 else out  # (B, h, N, d)

# ==== AXIAL: time, then the row, then the column ==================================================
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
    Copy with   attend_in_groups and theirs
    """
    # out_tyx = sum_x' softmax_x'(q_tyx . k_tyx' / sqrt(d)) v_tyx'
    return attend_in_groups(q, k, v, grid, "(B T H) h W d")  # (B, h, N, d)

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
    Copy with   attend_in_groups and theirs
    """
    # out_tyx = sum_y' softmax_y'(q_tyx . k_ty'x / sqrt(d)) v_ty'x
    return attend_in_groups(q, k, v, grid, "(B T W) h H d")  # (B, h, N, d)

# ==== FACTORISED: half of the heads in space, half in time ========================================
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
    Today       Sparse VideoGen, where each head chooses space or time as it runs
    Copy with   space_attention, time_attention and theirs
    """
    assert q.shape[1] % 2 == 0, f"h={q.shape[1]} heads do not divide into halves"
    first, second = zip(*(x.chunk(2, dim=1) for x in (q, k, v)))  # each (B, h/2, N, d), three
    # out_st = sum_s' softmax_s'(q_st . k_s't / sqrt(d)) v_s't        in the first half of the heads
    in_space = space_attention(*first, grid)  # (B, h/2, N, d)
    # out_st = sum_t' softmax_t'(q_st . k_st' / sqrt(d)) v_st'        in the second
    in_time = time_attention(*second, grid)  # (B, h/2, N, d)
    return torch.cat([in_space, in_time], dim=1)  # (B, h, N, d)

# ==== BOXES OF TOKENS: groups that need not have the same size ====================================
def attend_in_boxes(q, k, v, grid, parts):
    """Attention inside boxes that tile the clip; the class tokens join all, averaged afterwards.
    `parts` lists the ranges that cut each axis of the grid; a box is a range from each axis.
    Copy with   attend, count_class_tokens, tokens_of_boxes
    """
    C = count_class_tokens(q, grid)
    boxes = tokens_of_boxes(grid, parts, C)
    qkv = torch.stack([q, k, v])  # (3, B, h, N, d)
    out = torch.zeros_like(v)  # (B, h, N, d)
    for size in {len(box) for box in boxes}:
        same = [box for box in boxes if len(box) == size]  # n boxes of one size
        tokens = torch.tensor(same, device=q.device)  # (n, C + L), their numbers in the clip
        boxed = qkv[..., tokens, :]  # (3, B, h, n, C + L, d)
        q, k, v = rearrange(boxed, "i B h n L d -> i (B n) h L d")  # each (B*n, h, C + L, d)
        found = attend(q, k, v)  # (B*n, h, C + L, d)
        found = rearrange(found, "(B n) h L d -> B h (n L) d", n=len(same))  # (B, h, n*(C + L), d)
        out.index_add_(2, tokens.flatten(), found)  # each to its token; class tokens add up
    out[:, :, :C] /= len(boxes)
    return out

def tokens_of_boxes(grid, parts, C):
    """The numbers of the tokens in each box: the class tokens, then its patches."""
    T, H, W = grid
    boxes = []
    for box in itertools.product(*parts):
        patches = [C + (t * H + y) * W + x for t, y, x in itertools.product(*box)]
        boxes.append([*range(C), *patches])
    return [box for box in boxes if len(box) > C]  # a cut may leave a range empty

def cut(n, size, first):
    """Ranges of n positions, cut at first, first + size, ...; one range if n <= size."""
    edges = [0, *range(first, n, size), n] if n > size else [0, n]
    return [range(start, stop) for start, stop in itertools.pairwise(edges)]

# ==== SPARSE LOCAL-GLOBAL: a quarter of every frame, then an eighth of the clip ===================
def local_attention(q, k, v, grid):
    """Attention inside one of four windows: half of the rows, half of the columns, all frames.
        t=0     t=1     t=2     t=3
        ###...  ###...  ###...  ###...
        ###...  ##Q...  ###...  ###...
        ......  ......  ......  ......
        ......  ......  ......  ......
    Class token They join all four windows and their outputs are averaged.
    Cost        8*(C + T*S/4)**2*D        with H and W even
    Source      https://arxiv.org/abs/2102.05095 section 3, TimeSformer (L+G)
    Differs     No code was released. The paper gives each query T x H/2 x W/2 neighbours; here four
                windows tile the frame, and the global step after it connects them.
    Copy with   attend_in_boxes, cut and theirs
    """
    T, H, W = grid
    rows, columns = (H + 1) // 2, (W + 1) // 2
    parts = [range(T)], cut(H, rows, rows), cut(W, columns, columns)
    # out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j,   j: the tokens of its window
    return attend_in_boxes(q, k, v, grid, parts)  # (B, h, N, d)

def global_attention(q, k, v, grid):
    """Attention over every other frame, row and column: an eighth of the clip, spread over it.
        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  #.Q.#.  ......  #.#.#.
        ......  ......  ......  ......
        ......  #.#.#.  ......  #.#.#.
    Class token They join all eight lattices and their outputs are averaged.
    Cost        16*(C + T*S/8)**2*D        with T, H and W even
    Source      https://arxiv.org/abs/2102.05095 section 3, TimeSformer (L+G)
    Differs     No code was released. The paper asks for stride 2 along all axes and leaves open
                where a lattice starts. Here it is that of the query, which so attends to itself.
    Copy with   attend_in_boxes and theirs
    """
    parts = [(range(0, n, 2), range(1, n, 2)) for n in grid]  # even and odd positions of an axis
    # out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j,   j: the tokens of its lattice
    return attend_in_boxes(q, k, v, grid, parts)  # (B, h, N, d)

# ==== SHIFTED WINDOWS: boxes of frames, rows and columns, displaced in every other step ===========
def shifted_window_attention(q, k, v, grid, size=(8, 7, 7), displaced=False):
    """Attention inside windows of size (frames, rows, columns), moved by half of it if `displaced`.
    Steps alternate, so that patches separated in one meet in the next. An axis no longer than its
    window is not cut. With size=(2, 2, 3) and displaced=True:
        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  .#Q#..  .###..  ......
        ......  .###..  .###..  ......
        ......  ......  ......  ......
    Class token They join every window and their outputs are averaged.
    Cost        2*T*S*(size[0]*size[1]*size[2])*D        for whole windows only, and C = 0
    Source      https://arxiv.org/abs/2106.13230 section 3.3, Video Swin
    Differs     No relative position bias, no hierarchy; an MLP after both steps, not after each.
                Where windows do not divide the grid, Video Swin attends to zeros; here they shrink.
    Today       Sliding tile attention, which also takes keys from the boxes around
    Copy with   attend_in_boxes, cut and theirs
    """
    assert displaced in (False, True), f"displaced={displaced}: True is by half a window"
    first = [max(1, length // 2) if displaced else length for length in size]
    parts = [cut(*axis) for axis in zip(grid, size, first)]
    # out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j,   j: the tokens of its window
    return attend_in_boxes(q, k, v, grid, parts)  # (B, h, N, d)

# ==== TEMPORAL WINDOW: the frames around, and all patches of them =================================
def window_attention(q, k, v, grid, window=1, causal=False):
    """Every patch attends to all patches of the frames t - w .. t + w, w = window, or with causal
    of t - w .. t; at the ends there are fewer. Window 0 is space attention, one over the whole clip
    joint attention if no class token is the clip's. n layers reach n*w frames each way.
        t=0     t=1     t=2     t=3
        ######  ######  ######  ......
        ######  ##Q###  ######  ......
        ######  ######  ######  ......
        ######  ######  ######  ......
    Class token A frame's belongs to its frame; a clip's are copied into every frame, and so bring
                later frames into the next layer even with causal.
    Cost        2*(T*(2*w + 1) - w*(w + 1))*(S + c)**2*D        with w < T
    Source      https://arxiv.org/abs/2106.05968 eq. 7, X-ViT
    Today       V-JEPA 2-AC and Self-Forcing, causal; Radial attention, narrower for distant frames
    Copy with   attend, count_class_tokens, IN_FRAMES, into_groups, out_of_groups
    """
    assert window >= 0, f"window={window} frames"
    T, C = grid[0], count_class_tokens(q, grid)
    q, k, v = (into_groups(x, grid, IN_FRAMES) for x in (q, k, v))  # each (B*T, h, c + S, d)
    q, k, v = (x.unflatten(0, (-1, T)) for x in (q, k, v))  # each (B, T, h, c + S, d)
    found = []
    for t in range(T):
        near = slice(max(0, t - window), 1 + t if causal else 1 + t + window)
        near_k = rearrange(k[:, near], "B n h L d -> B h (n L) d")  # (B, h, n*(c + S), d)
        near_v = rearrange(v[:, near], "B n h L d -> B h (n L) d")  # (B, h, n*(c + S), d)
        # out_st = sum_{t' = t-w .. t+w} sum_s' softmax_{s' t'}(q_st . k_s't' / sqrt(d)) v_s't'
        found.append(attend(q[:, t], near_k, near_v))  # (B, h, c + S, d)
    out = torch.stack(found, dim=1).flatten(0, 1)  # (B*T, h, c + S, d)
    return out_of_groups(out, grid, IN_FRAMES, C)  # (B, h, N, d)

# ==== SUMMARY TOKENS: space attention with the mean of every frame among the keys =================
def frame_means(x, T, C):
    """The means of each frame's patches, (B*T, h, c + S, d) -> (B, h, T, d). The mean of the keys
    is the key of the mean patch, as the projection is linear (not with rotary)."""
    c = 1 if C == T else C
    return reduce(x[:, :, c:], "(B T) h S d -> B h T d", "mean", T=T)  # (B, h, T, d)

def attend_with_means(q, k, v, k_means, v_means, T):
    """Space attention on q, k, v (B*T, h, L, d); the means of all frames, each (B, h, T, d), join
    the keys and values of every frame. 32 frames at a time, as each needs a copy of all means."""
    found = []
    for some in zip(*(x.unflatten(0, (-1, T)).split(32, dim=1) for x in (q, k, v))):
        n = some[0].shape[1]
        q_n, k_n, v_n = (x.flatten(0, 1) for x in some)  # each (B*n, h, L, d)
        k_n = torch.cat([k_n, k_means.repeat_interleave(n, dim=0)], dim=2)  # (B*n, h, L + T, d)
        v_n = torch.cat([v_n, v_means.repeat_interleave(n, dim=0)], dim=2)  # (B*n, h, L + T, d)
        found.append(attend(q_n, k_n, v_n).unflatten(0, (-1, n)))  # (B, n, h, L, d)
    return torch.cat(found, dim=1).flatten(0, 1)  # (B*T, h, L, d)

def summary_attention(q, k, v, grid):
    """Space attention; the means of all frames join the keys and values of every frame. So a patch
    attends to its own frame patch by patch (#), to all frames through their means (m).
        t=0     t=1     t=2     t=3
        mmmmmm  ######  mmmmmm  mmmmmm
        mmmmmm  ##Q###  mmmmmm  mmmmmm
        mmmmmm  ######  mmmmmm  mmmmmm
        mmmmmm  ######  mmmmmm  mmmmmm
    Class token As in space attention.
    Cost        2*T*(S + c)*(S + c + T)*D
    Source      https://arxiv.org/abs/2106.05968 section 3.3, X-ViT
    Differs     No code was released. The paper's summary may be any function of a frame, and taken
                before the norm. The paper counts T*S scores for means; T*S queries have T each.
    Copy with   attend, count_class_tokens, IN_FRAMES, into_groups, out_of_groups, frame_means,
                attend_with_means
    """
    T, C = grid[0], count_class_tokens(q, grid)
    q, k, v = (into_groups(x, grid, IN_FRAMES) for x in (q, k, v))  # each (B*T, h, c + S, d)
    k_means, v_means = frame_means(k, T, C), frame_means(v, T, C)  # each (B, h, T, d)
    # out_st = sum_j softmax_j(q_st . k_j / sqrt(d)) v_j,   j: all s' of frame t, and all T means
    out = attend_with_means(q, k, v, k_means, v_means, T)  # (B*T, h, c + S, d)
    return out_of_groups(out, grid, IN_FRAMES, C)  # (B, h, N, d)

# ==== SPACE-TIME MIXING: keys put together from channels of several frames ========================
def mix_frames(x, T, window=1, moved=0.5):
    """Replace channels of every frame by the same channels of the frames around it: the fraction
    `moved` in equal parts from the 2*window other frames, zeros from beyond the ends of the clip.
        k~_t = [ k_t+1 | k_t-1 | k_t . . . ]     window=1, moved=1/2: a quarter, a quarter, a half
    x (B*T, h, L, d), L tokens a frame -> the same shape"""
    assert window >= 0 and 0 <= moved <= 1, f"window={window}, moved={moved}"
    away = [sign * by for by in range(1, window + 1) for sign in (1, -1)]  # 1, -1, 2, -2, ...
    n, d = len(away), x.shape[-1]
    share = int(moved * d / max(n, 1) + 1e-6)  # channels from each frame; .58 * 100 is 57.99...
    assert share > 0 or moved == 0, f"moved={moved} of d={d} is no channel from each of {n} frames"
    frames = x.unflatten(0, (-1, T))  # (B, T, h, L, d)
    padded = F.pad(frames, (0, 0, 0, 0, 0, 0, window, window))  # (B, T + 2*window, h, L, d)
    parts = [*padded.split([share] * n + [d - n * share], dim=-1)]  # the last are those that stay
    mixed = [part[:, window + by :][:, :T] for part, by in zip(parts, [*away, 0])]
    return torch.cat(mixed, dim=-1).flatten(0, 1)  # (B*T, h, L, d)

def mixing_attention(q, k, v, grid, window=1, moved=0.5, summary=False):
    """Space attention, but keys and values hold channels of the 2*window frames around (#): so it
    imitates a temporal window without more keys. On a still clip the two agree, but for the frames
    at the ends. With `summary` the means of all frames, taken before mixing, join the keys.
        t=0     t=1     t=2     t=3
        ######  ######  ######  ......
        ######  ##Q###  ######  ......
        ######  ######  ######  ......
        ######  ######  ######  ......
    Class token A frame's is mixed like the patches; a clip's are copied into every frame first.
    Cost        2*T*(S + c)**2*D        without summary
    Source      https://arxiv.org/abs/2106.05968 eq. 9 and 10; temporal_shift.py:44
    Differs     Channels stand in another order than in eq. 9. The released models mix the joined
                channels of all heads, so that some heads move whole and others not at all.
    Copy with   attend, count_class_tokens, IN_FRAMES, into_groups, out_of_groups, mix_frames,
                frame_means, attend_with_means
    """
    T, C = grid[0], count_class_tokens(q, grid)
    q, k, v = (into_groups(x, grid, IN_FRAMES) for x in (q, k, v))  # each (B*T, h, c + S, d)
    k_mixed = mix_frames(k, T, window, moved)  # (B*T, h, c + S, d)
    v_mixed = mix_frames(v, T, window, moved)  # (B*T, h, c + S, d)
    if summary:  # as below, and the means of all frames are keys and values too
        k_means, v_means = frame_means(k, T, C), frame_means(v, T, C)  # each (B, h, T, d)
        out = attend_with_means(q, k_mixed, v_mixed, k_means, v_means, T)  # (B*T, h, c + S, d)
    else:
        # out_st = sum_s' softmax_s'(q_st . k~_s't / sqrt(d)) v~_s't
        out = attend(q, k_mixed, v_mixed)  # (B*T, h, c + S, d)
    return out_of_groups(out, grid, IN_FRAMES, C)  # (B, h, N, d)

# ==== HALF PRECISION: what the functions below do about it ========================================
def in_float32(function):
    """Run a function in float32 even under autocast: long sums, exp and inverses fail in half.
    Tensors given by position are raised; a float result gets the dtype of the first."""
    @functools.wraps(function)
    def raised(*args, **options):
        x, half = args[0], (torch.float16, torch.bfloat16)
        raised_args = [a.float() if torch.is_tensor(a) and a.dtype in half else a for a in args]
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            out = function(*raised_args, **options)  # (...)
        return out.to(x.dtype) if out.is_floating_point() else out  # as out
    return raised

# ==== POOLED: fewer keys, the means of neighbouring patches =======================================
@in_float32
def pool(x, grid, stride):
    """Means over n blocks of patches, smaller at the ends: (B, h, T*S, d) -> (B, h, n, d)."""
    T, H, W = grid
    block = [min(length, size) for length, size in zip(stride, grid)]
    clip = rearrange(x, "B h (T H W) d -> B (h d) T H W", T=T, H=H, W=W)  # (B, h*d, T, H, W)
    means = F.avg_pool3d(clip, block, ceil_mode=True).flatten(2)  # (B, h*d, n)
    return rearrange(means, "B (h d) n -> B h n d", h=x.shape[1])  # (B, h, n, d)

def unpool(x, grid, stride):
    """The reverse: every patch gets the token of its block, (B, h, n, d) -> (B, h, T*S, d)."""
    (T, H, W), (t, r, c) = grid, stride
    x = x.unflatten(2, [math.ceil(size / by) for size, by in zip(grid, stride)])  # (B, h, ..., d)
    x = repeat(x, "B h T H W d -> B h (T t) (H r) (W c) d", t=t, r=r, c=c)  # (B, h, ..., d)
    return x[:, :, :T, :H, :W].flatten(2, 4)  # (B, h, T*S, d)

def pooled_attention(q, k, v, grid, stride=(1, 2, 2), pool_queries=False):
    """Every patch attends to the whole clip at a lower resolution: to means over blocks of patches,
    marked # and - in turn. With pool_queries the queries are means too, and every patch of a block
    gets the block's result; the residual is not pooled, so that the patches still differ.
        t=0     t=1     t=2     t=3
        ##--##  ##--##  ##--##  ##--##
        ##--##  ##Q-##  ##--##  ##--##
        --##--  --##--  --##--  --##--
        --##--  --##--  --##--  --##--
    Class token They are not pooled.
    Cost        2*(C + T*S)*(C + T*S/4)*D        with the default stride, H and W even
    Cost, pool_queries  2*(C + T*S/4)**2*D
    Source      https://arxiv.org/abs/2104.11227 section 3.1, MViT
    Differs     MViT pools by a learned convolution and a norm, and its residual is pooled as well.
    Today       Hiera and SAM 2 pool queries between stages; MeMViT pools the keys of earlier clips
    Copy with   attend, count_class_tokens, in_float32, pool, unpool
    """
    C = count_class_tokens(q, grid)
    def pooled(x):
        return torch.cat([x[:, :, :C], pool(x[:, :, C:], grid, stride)], dim=2)  # (B, h, C + n, d)
    # out_i = sum_j softmax_j(q_i . k~_j / sqrt(d)) v~_j,   k~_j and v~_j: means over block j
    if not pool_queries:
        return attend(q, pooled(k), pooled(v))  # (B, h, N, d)
    out = attend(pooled(q), pooled(k), pooled(v))  # (B, h, C + n, d)
    patches = unpool(out[:, :, C:], grid, stride)  # (B, h, T*S, d)
    return torch.cat([out[:, :, :C], patches], dim=2)  # (B, h, N, d)

# ==== LINEAR: weights that are products, so that K^T V is computed first ==========================
@in_float32
def attend_linearly(q, k, v, eps=1e-6, rotation=nn.Identity()):
    """Attention with weights q_i . k_j instead of exp(q_i . k_j); q and k are never negative.
    q (..., I, M), k (..., J, M), v (..., J, e) -> (..., I, e). The sums over j are the same for all
    i. `rotation` turns q and k in the numerator alone: turned features can be negative (RoFormer).
    Cost        min((I + J)*M*e, I*J*(M + e)) + I*M
    """
    (I, M), (J, e) = q.shape[-2:], v.shape[-2:]
    total = q @ k.sum(dim=-2).unsqueeze(-1) + eps  # (..., I, 1)
    q, k = rotation(q), rotation(k)  # (..., I, M) and (..., J, M)
    if I * J * (M + e) < (I + J) * M * e:  # with few tokens, as along time, weights are cheaper
        return q @ k.transpose(-1, -2) @ v / total  # (..., I, e)
    # out_i = q_i (sum_j k_j^T v_j) / (q_i . sum_j k_j + eps)
    return q @ (k.transpose(-1, -2) @ v) / total  # (..., I, e)

def relu_features(x):
    """phi(x) = ReLU(x) + 1/sqrt(d): never negative, and never all zero."""
    return F.relu(x) + x.shape[-1] ** -0.5  # (..., d)

def linear_attention(q, k, v, grid):
    """Joint attention in linear time.
    Cost        2*(C + T*S)*d*D + (C + T*S)*D        with d tokens or more
    Source      https://arxiv.org/abs/2210.08164, LVT; linear_block_v2.py:287
    Differs     Everything of LVT here follows its released code.
    Today       SANA-Video, with rotary positions
    Copy with   count_class_tokens, in_float32, attend_linearly, relu_features
    """
    count_class_tokens(q, grid)  # only checks
    # out_i = phi(q_i) (sum_j phi(k_j)^T v_j) / (phi(q_i) . sum_j phi(k_j) + eps)
    return attend_linearly(relu_features(q), relu_features(k), v)  # (B, h, N, d)

# ==== PERFORMER: linear attention with random features that stand for the softmax =================
def orthogonal_projection(features, d):
    """Random directions (M, d), orthogonal in blocks of d, as long as Gaussian vectors."""
    # orthogonal_ draws uniform directions; a bare QR does not, as it leaves the signs open.
    blocks = [nn.init.orthogonal_(torch.empty(d, d)) for _ in range(math.ceil(features / d))]
    lengths = torch.randn(features, d).norm(dim=1, keepdim=True)  # (M, 1)
    return torch.cat(blocks)[:features] * lengths  # (M, d)

@in_float32
def favor_features(x, projection, axes, eps=1e-6):
    """Features phi > 0: on average phi(q) . phi(k) is exp(q . k / sqrt(d)), up to eps and a factor.
    x (..., I, d), projection (M, d) of rows w_m -> (..., I, M). `largest`, the maximum of w_m . x~
    over `axes`, keeps exp in range: one for each query (-1), one for all keys (-2, -1). The factor
    exp(-largest) is in numerator and denominator of attention and cancels, but for eps."""
    x = x * x.shape[-1] ** -0.25  # (..., I, d)
    projected = x @ projection.to(x.dtype).T  # (..., I, M)
    largest = projected.max(dim=-1, keepdim=True).values  # (..., I, 1)
    largest = largest.amax(axes, keepdim=True)  # (..., I or 1, 1)
    shift = x.square().sum(dim=-1, keepdim=True) / 2 + largest  # (..., I, 1)
    # phi(x)_m = (exp(w_m . x~ - |x~|^2 / 2 - largest) + eps) / sqrt(M),   x~ = x / d^(1/4)
    return ((projected - shift).exp() + eps) / math.sqrt(len(projection))  # (..., I, M)

def performer_attention(q, k, v, grid, projection):
    """Softmax attention estimated by random features. The estimate is noisy: for N=64 and d=32 the
    relative error with 32, 128, 512, 2048 and 8192 features is .12 .06 .03 .015 .008 if q and k
    have scale 1/4, and 1.7 1.4 1.2 1.1 .8 if they have scale 1 (answering zeros has error 1).
    Cost        4*(C + T*S)*M*D + (C + T*S)*h*M        with M >= d tokens or more
    Source      https://arxiv.org/abs/2009.14794 eq. 5; Motionformer's performer_helper.py:199
    Differs     Motionformer's code draws a new projection in every call, here it is a buffer.
    Copy with   count_class_tokens, in_float32, attend_linearly, favor_features,
                orthogonal_projection
    """
    count_class_tokens(q, grid)  # only checks
    q = favor_features(q, projection, -1)  # (B, h, N, M)
    k = favor_features(k, projection, (-2, -1))  # (B, h, N, M)
    # out_i = phi(q_i) (sum_j phi(k_j)^T v_j) / (phi(q_i) . sum_j phi(k_j))
    return attend_linearly(q, k, v, eps=0.0)  # (B, h, N, d)

class PerformerAttention(Attention):
    """performer_attention with `features` random features, drawn once.
    Copy with   Attention, performer_attention and theirs
    """
    def __init__(self, dim, heads, features=256, **shared):
        super().__init__(dim, heads, **shared)
        self.register_buffer("projection", orthogonal_projection(features, dim // heads))

    def mechanism(self, q, k, v, grid):
        fours = zip(*(x.split(4, dim=1) for x in (q, k, v)))  # four heads at a time save memory
        out = [performer_attention(*four, grid, self.projection) for four in fours]
        return torch.cat(out, dim=1)  # (B, h, N, d)

# ==== NYSTROM: two steps over segment means, with an inverse between ==============================
def segment_means(x, count, T=1):
    """Means of `count` segments of consecutive tokens, the first ones shorter by one if need be:
    x (B, h, N, d) -> (B, h, P, d). With T a segment runs through T frames first (Motionformer)."""
    x = rearrange(x, "B h (T S) d -> B h (S T) d", T=T)  # (B, h, N, d)
    L, longer = x.shape[2] // count, x.shape[2] % count  # `longer` segments have L + 1 tokens
    short, long = x.tensor_split([(count - longer) * L], dim=2)  # both (B, h, ..., d)
    short = reduce(short, "B h (n L) d -> B h n d", "mean", L=L)  # (B, h, count - longer, d)
    long = reduce(long, "B h (n L) d -> B h n d", "mean", L=L + 1)  # (B, h, longer, d)
    return torch.cat([short, long], dim=2)  # (B, h, P, d)

def iterative_inverse(A, iterations=6):
    """Nearly the pseudo-inverse of softmax matrices A (..., P, P), whose rows sum to 1."""
    identity = torch.eye(A.shape[-1], device=A.device, dtype=A.dtype)  # (P, P)
    # Z = A^T / (|A|_1 |A|_inf) at first;   |A|_1 is the largest column sum, |A|_inf = 1
    Z = A.transpose(-1, -2) / A.sum(dim=-2, keepdim=True).amax(dim=-1, keepdim=True)  # (..., P, P)
    for _ in range(iterations):
        AZ = A @ Z  # (..., P, P)
        # Z <- Z (13 - A Z (15 - A Z (7 - A Z))) / 4,   where a number is so many identities
        Z = Z @ (13 * identity - AZ @ (15 * identity - AZ @ (7 * identity - AZ))) / 4  # (..., P, P)
    return Z

@in_float32
def landmark_inverse(q_means, k_means, iterations):
    """softmax(Q~ K~^T / sqrt(d))^+ of mean queries Q~ and keys K~: (B, h, P, d) -> (B, h, P, P)."""
    return iterative_inverse(attention_weights(q_means, k_means), iterations)  # (B, h, P, P)

def nystrom_attention(q, k, v, grid, landmarks=128, iterations=6):
    """The softmax matrix from P columns (mean keys), P rows (mean queries) and their crossing.
    Rows of Q, K and V are tokens, those of Q~ and K~ means of `landmarks` segments of tokens; ^+ is
    a pseudo-inverse. With every token a landmark it becomes exact as iterations grow, since
    A A^+ A = A; 6 leave 3% for 64 tokens and 24% for 1,568, if q, k ~ N(0, 1) and d=64.
    Cost        4*(C + T*S)*P*D + 2*P**2*D + 24*h*P**3        with 6 iterations
    Source      https://arxiv.org/abs/2102.03902 eq. 13; Motionformer's nystrom_helper.py:35
    Differs     Nystromformer adds a convolution of v along the tokens, needs P to divide N, and its
                code divides by the largest |A|_1 of the batch, so that clips influence each other.
    Copy with   attend, attention_weights, count_class_tokens, in_float32, segment_means,
                iterative_inverse, landmark_inverse
    """
    count_class_tokens(q, grid)  # only checks
    P = min(landmarks, q.shape[2])
    q_means, k_means = segment_means(q, P), segment_means(k, P)  # each (B, h, P, d)
    inverse = landmark_inverse(q_means, k_means, iterations)  # (B, h, P, P)
    # Out = softmax(Q K~^T) softmax(Q~ K~^T)^+ (softmax(Q~ K^T) V),   all scores / sqrt(d)
    return attend(q, k_means, inverse @ attend(q_means, k, v))  # (B, h, N, d)

# ==== ORTHOFORMER: a few tokens stand for all, those that differ most =============================
def orthoformer_attention(q, k, v, grid, prototypes):
    """Attention in two steps, from the queries to P prototypes and from these to the keys.
    Prototypes p_l (B, h, P, d): see orthogonal_prototypes. Two softmaxes smooth twice: with every
    key a prototype it is exact only if each is clearly closest to itself. For 48 orthogonal keys of
    norm 4, 8, 12 and 16, d=64 and q ~ N(0, 1), the relative error is 0.4, 0.01, 6e-7 and 6e-13.
    Cost        4*(C + T*S)*P*D        beside choosing the prototypes
    Source      https://arxiv.org/abs/2106.05392 eq. 10; orthoformer_helper.py:69
    Copy with   attend, count_class_tokens, orthogonal_prototypes and theirs
    """
    count_class_tokens(q, grid)  # only checks
    # out_i = sum_l softmax_l(q_i . p_l / sqrt(d)) sum_j softmax_j(p_l . k_j / sqrt(d)) v_j
    return attend(q, prototypes, attend(prototypes, k, v))  # (B, h, N, d)

@in_float32
def most_orthogonal_subset(x, count):
    """Pick `count` vectors greedily, each as orthogonal as can be to those before it (algorithm 1).
    x (..., n, d) -> indices (..., P): the first vector, then always the one whose largest |cosine|
    to the picks so far is smallest. No gradient runs through the choice.
    Cost        n**2*d        for every leading index
    Differs     The paper starts from a random vector, this from the first.
    """
    assert count <= x.shape[-2], f"count={count} of {x.shape[-2]} vectors"
    x = F.normalize(x.detach(), dim=-1)  # (..., n, d)
    similarity = (x @ x.transpose(-1, -2)).abs()  # (..., n, n), |cosine|
    similarity.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)  # never the same twice
    closest = torch.zeros_like(similarity[..., :1, :])  # (..., 1, n), to the most similar pick
    picked = [torch.zeros_like(closest[..., :1], dtype=torch.long)]
    for _ in range(count - 1):
        newest = similarity.gather(-2, picked[-1].expand_as(closest))  # (..., 1, n)
        closest = torch.maximum(closest, newest)  # (..., 1, n)
        picked.append(closest.argmin(dim=-1, keepdim=True))
    return torch.cat(picked, dim=-1).squeeze(-2)  # (..., P)

def orthogonal_prototypes(q, k, count, oversample=3):
    """The most orthogonal of oversample * count queries and keys, evenly spaced in [q, k], from the
    first query on: q, k (B, h, N, d) -> (B, h, P, d).
    Differs     The paper draws these candidates at random, its code takes all queries and no keys.
    Copy with   most_orthogonal_subset, in_float32
    """
    tokens = torch.cat([q, k], dim=2)  # (B, h, 2*N, d)
    last, n = tokens.shape[2] - 1, min(oversample * count, tokens.shape[2])
    spaced = torch.linspace(0, last, n, device=q.device).round().long()  # (n,)
    candidates = tokens[:, :, spaced]  # (B, h, n, d)
    picked = most_orthogonal_subset(candidates, count)  # (B, h, P)
    return candidates.gather(2, picked.unsqueeze(3).expand(-1, -1, -1, q.shape[3]))  # (B, h, P, d)

class OrthoformerAttention(Attention):
    """orthoformer_attention; `choose(q, k, count)` gives the prototypes (B, h, P, d).
    Copy with   Attention, orthoformer_attention and theirs
    """
    def __init__(self, dim, heads, prototypes=128, choose=orthogonal_prototypes, **shared):
        super().__init__(dim, heads, **shared)
        self.count, self.choose = prototypes, choose

    def chosen(self, q, k):
        return self.choose(q, k, min(self.count, q.shape[2]))  # (B, h, P, d)

    def mechanism(self, q, k, v, grid):
        return orthoformer_attention(q, k, v, grid, self.chosen(q, k))  # (B, h, N, d)

# ==== TRAJECTORY: attend to every frame separately, then along the path that this gives ===========
# Objects move, so the same position in another frame may show another object.
def attend_per_frame(q, k, v, T, attention=attend):
    """First stage: what each query finds in each frame, its trajectory y~ of T tokens.
    q (B, h, I, d), k and v (B, h, T*L, d) -> (B, h, I, T, d); `attention` is inside a frame."""
    k, v = (rearrange(x, "B h (T L) d -> (B T) h L d", T=T) for x in (k, v))  # each (B*T, h, L, d)
    q = repeat(q, "B h I d -> (B T) h I d", T=T)  # (B*T, h, I, d)
    # y~_{st,t'} = sum_s' softmax_s'(q_st . k_s't' / sqrt(d)) v_s't'
    return rearrange(attention(q, k, v), "(B T) h I d -> B h I T d", T=T)  # (B, h, I, T, d)

def own_frame(y):
    """y~_{st,t}, what every patch found in its own frame: (B, h, T*S, T, d) -> (B, T*S, D)."""
    own = y.unflatten(2, (y.shape[3], -1)).diagonal(dim1=2, dim2=4)  # (B, h, S, d, T)
    return rearrange(own, "B h S d T -> B (T S) (h d)")  # (B, T*S, D)

def attend_along_trajectories(y, proj_q, proj_kv):
    """Second stage: every patch attends to the T tokens of its trajectory.
    y~ (B, h, T*S, T, d) -> (B, h, T*S, d). The layers are proj_q, D -> D, with the weights W_q, and
    proj_kv, D -> 2*D, with W_k above W_v."""
    h = y.shape[1]
    # q~_st = W_q y~_{st,t}
    q = rearrange(proj_q(own_frame(y)), "B N (h d) -> B h N 1 d", h=h)  # (B, h, T*S, 1, d)
    # k~_{st,t'} = W_k y~_{st,t'}  and  v~_{st,t'} = W_v y~_{st,t'}
    kv = proj_kv(rearrange(y, "B h N T d -> B N T (h d)"))  # (B, T*S, T, 2*D)
    k, v = rearrange(kv, "B N T (n h d) -> n B h N T d", n=2, h=h)  # each (B, h, T*S, T, d)
    # out_st = sum_t' softmax_t'(q~_st . k~_{st,t'} / sqrt(d)) v~_{st,t'}
    return attend(q, k, v).squeeze(3)  # (B, h, T*S, d)

def attend_along_trajectories_fast(y, proj_q, proj_kv):
    """The same, without projecting all T*S*T tokens; for layers that is_plain.
    q~ . (W_k y~) = (W_k^T q~) . y~, so the query is projected and not T keys; W_k's bias adds the
    same to all T scores and cancels. sum_t a_t (W_v y~_t + b_v) = W_v (sum_t a_t y~_t) + b_v, so
    one mean is projected and not T values."""
    h, d = y.shape[1], y.shape[4]
    W_k, W_v = rearrange(proj_kv.weight, "(n h d) D -> n h d D", n=2, h=h)  # each (h, d, D)
    q = proj_q(own_frame(y)).unflatten(2, (h, d)) / math.sqrt(d)  # (B, T*S, h, d)
    y = rearrange(y, "B h N T d -> B N T (h d)")  # (B, T*S, T, D)
    found = []
    for q_n, y_n in zip(q.chunk(2, dim=1), y.chunk(2, dim=1)):  # half of the patches at a time
        q_n = torch.einsum("BLhd,hdD->BLhD", q_n, W_k)  # (B, L, h, D), W_k^T q~
        mean = weights_along_trajectories(q_n, y_n) @ y_n  # (B, L, h, D), sum_t a_t y~_t
        found.append(torch.einsum("BLhD,hdD->BhLd", mean, W_v))  # (B, h, L, d)
    b_v = proj_kv.bias.view(2, h, 1, d)[1]  # (h, 1, d)
    return torch.cat(found, dim=2) + b_v  # (B, h, T*S, d)

@in_float32
def weights_along_trajectories(q, y):
    """softmax_t(q . y_t); q (B, L, h, D) is divided by sqrt(d) already, y (B, L, T, D)."""
    return (q @ y.transpose(-1, -2)).softmax(dim=-1)  # (B, L, h, T)

def trajectory_attention(q, k, v, grid, first_stage, second_stage, at_once=None):
    """Find each patch's trajectory, one token in each frame, then attend along it. A patch whose
    object is in one place in each frame attends to this path:
        t=0     t=1     t=2     t=3
        #.....  ......  ......  ......
        ......  ..Q...  ......  ......
        ......  ......  ....#.  ......
        ......  ......  ......  .....#
    first_stage(q, k, v, T) -> (B, h, T*S, T, d) is attend_per_frame or an approximation of it, and
    second_stage(y) -> (B, h, T*S, d) is attend_along_trajectories with its two layers. `at_once`
    positions of all frames at a time save memory; approximations need all queries, that is None.
    Class token They attend to all tokens and skip the second stage. No patch attends to them.
    Cost        2*(T*S)**2*D + 2*C*(C + T*S)*D + T*S*D**2 + 2*T*S*T*D**2 + 2*T*S*T*D
    Cost, fast  2*(T*S)**2*D + 2*C*(C + T*S)*D + 3*T*S*D**2 + 2*T*S*h*T*D
    Source      https://arxiv.org/abs/2106.05392 eq. 4 to 6; vit_helper.py:146
    Differs     The published weights were trained with a bug: the value of the second stage is y~,
                not W_v y~. Here that is W_v = identity, b_v = 0. The paper's approximations save
                memory where softmax weights are stored; with fused kernels they need more.
    Copy with   attend, count_class_tokens, attend_per_frame, own_frame, attend_along_trajectories
    """
    T, S, C = grid[0], grid[1] * grid[2], count_class_tokens(q, grid)
    class_token = attend(q[:, :, :C], k, v)  # (B, h, C, d)
    q, k, v = (x[:, :, C:] for x in (q, k, v))  # each (B, h, T*S, d)
    found = []
    for q_n in q.unflatten(2, (T, -1)).split(at_once or S, dim=3):  # (B, h, T, n, d)
        y = first_stage(q_n.flatten(2, 3), k, v, T)  # (B, h, T*n, T, d)
        found.append(second_stage(y).unflatten(2, (T, -1)))  # (B, h, T, n, d)
    out = torch.cat(found, dim=3).flatten(2, 3)  # (B, h, T*S, d)
    return torch.cat([class_token, out], dim=2)  # (B, h, N, d)

class TrajectoryAttention(Attention):
    """trajectory_attention with the two layers of its second stage.
    Copy with   Attention, trajectory_attention, is_plain, attend_along_trajectories_fast,
                weights_along_trajectories and theirs
    """
    def __init__(self, dim, heads, first_stage=attend_per_frame, at_once=None, **shared):
        super().__init__(dim, heads, **shared)
        assert at_once is None or first_stage is attend_per_frame, "an approximation takes all"
        self.find, self.at_once = first_stage, at_once
        self.proj_q = nn.Linear(dim, dim)
        self.proj_kv = nn.Linear(dim, 2 * dim)

    def first_stage(self, q, k, v, T):
        return self.find(q, k, v, T)  # (B, h, T*S, T, d)

    def second_stage(self, y):
        if is_plain(self.proj_kv):
            return attend_along_trajectories_fast(y, self.proj_q, self.proj_kv)  # (B, h, T*S, d)
        return attend_along_trajectories(y, self.proj_q, self.proj_kv)  # (B, h, T*S, d)

    def mechanism(self, q, k, v, grid):
        stages = self.first_stage, self.second_stage
        at_once = None if torch.compiler.is_compiling() else self.at_once  # or a large graph
        return trajectory_attention(q, k, v, grid, *stages, at_once)  # (B, h, N, d)

def is_plain(layer):
    """Whether a layer is x W^T + b and nothing else: no adapter, no quantised weight, no hook."""
    plain = type(layer) is nn.Linear and type(layer.weight) is type(layer.bias) is nn.Parameter
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(layer, name) for name in hooks) or "forward" in layer.__dict__
    return plain and not hooked

# Approximations of attend_per_frame; all frames share the landmarks, prototypes or projection.
def nystrom_per_frame(q, k, v, T, landmarks=128, iterations=6):
    """Y~_t = softmax(Q K~^T) softmax(Q~ K~^T)^+ (softmax(Q~ K_t^T) V_t): -> (B, h, T*S, T, d)."""
    P = min(landmarks, q.shape[2])
    q_means, k_means = segment_means(q, P, T), segment_means(k, P, T)  # each (B, h, P, d)
    inverse = landmark_inverse(q_means, k_means, iterations)  # (B, h, P, P)
    found = attend_per_frame(q_means, k, v, T).flatten(3)  # (B, h, P, T*d)
    return attend(q, k_means, inverse @ found).unflatten(3, (T, -1))  # (B, h, T*S, T, d)

def orthoformer_per_frame(q, k, v, T, prototypes):
    """y~_it' = sum_l softmax_l(q_i . p_l) sum_s' softmax_s'(p_l . k_s't') v_s't', scores / sqrt(d):
    -> (B, h, I, T, d). With I = T*S queries it is linear in S, but quadratic in T."""
    found = attend_per_frame(prototypes, k, v, T).flatten(3)  # (B, h, P, T*d)
    return attend(q, prototypes, found).unflatten(3, (T, -1))  # (B, h, I, T, d)

@in_float32
def performer_per_frame(q, k, v, T, projection):
    """y~_it' = phi(q_i) (sum_s' phi(k_s't')^T v_s't') / (phi(q_i) . sum_s' phi(k_s't'))."""
    q = favor_features(q, projection, -1)  # (B, h, I, M)
    k = favor_features(k, projection, (-2, -1)).unflatten(2, (T, -1))  # (B, h, T, S, M)
    total = torch.einsum("BhIM,BhTM->BhIT", q, k.sum(dim=3))  # (B, h, I, T)
    found = torch.einsum("BhTSM,BhTSd->BhMTd", k, v.unflatten(2, (T, -1)))  # (B, h, M, T, d)
    return torch.einsum("BhIM,BhMTd->BhITd", q, found) / total.unsqueeze(4)  # (B, h, I, T, d)

class OrthoformerTrajectoryAttention(TrajectoryAttention, OrthoformerAttention):
    """Prototypes that all frames share, or chosen in each frame (Motionformer's table 3d).
    Copy with   TrajectoryAttention, OrthoformerAttention, orthoformer_per_frame and theirs
    """
    def __init__(self, dim, heads, shared_prototypes=True, **shared):
        super().__init__(dim, heads, **shared)
        self.shared_prototypes = shared_prototypes

    def first_stage(self, q, k, v, T):
        if self.shared_prototypes:
            return orthoformer_per_frame(q, k, v, T, self.chosen(q, k))  # (B, h, T*S, T, d)
        apart, joined = "B h (T S) d -> (B T) h S d", "(B T) h P d -> B h (T P) d"
        q_t, k_t, v_t = (rearrange(x, apart, T=T) for x in (q, k, v))  # each (B*T, h, S, d)
        p = self.chosen(q_t, k_t)  # (B*T, h, P, d)
        found = attend(p, k_t, v_t)  # (B*T, h, P, d), of each prototype in its frame
        p, found = (rearrange(x, joined, T=T) for x in (p, found))  # each (B, h, T*P, d)
        return attend_per_frame(q, p, found, T)  # (B, h, T*S, T, d)

class PerformerTrajectoryAttention(TrajectoryAttention, PerformerAttention):
    # Copy with   TrajectoryAttention, PerformerAttention, performer_per_frame and theirs
    def first_stage(self, q, k, v, T):
        return performer_per_frame(q, k, v, T, self.projection)  # (B, h, T*S, T, d)

# ==== FEATURE FIXATION: a gate that says which features of q and k count ==========================
def fixation_gate(layer, q, k, v):
    """A gate in 0..1 for each feature: attention then takes gate * phi(q) and gate * phi(k).
    phi(q), phi(k) and v (B, h, N, d) -> (B, h, N, d). The layer, 3*d -> d, is shared by all heads.
    Cost        3*N*d*D
    Source      https://arxiv.org/abs/2210.08164; linear_block_v2.py:436
    """
    # gate = sigmoid(W_g [phi(q); phi(k); v] + b_g)
    return torch.sigmoid(layer(torch.cat([q, k, v], dim=-1)))  # (B, h, N, d)

# ==== NEIGHBOURHOOD ASSOCIATION: shift channels from neighbouring patches =========================
NEXT_AND_PREVIOUS = [(1, 0, 0), (-1, 0, 0)]  # (frames, rows, columns), for attention in space
EIGHT_AROUND = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1),  # for attention along time
                (0, -1, -1), (0, 1, 1), (0, -1, 1), (0, 1, -1)]  # fmt: skip

def shift_from_neighbours(x, grid, steps, share):
    """Replace channels of every patch by the same channels of its neighbours:
        x~_i = [ x_i+steps[0] | x_i+steps[1] | ... | x_i ],   i = (t, y, x), `share` channels each
    x (B, h, T*S, d) -> the same shape; channels are those of all heads joined. Beyond the border of
    the clip are zeros, in diagonal steps the patch's own channels, as in the released code.
    Source      https://arxiv.org/abs/2210.08164; temporal_shift.py:97
    """
    T, H, W = grid
    n = len(steps)
    clip = rearrange(x, "B h (T H W) d -> B T H W (h d)", T=T, H=H, W=W)  # (B, T, H, W, D)
    assert 0 < n * share <= clip.shape[4], f"{share} channels from each of {n} neighbours"
    def neighbour(x, t, r, c):
        padded = F.pad(x, (0, 0, 1, 1, 1, 1, 1, 1))  # (B, T + 2, H + 2, W + 2, share or 1)
        return padded[:, 1 + t :, 1 + r :, 1 + c :][:, :T, :H, :W]  # (B, T, H, W, share or 1)
    inside = torch.ones_like(clip[..., :1], dtype=torch.bool)  # (B, T, H, W, 1)
    parts = list(clip.split([share] * n + [clip.shape[4] - n * share], dim=4))  # the last one stays
    for i, (t, r, c) in enumerate(steps):
        own, parts[i] = parts[i], neighbour(parts[i], t, r, c)  # each (B, T, H, W, share)
        if r != 0 and c != 0:  # a diagonal step
            parts[i] = torch.where(neighbour(inside, t, r, c), parts[i], own)
    clip = torch.cat(parts, dim=4)  # (B, T, H, W, D)
    return rearrange(clip, "B T H W (h d) -> B h (T H W) d", h=x.shape[1])  # (B, h, T*S, d)

# ==== LVT: linear attention along an axis, with fixation and neighbours ===========================
class LinearAttention(Attention):
    """Linear attention along an axis, with LVT's additions.
    axis        "joint" (all tokens), "space" (inside each frame) or "time" (same position)
    fixation    gate the features of q and k, see fixation_gate
    neighbours  half of the channels of k and v come from patches that the axis does not reach: in
                the next and previous frame (space), the eight around (time); without class tokens
    Copy with   Attention, time_attention, space_attention, relu_features, attend_linearly,
                fixation_gate, shift_from_neighbours, NEXT_AND_PREVIOUS, EIGHT_AROUND and theirs
    """
    def __init__(self, dim, heads, axis="joint", fixation=False, neighbours=False, rotary=None,
                 **shared):
        super().__init__(dim, heads, skips_class_token=axis == "time", **shared)
        assert axis in ("joint", "space", "time"), f"axis={axis!r}"
        assert axis != "joint" or not neighbours, "joint attention reaches all neighbours itself"
        self.steps = EIGHT_AROUND if axis == "time" else NEXT_AND_PREVIOUS
        self.axis, self.neighbours = axis, neighbours
        self.gate_q = nn.Linear(3 * dim // heads, dim // heads) if fixation else None  # for k, too
        self.base = rotary  # not for Attention: the features are turned, not q and k

    def attend_features(self, q, k, v, grid):
        """phi, gate and rotation; the tokens are those of the clip, or of one group of it."""
        q, k = relu_features(q), relu_features(k)  # each (..., d)
        if self.gate_q is not None:
            gate = fixation_gate(self.gate_q, q, k, v)  # (..., d)
            q, k = gate * q, gate * k  # each (..., d)
        if self.base is None:
            return attend_linearly(q, k, v)  # (..., d)
        rotation = functools.partial(rotate, grid=grid, base=self.base)
        return attend_linearly(q, k, v, rotation=rotation)  # (..., d)

    def mechanism(self, q, k, v, grid):
        T, H, W = grid
        if self.neighbours:
            share = q.shape[1] * q.shape[3] // 2 // len(self.steps)
            k = shift_from_neighbours(k, grid, self.steps, share)  # (B, h, T*S, d)
            v = shift_from_neighbours(v, grid, self.steps, share)  # (B, h, T*S, d)
        if self.axis == "joint":
            return self.attend_features(q, k, v, grid)  # (B, h, N, d)
        along = time_attention if self.axis == "time" else space_attention
        group = (T, 1, 1) if self.axis == "time" else (1, H, W)  # the grid of one group
        attention = functools.partial(self.attend_features, grid=group)
        return along(q, k, v, grid, attention)  # (B, h, N, d)

# ==== ROTARY POSITIONS: q and k turned, so that scores depend on where they are ===================
@in_float32
def rotate(x, grid, base=10_000):
    """Turn pairs of channels of queries or keys by angles that grow with the position (t, y, x):
    x (B, h, C + T*S, d) -> the same shape. Of d channels 2*(d//6) belong to y, as many to x, and
    the rest to t. Pair i of the `width` channels of an axis is turned by the angle position /
    base^(2i / width). Of two positions only the difference enters the score. Values are not turned.
    Class token They are not turned, so that their scores depend on where a patch is.
    Source      https://arxiv.org/abs/2104.09864 (RoFormer); Wan-Video/Wan2.1, wan/modules/model.py
    Today       Wan 2.1; V-JEPA 2 and Qwen2-VL, which divide the channels in other ways
    Copy with   in_float32, count_class_tokens
    """
    C, d = count_class_tokens(x, grid), x.shape[-1]
    side = 2 * (d // 6)  # channels of y, and of x
    assert side > 0 and d % 2 == 0, f"{d} channels a head, must be even and 6 or more"
    axes = (torch.arange(n, dtype=x.dtype, device=x.device) for n in grid)
    positions = torch.cartesian_prod(*axes)  # (T*S, 3), the t, y and x of every patch
    by_axis = []
    for axis, width in enumerate((d - 2 * side, side, side)):
        pair = torch.arange(0, width, 2, dtype=x.dtype, device=x.device)  # (width/2,), 2i
        by_axis.append(positions[:, axis, None] / base ** (pair / width))
    angles = F.pad(torch.cat(by_axis, dim=1), (0, 0, C, 0))  # (N, d/2), 0 for class tokens
    cos, sin = angles.cos(), angles.sin()  # each (N, d/2)
    a, b = x[..., 0::2], x[..., 1::2]  # each (B, h, N, d/2), the two channels of every pair
    # (a, b) -> (a cos - b sin, a sin + b cos)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)  # (B, h, N, d)

# ==== REGISTRY: a scheme is a short list of steps, each with weights of its own ===================
def step(mechanism, **options):
    """A recipe for a step: step(window_attention, window=2)(dim, heads, **shared) is the module.
    `mechanism` is a function or a subclass of Attention. Its options win over the shared ones."""
    return functools.partial(make_step, mechanism, options)

def make_step(mechanism, options, dim, heads, **shared):
    if isinstance(mechanism, type):
        return mechanism(dim, heads, **shared | options)
    return Attention(dim, heads, mechanism, **shared | options)

# Your own scheme is your own row: ATTENTION["mine"] = [step(window_attention, window=2)]; and if a
# clip's class token would connect frames that should not meet, CLASS_TOKEN["mine"] = "frame".
ATTENTION = {
    "space": [step(space_attention)],
    "joint": [step(joint_attention)],
    "divided": [step(time_attention, skips_class_token=True, zero_init="extra"),
                step(space_attention)],
    "local_global": [step(local_attention, zero_init="extra"), step(global_attention)],
    "axial": [step(time_attention, skips_class_token=True, zero_init="extra"),
              step(width_attention, zero_init="extra"), step(height_attention)],
    "factorised": [step(space_attention),  # ViViT, model 3
                   step(time_attention, skips_class_token=True, zero_init="proj")],
    "factorised_heads": [step(factorised_heads_attention)],  # ViViT, model 4
    "window": [step(window_attention)],
    "shifted_windows": [step(shifted_window_attention),
                        step(shifted_window_attention, displaced=True)],
    "pooled": [step(pooled_attention)],
    "pooled_queries": [step(pooled_attention, pool_queries=True)],
    "mixing": [step(mixing_attention)],
    "summary": [step(summary_attention)],
    "mixing_summary": [step(mixing_attention, summary=True)],
    "trajectory": [step(TrajectoryAttention, at_once=14)],
    "trajectory_orthoformer": [step(OrthoformerTrajectoryAttention)],
    "trajectory_nystrom": [step(TrajectoryAttention, first_stage=nystrom_per_frame)],
    "trajectory_performer": [step(PerformerTrajectoryAttention)],
    "orthoformer": [step(OrthoformerAttention)],
    "nystrom": [step(nystrom_attention)],
    "performer": [step(PerformerAttention)],
    "linear": [step(LinearAttention)],
    "linear_fixation": [step(LinearAttention, fixation=True)],
    "lvt": [step(LinearAttention, axis="time", fixation=True, neighbours=True),
            step(LinearAttention, axis="space", fixation=True, neighbours=True)],
}
# The class token of a scheme when a model names none; "clip" if it is not here. One shared by all
# frames would connect them where a paper limits that, and ViViT, Video Swin and LVT have none.
CLASS_TOKEN = {"space": "frame", "window": "frame", "mixing": "frame", "summary": "frame",
               "mixing_summary": "frame", "factorised": "none", "factorised_heads": "none",
               "shifted_windows": "none", "lvt": "none"}

# ==== TOKENS: pixels to patches, and position embeddings ==========================================
def as_sizes(size):
    """An int p -> (1, p, p), a pair (rows, columns) -> (1, rows, columns), a triple as it is."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    return (1, *size) if len(size) == 2 else size

class PatchEmbedding(nn.Module):
    """Cut a clip into patches of (frames, rows, columns) pixels and project each to D numbers.
    video (B, channels, frames, height, width) -> tokens (B, T*S, D) and their grid (T, H, W).
    Patches of several frames are tubelets (ViViT, Motionformer); a stride makes overlaps (LVT)."""
    def __init__(self, patch_size, dim, channels=3, stride=None):
        super().__init__()
        size, self.overlap = as_sizes(patch_size), stride is not None
        padding = [n // 2 for n in size] if self.overlap else 0
        stride = as_sizes(stride) if self.overlap else size
        assert all(by <= length for by, length in zip(stride, size)), f"stride {stride} leaves gaps"
        self.proj = nn.Conv3d(channels, dim, size, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim) if self.overlap else nn.Identity()

    def grid(self, sizes):
        """The grid (T, H, W) of a video of (frames, height, width)."""
        size, stride, padding = self.proj.kernel_size, self.proj.stride, self.proj.padding
        whole = all(n % length == 0 for n, length in zip(sizes, size))
        assert whole or self.overlap, f"video {tuple(sizes)} does not divide into patches {size}"
        axes = zip(sizes, size, stride, padding)
        return tuple((n + 2 * pad - length) // by + 1 for n, length, by, pad in axes)

    def forward(self, video):
        channels = self.proj.in_channels
        assert video.shape[1] == channels, f"{video.shape[1]} channels: video.transpose(1, 2)?"
        assert video.is_floating_point(), "uint8: tiny_data.pretrained.clips.views makes a video"
        grid = self.grid(video.shape[2:])
        x = rearrange(self.proj(video), "B D T H W -> B (T H W) D")  # (B, T*S, D)
        return self.norm(x), grid  # (B, T*S, D) and its grid

def resize_positions(table, old, new):
    """Interpolate positions (1, prod(old), D) -> (1, prod(new), D), as Motionformer does."""
    if tuple(old) == tuple(new):
        return table
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(new)]
    table = table.transpose(1, 2).unflatten(2, old)  # (1, D, *old)
    table = F.interpolate(table, size=tuple(new), mode=mode)  # (1, D, *new)
    return table.flatten(2).transpose(1, 2)  # (1, prod(new), D)

class PositionEmbedding(nn.Module):
    """Learned position embeddings, added to the tokens: x (B, C + T*S, D) -> the same shape.
    kind        "none"      no embeddings
                "rotary"    none here, but every step turns its queries and keys, see rotate
                "space"     one for every position in a frame
                "time"      one for every frame, zero at first, as image checkpoints lack it (LVT)
                "separate"  both
                "joint"     one for every position in the clip
    grid        (T, H, W) of the embeddings; in a call with another grid they are interpolated
    class_token has an embedding of its own if the kind has one in space; one per frame also gets
                its frame's (X-ViT), one per clip does not (TimeSformer)
    """
    def __init__(self, kind, grid, dim, class_token):
        super().__init__()
        kinds = ("none", "rotary", "space", "time", "separate", "joint")
        assert kind in kinds, f"position={kind!r}"
        assert class_token in ("clip", "frame", "none"), f"class_token={class_token!r}"
        self.grid, self.per_frame = tuple(grid), class_token == "frame"
        T, H, W = grid
        def table(n, used, std=0.02):
            return nn.Parameter(std * torch.randn(1, n, dim)) if used else None
        in_space = kind in ("space", "separate", "joint")
        self.for_class = table(1, in_space and class_token != "none")
        self.space = table(H * W, kind in ("space", "separate"))
        self.time = table(T, kind in ("time", "separate"), std=0.0)
        self.joint = table(T * H * W, kind == "joint")

    def forward(self, x, grid):
        T, H, W = grid
        C = count_class_tokens(x, grid)
        class_token, patches = x[:, :C], x[:, C:]  # (B, C, D) and (B, T*S, D)
        if self.for_class is not None:
            class_token = class_token + self.for_class  # (B, C, D)
        if self.space is not None:
            space = resize_positions(self.space, self.grid[1:], (H, W))  # (1, S, D)
            patches = patches + space.repeat(1, T, 1)  # (B, T*S, D)
        if self.time is not None:
            time = resize_positions(self.time, self.grid[:1], (T,))  # (1, T, D)
            patches = patches + time.repeat_interleave(H * W, dim=1)  # (B, T*S, D)
            class_token = class_token + time if self.per_frame else class_token  # (B, C, D)
        if self.joint is not None:
            patches = patches + resize_positions(self.joint, self.grid, grid)  # (B, T*S, D)
        return torch.cat([class_token, patches], dim=1)  # (B, C + T*S, D)

# ==== BLOCKS: the steps of a scheme and an MLP, each with a residual ==============================
class StochasticDepth(nn.Dropout):
    """In training, drop a clip's branch x (B, ...) with probability p and scale up the others."""
    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        keep = x.new_ones(x.shape[:1] + (1,) * (x.ndim - 1))  # (B, 1, ...)
        return x * super().forward(keep)  # (B, ...); dropout makes a one 0 or 1 / (1 - p)

class MLP(nn.Module):
    """Every token by itself, x (B, N, D) -> (B, N, D). With depthwise, hidden channels also see the
    eight patches around (LVT; class_token="none")."""
    def __init__(self, dim, hidden, dropout=0.0, depthwise=False, gelu="none"):
        super().__init__()
        assert hidden > 0, f"an MLP of width {hidden}: mlp_ratio is too small"
        self.fc1 = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden) if depthwise else None
        self.gelu = nn.GELU(approximate=gelu)  # "none" is the exact one
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, grid):
        T, H, W = grid
        x = self.fc1(x)  # (B, N, hidden)
        if self.depthwise is not None:
            x = rearrange(x, "B (T H W) e -> (B T) e H W", T=T, H=H, W=W)  # (B*T, hidden, H, W)
            x = rearrange(self.depthwise(x), "(B T) e H W -> B (T H W) e", T=T)  # (B, N, hidden)
        x = self.dropout(self.gelu(x))  # (B, N, hidden)
        return self.dropout(self.fc2(x))  # (B, N, D)

class Block(nn.Module):
    """x = x + step(norm(x)) for each step of the scheme, then x = x + mlp(norm(x)); x (B, N, D)."""
    def __init__(self, dim, steps, mlp, drop_path=0.0, eps=1e-6):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for _ in self.steps)
        self.mlp = mlp
        self.mlp_norm = nn.LayerNorm(dim, eps=eps)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x, grid):
        for norm, attention in zip(self.norms, self.steps):
            x = x + self.drop_path(attention(norm(x), grid))  # (B, N, D)
        return x + self.drop_path(self.mlp(self.mlp_norm(x), grid))  # (B, N, D)

# ==== HEADS: tokens to classes ====================================================================
class TemporalAttentionHead(nn.Module):
    """A new class token and the T frames in `depth` more transformer layers: x (B, T, D) -> (B, D).
    Without `frames` it is X-ViT's temporal attention: no positions, no qkv biases, no last norm.
    Its paper has one query, linear in T; its code, as here, has all 1 + T. With `frames` it has
    positions for so many, biases and a norm: the temporal encoder of ViViT's model 2."""
    def __init__(self, dim, heads, depth=1, frames=None):
        super().__init__()
        assert depth > 0, f"head_depth={depth}"
        encoder = frames is not None
        eps = 1e-6 if encoder else 1e-5  # ViViT's and X-ViT's
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + frames, dim)) if encoder else None
        self.norm = nn.LayerNorm(dim, eps=eps) if encoder else nn.Identity()
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            attention = Attention(dim, heads, joint_attention, qkv_bias=encoder)
            self.blocks.append(Block(dim, [attention], MLP(dim, 4 * dim), eps=eps))

    def forward(self, x):
        B, T, D = x.shape
        x = torch.cat([self.class_token.expand(B, 1, D), x], dim=1)  # (B, 1 + T, D)
        if self.position is not None:
            own, frames = self.position.tensor_split([1], dim=1)  # (1, 1, D) and (1, frames, D)
            frames = resize_positions(frames, (frames.shape[1],), (T,))  # (1, T, D)
            x = x + torch.cat([own, frames], dim=1)  # (B, 1 + T, D)
        for block in self.blocks:
            x = block(x, (T, 1, 1))  # (B, 1 + T, D), T frames of one patch
        return self.norm(x)[:, 0]  # (B, D)

class Head(nn.Module):
    """Classify a clip: pooled features (B, D), or (B, T, D) with a temporal head -> logits.
    mlp         None        a linear layer (TimeSformer's code; its paper has a hidden layer)
                "tanh"      linear, tanh, linear (Motionformer)
                "gelu"      norm, linear, GELU, dropout, linear (X-ViT, LVT)
    """
    def __init__(self, dim, num_classes, mlp=None, hidden=None, dropout=0.0, temporal=None):
        super().__init__()
        assert mlp or not hidden, f"head_hidden={hidden} needs a head_mlp"
        first = nn.Linear(dim, hidden or dim)
        layers = {None: [], "tanh": [first, nn.Tanh()],
                  "gelu": [nn.LayerNorm(dim), first, nn.GELU(), nn.Dropout(dropout)]}
        self.temporal, self.norm = temporal, nn.Identity()  # see norm_after_pool
        self.classify = nn.Identity()
        if num_classes > 0:
            self.classify = nn.Sequential(*layers[mlp], nn.Linear(hidden or dim, num_classes))

    def forward(self, x):
        if self.temporal is not None:
            x = self.temporal(x)  # (B, D)
        return self.classify(self.norm(x))  # (B, num_classes)

# ==== BACKBONE ====================================================================================
class VideoTransformer(nn.Module):
    """Patches, positions, blocks and a head: the vision transformer with attention over video.
    model(video) with video (B, channels, frames, height, width) -> logits (B, num_classes)
    model.forward_features(video) -> tokens (B, C + T*S, D), normed unless norm_after_pool
    model.feature_maps(video) -> patches (B, T, H, W, D) and class tokens (B, C, D)
    model with num_classes=0, or with model.head = nn.Identity() -> pooled features (B, D)
    VideoTransformer(**model.config) -> a new model of the same form; config is JSON

    attention   a name in ATTENTION, or a list of names, one for each block
    num_frames  frames of a video, and image_size its height and width, for position embeddings
    patch_size  an int, (rows, columns) or (frames, rows, columns); patch_stride makes them overlap
    position    a kind of PositionEmbedding. From scratch "rotary" learns and tables may not start;
                image weights and all released ones come with tables
                Linear layers start as torch makes them: at D=768 with the usual deviation of .02
    registers   learned tokens of the clip, after its class token (DINOv2 has four)
    class_token "clip", "frame" or "none"; left out, by CLASS_TOKEN if the blocks agree, or "clip"
    head        "class" (class tokens, averaged), "mean" (patches, averaged), "temporal" (head_depth
                more layers over the frames' class tokens or means) or "encoder" (the same as a
                transformer of its own, see TemporalAttentionHead); left out, "class" if there are
                class tokens, else "mean". head_mlp, head_hidden: see Head
    dropout     after the embedding, the output projections, in the MLPs and in a "gelu" head
    drop_path   stochastic depth, from 0 in the first block to this in the last
    depthwise   a convolution in the MLP tells positions apart; gelu: "tanh" approximates (ViViT)
    norm_after_pool  the last norm comes after pooling (TimeSformer's released space-only models)
    checkpoint  in training keep only what enters a block and compute the rest again for gradients
    """
    def __init__(self, attention="divided", num_classes=400, num_frames=8, image_size=224,
                 patch_size=16, dim=768, depth=12, heads=12, mlp_ratio=4.0, position="rotary",
                 class_token=None, head=None, head_mlp=None, head_hidden=None, head_depth=1,
                 dropout=0.0, drop_path=0.0, patch_stride=None, depthwise=False, gelu="none",
                 norm_after_pool=False, registers=0, channels=3, checkpoint=False):
        # The first line, as it takes the arguments as they are given.
        config = {name: x for name, x in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config, self.checkpoint = config, checkpoint
        schemes = [attention] * depth if isinstance(attention, str) else attention
        assert len(schemes) == depth, f"{len(schemes)} names in attention for depth={depth}"
        if class_token is None:
            wanted = {CLASS_TOKEN.get(scheme, "clip") for scheme in schemes}
            class_token = wanted.pop() if len(wanted) == 1 else "clip"
        self.head_kind = head or ("mean" if class_token == "none" else "class")
        assert self.head_kind in ("class", "mean", "temporal", "encoder"), f"head={head!r}"
        assert self.head_kind != "class" or class_token != "none", "head='class' needs class tokens"
        self.patches = PatchEmbedding(patch_size, dim, channels, patch_stride)
        assert as_sizes(image_size)[0] == 1, f"image_size={image_size}: height and width"
        grid = self.patches.grid((num_frames, *as_sizes(image_size)[1:]))
        self.position = PositionEmbedding(position, grid, dim, class_token)
        token = nn.Parameter(0.02 * torch.randn(1, 1, dim))  # (1, 1, D)
        self.class_token = None if class_token == "none" else token
        assert registers == 0 or class_token != "frame", "registers are tokens of the whole clip"
        token = nn.Parameter(0.02 * torch.randn(1, registers, dim))  # (1, registers, D)
        self.registers = token if registers > 0 else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        shared = {"dropout": dropout, "rotary": 10_000 if position == "rotary" else None}
        for i, scheme in enumerate(schemes):
            steps = [make(dim, heads, **shared) for make in ATTENTION[scheme]]
            mlp = MLP(dim, round(dim * mlp_ratio), dropout, depthwise, gelu)
            self.blocks.append(Block(dim, steps, mlp, drop_path * i / max(depth - 1, 1)))
        temporal = None
        if self.head_kind in ("temporal", "encoder"):
            frames = grid[0] if self.head_kind == "encoder" else None
            temporal = TemporalAttentionHead(dim, heads, head_depth, frames)
        assert head_depth == 1 or temporal, f"head_depth={head_depth} is for a temporal head"
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = Head(dim, num_classes, head_mlp, head_hidden, dropout, temporal)
        if norm_after_pool:
            self.head.norm, self.norm = self.norm, nn.Identity()

    def forward_features(self, video):
        x, grid = self.patches(video)  # (B, T*S, D)
        if self.class_token is not None:
            C = grid[0] if self.position.per_frame else 1
            x = torch.cat([self.class_token.expand(x.shape[0], C, -1), x], dim=1)  # (B, C + T*S, D)
        x = self.dropout(self.position(x, grid))  # (B, C + T*S, D)
        if self.registers is not None:
            own, patches = x.tensor_split([x.shape[1] - math.prod(grid)], dim=1)  # (B, ..., D)
            registers = self.registers.expand(x.shape[0], -1, -1)  # (B, registers, D)
            own = torch.cat([own, registers], dim=1)  # (B, C + registers, D)
            assert own.shape[1] != grid[0], f"{grid[0]} class tokens would be one a frame"
            x = torch.cat([own, patches], dim=1)  # (B, N, D)
        for block in self.blocks:
            if self.checkpoint and self.training:
                x = checkpoint(block, x, grid, use_reentrant=False)  # (B, N, D)
            else:
                x = block(x, grid)  # (B, N, D)
        return self.norm(x)  # (B, N, D)

    def feature_maps(self, video):
        """The tokens apart: patches (B, T, H, W, D), and class tokens, then registers (B, C, D)."""
        x, grid = self.forward_features(video), self.patches.grid(video.shape[2:])  # (B, N, D)
        C = count_class_tokens(x, grid)
        return x[:, C:].unflatten(1, grid), x[:, :C]  # (B, T, H, W, D) and (B, C, D)

    def pooled(self, x, grid):
        """Tokens (B, C + T*S, D) -> (B, D), or (B, T, D) for a temporal head."""
        C = count_class_tokens(x, grid)
        if self.head_kind == "class":
            return x[:, : C - self.config["registers"]].mean(dim=1)  # (B, D)
        if self.head_kind == "mean":
            return x[:, C:].mean(dim=1)  # (B, D)
        if self.position.per_frame:
            return x[:, :C]  # (B, T, D)
        return reduce(x[:, C:], "B (T S) D -> B T D", "mean", T=grid[0])  # (B, T, D)

    def forward(self, video):
        grid = self.patches.grid(video.shape[2:])
        return self.head(self.pooled(self.forward_features(video), grid))  # (B, num_classes)
