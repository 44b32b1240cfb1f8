"""Data sets from files on disk, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from normforge.errors import OptionError
from normforge.train.data.arrays import Arrays, split_all, split_official

OFFICIAL = {  # class of torchvision.datasets, number of labels
    "cifar10": ("CIFAR10", 10),
    "cifar100": ("CIFAR100", 100),
    "mnist": ("MNIST", 10),
    "fashion": ("FashionMNIST", 10),
}
_GREY = ("1", "L", "LA", "La")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def official(name: str, directory: Path, seed: int, download: bool) -> Arrays:
    """A data set with official training and test parts; holdout and validation are cut from the training part.

    Args:
        name: a key of `OFFICIAL`.
        directory: torchvision's `root`, in which it finds `cifar-10-batches-py`, `MNIST/raw` and so on.
        seed: of the split.
        download: fetch the files if they are not there.

    Raises:
        OptionError: files that are missing, damaged, or cannot be fetched; torchvision that cannot be imported.
    """
    source = f"{name}:{directory}"
    class_name, classes = OFFICIAL[name]
    maker = getattr(torchvision_datasets(source), class_name)
    if not download:
        _check_files(maker, directory, source)
    try:
        train, test = (maker(str(directory), train=part, download=download) for part in (True, False))
        images = np.concatenate([_channels_first(part.data) for part in (train, test)])
        labels = np.concatenate([np.asarray(part.targets, np.int64) for part in (train, test)])
    except Exception as e:  # torchvision has no error of its own: a short file may be an AssertionError or a KeyError
        reason = str(e).split("\n")[0] or type(e).__name__
        doing = "downloaded or read" if download else "read, they may be damaged"
        raise OptionError(f"{source}: the files of {class_name} cannot be {doing}: {reason}") from None
    if len(images) != len(labels) or images.dtype != np.uint8 or images.shape[2] != images.shape[3]:
        raise OptionError(f"{source}: the files of {class_name} do not fit together: fetch them again")
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise OptionError(f"{source}: a label of {name} is not in 0 to {classes - 1}: fetch the files again")
    return Arrays(images, labels, classes, split_official(len(train.data), len(test.data), seed, source))


def folder(directory: Path, size: int | None, seed: int) -> Arrays:
    """Images in one subfolder a class, all grey or, if any has colours, all RGB.

    Args:
        directory: its subfolders, sorted by name, are the labels 0, 1, ...
        size: side that images are resized to, by their shorter side and with a crop of the middle; None if all are
            square and alike.
        seed: of the split.

    Raises:
        OptionError: no class folders, images of different sizes, or an image that cannot be read, which is named.
    """
    source = f"imagefolder:{directory}"
    datasets = torchvision_datasets(source)
    if not directory.is_dir():
        raise OptionError(f"{source}: there is no such directory")
    try:
        found = datasets.ImageFolder(str(directory))
    except FileNotFoundError as e:
        raise OptionError(f"{source}: give one subfolder of images for each class: {str(e).rstrip('.')}") from None
    if len(found.classes) < 2:
        raise OptionError(f"{source}: there is one class folder only, and nothing to tell apart")
    split = split_all(len(found.samples), seed, source)
    first = _look(found.samples[0][0], size, source)
    modes = []
    for path, _ in found.samples:
        mode, shape = _look(path, size, source)
        if size is None and shape != first[1]:
            raise OptionError(f"{source}: the images {found.samples[0][0]} and {path} differ in size: give data.size")
        modes.append(mode)
    mode = "L" if all(m in _GREY for m in modes) else "RGB"
    images = np.stack([_decode(path, mode, size, source) for path, _ in found.samples])
    return Arrays(_channels_first(images), np.asarray(found.targets, np.int64), len(found.classes), split)


def torchvision_datasets(source: str) -> ModuleType:
    """The module torchvision.datasets, for images of a source.

    Raises:
        OptionError: it cannot be imported.
    """
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as e:  # RuntimeError: of one built for another torch
        reason = str(e).split("\n")[0]
        raise OptionError(
            f"{source} needs torchvision, which cannot be imported: {reason}: pip install torchvision"
        ) from None
    module: ModuleType = datasets
    return module


def _check_files(maker: Any, directory: Path, source: str) -> None:
    """Name the first file that is missing, or whose md5 is wrong where torchvision knows it."""
    from torchvision.datasets.utils import check_integrity

    if hasattr(maker, "base_folder"):
        base = directory / maker.base_folder
        files = [*maker.train_list, *maker.test_list, (maker.meta["filename"], maker.meta["md5"])]
    else:
        base = directory / maker.__name__ / "raw"
        files = [(name.removesuffix(".gz"), None) for name, _ in maker.resources]  # md5 known of the archives only
    for name, md5 in files:
        if not (base / name).is_file():
            raise OptionError(f"{source}: there is no file {base / name}: put it there, or allow --download")
        if not check_integrity(base / name, md5):
            raise OptionError(f"{source}: the file {base / name} is damaged, its md5 is not {md5}: fetch it again")


def _channels_first(images: Any) -> np.ndarray:
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W)."""
    images = np.asarray(images)
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _look(path: str, size: int | None, source: str) -> tuple[str, tuple[int, int]]:
    """Mode and (width, height) of an image, from the file's head."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, shape = image.mode, image.size
    except Exception as e:  # as in `_decode`
        raise OptionError(f"{source}: the image {path} cannot be read: {e}") from None
    if mode in _DEEP:
        raise OptionError(f"{source}: the image {path} has more than 8 bits a pixel: convert it to 8")
    if size is None and shape[0] != shape[1]:
        raise OptionError(f"{source}: the image {path} is not square ({shape[0]}×{shape[1]}): give data.size")
    return mode, shape


def _decode(path: str, mode: str, size: int | None, source: str) -> np.ndarray:
    """(S, S) or (S, S, 3) of bytes."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            converted = image.convert(mode)
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... by format
        raise OptionError(f"{source}: the image {path} cannot be read: {e}") from None
    if size is not None and converted.size != (size, size):
        converted = ImageOps.fit(converted, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(converted)
