"""Type inference (which axes a value varies along), hash-consing and the verifier."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
from hypothesis import given

from normforge.errors import GraphError
from normforge.ir import Graph, Node, Op, layers, parse, verify
from normforge.ir.node import broadcast, const, data, make, param, size, stat
from normforge.ir.types import FULL, INDEX_SETS, B, C, FloatClass, G, K, S, Type, axes_name, parse_axes, parse_reduced
from normforge.testing import layer_graphs

TYPES = {
    "x": "{b,c,s} data",
    "v1 * x": "{b,c,s} data",
    "gamma": "{c} stat",
    "2": "{} stat",
    "gamma * 2 + beta": "{c} stat",
    "mean[b,w,h](x)": "{c} stat",
    "std[w,h](x)": "{b,c} stat",
    "rms[w,h,c](x)": "{b} stat",
    "std[w,h,c/g](x)": "{b,g} stat",
    "mean[c](x)": "{b,s} stat",
    "mean[b,w,h,c](x)": "{} stat",
    "std[w,h,c/g](x) + gamma": "{b,c} stat",
    "mean[w,h,c/g](gamma)": "{g} stat",
    "mean[w,h,c](gamma)": "{} stat",
    "mean[w,h](gamma)": "{c} stat",
    "mean[c](std[w,h,c/g](x))": "{b} stat",
    "mean[w,h,c/g](mean[b,w,h](x))": "{g} stat",
    "mean[b,w,h](mean[c](x))": "{} stat",
    "max(mean[c](x), v0)": "{b,c,s} stat",
    "x / std[w,h,c/g](x)": "{b,c,s} data",
    "param a scalar = 1; tanh(a)": "{} stat",
}


@pytest.mark.parametrize("formula", TYPES)
def test_inference(formula: str) -> None:
    assert str(parse(formula).output.type) == TYPES[formula]


def test_core_types() -> None:
    x = data("x")
    assert str(make(Op.SUM, (x,), (B | K,)).type) == "{b,c,s} stat".replace("b,c", "g")
    assert str(make(Op.VAR, (x,), (S | K,)).type) == "{b,g} stat"
    assert str(size(B | S).type) == "{} stat"
    assert broadcast(x, x.type) is x
    assert str(broadcast(param("gamma", 1.0), Type(FULL, FloatClass.DATA)).type) == "{b,c,s} data"
    assert str(make(Op.GATE, (param("v0", 0.0), const(1.0), x)).type) == "{b,c,s} data"


@pytest.mark.parametrize(
    ("op", "args", "attr", "phrase"),
    [
        (Op.ADD, (data("x"),), (), "takes 2 operands"),
        (Op.TANH, (data("x"),), (1,), "no attributes"),
        (Op.STD, (data("x"),), (B,), "none of the index sets"),
        (Op.SUM, (data("x"),), (0,), "one set of axes"),
        (Op.SUM, (data("x"),), (True,), "one set of axes"),
        (Op.MEAN, (data("x"),), (), "one set of axes"),
        (Op.BROADCAST, (data("x"),), (B, "data"), "hold those of its operand"),
        (Op.BROADCAST, (const(1.0),), (B, "float"), "data or stat"),
        (Op.INPUT, (), ("x", K, "data"), "axes"),
        (Op.PARAM, (), ("p", B, 1.0), "one value a channel"),
        (Op.PARAM, (), ("p", C, float("nan")), "finite start"),
        (Op.CONST, (), (1,), "one float"),
        (Op.SIZE, (), (99,), "one set of axes"),
    ],
)
def test_type_errors(op: Op, args: tuple[Node, ...], attr: tuple[object, ...], phrase: str) -> None:
    with pytest.raises(GraphError, match=phrase):
        make(op, args, attr)


def test_axes_text_round_trips() -> None:
    for axes in range(FULL + 1):
        if not (axes & K and not axes & G):
            assert parse_axes(axes_name(axes)) == axes
    assert parse_reduced("b,k,s") == B | K | S
    assert parse_reduced("b,b") is None
    assert parse_reduced("") is None
    assert set(INDEX_SETS.values()) == {B | S, S, S | C, S | K, C, B | S | C}


def test_nodes_are_one_object_for_one_meaning() -> None:
    assert parse("x * v1 + x * v1").output.args[0] is parse("x * v1").output
    assert const(0.0) is not const(-0.0)
    assert const(float("nan")) is const(float("nan"))
    assert param("a", -0.0) is param("a", 0.0)
    with pytest.raises(AttributeError):
        const(1.0).op = Op.ADD  # type: ignore[misc]


def test_threads_share_nodes() -> None:
    made: list[list[Node]] = []
    gate = threading.Barrier(8)

    def work() -> None:
        gate.wait()
        made.append([const(1.5 + i) for i in range(500)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 8
    assert all(a is b for row in made for a, b in zip(row, made[0], strict=True))


@given(layer_graphs())
def test_pickle_and_copy_return_the_same_graph(graph: Graph) -> None:
    again = pickle.loads(pickle.dumps(graph))
    assert again == graph
    assert again.output is graph.output
    assert pickle.loads(pickle.dumps(graph.output)) is graph.output
    assert copy.deepcopy(graph).output is graph.output


def test_verify_accepts_the_named_layers() -> None:
    for graph in layers.values():
        verify(graph)


def test_verify_refuses() -> None:
    x = data("x")
    cases = [
        (Graph((), (x,)), "at least one output"),
        (Graph((("y", x),), ()), "not among the graph's inputs"),
        (Graph((("y", x),), (x, x)), "distinct"),
        (Graph((("y", x), ("y", x)), (x,)), "one name"),
        (Graph((("y", make(Op.ADD, (param("a", 1.0), param("a", 2.0)))),), (x,)), "two different values"),
        (Graph((("y", make(Op.ADD, (x, stat("x", B)))),), (x,)), "two different values"),
        (Graph((("y", x),), (x,), 0.0), "eps"),
    ]
    for graph, phrase in cases:
        with pytest.raises(GraphError, match=phrase):
            verify(graph)


def test_verify_points_at_the_node() -> None:
    x = data("x")
    graph = Graph((("y", make(Op.ADD, (make(Op.MUL, (x, param("a", 1.0))), param("a", 2.0)))),), (x,))
    with pytest.raises(GraphError) as e:
        verify(graph)
    lines = str(e.value).split("\n")
    marker = next(i for i, line in enumerate(lines) if line.strip().startswith("^"))
    assert "param a start=2.0" in lines[marker - 1]


def test_a_surface_graph_is_what_a_formula_can_say() -> None:
    x = data("x")
    assert all(g.is_surface for g in layers.values())
    assert not Graph((("d.x", x),), (x,)).is_surface
    assert not Graph((("y", x),), (x, data("z"))).is_surface
    assert not Graph((("y", make(Op.MUL, (x, const(float("inf"))))),), (x,)).is_surface
    assert not Graph((("y", make(Op.MUL, (x, param("tanh", 1.0)))),), (x,)).is_surface
    assert not Graph((("y", make(Op.SUM, (x,), (S,))),), (x,)).is_surface
