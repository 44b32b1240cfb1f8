"""Scaled weight standardization in torch's operations: what the kernels compute, and where they cannot serve."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normforge.codegen.eager import arithmetic_dtype
from normforge.errors import OptionError, nearest

RULES = {"paper": 1e-4, "timm": 1e-5}  # ε of each


def check_rule(rule: str) -> None:
    """Raise OptionError unless there is such a rule, of standardization or of units."""
    if rule not in RULES:
        raise OptionError(f"there is no rule {rule!r}{nearest(str(rule), RULES)}: choose one of {', '.join(RULES)}")


class Standardization(NamedTuple):
    """How a weight is standardized.

    Attributes:
        rule: "paper": Ŵ = scale · gain · (W − μ) / √max(N·σ², ε), with the biased variance σ² of the N elements of a
            row, as the authors' code computes it (Brock et al., arXiv 2102.06171, section 2 and its code, `base.py`).
            "timm": √(N · (σ² + ε)) in place of the root.
        eps: ε.
        scale: a constant factor.
    """

    rule: str = "paper"
    eps: float = RULES["paper"]
    scale: float = 1.0

    def denominator(self, squares: Tensor, count: int) -> Tensor:
        """What the root is taken of.

        Args:
            squares: Σ (W − μ)² of each row.
            count: N.
        """
        return squares.clamp_min(self.eps) if self.rule == "paper" else squares + count * self.eps


class Standardized(NamedTuple):
    """What forward computes of a weight.

    Attributes:
        value: Ŵ, of the shape and strides of the weight.
        saved: (out, 3), of each row the mean, the inverse root, and what the derivative of the root is multiplied by.
    """

    value: Tensor
    saved: Tensor


def standardize(weight: Tensor, gain: Tensor, how: Standardization) -> Tensor:
    """The standardized weight, differentiable to any order.

    Args:
        weight: (out, ...).
        gain: (out,).
        how: the rule.

    Returns:
        Of weight's shape and dtype; arithmetic of 16-bit weights is in float32.
    """
    wide = arithmetic_dtype(weight.dtype)
    rows = weight.to(wide).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    root = how.denominator(centred.square().sum(1), rows.shape[1]).rsqrt()
    made = centred * (gain.to(wide) * root * how.scale)[:, None]
    return made.to(weight.dtype).view(weight.shape) if weight.is_contiguous() else _shaped(made, weight)


def _shaped(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows as a tensor of a weight's shape and order of axes in memory."""
    made = rows.to(weight.dtype).reshape(weight.shape)
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return made.contiguous(memory_format=torch.channels_last)
    return made
