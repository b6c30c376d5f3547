"""Published models: their sizes, their weights, and a start from an image transformer.

    preset("motionformer", num_classes=10)                         untrained, of the published size
    from_released("timesformer", "TimeSformer_divST_8x32_K400.pyth")        with released weights
    load_image_weights(model, "vit_base_patch16_224.pth")          from an image model, timm's keys

What a release does and its paper does not is here and not in video_attention.py: whole heads that
are mixed, segments of frames, Motionformer's slip in the values, tables that start over, nearest
resizing. Every model made here is a VideoTransformer: VideoTransformer(**model.config) builds it
again, and after load_state_dict(model.state_dict()) the logits are the same to the last bit.
"""

import codecs
import math
import os
import re
import warnings
import zipfile
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

import video_attention as va
from video_attention import require

# ==== PRESETS: the sizes of the papers ============================================================
MOTIONFORMER = dict(attention="trajectory", num_frames=16, patch_size=(2, 16, 16), head_mlp="tanh",
                    drop_path=0.2)
XVIT = dict(attention="mixing", head="temporal", head_mlp="gelu")
VIVIT = dict(attention="joint", num_frames=32, patch_size=(2, 16, 16), position="joint",
             gelu="tanh")

PRESETS = {
    # TimeSformer, https://arxiv.org/abs/2102.05095 table 5: 8 x 224, 16 x 448 and 96 x 224 pixels
    "timesformer": dict(attention="divided"),
    "timesformer_hr": dict(attention="divided", num_frames=16, image_size=448),
    "timesformer_l": dict(attention="divided", num_frames=96),
    # Motionformer, https://arxiv.org/abs/2106.05392 table 6; HR has clips of 336 pixels and, as in
    # its code, a table of positions for 224
    "motionformer": MOTIONFORMER,
    "motionformer_l": MOTIONFORMER | dict(num_frames=32),
    "motionformer_hr": MOTIONFORMER,
    # X-ViT, https://arxiv.org/abs/2106.05968 tables 5 and 6; the second has clips of 16 frames and,
    # as in its code, a table for 8 (there it starts over, here it is interpolated)
    "xvit": XVIT,
    "xvit_16": XVIT,
    # ViViT, https://arxiv.org/abs/2103.15691 table 2, models 1 to 4; 3 and 4 have no class token,
    # and the head takes the mean of the patches
    "vivit": VIVIT,
    "vivit_2": VIVIT | dict(attention="space", class_token="frame", position="separate",
                            head="temporal", head_depth=4),
    "vivit_3": VIVIT | dict(attention="factorised", class_token="none"),
    "vivit_4": VIVIT | dict(attention="factorised_heads", class_token="none"),
    # LVT, https://arxiv.org/abs/2210.08164, sizes from its released code; clips of 16 frames, a
    # table for 8, as X-ViT
    "lvt": dict(attention="lvt", dim=512, heads=8, patch_stride=14, position="time",
                class_token="none", depthwise=True, head_mlp="gelu", head_hidden=768),
}


def preset(name, **overrides):
    """A published model, untrained: preset("lvt", depth=4). Overrides are VideoTransformer's."""
    known = isinstance(name, str) and name in PRESETS
    require(known, "preset {!r} is unknown; choose one of {}", name, ", ".join(PRESETS))
    check_image_size(overrides)
    return va.VideoTransformer(**PRESETS[name] | overrides)


def check_image_size(options):
    """ValueError for None, which is no size and not the usual one either."""
    text = "image_size=None: give an int or (height, width), or leave it out"
    require(options.get("image_size", 224) is not None, text)


# ==== WHAT ONLY A RELEASE DOES ====================================================================
class ReleasedMixingAttention(va.Attention):
    """X-ViT's mixing as its code has it: slices of the joined heads, inside segments of frames.

        k~ = [first channels of k at t+1, as many next ones of k at t-1, the rest of k at t]

    and v~ likewise. The share `moved` is one of the joined heads' channels, so that mostly whole
    heads come from the next frame, from the previous one or from their own. Nothing crosses from
    one segment of so many frames to the next; None is the whole clip.

    Code        X-ViT 82ca176, slowfast/models/temporal_shift.py, line 44
    """

    def __init__(self, dim, heads, moved=0.25, segment=None, **shared):
        super().__init__(dim, heads, **shared)
        require(0 <= moved <= 1, "moved={} must be a share in 0..1", moved)
        require(segment is None or segment >= 1, "segment={}: 1 or more frames, or None", segment)
        self.moved, self.segment = moved, segment

    def mechanism(self, q, k, v, grid):
        k, v = (mix_joined_heads(x, grid, self.moved, self.segment or grid[0]) for x in (k, v))
        return va.space_attention(q, k, v, grid)


