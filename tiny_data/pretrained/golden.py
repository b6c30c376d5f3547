"""What the papers' own code has computed, and what of this repository must give the same.

golden/README.md says where each case is from. Sizes and options are read from a case's config, so
that cases of other sizes are compared too.
"""

import json
import math
import re
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

import video_attention as va

from . import quirks
from .released import from_released, renamed

# The kinds of cases, by "kind" or else by what only their config has, and what compares them.
FAMILIES = {"hf_config": None, "model": "lvt", "consensus": "xvit"}
FAMILIES |= {"attention_type": "timesformer", "attn_layer": "motionformer"}
PARTS = {"attn": "lvt_attention", "joint": "lvt_attention", "block": "lvt_block"}
PARTS |= {"module": "trajectory_module", "fn_ortho": "first_stage", "fn_nys": "first_stage"}
PARTS |= {"fn_perf": "performer", "perf": "performer", "hf": "nystrom", "lucid": "nystrom"}


@torch.no_grad()
def compare(path, dtype):
    """Compare one case: {output: its largest difference}. An unknown kind is an AssertionError."""
    case, before = Case(path, dtype), torch.get_default_dtype()
    assert case.kind in FAMILIES | PARTS, f"{path}: nobody knows this kind of case, {case.config}"
    torch.set_default_dtype(dtype)  # weights are read and tables resized in it
    try:
        with patch.dict(va.ATTENTION):
            getattr(case, PARTS.get(case.kind, "whole_model"))()
    finally:
        torch.set_default_dtype(before)
    return case.found


