"""Properties: each that is proved is true of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from normforge.ir import Graph, evaluate, layers, parse
from normforge.passes import Describe
from normforge.testing import any_layers, random_values

SHAPE, GROUPS = (3, 6, 4, 5), 2
NORMED = "(x - mean[w,h](x)) / std[w,h](x)"

FACTS = [
    (
        "bn-relu",
        {"batch_dependent": True, "scale_degree": 0, "shift_invariant": True, "bounded": True, "linear": False},
    ),
    ("gn-silu", {"batch_dependent": False, "scale_degree": 0, "shift_invariant": True, "moment_levels": 1}),
    ("evonorm-s0", {"scale_degree": None, "shift_invariant": False, "bounded": False, "moments": ["std[w,h,c/g]"]}),
    ("evonorm-b0", {"batch_dependent": True, "scale_degree": 0, "running": ["running_var"]}),
    ("evonorm-b2", {"batch_dependent": True, "scale_degree": 0}),
    ("rmsnorm", {"scale_degree": 0, "shift_invariant": False, "bounded": True, "moments": ["rms[c]"]}),
    ("dyt", {"monotone": "rising or falling, by the signs of the parameters", "bounded": True, "moment_levels": 0}),
    (
        f"{NORMED} * gamma + beta",
        {"centred": ["b,w,h", "w,h", "w,h,c", "w,h,c/g", "b,w,h,c"], "scale_degree": 0, "bounded": True},
    ),
    ("x * gamma + beta", {"linear": True, "scale_degree": 1, "bounded": False}),
    ("x - mean[w,h](x)", {"linear": True, "scale_degree": 1, "shift_invariant": True}),
    ("silu(x)", {"monotone": "no", "bounded": False, "scale_degree": None}),
    ("relu(x) + tanh(x)", {"monotone": "rising"}),
    ("exp(-x)", {"monotone": "falling"}),
    ("-x * exp(v0)", {"monotone": "falling"}),
    ("sqrt(x)", {"scale_degree": 0.5, "monotone": "rising"}),
    ("square(x) / std[w,h](x)", {"scale_degree": 1, "monotone": "no"}),
    ("x / (1 + abs(x))", {"bounded": True}),
    ("x / std[w,h](x)", {"bounded": False, "scale_degree": 0}),  # far from zero it grows with x / √ε
    ("std[w,h](x * std[c](x)) + x", {"moment_levels": 2}),
    ("sigmoid(x) * 2 - 1", {"bounded": True, "monotone": "rising"}),
    ("exp(exp(x))", {"bounded": False}),
    ("softplus(x)", {"monotone": "rising", "bounded": False, "scale_degree": None, "linear": False}),
    ("x * tanh(softplus(x))", {"monotone": "no", "bounded": False}),
    ("sin(x) * gamma + beta", {"monotone": "no", "bounded": True, "scale_degree": None}),
    ("cos(x / rms[w,h](x))", {"bounded": True, "scale_degree": 0}),
    ("sin(x - mean[c](x)) / std[c](x)", {"shift_invariant": True}),
]


@pytest.mark.parametrize(("formula", "expected"), FACTS)
def test_facts(formula: str, expected: dict[str, object]) -> None:
    facts = Describe().run(parse(formula))
    assert {k: facts[k] for k in expected} == expected


def test_what_is_probed_says_so() -> None:
    assert Describe().run(parse("bn-relu"))["probed"] == []
    assert Describe().run(parse("silu(x)"))["probed"] == ["monotone", "bounded"]
    assert Describe().run(parse("x / (1 + abs(x))"))["probed"] == ["monotone", "bounded"]


@given(any_layers())
def test_what_is_proved_is_true(graph: Graph) -> None:
    facts = Describe().run(graph)
    values = random_values(graph, SHAPE, groups=GROUPS)
    y = evaluate(graph, values, groups=GROUPS)["y"]
    if not np.isfinite(y).all() or np.abs(y).max() > 1e6:
        return
    close = 1e-6 * (1 + np.abs(y).max())
    wobble = np.abs(evaluate(graph, {k: v * (1 + 2.0**-40) for k, v in values.items()}, groups=GROUPS)["y"] - y).max()
    if not wobble < 1e-9 * (1 + np.abs(y).max()):
        return
    moved = values | {"x": values["x"] + 0.37}
    shifted = evaluate(graph, moved, groups=GROUPS)["y"]
    if facts["shift_invariant"]:
        np.testing.assert_allclose(shifted, y, atol=close)
    if facts["linear"]:
        zero, double = (evaluate(graph, values | {"x": values["x"] * t}, groups=GROUPS)["y"] for t in (0.0, 2.0))
        if np.isfinite(zero).all() and np.isfinite(double).all():
            np.testing.assert_allclose(double - y, y - zero, atol=close * 10)
    if facts["monotone"] in ("rising", "falling", "constant") and "monotone" not in facts["probed"]:  # type: ignore[operator]
        step = np.where(np.isfinite(shifted), shifted - y, 0)
        sign = {"rising": 1, "falling": -1, "constant": 0}[str(facts["monotone"])]
        assert (step * sign >= -close).all() if sign else (np.abs(step) <= close).all()


@pytest.mark.parametrize("name", layers)
def test_scale_degrees_of_named_layers(name: str) -> None:
    graph = layers[name]
    degree = Describe().run(graph)["scale_degree"]
    values = random_values(graph, SHAPE, groups=GROUPS, scale=100.0)
    values["beta"] = np.zeros(SHAPE[1])  # the degree is that of the layer without what is added to it
    one, two = (evaluate(graph, values | {"x": values["x"] * t}, groups=GROUPS)["y"] for t in (1.0, 3.0))
    homogeneous = degree is not None and np.allclose(two, one * 3.0 ** float(degree), rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]
    assert homogeneous == (degree is not None)
