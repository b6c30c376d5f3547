"""The proof of video_attention.py, and a second explanation of it.

    pytest                                       everything, in a minute and a half
    pytest -k Trajectory                         one mechanism
    VIDEO_ATTENTION=student.py pytest            the same questions, put to another file
    VA_SEED=1 pytest                             with other random numbers
    python test_video_attention.py mutate        with mistakes in the file, each of which must turn a test red
    python test_video_attention.py isolate       with one body blank, which must turn no other question red

To teach with it, where a NAME is a function, a class or a Class.method of the file:

    python test_video_attention.py blank NAME... > student.py           the file to hand out, these unwritten
    python test_video_attention.py blank --hints NAME... > student.py   with their shapes left in comments
    VIDEO_ATTENTION=student.py pytest -k TestSpace --junitxml=space.xml one question is one test class
    python test_video_attention.py graft student.py NAME... > mixed.py  these from the student, the rest ours
    python test_video_attention.py score space.xml...                   the marks, question by question

What is still unwritten is skipped as "not attempted yet"; with VA_GRADE=1 it fails.

Every mechanism climbs the same ladder. It equals an ORACLE written here in plain loops over (t, y, x), which
shares no code with the file; it SEES exactly the patches that its paper says, found by gradients; it COSTS
what its docstring says, counted by torch; its LIMITS are the mechanisms that it should become; and it stays
finite in half precision. All of it in float64, with every size different from every other, so that a swapped
axis cannot hide.
"""

import ast
import importlib.util
import inspect
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ElementTree
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
REFERENCE = HERE / "video_attention.py"
TINY_DATA = HERE / "tiny_data"
SEED = int(os.environ.get("VA_SEED", 0))
torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


class Missing:
    """Stands for what the file under test does not define, so that the rest of it can still be tested."""

    def __init__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.name = self.__name__ = name

    def __call__(self, *args, **options):
        pytest.fail(f"{va.__file__} does not define {self.name}", pytrace=False)


def load_subject():
    """The file under test: video_attention.py, or the one that VIDEO_ATTENTION names."""
    path = Path(os.environ.get("VIDEO_ATTENTION", REFERENCE))
    spec = importlib.util.spec_from_file_location("video_attention", path)
    sys.modules["video_attention"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__getattr__ = Missing  # asked for what the file does not define
    return module


va = load_subject()
sys.path.insert(0, str(HERE))
try:
    from tiny_data import CLASSES, image_path_ceiling, moving_objects
except ImportError:
    moving_objects = None  # grading another file needs this one alone

# ==== NOT ATTEMPTED YET =====================================================================================

NOT_WRITTEN = "is not written yet"  # what `blank` leaves in the place of a body
COPIED = "copied from the file"  # where the text of TestCopying says that it is from
GRADE = os.environ.get("VA_GRADE") == "1"


def still_blank(error):
    """The name of the unwritten function of the file under test that raised this error, or None."""
    if not isinstance(error, NotImplementedError):
        return None
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    if code.co_filename not in (str(va.__file__), COPIED):
        return None
    return str(error).removesuffix(NOT_WRITTEN).strip() or code.co_name


def not_attempted(name):
    message = f"{name}: not attempted yet"
    if GRADE:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item, call):
    """A test that met an unwritten body is skipped, and says which; with VA_GRADE=1 it fails."""
    name = still_blank(call.excinfo.value) if call.excinfo else None
    if name is not None:
        try:
            not_attempted(name)
        except (pytest.skip.Exception, pytest.fail.Exception):
            call.excinfo = pytest.ExceptionInfo.from_current()


@pytest.fixture(scope="session", autouse=True)
def hooks_of_this_file(request):
    """pytest looks for hooks in plugins and not in tests, so this file becomes a plugin."""
    request.config.pluginmanager.register(sys.modules[__name__])


# ==== TOOLS =================================================================================================

B, h, d = 2, 3, 6  # clips, heads, width of a head
D = h * d
GRID = (5, 4, 7)  # (T, H, W): no two sizes in this file are equal
GRIDS = [GRID, (5, 3, 7), (1, 4, 7), (5, 1, 1), (1, 1, 1)]  # odd halves, one frame, one patch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(SEED)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def qkv(grid=GRID, C=0):
    return [randn(B, h, C + math.prod(grid), d) for _ in range(3)]


def patches_of(grid):
    """All (t, y, x), in the order of the tokens."""
    T, H, W = grid
    return [(t, y, x) for t in range(T) for y in range(H) for x in range(W)]


def asked(call, *inputs):
    """What call(*inputs) gives; it gets copies, and must leave them as they are."""
    given = [x.clone() for x in inputs]
    answer = call(*given)
    for name, x, before in zip("qkv", given, inputs):
        if not torch.equal(x, before):
            pytest.fail(f"the answer changed its input {name} in place", pytrace=False)
    return answer


def must_be_tensor(actual):
    """Fail if it is none, and say what came back."""
    if actual is None:
        pytest.fail("None came back: is a return missing?", pytrace=False)
    if isinstance(actual, (tuple, list)):
        pytest.fail(f"a {type(actual).__name__} of {len(actual)} came back, not one tensor", pytrace=False)
    if not isinstance(actual, torch.Tensor):
        pytest.fail(f"no tensor came back but {type(actual).__name__}: {actual!r:.60}", pytrace=False)


def in_words(*sizes):
    """The pattern of a shape in a message: only its numbers and their order count, so torch.Size fits too."""
    return r"(?<!\d)" + r"\D+".join(str(size) for size in sizes) + r"(?!\d)"


def same(actual, expected, tolerance=1e-10):
    """Equal to within the tolerance; if not, say by how much and where."""
    must_be_tensor(actual)
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    difference = (actual - expected).abs().nan_to_num(nan=torch.inf)
    worst = difference.max().item()
    place = tuple(int(i) for i in np.unravel_index(difference.argmax().item(), difference.shape))
    assert worst <= tolerance, f"largest difference {worst:.3g} at {place}, allowed {tolerance:.3g}"


def how_tokens_differ(actual, expected, grid, kind, tolerance):
    """For (B, h, C + T*S, d) what tokens differ and where most, in words; nothing if they do not."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    C = expected.shape[2] - math.prod(grid)
    difference = (actual - expected).abs().nan_to_num(nan=torch.inf)
    names = [f"class token {c}" for c in range(C)] + [f"patch {patch}" for patch in patches_of(grid)]
    differ = [name for name, bad in zip(names, (difference > tolerance).any(3).any(1).any(0)) if bad]
    few = ", ".join(differ[:4]) + (f" ... {differ[-1]}" if len(differ) > 4 else "")
    where = f"(T, H, W) = {grid}, class tokens: {kind}"
    text = f"{where}: {len(differ)} of {len(names)} tokens differ from the oracle: {few}"
    worst = f"largest difference {difference.max().item():.3g} at {place_of_largest(difference, grid)}"
    return f"{text}\n{worst}, allowed {tolerance:.3g}" if differ else ""


def place_of_largest(difference, grid):
    """Where a difference (B, h, C + T*S, d) is largest, in words."""
    C = difference.shape[2] - math.prod(grid)
    batch, head, n, _ = (int(i) for i in np.unravel_index(difference.argmax().item(), difference.shape))
    if n < C:
        return f"(batch, head) = {(batch, head)}, class token {n}"
    return f"(batch, head, t, y, x) = {(batch, head, *patches_of(grid)[n - C])}"


def softmax_mean(q, keys, values):
    """One query (..., d), keys and values (..., J, d) -> (..., d), by the definition."""
    scores = (q[..., None, :] * keys).sum(-1) / q.shape[-1] ** 0.5
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights[..., None] * values).sum(-2)


def oracle_in_groups(q, k, v, grid, group, class_joins=True):
    """Patches with the same group(t, y, x) attend to each other, and to the class token if it joins; a class
    token for the clip joins every group, one per frame those of its frame, and becomes the mean of what it
    found."""
    C = q.shape[2] - math.prod(grid)
    members = {}
    for n, patch in enumerate(patches_of(grid)):
        members.setdefault(group(*patch), []).append((n + C, patch[0]))
    out, found = torch.zeros_like(q), {c: [] for c in range(C)}
    for patches in members.values():
        frames = {t for n, t in patches}
        class_tokens = [c for c in range(C) if class_joins and (C == 1 or c in frames)]
        tokens = class_tokens + [n for n, t in patches]
        for i in tokens:
            result = softmax_mean(q[:, :, i], k[:, :, tokens], v[:, :, tokens])
            found[i].append(result) if i < C else out[:, :, i].copy_(result)
    for c, results in found.items():
        if results:
            out[:, :, c] = torch.stack(results).mean(0)
    return out


def seen_by(step, grid, query):
    """The patches whose input can change the module's output for patch `query`, by the gradient, as a set."""
    module = step(D, h).double().eval()
    x = randn(1, math.prod(grid), D).requires_grad_()
    n = patches_of(grid).index(query)
    (gradient,) = torch.autograd.grad(module(x, grid)[0, n].sum(), x)
    reached = gradient[0].abs().sum(-1) > 1e-14
    return {patch for patch, hit in zip(patches_of(grid), reached) if hit}


def picture(seen, grid, query):
    """The character picture of a docstring."""
    T, H, W = grid
    mark = {patch: "#" for patch in seen} | {query: "Q"}
    lines = ["  ".join(f"t={t}".ljust(W) for t in range(T)).rstrip()]
    for y in range(H):
        lines.append("  ".join("".join(mark.get((t, y, x), ".") for x in range(W)) for t in range(T)))
    return [" " * 8 + line for line in lines]


def same_picture(actual, expected):
    """Equal lines; if not, show the two one under the other."""
    if actual != expected:
        expected, actual = "\n".join(expected), "\n".join(actual)
        pytest.fail(f"what the patch Q sees, expected:\n{expected}\ncomputed:\n{actual}", pytrace=False)


def reference_docstring(name):
    """What the file beside this one says of a definition, or nothing."""
    source = REFERENCE.read_text() if REFERENCE.exists() else ""
    nodes = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
    return ast.get_docstring(nodes[name], clean=False) if name in nodes else None


def docstring(function, pattern):
    """The function's docstring, or where that lacks the pattern the reference's; or else skip."""
    for document in (function.__doc__, reference_docstring(function.__name__)):
        if re.search(pattern, document or "", re.M):
            return document
    pytest.skip(f"{function.__name__}: no docstring to compare")


def formula(function):
    """The cost formula in a docstring."""
    line = r"^ *Cost +(\S.*?)(?:  .*)?$"
    return re.search(line, docstring(function, line), re.M).group(1)


def counted(call):
    """Multiply-accumulates of call(), counted by torch on the meta device. Should a tensor made on the way,
    such as torch.arange(N), be on another device than its arguments, all is made on the meta device."""
    try:
        with FlopCounterMode(display=False) as counter:
            call()
    except (RuntimeError, ValueError) as error:
        if "device" not in str(error):
            raise
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            call()
    return counter.get_total_flops() / 2


# ==== KNOWN MISTAKES: what a wrong answer would be, asked of the oracle =====================================


def reordered(x, grid, order):
    """The tokens (B, h, C + T*S, d) as they look to one who takes (T H W) to be in another order: the axes
    `order` of the grid, in which the patches lie one after the other."""
    C, sizes = x.shape[2] - math.prod(grid), [grid[axis] for axis in order]
    patches = x[:, :, C:].unflatten(2, sizes).movedim((2, 3, 4), [2 + axis for axis in order])
    return torch.cat([x[:, :, :C], patches.flatten(2, 4)], dim=2)


def back_in_order(x, grid, order):
    """What undoes reordered()."""
    C = x.shape[2] - math.prod(grid)
    patches = x[:, :, C:].unflatten(2, grid).permute(0, 1, *(2 + axis for axis in order), 5)
    return torch.cat([x[:, :, :C], patches.flatten(2, 4)], dim=2)


def read_in_order(*order):
    """The mistake of an einops pattern whose token axis names T, H and W in a wrong order, there and back."""

    def answer(oracle, q, k, v, grid):
        return back_in_order(oracle(*(reordered(x, grid, order) for x in (q, k, v)), grid), grid, order)

    return answer


def returned_in_order(*order):
    """The same mistake, made on the way back only."""
    return lambda oracle, q, k, v, grid: back_in_order(oracle(q, k, v, grid), grid, order)


def taken_in_order(*order):
    """The same mistake, made on the way in only."""
    return lambda oracle, q, k, v, grid: oracle(*(reordered(x, grid, order) for x in (q, k, v)), grid)


def scores_times(factor):
    """Scores times factor(d). When there are two hops, in both."""

    def answer(oracle, q, k, v, grid):
        root = factor(q.shape[3]) ** 0.5
        return oracle(root * q, root * k, v, grid)

    return answer


def sight(oracle, q, k, v, grid):
    """Who sees whom, (N, N): with even weights, and values that are the rows of the identity matrix."""
    N = q.shape[2]
    seen, still = [], torch.zeros_like(q)
    for columns in torch.eye(N).to(q).split(q.shape[3], dim=1):
        values = nn.functional.pad(columns, (0, q.shape[3] - columns.shape[1])).expand_as(q)
        seen.append(oracle(still, still, values, grid)[0, 0, :, : columns.shape[1]] > 0)
    return torch.cat(seen, dim=1)


def softmax_over_queries(oracle, q, k, v, grid):
    scores = q @ k.mT / q.shape[3] ** 0.5
    return scores.masked_fill(~sight(oracle, q, k, v, grid), -torch.inf).softmax(dim=2) @ v


def no_softmax(oracle, q, k, v, grid):
    scores = q @ k.mT / q.shape[3] ** 0.5
    return scores.masked_fill(~sight(oracle, q, k, v, grid), 0.0) @ v


def class_token_forgotten(oracle, q, k, v, grid):
    """What the patches get when the class tokens' weights go to the other keys."""
    C = q.shape[2] - math.prod(grid)
    if C == 0:
        return None
    patches = torch.ones_like(v)
    patches[:, :, :C] = 0.0
    return (oracle(q, k, v * patches, grid) / oracle(q, k, patches, grid))[:, :, C:]


# Each mistake in words, and what it makes of q, k, v and the grid; T, H and W are the axes 0, 1 and 2.
KNOWN_MISTAKES = [
    ("the scale 1/sqrt(d) is missing", scores_times(lambda d: d**0.5)),
    ("the scores are divided by d, not by sqrt(d)", scores_times(lambda d: d**-0.5)),
    ("the scores are multiplied by sqrt(d), not divided", scores_times(lambda d: d)),
    ("queries and keys are swapped", lambda oracle, q, k, v, grid: oracle(k, q, v, grid)),
    ("the keys are used as values", lambda oracle, q, k, v, grid: oracle(q, k, k, grid)),
    ("the queries are used as values", lambda oracle, q, k, v, grid: oracle(q, k, q, grid)),
    ("the values are used as keys", lambda oracle, q, k, v, grid: oracle(q, v, v, grid)),
    ("the queries are used as keys", lambda oracle, q, k, v, grid: oracle(q, q, v, grid)),
    ("the softmax runs over the queries, not the keys", softmax_over_queries),
    ("there is no softmax: the scores themselves are the weights", no_softmax),
    ("it is the plain mean of what is seen", lambda oracle, q, k, v, grid: oracle(0 * q, k, v, grid)),
    ("the values come back as they were", lambda oracle, q, k, v, grid: v),
    ("tokens are read in the order (S T), not (T S): T and S are swapped", read_in_order(1, 2, 0)),
    ("tokens are read in the order (T W H), not (T H W): H and W are swapped", read_in_order(0, 2, 1)),
    ("tokens are read in the order (H T W), not (T H W): T and H are swapped", read_in_order(1, 0, 2)),
    ("q, k and v are read in the order (S T), not (T S), on the way in only", taken_in_order(1, 2, 0)),
    ("the result comes back in the order (S T), not (T S): T and S are swapped", returned_in_order(1, 2, 0)),
    ("the result comes back in the order (T W H): H and W are swapped", returned_in_order(0, 2, 1)),
    ("the class token is forgotten among the keys", class_token_forgotten),
]


def known_mistake(actual, mistakes, oracle, q, *rest):
    """The mistakes whose answer to the question is this one, in words, as a line to add to a message."""
    if actual.shape != q.shape:
        return ""
    found, right = [], oracle(q, *rest)
    close = lambda x, wrong: torch.allclose(x[:, :, -wrong.shape[2] :], wrong, rtol=1e-8, atol=1e-9)
    for words, answer in mistakes:
        wrong = answer(oracle, q, *rest)  # some are about the patches alone, which may be right
        if wrong is not None and close(actual, wrong) and not close(right, wrong):
            found.append(words)
    return "\nThis is the answer when " + ", or when ".join(found) if found else ""


# ==== SOFTMAX ATTENTION =====================================================================================


class TestAttend:
    @pytest.fixture(autouse=True)
    def tensors(self, seeded):
        self.q, self.k, self.v = (torch.randn(3, 5, *size) for size in ((11, 7), (13, 7), (13, 4)))

    def test_which_mistake_it_would_be(self):
        """As many queries as keys and values as wide, so that one can be taken for the other."""
        q, k, v = qkv()
        TestJoint().check(asked(va.attend, q, k, v), q, k, v, GRID, "none")

    def test_equals_the_definition(self):
        q, k, v = (x.double() for x in (self.q, self.k, self.v))
        expected = torch.stack([softmax_mean(q[:, :, i], k, v) for i in range(11)], dim=2)
        same(asked(va.attend, q, k, v), expected)

    def test_fast_path_equals_readable_path(self):
        q, k, v = (x.double() for x in (self.q, self.k, self.v))
        out, weights = asked(partial(va.attend, return_weights=True), q, k, v)
        same(va.attend(q, k, v), out)
        same(weights.sum(-1), torch.ones(3, 5, 11).double())
        same(weights @ v, out)

    def test_large_scores_stay_finite(self):
        for dtype in (torch.bfloat16, torch.float16):
            q, k, v = (20 * x.to(dtype) for x in (self.q, self.k, self.v))
            out, weights = va.attend(q, k, v, return_weights=True)
            assert out.isfinite().all() and weights.isfinite().all()

    def test_mismatched_shapes_are_named(self):
        with pytest.raises(ValueError, match=f"{in_words(3, 5, 11, 7)}(?s:.*){in_words(3, 5, 13, 6)}"):
            va.attend(self.q, self.k[..., :6], self.v)

    def test_values_must_be_as_many_as_keys(self):
        with pytest.raises(ValueError, match=in_words(3, 5, 12, 4)):
            va.attend(self.q, self.k, self.v[..., :12, :])


# ==== THE LADDER: the same questions for every mechanism ====================================================


class Ladder:
    """A mechanism says what it is called, what its paper lets a patch see, and what its oracle is."""

    step = None  # the module
    mechanism = None  # the pure function, whose docstring has the picture and the cost
    class_tokens = ("none", "clip")  # with which it is asked
    sizes = {}  # P and M, where it has them
    uses_grid = True

    def call(self, q, k, v, grid):
        return type(self).mechanism(q, k, v, grid)

    def oracle(self, q, k, v, grid):
        raise NotImplementedError

    def sees(self, query, patch, grid):
        return True

    def mistakes(self):
        """Those of its own, in the words and with the arguments of KNOWN_MISTAKES."""
        return []

    def check(self, actual, q, k, v, grid, kind, tolerance=1e-10):
        """Equal to the oracle; if not, say where, and whether it is a mistake that others have made."""
        must_be_tensor(actual)
        text = how_tokens_differ(actual, self.oracle(q, k, v, grid), grid, kind, tolerance)
        if text:
            hint = known_mistake(actual, KNOWN_MISTAKES + self.mistakes(), self.oracle, q, k, v, grid)
            pytest.fail(f"{text}{hint}", pytrace=False)

    @pytest.mark.parametrize("grid", GRIDS, ids=str)
    def test_equals_oracle(self, grid):
        for kind in self.class_tokens:
            C = {"none": 0, "clip": 1, "frame": grid[0]}[kind]
            q, k, v = qkv(grid, C)
            actual = asked(lambda q, k, v: self.call(q, k, v, grid), q, k, v)
            self.check(actual, q, k, v, grid, kind)

    def test_sees_what_the_paper_says(self):
        for grid in (GRID, (4, 4, 6)):
            for query in ((0, 0, 0), (1, 1, 2), (3, 3, 5)):
                expected = {patch for patch in patches_of(grid) if self.sees(query, patch, grid)}
                seen = seen_by(self.step, grid, query)
                same_picture(picture(seen, grid, query), picture(expected, grid, query))
                assert query in seen, f"with (T, H, W) = {grid} the patch {query} does not see itself"

    def test_picture_is_computed(self):
        grid, query = (4, 4, 6), (1, 1, 2)
        computed = picture(seen_by(self.step, grid, query), grid, query)
        document = docstring(type(self).mechanism, r"t=0|^ *Sees +everything")
        lines = [line.rstrip() for line in document.split("\n")]
        first = [number for number, line in enumerate(lines) if "t=0" in line]
        everything = picture(patches_of(grid), grid, query)
        same_picture(computed, lines[first[0] : first[0] + 5] if first else everything)

    @pytest.mark.parametrize("grid", [(2, 4, 6), (6, 8, 10), (4, 2, 14)], ids=str)
    def test_costs_what_the_docstring_says(self, grid):
        T, H, W = grid
        names = dict(T=T, H=H, W=W, S=H * W, D=D, h=h, d=d, min=min, **self.sizes)
        for kind in self.class_tokens:
            C = {"none": 0, "clip": 1, "frame": T}[kind]
            q, k, v = (torch.empty(1, h, C + T * H * W, d, device="meta") for _ in range(3))
            macs = counted(lambda: self.call(q, k, v, grid))
            text = formula(type(self).mechanism)
            allowed = eval(text, names | dict(C=C, c=min(C, 1)))
            if macs != allowed:
                counts = f"costs {macs:.0f} multiply-accumulates, its docstring allows {allowed}: {text}"
                times = f"{macs / allowed:.3g} times as many"
                where = f"(T, H, W) = {grid}, class tokens: {kind}"
                pytest.fail(f"{type(self).mechanism.__name__} {counts}, {times}\n{where}", pytrace=False)

    def test_clips_of_a_batch_do_not_meet(self):
        q, k, v = qkv()
        together = self.call(q, k, v, GRID)
        alone = [self.call(q[i : i + 1], k[i : i + 1], v[i : i + 1], GRID) for i in range(B)]
        same(together, torch.cat(alone))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, dtype):
        module = self.step(D, h).eval()
        x = torch.randn(B, math.prod(GRID), D)
        expected = module(x, GRID)
        actual = module.to(dtype)(x.to(dtype), GRID).float()
        assert actual.isfinite().all()
        error = ((actual - expected).norm() / expected.norm()).item()
        assert error < 0.05, f"relative error {error:.2f} in {dtype}"

    def test_wrong_grid_is_named(self):
        """Or, where all tokens are alike, makes no difference."""
        if not self.uses_grid:
            q, k, v = qkv()
            same(self.call(q, k, v, (5, 9, 7)), self.call(q, k, v, GRID), 0)
            return
        module = self.step(D, h)
        with pytest.raises(ValueError, match="5.*9.*7"):
            module(torch.randn(B, math.prod(GRID), D), (5, 9, 7))
        q, k, v = qkv()
        with pytest.raises(ValueError, match=f"{in_words(2, 3, 140, 6)}(?s:.*){in_words(2, 3, 139, 6)}"):
            self.call(q, k[:, :, 1:], v[:, :, 1:], GRID)


# ==== PROJECTIONS ===========================================================================================


def check_split(actual, projected):
    """q, k and v (B, h, N, d), the rows of a projection (B, N, 3*D) being ordered (three h d)."""
    orders = {
        "(three h d)": projected.unflatten(2, (3, h, d)).permute(2, 0, 3, 1, 4),
        "(three d h)": projected.unflatten(2, (3, d, h)).permute(2, 0, 4, 1, 3),
        "(h three d)": projected.unflatten(2, (h, 3, d)).permute(3, 0, 2, 1, 4),
        "(h d three)": projected.unflatten(2, (h, d, 3)).permute(4, 0, 2, 1, 3),
        "(d h three)": projected.unflatten(2, (d, h, 3)).permute(4, 0, 3, 1, 2),
    }
    check_order(torch.stack(list(actual)), orders, "the projection is split as")


def check_merge(actual, x, proj):
    """The heads of x (B, h, N, d) joined as (h d) and projected."""
    orders = {
        "(h d)": proj(x.transpose(1, 2).flatten(2)),
        "(d h)": proj(x.permute(0, 2, 3, 1).flatten(2)),
    }
    check_order(actual, orders, "the heads are joined as")


def check_order(actual, orders, what):
    """Equal to the first of the orders; if not, say which other it is."""
    right, *wrong = orders
    try:
        same(actual, orders[right])
    except AssertionError as error:
        found = [order for order in wrong if torch.allclose(actual, orders[order])]
        hint = f"\nThis is the answer when {what} {' or '.join(found)}, not {right}" if found else ""
        pytest.fail(f"{error}{hint}", pytrace=False)


class TestProjections:
    """What all modules share, by hand; the layout of published weights: q over k over v, head under head."""

    def test_rows_of_qkv_are_q_then_k_then_v_and_each_head_by_head(self):
        module = va.JointAttention(D, h).double()
        x = randn(B, 11, D)
        weight, bias = module.qkv.weight.view(3, h, d, D), module.qkv.bias.view(3, h, d)
        heads = []
        for head in range(h):
            q, k, v = (x @ weight[i, head].T + bias[i, head] for i in range(3))
            heads.append(torch.stack([softmax_mean(one, k, v) for one in q.unbind(1)], dim=1))
        same(module(x, (1, 1, 11)), module.proj(torch.cat(heads, dim=-1)))

    def test_which_mistake_it_would_be(self):
        """Where rows or channels lie in another order than (three h d) and (h d), say in which."""
        module, x = va.JointAttention(D, h).double(), randn(B, 11, D)
        q, k, v = qkv((1, 1, 11))
        check_split(module.project(x), module.qkv(x))
        check_merge(module.merge(v), v, module.proj)

    @pytest.mark.parametrize(
        "step, mechanism, options",
        [
            (va.PooledAttention, va.pooled_attention, dict(stride=(3, 2, 1))),
            (va.MixingAttention, va.mixing_attention, dict(window=2, whole_heads=True, summary=True)),
            (va.NystromAttention, va.nystrom_attention, dict(landmarks=7, iterations=3)),
        ],
    )
    def test_options_reach_the_mechanism(self, step, mechanism, options):
        module, x = step(D, h, **options).double(), randn(B, 1 + math.prod(GRID), D)
        same(module(x, GRID), module.merge(mechanism(*module.project(x), GRID, **options)))

    @pytest.mark.parametrize(
        "options", [dict(prototypes=5), dict(choice="segments", queries_only=True)], ids=str
    )
    def test_options_reach_the_choice_of_prototypes(self, options):
        x = randn(B, math.prod(GRID), D)
        module = va.OrthoformerAttention(D, h, **options).double()
        q, k, v = module.project(x)
        chosen = va.choose_prototypes(q, k, **options)
        same(module(x, GRID), module.merge(va.orthoformer_attention(q, k, v, GRID, chosen)))
        module = va.OrthoformerTrajectoryAttention(D, h, **options).double()
        q, k, v = module.project(x)
        chosen = va.choose_prototypes(q, k, **options)
        expected = va.orthoformer_per_frame(q, k, v, GRID[0], chosen)
        same(module.first_stage(q, k, v, GRID[0], **options), expected)

    def test_options_reach_the_trajectory(self):
        x = randn(B, math.prod(GRID), D)
        module = va.TrajectoryAttention(D, h, project_values=False).double()
        layers = module.proj_q, module.proj_kv
        expected = plain_trajectory(*module.project(x), GRID, *layers, project_values=False)
        same(module(x, GRID), module.merge(expected))
        module = va.NystromTrajectoryAttention(D, h, landmarks=7, iterations=3).double()
        look = partial(va.nystrom_per_frame, landmarks=7, iterations=3)
        layers = module.proj_q, module.proj_kv
        expected = va.trajectory_attention(*module.project(x), GRID, *layers, look)
        same(module(x, GRID), module.merge(expected))
        for step in (va.PerformerAttention, va.PerformerTrajectoryAttention):
            assert step(D, h, features=13).projection.shape == (13, d)

    @pytest.mark.parametrize("step", [va.SpaceAttention, va.TimeAttention, va.PooledAttention])
    @pytest.mark.parametrize("extra", [2, 6])  # GRID has five frames
    def test_a_wrong_number_of_class_tokens_is_named(self, step, extra):
        with pytest.raises(ValueError, match=f"{extra + 140} tokens"):
            step(D, h)(torch.randn(B, extra + 140, D), GRID)


