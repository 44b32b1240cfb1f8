"""Training a proxy network: SGD with momentum and a schedule, stopped when the loss is not finite.

On a GPU a step is captured once as a CUDA graph and replayed, since small networks are bound by launches.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normforge.train.config import DataConfig, Recipe
from normforge.train.data import Part
from normforge.train.data.augment import augment

_WARM = 3  # steps before a CUDA graph is captured; they are steps of the training like all others
_LOOK = 16  # steps between two looks at the loss on a GPU, where each look waits for it


class Diverged(Exception):
    """The error that a loss stopped being finite."""


@dataclass
class Training:
    """A training that can be advanced in pieces; the pieces together are the same as the whole.

    Attributes:
        model: from images to logits, on the images' device; left in training mode.
        part: training images.
        recipe: steps, batch, learning rate and schedule, momentum, weight decay, dtype, layout.
        rng: draws the batches, epoch by epoch, and the augmentation.
        data: crops and flips; none by default.
        done: steps done so far.
    """

    model: nn.Module
    part: Part
    recipe: Recipe
    rng: np.random.Generator
    data: DataConfig = field(default_factory=DataConfig)
    done: int = 0
    _order: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        recipe, device = self.recipe, self.part.images.device
        # Only matrices and filters decay: not v0, v1, gamma, beta, nor biases (EvoNorm, appendix).
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain}]
        self.model.to(memory_format=memory_format(recipe))
        # A tensor, so that a captured step reads what the schedule has written.
        self._rate = torch.tensor(recipe.rate, device=device) if device.type == "cuda" else recipe.rate
        self._optimizer = torch.optim.SGD(
            groups, lr=self._rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
        )
        self._captured: _Captured | None = None

    def advance(self, steps: int) -> None:
        """Train up to step `steps` of the recipe.

        Raises:
            Diverged: the loss is not finite; the message says by which step.
        """
        self.model.train()
        every = _LOOK if self.part.images.is_cuda else 1
        while self.done < steps:
            self._set_rate()
            batch = self._batch()
            images = augment(self.part.images[batch], self.rng, self.data)
            loss = self._step(images.contiguous(memory_format=memory_format(self.recipe)), self.part.labels[batch])
            self.done += 1
            if (self.done % every == 0 or self.done == steps) and not math.isfinite(loss.item()):
                raise Diverged(f"the loss is {loss.item()} at step {self.done}")

    def _set_rate(self) -> None:
        share = self.done / self.recipe.steps if self.recipe.schedule == "cosine" else 0.0
        rate = self.recipe.rate * 0.5 * (1 + math.cos(math.pi * share))
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = rate

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        if not images.is_cuda:
            return self._whole_step(images, labels)
        if self.done < _WARM:
            stream = torch.cuda.Stream()  # capture asks for warm-up on a stream of its own
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loss = self._whole_step(images, labels)
            torch.cuda.current_stream().wait_stream(stream)
            return loss
        if self._captured is None:
            self._captured = _Captured(self, images, labels)
        return self._captured(images, labels)

    def _whole_step(self, images: Tensor, labels: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        with autocast(self.recipe, images):
            loss = cross_entropy(self.model(images).float(), labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _batch(self) -> Tensor:
        size = min(self.recipe.batch, len(self.part.labels))
        if len(self._order) < size:
            self._order = self.rng.permutation(len(self.part.labels))
        batch, self._order = self._order[:size], self._order[size:]
        return torch.from_numpy(batch).to(self.part.images.device)


class _Captured:
    """A whole training step as one CUDA graph; capturing runs nothing."""

    def __init__(self, training: Training, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = training._whole_step(self._images, self._labels)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._loss


def memory_format(recipe: Recipe) -> torch.memory_format:
    """The memory layout of images and filters."""
    return torch.channels_last if recipe.layout == "nhwc" else torch.contiguous_format


def autocast(recipe: Recipe, images: Tensor) -> Any:
    """The context in which a network computes in the recipe's dtype."""
    if recipe.dtype == "float32":
        return nullcontext()
    return torch.autocast(images.device.type, dtype=torch.bfloat16)


@torch.no_grad()
def evaluate(model: nn.Module, part: Part, recipe: Recipe, batch: int = 1024) -> tuple[float, float]:
    """Mean cross-entropy in nats (not finite if any logit is not) and accuracy, in inference mode."""
    model.eval()
    losses, right = [], 0
    for images, labels in zip(part.images.split(batch), part.labels.split(batch), strict=True):
        with autocast(recipe, images):
            logits = model(images.contiguous(memory_format=memory_format(recipe))).float()
        losses.append(cross_entropy(logits, labels, reduction="sum").double())
        right += (logits.argmax(1) == labels).sum()
    count = len(part.labels)
    return float(sum(losses) / count), int(right) / count  # a threshold may be met exactly: not in float32
