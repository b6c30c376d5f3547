"""The moving-object data set: does the object drift to the right or to the left?

A bright textured object of random shape and colours crosses a dimmer random texture, both on a
torus: what leaves on one side comes back on the other. Every clip is made with the object moving
right, from a position drawn uniformly; a clip labelled "left" is such a clip played backwards.
Three things follow, exactly:

    look            shape, colours and texture are drawn without a look at the label
    one frame       has the same distribution for either label, whichever frame it is
    time reversal   a clip played backwards is the clip of the other label; so the bag of its
                    frames, without order, is the same for both, and whatever ignores order has a
                    ceiling of 1/2

With camera=True the camera wanders sideways, and the label is the direction relative to the
background. The object's path in the image then tells the label of some clips only: path_tells(),
image_path_ceiling().
"""

from collections import Counter
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

CLASSES = ("right", "left")
FRAMES, SIZE = 4, 16  # a clip is FRAMES images of SIZE x SIZE pixels
OBJECT, BLOCK = 8, 2  # pixels: the width of an object, and of the one-colour blocks of textures
SPEED = 1  # pixels a frame, relative to the background
CAMERA_STEPS = (-2, 0, 2)  # pixels sideways between two frames, drawn anew each time: whole blocks
DIM, BRIGHT = (0, 144), (112, 256)  # colours of background and objects: low..high-1 of 0..255


class Clips(NamedTuple):
    """What moving_objects returns, for B clips of T frames of H x W pixels.

    video   (B, 3, T, H, W) float32 in [-1, 1], exactly u / 127.5 - 1 for some uint8 u
    label   (B,) int64, an index into CLASSES
    path    (B, T, 2) float32, the object's centre (row, column) in the image: pixels from the
            centre of the first pixel, modulo (H, W)
    """

    video: torch.Tensor
    label: torch.Tensor
    path: torch.Tensor


def moving_objects(batch, seed=0, camera=False, labels=None, **options):
    """`batch` clips of the plain task, or of the one with a moving camera -> Clips.

    The same arguments give the same clips. `seed` is an int or a sequence of ints.

    labels      (B,) 0 or 1 fixes the labels and leaves all else as drawn: with labels=1 - label
                every clip is played backwards, bit for bit, whatever the options
    size        pixels, an int or (rows, columns), even numbers
    frames      T; with 1 nothing tells the direction
    speed       pixels a frame, relative to the background
    background  False makes it one colour, the mean of all backgrounds; objects stay as they were
    crossing    a second object moves the other way in the same rows; the one that the label is
                about carries a white border in one frame, drawn uniformly
    appearance  the label is the object's shape, a square or a cross; it moves either way
    """
    video, label, path = make(batch, seed, camera, labels, **options)
    video = torch.from_numpy(video.astype(np.float32)) / 127.5 - 1
    return Clips(video, torch.from_numpy(label), torch.from_numpy(path))


