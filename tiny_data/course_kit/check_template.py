"""A few small tests for each question, to try while you work. Passing them is necessary, not
sufficient.

    pytest check.py                      everything that is written; the rest is skipped
    pytest -x check.py -k question_2     one question, to its first failure
    pytest -x check.py -k time_attention one function
    VIDEO_ATTENTION=other.py pytest check.py

It needs torch, einops and pytest, student.py and check_data.json beside it. The data are sums of
what should come out, for inputs that this file makes from a formula. Marks are given by a longer
test with other inputs.
"""

import functools
import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
DATA = json.loads((HERE / "check_data.json").read_text(encoding="utf-8"))
torch.set_num_threads(1)


@functools.cache
def student():
    path = Path(os.environ.get("VIDEO_ATTENTION", HERE / "student.py"))
    spec = importlib.util.spec_from_file_location("student", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["student"] = module
    spec.loader.exec_module(module)
    return module


# WAVES, and functions that some questions hand over


def tensor(recipe):
    """The tensor of a recipe: number, shape, factor, and whether it is made positive."""
    if "number" in recipe:
        x = wave(recipe["number"], *recipe["shape"])
        return (x.abs() + 0.1 if recipe["positive"] else x) * recipe["scale"]
    weight, *bias = [tensor(x) for x in recipe["layer"]]
    layer = torch.nn.Linear(*reversed(weight.shape), bias=bool(bias), dtype=torch.float64)
    layer.weight.data = weight
    if bias:
        layer.bias.data = bias[0]
    return layer


def argument(x):
    if isinstance(x, dict) and "function" in x:
        return globals()[x["function"]]
    if isinstance(x, dict) and "tuple" in x:
        return tuple(argument(y) for y in x["tuple"])
    if isinstance(x, list):
        return [argument(y) for y in x]
    return tensor(x) if isinstance(x, dict) else x


def question(case):
    """The function, its arguments and its options."""
    function = getattr(student(), case["name"], None)
    if function is None:
        pytest.fail(f"student.py does not define {case['name']}", pytrace=False)
    options = {key: argument(value) for key, value in case["options"].items()}
    return function, [argument(x) for x in case["args"]], options


def asked(function, *args, **options):
    """What comes back; a hole is skipped."""
    try:
        return function(*args, **options)
    except NotImplementedError as error:
        if "is not written yet" not in str(error):
            raise
        pytest.skip(str(error))


def sums(x):
    """What is compared of a result: a number for each index of its last axis but one."""
    x = x.detach().double()
    x = (x * wave(999, *x.shape)).movedim(-2, 0) if x.ndim > 1 else x[:, None]
    return x.flatten(1).sum(1)


def near(a, b):
    return torch.allclose(a, torch.tensor(b, dtype=torch.float64), rtol=1e-4, atol=2e-4)


def must_be_tensor(x):
    if x is None:
        pytest.fail("None came back: is a return missing?", pytrace=False)
    if not isinstance(x, torch.Tensor):
        pytest.fail(f"a {type(x).__name__} came back, not one tensor", pytrace=False)


def patch_of(n, grid, tokens):
    """A token's place in words."""
    if grid is None or tokens < math.prod(grid):
        return f"index {n} of the last axis but one"
    C = tokens - math.prod(grid)
    if n < C:
        return f"class token {n}"
    t, rest = divmod(n - C, grid[1] * grid[2])
    return f"patch (t, y, x) = {(t, *divmod(rest, grid[2]))}"


# THE TESTS


def check_values(case):
    function, args, options = question(case)
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
    actual = asked(function, *args, **options)
    if case["pick"] is not None:
        if not isinstance(actual, tuple) or len(actual) != 2:
            pytest.fail("what came back is no pair (out, weights)", pytrace=False)
        actual = actual[case["pick"]]
    if isinstance(actual, list):
        actual = torch.tensor(actual, dtype=torch.float64)
    must_be_tensor(actual)
    if list(actual.shape) not in case["shapes"]:
        pytest.fail(
            f"shape {tuple(actual.shape)}, expected {tuple(case['shapes'][0])}", pytrace=False
        )
    for x, y in zip(args, before):
        if isinstance(x, torch.Tensor) and not torch.equal(x, y):
            pytest.fail(
                "the answer changed one of its inputs in place: work on copies", pytrace=False
            )
    found = sums(actual)
    if any(near(found, expected) for expected in case["sums"]):
        return
    right = torch.tensor(case["sums"][0], dtype=torch.float64)
    wrong = (
        ((found - right).abs().nan_to_num(nan=math.inf) > 2e-4 + 1e-4 * right.abs())
        .nonzero()
        .flatten()
        .tolist()
    )
    total = (found * wave(998, len(found))).sum()
    hints = [DATA["words"][i] for i, number in case["mistakes"] if near(total, number)]
    hint = f"This is the answer when {', or when '.join(hints[:2])}.\n" if hints else ""
    where = case["label"] + (f", (T, H, W) = {tuple(case['grid'])}" if case["grid"] else "")
    places = [patch_of(n, case["grid"], len(found)) for n in wrong]
    pytest.fail(
        f"{hint}{where}: {len(wrong)} of {len(found)} differ, the first {places[0]}", pytrace=False
    )


def check_picture(case):
    """Which patches the patch Q attends to, by the derivative with respect to the values."""
    function, args, options = question(case)
    args[2].requires_grad_()
    out = asked(function, *args, **options)
    must_be_tensor(out)
    T, H, W = case["grid"]
    t, y, x = case["query"]
    n = (t * H + y) * W + x
    (gradient,) = torch.autograd.grad(out[:, :, n].sum(), args[2], allow_unused=True)
    seen = (
        (gradient.abs().sum((0, 1, 3)) > 1e-12).tolist()
        if gradient is not None
        else [False] * (T * H * W)
    )
    mark = ["#" if hit else "." for hit in seen]
    mark[n] = "Q" if seen[n] else "?"
    rows = ["    " + "  ".join(f"t={t}".ljust(W) for t in range(T)).rstrip()]
    for y in range(H):
        rows.append("    " + "  ".join("".join(mark[(t * H + y) * W :][:W]) for t in range(T)))
    if rows != case["picture"]:
        expected, actual = "\n".join(case["picture"]), "\n".join(rows)
        pytest.fail(
            f"what patch Q attends to, expected:\n{expected}\nand in this answer:\n{actual}",
            pytrace=False,
        )


def check_gradients(case):
    function, args, options = question(case)
    leaves = [args[i].requires_grad_() for i in case["which"]]
    out = asked(function, *args, **options)
    out = out[0] if isinstance(out, tuple) else out
    must_be_tensor(out)
    if not out.requires_grad:
        pytest.fail(
            "no derivatives reach the inputs: .detach(), .data, .item(), numpy or no_grad?",
            pytrace=False,
        )
    found = torch.autograd.grad((out * wave(997, *out.shape)).sum(), leaves, allow_unused=True)
    for name, gradient, expected in zip(case["leaves"], found, case["sums"]):
        gradient = torch.zeros(2, 2) if gradient is None else gradient
        if not near(sums(gradient).sum(), expected):
            pytest.fail(
                f"the derivative with respect to {name} is not that of the definition",
                pytrace=False,
            )


def check_error(case):
    function, args, options = question(case)
    try:
        asked(function, *args, **options)
    except ValueError as error:
        missing = [str(x) for x in case["shows"] if str(x) not in str(error)]
        if missing:
            pytest.fail(
                f"{case['label']}: the ValueError does not show {missing[0]}: {error}",
                pytrace=False,
            )
        return
    except Exception as error:
        name = type(error).__name__
        pytest.fail(
            f"{case['label']}: raises {name} where a ValueError is asked for: {error}",
            pytrace=False,
        )
    pytest.fail(f"{case['label']}: no error; a ValueError is asked for", pytrace=False)


def check_price(case):
    function, args, options = question(case)
    with FlopCounterMode(display=False) as counter:
        asked(function, *args, **options)
    macs, allowed = counter.get_total_flops() / 2, case["allowed"]
    if macs > 1.1 * allowed + case["spare"]:
        times = f"{macs / allowed:.3g} times {allowed:.0f} = {case['formula']}"
        pytest.fail(
            f"{macs:.0f} multiply-accumulates, {times}: is more computed than is used?",
            pytrace=False,
        )


def names():
    return [
        f"question_{case['question']}-{case['name']}-{case['part'].replace(' ', '_')}"
        for case in DATA["cases"]
    ]


@pytest.mark.parametrize("case", DATA["cases"], ids=names())
def test(case):
    globals()[f"check_{case['kind']}"](case)
