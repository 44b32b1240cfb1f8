"""What a planned derivative costs at a shape, in bytes: moved, at the floor, saved, allocated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from normforge.codegen.plan import Plan, is_data
from normforge.codegen.registry import find_target
from normforge.codegen.shapes import ITEM_BYTES, plan_dims
from normforge.errors import ShapeError
from normforge.ir.node import Node
from normforge.ir.types import B, G, K, S


@dataclass(frozen=True)
class Account:
    """The memory of one call.

    Attributes:
        tensor: bytes of one full tensor, S.
        moved: bytes of full tensors read from memory and written to it.
        floor: the same where every full tensor is read once and written once: 2 S, 3 S, 5 S by order.
        partials: bytes of partial sums, written to the workspace by one kernel and read back by another. 0 for a target
            where they stay in caches.
        small: bytes of parameters and statistics, each once.
        saved: (name, bytes) of what autograd keeps for the next derivative.
        outputs: bytes of the tensors returned.
        workspace: bytes of partial sums, gone after the call. 0 for a target whose kernels keep theirs.
    """

    tensor: int
    moved: int
    floor: int
    partials: int
    small: int
    saved: tuple[tuple[str, int], ...]
    outputs: int
    workspace: int

    @cached_property
    def traffic(self) -> int:
        """Bytes of full tensors and of partial sums, read and written."""
        return self.moved + self.partials

    @cached_property
    def ratio(self) -> float:
        """Traffic over the bytes of the floor: no plan is faster than this many times the floor."""
        return self.traffic / self.floor if self.floor else 1.0

    @cached_property
    def saved_bytes(self) -> int:
        """All that is saved."""
        return sum(size for _, size in self.saved)

    @cached_property
    def peak(self) -> int:
        """Bytes allocated while the call runs, on top of its operands."""
        return self.outputs + self.workspace


def account(plan: Plan, groups: int | None = None) -> Account:
    """The costs of a plan at its shape; parameters and their gradients are counted as float32 (float64 for float64).

    Raises:
        ShapeError: the plan was made without a shape.
    """
    if plan.shape is None:
        raise ShapeError("bytes depend on the shape: make the plan with shape=(N, C, *spatial)")
    dims = plan_dims(plan.shape, groups)
    tensor = prod(plan.shape) * ITEM_BYTES[plan.dtype]
    wide = 8 if plan.dtype == "float64" else 4
    extents = dict(zip((B, G, K, S), dims, strict=True))

    def size(node: Node) -> int:
        if is_data(node):
            return tensor
        return wide * prod(extent for axis, extent in extents.items() if node.axes & axis)

    full = len({node for sweep in plan.sweeps for node in sweep.loads}) + plan.writes
    operands = [(node.name, size(node)) for node in plan.operands]
    statistics = [(name, size(n)) for name, n in plan.outputs if plan.order == 0 and name in plan.saved]
    small = [n for n in (*plan.operands, *(n for _, n in plan.outputs)) if not is_data(n)]
    workspace = find_target(plan.target).workspace(plan, dims)
    return Account(
        tensor,
        (plan.reads + plan.writes) * tensor,
        full * tensor,
        2 * workspace,
        sum(map(size, small)),
        (*operands, *statistics),
        sum(size(n) for _, n in plan.outputs),
        workspace,
    )
