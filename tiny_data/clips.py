"""Your own clips: from uint8 frames to views, to a prediction, to the groups of an optimiser.

    frames = ...                                        # (T, H, W, 3) uint8, RGB, from any decoder
    video = views(frames, num_frames=8, stride=32, size=224, clips=1, crops=3, family="timesformer")
    probabilities = predict_views(model, video)             # (K,)

A video is (B, 3, T, H, W). No function here pads: T belongs to the call, so a short clip is a short
call. What padding would do to the logits is measured by

    python -m tiny_data.clips
"""

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

import video_attention as va

# Pixels in 0..1 become (x - mean) / std, as in the configs of the releases. Hugging Face's ViViT
# shifts 0..255 to -1..1 and then applies mean and std of .5 to the result: together .75 and .25.
PIXELS = {"timesformer": (0.45, 0.225), "motionformer": (0.5, 0.5), "xvit": (0.5, 0.5),
          "lvt": (0.5, 0.5), "vivit": (0.75, 0.25)}
# Frames x stride of the released models that name it, at 30 frames a second; and clips x crops that
# their tests average (Kinetics-400).
SAMPLING = {"timesformer": (8, 32), "timesformer_hr": (16, 16), "timesformer_l": (96, 4),
            "motionformer": (16, 4), "motionformer_l": (32, 3), "xvit": (16, 16)}
VIEWS = {"timesformer": (1, 3), "motionformer": (10, 3), "xvit": (1, 3), "lvt": (4, 3)}


def sample_frames(total, frames, stride=1, clips=1):
    """Which of a video's `total` frames make a clip: numbers (clips, frames), `stride` apart.

    Clips are evenly spaced from the first frame to the last, a single one lies in the middle. Where
    a video is too short for the stride, the clip is all of it, evenly sampled. ValueError if it has
    fewer frames than a clip: ask for fewer, since T belongs to the call.

    Differs     The releases' code repeats the last frame of a short video, its clips begin at the
                first frame but need not reach the last, and it spreads a clip over frames*stride
                frames of a video of 30 a second, so that 8 x 32 lie 36 apart. Here a stride is
                counted in the frames that you have, whatever their rate.

    >>> sample_frames(10, frames=3, stride=2, clips=2).tolist()
    [[0, 2, 4], [5, 7, 9]]
    """
    frames, stride = va.whole(frames, "frames"), va.whole(stride, "stride")
    clips, total = va.whole(clips, "clips"), va.whole(total, "total", least=0)
    text = "a video of {} frames cannot give {} without padding: ask for no more than it has"
    va.require(total >= frames, text, total, frames)
    span = min((frames - 1) * stride + 1, total)
    rest = total - span
    line = partial(torch.linspace, dtype=torch.float64)  # float32 cannot count to 2**24 + 1
    first = line(0, rest, clips) if clips > 1 else torch.tensor([rest / 2])  # (clips,)
    steps = line(0, span - 1, frames)  # (frames,)
    return (first.floor()[:, None] + steps).round().long()  # (clips, frames)


