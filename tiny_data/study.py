"""The training study: every scheme, one recipe, several seeds, into one results file.

    python -m tiny_data.study                       train what study.json lacks; stop it at any time
    python -m tiny_data.study --plan                what is done and what is missing
    python -m tiny_data.study --only main --device cuda --workers 8

A job is one model: a section, a name, a seed, and the tasks that it is trained on. Where there are
several, each of the later ones goes on from what the first has learned. Each finished job is
written at once; a second call goes on where the first stopped.

THE RECIPE  is the same for every model and was not searched for any: one block of width 48 with
            4 heads, patches of 4 x 4 pixels, mean pooling, as VideoTransformer initialises it, with
            rotary positions; in the section "tables" with position tables in their place. AdamW
            with a rate of .003, 20 steps of warm-up, then a cosine; batches of 16 clips and the
            same 16 played backwards. No clip is trained on twice.
TESTS       are 2,048 new clips, others for each seed: what varies between seeds is the start, the
            training clips and the test clips.
RECORDED    with one state of the code of video_attention.py; a test compares its hash.
"""

import ast
import argparse
import json
import math
import os
import platform
import sys
import time
from collections import namedtuple
from contextlib import nullcontext
from copy import deepcopy
from datetime import date
from functools import lru_cache, partial
from hashlib import sha256
from itertools import combinations, product
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import video_attention as va

from . import SCHEMES, copy
from .moving_objects import FRAMES, SIZE, image_path_ceiling, make, moving_objects, path_tells

RESULTS = Path(__file__).with_name("study.json")
BATCH, RATE, WARM_UP = 32, 3e-3, 20  # clips a step, AdamW's peak rate, steps to get there
EVERY, TEST = 25, 2048  # steps that a point of the curve is the mean of; test clips
MODEL = dict(dim=48, depth=1, heads=4, mlp_ratio=2, num_classes=2, patch_size=4)
MODEL |= dict(class_token="none", head="mean")


# ==== TASKS AND MODELS ===========================================================================
Task = namedtuple("Task", "options steps")  # of moving_objects; of training
FAST = dict(size=(16, 32), speed=8)  # two patches a frame: in the next the object is elsewhere
TASKS = {
    "plain": Task({}, 400),
    "moving camera": Task(dict(camera=True), 400),
    "fast": Task(FAST, 400),
    "crossing": Task(FAST | dict(crossing=True), 600),
    "appearance": Task(dict(appearance=True), 200),
    "one frame": Task(dict(frames=1), 200),
    "appearance, one frame": Task(dict(appearance=True, frames=1), 200),
}


def random_prototypes(q, k, count):
    """Queries and keys drawn at random, others in every call, clip and head: (B, h, P, d)."""
    tokens = torch.cat([q, k], dim=2)  # (B, h, 2*N, d)
    order = torch.rand(tokens.shape[:3], device=q.device).argsort(dim=2)  # (B, h, 2*N)
    return tokens.gather(2, order[:, :, :count, None].expand(-1, -1, -1, q.shape[3]))


def segment_prototypes(q, k, count):
    """Means of `count` segments of the queries, then the keys: (B, h, P, d)."""
    return va.segment_means(torch.cat([q, k], dim=2), count)


CHOICES = {"orthogonal": va.orthogonal_prototypes, "random": random_prototypes}
CHOICES["segments"] = segment_prototypes
BUDGETS = (4, 16)
WINDOWS = [va.step(va.shifted_window_attention, size=(2, 2, 2), displaced=x) for x in (False, True)]
NYSTROM_16 = partial(va.nystrom_per_frame, landmarks=16)
ROWS = {  # models that are no row of va.ATTENTION: defaults are for larger grids than 4 x 4 patches
    "shifted_windows": WINDOWS,
    "orthoformer": [va.step(va.OrthoformerAttention, prototypes=16)],
    "trajectory_orthoformer": [va.step(va.OrthoformerTrajectoryAttention, prototypes=16)],
    "nystrom": [va.step(va.nystrom_attention, landmarks=16)],
    "trajectory_nystrom": [va.step(va.TrajectoryAttention, first_stage=NYSTROM_16)],
    "performer": [va.step(va.PerformerAttention, features=64)],
    "trajectory_performer": [va.step(va.PerformerTrajectoryAttention, features=64)],
}
for choice, n in product(CHOICES, BUDGETS):
    options = dict(prototypes=n, choose=CHOICES[choice])
    ROWS[f"{n} {choice}"] = [va.step(va.OrthoformerTrajectoryAttention, **options)]


