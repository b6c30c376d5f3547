"""What is asked of every function, part by part, and what a failure says.

A check has a run(call): `call` asks the submission, in its own process, and a Failure or None
comes back. Inputs are made from the seed of a run, so that nobody has seen them before.
"""

import math
import threading
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch

from . import oracles
from .worker import HANDED_OVER

TOLERANCE = 1e-6  # of what should be equal in float64
DEAR = 1.1  # a price may be so many times the formula
B, h, d = 2, 3, 6  # clips, heads, width of a head
D = h * d
GRID = (5, 4, 7)  # (T, H, W): no two sizes are equal
EVEN = (3, 4, 6)
ODD = [(5, 3, 7), (1, 4, 7), (5, 1, 1), (1, 1, 1)]
LOCK = threading.RLock()
torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@dataclass
class Failure:
    """Why a check failed: a hint, if the mistake is known, then the place and the numbers."""

    place: str
    hint: str = ""
    blank: bool = False


@dataclass(frozen=True)
class Handed:
    """A function of the table HANDED_OVER, which the submission gets as an argument."""

    name: str

    def __call__(self, *args, **options):
        return HANDED_OVER[self.name](*args, **options)


@dataclass
class Layer:
    """A linear layer: its weight and perhaps its bias."""

    weight: torch.Tensor
    bias: torch.Tensor = None

    def __call__(self, x):
        return x @ self.weight.T + (0 if self.bias is None else self.bias)

    def tensors(self):
        return [x for x in (self.weight, self.bias) if x is not None]


class Make:
    """Random inputs of one run."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, scale=1.0, positive=False):
        x = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return (x.abs() + 0.1 if positive else x) * scale

    def qkv(self, grid, C=0, heads=h, clips=B, width=d):
        return [self(clips, heads, C + math.prod(grid), width) for _ in range(3)]

    def layer(self, inputs, outputs, bias=True):
        return Layer(self(outputs, inputs, scale=inputs**-0.5), self(outputs) if bias else None)


# ==== IN WORDS ================================================================================


def kind_of(C, grid):
    return {0: "no class token", 1: "one class token for the clip"}.get(
        C, "one class token a frame"
    )


def what_came(value):
    """What came back where a tensor should have, in words; or None if it is one."""
    if isinstance(value, torch.Tensor):
        return None
    if value is None:
        return "None came back: is a return missing?"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} came back, not one tensor"
    kind = getattr(value, "kind", type(value).__name__)
    if kind == "tensor":
        return plain(f"a tensor unlike the inputs came back: {value.text:.80}")
    return plain(f"no tensor came back but {kind}: {getattr(value, 'text', value)!r:.60}")


def error_in_words(error):
    """An exception of the submission as a Failure."""
    if error["blank"]:
        return Failure(f"{error['blank']} is not written yet", blank=True)
    where = f"line {error['line']}, in {error['inside']}: " if error["line"] else ""
    hint = ""
    if "PermissionError" in error["kinds"] and "not permitted while" in error["text"]:
        hint = "A function may not open files or start processes, threads or connections."
    if error["kind"] in ("NameError", "ModuleNotFoundError", "ImportError"):
        hint = "Something that the file uses is neither in it nor imported."
    return Failure(f"{where}{error['kind']}: {plain(error['text'])[:400]}", hint)


def plain(text):
    """Text of a submission on one line, without what would disturb a report."""
    text = " ".join(str(text).split()).replace("```", "...")
    return "".join(c if c.isprintable() and not 0xD800 <= ord(c) < 0xE000 else "?" for c in text)


def same(actual, expected, tolerance=TOLERANCE):
    if actual.shape != expected.shape:
        return False
    difference = (actual.double() - expected.double()).abs().nan_to_num(nan=math.inf)
    size = expected.double().abs().max().item() if expected.numel() else 0.0
    return expected.numel() == 0 or difference.max().item() <= tolerance * max(1.0, size)


def place_of(index, shape, grid):
    """An index of a tensor in words; tokens by their place in the clip, where there is a grid."""
    if grid is not None and len(shape) >= 3 and shape[2] >= math.prod(grid):
        C, n = shape[2] - math.prod(grid), index[2]
        if n < C:
            return f"(batch, head) = {index[:2]}, class token {n}"
        return f"(batch, head, t, y, x) = {(*index[:2], *oracles.positions(grid)[n - C])}"
    return f"index {index}"


def how_it_differs(actual, expected, grid, tolerance=TOLERANCE):
    """Which tokens differ, by how much and where most."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs().nan_to_num(nan=math.inf)
    n = int(difference.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(n), difference.shape))
    worst = difference.max().item()
    size = f"largest difference {worst:.3g}" if worst < math.inf else "NaN or infinite"
    text = f"{size} at {place_of(index, expected.shape, grid)}, allowed {tolerance:.0e}"
    if grid is None or expected.ndim < 4 or expected.shape[2] < math.prod(grid):
        many = int((difference > tolerance).sum())
        return f"{many} of {difference.numel()} numbers differ; {text}"
    C = expected.shape[2] - math.prod(grid)
    names = [f"class token {c}" for c in range(C)]
    names += [f"patch {place}" for place in oracles.positions(grid)]
    bad = (difference > tolerance).movedim(2, 0).flatten(1).any(1)
    differ = [name for name, is_bad in zip(names, bad) if is_bad]
    few = ", ".join(differ[:3]) + (f" ... {differ[-1]}" if len(differ) > 3 else "")
    return f"{len(differ)} of {len(names)} tokens differ: {few}; {text}"


