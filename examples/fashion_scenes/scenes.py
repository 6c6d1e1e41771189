"""Pictures of Fashion-MNIST items that stand on a floor in front of a wall, with class and depth of every pixel.

A pinhole camera looks along the floor. An item at distance z (1 = nearest place an item may stand) has its foot
`FOOT / z` rows below the horizon and is `SIZE / z` pixels high and wide, so nearer items are larger and stand lower
in the picture. Items are painted from far to near and hide one another.
"""

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Float = NDArray[np.float32]
Byte = NDArray[np.uint8]

DATA = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package dataset-fashion-mnist puts it
CLASS_NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
               "background")  # fmt: skip
BACKGROUND = 10
HEIGHT, WIDTH = 64, 128  # pixels
ITEM = 28  # pixels along the edge of a Fashion-MNIST picture

HORIZON = (10.0, 14.0)  # row, drawn anew for each scene
FOOT, SIZE = 49.0, 46.0  # pixels at distance 1: foot below the horizon, edge of the item's picture
NEAR, FAR, WALL = 1.0, 3.2, 4.0  # distance of the nearest item, the farthest item, and the wall
MASK = 0.06  # an item's pixel is part of the item where it is brighter than this
ITEMS = (2, 6)  # fewest and most items of a scene


@dataclass(frozen=True)
class Items:
    """Fashion-MNIST pictures [n, 28, 28] in [0, 1] and their classes [n] in 0..9."""

    pictures: Float
    classes: Byte


@dataclass(frozen=True)
class Scenes:
    """Pictures [n, 64, 128] in [0, 1], class 0..10 per pixel, and depth per pixel (1 = the wall)."""

    images: Float
    classes: Byte
    depth: Float

    def __len__(self) -> int:
        return len(self.images)


def read_idx(path: Path) -> Byte:
    """The unsigned bytes of a gzipped IDX file, in its own shape."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} must be an IDX file of unsigned bytes, not one that begins with {data[:3]!r}")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load_items(part: Literal["train", "test"], folder: Path = DATA) -> Items:
    """The 60 000 training or 10 000 test items."""
    prefix = {"train": "train", "test": "t10k"}[part]
    pictures = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    return Items(pictures.astype(np.float32) / np.float32(255), read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"))


@cache
def resampling(source: int, target: int) -> Float:
    """Matrix [target, source] that resizes a column linearly, with a wider filter where it shrinks."""
    ratio = source / target
    centre = (np.arange(target)[:, None] + 0.5) * ratio - 0.5
    weight = np.maximum(0, 1 - np.abs(np.arange(source) - centre) / max(ratio, 1.0))
    matrix: Float = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
    return matrix


def resize(picture: Float, size: int) -> Float:
    """A square picture at `size` pixels along its edge."""
    matrix = resampling(len(picture), size)
    return np.asarray(matrix @ picture @ matrix.T, np.float32)


def background(rng: Generator, horizon: float) -> tuple[Float, Float]:
    """Picture and depth [64, 128] of the empty room: a mottled wall and a floor that grows brighter towards us."""
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None] + 0.5
    distance = np.minimum(WALL, FOOT / np.maximum(rows - horizon, 1e-3))
    wall, far, near = rng.uniform(0.1, 0.6, 3)
    floor = far + (near - far) * (1 / distance - 1 / WALL) / (1 / NEAR - 1 / WALL)
    texture = resampling(4, HEIGHT) @ rng.normal(0, 0.05, (4, 8)).astype(np.float32) @ resampling(8, WIDTH).T
    image = np.where(distance < WALL, floor, wall) + texture
    depth = np.broadcast_to(distance / WALL, (HEIGHT, WIDTH))
    return image.astype(np.float32), depth.astype(np.float32)


def place(item: Float, distance: float, horizon: float, centre: float) -> tuple[Float, int, int]:
    """The item resized for its distance, and the row and column of its upper left corner (may lie outside)."""
    patch = resize(item, round(SIZE / distance))
    lowest = int(np.flatnonzero((patch > MASK).any(1))[-1])
    top = round(horizon + FOOT / distance) - 1 - lowest
    return patch, top, round(centre - patch.shape[1] / 2)


def paint(scene: Scenes, index: int, patch: Float, top: int, left: int, label: int, depth: float) -> None:
    """Draws a patch into scene `index` where the item's mask covers it; what falls outside is cut off."""
    height, width = patch.shape
    rows = slice(max(top, 0), min(top + height, HEIGHT))
    columns = slice(max(left, 0), min(left + width, WIDTH))
    visible = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    mask = visible > MASK
    scene.images[index, rows, columns][mask] = visible[mask]
    scene.classes[index, rows, columns][mask] = label
    scene.depth[index, rows, columns][mask] = depth


def draw(scene: Scenes, index: int, items: Items, rng: Generator) -> None:
    """Fills scene `index` with a room and 2 to 6 items, far ones first."""
    horizon = rng.uniform(*HORIZON)
    scene.images[index], scene.depth[index] = background(rng, horizon)
    scene.classes[index] = BACKGROUND
    count = rng.integers(ITEMS[0], ITEMS[1] + 1)
    # Evenly spread 1/z spreads the feet evenly over the rows of the picture.
    distances = np.sort(1 / rng.uniform(1 / FAR, 1 / NEAR, count))[::-1]
    for distance, choice in zip(distances.tolist(), rng.integers(len(items.classes), size=count).tolist(), strict=True):
        picture = items.pictures[choice] * np.float32(rng.uniform(0.75, 1.0))
        patch, top, left = place(picture, distance, horizon, rng.uniform(6, WIDTH - 6))
        paint(scene, index, patch, top, left, int(items.classes[choice]), distance / WALL)
    light = rng.uniform(0.85, 1.0)
    noise = rng.normal(0, 0.02, (HEIGHT, WIDTH))
    scene.images[index] = np.clip(scene.images[index] * light + noise, 0, 1)


def make_scenes(count: int, items: Items, rng: Generator) -> Scenes:
    """`count` random scenes; the same generator state gives the same scenes."""
    shape = (count, HEIGHT, WIDTH)
    scenes = Scenes(np.empty(shape, np.float32), np.empty(shape, np.uint8), np.empty(shape, np.float32))
    for index in range(count):
        draw(scenes, index, items, rng)
    return scenes
