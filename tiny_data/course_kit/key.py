"""The answer key: right code for every function, and what earns the points of the "why"
questions.
"""

import re
import types

import torch

from . import handout, sheet
from .sheet import KIT


def answer_key(wanted):
    """Markdown for the teacher."""
    text = (KIT / "key.md").read_text(encoding="utf-8")
    head, *sections = re.split(r"^## ", text, flags=re.M)
    rubric = {
        section.split("\n")[0].strip(): section.partition("\n")[2].strip() for section in sections
    }
    parts = [head.strip()]
    source = handout.whole_source()
    known = handout.definitions(source)
    for question in wanted:
        parts.append(
            f"# Question {question.number}. {question.title}: {question.points:g} + 3 points"
        )
        for function in question.functions:
            node = known[function.name]
            first = min([node.lineno, *(x.lineno for x in node.decorator_list)])
            code = "\n".join(source.split("\n")[first - 1 : node.end_lineno])
            parts.append(f"`{function.name}`, {function.points:g} points\n\n```python\n{code}\n```")
        for letter in "ab":
            parts.append(
                f"**Why {question.number}{letter}**, 1.5"
                f" points\n\n{rubric[f'{question.number}{letter}']}"
            )
    text = "\n\n".join(parts)
    if "{window_table}" in text:
        text = text.replace("{window_table}", window_table()).replace(
            "{prototype_table}", prototype_table()
        )
    return text


def whole_module():
    """The file with right answers to every question, executed."""
    module = types.ModuleType("answers")
    exec(compile(handout.whole_source(), "video_attention.py", "exec"), module.__dict__)
    return module


def window_table():
    windows = [0, 1, 2, 4, 8]
    costs = whole_module().window_costs((8, 14, 14), windows, 12, 64)
    return ", ".join(f"window {w} {cost / 1e9:.3f} G" for w, cost in zip(windows, costs))


def prototype_table():
    counts = [4, 8, 16, 32, 64]
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 144, 64, dtype=torch.float64).unbind(0)
    errors = whole_module().prototype_errors(q, k, v, (4, 6, 6), counts)
    return ", ".join(f"{count} {error:.2f}" for count, error in zip(counts, errors))
