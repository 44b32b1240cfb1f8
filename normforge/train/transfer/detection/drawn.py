"""Scenes drawn by the program: shapes or fractals with their masks; nothing to fetch, the same on every machine.

One to five objects of six classes lie on a smooth background, later ones before earlier ones; noise is on top. A mask
is what of an object can be seen. As in `normforge.train.data.fractals`, only raw words of PCG64 and + - * / and
comparisons of float64 are used, which are rounded alike everywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from normforge.cache import digest, entry
from normforge.streams import stream
from normforge.train.data.fractals import Attractors
from normforge.train.transfer.detection.scene import Scene
from normforge.train.transfer.detection.settings import Drawn

VERSION = 1
"""Of the drawing; a change of any image is a new version."""

SHAPES = ("disc", "square", "triangle", "ring", "cross", "crescent")
FRACTALS = tuple(f"fractal {k}" for k in range(len(SHAPES)))
_RADIUS = (0.09, 0.23)  # of a shape, and half the side of a fractal, in sides of the image
_VISIBLE = 0.35  # least share of an object that is seen, or it is no instance
_LEAST = 12  # pixels of an instance
_COARSE = 4  # cells of the background's grid on a side
_NOISE = 0.08


@dataclass(frozen=True)
class DrawnScenes:
    """A part of a drawn data set.

    Attributes:
        names: of the classes. digest: of all its images and instances.
        images: (N, 3, S, S) of uint8.
        instances: (N, S, S) of uint8: 0, or 1 + the number of the instance that is seen in a pixel.
        labels: (N, 5) of int64: of each instance, from 1 on; 0 where there are fewer.
    """

    names: tuple[str, ...]
    digest: str
    images: torch.Tensor
    instances: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Scene:
        labels = self.labels[index][self.labels[index] > 0]
        masks = self.instances[index] == torch.arange(1, len(labels) + 1)[:, None, None]
        return Scene(
            self.images[index],
            boxes_of(masks),
            labels,
            masks.to(torch.uint8),
            torch.zeros(len(labels), dtype=torch.bool),
        )


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """(n, 4) of float32: the boxes around masks (n, H, W) that are not empty; a pixel is 1 wide."""
    boxes = torch.zeros(len(masks), 4)
    for k, mask in enumerate(masks):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        boxes[k] = torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1], dtype=torch.float32)
    return boxes


def drawn(source: str, options: Drawn, seed: int) -> tuple[DrawnScenes, DrawnScenes, DrawnScenes]:
    """Scenes for training, validation and test; scene i needs no other scene.

    They are kept in the cache directory, so that only the first of many processes draws them.

    Args:
        source: shapes or fractals.
        options: how many, of which size.
        seed: of everything that is drawn.
    """

    def build(path: Path) -> None:
        images, instances, labels = draw(source, options, seed)
        with path.open("wb") as file:
            np.savez(file, images=images, instances=instances, labels=labels)

    key = digest("scenes", str(VERSION), source, str(seed), json.dumps(options.model_dump(), sort_keys=True))
    with np.load(entry(key, ".npz", build), allow_pickle=False) as stored:
        arrays = [torch.from_numpy(stored[name]) for name in ("images", "instances", "labels")]
    names = SHAPES if source == "shapes" else FRACTALS
    counts = [options.train, options.validation, options.test]
    parts = zip(*(array.split(counts) for array in arrays), strict=True)
    train, validation, test = (DrawnScenes(names, key, *part) for part in parts)
    return train, validation, test


def draw(source: str, options: Drawn, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images, instances and labels of all parts, as in `DrawnScenes`, past the cache."""
    count, size = options.train + options.validation + options.test, options.size
    attractors = Attractors(seed, len(FRACTALS)) if source == "fractals" else None
    images = np.empty((count, 3, size, size), np.uint8)
    instances = np.zeros((count, size, size), np.uint8)
    labels = np.zeros((count, options.objects), np.int64)
    for i in range(count):
        images[i], instances[i], labels[i] = _scene(stream(seed, f"scene of {source}", i), options, attractors)
    return images, instances, labels


