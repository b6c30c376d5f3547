"""The picture at the head of a mechanism's section: who attends to whom, why, and at what cost.

Cells are found by gradients through the code, equations and pictures in letters are read from the
file, costs are counted by torch, and the sentence is the row of looks.py: a new scheme needs
nothing here. DETAILS draws, for some, what a strip of frames cannot show.
"""

import html
import inspect
import re
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

import video_attention as va

from ..moving_objects import moving_objects
from . import attention_maps, cells, figures
from .looks import COLOURS, label, look

GRID, QUERY, WIDE, LEFT = (4, 4, 6), (1, 1, 2), 33.5, 6  # all lengths are in patches
ORANGE, BLUE, SKY = (COLOURS[name] for name in ("red", "blue", "sky"))  # queries, keys, both
SHADES = ["#e3e7ea", BLUE, SKY, "#b9def5", ORANGE]  # never, last step, steps before, the query
# Where the equations are, of parts and of schemes whose mechanism is a class.
SOURCES = {f"trajectory_{x}": f"{x}_per_frame" for x in ("orthoformer", "nystrom", "performer")}
SOURCES["trajectory"] = "trajectory_attention attend_per_frame"
SOURCES = {name: f"{words} attend_along_trajectories" for name, words in SOURCES.items()}
SOURCES |= {x: f"{x}_attention" for x in ("orthoformer", "performer", "linear")}
SOURCES |= dict(linear_fixation="linear_attention fixation_gate", lvt="linear_attention")
SOURCES |= dict(mixing="mixing_attention mix_frames", prototypes="most_orthogonal_subset")
SOURCES |= dict(rotary="rotate", fixation="fixation_gate", neighbours="shift_from_neighbours")


def mechanism(name):
    """The picture of a row of va.ATTENTION, or of prototypes, fixation, rotary or neighbours."""
    strip, caption = drawn(name)
    told = [headline(name), *equations(name), cost(name)]
    told = "".join(f'<p style="margin:6px 0;line-height:1.25">{part}</p>' for part in told)
    style = "display:flex;flex-wrap:wrap;gap:6px 18px;align-items:center;font-size:14px"
    markup = f'<div style="flex:0 1 430px">{strip.markup}</div>'
    markup += f'<div style="flex:1 1 300px">{told}</div>'
    markup = f'<div style="{style}">{markup}</div>'
    text = "\n".join([f"{label(name)}. {sentence(name)}", *letters(name)])
    return figures.captioned(figures.Picture(markup, text, strip.shot, strip.width), caption)


def drawn(name):
    """What is drawn of a mechanism, and what it shows."""
    page = Page()
    said = [page.scheme(rows_of(name))] if name in va.ATTENTION else []
    said += [draw(page, name) for draw in DETAILS.get(name, [])]
    return page.picture(f"{label(name)}: {' '.join(said)}"), " ".join(said)


def gallery(names):
    """Strip, label and sentence of each, a few in a row."""
    cards = []
    for name in names:
        page = Page(left=LEFT - 0.5, pixels=320)
        said = page.scheme([("", *rows_of(name)[-1][1:])])
        strip = page.picture(f"{label(name)}: {said}").markup
        cards.append(f"<div>{strip}<br>{headline(name)}</div>")
    still = sheet(names, columns=3)
    style = "display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:12px 18px"
    markup = f'<div style="{style};font-size:13px">{"".join(cards)}</div>'
    return figures.captioned(figures.Picture(markup, still.text, still.shot, still.width), LEGEND)


def sheet(names, columns=2, grid=GRID, query=QUERY):
    """What reaches a patch in a block of each scheme, in one image."""
    each, told = grid[0] * (grid[2] + 1) + 2, []
    page = Page(each * columns - 2, 880)
    for i, name in enumerate(names):
        top, left = i // columns * (grid[1] + 2.6), i % columns * each
        page.write(left, top + 1.3, label(name), va="baseline", fontsize=9)
        _, shades, values = rows_of(name, grid, query)[-1]
        page.strip(shades, values, left, top + 1.9)
        told.append(f"{label(name)}: {(shades > 0).sum()} of {shades.size}")
    page.write(page.sides[1] / 2, page.bottom + 1, LEGEND, ha="center", fontsize=9)
    return page.picture("How many patches reach one in a block: " + "; ".join(told))


