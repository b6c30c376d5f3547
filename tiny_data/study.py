"""The large study: every scheme, one recipe, several seeds, into one results file.

    python -m tiny_data.study                       train what study.json lacks; stop it at any time
    python -m tiny_data.study --plan                what is done and what is missing
    python -m tiny_data.study --only speed tries --device cuda --workers 8

A job is one model: a section, a name, a seed, and the tasks that it is trained on. Where there are
several, each of the later ones goes on from what the first has learned. Each finished job is
written at once; a second call goes on where the first stopped.

THE RECIPE  is the same for every model and was not searched for any: one block of width 48 with
            4 heads, patches of 4 x 4 pixels, mean pooling; AdamW with a rate of .003, 20 steps of
            warm-up, then a cosine; batches of 16 clips and the same 16 played backwards, which are
            of the other label, so that how a clip looks, which says nothing, weighs nothing. No
            clip is trained on twice. head_start gives all models the same push; the section "no
            push" leaves it out.
TESTS       are 2,048 new clips, for each seed others, and the same for all models of that seed:
            what varies between seeds is the start, the training clips and the test clips.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from datetime import date
from functools import lru_cache, partial
from hashlib import sha256
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import video_attention as va

from .benchmark import at_least_one
from .generator import FRAMES, SIZE, image_path_ceiling, moving_objects, path_tells

RESULTS = Path(__file__).with_name("study.json")
FILE = sha256(Path(va.__file__).read_bytes()).hexdigest()[:12]  # which video_attention.py it was
BATCH, RATE, WARM_UP = 32, 3e-3, 20  # clips a step, AdamW's peak rate, steps to get there
EVERY, TEST = 25, 2048  # steps that a point of the curve is the mean of; test clips
MODEL = dict(dim=48, depth=1, heads=4, mlp_ratio=2, num_classes=2, patch_size=4)
MODEL |= dict(class_token="none", head="mean")


# ==== TASKS AND MODELS ===========================================================================


class Task(NamedTuple):
    """Options of moving_objects, and the steps of training that a model gets."""

    options: dict
    steps: int


FAST = dict(size=(16, 32), speed=8)  # two patches a frame: in the next the object is elsewhere
TASKS = {
    "plain": Task({}, 150),
    "moving camera": Task(dict(camera=True), 600),
    "2 frames": Task(dict(frames=2), 150),
    "8 frames": Task(dict(frames=8), 150),
    "fast": Task(FAST, 300),
    "crossing": Task(FAST | dict(crossing=True), 800),
    "crossing, long": Task(FAST | dict(crossing=True), 1600),
    "occlusion": Task(FAST | dict(occluder=10), 300),
    "two decoys": Task(FAST | dict(decoys=2), 400),
    "fast, 8 frames": Task(dict(size=(16, 32), speed=6, frames=8), 300),
}
SPEEDS = (1, 2, 4, 8)  # pixels a frame: from a quarter of a patch to two patches
TASKS |= {f"speed {speed}": Task(dict(size=32, speed=speed), 300) for speed in SPEEDS}

SMALL = {  # schemes whose defaults are for larger grids than 4 x 4 patches
    "shifted_windows": [
        partial(va.ShiftedWindowAttention, size=(2, 2, 2)),
        partial(va.ShiftedWindowAttention, size=(2, 2, 2), displaced=True),
    ],
    "orthoformer": [partial(va.OrthoformerAttention, prototypes=16)],
    "trajectory_orthoformer": [partial(va.OrthoformerTrajectoryAttention, prototypes=16)],
    "nystrom": [partial(va.NystromAttention, landmarks=16)],
    "trajectory_nystrom": [partial(va.NystromTrajectoryAttention, landmarks=16)],
    "performer": [partial(va.PerformerAttention, features=64)],
    "trajectory_performer": [partial(va.PerformerTrajectoryAttention, features=64)],
}
SCHEMES = {name: dict(attention=SMALL.get(name, name)) for name in va.ATTENTION}
CHOICES = {
    "orthogonal": va.orthogonal_prototypes,
    "random": va.random_prototypes,
    "segments": va.segment_prototypes,
}


def one(step, **options):
    """A scheme of one step."""
    return dict(attention=[partial(step, **options)])


def prototypes(count, choice):
    choose = CHOICES[choice]
    return one(va.OrthoformerTrajectoryAttention, prototypes=count, choose=choose)


def chosen(names):
    return {name: SCHEMES[name] for name in names.split()}


class Section(NamedTuple):
    """Models by name, and lists of tasks: each is trained on the first, then on from there."""

    models: dict
    chains: list


SEEDS = 5
CHAIN = ["plain", "moving camera"]
SWEEP = [[f"speed {speed}"] for speed in (8, 1, 4, 2)]
TRIES = ["fast", "crossing", "occlusion", "two decoys"]  # where trajectory and joint might part
SECTIONS = {
    "main": Section(SCHEMES, [CHAIN]),
    "speed": Section(chosen("joint divided trajectory mixing window axial linear"), SWEEP),
    "tries": Section(chosen("joint trajectory mixing divided"), [TRIES, ["fast, 8 frames"]]),
    "as long": Section(chosen("joint"), [["fast", "crossing, long"]]),
    "no push": Section(SCHEMES, [["plain"]]),
    "prototypes": Section(
        {f"{n} {choice}": prototypes(n, choice) for choice in CHOICES for n in (4, 8, 16, 32)},
        [["plain"]],
    ),
    "window": Section(
        {f"window {w}": one(va.WindowAttention, window=w) for w in (0, 2, 3)}
        | {f"mixing {w}": one(va.MixingAttention, window=w) for w in (2, 3)},
        [CHAIN],
    ),
    "moved": Section(
        {f"moved {m}": one(va.MixingAttention, moved=m) for m in (0.25, 0.75, 1.0)}, [CHAIN]
    ),
    "frames": Section(chosen("joint divided mixing trajectory"), [["2 frames"], ["8 frames"]]),
}


class Job(NamedTuple):
    section: str
    name: str
    tasks: tuple
    seed: int


def all_jobs():
    """Every job, seed by seed, so that a study that is stopped has whole comparisons."""
    return [
        Job(key, name, tuple(chain), seed)
        for seed in range(SEEDS)
        for key, section in SECTIONS.items()
        for chain, name in product(section.chains, section.models)
    ]


def build(attention, task="plain", seed=0, push=True, **options):
    """A model of the study before its training; `attention` and **options as VideoTransformer's."""
    data = TASKS[task].options
    shape = dict(num_frames=data.get("frames", FRAMES), image_size=data.get("size", SIZE))
    torch.manual_seed(seed)
    model = va.VideoTransformer(attention=attention, **MODEL | shape | options)
    return head_start(model) if push else model


