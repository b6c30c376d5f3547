"""The drawing of the tutorial: pictures, players, tables, learning curves, maps of attention.

Everything comes back as a Picture, which a notebook shows when it is the last line of a cell: HTML
without a network, on a white ground of its own, so that it reads in light and dark themes, with a
text for those who cannot see it. Arrays come in, so that this module knows nothing of models.
"""

import base64
import html
import io
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from .looks import COLOURS, label, look

WIDTH = 880  # pixels: the widest thing a notebook shows without a scroll bar
SHARP = 2  # pixels of a file for one of the page
BOX = f"max-width:{WIDTH}px;background:#fff;color:#111;padding:6px;border-radius:6px;"
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#ffffff", "#fdd49e", "#d55e00", "#5a1e00"])


class Picture:
    """Something to show: markup (HTML), and a text that says the same to who cannot see it.

    Jupyter and its exports show the markup, in which an image has its alternative text.

    shot    bytes of a PNG, `width` pixels wide on the page: GitHub takes images out of HTML
    """

    def __init__(self, markup, text, shot=None, width=None):
        self.markup, self.text, self.shot, self.width = markup, text, shot, width

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, about = {"text/plain": self.text, "text/html": self.markup}, {}
        if self.shot is not None:
            data["image/png"] = base64.b64encode(self.shot).decode()
            about["image/png"] = {"width": self.width, "alt": self.text}
        return data, about


def image(shot, text, width):
    """Bytes of a PNG -> Picture, `width` pixels wide on the page."""
    source, width = f"data:image/png;base64,{base64.b64encode(shot).decode()}", min(width, WIDTH)
    style = f"width:{width}px;max-width:100%;background:#fff;border-radius:6px"
    markup = f'<img alt="{html.escape(text, quote=True)}" style="{style}" src="{source}">'
    return Picture(markup, text, shot, width)


def captioned(picture, caption):
    """The picture, and below it a sentence that says what to see."""
    words = f'<figcaption style="font-size:13px;margin:4px 2px">{html.escape(caption)}</figcaption>'
    markup = f'<figure style="{BOX}margin:0">{picture.markup}{words}</figure>'
    return Picture(markup, f"{caption}\n{picture.text}", picture.shot, picture.width)


def as_picture(figure, text, caption="", colours=256):
    """A matplotlib figure -> Picture, SHARP pixels of the file for one of the page."""
    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", dpi=100 * SHARP, facecolor="white")
    shot = Image.open(file).convert("RGB")
    (shot.quantize(colours) if colours else shot).save(small, "PNG", optimize=True)
    picture = image(small.getvalue(), text, int(100 * figure.get_figwidth()))
    return captioned(picture, caption) if caption else picture


def new_figure(rows=1, columns=1, width=8.6, height=4.0):
    """A figure with its axes, at most WIDTH pixels wide; pyplot knows nothing of it."""
    figure = Figure(figsize=(min(width, WIDTH / 100), height), layout="constrained", dpi=100)
    return figure, figure.subplots(rows, columns, squeeze=False)


# ==== CLIPS ======================================================================================
def pixels(video):
    """(3, T, H, W) in [-1, 1], or (3, H, W) -> uint8 (T, H, W, 3), or (H, W, 3)"""
    video = ((torch.as_tensor(video).detach().float().cpu() + 1) * 127.5).round().clamp(0, 255)
    return video.to(torch.uint8).movedim(0, -1).numpy()


