"""How video transformers attend: every mechanism of five papers and the full backbone, in one file to read.

A clip becomes a grid of patch tokens, and attention must decide which of them look at which. Looking at all
of them costs the square of their number, so every paper here answers one question: who may see whom?

NOTATION    the same letters everywhere, in shapes, in einops patterns and in formulas
    B   clips in the batch                      D   width of a token
    T   frames after tokenisation               h   heads
    H   rows of the patch grid                  d   width of a head, d = D / h
    W   columns of the patch grid               C   class tokens: 0, 1, or T (one per frame)
    S   patches in a frame, S = H * W           K   classes
    N   tokens, N = C + T * S                   grid   the triple (T, H, W)

    A video is (B, channels, frames, height, width). Tokens are (B, C + T*S, D): the class tokens first, then
    the patches frame by frame and row by row, so that patch (t, y, x) is number C + t*S + y*W + x.
    T, H and W belong to the call: a model built for 8 frames of 14 x 14 patches also runs 5 frames of 9 x 13.
    Costs are multiply-accumulates for one clip (B = 1). A comment  # (B, h, N, d)  is the shape just made.

SKELETON    each mechanism is
    1. a pure function on q, k, v (B, h, N, d), projected and split into heads, and the grid (T, H, W);
    2. a module around it that holds the projections: module(x, (T, H, W)) with x (B, C + T*S, D).
    In a picture, Q is the patch that asks and # is a patch that it sees, over four frames of 4 x 6 patches.

CONTENTS    search for the words on the left
    SOFTMAX ATTENTION       attend
    CLASS TOKENS AND GROUPS count_class_tokens, attend_within_frames, attend_in_boxes
    PROJECTIONS             Attention, the module that every mechanism fills in
    SPACE                   space_attention              TimeSformer (S)
    JOINT SPACE-TIME        joint_attention              TimeSformer (ST), ViViT model 1
    DIVIDED                 time_attention, then space   TimeSformer (T+S)
    SPARSE LOCAL-GLOBAL     local_attention, global_attention   TimeSformer (L+G)
    AXIAL                   time, width_attention, height_attention   TimeSformer (T+W+H)
    THE TABLE               ATTENTION: a scheme is a list of steps
    TOKENS                  PatchEmbedding, PositionEmbedding
    BLOCK                   StochasticDepth, MLP, Block
    THE BACKBONE            VideoTransformer, preset

PAPERS
    TimeSformer  "Is Space-Time Attention All You Need for Video Understanding?"  arXiv 2102.05095
    ViViT        "ViViT: A Video Vision Transformer"                              arXiv 2103.15691
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, reduce, repeat

# ============================================================================================================
# SOFTMAX ATTENTION
# ============================================================================================================


def attend(q, k, v, return_weights=False):
    """Exact softmax attention: every query takes a weighted mean of the values.

        out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j                     (TimeSformer, equations 5 and 7)

    q (..., I, d), k (..., J, d), v (..., J, d) -> (..., I, d); the leading axes are attended independently.
    With return_weights also the weights (..., I, J), by the readable path; without, torch's fused kernel
    computes the same numbers and never stores the I x J table.

    Cost    2*I*J*d
    """
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"attend needs q (..., I, d), k (..., J, d) and v (..., J, d), "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if not return_weights:
        return F.scaled_dot_product_attention(q, k, v)
    scores = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(q.shape[-1])
    weights = scores.softmax(dim=-1)
    return torch.einsum("...ij,...jd->...id", weights, v), weights


# ============================================================================================================
# CLASS TOKENS AND GROUPS      most mechanisms are exact attention, but inside small groups of patches
# ============================================================================================================


def count_class_tokens(x, grid):
    """C, how many class tokens stand before the T*H*W patches of x (..., C + T*S, d): 0, 1 or one per frame.

    Raises ValueError when x does not fit the grid (T, H, W).
    """
    T, H, W = grid
    C = x.shape[-2] - T * H * W
    if C not in (0, 1, T):
        raise ValueError(
            f"{x.shape[-2]} tokens do not fit the grid T={T}, H={H}, W={W}: expected {T * H * W} patches "
            f"after 0, 1 or {T} class tokens; the grid counts patches, not pixels"
        )
    return C


def attend_within_frames(q, k, v, grid, pattern, kernel=F.scaled_dot_product_attention):
    """Attention inside groups of patches of one frame, `pattern` saying in einops what a group is.

    q, k, v (B, h, C + T*S, d) -> the same shape. "B h (T H W) d -> (B T H) h W d" makes every row a group.
    A class token joins every group of its frame, and what it becomes is the mean of what its copies found; a
    clip's only class token is copied into every frame in this way. `kernel` attends inside the groups.
    """
    T, H, W = grid
    B, h, N, d = q.shape
    C = N - T * H * W
    if C not in (0, 1, T):
        raise ValueError(f"{N} tokens are not the grid's {T}*{H}*{W} patches after 0, 1 or {T} class tokens")
    groups = []
    for x in (q, k, v):
        group = rearrange(x[:, :, C:], pattern, T=T, H=H, W=W)
        L = group.shape[2]
        n = H * W // L  # groups in a frame
        if C > 0:
            class_token = x[:, :, :C].expand(B, h, T, d)  # (B, h, T, d)
            class_token = repeat(class_token, "B h T d -> (B T n) h 1 d", n=n)  # (B*T*n, h, 1, d)
            group = torch.cat([class_token, group], dim=2)  # (B*T*n, h, 1 + L, d)
        groups.append(group)
    out = kernel(*groups)
    patches_to_groups = pattern.split(" -> ")
    patches = rearrange(out[:, :, min(C, 1) :], " -> ".join(reversed(patches_to_groups)), T=T, H=H, W=W)
    if C == 0:
        return patches  # (B, h, N, d)
    class_token = reduce(out[:, :, :1], "(B T n) h 1 d -> B h T d", "mean", T=T, n=n)  # (B, h, T, d)
    if C == 1:
        class_token = class_token.mean(dim=2, keepdim=True)  # (B, h, 1, d)
    return torch.cat([class_token, patches], dim=2)  # (B, h, N, d)


def attend_in_boxes(q, k, v, grid, boxes):
    """Attention inside boxes, each a triple of slices over frames, rows and columns, that tile the clip.

    q, k, v (B, h, C + T*S, d) -> the same shape. Boxes may differ in size, so an odd grid needs no padding.
    The class tokens join every box, and what they become is the mean of what they found.
    """
    N = q.shape[2]
    C = count_class_tokens(q, grid)
    number = torch.arange(N, device=q.device)  # (N,)
    place = number[C:].view(grid)  # (T, H, W): the number of each patch
    boxes = [place[box].flatten() for box in boxes]
    boxes = [box for box in boxes if len(box) > 0]  # an axis of length one has no second half
    found = []
    for box in boxes:
        tokens = torch.cat([number[:C], box])  # (C + len(box),)
        found.append(F.scaled_dot_product_attention(q[:, :, tokens], k[:, :, tokens], v[:, :, tokens]))
    class_tokens = torch.stack([x[:, :, :C] for x in found]).mean(dim=0)  # (B, h, C, d)
    patches = torch.cat([x[:, :, C:] for x in found], dim=2)  # (B, h, N - C, d): box after box
    patches = patches[:, :, torch.cat(boxes).argsort()]  # (B, h, N - C, d): frame by frame
    return torch.cat([class_tokens, patches], dim=2)  # (B, h, N, d)


# ============================================================================================================
# PROJECTIONS      what every attention module shares; a mechanism fills in `mechanism`
# ============================================================================================================


class Attention(nn.Module):
    """Project to q, k, v, let the mechanism attend, project back.

    module(x, (T, H, W)) with x (B, C + T*S, D) -> (B, C + T*S, D)

    With zero_init one more D x D layer follows, all zeros at first: a block of several steps then starts as
    if it had only the last, an image transformer whose new branches grow from nothing (TimeSformer's released
    code; the paper does not mention the layer but counts its parameters).

    Cost    4*N*D**2 beside the mechanism's own, 5*N*D**2 with zero_init
    """

    def __init__(self, dim, heads, dropout=0.0, zero_init=False):
        super().__init__()
        if heads < 1 or dim % heads != 0:
            raise ValueError(f"width dim={dim} does not divide into heads={heads}; use a multiple of heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.zero = nn.Linear(dim, dim) if zero_init else None

    def mechanism(self, q, k, v, grid):
        """q, k, v (B, h, C + T*S, d) -> (B, h, C + T*S, d)"""
        raise NotImplementedError

    def forward(self, x, grid):
        q, k, v = self.project(x)
        return self.merge(self.mechanism(q, k, v, grid))

    def project(self, x):
        """x (B, N, D) -> q, k, v (B, h, N, d) each"""
        qkv = self.qkv(x)
        return rearrange(qkv, "B N (three h d) -> three B h N d", three=3, h=self.heads).unbind(0)

    def merge(self, x):
        """x (B, h, N, d) -> (B, N, D)"""
        B, h, N, d = x.shape
        x = rearrange(x, "B h N d -> B N (h d)")  # (B, N, h*d)
        x = self.dropout(self.proj(x))
        return x if self.zero is None else self.zero(x)


# ============================================================================================================
# SPACE      every patch sees its own frame                                   TimeSformer (S), equation 6
# ============================================================================================================


def space_attention(q, k, v, grid):
    """Attention inside each frame. Frames never meet, so the order of the frames cannot matter.

    q, k, v (B, h, C + T*S, d) -> (B, h, C + T*S, d)

        t=0     t=1     t=2     t=3
        ......  ######  ......  ......
        ......  ##Q###  ......  ......
        ......  ######  ......  ......
        ......  ######  ......  ......

    Class token   One per clip is copied into every frame, the T results averaged; one per frame stays there.
    Cost          2*T*(S + C)**2*D for C = 0 or 1
    Differs       The paper lets the class token's own query see what is left open; this is its released code.
    Copy with     attend_within_frames
    """
    return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T) h (H W) d")


class SpaceAttention(Attention):
    def mechanism(self, q, k, v, grid):
        return space_attention(q, k, v, grid)


# ============================================================================================================
# JOINT SPACE-TIME      every patch sees the whole clip            TimeSformer (ST), equation 5; ViViT model 1
# ============================================================================================================


def joint_attention(q, k, v, grid):
    """Attention over all tokens at once: the most it can see, and the price that the others avoid.

    q, k, v (B, h, C + T*S, d) -> (B, h, C + T*S, d)

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
    def mechanism(self, q, k, v, grid):
        return joint_attention(q, k, v, grid)


