"""The course: hand out questions on video_attention.py, and grade what comes back.

    python -m tiny_data.course handout [QUESTIONS] --to FOLDER [--hints]
    python -m tiny_data.course blank NAMES [--hints]
    python -m tiny_data.course grade FILE|FOLDER [QUESTIONS] [--to RESULTS] [--jobs 2] [--seed 7]
    python -m tiny_data.course key [QUESTIONS]
    python -m tiny_data.course selftest [wrong|right|cheats|odd]

QUESTIONS are numbers, ranges or names of functions, such as 1 3-5 trajectory_attention; all if left
out. The sheet, with points and hours, is tiny_data/assignment.md.

HANDOUT     writes what students get: student.py, the file with "Question n" at each hole; check.py,
            a few small tests for each question (`pytest check.py`; with check_data.json, which
            holds sums and no answers); assignment.md with room for the "why" answers. With --hints
            the steps of every function stand in its hole.

BLANK       prints the file without the bodies of any functions, classes or Class.method.

GRADE       takes a file, or a folder with NAME.py or NAME/student.py for each student. A file
            prints its report, a folder a table. With --to both write marks.csv, reports/NAME.md and
            gradescope/NAME.json, each student's as soon as it is known. Give the QUESTIONS that
            were handed out: the other functions are in the students' files already.
            --jobs        submissions at a time; as many as there are cores if left out
            --seed        of the inputs; drawn anew if left out, and printed, to repeat a run
            --gradescope  FILE for the results.json of a single submission, not of a folder

KEY         prints right code and what earns the points of the "why" questions.

SELFTEST    grades known submissions: wrong answers, right ones in unusual styles, attempts to cheat
            and odd files, and says where the marks are not what they should be.

HOW         Each submission runs in a process of its own, in a temporary folder that holds the
            handout's worker and the student's file. That process calls the student's functions on
            tensors that it is sent, and sends back what comes out as plain bytes. Oracles, expected
            values, marks and reports stay in the grader's process, which never imports a
            submission. What is not answered, or not in time, counts as failed.

            It runs on Linux and macOS; on Windows use WSL or the container.

            What this does not stop: a submission runs with the rights of whoever grades. An audit
            hook in its interpreter refuses files outside its folder and Python's own, processes,
            threads and connections, and on Linux (5.13 or newer) the kernel refuses such files too;
            what the hook refused stands under "look at". Elsewhere somebody who sets out to get
            around Python, by native code for instance, can read what you can read, the answers
            too, and anywhere can use up time and memory until the limits end it. Prices are counted
            in the submission's process, where it could disguise them, and with them the part
            "price"; it could not make wrong values right. Answers copied from the public file or
            from another student are right answers to this program. For submissions that you do not
            trust at all, use the container.

CONTAINER   a throw-away machine without a network, on which submissions can be read and only the
            results be written. Dockerfile, in the folder of video_attention.py:
                FROM python:3.12-slim
                RUN pip install --no-cache-dir torch numpy einops
                COPY video_attention.py /course/video_attention.py
                COPY tiny_data /course/tiny_data
                WORKDIR /course
            and then
                docker build -t course .
                docker run --rm --network none --memory 8g --pids-limit 256 --read-only \\
                    --tmpfs /tmp -v "$PWD/handed_in:/in:ro" -v "$PWD/results:/out" course \\
                    python -m tiny_data.course grade /in --to /out

CLASSROOM   .github/workflows/check.yml in the repository that students get with the handout:
                on: [push]
                jobs:
                  check:
                    runs-on: ubuntu-latest
                    steps:
                      - uses: actions/checkout@v4
                      - uses: actions/setup-python@v5
                        with: {python-version: "3.12"}
                      - run: pip install torch numpy einops pytest
                      - run: pytest -q check.py
            Marks come from `grade` on the teacher's machine, not from this. For Gradescope,
            run_autograder is
                cd /autograder/source && python -m tiny_data.course grade \\
                    /autograder/submission/student.py --gradescope /autograder/results/results.json
"""

import argparse
import json
import secrets
import sys
import threading
import time
from pathlib import Path

KINDS = ("wrong", "right", "cheats", "odd")  # of submissions whose marks are known


def handout(words):
    """Write the folder that students get."""
    from tiny_data.course_kit import handout, sheet
    from tiny_data.course_kit.checkfile import check_data, check_file

    wanted = sheet.chosen(words.questions)
    folder = Path(words.to)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "student.py": handout.student_file(wanted, words.hints),
        "check.py": check_file(wanted),
        "check_data.json": check_data(wanted),
        "assignment.md": sheet.sheet_for(wanted),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    names = [function.name for question in wanted for function in question.functions]
    print(
        f"{folder}: {', '.join(files)}; questions"
        f" {', '.join(str(question.number) for question in wanted)}:"
        f" {', '.join(names)}"
    )