def mix_joined_heads(x, grid, moved, segment):
    """Keys or values x (B, h, C + T*S, d), C = 0 or T -> the same shape, their channels mixed."""
    T, H, W = grid
    B, h, N, d = x.shape
    C = N - T * H * W
    require(C in (0, T), "{} class tokens on {}: mixing needs one per frame, or none", C, grid)
    check_segments(T, segment)
    share = math.floor(moved * h * d / 2 + 1e-9)  # from either neighbour
    parts = []
    for tokens in x.split([C, N - C], dim=2):
        tokens = rearrange(tokens, "B h (n t I) d -> B n t I (h d)", n=T // segment, t=segment)
        ahead, behind, rest = tokens.split([share, share, h * d - 2 * share], dim=4)
        mixed = torch.cat([va.shift(ahead, 1, axis=2), va.shift(behind, -1, axis=2), rest], dim=4)
        parts.append(rearrange(mixed, "B n t I (h d) -> B h (n t I) d", h=h))
    return torch.cat(parts, dim=2)  # (B, h, N, d)


def check_segments(T, segment):
    """ValueError unless the frames of a clip divide into segments."""
    text = "T={} is no multiple of segment={}: call with a multiple of {} frames, or build the "
    text += "step with segment=None"
    require(T % segment == 0, text, T, segment, segment)


class ReleasedLinearAttention(va.LinearAttention):
    """LVT's attention in space, which shifts channels between the frames of a segment only."""

    def __init__(self, dim, heads, segment=None, **options):
        super().__init__(dim, heads, **options)
        require(self.axis == "space", "axis={!r}: segments belong to axis='space'", self.axis)
        require(segment is None or segment >= 1, "segment={}: 1 or more frames, or None", segment)
        self.segment = segment

    def mechanism(self, q, k, v, grid):
        T, H, W = grid
        t = self.segment or T
        check_segments(T, t)
        text = "{} tokens on {}: LVT has no class token"
        require(q.shape[2] == T * H * W, text, q.shape[2], grid)
        q, k, v = (rearrange(x, "B h (n I) d -> (B n) h I d", n=T // t) for x in (q, k, v))
        out = super().mechanism(q, k, v, (t, H, W))
        return rearrange(out, "(B n) h I d -> B h (n I) d", n=T // t)


def released_prototypes(q, k, count, start=0):
    """Motionformer's choice of prototypes: all queries and no keys are candidates, in token order.

    q, k (B, h, N, d) -> (B, h, count, d). Its code starts from a random query, this from `start`.

    Code        Motionformer bf43d50, slowfast/models/orthoformer_helper.py
    """
    picked = va.most_orthogonal_subset(q, min(count, q.shape[2]), start=start).sort(dim=-1).values
    return q.gather(2, picked.unsqueeze(-1).expand(-1, -1, -1, q.shape[3]))


def nystromformer_attention(q, k, v, landmarks, iterations=6):
    """Nystrom attention with one scale for the whole batch, so that clips influence each other.

    q, k, v (B, h, N, d) -> the same shape. The published libraries start the inverse so by default.
    """
    q_means, k_means = (va.segment_means(x, landmarks) for x in (q, k))  # (B, h, P, d)
    A = (q_means / math.sqrt(q.shape[-1]) @ k_means.mT).softmax(dim=-1)  # (B, h, P, P)
    return va.attend(q, k_means, inverse_of_one_scale(A, iterations) @ va.attend(q_means, k, v))


def inverse_of_one_scale(A, iterations=6):
    """Pseudo-inverses of softmax matrices A (..., P, P), their start divided by one column sum.

    Code        Motionformer bf43d50, slowfast/models/nystrom_helper.py; in Nystromformer "original"
    """
    I = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    Z = A.mT / A.sum(dim=-2).max()
    for _ in range(iterations):
        AZ = A @ Z
        Z = 0.25 * Z @ (13 * I - AZ @ (15 * I - AZ @ (7 * I - AZ)))
    return Z


def values_as_released(weights):
    """{name: tensor} with the identity in the place of every W_v and zeros in that of b_v.

    Motionformer was trained with a slip: its second stage takes the trajectory token itself as the
    value, and W_v is never used. So the plain module computes what was released. proj_kv is W_k
    above W_v, (2*D, D).

    Code        Motionformer bf43d50, slowfast/models/vit_helper.py, line 146, use_original_code
    """
    weights = dict(weights)
    for key, x in weights.items():
        if key.endswith("proj_kv.weight") and x.ndim == 2 and x.shape[0] == 2 * x.shape[1]:
            W_k, W_v = x.chunk(2)  # (D, D)
            weights[key] = torch.cat([W_k, torch.eye(len(W_v)).to(W_v)])
        if key.endswith("proj_kv.bias") and x.ndim == 1:
            b_k, b_v = x.tensor_split(2)  # (D,)
            weights[key] = torch.cat([b_k, torch.zeros_like(b_v)])
    return weights


# ==== FILES: read without trust ===================================================================
NOT_WEIGHTS = [  # how other files begin, and what to do then
    (b"version https://git-lfs", "a pointer in place of the file: get the file by `git lfs pull`"),
    (b"<", "a web page: download the file, not the page about it"),
    (b"{", "JSON text, not a file of torch.save"),
    (b"\x93numpy", "a NumPy array: use np.load, and hand over a dictionary of tensors"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
]


def read_weights(source):
    """{key: tensor} from a path, or from what the file held; the usual nestings are taken off.

    Only tensors are read, code in a file is never run. ValueError says what is no file of weights,
    what is no weight, and what claims to be larger than it is.
    """
    path = source if isinstance(source, (str, os.PathLike)) else None
    source = source if path is None else read_file(path)
    text = "needs a path or a dictionary of tensors, got {}"
    require(isinstance(source, dict), text, type(source).__name__)
    for nesting in 2 * ("model_state", "state_dict", "model"):  # in each other, in any order
        source = source[nesting] if isinstance(source.get(nesting), dict) else source
    weights = {str(key): x.detach() for key, x in source.items() if isinstance(x, torch.Tensor)}
    check_others(source, weights)
    check_tensors(weights, math.inf if path is None else os.path.getsize(path))
    return {key: x.to(torch.get_default_dtype()) for key, x in weights.items()}


def check_others(source, weights):
    """ValueError for arrays, which would be left out in silence, and for a nesting unheard of."""
    arrays = [str(key) for key, x in source.items() if isinstance(x, np.ndarray)]
    text = "{} weights are NumPy arrays: hand over torch.from_numpy(x) for each of {}"
    require(not arrays, text, len(arrays), ", ".join(arrays))
    nested = [repr(key) for key, x in source.items() if isinstance(x, dict)]
    text = "no tensor is among the keys {}: hand over the weights alone, what is under {}"
    require(weights or not nested, text, ", ".join(map(str, source)), " or ".join(nested))


def check_tensors(weights, size):
    """ValueError unless all are dense numbers, and as many as are stored: `size` bytes at most."""
    usable = lambda x: x.is_floating_point() and x.layout == torch.strided and x.numel() > 0
    odd = [f"{key} {x.dtype} {tuple(x.shape)} {x.device}" for key, x in weights.items()
           if not usable(x) or x.is_meta]
    text = "weights must be floating-point, dense, not empty and not on the device meta, but not "
    text += "so are {}"
    require(not odd, text, ", ".join(odd))
    claimed = sum(x.numel() * x.element_size() for x in weights.values())
    storages = [x.untyped_storage() for x in weights.values()]
    stored = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    text = "{} tensors claim {} bytes and {} are stored: some are expanded or shared, clone() them"
    require(claimed <= min(stored, size), text, len(weights), claimed, min(stored, size))


def read_file(path):
    """What torch.load gives for a path, without running code; ValueError for any other file."""
    special = os.path.exists(path) and not os.path.isfile(path)  # reading a pipe may never end
    require(not special, "{} is no regular file: give the path of a file of weights", path)
    with open(path, "rb") as file:
        start = file.read(64)
    text_start = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for sign, what in NOT_WEIGHTS:
        require(not text_start.startswith(sign), "{} is {}", path, what)
    text = "{} is a safetensors file: hand over what safetensors.torch.load_file gives"
    require(start[8:10] != b'{"', text, path)
    check_archive(path)
    try:
        with warnings.catch_warnings():  # of pickles and TorchScript, with advice as below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, with advice that must not reach a user
        text = "{} is no readable file of weights ({}): it is cut short or damaged, or it holds "
        text += "more than tensors. Get it again, or save its tensors alone where you trust it"
        raise ValueError(text.format(path, type(error).__name__)[:2000]) from None


def check_archive(path):
    """torch.save's zip files are not compressed; a compressed one could inflate to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # no zip file, or a damaged one: torch.load will say so
        return
    numpy = any(entry.filename.endswith(".npy") for entry in entries)
    require(not numpy, "{} is an npz: use np.load, and torch.from_numpy for each array", path)
    size, inflated = os.path.getsize(path), sum(entry.file_size for entry in entries)
    require(inflated <= size, "{} is compressed, {} bytes for {}", path, size, inflated)


# ==== NAMES: released keys become those of VideoTransformer =======================================
# (released, here): "#" is a block's number, and a name that ends with a dot stands for all that
# begins with it. What a release carries and its own model never reads becomes "". In braces is what
# the keys tell: {space}, the step that attends in space; {last}, the last layer of the head;
# {cubic} or {flat}, which of two patch kernels is in use; {linear}, whether the classifier is a
# single layer.
TIMESFORMER = [  # model.blocks.3.temporal_attn.qkv.weight -> blocks.3.steps.0.qkv.weight
    ("cls_token", "class_token"),
    ("pos_embed", "position.space"),
    ("time_embed", "position.time"),
    ("patch_embed.proj.", "patches.proj."),
    ("blocks.#.temporal_norm1.", "blocks.#.norms.0."),
    ("blocks.#.temporal_attn.", "blocks.#.steps.0."),
    ("blocks.#.temporal_fc.", "blocks.#.steps.0.extra."),
    ("blocks.#.norm1.", "blocks.#.norms.{space}."),
    ("blocks.#.attn.", "blocks.#.steps.{space}."),
    ("blocks.#.norm2.", "blocks.#.mlp_norm."),
    ("blocks.#.mlp.", "blocks.#.mlp."),
    ("norm.", "norm."),
    ("head.", "head.classify.0."),
]
TIMESFORMER_HF = [  # timesformer.encoder.layer.3.temporal_dense.bias -> blocks.3.steps.0.extra.bias
    ("timesformer.embeddings.cls_token", "class_token"),
    ("timesformer.embeddings.position_embeddings", "position.space"),
    ("timesformer.embeddings.time_embeddings", "position.time"),
    ("timesformer.embeddings.patch_embeddings.projection.", "patches.proj."),
    ("timesformer.encoder.layer.#.temporal_layernorm.", "blocks.#.norms.0."),
    ("timesformer.encoder.layer.#.temporal_attention.attention.", "blocks.#.steps.0."),
    ("timesformer.encoder.layer.#.temporal_attention.output.dense.", "blocks.#.steps.0.proj."),
    ("timesformer.encoder.layer.#.temporal_dense.", "blocks.#.steps.0.extra."),
    ("timesformer.encoder.layer.#.layernorm_before.", "blocks.#.norms.{space}."),
    ("timesformer.encoder.layer.#.attention.attention.", "blocks.#.steps.{space}."),
    ("timesformer.encoder.layer.#.attention.output.dense.", "blocks.#.steps.{space}.proj."),
    ("timesformer.encoder.layer.#.layernorm_after.", "blocks.#.mlp_norm."),
    ("timesformer.encoder.layer.#.intermediate.dense.", "blocks.#.mlp.fc1."),
    ("timesformer.encoder.layer.#.output.dense.", "blocks.#.mlp.fc2."),
    ("timesformer.layernorm.", "norm."),
    ("classifier.", "head.classify.0."),
]
MOTIONFORMER_KEYS = [  # blocks.3.attn.proj_kv.weight -> blocks.3.steps.0.proj_kv.weight
    ("cls_token", "class_token"),
    ("pos_embed", "position.space"),
    ("temp_embed", "position.time"),
    ("st_embed", "position.joint"),
    ("patch_embed_3d.proj.", "{cubic}"),
    ("patch_embed.proj.", "{flat}"),
    ("blocks.#.norm1.", "blocks.#.norms.0."),
    ("blocks.#.attn.", "blocks.#.steps.0."),
    ("blocks.#.norm2.", "blocks.#.mlp_norm."),
    ("blocks.#.mlp.", "blocks.#.mlp."),
    ("norm.", "norm."),
    ("pre_logits.fc.", "head.classify.0."),
    ("head.", "head.classify.{last}."),
]
XVIT_HEAD = [  # consensus.temporal_encoder.0.norm2.bias -> head.temporal.blocks.0.mlp_norm.bias
    ("consensus.cls_token", "head.temporal.class_token"),
    ("consensus.temporal_encoder.#.norm1.", "head.temporal.blocks.#.norms.0."),
    ("consensus.temporal_encoder.#.attn.", "head.temporal.blocks.#.steps.0."),
    ("consensus.temporal_encoder.#.norm2.", "head.temporal.blocks.#.mlp_norm."),
    ("consensus.temporal_encoder.#.mlp.", "head.temporal.blocks.#.mlp."),
    ("consensus.mlp_head.", "head.classify."),
    ("new_fc.", "{linear}"),
    ("base_model.head.", "{linear}"),
]
XVIT_KEYS = [  # base_model.blocks.3.attn.qkv.weight -> blocks.3.steps.0.qkv.weight
    ("base_model.cls_token", "class_token"),
    ("base_model.pos_embed", "position.space"),
    ("base_model.temp_embed", "position.time"),
    ("base_model.patch_embed.proj.", "patches.proj."),
    ("base_model.blocks.#.norm1.", "blocks.#.norms.0."),
    ("base_model.blocks.#.attn.", "blocks.#.steps.0."),
    ("base_model.blocks.#.norm2.", "blocks.#.mlp_norm."),
    ("base_model.blocks.#.mlp.", "blocks.#.mlp."),
    ("base_model.norm.", "norm."),
] + XVIT_HEAD
LVT_KEYS = [  # base_model.blocks.3.temporal_attn.pgate.weight -> blocks.3.steps.0.gate_q.weight
    ("base_model.temp_embed", "position.time"),
    ("base_model.patch_embed.proj.", "patches.proj."),
    ("base_model.patch_embed.norm.", "patches.norm."),
    ("base_model.blocks.#.temporal_norm1.", "blocks.#.norms.0."),
    ("base_model.blocks.#.temporal_attn.pgate.", "blocks.#.steps.0.gate_q."),
    ("base_model.blocks.#.temporal_attn.q_gate.", "blocks.#.steps.0.gate_q."),
    ("base_model.blocks.#.temporal_attn.k_gate.", "blocks.#.steps.0.gate_k."),
    ("base_model.blocks.#.temporal_attn.", "blocks.#.steps.0."),
    ("base_model.blocks.#.norm1.", "blocks.#.norms.{space}."),
    ("base_model.blocks.#.attn.pgate.", "blocks.#.steps.1.gate_q."),
    ("base_model.blocks.#.attn.q_gate.", "blocks.#.steps.1.gate_q."),
    ("base_model.blocks.#.attn.k_gate.", "blocks.#.steps.1.gate_k."),
    ("base_model.blocks.#.attn.", "blocks.#.steps.{space}."),
    ("base_model.blocks.#.norm2.", "blocks.#.mlp_norm."),
    ("base_model.blocks.#.mlp.dwconv.dwconv.", "blocks.#.mlp.depthwise."),
    ("base_model.blocks.#.mlp.", "blocks.#.mlp."),
    ("base_model.norm.", "norm."),
] + XVIT_HEAD
VIVIT_HF = [  # vivit.encoder.layer.3.attention.output.dense.bias -> blocks.3.steps.0.proj.bias
    ("vivit.embeddings.cls_token", "class_token"),
    ("vivit.embeddings.position_embeddings", "position.joint"),
    ("vivit.embeddings.patch_embeddings.projection.", "patches.proj."),
    ("vivit.encoder.layer.#.layernorm_before.", "blocks.#.norms.0."),
    ("vivit.encoder.layer.#.attention.attention.", "blocks.#.steps.0."),  # query..., see reshaped
    ("vivit.encoder.layer.#.attention.output.dense.", "blocks.#.steps.0.proj."),
    ("vivit.encoder.layer.#.layernorm_after.", "blocks.#.mlp_norm."),
    ("vivit.encoder.layer.#.intermediate.dense.", "blocks.#.mlp.fc1."),
    ("vivit.encoder.layer.#.output.dense.", "blocks.#.mlp.fc2."),
    ("vivit.layernorm.", "norm."),
    ("classifier.", "head.classify.0."),
]
IMAGE = [  # blocks.3.attn.qkv.weight -> blocks.3.steps.0.qkv.weight
    ("cls_token", "class_token"),
    ("pos_embed", "position.space"),
    ("patch_embed.proj.", "patches.proj."),
    ("blocks.#.norm1.", "blocks.#.norms.0."),
    ("blocks.#.attn.", "blocks.#.steps.0."),
    ("blocks.#.norm2.", "blocks.#.mlp_norm."),
    ("blocks.#.mlp.", "blocks.#.mlp."),
    ("norm.", "norm."),
    ("head.", ""),  # the image model's classes
    ("pre_logits.", ""),
]
IN_EVERY_IMAGE_MODEL = re.compile(  # under the names that IMAGE gives
    r"class_token|position\.(space|for_class)|(patches\.proj|norm)\..+"
    r"|blocks\.\d+\.(norms\.0|steps\.0\.(qkv|proj)|mlp_norm|mlp\.fc1|mlp\.fc2)\..+")


COME_WITH = {  # (sign, needed): without the second, a file with the first reads as another model
    "motionformer": [("pre_logits.", "head.")],
    "xvit": [("consensus.", "consensus.cls_token"), ("consensus.", "consensus.temporal_encoder."),
             ("consensus.", "consensus.mlp_head.")],
    "lvt": [(".q_gate.", ".k_gate.")],  # one gate for both is called pgate
}


def check_whole(family, weights):
    """ValueError for released keys that betray a cut, although those left are of another model."""
    has = lambda part: any(part in key for key in weights)
    text = "it is cut short, there are keys with {!r} but none with {!r}"
    for sign, needed in COME_WITH.get(family, []):
        require(has(needed) or not has(sign), text, sign, needed)


def renames_of(family, weights):
    """The list of a family, its braces filled with what the released keys tell."""
    has = lambda part: any(part in key for key in weights)
    lists = dict(timesformer=TIMESFORMER_HF if has("timesformer.") else TIMESFORMER, xvit=XVIT_KEYS,
                 motionformer=MOTIONFORMER_KEYS, lvt=LVT_KEYS, vivit=VIVIT_HF)
    cubic = [x for key, x in weights.items() if key.endswith("patch_embed_3d.proj.weight")]
    tubelets = not cubic or cubic[0].ndim != 5 or cubic[0].shape[2] > 1  # Motionformer has both
    words = dict(space=int(has(".temporal_att")), last=2 * has("pre_logits."))
    words |= dict(linear="" if has("consensus.mlp_head.") else "head.classify.0.")
    words |= dict(cubic="patches.proj." if tubelets else "")
    words |= dict(flat="" if tubelets else "patches.proj.")
    return [(before, after.format(**words)) for before, after in lists[family]]


def renamed(weights, renames):
    """The weights under the names of VideoTransformer; ValueError for a key that no rename knows,
    and for two keys that become one name."""
    result, origin, unknown = {}, {}, []
    for key, x in weights.items():
        name = renamed_key(key, renames)
        text = "{} and {} both become {}"
        require(not name or name not in result, text, origin.get(name), key, name)
        if name is None:
            unknown.append(key)
        elif name:
            result[name], origin[name] = x, key
    require(not unknown, "{} keys are unexpected: {}", len(unknown), ", ".join(unknown))
    return reshaped(result)


def renamed_key(key, renames):
    """One key's name here: "" for what is never read, None for what no rename knows."""
    key = re.sub(r"^((module|model|_orig_mod)\.)+", "", key)
    for before, after in renames:
        pattern = re.escape(before).replace(r"\#", r"(\d{1,4})")
        pattern += "" if before.endswith(".") else r"\Z"
        if re.match(pattern, key):
            return re.sub(pattern, after.replace("#", r"\1"), key, count=1) if after else ""
    return None


def reshaped(weights):
    """Tensors in the form they have here: queries, keys and values in one layer (Hugging Face's
    ViViT has three), kernels with 5 axes, times with 3, the class token's position apart."""
    for key in [key for key in weights if ".query." in key]:
        names = [key.replace(".query.", f".{name}.") for name in ("query", "key", "value")]
        require(all(name in weights for name in names), "{} comes without key or value", key)
        layer = key.replace(".query.", ".qkv.")
        require(layer not in weights, "{} and {} are the same layer", key, layer)
        weights[layer] = torch.cat([weights.pop(name) for name in names])
    kernel = weights.get("patches.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        weights["patches.proj.weight"] = kernel.unsqueeze(2)
    if "position.time" in weights:  # X-ViT's and LVT's are (1, T, 1, D)
        axes = 4 if weights["position.time"].ndim == 4 else 3
        weights["position.time"] = tensor(weights, "position.time", axes).flatten(1, -2)
    for name in ("position.space", "position.joint"):
        if name in weights:
            table = tensor(weights, name, 3)
            require(table.shape[1] > 1, "{} has one entry only", name)
            weights["position.for_class"], weights[name] = table[:, :1], table[:, 1:]
    return weights


# ==== SIZES: one consistent reading of the keys, or an error ======================================
FAMILIES = ("timesformer", "motionformer", "xvit", "lvt", "vivit")
DEPTHS = {192: 12, 384: 12, 512: 12, 768: 12, 1024: 24}  # of the published models, by width


def tensor(weights, name, axes):
    """weights[name], which must be there and have so many axes."""
    require(name in weights, "{} is missing", name)
    x = weights[name]
    require(x.ndim == axes, "{} has shape {}, not {} axes", name, tuple(x.shape), axes)
    return x


def count_blocks(weights, prefix="blocks."):
    """How many blocks there are: numbered from 0 without a gap, and all with the same keys."""
    blocks = {}
    for key in weights:
        if match := re.match(re.escape(prefix) + r"(\d+)\.(.+)", key):
            blocks.setdefault(int(match[1]), set()).add(match[2])
    gap = min(set(range(len(blocks) + 1)) - set(blocks))
    last = max(blocks, default=-1)
    require(gap == last + 1, "there is a block {}{} but no {}{}", prefix, last, prefix, gap)
    for i, names in blocks.items():
        text = "{}{} and {}0 do not have the same keys: {}"
        require(names == blocks[0], text, prefix, i, prefix, ", ".join(sorted(names ^ blocks[0])))
    return len(blocks)


def read_sizes(weights, given):
    """The arguments that tensors tell in every family; `given` are those of the caller."""
    D, channels, *patch_size = tensor(weights, "patches.proj.weight", 5).shape
    depth, hidden = count_blocks(weights), len(tensor(weights, "blocks.0.mlp.fc1.weight", 2))
    check_amount(weights, depth, D, hidden)
    usual = DEPTHS.get(D, depth)
    text = "{} blocks of width {}, where published models have {}: cut short? If not, give depth={}"
    require(depth == given.get("depth", usual), text, depth, D, usual, depth)
    gate = "blocks.0.steps.0.gate_q.weight"
    d = len(tensor(weights, gate, 2)) if gate in weights else 64
    text = "width {} is no multiple of {} channels a head: give heads="
    require("heads" in given or D % d == 0, text, D, d)
    return dict(dim=D, depth=depth, heads=D // d, channels=channels, patch_size=tuple(patch_size),
                mlp_ratio=hidden / D) | read_head(weights, D)


def check_amount(weights, depth, D, hidden):
    """ValueError for fewer numbers than the blocks take, and for tables that are not D wide: their
    length would be the clip's. Otherwise a small file could ask for a model of any size."""
    layers = count_blocks(weights, "head.temporal.blocks.")  # 4*D is hidden in them
    needed = depth * (4 * D * D + 2 * D * hidden) + layers * 12 * D * D
    held, blocks = sum(x.numel() for x in weights.values()), depth + layers
    text = "{} blocks of width {} take {} numbers, not {}"
    require(held >= needed, text, blocks, D, needed, held)
    for name in ("position.space", "position.time", "position.joint"):
        shape = tuple(weights[name].shape) if name in weights else (1, 0, D)
        require(shape == (1, shape[1], D), "{} {} is not (1, positions, {})", name, shape, D)


def read_head(weights, D):
    """The classes, and the hidden layer of the classifier if it has one."""
    names = sorted(key for key in weights if re.fullmatch(r"head\.classify\.\d\.weight", key))
    require(names, "the classifier is missing")
    layers, width = [tensor(weights, name, 2) for name in names[-2:]], D
    for name, layer in zip(names[-2:], layers):  # the last decides num_classes, the other its width
        require(layer.shape[1] == width, "{} {} must read {}", name, tuple(layer.shape), width)
        width = len(layer)
    hidden = dict(head_mlp="tanh" if len(names) == 2 else "gelu", head_hidden=len(layers[0]))
    return dict(num_classes=width) | (hidden if len(names) > 1 else {})


def read_timesformer(weights, given, sizes):
    """Divided has keys of its own, joint a time table, space-only neither."""
    divided, timed = "blocks.0.steps.1.qkv.weight" in weights, "position.time" in weights
    attention = given.get("attention", "divided" if divided else "joint" if timed else "space")
    if attention != "space":
        require(timed, "the time table, time_embed, is missing; only attention='space' has none")
        return dict(attention=attention)
    for key in [key for key in weights if key.startswith("norm.")]:
        weights["head." + key] = weights.pop(key)  # frames are averaged before this norm
    return dict(attention="space", position="space", class_token="frame", norm_after_pool=True)


def read_motionformer(weights, given, sizes):
    """Trajectory or joint attention, positions of space and time apart or in one table."""
    attention = "trajectory" if "blocks.0.steps.0.proj_kv.weight" in weights else "joint"
    position = "joint" if "position.joint" in weights else "separate"
    return dict(attention=attention, position=position)


def read_xvit(weights, given, sizes):
    """How X-ViT mixes is in its configs only: by the number of classes, see from_released."""
    mixing = dict(moved=0.5) if sizes["num_classes"] == 174 else dict(moved=0.25, segment=8)
    options = dict(attention=[partial(ReleasedMixingAttention, **mixing)], class_token="frame")
    if "head.temporal.class_token" not in weights:
        return options | dict(head="class")
    depth = count_blocks(weights, "head.temporal.blocks.")
    return options | dict(head="temporal", head_depth=depth)


def read_lvt(weights, given, sizes):
    """One gate, two or none tell the fixation; the shifts are in the configs only, as X-ViT's."""
    gates = sum(f"blocks.0.steps.0.gate_{x}.weight" in weights for x in "qk")
    gates = dict(fixation="qkv", shared_gate=gates < 2) if gates else {}
    mixing = dict(moved=0.5) if sizes["num_classes"] == 174 else dict(moved=0.25, segment=8)
    steps = [partial(va.LinearAttention, axis="time", neighbours=True, **gates),
             partial(ReleasedLinearAttention, axis="space", neighbours=True, **mixing, **gates)]
    divided = "blocks.0.steps.1.qkv.weight" in weights
    stride = sizes["patch_size"][2] * 7 // 8  # 14 of 16
    return dict(attention=steps if divided else "linear", patch_stride=stride, position="time",
                class_token="none", depthwise=True, head="mean")


def read_vivit(weights, given, sizes):
    """Model 1, the only one that was released in this layout."""
    return dict(attention="joint", gelu="tanh", position="joint")


def read_clip(family, weights, given, sizes):
    """num_frames and image_size from the tables of positions; square unless image_size is given."""
    frames, rows, columns = sizes["patch_size"]
    size, space = {}, weights.get("position.space")
    if "image_size" not in given and space is not None:
        side = square_side(space.shape[1])
        size = dict(image_size=(side * rows, side * columns))
    if "position.joint" in weights:
        return size | read_joint(weights, size | given, sizes)
    if "position.time" in weights and "num_frames" not in given:
        T = weights["position.time"].shape[1]
        size |= dict(num_frames=T * frames)
        if family in ("xvit", "lvt") and T == 8:
            warnings.warn(f"{family}: no num_frames given, so the table of 8 starts over for 16")
            size |= dict(num_frames=16)
    return size


def read_joint(weights, given, sizes):
    """A table of all positions in the clip does not tell its frames from its rows and columns."""
    frames, rows, columns = sizes["patch_size"]
    positions = weights["position.joint"].shape[1]
    height, width = va.as_sizes(given.get("image_size", 224))[1:]
    S = (height // rows) * (width // columns)
    fitting = max(1, positions // max(S, 1)) * frames if "image_size" in given else 32
    T = given.get("num_frames", fitting)
    text = "a table of {} positions does not fit {} frames of {} x {} pixels: give image_size="
    require(S * (T // frames) == positions, text, positions, T, height, width)
    return dict(image_size=(height, width), num_frames=T)


def square_side(positions):
    """Rows, and columns, of a table that is square."""
    side = math.isqrt(positions)
    text = "a table of {} positions is not square: give the image_size=(height, width) it is for"
    require(side * side == positions, text, positions)
    return side


# ==== LOADING =====================================================================================
def from_released(family, state_dict, slip=True, **overrides):
    """A model in eval mode with released weights: from_released("timesformer", "K400.pyth").

    family      "timesformer", "motionformer", "xvit", "lvt", as the authors' files; "timesformer"
                and "vivit" in Hugging Face's layout
    state_dict  a path, or what the file held; the usual nestings and prefixes are taken off
    slip        False for a Motionformer that was trained without the slip, see values_as_released
    overrides   arguments of VideoTransformer. No tensor tells
                heads        64 channels each, unless LVT's gates tell
                num_frames   of the clips, and image_size, their pixels: tables are resized to them
                             as the release does, TimeSformer's to the nearest entry; X-ViT's and
                             LVT's 8 entries start over (for 16 frames unless given); a joint table
                             must fit
                attention    X-ViT and LVT with 174 classes (Something-Something) mix half of the
                             channels in the whole clip, else a quarter in segments of 8 frames
                             (Kinetics). Where blocks differ, give a function of the block's number:
                             lambda i: [ReleasedMixingAttention] if i > 8 else "space"
                With another num_classes the last layer is fresh, and a warning says so.

    ValueError lists what is missing, unexpected or misshapen. Three cuts cannot be detected, as the
    keys that are left are those of another model: a joint TimeSformer without its time table reads
    as space-only, a model of unusual width without its last blocks as a shallower one, an X-ViT or
    LVT without all of consensus. as one with the linear head new_fc, which they carry unused;
    attention="joint", depth= and head_mlp="gelu" make them an error.
    """
    known = ", ".join(FAMILIES)
    require(family in FAMILIES, "family={!r} is unknown; use one of {}", family, known)
    check_image_size(overrides)
    weights = read_weights(state_dict)
    source = f"these {len(weights)} tensors are not a released {family}"
    try:
        check_whole(family, weights)
        weights = renamed(weights, renames_of(family, weights))
        options = read_options(family, weights, overrides)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{source}: {error}"[:2000]) from None
    model = va.VideoTransformer(**options)
    weights = values_as_released(weights) if slip else weights
    weights = fit_tables(family, weights, model.position.grid)
    return load(model, fresh_classifier(model, weights), f"the {family} file").eval()


def read_options(family, weights, given):
    """All arguments of VideoTransformer, from the weights and from the caller."""
    read = dict(timesformer=read_timesformer, motionformer=read_motionformer, xvit=read_xvit,
                lvt=read_lvt, vivit=read_vivit)[family]
    sizes = read_sizes(weights, given)
    options = read(weights, given, sizes) | read_clip(family, weights, given, sizes)
    if "position.joint" in weights:  # Motionformer keeps the table that the joint one replaces
        weights.pop("position.space", None)
    return sizes | options | given


def fit_tables(family, weights, grid):
    """Tables of positions resized to the model's grid (T, H, W), as the release does."""
    T, H, W = grid
    space, time = weights.get("position.space"), weights.get("position.time")
    if space is not None and space.shape[1] != H * W:
        side = square_side(space.shape[1])
        weights["position.space"] = resized(family, space, (side, side), (H, W))
    if time is not None and time.shape[1] != T:
        if family in ("xvit", "lvt"):
            weights["position.time"] = time[:, torch.arange(T) % time.shape[1]]
        else:
            weights["position.time"] = resized(family, time, (time.shape[1],), (T,))
    return weights


def resized(family, table, old, new):
    """A table (1, prod(old), D) -> (1, prod(new), D), by the family's rule."""
    if family != "timesformer":
        return va.resize_positions(table, old, new)
    table = F.interpolate(table.transpose(1, 2).unflatten(2, old), size=new, mode="nearest")
    return table.flatten(2).transpose(1, 2)


def fresh_classifier(model, weights):
    """For another number of classes, the model's own last layer in the place of the file's."""
    own = model.state_dict()
    last = max(key for key in own if key.startswith("head.classify.")).removesuffix("weight")
    if last + "weight" in weights and len(weights[last + "weight"]) != len(own[last + "weight"]):
        old, new = len(weights[last + "weight"]), len(own[last + "weight"])
        warnings.warn(f"the file has {old} classes, the model {new}: its last layer is not trained")
        weights = weights | {key: own[key] for key in own if key.startswith(last)}
    return weights


def load(model, weights, source):
    """Fill the model, or raise one ValueError that lists all that is missing, unexpected or
    misshapen, and leave the model as it was."""
    own = model.state_dict()
    text = "the model is on the device meta, which holds no numbers: build it without torch.device"
    require(not any(x.is_meta for x in own.values()), text)
    shape = lambda x: tuple(x.shape)
    wrong = [f"{key} is missing" for key in own if key not in weights]
    wrong += [f"{key} is unexpected" for key in weights if key not in own]
    wrong += [f"{key} has shape {shape(x)}, the model's has {shape(own[key])}"
              for key, x in weights.items() if key in own and x.shape != own[key].shape]
    text = "{} does not fit, {} tensors are wrong: {}"
    require(not wrong, text, source, len(wrong), "; ".join(wrong))
    broken = [key for key, x in weights.items() if not x.isfinite().all()]
    if broken:
        warnings.warn(f"{source} holds NaN or infinity in {', '.join(broken)}"[:2000])
    model.load_state_dict(weights)
    return model


# ==== IMAGE WEIGHTS ===============================================================================
def central_frame_kernel(kernel, frames):
    """An image model's patch kernel for tubelets: zeros but for the central frame.

    (D, channels, p, q) -> (D, channels, frames, p, q). The tubelet model starts as the image model
    on the frame at frames // 2 of each tubelet: 1.6 points better on Kinetics-400 than an even
    spread (ViViT, table 1; also Motionformer).
    """
    is_tensor = isinstance(kernel, torch.Tensor)
    require(is_tensor, "kernel is of type {}, and must be a tensor", type(kernel).__name__)
    require(kernel.ndim == 4, "kernel {} must be (D, channels, p, q)", tuple(kernel.shape))
    frames = va.whole(frames, "frames")
    return F.pad(kernel.unsqueeze(2), (0, 0, 0, 0, frames // 2, (frames - 1) // 2))


def load_image_weights(model, state_dict):
    """Start a video model from an image transformer (timm's keys) as the papers do -> model.

    The patch kernel goes to the central frame of a tubelet, attention and its norm to every
    attention step, the table of positions is resized; a joint one repeats it for every frame. The
    table is of a square, or else has the model's own rows and columns. What an image model lacks
    stays as it was: the time table, layers that start at zero or that only video models have, the
    head.

    Unread stay the image model's classifier (head., pre_logits.) and, if the model has no class
    token, the image model's. ValueError for anything else that would be left unread, such as other
    blocks, layer scales or a video model's keys, and for a file without what every image model
    has; then the model is as it was.
    """
    fits = isinstance(model, va.VideoTransformer)
    require(fits, "{} is no VideoTransformer", type(model).__name__)
    image = renamed(read_weights(state_dict), IMAGE)
    kernel, depth = tensor(image, "patches.proj.weight", 5), count_blocks(image)
    require(kernel.shape[2] == 1, "{} is the patch kernel of a video model", tuple(kernel.shape))
    text = "the image model has {} blocks, this model {}"
    require(depth == len(model.blocks), text, depth, len(model.blocks))
    read = {"class_token", "position.for_class"} if model.class_token is None else set()
    weights = model.state_dict()
    sources = {key: image_name(model, key) for key in weights}
    for key, source in sources.items():
        if source in image:
            read.add(source)
            weights[key] = adapted(key, image[source], model, weights[key])
    unread = [key for key in image if key not in read]
    require(not unread, "this model has no place for {}", ", ".join(unread))
    check_image(image, sources.values())
    return load(model, weights, "the image model")


def check_image(image, sources):
    """ValueError unless the image model has all of `sources` that every image model has."""
    needed = [source for source in sources if source and IN_EVERY_IMAGE_MODEL.fullmatch(source)]
    missing = [source for source in dict.fromkeys(needed) if source not in image]
    text = "the image model is cut short, it lacks {} tensors that this model starts from: {}"
    require(not missing, text, len(missing), ", ".join(missing))


def image_name(model, key):
    """The weight of an image model that this one of a video model starts from, or None."""
    if key.startswith("head."):
        return key[5:] if key.startswith("head.norm.") else None
    step = re.match(r"blocks\.(\d+)\.steps\.(\d+)\.proj\.", key)
    if step and model.blocks[int(step[1])].steps[int(step[2])].zero_init == "proj":
        return None  # stays zero
    return re.sub(r"\.(steps|norms)\.\d+\.", r".\1.0.", key).replace(".joint", ".space")


def adapted(key, x, model, own):
    """A weight x of an image model in the shape of the video model's own."""
    if key == "patches.proj.weight":
        return central_frame_kernel(x.squeeze(2), own.shape[2])
    if key not in ("position.space", "position.joint"):
        return x
    T, H, W = model.position.grid
    side = math.isqrt(x.shape[1])
    old = (side, side) if side * side == x.shape[1] else (H, W)
    text = "a table of {} positions is not square and not the model's {} x {}: build the model "
    text += "with the image model's image_size, in calls of another the positions are interpolated"
    require(math.prod(old) == x.shape[1], text, x.shape[1], H, W)
    frames = T if key == "position.joint" else 1
    return va.resize_positions(x, old, (H, W)).repeat(1, frames, 1)
