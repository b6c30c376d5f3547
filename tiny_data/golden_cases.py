"""What the papers' own code has computed, and what of this repository must give the same.

    compare("tiny_data/golden/motionformer_trajectory_orig.npz", torch.float64)

A case is a file of arrays: "config" (JSON), "state/..." (weights under the official keys), the
input, and "expected..." (outputs, of the whole and block by block). Sizes, positions, depths and
options are read from the config, so that cases of other sizes are compared too; a case of an
unknown kind is an error.
"""

import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

import video_attention as va
from tiny_data import published
from tiny_data.testing import same

class Golden:
    """One case: weights and input in, what the official code made of them out (float64)."""

    def __init__(self, path):
        arrays = np.load(path)
        self.name = Path(path).stem
        self.config = json.loads(str(arrays["config"]))
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "config"}
        self.state = {key[6:]: x for key, x in tensors.items() if key.startswith("state/")}
        self.arrays = {
            key: x.double() for key, x in tensors.items() if not key.startswith("state/")}
        self.tolerance, self.checked = 1e-9, set()

    def __getitem__(self, key):
        return self.arrays[key]

    def check(self, actual, key="expected"):
        if key in self.arrays:
            same(actual.double(), self[key].to(torch.float64), self.tolerance)
            self.checked.add(key)

    def in_float32(self):
        for key in self.arrays:
            if not key.startswith("expected"):
                self.arrays[key] = self.arrays[key].float()
        inverse = "nystrom" in f"{self.name} {self.config}".lower()
        self.tolerance = 5e-5 if inverse else 1e-5
        return self

def family_of(config):
    """Which of the official projects a case is from, by what is in its config."""
    if "kind" in config:
        return config["kind"]
    signs = dict(attention_type="timesformer", attn_layer="motionformer")
    signs |= dict(consensus="xvit", hf_config="hf_model")
    return next((signs[sign] for sign in signs if sign in config), None)

def told_by_config(case):
    """What tensors cannot tell, as arguments of from_released: heads, depth, the clip, and per
    family."""
    config, family, hf = case.config, family_of(case.config), case.config.get("hf_config", {})
    shape = list(config["input_shape"])
    frames, (height, width) = shape[1] if hf else shape[2], shape[3:]
    told = dict(num_frames=frames, image_size=(height, width))
    told |= dict(heads=config.get("num_heads") or hf["num_attention_heads"])
    told |= dict(depth=config.get("depth") or hf["num_hidden_layers"])
    if family == "motionformer":
        told |= dict(slip=config["use_original_code"], position=config["pos_embed"])
        if config["approx"] == "orthoformer":
            step = partial(va.OrthoformerTrajectoryAttention, prototypes=config["num_landmarks"])
            told |= dict(attention=[partial(step, choose=published.released_prototypes)])
        else:
            assert config["approx"] == "none" and config["attn_layer"] in ("joint", "trajectory"), (
                config)
    if family == "xvit":
        mixing = dict(moved=2 / config["shift_div"], segment=config["num_segments"])
        step, where = partial(published.ReleasedMixingAttention, **mixing), config["locations_list"]
        told |= dict(attention=lambda i: [step] if config["use_xvit"] and i in where else "space")
    return told | lvt_steps(config) if family == "model" else told

def lvt_steps(config):
    """LVT's two steps; blocks that are not in its list do not shift."""
    assert config["linear_type"] == "relu" and config["shift_size"] == 1, config
    gates = dict(fixation="qkv" if config["use_cgate"] else None, shared_gate=config["share_gate"])

    def steps(i):
        here = i in config.get("locations_list", [i])
        time = partial(
            va.LinearAttention, axis="time", neighbours=here and config["spatial_shift"], **gates)
        mixing = dict(moved=2 / config["shift_div"], segment=config["num_segments"])
        mixing |= dict(neighbours=here and config["temporal_shift"])
        return [time, partial(published.ReleasedLinearAttention, axis="space", **mixing, **gates)]

    return dict(attention=steps, patch_stride=config.get("stride"))

