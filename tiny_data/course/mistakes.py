"""The mistakes of mistakes.md: edits of right answers, and which of them explain what came back."""

import functools
import re

import torch

from . import calling, handout


@functools.cache
def known(name):
    """{words of a mistake: the text of the function with it}."""
    code, found = handout.code_of(name), {}
    for line in re.findall(r"^- .*", handout.section("mistakes.md", name), re.M):
        words, edits = line[2:].split(": `", 1)
        text = code
        for old, new in re.findall(r"`([^`]*)` -> `([^`]*)`", "`" + edits):
            assert old in text, f"mistakes.md: {old!r} is not in {name}"
            text = text.replace(old, new)
        found[words] = text
    return found


@functools.cache
def function_of(name, text):
    """A function from its text, among right ones."""
    space = dict(handout.reference())
    exec(text, space)
    return space[name]


def explained(name, outcomes):
    """The words of the mistakes that come back with the same in all these cases."""
    found = known(name).items()
    return [words for words, x in found if all(is_same(function_of(name, x), y) for y in outcomes)]


@functools.cache
def wrong_answer(function, case):
    """What a function with a mistake comes back with, or None after an error."""
    try:
        return calling.answer(function, case.inputs() | {"derivatives": False})["value"]
    except Exception:
        return None


def is_same(function, outcome):
    found, wrong = outcome.reply["value"], wrong_answer(function, outcome.case)
    if torch.is_tensor(found) and torch.is_tensor(wrong):  # NaN where NaN is
        found, wrong = (x.double().nan_to_num(7e7, 8e8, -8e8) for x in (found, wrong))
    return wrong is not None and not calling.difference(found, wrong, 10 * outcome.case.tolerance)
