"""differentiate: reverse mode, graph to graph. The result is a core graph, so it can be differentiated again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from normforge.ir.graph import Graph
from normforge.ir.node import Node, broadcast, const, make, size
from normforge.ir.ops import CORE, LEAF, Op, Table
from normforge.ir.types import FloatClass, Type
from normforge.passes.legalise import Legalise

CT = "ct."  # what the names of cotangents start with; no parameter's name holds a dot


def _mul(a: Node, b: Node) -> Node:
    return make(Op.MUL, (a, b))


def _one_minus(a: Node) -> Node:
    return make(Op.SUB, (const(1.0), a))


def _chosen(n: Node, t: Node) -> tuple[Node | None, ...]:
    """The cotangent goes to the branch that was taken; the other has exactly 0."""
    a, b, _, _ = n.args
    return None, None, make(n.op, (a, b, t, const(0.0))), make(n.op, (a, b, const(0.0), t))


# operation -> (node, cotangent) -> cotangent of each operand, before it is summed to the operand's type.
# None: the derivative is zero everywhere.
VJP: Table[Callable[[Node, Node], tuple[Node | None, ...]]] = Table(
    "derivative (passes/differentiate.py)",
    CORE - LEAF,
    {
        Op.ADD: lambda n, t: (t, t),
        Op.SUB: lambda n, t: (t, make(Op.NEG, (t,))),
        Op.MUL: lambda n, t: (_mul(t, n.args[1]), _mul(t, n.args[0])),
        Op.DIV: lambda n, t: (
            make(Op.DIV, (t, n.args[1])),
            make(Op.NEG, (_mul(t, make(Op.DIV, (n, n.args[1]))),)),
        ),
        Op.MAX: lambda n, t: (make(Op.GATE, (*n.args, t)), make(Op.GATE, (*n.args[::-1], t))),
        Op.MIN: lambda n, t: (make(Op.GATE, (*n.args[::-1], t)), make(Op.GATE, (*n.args, t))),
        Op.NEG: lambda n, t: (make(Op.NEG, (t,)),),
        Op.ABS: lambda n, t: (_mul(t, make(Op.SIGN, n.args)),),
        Op.SQUARE: lambda n, t: (_mul(t, _mul(const(2.0), n.args[0])),),
        Op.EXP: lambda n, t: (_mul(t, n),),
        Op.SIGMOID: lambda n, t: (_mul(t, _mul(n, _one_minus(n))),),
        Op.TANH: lambda n, t: (_mul(t, _one_minus(make(Op.SQUARE, (n,)))),),
        Op.ERF: lambda n, t: (
            _mul(t, _mul(const(2 / math.sqrt(math.pi)), make(Op.EXP, (make(Op.NEG, (make(Op.SQUARE, n.args),)),)))),
        ),
        Op.SOFTPLUS: lambda n, t: (_mul(t, make(Op.SIGMOID, n.args)),),
        Op.SIN: lambda n, t: (_mul(t, make(Op.COS, n.args)),),
        Op.COS: lambda n, t: (make(Op.NEG, (_mul(t, make(Op.SIN, n.args)),)),),
        Op.ROOT: lambda n, t: (make(Op.DIV, (_mul(const(0.5), t), n)),),
        Op.LN: lambda n, t: (make(Op.DIV, (t, n.args[0])),),
        Op.SIGN: lambda n, t: (None,),
        Op.GATE: lambda n, t: (None, None, make(Op.GATE, (n.args[0], n.args[1], t))),
        Op.WHERE: lambda n, t: _chosen(n, t),
        Op.WHERE_GE: lambda n, t: _chosen(n, t),
        Op.SUM: lambda n, t: (t,),
        Op.BROADCAST: lambda n, t: (t,),
        Op.MEAN: lambda n, t: (make(Op.DIV, (t, size(n.args[0].axes & n.reduced))),),
        # d var = 2/n (a - mean) da: the mean's own variation adds nothing, since deviations sum to zero.
        Op.VAR: lambda n, t: (
            _mul(
                make(Op.DIV, (_mul(const(2.0), t), size(n.args[0].axes & n.reduced))),
                make(Op.SUB, (n.args[0], make(Op.MEAN, n.args, n.attr))),
            ),
        ),
    },
)


def sum_to(value: Node, declared: int, target: int) -> Node:
    """Sum a cotangent of something that varies along `declared` to `target`.

    The value itself may lack some of `declared` (it is constant there): those axes count by their size.
    """
    drop = declared & ~target
    present, missing = drop & value.axes, drop & ~value.axes
    if present:
        value = make(Op.SUM, (value,), (present,))
    return _mul(value, size(missing)) if missing else value


@dataclass(frozen=True)
class Differentiate:
    """The vector-Jacobian product of all outputs.

    Attributes:
        wrt: the inputs and parameters to differentiate in; None means every `data` input, every cotangent
            and every parameter. A statistic given as an input is a constant.
        order: of the derivative that results; it only names the outputs.

    The result has the same inputs, then one cotangent `ct.<output>` for each output, and one output
    `d.<name>` (`d2.<name>`, ...) for each of `wrt`, of the type of that value. A gradient that is zero
    everywhere is the constant 0.
    """

    wrt: tuple[Node, ...] | None = None
    order: int = 1

    def run(self, graph: Graph) -> Graph:
        """The graph of the VJP; lowers the graph first."""
        graph = Legalise().run(graph)
        wrt = self.wrt
        if wrt is None:
            # The cotangent of a parameter is of class `stat`, but it is no statistic.
            values = (n for n in graph.inputs if n.type.cls is FloatClass.DATA or n.name.startswith(CT))
            wrt = (*values, *graph.params)
        grads: dict[Node, Node] = {}
        seeds = []
        for name, node in graph.outputs:
            seed = cotangent(name, node.type)
            seeds.append(seed)
            add_to(grads, node, seed)
        reaches = depending(graph, set(wrt))
        for node in reversed(graph.nodes):
            ct = grads.get(node)
            if ct is None or not node.args or node not in reaches:
                continue
            for a, part in zip(node.args, VJP[node.op](node, ct), strict=True):
                if part is not None and a in reaches:
                    declared = a.axes if node.op in (Op.SUM, Op.MEAN, Op.VAR) else node.axes
                    add_to(grads, a, sum_to(part, declared, a.axes))
        prefix = "d" if self.order == 1 else f"d{self.order}"
        outputs = tuple((f"{prefix}.{n.name}", broadcast(grads.get(n, const(0.0)), n.type)) for n in wrt)
        return Graph(outputs, (*graph.inputs, *seeds), graph.eps)


def cotangent(name: str, t: Type) -> Node:
    """The input that carries the cotangent of output `name`."""
    return make(Op.INPUT, (), (f"{CT}{name}", t.axes, t.cls.value))


def add_to(grads: dict[Node, Node], node: Node, part: Node) -> None:
    """Accumulate a cotangent."""
    grads[node] = make(Op.ADD, (grads[node], part)) if node in grads else part


def depending(graph: Graph, wrt: set[Node]) -> set[Node]:
    """Nodes that depend on one of `wrt`."""
    out: set[Node] = set()
    for node in graph.nodes:
        if node in wrt or any(a in out for a in node.args):
            out.add(node)
    return out
