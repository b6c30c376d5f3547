"""The course kit: what is handed out, how it is graded and what is said. These are samples;
`python -m tiny_data.course selftest` grades every known submission."""

import csv
import json
import os
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from tiny_data import course
from tiny_data.course_kit import (
    checks, grading, handout, oracles, process, reports, selftest, sheet, worker, zoo)  # fmt: skip
from tiny_data.course_kit.suite import suite

ROOT = Path(course.__file__).parents[1]

def grade(tmp_path, text, *words, name="student.py"):
    """The Result of a text, asked these questions."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return grading.Grader(sheet.chosen(words), seed=11).grade(path)

def right(*edits):
    return selftest.right_file() + "\n".join(edits)

def marks_of(result, name):
    return next(m for _, marks in result.questions for m in marks if m.function.name == name)

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The handout of two questions."""
    folder = tmp_path_factory.mktemp("handout")
    course.main(["handout", "1", "window_attention", "--hints", "--to", str(folder)])
    return folder

class TestSheet:
    def test_every_part_is_tested_and_every_test_is_a_part(self):
        checks = suite(1)
        for question in sheet.questions().values():
            assert question.points == 7
            for function in question.functions:
                assert {check.part for check in checks[function.name]} == set(function.parts)
                assert sum(percent for percent, _ in function.parts.values()) == 100
                assert "values" in function.parts and function.name in sheet.hints()
                assert function.name in handout.definitions(handout.whole_source())

    def test_questions_are_chosen_by_number_range_or_function(self):
        numbers = lambda *words: [question.number for question in sheet.chosen(words)]
        assert numbers() == list(range(1, 11)) and numbers("2-4", "attend") == [1, 2, 3, 4]
        for words in (("0",), ("11",), ("nobody",)):
            with pytest.raises(ValueError, match=f"no question {words[0]}"):
                sheet.chosen(words)

    @pytest.mark.parametrize(
        "word, told",
        (
            ("3-1", "use 1-3"),
            (",", "no question in ','"),
            ("", "no question in ''"),
            ("1-999999999", "no question 999999999"),
            ("1-99999999999", "no question 1-99999999999: use numbers 1 to 10"),
            ("0-4", "no question 0")))
    def test_what_names_no_question_is_not_all_of_them(self, word, told):
        """Nor is it counted out before it is compared, or the memory would not be enough."""
        with pytest.raises(ValueError, match=told):
            sheet.chosen([word])

class TestHandout:
    def test_holes(self, folder):
        source, text = handout.REFERENCE.read_text(), (folder / "student.py").read_text()
        for name in ("attend", "window_attention"):
            before, after = handout.definitions(source)[name], handout.definitions(text)[name]
            assert before.args.args[0].arg == after.args.args[0].arg
            assert len(before.decorator_list) == len(after.decorator_list)
        assert "# Question 4, window_attention, 7 of 7 points." in text and "# Hints" in text
        assert re.search(r"#   values, 40%: window=1", text)

    def test_it_holds_no_answers(self, tmp_path):
        course.main(["handout", "--to", str(tmp_path)])
        text = "\n".join(path.read_text() for path in tmp_path.iterdir())
        shared = {
            "out = (attention or attend)(q, k, v)",
            "with FlopCounterMode(display=False) as counter:"}
        assert [
            line for _, line in handout.answer_lines() if line in text and line not in shared] == []
        assert not re.search(r"MUTATIONS|oracle", text)

    def test_check_file_skips_what_is_not_written_and_says_what_is_wrong(self, folder, tmp_path):
        path = tmp_path / "wrong.py"
        wrong = selftest.edited("attend", " / math.sqrt(q.shape[-1])", "")
        path.write_text((folder / "student.py").read_text() + wrong)
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "check.py"],
            cwd=folder,
            env=os.environ | dict(VIDEO_ATTENTION=str(path)),
            capture_output=True,
            text=True).stdout
        assert "This is the answer when the scale 1/sqrt(d) is missing" in run
        assert re.search(r"\d+ failed, \d+ passed, \d+ skipped in", run)

    def test_sheet_has_room_for_answers(self, folder):
        text = (folder / "assignment.md").read_text()
        assert (
            text.count("*Your answer to") == 4
            and "2 questions" in text
            and "## Question 2." not in text
        )

