"""Images and labels from a NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from normforge.errors import OptionError
from normforge.train.data.arrays import Arrays, split_all, split_official

_LARGEST = 1e15  # squares and their sums stay far inside float64, scaled values inside float32


def npz(file: Path, seed: int) -> Arrays:
    """The arrays `x` and `y` of an archive, and `x_test` and `y_test` where it has them.

    Args:
        file: `x` is (N, S, S), (N, C, S, S) or, with C of 1 or 3, (N, S, S, C), of any real dtype; `y` is (N,) of
            integers, of which the distinct ones in order become the labels 0, 1, ...
        seed: of the split, into four parts, or into three where the archive has test images.

    Raises:
        OptionError: a file or an array that cannot be used; says which and why.
    """
    source = f"npz:{file}"
    arrays = _read(file, source)
    images, labels = _images(arrays["x"], f"{source}: x"), _labels(arrays["y"], arrays["x"], f"{source}: y")
    found = np.unique(labels)
    if len(found) < 2:
        raise OptionError(f"{source}: y has fewer than two different labels, so there is nothing to tell apart")
    if "x_test" not in arrays:
        split = split_all(len(images), seed, source)
        return Arrays(images, np.searchsorted(found, labels).astype(np.int64), len(found), split)
    tests = _images(arrays["x_test"], f"{source}: x_test")
    if tests.shape[1:] != images.shape[1:]:
        raise OptionError(
            f"{source}: images are {images.shape[1:]} in x and {tests.shape[1:]} in x_test: make them equal"
        )
    test_labels = _labels(arrays["y_test"], arrays["x_test"], f"{source}: y_test")
    if not np.isin(test_labels, found).all():
        unknown = test_labels[~np.isin(test_labels, found)][0]
        raise OptionError(f"{source}: y_test has the label {unknown}, which y has not")
    split = split_official(len(images), len(tests), seed, source)
    together = np.concatenate([np.searchsorted(found, part) for part in (labels, test_labels)]).astype(np.int64)
    return Arrays(np.concatenate([images, tests]), together, len(found), split)


def _read(file: Path, source: str) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise OptionError(f"{source}: there is no such file")
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise OptionError(
                f"{source} is one array, not an archive: save it by numpy.savez(FILE, x=images, y=labels)"
            )
        with archive:
            needed = ("x", "y", "x_test", "y_test") if {"x_test", "y_test"} & set(archive.files) else ("x", "y")
            for name in needed:
                if name not in archive.files:
                    raise OptionError(f"{source} has no array {name!r}, only {', '.join(archive.files) or 'nothing'}")
            return {name: archive[name] for name in needed}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as e:
        if isinstance(e, OptionError):
            raise
        raise OptionError(f"{source} cannot be read, it is damaged or has arrays of Python objects: {e}") from None


def _images(x: np.ndarray, what: str) -> np.ndarray:
    """As (N, C, S, S); bytes stay bytes, all else becomes floating."""
    if x.dtype.kind not in "buif":
        raise OptionError(f"{what} has dtype {x.dtype}: give real numbers")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[2] != x.shape[3] and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or 0 in x.shape:
        raise OptionError(f"{what} has shape {x.shape}: give (N, H, W), (N, C, H, W) or (N, H, W, C) with C of 1 or 3")
    if x.shape[2] != x.shape[3]:
        raise OptionError(f"{what} has images of {x.shape[2]}×{x.shape[3]} pixels, by its shape: make them square")
    if x.dtype in (np.uint8, np.bool_):
        return np.ascontiguousarray(x, np.uint8)
    x = x.astype(np.float32 if x.dtype in (np.float16, np.float32) else np.float64)
    if not (np.abs(x) <= _LARGEST).all():  # not for a NaN either
        raise OptionError(f"{what} has values that are not finite, or beyond {_LARGEST:g}: clean or scale them")
    return np.ascontiguousarray(x)


def _labels(y: np.ndarray, x: np.ndarray, what: str) -> np.ndarray:
    if y.dtype.kind not in "ui":
        raise OptionError(f"{what} has dtype {y.dtype}: give integer labels")
    if y.shape != x.shape[:1]:
        raise OptionError(f"{what} has shape {y.shape} for {len(x)} images: give one label an image")
    return y
