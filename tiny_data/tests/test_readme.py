"""README's code runs, block by block, and its first one teaches every scheme. What stands in for
timm and transformers has their names of weights and their signature of attention functions."""

import re
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import video_attention as va
from tiny_data import SCHEMES, moving_objects, pretrained, study
from tiny_data.pretrained import clips

README = Path(va.__file__).with_name("README.md")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M)


class ImageBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict(dict(qkv=nn.Linear(dim, 3 * dim), proj=nn.Linear(dim, dim)))
        self.mlp = nn.ModuleDict(dict(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim)))

    def forward(self, x):
        q, k, v = self.attn.qkv(self.norm1(x)).unflatten(2, (3, 3, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ImageTransformer(nn.Module):
    def __init__(self, dim=192):
        super().__init__()
        self.patch_embed = nn.ModuleDict(dict(proj=nn.Conv2d(3, dim, 16, 16)))
        self.cls_token, self.pos_embed = (nn.Parameter(torch.randn(1, n, dim)) for n in (1, 197))
        self.blocks = nn.Sequential(*(ImageBlock(dim) for _ in range(12)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, image):
        x = self.patch_embed.proj(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))


def test_every_block_runs(monkeypatch, tmp_path):
    """The image model is the space model's on each frame; joint attention is transformers' own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(va, "ATTENTION", dict(va.ATTENTION))
    small, given, names = va.VideoTransformer(dim=24, heads=2, depth=1).eval(), {}, {}
    monkeypatch.setattr(pretrained, "from_released", lambda family, file: small)
    monkeypatch.setattr(clips, "count_frames", lambda file: 300)
    monkeypatch.setattr(clips, "decode", lambda *_: torch.zeros(1, 8, 240, 320, 3).byte())
    timm = MagicMock(create_model=lambda name, pretrained: ImageTransformer())
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "transformers", hugging := MagicMock())
    hugging.AttentionInterface.register = given.__setitem__
    for block in BLOCKS:
        exec(block, names)
    assert names["accuracy"] > 0.9 and names["probabilities"].shape == (400,)
    assert Image.open("attention.png").size == (1600, 720) and names["tokens"].shape[1] == 5
    assert names["ForTrainer"](nn.Flatten())(torch.ones(4, 3), torch.ones(4).long())["loss"] > 0
    space = va.VideoTransformer("space", dim=192, heads=3, position="separate").eval()
    pretrained.load_image_weights(space, names["image"].state_dict())
    found, _ = space.feature_maps((frames := torch.randn(2, 3, 224, 224)).transpose(0, 1)[None])
    torch.testing.assert_close(found[0].flatten(1, 2), names["image"](frames)[:, 1:])
    q, k, v = torch.randn(3, 1, 2, 1 + 16 * 14 * 14, 8)
    asked = dict(query=q, key=k, value=v, attention_mask=None, scaling=8**-0.5, dropout=0.0)
    for names["va"] in (va, MagicMock(window_attention=va.joint_attention)):
        out, _ = given["window"](None, **asked)  # (B, N, h, d)
        same = out.equal(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))
        assert same == (names["va"] is not va)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_learns_from_the_first_block(scheme):
    """But space. Test clips are played both ways: whatever is blind to time is right in half."""
    before, body = BLOCKS[0].split("\n\nnew = ")[0].split("for step in range(200):\n")
    names, accuracy, new = {}, [], moving_objects(200, seed=10**6)
    exec(before.replace('"joint"', repr(study.scheme_of(scheme))), names)
    while len(accuracy) < (4 if scheme == "space" else 16) and max(accuracy, default=0) < 0.65:
        for names["step"] in range(25 * len(accuracy), 25 * len(accuracy) + 25):
            exec(re.sub("^    ", "", body, flags=re.M), names)
        found = names["model"](torch.cat([new.video, new.video.flip(2)])).argmax(dim=1)
        accuracy.append((found == torch.cat([new.label, 1 - new.label])).double().mean().item())
    assert abs(accuracy[-1] - 0.5) < 0.02 if scheme == "space" else accuracy[-1] > 0.65, accuracy
