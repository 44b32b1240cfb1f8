"""The images that a model is trained and judged on, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from normforge.errors import OptionError
from normforge.streams import stream, torch_seed
from normforge.train.config import DataConfig, Recipe
from normforge.train.data import Part, load_data
from normforge.train.data.batches import ArrayBatches, Batch, Batches
from normforge.train.data.disk import DiskBatches, DiskPart, imagenet
from normforge.train.data.mixed import mixed
from normforge.train.harness.config import TrainConfig
from normforge.train.harness.processes import Processes
from normforge.train.loop import Evaluated
from normforge.train.models import image_side

_IMAGENET = "imagenet"


@dataclass(frozen=True)
class Images:
    """Images for a training.

    Attributes:
        count: of training images. classes: of labels.
        channels, side: of images in training. test_side: of validation and test images.
        digest: of all of them; another means other images.
        batches: makes the stream of training images of a recipe.
        validation: judged by while training. test: judged by at the end.
    """

    count: int
    classes: int
    channels: int
    side: int
    test_side: int
    digest: str
    batches: Callable[[Recipe], Batches]
    validation: Evaluated
    test: Evaluated


def images(config: TrainConfig, among: Processes, download: bool = False) -> Images:
    """The images of a configuration; each process has its share of them.

    Args:
        config: of the training.
        among: the processes.
        download: fetch a data set that torchvision knows, if it is not there.

    Raises:
        OptionError: they cannot be had, or a setting has no effect on them.
    """
    data = config.data
    name, _, path = data.source.partition(":")
    if name != _IMAGENET:
        if data.test_size is not None:
            raise OptionError("data.test_size is of imagenet:DIR: other images are tested whole")
        return _in_memory(config, among, download)
    if not path:
        raise OptionError(f"data.source = {data.source}: say where it is, as {_IMAGENET}:DIR")
    if data.crop or data.pad:
        raise OptionError("data.crop and data.pad are of images in memory: imagenet:DIR is cropped to data.size")
    return _on_disk(config, among, Path(path).expanduser())


def _in_memory(config: TrainConfig, among: Processes, download: bool) -> Images:
    chosen = DataConfig.model_validate(config.data.model_dump(exclude={"test_size"}))
    among.together(lambda: load_data(chosen, download) if among.first else None)  # who keeps them for the others
    data = load_data(chosen, download)
    train = data.train.to(among.device)

    def batches(recipe: Recipe) -> Batches:
        rng = stream(recipe.seed, "batches", 0)
        drawn = ArrayBatches(train, recipe.batch, rng, chosen, among.rank, among.world)
        return mixed(drawn, recipe, data.classes, _mixing(recipe, among), train.limits)

    def share(part: Part) -> Part:
        mine = _share(config, among)
        return Part(part.images[mine], part.labels[mine]).to(among.device)

    return Images(
        len(train), data.classes, train.images.shape[1], chosen.crop or train.images.shape[2], train.images.shape[2],
        data.digest, batches, share(data.validation), share(data.test),
    )  # fmt: skip


def _on_disk(config: TrainConfig, among: Processes, directory: Path) -> Images:
    disk, loaders = imagenet(directory), config.run.loaders
    side = config.data.size or image_side(config.model)
    test_side = config.data.test_size or config.data.size or image_side(config.model, test=True)
    mean, deviation = (torch.tensor(v, device=among.device) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))

    def batches(recipe: Recipe) -> Batches:
        drawn = DiskBatches(
            disk.train, recipe.batch, side, recipe.seed, among.device, loaders, config.data.flip, among.rank,
            among.world,
        )  # fmt: skip
        limits = -mean / deviation, (1 - mean) / deviation
        return mixed(drawn, recipe, disk.classes, _mixing(recipe, among), lambda: limits)

    mine = _share(config, among)
    part = replace(disk.validation, files=disk.validation.files[mine], labels=disk.validation.labels[mine])
    held = _OnDisk(part, test_side, among.device, loaders)
    return Images(len(disk.train), disk.classes, 3, side, test_side, disk.digest, batches, held, held)


def _share(config: TrainConfig, among: Processes) -> slice:
    """What a process judges of a part; under FSDP2, where all call the model as often, the whole."""
    return slice(None) if config.run.parallel == "fsdp" else slice(among.rank, None, among.world)


def _mixing(recipe: Recipe, among: Processes) -> int:
    """The seed of what each process draws for its own share."""
    return torch_seed(recipe.seed, "mixing", among.rank)


@dataclass(frozen=True)
class _OnDisk:
    """A part of images on disk, with what its batches need."""

    part: DiskPart
    side: int
    device: torch.device
    loaders: int

    def __len__(self) -> int:
        return len(self.part)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels in their order; at most 128 at a time, as these are larger than those in memory."""
        return self.part.batches(min(size, 128), self.side, self.device, self.loaders)


class Timed:
    """Batches, with the seconds that a training has waited for them.

    Attributes:
        seconds, images: spent on, and given, since the start.
    """

    def __init__(self, batches: Batches, clock: Callable[[], float]) -> None:
        self._batches, self._clock = batches, clock
        self.seconds, self.images = 0.0, 0

    def next(self) -> Batch:
        """The next batch."""
        start = self._clock()
        batch = self._batches.next()
        self.seconds += self._clock() - start
        self.images += len(batch[0])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """That of the batches."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._batches.load_state_dict(state)

    def close(self) -> None:
        """That of the batches."""
        self._batches.close()
