"""Images with their instances: what a detector is trained and judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Scene:
    """An image and the instances in it.

    Attributes:
        image: (3, H, W) of uint8.
        boxes: (n, 4) of float32: left, top, right, bottom, in pixels; of positive width and height.
        labels: (n,) of int64, from 1 on; 0 is the background.
        masks: (n, H, W) of uint8, 0 or 1.
        crowd: (n,) of bool: regions of many objects, which are neither learned from nor counted as missed.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    crowd: Tensor


@dataclass(frozen=True)
class Found:
    """What a detector says of an image, best first.

    Attributes:
        boxes: (n, 4) of float32: left, top, right, bottom, in pixels.
        scores: (n,) of float32 in [0, 1].
        labels: (n,) of int64, from 1 on.
        masks: (n, H, W) of uint8, 0 or 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


class Scenes(Protocol):
    """A part of a data set.

    Attributes:
        names: of the classes; label k is `names[k - 1]`.
        digest: of all that is in it; another means other data.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""

    @property
    def digest(self) -> str:
        """Of all that is in it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...
