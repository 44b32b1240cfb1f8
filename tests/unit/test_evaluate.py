"""The numpy evaluator against formulas of the contract written out in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.errors import GraphError, ShapeError
from normforge.ir import evaluate, layers, parse
from normforge.ir.node import data, make, size
from normforge.ir.ops import Op
from normforge.passes import lower
from normforge.testing import EXAMPLE_SHAPES, assert_close, group_counts, random_values, shapes

EPS = 1e-5
Fn = Callable[..., Any]
erf = np.vectorize(math.erf, otypes=[float])

# The layers in numpy: x as (N, G, K, P), parameters as (1, G, K, 1), a moment over a tuple of axes.
AXES = {"b,w,h": (0, 3), "w,h": (3,), "w,h,c": (1, 2, 3), "w,h,c/g": (2, 3), "c": (1, 2), "b,w,h,c": (0, 1, 2, 3)}


def mean(index: str, a: Any) -> Any:
    return a.mean(AXES[index], keepdims=True)


def std(index: str, a: Any) -> Any:
    return np.sqrt(a.var(AXES[index], keepdims=True) + EPS)


def rms(index: str, a: Any) -> Any:
    return np.sqrt((a * a).mean(AXES[index], keepdims=True) + EPS)


def sig(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def relu(a: Any) -> Any:
    return np.maximum(a, 0)


def silu(a: Any) -> Any:
    return a * sig(a)


def gelu(a: Any) -> Any:
    return 0.5 * a * (1 + erf(a / math.sqrt(2)))


def bare(index: str, x: Any) -> Any:
    return (x - mean(index, x)) / std(index, x)


def norm(index: str) -> Fn:
    return lambda x, p: bare(index, x) * p["gamma"] + p["beta"]


DIRECT: dict[str, Fn] = {
    "bn-relu": lambda x, p: relu(norm("b,w,h")(x, p)),
    "bn-silu": lambda x, p: silu(norm("b,w,h")(x, p)),
    "gn-relu": lambda x, p: relu(norm("w,h,c/g")(x, p)),
    "gn-silu": lambda x, p: silu(norm("w,h,c/g")(x, p)),
    "ln-relu": lambda x, p: relu(norm("w,h,c")(x, p)),
    "in-relu": lambda x, p: relu(norm("w,h")(x, p)),
    "frn-tlu": lambda x, p: np.maximum(x / rms("w,h", x) * p["gamma"] + p["beta"], p["tau"]),
    "evonorm-b0": lambda x, p: x / np.maximum(std("b,w,h", x), p["v1"] * x + std("w,h", x)) * p["gamma"] + p["beta"],
    "evonorm-b1": lambda x, p: x / np.maximum(std("b,w,h", x), (x + 1) * rms("w,h", x)) * p["gamma"] + p["beta"],
    "evonorm-b2": lambda x, p: x / np.maximum(std("b,w,h", x), rms("w,h", x) - x) * p["gamma"] + p["beta"],
    "evonorm-s0": lambda x, p: x * sig(p["v1"] * x) / std("w,h,c/g", x) * p["gamma"] + p["beta"],
    "evonorm-s1": lambda x, p: x * sig(x) / std("w,h,c/g", x) * p["gamma"] + p["beta"],
    "evonorm-s2": lambda x, p: x * sig(x) / rms("w,h,c/g", x) * p["gamma"] + p["beta"],
    "layernorm-gelu": lambda x, p: gelu(norm("c")(x, p)),
    "rmsnorm": lambda x, p: x / rms("c", x) * p["gamma"],
    "dyt": lambda x, p: p["gamma"] * np.tanh(p["alpha"] * x) + p["beta"],
    "derf": lambda x, p: p["gamma"] * erf(p["alpha"] * x + p["s"]) + p["beta"],
    "batchnorm": norm("b,w,h"),
    "groupnorm": norm("w,h,c/g"),
    "layernorm": norm("c"),
    "instancenorm": norm("w,h"),
    "adagn-silu": lambda x, p: silu(bare("w,h,c/g", x) * (1 + p["scale"]) + p["shift"]),
    "adaln": lambda x, p: bare("c", x) * (1 + p["scale"]) + p["shift"],
    "adain": lambda x, p: bare("w,h", x) * p["scale"] + p["shift"],
    "cond-bn-relu": lambda x, p: relu(bare("b,w,h", x) * p["gain"] + p["bias"]),
    "cond-evonorm-b0": lambda x, p: (
        x / np.maximum(std("b,w,h", x), p["v1"] * x + std("w,h", x)) * p["gain"] + p["bias"]
    ),
    "cond-evonorm-s0": lambda x, p: x * sig(p["v1"] * x) / std("w,h,c/g", x) * p["gain"] + p["bias"],
    "add-rmsnorm": lambda x, p: ((x + p["r"]) / rms("c", x + p["r"]) * p["gamma"], x + p["r"]),
    "add-layernorm": lambda x, p: (norm("c")(x + p["r"], p), x + p["r"]),
    "rmsnorm-gated": lambda x, p: x * silu(p["z"]) / rms("c", x * silu(p["z"])) * p["gamma"],
    "input m[b,w,h]; mean[b,w,h](x * m) / mean[b,w,h](m)": lambda x, p: (
        mean("b,w,h", x * p["m"]) / p["m"].mean((0, 3), keepdims=True)
    ),
    "input s[]; input t[c]; input u[b]; x * s + t, x * u": lambda x, p: (x * p["s"] + p["t"], x * p["u"]),
    "sqrt(x) + log(x)": lambda x, p: (
        np.sign(x) * np.abs(x) / np.sqrt(np.abs(x) + EPS) + np.sign(x) * np.log(np.abs(x) + EPS)
    ),
    "max(x, v1) - min(x, v0) / exp(abs(x))": lambda x, p: (
        np.maximum(x, p["v1"]) - np.minimum(x, p["v0"]) / np.exp(np.abs(x))
    ),
    "square(tanh(-x)) * erf(x)": lambda x, p: np.tanh(x) ** 2 * erf(x),
    "mean[b,w,h,c](x) * x": lambda x, p: mean("b,w,h,c", x) * x,
    "std[w,h](std[c](x)) + rms[b,w,h](x)": lambda x, p: std("w,h", std("c", x)) + rms("b,w,h", x),
    "mean[w,h,c/g](gamma) * x": lambda x, p: p["gamma"].mean(2, keepdims=True) * x,
    "std[w,h,c](gamma) * x": lambda x, p: np.sqrt(p["gamma"].var((1, 2), keepdims=True) + EPS) * x,
    "rms[w,h](gamma) + x": lambda x, p: np.sqrt(p["gamma"] ** 2 + EPS) + x,
    "sum[w,h,c/g](x) * sum[c](gamma)": lambda x, p: (
        x.sum((2, 3), keepdims=True) * p["gamma"].sum((1, 2), keepdims=True)
    ),
    "sum[w,h](gamma) + x": lambda x, p: p["gamma"] * x.shape[3] + x,
    "var[b,w,h](x) * rsqrt(1 + square(x)) + sign(x)": lambda x, p: (
        x.var((0, 3), keepdims=True) / np.sqrt(1 + x * x) + np.sign(x)
    ),
    "where(x > v1, x, v0) + where(v1 <= x, 1, gamma)": lambda x, p: (
        np.where(x > p["v1"], x, p["v0"]) + np.where(p["v1"] <= x, 1, p["gamma"])
    ),
    "std[w,h](gamma) + x": lambda x, p: math.sqrt(EPS) + x,
}


def direct(formula: str, values: dict[str, Any], groups: int) -> list[Any]:
    x = values["x"]
    n, c, *space = x.shape
    inside, positions = (groups, c // groups), int(np.prod(space))
    graph = parse(formula)
    p = {q.name: values[q.name].reshape(1, *inside, 1) if q.axes else values[q.name] for q in graph.params}
    for node in graph.inputs[1:]:
        along = [n if node.axes & 1 else 1, *(inside if node.axes & 2 else (1, 1)), positions if node.axes & 8 else 1]
        p[node.name] = values[node.name].reshape(along)
    found = DIRECT[formula](x.reshape(n, *inside, -1), p)
    results = found if isinstance(found, tuple) else (found,)
    return [np.broadcast_to(y, (n, *inside, positions)).reshape(x.shape) for y in results]


def check(formula: str, shape: tuple[int, ...], groups: int, seed: int) -> None:
    graph = parse(formula)
    values = random_values(graph, shape, groups=groups, seed=seed)
    found = evaluate(graph, values, groups=groups)
    for (name, _), want in zip(graph.outputs, direct(formula, values, groups), strict=True):
        what = f"{name} of {formula} {shape} groups={groups}"
        assert_close(found[name], want, length=want.size, what=what)


def test_every_named_layer_is_written_out() -> None:
    assert set(layers) <= set(DIRECT)


@pytest.mark.parametrize("formula", DIRECT)
def test_example_shapes(formula: str) -> None:
    for i, shape in enumerate(EXAMPLE_SHAPES):
        for groups in {1, math.gcd(shape[1], 3), math.gcd(shape[1], 32), shape[1]}:
            check(formula, shape, groups, seed=i)


@given(st.sampled_from(sorted(DIRECT)), st.data())
def test_drawn_shapes(formula: str, draw: st.DataObject) -> None:
    shape = draw.draw(shapes())
    check(formula, shape, draw.draw(group_counts(shape[1])), seed=1)


def value(formula: str, *xs: float) -> list[float]:
    return [float(v) + 0.0 for v in evaluate(parse(formula), {"x": np.array([xs])})["y"][0]]  # -0.0 counts as 0


def test_not_finite_values_pass_through() -> None:
    inf, nan = math.inf, math.nan
    np.testing.assert_equal(value("max(x, 0)", nan, inf, -inf), [nan, inf, 0])
    np.testing.assert_equal(value("min(0, x)", nan, inf, -inf), [nan, 0, -inf])
    np.testing.assert_equal(value("1 / x", 0.0, -0.0, inf), [inf, -inf, 0])
    np.testing.assert_equal(value("exp(x)", 1000.0, -1000.0, nan), [inf, 0, nan])
    np.testing.assert_equal(value("sigmoid(x)", inf, -inf, nan), [1, 0, nan])
    np.testing.assert_equal(value("sigmoid(x)", 1000.0, -1000.0, 0.0), [1, 0, 0.5])
    np.testing.assert_equal(value("softplus(x)", inf, -inf, nan), [inf, 0, nan])
    np.testing.assert_equal(value("softplus(x)", 1000.0, -700.0), [1000, math.exp(-700)])
    np.testing.assert_equal(value("sin(x)", inf, -inf, nan, 0.0), [nan, nan, nan, 0])
    np.testing.assert_equal(value("cos(x)", inf, -inf, nan, 0.0), [nan, nan, nan, 1])
    np.testing.assert_equal(value("log(x)", 0.0, inf, -inf), [0, inf, -inf])
    np.testing.assert_equal(value("sqrt(x)", 0.0, inf, nan), [0, nan, nan])
    assert np.isnan(value("x - mean[c](x)", nan, 1.0)).all()


def test_sizes_and_sums() -> None:
    x = data("x")
    graph = parse("x").with_outputs(
        ("n", size(9)), ("k", size(4)), ("s", make(Op.SUM, (x,), (9,))), ("v", make(Op.VAR, (x,), (12,)))
    )
    a = np.arange(48.0).reshape(2, 4, 2, 3)
    out = evaluate(graph, {"x": a}, groups=2)
    assert float(out["n"]) == 12
    assert float(out["k"]) == 2
    assert_close(out["s"], a.sum((0, 2, 3)), length=12)
    assert_close(out["v"], a.reshape(2, 2, 12).var(2), length=12)


def test_a_larger_cotangent_type_is_delivered() -> None:
    assert evaluate(parse("gamma"), {"x": np.zeros((2, 3, 4)), "gamma": np.arange(3.0)})["y"].shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("values", "groups", "error", "phrase"),
    [
        ({"x": np.zeros((2, 4, 3)), "gamma": np.ones(4)}, 3, ShapeError, "does not divide 4 channels"),
        ({"x": np.zeros((2, 4, 3)), "gamma": np.ones(4)}, 0, ShapeError, "does not divide"),
        ({"x": np.zeros((2, 4, 3)), "gamma": np.ones(3)}, 1, ShapeError, "3 elements"),
        ({"x": np.zeros(4), "gamma": np.ones(4)}, 1, ShapeError, r"\(N, C, \*spatial\)"),
        ({"gamma": np.ones(4)}, 1, ShapeError, r"\(N, C, \*spatial\)"),
        ({"x": np.zeros((2, 4, 3))}, 1, GraphError, "no value for param 'gamma'"),
    ],
)
def test_errors(values: dict[str, Any], groups: int, error: type[Exception], phrase: str) -> None:
    with pytest.raises(error, match=phrase):
        evaluate(parse("x * gamma"), values, groups=groups)


def test_a_deviation_of_what_does_not_vary_hides_nothing() -> None:
    graph = parse("std[w,h](gamma) + x")
    values = {"x": np.zeros((1, 3, 2)), "gamma": np.array([1.0, np.inf, np.nan])}
    for form in (graph, lower(graph)):
        y = evaluate(form, values)["y"][0, :, 0]
        assert y[0] == math.sqrt(EPS)
        assert np.isnan(y[1:]).all()