# ============================================================================================================
# DIVIDED      first the same place in every frame, then the own frame     TimeSformer (T+S), equations 12-13
# ============================================================================================================


def time_attention(q, k, v, grid):
    """Attention along time at one place. Space attention after it, with weights of its own, makes it divided
    attention: two cheap steps, and every patch has heard from the whole clip.

    q, k, v (B, h, C + T*S, d) -> (B, h, C + T*S, d)

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ..#...  ..Q...  ..#...  ..#...
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token   Stands aside and receives zeros.
    Cost          2*S*T**2*D
    Differs       The paper has the class token among the keys; its released code, and this, do not.
    Copy with     attend, count_class_tokens
    """
    T, H, W = grid
    C = count_class_tokens(q, grid)
    B, h, N, d = q.shape
    columns = "B h (T H W) d -> (B H W) h T d"
    q, k, v = (rearrange(x[:, :, C:], columns, T=T, H=H, W=W) for x in (q, k, v))  # (B*H*W, h, T, d)
    out = rearrange(attend(q, k, v), "(B H W) h T d -> B h (T H W) d", H=H, W=W)  # (B, h, T*H*W, d)
    return F.pad(out, (0, 0, C, 0))  # (B, h, N, d)


class TimeAttention(Attention):
    def mechanism(self, q, k, v, grid):
        return time_attention(q, k, v, grid)

    def forward(self, x, grid):
        C = count_class_tokens(x, grid)
        out = super().forward(x[:, C:], grid)
        return F.pad(out, (0, 0, C, 0))  # x.shape: not even a bias reaches the class token


