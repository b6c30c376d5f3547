"""What every scheme costs beside joint attention, measured in one run.

    python -m tiny_data.benchmark                      every scheme, 8 x 14 x 14 patches, on the CPU
    python -m tiny_data.benchmark --schemes divided axial --grid 16 14 14
    python -m tiny_data.benchmark --device cuda --dtype bfloat16 --compile
    python -m tiny_data.benchmark --against old.py     ratios to another video_attention.py

Prints a Markdown table. A row is one layer, all steps of a scheme, each added to what came in, for
one clip with the class tokens that the scheme's model has. Times are medians, and a scheme takes
turns with what it is compared with, so that both meet the same machine: copy the ratios, not the
milliseconds.

M parameters    of the layer, in millions
GMACs           multiply-accumulates of a forward pass with the projections, counted by torch
calls           operations of torch that are no views in a forward pass of the steps, counted on
                shapes alone: the same on every machine, and what a GPU pays for small tensors.
                Softmax attention is five: q and k scaled, product, softmax, product.
peak MB         the most that forward and backward hold at once beyond weights and input
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import statistics
import time

import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import video_attention


class Layer(nn.Module):
    """All steps of a scheme, each added to what came in, as in a block."""

    def __init__(self, file, name, dim, heads):
        super().__init__()
        self.steps = nn.ModuleList(make(dim, heads) for make in file.ATTENTION[name])

    def forward(self, x, grid):
        for step in self.steps:
            x = x + step(x, grid)
        return x


def load(path):
    """Another video_attention.py as a module of its own."""
    spec = importlib.util.spec_from_file_location("the_other_video_attention", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokens_of(file, name, grid):
    """How many tokens a clip has: its patches and the class tokens that the scheme's model has."""
    class_tokens = {"none": 0, "clip": 1, "frame": grid[0]}[file.CLASS_TOKEN.get(name, "clip")]
    return class_tokens + math.prod(grid)


def is_view(operation):
    """Whether an operation only looks at its input in another shape: its schema then says that the
    output is the input's memory, and that nothing is written there. `_unsafe_view`, the last step
    of a reshape that has copied, is one without saying so."""
    aliases = [output.alias_info for output in operation._schema.returns]
    says_so = any(alias is not None and not alias.is_write for alias in aliases)
    return says_so or operation.name() == "aten::_unsafe_view"


class CallCounter(TorchDispatchMode):
    """Counts the operations that run inside `with CallCounter() as counter`, views aside."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.calls += not is_view(operation)
        return operation(*args, **(kwargs or {}))


def counted(file, name, grid, dim, heads):
    """{"parameters", "macs", "calls"} of one layer and one clip."""
    with torch.device("meta"):
        layer = Layer(file, name, dim, heads).eval()
        x = torch.empty(1, tokens_of(file, name, grid), dim)
    with torch.no_grad(), FlopCounterMode(display=False) as operations, CallCounter() as counter:
        for step in layer.steps:
            step(x, grid)
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    macs = operations.get_total_flops() // 2
    return {"parameters": parameters, "macs": macs, "calls": counter.calls}


def passes(file, name, args):
    """Two functions that run a layer on random tokens: forward, and forward and backward."""
    where = dict(device=args.device, dtype=getattr(torch, args.dtype))
    layer = Layer(file, name, args.dim, args.heads).eval().to(**where)
    run = torch.compile(layer, fullgraph=True) if args.compile else layer
    x = torch.randn(1, tokens_of(file, name, args.grid), args.dim, **where, requires_grad=True)
    forward = torch.no_grad()(lambda: run(x, args.grid))
    return {"forward": forward, "both": lambda: run(x, args.grid).sum().backward()}


def milliseconds(call, device):
    """The time of one call."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def compared(call, other, device, repeats):
    """Two calls in turns -> the median time of the first, the median of its ratio to the other."""
    turns = [(milliseconds(call, device), milliseconds(other, device)) for _ in range(1 + repeats)]
    turns = turns[1:]  # the first warms up
    ratios = [first / second for first, second in turns]
    return statistics.median(first for first, _ in turns), statistics.median(ratios)


