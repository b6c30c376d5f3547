"""The moving-object data set: what its docstring says of labels, frames, paths and ceilings."""

import math

import pytest
import torch

from tiny_data import image_path_ceiling, moving_objects, path_tells
from tiny_data.moving_objects import DIM

CROSSING = dict(crossing=True, size=(16, 32), speed=8)
OPTIONS = [{}, dict(camera=True), dict(size=32, speed=8), dict(background=False, frames=2)]
OPTIONS += [dict(size=(12, 20), speed=3, frames=5), CROSSING]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_other_label_is_the_clip_backwards(options):
    clips = moving_objects(24, seed=3, **options)
    twins = moving_objects(24, seed=3, labels=1 - clips.label, **options)
    assert torch.equal(twins.video, clips.video.flip(2))
    assert torch.equal(twins.path, clips.path.flip(1))
    assert set(clips.label.tolist()) == {0, 1}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shapes_and_values(options):
    video, label, path = moving_objects(5, seed=1, **options)
    T, size = options.get("frames", 4), options.get("size", 16)
    H, W = (size, size) if isinstance(size, int) else size
    assert video.shape == (5, 3, T, H, W) and video.dtype == torch.float32
    assert label.shape == (5,) and label.dtype == torch.int64
    assert path.shape == (5, T, 2) and path[..., 0].max() < H and path[..., 1].max() < W
    levels = (video.double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    assert levels.min() > -0.1 and levels.max() < 255.1
    assert not torch.equal(video, moving_objects(5, seed=(1, 2), **options).video)


@pytest.mark.parametrize("speed, size", [(1, 16), (8, 32), (3, (12, 20))])
def test_the_object_moves_at_its_speed(speed, size):
    clips = moving_objects(64, seed=5, speed=speed, size=size)
    W = size if isinstance(size, int) else size[1]
    steps = (clips.path[:, 1:, 1] - clips.path[:, :-1, 1]) % W
    assert (steps[clips.label == 0] == speed).all()
    assert (steps[clips.label == 1] == W - speed).all()
    assert (clips.path[:, 1:, 0] == clips.path[:, :-1, 0]).all()


def test_pixels_of_the_object_follow_the_path():
    """Without a background the object is what stands out, centred where the path says."""
    clips = moving_objects(32, seed=2, background=False, size=24, speed=5)
    grey = (DIM[1] - 1) // 2 / 127.5 - 1
    mask = ((clips.video - grey).abs() > 1e-3).any(dim=1)  # (B, T, H, W)
    angle = 2 * math.pi * torch.arange(24).double() / 24
    for axis, dim in ((0, 3), (1, 2)):
        profile = mask.sum(dim=dim).double()  # (B, T, 24)
        mean = torch.atan2(profile @ angle.sin(), profile @ angle.cos()) * 24 / (2 * math.pi)
        gap = (mean - clips.path[..., axis] + 12) % 24 - 12
        assert gap.abs().max() < 0.6, gap.abs().max()


@pytest.mark.parametrize("options", [{}, dict(camera=True), CROSSING], ids=str)
def test_one_frame_has_one_distribution(options):
    """The mean brightness of each frame, and of its left part, is the same under either label."""
    clips = moving_objects(2000, seed=11, **options)
    for part in (clips.video, clips.video[..., :8]):
        means = part.mean(dim=(1, 3, 4))  # (B, T)
        right, left = means[clips.label == 0], means[clips.label == 1]
        error = (right.var(0) / len(right) + left.var(0) / len(left)).sqrt()
        assert ((right.mean(0) - left.mean(0)).abs() / error).max() < 4.5


def test_the_mark_of_crossing_objects_is_in_one_frame():
    video = moving_objects(64, seed=6, **CROSSING, background=False).video
    white = (video == 1).all(dim=1).sum(dim=(2, 3))  # (B, T) pixels
    assert ((white >= 30).sum(dim=1) == 1).all()
    assert (white.argmax(dim=1).bincount(minlength=4) > 5).all()


def test_the_other_object_may_be_anywhere_and_moves_the_other_way():
    """Else where the objects are in one frame, one of them marked, would tell the direction."""
    options = CROSSING | dict(background=False, labels=torch.zeros(400, dtype=torch.int64))
    both = moving_objects(400, seed=9, **options)
    alone = moving_objects(400, seed=9, **options | dict(crossing=False))
    other = (both.video != alone.video).any(dim=1).sum(dim=2).double()  # (B, T, W)
    angle = 2 * math.pi * torch.arange(32).double() / 32
    place = torch.complex(other @ angle.cos(), other @ angle.sin()).angle()  # (B, T)
    own = 2 * math.pi * both.path[..., 1].double() / 32
    assert torch.polar(torch.ones_like(place), place - own).mean(dim=0).abs().max() < 0.2
    steps = place[:, 1:] - place[:, :-1]  # by 8 of 32 columns to the left
    assert (steps + math.pi / 2).cos().mean() > 0.8


@pytest.mark.parametrize("frames", [1, 4])
def test_with_appearance_the_label_is_the_shape(frames):
    """A square or a cross, also in a single frame; with either it moves either way."""
    options = dict(appearance=True, background=False, frames=frames, size=24, speed=5)
    clips, grey = moving_objects(200, seed=4, **options), (DIM[1] - 1) // 2 / 127.5 - 1
    twins = moving_objects(200, seed=4, labels=1 - clips.label, **options)
    for label, (video, _, path) in ((clips.label, clips), (1 - clips.label, twins)):
        covered = ((video - grey).abs() > 1e-3).any(dim=1).sum(dim=(2, 3))  # (B, T) pixels
        assert covered.equal(torch.tensor([64, 48])[label, None].expand(-1, frames))
        assert path.equal(clips.path)
    to_the_right = (clips.path.diff(dim=1)[..., 1] % 24 == 5).double().mean(dim=1)  # (B,)
    for label in (0, 1) if frames > 1 else ():
        assert 0.3 < to_the_right[clips.label == label].mean() < 0.7


def test_the_path_tells_only_where_it_does():
    clips = moving_objects(4000, seed=12, camera=True)
    tells = path_tells(clips.path)
    steps = ((clips.path[:, 1:, 1] - clips.path[:, :-1, 1] + 8) % 16 - 8).long()
    right, left = (steps == 3).any(dim=1), (steps == -3).any(dim=1)  # 3 is never to the left
    told = right.long() - left.long()
    assert torch.equal(tells, told != 0)
    assert ((told[tells] == 1) == (clips.label[tells] == 0)).all()
    assert abs(tells.float().mean().item() - 19 / 27) < 0.03
    with pytest.raises(AssertionError, match="no camera makes such a path"):
        path_tells(moving_objects(4, speed=2, camera=True).path)


def test_ceilings():
    assert image_path_ceiling() == pytest.approx(1 - 8 / 27 / 2)
    clips = moving_objects(2048, seed=13, camera=True)
    own, lost = image_path_ceiling(clips.path), (~path_tells(clips.path)).float().mean().item()
    assert own == pytest.approx(1 - lost / 2, abs=1e-6)
    assert abs(own - image_path_ceiling()) < 0.03 and own != image_path_ceiling()


SILENT = {"size": (6, 15, (16, 9)), "frames": (0, 2.5), "speed": (0, -1, 8)}
SILENT["labels"] = ([1], [0, 1, 2, 0], [[0, 1, 0, 1]])


@pytest.mark.parametrize("name, value", [(n, value) for n in SILENT for value in SILENT[n]])
def test_what_would_pass_in_silence_is_refused(name, value):
    with pytest.raises(AssertionError, match=name):
        moving_objects(4, **{name: value})