# ==== TIMESFORMER: five schemes, each one sentence in the oracle ============================================


class TestSpace(Ladder):
    """Patches of one frame attend to each other."""

    step, mechanism = va.SpaceAttention, va.space_attention
    class_tokens = ("none", "clip", "frame")

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: t)

    def sees(self, query, patch, grid):
        return patch[0] == query[0]

    def test_order_of_frames_cannot_matter(self):
        T, H, W = GRID
        q, k, v = qkv()
        shuffled = torch.arange(T * H * W).view(T, H * W)[torch.randperm(T)].flatten()
        out = va.space_attention(*(x[:, :, shuffled] for x in (q, k, v)), GRID)
        same(out, va.space_attention(q, k, v, GRID)[:, :, shuffled])


class TestJoint(Ladder):
    """All tokens attend to all tokens."""

    step, mechanism = va.JointAttention, va.joint_attention
    uses_grid = False

    def oracle(self, q, k, v, grid):
        return torch.stack([softmax_mean(q[:, :, i], k, v) for i in range(q.shape[2])], dim=2)

    def test_one_frame_is_space_attention(self):
        q, k, v = qkv((1, 4, 7), C=1)
        same(va.joint_attention(q, k, v, (1, 4, 7)), va.space_attention(q, k, v, (1, 4, 7)))


class TestDivided(Ladder):
    """Patches at one place attend to each other along time, and then space attention. The class token
    waits."""

    step, mechanism = va.TimeAttention, va.time_attention
    class_tokens = ("none", "clip", "frame")

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (y, x), class_joins=False)

    def sees(self, query, patch, grid):
        return patch[1:] == query[1:]

    def test_one_frame_sees_only_itself(self):
        q, k, v = qkv((1, 4, 7))
        same(va.time_attention(q, k, v, (1, 4, 7)), v)

    def test_one_place_is_joint_attention(self):
        q, k, v = qkv((5, 1, 1))
        same(va.time_attention(q, k, v, (5, 1, 1)), va.joint_attention(q, k, v, (5, 1, 1)))

    def test_nothing_reaches_the_class_token(self):
        module = va.TimeAttention(D, h).double()
        nn.init.ones_(module.proj.bias)
        out = module(randn(B, 1 + math.prod(GRID), D), GRID)
        same(out[:, :1], torch.zeros(B, 1, D).double())

    def test_time_then_space_spans_the_clip(self):
        """Two steps, and every patch has heard from every other: the whole point of dividing."""
        model = nn.ModuleList([va.TimeAttention(D, h), va.SpaceAttention(D, h)]).double()
        x = randn(1, math.prod(GRID), D).requires_grad_()
        y = x + model[0](x, GRID)
        (gradient,) = torch.autograd.grad(model[1](y, GRID)[0, 17].sum(), x)
        assert (gradient.abs().sum(-1) > 0).all()

    def test_a_block_starts_as_space_attention(self):
        """The time branch ends in zeros, so that at first divided is space-only; one step later it is not."""
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
        assert time.qkv.weight.grad.abs().max() > 0 and time.zero.weight.abs().max() > 0


def half(index, n):
    """0 in the first half of n, the longer one when n is odd, 1 in the second."""
    return int(index >= (n + 1) // 2)


class TestLocal(Ladder):
    """Local: patches in one quarter of the frame, through all frames, attend to each other."""

    step, mechanism = va.LocalAttention, va.local_attention

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (half(y, grid[1]), half(x, grid[2])))

    def sees(self, query, patch, grid):
        return all(half(a, n) == half(b, n) for a, b, n in zip(query[1:], patch[1:], grid[1:]))

    def test_a_quarter_of_the_clip(self):
        assert len(seen_by(self.step, (4, 6, 10), (1, 1, 2))) * 4 == 4 * 6 * 10

    def test_a_window_that_covers_everything_is_joint(self):
        q, k, v = qkv((5, 1, 1), C=1)
        same(va.local_attention(q, k, v, (5, 1, 1)), va.joint_attention(q, k, v, (5, 1, 1)))


class TestGlobal(Ladder):
    """Global: patches whose t, y and x are alike odd or even attend to each other."""

    step, mechanism = va.GlobalAttention, va.global_attention

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (t % 2, y % 2, x % 2))

    def sees(self, query, patch, grid):
        return all((a - b) % 2 == 0 for a, b in zip(query, patch))

    def test_an_eighth_of_the_clip(self):
        assert len(seen_by(self.step, (4, 6, 10), (1, 1, 2))) * 8 == 4 * 6 * 10


class TestAxialWidth(Ladder):
    """Width: patches of one row of one frame attend to each other."""

    step, mechanism = va.WidthAttention, va.width_attention
    class_tokens = ("none", "clip", "frame")

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (t, y))

    def sees(self, query, patch, grid):
        return patch[:2] == query[:2]

    def test_one_row_is_space_attention(self):
        q, k, v = qkv((5, 1, 7), C=1)
        same(va.width_attention(q, k, v, (5, 1, 7)), va.space_attention(q, k, v, (5, 1, 7)))


class TestAxialHeight(Ladder):
    """Height: patches of one column of one frame attend to each other."""

    step, mechanism = va.HeightAttention, va.height_attention
    class_tokens = ("none", "clip", "frame")

    def oracle(self, q, k, v, grid):
        return oracle_in_groups(q, k, v, grid, lambda t, y, x: (t, x))

    def sees(self, query, patch, grid):
        return patch[0] == query[0] and patch[2] == query[2]

    def test_is_width_attention_of_the_transposed_frame(self):
        T, H, W = GRID
        q, k, v = qkv()
        turned = torch.arange(T * H * W).view(T, H, W).transpose(1, 2).flatten()
        out = va.width_attention(*(x[:, :, turned] for x in (q, k, v)), (T, W, H))
        same(out, va.height_attention(q, k, v, GRID)[:, :, turned])


# ==== POOLED ================================================================================================


