"""pipeline: which passes run before code is generated, one after another, and the verifier between them.

The verifier takes 4 % of the static path of layers.
"""

from __future__ import annotations

from typing import Protocol

from normforge.errors import GraphError, PassError
from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.verify import verify
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.differentiate import Differentiate
from normforge.passes.factor import Factor
from normforge.passes.legalise import Legalise
from normforge.passes.products import Collect, Share


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


def lower(graph: Graph) -> Graph:
    """The graph that code is generated from: core operations, exact rules only."""
    return run_passes(graph, Legalise(), Canonicalise())


def derivative(graph: Graph, wrt: tuple[Node, ...] | None = None, order: int = 1) -> Graph:
    """The lowered graph of the gradients of a graph; see `Differentiate`."""
    return run_passes(graph, Differentiate(wrt, order), Legalise(), Canonicalise())


def factored(graph: Graph, order: int, *, rows: bool = True) -> Graph:
    """The lowered graph of a derivative as plans take it.

    Args:
        graph: of a program, see `normforge.codegen.orders`.
        order: of the derivative. Forward stays as written: x² · k² for (x·k)² would overflow where x·k does not.
        rows: sums over whole tensors are made of sums of rows.
    """
    if order == 0:
        return run_passes(graph, Factor(expand=False, rows=rows))
    return run_passes(graph, Collect(), Factor(expand=True, rows=rows), Collect(), Share())
