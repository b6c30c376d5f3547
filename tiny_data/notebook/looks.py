"""How each scheme is drawn and named: the third place that a new mechanism touches.

A row of LOOKS is  name in va.ATTENTION | label | colour | marker | from | what a patch attends to.
A scheme without a row is grey and keeps its name. README's table has the last two columns.
"""

from typing import NamedTuple

# Okabe and Ito's colours, which colour-blind readers tell apart; markers part those of one family.
COLOURS = dict(
    black="#000000", grey="#7a7a7a", blue="#0072b2", sky="#56b4e9", green="#009e73",
    orange="#e69f00", red="#d55e00", purple="#cc79a7", brown="#7f4f24",
)  # fmt: skip

LOOKS = """
space | space | grey | o | TimeSformer | its own frame
joint | joint | black | o | TimeSformer, ViViT 1 | everything
divided | divided | blue | s | TimeSformer | its position in every frame, then its frame
local_global | local-global | sky | h | TimeSformer | a quarter of each frame, then a lattice
axial | axial | sky | P | TimeSformer | its position in every frame, its row, its column
factorised | factorised | blue | D | ViViT 3 | its frame, then its position in every frame
factorised_heads | factorised heads | blue | p | ViViT 4 | its frame or position, by halves of heads
window | window | orange | v | X-ViT | all patches of the frames t-w to t+w
shifted_windows | shifted windows | orange | < | Video Swin | boxes of the clip, then shifted boxes
pooled | pooled | orange | > | MViT | everything, in means over blocks
pooled_queries | pooled queries | orange | 8 | MViT | the same, and queries are means too
mixing | mixing | green | D | X-ViT | its frame, with channels of the frames around
summary | summary | grey | d | X-ViT | its frame and the mean of every frame
mixing_summary | mixing + summary | green | d | X-ViT | as mixing, and the mean of every frame
trajectory | trajectory | red | ^ | Motionformer | every frame separately, then along the path found
trajectory_orthoformer | trajectory, Orthoformer | red | h | Motionformer | the same, by prototypes
trajectory_nystrom | trajectory, Nystrom | red | p | Motionformer | the same, through segment means
trajectory_performer | trajectory, Performer | red | * | Motionformer | the same, by random features
orthoformer | Orthoformer | brown | h | Motionformer | everything, through prototypes
nystrom | Nystrom | brown | p | Nystromformer | everything, through segment means
performer | Performer | brown | * | Performer | everything, by random features
linear | linear | purple | X | LVT | everything, with weights that are products
linear_fixation | linear + fixation | purple | P | LVT | the same, with a gate for each feature
lvt | LVT | purple | s | LVT | its position over time, then its frame, with neighbours' channels
orthogonal | orthogonal | blue | o | | a choice of prototypes
random | random | orange | s | | a choice of prototypes
segments | segment means | green | ^ | | a choice of prototypes
"""


class Look(NamedTuple):
    label: str
    colour: str = COLOURS["grey"]
    marker: str = "o"
    paper: str = ""
    words: str = ""


ROWS = [[part.strip() for part in line.split("|")] for line in LOOKS.strip().splitlines()]
TABLE = {name: Look(label, COLOURS[colour], *rest) for name, label, colour, *rest in ROWS}


def look(name):
    """How a scheme, or a choice of prototypes, is drawn and named."""
    return TABLE.get(name, Look(str(name)))


def label(name):
    return look(name).label
