"""Make again what is generated: README's pictures and table, the notebook's outputs.

    python -m tiny_data.refresh                     all of it; the notebook takes some minutes
    python -m tiny_data.refresh picture table       only these, of gallery moving notebook too

The table stands in README.md between the lines START and END; without them it is printed.
"""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

import video_attention as va

from . import SCHEMES, moving_objects, study
from .notebook import attention_maps, cells, figures, looks, pictures

ROOT = Path(__file__).parent.parent
PICTURE = "space joint divided axial local_global window mixing shifted_windows".split()
FAMILIES = "divided axial factorised_heads window mixing trajectory orthoformer prototypes".split()
FAMILIES += "nystrom linear performer fixation neighbours pooled summary local_global".split()
FAMILIES += "shifted_windows rotary".split()
SEEDS = {"joint": 0, "trajectory": 0, "divided": 0}  # with which each of them has learned
CLIP, QUERY = 35, (1, 3, 3)  # a clip, and a patch on its object that all three can be asked about
START, END = "<!-- mechanisms: python -m tiny_data.refresh table -->", "<!-- end of mechanisms -->"


def picture(path=ROOT / "tiny_data" / "who_attends_to_whom.png"):
    """What one patch attends to in eight schemes."""
    path.write_bytes(pictures.sheet(PICTURE, grid=(4, 6, 8), query=(1, 2, 3)).shot)


def gallery(path=ROOT / "tiny_data" / "gallery.png"):
    """One of every family with what a strip of frames cannot show, in two columns."""
    page, tall = Image.new("RGB", (1760, 6000), "white"), [0, 0]
    for name in FAMILIES:
        shot = Image.open(io.BytesIO(pictures.drawn(name)[0].shot))
        column = tall.index(min(tall))
        place = column * 900, tall[column]
        ImageDraw.Draw(page).text(place, looks.label(name), fill="black", font_size=30)
        page.paste(shot, (place[0], place[1] + 40))
        tall[column] += shot.height + 64
    page.crop((0, 0, 1760, max(tall))).quantize(128).save(path, optimize=True)


def moving(path=ROOT / "tiny_data" / "attention.gif", steps=600):
    """Three models, trained here on the fast task, and what one patch on the object takes from each
    frame, in the head that stays on the object most: heads share the work."""
    clip, maps = moving_objects(1, seed=CLIP, **study.TASKS["fast"].options), {}
    for name, seed in SEEDS.items():
        model = learned(name, seed, steps)
        print(f"  of all patches on the objects of 30 clips a head follows {followed(model):.0%}")
        maps[name] = looked_at(model, clip.video, object_patches(clip.path[0]), QUERY)
    pages = [page_of(clip, maps, t) for t in range(len(clip.path[0]))]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=[900] * 3 + [1800], loop=0)


def learned(name, seed, steps):
    """A model of the study's size with rotary positions, after its training."""
    torch.set_num_threads(1)  # as in the study: other numbers of threads, other roundings
    torch.manual_seed(seed)
    shape = dict(num_frames=4, image_size=study.FAST["size"], position="rotary")
    model = va.VideoTransformer(name, **study.MODEL | shape)
    study.train(model, "fast", steps, seed=seed)
    right = study.correct(model, study.test_clips("fast", seed)).float().mean()
    print(f"{name}, seed {seed}: {right:.3f} of new clips right after {steps} steps")
    return model


def object_patches(path, grid=(4, 4, 8), patch=4):
    """Which patches (T, H, W) the object, at rows and columns `path` (T, 2), covers the most of."""
    near = []
    for axis in (1, 2):
        middles = torch.arange(grid[axis]) * patch + (patch - 1) / 2
        around = grid[axis] * patch / 2
        near.append(
            ((middles - path[:, axis - 1, None] + around) % (2 * around) - around).abs() < 4
        )
    return near[0][:, :, None] & near[1][:, None, :]


def looked_at(model, video, thing, query):
    """What a query takes from each frame, as shares of it (T, H, W), and how much of that is on the
    thing (T,): of the first step, in the head where the latter is most."""
    entered = attention_maps.inputs_of_steps(model, video)[0][0]
    taken = attention_maps.attention_map(model.blocks[0].steps[0], *entered, query)[0].abs()
    taken = taken.unflatten(-1, thing.shape)
    taken = taken / taken.sum(dim=(2, 3), keepdim=True)
    share = (taken * thing).sum(dim=(2, 3))
    best = share.mean(dim=1).argmax()
    return taken[best], share[best]


def followed(model, clips=30):
    """The share of patches on objects whose best head has more than half of each frame on them."""
    hits = []
    for seed in range(clips):
        clip = moving_objects(1, seed=seed, **study.TASKS["fast"].options)
        thing = object_patches(clip.path[0])
        for place in thing[1].nonzero().tolist():
            _, share = looked_at(model, clip.video, thing, (1, *place))
            hits.append(share.min().item() > 0.5)
    return sum(hits) / len(hits)


def page_of(clip, maps, t):
    """One frame of the moving picture: the clip, pale, and the attention in blue."""
    figure, (axes,) = figures.new_figure(1, len(maps), 8.8, 2.2)
    for axis, (name, (taken, share)) in zip(axes, maps.items()):
        shot = figures.pixels(clip.video[0])[t].astype(float)
        shot = (0.5 * shot + shot.mean(axis=2, keepdims=True)) / 2 / 255 + 0.25  # paler
        axis.imshow(shot)
        cover = np.zeros((*taken.shape[1:], 4)) + to_rgba(looks.COLOURS["blue"])
        cover[..., 3] = 0.9 * taken[t] / taken[t].max()
        axis.imshow(cover, extent=(-0.5, shot.shape[1] - 0.5, shot.shape[0] - 0.5, -0.5))
        figures.lattice(axis, *shot.shape[:2], 4)
        corner = 4 * QUERY[2] - 0.5, 4 * QUERY[1] - 0.5
        style = dict(ec=looks.COLOURS["red"], lw=3, ls="-" if t == QUERY[0] else ":")
        axis.add_patch(Rectangle(corner, 4, 4, fill=False, **style))
        step = ", time step" * (name == "divided")
        axis.set(xticks=[], yticks=[], title=looks.label(name) + step)
        axis.set_xlabel(f"frame {t}: {share[t]:.0%} on the object")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, facecolor="white")
    return Image.open(file).convert("RGB").quantize(128)


def table(path=ROOT / "README.md"):
    """A row for each scheme: words of looks.py, costs of one layer as torch counts them."""
    lines = ["| `attention=` | from | what a patch attends to | 8 frames | 32 frames |"]
    lines.append("|---|---|---|---:|---:|")
    for name in SCHEMES:
        costs = [f"{cells.giga_macs(name, (T, 14, 14)):.1f}" for T in (8, 32)]
        lines.append(
            " | ".join([f"| `{name}`", looks.look(name).paper, looks.look(name).words, *costs])
            + " |"
        )
    text, rows = path.read_text(), "\n".join(lines)
    if START not in text or END not in text:
        return print(f"{path.name} has no lines {START} and {END}; between them belongs\n{rows}")
    before, after = text.split(START)[0], text.split(END)[1]
    path.write_text(f"{before}{START}\n{rows}\n{END}{after}")


def notebook():
    words = "-m jupyter nbconvert --to notebook --execute --inplace tutorial.ipynb"
    subprocess.run([sys.executable, *words.split()], cwd=ROOT, check=True)


if __name__ == "__main__":
    parts = {"picture": picture, "gallery": gallery, "moving": moving, "table": table}
    parts["notebook"] = notebook
    for name in sys.argv[1:] or parts:
        parts[name]()
