"""Inputs: the words in which questions.py says with what a function is called."""

import functools
import itertools
import math
import zlib
from collections import ChainMap
from dataclasses import dataclass, field

import torch

GRIDS = [(4, 3, 5), (5, 2, 3)]  # (T, H, W)
ODD = [(1, 2, 3), (3, 1, 4), (2, 5, 1), (3, 1, 1), (1, 1, 1)]
CLIPS = [(grid, C) for grid in GRIDS + ODD for C in sorted({0, 1, grid[0]})]


@dataclass(eq=False)
class Case:
    args: tuple
    options: dict = field(default_factory=dict)
    tags: tuple = ()  # the parts that it belongs to, none is "values"
    tolerance: float = 1e-9  # relative
    derivatives: bool = True
    price: bool = True
    names: list = ()  # of the function's parameters, in order

    def words(self):
        words = [tuple(x.shape) if torch.is_tensor(x) else x for x in self.args]
        words = [str(x) for x in words if isinstance(x, (int, tuple))]
        for name, x in self.options.items():
            words.append(f"{name}={x['handed'] if isinstance(x, dict) else x}")
        return ", ".join(dict.fromkeys(words))


def draws(name, seed):
    """Random numbers for a function's cases: draw(*shape) are normal numbers."""
    generator = torch.Generator().manual_seed(1000 * seed + zlib.crc32(name.encode()) % 10**6)

    def draw(*shape, dtype=torch.float64, scale=1):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    return draw


def hand(name, *inputs):
    return {"handed": name, "with": inputs}  # a function or layer of calling.HANDED


def crossed(make, sizes, tags=lambda *x: {}, half=None, scales=(1,), also=(), **options):
    """Cases of make(draw, *size), or of the size itself, for all options. tags(*size) is {part:
    whether}, all belong to `also`. `half` is tried in lower precision, numbers times `scales`."""
    lists = [[{}] + [{name: value} for value in values] for name, values in options.items()]
    combinations = [dict(ChainMap(*some)) for some in itertools.product(*lists)]
    types = (torch.float16, torch.bfloat16, torch.float32) if half else ()

    def cases(draw):
        found = []
        for size, chosen in itertools.product(sizes, combinations):
            parts = (*also, *chosen, *(part for part, true in tags(*size).items() if true))
            found.append(Case(make(draw, *size) if make else size, chosen, parts))
        for dtype, scale in itertools.product(types, scales):
            args = make(functools.partial(draw, dtype=dtype, scale=scale), *half)
            tolerance = min((1e-4 if dtype == torch.float32 else 0.05) * scale, 0.5)
            found.append(Case(args, {}, ("precision",), tolerance, derivatives=False))
        return found

    return cases


def of_clip(grid, C, *others):
    return {"class tokens": C > 0, "odd grids": grid in ODD}


def mechanism(more=lambda draw, B, h, d, grid: (), clips=CLIPS, **options):
    """Cases of f(q, k, v, grid, ...): all options with all class tokens on all grids."""

    def make(draw, grid, C):
        B, h, d = (2, 3, 8) if grid in GRIDS else (1, min(grid[0], 2), 8)
        qkv = [draw(B, h, C + math.prod(grid), d) for _ in "qkv"]
        return (*qkv, grid, *more(draw, B, h, d, grid))

    return crossed(make, clips, of_clip, (GRIDS[0], 1), **options)


CUTS = {  # ranges of frames, rows and columns
    "halves": lambda T, H, W: ([range(T)], [range(H // 2), range(H // 2, H)], [range(W)]),
    "lattices": lambda *grid: [(range(0, n, 2), range(1, n, 2)) for n in grid],
    "sizes": lambda T, H, W: ([range(1), range(1, T)], [range(H)], [range(W)[::2], range(W)[1::2]]),
}


def boxes(cut, grid):
    return [[hand("range", x.start, x.stop, x.step) for x in axis] for axis in CUTS[cut](*grid)]


def layer(draw, kind, to, read):
    return hand(kind, draw(to, read), *[draw(to)] * (kind == "layer"))
