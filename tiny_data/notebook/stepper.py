"""Source as it stands in its file, and stepping through a function with the tensors it makes.

Which token a row or a column belongs to is found out: the function runs again with one token of one
input changed a little, and what comes out different depends on that token.
"""

import ast
import html
import inspect
import itertools
import json
import math
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import video_attention as va

from .figures import BOX, Picture

HELPERS = (
    va.attend_in_groups, va.mix_frames, va.orthogonal_prototypes, va.most_orthogonal_subset,
    va.orthoformer_attention, va.landmark_inverse, va.favor_features, va.attend_linearly,
    va.fixation_gate, va.attend_per_frame, va.attend_along_trajectories,
)  # fmt: skip
SHOWN = "k.transpose(-1, -2) @ v", "attention_weights(q_means, k_means)"  # matter, have no name


class Source:
    """The lines of a function or class, as text and as HTML, and where its docstring is."""

    def __init__(self, thing):
        thing = inspect.unwrap(thing)  # decorators may have wrapped it
        lines, self.start = inspect.getsourcelines(thing)
        self.name, self.file = thing.__qualname__, Path(inspect.getsourcefile(thing)).name
        self.code, self.ran = getattr(thing, "__code__", None), set()
        self.text = textwrap.dedent("".join(lines)).rstrip()
        tree = ast.parse(self.text).body[0]
        self.head, words = self.start + tree.lineno - 1, tree.body[0]  # after its decorators
        folds = ast.get_docstring(tree) is not None
        self.docstring = (words.lineno - 1, words.end_lineno) if folds else (0, 0)
        form = HtmlFormatter(noclasses=True, style="friendly", nowrap=True)
        self.lines = self.text.split("\n")
        self.markup = highlight(self.text, PythonLexer(), form).rstrip("\n").split("\n")

    def for_page(self):
        (first, last), lines = self.docstring, [*self.markup]
        lines[first + 1 : last] = [None] * (last - first - 1)  # of a docstring the first line stays
        idle = {n for *_, n in self.code.co_lines()} - self.ran
        return dict(file=self.file, start=self.start, lines=lines, words=first, idle=[*idle])


class Trace:
    """Runs a function and keeps a step for each execution of a line that made a tensor.

    levels   the functions on their way; names, plain, made: {name: identity, words or number}
    tensors  [(value, the numbers of queries and keys if it is weights, the original)]
    """

    def __init__(self, sources, function, args, options):
        self.sources, self.entered, self.levels, self.steps = sources, set(), [], []
        self.tensors, self.numbers, before = [], {}, sys.gettrace()
        sys.settrace(self.enter)
        try:
            function(*args, **options)
        finally:
            sys.settrace(before)

    def enter(self, frame, event, argument):
        """Called when any function is entered: helpers are followed the first time."""
        code, names = frame.f_code, frame.f_locals
        if code is va.attend.__code__ and self.levels and names["q"].numel():
            self.add_weights(**names, around=frame.f_back.f_locals)
        if code in self.sources and code not in self.entered:
            self.entered.add(code)
            level = SimpleNamespace(source=self.sources[code], line=self.sources[code].head)
            level.names, level.plain, level.extra, level.made = {}, {}, {}, {}
            self.levels.append(level)
            return self.follow

    def add_weights(self, q, k, v, causal, around):
        """The weights that attend does not store, named after what its caller has as q and k."""
        named = [next((name for name in around if around[name] is x), "") for x in (q, k)]
        name = f"softmax({named[0] or 'q'} · {named[1] or 'k'})"
        sides = [self.number(q), self.number(k)]
        if not causal:
            self.levels[-1].extra[name] = self.number(va.attention_weights(q, k), sides)

    def follow(self, frame, event, argument):
        """Called before each line and at the end: what is new, the line before has made."""
        level, names, line = self.levels[-1], frame.f_locals, frame.f_lineno
        if event in ("line", "return"):
            self.finish(level, names | ({"returned": argument} if event == "return" else {}))
            level.line = line
            level.source.ran.add(line)
        for words in SHOWN:
            if event == "line" and words in level.source.lines[line - level.source.start]:
                level.extra[words] = self.number(eval(words, frame.f_globals, names))
        if event == "return":
            self.levels.pop()
        return self.follow

    def finish(self, level, names):
        """A step, if the line made a tensor."""
        made, level.extra = level.extra, {}
        for name, value in seen(names).items():
            tensor = isinstance(value, torch.Tensor)
            key = (id(value), value._version) if tensor else f"{name} = {value}"
            if level.names.get(name) != key and tensor:
                made[name] = self.number(value)
            elif level.names.get(name) != key:
                level.plain[name] = key
            level.names[name] = key
        if made:
            older = {i: name for up in self.levels for name, i in up.made.items()}
            old = [(older[i], i) for i in older if i not in made.values()][::-1]
            path, plain = [up.source.name for up in self.levels], [*level.plain.values()]
            self.steps.append(dict(path=path, line=level.line, plain=plain, new=made, old=old))
            level.made = {k: i for k, i in level.made.items() if k not in made} | made

    def number(self, value, sides=()):
        """The number of a tensor, a new one if it is new or was changed in place."""
        key = id(value), value._version
        if key not in self.numbers:
            self.numbers[key] = len(self.tensors)
            self.tensors.append((value.detach().clone(), sides, value))
        return self.numbers[key]


