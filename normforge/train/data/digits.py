"""scikit-learn's digits: 1797 real images of 8×8 that ship with the package."""

from __future__ import annotations

import numpy as np

from normforge.streams import stream
from normforge.train.data.arrays import Arrays

_TRAIN, _VALIDATION, _HOLDOUT = 900, 297, 300  # of 1797; the other 300 are the test images


def digits(seed: int) -> Arrays:
    """The digits, images (1797, 1, 8, 8) with pixels 0..16, split by the seed.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998); the test part of it.
    """
    from sklearn.datasets import load_digits  # takes a second to import, which other data sets need not wait for

    raw = load_digits()
    shuffled = stream(seed, "split", 0).permutation(len(raw.target))
    train, validation, holdout, test = np.split(shuffled, np.cumsum([_TRAIN, _VALIDATION, _HOLDOUT]))
    images = raw.images.astype(np.uint8)[:, None]  # whole numbers, kept as floats by scikit-learn
    return Arrays(images, raw.target.astype(np.int64), classes=10, split=(train, validation, holdout, test))
