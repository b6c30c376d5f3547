"""How each scheme is drawn, named and told: the third place that a new mechanism touches.

A row of LOOKS is  label | colour | marker | from | what a patch attends to | why; its name in
va.ATTENTION is the label in small letters with "_" between the words. A scheme without a row is
grey and keeps its name. README's table has the columns "from" and "what a patch attends to".
"""

import re
from typing import NamedTuple

# Okabe and Ito's colours, which colour-blind readers tell apart; markers part those of one family.
COLOURS = dict(
    black="#000000", grey="#7a7a7a", blue="#0072b2", sky="#56b4e9", green="#009e73",
    orange="#e69f00", red="#d55e00", purple="#cc79a7", brown="#7f4f24",
)  # fmt: skip

LOOKS = """
space | grey | o | TimeSformer | its own frame | frames exchange nothing, so motion stays unseen
joint | black | o | TimeSformer, ViViT 1 | everything | nothing is out of reach, every pair costs
divided | blue | s | TimeSformer | its position in every frame, then its frame | \
    two cheap steps reach the whole clip, but along time each position sees only itself
local-global | sky | h | TimeSformer | a quarter of each frame, then a lattice | \
    the first step sees what is near in full detail, the second reaches far
axial | sky | P | TimeSformer | its position in every frame, its row, its column | \
    three short lines of patches together reach the whole clip
factorised | blue | D | ViViT 3 | its frame, then its position in every frame | \
    these are the steps of divided attention in the other order
factorised heads | blue | p | ViViT 4 | its frame or position, by halves of heads | \
    half of the heads compare patches of a frame, and half compare frames
window | orange | v | X-ViT | all patches of the frames t-w to t+w | \
    what moves is still near one frame later, and every further layer sees further
shifted windows | orange | < | Video Swin | boxes of the clip, then shifted boxes | \
    patches that a border parts in one step meet in the next
pooled | orange | > | MViT | everything, in means over blocks | \
    there are a quarter of the keys, and the finest detail is lost
pooled queries | orange | 8 | MViT | everything in means, and asks as a mean | \
    all patches of a block get the same answer, which costs least
mixing | green | D | X-ViT | its frame, with channels of the frames around | \
    a key that carries its neighbours in time shows motion without one more product
summary | grey | d | X-ViT | its frame and the mean of every frame | \
    every other frame costs one key, and positions in it are lost
mixing + summary | green | d | X-ViT | its frame, mixed, and every frame's mean | \
    near frames come in detail through channels, far ones as one key each
trajectory | red | ^ | Motionformer | every frame separately, then along the path found | \
    objects move, and what it looks at moves with them
trajectory (Orthoformer) | red | h | Motionformer | the path, by prototypes | \
    in every frame the query goes through prototypes and not to all keys
trajectory (Nystrom) | red | p | Motionformer | the path, through segment means | \
    in every frame the query goes through mean tokens and an inverse
trajectory (Performer) | red | * | Motionformer | the path, by random features | \
    the sums over a frame's keys are made once for all queries
Orthoformer | brown | h | Motionformer | everything, through prototypes | \
    a query is compared with P prototypes, and these with all keys
Nystrom | brown | p | Nystromformer | everything, through segment means | \
    an inverse between two small steps undoes the smoothing of the means
Performer | brown | * | Performer | everything, by random features | \
    features of q and k stand for the exponential, so that sums are made once
linear | purple | X | LVT | everything, with weights that are products | \
    keys and values are summed up once, and every query reads the same small table
linear + fixation | purple | P | LVT | everything, with a gate for each feature | \
    the gate says which features of queries and keys count
LVT | purple | s | LVT | its position over time, then its frame, with neighbours' channels | \
    both steps are linear, and neighbours bring what an axis does not reach
"""


class Look(NamedTuple):
    label: str
    colour: str = COLOURS["grey"]
    marker: str = "o"
    paper: str = ""
    words: str = ""
    why: str = ""


ROWS = [[part.strip() for part in line.split("|")] for line in LOOKS.strip().splitlines()]
NAMES = [re.sub(r"\W+", "_", row[0].lower()).strip("_") for row in ROWS]
TABLE = {name: Look(row[0], COLOURS[row[1]], *row[2:]) for name, row in zip(NAMES, ROWS)}


def look(name):
    """How a scheme is drawn and named."""
    return TABLE.get(name, Look(str(name)))


def label(name):
    return look(name).label