def picture(seen, grid, query):
    """Who is attended to: # for each patch that is, Q for the one that asks, ? if it is not among
    them.
    """
    T, H, W = grid
    mark = {place: "#" for place in seen} | {query: "Q" if query in seen else "?"}
    lines = ["  ".join(f"t={t}".ljust(W) for t in range(T)).rstrip()]
    for y in range(H):
        lines.append(
            "  ".join("".join(mark.get((t, y, x), ".") for x in range(W)) for t in range(T))
        )
    return "\n".join("    " + line for line in lines)


# ==== CHECKS ==================================================================================


@dataclass
class Check:
    name: str  # the function
    part: str  # of its marks
    label: str  # what is asked, in words
    args: list
    options: dict = field(default_factory=dict)
    grid: tuple = None
    seconds: float = 30.0

    def ask(self, call, **how):
        return call(self.name, self.args, self.options, seconds=self.seconds, **how)

    def where(self):
        """The situation, in words."""
        parts = [self.label] if self.label else []
        if self.grid is not None:
            parts.append(f"(T, H, W) = {self.grid}")
        return ", ".join(parts) or self.part


class Lazy:
    """What is worked out once for all submissions."""

    @property
    def expected(self):
        with LOCK:
            return self._expected

    @cached_property
    def _expected(self):
        found = self.expect()
        return found if isinstance(found, list) else [found]

    @property
    def wrong(self):
        with LOCK:
            return self._wrong

    @cached_property
    def _wrong(self):
        found = []
        for words, answer in self.mistakes:
            try:
                found.append((words, answer()))
            except Exception:  # the mistake makes no sense with these shapes
                continue
        found = [(words, x) for words, x in found if isinstance(x, torch.Tensor)]
        return [
            (words, x)
            for words, x in found
            if not any(self.alike(x, right) for right in self.expected)
        ]

    @staticmethod
    def alike(x, right):
        return (
            isinstance(x, torch.Tensor) and isinstance(right, torch.Tensor) and same(x, right, 1e-5)
        )


@dataclass
class Values(Lazy, Check):
    """The answer equals the oracle's, or one of several; `pick` takes it out of what came back."""

    expect: callable = None
    mistakes: list = field(default_factory=list)
    pick: callable = lambda value: value
    fused: bool = True  # whether torch's fused attention may be used
    public: bool = False  # also asked by the check file that is handed out

    def run(self, call):
        reply = self.ask(call, count=not self.fused)
        if reply.error:
            return error_in_words(reply.error)
        try:
            actual = self.pick(reply.value)
        except (TypeError, IndexError, KeyError, ValueError):
            return Failure(f"{self.where()}: what came back is no pair (out, weights)")
        words = what_came(actual)
        if words:
            return Failure(f"{self.where()}: {words}")
        if reply.changed:
            return Failure(
                f"{self.where()}: the answer changed one of its inputs in place",
                "Work on copies: x = x / 2, not x /= 2.",
            )
        if reply.fused and not self.fused:
            return Failure(
                self.where(),
                "torch's fused attention was called where the question asks for the "
                "scores and the softmax by their definition.",
            )
        return self.compare(actual)

    def compare(self, actual):
        right = self.expected[0]
        if any(same(actual, x) for x in self.expected):
            if actual.dtype != right.dtype and actual.is_floating_point():
                text = f"the answer is {actual.dtype} where the inputs are {right.dtype}"
                return Failure(f"{self.where()}: {text}")
            return None
        return Failure(
            f"{self.where()}: {how_it_differs(actual, right, self.grid)}", self.hint(actual)
        )

    def hint(self, actual):
        if math.prod(self.grid or (9,)) <= 1 or self.expected[0].numel() < 8:
            return ""
        found = [words for words, x in self.wrong if same(actual, x, 1e-5)]
        return "This is the answer when " + ", or when ".join(found[:2]) + "." if found else ""


