"""Your own clips: frames of a file or an array to views, to a prediction, to an optimiser's groups.

README.md beside this file has an example. No function pads: T belongs to the call, so a short clip
is a short call.
"""

import itertools
import math

import torch
import torch.nn.functional as F

from .released import FAMILIES


def sample_frames(total, frames, stride=1, clips=1, random=False):
    """Which of a video's `total` frames make a clip: numbers (clips, frames), `stride` apart.

    Clips are evenly spaced from the first frame to the last, a single one lies in the middle; for
    training they start at random. A video too short for the stride is sampled evenly; the releases
    repeat its last frame, and count strides at 30 frames a second, here they are those you have.

    >>> sample_frames(10, frames=3, stride=2, clips=2).tolist()
    [[0, 2, 4], [5, 7, 9]]
    """
    if not total >= frames >= 1 or stride < 1 or clips < 1:
        text = f"{clips} clips of {frames} frames, {stride} apart, cannot be had without padding"
        raise ValueError(f"{text} from a video of {total} frames")
    span = min((frames - 1) * stride + 1, total)
    rest = total - span
    even = [rest * i // (clips - 1) for i in range(clips)] if clips > 1 else [rest // 2]
    starts = torch.randint(rest + 1, (clips,)) if random else torch.tensor(even)  # (clips,)
    steps = torch.linspace(0, span - 1, frames, dtype=torch.float64).round().long()  # (frames,)
    return starts[:, None] + steps  # (clips, frames)


def count_frames(path):
    """The frames of a file, from its packets, without decoding them (PyAV: pip install av)."""
    import av

    with av.open(path) as file:
        return sum(packet.size > 0 for packet in file.demux(video=0))


def decode(path, numbers):
    """The RGB frames of these numbers (clips, T) as uint8 (clips, T, H, W, 3); no other is kept."""
    import av

    order = numbers.flatten().tolist()
    with av.open(path) as file:
        frames = enumerate(itertools.islice(file.decode(video=0), max(order) + 1))
        kept = {i: frame.to_ndarray(format="rgb24") for i, frame in frames if i in order}
    return torch.stack([torch.from_numpy(kept[i]) for i in order]).unflatten(0, numbers.shape)


def to_video(frames, family, size):
    """RGB frames (T, H, W, 3) of uint8 -> (3, T, H, W), pixels as in the family's release; the
    shorter side becomes `size` (bilinear). OpenCV's are BGR: frames[..., ::-1].copy()."""
    frames = torch.as_tensor(frames)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"needs RGB (T, H, W, 3) uint8, not {tuple(frames.shape)} {frames.dtype}")
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown; one of {', '.join(FAMILIES)}")
    mean, std = (torch.tensor(FAMILIES[family][key]).view(-1, 1, 1) for key in ("mean", "std"))
    H, W = frames.shape[1:3]
    sides, video = (H * size // min(H, W), W * size // min(H, W)), []
    for frame in frames:  # one at a time: floats are four times as large
        pixels = frame.permute(2, 0, 1)[None].to(mean.dtype)  # (1, 3, H, W)
        pixels = F.interpolate(pixels, size=sides, mode="bilinear")[0]  # (3, *sides)
        video.append((pixels / 255 - mean) / std)
    return torch.stack(video, dim=1)  # (3, T, *sides)


def views(frames, size, family, crops=3, random=False):
    """Views of sampled clips as in the papers, all crops of the first clip first.

    uint8 (clips, T, H, W, 3) -> (clips*crops, 3, T, size, size). Crops are squares along the longer
    side, a single one is the centre, rounded as in the releases. With random, for training, they
    lie anywhere and the shorter side is 8/7 to 10/7 of size before, as there (256 to 320 for 224).
    Nothing is mirrored, since left and right are labels in some data sets.
    """
    frames = torch.as_tensor(frames)
    found = torch.empty(len(frames), crops, 3, frames.shape[1], size, size)
    even = [(i / (crops - 1),) * 2 for i in range(crops)] if crops > 1 else [(0.5, 0.5)]
    for clip, its_views in zip(frames, found):
        scale = torch.empty(()).uniform_(8 / 7, 10 / 7).item() if random else 1
        shares = torch.rand(crops, 2).tolist() if random else even
        for t in range(len(clip)):  # so that only the crops are kept
            frame = to_video(clip[t : t + 1], family, round(scale * size))[:, 0]  # (3, H, W)
            for view, share in zip(its_views, shares):
                top, left = (math.ceil(s * (n - size)) for s, n in zip(share, frame.shape[1:]))
                view[:, t] = frame[:, top : top + size, left : left + size]
    return found.flatten(0, 1)


@torch.no_grad()
def predict_views(model, video):
    """The mean over all views of the class probabilities: (views, 3, T, H, W) -> (K,). So does
    Motionformer's code; TimeSformer's and X-ViT's average logits, model(video).mean(dim=0)."""
    if model.training or len(video) == 0:
        raise ValueError(f"{len(video)} views, training={model.training}: call model.eval() first")
    return model(video).softmax(dim=-1).mean(dim=0)


def layer_wise_parameters(model, rate, decay=0.75, weight_decay=0.05):
    """Groups for an optimiser: the head learns at `rate`, every layer at `decay` times the rate of
    the one above. Biases, norms, class tokens and positions have no weight decay. What is frozen is
    left out. A model may be compiled or wrapped for several devices."""
    for wrapper in ("_orig_mod", "module"):  # torch.compile's, DistributedDataParallel's
        model = getattr(model, wrapper, model)
    depth, groups = len(model.blocks), {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        above = depth - int(words[1]) if words[0] == "blocks" else depth + 1
        power = 0 if words[0] in ("head", "norm") else above
        plain = parameter.ndim == 1 or "position" in words or "class_token" in words
        group = dict(params=[], lr=rate * decay**power, weight_decay=0.0 if plain else weight_decay)
        if parameter.requires_grad:
            groups.setdefault((power, plain), group)["params"].append(parameter)
    return list(groups.values())
