"""What is decided about the full values of a plan before any loop is written: which are kept in a buffer between two
loops, and which products are rounded together with a sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from normforge.codegen.c.names import is_stored
from normforge.codegen.plan import Plan, is_full_input, is_sweep_sum
from normforge.ir.node import Node, preorder
from normforge.ir.ops import LIBRARY, Op
from normforge.ir.types import B, G, K, S
from normforge.passes.factor import is_full

# What costs more than a store and a load: computed once a slab, kept in a small buffer from sweep to sweep.
DEAR = LIBRARY
KEEP = 1 << 15  # elements of such a buffer, on the stack of each thread: 128 KiB
MAX_KEPT = 4  # buffers: a level-2 cache, and the stack of a small thread, hold no more
TILE = 4096  # elements of rows between two visits of the same data: 16 KiB, half of a level-1 cache
COLUMN_CHUNK = 1024  # most positions of a chunk where channels are summed at each


def kept(plan: Plan) -> list[Node]:
    """The full values that are dear to compute and read by two loops: two sweeps over a slab, or mean and deviations.

    Of all that both loops compute, only what something else reads is kept: dy · silu'(a) rather than the sigmoid in
    it, unless that takes more buffers. A slab that crosses samples is too large for a buffer.
    """
    columns = [n for s in plan.sweeps for n in s.sums if not n.reduced & S]
    variances = any(n.op is Op.VAR for s in plan.sweeps for n in s.sums)
    if plan.layout == "nhwc" and (not plan.slab & S or variances or any(n.axes & G for n in columns)):
        return []  # a slab of whole positions is too large, or a position is walked more than once
    pairs = [[n.args[0] for n in s.sums if n.op is Op.VAR and n.reduced & S] for s in plan.sweeps]
    again = [below(plan, roots) for roots in pairs if roots]
    first = [below(plan, [n.args[0] for n in s.sums] + [n for _, n in s.stores]) for s in plan.sweeps]
    walks = [*(first if plan.slab & B else again), *again]
    seen = Counter(n for walk in walks for n in walk if is_full(n.axes) and not is_full_input(n))
    costly: set[Node] = set()
    for node in plan.graph.nodes:
        if seen[node] > 1 and (node.op in DEAR or any(a in costly for a in node.args)):
            costly.add(node)
    read = {a for walk in walks for n in walk if n not in costly for a in n.args}
    read |= {n.args[0] for s in plan.sweeps for n in s.sums} | {n for s in plan.sweeps for _, n in s.stores}
    last = [n for n in plan.graph.nodes if n in costly and n in read]
    dear = [n for n in plan.graph.nodes if n in costly and n.op in DEAR]
    return (last if len(last) <= len(dear) else dear)[:MAX_KEPT]


def below(plan: Plan, roots: Iterable[Node], stop: Iterable[Node] = ()) -> list[Node]:
    """Everything that the roots need at an element: full values down to full inputs, stored values and `stop`."""
    ends = set(stop)
    inside = set(preorder(roots, lambda n: () if is_full_input(n) or is_stored(n) or n in ends else n.args))
    return [n for n in plan.graph.nodes if n in inside]


def fused(plan: Plan) -> frozenset[Node]:
    """The products that are rounded together with the one sum that they are added to.

    Written in the source, so that vector loops and what is left over agree. Not where x·x − mean(x·x) of one element
    would no longer be 0: never a product that is used twice, nor one that meets a moment, which may be its own.
    """
    uses = Counter(a for node in plan.graph.nodes for a in node.args)
    uses.update(node for _, node in plan.outputs)

    def free(node: Node) -> bool:
        return node.op in (Op.MUL, Op.SQUARE) and is_full(node.axes) and uses[node] == 1

    def meets_moment(node: Node) -> bool:
        return any(not is_full(a.axes) and a.op not in (Op.PARAM, Op.CONST) for a in node.args)

    found: set[Node] = set()
    for node in plan.graph.nodes:
        if (node.op in (Op.ADD, Op.SUB) and not meets_moment(node)) or (
            node.op is Op.SUM and is_sweep_sum(node) and counts_all(node)
        ):
            found |= set(list(filter(free, reversed(node.args)))[:1])
    return frozenset(found)


def counts_all(node: Node) -> bool:
    """False for a sum over channels of what is the same for all channels of a group: it takes each group once."""
    return bool(node.reduced & S or node.args[0].axes & K)