def blank(words):
    """Print the file without the bodies of these functions."""
    from tiny_data.course_kit import handout

    print(
        handout.blank(handout.REFERENCE.read_text(encoding="utf-8"), words.names, words.hints),
        end="",
    )


def grade(words):
    """Marks for a file or a folder of them."""
    from tiny_data.course_kit import grading, reports, sheet

    path, wanted = Path(words.submission), sheet.chosen(words.questions)
    if not path.exists():
        raise ValueError(f"{path} is not there")
    if words.gradescope and path.is_dir():
        raise ValueError(f"--gradescope is for one file, and {path} is a folder: use --to")
    if words.gradescope:
        target = Path(words.gradescope)
        reports.ready("--gradescope", target.parent, target.name)
    out = reports.Results(words.to) if words.to else None
    seed = words.seed if words.seed is not None else secrets.randbelow(10**6)
    grader = grading.Grader(wanted, seed)
    if path.is_dir():
        results = grade_class(grader, path, words.jobs or grading.default_jobs(), out)
    else:
        results = [grader.grade(path)]
        print(reports.report(results[0]))
    print(f"--seed {seed} repeats this run")
    if out:
        out.in_order(results)
        print(f"{words.to}: marks.csv, reports/*.md, gradescope/*.json")
    if words.gradescope:
        found = json.dumps(reports.gradescope(results[0]), indent=1)
        target.write_text(found, encoding="utf-8")


def grade_class(grader, folder, jobs, out):
    """The results of a folder, told and written one by one as they come, and the table of all."""
    from tiny_data.course_kit import grading, reports

    start, one_at_a_time = time.time(), threading.Lock()

    def say(result):
        with one_at_a_time:
            print(f"{result.name}: {result.percent:.0f}%", file=sys.stderr, flush=True)
            if out:
                out.add(result)

    results = grading.grade_folder(grader, folder, jobs, say)
    print(reports.table(results))
    minutes = (time.time() - start) / 60
    print(f"\n{len(results)} submissions in {minutes:.1f} minutes")
    return results


def key(words):
    """Print the answer key."""
    from tiny_data.course_kit.key import answer_key
    from tiny_data.course_kit import sheet

    print(answer_key(sheet.chosen(words.questions)))


def selftest(words):
    """Grade submissions whose marks are known."""
    from tiny_data.course_kit.selftest import selftest

    unknown = [kind for kind in words.kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"{unknown[0][:60]!r} is unknown: use {', '.join(KINDS)}")
    sys.exit(selftest(words.kinds or KINDS, words.jobs, words.every))


def whole(least, most=10**9):
    """The type of an option that is a whole number."""

    def number(text):
        if not text.isdecimal() or len(text) > 10 or not least <= int(text) <= most:
            message = f"{text[:40]} must be a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return number


def parser():
    top = argparse.ArgumentParser(
        prog="python -m tiny_data.course", description="Hand out questions and grade them."
    )
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser("handout", help="write the folder that students get")
    one.add_argument("questions", nargs="*", help="numbers, ranges or functions; all if left out")
    one.add_argument("--to", required=True, metavar="FOLDER")
    one.add_argument("--hints", action="store_true", help="steps in words and shapes in every hole")
    one = commands.add_parser("blank", help="print the file with holes")
    one.add_argument("names", nargs="+", help="functions, classes or Class.method")
    one.add_argument("--hints", action="store_true")
    one = commands.add_parser("grade", help="marks for a file or a folder")
    one.add_argument("submission", metavar="FILE|FOLDER")
    one.add_argument("questions", nargs="*")
    one.add_argument("--to", metavar="RESULTS", help="folder for marks.csv, reports and gradescope")
    one.add_argument("--jobs", type=whole(1), help="submissions at a time")
    one.add_argument("--seed", type=whole(0), help="of the inputs; drawn if left out")
    one.add_argument("--gradescope", metavar="FILE", help="results.json of one submission")
    one = commands.add_parser("key", help="print answers and rubric")
    one.add_argument("questions", nargs="*")
    one = commands.add_parser("selftest", help="grade known submissions")
    one.add_argument("kinds", nargs="*", metavar="|".join(KINDS), help="all if left out")
    one.add_argument("--jobs", type=whole(1))
    one.add_argument("--every", type=whole(1), default=1, metavar="N", help="only every N-th")
    return top


def main(arguments=None):
    words = parser().parse_args(arguments)
    try:
        globals()[words.command](words)
    except (ValueError, OSError) as error:
        sys.exit(f"{words.command}: {error}"[:2000])
    except KeyboardInterrupt:
        sys.exit(f"{words.command}: stopped")


if __name__ == "__main__":
    main()
