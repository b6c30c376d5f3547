"""Reads tiny_data/assignment.md, hints.md and key.md, which say what is asked, what it is worth
and why.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

KIT = Path(__file__).parent
SHEET = KIT.parent / "assignment.md"


@dataclass
class Function:
    name: str
    points: float
    text: str = ""
    parts: dict = field(default_factory=dict)  # name: (percent, what is tested)


@dataclass
class Question:
    number: int
    title: str
    text: str  # the whole section
    functions: list = field(default_factory=list)

    @property
    def points(self):
        return sum(function.points for function in self.functions)


def unwrapped(text):
    return " ".join(text.split())


def read_function(section):
    head, _, body = section.partition("\n")
    name, points = re.match(r"`(\w+)`, ([\d.]+) points?", head).groups()
    body = re.split(r"^\*\*Why", body, flags=re.M)[0]
    first, *items = re.split(r"^- ", body, flags=re.M)
    found = Function(name, float(points), unwrapped(first))
    for item in items:
        part, percent, text = re.match(r"\*\*(.+), (\d+)%\.\*\* (.*)", item, re.S).groups()
        found.parts[part] = (int(percent), unwrapped(text))
    return found


@cache
def questions():
    """{number: question}, as the sheet has them."""
    found = {}
    for section in re.split(r"^## Question ", SHEET.read_text(encoding="utf-8"), flags=re.M)[1:]:
        number, title = re.match(r"(\d+)\. (.*)", section).groups()
        functions = [read_function(text) for text in re.split(r"^### ", section, flags=re.M)[1:]]
        found[int(number)] = Question(
            int(number), title, "## Question " + section.rstrip(), functions
        )
    return found


def chosen(words):
    """Questions by number, range or the name of a function: "1", "3-5", "attend"; all if there are
    none.
    """
    every, numbers = questions(), []
    names = {function.name: number for number, q in every.items() for function in q.functions}
    for word in re.split(r"[\s,]+", " ".join(words)):
        if not word:
            continue
        span = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        if span:
            numbers += span_of(word, int(span[1]), int(span[2] or span[1]))
        elif word in names:
            numbers.append(names[word])
        else:
            raise ValueError(
                f"no question {word[:60]}: use numbers 1 to {len(every)}, ranges such as 2-4, or"
                f" one of {', '.join(names)}"
            )
    if words and not numbers:
        raise ValueError(f"no question in {' '.join(words)[:60]!r}: leave it out for all of them")
    return [every[number] for number in sorted(set(numbers) or every)]


def span_of(word, first, last):
    """The numbers of a range that is there, compared before it is counted out: it may be long."""
    if first > last:
        raise ValueError(f"{word} is no range: use {last}-{first}")
    unknown = [number for number in (first, last) if number not in questions()]
    if unknown:
        raise ValueError(f"no question {unknown[0]}: there are questions 1 to {len(questions())}")
    return range(first, last + 1)


@cache
def hints():
    """{function: its steps, in words and shapes}."""
    sections = re.split(r"^## ", (KIT / "hints.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    return {
        section.partition("\n")[0].strip("` "): section.partition("\n")[2].strip()
        for section in sections
    }


def sheet_for(wanted):
    """The sheet with only these questions, and room for the answers."""
    text = SHEET.read_text(encoding="utf-8")
    head = text[: text.index("## Question ")]
    numbers = {question.number for question in wanted}
    lines = []
    for line in head.split("\n"):
        row = re.match(r"\| (\d+) ", line)
        if not row or int(row[1]) in numbers:
            lines.append(line)
    head = "\n".join(lines)
    if len(wanted) < len(questions()):
        count = f"{len(wanted)} question{'s' if len(wanted) > 1 else ''}"
        head = head.replace("ten questions", count).replace("Ten questions", count.capitalize())
        head = re.sub(r", about \d+ in all", "", head)
    parts = []
    for question in wanted:
        body = re.sub(
            r"(?m)^(\*\*Why (\w+)\.\*\*(?:.+\n?)+)",
            r"\1\n*Your answer to \2:*\n\n\n\n",
            question.text + "\n",
        )
        parts.append(body.rstrip() + "\n")
    return head + "\n\n".join(parts)