def waves(n, width):
    """Sines and cosines (n, width), neighbours alike."""
    angle = torch.arange(n)[:, None] * 100.0 ** (-torch.arange(0, width, 2) / width)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


@torch.no_grad()
def head_start(model, sharpness=3.0):
    """Not what the papers do, but the same push for every mechanism, in all its stages.

    Position embeddings begin as sines and cosines, linear layers as torch makes them, and keys
    begin as the queries, sharpened, so that a patch first attends to what is like itself: in qkv,
    and in the second stage of trajectory attention. What starts at zero still does, without a push.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.any():
            torch.nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    for module in model.modules():
        if isinstance(module, va.Attention) and module.zero_init is None:
            D = module.qkv.in_features
            module.qkv.weight[:D] *= sharpness
            module.qkv.weight[D : 2 * D] = module.qkv.weight[:D]
        if isinstance(module, va.TrajectoryAttention):
            module.proj_kv.weight[:D] = module.proj_q.weight
            module.proj_q.weight *= sharpness
    model.head.classify[-1].weight *= 0.2
    (T, H, W), D = model.position.grid, model.norm.weight.numel()
    rows, columns = waves(H, D // 2)[:, None], waves(W, D // 2)[None]
    rows, columns = rows.expand(H, W, -1), columns.expand(H, W, -1)
    model.position.space.copy_(torch.cat([rows, columns], dim=-1).reshape(1, H * W, D))
    if model.position.time is not None:
        model.position.time.copy_(waves(T, D)[None])
    return model


# ==== TRAINING AND TESTING =======================================================================


@lru_cache(maxsize=2)
def training_clips(task, seed, steps):
    """All clips of a training, no clip twice: [(uint8 (BATCH // 2, 3, T, H, W), labels), ...]"""
    batches = []
    for step in range(steps):
        video, label, _ = moving_objects(BATCH // 2, (1000 + seed, step), **TASKS[task].options)
        batches.append((((video + 1) * 127.5).round().to(torch.uint8), label))
    return batches


def batch_of(task, seed, steps, step, device):
    """One batch: clips (BATCH, 3, T, H, W) in [-1, 1], half of them the others played backwards."""
    video, label = training_clips(task, seed, steps)[step]
    video = video.to(device).float() / 127.5 - 1
    return torch.cat([video, video.flip(2)]), torch.cat([label, 1 - label]).to(device)


def train(model, task="plain", steps=None, device="cpu", on_progress=None, seed=0):
    """Train the model in place; an interruption (Ctrl-C, the notebook's stop) keeps what is done.

    steps       of training; left out, those of the task
    on_progress called with (step, loss, accuracy) every EVERY steps

    Returns dict(task, steps, curve, seconds, interrupted); the curve is a list of [step, loss,
    accuracy], means over the EVERY steps before, on clips that the model has not seen until then;
    the seconds are the processor's on a CPU, the clock's elsewhere.
    """
    total, curve, recent, step = steps or TASKS[task].steps, [], [], 0
    clock = time.process_time if device == "cpu" else time.perf_counter  # whatever else is running
    start = clock()
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.05)
    interrupted = False
    try:
        for step in range(1, total + 1):
            for group in optimizer.param_groups:
                rest = (1 + math.cos(math.pi * (step - 1) / total)) / 2
                group["lr"] = RATE * min(step / WARM_UP, rest)
            video, label = batch_of(task, seed, total, step - 1, device)
            logits = model(video)
            loss = F.cross_entropy(logits, label)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recent.append(torch.stack([loss.detach(), (logits.argmax(1) == label).float().mean()]))
            if step % EVERY == 0 or step == total:
                means = torch.stack(recent).mean(0).tolist()
                curve.append([step, *(round(x, 4) for x in means)])
                recent = []
                if on_progress is not None:
                    on_progress(*curve[-1])
    except KeyboardInterrupt:
        interrupted = True
    model.eval()
    seconds = round(clock() - start, 2)
    return dict(task=task, steps=step, curve=curve, seconds=seconds, interrupted=interrupted)


@lru_cache(maxsize=4)
def test_clips(task, seed, background=True):
    """TEST clips of a task, as many of either label, for each seed others -> Clips."""
    labels, options = torch.arange(TEST) % 2, TASKS[task].options | dict(background=background)
    return moving_objects(TEST, (10**6, seed), labels=labels, **options)


@torch.no_grad()
def correct(model, clips, device="cpu"):
    """(B,) bool: which clips the model gets right."""
    model.to(device).eval()
    chunks = zip(clips.video.split(256), clips.label.split(256))
    return torch.cat([model(video.to(device)).argmax(1).cpu() == label for video, label in chunks])


def test(model, task="plain", seed=0, device="cpu"):
    """Accuracies on the test clips, as a dictionary.

    accuracy; on 16 x 16 pixels also with the background made uniform (background_removed); with a
    moving camera also of the clips whose path in the image tells the label (tells), of the others
    (cannot_tell), and the ceiling of this test set for whatever sees that path alone.
    """
    clips = test_clips(task, seed)
    hit = correct(model, clips, device).float()
    found = dict(accuracy=hit.mean())
    if "size" not in TASKS[task].options:
        bare = correct(model, test_clips(task, seed, background=False), device).float()
        found |= dict(background_removed=bare.mean())
    if TASKS[task].options.get("camera"):
        tells = path_tells(clips.path)
        found |= dict(tells=hit[tells].mean(), cannot_tell=hit[~tells].mean())
        found |= dict(ceiling=torch.tensor(image_path_ceiling(clips.path)))
    return {key: round(value.item(), 4) for key, value in found.items()}


def run(job, device="cpu"):
    """Train and test one job -> a list of entries, one for each of its tasks."""
    torch.set_num_threads(1)  # the models are so small that threads would wait for each other
    arguments = SECTIONS[job.section].models[job.name]
    model = build(task=job.tasks[0], seed=job.seed, push=job.section != "no push", **arguments)
    entries = []
    for number, task in enumerate(job.tasks):
        if number > 0:
            model.load_state_dict(first)
        trained = train(model, task, device=device, seed=job.seed)
        first = deepcopy(model.state_dict()) if number == 0 else first
        if trained.pop("interrupted"):
            raise KeyboardInterrupt
        who = dict(section=job.section, name=job.name, task=task, seed=job.seed)
        entries.append(who | test(model, task, job.seed, device) | trained)
    return entries


# ==== THE RESULTS FILE ===========================================================================


WHO = dict(section=str, name=str, task=str, seed=int)  # every entry says it


def load_results(path=RESULTS):
    """{"runs": [...], "entries": [...]}: how, where and when each call ran; what was measured."""
    if not Path(path).exists():
        return dict(runs=[], entries=[])
    try:
        found = json.loads(Path(path).read_text())
    except ValueError:  # of JSON, or of text at all
        found = None
    parts = [found.get("runs"), found.get("entries")] if isinstance(found, dict) else [None]
    whole = lambda e: isinstance(e, dict) and all(isinstance(e.get(k), WHO[k]) for k in WHO)
    if not all(isinstance(part, list) for part in parts) or not all(map(whole, parts[1])):
        raise ValueError(f"{path} holds no results of this study: name another file")
    return found


def save_results(results, path=RESULTS):
    """Written beside the file and then put in its place, so that no stop leaves half a file."""
    parts = [f'"{key}": [\n' + ",\n".join(map(json.dumps, results[key])) + "\n]" for key in results]
    draft = Path(f"{path}.{os.getpid()}")
    draft.write_text("{" + ",\n".join(parts) + "}\n")
    draft.replace(path)


def missing(results, jobs):
    """The jobs that are not finished in these results."""
    done = {(e["section"], e["name"], e["task"], e["seed"]) for e in results["entries"]}
    keys = {job: [(job.section, job.name, task, job.seed) for task in job.tasks] for job in jobs}
    return [job for job in jobs if not done.issuperset(keys[job])]


def this_run(device):
    """What a reader has to know about a run to repeat it."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    versions = dict(python=platform.python_version(), torch=torch.__version__, numpy=np.__version__)
    command = " ".join(["python -m tiny_data.study", *sys.argv[1:]])
    where = dict(device=f"{device} ({name})", date=str(date.today()), command=command, file=FILE)
    return versions | where


def finished(jobs, device, workers):
    """Run the jobs, in this process or in several -> their entries, as they come."""
    if workers == 1:
        yield from (run(job, device) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, job, device) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def study(jobs, device="cpu", workers=1, path=RESULTS, report=print):
    """Run what the results file lacks of these jobs; every finished job is written at once."""
    results = load_results(path)
    jobs = missing(results, jobs)
    number = len(results["runs"])
    for count, entries in enumerate(finished(jobs, device, workers), start=1):
        if number == len(results["runs"]):
            results["runs"].append(this_run(device))
        results["entries"] += [entry | dict(run=number) for entry in entries]
        save_results(results, path)
        for e in entries:
            who = f"{e['section']}, {e['name']}, {e['task']}, seed {e['seed']}"
            report(f"{count}/{len(jobs)} {who}: {e['accuracy']:.3f} in {e['seconds']:.0f} s")
    return results


def plan(jobs, results):
    """Lines that say, section by section, what is done and what is missing."""
    todo = set(missing(results, jobs))
    for section in SECTIONS:
        mine = [job for job in jobs if job.section == section]
        steps = sum(TASKS[task].steps for job in mine if job in todo for task in job.tasks)
        done = sum(job not in todo for job in mine)
        yield f"{section:10} {done:4} of {len(mine):4} models, {steps:7,} steps to go"


# ==== WHAT THE NUMBERS CARRY =====================================================================
MARGIN = 0.01  # a lead of less than one point is not called one, however certain


def scores(results, task, key="accuracy", section="main"):
    """{name: {seed: value}} of what is in the results."""
    found = {}
    for e in results["entries"]:
        if (e["section"], e["task"]) == (section, task) and key in e:
            found.setdefault(e["name"], {})[e["seed"]] = e[key]
    return found


def tail(t, df):
    """The chance that Student's t with df degrees of freedom is further from 0 than t."""
    density = lambda angle: np.cos(angle) ** (df - 1)  # of arctan(t / sqrt(df)), not normalised
    middles = (np.arange(20_000) + 0.5) / 20_000
    start = math.atan(abs(t) / math.sqrt(df))
    rest = (math.pi / 2 - start) * density(start + (math.pi / 2 - start) * middles).mean()
    return rest / (math.pi / 2 * density(math.pi / 2 * middles).mean())


@lru_cache
def quantile(df, level=0.95):
    """The t that tail() puts at 1 - level."""
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, df) > 1 - level else (low, middle)
    return low


def mean_and_interval(values):
    """Of a value for each seed: the mean, half the width of its 95% interval, and the values."""
    values = list(values.values() if isinstance(values, dict) else values)
    n = len(values)
    half = quantile(n - 1) * np.std(values, ddof=1) / math.sqrt(n) if n > 1 else math.inf
    return float(np.mean(values)), float(half), values


def paired(a, b, comparisons=1):
    """{seed: value} of two models -> (mean difference, half its interval, seeds that both have).

    The interval is a paired t-test's: models of a seed share their training and test clips. It is
    so wide that as many comparisons hold at once with 95% (Bonferroni). The spread is taken to be
    at least one clip, for where all seeds agree to the last.
    """
    gaps = np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])
    n = len(gaps)
    if n < 2:
        return float(gaps.mean()) if n else math.nan, math.inf, n
    error = max(gaps.std(ddof=1), 1 / TEST) / math.sqrt(n)
    return float(gaps.mean()), quantile(n - 1, 1 - 0.05 / comparisons) * error, n


