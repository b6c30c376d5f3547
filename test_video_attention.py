"""The proof of video_attention.py, and a second explanation of the papers.

    pytest                                          everything
    pytest -k TestTrajectory                        one mechanism
    VIDEO_ATTENTION=student.py pytest -k TestSpace  the same questions, put to another file
    VA_SEED=1 pytest                                with other random numbers
    VA_GOLDEN=folder pytest -k golden               with other cases of the papers' own code
    VA_COMPILE=inductor pytest -k compiles          also build what is traced
    python -m tiny_data.mutations                   with mistakes, which must turn a test red

Every mechanism answers the same questions. Does it equal its ORACLE, the sentence of the paper in
plain loops over (t, y, x), in values and in gradients? Does a patch ATTEND TO exactly the patches
of the paper, found by gradients? Does it COST what its docstring says, counted by torch? Does it
become its LIMITS, the mechanisms that it should be where its window is empty or everything? Does it
stay finite in half precision? Everything is in float64, and every size differs from every other, so
that a swapped axis cannot hide.
"""

import ast
import copy
import gc
import importlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import re
import subprocess
import sys
import warnings
from datetime import timedelta
from functools import cache, partial
from itertools import product
from pathlib import Path

import einops
import numpy as np
import pytest
import torch
import torch.nn as nn
from einops import rearrange
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
TINY_DATA = HERE / "tiny_data"
SEED = int(os.environ.get("VA_SEED", 0))
torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other
gc.set_threshold(100_000, 50, 100)  # tracing makes millions of small objects, few of them garbage

class Missing:
    """Stands for what the file under test does not define, so that the rest of it can still be
    tested."""

    def __init__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.name = self.__name__ = name

    def __call__(self, *args, **options):
        pytest.fail(f"{va.__file__} does not define {self.name}", pytrace=False)

def load_subject():
    """The file under test: video_attention.py, or the one that VIDEO_ATTENTION names."""
    path = os.environ.get("VIDEO_ATTENTION")
    if path is None:
        module = importlib.import_module("video_attention")
    else:
        spec = importlib.util.spec_from_file_location("video_attention", path)
        sys.modules["video_attention"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    module.__getattr__ = Missing  # asked for what the file does not define
    return module

sys.path.insert(0, str(HERE))
va = load_subject()
SOURCE = Path(va.__file__).read_text()

# ==== TOOLS =======================================================================================

B, h, d = 2, 3, 6  # clips, heads, width of a head
D = h * d
GRID = (5, 4, 7)  # (T, H, W): no two sizes in this file are equal
GRIDS = [GRID, (5, 3, 7), (1, 4, 7), (5, 1, 1), (1, 1, 1)]  # odd sides, one frame, one patch

@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(SEED)

def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)

def qkv(grid=GRID, C=0, heads=h):
    return [randn(B, heads, C + math.prod(grid), d) for _ in range(3)]

def class_tokens_of(kind, grid):
    return {"none": 0, "clip": 1, "frame": grid[0]}[kind]

def patches_of(grid):
    """All (t, y, x), in the order of the tokens."""
    return list(product(*(range(n) for n in grid)))

def same(actual, expected, tolerance=1e-10):
    """Equal to within the tolerance; if not, say by how much and where."""
    assert isinstance(actual, torch.Tensor), f"a tensor is expected, not {actual!r:.60}"
    shapes = tuple(actual.shape), tuple(expected.shape)
    assert shapes[0] == shapes[1], f"shape {shapes[0]}, expected {shapes[1]}"
    if expected.numel() == 0:
        return
    difference = (actual - expected).abs().nan_to_num(nan=torch.inf)
    worst = difference.max().item()
    where = tuple(int(i) for i in np.unravel_index(difference.argmax().item(), shapes[0]))
    assert worst <= tolerance, f"largest difference {worst:.3g} at {where}, allowed {tolerance:.3g}"

def distance(actual, expected):
    """Relative to the norm of what is expected."""
    return ((actual - expected).norm() / expected.norm()).item()

def same_gradients(call, expected, inputs, tolerance=1e-10):
    """Two functions of the inputs with the same values and the same gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = [call(*inputs), expected(*inputs)]
    same(*out, tolerance)
    weight = randn(*out[0].shape)
    gradients = [torch.autograd.grad(x, inputs, weight, allow_unused=True) for x in out]
    for ours, theirs in zip(*gradients):
        nothing = torch.zeros(())
        same(nothing if ours is None else ours, nothing if theirs is None else theirs, tolerance)

def softmax_mean(q, keys, values):
    """One query (..., d), keys and values (..., J, d) -> (..., d), by the definition."""
    scores = (q[..., None, :] * keys).sum(-1) / q.shape[-1] ** 0.5
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights[..., None] * values).sum(-2)

def exact(q, keys, values):
    """Queries (..., I, d), one after the other."""
    return torch.stack([softmax_mean(one, keys, values) for one in q.unbind(-2)], dim=-2)

def mean_of_each(found, like):
    """Each token becomes the mean of all that it found, {token: [(B, h, d), ...]}, or zeros."""
    nothing = torch.zeros_like(like[:, :, 0])
    means = [sum(found[i], nothing) / max(1, len(found[i])) for i in range(like.shape[2])]
    return torch.stack(means, dim=2)

def oracle_in_groups(q, k, v, grid, group, class_joins=True):
    """Patches with the same group(t, y, x) attend to each other, and to the class token if it
    joins. A class token of the clip joins every group, one of a frame those of its frame."""
    C, members = q.shape[2] - math.prod(grid), {}
    for n, (t, y, x) in enumerate(patches_of(grid)):
        members.setdefault(group(t, y, x), []).append((t, C + n))
    found = {i: [] for i in range(q.shape[2])}
    for group in members.values():
        frames = {t for t, n in group}
        tokens = [c for c in range(C) if class_joins and (C == 1 or c in frames)]
        tokens += [n for t, n in group]
        for i in tokens:
            found[i].append(softmax_mean(q[:, :, i], k[:, :, tokens], v[:, :, tokens]))
    return mean_of_each(found, q)

def tokens_of_frames(grid, C):
    """For every frame the numbers of its tokens, its class token or that of the clip before its
    patches."""
    T, S = grid[0], grid[1] * grid[2]
    class_token = lambda t: [] if C == 0 else [0] if C == 1 else [t]
    return [[*class_token(t), *range(C + t * S, C + (t + 1) * S)] for t in range(T)]

def attends_to(step, grid, query, heads=h):
    """The patches whose input can change the module's output for the patch `query`, by gradients.
    """
    module = step(heads * d, heads).double().eval()
    x = randn(1, math.prod(grid), heads * d).requires_grad_()
    n = patches_of(grid).index(query)
    (gradient,) = torch.autograd.grad(module(x, grid)[0, n].sum(), x)
    reached = gradient[0].abs().sum(-1) > 1e-14
    return {patch for patch, hit in zip(patches_of(grid), reached) if hit}

def picture(patches, grid, query):
    """The character picture of a docstring."""
    T, H, W = grid
    mark = {patch: "#" for patch in patches} | {query: "Q"}
    lines = ["  ".join(f"t={t}".ljust(W) for t in range(T)).rstrip()]
    for y in range(H):
        rows = ["".join(mark.get((t, y, x), ".") for x in range(W)) for t in range(T)]
        lines.append("  ".join(rows))
    return "\n".join(" " * 8 + line for line in lines)

def formula(function, title="Cost"):
    """The formula in a docstring after a title such as Cost."""
    found = re.search(rf"^ *{title}  +(\S.*?)(?:  .*)?$", function.__doc__ or "", re.M)
    assert found is not None, f"{function.__name__}: its docstring has no line {title}"
    return found.group(1)

def evaluated(text, **sizes):
    """A cost formula in numbers."""
    return eval(text, dict(min=min, max=max, sum=sum, range=range) | sizes)

def counted(call):
    """Multiply-accumulates of call(), counted by torch."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2

def on_meta(*shapes):
    return [torch.empty(*shape, device="meta") for shape in shapes]

def linear(*sizes):
    """Linear layers, in float64: inputs and outputs of the first, of the second, ..."""
    return [nn.Linear(*pair).double() for pair in zip(sizes[::2], sizes[1::2])]

def all_steps():
    """Every step in the registry, with its options, once."""
    steps = [step for scheme in vars(va).get("ATTENTION", {}).values() for step in scheme]
    return {repr(step): step for step in steps}.values()

def name_of(step):
    step, options = (step.func, step.keywords) if isinstance(step, partial) else (step, {})
    return "-".join([step.__name__, *(f"{key}={value}" for key, value in options.items())])

every_step = pytest.mark.parametrize("step", all_steps(), ids=name_of)

# ==== SOFTMAX ATTENTION ===========================================================================

class TestAttend:
    """out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j"""

    @pytest.fixture(autouse=True)
    def tensors(self, seeded):
        self.q, self.k, self.v = randn(3, 5, 11, 7), randn(3, 5, 13, 7), randn(3, 5, 13, 4)

    def test_equals_oracle(self):
        same_gradients(va.attend, exact, [self.q, self.k, self.v])

    def test_readable_path_equals_oracle(self):
        readable = lambda q, k, v: va.attend(q, k, v, return_weights=True)[0]
        same_gradients(readable, exact, [self.q, self.k, self.v])
        out, weights = va.attend(self.q, self.k, self.v, return_weights=True)
        same(weights.sum(-1), torch.ones(3, 5, 11).double())
        same(weights @ self.v, out)

    def test_leading_axes_are_free(self):
        for lead in ((), (2,), (2, 1, 3, 2)):
            q, k, v = randn(*lead, 3, 7), randn(*lead, 5, 7), randn(*lead, 5, 4)
            same(va.attend(q, k, v), exact(q, k, v))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_large_scores_stay_finite(self, dtype):
        """The scale comes before the product: 64 products of 100 * 100 are beyond float16, 8 are
        not."""
        q, k, v = (torch.full((1, 9, 64), 100.0, dtype=dtype) for _ in range(3))
        out, weights = va.attend(q, k, v, return_weights=True)
        if dtype is torch.bfloat16:
            assert out.isfinite().all() and weights.isfinite().all()
        q, k = q / 2, k / 2  # scores of 160,000 before the scale, of 20,000 after it
        out, weights = va.attend(q, k, v, return_weights=True)
        assert out.isfinite().all() and va.attend(q, k, v).isfinite().all()
        same(out.float(), v.float(), 1.0)

    def test_large_queries_are_not_nan(self):
        """What keeps a NaN visible must not make one where a sum of queries would overflow."""
        q, (k, v) = torch.full((1, 1, 1, 8), 1e38), torch.randn(2, 1, 1, 4, 8)
        k = k * 1e-38
        same(va.attend(q, k, v), va.attend(q, k, v, return_weights=True)[0], 1e-6)

    def test_nan_stays_visible(self):
        """In keys and values all queries meet it, in a query that query alone."""
        for name in ("k", "v"):
            tensors = dict(q=self.q, k=self.k.clone(), v=self.v.clone())
            tensors[name][1, 2, 3] = math.nan
            for out in (va.attend(**tensors), va.attend(**tensors, return_weights=True)[0]):
                assert out[1, 2].isnan().all() and out[1, 1].isfinite().all()
        q = self.q.clone()
        q[1, 2, 3] = math.nan
        for J, dtype in product((1, 2, 13, 16, 40), (torch.float64, torch.float32, torch.bfloat16)):
            k, v = torch.randn(2, 3, 5, J, 7, dtype=dtype)
            for out in (va.attend(q.to(dtype), k, v), va.attend(q.to(dtype), k, v, True)[0]):
                assert out[1, 2, 3].isnan().all() and out[1, 2, 4].isfinite().all()

# ==== THE CONTRACT: what does not fit is named ====================================================

class TestContract:
    """@shapes("q (..., I, d), ...") binds letters to sizes, and a ValueError says what does not
    fit."""

    def test_the_message_has_contract_shapes_and_fix(self):
        q, k, v = randn(3, 5, 11, 7), randn(3, 5, 13, 6), randn(3, 5, 13, 4)
        with pytest.raises(ValueError) as error:
            va.attend(q, k, v)
        text = str(error.value)
        for part in ("q (..., I, d), k (..., J, d)", "[3, 5, 11, 7]", "[3, 5, 13, 6]", "make k"):
            assert part in text, text

    @pytest.mark.parametrize("wrong", ["J", "lead", "axes", "empty"])
    def test_a_letter_is_one_size(self, wrong):
        q, k, v = randn(3, 5, 11, 7), randn(3, 5, 13, 7), randn(3, 5, 13, 4)
        k, v = dict(J=(k, v[:, :, 1:]), lead=(k[:, :1], v[:, :1]), axes=(k[0], v[0]),
                    empty=(k[:, :, :0], v[:, :, :0]))[wrong]  # fmt: skip
        with pytest.raises(ValueError, match=r"q \(\.\.\., I, d\), k"):
            va.attend(q, k, v)

    @pytest.mark.parametrize("wrong", [None, [[1.0]], np.ones((2, 3, 140, 6)), "q", 3], ids=type)
    def test_only_tensors_are_taken(self, wrong):
        q, k, v = qkv()
        for call in (va.attend, partial(va.space_attention, grid=GRID), va.attend_linearly):
            with pytest.raises(ValueError, match="q a torch.Tensor"):
                call(wrong, k, v)
            with pytest.raises(ValueError, match="v a torch.Tensor"):
                call(q, k=k, v=wrong)
        with pytest.raises(ValueError, match="x a torch.Tensor"):
            va.SpaceAttention(D, h)(wrong, GRID)
        with pytest.raises(ValueError, match="video a torch.Tensor"):
            va.PatchEmbedding(8, 6)(wrong)

    @pytest.mark.parametrize("grid", [
        (5, 9, 7), (5, 28), (5, 4, 7, 1), (-5, -4, 7), (0, 4, 7), (5.0, 4, 7), 140, "547",
        (np.float64(5), 4, 7), ("5", "4", "7"), (5, None, 7), (5, (4,), 7)], ids=str)
    def test_the_grid_must_hold_the_tokens(self, grid):
        for step in all_steps():
            with pytest.raises(ValueError, match="140 tokens|grid="):
                step(D * 8, h * 8)(torch.randn(1, 140, D * 8), grid)

    @every_step
    def test_the_width_is_the_modules(self, step):
        module = step(24, 4)
        for called in (module, va.Block(24, [module], va.MLP(24, 48))):
            with pytest.raises(ValueError, match=r"18, 16.*'D': 24"):
                called(torch.randn(2, 18, 16), (3, 2, 3))

    @pytest.mark.parametrize("C", [2, 4, 6])
    def test_class_tokens_are_none_or_one_or_one_per_frame(self, C):
        with pytest.raises(ValueError, match=f"{C + 140} tokens.*0, 1, 5"):
            va.SpaceAttention(D, h)(torch.randn(B, C + 140, D), GRID)

    def test_a_message_has_at_most_2000_characters(self):
        with pytest.raises(ValueError) as error:
            va.attend([0.123456789] * 100_000, None, None)
        assert len(str(error.value)) <= 2000
        with pytest.raises(ValueError) as error:
            va.VideoTransformer("x" * 100_000)
        assert len(str(error.value)) <= 2000

    def test_it_can_be_deleted(self):
        """What a copier leaves out only checks: the function below it gives the same."""
        q, k, v = qkv(C=1)
        same(va.space_attention.__wrapped__(q, k, v, GRID), va.space_attention(q, k, v, GRID), 0)
        assert va.space_attention.__wrapped__.__doc__ == va.space_attention.__doc__

    @every_step
    def test_dtype_and_device_are_those_of_the_weights(self, step):
        module, x = step(48, 4), torch.randn(B, 140, 48)
        for wrong in (x.double(), x.half(), x.long(), x.to("meta")):
            with pytest.raises(ValueError, match="torch.float32 cpu"):
                module(wrong, GRID)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for fits in (x, x.bfloat16()):
                assert module(fits, GRID).isfinite().all()
            for wrong in (x.double(), x.byte()):
                with pytest.raises(ValueError, match="torch.float32 cpu"):
                    module(wrong, GRID)

# ==== THE QUESTIONS: the same for every mechanism =================================================

class Questions:
    """A mechanism says what it is called, what its paper lets a patch attend to, and what its
    oracle is."""

    step = None  # the module
    mechanism = None  # the pure function, whose docstring has the picture and the cost
    class_tokens = ("none", "clip", "frame")  # with which it is asked
    heads = h
    sizes = {}  # what its cost formula names beside the grid
    cost_grids = [(2, 4, 6), (6, 8, 10), (4, 2, 14)]
    tolerance = 1e-10

    def call(self, q, k, v, grid):
        return type(self).mechanism(q, k, v, grid)

    def call_of(self, module):
        """The mechanism with what the module adds to it: layers, prototypes, random features."""
        return self.call

    def oracle(self, q, k, v, grid):
        raise NotImplementedError

    def attends(self, query, patch, grid):
        return True

    @pytest.mark.parametrize("grid", GRIDS, ids=str)
    def test_equals_oracle(self, grid):
        for kind in self.class_tokens:
            q, k, v = qkv(grid, class_tokens_of(kind, grid), self.heads)
            same(self.call(q, k, v, grid), self.oracle(q, k, v, grid), self.tolerance)

    def test_gradients_equal_the_oracles(self):
        for kind in self.class_tokens:
            inputs = qkv((5, 2, 3), class_tokens_of(kind, (5, 2, 3)), self.heads)
            call, oracle = (partial(f, grid=(5, 2, 3)) for f in (self.call, self.oracle))
            same_gradients(call, oracle, inputs, self.tolerance)

    def test_attends_to_what_the_paper_says(self):
        for grid in (GRID, (4, 4, 6)):
            for query in ((0, 0, 0), (1, 1, 2), (3, 3, 5)):
                expected = {patch for patch in patches_of(grid) if self.attends(query, patch, grid)}
                found = attends_to(self.step, grid, query, self.heads)
                assert picture(found, grid, query) == picture(expected, grid, query)
                assert query in found, f"with (T, H, W) = {grid} the patch {query} ignores itself"

    def test_picture_is_computed(self):
        """The docstring shows what the gradients find; without a picture it is everything."""
        grid, query = (4, 4, 6), (1, 1, 2)
        found = attends_to(self.step, grid, query, self.heads)
        text = re.sub(r" +$", "", type(self).mechanism.__doc__, flags=re.M)
        if "t=0" in text:
            assert picture(found, grid, query) in text, f"computed:\n{picture(found, grid, query)}"
        else:
            assert found == set(patches_of(grid))

    def test_costs_what_the_docstring_says(self):
        text = formula(type(self).mechanism)
        for grid, kind in product(self.cost_grids, self.class_tokens):
            self.compare_cost(text, self.call, grid, class_tokens_of(kind, grid))

    def compare_cost(self, text, call, grid, C):
        T, H, W = grid
        D = self.heads * d
        sizes = dict(T=T, H=H, W=W, S=H * W, C=C, c=min(C, 1), D=D, h=self.heads, d=d) | self.sizes
        q, k, v = on_meta(*[(1, self.heads, C + T * H * W, d)] * 3)
        macs, stated = counted(lambda: call(q, k, v, grid)), evaluated(text, **sizes)
        assert macs == stated, (
            f"{text} is {stated}, counted {macs} with (T, H, W) = {grid}, C = {C}")

    def test_clips_of_a_batch_do_not_meet(self):
        q, k, v = qkv(heads=self.heads)
        alone = [self.call(q[i : i + 1], k[i : i + 1], v[i : i + 1], GRID) for i in range(B)]
        same(self.call(q, k, v, GRID), torch.cat(alone))

    def test_no_clips(self):
        q, k, v = (x[:0] for x in qkv(heads=self.heads))
        assert self.call(q, k, v, GRID).shape == q.shape

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, dtype):
        module = self.step(self.heads * d, self.heads).eval()
        x = torch.randn(B, math.prod(GRID), self.heads * d)
        expected = module(x, GRID)
        actual = module.to(dtype)(x.to(dtype), GRID).float()
        assert actual.isfinite().all() and distance(actual, expected) < 0.05

    def test_shapes_that_do_not_fit_are_named(self):
        q, k, v = qkv(heads=self.heads)
        with pytest.raises(ValueError, match=r"140.*139"):
            self.call(q, k[:, :, 1:], v[:, :, 1:], GRID)
        for wrong in (k[0], k[:, :1], k[..., :1]):
            with pytest.raises(ValueError, match=r"\(B, h, C \+ T\*S, d\)"):
                self.call(q, wrong, wrong, GRID)

    def test_module_is_the_mechanism_between_its_projections(self):
        """Rows of qkv are those of q, then k, then v, in each head by head; proj reads head by
        head."""
        D = self.heads * d
        module = self.step(D, self.heads).double().eval()
        for kind in self.class_tokens:
            C = class_tokens_of(kind, GRID)
            x = randn(B, C + math.prod(GRID), D)
            rows, biases = module.qkv.weight.view(3, D, D), module.qkv.bias.view(3, D)
            q, k, v = (x @ w.T + b for w, b in zip(rows, biases))
            q, k, v = (y.unflatten(2, (self.heads, d)).transpose(1, 2) for y in (q, k, v))
            out = self.call_of(module)(q, k, v, GRID).transpose(1, 2).flatten(2)
            expected = out @ module.proj.weight.T + module.proj.bias
            if module.skips_class_token:
                expected[:, :C] = 0
            same(module(x, GRID), expected)

# ==== TIMESFORMER: each scheme is one sentence in the oracle ======================================

class TestSpace(Questions):
    """Patches of one frame attend to each other."""

    step, mechanism = va.SpaceAttention, va.space_attention

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: t)

    def attends(self, query, patch, grid):
        return patch[0] == query[0]

    def test_order_of_frames_cannot_matter(self):
        T, H, W = GRID
        q, k, v = qkv()
        shuffled = torch.arange(T * H * W).view(T, H * W)[torch.randperm(T)].flatten()
        out = va.space_attention(*(x[:, :, shuffled] for x in (q, k, v)), GRID)
        same(out, va.space_attention(q, k, v, GRID)[:, :, shuffled])

    def test_attends_by_the_function_handed_over(self):
        q, k, v = qkv(C=1)
        first = lambda q, k, v: v[..., :1, :].expand_as(q)
        out = va.space_attention(q, k, v, GRID, first)
        same(out, v[:, :, :1].expand_as(v))

