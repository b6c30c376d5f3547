"""The process in which one submission runs. It holds the answers of one student and of nobody else.

The grader copies this file and the submission into an empty folder and starts it there. It reads
requests from its standard input and writes replies to what was its standard output: "load this
file", "call this function with these tensors". It knows no oracle and gives no marks; what comes
out of a call is sent back as bytes and compared by the grader. It imports torch, einops and the
standard library, and nothing of this project.

A message is two lengths, a text in JSON and the bytes of its tensors, in both directions. Nothing
is unpickled.
"""

import ast
import ctypes
import inspect
import io
import json
import os
import re
import struct
import sys
import time
import tokenize
import traceback
import types
import warnings

import einops  # noqa: F401  both loaded before the submission, which may not open much
import numpy  # noqa: F401
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

NOT_WRITTEN = "is not written yet"
FILE = "student.py"


# ==== MESSAGES ================================================================================

# What a tensor in a message may be. torch has others, and of some of them frombuffer makes no error
# but a crash, in the grader's process too.
PLAIN = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
PLAIN += [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in PLAIN}
LARGEST_TENSOR = 10**7  # numbers


def pack(tree, tensors):
    """The bytes of a message."""
    entries, buffers = [], []
    for x in tensors:
        x = torch.Tensor.detach(x).as_subclass(torch.Tensor).to("cpu").resolve_conj().resolve_neg()
        data = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
        entries.append([str(x.dtype).removeprefix("torch."), list(x.shape), len(data)])
        buffers.append(data)
    text = json.dumps(dict(tree=tree, tensors=entries)).encode()
    payload = b"".join(buffers)
    return struct.pack("<QQ", len(text), len(payload)) + text + payload


def unpack(text, payload):
    """(tree, tensors) of a message whose two parts have been read."""
    message, place, tensors = json.loads(text), 0, []
    for dtype, shape, size in message["tensors"]:
        data = bytearray(payload[place : place + size])
        place += size
        kind = DTYPES[dtype]
        flat = torch.frombuffer(data, dtype=kind) if size else torch.empty(0, dtype=kind)
        tensors.append(flat.reshape(shape))
    return message["tree"], tensors


def unlike_the_inputs(x):
    """Why a tensor cannot be sent and compared, in words; or nothing."""
    if x.is_nested:
        return "it is nested"
    if x.layout != torch.strided or x.device.type == "meta":
        return f"it is {x.layout}, on {x.device}"
    if x.dtype not in PLAIN:
        return f"its dtype is {x.dtype}"
    return f"its shape is {tuple(x.shape)}" if x.numel() > LARGEST_TENSOR else ""


def encode(value, tensors):
    """A value as plain lists and dictionaries; tensors are put on the list and replaced by their
    number.
    """
    if isinstance(value, torch.Tensor):
        unlike = unlike_the_inputs(value)
        if unlike:
            return {"other": "tensor", "text": unlike}
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, (tuple, list)) and len(value) <= 100000:
        return {
            type(value).__name__ if type(value) in (tuple, list) else "tuple": [
                encode(x, tensors) for x in value
            ]
        }
    if isinstance(value, dict) and len(value) < 1000:
        return {"dict": [[encode(a, tensors), encode(b, tensors)] for a, b in value.items()]}
    if value is None or type(value) in (bool, int, str):
        return {"is": value if not isinstance(value, int) or abs(value) < 2**53 else str(value)}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    return {"other": type(value).__name__, "text": repr(value)[:80]}


def decode(tree, tensors):
    """The other way round; functions and layers that are handed over are made here."""
    kind, value = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[value]
    if kind in ("tuple", "list"):
        items = [decode(x, tensors) for x in value]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {decode(a, tensors): decode(b, tensors) for a, b in value}
    if kind == "float":
        return float.fromhex(value)
    if kind == "function":
        return HANDED_OVER[value]
    if kind == "layer":
        weight, *bias = [decode(x, tensors) for x in value]
        layer = torch.nn.Linear(*reversed(weight.shape), bias=bool(bias), dtype=weight.dtype)
        layer.weight.data = weight
        if bias:
            layer.bias.data = bias[0]
        return layer
    if kind == "other":
        return Other(value, tree["text"])
    return value


class Other:
    """Stands for something that is no tensor, number, text or list of such."""

    def __init__(self, kind, text):
        self.kind, self.text = kind, text


# ==== WHAT A QUESTION HANDS OVER ==============================================================