def player(videos, titles, size=150, milliseconds=400):
    """Clips (3, T, H, W) side by side, playing without end, with a pause before they start again,
    `size` pixels high: an animated PNG."""
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
        outlined = dict(font_size=28, stroke_width=3, stroke_fill="black")
        for clip, title in zip(shot, titles):
            draw.text((left + 4, 10), f"{title}", fill="black", font_size=24)
            draw.text((left + 8, 2 * space + 4), f"{t}", fill="white", **outlined)
            left += clip.shape[1] + 16
    file, times = io.BytesIO(), [milliseconds] * (len(shots) - 1) + [3 * milliseconds]
    shots[0].save(file, "PNG", save_all=True, append_images=shots[1:], duration=times, loop=0)
    text = f"{len(clips)} clips of {len(shots)} frames, playing: " + "; ".join(map(str, titles))
    return image(file.getvalue(), text, shots[0].width // 2)


def film_strips(videos, titles, paths, patch, caption=""):
    """Clips (3, T, H, W) as rows of frames, with a cross on the object, at the rows and columns
    `paths` (B, T, 2), and the borders of the patches."""
    (T, H, W) = videos[0].shape[1:]
    width = min(8.6, 1.1 * T * max(W / H, 1) + 1)
    height = len(videos) * ((width - 1) / T * H / W + 0.12) + 0.3
    figure, axes = new_figure(len(videos), T, width, height)
    for b, (line, title) in enumerate(zip(axes, titles)):
        for t, (axis, frame) in enumerate(zip(line, pixels(videos[b]))):
            axis.imshow(frame)
            lattice(axis, H, W, patch)
            for colour, size, wide in (("white", 11, 3), ("black", 9, 1)):
                style = dict(color=colour, markersize=size, markeredgewidth=wide)
                axis.plot(paths[b][t][1], paths[b][t][0], "+", **style)
            axis.set(xticks=[], yticks=[], title=f"frame {t}" if b == 0 else "")
        line[0].set_ylabel(title, fontsize=9)
    said = f"Clips as strips of {T} frames: " + "; ".join(titles)
    caption = caption or "Follow the cross, the object's centre, from frame to frame."
    return as_picture(figure, said, caption, colours=None)


def lattice(axis, H, W, patch, colour="white"):
    """The borders between patches of `patch` pixels on a picture of H x W pixels."""
    style = dict(color=colour, linewidth=0.6, alpha=0.7)
    for line in range(patch, H, patch):
        axis.axhline(line - 0.5, **style)
    for line in range(patch, W, patch):
        axis.axvline(line - 0.5, **style)


# ==== RESULTS ====================================================================================
def dots(series, lines=None, caption=""):
    """A row for each mechanism, the highest first, and a dot for each seed.

    series  {what: {name: [value of each seed]}}; dots of the first are full, of others hollow
    lines   {what it is: value}, drawn upright, for instance a ceiling
    """
    first = next(iter(series.values()))
    order = sorted(first, key=lambda name: np.mean(first[name]))
    figure, ((axis,),) = new_figure(height=1 + 0.22 * len(order))
    for i, (what, found) in enumerate(series.items()):
        for y, name in enumerate(order):
            values, colour = found.get(name, []), look(name).colour
            style = dict(facecolor="none" if i else colour, edgecolor=colour, s=34, alpha=0.8)
            axis.scatter(values, [y - 0.3 * i] * len(values), **style)
        axis.scatter([], [], facecolor="none" if i else "black", edgecolor="black", label=what)
    for what, value in (lines or {}).items():
        axis.axvline(value, color="black", linewidth=1, linestyle="--", label=f"{what} {value:.3f}")
    axis.set_yticks(range(len(order)), [label(name) for name in order])
    axis.set(xlabel="accuracy on new clips", xlim=(0.4, 1.02), ylim=(-0.8, len(order) - 0.3))
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    told = [f"{what}: " + ", ".join(f"{label(name)} {np.mean(x):.2f}" for name, x in found.items())
            for what, found in series.items()]  # fmt: skip
    return as_picture(figure, "accuracy on new clips, " + "; ".join(told), caption)


def learning_curves(runs, chance=0.5, caption=""):
    """{name: [(step, loss, accuracy), ...]} -> loss and accuracy as they were while training."""
    figure, ((left, right),) = new_figure(1, 2, height=2.2)
    for name, curve in runs.items():
        step, loss, accuracy = np.array(curve).reshape(-1, 3).T
        style = dict(color=look(name).colour, marker=look(name).marker, label=label(name))
        left.plot(step, loss, markersize=5, markevery=3, **style)
        right.plot(step, accuracy, markersize=5, markevery=3, **style)
    right.axhline(chance, color="#7a7a7a", linewidth=1, linestyle=":")
    most = max([0.75, *(1.05 * loss for curve in runs.values() for _, loss, _ in curve)])
    left.set(xlabel="step", ylabel="loss", ylim=(0, most))
    right.set(xlabel="step", ylabel="accuracy on new clips", ylim=(0.4, 1.03))
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    last = [f"{label(name)} {curve[-1][2]:.2f}" for name, curve in runs.items() if curve]
    told = "accuracy on the clips of the last steps: " + ", ".join(last)
    return as_picture(
        figure, f"Loss and accuracy over steps; {told}", caption or f"Training, {told}."
    )


def table(header, rows, caption=""):
    """A table of at most WIDTH pixels, names and sentences to the left and numbers to the right."""
    cell = "padding:3px 8px;border-bottom:1px solid #ddd;color:#111;background:#fff;text-align:"
    long = [any(len(str(row[i])) > 40 for row in rows) for i in range(len(header))]
    sides = ["left" if wide or i == 0 else "right" for i, wide in enumerate(long)]

    def line(values, tag):
        parts = zip(sides, (html.escape(str(value)) for value in values))
        cells = [f'<{tag} style="{cell}{side}">{value}</{tag}>' for side, value in parts]
        return f"<tr>{''.join(cells)}</tr>"

    body = line(header, "th") + "".join(line(row, "td") for row in rows)
    title = f'<caption style="color:#111">{html.escape(caption)}</caption>' if caption else ""
    markup = f'<div style="{BOX}overflow-x:auto;font-size:13px"><table>{title}{body}</table></div>'
    text = "\n".join(" | ".join(map(str, row)) for row in [header, *rows])
    return Picture(markup, f"{caption}\n{text}" if caption else text)


# ==== WHO ATTENDS TO WHOM ========================================================================
def maps(of, query, video=None, patch=4, caption=""):
    """How much one query takes from each patch, a row of frames for each mechanism.

    of      {name: (T, H, W)}; query (t, y, x); white is nothing at all, the query has a frame
    video   (3, T, height, width), drawn as the first row where it is given
    """
    T, H, W = next(iter(of.values())).shape
    rows = len(of) + (video is not None)
    width = min(8.6, 1.6 * T + 1.6)
    tall = max(min(1.5, (width - 0.9) / T) * H / W, 0.75)  # a label's room
    figure, axes = new_figure(rows, T, width, rows * tall + 0.6)
    if video is not None:
        for t, frame in enumerate(pixels(video)[:T]):
            axes[0, t].imshow(frame)
            lattice(axes[0, t], *frame.shape[:2], patch)
            outline(axes[0, t], query, t, patch)
        axes[0, 0].set_ylabel("clip", fontsize=9)
    for line, (name, values) in zip(axes[rows - len(of) :], of.items()):
        values = np.asarray(values, dtype=float)
        for t, axis in enumerate(line):
            axis.imshow(values[t], cmap=WEIGHTS, vmin=0, vmax=values.max())
            lattice(axis, H, W, 1, "#cccccc")
            outline(axis, query, t)
        largest = f"{values.max():.2f}" if values.max() >= 0.01 else f"{values.max():.1g}"
        line[0].set_ylabel(f"{label(name)}\nlargest {largest}", fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for t, axis in enumerate(axes[0]):
        axis.set_title(f"frame {t}", fontsize=9)
    parts = {name: np.asarray(values, float).sum(axis=(1, 2)) for name, values in of.items()}
    parts = {name: ", ".join(f"{x:.0%}" for x in part / part.sum()) for name, part in parts.items()}
    told = "; ".join(f"{label(name)} {part}" for name, part in parts.items())
    caption = caption or "The darker a patch, the more the framed one takes from it: see where."
    said = f"What the query {query} takes from each frame: {told}"
    return as_picture(figure, said, caption, colours=None)


def gaze(video, of, query, t, patch=4):
    """One frame of a moving picture: the clip (3, T, height, width), pale, and in blue what one
    query takes, in red, by name as (maps (T, H, W), shares (T,) on the object)."""
    figure, (axes,) = new_figure(1, len(of), 8.8, 2.2)
    shot = pixels(video)[t] / 255
    pale = (shot + 2 * shot.mean(axis=2, keepdims=True) + 1) / 4
    for axis, (name, (taken, share)) in zip(axes, of.items()):
        cover = 0.9 * np.kron(taken[t] / taken[t].max(), np.ones((patch, patch)))[..., None]
        axis.imshow(pale * (1 - cover) + np.array(to_rgb(COLOURS["blue"])) * cover)
        lattice(axis, *shot.shape[:2], patch)
        corner = patch * query[2] - 0.5, patch * query[1] - 0.5
        style = dict(ec=COLOURS["red"], lw=3, ls="-" if t == query[0] else ":")
        axis.add_patch(Rectangle(corner, patch, patch, fill=False, **style))
        axis.set(xticks=[], yticks=[], title=label(name) + ", time step" * (name == "divided"))
        axis.set_xlabel(f"frame {t}: {share[t]:.0%} on the object")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, facecolor="white")
    return Image.open(file).convert("RGB").quantize(128)


def outline(axis, query, t, patch=1):
    """A frame around the query's patch, if it is in frame t."""
    if t == query[0]:
        corner = (query[2] * patch - 0.5, query[1] * patch - 0.5)
        for colour, width in (("white", 4), (COLOURS["blue"], 2.2)):
            axis.add_patch(Rectangle(corner, patch, patch, fill=False, ec=colour, lw=width))


def explorer(video, of, query=(1, 1, 1), patch=4):
    """What one patch takes from every other, a row for each mechanism; a click on a patch makes it
    the query of all rows. Works in exported HTML; without scripts a picture of one query stands in.

    of      {name: (N, N) weights, query by query}, N = T*H*W; they travel as bytes, each query's
            largest as 255
    """
    frames, rows = pixels(video), []
    T, H, W = len(frames), frames.shape[1] // patch, frames.shape[2] // patch
    for name, weights in of.items():
        top = np.asarray(weights, dtype=float).max(axis=1, keepdims=True).clip(1e-12)
        cells = (255 * np.asarray(weights) / top).clip(0).round().astype(np.uint8)
        rows.append(dict(name=label(name), top=top[:, 0].round(4).tolist(), cells=cells.tobytes()))
    data = dict(T=T, H=H, W=W, patch=patch, query=query, frames=frames.tobytes(), rows=rows)
    packed = json.dumps(data, default=lambda b: base64.b64encode(b).decode())
    n = (query[0] * H + query[1]) * W + query[2]
    static = maps({name: w[n].reshape(T, H, W) for name, w in of.items()}, query, video, patch)
    page = Path(__file__).with_name("explorer.html").read_text()
    for name, part in dict(BOX=BOX, STATIC=static.markup, DATA=packed).items():
        page = page.replace("{{" + name + "}}", part)
    return Picture(page, static.text, static.shot, static.width)