# ============================================================================================================
# SPARSE LOCAL-GLOBAL      a quarter of the frame in all frames, then every other patch    TimeSformer (L+G)
# ============================================================================================================


def local_attention(q, k, v, grid):
    """Attention inside one of four windows, each half the rows and half the columns, through all frames.

    q, k, v (B, h, C + T*S, d) -> (B, h, C + T*S, d)

        t=0     t=1     t=2     t=3
        ###...  ###...  ###...  ###...
        ###...  ##Q...  ###...  ###...
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token   Joins all four windows; the mean of what it finds there is its result.
    Cost          8*(C + T*S/4)**2*D for even H and W
    Differs       No code was released. The paper asks for the neighbouring T x H/2 x W/2 patches and leaves
                  the borders open. A window around each query would gather T*S/4 keys for every patch;
                  here the frame is cut into four windows that their patches share, like Swin's and MaxViT's,
                  and the global step joins what the cuts part.
    Copy with     attend_in_boxes, count_class_tokens
    """
    T, H, W = grid
    clip, top, bottom = slice(0, T), slice(0, (H + 1) // 2), slice((H + 1) // 2, H)
    left, right = slice(0, (W + 1) // 2), slice((W + 1) // 2, W)
    boxes = [(clip, rows, columns) for rows in (top, bottom) for columns in (left, right)]
    return attend_in_boxes(q, k, v, grid, boxes)


def global_attention(q, k, v, grid):
    """Attention over every other frame, row and column: an eighth of the clip, spread over all of it.

    q, k, v (B, h, C + T*S, d) -> (B, h, C + T*S, d)

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  #.Q.#.  ......  #.#.#.
        ......  ......  ......  ......
        ......  #.#.#.  ......  #.#.#.

    Class token   Joins all eight lattices; the mean of what it finds there is its result.
    Cost          16*(C + T*S/8)**2*D for even T, H and W
    Differs       No code was released. The paper asks for stride 2 along all three axes and leaves open where
                  it starts: here at the query, which so sees itself, and eight lattices tile the clip.
    Copy with     attend_in_boxes, count_class_tokens
    """
    even, odd = slice(0, None, 2), slice(1, None, 2)
    boxes = [(t, y, x) for t in (even, odd) for y in (even, odd) for x in (even, odd)]
    return attend_in_boxes(q, k, v, grid, boxes)


class LocalAttention(Attention):
    def mechanism(self, q, k, v, grid):
        return local_attention(q, k, v, grid)


class GlobalAttention(Attention):
    def mechanism(self, q, k, v, grid):
        return global_attention(q, k, v, grid)


# ============================================================================================================
# AXIAL      time, then the own row, then the own column                                 TimeSformer (T+W+H)
# ============================================================================================================


def width_attention(q, k, v, grid):
    """Attention along the row of a patch, in its own frame.

    q, k, v (B, h, C + T*S, d) -> (B, h, C + T*S, d)

        t=0     t=1     t=2     t=3
        ......  ......  ......  ......
        ......  ##Q###  ......  ......
        ......  ......  ......  ......
        ......  ......  ......  ......

    Class token   As in space attention, but copied into every row.
    Cost          2*T*H*(W + C)**2*D for C = 0 or 1
    Differs       No code was released, and the paper does not say what the class token does. In the time
                  step it stands aside, as in divided attention.
    Copy with     attend_within_frames
    """
    return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T H) h W d")


def height_attention(q, k, v, grid):
    """Attention along the column of a patch, in its own frame: the last of three steps that span the clip.

    q, k, v (B, h, C + T*S, d) -> (B, h, C + T*S, d)

        t=0     t=1     t=2     t=3
        ......  ..#...  ......  ......
        ......  ..Q...  ......  ......
        ......  ..#...  ......  ......
        ......  ..#...  ......  ......

    Class token   As in space attention, but copied into every column.
    Cost          2*T*W*(H + C)**2*D for C = 0 or 1
    Differs       As for width.
    Copy with     attend_within_frames
    """
    return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T W) h H d")


