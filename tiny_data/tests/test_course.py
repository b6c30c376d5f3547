"""The proof that the course kit grades, a sample of it. COURSE=whole is all of it."""

import ast
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from tiny_data import mistakes as mutator
from tiny_data.course import __main__ as course
from tiny_data.course import grading, handout
from tiny_data.course.questions import QUESTIONS

WHOLE = os.environ.get("COURSE") == "whole"
WANTED = QUESTIONS if WHOLE else QUESTIONS[:3]
POINTS = sum(q.points for q in WANTED)
FUNCTIONS = [f for q in QUESTIONS for f in q.functions]
BLANK, CODES = handout.student_file(QUESTIONS), {f.name: handout.code_of(f.name) for f in FUNCTIONS}
NAMED = [(f, words) for f in FUNCTIONS for words in grading.known(f.name)]
HELP, *CHEATS = (handout.HERE / "cheats.md").read_text("utf-8").split("\n## ")
torch.set_num_threads(1)


def sample(items, some):
    return list(items) if WHOLE else list(items)[::some]


def renamed(code):
    for n, x in enumerate(ast.parse(code).body[0].args.args):
        code = code if x.arg == "causal" else re.sub(rf"\b{x.arg}\b", f"p{n}", code)
    return code


def style(way):
    mine = [code.replace("def ", "def my_", 1) for code in CODES.values()]
    return "\n".join([BLANK, *mine, *(way.format(name) for name in CODES)])


OBJECT = "class {0}(nn.Module):\n    forward = staticmethod(my_{0})\n{0} = {0}()"
METHOD = "class {0}:\n    f = staticmethod(my_{0})\n{0} = {0}.f"
RIGHT = {
    "the file itself": handout.source(),
    "a helper called random.py": f"{BLANK}\nfrom random import *\n",
    "plain torch": "\n".join([BLANK, *CODES.values()]),
    "the functions alone": "\n".join(CODES.values()),
    "parameters renamed": "\n".join([BLANK, *map(renamed, CODES.values())]),
    "other names": style("{0} = my_{0}"),
    "lambdas": style("{0} = lambda *a, **o: my_{0}(*a, **o)"),
    "objects": style(OBJECT),
    "methods": style(METHOD),
}


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text.replace("FILE", str(handout.FILE)), re.DOTALL)


def graded(folder, text, **beside):
    for name, other in {"student": text, **beside}.items():
        (folder / f"{name}.py").write_text(other, "utf-8")
    result = grading.grade("x", folder / "student.py", WANTED, seed=5)
    failed = [words for marks in result.marks.values() for words in marks.failed.values()]
    return result.points, "\n".join([*result.notes, *failed])


def outcomes(f, text):
    for case, right in zip(handout.cases_of(f, 5), grading.right_answers(f, 5)):
        yield grading.judge(case, grading.answer_of(f.name, text, case), right)


@pytest.mark.parametrize("name", sample(RIGHT, 9))
def test_right_files_get_full_marks(name, tmp_path):
    points, said = graded(tmp_path, RIGHT[name], random=RIGHT["plain torch"])
    assert points == POINTS, said


@pytest.mark.parametrize("f, words", sample(NAMED, 20), ids=lambda x: getattr(x, "name", x))
def test_known_mistakes_lose_marks_and_are_named(f, words):
    marks = grading.mark(f, list(outcomes(f, grading.known(f.name)[words])))
    assert words in " ".join(marks.failed.values()) and marks.points < f.points


@pytest.mark.parametrize("f", sample(FUNCTIONS, 8), ids=lambda f: f.name)
def test_small_mistakes_by_rule_lose_marks(f):
    survived, source = [], handout.source()
    for mistake in mutator.sample(source, 1000 if WHOLE else 4, 1, f.name):
        node = mutator.definitions(mutator.with_mistake(source, mistake))[f.name]
        child = os.fork()  # some mistakes end the process, or never end
        if child == 0:
            signal.alarm(60)
            os._exit(any(x.wrong for x in outcomes(f, ast.unparse(node))))
        if os.waitpid(child, 0)[1] == 0:
            survived.append(mutator.lines(source, mistake)[2])
    equal = "assert", "only checks", "cheaper", "e-06"  # they refuse, or make no difference
    survived = [line for line in survived if not any(words in line for words in equal)]
    assert len(survived) <= (12 if WHOLE else 0), survived  # equal programs, read by a person


@pytest.mark.parametrize("cheat", sample(CHEATS, 40), ids=lambda x: x.split(":")[0])
def test_hostile_files_get_nothing_and_are_named(cheat, tmp_path):
    words, (code, *helper) = cheat.split("\n")[0].split(": ")[1], blocks(cheat)
    text = code if words == "SyntaxError" else "\n".join([BLANK, *blocks(HELP), code])
    points, said = graded(tmp_path, text, **{"json": x for x in helper})
    assert points <= 0.15 * POINTS and words in said


def test_a_class_is_graded_whatever_ends(tmp_path):
    """Ann has no file; bob's grading ended everything twice, cy's once."""
    (tmp_path / "in" / "ann").mkdir(parents=True)
    (tmp_path / "out" / "started").mkdir(parents=True)
    for name, times in (("bob", "xx"), ("cy", "x")):
        (tmp_path / "in" / f"{name}.py").write_text(CODES["attend"])
        (tmp_path / "out" / "started" / name).write_text(times)
    course.main(["grade", f"{tmp_path}/in", "1", "--to", f"{tmp_path}/out", "--resume"])
    files = sorted((tmp_path / "out" / "gradescope").iterdir())
    ann, bob, cy = (json.loads(x.read_text()) for x in files)
    assert (ann["score"], bob["score"], cy["score"]) == (0, 0, 2)
    assert "missing" in ann["output"] and "ended" in bob["output"]


def test_the_handout_has_holes_and_a_check_that_says_where_to_begin(tmp_path):
    course.main(["handout", "1", "--to", str(tmp_path), "--hints"])
    text = (tmp_path / "student.py").read_text()
    assert text.count("is not written yet") >= len(FUNCTIONS) and "softmax(dim" not in text
    for scores, wrong in (("q", True), ("q / scale", False)):
        codes = CODES["attend"].replace("q / scale", scores), CODES["attention_weights"]
        (tmp_path / "student.py").write_text("\n".join([text, *codes]))
        words = [sys.executable, "-m", "pytest", "-q", "check.py"]
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == wrong and ("Begin with attend" in ran.stdout) == wrong


def test_the_table_is_whole():
    for f in FUNCTIONS:
        tags = {"values", "gradients", "price"}.union(*(x.tags for x in handout.cases_of(f, 5)))
        assert sum(f.parts.values()) == 100 and set(f.parts) <= tags
    assert sum(q.points for q in QUESTIONS) == 70 and "softmax" in handout.key(QUESTIONS)