def _scene(
    rng: np.random.Generator, options: Drawn, attractors: Attractors | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = options.size
    image, over = _background(rng, size), np.zeros((size, size), np.int64)
    number = 1 + _whole(rng, options.objects)
    kinds, areas = [], []
    for k in range(number):
        kind = _whole(rng, len(SHAPES))
        mask, shade = _shape(rng, kind, size) if attractors is None else _fractal(rng, kind, size, attractors)
        colour = _uniform(rng, 3)[:, None, None]
        image = np.where(mask, colour * shade, image)
        over[mask] = k + 1
        kinds.append(kind)
        areas.append(int(mask.sum()))
    # Those that others hide, or that are a few pixels at the border, are no instances.
    instances, labels = np.zeros((size, size), np.uint8), np.zeros(options.objects, np.int64)
    found = 0
    for k, (kind, area) in enumerate(zip(kinds, areas, strict=True)):
        seen = over == k + 1
        if seen.sum() >= max(_LEAST, _VISIBLE * area):
            found += 1
            instances[seen], labels[found - 1] = found, kind + 1
    quarters = _uniform(rng, 4 * image.size).reshape(*image.shape, 4)
    normal = (quarters[..., 0] + quarters[..., 1] + quarters[..., 2] + quarters[..., 3] - 2) * 1.7320508
    noisy = 255 * (image + options.difficulty * _NOISE * normal)
    return np.clip(noisy, 0, 255).astype(np.uint8), instances, labels


def _uniform(rng: np.random.Generator, count: int) -> np.ndarray:
    """Uniform in [0, 1)."""
    words: np.ndarray = rng.bit_generator.random_raw(count)
    return (words >> np.uint64(11)) * 2.0**-53


def _whole(rng: np.random.Generator, below: int) -> int:
    return int(_uniform(rng, 1)[0] * below)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(3, size, size) in [0.1, 0.9]: a coarse random grid, interpolated."""
    grid = 0.1 + 0.8 * _uniform(rng, 3 * (_COARSE + 1) ** 2).reshape(3, _COARSE + 1, _COARSE + 1)
    at = (np.arange(size) + 0.5) * _COARSE / size
    cell = at.astype(np.int64)
    share = at - cell
    rows = grid[:, cell] * (1 - share)[:, None] + grid[:, cell + 1] * share[:, None]
    smooth: np.ndarray = rows[:, :, cell] * (1 - share) + rows[:, :, cell + 1] * share
    return smooth


def _shape(rng: np.random.Generator, kind: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The mask (size, size) of a shape somewhere in the image, and the stripes on it."""
    drawn = _uniform(rng, 8)
    radius = size * (_RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * drawn[0])
    middle = radius * 0.6 + (size - radius * 1.2) * drawn[1:3]
    t = 4 * (drawn[3] - 0.5)  # the tangent of half the angle
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    y, x = (np.mgrid[:size, :size] + 0.5 - middle[:, None, None]) / radius
    u, v = cosine * x + sine * y, cosine * y - sine * x
    square = u * u + v * v
    inside = (
        lambda: square <= 0.9,
        lambda: np.maximum(np.abs(u), np.abs(v)) <= 0.75,
        lambda: (v <= 0.65) & (v >= 1.9 * np.abs(u) - 0.95),
        lambda: (square <= 0.9) & (square >= 0.3),
        lambda: np.minimum(np.abs(u), np.abs(v)) <= 0.3,
        lambda: (square <= 0.9) & ((u - 0.5) * (u - 0.5) + v * v >= 0.5),
    )[kind]()
    if kind == SHAPES.index("cross"):
        inside = inside & (np.maximum(np.abs(u), np.abs(v)) <= 0.9)
    stripes = (drawn[4] - 0.5) * u + (drawn[5] - 0.5) * v
    phase = stripes * (2 + 6 * drawn[6])
    return inside, np.where(phase - np.floor(phase) < 0.5, 1.0, 0.3 + 0.7 * drawn[7])


def _fractal(rng: np.random.Generator, kind: int, size: int, attractors: Attractors) -> tuple[np.ndarray, np.ndarray]:
    """The mask (size, size) of a fractal somewhere in the image, and its density."""
    drawn = _uniform(rng, 3)
    side = int(2 * size * (_RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * drawn[0]))
    counts = attractors.draw(kind, side, rng)
    top, left = (drawn[1:] * (size - side + 1)).astype(np.int64)
    mask, shade = np.zeros((size, size), bool), np.ones((size, size))
    mask[top : top + side, left : left + side] = _closed(counts > 0)
    shade[top : top + side, left : left + side] = 0.35 + 0.65 * counts / (counts + 2.0)
    return mask, shade


def _closed(points: np.ndarray) -> np.ndarray:
    """Holes of a pixel closed: a pixel between points is one."""

    def widened(mask: np.ndarray) -> np.ndarray:
        out = mask.copy()
        for axis in (0, 1):
            padded = np.pad(out, [(1, 1) if a == axis else (0, 0) for a in (0, 1)])
            n = out.shape[axis]
            out = out | padded.take(range(n), axis) | padded.take(range(2, n + 2), axis)
        return out

    closed: np.ndarray = ~widened(~widened(points)) | points
    return closed
