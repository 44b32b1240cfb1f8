"""The data set that a configuration asks for, and what can be wrong with it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from normforge.errors import OptionError, nearest
from normforge.train.config import DataConfig
from normforge.train.data.arrays import Arrays
from normforge.train.data.digits import digits
from normforge.train.data.files import OFFICIAL, folder, official
from normforge.train.data.fractals import fractals
from normforge.train.data.npz import npz
from normforge.train.data.parts import Data

_BUILT_IN = ("digits", "fractals")
_WITH_PATH = (*OFFICIAL, "imagefolder", "npz")


@lru_cache(maxsize=2)
def load_data(config: DataConfig, download: bool = False) -> Data:
    """The images and labels of the configured source, in four disjoint parts.

    Args:
        config: section `data` of a configuration.
        download: fetch a data set that torchvision knows, if it is not there.

    Raises:
        OptionError: an unknown source, missing or damaged files, arrays of a wrong shape or dtype, too few images,
            settings without effect on this source, or a crop larger than the images.
    """
    name, path = _source(config)
    arrays = _arrays(config, name, path, download)
    _check_crop(config, arrays.side)
    return arrays.data()


def _source(config: DataConfig) -> tuple[str, Path]:
    name, colon, path = config.source.partition(":")
    known = (*_BUILT_IN, *_WITH_PATH)
    if name not in known:
        raise OptionError(
            f"data.source: there is no data set {name!r}{nearest(name, known)}: choose one of {', '.join(known)}"
        )
    if name in _BUILT_IN and colon:
        raise OptionError(f"data.source = {config.source}: {name} is read from no file, write {name} alone")
    if name in _WITH_PATH and not path:
        where = "FILE" if name == "npz" else "DIR"
        raise OptionError(f"data.source = {config.source}: say where it is, as {name}:{where}")
    if config.size is not None and name != "imagefolder":
        raise OptionError(f"data.size = {config.size} resizes the images of imagefolder:DIR only, not of {name}")
    return name, Path(path).expanduser()


def _arrays(config: DataConfig, name: str, path: Path, download: bool) -> Arrays:
    if name == "digits":
        return digits(config.seed)
    if name == "fractals":
        return fractals(config.fractals, config.seed)
    if name == "imagefolder":
        return folder(path, config.size, config.seed)
    if name == "npz":
        return npz(path, config.seed)
    return official(name, path, config.seed, download)


def _check_crop(config: DataConfig, side: int) -> None:
    if config.crop is None and config.pad:
        raise OptionError(f"data.pad = {config.pad} pads what is cropped then: give data.crop, such as {side}")
    if config.crop is not None and config.crop > side + 2 * config.pad:
        padded = f", {side + 2 * config.pad} when padded" if config.pad else ""
        raise OptionError(
            f"data.crop = {config.crop} is larger than the images, whose side is {side}{padded}: lower it"
        )
