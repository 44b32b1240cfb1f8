"""Stability: how large the gradient norm of the weights becomes under attack (EvoNorm, section 4.2).

The weights climb along the gradient of the squared norm of the loss's gradient, which takes the second derivative
of every layer. The paper climbs along the raw direction; its own size explodes first, for good layers too, so the
direction is normalised unless `stability.direction` is raw.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normforge.search.config import Stability
from normforge.search.double_backward import FastDoubleBackward


def gradient_ascent(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, config: Stability
) -> tuple[float, int, bool]:
    """Climb the gradient norm of the weights, and stop where it passes the threshold.

    Args:
        model: from images (N, C, H, W) to logits; its weights are changed.
        images: one small batch, the same at each step.
        labels: (N,).
        config: number and length of steps, threshold.

    Returns:
        The largest gradient norm (NaN counts as infinite), the steps taken, and whether it stayed within the
        threshold.
    """
    model.train()
    weights: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
    largest = 0.0
    for step in range(config.steps + 1):
        with FastDoubleBackward():
            loss = cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True, materialize_grads=True)
        squared = _squared_norm(gradients)
        norm = math.sqrt(squared.item()) if math.isfinite(squared.item()) else math.inf
        largest = max(largest, norm)
        if norm > config.threshold:
            return largest, step, False
        if step == config.steps:
            break
        direction = torch.autograd.grad(squared, weights, allow_unused=True, materialize_grads=True)
        length = math.sqrt(_squared_norm(direction).item())
        if length == 0:  # flat: there is nowhere to climb
            break
        if not math.isfinite(length):
            return math.inf, step, False
        with torch.no_grad():
            scale = config.rate / length if config.direction == "unit" else config.rate
            torch._foreach_add_([*weights], list(direction), alpha=scale)
    return largest, step, True


def _squared_norm(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """In float64, which holds the square of any float32 norm."""
    return torch.cat([t.flatten() for t in tensors]).double().square().sum()