def blocks_of(grid, stride):
    """The blocks of a stride, as lists of (t, y, x)."""
    blocks = {}
    for patch in patches_of(grid):
        blocks.setdefault(tuple(a // s for a, s in zip(patch, stride)), []).append(patch)
    return list(blocks.values())


class TestPooled(Ladder):
    """Every token attends to the class token and to the mean of every block."""

    step, mechanism = va.PooledAttention, va.pooled_attention

    def oracle(self, q, k, v, grid, stride=(1, 2, 2)):
        T, H, W = grid
        C = q.shape[2] - T * H * W
        pooled = []
        for x in (k, v):
            means = [x[:, :, c] for c in range(C)]
            for block in blocks_of(grid, stride):
                means.append(sum(x[:, :, C + t * H * W + y * W + z] for t, y, z in block) / len(block))
            pooled.append(torch.stack(means, dim=2))
        return torch.stack([softmax_mean(q[:, :, i], *pooled) for i in range(q.shape[2])], dim=2)

    def test_any_stride(self):
        q, k, v = qkv(C=1)
        same(va.pooled_attention(q, k, v, GRID, (2, 3, 4)), self.oracle(q, k, v, GRID, (2, 3, 4)))

    def test_stride_one_is_joint(self):
        q, k, v = qkv(C=1)
        same(va.pooled_attention(q, k, v, GRID, (1, 1, 1)), va.joint_attention(q, k, v, GRID))

    @pytest.mark.parametrize("stride", [(1, 2, 0), (2, 2)], ids=str)
    def test_bad_stride_is_named(self, stride):
        with pytest.raises(ValueError, match=re.escape(f"stride={stride}")):
            va.pooled_attention(*qkv(), GRID, stride=stride)


# ==== SPACE-TIME MIXING =====================================================================================


def naively_mixed(x, grid, window, moved, joined=1, direction=1, past="zeros"):
    """Keys (or values) of one class token per frame and the patches, every channel fetched by itself.
    Mistakes: direction=-1, and past the ends of the clip not zeros but its other end or what was there."""
    T, H, W = grid
    frames = torch.cat([x[:, :, :T].unsqueeze(3), x[:, :, T:].unflatten(2, (T, H * W))], dim=3)
    channels = joined * d
    share = int(moved * channels / max(1, 2 * window))
    offsets = [sign * i for i in range(1, window + 1) for sign in (1, -1)]
    mixed = torch.zeros_like(frames)
    for head, channel, t in product(range(h), range(d), range(T)):
        number = (head % joined) * d + channel
        part = number // share if share else len(offsets)
        source = t + direction * (offsets[part] if part < len(offsets) else 0)
        if not 0 <= source < T:
            source = dict(zeros=source, wrap=source % T, own=t)[past]
        if 0 <= source < T:
            mixed[:, head, t, :, channel] = frames[:, head, source, :, channel]
    return torch.cat([mixed[:, :, :, 0], mixed[:, :, :, 1:].flatten(2, 3)], dim=2)


def naively_windowed(q, k, v, grid, window):
    """Full attention to all patches of the frames t - window .. t + window (X-ViT, equation 7)."""
    T, H, W = grid
    out = torch.zeros_like(q)
    for i, (t, y, x) in enumerate(patches_of(grid)):
        keys = [j for j, patch in enumerate(patches_of(grid)) if abs(patch[0] - t) <= window]
        out[:, :, i] = softmax_mean(q[:, :, i], k[:, :, keys], v[:, :, keys])
    return out


class TestMixing(Ladder):
    """Space attention over keys and values put together channel by channel."""

    step, mechanism = va.MixingAttention, va.mixing_attention
    class_tokens = ("clip", "frame")

    def oracle(self, q, k, v, grid, window=1, moved=0.5, joined=1, values=True, **mistake):
        T, H, W = grid
        C = q.shape[2] - T * H * W
        q, k, v = (torch.cat([x[:, :, :C].expand(B, h, T, d), x[:, :, C:]], dim=2) for x in (q, k, v))
        k = naively_mixed(k, grid, window, moved, joined, **mistake)
        v = naively_mixed(v, grid, window, moved, joined, **mistake) if values else v
        out = oracle_in_groups(q, k, v, grid, lambda t, y, x: t)
        return torch.cat([out[:, :, :T].mean(2, keepdim=True), out[:, :, T:]], dim=2) if C == 1 else out

    def sees(self, query, patch, grid):
        return abs(patch[0] - query[0]) <= 1

    def mistakes(self):
        by = lambda **mistake: lambda oracle, *question: oracle(*question, **mistake)
        return [
            ("the shift goes in the wrong direction, next and previous frame swapped", by(direction=-1)),
            ("the shift wraps round, from the last frame to the first", by(past="wrap")),
            ("frames at the ends keep channels of their own in place of zeros", by(past="own")),
            ("keys are mixed but values are not", by(values=False)),
        ]

    @pytest.mark.parametrize("window, moved", [(0, 0.5), (1, 0.4), (1, 1.0), (2, 0.8), (2, 1.0), (3, 1.0)])
    def test_shift_window_vs_naive_windowed_attention(self, window, moved):
        """Shifting whole frames of channels is what building every key by hand gives, for any window and
        share. With window 2 all 6 channels make 4 shares of 1; 3 shares of 2 would be another answer."""
        q, k, v = qkv(C=GRID[0])
        actual = va.mixing_attention(q, k, v, GRID, window=window, moved=moved)
        same(actual, self.oracle(q, k, v, GRID, window, moved))

    def test_stands_in_for_full_window_attention(self):
        """Where nothing moves, mixing is full attention in the window, away from the ends: the frames that it
        borrows from are its own. Where something does, it is an approximation, at the cost of one frame."""
        T, H, W = GRID
        still = [x[:, :, : H * W].repeat(1, 1, T, 1) for x in qkv()]
        inner = slice(H * W, (T - 1) * H * W)
        same(va.mixing_attention(*still, GRID)[:, :, inner], naively_windowed(*still, GRID, 1)[:, :, inner])
        q, k, v = qkv()
        assert (va.mixing_attention(q, k, v, GRID) - naively_windowed(q, k, v, GRID, 1)).abs().max() > 0.1
        same(va.mixing_attention(q, k, v, GRID, window=0), naively_windowed(q, k, v, GRID, 0))

    @pytest.mark.parametrize("nothing", [dict(window=0), dict(moved=0.0)], ids=str)
    def test_no_window_or_no_channels_is_space_attention(self, nothing):
        q, k, v = qkv(C=1)
        same(va.mixing_attention(q, k, v, GRID, **nothing), va.space_attention(q, k, v, GRID))

    @pytest.mark.parametrize("moved", [0.25, 0.5])
    def test_whole_heads_as_released(self, moved):
        q, k, v = qkv(C=GRID[0])
        actual = va.mixing_attention(q, k, v, GRID, moved=moved, whole_heads=True)
        same(actual, self.oracle(q, k, v, GRID, 1, moved, joined=h))

    def test_segments_do_not_meet(self):
        q, k, v = qkv((6, 4, 7))
        halves = [va.mixing_attention(*(x[:, :, i : i + 84] for x in (q, k, v)), (3, 4, 7)) for i in (0, 84)]
        same(va.mixing_attention(q, k, v, (6, 4, 7), segment=3), torch.cat(halves, dim=2))

    def test_window_grows_with_depth(self):
        x = randn(1, math.prod(GRID), D).requires_grad_()
        y = x
        for reach in (1, 2, 3):
            y = va.MixingAttention(D, h).double()(y, GRID)
            (gradient,) = torch.autograd.grad(y[0, 0].sum(), x, retain_graph=True)
            frames = (gradient[0].unflatten(0, (GRID[0], -1)).abs().sum((1, 2)) > 1e-18).nonzero().flatten()
            assert frames.tolist() == list(range(reach + 1))

    def test_bad_options_are_named(self):
        wrong = [("window", -1), ("moved", 1.5), ("moved", 0.1), ("segment", 2), ("segment", 0)]
        for name, value in wrong:
            with pytest.raises(ValueError, match=f"{name}={value}"):
                va.mixing_attention(*qkv(), GRID, **{name: value})


class TestSummary(Ladder):
    """Space attention with T more keys and values, the mean of every frame."""

    step, mechanism = va.SummaryAttention, va.summary_attention
    class_tokens = ("none", "clip", "frame")

    def oracle(self, q, k, v, grid):
        T, H, W = grid
        C = q.shape[2] - T * H * W
        means = [x[:, :, C:].unflatten(2, (T, H * W)).mean(3) for x in (k, v)]
        out = torch.zeros_like(q)
        found = torch.zeros(B, h, T, d).double()
        for t in range(T):
            own = list(range(C + t * H * W, C + (t + 1) * H * W))
            class_token = [0] if C == 1 else [t] if C == T else []
            keys, values = (torch.cat([x[:, :, class_token + own], m], dim=2) for x, m in zip((k, v), means))
            for i in own:
                out[:, :, i] = softmax_mean(q[:, :, i], keys, values)
            for c in class_token:
                found[:, :, t] = softmax_mean(q[:, :, c], keys, values)
        if C:
            out[:, :, :C] = found if C == T else found.mean(2, keepdim=True)
        return out

    def test_beside_mixing_they_are_not_mixed(self):
        """With channels shared out but none moved, mixing with summary tokens is summary attention."""
        q, k, v = qkv(C=1)
        both = va.mixing_attention(q, k, v, GRID, moved=0.0, summary=True)
        same(both, va.summary_attention(q, k, v, GRID))
        mixed = va.mixing_attention(q, k, v, GRID, summary=True)
        for other in (both, va.mixing_attention(q, k, v, GRID)):
            assert (mixed - other).abs().max() > 0.01

    def test_summary_tokens_are_not_mixed(self):
        """A summary belongs to no frame, so its channels stay; only keys and values of patches move."""
        T, H, W = GRID
        S = H * W
        q, k, v = qkv(C=T)
        means = [x[:, :, T:].unflatten(2, (T, S)).mean(3) for x in (k, v)]
        k2, v2 = (naively_mixed(x, GRID, 1, 0.5) for x in (k, v))
        actual = va.mixing_attention(q, k, v, GRID, summary=True)
        for t in range(T):
            frame = [t, *range(T + t * S, T + (t + 1) * S)]
            keys, values = (torch.cat([x[:, :, frame], m], dim=2) for x, m in zip((k2, v2), means))
            for i in frame:
                same(actual[:, :, i], softmax_mean(q[:, :, i], keys, values))


# ==== TRAJECTORY ============================================================================================


def plain_trajectory(q, k, v, grid, proj_q, proj_kv, project_values=True, at_once=False):
    """Motionformer's equations 4 to 6 as they are written, W_k and W_v on all N*T trajectory tokens. A
    mistake: at_once, one first softmax over all frames."""
    T, H, W = grid
    S, C = H * W, q.shape[2] - T * H * W
    out = [softmax_mean(q[:, :, c], k, v).flatten(1) for c in range(C)]
    for i, (t, _, _) in enumerate(patches_of(grid)):
        y = []
        for frame in range(T):
            keys = slice(C + frame * S, C + (frame + 1) * S)
            values = v[:, :, keys]
            if at_once:  # all patches are keys, and those of other frames have nothing to give
                values = torch.zeros_like(v)
                values[:, :, keys] = v[:, :, keys]
                keys, values = slice(C, None), values[:, :, C:]
            y.append(softmax_mean(q[:, :, C + i], k[:, :, keys], values).flatten(1))  # heads joined
        y = torch.stack(y, dim=1)  # (B, T, D)
        query = proj_q(y[:, t]).unflatten(-1, (h, d))
        keys, values = proj_kv(y).chunk(2, dim=-1)
        values = values if project_values else y
        keys, values = (x.unflatten(-1, (h, d)).transpose(1, 2) for x in (keys, values))
        out.append(softmax_mean(query, keys, values).flatten(1))
    return torch.stack(out, dim=1).unflatten(-1, (h, d)).transpose(1, 2)


class TestTrajectory(Ladder):
    """Softmax inside every frame, then along the trajectory."""

    step, mechanism = va.TrajectoryAttention, va.trajectory_attention

    def projections(self, like):
        return [nn.Linear(D, n * D, device=like.device, dtype=like.dtype) for n in (1, 2)]

    def call(self, q, k, v, grid):
        torch.manual_seed(SEED)
        return va.trajectory_attention(q, k, v, grid, *self.projections(q))

    def oracle(self, q, k, v, grid, change=lambda layer: layer, **options):
        torch.manual_seed(SEED)
        return plain_trajectory(q, k, v, grid, *map(change, self.projections(q)), **options)

    def test_layers_without_bias(self):
        q, k, v = qkv(C=1)
        plain, zero = [[nn.Linear(D, n * D, bias=bias).double() for n in (1, 2)] for bias in (False, True)]
        for layer, other in zip(plain, zero):
            other.weight.data = layer.weight.data
            nn.init.zeros_(other.bias)
        same(va.trajectory_attention(q, k, v, GRID, *plain), va.trajectory_attention(q, k, v, GRID, *zero))

    def mistakes(self):
        def interleaved(layer):
            layer.weight.data = layer.weight.data.unflatten(1, (d, h)).transpose(1, 2).flatten(1)
            return layer

        def scaled(layer):
            if layer.out_features == D:  # W_q
                layer.weight.data, layer.bias.data = d**0.5 * layer.weight.data, d**0.5 * layer.bias.data
            return layer

        def without_query(layer):
            return nn.Identity() if layer.out_features == D else layer

        def swapped(layer, biases=True):
            if layer.out_features == 2 * D:  # W_k above W_v
                layer.weight.data = layer.weight.data.roll(D, 0)
                layer.bias.data = layer.bias.data.roll(D if biases else 0)
            return layer

        def without_bias(layer):
            layer.bias.data[D:] = 0.0  # of W_v; W_q has no more than D
            return layer

        by = lambda **mistake: lambda oracle, *question: oracle(*question, **mistake)
        return [
            ("the second stage takes y~ itself as its value, without W_v", by(project_values=False)),
            ("the first softmax runs over all frames at once, not inside each", by(at_once=True)),
            ("heads are joined as (d h), not (h d)", by(change=interleaved)),
            ("the scale of the second stage is missing", by(change=scaled)),
            ("W_k and W_v are swapped", by(change=swapped)),
            ("W_k and W_v are swapped, their biases not", by(change=partial(swapped, biases=False))),
            ("W_q is left out of the second stage", by(change=without_query)),
            ("the bias of W_v is forgotten", by(change=without_bias)),
        ]

    def test_gradients_equal_the_plain_form(self):
        """The folded second stage is the plain one in its derivatives too; of W_k's bias there is none."""
        q, k, v = (x.requires_grad_() for x in qkv(C=1))
        projections = self.projections(q)
        leaves = [q, k, v] + [p for layer in projections for p in layer.parameters()]
        weight = randn(B, h, 1 + math.prod(GRID), d)
        gradients = []
        for form in (va.trajectory_attention, plain_trajectory):
            loss = (form(q, k, v, GRID, *projections) * weight).sum()
            gradients.append(torch.autograd.grad(loss, leaves))
        for actual, expected in zip(*gradients):
            same(actual, expected)
        same(gradients[0][-1][:D], torch.zeros(D).double())

    def test_published_slip_in_the_value(self):
        q, k, v = qkv(C=1)
        projections = self.projections(q)
        actual = va.trajectory_attention(q, k, v, GRID, *projections, project_values=False)
        same(actual, plain_trajectory(q, k, v, GRID, *projections, project_values=False))

    def test_one_frame_is_space_attention(self):
        """With one frame the trajectory has one point: space attention, and then W_v, or with the slip
        nothing."""
        grid = (1, 4, 7)
        q, k, v = qkv(grid)
        projections = self.projections(q)
        space = va.space_attention(q, k, v, grid)
        same(va.trajectory_attention(q, k, v, grid, *projections, project_values=False), space)
        value = projections[1](space.transpose(1, 2).flatten(2))[..., D:]
        actual = va.trajectory_attention(q, k, v, grid, *projections)
        same(actual, value.unflatten(-1, (h, d)).transpose(1, 2))

    def test_no_patch_sees_the_class_token(self):
        q, k, v = qkv(C=1)
        k2, v2 = k.clone(), v.clone()
        k2[:, :, 0], v2[:, :, 0] = 70.0, 70.0
        before, after = self.call(q, k, v, GRID), self.call(q, k2, v2, GRID)
        same(before[:, :, 1:], after[:, :, 1:])
        assert (before[:, :, 0] - after[:, :, 0]).abs().max() > 1e-3

    def test_first_stage_looks_inside_each_frame(self):
        q, k, v = qkv()
        T, S = GRID[0], GRID[1] * GRID[2]
        y = va.attend_per_frame(q, k, v, T)
        for t in range(T):
            frame = slice(t * S, (t + 1) * S)
            same(y[:, :, :, t], va.attend(q, k[:, :, frame], v[:, :, frame]))


# ==== FEWER KEYS: Orthoformer, Nystrom, Performer ===========================================================


def greedy_search(x, count, start=0, worst=max):
    """The most orthogonal subset of the vectors x (n, d), by trying everything at every step."""
    cosine = [[abs(float(a @ b / (a.norm() * b.norm()))) for b in x] for a in x]
    picked = [start]
    while len(picked) < count:
        left = [i for i in range(len(x)) if i not in picked]
        picked.append(min(left, key=lambda i: worst(cosine[i][j] for j in picked)))
    return picked


class TestOrthoformer(Ladder):
    """Two hops: from the query to the prototypes, from these to the keys."""

    step, mechanism = va.OrthoformerAttention, va.orthoformer_attention
    uses_grid = False
    P = 11
    sizes = dict(P=11)

    def call(self, q, k, v, grid):
        return va.orthoformer_attention(q, k, v, grid, k[:, :, : self.P])

    def oracle(self, q, k, v, grid):
        prototypes = k[:, :, : self.P]
        found = torch.stack([softmax_mean(p, k, v) for p in prototypes.unbind(2)], dim=2)
        return torch.stack([softmax_mean(one, prototypes, found) for one in q.unbind(2)], dim=2)

    def test_orthoformer_with_all_prototypes_vs_exact_attention(self):
        """Every token a prototype is NOT exact attention: softmax(Q K^T) softmax(K K^T) smooths a second
        time. It becomes exact when every key is clearly nearest to itself, so that the second softmax is the
        identity, as with orthogonal keys of growing norm. (Nystrom, with its inverse, is exact with any
        keys; see there.)"""
        n, width = 48, 64
        q, v = randn(1, 1, n, width), randn(1, 1, n, width)
        basis = torch.linalg.qr(randn(width, width))[0][:n].view(1, 1, n, width)
        error = {}
        for norm in (4, 8, 12, 16):
            k = norm * basis
            exact = va.attend(q, k, v)
            out = va.orthoformer_attention(q, k, v, (1, 1, n), k)
            error[norm] = ((out - exact).norm() / exact.norm()).item()
        assert 0.3 < error[4] < 1.5 and 0.003 < error[8] < 0.05 and 1e-7 < error[12] < 5e-6
        assert error[16] < 1e-10

    @pytest.mark.parametrize("criterion", ["max", "sum"])
    def test_selection_equals_greedy_search(self, criterion):
        x = randn(2, 3, 29, 8)
        picked = va.most_orthogonal_subset(x, 13, start=4, criterion=criterion)
        for b, head in product(range(2), range(3)):
            worst = {"max": max, "sum": sum}[criterion]
            assert picked[b, head].tolist() == greedy_search(x[b, head], 13, start=4, worst=worst)

    def test_selection_finds_the_axes(self):
        """Among many copies of a few orthogonal directions it takes one of each."""
        axes = torch.eye(8).double()[torch.arange(40) % 8] * (1 + torch.rand(40, 1).double())
        picked = va.most_orthogonal_subset(axes, 8)
        assert sorted((picked % 8).tolist()) == list(range(8))

    def test_candidates(self):
        q, k, v = qkv()
        tokens = torch.cat([q, k], dim=2)
        cases = [(dict(), tokens), (dict(queries_only=True), q), (dict(choice="random"), tokens)]
        for options, pool in cases:
            prototypes = va.choose_prototypes(q, k, 9, **options)
            distance = torch.cdist(prototypes, pool).min(dim=-1)
            assert prototypes.shape == (B, h, 9, d) and distance.values.max() < 1e-6
            assert all(len(set(chosen.tolist())) == 9 for chosen in distance.indices.flatten(0, 1))

    def test_subsampling_is_the_random_choice(self):
        """Drawing one candidate per prototype leaves nothing to choose; drawing all is the greedy search of
        all."""
        q, k, v = qkv()
        only = va.choose_prototypes(q, k, 7, oversample=1)
        same(only.sum(2), va.choose_prototypes(q, k, 7, "random").sum(2))
        every = va.choose_prototypes(q, k, 7, queries_only=True, oversample=None)
        for b, head in product(range(B), range(h)):
            same(every[b, head], q[b, head, greedy_search(q[b, head], 7)])

    def test_random_choice_is_spread_over_the_clip(self):
        """Not every other column: a quarter of the tokens touches every row, column and frame."""
        q = torch.arange(8.0 * 14 * 14).view(1, 1, -1, 1)
        numbers = va.choose_prototypes(q, q, 392, "random", queries_only=True).flatten().long()
        for n, count in ((numbers // 196, 8), (numbers // 14 % 14, 14), (numbers % 14, 14)):
            assert n.bincount(minlength=count).min() > 0.5 * 392 / count

    def test_segment_means_are_prototypes_too(self):
        q, k, v = qkv()
        same(va.choose_prototypes(q, k, 8, "segments"), torch.cat([q, k], 2).unflatten(2, (8, 35)).mean(3))

    def test_more_prototypes_than_tokens_is_all_tokens(self):
        q, k, v = qkv((1, 2, 3))
        assert va.choose_prototypes(q, k, 99).shape == (B, h, 6, d)

    def test_bad_options_are_named(self):
        for name, value in (("prototypes", 0), ("choice", "best"), ("criterion", "mean"), ("oversample", 0)):
            with pytest.raises(ValueError, match=f"{name}={value!r}"):
                va.choose_prototypes(*qkv()[:2], **{name: value})

    def test_choice_does_not_depend_on_precision(self):
        """Half-precision tokens are compared in float32: the picks are those of the same numbers in float32.
        """
        x = torch.randn(2, 3, 97, 16).bfloat16()
        assert torch.equal(va.most_orthogonal_subset(x, 40), va.most_orthogonal_subset(x.float(), 40))

    def test_cost_inside_trajectory_attention(self):
        for T, S, P, I in ((4, 14, 11, 56), (2, 9, 5, 18), (7, 3, 4, 5)):
            q, k, v, prototypes = (torch.empty(1, h, n, d, device="meta") for n in (I, T * S, T * S, P))
            names = dict(T=T, S=S, P=P, D=D, I=I)
            macs = counted(lambda: va.orthoformer_per_frame(q, k, v, T, prototypes))
            assert macs == eval(formula(va.orthoformer_per_frame), names)

    def test_inside_trajectory_attention(self):
        """The first stage with the same prototypes for all frames, the softmax over keys inside each."""
        q, k, v = qkv()
        T, S = GRID[0], GRID[1] * GRID[2]
        prototypes = va.choose_prototypes(q, k, 9)
        y = va.orthoformer_per_frame(q, k, v, T, prototypes)
        for t in range(T):
            frame = slice(t * S, (t + 1) * S)
            expected = va.orthoformer_attention(q, k[:, :, frame], v[:, :, frame], None, prototypes)
            same(y[:, :, :, t], expected)

    @pytest.mark.parametrize("criterion", ["max", "sum"])
    def test_oversample_is_how_many_are_searched(self, criterion):
        """Three candidates for each of seven prototypes: the greedy search of the first 21 drawn."""
        q, k, v = qkv()
        drawn = va.choose_prototypes(q, k, 21, "random")
        chosen = va.choose_prototypes(q, k, 7, oversample=3, criterion=criterion)
        worst = {"max": max, "sum": sum}[criterion]
        for b, head in product(range(B), range(h)):
            same(chosen[b, head], drawn[b, head, greedy_search(drawn[b, head], 7, worst=worst)])

    def test_never_the_same_twice(self):
        """Five copies of one vector: after the first, all are equally bad, but each is taken once."""
        for criterion in ("max", "sum"):
            picked = va.most_orthogonal_subset(torch.ones(5, 8).double(), 5, criterion=criterion)
            assert sorted(picked.tolist()) == [0, 1, 2, 3, 4]

    def test_choice_is_made_without_gradients(self):
        x = randn(2, 9, 4).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: pytest.fail("recorded"), lambda t: t):
            va.most_orthogonal_subset(x, 3)

    def test_published_numbers(self):
        """Motionformer's models have 128 prototypes, in its Nystrom branch too."""
        default = lambda function, name: inspect.signature(function).parameters[name].default
        assert default(va.choose_prototypes, "prototypes") == 128
        assert default(va.nystrom_per_frame, "landmarks") == 128


class TestNystrom(Ladder):
    """Two hops over segment means, with the pseudo-inverse of the small matrix between them."""

    step, mechanism = partial(va.NystromAttention, landmarks=11), va.nystrom_attention
    uses_grid = False
    sizes = dict(P=11)

    def call(self, q, k, v, grid, **options):
        return va.nystrom_attention(q, k, v, grid, landmarks=11, **options)

    def oracle(self, q, k, v, grid):
        n = q.shape[2]
        count = min(11, n)
        lengths = [n // count + (i >= count - n % count) for i in range(count)]
        q_means, k_means = (torch.stack([s.mean(2) for s in x.split(lengths, dim=2)], dim=2) for x in (q, k))
        small = torch.softmax(q_means @ k_means.mT / d**0.5, dim=-1)
        left = torch.softmax(q @ k_means.mT / d**0.5, dim=-1)
        right = torch.softmax(q_means @ k.mT / d**0.5, dim=-1)
        return left @ torch.linalg.pinv(small) @ right @ v

    @pytest.mark.parametrize("grid", GRIDS, ids=str)
    def test_equals_oracle(self, grid):
        """With iterations to spare the iteration is the pseudo-inverse; six leave a few per cent."""
        for C in (0, 1):
            q, k, v = qkv(grid, C)
            kind = ("none", "clip")[C]
            self.check(self.call(q, k, v, grid, iterations=30), q, k, v, grid, kind, 1e-8)

    def test_every_token_a_landmark_is_exact(self):
        q, k, v = qkv((1, 4, 7))
        actual = va.nystrom_attention(q, k, v, (1, 4, 7), landmarks=28, iterations=40)
        same(actual, va.attend(q, k, v), 1e-8)

    def test_landmarks_must_be_there(self):
        for count in (0, -1, 141):
            with pytest.raises(ValueError, match=rf"{count} means of \(.*, 140, "):
                va.segment_means(randn(B, h, 140, d), count)

    def test_one_scale_is_the_largest(self):
        """Nystromformer's own start for the iteration couples the clips of a batch; ours does not."""
        A = torch.softmax(randn(2, 9, 9) * torch.tensor([0.5, 3.0]).view(2, 1, 1), dim=-1)
        alone = torch.stack([va.iterative_inverse(a) for a in A])
        same(va.iterative_inverse(A), alone)
        largest = A.sum(1).max(-1).values.argmax()
        same(va.iterative_inverse(A, one_scale=True)[largest], alone[largest])
        assert (va.iterative_inverse(A, one_scale=True) - alone).abs().max() > 1e-6

    def test_inverse_by_products_alone(self):
        A = torch.softmax(randn(2, 3, 9, 9) * 2, dim=-1)
        error = [(A @ va.iterative_inverse(A, n) @ A - A).norm().item() for n in (2, 6, 10, 30)]
        assert error == sorted(error, reverse=True)
        same(va.iterative_inverse(A, 30), torch.linalg.pinv(A), 1e-7)

    def test_inside_trajectory_attention(self):
        """With every token a landmark, in each frame the exact first stage."""
        q, k, v = qkv((3, 2, 4))
        same(va.nystrom_per_frame(q, k, v, 3, 24, 40), va.attend_per_frame(q, k, v, 3), 1e-7)

    def test_landmarks_of_the_first_stage_span_time(self):
        """Two places and two landmarks: the mean of each place over all frames."""
        q, k, v = qkv((3, 1, 2))
        means = [x.unflatten(2, (3, 2)).mean(2) for x in (q, k)]
        small = torch.softmax(means[0] @ means[1].mT / d**0.5, dim=-1)
        found = va.attend_per_frame(means[0], k, v, 3)
        weights = torch.softmax(q @ means[1].mT / d**0.5, dim=-1) @ torch.linalg.inv(small)
        expected = torch.einsum("bhnp,bhptd->bhntd", weights, found)
        same(va.nystrom_per_frame(q, k, v, 3, 2, 40), expected, 1e-7)

    def test_inverse_of_a_lopsided_matrix(self):
        """Every row looks at the first key most: |A|_1 is near P, and without it the iteration blows up."""
        lopsided = torch.eye(9).double() * 2 + torch.eye(9).double()[0] * 3
        A = torch.softmax(randn(2, 3, 9, 9) + lopsided, dim=-1)
        same(A @ va.iterative_inverse(A, 30) @ A, A, 1e-7)


class TestPerformer(Ladder):
    """Weights that are products of random features."""

    step, mechanism = va.PerformerAttention, va.performer_attention
    uses_grid = False
    M = 13
    sizes = dict(M=13)

    def projection(self, like):
        return torch.randn(13, d, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64).to(like)

    def call(self, q, k, v, grid):
        return va.performer_attention(q, k, v, grid, self.projection(q))

    def oracle(self, q, k, v, grid):
        W, eps = self.projection(q), 1e-6

        def features(x, peak):
            x = x / d**0.25
            along = torch.stack([(x * w).sum(-1) for w in W], dim=-1)
            length = (x * x).sum(-1, keepdim=True)
            return (torch.exp(along - length / 2 - along.amax(peak, keepdim=True)) + eps) / 13**0.5

        weights = features(q, -1) @ features(k, (-2, -1)).mT
        return weights @ v / weights.sum(-1, keepdim=True)

    def test_is_its_explicit_kernel_matrix(self):
        q, k, v = qkv(C=1)
        same(self.call(q, k, v, GRID), self.oracle(q, k, v, GRID), 1e-12)

    def test_a_few_heads_at_a_time(self):
        """With so many features two of the five heads are taken at once; it must not show."""
        q, k, v = (randn(1, 5, 700, d) for _ in range(3))
        W = torch.randn(2500, d, dtype=torch.float64)
        phi_q, phi_k = va.favor_features(q, W, (-1,)), va.favor_features(k, W, (-2, -1))
        weights = phi_q @ phi_k.mT
        same(va.performer_attention(q, k, v, None, W), weights @ v / weights.sum(-1, keepdim=True))
        with pytest.raises(ValueError):
            va.performer_attention(q[:, :4], k[:, :4], randn(1, 6, 700, d), None, W)

    def test_features_multiply_to_the_exponential(self):
        """phi(q) . phi(k) = exp(q . k / sqrt(d)) on average; the stabilisers c are put back by hand."""
        q, k = 0.5 * randn(5, d), 0.5 * randn(7, d)
        W = torch.randn(400_000, d, dtype=torch.float64)
        phi = []
        for x, over in ((q, (-1,)), (k, (-2, -1))):
            c = (x / d**0.25 @ W.T).amax(over, keepdim=True)
            phi.append(va.favor_features(x, W, over, eps=0.0) * c.exp())
        same(phi[0] @ phi[1].T, torch.exp(q @ k.T / d**0.5), 0.02)

    def test_error_falls_with_features_and_grows_with_scores(self):
        errors = {}
        for scale in (0.25, 1.0):
            q, k, v = scale * randn(1, 8, 64, 32), scale * randn(1, 8, 64, 32), randn(1, 8, 64, 32)
            exact = va.attend(q, k, v)
            for M in (32, 512, 8192):
                out = va.performer_attention(q, k, v, None, va.orthogonal_projection(M, 32).double())
                errors[scale, M] = ((out - exact).norm() / exact.norm()).item()
        for scale in (0.25, 1.0):
            assert errors[scale, 32] > errors[scale, 512] > errors[scale, 8192]
        assert errors[0.25, 32] < 0.3 and errors[0.25, 8192] < 0.03 and errors[1.0, 8192] > 0.3

    def test_projection_is_orthogonal_in_blocks(self):
        W = va.orthogonal_projection(19, 8)
        unit = W / W.norm(dim=1, keepdim=True)
        for block in (unit[:8], unit[8:16], unit[16:]):
            same(block @ block.T, torch.eye(len(block)), 1e-5)
        assert W.norm(dim=1).std() > 0.1

    def test_inside_trajectory_attention(self):
        """Each frame normalised by itself, one stabiliser for all."""
        module = va.PerformerTrajectoryAttention(D, h, features=13).double()
        q, k, v = qkv()
        T, S = GRID[0], GRID[1] * GRID[2]
        y = module.first_stage(q, k, v, T)
        phi_q = va.favor_features(q, module.projection, (-1,))
        phi_k = va.favor_features(k, module.projection, (-2, -1))
        for t in range(T):
            frame = slice(t * S, (t + 1) * S)
            weights = phi_q @ phi_k[:, :, frame].mT
            same(y[:, :, :, t], weights @ v[:, :, frame] / weights.sum(-1, keepdim=True))
        layers = module.proj_q, module.proj_kv
        expected = va.trajectory_attention(q, k, v, GRID, *layers, module.first_stage)
        same(module.mechanism(q, k, v, GRID), expected)


# ==== WHAT THE PAPERS PROMISE ===============================================================================


def macs_of(function, grid, *arguments, **options):
    """Counted multiply-accumulates of a pure function on q, k, v of this grid, without class tokens."""
    q, k, v = (torch.empty(1, h, math.prod(grid), d, device="meta") for _ in range(3))
    arguments = [x.to("meta") for x in arguments]
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

    def test_approximations_are_linear(self):
        """Twice the tokens, twice the cost; for Nystrom beside what its small matrix costs whatever N is."""
        projection, prototypes = torch.empty(13, d), torch.empty(1, h, 11, d)
        for function, *fixed in (
            (va.linear_attention,),
            (va.performer_attention, projection),
            (va.orthoformer_attention, prototypes),
        ):
            for grid in (self.longer, self.finer):
                assert macs_of(function, grid, *fixed) == 2 * macs_of(function, self.small, *fixed)
        nystrom = partial(va.nystrom_attention, landmarks=11)
        matrix = 2 * 11**2 * D + 24 * h * 11**3
        for grid in (self.longer, self.finer):
            assert macs_of(nystrom, grid) - matrix == 2 * (macs_of(nystrom, self.small) - matrix)

    def test_trajectories_are_quadratic_in_frames_and_patches(self):
        layers = nn.Linear(D, D, device="meta"), nn.Linear(D, 2 * D, device="meta")
        trajectory = partial(va.trajectory_attention, proj_q=layers[0], proj_kv=layers[1])
        for grid in (self.small, self.longer, self.finer):
            T, N = grid[0], math.prod(grid)
            second_stage = 3 * N * D**2 + 2 * N * h * T * D
            assert macs_of(trajectory, grid) - second_stage == macs_of(va.joint_attention, grid)

    def test_dividing_is_cheaper_the_longer_the_clip(self):
        for grid in (self.small, self.longer, self.finer):
            divided = macs_of(va.time_attention, grid) + macs_of(va.space_attention, grid)
            T, S = grid[0], grid[1] * grid[2]
            assert divided * T * S == macs_of(va.joint_attention, grid) * (T + S)


class TestCosts:
    """The formulas of what the mechanisms are made of, each at three sizes."""

    parts = ("attend", "Attention", "most_orthogonal_subset", "orthoformer_per_frame", "attend_linearly")
    parts += ("fixate", "MLP")
    sizes = pytest.mark.parametrize("I, J, M, e", [(3, 5, 7, 2), (11, 2, 5, 9), (16, 32, 3, 4)])

    def test_every_formula_of_the_file_is_compared(self):
        compared = {question.mechanism.__name__ for question in Ladder.__subclasses__()} | set(self.parts)
        documents = {name: getattr(va, name).__doc__ or "" for name in definitions()}
        assert {name for name, text in documents.items() if re.search("^ *Cost  ", text, re.M)} <= compared

    @sizes
    def test_attend(self, I, J, M, e):
        q, k, v = (torch.empty(1, 1, *size, device="meta") for size in ((I, M), (J, M), (J, e)))
        assert counted(lambda: va.attend(q, k, v)) == eval(formula(va.attend), dict(I=I, J=J, d=M, e=e))

    @sizes
    def test_attend_linearly(self, I, J, M, e):
        q, k, v = (torch.empty(*size, device="meta") for size in ((I, M), (J, M), (J, e)))
        names = dict(I=I, J=J, M=M, d=e, min=min)
        assert counted(lambda: va.attend_linearly(q, k, v)) == eval(formula(va.attend_linearly), names)

    @sizes
    def test_most_orthogonal_subset(self, I, J, M, e):
        x = torch.empty(I + J, M, device="meta")
        expected = eval(formula(va.most_orthogonal_subset), dict(n=I + J, d=M))
        assert counted(lambda: va.most_orthogonal_subset(x, J)) == expected

    @sizes
    def test_projections(self, I, J, M, e):
        """What is left of a module's cost without its mechanism's."""
        for zero_init, each in ((False, 4), (True, 5)):
            module = va.JointAttention(M * e, e, zero_init=zero_init).to("meta")
            x = torch.empty(1, I * J, M * e, device="meta")
            macs = counted(lambda: module(x, (I, J, 1))) - 2 * (I * J) ** 2 * M * e
            assert macs == each / 4 * eval(formula(va.Attention), dict(N=I * J, D=M * e))

    @sizes
    def test_mlp(self, I, J, M, e):
        for depthwise in (False, True):
            mlp = va.MLP(M, e, depthwise=depthwise).to("meta")
            macs = counted(lambda: mlp(torch.empty(1, I * J, M, device="meta"), (1, I, J)))
            assert macs == eval(formula(va.MLP), dict(N=I * J, D=M, hidden=e)) + 9 * I * J * e * depthwise


# ==== LINEAR VIDEO TRANSFORMER ==============================================================================


def explicit_weights(q, k, v, eps=1e-6):
    """Linear attention with its weights written out: they are not negative, and rows sum to one but for
    eps."""
    weights = q @ k.mT
    return weights @ v / (weights.sum(-1, keepdim=True) + eps)


def lvt_kernel(x):
    return torch.clamp(x, min=0.0) + d**-0.5


class TestLinear(Ladder):
    """Weights that are products of ReLU features."""

    step, mechanism = va.LinearAttention, va.linear_attention
    uses_grid = False

    def oracle(self, q, k, v, grid):
        return explicit_weights(lvt_kernel(q), lvt_kernel(k), v)

    def test_takes_the_cheaper_order(self):
        """Four keys of 64 channels are cheaper as weights, four hundred are not; the answer is the same."""
        for n, expected in ((4, 2 * 4 * 4 * 64), (400, 2 * 400 * 64 * 64)):
            q, k, v = (torch.empty(1, 1, n, 64, device="meta") for _ in range(3))
            assert counted(lambda: va.attend_linearly(q, k, v)) == expected + n * 64
            q, k, v = (torch.rand(1, 1, n, 64).double() for _ in range(3))
            same(va.attend_linearly(q, k, v), explicit_weights(q, k, v))

    @pytest.mark.parametrize("axis, group", [("time", lambda t, y, x: (y, x)), ("space", lambda t, y, x: t)])
    def test_along_one_axis(self, axis, group):
        module = va.LinearAttention(D, h, axis=axis).double()
        q, k, v = qkv()
        out = module.mechanism(q, k, v, GRID)
        members = {}
        for i, patch in enumerate(patches_of(GRID)):
            members.setdefault(group(*patch), []).append(i)
        for tokens in members.values():
            parts = (lvt_kernel(q[:, :, tokens]), lvt_kernel(k[:, :, tokens]), v[:, :, tokens])
            same(out[:, :, tokens], explicit_weights(*parts))

    def test_along_time_nothing_reaches_the_class_token(self):
        module = va.LinearAttention(D, h, axis="time").double()
        out = module(randn(B, 1 + math.prod(GRID), D), GRID)
        same(out[:, :1], torch.zeros(B, 1, D).double())

    def test_bad_options_are_named(self):
        for name, value in (("axis", "up"), ("fixation", "both")):
            with pytest.raises(ValueError, match=f"{name}='{value}'"):
                va.LinearAttention(D, h, **{name: value})

    def test_takes_the_cheaper_order_between(self):
        q, k, v = (torch.empty(1, 1, 100, 64, device="meta") for _ in range(3))
        assert counted(lambda: va.attend_linearly(q, k, v)) == 2 * 100 * 64 * 64 + 100 * 64


class TestFixation:
    """g = sigmoid(W [q; k; v] + b) reweighs q and k, feature by feature."""

    def gates(self):
        return [nn.Linear(3 * d, d).double() for _ in range(2)]

    def test_equals_the_definition(self):
        q, k, v = qkv()
        gate_q, gate_k = self.gates()
        x = torch.cat([q, k, v], dim=-1)
        for other in (gate_k, None):
            g_q, g_k = (1 / (1 + torch.exp(-(x @ g.weight.T + g.bias))) for g in (gate_q, other or gate_q))
            q_fixed, k_fixed = va.fixate(q, k, v, gate_q, other)
            same(q_fixed, g_q * q)
            same(k_fixed, g_k * k)

    def test_shared_gate_is_evaluated_once(self):
        gate_q, gate_k = (gate.to("meta") for gate in self.gates())
        for N in (140, 9, 35):
            q, k, v = (torch.empty(1, h, N, d, device="meta") for _ in range(3))
            once = eval(formula(va.fixate), dict(N=N, d=d, D=D))
            assert counted(lambda: va.fixate(q, k, v, gate_q)) == once
            assert counted(lambda: va.fixate(q, k, v, gate_q, gate_k)) == 2 * once

    @pytest.mark.parametrize("fixation", ["shared", "separate"])
    def test_an_even_gate_changes_nothing(self, fixation):
        """A gate that is constant over features cancels in the ratio: plain linear attention."""
        module = va.LinearAttention(D, h, fixation=fixation).double()
        for gate in (module.gate_q, module.gate_k):
            if gate is not None:
                nn.init.zeros_(gate.weight)
                nn.init.constant_(gate.bias, 30.0)
        q, k, v = qkv()
        same(module.mechanism(q, k, v, GRID), va.linear_attention(q, k, v, GRID), 1e-9)

    def test_reads_q_and_k_after_the_kernel(self):
        module = va.LinearAttention(D, h, fixation="separate").double()
        q, k, v = qkv()
        fixed = va.fixate(lvt_kernel(q), lvt_kernel(k), v, module.gate_q, module.gate_k)
        same(module.mechanism(q, k, v, GRID), explicit_weights(*fixed, v))

    @pytest.mark.parametrize("fixation, gates", [(None, 0), ("shared", 1), ("separate", 2)])
    def test_parameters(self, fixation, gates):
        count = sum(p.numel() for p in va.LinearAttention(D, h, fixation=fixation).parameters())
        assert count == 4 * D * D + 4 * D + gates * (3 * d * d + d)


    def test_a_closed_gate_is_no_division_by_zero(self):
        q, k, v = qkv()
        closed = nn.Linear(3 * d, d).double()
        nn.init.zeros_(closed.weight)
        for bias in (-30.0, -200.0, -1000.0):
            nn.init.constant_(closed.bias, bias)
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                gate = nn.Linear(3 * d, d).to(dtype)
                gate.load_state_dict(closed.state_dict())
                out = va.linear_attention(q.to(dtype), k.to(dtype), v.to(dtype), GRID, gate)
                assert out.isfinite().all(), f"bias {bias}, {dtype}"


class TestNeighbourhood:
    """Keys and values take channels from their neighbours, and nobody multiplies anything."""

    def test_borrow_channel_by_channel(self):
        """Along one axis there are zeros past the border, and diagonally a patch keeps its own."""
        T, H, W = GRID
        x = randn(B, T, H, W, 30)
        steps = [(1, 0, 0), (-1, 0, 0), (0, 0, 2), (0, -1, 1), (9, 0, 0), (1, -1, 1)]
        out = va.borrow(x, steps, 4)
        for (t, y, z), channel in product(patches_of(GRID), range(30)):
            step = steps[channel // 4] if channel // 4 < len(steps) else (0, 0, 0)
            source = (t + step[0], y + step[1], z + step[2])
            inside = all(0 <= a < size for a, size in zip(source, GRID))
            outside = 0.0 if step.count(0) == 2 else x[:, t, y, z, channel]
            expected = x[(slice(None), *source, channel)] if inside else outside
            assert (out[:, t, y, z, channel] == expected).all()

    def test_joined_heads_are_sliced(self):
        """Head-major: with a quarter from either side, of four heads one looks ahead, one back and two
        stay."""
        x = randn(B, 4, math.prod(GRID), d)
        out = va.borrow_from_neighbours(x, GRID, va.NEXT_AND_PREVIOUS, d)
        S = GRID[1] * GRID[2]
        same(out[:, 0, :-S], x[:, 0, S:])
        same(out[:, 1, S:], x[:, 1, :-S])
        same(out[:, 2:], x[:, 2:])
        assert out[:, 0, -S:].abs().max() == 0 and out[:, 1, :S].abs().max() == 0

    def test_as_x_vits_released_mixing(self):
        """The same idea under another name: borrowing in time before space attention."""
        q, k, v = qkv()
        k2, v2 = (va.borrow_from_neighbours(x, GRID, va.NEXT_AND_PREVIOUS, D // 4) for x in (k, v))
        mixing = va.mixing_attention(q, k, v, GRID, moved=0.5, whole_heads=True)
        same(va.space_attention(q, k2, v2, GRID), mixing)

    @pytest.mark.parametrize("axis", ["time", "space"])
    def test_what_a_patch_sees(self, axis):
        """Time attention hears of the 3 x 3 around a place; space attention of the frames before and
        after."""
        width, query = 48, (2, 1, 3)
        module = va.LinearAttention(width, 4, axis=axis, neighbours=True).double()
        x = randn(1, math.prod(GRID), width).requires_grad_()
        (gradient,) = torch.autograd.grad(module(x, GRID)[0, patches_of(GRID).index(query)].sum(), x)
        for patch, reached in zip(patches_of(GRID), gradient[0].abs().sum(-1) > 0):
            apart = [abs(a - b) for a, b in zip(patch, query)]
            assert reached == (max(apart[1:]) <= 1 if axis == "time" else apart[0] <= 1)

    def test_segments_do_not_meet(self):
        x = randn(B, h, 6 * 28, d)
        ahead_and_back = va.NEXT_AND_PREVIOUS
        parts = [va.borrow_from_neighbours(part, (3, 4, 7), ahead_and_back, 4) for part in x.split(84, dim=2)]
        same(va.borrow_from_neighbours(x, (6, 4, 7), ahead_and_back, 4, segment=3), torch.cat(parts, dim=2))

    def test_bad_segments_are_named(self):
        for segment in (0, -5, 2):
            with pytest.raises(ValueError, match=f"segment={segment}"):
                va.borrow_from_neighbours(randn(B, h, 140, d), GRID, va.NEXT_AND_PREVIOUS, 4, segment)

    def test_class_tokens_are_refused(self):
        with pytest.raises(ValueError, match="141 tokens.*no class tokens"):
            va.borrow_from_neighbours(randn(B, h, 141, d), GRID, va.NEXT_AND_PREVIOUS, 4)

    @pytest.mark.parametrize(
        "axis, steps, share", [("time", va.EIGHT_AROUND, 48 // 16), ("space", va.NEXT_AND_PREVIOUS, 48 // 4)]
    )
    def test_keys_and_values_borrow_before_the_kernel(self, axis, steps, share):
        """A sixteenth of the channels from each of eight around, a quarter from the next and last frame."""
        module = va.LinearAttention(48, 3, axis=axis).double()
        q, k, v = (randn(B, 3, math.prod(GRID), 16) for _ in range(3))
        k2, v2 = (va.borrow_from_neighbours(x, GRID, steps, share) for x in (k, v))
        same(module.mechanism(q, k, v, GRID, neighbours=True), module.mechanism(q, k2, v2, GRID))

    def test_divisor_and_segment_reach_the_borrowing(self):
        grid = (6, 2, 3)
        module = va.LinearAttention(D, h, axis="space").double()
        q, k, v = qkv(grid)
        k2, v2 = (va.borrow_from_neighbours(x, grid, va.NEXT_AND_PREVIOUS, D // 8, segment=3) for x in (k, v))
        actual = module.mechanism(q, k, v, grid, neighbours=True, divisor=8, segment=3)
        same(actual, module.mechanism(q, k2, v2, grid))

    def test_order_of_neighbours_as_released(self):
        """Which channels come from where decides whether released weights mean the same."""
        assert va.NEXT_AND_PREVIOUS == [(1, 0, 0), (-1, 0, 0)]
        below, above, right, left = (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)
        assert va.EIGHT_AROUND[:4] == [below, above, right, left]
        assert va.EIGHT_AROUND[4:] == [(0, -1, -1), (0, 1, 1), (0, -1, 1), (0, 1, -1)]


# ==== THE TABLE =============================================================================================


class TestTable:
    """Which steps a name stands for, and what class tokens it gets: written out once more."""

    def test_schemes(self):
        def name(step):
            return step.__name__.removesuffix("Attention")

        plain = {n: [name(step) for step in steps] for n, steps in va.ATTENTION.items()
                 if not any(isinstance(step, partial) for step in steps)}
        assert plain["divided"] == ["Time", "Space"] and plain["local_global"] == ["Local", "Global"]
        assert plain["axial"] == ["Time", "Width", "Height"]
        assert {n for n, steps in plain.items() if len(steps) > 1} == {"divided", "local_global", "axial"}

    def test_schemes_with_options(self):
        (mixing,) = va.ATTENTION["mixing_summary"]
        everywhere = set(patches_of(GRID))
        assert seen_by(mixing, GRID, (0, 0, 0)) == everywhere
        assert seen_by(va.MixingAttention, GRID, (0, 0, 0)) != everywhere
        (linear,) = va.ATTENTION["linear_fixation"]
        assert linear(D, h).gate_q is not None
        for step, axis in zip(va.ATTENTION["lvt"], ("time", "space"), strict=True):
            module = step(48, 4)
            assert module.axis == axis and module.gate_q is not None and module.gate_k is None
            assert module.options == dict(neighbours=True)

    def test_class_tokens_where_frames_hardly_meet(self):
        frame = {name for name in va.ATTENTION if va.CLASS_TOKEN.get(name) == "frame"}
        assert frame == {"space", "mixing", "summary", "mixing_summary"}
        assert {name for name in va.ATTENTION if va.CLASS_TOKEN.get(name) == "none"} == {"lvt"}
        for name in ("space", "lvt", "joint"):
            kind = va.CLASS_TOKEN.get(name, "clip")
            assert va.VideoTransformer(name, dim=24, heads=4, depth=1).class_token_kind == kind


# ==== THE BACKBONE ==========================================================================================

VIDEO = (2, 3, 6, 24, 40)  # with patches of 8 a grid of 6 x 3 x 5
SCHEMES = dict(vars(va).get("ATTENTION", {}))
for name in SCHEMES.keys() & {"orthoformer", "trajectory_orthoformer"}:  # few: tracing unrolls the selection
    SCHEMES[name] = [partial(step, prototypes=5) for step in SCHEMES[name]]
for name in SCHEMES.keys() & {"nystrom", "trajectory_nystrom"}:
    SCHEMES[name] = [partial(step, landmarks=7) for step in SCHEMES[name]]
every_scheme = pytest.mark.parametrize("name", SCHEMES)


def tiny(attention, **options):
    """A model that takes VIDEO, in eval; named schemes get their own class tokens also when cut down."""
    sizes = dict(num_classes=5, num_frames=6, image_size=(24, 40), patch_size=8, dim=24, depth=2, heads=4)
    if isinstance(attention, str):
        options = dict(class_token=va.CLASS_TOKEN.get(attention)) | options
        attention = SCHEMES[attention]
    return va.VideoTransformer(attention, **sizes | options).eval()


class TestBackbone:
    @every_scheme
    def test_shapes(self, name):
        model = va.VideoTransformer(name, num_classes=5, num_frames=6, image_size=(24, 40), patch_size=8,
                                    dim=24, depth=1, heads=4)
        C = {"clip": 1, "frame": 6, "none": 0}[va.CLASS_TOKEN.get(name, "clip")]
        video = torch.randn(VIDEO)
        assert model(video).shape == (2, 5)
        assert model.forward_features(video).shape == (2, C + 6 * 3 * 5, 24)

    @every_scheme
    def test_any_grid(self, name):
        """The grid belongs to the call: 5 frames of 3 x 7 patches, one frame, one patch."""
        model = tiny(name, depth=1)
        for frames, height, width in ((5, 24, 56), (1, 16, 24), (6, 8, 8), (1, 8, 8)):
            logits = model(torch.randn(1, 3, frames, height, width))
            assert logits.shape == (1, 5) and logits.isfinite().all()

    @every_scheme
    def test_eval_is_deterministic_and_training_is_not(self, name):
        model = tiny(name, depth=1, dropout=0.5, drop_path=0.5)
        video = torch.randn(VIDEO)
        assert torch.equal(model(video), model(video))
        model.train()
        assert not torch.equal(model(video), model(video))

    @every_scheme
    def test_compiles_without_a_break(self, name):
        """Here the graph is only traced; VA_COMPILE=inductor also builds it, as torch does by default."""
        torch._dynamo.reset()
        model, video = tiny(name, depth=1), torch.randn(VIDEO)
        expected, parameters = model(video), list(model.parameters())
        expected_gradients = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
        compiled = torch.compile(model, fullgraph=True, backend=os.environ.get("VA_COMPILE", "eager"))
        same(compiled(video), expected, 1e-5)
        gradients = torch.autograd.grad(compiled(video).square().sum(), parameters, allow_unused=True)
        for gradient, other in zip(gradients, expected_gradients):
            if other is not None:
                same(gradient, other, 1e-4)

    @every_scheme
    def test_exports_with_any_batch(self, name):
        model, video = tiny(name, depth=1), torch.randn(5, *VIDEO[1:])
        expected = model(video)
        dynamic = {"video": {0: torch.export.Dim("B", min=1, max=64)}}
        exported = torch.export.export(model, (torch.randn(VIDEO),), dynamic_shapes=dynamic).module()
        same(exported(video), expected, 1e-5)

    @every_scheme
    def test_overfits_eight_clips(self, name):
        """Eight clips of noise and eight labels of no meaning: a model that cannot learn these is broken."""
        video, label = torch.randn(8, 3, 6, 16, 24), torch.arange(8) % 4
        model = tiny(name, depth=1).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(40):
            loss = nn.functional.cross_entropy(model(video), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert (model.eval()(video).argmax(1) == label).all(), f"loss {loss:.3f} after 40 steps"

    @every_scheme
    def test_every_parameter_learns(self, name):
        """After one step no branch is asleep. The key bias never matters in a softmax; and since only the
        class token is classified, what makes the patches of a last trajectory block cannot matter either."""
        model = tiny(name).double().train()
        video = randn(*VIDEO)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (model(video) * torch.arange(10).view(2, 5)).sum().backward()
            optimizer.step()
        asleep = {n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-15}
        expected = set()
        if name.startswith("trajectory"):
            expected = {f"blocks.1.steps.0.proj_{p}.{w}" for p in ("q", "kv") for w in ("weight", "bias")}
        assert asleep == expected

    def test_clips_of_a_batch_do_not_meet(self):
        model = tiny("divided").double()
        video = randn(*VIDEO)
        same(model(video)[:1], model(video[:1]))

    def test_stacked_steps_of_ones_own(self):
        """A scheme is a list: here axial attention without time, with an option for pooled attention."""
        model = tiny([va.WidthAttention, partial(va.PooledAttention, stride=(3, 2, 1))])
        assert model(torch.randn(VIDEO)).shape == (2, 5)

    def test_summary_tokens_in_another_scheme(self):
        """Divided attention whose second step also hears a word from every frame."""
        model = tiny([va.TimeAttention, va.SummaryAttention], head="temporal")
        assert model(torch.randn(VIDEO)).shape == (2, 5)


class TestPrecision:
    """Half precision, in which sums, squares and exponentials run out of room."""

    @every_scheme
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_is_close(self, name, dtype):
        model = tiny(name)
        for scale in (1, 100):
            video = scale * torch.randn(VIDEO)
            expected = model(video)
            with torch.autocast("cpu", dtype=dtype):
                actual = model(video).float()
            error = ((actual - expected).norm() / expected.norm()).item()
            assert error < 0.03, f"relative error {error:.3f} with pixels of scale {scale}"

    @every_scheme
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_large_tokens_stay_finite(self, name, dtype):
        """Without the norm that comes before them in a block. FAVOR+ cannot: where scores are large its
        features differ by more powers of ten than float16 has."""
        if dtype is torch.float16 and "performer" in name:
            pytest.skip("FAVOR+ has no room in float16")
        x = 100 * torch.randn(B, math.prod(GRID), 128)
        for step in va.ATTENTION[name]:
            with torch.autocast("cpu", dtype=dtype):
                assert step(128, 2)(x, GRID).isfinite().all()

    def test_linear_attention_of_a_long_clip(self):
        """1,569 tokens of scale 10: their sums would be far past 65,504, the end of float16."""
        q, k, v = 10 * torch.randn(3, 1, 2, 1569, 64)
        expected = va.linear_attention(q, k, v, GRID)
        for dtype in (torch.bfloat16, torch.float16):
            actual = va.linear_attention(q.to(dtype), k.to(dtype), v.to(dtype), GRID).float()
            assert (actual - expected).norm() < 0.01 * expected.norm()

    @pytest.mark.parametrize("bias", [0.0, -4.0, -8.0, -12.0])
    def test_gates_that_are_nearly_closed(self, bias):
        """What they let through, exp(-12), is below what float16 can tell from zero once it is multiplied."""
        q, k, v = torch.randn(3, 1, 2, 1569, 64)
        gate = nn.Linear(3 * 64, 64)
        nn.init.normal_(gate.weight, std=0.05), nn.init.constant_(gate.bias, bias)
        expected = va.linear_attention(q, k, v, GRID, gate)
        q, k, v = q.half(), k.half(), v.half()
        actual = va.linear_attention(q, k, v, GRID, gate.half()).float()
        assert (actual - expected).norm() < 0.01 * expected.norm()


def train(model, clips, labels):
    """Two steps of gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(clips), labels).backward()
        optimizer.step()


def make_training_set():
    torch.manual_seed(SEED)
    return tiny("divided", depth=1).double().train(), randn(4, *VIDEO[1:]), torch.tensor([0, 4, 2, 1])


def train_half(rank, folder):
    """What one of two processes does: its half of the batch, gradients averaged with the other's."""
    init = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    model, clips, labels = make_training_set()
    half = slice(2 * rank, 2 * rank + 2)
    train(nn.parallel.DistributedDataParallel(model), clips[half], labels[half])
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


class TestTraining:
    def test_two_processes_train_as_one(self, tmp_path):
        torch.multiprocessing.spawn(train_half, (str(tmp_path),), nprocs=2)
        model, clips, labels = make_training_set()
        train(model, clips, labels)
        for rank in (0, 1):
            weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
            for key, value in model.state_dict().items():
                same(weights[key], value)

    @pytest.mark.parametrize("name", ["joint", "trajectory_orthoformer", "lvt"])
    def test_checkpoint_gives_the_same_gradients(self, name):
        """Also with dropout: what is computed again meets the same random numbers."""
        video, found = torch.randn(VIDEO), []
        for checkpoint in (False, True):
            torch.manual_seed(SEED)
            model = tiny(name, dropout=0.3, drop_path=0.3, checkpoint=checkpoint).train()
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


class TestTokens:
    def test_a_patch_is_a_linear_layer_on_its_pixels(self):
        patches = va.PatchEmbedding((3, 4, 8), 10).double()
        video = randn(2, 3, 6, 12, 24)
        tokens, grid = patches(video)
        assert grid == (2, 3, 3) and tokens.shape == (2, 18, 10)
        for n, (t, y, x) in enumerate(patches_of(grid)):
            pixels = video[:, :, 3 * t : 3 * t + 3, 4 * y : 4 * y + 4, 8 * x : 8 * x + 8].flatten(1)
            same(tokens[:, n], pixels @ patches.proj.weight.flatten(1).T + patches.proj.bias)

    def test_overlapping_patches(self):
        """LVT's: 16 x 16 every 14 pixels with 8 zeros around make 17 x 17 of a 224 x 224 frame, normed."""
        patches = va.PatchEmbedding((1, 16, 16), 10, stride=(1, 14, 14))
        assert patches.grid((16, 224, 224)) == (16, 17, 17)
        tokens, grid = patches(torch.randn(1, 3, 2, 40, 56))
        assert grid == (2, 3, 5) and tokens.shape == (1, 30, 10)
        same(tokens.mean(-1), torch.zeros(1, 30), 1e-5)

    def test_central_frame_kernel(self):
        """A tubelet model with an inflated kernel sees its central frames as the image model does."""
        image = nn.Conv2d(3, 10, 8, stride=8).double()
        for frames in (2, 3):
            patches = va.PatchEmbedding((frames, 8, 8), 10).double()
            patches.proj.weight.data = va.central_frame_kernel(image.weight.data, frames)
            patches.proj.bias.data = image.bias.data
            video = randn(2, 3, 2 * frames, 16, 24)
            tokens, grid = patches(video)
            central = image(video[:, :, frames // 2])
            same(tokens[:, : 2 * 3], central.flatten(2).transpose(1, 2))

    @pytest.mark.parametrize("kind", ["none", "space", "time", "separate", "joint"])
    @pytest.mark.parametrize("class_token", ["none", "clip", "frame"])
    def test_position_of_every_token(self, kind, class_token):
        T, H, W = GRID
        position = va.PositionEmbedding(kind, GRID, 8, class_token).double()
        for table in position.parameters():
            nn.init.normal_(table)
        C = {"none": 0, "clip": 1, "frame": T}[class_token]
        out = position(torch.zeros(2, C + T * H * W, 8).double(), GRID)[0]
        c = min(C, 1)
        for n, (t, y, x) in enumerate(patches_of(GRID)):
            expected = torch.zeros(8).double()
            if kind in ("space", "separate"):
                expected = expected + position.place[0, c + y * W + x]
            if kind == "joint":
                expected = expected + position.place[0, c + n]
            if kind in ("time", "separate"):
                expected = expected + position.time[0, t]
            same(out[C + n], expected)
        for t in range(C):
            expected = position.place[0, 0] if position.place is not None else torch.zeros(8).double()
            if class_token == "frame" and position.time is not None:
                expected = expected + position.time[0, t]
            same(out[t], expected)

    def test_tables_are_resized(self):
        """Linear in time and bicubic in space: away from the edges a steady slope stays one, at half the
        step."""
        ramp = torch.arange(8.0).view(1, 8, 1)
        finer = va.resize_table(ramp, (8,), (16,)).flatten()[1:-1]
        same(finer.diff(), torch.full((13,), 0.5), 1e-6)
        plane = (10 * torch.arange(9.0).view(9, 1) + torch.arange(12.0)).view(1, 108, 1)
        finer = va.resize_table(plane, (9, 12), (18, 24)).view(18, 24)[6:-6, 6:-6]
        same(finer[2:] - finer[:-2], torch.full((4, 12), 10.0), 1e-4)
        same(finer[:, 2:] - finer[:, :-2], torch.full((6, 10), 1.0), 1e-4)
        assert va.resize_table(ramp, (8,), (8,)) is ramp

    def test_positions_break_the_symmetry(self):
        """Without them the model cannot tell where or when a patch is: shuffled patches give the same
        answer."""
        video = randn(*VIDEO)
        for kind, told in (("none", False), ("separate", True)):
            model = tiny("joint", position=kind).double()
            if model.position.time is not None:
                nn.init.normal_(model.position.time)
            assert ((model(video) - model(video.flip(2))).abs().max() > 1e-6) == told

    def test_other_ways_to_resize(self):
        ramp = torch.arange(4.0).view(1, 4, 1)
        assert va.resize_table(ramp, (4,), (8,), "nearest").flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert va.resize_table(ramp, (4,), (6,), "nearest").flatten().tolist() == [0, 0, 1, 2, 2, 3]
        assert va.resize_table(ramp, (4,), (6,), "repeat").flatten().tolist() == [0, 1, 2, 3, 0, 1]
        plane = randn(1, 12, 1)
        nearest = va.resize_table(plane, (3, 4), (6, 8), "nearest").view(6, 8)
        same(nearest[::2, ::2], plane.view(3, 4))
        same(va.resize_table(plane, (3, 4), (6, 8), "repeat"), va.resize_table(plane, (3, 4), (6, 8)))
        assert not torch.equal(va.resize_table(plane, (3, 4), (4, 3)), plane)  # as many entries, other places

    def test_bicubic_overshoots(self):
        """Around a single one a bicubic surface dips below zero; a bilinear one never would."""
        one = nn.functional.one_hot(torch.tensor(17), 35).double().view(1, 35, 1)
        assert va.resize_table(one, (5, 7), (10, 14)).min() < -0.05

    def test_joint_tables_are_resized_in_time_and_space(self):
        t, y, x = torch.meshgrid(*(torch.arange(n).double() for n in (6, 7, 9)), indexing="ij")
        table = (100 * t + 10 * y + x).reshape(1, -1, 1)
        finer = va.resize_table(table, (6, 7, 9), (12, 14, 18)).view(12, 14, 18)[4:-4, 4:-4, 4:-4]
        for axis, slope in enumerate((50.0, 5.0, 0.5)):
            step = finer.diff(dim=axis)
            same(step, torch.full_like(step, slope))

    @pytest.mark.parametrize("resize", ["smooth", "nearest", "repeat"])
    @pytest.mark.parametrize("kind", ["separate", "joint"])
    def test_positions_on_another_grid(self, kind, resize):
        """The class token keeps its entry, and every table is resized by itself, rows as rows."""
        grid = (7, 3, 5)
        position = va.PositionEmbedding(kind, GRID, 8, "clip", resize).double()
        for table in position.parameters():
            nn.init.normal_(table)
        out = position(torch.zeros(1, 1 + math.prod(grid), 8).double(), grid)
        if kind == "joint":
            expected = va.resize_table(position.place[:, 1:], GRID, grid, resize)
        else:
            places = va.resize_table(position.place[:, 1:], GRID[1:], grid[1:], resize).view(1, 1, 3, 5, 8)
            times = va.resize_table(position.time, GRID[:1], grid[:1], resize).view(1, 7, 1, 1, 8)
            expected = (places + times).flatten(1, 3)
        same(out[:, 1:], expected)
        same(out[:, :1], position.place[:, :1])

    def test_resize_reaches_the_tables(self):
        assert tiny("joint", resize="repeat").position.resize == "repeat"

    def test_overlapping_patches_need_not_divide(self):
        patches = va.PatchEmbedding((1, 16, 16), 10, stride=(1, 14, 14))
        tokens, grid = patches(torch.randn(1, 3, 2, 41, 50))
        assert grid == patches.grid((2, 41, 50)) == (2, 3, 4) and tokens.shape == (1, 24, 10)


class TestInitialisation:
    def test_as_published(self):
        model = va.VideoTransformer("divided", dim=192, depth=2, heads=3, num_classes=7)
        same(model.position.time, torch.zeros(1, 8, 192))
        for block in model.blocks:
            same(block.steps[0].zero.weight, torch.zeros(192, 192))
            same(block.steps[0].qkv.bias, torch.zeros(3 * 192))
            assert block.steps[1].zero is None
            assert 0.0195 < block.steps[0].qkv.weight.std() < 0.0205
            assert block.steps[0].qkv.weight.abs().max() < 2.0
        assert 0.0195 < model.position.place.std() < 0.0205

    def test_a_clip_starts_as_a_bag_of_images(self):
        """New branches and the time table are zero: at first the order of the frames does not matter."""
        video = randn(*VIDEO)
        model = tiny("divided").double()
        same(model(video), model(video.flip(2)))

    def test_stochastic_depth_keeps_the_mean(self):
        drop = va.StochasticDepth(0.3).train()
        x = torch.ones(20_000, 1, 1)
        kept = drop(x).flatten()
        assert set(kept.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
        assert abs(kept.mean() - 1) < 0.03
        assert drop.eval()(x) is x

    def test_stochastic_depth_grows_with_depth(self):
        model = tiny("joint", depth=5, drop_path=0.2)
        assert [round(block.drop_path.p, 6) for block in model.blocks] == [0.0, 0.05, 0.1, 0.15, 0.2]

    def test_initial_class_token_and_biases(self):
        model = va.VideoTransformer("divided", depth=1)
        assert 0.015 < model.class_token.std() < 0.025
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not name.startswith("patches"):
                assert parameter.abs().max() == 0, name

    def test_new_branches_may_start_awake(self):
        for block in tiny("divided", zero_init=False).blocks:
            assert [step.zero for step in block.steps] == [None, None]


class TestHeads:
    def test_pools(self):
        tokens = randn(2, 6 + 90, 24)
        for pool, pooled in (("class", tokens[:, :6].mean(1)), ("mean", tokens[:, 6:].mean(1))):
            head = va.Head(24, 5, pool, None, None, 4, 0.0).double()
            same(head(tokens, (6, 3, 5)), head.classify(pooled))

    def test_temporal_attention_head(self):
        """A new class token and the frames in one transformer layer, by hand; the order of frames is not
        told."""
        head = va.TemporalAttentionHead(24, 4).double()
        nn.init.normal_(head.class_token)
        frames = randn(2, 7, 24)
        x = torch.cat([head.class_token.expand(2, 1, 24), frames], dim=1)
        block = head.block
        q, k, v = block.steps[0].project(block.norms[0](x))
        found = softmax_mean(q[:, :, 0], k, v).flatten(1)
        y = x[:, 0] + block.steps[0].proj(found)
        expected = y + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.mlp_norm(y))))
        same(head(frames), expected)
        same(head(frames.flip(1)), expected)
        assert block.steps[0].qkv.bias is None

    @pytest.mark.parametrize("name", ["space", "divided", "lvt"])
    def test_temporal_head_with_any_scheme(self, name):
        """Over the frames' class tokens where there are some, else over the means of their patches."""
        model = tiny(name, head="temporal").double()
        video = randn(*VIDEO)
        tokens, grid = model.encode(video)
        C = tokens.shape[1] - 90
        frames = tokens[:, :6] if C == 6 else tokens[:, C:].unflatten(1, (6, 15)).mean(2)
        same(model(video), model.head.classify(model.head.temporal(frames)))

    @pytest.mark.parametrize("class_token", ["none", "clip", "frame"])
    def test_merged_frames(self, class_token):
        """The mean over frames of every place, and of the class tokens, before the last norm."""
        model = tiny("joint", class_token=class_token, merge_frames=True).double()
        tokens = {}
        model.blocks[-1].register_forward_hook(lambda module, inputs, out: tokens.update(last=out))
        features = model.forward_features(randn(*VIDEO))
        C = tokens["last"].shape[1] - 90
        merged = [tokens["last"][:, C:].unflatten(1, (6, 15)).mean(1)]
        if C:
            merged.insert(0, tokens["last"][:, :C].mean(1, keepdim=True))
        same(features, model.norm(torch.cat(merged, dim=1)))

    @pytest.mark.parametrize("mlp, layers", [(None, 1), ("tanh", 3), ("gelu", 5)])
    def test_classifiers(self, mlp, layers):
        head = va.Head(24, 5, "mean", mlp, 40, 4, 0.1)
        assert len(head.classify) == layers and head(torch.randn(2, 90, 24), (6, 3, 5)).shape == (2, 5)

    @pytest.mark.parametrize("mlp", [None, "tanh", "gelu"])
    def test_classifiers_by_hand(self, mlp):
        head, x = va.Head(24, 5, "mean", mlp, 40, 4, 0.1).double().eval(), randn(2, 24)
        linear = [layer for layer in head.classify if isinstance(layer, nn.Linear)]
        assert [layer.in_features for layer in linear] == ([24] if mlp is None else [24, 40])
        expected = linear[-1](x) if mlp is None else None
        if mlp == "tanh":
            expected = linear[1](torch.tanh(linear[0](x)))
        if mlp == "gelu":
            normed = nn.functional.layer_norm(x, (24,))
            expected = linear[1](nn.functional.gelu(linear[0](normed)))
        same(head.classify(x), expected)
        if mlp == "gelu":
            assert isinstance(head.classify[-2], nn.Dropout)

    def test_head_hidden_reaches_the_head(self):
        assert tiny("joint", head_mlp="tanh", head_hidden=40).head.classify[0].out_features == 40

    def test_tokens_are_normed_last(self):
        features = tiny("joint").double().forward_features(randn(*VIDEO))
        same(features.mean(-1), torch.zeros(2, 91).double())
        same(features.var(-1, unbiased=False), torch.ones(2, 91).double(), 1e-2)


class TestBlock:
    def test_residual_steps_and_mlp(self):
        steps = [va.TimeAttention(D, h), va.SpaceAttention(D, h)]
        block = va.Block(D, steps, va.MLP(D, 50)).double()
        x = expected = randn(B, 1 + math.prod(GRID), D)
        for norm, step in zip(block.norms, steps):
            expected = expected + step(norm(expected), GRID)
        expected = expected + block.mlp(block.mlp_norm(expected), GRID)
        same(block(x, GRID), expected)

    def test_depthwise_mlp_sees_the_places_around(self):
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

    def test_stochastic_depth_drops_whole_clips(self):
        kept = va.StochasticDepth(0.5).train()(torch.ones(1000, 7, 2))
        assert (kept == kept[:, :1, :1]).all() and len(kept.unique()) == 2

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
        for block in tiny("joint", gelu="tanh").blocks:
            assert block.mlp.gelu.approximate == "tanh"

    def test_eps_of_the_norms(self):
        """As in the released code: 1e-6 everywhere, 1e-5 in X-ViT's temporal head."""
        for name, module in tiny("mixing", head="temporal").named_modules():
            if isinstance(module, nn.LayerNorm):
                assert module.eps == (1e-5 if "temporal" in name else 1e-6), name

    def test_depthwise_reaches_the_blocks(self):
        for block in tiny("lvt", depthwise=True).blocks:
            assert block.mlp.depthwise.groups == 4 * 24


class TestPublishedSizes:
    @pytest.mark.parametrize(
        "name, count",
        [
            ("space", 85_932_462),
            ("joint", 85_938_606),
            ("divided", 121_392_558),
            ("local_global", 121_392_558),
            ("axial", 156_846_510),
        ],
    )
    def test_parameters_of_timesformers_table_1(self, name, count):
        """ViT-B at 8 x 224 x 224 with 174 classes: 85.9, 85.9, 121.4, 121.4 and 156.8 million."""
        with torch.device("meta"):
            position = "space" if name == "space" else "separate"
            model = va.preset("timesformer", attention=name, num_classes=174, position=position)
        assert sum(p.numel() for p in model.parameters()) == count


# What the official code counts: parameters, those of them that its model never uses, GMACs of one view; and
# the clip. Counted from the authors' code on the meta device; X-ViT's 16-frame model is its 8-frame model.
OFFICIAL_SIZES = {
    "timesformer": (121_566_352, 0, 195.83, (8, 224)),
    "timesformer_hr": (122_024_080, 0, 1702.69, (16, 448)),
    "timesformer_l": (121_633_936, 0, 2379.86, (96, 224)),
    "motionformer": (109_144_720, 590_592, 369.36, (16, 224)),  # unused: the patch embedding of single frames
    "motionformer_l": (109_150_864, 590_592, 1184.87, (32, 224)),
    "motionformer_hr": (109_144_720, 590_592, 958.41, (16, 336)),
    "xvit": (94_098_464, 307_600, 140.57, (8, 224)),  # unused: a classifier before the temporal head
    "xvit_16": (94_098_464, 307_600, 281.13, (16, 224)),
    "lvt": (52_008_540, 89_262, 264.67, (16, 224)),  # unused: likewise; 174 classes, all others 400
}


def plain_second_stage(q, k, v, grid, proj_q, proj_kv, first_stage, project_values):
    """Trajectory attention with W_k and W_v on all N*T trajectory tokens, as the official code has it."""
    T, S = grid[0], grid[1] * grid[2]
    C = q.shape[2] - T * S
    class_token = va.attend(q[:, :, :C], k, v)
    y = first_stage(q[:, :, C:], k[:, :, C:], v[:, :, C:], T)
    frame = torch.arange(T, device=q.device).repeat_interleave(S)
    own = y[:, :, torch.arange(T * S, device=q.device), frame].transpose(1, 2).flatten(2)
    heads = lambda x: x.unflatten(-1, (q.shape[1], q.shape[3]))
    y = y.permute(0, 2, 3, 1, 4).flatten(3)
    keys, values = proj_kv(y).chunk(2, dim=-1)
    query = heads(proj_q(own)).unsqueeze(3)
    keys, values = (heads(x).transpose(2, 3) for x in (keys, values if project_values else y))
    out = va.attend(query, keys, values).squeeze(3).transpose(1, 2)
    return torch.cat([class_token, out], dim=2)


@cache
def full_size(name):
    """Parameters and GMACs of a preset at full size, without memory or time."""
    frames, size = OFFICIAL_SIZES[name][3]
    with torch.device("meta"):
        model = va.preset(name, num_classes=174 if name == "lvt" else 400).eval()
        video = torch.empty(1, 3, frames, size, size)
    return sum(p.numel() for p in model.parameters()), counted(lambda: model(video)) / 1e9


class TestPresets:
    @pytest.mark.parametrize("name", OFFICIAL_SIZES)
    def test_parameters_are_the_official_ones(self, name):
        """All of them, once what a release carries and never uses is set aside."""
        official, unused, _, _ = OFFICIAL_SIZES[name]
        assert full_size(name)[0] + unused == official

    @pytest.mark.parametrize("name", ["timesformer", "timesformer_hr", "timesformer_l"])
    def test_timesformer_projects_its_class_token_once(self, name):
        """Officially the class token is copied into T frames before its four projections, here after them."""
        frames = OFFICIAL_SIZES[name][3][0]
        copies = 12 * (frames - 1) * 4 * 768**2 / 1e9
        assert abs(full_size(name)[1] + copies - OFFICIAL_SIZES[name][2]) < 0.006

    @pytest.mark.parametrize("name", ["motionformer", "motionformer_l", "motionformer_hr"])
    def test_motionformer_in_the_plain_form_and_here(self, name, monkeypatch):
        """369.4, 1184.9 and 958.4 GMACs as published; 216.5, 529.2 and 614.5 with the second stage folded."""
        frames, size = OFFICIAL_SIZES[name][3]
        T, N, D = frames // 2, frames // 2 * (size // 16) ** 2, 768
        folded = full_size(name)[1]
        monkeypatch.setattr(va, "trajectory_attention", plain_second_stage)
        plain = full_size.__wrapped__(name)[1]
        assert abs(plain - OFFICIAL_SIZES[name][2]) < 0.006
        saved = 12 * (2 * N * T * D**2 - 2 * N * D**2 - 2 * N * T * D * (12 - 1)) / 1e9
        assert abs(plain - saved - folded) < 1e-6 and folded < 0.65 * plain

    @pytest.mark.parametrize("name", ["xvit", "xvit_16"])
    def test_xvit(self, name):
        assert abs(full_size(name)[1] - OFFICIAL_SIZES[name][2]) < 0.006

    def test_lvt_evaluates_its_gate_once(self):
        """Two savings: the shared gate once, 3*N*d*D in each of 24 attentions, and along time, with 16
        tokens of 64 channels, the weights themselves, 2*N*(d - T)*D in 12; the counter sees the
        denominators, N*D in 24."""
        N, T, d, D = 16 * 17 * 17, 16, 64, 512
        gates, order, denominators = 24 * 3 * N * d * D, 12 * 2 * N * (d - T) * D, 24 * N * D
        here = full_size("lvt")[1]
        assert abs(here + (gates + order - denominators) / 1e9 - OFFICIAL_SIZES["lvt"][2]) < 0.006

    def test_vivit(self):
        """Model 1 of ViViT's table 2: 88.9 million parameters, 455.2 GFLOPs."""
        with torch.device("meta"):
            model, video = va.preset("vivit").eval(), torch.empty(1, 3, 32, 224, 224)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) in (88.9, 89.0)
        assert abs(counted(lambda: model(video)) / 1e9 - 455.2) < 0.01 * 455.2

    def test_plain_and_folded_agree(self):
        q, k, v = qkv(C=1)
        layers = nn.Linear(D, D).double(), nn.Linear(D, 2 * D).double()
        plain = plain_second_stage(q, k, v, GRID, *layers, va.attend_per_frame, True)
        same(va.trajectory_attention(q, k, v, GRID, *layers), plain)


class TestReleased:
    """from_released beyond the numbers: what it reads, infers and refuses."""

    def state(self, name="timesformer_divided"):
        if not TINY_DATA.exists():
            pytest.skip("tiny_data is not here")
        arrays = np.load(TINY_DATA / "golden" / f"{name}.npz")
        return {k[6:]: torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("state/")}

    def test_infers_the_sizes(self):
        model = va.from_released("timesformer", self.state(), heads=3)
        assert not model.training
        assert [type(step) for step in model.blocks[0].steps] == [va.TimeAttention, va.SpaceAttention]
        assert (len(model.blocks), model.position.grid, model.patches.patch_size) == (2, (4, 4, 4), (1, 8, 8))
        assert model(torch.randn(1, 3, 4, 32, 32)).shape == (1, 5)

    def test_what_no_tensor_tells_is_the_usual_of_the_release(self):
        """How tables are resized, the MLP's GELU, the share of mixed channels, LVT's overlap of patches."""
        for name, family, resize in (
            ("timesformer_divided", "timesformer", "nearest"),
            ("timesformer_space", "timesformer", "nearest"),
            ("motionformer_trajectory_orig", "motionformer", "smooth"),
            ("xvit_vit_16f_seg8", "xvit", "repeat"),
            ("lvt_model_16f_seg8", "lvt", "repeat"),
        ):
            model = va.from_released(family, self.state(name), heads=2)
            assert model.position.resize == resize, name
            assert model.merge_frames == (name == "timesformer_space")
        assert model.patches.proj.stride == (1, 7, 7)  # 7/8 of a patch of 8, as 14 of 16
        mixing = va.from_released("xvit", self.state("xvit_vit_16f_seg8"), heads=2).blocks[0].steps[0]
        assert mixing.options == dict(whole_heads=True, moved=0.25, segment=8)

    @pytest.mark.parametrize("nesting", ["model_state", "state_dict", "model", "prefix", "file"])
    def test_unwraps(self, nesting, tmp_path):
        state, expected = self.state(), va.from_released("timesformer", self.state(), heads=3).state_dict()
        if nesting == "prefix":
            state = {f"module.{key}": value for key, value in state.items()}
        elif nesting == "file":
            torch.save({"epoch": 3, "model_state": state}, tmp_path / "released.pyth")
            state = tmp_path / "released.pyth"
        else:
            state = {nesting: state, "epoch": 3}
        actual = va.from_released("timesformer", state, heads=3).state_dict()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)

    def test_code_in_a_file_is_refused(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "sprung"),)

        torch.save({"model_state": Trap()}, tmp_path / "trap.pyth")
        with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
            va.from_released("timesformer", tmp_path / "trap.pyth")
        assert not (tmp_path / "sprung").exists()

    def test_all_that_is_wrong_is_listed(self):
        state = self.state()
        del state["model.blocks.1.mlp.fc2.bias"]
        state["model.extra.weight"] = torch.zeros(3)
        state["model.blocks.0.attn.qkv.weight"] = state["model.blocks.0.attn.qkv.weight"].T
        with pytest.raises(ValueError, match="does not fit") as error:
            va.from_released("timesformer", state, heads=3)
        message = str(error.value)
        assert re.search(r"Missing.*blocks.1.mlp.fc2.bias.*Unexpected.*extra.weight", message, re.S)
        assert re.search(r"qkv.weight: .*shape torch.Size\(\[24, 72\]\).*torch.Size\(\[72, 24\]\)", message)

    @pytest.mark.parametrize("kept", [8, 20, 48])
    def test_truncated_file_is_refused(self, kept):
        """With the first keys of a file all that should follow them is listed, down to the classifier."""
        state = dict(list(self.state().items())[:kept])
        with pytest.raises(ValueError, match="Missing.*head.classify.0.bias"):
            va.from_released("timesformer", state, heads=3)

    @pytest.mark.parametrize("family", ["motionformer", "xvit", "lvt", "vivit"])
    def test_wrong_family_is_refused(self, family):
        with pytest.raises(ValueError):
            va.from_released(family, self.state(), heads=3)

    def test_nothing_of_the_kind_is_refused(self):
        for state in ({}, {"weights": 3}, {"a.weight": torch.zeros(2)}):
            with pytest.raises(ValueError, match="not a released timesformer"):
                va.from_released("timesformer", state)

    def test_unknown_family_is_named(self):
        with pytest.raises(ValueError, match="'timesfomer'.*timesformer"):
            va.from_released("timesfomer", {})

    def test_nan_is_said(self):
        state = self.state()
        state["model.head.bias"][1] = torch.nan
        with pytest.warns(UserWarning, match="NaN in head.classify.0.bias"):
            va.from_released("timesformer", state, heads=3)

    def test_what_a_release_never_uses(self):
        for name, family, layer in (
            ("motionformer_trajectory_orig", "motionformer", "patch_embed.proj"),
            ("xvit_vit_16f_seg8", "xvit", "new_fc"),
            ("lvt_model_16f_seg8", "lvt", "new_fc"),
        ):
            state = va.read_weights(self.state(name))
            dropped = {key for key in state if key.startswith(tuple(va.never_used(family, state)))}
            assert dropped == {f"{layer}.weight", f"{layer}.bias"}

    @pytest.mark.parametrize("name", ["divided", "trajectory", "lvt"])
    def test_image_weights(self, name):
        """On a clip that stands still, a video model that starts from an image model's weights is that
        model."""
        state = self.state("timesformer_space")
        image = va.from_released("timesformer", state, heads=4)
        state = {key.removeprefix("model."): value for key, value in state.items()}
        z = 2 if name == "trajectory" else 1
        model = tiny(name, image_size=32, patch_size=(z, 8, 8), class_token="clip")
        va.load_image_weights(model, state)
        for i, (block, source) in enumerate(zip(model.blocks, image.blocks)):
            for step, norm in zip(block.steps, block.norms):
                same(step.qkv.weight, source.steps[0].qkv.weight, 0)
                same(norm.weight, source.norms[0].weight, 0)
            same(block.mlp.fc1.weight, source.mlp.fc1.weight, 0)
        same(model.position.time, torch.zeros_like(model.position.time), 0)
        same(model.patches.proj.weight[:, :, z // 2], image.patches.proj.weight[:, :, 0], 0)
        if name == "divided":
            still = torch.randn(2, 3, 1, 32, 32)
            video = still.expand(-1, -1, 6, -1, -1)
            features = image.forward_features(still)
            same(model.forward_features(video)[:, :17], features, 1e-5)

    def test_image_weights_of_another_width_are_refused(self):
        model = va.VideoTransformer("joint", dim=48, depth=2, heads=4, image_size=32, patch_size=8)
        with pytest.raises(ValueError, match=r"\[144, 48\]"):
            va.load_image_weights(model, self.state("timesformer_space"))


# ==== THE PAPERS' OWN CODE ==================================================================================

GOLDEN = Path(os.environ.get("VA_GOLDEN", TINY_DATA / "golden"))
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


class Golden:
    """One case: weights and input in, what the official code made of them out (float64)."""

    def __init__(self, name):
        arrays = np.load(GOLDEN / f"{name}.npz")
        self.name = name
        self.config = json.loads(str(arrays["config"]))
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "config"}
        self.state = {key.removeprefix("state/"): x for key, x in tensors.items() if key.startswith("state/")}
        self.arrays = {key: x.double() for key, x in tensors.items() if not key.startswith("state/")}
        self.tolerance = 1e-9

    def __getitem__(self, key):
        return self.arrays[key]

    def check(self, actual, key="expected"):
        if key in self.arrays:
            same(actual.double(), self[key].to(torch.float64), self.tolerance)

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


def golden_model(case):
    """The model that from_released makes of a case; what tensors cannot tell is taken from its config."""
    config, family = case.config, family_of(case.config)
    told = dict(heads=config.get("num_heads") or config["hf_config"]["num_attention_heads"])
    if family == "motionformer" and not config["use_original_code"] and config["attn_layer"] == "trajectory":
        told |= dict(attention="trajectory")
    if family == "motionformer" and config["approx"] == "orthoformer":
        released = dict(queries_only=True, oversample=None, project_values=not config["use_original_code"])
        step = va.OrthoformerTrajectoryAttention
        told |= dict(attention=[partial(step, prototypes=config["num_landmarks"], **released)])
    if family == "xvit":
        share, segment = 2 * config["use_xvit"] / config["shift_div"], config["num_segments"]
        told |= dict(attention=[partial(va.MixingAttention, whole_heads=True, moved=share, segment=segment)])
    if family == "model":
        fixation = {True: "shared", False: "separate"}[config["share_gate"]]
        step = partial(va.LinearAttention, fixation=fixation, neighbours=True)
        space = dict(divisor=config["shift_div"], segment=config["num_segments"])
        told |= dict(attention=[partial(step, axis="time"), partial(step, axis="space", **space)])
        told |= dict(patch_stride=config["stride"], image_size=config["input_shape"][-1])
    if family == "hf_model" or config.get("pos_embed") == "joint":
        told |= dict(image_size=config.get("pos_img") or config["hf_config"]["image_size"])
    name = {"model": "lvt", "hf_model": config.get("model")}.get(family, family)
    return va.from_released(name, case.state, **told)


def as_official(x, case, grid):
    """Tokens (B, C + T*S, D) in the layout in which a project keeps them."""
    T, S = grid[0], grid[1] * grid[2]
    C = x.shape[1] - T * S
    class_tokens, patches = x[:, :C], x[:, C:].unflatten(1, (T, S))
    family, kind = family_of(case.config), case.config.get("attention_type", "")
    kind = case.config.get("hf_config", {}).get("attention_type", kind)
    if family in ("xvit", "model") or kind == "space_only":  # frame by frame, each with its class token
        parts = [class_tokens.unsqueeze(2), patches] if C else [patches]
        return torch.cat(parts, dim=2).flatten(0, 1)
    if family == "timesformer" or case.config.get("model") == "timesformer":  # time runs fastest
        patches = patches.transpose(1, 2)
    return torch.cat([class_tokens, patches.flatten(1, 2)], dim=1)


def golden_whole_model(case, dtype):
    model, video = golden_model(case).to(dtype), case["input"]
    if family_of(case.config) == "hf_model":
        video = video.transpose(1, 2)  # frames before channels there
    grid = model.patches.grid(video.shape[2:])
    outputs = {}
    embedded = lambda module, inputs: outputs.update(embedded=inputs[0])
    model.blocks[0].register_forward_pre_hook(embedded)
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda module, inputs, out, i=i: outputs.update({f"block{i}": out}))
    logits = model(video)
    for name, out in outputs.items():
        case.check(as_official(out, case, grid), f"expected/{name}")
    if case.config.get("hf_config", {}).get("attention_type") == "space_only":  # there: every frame by itself
        frames = video.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        logits = model(frames)
    case.check(logits)


def golden_lvt_attention(case, dtype):
    """LVT's attention alone; rows are frames or places there, and all of a clip's tokens here."""
    config, x = case.config, case["input"]
    fixation = {True: "shared", False: "separate"}[config["share_gate"]] if config.get("use_cgate") else None
    n = config.get("n_segment") or config.get("num_frames")
    options, frames, grid = dict(axis="joint"), False, (1, 1, x.shape[1])
    if config.get("shift") == "spatial":
        options, grid = dict(axis="time", neighbours=True), (x.shape[1], math.isqrt(n), math.isqrt(n))
        x = x.unflatten(0, (-1, n)).transpose(1, 2).flatten(1, 2)
    elif config.get("shift") == "temporal" or config["kind"] == "joint":
        axis = "joint" if config["kind"] == "joint" else "space"
        options = dict(axis=axis, neighbours=axis == "space", divisor=config.get("shift_div"))
        grid, frames = (n, 1, x.shape[1]), True
        x = x.unflatten(0, (-1, n)).flatten(1, 2)
    module = va.LinearAttention(config["dim"], config["num_heads"], fixation=fixation, **options)
    names = {"pgate": "gate_q", "q_gate": "gate_q", "k_gate": "gate_k"}
    weights = {}
    for key, value in case.state.items():
        layer, _, kind = key.rpartition(".")
        weights[f"{names.get(layer, layer)}.{kind}"] = value
    module.load_state_dict(weights)
    out = module.to(dtype)(x, grid)
    if frames:
        out = out.unflatten(1, (n, -1)).flatten(0, 1)
    elif config.get("shift") == "spatial":
        out = out.unflatten(1, (-1, n)).transpose(1, 2).flatten(0, 1)
    case.check(out)


def golden_lvt_block(case, dtype):
    config, D = case.config, case.config["dim"]
    step = partial(va.LinearAttention, D, config["num_heads"], fixation="shared")
    time = step(axis="time", neighbours=config["spatial_shift"])
    space = step(axis="space", neighbours=config["temporal_shift"], divisor=config["shift_div"])
    block = va.Block(D, [time, space], va.MLP(D, config["mlp_ratio"] * D, depthwise=True))
    weights = va.renamed({f"blocks.0.{key}": value for key, value in case.state.items()})
    block.load_state_dict({key.removeprefix("blocks.0."): value for key, value in weights.items()})
    block, grid = block.to(dtype), (config["num_frames"], *config["grid"])
    x = case["input"].unflatten(0, (-1, grid[0])).flatten(1, 2)
    for name, norm, module in zip(("after_time", "after_space"), block.norms, block.steps):
        x = x + module(norm(x), grid)
        case.check(x.unflatten(1, (grid[0], -1)).flatten(0, 1), f"expected/{name}")
    x = case["input"].unflatten(0, (-1, grid[0])).flatten(1, 2)
    case.check(block(x, grid).unflatten(1, (grid[0], -1)).flatten(0, 1))


def golden_trajectory_module(case, dtype):
    config, D = case.config, case.config["embed_dim"]
    makes = {
        "none": va.TrajectoryAttention,
        "orthoformer": partial(va.OrthoformerTrajectoryAttention, queries_only=True, oversample=None),
        "nystrom": partial(va.NystromTrajectoryAttention, landmarks=config["num_landmarks"]),
        "performer": partial(va.PerformerTrajectoryAttention, features=config["num_features"] or 1),
    }
    make = makes[config["approx"]]
    if config["approx"] == "orthoformer":
        make = partial(make, prototypes=config["num_landmarks"])
    weights = dict(case.state)
    if config["approx"] == "performer":
        weights["projection"] = case["projection_matrix"]
    grid = (config["num_frames"], config["seq_len"], 1)
    for key, project_values in (("expected", True), ("expected/out_original_code", False)):
        module = make(D, config["num_heads"], project_values=project_values)
        module.load_state_dict(weights)
        case.check(module.to(dtype)(case["input"], grid), key)


def golden_orthoformer(case, dtype):
    q, k, v = (case[name].unsqueeze(1) for name in "qkv")  # heads are in the batch there
    P, T = case.config["num_landmarks"], case.config["num_frames"]
    picked = va.most_orthogonal_subset(q, P, start=case.config["first_landmark_index"])[:, 0]
    assert torch.equal(picked, case["expected/landmark_order"].long())
    prototypes = va.choose_prototypes(q, k, P, queries_only=True, oversample=None)
    y = va.orthoformer_per_frame(q, k, v, T, prototypes)
    case.check(y[:, 0])


def golden_nystrom_function(case, dtype):
    q, k, v = (case[name].unsqueeze(1) for name in "qkv")
    T = case.config["num_frames"]
    A = case["expected/pinv_input"].to(dtype)
    case.check(va.iterative_inverse(A, case.config["inv_iters"]), "expected/pinv_exact")
    case.check(va.iterative_inverse(A, case.config["inv_iters"], one_scale=True), "expected/pinv_original")
    for count in case.config["landmarks_list"]:
        case.check(va.nystrom_per_frame(q, k, v, T, count)[:, 0], f"expected/landmarks{count}_spatial")
        # with segments in the order of the tokens instead: one frame whose places are all tokens
        q_means, k_means = va.segment_means(q, count), va.segment_means(k, count)
        small = torch.softmax(q_means @ k_means.mT / q.shape[-1] ** 0.5, dim=-1)
        found = va.iterative_inverse(small) @ va.attend_per_frame(q_means, k, v, T).flatten(3)
        raster = va.attend(q, k_means, found).unflatten(3, (T, -1))
        case.check(raster[:, 0], f"expected/landmarks{count}_raster")
    case.check(va.nystrom_per_frame(q, k, v, T, case.config["landmarks_list"][0])[:, 0])


def golden_performer_function(case, dtype):
    heads_last = case.config["kind"] == "fn_perf"  # b l h d there
    turn = (lambda x: x.transpose(1, 2)) if heads_last else (lambda x: x)
    q, k, v = (turn(case[name]) for name in "qkv")
    W, eps = case["projection_matrix"], case.config.get("numerical_stabilizer", case.config.get("eps"))
    q = va.favor_features(q, W, (-1,), eps)
    k = va.favor_features(k, W, (-2, -1), eps)
    case.check(turn(q), "expected/q_prime")
    case.check(turn(k), "expected/k_prime")
    case.check(turn(va.attend_linearly(q, k, v, eps=0.0)))


def golden_nystromformer(case, dtype):
    """The two libraries' modules: our attention between their projections, and their convolution of v beside
    it."""
    config, state = case.config, {key: x.to(dtype) for key, x in case.state.items()}
    heads, P, x = config["heads"], config["num_landmarks"], case["input"]
    if config["kind"] == "hf":
        q, k, v = (x @ state[f"{n}.weight"].T + state[f"{n}.bias"] for n in ("query", "key", "value"))
    else:
        x = nn.functional.pad(x, (0, 0, -x.shape[1] % P, 0))  # zeros in front, which take part
        q, k, v = (x @ state["to_qkv.weight"].T).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    out = va.nystrom_attention(q, k, v, None, P, config["pinv_iterations"], one_scale=True)
    convolution = state.get("conv.weight", state.get("res_conv.weight"))
    if convolution is not None:
        out = out + nn.functional.conv2d(v, convolution, padding=(convolution.shape[2] // 2, 0), groups=heads)
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
    "lucid": golden_nystromformer,
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_golden(name, dtype):
    """The same numbers as the official code, block by block; a case that nobody knows is a failure."""
    case = Golden(name)
    family = family_of(case.config)
    assert family in OFFICIAL, f"{name}: no test knows this kind of case ({family}), config {case.config}"
    OFFICIAL[family](case if dtype == torch.float64 else case.in_float32(), dtype)


@pytest.mark.skipif(not TINY_DATA.exists() and "VA_GOLDEN" not in os.environ, reason="tiny_data is not here")
def test_golden_cases_are_there():
    assert CASES, f"no cases in {GOLDEN}"


# ==== THE DATA ==============================================================================================


@pytest.mark.skipif(moving_objects is None, reason="tiny_data is not here")
class TestMovingObjects:
    """Nothing but the order of the frames tells right from left."""

    @pytest.mark.parametrize("split", ["plain", "camera"])
    def test_file_is_what_the_generator_makes(self, split):
        arrays = np.load(TINY_DATA / "moving_objects.npz")
        clips = moving_objects(len(arrays[f"{split}_label"]), seed=0, camera=split == "camera")
        video = torch.from_numpy(arrays[f"{split}_video"].astype(np.float32)) / 127.5 - 1
        assert torch.equal(clips.video, video)
        assert torch.equal(clips.label, torch.from_numpy(arrays[f"{split}_label"]))
        assert torch.equal(clips.path, torch.from_numpy(arrays[f"{split}_path"]))

    @pytest.mark.parametrize("camera", [False, True])
    def test_the_other_label_is_the_clip_backwards(self, camera):
        """So a bag of frames is the same for both labels, bit for bit, and its ceiling is one half."""
        clips = moving_objects(64, seed=SEED, camera=camera)
        twins = moving_objects(64, seed=SEED, camera=camera, labels=1 - clips.label)
        assert torch.equal(twins.video, clips.video.flip(2)) and torch.equal(twins.path, clips.path.flip(1))
        assert torch.equal(twins.label, 1 - clips.label)
        assert not torch.equal(twins.video, clips.video)

    @pytest.mark.parametrize("camera", [False, True])
    def test_every_frame_has_the_same_statistics_under_both_labels(self, camera):
        """Brightness, contrast and place of the object, frame by frame, to four standard errors."""
        clips = moving_objects(4000, seed=SEED, camera=camera)
        label = clips.label.bool()
        for t in range(clips.video.shape[2]):
            frame, place = clips.video[:, :, t].flatten(1), clips.path[:, t]
            angle = 2 * math.pi * place / clips.video.shape[-1]  # places on a torus have no mean, waves do
            for x in (frame.mean(1), frame.std(1), frame[:, 0], *angle.sin().T, *angle.cos().T):
                error = (x[label].var() / label.sum() + x[~label].var() / (~label).sum()).sqrt()
                assert (x[label].mean() - x[~label].mean()).abs() < 4 * error

    def test_the_object_goes_where_the_label_says(self):
        clips = moving_objects(64, seed=SEED)
        step = (clips.path.diff(dim=1)[..., 1] + 8) % 16 - 8  # columns a frame, on a torus of 16
        direction = torch.where(clips.label == CLASSES.index("right"), 1.0, -1.0)
        assert torch.equal(step, direction[:, None].expand_as(step))
        assert (clips.path.diff(dim=1)[..., 0] == 0).all()

    def test_the_path_is_where_the_object_is(self):
        """The object is the brighter texture: around its centre there is more light than anywhere else."""
        clips = moving_objects(64, seed=SEED, camera=True)
        light = clips.video.mean(1)
        rows, columns = (clips.path[..., axis].round().long() % 16 for axis in (0, 1))
        batch, frame = torch.arange(64)[:, None], torch.arange(clips.video.shape[2])
        near = [(rows + dy, columns + dx) for dy in (-1, 0) for dx in (-1, 0)]
        there = torch.stack([light[batch, frame, y % 16, x % 16] for y, x in near]).mean(0)
        assert (there > light.mean((2, 3))).all()

    def test_ceiling_of_the_path_in_the_image(self):
        """The best guess from the steps of the object in the image, by drawing camera walks until it
        settles."""
        clips = moving_objects(8000, seed=SEED, camera=True)
        steps = ((clips.path.diff(dim=1)[..., 1] + 8) % 16).long()
        seen = steps @ torch.tensor([1, 100, 10_000])
        votes = {}
        for key, label in zip(seen.tolist(), clips.label.tolist()):
            votes.setdefault(key, [0, 0])[label] += 1
        best = sum(max(pair) for pair in votes.values()) / 8000
        assert abs(best - image_path_ceiling()) < 0.02 and image_path_ceiling() < 0.9

    def test_seeds(self):
        first, again, other = (moving_objects(8, seed=seed).video for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.skipif(moving_objects is None, reason="tiny_data is not here")
class TestBenchmark:
    """What python video_attention.py prints; how fast it is, only the machine can tell."""

    @pytest.fixture(autouse=True)
    def module(self, seeded):
        self.benchmark = importlib.import_module("tiny_data.benchmark")

    def test_the_plain_trajectory_is_trajectory_attention(self):
        """What is timed against must compute the same."""
        plain = self.benchmark.PlainTrajectoryAttention(D, h).double()
        folded = va.TrajectoryAttention(D, h).double()
        plain.load_state_dict(folded.state_dict())
        x = randn(B, math.prod(GRID), D)
        same(plain(x, GRID), folded(x, GRID))

    def test_what_is_measured(self):
        row = self.benchmark.measure("joint", (2, 3, 4), dim=D, heads=h, repeats=1)
        assert row["parameters"] == 4 * D * (D + 1) and row["macs"] == 4 * 24 * D**2 + 2 * 24**2 * D
        assert 0 < row["forward_ms"] and 0 < row["both_ms"] and 0 < row["peak_mb"] < 1

    def test_peak_is_what_is_held_at_once(self):
        def call():
            for _ in range(3):
                kept = torch.ones(500, 1000)  # 2 MB
                kept[:250] + torch.ones(250, 1000)  # two of 1 MB, soon freed

        assert self.benchmark.peak_megabytes(call) == 2 + 1 + 1
        assert self.benchmark.peak_megabytes(lambda: torch.ones(500, 1000)) == 2

    def test_what_is_done_frame_by_frame_saves_memory(self):
        """The plain form keeps keys and values of all trajectories. Random features are longer than tokens;
        a copy of the queries' for every frame would take more than the plain form altogether."""
        size = dict(grid=(8, 14, 14), dim=192, heads=3)
        plain, folded, performer = (
            self.benchmark.peak_megabytes(self.benchmark.passes(scheme, **size)[2])
            for scheme in ([self.benchmark.PlainTrajectoryAttention], "trajectory", "trajectory_performer")
        )
        assert folded < 0.5 * plain and performer < 0.8 * plain

    def test_exponent_is_the_slope_on_log_axes(self):
        assert self.benchmark.exponent([1, 2, 8], [3.0, 12.0, 192.0]) == pytest.approx(2)

    def test_tables(self, monkeypatch, capsys):
        size = "--grid 2 3 4 --dim 24 --heads 2 --growth 1 2 --repeats 1 --schemes space lvt".split()
        monkeypatch.setattr(sys, "argv", ["video_attention.py", *size])
        self.benchmark.main()
        lines = capsys.readouterr().out.splitlines()
        for name in ("joint", "space", "lvt"):
            assert sum(line.startswith(name) for line in lines) == 2
        monkeypatch.setattr(sys, "argv", ["video_attention.py", *size, "--json"])
        self.benchmark.main()
        found = json.loads(capsys.readouterr().out)
        assert found["results"].keys() == {"joint", "space", "lvt"}
        assert found["grids"] == [[2, 3, 4], [2, 6, 4]]
        assert found["results"]["space"][1]["macs"] == 4 * 48 * 24**2 + 2 * 2 * 24**2 * 24

    def test_one_size_has_no_exponent(self, monkeypatch, capsys):
        size = "--grid 2 3 4 --dim 24 --heads 2 --growth 1 --repeats 1 --schemes space".split()
        monkeypatch.setattr(sys, "argv", ["video_attention.py", *size])
        self.benchmark.main()
        assert "N^" not in capsys.readouterr().out

    def test_utilisation_counts_forward_three_times(self, capsys):
        """For 2 clips of 2 x 8 patches and a class token, one block of joint attention, by hand."""
        size = dict(dim=24, depth=1, heads=2, num_classes=5, num_frames=2, image_size=(32, 64))
        row = self.benchmark.utilisation("joint", torch.randn(2, 3, 2, 32, 64), repeats=1, **size)
        N, D = 1 + 16, 24
        macs = 16 * 3 * 16**2 * D + 4 * N * D**2 + 2 * N**2 * D + 8 * N * D**2 + D * 5
        assert row["tflops"] * 1e12 * row["step_ms"] / 1e3 == pytest.approx(2 * 3 * 2 * macs)
        self.benchmark.print_utilisation([("joint", dict(step_ms=20.0, tflops=1.5))], peak=6.0)
        assert capsys.readouterr().out.splitlines()[1].split() == ["joint", "20.0", "1.50", "25.0%"]

    def test_targets_say_what_is_missed(self, capsys):
        assert self.benchmark.print_targets([("one", 0.5, 0.5)])
        assert not self.benchmark.print_targets([("one", 0.5, 0.6), ("two", 0.7, 0.6)])
        lines = capsys.readouterr().out.splitlines()
        assert [line.endswith("MISSED") for line in lines] == [False, False, True]


class TestErrors:
    """What is wrong, in numbers, and what would be right."""

    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(dim=24, heads=5), "dim=24.*heads=5.*multiple"),
            (dict(attention="divded"), "divded.*space, joint, divided"),
            (dict(position="learned"), "learned.*separate"),
            (dict(class_token="two"), "two.*clip, frame, none"),
            (dict(class_token="none", head="class"), "head='class'"),
            (dict(depthwise=True), "depthwise"),
            (dict(head="max"), "max.*class, mean"),
            (dict(patch_size=(1, 2, 3, 4)), r"\(1, 2, 3, 4\)"),
            (dict(patch_size=0), "size 0"),
            (dict(num_frames=1, patch_size=(2, 8, 8)), r"\(1, 24, 40\).*\(2, 8, 8\)"),
        ],
        ids=str,
    )
    def test_constructor(self, options, message):
        with pytest.raises(ValueError, match=message):
            tiny_options = dict(attention="divided", num_frames=6, image_size=(24, 40), patch_size=8)
            va.VideoTransformer(**tiny_options | dict(dim=24, depth=1, heads=4) | options)

    @pytest.mark.parametrize(
        "shape, message",
        [
            ((2, 6, 3, 16, 24), r"\(B, 3 channels.*\(2, 6, 3, 16, 24\).*\(B, T, C, H, W\).*transpose"),
            ((3, 6, 16, 24), r"\(3, 6, 16, 24\)"),
            ((2, 3, 5, 16, 24), "frames=5.*patches of 2.*4"),
            ((2, 3, 6, 20, 24), "height=20.*patches of 8.*16"),
            ((2, 3, 6, 16, 7), "width=7.*patches of 8.*8"),
        ],
        ids=str,
    )
    def test_video(self, shape, message):
        with pytest.raises(ValueError, match=message):
            tiny("joint", patch_size=(2, 8, 8))(torch.randn(shape))

    def test_preset(self):
        with pytest.raises(ValueError, match="timesfomer.*timesformer"):
            va.preset("timesfomer")

    def test_no_heads(self):
        with pytest.raises(ValueError, match="dim=24.*heads=0"):
            va.SpaceAttention(24, 0)


def linear(*sizes):
    """Linear layers, double like all tokens here: inputs and outputs of the first, of the second, ..."""
    return [nn.Linear(*pair).double() for pair in zip(sizes[::2], sizes[1::2])]


class TestBadInput:
    """Of every function and module: it works, or a ValueError says in numbers what is wrong."""

    steps = [step for scheme in va.ATTENTION.values() for step in scheme]
    extra = {
        "orthoformer_attention": lambda: [randn(B, h, 9, d)],
        "performer_attention": lambda: [randn(13, d)],
        "trajectory_attention": lambda: [nn.Linear(D, D).double(), nn.Linear(D, 2 * D).double()],
    }
    grid_free = ("joint", "orthoformer", "nystrom", "linear", "performer")
    functions = [name for name in vars(va) if name.endswith("_attention")]
    every_function = pytest.mark.parametrize("name", functions)
    every_step = pytest.mark.parametrize("step", steps, ids=lambda step: getattr(step, "__name__", str(step)))

    def mechanism(self, name):
        extra = self.extra.get(name, list)()
        return lambda q, k, v, grid=GRID: getattr(va, name)(q, k, v, grid, *extra)

    @every_function
    def test_q_k_and_v_that_do_not_fit_are_refused(self, name):
        call, (q, k, v) = self.mechanism(name), qkv()
        wrong = [(q, k.float(), v), (q, k, v.float()), (q, k.long(), v), (q, k, v[:, :, 1:])]
        wrong += [(q.to("meta"), k, v), (q, k.to("meta"), v), (q, k, v.to("meta"))]
        wrong += [(q, torch.cat([k, k]), torch.cat([v, v])), (q, torch.cat([k, k], 1), torch.cat([v, v], 1))]
        if name != "performer_attention":  # whose projection has torch refuse it
            wrong.append((q, k[..., 1:], v))
        for tensors in wrong:
            with pytest.raises(ValueError, match=r"\(\d+, \d+, \d+, \d+\).* torch\."):
                call(*tensors)

    @every_function
    def test_grids_that_do_not_fit_are_refused(self, name):
        if name.removesuffix("_attention") in self.grid_free:
            return  # to these all tokens are alike
        for grid in ((5, 9, 7), (5, 28), (5, 4, 7, 1), (-5, -4, 7)):
            with pytest.raises(ValueError, match="140 tokens|frames"):
                self.mechanism(name)(*qkv(), grid)

    @every_step
    def test_tokens_that_do_not_fit_are_refused(self, step):
        module, x = step(D, h).double(), randn(B, 140, D)
        for wrong in (x[0], x[None], x[0, 0], x[..., 1:], x.float(), x.half(), x.long(), x.to("meta")):
            with pytest.raises(ValueError, match=r"\(B, N, 18\) torch.float64 cpu, got \("):
                module(wrong, GRID)

    @pytest.mark.parametrize(
        "module",
        [
            va.MLP(6, 9),
            va.MLP(6, 9, depthwise=True),
            va.Block(6, [], va.MLP(6, 9)),
            va.PositionEmbedding("space", GRID, 6, "none"),
            va.PositionEmbedding("time", GRID, 6, "none"),
            va.PositionEmbedding("joint", GRID, 6, "none"),
            va.Head(6, 9, "mean", None, None, 3, 0.0),
            va.Head(6, 9, "mean", "tanh", None, 3, 0.0),
            va.Head(6, 9, "mean", "gelu", None, 3, 0.0),
            va.Head(6, 9, "temporal", None, None, 3, 0.0),
        ],
        ids=lambda module: type(module).__name__,
    )
    def test_so_do_the_other_modules_used_alone(self, module):
        x = torch.randn(B, 140, 6)
        assert module(x, GRID).isfinite().all()
        refused = r"\(B, N, 6\) torch.float32 cpu, got \(|needs floats .* got \("
        for wrong in (x[0], x[None], x[..., 1:], x[..., :1], x.double(), x.half(), x.long(), x.to("meta")):
            with pytest.raises(ValueError, match=refused):
                module(wrong, GRID)

    def test_a_temporal_head_used_alone(self):
        head, x = va.TemporalAttentionHead(6, 3), torch.randn(B, 5, 6)
        assert head(x).shape == (B, 6)
        for wrong in (x[0], x[None], x[..., 1:], x[..., :1], x.double(), x.half(), x.long(), x.to("meta")):
            with pytest.raises(ValueError, match=r"\(B, N, 6\) torch.float32 cpu, got \("):
                head(wrong)

    @every_step
    def test_empty_strided_and_differentiable_input_works(self, step):
        module, x = step(D, h).double(), randn(B, 140, D).requires_grad_()
        assert module(x[:0], GRID).shape == (0, 140, D)
        expected = module(x, GRID)
        same(module(x.mT.contiguous().mT, GRID), expected)
        expected.sum().backward()
        assert x.grad.isfinite().all()
        with torch.device("meta"):
            assert step(D, h)(torch.empty(B, 140, D), GRID).shape == x.shape

    @every_step
    @pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
    def test_what_sees_a_bad_token_is_not_finite(self, step, value):
        """And what does not see it stays as it was: the other clip, and every patch out of reach."""
        module, x = step(D, h).double().eval(), randn(B, 140, D)
        bad = x.clone()
        bad[1, 33] = value
        before, after = module(x, GRID), module(bad, GRID)
        assert torch.equal(before[0], after[0])
        assert ((before[1] == after[1]) | ~after[1].isfinite()).all() and not after[1, 33].isfinite().any()

    @every_step
    def test_autocast_takes_other_floats(self, step):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for dtype in (torch.float32, torch.bfloat16):
                assert step(D, h)(torch.randn(B, 140, D).to(dtype), GRID).isfinite().all()

    @every_step
    def test_heads_that_do_not_divide_are_refused(self, step):
        for dim, heads in ((18, 4), (18, 0), (18, -3), (0, 3), (-18, 3), (20, 2.5)):
            with pytest.raises(ValueError, match=f"dim={dim} .*heads={heads}"):
                step(dim, heads)

    @pytest.mark.parametrize(
        "call, message",
        [
            (lambda x: va.attend(x, x[:, :, :0], x[:, :, :0]), r"\(2, 3, 0, 6\)"),
            (lambda x: va.attend(x.long(), x.long(), x.long()), "int64"),
            (lambda x: va.attend(x[0, 0, 0], x[0, 0, 0], x[0, 0, 0]), r"\(6,\)"),
            (lambda x: va.LinearAttention(D, h, neighbours=True), "axis='joint'.*neighbours"),
            (lambda x: va.attend(x, x[:, :2], x[:, :2]), r"\(2, 2, 140, 6\)"),
            (lambda x: va.attend(x, x[:, :1], x[:, :1]), r"\(2, 1, 140, 6\)"),
            (lambda x: va.attend_linearly(x, x[:, :, 1:], x), r"\(2, 3, 139, 6\)"),
            (lambda x: va.attend_linearly(x, x[:, :2], x[:, :2]), r"\(2, 2, 140, 6\)"),
            (lambda x: va.attend_linearly(x, x.float(), x), "float32"),
            (lambda x: va.most_orthogonal_subset(x, 141), "count=141 of 140"),
            (lambda x: va.most_orthogonal_subset(x, 0), "count=0"),
            (lambda x: va.most_orthogonal_subset(x, 9, start=140), "start=140"),
            (lambda x: va.most_orthogonal_subset(x, 9, criterion="mean"), "criterion='mean'"),
            (lambda x: va.segment_means(x[0], 9), r"\(3, 140, 6\)"),
            (lambda x: va.segment_means(x.long(), 9), "int64"),
            (lambda x: va.borrow_from_neighbours(x, GRID, va.NEXT_AND_PREVIOUS, 10), "2 shares of 10 in 18"),
            (lambda x: va.borrow_from_neighbours(x, (5, 28), va.NEXT_AND_PREVIOUS, 4), r"\(5, 28\)"),
            (lambda x: va.PositionEmbedding("space", GRID, 6, "none")(x[0, :1], (5, 4, 6)), "140 tokens"),
            (lambda x: va.PositionEmbedding("time", GRID, 6, "frame")(randn(2, 141, 6), GRID), "^1 class"),
            (lambda x: va.PositionEmbedding("space", GRID, 6, "none")(randn(2, 141, 6), GRID), "^1 class"),
            (lambda x: va.PositionEmbedding("time", GRID, 6, "two"), "class_token='two'"),
            (lambda x: va.Head(6, 9, "class", None, None, 3, 0.0).double()(x[0], GRID), "140 tokens.*mean"),
            (lambda x: va.StochasticDepth(-0.1), "-0.1"),
            (lambda x: va.PatchEmbedding((0, 8, 8), 6), r"\(0, 8, 8\)"),
            (lambda x: va.PatchEmbedding(8, 6, stride=0), "size 0"),
            (lambda x: va.PatchEmbedding(8, 6)(torch.zeros(1, 3, 2, 8, 8).byte()), "float32 cpu.*uint8"),
            (lambda x: va.PatchEmbedding(8, 6)(torch.zeros(1, 3, 2, 8, 8, device="meta")), "cpu, got .*meta"),
            (lambda x: va.PatchEmbedding(8, 6)(randn(1, 3, 2, 8, 8)), "float32 cpu, got .*float64"),
            (lambda x: va.load_image_weights(tiny("space"), {"a": x}), "1 tensors.*patch_embed"),
            (lambda x: va.attend_per_frame(x, x, x, 3), "T=3.*140"),
            (lambda x: va.attend_per_frame(x, x, x, 0), "T=0"),
            (lambda x: va.attend_per_frame(x, x, x[:, :, :70], 5), "T=5.*70"),
            (lambda x: va.attend_per_frame(x[0], x, x, 5), "T=5.*3, 140, 6"),
            (lambda x: va.orthoformer_per_frame(x, x, x, 3, x[:, :, :9]), "T=3:"),
            (lambda x: va.orthoformer_per_frame(x, x, x, 5, x[0, :, :9]), r"\[3, 9, 6\]"),
            (lambda x: va.nystrom_per_frame(x, x, x, 3), "128 means of .*T=3"),
            (lambda x: va.nystrom_per_frame(x, x, x[:, :, :70], 5), "T=5"),
            (lambda x: va.choose_prototypes(x, x[:, :, 1:], 9), r"\(2, 3, 139, 6\)"),
            (lambda x: va.choose_prototypes(x[0], x[0], 9), r"\(3, 140, 6\)"),
            (lambda x: va.fixate(x, x, x, *linear(18, 5)), "18 -> 6"),
            (lambda x: va.fixate(x, x, x, *linear(18, 6, 6, 6)), "18 -> 6"),
            (lambda x: va.fixate(x, x[:, :, 1:], x, *linear(18, 6)), "139"),
            (lambda x: va.trajectory_attention(x, x, x, GRID, *linear(6, 6, 18, 36)), "18 -> 18,"),
            (lambda x: va.trajectory_attention(x, x, x, GRID, *linear(18, 18, 18, 18)), "18 -> 36"),
            (lambda x: va.favor_features(x, randn(9, 5), (-1,)), r"\(9, 5\).*d=6"),
            (lambda x: va.performer_attention(x, x, x, GRID, randn(9)), r"\(9,\).*d=6"),
            (lambda x: va.orthogonal_projection(0, 6), "features=0"),
            (lambda x: va.PerformerAttention(D, h, features=-2), "features=-2"),
            (lambda x: va.iterative_inverse(x.softmax(dim=-1)), "140, 6"),
            (lambda x: va.nystrom_attention(x, x, x, GRID, 9, iterations=-1), "iterations=-1"),
            (lambda x: va.borrow(randn(1, 3, 4, 5, 9), va.NEXT_AND_PREVIOUS, 5), r"of 5 channels .*, 9\)"),
            (lambda x: va.borrow(randn(1, 3, 4, 5, 9), va.NEXT_AND_PREVIOUS, -1), "of -1 channels"),
            (lambda x: va.borrow(randn(1, 3, 4, 5, 9), [(1, 0)], 2), r"\(1, 0\)"),
            (lambda x: va.borrow(x, va.NEXT_AND_PREVIOUS, 2), r"\(2, 3, 140, 6\)"),
            (lambda x: va.linear_attention(x, x, x, GRID, gate_k=linear(18, 6)[0]), "gate_k comes with"),
            (lambda x: va.fixate(x, x, x[..., 1:], *linear(18, 6)), "gate 17 -> 6"),
            (lambda x: va.choose_prototypes(x, x, choice="segments", prototype=9), "'prototype': 9"),
            (lambda x: va.choose_prototypes(x, x, choice="random", criterion="sum"), "'criterion': 'sum'"),
            (lambda x: va.space_attention(x, x, x, (5, 4.0, 7)), r"\(5, 4.0, 7\)"),
            (lambda x: va.MLP(6, 9, depthwise=True)(torch.randn(2, 140, 6), (5, 4, 7.0)), r"\(5, 4, 7.0\)"),
            (lambda x: va.PatchEmbedding(8, 6).grid((16, 16)), r"\(16, 16\)"),
            (lambda x: va.pooled_attention(x, x, x, GRID, stride=2), "stride=2"),
            (lambda x: tiny(va.SpaceAttention), "SpaceAttention.* list of steps"),
            (lambda x: tiny(["time", "space"]), "'time'.* list of steps"),
            (lambda x: tiny("space", class_token=False), "class_token=False"),
            (lambda x: va.attend_in_boxes(x, x, x, GRID, [np.s_[:2, :, :]]), "56.* of 140"),
            (lambda x: va.attend_in_boxes(x, x, x, GRID, []), "0 patches of 140"),
            (lambda x: va.resize_table(randn(1, 20, 6), (4, 7), (2, 3)), r"\(1, 20, 6\).*\(4, 7\)"),
            (lambda x: va.resize_table(randn(1, 28, 6), (4, 7), (28,)), r"\(4, 7\) to \(28,\)"),
            (lambda x: va.resize_table(randn(1, 28, 6), (4, 7), (2, 3), "cubic"), "how='cubic'.*smooth"),
            (lambda x: va.central_frame_kernel(randn(7, 3, 4, 5), 0), "frames=0"),
            (lambda x: va.central_frame_kernel(randn(7, 3, 4), 2), r"\(7, 3, 4\)"),
            (lambda x: va.MLP(6, 9, depthwise=True)(torch.randn(2, 141, 6), GRID), "141 tokens.*140 patches"),
        ],
    )
    def test_helpers(self, call, message):
        with pytest.raises(ValueError, match=message):
            call(randn(B, h, 140, d))

    @every_step
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
    def test_autocast_does_not_take_what_it_would_not_cast(self, step, dtype):
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match=f"got .*{dtype}"):
            step(D, h)(torch.ones(B, 140, D, dtype=dtype), GRID)
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match=f"got .*{dtype}"):
            va.PatchEmbedding(8, 6)(torch.ones(1, 3, 2, 8, 8, dtype=dtype))

    def test_boxes_that_overlap_leave_a_hole_that_is_seen(self):
        """Two boxes of frames 0 and 1 hold as many patches as four frames do, and no patch of 2 and 3."""
        q, k, v = (x[:, :, :112] for x in qkv())
        out = va.attend_in_boxes(q, k, v, (4, 4, 7), [np.s_[:2, :, :], np.s_[:2, :, :]])
        assert out[:, :, :56].isfinite().all() and out[:, :, 56:].isnan().all()

    def test_values_of_another_width(self):
        """Where the values are only averaged, they may be wider than queries and keys."""
        q, k, v = qkv()
        v = torch.cat([v, v], dim=-1)
        for look in (va.attend_per_frame, va.nystrom_per_frame):
            found = look(q, k, v, 5)
            same(found[..., :d], look(q, k, v[..., :d], 5))
            same(found[..., d:], found[..., :d])

    def test_a_block_takes_any_iterable_of_steps(self):
        steps = [va.SpaceAttention(6, 3), va.SpaceAttention(6, 3)]
        assert len(va.Block(6, iter(steps), va.MLP(6, 9)).norms) == 2

    def test_stochastic_depth_drops_whole_clips_of_any_rank(self):
        drop = va.StochasticDepth(0.5)
        for shape in ((64,), (64, 2), (64, 2, 3, 4, 5)):
            kept = drop(torch.ones(shape)).reshape(64, -1)
            assert kept.shape[1] == math.prod(shape[1:]) and (kept == kept[:, :1]).all()
            assert set(kept.flatten().tolist()) == {0.0, 2.0}

    def test_the_inverse_of_an_empty_batch(self):
        assert va.iterative_inverse(randn(0, 4, 4), one_scale=True).shape == (0, 4, 4)

    @pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel], ids=lambda wrap: wrap.__name__)
    def test_image_weights_for_a_wrapped_model(self, wrap):
        """Under a wrapper no key is the same: nothing would be loaded."""
        image = {"patch_embed.proj.weight": torch.randn(24, 3, 8, 8)}
        with pytest.raises(ValueError, match=f"{wrap.__name__}"):
            va.load_image_weights(wrap(tiny("space")), image)

    @pytest.mark.parametrize("divisor", [1, 0, -4, 99])
    def test_shares_that_are_not_there_are_refused(self, divisor):
        step = va.LinearAttention(D, h, axis="space", neighbours=True, divisor=divisor).double()
        with pytest.raises(ValueError, match="2 shares of .* in 18 channels"):
            step(randn(B, 140, D), GRID)

    @pytest.mark.parametrize(
        "option", ["depth=-1", "num_classes=0", "channels=0", "mlp_ratio=0", "dim=-24", "patch_size=(8,)"]
    )
    def test_constructor(self, option):
        name, value = option.split("=")
        with pytest.raises(ValueError, match=re.escape(value)):
            tiny("space", **{name: eval(value)})

    def test_rectangular_kernels_are_inflated(self):
        kernel = randn(7, 3, 4, 5)
        same(va.central_frame_kernel(kernel, 3)[:, :, 1], kernel)

    def test_no_clips(self):
        for name in va.ATTENTION:
            assert tiny(name, depth=1)(torch.randn(0, *VIDEO[1:])).shape == (0, 5)


# ==== COPYING ===============================================================================================


@cache
def definitions():
    """{name: node} of all functions and classes of the file, in its order."""
    tree = ast.parse(Path(va.__file__).read_text())
    return {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def needed_by(name, known):
    """The definitions of the file without which `name` does not run, found in its text and theirs."""
    needed, left = set(), [name]
    while left:
        used = {node.id for node in ast.walk(known[left.pop()]) if isinstance(node, ast.Name)} & known.keys()
        left += used - needed
        needed |= used
    return needed - {name}


def copied_with(function):
    """The names on the "Copy with" line of a docstring."""
    line = r"^ *Copy with +(.*)$"
    return re.search(line, docstring(function, line), re.M).group(1).split(", ")


def skip_if_blank(names):
    """Skip, or with VA_GRADE=1 fail, where one of these definitions has no body to read."""
    known = definitions()
    for name in names:
        last = known[name].body[-1] if name in known else None
        if isinstance(last, ast.Raise) and NOT_WRITTEN in ast.unparse(last):
            not_attempted(name)


MECHANISMS = [name for name in definitions() if name.endswith("_attention")]


class TestCopying:
    @pytest.mark.parametrize("name", MECHANISMS)
    def test_copy_with_is_exactly_what_is_needed(self, name):
        names = copied_with(getattr(va, name))
        skip_if_blank([name, *names])
        assert set(names) == needed_by(name, definitions())
        assert len(set(names) - {"attend", "count_class_tokens"}) <= 2

    @pytest.mark.parametrize("name", MECHANISMS)
    def test_the_copied_text_runs_alone(self, name):
        known, source = definitions(), Path(va.__file__).read_text()
        wanted = {name, *copied_with(getattr(va, name))}
        text = "import math\nimport torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"
        text += "from einops import rearrange, reduce, repeat\n\n"
        parts = [ast.get_source_segment(source, node) for key, node in known.items() if key in wanted]
        text += "\n\n".join(parts)
        alone = {}
        exec(compile(text, COPIED, "exec"), alone)
        q, k, v = qkv(C=1)
        extra = {
            "orthoformer_attention": [k[:, :, :9]],
            "performer_attention": [randn(13, d)],
            "trajectory_attention": [nn.Linear(D, D).double(), nn.Linear(D, 2 * D).double()],
        }.get(name, [])
        same(alone[name](q, k, v, GRID, *extra), getattr(va, name)(q, k, v, GRID, *extra), 0)


# ==== COMMENTS THAT ARE EXECUTED ============================================================================


def shape_comments(source):
    """{line: (statement, shape)} for all statements of a text that end in a comment like  # (B, h, N, d)"""
    comments = {}
    for n, line in enumerate(source.splitlines(), 1):
        found = re.search(r"\S.*  # (\((?:[^()]|\([^()]*\))*\))", line)
        if found:
            comments[n] = found.group(1)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Assign, ast.Return))]
    return {node.lineno: (node, comments[node.end_lineno]) for node in nodes if node.end_lineno in comments}


def assignments(source):
    """{line: statement} for all assignments of the text."""
    return {node.lineno: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)}


class ShapeChecker:
    """Traces every call into the file and compares each shape comment with the tensors its line has made.

    It also keeps the lines without a comment whose tensors have another shape than all that they are made of.
    """

    def __init__(self):
        source = Path(va.__file__).read_text()
        self.comments, self.assignments = shape_comments(source), assignments(source)
        self.reached, self.wrong, self.bare = set(), set(), set()

    def __call__(self, frame, event, argument):
        code = frame.f_code
        inside = code.co_filename == str(va.__file__) and not code.co_name.startswith("<")  # no generators
        return self.trace() if inside else None

    def trace(self):
        last, inputs, waiting = None, set(), []

        def step(frame, event, argument):
            nonlocal last, inputs
            if event in ("line", "return"):
                waiting[:] = [(line, made) for line, made in waiting if not self.compare(line, made, frame)]
                made = self.made_by(last, frame, argument if event == "return" else None)
                if made and last in self.comments:
                    self.reached.add(last)
                    if not self.compare(last, made, frame):
                        waiting.append((last, made))  # its letters are those of the line after
                elif made and any(x.ndim > 0 and tuple(x.shape) not in inputs for x in made):
                    self.bare.add(last)
            last = frame.f_lineno if event == "line" else None
            inputs = self.inputs_of(last, frame)
            return step

        return step

    def inputs_of(self, line, frame):
        """The shapes of the tensors that an assignment reads."""
        if line not in self.assignments:
            return set()
        names = [node.id for node in ast.walk(self.assignments[line].value) if isinstance(node, ast.Name)]
        values = [frame.f_locals.get(name) for name in names]
        return {tuple(x.shape) for x in values if isinstance(x, torch.Tensor)}

    def made_by(self, line, frame, returned):
        """The tensors that an assignment, or a commented return, has just made; none if it raised."""
        if line in self.assignments:
            targets = self.assignments[line].targets
            stored = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
            made = [frame.f_locals.get(node.id) for node in stored if isinstance(node.ctx, ast.Store)]
        else:
            made = [returned] if line in self.comments else []
        return [x for x in made if isinstance(x, torch.Tensor)]

    def compare(self, line, made, frame):
        """-> whether the comment's letters have values yet"""
        comment = self.comments[line][1]
        try:
            expected = eval(comment, {"min": min, "len": len, "math": math}, dict(frame.f_locals))
        except NameError:
            return False
        for x in made:
            if tuple(x.shape) != expected:
                self.wrong.add(f"line {line}: # {comment} is {expected}, the tensor {tuple(x.shape)}")
        return True

    def run(self):
        sys.settrace(self)
        try:
            torch.manual_seed(SEED)
            for name in SCHEMES:
                model = tiny(name, head="temporal")
                model(torch.randn(1, 3, 6, 24, 40))
            slip = [partial(va.TrajectoryAttention, project_values=False)]
            for attention, options in (
                (slip, dict(head="mean", merge_frames=True)),
                ("space", dict(class_token="clip", patch_size=(2, 4, 8), dim=40)),
                ("local_global", dict(class_token="none", head="mean")),
            ):
                tiny(attention, **options)(torch.randn(3, 3, 6, 24, 40))
            va.central_frame_kernel(torch.randn(7, 3, 4, 4), 5)
        finally:
            sys.settrace(None)


class TestShapeComments:
    def test_every_comment_is_true_and_reached(self):
        checker = ShapeChecker()
        checker.run()
        assert not checker.wrong, "\n".join(sorted(checker.wrong))
        unreached = sorted(set(checker.comments) - checker.reached)
        assert not unreached, f"no run reached the comments of lines {unreached}"
        assert not checker.bare, f"lines {sorted(checker.bare)} make a new shape and do not say which"
        print(f"{len(checker.comments)} shape comments executed")

    def test_a_false_comment_is_found(self):
        """Swapping T and S, or H and W, in any comment that names both is noticed."""
        for a, b in (("H", "W"), ("N", "C"), ("h", "B"), ("T", "h")):
            checker = ShapeChecker()
            swapped = set()
            for line, (statement, comment) in checker.comments.items():
                turned = re.sub(rf"\b({a}|{b})\b", lambda m: b if m.group() == a else a, comment)
                if {a, b} <= set(re.findall(r"\w+", comment)) and "H*W" not in comment:
                    checker.comments[line] = (statement, turned)
                    swapped.add(line)
            checker.run()
            assert {int(re.match(r"line (\d+)", text).group(1)) for text in checker.wrong} == swapped


class TestFile:
    """What a visitor finds."""

    source = Path(va.__file__).read_text()

    def test_under_1500_lines_of_110_columns(self):
        lines = self.source.splitlines()
        assert len(lines) < 1500
        assert [n for n, line in enumerate(lines, 1) if len(line) > 110] == []

    def test_no_function_over_45_lines(self):
        tree = ast.parse(self.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                signature = node.body[0].lineno - node.lineno
                assert signature + node.end_lineno - first.lineno + 1 <= 45, node.name

    def test_contents_name_what_is_there(self):
        """Every bar of the file is in its table of contents, in order, and every name there exists."""
        document = va.__doc__
        if "CONTENTS" not in (document or ""):
            pytest.skip("no docstring to compare: the file has no table of contents")
        bars = re.findall(r"^# ==== ([A-Z][A-Z -]+[A-Z])", self.source, re.M)
        contents, place = document[document.index("CONTENTS") :], 0
        for bar in bars:
            place = contents.index(bar, place) + len(bar)
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b|\b[A-Z][a-z]+[A-Z]\w+\b|\b[A-Z]{5,}(?=:)", contents):
            assert name in vars(va) or name in ("TimeSformer", "ViViT"), name

    def test_importing_says_and_does_nothing(self):
        code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='video_attention')"
        run = subprocess.run([sys.executable, "-W", "error", "-c", code, va.__file__], capture_output=True)
        assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


# ==== TEACHING: hand out, put together, give marks ==========================================================


def parsed(source, name):
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{name} does not parse: line {error.lineno}: {error.msg}") from None


def every_definition(source, name="the file"):
    """{name: node} of the functions and classes of a text and, as Class.method, their methods, in order."""
    known = {}
    for node in parsed(source, name).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            known[node.name] = node
        if isinstance(node, ast.ClassDef):
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
            known |= {f"{node.name}.{method.name}": method for method in methods}
    return known


def find(names, known, where):
    """Nothing, if all the names are known; else an error that lists those that are."""
    unknown = [name for name in names if name not in known]
    if unknown:
        words = ", ".join(known) or "nothing"
        there = textwrap.fill(words, 110, initial_indent="    ", subsequent_indent="    ")
        raise ValueError(f"{where} does not define {', '.join(unknown)}. It has\n{there}")


def functions_of(names, known):
    """The functions that the names mean; a class means all its methods but __init__."""
    functions = []
    for name in names:
        methods = [key for key in known if key.startswith(f"{name}.") and not key.endswith(".__init__")]
        if isinstance(known[name], ast.ClassDef) and not methods:
            raise ValueError(f"{name} has no methods of its own that could be blanked")
        functions += methods or [name]
    return set(functions)


def first_line(node):
    """The number of a definition's first line, its decorators included."""
    return min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])


