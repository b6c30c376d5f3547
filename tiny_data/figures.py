"""All drawing of the tutorial: pictures, players, tables, source, and stepping through a function.

Each mechanism has one colour and one marker, wherever it is drawn. Everything comes back as a
Picture, which a notebook shows when it is the last line of a cell: HTML without a network, on a
white ground of its own, so that it reads in light and dark themes, with a text for those who cannot
see it. Arrays come in, so that this module knows nothing of models.
"""

import ast
import base64
import html
import inspect
import io
import json
import sys
import textwrap
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

WIDTH = 880  # pixels: the widest thing a notebook shows without a scroll bar
SHARP = 2  # pixels of a file for one of the page
BOX = f"max-width:{WIDTH}px;background:#fff;color:#111;padding:6px;border-radius:6px;"

# Okabe and Ito's colours, which colour-blind readers tell apart; markers part those of one family.
BLACK, GREY, BLUE, SKY, GREEN = "#000000", "#7a7a7a", "#0072b2", "#56b4e9", "#009e73"
ORANGE, RED, PURPLE, BROWN = "#e69f00", "#d55e00", "#cc79a7", "#7f4f24"
MECHANISMS = {  # name in ATTENTION: what it is called, colour, marker
    "space": ("space", GREY, "o"),
    "joint": ("joint", BLACK, "o"),
    "divided": ("divided", BLUE, "s"),
    "local_global": ("local-global", SKY, "h"),
    "axial": ("axial", SKY, "P"),
    "factorised": ("factorised", BLUE, "D"),
    "factorised_heads": ("factorised heads", BLUE, "p"),
    "window": ("window", ORANGE, "v"),
    "shifted_windows": ("shifted windows", ORANGE, "<"),
    "pooled": ("pooled", ORANGE, ">"),
    "mixing": ("mixing", GREEN, "D"),
    "summary": ("summary", GREY, "d"),
    "mixing_summary": ("mixing + summary", GREEN, "d"),
    "trajectory": ("trajectory", RED, "^"),
    "trajectory_orthoformer": ("trajectory, Orthoformer", RED, "h"),
    "trajectory_nystrom": ("trajectory, Nystrom", RED, "p"),
    "trajectory_performer": ("trajectory, Performer", RED, "*"),
    "orthoformer": ("Orthoformer", BROWN, "h"),
    "nystrom": ("Nystrom", BROWN, "p"),
    "performer": ("Performer", BROWN, "*"),
    "linear": ("linear", PURPLE, "X"),
    "linear_fixation": ("linear + fixation", PURPLE, "P"),
    "lvt": ("LVT", PURPLE, "s"),
}
CHOICES = {  # of prototypes
    "orthogonal": ("orthogonal", BLUE, "o"),
    "random": ("random", ORANGE, "s"),
    "segments": ("segment means", GREEN, "^"),
}
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#ffffff", "#fdd49e", "#d55e00", "#5a1e00"])


def look(name):
    """(label, colour, marker) of a mechanism; what is in no table is grey and keeps its name."""
    return (MECHANISMS | CHOICES).get(name, (str(name), GREY, "o"))


class Picture:
    """Something to show: HTML or a PNG, and a text that says the same to who cannot see it.

    markup  as HTML; of a PNG an <img>, for a page of one's own
    shot    bytes of a PNG, `width` pixels wide on the page: notebooks show it everywhere, GitHub
            included, which takes images out of HTML
    live    the HTML does more than the PNG, which then only stands in for it
    """

    def __init__(self, markup, text, shot=None, width=None, live=False):
        self.markup, self.text, self.shot, self.width, self.live = markup, text, shot, width, live

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, about = {"text/plain": self.text}, {}
        if self.shot is None or self.live:
            data["text/html"] = self.markup
        if self.shot is not None:
            data["image/png"] = base64.b64encode(self.shot).decode()
            about["image/png"] = {"width": self.width, "alt": self.text}
        return data, about

    def __repr__(self):
        return self.text


