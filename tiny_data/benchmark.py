"""What every mechanism costs, measured.

    python -m tiny_data.benchmark                        two tables: a layer's cost, how it grows
    python -m tiny_data.benchmark --schemes joint divided space+joint
    python -m tiny_data.benchmark --targets              the ratios that have to be kept
    python -m tiny_data.benchmark --train 8 --device cuda --dtype bfloat16 --compile

Times and memory are of one layer, a scheme's steps each added to what came in, for one clip of T*S
tokens without class token. space+joint are blocks that differ: a layer of each in the tables, and
blocks in turn in --train. Whatever is compared was measured in the same run: copy the ratios, not
the milliseconds.
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
from torch.utils.flop_counter import FlopCounterMode

import video_attention as va

GROWTH = (1, 2, 4, 8)  # the rows of a frame, times this: by default 1,568 to 12,544 tokens
KEYS = {"parameters": 1e6, "macs": 1e9, "forward_ms": 1.0, "both_ms": 1.0, "peak_mb": 1.0}  # units
HEADINGS = ("M parameters", "GMACs", "forward ms", "forward + backward ms", "peak MB")

# ==== MEASURING ===================================================================================


def keep_memory():
    """Let the C library keep what a tensor leaves for the next one, as torch does on a GPU.

    By itself glibc hands every block over 32 MB back to the system, and a new one costs a page
    fault for every 4 KB: the time of a layer bends upwards where its tensors pass that size.
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
    """The most memory that call() holds at once beyond what was held before it, in 10**6 bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints when it starts
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as run:
        call()
    events = sorted(run.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = (event.nbytes() for event in events if event.name() == "[memory]")
    return max(accumulate(changes)) / 1e6


def schemes_in(scheme):
    """A name in ATTENTION or several joined by +, or a list of steps -> a list of schemes."""
    return scheme.split("+") if isinstance(scheme, str) else [scheme]


def steps_in(scheme):
    """The steps of a layer, or of a layer of each."""
    return [step for part in schemes_in(scheme) for step in va.steps_of(part)]


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
        modules = [step(dim, heads) for step in steps_in(scheme)]
        x = torch.empty(1, math.prod(grid), dim)
    with FlopCounterMode(display=False) as counter:
        layer(modules, grid)(x)
    return counter.get_total_flops() // 2


def passes(scheme, grid, dim=768, heads=12, device="cpu", dtype=torch.float32, compiled=False):
    """A scheme -> its modules, and two functions that run them on random tokens of one clip:
    forward, and forward and backward."""
    modules = [step(dim, heads) for step in steps_in(scheme)]
    modules = nn.ModuleList(modules).to(device, dtype)
    run = torch.compile(layer(modules, grid), fullgraph=True) if compiled else layer(modules, grid)
    x = torch.randn(1, math.prod(grid), dim, device=device, dtype=dtype, requires_grad=True)

    def forward():
        with torch.no_grad():
            run(x)

    def both():
        run(x).sum().backward()

    return modules, forward, both


def measure(scheme, grid, dim=768, heads=12, device="cpu", dtype=torch.float32, compiled=False,
            repeats=5):
    """What a scheme costs on the grid (T, H, W).

    -> {"parameters", "macs", "forward_ms", "both_ms" (forward and backward), "peak_mb" (of both)}
    """
    modules, forward, both = passes(scheme, grid, dim, heads, device, dtype, compiled)
    return {
        "parameters": sum(parameter.numel() for parameter in modules.parameters()),
        "macs": macs_of(scheme, grid, dim, heads),
        "forward_ms": milliseconds(forward, device, repeats),
        "both_ms": milliseconds(both, device, repeats),
        "peak_mb": peak_megabytes(both, device),
    }


def exponent(sizes, values):
    """The slope of a line through log(values) over log(sizes): values grow as sizes**slope."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


# ==== THE TWO TABLES ==============================================================================