def blank(source, names, hints=False):
    """The text without the bodies of these definitions; all other bytes stay, docstring and picture too."""
    known, lines = every_definition(source), source.split("\n")
    find(names, known, "the file")
    for name in sorted(functions_of(names, known), key=lambda name: -known[name].lineno):
        node = known[name]
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if not body:
            continue  # nothing but a docstring
        first, last = body[0].lineno, body[-1].end_lineno
        before = lines[first - 1][: body[0].col_offset]  # the indentation
        left = shape_trail(node, source) if hints else []
        left.append(f'raise NotImplementedError("{name} {NOT_WRITTEN}")')
        while lines[first - 2].strip().startswith("#"):  # a comment above the first line is part of the body
            first -= 1
        lines[first - 1 : last] = [before + line for line in left]
    return "\n".join(lines)


def shape_trail(node, source):
    """A line  # x = ...  # (B, h, N, d)  for each assignment in a function that says its shape."""
    trail = []
    for line, (statement, shape) in sorted(shape_comments(source).items()):
        if isinstance(statement, ast.Assign) and node.lineno <= line <= node.end_lineno:
            trail.append(f"# {ast.get_source_segment(source, statement.targets[0])} = ...  # {shape}")
    return trail


def bound_by(statement):
    """The names that a statement at the top of a file gives a meaning."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.split(".")[0] for alias in statement.names}
    names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}


def of_their_own(student, names, reference, where):
    """The lines of the student's imports, helpers and constants that these definitions need and we lack."""
    tree, ours = parsed(student, where), set().union(*map(bound_by, ast.parse(reference).body))
    theirs = {name: statement for statement in tree.body for name in bound_by(statement) - ours}
    wanted = every_definition(student)
    needed = set().union(*(needed_by(name, theirs | {name: wanted[name]}) for name in names))
    lines, kept = student.split("\n"), []
    for statement in tree.body:
        if needed & bound_by(statement):
            first = first_line(statement) if hasattr(statement, "decorator_list") else statement.lineno
            kept += lines[first - 1 : statement.end_lineno]
    return kept


