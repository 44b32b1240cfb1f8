"""The data of a transfer, and what can be wrong with it: found before anything is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from normforge.cache import digest
from normforge.errors import OptionError, nearest
from normforge.train.data.parts import Data
from normforge.train.device import checked_device
from normforge.train.transfer.config import Config, DetectionConfig
from normforge.train.transfer.detection.drawn import drawn
from normforge.train.transfer.detection.scene import Scenes
from normforge.train.transfer.detection.settings import SceneData
from normforge.train.transfer.synthesis.features import VERSION, classifier
from normforge.train.transfer.synthesis.images import images_of

_SOURCES = ("shapes", "fractals", "coco")


@dataclass(frozen=True)
class Detections:
    """Scenes in three parts.

    Attributes:
        train, validation, test: of coco:DIR the last two are the same.
        digest: of all of them. on_disk: are images read while training?
    """

    train: Scenes
    validation: Scenes
    test: Scenes
    digest: str
    on_disk: bool


TaskData = Detections | Data


def load(config: Config, download: bool = False) -> TaskData:
    """The data of a configuration.

    Args:
        config: of a training.
        download: fetch a data set that torchvision knows, if it is not there.

    Raises:
        OptionError: it cannot be had, or is not what the task needs; says what to do.
    """
    if isinstance(config, DetectionConfig):
        return _scenes(config.data)
    return images_of(config.data.source, config.data.size, config.data.seed, download)


def digest_of(config: Config, data: TaskData) -> str:
    """Of the data and of what samples are judged by: figures of another do not compare."""
    if isinstance(config, DetectionConfig):
        return data.digest
    parts = ["samples", data.digest, str(VERSION)]
    if config.recipe.inception is not None:
        parts.append(hashlib.blake2b(Path(config.recipe.inception).expanduser().read_bytes()).hexdigest())
    return digest(*parts)


def _scenes(data: SceneData) -> Detections:
    name, colon, path = data.source.partition(":")
    if name not in _SOURCES:
        raise OptionError(
            f"data.source: there are no scenes {name!r}{nearest(name, _SOURCES)}: choose shapes, fractals or coco:DIR"
        )
    if name == "coco":
        if not path:
            raise OptionError(f"data.source = {data.source}: say where it is, as coco:DIR")
        from normforge.train.transfer.detection.coco import coco

        train, validation = coco(Path(path).expanduser())
        return Detections(train, validation, validation, train.digest + validation.digest, on_disk=True)
    if colon:
        raise OptionError(f"data.source = {data.source}: {name} are drawn, write {name} alone")
    parts = drawn(name, data.drawn, data.seed)
    return Detections(*parts, digest=parts[0].digest, on_disk=False)


def check(config: Config, data: TaskData, batches: list[int]) -> None:
    """Look at what only reading shows, before a training of hours meets it, and make what all trainings need.

    Args:
        config: of the trainings. data: theirs. batches: of all of them.

    Raises:
        OptionError: an image that cannot be read, images that are fewer than a batch, a package or a GPU that is
            missing.
    """
    checked_device(config.run.device)
    if isinstance(config, DetectionConfig):
        from normforge.train.transfer.detection.precision import AveragePrecision

        AveragePrecision(config.run.ap)  # can its packages be imported?
    if isinstance(data, Detections) and data.on_disk:
        from normforge.train.transfer.detection.coco import check_images

        for part in (data.train, data.validation):
            check_images(part)  # type: ignore[arg-type]
    count = len(data.train)
    if max(batches) > count:
        raise OptionError(
            f"recipe.batch = {max(batches)} is more than the {count} training images of {config.data.source}: lower it"
        )
    if isinstance(data, Data):
        classifier(data)  # kept in the cache directory, where the trainings find it
