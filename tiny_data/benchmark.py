"""What every mechanism costs, measured: the tables that `python video_attention.py` prints.

Times and memory are of one layer, a scheme's steps each added to what came in, for one clip of T*S tokens
without class token. Whatever is compared was measured in the same run: copy the ratios, not the milliseconds.
"""

import argparse
import ctypes
import json
import math
import os
import statistics
import sys
import time
from functools import partial
from itertools import accumulate

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

import video_attention as va

GROWTH = (1, 2, 4, 8)  # the rows of a frame, times this: by default 1,568 to 12,544 tokens
KEYS = {"parameters": 1e6, "macs": 1e9, "forward_ms": 1.0, "both_ms": 1.0, "peak_mb": 1.0}  # and their units

# ==== MEASURING =============================================================================================


def keep_memory():
    """Let the C library keep what a tensor leaves for the next one, as torch's own allocator does on a GPU.

    By itself glibc hands every block over 32 MB back to the system, and a new one costs a page fault for
    every 4 KB: the time of a layer bends upwards where its tensors pass that size, whatever it computes.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back


def once(call, device="cpu"):
    """Milliseconds of one call()."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def milliseconds(call, device="cpu", repeats=5):
    """Median time of call(), after one run to warm up."""
    once(call, device)
    return statistics.median(once(call, device) for _ in range(repeats))


def compared(call, other, device="cpu", repeats=5):
    """Median time of call() over that of other(), in turns, so that both meet the same machine."""
    once(call, device), once(other, device)
    times = [(once(call, device), once(other, device)) for _ in range(repeats)]
    mine, others = zip(*times)
    return statistics.median(mine) / statistics.median(others)


def peak_megabytes(call, device="cpu"):
    """The most memory that call() holds at once, beyond what was held before it, in 10**6 bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
        call()
    events = sorted(run.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]")) / 1e6


def layer(modules, grid):
    """One layer as a function of tokens: every step is added to what came in."""

    def run(x):
        for module in modules:
            x = x + module(x, grid)
        return x

    return run


def macs_of(scheme, grid, dim, heads):
    """Multiply-accumulates for one clip, projections included, counted by torch on shapes alone."""
    with torch.device("meta"):
        modules = [step(dim, heads) for step in va.steps_of(scheme)]
        x = torch.empty(1, math.prod(grid), dim)
    with FlopCounterMode(display=False) as counter:
        layer(modules, grid)(x)
    return counter.get_total_flops() // 2


def passes(name, grid, dim=768, heads=12, device="cpu", dtype=torch.float32, compiled=False):
    """A scheme, by its name in ATTENTION or as a list of steps -> its modules, and two functions that run
    them on random tokens of one clip: forward, and forward and backward."""
    modules = nn.ModuleList(step(dim, heads) for step in va.steps_of(name)).to(device, dtype)
    run = torch.compile(layer(modules, grid), fullgraph=True) if compiled else layer(modules, grid)
    x = torch.randn(1, math.prod(grid), dim, device=device, dtype=dtype, requires_grad=True)

    def forward():
        with torch.no_grad():
            run(x)

    def both():
        run(x).sum().backward()

    return modules, forward, both


def measure(name, grid, dim=768, heads=12, device="cpu", dtype=torch.float32, compiled=False, repeats=5):
    """What a scheme costs on the grid (T, H, W).

    -> {"parameters", "macs", "forward_ms", "both_ms" (forward and backward), "peak_mb" (of both)}
    """
    modules, forward, both = passes(name, grid, dim, heads, device, dtype, compiled)
    return {
        "parameters": sum(parameter.numel() for parameter in modules.parameters()),
        "macs": macs_of(name, grid, dim, heads),
        "forward_ms": milliseconds(forward, device, repeats),
        "both_ms": milliseconds(both, device, repeats),
        "peak_mb": peak_megabytes(both, device),
    }


def exponent(sizes, values):
    """The slope of a straight line through log(values) over log(sizes): values grow as sizes ** slope."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


# ==== THE TWO TABLES ========================================================================================