def image(shot, text, width):
    """Bytes of a PNG -> Picture, `width` pixels wide on the page."""
    source, width = f"data:image/png;base64,{base64.b64encode(shot).decode()}", min(width, WIDTH)
    style = f"width:{width}px;max-width:100%;background:#fff;border-radius:6px"
    markup = f'<img alt="{html.escape(text, quote=True)}" style="{style}" src="{source}">'
    return Picture(markup, text, shot, width)


def as_picture(figure, text, colours=256):
    """A matplotlib figure -> Picture, SHARP pixels of the file for one of the page."""
    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", dpi=100 * SHARP, facecolor="white")
    shot = Image.open(file).convert("RGB")
    (shot.quantize(colours) if colours else shot).save(small, "PNG", optimize=True)
    return image(small.getvalue(), text, int(100 * figure.get_figwidth()))


def new_figure(rows=1, columns=1, width=8.6, height=4.0, **options):
    """A figure with its axes, at most WIDTH pixels wide; pyplot knows nothing of it."""
    figure = Figure(figsize=(min(width, WIDTH / 100), height), layout="constrained", dpi=100)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


# ==== CLIPS ======================================================================================


def pixels(video):
    """(3, T, H, W) in [-1, 1], or (3, H, W) -> uint8 (T, H, W, 3), or (H, W, 3)"""
    video = ((torch.as_tensor(video).detach().float().cpu() + 1) * 127.5).round().clamp(0, 255)
    return video.to(torch.uint8).movedim(0, -1).numpy()


