"""The notebook: attention maps, the stepper, pictures, and every chapter with few steps."""

import ast
import html
import json
import re
import shutil
import subprocess
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch

import video_attention as va
from tiny_data import SCHEMES, moving_objects, refresh, study
from tiny_data.notebook import attention_maps, cells, figures, looks, pictures, stepper

torch.set_num_threads(1)
GRID, D, HEADS = (3, 2, 5), 24, 4


def random_module(make):
    """A step with random weights in every layer; W_v of trajectories the identity."""
    module = make(D, HEADS).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if isinstance(module, va.TrajectoryAttention):
        module.proj_kv.weight.data[D:], module.proj_kv.bias.data[D:] = torch.eye(D), 0
    return module


STEPS = [(name, i) for name in SCHEMES for i in range(len(va.ATTENTION[name]))]


@pytest.mark.parametrize("name, i", STEPS)
def test_a_map_is_what_the_step_pays(name, i):
    """The twin is the step without its last layers; its output is a sum of values, as often as the
    gradient says; all queries at once give the same as one by one."""
    C = 0 if name == "lvt" else GRID[0]  # neighbours are those of patches alone
    module, x = random_module(va.ATTENTION[name][i]), torch.randn(2, C + 30, D).double()
    twin, n = attention_maps.twin_of(module, x), C + (1 * 2 + 1) * 5 + 3
    out, values = twin(x, GRID), twin.qkv.values
    last = module.extra(module.proj(out))[:, n]
    assert (last - module(x, GRID)[:, n]).abs().max() < 1e-10
    (taken,) = torch.autograd.grad(out[0, n, 7], values, retain_graph=True)
    assert ((taken * values).sum() - out[0, n, 7]).abs() < 1e-10
    found = attention_maps.attention_map(module, x, GRID, (1, 1, 3))
    (taken,) = torch.autograd.grad(out[:, n].sum(), values)
    assert (found - taken.unflatten(2, (HEADS, -1)).mean(dim=3).mT).abs().max() < 1e-12
    everybody = attention_maps.everybodys_map(module, x[:1], GRID)
    assert (everybody[n] - found[0].mean(dim=0)).abs().max() < 1e-10


def test_maps_against_definitions():
    x = torch.randn(2, 31, D).double()
    joint = random_module(va.ATTENTION["joint"][0])
    q, k, _ = joint.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    with torch.inference_mode():
        found = attention_maps.attention_map(joint, x, GRID, 0)  # the class token's
    assert (found - va.attention_weights(q, k)[:, :, 0]).abs().max() < 1e-12
    for name in ("trajectory", "trajectory_orthoformer"):
        path = random_module(va.ATTENTION[name][0])
        maps, along = attention_maps.trajectory_maps(path, x, GRID, (1, 0, 2))
        whole = attention_maps.attention_map(path, x, GRID, (1, 0, 2))[..., 1:].unflatten(-1, GRID)
        assert (maps * along[..., None, None] - whole).abs().max() < 1e-12
        assert max((maps.sum((3, 4)) - 1).abs().max(), (along.sum(2) - 1).abs().max()) < 1e-12


def test_a_layer_of_a_model():
    shape = dict(num_frames=3, image_size=(4, 10), patch_size=2, dim=D, depth=2, heads=HEADS)
    model = va.VideoTransformer("divided", num_classes=3, **shape).double().eval()
    video = torch.randn(2, 3, 3, 4, 10, dtype=torch.float64)
    entered = attention_maps.inputs_of_steps(model, video)
    assert [[grid for _, grid in inputs] for inputs in entered] == [[GRID, GRID], [GRID, GRID]]
    tokens = model.patches(video)[0]
    tokens = model.position(torch.cat([model.class_token.expand(2, 1, -1), tokens], dim=1), GRID)
    assert torch.equal(model.blocks[0].norms[0](tokens), entered[0][0][0])
    maps = attention_maps.layer_map(model, video, -1, (1, 1, 3))
    for step, (x, _), found in zip(model.blocks[1].steps, entered[1], maps, strict=True):
        assert torch.equal(found, attention_maps.attention_map(step, x, GRID, (1, 1, 3)))
    with pytest.raises(AssertionError, match="eval"):
        attention_maps.inputs_of_steps(model.train(), video)
    for query in ((3, 0, 0), (0, -1, 0), 1):
        with pytest.raises(AssertionError, match="query="):
            attention_maps.number_of(query, 31, GRID)


