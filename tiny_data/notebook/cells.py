"""What the cells of tutorial.ipynb call: training as one watches, sentences, checks of exercises.

Figures are made in figures.py, statistics in tiny_data/study.py.
"""

import math
import os
import textwrap
import time
from functools import partial
from pathlib import Path

import torch
from IPython.display import DisplayHandle
from torch.utils.flop_counter import FlopCounterMode

import video_attention as va

from .. import study
from . import attention_maps, figures
from .looks import label

TRAINED = {}  # (task, name, options): (model, what study.train said), for the whole session
SMALLER = {"shifted_windows": dict(size=(2, 2, 3))}  # windows that cut so small a grid


def find_device():
    found = torch.accelerator.current_accelerator()
    return "cpu" if found is None else found.type


# ==== TRAINING ===================================================================================
class Live:
    """Learning curves that are drawn while models train."""

    def __init__(self):
        self.runs, self.last, self.handle = {}, 0.0, DisplayHandle()
        self.handle.display(figures.Picture("", "training"))

    def add(self, name, step, loss, accuracy):
        self.runs.setdefault(name, []).append((step, loss, accuracy))
        if time.perf_counter() - self.last > 1.5:  # drawing takes time
            self.draw()

    def draw(self):
        """Draw what there is; called after the last model, it leaves the whole picture."""
        self.last = time.perf_counter()
        self.handle.update(figures.learning_curves({n: run for n, run in self.runs.items() if run}))


def steps_or(steps):
    """The environment's TUTORIAL_STEPS, or so many."""
    return int(os.environ.get("TUTORIAL_STEPS", 0)) or steps


def train_live(task, *names, device="cpu", **options):
    """Train models of the study on a task, drawing loss and accuracy -> a model, or a list of them.

    options     of the models, such as position="separate", position tables
    What was trained before comes back at once. The stop button ends the training within a second;
    the same cell, run again, trains anew.
    """
    live, models = Live(), [study.build(name, task, **options).eval() for name in names]
    steps = steps_or(study.TASKS[task].steps)
    for i, name in enumerate(names):
        key = task, name, *options.values()
        if key not in TRAINED:
            start = time.perf_counter()
            said = study.train(models[i], task, steps, device, partial(live.add, name))
            said["waited"] = time.perf_counter() - start
            hit = study.correct(models[i], study.test_clips(task, 0), device)
            TRAINED[key] = models[i].cpu(), said | dict(accuracy=hit.float().mean().item())
        models[i], said = TRAINED[key]
        live.runs[name] = said["curve"]
        line = f"{label(name)}, {task}: {said['accuracy']:.3f} of {study.TEST:,} new clips"
        print(f"{line}, {said['waited']:.0f} s")
        if said["interrupted"]:
            del TRAINED[key]
            print("stopped; what was not trained is as it was built")
            break
    live.draw()
    return models if len(models) > 1 else models[0]


def trained(task, *names, device="cpu"):
    """The same, without the curves where all of them were trained before."""
    if any((task, name) not in TRAINED for name in names):
        return train_live(task, *names, device=device)
    models = [TRAINED[task, name][0] for name in names]
    return models if len(models) > 1 else models[0]


# ==== SENTENCES ==================================================================================
def listed(names):
    """ "joint, window and mixing" """
    *first, last = [label(name) for name in names] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def say(*parts):
    """Print sentences, in lines that fit a page."""
    print(textwrap.fill(" ".join(map(str, parts)), 94, break_on_hyphens=False))


def whole(found, limit, every=True):
    """The names whose seeds are all above the limit, or, with every=False, none of them."""
    return [name for name, x in found.items() if (min(x) > limit if every else max(x) <= limit)]


def versus(found, a, b):
    """What the seeds say about a and b, in a sentence."""
    said = {"ahead": "is ahead of", "behind": "is behind", "undecided": "cannot be told from"}
    means = [sum(found[name]) / len(found[name]) for name in (a, b)]
    n, words = len(found[a]), said[study.verdict(found[a], found[b])]
    p = f"rank test p = {study.rank_test(found[a], found[b]):.3f}"
    told = f"{label(a)} {words} {label(b)}: {means[0]:.3f} and {means[1]:.3f}"
    return f"{told} in the mean of {n} seeds, {p}."