class Case:
    """One case in float64 or float32: weights and input in, what the official code made of them."""

    def __init__(self, path, dtype):
        arrays = np.load(path)
        self.config = json.loads(str(arrays["config"]))
        signs = (sign for sign in FAMILIES if sign in self.config)
        self.kind = self.config.get("kind") or next(signs, None)
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "config"}
        self.state = {key[6:]: x.to(dtype) for key, x in tensors.items() if key[:6] == "state/"}
        self.expected = {key: x.double() for key, x in tensors.items() if key[:8] == "expected"}
        self.given = {key: x.to(dtype) for key, x in tensors.items() if key not in self.expected}
        inverse = "nystrom" in f"{path} {self.config}".lower()
        self.tolerance = 1e-9 if dtype == torch.float64 else 5e-5 if inverse else 1e-5
        self.dtype, self.x, self.found = dtype, self.given.get("input"), {}

    def check(self, actual, key="expected"):
        if key in self.expected:
            assert actual.shape == self.expected[key].shape, (key, actual.shape)
            self.found[key] = (actual - self.expected[key]).abs().max().item()
            assert self.found[key] <= self.tolerance, f"{key} is {self.found[key]:.1e} apart"

    def whole_model(self):
        """Logits, the input of the first block and the output of every block."""
        config = self.config = self.config | self.config.get("hf_config", {})
        family = FAMILIES[self.kind] or config["model"]
        video = rearrange(self.x, f"{config['input_layout']} -> B C T H W")
        model = from_released(family, self.state, **self.told(family, video))
        seen = []
        for block in model.blocks:
            block.register_forward_hook(lambda _, x, out: seen.append((x[0], out)))
        logits, grid = model(video), model.patches.grid(video.shape[2:])
        outputs = {"embedded": seen[0][0]} | {f"block{i}": out for i, (_, out) in enumerate(seen)}
        frames_apart = family in ("xvit", "lvt") or config.get("attention_type") == "space_only"
        for name, x in outputs.items():
            if frames_apart:
                x = va.into_groups(x.unsqueeze(1), grid, quirks.FRAMES).squeeze(1)
            elif family == "timesformer":  # time runs fastest there
                patches = rearrange(x[:, 1:], "B (T S) D -> B (S T) D", T=grid[0])
                x = torch.cat([x[:, :1], patches], dim=1)
            self.check(x, f"expected/{name}")
        blocks = {key for key in self.expected if re.fullmatch(r".*/(block\d+|embedded)", key)}
        assert blocks <= self.found.keys(), f"not compared: {blocks - self.found.keys()}"
        n, T = len(self.expected["expected"]) // len(logits), grid[0]
        if n > 1 and family == "timesformer":  # Hugging Face's space-only model: a row a frame
            logits = model(rearrange(video, "B C T H W -> (B T) C 1 H W"))
        elif n > 1:  # X-ViT's mean over segments: a row for each segment
            class_tokens = model.forward_features(video)[:, :T].unflatten(1, (n, T // n))
            logits = model.head.classify(class_tokens.mean(dim=2)).flatten(0, 1)
        self.check(logits)

    def told(self, family, video):
        """What no tensor tells, as arguments of from_released."""
        config, mixed, still = self.config, None, None
        told = dict(num_frames=video.shape[2], image_size=list(video.shape[3:]))
        told["heads"] = config.get("num_heads") or config["num_attention_heads"]
        depth = told["depth"] = config.get("depth") or config["num_hidden_layers"]
        where = config.get("locations_list", range(depth)) if config.get("use_xvit", True) else []
        if "hf_config" in config:
            eps = config["layer_norm_eps"]  # but of VideoMAE's last norm, torch's own
            eps = (eps, 1e-5) if family == "videomae" else eps
            told |= dict(eps=eps, hidden_act=config["hidden_act"])
        if config.get("attention_type") == "space_only":
            told["attention"] = "space"
        if family == "motionformer":
            assert config["attn_layer"] in ("joint", "trajectory"), config
            mlp, act = ("tanh", config["head_act"]) if config["use_mlp"] else (None, None)
            told |= dict(slip=config["use_original_code"], head_mlp=mlp, head_act=act)
            mixed = [self.prototypes_step()] if config["approx"] == "orthoformer" else None
        if family == "xvit":
            mixing = dict(moved=2 / config["shift_div"], segment=config["num_segments"])
            mixed, still = [va.step(quirks.joined_heads_attention, **mixing)], va.ATTENTION["space"]
            averaged, layers = config["consensus"] == "avg", config["head_layers"]
            told |= dict(head_mlp=None, head="class") if averaged else dict(head_depth=layers)
        if family == "lvt":
            mixed, still = self.lvt_steps(), self.lvt_steps(shifts=False)
            told["patch_stride"] = config["stride"]
        if mixed is not None:
            va.ATTENTION |= {"mixed": mixed, "still": still}
            told["attention"] = ["mixed" if i in where else "still" for i in range(depth)]
        return told

    def prototypes_step(self):
        start = self.config.get("first_landmark_index") or 0
        choose = partial(quirks.released_prototypes, start=start)
        options = dict(prototypes=self.config["num_landmarks"], choose=choose)
        return va.step(va.OrthoformerTrajectoryAttention, **options)

    def lvt_steps(self, shifts=True):
        config = self.config
        moved = 2 / config["shift_div"] if shifts and config["temporal_shift"] else 0
        neighbours = shifts and config["spatial_shift"]
        return quirks.lvt_steps(self.gates(), moved, config["num_segments"], neighbours)

    def gates(self):
        gated = self.config.get("use_cgate", False)
        return gated + (gated and not self.config["share_gate"])

    def lvt_attention(self):
        """LVT's attention alone; rows are frames or positions there, all of a clip's tokens here."""
        config, x, shift = self.config, self.x, self.config.get("shift")
        n = config.get("n_segment") or config.get("num_frames") or 1
        there, here, grid = "(B n) I D", "B (n I) D", (n, 1, x.shape[1])
        options = dict(fixation=self.gates() > 0, two_gates=self.gates() == 2)
        if shift == "spatial":
            here, grid = "B (I n) D", (x.shape[1], math.isqrt(n), math.isqrt(n))
            options |= dict(axis="time", neighbours=True)
        elif shift == "temporal":
            options |= dict(axis="space", moved=2 / config["shift_div"])
        module = quirks.ReleasedLinearAttention(config["dim"], config["num_heads"], **options)
        self.load(module.to(self.dtype), "temporal_attn.", "steps.0.")
        out = module(rearrange(x, f"{there} -> {here}", n=n), grid)
        self.check(rearrange(out, f"{here} -> {there}", n=n, I=x.shape[1]))

    def load(self, module, there="", here=""):
        """LVT's weights into a block or a part of it."""
        weights = {f"blocks.0.{there}{key}": x for key, x in self.state.items()}
        weights = renamed(weights, "lvt", space=1, only="-")
        names = {key.removeprefix(f"blocks.0.{here}"): x for key, x in weights.items()}
        module.load_state_dict(names)

    def lvt_block(self):
        config, D, T = self.config, self.config["dim"], self.config["num_frames"]
        steps = [make(D, config["num_heads"]) for make in self.lvt_steps()]
        mlp = va.MLP(D, config["mlp_ratio"] * D, depthwise=True)
        block, grid = va.Block(D, steps, mlp).to(self.dtype), (T, *config["grid"])
        self.load(block)
        x = given = rearrange(self.x, "(B T) S D -> B (T S) D", T=T)
        for name, norm, step in zip(("time", "space"), block.norms, block.steps):
            x = x + step(norm(x), grid)
            self.check(rearrange(x, "B (T S) D -> (B T) S D", T=T), f"expected/after_{name}")
        self.check(rearrange(block(given, grid), "B (T S) D -> (B T) S D", T=T))

    def trajectory_module(self):
        """Motionformer's attention, as the paper has it and with the slip in its values."""
        config, weights = self.config, dict(self.state)
        options = dict(landmarks=config["num_landmarks"], iterations=config["inv_iters"])
        nystrom = partial(va.nystrom_per_frame, **options)
        make = {
            "none": va.step(va.TrajectoryAttention),
            "orthoformer": self.prototypes_step(),
            "nystrom": va.step(va.TrajectoryAttention, first_stage=nystrom),
            "performer": va.step(va.PerformerTrajectoryAttention, features=config["num_features"]),
        }[config["approx"]]
        if config["approx"] == "performer":
            weights["projection"] = self.given["projection_matrix"]
        module = make(config["embed_dim"], config["num_heads"]).to(self.dtype)
        module.load_state_dict(weights)
        grid = (config["num_frames"], config["seq_len"], 1)
        self.check(module(self.x, grid))
        quirks.use_the_slip(module)
        self.check(module(self.x, grid), "expected/out_original_code")

    def first_stage(self):
        """The functions of Motionformer's first stage; heads are in the batch there."""
        config, (q, k, v) = self.config, (self.given[name].unsqueeze(1) for name in "qkv")
        T = config["num_frames"]
        if config["kind"] == "fn_ortho":
            count, start = config["num_landmarks"], config["first_landmark_index"]
            prototypes = quirks.released_prototypes(q, k, count, start)
            self.check(prototypes[:, 0], "expected/landmarks")
            return self.check(va.orthoformer_per_frame(q, k, v, T, prototypes)[:, 0])
        A, iterations = self.expected["expected/pinv_input"].to(self.dtype), config["inv_iters"]
        self.check(va.iterative_inverse(A, iterations), "expected/pinv_exact")
        self.check(quirks.inverse_of_one_scale(A, iterations), "expected/pinv_original")
        for count in reversed(config["landmarks_list"]):  # the whole was computed with the first
            out = va.nystrom_per_frame(q, k, v, T, count, iterations)[:, 0]
            self.check(out, f"expected/landmarks{count}_spatial")
        self.check(out)

    def performer(self):
        layout = self.config["layout"].replace("l", "n")
        q, k, v = (rearrange(self.given[name], f"{layout} -> b h n d") for name in "qkv")
        eps, W = self.config.get("numerical_stabilizer"), self.given["projection_matrix"]
        eps = eps or self.config["eps"]
        q, k = va.favor_features(q, W, -1, eps), va.favor_features(k, W, (-2, -1), eps)
        out = va.attend_linearly(q, k, v, eps=0.0)
        for key, x in (("expected/q_prime", q), ("expected/k_prime", k), ("expected", out)):
            self.check(rearrange(x, f"b h n d -> {layout}"), key)

    def nystrom(self):
        """Two libraries' modules: our attention between their projections, their convolution of v."""
        config, state, x = self.config, self.state, self.x
        P, h, rows = config["num_landmarks"], config["heads"], x.shape[1]
        if config["kind"] == "hf":
            layers = ("query", "key", "value")
            parts = [x @ state[f"{n}.weight"].T + state[f"{n}.bias"] for n in layers]
        else:
            x = F.pad(x, (0, 0, -rows % P, 0))  # zeros in front, which take part
            parts = (x @ state["to_qkv.weight"].T).chunk(3, dim=-1)
        q, k, v = (rearrange(part, "B N (h d) -> B h N d", h=h) for part in parts)
        q_means, k_means = va.segment_means(q, P), va.segment_means(k, P)
        small = va.attention_weights(q_means, k_means)
        inverse = quirks.inverse_of_one_scale(small, config["pinv_iterations"])
        out = va.attend(q, k_means, inverse @ va.attend(q_means, k, v))
        for kernel in [x for key, x in state.items() if "conv" in key]:
            out = out + F.conv2d(v, kernel, padding=(kernel.shape[2] // 2, 0), groups=h)
        out = rearrange(out, "B h N d -> B N (h d)")[:, -rows:]
        if "to_out.0.weight" in state:
            out = out @ state["to_out.0.weight"].T + state["to_out.0.bias"]
        self.check(out)
