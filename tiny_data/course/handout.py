"""What students get: the file with holes, the sheet, check.py and its data; and the key."""

import ast
import functools
import inspect
import re
import shutil
import textwrap
from pathlib import Path

import torch

from . import calling
from .cases import draws
from .questions import ANSWERS_ELSEWHERE, QUESTIONS

HERE = Path(__file__).parent
FILE = HERE.parents[1] / "video_attention.py"
MEASURE = ["window_costs", "prototype_errors"]  # the file does not have these, mistakes.md does
LEFT_OUT = ["# Left out of the handout: it is, or would answer, another question."]


def section(file, name):
    """What stands below a heading of a text, without "why" questions."""
    text = re.split(rf"^#+ {name}$", (HERE / file).read_text("utf-8"), flags=re.M)[1]
    return re.split(r"\n#|\n\*\*Why", text)[0].strip()


def code_of(name):
    return section("mistakes.md", name).split("```")[1].removeprefix("python\n")


@functools.cache
def source():
    """The right answers: video_attention.py, and below it the functions of question 10."""
    return "\n".join([FILE.read_text("utf-8"), *(code_of(name) for name in MEASURE)])


@functools.cache
def reference():
    space = {"__name__": "reference"}
    exec(source(), space)
    return space


@functools.cache
def definitions():
    """{name: node} of the functions of the file and of its methods."""
    nodes = reversed(list(ast.walk(ast.parse(source()))))  # outermost last
    return {x.name: x for x in nodes if isinstance(x, ast.FunctionDef)}


def text_of(name):
    node = definitions()[name]
    first = min([node.lineno, *(x.lineno for x in node.decorator_list)])
    return "\n".join(source().split("\n")[first - 1 : node.end_lineno]) + "\n"


def student_file(wanted, hints=False):
    """The file with holes. Functions of other questions are left out too."""
    holes = dict.fromkeys(ANSWERS_ELSEWHERE, LEFT_OUT)
    for question in QUESTIONS:
        for f in question.functions:
            holes[f.name] = hole(question, f, hints) if question in wanted else LEFT_OUT
    lines = source().split("\n")
    for name in sorted(holes, key=lambda name: -definitions()[name].lineno):
        node = definitions()[name]
        body = node.body[1:] if ast.get_docstring(node) else node.body
        first = body[0].lineno - 1
        while lines[first - 1].strip().startswith("#"):
            first -= 1
        new = [*holes[name], f'raise NotImplementedError("{name} is not written yet")']
        lines[first : body[-1].end_lineno] = [" " * body[0].col_offset + line for line in new]
    return "\n".join(lines)


def hole(question, f, hints):
    text = f"Question {question.number}, {f.points:g} points. {section('sheet.md', f.name)}"
    steps = re.findall(r"^\d.*", section("hints.md", f.name), re.M) if hints else []
    return [f"# {line}" for x in [text, *steps] for line in textwrap.wrap(x, 92)]


def sheet(wanted):
    """The sheet of these questions, with the points and parts of the table of questions."""
    head, *bodies = re.split(r"^(?=## )", (HERE / "sheet.md").read_text("utf-8"), flags=re.M)
    rows, found = ["| question | functions | points | hours |", "|---|---|---|---|"], []
    for q in wanted:
        names = ", ".join(f"`{f.name}` {f.points:g}" for f in q.functions)
        rows.append(f"| {q.number} {q.title} | {names} | {q.points:g} + 3 | {q.points / 4:g} |")
        body = bodies[q.number - 1]
        for f in q.functions:
            shares = ", ".join(f"{part} {percent}%" for part, percent in f.parts.items())
            title = f"### `{f.name}`: {f.points:g} points\n\n({shares})\n\n"
            body = body.replace(f"### {f.name}\n", title)
        found.append(body)
    return "\n".join(x.strip() + "\n" for x in [head.format(table="\n".join(rows)), *found])


def key(wanted):
    found = ["# Answer key", section("key.md", "Answer key")]
    for q in wanted:
        found.append(f"## {q.number}. {q.title}, {q.points:g} + 3 points")
        found += [f"```python\n{text_of(f.name)}```" for f in q.functions]
        found += [f"### {q.number}{x}\n\n{section('key.md', f'{q.number}{x}')}" for x in "ab"]
    return "\n\n".join(found)


@functools.cache
def cases_of(function, seed):
    """Cases without tags first, then those of one part, then those of several."""
    cases = function.cases(draws(function.name, seed))
    for case in cases:
        case.names = list(inspect.signature(reference()[function.name]).parameters)
        case.price = case.derivatives and "price" in function.parts
        case.derivatives &= "gradients" in function.parts
    return sorted(cases, key=lambda case: len(case.tags))


def check_data(wanted):
    """Ten cases of each function with right results: one for each part, and for some crossings."""
    found = []
    for f in [f for q in wanted for f in q.functions]:
        firsts = {}
        for case in cases_of(f, 0):
            firsts.setdefault(case.tags, case)
        for case in list(firsts.values())[:10]:
            about = dict(function=f.name, words=case.words(), part=(*case.tags, "values")[0])
            found.append(vars(case) | calling.answer(reference()[f.name], vars(case)) | about)
    return found


def write(wanted, folder, hints=False):
    (folder / ".github" / "workflows").mkdir(parents=True, exist_ok=True)
    (folder / "student.py").write_text(student_file(wanted, hints), "utf-8")
    (folder / "assignment.md").write_text(sheet(wanted), "utf-8")
    shutil.copy(HERE / "check.yml", folder / ".github" / "workflows")
    shutil.copy(HERE / "check.py", folder)
    shutil.copy(HERE / "calling.py", folder / "check_calls.py")
    torch.save(check_data(wanted), folder / "check_data.pt")