def peak_megabytes(call, device):
    """The most memory that a call holds at once beyond what was held before it, in 10**6 bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints when it starts
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        call()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(changes)) / 1e6


def measure(name, other_file, other_name, args):
    """A scheme beside another scheme, or beside itself in another file: what one row shows."""
    torch.compiler.reset()  # no more than a few compiled layers are kept
    size = args.grid, args.dim, args.heads
    row = {"scheme": name} | counted(video_attention, name, *size)
    calls, others = passes(video_attention, name, args), passes(other_file, other_name, args)
    for key in ("forward", "both"):
        result = compared(calls[key], others[key], args.device, args.repeats)
        row[f"{key}_ms"], row[f"{key}_ratio"] = result
    row["peak_mb"] = peak_megabytes(calls["both"], args.device)
    if args.against:
        row["calls_before"] = counted(other_file, other_name, *size)["calls"]
        row["peak_mb_before"] = peak_megabytes(others["both"], args.device)
    return row


def measured(args):
    """Every scheme that was asked for, beside joint attention or beside itself in another file."""
    other = load(args.against) if args.against else video_attention
    names = args.schemes or video_attention.ATTENTION
    for name in tqdm([name for name in names if name in other.ATTENTION], unit="scheme"):
        yield measure(name, other, name if args.against else "joint", args)


def table(rows, against):
    """The rows as Markdown."""
    heads = (
        "scheme, M parameters, GMACs, calls, forward ms, / joint, forward + backward ms, / joint"
    )
    heads += ", peak MB, calls before, peak MB before" if against else ", peak MB"
    heads = heads.replace("joint", "before" if against else "joint").split(", ")
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row in rows:
        cells = [row["scheme"], f"{row['parameters'] / 1e6:.2f}", f"{row['macs'] / 1e9:.2f}"]
        cells += [str(row["calls"]), f"{row['forward_ms']:.1f}", f"{row['forward_ratio']:.2f}"]
        cells += [f"{row['both_ms']:.1f}", f"{row['both_ratio']:.2f}", f"{row['peak_mb']:.0f}"]
        cells += [str(row["calls_before"]), f"{row['peak_mb_before']:.0f}"] if against else []
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def title(args):
    """One line that says what was measured and where."""
    size = "{} frames of {} x {} patches, D={}, {} heads".format(*args.grid, args.dim, args.heads)
    on_cuda, compiled = args.device == "cuda", ", compiled" if args.compile else ""
    threads = f"CPU, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if on_cuda else threads
    return f"{size}, {args.dtype}{compiled}, {device}, torch {torch.__version__}"


def arguments(words=None):
    parser = argparse.ArgumentParser("python -m tiny_data.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--grid", nargs=3, type=int, default=(8, 14, 14), metavar=("T", "H", "W"))
    option("--dim", type=int, default=768, help="D, the width of a token")
    option("--heads", type=int, default=12)
    option("--device", choices=("cpu", "cuda"), default="cpu")
    option("--dtype", choices=("float32", "bfloat16", "float16", "float64"), default="float32")
    option("--compile", action="store_true", help="with torch.compile")
    option("--threads", type=int, help="of the CPU")
    option("--repeats", type=int, default=5, help="of which the median is taken")
    option("--schemes", nargs="+", choices=video_attention.ATTENTION, metavar="NAME")
    option("--against", metavar="FILE", help="another video_attention.py, instead of joint")
    option("--json", action="store_true", help="the numbers for programs")
    return parser.parse_args(words)


def main(words=None):
    args = arguments(words)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, where = list(measured(args)), title(args)
    as_json = json.dumps({"arguments": vars(args), "where": where, "rows": rows})
    print(as_json if args.json else f"{where}\n\n{table(rows, args.against)}")


if __name__ == "__main__":
    main()