def seen(names):
    """{name: value} of the tensors, those of a list one by one, and of plain values."""
    found = {}
    for name, value in names.items():
        if isinstance(value, (list, tuple)):
            found |= seen({f"{name}[{i}]": x for i, x in enumerate(value) if torch.is_tensor(x)})
        elif isinstance(value, (int, str, slice)) or torch.is_tensor(value) and value.numel():
            found[name] = value
    return found


# ==== WHICH TOKEN IT IS ==========================================================================
def reach(base, again, args, N):
    """For each tensor of a trace (args, N, *shape): the entries that a token of an input moves."""
    moved = [np.zeros((len(args), N, *x[0].shape), bool) for x in base.tensors]
    tokens = [i for i, x in enumerate(args) if torch.is_tensor(x) and N in x.shape]
    for i, n in itertools.product(tokens, range(N)):
        nudged = [x.clone() if torch.is_tensor(x) else x for x in args]
        nudged[i].select(nudged[i].shape.index(N), n).mul_(1.01).add_(0.01)
        for found, x, y in zip(moved, base.tensors, again(nudged).tensors):
            found[i, n] = x[0] != y[0]
    return moved


def heads(moved, S, known):
    """moved (args, N, n, entries) -> for each of the n the token, frame or position it depends
    on, by the first input that tells them apart. What is not found is as with an earlier tensor, of
    which {n: heads} is known, or all tokens in order."""
    N, n = moved.shape[1:3]
    best, most = [""] * n, moved.mean(-1) > 0.7  # of the entries; where there is none, any of them
    most = np.where(most.any(1, keepdims=True), most, moved.any(-1))
    for tells in [*most, most.any(0)]:
        names = [name_of(np.flatnonzero(column).tolist(), S) for column in tells.T]
        if "many" not in names and len({*names}) > 1 and names.count("") < best.count(""):
            best = names
    if "" in best or len({*best}) < n == N:
        return known.get(n, [name_of([i], S) for i in range(N)] if n == N else best)
    known[n] = best
    return best


def name_of(tokens, S):
    """[5] -> "t1s1", a frame "t1", a position in some frames "s1", a run of tokens "t1s1-t1s3"."""
    frames, positions = {n // S for n in tokens}, {n % S for n in tokens}
    if len(positions) == 1 < len(tokens):
        return f"s{positions.pop()}"
    if len(frames) == 1 and len(positions) == S:
        return f"t{frames.pop()}"
    if not tokens or len(tokens) > S or tokens[-1] - tokens[0] >= len(tokens):
        return "many" if tokens else ""
    return "-".join(dict.fromkeys(f"t{n // S}s{n % S}" for n in (tokens[0], tokens[-1])))


# ==== THE PAGE ===================================================================================
def drawn(tensor, moved, S, known, made):
    """A tensor as matrices, blocks: [[its head, heads of its rows, of its columns, values]]."""
    value, sides, _ = tensor
    rows, columns = [1, *(n for n in value.shape[:-1] if n > 1), *value.shape[-1:]][-2:]
    moved, blocks = moved.reshape(*moved.shape[:2], -1, rows, columns), []
    tops = heads(moved.reshape(*moved.shape[:3], -1), S, {})
    for b, numbers in enumerate(value.reshape(-1, rows, columns).tolist()):
        both = moved[:, :, b], moved[:, :, b].swapaxes(2, 3)
        beside = [made[i]["blocks"][b][1] for i in sides]
        beside = beside or [heads(x, S, {} if tops[1:] else known) for x in both]
        blocks.append([tops[b], *beside, [[float(f"{x:.4g}") for x in row] for row in numbers]])
    return dict(shape=f"{tuple(value.shape)}", weights=bool(sides), blocks=blocks)


def step_through(function, *args, tokens=(3, 2, 2), into=HELPERS, **options):
    """Step through a run of a function: its lines, and the tensors that each execution made.

    tokens    the grid (T, H, W); inputs with T*H*W of something along an axis are tokens
    into      functions to step through as well, the first time that they are called
    """
    sources = {source.code: source for source in map(Source, (*into, function))}

    def again(args):
        return Trace(sources, function, args, options)

    trace, tensors, known = again(args), [], {}
    for tensor, moved in zip(trace.tensors, reach(trace, again, args, math.prod(tokens))):
        tensors.append(drawn(tensor, moved, tokens[1] * tokens[2], known, tensors))
    pages = {source.name: source.for_page() for source in sources.values() if source.ran}
    data, text = dict(grid=tokens, functions=pages, steps=trace.steps, tensors=tensors), []
    for step in trace.steps:
        n, source = step["line"], next(x for x in sources.values() if x.name == step["path"][-1])
        text += ["", f"# {' > '.join(step['path'])}, line {n}", source.lines[n - source.start]]
        for name, i in step["new"].items():
            value = trace.tensors[i][0].float().numpy().round(2)
            text.append(f"{name} {value.shape}\n{value.squeeze()}")
    text, page = "\n".join(text).strip(), Path(__file__).with_name("stepper.html").read_text()
    parts = dict(BOX=BOX, TEXT=html.escape(text), DATA=json.dumps(data).replace("</", "<\\/"))
    return Picture(re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], page), text)
