"""Derivatives against finite differences in float64, at orders 1 and 2, and where the contract decides by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from named import LAYERS

from normforge.ir import Graph, evaluate, layers, parse, verify
from normforge.ir.node import data, param, stat
from normforge.ir.types import C
from normforge.passes import Differentiate, lower
from normforge.testing import Shape, layer_graphs, random_values, shapes, value_shape

# Sixth-order central differences: offsets in steps, and weights.
STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))


def cotangents(graph: Graph, shape: Shape, groups: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes_of = {name: shape if name == "y" else value_shape(n.axes, shape, groups) for name, n in graph.outputs}
    return {f"ct.{name}": rng.standard_normal(s) for name, s in shapes_of.items()}


def slope(graph: Graph, values: dict[str, np.ndarray], cts: dict[str, np.ndarray], name: str, groups: int, seed: int):  # type: ignore[no-untyped-def]
    """Along a random direction of one value: the derivative of the outputs' inner product with their cotangents by
    finite differences, an estimate of its error, and the direction."""
    direction = np.random.default_rng(seed).standard_normal(np.shape(values[name]))
    direction /= max(1.0, float(np.sqrt(np.sum(direction**2))))
    size = 0.0

    def at(t: float) -> float:
        nonlocal size
        out = evaluate(graph, {**values, name: values[name] + t * direction}, groups=groups)
        products = [out[k.removeprefix("ct.")] * ct for k, ct in cts.items()]
        size = max(size, sum(float(np.abs(p).sum()) for p in products))
        return sum(float(p.sum()) for p in products)

    def difference(h: float) -> float:
        return sum(w * (at(k * h) - at(-k * h)) for k, w in STENCIL) / h

    # Truncation, which falls 64 times with half the step, and the rounding of the sums. A kink inside the stencil
    # shows as truncation, and a smaller step may leave it outside.
    tried = []
    for h in (2.0**-9, 2.0**-13, 2.0**-17):
        coarse, fine = difference(2 * h), difference(h)
        tried.append((abs(coarse - fine) + 64 * 2.0**-52 * size / h, fine))
    error, fine = min(tried)
    return fine, error, direction


def check(graph: Graph, derivative: Graph, values: dict[str, np.ndarray], groups: int, seed: int) -> int:
    """Compare every output of a derivative with finite differences; how many comparisons meant something."""
    cts = {f"ct.{name}": values[f"ct.{name}"] for name, _ in graph.outputs}
    got = evaluate(derivative, values, groups=groups)
    compared = 0
    for i, (name, d) in enumerate(got.items()):
        of = name.split(".", 1)[1]
        numeric, error, direction = slope(graph, values, cts, of, groups, seed + i)
        if not np.isfinite(numeric) or error > 1e-3 * (1 + abs(numeric)):
            continue  # a kink or a pole inside every stencil
        analytic = float(np.sum(d.reshape(np.shape(direction)) * direction))
        assert abs(analytic - numeric) <= error, f"{name}: {analytic} by rule, {numeric} ± {error:.1g} by differences"
        compared += 1
    return compared


def orders(graph: Graph) -> tuple[Graph, Graph, Graph]:
    """A layer, delivered like a layer, and its first and second derivative graphs."""
    layer = lower(graph)
    first = Differentiate().run(layer)
    return layer, first, Differentiate(order=2).run(first)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (2, 6), (1, 2, 1, 1), (2, 4, 2, 1, 3)], ids=str)
def test_named_layers(name: str, shape: Shape) -> None:
    layer, first, second = orders(layers[name])
    verify(first)
    verify(second)
    values = random_values(layer, shape, groups=2, seed=5) | cotangents(layer, shape, 2, 6)
    assert check(layer, first, values, 2, 7) == len(first.outputs)
    values |= cotangents(first, shape, 2, 8)
    assert check(first, second, values, 2, 9) == len(second.outputs)


@given(layer_graphs(max_nodes=8, smooth=True), shapes(max_spatial=2))
def test_drawn_smooth_layers(graph: Graph, shape: Shape) -> None:
    shape = (min(shape[0], 3), min(shape[1], 6), *shape[2:])
    groups = 2 if shape[1] % 2 == 0 else 1
    layer, first, second = orders(graph)
    values = random_values(layer, shape, groups=groups, seed=1) | cotangents(layer, shape, groups, 2)
    out = evaluate(layer, values, groups=groups)["y"]
    assume(np.abs(out).max() < 1e6)
    check(layer, first, values, groups, 3)
    check(first, second, values | cotangents(first, shape, groups, 4), groups, 5)


def test_drawn_layers_are_mostly_compared() -> None:
    """The comparison above must not be vacuous."""
    compared = total = 0

    @given(layer_graphs(max_nodes=6, smooth=True))
    def count(graph: Graph) -> None:
        nonlocal compared, total
        layer, first, _ = orders(graph)
        values = random_values(layer, (3, 4, 2, 3), groups=2, seed=1) | cotangents(layer, (3, 4, 2, 3), 2, 2)
        compared += check(layer, first, values, 2, 3)
        total += len(first.outputs)

    count()
    assert compared > 0.8 * total


def gradient(formula: str, x: list[float], **parameters: list[float]) -> dict[str, list[float]]:
    """d of the sum of y, for a row of channels."""
    graph = lower(Differentiate().run(parse(formula)))
    values = {"x": np.array([x]), "ct.y": np.ones((1, len(x))), **{k: np.array(v) for k, v in parameters.items()}}
    out = evaluate(graph, values)
    return {k: [float(v) for v in np.broadcast_to(out[k], np.shape(values[k[2:]])).ravel()] for k in out}


def test_ties_split_the_gradient() -> None:
    assert gradient("max(x, v0)", [1, 2, 0], v0=[1, 1, 1]) == {"d.x": [0.5, 1, 0], "d.v0": [0.5, 0, 1]}
    assert gradient("min(x, v0)", [1, 2, 0], v0=[1, 1, 1]) == {"d.x": [0.5, 0, 1], "d.v0": [0.5, 1, 0]}
    assert gradient("relu(x)", [0, 1, -1]) == {"d.x": [0.5, 1, 0]}
    assert gradient("max(x, x)", [0, 1])["d.x"] == [1, 1]
    assert gradient("max(x, -x)", [0.0, 2, -2])["d.x"] == [0, 1, -1]


def test_derivatives_at_zero() -> None:
    assert gradient("abs(x)", [0.0, 2, -3])["d.x"] == [0, 1, -1]
    assert gradient("log(x)", [0.0])["d.x"] == [0]
    np.testing.assert_allclose(gradient("log(x)", [2.0, -2.0])["d.x"], [1 / (2 + 1e-5)] * 2, rtol=1e-14)
    np.testing.assert_allclose(gradient("sqrt(x)", [0.0])["d.x"], [1 / np.sqrt(1e-5)], rtol=1e-14)
    assert gradient("std[c](x)", [1.0, 1.0, 1.0])["d.x"] == [0, 0, 0]
    assert gradient("rms[c](x)", [0.0, 0.0])["d.x"] == [0, 0]


def test_nan_is_not_hidden() -> None:
    assert np.isnan(gradient("x * x", [np.nan])["d.x"]).all()
    assert np.isnan(gradient("max(x, 0) * x", [np.nan])["d.x"]).all()


def test_names_and_types() -> None:
    graph = parse("param a scalar = 1; a * x / std[b,w,h](x) * gamma")
    first = Differentiate().run(graph)
    assert [n.name for n in first.inputs] == ["x", "ct.y"]
    assert [name for name, _ in first.outputs] == ["d.x", "d.a", "d.gamma"]
    assert [str(n.type) for _, n in first.outputs] == ["{b,c,s} data", "{} stat", "{c} stat"]
    second = Differentiate(order=2).run(first)
    assert [n.name for n in second.inputs] == ["x", "ct.y", "ct.d.x", "ct.d.a", "ct.d.gamma"]
    assert {name for name, _ in second.outputs} == {"d2.x", "d2.ct.y", "d2.a", "d2.gamma"}
    third = Differentiate(order=3).run(second)
    # The cotangents of the parameters' gradients are no statistics: the third order is differentiated in them too.
    assert {"d3.ct.d.x", "d3.ct.d.a", "d3.ct.d.gamma"} <= {name for name, _ in third.outputs}
    verify(third)


def test_third_order() -> None:
    layer, first, second = orders(parse("tanh(x * v1) / std[w,h](x) * gamma"))
    third = Differentiate(order=3).run(second)
    shape = (2, 2, 2, 3)
    values = random_values(layer, shape, seed=1) | cotangents(layer, shape, 1, 2)
    values |= cotangents(first, shape, 1, 3) | cotangents(second, shape, 1, 4)
    assert check(second, third, values, 1, 5) == len(third.outputs)


def test_only_what_is_asked_for() -> None:
    graph = parse("x * gamma + beta")
    assert [k for k, _ in Differentiate(wrt=(param("beta", 0.0),)).run(graph).outputs] == ["d.beta"]
    untouched = Differentiate(wrt=(param("v0", 0.0),)).run(graph)
    assert evaluate(untouched, {"x": np.ones((1, 2)), "ct.y": np.ones((1, 2)), "gamma": [1, 1], "beta": [0, 0]})[
        "d.v0"
    ].tolist() == [0, 0]


def test_statistics_are_constants() -> None:
    mu = stat("mu", C)
    graph = parse("x").with_outputs(("y", parse("x * 2").output))
    centred = Graph((("y", graph.output),), (data("x"), mu))
    assert [k for k, _ in Differentiate().run(centred).outputs] == ["d.x"]
