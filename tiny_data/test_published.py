"""Released weights, image weights and own clips: what is loaded, and what is refused."""

import importlib
import json
import math
import os
import pickle
import re
import sys
import warnings
import zipfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

import video_attention as va

from tiny_data import clips as own_clips
from tiny_data import published
from tiny_data.golden_cases import Golden
from tiny_data.testing import same

HERE = Path(__file__).resolve().parent.parent

TINY_DATA = HERE / "tiny_data"
torch.set_num_threads(1)

def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2

# ==== RELEASED WEIGHTS ============================================================================

FAMILY_OF = {
    "timesformer": "timesformer",
    "hf_timesformer": "timesformer",
    "motionformer": "motionformer",
    "xvit": "xvit",
    "lvt_model": "lvt",
    "hf_vivit": "vivit"}

def released(name):
    """The weights of a golden case, as tensors of their own."""
    path = TINY_DATA / "golden" / f"{name}.npz"
    if not path.exists():
        pytest.skip("tiny_data is not here")
    arrays = np.load(path)
    return {
        key[6:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("state/")}

def loaded(name, state=None, **told):
    """from_released for a golden case, told only what its config says that no tensor does."""
    family = next(family for start, family in FAMILY_OF.items() if name.startswith(start))
    config = Golden(TINY_DATA / "golden" / f"{name}.npz").config
    heads = config.get("num_heads") or config["hf_config"]["num_attention_heads"]
    known = dict(heads=heads) | (dict(image_size=32) if family == "vivit" else {})
    known |= dict(num_frames=16) if family in ("xvit", "lvt") else {}
    known |= dict(patch_stride=config["stride"], image_size=14) if family == "lvt" else {}
    return published.from_released(
        family, released(name) if state is None else state, **known | told)

WHOLE = [
    "timesformer_divided",
    "timesformer_space",
    "hf_timesformer_divided",
    "hf_vivit",
    "motionformer_trajectory_orig",
    "xvit_vit_16f_seg8",
    "lvt_model_16f_seg8"]

def clip_of(model, batch=2):
    frames, height, width = model.config["num_frames"], *va.as_sizes(model.config["image_size"])[1:]
    return torch.randn(batch, 3, frames, height, width)

def as_timesformer(model):
    """The weights of a joint or divided model under the keys of a released TimeSformer."""
    last = len(model.blocks[0].steps) - 1
    words = [
        (f"steps.{last}.", "attn."),
        (f"norms.{last}.", "norm1."),
        ("mlp_norm", "norm2"),
        ("steps.0.extra", "temporal_fc"),
        ("steps.0.", "temporal_attn."),
        ("norms.0.", "temporal_norm1."),
        ("class_token", "cls_token"),
        ("position.time", "time_embed"),
        ("patches.", "patch_embed."),
        ("head.classify.0.", "head.")]
    state = {}
    for key, x in model.state_dict().items():
        for own, theirs in words:
            key = key.replace(own, theirs)
        state[key] = x
    table = [state.pop("position.for_class"), state.pop("position.space")]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    return state | {"pos_embed": torch.cat(table, dim=1)}

NESTINGS = ["model_state", "state_dict", "model", "model/state_dict", "state_dict/model"]

class TestReleased:
    """from_released beyond the numbers: what it reads, infers and refuses."""

    def test_infers_the_sizes(self):
        model = loaded("timesformer_divided")
        assert not model.training
        assert [type(step) for step in model.blocks[0].steps] == [
            va.TimeAttention,
            va.SpaceAttention]
        assert (len(model.blocks), model.position.grid, model.patches.patch_size) == (
            2,
            (4, 4, 4),
            (1, 8, 8))
        assert model(torch.randn(1, 3, 4, 32, 32)).shape == (1, 5)

    @pytest.mark.parametrize("name", WHOLE)
    def test_saved_and_built_again_it_is_the_same_to_the_last_bit(self, name, tmp_path):
        model = loaded(name)
        torch.save(dict(config=model.config, weights=model.state_dict()), tmp_path / "saved.pt")
        saved = torch.load(tmp_path / "saved.pt", weights_only=True)
        again = va.VideoTransformer(**saved["config"]).eval()
        again.load_state_dict(saved["weights"])
        video = clip_of(model)
        assert torch.equal(again(video), model(video))
        assert again.config == model.config

    def test_what_no_tensor_tells_is_the_usual_of_the_release(self):
        """The share of mixed channels and its segments by the number of classes, LVT's overlap of
        patches."""
        state = released("xvit_vit_16f_seg8")
        step = loaded("xvit_vit_16f_seg8").blocks[0].steps[0]
        assert type(step) is published.ReleasedMixingAttention and (step.moved, step.segment) == (
            0.25,
            8)
        for key in ("consensus.mlp_head.4.weight", "consensus.mlp_head.4.bias"):
            state[key] = torch.randn(174, *state[key].shape[1:])
        step = loaded("xvit_vit_16f_seg8", state).blocks[0].steps[0]
        assert (step.moved, step.segment) == (0.5, None)
        lvt = loaded("lvt_model_16f_seg8", patch_stride=None or 7)
        assert lvt.patches.proj.stride == (1, 7, 7)  # 7/8 of a patch of 8, as 14 of 16
        assert [step.moved for step in lvt.blocks[0].steps] == [0.5, 0.25]
        assert lvt.blocks[0].steps[1].segment == 8

    def test_lvts_stride_is_seven_eighths_of_a_patch(self):
        with pytest.warns(UserWarning, match="num_frames"):
            model = published.from_released("lvt", released("lvt_model_16f_seg8"))
        assert model.patches.proj.stride == (1, 7, 7) and model.blocks[0].steps[0].heads == 2

    def test_segments_must_divide_the_clip(self):
        for name in ("xvit_vit_16f_seg8", "lvt_model_16f_seg8"):
            model = loaded(name)
            with pytest.raises(ValueError, match="T=12 .*segment=8: call with a multiple of 8"):
                model(clip_of(model)[:, :, :12])
        step = published.ReleasedMixingAttention(24, 3)
        with pytest.raises(ValueError, match="1 class tokens on .4, 2, 3.: .*one per frame"):
            step(torch.randn(1, 25, 24), (4, 2, 3))
        step = published.ReleasedLinearAttention(24, 3, axis="space")
        with pytest.raises(ValueError, match="no class token"):
            step(torch.randn(1, 28, 24), (4, 2, 3))

    @pytest.mark.parametrize("kind", ["Mixing", "Linear"])
    def test_segments_are_clips_of_their_own(self, kind):
        options = dict(axis="space", neighbours=True) if kind == "Linear" else {}
        make = getattr(published, f"Released{kind}Attention")
        step = make(24, 3, moved=0.5, segment=3, **options).double()
        x = torch.randn(2, 6 * 10, 24, dtype=torch.float64)
        halves = [step(half, (3, 2, 5)) for half in x.chunk(2, dim=1)]
        same(step(x, (6, 2, 5)), torch.cat(halves, dim=1))

    def test_a_table_of_8_frames_starts_over(self):
        table = released("xvit_vit_16f_seg8")["base_model.temp_embed"].flatten(1, 2)
        time = loaded("xvit_vit_16f_seg8", num_frames=20).position.time
        same(time, table[:, [t % 8 for t in range(20)]], 0)
        with pytest.warns(UserWarning, match="no num_frames given.*16"):
            model = published.from_released("xvit", released("xvit_vit_16f_seg8"), heads=2)
        same(model.position.time, torch.cat([table, table], dim=1), 0)

    def test_timesformers_tables_are_resized_to_the_nearest_entry(self):
        state = released("timesformer_divided")
        model = loaded("timesformer_divided", num_frames=6, image_size=(40, 56))
        places, times = state["model.pos_embed"][0, 1:].view(4, 4, -1), state["model.time_embed"][0]
        rows, columns = [y * 4 // 5 for y in range(5)], [x * 4 // 7 for x in range(7)]
        same(model.position.space[0].view(5, 7, -1), places[rows][:, columns], 0)
        same(model.position.time[0], times[[t * 4 // 6 for t in range(6)]], 0)

    def test_a_table_that_fits_another_form_is_kept_in_its_order(self):
        """16 positions are 2 rows of 8, too: TimeSformer's code then adds them as they come."""
        model = loaded("timesformer_divided", image_size=(16, 64))
        same(model.position.space, released("timesformer_divided")["model.pos_embed"][:, 1:], 0)
        assert model.position.grid == (4, 2, 8)

    def test_blocks_that_do_not_mix(self):
        step = partial(published.ReleasedMixingAttention, moved=0.5)
        model = loaded("xvit_vit_16f_seg8", attention=lambda i: [step] if i == 1 else "space")
        kinds = [type(block.steps[0]) for block in model.blocks]
        assert kinds == [va.SpaceAttention, published.ReleasedMixingAttention]
        again = va.VideoTransformer(**model.config)
        assert [type(block.steps[0]) for block in again.blocks] == kinds

    def test_an_xvit_with_two_temporal_layers(self):
        state = released("xvit_vit_16f_seg8")
        layer = {key: x for key, x in state.items() if "temporal_encoder.0" in key}
        state |= {
            key.replace("encoder.0", "encoder.1"): torch.randn_like(x) for key, x in layer.items()}
        model = loaded("xvit_vit_16f_seg8", state)
        assert len(model.head.temporal.blocks) == 2
        x = torch.randn(3, 7, 16)
        y = torch.cat([model.head.temporal.class_token.expand(3, 1, 16), x], dim=1)
        for block in model.head.temporal.blocks:
            y = block(y, (7, 1, 1))
        same(model.head.temporal(x), y[:, 0], 0)
        weight = model.head.temporal.blocks[1].steps[0].qkv.weight
        same(weight, state["consensus.temporal_encoder.1.attn.qkv.weight"], 0)

    def test_the_slip_and_a_checkpoint_without_it(self):
        """With the slip the values are the trajectory tokens: W_v is the identity. Without it W_v
        is read."""
        state, D = released("motionformer_trajectory_orig"), 24
        layer = loaded("motionformer_trajectory_orig").blocks[0].steps[0].proj_kv
        same(layer.weight[D:], torch.eye(D), 0)
        same(layer.bias[D:], torch.zeros(D), 0)
        same(layer.weight[:D], state["blocks.0.attn.proj_kv.weight"][:D], 0)
        layer = loaded("motionformer_trajectory_orig", slip=False).blocks[0].steps[0].proj_kv
        same(layer.weight, state["blocks.0.attn.proj_kv.weight"], 0)
        given = {"proj_kv.weight": torch.randn(2 * D, D)}
        before = given["proj_kv.weight"].clone()
        assert published.values_as_released(given)["proj_kv.weight"][D:].equal(torch.eye(D))
        same(given["proj_kv.weight"], before, 0)

    @pytest.mark.parametrize(
        "name", ["timesformer_divided", "motionformer_trajectory_orig", "xvit_vit_16f_seg8"])
    def test_another_number_of_classes_gives_a_fresh_head_and_says_so(self, name):
        with pytest.warns(UserWarning, match="5 classes.*10.*not trained"):
            model = loaded(name, num_classes=10)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            same_head = loaded(name, num_classes=5)
        assert model(clip_of(model)).shape == (2, 10)
        own, theirs = model.state_dict(), same_head.state_dict()
        differ = [
            key
            for key in own
            if own[key].shape != theirs[key].shape or not own[key].equal(theirs[key])]
        assert len(differ) == 2 and all(key.startswith("head.classify.") for key in differ)

    @pytest.mark.parametrize("nesting", [*NESTINGS, "prefix", "file"])
    def test_unwraps(self, nesting, tmp_path):
        state, expected = (
            released("timesformer_divided"),
            loaded("timesformer_divided").state_dict())
        if nesting == "prefix":
            state = {f"module.{key}": value for key, value in state.items()}
        elif nesting == "file":
            torch.save({"epoch": 3, "model_state": state}, tmp_path / "released.pyth")
            state = tmp_path / "released.pyth"
        else:
            for key in reversed(nesting.split("/")):
                state = {key: state, "epoch": 3}
        actual = loaded("timesformer_divided", state).state_dict()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)

    def test_what_a_release_never_uses(self):
        for name, family, layer in (
            ("motionformer_trajectory_orig", "motionformer", "patch_embed.proj"),
            ("xvit_vit_16f_seg8", "xvit", "new_fc"),
            ("lvt_model_16f_seg8", "lvt", "new_fc")):
            state = released(name)
            renames = published.renames_of(family, state)
            none = [key for key in state if not published.renamed_key(key, renames)]
            assert none == [f"{layer}.weight", f"{layer}.bias"]

class TestRefused:
    """What from_released does not take: a ValueError that says why, in at most 2,000 characters."""

    def refused(self, match, name="timesformer_divided", state=None, **told):
        with pytest.raises(ValueError, match=match) as error:
            loaded(name, state, **told)
        assert len(str(error.value)) <= 2000 and "weights_only" not in str(error.value)

    def test_all_that_is_wrong_is_listed(self):
        state = released("timesformer_divided")
        del state["model.norm.bias"]
        state["model.blocks.0.attn.proj.weight"] = state["model.blocks.0.attn.proj.weight"][:12]
        self.refused(
            r"does not fit.*norm.bias is missing.*proj.weight has shape \(12, 24\).*\(24, 24\)",
            state=state)

    def test_an_unknown_key(self):
        state = released("timesformer_divided") | {"model.extra.weight": torch.zeros(3)}
        self.refused("unexpected: model.extra.weight", state=state)

    @pytest.mark.parametrize("name", WHOLE)
    def test_any_missing_tensor(self, name):
        """Whichever it is, but for the keys that the release never uses."""
        state = released(name)
        renames = published.renames_of(
            next(f for s, f in FAMILY_OF.items() if name.startswith(s)), state)
        for key in state:  # block 1 has the keys of block 0
            if published.renamed_key(key, renames) and not re.search(r"(blocks|layer)\.1\.", key):
                with pytest.raises(ValueError):
                    loaded(name, {other: x for other, x in state.items() if other != key})

    @pytest.mark.parametrize("kept", [0, 8, 20, 48])
    def test_the_first_keys_of_a_file(self, kept):
        self.refused(
            "missing|same keys", state=dict(list(released("timesformer_divided").items())[:kept]))

    def test_a_divided_timesformer_without_its_time_table(self):
        state = released("timesformer_divided")
        del state["model.time_embed"]
        self.refused("time_embed.*missing", state=state)

    @pytest.mark.parametrize("layer", ["weight", "bias"])
    def test_values_of_another_shape(self, layer):
        """They are not read, but what stands in their place must not hide them."""
        state, key = released("motionformer_trajectory_orig"), f"blocks.0.attn.proj_kv.{layer}"
        state[key] = torch.cat([state[key], state[key][:1]])
        self.refused(f"proj_kv.{layer} has shape", "motionformer_trajectory_orig", state)

    @pytest.mark.parametrize(
        "name, cut, match",
        [
            ("motionformer_trajectory_orig", "head.", "'pre_logits.' but none with 'head.'"),
            ("xvit_vit_16f_seg8", "mlp_head.", "'consensus.' but none with 'consensus.mlp_head.'"),
            ("xvit_vit_16f_seg8", "temporal_encoder.", "none with 'consensus.temporal_encoder.'"),
            ("xvit_vit_16f_seg8", "cls_token|temporal_encoder", "none with 'consensus.cls_token'"),
            ("lvt_model_16f_seg8", "k_gate.", "'.q_gate.' but none with '.k_gate.'")])
    @pytest.mark.parametrize("told", [{}, dict(num_classes=7)], ids=["", "num_classes"])
    def test_a_cut_that_leaves_another_model(self, name, cut, match, told):
        """Its keys tell: a hidden layer of the head without the last, a class token without its
        layers, half of the gates. A missing head is an error with another num_classes, too."""
        state = {key: x for key, x in released(name).items() if not re.search(cut, key)}
        self.refused(f"cut short, .*{match}", name, state, **told)

    @pytest.mark.parametrize("name", ["xvit_vit_16f_seg8", "lvt_model_16f_seg8"])
    def test_without_all_of_the_consensus_only_head_mlp_tells(self, name):
        state = {key: x for key, x in released(name).items() if "consensus." not in key}
        same(loaded(name, state).head.classify[0].weight, state["new_fc.weight"], 0)
        self.refused("head.classify.4.weight is missing", name, state, head_mlp="gelu")

    def test_a_gap_in_the_blocks(self):
        state = released("timesformer_divided")
        state = {key.replace("blocks.1.", "blocks.2."): x for key, x in state.items()}
        self.refused("block blocks.2 but no blocks.1", state=state)

    def test_blocks_with_other_keys(self):
        state = {
            k: x for k, x in released("timesformer_divided").items() if "blocks.1.temporal" not in k
        }
        self.refused("blocks.1 and blocks.0 do not have the same keys", state=state)

    def test_a_cut_model_where_the_width_tells_its_depth(self):
        """ViT-B, 768 wide, has 12 blocks: 2 are an error unless the caller says so."""
        sizes = dict(dim=192, depth=2, heads=3, image_size=16, patch_size=8, num_frames=2)
        model = va.VideoTransformer("joint", **sizes)
        state = as_timesformer(model)
        with pytest.raises(
            ValueError, match="2 blocks of width 192, where published models have 12"):
            published.from_released("timesformer", state)
        again = published.from_released("timesformer", state, depth=2).state_dict()
        assert all(torch.equal(again[key], x) for key, x in model.state_dict().items())
        with pytest.raises(ValueError, match="2 blocks"):
            published.from_released("timesformer", state, depth=3)

    def test_two_keys_that_become_one_name(self):
        state = released("timesformer_divided")
        hf = released("hf_vivit")
        key = next(key for key in hf if key.endswith("query.weight"))
        hf[key.replace("query", "qkv")] = torch.zeros(72, 24)
        self.refused("query.weight and .*qkv.weight are the same layer", "hf_vivit", hf)
        state["head.bias"] = state["model.head.bias"] + 1
        self.refused("model.head.bias and head.bias both become head.classify.0.bias", state=state)

    def test_a_file_in_our_own_names(self):
        """Its values are not to be replaced a second time."""
        self.refused(
            "unexpected",
            "motionformer_trajectory_orig",
            loaded("motionformer_trajectory_orig").state_dict())

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_tensors_that_are_no_floats(self, dtype):
        state = released("timesformer_divided")
        state["model.norm.bias"] = state["model.norm.bias"].to(dtype)
        self.refused(f"floating-point.*norm.bias {dtype}", state=state)

    def test_a_width_that_does_not_tell_the_heads(self):
        with pytest.raises(ValueError, match="24 is no multiple of 64.*heads="):
            published.from_released("timesformer", released("timesformer_divided"))

    def test_a_joint_table_that_does_not_fit_names_image_size(self):
        """At 112 pixels a table of 784 positions is that of 16 tubelets, and as long as one of 4 at
        224."""
        self.refused("32 positions.*2 frames of 224 x 224.*image_size", "hf_vivit", image_size=224)
        state = released("hf_vivit")
        state["vivit.embeddings.position_embeddings"] = torch.zeros(1, 785, 24)
        with pytest.raises(ValueError, match="784 positions.*image_size"):
            published.from_released("vivit", state, heads=3)

    def test_a_table_that_is_not_square_names_image_size(self):
        state = released("timesformer_divided")
        state["model.pos_embed"] = torch.zeros(1, 1 + 24, 24)
        self.refused("24 positions is not square.*image_size", state=state)
        self.refused("24 positions is not square.*it is for", state=state, image_size=(40, 56))
        assert loaded("timesformer_divided", state, image_size=(32, 48)).position.grid == (4, 4, 6)

    @pytest.mark.parametrize("family", ["motionformer", "xvit", "lvt", "vivit"])
    def test_another_family(self, family):
        with pytest.raises(ValueError, match=f"not a released {family}"):
            published.from_released(family, released("timesformer_divided"), heads=3)

    def test_image_size_none_and_names_that_are_no_text(self):
        with pytest.raises(ValueError, match="image_size=None: .*leave it out"):
            published.from_released("timesformer", {}, image_size=None)
        with pytest.raises(ValueError, match="image_size=None: .*leave it out"):
            published.preset("timesformer", image_size=None)
        with pytest.raises(ValueError, match=r"preset \[\] is unknown"):
            published.preset([])

    @pytest.mark.parametrize("keys", ["norm.bias", ""], ids=["one", "all"])
    def test_the_device_meta_holds_no_numbers(self, keys):
        state = released("timesformer_divided")
        state = {key: x.to("meta") if keys in key else x for key, x in state.items()}
        self.refused("not on the device meta.*norm[12]?.bias torch.float32 .24,. meta", state=state)

    def test_a_model_on_the_device_meta(self):
        with pytest.raises(ValueError, match="the model is on the device meta"):
            published.load_image_weights(video_model("divided").to("meta"), image_state())
        with torch.device("meta"), pytest.raises(ValueError, match="model is on the device meta"):
            loaded("timesformer_divided")

    def test_nothing_of_the_kind(self):
        for state in ({}, {"weights": 3}, {"a.weight": torch.zeros(2)}):
            with pytest.raises(ValueError, match="not a released timesformer"):
                published.from_released("timesformer", state)
        for source in (None, [1], nn.Linear(2, 2)):
            with pytest.raises(ValueError, match="a path or a dictionary"):
                published.from_released("timesformer", source)

    @pytest.mark.parametrize("kept", ["", "norm.weight", "a.key"])
    def test_numpy_arrays_are_named(self, kept):
        """All weights, one of them, or one that the model does not have."""
        state = released("timesformer_divided") | {"model.a.key": torch.zeros(3)}
        state |= {key: x.numpy() for key, x in state.items() if kept in key}
        self.refused("NumPy arrays: .*torch.from_numpy.* of .*model.*" + kept, state=state)
        image = image_state() | {"a.key": torch.zeros(3)}
        image |= {key: x.numpy() for key, x in image.items() if kept in key}
        with pytest.raises(ValueError, match="torch.from_numpy"):
            published.load_image_weights(video_model("divided"), image)

    def test_an_unknown_nesting_names_the_keys(self):
        state = released("timesformer_divided")
        for key in ("state_dict_ema", "model_ema", "weights", "module"):
            match = f"no tensor is among the keys epoch, {key}: .*alone, what is under '{key}'$"
            self.refused(match, state={"epoch": 3, key: state})
            with pytest.raises(ValueError, match=match):
                published.load_image_weights(video_model("divided"), {"epoch": 3, key: state})
        self.refused("under 'a' or 'b'", state={"a": state, "b": state})

    def test_unknown_family_is_named(self):
        with pytest.raises(ValueError, match="'timesfomer'.*timesformer"):
            published.from_released("timesfomer", {})

    def test_nan_and_infinity_are_one_warning(self):
        state = released("timesformer_divided")
        state["model.head.bias"][1] = torch.nan
        state["model.norm.bias"][2] = torch.inf
        with pytest.warns(
            UserWarning, match="NaN or infinity in .*norm.bias.*head.classify.0.bias") as said:
            loaded("timesformer_divided", state)
        assert len(said) == 1

class TestHostileFiles:
    """Files that are something else, or that claim to be more than they are."""

    def refused(self, path, match):
        with pytest.raises(ValueError, match=match) as error:
            published.from_released("timesformer", path, heads=3)
        text = str(error.value)
        shown = error.value.__cause__ or (
            error.value.__context__ and not error.value.__suppress_context__)
        assert len(text) <= 2000 and "weights_only" not in text and not shown

    @pytest.mark.parametrize(
        "content, match",
        [
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                "pointer.*git lfs pull"),
            (b"\n <!DOCTYPE html><html></html>", "web page"),
            (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\n", "pointer.*git lfs pull"),
            (b"\xef\xbb\xbf\n<html></html>", "web page"),
            (b'{"error": "not found"}', "JSON"),
            (b"\x1f\x8b\x08\x00", "gzip"),
            (b"\x93NUMPY\x01\x00", "NumPy"),
            (b"\x20\x00\x00\x00\x00\x00\x00\x00" + b'{"a":{}}', "safetensors.torch.load_file"),
            (b"", "cut short or damaged"),
            (b"\x00\x01\x02 nothing", "cut short or damaged")])
    def test_what_is_no_file_of_weights(self, content, match, tmp_path):
        (tmp_path / "weights.pyth").write_bytes(content)
        self.refused(tmp_path / "weights.pyth", match)

    def test_a_pipe_and_a_folder(self, tmp_path, monkeypatch):
        """Nobody writes into the pipe: opening it would wait for ever."""
        monkeypatch.setattr("builtins.open", None)  # a mistake is red, and does not hang
        os.mkfifo(tmp_path / "pipe")
        self.refused(tmp_path / "pipe", "pipe is no regular file")
        self.refused(tmp_path, "is no regular file")

    def test_torchs_warnings_do_not_reach_the_user(self, tmp_path):
        (tmp_path / "other.pyth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.refused(tmp_path / "other.pyth", r"UnpicklingError\): it is cut short or damaged")

    def test_npz(self, tmp_path):
        np.savez(tmp_path / "weights.npz", weight=np.zeros(3))
        self.refused(tmp_path / "weights.npz", "npz.*from_numpy")

    @pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
    def test_truncated(self, new, tmp_path):
        state = released("timesformer_divided")
        torch.save(state, tmp_path / "whole.pyth", _use_new_zipfile_serialization=new)
        whole = (tmp_path / "whole.pyth").read_bytes()
        for part in (0.2, 0.9, 0.999):
            (tmp_path / "cut.pyth").write_bytes(whole[: int(part * len(whole))])
            self.refused(str(tmp_path / "cut.pyth"), "cut short or damaged")

    def test_code(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "sprung"),)

        torch.save({"model_state": Trap()}, tmp_path / "trap.pyth")
        self.refused(tmp_path / "trap.pyth", "more than tensors")
        assert not (tmp_path / "sprung").exists()

    def test_compressed(self, tmp_path):
        torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pyth")
        with zipfile.ZipFile(tmp_path / "plain.pyth") as plain:
            with zipfile.ZipFile(tmp_path / "small.pyth", "w", zipfile.ZIP_DEFLATED) as small:
                for entry in plain.infolist():
                    small.writestr(entry.filename, plain.read(entry))
        assert (tmp_path / "small.pyth").stat().st_size < 10_000
        self.refused(tmp_path / "small.pyth", "compressed, .* bytes for 4.....")

    @pytest.mark.parametrize("in_a_file", [True, False])
    def test_expanded(self, in_a_file, tmp_path):
        state = released("timesformer_divided")
        state["model.head.weight"] = torch.zeros(1).expand(10_000_000, 24)
        if in_a_file:
            torch.save(state, tmp_path / "wide.pyth")
            state = tmp_path / "wide.pyth"
        self.refused(state, "expanded or shared")

    def test_one_tensor_for_many_blocks(self):
        """3,000 blocks that share the numbers of one."""
        state = released("timesformer_divided")
        block = {key: x for key, x in state.items() if ".blocks.1." in key}
        for i in range(2, 3000):
            state |= {key.replace(".1.", f".{i}.", 1): x for key, x in block.items()}
        self.refused(state, "expanded or shared")

    def test_nothing_is_built_before_its_size_is_checked(self, monkeypatch):
        def built(*args, **options):
            pytest.fail("a model was built")

        monkeypatch.setattr(va, "VideoTransformer", built)
        state = released("timesformer_divided")
        self.refused(
            state | {"model.blocks.3000.norm1.weight": torch.zeros(24)}, "blocks.3000 but no")
        wide = {"model.patch_embed.proj.weight": torch.zeros(100_000, 3, 1, 1)}
        self.refused(state | wide, "2 blocks of width 100000 take")
        many = {f"model.blocks.{i}.mlp.fc1.weight": torch.zeros(1, 24) for i in range(2, 3000)}
        self.refused(state | many, "do not have the same keys")
        self.refused(state | {"model.head.weight": torch.zeros(0, 24)}, "not empty")

    @pytest.mark.parametrize(
        "name, sizes, match",
        [
            (
                "xvit_vit_16f_seg8",
                {f"consensus.mlp_head.{i}.weight": (3000, 1) for i in (1, 4)},
                r"classify.1.weight \(3000, 1\) must read 16"),
            (
                "xvit_vit_16f_seg8",
                {"consensus.mlp_head.1.weight": (24, 16), "consensus.mlp_head.4.weight": (3000, 1)},
                r"classify.4.weight \(3000, 1\) must read 24"),
            (
                "motionformer_trajectory_orig",
                {"pre_logits.fc.weight": (3000, 1)},
                r"classify.0.weight \(3000, 1\) must read 24"),
            (
                "timesformer_divided",
                {"model.head.weight": (3000, 1)},
                r"classify.0.weight \(3000, 1\) must read 24"),
            (
                "timesformer_divided",
                {"model.pos_embed": (1, 1 + 40**2, 1)},
                r"position.space \(1, 1600, 1\) is not \(1, positions, 24\)"),
            (
                "timesformer_divided",
                {"model.time_embed": (1, 3000, 1)},
                r"position.time \(1, 3000, 1\) is not"),
            (
                "hf_vivit",
                {"vivit.embeddings.position_embeddings": (1, 1 + 3200, 1)},
                r"position.joint \(1, 3200, 1\) is not")])
    def test_a_small_file_of_a_large_model(self, name, sizes, match, monkeypatch):
        """Thin layers and tables whose length alone would be memory are refused, nothing built."""
        monkeypatch.setattr(va, "VideoTransformer", None)
        with pytest.raises(ValueError, match=match):
            loaded(name, released(name) | {key: torch.zeros(size) for key, size in sizes.items()})

    def test_many_layers_of_a_temporal_head_that_hold_nothing(self, monkeypatch):
        monkeypatch.setattr(va, "VideoTransformer", None)
        state = released("xvit_vit_16f_seg8")
        layer = [key for key in state if "temporal_encoder.0" in key]
        for i in range(1, 60):
            state |= {key.replace("encoder.0", f"encoder.{i}"): torch.zeros(1) for key in layer}
        with pytest.raises(ValueError, match="62 blocks of width 16 take"):
            loaded("xvit_vit_16f_seg8", state)

    def test_messages_are_short(self):
        state = {f"key_{i}_{'x' * 100}": torch.zeros(1) for i in range(1000)}
        self.refused(state, "1000 keys are unexpected")

# ==== IMAGE WEIGHTS ===============================================================================

def image_state(depth=2, dim=24, side=4, patch=8):
    """An image transformer under timm's keys, random."""
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + side**2, dim),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "head.weight": (7, dim),
        "head.bias": (7,),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        layers = {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim)}
        for name, (rows, columns) in layers.items():
            shapes |= {
                f"blocks.{i}.{name}.weight": (rows, columns),
                f"blocks.{i}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (dim,), f"blocks.{i}.{name}.bias": (dim,)}
    return {key: 0.3 * torch.randn(shape) for key, shape in shapes.items()}

def video_model(attention, **options):
    sizes = dict(dim=24, depth=2, heads=4, image_size=32, patch_size=8, num_frames=6, num_classes=3)
    return va.VideoTransformer(attention, **sizes | options).eval()

class TestImageWeights:
    @pytest.mark.parametrize("attention", va.ATTENTION)
    def test_every_scheme_starts_from_an_image_model(self, attention):
        state, model = image_state(), video_model(attention)
        if model.position.space is None:
            pytest.skip("no table of positions in space")
        published.load_image_weights(model, state)
        for i, block in enumerate(model.blocks):
            for step, norm in zip(block.steps, block.norms):
                same(step.qkv.weight, state[f"blocks.{i}.attn.qkv.weight"], 0)
                zero = step.zero_init == "proj"  # stays what it was
                same(step.proj.weight, state[f"blocks.{i}.attn.proj.weight"] * (not zero), 0)
                same(norm.weight, state[f"blocks.{i}.norm1.weight"], 0)
            same(block.mlp_norm.bias, state[f"blocks.{i}.norm2.bias"], 0)
            same(block.mlp.fc1.weight, state[f"blocks.{i}.mlp.fc1.weight"], 0)
        same(model.position.space, state["pos_embed"][:, 1:], 0)
        same(model.norm.weight, state["norm.weight"], 0)
        if model.class_token is not None:
            same(model.class_token, state["cls_token"], 0)
            same(model.position.for_class, state["pos_embed"][:, :1], 0)
        if model.position.time is not None:
            same(model.position.time, torch.zeros_like(model.position.time), 0)

    @pytest.mark.parametrize(
        "attention, options",
        [("divided", {}), ("space", {}), ("window", {}), ("factorised", dict(class_token="clip"))])
    def test_on_a_clip_that_stands_still_it_is_the_image_model(self, attention, options):
        state = image_state()
        image = published.load_image_weights(video_model("joint", num_frames=1), state)
        model = published.load_image_weights(video_model(attention, **options), state)
        still = torch.randn(2, 3, 1, 32, 32)
        frames = options.get("num_frames", 6)
        expected = image.forward_features(still)
        actual = model.forward_features(still.expand(-1, -1, frames, -1, -1))
        C = actual.shape[1] - frames * 16
        same(actual[:, :1], expected[:, :1], 1e-5)
        same(actual[:, C : C + 16], expected[:, 1:], 1e-5)

    def test_tubelets_start_from_their_central_frame(self):
        state = image_state()
        for z in (2, 3):
            model = video_model("joint", patch_size=(z, 8, 8))
            kernel = published.load_image_weights(model, state).patches.proj.weight
            same(kernel[:, :, z // 2], state["patch_embed.proj.weight"], 0)
            assert kernel.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist() == [z // 2]

    def test_positions_are_resized_and_repeated(self):
        state = image_state()
        table = state["pos_embed"][:, 1:]
        model = published.load_image_weights(video_model("joint", image_size=(40, 56)), state)
        same(model.position.space, va.resize_positions(table, (4, 4), (5, 7)), 0)
        model = published.load_image_weights(video_model("joint", position="joint"), state)
        same(model.position.joint, table.repeat(1, 6, 1), 0)

    def test_a_table_that_is_not_square(self):
        """Taken where it has the model's rows and columns; the advice for others helps."""
        state = image_state() | {"pos_embed": torch.randn(1, 1 + 24, 24)}
        with pytest.raises(ValueError, match="24 positions is not square.*the model's 4 x 4"):
            published.load_image_weights(video_model("divided"), state)
        for position in ("space", "joint"):
            model = video_model("joint", position=position, image_size=(32, 48))
            published.load_image_weights(model, state)
            frames, table = (6, model.position.joint) if position == "joint" else (
                1, model.position.space)
            same(table, state["pos_embed"][:, 1:].repeat(1, frames, 1), 0)
        assert model(torch.randn(1, 3, 6, 32, 32)).shape == (1, 3)

    def test_a_norm_after_pooling(self):
        state = image_state()
        model = video_model("space", norm_after_pool=True)
        same(published.load_image_weights(model, state).head.norm.weight, state["norm.weight"], 0)

    @pytest.mark.parametrize(
        "change, match",
        [
            (lambda s: image_state(depth=3), "3 blocks, this model 2"),
            (lambda s: image_state(depth=1), "1 blocks, this model 2"),
            (
                lambda s: s | {"blocks.0.ls1.gamma": torch.ones(24)},
                "unexpected: blocks.0.ls1.gamma"),
            (lambda s: s | {"blocks.0.temporal_fc.bias": torch.ones(24)}, "unexpected"),
            (lambda s: s | {"time_embed": torch.zeros(1, 8, 24)}, "unexpected: time_embed"),
            (lambda s: s | {"dist_token": torch.zeros(1, 1, 24)}, "unexpected: dist_token"),
            (
                lambda s: s | {"patch_embed.proj.weight": torch.zeros(24, 3, 2, 8, 8)},
                "kernel of a video"),
            (lambda s: image_state(dim=48), r"\(144, 48\)"),
            (lambda s: image_state(patch=16), "patches.proj.weight has shape"),
            (
                lambda s: {k: x for k, x in s.items() if "patch_embed" not in k},
                "patches.proj.weight is missing"),
            (lambda s: s | {"pos_embed": torch.zeros(1, 1 + 24, 24)}, "not square"),
            (lambda s: {"vit.blocks." + k: x for k, x in s.items()}, "unexpected")])
    def test_what_it_would_not_read_is_refused_and_nothing_overwritten(self, change, match):
        model = video_model("divided")
        before = {key: x.clone() for key, x in model.state_dict().items()}
        with pytest.raises(ValueError, match=match):
            published.load_image_weights(model, change(image_state()))
        assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())

    @pytest.mark.parametrize(
        "cut, missing",
        [
            (r"\.attn\.", "8 tensors .*: blocks.0.steps.0.qkv.weight"),
            (r"\.qkv\.bias", "2 tensors .*: blocks.0.steps.0.qkv.bias, blocks.1.steps.0.qkv.bias$"),
            (r"\.norm1\.", "4 tensors .*: blocks.0.norms.0.weight"),
            (r"\.norm2\.", "4 tensors .*: blocks.0.mlp_norm.weight"),
            (r"\.mlp\.fc1\.", "4 tensors .*: blocks.0.mlp.fc1.weight"),
            (r"\.mlp\.fc2\.", "4 tensors .*: blocks.0.mlp.fc2.weight"),
            (r"^pos_embed", "2 tensors .*: position.for_class, position.space$"),
            (r"^norm\.", "2 tensors .*: norm.weight, norm.bias$"),
            (r"^cls_token", "1 tensors .*: class_token$"),
            (r"^patch_embed.proj.bias", "1 tensors .*: patches.proj.bias$")])
    def test_a_file_cut_short_is_refused_and_nothing_overwritten(self, cut, missing):
        model = video_model("divided")
        before = {key: x.clone() for key, x in model.state_dict().items()}
        state = {key: x for key, x in image_state().items() if not re.search(cut, key)}
        with pytest.raises(ValueError, match=missing):
            published.load_image_weights(model, state)
        assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())

    def test_what_image_models_lack_may_be_missing(self):
        """Depthwise convolutions, a norm of overlapping patches, gates, a temporal head; and no
        class token where the model has none, no head anywhere."""
        state = {key: x for key, x in image_state().items() if not key.startswith("head.")}
        lvt = dict(class_token="none", depthwise=True, patch_stride=7, image_size=29)
        model = video_model("lvt", position="separate", **lvt)
        headless = {key: x for key, x in state.items() if key != "cls_token"}
        published.load_image_weights(model, headless)
        same(model.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"], 0)
        gated = partial(va.LinearAttention, axis="space", fixation="qkv", shared_gate=False)
        model = video_model([gated], class_token="frame", head="temporal", head_mlp="gelu")
        published.load_image_weights(model, state)
        same(model.norm.weight, state["norm.weight"], 0)

    def test_a_video_checkpoint_is_refused(self):
        for name in (
            "timesformer_divided",
            "hf_timesformer_divided",
            "motionformer_trajectory_orig",
            "xvit_vit_16f_seg8"):
            with pytest.raises(ValueError, match="unexpected"):
                published.load_image_weights(video_model("divided"), released(name))

    def test_a_model_without_a_place_for_the_positions_is_refused(self):
        for position in ("none", "time"):
            with pytest.raises(ValueError, match="no place for.*position.space"):
                published.load_image_weights(video_model("joint", position=position), image_state())
        with pytest.raises(ValueError, match="no VideoTransformer"):
            published.load_image_weights(nn.Linear(2, 2), image_state())

    def test_central_frame_kernel_asks_for_a_kernel(self):
        with pytest.raises(ValueError, match="must be"):
            published.central_frame_kernel(torch.zeros(2, 3, 4), 2)
        with pytest.raises(ValueError, match="frames=0"):
            published.central_frame_kernel(torch.zeros(2, 3, 4, 4), 0)
        for kernel in (None, [1, 2]):
            with pytest.raises(ValueError, match=f"type {type(kernel).__name__}, and must be"):
                published.central_frame_kernel(kernel, 2)
        for frames in (None, 1.5):
            with pytest.raises(ValueError, match=f"frames={frames}"):
                published.central_frame_kernel(torch.zeros(2, 3, 4, 4), frames)

# ==== OWN CLIPS ===================================================================================

OWN_CLIPS = [HERE / "README.md"]

class TestOwnClips:
    def test_docstring_examples(self):
        import doctest

        assert doctest.testmod(own_clips).failed == 0

    @pytest.mark.parametrize(
        "total, frames, stride, clips",
        [(100, 8, 4, 3), (29, 8, 4, 5), (20, 8, 4, 2), (8, 8, 4, 1), (99, 8, 4, 1)])
    def test_sample_frames(self, total, frames, stride, clips):
        """In order, no frame twice, `stride` apart where the video is long enough, the first clip
        at the first frame and the last clip at the last."""
        numbers = own_clips.sample_frames(total, frames, stride, clips)
        assert numbers.shape == (clips, frames) and numbers.min() >= 0 and numbers.max() < total
        steps = numbers.diff(dim=1)
        assert (steps >= 1).all()
        if total > (frames - 1) * stride:
            assert (steps == stride).all()
        if clips > 1:
            assert numbers[0, 0] == 0 and numbers[-1, -1] == total - 1
        else:
            assert abs(numbers[0, 0] - (total - 1 - numbers[0, -1])) <= 1  # in the middle

    def test_too_short_a_video_is_refused_with_the_fix(self):
        with pytest.raises(ValueError, match="5 frames cannot give 8"):
            own_clips.sample_frames(5, 8)
        with pytest.raises(ValueError, match="stride=0"):
            own_clips.sample_frames(50, 8, 0)

    @pytest.mark.parametrize("family", own_clips.PIXELS)
    def test_to_video(self, family):
        """Pixel by pixel: frame t, row y, column x, channel c to [0, c, t, y, x], 0..255 as the
        release."""
        frames = torch.randint(256, (4, 5, 6, 3), dtype=torch.uint8)
        video = own_clips.to_video(frames, family)
        mean, std = own_clips.PIXELS[family]
        assert video.shape == (1, 3, 4, 5, 6) and video.dtype == torch.float32
        for t, y, x, c in [(0, 0, 0, 0), (3, 4, 5, 2), (1, 2, 3, 1)]:
            expected = (int(frames[t, y, x, c]) / 255 - mean) / std
            assert abs(video[0, c, t, y, x].item() - expected) < 1e-5

    def test_vivits_pixels_are_shifted_and_then_normalised(self):
        """Hugging Face's processor: u / 127.5 - 1, then mean and std of .5."""
        frames = torch.randint(256, (2, 4, 4, 3), dtype=torch.uint8)
        expected = ((frames / 127.5 - 1) - 0.5) / 0.5
        same(own_clips.to_video(frames, "vivit"), expected.permute(3, 0, 1, 2).unsqueeze(0), 1e-5)

    def test_the_shorter_side_is_resized(self):
        for height, width, sides in ((40, 60, (20, 30)), (60, 40, (30, 20)), (33, 57, (20, 34))):
            frames = torch.zeros(2, height, width, 3, dtype=torch.uint8)
            assert own_clips.to_video(frames, size=20).shape[3:] == sides

    def test_sides_and_places_are_the_releases(self):
        """Their resized side is rounded down, their middle crop up."""
        assert own_clips.to_video(np.zeros((1, 240, 320, 3), np.uint8), size=224).shape[4] == 298
        frames = torch.arange(25, dtype=torch.uint8).view(1, 1, 25, 1).expand(1, 24, 25, 3)
        centre = own_clips.views(frames, 1, 1, 24, crops=1)[0, 0, 0, 0]
        same(centre, own_clips.to_video(frames)[0, 0, 0, 0, 1:], 1e-6)

    def test_a_list_of_turned_arrays(self):
        frames = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
        expected = own_clips.to_video(torch.from_numpy(frames).flip(3))
        same(own_clips.to_video([frame[..., ::-1] for frame in frames]), expected, 0)

    @pytest.mark.parametrize("total", [2**25 + 3, 10**9])
    def test_long_videos_are_counted_to_the_last_frame(self, total):
        numbers = own_clips.sample_frames(total, 8, 32, clips=3)
        assert numbers[-1, -1] == total - 1 and (numbers.diff(dim=1) == 32).all()

    @pytest.mark.parametrize("sizes", [
        dict(num_frames=2.5), dict(stride=0), dict(size=0), dict(size=16.5), dict(crops=0),
        dict(clips=None), dict(size="8")], ids=str)  # fmt: skip
    def test_sizes_that_are_none_are_named(self, sizes):
        sizes = dict(num_frames=2, stride=1, size=8, clips=1, crops=1) | sizes
        with pytest.raises(ValueError, match="=.* must be a whole number"):
            own_clips.views(torch.zeros(4, 9, 9, 3, dtype=torch.uint8), **sizes)

    def test_nothing_to_predict(self):
        with pytest.raises(ValueError, match="no views"):
            own_clips.predict_views(video_model("space"), torch.zeros(0, 3, 6, 32, 32))
        with pytest.raises(ValueError, match="no clips"):
            own_clips.predict_clips(video_model("space"), [])

    @pytest.mark.parametrize("wrap", [
        nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=repr)
    def test_rates_of_a_wrapped_model(self, wrap):
        model = video_model("space", depth=2)
        plain, wrapped = (own_clips.layer_wise_parameters(m, 1e-3) for m in (model, wrap(model)))
        for one, other in zip(plain, wrapped, strict=True):
            assert one["lr"] == other["lr"] and one["weight_decay"] == other["weight_decay"]
            assert all(x is y for x, y in zip(one["params"], other["params"], strict=True))
        with pytest.raises(ValueError, match="Linear has no blocks"):
            own_clips.layer_wise_parameters(nn.Linear(2, 2), 1e-3)

    def test_other_frames_are_refused(self):
        for frames in (torch.zeros(2, 4, 4, 3), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)):
            with pytest.raises(ValueError, match="uint8"):
                own_clips.to_video(frames)
        with pytest.raises(ValueError, match="'vit'.*timesformer"):
            own_clips.to_video(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "vit")

    def test_views_are_the_clips_and_crops(self):
        frames = torch.randint(256, (20, 16, 24, 3), dtype=torch.uint8)
        views = own_clips.views(frames, 4, 3, 16, clips=2, crops=3, family="xvit")
        whole = own_clips.to_video(frames, "xvit")[0]
        for clip, numbers in enumerate(own_clips.sample_frames(20, 4, 3, 2)):
            for crop, left in enumerate((0, 4, 8)):
                same(views[3 * clip + crop], whole[:, numbers, :, left : left + 16], 1e-6)
        centre = own_clips.views(frames.transpose(1, 2), 4, 3, 16, crops=1, family="xvit")
        numbers = own_clips.sample_frames(20, 4, 3)[0]
        same(centre[0], whole.transpose(2, 3)[:, numbers, 4:20], 1e-6)

    def test_predictions_are_means_of_probabilities(self):
        model = video_model("space")
        nn.init.normal_(model.head.classify[0].weight)
        video = torch.randn(5, 3, 6, 32, 32)
        expected = torch.stack([model(view[None]).softmax(-1)[0] for view in video]).mean(0)
        same(own_clips.predict_views(model, video), expected, 1e-5)
        with pytest.raises(ValueError, match="eval"):
            own_clips.predict_views(model.train(), video)

    def test_clips_of_unequal_length(self):
        """Each as if it were alone, in the order given, one call for every size."""
        model, calls = video_model("joint"), []
        model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape[2]))
        clips = [torch.randn(3, T, 32, 32) for T in (4, 6, 4, 5, 6)]
        logits = own_clips.predict_clips(model, clips)
        assert sorted(calls) == [4, 5, 6]
        same(logits, torch.cat([model(clip[None]) for clip in clips]), 1e-5)

    def test_layer_wise_rates(self):
        model = video_model("divided", depth=3)
        model.blocks[0].requires_grad_(False)
        groups = own_clips.layer_wise_parameters(model, 1e-3, decay=0.5, weight_decay=0.1)
        found = {id(p): group for group in groups for p in group["params"]}
        trainable = [p for p in model.parameters() if p.requires_grad]
        assert sum(len(group["params"]) for group in groups) == len(found) == len(trainable)
        rate = lambda p: found[id(p)]["lr"]
        assert rate(model.head.classify[0].weight) == rate(model.norm.weight) == 1e-3
        assert rate(model.blocks[2].mlp.fc1.weight) == 1e-3 * 0.5  # the last of three blocks
        assert rate(model.blocks[1].mlp.fc1.weight) == 1e-3 * 0.5**2
        assert rate(model.patches.proj.weight) == rate(model.position.space) == 1e-3 * 0.5**4
        assert found[id(model.blocks[1].mlp.fc1.weight)]["weight_decay"] == 0.1
        for p in (
            model.position.space,
            model.class_token,
            model.norm.weight,
            model.head.classify[0].bias):
            assert found[id(p)]["weight_decay"] == 0
        torch.optim.AdamW(groups)

    def test_the_readmes_code_runs(self, tmp_path, monkeypatch):
        """In order, each block in at most 15 lines; the file of weights is one of a small model."""
        text = next(
            (text for text in map(Path.read_text, OWN_CLIPS) if "## Bring your own clips" in text),
            "")
        section = text.partition("## Bring your own clips")[2].partition("\n## ")[0]
        blocks = re.findall(r"```python\n(.*?)```", section, re.S)
        assert len(blocks) >= 2 and all(block.count("\n") <= 15 for block in blocks)
        monkeypatch.chdir(tmp_path)
        model = va.VideoTransformer("divided", dim=64, depth=2, heads=1, num_classes=400)
        torch.save({"model_state": as_timesformer(model)}, "TimeSformer_divST_8x32_224_K400.pyth")
        frames = torch.randint(256, (240, 230, 260, 3), dtype=torch.uint8)
        names = dict(frames=frames, label=3)  # and nothing else: it imports what it uses
        with pytest.warns(UserWarning, match="400 classes, the model 10"):
            for block in blocks:
                exec(block, names)
        assert names["probabilities"].shape == (10,) and names["logits"].shape == (2, 10)
        assert names["tokens"].shape == (3, 1 + 8 * 14 * 14, 64)
        assert [tuple(m.shape) for m in names["maps"]] == [(1, 1, 1569), (1, 1, 1569)]
        before = model.blocks[0].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight
        after = [block.mlp.fc1.weight for block in names["model"].blocks]
        assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])

    def test_padding_harms(self):
        """Five frames padded to eight: the logits move by more than a tenth of their norm."""
        for attention in ("joint", "divided", "trajectory"):
            assert min(own_clips.harm_of_padding(attention)) > 0.1

    def test_sampling_and_views_of_the_releases_are_known(self):
        assert set(own_clips.PIXELS) == set(published.FAMILIES)
        assert set(own_clips.VIEWS) <= set(published.FAMILIES)
        assert set(own_clips.SAMPLING) <= set(published.PRESETS)
