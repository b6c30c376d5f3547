"""Published models, by the table published.json, and released weights under the names of
VideoTransformer: what is loaded, and what is refused."""

import json
import math
import re
import warnings
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import video_attention as va

from .files import fill, read_weights, refuse
from .quirks import GATES, ReleasedTransformer, use_the_slip

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published.json").read_text())
PRESETS = {name: row["sizes"] for name, row in PUBLISHED["presets"].items()}
FAMILIES = PUBLISHED["families"]
SPACE_ONLY = dict(position="space", class_token="frame", norm_after_pool=True)  # TimeSformer's
LINEAR_LAYERS = {None: [0], "tanh": [0, 2], "gelu": [1, 4]}  # of the classifier, by head_mlp
DEPTHS = {192: 12, 384: 12, 512: 12, 768: 12, 1024: 24, 1280: 32}  # of published models, by width
PREFIX = re.compile(
    r"^((module|model|_orig_mod|backbone|base_model|timesformer|vivit|videomae"
    r"|encoder(?=\.(blocks|patch_embed|norm)\.))\.)+"  # the last in VideoMAE before fine-tuning
)
AS_RELEASED = " (as released)"  # behind a key that has no name here
NAMES = {}  # {section: [(released, here)]}
for line in (HERE / "names.txt").read_text().splitlines():
    if line.startswith("["):
        rules = NAMES[line.strip("[]")] = []
    elif line.startswith("+"):
        rules.extend(NAMES[line[2:]])
    elif line and not line.startswith("#"):
        rules.append(line.split())


def preset(name, **others):
    """A published model, untrained: preset("lvt", depth=4); others are VideoTransformer's."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; one of {', '.join(PRESETS)}")
    return va.VideoTransformer(**PRESETS[name] | others)


def from_released(family, weights, slip=True, classifier="head", **given):
    """A model in eval mode with released weights: from_released("timesformer", "K400.pyth").

    family      one of FAMILIES, in published.json
    weights     a path, or what the file held; the usual nestings and prefixes are taken off
    slip        False for a Motionformer that was trained without it, see use_the_slip
    classifier  of two, "head0" (verbs) or "head1" (nouns) in a Motionformer of EPIC-Kitchens
    given       arguments of ReleasedTransformer; README.md says which no tensor tells

    One ValueError lists what is missing, unexpected or misshapen, before anything is allocated.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown; one of {', '.join(FAMILIES)}")
    space_only = family == "timesformer" and given.get("attention") == "space"
    given = FAMILIES[family]["options"] | (SPACE_ONLY if space_only else {}) | given
    weights = read_weights(weights, FAMILIES[family]["files"])
    if classifier == "head" and any(key.endswith("head0.weight") for key in weights):
        raise ValueError('the file has two classifiers: classifier="head0" (verbs) or "head1"')
    layers = LINEAR_LAYERS[given["head_mlp"]]
    gates = 2 if any(".q_gate." in key or ".k_gate." in key for key in weights) else 1
    try:
        weights = renamed(weights, family, **words(family, weights, classifier, layers, space_only))
        options = read_options(family, weights, layers, gates, given) | given
        with torch.device("meta"):  # takes no memory
            model = ReleasedTransformer(**options)
        fit_tables(family, weights, model.position.grid)
    except (AssertionError, IndexError, KeyError, RuntimeError, ValueError) as error:
        found = {"missing" if isinstance(error, KeyError) else "unreadable": [str(error.args[0])]}
        found["unexpected"] = [key for key in weights if key.endswith(AS_RELEASED)]
        refuse(f"this {family} file", **found)
    own = model.state_dict()
    if family == "videomae":  # its positions are in no file
        weights["position.joint"] = own["position.joint"]
    add_fresh_classifier(weights, own, f"head.classify.{layers[-1]}.", family)
    fill(model, weights, f"this {family} file", assign=True)
    if family == "videomae":
        model.position.joint = nn.Parameter(sinusoids(*own["position.joint"].shape[1:]))
    if slip:
        use_the_slip(model)
    return model.eval()


