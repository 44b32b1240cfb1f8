"""`hash` and `family_hash`: what is equal, what differs, and that nothing sympy could do gets out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.errors import GraphError
from normforge.ir import Graph, Op, layers, parse, verify
from normforge.ir.graph import KEYS
from normforge.ir.node import const, data, make, param
from normforge.passes import Differentiate, simplify
from normforge.testing import layer_graphs

GRAPHS = st.one_of(layer_graphs(max_nodes=14), layer_graphs(space="paper", max_nodes=14))

EQUAL = [
    ("x + x", "2 * x"),
    ("x * gamma + beta", "beta + gamma * x"),
    ("x - x + x", "x"),
    ("max(x, -x)", "abs(x)"),
    ("min(-x, x)", "-abs(x)"),
    ("x * x", "square(x)"),
    ("(x + 1) * (x + 1)", "square(1 + x)"),
    ("square(-x - 1)", "square(x + 1)"),
    ("x / 2", "0.5 * x"),
    ("x / 3 * 3", "x"),
    ("1 / 3 * x * 3", "x"),
    ("x * 0.1 + x * 0.2", "x * 0.3"),
    ("0.1 + 0.2 + x", "0.1 + x + 0.2"),
    ("x * 0 + beta", "beta"),
    ("relu(x)", "max(0, x)"),
    ("silu(x)", "sigmoid(x) * x"),
    ("x / gamma / v1", "x / (v1 * gamma)"),
    ("-(x - beta)", "beta - x"),
    ("tanh(-x)", "-tanh(x)"),
    ("std[w,h](mean[w,h](x)) + x", "std[c](mean[b,w,h,c](x)) + x"),
    ("mean[w,h,c](gamma) * x", "mean[c](gamma) * x"),
    ("std[b,w,h,c](mean[c](x)) * x", "std[b,w,h](mean[c](x)) * x"),
    ("eps = 1e-3; tanh(x)", "tanh(x)"),
    ("param tau = 0; x + tau - tau", "x"),
    ("std[h,w](x) + x", "x + std[w,h](x)"),
    ("x / (x - x)", "x / 0"),
]
DIFFERENT = [
    ("x", "2 * x"),
    ("x * gamma", "x * beta"),
    ("std[w,h](x) * x", "std[b,w,h](x) * x"),
    ("std[w,h](x) * x", "rms[w,h](x) * x"),
    ("eps = 1e-3; std[w,h](x) * x", "std[w,h](x) * x"),
    ("eps = 1e-3; sqrt(x)", "sqrt(x)"),
    ("param a = 1; a * x", "param a = 2; a * x"),
    ("param a = 1; a * x", "param a scalar = 1; a * x"),
    ("sqrt(square(x))", "abs(x)"),
    ("log(exp(x))", "x"),
    ("max(x, 0)", "min(x, 0)"),
    ("x + 1e-12 * tanh(x)", "x"),
    ("tanh(1 / 0) * x", "x"),
    ("square(mean[w,h](x)) * x", "mean[w,h](square(x)) * x"),
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal(a: str, b: str) -> None:
    assert parse(a).hash == parse(b).hash
    assert parse(a).family_hash == parse(b).family_hash


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(a: str, b: str) -> None:
    assert parse(a).hash != parse(b).hash


def test_named_layers_are_all_different() -> None:
    for key in ("hash", "family_hash", "content_hash"):
        assert len({getattr(g, key) for g in layers.values()}) == len(layers)


ABSORBED = [
    ("gamma * 2 * x", "gamma * x"),
    ("2 * x * gamma / 3", "gamma * x"),
    ("-x * gamma", "gamma * x"),
    ("x - beta", "x + beta"),
    ("x + beta + 2", "x + beta"),
    ("-(x * gamma + beta)", "x * gamma + beta"),
    ("gamma * (2 * x + 2 * tanh(x)) + beta", "gamma * (x + tanh(x)) + beta"),
    ("gamma * (3 * x - 6 * tanh(x) + 1) + beta", "gamma * (2 * tanh(x) - x) + beta"),
    ("gamma * (tanh(x) + 3) + beta", "gamma * tanh(x) + beta"),
    ("sigmoid(2 * v1 * x) * x", "sigmoid(v1 * x) * x"),
    ("x / (2 * gamma)", "x / gamma"),
    ("2 * gamma * x + tanh(2 * gamma * x)", "gamma * x + tanh(gamma * x)"),
    ("x * sigmoid(3 * v1 * x) / std[w,h,c/g](x) * gamma * 5 + beta - 1", "evonorm-s0"),
    ("x * sigmoid(-v1 * x) / std[w,h,c/g](x) * gamma + beta", "evonorm-s0"),
    ("(sqrt(x) + 1) * gamma + beta", "sqrt(x) * gamma + beta"),
    ("(x / std[c](x) + 1) * gamma + beta", "x / std[c](x) * gamma + beta"),
    ("relu(x) * gamma + beta + v0", "relu(x) * gamma + beta"),
    ("relu(-beta - gamma * x)", "relu(gamma * x + beta)"),
    # a scale that comes out into gamma
    ("sqrt(x * v1) * gamma + beta", "sqrt(x) * gamma + beta"),
    ("sqrt(3 * x) * gamma + beta", "sqrt(x) * gamma + beta"),
    ("sqrt(tanh(x) / rms[w,h](x) * v1) * gamma", "sqrt(tanh(x) / rms[w,h](x)) * gamma"),
    ("abs(x * v1) * gamma + beta", "abs(x) * gamma + beta"),
    ("tanh(x) / v1 * gamma + beta", "tanh(x) * gamma + beta"),
    ("tanh(x) * sqrt(v1) * gamma + beta", "tanh(x) * gamma + beta"),
    ("tanh(x) * (v0 + v1) * gamma + beta", "tanh(x) * gamma + beta"),
    ("tanh(x) * tanh(v1) * exp(v0) / sigmoid(v1) * gamma + beta", "tanh(x) * gamma + beta"),
    ("tanh(x) * rms[w,h,c](v0) * gamma + beta", "tanh(x) * gamma + beta"),
    ("tanh(x) * mean[w,h,c](v1) * gamma", "tanh(x) * gamma"),
    ("tanh(x) * v0 * v1 * gamma", "tanh(x) * v0 * gamma"),
    ("param a scalar = 2; tanh(x) * a * v1", "tanh(x) * v1"),
    ("rms[w,h](v1 * x) * tanh(x) * gamma", "rms[w,h](x) * tanh(x) * gamma"),
    ("x / std[w,h](4 * x) * gamma", "x / std[w,h](x) * gamma"),
    # constants that beta absorbs
    ("(tanh(x) + rms[w,h](0)) * gamma + beta", "tanh(x) * gamma + beta"),
    ("(tanh(x) + abs(v0)) * gamma + beta", "tanh(x) * gamma + beta"),
    ("(tanh(x) + v0 * v1) * v1 * gamma + beta", "tanh(x) * gamma + beta"),
    # signs
    ("-tanh(-sqrt(-x)) * gamma + beta", "tanh(sqrt(x)) * gamma + beta"),
    ("min(x, -tanh(x)) * gamma + beta", "max(-x, tanh(x)) * gamma + beta"),
    # a moment of a moment
    ("rms[w,h](rms[w,h](x)) * tanh(x) * gamma", "rms[w,h](x) * tanh(x) * gamma"),
    ("x / rms[w,h,c](rms[w,h](x)) * gamma", "x / rms[w,h,c](x) * gamma"),
    ("x / rms[w,h,c](std[w,h](2 * x)) * gamma", "x / rms[w,h,c](std[w,h](x)) * gamma"),
]
NOT_ABSORBED = [
    ("2 * x", "x"),
    ("x + 2", "x"),
    ("gamma * (x + 1)", "gamma * x"),
    ("gamma * x + tanh(2 * gamma * x)", "gamma * x + tanh(gamma * x)"),  # gamma is used twice
    ("gamma * x * 0", "gamma * x"),
    ("gamma * x", "v1 * x"),
    ("tanh(gamma * x) * 2", "tanh(gamma * x)"),
    ("param a scalar = 1; gamma * (x + 1) + a", "param a scalar = 1; gamma * x + a"),  # one value for all channels
    ("gamma * x + 2", "gamma * x"),
    ("sqrt(x * v1)", "sqrt(x)"),  # nothing to absorb it
    ("tanh(x * v1) * gamma + beta", "tanh(x) * gamma + beta"),
    ("sqrt(x * v0) * gamma", "sqrt(x) * gamma"),  # starts at zero
    ("tanh(x) * v0 * gamma", "tanh(x) * gamma"),
    ("tanh(x) / v0 * gamma", "tanh(x) * gamma"),
    ("param a scalar = 2; tanh(x) * a * v1", "param a scalar = 2; tanh(x) * a"),  # one value for all channels
    ("(tanh(x) + abs(v0) * x) * gamma + beta", "tanh(x) * gamma + beta"),
    ("(tanh(x) + rms[w,h](0)) * gamma", "tanh(x) * gamma"),  # no beta
    ("tanh(x + rms[w,h](0)) * gamma + beta", "tanh(x) * gamma + beta"),
    ("tanh(x / rms[w,h](0)) * gamma + beta", "tanh(x) * gamma + beta"),
    ("relu(-x) * gamma + beta", "relu(x) * gamma + beta"),  # not odd
    ("max(x, tanh(x)) * gamma + beta", "min(x, tanh(x)) * gamma + beta"),
    ("x / mean[c](rms[w,h](x)) * gamma", "x / rms[w,h,c](x) * gamma"),
    ("x / rms[c](mean[w,h](x)) * gamma", "x / rms[w,h,c](x) * gamma"),
    ("rms[w,h](rms[w,h](x)) * tanh(x) * gamma", "rms[w,h,c](rms[w,h](x)) * tanh(x) * gamma"),
    ("std[w,h,c](rms[w,h](x)) * tanh(x) * gamma", "std[w,h,c](x) * tanh(x) * gamma"),
    ("tanh(rms[w,h](v1 * x)) * x * gamma", "tanh(rms[w,h](x)) * x * gamma"),
    ("eps = 1; x / rms[w,h](x + 1) * gamma", "eps = 1; x / rms[w,h](x) * gamma"),
    ("(square(rms[w,h](x)) - mean[w,h](square(x))) * x * gamma", "0 * x * gamma"),  # ε, and not nothing
]


@pytest.mark.parametrize(("a", "b"), ABSORBED)
def test_one_family(a: str, b: str) -> None:
    assert parse(a).family_hash == parse(b).family_hash
    assert parse(a).hash != parse(b).hash


@pytest.mark.parametrize(("a", "b"), NOT_ABSORBED)
def test_two_families(a: str, b: str) -> None:
    assert parse(a).family_hash != parse(b).family_hash


@given(GRAPHS)
def test_hash_needs_no_simplify(graph: Graph) -> None:
    assert simplify(graph).hash == graph.hash
    assert parse(str(graph)).hash == graph.hash
    assert simplify(graph).family_hash == graph.family_hash


@given(GRAPHS, st.sampled_from([Op.ADD, Op.MUL, Op.MAX, Op.MIN]))
def test_hash_ignores_the_order_of_operands(graph: Graph, op: Op) -> None:
    one, two = (
        graph.with_outputs(("y", make(op, pair))) for pair in ((graph.output, data("x")), (data("x"), graph.output))
    )
    assert one.hash == two.hash


def nest(form: str, depth: int, inside: str = "x") -> str:
    for _ in range(depth):
        inside = form.replace("@", inside)
    return inside


EXPLOSIVE = {
    "division by zero": "x / 0",
    "zero over zero": "(x - x) / (x - x)",
    "infinity as an operand": "tanh(1 / 0) * x + 1 / (1 / 0)",
    "minus infinity": "-1 / 0 + 1 / 0 + x",
    "towers of squares": nest("square(@)", 150),
    "towers of constants": nest("square(@)", 150, "3") + " * x",
    "towers of coefficients": nest("square(2 * @)", 90),
    "large numbers": "x * 1e300 * 1e300 * 1e300 / 1e-300",
    "small numbers": "x * 1e-300 * 1e-300 * 1e-300 / 5e-324",
    "squares of large numbers": nest("square(@)", 60, "1e300") + " * x",
    "continued fraction": nest("x / (1 + @)", 90),
    "horner": nest("(v1 + @) * (x + 2)", 90),
    "quotients": nest("gamma / (x - 2 / @)", 60),
    "long decimals": " + ".join(f"{i}.{i}e-{i % 300} * x" for i in range(1, 150)),
    "many terms": " + ".join(f"{i} * tanh(x * {i})" for i in range(60)),
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_nothing_explodes(name: str) -> None:
    graph = parse(EXPLOSIVE[name])
    verify(simplify(graph))
    assert simplify(graph).hash == graph.hash
    assert graph.family_hash


def shared(depth: int) -> Graph:
    """A graph whose tree has 4 ** depth operations."""
    x, node = data("x"), data("x")
    for _ in range(depth):
        node = make(Op.DIV, (node, make(Op.ADD, (make(Op.MUL, (node, x)), make(Op.MUL, (node, param("v1", 1.0)))))))
    return Graph((("y", node),), (x,))


def test_sharing_does_not_explode() -> None:
    graph = shared(60)
    assert simplify(graph).hash == graph.hash


def test_what_is_no_layer_has_keys_too() -> None:
    gradient = Differentiate().run(layers["gn-silu"])
    assert gradient.hash != Differentiate().run(layers["gn-relu"]).hash
    assert Graph.from_dump(gradient.dump()).hash == gradient.hash
    strange = Graph((("y", make(Op.MUL, (data("x"), const(float("nan"))))),), (data("x"),))
    assert simplify(strange).hash == strange.hash


def test_keys_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = parse("x * 17.25")
    monkeypatch.delitem(KEYS, "hash")
    with pytest.raises(GraphError, match=r"import normforge\.passes first"):
        _ = graph.hash


def test_the_lowered_graph_decides_the_content_hash() -> None:
    assert parse("eps = 1e-3; tanh(x)").content_hash == parse("tanh(x)").content_hash
    assert parse("eps = 1e-3; sqrt(x)").content_hash != parse("sqrt(x)").content_hash
    assert parse("x * gamma").content_hash == parse("gamma * x").content_hash
    assert parse("x - x").content_hash != parse("0 * x").content_hash  # Inf and NaN must show


def test_keys_are_equal_in_every_process() -> None:
    formulas = [
        *layers,
        *(f for pair in EQUAL for f in pair),
        EXPLOSIVE["horner"],
        "max(gamma * tanh(x), v0) * (x + beta) / (v1 + square(x)) - x * beta",
    ]
    code = (
        "import sys, json, hashlib, normforge as nf\n"
        "gs = [nf.parse(f) for f in json.load(sys.stdin)]\n"
        "if sys.argv[1] == 'back': gs.reverse(); [g.hash for g in gs]; gs.reverse()\n"
        "keys = [[g.hash, g.family_hash, g.content_hash, str(nf.simplify(g))] for g in gs]\n"
        "print(hashlib.sha256(json.dumps(keys).encode()).hexdigest())"
    )
    runs = [("1", "on"), ("271", "back")]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, order],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, order in runs
    ]
    digests = [p.communicate(json.dumps(formulas))[0].strip() for p in started]
    assert len(digests[0]) == 64
    assert digests[0] == digests[1]
