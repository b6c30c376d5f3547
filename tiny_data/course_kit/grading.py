"""Marks: every check of every question asked of one submission, and of a folder of them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import handout, sheet
from .checks import Failure, plain
from .process import LARGEST, Gone, Submission
from .suite import suite

GATE = 0.3  # what a question is worth at most if the values of one of its functions are not right
PATIENCE = 2  # so often a function may end the process or run out of time; the rest is failed
IN_ALL = 6  # and so often a submission
MINUTES = 8.0  # for all of one submission
FUSED = (
    "attend calls torch's fused attention. Without weights that is permitted; the scores and the"
    " softmax by their definition are asked with return_weights=True"
)


@dataclass
class Marks:
    """Marks of one function: which of its parts are right, and why the others are not."""

    function: sheet.Function
    passed: dict = field(default_factory=dict)  # part: bool
    failures: dict = field(default_factory=dict)  # part: [Failure]

    @property
    def right(self):
        return all(self.passed.values())

    @property
    def blank(self):
        found = [failure for failures in self.failures.values() for failure in failures]
        return bool(found) and all(
            f.blank and f.place.startswith(f"{self.function.name} ") for f in found
        )

    @property
    def share(self):
        percent = sum(
            self.function.parts[part][0] for part, passed in self.passed.items() if passed
        )
        return percent / sum(percent for percent, _ in self.function.parts.values())


@dataclass
class Result:
    """What one submission earned."""

    name: str
    file: str = ""
    questions: list = field(default_factory=list)  # (question, [Marks])
    notes: list = field(default_factory=list)  # for the student
    look: list = field(default_factory=list)  # for the teacher
    reason: str = ""  # why nothing was asked

    def points(self, marks, question):
        """Points of a question: at most the gate's share if the values of a function are wrong."""
        earned = sum(m.share * m.function.points for m in marks)
        shut = not all(m.passed["values"] for m in marks)
        return (min(earned, GATE * question.points) if shut else earned), shut

    @property
    def total(self):
        return sum(self.points(marks, question)[0] for question, marks in self.questions)

    @property
    def out_of(self):
        return sum(question.points for question, _ in self.questions)

    @property
    def percent(self):
        return 100 * self.total / self.out_of if self.out_of else 0.0


class Grader:
    """The checks of one run, the same for all submissions: inputs come from the seed."""

    def __init__(self, wanted, seed):
        self.wanted, self.seed = wanted, seed
        self.checks = suite(seed)
        self.given = handout.student_file(wanted)
        names = [function.name for question in wanted for function in question.functions]
        self.contracts = handout.contracts(names)

    def grade(self, path, name=None):
        path = Path(path)
        result = Result(plain(name or path.stem), plain(path.name))
        result.reason = why_not(path)
        if result.reason:
            result.questions = [
                (q, [self.nothing(f, result.reason) for f in q.functions]) for q in self.wanted
            ]
            return result
        end = time.monotonic() + 60 * MINUTES
        with Submission(path, self.given, self.contracts) as submission:
            done = []
            for question in sheet.questions().values():
                asked = question in self.wanted
                marks = (
                    [self.ask(submission, f, end, done) for f in question.functions]
                    if asked
                    else []
                )
                if asked:
                    result.questions.append((question, marks))
                else:
                    done += [f.name for f in question.functions]
            result.notes = [plain(note) for note in submission.notes]
            if "attend" in submission.fused:
                result.notes.append(FUSED)
            look = [f"refused: {what}" for what in submission.refused] + submission.ends
            result.look = [plain(x) for x in look]
        return result

    def nothing(self, function, reason):
        parts = dict.fromkeys(function.parts, False)
        return Marks(function, parts, {part: [Failure(reason)] for part in parts})

    def ask(self, submission, function, end, done):
        """Every check of a function. If not all are right, later functions get a right one in its
        place.
        """
        marks = Marks(function, dict.fromkeys(function.parts, True))
        ends = 0
        if function.name in handout.MEASURES:  # what is measured is always the same
            for name in done:
                self.replace(submission, name, done)
        for check in self.checks[function.name]:
            if ends >= PATIENCE or len(submission.ends) >= IN_ALL:
                failure = Failure(
                    "not asked any more, after the process ended or took too long before"
                )
            elif time.monotonic() > end:
                failure = Failure(
                    f"not asked: the {MINUTES:.0f} minutes for one submission were over"
                )
            else:
                failure = self.run(check, submission)
                if failure is not None and failure.place.startswith("did not come back"):
                    ends += 1
                    submission.ends.append(f"{function.name}: {failure.place}")
            if failure is not None:
                marks.passed[check.part] = False
                marks.failures.setdefault(check.part, []).append(failure)
                if failure.blank and failure.place.startswith(f"{function.name} is"):
                    marks.passed = dict.fromkeys(function.parts, False)
                    marks.failures = {part: [failure] for part in function.parts}
                    break
        done.append(function.name)
        if not marks.right:
            self.replace(submission, function.name, done)
        return marks

    def replace(self, submission, name, done):
        try:
            submission.replace(name, handout.with_answers(tuple(done)))
        except Gone:
            pass  # the next process gets it from the start

    def run(self, check, submission):
        try:
            return check.run(submission.call)
        except Gone as error:
            return Failure(f"did not come back: {error}; {check.where()}")
        except Exception as error:  # a reply that no check foresaw
            return Failure(
                f"{check.where()}: what came back could not be compared ({type(error).__name__})"
            )


def why_not(path):
    """Why a file cannot be graded at all, in words, or nothing."""
    if path.is_symlink() or not path.is_file():
        return "there is no Python file to grade"
    if path.suffix != ".py":
        return f"{path.name} is no Python file; hand in student.py"
    if path.stat().st_size > LARGEST:
        return f"the file is larger than {LARGEST // 10**6} MB"
    if path.stat().st_size == 0:
        return "the file is empty"
    return ""


# ==== A FOLDER ================================================================================


def submissions(folder):
    """[(student, file)] of a folder: NAME.py, or a folder NAME with student.py or one Python file
    in it.
    """
    found = []
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith((".", "__")):
            continue
        if path.is_dir() and not path.is_symlink():
            files = sorted(
                x for x in path.rglob("*.py") if not x.name.startswith(("check", ".", "._"))
            )
            named = [x for x in files if x.name == "student.py"]
            one = (named or files)[:1] if len(named or files) == 1 or named else []
            found.append((path.name, one[0] if one else path))
        elif path.suffix in (".py", ".ipynb", ".zip", ".txt", ".pdf") or path.is_symlink():
            found.append((path.stem, path))
    names = [name for name, _ in found]
    return [(path.name if names.count(name) > 1 else name, path) for name, path in found]


def grade_folder(grader, folder, jobs, say=lambda result: None):
    """The results of all submissions of a folder, `jobs` at a time, in the order of their names."""
    found = submissions(folder)
    if not found:
        raise ValueError(
            f"{folder} holds no submissions: NAME.py, or folders with student.py in them"
        )

    def one(entry):
        name, path = entry
        try:
            result = grader.grade(path, name)
        except Exception as error:  # the kit's own mistake must not cost the class its marks
            result = Result(
                plain(name),
                plain(path.name),
                reason=f"the grader failed: {type(error).__name__}: {error}",
            )
            result.questions = [
                (q, [grader.nothing(f, result.reason) for f in q.functions]) for q in grader.wanted
            ]
            result.look = [result.reason]
        say(result)
        return result

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        return list(pool.map(one, found))


def default_jobs():
    return max(1, os.cpu_count() or 1)
