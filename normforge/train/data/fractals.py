"""Images of iterated function systems, drawn by the program: nothing to fetch, and the same bits on every machine.

After FractalDB (Kataoka et al., Pre-training without Natural Images, ACCV 2020): a class is a random system of affine
contractions whose attractor fills enough of its square; an image is the chaos game on it, the coefficients moved a
little, the attractor turned, noise on top.

Only the raw words of PCG64, which NumPy keeps stable, and + - * / and comparisons of float64 are used, one operation
an array at a time. Each of them is rounded alike everywhere, which sines, logarithms, sums of floats and products of
matrices are not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normforge.cache import digest, entry
from normforge.errors import OptionError
from normforge.streams import stream
from normforge.train.config import Fractals
from normforge.train.data.arrays import Arrays

VERSION = 1
"""Of the generator; a change of any image is a new version."""

# At difficulty 1. Of nineteen settings tried these tell layers apart best: turning parts bn-relu from evonorm-s0, and
# systems that fill much of their square part both from the rest, where more noise parts the seeds of a layer too.
_JITTER, _TURN, _NOISE = 0.15, 3.0, 0.15
_MAPS = 6  # at most
_COEFFICIENTS = 6 * _MAPS
_CONTRACTION, _CONTRACTION_MOVED = 0.9, 0.95  # largest |a| + |b| and |c| + |d| of a map, drawn and then moved
_LEAD, _STEPS = 4, 32  # of each point: its first steps, which all points of an image share, are not drawn
_DENSITY = 4  # points drawn, for each pixel
_FILLED, _ASPECT = 0.35, 0.5  # least share of a square that an attractor touches, and least ratio of its sides
_TRIALS, _TRIAL_SIDE, _TRIAL_POINTS = 16, 16, 32  # systems tried at once for a class, their images and points
_BLOCK = 2**16  # pixels drawn at once: their points stay in the processor's cache, and memory is bounded


def fractals(options: Fractals, seed: int) -> Arrays:
    """Images (train + held_out, 1, size, size) of bytes; image i is of class i % classes and needs no other image.

    They are kept in the cache directory, so that only the first of many workers draws them.

    Args:
        options: section `data.fractals`.
        seed: of classes and images.

    Raises:
        OptionError: fewer training images than classes.
    """
    if options.train < options.classes:
        raise OptionError(
            f"data.fractals.train = {options.train} images cannot show all of data.fractals.classes = "
            f"{options.classes}: give at least one for each"
        )

    def build(path: Path) -> None:
        np.save(path, draw(options, seed), allow_pickle=False)

    key = digest("fractals", str(VERSION), str(seed), json.dumps(options.model_dump(), sort_keys=True))
    images = np.load(entry(key, ".npy", build), allow_pickle=False)
    third = options.held_out // 3
    parts = np.split(np.arange(len(images)), np.cumsum([options.train, third, third]))
    labels = np.arange(len(images), dtype=np.int64) % options.classes
    return Arrays(images, labels, options.classes, (parts[0], parts[1], parts[2], parts[3]))


def draw(options: Fractals, seed: int) -> np.ndarray:
    """The images, as in `fractals` and past the cache."""
    systems = [_system(seed, index) for index in range(options.classes)]
    maps = np.stack([system.maps for system in systems], 1)
    choices = np.stack([system.choices for system in systems])
    count = options.train + options.held_out
    images = np.empty((count, 1, options.size, options.size), np.uint8)
    block = max(1, _BLOCK // options.size**2)
    for start in range(0, count, block):
        index = np.arange(start, min(count, start + block))
        label = index % options.classes
        images[index, 0] = _images(options, seed, index, maps[:, label], choices[label])
    return images


@dataclass(frozen=True)
class _System:
    """An iterated function system.

    Attributes:
        maps: (6, 6) coefficients a, b, c, d, e, f of (x, y) -> (a x + b y + e, c x + d y + f), by map.
        choices: (256,) the map that a random byte stands for; those that shrink less are taken more often.
    """

    maps: np.ndarray
    choices: np.ndarray


def _system(seed: int, index: int) -> _System:
    """The class of an index: the first system of its stream that fills enough of its square."""
    bits = stream(seed, "fractal class", index).bit_generator
    steps = (_LEAD + _STEPS) * _TRIAL_POINTS
    while True:
        words = bits.random_raw(_TRIALS * (1 + _COEFFICIENTS + steps // 8)).reshape(_TRIALS, -1)
        number = 2 + (words[:, 0] % np.uint64(_MAPS - 1)).astype(np.int64)
        maps = _contracted(_coefficients(words[:, 1 : 1 + _COEFFICIENTS]), _CONTRACTION)
        choices = _choices(maps, number)
        x, y = _chaos_game(maps, choices, words[:, 1 + _COEFFICIENTS :], _TRIAL_POINTS)
        touched, aspect = _counts(x, y, _TRIAL_SIDE)
        good = ((touched > 0).sum((1, 2)) >= _FILLED * _TRIAL_SIDE**2) & (aspect >= _ASPECT)
        if good.any():
            first = int(good.argmax())
            return _System(maps[:, first], choices[first])


def _images(options: Fractals, seed: int, index: np.ndarray, maps: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """(N, size, size) bytes of the images of `index`, from (6, N, 6) maps and (N, 256) choices of their classes."""
    size, difficulty = options.size, min(options.difficulty, 1e6)  # beyond that only floats overflow
    cuts = np.cumsum([_words(size), size * size])
    words = np.stack([stream(seed, "fractal image", int(i)).bit_generator.random_raw(int(cuts[-1])) for i in index])
    drawing, noise, _ = np.split(words, cuts, 1)
    counts = _drawn(size, difficulty, maps, choices, drawing)
    # The sum of four uniform numbers is nearly normal; 1 is its deviation here.
    quarters = _lanes(noise, 16).reshape(-1, size, size, 4).sum(3)
    normal = (quarters * 2.0**-16 - 2) * 1.7320508
    grey = counts / (counts + 2.0) + difficulty * _NOISE * normal
    clipped: np.ndarray = np.clip(28.5 + 200 * grey, 0, 255).astype(np.uint8)
    return clipped


class Attractors:
    """Attractors of classes, each drawn moved a little and turned, without noise.

    Args:
        seed: of the classes.
        classes: how many.
    """

    def __init__(self, seed: int, classes: int) -> None:
        systems = [_system(seed, index) for index in range(classes)]
        self._maps = np.stack([system.maps for system in systems], 1)
        self._choices = np.stack([system.choices for system in systems])

    def draw(self, label: int, size: int, rng: np.random.Generator, difficulty: float = 1.0) -> np.ndarray:
        """(size, size) int64 numbers of points in each pixel, of the attractor of class `label`."""
        words = rng.bit_generator.random_raw(_words(size))[None]
        maps, choices = self._maps[:, label : label + 1], self._choices[label : label + 1]
        counts: np.ndarray = _drawn(size, difficulty, maps, choices, words)[0]
        return counts


def _points(size: int) -> int:
    """Games of the chaos game that an image of a size is drawn by."""
    return -(-_DENSITY * size * size // _STEPS)


def _words(size: int) -> int:
    """Random words that an image is drawn by, without its noise."""
    return _COEFFICIENTS + 1 + -(-_points(size) * (_LEAD + _STEPS) // 8)


def _drawn(size: int, difficulty: float, maps: np.ndarray, choices: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(N, size, size) points in each pixel, from (6, N, 6) maps, (N, 256) choices and (N, `_words`) random words."""
    moves, turns, steps = np.split(words, (_COEFFICIENTS, _COEFFICIENTS + 1), 1)
    moved = _contracted(maps + difficulty * _JITTER * _coefficients(moves), _CONTRACTION_MOVED)
    x, y = _chaos_game(moved, choices, steps, _points(size))
    # A point of the circle by its rational parametrisation: t is the tangent of half the angle.
    t = difficulty * _TURN * _symmetric(turns)
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    counts, _ = _counts(cosine * x - sine * y, sine * x + cosine * y, size)
    return counts