def graft(reference, student, names, where="the student's file"):
    """The reference with these definitions, and what they need of the student's own, from the student."""
    ours, theirs = every_definition(reference), every_definition(student, where)
    find(names, ours, "the file")
    find(names, theirs, where)
    lines, written = reference.split("\n"), student.split("\n")
    for name in sorted(names, key=lambda name: -ours[name].lineno):
        new = written[first_line(theirs[name]) - 1 : theirs[name].end_lineno]
        lines[first_line(ours[name]) - 1 : ours[name].end_lineno] = new
    place = min(first_line(ours[name.split(".")[0]]) for name in names) - 1
    mixed = "\n".join(lines[:place] + of_their_own(student, names, reference, where) + lines[place:])
    parsed(mixed, "what comes out")
    return mixed


def result_of(test):
    """What pytest's report says of one test, or None where it was skipped for another reason."""
    kinds = {child.tag: child.get("message", "") for child in test}
    if "failure" in kinds or "error" in kinds:
        return "failed"
    if "skipped" not in kinds:
        return "passed"
    return "not attempted" if "not attempted yet" in kinds["skipped"] else None


def read_report(report):
    """The tests in a report of pytest --junitxml."""
    try:
        return ElementTree.parse(report).iter("testcase")
    except FileNotFoundError:
        raise ValueError(f"{report} is not there; pytest --junitxml=NAME.xml writes a report") from None
    except ElementTree.ParseError as error:
        raise ValueError(f"{report} is no report of pytest --junitxml: {error}") from None


