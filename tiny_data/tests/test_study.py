"""The study: it builds with the file, goes on where it stopped, and says what numbers bear."""

import math

import pytest
import torch

import video_attention as va
from tiny_data import SCHEMES, study

torch.set_num_threads(1)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A study of three small jobs, and where its results go."""
    tasks = {"tiny": study.Task({}, 3), "tiny camera": study.Task(dict(camera=True), 3)}
    monkeypatch.setattr(study, "TASKS", study.TASKS | tasks)
    names = ["space", "mixing 2", "mixing"]
    sections = {"small": study.Section(names, [["tiny", "tiny camera"]])}
    monkeypatch.setattr(study, "SECTIONS", sections)
    monkeypatch.setattr(study, "SEEDS", 1)
    monkeypatch.setattr(study, "TEST", 64)
    study.test_clips.cache_clear()
    yield tmp_path / "study.json"
    study.test_clips.cache_clear()


def timeless(results):
    return [entry | dict(run=None, seconds=None) for entry in results["entries"]]


def test_every_model_builds_and_knows_its_form():
    video = torch.randn(2, 3, 4, 16, 16)
    jobs = study.all_jobs()
    assert len(set(jobs)) == len(jobs) and study.TASKS.keys() >= {t for j in jobs for t in j.tasks}
    names = {job.name for job in jobs}
    assert set(study.ROWS) <= names and set(SCHEMES) <= names
    for name in sorted(names):
        model = study.build(name)
        again = va.VideoTransformer(**model.config)
        again.load_state_dict(model.state_dict())
        assert model.eval()(video).shape == (2, 2) and model.config["attention"] in va.ATTENTION


def test_it_goes_on_where_it_stopped(tiny, monkeypatch):
    study.study(study.all_jobs(), path=tiny.with_name("whole.json"))
    whole, run, calls = study.load_results(tiny.with_name("whole.json")), study.run, []

    def stops(job, device):
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(job, device)

    monkeypatch.setattr(study, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        study.study(study.all_jobs(), path=tiny)
    assert len(study.load_results(tiny)["entries"]) == 2  # one job of two tasks
    study.study(study.all_jobs(), path=tiny)
    parts = study.load_results(tiny)
    assert len(calls) == 4 and len(parts["runs"]) == 2
    assert {"python", "torch", "numpy", "device", "date", "command", "file"} == set(
        parts["runs"][0]
    )
    assert timeless(parts) == timeless(whole)
    before = tiny.read_text()
    study.study(study.all_jobs(), path=tiny)
    assert tiny.read_text() == before and list(tiny.parent.glob("*.json.*")) == []


def test_entries_of_a_job(tiny, monkeypatch):
    """Later tasks go on from the first; with a moving camera the split adds up."""
    monkeypatch.setitem(study.TASKS, "tiny fast", study.Task(dict(size=16, speed=5), 3))
    plain, _, camera = study.run(study.Job("x", "mixing", ("tiny", "tiny fast", "tiny camera"), 0))
    _, again = study.run(study.Job("x", "mixing", ("tiny", "tiny camera"), 0))
    assert camera["curve"] == again["curve"] and camera["accuracy"] == again["accuracy"]
    assert {"accuracy", "background_removed", "curve", "seconds", "steps"} <= set(plain)
    assert "tells" not in plain
    told = camera["ceiling"] * 2 - 1  # the share of clips whose path tells
    mixed = told * camera["tells"] + (1 - told) * camera["cannot_tell"]
    assert mixed == pytest.approx(camera["accuracy"], abs=2e-3)


def test_interrupting_keeps_what_is_done():
    model = study.build("joint")
    start = {key: value.clone() for key, value in model.state_dict().items()}

    def stop(step, loss, accuracy):
        raise KeyboardInterrupt

    result = study.train(model, steps=100, on_progress=stop)
    assert result["interrupted"] and result["steps"] == 25 and len(result["curve"]) == 1
    assert not model.training and any((model.state_dict()[k] != start[k]).any() for k in start)


def test_training_learns():
    """Mixing gets the plain task right within 50 steps; space attention cannot."""
    curves = [study.train(study.build(name), steps=50)["curve"] for name in ("mixing", "space")]
    assert curves[0][0][2] < 0.9 < curves[0][1][2] and abs(curves[1][1][2] - 0.5) < 0.05


def test_head_start():
    step = study.build("trajectory", seed=3).blocks[0].steps[0]
    assert torch.equal(step.qkv.weight[:48], step.qkv.weight[48:96])
    assert torch.equal(step.proj_q.weight, 3 * step.proj_kv.weight[:48])
    time, space = study.build("divided", seed=3).blocks[0].steps
    assert not time.extra.weight.any() and not torch.equal(*time.qkv.weight[:96].chunk(2))
    assert torch.equal(*space.qkv.weight[:96].chunk(2))
    plain = study.build("trajectory", seed=3, push=False).blocks[0].steps[0]
    assert not torch.equal(*plain.qkv.weight[:96].chunk(2))


def test_seeds_and_batches():
    a, b, c = (study.build("lvt", seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[key], b[key]) for key in a) and any((a[k] != c[k]).any() for k in a)
    video, label = study.batch_of("moving camera", 0, 3, "cpu")
    other, _ = study.batch_of("moving camera", 0, 4, "cpu")
    assert video.shape == (32, 3, 4, 16, 16) and torch.equal(video[16:], video[:16].flip(2))
    assert torch.equal(label[16:], 1 - label[:16]) and not torch.equal(video, other)


def test_random_prototypes_are_tokens():
    q, k = torch.randn(2, 2, 3, 5, 4).unbind(0)  # each (B, h, N, d)
    chosen = study.random_prototypes(q, k, 6)
    equal = (chosen[:, :, :, None] == torch.cat([q, k], dim=2)[:, :, None]).all(dim=-1)
    assert (equal.sum(dim=3) == 1).all() and (equal.sum(dim=2) <= 1).all()


def test_the_results_file():
    results = study.load_results()
    keys = [(e["section"], e["name"], e["task"], e["seed"]) for e in results["entries"]]
    assert len(keys) == len(set(keys))
    for e in results["entries"]:
        assert e["steps"] == study.TASKS[e["task"]].steps and e["curve"][-1][0] == e["steps"]
        assert 0 <= e["accuracy"] <= 1 and e["run"] < len(results["runs"])
    chance = study.scores(results, "plain")["space"]
    assert all(abs(value - 0.5) < 0.05 for value in chance.values())


def test_plan(tiny, capsys):
    study.main(["--plan", "--results", str(tiny)])
    first, last = capsys.readouterr().out.splitlines()
    assert "0 of    3 models" in first and "18 steps" in first and study.FILE in last
    assert "earlier states" in study.files_used(dict(runs=[dict(file="other")]))
    assert "recorded with today's" in study.files_used(dict(runs=[dict(file=study.FILE)]))


def test_intervals():
    mean, half, values = study.mean_and_interval({0: 0.5, 1: 0.6, 2: 0.7})
    assert mean == pytest.approx(0.6) and values == [0.5, 0.6, 0.7]
    assert half == pytest.approx(4.30 * 0.1 / math.sqrt(3), rel=1e-4)
    assert study.mean_and_interval({0: 0.5})[1] == math.inf


def test_verdicts():
    """Ahead or behind is whose seeds are all on one side, three or more, by a point in the mean."""
    found = dict(a=[0.9, 0.95, 0.99], b=[0.5, 0.7, 0.89], c=[0.8, 0.9, 0.99], d=[0.895, 0.9, 0.9])
    found |= dict(few=[0.1, 0.2], near=[0.891, 0.892, 0.8905])
    found = {name: dict(enumerate(values)) for name, values in found.items()}
    pairs = {("a", "b"): "ahead", ("b", "a"): "behind", ("a", "c"): "undecided"}
    pairs |= {("few", "a"): "undecided", ("d", "near"): "undecided"}
    rows = study.compare(found, pairs)
    assert {(row["a"], row["b"]): row["verdict"] for row in rows} == pairs
    assert rows[0]["difference"] == pytest.approx(0.25) and rows[3]["seeds"] == 2
