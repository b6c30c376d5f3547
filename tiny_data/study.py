"""The study of the tutorial: one small model per mechanism, one recipe for all of them, several seeds.

It is a module and not a cell so that seeds can be trained side by side: a spawned process finds a function
only where it can import it. The notebook shows this source where it discusses it.
"""

import math
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache, partial
from multiprocessing import get_context

import torch
import torch.nn.functional as F

import video_attention as va

from .generator import FRAMES, SIZE, moving_objects

SEEDS = 3
STEPS = {"plain": 150, "moving camera": 600}  # one after the other, the second from the first's weights
BATCH, RATE, WARM_UP = 32, 3e-3, 20  # clips a step, AdamW's peak rate, steps to get there
EVERY, TEST = 50, 512  # steps between two looks at the test clips, and how many clips these are
GRID = dict(num_classes=2, num_frames=FRAMES, image_size=SIZE, patch_size=4, class_token="none", head="mean")
WIDTHS = dict(dim=48, depth=1, heads=3, mlp_ratio=2)  # one block: what is learned, its attention does


def linear(**options):
    """Linear attention in divided form, along time and then in space, as LVT has it."""
    return [partial(va.LinearAttention, axis=axis, **options) for axis in ("time", "space")]


def prototypes(choice):
    return [partial(va.OrthoformerTrajectoryAttention, prototypes=16, choice=choice)]


MODELS = {  # VideoTransformer's arguments; the slowest first, so that no worker is left alone at the end
    "trajectory, orthogonal": dict(attention=prototypes("orthogonal")),
    "trajectory, segments": dict(attention=prototypes("segments")),
    "trajectory, random": dict(attention=prototypes("random")),
    "trajectory": dict(attention="trajectory"),
    "LVT": dict(attention="lvt"),
    "axial": dict(attention="axial"),
    "linear + fixation": dict(attention=linear(fixation="shared")),
    "local-global": dict(attention="local_global"),
    "linear": dict(attention=linear()),
    "Performer": dict(attention=[partial(va.PerformerAttention, features=64)]),
    "divided": dict(attention="divided"),
    "Nystrom": dict(attention=[partial(va.NystromAttention, landmarks=16)]),
    "Orthoformer": dict(attention=[partial(va.OrthoformerAttention, prototypes=16)]),
    "mixing": dict(attention="mixing"),
    "summary": dict(attention="summary"),
    "pooled": dict(attention="pooled"),
    "joint": dict(attention="joint"),
    "divided, no head start": dict(attention="divided"),
    "joint, no head start": dict(attention="joint"),
    "space + time table": dict(attention="space"),
    "space": dict(attention="space", position="space"),
}


def waves(n, width):
    """Sines and cosines (n, width), neighbours alike."""
    angle = torch.arange(n)[:, None] * 100.0 ** (-torch.arange(0, width, 2) / width)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


@torch.no_grad()
def head_start(model, sharpness=3.0):
    """Not what the papers do, but the same push for every mechanism: tables that begin as sines and cosines,
    and queries that begin as sharpened keys, so that a patch first looks for what is like itself."""
    (T, H, W), D = model.position.grid, model.norm.weight.numel()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    for module in model.modules():
        if isinstance(module, va.Attention) and module.zero is not None:
            module.zero.weight.zero_()  # a time branch still grows from nothing
        elif isinstance(module, va.Attention):
            module.qkv.weight[:D] *= sharpness
            module.qkv.weight[D : 2 * D] = module.qkv.weight[:D]
    model.head.classify[-1].weight.mul_(0.2)
    rows, columns = waves(H, D // 2)[:, None].expand(H, W, -1), waves(W, D // 2)[None].expand(H, W, -1)
    model.position.place.copy_(torch.cat([rows, columns], dim=-1).reshape(1, H * W, D))
    if model.position.time is not None:
        model.position.time.copy_(waves(T, D)[None])
    return model


def build(name, seed, pushed=True):
    """A model of the study before its training; without the push it is as the papers start."""
    pushed = pushed and not name.endswith("no head start")
    torch.manual_seed(seed)
    model = va.VideoTransformer(**GRID | WIDTHS | MODELS[name])
    return head_start(model) if pushed else model


@lru_cache(maxsize=2)
def diet(seed, task):
    """All training clips of a task, no clip twice: video (steps, BATCH, 3, T, H, W) and label (steps, BATCH).

    Half of every batch is the other half played backwards, so that looks, which say nothing, weigh nothing.
    """
    steps, half = STEPS[task], BATCH // 2
    video, label, _ = moving_objects(steps * half, seed=1000 + seed, camera=task == "moving camera")
    video, label = video.unflatten(0, (steps, half)), label.unflatten(0, (steps, half))
    return torch.cat([video, video.flip(3)], dim=1), torch.cat([label, 1 - label], dim=1)


@lru_cache(maxsize=2)
def controls(task):
    """The test clips of a task, both labels alike often, and the same clips with their order changed."""
    camera = task == "moving camera"
    video, label, _ = moving_objects(TEST, 10**6, camera=camera, labels=torch.arange(TEST) % 2)
    order = torch.rand(TEST, FRAMES, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    shuffled = video.gather(2, order[:, None, :, None, None].expand_as(video))
    still = video[:, :, 1:2].expand_as(video)
    return {"test": video, "shuffled": shuffled, "reversed": video.flip(2), "one frame": still}, label


@torch.no_grad()
def accuracy(model, video, label):
    model.eval()
    return (model(video).argmax(dim=1) == label).float().mean().item()


def train(name, seed):
    """One model, first on the plain task, then on the one with a moving camera: AdamW, warm-up, cosine."""
    torch.set_num_threads(1)  # the models are so small that threads would wait for each other
    model, result = build(name, seed), dict(name=name, seed=seed, seconds=0.0)
    for task, steps in STEPS.items():
        (videos, labels), (tests, label) = diet(seed, task), controls(task)
        settings = dict(betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        optimizer = torch.optim.AdamW(model.parameters(), RATE, **settings)
        curve = []
        for step in range(steps):
            start = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = RATE * min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)
            model.train()
            loss = F.cross_entropy(model(videos[step]), labels[step])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            result["seconds"] += time.perf_counter() - start
            if (step + 1) % EVERY == 0:
                curve.append(accuracy(model, tests["test"][:256], label[:256]))
        found = {control: accuracy(model, video, label) for control, video in tests.items()}
        result[task] = dict(found, curve=curve)
    result["weights"] = {key: value.numpy() for key, value in model.state_dict().items()}
    return result


def train_all(jobs, workers):
    """(name, seed) pairs, trained in `workers` processes -> their results, as they come."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train, *job) for job in jobs]):
            yield future.result()