@dataclass
class Indices(Values):
    """Whole numbers, such as which vectors were picked."""

    def compare(self, actual):
        right = self.expected[0]
        if actual.shape != right.shape:
            return Failure(
                f"{self.where()}: shape {tuple(actual.shape)}, expected {tuple(right.shape)}"
            )
        if torch.equal(actual.double(), right.double()):
            return None
        rows = zip(
            actual.reshape(-1, right.shape[-1]).tolist(),
            right.reshape(-1, right.shape[-1]).tolist(),
        )
        mine, its = next((a, b) for a, b in rows if a != b)
        first = next(i for i, (a, b) in enumerate(zip(mine, its)) if a != b)
        text = (
            f"pick number {first} is {mine[first]}, expected {its[first]}; picked {mine}, expected"
            f" {its}"
        )
        found = [words for words, x in self.wrong if torch.equal(actual.double(), x.double())]
        hint = "This is the answer when " + ", or when ".join(found[:2]) + "." if found else ""
        return Failure(f"{self.where()}: {text}", hint)

    @staticmethod
    def alike(x, right):
        return not isinstance(x, torch.Tensor) or torch.equal(x, right)


@dataclass
class Numbers(Values):
    """A list of plain numbers, each within a share of what is expected."""

    within: float = 0.02

    def run(self, call):
        reply = self.ask(call)
        if reply.error:
            return error_in_words(reply.error)
        value = reply.value.tolist() if isinstance(reply.value, torch.Tensor) else reply.value
        if not isinstance(value, (list, tuple)):
            return Failure(
                f"{self.where()}: a list of numbers should come back, got {plain(repr(value)):.60}"
            )
        value = [x.item() if isinstance(x, torch.Tensor) and x.numel() == 1 else x for x in value]
        right = self.expected[0].tolist()
        if len(value) != len(right) or not all(isinstance(x, (int, float)) for x in value):
            return Failure(
                f"{self.where()}: {len(right)} numbers should come back, got"
                f" {plain(repr(value)):.80}"
            )
        if all(abs(a - b) <= self.within * abs(b) for a, b in zip(value, right)):
            return None
        shown = [f"{a:.4g} (expected {b:.4g})" for a, b in zip(value, right)]
        return Failure(
            f"{self.where()}: {', '.join(shown)}", self.hint(torch.tensor(value).double())
        )

    def hint(self, actual):
        close = lambda x: x.shape == actual.shape and torch.allclose(
            actual, x.double(), rtol=self.within
        )
        found = [words for words, x in self.wrong if close(x)]
        return "This is the answer when " + ", or when ".join(found[:2]) + "." if found else ""


@dataclass
class Gradients(Lazy, Check):
    """Derivatives with respect to tensors and the weights of layers, beside the oracle's."""

    form: callable = None  # the oracle, called with the same arguments
    leaves: tuple = ("q", "k", "v")
    which: tuple = (0, 1, 2)  # the arguments that they are
    weight: torch.Tensor = None
    mistakes: list = field(default_factory=list)

    def leaf_tensors(self):
        return [self.args[i] for i in self.which]

    def expect(self):
        copies = [
            x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) else x
            for x in self.args
        ]
        layers = [x for x in copies if isinstance(x, Layer)]
        fresh = {
            id(x): Layer(*(y.detach().clone().requires_grad_() for y in x.tensors()))
            for x in layers
        }
        copies = [fresh.get(id(x), x) for x in copies]
        leaves = [copies[i] for i in self.which]
        leaves += [x for layer in fresh.values() for x in layer.tensors()]
        out = self.form(*copies, **self.options)
        found = torch.autograd.grad((out * self.weight).sum(), leaves, allow_unused=True)
        return [[torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves)]]

    def run(self, call):
        reply = self.ask(call, leaves=self.leaf_tensors(), weight=self.weight)
        if reply.error:
            return error_in_words(reply.error)
        if not isinstance(reply.gradients, list):
            text = plain(getattr(reply.gradients, "text", "no derivatives reach the inputs"))
            return Failure(
                f"{self.where()}: {text}",
                "The answer is cut off from its inputs: .detach(), .data, .item(), numpy or"
                " no_grad.",
            )
        layers = [
            layer
            for x in self.args
            if isinstance(x, Layer)
            for layer in ("a layer's weight", "a layer's bias")[: len(x.tensors())]
        ]
        names = [*self.leaves, *layers]
        for name, actual, right in zip(names, reply.gradients, self.expected[0]):
            if actual is None:
                actual = torch.zeros_like(right)
            if not same(actual, right, 1e-5):
                cut = actual.abs().max() == 0
                hint = (
                    f"Nothing of the derivative reaches {name}: .detach(), .data or no_grad?"
                    if cut
                    else ""
                )
                grid = self.grid if name in "qkv" else None
                return Failure(
                    f"{self.where()}: derivative with respect to {name}: "
                    f"{how_it_differs(actual, right, grid, 1e-5)}",
                    hint,
                )
        return None


