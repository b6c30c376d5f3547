"""Results in words: a Markdown report, Gradescope's results.json, and a table of the class."""

import csv
import json

from .grading import GATE


def plain(words):
    """A message on one line, without what would end a block of text or colour a terminal."""
    words = "".join(x if x.isprintable() else " " for x in words).replace("```", "'''")
    return words.encode("utf-8", "replace").decode()


def function_lines(marks):
    """What a student reads about one function."""
    f = marks.function
    lines = [f"### `{f.name}`: {marks.points:.2f} of {f.points:g}", ""]
    if marks.blank:
        return [*lines, "Not written yet.", ""]
    if "values" in marks.failed:
        lines += [f"With wrong values at most {GATE:.0%} of this function.", ""]
    for part in sorted(f.parts, key=lambda part: part not in marks.failed):
        words = marks.failed.get(part, "")
        lines.append(f"- [{' ' if words else 'x'}] **{part}**, {f.parts[part]}%")
        lines += ["", "  ```text", f"  {plain(words)}", "  ```", ""] if words else []
    return [*lines, ""]


def gradescope(result):
    """What Gradescope reads from results.json."""
    tests = []
    for q, every in result.questions:
        points = sum(marks.points for marks in every)
        test = dict(name=f"{q.number}. {q.title}", score=round(points, 2), max_score=q.points)
        test["output"] = "\n".join(line for marks in every for line in function_lines(marks))
        tests.append(test | dict(output_format="md", visibility="visible"))
    notes = [plain(x) for x in [result.reason, *result.notes] if x]
    return dict(score=round(result.points, 2), tests=tests, output="\n".join(notes))


def report(name, found):
    """The Markdown report of one student, from the same."""
    out_of = sum(test["max_score"] for test in found["tests"])
    lines = [f"# {name}", "", f"**{found['score']:.2f} of {out_of:g} points.** "]
    lines[-1] += 'The "why" questions are read by a person and are not part of this.'
    lines += ["", *(f"- {note}" for note in found["output"].split("\n") if note), ""]
    for test in found["tests"]:
        lines.append(f"## Question {test['name']}: {test['score']:.2f} of {test['max_score']:g}")
        lines += ["", test["output"]]
    return "\n".join(lines).rstrip() + "\n"


def write(result, folder):
    """The results.json and the report of one student."""
    found = gradescope(result)
    (folder / "reports" / f"{result.name}.md").write_text(report(result.name, found), "utf-8")
    (folder / "gradescope" / f"{result.name}.json").write_text(json.dumps(found), "utf-8")


def write_table(folder):
    """marks.csv of all students whose results are in the folder."""
    rows, titles = [], []
    for path in sorted((folder / "gradescope").glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        titles = [f"question {test['name'].split('.')[0]}" for test in found["tests"]]
        look = "; ".join(x for x in found["output"].split("\n") if "bubblewrap" not in x)
        points = [f"{x['score']:.2f}" for x in [*found["tests"], found]]
        rows.append(["'" * (x[:1] in "=+-@" and x > "") + x for x in [path.stem, *points, look]])
    with open(folder / "marks.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["student", *titles, "points", "look at"], *rows])
