"""legalise: surface operations to core ones. ε becomes a constant; std and rms become one moment and a root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from normforge.ir.graph import Graph, is_result
from normforge.ir.node import Node, broadcast, const, make, size
from normforge.ir.ops import REDUCTION, SURFACE_ONLY, Op, Table


def _sqrt(node: Node, a: Node, eps: Node) -> Node:
    return make(Op.DIV, (a, make(Op.ROOT, (make(Op.ADD, (make(Op.ABS, (a,)), eps)),))))


def _rsqrt(node: Node, a: Node, eps: Node) -> Node:
    return make(Op.DIV, (const(1.0), make(Op.ROOT, (a,))))


def _log(node: Node, a: Node, eps: Node) -> Node:
    return make(Op.MUL, (make(Op.SIGN, (a,)), make(Op.LN, (make(Op.ADD, (make(Op.ABS, (a,)), eps)),))))


def _std(node: Node, a: Node, eps: Node) -> Node:
    return make(Op.ROOT, (make(Op.ADD, (moment(Op.VAR, a, node.reduced), eps)),))


def _total(node: Node, a: Node, eps: Node) -> Node:
    return make(Op.MUL, (moment(Op.MEAN, a, node.reduced), size(node.reduced)))


def _rms(node: Node, a: Node, eps: Node) -> Node:
    return make(Op.ROOT, (make(Op.ADD, (moment(Op.MEAN, make(Op.SQUARE, (a,)), node.reduced), eps)),))


# surface operation -> (node, operand, ε) -> core nodes; the ε-guards are explained in docs/formula.md
LOWER: Table[Callable[[Node, Node, Node], Node]] = Table(
    "lowering (passes/legalise.py)",
    SURFACE_ONLY,
    {Op.SQRT: _sqrt, Op.RSQRT: _rsqrt, Op.TOTAL: _total, Op.LOG: _log, Op.STD: _std, Op.RMS: _rms},
)


def moment(op: Op, a: Node, axes: int) -> Node:
    """A reduction, decided by type alone where the operand lacks all the axes: it is then broadcast along them.

    Its variance is 0 where it is finite, and NaN where it is not, like that of a value that varies.
    """
    return make(op, (a,), (axes,)) if a.axes & axes else of_one(op, a)


def of_one(op: Op, a: Node) -> Node:
    """A reduction of one value: itself; its variance is 0 where it is finite, and NaN where it is not."""
    return make(Op.MUL, (a, const(0.0))) if op is Op.VAR else a


@dataclass(frozen=True)
class Legalise:
    """Core graph of a surface graph; a core graph comes back unchanged."""

    def run(self, graph: Graph) -> Graph:
        """Lower every surface operation; outputs and inputs keep their names."""
        eps = const(graph.eps)
        out: dict[Node, Node] = {}
        for node in graph.nodes:
            args = tuple(out[a] for a in node.args)
            if node.op in SURFACE_ONLY:
                out[node] = LOWER[node.op](node, args[0], eps)
            elif node.op in REDUCTION:
                out[node] = moment(node.op, args[0], node.reduced)
            elif node.args:
                out[node] = make(node.op, args, node.attr)
            else:
                out[node] = node
        # A layer's results always have the shape and dtype of x.
        if not graph.inputs:
            return graph.with_outputs(*((k, out[n]) for k, n in graph.outputs))
        x = graph.inputs[0].type
        return graph.with_outputs(*((k, broadcast(out[n], x) if is_result(k) else out[n]) for k, n in graph.outputs))