def progress(done, total, doing):
    """A progress bar on stderr, so that what is printed can be kept."""
    bar, end = "#" * (30 * done // total), "" if done < total else "\n"
    print(f"\r[{bar:30}] {done}/{total} {doing:36}", end=end, file=sys.stderr, flush=True)


def print_costs(results):
    """Every scheme at the first size, and beside each number its ratio to joint attention's."""
    heads = ("M parameters", "GMACs", "forward ms", "forward + backward ms", "peak MB")
    print(f"{'':22}" + "".join(f"{head:>22}" for head in heads))
    print(f"{'':22}" + f"{'/ joint':>22}" * len(heads))
    joint = results["joint"][0]
    for name, (first, *_) in results.items():
        cells = (f"{first[key] / unit:14.2f}{first[key] / joint[key]:8.2f}" for key, unit in KEYS.items())
        print(f"{name:22}" + "".join(cells))


def print_growth(results, sizes):
    """Forward and backward for growing N, and the exponents of time, memory and multiply-accumulates."""
    print(f"{'forward + backward ms':22}" + "".join(f"{f'N={size}':>11}" for size in sizes), end="")
    print(f"{'time ~ N^':>12}{'memory ~ N^':>13}{'MACs ~ N^':>11}")
    for name, rows in results.items():
        slopes = [exponent(sizes, [row[key] for row in rows]) for key in ("both_ms", "peak_mb", "macs")]
        print(f"{name:22}" + "".join(f"{row['both_ms']:11.1f}" for row in rows), end="")
        print(f"{slopes[0]:12.2f}{slopes[1]:13.2f}{slopes[2]:11.2f}")


def run_tables(names, grids, settings):
    """{name: a measurement for every grid}"""
    results = {name: [] for name in names}
    for i, name in enumerate(names):
        for j, grid in enumerate(grids):
            progress(i * len(grids) + j, len(names) * len(grids), f"{name}, N={math.prod(grid)}")
            results[name].append(measure(name, grid, **settings))
    progress(len(names) * len(grids), len(names) * len(grids), "done")
    return results


# ==== THE TARGETS: ratios that this implementation has to keep, each measured in one run ====================


def plain_trajectory(q, k, v, grid, proj_q, proj_kv):
    """Trajectory attention as the paper writes it: per-frame softmax spelled out, and all N*T trajectory
    tokens projected to keys and values. q, k, v (B, h, T*S, d) -> the same shape."""
    T, H, W = grid
    h, d = q.shape[1], q.shape[3]
    k, v = (rearrange(x, "B h (T S) d -> B h T S d", T=T) for x in (k, v))
    weights = (torch.einsum("BhId,BhTSd->BhITS", q, k) / math.sqrt(d)).softmax(dim=-1)
    y = rearrange(torch.einsum("BhITS,BhTSd->BhITd", weights, v), "B h I T d -> B I T (h d)")
    own = rearrange(y.unflatten(1, (T, H * W)).diagonal(dim1=1, dim2=3), "B S D T -> B (T S) D")
    q = rearrange(proj_q(own), "B I (h d) -> B h I d", h=h)
    k, v = rearrange(proj_kv(y), "B I T (two h d) -> two B h I T d", two=2, h=h)
    weights = (torch.einsum("BhId,BhITd->BhIT", q, k) / math.sqrt(d)).softmax(dim=-1)
    return torch.einsum("BhIT,BhITd->BhId", weights, v)


class PlainTrajectoryAttention(va.TrajectoryAttention):
    def mechanism(self, q, k, v, grid):
        return plain_trajectory(q, k, v, grid, self.proj_q, self.proj_kv)


def selection(device, dtype):
    """Choosing 128 prototypes of 1,568 tokens, and attention through them, forward and backward."""
    q, k, v = torch.randn(3, 1, 12, 1568, 64, device=device, dtype=dtype).unbind()
    prototypes = va.choose_prototypes(q, k)
    inputs = [x.requires_grad_() for x in (q, k, v, prototypes)]

    def choose():
        va.choose_prototypes(q, k)

    def attend():
        q, k, v, prototypes = inputs
        va.orthoformer_attention(q, k, v, None, prototypes).sum().backward()

    return choose, attend


def training_step(module, x):
    """Forward, backward and an update."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        module(x).float().square().mean().backward()
        optimizer.step()

    return step


def vit_and_encoder(device, dtype):
    """Training steps of ViT-B with joint attention on 8 frames of 224 x 224, and of torch's own transformer
    encoder on as many tokens."""
    model = va.VideoTransformer("joint", position="joint").to(device, dtype)
    video = torch.randn(1, 3, 8, 224, 224, device=device, dtype=dtype)
    block = nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(block, 12, enable_nested_tensor=False).to(device, dtype)
    tokens = torch.randn(1, 1 + 8 * 14 * 14, 768, device=device, dtype=dtype)
    return training_step(model, video), training_step(encoder, tokens)


def targets(settings, grids, repeats):
    """Yields (what, measured, at most): ratios and slacks at the first of the grids, exponents over all."""
    grid, dim, heads = grids[0], settings["dim"], settings["heads"]
    where = (settings["device"], repeats)

    def both(scheme):
        return passes(scheme, grid, **settings)[2]

    trajectory, plain = both("trajectory"), both([PlainTrajectoryAttention])
    yield "trajectory / its plain form, time", compared(trajectory, plain, *where), 0.45
    memory = peak_megabytes(trajectory, where[0]) / peak_megabytes(plain, where[0])
    yield "trajectory / its plain form, memory", memory, 0.5
    pairs = ((both("mixing"), both("space")) for _ in range(9))  # where tensors come to lie makes some 2%
    yield "mixing / space, time", statistics.median(compared(*pair, *where) for pair in pairs), 1.05
    for name in ("divided", "axial", "local_global"):
        share = macs_of(name, grid, dim, heads) / macs_of("joint", grid, dim, heads)
        yield f"{name} / joint, time / MACs", compared(both(name), both("joint"), *where) / share, 1.3
    sizes = [math.prod(grid) for grid in grids]
    for name in ("orthoformer", "nystrom", "performer", "linear"):
        rows = [measure(name, grid, repeats=repeats, **settings) for grid in grids]
        for key, what in (("both_ms", "time"), ("peak_mb", "memory")):
            yield f"{name}, exponent of {what} over N", exponent(sizes, [row[key] for row in rows]), 1.1
    choose, attend = selection(settings["device"], settings["dtype"])
    yield "choosing prototypes / attending through them", compared(choose, attend, *where), 0.25
    step, plain_step = vit_and_encoder(settings["device"], settings["dtype"])
    yield "ViT-B, a training step / torch.nn's encoder", compared(step, plain_step, *where), 1.0


def print_targets(rows):
    """-> whether all were kept."""
    missed = 0
    for what, measured, limit in rows:
        missed += measured > limit
        print(f"{what:46}{measured:7.2f}, at most {limit:.2f}{'  MISSED' * (measured > limit)}", flush=True)
    return missed == 0


# ==== A WHOLE TRAINING STEP =================================================================================


def utilisation(scheme, video, repeats=5, compiled=False, **size):
    """A training step of VideoTransformer(scheme, **size), ViT-B by default, on a video of its own size.

    -> {"step_ms", "tflops"}: 10**12 operations a second that the model asks for. A multiply-accumulate is two
    and backward twice forward, as model FLOP utilisation has it; what is computed again earns nothing.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        va.VideoTransformer(scheme, **size)(torch.empty(video.shape))
    model = va.VideoTransformer(scheme, **size).to(video)
    run = torch.compile(model, fullgraph=True) if compiled else model
    step_ms = milliseconds(training_step(run, video), video.device.type, repeats)
    return {"step_ms": step_ms, "tflops": 3 * counter.get_total_flops() / step_ms / 1e9}


def print_utilisation(rows, peak):
    """rows of (scheme, measurement); peak, what the device can do in 10**12 operations a second, or None."""
    print(f"{'a training step':22}{'ms':>12}{'TFLOP/s':>12}" + f"{'of peak':>12}" * bool(peak))
    for name, row in rows:
        share = f"{row['tflops'] / peak:12.1%}" if peak else ""
        print(f"{name:22}{row['step_ms']:12.1f}{row['tflops']:12.2f}{share}", flush=True)


# ==== THE COMMAND ===========================================================================================


def arguments():
    parser = argparse.ArgumentParser(prog="video_attention.py", description=print_costs.__doc__)
    parser.add_argument("--grid", nargs=3, type=int, default=(8, 14, 14), metavar=("T", "H", "W"))
    parser.add_argument("--dim", type=int, default=768, help="D, the width of a token")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--schemes", nargs="+", default=va.ATTENTION, choices=va.ATTENTION, metavar="NAME")
    parser.add_argument("--growth", nargs="+", type=int, default=GROWTH, metavar="N", help="times the rows")
    parser.add_argument("--keep-memory", action="store_true", help="no page faults, see keep_memory (glibc)")
    parser.add_argument("--targets", action="store_true", help="only the ratios that have to be kept")
    parser.add_argument("--train", type=int, metavar="CLIPS", help="only a training step of ViT-B on so many")
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="of the device, for --train")
    parser.add_argument("--json", action="store_true", help="the numbers for programs")
    return parser.parse_args()