@dataclass
class Sight(Check):
    """Which patches a patch attends to, by the derivative with respect to the values, as a
    picture.
    """

    sees: callable = None
    query: tuple = (1, 1, 2)

    def right(self):
        return {place for place in oracles.positions(self.grid) if self.sees(self.query, place)}

    def run(self, call):
        n = oracles.positions(self.grid).index(self.query)
        weight = torch.zeros_like(self.args[0])
        weight[:, :, n] = 1.0
        reply = self.ask(call, leaves=[self.args[2]], weight=weight)
        if reply.error:
            return error_in_words(reply.error)
        if not isinstance(reply.gradients, list) or reply.gradients[0] is None:
            return None  # told by the check of gradients
        reached = reply.gradients[0].abs().sum((0, 1, 3)) > 1e-12
        seen = {place for place, hit in zip(oracles.positions(self.grid), reached) if hit}
        if seen == self.right():
            return None
        return Failure(
            f"what patch Q = {self.query} attends to, expected:\n"
            f"{picture(self.right(), self.grid, self.query)}\n"
            f"and in this answer:\n{picture(seen, self.grid, self.query)}"
        )


@dataclass
class Price(Check):
    """Multiply-accumulates, counted, at most 1.1 times the formula."""

    formula: str = ""
    allowed: float = 0.0
    spare: float = 0.0  # for products of single elements

    def run(self, call):
        reply = self.ask(call, count=True)
        if reply.error:
            return error_in_words(reply.error)
        if reply.macs is None:
            return Failure(f"{self.where()}: the counter was taken away while the answer ran")
        if reply.macs <= DEAR * self.allowed + self.spare:
            return None
        times = reply.macs / self.allowed
        return Failure(
            f"{self.where()}: {reply.macs:.0f} multiply-accumulates, {times:.3g} times "
            f"{self.allowed:.0f} = {self.formula}",
            (
                f"The answer costs {times:.3g} times what it should: is more computed than is used,"
                " for instance all pairs of tokens and a mask?"
                if times > 1.3
                else ""
            ),
        )


@dataclass
class Refuses(Check):
    """A ValueError that shows the offending numbers."""

    shows: tuple = ()

    def run(self, call):
        reply = self.ask(call)
        if not reply.error:
            return Failure(
                f"{self.where()}: no error", "A ValueError is asked for, with the numbers in it."
            )
        if reply.error["blank"]:
            return error_in_words(reply.error)
        if "ValueError" not in reply.error["kinds"]:
            failure = error_in_words(reply.error)
            return Failure(
                f"{self.where()}: {failure.place}",
                f"It raises {reply.error['kind']} where a ValueError is asked for.",
            )
        for number in self.shows:
            if str(number) not in reply.error["text"]:
                return Failure(
                    f"{self.where()}: the message is: {plain(reply.error['text'])[:200]}",
                    f"The ValueError does not show the offending value {number}.",
                )
        return None


@dataclass
class Half(Check):
    """In half precision the answer is finite, of the same type and close to the one in float64."""

    expect: callable = None
    times: float = 1.0
    relative: float = 0.05
    pick: callable = lambda value: value
    dtypes: tuple = (torch.bfloat16, torch.float16)

    def run(self, call):
        for dtype in self.dtypes:
            cast = lambda x: (self.times * x).to(dtype) if isinstance(x, torch.Tensor) else x
            args = [
                cast(x) if not isinstance(x, Layer) else Layer(*map(cast, x.tensors()))
                for x in self.args
            ]
            reply = call(self.name, args, self.options, seconds=self.seconds)
            if reply.error:
                return error_in_words(reply.error)
            actual = self.pick(reply.value)
            words = what_came(actual)
            name = str(dtype).removeprefix("torch.")
            if words:
                return Failure(f"{self.where()}, {name}: {words}")
            if not actual.isfinite().all():
                return Failure(
                    f"{self.where()}, {name}: {int((~actual.isfinite()).sum())} of "
                    f"{actual.numel()} numbers are infinite or NaN",
                    f"It overflows in {name}: exp or a sum of large numbers. Subtract the largest "
                    "score first, as softmax does, or scale before you add.",
                )
            if actual.dtype != dtype:
                return Failure(f"{self.where()}, {name}: the answer is {actual.dtype}")
            wide = [x.double() if isinstance(x, torch.Tensor) else x for x in args]
            wide = [
                Layer(*(y.double() for y in x.tensors())) if isinstance(x, Layer) else x
                for x in wide
            ]
            right = self.expect(*wide, **self.options)
            error = ((actual.double() - right).norm() / right.norm()).item()
            if not error < self.relative:
                return Failure(
                    f"{self.where()}, {name}: relative error {error:.2f}, allowed {self.relative}"
                )
        return None
