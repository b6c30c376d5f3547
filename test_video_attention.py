"""The proof of video_attention.py, and a second explanation of the papers.

    pytest                                          everything
    pytest -k TestTrajectory                        one mechanism
    VIDEO_ATTENTION=student.py pytest -k TestSpace  the same questions, put to another file
    VA_SEED=1 pytest                                with other random numbers
    VA_GOLDEN=folder pytest -k golden               with other cases of the papers' own code
    VA_COMPILE=inductor pytest -k compiles          also build what is traced

Every mechanism answers the same Questions. Does it equal its ORACLE, the sentence of the paper in
plain loops over (t, y, x), in values and in gradients? Does a patch ATTEND TO exactly the patches
of the paper, found by gradients? Does it COST what its docstring says, counted by torch? Does it
stay finite in half precision? Then come its LIMITS: what it should be where its window is empty or
everything. All is in float64, and every size differs from every other, so that a swapped axis
cannot hide.
"""

import ast
import copy
import gc
import importlib
import importlib.util
import inspect
import json
import math
import os
import pickle
import re
import sys
from functools import cache, partial
from itertools import product
from pathlib import Path
from unittest import mock

import einops
import pytest
import torch
import torch.nn as nn
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
SEED = int(os.environ.get("VA_SEED", 0))
torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other
gc.set_threshold(100_000, 50, 100)  # tracing makes millions of small objects, few of them garbage


class Missing:
    """Stands for what the file under test does not define, so that the rest can be tested."""

    def __init__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.name = self.__name__ = name

    def __call__(self, *args, **options):
        pytest.fail(f"{va.__file__} does not define {self.name}", pytrace=False)


sys.path.insert(0, str(HERE))
SUBJECT = os.environ.get("VIDEO_ATTENTION", HERE / "video_attention.py")
spec = importlib.util.spec_from_file_location("video_attention", SUBJECT)
sys.modules["video_attention"] = va = importlib.util.module_from_spec(spec)
spec.loader.exec_module(va)
va.__getattr__ = Missing  # asked for what the file does not define
SOURCE = Path(va.__file__).read_text()

# ==== TOOLS =======================================================================================

B, h, d = 2, 3, 6  # clips, heads, width of a head
D = h * d
GRID = (5, 4, 7)  # (T, H, W): no two sizes in this file are equal
GRIDS = [GRID, (5, 3, 7), (1, 4, 7), (5, 1, 1), (1, 1, 1)]  # odd sides, one frame, one patch
SMALL = (5, 2, 3)
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(SEED)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def qkv(grid=GRID, C=0, heads=h):
    return [randn(B, heads, C + math.prod(grid), d) for _ in range(3)]


def class_tokens_of(kind, grid):
    """C; a class token and two registers where they fill no row."""
    registers = 3 if grid[0] * min(grid[1:]) > 3 else 0
    return {"none": 0, "clip": 1, "frame": grid[0], "registers": registers}[kind]


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
    where = [int(i) for i in torch.unravel_index(difference.argmax(), shapes[0])]
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


def picture(patches, grid, query, mark=lambda patch: "#"):
    """The character picture of a docstring."""
    T, H, W = grid
    marks = {patch: mark(patch) for patch in patches} | {query: "Q"}
    lines = ["  ".join(f"t={t}".ljust(W) for t in range(T)).rstrip()]
    for y in range(H):
        rows = ["".join(marks.get((t, y, x), ".") for x in range(W)) for t in range(T)]
        lines.append("  ".join(rows))
    return "\n".join(" " * 8 + line for line in lines)


def formula(function, title="Cost"):
    """The formula in a docstring after a title such as Cost."""
    found = re.search(rf"^ *{title}  +(\S.*?)(?:  .*)?$", function.__doc__ or "", re.M)
    assert found is not None, f"{function.__name__}: its docstring has no line {title}"
    return found.group(1)


def evaluated(text, **sizes):
    """A cost formula in numbers."""
    return eval(text, {"min": min, "max": max} | sizes)


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


# Small models of every scheme. Few prototypes, landmarks and features, in proportion to the clips.

VIDEO = (2, 3, 6, 24, 40)  # with patches of 8 a grid of 6 x 3 x 5
SHORT = (2, 3, 3, 16, 24)  # a grid of 3 x 2 x 3, for what takes long
FEW = {"trajectory_nystrom": {"first_stage": partial(va.nystrom_per_frame, landmarks=7)}}
FEW |= {"orthoformer": {"prototypes": 5}, "performer": {"features": 9}, "nystrom": {"landmarks": 7}}
SCHEMES = {}
for scheme, steps in vars(va).get("ATTENTION", {}).items():
    options = next((options for word, options in FEW.items() if word in scheme), {})
    SCHEMES[scheme] = [partial(step, **options) for step in steps]
every_scheme = pytest.mark.parametrize("name", SCHEMES)


def tiny(attention, **options):
    """A model that takes VIDEO, in eval, with few prototypes, landmarks and features."""
    sizes = {"num_frames": 6, "image_size": (24, 40), "patch_size": 8, "dim": 24, "depth": 2}
    sizes |= {"num_classes": 5, "heads": 4, "position": "separate"}
    with mock.patch.dict(vars(va).get("ATTENTION", {}), SCHEMES):
        return va.VideoTransformer(attention, **sizes | options).eval()


def short(attention, **options):
    """One block for SHORT."""
    return tiny(attention, **{"depth": 1, "num_frames": 3, "image_size": (16, 24)} | options)


# ==== THE QUESTIONS: the same for every mechanism =================================================
def softmax_mean(q, keys, values):
    """One query (..., d), keys and values (..., J, d) -> (..., d), by the definition."""
    scores = (q[..., None, :] * keys).sum(-1) / q.shape[-1] ** 0.5
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights[..., None] * values).sum(-2)


def exact(q, keys, values):
    """Queries (..., I, d), one after the other."""
    return torch.stack([softmax_mean(one, keys, values) for one in q.unbind(-2)], dim=-2)


def attend_to(lists, q, k, v):
    """Token i becomes the mean of what it finds in each list of keys in lists[i], or zeros."""
    out = []
    for i, keys in enumerate(lists):
        found = [softmax_mean(q[:, :, i], k[:, :, one], v[:, :, one]) for one in keys]
        out.append(sum(found) / len(found) if found else torch.zeros_like(v[:, :, i]))
    return torch.stack(out, dim=2)


class Questions:
    """A mechanism says what it is called and what its oracle is, the sentence of its paper."""

    mechanism = None  # the function, whose docstring has the picture and the cost
    module = None  # its own class of Attention, if it has one
    options, built = {}, {}  # of the mechanism, and of its module alone
    reach = ({},)  # more options of the module, each of which must reach the mechanism
    class_tokens = ("none", "clip", "frame", "registers")  # with which it is asked
    heads = h
    cost, cost_grids = "Cost", [(2, 4, 6), (6, 8, 10), (4, 2, 14)]
    sizes = {}  # what the formula of its cost names beside the grid
    drawn = True  # whether the picture is of these options
    mark = lambda self, patch: "#"  # in it, where the query is (1, 1, 2)
    turns = True  # whether rotary positions turn q and k before the mechanism

    def call(self, q, k, v, grid, **options):
        return type(self).mechanism(q, k, v, grid, **self.options | options)

    def step(self, dim, heads, **options):
        options = self.built | self.options | options
        if self.module is not None:
            return self.module(dim, heads, **options)
        return va.Attention(dim, heads, type(self).mechanism, **options)

    def added(self, module):
        """What the oracle needs from the module: layers, random features, ..."""
        return {}

    @pytest.mark.parametrize("grid", GRIDS, ids=str)
    def test_equals_oracle(self, grid):
        for kind in self.class_tokens:
            forms = [partial(form, grid=grid) for form in (self.call, self.oracle)]
            same_gradients(*forms, qkv(grid, class_tokens_of(kind, grid), self.heads))

    def test_attends_to_what_the_paper_says(self):
        """The oracle takes values of these patches; the picture shows them, without one all."""
        text = re.sub(r" +$", "", type(self).mechanism.__doc__, flags=re.M)
        module = self.step(self.heads * d, self.heads).double()
        for grid, query in product((GRID, (4, 4, 6)), ((0, 0, 0), (1, 1, 2), (3, 3, 5))):
            (q, k, v), patches = qkv(grid, heads=self.heads), patches_of(grid)
            n, x = patches.index(query), randn(1, len(patches), self.heads * d).requires_grad_()
            (gradient,) = torch.autograd.grad(module(x, grid)[:, n].sum(), x)
            found = {one for n, one in enumerate(patches) if gradient[0, n].abs().sum() > 1e-14}
            v.requires_grad_()
            (gradient,) = torch.autograd.grad(self.oracle(q, k, v, grid)[:, :, n].sum(), v)
            expected = {one for n, one in enumerate(patches) if gradient[:, :, n].any()}
            assert picture(found, grid, query) == picture(expected, grid, query)
            if self.drawn and (grid, query) == ((4, 4, 6), (1, 1, 2)):
                computed = picture(found, grid, query, self.mark)
                drawn = computed in text if "t=0" in text else found == set(patches)
                assert drawn, f"computed:\n{computed}"

    def test_costs_what_the_docstring_says(self):
        for grid, kind in product(self.cost_grids if self.cost else [], self.class_tokens):
            text, C = formula(type(self).mechanism, self.cost), class_tokens_of(kind, grid)
            (T, H, W), D = grid, self.heads * d
            sizes = {"T": T, "H": H, "W": W, "S": H * W, "C": C, "c": 1 if C == T else C}
            sizes |= {"D": D, "h": self.heads, "d": d} | self.sizes
            q, k, v = on_meta(*[(1, self.heads, C + T * H * W, d)] * 3)
            macs, stated = counted(lambda: self.call(q, k, v, grid)), evaluated(text, **sizes)
            assert macs == stated, f"{text} = {stated}, counted {macs}, {grid=}, {C=}"

    def test_clips_of_a_batch_do_not_meet(self):
        q, k, v = qkv(heads=self.heads)
        alone = [self.call(q[i : i + 1], k[i : i + 1], v[i : i + 1], GRID) for i in range(B)]
        same(self.call(q, k, v, GRID), torch.cat(alone))
        assert self.call(q[:0], k[:0], v[:0], GRID).shape == q[:0].shape

    @HALVES
    def test_half_precision(self, dtype):
        """Close; and no NaN of large inputs: scores of 64 products are divided by sqrt(d) before
        float16 ends, or are float32."""
        module, x = self.step(self.heads * d, self.heads), torch.randn(B, 140, self.heads * d)
        expected = module(x, GRID)
        assert distance(module.to(dtype)(x.to(dtype), GRID).float(), expected) < 0.05
        module = self.step(64 * self.heads, self.heads).to(dtype)
        for scale in (150, 400):
            x = scale * torch.randn(B, 140, 64 * self.heads)
            assert module(x.to(dtype), GRID).isfinite().all()

    @pytest.mark.parametrize("zero_init", ["proj", "extra"])
    def test_zero_init_starts_as_nothing_and_wakes_up(self, zero_init):
        """And the options that all mechanisms share are handed on."""
        options = {"qkv_bias": False, "dropout": 0.25, "zero_init": zero_init}
        module = self.step(self.heads * d, self.heads, **options).double()
        assert module.dropout.p == 0.25 and module.qkv.bias is None
        out = module(randn(2, 140, self.heads * d), GRID)
        same(out, torch.zeros_like(out), 0)
        out.sum().backward()
        assert getattr(module, zero_init).bias.grad.abs().min() > 0

    def test_module_is_the_mechanism_between_its_projections(self):
        """Rows of qkv are those of q, then k, then v, in each head by head; proj reads head by
        head. Options reach the mechanism, rotary positions turn q and k, an extra layer comes last.
        A class token that takes no part gets zeros, past all biases."""
        D, kinds = self.heads * d, self.class_tokens
        for i, options in enumerate([*self.reach, {"zero_init": "extra"}, {"rotary": 50}]):
            C = class_tokens_of(kinds[i % len(kinds)], SMALL)
            module = self.step(D, self.heads, **options).double()
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
            x = randn(B, C + math.prod(SMALL), D)
            rows, biases = module.qkv.weight.view(3, D, D), module.qkv.bias.view(3, D)
            q, k, v = (x @ w.T + b for w, b in zip(rows, biases))
            q, k, v = (y.unflatten(2, (self.heads, d)).transpose(1, 2) for y in (q, k, v))
            if self.turns and "rotary" in options:
                q, k = (rotated_by_hand(y, SMALL, 50) for y in (q, k))
            beside = ("zero_init", "rotary") if self.turns else ("zero_init",)
            told = {key: x for key, x in (self.options | options).items() if key not in beside}
            out = self.oracle(q, k, v, SMALL, **told | self.added(module))
            out = out.transpose(1, 2).flatten(2) @ module.proj.weight.T + module.proj.bias
            expected = module.extra(out)
            if module.skips_class_token:
                expected[:, :C] = 0
            same(module(x, SMALL), expected)


