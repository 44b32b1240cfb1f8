"""What a shape decides: the number of groups, and whether a slab stays on chip between sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from normforge.codegen.plan import DTYPES, Plan
from normforge.errors import DtypeError, ShapeError
from normforge.ir.types import B, G, K, S

MAX_GROUPS = 32
# What counts as on chip. C: half of a common share of last-level cache; Triton's multi-launch plans pass a whole
# tensor between launches, through the level-2 cache of a data-centre GPU.
ON_CHIP_BYTES = {"c": 6 << 20, "triton": 40 << 20}
ON_CHIP_NAME = {"c": "cache", "triton": "L2"}
# Programs of a swept plan that run at once on such a GPU, so the slabs that share its level-2 cache.
SLABS_AT_ONCE = 264
ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def resolve_groups(groups: int | None, channels: int) -> int:
    """The number of groups for a channel count: None means 32, lowered to the largest divisor of it not above.

    Raises:
        ShapeError: `groups` does not divide `channels`.
    """
    if groups is None:
        return next(g for g in range(min(MAX_GROUPS, channels), 0, -1) if channels % g == 0)
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ShapeError(f"groups is a positive number or None, not {groups!r}")
    if channels % groups:
        raise ShapeError(f"groups={groups} does not divide {channels} channels: choose a divisor, or None")
    return groups


def plan_dims(shape: Sequence[int], groups: int | None = None) -> tuple[int, int, int, int]:
    """N, groups, channels a group, positions of a shape (N, C, *spatial).

    Raises:
        ShapeError: not (N, C, *spatial), or `groups` does not divide C.
    """
    if len(shape) < 2 or any(not isinstance(e, int) or e < 1 for e in shape):
        raise ShapeError(f"a shape is (N, C, *spatial) of positive numbers, not {tuple(shape)}")
    n, c, *spatial = shape
    g = resolve_groups(groups, c)
    return n, g, c // g, prod(spatial)


def slab_bytes(plan: Plan, shape: Sequence[int], groups: int | None = None) -> int:
    """Bytes of all full tensors of one slab, for a shape (N, C, *spatial)."""
    elements = 1
    for axis, extent in zip((B, G, K, S), plan_dims(shape, groups), strict=True):
        elements *= 1 if plan.slab & axis else extent
    tensors = len({node for s in plan.sweeps for node in s.loads}) + plan.writes
    return elements * tensors * ITEM_BYTES[plan.dtype]


def place(plan: Plan, shape: Sequence[int] | None) -> Plan:
    """The plan for a shape: is its slab resident? Without a shape it is taken to be.

    Raises:
        ShapeError: not (N, C, *spatial). DtypeError: no such dtype.
    """
    if plan.dtype not in DTYPES:
        raise DtypeError(f"dtype is one of {', '.join(DTYPES)}, not {plan.dtype!r}")
    name = "registers" if plan.kind == "resident" else ON_CHIP_NAME[plan.target]
    if shape is None:
        return replace(plan, resident_in=name)
    plan_dims(shape)
    if plan.kind in ("resident", "cooperative"):
        return replace(plan, shape=tuple(shape), resident_in=name)
    held = slab_bytes(replace(plan, slab=0) if plan.target == "triton" else plan, shape)
    if plan.kind == "swept":
        held = min(held, SLABS_AT_ONCE * slab_bytes(plan, shape))
    fits = held <= ON_CHIP_BYTES[plan.target]
    return replace(plan, shape=tuple(shape), resident_in=name if fits else None)
