"""Results in words: a table, a CSV file, a Markdown report for each student, Gradescope's
results.json; and the folder that they are written to.
"""

import csv
import json
import re
import tempfile
from pathlib import Path

from .grading import GATE

LINES = 3  # failures that are shown of one part


def ordered(failures):
    """Failures with a hint first, then pictures, then numbers; the same hint once."""
    seen, found = set(), []
    first = lambda f: (not f.hint, f.hint.count(", or when"), "t=0" not in f.place)
    for failure in sorted(failures, key=first):
        if failure.hint and failure.hint in seen:
            continue
        seen.add(failure.hint)
        found.append(failure)
    return found


def in_lines(failure, indent="  "):
    """A failure: the hint, then the place with the numbers."""
    text = f"{failure.hint}\n{failure.place}" if failure.hint else failure.place
    lines = text.split("\n")
    return [indent + line for line in lines]


def function_lines(marks):
    """What a student reads about one function."""
    f = marks.function
    earned = marks.share * f.points
    lines = [f"### `{f.name}`: {earned:.2f} of {f.points:g}", ""]
    if marks.blank:
        return [*lines, "Not written yet: no points.", ""]
    order = sorted(f.parts, key=lambda part: marks.passed[part])
    for part in order:
        percent, text = f.parts[part]
        lines.append(
            f"- [{'x' if marks.passed[part] else ' '}] **{part}**, {percent}%"
            + ("" if marks.passed[part] else f": {text}")
        )
        failures = ordered(marks.failures.get(part, []))
        if part != "values" and not marks.passed["values"]:
            failures = [f for f in failures if f.hint]  # the rest differs as the values do
        for failure in failures[:LINES]:
            lines += ["", "  ```text", *in_lines(failure), "  ```", ""]
        if len(failures) > LINES:
            lines.append(f"  ... and {len(failures) - LINES} more of this part")
    return [*lines, ""]


def report(result):
    """The Markdown report of one student."""
    lines = [
        f"# {result.name}",
        "",
        (
            f"**{result.total:.2f} of {result.out_of:g} points**, {result.percent:.0f}%. "
            'The answers to the questions "why" are read by a person and are not part of this.'
        ),
        "",
    ]
    if result.reason:
        return "\n".join([*lines, f"Nothing could be asked: {result.reason}.", ""])
    lines += ["| question | points | of |", "|---|---|---|"]
    for question, marks in result.questions:
        points, _ = result.points(marks, question)
        lines.append(
            f"| {question.number}. {question.title} | {points:.2f} | {question.points:g} |"
        )
    for note in result.notes[:10]:
        lines += ["", f"Your file: {note}"]
    for question, marks in result.questions:
        points, shut = result.points(marks, question)
        lines += [
            "",
            f"## Question {question.number}. {question.title}: {points:.2f} of {question.points:g}",
            "",
        ]
        if shut and not all(m.blank for m in marks):
            wrong = " and ".join(f"`{m.function.name}`" for m in marks if not m.passed["values"])
            lines += [
                f"At most {GATE:.0%} of this question, since the values of {wrong} are not right.",
                "",
            ]
        for m in marks:
            lines += function_lines(m)
    return "\n".join(lines).rstrip() + "\n"


def first_message(marks):
    """The most useful failure of a function, on as many lines as it has; or nothing."""
    parts = sorted(marks.failures, key=lambda part: part != "values")
    for part in parts:
        for failure in ordered(marks.failures[part]):
            return "\n".join(in_lines(failure, ""))
    return ""


def gradescope(result):
    """What Gradescope reads from results.json."""
    tests = []
    for question, marks in result.questions:
        points, shut = result.points(marks, question)
        text = "\n".join(line for m in marks for line in function_lines(m))
        head = f"At most {GATE:.0%}: the values are not right.\n\n" if shut else ""
        tests.append(
            dict(
                name=f"Question {question.number}. {question.title}",
                number=str(question.number),
                score=round(points, 2),
                max_score=question.points,
                output=head + text,
                output_format="md",
                visibility="visible",
                status="passed" if points > question.points - 1e-9 else "failed",
            )
        )
    output = "\n".join(
        [result.reason] if result.reason else [f"Your file: {note}" for note in result.notes]
    )
    return dict(
        score=round(result.total, 2),
        output=output,
        output_format="text",
        tests=tests,
        visibility="visible",
        stdout_visibility="hidden",
    )


def columns(results):
    """Titles and rows of the table of a class."""
    wanted = [question for question, _ in results[0].questions]
    titles = [
        "student",
        "file",
        *(f"question {q.number}" for q in wanted),
        "total",
        "out of",
        "percent",
        "look at",
    ]
    rows = []
    for r in results:
        points = [f"{r.points(marks, q)[0]:.2f}" for q, marks in r.questions]
        look = "; ".join(x for x in [r.reason, *r.look] if x)
        rows.append(
            [r.name, r.file, *points, f"{r.total:.2f}", f"{r.out_of:g}", f"{r.percent:.1f}", look]
        )
    return titles, rows


def guarded(cell):
    """A cell that a spreadsheet does not take for a formula."""
    return "'" + cell if cell.startswith(("=", "+", "-", "@", "\t")) else cell


def write_csv(results, path):
    titles, rows = columns(results)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows(
            [[guarded(row[0]), guarded(row[1]), *row[2:-1], guarded(row[-1])] for row in rows]
        )


def table(results):
    """The same for the screen."""
    titles, rows = columns(results)
    short = [
        "student",
        *(t.replace("question ", "q") for t in titles[2:-4]),
        "total",
        "of",
        "%",
        "look at",
    ]
    cells = [short] + [[row[0][:28], *row[2:-1], row[-1][:60]] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(short))]
    lines = []
    for row in cells:
        middle = [f"{x:>{w}}" for x, w in zip(row[1:-1], widths[1:-1])]
        lines.append("  ".join([f"{row[0]:{widths[0]}}", *middle, row[-1]]).rstrip())
    return "\n".join(lines)


def file_name(name, taken):
    """A student's name as the name of a file, unlike those that are taken."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._") or "student"
    number, found = 1, plain
    while found.lower() in taken:
        number += 1
        found = f"{plain}_{number}"
    taken.add(found.lower())
    return found


def ready(option, folder, *files):
    """Make the folder, and see that these files can be written in it: before the hours of grading,
    not after them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "name a folder that can be written to"
        raise ValueError(f"{option} {folder}: {error.strerror}; {fix}") from None
    for file in files:
        if (folder / file).is_dir():
            raise ValueError(f"{option}: {folder / file} is a folder, where a file is to be")


class Results:
    """marks.csv, reports/NAME.md and gradescope/NAME.json in a folder, each student's as soon as it
    is known: neither a crash nor an interruption loses the others.
    """

    def __init__(self, folder):
        self.folder, self.results, self.taken = Path(folder), [], set()
        ready("--to", self.folder, "marks.csv")
        ready("--to", self.folder / "reports")
        ready("--to", self.folder / "gradescope")

    def add(self, result):
        self.results.append(result)
        name = file_name(result.name, self.taken)
        write_csv(self.results, self.folder / "marks.csv")
        (self.folder / "reports" / f"{name}.md").write_text(report(result), encoding="utf-8")
        text = json.dumps(gradescope(result), indent=1)
        (self.folder / "gradescope" / f"{name}.json").write_text(text, encoding="utf-8")

    def in_order(self, results):
        """Once more at the end, in the order of the names, whoever was graded first."""
        self.results, self.taken = [], set()
        for result in results:
            self.add(result)
