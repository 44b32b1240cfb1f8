"""Data with smaller images, for the cheapest proxy."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import interpolate

from normforge.train.config import DataConfig
from normforge.train.data.load import load_data
from normforge.train.data.parts import Data, Part


@lru_cache(maxsize=2)
def shrunk(config: DataConfig, side: int) -> Data:
    """The data of a configuration with images averaged down to a side, and scaled again by the mean and deviation that
    each channel then has in the training images. Images that are no larger stay as they are.

    Args:
        config: section `data` of a configuration.
        side: in pixels.

    Raises:
        OptionError: data that cannot be read.
    """
    data = load_data(config)
    if data.train.images.shape[-1] <= side:
        return data
    train = _averaged(data.train.images, side).double()
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    deviation[deviation == 0] = 1.0

    def small(part: Part) -> Part:
        return Part(((_averaged(part.images, side) - mean) / deviation).float(), part.labels)

    return data.mapped(small, f"{data.digest}/{side}")


def _averaged(images: torch.Tensor, side: int) -> torch.Tensor:
    return torch.cat([interpolate(part, size=(side, side), mode="area") for part in images.split(4096)])
