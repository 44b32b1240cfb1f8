"""A data set: images and labels in four parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Part:
    """A part of a data set: images (N, C, H, W) of float32 and their labels (N,) of int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str) -> Part:
        """The part on a device."""
        return Part(self.images.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels in their order, `size` at a time."""
        return zip(self.images.split(size), self.labels.split(size), strict=True)

    def limits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The least and the largest value of each channel, (C,) each."""
        return self.images.amin((0, 2, 3)), self.images.amax((0, 2, 3))


@dataclass(frozen=True)
class Data:
    """A data set in disjoint parts: weights are fitted on `train`, layers chosen on `validation`, the best ranked again
    on `holdout`, and judged on `test`, which nothing is chosen by.

    Attributes:
        classes: number of labels.
        digest: blake2b of all images, labels and the split, hex; the same on every machine.
    """

    train: Part
    validation: Part
    holdout: Part
    test: Part
    classes: int
    digest: str

    def mapped(self, change: Callable[[Part], Part], digest: str | None = None) -> Data:
        """The data with each part changed; `digest` is that of what comes of it, where it is other data."""
        return replace(
            self,
            train=change(self.train),
            validation=change(self.validation),
            holdout=change(self.holdout),
            test=change(self.test),
            digest=digest or self.digest,
        )
