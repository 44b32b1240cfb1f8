"""A step of SGD with adaptive gradient clipping: what it reads and writes, and the same in torch's operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normforge.kernels.rows.units import scaled, scales


class Step(NamedTuple):
    """A parameter and what a step of it reads and writes, all of one shape.

    Attributes:
        param, grad: of any floating dtype. momentum, average: float32, or float64 of float64; None for none.
    """

    param: Tensor
    grad: Tensor
    momentum: Tensor | None
    average: Tensor | None


class Settings(NamedTuple):
    """What a step does; see `normforge.optim.SGD`.

    Attributes:
        clipping: λ, or None. eps: ε. units: the rule of units.
        lr: a tensor where launches are to read it from the device.
        average: the share that the average keeps, or None.
        steps: (1,) on the device, in place of the share: how many steps there were before, see `paper_share`.
    """

    lr: float | Tensor
    momentum: float
    nesterov: bool
    decay: float
    clipping: float | None
    eps: float
    units: str
    average: float | None
    steps: Tensor | None = None

    @property
    def averages(self) -> bool:
        """Is there an average?"""
        return self.average is not None or self.steps is not None


def paper_share(step: float) -> float:
    """The share of an average that a step keeps, after so many steps (Brock et al., arXiv 2102.06171, appendix)."""
    return min(0.99999, (1 + step) / (10 + step))


def by_torch(steps: Sequence[Step], settings: Settings) -> None:
    """A step of each in torch's foreach operations, on one device or several."""
    params: Any = [s.param for s in steps]
    wide = [torch.float64 if p.dtype == torch.float64 else torch.float32 for p in params]
    grads: Any = [s.grad for s in steps]
    if settings.clipping is not None:
        factors = scales(params, grads, settings.clipping, settings.eps, settings.units)
        grads = scaled([g.to(d) for g, d in zip(grads, wide, strict=True)], factors)
    else:
        grads = [g.to(d, copy=True) for g, d in zip(grads, wide, strict=True)]
    same = all(p.dtype == d for p, d in zip(params, wide, strict=True))
    weights = params if same else [p.to(d) for p, d in zip(params, wide, strict=True)]
    if settings.decay:
        torch._foreach_add_(grads, weights, alpha=settings.decay)
    if settings.momentum:
        moments: Any = [s.momentum for s in steps]
        torch._foreach_mul_(moments, settings.momentum)
        torch._foreach_add_(moments, grads)
        if settings.nesterov:
            torch._foreach_add_(grads, moments, alpha=settings.momentum)
        else:
            grads = moments
    if isinstance(settings.lr, Tensor):
        grads = torch._foreach_mul(grads, settings.lr.reshape(()))
        torch._foreach_sub_(weights, grads)
    else:
        torch._foreach_add_(weights, grads, alpha=-settings.lr)
    if not same:
        torch._foreach_copy_(params, weights)
    if settings.averages:
        averages: Any = [s.average for s in steps]
        stored = params if same else [p.to(d) for p, d in zip(params, wide, strict=True)]
        t = settings.steps
        rest = 1 - (((1 + t) / (10 + t)).clamp_max(0.99999).reshape(()) if t is not None else settings.average)  # type: ignore
        torch._foreach_add_(averages, torch._foreach_mul(torch._foreach_sub(stored, averages), rest))