def _coefficients(words: np.ndarray) -> np.ndarray:
    """(N, 36) words -> (6, N, 6) numbers in [-1, 1): coefficient, image, map."""
    return np.moveaxis(_symmetric(words).reshape(-1, _MAPS, 6), 2, 0)


def _symmetric(words: np.ndarray) -> np.ndarray:
    """Uniform in [-1, 1)."""
    return (words >> np.uint64(11)) * 2.0**-52 - 1


def _lanes(words: np.ndarray, bits: int) -> np.ndarray:
    """(N, K) words -> (N, K * 64 / bits) numbers of so many bits, lowest first on machines of either byte order."""
    shifts = np.arange(0, 64, bits, dtype=np.uint64)
    return (words[:, :, None] >> shifts & np.uint64(2**bits - 1)).astype(np.int64).reshape(len(words), -1)


def _contracted(maps: np.ndarray, limit: float) -> np.ndarray:
    """The maps, rows of their matrices shrunk until |a| + |b| and |c| + |d| are at most `limit`: no point escapes."""
    a, b, c, d, e, f = maps
    first = limit / np.maximum(np.abs(a) + np.abs(b), limit)
    second = limit / np.maximum(np.abs(c) + np.abs(d), limit)
    return np.stack([a * first, b * first, c * second, d * second, e, f])