LEGEND = "One patch (orange), what its last step takes (dark), and what steps before bring (light)."
BLOCKS = " Patches that are drawn as one block are taken as their mean."


# ==== STRIPS =====================================================================================
class Page:
    """A drawing that is filled from the top: `bottom` is where the next thing goes."""

    def __init__(self, right=WIDE, pixels=430, left=0):
        self.figure, self.sides, self.pixels, self.bottom = Figure(), (left, right), pixels, 0.0
        self.axis = self.figure.add_axes([0, 0, 1, 1])
        self.axis.axis("off")

    def picture(self, text):
        inches, (left, right) = self.pixels / 100, self.sides
        self.figure.set_size_inches(inches, inches * self.bottom / (right - left))
        self.axis.set(xlim=(left, right), ylim=(self.bottom, 0))
        return figures.as_picture(self.figure, text)

    def write(self, x, y, words, **style):
        self.axis.text(x, y, words, **dict(fontsize=8, va="center", linespacing=1.1) | style)
        self.bottom = max(self.bottom, y + 0.7)

    def box(self, x, y, width, height, colour, **style):
        self.axis.add_patch(Rectangle((x, y), width, height, fc=colour, **dict(lw=0) | style))
        self.bottom = max(self.bottom, y + height + 0.9)

    def strip(self, shades, values=None, left=LEFT, top=None, words=""):
        """Frames (T, H, W) of SHADES or colours; neighbours of the same value are one block.
        Returns a function from (t, y, x) to where that patch is on the page."""
        top = self.bottom if top is None else top
        self.write(left - 0.7, top + shades.shape[1] / 2, words, ha="right")
        values = different(shades.shape) if values is None else values
        wide, tall = same(values, 2), same(values, 1)

        def place(t, y, x):
            return left + t * (shades.shape[2] + 1) + x, top + y

        for at, shade in np.ndenumerate(shades):
            colour = shade if isinstance(shade, str) else SHADES[shade]
            self.box(*place(*at), 0.87 + 0.13 * wide[at], 0.87 + 0.13 * tall[at], colour)
        return place

    def heads(self):
        for t in range(GRID[0]):
            name = "t" + f"{t - QUERY[0]:+d}" * (t != QUERY[0])
            self.write(LEFT + t * (GRID[2] + 1) + GRID[2] / 2, 0.6, name, ha="center")

    def scheme(self, rows):
        """The strips of rows_of below each other -> what they show, in a sentence."""
        self.heads()
        for words, *strip in rows:
            self.strip(*strip, words=words)
        _, shades, values = rows[-1]
        taken = (shades == 1) | (shades == 4)
        *first, last = map(str, taken.sum(axis=(1, 2)))
        each = f"{', '.join(first)} and {last} of the {taken[0].size} patches of the frames"
        told = f"The patch in orange takes from {'every patch' if taken.all() else each} (blue)."
        if len(rows) > 1:
            told = "Dark blue is what the patch in orange takes in each step; in the block "
            told += f"{(shades > 0).sum()} patches reach it, light blue by the steps before."
        return told + BLOCKS * bool(same(values, 2).any())


def same(values, axis):
    """Where a value (T, H, W) is that of the next one along the axis."""
    return np.abs(np.diff(values, axis=axis, append=np.nan)) < 1e-6 * np.abs(values)


def rows_of(name, grid=GRID, query=QUERY):
    """The strips of a scheme, of each step and, if there are more, of their block: words, SHADES
    (T, H, W), and values (T, H, W), equal in one step for patches that are taken as a mean."""
    paid, reached = cells.steps_of(name, grid, query)
    apart, rows = different(grid), []
    for i, (make, taken) in enumerate(zip(va.ATTENTION[name], paid), start=1):
        rows.append((step_name(i, *make.args), (taken > 1e-9) * 1, apart))
    rows.append(("the block", reached, apart))
    if len(paid) == 1:
        rows = [("", reached, np.where(reached, paid[0], apart))]
    for _, shades, values in rows:
        shades[query], values[query] = 4, apart[query]
    return rows


def different(grid):
    return -1.0 - np.arange(np.prod(grid)).reshape(grid)


def step_name(i, mechanism, options):
    return f"step {i}\n" + options.get("axis", mechanism.__name__.split("_")[0])


