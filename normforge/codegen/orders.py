"""The graphs behind a layer: forward, backward, double backward, ... and what forward saves for the others.

Derivatives are differentiated from graphs that are total in x; only then are forward's moments replaced by
inputs that carry their saved values. So a saved statistic is a cache, and no gradient flows to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from normforge.ir.graph import Graph
from normforge.ir.node import Node, make, stat, substitute
from normforge.ir.ops import REDUCE, Op
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.pipeline import derivative, lower, run_passes
from normforge.passes.running import inference_graph, training_graph
from normforge.passes.single import Single


@dataclass(frozen=True)
class Program:
    """One derivative of a layer, ready to be planned.

    Attributes:
        graph: lowered; its inputs and parameters in `operands`, its outputs in order.
        operands: every tensor that the program is given, in calling order.
        order: 0 forward, 1 backward, 2 double backward, ...
        wrt_before: the operands of the order before that this order's outputs are gradients of; none in forward.
        saved: the operands that are saved statistics.
    """

    graph: Graph
    operands: tuple[Node, ...]
    order: int
    wrt_before: tuple[Node, ...]
    saved: tuple[Node, ...]


# For each order from 2: which outputs of the order before have a cotangent; None means all.
Seeded = tuple[tuple[int, ...] | None, ...]


@lru_cache(maxsize=4096)
def program(layer: Graph, order: int, train: bool, seeded: Seeded = (), single: int = 0) -> Program:
    """The program of one order of a layer.

    Forward's operands are x and the further inputs, the parameters in the order of the formula, and in inference the
    buffers; its outputs are the results, what the running statistics average in their order (training only), and the
    saved moments.
    Order k + 1 is given order k's operands, one cotangent for each differentiable output, and (from order 1
    on) the saved moments; its outputs are the gradients of order k's differentiable operands. A gradient penalty
    gives a cotangent to the gradient of x alone: `seeded` leaves out the others, and all that depends on them.
    `single` are axes that have one element each (see `normforge.passes.single`).
    """
    forward = _forward(layer, train, single)
    params = layer.params
    inputs, buffers = layer.inputs, forward.inputs[len(layer.inputs) :]
    moments = _moments(forward)
    saved = tuple(stat(f"saved.{i}", m.axes) for i, m in enumerate(moments))
    if order == 0:
        extra = tuple((s.name, m) for s, m in zip(saved, moments, strict=True))
        graph = forward.with_outputs(*forward.outputs, *extra)
        return Program(graph, (*inputs, *params, *buffers), 0, (), saved)
    total, wrt, seeds = _derivative(layer, order, train, seeded[: order - 1], single)
    replaced = substitute((n for _, n in total.outputs), dict(zip(moments, saved, strict=True)))
    outputs = tuple((name, replaced[n]) for name, n in total.outputs)
    graph = run_passes(Graph(outputs, (*total.inputs, *saved), total.eps), Canonicalise())
    return Program(graph, (*inputs, *params, *buffers, *seeds, *saved), order, wrt, saved)


Nodes = tuple[Node, ...]


@lru_cache(maxsize=4096)
def _derivative(layer: Graph, order: int, train: bool, seeded: Seeded, single: int) -> tuple[Graph, Nodes, Nodes]:
    """A derivative total in x, what it is taken with respect to, and the cotangents of all orders up to it."""
    if order == 0:
        forward = _forward(layer, train, single)
        return forward.with_outputs(*forward.results), (), ()
    before, _, seeds = _derivative(layer, order - 1, train, seeded[: max(order - 2, 0)], single)
    chosen = seeded[order - 2] if 2 <= order < len(seeded) + 2 else None
    if chosen is not None:
        before = before.with_outputs(*(before.outputs[i] for i in chosen))
    wrt = (*layer.inputs, *layer.params, *seeds)
    total = derivative(before, wrt, order)
    return total, wrt, (*seeds, *total.inputs[len(before.inputs) :])


@lru_cache(maxsize=4096)
def _forward(layer: Graph, train: bool, single: int) -> Graph:
    graph = lower(training_graph(layer) if train else inference_graph(layer))
    return run_passes(graph, Single(single), Canonicalise()) if single else graph


def _moments(forward: Graph) -> tuple[Node, ...]:
    """Every reduction of forward, and beside each variance the mean that its derivative asks for."""
    found: dict[Node, None] = {}
    for node in forward.nodes:
        if node.op is Op.VAR:
            found[make(Op.MEAN, node.args, node.attr)] = None
        if node.op in REDUCE:
            found[node] = None
    return tuple(found)
