"""Published sizes, released weights and image weights: what is loaded, and what is refused. Their
numbers are compared by the golden cases."""

import argparse
import json
import re
import sys
import types
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

import video_attention as va
from tiny_data.pretrained import PRESETS, from_released, load_image_weights, preset, quirks
from tiny_data.pretrained.golden import Case
from tiny_data.pretrained.released import PUBLISHED

WHOLE = {  # cases, and what from_released must be told
    "timesformer_divided": dict(heads=3),
    "timesformer_space": dict(heads=3, attention="space"),
    "hf_timesformer_divided": dict(heads=3),
    "hf_vivit": dict(heads=3, num_frames=4, image_size=32),
    "motionformer_trajectory_orig": dict(heads=3),
    "xvit_vit_16f_seg8": dict(heads=2, num_frames=16),
    "lvt_model_16f_seg8": dict(patch_stride=6, image_size=14, num_frames=16),
}
OF_192 = {"patch_embed.proj.weight": torch.ones(192, 3, 8, 8)}
OF_192 |= {"blocks.0.mlp.fc1.weight": torch.ones(768, 192)}
TIMESFORMER, IMAGE, _, VIVIT, MOTION, XVIT, LVT = WHOLE  # space only, it has an image model's keys


@cache
def case(name):
    return Case(Path(quirks.__file__).with_name("golden") / f"{name}.npz", torch.float32)


def state_of(name, without="^$"):
    state = case(name).state
    return {key: x for key, x in state.items() if not re.search(without, key)}


def load(name, state=None, **given):
    family = name.removeprefix("hf_").partition("_")[0]
    return from_released(family, state_of(name) if state is None else state, **WHOLE[name] | given)


def clip_of(model):
    size = va.as_sizes(model.config["image_size"])[1:]
    return torch.randn(2, 3, model.config["num_frames"], *size)


@pytest.mark.parametrize("name", PRESETS)
def test_published_parameters(name):
    """All of the official code but those it never uses; ViViT's layer by layer, see published.json."""
    row = PUBLISHED["presets"][name]
    with torch.device("meta"):
        model = preset(name, num_classes=row["classes"])
    assert sum(p.numel() for p in model.parameters()) + row["unused"] == row["parameters"]
    with pytest.raises(ValueError, match="'vivid' is unknown; one of timesformer"):
        preset("vivid")