def attend_to_the_first(q, k, v, return_weights=False):
    """No attention at all: queries added to the mean of keys and to the first value."""
    out = q.mean(-1, keepdim=True) * v[..., :1, :] + k.mean(-2, keepdim=True).mean(-1, keepdim=True)
    return (out, None) if return_weights else out


def squared_features(x):
    return x * x + 0.25


def layer_by_hand(x):
    """A projection that is no torch.nn.Linear."""
    return torch.tanh(x) + 0.1 * x.flip(-1)


def two_layers_by_hand(x):
    return torch.cat([torch.sin(x), 0.5 * x.roll(1, -1)], dim=-1)


def gates_by_hand(q, k, v):
    """Two gates in 0..1, unlike each other, that read features and values."""
    return torch.sigmoid(q - k + v), torch.sigmoid(0.5 * q * k - v)


def first_stage_by_hand(q, k, v, T):
    """A trajectory that no softmax makes: (B, h, I, d) -> (B, h, I, T, d)"""
    frames = v.unflatten(2, (T, -1)).mean(3)  # (B, h, T, d)
    return torch.cos(q).unsqueeze(3) * frames.unsqueeze(2) + k.mean(2, keepdim=True).unsqueeze(3)


def second_stage_by_hand(y, proj_q, proj_kv):
    return y.cumsum(3)[:, :, :, -1] * 0.5 + y[:, :, :, 0]


HANDED_OVER = dict(
    gates_by_hand=gates_by_hand,
    first_stage_by_hand=first_stage_by_hand,
    second_stage_by_hand=second_stage_by_hand,
    attend_to_the_first=attend_to_the_first,
    squared_features=squared_features,
    layer_by_hand=layer_by_hand,
    two_layers_by_hand=two_layers_by_hand,
)


# ==== COUNTING ================================================================================


VECTORS = {torch.ops.aten.mv, torch.ops.aten.addmv, torch.ops.aten.dot, torch.ops.aten.vdot}


class Counter(TorchDispatchMode):
    """Multiply-accumulates of what runs inside: matrix products as torch's own counter has them,
    fused attention, and products by elements that stand for a matrix product, of tensors that
    differ in shape or are larger than `large`, twice all inputs."""

    def __init__(self, large):
        super().__init__()
        self.macs, self.fused, self.large = 0, False, large

    @classmethod
    def _should_skip_dynamo(cls):
        """No: keeping torch's compiler out would first load it, for more than a second."""
        return False

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "scaled_dot_product" in str(function):
            self.fused = True
            q, k, v = args[:3]
            self.macs += q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
            return function(*args, **kwargs)
        out = function(*args, **kwargs)
        packet = function._overloadpacket
        if packet in flop_registry:
            self.macs += flop_registry[packet](*args, **kwargs, out_val=out) / 2
        elif packet in VECTORS:
            self.macs += max(x.numel() for x in args if isinstance(x, torch.Tensor))
        elif packet in (torch.ops.aten._cdist_forward, torch.ops.aten.cdist):
            self.macs += out.numel() * args[0].shape[-1]
        elif packet in (torch.ops.aten.mul, torch.ops.aten.mul_) and isinstance(
            args[1], torch.Tensor
        ):
            a, b = args[:2]
            unlike = a.shape != b.shape and min(a.numel(), b.numel()) > 1
            self.macs += out.numel() if unlike or out.numel() > self.large else 0
        return out


class Watch(TorchFunctionMode):
    """Whether torch's fused attention is called, on whatever path it then takes."""

    fused = False

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        self.fused |= "scaled_dot_product" in name or "multi_head_attention" in name
        return function(*args, **(kwargs or {}))


def counter_works(counter):
    """Whether the counter still sees a product that it should see."""
    before = counter.macs
    torch.ones(3, 5) @ torch.ones(5, 7)
    return counter.macs - before == 105


# ==== WHAT THE SUBMISSION MAY NOT DO ==========================================================

REFUSED = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
    "os.kill",
    "os.killpg",
    "signal.pthread_kill",
    "socket.connect",
    "socket.bind",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "shutil.move",
    "shutil.copyfile",
    "gc.get_objects",
    "gc.get_referrers",
    "gc.get_referents",
    "os.putenv",
    "_thread.start_new_thread",
    "_thread.start_joinable_thread",
    "os.setxattr",
    "urllib.Request",
    "os.mkdir",
    "sys.settrace",
    "sys.setprofile",
    "ctypes.dlsym",
    "ctypes.cdata",
    "ctypes.dlopen",
    "cpython.remote_debugger_script",
}


