"""What a release does and its paper does not. Importing this adds ROWS to ATTENTION:

xvit_half, xvit_quarter_8       X-ViT with half of the channels mixed in the whole clip (Something-
                                Something), or a quarter in segments of 8 frames (Kinetics)
lvt_half..., lvt_quarter_8...   LVT with these shares; one gate, _two_gates (q and k) or _no_gate
motionformer_orthoformer        trajectory attention, prototypes chosen as in the released code
"""

from functools import partial

import torch
import torch.nn as nn
from einops import rearrange

import video_attention as va

FRAMES = "(B T) h (H W) d"
ACTIVATIONS = dict(tanh=nn.Tanh(), relu=nn.ReLU(), gelu=nn.GELU())
ACTIVATIONS |= dict.fromkeys(("gelu_fast", "gelu_new", "gelu_pytorch_tanh"), nn.GELU("tanh"))


def from_other_frames(x, grid, moved, segment=None):
    """Channels of the joined heads of x (B, h, N, d) from the next and the previous frame, inside
    segments of so many frames; None is the whole clip."""
    (T, _, _), h, C = grid, x.shape[1], va.count_class_tokens(x, grid)
    assert T % (segment or T) == 0, f"T={T} is no multiple of segment={segment}"
    x = rearrange(va.into_groups(x, grid, FRAMES), "BT h L d -> BT 1 L (h d)")
    x = va.mix_frames(x, segment or T, moved=moved)  # (B*T, 1, c + S, D)
    x = rearrange(x, "BT 1 L (h d) -> BT h L d", h=h)
    return va.out_of_groups(x, grid, FRAMES, C)  # (B, h, N, d)


def joined_heads_attention(q, k, v, grid, moved=0.5, segment=None):
    """X-ViT's mixing (82ca176, slowfast/models/temporal_shift.py:44): slices of the joined heads. So
    mostly whole heads come from the next frame, the previous or their own."""
    k, v = (from_other_frames(x, grid, moved, segment) for x in (k, v))
    return va.space_attention(q, k, v, grid)  # (B, h, N, d)


class ReleasedLinearAttention(va.LinearAttention):
    """LVT's attention with a gate each for q and k and, along space, another share of channels that
    comes from the next and the previous frame, inside segments of frames."""

    def __init__(self, dim, heads, two_gates=False, moved=0.0, segment=None, **options):
        super().__init__(dim, heads, **options)
        assert not (two_gates and options.get("rotary")), "no rotary positions with two gates"
        d = dim // heads
        self.moved, self.segment = moved, segment
        self.gate_k = nn.Linear(3 * d, d) if two_gates else None

    def attend_features(self, q, k, v, grid):
        if self.gate_k is None:
            return super().attend_features(q, k, v, grid)
        q, k = va.relu_features(q), va.relu_features(k)  # each (B, h, N, d)
        g_q, g_k = (va.fixation_gate(layer, q, k, v) for layer in (self.gate_q, self.gate_k))
        return va.attend_linearly(g_q * q, g_k * k, v)  # (B, h, N, d)

    def mechanism(self, q, k, v, grid):
        if self.moved > 0:
            k, v = (from_other_frames(x, grid, self.moved, self.segment) for x in (k, v))
        return super().mechanism(q, k, v, grid)


def lvt_steps(gates, moved, segment=None, neighbours=True):
    """LVT's steps with 0, 1 or 2 gates; `neighbours` and `moved` are what is shifted in each."""
    make = partial(va.step, ReleasedLinearAttention, fixation=gates > 0, two_gates=gates == 2)
    in_time = make(axis="time", neighbours=neighbours)
    return [in_time, make(axis="space", moved=moved, segment=segment)]


def released_prototypes(q, k, count, start=0):
    """Motionformer's choice (bf43d50, slowfast/models/orthoformer_helper.py): all queries and no keys
    are candidates, returned in token order. Its code starts from a random query, this from `start`.
    """
    picked = va.most_orthogonal_subset(q.roll(-start, dims=2), count)  # (B, h, count)
    picked = ((picked + start) % q.shape[2]).sort(dim=-1).values
    return q.gather(2, picked.unsqueeze(-1).expand(-1, -1, -1, q.shape[3]))  # (B, h, count, d)


@torch.no_grad()
def use_the_slip(model):
    """Motionformer was trained with a slip (vit_helper.py:146, use_original_code): its second stage
    takes the trajectory token itself as the value. So W_v becomes the identity and b_v zero."""
    for module in model.modules():
        if isinstance(module, va.TrajectoryAttention):
            D = module.proj_kv.in_features
            module.proj_kv.weight[D:] = torch.eye(D)
            module.proj_kv.bias[D:] = 0


class ReleasedTransformer(va.VideoTransformer):
    """A VideoTransformer with choices that no tensor tells: eps of the norms, or two, of those in
    the blocks and of the last; hidden_act in the MLPs of the blocks, as in transformers' configs;
    head_act in a "tanh" head, Motionformer's HEAD_ACT. What is given is in the config. So
    VideoTransformer(**config) is a TypeError, ReleasedTransformer(**config) the same model again.
    """

    def __init__(self, eps=None, hidden_act=None, head_act=None, **options):
        super().__init__(**options)
        given = dict(eps=eps, hidden_act=hidden_act, head_act=head_act)
        self.config |= {name: x for name, x in given.items() if x is not None}
        in_blocks, last = eps if isinstance(eps, (list, tuple)) else (eps, eps)
        for block in self.blocks:
            for norm in (*block.norms, block.mlp_norm):
                norm.eps = in_blocks or norm.eps
            block.mlp.gelu = ACTIVATIONS[hidden_act] if hidden_act else block.mlp.gelu
        for norm in (self.norm, self.head.norm):
            norm.eps = last or 1e-6  # an nn.Identity never reads it
        if head_act is not None:
            assert self.config["head_mlp"] == "tanh", f"head_act={head_act!r} needs head_mlp='tanh'"
            self.head.classify[1] = ACTIVATIONS[head_act]


def inverse_of_one_scale(A, iterations=6):
    """va.iterative_inverse, started from one column sum for the whole batch, so that clips influence
    each other: Nystromformer's "original", also in Motionformer's nystrom_helper.py."""
    n, P = A.shape[:-2].numel(), A.shape[-1]
    together = torch.block_diag(*A.view(n, P, P))  # as one matrix it has one scale
    Z = va.iterative_inverse(together, iterations).view(n, P, n, P)
    return Z.diagonal(dim1=0, dim2=2).movedim(-1, 0).reshape(A.shape)


GATES = ("_no_gate", "", "_two_gates")
PROTOTYPES = va.step(va.OrthoformerTrajectoryAttention, choose=released_prototypes)
ROWS, CLASS_TOKENS = {"motionformer_orthoformer": [PROTOTYPES]}, {}
for share, moved, segment in (("half", 0.5, None), ("quarter_8", 0.25, 8)):
    mixing = va.step(joined_heads_attention, moved=moved, segment=segment)
    ROWS[f"xvit_{share}"], CLASS_TOKENS[f"xvit_{share}"] = [mixing], "frame"
    for gates, name in enumerate(GATES):
        ROWS[f"lvt_{share}{name}"] = lvt_steps(gates, moved, segment)
        CLASS_TOKENS[f"lvt_{share}{name}"] = "none"
va.ATTENTION.update(ROWS)
va.CLASS_TOKEN.update(CLASS_TOKENS)
