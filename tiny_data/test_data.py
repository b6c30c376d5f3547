"""Tests of tiny_data's generator, study and figures."""

import copy
import json
import math
import re

import numpy as np
import pytest
import torch

import video_attention as va
from tiny_data import generator, image_path_ceiling, moving_objects, path_tells, steps, study
from tiny_data import figures

torch.set_num_threads(1)
OPTIONS = [
    {},
    dict(camera=True),
    dict(size=(12, 20), speed=3, frames=5),
    dict(size=32, speed=8),
    dict(decoys=2),
    dict(occluder=4, camera=True),
    dict(crossing=True, size=(16, 32), speed=8),
    dict(background=False, frames=2)]

class TestMovingObjects:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_the_other_label_is_the_clip_backwards(self, options):
        clips = moving_objects(24, seed=3, **options)
        twins = moving_objects(24, seed=3, labels=1 - clips.label, **options)
        assert torch.equal(twins.video, clips.video.flip(2))
        assert torch.equal(twins.path, clips.path.flip(1))
        assert set(clips.label.tolist()) == {0, 1}

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_shapes_and_values(self, options):
        video, label, path = moving_objects(5, seed=1, **options)
        T, size = options.get("frames", 4), options.get("size", 16)
        H, W = (size, size) if isinstance(size, int) else size
        assert video.shape == (5, 3, T, H, W) and video.dtype == torch.float32
        assert label.shape == (5,) and label.dtype == torch.int64
        assert path.shape == (5, T, 2) and path[..., 0].max() < H and path[..., 1].max() < W
        levels = (video.double() + 1) * 127.5
        assert (levels - levels.round()).abs().max() < 1e-4
        assert levels.min() > -0.1 and levels.max() < 255.1

    @pytest.mark.parametrize("speed, size", [(1, 16), (2, 16), (8, 32), (3, (12, 20))])
    def test_the_object_moves_at_its_speed(self, speed, size):
        clips = moving_objects(64, seed=5, speed=speed, size=size)
        W = size if isinstance(size, int) else size[1]
        steps = (clips.path[:, 1:, 1] - clips.path[:, :-1, 1]) % W
        assert (steps[clips.label == 0] == speed).all()
        assert (steps[clips.label == 1] == W - speed).all()
        assert (clips.path[:, 1:, 0] == clips.path[:, :-1, 0]).all()

    def test_pixels_of_the_object_follow_the_path(self):
        """Without a background the object is what stands out, centred where the path says."""
        clips = moving_objects(32, seed=2, background=False, size=24, speed=5)
        grey = (generator.DIM[1] - 1) // 2 / 127.5 - 1
        mask = ((clips.video - grey).abs() > 1e-3).any(dim=1)  # (B, T, H, W)
        for axis, dim in ((0, 3), (1, 2)):
            angle = 2 * math.pi * torch.arange(24) / 24
            profile = mask.sum(dim=dim).double()  # (B, T, 24)
            mean = torch.atan2(profile @ angle.sin().double(), profile @ angle.cos().double())
            found = (mean * 24 / (2 * math.pi)) % 24
            gap = (found - clips.path[..., axis] + 12) % 24 - 12
            assert gap.abs().max() < 0.6, gap.abs().max()

    @pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], OPTIONS[6]], ids=str)
    def test_one_frame_has_one_distribution(self, options):
        """The mean brightness of each frame, and of its halves, is the same under either label."""
        clips = moving_objects(3000, seed=11, **options)
        for part in (clips.video, clips.video[..., :8]):
            means = part.mean(dim=(1, 3, 4))  # (B, T)
            right, left = means[clips.label == 0], means[clips.label == 1]
            error = (right.var(0) / len(right) + left.var(0) / len(left)).sqrt()
            assert ((right.mean(0) - left.mean(0)).abs() / error).max() < 4.5

    def test_without_background_only_the_background_changes(self):
        clips = moving_objects(8, seed=4, camera=True)
        bare = moving_objects(8, seed=4, camera=True, background=False)
        same = (clips.video == bare.video).all(dim=1).float().mean().item()
        assert torch.equal(clips.path, bare.path) and 0.1 < same < 0.4  # 8 x 8 of 16 x 16 pixels
        assert all(len(frame.flatten(1).unique(dim=1).T) > 8 for frame in bare.video[:, :, 0])

    def test_the_mark_of_crossing_objects_is_in_one_frame(self):
        video = moving_objects(64, seed=6, **OPTIONS[6] | dict(background=False)).video
        white = (video == 1).all(dim=1).sum(dim=(2, 3))  # (B, T) pixels
        assert ((white >= 30).sum(dim=1) == 1).all()
        assert (white.argmax(dim=1).bincount(minlength=4) > 5).all()

    def test_the_other_object_may_be_anywhere(self):
        """Else where the objects are in one frame, one of them marked, would tell the direction."""
        options = OPTIONS[6] | dict(background=False, labels=torch.zeros(400, dtype=torch.int64))
        both = moving_objects(400, seed=9, **options)
        alone = moving_objects(400, seed=9, **options | dict(crossing=False))
        other = (both.video != alone.video).any(dim=1).sum(dim=2).double()  # (B, T, W)
        away = torch.arange(32) - both.path[..., 1:]  # (B, T, W), columns from the first object
        angle = 2 * math.pi * away / 32
        place = torch.stack([other * angle.cos(), other * angle.sin()]).sum(dim=-1)  # (2, B, T)
        place = place / place.norm(dim=0).clip(1e-9)
        assert place.mean(dim=1).norm(dim=0).max() < 0.4

    def test_decoys_and_bars_are_there(self):
        without_it = moving_objects(16, seed=8).video
        changed = (moving_objects(16, seed=8, decoys=1).video != without_it).any(dim=1)
        assert changed.float().mean(dim=(1, 2, 3)).min() > 0.05
        for label, step in ((0, 1), (1, -1)):  # and does not move as the object does
            mine = changed[moving_objects(16, seed=8).label == label]
            later, sooner = mine[:, 1:], mine[:, :-1].roll(step, dims=-1)
            assert (later & sooner).sum() < 0.6 * (later | sooner).sum()
        bar = moving_objects(16, seed=8, occluder=6).video - without_it
        columns = (bar != 0).any(dim=1).all(dim=2)  # (B, T, W): changed from top to bottom
        assert (columns.sum(dim=-1) >= 5).all()

    def test_the_path_tells_only_where_it_does(self):
        clips = moving_objects(6000, seed=12, camera=True)
        tells = path_tells(clips.path)
        steps = ((clips.path[:, 1:, 1] - clips.path[:, :-1, 1] + 8) % 16 - 8).long()
        right, left = (steps == 3).any(dim=1), (steps == -3).any(dim=1)  # 3 is never to the left
        told = right.long() - left.long()
        assert torch.equal(tells, told != 0)
        assert ((told[tells] == 1) == (clips.label[tells] == 0)).all()
        assert abs(tells.float().mean().item() - 19 / 27) < 0.02
        with pytest.raises(ValueError, match="size=16, speed=2: say those of the clips"):
            path_tells(clips.path, speed=2)

    def test_ceilings(self):
        assert image_path_ceiling() == pytest.approx(1 - 8 / 27 / 2)
        assert image_path_ceiling(speed=3, size=32) == 1.0  # steps of 1, 3, 5: one sign each way
        clips = moving_objects(2048, seed=13, camera=True)
        own, lost = image_path_ceiling(clips.path), (~path_tells(clips.path)).float().mean().item()
        assert own == pytest.approx(1 - lost / 2, abs=1e-6)
        assert abs(own - image_path_ceiling()) < 0.03 and own != image_path_ceiling()

    BAD = [1, [1], [0, 1, 2, 0], [0, -1, 0, 1], [0.0, 1.0, 0.0, 1.0], torch.ones(3)]

    @pytest.mark.parametrize("labels", [*BAD, [[0, 1, 0, 1]], "0101", [True] * 4], ids=str)
    def test_bad_labels(self, labels):
        needed = r"labels must be integers 0 or 1 of shape \(4,\)(.|\n)*torch.full"
        with pytest.raises(ValueError, match=needed):
            moving_objects(4, labels=labels)

    FAR = [dict(speed=0), dict(speed=-1), dict(speed=0.5), dict(speed=9), dict(size=32, speed=16)]
    ODD = [dict(size=6), dict(size=15), dict(size=(16, 9)), dict(frames=1), dict(speed=8)]

    @pytest.mark.parametrize("options", [*ODD, *FAR], ids=str)
    def test_bad_options(self, options):
        with pytest.raises(ValueError, match="it takes multiples|use 2 or more|use 1 to"):
            moving_objects(4, **options)
        with pytest.raises(TypeError):
            moving_objects(4, speeed=1)

    RAW = [
        *(dict(size=size) for size in ("16", None, (16,), (16, 16, 16), (16, 16.5), True)),
        *(dict(frames=frames) for frames in (2.5, "4", None)),
        *(dict(speed=speed) for speed in ("1", None, math.nan)),
        *(dict(batch=batch) for batch in (-1, 2.5, "2", None, True)),
        *(dict(seed=seed) for seed in (-1, 1.5, "a", (1, -1))),
        *(dict(decoys=decoys) for decoys in (-1, 1.5, "a")),
        *(dict(occluder=pixels) for pixels in (-1, 1.5, 16, 100)),
        dict(camera="no"), dict(crossing="a"), dict(background=None), dict(camera=2)]  # fmt: skip

    @pytest.mark.parametrize("options", RAW, ids=str)
    def test_what_is_no_number_is_one_line(self, options):
        ((name, value),) = options.items()
        with pytest.raises(ValueError) as error:
            moving_objects(**dict(batch=4) | options)
        said = str(error.value)
        assert said.startswith(f"{name}={value!r}") and re.search("use |it takes ", said)

    def test_whole_numbers_of_any_kind(self):
        plain = moving_objects(3, seed=1, size=(16, 32), frames=3, speed=2, decoys=1, occluder=2)
        for kind in (float, np.int64, np.float32):
            options = dict(frames=kind(3), speed=kind(2), decoys=kind(1), occluder=kind(2))
            clips = moving_objects(kind(3), seed=1, size=(kind(16), kind(32)), **options)
            assert torch.equal(clips.video, plain.video) and torch.equal(clips.path, plain.path)
        assert moving_objects(2, size=16.0, camera=np.True_).video.shape[-2:] == (16, 16)

    def test_the_committed_file(self):
        arrays = np.load(generator.Path(generator.__file__).with_name("moving_objects.npz"))
        for name, camera in (("plain", False), ("camera", True)):
            video, label, path = generator.make(256, seed=0, camera=camera)
            assert np.array_equal(arrays[f"{name}_video"], video)
            assert np.array_equal(arrays[f"{name}_label"], label)
            assert np.array_equal(arrays[f"{name}_path"], path)

    def test_seeds(self):
        first, again, *others = (moving_objects(4, seed=s).video for s in (1, 1, 2, (1, 2)))
        assert torch.equal(first, again)
        assert not any(torch.equal(first, other) for other in others)

