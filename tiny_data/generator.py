"""The moving-object data set: does the object drift to the right or to the left?

A bright textured object of random shape and colours crosses a dimmer random texture, both on a torus: what
leaves on one side comes back on the other. Every clip is made with the object moving right, from a place
drawn uniformly; a clip labelled "left" is such a clip played backwards. Three things follow, exactly:

    look            shape, colours and texture are drawn without a look at the label
    one frame       has the same distribution for either label, whichever frame it is
    time reversal   a clip played backwards is the clip of the other label; so the bag of its frames, without
                    order, is the same for both, and whatever ignores order has a ceiling of 1/2

With camera=True the camera wanders sideways, and the label is the direction relative to the background. The
object's path in the image tells it only in part: image_path_ceiling().
"""

from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

CLASSES = ("right", "left")
FRAMES, SIZE = 4, 16  # a clip is FRAMES images of SIZE x SIZE pixels
OBJECT, BLOCK = 8, 2  # pixels: the width of an object, and of the one-colour blocks that textures are made of
SPEED = 1  # pixels a frame, relative to the background
CAMERA_STEPS = (-2, 0, 2)  # pixels sideways between two frames, drawn anew each time: whole blocks


class Clips(NamedTuple):
    """What moving_objects returns, for B clips of T = FRAMES frames of H = W = SIZE pixels.

    video   (B, 3, T, H, W) float32 in [-1, 1], exactly u / 127.5 - 1 for some uint8 u
    label   (B,) int64, an index into CLASSES
    path    (B, T, 2) float32, the object's centre (row, column) in the image: pixels from the centre of the
            first pixel, modulo SIZE
    """

    video: torch.Tensor
    label: torch.Tensor
    path: torch.Tensor


def moving_objects(batch, seed=0, camera=False, labels=None):
    """`batch` clips of the plain split, or of the one with a moving camera; the same seed, the same clips.

    `labels` (B,) fixes the labels and leaves all else as drawn: moving_objects(B, seed, labels=1 - label) is
    moving_objects(B, seed) with every clip played backwards, bit for bit, with or without a moving camera.
    """
    video, label, path = make(batch, seed, camera, labels)
    video = torch.from_numpy(video.astype(np.float32)) / 127.5 - 1
    return Clips(video, torch.from_numpy(label), torch.from_numpy(path))


def make(batch, seed, camera, labels=None):
    """The same clips in numpy: video (B, 3, T, H, W) uint8, label (B,), path (B, T, 2)."""
    rng = np.random.default_rng(seed)
    label = rng.integers(len(CLASSES), size=batch)
    background = texture(rng, batch, 0, 144)  # (B, H, W, 3)
    look = texture(rng, batch, 112, 256)  # (B, H, W, 3)
    mask = shapes()[rng.integers(len(shapes()), size=batch)]  # (B, H, W, 1)
    place = rng.integers(SIZE, size=(batch, 1, 2)) + SPEED * np.arange(FRAMES)[:, None] * np.array([0, 1])
    view = camera_walk(rng, batch) if camera else np.zeros_like(place)  # (B, T, 2), as place is

    video = np.where(moved(mask, place - view), moved(look, place - view), moved(background, -view))
    path = ((place - view + (OBJECT - 1) / 2) % SIZE).astype(np.float32)  # (B, T, 2)
    label = label if labels is None else np.asarray(labels, dtype=np.int64)
    left = label == CLASSES.index("left")
    video[left], path[left] = video[left, ::-1], path[left, ::-1]  # played backwards
    return np.ascontiguousarray(video.transpose(0, 4, 1, 2, 3)), label, path


def texture(rng, batch, low, high):
    """Images (B, H, W, 3) of uint8 blocks of BLOCK x BLOCK pixels, their colours uniform in low..high-1."""
    blocks = rng.integers(low, high, size=(batch, SIZE // BLOCK, SIZE // BLOCK, 3), dtype=np.uint8)
    return blocks.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)


def shapes():
    """Masks (4, H, W, 1): a square, a disk, a diamond and a cross, OBJECT pixels wide, in one corner."""
    row, column = np.abs(np.mgrid[:SIZE, :SIZE] - (OBJECT - 1) / 2)  # distance from the object's centre
    near, far, r = np.minimum(row, column), np.maximum(row, column), OBJECT / 2
    masks = far < r, row**2 + column**2 < r**2, row + column <= r, (far < r) & (near < r / 2)
    return np.stack(masks)[..., None]


def moved(image, by):
    """Images (B, H, W, c) moved on the torus by (B, T, 2) rows and columns: (B, T, H, W, c)."""
    clip = np.arange(len(image))[:, None, None, None]
    pixel = np.arange(SIZE)
    rows, columns = (pixel - by[..., :1]) % SIZE, (pixel - by[..., 1:]) % SIZE  # (B, T, H), (B, T, W)
    return image[clip, rows[..., :, None], columns[..., None, :]]


def camera_walk(rng, batch):
    """Where the camera looks, (B, T, 2) rows and columns: a random walk sideways, from the origin.

    On a torus of independent blocks a step of whole blocks leaves a background as likely as it was, so that
    with a camera, too, all frames of a clip have one distribution.
    """
    walk = np.zeros((batch, FRAMES, 2), dtype=np.int64)
    walk[:, 1:, 1] = rng.choice(CAMERA_STEPS, size=(batch, FRAMES - 1)).cumsum(axis=1)
    return walk


def image_path_ceiling():
    """The best expected accuracy on the camera split for a model that sees the object's path alone.

    The path is a uniform start, which tells nothing, and FRAMES - 1 steps on the torus, each SPEED less the
    camera's step; played backwards, the same steps negated, in reverse order. If r walks to the right and l
    to the left show the same steps, the best guess is right max(r, l) times out of r + l.
    """
    walks = list(product(CAMERA_STEPS, repeat=FRAMES - 1))
    right = [tuple((SPEED - step) % SIZE for step in walk) for walk in walks]
    left = [tuple(-step % SIZE for step in reversed(walk)) for walk in right]
    return sum(max(right.count(seen), left.count(seen)) for seen in set(right + left)) / (2 * len(walks))


if __name__ == "__main__":  # write the committed file: 256 clips a split
    arrays = {}
    for name, camera in (("plain", False), ("camera", True)):
        video, label, path = make(256, seed=0, camera=camera)
        arrays |= {f"{name}_video": video, f"{name}_label": label, f"{name}_path": path}
    np.savez_compressed(Path(__file__).with_name("moving_objects.npz"), **arrays)
