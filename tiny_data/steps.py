"""What the cells of tutorial.ipynb call: training as one watches, and sentences from numbers.

    train_live("fast", "joint", "divided")         two models, trained now, with their curves
    scores(results, "main", "plain")               {name: (mean, half of the 95% interval, seeds)}
    verdict(results, "main", "plain", pairs)       who is ahead, who behind, what is undecided

Figures are made in figures.py, statistics in study.py. No sentence on who is ahead is written by
hand: verdict() prints what the recorded numbers bear.
"""

import math
import os
from collections import Counter

import torch
from torch.utils.flop_counter import FlopCounterMode

import video_attention as va

from . import figures, inside, study

SEEDS = 3  # that it takes to say who is ahead
TRAINED = {}  # (task, name): (model, what study.train said), for the whole session


def find_device():
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def provenance(results):
    """Where the recorded numbers come from, for each way in which they were made."""
    counts = Counter()
    for entry in results["entries"]:
        run = results["runs"][entry["run"]]
        where = f"torch {run['torch']}, Python {run['python']}, {run['device']}, {run['date']}"
        counts[run["command"], where] += 1
    lines = [f"{n:5} results of {how}\n{'':12}{where}" for (how, where), n in counts.items()]
    return "\n".join(lines)


# ==== TRAINING ===================================================================================


def train_live(task, *names, device="cpu"):
    """Train models of the study on a task, drawing loss and accuracy -> a model, or a list of them.

    What was trained before comes back at once. The stop button ends the training within a second:
    what is trained so far is kept, and the models after it stay as they were built. With
    TUTORIAL_STEPS in the environment so many steps are taken, for a quick look or a test.
    """
    live, models, lines = figures.Live(), [], []
    steps = int(os.environ.get("TUTORIAL_STEPS", 0)) or study.TASKS[task].steps
    for name in names:
        model = study.build(**study.SCHEMES[name], task=task).eval()
        stopped = models and lines[-1].endswith("stopped")
        if (task, name) not in TRAINED and not stopped:
            said = study.train(model, task, steps, device, live.of(name))
            hit = study.correct(model, study.test_clips(task, 0), device)
            TRAINED[task, name] = model.cpu(), said | dict(accuracy=hit.float().mean().item())
        model, said = TRAINED.get((task, name), (model, dict(steps=0, curve=[], interrupted=True)))
        live.runs[name] = said["curve"]
        models.append(model)
        lines.append(what_was_learned(task, name, said, device))
    live.draw()
    print("\n".join(lines))
    return models if len(models) > 1 else models[0]


def trained(task, *names, device="cpu"):
    """The same, without the curves where all of them were trained before."""
    if any((task, name) not in TRAINED for name in names):
        return train_live(task, *names, device=device)
    models = [TRAINED[task, name][0] for name in names]
    return models if len(models) > 1 else models[0]


def what_was_learned(task, name, said, device):
    if said["steps"] == 0:
        return f"{figures.look(name)[0]}: not trained, stopped"
    line = f"{figures.look(name)[0]}, task {task!r}: accuracy {said['accuracy']:.3f} "
    line += f"on {study.TEST:,} new clips after {said['steps']} steps, "
    line += f"{said['seconds']:.0f} s on {device}"
    return line + (", stopped" if said["interrupted"] else "")


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


def pairs(names, against):
    return [(name, against) for name in names if name != against]


def verdict(results, section, tasks, compared, key="accuracy"):
    """Which of the pairs [(a, b), ...] are ahead and which behind, as far as the numbers bear it.

    tasks       one or a list; what is not recorded yet is left out
    """
    tasks = [tasks] if isinstance(tasks, str) else tasks
    found = {(task, name): seeds for task in tasks
             for name, seeds in recorded(results, section, task, key).items()}  # fmt: skip
    known = [((t, a), (t, b)) for t in tasks for a, b in compared]
    known = [(a, b) for a, b in known if a in found and b in found]
    one_base = len({b for _, b in compared}) == 1
    groups = {"ahead": [], "behind": [], "undecided": []}
    rows = study.compare(found, known)
    for row in rows:
        (task, a), (_, b) = row["a"], row["b"]
        who = figures.look(a)[0] + ("" if one_base else f" against {figures.look(b)[0]}")
        who += f" ({task})" * (len(tasks) > 1)
        word = row["verdict"] if row["seeds"] >= SEEDS else "undecided"
        groups[word].append(f"{who} {gap(row)}")
    text = key.replace("_", " ") + f", task {tasks[0]!r}" * (len(tasks) == 1)
    text += f", against {figures.look(compared[0][1])[0]}" * one_base
    if not known:
        return f"{text}: not recorded yet, see python -m tiny_data.study --plan"
    seeds = [row["seeds"] for row in rows]
    text += f": mean difference over {span(seeds)}\nand its 95% interval"
    text += f" for all {len(known)} at once" * (len(known) > 1)
    text += f"; undecided: zero is inside, or the lead is less than {study.MARGIN}"
    text += f",\nor there are fewer than {SEEDS} seeds" * (min(seeds) < SEEDS)
    return "\n".join([text, *(listed(word, group) for word, group in groups.items())])


