"""Training a proxy network: SGD with momentum and a cosine, stopped at the first loss that is not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normforge.search.config import Recipe
from normforge.search.data import Part


class Diverged(Exception):
    """The loss stopped being finite."""


@dataclass
class Training:
    """A training that can be advanced in pieces; the pieces together are the same as the whole.

    Attributes:
        model: from images to logits; left in training mode.
        part: training images.
        recipe: steps, batch, learning rate, momentum, weight decay.
        rng: draws the batches, epoch by epoch.
        done: steps done so far.
    """

    model: nn.Module
    part: Part
    recipe: Recipe
    rng: np.random.Generator
    done: int = 0
    _order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Only matrices and filters decay: not v0, v1, gamma, beta, nor biases (EvoNorm, appendix).
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decay, "weight_decay": self.recipe.weight_decay}, {"params": plain}]
        recipe = self.recipe
        self._optimizer = torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=recipe.nesterov)

    def advance(self, steps: int) -> None:
        """Train up to step `steps` of the recipe.

        Raises:
            Diverged: the loss is not finite; the message says at which step.
        """
        self.model.train()
        while self.done < steps:
            rate = self.recipe.rate * 0.5 * (1 + math.cos(math.pi * self.done / self.recipe.steps))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            batch = self._batch()
            loss = cross_entropy(self.model(self.part.images[batch]), self.part.labels[batch])
            self.done += 1
            if not math.isfinite(loss.item()):
                raise Diverged(f"the loss is {loss.item()} at step {self.done}")
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    def _batch(self) -> torch.Tensor:
        size = min(self.recipe.batch, len(self.part.labels))
        if len(self._order) < size:
            self._order = self.rng.permutation(len(self.part.labels)).tolist()
        batch, self._order = self._order[:size], self._order[size:]
        return torch.tensor(batch)


@torch.no_grad()
def evaluate(model: nn.Module, part: Part) -> tuple[float, float]:
    """Mean cross-entropy in nats (not finite if any logit is not) and accuracy, in inference mode."""
    model.eval()
    logits = model(part.images)
    loss = cross_entropy(logits, part.labels).item()
    accuracy = (logits.argmax(1) == part.labels).float().mean().item()
    return loss, accuracy
