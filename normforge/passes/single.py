"""single: moments over exactly one element, which shapes such as (N, C, 1, 1) have.

A mean of one element is the element, and its variance is 0: x - mean(x) is then zero by form. Left as it is, terms of
size 1/√ε in its derivatives (1/ε√ε in those of the gradient) would cancel in real numbers and not in rounded ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normforge.ir.graph import Graph, is_result
from normforge.ir.node import Node, broadcast, make
from normforge.ir.ops import MOMENT, REDUCE, Op
from normforge.ir.types import B, G, K, S
from normforge.passes.legalise import of_one


def moment_axes(graph: Graph) -> tuple[int, ...]:
    """The sets of axes along which the moments of a surface graph reduce what varies along them, each once."""
    found = (node.reduced & node.args[0].axes for node in graph.nodes if node.op in MOMENT)
    return tuple(dict.fromkeys(axes for axes in found if axes))


def single_axes(moments: Sequence[int], extents: Sequence[int]) -> int:
    """The axes of all moments that are over one element.

    Args:
        moments: of `moment_axes`.
        extents: N, groups, channels a group, positions.
    """
    ones = sum(bit for bit, extent in zip((B, G, K, S), extents, strict=True) if extent == 1)
    single = 0
    for axes in moments:
        single |= 0 if axes & ~ones else axes
    return single


@dataclass(frozen=True)
class Single:
    """Replace moments over axes of one element each in the results of a core graph by what they then are. Running
    statistics stay moments, and so of the type that their buffers have.

    Attributes:
        axes: that have one element.
    """

    axes: int

    def run(self, graph: Graph) -> Graph:
        """The graph of such shapes."""
        out: dict[Node, Node] = {}
        for node in graph.nodes:
            args = tuple(out[a] for a in node.args)
            over = node.reduced & node.args[0].axes if node.op in REDUCE else 0
            if over and not over & ~self.axes:
                out[node] = of_one(node.op, args[0])
            elif node.op is Op.BROADCAST:
                out[node] = broadcast(args[0], node.type)
            else:
                out[node] = make(node.op, args, node.attr) if args else node
        return graph.with_outputs(*((name, out[n] if is_result(name) else n) for name, n in graph.outputs))
