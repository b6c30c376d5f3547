"""Grades submissions whose marks are known, and says where the kit is wrong about them."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import handout, reports, sheet, zoo
from .grading import GATE, Grader, default_jobs

SEED = 7


def right_file():
    """A right submission, as a student would write it."""
    return handout.student_file(sheet.chosen([])) + "\n\n" + "\n".join(zoo.ANSWERS.values())


def edited(function, *edits):
    """A right answer with some of its text replaced."""
    text = zoo.ANSWERS[function]
    for old, new in zip(edits[::2], edits[1::2]):
        if old not in text:
            raise ValueError(f"{function} has no {old!r}")
        text = text.replace(old, new)
    return text


def question_of(name):
    return next(q for q in sheet.questions().values() if name in [f.name for f in q.functions])


def rounds(entries):
    """Lists of entries, each with at most one for every question, so that one file can have a list
    of them.
    """
    left, found = list(entries), []
    while left:
        taken = {}
        for entry in left:
            taken.setdefault(question_of(entry[0]).number, entry)
        found.append(list(taken.values()))
        left = [entry for entry in left if not any(entry is x for x in taken.values())]
    return found


class Selftest:
    def __init__(self, jobs, every):
        self.grader = Grader(sheet.chosen([]), SEED)
        self.jobs, self.every = jobs or default_jobs(), every
        self.complaints, self.seconds, self.rows = [], [], []

    def grade(self, data, name="student.py"):
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
            result = self.grader.grade(path)
        self.seconds.append(time.time() - start)
        return result

    def each(self, function, entries):
        with ThreadPoolExecutor(self.jobs) as pool:
            return [x for found in pool.map(function, entries) for x in found]

    def complain(self, text):
        self.complaints.append(text)
        print("  !", text, flush=True)

    # ---- wrong ----

    def wrong(self):
        """One wrong answer for every question at a time: no mistake may reach another question."""
        rows = self.each(self.wrong_round, rounds(zoo.WRONG[:: self.every]))
        values = [row for row in rows if row[2] == "values"]
        named = [row for row in rows if row[5]]
        self.rows += rows
        return (
            f"wrong answers: {len(rows)}; marked down {sum(row[3] < 1 for row in rows)}; with wrong"
            f" values {len(values)}, at most {GATE:.0%} of them"
            f" {sum(row[3] <= GATE + 1e-9 for row in values)}; named as they should"
            f" {sum(row[4] for row in named)} of {len(named)}"
        )

    def wrong_round(self, entries):
        text = right_file() + "\n".join(edited(entry[0], *entry[4:]) for entry in entries)
        result = self.grade(text)
        rows = []
        for question, marks in result.questions:
            entry = next((x for x in entries if question_of(x[0]) is question), None)
            for m in marks:
                if entry is None or m.function.name != entry[0]:
                    if not m.right:
                        self.complain(
                            f"{m.function.name} is right, but: {reports.first_message(m)} (beside "
                            f"{entry[:2] if entry else [x[:2] for x in entries]})"
                        )
                    continue
                rows.append(
                    self.judge(entry, m, result.points(marks, question)[0] / question.points)
                )
        return rows

    def judge(self, entry, marks, share):
        name, label, part, words = entry[:4]
        message = "\n".join(f"{f.hint} {f.place}" for fs in marks.failures.values() for f in fs)
        if marks.passed[part]:
            self.complain(f"{name}, {label}: passes {part}, fails {list(marks.failures)}")
        if part != "values" and not marks.passed["values"]:
            self.complain(f"{name}, {label}: values fail too: {reports.first_message(marks)}")
        if words and words not in message:
            self.complain(
                f"{name}, {label}: {words!r} is not said, but {reports.first_message(marks)!r:.300}"
            )
        return name, label, part, share, words in message, words

    # ---- right ----

    def right(self):
        first = self.grade(right_file())
        lost = self.lost("the student's style", first)
        count = self.each(self.right_round, rounds(zoo.RIGHT[:: self.every]))
        files = self.each(self.right_one, zoo.RIGHT_FILES[:: self.every])
        done = [lost, *count, *files]
        return f"right answers: {len(done)}; full marks {sum(not x for x in done)}"

    def right_round(self, entries):
        result = self.grade(right_file() + "\n".join(entry[2] for entry in entries))
        found = []
        for question, marks in result.questions:
            entry = next((x for x in entries if question_of(x[0]) is question), None)
            bad = [m for m in marks if not m.right]
            for m in bad:
                self.complain(
                    f"right but for {entry and entry[1]}: {m.function.name}:"
                    f" {reports.first_message(m)}"
                )
            if entry:
                found.append(bool(bad))
        return found

    def right_one(self, entry):
        label, make = entry
        return [self.lost(label, self.grade(make(right_file())))]

    def lost(self, label, result):
        if result.percent < 99.99:
            bad = [
                (m.function.name, reports.first_message(m))
                for _, marks in result.questions
                for m in marks
                if not m.right
            ]
            self.complain(f"{label}: {result.percent:.1f}%: {bad[:2]} {result.notes[:2]}")
        return result.percent < 99.99

    # ---- cheats ----

    def cheats(self):
        shares = self.each(self.cheat, zoo.CHEATS[:: self.every])
        return (
            f"cheats: {len(shares)}; most that one got {max(shares):.1f}% (30% of a question is"
            f" {GATE:.0%})"
        )

    def cheat(self, entry):
        label, text = entry
        asked = [f.name for q in sheet.questions().values() for f in q.functions]
        handed_out = handout.student_file(sheet.chosen([]))
        result = self.grade(f"{handed_out}\nASKED = {asked}\n{text}")
        for question, marks in result.questions:
            points, _ = result.points(marks, question)
            if points > GATE * question.points + 1e-9:
                self.complain(f"cheat, {label}: question {question.number} {points:.2f}")
        return [result.percent]

    # ---- odd files ----

    def odd(self):
        found = self.each(self.one_odd, zoo.ODD[:: self.every])
        return f"odd files: {len(found)}; graded with a reason {sum(found)}"

    def one_odd(self, entry):
        label, name, data, words = entry
        result = self.grade(data, name)
        text = reports.report(result) + " ".join(result.look)
        if (
            words not in text
            or result.percent > 5
            or len(result.questions) != len(sheet.questions())
        ):
            self.complain(
                f"odd file, {label}: {result.percent:.0f}%, {words!r} is not in the report; notes"
                f" {result.notes[:2]}, {result.look[:2]}"
            )
            return [False]
        return [True]


def selftest(kinds, jobs, every):
    """Print what was found; the number of complaints."""
    test = Selftest(jobs, every)
    for kind in kinds:
        print(getattr(test, kind)(), flush=True)
    print(
        f"{len(test.seconds)} submissions graded, {sum(test.seconds) / len(test.seconds):.1f}"
        f" seconds each; {len(test.complaints)} complaints"
    )
    return min(100, len(test.complaints))
