"""Makes check.py and its data: the checks of the kit on inputs from a formula, reduced to sums."""

import inspect
import json
import math
from pathlib import Path

import torch

from . import worker
from .checks import (
    Gradients,
    Handed,
    Indices,
    Layer,
    Make,
    Numbers,
    Price,
    Refuses,
    Sight,
    Values,
    picture,
)
from .suite import FUNCTIONS

TEMPLATE = Path(__file__).with_name("check_template.py")
CASES = {"values": 2}  # of a part; of every other part one


def wave(number, *shape):
    """Numbers between -1.7 and 1.7 that look random, the same everywhere."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    x = torch.sin(12.9898 * (i + 1) + 78.233 * (number + 1)) * 43758.5453
    return (3.4 * (x - x.floor()) - 1.7).reshape(shape)


class Waves(Make):
    """Inputs that check.py can make again."""

    def __init__(self, first):
        self.number, self.recipes, self.generator = first, {}, None

    def __call__(self, *shape, scale=1.0, positive=False):
        x = wave(self.number, *shape)
        x = (x.abs() + 0.1 if positive else x) * scale
        self.recipes[id(x)] = (
            x,
            dict(number=self.number, shape=list(shape), scale=scale, positive=positive),
        )
        self.number += 1
        return x


class NoRecipe(Exception):
    pass


def written(x, recipes):
    """An argument as JSON."""
    if isinstance(x, torch.Tensor):
        if id(x) not in recipes:
            raise NoRecipe
        return recipes[id(x)][1]
    if isinstance(x, Handed):
        return {"function": x.name}
    if isinstance(x, Layer):
        return {"layer": [written(y, recipes) for y in x.tensors()]}
    if isinstance(x, tuple):
        return {"tuple": [written(y, recipes) for y in x]}
    if isinstance(x, list):
        return [written(y, recipes) for y in x]
    return x


def sums(x):
    x = x.detach().double()
    x = (x * wave(999, *x.shape)).movedim(-2, 0) if x.ndim > 1 else x[:, None]
    return x.flatten(1).sum(1)


def rounded(x):
    return [round(y, 4) for y in x.tolist()]


def values(check, words):
    """A Values check as data: what should come out, and what comes out of known mistakes, as
    sums.
    """
    right = check.expected
    case = dict(
        kind="values",
        shapes=[list(x.shape) for x in right],
        sums=[rounded(sums(x)) for x in right],
        mistakes=[],
    )
    case["pick"] = None
    if check.options.get("return_weights"):
        case["pick"] = (
            0
            if check.part == "values"
            or right[0].shape == check.args[0].shape[:3] + check.args[0].shape[4:]
            else 1
        )
    totals = {}
    for text, x in check.wrong:
        if x.shape == right[0].shape and x.isfinite().all():
            total = round((sums(x) * wave(998, len(sums(x)))).sum().item(), 4)
            totals.setdefault(total, text)
    mine = [(sums(x) * wave(998, len(sums(x)))).sum().item() for x in right]
    for total, text in totals.items():
        if all(abs(total - x) > 1e-2 for x in mine):
            case["mistakes"].append([words.setdefault(text, len(words)), total])
    return case


def as_case(check, recipes, words):
    """A check as data for check.py, or None if it has no place there."""
    if isinstance(check, Values):
        case = values(check, words)
    elif isinstance(check, Sight):
        case = dict(
            kind="picture",
            query=list(check.query),
            picture=picture(check.right(), check.grid, check.query).split("\n"),
        )
    elif isinstance(check, Gradients):
        check.weight = wave(997, *check.weight.shape)
        found = check.expected[0][: len(check.which)]
        tensors = [isinstance(check.args[i], torch.Tensor) for i in check.which]
        if not all(tensors):
            return None
        case = dict(
            kind="gradients",
            leaves=list(check.leaves),
            which=list(check.which),
            sums=[round(sums(x).sum().item(), 4) for x in found],
        )
    elif isinstance(check, Refuses):
        case = dict(kind="error", shows=list(check.shows))
    elif isinstance(check, Price):
        case = dict(kind="price", allowed=check.allowed, spare=check.spare, formula=check.formula)
    else:
        return None
    options = {key: written(value, recipes) for key, value in check.options.items()}
    args = [written(x, recipes) for x in check.args]
    grid = list(check.grid) if check.grid else None
    return case | dict(
        name=check.name, part=check.part, label=check.label, args=args, options=options, grid=grid
    )


def cases_of(function, number, words):
    make = Waves(1000 * (1 + number))
    taken, found = {}, []
    for check in function(make):
        key = (check.part, type(check).__name__)
        if (
            taken.get(key, 0) >= CASES.get(check.part, 1)
            or check.grid is not None
            and math.prod(check.grid) == 1
        ):
            continue
        try:
            case = as_case(check, make.recipes, words)
        except NoRecipe:
            continue
        if case is not None:
            taken[key] = taken.get(key, 0) + 1
            found.append(case)
    order = ["picture", "values", "gradients", "price", "error"]
    return sorted(found, key=lambda case: (case["part"] != "values", order.index(case["kind"])))


def check_data(wanted):
    """The data of check.py for these questions."""
    makers = {function.__name__: (i, function) for i, function in enumerate(FUNCTIONS)}
    words, cases = {}, []
    for question in wanted:
        for function in question.functions:
            number, maker = makers[function.name]
            cases += [
                dict(question=question.number) | case for case in cases_of(maker, number, words)
            ]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    return '{"words":' + json.dumps(list(words), indent=0) + ',\n"cases":[\n' + lines + "\n]}\n"


def check_file(wanted):
    """The text of check.py: the template, and the functions that these questions hand over."""
    text = TEMPLATE.read_text(encoding="utf-8")
    functions = [
        inspect.getsource(wave),
        *(inspect.getsource(x) for x in worker.HANDED_OVER.values()),
    ]
    mark = "# WAVES, and functions that some questions hand over\n"
    return text.replace(mark, mark + "\n\n" + "\n\n".join(functions))