class TestJoint(Questions):
    """All tokens attend to all tokens."""

    step, mechanism = va.JointAttention, va.joint_attention

    def oracle(self, q, k, v, grid):
        return exact(q, k, v)

    def test_one_frame_is_space_attention(self):
        q, k, v = qkv((1, 4, 7), C=1)
        same(va.joint_attention(q, k, v, (1, 4, 7)), va.space_attention(q, k, v, (1, 4, 7)))

class TestDivided(Questions):
    """Patches at one position attend to each other along time, and space attention follows."""

    step, mechanism = va.TimeAttention, va.time_attention

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (y, x), class_joins=False)

    def attends(self, query, patch, grid):
        return patch[1:] == query[1:]

    def test_one_frame_attends_to_itself_alone(self):
        q, k, v = qkv((1, 4, 7))
        same(va.time_attention(q, k, v, (1, 4, 7)), v)

    def test_one_position_is_joint_attention(self):
        q, k, v = qkv((5, 1, 1))
        same(va.time_attention(q, k, v, (5, 1, 1)), va.joint_attention(q, k, v, (5, 1, 1)))

    def test_attends_by_the_function_handed_over(self):
        q, k, v = qkv()
        last = lambda q, k, v: v[..., -1:, :].expand_as(q)
        out = va.time_attention(q, k, v, GRID, last).unflatten(2, (5, 28))
        same(out, v[:, :, -28:].unsqueeze(2).expand_as(out))

    @pytest.mark.parametrize("kind", ["clip", "frame"])
    @pytest.mark.parametrize("zero_init", [None, "proj", "extra"])
    def test_the_residual_leaves_the_class_token_as_it_was(self, kind, zero_init):
        """No bias reaches it either, of the projection or of the extra layer."""
        module = va.TimeAttention(D, h, zero_init=zero_init).double()
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        C = class_tokens_of(kind, GRID)
        out = module(randn(B, C + math.prod(GRID), D), GRID)
        same(out[:, :C], torch.zeros(B, C, D).double(), 0)
        assert out[:, C:].abs().min() > 0

    def test_time_then_space_spans_the_clip(self):
        """Two steps, and every patch has information from every other: the whole point of dividing.
        """
        model = nn.ModuleList([va.TimeAttention(D, h), va.SpaceAttention(D, h)]).double()
        x = randn(1, math.prod(GRID), D).requires_grad_()
        y = x + model[0](x, GRID)
        (gradient,) = torch.autograd.grad(model[1](y, GRID)[0, 17].sum(), x)
        assert (gradient.abs().sum(-1) > 0).all()

    def test_a_block_starts_as_space_attention(self):
        """The time branch ends in zeros, so at first divided is space-only; two steps later it is
        not."""
        model = tiny("divided", position="space").double()
        space = tiny("space", position="space", class_token="clip").double()
        shared = {}
        for name, value in model.state_dict().items():
            if "steps.1." in name or "norms.1." in name:
                shared[name.replace("steps.1.", "steps.0.").replace("norms.1.", "norms.0.")] = value
            elif "steps.0." not in name and "norms.0." not in name:
                shared[name] = value
        space.load_state_dict(shared)
        video = randn(*VIDEO)
        same(model(video), space(video))

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):  # the first step moves the zeros, the second what lies behind them
            optimizer.zero_grad()
            model(video).square().sum().backward()
            optimizer.step()
        assert (model(video) - space(video)).abs().max() > 1e-6
        time = model.blocks[0].steps[0]
        assert time.qkv.weight.grad.abs().max() > 0 and time.extra.weight.abs().max() > 0

class TestLocal(Questions):
    """Local: patches in one quarter of the frame, through all frames, attend to each other."""

    step, mechanism = va.LocalAttention, va.local_attention
    class_tokens = ("none", "clip")

    def half(self, index, n):
        """0 in the first half of n, the larger one when n is odd, 1 in the second."""
        return int(index >= (n + 1) // 2)

    def oracle(self, q, k, v, grid):
        T, H, W = grid
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (self.half(y, H), self.half(x, W)))

    def attends(self, query, patch, grid):
        sides = zip(query[1:], patch[1:], grid[1:])
        return all(self.half(a, n) == self.half(b, n) for a, b, n in sides)

    def test_a_quarter_of_the_clip(self):
        assert len(attends_to(self.step, (4, 6, 10), (1, 1, 2))) * 4 == 4 * 6 * 10

    def test_a_window_that_covers_everything_is_joint(self):
        q, k, v = qkv((5, 1, 1), C=1)
        same(va.local_attention(q, k, v, (5, 1, 1)), va.joint_attention(q, k, v, (5, 1, 1)))

class TestGlobal(Questions):
    """Global: patches whose t, y and x are alike odd or even attend to each other."""

    step, mechanism = va.GlobalAttention, va.global_attention
    class_tokens = ("none", "clip")

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (t % 2, y % 2, x % 2))

    def attends(self, query, patch, grid):
        return all((a - b) % 2 == 0 for a, b in zip(query, patch))

    def test_an_eighth_of_the_clip(self):
        assert len(attends_to(self.step, (4, 6, 10), (1, 1, 2))) * 8 == 4 * 6 * 10

class TestAxialWidth(Questions):
    """Width: patches of one row of one frame attend to each other."""

    step, mechanism = va.WidthAttention, va.width_attention

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (t, y))

    def attends(self, query, patch, grid):
        return patch[:2] == query[:2]

    def test_one_row_is_space_attention(self):
        q, k, v = qkv((5, 1, 7), C=1)
        same(va.width_attention(q, k, v, (5, 1, 7)), va.space_attention(q, k, v, (5, 1, 7)))

class TestAxialHeight(Questions):
    """Height: patches of one column of one frame attend to each other."""

    step, mechanism = va.HeightAttention, va.height_attention

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (t, x))

    def attends(self, query, patch, grid):
        return patch[0] == query[0] and patch[2] == query[2]

    def test_is_width_attention_of_the_transposed_frame(self):
        T, H, W = GRID
        q, k, v = qkv()
        turned = torch.arange(T * H * W).view(T, H, W).transpose(1, 2).flatten()
        out = va.width_attention(*(x[:, :, turned] for x in (q, k, v)), (T, W, H))
        same(out, va.height_attention(q, k, v, GRID)[:, :, turned])

class TestGroups:
    """What the mechanisms above are made of, used by itself."""

    def test_groups_are_taken_apart_and_put_together(self):
        for C, groups in product((0, 1, 5), ("(B T) h (H W) d", "(B T H) h W d", "(B T W) h H d")):
            x = randn(B, h, C + 140, d)
            same(va.out_of_groups(va.into_groups(x, GRID, groups), GRID, groups, C), x)

    def test_boxes_of_any_size(self):
        """Two boxes that tile the clip unevenly, and a class token that becomes the mean of both.
        """
        q, k, v = qkv(C=1)
        boxes = [np.s_[:, :, :2], np.s_[:, :, 2:]]
        expected = oracle_in_groups(q, k, v, GRID, lambda t, y, x: x < 2)
        same(va.attend_in_boxes(q, k, v, GRID, boxes), expected)

    def test_a_patch_in_no_box_is_not_a_number(self):
        q, k, v = qkv()
        out = va.attend_in_boxes(q, k, v, GRID, [np.s_[:2, :, :]])
        assert out[:, :, :56].isfinite().all() and out[:, :, 56:].isnan().all()

# ==== VIVIT: half of the heads in space, half in time =============================================

class TestFactorisedHeads(Questions):
    """Model 4: the first heads attend inside the frame, the others along time."""

    step, mechanism = va.FactorisedHeadsAttention, va.factorised_heads_attention
    heads = 4

    def oracle(self, q, k, v, grid):
        q, k, v = ([x[:, :2], x[:, 2:]] for x in (q, k, v))
        in_space = oracle_in_groups(q[0], k[0], v[0], grid, lambda t, y, x: t)
        in_time = oracle_in_groups(
            q[1], k[1], v[1], grid, lambda t, y, x: (y, x), class_joins=False)
        return torch.cat([in_space, in_time], dim=1)

    def attends(self, query, patch, grid):
        return patch[0] == query[0] or patch[1:] == query[1:]

    def test_one_frame_is_space_attention_in_half_of_the_heads(self):
        q, k, v = qkv((1, 4, 7), heads=4)
        out = va.factorised_heads_attention(q, k, v, (1, 4, 7))
        same(out[:, :2], va.space_attention(q, k, v, (1, 4, 7))[:, :2])
        same(out[:, 2:], v[:, 2:])

    def test_an_odd_number_of_heads_is_named(self):
        with pytest.raises(ValueError, match="h=3"):
            va.factorised_heads_attention(*qkv(), GRID)

class TestFactorised:
    """Model 3: space, then time, whose output projection starts at zero."""

    def test_a_block_starts_as_space_attention(self):
        steps = [step(D, h).double() for step in va.ATTENTION["factorised"]]
        assert [type(step) for step in steps] == [va.SpaceAttention, va.TimeAttention]
        x = randn(B, math.prod(GRID), D)
        same(steps[1](x, GRID), torch.zeros_like(x), 0)
        assert steps[0](x, GRID).abs().max() > 0 and steps[1].extra is None

    def test_the_order_does_not_matter_at_the_start(self):
        steps = va.ATTENTION["factorised"]
        models = [tiny(order, class_token="none").double() for order in (steps, steps[::-1])]
        turned = {"0": "1", "1": "0"}
        swap = lambda key: re.sub(r"(steps|norms)\.(\d)", lambda m: f"{m[1]}.{turned[m[2]]}", key)
        models[1].load_state_dict({swap(key): x for key, x in models[0].state_dict().items()})
        video = randn(*VIDEO)
        same(models[0](video), models[1](video))

# ==== WINDOWS: in time, and displaced boxes =======================================================

class TestWindow(Questions):
    """X-ViT's equation 7: a patch attends to all patches of the frames t - w .. t + w."""

    step, mechanism = va.WindowAttention, va.window_attention
    sizes = dict(w=1)

    def oracle(self, q, k, v, grid, window=1):
        """The class token of a clip has a copy in every frame, and each copy is a key."""
        frames = tokens_of_frames(grid, q.shape[2] - math.prod(grid))
        found = {i: [] for i in range(q.shape[2])}
        for t, own in enumerate(frames):
            near = range(max(0, t - window), min(len(frames), t + window + 1))
            keys = [i for frame in near for i in frames[frame]]
            for i in own:
                found[i].append(softmax_mean(q[:, :, i], k[:, :, keys], v[:, :, keys]))
        return mean_of_each(found, q)

    def attends(self, query, patch, grid):
        return abs(patch[0] - query[0]) <= 1

    @pytest.mark.parametrize("grid", [(5, 3, 7), (3, 1, 5), (1, 3, 3)], ids=str)
    def test_shift_window_vs_naive_windowed_attention(self, grid):
        """Keys computed once and the stack of frames shifted, against keys and values that are
        projected anew, from the tokens, for each frame that attends and each frame in its window:
        the same values and the same gradients, for tokens and for weights, with windows 0 to T."""
        T, H, W = grid
        weight, bias = randn(3 * D, D) / D**0.5, randn(3 * D)
        heads = lambda x: x.unflatten(-1, (h, d)).transpose(1, 2)

        def shifted(x, weight, bias, window):
            q, k, v = (heads(y) for y in (x @ weight.T + bias).chunk(3, dim=-1))
            return va.window_attention(q, k, v, grid, window)

        def naive(x, weight, bias, window):
            w_q, w_k, w_v = weight.chunk(3)
            b_q, b_k, b_v = bias.chunk(3)
            frames, out = x.unflatten(1, (T, H * W)).unbind(1), []
            for t in range(T):
                near = [s for s in range(T) if abs(s - t) <= window]
                k = torch.cat([frames[s] @ w_k.T + b_k for s in near], dim=1)
                v = torch.cat([frames[s] @ w_v.T + b_v for s in near], dim=1)
                out.append(exact(heads(frames[t] @ w_q.T + b_q), heads(k), heads(v)))
            return torch.cat(out, dim=2)

        for window in range(T + 1):
            forms = [partial(form, window=window) for form in (shifted, naive)]
            same_gradients(*forms, [randn(B, math.prod(grid), D), weight, bias])

    def test_keys_are_computed_once_whatever_the_window(self):
        """Projections cost 4*N*D**2 with every window; the naive way pays for each pair of frames.
        """
        for window in (0, 1, 3):
            module = va.WindowAttention(D, h, window=window).to("meta")
            (x,), T, S = on_meta((1, 140, D)), 5, 28
            pairs = sum(abs(t - s) <= window for t, s in product(range(T), repeat=2))
            attention = 2 * pairs * S**2 * D
            assert counted(lambda: module(x, GRID)) == 4 * T * S * D**2 + attention
            formula_of = evaluated(formula(va.window_attention), T=T, S=S, c=0, D=D, w=window)
            assert formula_of == attention

    @pytest.mark.parametrize("kind", ["none", "frame"])
    def test_no_window_is_space_and_the_whole_clip_is_joint(self, kind):
        q, k, v = qkv(C=class_tokens_of(kind, GRID))
        same(va.window_attention(q, k, v, GRID, 0), va.space_attention(q, k, v, GRID))
        for window in (4, 5, 99):
            same(va.window_attention(q, k, v, GRID, window), va.joint_attention(q, k, v, GRID))

    def test_window_grows_with_depth(self):
        """n layers reach n * w frames to either side."""
        grid, window = (8, 1, 2), 2
        x = y = randn(1, 16, D).requires_grad_()
        for reach in (2, 4, 6):
            y = va.WindowAttention(D, h, window=window).double()(y, grid)
            (gradient,) = torch.autograd.grad(y[0, 0].sum(), x, retain_graph=True)
            frames = gradient[0].unflatten(0, (8, 2)).abs().sum((1, 2)).nonzero().flatten()
            assert frames.tolist() == list(range(reach + 1))

    def test_a_negative_window_is_named(self):
        with pytest.raises(ValueError, match="window=-1"):
            va.window_attention(*qkv(), GRID, -1)
        with pytest.raises(ValueError, match="window=-1"):
            va.WindowAttention(D, h, window=-1)(torch.randn(B, 140, D), GRID)

class TestShiftedWindows(Questions):
    """Video Swin: windows of 2 x 2 x 3, cut displaced by 1 x 1 x 1; at the border they are smaller.
    """

    step = partial(va.ShiftedWindowAttention, size=(2, 2, 3), displaced=True)
    mechanism = va.shifted_window_attention
    class_tokens = ("none", "clip")
    cost_grids = [(8, 7, 14), (16, 7, 7), (8, 14, 21)]

    def call(self, q, k, v, grid):
        return va.shifted_window_attention(q, k, v, grid, (2, 2, 3), (1, 1, 1))

    def box(self, grid, size, displaced):
        """The window of (t, y, x): an axis that is no longer than the window is not cut."""
        along = lambda i, n, p, by: 0 if n <= p else (i - by % p) // p
        return lambda *patch: tuple(map(along, patch, grid, size, displaced))

    def oracle(self, q, k, v, grid, size=(2, 2, 3), displaced=(1, 1, 1)):
        return oracle_in_groups(q, k, v, grid, self.box(grid, size, displaced))

    def attends(self, query, patch, grid):
        box = self.box(grid, (2, 2, 3), (1, 1, 1))
        return box(*query) == box(*patch)

    def test_costs_what_the_docstring_says(self):
        """Windows that divide the grid, of the published size."""
        for grid in self.cost_grids:
            text = formula(va.shifted_window_attention)
            self.compare_cost(text, va.shifted_window_attention, grid, 0)

    displacements = [(0, 0, 0), (1, 1, 1), (1, 0, 2), (4, 3, 7), (-1, 5, 1)]

    @pytest.mark.parametrize("grid", [GRID, (3, 5, 4), (1, 3, 9), (2, 2, 3), (7, 1, 3)], ids=str)
    @pytest.mark.parametrize("size", [(2, 2, 3), (3, 4, 2), (1, 1, 1), (9, 9, 9)], ids=str)
    def test_unequal_boxes_vs_a_rolled_clip_and_a_mask(self, grid, size):
        """The usual way to compute it, in values and gradients, with any displacement."""
        for displaced in self.displacements:
            forms = (va.shifted_window_attention, self.rolled)
            forms = [partial(form, grid=grid, size=size, displaced=displaced) for form in forms]
            same_gradients(*forms, qkv(grid))

    def rolled(self, q, k, v, grid, size, displaced):
        """Video Swin's code: pad the clip, roll it back so that all cuts are multiples of the
        window, attend in equal windows, roll forth. A mask parts what was not in one box before the
        roll, and padding."""
        size = [min(n, p) for n, p in zip(grid, size)]
        roll = [by % p if p < n else 0 for n, p, by in zip(grid, size, displaced)]
        pad = [x for n, p in zip(grid[::-1], size[::-1]) for x in (0, -n % p)]
        windows = "B h (T t) (H y) (W x) d -> B T H W h (t y x) d"
        sizes = dict(zip("tyx", size))

        def cut(x, value=0.0):
            x = nn.functional.pad(x.unflatten(2, grid), (0, 0, *pad), value=value)
            return rearrange(x.roll([-by for by in roll], (2, 3, 4)), windows, **sizes)

        box = {name: i for i, name in enumerate(product(range(-1, 20), repeat=3))}
        number = [box[self.box(grid, size, displaced)(*patch)] for patch in patches_of(grid)]
        number = cut(torch.tensor(number).double().view(1, 1, -1, 1), -1.0)
        apart = torch.where(number == number.mT, 0.0, -torch.inf)
        q, k, v = (cut(x) for x in (q, k, v))
        out = ((q @ k.mT / d**0.5) + apart).softmax(dim=-1) @ v
        back = " -> ".join(windows.split(" -> ")[::-1])
        counts = dict(zip("THW", [math.ceil(n / p) for n, p in zip(grid, size)]))
        out = rearrange(out, back, **sizes, **counts).roll(roll, (2, 3, 4))
        return out[:, :, : grid[0], : grid[1], : grid[2]].flatten(2, 4)

    @pytest.mark.parametrize("displaced", displacements, ids=str)
    def test_unequal_boxes(self, displaced):
        for grid, size in ((GRID, (2, 3, 3)), ((6, 4, 5), (4, 4, 2)), ((3, 5, 2), (2, 2, 2))):
            q, k, v = qkv(grid, C=1)
            expected = self.oracle(q, k, v, grid, size, displaced)
            same(va.shifted_window_attention(q, k, v, grid, size, displaced), expected)

    def test_one_window_is_joint_and_windows_of_a_frame_are_space(self):
        q, k, v = qkv(C=1)
        for displaced in ((0, 0, 0), (2, 2, 2)):
            whole = va.shifted_window_attention(q, k, v, GRID, (5, 9, 9), displaced)
            same(whole, va.joint_attention(q, k, v, GRID))
        q, k, v = qkv()
        frame = va.shifted_window_attention(q, k, v, GRID, (1, 9, 9))
        same(frame, va.space_attention(q, k, v, GRID))

    def test_two_layers_connect_what_a_cut_parts(self):
        """The scheme alternates plain and displaced windows, so that windows exchange information.
        """
        plain, moved = (partial(step, size=(2, 2, 2)) for step in va.ATTENTION["shifted_windows"])
        grid, one, other = (4, 4, 4), (1, 1, 1), (2, 2, 2)
        assert other not in attends_to(plain, grid, one) and other in attends_to(moved, grid, one)
        assert plain(D, h).displaced == [0, 0, 0] and moved(D, h).displaced == [1, 1, 1]
        assert moved.func is plain.func is va.ShiftedWindowAttention

    def test_published_size(self):
        plain, moved = (step(D, h) for step in va.ATTENTION["shifted_windows"])
        assert plain.size == moved.size == (8, 7, 7) and moved.displaced == [4, 3, 3]

    @pytest.mark.parametrize("size", [(2,), (2, 2, 0), (2, 2, 1.5), None], ids=str)
    def test_bad_sizes_are_named(self, size):
        with pytest.raises(ValueError):
            va.ShiftedWindowAttention(D, h, size)(torch.randn(B, 140, D), GRID)

    @pytest.mark.parametrize("size", [(2, 2, 0), (-1, 2, 2)], ids=str)
    def test_windows_of_nothing_are_named(self, size):
        with pytest.raises(ValueError, match="size=.* 1 or more"):
            va.shifted_window_attention(*qkv(), GRID, size)

# ==== POOLED: means of blocks as keys, or as queries too ==========================================

