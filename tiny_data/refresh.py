"""Make again what is generated: README's pictures and table, the notebook's outputs.

    python -m tiny_data.refresh                     all of it; the notebook takes some minutes
    python -m tiny_data.refresh picture table       only these, of gallery moving notebook too

The table stands in README.md between the lines START and END.
"""

import io
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from . import SCHEMES, moving_objects, study
from .notebook import attention_maps, cells, figures, looks, pictures

ROOT = Path(__file__).parent.parent
PICTURE = "space joint divided axial local_global window mixing shifted_windows".split()
FAMILIES = "divided axial factorised_heads window mixing trajectory orthoformer prototypes".split()
FAMILIES += "nystrom linear performer fixation neighbours pooled summary local_global".split()
FAMILIES += "shifted_windows rotary".split()
CLIP, QUERY = 35, (1, 3, 3)  # a clip, and a patch on its object that three models are asked about
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
    torch.set_num_threads(1)  # as in the study: other numbers of threads, other roundings
    clip, of = fast_clip(CLIP), {}
    for name in ("joint", "trajectory", "divided"):
        model = study.build(name, "fast", position="rotary")
        study.train(model, "fast", steps)
        right = study.correct(model, study.test_clips("fast", 0)).float().mean()
        print(f"{name}: {right:.3f} of new clips right after {steps} steps, and")
        print(f"  of all patches on the objects of 30 clips a head follows {followed(model):.0%}")
        of[name] = looked_at(model, clip, QUERY)
    pages = [figures.gaze(clip.video[0], of, QUERY, t) for t in range(clip.path.shape[1])]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=[900] * 3 + [1800], loop=0)


def fast_clip(seed):
    return moving_objects(1, seed=seed, **study.FAST)


def looked_at(model, clip, query):
    """What a query takes from each frame, as shares of it (T, H, W), and how much of that is on the
    object (T,): of the first step, in the head where the latter is most."""
    thing = on_object(clip)
    taken = attention_maps.layer_map(model, clip.video, 0, query)[0][0].abs()
    taken = taken.unflatten(-1, thing.shape)
    taken = taken / taken.sum(dim=(2, 3), keepdim=True)
    share = (taken * thing).sum(dim=(2, 3))
    best = share.mean(dim=1).argmax()
    return taken[best], share[best]


def on_object(clip, patch=4):
    """Which patches (T, H, W) of a single clip the object covers the most of."""
    sides = torch.tensor(clip.video.shape[3:])
    middles = [torch.arange(n // patch) * patch + (patch - 1) / 2 for n in sides]
    away = torch.cartesian_prod(*middles) - clip.path[0, :, None]  # (T, H*W, 2)
    away = (away + sides / 2) % sides - sides / 2  # on the torus
    return (away.abs() < 4).all(dim=2).unflatten(1, [len(side) for side in middles])


def followed(model, clips=30):
    """The share of patches on objects whose best head has more than half of each frame on them."""
    hits = []
    for clip in map(fast_clip, range(clips)):
        for place in on_object(clip)[1].nonzero().tolist():
            hits.append(looked_at(model, clip, (1, *place))[1].min() > 0.5)
    return sum(hits) / len(hits)


def table(path=ROOT / "README.md"):
    """A row for each scheme: words of looks.py, costs of one layer as torch counts them."""
    lines = ["| `attention=` | from | what a patch attends to | 8 frames | 32 frames |"]
    lines.append("|---|---|---|---:|---:|")
    for name in SCHEMES:
        costs = [f"{cells.giga_macs(name, (T, 14, 14)):.1f}" for T in (8, 32)]
        row = f"`{name}`", looks.look(name).paper, looks.look(name).words, *costs
        lines.append(f"| {' | '.join(row)} |")
    before, old = path.read_text().split(START)
    path.write_text("\n".join([before + START, *lines, END]) + old.split(END)[1])


def notebook():
    words = "-m jupyter nbconvert --to notebook --execute --inplace tutorial.ipynb"
    subprocess.run([sys.executable, *words.split()], cwd=ROOT, check=True)


if __name__ == "__main__":
    parts = {part.__name__: part for part in (picture, gallery, moving, table, notebook)}
    for name in sys.argv[1:] or parts:
        parts[name]()