# ==== RELEASED WEIGHTS ============================================================================
@pytest.mark.parametrize("name", WHOLE)
def test_saved_and_built_again_or_from_other_forms_of_a_file(name):
    """The same to the last bit. Without biases of q, k and v they are zeros."""
    model, state = load(name), state_of(name)
    again = va.VideoTransformer(**json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert not model.training and torch.equal(again(clip := clip_of(model)), model(clip))
    nested = {"model": {"state_dict": {f"module.{key}": x for key, x in state.items()}}, "step": 3}
    assert load(name, nested)(clip).equal(model(clip))
    without = state_of(name, r"(\.qkv|query|key|value|proj_q|proj_kv)\.bias")
    zeros = state | {key: x * 0 for key, x in state.items() if key not in without}
    assert load(name, without)(clip).equal(load(name, zeros)(clip))
    half = load(name, {key: x.half() for key, x in state.items()}).parameters()
    assert all(x.dtype == torch.float32 and x.equal(x.half().float()) for x in half)


@pytest.mark.parametrize("name", WHOLE)
def test_any_tensor_that_is_missing_unexpected_or_misshapen_is_refused(name):
    """Whichever it is, but for those that the release never reads; all in one message."""
    state = state_of(name)
    for key in state_of(name, without=r"^patch_embed\.proj|new_fc|(blocks|layer)\.1\."):
        longer = torch.cat([state[key], state[key][:1]])
        for wrong in (state_of(name, without=f"^{key}$"), state | {key: longer}):
            with pytest.raises(ValueError, match="does not fit"):
                load(name, wrong)
    wrong = state_of(name, without=r"(blocks|layer)\.1.*bias") | {"new.key": torch.zeros(3)}
    key = next(key for key in wrong if key.endswith("cls_token") or "temp_embed" in key)
    with pytest.raises(ValueError, match="missing: .*; 1 unexpected: new.key.*; 1 misshapen: "):
        load(name, wrong | {key: wrong[key].repeat_interleave(2, dim=-1)})


@pytest.mark.parametrize(
    "name, state, given, match",
    [
        (TIMESFORMER, state_of(TIMESFORMER, "time_embed"), {}, "1 missing: position.time"),
        (TIMESFORMER, state_of(TIMESFORMER, "blocks.1"), dict(depth=2), "missing: blocks.1.steps"),
        (TIMESFORMER, {"a": torch.zeros(2)}, {}, "1 missing: patches.proj.weight; 1 unexpected: a"),
        (TIMESFORMER, {"epoch": 3, "ema": {}, "a": np.zeros(3)}, {}, "dense_floats: epoch, ema, a"),
        (TIMESFORMER, {"a": torch.zeros(3, dtype=torch.int8)}, {}, "no_dense_floats: a"),
        (TIMESFORMER, {"a": torch.zeros(3, device="meta")}, {}, "no_dense_floats: a"),
        (TIMESFORMER, OF_192, {}, r"\d{3} missing"),  # twelve blocks, where published models have
        (TIMESFORMER, state_of(TIMESFORMER) | {"head.bias": torch.ones(5)}, {}, "d: head.bias"),
        (MOTION, state_of(MOTION, "pre_logits"), {}, "missing: head.classify.0.weight"),
        (MOTION, {"head0.weight": torch.zeros(3)}, {}, "two classifiers: classifier="),
        (XVIT, state_of(XVIT, "temporal_encoder"), {}, "missing: head.temporal.blocks.0"),
        (LVT, state_of(LVT, "blocks.0"), dict(heads=2, depth=2), "28 missing: blocks.0"),
        (XVIT, None, dict(head_depth=2), "missing: head.temporal.blocks.1"),
        (LVT, state_of(LVT, "k_gate"), {}, "missing: blocks.0.steps.0.gate_k"),
        (VIVIT, None, dict(image_size=224), "position.joint .1, 32, 24. for .1, 1568, 24."),
    ],
)
@pytest.mark.filterwarnings("ignore:the file has no classifier")
def test_what_would_be_another_model_is_refused(name, state, given, match):
    with pytest.raises(ValueError, match=match):
        load(name, state, **given)


def test_files(tmp_path, monkeypatch):
    path, state = tmp_path / "K400.pyth", state_of(TIMESFORMER)
    options = argparse.Namespace(rate=0.1)  # as in VideoMAE's files; it runs no code
    torch.save({"epoch": 3, "args": options, "model_state": state}, path)
    parameters = list(load(TIMESFORMER).parameters())
    assert all(map(torch.equal, parameters, load(TIMESFORMER, path).parameters()))
    trap, whole = tmp_path / "trap.pyth", path.read_bytes()
    torch.save({"model_state": test_files}, trap)  # what would run code
    for content in (trap.read_bytes(), whole[:9000], whole[:-9], b"version https://git-lfs", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cut short, no file of weights, or holds more"):
            load(TIMESFORMER, path)
    with pytest.raises(FileNotFoundError, match="no file other.pyth; README of github"):
        load(TIMESFORMER, "other.pyth")
    path = path.rename(tmp_path / "K400.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="K400.safetensors: pip install safetensors"):
        load(TIMESFORMER, path)
    package = types.SimpleNamespace(load_file={str(path): state}.get)
    monkeypatch.setitem(sys.modules, "safetensors", package)
    monkeypatch.setitem(sys.modules, "safetensors.torch", package)
    assert all(map(torch.equal, parameters, load(TIMESFORMER, path).parameters()))


@pytest.mark.parametrize("name", ["xvit_quarter_8", "lvt_quarter_8_two_gates"])
def test_segments_are_clips_of_their_own(name):
    (*_, make) = quirks.ROWS[name]
    step, x = make(24, 3), torch.randn(2, 16 * 10, 24)
    halves = [step(half, (8, 2, 5)) for half in x.chunk(2, dim=1)]
    torch.testing.assert_close(step(x, (16, 2, 5)), torch.cat(halves, dim=1))
    assert va.VideoTransformer("xvit_half", depth=1).position.per_frame


def test_the_slip():
    layer, given = (load(MOTION, slip=slip).blocks[0].steps[0].proj_kv for slip in (True, False))
    assert layer.weight[24:].equal(torch.eye(24)) and not layer.bias[24:].any()
    assert layer.weight[:24].equal(given.weight[:24])
    assert given.weight.equal(state_of(MOTION)["blocks.0.attn.proj_kv.weight"])


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("given", [{}, dict(num_classes=9)])
def test_a_fresh_classifier(name, given):
    """One warning; up to the features a file without classifier is the same."""
    bare = state_of(name, r"(^|\.)(head|classifier|pre_logits|mlp_head|new_fc)\.")
    model = load(name)
    for state, has in ((bare, "no classifier"), (state_of(name), "5 classes"))[: 1 + len(given)]:
        with pytest.warns(UserWarning, match=f"the file has {has}.*is not trained") as said:
            fresh = load(name, state, **given)
        assert len(said) == 1 and fresh(clip_of(model)).shape == (2, given.get("num_classes", 400))
        assert fresh.forward_features(clip := clip_of(model)).equal(model.forward_features(clip))


def test_what_no_tensor_tells():
    """eps, hidden_act and head_act are in the config, and a plain VideoTransformer refuses it."""
    model = load(MOTION, eps=(1e-3, 0.1), hidden_act="relu", head_act="gelu")
    norms = [model.blocks[0].norms[0], model.blocks[1].mlp_norm, model.norm]
    assert [norm.eps for norm in norms] == [1e-3, 1e-3, 0.1]
    assert isinstance(model.blocks[1].mlp.gelu, torch.nn.ReLU)
    assert isinstance(model.head.classify[1], torch.nn.GELU)
    config = json.loads(json.dumps(model.config))
    again = quirks.ReleasedTransformer(**config).eval()
    again.load_state_dict(model.state_dict())
    assert again(clip := clip_of(model)).equal(model(clip))
    with pytest.raises(TypeError, match="unexpected keyword argument 'eps'"):
        va.VideoTransformer(**config)
    with pytest.raises(TypeError, match="not JSON serializable"):  # when it is saved
        json.dumps(load(MOTION, heads=np.int64(3)).config)


def test_two_classifiers():
    state = state_of(MOTION, "^head")
    for i in (0, 1):
        state |= {f"head{i}.weight": torch.ones(7 + i, 24), f"head{i}.bias": torch.ones(7 + i)}
    for i in (0, 1):
        assert load(MOTION, state, classifier=f"head{i}").config["num_classes"] == 7 + i


def test_what_the_classes_tell_and_how_tables_are_resized():
    state, last = state_of(XVIT), "consensus.mlp_head.4."
    more = {last + "weight": torch.ones(174, 24), last + "bias": torch.ones(174)}
    with pytest.warns(UserWarning, match="num_frames"):
        model = from_released("xvit", state | more, heads=2)
    assert model.config["attention"] == "xvit_half" and model.config["num_frames"] == 16
    model = load(XVIT, num_frames=24)
    assert model.config["attention"] == "xvit_quarter_8"
    assert model.position.time.equal(state["base_model.temp_embed"][:, :, 0].repeat(1, 3, 1))
    with pytest.raises(AssertionError, match="T=12 .*segment=8"):
        model(clip_of(model)[:, :, :12])
    position, state = load(TIMESFORMER, num_frames=6, image_size=(40, 56)).position, state_of(IMAGE)
    table = state_of(TIMESFORMER)["model.pos_embed"][:, 1:]
    rows, columns = [y * 4 // 5 for y in range(5)], [x * 4 // 7 for x in range(7)]
    assert position.space[0].view(5, 7, -1).equal(table[0].view(4, 4, -1)[rows][:, columns])
    assert load(TIMESFORMER, image_size=(16, 64)).position.space.equal(table)  # 2 rows of 8
    state = state_of(TIMESFORMER) | {"model.pos_embed": torch.randn(1, 257, 24)}  # 8 rows of 32
    wide = load(TIMESFORMER, state, image_size=(64, 256)).position.space
    assert wide.equal(state["model.pos_embed"][:, 1:])


def test_videomae_and_vivit_as_it_is_in_memory():
    """Their other names on the tensors of the saved ViViT; VideoMAE's positions are in no file."""
    saved = "encoder.layer attention.attention query key value attention.output.dense"
    ours = "layers attention q_proj k_proj v_proj attention.o_proj mlp.fc1 mlp.fc2"
    words = zip(f"{saved} intermediate.dense output.dense".split(), ours.split())
    memory, clip = state_of(VIVIT), torch.randn(1, 3, 4, 32, 32)
    for before, after in words:
        memory = {key.replace(before, after): x for key, x in memory.items()}
    assert load(VIVIT, memory)(clip).equal(load(VIVIT)(clip))
    videomae = partial(from_released, "videomae", heads=3, num_frames=4, image_size=32)
    other = state_of(VIVIT, "cls_token|position_emb|key.bias")
    state = {key.replace("vivit.layernorm", "fc_norm"): x for key, x in other.items()}
    model = videomae(state)
    angles = torch.arange(32)[:, None] / 10_000 ** (torch.arange(24) // 2 * 2 / 24)
    table = torch.where(torch.arange(24) % 2 == 0, angles.sin(), angles.cos())
    torch.testing.assert_close(model.position.joint[0], table)
    assert model.head.norm.weight.equal(state["fc_norm.weight"])
    assert not model.blocks[1].steps[0].qkv.bias[24:48].any()
    with pytest.raises(ValueError, match="classifier reads the first patch"):
        videomae(other)
    bare = {f"backbone.{key}": x for key, x in other.items() if "classifier" not in key}
    with pytest.warns(UserWarning, match="no classifier"):  # before fine-tuning
        model = videomae(bare | {"decoder.norm.weight": torch.ones(9)})
    assert model.norm.weight.equal(state["fc_norm.weight"]) and not model.config["norm_after_pool"]
    with pytest.warns(UserWarning, match="no classifier"):  # without a last norm
        model = videomae({key: x for key, x in bare.items() if "layernorm." not in key})
    assert model.head.norm.weight.eq(1).all() and not model.head.norm.bias.any()


# ==== IMAGE WEIGHTS ===============================================================================
def video_model(attention="divided", **options):
    sizes = dict(dim=24, depth=2, heads=3, image_size=32, patch_size=8, num_frames=6, num_classes=3)
    return va.VideoTransformer(attention, **sizes | dict(position="separate") | options).eval()


@pytest.mark.parametrize("attention", ["divided", "space", "window", "factorised"])
@pytest.mark.parametrize("row", [True, False])
def test_on_a_clip_that_stands_still_it_is_the_image_model(attention, row):
    """Also without a row for the class token in the table of positions."""
    state, still = state_of(IMAGE), torch.randn(2, 3, 1, 32, 32)
    table = state["model.pos_embed"]
    state["model.pos_embed"] = table if row else table[:, 1:]
    model, image = video_model(attention), video_model("joint", num_frames=1)
    for made in (model, image if attention != "factorised" else video_model("joint")):
        load_image_weights(made, state)
    for block, ours in zip(model.blocks, image.blocks):
        assert all(step.qkv.weight.equal(block.steps[0].qkv.weight) for step in block.steps)
    assert model.position.space.equal(table[:, 1:])
    if attention == "factorised":  # without a class token; its time attention starts at zero
        assert not model.blocks[0].steps[1].proj.weight.any()
    else:
        assert row or not model.position.for_class.any()
        expected = image.forward_features(still)
        found = model.forward_features(still.expand(-1, -1, 6, -1, -1))
        torch.testing.assert_close(found[:, -16:], expected[:, -16:])
        torch.testing.assert_close(found[:, :1], expected[:, :1])


def test_tubelets_tables_and_norms():
    state = state_of(IMAGE)
    table = state["model.pos_embed"][:, 1:]
    model = video_model("joint", patch_size=(3, 8, 8), position="joint", image_size=(40, 56))
    kernel = load_image_weights(model, state).patches.proj.weight
    assert kernel[:, :, 1].equal(state["model.patch_embed.proj.weight"])
    assert not kernel[:, :, [0, 2]].any()
    assert model.position.joint.equal(va.resize_positions(table, (4, 4), (5, 7)).repeat(1, 2, 1))
    wide = load_image_weights(video_model(image_size=(16, 64)), state)  # 2 rows of 8 are 16, too
    assert wide.position.space.equal(table)
    state = {key.replace("model.norm", "fc_norm"): x for key, x in state.items()}
    model = load_image_weights(video_model("space", norm_after_pool=True), state)
    assert model.head.norm.weight.equal(state["fc_norm.weight"])


@pytest.mark.parametrize(
    "new, options, match",
    [
        ({"blocks.0.ls1.gamma": (24,)}, {}, "1 unexpected: blocks.0.ls1.gamma"),
        ({"reg_token": (1, 4, 24)}, {}, "1 unexpected: reg_token"),
        ({"model.pos_embed": (1, 24, 24)}, {}, "position.space .1, 23, 24. for .1, 16, 24."),
        ({}, dict(position="none"), "separate.*unexpected: .*position.space"),
        ({}, dict(position="rotary"), "separate.*unexpected: .*position.space"),
        ({}, dict(depth=3), "missing: blocks.2"),
        ({}, dict(depth=1), "unexpected: blocks.1.mlp.fc1"),
        ({"time_embed": (1, 4, 24)}, dict(patch_size=16), "unexpected: time_emb.*misshapen: patch"),
        *[({key: None}, {}, "[12] missing") for key in state_of(IMAGE, without="head")],
    ],
)
def test_image_weights_that_do_not_fit_are_refused_and_nothing_overwritten(new, options, match):
    """Other shapes, or none at all."""
    model, state = video_model(**options), state_of(IMAGE, "^(" + "|".join(new) + ")$")
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        load_image_weights(model, state | {key: torch.zeros(x) for key, x in new.items() if x})
    assert all(x.equal(before[key]) for key, x in model.state_dict().items())