class TestPooled(Questions):
    """Every token attends to the class tokens and to the mean of every block of patches."""

    step, mechanism = va.PooledAttention, va.pooled_attention

    def blocks(self, grid, stride):
        """The blocks of a stride, as lists of tokens."""
        blocks = {}
        for n, patch in enumerate(patches_of(grid)):
            blocks.setdefault(tuple(a // s for a, s in zip(patch, stride)), []).append(n)
        return list(blocks.values())

    def pooled(self, x, grid, stride):
        C = x.shape[2] - math.prod(grid)
        means = [
            sum(x[:, :, C + n] for n in block) / len(block) for block in self.blocks(grid, stride)]
        return torch.cat([x[:, :, :C], torch.stack(means, dim=2)], dim=2)

    def oracle(self, q, k, v, grid, stride=(1, 2, 2)):
        return exact(q, self.pooled(k, grid, stride), self.pooled(v, grid, stride))

    def oracle_of_pooled_queries(self, q, k, v, grid, stride):
        C = q.shape[2] - math.prod(grid)
        few = exact(*(self.pooled(x, grid, stride) for x in (q, k, v)))
        out = [few[:, :, c] for c in range(C)] + [None] * math.prod(grid)
        for i, block in enumerate(self.blocks(grid, stride)):
            for n in block:
                out[C + n] = few[:, :, C + i]
        return torch.stack(out, dim=2)

    @pytest.mark.parametrize("stride", [(2, 3, 4), (1, 1, 3), (1, 1, 1), (9, 9, 9)], ids=str)
    def test_any_stride(self, stride):
        q, k, v = qkv(C=1)
        actual = va.pooled_attention(q, k, v, GRID, stride)
        same(actual, self.oracle(q, k, v, GRID, stride))

    @pytest.mark.parametrize("stride", [(1, 2, 2), (2, 3, 4), (1, 1, 1)], ids=str)
    @pytest.mark.parametrize("C", [0, 1, 3])
    def test_pooled_queries(self, stride, C):
        """Every patch gets what the mean of its block found."""
        grid = (3, 4, 5)
        ours = partial(va.pooled_attention, grid=grid, stride=stride, pool_queries=True)
        theirs = partial(self.oracle_of_pooled_queries, grid=grid, stride=stride)
        same_gradients(ours, theirs, qkv(grid, C))

    def test_cost_of_pooled_queries(self):
        pooled = partial(va.pooled_attention, pool_queries=True)
        for grid, C in product(self.cost_grids, (0, 1, 2)):
            if C in (0, 1, grid[0]):
                self.compare_cost(formula(va.pooled_attention, "Cost, pool"), pooled, grid, C)

    def test_the_residual_keeps_patches_of_a_block_apart(self):
        """The step itself gives them the same, the block around it does not."""
        step = va.PooledAttention(D, h, pool_queries=True).double()
        x = randn(1, math.prod(GRID), D)
        out = step(x, GRID)
        same(out[:, 0], out[:, 8])  # (0, 0, 0) and (0, 1, 1)
        block = va.Block(D, [step], va.MLP(D, 9)).double()(x, GRID)
        assert (block[:, 0] - block[:, 8]).abs().max() > 0.1

    def test_stride_one_is_joint(self):
        q, k, v = qkv(C=1)
        for pool_queries in (False, True):
            one = va.pooled_attention(q, k, v, GRID, (1, 1, 1), pool_queries)
            same(one, va.joint_attention(q, k, v, GRID))

    def test_options_reach_the_mechanism(self):
        module, x = (
            va.PooledAttention(D, h, stride=(3, 2, 1), pool_queries=True).double(),
            randn(B, 141, D))
        out = va.pooled_attention(*module.project(x), GRID, (3, 2, 1), True)
        same(module(x, GRID), module.merge(out))

    @pytest.mark.parametrize("stride", [(1, 2, 0), (2, 2), (1, 2, -2)], ids=str)
    def test_bad_strides_are_named(self, stride):
        with pytest.raises(ValueError, match="stride="):
            va.pooled_attention(*qkv(), GRID, stride=stride)
        with pytest.raises(ValueError, match="stride="):
            va.PooledAttention(D, h, stride=stride)(torch.randn(B, 140, D), GRID)

# ==== SPACE-TIME MIXING ===========================================================================

def by_frame(x, grid):
    """Tokens (B, h, C + T*S, d) -> (B, h, T, L, d), each frame's class token (or a copy) before its
    patches."""
    return torch.stack(
        [x[:, :, own] for own in tokens_of_frames(grid, x.shape[2] - math.prod(grid))], dim=2)

def from_frames(found, grid, like):
    """What the frames' tokens found (B, h, T, L, d) -> tokens; a class token is the mean of its
    copies."""
    tokens = {i: [] for i in range(like.shape[2])}
    for t, own in enumerate(tokens_of_frames(grid, like.shape[2] - math.prod(grid))):
        for n, i in enumerate(own):
            tokens[i].append(found[:, :, t, n])
    return mean_of_each(tokens, like)

def mixed_by_hand(x, window, moved):
    """Keys or values (B, h, T, L, d), every channel fetched by itself from the frame that it is
    from."""
    T, width = x.shape[2], x.shape[4]
    offsets = [sign * i for i in range(1, window + 1) for sign in (1, -1)]
    share = round(moved * width * 1000) // (1000 * max(1, len(offsets)))
    mixed = torch.zeros_like(x)
    for channel, t in product(range(width), range(T)):
        part = channel // share if share else len(offsets)
        source = t + (offsets[part] if part < len(offsets) else 0)
        if 0 <= source < T:
            mixed[:, :, t, :, channel] = x[:, :, source, :, channel]
    return mixed

class TestMixing(Questions):
    """Space attention over keys and values put together channel by channel."""

    step, mechanism = va.MixingAttention, va.mixing_attention

    def oracle(self, q, k, v, grid, window=1, moved=0.5, summary=False):
        C = q.shape[2] - math.prod(grid)
        frames, (k, v) = by_frame(q, grid), (by_frame(x, grid) for x in (k, v))
        mixed = [mixed_by_hand(x, window, moved) for x in (k, v)]
        if summary:  # the means are of the frames as they were
            means = [x[:, :, :, min(C, 1) :].mean(3) for x in (k, v)]
            mixed = [torch.cat([x, m.unsqueeze(2).expand(-1, -1, grid[0], -1, -1)], dim=3)
                     for x, m in zip(mixed, means)]  # fmt: skip
        found = [exact(frames[:, :, t], *(x[:, :, t] for x in mixed)) for t in range(grid[0])]
        return from_frames(torch.stack(found, dim=2), grid, q)

    def attends(self, query, patch, grid):
        return abs(patch[0] - query[0]) <= 1

    @pytest.mark.parametrize(
        "window, moved", [(0, 0.5), (1, 0.4), (1, 1.0), (2, 0.8), (2, 1.0), (3, 1.0)])
    def test_shifted_channels_vs_channels_fetched_one_by_one(self, window, moved):
        """Shifting whole frames of channels is what building every key by hand gives, for any
        window and share. With window 2 all 6 channels make 4 shares of 1; 3 shares of 2 would be
        another answer."""
        q, k, v = qkv(C=GRID[0])
        actual = va.mixing_attention(q, k, v, GRID, window=window, moved=moved)
        same(actual, self.oracle(q, k, v, GRID, window, moved))

    def test_distance_from_the_window_that_it_stands_in_for(self):
        """The docstring's per cent on random tokens. On a clip that stands still the frames around
        are its own, and away from the ends of the clip the two agree to rounding; at the ends they
        do not."""
        q, k, v = qkv()
        measured = distance(va.mixing_attention(q, k, v, GRID), va.window_attention(q, k, v, GRID))
        stated = int(re.search(r"(\d+)% of the norm", va.mixing_attention.__doc__).group(1)) / 100
        assert abs(measured - stated) < 0.1, f"measured {measured:.2f}, the docstring says {stated}"
        T, H, W = GRID
        still = [x[:, :, : H * W].repeat(1, 1, T, 1) for x in (q, k, v)]
        mixed, window = (f(*still, GRID) for f in (va.mixing_attention, va.window_attention))
        inner, ends = slice(H * W, (T - 1) * H * W), slice(0, H * W)
        same(mixed[:, :, inner], window[:, :, inner], 1e-12)
        assert distance(mixed[:, :, ends], window[:, :, ends]) > 0.1

    @pytest.mark.parametrize("nothing", [dict(window=0), dict(moved=0.0)], ids=str)
    def test_no_window_or_no_channels_is_space_attention(self, nothing):
        q, k, v = qkv(C=1)
        same(va.mixing_attention(q, k, v, GRID, **nothing), va.space_attention(q, k, v, GRID))

    def test_window_grows_with_depth(self):
        x = y = randn(1, math.prod(GRID), D).requires_grad_()
        for reach in (1, 2, 3):
            y = va.MixingAttention(D, h).double()(y, GRID)
            (gradient,) = torch.autograd.grad(y[0, 0].sum(), x, retain_graph=True)
            frames = (gradient[0].unflatten(0, (GRID[0], -1)).abs().sum((1, 2)) > 1e-18).nonzero()
            assert frames.flatten().tolist() == list(range(reach + 1))

    @pytest.mark.parametrize("summary", [False, True])
    def test_options_reach_the_mechanism(self, summary):
        module = va.MixingAttention(D, h, window=2, moved=0.8, summary=summary).double()
        x = randn(B, 145, D)
        expected = self.oracle(*module.project(x), GRID, 2, 0.8, summary)
        same(module(x, GRID), module.merge(expected))

    @pytest.mark.parametrize("kind", ["none", "clip", "frame"])
    def test_summaries_join_unmixed(self, kind):
        """A summary belongs to no frame, so its channels stay; only keys and values of patches
        move."""
        q, k, v = qkv(C=class_tokens_of(kind, GRID))
        actual = va.mixing_attention(q, k, v, GRID, summary=True)
        same(actual, self.oracle(q, k, v, GRID, summary=True))

    def test_a_share_that_is_not_an_exact_float(self):
        """Half of .58 * 100 channels is 29 from either side, although .58 * 50 is 28.999999 in
        floats."""
        x = torch.arange(1.0, 4.0).view(3, 1, 1, 1).expand(3, 1, 1, 100)
        mixed = va.mix_frames(x, 3, window=1, moved=0.58)[1].flatten()
        assert [int((mixed == frame).sum()) for frame in (3, 1, 2)] == [29, 29, 42]

    @pytest.mark.parametrize(
        "name, value", [("window", -1), ("moved", 1.5), ("moved", -0.1), ("moved", 0.1)])
    def test_bad_options_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            va.mixing_attention(*qkv(), GRID, **{name: value})

    def test_shift(self):
        """Position i takes what was at i + offset, and zeros beyond the ends."""
        x = randn(2, 5, 3)
        for axis, offset in product((0, 1, 2, -1), (-9, -2, -1, 0, 1, 2, 9)):
            n, out = x.shape[axis], va.shift(x, offset, axis)
            for i in range(n):
                source = i + offset
                expected = (
                    x.select(axis, source)
                    if 0 <= source < n
                    else torch.zeros_like(x.select(axis, 0)))
                assert torch.equal(out.select(axis, i), expected)

    @pytest.mark.parametrize("window, moved", [
        (10**9, 0.5), (1.5, 0.5), (2.0, 0.5), (-1, 0.5), (1, 1.5), (1, -0.5), (2, 0.01)])
    def test_what_moves_no_channels_is_named(self, window, moved):
        """Before anything is made for every frame of a window."""
        with pytest.raises(ValueError, match=f"window={window}, moved={moved}"):
            va.mix_frames(randn(6, 4, 5, 8), 3, window, moved)

class TestSummary(Questions):
    """Space attention with T more keys and values, the mean of every frame."""

    step, mechanism = va.SummaryAttention, va.summary_attention

    def oracle(self, q, k, v, grid):
        return TestMixing().oracle(q, k, v, grid, window=0, summary=True)

    def test_is_mixing_that_moves_nothing(self):
        q, k, v = qkv(C=1)
        both = va.mixing_attention(q, k, v, GRID, moved=0.0, summary=True)
        same(both, va.summary_attention(q, k, v, GRID))

    def test_another_frame_counts_by_its_mean_alone(self):
        """Shuffled patches of frame 2 change nothing for frame 0."""
        q, k, v = qkv()
        before = va.summary_attention(q, k, v, GRID)[:, :, :28]
        order = torch.cat([torch.arange(56), 56 + torch.randperm(28), torch.arange(84, 140)])
        same(va.summary_attention(q, k[:, :, order], v[:, :, order], GRID)[:, :, :28], before)

# ==== TRAJECTORY ==================================================================================

def trajectory_by_hand(q, k, v, grid, proj_q, proj_kv):
    """Motionformer's equations 4 to 6 as they are written, patch by patch and frame by frame."""
    T, S = grid[0], grid[1] * grid[2]
    B, h, N, d = q.shape
    C = N - T * S
    out = [softmax_mean(q[:, :, c], k, v) for c in range(C)]
    for n in range(T * S):
        frames = [slice(C + t * S, C + (t + 1) * S) for t in range(T)]
        y = [
            softmax_mean(q[:, :, C + n], k[:, :, f], v[:, :, f]).flatten(1) for f in frames
        ]  # heads joined
        query = proj_q(y[n // S]).unflatten(1, (h, d))
        keys, values = torch.stack([proj_kv(one) for one in y], dim=1).chunk(2, dim=-1)
        keys, values = (x.unflatten(2, (h, d)).transpose(1, 2) for x in (keys, values))
        out.append(softmax_mean(query, keys, values))
    return torch.stack(out, dim=2)

class TestTrajectory(Questions):
    """Softmax inside every frame, then along the trajectory."""

    step, mechanism = va.TrajectoryAttention, va.trajectory_attention
    class_tokens = ("none", "clip")

    def layers(self):
        """W_q, and W_k above W_v: the same in every call."""
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            return linear(D, D, D, 2 * D)

    def call(self, q, k, v, grid, **options):
        layers = [layer.to(q) for layer in self.layers()]
        return va.trajectory_attention(q, k, v, grid, *layers, **options)

    def call_of(self, module):
        layers = dict(proj_q=module.proj_q, proj_kv=module.proj_kv)
        return lambda q, k, v, grid: va.trajectory_attention(q, k, v, grid, **layers)

    def oracle(self, q, k, v, grid):
        return trajectory_by_hand(q, k, v, grid, *self.layers())

    def fast(self, q, k, v, grid):
        return self.call(q, k, v, grid, second_stage=va.attend_along_trajectories_fast)

    def test_cost_of_the_fast_form(self):
        text = formula(va.trajectory_attention, "Cost, fast")
        for grid, C in product(self.cost_grids, (0, 1)):
            self.compare_cost(text, self.fast, grid, C)

    @pytest.mark.parametrize("grid", [GRID, (5, 1, 3), (1, 4, 7), (7, 1, 1)], ids=str)
    @pytest.mark.parametrize("bias", [True, False])
    def test_fast_form_equals_plain_form(self, grid, bias):
        """In values and gradients, of the tokens and of both layers; of W_k's bias there is none.
        """
        T, H, W = grid
        shapes = [(D, D), (D,), (2 * D, D), (2 * D,)]
        y, parameters = randn(B, h, T * H * W, T, d), [randn(*shape) / D**0.5 for shape in shapes]

        def second_stage(form, y, w_q, b_q, w_kv, b_kv):
            layers = linear(D, D, D, 2 * D)
            for layer, weight, vector in zip(layers, (w_q, w_kv), (b_q, b_kv)):
                del layer.weight, layer.bias
                layer.weight, layer.bias = weight, vector if bias else None
            return form(y, *layers)

        forms = (va.attend_along_trajectories_fast, va.attend_along_trajectories)
        same_gradients(*(partial(second_stage, form) for form in forms), [y, *parameters])

    def test_bias_of_the_keys_has_no_gradient(self):
        """It adds the same to all T scores of a query, and a softmax does not see it."""
        module = va.TrajectoryAttention(D, h).double()
        module(randn(B, 140, D), GRID).square().sum().backward()
        same(module.proj_kv.bias.grad[:D], torch.zeros(D).double())
        assert module.proj_kv.bias.grad[D:].abs().max() > 1e-3

    def test_weights_along_the_trajectory(self):
        y = randn(B, h, 140, 5, d)
        out, weights = va.attend_along_trajectories(y, *self.layers(), return_weights=True)
        assert weights.shape == (B, h, 140, 1, 5)
        same(weights.sum(-1), torch.ones(B, h, 140, 1).double())
        same(out, va.attend_along_trajectories(y, *self.layers()))

    def test_module_takes_the_fast_form_of_plain_layers_alone(self):
        """Whatever else stands where proj_kv was is called, for every trajectory token: the plain
        form."""
        T, S, grid = 2, 24, (2, 4, 6)
        titles = ("Cost", "Cost, fast")
        text = [formula(va.trajectory_attention, title) for title in titles]
        plain, fast = (4 * T * S * D**2 + evaluated(one, T=T, S=S, C=0, D=D, h=h) for one in text)
        (x,) = on_meta((1, T * S, D))

        class Wrapped(nn.Linear):
            pass

        module = va.TrajectoryAttention(D, h).to("meta")
        assert counted(lambda: module(x, grid)) == fast
        module.proj_kv = Wrapped(D, 2 * D, device="meta")
        assert counted(lambda: module(x, grid)) == plain
        module = va.TrajectoryAttention(D, h).to("meta")
        for register in (nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook):
            hook = register(module.proj_kv, lambda *_: None)
            assert counted(lambda: module(x, grid)) == plain
            hook.remove()
            assert counted(lambda: module(x, grid)) == fast

    def test_slip_of_the_published_weights(self):
        """The value of the second stage was y~ itself: W_v the identity, its bias zero."""
        q, k, v = qkv(C=1)
        proj_q, proj_kv = self.layers()
        proj_kv.weight.data[D:], proj_kv.bias.data[D:] = torch.eye(D), 0.0
        y = va.attend_per_frame(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], 5)
        out, weights = va.attend_along_trajectories(y, proj_q, proj_kv, return_weights=True)
        same(out, (weights.mT * y).sum(3))

    def test_one_frame_is_space_attention(self):
        """With one frame the trajectory has one point: space attention, and then W_v."""
        grid = (1, 4, 7)
        q, k, v = qkv(grid)
        space = va.space_attention(q, k, v, grid).transpose(1, 2).flatten(2)
        expected = self.layers()[1](space)[..., D:].unflatten(2, (h, d)).transpose(1, 2)
        for call in (self.call, self.fast):
            same(call(q, k, v, grid), expected)

    def test_no_patch_attends_to_the_class_token(self):
        q, k, v = qkv(C=1)
        k2, v2 = k.clone(), v.clone()
        k2[:, :, 0], v2[:, :, 0] = 70.0, 70.0
        before, after = self.call(q, k, v, GRID), self.call(q, k2, v2, GRID)
        same(before[:, :, 1:], after[:, :, 1:])
        assert (before[:, :, 0] - after[:, :, 0]).abs().max() > 1e-3

    def test_first_stage_looks_inside_each_frame(self):
        q, k, v = qkv()
        for attention in (None, lambda q, k, v: v[:, :, :1].expand_as(q)):
            y = va.attend_per_frame(q[:, :, :9], k, v, 5, attention)
            for t, frame in enumerate(torch.arange(140).view(5, 28)):
                same(
                    y[:, :, :, t], (attention or exact)(q[:, :, :9], k[:, :, frame], v[:, :, frame])
                )

    def test_cost_of_the_first_stage(self):
        for T, S, I in ((2, 24, 48), (6, 5, 7)):
            q, k, v = on_meta(*[(1, h, n, d) for n in (I, T * S, T * S)])
            assert counted(lambda: va.attend_per_frame(q, k, v, T)) == 2 * I * T * S * D

    def test_stages_handed_over(self):
        """Both are called, the first with the patches alone, the second with the layers."""
        q, k, v = qkv(C=1)
        first = lambda q, k, v, T: (q + 2 * k + 3 * v).unsqueeze(3).expand(B, h, 140, T, d)
        second = lambda y, proj_q, proj_kv: y[:, :, :, 2] + proj_q + proj_kv
        out = va.trajectory_attention(q, k, v, GRID, 10.0, 20.0, first, second)
        same(out[:, :, 1:], (q + 2 * k + 3 * v)[:, :, 1:] + 30.0)
        same(out[:, :, :1], exact(q[:, :, :1], k, v))

# ==== FEWER KEYS: Orthoformer, Nystrom, Performer =================================================

CRITERIA = ["cosine", "inner product"]

def greedy_search(x, count, start=0, criterion="cosine"):
    """The most orthogonal subset of the vectors x (n, d), by comparing everything at every step;
    scores that agree to five digits, of numbers up to 1, are a tie, and the first wins."""
    x = x / (x.abs().max() if criterion == "inner product" else x.norm(dim=-1, keepdim=True))
    likeness = (x @ x.T).abs().tolist()
    worst = max if criterion == "cosine" else sum
    picked = [start]
    while len(picked) < count:
        left = [i for i in range(len(x)) if i not in picked]
        picked.append(min(left, key=lambda i: round(worst(likeness[i][j] for j in picked), 5)))
    return picked

class TestSelection:
    """Algorithm 1: the next vector is the one that is most orthogonal to all before it."""

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_equals_greedy_search(self, criterion):
        x = randn(2, 3, 29, 8) * torch.rand(2, 3, 29, 1).double().exp()
        picked = va.most_orthogonal_subset(x, 13, start=4, criterion=criterion)
        for b, head in product(range(2), range(3)):
            expected = greedy_search(x[b, head], 13, 4, criterion)
            assert picked[b, head].tolist() == expected

    def test_criteria_differ(self):
        """The code's largest cosine and the slides' sum of inner products are two rules."""
        x = randn(96, 8) * (2 * torch.rand(96, 1).double()).exp()
        a, b = (set(va.most_orthogonal_subset(x, 32, criterion=c).tolist()) for c in CRITERIA)
        assert len(a & b) < 28

    def test_finds_the_axes(self):
        """Among many copies of a few orthogonal directions it takes one of each."""
        axes = torch.eye(8).double()[torch.arange(40) % 8] * (1 + torch.rand(40, 1).double())
        assert sorted((va.most_orthogonal_subset(axes, 8) % 8).tolist()) == list(range(8))

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_ties_do_not_hang_on_the_last_digit(self, criterion):
        """Fewer distinct tokens than prototypes: the same picks for the same tokens times
        1.0000001."""
        x = torch.randn(2, 9, 8).repeat(1, 5, 1)
        first = va.most_orthogonal_subset(x, 20, criterion=criterion)
        for factor in (1.0000001, 0.9999999):
            assert torch.equal(
                va.most_orthogonal_subset(x * factor, 20, criterion=criterion), first)

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_never_the_same_twice(self, criterion):
        """Five copies of one vector: after the first, all are equally bad, but each is taken once.
        """
        picked = va.most_orthogonal_subset(torch.ones(5, 8).double(), 5, criterion=criterion)
        assert picked.tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("scale", [0.0, 1e-30, 1e18, 1e-300, 1e300])
    def test_extreme_norms(self, scale):
        """Every pick is there, and none comes twice."""
        for dtype in (torch.float32, torch.float64):
            x = (randn(3, 29, 8) * scale).to(dtype)
            picked = va.most_orthogonal_subset(
                x.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max), 13)
            assert all(len(set(row)) == 13 and max(row) < 29 for row in picked.tolist())

    def test_half_precision_is_compared_in_float32(self):
        x = torch.randn(2, 3, 97, 16).bfloat16()
        assert torch.equal(
            va.most_orthogonal_subset(x, 40), va.most_orthogonal_subset(x.float(), 40))

    def test_is_made_without_gradients(self):
        x = randn(2, 9, 4).requires_grad_()
        fail = lambda tensor: pytest.fail("recorded")
        with torch.autograd.graph.saved_tensors_hooks(fail, lambda tensor: tensor):
            assert not va.most_orthogonal_subset(x, 3).requires_grad

    def test_cost(self):
        for n, width, count in ((8, 7, 5), (13, 5, 2), (48, 3, 32)):
            (x,) = on_meta((n, width))
            stated = evaluated(formula(va.most_orthogonal_subset), n=n, d=width)
            assert counted(lambda: va.most_orthogonal_subset(x, count)) == stated

    @pytest.mark.parametrize("factor", [2.0**-100, 2.0**-12, 2.0**100])
    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_units_do_not_matter(self, criterion, factor):
        """A factor for all vectors changes no order, also where squares are no float32."""
        x = torch.randn(B, h, 29, d)
        picks = va.most_orthogonal_subset(x, 9, criterion=criterion)
        assert torch.equal(va.most_orthogonal_subset(x * factor, 9, criterion=criterion), picks)

    @pytest.mark.parametrize("options, message", [
        (dict(count=0), "count=0"), (dict(count=30), "count=30.*29"),
        (dict(count=3, start=29), "start=29"), (dict(count=3, start=-1), "start=-1"),
        (dict(count=3, criterion="mean"), "criterion=mean")], ids=str)  # fmt: skip
    def test_bad_options_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            va.most_orthogonal_subset(randn(29, 8), **options)

class TestPrototypes:
    """How prototypes are chosen is a function (q, k, count) -> (B, h, count, d) that is handed
    over."""

    choices = [va.orthogonal_prototypes, va.random_prototypes, va.segment_prototypes]

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_orthogonal_ones_are_the_greedy_choice_among_candidates(self, criterion):
        """Three evenly spaced queries and keys for each prototype, all of them when that is more.
        """
        q, k, v = qkv((3, 2, 5))
        tokens = torch.cat([q, k], dim=2)
        for count, oversample, n in ((7, 3, 21), (7, 2, 14), (30, 3, 60), (7, 99, 60)):
            spaced = [round(i * 59 / (n - 1)) for i in range(n)]
            options = dict(oversample=oversample, criterion=criterion)
            chosen = va.orthogonal_prototypes(q, k, count, **options)
            for b, head in product(range(B), range(h)):
                x = tokens[b, head, spaced]
                same(chosen[b, head], x[greedy_search(x, count, 0, criterion)])

    def test_random_ones_are_tokens_and_random(self):
        """Others in every clip and head and with other tokens, none twice, and the same in every
        call."""
        q, k, v = qkv()
        pool = torch.cat([q, k], dim=2)
        number = lambda chosen: torch.cdist(chosen, pool).min(dim=-1)
        found = number(va.random_prototypes(q, k, 9))
        assert found.values.max() < 1e-6
        picks = [tuple(row) for row in found.indices.flatten(0, 1).tolist()]
        assert len(set(picks)) == B * h and all(len(set(row)) == 9 for row in picks)
        assert torch.equal(va.random_prototypes(q, k, 9), va.random_prototypes(q, k, 9))
        pool = torch.cat([q + 1, k + 1], dim=2)
        assert not torch.equal(number(va.random_prototypes(q + 1, k + 1, 9)).indices, found.indices)

    def test_random_ones_by_a_generator(self):
        q, k, v = qkv()
        draw = lambda seed: va.random_prototypes(q, k, 9, torch.Generator().manual_seed(seed))
        assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))

    def test_random_ones_are_spread_over_queries_and_keys(self):
        """Half of all 784 tokens, about a quarter of which are queries of the first half."""
        q = torch.arange(392.0).view(1, 1, -1, 1)
        numbers = va.random_prototypes(q, q + 392, 392).flatten().long()
        assert (numbers.div(98, rounding_mode="floor").bincount(minlength=8) > 30).all()

    def test_segment_means(self):
        q, k, v = qkv()
        means = torch.cat([q, k], dim=2).unflatten(2, (8, 35)).mean(3)
        same(va.segment_prototypes(q, k, 8), means)

    @pytest.mark.parametrize("choose", choices, ids=name_of)
    def test_a_choice_reaches_both_modules(self, choose):
        x = randn(B, math.prod(GRID), D)
        for step in (va.OrthoformerAttention, va.OrthoformerTrajectoryAttention):
            module = step(D, h, prototypes=5, choose=choose).double()
            q, k, v = module.project(x)
            prototypes = choose(q, k, 5)
            same(module.prototypes(q, k), prototypes, 0)
            if step is va.OrthoformerAttention:
                out = va.orthoformer_attention(q, k, v, GRID, prototypes)
            else:
                y = va.orthoformer_per_frame(q, k, v, 5, prototypes)
                out = va.attend_along_trajectories(y, module.proj_q, module.proj_kv)
            same(module(x, GRID), module.merge(out))

    def test_a_class_of_choices_is_made_for_every_layer(self):
        """Trainable prototypes, the slides' first suboptimal choice, have weights in each layer."""

        class Trainable(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Parameter(torch.randn(9, 6))

            def forward(self, q, k, count):
                return self.table[:count].expand(*q.shape[:2], -1, -1)

        step = partial(va.OrthoformerAttention, prototypes=5, choose=Trainable)
        model = tiny([step])
        tables = [block.steps[0].choose.table for block in model.blocks]
        assert tables[0] is not tables[1]
        model(torch.randn(VIDEO)).sum().backward()
        assert all(table.grad[:5].abs().max() > 0 for table in tables)

    def test_published_numbers(self):
        """Motionformer's models have 128 prototypes, in its Nystrom branch too."""
        default = lambda function, name: inspect.signature(function).parameters[name].default
        assert default(va.OrthoformerAttention, "prototypes") == 128
        for function in (va.nystrom_attention, va.nystrom_per_frame):
            assert default(function, "landmarks") == 128

    @pytest.mark.parametrize("count", [0, -1, 2.5, "many", None])
    def test_bad_numbers_are_named(self, count):
        with pytest.raises(ValueError, match=f"prototypes={count!r}"):
            va.OrthoformerAttention(D, h, prototypes=count)
        for few in (0, -1, 57):
            with pytest.raises(ValueError, match=f"count={few}"):
                va.random_prototypes(*qkv((1, 4, 7))[:2], few)

class TestOrthoformer(Questions):
    """Two steps: from the query to the prototypes, and from these to the keys."""

    step, mechanism = va.OrthoformerAttention, va.orthoformer_attention
    sizes = dict(P=11)

    def call(self, q, k, v, grid):
        return va.orthoformer_attention(q, k, v, grid, k[:, :, :11])

    def call_of(self, module):
        prototypes = lambda q, k: va.orthogonal_prototypes(q, k, min(128, q.shape[2]))
        return lambda q, k, v, grid: va.orthoformer_attention(q, k, v, grid, prototypes(q, k))

    def oracle(self, q, k, v, grid):
        return self.in_two_steps(q, k, v, k[:, :, :11])

    def in_two_steps(self, q, k, v, prototypes):
        return exact(q, prototypes, exact(prototypes, k, v))

    def test_more_prototypes_than_tokens_is_as_many_as_tokens(self):
        """Of the module "all" is N of the 2*N queries and keys: of the default choice those that
        the greedy search takes among all of them, and not simply the keys."""
        grid, x = (1, 2, 7), randn(B, 14, D)
        for count in (14, 15, 10**6):
            module = va.OrthoformerAttention(D, h, prototypes=count).double()
            q, k, v = module.project(x)
            tokens = torch.cat([q, k], dim=2)
            picks = [[greedy_search(tokens[b, i], 14) for i in range(h)] for b in range(B)]
            chosen = torch.stack(
                [torch.stack([tokens[b, i, picks[b][i]] for i in range(h)]) for b in range(B)])
            same(module.prototypes(q, k), chosen)
            same(module(x, grid), module.merge(self.in_two_steps(q, k, v, chosen)))

    def module_of_orthogonal_keys(self, norm, choose=None):
        """48 tokens of width 64 whose keys are orthogonal, of this norm; queries and values are
        random."""
        module = va.OrthoformerAttention(
            64, 1, prototypes=48, choose=choose, qkv_bias=False).double()
        module.qkv.weight.data = torch.cat(
            [randn(64, 64), norm * torch.eye(64).double(), randn(64, 64)])
        return module, torch.linalg.qr(randn(64, 64))[0][None, :48]

    def test_orthoformer_with_all_prototypes_vs_exact_attention(self):
        """The module with at least as many prototypes as tokens is NOT exact attention: softmax(Q
        P^T) softmax(P K^T) smooths a second time, whether all means every key, every query, or the
        most orthogonal of both. With every key a prototype it becomes exact when each key is
        clearly closest to itself, so that the second softmax is the identity, as with orthogonal
        keys of growing norm: the four numbers of the docstring. (Nystrom, with its inverse, is
        exact with any keys.)"""
        every_key, every_query = lambda q, k, count: k, lambda q, k, count: q
        x = randn(B, 140, D)
        for choose in (None, every_key, every_query):
            module = va.OrthoformerAttention(D, h, prototypes=10**6, choose=choose).double()
            q, k, v = module.project(x)
            assert 0.01 < distance(module(x, GRID), module.merge(va.attend(q, k, v)))

        stated = re.search(r"the relative error is ([\d.]+), ([\d.]+), (\S+) and (\S+)\.\s",
                           va.orthoformer_attention.__doc__)  # fmt: skip
        for norm, error in zip((4, 8, 12, 16), map(float, stated.groups())):
            module, x = self.module_of_orthogonal_keys(norm, every_key)
            q, k, v = module.project(x)
            measured = distance(module.mechanism(q, k, v, (1, 1, 48)), va.attend(q, k, v))
            assert error / 4 < measured < error * 4, f"norm {norm}: {measured:.2g}, stated {error}"
            same(
                module(x, (1, 1, 48)),
                module.merge(va.orthoformer_attention(q, k, v, (1, 1, 48), k)))
        assert measured < 1e-10

    def test_cost_inside_trajectory_attention(self):
        for T, S, P, I in ((4, 14, 11, 56), (2, 9, 5, 18), (7, 3, 4, 5)):
            q, k, v, prototypes = on_meta(*[(1, h, n, d) for n in (I, T * S, T * S, P)])
            macs = counted(lambda: va.orthoformer_per_frame(q, k, v, T, prototypes))
            assert macs == 2 * P * T * S * D + I * P * (1 + T) * D  # linear in S, quadratic in T

    def test_inside_trajectory_attention(self):
        """The first stage with the same prototypes for all frames, the softmax over keys inside
        each."""
        q, k, v = qkv()
        y = va.orthoformer_per_frame(q[:, :, :9], k, v, 5, k[:, :, 20:31])
        for t, frame in enumerate(torch.arange(140).view(5, 28)):
            two_steps = self.in_two_steps(
                q[:, :, :9], k[:, :, frame], v[:, :, frame], k[:, :, 20:31])
            same(y[:, :, :, t], two_steps)

class TestNystrom(Questions):
    """Two steps over segment means, with the pseudo-inverse of the small matrix between them."""

    step, mechanism = partial(va.NystromAttention, landmarks=11), va.nystrom_attention
    sizes = dict(P=11)
    tolerance = 1e-7  # thirty iterations are the pseudo-inverse, six leave a few per cent

    def call(self, q, k, v, grid, iterations=30):
        return va.nystrom_attention(q, k, v, grid, landmarks=11, iterations=iterations)

    def call_of(self, module):
        return partial(self.call, iterations=6)

    def oracle(self, q, k, v, grid):
        q_means, k_means = (self.means(x) for x in (q, k))
        small = torch.softmax(q_means @ k_means.mT / d**0.5, dim=-1)
        left = torch.softmax(q @ k_means.mT / d**0.5, dim=-1)
        right = torch.softmax(q_means @ k.mT / d**0.5, dim=-1)
        return left @ torch.linalg.pinv(small) @ right @ v

    def means(self, x):
        """Of segments of consecutive tokens, the first ones shorter by one."""
        count = min(11, x.shape[2])
        lengths = [x.shape[2] // count + (i >= count - x.shape[2] % count) for i in range(count)]
        return torch.stack([part.mean(2) for part in x.split(lengths, dim=2)], dim=2)

    def test_costs_what_the_docstring_says(self):
        for grid, kind in product(self.cost_grids, self.class_tokens):
            call = partial(self.call, iterations=6)
            self.compare_cost(
                formula(va.nystrom_attention), call, grid, class_tokens_of(kind, grid))

    @pytest.mark.parametrize("n", [11, 12, 21, 22, 23, 140])
    def test_segment_means(self, n):
        x = randn(B, h, n, d)
        same(va.segment_means(x, 11), self.means(x))

    def test_segments_through_time(self):
        """With T frames a segment runs through time first, so that it stays at a position."""
        x = randn(B, h, 6, d)
        same(va.segment_means(x, 2, T=3), x.unflatten(2, (3, 2)).mean(2))

    def test_every_token_a_landmark_is_exact(self):
        """A A^+ A = A: the other of the two approximations with all tokens, and its error with six
        steps."""
        q, k, v = qkv((1, 4, 7))
        expected = va.attend(q, k, v)
        many = va.nystrom_attention(q, k, v, (1, 4, 7), landmarks=28, iterations=40)
        same(many, expected, 1e-8)
        six = va.nystrom_attention(q, k, v, (1, 4, 7), landmarks=99)
        assert 1e-3 < distance(six, expected) < 0.2

    @pytest.mark.parametrize("count", [0, -1, 141])
    def test_landmarks_must_be_there(self, count):
        with pytest.raises(ValueError, match=f"count={count} of 140"):
            va.segment_means(randn(B, h, 140, d), count)

    def test_inverse_by_products_alone(self):
        """Also of a lopsided matrix, whose every row attends to the first key most: |A|_1 is near
        P."""
        lopsided = torch.eye(9).double() * 2 + 3 * torch.eye(9).double()[0]
        for A in (
            torch.softmax(2 * randn(2, 3, 9, 9), -1),
            torch.softmax(randn(2, 3, 9, 9) + lopsided, -1)):
            error = [(A @ va.iterative_inverse(A, n) @ A - A).norm().item() for n in (2, 6, 10, 30)]
            assert error == sorted(error, reverse=True)
            same(A @ va.iterative_inverse(A, 30) @ A, A, 1e-7)
            same(va.iterative_inverse(A, 30), torch.linalg.pinv(A), 1e-4)

    def test_clips_do_not_share_a_scale(self):
        """Nystromformer's own start couples the clips of a batch; this one does not, see Differs.
        """
        A = torch.softmax(randn(2, 9, 9) * torch.tensor([0.5, 3.0]).view(2, 1, 1), dim=-1)
        same(va.iterative_inverse(A), torch.stack([va.iterative_inverse(one) for one in A]))

    def test_inside_trajectory_attention(self):
        """With every token a landmark, in each frame the exact first stage."""
        q, k, v = qkv((3, 2, 4))
        same(va.nystrom_per_frame(q, k, v, 3, 24, 40), va.attend_per_frame(q, k, v, 3), 1e-7)

    def test_landmarks_of_the_first_stage_span_time(self):
        """Two positions and two landmarks: the mean of each position over all frames."""
        q, k, v = qkv((3, 1, 2))
        q_means, k_means = (x.unflatten(2, (3, 2)).mean(2) for x in (q, k))
        small = torch.softmax(q_means @ k_means.mT / d**0.5, dim=-1)
        found = va.attend_per_frame(q_means, k, v, 3)
        weights = torch.softmax(q @ k_means.mT / d**0.5, dim=-1) @ torch.linalg.inv(small)
        expected = torch.einsum("bhnp,bhptd->bhntd", weights, found)
        same(va.nystrom_per_frame(q, k, v, 3, 2, 40), expected, 1e-7)

    def test_options_reach_both_modules(self):
        x = randn(B, 140, D)
        module = va.NystromAttention(D, h, landmarks=7, iterations=3).double()
        out = va.nystrom_attention(*module.project(x), GRID, 7, 3)
        same(module(x, GRID), module.merge(out))
        module = va.NystromTrajectoryAttention(D, h, landmarks=7, iterations=3).double()
        y = va.nystrom_per_frame(*module.project(x), 5, 7, 3)
        out = va.attend_along_trajectories(y, module.proj_q, module.proj_kv)
        same(module(x, GRID), module.merge(out))

class TestPerformer(Questions):
    """Weights that are products of random features."""

    step, mechanism = va.PerformerAttention, va.performer_attention
    sizes = dict(M=13)

    def projection(self, M=13):
        numbers = torch.Generator("cpu").manual_seed(SEED)
        return torch.randn(M, d, generator=numbers, dtype=torch.float64, device="cpu")

    def call(self, q, k, v, grid):
        return va.performer_attention(q, k, v, grid, self.projection().to(q.device))

    def call_of(self, module):
        return lambda q, k, v, grid: va.performer_attention(q, k, v, grid, module.projection)

    def features(self, x, peak, W, eps=1e-6):
        """(exp(W x~ - |x~|^2 / 2 - c) + eps) / sqrt(M), x~ = x / d^(1/4)"""
        x = x / d**0.25
        along = torch.stack([(x * w).sum(-1) for w in W], dim=-1)
        length = (x * x).sum(-1, keepdim=True)
        return (torch.exp(along - length / 2 - along.amax(peak, keepdim=True)) + eps) / len(
            W) ** 0.5

    def oracle(self, q, k, v, grid):
        W = self.projection()
        weights = self.features(q, -1, W) @ self.features(k, (-2, -1), W).mT
        return weights @ v / weights.sum(-1, keepdim=True)

    def test_features(self):
        x, W = randn(B, h, 7, d), self.projection()
        for over, eps in (((-1,), 1e-6), ((-2, -1), 1e-4), ((-2, -1), 0.0)):
            same_gradients(lambda x: va.favor_features(x, W, over, eps),
                           lambda x: self.features(x, over, W, eps), [x])  # fmt: skip

    def test_gradient_is_the_derivative_of_what_is_returned(self):
        """Also of the maximum, which does not cancel against eps: at 40 tokens gradcheck would see
        it."""
        q, k, v = (randn(1, 1, 40, 3).requires_grad_() for _ in range(3))
        W = randn(5, 3)
        assert torch.autograd.gradcheck(lambda *x: va.performer_attention(*x, None, W), (q, k, v))

    def test_features_multiply_to_the_exponential(self):
        """phi(q) . phi(k) = exp(q . k / sqrt(d)) on average; the maxima c are put back by hand."""
        q, k, W = 0.5 * randn(5, d), 0.5 * randn(7, d), randn(200_000, d)
        phi = []
        for x, over in ((q, (-1,)), (k, (-2, -1))):
            c = (x / d**0.25 @ W.T).amax(over, keepdim=True)
            phi.append(va.favor_features(x, W, over, eps=0.0) * c.exp())
        same(phi[0] @ phi[1].T, torch.exp(q @ k.T / d**0.5), 0.03)

    def test_error_falls_with_features_and_grows_with_scores(self):
        """The ten numbers of the docstring, to a factor of 1.6."""
        text = re.search(r"is ([\d.\s]+) if q and k have scale 1/4, and ([\d.\s]+) if",
                         va.performer_attention.__doc__)  # fmt: skip
        for scale, stated in zip((0.25, 1.0), (map(float, row.split()) for row in text.groups())):
            q, k, v = scale * randn(2, 4, 64, 32), scale * randn(2, 4, 64, 32), randn(2, 4, 64, 32)
            errors = []
            for M, error in zip((32, 128, 512, 2048, 8192), stated):
                W = va.orthogonal_projection(M, 32).double()
                errors.append(
                    distance(va.performer_attention(q, k, v, None, W), va.attend(q, k, v)))
                assert error / 1.6 < errors[-1] < error * 1.6, (
                    f"{M} features: {errors[-1]:.3f}, stated {error}")
            assert errors == sorted(errors, reverse=True)

    def test_projection_is_orthogonal_in_blocks(self):
        W = va.orthogonal_projection(19, 8)
        unit = W / W.norm(dim=1, keepdim=True)
        for block in (unit[:8], unit[8:16], unit[16:]):
            same(block @ block.T, torch.eye(len(block)), 1e-5)
        lengths = va.orthogonal_projection(4000, 8).norm(dim=1)
        assert abs(lengths.square().mean() - 8) < 0.3 and lengths.std() > 0.5

    def test_inside_trajectory_attention(self):
        """Each frame normalised by itself, one maximum for all."""
        module = va.PerformerTrajectoryAttention(D, h, features=13).double()
        q, k, v = qkv()
        phi_q = self.features(q, -1, module.projection)
        phi_k = self.features(k, (-2, -1), module.projection)
        y = module.first_stage(q, k, v, 5)
        for t, frame in enumerate(torch.arange(140).view(5, 28)):
            weights = phi_q @ phi_k[:, :, frame].mT
            same(y[:, :, :, t], weights @ v[:, :, frame] / weights.sum(-1, keepdim=True))
        out = va.attend_along_trajectories(y, module.proj_q, module.proj_kv)
        same(module.mechanism(q, k, v, GRID), out)

    def test_number_of_features_reaches_both_modules(self):
        for step in (va.PerformerAttention, va.PerformerTrajectoryAttention):
            assert step(D, h, features=13).projection.shape == (13, d)
            assert step(D, h).projection.shape == (256, d)
            with pytest.raises(ValueError, match="features=-2"):
                step(D, h, features=-2)

# ==== LINEAR VIDEO TRANSFORMER ====================================================================

def linear_by_hand(q, k, v, eps=1e-6):
    """Linear attention with its weights written out: not negative, and rows sum to one except for
    eps."""
    weights = q @ k.mT
    return weights @ v / (weights.sum(-1, keepdim=True) + eps)

def lvt_features(x):
    return torch.clamp(x, min=0.0) + x.shape[-1] ** -0.5

class TestLinear(Questions):
    """Weights that are products of ReLU features."""

    step, mechanism = va.LinearAttention, va.linear_attention

    def oracle(self, q, k, v, grid):
        return linear_by_hand(lvt_features(q), lvt_features(k), v)

    @pytest.mark.parametrize("n", [4, 63, 64, 100, 400])
    def test_takes_the_cheaper_order(self, n):
        """Up to 63 keys of 64 channels are cheaper as weights, more are not; the answer is the
        same."""
        q, k, v = on_meta(*[(1, 1, n, 64)] * 3)
        assert counted(lambda: va.attend_linearly(q, k, v)) == 2 * n * 64 * min(n, 64) + n * 64
        q, k, v = (torch.rand(1, 1, n, 64).double() for _ in range(3))
        same_gradients(va.attend_linearly, linear_by_hand, [q, k, v])

    def test_feature_map_handed_over(self):
        """elu + 1, as in the first linear transformer, in the function and in the module."""
        q, k, v = qkv(C=1)
        phi = lambda x: torch.where(x > 0, x + 1, x.exp())
        expected = linear_by_hand(phi(q), phi(k), v)
        same(va.linear_attention(q, k, v, GRID, feature_map=phi), expected)
        module = va.LinearAttention(D, h, feature_map=phi).double()
        same(module.mechanism(q, k, v, GRID), expected)

    def test_features_have_a_floor(self):
        x = randn(3, 9)
        same(va.relu_features(x), lvt_features(x))
        assert va.relu_features(torch.full((4,), -9.0)).tolist() == [0.5] * 4

    @pytest.mark.parametrize(
        "axis, group", [("time", lambda t, y, x: (y, x)), ("space", lambda t, y, x: t)])
    def test_along_one_axis(self, axis, group):
        module = va.LinearAttention(D, h, axis=axis).double()
        q, k, v = qkv()
        out, members = module.mechanism(q, k, v, GRID), {}
        for n, patch in enumerate(patches_of(GRID)):
            members.setdefault(group(*patch), []).append(n)
        for tokens in members.values():
            parts = lvt_features(q[:, :, tokens]), lvt_features(k[:, :, tokens]), v[:, :, tokens]
            same(out[:, :, tokens], linear_by_hand(*parts))

    def test_along_time_nothing_reaches_the_class_token(self):
        module = va.LinearAttention(D, h, axis="time").double()
        nn.init.ones_(module.proj.bias)
        out = module(randn(B, 141, D), GRID)
        same(out[:, :1], torch.zeros(B, 1, D).double())

    @pytest.mark.parametrize(
        "name, value", [("axis", "up"), ("fixation", "both"), ("neighbours", True)])
    def test_bad_options_are_named(self, name, value):
        with pytest.raises(ValueError, match="axis=joint.*neighbours|axis=up|fixation=both"):
            va.LinearAttention(D, h, **{name: value})

class TestFixation:
    """A gate g = sigmoid(W [q; k; v] + b) says which features of q and k count."""

    def gate(self, layer, *read):
        x = torch.cat(read, dim=-1)
        return 1 / (1 + torch.exp(-(x @ layer.weight.T + layer.bias)))

    def test_gate_equals_the_definition(self):
        q, k, v = qkv()
        (layer,) = linear(3 * d, d)
        same(va.fixation_gate(layer, q, k, v), self.gate(layer, q, k, v))

    @pytest.mark.parametrize("fixation, count", [("own", 1), ("qk", 2), ("qkv", 3)])
    @pytest.mark.parametrize("shared", [True, False])
    def test_what_the_gates_read(self, fixation, count, shared):
        """q for q and k for k (the first release), [q; k], or [q; k; v], as features; one layer or
        two."""
        module = va.LinearAttention(D, h, fixation=fixation, shared_gate=shared).double()
        q, k, v = qkv()
        layer_q, layer_k = module.gate_q, module.gate_q if shared else module.gate_k
        assert layer_q.weight.shape == (d, count * d) and (module.gate_k is None) == shared
        phi_q, phi_k = lvt_features(q), lvt_features(k)
        read = dict(own=([phi_q], [phi_k]), qk=([phi_q, phi_k],) * 2, qkv=([phi_q, phi_k, v],) * 2)[
            fixation]
        g_q, g_k = self.gate(layer_q, *read[0]), self.gate(layer_k, *read[1])
        same(module.mechanism(q, k, v, GRID), linear_by_hand(g_q * phi_q, g_k * phi_k, v))
        for gate, expected in zip(module.gates(phi_q, phi_k, v), (g_q, g_k)):
            same(gate, expected)

    def test_gates_handed_to_the_function(self):
        q, k, v = qkv()
        g_q, g_k = torch.rand(2, B, h, 140, d).double()
        expected = linear_by_hand(g_q * lvt_features(q), g_k * lvt_features(k), v)
        same(va.linear_attention(q, k, v, GRID, gates=lambda *read: (g_q, g_k)), expected)

    @pytest.mark.parametrize("fixation", ["own", "qk", "qkv"])
    def test_a_closed_door_and_an_open_one(self, fixation):
        """A gate that is the same for all features cancels in the ratio: plain linear attention."""
        module = va.LinearAttention(D, h, fixation=fixation, shared_gate=False).double()
        for layer in (module.gate_q, module.gate_k):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, 30.0)
        q, k, v = qkv()
        same(module.mechanism(q, k, v, GRID), va.linear_attention(q, k, v, GRID), 1e-9)

    def test_shared_gate_is_evaluated_once(self):
        for N, fixation, shared in product((9, 35), (None, "qkv"), (True, False)):
            module = va.LinearAttention(D, h, fixation=fixation, shared_gate=shared).to("meta")
            q, k, v = on_meta(*[(1, h, N, d)] * 3)
            grid = (1, 1, N)
            once = evaluated(formula(va.fixation_gate), N=N, d=d, D=D)
            plain = counted(lambda: va.linear_attention(q, k, v, grid))
            gates = 0 if fixation is None else 1 if shared else 2
            assert counted(lambda: module.mechanism(q, k, v, grid)) == plain + gates * once

    def test_a_closed_gate_is_no_division_by_zero(self):
        q, k, v = qkv()
        for bias, dtype in product(
            (-30.0, -200.0), (torch.float64, torch.float32, torch.bfloat16, torch.float16)):
            module = va.LinearAttention(D, h, fixation="qkv").to(dtype)
            nn.init.zeros_(module.gate_q.weight)
            nn.init.constant_(module.gate_q.bias, bias)
            out = module.mechanism(q.to(dtype), k.to(dtype), v.to(dtype), GRID)
            assert out.isfinite().all(), f"bias {bias}, {dtype}"

class TestNeighbourhood:
    """Keys and values take channels from their neighbours, and nothing is multiplied."""

    def test_channel_by_channel(self):
        """Along one axis there are zeros beyond the border, diagonally a patch keeps its own
        channels."""
        steps = [(1, 0, 0), (-1, 0, 0), (0, 0, 2), (0, -1, 1), (9, 0, 0), (1, -1, 1)]
        T, H, W = GRID
        x = randn(B, 5, math.prod(GRID), d)
        out = va.shift_from_neighbours(x, GRID, steps, 4)
        clip, out = (y.transpose(1, 2).flatten(2).unflatten(1, GRID) for y in (x, out))
        for (t, y, z), channel in product(patches_of(GRID), range(30)):
            step = steps[channel // 4] if channel // 4 < len(steps) else (0, 0, 0)
            source = (t + step[0], y + step[1], z + step[2])
            inside = all(0 <= a < size for a, size in zip(source, GRID))
            outside = 0.0 if step.count(0) == 2 else clip[:, t, y, z, channel]
            expected = clip[(slice(None), *source, channel)] if inside else outside
            assert (out[:, t, y, z, channel] == expected).all()

    def test_order_of_neighbours_as_released(self):
        """Which channels come from where decides whether released weights mean the same."""
        assert va.NEXT_AND_PREVIOUS == [(1, 0, 0), (-1, 0, 0)]
        below, above, right, left = (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)
        assert va.EIGHT_AROUND[:4] == [below, above, right, left]
        assert va.EIGHT_AROUND[4:] == [(0, -1, -1), (0, 1, 1), (0, -1, 1), (0, 1, -1)]

    @pytest.mark.parametrize("axis", ["time", "space"])
    def test_what_a_patch_attends_to(self, axis):
        """Time attention takes in the 3 x 3 around a position, space attention the frames around.
        """
        query = (2, 1, 3)
        step = lambda dim, heads: va.LinearAttention(48, 4, axis=axis, neighbours=True)
        module = step(48, 4).double()
        x = randn(1, math.prod(GRID), 48).requires_grad_()
        out = module(x, GRID)[0, patches_of(GRID).index(query)]
        (gradient,) = torch.autograd.grad(out.sum(), x)
        for patch, reached in zip(patches_of(GRID), gradient[0].abs().sum(-1) > 0):
            apart = [abs(a - b) for a, b in zip(patch, query)]
            assert reached == (max(apart[1:]) <= 1 if axis == "time" else apart[0] <= 1)

    @pytest.mark.parametrize("axis, moved, share", [
        ("time", 0.5, 3), ("time", 1.0, 6), ("space", 0.5, 12), ("space", 0.58, 13)])  # fmt: skip
    def test_keys_and_values_shift_before_the_features(self, axis, moved, share):
        """Half of the channels in equal parts from each of eight around, or from the frames around.
        """
        module = va.LinearAttention(48, 3, axis=axis, neighbours=True, moved=moved).double()
        plain = va.LinearAttention(48, 3, axis=axis).double()
        q, k, v = (randn(B, 3, math.prod(GRID), 16) for _ in range(3))
        steps = va.EIGHT_AROUND if axis == "time" else va.NEXT_AND_PREVIOUS
        k2, v2 = (va.shift_from_neighbours(x, GRID, steps, share) for x in (k, v))
        same(module.mechanism(q, k, v, GRID), plain.mechanism(q, k2, v2, GRID))

    def test_class_tokens_are_refused(self):
        with pytest.raises(ValueError, match="141 tokens"):
            va.shift_from_neighbours(randn(B, h, 141, d), GRID, va.NEXT_AND_PREVIOUS, 4)

    def test_shares_that_are_not_there_are_refused(self):
        with pytest.raises(ValueError, match="2 x 10 channels"):
            va.shift_from_neighbours(randn(B, h, 140, d), GRID, va.NEXT_AND_PREVIOUS, 10)

# ==== WHAT THE PAPERS PROMISE =====================================================================

def macs_of(function, grid, *arguments, **options):
    """Counted multiply-accumulates of a pure function on q, k, v of this grid, without class
    tokens."""
    q, k, v = on_meta(*[(1, h, math.prod(grid), d)] * 3)
    return counted(lambda: function(q, k, v, grid, *arguments, **options))

class TestGrowth:
    """How the cost grows when there are more frames, or more patches in a frame."""

    small, longer, finer = (4, 6, 8), (8, 6, 8), (4, 12, 8)

    def test_mixing_costs_what_space_attention_costs(self):
        for grid in (self.small, self.longer, self.finer):
            assert macs_of(va.mixing_attention, grid) == macs_of(va.space_attention, grid)

    def test_joint_attention_is_quadratic(self):
        for grid in (self.longer, self.finer):
            assert macs_of(va.joint_attention, grid) == 4 * macs_of(va.joint_attention, self.small)

    def test_windows_are_linear_in_frames(self):
        """Away from the ends of the clip: four frames more cost four times three frames of keys."""
        first, second, third = (macs_of(va.window_attention, (T, 6, 8)) for T in (4, 8, 12))
        assert third - second == second - first == 4 * 3 * 2 * 48**2 * D
        boxes = partial(va.shifted_window_attention, size=(2, 3, 4))
        for grid in (self.longer, self.finer):
            assert macs_of(boxes, grid) == 2 * macs_of(boxes, self.small)

    def test_approximations_are_linear(self):
        """Twice the tokens, twice the cost; for Nystrom beside its small matrix, the same whatever
        N is."""
        projection, prototypes = on_meta((13, d), (1, h, 11, d))
        for function, *fixed in (
            (va.linear_attention,),
            (va.performer_attention, projection),
            (va.orthoformer_attention, prototypes)):
            for grid in (self.longer, self.finer):
                assert macs_of(function, grid, *fixed) == 2 * macs_of(function, self.small, *fixed)
        nystrom = partial(va.nystrom_attention, landmarks=11)
        matrix = 2 * 11**2 * D + 24 * h * 11**3
        for grid in (self.longer, self.finer):
            assert macs_of(nystrom, grid) - matrix == 2 * (macs_of(nystrom, self.small) - matrix)

    def test_trajectories_are_quadratic_in_frames_and_patches(self):
        layers = [layer.to("meta").float() for layer in linear(D, D, D, 2 * D)]
        for grid in (self.small, self.longer, self.finer):
            T, N = grid[0], math.prod(grid)
            second_stage = N * D**2 + 2 * N * T * D**2 + 2 * N * T * D
            trajectory = macs_of(va.trajectory_attention, grid, *layers)
            assert trajectory - second_stage == macs_of(va.joint_attention, grid)

    def test_dividing_is_cheaper_the_longer_the_clip(self):
        for grid in (self.small, self.longer, self.finer):
            divided = macs_of(va.time_attention, grid) + macs_of(va.space_attention, grid)
            T, S = grid[0], grid[1] * grid[2]
            assert divided * T * S == macs_of(va.joint_attention, grid) * (T + S)

class TestCosts:
    """The formulas of what the mechanisms are made of, each at three sizes."""

    compared = ["most_orthogonal_subset", "fixation_gate", "attend", "Attention", "attend_linearly"]
    three_sizes = pytest.mark.parametrize(
        "I, J, M, e", [(3, 5, 7, 2), (11, 2, 5, 9), (16, 32, 3, 4)])

    def test_every_formula_of_the_file_is_compared(self):
        stated = {
            name
            for name in definitions()
            if re.search("^ *Cost  ", vars(va)[name].__doc__ or "", re.M)}
        mechanisms = {questions.mechanism.__name__ for questions in Questions.__subclasses__()}
        assert stated == mechanisms | {*self.compared}

    @three_sizes
    def test_attend(self, I, J, M, e):
        q, k, v = on_meta((1, 1, I, M), (1, 1, J, M), (1, 1, J, e))
        stated = evaluated(formula(va.attend), I=I, J=J, d=M, e=e)
        assert counted(lambda: va.attend(q, k, v)) == stated
        assert counted(lambda: va.attend(q, k, v, return_weights=True)) == stated

    @three_sizes
    def test_attend_linearly(self, I, J, M, e):
        q, k, v = on_meta((I, M), (J, M), (J, e))
        stated = evaluated(formula(va.attend_linearly), I=I, J=J, M=M, e=e)
        assert counted(lambda: va.attend_linearly(q, k, v)) == stated

    @three_sizes
    def test_projections(self, I, J, M, e):
        """What is left of a module's cost without its mechanism's: 4, or 5 with an extra layer."""
        text = formula(va.Attention)
        assert text.startswith("4*") and "5*N*D**2 with an extra layer" in va.Attention.__doc__
        for zero_init, stated in ((None, text), ("proj", text), ("extra", "5" + text[1:])):
            module, N, D = va.JointAttention(M * e, e, zero_init=zero_init).to("meta"), I * J, M * e
            (x,) = on_meta((1, N, D))
            macs = counted(lambda: module(x, (I, J, 1))) - 2 * N**2 * D
            assert macs == evaluated(stated, N=N, D=D)

    @three_sizes
    def test_mlp(self, I, J, M, e):
        """Two layers, and nine neighbours of every hidden channel."""
        for depthwise in (False, True):
            mlp, (x,) = va.MLP(M, e, depthwise=depthwise).to("meta"), on_meta((1, I * J, M))
            macs = counted(lambda: mlp(x, (1, I, J)))
            assert macs == 2 * I * J * M * e + depthwise * 9 * I * J * e

# ==== THE REGISTRY ================================================================================

VIDEO = (2, 3, 6, 24, 40)  # with patches of 8 a grid of 6 x 3 x 5
SHORT = (2, 3, 3, 16, 24)  # a grid of 3 x 2 x 3, for what takes long
FEW = dict(orthoformer=dict(prototypes=5), nystrom=dict(landmarks=7), performer=dict(features=9))

def few(name, steps):
    """A scheme with few prototypes, landmarks and features, in proportion to tiny clips."""
    options = next((options for word, options in FEW.items() if word in name), {})
    return [partial(step, **options) for step in steps] if options else steps

SCHEMES = {name: few(name, steps) for name, steps in vars(va).get("ATTENTION", {}).items()}
every_scheme = pytest.mark.parametrize("name", SCHEMES)

def tiny(attention, **options):
    """A model that takes VIDEO, in eval; named schemes get their own class tokens also when cut
    down."""
    sizes = dict(
        num_classes=5, num_frames=6, image_size=(24, 40), patch_size=8, dim=24, depth=2, heads=4)
    if isinstance(attention, str):
        options = dict(class_token=va.CLASS_TOKEN.get(attention, "clip")) | options
        attention = SCHEMES[attention]
    return va.VideoTransformer(attention, **sizes | options).eval()

def short(attention, **options):
    """One block for SHORT."""
    return tiny(attention, **dict(depth=1, num_frames=3, image_size=(16, 24)) | options)

class TestRegistry:
    """Which steps a name stands for, and what class tokens it gets: written out once more."""

    def test_schemes(self):
        """A scheme of one step is named after it; the others are lists, in this order."""
        named = {name: [name_of(step) for step in steps] for name, steps in va.ATTENTION.items()}
        extra, lvt = "Attention-zero_init=extra", "fixation=qkv-neighbours=True"
        assert {name: steps for name, steps in named.items() if len(steps) > 1} == {
            "divided": [f"Time{extra}", "SpaceAttention"],
            "local_global": [f"Local{extra}", "GlobalAttention"],
            "axial": [f"Time{extra}", f"Width{extra}", "HeightAttention"],
            "factorised": ["SpaceAttention", "TimeAttention-zero_init=proj"],
            "shifted_windows": ["ShiftedWindowAttention", "ShiftedWindowAttention-displaced=True"],
            "lvt": [f"LinearAttention-axis=time-{lvt}", f"LinearAttention-axis=space-{lvt}"]}
        one = {
            name: steps[0].removesuffix("Attention")
            for name, steps in named.items()
            if len(steps) == 1}
        assert one.pop("mixing_summary") == "MixingAttention-summary=True"
        assert one.pop("linear_fixation") == "LinearAttention-fixation=qkv"
        for name, step in one.items():
            words = [word.capitalize() for word in name.split("_")]
            assert step in ("".join(words), "".join(reversed(words))), name
        assert len(one) == 15

    def test_class_tokens_where_frames_hardly_meet(self):
        kinds = {name: va.CLASS_TOKEN.get(name, "clip") for name in va.ATTENTION}
        frame = {"space", "window", "mixing", "summary", "mixing_summary"}
        assert {name for name, kind in kinds.items() if kind == "frame"} == frame
        none = {"factorised", "factorised_heads", "shifted_windows", "lvt"}
        assert {name for name, kind in kinds.items() if kind == "none"} == none
        for name, kind in kinds.items():
            model = va.VideoTransformer(name, dim=24, heads=4, depth=1)
            C = {"clip": 1, "frame": 8, "none": 0}[kind]
            assert model.forward_features(torch.randn(1, 3, 8, 16, 16)).shape[1] == C + 8

    @every_step
    def test_a_misspelt_option_fails_when_built(self, step):
        with pytest.raises(ValueError, match="windw"):
            step(24, 4, windw=2)

    @pytest.mark.parametrize("scheme, options", [
        ("window", dict(window=-1)), ("window", dict(window=1.5)),
        ("window", dict(window="2")), ("window", dict(window=None)),
        ("mixing", dict(window=-1)), ("mixing", dict(moved=2)),
        ("mixing", dict(window=2.5)), ("mixing", dict(moved=math.nan)),
        ("pooled", dict(stride=(0, 1, 1))), ("pooled", dict(stride=(1, 1))),
        ("pooled", dict(stride=2)), ("pooled", dict(stride=(1, 1.5, 2))),
        ("shifted_windows", dict(size=(8, 7, 0))), ("shifted_windows", dict(size=None)),
        ("nystrom", dict(landmarks=0)), ("trajectory_nystrom", dict(landmarks=0)),
        ("nystrom", dict(iterations=-1)), ("trajectory_nystrom", dict(iterations=-1)),
        ("nystrom", dict(landmarks=2.5)), ("trajectory_nystrom", dict(iterations=[6])),
        ("orthoformer", dict(prototypes=0)), ("performer", dict(features=0)),
        ("linear", dict(fixation="kv")), ("linear", dict(moved=1.5)),
        ("linear", dict(gates=lambda q, k, v: (q, k)))], ids=str)
    def test_a_bad_value_fails_when_built(self, scheme, options):
        """In one sentence that names the option."""
        with pytest.raises(ValueError, match=next(iter(options))) as error:
            va.ATTENTION[scheme][0](24, 4, **options)
        assert "\n" not in str(error.value)

    def test_a_share_stays_a_share(self):
        assert va.MixingAttention(48, 4, moved=0.25).options == {"moved": 0.25}

    @pytest.mark.parametrize("number", [2.0, np.int64(2), np.float32(2)], ids=repr)
    @pytest.mark.parametrize("scheme, option", [
        ("window", "window"), ("mixing", "window"),
        ("nystrom", "landmarks"), ("nystrom", "iterations"),
        ("trajectory_nystrom", "landmarks"), ("trajectory_nystrom", "iterations"),
        ("orthoformer", "prototypes"), ("performer", "features")])
    def test_a_size_may_be_any_whole_number(self, scheme, option, number):
        x, outs = randn(2, 18, 48), []
        for value in (2, number):
            torch.manual_seed(SEED)
            outs.append(va.ATTENTION[scheme][0](48, 4, **{option: value}).double()(x, (3, 2, 3)))
        same(*outs, 0)

    @every_step
    def test_shared_options_reach_every_step(self, step):
        module = step(24, 4, dropout=0.25, qkv_bias=False)
        assert module.dropout.p == 0.25 and module.qkv.bias is None
        assert step(24, 4).qkv.bias is not None and step(24, 4).proj.bias is not None

    @every_step
    @pytest.mark.parametrize("dim, heads", [(18, 4), (18, 0), (18, -3), (0, 3), (20, 2.5)])
    def test_heads_that_do_not_divide_are_refused(self, step, dim, heads):
        with pytest.raises(ValueError, match=f"dim={dim}|heads={heads}"):
            step(dim, heads)

    def test_whole_numbers_in_any_form(self):
        for number in (np.int64(6), 6.0, np.float32(6)):
            assert va.SpaceAttention(number * 2, number).heads == 6
        for number in (6.5, "6", None, math.nan):
            with pytest.raises(ValueError, match="whole number"):
                va.SpaceAttention(24, number)

class TestZeroInit:
    """Which layer starts at zero, so that the step starts as nothing beside its residual."""

    @every_step
    @pytest.mark.parametrize("zero_init", ["proj", "extra"])
    def test_the_step_starts_as_nothing_and_wakes_up(self, step, zero_init):
        module, x = step(24, 4, zero_init=zero_init).double(), randn(2, 90, 24)
        same(module(x, (6, 3, 5)), torch.zeros_like(x), 0)
        layer = module.proj if zero_init == "proj" else module.extra
        assert (module.extra is None) == (zero_init == "proj")
        module(x, (6, 3, 5)).sum().backward()
        assert layer.bias.grad.abs().min() > 0

    def test_extra_is_one_more_layer(self):
        module, x = va.JointAttention(D, h, zero_init="extra").double(), randn(B, 11, D)
        nn.init.normal_(module.extra.weight), nn.init.normal_(module.extra.bias)
        plain = va.JointAttention(D, h).double()
        plain.load_state_dict({k: v for k, v in module.state_dict().items() if "extra" not in k})
        expected = plain(x, (1, 1, 11)) @ module.extra.weight.T + module.extra.bias
        same(module(x, (1, 1, 11)), expected)

    def test_an_unknown_one_is_named(self):
        with pytest.raises(ValueError, match="zero_init=True"):
            va.TimeAttention(D, h, zero_init=True)

    def test_a_clip_starts_as_a_bag_of_images(self):
        """New branches and embeddings of time are zero: at first the order of frames does not
        matter."""
        video = randn(*VIDEO)
        for name in ("divided", "factorised"):
            model = tiny(name).double()
            same(model(video), model(video.flip(2)))
        model = tiny("joint").double()
        same(model(video), model(video.flip(2)))

# ==== THE BACKBONE ================================================================================

class TestBackbone:
    @every_scheme
    def test_shapes(self, name):
        sizes = dict(
            num_classes=5, num_frames=6, image_size=(24, 40), patch_size=8, dim=24, heads=4)
        model = va.VideoTransformer(name, depth=1, **sizes)
        C = {"clip": 1, "frame": 6, "none": 0}[va.CLASS_TOKEN.get(name, "clip")]
        video = torch.randn(VIDEO)
        assert model(video).shape == (2, 5)
        assert model.forward_features(video).shape == (2, C + 6 * 3 * 5, 24)
        assert model(video[:0]).shape == (0, 5)

    @every_scheme
    def test_any_grid(self, name):
        """The grid belongs to the call: 5 frames of 3 x 7 patches, one frame, one patch."""
        model = tiny(name, depth=1)
        for frames, height, width in ((5, 24, 56), (1, 16, 24), (6, 8, 8), (1, 8, 8)):
            logits = model(torch.randn(1, 3, frames, height, width))
            assert logits.shape == (1, 5) and logits.isfinite().all()

    @every_scheme
    def test_eval_is_deterministic_and_training_is_not(self, name):
        model, video = short(name, dropout=0.5, drop_path=0.5), torch.randn(SHORT)
        assert torch.equal(model(video), model(video))
        model.train()
        assert not torch.equal(model(video), model(video))

    @every_scheme
    def test_overfits_eight_clips(self, name):
        """Eight clips of noise and eight labels of no meaning: what cannot learn these is broken.
        """
        video, label = torch.randn(8, *SHORT[1:]), torch.arange(8) % 4
        model = short(name).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(25):
            loss = nn.functional.cross_entropy(model(video), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert (model.eval()(video).argmax(1) == label).all(), f"loss {loss:.3f} after 25 steps"

    @every_scheme
    def test_every_parameter_learns(self, name):
        """After two steps no branch is asleep. Only the class token is classified, so what makes
        the patches of a last trajectory block cannot matter."""
        model = tiny(name).double().train()
        video = randn(*VIDEO)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (model(video) * torch.arange(10).view(2, 5)).sum().backward()
            optimizer.step()
        asleep = {
            n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-15}
        expected = set()
        if name.startswith("trajectory"):
            expected = {
                f"blocks.1.steps.0.proj_{p}.{w}" for p in ("q", "kv") for w in ("weight", "bias")}
        assert asleep == expected

    def test_clips_of_a_batch_do_not_meet(self):
        model, video = tiny("divided").double(), randn(*VIDEO)
        same(model(video)[:1], model(video[:1]))

    @every_step
    @pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
    def test_what_attends_to_a_bad_token_is_not_finite(self, step, value):
        """And what does not stays as it was: the other clip, and every patch out of reach."""
        module, x = step(48, 4).double().eval(), randn(B, 140, 48)
        bad = x.clone()
        bad[1, 33] = value
        before, after = module(x, GRID), module(bad, GRID)
        assert torch.equal(before[0], after[0])
        assert ((before[1] == after[1]) | ~after[1].isfinite()).all() and not after[
            1, 33].isfinite().any()

def few_steps():
    """Every step in the registry with few prototypes, landmarks and features, once."""
    steps = [step for scheme in SCHEMES.values() for step in scheme]
    return {name_of(step): step for step in steps}.values()

class TestGraphs:
    """Of every step of every scheme, and of a whole model."""

    every_module = pytest.mark.parametrize(
        "step", [None, *few_steps()], ids=lambda s: s and name_of(s))

    def module(self, step):
        """A module and a function of the batch that gives its inputs."""
        if step is None:
            return short("divided"), lambda batch: (torch.randn(batch, *SHORT[1:]),)
        return step(24, 4).eval(), lambda batch: (torch.randn(batch, 18, 24), (3, 2, 3))

    @every_module
    def test_compiles_without_a_break(self, step):
        """Here the graph is only traced, with einops as nodes that are not looked into;
        VA_COMPILE=inductor looks into all and builds it, as torch does by default."""
        torch._dynamo.reset()
        (module, inputs), backend = self.module(step), os.environ.get("VA_COMPILE", "eager")
        if backend == "eager":
            for function in (einops.rearrange, einops.reduce, einops.repeat):
                torch._dynamo.allow_in_graph(function)
        inputs, parameters = inputs(2), list(module.parameters())
        expected = module(*inputs)
        gradients = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
        out = torch.compile(module, fullgraph=True, backend=backend)(*inputs)
        same(out, expected, 1e-5)
        again = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
        for gradient, other in zip(again, gradients):
            if other is not None:
                same(gradient, other, 1e-3 * (1 + other.abs().max().item()))

    @every_module
    def test_exports_with_any_batch(self, step):
        (module, inputs), any_batch = self.module(step), {0: torch.export.Dim("B", min=1, max=64)}
        dynamic = (any_batch,) if step is None else (any_batch, (None, None, None))
        # Remembering what every operation made of every size takes longer than asking again.
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            exported = torch.export.export(module, inputs(2), dynamic_shapes=dynamic).module()
        five = inputs(5)
        same(exported(*five), module(*five), 1e-5)

class TestBlocksThatDiffer:
    """`attention` may also say for each block which steps it has."""

    def test_a_function_of_the_blocks_number(self):
        """Space and joint attention by turns, the last block with two steps of one's own."""
        own = [va.WidthAttention, partial(va.PooledAttention, stride=(3, 2, 1))]
        model = tiny(lambda i: own if i == 3 else ["space", "joint"][i % 2], depth=4)
        names = [[type(step).__name__ for step in block.steps] for block in model.blocks]
        assert names == [["SpaceAttention"], ["JointAttention"], ["SpaceAttention"],
                         ["WidthAttention", "PooledAttention"]]  # fmt: skip
        assert model(torch.randn(VIDEO)).shape == (2, 5)

    def test_a_list_with_an_entry_for_each_block(self):
        listed = tiny(["divided", [va.JointAttention]])
        called = tiny(lambda i: ["divided", [va.JointAttention]][i])
        called.load_state_dict(listed.state_dict())
        video = torch.randn(VIDEO)
        same(listed(video), called(video), 0)
        with pytest.raises(ValueError, match="2 schemes for depth=3"):
            tiny(["space", "joint"], depth=3)

    def test_a_tuple_of_schemes(self):
        model = tiny(("space", "joint"))
        steps = [type(block.steps[0]) for block in model.blocks]
        assert steps == [va.SpaceAttention, va.JointAttention]

    def test_of_two_classes_of_one_name_the_last_is_meant(self):
        """A config names classes, so the one before could not be told from it."""
        def make(factor):
            class Scaled(va.Attention):
                mechanism = staticmethod(lambda q, k, v, grid: factor * v)
            return Scaled

        first, last = make(1.0), make(100.0)
        assert type(tiny([last]).blocks[0].steps[0]) is last
        with pytest.raises(ValueError, match="Scaled"):
            tiny([first])
        del va.Attention.known["Scaled"]

    def test_neighbours_are_patches(self):
        """LVT has no class token: that is said when the model is built."""
        for kind in ("clip", "frame"):
            with pytest.raises(ValueError, match=f"class_token='{kind}'.*neighbours"):
                tiny("lvt", class_token=kind)

    @pytest.mark.parametrize("options", [
        dict(head="temporal", head_depth=0), dict(head="temporal", head_depth=1.5),
        dict(mlp_ratio=0.01), dict(image_size=None), dict(patch_size=None)], ids=str)
    def test_sizes_that_leave_nothing(self, options):
        with pytest.raises(ValueError, match="whole number"):
            tiny("space", **options)

    def test_class_tokens_that_all_blocks_agree_on(self):
        """One per frame if every scheme has one per frame, else one for the clip."""
        schemes = [
            ["space", "mixing"],
            ["space", "joint"],
            ["lvt", "factorised"],
            [va.SpaceAttention]]
        models = [va.VideoTransformer(scheme, dim=24, heads=4, depth=2) for scheme in schemes]
        kinds = [model.config["class_token"] for model in models]
        assert kinds == ["frame", "clip", "none", "clip"]

    @pytest.mark.parametrize("attention, message", [
        ("divded", "divded.*space.*divided"), ([], "attention="), (["a", "b"], "attention='a'"),
        (va.SpaceAttention, "list"), ([nn.Dropout(0.5)], "step"), ([nn.Linear], "Linear"),
        ([va.space_attention], "step"), ([{"step": "Spacey"}], "Spacey"),
        ([{"window": 2}], "window"), ([["space"], ["joint"]], "'space'"), ([3], "step 3"),
        ([partial(va.LinearAttention, 24, 4, "time")], "partial of one by keyword")],
        ids=repr)  # fmt: skip
    def test_what_is_no_scheme_is_named(self, attention, message):
        with pytest.raises(ValueError, match=message):
            tiny(attention) if attention != "divded" else va.VideoTransformer("divded")
        with pytest.raises(ValueError, match="step"):
            tiny([va.SpaceAttention(24, 4)])

class TestConfig:
    """model.config is a plain dictionary that builds the model again."""

    def check(self, model, video):
        again = va.VideoTransformer(**model.config).eval()
        again.load_state_dict(model.state_dict())
        same(again(video), model(video), 0)
        return again

    @every_scheme
    def test_round_trip(self, name):
        model = short(name, dropout=0.1, drop_path=0.2, head_mlp="tanh", head_hidden=7)
        again = self.check(model, torch.randn(SHORT))
        assert again.config == model.config
        assert json.dumps(va.VideoTransformer(**json.loads(json.dumps(again.config))).config)

    def test_every_option_is_kept(self):
        """Also those that no tensor tells."""
        options = dict(patch_size=(2, 8, 8), patch_stride=(2, 4, 4), channels=4, position="joint")
        options |= dict(class_token="none", head="temporal", head_depth=2, norm_after_pool=True)
        options |= dict(depthwise=True, gelu="tanh", mlp_ratio=2.5, checkpoint=True)
        model = tiny(lambda i: [partial(va.MixingAttention, window=i)], **options)
        again = self.check(model, torch.randn(1, 4, 6, 24, 40))
        assert json.loads(json.dumps(again.config))["attention"] == [
            [{"step": "MixingAttention", "window": 0}], [{"step": "MixingAttention", "window": 1}]
        ]  # fmt: skip
        signature = set(inspect.signature(va.VideoTransformer).parameters)
        assert set(model.config) == signature

    def test_functions_are_options_too(self):
        step = partial(va.OrthoformerAttention, prototypes=5, choose=va.segment_prototypes)
        again = self.check(short([step]), torch.randn(SHORT))
        assert again.blocks[0].steps[0].choose is va.segment_prototypes

    def test_a_step_of_ones_own(self):
        class Lazy(va.Attention):
            def __init__(self, dim, heads, by=0, **shared):
                super().__init__(dim, heads, **shared)
                self.by = by

            def mechanism(self, q, k, v, grid):
                return v.roll(self.by, dims=2)

        again = self.check(short([partial(Lazy, by=3)]), torch.randn(SHORT))
        assert again.blocks[0].steps[0].by == 3

# ==== ADAPTED, QUANTISED, DIFFERENTIATED TWICE ====================================================

class LowRank(nn.Module):
    """An adapter as in LoRA: the frozen layer plus a product of two narrow ones."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 2, bias=False).to(layer.weight.dtype)
        self.up = nn.Linear(2, layer.out_features, bias=False).to(layer.weight.dtype)
        nn.init.normal_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))

def awake(name, **options):
    """A short model none of whose branches starts at zero, and whose patches are what is
    classified."""
    model = short(name, head="mean", **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model

class TestAdapters:
    @every_scheme
    def test_of_every_linear_layer(self, name):
        """Whatever layer is wrapped, the output changes and the adapter gets gradients."""
        model, video = awake(name).double(), randn(*SHORT)
        before = model(video)
        layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        assert len(layers) >= 5
        for layer in layers:
            parent, _, last = layer.rpartition(".")
            plain, parent = model.get_submodule(layer), model.get_submodule(parent)
            adapter = LowRank(plain)
            setattr(parent, last, adapter)
            after = model(video)
            after.square().sum().backward()
            assert (after - before).abs().max() > 1e-6, f"without effect on {layer}"
            for parameter in (adapter.down.weight, adapter.up.weight):
                assert parameter.grad.abs().max() > 0, f"no gradient on {layer}"
            setattr(parent, last, plain)

    @every_scheme
    def test_hooks_of_every_linear_layer(self, name):
        model, video = awake(name).double(), randn(*SHORT)
        before = model(video)
        for layer_name, layer in model.named_modules():
            if isinstance(layer, nn.Linear):
                doubled = lambda layer, inputs, out: out * torch.arange(1, 1 + out.shape[-1])
                hook = layer.register_forward_hook(doubled)
                assert (model(video) - before).abs().max() > 1e-6, f"without effect on {layer_name}"
                hook.remove()
        same(model(video), before, 0)

    def test_the_fast_form_is_left_for_all_that_watches_a_layer(self):
        """Also hooks of the way back, and a forward that was put in the place of its own."""
        module, x, calls = va.TrajectoryAttention(24, 4), torch.randn(1, 18, 24), []
        before = module(x, (3, 2, 3))
        for register in (module.proj_kv.register_full_backward_hook,
                         module.proj_kv.register_full_backward_pre_hook):
            hook = register(lambda *_: calls.append(1))
            module(x, (3, 2, 3)).sum().backward()
            hook.remove()
        assert len(calls) == 2
        own = module.proj_kv.forward
        module.proj_kv.forward = lambda x: own(x) + torch.arange(48.0)
        assert distance(module(x, (3, 2, 3)), before) > 0.1

    @pytest.mark.filterwarnings("ignore")
    @every_scheme
    def test_dynamic_quantisation(self, name):
        model, video = awake(name), torch.randn(SHORT)
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        assert not any(type(layer) is nn.Linear for layer in quantised.modules())
        assert distance(quantised(video), model(video)) < 0.15

class TestDerivatives:
    @every_scheme
    def test_second_and_forward_derivatives(self, name):
        """Of torch's plain attention; the fused kernel has only first ones. Both against
        differences."""
        model, video, way, step = (
            awake(name).double(),
            randn(1, *SHORT[1:]),
            randn(1, *SHORT[1:]),
            1e-5)
        model.load_state_dict({key: x / 3 for key, x in model.state_dict().items()})

        def gradient(x):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            return slope, x

        with sdpa_kernel(SDPBackend.MATH):
            out, forward = torch.func.jvp(lambda x: model(x).square().sum(), (video,), (way,))
            slope, x = gradient(video)
            same(forward, (slope * way).sum().detach(), 1e-9 * (1 + forward.abs().item()))
            (second,) = torch.autograd.grad((slope * way).sum(), x)
            difference = (gradient(video + step * way)[0] - gradient(video - step * way)[0]) / (
                2 * step)
        assert distance(second, difference.detach()) < 1e-4

class TestPrecision:
    """Half precision, in which sums, squares and exponentials run out of room."""

    @every_scheme
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_is_close(self, name, dtype):
        model = short(name)
        for scale in (1, 100):
            video = scale * torch.randn(SHORT)
            expected = model(video)
            with torch.autocast("cpu", dtype=dtype):
                error = distance(model(video).float(), expected)
            assert error < 0.03, f"relative error {error:.3f} with pixels of scale {scale}"

    @every_step
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_large_tokens_stay_finite(self, step, dtype):
        """Without the norm that comes before them in a block. FAVOR+ cannot: where scores are large
        its features differ by more powers of ten than float16 has."""
        if dtype is torch.float16 and "Performer" in name_of(step):
            pytest.skip("FAVOR+ has no room in float16")
        with torch.autocast("cpu", dtype=dtype):
            assert step(128, 2)(100 * torch.randn(B, 140, 128), GRID).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_linear_attention_of_a_long_clip(self, dtype):
        """1,569 tokens of scale 10: their sums would be far past 65,504, the end of float16."""
        q, k, v = 10 * torch.randn(3, 1, 2, 1569, 64)
        expected = va.linear_attention(q, k, v, None)
        actual = va.linear_attention(q.to(dtype), k.to(dtype), v.to(dtype), None).float()
        assert distance(actual, expected) < 0.01

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_what_needs_float32_has_it_under_autocast(self, dtype):
        """Also where what comes in is float32: autocast would round the products."""
        A = torch.randn(2, 9, 9).softmax(dim=-1)
        (q, k, v), tokens = torch.rand(3, 2, 7, 5), torch.randn(4, 60, 16)
        calls = [
            lambda: va.iterative_inverse(A),
            lambda: va.attend_linearly(q, k, v),
            lambda: va.favor_features(q, torch.ones(6, 5), over=(-1,)),
            lambda: va.most_orthogonal_subset(tokens, 20)]
        for call in calls:
            expected = call()
            with torch.autocast("cpu", dtype=dtype):
                same(call(), expected, 0)
        expected = va.attend_linearly(q, k.to(dtype).float(), v.to(dtype).float())
        mixed = va.attend_linearly(q, k=k.to(dtype), v=v.to(dtype))
        assert mixed.dtype is torch.float32
        same(mixed, expected, 1e-6)
        half = va.attend_linearly(q=q.to(dtype), k=k.to(dtype), v=v.to(dtype))
        assert half.dtype is dtype and distance(half.float(), expected) < 0.01

    def test_integers_are_not_cut_off(self):
        x = torch.tensor([[[[1], [2]]]], dtype=torch.uint8)
        same(va.attend_linearly(x, x, x), torch.full((1, 1, 2, 1), 5 / 3), 1e-5)

    @pytest.mark.parametrize("bias", [0.0, -4.0, -8.0])
    def test_gates_that_are_nearly_closed(self, bias):
        """What they let through is little, and what comes out is not."""
        q, k, v = torch.randn(3, 1, 2, 1569, 64)
        module = va.LinearAttention(128, 2, fixation="qkv")
        nn.init.normal_(module.gate_q.weight, std=0.05), nn.init.constant_(module.gate_q.bias, bias)
        expected = module.mechanism(q, k, v, None)
        actual = module.half().mechanism(q.half(), k.half(), v.half(), None).float()
        assert distance(actual, expected) < 0.01

# ==== TRAINING ====================================================================================

def train(model, clips, labels):
    """Two steps of gradient descent; the loss before each."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(clips), labels))
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach()

def make_training_set():
    torch.manual_seed(SEED)
    return (
        tiny("divided", depth=1).double().train(),
        randn(4, *VIDEO[1:]),
        torch.tensor([0, 4, 2, 1]))

def train_half(rank, folder):
    """What one of two processes does, with its half of the batch: gradients averaged with the
    other's, and then once more in bfloat16 with the parameters of each block sharded over both."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=2))
    model, clips, labels = make_training_set()
    half = slice(2 * rank, 2 * rank + 2)
    train(nn.parallel.DistributedDataParallel(model), clips[half], labels[half])
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model, clips, labels = make_training_set()
    model, clips = model.float(), clips.float()
    halves = dict(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options = dict(mesh=init_device_mesh("cpu", (2,)), mp_policy=MixedPrecisionPolicy(**halves))
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    losses = train(model, clips[half], labels[half])
    weights = {key: x.full_tensor() for key, x in model.state_dict().items()}
    torch.save(dict(losses=losses, weights=weights), f"{folder}/sharded{rank}.pt")
    torch.distributed.destroy_process_group()

@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of what a new process, rank 0, and this one have trained together."""
    folder = tmp_path_factory.mktemp("two_processes")
    other = torch.multiprocessing.spawn(train_half, (str(folder),), join=False)
    train_half(1, folder)
    other.join()
    return folder

class TestTraining:
    def test_two_processes_train_as_one(self, two_processes):
        model, clips, labels = make_training_set()
        train(model, clips, labels)
        for rank in (0, 1):
            weights = torch.load(two_processes / f"{rank}.pt", weights_only=True)
            for key, value in model.state_dict().items():
                same(weights[key], value)

    def test_two_processes_share_the_blocks_in_half_precision(self, two_processes):
        """FSDP2 by block, in bfloat16: to its three digits the losses and weights of one process.
        """
        model, clips, labels = make_training_set()
        expected = train(model, clips, labels)
        found = [
            torch.load(two_processes / f"sharded{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert distance((found[0]["losses"] + found[1]["losses"]) / 2, expected) < 0.02
        for key, value in model.state_dict().items():
            assert torch.equal(found[0]["weights"][key], found[1]["weights"][key])
            same(found[0]["weights"][key].double(), value, 0.02)

    @pytest.mark.parametrize("name", ["joint", "trajectory_orthoformer", "lvt"])
    def test_checkpoint_gives_the_same_gradients(self, name):
        """Also with dropout: what is computed again meets the same random numbers."""
        video, found = torch.randn(SHORT), []
        for checkpoint in (False, True):
            torch.manual_seed(SEED)
            model = short(name, dropout=0.3, drop_path=0.3, checkpoint=checkpoint).train()
            loss = model(video).square().sum()
            found.append(torch.autograd.grad(loss, model.parameters(), allow_unused=True))
        for plain, again in zip(*found):
            if plain is not None:
                same(again, plain, 1e-6)

    def test_checkpoint_runs_each_block_again(self):
        model, calls = tiny("joint", checkpoint=True), []
        for block in model.blocks:
            block.register_forward_pre_hook(lambda *_: calls.append(1))
        model(torch.randn(VIDEO)).sum().backward()
        assert len(calls) == 2  # in eval each runs once
        model.train()(torch.randn(VIDEO)).sum().backward()
        assert len(calls) == 2 + 4

# ==== TOKENS ======================================================================================

class TestTokens:
    def test_a_patch_is_a_linear_layer_on_its_pixels(self):
        patches = va.PatchEmbedding((3, 4, 8), 10).double()
        video = randn(2, 3, 6, 12, 24)
        tokens, grid = patches(video)
        assert grid == (2, 3, 3) and tokens.shape == (2, 18, 10)
        for n, (t, y, x) in enumerate(patches_of(grid)):
            pixels = video[:, :, 3 * t : 3 * t + 3, 4 * y : 4 * y + 4, 8 * x : 8 * x + 8].flatten(1)
            same(tokens[:, n], pixels @ patches.proj.weight.flatten(1).T + patches.proj.bias)

    def test_a_new_projection_brings_its_channels(self):
        """Depth or infrared: the layer is replaced, and with it what a video has to have."""
        model = tiny("space")
        model.patches.proj = nn.Conv3d(4, 24, (1, 8, 8), stride=(1, 8, 8))
        assert model(torch.randn(1, 4, 6, 24, 40)).shape == (1, 5)
        with pytest.raises(ValueError, match="'channels': 4"):
            model(torch.randn(1, 3, 6, 24, 40))

    def test_overlapping_patches(self):
        """LVT's: 16 x 16 every 14 pixels with 8 zeros around make 17 x 17 of a 224 x 224 frame,
        normed."""
        patches = va.PatchEmbedding((1, 16, 16), 10, stride=(1, 14, 14))
        assert patches.grid((16, 224, 224)) == (16, 17, 17)
        for sizes, expected in (((2, 40, 56), (2, 3, 5)), ((2, 41, 50), (2, 3, 4))):
            tokens, grid = patches(torch.randn(1, 3, *sizes))
            assert grid == patches.grid(sizes) == expected
            same(tokens.mean(-1), torch.zeros(1, math.prod(grid)), 1e-5)
            same(tokens.var(-1, unbiased=False), torch.ones(1, math.prod(grid)), 1e-2)

    @pytest.mark.parametrize("size", [8, 8.0, np.int64(8), (8, 8), [1, 8, 8], np.array([1, 8, 8])])
    def test_sizes_in_any_form(self, size):
        assert va.PatchEmbedding(size, 6).patch_size == (1, 8, 8)
        assert va.PatchEmbedding((2, 8, 4), 6).patch_size == (2, 8, 4)
        assert va.PatchEmbedding((8, 4), 6).patch_size == (1, 8, 4)

    @pytest.mark.parametrize("kind", ["none", "space", "time", "separate", "joint"])
    @pytest.mark.parametrize("class_token", ["none", "clip", "frame"])
    def test_position_of_every_token(self, kind, class_token):
        T, H, W = GRID
        position = va.PositionEmbedding(kind, GRID, 8, class_token).double()
        for table in position.parameters():
            nn.init.normal_(table)
        C, nothing = class_tokens_of(class_token, GRID), torch.zeros(8).double()
        out = position(torch.zeros(2, C + T * H * W, 8).double(), GRID)[0]
        for n, (t, y, x) in enumerate(patches_of(GRID)):
            expected = nothing
            if kind in ("space", "separate"):
                expected = expected + position.space[0, y * W + x]
            if kind == "joint":
                expected = expected + position.joint[0, n]
            if kind in ("time", "separate"):
                expected = expected + position.time[0, t]
            same(out[C + n], expected)
        for t in range(C):
            expected = nothing if kind in ("none", "time") else position.for_class[0, 0]
            if class_token == "frame" and kind in ("time", "separate"):
                expected = expected + position.time[0, t]
            same(out[t], expected)

    def test_embeddings_are_resized(self):
        """Linear in time and bicubic in space: away from the edges a steady slope stays one, at
        half the step."""
        ramp = torch.arange(8.0).view(1, 8, 1)
        finer = va.resize_positions(ramp, (8,), (16,)).flatten()[1:-1]
        same(finer.diff(), torch.full((13,), 0.5), 1e-6)
        plane = (10 * torch.arange(9.0).view(9, 1) + torch.arange(12.0)).view(1, 108, 1)
        finer = va.resize_positions(plane, (9, 12), (18, 24)).view(18, 24)[6:-6, 6:-6]
        same(finer[2:] - finer[:-2], torch.full((4, 12), 10.0), 1e-4)
        same(finer[:, 2:] - finer[:, :-2], torch.full((6, 10), 1.0), 1e-4)
        assert va.resize_positions(ramp, (8,), (8,)) is ramp
        assert not torch.equal(
            va.resize_positions(plane, (9, 12), (12, 9)), plane)  # as many, elsewhere

    def test_bicubic_overshoots(self):
        """Around a single one a bicubic surface dips below zero; a bilinear one never would."""
        one = nn.functional.one_hot(torch.tensor(17), 35).double().view(1, 35, 1)
        assert va.resize_positions(one, (5, 7), (10, 14)).min() < -0.05

    def test_joint_embeddings_are_resized_in_time_and_space(self):
        t, y, x = torch.meshgrid(*(torch.arange(n).double() for n in (6, 7, 9)), indexing="ij")
        table = (100 * t + 10 * y + x).reshape(1, -1, 1)
        finer = va.resize_positions(table, (6, 7, 9), (12, 14, 18)).view(12, 14, 18)[
            4:-4, 4:-4, 4:-4]
        for axis, slope in enumerate((50.0, 5.0, 0.5)):
            step = finer.diff(dim=axis)
            same(step, torch.full_like(step, slope))

    @pytest.mark.parametrize("kind", ["separate", "joint"])
    def test_positions_on_another_grid(self, kind):
        """The class token keeps its embedding, and every table is resized by itself, rows as rows.
        """
        grid = (7, 3, 5)
        position = va.PositionEmbedding(kind, GRID, 8, "clip").double()
        for table in position.parameters():
            nn.init.normal_(table)
        out = position(torch.zeros(1, 1 + math.prod(grid), 8).double(), grid)
        if kind == "joint":
            expected = va.resize_positions(position.joint, GRID, grid)
        else:
            space = va.resize_positions(position.space, GRID[1:], grid[1:]).view(1, 1, 3, 5, 8)
            time = va.resize_positions(position.time, GRID[:1], grid[:1]).view(1, 7, 1, 1, 8)
            expected = (space + time).flatten(1, 3)
        same(out[:, 1:], expected)
        same(out[:, :1], position.for_class)

    def test_positions_break_the_symmetry(self):
        """Without them the model cannot tell when a patch is: reversed frames give the same answer.
        """
        video = randn(*VIDEO)
        for kind, told in (("none", False), ("space", False), ("separate", True), ("joint", True)):
            model = tiny("joint", position=kind).double()
            if model.position.time is not None:
                nn.init.normal_(model.position.time)
            assert ((model(video) - model(video.flip(2))).abs().max() > 1e-6) == told

    @pytest.mark.parametrize("shape, message", [
        ((2, 6, 3, 16, 24), r"2, 6, 3, 16, 24.*'channels': 3"),
        ((3, 6, 16, 24), r"channels.*height, width"),
        ((2, 3, 5, 16, 24), r"\(5, 16, 24\) must divide into patches .*\(2, 8, 8\)"),
        ((2, 3, 6, 20, 24), r"\(6, 20, 24\) must divide"),
        ((2, 3, 6, 16, 7), r"\(6, 16, 7\) must divide"),
        ((2, 3, 0, 16, 24), "must divide")], ids=str)  # fmt: skip
    def test_a_video_that_does_not_fit_is_named(self, shape, message):
        with pytest.raises(ValueError, match=message):
            tiny("joint", patch_size=(2, 8, 8))(torch.randn(shape))

    @pytest.mark.parametrize("wrong", ["byte", "double", "meta"])
    def test_pixels_of_another_kind_are_named(self, wrong):
        video = torch.zeros(1, 3, 6, 24, 40)
        video = dict(byte=video.byte(), double=video.double(), meta=video.to("meta"))[wrong]
        with pytest.raises(ValueError, match="torch.float32 cpu"):
            tiny("joint")(video)

class TestInitialisation:
    def test_as_published(self):
        model = va.VideoTransformer("divided", dim=192, depth=2, heads=3, num_classes=7)
        same(model.position.time, torch.zeros(1, 8, 192))
        for block in model.blocks:
            same(block.steps[0].extra.weight, torch.zeros(192, 192))
            assert block.steps[1].extra is None
            for weight in (
                block.steps[0].qkv.weight,
                block.steps[1].proj.weight,
                block.mlp.fc1.weight):
                assert 0.0195 < weight.std() < 0.0205 and weight.abs().max() < 2.0
        assert 0.0195 < model.position.space.std() < 0.0205
        for table in (model.class_token, model.position.for_class):
            assert 0.015 < table.std() < 0.025
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not name.startswith("patches"):
                assert parameter.abs().max() == 0, name
            if "norm" in name and name.endswith("weight"):
                assert parameter.min() == parameter.max() == 1, name
        joint = tiny("joint", position="joint", head="temporal")
        assert (
            joint.position.joint.std() > 0.01 and joint.head.temporal.class_token.abs().max() == 0)

    def test_stochastic_depth_keeps_the_mean(self):
        drop, x = va.StochasticDepth(0.3).train(), torch.ones(20_000, 1, 1)
        kept = drop(x).flatten()
        assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
        assert abs(kept.mean() - 1) < 0.03
        assert drop.eval()(x) is x

    def test_stochastic_depth_drops_whole_clips(self):
        for shape in ((64,), (64, 2), (64, 2, 3, 4)):
            kept = va.StochasticDepth(0.5).train()(torch.ones(shape)).reshape(64, -1)
            assert (kept == kept[:, :1]).all() and set(kept.flatten().tolist()) == {0.0, 2.0}

    def test_stochastic_depth_grows_with_depth(self):
        model = tiny("joint", depth=5, drop_path=0.2)
        assert [round(block.drop_path.p, 6) for block in model.blocks] == [
            0.0,
            0.05,
            0.1,
            0.15,
            0.2]

class TestBlock:
    def test_residual_steps_and_mlp(self):
        steps = [va.TimeAttention(D, h), va.SpaceAttention(D, h)]
        block = va.Block(D, iter(steps), va.MLP(D, 50)).double()
        x = expected = randn(B, 1 + math.prod(GRID), D)
        for norm, step in zip(block.norms, steps, strict=True):
            expected = expected + step(norm(expected), GRID)
        expected = expected + block.mlp(block.mlp_norm(expected), GRID)
        same(block(x, GRID), expected)

    def test_depthwise_mlp_attends_to_the_positions_around(self):
        """Channel by channel a 3 x 3 window with zeros around the frame, between the two layers."""
        T, H, W = GRID
        mlp = va.MLP(D, 10, depthwise=True).double()
        x = randn(B, T * H * W, D)
        hidden = mlp.fc1(x).unflatten(1, GRID)
        padded = nn.functional.pad(hidden, (0, 0, 1, 1, 1, 1))
        out = mlp.depthwise.bias.expand_as(hidden).clone()
        for dy, dx in product(range(3), range(3)):
            out = out + padded[:, :, dy : dy + H, dx : dx + W] * mlp.depthwise.weight[:, 0, dy, dx]
        same(mlp(x, GRID), mlp.fc2(nn.functional.gelu(out)).flatten(1, 3))

    def test_stochastic_depth_acts_on_steps_and_mlp(self):
        """When every branch is dropped only the residual is left; in eval nothing is dropped."""
        block = va.Block(D, [va.SpaceAttention(D, h)], va.MLP(D, 50), drop_path=1 - 1e-9).double()
        x = randn(B, math.prod(GRID), D)
        same(block.train()(x, GRID), x)
        assert (block.eval()(x, GRID) - x).abs().max() > 0.01

    def test_dropout_acts_in_its_places(self):
        """Once after the embedding, once per step, twice in every MLP, once in the head."""
        model, calls = tiny("divided", dropout=0.3, head_mlp="gelu"), []
        for module in model.modules():
            if type(module) is nn.Dropout:
                assert module.p == 0.3
                module.register_forward_hook(lambda *_: calls.append(1))
        model(torch.randn(VIDEO))
        assert len(calls) == 1 + 2 * (2 + 2) + 1

    def test_gelu_of_vivit(self):
        mlp, x = va.MLP(D, 50, gelu="tanh").double(), randn(B, 7, D)
        same(mlp(x, (1, 1, 7)), mlp.fc2(nn.functional.gelu(mlp.fc1(x), approximate="tanh")))
        for kind in ("tanh", "none"):
            assert all(
                block.mlp.gelu.approximate == kind for block in tiny("joint", gelu=kind).blocks)

    def test_eps_of_the_norms(self):
        """As in the released code: 1e-6 everywhere, 1e-5 in X-ViT's temporal head."""
        for name, module in tiny("mixing", head="temporal").named_modules():
            if isinstance(module, nn.LayerNorm):
                assert module.eps == (1e-5 if "temporal" in name else 1e-6), name

    def test_sizes_reach_the_blocks(self):
        for block in tiny("lvt", depthwise=True, mlp_ratio=2.5).blocks:
            assert block.mlp.depthwise.groups == block.mlp.fc1.out_features == 60

class TestHeads:
    def test_pools(self):
        tokens = randn(2, 6 + 90, 24)
        for pool, pooled in (("class", tokens[:, :6].mean(1)), ("mean", tokens[:, 6:].mean(1))):
            model = tiny("space", head=pool).double()
            same(model.head(tokens, (6, 3, 5)), model.head.classify(pooled))

    @pytest.mark.parametrize("kind, C", [("clip", 1), ("frame", 6), ("none", 0)])
    def test_what_a_model_without_blocks_gives(self, kind, C):
        """Class tokens, then patches, plus positions, normed: nothing but the embedding."""
        model = tiny("joint", class_token=kind, position="space", depth=0).double()
        video = randn(*VIDEO)
        patches, grid = model.patches(video)
        space = model.position.space.repeat(1, 6, 1)
        class_token = [model.class_token + model.position.for_class] * C if C else []
        tokens = [x.expand(2, 1, 24) for x in class_token] + [patches + space]
        same(model.forward_features(video), model.norm(torch.cat(tokens, dim=1)))

    @pytest.mark.parametrize("depth", [1, 3])
    def test_temporal_attention_head(self, depth):
        """A new class token and the frames in transformer layers, by hand; the order of frames is
        not told."""
        head = va.TemporalAttentionHead(24, 4, depth).double()
        nn.init.normal_(head.class_token)
        frames = randn(2, 7, 24)
        x = torch.cat([head.class_token.expand(2, 1, 24), frames], dim=1)
        assert len(head.blocks) == depth
        for block in head.blocks:
            q, k, v = block.steps[0].project(block.norms[0](x))
            x = x + block.steps[0].proj(exact(q, k, v).transpose(1, 2).flatten(2))
            x = x + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.mlp_norm(x))))
            assert block.steps[0].qkv.bias is None
        same(head(frames), x[:, 0])
        same(head(frames.flip(1)), x[:, 0])

    @pytest.mark.parametrize("frames", [6, 1])
    @pytest.mark.parametrize("name", ["space", "divided", "lvt"])
    def test_temporal_head_with_any_scheme(self, name, frames):
        """Over the frames' class tokens where there are some, else over the means of their patches,
        also of a single frame, beside which one class token for the clip looks like one per frame.
        """
        model, video = (
            tiny(name, head="temporal", head_depth=2).double(),
            randn(2, 3, frames, 24, 40))
        tokens = model.forward_features(video)
        C = tokens.shape[1] - 15 * frames
        pooled = tokens[:, C:].unflatten(1, (frames, 15)).mean(2)
        pooled = tokens[:, :frames] if name == "space" else pooled
        same(model(video), model.head.classify(model.head.temporal(pooled)))

    @pytest.mark.parametrize(
        "class_token, head", [("frame", "class"), ("clip", "mean"), ("none", "mean")])
    def test_norm_after_pooling(self, class_token, head):
        """The mean over tokens comes first, as in TimeSformer's released space-only models."""
        model, video = (
            tiny("joint", class_token=class_token, head=head, norm_after_pool=True).double(),
            randn(*VIDEO))
        nn.init.normal_(model.head.norm.weight), nn.init.normal_(model.head.norm.bias)
        tokens = model.forward_features(video)
        C = tokens.shape[1] - 90
        pooled = (tokens[:, :C] if head == "class" else tokens[:, C:]).mean(1)
        same(model(video), model.head.classify(model.head.norm(pooled)))
        assert model.head.norm.eps == 1e-6 and not any(True for _ in model.norm.parameters())

    @pytest.mark.parametrize("mlp", [None, "tanh", "gelu"])
    def test_classifiers(self, mlp):
        model, x = tiny("joint", head_mlp=mlp, head_hidden=40).double(), randn(2, 24)
        layers = [layer for layer in model.head.classify if isinstance(layer, nn.Linear)]
        assert [layer.in_features for layer in layers] == ([24] if mlp is None else [24, 40])
        expected = layers[-1](x) if mlp is None else None
        if mlp == "tanh":
            expected = layers[1](torch.tanh(layers[0](x)))
        if mlp == "gelu":
            expected = layers[1](nn.functional.gelu(layers[0](nn.functional.layer_norm(x, (24,)))))
            assert isinstance(model.head.classify[-2], nn.Dropout)
        same(model.head.classify(x), expected)
        if mlp is not None:  # as wide as the tokens if nothing is said
            assert tiny("joint", head_mlp=mlp).head.classify[-1].in_features == 24

    def test_tokens_are_normed_last(self):
        features = tiny("joint").double().forward_features(randn(*VIDEO))
        same(features.mean(-1), torch.zeros(2, 91).double())
        same(features.var(-1, unbiased=False), torch.ones(2, 91).double(), 1e-2)

    def test_head_left_out(self):
        for class_token, pool in (("clip", "class"), ("frame", "class"), ("none", "mean")):
            assert tiny("joint", class_token=class_token).config["head"] == pool

class TestOptions:
    """What is wrong is said when the model is built, in numbers, with what would be right."""

    @pytest.mark.parametrize("options, message", [
        (dict(dim=24, heads=5), "dim=24.*heads=5"),
        (dict(position="learned"), "learned.*separate"),
        (dict(class_token="two"), "two"),
        (dict(class_token="none", head="class"), "class_token=.?none"),
        (dict(depthwise=True), "depthwise"),
        (dict(head="max"), "max.*class, mean"),
        (dict(head_mlp="relu"), "relu.*tanh, gelu"),
        (dict(patch_size=(1, 2, 3, 4)), r"1, 2, 3, 4"),
        (dict(patch_size=0), "size=0"),
        (dict(patch_size=8.5), "size=8.5"),
        (dict(drop_path=1.5), "1.5|between 0 and 1"),
        (dict(gelu="exact"), "exact"),
        (dict(patch_stride=9), "9"),
        (dict(num_frames=1, patch_size=(2, 8, 8)), r"2, 8, 8"),
        (dict(num_frames=5, patch_size=(2, 8, 8)), r"2, 8, 8"),
        (dict(image_size=(3, 24, 40)), r"3, 24, 40"),
        (dict(dim=-24), "-24")], ids=str)  # fmt: skip
    def test_constructor(self, options, message):
        known = dict(attention="joint", num_frames=6, image_size=(24, 40), patch_size=8)
        with pytest.raises((ValueError, RuntimeError), match=message):
            va.VideoTransformer(**known | dict(dim=24, depth=2, heads=4) | options)

# ==== PUBLISHED SIZES =============================================================================

# What the official code counts: parameters, those of them that its model never uses, GMACs of one
# view; and the clip. X-ViT's 16-frame model is its 8-frame model.
OFFICIAL_SIZES = {
    "timesformer": (121_566_352, 0, 195.83, (8, 224)),
    "timesformer_hr": (122_024_080, 0, 1702.69, (16, 448)),
    "timesformer_l": (121_633_936, 0, 2379.86, (96, 224)),
    "motionformer": (
        109_144_720,
        590_592,
        369.36,
        (16, 224)),  # unused: the embedding of single frames
    "motionformer_l": (109_150_864, 590_592, 1184.87, (32, 224)),
    "motionformer_hr": (109_144_720, 590_592, 958.41, (16, 336)),
    "xvit": (
        94_098_464,
        307_600,
        140.57,
        (8, 224)),  # unused: a classifier before the temporal head
    "xvit_16": (94_098_464, 307_600, 281.13, (16, 224)),
    "lvt": (52_008_540, 89_262, 264.67, (16, 224)),  # unused: likewise; 174 classes, all others 400
}
# ViViT's table 2: millions of parameters and GFLOPs of a view of 32 x 224 x 224 with 400 classes.
VIVIT_TABLE_2 = dict(
    vivit=(88.9, 455.2), vivit_2=(115.1, 284.4), vivit_3=(117.3, 372.3), vivit_4=(88.9, 277.1))

@pytest.fixture
def published():
    return importlib.import_module("tiny_data.published")

@cache
def full_size(name):
    """Parameters and GMACs of a preset at full size, without memory or time."""
    preset = importlib.import_module("tiny_data.published").preset
    frames, size = OFFICIAL_SIZES[name][3] if name in OFFICIAL_SIZES else (32, 224)
    with torch.device("meta"):
        model = preset(name, num_classes=174 if name == "lvt" else 400).eval()
        video = torch.empty(1, 3, frames, size, size)
    parameters, blocks, macs = sum(p.numel() for p in model.parameters()), model.blocks, []
    for depth in (1, 2):  # all blocks cost the same
        model.blocks = blocks[:depth]
        macs.append(counted(lambda: model(video)) / 1e9)
    return parameters, macs[0] + (len(blocks) - 1) * (macs[1] - macs[0])

class TestPresets:
    """Models at full size, against the tables of the papers and what their own code counts."""

    table_1 = dict(space=85_932_462, joint=85_938_606, divided=121_392_558, axial=156_846_510)

    @pytest.mark.parametrize("name, count", [*table_1.items(), ("local_global", 121_392_558)])
    def test_parameters_of_timesformers_table_1(self, name, count):
        """ViT-B at 8 x 224 x 224 with 174 classes: 85.9, 85.9, 121.4, 121.4 and 156.8 million."""
        with torch.device("meta"):
            position = "space" if name == "space" else "separate"
            model = va.VideoTransformer(
                name, num_classes=174, position=position, class_token="clip")
        assert sum(p.numel() for p in model.parameters()) == count

    def test_every_preset_is_counted(self, published):
        assert set(published.PRESETS) == set(OFFICIAL_SIZES) | set(VIVIT_TABLE_2)
        with pytest.raises(ValueError, match="'timesfomer'.*timesformer_hr"):
            published.preset("timesfomer")

    @pytest.mark.parametrize("name", OFFICIAL_SIZES)
    def test_parameters_are_the_official_ones(self, name):
        """All of them, once what a release carries and never uses is set aside."""
        official, unused, _, _ = OFFICIAL_SIZES[name]
        assert full_size(name)[0] + unused == official

    @pytest.mark.parametrize("name", ["timesformer", "timesformer_hr", "timesformer_l"])
    def test_timesformer_projects_its_class_token_once(self, name):
        """Officially the class token is copied into T frames before its four projections, here
        after."""
        frames = OFFICIAL_SIZES[name][3][0]
        copies = 12 * (frames - 1) * 4 * 768**2 / 1e9
        assert abs(full_size(name)[1] + copies - OFFICIAL_SIZES[name][2]) < 0.006

    @pytest.mark.parametrize("name", ["motionformer", "motionformer_l", "motionformer_hr"])
    def test_motionformer_in_the_plain_form_and_in_the_fast_one(self, name, monkeypatch):
        """369.4, 1184.9 and 958.4 GMACs as published; 216.5, 529.2 and 614.5 in the fast form."""
        frames, size = OFFICIAL_SIZES[name][3]
        T, N, D = frames // 2, frames // 2 * (size // 16) ** 2, 768
        fast = full_size(name)[1]
        monkeypatch.setattr(va, "attend_along_trajectories_fast", va.attend_along_trajectories)
        plain = full_size.__wrapped__(name)[1]
        assert abs(plain - OFFICIAL_SIZES[name][2]) < 0.006
        saved = 12 * (2 * N * T * D**2 - 2 * N * D**2 - 2 * N * T * D * (12 - 1)) / 1e9
        assert abs(plain - saved - fast) < 1e-6 and fast < 0.65 * plain

    @pytest.mark.parametrize("name", ["xvit", "xvit_16"])
    def test_xvit(self, name):
        assert abs(full_size(name)[1] - OFFICIAL_SIZES[name][2]) < 0.006

    def test_lvt_evaluates_its_gate_once(self):
        """Two savings: the shared gate once, 3*N*d*D in each of 24 attentions, and along time, with
        16 tokens of 64 channels, the weights themselves, 2*N*(d - T)*D in 12; the counter sees the
        denominators, N*D in 24."""
        N, T, d, D = 16 * 17 * 17, 16, 64, 512
        gates, order, denominators = 24 * 3 * N * d * D, 12 * 2 * N * (d - T) * D, 24 * N * D
        here = full_size("lvt")[1]
        assert abs(here + (gates + order - denominators) / 1e9 - OFFICIAL_SIZES["lvt"][2]) < 0.006

    @pytest.mark.parametrize("name", VIVIT_TABLE_2)
    def test_vivits_table_2(self, name):
        """To a tenth of a million parameters and 1.1% of the GFLOPs, which the paper does not
        define; here they are multiply-accumulates of all matrix products."""
        (million, gflops), (parameters, macs) = VIVIT_TABLE_2[name], full_size(name)
        assert abs(parameters / 1e6 - million) < 0.1 and abs(macs - gflops) < 0.011 * gflops

# ==== THE PAPERS' OWN CODE ========================================================================

GOLDEN = Path(os.environ.get("VA_GOLDEN", TINY_DATA / "golden"))
CASES = [
    path
    for path in sorted(GOLDEN.glob("*"))
    if path.is_file() and path.suffix not in (".md", ".txt")]

@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_golden(path, dtype):
    """The same numbers as the official code, block by block; a case that nobody knows is a failure.
    """
    assert "expected" in importlib.import_module("tiny_data.golden_cases").compare(path, dtype)

@pytest.mark.skipif(
    not TINY_DATA.exists() and "VA_GOLDEN" not in os.environ, reason="no tiny_data here")
def test_golden_cases_are_there():
    assert CASES, f"no cases in {GOLDEN}"

# ==== COPYING =====================================================================================

@cache
def definitions():
    """{name: node} of all functions and classes of the file, in its order."""
    tree = ast.parse(SOURCE)
    return {
        node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}

def is_call_of(node, name):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name

def is_check(node):
    """The line @shapes(...) above a function, or a statement require(...)."""
    return is_call_of(node, "shapes") or (
        isinstance(node, ast.Expr) and is_call_of(node.value, "require"))

def without_checks(name):
    """The text of a definition as a copier may take it: lines that only check are deleted."""
    node, lines = definitions()[name], SOURCE.splitlines()
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    checks = [child for child in ast.walk(node) if is_check(child)]
    gone = {n for child in checks for n in range(child.lineno, child.end_lineno + 1)}
    return "\n".join(lines[n - 1] for n in range(first, node.end_lineno + 1) if n not in gone)

def needed_by(*names):
    """The definitions of the file that come along, found in the text without checks and in theirs.
    """
    known, needed, left = definitions().keys(), set(names), list(names)
    while left:
        tree = ast.parse(without_checks(left.pop()))
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & known
        left += used - needed
        needed |= used
    return needed

def copied_with(name):
    """The names after "Copy with" in a docstring, which may go on in the next line."""
    found = re.search(r"^ *Copy with +(\w+(?:,\s+\w+)*)$", vars(va)[name].__doc__, re.M)
    assert found is not None, f"{name}: its docstring has no line Copy with"
    return re.split(r",\s+", found.group(1))

MECHANISMS = [name for name in definitions() if name.endswith("_attention")]

class TestCopying:
    arguments = dict(
        orthoformer_attention="orthogonal_prototypes", performer_attention="orthogonal_projection")

    def test_every_mechanism_has_a_picture_a_cost_a_source_and_a_list(self):
        asked = {questions.mechanism.__name__ for questions in Questions.__subclasses__()}
        assert asked == set(MECHANISMS)
        for name in MECHANISMS:
            for title in ("Cost  ", "Source  ", "Copy with  ", "https://"):
                assert title in vars(va)[name].__doc__, name

    @pytest.mark.parametrize("name", MECHANISMS)
    def test_copy_with_is_exactly_what_is_needed(self, name):
        """What its text needs, and what makes the arguments that are neither tokens nor layers; in
        the order of the file."""
        names = copied_with(name)
        wanted = needed_by(name, self.arguments.get(name, name)) - {name}
        assert set(names) == wanted
        assert names == [known for known in definitions() if known in wanted]

    @pytest.mark.parametrize("name", MECHANISMS)
    def test_the_copied_text_runs_alone(self, name):
        """Without the contract, without checks, and with the imports of the file."""
        imports = [
            node
            for node in ast.parse(SOURCE).body
            if isinstance(node, (ast.Import, ast.ImportFrom))]
        wanted = {name, *copied_with(name)}
        parts = [without_checks(known) for known in definitions() if known in wanted]
        alone = {}
        exec("\n".join([ast.unparse(node) for node in imports] + parts), alone)
        q, k, v = qkv(C=1, heads=4)
        extra = dict(
            orthoformer_attention=lambda: [alone["orthogonal_prototypes"](q, k, 9)],
            performer_attention=lambda: [alone["orthogonal_projection"](13, d).double()],
            trajectory_attention=lambda: linear(4 * d, 4 * d, 4 * d, 8 * d)).get(name, list)()
        same(alone[name](q, k, v, GRID, *extra), vars(va)[name](q, k, v, GRID, *extra), 0)

# ==== COMMENTS THAT ARE EXECUTED ==================================================================

def shape_comments(source):
    """{line: (statement, shape)} for all statements of a text that end in a comment like  # (B, h,
    N, d)"""
    comments = {}
    for n, line in enumerate(source.splitlines(), 1):
        found = re.search(
            r"\S.*  # (?:each )?(\((?:[^()]|\([^()]*\))*,(?:[^()]|\([^()]*\))*\))", line
        )
        if found:
            comments[n] = found.group(1)
    inside = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    nodes = {
        node
        for one in inside
        for node in ast.walk(one)
        if isinstance(node, (ast.Assign, ast.Return))}
    return {
        node.lineno: (node, comments[node.end_lineno])
        for node in nodes
        if node.end_lineno in comments}

class Letters(dict):
    """What the letters of a comment are: local names of the function, those of its contract, and
    those of what has called it. A letter that is still new has the size that fits where it first
    stands."""

    def __init__(self, frame, contract, outside):
        super().__init__(frame.f_locals)
        for name, axes in contract:
            shape = getattr(frame.f_locals.get(name), "shape", ())
            named = axes[1:] if axes[0] == "..." else axes
            for axis, size in zip(reversed(named), reversed(shape)):
                self.setdefault(axis, size)
        N, grid = self.get("C + T*S", self.get("T*S")), self.get("grid")
        if grid is not None and N is not None:
            for letter, size in zip("THWSNC", (*grid, grid[1] * grid[2], N, N - math.prod(grid))):
                self.setdefault(letter, size)
        elif "T" in self and N is not None:
            self.setdefault("S", N // self["T"])
        for letter in "BTHWSDhdPM":
            if letter in outside:
                self.setdefault(letter, outside[letter])

    def value(self, axis, size):
        """What an axis such as C + T*S is in numbers, found for a tensor whose axis has this size.
        """
        new = sorted(set(re.findall(r"[A-Za-z_]+", axis)) - self.keys() - {"min", "len"})
        sizes = [{}] if not new else [{new[0]: n} for n in range(size + 1)]
        values = {eval(axis, {"min": min, "len": len}, self | guess): guess for guess in sizes}
        if len(new) == 1 and size in values:
            self.update(values[size])
            return size
        return next(iter(values)) if not new else None

class ShapeChecker:
    """Traces every call into the file and compares each shape comment with what its line has made.

    Every comment is also read with two letters swapped; the lines found wrong then are `noticed`.
    """

    swaps = [("T", "S"), ("T", "h"), ("h", "B")]

    def __init__(self):
        self.comments = shape_comments(SOURCE)
        self.swapped = {swap: self.with_swapped(*swap) for swap in self.swaps}
        self.noticed = {swap: set() for swap in self.swaps}
        self.reached, self.wrong, self.contracts, self.letters = set(), set(), {}, {}
        nodes = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)]
        for node in nodes:
            contracts = [
                call.args[0].value for call in node.decorator_list if is_call_of(call, "shapes")]
            lists = [re.findall(r"((?:\w+, )*\w+) \(([^)]*)\)", text) for text in contracts]
            pairs = [(name, axes.split(", ")) for found in lists for names, axes in found
                     for name in names.split(", ")]  # fmt: skip
            self.contracts[node.name, node.body[0].lineno] = pairs

    def with_swapped(self, a, b):
        """{line: comment} of the comments that name both letters, each in the other's place."""
        swap = lambda found: b if found.group() == a else a
        return {line: re.sub(rf"\b({a}|{b})\b", swap, comment)
                for line, (_, comment) in self.comments.items()
                if {a, b} <= set(re.findall(r"\w+", comment))
                and "T*S" not in comment and "B*T" not in comment}  # fmt: skip

    def __call__(self, frame, event, argument):
        inside = frame.f_code.co_filename == str(va.__file__)
        return self.trace(frame) if inside and not frame.f_code.co_name.startswith("<") else None

    def trace(self, frame):
        code = frame.f_code
        lines = [line for _, _, line in code.co_lines() if line and line > code.co_firstlineno]
        pairs = [found for (name, line), found in self.contracts.items()
                 if name == code.co_name and code.co_firstlineno <= line <= min(lines)]  # fmt: skip
        outside, up = {}, frame.f_back
        while up is not None and not outside:
            outside, up = self.letters.get(up, {}), up.f_back
        letters = self.letters[frame] = Letters(frame, pairs[0] if pairs else [], outside)
        last = None

        def step(frame, event, argument):
            nonlocal last
            if event in ("line", "return"):
                letters.update(frame.f_locals)
                for x in self.made_by(last, frame, argument if event == "return" else None):
                    self.reached.add(last)
                    self.compare(last, x, letters)
            if event == "return":
                del self.letters[frame]
            last = frame.f_lineno if event == "line" else None
            return step

        return step

    def made_by(self, line, frame, returned):
        """The tensors that a commented assignment or return has just made; none if it raised."""
        if line not in self.comments:
            return []
        statement, made = self.comments[line][0], [returned]
        if isinstance(statement, ast.Assign):
            stored = [node for target in statement.targets for node in ast.walk(target)]
            made = [frame.f_locals.get(node.id) for node in stored if isinstance(node, ast.Name)]
        made = [x for some in made for x in (some if isinstance(some, (list, tuple)) else [some])]
        return [x for x in made if isinstance(x, torch.Tensor)]

    def compare(self, line, x, letters):
        """One tensor with the comment of the line that has made it; what is wrong is kept."""
        comment = self.comments[line][1]
        expected = self.sizes(comment, x, letters)
        if expected is not None:
            self.wrong.add(f"line {line}: # {comment} is {expected}, the tensor {tuple(x.shape)}")
        for swap, comments in self.swapped.items():
            if line in comments and self.sizes(comments[line], x, copy.copy(letters)) is not None:
                self.noticed[swap].add(line)

    def sizes(self, comment, x, letters):
        """What a comment says of a tensor's sizes, if that is wrong."""
        shape = tuple(x.shape)
        axes = [axis.strip() for axis in comment[1:-1].split(",") if axis.strip()]
        if axes[0] == "...":
            axes, shape = axes[1:], shape[len(shape) - len(axes) + 1 :]
        expected = tuple(letters.value(axis, size) for axis, size in zip(axes, shape))
        return None if len(axes) == len(shape) and expected == shape else expected

    def run(self):
        torch.manual_seed(SEED)
        models = [tiny(name, head="temporal") for name in SCHEMES]
        pooled = [partial(va.PooledAttention, pool_queries=True)]
        models += [
            tiny(pooled, head="mean"),
            tiny("space", class_token="clip", patch_size=(2, 4, 8), dim=40)]
        models += [tiny("local_global", class_token="none", head="mean")]
        models += [tiny([partial(va.OrthoformerAttention, prototypes=5, choose=choose)])
                   for choose in TestPrototypes.choices]  # fmt: skip
        plain = tiny("trajectory")
        for block in plain.blocks:
            block.steps[0].proj_kv.register_forward_hook(lambda *_: None)
        q, k, v = qkv()
        sys.settrace(self)
        try:
            for model in [*models, plain]:
                model(torch.randn(1, 3, 6, 24, 40))
            va.attend(q, k, v, return_weights=True)
            va.orthogonal_projection(13, d)
        finally:
            sys.settrace(None)

@pytest.fixture(scope="module")
def checker():
    checker = ShapeChecker()
    checker.run()
    return checker

class TestShapeComments:
    def test_every_comment_is_true_and_reached(self, checker):
        assert len(checker.comments) > 40
        assert not checker.wrong, "\n".join(sorted(checker.wrong))
        unreached = sorted(set(checker.comments) - checker.reached)
        assert not unreached, f"no run reached the comments of lines {unreached}"

    @pytest.mark.parametrize("a, b", ShapeChecker.swaps)
    def test_a_false_comment_is_found(self, checker, a, b):
        """Swapping two letters in any comment that names both is noticed."""
        assert checker.swapped[a, b] and checker.noticed[a, b] == set(checker.swapped[a, b])

# ==== THE FILE ====================================================================================

def lines_of_code(node):
    """The lines of a definition's body without its docstring, comments and empty lines."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    text = SOURCE.splitlines()[body[0].lineno - 1 : node.end_lineno] if body else []
    return [line for line in text if line.strip() and not line.strip().startswith("#")]

class TestFile:
    """What a visitor finds."""

    def test_under_1500_lines_of_100_columns(self):
        lines = SOURCE.splitlines()
        assert len(lines) < 1500
        assert [n for n, line in enumerate(lines, 1) if len(line) > 100] == []

    def test_no_function_over_25_lines(self):
        functions = [
            node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)]
        long = {node.name: len(lines_of_code(node)) for node in functions}
        assert {name: count for name, count in long.items() if count > 25} == {}

    def test_at_most_60_lines_of_checking(self):
        """The contract, and each line elsewhere that does nothing but check or raise."""
        first, last = (
            SOURCE[: SOURCE.index(bar)].count("\n") for bar in ("# ==== CONTRACT", "# ==== SOFTMAX")
        )
        contract = [node for name, node in definitions().items()
                    if first < node.lineno < last and name != "in_float32"]  # fmt: skip
        count = sum(1 + len(lines_of_code(node)) for node in contract)
        inside = range(first, last)
        for node in ast.walk(ast.parse(SOURCE)):
            checks = (
                isinstance(node, (ast.Raise, ast.Assert))
                or is_check(node)
                and isinstance(node, ast.Expr))
            checks = checks or isinstance(node, ast.Expr) and is_call_of(node.value, "check_input")
            if checks and node.lineno not in inside:
                count += node.end_lineno - node.lineno + 1
        assert count <= 60, f"{count} lines"

    def test_at_most_one_check_before_the_idea(self):
        """In a mechanism: no more than one statement that only checks."""
        for name in MECHANISMS:
            checks = [node for node in ast.walk(definitions()[name]) if is_check(node)]
            assert sum(isinstance(node, ast.Expr) for node in checks) <= 1, name

    def test_contents_name_what_is_there(self):
        """Every bar of the file is in its table of contents, in order."""
        bars = re.findall(r"^# ==== ([A-Z][A-Z -]+[A-Z])", SOURCE, re.M)
        contents, at = va.__doc__[va.__doc__.index("CONTENTS") :], 0
        for bar in bars:
            at = contents.index(bar, at) + len(bar)

    def test_importing_says_and_does_nothing(self):
        code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='video_attention')"
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, va.__file__], capture_output=True)
        assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")

    def test_imports_go_one_way(self):
        """The file imports torch, numpy, einops and the standard library; no two modules import
        each other."""
        paths = [Path(va.__file__), *TINY_DATA.glob("*.py")]
        names = {
            path: path.stem if path.parent != TINY_DATA else f"tiny_data.{path.stem}"
            for path in paths}
        imports = {name: self.imported_by(path) for path, name in names.items()}
        allowed = sys.stdlib_module_names | {"torch", "numpy", "einops"}
        own = {name.split(".")[0] for name in self.imported_by(Path(va.__file__))}
        assert own <= allowed and "__main__" not in SOURCE
        reach = {name: set(found) & set(names.values()) for name, found in imports.items()}
        for _ in names:
            reach = {a: found.union(*(reach[b] for b in found)) for a, found in reach.items()}
        assert [name for name, found in reach.items() if name in found] == []

    def imported_by(self, path):
        """The modules that a file imports, also inside functions."""
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            if isinstance(node, ast.ImportFrom):
                module = ".".join(filter(None, ["tiny_data" if node.level else None, node.module]))
                found |= {module, *(f"{module}.{name.name}" for name in node.names)}
        return found

    @every_scheme
    def test_at_most_four_definitions_between_the_table_and_attend(self, name):
        """Counted where it runs: the definitions of the file on the way into the attention
        function."""
        ways, model = [], [step(24, 4).eval() for step in SCHEMES[name]]

        def trace(frame, event, argument):
            inside = frame.f_code.co_filename == str(va.__file__)
            if inside and frame.f_code.co_name in ("attend", "attend_linearly"):
                way, up = [], frame.f_back
                while up.f_code.co_name != "forward":
                    if up.f_code.co_filename == str(va.__file__):
                        way.append(self.definition_at(up.f_code.co_firstlineno))
                    up = up.f_back
                classes = {
                    one for one in way if one[0].isupper()}  # a class and what it inherits are one
                ways.append({*way} - {"shapes", "in_float32"} - {*sorted(classes)[1:]})

        sys.settrace(trace)
        try:
            for step in model:
                step(torch.randn(1, 90, 24), (6, 3, 5))
        finally:
            sys.settrace(None)
        assert ways and max(len(way) for way in ways) <= 4, max(ways, key=len)

    def definition_at(self, line):
        return next(
            name
            for name, node in definitions().items()
            if min([node.lineno, *(x.lineno for x in node.decorator_list)])
            <= line
            <= node.end_lineno)

    sizes = dict(
        B={2}, T={6}, H={3}, W={5}, S={15}, D={40}, d={10}, K={7}, C={0, 1, 6}, N={90, 91, 96})
    sizes |= dict(h={4, 2})  # of model 4 each half attends by itself

    @every_scheme
    def test_a_letter_means_one_thing(self, name):
        """Whatever is called B, T, H, ... in any function of the file is what the notation says."""
        wrong, model = set(), tiny(name, dim=40, num_classes=7, depth=1, patch_size=8)

        def trace(frame, event, argument):
            if frame.f_code.co_filename != str(va.__file__):
                return None
            if event == "return":
                for letter, sizes in self.sizes.items():
                    size = frame.f_locals.get(letter)
                    elsewhere = frame.f_code.co_name in (
                        "check_shapes",
                        "segment_means")  # of any tokens
                    if isinstance(size, int) and size not in sizes and not elsewhere:
                        wrong.add(f"{letter} = {size} in {frame.f_code.co_name}")
            return trace

        sys.settrace(trace)
        try:
            model(torch.randn(2, 3, 6, 24, 40))
        finally:
            sys.settrace(None)
        assert not wrong
