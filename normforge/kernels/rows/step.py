"""One step of SGD over many tensors: which of them a kernel takes, and which torch's operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from normforge.kernels.backends import EAGER, resolve
from normforge.kernels.rows import launch_c
from normforge.kernels.rows.layout import has_rows
from normforge.kernels.rows.sgd import Settings, Step, by_torch
from normforge.kernels.rows.units import local, scaled, scales, spread


def take(steps: Sequence[Step], settings: Settings, backend: str) -> None:
    """Take a step of each: param, momentum and average are written, grad is not.

    Raises:
        BackendError: the backend does not run where a parameter is.
    """
    several = [s for s in steps if settings.clipping is not None and spread(s.param, settings.units)]
    if several:  # their norms are those of units that several processes hold parts of
        apart = {id(s) for s in several}
        steps = [s for s in steps if id(s) not in apart]
        _run(_clipped(several, settings), settings._replace(clipping=None), backend)
    _run([_local(s) for s in steps], settings, backend)


def _run(steps: Sequence[Step], settings: Settings, backend: str) -> None:
    groups: dict[tuple[Any, ...], list[Step]] = {}
    for step in steps:
        groups.setdefault((target_of(step, backend), step.param.dtype, step.param.device), []).append(step)
    for (target, *_), some in groups.items():
        if target == EAGER:
            by_torch(some, settings)
        elif target == "c":
            launch_c.step(some, settings)
        else:
            from normforge.kernels.rows import launch_triton  # Triton is imported where it is used

            launch_triton.step(some, settings)


def target_of(step: Step, backend: str) -> str:
    """The target whose kernel takes a step, or "eager"."""
    p = step.param
    if not p.numel():
        return EAGER
    target = resolve(backend, p)
    if target == EAGER or not has_rows(p) or p.grad_fn is not None:
        return EAGER
    states = [t for t in (step.momentum, step.average) if t is not None]
    if any(t.stride() != p.stride() for t in states):
        return EAGER
    return EAGER if target == "triton" and p.dtype == torch.float64 else target


def _local(step: Step) -> Step:
    return Step(*(None if t is None else local(t) for t in step))  # type: ignore[arg-type]


def _clipped(steps: Sequence[Step], settings: Settings) -> list[Step]:
    """Local parts of steps, clipped by the norms of units that several processes hold."""
    assert settings.clipping is not None
    params, grads = [s.param for s in steps], [s.grad for s in steps]
    factors = scales(params, grads, settings.clipping, settings.eps, settings.units)
    made = scaled(grads, factors)
    return [_local(s)._replace(grad=g) for s, g in zip(steps, made, strict=True)]