def to_video(frames, family="timesformer", size=None):
    """uint8 RGB frames (T, H, W, 3) -> a video (1, 3, T, H, W), pixels as in the family's release.

    With `size` in pixels the shorter side becomes that, the other keeps the ratio (bilinear). RGB
    cannot be told from OpenCV's BGR: turn that by frames[..., ::-1].

    >>> to_video(torch.zeros(4, 60, 80, 3, dtype=torch.uint8), "xvit", size=30).shape
    torch.Size([1, 3, 4, 30, 40])
    """
    frames = as_tensor(frames)
    text = "needs RGB frames (T, H, W, 3) of uint8, got {} {}"
    fits = frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == torch.uint8
    va.require(fits, text, tuple(frames.shape), frames.dtype)
    va.require(family in PIXELS, "family={!r}: use one of {}", family, ", ".join(PIXELS))
    mean, std = PIXELS[family]
    video = (frames.permute(0, 3, 1, 2) / 255 - mean) / std  # (T, 3, H, W)
    if size is not None:
        size, shorter = va.whole(size, "size"), min(video.shape[2:])
        va.require(shorter >= 1, "frames {} have no pixels", tuple(frames.shape))
        sides = [side * size // shorter for side in video.shape[2:]]
        video = F.interpolate(video, size=sides, mode="bilinear")
    return video.transpose(0, 1).unsqueeze(0)  # (1, 3, T, H, W)


def as_tensor(frames):
    """Frames as one tensor, from arrays in a list or turned round too."""
    return frames if torch.is_tensor(frames) else torch.from_numpy(np.ascontiguousarray(frames))


def views(frames, num_frames, stride, size, clips=1, crops=3, family="timesformer"):
    """Clips and crops of one video as in the papers, all crops of the first clip first.

    uint8 (T, H, W, 3) -> (clips*crops, 3, num_frames, size, size). Crops are squares of `size`
    pixels, evenly spaced along the longer side; a single one is the centre. Sides and places are
    rounded as in the releases.

    >>> views(torch.zeros(20, 60, 80, 3, dtype=torch.uint8), 4, 4, 32, clips=2, crops=3).shape
    torch.Size([6, 3, 4, 32, 32])
    """
    crops, num_frames = va.whole(crops, "crops"), va.whole(num_frames, "num_frames")
    frames, result = as_tensor(frames), []
    for numbers in sample_frames(len(frames), num_frames, stride, clips):
        video = to_video(frames[numbers], family, size)  # (1, 3, T, H, W)
        free = [side - size for side in video.shape[3:]]
        for i in range(crops):
            share = i / (crops - 1) if crops > 1 else 0.5
            top, left = (math.ceil(share * rest) for rest in free)
            result.append(video[..., top : top + size, left : left + size])
    return torch.cat(result)


@torch.no_grad()
def predict_views(model, video):
    """The mean over all views of the class probabilities: video (views, 3, T, H, W) -> (K,).

    Differs     Motionformer's code averages probabilities, TimeSformer's and X-ViT's logits, which
                is model(video).mean(dim=0); their papers only say that views are averaged.
    """
    va.require(not model.training, "the model is in training mode: call model.eval() first")
    va.require(len(video) > 0, "there are no views to average")
    return model(video).softmax(dim=-1).mean(dim=0)


@torch.no_grad()
def predict_clips(model, clips):
    """Logits (len(clips), K) of videos (3, T, H, W): one call for every size, without padding."""
    va.require(not model.training, "the model is in training mode: call model.eval() first")
    va.require(len(clips) > 0, "there are no clips to classify")
    sizes, logits = {}, [None] * len(clips)
    for i, clip in enumerate(clips):
        sizes.setdefault(tuple(clip.shape), []).append(i)
    for members in sizes.values():
        for i, row in zip(members, model(torch.stack([clips[i] for i in members]))):
            logits[i] = row
    return torch.stack(logits)


def layer_wise_parameters(model, rate, decay=0.75, weight_decay=0.05):
    """Groups for an optimiser: the head learns at `rate`, the layers below it ever more slowly.

    torch.optim.AdamW(layer_wise_parameters(model, 1e-4)). Every layer learns at `decay` times the
    rate of the one above; patches and positions are the lowest. Biases, norms, class tokens and
    positions have no weight decay. What is frozen (requires_grad is False) is left out. A model may
    be compiled or wrapped for several devices.
    """
    for wrapper in ("_orig_mod", "module"):  # torch.compile's, DistributedDataParallel's
        model = getattr(model, wrapper, model)
    va.require(isinstance(model, va.VideoTransformer), "{} has no blocks", type(model).__name__)
    depth, groups = len(model.blocks), {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        words = name.split(".")
        above = depth - int(words[1]) if words[0] == "blocks" else depth + 1
        power = 0 if words[0] in ("head", "norm") else above
        plain = parameter.ndim == 1 or words[0] == "position" or words[-1] == "class_token"
        group = dict(params=[], lr=rate * decay**power, weight_decay=0.0 if plain else weight_decay)
        groups.setdefault((power, plain), group)["params"].append(parameter)
    return list(groups.values())


@torch.no_grad()
def harm_of_padding(attention, frames=5, padded=8, seed=0):
    """How far padding moves the logits of an untrained model, relative to their norm.

    -> (zeros behind the clip, its last frame repeated), for 4 clips of moving noise in float64.
    """
    torch.manual_seed(seed)
    size = dict(num_frames=padded, image_size=32, patch_size=8, dim=48, depth=4, heads=4)
    model = va.VideoTransformer(attention, num_classes=10, **size).double().eval()
    for parameter in model.parameters():  # layers that start at zero would hide what time does
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    still = torch.randn(4, 3, 1, 32, 32, dtype=torch.float64)
    video = torch.cat([still.roll(4 * t, dims=4) for t in range(frames)], dim=2)
    zeros = F.pad(video, (0, 0, 0, 0, 0, padded - frames))
    last = torch.cat([video, video[:, :, -1:].expand(-1, -1, padded - frames, -1, -1)], dim=2)
    own = model(video)
    return [((model(x) - own).norm() / own.norm()).item() for x in (zeros, last)]


def main():
    torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other
    print("logits of 5 frames padded to 8: distance from those of the 5 frames, of their norm")
    print(f"{'attention':24s}  zeros  last frame")
    for attention in va.ATTENTION:
        zeros, last = harm_of_padding(attention)
        print(f"{attention:24s} {zeros:5.0%} {last:10.0%}")


if __name__ == "__main__":
    main()
