"""Own clips: frames, views, predictions and the groups of an optimiser."""

import doctest
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import video_attention as va
from tiny_data.pretrained import clips


@pytest.mark.parametrize(
    "total, frames, stride, n", [(100, 8, 4, 3), (29, 8, 4, 5), (20, 8, 4, 1), (99, 8, 4, 1)]
)
def test_sample_frames(total, frames, stride, n):
    """In order, no frame twice, `stride` apart where the video is long enough; from end to end, a
    single clip in the middle, a random one anywhere."""
    assert doctest.testmod(clips).failed == 0
    numbers = clips.sample_frames(total, frames, stride, n)
    random = clips.sample_frames(total, frames, stride, 900, random=True)
    for found in (numbers, random):
        steps = found.diff(dim=1)
        assert found.min() >= 0 and found.max() < total and (steps >= 1).all()
        assert total <= (frames - 1) * stride or (steps == stride).all()
    assert len(set(random[:, 0].tolist())) == max(1, min(total - 28, 72))
    assert abs(numbers[0, 0] - (total - 1 - numbers[-1, -1])) <= 1
    assert n == 1 or (numbers[0, 0], numbers[-1, -1]) == (0, total - 1)
    for wrong in ((5, 8), (50, 8, 0), (50, 0), (50, 8, 1, 0)):
        with pytest.raises(ValueError, match="cannot be had without padding"):
            clips.sample_frames(*wrong)


def test_views_pixel_by_pixel():
    """The shorter side is resized, its length rounded down; crops from end to end of the other."""
    video = torch.randint(256, (20, 16, 25, 3), dtype=torch.uint8)
    numbers = clips.sample_frames(20, 4, 3, 2)
    found = clips.views(video[numbers], 16, "timesformer")
    for clip in range(2):
        for i, left in enumerate((0, 5, 9)):  # 4.5 is rounded up
            expected = (video[numbers[clip], :, left : left + 16].double() / 255 - 0.45) / 0.225
            expected = expected.permute(3, 0, 1, 2).float()
            torch.testing.assert_close(found[3 * clip + i], expected)
    (centre,) = clips.views(video[numbers][:1].transpose(2, 3), 16, "timesformer", crops=1)
    torch.testing.assert_close(centre.transpose(2, 3), found[1])
    ramp = torch.arange(25, dtype=torch.uint8).view(1, 1, 1, 25, 1).expand(2, 4, 16, 25, 3)
    random = clips.views(ramp, 14, "xvit", crops=4, random=True)
    assert random.shape == (8, 3, 4, 14, 14)
    assert random.mean((1, 2, 3, 4)).diff()[:3].min() < 0  # in no order
    widths = {round(1 / x.item(), 1) for x in random[:, 0, 0, 0].diff(dim=1).amax(dim=1)}
    assert len(widths) == 2  # every clip has its own scale
    wide = clips.to_video(np.full((1, 240, 320, 3), 255, np.uint8), "videomae", 224)
    assert wide.shape == (3, 1, 224, 298)
    torch.testing.assert_close(wide[2], torch.full((1, 224, 298), (1 - 0.406) / 0.225))


def test_floats_are_of_one_frame_or_of_what_is_returned():
    class Storages(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if torch.is_tensor(out) and out.is_floating_point():
                storage = out.untyped_storage()
                address = storage.data_ptr()  # many are used again
                found[address] = max(storage.nbytes(), found.get(address, 0))
            return out

    found, frames = {}, torch.zeros(2, 50, 30, 40, 3, dtype=torch.uint8)
    with Storages():
        video = clips.views(frames, 10, "vivit")
    assert video.nbytes == found.pop(video.data_ptr()) and max(found.values()) <= 4 * 3 * 30 * 40


def test_other_frames_are_refused_and_the_family_has_no_default():
    for frames in (torch.zeros(2, 4, 4, 3), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            clips.to_video(frames, "xvit", 4)
    with pytest.raises(ValueError, match="'vit' is unknown; one of timesformer"):
        clips.to_video(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "vit", 4)
    with pytest.raises(TypeError, match="family"):
        clips.views(torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), 4)


def test_decode_keeps_what_is_asked_for_and_stops_there(monkeypatch):
    """With numbered frames in place of PyAV's."""

    def decoded(video):
        for i in range(8):
            yield mock.Mock(**{"to_ndarray.return_value": np.full((2, 4, 3), i, np.uint8)})
        pytest.fail("decoded too far")

    package = mock.MagicMock()
    file = package.open.return_value.__enter__.return_value
    file.decode, file.demux.return_value = decoded, [mock.Mock(size=n) for n in (5, 5, 5, 0)]
    monkeypatch.setitem(sys.modules, "av", package)
    numbers = torch.tensor([[1, 4, 7], [4, 5, 6]])
    frames = clips.decode("clip.mp4", numbers)
    assert frames.shape == (2, 3, 2, 4, 3) and frames[:, :, 0, 0, 0].equal(numbers.byte())
    assert clips.count_frames("clip.mp4") == 3


def test_predictions_are_means_of_probabilities():
    logits = 3 * torch.randn(5, 7)  # of five views, by a model that gives back what it gets
    found = clips.predict_views(torch.nn.Identity().eval(), logits)
    torch.testing.assert_close(found, torch.stack([x.softmax(0) for x in logits]).mean(0))
    for model, views in ((torch.nn.Identity(), logits), (torch.nn.Identity().eval(), logits[:0])):
        with pytest.raises(ValueError, match="eval"):
            clips.predict_views(model, views)


def test_layer_wise_rates():
    sizes = dict(dim=24, depth=3, heads=4, image_size=32, patch_size=8)
    model = va.VideoTransformer("divided", position="separate", **sizes)
    model.blocks[0].requires_grad_(False)
    wrapped = torch.compile(torch.nn.DataParallel(model), backend="eager")
    groups = clips.layer_wise_parameters(wrapped, 1e-3, decay=0.5, weight_decay=0.1)
    found = {id(p): group for group in groups for p in group["params"]}
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(found) == len(trainable)
    rates = {model.head.classify[0].weight: 1, model.norm.weight: 1, model.position.space: 0.5**4}
    rates |= {model.blocks[2].mlp.fc1.weight: 0.5, model.blocks[1].mlp.fc1.weight: 0.5**2}
    assert all(found[id(p)]["lr"] == 1e-3 * rate for p, rate in rates.items())
    assert found[id(model.blocks[1].mlp.fc1.weight)]["weight_decay"] == 0.1
    for p in (model.position.space, model.class_token, model.norm.weight):
        assert found[id(p)]["weight_decay"] == 0
