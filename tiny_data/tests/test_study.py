"""The study: it builds with the file, goes on where it stopped, and says what numbers bear."""

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
    models = dict.fromkeys(["space", "4 random", "mixing"], 1)
    sections = {"small": study.Section(models, [["tiny", "tiny camera"]], "rotary")}
    monkeypatch.setattr(study, "SECTIONS", sections)
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
    job = study.Job("small", "mixing", ("tiny", "tiny fast", "tiny camera"), 0)
    plain, _, camera = study.run(job)
    _, again = study.run(study.Job("small", "mixing", ("tiny", "tiny camera"), 0))
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
    assert "with today's video_attention.py" in study.files_used(results), "train it again"
    known = {name for _, name, *_ in keys}
    assert not study.missing(results, [job for job in study.all_jobs() if job.name in known])
    chance = study.scores(results, "plain")["space"]
    assert all(abs(value - 0.5) < 0.05 for value in chance)


def test_plan(tiny, capsys):
    study.main(["--plan", "--results", str(tiny)])
    first, last = capsys.readouterr().out.splitlines()
    assert "0 of    3 models" in first and "18 steps" in first and study.code_hash() in last
    assert "with another" in study.files_used(dict(runs=[dict(file="other")], entries=[]))


def test_the_hash_is_of_what_the_models_do():
    """Comments, docstrings, layout and other schemes may change; what the models do may not."""
    source, today = study.copy.SOURCE, study.code_hash(["joint"])
    reworded = source.replace("Attention over all tokens at once", "All tokens")
    reworded = reworded.replace("(q, grid)  # only checks", "( q,grid )")
    assert reworded != source and study.code_hash(["joint"], reworded) == today
    assert study.code_hash(["joint"], source.replace("window=1", "window=2")) == today
    other = source.replace("x + self.drop_path", "self.drop_path")
    assert study.code_hash(["joint"], other) != today
    assert study.code_hash(["joint"]) != study.code_hash(["space"])


def test_the_rank_test():
    """By hand: 5 against 5 wholly parted is 2 of 252 ways, 3 against 3 is 2 of 20, not enough."""
    assert study.rank_test(range(5), range(5, 10)) == pytest.approx(2 / 252)
    assert study.rank_test([1, 2], [1, 2]) == 1 and study.rank_test([1, 3], [2, 4]) == 4 / 6
    high, low = [0.9, 0.95, 0.99, 0.91, 1.0], [0.5, 0.515, 0.897, 0.866, 0.875]
    assert study.verdict(high, low) == "ahead" and study.verdict(low, high) == "behind"
    assert study.verdict(high[:3], low[:3]) == study.verdict(high, high[::-1]) == "undecided"


def test_weights_paid_are_those_of_the_model():
    """Weights times values are what the mechanism returns."""
    for name in ("joint", "linear_fixation"):
        model, video = study.build(name).eval(), torch.randn(2, 3, 4, 16, 16)
        seen, step = [], model.blocks[0].steps[0]
        mechanism = step.mechanism
        step.mechanism = lambda q, k, v, grid: seen.append((v, mechanism(q, k, v, grid))) or v
        model(video)
        (v, out), step.mechanism = seen[0], mechanism
        assert (study.weights_paid(model, video) @ v - out).abs().max() < 1e-5