class InGroups(Questions):
    """Patches with the same group(grid, t, y, x) attend to each other and to the class token:
    that of the clip joins every group, one of a frame those of its frame."""

    def oracle(self, q, k, v, grid, **options):
        C, members = q.shape[2] - math.prod(grid), {}
        for n, (t, y, x) in enumerate(patches_of(grid)):
            members.setdefault(self.group(grid, t, y, x, **options), []).append((t, C + n))
        lists = [[] for _ in range(q.shape[2])]
        for patches in members.values():
            frames = {t for t, n in patches}
            tokens = [c for c in range(C) if C != grid[0] or c in frames]
            tokens += [n for t, n in patches]
            for i in tokens:
                lists[i].append(tokens)
        return attend_to(lists, q, k, v)


# ==== SOFTMAX ATTENTION, MODULE, JOINT ============================================================
class TestAttend:
    """out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j"""

    @pytest.mark.parametrize("lead", [(3, 5), (), (2, 1, 3, 2)], ids=str)
    def test_equals_oracle(self, lead):
        """With causal over the keys up to its own number."""
        q, k, v = randn(*lead, 11, 7), randn(*lead, 13, 7), randn(*lead, 13, 4)
        same_gradients(va.attend, exact, [q, k, v])
        same_gradients(lambda q, k, v: va.attention_weights(q, k) @ v, exact, [q, k, v])
        k, v = k[..., :11, :], v[..., :11, :]
        out = va.attend(q, k, v, causal=True)
        for i in range(11):
            same(out[..., i, :], softmax_mean(q[..., i, :], k[..., : i + 1, :], v[..., : i + 1, :]))

    @HALVES
    def test_the_scale_comes_before_the_product(self, dtype):
        """64 products of 50 * 50 are beyond float16, an eighth of them is not."""
        q = torch.full((1, 9, 64), 50.0, dtype=dtype)
        same(va.attention_weights(q, q).float(), torch.full((1, 9, 9), 1 / 9), 1e-3)


class TestModule:
    """Attention: what is between the tokens and every mechanism."""

    def test_a_steps_own_dropout_stands(self, monkeypatch):
        """In a model with another; what drops are outputs of proj, in training."""
        monkeypatch.setitem(va.ATTENTION, "mine", [va.step(va.space_attention, dropout=0.75)])
        module, x = tiny("mine", dropout=0.1).blocks[0].steps[0].double(), randn(2, 90, 24)
        out, dropped = module(x, (6, 3, 5)), module.train()(x, (6, 3, 5))
        kept = dropped != 0
        same(dropped[kept], 4 * out[kept])
        assert 0.2 < kept.double().mean() < 0.3

    @pytest.mark.parametrize("zero_init, times", [(None, 4), ("proj", 4), ("extra", 5)])
    def test_projections_cost_what_the_docstring_says(self, zero_init, times):
        assert formula(va.Attention) == "4*N*D**2" and "5*N*D**2 with an" in va.Attention.__doc__
        module, (x,) = TestJoint().step(D, h, zero_init=zero_init).to("meta"), on_meta((1, 15, D))
        macs = counted(lambda: module(x, (3, 5, 1)))
        assert macs == times * 15 * D**2 + 2 * 15**2 * D


class TestJoint(Questions):
    """All tokens attend to all tokens."""

    mechanism = va.joint_attention
    oracle = lambda self, q, k, v, grid: exact(q, k, v)


# ==== SPACE, DIVIDED, AXIAL, FACTORISED DOT-PRODUCT: each is one sentence in the oracle ===========
class TestSpace(InGroups):
    """Patches of one frame attend to each other."""

    mechanism = va.space_attention
    group = lambda self, grid, t, y, x: t


class TestDivided(Questions):
    """Patches at one position attend to each other along time, and space attention follows. With
    causal only to their own and earlier frames."""

    mechanism, built = va.time_attention, {"skips_class_token": True}
    reach = ({}, {"causal": True})

    def oracle(self, q, k, v, grid, causal=False, class_key=False):
        """Equation 11: with class_key class tokens are keys of every patch, and attend to all."""
        C, patches = q.shape[2] - math.prod(grid), patches_of(grid)
        lists = [[range(q.shape[2])] if class_key else [] for _ in range(C)]
        for t, *place in patches:
            along = [C + n for n, (other, *where) in enumerate(patches)
                     if where == place and (other <= t or not causal)]  # fmt: skip
            lists.append([[*(range(C) if class_key else []), *along]])
        return attend_to(lists, q, k, v)


class TestDividedWithClassKey(Questions):
    mechanism, options, cost = va.time_attention, {"class_key": True}, "Cost, class_key"
    oracle = lambda self, *x, **grid: TestDivided().oracle(*x, **{"class_key": True} | grid)


class TestAxialWidth(InGroups):
    """Width: patches of one row of one frame attend to each other."""

    mechanism = va.width_attention
    group = lambda self, grid, t, y, x: (t, y)


class TestAxialHeight(InGroups):
    """Height: patches of one column of one frame attend to each other."""

    mechanism = va.height_attention
    group = lambda self, grid, t, y, x: (t, x)


class TestFactorisedHeads(Questions):
    """ViViT's model 4: the first heads attend inside the frame, the others along time."""

    mechanism, heads = va.factorised_heads_attention, 4

    def oracle(self, q, k, v, grid):
        first, second = zip(*(x.split(2, dim=1) for x in (q, k, v)))
        halves = [TestSpace().oracle(*first, grid), TestDivided().oracle(*second, grid)]
        return torch.cat(halves, dim=1)


# ==== BOXES: SPARSE LOCAL-GLOBAL, SHIFTED WINDOWS =================================================
class TestLocal(InGroups):
    """Patches in one quarter of the frame, through all frames; when odd the first half is larger."""

    mechanism = va.local_attention

    def group(self, grid, t, y, x):
        return 2 * y >= grid[1] + grid[1] % 2, 2 * x >= grid[2] + grid[2] % 2


class TestGlobal(InGroups):
    """Patches whose t, y and x are alike odd or even attend to each other."""

    mechanism, class_tokens = va.global_attention, ("none", "clip", "registers")
    group = lambda self, grid, t, y, x: (t % 2, y % 2, x % 2)