def guard(seen):
    """From here on files outside the folder and the Python installation cannot be opened, and no
    processes, threads or connections be started. What was tried is noted. An audit hook cannot be
    taken off again.
    """
    roots = installation() | {os.path.realpath(os.getcwd())}
    roots |= {"/usr/share/zoneinfo", "/dev/null", "/dev/urandom"}
    here = os.path.realpath(os.getcwd())
    realpath, fspath, separator, state = os.path.realpath, os.fsdecode, os.sep, {"inside": False}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def permitted(path, mode, flags):
        if type(path) is int:
            return True
        if type(path) not in (str, bytes):  # whose methods are not Python's own
            return False
        try:
            path = realpath(fspath(path))
        except OSError:
            return False
        inside = lambda root: path == root or path.startswith(root.rstrip(separator) + separator)
        writes = (flags or 0) & writing if mode is None else set("wax+") & set(mode)
        return inside(here) if writes else any(inside(root) for root in roots)

    def hook(event, arguments):
        if state["inside"]:
            return
        if event not in REFUSED and event != "open":
            return
        state["inside"] = True
        try:
            if event == "open" and (arguments[0] is None or permitted(*arguments[:3])):
                return
            plain = len(arguments) > 0 and type(arguments[0]) in (str, bytes, int)
            what = f"{event} {arguments[0]!r:.120}" if plain else event
            if len(seen) < 20:
                seen.append(what)
        finally:
            state["inside"] = False
        raise PermissionError(f"not permitted while it is graded: {what}")

    sys.addaudithook(hook)