def span(counts):
    """How many seeds, in words: "1 seed", "2 to 3 seeds"."""
    least, most = min(counts), max(counts)
    return f"{least} to {most} seeds" if least < most else f"{most} seed" + "s" * (most != 1)


def listed(word, group, width=84):
    """  "  ahead       a; b; c", with line breaks between the entries only"""
    lines = [""]
    for entry in group or ["none"]:
        if lines[-1] and len(lines[-1]) + len(entry) > width:
            lines.append("")
        lines[-1] += ("; " if lines[-1] else "") + entry
    return f"  {word:10}  " + (";\n" + 14 * " ").join(lines)


def gap(row):
    """A row of study.compare -> "+0.120 (+0.101 to +0.139)"; of one seed the difference alone"""
    mean, half = row["difference"], row["half"]
    return f"{mean:+.3f}" + f" ({mean - half:+.3f} to {mean + half:+.3f})" * math.isfinite(half)


def shown(score):
    """(mean, half, values) -> "0.993 ± 0.004"; of one seed the value alone"""
    if score is None:
        return "-"
    mean, half, _ = score
    return f"{mean:.3f}" + f" ± {half:.3f}" * math.isfinite(half)


def lowest(rows):
    """{name: errors of the same clips} -> who has the lowest, and by how much before the next"""
    best, second, *_ = sorted(rows, key=lambda name: rows[name].mean().item())
    gap = rows[second] - rows[best]
    half = study.quantile(len(gap) - 1) * gap.std().item() / math.sqrt(len(gap))
    if gap.mean() <= half:
        return f"undecided between {best} and {second}, {gap.mean():.3f} ± {half:.3f}"
    return f"{best} is lowest, by {gap.mean():.3f} ± {half:.3f} before {second}"


def score_table(results, section, columns, names=None, caption=""):
    """A row for each model; columns {heading: (task, key)}, or (task, key, another section)."""
    found = {}
    for head, (task, key, *another) in columns.items():
        found[head] = scores(results, *(another or [section]), task, key)
    names = list(names or dict.fromkeys(name for column in found.values() for name in column))
    known = [name for name in names if any(name in column for column in found.values())]
    rows = [[figures.look(n)[0], *(shown(f.get(n)) for f in found.values())] for n in known]
    lacking = [figures.look(name)[0] for name in names if name not in known]
    lacking += ["what is marked -"] * any("-" in row for row in rows) + ["all"] * (not rows)
    if lacking:
        said = f"not recorded yet: {', '.join(lacking)}; see python -m tiny_data.study --plan"
        caption += f" ({said})"
    return figures.table(["", *columns], rows, caption)


# ==== LOOKING INSIDE =============================================================================


def small_grid(seed=0):
    """q, k, v (1, 1, 12, 2) and the grid: 3 frames of 2 x 2 patches, one head of width 2."""
    generator = torch.Generator().manual_seed(seed)
    return *torch.randn(3, 1, 1, 12, 2, generator=generator), (3, 2, 2)


def everybodys_map(model, video, step=0):
    """How much each patch of a clip (1, 3, T, H, W) takes from each: (N, N), the mean over heads.

    The clip is taken once for each patch that asks, so that one backward pass answers them all.
    """
    block, (inputs, grid) = model.blocks[0], next(inside.inputs_of_steps(model, video))
    N = math.prod(grid)
    asks = torch.arange(N)
    mix, v = inside.linear_in_values(block.steps[step], inputs[step].expand(N, -1, -1), grid)
    (taken,) = torch.autograd.grad(mix(v)[asks, :, asks].sum(), v)  # (N, h, N, d)
    return taken.mean(dim=(1, 3))


def giga_macs(scheme, grid, dim=768, heads=12):
    """Multiply-accumulates of the attention steps of one layer, in billions, counted, not run."""
    with torch.device("meta"):
        steps = [step(dim, heads) for step in va.steps_of(scheme)]
        x = torch.empty(1, math.prod(grid), dim)
        with FlopCounterMode(display=False) as counter:
            for step in steps:
                step(x, grid)
    return counter.get_total_flops() / 2e9


# ==== TWO PICTURES OF THE TUTORIAL ===============================================================


