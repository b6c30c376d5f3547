"""Source as it stands in its file, and running a function line by line."""

import ast
import html
import inspect
import sys
import textwrap
from pathlib import Path

import torch
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from .figures import BOX, Picture

FINE = "font-size:12.5px;line-height:1.35;margin:0;padding:0;background:#fff;color:#111;"
FINE += "white-space:pre;word-break:normal;font-family:monospace"
HEAD = "font-size:12px;color:#555"
MADE = "margin:1px 0 5px 36px;padding:2px 8px;background:#eef5fb;border-left:3px solid #0072b2;"
MADE += "color:#111;font-size:12px;line-height:1.25;max-height:18em;"
MADE += "overflow:auto;white-space:pre;word-break:normal;font-family:monospace"


# ==== SOURCE =====================================================================================
def highlighted(source):
    """Python source -> HTML with colours of its own."""
    options = dict(noclasses=True, style="friendly", prestyles=FINE, cssstyles="background:#fff")
    return highlight(source, PythonLexer(stripnl=False), HtmlFormatter(**options))


def source_of(thing):
    """(lines, number of the first, name of the file); decorators may have wrapped the thing."""
    thing = inspect.unwrap(thing)
    lines, start = inspect.getsourcelines(thing)
    file = Path(inspect.getsourcefile(thing)).name
    return textwrap.dedent("".join(lines)).splitlines(), start, file


def docstring_lines(lines):
    """First and last line of the docstring of the one definition in these lines, or (0, 0)."""
    body = getattr(ast.parse("\n".join(lines)).body[0], "body", [])
    folds = len(body) > 1 and isinstance(body[0], ast.Expr)
    return (body[0].lineno, body[0].end_lineno) if folds else (0, 0)


def show_source(*things):
    """Highlighted source as it stands in its file, docstrings folded away."""
    parts, texts = [], []
    for thing in things:
        lines, start, file = source_of(thing)
        first, last = docstring_lines(lines)
        above, text = lines[: max(first - 1, 0)], lines[max(first - 1, 0) : last]
        markup = highlighted("\n".join(above)) if above else ""
        if text:
            words = html.escape("\n".join(text))
            markup += f'<details><summary style="{HEAD}">docstring</summary>'
            markup += f'<pre style="{FINE}">{words}</pre></details>'
        parts.append(boxed(f"{file}, line {start}", markup + highlighted("\n".join(lines[last:]))))
        texts.append(f"# {file}, line {start}\n" + "\n".join(lines))
    return Picture("".join(parts), "\n\n".join(texts))


def boxed(title, markup):
    return f'<div style="{BOX}overflow-x:auto"><b style="{HEAD}">{title}</b>{markup}</div>'