class TestGrading:
    def test_gates_parts_and_right_answers(self, tmp_path):
        """One file: question 1 wrong, an option of question 2 ignored, one definition of question
        3 no Python, question 4 right, question 5 not written."""
        wrong = selftest.edited("attend", " / math.sqrt(q.shape[-1])", "")
        option = selftest.edited("time_attention", "(attention or attend)", "attend")
        broken = (
            "\ndef local_attention(q, k, v, grid):\n    return (q\n\n\ndef unrelated():\n   "
            " return 1\n")
        blank = handout.student_file(sheet.chosen(["5"]))
        result = grade(
            tmp_path,
            blank
            + "".join(
                zoo.ANSWERS[name]
                for name in ("space_attention", "global_attention", "window_attention"))
            + wrong
            + option
            + broken,
            "1-5")
        points = [result.points(marks, question)[0] for question, marks in result.questions]
        assert points[0] <= grading.GATE * 7  # whatever else passes
        assert points[1] == pytest.approx(7 - 4 * 0.15)
        assert [
            part for part, passed in marks_of(result, "time_attention").passed.items() if not passed
        ] == ["attention"]
        assert (
            points[2] == 7 and points[3] == 7 and points[4] == 0
        )  # the file's own local_attention was before
        text = reports.report(result)
        assert text.index("This is the answer when the scale 1/sqrt(d)") < text.index(
            "numbers differ")
        assert "local_attention" in " ".join(result.notes) and text.count("Not written yet") == 3

    def test_cheats_get_nothing_and_endless_loops_end(self, tmp_path):
        """A process that ends, a loop without an end, and the file of the teacher."""
        text = (
            handout.student_file(sheet.chosen(["2"]))
            + """
import os
def space_attention(q, k, v, grid, attention=None):
    os._exit(0)
def time_attention(q, k, v, grid, attention=None):
    while True:
        pass
exec(open(f"/proc/{os.getppid()}/cwd/video_attention.py").read())
"""
        )
        grader = grading.Grader(sheet.chosen(["2"]), seed=1)
        for check in grader.checks["time_attention"]:
            check.seconds = 0.5
        (tmp_path / "student.py").write_text(text)
        grader_patience, grading.PATIENCE = grading.PATIENCE, 1
        try:
            result = grader.grade(tmp_path / "student.py")
        finally:
            grading.PATIENCE = grader_patience
        assert result.total == 0 and any("video_attention.py" in x for x in result.look)
        text = reports.report(result)
        assert "no answer in time" in text and "ended by itself (exit code 0)" in text

    def test_an_answer_that_is_kept_by_shape_is_found_out(self):
        kept, asked = {}, [c for c in suite(1)["attend"] if type(c) is checks.Values]

        def call(name, args, options, **how):
            value = oracles.softmax(*args)
            return process.Reply(kept.setdefault(args[0].shape, value))

        *first, last = [c.run(call) for c in asked if not c.options]
        assert first == [None] * len(first) and "asked again with other numbers" in last.place

    def test_wrong_answers_are_all_editable(self):
        """Every known wrong answer is an edit of the right one as it is now."""
        for entry in zoo.WRONG:
            compile(selftest.edited(entry[0], *entry[4:]), entry[1], "exec")
        assert len(zoo.WRONG) >= 110 and len(zoo.RIGHT) >= 22
        assert len(zoo.CHEATS) >= 20 and len(zoo.ODD) >= 20

A, W = zoo.ANSWERS["attend"], zoo.ANSWERS["window_attention"]
BROKEN = "\ndef unrelated(q):\n    return (q\n"
MERGED = "\ndef f(x):\n    a = 1\n<<<<<<< HEAD\n    b = 1\n=======\n    b = 2\n>>>>>>> c\n"

