"""linear: what of a layer is a norm, and what an activation.

With its moments as constants, a layer that is only a norm is linear in x. One that is a norm and then an activation has
its linear part below a bend: the norm alone, which stands where a network has no activation.
"""

from __future__ import annotations

from normforge.errors import OptionError
from normforge.ir.graph import Graph, result_name
from normforge.ir.layers import CATALOGUE, layers
from normforge.ir.node import Node, const, make, param, substitute, toposort
from normforge.ir.ops import MOMENT, Op
from normforge.ir.types import FULL


def is_linear(graph: Graph) -> bool:
    """Is a layer only a norm: linear in x, or affine, where its moments are held?"""
    return _degrees(graph)[graph.output] <= 1


def linear_twin(graph: Graph) -> Graph:
    """The norm of a layer, for a place without an activation: the part below its bend, with the gain and the bias that
    the layer has; `x * gamma + beta` where it has no such part, as in EvoNorm (arXiv 2004.02967, section 5).

    Args:
        graph: a layer of x alone.
    """
    if not graph.is_plain:
        raise OptionError(f"{graph} is given more than x, or has several results")
    degree, x = _degrees(graph), graph.inputs[0]
    if degree[graph.output] <= 1:
        return graph
    below: dict[Node, frozenset[Node]] = {}
    for node in graph.nodes:
        below[node] = frozenset((node,)).union(*(below[a] for a in node.args))
    norms = (n for n in reversed(graph.nodes) if degree[n] == 1 and any(m.op in MOMENT for m in below[n]))
    for norm in norms:
        rest = substitute([graph.output], {norm: const(0.0)})[graph.output]
        if x in toposort([rest]):  # the bend sees x by another way too
            continue
        return _affine(graph, norm)
    return _affine(graph, x, gain=True, bias=True)


def then(graph: Graph, after: Graph) -> Graph:
    """A layer of x, and then another one of its result; ε is that of the first."""
    x = after.inputs[0]
    out = substitute([after.output], {x: graph.output})[after.output]
    return Graph(((result_name(0), out),), graph.inputs, graph.eps)


def name_of(graph: Graph) -> str:
    """The name of a named layer, whatever its ε; else the formula."""
    for name in CATALOGUE:
        if layers[name].structure_without_eps == graph.structure_without_eps:
            return name
    return str(graph)


def _affine(graph: Graph, norm: Node, gain: bool = False, bias: bool = False) -> Graph:
    """A norm, with the gain and bias of the layer that it does not have yet."""
    of_layer, of_norm = ({n.name: n for n in nodes if n.op is Op.PARAM} for nodes in (graph.nodes, toposort([norm])))
    if "gamma" not in of_norm and (gain or "gamma" in of_layer):
        norm = make(Op.MUL, (norm, of_layer.get("gamma", param("gamma", 1.0))))
    if "beta" not in of_norm and (bias or "beta" in of_layer):
        norm = make(Op.ADD, (norm, of_layer.get("beta", param("beta", 0.0))))
    return Graph(((result_name(0), norm),), graph.inputs, graph.eps)


def _degrees(graph: Graph) -> dict[Node, int]:
    """The degree in x of each node, moments held: 0, 1, or 2 for all that is neither constant nor linear."""
    degree: dict[Node, int] = {}
    for node in graph.nodes:
        of = [degree[a] for a in node.args]
        if node.op is Op.INPUT:
            degree[node] = int(node.axes == FULL)
        elif node.op in MOMENT or node.op is Op.TOTAL:
            degree[node] = 0
        elif node.op in (Op.ADD, Op.SUB, Op.NEG):
            degree[node] = max(of)
        elif node.op is Op.MUL:
            degree[node] = min(sum(of), 2)
        elif node.op is Op.DIV and not of[1]:
            degree[node] = of[0]
        else:
            degree[node] = 2 if any(of) else 0
    return degree