THE_FILE = "the file itself"


def question_of(test):
    """The question that a test in a report belongs to."""
    if not test.get("classname"):  # pytest came no further than importing
        return THE_FILE
    question = test.get("classname").split(".")[-1].removeprefix("Test")
    return question if question[:1].isupper() else test.get("name").split("[")[0]  # a test of no class


def score(reports):
    """A table of the marks in pytest's --junitxml reports: a question is a test class."""
    columns, marks = ("passed", "failed", "not attempted"), {}
    if not reports:
        raise ValueError("score needs the reports that pytest --junitxml=NAME.xml writes, one or more")
    for test in (test for report in reports for test in read_report(report)):
        counts, result = marks.setdefault(question_of(test), dict.fromkeys(columns, 0)), result_of(test)
        if result:
            counts[result] += 1
    rows = [(question, *counts.values(), sum(counts.values())) for question, counts in marks.items()]
    rows = [row for row in rows if row[-1] > 0]
    rows.append(("total", *(sum(row[i] for row in rows) for i in range(1, 5))))
    rows = [(*row, f"{100 * row[1] // max(1, row[-1])}%") for row in rows]
    text = table(("question", *columns, "out of", "percent"), rows)
    if THE_FILE in marks:
        text += f"{THE_FILE}: it fails on import, so that none of its questions could be asked\n"
    return text


