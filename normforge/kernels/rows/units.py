"""The units of adaptive gradient clipping, and clipping in torch's operations (Brock et al., arXiv 2102.06171,
section 4.1).

A gradient G whose norm exceeds λ·max(‖W‖, ε) is scaled to that norm, unit by unit. A weight (out, ...) has a unit for
each of its rows; a tensor of which at most one axis is longer than one (bias, gain, scalar) is one unit, as in the
authors' code. Of a DTensor a process holds some rows, or a part of the only unit, whose norm then takes one exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from normforge.errors import OptionError

LEAST = 1e-6  # a norm that is divided by is at least this


def count_units(shape: Sequence[int], rule: str = "paper") -> int:
    """The number of units of a tensor: 1, or the rows along its first axis."""
    single = len(shape) <= 1 if rule == "timm" else sum(n > 1 for n in shape) <= 1
    return 1 if single else shape[0]


def local(t: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return t.to_local() if isinstance(t, DTensor) else t


def spread(p: Tensor, rule: str = "paper") -> tuple[Any, ...]:
    """The groups of processes that hold parts of the units of a parameter; none where each unit is whole."""
    if not isinstance(p, DTensor):
        return ()
    single = count_units(p.shape, rule) == 1
    groups = []
    for axis, placement in enumerate(p.placements):
        if placement.is_shard() and (single or getattr(placement, "dim", 0) != 0):
            groups.append(p.device_mesh.get_group(axis))
    return tuple(groups)


def scales(
    params: Sequence[Tensor], grads: Sequence[Tensor], clipping: float, eps: float, rule: str = "paper"
) -> list[Tensor]:
    """What each unit of a gradient is multiplied by, 1 where it is within the limit.

    Args:
        params, grads: of equal shapes, whole or DTensors alike.
        clipping: λ. eps: ε, the least norm that a weight counts as.
        rule: of units.

    Returns:
        Of each gradient (units that this process has a part of,), in float32, or float64 for float64. One exchange for
        all that are parts of the same groups of processes.
    """
    norms: list[tuple[Tensor, Tensor]] = []
    parts: dict[tuple[Any, ...], list[int]] = {}
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        units = count_units(p.shape, rule)
        norms.append((_norms(local(p), units), _norms(local(g), units)))
        if groups := spread(p, rule):
            parts.setdefault(groups, []).append(i)
    for groups, which in parts.items():
        together = torch.cat([t for i in which for t in norms[i]]).square()
        for group in groups:
            distributed.all_reduce(together, group=group)
        sizes = [len(norms[i][0]) for i in which for _ in range(2)]
        found = iter(together.sqrt().split(sizes))
        for i in which:
            norms[i] = next(found), next(found)
    made = []
    for of_w, of_g in norms:
        limit = of_w.clamp_min(eps) * clipping  # NaN stays NaN, and no comparison with it holds
        made.append(torch.where(of_g > limit, limit / of_g.clamp_min(LEAST), 1.0))
    return made


def _norms(t: Tensor, units: int) -> Tensor:
    rows = t.reshape(1, t.numel()) if units == 1 else t.flatten(1)  # a process may hold nothing of it
    wide = torch.float64 if t.dtype == torch.float64 else torch.float32
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=wide)
    return norms


def scaled(grads: Sequence[Tensor], factors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, in their local parts, times the factors of their units."""
    parts = [local(g) for g in grads]
    views = [f.view(-1, *[1] * (g.dim() - 1)) if g.dim() else f[0] for g, f in zip(parts, factors, strict=True)]
    wide = [g.to(f.dtype) for g, f in zip(parts, factors, strict=True)]  # 16 bits are rounded once
    made = list(torch._foreach_mul(wide, views)) if parts else []
    return [m.to(g.dtype) for m, g in zip(made, parts, strict=True)]


def check_whole(p: Tensor) -> None:
    """Raise OptionError for a parameter whose units cannot be told."""
    if getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False):
        raise OptionError(
            "adaptive clipping needs the rows of each weight, and FSDP (version 1) flattens weights into one: use "
            "FSDP2, torch.distributed.fsdp.fully_shard"
        )
    if not p.is_floating_point():
        raise OptionError(f"parameters are floating-point numbers, and one of {p.dtype} was given")


def check_gradient(g: Tensor) -> None:
    """Raise OptionError for a gradient that has no rows."""
    if g.is_sparse or g.layout != torch.strided:
        raise OptionError("sparse gradients cannot be clipped: make the embedding with sparse=False")