def golden_model(case):
    family = family_of(case.config)
    name = {"model": "lvt", "hf_model": case.config.get("model")}.get(family, family)
    model = published.from_released(name, case.state, **told_by_config(case))
    if (
        "head_heads" in case.config and model.head.temporal is not None
    ):  # the backbone's, unless told
        for block in model.head.temporal.blocks:
            block.steps[0].heads = case.config["head_heads"]
    return model

def as_official(x, case, grid):
    """Tokens (B, C + T*S, D) in the layout in which a project keeps them."""
    T, S = grid[0], grid[1] * grid[2]
    C = x.shape[1] - T * S
    class_tokens, patches = x[:, :C], x[:, C:].unflatten(1, (T, S))
    family, kind = family_of(case.config), case.config.get("attention_type", "")
    kind = case.config.get("hf_config", {}).get("attention_type", kind)
    if (
        family in ("xvit", "model") or kind == "space_only"
    ):  # frame by frame, each with its class token
        parts = [class_tokens.unsqueeze(2), patches] if C else [patches]
        return torch.cat(parts, dim=2).flatten(0, 1)
    if family == "timesformer" or case.config.get("model") == "timesformer":  # time runs fastest
        patches = patches.transpose(1, 2)
    return torch.cat([class_tokens, patches.flatten(1, 2)], dim=1)