def test_what_reaches_a_patch_in_a_block():
    (time, space), count = cells.steps_of("divided", (2, 2, 3), (0, 1, 1))
    assert count.tolist() == [[[1] * 3] * 2, [[2] * 3] * 2]
    assert (time > 0).tolist() == [[[False] * 3, [False, True, False]]] * 2
    assert (space > 0).tolist() == [[[True] * 3] * 2, [[False] * 3] * 2]
    assert (cells.steps_of("window")[1].sum((1, 2)) == (24, 24, 24, 0)).all()  # of frame 1


@pytest.mark.parametrize("name", [*SCHEMES, "prototypes", "fixation", "rotary", "neighbours"])
def test_every_mechanism_has_a_picture(name, monkeypatch):
    """A sentence, an equation with colours, a caption, an image with a text, and its cost."""
    monkeypatch.setattr(figures, "SHARP", 0.5)
    picture = pictures.mechanism(name)
    assert re.search(rf'<img alt="{re.escape(looks.label(name))}: [^"]{{30,}}"', picture.markup)
    assert "<figcaption" in picture.markup and len(pictures.sentence(name)) > 20
    assert name == "prototypes" or list(pictures.equations(name))
    if name in SCHEMES:
        assert f" {cells.giga_macs(name, (8, 14, 14)):.1f} " in picture.markup
        assert f"color:{pictures.ORANGE}" in picture.markup and "~" not in picture.markup


def test_cells_equations_and_letters_are_those_of_the_file():
    ((_, shades, values),) = pictures.rows_of("window")
    by_hand = np.ones((4, 4, 6)) * [[[1]], [[1]], [[1]], [[0]]]
    by_hand[1, 1, 2] = 4  # the query
    assert (shades == by_hand).all() and not pictures.same(values, 2).any()
    ((_, shades, values),) = pictures.rows_of("summary")  # other frames are taken as their mean
    assert pictures.same(values, 2).sum((1, 2)).tolist() == [20, 0, 20, 20]
    steps = [words for words, *_ in pictures.rows_of("divided")]
    assert steps == ["step 1\ntime", "step 2\nspace", "the block"]
    assert pictures.letters("space")[2].split() == ["......", "##Q###", "......", "......"]
    (shown,) = pictures.equations("joint")
    assert f'j</sub>(<b style="color:{pictures.ORANGE}">q</b>' in shown


def test_a_new_scheme_has_a_picture_without_a_row(monkeypatch):
    monkeypatch.setattr(figures, "SHARP", 0.5)
    monkeypatch.setitem(va.ATTENTION, "mine", [va.step(va.window_attention, window=0)])
    text = pictures.mechanism("mine").text
    assert "mine. Every patch attends to all patches of the frames t - w" in text
    assert "from 0, 24, 0 and 0 of the 24 patches of the frames" in text and "##Q###" in text
    assert looks.label("mine") == "mine" and looks.look("mine").colour == "#7a7a7a"
    assert pictures.gallery(["mine", "joint"]).markup.count("<img alt=") == 2


def not_written(x):
    raise NotImplementedError