def progress(done, total, doing):
    """A progress bar on stderr, so that what is printed can be kept."""
    bar, end = "#" * (30 * done // total), "" if done < total else "\n"
    print(f"\r[{bar:30}] {done}/{total} {doing:36}", end=end, file=sys.stderr, flush=True)


def run_tables(names, grids, settings):
    """{name: a measurement for every grid}"""
    results = {name: [] for name in names}
    for i, name in enumerate(names):
        for j, grid in enumerate(grids):
            progress(i * len(grids) + j, len(names) * len(grids), f"{name}, N={math.prod(grid)}")
            results[name].append(measure(name, grid, **settings))
    progress(len(names) * len(grids), len(names) * len(grids), "done")
    return results


def print_costs(results):
    """Every scheme at the first size, and beside each number its ratio to joint attention's."""
    print(f"{'':22}" + "".join(f"{heading:>22}" for heading in HEADINGS))
    print(f"{'':22}" + f"{'/ joint':>22}" * len(HEADINGS))
    joint = results["joint"][0]
    for name, (first, *_) in results.items():
        cells = ((first[key] / unit, first[key] / joint[key]) for key, unit in KEYS.items())
        print(f"{name:22}" + "".join(f"{number:14.2f}{ratio:8.2f}" for number, ratio in cells))


def print_growth(results, sizes):
    """Forward and backward for growing N, and the exponents of time, memory and MACs."""
    print(f"{'forward + backward ms':22}" + "".join(f"{f'N={size}':>11}" for size in sizes), end="")
    print(f"{'time ~ N^':>12}{'memory ~ N^':>13}{'MACs ~ N^':>11}")
    for name, rows in results.items():
        print(f"{name:22}" + "".join(f"{row['both_ms']:11.1f}" for row in rows), end="")
        keys = ("both_ms", "peak_mb", "macs")
        slopes = [exponent(sizes, [row[key] for row in rows]) for key in keys]
        print(f"{slopes[0]:12.2f}{slopes[1]:13.2f}{slopes[2]:11.2f}")


# ==== THE TARGETS: ratios that this implementation has to keep, each measured in one run ==========


class PlainTrajectoryAttention(va.TrajectoryAttention):
    """Trajectory attention as the paper writes it: softmax weights spelled out in every frame, and
    all N*T trajectory tokens projected to keys and values."""

    def first_stage(self, q, k, v, T):
        readable = lambda q, k, v: va.attend(q, k, v, return_weights=True)[0]
        return va.attend_per_frame(q, k, v, T, readable)

    def second_stage(self, y, proj_q, proj_kv):
        return va.attend_along_trajectories(y, proj_q, proj_kv)


def selection(device, dtype):
    """Choosing 128 prototypes of 1,568 tokens, and attention through them, forward and backward."""
    grid = (8, 14, 14)
    q, k, v = torch.randn(3, 1, 12, math.prod(grid), 64, device=device, dtype=dtype).unbind()
    prototypes = va.orthogonal_prototypes(q, k, 128)
    inputs = [x.requires_grad_() for x in (q, k, v, prototypes)]

    def choose():
        va.orthogonal_prototypes(q, k, 128)

    def attend():
        q, k, v, prototypes = inputs
        va.orthoformer_attention(q, k, v, grid, prototypes).sum().backward()

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
    """Training steps of ViT-B with joint attention on 8 frames of 224 x 224, and of torch's own
    transformer encoder on as many tokens."""
    model = va.VideoTransformer("joint", position="joint").to(device, dtype)
    video = torch.randn(1, 3, 8, 224, 224, device=device, dtype=dtype)
    options = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    block = nn.TransformerEncoderLayer(768, 12, 3072, **options)
    encoder = nn.TransformerEncoder(block, 12, enable_nested_tensor=False).to(device, dtype)
    tokens = torch.randn(1, 1 + 8 * 14 * 14, 768, device=device, dtype=dtype)
    return training_step(model, video), training_step(encoder, tokens)


def targets(settings, grids, repeats):
    """Yields (what, measured, at most): ratios at the first of the grids, exponents over all."""
    where = (settings["device"], repeats)
    yield from layer_targets(settings, grids[0], where)
    sizes = [math.prod(grid) for grid in grids]
    for name in ("orthoformer", "nystrom", "performer", "linear"):
        rows = [measure(name, grid, repeats=repeats, **settings) for grid in grids]
        for key, what in (("both_ms", "time"), ("peak_mb", "memory")):
            slope = exponent(sizes, [row[key] for row in rows])
            yield f"{name}, exponent of {what} over N", slope, 1.1
    choose, attend = selection(settings["device"], settings["dtype"])
    yield "choosing prototypes / attending through them", compared(choose, attend, *where), 0.25
    step, plain_step = vit_and_encoder(settings["device"], settings["dtype"])
    yield "ViT-B, a training step / torch.nn's encoder", compared(step, plain_step, *where), 1.0


def layer_targets(settings, grid, where):
    """Of one layer: trajectory beside its plain form, mixing beside space, and whether a scheme is
    as much faster than joint attention as it has fewer multiply-accumulates."""

    def both(scheme):
        return passes(scheme, grid, **settings)[2]

    trajectory, plain = both("trajectory"), both([PlainTrajectoryAttention])
    yield "trajectory / its plain form, time", compared(trajectory, plain, *where), 0.45
    memory = peak_megabytes(trajectory, where[0]) / peak_megabytes(plain, where[0])
    yield "trajectory / its plain form, memory", memory, 0.5
    ratios = [compared(both("mixing"), both("space"), *where) for _ in range(9)]
    yield "mixing / space, time", statistics.median(ratios), 1.05  # where tensors lie makes 2%
    size = grid, settings["dim"], settings["heads"]
    for name in ("divided", "factorised", "axial", "local_global", "window", "shifted_windows"):
        macs = macs_of(name, *size), macs_of("joint", *size)
        ratio = compared(both(name), both("joint"), *where) / (macs[0] / macs[1])
        yield f"{name} / joint, time / MACs", ratio, 1.3


def print_targets(rows):
    """-> whether all were kept."""
    missed = 0
    for what, measured, limit in rows:
        missed += measured > limit
        note = "  MISSED" * (measured > limit)
        print(f"{what:46}{measured:7.2f}, at most {limit:.2f}{note}", flush=True)
    return missed == 0


# ==== A WHOLE TRAINING STEP =======================================================================


def utilisation(scheme, video, repeats=5, compiled=False, **size):
    """A training step of VideoTransformer(scheme, **size), ViT-B by default, on a video of its size

    -> {"step_ms", "tflops"}: 10**12 operations a second that the model asks for. A
    multiply-accumulate is two and backward twice forward; what is computed again earns nothing.
    """
    parts, depth = schemes_in(scheme), size.get("depth", 12)
    attention = scheme if len(parts) == 1 else [parts[i % len(parts)] for i in range(depth)]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        va.VideoTransformer(attention, **size)(torch.empty(video.shape))
    model = va.VideoTransformer(attention, **size).to(video)
    run = torch.compile(model, fullgraph=True) if compiled else model
    step_ms = milliseconds(training_step(run, video), video.device.type, repeats)
    return {"step_ms": step_ms, "tflops": 3 * counter.get_total_flops() / step_ms / 1e9}


def print_utilisation(rows, peak):
    """rows of (scheme, measurement); peak, the device's in 10**12 operations a second, or None."""
    print(f"{'a training step':22}{'ms':>12}{'TFLOP/s':>12}" + f"{'of peak':>12}" * bool(peak))
    for name, row in rows:
        share = f"{row['tflops'] / peak:12.1%}" if peak else ""
        print(f"{name:22}{row['step_ms']:12.1f}{row['tflops']:12.2f}{share}", flush=True)


# ==== THE COMMAND =================================================================================


def at_least_one(text):
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        message = f"{text[:40]} must be a whole number, 1 or more, of at most 9 digits"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def known_scheme(text):
    unknown = [name for name in text.split("+") if name not in va.ATTENTION]
    if unknown:
        message = f"{unknown[0]!r} is unknown; use, also joined by +: {', '.join(va.ATTENTION)}"
        raise argparse.ArgumentTypeError(message)
    return text


def there(text):
    """A device that this machine has."""
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r}: use cpu or cuda")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("torch finds no CUDA device here; use cpu")
    return text


