"""What a shape decides: the number of groups, the extents of the four axes, the bytes of a slab."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from normforge.codegen.plan import Plan
from normforge.errors import ShapeError
from normforge.ir.types import B, G, K, S

Dims = tuple[int, int, int, int]  # N, groups, channels a group, positions
MAX_GROUPS = 32
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


def plan_dims(shape: Sequence[int], groups: int | None = None) -> Dims:
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
