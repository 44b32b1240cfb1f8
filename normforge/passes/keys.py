"""The three keys of a graph, never mixed: code (`content_hash`), function (`hash`), family (`family_hash`)."""

from __future__ import annotations

from normforge.ir.graph import KEYS, Graph
from normforge.ir.node import Node, make
from normforge.ir.ops import Op
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.legalise import Legalise
from normforge.passes.simplify import normal_form


def lower(graph: Graph) -> Graph:
    """The graph that code is generated from: core operations, exact rules only."""
    return Canonicalise().run(Legalise().run(graph))


def content_hash(graph: Graph) -> str:
    """Of the exact lowered graph."""
    return lower(graph).structure_without_eps


def function_hash(graph: Graph) -> str:
    """Of the normal form, lowered so that ε is part of it only where it is used."""
    return Canonicalise(finite_only=True).run(Legalise().run(normal_form(graph))).structure_without_eps


def family_hash(graph: Graph) -> str:
    """Of the normal form after constants that a trainable parameter absorbs are dropped.

    A parameter used once absorbs a constant factor, a constant addend and a sign next to it.
    """
    graph = normal_form(graph)
    for _ in range(8):
        absorbed = normal_form(_absorb(graph))
        if absorbed.structure == graph.structure:
            break
        graph = absorbed
    return function_hash(graph)


def _absorb(graph: Graph) -> Graph:
    uses: dict[Node, int] = {}
    for node in graph.nodes:
        for a in node.args:
            uses[a] = uses.get(a, 0) + 1

    def free(n: Node) -> bool:
        return n.op is Op.PARAM and uses[n] == 1

    out: dict[Node, Node] = {}
    for node in graph.nodes:
        args = node.args
        if node.op is Op.NEG and free(args[0]):
            out[node] = args[0]
        elif node.op in (Op.ADD, Op.MUL) and any(free(a) for a in args) and any(_nonzero(a) for a in args):
            out[node] = args[0] if free(args[0]) else args[1]
        elif node.op in (Op.SUB, Op.DIV) and free(args[0]) and _nonzero(args[1]):
            out[node] = args[0]
        else:
            out[node] = make(node.op, tuple(out[a] for a in args), node.attr) if args else node
    return graph.with_outputs(*((name, out[n]) for name, n in graph.outputs))


def _nonzero(node: Node) -> bool:
    return node.op is Op.CONST and node.value != 0


KEYS.update(content_hash=content_hash, hash=function_hash, family_hash=family_hash)