# ==== VALUES =====================================================================================
def numbers(value, most=12):
    """A tensor in a few lines, numbers to two places.

    The last axis goes along a line; where it has 4 entries or fewer it goes down, the axis before
    it goes along, and a bar parts what the axes before those number.
    """
    if value.numel() == 0:
        return "nothing"
    value = value.detach().cpu()
    blocks = value.reshape(-1, *value.shape[-2:]) if value.ndim > 1 else value.reshape(1, 1, -1)
    down = value.ndim > 1 and value.shape[-1] <= 4 and value.shape[-1] < value.shape[-2]
    blocks = blocks.transpose(1, 2) if down else blocks
    form = "{:5.2f}" if value.is_floating_point() else "{:3}"
    lines, fit = [], max(1, most // blocks.shape[2]) if down else 1
    for group in blocks.split(fit):
        rows = [[list(map(form.format, row[:most].tolist())) for row in block] for block in group]
        lines += [" | ".join(" ".join(row) for row in line) for line in zip(*rows)]
    wide = " ..." if blocks.shape[2] > most else ""
    return "\n".join([line + wide for line in lines[:most]] + ["..."] * (len(lines) > most))


def described(name, value):
    """(what stands in bold, what follows it) for a value that a statement made"""
    if isinstance(value, torch.Tensor):
        return f"{name} {tuple(value.shape)}", numbers(value)
    if isinstance(value, (list, tuple)) and any(isinstance(x, torch.Tensor) for x in value):
        return name, ", ".join(str(tuple(getattr(x, "shape", ()))) for x in value)
    return name, f"= {textwrap.shorten(repr(value), 90)}"


# ==== RUNNING LINE BY LINE =======================================================================
def statements(lines):
    """[(first, last)] lines of the statements, in order; of a compound one (if, for) its head."""
    spans = set()
    for node in ast.walk(ast.parse("\n".join(lines)).body[0]):
        if isinstance(node, ast.stmt):
            inner = getattr(node, "body", None)
            last = inner[0].lineno - 1 if inner else node.end_lineno
            spans.add((node.lineno, max(node.lineno, last)))
    return sorted(spans)


class Trace:
    """Runs a function once and keeps for each of its statements what its names became.

    spans   [(first, last)] lines of the statements, counted from `start`
    made    {first line: {name: value}}, the last time that the statement ran
    passes  {first line: how often it ran}; the lines of one statement may run more than once
    """

    def __init__(self, function, spans, start, *args, **options):
        self.code, self.made, self.passes = inspect.unwrap(function).__code__, {}, {}
        self.names, self.at = {}, None
        self.first = {start + n - 1: first for first, last in spans for n in range(first, last + 1)}
        before = sys.gettrace()
        sys.settrace(self.enter)
        try:
            self.result = function(*args, **options)
        finally:
            sys.settrace(before)

    def enter(self, frame, event, argument):
        """Called when any function is entered: only lines of this one are followed."""
        if frame.f_code is self.code:
            self.names = seen(frame)
            return self.step

    def step(self, frame, event, argument):
        """Called before each line and at the end: what is new, the statement before has made."""
        now, at = seen(frame), self.first.get(frame.f_lineno)
        new = {
            name: now[name][1] for name in now if self.names.get(name, [None])[0] != now[name][0]
        }
        if self.at is not None:
            self.made.setdefault(self.at, {}).update(new)
        if event == "line" and at != self.at:
            self.passes[at] = self.passes.get(at, 0) + 1
        self.names, self.at = now, at
        if event == "return":
            self.made.setdefault(at, {})["returned"] = argument
        return self.step


def seen(frame):
    """{name: (identity, value)}, where what was changed in place has another identity."""
    found = {}
    for name, value in frame.f_locals.items():
        if isinstance(value, torch.Tensor):
            found[name] = (id(value), value._version), value.detach().clone()
        elif isinstance(value, list):
            found[name] = (id(value), len(value)), list(value)
        elif not callable(value) and not hasattr(value, "__next__"):
            found[name] = id(value), value
    return found


def step_through(function, *args, expected=None, **options):
    """Run a function and show its lines with the shape and the values that each made in this run.

    The lines are the function's own, as they stand in its file; one that ran several times shows
    the last. `expected`, a tensor, is compared with what the function returns.
    """
    lines, start, file = source_of(function)
    spans, folded = statements(lines), docstring_lines(lines)
    trace, markup, done = Trace(function, spans, start, *args, **options), "", 0
    text = [f"# {file}, line {start}"]
    for first, last in spans:
        if (first, last) != folded:
            code, made = "\n".join(lines[done:last]), trace.made.get(first, {})
            often = trace.passes.get(first, 0)
            often -= lines[first - 1].lstrip().startswith("for ")  # which also runs once to end
            markup += highlighted(code) + stepped(made, often)
            text += [code, *("\n".join(described(*item)) for item in made.items())]
        done = last
    if expected is not None:
        difference = (trace.result - expected).abs().max().item()
        text.append(f"largest difference to what was expected: {difference:.1e}")
        markup += f'<p style="margin:6px 0 0;font-size:13px">{text[-1]}</p>'
    return Picture(boxed(f"{file}, line {start}, run step by step", markup), "\n".join(text))


def stepped(made, often):
    """What one statement made, {name: value}, as HTML."""
    parts = []
    for name, value in made.items():
        bold, rest = map(html.escape, described(name, value))
        parts.append(f"<b>{bold}</b>" + ("\n" if "\n" in rest else " ") + rest)
    short = all("\n" not in part for part in parts)
    after = f"(the last of {often} times) " if often > 1 else ""
    words = (", " if short else "\n").join(parts)
    return f'<pre style="{MADE}">{after}{words}</pre>' if parts else ""
