"""Small mistakes in video_attention.py, and how many of them turn a test red.

    python -m tiny_data.mistakes                       40 mistakes by rule, drawn at random
    python -m tiny_data.mistakes --sample 200 --seed 1
    python -m tiny_data.mistakes --definition attend   only in one definition
    python -m tiny_data.mistakes --field               those of mistakes.txt, which no rule makes

A mistake by rule changes one node of the syntax tree: another operator, a constant one more, two
letters of a pattern swapped. Each is a file of its own, on which test_video_attention.py runs until
the first red test; tests whose text names the definition come first. Prints the rate and what has
survived, if anything with status 1. A survivor is closed by a test, or its reason stands in EQUAL.
"""

import argparse
import ast
import copy
import functools
import inspect
import itertools
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import types
from collections import Counter, namedtuple
from pathlib import Path

import pytest
import torch  # noqa: F401  before processes fork, so that none imports it again
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SUBJECT, TESTS = HERE.parent / "video_attention.py", HERE.parent / "test_video_attention.py"
FIELD = HERE / "mistakes.txt"
ASKED = "not TestFile and not overfits"  # not how it looks, nothing slow
SECONDS, BYTES = 300, 16 * 2**30  # for one mistake; what takes more is red

Mistake = namedtuple("Mistake", "definition, rule, start, end, new")  # source[start:end] = new

# Mistakes that compute the same. "definition: the line after it": why
EQUAL = {
    "attend_linearly: if I * J * (M + e) <= (I + J) * M * e:"
    "  # with few tokens, as along time, weights are cheaper": "where both orders cost the same",
    "most_orthogonal_subset: closest = torch.maximum(newest, closest)  # (..., 1, n)": "symmetric",
}

# ==== RULES: a node of the syntax tree -> nodes, or texts, to stand in its place ==================

OTHER = dict(Add="Sub", Sub="Add", Mult="Div", Div="Mult", FloorDiv="Mult", Mod="FloorDiv")
OTHER |= dict(Pow="Mult", MatMult="Mult", BitOr="BitAnd", BitAnd="BitOr", And="Or", Or="And")
OTHER |= dict(Lt="LtE", LtE="Lt", Gt="GtE", GtE="Gt", Eq="NotEq", NotEq="Eq")
OTHER |= dict(Is="IsNot", IsNot="Is", In="NotIn", NotIn="In")
OTHER = {getattr(ast, before): getattr(ast, after)() for before, after in OTHER.items()}
SIBLING = dict(mean="sum", sum="mean", amax="amin", amin="amax", max="min", min="max")
SIBLING |= dict(argmax="argmin", argmin="argmax", softmax="log_softmax", maximum="minimum")
SIBLING |= dict(ones="zeros", zeros="ones", zeros_="ones_", floor="ceil", ceil="floor")
SIBLING |= dict(cos="sin", sin="cos", repeat_interleave="repeat", relu="gelu")
LEFT_OUT = ("detach", "abs", "square", "exp", "clamp_min", "round", "float")


def changed(node, field, values):
    """Copies of a node, each with another value of one field."""
    for value in values:
        node = copy.copy(node)
        setattr(node, field, value)
        yield node


def shorter(items):
    """Every list with one entry less."""
    return [items[:i] + items[i + 1 :] for i in range(len(items))]


def swapped(items):
    """Every list with two neighbours in each other's place."""
    return [items[:i] + items[i : i + 2][::-1] + items[i + 2 :] for i in range(len(items) - 1)]