class WidthAttention(Attention):
    def mechanism(self, q, k, v, grid):
        return width_attention(q, k, v, grid)


class HeightAttention(Attention):
    def mechanism(self, q, k, v, grid):
        return height_attention(q, k, v, grid)


# ============================================================================================================
# THE TABLE      a scheme is a short list of steps, each with weights of its own
# ============================================================================================================

ATTENTION = {
    "space": [SpaceAttention],
    "joint": [JointAttention],
    "divided": [TimeAttention, SpaceAttention],
    "local_global": [LocalAttention, GlobalAttention],
    "axial": [TimeAttention, WidthAttention, HeightAttention],
}

# Where frames meet only in the classification head, a class token for the clip would carry news between them.
CLASS_TOKEN_PER_FRAME = ("space",)


# ============================================================================================================
# TOKENS      pixels to patches, and where each patch was
# ============================================================================================================


class PatchEmbedding(nn.Module):
    """Cut a clip into patches of (frames, rows, columns) pixels and project each to D numbers.

    video (B, channels, frames, height, width) -> tokens (B, T*S, D) and their grid (T, H, W)

    Patches of one frame are TimeSformer's; patches of several, "cubic patches" or tubelets, are ViViT's and
    Motionformer's. A convolution whose stride is its kernel is one linear layer on every patch.
    """

    def __init__(self, patch_size, dim, channels=3):
        super().__init__()
        self.patch_size = patch_size
        self.channels = channels
        self.proj = nn.Conv3d(channels, dim, patch_size, stride=patch_size)

    def forward(self, video):
        self.check(video)
        x = self.proj(video)
        B, D, T, H, W = x.shape
        return rearrange(x, "B D T H W -> B (T H W) D"), (T, H, W)

    def check(self, video):
        if video.ndim != 5 or video.shape[1] != self.channels:
            hint = ""
            if video.ndim == 5 and video.shape[2] == self.channels:
                hint = "; this looks like (B, T, C, H, W), frames before channels: call video.transpose(1, 2)"
            wanted = f"(B, {self.channels} channels, frames, height, width)"
            raise ValueError(f"video must be {wanted}, got {tuple(video.shape)}{hint}")
        names = ("frames", "height", "width")
        for name, size, patch in zip(names, video.shape[2:], self.patch_size):
            if size < patch or size % patch != 0:
                near = max(patch, size // patch * patch)
                raise ValueError(f"{name}={size} does not divide into patches of {patch}; use {near}, say")


def central_frame_kernel(kernel, frames):
    """An image model's patch kernel (D, channels, p, p) for tubelets: zeros but for the central frame.

    -> (D, channels, frames, p, p). The tubelet model starts as the image model on the frame at frames // 2 of
    each tubelet: 1.6 points better than an even spread on Kinetics-400 (ViViT, table 1; also Motionformer).
    """
    D, channels, p, p = kernel.shape
    inflated = kernel.new_zeros(D, channels, frames, p, p)  # (D, channels, frames, p, p)
    inflated[:, :, frames // 2] = kernel
    return inflated


def resize_table(table, old, new):
    """Resample a position table (1, prod(old), D) to (1, prod(new), D): linear in time, bicubic in space."""
    if tuple(old) == tuple(new):
        return table
    D = table.shape[-1]
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(new)]
    table = table.transpose(1, 2).unflatten(2, old)
    table = F.interpolate(table, size=tuple(new), mode=mode, align_corners=False)
    return table.flatten(2).transpose(1, 2)


class PositionEmbedding(nn.Module):
    """Learned position tables, added to the tokens: x (B, C + T*S, D) -> the same shape.

    kind      "none"      attention alone could not tell one patch from another
              "space"     one entry per place in a frame
              "separate"  one per place and one per frame, which starts at zero as no image model has it
              "joint"     one per place and frame
    grid      (T, H, W) of the tables; another grid in a call resizes them (see `resize_table`)
    class_token  "clip", "frame" or "none". It has an entry of its own in the table of places. One per frame
              also gets the entry of its frame (X-ViT); one per clip has no time (TimeSformer, Motionformer).
    """

    def __init__(self, kind, grid, dim, class_token):
        super().__init__()
        T, H, W = grid
        self.grid = (T, H, W)
        self.per_frame = class_token == "frame"
        self.first = 0 if class_token == "none" else 1  # entries for the class token
        sizes = {"none": (0, 0), "space": (H * W, 0), "separate": (H * W, T), "joint": (T * H * W, 0)}
        if kind not in sizes:
            raise ValueError(f"position={kind!r} is unknown; choose one of {', '.join(sizes)}")
        self.joint = kind == "joint"
        places, frames = sizes[kind]
        self.place = nn.Parameter(torch.zeros(1, self.first + places, dim)) if places else None
        self.time = nn.Parameter(torch.zeros(1, frames, dim)) if frames else None

    def forward(self, x, grid):
        T, H, W = grid
        C = count_class_tokens(x, grid)
        class_token, patches = x[:, :C], x[:, C:]
        if self.place is not None:
            own, table = self.place[:, : self.first], self.place[:, self.first :]
            class_token = class_token + own
            if self.joint:
                patches = patches + resize_table(table, self.grid, grid)
            else:
                patches = patches + resize_table(table, self.grid[1:], (H, W)).repeat(1, T, 1)
        if self.time is not None:
            table = resize_table(self.time, self.grid[:1], (T,))
            patches = patches + table.repeat_interleave(H * W, dim=1)
            if self.per_frame:
                class_token = class_token + table
        return torch.cat([class_token, patches], dim=1)  # x.shape


# ============================================================================================================
# BLOCK      the steps of a scheme and an MLP, each added to what came in
# ============================================================================================================


class StochasticDepth(nn.Module):
    """In training, drop the whole branch of a clip with probability `rate` and scale up those that stay.

    x (B, N, D) -> (B, N, D)
    """

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * keep / (1.0 - self.rate)


class MLP(nn.Module):
    """Each token by itself: x (B, N, D) -> (B, N, D)

    Cost    2*N*D*hidden
    """

    def __init__(self, dim, hidden, dropout=0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = self.dropout(F.gelu(self.fc1(x)))
        return self.dropout(self.fc2(x))


class Block(nn.Module):
    """Pre-norm: x = x + step(norm(x)) for every step of the scheme, then x = x + mlp(norm(x)).

    block(x, (T, H, W)) with x (B, C + T*S, D) -> (B, C + T*S, D)

    Every step but the last starts at zero (see Attention): at first the block is an image transformer's.
    """

    def __init__(self, dim, heads, steps, mlp_ratio=4.0, dropout=0.0, drop_path=0.0):
        super().__init__()
        zero_init = [True] * (len(steps) - 1) + [False]
        self.steps = nn.ModuleList(step(dim, heads, dropout, zero) for step, zero in zip(steps, zero_init))
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for step in steps)
        self.mlp = MLP(dim, int(dim * mlp_ratio), dropout)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x, grid):
        for norm, step in zip(self.norms, self.steps):
            x = x + self.drop_path(step(norm(x), grid))
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))