def scheme_of(name):
    """The row of va.ATTENTION that a model is built from; what it lacks is registered there."""
    if name not in ROWS:
        return name
    va.ATTENTION[f"study: {name}"] = ROWS[name]
    return f"study: {name}"


def build(name, task="plain", seed=0, **options):
    """A model of the study before its training; **options as VideoTransformer's."""
    data = TASKS[task].options
    shape = dict(num_frames=data.get("frames", FRAMES), image_size=data.get("size", SIZE))
    torch.manual_seed(seed)
    return va.VideoTransformer(scheme_of(name), **MODEL | shape | options)


Section = namedtuple("Section", "models chains position")  # models: {name: how many seeds}
Job = namedtuple("Job", "section name tasks seed")
STORY = "joint divided axial window mixing trajectory linear linear_fixation".split()
SPEED = "joint divided axial window mixing trajectory".split()
PROTOTYPES = [f"{n} {choice}" for choice in CHOICES for n in BUDGETS]
SINGLE = [["one frame"], ["appearance"], ["appearance, one frame"]]
SECTIONS = {
    "main": Section(
        dict.fromkeys(SCHEMES, 3) | dict.fromkeys(STORY, 5), [["plain", "moving camera"]], "rotary"
    ),
    "tables": Section(dict.fromkeys(SCHEMES, 3), [["plain"]], "separate"),
    "speed": Section(dict.fromkeys(SPEED, 5), [["fast"]], "rotary"),
    "fast, tables": Section(dict.fromkeys(SPEED, 3), [["fast"]], "separate"),
    "crossing": Section(dict.fromkeys(["joint", "trajectory"], 5), [["crossing"]], "rotary"),
    "prototypes": Section(dict.fromkeys(PROTOTYPES, 3), [["plain"]], "rotary"),
    "single frames": Section({"mixing": 3}, SINGLE, "rotary"),
}


def all_jobs():
    """Every job, seed by seed, so that a study that is stopped has whole comparisons."""
    return [
        Job(key, name, tuple(chain), seed)
        for seed in range(max(max(section.models.values()) for section in SECTIONS.values()))
        for key, section in SECTIONS.items()
        for chain, (name, seeds) in product(section.chains, section.models.items())
        if seed < seeds
    ]


