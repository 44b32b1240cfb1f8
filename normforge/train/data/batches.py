"""Batches of training images, drawn without end; where a stream of them stands can be stored."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from normforge.train.config import DataConfig
from normforge.train.data.augment import augment
from normforge.train.data.parts import Part

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches(Protocol):
    """A stream of batches that ends nowhere."""

    def next(self) -> Batch:
        """This process's share of the next batch: images (N, C, S, S) of float32 and labels, both on the device: (N,)
        of int64, or (N, classes) of float32 where images are mixed."""

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def close(self) -> None:
        """End what it has started, such as processes that read files."""


class ArrayBatches:
    """Batches of a part that is held in memory, epoch by epoch; what is left of an epoch is smaller, and dropped.

    Args:
        part: training images, on the device.
        batch: images of a batch; at most those that there are.
        rng: draws order, crops and flips, of whole batches: they are the same for any number of processes.
        data: crops and flips; none by default.
        rank, world: this process takes every `world`-th image of a batch.
    """

    def __init__(
        self,
        part: Part,
        batch: int,
        rng: np.random.Generator,
        data: DataConfig | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.part, self.rng, self.data = part, rng, data or DataConfig()
        self.batch = min(batch, len(part))
        self._share = slice(rank, None, world)
        self._order = np.empty(0, dtype=np.int64)

    def next(self) -> Batch:
        """The next batch."""
        if len(self._order) < self.batch:
            self._order = self.rng.permutation(len(self.part))
        drawn, self._order = self._order[: self.batch], self._order[self.batch :]
        batch = torch.from_numpy(drawn).to(self.part.images.device)
        images = augment(self.part.images[batch], self.rng, self.data)
        return images[self._share], self.part.labels[batch][self._share]

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator, and what is left of the epoch."""
        return {"rng": self.rng.bit_generator.state, "order": torch.from_numpy(self._order.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.rng.bit_generator.state = state["rng"]
        self._order = state["order"].numpy().copy()

    def close(self) -> None:
        """Nothing was started."""
