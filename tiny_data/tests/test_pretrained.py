"""Published sizes, released weights and image weights: what is loaded, and what is refused. Their
numbers are compared by the golden cases."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import video_attention as va
from tiny_data.pretrained import PRESETS, from_released, load_image_weights, preset, quirks
from tiny_data.pretrained.golden import Case
from tiny_data.pretrained.presets import PUBLISHED

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
def test_saved_and_built_again_it_is_the_same_to_the_last_bit(name):
    model = load(name)
    again = va.VideoTransformer(**json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert not model.training and torch.equal(again(clip := clip_of(model)), model(clip))


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
        (TIMESFORMER, {"a": torch.zeros(2)}, {}, "unreadable: 'patches.*1 unexpected: a"),
        (TIMESFORMER, {"epoch": 3, "ema": {}, "a": np.zeros(3)}, {}, "dense_floats: epoch, ema, a"),
        (TIMESFORMER, OF_192, {}, r"\d{3} missing"),  # twelve blocks, where published models have
        (TIMESFORMER, {"a": torch.zeros(3, device="meta")}, {}, "no_dense_floats: a"),
        (TIMESFORMER, state_of(TIMESFORMER) | {"head.bias": torch.ones(5)}, {}, "d: head.bias"),
        (MOTION, state_of(MOTION, "pre_logits"), {}, "missing: head.classify.0.weight"),
        (MOTION, {"head0.weight": torch.zeros(3)}, {}, "two classifiers: classifier="),
        (XVIT, state_of(XVIT, "temporal_encoder"), {}, "missing: head.temporal.blocks.0"),
        (XVIT, state_of(XVIT, "consensus"), {}, "16 missing: head"),
        (XVIT, None, dict(head_depth=2), "missing: head.temporal.blocks.1"),
        (LVT, state_of(LVT, "k_gate"), {}, "missing: blocks.0.steps.0.gate_k"),
        (VIVIT, None, dict(image_size=224), "position.joint .1, 32, 24. for .1, 1568, 24."),
    ],
)
@pytest.mark.filterwarnings("ignore:the file has no classifier")
def test_what_would_be_another_model_is_refused(name, state, given, match):
    with pytest.raises(ValueError, match=match):
        load(name, state, **given)


def test_files(tmp_path):
    path, model = tmp_path / "K400.pyth", load(TIMESFORMER)
    torch.save({"epoch": 3, "model_state": state_of(TIMESFORMER)}, path)
    assert all(map(torch.equal, model.parameters(), load(TIMESFORMER, path).parameters()))
    trap, whole = tmp_path / "trap.pyth", path.read_bytes()
    torch.save({"model_state": test_files}, trap)  # what would run code
    for content in (trap.read_bytes(), whole[:9000], whole[:-9], b"version https://git-lfs", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cut short, no file of weights, or holds more"):
            load(TIMESFORMER, path)


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


def test_a_fresh_last_layer_another_classifier_and_nan():
    bare = {key.removeprefix("vivit."): x for key, x in state_of(VIVIT, "classifier").items()}
    for state, given, match in ((None, dict(num_classes=9), "5 classes"), (bare, {}, "no class")):
        with pytest.warns(UserWarning, match=f"the file has {match}.*not trained") as said:
            model = load(VIVIT, state, **given)
        assert len(said) == 1 and model(clip_of(model)).shape == (2, given.get("num_classes", 400))
    heads = state_of(MOTION, "^head")
    heads |= {"head0.weight": torch.ones(7, 24), "head0.bias": torch.ones(7)}
    heads |= {"head1.weight": torch.ones(9, 24), "head1.bias": torch.ones(9)}
    assert load(MOTION, heads, classifier="head1").config["num_classes"] == 9
    with pytest.warns(UserWarning, match="NaN or infinity in cls_token"):
        load(MOTION, state_of(MOTION) | {"cls_token": torch.full((1, 1, 24), torch.nan)})


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


def test_videomae_and_vivit_as_it_is_in_memory():
    """Their other names on the tensors of the saved ViViT; VideoMAE's positions are in no file."""
    words = [("encoder.layer", "layers"), ("attention.attention", "attention"), ("query", "q_proj")]
    words += [
        ("key", "k_proj"),
        ("value", "v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ]
    words += [("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2")]
    memory, clip = state_of(VIVIT), torch.randn(1, 3, 4, 32, 32)
    for saved, ours in words:
        memory = {key.replace(saved, ours): x for key, x in memory.items()}
    assert load(VIVIT, memory)(clip).equal(load(VIVIT)(clip))
    state = state_of(VIVIT, "cls_token|position_emb|key.bias")
    state = {key.replace("vivit.layernorm", "fc_norm"): x for key, x in state.items()}
    model = from_released("videomae", state, heads=3, num_frames=4, image_size=32)
    angles = torch.arange(32)[:, None] / 10_000 ** (torch.arange(24) // 2 * 2 / 24)
    table = torch.where(torch.arange(24) % 2 == 0, angles.sin(), angles.cos())
    torch.testing.assert_close(model.position.joint[0], table)
    assert model.head.norm.weight.equal(state["fc_norm.weight"])
    assert not model.blocks[1].steps[0].qkv.bias[24:48].any()


# ==== IMAGE WEIGHTS ===============================================================================
def video_model(attention="divided", **options):
    sizes = dict(dim=24, depth=2, heads=3, image_size=32, patch_size=8, num_frames=6, num_classes=3)
    return va.VideoTransformer(attention, **sizes | options).eval()


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
        ({}, dict(position="none"), "unexpected: .*position.space"),
        ({}, dict(depth=3), "missing: blocks.2"),
        ({}, dict(depth=1), "unexpected: blocks.1.mlp.fc1"),
        ({"time_embed": (1, 4, 24)}, dict(patch_size=16), "unexpected: time_emb.*misshapen: patch"),
    ],
)
def test_image_weights_that_do_not_fit_are_refused_and_nothing_overwritten(new, options, match):
    model, state = video_model(**options), state_of(IMAGE)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        load_image_weights(model, state | {key: torch.zeros(shape) for key, shape in new.items()})
    assert all(x.equal(before[key]) for key, x in model.state_dict().items())


def test_any_missing_tensor_of_an_image_model_is_refused():
    for key in state_of(IMAGE, without="head"):
        with pytest.raises(ValueError, match="[12] missing"):
            load_image_weights(video_model(), state_of(IMAGE, without=f"^{key}$"))
