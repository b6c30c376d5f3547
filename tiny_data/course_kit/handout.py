"""What students get: the file with holes, the check file and the sheet."""

import ast
import re
import textwrap
from functools import cache, lru_cache
from pathlib import Path

from . import sheet
from .worker import NOT_WRITTEN

KIT = Path(__file__).parent
REFERENCE = KIT.parent.parent / "video_attention.py"
MEASURES = ["window_costs", "prototype_errors"]
LEFT_OUT = {  # what would answer a question elsewhere in the file, and what stands there instead
    "attend_along_trajectories_fast": "return attend_along_trajectories(y, proj_q, proj_kv)",
    "summary_attention": "return mixing_attention(q, k, v, grid, moved=0.0, summary=True)",
    "orthoformer_per_frame": 'raise NotImplementedError("left out: it would answer a question")',
}
ANSWERS = {  # the functions whose answers these hold
    "attend_along_trajectories_fast": {"attend_along_trajectories"},
    "summary_attention": {"space_attention", "window_attention", "mixing_attention"},
    "orthoformer_per_frame": {"orthoformer_attention", "attend_per_frame"},
}


# ==== CUTTING =================================================================================


@lru_cache(maxsize=8)
def definitions(source, name="the file"):
    """{name: node} of the functions and classes of a text and, as Class.method, their methods, in
    order.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{name} does not parse: line {error.lineno}: {error.msg}") from None
    known = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            known[node.name] = node
        if isinstance(node, ast.ClassDef):
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
            known |= {f"{node.name}.{method.name}": method for method in methods}
    return known


def functions_of(names, known):
    """The functions that the names mean; a class means all its methods but __init__."""
    unknown = [name for name in names if name not in known]
    if unknown:
        there = textwrap.fill(
            ", ".join(known), 100, initial_indent="    ", subsequent_indent="    "
        )
        raise ValueError(f"the file does not define {', '.join(unknown)}. It has\n{there}")
    functions = []
    for name in names:
        methods = [
            key for key in known if key.startswith(f"{name}.") and not key.endswith(".__init__")
        ]
        if isinstance(known[name], ast.ClassDef) and not methods:
            raise ValueError(f"{name} has no methods of its own that could be blanked")
        functions += methods if isinstance(known[name], ast.ClassDef) else [name]
    return set(functions)


def cut(source, replacements):
    """The text with new lines in the place of these functions' bodies; signatures, docstrings and
    the rest stay.
    """
    known, lines = definitions(source), source.split("\n")
    for name in sorted(replacements, key=lambda name: -known[name].lineno):
        node = known[name]
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if not body:
            continue  # nothing but a docstring
        first, last = body[0].lineno, body[-1].end_lineno
        before = lines[first - 1][: body[0].col_offset]  # the indentation, or "def f(x): "
        while (
            lines[first - 2].strip().startswith("#")
        ):  # a comment above the first line is part of the body
            first -= 1
        new = replacements[name]
        if before.strip():  # the body stands on the line of its def
            new = [line for line in new if not line.startswith("#")]
        lines[first - 1 : last] = [(before + line).rstrip() for line in new]
    return "\n".join(lines)


def not_written(name):
    return f'raise NotImplementedError("{name} {NOT_WRITTEN}")'


def blank(source, names, hints=False):
    """The text without the bodies of these definitions."""
    functions = functions_of(names, definitions(source))
    return cut(
        source,
        {name: [*(hint_lines(name) if hints else []), not_written(name)] for name in functions},
    )


# ==== THE HOLES ===============================================================================


def comment(text, first="", rest=""):
    """Lines of a comment, at most 96 columns, as they stand below an indentation of four."""
    return textwrap.wrap(
        text,
        96,
        initial_indent="# " + first,
        subsequent_indent="# " + (rest or " " * len(first)),
        break_long_words=False,
    )


def hint_lines(name):
    lines = []
    for step in re.split(r"\n(?=\d\.)", sheet.hints().get(name, "")):
        lines += comment(" ".join(step.split()), "  ", "     ") if step else []
    return [*comment("Hints, step by step:"), *lines] if lines else []


def hole(question, function, hints):
    """What stands in the place of an answer: the question, its points and every rule that is
    tested.
    """
    points = f"{function.points:g} of {question.points:g} points"
    lines = comment(f"Question {question.number}, {function.name}, {points}.")
    lines += comment(function.text, "Write: ", "    ")
    lines += comment("Tested:")
    for part, (percent, text) in function.parts.items():
        lines += comment(f"{part}, {percent}%: {text}", "  ", "    ")
    return [*lines, *(hint_lines(function.name) if hints else []), not_written(function.name)]


@cache
def measure_source():
    """The functions of question 10, which stand at the end of the file."""
    text = (KIT / "measure.py").read_text(encoding="utf-8")
    return text[text.index("def window_costs") :]


@cache
def whole_source():
    """The file with right answers to every question."""
    text = REFERENCE.read_text(encoding="utf-8")
    text = (
        text.rstrip("\n")
        + "\n\n\n# ==== MEASURE: questions about cost and error "
        + "=" * 53
        + "\n"
    )
    return (
        text.replace(
            "\nimport torch\n",
            "\nimport torch\nfrom torch.utils.flop_counter import FlopCounterMode\n",
            1,
        )
        + measure_source()
    )


def student_file(wanted, hints=False):
    """The file that is handed out: a hole for every function of these questions."""
    asked = {f.name: hole(q, f, hints) for q in wanted for f in q.functions}
    return with_holes(asked)


def with_holes(holes):
    """The whole file with these bodies replaced, and without what would answer them elsewhere."""
    source = whole_source()
    if not set(MEASURES) & set(holes):
        source = source[: source.index("\n\n\n# ==== MEASURE")] + "\n"
        source = source.replace("from torch.utils.flop_counter import FlopCounterMode\n", "", 1)
    known = definitions(source)
    others = {
        name: [f"# Left out of the handout: it would answer a question.", line]
        for name, line in LEFT_OUT.items()
        if name in known and ANSWERS[name] & set(holes)
    }
    return cut(source, others | holes)


@cache
def with_answers(names):
    """The whole file with right answers to these functions, and holes for all others that are
    asked.
    """
    asked = [f.name for q in sheet.questions().values() for f in q.functions]
    return with_holes({name: [not_written(name)] for name in asked if name not in names})


def contracts(names):
    """{function: the text of the decorator that states its shapes}, where it has one."""
    source = whole_source()
    known, lines = definitions(source), source.split("\n")
    found = {}
    for name in names:
        for node in getattr(known.get(name), "decorator_list", [])[-1:]:
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            found[name] = text[node.col_offset :]  # without the @; it ends with its line
    return found


def answer_lines():
    """Every line of a right answer that says something: long, and in no other place of the file."""
    source = whole_source()
    known, lines = definitions(source), source.split("\n")
    found = []
    for question in sheet.questions().values():
        for function in question.functions:
            node = known[function.name]
            body = [
                x
                for x in node.body
                if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))
            ]
            found += [
                (function.name, line.strip())
                for line in lines[body[0].lineno - 1 : node.end_lineno]
            ]
    general = (
        "T, H, W = grid",
        "B, h, N, T, d = y.shape",
        "return out_of_groups(",
        "T, C = grid[0]",
        "C = q.shape[2]",
    )
    return [
        (name, line)
        for name, line in found
        if len(line) > 24
        and not line.startswith(general)
        and not line.startswith(("#", "require", "T, C"))
    ]