def confine():
    """On Linux the kernel too refuses files outside the folder and the installation, and
    connections, also to code that is not Python (Landlock). Where it cannot, the audit hook is
    what there is.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        abi = libc.syscall(444, None, 0, 1)
        if abi < 1:
            return False
        files = (1 << (13 + (abi >= 2) + (abi >= 3))) - 1
        rules = struct.pack("QQ", files, 3) if abi >= 4 else struct.pack("Q", files)
        ruleset = libc.syscall(444, rules, len(rules), 0)
        read_only = 1 << 0 | 1 << 2 | 1 << 3
        paths = dict.fromkeys([*installation(), "/usr", "/lib", "/lib64", "/etc"], read_only)
        paths |= {"/dev/null": 1 << 1 | 1 << 2, "/dev/urandom": 1 << 2}
        paths[os.path.realpath(os.getcwd())] = files
        for path, access in paths.items():
            if path != "/" and os.path.exists(path):
                number = os.open(path, os.O_PATH)
                libc.syscall(445, ruleset, 1, struct.pack("=Qi", access, number), 0)
                os.close(number)
        return libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(446, ruleset, 0) == 0
    except (OSError, AttributeError, struct.error):
        return False


def installation():
    """Where Python and its packages are."""
    roots = [sys.prefix, sys.base_prefix, sys.exec_prefix]
    roots += [x for x in sys.path if "packages" in x or "python3" in x]
    return {os.path.realpath(x) for x in roots}


def limit_resources(memory, seconds):
    try:
        import resource
    except ImportError:  # not on this system
        return
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_FSIZE": 2**20, "RLIMIT_CORE": 0, "RLIMIT_AS": memory}
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (ValueError, OSError, AttributeError):
            continue


# ==== THE SUBMISSION ==========================================================================


def text_of(data):
    """The text of a file: UTF-8 with or without a mark, what its first lines declare, or
    Latin-1.
    """
    for encoding in (
        "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig",
        None,
        "latin-1",
    ):
        try:
            encoding = encoding or tokenize.detect_encoding(io.BytesIO(data).readline)[0]
            return (
                data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
            )
        except (UnicodeDecodeError, SyntaxError, LookupError):
            continue


TOP = re.compile(r"^(def |class |@|async def )")


def body_end(lines, first, last):
    """The line after the indented body of the definition that these lines begin with."""
    rows = [i for i in range(first, last) if re.match(r"\s*[^\s#@)\]}]", lines[i])]
    widths = [len(lines[i]) - len(lines[i].lstrip()) for i in rows]
    if len(rows) < 2 or widths[1] == 0:
        return first if not rows else rows[0] + 1
    return next((i for i, width in zip(rows[1:], widths[1:]) if width < widths[1]), last)


def is_python(text):
    try:
        ast.parse(text)
        return True
    except (SyntaxError, ValueError, RecursionError):
        return False


def cut_out(text, line):
    """The text without what is around a line that is no Python, and what was left out says first;
    or None.

    In a definition that is all of it. A line outside costs no definition: it is left out alone, or
    with what follows up to the next definition where that is no Python without it.
    """
    lines = text.split("\n")
    starts = [
        i for i, x in enumerate(lines) if TOP.match(x) and not (i and lines[i - 1].startswith("@"))
    ]
    before = [i for i in starts if i < line]
    last = min([i for i in starts if i >= line], default=len(lines))
    rest = "\n".join(lines[line:last])
    there = 0 < line <= len(lines) and lines[line - 1].strip()
    if there and (not before or is_outside(lines, before[-1], line - 1, last, rest)):
        first, last = line - 1, line if is_python(rest) else last
    elif before:
        first = before[-1]
    else:
        return None
    head = next((x for x in lines[first:last] if not x.startswith("@")), "")
    lines[first:last] = [""] * (last - first)
    return "\n".join(lines), head[:60]


def is_outside(lines, first, line, last, rest):
    """Whether a line is behind the body of the definition before it; a mark of a merge in the first
    column is not, where the body goes on below it.
    """
    goes_on = not lines[line][0].isspace() and rest.lstrip("\n")[:1].isspace()
    return line >= body_end(lines, first, last) and not goes_on


def parse(text, notes):
    """The tree of a file, without what is no Python; each of these is noted."""
    for _ in range(30):
        try:
            return ast.parse(text, FILE)
        except RecursionError:
            notes.append("the file is nested too deeply to be read")
            return ast.parse("")
        except (SyntaxError, ValueError) as error:
            message = getattr(error, "msg", None) or str(error)
            empty = re.search(r"expected an indented block after .* on line (\d+)", message)
            line = int(empty[1]) if empty else getattr(error, "lineno", None) or 0
            said = f"line {line} is no Python: {message}"
            shorter = cut_out(text, line)
            if shorter is None:
                notes.append(f"{said}; nothing of the file can be used")
                return ast.parse("")
            text, head = shorter
            notes.append(f"{said}; left out: {head}")
    notes.append("too many lines are no Python")
    return ast.parse("")


def execute(text, module, notes):
    """Run a file statement by statement. One that fails is noted and the next is run."""
    flags = 0
    for node in parse(text, notes).body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            flags = __import__("__future__").annotations.compiler_flag
        try:
            code = compile(ast.Module([node], []), FILE, "exec", flags=flags, dont_inherit=True)
            exec(code, module.__dict__)
        except BaseException as error:  # SystemExit too
            notes.append(f"line {node.lineno}: {type(error).__name__}: {str(error)[:300]}")


def bound_by_def(text):
    """Names that a file defines with `def` at its top, last definition and no later assignment."""
    found = set()
    for node in parse(text, []).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        for name in ast.walk(node) if isinstance(node, (ast.Assign, ast.AnnAssign)) else []:
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                found.discard(name.id)
    return found


def as_function(value, like, name):
    """Any callable as a function with the name and the parameters that it should have."""

    def answer(*args, **options):
        return value(*args, **options)

    answer.__name__ = name
    if like is not None:
        answer.__signature__ = inspect.signature(like)
    return answer


def is_blank(error):
    """Whether this is the error that the handout leaves in the place of an answer, and for which
    name.
    """
    if isinstance(error, NotImplementedError) and NOT_WRITTEN in str(error):
        return str(error).split(NOT_WRITTEN)[0].strip()
    return None


def describe(error):
    """An error as plain text, with the last line of the submission that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if frame.filename == FILE]
    last = places[-1] if places else None
    names = [kind.__name__ for kind in type(error).__mro__]
    return dict(
        kind=names[0],
        kinds=names,
        text=str(error)[:2000],
        blank=is_blank(error),
        line=last.lineno if last else None,
        inside=last.name if last else None,
    )