def table(titles, rows):
    """The columns of numbers as wide as their titles."""
    widths = [max(len(row[0]) for row in [titles, *rows])] + [len(title) for title in titles[1:]]
    text = ""
    for first, *numbers in [titles, *rows]:
        cells = [f"{x:>{width}}" for x, width in zip(numbers, widths[1:])]
        text += "  ".join([f"{first:{widths[0]}}", *cells]) + "\n"
    return text


# ==== THE TEACHING TOOLS THEMSELVES =========================================================================

GRADING = "VIDEO_ATTENTION" in os.environ
about_the_kit = pytest.mark.skipif(GRADING, reason="about this file, not about the one that it grades")

SAMPLE = """import math

def twice(x):
    # by adding
    y = x + x  # (B, N)
    return y  # (B, N)


class Thing:
    \"\"\"Some thing.\"\"\"

    def __init__(self):
        self.n = 3

    def grow(self, x):
        \"\"\"Picture.\"\"\"
        # first
        a, b = twice(
            x).chunk(2)  # (B, N // 2), halves
        self.n += 1  # (3,)
        return math.sqrt(a + b)

    def shrink(self): return 1
"""


@about_the_kit
class TestHandingOut:
    def test_bodies_go_and_all_else_stays(self):
        source = Path(va.__file__).read_text()
        for name in ("attend", "mixing_attention", "TrajectoryAttention.mechanism", "Head.forward"):
            text = blank(source, [name])
            before, after = text.split(f'raise NotImplementedError("{name} is not written yet")')
            assert source.startswith(before) and source.endswith(after)
            body = source[len(before) : len(source) - len(after)]
            assert body == body.strip()
            here, there = every_definition(text)[name], every_definition(source)[name]
            assert ast.get_docstring(here) == ast.get_docstring(there)
            assert ast.dump(here.args) == ast.dump(there.args)
            assert [type(node) for node in here.body if not isinstance(node, ast.Expr)] == [ast.Raise]

    def test_all_of_it_blank_still_imports(self):
        source = Path(va.__file__).read_text()
        names = [name for name, node in every_definition(source).items() if isinstance(node, ast.FunctionDef)]
        module = {"__name__": "blanked"}
        exec(compile(blank(source, names), va.__file__, "exec"), module)
        for name, function in module.items():
            if name in MECHANISMS:
                with pytest.raises(NotImplementedError, match=f"^{name} is not written yet$") as error:
                    function(*range(len(inspect.signature(function).parameters)))
                assert still_blank(error.value) == name

    def test_a_class_means_its_methods(self):
        blanked = blank(SAMPLE, ["Thing"])
        assert blanked == blank(SAMPLE, ["Thing.grow", "Thing.shrink", "Thing.grow"])
        assert "self.n = 3" in blanked and "Picture" in blanked and "# first" not in blanked
        assert "    def shrink(self): raise NotImplementedError(" in blanked

    def test_hints_are_the_trail_of_shapes(self):
        text = blank(SAMPLE, ["Thing.grow", "twice"], hints=True)
        assert '    # y = ...  # (B, N)\n    raise NotImplementedError("twice is' in text
        assert '        # a, b = ...  # (B, N // 2)\n        raise NotImplementedError("Thing.grow' in text
        assert text.count("...") == 2

    def test_unknown_names_are_answered_by_the_known(self):
        with pytest.raises(ValueError, match="define thrice. It has\n    twice, Thing, Thing.__init__"):
            blank(SAMPLE, ["thrice", "twice"])
        with pytest.raises(ValueError, match="SpaceAttention has no methods"):
            blank(Path(va.__file__).read_text(), ["SpaceAttention"])

    @pytest.mark.skipif(not (HERE / "README.md").exists(), reason="README.md is not here")
    def test_the_assignment_names_what_is_there(self):
        """All that it blanks it also asks for, and every question is a test class."""
        text = (HERE / "README.md").read_text()
        handed_out = re.search(r"py blank (.*) > student.py", text).group(1).split()
        asked = re.findall(r"^\*\*\d\. .*\*\*", text, re.M)
        questions = re.findall(r"VIDEO_ATTENTION=student.py pytest -q test_video_attention.py -k (.*)", text)
        assert set(handed_out) == set(re.findall(r"`(\w+)`", " ".join(asked)))
        assert set(handed_out) <= every_definition(Path(va.__file__).read_text()).keys()
        assert len(asked) == len(questions) == 8
        assert set(re.findall(r"Test\w+", " ".join(questions))) <= globals().keys()

    def test_command_line(self, capsys, tmp_path):
        source = Path(va.__file__).read_text()
        main("blank", "--hints", "attend", "local_attention")
        student = tmp_path / "student.py"
        student.write_text(capsys.readouterr().out)
        assert student.read_text() == blank(source, ["attend", "local_attention"], hints=True)
        main("graft", str(student), "attend")
        assert capsys.readouterr().out == blank(source, ["attend"], hints=True)
        for words in ([], ["blank"], ["graft", "x.py"], ["grade"]):
            with pytest.raises(ValueError, match="usage.*(?s:.*)blank.*(?s:.*)graft.*(?s:.*)score"):
                main(*words)


@about_the_kit
class TestGrafting:
    def test_one_definition_and_what_it_needs(self):
        """The helper, the import and the constant come along; the student's other mistakes do not."""
        student = SAMPLE.replace("x + x", "x * x").replace("return 1", "return half(2)")
        student = student.replace("import math", "import math, cmath as c\nfrom os import path\n\nTWO = 2\n")
        student += "\n\ndef half(x):\n    return c.sqrt(x) / TWO\n\n\ndef unused():\n    return path\n"
        mixed = graft(SAMPLE, student, ["Thing.shrink"])
        assert "x + x" in mixed and "return half(2)" in mixed and "TWO = 2" in mixed
        assert "unused" not in mixed and "from os" not in mixed
        module = {}
        exec(mixed, module)
        assert module["Thing"]().shrink() == 2**0.5 / 2

    def test_grafting_ones_own_changes_nothing(self):
        source = Path(va.__file__).read_text()
        assert graft(source, source, ["attend", "TrajectoryAttention", "Head.forward"]) == source

    def test_what_cannot_be_grafted_is_said(self):
        with pytest.raises(ValueError, match="s.py does not define twice. It has\n    double, Thing"):
            graft(SAMPLE, SAMPLE.replace("twice", "double"), ["twice"], "s.py")
        with pytest.raises(ValueError, match="s.py does not parse: line 5"):
            graft(SAMPLE, SAMPLE.replace("x + x", "x +"), ["twice"], "s.py")
        with pytest.raises(ValueError, match="the file does not define thrice"):
            graft(SAMPLE, SAMPLE, ["thrice"])


# ---- wrong answers, written as a student might, and what the messages must say of them ----


def along(axis, q, k, v, grid, order="T H W", back=None):
    """Attention along one axis, the tokens read in the given order and put back in another."""
    T, H, W = grid
    last = " ".join([letter for letter in "THW" if letter != axis] + [axis])
    q, k, v = (rearrange(x, f"B h ({order}) d -> B h {last} d", T=T, H=H, W=W) for x in (q, k, v))
    out = (q @ k.mT / d**0.5).softmax(dim=-1) @ v
    return rearrange(out, f"B h {last} d -> B h ({back or order}) d")


def without_class_token_among_keys(q, k, v, grid):
    return (q @ k[:, :, 1:].mT / d**0.5).softmax(dim=-1) @ v[:, :, 1:]


def trajectory_by(change_y, change_q, q, k, v, grid):
    """Trajectory attention with a mistake in how the heads of y are joined, or in the second query."""
    torch.manual_seed(SEED)
    proj_q, proj_kv = TestTrajectory().projections(q)
    look = lambda *tokens: change_y(va.attend_per_frame(*tokens))
    return plain_second_stage(q, k, v, grid, lambda y: change_q * proj_q(y), proj_kv, look, True)


def trajectory_with(q, k, v, grid, wrong):
    """Trajectory attention by the file's own function, after wrong(proj_q, proj_kv)."""
    torch.manual_seed(SEED)
    proj_q, proj_kv = TestTrajectory().projections(q)
    return va.trajectory_attention(q, k, v, grid, *wrong(proj_q, proj_kv))


def values_first(proj_q, proj_kv):
    proj_kv.weight.data = torch.cat([proj_kv.weight.data[D:], proj_kv.weight.data[:D]])
    proj_kv.bias.data = torch.cat([proj_kv.bias.data[D:], proj_kv.bias.data[:D]])
    return proj_q, proj_kv


def weights_of_values_first(proj_q, proj_kv):
    proj_kv.weight.data = torch.cat([proj_kv.weight.data[D:], proj_kv.weight.data[:D]])
    return proj_q, proj_kv


def no_query(proj_q, proj_kv):
    proj_q.weight.data, proj_q.bias.data = torch.eye(D).double(), torch.zeros(D).double()
    return proj_q, proj_kv


def no_bias_of_values(proj_q, proj_kv):
    proj_kv.bias.data[D:] = 0.0
    return proj_q, proj_kv


def trajectory_at_once(q, k, v, grid):
    """One softmax over all keys, its weights then cut into frames."""

    def look(q, k, v, T):
        weights = (q @ k.mT / d**0.5).softmax(dim=-1)
        return torch.einsum("BhITS,BhTSd->BhITd", weights.unflatten(3, (T, -1)), v.unflatten(2, (T, -1)))

    torch.manual_seed(SEED)
    return va.trajectory_attention(q, k, v, grid, *TestTrajectory().projections(q), look)


def shifted(x, step, ends):
    """Channel 0 from frame t + step, channel 1 from t - step: x (B, h, T, tokens, d)."""
    ring = torch.cat([x[..., :1].roll(-step, 2), x[..., 1:2].roll(step, 2), x[..., 2:]], dim=4)
    last, first = (-1, 0) if step == 1 else (0, -1)
    for frame, channel in ((last, 0), (first, 1)):
        if ends != "wrap":
            ring[:, :, frame, :, channel] = x[:, :, frame, :, channel] if ends == "own" else 0.0
    return ring


def mixed_by(q, k, v, grid, step=1, ends="zeros", values=True):
    """Mixing attention with the clip's class token."""
    T, H, W = grid
    tokens = []
    for x in (q, k, v):
        class_token = x[:, :, :1].expand(B, h, T, d).unsqueeze(3)
        tokens.append(torch.cat([class_token, x[:, :, 1:].unflatten(2, (T, H * W))], dim=3))
    q, k, v = tokens
    out = va.attend(q, shifted(k, step, ends), shifted(v, step, ends) if values else v)
    return torch.cat([out[:, :, :, 0].mean(2, keepdim=True), out[:, :, :, 1:].flatten(2, 3)], dim=2)


def heads_interleaved(y):
    """(B, h, I, T, d), so laid out that joining heads as (h d) gives what (d h) would have."""
    return y.permute(0, 2, 3, 4, 1).flatten(3).unflatten(3, (h, d)).permute(0, 3, 1, 2, 4)


SMALL = (3, 2, 4)  # asking for the known mistakes takes some dozen calls of an oracle
WRONG = [  # what must be said, of which question, with how many class tokens, and the wrong answer
    ("1/sqrt(d) is missing", TestJoint, 1, lambda q, k, v, grid: (q @ k.mT).softmax(-1) @ v),
    ("divided by d,", TestJoint, 0, lambda q, k, v, grid: (q @ k.mT / d).softmax(-1) @ v),
    ("multiplied by sqrt", TestJoint, 0, lambda q, k, v, grid: (q @ k.mT * d**0.5).softmax(-1) @ v),
    ("queries and keys are swapped", TestJoint, 0, lambda q, k, v, grid: va.attend(k, q, v)),
    ("keys are used as values", TestJoint, 1, lambda q, k, v, grid: va.attend(q, k, k)),
    ("queries are used as values", TestJoint, 0, lambda q, k, v, grid: va.attend(q, k, q)),
    ("values are used as keys", TestJoint, 0, lambda q, k, v, grid: va.attend(q, v, v)),
    ("queries are used as keys", TestJoint, 0, lambda q, k, v, grid: va.attend(q, q, v)),
    ("over the queries", TestJoint, 0, lambda q, k, v, grid: (q @ k.mT / d**0.5).softmax(-2) @ v),
    ("no softmax", TestJoint, 1, lambda q, k, v, grid: (q @ k.mT / d**0.5) @ v),
    ("plain mean", TestJoint, 1, lambda q, k, v, grid: v.mean(2, keepdim=True).expand_as(v)),
    ("as they were", TestJoint, 1, lambda q, k, v, grid: v.clone()),
    ("class token is forgotten", TestJoint, 1, without_class_token_among_keys),
    ("T and S are swapped", TestDivided, 0, partial(along, "T", order="H W T")),
    ("T and H are swapped", TestDivided, 0, partial(along, "T", order="H T W")),
    ("H and W are swapped", TestAxialWidth, 0, partial(along, "W", order="T W H")),
    ("on the way in only", TestDivided, 0, partial(along, "T", order="H W T", back="T H W")),
    ("comes back in the order (S T)", TestDivided, 0, partial(along, "T", back="H W T")),
    ("comes back in the order (T W H)", TestAxialHeight, 0, partial(along, "H", back="T W H")),
    ("joined as (d h)", TestTrajectory, 1, partial(trajectory_by, heads_interleaved, 1.0)),
    ("second stage is missing", TestTrajectory, 1, partial(trajectory_by, lambda y: y, d**0.5)),
    ("all frames at once", TestTrajectory, 1, trajectory_at_once),
    ("W_k and W_v are swapped", TestTrajectory, 1, partial(trajectory_with, wrong=values_first)),
    ("their biases not", TestTrajectory, 1, partial(trajectory_with, wrong=weights_of_values_first)),
    ("W_q is left out", TestTrajectory, 1, partial(trajectory_with, wrong=no_query)),
    ("bias of W_v is forgotten", TestTrajectory, 1, partial(trajectory_with, wrong=no_bias_of_values)),
    ("wrong direction", TestMixing, 1, partial(mixed_by, step=-1)),
    ("wraps round", TestMixing, 1, partial(mixed_by, ends="wrap")),
    ("in place of zeros", TestMixing, 1, partial(mixed_by, ends="own")),
    ("values are not", TestMixing, 1, partial(mixed_by, values=False)),
]


@about_the_kit
class TestWhatFailuresSay:
    def message(self, check, *arguments):
        with pytest.raises(pytest.fail.Exception) as error:
            check(*arguments)
        return str(error.value)

    @pytest.mark.parametrize("words, question, C, wrong", WRONG, ids=[row[0] for row in WRONG])
    def test_known_mistakes_are_named(self, words, question, C, wrong):
        q, k, v = qkv(SMALL, C)
        text = self.message(question().check, wrong(q, k, v, SMALL), q, k, v, SMALL, "clip" if C else "none")
        assert text.count("This is the answer when") == 1 and ", or when" not in text
        assert words in text.split("This is the answer when")[1]

    def test_each_known_mistake_is_tried(self):
        said = [words for words, *_ in WRONG] + ["y~ itself"]  # test_published_slip
        for words, _ in KNOWN_MISTAKES + TestMixing().mistakes() + TestTrajectory().mistakes():
            assert any(part in words for part in said), words

    def test_right_mixing_is_no_mistake(self):
        q, k, v = qkv(SMALL, C=1)
        TestMixing().check(mixed_by(q, k, v, SMALL), q, k, v, SMALL, "clip")

    @pytest.mark.parametrize("name", ["Space", "Local", "Mixing", "Summary", "Pooled", "Nystrom"])
    def test_scale_and_swapped_keys_anywhere(self, name):
        """The mechanism itself, fed wrongly."""
        q, k, v = qkv(SMALL, C=1)
        ask = globals()[f"Test{name}"]()
        options = dict(iterations=30) if name == "Nystrom" else {}
        for fed, words in (((d**0.25 * q, d**0.25 * k, v), "1/sqrt(d) is missing"), ((k, q, v), "swapped")):
            text = self.message(ask.check, ask.call(*fed, SMALL, **options), q, k, v, SMALL, "clip", 1e-7)
            assert words in text.split("This is the answer when")[1]

    def test_published_slip(self):
        q, k, v = qkv(SMALL, C=1)
        ask = TestTrajectory()
        torch.manual_seed(SEED)
        wrong = va.trajectory_attention(q, k, v, SMALL, *ask.projections(q), project_values=False)
        assert "y~ itself as its value" in self.message(ask.check, wrong, q, k, v, SMALL, "clip")

    def test_order_of_heads_and_channels(self):
        x, proj = randn(B, 11, 3 * D), nn.Linear(D, D).double()
        split = rearrange(x, "B N (three d h) -> three B h N d", three=3, h=h)
        assert "as (three d h), not (three h d)" in self.message(check_split, split, x)
        heads = randn(B, h, 11, d)
        joined = proj(rearrange(heads, "B h N d -> B N (d h)"))
        assert "as (d h), not (h d)" in self.message(check_merge, joined, heads, proj)

    @pytest.mark.parametrize("n, place", [(0, r"\(batch, head\) = \(1, 2\), class token 0"),
                                          (22, r"\(batch, head, t, y, x\) = \(1, 2, 2, 1, 1\)")])
    def test_place_of_the_largest_difference(self, n, place):
        q, k, v = qkv(SMALL, C=1)
        actual = TestSpace().oracle(q, k, v, SMALL)
        actual[0, 0, 7, 1] += 0.25
        actual[1, 2, n, 3] -= 0.5
        text = self.message(TestSpace().check, actual, q, k, v, SMALL, "clip")
        assert re.search(f"2 of 25 tokens(?s:.*)largest difference 0.5 at {place}, allowed 1e-10$", text)

    def test_class_token_alone_differs(self):
        """The class token handed on instead of zeros is not the class token forgotten among the keys."""
        q, k, v = qkv(SMALL, C=1)
        actual = TestDivided().oracle(q, k, v, SMALL)
        actual[:, :, 0] = q[:, :, 0]
        text = self.message(TestDivided().check, actual, q, k, v, SMALL, "clip")
        assert "1 of 25 tokens" in text and "This is the answer" not in text

    def test_inputs_changed_in_place(self, monkeypatch):
        def scaled_in_place(q, k, v, grid):
            q /= d**0.5
            return (q @ k.mT).softmax(dim=-1) @ v

        monkeypatch.setattr(TestJoint, "mechanism", scaled_in_place)
        text = self.message(TestJoint().test_equals_oracle, SMALL)
        assert text == "the answer changed its input q in place"

    @pytest.mark.parametrize("back, words", [
        (None, "None came back: is a return missing?"), ((1, 2), "a tuple of 2 came back, not one tensor"),
        (3.5, "no tensor came back but float: 3.5")], ids=["None", "tuple", "float"])
    def test_what_came_back(self, back, words):
        assert self.message(same, back, torch.ones(3)) == words
        assert self.message(TestJoint().check, back, *qkv(SMALL), SMALL, "none") == words

    @pytest.mark.parametrize("form", [tuple, torch.Size, list])
    def test_shapes_may_be_printed_in_any_form(self, form, monkeypatch):
        def refuse(*tensors):
            raise ValueError(f"q, k and v are {[form(x.shape) for x in tensors]}")

        monkeypatch.setattr(va, "attend", refuse)
        ask = TestAttend()
        ask.q, ask.k, ask.v = (torch.ones(3, 5, *size) for size in ((11, 7), (13, 7), (13, 4)))
        ask.test_mismatched_shapes_are_named()
        ask.test_values_must_be_as_many_as_keys()

    @pytest.mark.parametrize("on", [dict(device="meta"), {}], ids=["its device", "no device"])
    def test_price_of_a_dense_mask(self, on, monkeypatch):
        """It fails for its price, also where the mask is made on the default device."""

        def time_attention(q, k, v, grid):
            place = torch.arange(q.shape[2], **on) % 24
            scores = (q @ k.mT).masked_fill(place[:, None] != place, -torch.inf)
            return scores.softmax(dim=-1) @ v

        monkeypatch.setattr(TestDivided, "mechanism", time_attention)
        monkeypatch.setattr(TestDivided, "class_tokens", ("none",))
        text = self.message(TestDivided().test_costs_what_the_docstring_says, (2, 4, 6))
        assert text.startswith("time_attention costs 82944 multiply-accumulates, its docstring allows 3456: ")
        assert "allows 3456: 2*S*T**2*D, 24 times as many\n(T, H, W) = (2, 4, 6)" in text

    def test_pictures_one_under_the_other(self, monkeypatch):
        """What is expected and what is computed, when a mechanism sees another row than it should."""
        monkeypatch.setattr(TestAxialWidth, "step", va.HeightAttention)
        text = self.message(TestAxialWidth().test_picture_is_computed)
        expected, computed = text.split("expected:\n")[1].split("\ncomputed:\n")
        assert expected in va.width_attention.__doc__ and computed in va.height_attention.__doc__
        text = self.message(TestAxialWidth().test_sees_what_the_paper_says)
        assert text.count("t=0") == 2 and "  Q######" in text and "  Q......" in text

    def test_an_unknown_mistake_is_not_named(self):
        q, k, v = qkv(SMALL)
        assert "This is the answer" not in self.message(TestJoint().check, 2 * v, q, k, v, SMALL, "none")

    def test_docstrings_may_be_missing(self):
        """Pictures and costs are then those of the file beside this one; where it has none, skip."""
        bare = lambda q, k, v, grid: None
        bare.__name__ = "time_attention"
        try:
            assert formula(bare) == "2*S*T**2*D" and docstring(bare, "t=0") == va.time_attention.__doc__
        except pytest.skip.Exception:
            pytest.fail("the reference's docstring was not found")
        bare.__name__ = "of_their_own"
        with pytest.raises(pytest.skip.Exception, match="of_their_own: no docstring to compare"):
            formula(bare)

    def test_only_the_file_under_test_can_be_blank(self):
        with pytest.raises(NotImplementedError) as error:
            Ladder().oracle(*"qkvg")
        assert still_blank(error.value) is None and still_blank(ValueError("x is not written yet")) is None


