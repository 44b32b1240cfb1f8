"""ImageNet, or any folders of images that do not fit in memory: read, cut and scaled from disk while training."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from normforge.errors import OptionError
from normforge.streams import stream
from normforge.train.data.files import torchvision_datasets

if TYPE_CHECKING:
    from PIL import Image as Pillow

_VALIDATION = ("val", "validation", "valid", "test")  # names of the folder; the first one that there is
_LAYOUT = "lay the images out as DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE"
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop: its share of the image, width through height
_ATTEMPTS = 10  # to draw a crop that lies inside the image
_STOPS = (signal.SIGINT, signal.SIGTERM)
_MARGIN = 32  # pixels around the middle in evaluation (NFNets, arXiv 2102.06171)


@dataclass(frozen=True)
class DiskPart:
    """A part of a data set on disk.

    Attributes:
        files: paths of the images, by class and name; strings, since a million of `Path` takes much memory.
        labels: (N,) of int64.
    """

    files: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def batches(
        self, size: int, side: int, device: torch.device | str, workers: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in order, as NFNets are tested: the shorter side resized to `side` + 32 pixels, the middle
        cut out.

        Args:
            size: images a batch; the last one may be smaller.
            side: of the images that are given, in pixels.
            device: where they are scaled, and given.
            workers: processes that read ahead; 0 reads in this one.

        Returns:
            Images (n, 3, side, side) of float32, standardised by ImageNet's mean and deviation, in channels-last
            memory, and labels (n,) of int64.

        Raises:
            OptionError: an image that cannot be read, which is named.
        """
        device = torch.device(device)
        starts = range(0, len(self), size)
        requests = (self._request(np.arange(start, min(start + size, len(self)))) for start in starts)
        scaled = _Scaled(device)
        for read in _reading(requests, _Middle(side), device, workers):
            yield scaled(read)

    def _request(self, chosen: np.ndarray, first_key: int = 0) -> _Request:
        return _Request([self.files[i] for i in chosen], [first_key + int(i) for i in chosen], self.labels[chosen])


@dataclass(frozen=True)
class Disk:
    """A data set on disk.

    Attributes:
        train, validation: its parts.
        classes: number of labels.
        names: of the classes, in the order of the labels.
        digest: blake2b of the names of classes and files and of the files' sizes, hex; no pixel is read for it.
    """

    train: DiskPart
    validation: DiskPart
    classes: int
    names: tuple[str, ...]
    digest: str


def imagenet(directory: Path) -> Disk:
    """The images in `directory`/train/CLASS and `directory`/val/CLASS; classes are labelled 0, 1, ... by name.

    Args:
        directory: instead of `val` it may have `validation`, `valid` or `test`.

    Raises:
        OptionError: folders that are missing or differ, fewer than two classes, a class without images, a file that
            cannot be found again; torchvision that cannot be imported.
    """
    source = f"imagenet:{directory}"
    folders = "train", _validation_folder(directory, source)
    train, validation = (_found(directory / folder, source) for folder in folders)
    differing = sorted(set(train.classes) ^ set(validation.classes))
    if differing:
        there, missing = folders if differing[0] in train.classes else reversed(folders)
        raise OptionError(
            f"{source}: the class folder {differing[0]} is in {there} but not in {missing}: "
            "give both the same class folders"
        )
    if len(train.classes) < 2:
        raise OptionError(f"{source}: there is one class folder only, and nothing to tell apart: add another one")
    digest = hashlib.blake2b(repr(train.classes).encode(), digest_size=16)
    parts = []
    for folder, found in zip(folders, (train, validation), strict=True):
        part = DiskPart(tuple(file for file, _ in found.samples), np.asarray(found.targets, np.int64))
        counts = np.bincount(part.labels, minlength=len(found.classes))
        if not counts.all():
            empty = directory / folder / found.classes[int(counts.argmin())]
            raise OptionError(
                f"{source}: there are no images in {empty}: add some, or remove the class from both parts"
            )
        _add(digest, directory / folder, part, source)
        parts.append(part)
    return Disk(parts[0], parts[1], len(train.classes), tuple(train.classes), digest.hexdigest())


def _validation_folder(directory: Path, source: str) -> str:
    """Its name, once it is clear that there are both folders."""
    if not directory.is_dir():
        raise OptionError(f"{source}: there is no such directory: {_LAYOUT}")
    if not (directory / "train").is_dir():
        raise OptionError(f"{source}: there is no folder train in it: {_LAYOUT}")
    for name in _VALIDATION:
        if (directory / name).is_dir():
            return name
    looked_for = f"{', '.join(_VALIDATION[:-1])} or {_VALIDATION[-1]}"
    raise OptionError(f"{source}: there is no folder {looked_for} in it: {_LAYOUT}")