def shapes_diagram():
    """The way of a clip through the model, with the shapes of the study's smallest task."""
    from matplotlib.patches import FancyBboxPatch

    boxes = [  # x, width, text, colour
        (0, 12, "video\n(B, 3, 4, 16, 16)", "#ffffff"),
        (14, 13, "patches\n3·4·4 pixels → D\nConv3d", "#dbe9f6"),
        (29, 11, "position\nof (t, y, x)\nadded", "#dbe9f6"),
        (45, 14, "norm\nattention step\ntokens meet", "#fdd49e"),
        (62, 13, "norm\nMLP\neach by itself", "#dbe9f6"),
        (80, 9, "norm,\nmean of\npatches", "#dbe9f6"),
        (91, 9, "linear\nD → K", "#dbe9f6"),
    ]
    figure, ((axis,),) = figures.new_figure(height=2.5)
    for x, width, text, colour in boxes:
        style = dict(boxstyle="round,pad=0,rounding_size=1", fc=colour, ec="#333333")
        axis.add_patch(FancyBboxPatch((x, 8), width, 9, **style))
        axis.text(x + width / 2, 12.5, text, ha="center", va="center", fontsize=8.5)
    for (x, width, *_), (after, *_) in zip(boxes, boxes[1:]):
        axis.annotate("", (after, 12.5), (x + width, 12.5), arrowprops=dict(arrowstyle="->"))
    axis.annotate("", (105, 12.5), (100, 12.5), arrowprops=dict(arrowstyle="->"))
    for left, right, plus in ((42.5, 60.5, 60.5), (61.3, 77.5, 77.5)):  # the residuals
        over = 20 if left < 50 else 18.8
        heights = [12.5, over, over, 13.6]
        axis.plot([left, left, right, right], heights, color="#333333", linewidth=1)
        axis.text(plus, 12.4, "+", ha="center", va="center", fontsize=12, weight="bold",
                  bbox=dict(boxstyle="circle,pad=0.05", fc="white", ec="#333333"))  # fmt: skip
    axis.text(60, 21.2, "a block; its attention steps are the scheme", ha="center", fontsize=8.5)
    shapes = [(41, "tokens (B, C + T·S, D)\n(B, 64, 48)"), (79, "(B, 64, 48)"),
              (90, "(B, 48)"), (102, "logits\n(B, 2)")]  # fmt: skip
    for x, text in shapes:
        axis.annotate(text, (x, 12.5), (x, 3.8), ha="center", va="center", fontsize=8.5,
                      arrowprops=dict(arrowstyle="-", color="#999999", linewidth=0.8))  # fmt: skip
    axis.set(xlim=(-1, 105), ylim=(1, 23))
    axis.axis("off")
    text = "Video (B, 3, 4, 16, 16) to patches, plus position: tokens (B, 64, 48). Blocks: norm "
    text += "and attention step, added; norm and MLP, added. Mean of the patches, linear: logits."
    return figures.as_picture(figure, text)


def map_of_all_steps(table, grid=(4, 4, 6), query=(1, 1, 2), dim=24, heads=4):
    """What one query takes from every patch, for each step of each scheme, untrained."""
    from matplotlib.patches import Rectangle

    maps = {}
    for name in table:
        schemes = va.steps_of(study.SCHEMES[name]["attention"])
        for number, step in enumerate(schemes, start=1):
            torch.manual_seed(0)
            x = torch.randn(2, math.prod(grid), dim)
            module = step(dim, heads).eval()
            key = figures.look(name)[0] + f", step {number}" * (len(schemes) > 1)
            taken = inside.attention_map(module, x, grid, query).abs().mean(dim=(0, 1))
            maps[key] = taken.unflatten(0, grid).detach().numpy()
    columns, gap = 3, 0.6
    rows = -(-len(maps) // columns)
    figure, axes = figures.new_figure(rows, columns, height=rows * 0.82)
    for axis, (name, values) in zip(axes.flat, maps.items()):
        for t, frame in enumerate(values):
            left = t * (grid[2] + gap)
            edges = [left + i for i in range(grid[2] + 1)], range(grid[1] + 1)
            style = dict(cmap=figures.WEIGHTS, vmin=0, vmax=values.max())
            axis.pcolormesh(*edges, frame, edgecolors="#bbbbbb", linewidth=0.4, **style)
        corner = query[0] * (grid[2] + gap) + query[2], query[1]
        for colour, width in (("white", 3), (figures.BLUE, 1.5)):
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width))
        axis.set_title(name, fontsize=8, pad=2)
        axis.set_aspect("equal")
        axis.invert_yaxis()
    for axis in axes.flat:
        axis.axis("off")
    told = [f"{name}: {int((v > 1e-9).sum())} of {v.size}" for name, v in maps.items()]
    return figures.as_picture(figure, "Who attends to whom, in patches: " + "; ".join(told))