def main():
    args = arguments()
    if args.keep_memory:
        keep_memory()
    T, H, W = args.grid
    grids = [(T, H * factor, W) for factor in args.growth]
    settings = dict(dim=args.dim, heads=args.heads, device=args.device, dtype=getattr(torch, args.dtype))
    if args.targets:
        sys.exit(not print_targets(targets(settings, grids, args.repeats)))
    if args.train:
        video = torch.randn(args.train, 3, 8, 224, 224, device=args.device, dtype=settings["dtype"])
        size = f"ViT-B, a batch of {args.train} x 8 x 224 x 224"
        print(f"{size}, {args.dtype}{', compiled' * args.compile}, {device_name(args.device)}")
        rows = ((name, utilisation(name, video, args.repeats, args.compile)) for name in args.schemes)
        print_utilisation(rows, args.peak)
        return
    names = ["joint"] + [name for name in args.schemes if name != "joint"]
    results = run_tables(names, grids, settings | dict(compiled=args.compile, repeats=args.repeats))
    if args.json:
        print(json.dumps(dict(grids=grids, torch=torch.__version__, results=results) | vars(args)))
        return
    size = f"{T} frames of {H} x {W} patches, D={args.dim}, {args.heads} heads"
    print(f"{size}, {args.dtype}{', compiled' * args.compile}, {device_name(args.device)}")
    print_costs(results)
    if len(grids) > 1:  # one size has no slope
        print()
        print_growth(results, [math.prod(grid) for grid in grids])


def device_name(device):
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, torch {torch.__version__}"
