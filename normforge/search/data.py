"""Data: scikit-learn's digits, real 8×8 images that ship with the package, in a fixed split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from sklearn.datasets import load_digits

from normforge.search.streams import stream

CLASSES = 10
_TRAIN, _VALIDATION = 1000, 397  # of 1797; the other 400 are the test images


@dataclass(frozen=True)
class Part:
    """Images (N, 1, 8, 8) of float32 and their labels (N,) of int64."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Data:
    """Disjoint parts: weights are fitted on `train`, layers chosen on `validation`, judged on `test`."""

    train: Part
    validation: Part
    test: Part


@lru_cache(maxsize=1)
def digits(seed: int) -> Data:
    """The digits, shuffled by the run's seed; pixels are scaled by the training images' mean and deviation."""
    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None]
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.from_numpy(stream(seed, "split", 0).permutation(len(images)))
    parts = order.split([_TRAIN, _VALIDATION, len(images) - _TRAIN - _VALIDATION])
    mean, std = images[parts[0]].mean(), images[parts[0]].std()
    return Data(*(Part((images[p] - mean) / std, labels[p]) for p in parts))
