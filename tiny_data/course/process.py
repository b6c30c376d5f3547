"""The grader's end of worker.py: starts it, hands it files of inputs, reads files of results."""

import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
LARGEST = 16 * 10**6  # bytes of one file of results
CALL, LOADING, ALL = 10, 40, 180  # seconds for a call, an import, a submission
VARIABLES = dict.fromkeys(("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED"), "1")
VARIABLES |= {"PYTHONPATH": sysconfig.get_paths()["purelib"], "CUDA_VISIBLE_DEVICES": ""}


class Gone(Exception):
    """The process ended or did not answer in time; the words say which."""


@functools.cache
def isolation():
    """The words of a command that isolates what follows them, or none if it does not work here."""
    words = [shutil.which("bwrap") or "", "--unshare-all", "--die-with-parent", "--new-session"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in ("/usr", "/lib", "/lib64", "/bin", sys.prefix, sys.base_prefix, torch.__path__[0]):
        words += ["--ro-bind-try", path, path]
    test = dict(args=[*words, sys.executable, "-c", "import torch"], stderr=subprocess.DEVNULL)
    return words if words[0] and subprocess.run(**test).returncode == 0 else []


def is_plain(x):
    """Whether all tensors are of the ordinary kind and no larger than their file."""
    if isinstance(x, (list, tuple, dict)):
        return all(is_plain(y) for y in (x.values() if isinstance(x, dict) else x))
    ordinary = not torch.is_tensor(x) or (x.layout == torch.strided and not x.is_complex())
    return ordinary and (not torch.is_tensor(x) or (x.is_cpu and x.nbytes <= LARGEST))


def read(path):
    """A file of results, of a process that nobody trusts: regular, small and not compressed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            assert os.path.isfile(descriptor), "no regular file"
            data = io.BytesIO(file.read(LARGEST + 1))
        size = sum(entry.file_size for entry in zipfile.ZipFile(data).infolist())
        assert max(size, data.getbuffer().nbytes) <= LARGEST, "too many bytes"
        data.seek(0)
        reply = torch.load(data, weights_only=True)
        assert isinstance(reply, dict) and is_plain(reply), "it is not what a function returns"
        return reply
    except Exception as error:
        raise Gone(f"what came back could not be read: {error}"[:200]) from None


class Submission:
    """One student's file in a process of its own, and a new process when that one is gone."""

    def __init__(self, path, base):
        self.path, self.base, self.limit = path, base, time.monotonic() + ALL
        self.process, self.number, self.note, self.refused, self.stuck = None, 0, "", [], ""

    def copies(self):
        self.folder = Path(tempfile.mkdtemp(prefix="course_"))
        for name in ("in", "out", "student"):
            (self.folder / name).mkdir()
        for name in ("worker.py", "calling.py"):
            shutil.copy(HERE / name, self.folder)
        (self.folder / "base.py").write_text(self.base, encoding="utf-8")
        for file in self.path.parent.glob("*.py") if self.path.name == "student.py" else []:
            if file.is_file() and not file.is_symlink() and file.stat().st_size < 10**6:
                shutil.copyfile(file, self.folder / "student" / file.name)
        shutil.copyfile(self.path, self.folder / "student" / "student.py")

    def start(self):
        if self.stuck:
            raise Gone(self.stuck)
        self.stuck = "importing the file ended the process, or took too long"
        self.copies()
        at = str(self.folder)
        words = [*isolation(), *(["--bind", at, at, "--chdir", at] if isolation() else [])]
        words += [sys.executable, "-P", f"{at}/worker.py", at, str(self.number)]
        options = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        options |= dict(cwd=at, env=VARIABLES | {"TMPDIR": at}, start_new_session=True)
        self.process = subprocess.Popen(words, **options)
        reply = self.wait(f"loaded{self.number}.pt", LOADING)
        self.stuck, self.note = "", self.note or str(reply.get("note", ""))[:500]

    def close(self):
        """End the process and all that it has started, and remove its folder."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                traces = os.fsencode(os.readlink(entry / "cwd")) + (entry / "environ").read_bytes()
                if os.fsencode(self.folder) in traces:
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.process = None

    def wait(self, name, seconds):
        path, deadline = self.folder / "out" / name, min(time.monotonic() + seconds, self.limit)
        while not path.exists():
            if self.process.poll() is not None and not path.exists():
                raise Gone(f"the process ended by itself, exit code {self.process.returncode}")
            if time.monotonic() > deadline:
                raise Gone(f"no answer in {seconds} s, or in {ALL} s for the whole submission")
            time.sleep(0.002)
        reply = read(path)
        words = [str(what)[:120] for what in list(reply.get("refused", ()))[:5]]
        self.refused += [what for what in words if what not in self.refused]
        return reply

    def ask(self, function, cases, texts):
        """A reply for each case; when the process is gone its error stands for all that is left."""
        replies = []
        try:
            if self.process is None:
                self.start()
            batch = dict(function=function, cases=[vars(x) for x in cases], texts=texts)
            torch.save(batch, self.folder / "in" / "new")
            os.replace(self.folder / "in" / "new", self.folder / "in" / f"{self.number}.pt")
            for i in range(len(cases)):
                replies.append(self.wait(f"{self.number}_{i}.pt", CALL))
            self.number += 1
        except Gone as error:
            self.close()
            replies += [dict(error=str(error), gone=True)] * (len(cases) - len(replies))
        return replies