def make(
    batch, seed=0, camera=False, labels=None, *, size=SIZE, frames=FRAMES, speed=SPEED,
    background=True, crossing=False, appearance=False,
):  # fmt: skip
    """The same clips in numpy: video (B, 3, T, H, W) uint8, label (B,), path (B, T, 2)."""
    H, W = (size, size) if isinstance(size, int) else size
    assert H % BLOCK == W % BLOCK == 0 and min(H, W) >= OBJECT, f"size {(H, W)}: even, {OBJECT} up"
    assert frames >= 1 and frames % 1 == 0, f"frames={frames}"
    assert 1 <= speed < W // 2, f"speed={speed}: 1 to {W // 2 - 1} pixels a frame on {W} columns"
    rng = np.random.default_rng(seed)
    label = rng.integers(len(CLASSES), size=batch)
    if labels is not None:
        label = np.asarray(labels)
        assert label.shape == (batch,) and np.isin(label, (0, 1)).all(), "labels: one 0 or 1 a clip"
    scene = texture(rng, (batch, H, W), DIM)  # (B, H, W, 3)
    mask, look = new_object(rng, batch, H, W)
    if appearance:
        mask = shapes(H, W)[3 * label]
    steps = speed * np.arange(frames)[:, None] * np.array([0, 1])  # (T, 2)
    place = new_places(rng, batch, H, W) + steps  # (B, T, 2)
    view = camera_walk(rng, batch, frames) if camera else np.zeros_like(place)  # (B, T, 2)

    scene = scene if background else np.full_like(scene, (DIM[1] - 1) // 2)
    video = moved(scene, -view)  # (B, T, H, W, 3)
    if crossing:
        sideways = new_places(rng, batch, H, W) * np.array([0, 1])
        other = new_object(rng, batch, H, W)
        video = pasted(video, *other, place + sideways - 2 * steps - view)
    video = pasted(video, mask, look, place - view)
    if crossing:
        video = with_mark(video, rng, place - view)
    path = ((place - view + (OBJECT - 1) / 2) % (H, W)).astype(np.float32)  # (B, T, 2)
    left = label == CLASSES.index("left")
    if appearance:
        left = rng.integers(2, size=batch) == 1
    video[left], path[left] = video[left, ::-1], path[left, ::-1]  # played backwards
    return np.ascontiguousarray(video.transpose(0, 4, 1, 2, 3)), label, path


def texture(rng, shape, colours):
    """Images (B, H, W, 3) of uint8, blocks of BLOCK x BLOCK pixels with uniformly drawn colours."""
    B, H, W = shape
    blocks = rng.integers(*colours, size=(B, H // BLOCK, W // BLOCK, 3), dtype=np.uint8)
    return blocks.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)


def new_object(rng, batch, H, W):
    """Masks (B, H, W, 1) and looks (B, H, W, 3) of objects in the first rows and columns."""
    look = texture(rng, (batch, H, W), BRIGHT)
    return shapes(H, W)[rng.integers(4, size=batch)], look


def new_places(rng, batch, H, W):
    """Rows and columns (B, 1, 2), uniform on the torus."""
    bound = H if H == W else (H, W)
    return rng.integers(bound, size=(batch, 1, 2))


def distances(H, W):
    """Rows (H, W) and columns (H, W) from a pixel to the centre of an object, on the torus."""
    far = [(np.arange(n) - (OBJECT - 1) / 2 + n / 2) % n - n / 2 for n in (H, W)]
    return np.abs(np.meshgrid(*far, indexing="ij"))


def shapes(H, W):
    """Masks (4, H, W, 1): a square, a disk, a diamond and a cross, OBJECT pixels wide."""
    row, column = distances(H, W)
    near, far, r = np.minimum(row, column), np.maximum(row, column), OBJECT / 2
    disk, diamond = row**2 + column**2 < r**2, row + column <= r
    return np.stack([far < r, disk, diamond, (far < r) & (near < r / 2)])[..., None]


def moved(image, by):
    """Images (B, H, W, c) moved on the torus by (B, T, 2) rows and columns: (B, T, H, W, c)."""
    B, H, W = image.shape[:3]
    clip = np.arange(B)[:, None, None, None]
    rows, columns = (np.arange(H) - by[..., :1]) % H, (np.arange(W) - by[..., 1:]) % W
    return image[clip, rows[..., :, None], columns[..., None, :]]


def pasted(video, mask, look, place):
    """The video (B, T, H, W, 3) with an object at (B, T, 2) rows and columns in front of it."""
    return np.where(moved(mask, place), moved(look, place), video)


def with_mark(video, rng, place):
    """A white border, one pixel around what is at (B, T, 2), in one frame of each clip."""
    B, T, H, W, _ = video.shape
    marked = rng.integers(T, size=(B, 1)) == np.arange(T)  # (B, T)
    ring = np.maximum(*distances(H, W)) == OBJECT / 2 + 0.5  # (H, W)
    ring = np.broadcast_to(ring[..., None], (B, H, W, 1))
    ring = moved(ring, place) & marked[:, :, None, None, None]  # (B, T, H, W, 1)
    return np.where(ring, np.uint8(255), video)


def camera_walk(rng, batch, frames):
    """Where the camera looks, (B, T, 2) rows and columns: a random walk sideways, from the origin.

    Steps of whole blocks leave a background as likely as it was: all frames have one distribution.
    """
    walk = np.zeros((batch, frames, 2), dtype=np.int64)
    walk[:, 1:, 1] = rng.choice(CAMERA_STEPS, size=(batch, frames - 1)).cumsum(axis=1)
    return walk


# ==== WHAT THE OBJECT'S PATH IN THE IMAGE TELLS, WITH A MOVING CAMERA ============================
def path_odds(path=None):
    """The chance (B,) of "right" given the paths (B, T, 2) of clips of SIZE columns and SPEED; left
    out, given each path that "right" can have, all equally likely.

    Each step in the image is the speed less the camera's, modulo SIZE; played backwards, the same
    steps negated, in reverse order.
    """
    walks = product(CAMERA_STEPS, repeat=(FRAMES if path is None else path.shape[1]) - 1)
    right = [tuple((SPEED - step) % SIZE for step in walk) for walk in walks]
    left = Counter(tuple(-step % SIZE for step in reversed(walk)) for walk in right)
    seen, right = right, Counter(right)
    if path is not None:
        steps = path.diff(dim=1)[..., 1].round().long() % SIZE  # (B, T - 1)
        seen = [tuple(walk) for walk in steps.tolist()]
    assert right.keys() | left >= set(seen), f"no camera makes such a path with {SIZE=}, {SPEED=}"
    return torch.tensor([right[walk] / (right[walk] + left[walk]) for walk in seen])


def path_tells(path):
    """(B,) bool: with a moving camera, does the object's path in the image settle the label?"""
    return path_odds(path) % 1 == 0


def image_path_ceiling(path=None):
    """The best accuracy with a moving camera for a model that sees the object's path alone: of the
    clips that show the same steps, the more frequent label is the guess. With the paths (B, T, 2) of
    a set of clips, what is to be expected on that set; without, the mean over all sets.
    """
    odds = path_odds(path).double()
    return torch.maximum(odds, 1 - odds).mean().item()