def _choices(maps: np.ndarray, number: np.ndarray) -> np.ndarray:
    """(N, 256) maps by byte, in proportion to |determinant| as in FractalDB; flat maps are taken sometimes too."""
    a, b, c, d, _, _ = maps
    weights = np.where(np.arange(_MAPS) < number[:, None], np.abs(a * d - b * c) + 0.02, 0.0)
    edges = [weights[:, 0]]
    for k in range(1, _MAPS):  # a running sum in one order
        edges.append(edges[-1] + weights[:, k])
    upper = np.stack(edges[:-1], 1) / edges[-1][:, None] * 256
    chosen = (np.arange(256)[:, None] >= upper[:, None, :]).sum(2)
    drawable: np.ndarray = np.minimum(chosen, number[:, None] - 1)
    return drawable


def _chaos_game(maps: np.ndarray, choices: np.ndarray, words: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y, each (N, steps * points), of points that jump by a random map a step, N games at once."""
    count = maps.shape[1]
    a, b, c, d, e, f = maps.reshape(6, -1)
    steps = _lanes(words, 8)[:, : points * (_LEAD + _STEPS)]
    jumps = np.take_along_axis(choices, steps, 1) + np.arange(0, count * _MAPS, _MAPS)[:, None]
    # All start at the fixed point of the first map, which is on the attractor.
    a0, b0, c0, d0, e0, f0 = maps[:, :, :1]
    determinant = (1 - a0) * (1 - d0) - b0 * c0
    x, y = ((1 - d0) * e0 + b0 * f0) / determinant, ((1 - a0) * f0 + c0 * e0) / determinant
    xs, ys = [], []
    for step, j in enumerate(np.split(jumps, _LEAD + _STEPS, 1)):
        x, y = a[j] * x + b[j] * y + e[j], c[j] * x + d[j] * y + f[j]
        if step >= _LEAD:
            xs.append(x)
            ys.append(y)
    return np.concatenate(xs, 1), np.concatenate(ys, 1)


def _counts(x: np.ndarray, y: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, size, size) points in each pixel of the square around all points, and (N,) ratios of their box's sides."""
    left, right, low, high = x.min(1), x.max(1), y.min(1), y.max(1)
    longer = np.maximum(np.maximum(right - left, high - low), 1e-9)
    column = _pixels(x, left + right, longer, size)
    row = _pixels(y, low + high, longer, size)
    flat = (np.arange(len(x))[:, None] * size + row) * size + column
    counts = np.bincount(flat.ravel(), minlength=len(x) * size * size).reshape(-1, size, size)
    return counts, np.minimum(right - left, high - low) / longer


def _pixels(z: np.ndarray, doubled_middle: np.ndarray, side: np.ndarray, size: int) -> np.ndarray:
    place = ((z - doubled_middle[:, None] * 0.5) / side[:, None] + 0.5) * size
    pixels: np.ndarray = np.clip(place, 0, size - 1).astype(np.int64)
    return pixels