def test_sentences_from_numbers(capsys):
    found = dict(joint=[0.9, 0.95, 0.99, 0.91, 1.0], mixing=[0.5, 0.6, 0.7, 0.55, 0.92])
    assert cells.whole(found, 0.8) == ["joint"] and cells.whole(found, 0.95, False) == ["mixing"]
    assert cells.listed([]) == "none" and cells.listed(["joint", "mixing"]) == "joint and mixing"
    told = "joint is ahead of mixing: 0.950 and 0.654 in the mean of 5 seeds, rank test p = 0.032."
    assert cells.versus(found, "joint", "mixing") == told
    assert "cannot be told from" in cells.versus(found, "joint", "joint")
    x = torch.arange(6.0).view(2, 3)
    for yours in (torch.neg, lambda x: x[0], lambda x: -x + (x == 4), not_written):
        cells.check(yours, torch.neg, x)
    said = ["right", "its shape is (3,), not (2, 3)", "the largest difference is 1, at (1, 1)"]
    assert capsys.readouterr().out.splitlines() == [*said, "not written yet"]
    known = [looks.look(name) for name in SCHEMES if name in looks.TABLE]
    assert len({look[1:3] for look in known}) == len({look.label for look in known}) == len(known)


def test_operations_of_the_long_range_arena():
    """By hand, for exact attention: 2 layers of scores and values, projections and an MLP."""
    exact = 2 * (2 * 2048**2 * 64 + 4 * 2048 * 64**2 + 2 * 2048 * 64 * 128) / 1e9
    assert f"exact | {exact:.3f} | 1.21" in cells.long_range_arena().text


def data_of(picture):
    return json.loads(re.search(r"data = (\{.*\});", picture.markup)[1])


def made(name, *args, **options):
    """What a stepper shows under a name, pass by pass: (heads of rows, of columns, values)."""
    data = data_of(stepper.step_through(*args, **options))
    numbers = [step["new"][name] for step in data["steps"] if name in step["new"]]
    return [block[1:] for i in numbers for block in data["tensors"][i]["blocks"]]


def test_the_stepper_shows_every_pass_and_what_has_no_name():
    q, k, v, grid = cells.small_grid()
    tokens, exact = [f"t{t}s{s}" for t in range(3) for s in range(4)], va.attention_weights
    passes = made("softmax(q · near_k)", va.window_attention, q, k, v, grid)
    for t, near in enumerate((slice(0, 8), slice(0, 12), slice(4, 12))):
        own = slice(4 * t, 4 * t + 4)
        assert passes[t][:2] == [tokens[own], tokens[near]] and len(passes) == 3
        assert torch.tensor(passes[t][2]).allclose(exact(q[0, 0, own], k[0, 0, near]), atol=1e-3)
    ((_, _, found),) = made("k.transpose(-1, -2) @ v", va.linear_attention, q, k, v, grid)
    assert torch.tensor(found).allclose((va.relu_features(k).mT @ v)[0, 0], rtol=1e-3)
    mixed = made("k_mixed", va.mixing_attention, *cells.small_grid(width=4))
    assert mixed[1][1] == ["t2", "t0", "t1", "t1"]  # the frame from which each channel comes


def test_steppers_on_a_page_know_nothing_of_each_other(tmp_path):
    """No network, no global names, and no key moves the notebook."""
    shown = [stepper.step_through(va.joint_attention, *cells.small_grid()) for _ in range(2)]
    shown.append(figures.explorer(torch.rand(3, 4, 16, 16), {"joint": torch.rand(64, 64)}))
    for page in [picture.markup for picture in shown]:
        assert "://" not in page and ' id="' not in page and "joint" in page.split('"live"')[0]
        keys = re.findall(r"<(?:button|input|select)|tabIndex", page)
        assert len(keys) == page.count("data-lm-suppress-shortcuts") > 0
    browser = shutil.which("chromium") or pytest.skip("no chromium")
    press = "<script>document.querySelectorAll('.on')[1].click()</script>"
    (tmp_path / "page.html").write_text("".join(picture.markup for picture in shown) + press)
    words = [browser, "--headless", "--no-sandbox", "--dump-dom", tmp_path / "page.html"]
    page = subprocess.run(words, capture_output=True, text=True, timeout=300).stdout
    assert re.findall(r">step (\d) of 2<", page) == ["1", "2"] and page.count("<canvas") == 8