class Session:
    """The submission, loaded, and the requests that it answers."""

    def __init__(self):
        self.module, self.seen, self.guarded = None, [], False

    def load(self, text, given, contracts):
        """Run the handout's file and then the submission in one namespace, so that what it leaves
        out is there. A function that is no `def` gets the contract that the handout had above it,
        if it has none.
        """
        module = types.ModuleType("student")
        module.__file__ = os.path.abspath(FILE)
        sys.modules["student"] = module
        trouble = []
        execute(given, module, trouble)
        blank = {name: value for name, value in vars(module).items() if callable(value)}
        notes = [] if not trouble else ["the handout itself: " + trouble[0]]
        if not self.guarded:
            if "FlopCounterMode" in given:  # what it loads on first use is loaded now
                with FlopCounterMode(display=False):
                    torch.ones(2, 2) @ torch.ones(2, 2)
            if "use_deterministic_algorithms" in text:  # it looks for folders, as if to cheat
                torch.use_deterministic_algorithms(False)
            confine()
            guard(self.seen)
            self.guarded = True
        execute(text, module, notes)
        written = bound_by_def(text)
        for name, contract in contracts.items():
            value = vars(module).get(name)
            if callable(value) and value is not blank.get(name) and name not in written:
                module.__dict__["__answer__"] = as_function(value, blank.get(name), name)
                try:
                    exec(f"{name} = {contract}(__answer__)", module.__dict__)
                except Exception as error:
                    notes.append(f"{name}: {type(error).__name__}: {error}")
        self.module = module
        missing = [name for name, value in blank.items() if vars(module).get(name) is value]
        return dict(notes=notes, missing=missing)

    def replace(self, name, text):
        """Take one function from a text and not from the submission."""
        given = types.ModuleType("given")
        notes = []
        execute(text, given, notes)
        vars(self.module)[name] = vars(given)[name]
        return dict(notes=notes)

    def call(self, tree, tensors):
        """Call a function and say what came of it."""
        function = vars(self.module).get(tree["name"])
        if not callable(function):
            return (
                dict(
                    error=dict(
                        kind="Missing",
                        kinds=[],
                        text="",
                        blank=tree["name"],
                        line=None,
                        inside=None,
                    )
                ),
                [],
            )
        args = decode(tree["args"], tensors)
        options = {key: decode(value, tensors) for key, value in tree["options"].items()}
        leaves = [tensors[i].requires_grad_() for i in tree["leaves"]]
        layers = [x for x in [*args, *options.values()] if isinstance(x, torch.nn.Module)]
        for layer in layers:
            layer.requires_grad_(bool(tree["leaves"]))
        leaves += [p for layer in layers for p in layer.parameters()] if leaves else []
        before = [x.detach().clone() for x in tensors]
        counter = Counter(2 * sum(x.numel() for x in tensors))
        watch, start = Watch(), time.perf_counter()
        try:
            with torch.set_grad_enabled(bool(tree["leaves"])):
                if tree["count"]:
                    with watch, counter:
                        value = function(*args, **options)
                        honest = counter_works(counter)
                        counter.macs -= 105
                else:
                    value, honest = function(*args, **options), True
        except BaseException as error:
            return dict(error=describe(error), seconds=time.perf_counter() - start), []
        out = []
        reply = dict(seconds=time.perf_counter() - start, value=encode(value, out))
        reply["changed"] = [i for i, (x, y) in enumerate(zip(tensors, before)) if not equal(x, y)]
        if tree["count"]:
            reply |= dict(macs=counter.macs if honest else None, fused=counter.fused or watch.fused)
        if leaves:
            reply["gradients"] = self.gradients(value, leaves, tensors[tree["weight"]], out)
        return reply, out

    def gradients(self, value, leaves, weight, out):
        """Derivatives of sum(weight * value) with respect to the leaves, or why there are none."""
        value = value[0] if isinstance(value, tuple) else value
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            return {"is": None}
        try:
            found = torch.autograd.grad(value, leaves, weight, allow_unused=True)
        except Exception as error:
            return {"other": type(error).__name__, "text": str(error)[:300]}
        return encode(list(found), out)


def equal(x, y):
    """The same bytes, so that NaN equals NaN."""
    return pack(None, [x]) == pack(None, [y])


def answer(session, tree, tensors):
    """The bytes of the reply to a request, whatever the submission makes of it."""
    what, out = tree.pop("what"), []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if what == "call":
                reply, out = session.call(tree, tensors)
            else:
                reply = getattr(session, what)(**tree)
        return pack(reply | dict(refused=list(session.seen)), out)
    except BaseException as error:
        return pack(dict(error=describe(error), refused=list(session.seen)), [])


def serve(source, sink):
    session = Session()

    def read(size):
        data = b""
        while len(data) < size:
            more = source.read(size - len(data))
            if not more:
                os._exit(3)  # the grader is gone
            data += more
        return data

    while True:
        tree, tensors = unpack(*(read(size) for size in struct.unpack("<QQ", read(16))))
        sink.write(answer(session, tree, tensors))
        sink.flush()


def main():
    """Take the two pipes away from the names under which a submission would write to them."""
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    torch.set_num_threads(1)
    limit_resources(memory=int(os.environ.get("COURSE_MEMORY", 8 * 2**30)), seconds=1800)
    serve(source, sink)


if __name__ == "__main__":
    main()