class TestShiftedWindows(InGroups):
    """Video Swin: windows of 2 x 2 x 3, cut displaced by 1 x 1 x 1; at the border smaller."""

    mechanism, class_tokens = va.shifted_window_attention, ("none", "clip", "registers")
    options, cost = {"size": (2, 2, 3), "displaced": True}, None
    reach = ({"displaced": False}, {"size": (3, 1, 2)}, {"size": (4, 2, 2)}, {"size": (9, 9, 9)})

    def group(self, grid, *patch, size=(2, 2, 3), displaced=True):
        """An axis that is no longer than its window is not cut."""
        along = lambda i, n, p: 0 if n <= p else (i - displaced * (p // 2)) // p
        return tuple(map(along, patch, grid, size))

    def test_published_windows_cost_what_the_docstring_says(self, monkeypatch):
        """Windows of one size are one call, (B*n, h, L, d)."""
        text, calls, attend = formula(va.shifted_window_attention), [], va.attend
        monkeypatch.setattr(va, "attend", lambda *x: calls.append(x[0].shape) or attend(*x))
        for T, H, W in [(8, 7, 14), (16, 7, 7), (8, 14, 21)]:
            q, k, v = on_meta(*[(1, h, T * H * W, d)] * 3)
            macs = counted(lambda: va.shifted_window_attention(q, k, v, (T, H, W)))
            assert macs == evaluated(text, T=T, S=H * W, D=D, size=(8, 7, 7))
            assert calls.pop() == (T * H * W // 392, h, 392, d) and not calls

    def rolled(self, q, k, v, grid, size, displaced):
        """Video Swin's code: roll back by half a window, attend in windows, masked, roll forth."""
        roll = [p // 2 if displaced and p < n else 0 for n, p in zip(grid, size)]
        apart, together = "B h (T t) (H y) (W x) d", "B T H W h (t y x) d"
        sizes = dict(zip("tyx", size))

        def cut(x):
            x = x.unflatten(2, grid).roll([-by for by in roll], (2, 3, 4))
            return rearrange(x, f"{apart} -> {together}", **sizes)

        region = [(torch.arange(n) - by) // p for n, p, by in zip(grid, size, roll)]
        region = cut(torch.cartesian_prod(*region)[None, None])
        joined = (region.unsqueeze(-2) != region.unsqueeze(-3)).any(-1)
        q, k, v = (cut(x) for x in (q, k, v))
        weights = (q @ k.mT / d**0.5).masked_fill(joined, -torch.inf).softmax(dim=-1)
        out = rearrange(weights @ v, f"{together} -> {apart}", **sizes)
        return out.roll(roll, (2, 3, 4)).flatten(2, 4)

    @pytest.mark.parametrize("displaced", [False, True])
    def test_is_a_rolled_clip_and_a_mask_where_windows_divide_the_grid(self, displaced):
        for grid, size in [((4, 6, 9), (2, 2, 3)), ((6, 4, 10), (3, 4, 5)), ((4, 6, 8), (1, 3, 2))]:
            forms = (va.shifted_window_attention, self.rolled)
            forms = [partial(form, grid=grid, size=size, displaced=displaced) for form in forms]
            same_gradients(*forms, qkv(grid), 1e-12)


# ==== TEMPORAL WINDOW =============================================================================
def tokens_of_frames(grid, C):
    """For every frame the numbers of its class token, or of the clip's, and of its patches."""
    T, S = grid[0], grid[1] * grid[2]
    own = [[t] if C == T else [*range(C)] for t in range(T)]
    return [[*own[t], *range(C + t * S, C + (t + 1) * S)] for t in range(T)]


class TestWindow(Questions):
    """X-ViT's equation 7: a patch attends to all patches of the frames t - w .. t + w."""

    mechanism, sizes = va.window_attention, {"w": 1}
    reach = ({}, {"window": 0}, {"window": 2, "causal": True})

    def oracle(self, q, k, v, grid, window=1, causal=False):
        """The class token of a clip has a copy in every frame, and each copy is a key."""
        frames = tokens_of_frames(grid, q.shape[2] - math.prod(grid))
        lists = [[] for _ in range(q.shape[2])]
        for t, own in enumerate(frames):
            near = range(max(0, t - window), t + 1 if causal else min(len(frames), t + window + 1))
            for i in own:
                lists[i].append([key for frame in near for key in frames[frame]])
        return attend_to(lists, q, k, v)

    @pytest.mark.parametrize("grid", [(5, 3, 7), (3, 1, 5), (1, 3, 3)], ids=str)
    def test_shift_window_vs_naive_windowed_attention(self, grid):
        """A slice of frames whose keys are computed once, against keys and values that are
        projected anew for each frame that attends and each frame in its window: the same values
        and gradients, for tokens and for weights, with windows 0 to T."""
        split = lambda x: x.unflatten(-1, (h, d)).transpose(1, 2)

        def sliced(x, w_q, w_k, w_v, window):
            q, k, v = (split(x @ w.T) for w in (w_q, w_k, w_v))
            return va.window_attention(q, k, v, grid, window)

        def naive(x, w_q, w_k, w_v, window):
            frames, out = x.unflatten(1, (grid[0], -1)).unbind(1), []
            for t, frame in enumerate(frames):
                near = [other for s, other in enumerate(frames) if abs(s - t) <= window]
                k, v = (torch.cat([other @ w.T for other in near], dim=1) for w in (w_k, w_v))
                out.append(exact(split(frame @ w_q.T), split(k), split(v)))
            return torch.cat(out, dim=2)

        inputs = [randn(B, math.prod(grid), D), *(randn(D, D) / D**0.5 for _ in range(3))]
        for window in range(grid[0] + 1):
            same_gradients(*(partial(form, window=window) for form in (sliced, naive)), inputs)

    def test_causal_frames_never_look_ahead(self):
        """No gradient reaches the first frame from later ones; one more changes no earlier output."""
        for f, more in ((va.window_attention, {"window": 9}), (va.time_attention, {})):
            (q, k, v), call = [x.requires_grad_() for x in qkv()], partial(f, causal=True, **more)
            out = call(q, k, v, GRID)
            (gradient,) = torch.autograd.grad(out[:, :, :28].sum(), v, retain_graph=True)
            assert gradient[:, :, :28].any() and not gradient[:, :, 28:].any()
            same(out[:, :, :112], call(*(x[:, :, :112] for x in (q, k, v)), (4, 4, 7)))

    @pytest.mark.parametrize("kind", ["none", "clip", "frame"])
    def test_no_window_is_space_and_the_whole_clip_is_joint(self, kind):
        """Not with one class token per clip: its T copies are T keys."""
        q, k, v = qkv(C=class_tokens_of(kind, GRID))
        same(va.window_attention(q, k, v, GRID, 0), va.space_attention(q, k, v, GRID))
        whole, joint = va.window_attention(q, k, v, GRID, 99), va.joint_attention(q, k, v, GRID)
        assert (distance(whole, joint) < 1e-12) == (kind != "clip")


# ==== SUMMARY TOKENS, SPACE-TIME MIXING, POOLED ===================================================
def mixed_by_hand(x, window, moved):
    """Keys or values (B, h, T, L, d), every channel fetched by itself from the frame it is from."""
    T, width = x.shape[2], x.shape[4]
    away = [sign * i for i in range(1, window + 1) for sign in (1, -1)]
    share = round(moved * width * 1000) // (1000 * max(1, len(away)))
    away = [by for by in away for _ in range(share)]
    mixed = torch.zeros_like(x)
    for channel, t in product(range(width), range(T)):
        source = t + (away[channel] if channel < len(away) else 0)
        if 0 <= source < T:
            mixed[:, :, t, :, channel] = x[:, :, source, :, channel]
    return mixed


class TestMixing(Questions):
    """Space attention over keys and values put together channel by channel."""

    mechanism = va.mixing_attention
    reach = [{"window": w, "moved": m} for w, m in [(0, 0.5), (1, 0.0), (1, 0.4), (1, 1.0)]]
    reach += [{"window": w, "moved": m} for w, m in [(2, 0.8), (2, 1.0), (3, 1.0)]]
    reach += [{"summary": True}, {"window": 2, "moved": 1.0, "summary": True}]

    def oracle(self, q, k, v, grid, window=1, moved=0.5, summary=False):
        """Summaries are means of the frames as they were: they belong to no frame."""
        C = q.shape[2] - math.prod(grid)
        frames, lists = tokens_of_frames(grid, C), {i: [] for i in range(q.shape[2])}
        kv = [torch.stack([x[:, :, own] for own in frames], dim=2) for x in (k, v)]
        mixed = [mixed_by_hand(x, window, moved) for x in kv]
        means = [x[:, :, :, 1 if C == grid[0] else C :].mean(3) for x in kv]
        for t, own in enumerate(frames):
            keys = [torch.cat([x[:, :, t], m], 2) if summary else x[:, :, t]
                    for x, m in zip(mixed, means)]  # fmt: skip
            for i in own:
                lists[i].append(softmax_mean(q[:, :, i], *keys))
        return torch.stack([sum(found) / len(found) for found in lists.values()], dim=2)

    def test_a_share_that_is_not_an_exact_float(self):
        """Half of .58 * 100 channels is 29 from either side, although .58 * 50 is 28.999999."""
        x = torch.arange(1.0, 4.0).view(3, 1, 1, 1).expand(3, 1, 1, 100)
        mixed = va.mix_frames(x, 3, window=1, moved=0.58)[1].flatten()
        assert [int((mixed == frame).sum()) for frame in (3, 1, 2)] == [29, 29, 42]


class TestSummary(Questions):
    """Space attention with T more keys and values, the mean of every frame."""

    mechanism = va.summary_attention
    oracle = lambda self, *x, **grid: TestMixing().oracle(*x, window=0, summary=True, **grid)
    mark = lambda self, patch: "#" if patch[0] == 1 else "m"

    def test_many_frames(self):
        """In portions of 32, as every frame needs a copy of all means."""
        for C in (0, 1, 67):
            q, k, v = qkv((67, 1, 2), C)
            same(self.call(q, k, v, (67, 1, 2)), self.oracle(q, k, v, grid=(67, 1, 2)))


class TestPooled(Questions):
    """Every token attends to the class tokens and to the mean of every block of patches."""

    mechanism = va.pooled_attention
    reach = [{"stride": stride} for stride in [(3, 2, 1), (2, 1, 2), (1, 1, 1), (9, 9, 9)]]
    cost_grids = [(2, 4, 6), (6, 8, 10), (3, 2, 14)]
    mark = lambda self, patch: "#-"[(patch[1] // 2 + patch[2] // 2) % 2]  # blocks in turn

    def blocks(self, grid, stride):
        """The blocks of a stride, as lists of patches."""
        blocks = {}
        for n, patch in enumerate(patches_of(grid)):
            blocks.setdefault(tuple(a // s for a, s in zip(patch, stride)), []).append(n)
        return list(blocks.values())

    def pooled(self, x, grid, stride):
        C = x.shape[2] - math.prod(grid)
        means = [x[:, :, [C + n for n in block]].mean(2) for block in self.blocks(grid, stride)]
        return torch.cat([x[:, :, :C], torch.stack(means, dim=2)], dim=2)

    def oracle(self, q, k, v, grid, stride=(1, 2, 2)):
        return exact(q, self.pooled(k, grid, stride), self.pooled(v, grid, stride))


class TestPooledQueries(TestPooled):
    """Every patch gets what the mean of its block found, so only a residual keeps them apart."""

    options, cost = {"pool_queries": True}, "Cost, pool_queries"

    def oracle(self, q, k, v, grid, stride=(1, 2, 2), pool_queries=True):
        C = q.shape[2] - math.prod(grid)
        found = exact(*(self.pooled(x, grid, stride) for x in (q, k, v)))
        number = {n: C + i for i, block in enumerate(self.blocks(grid, stride)) for n in block}
        return found[:, :, [*range(C), *(number[n] for n in range(math.prod(grid)))]]


# ==== LINEAR, PERFORMER ===========================================================================
def linear_by_hand(q, k, v, eps=1e-6, turn=lambda x: x):
    """Linear attention with its weights written out; rows sum to one except for eps. Rotary
    positions turn the features in the numerator alone (RoFormer)."""
    return turn(q) @ turn(k).mT @ v / ((q @ k.mT).sum(-1, keepdim=True) + eps)


def features_by_hand(x):
    return torch.clamp(x, min=0.0) + x.shape[-1] ** -0.5


class TestLinear(Questions):
    """Weights that are products of ReLU features, which fixation gates."""

    mechanism, module, turns = va.linear_attention, va.LinearAttention, False
    reach = ({}, {"fixation": True})

    def added(self, module):
        return {"gate": module.gate_q}

    def oracle(self, q, k, v, grid, gate=None, fixation=False, rotary=None):
        q, k = features_by_hand(q), features_by_hand(k)
        g = gate_by_hand(gate, q, k, v) if fixation else 1.0
        turn = partial(rotated_by_hand, grid=grid, base=rotary) if rotary else lambda x: x
        return linear_by_hand(g * q, g * k, v, turn=turn)

    @pytest.mark.parametrize("n", [4, 63, 64, 100])
    def test_takes_the_cheaper_order(self, n):
        """Up to 63 keys of 64 channels are cheaper as weights; the answer is the same."""
        q, k, v = on_meta(*[(1, 1, n, 64)] * 3)
        assert counted(lambda: va.attend_linearly(q, k, v)) == 2 * n * 64 * min(n, 64) + n * 64
        q, k, v = (torch.rand(1, 1, n, 64).double() for _ in range(3))
        same_gradients(va.attend_linearly, linear_by_hand, [q, k, v])
        assert va.relu_features(torch.full((4,), -9.0)).tolist() == [0.5] * 4


class TestInFloat32:
    """What needs float32 has it, also under autocast; back come halves, but whole numbers whole."""

    calls = {
        "pool": lambda x, y: va.pool(x[None], (3, 4, 5), (2, 3, 2)),
        "attend_linearly": lambda x, y: va.attend_linearly(y, y, x),
        "favor_features": lambda x, y: va.favor_features(x, y[0], -1),
        "landmark_inverse": lambda x, y: va.landmark_inverse(x, y, 6),
        "most_orthogonal_subset": lambda x, y: va.most_orthogonal_subset(x, 20),
        "weights_along_trajectories": lambda x, y: va.weights_along_trajectories(x, y),
        "rotate": lambda x, y: va.rotate(x[None], (3, 4, 5)),
    }

    @HALVES
    @pytest.mark.parametrize("name", calls)
    def test_half_precision(self, name, dtype):
        x, y = (make(4, 60, 16).to(dtype) for make in (torch.randn, torch.rand))
        call = self.calls[name]
        expected, half = call(x.float(), y.float()), call(x, y)
        with torch.autocast("cpu", dtype=dtype):
            same(call(x.float(), y.float()), expected, 0)
        assert half.dtype is (torch.long if name == "most_orthogonal_subset" else dtype)
        same(half, expected.to(half.dtype), 0)


class TestPerformer(Questions):
    """Weights that are products of random features."""

    mechanism, module, sizes = va.performer_attention, va.PerformerAttention, {"M": 13}
    reach = ({}, {"features": 11})

    def projection(self):
        numbers = torch.Generator("cpu").manual_seed(SEED)
        return torch.randn(13, d, generator=numbers, dtype=torch.float64, device="cpu")

    def call(self, q, k, v, grid):
        return va.performer_attention(q, k, v, grid, self.projection().to(q.device))

    def added(self, module):
        return {"W": module.projection}

    def features(self, x, axes, W, eps=1e-6):
        """(exp(W x~ - |x~|^2 / 2 - largest) + eps) / sqrt(M),   x~ = x / d^(1/4)"""
        x = x / x.shape[-1] ** 0.25
        along = torch.stack([(x * w).sum(-1) for w in W], dim=-1)
        exponent = along - (x * x).sum(-1, keepdim=True) / 2 - along.amax(axes, keepdim=True)
        return (exponent.exp() + eps) / len(W) ** 0.5

    def oracle(self, q, k, v, grid, W=None, features=None):
        W = self.projection() if W is None else W
        assert features in (None, len(W))
        return linear_by_hand(self.features(q, -1, W), self.features(k, (-2, -1), W), v, eps=0.0)

    def test_products_of_features_are_the_exponential_on_average(self):
        """In every direction, over 4,000 draws of 8 directions; the maxima are put back by hand.
        Directions of a bare QR, whose signs LAPACK leaves open, give 1.28 for e_1, not 1.42."""
        e, W = torch.eye(8).double(), va.orthogonal_projection(32_000, 8).double()
        pairs = [(e[0], e[0]), (-e[0], -e[0]), (e[7], e[7]), (e[0], e[1]), (e[2], -e[2])]
        for q, k in [*pairs, (e.sum(0) / 8**0.5, e[4]), (e.sum(0) / 8**0.5, e.sum(0) / 8**0.5)]:
            phi = [va.favor_features(x[None], W, -1, eps=0.0)[0] for x in (q, k)]
            largest = [(x / 8**0.25 @ W.T).max().exp() for x in (q, k)]
            mean, expected = phi[0] @ phi[1] * math.prod(largest), (q @ k / 8**0.5).exp()
            assert abs(mean / expected - 1) < 0.04, f"mean {mean:.3f}, exp {expected:.3f}"

    def error(self, M, scale, width):
        q, k, v = torch.tensor([scale, scale, 1.0]).view(3, 1, 1, 1, 1) * randn(3, 2, 4, 64, width)
        W = va.orthogonal_projection(M, width).double()
        return distance(va.performer_attention(q, k, v, (1, 1, 64), W), va.attend(q, k, v))

    def test_error_falls_with_features_and_grows_with_scores(self):
        """The ten numbers of the docstring."""
        stated = re.findall(r"(?:\d?\.\d+\s+){4}\d?\.\d+", va.performer_attention.__doc__)
        for scale, numbers in zip((0.25, 1.0), stated, strict=True):
            for M, number in zip((32, 128, 512, 2048, 8192), map(float, numbers.split())):
                assert number / 1.6 < self.error(M, scale, 32) < number * 1.6, f"{M}, {scale}"

    def test_projection_is_orthogonal_in_blocks_and_as_long_as_gaussian_vectors(self):
        W = va.orthogonal_projection(19, 8)
        unit = W / W.norm(dim=1, keepdim=True)
        for block in (unit[:8], unit[8:16], unit[16:]):
            same(block @ block.T, torch.eye(len(block)), 1e-5)
        lengths = va.orthogonal_projection(4000, 8).norm(dim=1)
        assert abs(lengths.square().mean() - 8) < 0.3 and abs(lengths.std() - 0.69) < 0.05


# ==== NYSTROM, ORTHOFORMER ========================================================================
def means_of_segments(x, count):
    """Of consecutive tokens, the first segments shorter by one."""
    n = x.shape[2]
    lengths = [n // count + (i >= count - n % count) for i in range(count)]
    return torch.stack([part.mean(2) for part in x.split(lengths, dim=2)], dim=2)


def weights_by_hand(q, k):
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)


def inverse_by_hand(A, iterations):
    """Nystromformer's equation 11, from A^T over its largest column; rows sum to one."""
    I = torch.eye(A.shape[-1]).double()
    Z = A.mT / A.sum(-2).amax(-1)[..., None, None]
    for _ in range(iterations):
        Z = 0.25 * Z @ (13 * I - A @ Z @ (15 * I - A @ Z @ (7 * I - A @ Z)))
    return Z


class TestNystrom(Questions):
    """Two steps over segment means, with the pseudo-inverse of the small matrix between them."""

    mechanism, sizes, options = va.nystrom_attention, {"P": 11}, {"landmarks": 11}
    reach = ({}, {"landmarks": 7, "iterations": 3})

    def oracle(self, q, k, v, grid, landmarks=11, iterations=6):
        q_means, k_means = (means_of_segments(x, min(landmarks, x.shape[2])) for x in (q, k))
        inverse = inverse_by_hand(weights_by_hand(q_means, k_means), iterations)
        return weights_by_hand(q, k_means) @ inverse @ weights_by_hand(q_means, k) @ v

    def test_every_token_a_landmark_becomes_exact_as_iterations_grow(self):
        """A A^+ A = A: the other of the two approximations with all tokens."""
        (q, k, v), grid = qkv((1, 4, 7)), (1, 4, 7)
        out = [va.nystrom_attention(q, k, v, grid, 99, n) for n in (6, 10, 14, 40)]
        errors = [distance(x, va.attend(q, k, v)) for x in out]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-8
        assert 1e-3 < errors[0] < 0.2

    def test_inverse_by_products_alone(self):
        """Also of a lopsided matrix, whose every row attends to the first key most: |A|_1 is near
        P. Clips do not share a scale, as in Nystromformer's own start."""
        lopsided = torch.eye(9).double() * 2 + 3 * torch.eye(9).double()[0]
        for scores in (2 * randn(2, 3, 9, 9), randn(2, 3, 9, 9) + lopsided):
            A = scores.softmax(dim=-1)
            error = [(A @ va.iterative_inverse(A, n) @ A - A).norm().item() for n in (2, 6, 10, 30)]
            assert error == sorted(error, reverse=True)
            same(va.iterative_inverse(A, 30), torch.linalg.pinv(A), 1e-4)
            same(va.iterative_inverse(A), torch.stack([va.iterative_inverse(one) for one in A]))

    def test_published_numbers(self):
        """Motionformer's models have 128 prototypes, in its Nystrom branch too; 256 features."""
        number = lambda of, name: inspect.signature(of).parameters[name].default
        for function in (va.nystrom_attention, va.nystrom_per_frame):
            assert number(function, "landmarks") == 128 and number(function, "iterations") == 6
        assert number(va.OrthoformerAttention, "prototypes") == 128
        assert number(va.PerformerAttention, "features") == 256


def prototypes_by_hand(q, k, count, oversample=3):
    """Algorithm 1, clip by clip and head by head, among evenly spaced queries and keys: the next
    one is the most orthogonal to all before it."""
    tokens, chosen = torch.cat([q, k], dim=2), []
    last, n = tokens.shape[2] - 1, min(oversample * count, tokens.shape[2])
    for x in tokens[:, :, [round(i * last / max(1, n - 1)) for i in range(n)]].flatten(0, 1):
        unit, picked = (x / x.norm(dim=-1, keepdim=True)).detach(), [0]
        likeness = (unit @ unit.T).abs().tolist()
        while len(picked) < count:
            left = [i for i in range(n) if i not in picked]
            picked.append(min(left, key=lambda i: max(likeness[i][j] for j in picked)))
        chosen.append(x[picked])
    return torch.stack(chosen).unflatten(0, q.shape[:2])


class TestPrototypes:
    """How the most orthogonal tokens are chosen."""

    @pytest.mark.parametrize("count, oversample", [(7, 3), (7, 2), (10, 3), (7, 99), (20, 1)])
    def test_greedy_among_evenly_spaced_queries_and_keys(self, count, oversample):
        """Norms do not count, and gradients reach the queries and the keys that were chosen."""
        options = {"count": count, "oversample": oversample}
        forms = [partial(f, **options) for f in (va.orthogonal_prototypes, prototypes_by_hand)]
        same_gradients(*forms, [x * torch.rand(B, h, 30, 1).exp() for x in qkv((3, 2, 5))[:2]])

    @pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e18])
    def test_never_the_same_twice_and_without_a_graph(self, scale):
        """Also of tokens that are all the same, and of extreme norms."""
        fail = lambda tensor: pytest.fail("recorded")
        for x in (torch.eye(8).double()[0].repeat(13, 1), randn(3, 29, 8), torch.randn(29, 8)):
            x = (x * scale).requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(fail, lambda tensor: tensor):
                picked = va.most_orthogonal_subset(x, 13)
            assert all(len(set(row)) == 13 for row in picked.view(-1, 13).tolist())


class TestOrthoformer(Questions):
    """Two steps: from the query to the prototypes, and from these to the keys."""

    mechanism, module, sizes = va.orthoformer_attention, va.OrthoformerAttention, {"P": 11}
    last_queries = lambda q, k, count: q[:, :, -count:]
    reach = ({}, {"prototypes": 5}, {"prototypes": 9, "choose": last_queries})

    def call(self, q, k, v, grid):
        return va.orthoformer_attention(q, k, v, grid, k[:, :, :11])

    def added(self, module):
        return {"prototypes": module.count}

    def oracle(self, q, k, v, grid, prototypes=None, choose=prototypes_by_hand):
        P = k[:, :, :11] if prototypes is None else choose(q, k, min(prototypes, q.shape[2]))
        return self.two_steps(q, k, v, P)

    def two_steps(self, q, k, v, prototypes):
        return exact(q, prototypes, exact(prototypes, k, v))

    def error(self, module, x):
        """How far the module is from exact attention, with the same q, k and v."""
        q, k, v = rearrange(module.qkv(x), "B N (n h d) -> n B h N d", n=3, h=module.heads)
        return distance(module.mechanism(q, k, v, (1, 1, x.shape[1])), va.attend(q, k, v))

    def test_orthoformer_with_all_prototypes_vs_exact_attention(self):
        """It is NOT exact: softmax(Q P^T) softmax(P K^T) smooths a second time, whether all means
        every key, every query, or the most orthogonal of both. With every key a prototype it
        becomes exact when each key is clearly closest to itself, so that the second softmax is the
        identity, as with orthogonal keys of growing norm: the four numbers of the docstring."""
        every_key, every_query = lambda q, k, count: k, lambda q, k, count: q
        for choose in (va.orthogonal_prototypes, every_key, every_query):
            module = self.step(D, h, prototypes=10**6, choose=choose).double()
            assert self.error(module, randn(B, 140, D)) > 0.01
        text = re.search(r"error is\s+([\d.]+), ([\d.]+), (\S+) and (\S+)\.\s",
                         va.orthoformer_attention.__doc__)  # fmt: skip
        for norm, error in zip((4, 8, 12, 16), map(float, text.groups())):
            module = self.step(64, 1, choose=every_key, qkv_bias=False).double()
            keys = norm * torch.eye(64).double()
            module.qkv.weight.data = torch.cat([randn(64, 64), keys, randn(64, 64)])
            measured = self.error(module, torch.linalg.qr(randn(64, 64))[0][None, :48])
            assert error / 4 < measured < error * 4, f"norm {norm}: {measured:.2g}, stated {error}"

    def test_all_prototypes_that_are_not_symmetric(self):
        """As many prototypes as keys, and P K^T is not K P^T: each softmax runs over its keys."""
        q, k, v = qkv()
        P = q + 2 * k.roll(1, dims=2)
        same(va.orthoformer_attention(q, k, v, GRID, P), self.two_steps(q, k, v, P))


# ==== TRAJECTORY ==================================================================================
def per_frame_by_hand(q, k, v, T, look=exact):
    """Motionformer's equation 4: what each query finds in each frame, (B, h, I, T, d)."""
    frames = torch.arange(k.shape[2]).view(T, -1)
    return torch.stack([look(q, k[:, :, own], v[:, :, own]) for own in frames], dim=3)


def along_by_hand(y, proj_q, proj_kv):
    """Equations 5 and 6, patch by patch, for y (B, h, T*S, T, d)."""
    (_, h, N, T, d), out = y.shape, []
    for n in range(N):
        path = y[:, :, n].permute(0, 2, 1, 3).flatten(2)  # (B, T, D), heads joined
        query = proj_q(path[:, n * T // N]).unflatten(1, (h, d))
        keys, values = (x.unflatten(2, (h, d)).mT for x in proj_kv(path).chunk(2, dim=-1))
        keys, values = (rearrange(x, "B T d h -> B h T d") for x in (keys, values))
        out.append(softmax_mean(query, keys, values))
    return torch.stack(out, dim=2)


class TestTrajectory(Questions):
    """Softmax inside every frame, then along the trajectory."""

    mechanism, module = va.trajectory_attention, va.TrajectoryAttention
    class_tokens, along = ("none", "clip", "registers"), "attend_along_trajectories"
    reach, drawn = ({}, {"at_once": 4}), False
    first_stage = lambda self, q, k, v, T: va.attend_per_frame(q, k, v, T)
    first_by_hand = lambda self, q, k, v, T: per_frame_by_hand(q, k, v, T)

    def layers(self):
        """W_q, and W_k above W_v: the same in every call."""
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            return linear(D, D, D, 2 * D)

    def call(self, q, k, v, grid):
        layers = [layer.to(q) for layer in self.layers()]
        second_stage = lambda y: getattr(va, self.along)(y, *layers)
        return va.trajectory_attention(q, k, v, grid, self.first_stage, second_stage)

    def added(self, module):
        return {"layers": (module.proj_q, module.proj_kv)}

    def oracle(self, q, k, v, grid, layers=None, at_once=None, **first):
        """The class token attends to all tokens, and no patch attends to it."""
        C = q.shape[2] - math.prod(grid)
        y = self.first_by_hand(*(x[:, :, C:] for x in (q, k, v)), grid[0], **first)
        found = [softmax_mean(q[:, :, c], k, v).unsqueeze(2) for c in range(C)]
        return torch.cat([*found, along_by_hand(y, *(layers or self.layers()))], dim=2)

    def test_picture_is_a_path(self):
        """Of an object that is in one place in each frame, by the gradients of values."""
        grid, query, path = (4, 4, 6), (1, 1, 2), [(0, 0, 0), (1, 1, 2), (2, 2, 4), (3, 3, 5)]
        (q, k, v), n = randn(3, 1, h, 96, d), patches_of(grid).index(query)
        places = [patches_of(grid).index(place) for place in path]
        q[:, :, places], k[:, :, places] = 30.0, 30.0
        v.requires_grad_()
        (gradient,) = torch.autograd.grad(self.call(q, k, v, grid)[0, :, n].sum(), v)
        reached = gradient.abs().sum((0, 1, 3)) > 1e-6
        found = [patch for patch, hit in zip(patches_of(grid), reached) if hit]
        assert found == path and picture(found, grid, query) in va.trajectory_attention.__doc__


class TestTrajectoryFast(TestTrajectory):
    """The same, by projecting one query in place of T keys, and one mean in place of T values."""

    cost, along = "Cost, fast", "attend_along_trajectories_fast"

    def test_the_module_takes_it_of_plain_layers_alone(self):
        """Whatever else stands in proj_kv's place, or watches it, is called with every token."""
        module, (x,), grid = self.step(D, h).to("meta"), on_meta((1, 48, D)), (2, 4, 6)
        text = [formula(va.trajectory_attention, title) for title in ("Cost", "Cost, fast")]
        plain, fast = (4 * 48 * D**2 + evaluated(one, T=2, S=24, C=0, D=D, h=h) for one in text)
        assert counted(lambda: module(x, grid)) == fast
        kinds = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
        for kind in kinds:
            hook = getattr(module.proj_kv, f"register_{kind}")(lambda *_: None)
            assert counted(lambda: module(x, grid)) == plain
            hook.remove()
            assert counted(lambda: module(x, grid)) == fast
        adapter = type("Adapter", (nn.Linear,), {})(D, 2 * D, device="meta")
        watched, quantised = nn.Linear(D, 2 * D, device="meta"), nn.Linear(D, 2 * D, device="meta")
        watched.forward = partial(nn.Linear.forward, watched)
        quantised.weight = type("Int8", (nn.Parameter,), {})(quantised.weight.data)
        for layer in (adapter, watched, quantised):
            module.proj_kv = layer
            assert counted(lambda: module(x, grid)) == plain


class Approximated(TestTrajectory):
    """The first stage by an approximation, whose cost the docstring does not state."""

    cost, reach = None, ({},)
    test_picture_is_a_path = None


class TestTrajectoryOrthoformer(Approximated):
    """Prototypes that all frames share, or chosen in each frame (table 3d)."""

    module = va.OrthoformerTrajectoryAttention
    reach = ({}, {"prototypes": 11}, {"prototypes": 11, "shared_prototypes": False})
    first_stage = lambda self, q, k, v, T: va.orthoformer_per_frame(q, k, v, T, k[:, :, :3])

    def first_by_hand(self, q, k, v, T, prototypes=None, shared_prototypes=True):
        choose = lambda q, k: prototypes_by_hand(q, k, min(prototypes, q.shape[2]))
        choose = choose if prototypes else lambda q, k: k[:, :, :3]
        y = []
        for own in torch.arange(k.shape[2]).view(T, -1):
            P = choose(q, k) if shared_prototypes else choose(q[:, :, own], k[:, :, own])
            y.append(exact(q, P, exact(P, k[:, :, own], v[:, :, own])))
        return torch.stack(y, dim=3)

    def added(self, module):
        return super().added(module) | {"prototypes": module.count}


class TestTrajectoryNystrom(Approximated):
    """Segment means that run through time first and that all frames share."""

    options = {"first_stage": partial(va.nystrom_per_frame, landmarks=4, iterations=3)}
    first_stage = lambda self, *x: va.nystrom_per_frame(*x, landmarks=4, iterations=3)

    def first_by_hand(self, q, k, v, T, first_stage=None):
        through_time = lambda x: x.unflatten(2, (T, -1)).transpose(2, 3).flatten(2, 3)
        q_means, k_means = (means_of_segments(through_time(x), min(4, x.shape[2])) for x in (q, k))
        inverse = inverse_by_hand(weights_by_hand(q_means, k_means), 3)
        left, y = weights_by_hand(q, k_means) @ inverse, per_frame_by_hand(q_means, k, v, T)
        return torch.einsum("bhnp,bhptd->bhntd", left, y)


class TestTrajectoryPerformer(Approximated):
    """Random features, each frame normalised by itself, one maximum for all."""

    module, reach = va.PerformerTrajectoryAttention, ({}, {"features": 13})

    def first_stage(self, q, k, v, T):
        return va.performer_per_frame(q, k, v, T=T, projection=TestPerformer().projection())

    def first_by_hand(self, q, k, v, T, W=None, features=None):
        W, phi = TestPerformer().projection() if W is None else W, TestPerformer().features
        look = partial(linear_by_hand, eps=0.0)
        return per_frame_by_hand(phi(q, -1, W), phi(k, (-2, -1), W), v, T, look)

    def added(self, module):
        return super().added(module) | {"W": module.projection}


# ==== FEATURE FIXATION, NEIGHBOURHOOD ASSOCIATION, LVT ============================================
def gate_by_hand(layer, q, k, v):
    x = torch.cat([q, k, v], dim=-1)
    return 1 / (1 + torch.exp(-(x @ layer.weight.T + layer.bias)))


def neighbours_by_hand(x, grid, steps, share):
    """Channel by channel. Beyond the border along an axis is zero, diagonally the patch's own."""
    patches, (_, heads, N, width) = patches_of(grid), x.shape
    number, x = {patch: n for n, patch in enumerate(patches)}, x.transpose(1, 2).flatten(2)
    x, channels = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1), []  # token N is outside
    for channel in range(x.shape[2]):
        step = steps[channel // share] if channel // share < len(steps) else (0, 0, 0)
        at = [tuple(a + by for a, by in zip(patch, step)) for patch in patches]
        outside = range(N) if step.count(0) < 2 else [N] * N
        channels.append(x[:, [number.get(a, o) for a, o in zip(at, outside)], channel])
    return torch.stack(channels, dim=-1).unflatten(2, (heads, width)).transpose(1, 2)


class TestLVTAlongTime(Questions):
    """Linear attention along time, gated, with channels of the eight patches around."""

    mechanism, module, turns = va.linear_attention, va.LinearAttention, False
    options = {"axis": "time", "fixation": True, "neighbours": True}
    reach = ({}, {"fixation": False}, {"neighbours": False})
    class_tokens, cost, drawn = ("none",), None, False
    axis, share, alone = slice(1, 3), 1, lambda self, T, H, W: (T, 1, 1)
    steps = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]  # in the order of the released code
    steps = steps + [(0, -1, -1), (0, 1, 1), (0, -1, 1), (0, 1, -1)]

    def fixed(self):
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            return self.step(D, h).double()

    def call(self, q, k, v, grid):
        return self.fixed().mechanism(q, k, v, grid)

    def added(self, module):
        return {"gate": module.gate_q}

    def oracle(self, q, k, v, grid, gate=0, axis="", fixation=True, neighbours=True, rotary=None):
        """The gate reads the features and the shifted values; rotary positions turn last."""
        gate = self.fixed().gate_q if gate == 0 else gate
        if neighbours:
            k, v = (neighbours_by_hand(x, grid, self.steps, self.share) for x in (k, v))
        q, k = features_by_hand(q), features_by_hand(k)
        g = gate_by_hand(gate, q, k, v) if fixation else 1.0
        turn = partial(rotated_by_hand, grid=self.alone(*grid), base=rotary or 1e300)
        groups, out = {}, torch.zeros_like(v)
        for n, patch in enumerate(patches_of(grid)):
            groups.setdefault(patch[self.axis], []).append(n)
        for own in groups.values():
            parts = (x[:, :, own] for x in (g * q, g * k, v))
            found = linear_by_hand(*parts, turn=turn if rotary else lambda x: x)
            out = out.index_copy(2, torch.tensor(own), found)
        return out

    @pytest.mark.parametrize("bias", [0.0, -4.0, -8.0, -30.0, -200.0])
    def test_gates_that_are_nearly_closed(self, bias):
        """Little passes, what comes out is not little, in half precision too; none divides by 0."""
        (q, k, v), module = torch.randn(3, 1, 2, 560, 64), self.step(128, 2)
        nn.init.normal_(module.gate_q.weight, std=0.05), nn.init.constant_(module.gate_q.bias, bias)
        expected = module.mechanism(q, k, v, (20, 4, 7))
        for dtype in (torch.float16, torch.bfloat16):
            x = torch.stack([q, k, v]).to(dtype)
            actual = module.to(dtype).mechanism(*x, (20, 4, 7)).float()
            assert actual.isfinite().all() and (bias < -8 or distance(actual, expected) < 0.02)


class TestLVTInSpace(TestLVTAlongTime):
    """Linear attention in each frame, with channels of the next and the previous frame."""

    options = {"axis": "space", "fixation": True, "neighbours": True}
    axis, share, alone = slice(0, 1), 4, lambda self, T, H, W: (1, H, W)
    steps = [(1, 0, 0), (-1, 0, 0)]


# ==== ROTARY POSITIONS ============================================================================
def rotated_by_hand(x, grid, base=10_000):
    """Pairs of channels as complex numbers, each times exp(i * angle), in plain loops."""
    C, width = x.shape[2] - math.prod(grid), x.shape[3]
    side, tokens = 2 * (width // 6), list(x[:, :, :C].unbind(2))
    for n, where in enumerate(patches_of(grid)):
        angles = []
        for position, share in zip(where, (width - 2 * side, side, side)):
            angles += [position / base ** (2 * i / share) for i in range(share // 2)]
        pairs = torch.complex(x[:, :, C + n, 0::2], x[:, :, C + n, 1::2])
        angles = torch.tensor(angles, dtype=torch.float64)
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        tokens.append(torch.view_as_real(turned).flatten(-2))
    return torch.stack(tokens, dim=2)


class TestRotary:
    """Scores depend on the difference of positions alone."""

    @pytest.mark.parametrize("width, base", [(6, 10_000), (16, 10_000), (22, 100)])
    def test_equals_complex_multiplication_and_class_tokens_stay(self, width, base):
        for C in (0, 1, 5):
            forms = [partial(f, grid=GRID, base=base) for f in (va.rotate, rotated_by_hand)]
            same_gradients(*forms, [randn(B, h, C + 140, width)])
        x = randn(B, h, 28, width)
        same(va.rotate(x, (1, 4, 7)), rotated_by_hand(x, (1, 4, 7)))

    def test_scores_depend_on_differences_of_positions(self):
        """One query and one key, put at every position."""
        q, k = (x.expand(1, 1, 140, 16) for x in randn(2, 1, 1, 1, 16))
        scores, found = (va.rotate(q, GRID) @ va.rotate(k, GRID).mT)[0, 0], {}
        for (i, a), (j, b) in product(enumerate(patches_of(GRID)), repeat=2):
            found.setdefault(tuple(n - m for n, m in zip(a, b)), []).append(scores[i, j].item())
        assert max(max(group) - min(group) for group in found.values()) < 1e-12
        assert len({round(group[0], 8) for group in found.values()}) == len(found)


# ==== TOKENS, BLOCKS, HEADS =======================================================================
class TestTokens:
    """Patches in the order t*S + y*W + x, and what is added to which."""

    def test_a_patch_is_a_linear_layer_on_its_pixels(self):
        """Here tubelets of 3 frames, 4 rows and 8 columns."""
        patches, video = va.PatchEmbedding((3, 4, 8), 10).double(), randn(2, 3, 6, 12, 24)
        tokens, grid = patches(video)
        assert grid == (2, 3, 3) and tokens.shape == (2, 18, 10)
        weight, bias = patches.proj.weight.flatten(1), patches.proj.bias
        for n, (t, y, x) in enumerate(patches_of(grid)):
            pixels = video[:, :, 3 * t : 3 * t + 3, 4 * y : 4 * y + 4, 8 * x : 8 * x + 8]
            same(tokens[:, n], pixels.flatten(1) @ weight.T + bias)
        for size, expected in ((8, (6, 3, 5)), ((4, 8), (6, 6, 5)), ([2, 8, 4], (3, 3, 10))):
            assert va.PatchEmbedding(size, 6).grid((6, 24, 40)) == expected

    def test_overlapping_patches(self):
        """LVT's: 16 x 16 pixels every 14, 8 zeros around, make 17 x 17 of 224 x 224, normed."""
        patches = va.PatchEmbedding(16, 10, stride=14).double()
        assert patches.grid((16, 224, 224)) == (16, 17, 17)
        video = randn(1, 3, 2, 41, 50)
        (tokens, grid), padded = patches(video), nn.functional.pad(video, (8, 8, 8, 8))
        assert grid == (2, 3, 4)
        token = padded[:, :, 1, 14:30, 28:44].flatten(1) @ patches.proj.weight.flatten(1).T
        token = nn.functional.layer_norm(token + patches.proj.bias, (10,))
        same(tokens[:, patches_of(grid).index((1, 1, 2))], token)

    @pytest.mark.parametrize("kind", ["clip", "frame", "none"])
    def test_a_model_without_blocks_is_its_embedding(self, kind):
        """Class tokens, then patches, plus positions, normed."""
        model = tiny("joint", class_token=kind, position="space", depth=0).double()
        video, C = randn(*VIDEO), class_tokens_of(kind, (6, 3, 5))
        tokens = [model.patches(video)[0] + model.position.space.repeat(1, 6, 1)]
        if C > 0:
            tokens.insert(0, (model.class_token + model.position.for_class).expand(2, C, 24))
        same(model.forward_features(video), model.norm(torch.cat(tokens, dim=1)))

    @pytest.mark.parametrize("kind", ["none", "rotary", "space", "time", "separate", "joint"])
    @pytest.mark.parametrize("class_token", ["none", "clip", "frame"])
    @pytest.mark.parametrize("grid", [GRID, (7, 3, 5), (1, 4, 7)], ids=str)
    def test_position_of_every_token(self, kind, class_token, grid):
        """Each table is resized by itself. One frame with a class token of its own looks like a
        clip with one, and still that gets its frame's embedding."""
        position, (T, H, W) = va.PositionEmbedding(kind, GRID, 8, class_token).double(), grid
        tables = {name: nn.init.normal_(table) for name, table in position.named_parameters()}
        nothing, C = torch.zeros(1, 8).double(), class_tokens_of(class_token, grid)
        for name, axes in (("time", slice(1)), ("space", slice(1, 3)), ("joint", slice(3))):
            if name in tables:
                tables[name] = va.resize_positions(tables[name], GRID[axes], grid[axes])[0]
        names = {"none": set(), "rotary": set(), "separate": {"space", "time"}}.get(kind, {kind})
        assert set(tables) - {"for_class"} == names
        time, space = (tables.get(name, nothing) for name in ("time", "space"))
        joint = tables.get("joint", nothing.expand(T * H * W, 8)).view(T, H * W, 8)
        tokens = position(torch.zeros(1, C + T * H * W, 8).double(), grid)[0]
        same(tokens[C:].view(T, H * W, 8), time[:, None] + space + joint)
        own = tables["for_class"][0] if C and kind in ("space", "separate", "joint") else nothing
        same(tokens[:C], (own + time if class_token == "frame" else own).expand(C, 8))

    @pytest.mark.parametrize("old", [(9,), (9, 12), (9, 7, 8)], ids=str)
    def test_a_steady_slope_stays_one(self, old):
        """Half as steep where the grid is twice as fine; bicubic in two steps; not at the edges."""
        axes, slopes = torch.meshgrid(*map(torch.arange, old), indexing="ij"), (8, 4, 1)
        table = sum(slope * axis for slope, axis in zip(slopes, axes)).view(1, -1, 1).double()
        new, inside, n = [2 * n for n in old], [slice(5, -5)] * len(old), 1 + (len(old) == 2)
        finer = va.resize_positions(table, old, new).view(new)[tuple(inside)]
        for axis, slope in zip(range(len(old)), slopes):
            rise = finer.unfold(axis, 1 + n, 1)[..., n] - finer.unfold(axis, 1 + n, 1)[..., 0]
            same(rise, torch.full_like(rise, slope * n / 2))
        assert va.resize_positions(table, old, old) is table

    def test_in_space_it_is_bicubic(self):
        """Around a single one the surface dips below zero, which a bilinear one never does."""
        one = nn.functional.one_hot(torch.tensor(17), 35).double().view(1, 35, 1)
        assert va.resize_positions(one, (5, 7), (10, 14)).min() < -0.05
        assert not torch.equal(va.resize_positions(one, (5, 7), (7, 5)), one)  # as many, elsewhere


class TestBlocksAndHeads:
    def test_residual_steps_and_mlp(self):
        steps = [va.Attention(D, h, va.time_attention), va.Attention(D, h, va.space_attention)]
        block = va.Block(D, steps, va.MLP(D, 50)).double()
        x = expected = randn(B, 1 + math.prod(GRID), D)
        for norm, step in zip(block.norms, steps, strict=True):
            expected = expected + step(norm(expected), GRID)
        hidden = nn.functional.gelu(block.mlp.fc1(block.mlp_norm(expected)))
        same(block(x, GRID), expected + block.mlp.fc2(hidden))

    def test_depthwise_mlp(self):
        """A 3 x 3 window in each channel, with zeros around the frame; here with ViViT's GELU."""
        T, H, W = GRID
        mlp, x = va.MLP(D, 10, depthwise=True, gelu="tanh").double(), randn(B, T * H * W, D)
        hidden = nn.functional.pad(mlp.fc1(x).unflatten(1, GRID), (0, 0, 1, 1, 1, 1))
        out = mlp.depthwise.bias.expand(B, T, H, W, 10)
        for dy, dx in product(range(3), range(3)):
            weight = mlp.depthwise.weight[:, 0, dy, dx]
            out = out + weight * hidden[:, :, dy : dy + H, dx : dx + W]
        out = nn.functional.gelu(out, approximate="tanh").flatten(1, 3)
        same(mlp(x, GRID), mlp.fc2(out))

    def test_stochastic_depth_drops_whole_clips_and_keeps_the_mean(self):
        drop, x = va.StochasticDepth(0.3).train(), torch.ones(20_000, 2, 3)
        kept = drop(x).reshape(20_000, -1)
        assert (kept == kept[:, :1]).all() and abs(kept.mean() - 1) < 0.03
        assert set(kept.flatten().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
        assert drop.eval()(x) is x

    def test_stochastic_depth_acts_on_steps_and_mlp(self):
        """When every branch is dropped only the residual is left; in eval nothing is dropped."""
        step, x = va.Attention(D, h, va.space_attention), randn(B, math.prod(GRID), D)
        block = va.Block(D, [step], va.MLP(D, 50), drop_path=1 - 1e-9).double()
        same(block.train()(x, GRID), x, 0)
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

    def test_options_reach_the_blocks(self):
        """Stochastic depth grows with depth."""
        options = {"depthwise": True, "mlp_ratio": 2.52, "gelu": "tanh", "drop_path": 0.2}
        blocks = tiny("lvt", depth=5, **options).blocks
        same(torch.tensor([block.drop_path.p for block in blocks]), torch.arange(5) / 20, 1e-7)
        for block in blocks:
            assert block.mlp.depthwise.groups == block.mlp.fc1.out_features == 60
            assert block.mlp.gelu.approximate == "tanh"

    @pytest.mark.parametrize("head", [None, "class", "mean", "temporal", "encoder"])
    @pytest.mark.parametrize("kind, frames", [*product(["clip", "frame", "none"], [6, 1])])
    def test_pooled_features(self, kind, frames, head):
        """A model without a head gives them: class tokens or patches, averaged, or for a temporal
        head one for each frame, its class token if it has one, else its mean. If nothing is said it
        is the class tokens, if there are any."""
        if (kind, head) == ("none", "class"):
            pytest.skip("refused")
        model = tiny("divided", head=head, class_token=kind).double()
        video, C = randn(2, 3, frames, 24, 40), class_tokens_of(kind, (frames, 3, 5))
        class_tokens, means = model.forward_features(video).split([C, 15 * frames], dim=1)
        means = means.unflatten(1, (frames, 15)).mean(2)
        averaged = {"class": class_tokens.mean(1), "mean": means.mean(1)}
        pooled = averaged.get(head or ("mean" if kind == "none" else "class"))
        if pooled is None:
            pooled = class_tokens if kind == "frame" else means
        logits, classifier, model.head = model(video), model.head, nn.Identity()
        same(model(video), pooled)
        same(logits, classifier(pooled))

    @pytest.mark.parametrize("head", ["temporal", "encoder"])
    @pytest.mark.parametrize("depth, frames", [(1, 6), (3, 4)])
    def test_temporal_attention(self, head, depth, frames):
        """A new class token and the frames in transformer layers, by hand. X-ViT's has no biases in
        qkv, no positions, another eps; ViViT's encoder has all, for 1 + 3 tubelets, and a norm."""
        options, encoder = {"head_depth": depth, "patch_size": (2, 8, 8)}, head == "encoder"
        head = tiny("space", head=head, **options).head.temporal.double()
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.3)
        tokens = randn(2, frames, 24)
        x = torch.cat([head.class_token.expand(2, 1, 24), tokens], dim=1)
        if encoder:
            own = va.resize_positions(head.position[:, 1:], (3,), (frames,))
            x = x + torch.cat([head.position[:, :1], own], dim=1)
        for block in head.blocks:
            attention = block.steps[0]
            qkv = attention.qkv(block.norms[0](x)).unflatten(2, (3, 4, 6)).permute(2, 0, 3, 1, 4)
            x = x + attention.proj(exact(*qkv).transpose(1, 2).flatten(2))
            x = x + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.mlp_norm(x))))
            assert (attention.qkv.bias is not None) == encoder and block.mlp.fc1.out_features == 96
            assert block.norms[0].eps == block.mlp_norm.eps == (1e-6 if encoder else 1e-5)
        if encoder:
            x = nn.functional.layer_norm(x, (24,), head.norm.weight, head.norm.bias, 1e-6)
        same(head(tokens), x[:, 0])

    @pytest.mark.parametrize("mlp", [None, "tanh", "gelu"])
    def test_classifiers(self, mlp):
        model, x = tiny("joint", head_mlp=mlp, head_hidden=mlp and 40).double(), randn(2, 24)
        layers = [layer for layer in model.head.classify if isinstance(layer, nn.Linear)]
        hidden = x
        if mlp == "tanh":
            hidden = torch.tanh(layers[0](x))
        if mlp == "gelu":
            hidden = nn.functional.gelu(layers[0](nn.functional.layer_norm(x, (24,))))
        same(model.head(x), layers[-1](hidden))
        assert tiny("joint", head_mlp=mlp).head.classify[-1].in_features == 24  # if nothing is said

    @pytest.mark.parametrize("head, after_pool", [*product(["class", "mean"], [False, True])])
    def test_the_last_norm(self, head, after_pool):
        """On the tokens, or on what is pooled, as in TimeSformer's released space-only models."""
        model, found = tiny("joint", head=head, norm_after_pool=after_pool).double(), []
        norm, none = (model.norm, model.head.norm)[:: -1 if after_pool else 1]
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        assert not list(none.parameters())
        model.blocks[1].register_forward_hook(lambda *args: found.append(args[2]))
        logits = model(randn(*VIDEO))
        tokens = found[0] if after_pool else norm(found[0])
        pooled = (tokens[:, :1] if head == "class" else tokens[:, 1:]).mean(1)
        same(logits, model.head.classify(norm(pooled) if after_pool else pooled))


# ==== THE REGISTRY ================================================================================

# What stands must stay: names and their steps, class, functions, layers and flags, options.
EXPECTED = {
    "space": ["space"], "joint": ["joint"], "window": ["window"], "nystrom": ["nystrom"],
    "divided": ["time extra skips_class_token", "space"],
    "local_global": ["local extra", "global"], "mixing_summary": ["mixing summary=True"],
    "axial": ["time extra skips_class_token", "width extra", "height"],
    "factorised": ["space", "time proj skips_class_token"], "mixing": ["mixing"],
    "factorised_heads": ["factorised_heads"], "summary": ["summary"], "pooled": ["pooled"],
    "shifted_windows": ["shifted_window", "shifted_window displaced=True"],
    "pooled_queries": ["pooled pool_queries=True"], "performer": ["Performer"],
    "orthoformer": ["Orthoformer orthogonal_prototypes"], "linear": ["Linear"],
    "trajectory": ["Trajectory attend_per_frame at_once"], "linear_fixation": ["Linear gate_q"],
    "trajectory_orthoformer": ["OrthoformerTrajectory orthogonal_prototypes attend_per_frame"],
    "trajectory_nystrom": ["Trajectory nystrom_per_frame"],
    "trajectory_performer": ["PerformerTrajectory attend_per_frame"],
    "lvt": ["Linear time skips_class_token neighbours gate_q", "Linear space neighbours gate_q"],
}  # fmt: skip
KINDS = dict.fromkeys(["space", "window", "mixing", "summary", "mixing_summary"], "frame")
KINDS |= dict.fromkeys(["factorised", "factorised_heads", "shifted_windows", "lvt"], "none")


def in_words(module):
    words = [type(module).__name__.removesuffix("Attention")]
    words += [x.__name__ for x in vars(module).values() if inspect.isfunction(x)]
    words += [x for x in [getattr(module, "axis", "joint")] if x != "joint"]
    flags = (str(module.zero_init), "skips_class_token", "neighbours", "gate_q", "at_once")
    words += [name for name in flags if getattr(module, name, None)]
    words += [f"{key}={x}" for key, x in module.options.items()]
    return " ".join(words).replace("_attention", "").strip()


class TestRegistry:
    def test_names_steps_and_class_tokens(self):
        rows = {name: [in_words(step(24, 4)) for step in row] for name, row in va.ATTENTION.items()}
        assert {name: rows.get(name) for name in EXPECTED} == EXPECTED
        assert {name: va.CLASS_TOKEN.get(name) for name in KINDS} == KINDS

    @pytest.mark.parametrize("name", EXPECTED)
    def test_keys_of_the_weights(self, name):
        """Weights that anyone has saved still load."""
        layers = ["patches.proj", "norm", "head.classify.0"]
        layers += [f"blocks.0.{x}" for x in ("mlp_norm", "mlp.fc1", "mlp.fc2")]
        for i, step in enumerate(EXPECTED[name]):
            own = [x for x in ("extra", "gate_q") if x in step]
            own += ["proj_q", "proj_kv"] if "Trajectory" in step else []
            layers += [f"blocks.0.steps.{i}.{x}" for x in ("qkv", "proj", *own)]
            layers += [f"blocks.0.norms.{i}"]
        keys = {f"{layer}.{x}" for layer in layers for x in ("weight", "bias")}
        keys |= {"position.space", "position.time"}
        keys |= {"blocks.0.steps.0.projection"} if "performer" in name else set()
        keys |= {"class_token", "position.for_class"} if KINDS.get(name) != "none" else set()
        assert set(short(name).state_dict()) == keys

    def test_keys_of_what_is_optional(self):
        options = {"position": "joint", "patch_stride": 8, "head": "encoder", "head_mlp": "gelu"}
        keys = set(tiny("space", depthwise=True, norm_after_pool=True, **options).state_dict())
        layers = ["patches.norm", "blocks.1.mlp.depthwise", "head.norm", "head.temporal.norm"]
        layers += [f"head.classify.{i}" for i in (0, 1, 4)] + ["head.temporal.blocks.0.steps.0.qkv"]
        assert keys >= {f"{layer}.{x}" for layer in layers for x in ("weight", "bias")}
        assert keys >= {"position.joint", "head.temporal.class_token", "head.temporal.position"}

    def test_your_own_row(self, monkeypatch):
        """A name like any other, with a module of your own too; the options of a step are kept."""

        class Rolled(va.Attention):
            def mechanism(self, q, k, v, grid):
                return v.roll(1, dims=2)

        row = [va.step(va.window_attention, window=2, rotary=50), va.step(Rolled, dropout=0.5)]
        monkeypatch.setitem(va.ATTENTION, "mine", row)
        model = tiny(["mine", "space"], position="rotary").double()
        window, rolled = model.blocks[0].steps
        assert (window.rotary, model.blocks[1].steps[0].rotary) == (50, 10_000)
        assert type(rolled) is Rolled and (rolled.rotary, rolled.dropout.p) == (10_000, 0.5)
        assert window.options == {"window": 2}
        assert model.forward_features(randn(*VIDEO)).shape == (2, 91, 24)

    @pytest.mark.parametrize("names, kind", [
        (["space", "mixing"], "frame"), (["lvt", "factorised"], "none"),
        (["space", "joint"], "clip"), (["space", "factorised"], "clip")], ids=str)  # fmt: skip
    def test_the_class_token_that_all_blocks_agree_on(self, names, kind):
        """One for the clip if they do not, and what is asked for if it is asked for."""
        C = class_tokens_of(kind, (6, 3, 5))
        assert tiny(names).forward_features(torch.randn(VIDEO)).shape[1] == C + 90
        assert tiny(names, class_token="none").class_token is None

    def test_config_is_json_of_every_option_and_builds_the_model_again(self):
        """Also of options that no tensor tells."""
        given = {"patch_size": [2, 8, 8], "patch_stride": [2, 4, 4], "channels": 4, "heads": 4}
        given |= {"position": "joint", "class_token": "none", "head": "temporal", "head_depth": 2}
        given |= {"norm_after_pool": True, "depthwise": True, "gelu": "tanh", "checkpoint": True}
        given |= {"dim": 24, "depth": 2, "mlp_ratio": 2.5, "dropout": 0.1, "drop_path": 0.2}
        given |= {"attention": ["mixing", "space"], "image_size": [24, 40], "num_frames": 6}
        given |= {"head_mlp": "tanh", "head_hidden": 7}
        options = inspect.signature(va.VideoTransformer).parameters.items()
        model, video = va.VideoTransformer(**given).eval(), torch.randn(2, 4, 6, 24, 40)
        config = json.loads(json.dumps(model.config))
        assert config == {name: option.default for name, option in options} | given
        again = va.VideoTransformer(**config).eval()
        again.load_state_dict(model.state_dict())
        same(again(video), model(video), 0)


# ==== THE BACKBONE ================================================================================
class TestBackbone:
    def test_initialisation(self):
        """Linear layers are torch's own, of a deviation of 1 / sqrt(3 * inputs); embeddings have
        .02; zero is what image checkpoints lack: embeddings of time, layers of zero_init."""
        options = {"dim": 192, "depth": 2, "heads": 3, "position": "separate", "head": "temporal"}
        model = va.VideoTransformer("divided", **options)
        for name, x in model.named_parameters():
            if name in ("position.time", "head.temporal.class_token") or "extra" in name:
                assert x.abs().max() == 0, name
            elif x.ndim == 2:
                assert 0.95 < x.std() * (3 * x.shape[1]) ** 0.5 < 1.05, name
            elif x.ndim == 3:
                assert 0.018 < x.std() < 0.022, name
        norms = [x for x in model.modules() if isinstance(x, nn.LayerNorm)]
        assert [norm.eps for norm in norms] == [1e-6] * 7 + [1e-5] * 2
        assert 0.018 < tiny("joint", position="joint").position.joint.std() < 0.022
        assert 0.018 < tiny("joint", head="encoder").head.temporal.position.std() < 0.024
        assert tiny("joint", registers=40).registers.std() < 0.022
        space, time = tiny("factorised").blocks[0].steps
        assert time.proj.weight.abs().max() == 0 and space.proj.weight.std() > 0.1

    @pytest.mark.parametrize("name", ["divided", "factorised", "joint"])
    def test_a_clip_starts_as_a_bag_of_images(self, name):
        """New branches and embeddings of time are zero: the order of frames does not matter."""
        model, video = tiny(name).double(), randn(*VIDEO)
        same(model(video), model(video.flip(2)))

    def test_registers(self):
        """They follow the clip's class token, have no position, and pooling leaves them out."""
        for kind, head in (("clip", "class"), ("clip", "mean"), ("none", "mean")):
            model = tiny("joint", class_token=kind, registers=3, depth=0, head=head).double()
            video, C = randn(*VIDEO), 3 + (kind == "clip")
            x, grid = model.patches(video)
            own = torch.empty(2, 0, 24) if kind == "none" else model.class_token.expand(2, 1, 24)
            x = model.position(torch.cat([own, x], 1), grid)
            x = torch.cat([x[:, : C - 3], model.registers.expand(2, 3, 24), x[:, C - 3 :]], 1)
            tokens = model.norm(x)
            same(model.forward_features(video), tokens)
            pooled = tokens[:, 0] if head == "class" else tokens[:, C:].mean(1)
            same(model(video), model.head(pooled))
            expected = tokens[:, C:].unflatten(1, grid), tokens[:, :C]
            assert all(map(torch.equal, model.feature_maps(video), expected))

    @pytest.mark.parametrize("head, after_pool", [("class", True), ("mean", False), ("temporal", 0)])
    def test_no_classes_is_pooled_features(self, head, after_pool):
        """As with model.head = nn.Identity(), but for a norm or a temporal head before it."""
        options = {"head": head, "norm_after_pool": bool(after_pool)}
        model, video = tiny("joint", num_classes=0, **options).double(), randn(*VIDEO)
        whole = tiny("joint", **options).double()
        whole.load_state_dict(model.state_dict(), strict=False)
        whole.head.classify = nn.Identity()
        same(model(video), whole(video))
        assert model(video).shape == (2, 24) and not list(model.head.classify.parameters())

    @every_scheme
    def test_any_clip(self, name):
        """Other frames, rows and columns, one patch, no clips. What is random is so in training."""
        model = short(name, dropout=0.5, drop_path=0.5)
        for size in ((2, 3, 5, 24, 56), (1, 3, 1, 16, 24), (1, 3, 6, 8, 8), (1, 3, 1, 8, 8)):
            logits = model(torch.randn(size))
            assert logits.shape == (size[0], 5) and logits.isfinite().all()
        assert model(torch.randn(0, *SHORT[1:])).shape == (0, 5)
        video, C = torch.randn(SHORT), class_tokens_of(KINDS.get(name, "clip"), (3, 2, 3))
        assert model.forward_features(video).shape == (2, C + 18, 24)
        same(model(video)[:1], model(video[:1]), 1e-5)  # clips of a batch do not meet
        assert torch.equal(model(video), model(video))
        assert not torch.equal(model.train()(video), model(video))

    @every_scheme
    def test_overfits_eight_clips(self, name):
        """Clips of noise, labels of no meaning: what cannot learn these in 25 steps is broken. No
        parameter sleeps. (In trajectory attention no patch attends to the class token.)"""
        video, label = torch.randn(8, *SHORT[1:]), torch.arange(8) % 4
        model = short(name, head="mean").train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(25):
            loss = nn.functional.cross_entropy(model(video), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gradients = {key: x.grad for key, x in model.named_parameters()}
        asleep = {key for key, x in gradients.items() if x is None or not x.any()}
        assert asleep == ({"class_token", "position.for_class"} if "trajectory" in name else set())
        assert (model.eval()(video).argmax(1) == label).all(), f"loss {loss:.3f} after 25 steps"


# ==== WHAT IS REFUSED =============================================================================
def called(name, grid=GRID, axes=(0, 1, 2, 3), **options):
    """A mechanism of (2, 4, 140, 6); its prototypes, projection or second stage are made up."""
    made_up = {"performer_attention": {"projection": torch.randn(9, 6)}}
    made_up |= {"orthoformer_attention": {"prototypes": torch.randn(2, 4, 5, 6)}}
    stages = {"first_stage": va.attend_per_frame, "second_stage": lambda y: y.mean(3)}
    made_up |= {"trajectory_attention": stages}
    q, k, v = torch.randn(3, 2, 4, 140, 6).permute(0, *(1 + axis for axis in axes))
    return getattr(va, name)(q, k, v, grid, **made_up.get(name, {}), **options)


def put(mechanism, C=0, dim=24, **options):
    """A step in front of tokens."""
    return va.step(mechanism, **options)(dim, 4)(torch.randn(2, C + 140, dim), GRID)


def model(*video, attention="joint", **options):
    return tiny(attention, **options)(torch.randn(video or VIDEO))


# A call, what comes, and a part of what it says. Most of this used to pass in silence.
REFUSED = [
    ("model(heads=5)", AssertionError, "dim=24.*heads=5"),
    ("model(attention='factorised_heads', heads=3)", AssertionError, "h=3"),
    ("put(va.joint_attention, C=20)", AssertionError, "160 tokens.*5, 4, 7"),
    ("called('time_attention', causal=True, class_key=True)", AssertionError, "causal"),
    ("called('time_attention', causal=True, attention=lambda q, k, v: v)", TypeError, "causal"),
    ("called('window_attention', window=-1)", AssertionError, "-1"),
    ("called('mixing_attention', window=-1)", AssertionError, "-1"),
    ("called('mixing_attention', moved=.1)", AssertionError, "moved=0.1"),
    ("called('shifted_window_attention', displaced=(0, 0, 0))", AssertionError, "displaced"),
    ("put(va.LinearAttention, neighbours=True)", AssertionError, "joint"),
    ("put(va.LinearAttention, axis='time', neighbours=True, dim=12)", AssertionError, "0 channels"),
    ("put(va.LinearAttention, axis='space', neighbours=True, C=1)", einops.EinopsError, "141"),
    ("va.shift_from_neighbours(torch.ones(1, 1, 6, 6), (1, 2, 3), [(1, 0, 0)], 9)", Exception, "9"),
    ("va.most_orthogonal_subset(torch.randn(2, 9, 4), 10)", AssertionError, "10 of 9"),
    ("put(va.TrajectoryAttention, windw=2)", AssertionError, "windw"),
    ("model(dim=16, position='rotary')", AssertionError, "4 channels"),
    ("model(dim=28, position='rotary')", AssertionError, "7 channels"),
    ("model(attention='divded')", KeyError, "divded"),
    ("model(attention=['space', 'joint'], depth=3)", AssertionError, "2 names.*depth=3"),
    ("model(position='learned')", AssertionError, "learned"),
    ("model(class_token='two')", AssertionError, "two"),
    ("model(class_token=False)", AssertionError, "False"),
    ("model(class_token='none', head='class')", AssertionError, "head"),
    ("model(head='max')", AssertionError, "max"),
    ("model(head_hidden=7)", AssertionError, "head_hidden=7"),
    ("model(head_depth=3)", AssertionError, "head_depth=3"),
    ("model(head='temporal', head_depth=0)", AssertionError, "head_depth=0"),
    ("model(depthwise=True)", einops.EinopsError, "T H W"),
    ("model(attention='lvt', class_token='clip')", einops.EinopsError, "91"),
    ("model(mlp_ratio=.01)", AssertionError, "mlp_ratio"),
    ("model(patch_stride=9)", AssertionError, "9"),
    ("model(image_size=(3, 24, 40))", AssertionError, "3, 24, 40"),
    ("model(patch_size=(2, 8, 8), num_frames=1)", AssertionError, "2, 8, 8"),
    ("model(2, 3, 5, 24, 40, patch_size=(2, 8, 8))", AssertionError, r"\(5, 24, 40\).*\(2, 8, 8\)"),
    ("model(2, 3, 6, 20, 40)", AssertionError, r"\(6, 20, 40\)"),
    ("model(2, 6, 3, 24, 40)", AssertionError, r"6 channels.*transpose\(1, 2\)"),
    ("tiny('joint')(torch.ones(VIDEO, dtype=torch.uint8))", AssertionError, "clips.views"),
    ("model(registers=2, class_token='frame')", AssertionError, "whole clip"),
    ("model(registers=5)", AssertionError, "6 class tokens"),
    ("put(va.TrajectoryAttention, at_once=3, first_stage=va.nystrom_per_frame)",
     AssertionError, "approximation"),
]  # fmt: skip
# These torch, einops or Python refuse by themselves, each in its own words.
REFUSED += [(call, Exception, "") for call in (
    "called('window_attention', window=1.5)", "called('pooled_attention', stride=(0, 1, 1))",
    "called('pooled_attention', stride=(1, 1))", "put(va.joint_attention, zero_init=True)",
    "called('shifted_window_attention', size=(8, 7, 0))", "put(va.PerformerAttention, features=0)",
    "called('nystrom_attention', landmarks=0)", "put(va.OrthoformerAttention, prototypes=0)",
    "put(va.LinearAttention, axis='tim')")]  # fmt: skip
for mechanism in [name for name in vars(va) if name.endswith("_attention")]:
    REFUSED += [(f"called('{mechanism}', (5, 4, 8))", AssertionError, "140 tokens.*5, 4, 8")]
    layout = f"called('{mechanism}', axes=(0, 2, 1, 3))"  # (B, N, h, d)
    REFUSED += [(layout, AssertionError, "4 tokens.*5, 4, 7")]


@pytest.mark.parametrize("call, error, words", REFUSED, ids=[call for call, *_ in REFUSED])
def test_refused(call, error, words):
    with pytest.raises(error, match=words or None):
        eval(call)


# ==== THE PAPERS' OWN CODE ========================================================================

GOLDEN = Path(os.environ.get("VA_GOLDEN", HERE / "tiny_data" / "pretrained" / "golden"))
CASES = [x for x in sorted(GOLDEN.glob("*")) if x.is_file() and x.suffix not in (".md", ".txt")]
CASES = CASES or [GOLDEN]  # which is no case, and a failure


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path, dtype):
    """The same numbers as the official code; a file that nobody recognises is a failure."""
    golden = importlib.import_module("tiny_data.pretrained.golden")
    assert "expected" in golden.compare(path, dtype)


# ==== WHAT IS EXECUTED: shape comments, copied text, the file =====================================

SHAPE = r"(\((?:[^()]|\([^()]*\))*\))"  # such as (B, h, n*(C + L), d)


@cache
def statements():
    """{line: (node, the shapes said at its end)} of what assigns, returns or repeats."""
    found, lines = {}, SOURCE.splitlines()
    functions = [n for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.FunctionDef)]
    functions = [one for one in functions if one.name not in ("__init__", "in_float32", "raised")]
    for node in [node for one in functions for node in ast.walk(one)]:
        if isinstance(node, (ast.Assign, ast.Return)):
            comment = lines[node.end_lineno - 1].partition("  # ")[2]
            said = re.match(rf"(?:each |both )?{SHAPE}(?: and {SHAPE})?", comment)
            entry = node, [shape for shape in said.groups() if shape] if said else []
            found |= dict.fromkeys(range(node.lineno, node.end_lineno + 1), entry)
        if isinstance(node, ast.For):
            found[node.lineno] = node, []
    return found


def tensors_in(x):
    """A tensor, or those of a tuple."""
    return [y for y in (x if isinstance(x, tuple) else [x]) if torch.is_tensor(y)]


def value(axis, size, letters):
    """An axis such as C + T*S in numbers. A letter that is new, such as P, gets the size that
    fits; of two new ones nothing can be said."""
    new = set(re.findall(r"[A-Za-z]\w*", axis)) - letters.keys()
    if len(new) > 1:
        return size
    for guess in range(size + 1) if new else []:
        found = letters | dict.fromkeys(new, guess)
        if eval(axis, {}, found) == size:
            letters.update(found)
    return eval(axis, {}, letters) if new <= letters.keys() else None


def is_shape(shape, sizes, letters):
    """Whether (B, h, N, d) are these sizes; * is for each number of a tuple, ... for any axes."""
    axes = shape[1:-1].rstrip(",").split(", ")
    axes = [n for a in axes for n in (map(str, letters[a[1:]]) if a[0] == "*" else [a])]
    if "..." in axes:
        i = axes.index("...")
        axes[i : i + 1] = map(str, sizes[i : len(sizes) - len(axes) + i + 1])
    said = [[value(one, n, letters) for one in a.split(" or ")] for a, n in zip(axes, sizes)]
    return len(axes) == len(sizes) and all(n in one for one, n in zip(said, sizes))


class ShapeChecker:
    """Traces every call into the file whose grid is that of the model, and compares what each
    assignment and each return makes with the comment at its end."""

    def __init__(self):
        self.model, self.wrong, self.reached = {}, {}, set()

    def __call__(self, frame, event, argument):
        """Groups as a batch, halves of heads and the patches alone have letters of their own."""
        given, code, known = frame.f_locals, frame.f_code, self.model | {"prod": math.prod}
        if code.co_filename != str(va.__file__) or code.co_name[0] == "<":
            return None
        if given.get("grid", known["grid"]) != known["grid"]:
            return None
        for x in [x for name in "qx" for x in tensors_in(given.get(name)) if x.ndim == 4]:
            sizes = dict(zip("BhN", x.shape))
            known = {letter: n for letter, n in known.items() if sizes.get(letter, n) == n}
        for name, letter, axis in (("q", "I", -2), ("k", "J", -2), ("v", "e", -1)):
            known = known | {letter: x.shape[axis] for x in tensors_in(given.get(name))}
        letters, running = dict(known), None

        def step(frame, event, argument):
            """A statement has ended when another begins, or its function."""
            nonlocal letters, running
            node = statements().get(frame.f_lineno, [None])[0] if event == "line" else None
            if node is not running and isinstance(running, (ast.Assign, ast.Return)):
                variables = frame.f_locals
                letters |= {n: x for n, x in variables.items() if type(x) in (int, tuple)}
                self.compare(running, variables, argument, letters)
            if isinstance(node, ast.For):  # the next round may have other sizes
                letters = dict(known)
            running = node
            return step

        return step

    def compare(self, node, variables, returned, letters):
        """The tensors that a statement has made, with its comment."""
        shapes, made = statements()[node.lineno][1], tensors_in(returned)
        if isinstance(node, ast.Assign):
            names = [n.id for x in node.targets for n in ast.walk(x) if isinstance(n, ast.Name)]
            made = [x for name in names for x in tensors_in(variables.get(name))]
        text, new = f"{node.lineno}: {ast.unparse(node)}", (ast.Call, ast.BinOp, ast.Slice)
        if made and not shapes and any(isinstance(n, new) for n in ast.walk(node)):
            self.wrong[text] = "has no comment"
        for x, shape in zip(made, shapes if len(shapes) > 1 else shapes * len(made)):
            self.reached.add(node)
            if not is_shape(shape, x.shape, letters):
                self.wrong[text] = f"is {tuple(x.shape)}, not {shape}"


def models_of_every_form():
    """Every scheme and form of the model, with sizes that are all unequal."""
    sizes = {"dim": 140, "heads": 10, "image_size": (24, 32), "num_classes": 11, "depth": 1}
    chosen = {"prototypes": 5, "shared_prototypes": False}
    rows = {"class_key": [va.step(va.time_attention, class_key=True)]}
    rows |= {"causal": [va.step(va.time_attention, causal=True)]}
    rows |= {"chosen": [va.step(va.OrthoformerTrajectoryAttention, **chosen)]}
    with mock.patch.dict(va.ATTENTION, rows):
        models = [tiny(name, **sizes) for name in [*SCHEMES, *rows]]
    forms = [{"head": "encoder"}, {"head": "mean", "position": "rotary"}]
    forms += [{"head": "temporal", "class_token": kind} for kind in ("frame", "none")]
    forms += [{"depthwise": True, "class_token": "none", "patch_size": 9, "patch_stride": 8}]
    forms += [{"position": "joint", "num_frames": 5, "head_mlp": "gelu", "head_hidden": 13}]
    forms += [{"class_token": "clip", "registers": 2}]
    models += [tiny("space", **sizes | form) for form in forms]
    models += [tiny(name, **sizes, position="rotary") for name in ("joint", "linear", "lvt")]
    models += [tiny("trajectory", **sizes)]  # with a hook, in the plain form
    models[-1].blocks[0].steps[0].proj_kv.register_forward_hook(lambda *_: None)
    training = {"depth": 2, "drop_path": 0.5, "checkpoint": True}
    return [*models, tiny("local_global", **sizes | training).train()]


def test_every_line_that_makes_a_tensor_has_a_true_shape_comment():
    """Each letter is a size of the model, of the call, or a variable; or always the same number."""
    checker, video = ShapeChecker(), torch.randn(2, 3, 6, 24, 32)
    qkv = torch.randn(3, 2, 10, 73, 14)
    for model in models_of_every_form():
        N = model.forward_features(video).shape[1]
        checker.model = {"B": 2, "T": 6, "H": 3, "W": 4, "S": 12, "D": 140, "h": 10, "d": 14}
        checker.model |= {"N": N, "C": N - 72, "c": 1 if N == 78 else N - 72, "grid": (6, 3, 4)}
        sys.settrace(checker)
        try:
            model(video), model.feature_maps(video)
            va.attention_weights(torch.randn(2, 5, 14), torch.randn(2, 3, 14))
            va.linear_attention(*qkv, (6, 3, 4))
            va.performer_attention(*qkv, (6, 3, 4), va.orthogonal_projection(13, 14))
        finally:
            sys.settrace(None)
    assert not checker.wrong, "\n".join(f"{text}  {what}" for text, what in checker.wrong.items())
    said = [node for node, shapes in statements().values() if shapes]
    assert not [ast.unparse(node) for node in said if node not in checker.reached], "not reached"


@cache
def definitions():
    """{name: text} of all functions, classes and constants of the file, in its order."""
    found, lines = {}, SOURCE.splitlines()
    for node in ast.parse(SOURCE).body:
        name = node.targets[0].id if isinstance(node, ast.Assign) else getattr(node, "name", "")
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        found[name] = "\n".join(lines[first - 1 : node.end_lineno])
    return {name: text for name, text in found.items() if name}


class TestFile:
    def test_every_mechanism_has_questions_a_cost_and_a_source(self):
        classes = [*Questions.__subclasses__(), *InGroups.__subclasses__()]
        asked = {one.mechanism.__name__ for one in classes if one.mechanism}
        assert asked == {name for name in definitions() if name.endswith("_attention")}
        for name, title in product(asked, ("Cost  ", "Source  ", "Copy with  ", "https://")):
            assert title in vars(va)[name].__doc__, name

    def test_lines_columns_and_imports(self):
        lines, imports = SOURCE.splitlines(), re.findall(r"^ *(?:import|from) (\w+)", SOURCE, re.M)
        assert len(lines) <= 1400
        assert [n for n, line in enumerate(lines, 1) if len(line) > 100] == []
        assert set(imports) == {"math", "itertools", "functools", "torch", "einops"}

    def test_contents_name_what_is_there(self):
        """Every bar of the file is in its table of contents, in order."""
        at, contents = 0, va.__doc__[va.__doc__.index("CONTENTS") :]
        for bar in re.findall(r"^# ==== ([A-Z][A-Z -]+[A-Z])", SOURCE, re.M):
            at = contents.index(bar, at) + len(bar)


# ==== WHAT TORCH DOES WITH IT =====================================================================

# An exported graph holds for any T, except where T decides what the graph is.
ONE_GRAPH_FOR_EACH_T = {
    "window": "a loop over the frames",
    **dict.fromkeys(["local_global", "shifted_windows"], "boxes are built for a grid"),
    **dict.fromkeys(["nystrom", "trajectory_nystrom"], "some segments are longer by one, or none"),
    "lvt": "along time the cheaper order is taken, for T < d or T >= d",
}
ANY_T = EXPECTED.keys() - ONE_GRAPH_FOR_EACH_T


class TestGraphs:
    """One graph for clips of many lengths. A table of time is taken as it is at the T it was made
    for, which is a graph of its own; so the models here are made for one frame.
    einops are nodes that are not looked into. VA_COMPILE=inductor looks into all, and builds it."""

    @pytest.fixture(autouse=True)
    def backend(self):
        """To remember what every operation made of every size takes longer than to ask again."""
        torch._dynamo.reset()
        if "VA_COMPILE" not in os.environ:
            for function in (einops.rearrange, einops.reduce, einops.repeat):
                torch._dynamo.allow_in_graph(function)
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield os.environ.get("VA_COMPILE", "eager")

    @every_scheme
    def test_a_block_compiles_without_a_break(self, name, backend):
        """One compiled block for three lengths, with gradients."""
        block, C = short(name).blocks[0], int(name != "lvt")
        compiled = torch.compile(block, fullgraph=True, backend=backend)
        for T in (3, 5, 4):
            x = torch.randn(2, C + 6 * T, 24, requires_grad=True)
            found = [f(x, (T, 2, 3)) for f in (compiled, block)]
            same(*found, 1e-5)
            same(*(torch.autograd.grad(out.square().sum(), x)[0] for out in found), 1e-4)

    @pytest.mark.parametrize("dynamic", [None, True], ids=["later", "at once"])
    @pytest.mark.parametrize("name", SCHEMES if "VA_COMPILE" in os.environ else ["joint"])
    def test_a_model_compiles_without_a_break(self, name, dynamic, backend):
        """With sizes that are left open after the second length, or at once."""
        model = short(name, num_frames=1)
        compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic)
        for T in (3, 5, 4):
            video = torch.randn(2, 3, T, 16, 24)
            same(compiled(video), model(video), 1e-5)

    @every_scheme
    def test_exports(self, name):
        """For any batch, and any number of frames where that does not decide what the graph is."""
        any_T, model = name in ANY_T, short(name, num_frames=1)
        open_axes = (dict.fromkeys([0, 2] if any_T else [0], torch.export.Dim.DYNAMIC),)
        exported = torch.export.export(model, (torch.randn(SHORT),), dynamic_shapes=open_axes)
        for batch, T in ((5, 3), (1, 7 if any_T else 3)):
            video = torch.randn(batch, 3, T, 16, 24)
            same(exported.module()(video), model(video), 1e-5)


class TestPlumbing:
    @every_scheme
    @HALVES
    def test_half_precision(self, name, dtype):
        """Autocast, weights of half precision, and autocast of these with a video of float32."""
        for scale in (1, 100):
            model, video = short(name), scale * torch.randn(SHORT)
            expected, halved = model(video), copy.deepcopy(model).to(dtype)
            with torch.autocast("cpu", dtype=dtype):
                found = [model(video), halved(video)]
            for out in (*found, halved(video.to(dtype))):
                assert distance(out.float(), expected) < 0.05

    @every_scheme
    def test_copies(self, name):
        """Deep and pickled ones, a functional call, and a model built without memory."""
        model, video = short(name), torch.randn(SHORT)
        expected, state = model(video), model.state_dict()
        with torch.device("meta"):
            empty = short(name)
            assert empty(torch.empty(SHORT)).is_meta
        same(torch.func.functional_call(short(name), state, (video,)), expected, 0)
        empty.to_empty(device="cpu").load_state_dict(state)
        for again in (empty, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            same(again(video), expected, 0)

    @pytest.mark.parametrize("name", ["joint", "trajectory_orthoformer", "lvt"])
    def test_checkpoint_gives_the_same_gradients(self, name):
        """Also with dropout: what is computed again meets the same random numbers."""
        video, found, calls = torch.randn(SHORT), [], []
        for checkpoint in (False, True):
            torch.manual_seed(SEED)
            model = short(name, dropout=0.3, drop_path=0.3, checkpoint=checkpoint).train()
            model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(checkpoint))
            loss = model(video).square().sum()
            found.append(torch.autograd.grad(loss, model.parameters(), allow_unused=True))
        for plain, again in zip(*found):
            if plain is not None:
                same(again, plain, 1e-6)
        model.eval()(video).sum().backward()
        assert calls == [False, True, True, True]  # once without, twice in training, once in eval

    @every_scheme
    def test_every_layer_can_have_an_adapter(self, name):
        """The output changes, and gradients arrive: every layer is called, so that it can also have
        a hook or quantised weights. (Trajectory's fast form must step aside.)"""
        model, video = short(name, head="mean").double(), randn(*SHORT)
        for parameter in model.parameters():  # no branch starts at zero
            nn.init.normal_(parameter, std=0.3)
        before = model(video)
        layers = [(key, x) for key, x in model.named_modules() if isinstance(x, nn.Linear)]
        for key, layer in layers:
            adapter = nn.Sequential(layer, *linear(layer.out_features, layer.out_features))
            model.set_submodule(key, adapter)
            after = model(video)
            after.square().sum().backward()
            assert distance(after, before) > 1e-6, f"adapter without effect on {key}"
            assert adapter[1].weight.grad.abs().max() > 0, f"no gradient on {key}"
            model.set_submodule(key, layer)
        same(model(video), before, 0)
