"""Arrays, which every reader gives: images as stored, labels and a split. Made into `Data` here, alike for all."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch

from normforge.errors import OptionError
from normforge.streams import stream
from normforge.train.data.parts import Data, Part

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Indices of the images for training, validation, holdout and test; disjoint."""

_SHARE, _MOST = 10, 5000  # a tenth of the images is held out for a part, and never more than CIFAR-10's tenth


@dataclass(frozen=True)
class Arrays:
    """A data set before it is cut: images (N, C, S, S) of uint8 or a float dtype, int64 labels (N,), their split."""

    images: np.ndarray
    labels: np.ndarray
    classes: int
    split: Split

    @property
    def side(self) -> int:
        """The side S of the images, in pixels."""
        return int(self.images.shape[-1])

    def data(self) -> Data:
        """The four parts, scaled by the mean and deviation that each channel has in the training images."""
        scale = [_mean_and_deviation(self.images[self.split[0], c]) for c in range(self.images.shape[1])]
        train, validation, holdout, test = (
            Part(self._scaled(part, scale), torch.from_numpy(self.labels[part])) for part in self.split
        )
        return Data(train, validation, holdout, test, self.classes, self._digest())

    def _scaled(self, part: np.ndarray, scale: list[tuple[float, float]]) -> torch.Tensor:
        scaled = np.empty((len(part), *self.images.shape[1:]), np.float32)
        for c, (mean, deviation) in enumerate(scale):
            if self.images.dtype == np.uint8:
                # Of 256 values each is scaled once: fast, and with no float64 copy of the images.
                scaled[:, c] = ((np.arange(256) - mean) / deviation).astype(np.float32)[self.images[part, c]]
            else:
                scaled[:, c] = (self.images[part, c].astype(np.float64) - mean) / deviation
        return torch.from_numpy(scaled)

    def _digest(self) -> str:
        h = hashlib.blake2b(digest_size=16)
        for array in (self.images, self.labels, *self.split):
            # Bytes as they were read, before any sum whose order could differ from machine to machine.
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            h.update(f"{array.dtype.str}{array.shape}".encode())
            h.update(array.data)
        return h.hexdigest()


def split_all(count: int, seed: int, source: str) -> Split:
    """A split of images that come without an official test part.

    Raises:
        OptionError: they are too few for four parts.
    """
    held = _held(count, source)
    shuffled = stream(seed, "split", 0).permutation(count)
    return shuffled[3 * held :], shuffled[:held], shuffled[held : 2 * held], shuffled[2 * held : 3 * held]


def split_official(count: int, tests: int, seed: int, source: str) -> Split:
    """A split of `count` official training images; the `tests` official test images come after them.

    Raises:
        OptionError: they are too few for four parts.
    """
    held = _held(count, source)
    if not tests:
        raise OptionError(f"{source}: there are no test images")
    shuffled = stream(seed, "split", 0).permutation(count)
    return shuffled[2 * held :], shuffled[:held], shuffled[held : 2 * held], np.arange(count, count + tests)


def _held(count: int, source: str) -> int:
    if count < _SHARE:
        raise OptionError(
            f"{source}: {count} images are too few for the training, validation, holdout and test parts: "
            f"give at least {_SHARE}"
        )
    return min(count // _SHARE, _MOST)


def _mean_and_deviation(channel: np.ndarray) -> tuple[float, float]:
    """Of all values; a deviation of 0 is given as 1. That of bytes is exact, thus the same on every machine."""
    if channel.dtype == np.uint8:
        histogram = np.bincount(channel.ravel(), minlength=256).tolist()
        first = sum(value * times for value, times in enumerate(histogram))
        second = sum(value * value * times for value, times in enumerate(histogram))
        mean = first / channel.size
        deviation = math.sqrt((channel.size * second - first * first) / channel.size**2)
    else:
        mean = float(channel.mean(dtype=np.float64))
        deviation = float(channel.std(dtype=np.float64))
    return mean, deviation or 1.0