def positive(text):
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return number


def arguments(words=None):
    command = "python -m tiny_data.benchmark"
    parser = argparse.ArgumentParser(command, description=__doc__.partition(",")[0])
    option, count = parser.add_argument, dict(type=at_least_one)
    option("--grid", nargs=3, **count, default=(8, 14, 14), metavar=("T", "H", "W"))
    option("--dim", **count, default=768, help="D, the width of a token")
    option("--heads", **count, default=12)
    option("--device", type=there, default="cpu", help="cpu or cuda")
    option("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    option("--compile", action="store_true", help="with torch.compile")
    option("--repeats", **count, default=5, help="of which the median is taken")
    option("--schemes", nargs="+", type=known_scheme, metavar="NAME", help="all if left out")
    option("--growth", nargs="+", **count, default=list(GROWTH), metavar="N", help="times the rows")
    option("--keep-memory", action="store_true", help="no page faults, see keep_memory (glibc)")
    option("--targets", action="store_true", help="only the ratios that have to be kept")
    option("--train", **count, metavar="CLIPS", help="only a training step of ViT-B on so many")
    option("--peak", type=positive, metavar="TFLOPS", help="of the device, for --train")
    option("--json", action="store_true", help="the numbers for programs")
    args = parser.parse_args(words)
    not_fitting = what_does_not_fit(args)
    if not_fitting:
        parser.error(not_fitting)
    args.schemes = args.schemes or list(va.ATTENTION)
    try:  # a size that a scheme refuses is found before anything is measured
        for name in args.schemes:
            macs_of(name, args.grid, args.dim, args.heads)
    except (ValueError, RuntimeError, TypeError) as error:  # the last two if torch cannot count it
        parser.error(f"{name}: {first_line(error)}")
    return args


def what_does_not_fit(args):
    """Options that would say nothing together, in words; or nothing."""
    sizes = len(set(args.growth))
    found = {
        "--peak is for --train": args.peak and not args.train,
        "--targets and --train are measured one at a time": args.targets and args.train,
        "--targets has schemes of its own: leave out --schemes": args.targets and args.schemes,
        "--targets needs two sizes or more in --growth": args.targets and sizes < 2,
        f"--growth {args.growth}: give each size once": sizes < len(args.growth),
    }
    return next((words for words, is_so in found.items() if is_so), None)


def first_line(error):
    """What torch says, without the frames of C++ below it."""
    return str(error).partition("\n")[0][:500]


def main(words=None):
    args = arguments(words)
    if args.keep_memory:
        keep_memory()
    try:
        measured(args)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        print(file=sys.stderr)  # below the progress bar
        fix = "use less --grid, --dim, --growth or --train"
        sys.exit(f"too large for this machine, {fix}: {first_line(error)}")


def measured(args):
    """What the options ask for."""
    T, H, W = args.grid
    grids = [(T, H * factor, W) for factor in args.growth]
    settings = dict(dim=args.dim, heads=args.heads, device=args.device)
    settings["dtype"] = getattr(torch, args.dtype)
    if args.targets:
        return run_targets(args, settings, grids)
    if args.train:
        return run_training(args, settings["dtype"])
    names = ["joint"] + [name for name in args.schemes if name != "joint"]
    results = run_tables(names, grids, settings | dict(compiled=args.compile, repeats=args.repeats))
    if args.json:
        return print_json(args, grids=grids, results=results)
    print_title(args, f"{T} frames of {H} x {W} patches, D={args.dim}, {args.heads} heads")
    print_costs(results)
    if len(grids) > 1:  # one size has no slope
        print()
        print_growth(results, [math.prod(grid) for grid in grids])


def run_targets(args, settings, grids):
    """Ends with an error where a ratio is not kept."""
    rows = targets(settings, grids, args.repeats)
    if args.json:
        rows = list(rows)
        print_json(args, targets=rows)
        sys.exit(any(measured > limit for what, measured, limit in rows))
    sys.exit(not print_targets(rows))


def run_training(args, dtype):
    video = torch.randn(args.train, 3, 8, 224, 224, device=args.device, dtype=dtype)
    run = partial(utilisation, video=video, repeats=args.repeats, compiled=args.compile)
    rows = ((name, run(name)) for name in args.schemes)
    if args.json:
        return print_json(args, results=dict(rows))
    print_title(args, f"ViT-B, a batch of {args.train} x 8 x 224 x 224")
    print_utilisation(rows, args.peak)


def print_json(args, **results):
    print(json.dumps(vars(args) | dict(torch=str(torch.__version__), **results)))


def print_title(args, size):
    compiled = ", compiled" * args.compile
    cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    print(f"{size}, {args.dtype}{compiled}, {device}, torch {torch.__version__}", flush=True)


if __name__ == "__main__":
    main()
