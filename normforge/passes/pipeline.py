"""pipeline: passes one after another, and the verifier between them, 4 % of the static path of layers."""

from __future__ import annotations

from typing import Protocol

from normforge.errors import GraphError, PassError
from normforge.ir.graph import Graph
from normforge.ir.verify import verify


class Pass(Protocol):
    """A pass: graph to graph, without a change to what it is given."""

    def run(self, graph: Graph) -> Graph:
        """The new graph."""


def run_passes(graph: Graph, *passes: Pass) -> Graph:
    """The graph after all passes, each given what the one before it made; each result is verified.

    Raises:
        PassError: names the pass that failed, or whose result does not verify, and the one before it.
    """
    before = "the first"
    for one in passes:
        name = type(one).__name__
        try:
            graph = one.run(graph)
            verify(graph)
        except GraphError as e:
            raise PassError(f"the pass {name} ({before}) made a graph that does not hold: {e}") from e
        before = f"after {name}"
    return graph
