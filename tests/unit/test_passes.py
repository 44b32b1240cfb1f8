"""What every pass owes: the meaning is kept, a second run changes nothing, the result verifies, nothing gets dearer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given

from normforge.errors import GraphError
from normforge.ir import Graph, evaluate, layers, parse, verify
from normforge.ir.node import data, make, param, substitute
from normforge.ir.ops import CORE, Op
from normforge.passes import Canonicalise, Describe, Differentiate, Legalise, Simplify, lower, simplify
from normforge.passes.simplify import cost
from normforge.testing import PassProperties, any_layers, assert_close, random_values

Pass = Callable[[Graph], Graph]
EVERY: dict[str, Pass] = {
    "legalise": Legalise().run,
    "canonicalise": Canonicalise().run,
    "lower": lower,
    "canonicalise, finite only": Canonicalise(finite_only=True).run,
    "simplify": Simplify().run,
}
GRAPHS = any_layers()


class TestLegalise(PassProperties):
    exact = True

    def run(self, graph: Graph) -> Graph:
        return Legalise().run(graph)


class TestCanonicalise(PassProperties):
    exact = True

    def run(self, graph: Graph) -> Graph:
        return Canonicalise().run(graph)


class TestCanonicaliseFinite(PassProperties):
    def run(self, graph: Graph) -> Graph:
        return Canonicalise(finite_only=True).run(graph)


class TestLower(PassProperties):
    exact = True

    def run(self, graph: Graph) -> Graph:
        return lower(graph)


class TestSimplify(PassProperties):
    def run(self, graph: Graph) -> Graph:
        return Simplify().run(graph)


def test_a_pass_needs_a_run() -> None:
    with pytest.raises(NotImplementedError, match="give the class"):
        PassProperties().run(layers["bn-relu"])


class Wrong(PassProperties):
    """Drops every sigmoid: the properties must see it."""

    def run(self, graph: Graph) -> Graph:
        drop = {n: n.args[0] for n in graph.nodes if n.op is Op.SIGMOID}
        return graph.with_outputs(("y", substitute([graph.output], drop)[graph.output]))


def test_a_wrong_pass_is_found() -> None:
    with pytest.raises(AssertionError, match="Wrong of"):
        Wrong().test_meaning_is_kept()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layer", layers)
def test_meaning_of_named_layers_is_kept(name: str, layer: str) -> None:
    graph = layers[layer]
    values = random_values(graph, (3, 6, 2, 5), groups=2, seed=4)
    before, after = (evaluate(g, values, groups=2)["y"] for g in (graph, EVERY[name](graph)))
    assert_close(after, before, length=180, what=f"{name} of {layer}")


@given(GRAPHS)
def test_idempotent_on_derivatives(graph: Graph) -> None:
    first = lower(Differentiate().run(graph))
    second = lower(Differentiate(order=2).run(first))
    for g in (first, second):
        verify(g)
        assert g.is_core
        assert lower(g) == g
        assert Legalise().run(g) == g


@pytest.mark.parametrize("layer", layers)
def test_derivatives_of_named_layers_get_no_dearer(layer: str) -> None:
    first = lower(Differentiate().run(layers[layer]))
    second = lower(Differentiate(order=2).run(first))
    for graph in (first, second):
        simple = Simplify().run(graph)
        verify(simple)
        assert cost(simple) <= cost(graph)
        assert [(k, n.type) for k, n in simple.outputs] == [(k, n.type) for k, n in graph.outputs]
        values = random_values(graph, (3, 6, 2, 5), groups=2, seed=5)
        before, after = (evaluate(g, values, groups=2) for g in (graph, simple))
        for name in before:
            assert_close(after[name], before[name], length=180, what=f"{name} of {layer}")


def test_some_derivatives_get_cheaper() -> None:
    graph = lower(Differentiate().run(layers["evonorm-b0"]))
    assert cost(Simplify().run(graph)) < cost(graph)


@given(GRAPHS)
def test_legalised_graphs_are_core(graph: Graph) -> None:
    core = Legalise().run(graph)
    assert core.is_core
    assert {n.op for n in core.nodes} <= CORE
    assert core.output.type == core.inputs[0].type


def test_parameters_do_not_move_through_moments_with_the_batch() -> None:
    for formula in ("mean[b,w,h](gamma * x) + x", "std[b,w,h](2 * x) * x", "rms[b,w,h](-x * v1) + x"):
        moments = [n for n in simplify(parse(formula)).nodes if n.op in (Op.MEAN, Op.STD, Op.RMS)]
        assert moments[0].args[0] is not data("x")


@pytest.mark.parametrize(
    ("formula", "simpler"),
    [
        ("x - x + x", "x"),
        ("x + 0 * tanh(x)", "x"),
        ("(x * exp(v1)) / exp(v1)", "x"),
        ("tanh(x) + tanh(x)", "2 * tanh(x)"),
        ("(x + 1) * (x + 1)", "square(x + 1)"),
        ("max(x, -x)", "abs(x)"),
        ("x * x * x * x", "square(square(x))"),
        ("sigmoid(x + x - x)", "sigmoid(x)"),
    ],
)
def test_simplify(formula: str, simpler: str) -> None:
    got = Simplify().run(parse(formula))
    assert cost(got) <= cost(parse(simpler))
    assert got == Canonicalise(finite_only=True).run(parse(simpler))


def test_canonicalise_names_what_does_not_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normforge.passes.canonicalise.MAX_STEPS", 0)
    with pytest.raises(GraphError, match="did not come to rest"):
        Canonicalise().run(parse("x + 0"))


def test_describe() -> None:
    facts = Describe().run(parse("x / std[b,w,h](x - mean[w,h](x)) * gamma + v1 * 0"))
    assert facts["batch_dependent"] is True
    assert facts["moments"] == ["mean[w,h]", "std[b,w,h]"]
    assert facts["moment_levels"] == 2
    assert facts["parameters"] == ["gamma", "v1"]
    assert facts["running"] == ["running_var"]
    plain = Describe().run(layers["evonorm-s0"])
    assert plain["batch_dependent"] is False
    assert plain["moment_levels"] == 1
    assert plain["running"] == []


def chain(op: Op, n: int) -> Graph:
    node = data("x")
    for i in range(n):
        node = make(op, (node, param(f"p{i}", 1.0)))
    return Graph((("y", node),), (data("x"),))


@pytest.mark.parametrize(("op", "sign", "terms"), [(Op.ADD, "+", 4000), (Op.MUL, "*", 1500)])
def test_nothing_recurses_over_depth(op: Op, sign: str, terms: int) -> None:
    """Long chains are parsed, printed in every form, hashed, simplified and differentiated."""
    graph = parse(sign.join(["x"] * terms))
    assert parse(str(graph)) == graph
    assert Graph.from_dump(graph.dump()) == graph
    assert Graph.from_json(graph.to_json()) == graph
    assert graph.hash == simplify(graph).hash
    assert graph.content_hash == lower(graph).content_hash
    assert graph.family_hash
    verify(Simplify().run(graph))
    gradient = lower(Differentiate().run(graph))
    assert Graph.from_dump(gradient.dump()) == gradient
    assert Describe().run(graph)["moment_levels"] == 0
    many = chain(op, 1100)
    assert len(many.params) == 1100
    assert len(Differentiate().run(many).outputs) == 1101
    assert many.hash