# ---- what else turns red when one body is blank ----


def left_out(function, call):
    """The functions that are defaults of the parameters that a call leaves out; without a call, of all."""
    parameters, defaults = function.args.args, function.args.defaults
    given = set()
    if call is not None:
        given = {p.arg for p in parameters[: len(call.args)]} | {word.arg for word in call.keywords}
    pairs = zip(parameters[len(parameters) - len(defaults) :], defaults)
    return {x.id for p, x in pairs if isinstance(x, ast.Name) and p.arg not in given}


def leans_on(node, known):
    """The definitions that one calls or hands on. A default counts where the call leaves it to be used."""
    nodes = list(ast.walk(node))
    functions = [inner for inner in nodes if isinstance(inner, ast.FunctionDef)]
    defaults = [x for function in functions for x in function.args.defaults]
    calls = {inner.func: inner for inner in nodes if isinstance(inner, ast.Call)}
    names = set()
    for name in nodes:
        if isinstance(name, ast.Name) and name.id in known and name not in defaults:
            names.add(name.id)
            if isinstance(known[name.id], ast.FunctionDef):
                names |= left_out(known[name.id], calls.get(name))
    return names & known.keys()


def built_on(names, known):
    """These definitions and all that they lean on, directly or not."""
    reached, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += leans_on(known[name], known)
    return reached


@cache
def rungs():
    """{question: (definitions that it is built on, call)} for every mechanism, as a function and as a module
    in all the variants of the table."""
    known, found = definitions(), {}
    of = lambda step: step.func if isinstance(step, partial) else step
    for question in Ladder.__subclasses__():
        name, module = question.mechanism.__name__, of(question.step)
        steps = [question.step] + [step for steps in SCHEMES.values() for step in steps if of(step) is module]
        first = [name, module.__name__, *left_out(known[name], None)]
        found[question] = built_on(first, known), partial(climb, question, steps)
    return found


def climb(question, steps):
    question().call(*qkv(), GRID)
    for step in steps:
        step(D, h).double()(randn(1, math.prod(GRID), D), GRID)


def unwritten(name, source):
    """The code of a function as `blank` leaves it."""
    module = {"__name__": "blanked"}
    exec(compile(blank(source, [name]), va.__file__, "exec"), module)
    return module[name].__code__


@about_the_kit
class TestOneBlankBody:
    """Only the questions that are built on a mechanism notice that it is not written."""

    @pytest.mark.parametrize("name", ["attend", *MECHANISMS])
    def test_turns_red_what_is_built_on_it(self, name, monkeypatch):
        code = unwritten(name, Path(va.__file__).read_text())
        monkeypatch.setattr(getattr(va, name), "__code__", code)
        red = set()
        for question, (_, call) in rungs().items():
            try:
                call()
            except NotImplementedError as error:
                assert still_blank(error) == name
                red.add(question.__name__)
        assert red == {question.__name__ for question, (needed, _) in rungs().items() if name in needed}
        assert red


# ---- whole rounds: a folder with the student's file and this one, pytest, the marks ----

DENSE = """T, H, W = grid
    C = count_class_tokens(q, grid, k, v)
    q, k, v = (x[:, :, C:] for x in (q, k, v))
    place = torch.arange(T * H * W, device=q.device) % (H * W)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(place[:, None] != place, -math.inf)  # N x N, and most of it thrown away
    return F.pad(scores.softmax(dim=-1) @ v, (0, 0, C, 0))"""


def handed_in():
    """A student's file: time attention dense, global attention unwritten, no docstring for the width."""
    text = blank(Path(va.__file__).read_text(), ["time_attention", "global_attention"])
    text = text.replace('raise NotImplementedError("time_attention is not written yet")', DENSE)
    return text.replace(reference_docstring("width_attention"), "Mine.")


def graded(folder, questions, student, fails=False, **settings):
    """pytest in a folder of only this file and student.py; {class: {test: (result, reason)}}. With `fails`
    the student's file cannot be imported."""
    (folder / "test_video_attention.py").write_text(Path(__file__).read_text())
    (folder / "student.py").write_text(student)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VA_")}
    environment = kept | dict(VIDEO_ATTENTION="student.py") | settings
    command = [sys.executable, "-m", "pytest", "-qp", "no:cacheprovider", "--junitxml=report.xml"]
    command += ["-k", questions]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode in ((2,) if fails else (0, 1)), run.stdout + run.stderr
    results = {}
    for test in ElementTree.parse(folder / "report.xml").iter("testcase"):
        reason = " ".join(child.get("message", "") for child in test)
        kind = [child.tag for child in test] or ["passed"]
        results.setdefault(test.get("classname").split(".")[-1], {})[test.get("name")] = (kind[0], reason)
    return results


@about_the_kit
class TestARound:
    def test_the_two_files_are_enough(self, tmp_path):
        """Each mistake turns red what it should, and what needs other files skips itself."""
        questions = "TestAttend or TestDivided or TestGlobal or TestAxialWidth or golden or MovingObjects"
        questions += " or TestReleased or TestOneBlankBody or TestCopying and (global or space)"
        results = graded(tmp_path, questions, handed_in())
        assert not [x for tests in results.values() for x in tests.values() if x[0] == "error"]

        # a dense mask gives the right numbers at the wrong price, and all else is right
        failed = {name for name, (result, _) in results["TestDivided"].items() if result != "passed"}
        assert {name.split("[")[0] for name in failed} == {"test_costs_what_the_docstring_says"}

        unwritten = {reason for _, reason in results["TestGlobal"].values()}
        assert unwritten == {"global_attention: not attempted yet"}
        assert unwritten == {x[1] for name, x in results["TestCopying"].items() if "global" in name}
        assert {x[0] for name, x in results["TestCopying"].items() if "space" in name} == {"passed"}

        bare = {name: x for name, x in results["TestAxialWidth"].items() if x[0] != "passed"}
        asks = {"test_picture_is_computed", "test_costs_what_the_docstring_says"}
        assert {name.split("[")[0] for name in bare} == asks
        assert set(bare.values()) == {("skipped", "width_attention: no docstring to compare")}

        reasons = {reason for _, reason in results["TestMovingObjects"].values()}
        assert reasons == {"tiny_data is not here"}
        assert reasons <= {reason for _, reason in results["TestReleased"].values()}
        assert {result for result, _ in results["test_video_attention"].values()} == {"skipped"}
        assert {result for result, _ in results["TestOneBlankBody"].values()} == {"skipped"}
        assert {result for result, _ in results["TestAttend"].values()} == {"passed"}
        self.check_marks(tmp_path / "report.xml")

    def check_marks(self, report):
        rows = {line.split()[0]: line.split()[1:] for line in score([report]).splitlines()}
        assert rows["Divided"][1] == "3" and rows["Divided"][2] == "0"
        assert rows["Global"] == ["0", "0", rows["Global"][3], rows["Global"][3], "0%"]
        assert rows["Attend"] == [rows["Attend"][0], "0", "0", rows["Attend"][0], "100%"]
        assert rows["AxialWidth"][0] == rows["AxialWidth"][3]  # what could not be asked does not count
        assert not {"MovingObjects", "OneBlankBody", "test_golden"} & rows.keys()
        for passed, *_, out_of, percent in (row for name, row in rows.items() if name != "question"):
            assert percent == f"{100 * int(passed) // int(out_of)}%"
        parts = [[int(x) for x in row[:4]] for name, row in rows.items() if name not in ("question", "total")]
        assert rows["total"][:4] == [str(sum(column)) for column in zip(*parts)]
        assert len({len(line) for line in score([report]).splitlines()}) == 1

    def test_a_file_that_fails_on_import(self, tmp_path):
        results = graded(tmp_path, "TestAttend", "import torch\n\nx = torch.no_such_thing\n", fails=True)
        assert results[""]["test_video_attention"][0] == "error"
        text = score([tmp_path / "report.xml"])
        assert re.search(r"^the file itself +0 +1 +0 +1 +0%$", text, re.M)
        assert text.splitlines()[-1].startswith("the file itself: it fails on import")

    def test_reports_that_are_not_there(self):
        with pytest.raises(ValueError, match=r"^\*.xml is not there; pytest --junitxml=NAME.xml writes"):
            main("score", "*.xml")
        with pytest.raises(ValueError, match="^score needs the reports that pytest --junitxml"):
            main("score")

    def test_with_va_grade_the_unwritten_fails(self, tmp_path):
        results = graded(tmp_path, "TestGlobal and (picture or eighth)", handed_in(), VA_GRADE="1")
        results = results["TestGlobal"]
        assert len(results) == 2
        assert set(results.values()) == {("failure", "Failed: global_attention: not attempted yet")}


# ==== MUTATIONS =============================================================================================

# One-line edits of the file: the line as it is and below it a plausible mistake. Each by itself must turn a
# test red:  python test_video_attention.py mutate  tries them all in some minutes, "mutate 12" every twelfth.
MUTATIONS = r"""
scores = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(q.shape[-1])
    scores = torch.einsum("...id,...jd->...ij", q, k)
weights = scores.softmax(dim=-1)
    weights = scores.softmax(dim=-2)
if x.ndim != 3 or x.shape[2] != weight.shape[-1] or x.device != weight.device or mixed:
    if x.ndim != 3 or weight.shape[-1] % x.shape[2] or x.device != weight.device or mixed:
class_token = class_token.mean(dim=2, keepdim=True)
    class_token = class_token.sum(dim=2, keepdim=True)
share = int(moved * j * q.shape[-1] / max(1, 2 * window))
    share = int(moved * j * q.shape[-1] / max(1, window + 1))
out = rearrange(kernel(q, k, v), "(B H W) h T d -> B h (T H W) d", H=H, W=W)
    out = rearrange(attend(q, k, v), "(B H W) h T d -> B h (T H W) d", H=H, W=W)
class_tokens = torch.stack([x[:, :, :C] for x in found]).mean(dim=0)
    class_tokens = torch.stack([x[:, :, :C] for x in found]).sum(dim=0)
patches = torch.full_like(patches, torch.nan).index_copy(2, torch.cat(boxes) - C, patches)
    patches = patches[:, :, torch.cat(boxes) - C]
if min(dim, heads) < 1 or heads % 1 or dim % heads != 0:
    if min(dim, heads) < 1 or heads % 1:
self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
    self.qkv = nn.Linear(dim, 3 * dim)
self.proj = nn.Linear(dim, dim)
    self.proj = nn.Linear(dim, dim, bias=False)
self.zero = nn.Linear(dim, dim) if zero_init else None
    self.zero = nn.Linear(dim, dim, bias=False) if zero_init else None
return rearrange(self.qkv(x), "B N (three h d) -> three B h N d", three=3, h=self.heads).unbind(dim=0)
    return rearrange(self.qkv(x), "B N (h d three) -> three B h N d", three=3, h=self.heads).unbind(dim=0)
x = self.dropout(self.proj(rearrange(x, "B h N d -> B N (h d)")))
    x = self.dropout(self.proj(rearrange(x, "B h N d -> B N (d h)")))
return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T) h (H W) d")
    return attend_within_frames(q, k, v, grid, "B h (H T W) d -> (B T) h (H W) d")
places = "B h (T H W) d -> (B H W) h T d"
    places = "B h (H W T) d -> (B H W) h T d"
rows = slice(0, (H + 1) // 2), slice((H + 1) // 2, H)
    rows = slice(0, H // 2), slice(H // 2, H)
columns = slice(0, (W + 1) // 2), slice((W + 1) // 2, W)
    columns = slice(0, (H + 1) // 2), slice((H + 1) // 2, W)
every_other = slice(0, None, 2), slice(1, None, 2)
    every_other = slice(0, None, 2), slice(2, None, 2)
boxes = [(t, y, x) for t in every_other for y in every_other for x in every_other]
    boxes = [(t, y, x) for t in [slice(0, None)] for y in every_other for x in every_other]
return attend_within_frames(q, k, v, grid, "B h (T H W) d -> (B T H) h W d")
    return attend_within_frames(q, k, v, grid, "B h (T W H) d -> (B T H) h W d")
for axis, step in zip((2, 3, 4), stride):
    for axis, step in zip((4, 3, 2), stride):
means = [part.mean(dim=axis) for part in patches.split(step, dim=axis)]
    means = [part.sum(dim=axis) for part in patches.split(step, dim=axis)]
pad += [-move, move]
    pad += [move, -move]
if len([move for move in step if move != 0]) > 1:
    if len([move for move in step if move != 0]) > 2:
steps = [(sign * i, 0, 0) for i in range(1, window + 1) for sign in (1, -1)]
    steps = [(sign * i, 0, 0) for i in range(1, window + 1) for sign in (-1, 1)]
n, (h, L, d) = q.shape[0] // t, q.shape[1:]
    n, (h, L, d) = k.shape[0] // t, k.shape[1:]
u = rearrange(proj_q(path[:, :, t]), "B S (h d) -> B S h d", h=h)
    u = rearrange(proj_q(path[:, :, 0]), "B S (h d) -> B S h d", h=h)
w_k, w_v = rearrange(proj_kv.weight, "(two h d) D -> two h d D", two=2, h=h)
    w_k, w_v = rearrange(proj_kv.weight, "(h two d) D -> two h d D", two=2, h=h)
weights = (torch.einsum("BShD,BSTD->BShT", u, path) / math.sqrt(d)).softmax(dim=-1)
    weights = torch.einsum("BShD,BSTD->BShT", u, path).softmax(dim=-1)
def __init__(self, dim, heads, *args, project_values=True, **options):
    def __init__(self, dim, heads, *args, project_values=False, **options):
look = partial(self.first_stage, **options)
    look = self.first_stage
return trajectory_attention(q, k, v, grid, self.proj_q, self.proj_kv, look, self.project_values)
    return trajectory_attention(q, k, v, grid, self.proj_q, self.proj_kv, look)
score = torch.maximum(score, newest) if criterion == "max" else score + newest
    score = torch.minimum(score, newest) if criterion == "max" else score + newest
picked.append(top + score.min(dim=1).indices)
    picked.append(top + score.max(dim=1).indices)
i = shuffle[: c * P]
    i = shuffle[:P]
x = torch.where(i[:, None] < N, q.index_select(2, i % N), k.index_select(2, i % N))
    x = torch.where(i[:, None] < N, k.index_select(2, i % N), q.index_select(2, i % N))
return x.gather(2, most_orthogonal_subset(x, P, **options)[..., None].expand(-1, -1, -1, d))
    return x.gather(2, most_orthogonal_subset(x, P)[..., None].expand(-1, -1, -1, d))
return attend(q, prototypes, attend(prototypes, k, v))
    return attend(q, k, attend(prototypes, k, v)[:, :, :1].expand_as(v))
found = attend_per_frame(prototypes, k, v, T).flatten(3)
    found = attend_per_frame(prototypes, k, v, T).transpose(3, 4).flatten(3)
return orthoformer_per_frame(q, k, v, T, choose_prototypes(q, k, **options))
    return orthoformer_per_frame(q, k, v, T, choose_prototypes(q, k))
shorter = (short + 1) * count - n
    shorter = count - n // count
Z = 0.25 * Z @ (13 * I - AZ @ (15 * I - AZ @ (7 * I - AZ)))
    Z = 0.25 * Z @ (15 * I - AZ @ (15 * I - AZ @ (7 * I - AZ)))
return attend(q, k_means, iterative_inverse(scores.softmax(dim=-1), iterations, one_scale) @ found)
    return attend(q, q_means, iterative_inverse(scores.softmax(dim=-1), iterations, one_scale) @ found)
def nystrom_per_frame(q, k, v, T, landmarks=128, iterations=6):
    def nystrom_per_frame(q, k, v, T, landmarks=8, iterations=6):
q_means, k_means = (segment_means(x, P, T) for x in (q, k))
    q_means, k_means = (segment_means(x, P) for x in (q, k))
def attend_linearly(q, k, v, eps=1e-6):
    def attend_linearly(q, k, v, eps=1e-5):
if I * J * (M + d) < (I + J) * M * d:
    if I * J < (I + J) * d:
q, k = (F.relu(x) + x.shape[-1] ** -0.5 for x in (q, k))
    q, k = (F.relu(x + x.shape[-1] ** -0.5) for x in (q, k))
return attend_linearly(q * s, k * z, v, 1e-6 * s * z)
    return attend_linearly(q, k, v, 1e-6)
total = q @ k.sum(dim=-2).unsqueeze(-1) + eps
    total = q @ k.mean(dim=-2).unsqueeze(-1) + eps
x = torch.cat([q, k, v], dim=-1)
    x = torch.cat([k, q, v], dim=-1)
return g_q * q, g_k * k
    return g_k * q, g_q * k
x = rearrange(x, "B h (n t H W) d -> (B n) t H W (h d)", t=t, H=H, W=W)
    x = rearrange(x, "B h (t n H W) d -> (B n) t H W (h d)", t=t, H=H, W=W)
return rearrange(x, "(B n) t H W (h d) -> B h (n t H W) d", n=T // t, h=h)
    return rearrange(x, "(B n) t H W (d h) -> B h (n t H W) d", n=T // t, h=h)
lengths = torch.randn(features, d).norm(dim=1, keepdim=True)
    lengths = torch.rand(features, d).norm(dim=1, keepdim=True)
x = x * x.shape[-1] ** -0.25
    x = x * x.shape[-1] ** -0.5
return (logits.exp_() + eps).mul_(len(projection) ** -0.5)
    return logits.exp_().mul_(len(projection) ** -0.5)
k = favor_features(k, projection, over=(-2, -1))
    k = favor_features(k, projection, over=(-1,))
for q, k, v in zip(*(x.split(heads, dim=-3) for x in (q, k, v)), strict=True):
    for q, k, v in zip(*(x.split(heads, dim=-2) for x in (q, k, v)), strict=True):
found.append(attend_linearly(q, k, v, eps=0.0))
    found.append(attend_linearly(q, k, v))
k = favor_features(k, self.projection, over=(-2, -1))
    k = favor_features(k, self.projection, over=(-1,))
frames = zip(*(rearrange(x, "B h (T S) d -> T B h S d", T=T) for x in (k, v)))
    frames = zip(*(rearrange(x, "B h (S T) d -> T B h S d", T=T) for x in (k, v)))
"divided": [TimeAttention, SpaceAttention],
    "divided": [SpaceAttention, TimeAttention],
"local_global": [LocalAttention, GlobalAttention],
    "local_global": [GlobalAttention, LocalAttention],
"axial": [TimeAttention, WidthAttention, HeightAttention],
    "axial": [TimeAttention, HeightAttention, WidthAttention],
"mixing_summary": [partial(MixingAttention, summary=True)],
    "mixing_summary": [MixingAttention],
"linear_fixation": [partial(LinearAttention, fixation="shared")],
    "linear_fixation": [LinearAttention],
"lvt": [partial(LinearAttention, axis=a, fixation="shared", neighbours=True) for a in ("time", "space")],
    "lvt": [partial(LinearAttention, axis=a, fixation="shared", neighbours=True) for a in ("space", "time")],
CLASS_TOKEN = dict.fromkeys(("space", "mixing", "summary", "mixing_summary"), "frame") | {"lvt": "none"}
    CLASS_TOKEN = dict.fromkeys(("space", "summary", "mixing_summary"), "frame") | {"lvt": "none"}
padding = [size // 2 for size in self.patch_size] if self.overlap else 0
    padding = [(size - 1) // 2 for size in self.patch_size] if self.overlap else 0
self.norm = nn.LayerNorm(dim) if self.overlap else nn.Identity()
    self.norm = nn.Identity()
return self.norm(rearrange(x, "B D T H W -> B (T H W) D")), (T, H, W)
    return self.norm(rearrange(x, "B D T H W -> B (H W T) D")), (T, H, W)
if size < patch or (size % patch != 0 and not self.overlap):
    if size < patch or (size % patch != 0):
return F.pad(kernel.unsqueeze(2), (0, 0, 0, 0, frames // 2, (frames - 1) // 2))
    return F.pad(kernel.unsqueeze(2), (0, 0, 0, 0, (frames - 1) // 2, frames // 2))
if how == "repeat" and len(new) == 1:
    if len(new) == 1:
return table[:, torch.arange(new[0], device=table.device) % old[0]]
    return table[:, torch.arange(new[0], device=table.device).clamp(max=old[0] - 1)]
old, new = (self.grid, grid) if self.kind == "joint" else (self.grid[1:], (H, W))
    old, new = (self.grid, grid) if self.kind == "joint" else (self.grid[1:], (W, H))
places = resize_table(self.place[:, self.c :], old, new, self.resize)
    places = resize_table(self.place[:, self.c :], old, new)
patches = patches + places.repeat(1, T * H * W // math.prod(new), 1)
    patches = patches + places.repeat_interleave(T * H * W // math.prod(new), dim=1)
class_tokens = class_tokens + self.place[:, : self.c]
    class_tokens = class_tokens
time = resize_table(self.time, self.grid[:1], (T,), self.resize)
    time = resize_table(self.time, self.grid[:1], (T,))
patches = patches + time.repeat_interleave(H * W, dim=1)
    patches = patches + time.repeat(1, H * W, 1)
class_tokens = class_tokens + time if self.class_has_time else class_tokens
    class_tokens = class_tokens + time[:, : len(class_tokens[0])]
return x * super().forward(x.new_ones(x.shape[:1] + (1,) * (x.ndim - 1))) if drops else x
    return x * super().forward(x.new_ones(x.shape[:1] + (1,) * (x.ndim - 1))).sign() if drops else x
self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if depthwise else None
    self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1) if depthwise else None
self.gelu = nn.GELU(approximate=gelu)
    self.gelu = nn.GELU()
self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for step in self.steps)
    self.norms = nn.ModuleList(nn.LayerNorm(dim) for step in self.steps)
self.block = Block(dim, [JointAttention(dim, heads, qkv_bias=False)], MLP(dim, 4 * dim), eps=1e-5)
    self.block = Block(dim, [JointAttention(dim, heads, qkv_bias=False)], MLP(dim, 4 * dim))
"tanh": [nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, num_classes)],
    "tanh": [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)],
nn.init.zeros_(module.bias)
    nn.init.ones_(module.bias)
nn.init.zeros_(module.zero.weight)
    nn.init.ones_(module.zero.weight)
x = self.dropout(self.position(x, grid))
    x = self.dropout(x)
sizes = (1, size, size) if isinstance(size, int) else (1,) * (len(size) == 2) + tuple(size)
    sizes = (1, size, size) if isinstance(size, int) else tuple(size) + (1,) * (len(size) == 2)
x = checkpoint(block, x, grid, use_reentrant=False) if again else block(x, grid)
    x = block(x, grid)
"vivit": dict(attention="joint", num_frames=32, position="joint", gelu="tanh", **TUBELETS),
    "vivit": dict(attention="joint", num_frames=32, gelu="tanh", **TUBELETS),
return VideoTransformer(**PRESETS[name] | overrides)
    return VideoTransformer(**overrides | PRESETS[name])
last = int(any("temporal_att" in key for key in weights))
    last = 0
out = 2 if "pre_logits.fc.weight" in weights else 0
    out = 0
parts = [result.pop(key.replace("query", name)) for name in ("query", "key", "value")]
    parts = [result.pop(key.replace("query", name)) for name in ("key", "query", "value")]
return dict(attention="joint", gelu="tanh")
    return dict(attention="joint")
model.load_state_dict(weights)
    model.load_state_dict(weights, strict=False)
value = central_frame_kernel(value.squeeze(2), own.shape[2])
    value = value.expand_as(own)
return dict(attention=attention, resize="nearest", merge_frames=attention == "space")
    return dict(attention=attention, resize="smooth", merge_frames=attention == "space")
slip = [partial(TrajectoryAttention, project_values=False)]
    slip = [TrajectoryAttention]
"""


def mutate(every):
    """Run the tests on every `every`-th mutation of the file; the exit status is the number of survivors."""
    lines = Path(va.__file__).read_text().splitlines()
    bare = [re.sub(r"  # .*$", "", line).strip() for line in lines]
    texts = [line.strip() for line in MUTATIONS.strip().splitlines()]
    mutations = list(zip(texts[::2], texts[1::2]))[::every]
    slow = "compiles or exports or overfits or TestFile or ShapeComments or Copying or MovingObjects"
    command = [sys.executable, "-m", "pytest", "-xqp", "no:cacheprovider", __file__, "-k", f"not ({slow})"]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        mutant = Path(folder) / "mutant.py"
        for number, (old, new) in enumerate(mutations, 1):
            assert bare.count(old) == 1, f"the file has {bare.count(old)} lines like: {old}"
            place = bare.index(old)
            indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
            mutant.write_text("\n".join([*lines[:place], indent + new, *lines[place + 1 :]]) + "\n")
            environment = os.environ | {"VIDEO_ATTENTION": str(mutant)}
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            red = re.search(r"^(?:FAILED|ERROR) \S+?::(\S+)", run.stdout, re.M)
            verdict = red.group(1) if red else "red" if run.returncode else "SURVIVED"
            survivors += run.returncode == 0
            print(f"{number:3} of {len(mutations)}, line {place + 1:4}: {new}\n{'':10} {verdict}", flush=True)
    print(f"{len(mutations) - survivors} passed, {survivors} failed")
    return survivors


def isolate(names):
    """Blank one definition at a time and see that, of the mechanisms' classes, those turn red that name it or
    what is built on it, and no others; the exit status is the number of names for which it is not so."""
    known, questions = definitions(), Ladder.__subclasses__()
    used = {question: set(re.findall(r"\bva\.(\w+)", inspect.getsource(question))) for question in questions}
    needed = {question: built_on(names & known.keys(), known) for question, names in used.items()}
    wrong, wanted = 0, " or ".join(question.__name__ for question in questions)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            results = graded(Path(folder), wanted, blank(Path(va.__file__).read_text(), [name]))
        red = {question for question in questions
               if any(x[0] != "passed" for x in results[question.__name__].values())}
        differ = red ^ {question for question in questions if name in needed[question]}
        wrong += len(differ) > 0
        print(f"{name:24} {len(red):2} red{', but not as expected: ' if differ else ''}", end="")
        print(*(question.__name__ for question in differ), flush=True)
    return wrong


USAGE = """usage, beside pytest, which runs the tests themselves:
    python test_video_attention.py mutate [every]
    python test_video_attention.py isolate [NAME...]
    python test_video_attention.py blank [--hints] NAME... > student.py
    python test_video_attention.py graft student.py NAME... > mixed.py
    python test_video_attention.py score report.xml...
"""


def main(command=None, *words):
    """What the command line asks for; ValueError or OSError if it cannot be done."""
    source, hints = Path(va.__file__).read_text(), "--hints" in words
    words = [word for word in words if word != "--hints"]
    if command == "mutate":
        return mutate(int(words[0]) if words else 1)
    if command == "isolate":
        return isolate(words or ["attend", *MECHANISMS])
    if command == "blank" and words:
        sys.stdout.write(blank(source, words, hints))
    elif command == "graft" and len(words) > 1:
        sys.stdout.write(graft(source, Path(words[0]).read_text(), words[1:], words[0]))
    elif command == "score":
        sys.stdout.write(score(words))
    else:
        raise ValueError(USAGE)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