def _found(folder: Path, source: str) -> Any:
    """A folder as torchvision's ImageFolder, of which only the lists are used."""
    try:
        return torchvision_datasets(source).ImageFolder(str(folder), allow_empty=True)
    except FileNotFoundError:
        raise OptionError(f"{source}: there are no class folders in {folder}: {_LAYOUT}") from None
    except OSError as e:
        raise OptionError(f"{source}: {folder} cannot be read: {e.strerror}: change its permissions") from None


def _add(digest: Any, folder: Path, part: DiskPart, source: str) -> None:
    """Add the files' number, names in the folder, and sizes."""
    digest.update(f"{len(part)}\n".encode())
    start = len(str(folder)) + 1
    for file in part.files:
        try:
            size = Path(file).stat().st_size
        except OSError as e:  # a link to nowhere
            raise OptionError(f"{source}: the image {file} cannot be read: {e.strerror}: remove it") from None
        digest.update(os.fsencode(f"{file[start:]}\0{size}\0".replace(os.sep, "/")))


class DiskBatches:
    """Training batches without end, epoch after epoch in random order; what does not fill a batch is left out.

    A batch depends on the data, `batch`, `side`, `seed`, `flip` and its number alone: not on the number of workers or
    processes, nor on where a training was interrupted.
    """

    def __init__(
        self,
        part: DiskPart,
        batch: int,
        side: int,
        seed: int,
        device: torch.device,
        workers: int = 0,
        flip: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Nothing is read, nor is a worker started, before the first `next`.

        Args:
            part: its images and labels.
            batch: images a step, of all processes together.
            side: of the images that are given, in pixels.
            seed: of the order, the crops and the flips.
            device: where images are scaled, and given.
            workers: processes that read ahead, for this one; 0 reads in this one, when asked.
            flip: mirror images at random.
            rank: number of this process among those that train together.
            world: number of them.

        Raises:
            OptionError: a batch larger than the data, or one that cannot be shared equally.
        """
        if batch > len(part):
            raise OptionError(f"a batch of {batch} is larger than the {len(part)} training images: lower it")
        if batch % world:
            raise OptionError(f"a batch of {batch} cannot be shared by {world} processes: give a multiple of {world}")
        self._part, self._batch, self._seed = part, batch, seed
        self._device, self._workers = device, workers
        self._rank, self._world = rank, world
        self._cut = _Random(side, seed, flip)
        self._scaled = _Scaled(device)
        self._step = 0
        self._reading: Iterator[_Read] | None = None

    def next(self) -> tuple[Tensor, Tensor]:
        """This process's share of the next batch: its positions rank, rank + world, ...

        Returns:
            Images (batch / world, 3, side, side) of float32, standardised by ImageNet's mean and deviation, in
            channels-last memory, and labels (batch / world,) of int64; on the device.

        Raises:
            OptionError: an image that cannot be read, which is named; the step is not done then.
        """
        if self._reading is None:
            self._reading = _reading(self._requests(self._step), self._cut, self._device, self._workers)
        try:
            images, labels = self._scaled(next(self._reading))
        except BaseException:
            self.close()  # what was read ahead would follow upon a batch that was never given
            raise
        self._step += 1
        return images, labels

    def state_dict(self) -> dict[str, Any]:
        """The position: batches that `next` has given, whatever was read ahead."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position; what was read ahead is thrown away."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stop the workers; a further `next` starts them again, at the same position."""
        self._reading = None  # the loader's iterator ends its processes when it is deleted

    def _requests(self, step: int) -> Iterator[_Request]:
        count = len(self._part)
        epoch, first = divmod(step, count // self._batch)
        while True:
            order = stream(self._seed, "epoch", epoch).permutation(count)
            for start in range(first * self._batch, count - self._batch + 1, self._batch):
                share = order[start : start + self._batch][self._rank :: self._world]
                yield self._part._request(share, epoch * count)
            epoch, first = epoch + 1, 0


@dataclass(frozen=True)
class _Request:
    """What a worker is sent: so it needs no list of all files, which by their reference counts would be copied into
    each worker page by page, and knows no epoch.
    """

    files: list[str]
    keys: list[int]  # of an image in an epoch
    labels: np.ndarray


_Read = tuple[Tensor, Tensor] | OptionError
"""Images (n, side, side, 3) of uint8 and labels (n,); an error is handed over, since a loader that meets one in a
worker would put the worker's traceback into the message."""


class _Reader(Dataset[_Read]):
    """Reads what a request asks for."""

    def __init__(self, cut: Callable[[Pillow.Image, int], np.ndarray]) -> None:
        self._cut = cut

    def __getitem__(self, request: _Request) -> _Read:
        try:
            images = [self._image(file, key) for file, key in zip(request.files, request.keys, strict=True)]
        except OptionError as e:
            return e
        return torch.from_numpy(np.stack(images)), torch.from_numpy(request.labels)

    def _image(self, file: str, key: int) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":  # Pillow would clip them to white
                    raise ValueError("it has more than 8 bits a pixel")
                return self._cut(image, key)
        except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... by format
            reason = str(e).split("\n")[0] or type(e).__name__
            raise OptionError(f"the image {file} cannot be read: {reason}: replace or remove it") from None


@dataclass(frozen=True)
class _Middle:
    """The middle of an image, (side, side, 3) of uint8."""

    side: int

    def __call__(self, image: Pillow.Image, key: int) -> np.ndarray:
        from PIL import Image

        shorter, target = min(image.size), self.side + _MARGIN
        width, height = (target * length // shorter for length in image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        return np.asarray(resized.crop((left, top, left + self.side, top + self.side)))


@dataclass(frozen=True)
class _Random:
    """A random part of an image, resized and perhaps mirrored, (side, side, 3) of uint8."""

    side: int
    seed: int
    flip: bool

    def __call__(self, image: Pillow.Image, key: int) -> np.ndarray:
        from PIL import Image

        rng = stream(self.seed, "crop", key)
        width, height = image.size
        left, top, right, bottom = _crop(rng, width, height)
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, if the crop still has as many pixels as are needed;
        # other formats ignore it.
        image.draft(
            None, (math.ceil(width * self.side / (right - left)), math.ceil(height * self.side / (bottom - top)))
        )
        x, y = image.width / width, image.height / height
        box = round(left * x), round(top * y), round(right * x), round(bottom * y)
        pixels = np.asarray(image.convert("RGB").crop(box).resize((self.side, self.side), Image.Resampling.BICUBIC))
        return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels


def _crop(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of an image, as torchvision's RandomResizedCrop chooses it."""
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(*np.log(_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    # An image much longer than wide: as much of its middle as the ratios allow.
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class _Scaled:
    """Moves what was read to a device, and standardises it there: bytes are a quarter of what floats would be."""

    def __init__(self, device: torch.device) -> None:
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        self._device = device
        self._mean, self._deviation = (
            (255 * torch.tensor(values)).view(3, 1, 1).to(device)
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )

    def __call__(self, read: _Read) -> tuple[Tensor, Tensor]:
        if isinstance(read, OptionError):
            raise read
        images, labels = (tensor.to(self._device, non_blocking=True) for tensor in read)
        return images.permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._deviation), labels


def _reading(
    requests: Iterable[_Request],
    cut: Callable[[Pillow.Image, int], np.ndarray],
    device: torch.device,
    workers: int,
) -> Iterator[_Read]:
    """What is asked for, in order; each worker makes whole batches, and has two of them ahead."""
    # Workers are forked where that is safe in itself (Linux): a fresh interpreter would import torch for seconds, in
    # each worker and for each evaluation. A child has none of its parent's OpenMP threads, and libgomp would wait for
    # them forever if a parallel region was entered; but a worker decodes with Pillow and NumPy, and torch only moves
    # memory there, with the one thread that `set_num_threads(1)` leaves it (torch's own worker loop calls it first, and
    # `_start` again, lest that changes). CUDA is never touched there. Elsewhere, the platform's own way is taken.
    context = "fork" if workers and sys.platform == "linux" else None
    loader = DataLoader(
        _Reader(cut),
        batch_size=None,  # a request is a batch already
        sampler=requests,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start if workers else None,
        multiprocessing_context=context,
        generator=torch.Generator(),  # or starting workers would draw from the generator that dropout draws from
    )
    if not workers or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    # Ctrl-C and a scheduler's SIGTERM reach all processes, and the training ends its workers itself. They inherit the
    # mask, so that not even one that has just started is ended; here, what comes meanwhile is delivered afterwards.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(worker: int) -> None:
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)  # for systems without a mask, and torch unblocks some
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # of metadata, which nothing here reads: once a worker, each time
