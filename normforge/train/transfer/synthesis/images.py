"""Images for a BigGAN: of a side that there is one for, and between -1 and 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from normforge.cache import digest
from normforge.errors import OptionError
from normforge.train.config import DataConfig, Fractals
from normforge.train.data.load import load_data
from normforge.train.data.parts import Data, Part
from normforge.train.transfer.synthesis.biggan import SIDES, check_side


def images_of(source: str, size: int | None = None, seed: int = 0, download: bool = False) -> Data:
    """The images of a source, of a side that there is a BigGAN for.

    Args:
        source: digits, fractals, cifar10:DIR, imagefolder:DIR or another of `DataConfig.source`.
        size: of a side, in pixels; None is the nearest one to the images' own.
        seed: of the split, and of fractals.
        download: fetch a data set that torchvision knows, if it is not there.

    Raises:
        OptionError: no such source, files that cannot be read, another size, none for images of a folder, images that
            are neither grey nor of three channels.
    """
    if size is not None:
        check_side(size)
    kind = source.partition(":")[0]
    if kind == "imagefolder" and size is None:
        raise OptionError(f"{source}: the images of a folder are of any size: say to which side they are resized")
    fractals = Fractals(size=size or 32)
    native = size if kind == "imagefolder" else None  # these are resized as they are read
    data = load_data(DataConfig(source=source, seed=seed, size=native, fractals=fractals), download)
    if (channels := data.train.images.shape[1]) not in (1, 3):
        raise OptionError(f"{source}: the images have {channels} channels: give grey ones, or of three colours")
    own = data.train.images.shape[-1]
    return resized(data, size or min(SIDES, key=lambda side: abs(side - own)))


def resized(data: Data, side: int) -> Data:
    """The data with images resized to a side in pixels, bilinearly; as they are where that is their side."""
    if data.train.images.shape[-1] == side:
        return data

    def part(old: Part) -> Part:
        size = (side, side)
        return Part(functional.interpolate(old.images, size, mode="bilinear", antialias=True), old.labels)

    return data.mapped(part, digest("resized", data.digest, str(side)))


@dataclass(frozen=True)
class Range:
    """The map between images of a data set and those of a BigGAN, linear by channel: the least and the largest value
    of the training images are -1 and 1.

    Attributes:
        low, high: (C, 1, 1) of the data set.
    """

    low: Tensor
    high: Tensor

    @staticmethod
    def of(part: Part) -> Range:
        """That of training images; a channel of one value is mapped to -1."""
        low, high = part.limits()
        high = torch.where(high > low, high, low + 1)
        return Range(low[:, None, None], high[:, None, None])

    def to_unit(self, images: Tensor) -> Tensor:
        """Images (N, C, S, S) of the data set to those of a BigGAN."""
        return (images - self.low) / (self.high - self.low) * 2 - 1

    def from_unit(self, images: Tensor) -> Tensor:
        """The inverse."""
        return (images + 1) / 2 * (self.high - self.low) + self.low