def test_pictures_have_texts_and_fit(monkeypatch):
    monkeypatch.setattr(figures, "SHARP", 0.5)
    clips, found = moving_objects(2, seed=0), {"joint": [0.7, 0.8], "space": [0.5]}
    weights = torch.rand(64, 64).numpy() / 2
    shown = [
        figures.player(list(clips.video), ["one", "two"]),
        figures.film_strips(list(clips.video), ["right", "left"], clips.path, 4),
        figures.dots({"rotary": found, "tables": {"joint": [0.5]}}, lines={"ceiling": 0.85}),
        figures.learning_curves({"joint": [(25, 0.7, 0.5), (50, 0.5, 0.8)]}),
        figures.explorer(clips.video[0], {"joint": weights}, (2, 1, 3)),
    ]
    for picture in shown:
        data, about = picture._repr_mimebundle_()
        assert data["text/plain"] == about["image/png"]["alt"] == picture.text
        alt = re.search(r'<img alt="([^"]{20,})"', data["text/html"])[1]
        assert html.unescape(alt) in picture.text
        assert len(picture.text) > 20 and picture.width <= 880 and "{{" not in picture.markup
    data = data_of(shown[4])["rows"][0]
    cells_of = figures.base64.b64decode(data["cells"])
    assert max(cells_of[:64]) == 255  # each query's largest weight
    assert cells_of[5] / 255 * data["top"][0] == pytest.approx(weights[0, 5], abs=0.005)
    assert "&lt;x&gt;" in figures.table(["a", "<x>"], [["b", 1]]).markup


# ==== THE CHAPTERS ===============================================================================
@pytest.fixture
def quick(monkeypatch):
    """Two steps of training, few test clips, and pictures that are not drawn."""
    monkeypatch.setenv("TUTORIAL_STEPS", "2")
    monkeypatch.setattr(study, "TEST", 64)
    monkeypatch.setattr(figures, "as_picture", lambda *x, **_: figures.Picture("", x[1]))
    monkeypatch.setattr(va, "ATTENTION", dict(va.ATTENTION))
    study.test_clips.cache_clear()
    yield
    study.test_clips.cache_clear()


def run(source, namespace):
    """As a notebook does: the value of a last expression is shown."""
    tree = ast.parse(source)
    if isinstance(tree.body[-1], ast.Expr):
        tree.body[-1] = ast.parse(f"shown = {ast.unparse(tree.body[-1])}").body[0]
    exec(compile(tree, "<cell>", "exec"), namespace)
    assert getattr(namespace.pop("shown", None), "text", "none")


def test_every_chapter_runs_alone_after_the_first_cell(quick, monkeypatch):
    chapters = [[]]
    for cell in json.loads((refresh.ROOT / "tutorial.ipynb").read_text())["cells"]:
        source = "".join(cell["source"])
        if source.startswith("## "):
            chapters.append([])
        if cell["cell_type"] == "code":
            assert max(map(len, source.splitlines())) <= 100 and source.count("\n") < 15, source
            chapters[-1].append(source)
    for chapter in chapters[1:]:
        monkeypatch.setattr(cells, "TRAINED", {})
        namespace = {"display": lambda picture: picture.text}
        with redirect_stdout(StringIO()):
            for source in chapters[0] + chapter:
                run(source, namespace)


def test_the_stop_button_ends_training_and_the_cell_trains_anew(quick, monkeypatch):
    """It is a KeyboardInterrupt inside a step."""

    def stop(*batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "training_step", stop)
    with redirect_stdout(StringIO()) as said:
        models = cells.train_live("fast", "joint", "mixing")
    assert "stopped" in said.getvalue() and not any(model.training for model in models)
    assert ("fast", "joint") not in cells.TRAINED and "mixing" not in said.getvalue()
