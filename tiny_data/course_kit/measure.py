"""Right answers to question 10, which video_attention.py does not have; never handed out."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from video_attention import (
    joint_attention,
    orthoformer_attention,
    orthogonal_prototypes,
    window_attention,
)


def window_costs(grid, windows, heads=2, width=8):
    """Multiply-accumulates of window_attention on a grid (T, H, W), measured: a number for each
    window.
    """
    T, H, W = grid
    costs = []
    for window in windows:
        q = torch.empty(1, heads, T * H * W, width, device="meta")
        with FlopCounterMode(display=False) as counter:
            window_attention(q, q, q, grid, window)
        costs.append(counter.get_total_flops() / 2)
    return costs


def prototype_errors(q, k, v, grid, counts):
    """Relative errors of orthoformer_attention against exact attention: a number for each count.

    q, k, v (B, h, C + T*S, d); the prototypes are those of orthogonal_prototypes(q, k, count).
    """
    exact = joint_attention(q, k, v, grid)
    errors = []
    for count in counts:
        out = orthoformer_attention(q, k, v, grid, orthogonal_prototypes(q, k, count))
        errors.append(((out - exact).norm() / exact.norm()).item())
    return errors
