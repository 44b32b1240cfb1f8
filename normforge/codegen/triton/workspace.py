"""The arrays that the stages of a plan hand on: partial sums of rows, and small values that are no outputs.

Row sums have partials of shape [N][Q][C], Q the number of chunks of a row in their sweep: p of sums, m of means and q
of sums of squared deviations. m and q belong to the operand, which a mean and a variance share. w are small values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from normforge.codegen.index import extents
from normforge.codegen.plan import Plan
from normforge.codegen.schedule import WorkArray
from normforge.codegen.triton.kernels import Kernel, SlabKernel, SmallKernel, SweepKernel, sweep_numbers
from normforge.ir.node import Node, toposort
from normforge.ir.ops import LEAF, REDUCE, Op
from normforge.ir.types import S
from normforge.passes.factor import is_full

PARTIALS = {"p": "sums", "m": "means", "q": "sums of squared deviations"}


def number_values(plan: Plan, kernels: Sequence[Kernel]) -> tuple[Node, ...]:
    """The values of a plan in the order of the numbers that the source names them by: those of its graph, then the
    sums over one axis that small kernels take on the way to sums over several."""
    found = dict.fromkeys(plan.graph.nodes)
    for kernel in kernels:
        if isinstance(kernel, SmallKernel):
            found |= dict.fromkeys(kernel.needed)
    return tuple(found)


def is_small_output(node: Node) -> bool:
    """True for a value that lives in an output: small, and computed."""
    return not is_full(node.axes) and node.op not in LEAF


def identifier(name: str) -> str:
    """A name of the IR, such as `ct.d.x`, as a Python identifier."""
    return re.sub(r"\W", "_", name)


def value_name(number: int) -> str:
    """The array of a small value."""
    return f"w{number}"


def partial_name(number: Mapping[Node, int], node: Node, kind: str) -> str:
    """An array of partials of a row sum."""
    return f"{kind}{number[node if kind == 'p' else node.args[0]]}"


def work_arrays(plan: Plan, stages: Sequence[tuple[str, Kernel]], values: Sequence[Node]) -> tuple[WorkArray, ...]:
    """The arrays in the order in which they are written.

    Args:
        plan: the plan.
        stages: (name, kernel) in order.
        values: from `number_values`.
    """
    number = {node: i for i, node in enumerate(values)}
    sweep_of = sweep_numbers(plan)
    returned = {n for _, n in plan.outputs if is_small_output(n)}
    arrays: dict[str, WorkArray] = {}
    holds: dict[str, set[Node]] = {}
    for stage, kernel in stages:
        for node, kind in _written(plan, kernel):
            if kind == "w":
                if node in returned:
                    continue
                array = WorkArray(value_name(number[node]), "float32", extents(node.axes), str(node.op), (stage,))
            else:
                of = node if kind == "p" else node.args[0]
                value = f"in_{identifier(of.name)}" if of.op in (Op.INPUT, Op.PARAM) else f"v{number[of]}"
                what = f"{PARTIALS[kind]} of chunks of {value}"
                shape = ("N", f"Q{sweep_of[node]}", "C")
                array = WorkArray(partial_name(number, node, kind), "float32", shape, what, (stage,))
            known = arrays.setdefault(array.name, array)
            if stage not in known.written:
                arrays[array.name] = replace(known, written=(*known.written, stage))
            holds.setdefault(array.name, set()).add(node)
            if kind == "m":
                holds[array.name] |= {n for n in sweep_of if n.op is Op.MEAN and n.args == node.args}
    return tuple(
        replace(array, read=tuple(stage for stage, kernel in stages if kernel.needs & holds[name]))
        for name, array in arrays.items()
    )


def _written(plan: Plan, kernel: Kernel) -> list[tuple[Node, str]]:
    """(value, kind of array) in the order of stores: partials of rows (p, or m and q) and small values (w)."""
    if isinstance(kernel, SmallKernel):
        at_points = [n for n in kernel.stores if n.axes == kernel.space]
        return [(n, "w") for n in (*(n for nest in kernel.nests for n in nest.stores), *at_points)]
    small = [(n, "w") for n in kernel.values]
    if isinstance(kernel, SweepKernel):
        pairs = {(n.args, n.attr) for n in kernel.sums if n.op is Op.VAR}
        rows = [n for n in kernel.sums if n.reduced & S]
        sums = [(n, "p") for n in rows if (n.args, n.attr) not in pairs]
        return [*sums, *((n, kind) for n in rows if n.op is Op.VAR for kind in "mq"), *small]
    partials = [(n, "p") for n in _partials(plan, kernel)]
    return [*small, *partials] if kernel.slabs.persistent else [*partials, *small]


def _partials(plan: Plan, kernel: SlabKernel) -> list[Node]:
    """Partials of slabs: of a walk tile by tile as the walks over the slab take them, else as soon as they can be."""
    if kernel.slabs.loop:
        return [n for sweep in plan.sweeps for n in sweep.sums if n in kernel.partials]
    if kernel.slabs.persistent:
        return list(kernel.partials)
    level: dict[Node, int] = {}
    for node in toposort(kernel.roots, lambda n: () if n in kernel.reads else n.args):
        below = () if node in kernel.reads else node.args
        summed = node.op in REDUCE and node not in kernel.reads
        level[node] = max((level[a] for a in below), default=0) + summed
    return sorted(kernel.partials, key=lambda n: level[n.args[0]])
