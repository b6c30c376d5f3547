"""Marks of a submission: what it returns is compared here, with what the file itself returns."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import calling, handout, mistakes
from .calling import difference
from .process import Submission, isolation
from .questions import QUESTIONS

LEAST_PRICE = 1000  # multiply-accumulates: cheaper calls are not counted
GATE = 0.3  # of a function whose values are wrong
NOT_ISOLATED = "graded without bubblewrap: a hostile file could have read what the grader can read"


@functools.cache
def right_answers(f, seed):
    """The replies of the file itself."""
    right = handout.reference()[f.name]
    return [calling.answer(right, case.inputs()) for case in handout.cases_of(f, seed)]


@dataclass
class Outcome:
    """What one case says: wrong values or an error, derivatives, price. No words are right."""

    case: object
    reply: dict
    value: str = ""
    gradients: str = ""
    price: str = ""

    def badness(self):
        return 4 * bool(self.value) + bool(self.gradients) + bool(self.price)


def judge(case, reply, right):
    """Compare a reply with the right one."""
    if "value" not in reply:
        return Outcome(case, reply, str(reply.get("error", "nothing came back"))[:500])
    outcome = Outcome(case, reply, difference(reply["value"], right["value"], case.tolerance))
    types = [x.dtype for x in (reply["value"], right["value"]) if torch.is_tensor(x)]
    if not outcome.value and types[1:] and types[1].is_floating_point and types[0] != types[1]:
        outcome.value = f"the result is {types[0]}, the inputs are {types[1]}"
    if not outcome.value and reply.get("changed"):
        outcome.value = "the inputs were changed in place: work on copies"
    if right["gradients"] is not None:
        outcome.gradients = wrong_gradients(reply.get("gradients"), right["gradients"])
    allowed = 1.1 * right["macs"] + 4 * sum(x.numel() for x in case.args if torch.is_tensor(x))
    if case.derivatives and right["macs"] >= LEAST_PRICE and reply.get("macs", 0) > allowed:
        outcome.price = f"{reply['macs']:.0f} multiply-accumulates, right are {right['macs']:.0f}"
    return outcome


def wrong_gradients(found, right):
    if not isinstance(found, list) or len(found) != len(right):
        return "no derivative comes back: the result is cut off from its inputs"
    wrong = [n for n in range(len(right)) if difference(found[n], right[n], 1e-8)]
    missing = all(torch.is_tensor(found[n]) and not found[n].any() for n in wrong)
    words = f"the derivative is {'missing' if missing else 'wrong'} for argument "
    return words + ", ".join(str(n + 1) for n in wrong) if wrong else ""


@dataclass
class Marks:
    """Which parts of a function are not right, and what is said about them."""

    function: object
    failed: dict = field(default_factory=dict)  # part -> words
    blank: bool = False

    @property
    def points(self):
        share = sum(p for part, p in self.function.parts.items() if part not in self.failed) / 100
        return self.function.points * (min(share, GATE) if "values" in self.failed else share)


def mark(function, outcomes):
    """One mistake costs once: a case of several parts is held against one that fails alone."""
    marks, failed = Marks(function, {}, all(x.reply.get("blank") for x in outcomes)), {}
    for x in outcomes:
        tags = x.case.tags or ("values",)
        if x.value:
            failed.setdefault(next((t for t in tags if t in failed), tags[0]), []).append(x)
    for part in function.parts:
        bad = failed.get(part, [])
        if part in ("gradients", "price"):
            bad = [x for x in outcomes if not x.value and getattr(x, part)]
        if bad:
            words = getattr(bad[0], part, "") or explanation(function, part, bad, outcomes)
            marks.failed[part] = f"{words} ({bad[0].case.words()}; {len(bad)} such cases)"
        elif "values" in failed and part in ("gradients", "price"):
            marks.failed[part] = "not counted, since the values are wrong"
    return marks


def explanation(function, part, bad, outcomes):
    """The named mistake that explains a part, or what differs first.

    It must explain every case that came back with a value: those of the whole function, or else those
    of this part, the right ones as well. So a name is never a guess from one case.
    """
    values = [x for x in outcomes if "value" in x.reply and "precision" not in x.case.tags]
    values.sort(key=lambda x: not x.value)
    own = [x for x in values if part in (x.case.tags or ("values",))]
    for some in (values, own) if bad[0] in values else ():
        words = mistakes.explained(function.name, some)
        if words:
            return f"{', or '.join(words[:2])}: {bad[0].value}"
    return bad[0].value


def marks_of(submission, function, wrong, left_out, seed):
    """Marks of a function. Where it fails it is tried again with right answers to earlier ones."""
    cases, right, outcomes = handout.cases_of(function, seed), right_answers(function, seed), {}
    for names in (left_out, left_out + wrong):
        asked = [i for i in range(len(cases)) if i not in outcomes or outcomes[i].badness()]
        texts = {name: handout.text_of(name) for name in names}
        replies = submission.ask(function.name, [cases[i] for i in asked], texts)
        for i, reply in zip(asked, replies):
            again = judge(cases[i], reply, right[i])
            outcomes[i] = min(outcomes.get(i, again), again, key=Outcome.badness)
        if not wrong or any(x.reply.get("gone") or x.reply.get("blank") for x in outcomes.values()):
            break
    return mark(function, list(outcomes.values()))


@dataclass
class Result:
    """All that is known of a submission; `reason` is why nothing could be asked."""

    name: str
    questions: list  # (question, its Marks)
    notes: list
    reason: str = ""

    @property
    def points(self):
        return sum(marks.points for _, every in self.questions for marks in every)


def nothing(name, wanted, reason):
    """The result of a submission that could not be asked anything."""
    marks = [(q, [Marks(f, dict.fromkeys(f.parts, reason)) for f in q.functions]) for q in wanted]
    return Result(name, marks, [], reason)


def grade(name, path, wanted, seed):
    """The result of one submission."""
    path, result, wrong, left_out = Path(path), Result(name, [], []), [], []
    if not path.is_file() or path.suffix != ".py":
        return nothing(name, wanted, f"{path.name} is missing, or is no Python file")
    with Submission(path, handout.student_file([])) as submission:
        for question in QUESTIONS:
            if question not in wanted:
                left_out += [f.name for f in question.functions]
                continue
            result.questions.append((question, []))
            for function in question.functions:
                marks = marks_of(submission, function, wrong, left_out, seed)
                wrong += [function.name] * bool(marks.failed)
                result.questions[-1][1].append(marks)
    result.notes += [f"the file: {submission.note}"] * bool(submission.note)
    result.notes += [f"it tried what is not allowed: {x}" for x in submission.refused]
    result.notes += [] if isolation() else [NOT_ISOLATED]
    return result