# ==== NAMES, by the table names.txt ===============================================================
def renamed(weights, section, **words):
    """Weights under the names and in the form that they have here; `words` fill the braces. What no
    rule knows, or what another key has become already, keeps a name that no model has."""
    words = dict(space=0, norm="norm.", table="position.space") | words
    rules = [[part.format(**words) for part in rule] for rule in NAMES[section]]
    result = {}
    for key, x in weights.items():
        name = renamed_key(PREFIX.sub("", key), rules)
        if name is None or name in result:
            name = key + AS_RELEASED
        if name != "-":
            result[name] = x
    join_parts(result)
    add_zero_biases(result)
    for name, form in (("patches.proj.weight", torch.unsqueeze), ("position.time", torch.squeeze)):
        if name in result and result[name].ndim == 4:  # patches of one frame, times (1, T, 1, D)
            result[name] = form(result[name], 2)
    return result


def join_parts(weights):
    """Queries, keys and values apart become one layer. VideoMAE's keys have no bias: it is zero."""
    no_key_bias = not any(key.endswith("k_part.bias") for key in weights)
    for query in [name for name in weights if ".q_part." in name]:
        parts = [query.replace("q_part", part) for part in ("q_part", "k_part", "v_part")]
        layer = query.replace("q_part", "qkv")
        if layer in weights:
            raise ValueError(f"{query} and {layer} are the same layer")
        if no_key_bias and query.endswith("bias"):
            weights[parts[1]] = torch.zeros_like(weights[query])
        weights[layer] = torch.cat([weights.pop(part) for part in parts])


def add_zero_biases(weights):
    """A file with qkv_bias=False has none of these biases; here they are zeros."""
    layers = r"blocks\.\d+\.steps\.\d+\.(qkv|proj_q|proj_kv)\."
    if not any(re.fullmatch(layers + "bias", name) for name in weights):
        for name in [name for name in weights if re.fullmatch(layers + "weight", name)]:
            weights[name.replace("weight", "bias")] = torch.zeros(len(weights[name]))


def renamed_key(key, rules):
    """One key's name here, "-" for what is never read, None for what no rule knows."""
    for before, after in rules:
        pattern = re.escape(before).replace("N", r"(?P<number>\d{1,4})")
        pattern += "(?P<rest>.+)" if before.endswith(".") else ""
        if found := re.fullmatch(pattern, key):
            parts = dict(number="", rest="") | found.groupdict()
            return after if after == "-" else after.replace("N", parts["number"]) + parts["rest"]
    return None


def words(family, weights, classifier, layers, space_only):
    """What fills the braces in the rules of a family."""
    keys = " ".join(weights)
    kernel = next((x for key, x in weights.items() if "patch_embed_3d.proj.w" in key), None)
    tubelets = kernel is None or kernel.ndim != 5 or kernel.shape[2] > 1
    separate = "-" if "st_embed" in keys else "position.space"  # Motionformer may keep both
    return dict(
        space=int("temporal_att" in keys), norm="head.norm." if space_only else "norm.",
        table="position.joint" if family == "vivit" else separate,
        cubic="patches." if tubelets else "-", flat="-" if tubelets else "patches.",
        classifier=f"{classifier}.", last=layers[-1],
        only="head.classify.0." if len(layers) == 1 else "-",
    )  # fmt: skip


