"""Training: steps by a recipe, stopped when the loss is not finite. What searches and people train with.

On a GPU a step of one process is captured once as a CUDA graph and replayed: small networks are bound by launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from normforge.train.config import Optimization, Recipe
from normforge.train.data.batches import Batches
from normforge.train.optimizer import Average, optimizer_of

_WARM = 3  # steps of a process before a CUDA graph is captured; they are steps of the training like all others
_LOOK = 16  # steps between two looks at the loss on a GPU, where each look waits for it


class Diverged(Exception):
    """The error that a loss stopped being finite."""


class Evaluated(Protocol):
    """Images to evaluate on."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, C, S, S) and labels (N,) in their order, on the model's device."""


class Training:
    """A training that can be advanced in pieces; the pieces together are the same as the whole.

    Args:
        model: from images to logits, on its device; left in training mode.
        batches: training images, on the device.
        recipe: steps, learning rate and schedule, optimizer, clipping, average, dtype, layout.
        called: what a step calls in the model's place, such as its DDP; None is the model.
        shared: makes a loss the mean of those of all processes; None where there is one.

    Attributes:
        model: as given. recipe: as given.
        done: steps done so far.
        optimizer: of the model's parameters.
        average: of weights and running statistics, where the recipe asks for one.
        look: steps between two looks at the loss, each of which waits for the device.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        recipe: Recipe,
        called: nn.Module | None = None,
        shared: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.batches, self.recipe = model, batches, recipe
        self.done = 0
        model.to(memory_format=memory_format(recipe))
        self._called = model if called is None else called
        self._shared = shared
        device = next(model.parameters()).device
        # Steps of one process are captured; a tensor, so that a captured step reads what the schedule has written.
        self._captures = device.type == "cuda" and called is None and recipe.accumulate == 1 and not recipe.clip_norm
        self._rate = torch.tensor(recipe.rate, device=device) if self._captures else recipe.rate
        self.optimizer = optimizer_of(model, recipe, self._rate)
        self.average = None if recipe.ema is None else Average(model, self.optimizer, recipe.ema)
        self.look = _LOOK if device.type == "cuda" else 1
        self._warm = 0
        self._captured: _Captured | None = None

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return rate_at(self.recipe, self.done)

    def advance(self, steps: int) -> float:
        """Train up to step `steps` of the recipe.

        Returns:
            The loss of the last batch; NaN where nothing was to be done.

        Raises:
            Diverged: the loss is not finite; the message says by which step.
        """
        if not (self.model.training and self._called.training):
            self._called.train()
            self.model.train()
        last = math.nan
        while self.done < steps:
            self._set_rate()
            images, labels = self.batches.next()
            loss = self._step(images.contiguous(memory_format=memory_format(self.recipe)), labels)
            if self.average:
                self.average.update()
            self.done += 1
            if self.done % self.look == 0 or self.done == steps:
                last = (self._shared(loss) if self._shared else loss).item()
                if not math.isfinite(last):
                    raise Diverged(f"the loss is {last} at step {self.done}")
        return last

    def evaluate(self, part: Evaluated) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy on a part, of the average of the weights where there is one."""
        with self.average.in_place() if self.average else nullcontext():
            return evaluate(self.model, part, self.recipe)

    def _set_rate(self) -> None:
        rate: float | Tensor = self.rate
        if isinstance(self._rate, Tensor):
            rate = self._rate.fill_(self.rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate  # a state that was loaded has another tensor

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        if not self._captures:
            return self._whole_step(images, labels)
        if self._warm < _WARM:
            self._warm += 1
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
        self.optimizer.zero_grad()
        parts = self.recipe.accumulate
        if parts == 1:
            loss = self._loss(images, labels)
            loss.backward()
        else:
            losses = []
            for k, (some, theirs) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True)):
                share = len(some) / len(images)
                with nullcontext() if k == parts - 1 else self._apart():
                    losses.append(self._loss(some, theirs) * share)
                    losses[-1].backward()
            loss = torch.stack([part.detach() for part in losses]).sum()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with autocast(self.recipe, images):
            logits = self._called(images).float()
        return cross_entropy(logits, labels, label_smoothing=self.recipe.smoothing)

    def _apart(self) -> Any:
        """The context in which gradients of one process are not yet exchanged with others."""
        return self._called.no_sync() if isinstance(self._called, DistributedDataParallel) else nullcontext()


def rate_at(recipe: Optimization, step: int) -> float:
    """The learning rate of a step, from 0: it rises to its top through `warmup`, and falls after it to 0 by a cosine,
    or not."""
    top = recipe.rate if recipe.rate_for is None else recipe.rate * recipe.batch / recipe.rate_for
    if step < recipe.warmup:
        return top * step / recipe.warmup
    if recipe.schedule == "constant":
        return top
    return top * 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup)))


class _Captured:
    """A whole training step as one CUDA graph; capturing runs nothing."""

    def __init__(self, training: Training, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        self._weights = [*training.model.parameters()]
        self._graph = torch.cuda.CUDAGraph()
        # Threads that pin memory for a loader of images may go on meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss = training._whole_step(self._images, self._labels)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        increment_version(self._weights)  # or what is kept of them, as standardized weights are, would be taken for new
        return self._loss


def memory_format(recipe: Optimization) -> torch.memory_format:
    """The memory layout of images and filters."""
    return torch.channels_last if recipe.layout == "nhwc" else torch.contiguous_format


def autocast(recipe: Optimization, images: Tensor) -> Any:
    """The context in which a network computes in the recipe's dtype."""
    if recipe.dtype == "float32":
        return nullcontext()
    return torch.autocast(images.device.type, dtype=torch.bfloat16)


@torch.no_grad()
def evaluate(model: nn.Module, part: Evaluated, recipe: Recipe, batch: int = 1024) -> tuple[float, float]:
    """Mean cross-entropy in nats (not finite if any logit is not) and accuracy, in inference mode."""
    model.eval()
    losses, right = [], 0
    for images, labels in part.batches(batch):
        with autocast(recipe, images):
            logits = model(images.contiguous(memory_format=memory_format(recipe))).float()
        losses.append(cross_entropy(logits, labels, reduction="sum").double())
        right += (logits.argmax(1) == labels).sum()
    count = len(part)
    return float(sum(losses) / count), int(right) / count  # a threshold may be met exactly: not in float32
