"""The picture of README.md: what one patch attends to, computed and not drawn.

    python -m tiny_data.picture        writes who_attends_to_whom.png beside this file

A step of a scheme reaches the patches whose input can change its output at the query: where the
gradient is not zero. After several steps the query has information from all that they reach.
"""

import math
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import video_attention as va

GRID, QUERY, DIM, HEADS = (4, 6, 8), (1, 2, 3), 24, 2
SMALL = [partial(va.ShiftedWindowAttention, size=(2, 3, 4), displaced=moved) for moved in (0, 1)]
SCHEMES = {  # title: (steps, what the paper calls it)
    "space": "space", "joint": "joint space-time", "divided": "divided", "axial": "axial",
    "local_global": "sparse local-global", "window": "temporal window", "mixing": "mixing",
    "shifted windows": SMALL,
}
COLOURS = {0: "#eceff1", 1: "#0072b2", 2: "#56b4e9", 3: "#b9def5", "query": "#d55e00"}


def reached(steps):
    """For every patch, after how many steps, the last one first, it reaches the query; 0: never."""
    T, H, W = GRID
    modules = [step(DIM, HEADS).double() for step in steps]
    for module in modules:  # nothing may start at zero here
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    count = torch.zeros(GRID, dtype=torch.long)
    for used in range(1, len(modules) + 1):
        x = torch.randn(1, math.prod(GRID), DIM, dtype=torch.float64, requires_grad=True)
        y = x
        for module in modules[-used:]:
            y = y + module(y, GRID)
        t, row, column = QUERY
        (gradient,) = torch.autograd.grad(y[0, t * H * W + row * W + column].sum(), x)
        seen = (gradient[0].abs().sum(-1) > 1e-12).view(GRID)
        count[seen & (count == 0)] = used
    return count


def draw(path):
    torch.manual_seed(0)
    T, H, W = GRID
    figure, axes = plt.subplots(4, 2, figsize=(10, 5.2), dpi=200, facecolor="white")
    for axis, (name, title) in zip(axes.T.flat, SCHEMES.items()):
        steps = va.ATTENTION[name] if isinstance(title, str) else title
        count = reached(steps)
        for t, row, column in product(*map(range, GRID)):
            key = "query" if (t, row, column) == QUERY else count[t, row, column].item()
            colour = COLOURS[key]
            corner = (t * (W + 1.5) + column + 0.04, H - 1 - row + 0.04)
            axis.add_patch(plt.Rectangle(corner, 0.92, 0.92, color=colour, linewidth=0))
        axis.set(xlim=(-0.2, T * (W + 1.5) - 1.2), ylim=(-0.2, H + 0.1), aspect="equal")
        axis.axis("off")
        axis.set_title(title if isinstance(title, str) else name, fontsize=11, loc="left", pad=3)
    note = "one patch (orange) in four frames, and what reaches it in a block: "
    note += "by the last step (dark) or by those before (light)"
    figure.text(0.5, 0.015, note, ha="center", fontsize=9.5)
    figure.subplots_adjust(left=0.015, right=0.985, top=0.94, bottom=0.06, hspace=0.22, wspace=0.04)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_name("who_attends_to_whom.png"))