def compare(found, pairs):
    """What {name: {seed: value}} says about each pair (a, b), all of them at once with 95%.

    A list of dictionaries: a, b, difference, half (of its interval), seeds, and the verdict on a:
    "ahead" or "behind" where zero is outside the interval and the lead at least MARGIN.
    """
    told = []
    for a, b in pairs:
        gap, half, seeds = paired(found.get(a, {}), found.get(b, {}), len(pairs))
        decided = abs(gap) > half and abs(gap) >= MARGIN
        verdict = ("ahead" if gap > 0 else "behind") if decided else "undecided"
        told.append(dict(a=a, b=b, difference=gap, half=half, seeds=seeds, verdict=verdict))
    return told


def there(text):
    """A device that this machine has."""
    needed = dict(cuda=torch.cuda, mps=torch.backends.mps).get(text)
    if needed is not None and not needed.is_available():
        raise argparse.ArgumentTypeError(f"torch finds no {text} here; use cpu")
    return text


def options():
    parser = argparse.ArgumentParser(prog="python -m tiny_data.study")
    sections = dict(nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--only", help=f"of {', '.join(SECTIONS)}", **sections)
    parser.add_argument("--names", nargs="+", help="only these models")
    seeds = dict(type=at_least_one, choices=range(1, SEEDS + 1), metavar="N", default=SEEDS)
    parser.add_argument("--seeds", help=f"only so many seeds, at most {SEEDS}", **seeds)
    devices = dict(type=there, choices=("cpu", "cuda", "mps"), default="cpu")
    parser.add_argument("--device", **devices)
    parser.add_argument("--workers", type=at_least_one, default=1, help="processes side by side")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to go on with")
    parser.add_argument("--plan", action="store_true", help="say what is missing and stop")
    return parser


def checked(arguments):
    """The options; what cannot be is said before anything is trained."""
    parser = options()
    given = parser.parse_args(arguments)
    known = {name: None for section in given.only for name in SECTIONS[section].models}
    for name in given.names or []:
        if name not in known:
            parser.error(f"--names {name[:60]!r}: there are {', '.join(known)}")
    try:
        load_results(given.results)
        if not given.plan:
            TemporaryFile(dir=given.results.parent).close()  # where each finished job is written
    except OSError as error:
        fix = "name a file in a folder that can be written to"
        parser.error(f"--results {given.results}: {error.strerror}; {fix}")
    except ValueError as error:
        parser.error(f"--results: {error}")
    return given


def main(arguments=None):
    given = checked(arguments)
    jobs = [job for job in all_jobs() if job.section in given.only and job.seed < given.seeds]
    jobs = [job for job in jobs if not given.names or job.name in given.names]
    if given.plan:
        print("\n".join(plan(jobs, load_results(given.results))))
        return
    try:
        study(jobs, given.device, given.workers, given.results, partial(print, flush=True))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