# ==== THE STUDY ===================================================================================
TINY = study.Task({}, 3)

@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A study of three small jobs, and where its results go."""
    tasks = {"tiny": TINY, "tiny camera": study.Task(dict(camera=True), 3)}
    monkeypatch.setattr(study, "TASKS", study.TASKS | tasks)
    models = {name: study.SCHEMES[name] for name in ("space", "joint", "mixing")}
    sections = {"small": study.Section(models, [["tiny", "tiny camera"]])}
    monkeypatch.setattr(study, "SECTIONS", sections)
    monkeypatch.setattr(study, "SEEDS", 1)
    monkeypatch.setattr(study, "TEST", 64)
    study.test_clips.cache_clear()
    yield tmp_path / "study.json"
    study.test_clips.cache_clear()

def without(entries, *keys):
    return [{key: value for key, value in entry.items() if key not in keys} for entry in entries]

class TestStudy:
    def test_every_scheme_is_there(self):
        assert list(study.SECTIONS["main"].models) == list(va.ATTENTION)
        assert set(study.SMALL) <= set(va.ATTENTION)
        jobs = study.all_jobs()
        assert len(set(jobs)) == len(jobs) and [j.section for j in jobs[:23]] == ["main"] * 23
        for section in study.SECTIONS.values():
            assert all(task in study.TASKS for chain in section.chains for task in chain)

    def test_it_goes_on_where_it_stopped(self, tiny, monkeypatch):
        quiet = dict(report=lambda line: None)
        whole = study.study(study.all_jobs(), path=tiny.with_name("whole.json"), **quiet)
        run, calls = study.run, []

        def stops(job, device):
            calls.append(job)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return run(job, device)

        monkeypatch.setattr(study, "run", stops)
        with pytest.raises(KeyboardInterrupt):
            study.study(study.all_jobs(), path=tiny, **quiet)
        assert len(study.load_results(tiny)["entries"]) == 2  # one job of two tasks
        study.study(study.all_jobs(), path=tiny, **quiet)
        parts = study.load_results(tiny)
        assert len(calls) == 4 and len(parts["runs"]) == 2
        apart = ("run", "seconds")
        assert without(parts["entries"], *apart) == without(whole["entries"], *apart)
        before = tiny.read_text()
        study.study(study.all_jobs(), path=tiny, **quiet)
        assert tiny.read_text() == before and list(tiny.parent.glob("*.json.*")) == []

    def test_an_entry(self, tiny):
        (first, second), *_ = [study.run(job) for job in study.all_jobs()[1:2]]
        assert (first["task"], second["task"], first["name"]) == ("tiny", "tiny camera", "joint")
        assert {"accuracy", "background_removed", "curve", "seconds", "steps"} <= set(first)
        assert {"tells", "cannot_tell", "ceiling"} <= set(second) and "tells" not in first
        told = second["ceiling"] * 2 - 1  # the share of clips whose path tells
        mixed = told * second["tells"] + (1 - told) * second["cannot_tell"]
        assert mixed == pytest.approx(second["accuracy"], abs=2e-3)

    def test_later_tasks_go_on_from_the_first(self, tiny, monkeypatch):
        monkeypatch.setitem(study.TASKS, "fast", study.Task(study.FAST | dict(size=16, speed=5), 3))
        both = study.run(study.Job("small", "mixing", ("tiny", "fast", "tiny camera"), 0))
        one = study.run(study.Job("small", "mixing", ("tiny", "tiny camera"), 0))
        assert both[2]["curve"] == one[1]["curve"] and both[2]["accuracy"] == one[1]["accuracy"]

    def test_interrupting_keeps_what_is_done(self):
        model = study.build(**study.SCHEMES["joint"])
        start = copy.deepcopy(model.state_dict())

        def stop(step, loss, accuracy):
            if step == 25:
                raise KeyboardInterrupt

        result = study.train(model, steps=100, on_progress=stop)
        assert result["interrupted"] and result["steps"] == 25 and len(result["curve"]) == 1
        now = model.state_dict()
        assert not model.training and any((now[key] != start[key]).any() for key in start)

    def test_head_start(self):
        model = study.build("trajectory", seed=3)
        step = model.blocks[0].steps[0]
        q, k = step.qkv.weight[:48], step.qkv.weight[48:96]
        assert torch.equal(q, k)
        assert torch.equal(step.proj_q.weight, 3 * step.proj_kv.weight[:48])
        divided = study.build("divided", seed=3).blocks[0].steps
        assert not divided[0].extra.weight.any()
        assert not torch.equal(*divided[0].qkv.weight[:96].chunk(2))
        assert torch.equal(*divided[1].qkv.weight[:96].chunk(2))
        plain = study.build("trajectory", seed=3, push=False).blocks[0].steps[0]
        assert not torch.equal(*plain.qkv.weight[:96].chunk(2))

    def test_the_same_seed_is_the_same_model(self):
        a, b, c = (study.build("lvt", seed=s).state_dict() for s in (1, 1, 2))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert any((a[key] != c[key]).any() for key in a)

    def test_batches_are_half_backwards(self):
        video, label = study.batch_of("moving camera", 0, 7, 3, "cpu")
        other, _ = study.batch_of("moving camera", 0, 7, 4, "cpu")
        assert video.shape == (32, 3, 4, 16, 16) and torch.equal(video[16:], video[:16].flip(2))
        assert torch.equal(label[16:], 1 - label[:16]) and not torch.equal(video, other)

    def test_one_entry_trains_again(self):
        """The plain task with mixing, seed 0: as recorded, but for the rounding of 150 steps."""
        who = dict(section="main", name="mixing", task="plain", seed=0)
        entries = study.load_results()["entries"]
        (recorded,) = [entry for entry in entries if who.items() <= entry.items()]
        (again,) = study.run(study.Job("main", "mixing", ("plain",), 0))
        assert abs(again["accuracy"] - recorded["accuracy"]) < 0.02
        for now, then in zip(again["curve"], recorded["curve"], strict=True):
            assert now[0] == then[0] and abs(now[1] - then[1]) < 0.05

    def test_the_results_file(self):
        results = study.load_results()
        keys = [(e["section"], e["name"], e["task"], e["seed"]) for e in results["entries"]]
        assert len(keys) == len(set(keys)) and results["runs"]
        for e in results["entries"]:
            assert e["steps"] == study.TASKS[e["task"]].steps and e["curve"][-1][0] == e["steps"]
            assert 0 <= e["accuracy"] <= 1 and e["run"] < len(results["runs"])
        assert study.missing(results, study.all_jobs()) == [] and study.SEEDS == 5
        for run in results["runs"]:
            assert {"python", "torch", "numpy", "device", "date", "command", "file"} <= set(run)
        chance = study.scores(results, "plain")["space"]
        assert all(abs(value - 0.5) < 0.05 for value in chance.values())

    def test_plan(self, tiny):
        (line,) = study.plan(study.all_jobs(), study.load_results(tiny))
        assert "0 of    3 models" in line and "18 steps" in line

    GOOD = dict(section="main", name="joint", task="plain", seed=0)
    NONE = ["", "[]", "{}", '{"runs": [], "entries": {}}', "\xff"]
    NONE += [json.dumps(dict(runs=[], entries=[entry])) for entry in (3, {}, GOOD | dict(seed="0"))]

    @pytest.mark.parametrize("text", NONE)
    def test_a_file_without_results_is_said_to_be_none(self, text, tmp_path):
        (tmp_path / "x.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="x.json holds no results of this study: name another"):
            study.load_results(tmp_path / "x.json")

    @pytest.mark.parametrize(
        "words, told",
        (
            ("--workers 0", "1 or more"),
            ("--workers -2", "1 or more"),
            ("--seeds 0", "1 or more"),
            ("--seeds -1", "1 or more"),
            ("--seeds 99", "choose from 1, 2, 3, 4, 5"),
            ("--names joint nobody", "--names 'nobody': there are "),
            ("--only window --names joint", "there are window 0, window 2"),
            ("--results /nowhere/x.json", "/nowhere/x.json: No such file"),
            ("--results .", "Is a directory"),
            ("--results empty.json --plan", "holds no results"),
            ("--device cuda", "torch finds no cuda here"),
            ("--device mps", "torch finds no mps here")))
    def test_options_are_checked_before_the_training(
        self, words, told, tmp_path, monkeypatch, capsys
    ):
        (tmp_path / "empty.json").write_text("")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(study, "study", lambda *_: pytest.fail("trained"))
        for device in (torch.cuda, torch.backends.mps):
            monkeypatch.setattr(device, "is_available", lambda: False)
        with pytest.raises(SystemExit, match="2"):
            study.main(words.split())
        said = capsys.readouterr().err
        assert told in said and len(said) < 2000

class TestStatistics:
    def test_student(self):
        for df, t in ((1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227)):
            assert study.quantile(df) == pytest.approx(t, rel=1e-4)
            assert study.tail(t, df) == pytest.approx(0.05, rel=1e-4)
        assert study.tail(0, 5) == pytest.approx(1) and study.tail(-3, 7) == study.tail(3, 7)
        assert study.tail(3, 1) == pytest.approx(1 - 2 / math.pi * math.atan(3), rel=1e-6)
        assert study.tail(3, 2) == pytest.approx(1 - 3 / math.sqrt(2 + 9), rel=1e-6)

    def test_intervals(self):
        mean, half, values = study.mean_and_interval({0: 0.5, 1: 0.6, 2: 0.7})
        assert mean == pytest.approx(0.6)
        assert half == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-4)
        assert study.mean_and_interval([0.5])[1] == math.inf

    def test_paired(self):
        """A paired t-test by hand; more comparisons, a wider interval."""
        a, b = {0: 0.9, 1: 0.8, 2: 0.85, 7: 0.1}, {0: 0.8, 1: 0.72, 2: 0.73, 9: 0.0}
        error = np.std([0.1, 0.08, 0.12], ddof=1) / math.sqrt(3)
        for comparisons, t in ((1, 4.30265), (5, 9.92484)):  # of .95 and of .99 with two degrees
            difference, half, seeds = study.paired(a, b, comparisons)
            assert (difference, seeds) == (pytest.approx(0.1), 3)
            assert half == pytest.approx(t * error, rel=1e-4)
        assert study.paired({0: 1.0}, {0: 0.0}) == (1.0, math.inf, 1)  # one seed decides nothing
        difference, half, _ = study.paired({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})
        assert difference == 0 and half == pytest.approx(12.7062 / study.TEST / math.sqrt(2), 1e-4)

    def test_verdicts(self):
        means = dict(a=0.9, bb=0.7, ccc=0.899, dddd=0.6)
        noise = lambda s, name: 0.004 * math.sin(5 * s + len(name))
        wave = {name: {s: m + noise(s, name) for s in range(5)} for name, m in means.items()}
        rows = study.compare(wave, [("a", "bb"), ("dddd", "bb"), ("a", "ccc"), ("a", "nobody")])
        assert [row["verdict"] for row in rows] == ["ahead", "behind", "undecided", "undecided"]

    def test_what_one_comparison_shows_many_may_not(self):
        a, b = dict(enumerate([0.9, 0.93, 0.96])), dict(enumerate([0.8, 0.8, 0.8]))
        verdicts = [study.compare({"a": a, "b": b}, [("a", "b")] * n)[0] for n in (1, 20)]
        assert [row["verdict"] for row in verdicts] == ["ahead", "undecided"]

    def test_the_lowest_error_is_named_if_it_is_clear(self):
        """Paired over the clips: what varies from clip to clip alike for all does not matter."""
        alike = torch.linspace(0.2, 0.9, 64)
        noise = 0.01 * torch.sin(torch.arange(64.0))
        said = steps.lowest({"a": alike + 0.1, "b": alike + noise, "c": alike + 0.5})
        assert said.startswith("b is lowest, by 0.100 ± 0.002 before a")
        said = steps.lowest({"a": alike, "b": alike + noise, "c": alike + 0.5})
        assert said.startswith(("undecided between a and b", "undecided between b and a"))

    def test_a_lead_below_the_margin_is_none(self):
        found = {"a": dict(enumerate([0.9005] * 5)), "b": dict(enumerate([0.896] * 5))}
        (row,) = study.compare(found, [("a", "b")])
        assert row["difference"] > row["half"] and row["verdict"] == "undecided"

# ==== FIGURES =====================================================================================
SOURCE = torch.Generator().manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 12, 2, generator=SOURCE, dtype=torch.float64)

class TestFigures:
    def test_every_scheme_has_its_own_look(self):
        looks = [figures.look(name) for name in va.ATTENTION]
        assert set(va.ATTENTION) == set(figures.MECHANISMS)
        assert len({look[1:] for look in looks}) == len({look[0] for look in looks}) == len(looks)
        lead = "joint divided trajectory mixing window axial linear".split()
        assert len({figures.look(name)[1] for name in lead}) == len(lead)

    def test_step_through_shows_what_the_function_made(self):
        _, weights = va.attend(q, k, v, return_weights=True)
        picture = figures.step_through(va.attend, q, k, v, return_weights=True)
        assert "weights (1, 1, 12, 12)" in picture.text and "scores (1, 1, 12, 12)" in picture.text
        row = " ".join(f"{x:5.2f}" for x in weights[0, 0, 5].tolist())
        assert row in picture.text
        source = figures.source_of(va.attend)[0]
        shown = [line for line in source if line.strip() and line in picture.text]
        first, last = figures.docstring_lines(source)
        assert len(shown) >= len([line for line in source if line.strip()]) - (last - first + 1)

    def test_step_through_ends_in_the_difference(self):
        grid = (3, 2, 2)
        out, run = va.space_attention(q, k, v, grid), (va.space_attention, q, k, v, grid)
        right = figures.step_through(*run, expected=out)
        wrong = figures.step_through(*run, expected=out + 1)
        assert right.text.endswith("0.0e+00") and wrong.text.endswith("1.0e+00")

    def test_step_through_keeps_what_was_changed_in_place(self):
        def doubles(x):
            y = x.clone()
            z = y
            y *= 2
            return z

        made = figures.Trace(doubles, torch.ones(2)).made
        values = [made[line] for line in sorted(made)]
        assert values[0]["y"].tolist() == [1, 1] and values[2]["y"].tolist() == [2, 2]
        assert [sorted(value) for value in values] == [["y"], ["z"], ["y", "z"], ["returned"]]
        assert values[3]["returned"].tolist() == [2, 2]

    def test_step_through_counts_a_loop_without_its_end(self):
        window = figures.step_through(va.window_attention, q, k, v, (3, 2, 2)).markup
        assert "the last of 3 times" in window and "the last of 4 times" not in window

    def test_step_through_leaves_no_trace(self):
        import sys

        before = sys.gettrace()
        with pytest.raises(ValueError):
            figures.step_through(va.space_attention, q, k, v, (3, 2, 3))
        assert sys.gettrace() is before

    @pytest.mark.parametrize("thing", [va.attend, va.trajectory_attention, va.TrajectoryAttention])
    def test_source_is_that_of_the_file(self, thing):
        picture = figures.show_source(thing)
        number = int(re.search(r"line (\d+)", picture.text)[1])
        file = generator.Path(va.__file__).read_text().splitlines()
        lines = picture.text.splitlines()[1:]
        assert file[number - 1 : number - 1 + len(lines)] == lines
        assert "<details>" in picture.markup or '"""' not in picture.text

    def test_player_moves(self):
        from PIL import Image

        clips = moving_objects(2, seed=0)
        picture = figures.player(list(clips.video), ["one", "two"])
        data = figures.base64.b64decode(re.search(r"base64,([^\"]+)", picture.markup)[1])
        shot = Image.open(figures.io.BytesIO(data))
        assert shot.n_frames == 4 and shot.is_animated and shot.info["loop"] == 0
        assert 'alt="2 clips of 4 frames' in picture.markup and "<script" not in picture.markup

    def test_explorer_carries_the_weights(self):
        video = moving_objects(1, seed=0).video[0]
        weights = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
        picture = figures.explorer(video, {"joint": weights.numpy()}, (2, 1, 3))
        data = json.loads(re.search(r"data = (\{.*\});", picture.markup)[1])
        unpack = lambda text: np.frombuffer(figures.base64.b64decode(text), np.uint8)
        cells = unpack(data["maps"]["joint"]["cells"]).reshape(64, 64)
        back = cells / 255 * np.array(data["maps"]["joint"]["top"])[:, None]
        assert np.abs(back - weights.numpy()).max() < weights.max().item() / 400
        film = unpack(data["frames"]).reshape(4, 16, 16, 3)
        assert np.array_equal(film, figures.pixels(video))
        assert "<img" in picture.markup
        assert "{{" not in picture.markup and "http" not in picture.markup

    def test_what_a_notebook_gets(self):
        video = moving_objects(1, seed=0).video[0]
        kinds = {
            "image/png": figures.player([video], ["one"]),
            "text/html": figures.table(["a"], [[1]]),
            "both": figures.explorer(video, {"joint": np.full((64, 64), 1 / 64)})}
        for kind, picture in kinds.items():
            data, about = picture._repr_mimebundle_()
            wanted = {"image/png", "text/html"} if kind == "both" else {kind}
            assert set(data) == wanted | {"text/plain"} and data["text/plain"] == picture.text
            if "image/png" in data:
                assert about["image/png"] == {"width": picture.width, "alt": picture.text}
                assert figures.base64.b64decode(data["image/png"]).startswith(b"\x89PNG")

    def test_pictures_have_texts_and_fit(self):
        line = {speed: (0.7, 0.05, [0.65, 0.75]) for speed in (1, 8)}
        bars = {name: (0.7, math.inf, [0.7]) for name in va.ATTENTION}
        curve = [(25, 0.7, 0.5), (50, 0.5, 0.8)]
        maps = {"joint": np.ones((4, 4, 4)) / 64}
        video = moving_objects(1, seed=0)
        shown = [
            figures.curves({"joint": line, "mixing": line}, "speed"),
            figures.bars(bars, lines={"ceiling": 0.85}), figures.learning_curves({"joint": curve}),
            figures.attention_maps(maps, (0, 1, 2), video.video[0]),
            figures.film_strips(list(video.video), ["right"], video.path, 4)]  # fmt: skip
        for picture in shown:
            assert len(picture.text) > 20 and 'alt="' in picture.markup
            assert int(re.search(r"width:(\d+)px", picture.markup)[1]) <= 880
        assert "joint 100%" not in shown[3].text and "25%, 25%, 25%, 25%" in shown[3].text
        table = figures.table(["name", "<x>"], [["a", 1]])
        assert "&lt;x&gt;" in table.markup and "max-width:880px" in table.markup
