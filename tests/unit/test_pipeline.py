"""The pipeline verifies what every pass makes, and names the one at fault."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from normforge.errors import GraphError, PassError
from normforge.ir import Graph, Node, parse
from normforge.ir.node import data
from normforge.ir.types import FloatClass, Type
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.legalise import Legalise
from normforge.passes.pipeline import run_passes


@dataclass(frozen=True)
class ForgetsAnInput:
    """Reads a tensor that the graph is not given."""

    def run(self, graph: Graph) -> Graph:
        return graph.with_outputs(("y", data("z")))


class Refuses:
    """Cannot make a graph."""

    def run(self, graph: Graph) -> Graph:
        raise GraphError("it came to no rest")


LAYER = "x * sigmoid(v1 * x) / std[w,h,c/g](x)"


def test_passes_that_hold_follow_each_other() -> None:
    graph = parse(LAYER)
    assert run_passes(graph, Legalise(), Canonicalise()) == Canonicalise().run(Legalise().run(graph))
    assert run_passes(graph) is graph


def test_a_broken_pass_is_named_with_the_one_before() -> None:
    with pytest.raises(PassError, match=r"the pass ForgetsAnInput \(after Legalise\).*'z' is not among the graph's"):
        run_passes(parse(LAYER), Legalise(), ForgetsAnInput(), Canonicalise())
    with pytest.raises(PassError, match=r"the pass ForgetsAnInput \(the first\)"):
        run_passes(parse(LAYER), ForgetsAnInput())
    with pytest.raises(PassError, match=r"the pass Refuses \(after Canonicalise\).*it came to no rest"):
        run_passes(parse(LAYER), Canonicalise(), Refuses())


def test_a_wrong_type_is_found(wrongly_typed: Node) -> None:
    class Mistypes:
        def run(self, graph: Graph) -> Graph:
            return graph.with_outputs(("y", wrongly_typed))

    with pytest.raises(PassError, match=r"the pass Mistypes \(after Legalise\).*the type should be \{b,c,s\} data"):
        run_passes(parse(LAYER), Legalise(), Mistypes())


@pytest.fixture
def wrongly_typed() -> Iterator[Node]:
    """exp(x) with a type that does not follow, as no `make` would give it; its own afterwards."""
    node = parse("exp(x)").output
    right = node.type
    object.__setattr__(node, "type", Type(0, FloatClass.STAT))
    yield node
    object.__setattr__(node, "type", right)
