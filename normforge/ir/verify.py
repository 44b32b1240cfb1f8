"""The verifier: derives every type again and checks what a graph promises. Runs between all passes
(passes/pipeline.py), and on every graph that is read."""

from __future__ import annotations

import math

from normforge.errors import GraphError
from normforge.ir.graph import Graph
from normforge.ir.node import Node, infer
from normforge.ir.ops import Op


def verify(graph: Graph) -> None:
    """Check that a graph keeps the rules of the IR.

    Raises:
        GraphError: with the dump and a marker under the offending node.
    """
    if not graph.outputs:
        raise GraphError("a graph needs at least one output")
    if not (graph.eps > 0 and math.isfinite(graph.eps)):
        raise GraphError(f"eps must be positive and finite, not {graph.eps!r}")
    seen: dict[str, Node] = {}
    for node in (*graph.inputs, *graph.nodes):
        if node.op in (Op.INPUT, Op.PARAM):
            if seen.setdefault(node.name, node) is not node:
                _refuse(graph, node, f"two different values are named {node.name!r}")
            if node.op is Op.INPUT and node not in graph.inputs:
                _refuse(graph, node, f"{node.name!r} is not among the graph's inputs")
    if any(n.op is not Op.INPUT for n in graph.inputs) or len(set(graph.inputs)) != len(graph.inputs):
        raise GraphError("the inputs of a graph are distinct input nodes")
    if len({name for name, _ in graph.outputs}) != len(graph.outputs):
        raise GraphError("two outputs have one name")
    for node in graph.nodes:
        try:
            expected = infer(node.op, node.args, node.attr)
        except GraphError as e:
            _refuse(graph, node, str(e))
        if node.type != expected:
            _refuse(graph, node, f"the type should be {expected}")


def _refuse(graph: Graph, node: Node, why: str) -> None:
    lines = graph.dump().split("\n")
    used = set(graph.nodes)
    nodes = [*(n for n in graph.inputs if n not in used), *graph.nodes]
    if node in nodes:
        at = nodes.index(node) + 1
        lines.insert(at + 1, "  " + "^" * max(1, len(lines[at]) - 2) + f" {why}")
    raise GraphError(f"{why}\n" + "\n".join(lines))
