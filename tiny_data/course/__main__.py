"""Hand out questions on video_attention.py and grade what comes back; README.md is the manual.

python -m tiny_data.course handout [QUESTIONS] --to FOLDER [--hints]
python -m tiny_data.course grade FILE|FOLDER [QUESTIONS] --to RESULTS [--jobs 2] [--resume]
python -m tiny_data.course key [QUESTIONS]
"""

import argparse
import multiprocessing
import re
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from . import grading, handout, reports
from .questions import chosen

SECONDS = 300  # for one submission, with the process that grades it
UNFINISHED = "its grading hung, or ended by itself; it may have ended the whole grading"


def submissions(path):
    """{student: file}: a file, or a folder with NAME.py or NAME/student.py for each student."""
    if not path.is_dir():
        return {path.parent.name if path.name == "student.py" else path.stem: path}
    found = {}
    for entry in sorted(x for x in path.iterdir() if x.name[0] not in "._"):
        name = re.sub(r"[^\w.-]+", "_", entry.stem)
        name += "_2" if name in found else ""
        found[name] = entry / "student.py" if entry.is_dir() else entry
    return found


def grade_one(name, path, wanted, seed, folder):
    """Grade in a process of its own, which may end or hang. There is a results.json from the start.

    A file in started/ says how often a submission was begun that was never finished. One that was
    begun twice has ended the whole grading twice, and is not begun again.
    """
    mark = folder / "started" / name
    mark.write_text(mark.read_text() + "x" if mark.exists() else "x")
    reports.write(grading.nothing(name, wanted, UNFINISHED), folder)

    def work():
        reports.write(grading.grade(name, path, wanted, seed), folder)
        mark.unlink()

    if mark.read_text() != "xxx":
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(SECONDS)
        process.kill()


def grade(path, wanted, folder, seed, jobs, resume):
    """Grade a file or a folder, and say where the marks are."""
    for name in ("reports", "gradescope", "started"):
        if not resume:
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True, exist_ok=True)
    note = folder / "seed.txt"
    if seed is None:
        seed = int(note.read_text()) if resume and note.exists() else secrets.randbelow(10**6)
    note.write_text(str(seed))
    for function in [f for q in wanted for f in q.functions]:
        grading.right_answers(function, seed)  # once, for all processes that are forked
    files = submissions(path)
    begun = [x for x in files if (folder / "started" / x).exists()]
    fresh = [
        x for x in files if x not in begun and not (folder / "gradescope" / f"{x}.json").exists()
    ]
    with tqdm(total=len(begun + fresh), disable=len(files) < 2, unit="file") as bar:
        for names, at_a_time in ((fresh, jobs), (begun, 1)):  # those begun before, last and alone
            with ThreadPoolExecutor(at_a_time) as pool:
                for _ in pool.map(lambda x: grade_one(x, files[x], wanted, seed, folder), names):
                    bar.update()
    reports.write_table(folder)
    if len(files) == 1:
        print((folder / "reports" / f"{next(iter(files))}.md").read_text("utf-8"))
    print(f"{len(files)} graded, seed {seed}: see marks.csv, reports and gradescope in {folder}")


def main(words=None):
    parser = argparse.ArgumentParser("python -m tiny_data.course")
    parser.add_argument("what", choices=["handout", "grade", "key"])
    parser.add_argument("words", nargs="*", help="questions: 3, 2-4 or the name of a function")
    parser.add_argument("--to", type=Path, default=Path("course_results"))
    parser.add_argument("--hints", action="store_true", help="steps in each hole")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, help="of the inputs; drawn and printed if left out")
    parser.add_argument("--resume", action="store_true", help="go on with a grading that ended")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    if args.what == "handout":
        handout.write(chosen(args.words), args.to, args.hints)
    elif args.what == "key":
        print(handout.key(chosen(args.words)))
    else:
        path, *words = args.words
        grade(Path(path), chosen(words), args.to, args.seed, args.jobs, args.resume)


if __name__ == "__main__":
    main()
