"""The SSA dump and the JSON form: every graph round-trips, nothing that is not a graph does any harm."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normforge.errors import ParseError
from normforge.ir import Graph, layers, parse
from normforge.ir.limits import MAX_CHAIN, MAX_GRAPH_NODES, MAX_TEXT
from normforge.ir.node import const, data, make
from normforge.ir.ops import Op
from normforge.passes import Differentiate, inference_graph, lower, training_graph
from normforge.testing import layer_graphs


def family(graph: Graph) -> list[Graph]:
    """A layer with everything that is made of it."""
    first = Differentiate().run(graph)
    second = Differentiate(order=2).run(first)
    return [
        graph,
        lower(graph),
        first,
        lower(first),
        second,
        lower(second),
        training_graph(graph),
        inference_graph(graph),
    ]


def round_trips(graph: Graph) -> None:
    assert Graph.from_dump(graph.dump()) == graph
    assert Graph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("name", layers)
def test_named_layers(name: str) -> None:
    for graph in family(layers[name]):
        round_trips(graph)


@given(layer_graphs())
def test_drawn_layers(graph: Graph) -> None:
    for g in family(graph):
        round_trips(g)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -0.0, 5e-324, 1e308])
def test_every_constant(value: float) -> None:
    round_trips(Graph((("y", make(Op.MUL, (data("x"), const(value)))),), (data("x"),)))


def test_unused_inputs_are_kept() -> None:
    graph = Graph((("y", const(1.0)),), (data("x"), data("z")))
    round_trips(graph)
    assert [n.name for n in Graph.from_dump(graph.dump()).inputs] == ["x", "z"]


DUMP = """graph eps=1e-05 inputs=%0
  %0: {b,c,s} data = input x
  %1: {c} stat = param gamma start=1.0
  %2: {b,c,s} data = mul %0, %1
  return y=%2"""

# what to replace -> by what, the line at fault, a phrase
DUMP_MISTAKES = [
    ("graph", "grph", 0, "expected 'graph eps"),
    ("eps=1e-05", "eps=0", None, "eps must be positive"),
    ("eps=1e-05", "eps=a", None, "expected a number"),
    ("inputs=%0", "inputs=%0,%2", None, "input nodes"),
    ("inputs=%0", "inputs=%" + "9" * 5000, 0, "expected 'graph"),
    ("inputs=%0", "inputs=", None, "not among the graph's inputs"),
    ("= input x", "= input X", 1, "lower-case name"),
    ("{b,c,s} data = mul", "{b,c} data = mul", 3, "follows as {b,c,s} data"),
    ("{b,c,s} data = mul", "{b,q} data = mul", 3, "expected '%number"),
    ("= mul", "= mull", 3, "did you mean 'mul'"),
    ("%0, %1", "%0, %7", 3, "not an earlier node"),
    ("%0, %1", "%0", 3, "takes 2 operands"),
    ("%0, %1", "%0, ²", 3, "expected an operand"),
    ("%2: {b", "%3: {b", 3, "numbered in order"),
    ("start=1.0", "start=nan", 2, "finite start"),
    ("start=1.0", "start=", 2, "expected a number"),
    ("y=%2", "y=%" + "²", 4, "expected 'name=%number'"),
    ("y=%2", "Y=%2", None, "lower-case name"),
    ("y=%2", "y=%9", None, "not an earlier node"),
    ("y=%2", "y=%2, y=%1", None, "one name"),
    ("return y=%2", "", None, "cut short"),
    ("return y=%2", "return y=%2\n  return z=%2", 5, "nothing after the return line"),
]


@pytest.mark.parametrize(("old", "new", "line", "phrase"), DUMP_MISTAKES)
def test_dump_mistakes(old: str, new: str, line: int | None, phrase: str) -> None:
    text = DUMP.replace(old, new)
    with pytest.raises(ParseError, match=re.escape(phrase)) as e:
        Graph.from_dump(text)
    assert e.value.position is None if line is None else text[: e.value.position or 0].count("\n") == line


def good() -> dict[str, object]:
    return json.loads(parse("x * gamma").to_json())


JSON_MISTAKES: list[tuple[dict[str, object], str]] = [
    ({"normforge": 2}, '"normforge": 1'),
    ({"eps": True}, "expected a number"),
    ({"eps": -1}, "eps must be positive"),
    ({"eps": 10**400}, "expected a number"),
    ({"extra": 1}, "unknown key 'extra'"),
    ({"nodes": 5}, "nodes is a list"),
    ({"nodes": [["input", []]]}, "nodes is a list of lists of 3"),
    ({"nodes": [["inputs", [], []]]}, "did you mean 'input'"),
    ({"nodes": [[["input"], [], []]]}, "unknown operation"),
    ({"nodes": [["input", [], ["x", [], "data"]]]}, "node 0"),
    ({"nodes": [["input", [], ["x", True, "data"]]]}, "axes"),
    ({"nodes": [["input", [], ["x", 15, ["data"]]]]}, "data or stat"),
    ({"nodes": [["input", [], [{}, 15, "data"]]]}, "lower-case name"),
    ({"nodes": [["param", [], ["x", {}, 1]]]}, "axes"),
    ({"nodes": [["const", [], ["1", 2]]]}, "attributes"),
    ({"nodes": [["tanh", [0], []]]}, "not an earlier node"),
    ({"nodes": [["tanh", [False], []]]}, "not an earlier node"),
    ({"nodes": [["const", [], ["1.0"]], ["broadcast", [0], [[], "data"]]]}, "attributes"),
    ({"nodes": [["const", [], ["1.0"]], ["broadcast", [0], [15, "float"]]]}, "attributes"),
    ({"nodes": [["const", [], ["1.0"]], ["sum", [0], [10**30]]]}, "one set of axes"),
    ({"outputs": []}, "at least one"),
    ({"outputs": [["y", "2"]]}, "not an earlier node"),
    ({"outputs": [[["y"], 2]]}, "lower-case name"),
    ({"inputs": [[0]]}, "not an earlier node"),
    ({"inputs": {}}, "list of node numbers"),
]


@pytest.mark.parametrize(("change", "phrase"), JSON_MISTAKES)
def test_json_mistakes(change: dict[str, object], phrase: str) -> None:
    with pytest.raises(ParseError, match=re.escape(phrase)):
        Graph.from_json(json.dumps({**good(), **change}))


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "[" * 100_000, "9" * 10_000, '{"normforge": 1}', "\ud800"])
def test_not_such_a_json(text: str) -> None:
    with pytest.raises(ParseError):
        Graph.from_json(text)


def test_limits() -> None:
    rows = [["input", [], ["x", 15, "data"]], *(["tanh", [i], []] for i in range(MAX_CHAIN + 1))]
    with pytest.raises(ParseError, match="in a chain"):
        Graph.from_json(json.dumps({**good(), "nodes": rows}))
    rows = [["const", [], ["1"]]] * (MAX_GRAPH_NODES + 1)
    with pytest.raises(ParseError, match="more than"):
        Graph.from_json(json.dumps({**good(), "nodes": rows}))
    for read in (Graph.from_dump, Graph.from_json):
        with pytest.raises(ParseError, match="characters"):
            read(" " * (MAX_TEXT + 1))


ATOMS = (
    st.none() | st.booleans() | st.integers(-2, 20) | st.floats() | st.sampled_from(["x", "data", "1.0", "mul", "sum"])
)
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
ROWS = st.lists(st.tuples(st.sampled_from(list(Op)) | VALUES, VALUES, VALUES) | VALUES, max_size=4)


@settings(max_examples=40)
@given(st.fixed_dictionaries({}, optional={k: VALUES for k in ("eps", "inputs", "outputs")}), ROWS)
def test_any_json_is_read_or_refused(change: dict[str, object], rows: list[object]) -> None:
    tree = {**good(), **change}
    nodes = tree["nodes"]
    assert isinstance(nodes, list)
    for candidate in (tree, {**tree, "nodes": [*nodes, *rows]}):
        try:
            graph = Graph.from_json(json.dumps(candidate))
        except ParseError:
            continue
        round_trips(graph)


@given(st.data())
def test_any_damage_to_a_dump_is_read_or_refused(draw: st.DataObject) -> None:
    text = layers["gn-silu"].dump()
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(text) - 1))
        cut = draw.draw(st.integers(0, 3))
        text = text[:at] + draw.draw(st.text("%0123456789, =[]{}:bcgsx\n²", max_size=4)) + text[at + cut :]
    try:
        graph = Graph.from_dump(text)
    except ParseError:
        return
    round_trips(graph)