def golden_whole_model(case, dtype):
    """Logits, the input of the first block and the output of every block."""
    model, video = golden_model(case).to(dtype), case["input"]
    if family_of(case.config) == "hf_model":
        video = video.transpose(1, 2)  # frames before channels there
    grid, outputs = model.patches.grid(video.shape[2:]), {}
    model.blocks[0].register_forward_pre_hook(
        lambda module, inputs: outputs.update(embedded=inputs[0]))
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(
            lambda module, inputs, out, i=i: outputs.update({f"block{i}": out}))
    logits = model(video)
    for name, out in outputs.items():
        case.check(as_official(out, case, grid), f"expected/{name}")
    if (
        case.config.get("hf_config", {}).get("attention_type") == "space_only"
    ):  # every frame by itself
        logits = model(video.transpose(1, 2).flatten(0, 1).unsqueeze(2))
    if len(logits) < len(case["expected"]):  # X-ViT's mean over segments: a row for each segment
        n, T = len(case["expected"]) // len(logits), grid[0]
        class_tokens = model.forward_features(video)[:, :T].unflatten(1, (n, T // n))
        logits = model.head.classify(class_tokens.mean(dim=2)).flatten(0, 1)
    case.check(logits)
    blocks = {key for key in case.arrays if re.fullmatch(r"expected/(block\d+|embedded)", key)}
    assert blocks <= case.checked, f"not compared: {blocks - case.checked}"

def golden_lvt_attention(case, dtype):
    """LVT's attention alone; rows are frames or positions there, and all of a clip's tokens
    here."""
    config, x = case.config, case["input"]
    gates = dict(
        fixation="qkv" if config.get("use_cgate") else None,
        shared_gate=config.get("share_gate", True))
    n = config.get("n_segment") or config.get("num_frames")
    options, frames, grid = dict(axis="joint"), False, (1, 1, x.shape[1])
    if config.get("shift") == "spatial":
        options, grid = (
            dict(axis="time", neighbours=True),
            (x.shape[1], math.isqrt(n), math.isqrt(n)))
        x = x.unflatten(0, (-1, n)).transpose(1, 2).flatten(1, 2)
    elif config.get("shift") == "temporal" or config["kind"] == "joint":
        if config["kind"] != "joint":
            options = dict(axis="space", neighbours=True, moved=2 / config["shift_div"])
        grid, frames = (n, 1, x.shape[1]), True
        x = x.unflatten(0, (-1, n)).flatten(1, 2)
    module = va.LinearAttention(config["dim"], config["num_heads"], **gates, **options)
    names = {"pgate": "gate_q", "q_gate": "gate_q", "k_gate": "gate_k"}
    split = [(key.rpartition("."), x) for key, x in case.state.items()]
    module.load_state_dict(
        {f"{names.get(layer, layer)}.{kind}": x for (layer, _, kind), x in split})
    out = module.to(dtype)(x, grid)
    if frames:
        out = out.unflatten(1, (n, -1)).flatten(0, 1)
    elif config.get("shift") == "spatial":
        out = out.unflatten(1, (-1, n)).transpose(1, 2).flatten(0, 1)
    case.check(out)

def golden_lvt_block(case, dtype):
    config, D = case.config, case.config["dim"]
    steps = [step(D, config["num_heads"]) for step in lvt_steps(config)["attention"](0)]
    block = va.Block(D, steps, va.MLP(D, config["mlp_ratio"] * D, depthwise=True))
    weights = {f"base_model.blocks.0.{key}": value for key, value in case.state.items()}
    weights = published.renamed(weights, published.renames_of("lvt", weights))
    block.load_state_dict({key.removeprefix("blocks.0."): value for key, value in weights.items()})
    block, grid = block.to(dtype), (config["num_frames"], *config["grid"])
    official = lambda x: x.unflatten(1, (grid[0], -1)).flatten(0, 1)
    x = start = case["input"].unflatten(0, (-1, grid[0])).flatten(1, 2)
    for name, norm, module in zip(("after_time", "after_space"), block.norms, block.steps):
        x = x + module(norm(x), grid)
        case.check(official(x), f"expected/{name}")
    case.check(official(block(start, grid)))

def golden_trajectory_module(case, dtype):
    """Motionformer's attention alone, as the paper has it and with the slip in its values."""
    config, D = case.config, case.config["embed_dim"]
    start = config["first_landmark_index"] or 0
    choose = partial(published.released_prototypes, start=start)
    P, features, iterations = (
        config["num_landmarks"],
        config["num_features"] or 1,
        config["inv_iters"] or 6)
    make = {
        "none": va.TrajectoryAttention,
        "orthoformer": partial(va.OrthoformerTrajectoryAttention, prototypes=P, choose=choose),
        "nystrom": partial(va.NystromTrajectoryAttention, landmarks=P, iterations=iterations),
        "performer": partial(va.PerformerTrajectoryAttention, features=features)}[config["approx"]]
    weights, grid = dict(case.state), (config["num_frames"], config["seq_len"], 1)
    if config["approx"] == "performer":
        weights["projection"] = case["projection_matrix"]
    for key, slip in (("expected", False), ("expected/out_original_code", True)):
        module = make(D, config["num_heads"])
        module.load_state_dict(published.values_as_released(weights) if slip else weights)
        case.check(module.to(dtype)(case["input"], grid), key)

def golden_orthoformer(case, dtype):
    q, k, v = (case[name].unsqueeze(1) for name in "qkv")  # heads are in the batch there
    P, T, start = (
        case.config[name] for name in ("num_landmarks", "num_frames", "first_landmark_index"))
    picked = va.most_orthogonal_subset(q, P, start=start)[:, 0]
    assert torch.equal(picked, case["expected/landmark_order"].long())
    prototypes = published.released_prototypes(q, k, P, start=start)
    case.check(prototypes[:, 0], "expected/landmarks")
    case.check(va.orthoformer_per_frame(q, k, v, T, prototypes)[:, 0])

def golden_nystrom_function(case, dtype):
    q, k, v = (case[name].unsqueeze(1) for name in "qkv")
    T, iterations = case.config["num_frames"], case.config["inv_iters"]
    A = case["expected/pinv_input"].to(dtype)
    case.check(va.iterative_inverse(A, iterations), "expected/pinv_exact")
    case.check(published.inverse_of_one_scale(A, iterations), "expected/pinv_original")
    for count in case.config["landmarks_list"]:
        out = va.nystrom_per_frame(q, k, v, T, count, iterations)[:, 0]
        case.check(out, f"expected/landmarks{count}_spatial")
        # with segments in the order of the tokens instead: one frame whose positions are all tokens
        q_means, k_means = va.segment_means(q, count), va.segment_means(k, count)
        small = torch.softmax(q_means @ k_means.mT / q.shape[-1] ** 0.5, dim=-1)
        found = va.iterative_inverse(small, iterations) @ va.attend_per_frame(
            q_means, k, v, T).flatten(3)
        raster = va.attend(q, k_means, found).unflatten(3, (T, -1))
        case.check(raster[:, 0], f"expected/landmarks{count}_raster")
    count = case.config["landmarks_list"][0]
    case.check(va.nystrom_per_frame(q, k, v, T, count, iterations)[:, 0])

def golden_performer_function(case, dtype):
    heads_last = case.config["kind"] == "fn_perf"  # b l h d there
    turn = (lambda x: x.transpose(1, 2)) if heads_last else (lambda x: x)
    q, k, v = (turn(case[name]) for name in "qkv")
    W, eps = (
        case["projection_matrix"],
        case.config.get("numerical_stabilizer", case.config.get("eps")))
    if not heads_last:  # its maximum for keys is that of the whole tensor
        assert case.config["kind"] == "perf"
    q = va.favor_features(q, W, (-1,), eps)
    k = va.favor_features(k, W, (-2, -1), eps)
    case.check(turn(q), "expected/q_prime")
    case.check(turn(k), "expected/k_prime")
    case.check(turn(va.attend_linearly(q, k, v, eps=0.0)))

def golden_nystromformer(case, dtype):
    """The two libraries' modules: our attention between their projections, and their convolution of
    v beside it."""
    config, state = case.config, {key: x.to(dtype) for key, x in case.state.items()}
    heads, P, x = config["heads"], config["num_landmarks"], case["input"]
    if config["kind"] == "hf":
        q, k, v = (
            x @ state[f"{n}.weight"].T + state[f"{n}.bias"] for n in ("query", "key", "value"))
    else:
        x = nn.functional.pad(x, (0, 0, -x.shape[1] % P, 0))  # zeros in front, which take part
        q, k, v = (x @ state["to_qkv.weight"].T).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    out = published.nystromformer_attention(q, k, v, P, config["pinv_iterations"])
    convolution = state.get("conv.weight", state.get("res_conv.weight"))
    if convolution is not None:
        out = out + nn.functional.conv2d(
            v, convolution, padding=(convolution.shape[2] // 2, 0), groups=heads)
    out = out.transpose(1, 2).flatten(2)
    if "to_out.0.weight" in state:
        out = out @ state["to_out.0.weight"].T + state["to_out.0.bias"]
    case.check(out[:, -case["input"].shape[1] :])

OFFICIAL = {
    "timesformer": golden_whole_model,
    "motionformer": golden_whole_model,
    "xvit": golden_whole_model,
    "model": golden_whole_model,
    "hf_model": golden_whole_model,
    "attn": golden_lvt_attention,
    "joint": golden_lvt_attention,
    "block": golden_lvt_block,
    "module": golden_trajectory_module,
    "fn_ortho": golden_orthoformer,
    "fn_nys": golden_nystrom_function,
    "fn_perf": golden_performer_function,
    "perf": golden_performer_function,
    "hf": golden_nystromformer,
    "lucid": golden_nystromformer}

@torch.no_grad()
def compare(path, dtype):
    """Compare one case in float64 or float32; the names of the outputs that were compared."""
    case = Golden(path)
    family, before = family_of(case.config), torch.get_default_dtype()
    assert family in OFFICIAL, f"{path}: nobody knows this kind of case ({family}), {case.config}"
    torch.set_default_dtype(dtype)  # so that tables are resized in it
    try:
        OFFICIAL[family](case if dtype == torch.float64 else case.in_float32(), dtype)
    finally:
        torch.set_default_dtype(before)
    return case.checked