class TestWorker:
    """What runs beside a submission, called here without a process."""

    @pytest.mark.parametrize(
        "text, kept, said",
        (
            (A + W + "\n%matplotlib inline\n!pip install x\n", 2, "%matplotlib inline"),
            ("%matplotlib inline\n" + A + W, 2, "%matplotlib inline"),
            (A + W + "\n   x = 1\n", 2, "unindent"),
            (A + W + "\ny = 2\n    x = 1\n\n    z = 3\n", 2, "left out:     x = 1"),
            (A + '\n"""never closed\n' + W, 2, "never closed"),
            (A + "\nx = (1,\n" + W, 2, "left out: x = (1,"),
            ("<<<<<<< HEAD\n" + A + "=======\n" + A + ">>>>>>> other\n" + W, 3, "left out: ===="),
            ("def f(x): return x\n%magic\n" + A + W, 3, "%magic"),
            ("def f(\n    a,\n):\n    return a\n\n%magic\n" + A + W, 3, "%magic"),
            ("def nothing():\n\n" + A + W, 2, "left out: def nothing"),
            (A + BROKEN + W, 2, "left out: def unrelated"),
            (A + MERGED + W, 2, "left out: def f")))
    def test_a_stray_line_costs_no_function(self, text, kept, said):
        notes = []
        names = [getattr(node, "name", "") for node in worker.parse(text, notes).body]
        assert len([name for name in names if name]) == kept and said in " ".join(notes)
        assert worker.bound_by_def(text) == {name for name in names if name}

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        "make, said",
        (
            (lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "qint8"),
            (lambda: torch.ones(4, dtype=torch.complex64), "complex64"),
            (lambda: torch.ones(4).to_sparse(), "sparse"),
            (lambda: torch.ones(4, device="meta"), "meta"),
            (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested")))
    def test_a_tensor_of_another_kind_is_said_in_words(self, make, said):
        """Some of these would crash the grader, not only the submission's process."""
        sent = []
        value = worker.decode(worker.encode(make(), sent), sent)
        told = checks.what_came(value)
        assert sent == [] and said in told and told.startswith("a tensor unlike the inputs")

    @pytest.mark.parametrize("dtype", ("complex64", "nn", "qint8"))
    def test_no_other_kind_is_unpacked(self, dtype):
        text = json.dumps(dict(tree={"tensor": 0}, tensors=[[dtype, [2], 16]]))
        with pytest.raises(KeyError, match=dtype):
            worker.unpack(text, bytes(16))

    def test_a_reply_that_cannot_be_packed_is_an_error(self, monkeypatch):
        session = worker.Session()
        session.module = types.SimpleNamespace(f=lambda: torch.ones(2, device="meta"))
        monkeypatch.setattr(worker, "unlike_the_inputs", lambda x: "")
        tree = dict(what="call", name="f", args={"list": []}, options={}, leaves=[], count=False)
        data = worker.answer(session, tree, [])
        size, _ = struct.unpack("<QQ", data[:16])
        reply, _ = worker.unpack(data[16 : 16 + size], b"")
        assert "meta" in reply["error"]["text"] and reply["refused"] == []

    def test_torch_may_look_for_folders_before_the_guard(self, monkeypatch):
        """Later it would stand under "look at", as if somebody had tried to cheat."""
        done = []
        monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: done.append(on))
        monkeypatch.setattr(worker, "guard", lambda seen: done.append("guard"))
        monkeypatch.setattr(worker, "confine", lambda: None)
        monkeypatch.setitem(sys.modules, "student", None)
        worker.Session().load("import torch\ntorch.use_deterministic_algorithms(True)", "", {})
        assert done == [False, "guard", True]

class TestAClass:
    def test_a_folder(self, tmp_path, capsys):
        handed_in, out = tmp_path / "in", tmp_path / "out"
        (handed_in / "Zoë Ω").mkdir(parents=True)
        (handed_in / "Zoë Ω" / "student.py").write_text(right())
        (handed_in / "=empty.py").write_text("")
        (handed_in / "notebook.ipynb").write_text("{}")
        course.main(["grade", str(handed_in), "3", "--to", str(out), "--seed", "5", "--jobs", "2"])
        with open(out / "marks.csv", encoding="utf-8") as file:
            rows = {row["student"]: row for row in csv.DictReader(file)}
        assert rows["Zoë Ω"]["total"] == "7.00" and rows["Zoë Ω"]["percent"] == "100.0"
        assert rows["'=empty"]["total"] == "0.00" and "empty" in rows["'=empty"]["look at"]
        assert "no Python file" in rows["notebook"]["look at"]
        assert len(list((out / "reports").iterdir())) == 3
        found = [json.loads(path.read_text()) for path in (out / "gradescope").iterdir()]
        assert (
            sorted(x["score"] for x in found) == [0, 0, 7]
            and found[0]["tests"][0]["max_score"] == 7)
        assert "--seed 5" in capsys.readouterr().out

    def test_wrong_use_is_one_line(self, tmp_path):
        for words in (
            ["grade", str(tmp_path / "nobody.py")],
            ["handout", "99", "--to", str(tmp_path)],
            ["blank", "nobody"],
            ["grade", str(tmp_path)]):
            with pytest.raises(SystemExit) as error:
                course.main(words)
            assert str(error.value).startswith(words[0])

    @pytest.fixture
    def ungraded(self, tmp_path, monkeypatch):
        """A folder with a file, a folder and a submission, and a grader that must not be asked."""
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.py").write_text("x = 1")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(grading, "Grader", lambda *_: pytest.fail("graded first"))

    @pytest.mark.parametrize(
        "words, told",
        (
            ("grade in 1 --to file", "--to file: File exists; name a folder"),
            ("grade in/a.py --gradescope file/x.json", "--gradescope file: File exists"),
            ("grade in/a.py --gradescope folder", "folder is a folder"),
            ("grade in --gradescope x.json", "is for one file, and in is a folder: use --to"),
            ("grade in/a.py ,", "no question in ','"),
            ("grade nobody" + 3000 * "y", "grade: "),
            ("selftest nobody", "'nobody' is unknown: use wrong, right, cheats, odd")))
    def test_what_cannot_be_is_told_before_the_grading(self, words, told, ungraded):
        with pytest.raises(SystemExit, match=told) as error:
            course.main(words.split())
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) <= 2000

    @pytest.mark.parametrize(
        "option", ("--jobs 0", "--jobs -3", f"--seed {10**22}", "--seed -1", "--seed x"))
    def test_numbers_of_options(self, option, ungraded, capsys):
        with pytest.raises(SystemExit, match="2"):
            course.main(["grade", "in", *option.split()])
        assert "must be a whole number from" in capsys.readouterr().err

    @pytest.mark.parametrize("every", ("0", "-1"))
    def test_every_is_at_least_one(self, every, capsys):
        with pytest.raises(SystemExit, match="2"):
            course.main(["selftest", "--every", every])
        assert "from 1 to" in capsys.readouterr().err

    def test_what_is_graded_is_written_at_once(self, tmp_path, ungraded, monkeypatch):
        """An interruption after the first of two leaves the first one's marks and report."""
        (tmp_path / "in" / "b.py").write_text("x = 1")

        class Stops:
            def __init__(self, wanted, seed):
                self.questions = [(question, []) for question in wanted]

            def grade(self, path, name):
                if name == "b":
                    raise KeyboardInterrupt
                return grading.Result(name, path.name, self.questions)

        monkeypatch.setattr(grading, "Grader", Stops)
        with pytest.raises(SystemExit, match="grade: stopped"):
            course.main("grade in --to out --jobs 1".split())
        assert (tmp_path / "out" / "marks.csv").read_text().count("a.py") == 1
        assert (tmp_path / "out" / "reports" / "a.md").exists()

    def test_key_has_every_answer_and_rubric(self, capsys):
        course.main(["key"])
        text = capsys.readouterr().out
        assert len(re.findall(r"\*\*Why \d+[ab]\*\*", text)) == 20 and text.count("```python") == 20
        assert "{" + "window_table}" not in text

    def test_blank_keeps_everything_but_bodies(self, capsys):
        course.main(["blank", "attend", "Attention.merge"])
        text, source = capsys.readouterr().out, handout.REFERENCE.read_text()
        assert text.count("is not written yet") == 2
        kept = [line for line in text.split("\n") if "is not written yet" not in line]
        lines = iter(source.split("\n"))
        assert all(line in lines for line in kept)  # in the same order