# ==== DETAILS: each draws on below the strips and says what it shows =============================
def path(page, name):
    """A bright thing that moves, found in every frame by the scheme's own two stages."""
    torch.manual_seed(0)
    module, x = va.ATTENTION[name][0](24, 4), 0.2 * torch.randn(*GRID, 24)
    spots, thing = [(0, 0, 0), (1, 1, 2), (2, 2, 4), (3, 3, 5)], torch.randn(24).sign()
    for spot, bright in zip(spots, (1.7, 1.8, 1.76, 1.6)):
        x[spot] = bright * thing
    for layer in (module.qkv, module.proj_q, module.proj_kv):
        layer.weight.data = torch.eye(24).repeat(layer.out_features // 24, 1)
        layer.bias.data.zero_()
    x = x.flatten(0, 2)[None]
    found, along = attention_maps.trajectory_maps(module, x, GRID, QUERY)
    found, along = found[0].mean(0), along[0].mean(0).tolist()
    spots = [(t, *divmod(frame.argmax().item(), GRID[2])) for t, frame in enumerate(found)]
    place = page.strip(np.full(GRID, 2), words="along\nthe path")
    middles = [np.add(place(*spot), 0.43) for spot in spots]
    for t, (start, end) in enumerate(zip(middles, middles[1:])):
        weight = along[t if t < QUERY[0] else t + 1]  # of the end away from the query
        page.axis.plot(*zip(start, end), color=COLOURS["orange"], lw=1 + 18 * weight)
    for spot in spots:
        page.box(*place(*spot), 0.87, 0.87, ORANGE if spot == QUERY else BLUE, zorder=3)
    told = ", ".join(f"{weight:.2f}" for weight in along)
    return f"The line joins what it finds in each frame, as thick as that counts: {told}."


def ringed(page, name, count=8):
    """The prototypes among the patches of a clip, by the file's own choice."""
    video = moving_objects(1, seed=5, size=(16, 24)).video[0]
    patches = video.unfold(2, 4, 4).unfold(3, 4, 4).movedim(0, 3).flatten(3).flatten(0, 2)
    torch.manual_seed(0)
    patches = (patches - patches.mean(0))[None, None] + 0.01 * torch.randn(patches.shape)
    chosen = va.orthogonal_prototypes(patches, patches, count)[0, 0]
    numbers = torch.cdist(chosen, patches[0, 0]).argmin(1)
    place = page.strip(np.full(GRID, 0), words="in a clip")
    for t, frame in enumerate(figures.pixels(video)):
        (left, top), (right, bottom) = place(t, 0, 0), place(t, *GRID[1:])
        page.axis.imshow(frame, extent=(left, right, bottom, top), aspect="auto", zorder=2)
    for spot in zip(*np.unravel_index(numbers.numpy(), GRID)):
        for colour, width in (("white", 4), (ORANGE, 2)):
            style = dict(fill=False, ec=colour, lw=width, zorder=3)
            page.axis.add_patch(Circle(np.add(place(*spot), 0.5), 0.55, **style))
    return f"Ringed in a clip: {count} patches, chosen because they differ most, stand for all 96."


KEYS = "#009e73 #cc79a7 #e69f00 #7f4f24 #000000 #7a7a7a #7b3294 #a6d854".split()
ARROWS = dict(zip([(0, 0), *(step[1:] for step in va.EIGHT_AROUND)], ["own", *"↓↑→←↖↘↗↙"]))


def made_of(page, name, mix, words):
    """From which patches the channels of a key come, found by mixing the numbers of the patches."""
    numbers = torch.arange(96.0).view(1, 1, 96, 1).expand(-1, -1, -1, 16)
    sources = mix(numbers)[0, 0, attention_maps.number_of(QUERY, 96, GRID)].long().tolist()
    colours = dict(zip(dict.fromkeys(sources), KEYS)) | {sources[-1]: BLUE}
    shades, left = np.full(GRID, SHADES[0], dtype=object), LEFT
    for n, colour in colours.items():
        shades[np.unravel_index(n, GRID)] = colour
    page.strip(shades, words=words)
    top = page.bottom
    page.write(LEFT - 0.7, top + 0.7, "channels", ha="right")
    for n, colour in colours.items():
        t, y, x = np.subtract(np.unravel_index(n, GRID), QUERY)
        wide = 1.7 * sources.count(n)
        page.box(left, top, wide - 0.12, 1.4, colour)
        page.write(left + wide / 2, top + 2, f"t{t:+d}" if t else ARROWS[y, x], ha="center")
        left += wide
    page.bottom += 0.3
    words = words.replace("\n", " ")
    return f"{words} is made of channels of {len(colours)} patches, each in its colour."


def mixed_frames(x):
    return va.mix_frames(x.view(4, 1, 24, 16), 4).view(1, 1, 96, 16)


SIZES = dict(N=3.8, P=1.6, d=1.1, M=2.2)
LINEAR = "q:φ(Q):N×d · ( k:φ(K)ᵀ:d×N · k:V:N×d ) = q:φ(Q):N×d · x:φ(K)ᵀV:d×d"
MATRICES = dict(
    softmax="q:Q:N×d · k:Kᵀ:d×N · k:V:N×d = n:weights:N×N · k:V:N×d",
    linear=LINEAR,
    performer=LINEAR.replace("Q):N×d", "Q):N×M").replace("d×N", "M×N").replace("d×d", "M×d"),
    nystrom="q:QK̃ᵀ:N×P · x:(Q̃K̃ᵀ)⁺:P×P · k:Q̃Kᵀ:P×N · k:V:N×d",
    orthoformer="q:QPᵀ:N×P · k:PKᵀ:P×N · k:V:N×d",
)


def products(page, name):
    """Which matrices are multiplied, by their sizes."""
    name = name.removeprefix("trajectory_")
    for line in ("softmax", name) if name == "linear" else (name,):
        left, top = LEFT - 0.8, page.bottom
        for part in MATRICES[line].split():
            left = matrix(page, left, top, *part.split(":"))
        page.bottom += 0.6
    last = MATRICES[name].split(":")[-1]
    small = f"the small table is {last}" if name in ("linear", "performer") else "P is small"
    return f"Below, what is multiplied, by size: {small}, and nothing has to be N×N."


def matrix(page, left, top, kind, words=None, size=None):
    """A matrix, or a sign between two of them -> where the next one begins."""
    tall = SIZES["N"]
    if words is None:
        page.write(left, top + tall / 2, kind, ha="center", fontsize=10)
        return left + 0.9
    rows, columns = (SIZES[letter] for letter in size.split("×"))
    room, colour = max(columns, 2.4) + 0.8, dict(q=ORANGE, k=BLUE, x=SKY, n=SHADES[0])[kind]
    page.box(left + (room - columns) / 2, top + (tall - rows) / 2, columns, rows, colour)
    page.write(left + room / 2, top + tall + 1.1, f"{words}\n{size}", ha="center")
    return left + room + 0.6


def gate(page, name):
    """The gate of the file for random q, k and v: a bar for each feature."""
    torch.manual_seed(0)
    layer, (q, k, v) = torch.nn.Linear(48, 16), torch.randn(3, 1, 1, 1, 16)
    torch.nn.init.normal_(layer.weight, std=0.25)
    bars = va.fixation_gate(layer, va.relu_features(q), va.relu_features(k), v).flatten().tolist()
    top = page.bottom + 0.3
    page.write(LEFT - 0.7, top + 1.5, "gate, 0 to 1", ha="right")
    for i, height in enumerate(bars):
        page.box(LEFT + i * 1.7, top, 1.4, 3, SHADES[0])
        page.box(LEFT + i * 1.7, top + 3 - 3 * height, 1.4, 3 * height, COLOURS["green"])
    return "Green bars: how far the gate of one patch is open for each feature of q and k."


def clocks(page, name):
    """A pair of channels for each axis, turned by the file, as the hand of a clock."""
    page.heads()
    turned = va.rotate(torch.tensor([1.0, 0.0] * 3).expand(1, 1, 96, 6), GRID).view(*GRID, 3, 2)
    for axis, words in enumerate(("turns\nwith t", "turns\nwith y", "turns\nwith x")):
        shades, hands = np.full(GRID, 3), []
        shades[QUERY] = 4
        place = page.strip(shades, words=words)
        for at in np.ndindex(GRID):
            (x, y), (a, b) = np.add(place(*at), 0.43), turned[at][axis].tolist()
            hands += [(x, y), (x + 0.4 * b, y - 0.4 * a), (np.nan, np.nan)]
        page.axis.plot(*zip(*hands), "k", lw=1.3)
    return "Each hand is a pair of channels of q or k; it turns from frame to frame, row or column."


DETAILS = {f"trajectory_{way}": [path, products] for way in ("orthoformer", "nystrom", "performer")}
DETAILS |= {name: [products] for name in ("nystrom", "performer", "linear")}
DETAILS |= dict(trajectory=[path], orthoformer=[ringed, products], prototypes=[ringed])
DETAILS |= dict(fixation=[gate], linear_fixation=[gate], rotary=[clocks])
DETAILS["mixing"] = [partial(made_of, mix=mixed_frames, words="A key\nof t")]
DETAILS["mixing_summary"] = DETAILS["mixing"]
around = partial(va.shift_from_neighbours, grid=GRID, steps=va.EIGHT_AROUND, share=1)
in_time = partial(va.shift_from_neighbours, grid=GRID, steps=va.NEXT_AND_PREVIOUS, share=4)
DETAILS["neighbours"] = [partial(made_of, mix=around, words="A key\nin time")]
DETAILS["neighbours"] += [partial(made_of, mix=in_time, words="A key\nin space")]


# ==== WHAT IS READ FROM THE FILE =================================================================
def definitions(name):
    """What in the file has the equations of a mechanism and its picture in letters."""
    if name in SOURCES:
        return [getattr(va, word) for word in SOURCES[name].split()]
    return list(dict.fromkeys(make.args[0] for make in va.ATTENTION[name]))


def sentence(name):
    """The row of looks.py, or the first sentence of the docstring."""
    known = look(name)
    if known.words:
        return f"A patch attends to {known.words}" + f": {known.why}" * bool(known.why) + "."
    text = " ".join((inspect.getdoc(definitions(name)[0]) or "").replace("`", "").split())
    return re.match(r".*?[.](?= |$)|.*", re.sub(": x.*", ".", text))[0]


def headline(name):
    return f"<b>{html.escape(label(name))}.</b> {html.escape(sentence(name))}"


def letters(name):
    """The pictures in letters of the docstrings, line by line."""
    lines = "\n".join(inspect.getdoc(one) or "" for one in definitions(name)).splitlines()
    starts = [i for i, line in enumerate(lines) if line.strip().startswith("t=0")]
    return [line for i in starts for line in lines[i : i + 5]]


COMMENT = re.compile(r"^ *# ((?:out|gate|y~|\(a, b\)).* (?:=|->) .*)$", re.M | re.I)
DOCSTRING = re.compile(r'^ *(?:""")?([xyk]~\S* = .*?)(?:: ->.*)?[".:]*$', re.M | re.I)


def equations(name):
    """The equations of the file as HTML, queries in orange, keys and values in blue."""
    source = "".join(inspect.getsource(one) for one in definitions(name))
    style = "font-family:Georgia,serif;font-size:15px"
    for line in dict.fromkeys(COMMENT.findall(source) + DOCSTRING.findall(source)):
        yield f'<span style="{style}">{as_html(line)}</span>'


def as_html(line):
    line = html.escape(line.replace("`", ""), quote=False)
    for old, new in ((r"sqrt\((\w+)\)", r"√\1"), ("sum_", "∑_"), ("phi", "φ"), ("-&gt;", "→"),
                     (r" \. (?=[\w∑])", " · "), (r"\^(\+|T)", r"<sup>\1</sup>")):  # fmt: skip
        line = re.sub(old, new, line)
    line = re.sub(r"\b([qkvQKV])(?![a-z])", coloured, line).replace("~", "\u0303")
    return re.sub(r"_\{(.*?)\}|_([\w'+-]*[\w'])", r'<sub style="line-height:0">\1\2</sub>', line)


def coloured(letter):
    return f'<b style="color:{ORANGE if letter[1] in "qQ" else BLUE}">{letter[1]}</b>'


def cost(name):
    """One layer of the scheme and of joint attention, as bars; nothing for a part."""
    if name not in va.ATTENTION:
        return ""
    lines = ["a layer, in billions of multiply-accumulates:"]
    for other, colour in dict([("joint", "#7a7a7a"), (name, BLUE)]).items():
        giga = cells.giga_macs(other, (8, 14, 14))
        bar = f"display:inline-block;height:10px;width:{12 * giga:.0f}px;background:{colour}"
        lines.insert(1, f'<span style="{bar}"></span> {giga:.1f} {html.escape(label(other))}')
    return '<span style="color:#444;font-size:12px">' + "<br>".join(lines) + "</span>"