def code_hash(names=SCHEMES, source=copy.SOURCE):
    """A hash of what models of these schemes do: comments, docstrings and layout are left out, and
    so is what other schemes are made of."""
    parts = ["PatchEmbedding", "PositionEmbedding", "Block", "MLP", "Head"]
    parts += [part for name in names for part in copy.modules_of(name)]
    needed = copy.closure(parts, source) | {"VideoTransformer"}
    tree = ast.parse("\n".join(copy.definitions(source)[name] for name in sorted(needed)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    rows = [make.args for name in sorted(names) for make in va.ATTENTION[name]]
    options = [[(key, getattr(x, "__name__", x)) for key, x in o.items()] for _, o in rows]
    return sha256(f"{ast.dump(tree)} {options}".encode()).hexdigest()[:12]


# ==== TRAINING AND TESTING =======================================================================
@lru_cache(maxsize=800)
def training_clips(task, seed, step):
    """The clips of one step, no clip twice: uint8 (BATCH // 2, 3, T, H, W), and their labels."""
    video, label, _ = make(BATCH // 2, (1000 + seed, step), **TASKS[task].options)
    return torch.from_numpy(video), torch.from_numpy(label)


def batch_of(task, seed, step, device):
    """One batch: clips (BATCH, 3, T, H, W) in [-1, 1], half of them the others played backwards,
    which are of the other label, so that how a clip looks, which says nothing, weighs nothing."""
    video, label = training_clips(task, seed, step)
    video = video.to(device).float() / 127.5 - 1
    backwards = label if "appearance" in TASKS[task].options else 1 - label
    return torch.cat([video, video.flip(2)]), torch.cat([label, backwards]).to(device)


def training_step(model, optimizer, video, label):
    """One step of training -> (loss, share of the clips that were right)."""
    logits = model(video)
    loss = F.cross_entropy(logits, label)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return torch.stack([loss.detach(), (logits.argmax(1) == label).float().mean()])


def train(model, task="plain", steps=None, device="cpu", on_progress=None, seed=0):
    """Train the model in place; an interruption (Ctrl-C, the notebook's stop) keeps what is done.

    steps       of training; left out, those of the task
    on_progress called with (step, loss, accuracy) every EVERY steps

    Returns dict(task, steps, curve, seconds, interrupted); the curve is a list of [step, loss,
    accuracy], means over the EVERY steps before, on clips that the model has not seen until then;
    the seconds are the processor's on a CPU, the clock's elsewhere.
    """
    total, curve, recent, step, interrupted = steps or TASKS[task].steps, [], [], 0, False
    clock = time.process_time if device == "cpu" else time.perf_counter  # whatever else is running
    start = clock()
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.05)
    try:
        for step in range(1, total + 1):
            rest = (1 + math.cos(math.pi * (step - 1) / total)) / 2
            optimizer.param_groups[0]["lr"] = RATE * min(step / WARM_UP, rest)
            recent.append(training_step(model, optimizer, *batch_of(task, seed, step - 1, device)))
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
    """TEST clips of a task, as many of either label, for each seed others, of 4 frames -> Clips."""
    labels, options = torch.arange(TEST) % 2, TASKS[task].options | dict(background=background)
    options["frames"] = FRAMES  # also for a model that was trained on single frames
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
    (cannot_tell), and the ceiling of this test set for whatever sees that path alone. Of joint and
    linear attention also the entropy of a query's weights, of log N, and the largest of them.
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
    if model.config["attention"] in ("joint", "linear", "linear_fixation"):
        share = weights_paid(model, clips.video[:64].to(device)).abs()
        share = share / share.sum(dim=-1, keepdim=True)  # turned by rotate, few are negative
        entropy = torch.special.entr(share).sum(dim=-1) / math.log(share.shape[-1])
        found |= dict(entropy=entropy.mean(), largest_weight=share.amax(dim=-1).mean())
    return {key: round(value.item(), 4) for key, value in found.items()}


@torch.no_grad()
def weights_paid(model, video):
    """The weights (B, h, N, N) of a model whose one step is joint or linear attention."""
    name = "attend" if model.config["attention"] == "joint" else "attend_linearly"
    attention = getattr(va, name)
    with patch.object(va, name, wraps=attention) as watched:
        model(video)
    (q, k, _), options = watched.call_args
    identity = torch.eye(k.shape[2], device=k.device).expand(*k.shape[:3], -1)  # (B, h, N, N)
    return attention(q, k, identity, **options)  # (B, h, N, N)


def run(job, device="cpu"):
    """Train and test one job -> a list of entries, one for each of its tasks."""
    torch.set_num_threads(1)  # the models are so small that threads would wait for each other
    position = SECTIONS[job.section].position
    model = build(job.name, job.tasks[0], job.seed, position=position)
    entries = []
    for number, task in enumerate(job.tasks):
        trained = train(model, task, device=device, seed=job.seed)
        if number == 0:
            learned = deepcopy(model.state_dict())
        if trained.pop("interrupted"):
            raise KeyboardInterrupt
        who = dict(section=job.section, name=job.name, task=task, seed=job.seed)
        entries.append(who | test(model, task, job.seed, device) | trained)
        model.load_state_dict(learned)
    return entries


# ==== THE RESULTS FILE ===========================================================================
def load_results(path=RESULTS):
    """{"runs": [...], "entries": [...]}: how, where and when each call ran; what was measured."""
    return json.loads(path.read_text()) if path.exists() else dict(runs=[], entries=[])


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
    said = dict(python=platform.python_version(), torch=torch.__version__, numpy=np.__version__)
    said |= dict(device=f"{device} ({name})", date=str(date.today()), file=code_hash())
    return said | dict(command=" ".join(["python -m tiny_data.study", *sys.argv[1:]]))


def study(jobs, device="cpu", workers=1, path=RESULTS):
    """Run what the results file lacks of these jobs; every finished job is written at once."""
    results = load_results(path)
    jobs, number = missing(results, jobs), len(results["runs"])
    with get_context("spawn").Pool(workers) if workers > 1 else nullcontext() as pool:
        each = pool.imap_unordered if workers > 1 else map
        for entries in tqdm(each(partial(run, device=device), jobs), total=len(jobs)):
            if number == len(results["runs"]):
                results["runs"].append(this_run(device))
            results["entries"] += [entry | dict(run=number) for entry in entries]
            save_results(results, path)
            for e in entries:
                tqdm.write("{section}, {name}, {task}, seed {seed}: {accuracy:.3f}".format(**e))


def plan(jobs, results):
    """Lines that say, section by section, what is done and what is missing, and who made it."""
    todo = set(missing(results, jobs))
    for section in SECTIONS:
        mine = [job for job in jobs if job.section == section]
        steps = sum(TASKS[task].steps for job in mine if job in todo for task in job.tasks)
        done = sum(job not in todo for job in mine)
        yield f"{section:10} {done:4} of {len(mine):4} models, {steps:7,} steps to go"
    yield files_used(results)


def files_used(results):
    """With which states of the code of video_attention.py the results were recorded."""
    names = {e["name"] for e in results["entries"]} & {*SCHEMES}
    files, today = {run["file"] for run in results["runs"]}, code_hash(names or SCHEMES)
    which = "today's" if files <= {today} else "another"
    return f"recorded with {which} video_attention.py, {', '.join(files)}; today's is {today}"


# ==== WHAT THE NUMBERS CARRY =====================================================================
def scores(results, task, key="accuracy", section="main"):
    """{name: [the value of each seed]} of what is in the results."""
    found = {}
    for e in results["entries"]:
        if (e["section"], e["task"]) == (section, task) and key in e:
            found.setdefault(e["name"], []).append(e[key])
    return found


def rank_test(a, b):
    """The exact two-sided p of the rank test of Mann and Whitney on two lists of values: of all
    ways to deal these values out, how many part them as far as they are parted."""
    values, middle = [*a, *b], len(a) * len(b) / 2

    def parted(first):
        rest = [x for i, x in enumerate(values) if i not in first]
        wins = [(values[i] > x) + (values[i] == x) / 2 for i in first for x in rest]
        return abs(sum(wins) - middle)

    dealt = [parted(first) for first in combinations(range(len(values)), len(a))]
    return sum(x >= dealt[0] for x in dealt) / len(dealt)


def verdict(a, b):
    """ "ahead", "behind" or "undecided": at 5%, which four seeds against four can reach."""
    if rank_test(a, b) > 0.05:
        return "undecided"
    return "ahead" if np.mean(a) > np.mean(b) else "behind"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tiny_data.study")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--names", nargs="+", help="only these models")
    parser.add_argument("--seeds", type=int, default=99, help="only so many seeds")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to go on with")
    parser.add_argument("--plan", action="store_true", help="say what is missing and stop")
    given = parser.parse_args(arguments)
    jobs = [job for job in all_jobs() if job.section in given.only and job.seed < given.seeds]
    jobs = [job for job in jobs if not given.names or job.name in given.names]
    if given.plan:
        return print("\n".join(plan(jobs, load_results(given.results))))
    try:
        study(jobs, given.device, given.workers, given.results)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