def operators(node):
    """+ for -, < for <=, and for or; no minus, no not."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)):
        yield from changed(node, "op", [OTHER[type(node.op)]])
    if isinstance(node, ast.Compare):
        new = [OTHER[type(op)] for op in node.ops]
        rows = [[*node.ops[:i], new[i], *node.ops[i + 1 :]] for i in range(len(new))]
        yield from changed(node, "ops", rows)
    if isinstance(node, ast.UnaryOp):
        yield node.operand


def constants(node):
    """A number one more or less, or twice as large; a truth value turned."""
    match node:
        case ast.Constant(bool(value)):
            yield from changed(node, "value", [not value])
        case ast.Constant(float(value)):
            yield from changed(node, "value", [2 * value if value else 0.5])
        case ast.Constant(int(value)):
            yield from changed(node, "value", [value + 1, value - 1])


def arguments(node):
    """An option or the last argument less; two neighbours swapped, also in a tuple."""
    if isinstance(node, ast.Call):
        yield from changed(node, "args", [node.args[:-1]])
        yield from changed(node, "keywords", shorter(node.keywords))
        yield from changed(node, "args", swapped(node.args))
    if isinstance(node, ast.Tuple):
        yield from changed(node, "elts", swapped(node.elts))


def siblings(node):
    """Another reduction or function of its kind."""
    field = {ast.Attribute: "attr", ast.Name: "id", ast.Constant: "value"}.get(type(node))
    name = getattr(node, field) if field else None
    is_variable = isinstance(node, ast.Name) and name not in ("max", "min")
    if name in SIBLING and not is_variable:
        yield from changed(node, field, [SIBLING[name]])


def letters(node):
    """Two neighbouring letters of a pattern for einops or einsum swapped, on one side of it."""
    text = ast.unparse(node) if isinstance(node, (ast.Constant, ast.JoinedStr)) else ""
    if not re.search(r"->|\bh\b.* \bd\b", text):
        return
    places = re.finditer(r"\b[A-Za-z]\w*\b" if " " in text else r"[A-Za-z]", text)
    for a, b in itertools.pairwise(places):
        gap = text[a.end() : b.start()]
        if "->" not in gap and "{" not in text[: a.start()]:
            yield text[: a.start()] + b.group() + gap + a.group() + text[b.end() :]


def terms(node):
    """A term, an entry of a list, an end of a slice or a .detach() less; one side of an if."""
    match node:
        case ast.BinOp(one, _, other) | ast.IfExp(_, one, other):
            yield from (one, other)
        case ast.Slice():
            yield from (*changed(node, "lower", [None]), *changed(node, "upper", [None]))
        case ast.List():
            yield from changed(node, "elts", shorter(node.elts))
        case ast.Call(ast.Attribute(value, name)) if name in LEFT_OUT:
            yield value
        case ast.Expr():
            yield "pass"


RULES = [operators, constants, arguments, siblings, letters, terms]


def definitions(source):
    """{name: node} of every function, class and table at the top of a file."""
    found = {}
    for node in ast.parse(source).body:
        named = getattr(node, "targets", [node])[0]
        found[getattr(named, "name", None) or getattr(named, "id", None)] = node
    return found


def span(source, node):
    """Where the text of a node begins and ends."""
    starts = [0, 0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
    return starts[node.lineno] + node.col_offset, starts[node.end_lineno] + node.end_col_offset


def code_below(node):
    """All nodes of a definition but docstrings, the messages of asserts and parts of f-strings."""
    for child in ast.iter_child_nodes(node):
        is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        is_message = isinstance(node, ast.Assert) and child is node.msg
        if not is_docstring and not is_message and not isinstance(node, ast.JoinedStr):
            yield child
            yield from code_below(child)


def mistakes_by_rule(source):
    """Every mistake that a rule can make, also some that do not parse or change nothing."""
    for definition, top in definitions(source).items():
        nodes = code_below(top) if definition else ()
        for node, rule in itertools.product(nodes, RULES):
            for new in rule(node):
                text = new if isinstance(new, str) else ast.unparse(new)
                text = f"({text})" if isinstance(new, (ast.BinOp, ast.BoolOp)) else text
                yield Mistake(definition, rule.__name__, *span(source, node), text)


def mistakes_of_the_field(source):
    """Those of mistakes.txt, each at the one place in its definition."""
    nodes, found, stale = definitions(source), [], []
    for line in FIELD.read_text().splitlines():
        if line and not line.startswith("#"):
            definition, edit = line.split(": ", 1)
            old, new = edit.split(" => ")
            start, end = span(source, nodes[definition]) if definition in nodes else (0, 0)
            at = source.find(old, start, end)
            found.append(Mistake(definition, "field", at, at + len(old), new))
            stale += [line] if source.count(old, start, end) != 1 else []
    assert not stale, "not once in the file:\n" + "\n".join(stale)
    return found


def with_mistake(source, mistake):
    return source[: mistake.start] + mistake.new + source[mistake.end :]


def lines(source, mistake):
    """(number, the line as it is, the line with the mistake)"""
    n = source.count("\n", 0, mistake.start)
    before, after = (text.splitlines()[n] for text in (source, with_mistake(source, mistake)))
    return n + 1, before.strip(), after.strip()


@functools.lru_cache(maxsize=2)
def tree(source):
    return ast.dump(ast.parse(source))


def is_another_program(source, mistake):
    """Whether it parses, its syntax tree is another, and no one has shown that it is equal."""
    is_equal = f"{mistake.definition}: {lines(source, mistake)[2]}" in EQUAL
    try:
        return not is_equal and tree(with_mistake(source, mistake)) != tree(source)
    except SyntaxError:
        return False


def sample(source, count, seed, definition=None):
    """A random sample, with as many mistakes of each rule as there are."""
    found = [one for one in mistakes_by_rule(source) if definition in (None, one.definition)]
    random.Random(seed).shuffle(found)
    of_each = [[one for one in found if one.rule == rule.__name__] for rule in RULES]
    in_turns = itertools.chain(*itertools.zip_longest(*of_each))
    usable = (one for one in in_turns if one and is_another_program(source, one))
    return list(itertools.islice(usable, count))


def named_first(definition):
    """A plugin for pytest: the tests whose text names the definition come first."""
    name, text = re.compile(rf"\b{definition}\b"), functools.cache(inspect.getsource)

    def pytest_collection_modifyitems(items):
        items.sort(key=lambda item: not name.search(text(item.cls or item.function)))

    return types.SimpleNamespace(pytest_collection_modifyitems=pytest_collection_modifyitems)


def survives(job):
    """Whether every test passes on a text of the file."""
    path, text, definition = job
    Path(path).write_text(text)
    os.environ["VIDEO_ATTENTION"] = path
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C, which is red
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    options = ["-xq", "-p", "no:cacheprovider", "-W", "ignore", "-k", ASKED]
    return pytest.main([*options, str(TESTS)], plugins=[named_first(definition)]) == 0


def survivors_of(source, mistakes, processes):
    """The mistakes that no test notices."""
    texts = [(source, "attend")]  # the file as it is
    texts += [(with_mistake(source, one), one.definition) for one in mistakes]
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(f"{folder}/mistake{n}.py", *text) for n, text in enumerate(texts)]
        with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
            alive = list(tqdm(pool.imap(survives, jobs), total=len(jobs), unit="mistake"))
    if not alive[0]:
        sys.exit("the file as it is does not pass: run pytest first")
    return [one for one, is_alive in zip(mistakes, alive[1:]) if is_alive]


def report(source, mistakes, survivors):
    """Prints the survivors and how many of each rule turned a test red."""
    for one in survivors:
        number, before, after = lines(source, one)
        print(f"survived: line {number}, {one.definition}, {one.rule}\n    {before}\n    {after}")
    asked, alive = (Counter(one.rule for one in ones) for ones in (mistakes, survivors))
    for ones in (asked, alive):
        ones["all"] = ones.total()
    for rule, count in asked.items():
        red = count - alive[rule]
        print(f"{rule:12}{red:4} of {count} turned a test red, {red / max(1, count):.1%}")


def main(words=None):
    parser = argparse.ArgumentParser("python -m tiny_data.mistakes")
    parser.add_argument("--sample", type=int, default=40, help="how many, by rule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--field", action="store_true", help="those of mistakes.txt instead")
    parser.add_argument("--definition", metavar="NAME", help="only in this one")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args(words)
    source = SUBJECT.read_text()
    mistakes = sample(source, args.sample, args.seed, args.definition)
    if args.field:
        field = mistakes_of_the_field(source)
        mistakes = [one for one in field if args.definition in (None, one.definition)]
    survivors = survivors_of(source, mistakes, args.jobs)
    report(source, mistakes, survivors)
    sys.exit(len(survivors) > 0)


if __name__ == "__main__":
    main()
