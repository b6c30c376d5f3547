"""The course kit: what is handed out, how it is graded and what is said. These are samples;
`python -m tiny_data.course selftest` grades every known submission."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_data import course
from tiny_data.course_kit import grading, handout, reports, selftest, sheet, zoo
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

    def test_wrong_answers_are_all_editable(self):
        """Every known wrong answer is an edit of the right one as it is now."""
        for entry in zoo.WRONG:
            compile(selftest.edited(entry[0], *entry[4:]), entry[1], "exec")
        assert len(zoo.WRONG) >= 110 and len(zoo.RIGHT) >= 22
        assert len(zoo.CHEATS) >= 20 and len(zoo.ODD) >= 20

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
