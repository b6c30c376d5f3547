"""A few calls of each function with stored right results, to try while you work.

    pytest check.py                        everything; what is not written yet is red too
    pytest -x check.py -k time_attention   one function, to its first failure
    VIDEO_ATTENTION=other.py pytest check.py

Passing is necessary, not sufficient: marks are given by more calls with other inputs. The last test
says where to begin. It needs torch, einops, pytest, and check_calls.py and check_data.pt beside it.
"""

import ast
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from check_calls import answer, difference

HERE = Path(__file__).parent
PATH = Path(os.environ.get("VIDEO_ATTENTION", HERE / "student.py"))
SPEC = importlib.util.spec_from_file_location("student", PATH)
STUDENT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(STUDENT)
DATA = torch.load(HERE / "check_data.pt", weights_only=True)
FAILED = []  # names of functions


@pytest.mark.parametrize("case", DATA, ids=lambda x: f"{x['function']}-{x['part']}-{x['words']}")
def test_function(case):
    FAILED.append(case["function"])
    found = answer(getattr(STUDENT, case["function"]), case)
    place = f"{case['function']}, {case['part']}, {case['words']}"
    words = difference(found["value"], case["value"], case["tolerance"])
    assert not words, f"{place}: {words}"
    if torch.is_tensor(case["value"]) and case["value"].is_floating_point():
        assert found["value"].dtype == case["value"].dtype, f"{place}: not the type of the inputs"
    assert not found["changed"], f"{place}: inputs were changed in place, work on copies"
    for number, right in enumerate(case["gradients"] or []):
        assert found["gradients"], f"{place}: no derivative, the result is cut off from its inputs"
        words = difference(found["gradients"][number], right, 1e-8)
        assert not words, f"{place}, derivative for tensor {number + 1} of the arguments: {words}"
    FAILED.pop()


def calls():
    """{function: all functions of the file that it reaches}"""
    nodes = [x for x in ast.parse(PATH.read_bytes()).body if isinstance(x, ast.FunctionDef)]
    found = {}
    for node in nodes:
        found[node.name] = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
    for _ in nodes:
        found = {x: names.union(*(found.get(y, ()) for y in names)) for x, names in found.items()}
    return found


def test_where_to_begin():
    first = FAILED[0] if FAILED else ""
    caused = [x for x in FAILED if x == first or first in calls().get(x, ())]
    assert not FAILED, (
        f"Begin with {first}: it is wrong, and {len(caused)} of the {len(FAILED)} failures are in it, "
        "or in functions that call it."
    )