def check(yours, reference, *args):
    """Compare what an exercise asks for with the file's own, and say what differs."""
    expected = reference(*args)
    try:
        found = yours(*(x.clone() for x in args))
    except NotImplementedError:
        return print("not written yet")
    if not torch.is_tensor(found):
        return print("it returns no tensor")
    if found.shape != expected.shape:
        return print(f"its shape is {tuple(found.shape)}, not {tuple(expected.shape)}")
    gap = (found - expected).abs()
    where = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    wrong = f"the largest difference is {gap.max():.3g}, at {where}"
    print("right" if gap.max() < 1e-4 else wrong)


# ==== LOOKING INSIDE =============================================================================
def small_grid(seed=0, width=2):
    """q, k, v (1, 1, 12, width) and the grid: 3 frames of 2 x 2 patches, one head."""
    generator = torch.Generator().manual_seed(seed)
    return *torch.randn(3, 1, 1, 12, width, generator=generator), (3, 2, 2)


def giga_macs(scheme, grid, dim=768, heads=12):
    """Multiply-accumulates of the attention steps of one layer, in billions, counted, not run."""
    return counted(va.ATTENTION[scheme], grid, dim, heads) / 1e9


def counted(steps, grid, dim, heads):
    with torch.device("meta"):
        x, steps = torch.empty(1, math.prod(grid), dim), [make(dim, heads) for make in steps]
        with FlopCounterMode(display=False) as counter:
            for step in steps:
                step(x, grid)
    return counter.get_total_flops() / 2


def long_range_arena():
    """A table of Motionformer's table 5: 2 layers of width 64, 2 heads, MLPs of 128, 2,048 tokens."""
    N, D = 2048, 64
    steps = {
        "exact": (va.step(va.joint_attention), 1.21),
        "Orthoformer, P = 64": (va.step(va.OrthoformerAttention, prototypes=64), 0.24),
        "Performer, M = 256": (va.step(va.PerformerAttention, features=256), 0.49),
        "Nystrom, P = 128": (va.step(va.nystrom_attention, landmarks=128), 0.62),
    }
    macs = {name: 2 * (counted([make], (N, 1, 1), D, 2) + 2 * N * D * 128)
            for name, (make, _) in steps.items()}  # fmt: skip
    rows = [[name, f"{macs[name] / 1e9:.3f}", published] for name, (_, published) in steps.items()]
    caption = "Billions of operations on the Long Range Arena: the order is that of the paper."
    return figures.table(["", "counted here", "published"], rows, caption)


def peak_memory(*names):
    """A table of the peak of one layer, forward and backward, as benchmark_results.md has it."""
    text = (Path(study.__file__).parent / "benchmark_results.md").read_text().split("##")[1]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = [[label(line[0]), line[-1]] for line in lines if line[0] in names]
    least = min(rows, key=lambda row: float(row[1]))[0]
    caption = f"Measured peak of one layer, 8 frames of 14 x 14 patches; the least has {least}."
    return figures.table(["", "MB"], rows, caption)


def steps_of(name, grid=(4, 4, 6), query=(1, 1, 2), dim=24, heads=4):
    """What reaches one patch of an untrained model: a list of what each step of a block takes from
    every patch (T, H, W), and after how many steps of the block, the last one first, a patch
    reaches it (T, H, W), 0 is never."""
    torch.manual_seed(0)
    N, smaller = math.prod(grid), SMALLER.get(name, {})
    n, x = attention_maps.number_of(query, N, grid), torch.randn(1, N, dim).double()
    steps = [make(dim, heads, **smaller).double() for make in va.ATTENTION[name]]
    if len(steps) == 1:
        paid = attention_maps.attention_map(steps[0], x, grid, query)[0].mean(dim=0).abs()
        paid = paid.unflatten(0, grid).numpy()
        return [paid], (paid > 1e-9) * 1
    paid = [attention_maps.everybodys_map(step, x, grid).abs() for step in steps]
    row, count = torch.eye(N).double()[n], torch.zeros(N).long()
    for used, taken in enumerate(reversed(paid), start=1):
        row = row + row @ taken
        count[(row > 1e-9) & (count == 0)] = used
    return [taken[n].unflatten(0, grid).numpy() for taken in paid], count.unflatten(0, grid).numpy()
