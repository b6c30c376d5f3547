"""A start from an image transformer, as the papers do."""

import math
import re

import torch.nn.functional as F

import video_attention as va

from .files import fill, read_weights
from .released import renamed

# What of a video model starts from an image model; the rest stays as it was.
STARTS = re.compile(
    r"class_token|position\.(space|joint|for_class)|(patches\.proj|norm|head\.norm)\..+"
    r"|blocks\.\d+\.(norms\.\d+|steps\.\d+\.(qkv|proj)|mlp_norm|mlp\.fc[12])\..+"
)


def load_image_weights(model, weights):
    """Start a video model from an image transformer (timm's keys) as the papers do -> model. Build
    it with position="separate", "space" or "joint", to which the table of positions belongs.

    The patch kernel goes to the central frame of a tubelet (ViViT, table 1), attention and its norm
    to every attention step, the table of positions is resized; a joint one repeats it for every
    frame. What an image model lacks stays as it was: the time table, layers that start at zero or
    that only video models have, the head. Unread stay the image model's classifier and, if the
    model has no class token, the image model's.

    One ValueError lists what else would be left unread, what is missing and what is misshapen; then
    the model is as it was. The table of positions may have a row for the class token or not (timm's
    no_embed_class); it has the model's rows and columns, or is of a square.
    """
    image, own = renamed(read_weights(weights), "image"), model.state_dict()
    kernel, frames = image.get("patches.proj.weight"), model.patches.proj.kernel_size[0]
    if kernel is not None and kernel.shape[2:3] == (1,):  # zeros but for the frame frames // 2
        padding = (0, 0, 0, 0, frames // 2, (frames - 1) // 2)
        image["patches.proj.weight"] = F.pad(kernel, padding)
    if "position.space" in image and image["position.space"].ndim == 3:
        fit_table(image, *model.position.grid)
    zero = [n for n, x in model.named_modules() if getattr(x, "zero_init", None) == "proj"]
    zero = tuple(f"{name}.proj." for name in zero)
    sources = {}
    for key in own:
        if STARTS.fullmatch(key) and not key.startswith(zero):
            sources[key] = re.sub(r"\.(steps|norms)\.\d+\.", r".\1.0.", key)
        if key.startswith("head.norm.") and key not in image:
            sources[key] = key.removeprefix("head.")
    unread = {"position.joint"} if model.position.joint is None else {"position.space"}
    unread |= {"class_token", "position.for_class"} if model.class_token is None else set()
    filled = {key: x for key, x in own.items() if key not in sources}
    filled |= {key: image[name] for key, name in sources.items() if name in image}
    left = sorted(image.keys() - sources.values() - unread)
    source = "the image model"
    if model.position.space is None and model.position.joint is None:
        source += ', whose positions need a video model with position="separate",'
    fill(model, filled | {f"{name} (unread)": image[name] for name in left}, source)
    return model


def fit_table(image, T, H, W):
    """The table of positions, its row for the class token apart, in the sizes of the model."""
    table = image["position.space"]
    n, side = table.shape[1], math.isqrt(table.shape[1])
    C = 0 if n == H * W or (n != 1 + H * W and side * side == n) else 1
    row, table = table[:, :1] if C else table[:, :1] * 0, table[:, C:]
    old = (H, W) if n - C == H * W else (math.isqrt(n - C), math.isqrt(n - C))
    if math.prod(old) == n - C:  # else it is misshapen
        table = va.resize_positions(table, old, (H, W))
    image["position.for_class"], image["position.space"] = row, table
    image["position.joint"] = table.repeat(1, T, 1)