# ============================================================================================================
# THE BACKBONE
# ============================================================================================================


class VideoTransformer(nn.Module):
    """Patches, positions, blocks and a linear head: the vision transformer with attention over video.

    model(video) with video (B, channels, frames, height, width) -> logits (B, K)
    model.forward_features(video) -> tokens (B, C + T*S, D)

    attention    a name in ATTENTION, or a list of steps: functools.partial(Step, option=...) sets an option
    num_frames   frames of the video, and image_size its height and width (an int or a pair): they size the
                 position tables; other sizes are welcome in a call
    patch_size   an int, (rows, columns), or (frames, rows, columns) for tubelets
    position     "none", "space", "separate" or "joint", see PositionEmbedding
    class_token  "clip", "frame" or "none"; left out, "clip", or "frame" where CLASS_TOKEN_PER_FRAME says so
    head         "class": classify the class token, or the mean of them; "mean": the mean of the patches
    dropout      after the embedding, after every projection and in the MLPs
    drop_path    stochastic depth, growing from 0 in the first block to this in the last; neither acts in eval
    """

    def __init__(
        self,
        attention="divided",
        num_classes=400,
        num_frames=8,
        image_size=224,
        patch_size=16,
        dim=768,
        depth=12,
        heads=12,
        mlp_ratio=4.0,
        position="separate",
        class_token=None,
        head="class",
        dropout=0.0,
        drop_path=0.0,
        channels=3,
    ):
        super().__init__()
        if class_token is None:
            class_token = "frame" if attention in CLASS_TOKEN_PER_FRAME else "clip"
        if class_token not in ("clip", "frame", "none"):
            raise ValueError(f"class_token={class_token!r} is unknown; choose clip, frame or none")
        if head not in ("class", "mean") or (head == "class" and class_token == "none"):
            raise ValueError(f"head={head!r} with class_token={class_token!r}; use mean, or class and a token")
        self.class_token_kind, self.head_kind = class_token, head
        patch_size, image_size = as_sizes(patch_size, 3), as_sizes(image_size, 2)
        grid = [size // patch for size, patch in zip((num_frames, *image_size), patch_size)]
        if 0 in grid:
            raise ValueError(f"{num_frames} frames of {image_size} are less than a patch of {patch_size}")

        self.patches = PatchEmbedding(patch_size, dim, channels)
        self.class_token = None if class_token == "none" else nn.Parameter(torch.zeros(1, 1, dim))
        self.position = PositionEmbedding(position, grid, dim, class_token)
        self.dropout = nn.Dropout(dropout)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        steps = steps_of(attention)
        self.blocks = nn.ModuleList(Block(dim, heads, steps, mlp_ratio, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        self.init_weights()

    def init_weights(self):
        """As published: weights and tables from a truncated normal of .02, biases zero. Two things start at
        exactly zero, the time table and the last layer of every new branch: at first a clip is a bag of images."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention) and module.zero is not None:
                nn.init.zeros_(module.zero.weight)
        for table in (self.class_token, self.position.place):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def encode(self, video):
        """video (B, channels, frames, height, width) -> normed tokens (B, C + T*S, D), grid (T, H, W)"""
        x, grid = self.patches(video)
        B, N, D = x.shape
        if self.class_token is not None:
            C = grid[0] if self.class_token_kind == "frame" else 1
            class_tokens = self.class_token.expand(B, C, D)  # (B, C, D)
            x = torch.cat([class_tokens, x], dim=1)  # (B, C + N, D)
        x = self.dropout(self.position(x, grid))
        for block in self.blocks:
            x = block(x, grid)
        return self.norm(x), grid

    def forward_features(self, video):
        return self.encode(video)[0]

    def forward(self, video):
        x, grid = self.encode(video)
        C = count_class_tokens(x, grid)
        pooled = x[:, :C].mean(dim=1) if self.head_kind == "class" else x[:, C:].mean(dim=1)
        return self.head(pooled)


def as_sizes(size, axes):
    """An int, (rows, columns) or (frames, rows, columns) -> a tuple of `axes` sizes."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    sizes = (1,) * (axes - len(pair)) + pair
    if len(sizes) != axes or min(sizes) < 1:
        raise ValueError(f"size {size} must be an int, (rows, columns) or, for patches, a triple with frames")
    return sizes


def steps_of(attention):
    """The list of steps behind a name in ATTENTION; a list is already one."""
    if not isinstance(attention, str):
        return list(attention)
    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r} is unknown; choose one of {', '.join(ATTENTION)}")
    return ATTENTION[attention]


PRESETS = {  # published models: TimeSformer, section 4 and table 5
    "timesformer": dict(attention="divided", num_frames=8, image_size=224),
    "timesformer_hr": dict(attention="divided", num_frames=16, image_size=448),
    "timesformer_l": dict(attention="divided", num_frames=96, image_size=224),
}


def preset(name, **overrides):
    """A published model, untrained; any argument of VideoTransformer can be overridden: preset(name, depth=4)."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return VideoTransformer(**{**PRESETS[name], **overrides})
