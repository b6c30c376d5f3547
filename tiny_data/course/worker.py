"""The student's process, started by process.py: it gets inputs and writes what comes back."""

import builtins
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path

import torch

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from calling import Price, answer  # noqa: E402

MEMORY = 3 * 10**9  # bytes that a submission may take beside torch itself
DENIED = ("os.kill", "os.fork", "os.posix_spawn", "os.exec", "os.system", "subprocess.", "pty.")
DENIED += ("socket.", "ctypes.", "signal.pthread_kill", "sys.addaudithook", "resource.")
FILES = ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.link", "os.symlink")
FILES += ("os.truncate", "os.chmod", "os.chown", "os.mkdir", "os.rmdir", "os.utime")


def guard(folder, refused):
    """Limit memory and files; refuse processes, signals, connections, and files of others."""
    memory = Path("/proc/self/statm")
    if memory.is_file():
        most = int(memory.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 10**6, 64 * 10**6))
    allowed = [sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), folder, "/dev/null"]
    allowed = [os.path.realpath(x) for x in [*allowed, os.path.dirname(torch.__path__[0])]]

    def outside(path):
        real = os.path.realpath(os.fsdecode(path))
        return not any(real == x or real.startswith(x + "/") for x in allowed)

    def hook(event, args):
        paths = [x for x in args[:2] if isinstance(x, (str, bytes, os.PathLike))]
        if event.startswith(DENIED) or (event in FILES and any(map(outside, paths))):
            refused.append(f"{event} {args[0] if args else ''}"[:120])
            raise PermissionError(f"a submission may not do this: {refused[-1]}")

    # The hook is not told of these.
    torch.from_file = torch.ops.aten.from_file = torch.UntypedStorage.from_file = None
    torch.TypedStorage.from_file = torch.ops.load_library = torch.classes.load_library = None
    subprocess._fork_exec = signal.pidfd_send_signal = signal._signal.pidfd_send_signal = None
    sys.modules |= dict.fromkeys(("_posixsubprocess", "readline", "_tkinter"))
    sys.addaudithook(hook)


def importer(folder):
    """An __import__ that looks beside student.py first: a helper may be called random.py."""
    helpers, real = {}, builtins.__import__

    def find(name, globals=None, locals=None, fromlist=(), level=0):
        path = folder / f"{name}.py"
        if level or name == "student" or "." in name or not path.is_file():
            return real(name, globals, locals, fromlist, level)
        if name not in helpers:
            helpers[name] = sys.modules[f"student.{name}"] = types.ModuleType(f"student.{name}")
            helpers[name].__builtins__ = vars(builtins) | {"__import__": find}
            exec(compile(path.read_bytes(), str(path), "exec"), vars(helpers[name]))
        return helpers[name]

    return find


def in_words(error):
    """An error, with the last line of the student's own text that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename.endswith("student.py")]
    line = getattr(error, "lineno", None) or (lines or [0])[-1]
    place = f" in line {line} of the file" if line else ""
    return f"{type(error).__name__}{place}: {str(error)[:400]}"


def load(folder, texts):
    """The names of the submission, with `texts` in their functions' place, and what stopped it."""
    path = folder / "student" / "student.py"
    module = sys.modules["student"] = types.ModuleType("student")
    module.__file__ = str(path)
    module.__builtins__ = vars(builtins) | {"__import__": importer(path.parent)}
    space, note = vars(module), ""
    exec(compile((folder / "base.py").read_bytes(), "base.py", "exec"), space)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), space)
    except BaseException as error:
        note = f"importing stopped: {in_words(error)}"
    for text in texts.values():
        exec(text, space)
    for x in space.values():  # attention=attend, written before attend was
        if isinstance(x, types.FunctionType) and x.__defaults__:
            x.__defaults__ = tuple(space.get(getattr(y, "__name__", 0), y) for y in x.__defaults__)
    return space, note


def write(path, reply):
    torch.save(reply, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(folder, number):
    """Batch after batch: texts of right functions, the name of a function, and its cases."""
    refused = []
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # it ends when the grader ends
    with Price():
        torch.ones(1).sum()  # torch imports some of itself when it is first needed
    guard(folder, refused)
    sys.path.append(str(folder / "student"))  # for importlib.import_module
    own, note = load(folder, {})
    write(folder / "out" / f"loaded{number}.pt", dict(note=note, refused=refused[:5]))
    while True:
        path = folder / "in" / f"{number}.pt"
        while not path.exists():
            time.sleep(0.002)
        batch = torch.load(path, weights_only=True)
        space = load(folder, batch["texts"])[0] if batch["texts"] else own
        for i, case in enumerate(batch["cases"]):
            try:
                reply = answer(space.get(batch["function"]), case)
            except BaseException as error:
                reply = dict(error=in_words(error))
            write(folder / "out" / f"{number}_{i}.pt", reply | dict(refused=refused[:5]))
        number += 1


main(Path(sys.argv[1]), int(sys.argv[2]))
