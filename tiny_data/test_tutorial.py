"""The tutorial: no hidden state, cells of at most 15 lines, executed without errors. Repository
root, pytest."""

import json
import os
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
NOTEBOOK = Path(os.environ.get("VA_NOTEBOOK", HERE / "tutorial.ipynb"))
CELLS = json.loads(NOTEBOOK.read_text())["cells"]

def chapters():
    """[(title, [code of its cells])], the imports before the first heading apart."""
    found = [("setup", [])]
    for cell in CELLS:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and source.startswith("## "):
            found.append((source.splitlines()[0][3:], []))
        elif cell["cell_type"] == "code":
            found[-1][1].append(source)
    return found

(_, SETUP), *CHAPTERS = chapters()

def run(cell, namespace):
    """As a notebook does: the value of a last expression is shown, which must not fail either."""
    import ast

    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    # The source is known under a name, as in a notebook, for whoever reads it back.
    exec(compile(tree, "<cell>", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
        if hasattr(value, "_repr_mimebundle_"):
            bundle = value._repr_mimebundle_()
            bundle = bundle[0] if isinstance(bundle, tuple) else bundle
            assert bundle["text/plain"].strip(), (
                "a picture without a text for those who cannot see it")

@cache
def load_results():
    """The recorded study, read once."""
    from tiny_data import study

    return json.loads(study.RESULTS.read_text())

@pytest.fixture
def quick(monkeypatch):
    """Two steps of training, few test clips, coarse pictures; nothing trained is carried over."""
    from tiny_data import figures, steps, study

    monkeypatch.setattr(figures, "SHARP", 0.5)
    monkeypatch.setenv("TUTORIAL_STEPS", "2")
    monkeypatch.setattr(study, "TEST", 64)
    monkeypatch.setattr(study, "load_results", load_results)
    monkeypatch.setattr(steps, "TRAINED", {})
    study.test_clips.cache_clear()
    yield
    study.test_clips.cache_clear()
    study.training_clips.cache_clear()

@pytest.mark.parametrize("title, cells", CHAPTERS, ids=[title for title, _ in CHAPTERS])
def test_each_chapter_runs_alone_and_its_cells_twice(title, cells, quick, monkeypatch):
    """The second time without making files of the figures, which is what takes time."""
    pytest.importorskip("IPython")
    from tiny_data import figures

    real, draft = figures.as_picture, lambda figure, text, **more: figures.Picture("", text)

    def coarse(figure, text, **more):
        figure.set_layout_engine("none")  # to find room for the labels it would be drawn twice
        return real(figure, text, **more)

    curves, no_curves = figures.learning_curves, lambda runs: figures.Picture("", "curves")
    namespace = {"display": lambda *things: None}
    with redirect_stdout(StringIO()):
        for cell in [*SETUP, *cells]:
            monkeypatch.setattr(figures, "as_picture", coarse)
            monkeypatch.setattr(figures, "learning_curves", curves)
            run(cell, namespace)
            monkeypatch.setattr(figures, "as_picture", draft)
            monkeypatch.setattr(figures, "learning_curves", no_curves)
            run(cell, namespace)

def test_cells_are_short_and_narrow():
    for cell in CELLS:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            assert len(lines) <= 15 and max(map(len, lines)) <= 100, "\n".join(lines)

def test_every_cell_was_run_without_an_error():
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert cell["execution_count"], "".join(cell["source"])
            kinds = [output["output_type"] for output in cell["outputs"]]
            assert "error" not in kinds, "".join(cell["source"])
            warned = [o for o in cell["outputs"] if o.get("name") == "stderr"]
            assert not warned, warned

def test_every_picture_has_a_text():
    for cell in CELLS:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data or "text/html" in data:
                assert len("".join(data["text/plain"])) > 20

def test_every_chapter_has_a_prediction_or_a_recap():
    text = "\n".join("".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown")
    assert text.count("**Predict first") >= 8 and text.count("**Recap.**") >= 12
    assert text.count("<details>") == text.count("</details>") >= 10

def test_an_interruption_keeps_what_is_done(quick, monkeypatch):
    """The stop button is a KeyboardInterrupt inside a step of training."""
    from tiny_data import steps, study

    monkeypatch.setenv("TUTORIAL_STEPS", "50")
    real, count = study.batch_of, []

    def stop_at_the_third(*args):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(study, "batch_of", stop_at_the_third)
    said = StringIO()
    with redirect_stdout(said):
        first, second = steps.train_live("plain", "joint", "mixing")
    assert (
        steps.TRAINED["plain", "joint"][1]["interrupted"]
        and ("plain", "mixing") not in steps.TRAINED)
    assert "stopped" in said.getvalue() and "not trained" in said.getvalue()
    assert not first.training and not second.training
