"""Degenerate layers: each refusal names the stage, the node and the reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from normforge.ir import Graph, evaluate, layers, parse
from normforge.passes import Check, Degeneracy, Differentiate, lower
from normforge.testing import layer_graphs, random_values

# formula -> stage, phrase of the reason, node
REFUSED = {
    "std[w,h](gamma) + x": (Check.TYPE, "constant √ε", "std[w,h](gamma)"),
    "x / std[b,w,h](mean[b,w,h](x)) + x": (Check.TYPE, "constant √ε", "std[b,w,h](mean[b,w,h](x))"),
    "x + std[b,w,h](2)": (Check.TYPE, "constant √ε", "std[b,w,h](2)"),
    "x + 0 * std[w,h,c](std[w,h,c](x))": (Check.TYPE, "constant √ε", "std[w,h,c](std[w,h,c](x))"),
    "mean[w,h](x)": (Check.TYPE, "same at every position", "mean[w,h](x)"),
    "mean[b,w,h](x) * gamma": (Check.TYPE, "same at every position and every batch element", ""),
    "std[w,h,c/g](x) + x - x": (Check.TYPE, "same at every position", "std[w,h,c/g](x) + x - x"),
    "tanh(mean[b,w,h,c](x)) + beta": (Check.TYPE, "same at every position and every batch element", ""),
    "gamma": (Check.DEPENDENCE, "does not depend on x", "gamma"),
    "x - x": (Check.DEPENDENCE, "x cancels", "x - x"),
    "x * 0 + beta": (Check.DEPENDENCE, "x cancels", "x * 0 + beta"),
    "x / x": (Check.DEPENDENCE, "x cancels", "x / x"),
    "max(v0, 1) * gamma + beta": (Check.DEPENDENCE, "does not depend on x", ""),
    "2": (Check.DEPENDENCE, "does not depend on x", "2"),
    "tanh(sigmoid(x) + sigmoid(-x))": (Check.DEPENDENCE, "x cancels", ""),
    "max(sigmoid(x), 2) * gamma": (Check.DEPENDENCE, "x cancels", ""),
    "x / (tanh(x) - tanh(x)) + x": (Check.RANGE, "infinite or NaN whatever x is", "x / (tanh(x) - tanh(x))"),
    "x * exp(100)": (Check.RANGE, "infinite or NaN whatever x is", "exp(100)"),
    "x / v0": (Check.RANGE, "at the start values of the parameters", "x / v0"),
    "tanh(x) + v0 / v0": (Check.RANGE, "NaN at the start values", "v0 / v0"),
    "x": (Check.FORM, "affine in x", "x"),
    "x * gamma + beta": (Check.FORM, "affine in x", ""),
    "x * sigmoid(v0) - mean[w,h](x) * gamma": (Check.FORM, "affine in x", ""),
    "(square(x + 1) - square(x)) / std[w,h](v1 * mean[b,w,h](gamma) + 1)": (Check.TYPE, "constant √ε", ""),
    "square(x + v1) - square(x)": (Check.FORM, "affine in x", ""),
    "x * exp(tanh(x)) / exp(tanh(x))": (Check.FORM, "affine in x", ""),
}
ACCEPTED = [*layers, "tanh(x)", "tanh(x) + mean[w,h](gamma)", "abs(x) * rms[w,h](gamma)", "mean[c](x) + relu(x)"]


@pytest.mark.parametrize("formula", REFUSED)
def test_refused(formula: str) -> None:
    stage, phrase, node = REFUSED[formula]
    finding = Degeneracy().run(parse(formula))[0]
    assert finding.stage is stage
    assert phrase in finding.reason
    assert finding.node == node or not node
    assert str(finding) == f"{stage}: {finding.reason} ({finding.node})"


@pytest.mark.parametrize("formula", ACCEPTED)
def test_accepted(formula: str) -> None:
    assert Degeneracy().run(parse(formula)) == ()


def test_what_cancels_is_dropped_first() -> None:
    finding = Degeneracy().run(parse("abs(x) / abs(x) * gamma"))[0]
    assert finding.stage is Check.DEPENDENCE


@given(layer_graphs(space="paper"))
def test_findings_are_true(graph: Graph) -> None:
    """Whoever is said not to depend on x, or not to vary, does not, wherever numbers are finite."""
    findings = Degeneracy().run(graph)
    shape = (3, 4, 2, 3)
    values = random_values(graph, shape, groups=2, seed=1) | {"ct.y": np.ones(shape)}
    y = evaluate(graph, values, groups=2)["y"]
    dx = evaluate(lower(Differentiate().run(graph)), values, groups=2)["d.x"]
    if not (np.isfinite(y).all() and np.isfinite(dx).all() and np.abs(y).max() < 1e6):
        return
    reasons = " ".join(f.reason for f in findings)
    if "zero everywhere" in reasons or "depend on x" in reasons:
        np.testing.assert_allclose(dx, 0, atol=2.0**-40 * (1 + np.abs(y).max()))
    if "every position" in reasons:
        np.testing.assert_allclose(y - y[:, :, :1, :1], 0, atol=2.0**-40 * (1 + np.abs(y).max()))
    if np.abs(dx).max() > 1e-3:
        assert Check.DEPENDENCE not in {f.stage for f in findings}
