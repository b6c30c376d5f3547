"""Hand out questions on video_attention.py and grade what comes back; README.md is the manual."""

import argparse
import csv
import json
import multiprocessing
import re
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from . import grading, handout
from .questions import chosen

SECONDS = 300  # for one submission, with the process that grades it
WHY = 'The "why" questions are read by a person and are not part of this.'


def plain(words):
    """A message on one line, without what would end a block of text or colour a terminal."""
    return "".join(x if x.isprintable() else " " for x in words).replace("```", "'''")


def function_lines(marks):
    f = marks.function
    lines = [f"### `{f.name}`: {marks.points:.2f} of {f.points:g}", ""]
    if "values" in marks.failed:
        lines += [f"With wrong values at most {grading.GATE:.0%} of this function.", ""]
    for part in sorted(f.parts, key=lambda part: part not in marks.failed):
        words = marks.failed.get(part, "")
        lines.append(f"- [{' ' if words else 'x'}] **{part}**, {f.parts[part]}%")
        lines += ["", "  ```text", f"  {plain(words)}", "  ```", ""] if words else []
    return [*lines, ""]


def write(result, folder):
    """The Markdown report of one student, and the same as Gradescope's results.json."""
    notes, tests = [plain(x) for x in result.notes], []
    total = f"**{result.points:.2f} of {sum(q.points for q in result.wanted):g} points.**"
    lines = [f"# {result.name}", "", f"{total} {WHY}", "", *(f"- {note}" for note in notes), ""]
    for q in result.wanted:
        every = [result.marks[f] for f in q.functions]
        points, title = sum(marks.points for marks in every), f"{q.number}. {q.title}"
        words = "\n".join(line for marks in every for line in function_lines(marks))
        lines += [f"## Question {title}: {points:.2f} of {q.points:g}", "", words]
        test = dict(name=title, score=round(points, 2), max_score=q.points, output=words)
        tests.append(test | dict(output_format="md"))
    found = dict(score=round(result.points, 2), tests=tests, output="\n".join(notes))
    (folder / "reports" / f"{result.name}.md").write_text("\n".join(lines), "utf-8")
    (folder / "gradescope" / f"{result.name}.json").write_text(json.dumps(found), "utf-8")


def write_table(folder):
    rows, titles = [], []
    for path in sorted((folder / "gradescope").glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        titles = [f"question {test['name'].split('.')[0]}" for test in found["tests"]]
        look = "; ".join(x for x in found["output"].split("\n") if "bubblewrap" not in x)
        points = [f"{x['score']:.2f}" for x in [*found["tests"], found]]
        rows.append(["'" * (x[:1] in "=+-@" and x > "") + x for x in [path.stem, *points, look]])
    with open(folder / "marks.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["student", *titles, "points", "look at"], *rows])


def submissions(path):
    """{student: file}: a file, or a folder with NAME.py or NAME/student.py for each student."""
    if not path.is_dir():
        return {path.parent.name if path.name == "student.py" else path.stem: path}
    found = {}
    for entry in sorted(x for x in path.iterdir() if x.name[0] not in "._"):
        name = re.sub(r"[^\w.-]+", "_", entry.name if entry.is_dir() else entry.stem)
        while name in found:
            name += "_2"
        found[name] = entry / "student.py" if entry.is_dir() else entry
    return found


def grade_one(name, path, wanted, seed, folder):
    """Grade in a process that may end or hang. What was begun twice and not finished is left."""
    mark = folder / "started" / name
    mark.write_text(mark.read_text() + "x" if mark.exists() else "x")
    write(grading.nothing(name, wanted, "its grading hung, or ended by itself"), folder)

    def work():
        write(grading.grade(name, path, wanted, seed), folder)
        mark.unlink()

    if mark.read_text() != "xxx":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(SECONDS)
        process.kill()


def grade(path, wanted, folder, seed, jobs, resume):
    for name in ("reports", "gradescope", "started"):
        if not resume:
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True, exist_ok=True)
    note, files = folder / "seed.txt", submissions(path)
    seed = int(note.read_text()) if resume and note.exists() else seed
    note.write_text(str(seed))
    for f in [f for q in wanted for f in q.functions]:
        grading.right_answers(f, seed)  # once, for all processes that are forked
    print("" if grading.isolation() else grading.OPEN)
    begun = [x for x in files if (folder / "started" / x).exists()]
    done = [x for x in files if (folder / "gradescope" / f"{x}.json").exists()]
    fresh = [x for x in files if x not in begun + done]
    for names, at_a_time in ((fresh, jobs), (begun, 1)):  # those begun before, last and alone
        with ThreadPoolExecutor(at_a_time) as pool:
            work = pool.map(lambda x: grade_one(x, files[x], wanted, seed, folder), names)
            list(tqdm(work, total=len(names), disable=len(names) < 2, unit="file"))
    write_table(folder)
    print(f"{len(files)} graded, seed {seed}: see marks.csv, reports and gradescope in {folder}")


def main(words=None):
    parser = argparse.ArgumentParser("python -m tiny_data.course")
    parser.add_argument("what", choices=["handout", "grade", "key"])
    parser.add_argument("words", nargs="*", help="for grade a file or folder; questions: 3 or 2-4")
    parser.add_argument("--to", type=Path, default=Path("course_results"))
    parser.add_argument("--hints", action="store_true", help="steps in each hole")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of the inputs")
    parser.add_argument("--resume", action="store_true", help="go on with a grading that ended")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    if args.what == "handout":
        handout.write(chosen(args.words), args.to, args.hints)
    elif args.what == "key":
        print(handout.key(chosen(args.words)))
    else:
        wanted = chosen(args.words[1:])
        grade(Path(args.words[0]), wanted, args.to, args.seed, args.jobs, args.resume)


if __name__ == "__main__":
    main()
