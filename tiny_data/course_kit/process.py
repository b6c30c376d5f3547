"""The grader's end of worker.py: starts it in a temporary folder, asks, and kills it when it takes
too long.
"""

import os
import selectors
import shutil
import signal
import site
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import handout
from .checks import Handed, Layer
from .worker import decode, encode, pack, unpack

WORKER = Path(__file__).with_name("worker.py")
LOADING = 60.0  # seconds that a file may take to be imported, torch included
LARGEST = 2 * 10**6  # bytes of a file
LARGEST_REPLY = 3 * 10**8


class Gone(Exception):
    """The process ended or did not answer in time; the words say which."""


@dataclass
class Reply:
    """What came of a call."""

    value: object = None
    error: dict = None
    gradients: object = None
    changed: list = field(default_factory=list)
    macs: float = None
    fused: bool = False


def environment():
    """Variables of a worker: where torch is, and nothing that leads to this folder."""
    kept = {
        key: os.environ[key]
        for key in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "COURSE_MEMORY")
        if key in os.environ
    }
    packages = [x for x in sys.path if "packages" in x] + [site.getusersitepackages()]
    kept |= dict(
        PYTHONPATH=os.pathsep.join(packages),
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        LANG="C.UTF-8",
        CUDA_VISIBLE_DEVICES="",
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONHASHSEED="0",
        PYTHONUTF8="1",
    )
    return kept


def bundle(value, tensors):
    """Like encode, for what only the grader sends: functions and layers handed over."""
    if isinstance(value, Handed):
        return {"function": value.name}
    if isinstance(value, Layer):
        return {"layer": [encode(x, tensors) for x in value.tensors()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [bundle(x, tensors) for x in value]}
    return encode(value, tensors)


class Submission:
    """One student's file in a process of its own; a new process when the old one is gone."""

    def __init__(self, path, given, contracts):
        self.path, self.given, self.contracts = Path(path), given, contracts
        self.folder, self.process, self.replaced = None, None, {}
        self.notes, self.refused, self.missing, self.ends = [], [], [], []
        self.fused = set()  # functions that called torch's fused attention
        self.stuck = ""  # why the file cannot even be imported

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    # ---- the process ----

    def start(self):
        if self.stuck:
            raise Gone(self.stuck)
        self.stuck = "the file was not imported within a minute, or ended the process"
        self.folder = tempfile.mkdtemp(prefix="course_")
        shutil.copyfile(WORKER, Path(self.folder, "worker.py"))
        beside = self.path.parent.glob("*.py") if self.path.name == "student.py" else []
        for file in [*beside, self.path]:  # helper modules that were handed in with it
            if (
                file.is_file()
                and not file.is_symlink()
                and file.stat().st_size <= LARGEST
                and file.name != "worker.py"
            ):
                shutil.copyfile(
                    file, Path(self.folder, "student.py" if file == self.path else file.name)
                )
        self.process = subprocess.Popen(
            [sys.executable, "worker.py"],
            cwd=self.folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=os.name != "nt",
        )
        reply, _ = self.request(
            dict(what="load", text=self.text(), given=self.given, contracts=self.contracts),
            [],
            LOADING,
        )
        self.notes, self.missing, self.stuck = reply.get("notes", []), reply.get("missing", []), ""
        for name, text in self.replaced.items():
            self.request(dict(what="replace", name=name, text=text), [], LOADING)

    def text(self):
        from .worker import text_of

        return text_of(self.path.read_bytes()) or ""

    def stop(self):
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError, AttributeError):
                self.process.kill()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
            self.process = None
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    # ---- messages ----

    def request(self, tree, tensors, seconds):
        """Send a message and wait for the reply. Gone if there is none."""
        deadline = time.monotonic() + seconds
        try:
            self.process.stdin.write(pack(tree, tensors))
            self.process.stdin.flush()
            sizes = struct.unpack("<QQ", self.read(16, deadline))
            if sum(sizes) > LARGEST_REPLY:
                raise Gone("it sent back hundreds of megabytes")
            reply, tensors = unpack(self.read(sizes[0], deadline), self.read(sizes[1], deadline))
        except (BrokenPipeError, OSError):
            self.gone("the process ended")
        except Gone as error:
            self.gone(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error):
            self.gone("what came back was no reply of the worker")
        for what in reply.get("refused", []):
            if what not in self.refused:
                self.refused.append(what)
        return reply, tensors

    def gone(self, words):
        code = self.process.poll()
        if code is not None:
            words += f" by itself (exit code {code})"
        self.stop()
        raise Gone(words) from None

    def read(self, size, deadline):
        pipe, data = self.process.stdout, bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while len(data) < size:
                left = deadline - time.monotonic()
                if left <= 0 or not ready.select(left):
                    raise Gone("no answer in time")
                more = os.read(pipe.fileno(), min(size - len(data), 1 << 20))
                if more == b"":
                    time.sleep(0.05)
                    raise Gone("the process ended")
                data += more
        return bytes(data)

    # ---- what the checks ask ----

    def call(self, name, args, options, seconds=30.0, leaves=(), weight=None, count=False):
        """The Reply of a function of the submission."""
        if self.process is None:
            self.start()
        tensors = []
        tree = dict(
            what="call",
            name=name,
            args=bundle(list(args), tensors),
            options={key: bundle(value, tensors) for key, value in options.items()},
            count=count,
        )
        tree["leaves"] = [next(i for i, x in enumerate(tensors) if x is leaf) for leaf in leaves]
        if weight is not None:
            tensors.append(weight)
            tree["weight"] = len(tensors) - 1
        reply, found = self.request(tree, tensors, seconds)
        if "error" in reply:
            return Reply(error=reply["error"])
        if reply.get("fused"):
            self.fused.add(name)
        return Reply(
            decode(reply["value"], found),
            None,
            decode(reply["gradients"], found) if "gradients" in reply else None,
            reply.get("changed", []),
            reply.get("macs"),
            reply.get("fused", False),
        )

    def replace(self, name, text):
        """From now on this function is the one of the text."""
        self.replaced[name] = text
        if self.process is not None:
            self.request(dict(what="replace", name=name, text=text), [], LOADING)
