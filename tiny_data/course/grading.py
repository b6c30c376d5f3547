"""Marks of a submission: what it returns is compared here, with what the file itself returns."""

import contextlib
import functools
import re
from dataclasses import dataclass

import torch

from . import calling, handout
from .process import Submission, isolation
from .questions import QUESTIONS

GATE = 0.3  # of a function whose values are wrong
OPEN = "graded without bubblewrap, which is not installed or does not work here"


@functools.cache
def right_answers(f, seed):
    cases, right = handout.cases_of(f, seed), handout.reference()[f.name]
    return [calling.answer(right, vars(case)) for case in cases]


@dataclass
class Outcome:
    case: object
    reply: dict
    wrong: dict  # "value", "gradients" or "price" -> what is wrong with it, in words

    def badness(self):
        return "value" in self.wrong, len(self.wrong)


def judge(case, reply, right):
    if "value" not in reply:
        return Outcome(case, reply, dict(value=str(reply.get("error", "nothing came back"))[:500]))
    return Outcome(case, reply, calling.compare(reply, right, vars(case)))


@dataclass
class Marks:
    function: object
    failed: dict  # part -> what is wrong in it, in words

    @property
    def points(self):
        share = sum(p for part, p in self.function.parts.items() if part not in self.failed) / 100
        return self.function.points * (min(share, GATE) if "values" in self.failed else share)


def mark(function, outcomes):
    """One mistake costs once: a case of several parts is held against one that fails alone."""
    marks, failed = Marks(function, {}), {}
    for x in outcomes:
        tags = x.case.tags or ("values",)
        if "value" in x.wrong:
            failed.setdefault(next((t for t in tags if t in failed), tags[0]), []).append(x)
    for part in function.parts:
        bad = failed.get(part, [])
        if part in ("gradients", "price"):
            bad = [x for x in outcomes if "value" not in x.wrong and part in x.wrong]
        if bad:
            words = bad[0].wrong.get(part) or explanation(function.name, part, bad, outcomes)
            marks.failed[part] = f"{words} ({bad[0].case.words()}; {len(bad)} such cases)"
        elif "values" in failed and part in ("gradients", "price"):
            marks.failed[part] = "not counted, since the values are wrong"
    return marks


@functools.cache
def known(name):
    """{words of a mistake: the text of the function with it}."""
    code, found = handout.code_of(name), {}
    for line in re.findall(r"^- .*", handout.section("mistakes.md", name), re.M):
        (words, edits), text = line[2:].split(": `", 1), code
        for old, new in re.findall(r"`([^`]*)` -> `([^`]*)`", "`" + edits):
            assert old in text, f"mistakes.md: {old!r} is not in {name}"
            text = text.replace(old, new)
        found[words] = text
    return found


@functools.cache
def answer_of(name, text, case):
    space = dict(handout.reference())
    exec(text, space)
    try:
        return calling.answer(space[name], vars(case))
    except Exception as error:
        return dict(error=str(error))


def explains(name, text, outcome):
    """Whether a text comes back with what came back, NaN where NaN is."""
    found, wrong = outcome.reply["value"], answer_of(name, text, outcome.case).get("value")
    if torch.is_tensor(found) and torch.is_tensor(wrong):
        found, wrong = (x.double().nan_to_num(7e7, 8e8, -8e8) for x in (found, wrong))
    return wrong is not None and not calling.difference(found, wrong, 10 * outcome.case.tolerance)


def explanation(name, part, bad, outcomes):
    """The mistake that explains all cases of the function, or of the part; or what differs."""
    values = [x for x in outcomes if "value" in x.reply and "precision" not in x.case.tags]
    values.sort(key=Outcome.badness, reverse=True)
    own = [x for x in values if part in (x.case.tags or ("values",))]
    for some in (values, own) if bad[0] in values else ():
        found = [x for x, text in known(name).items() if all(explains(name, text, y) for y in some)]
        if found:
            return f"{', or '.join(found[:2])}: {bad[0].wrong['value']}"
    return bad[0].wrong["value"]


def marks_of(submission, function, left_out, earlier, seed):
    """Marks of a function. Where it fails it is tried again with right answers to earlier ones."""
    cases, right, outcomes = handout.cases_of(function, seed), right_answers(function, seed), {}
    for names in (left_out, earlier):
        asked = [i for i in range(len(cases)) if i not in outcomes or outcomes[i].wrong]
        texts = {name: handout.text_of(name) for name in names}
        replies = submission.ask(function.name, [cases[i] for i in asked], texts)
        for i, reply in zip(asked, replies):
            again = judge(cases[i], reply, right[i])
            outcomes[i] = min(outcomes.get(i, again), again, key=Outcome.badness)
        every = outcomes.values()
        if not any(x.wrong for x in every) or any(x.reply.get("gone") for x in every):
            break
    return mark(function, list(outcomes.values()))


@dataclass
class Result:
    name: str
    wanted: list  # questions
    marks: dict  # function -> its Marks
    notes: list

    @property
    def points(self):
        return sum(marks.points for marks in self.marks.values())


def nothing(name, wanted, reason):
    marks = {f: Marks(f, dict.fromkeys(f.parts, reason)) for q in wanted for f in q.functions}
    return Result(name, wanted, marks, [reason])


def grade(name, path, wanted, seed):
    marks, left_out, earlier = {}, [], []
    if path.is_symlink() or not path.is_file() or path.suffix != ".py":
        return nothing(name, wanted, f"{path.name} is missing, a link, or no Python file")
    with contextlib.closing(Submission(path, handout.student_file([]))) as submission:
        for question, f in [(q, f) for q in QUESTIONS for f in q.functions]:
            if question in wanted:
                marks[f] = marks_of(submission, f, left_out, earlier, seed)
            else:
                left_out.append(f.name)
            earlier.append(f.name)
    notes = [f"the file: {submission.note}"] * bool(submission.note)
    notes += [f"it tried what is not allowed: {x}" for x in submission.refused]
    notes += [] if isolation() else [OPEN]
    return Result(name, wanted, marks, notes)
