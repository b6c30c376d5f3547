"""Calls with stored right results: pytest check.py, or for one function pytest -k attend check.py.
Marks are given by more calls, with other inputs. The last test says where to begin."""

import ast
from pathlib import Path

import pytest
import student
import torch
from check_calls import answer, compare

DATA = torch.load(Path(__file__).with_name("check_data.pt"), weights_only=True)
FAILED = []  # names of functions


@pytest.mark.parametrize("case", DATA, ids=lambda x: f"{x['function']}-{x['part']}-{x['words']}")
def test_function(case):
    FAILED.append(case["function"])
    found = answer(getattr(student, case["function"]), case)
    wrong = " and ".join(compare(found, case, case).values())
    assert not wrong, f"{case['function']}, {case['part']}, {case['words']}: {wrong}"
    FAILED.pop()


def calls():
    """{function: all functions of the file that it reaches}"""
    tree, found = ast.parse(Path(student.__file__).read_bytes()), {}
    for node in [x for x in tree.body if isinstance(x, ast.FunctionDef)]:
        found[node.name] = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
    for _ in list(found):
        found = {x: names.union(*(found.get(y, ()) for y in names)) for x, names in found.items()}
    return found


def test_where_to_begin():
    first = FAILED[0] if FAILED else ""
    caused = [x for x in FAILED if x == first or first in calls().get(x, ())]
    share = f"{len(caused)} of the {len(FAILED)} failures"
    assert not FAILED, f"Begin with {first}: {share} are in it, or in functions that call it."
