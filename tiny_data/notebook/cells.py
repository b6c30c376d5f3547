"""What the cells of tutorial.ipynb call: training as one watches, and sentences from numbers.

Figures are made in figures.py, statistics in tiny_data/study.py. What is not in study.json yet is
said to be "not recorded yet".
"""

import math
import os
import textwrap
import time
from functools import partial

import torch
from IPython.display import DisplayHandle
from torch.utils.flop_counter import FlopCounterMode

import video_attention as va

from .. import study
from . import attention_maps, figures
from .looks import label

TRAINED = {}  # (task, name): (model, what study.train said), for the whole session
MISSING = "not recorded yet"
SMALLER = {"shifted_windows": dict(size=(2, 2, 3))}  # windows that cut so small a grid


def find_device():
    found = torch.accelerator.current_accelerator()
    return "cpu" if found is None else found.type


def provenance(results):
    """Where the recorded numbers come from."""
    runs = sorted(results["runs"], key=lambda run: run["date"])
    line = f"{len(results['entries'])} results, {runs[0]['date']} to {runs[-1]['date']}, "
    line += ", ".join(dict.fromkeys(f"torch {run['torch']}, {run['device']}" for run in runs))
    return line + "\n" + textwrap.fill(study.files_used(results), 98)


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


def train_live(task, *names, device="cpu"):
    """Train models of the study on a task, drawing loss and accuracy -> a model, or a list of them.

    What was trained before comes back at once. The stop button ends the training within a second;
    the same cell, run again, trains anew. TUTORIAL_STEPS in the environment is the number of steps.
    """
    live, models = Live(), [study.build(name, task).eval() for name in names]
    steps = int(os.environ.get("TUTORIAL_STEPS", 0)) or study.TASKS[task].steps
    for i, name in enumerate(names):
        if (task, name) not in TRAINED:
            said = study.train(models[i], task, steps, device, partial(live.add, name))
            hit = study.correct(models[i], study.test_clips(task, 0), device)
            TRAINED[task, name] = models[i].cpu(), said | dict(accuracy=hit.float().mean().item())
        models[i], said = TRAINED[task, name]
        live.runs[name] = said["curve"]
        line = (
            f"{label(name)}, task {task!r}: accuracy {said['accuracy']:.3f} on {study.TEST:,} new "
        )
        print(line + f"clips after {said['steps']} steps, {said['seconds']:.0f} s on {device}")
        if said["interrupted"]:
            del TRAINED[task, name]
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


# ==== SENTENCES AND TABLES OF THE RECORDED STUDY =================================================
def recorded(results, section, task, key="accuracy"):
    """{name: {seed: value}}; `section` is one, or several whose models are put side by side"""
    found = {}
    for part in [section] if isinstance(section, str) else section:
        found = study.scores(results, task, key, part) | found
    return found


def scores(results, section, task, key="accuracy"):
    """{name: (mean, half width of its 95% interval, [a value for each seed])}"""
    found = recorded(results, section, task, key)
    return {name: study.mean_and_interval(seeds) for name, seeds in found.items()}


def verdict(results, section, task, compared, key="accuracy"):
    """Which of the pairs [(a, b), ...] are ahead, which behind, as far as the numbers bear it."""
    found = recorded(results, section, task, key)
    known = [(a, b) for a, b in compared if a in found and b in found]
    lacking = [label(a) for a, b in compared if (a, b) not in known]
    groups = {"ahead": [], "behind": [], "undecided": [], MISSING: lacking}
    one_base = f", against {label(compared[0][1])}" * (len({b for _, b in compared}) == 1)
    for row in study.compare(found, known):
        who = label(row["a"]) + f" against {label(row['b'])}" * (not one_base)
        groups[row["verdict"]].append(f"{who} {row['difference']:+.3f}")
    lines = [f"{key.replace('_', ' ')}, task {task!r}{one_base}, mean differences:"]
    return "\n".join(lines + [listed(word, group) for word, group in groups.items() if group])


def listed(word, group):
    indents = dict(initial_indent=f"  {word:10}  ", subsequent_indent=14 * " ")
    return textwrap.fill("; ".join(group), 98, break_on_hyphens=False, **indents)


def shown(score):
    """(mean, half, values) -> "0.993 ± 0.004"; of one seed the value alone"""
    if score is None:
        return MISSING
    mean, half, _ = score
    return f"{mean:.3f}" + f" ± {half:.3f}" * math.isfinite(half)


def lowest(rows):
    """{name: errors of the same clips} -> who has the lowest, and by how much before the next"""
    best, second, *_ = sorted(rows, key=lambda name: rows[name].mean().item())
    gap = rows[second] - rows[best]
    half = 2 * gap.std().item() / math.sqrt(len(gap))
    if gap.mean() <= half:
        return f"undecided between {best} and {second}, {gap.mean():.3f} ± {half:.3f}"
    return f"{best} is lowest, by {gap.mean():.3f} ± {half:.3f} before {second}"


def score_table(results, section, columns, names, caption=""):
    """A row for each model; columns {heading: (task, key)}, or (task, key, another section)."""
    found = [scores(results, *(another or [section]), task, key)
             for task, key, *another in columns.values()]  # fmt: skip
    rows = [[label(name), *(shown(column.get(name)) for column in found)] for name in names]
    return figures.table(["", *columns], rows, caption)


# ==== LOOKING INSIDE =============================================================================
def small_grid(seed=0, width=2):
    """q, k, v (1, 1, 12, width) and the grid: 3 frames of 2 x 2 patches, one head."""
    generator = torch.Generator().manual_seed(seed)
    return *torch.randn(3, 1, 1, 12, width, generator=generator), (3, 2, 2)


def giga_macs(scheme, grid, dim=768, heads=12):
    """Multiply-accumulates of the attention steps of one layer, in billions, counted, not run."""
    with torch.device("meta"):
        x = torch.empty(1, math.prod(grid), dim)
        steps = [make(dim, heads) for make in va.ATTENTION[scheme]]
        with FlopCounterMode(display=False) as counter:
            for step in steps:
                step(x, grid)
    return counter.get_total_flops() / 2e9


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


def reach(names):
    """The gallery of pictures.py, by its earlier name."""
    from . import pictures

    return pictures.gallery(list(names))
