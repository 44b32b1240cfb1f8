"""explain: the plans of a layer in words and numbers, order by order."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from normforge.api import plan
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import ITEM_BYTES
from normforge.ir.graph import Graph
from normforge.ir.types import axes_name
from normforge.passes.running import running_statistics

ORDER_NAMES = ("forward", "backward", "double backward")


def explain(
    graph: Graph,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    layout: str = "nchw",
    target: str = "triton",
    *,
    ir: bool = False,
) -> str:
    """Text for people: what each order loads, sums, stores, and what that costs at a shape.

    Args:
        graph: a layer.
        shape: (N, C, *spatial); without it, slabs are taken to stay on chip and no bytes are given.
        dtype, layout, target: as in `normforge.plan`.
        ir: also the typed SSA of each order.
    """
    lines = [str(graph), ""]
    for r in running_statistics(graph):
        lines.append(f"keeps {r.name}, one value for each of {axes_name(r.axes)}, in training mode")
    for order, name in enumerate(ORDER_NAMES):
        p = plan(graph, order, shape=shape, dtype=dtype, layout=layout, target=target)
        lines += ["", f"{name}: {_numbers(p)}", *str(p).split("\n")[1:]]
        if shape is not None:
            lines.append("  " + _bytes(p, shape))
        if ir:
            lines += ["", p.graph.dump()]
    return "\n".join(lines)


def _numbers(p: Plan) -> str:
    where = f"slab {axes_name(p.slab)} stays in {p.resident_in}" if p.resident_in else "slab does not stay on chip"
    return (
        f"{p.loads} loads ({p.reads} from memory), {p.writes} writes, {len(p.sweeps)} sweeps, "
        f"{p.launches} launches, {p.accumulators} row or column sums; {where}"
    )


def _bytes(p: Plan, shape: Sequence[int]) -> str:
    full = prod(shape) * ITEM_BYTES[p.dtype]
    return f"{(p.reads + p.writes) * full / 1e6:.1f} MB of full tensors moved ({full / 1e6:.1f} MB each)"