# ==== SIZES =======================================================================================
def read_options(family, weights, layers, gates, given):
    """The arguments of VideoTransformer that the tensors tell."""
    D, channels, *patch = weights["patches.proj.weight"].shape
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    gate = next((len(x) for key, x in weights.items() if key.endswith("gate_q.weight")), None)
    d, gates = (64, 0) if gate is None else (gate, gates)
    if "heads" not in given and D % d > 0:
        raise ValueError(f"width {D} is no multiple of {d} channels a head: give heads=")
    options = dict(dim=D, channels=channels, patch_size=patch, heads=D // d, position="separate")
    options["depth"] = DEPTHS.get(D, depth)
    options["mlp_ratio"] = len(weights.get("blocks.0.mlp.fc1.weight", [])) / D or 4.0
    rows = [len(weights.get(f"head.classify.{layer}.weight", [])) for layer in layers]
    options["num_classes"] = rows[-1] or 400
    options["head_hidden"] = (rows[0] or None) if len(rows) > 1 else None
    space, time = weights.get("position.space"), weights.get("position.time")
    if space is not None:  # with a row for the class token
        side = math.isqrt(space.shape[1] - 1)
        options["image_size"] = [side * patch[1], side * patch[2]]
    if time is not None:
        options["num_frames"] = time.shape[1] * patch[0]
        if family in ("xvit", "lvt") and time.shape[1] == 8 and "num_frames" not in given:
            warnings.warn(f"{family}: no num_frames given, so the table of 8 starts over for 16")
            options["num_frames"] = 16
    if family == "motionformer" and "position.joint" in weights:
        options["position"] = "joint"
    if family == "videomae":
        options["norm_after_pool"] = "norm.weight" not in weights
        if "norm.weight" in weights and rows[-1] > 0:
            raise ValueError("its classifier reads the first patch (use_mean_pooling=False)")
    if family == "lvt":
        options["patch_stride"] = patch[2] * 7 // 8  # 14 of 16
    share = "half" if rows[-1] == 174 else "quarter_8"  # of Something-Something
    two_steps = any(".steps.1.qkv." in key for key in weights)
    schemes = {
        "timesformer": "divided" if two_steps else "joint",
        "motionformer": "trajectory" if any("proj_kv" in key for key in weights) else "joint",
        "xvit": f"xvit_{share}",
        "lvt": f"lvt_{share}{GATES[gates]}" if two_steps else "linear",
    }
    return options | dict(attention=schemes.get(family, "joint"))


def fit_tables(family, weights, grid):
    """The class token's row apart, and tables for the model's grid, resized as the release does."""
    T, H, W = grid
    for name in weights.keys() & {"position.space", "position.joint"}:
        table = weights[name]
        weights["position.for_class"], weights[name] = table[:, :1], table[:, 1:]
    space, time = weights.get("position.space"), weights.get("position.time")
    if space is not None and space.shape[1] != H * W:
        side = math.isqrt(space.shape[1])
        if side * side != space.shape[1]:
            raise ValueError(f"{space.shape[1]} positions are no square: give their image_size=")
        weights["position.space"] = resized(family, space, (side, side), (H, W))
    if time is not None and family in ("xvit", "lvt"):
        weights["position.time"] = time[:, torch.arange(T) % time.shape[1]]  # starts over
    elif time is not None and time.shape[1] != T:
        weights["position.time"] = resized(family, time, (time.shape[1],), (T,))


def resized(family, table, old, new):
    if family != "timesformer":
        return va.resize_positions(table, old, new)
    table = F.interpolate(table.transpose(1, 2).unflatten(2, old), new, mode="nearest")
    return table.flatten(2).transpose(1, 2)  # (1, prod(new), D), the nearest entries


def sinusoids(n, D):
    """VideoMAE's positions (1, n, D), sine and cosine in turn, rounded as there."""
    pair = torch.arange(0, D, 2, dtype=torch.float64)
    angles = torch.arange(n)[:, None] / 10_000 ** (pair / D)  # (n, D/2)
    table = torch.stack([angles.sin(), angles.cos()], dim=2)  # (n, D/2, 2)
    return table.view(1, n, D).float().to(torch.get_default_dtype())


def add_fresh_classifier(weights, own, last, family):
    """A new last layer if the file has one for other classes, a new classifier if it has none."""
    rows = [len(x) for name, x in weights.items() if name.startswith(last)]
    classes = len(own.get(last + "weight", ()))
    if len(rows) == 1 or (rows and rows[0] == classes):
        return
    whole = not any(name.startswith("head.classify.") for name in weights)
    fresh = ("head.classify.", "head.norm.") if whole and family == "videomae" else "head.classify."
    for name in [name for name in own if name.startswith(fresh if whole else last)]:
        weights[name] = torch.full(own[name].shape, float(name.endswith("weight")))  # a norm's
        if own[name].ndim == 2:
            nn.init.trunc_normal_(weights[name], std=0.02)
    has = f"{rows[0]} classes" if rows else "no classifier"
    new = "classifier" if whole else "last layer"
    warnings.warn(f"the file has {has}, the model {classes}: its {new} is not trained")
