"""Layers with further inputs: gamma and beta as inputs, and the layer of x alone that questions about numbers are asked
of."""

from __future__ import annotations

from normforge.errors import OptionError
from normforge.ir.graph import Graph, declared_input, result_name
from normforge.ir.layers import as_layer
from normforge.ir.node import Node, const, substitute
from normforge.ir.types import B, C

CONDITIONS = {"gamma": "gain", "beta": "bias"}


def conditional(layer: Graph | str) -> Graph:
    """The layer with the inputs `gain[b,c]` and `bias[b,c]` in place of gamma and beta, those that it has: one
    value a sample and channel, as in class-conditional normalization (de Vries et al., arXiv 1707.00683).

    They come after the inputs that the layer has already.

    Args:
        layer: a graph, a layer's name, or a formula.

    Raises:
        OptionError: it has neither gamma nor beta, or something else in it is called gain or bias.
    """
    graph = as_layer(layer, "conditional")
    params = {p.name: p for p in graph.params}
    replace: dict[Node, Node] = {}
    for name, new in CONDITIONS.items():
        if name in params:
            replace[params[name]] = declared_input(new, B | C)
    if not replace:
        raise OptionError(f"conditional turns gamma and beta into inputs, and {graph} has neither")
    for node in replace.values():
        if node.name in params or any(i.name == node.name for i in graph.inputs):
            raise OptionError(f"conditional adds the input {node.name!r}, and {graph} has something of that name")
    out = substitute((n for _, n in graph.outputs), replace)
    outputs = tuple((name, out[n]) for name, n in graph.outputs)
    return Graph(outputs, (*graph.inputs, *replace.values()), graph.eps)


def at_one(graph: Graph) -> Graph:
    """The first result as a function of x, with every further input at 1; the layer itself where that is what it is."""
    if graph.is_plain:
        return graph
    out = substitute([graph.output], dict.fromkeys(graph.inputs[1:], const(1.0)))
    return Graph(((result_name(0), out[graph.output]),), graph.inputs[:1], graph.eps)
