"""Released weights under the names of VideoTransformer: what is loaded, and what is refused."""

import math
import os
import re
import warnings
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import video_attention as va

from .presets import FAMILIES
from .quirks import GATES, use_the_slip

SPACE_ONLY = dict(position="space", class_token="frame", norm_after_pool=True)  # TimeSformer's
LINEAR_LAYERS = {None: [0], "tanh": [0, 2], "gelu": [1, 4]}  # of the classifier, by head_mlp
DEPTHS = {192: 12, 384: 12, 512: 12, 768: 12, 1024: 24, 1280: 32}  # of published models, by width
PREFIX = re.compile(r"^((module|model|_orig_mod|base_model|timesformer|vivit|videomae)\.)+")
AS_RELEASED = " (as released)"  # behind a key that has no name here
NAMES = {}  # {section: [(released, here)]}
for line in Path(__file__).with_name("names.txt").read_text().splitlines():
    if line.startswith("["):
        rules = NAMES[line.strip("[]")] = []
    elif line.startswith("+"):
        rules.extend(NAMES[line[2:]])
    elif line and not line.startswith("#"):
        rules.append(line.split())


def from_released(family, weights, slip=True, classifier="head", **given):
    """A model in eval mode with released weights: from_released("timesformer", "K400.pyth").

    family      one of FAMILIES, in published.json
    weights     a path, or what the file held; the usual nestings and prefixes are taken off
    slip        False for a Motionformer that was trained without it, see use_the_slip
    classifier  of two, "head0" (verbs) or "head1" (nouns) in a Motionformer of EPIC-Kitchens
    given       arguments of VideoTransformer; README.md says which no tensor tells

    One ValueError lists what is missing, unexpected or misshapen, before anything is allocated.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown; one of {', '.join(FAMILIES)}")
    space_only = family == "timesformer" and given.get("attention") == "space"
    given = FAMILIES[family]["options"] | (SPACE_ONLY if space_only else {}) | given
    weights = read_weights(weights)
    if classifier == "head" and any(key.endswith("head0.weight") for key in weights):
        raise ValueError('the file has two classifiers: classifier="head0" (verbs) or "head1"')
    layers = LINEAR_LAYERS[given["head_mlp"]]
    gates = 2 if any(".q_gate." in key or ".k_gate." in key for key in weights) else 1
    try:
        weights = renamed(weights, family, **words(family, weights, classifier, layers, space_only))
        options = read_options(family, weights, layers, gates, given) | given
        with torch.device("meta"):  # takes no memory
            model = va.VideoTransformer(**options)
        fit_tables(family, weights, model.position.grid)
    except (AssertionError, IndexError, KeyError, RuntimeError, ValueError) as error:
        unexpected = [key for key in weights if key.endswith(AS_RELEASED)]
        refuse(f"this {family} file", unreadable=[str(error)], unexpected=unexpected)
    own = model.state_dict()
    if family == "videomae":  # its positions are in no file
        weights["position.joint"] = own["position.joint"]
    weights |= fresh_classifier(weights, own, f"head.classify.{layers[-1]}.")
    fill(model, weights, f"this {family} file", assign=True)
    if family == "videomae":
        model.position.joint = nn.Parameter(sinusoids(*own["position.joint"].shape[1:]))
    if slip:
        use_the_slip(model)
    return model.eval()


# ==== FILES =======================================================================================
def read_weights(source):
    """{key: tensor} from a path, or from what the file held, without its nestings. Only tensors are
    read: code in a file is never run."""
    if isinstance(source, (str, os.PathLike)):
        source = read_file(source)
    for nesting in 2 * ("model_state", "state_dict", "model", "module"):  # in any order
        if isinstance(source, dict) and isinstance(source.get(nesting), dict):
            source = source[nesting]
    if not isinstance(source, dict) or not source:
        raise ValueError(f"needs a path or a dictionary of tensors, not {source!r}"[:2000])
    refuse("what is read", no_dense_floats=[str(k) for k, x in source.items() if not is_dense(x)])
    dtype = torch.get_default_dtype()
    weights = {key: x.detach().to(dtype, copy=True) for key, x in source.items()}
    broken = [key for key, x in weights.items() if not x.isfinite().all()]
    if broken:
        warnings.warn(f"NaN or infinity in {', '.join(broken)}"[:2000])
    return weights


def read_file(path):
    if os.fspath(path).endswith(".safetensors"):
        from safetensors.torch import load_file  # pip install safetensors

        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # of many kinds, with advice that must not reach a user
        text = f"{path} is cut short, no file of weights, or holds more than tensors"
        raise ValueError(f"{text} ({type(error).__name__})") from None


def is_dense(x):
    dense = torch.is_tensor(x) and x.layout == torch.strided and not x.is_meta
    return dense and x.is_floating_point() and 0 < x.numel() and 0 < x.ndim


def refuse(source, **wrong):
    """One ValueError that lists all that is wrong, if anything is."""
    found = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in wrong.items() if names]
    if found:
        raise ValueError(f"{source} does not fit; {'; '.join(found)}"[:2000])


def fill(model, weights, source, assign=False):
    """Load the weights, or refuse them all and leave the model as it was."""
    own = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    given = {key: tuple(x.shape) for key, x in weights.items()}
    both = [key for key in own if key in given and own[key] != given[key]]
    refuse(
        source,
        missing=[key for key in own if key not in given],
        unexpected=[key for key in given if key not in own],
        misshapen=[f"{key} {given[key]} for {own[key]}" for key in both],
    )
    model.load_state_dict(weights, assign=assign)


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
    no_key_bias = not any(key.endswith("k_part.bias") for key in result)  # in VideoMAE
    for key in [key for key in result if ".q_part." in key]:  # queries, keys and values apart
        parts, layer = (
            [key.replace("q_part", f"{x}_part") for x in "qkv"],
            key.replace("q_part", "qkv"),
        )
        if no_key_bias and key.endswith("bias"):
            result[parts[1]] = torch.zeros_like(result[key])
        if layer in result:
            raise ValueError(f"{key} and {layer} are the same layer")
        result[layer] = torch.cat([result.pop(part) for part in parts])
    if not any(re.fullmatch(r"blocks\..+\.qkv\.bias", key) for key in result):  # qkv_bias=False
        for key in [key for key in result if re.fullmatch(r"blocks\..+\.qkv\.weight", key)]:
            result[key.replace("weight", "bias")] = torch.zeros(len(result[key]))
    for name, form in (("patches.proj.weight", torch.unsqueeze), ("position.time", torch.squeeze)):
        if name in result and result[name].ndim == 4:  # patches of one frame, times (1, T, 1, D)
            result[name] = form(result[name], 2)
    return result


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
    gate = weights.get("blocks.0.steps.0.gate_q.weight")
    d, gates = (64, 0) if gate is None else (len(gate), gates)
    if "heads" not in given and D % d > 0:
        raise ValueError(f"width {D} is no multiple of {d} channels a head: give heads=")
    options = dict(dim=D, channels=channels, patch_size=patch, heads=D // d)
    options["depth"] = DEPTHS.get(D, depth)
    options["mlp_ratio"] = len(weights["blocks.0.mlp.fc1.weight"]) / D
    rows = [len(weights.get(f"head.classify.{layer}.weight", [])) for layer in layers]
    options |= dict(num_classes=rows[-1] or 400, head_hidden=rows[0] if len(rows) > 1 else None)
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
    if family == "lvt":
        options["patch_stride"] = patch[2] * 7 // 8  # 14 of 16
    share = "half" if rows[-1] == 174 else "quarter_8"  # of Something-Something
    two_steps = "blocks.0.steps.1.qkv.weight" in weights
    trajectory = "blocks.0.steps.0.proj_kv.weight" in weights
    schemes = {
        "timesformer": "divided" if two_steps else "joint",
        "motionformer": "trajectory" if trajectory else "joint",
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
    """VideoMAE's positions (1, n, D), sine and cosine in turn."""
    pair = torch.arange(0, D, 2, dtype=torch.float64)
    angles = torch.arange(n)[:, None] / 10_000 ** (pair / D)  # (n, D/2)
    table = torch.stack([angles.sin(), angles.cos()], dim=2)  # (n, D/2, 2)
    return table.view(1, n, D).to(torch.get_default_dtype())


def fresh_classifier(weights, own, layer):
    """{name: tensor} of a last layer for a file that has none, or one for other classes."""
    rows = [len(weights[layer + kind]) for kind in ("weight", "bias") if layer + kind in weights]
    shape = own[layer + "weight"].shape
    if len(rows) == 1 or (rows and rows[0] == shape[0]):
        return {}
    has = f"{rows[0]} classes" if rows else "no classifier"
    warnings.warn(f"the file has {has}, the model {shape[0]}: its last layer is not trained")
    fresh = nn.init.trunc_normal_(torch.empty(shape), std=0.02)
    return {layer + "weight": fresh, layer + "bias": torch.zeros(shape[0])}