def player(videos, titles, size=150, milliseconds=400):
    """Clips (3, T, H, W) side by side, playing without end: an animated PNG, no script.

    A number in the corner is the frame. `size` is pixels of the page for the height of a clip.
    """
    clips, space = [pixels(video) for video in videos], 26
    scales = [np.ones((2 * size // len(clip[0]),) * 2 + (1,), np.uint8) for clip in clips]
    tall = max(len(clip[0]) * len(scale) for clip, scale in zip(clips, scales))
    shots = []
    for t in range(max(len(clip) for clip in clips)):
        shot = [np.kron(clip[t % len(clip)], scale) for clip, scale in zip(clips, scales)]
        edges = [((2 * space, tall - len(frame)), (0, 16), (0, 0)) for frame in shot]
        page = [np.pad(frame, edge, constant_values=255) for frame, edge in zip(shot, edges)]
        shots.append(Image.fromarray(np.concatenate(page, axis=1)[:, :-16]))
        draw, left = ImageDraw.Draw(shots[-1]), 0
        for clip, title in zip(shot, titles):
            draw.text((left + 4, 10), f"{title}", fill="black", font_size=24)
            draw.text((left + 8, 2 * space + 4), f"{t}", fill="white", font_size=28,
                      stroke_width=3, stroke_fill="black")  # fmt: skip
            left += clip.shape[1] + 16
    file, rest = io.BytesIO(), shots[1:]
    shots[0].save(file, "PNG", save_all=True, append_images=rest, duration=milliseconds, loop=0)
    text = f"{len(clips)} clips of {len(shots)} frames, playing: " + "; ".join(map(str, titles))
    return image(file.getvalue(), text, shots[0].width // 2)


def film_strips(videos, titles, paths=None, patch=None, text=None):
    """Clips (3, T, H, W) as rows of frames; with `paths` (T, 2) of rows and columns a cross on the
    object, with `patch` the borders of the patches."""
    T = videos[0].shape[1]
    H, W = videos[0].shape[-2:]
    width = min(8.6, 1.1 * T * max(W / H, 1) + 1)
    height = len(videos) * ((width - 1) / T * H / W + 0.12) + 0.3
    figure, axes = new_figure(len(videos), T, width, height)
    for b, (line, title) in enumerate(zip(axes, titles)):
        for t, (axis, frame) in enumerate(zip(line, pixels(videos[b]))):
            axis.imshow(frame)
            lattice(axis, H, W, patch)
            if paths is not None:
                cross(axis, *paths[b][t])
            axis.set(xticks=[], yticks=[], title=f"frame {t}" if b == 0 else "")
        line[0].set_ylabel(title, fontsize=9)
    said = f"Clips as strips of {T} frames: " + "; ".join(titles)
    return as_picture(figure, text or said, colours=None)


def lattice(axis, H, W, patch, colour="white"):
    """The borders between patches of `patch` pixels on a picture of H x W pixels."""
    for line in range(patch or H, H, patch or H):
        axis.axhline(line - 0.5, color=colour, linewidth=0.6, alpha=0.7)
    for line in range(patch or W, W, patch or W):
        axis.axvline(line - 0.5, color=colour, linewidth=0.6, alpha=0.7)


def cross(axis, row, column):
    for colour, size, width in (("white", 11, 3), ("black", 9, 1)):
        axis.plot(column, row, "+", color=colour, markersize=size, markeredgewidth=width)


# ==== RESULTS ====================================================================================


def curves(scores, xlabel, text=None, chance=0.5, ticks=None, ylabel="accuracy on new clips"):
    """Means with 95% intervals over something, a line for each mechanism that has any.

    scores  {name: {x: (mean, half width of the interval, [value of each seed])}}
    ticks   {x: what the axis says}
    """
    figure, ((axis,),) = new_figure(height=4.4)
    scores = {name: line for name, line in scores.items() if line}
    names, places = list(scores), sorted({x for line in scores.values() for x in line})
    for i, name in enumerate(names):
        label, colour, marker = look(name)
        line = scores[name]
        x = np.array([places.index(x) for x in sorted(line)]) + 0.05 * (i - (len(names) - 1) / 2)
        mean, half = np.array([line[key][:2] for key in sorted(line)]).T
        half = np.where(np.isfinite(half), half, 0)
        ends = [mean - np.maximum(mean - half, 0), np.minimum(mean + half, 1) - mean]
        axis.errorbar(x, mean, ends, color=colour, marker=marker, markersize=8, capsize=2,
                      linewidth=1.8, elinewidth=0.9, label=label)  # fmt: skip
        for place, key in zip(x, sorted(line)):
            seeds = line[key][2]
            axis.plot([place] * len(seeds), seeds, ".", color=colour, markersize=5, alpha=0.6)
    axis.axhline(chance, color=GREY, linewidth=1, linestyle=":")
    axis.set_xticks(range(len(places)), [str((ticks or {}).get(x, x)) for x in places])
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(min(0.45, chance - 0.05), 1.03))
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    told = {name: ", ".join(f"{x} {v[0]:.2f}" for x, v in scores[name].items()) for name in names}
    told = "; ".join(f"{look(name)[0]}: {told[name]}" for name in names)
    return as_picture(figure, text or f"Accuracy over {xlabel}. {told}")


def bars(scores, text=None, lines=None, xlabel="accuracy on new clips", start=0.4):
    """One bar for each mechanism, the longest first, with 95% intervals and a dot for each seed.

    scores  {name: (mean, half width of the interval, [value of each seed])}
    lines   {what it is: value}, drawn across, for instance a ceiling
    """
    order = sorted(scores, key=lambda name: scores[name][0])
    figure, ((axis,),) = new_figure(height=0.9 + 0.27 * len(order))
    for y, name in enumerate(order):
        (label, colour, marker), (mean, half, seeds) = look(name), scores[name]
        half = half if np.isfinite(half) else 0
        axis.barh(y, mean - start, left=start, color=colour, alpha=0.35, height=0.7)
        ends = [[half], [min(half, 1 - mean)]]
        axis.errorbar(mean, y, xerr=ends, color=colour, marker=marker, capsize=3)
        axis.plot(seeds, [y] * len(seeds), ".", color="black", markersize=3)
    for label, value in (lines or {}).items():
        axis.axvline(value, color="black", linewidth=1, linestyle="--")
        axis.annotate(f"{label} {value:.3f}", (value, len(order) - 0.4), ha="center", fontsize=8,
                      annotation_clip=False)  # fmt: skip
    axis.set_yticks(range(len(order)), [look(name)[0] for name in order])
    axis.set(xlabel=xlabel, xlim=(start, 1.01), ylim=(-0.6, len(order) - 0.1))
    axis.grid(axis="x", alpha=0.3)
    told = "; ".join(f"{look(name)[0]} {scores[name][0]:.2f}" for name in order[::-1])
    return as_picture(figure, text or f"{xlabel}: {told}")


def learning_curves(runs, text=None, chance=0.5):
    """{name: [(step, loss, accuracy), ...]} -> loss and accuracy as they were while training."""
    figure, ((left, right),) = new_figure(1, 2, height=3.2)
    for name, curve in runs.items():
        label, colour, marker = look(name)
        step, loss, accuracy = np.array(curve).reshape(-1, 3).T
        style = dict(color=colour, marker=marker, markersize=5, markevery=3, label=label)
        left.plot(step, loss, **style)
        right.plot(step, accuracy, **style)
    right.axhline(chance, color=GREY, linewidth=1, linestyle=":")
    most = max([0.75, *(1.05 * loss for curve in runs.values() for _, loss, _ in curve)])
    left.set(xlabel="step", ylabel="loss", ylim=(0, most))
    right.set(xlabel="step", ylabel="accuracy on new clips", ylim=(0.4, 1.03))
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    last = [f"{look(name)[0]} {curve[-1][2]:.2f}" for name, curve in runs.items() if curve]
    return as_picture(figure, text or "Training, accuracy at the end: " + ", ".join(last))


class Live:
    """Learning curves that are drawn while models train: Live().of("joint") is an on_progress."""

    def __init__(self, seconds=1.5):
        self.runs, self.seconds, self.last, self.handle = {}, seconds, 0.0, None

    def of(self, name):
        self.runs[name] = []

        def on_progress(step, loss, accuracy):
            self.runs[name].append((step, loss, accuracy))
            if time.perf_counter() - self.last > self.seconds:
                self.draw()

        return on_progress

    def draw(self):
        """Draw what there is; called after the last model, it leaves the whole picture."""
        from IPython.display import display

        self.last = time.perf_counter()
        picture = learning_curves({name: run for name, run in self.runs.items() if run})
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)


def table(header, rows, caption=""):
    """A table of at most WIDTH pixels, names and sentences to the left and numbers to the right."""
    cell = "padding:3px 8px;border-bottom:1px solid #ddd;color:#111;background:#fff;text-align:"

    long = [max((len(str(row[i])) for row in rows), default=0) > 40 for i in range(len(header))]
    sides = ["left" if wide or i == 0 else "right" for i, wide in enumerate(long)]

    def line(values, tag):
        row = ""
        for value, side in zip(values, sides):
            row += f'<{tag} style="{cell}{side}">{html.escape(str(value))}</{tag}>'
        return f"<tr>{row}</tr>"

    body = line(header, "th") + "".join(line(row, "td") for row in rows)
    title = f'<caption style="color:#111">{html.escape(caption)}</caption>' if caption else ""
    markup = f'<div style="{BOX}overflow-x:auto;font-size:13px"><table>{title}{body}</table></div>'
    text = "\n".join(" | ".join(map(str, row)) for row in [header, *rows])
    return Picture(markup, f"{caption}\n{text}" if caption else text)


# ==== WHO ATTENDS TO WHOM ========================================================================


def attention_maps(maps, query, video=None, patch=4, text=None):
    """How much one query takes from each patch, a row of frames for each mechanism.

    maps    {name: (T, H, W)}; query (t, y, x); white is nothing at all, the query has a frame
    video   (3, T, height, width), drawn as the first row where it is given
    """
    T, H, W = next(iter(maps.values())).shape
    rows = len(maps) + (video is not None)
    figure, axes = new_figure(rows, T, min(8.6, 1.6 * T + 1.6), rows * 1.5 * H / W + 0.6)
    if video is not None:
        for t, frame in enumerate(pixels(video)[:T]):
            axes[0, t].imshow(frame)
            lattice(axes[0, t], *frame.shape[:2], patch)
            outline(axes[0, t], query, t, patch)
        axes[0, 0].set_ylabel("clip", fontsize=9)
    for line, (name, values) in zip(axes[rows - len(maps) :], maps.items()):
        values = np.asarray(values, dtype=float)
        for t, axis in enumerate(line):
            axis.imshow(values[t], cmap=WEIGHTS, vmin=0, vmax=values.max())
            lattice(axis, H, W, 1, "#cccccc")
            outline(axis, query, t)
        line[0].set_ylabel(f"{look(name)[0]}\nlargest {values.max():.2f}", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for t, axis in enumerate(axes[0]):
        axis.set_title(f"frame {t}", fontsize=9)
    told = "; ".join(f"{look(name)[0]} {shares(values)}" for name, values in maps.items())
    said = f"What the query {query} takes from each frame: {told}"
    return as_picture(figure, text or said, colours=None)


def outline(axis, query, t, patch=1):
    """A frame around the query's patch, if it is in frame t."""
    if t == query[0]:
        corner = (query[2] * patch - 0.5, query[1] * patch - 0.5)
        for colour, width in (("white", 4), ("#0072b2", 2.2)):
            axis.add_patch(Rectangle(corner, patch, patch, fill=False, ec=colour, lw=width))


def shares(values):
    """How a map (T, H, W) is divided among the frames, in words."""
    values = np.asarray(values, dtype=float)
    return ", ".join(f"{part:.0%}" for part in values.sum(axis=(1, 2)) / values.sum())


def explorer(video, maps, query=(1, 1, 1), patch=4):
    """Choose mechanism and query, see what it takes from each patch; works in exported HTML.

    video   (3, T, height, width); maps {name: (N, N) weights, query by query}, N = T*H*W. Weights
            travel as bytes, each query's largest as 255. Where scripts do not run, a picture of the
            first choice stands in.
    """
    frames = pixels(video)
    T, H, W = len(frames), frames.shape[1] // patch, frames.shape[2] // patch
    data = dict(T=T, H=H, W=W, patch=patch, query=list(query), frames=frames.tobytes(), maps={})
    for name, weights in maps.items():
        weights = np.asarray(weights, dtype=float)
        top = weights.max(axis=1, keepdims=True).clip(1e-12)
        cells = (255 * weights / top).round().astype(np.uint8)
        top = [float(f"{x:.4g}") for x in top[:, 0]]
        data["maps"][look(name)[0]] = dict(top=top, cells=cells.tobytes())
    packed = json.dumps(data, default=lambda b: base64.b64encode(b).decode())
    n = (query[0] * H + query[1]) * W + query[2]
    first = {name: np.asarray(w)[n].reshape(T, H, W) for name, w in maps.items()}
    static = attention_maps(first, query, video, patch)
    page = Path(__file__).with_name("explorer.html").read_text()
    parts = dict(ID="x" + sha256(packed.encode()).hexdigest()[:10], BOX=BOX)
    for name, part in (parts | dict(STATIC=static.markup, DATA=packed)).items():
        page = page.replace("{{" + name + "}}", part)
    return Picture(page, static.text, static.shot, static.width, live=True)


# ==== SOURCE, AND STEPPING THROUGH IT ============================================================
FINE = "font-size:12.5px;line-height:1.35;margin:0;padding:0;background:#fff;color:#111;"
FINE += "white-space:pre;word-break:normal;font-family:monospace"
HEAD = "font-size:12px;color:#555"
MADE = "margin:1px 0 5px 36px;padding:2px 8px;background:#eef5fb;border-left:3px solid #0072b2;"
MADE += "color:#111;font-size:12px;line-height:1.25;max-height:18em;"
MADE += "overflow:auto;white-space:pre;word-break:normal;font-family:monospace"


def highlighted(source):
    """Python source -> HTML with colours of its own."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    options = dict(noclasses=True, style="friendly", prestyles=FINE, cssstyles="background:#fff")
    return highlight(source, PythonLexer(stripnl=False), HtmlFormatter(**options))


def source_of(thing):
    """(lines, number of the first, name of the file); decorators may have wrapped the thing."""
    thing = inspect.unwrap(thing)
    lines, start = inspect.getsourcelines(thing)
    file = Path(inspect.getsourcefile(thing)).name
    return textwrap.dedent("".join(lines)).splitlines(), start, file


def docstring_lines(lines):
    """First and last line of the docstring of the one definition in these lines, or (0, 0)."""
    body = getattr(ast.parse("\n".join(lines)).body[0], "body", [])
    folds = len(body) > 1 and isinstance(body[0], ast.Expr)
    return (body[0].lineno, body[0].end_lineno) if folds else (0, 0)


def show_source(*things):
    """Highlighted source as it stands in its file, docstrings folded away."""
    parts, texts = [], []
    for thing in things:
        lines, start, file = source_of(thing)
        first, last = docstring_lines(lines)
        start_of_text = max(first - 1, 0)
        above, text, below = lines[:start_of_text], lines[start_of_text:last], lines[last:]
        markup = highlighted("\n".join(above)) if above else ""
        if text:
            words = html.escape("\n".join(text))
            markup += f'<details><summary style="{HEAD}">docstring</summary>'
            markup += f'<pre style="{FINE}">{words}</pre></details>'
        parts.append(boxed(f"{file}, line {start}", markup + highlighted("\n".join(below))))
        texts.append(f"# {file}, line {start}\n" + "\n".join(lines))
    return Picture("".join(parts), "\n\n".join(texts))


def boxed(title, markup):
    return f'<div style="{BOX}overflow-x:auto"><b style="{HEAD}">{title}</b>{markup}</div>'


def numbers(value, most=12):
    """A value in a few lines, numbers to two places.

    A tensor's last axis goes along a line; where it has 4 entries or fewer it goes down, the axis
    before it goes along, and a bar parts what the axes before those number.
    """
    if not isinstance(value, torch.Tensor):
        return textwrap.shorten(repr(value), 90)
    if value.numel() == 0:
        return "nothing"
    value = value.detach().cpu()
    blocks = value.reshape(-1, *value.shape[-2:]) if value.ndim > 1 else value.reshape(1, 1, -1)
    down = value.ndim > 1 and value.shape[-1] <= 4 and value.shape[-1] < value.shape[-2]
    blocks = blocks.transpose(1, 2) if down else blocks
    form = "{:5.2f}" if value.is_floating_point() else "{:3}"
    lines, fit = [], max(1, most // blocks.shape[2]) if down else 1
    for group in blocks.split(fit):
        rows = [[list(map(form.format, row[:most].tolist())) for row in block] for block in group]
        lines += [" | ".join(" ".join(row) for row in line) for line in zip(*rows)]
    wide = " ..." if blocks.shape[2] > most else ""
    return "\n".join([line + wide for line in lines[:most]] + ["..."] * (len(lines) > most))


def described(name, value):
    """(what stands in bold, what follows it) for a value that a statement made"""
    if isinstance(value, torch.Tensor):
        return f"{name} {tuple(value.shape)}", numbers(value)
    if isinstance(value, (list, tuple)) and any(isinstance(x, torch.Tensor) for x in value):
        return name, ", ".join(str(tuple(getattr(x, "shape", ()))) for x in value)
    return name, f"= {numbers(value)}"


def statements(lines):
    """[(first, last)] lines of the statements, in order; of a compound one (if, for) its head."""
    spans = set()
    for node in ast.walk(ast.parse("\n".join(lines)).body[0]):
        if isinstance(node, ast.stmt):
            inner = getattr(node, "body", None)
            last = inner[0].lineno - 1 if inner else node.end_lineno
            spans.add((node.lineno, max(node.lineno, last)))
    return sorted(spans)


class Trace:
    """Runs a function once and keeps for each of its lines what its names became.

    made    {line of the file: {name: value}}, the last time that the line ran
    passes  {line of the file: how often it ran}
    """

    def __init__(self, function, *args, **options):
        self.code, self.made, self.passes = inspect.unwrap(function).__code__, {}, {}
        self.names, self.line = {}, None
        before = sys.gettrace()
        sys.settrace(self.enter)
        try:
            self.result = function(*args, **options)
        finally:
            sys.settrace(before)

    def enter(self, frame, event, argument):
        """Called when any function is entered: only lines of this one are followed."""
        if frame.f_code is self.code:
            self.names = self.seen(frame)
            return self.step

    def step(self, frame, event, argument):
        """Called before each line and at the end: what is new, the line before has made."""
        now = self.seen(frame)
        if self.line is not None:
            old = {name: key for name, (key, value) in self.names.items()}
            new = {name: value for name, (key, value) in now.items() if old.get(name) != key}
            self.made.setdefault(self.line, {}).update(new)
            self.passes[self.line] = self.passes.get(self.line, 0) + 1
        self.names, self.line = now, frame.f_lineno
        if event == "return":
            self.made.setdefault(self.line, {})["returned"] = argument
        return self.step

    @staticmethod
    def seen(frame):
        """{name: (identity, value)}, where what was changed in place has another identity."""
        found = {}
        for name, value in frame.f_locals.items():
            if isinstance(value, torch.Tensor):
                found[name] = (id(value), value._version), value.detach().clone()
            elif isinstance(value, list):
                found[name] = (id(value), len(value)), list(value)
            elif not callable(value):
                found[name] = id(value), value
        return found


def step_through(function, *args, expected=None, **options):
    """Run a function and show its lines with the shape and the values that each made in this run.

    The lines are the function's own, as they stand in its file; one that ran several times shows
    the last. `expected`, a tensor, is compared with what the function returns (the first).
    """
    lines, start, file = source_of(function)
    trace, folded = Trace(function, *args, **options), docstring_lines(lines)
    markup, text, done = "", [f"# {file}, line {start}"], 0
    for first, last in statements(lines):
        if (first, last) == folded:
            done = last
            continue
        code = "\n".join(lines[done:last])
        at = [start + n for n in range(first - 1, last)]
        made = {name: value for n in at for name, value in trace.made.get(n, {}).items()}
        often = max((trace.passes.get(n, 0) for n in at), default=0)
        often -= lines[first - 1].lstrip().startswith("for ")  # which also runs once to end
        markup, done = markup + highlighted(code) + stepped(made, often), last
        text += [code, *("\n".join(described(*item)) for item in made.items())]
    if expected is not None:
        result = trace.result[0] if isinstance(trace.result, tuple) else trace.result
        difference = (result - expected).abs().max().item()
        text.append(f"largest difference to what was expected: {difference:.1e}")
        markup += f'<p style="margin:6px 0 0;font-size:13px">{text[-1]}</p>'
    return Picture(boxed(f"{file}, line {start}, run step by step", markup), "\n".join(text))


def stepped(made, often):
    """What one statement made, {name: value}, as HTML."""
    parts = []
    for name, value in made.items():
        bold, rest = map(html.escape, described(name, value))
        parts.append(f"<b>{bold}</b>" + ("\n" if "\n" in rest else " ") + rest)
    short = all("\n" not in part for part in parts)
    said = (", " if short else "\n").join(parts)
    after = f"(the last of {often} times) " if often > 1 else ""
    return f'<pre style="{MADE}">{after}{said}</pre>' if parts else ""
