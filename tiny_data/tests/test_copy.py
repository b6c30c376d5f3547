"""What is copied out of the file runs alone, and "Copy with" names what must come along."""

import builtins
import dis
import re
from types import CodeType

import pytest
import torch

import video_attention as va
from tiny_data import SCHEMES, copy

GRID = (5, 4, 7)
IMPORTS = ("import", "from")
TEXTS = {key: text for key, text in copy.definitions().items() if not text.startswith(IMPORTS)}
WITH_LINE = [name for name, text in TEXTS.items() if "Copy with  " in text]
# What makes the arguments that are neither tokens nor layers, and no text needs.
MADE = {"orthogonal_prototypes", "orthogonal_projection", "attend_per_frame"}
MADE |= copy.closure(["orthogonal_prototypes", "attend_along_trajectories"])


def named_in(name):
    """A definition and what its line names; with "and theirs" also what these name."""
    line = r"^ *(?:# )?Copy with +(\w+(?:,\s+\w+)*)( and theirs)?$"
    line = re.search(line, TEXTS[name], re.M)
    named = re.split(r",\s+", line.group(1)) if line else []
    return {name}.union(named, *map(named_in, named if line and line.group(2) else []))


@pytest.mark.parametrize("name", WITH_LINE)
def test_the_line_names_what_is_needed(name):
    needed = copy.closure([name]) & TEXTS.keys()
    assert needed <= named_in(name) <= needed | MADE


def globals_of(code):
    """The names that compiled code, and the code in it, looks up outside of functions."""
    found = {x.argval for x in dis.get_instructions(code) if x.opname == "LOAD_GLOBAL"}
    return found.union(*(globals_of(x) for x in code.co_consts if isinstance(x, CodeType)))


@pytest.mark.parametrize("name", TEXTS)
def test_a_definition_has_all_that_it_needs(name):
    text, alone = copy.copied(name), {}
    exec(text, alone)
    assert globals_of(compile(text, name, "exec")) <= alone.keys() | vars(builtins).keys()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_runs_alone(name):
    alone, x = {}, torch.randn(2, (name != "lvt") + 140, 24)
    exec(copy.copied(name), alone)
    assert "video_attention" not in re.findall(r"^(?:import|from) (\w+)", copy.copied(name), re.M)
    for make in va.ATTENTION[name]:
        mechanism, options = make.args
        ours, theirs = make(24, 4, rotary=50), alone[mechanism.__name__]
        options = {key: alone[x.__name__] if callable(x) else x for key, x in options.items()}
        if not isinstance(mechanism, type):
            options, theirs = options | {"mechanism": theirs}, alone["Attention"]
        theirs = theirs(24, 4, rotary=50, **options)
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(theirs(x, GRID), ours(x, GRID))
