"""Which moments keep a running statistic, under which name, and what inference reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from normforge.ir import Graph, evaluate, layers, parse, verify
from normforge.ir.forms.grammar import is_buffer_name
from normforge.passes import Differentiate, inference_graph, running_statistics, training_graph
from normforge.testing import assert_close, layer_graphs, random_values, value_shape

NAMES = {
    "bn-relu": ["running_mean", "running_var"],
    "evonorm-b0": ["running_var"],
    "evonorm-s0": [],
    "x / rms[b,w,h](x)": ["running_ms"],
    "std[b,w,h](x) + mean[b,w,h](x)": ["running_var", "running_mean"],
    # In order of appearance, reading from the left: the outer moment before the one inside it.
    "x * std[b,w,h](x - mean[b,w,h](x)) + std[b,w,h](x)": ["running_var", "running_mean", "running_var_1"],
    "mean[b,w,h](square(x)) - mean[b,w,h](x) + mean[b,w,h,c](x)": ["running_mean", "running_mean_1", "running_mean_2"],
    "mean[b,w,h](x) * mean[h,b,w](x)": ["running_mean"],  # one for each distinct moment
    "mean[w,h](x) + mean[c](x)": [],
    "mean[b,w,h](gamma) + x": [],  # does not vary along b, w, h
    "mean[b,w,h,c](gamma) + x": ["running_mean"],  # varies along c
    "mean[b,w,h](mean[c](x)) + x": ["running_mean"],
    "mean[b,w,h](mean[b,w,h](x)) + x": ["running_mean"],  # the outer one does not vary
    "x * 0 * mean[b,w,h](x)": ["running_mean"],  # as written, not as simplified
}


@pytest.mark.parametrize("formula", NAMES)
def test_names_and_order(formula: str) -> None:
    graph = parse(formula)
    assert [r.name for r in running_statistics(graph)] == NAMES[formula]
    assert all(is_buffer_name(r.name) for r in running_statistics(graph))


def test_starts_shapes_and_bessel() -> None:
    mean, var = running_statistics(layers["bn-relu"])
    (ms,) = running_statistics(parse("x / rms[b,w,h,c](x)"))
    assert (mean.start, var.start, ms.start) == (0.0, 1.0, 1.0)
    assert (mean.unbiased, var.unbiased, ms.unbiased) == (False, True, False)
    assert str(mean.node.type) == "{c} stat"
    assert ms.axes == 0


def test_nested_moments_are_told_apart() -> None:
    outer, inner = running_statistics(parse("std[b,w,h](x * rms[b,w,h](x))"))
    assert (outer.name, inner.name) == ("running_var", "running_ms")
    assert inner.node in outer.node.args[0].args


def test_training_graph_returns_what_buffers_average() -> None:
    graph = parse("(x - mean[b,w,h](x)) / std[b,w,h](x) + x / rms[b,w,h](x)")
    x = np.random.default_rng(0).standard_normal((3, 4, 2, 5))
    out = evaluate(training_graph(graph), {"x": x})
    assert_close(out["running_mean"], x.mean((0, 2, 3)), length=30)
    assert_close(out["running_var"], x.var((0, 2, 3), ddof=1), length=30)
    assert_close(out["running_ms"], (x**2).mean((0, 2, 3)), length=30)
    assert_close(out["y"], evaluate(graph, {"x": x})["y"])
    one = evaluate(training_graph(graph), {"x": x[:1, :, :1, :1]})  # no division by zero
    np.testing.assert_array_equal(one["running_var"], np.zeros(4))


def test_the_correction_counts_every_element_under_the_index_set() -> None:
    graph = parse("x * std[b,w,h,c](std[w,h](x))")  # broadcast along w and h
    x = np.random.default_rng(0).standard_normal((3, 4, 2, 5))
    (kept,) = (evaluate(training_graph(graph), {"x": x})[r.name] for r in running_statistics(graph))
    inner = np.sqrt(x.var((2, 3)) + graph.eps)
    assert_close(kept, inner.var() * 120 / 119, length=120)


@given(layer_graphs())
def test_inference_on_the_batch_statistics_is_training(graph: Graph) -> None:
    """With buffers that hold exactly this batch's raw statistics, both modes are one function."""
    values = random_values(graph, (3, 6, 2, 3), groups=2, seed=1)
    verify(training_graph(graph))
    raw = tuple((r.name, r.raw()) for r in running_statistics(graph))
    train, infer = graph.with_outputs(*graph.outputs, *raw), inference_graph(graph)
    verify(infer)
    out = evaluate(train, values, groups=2)
    buffers = {r.name: out[r.name] for r in running_statistics(graph)}
    got = evaluate(infer, values | buffers, groups=2)["y"]
    steady = np.isfinite(out["y"]) & (np.abs(out["y"]) < 1e6)
    # The same operations in the same order: equal to the bit.
    np.testing.assert_array_equal(got[steady], out["y"][steady])


@given(layer_graphs())
def test_no_gradient_flows_through_buffers(graph: Graph) -> None:
    infer = inference_graph(graph)
    buffers = [r.name for r in running_statistics(graph)]
    assert [n.name for n in infer.inputs] == ["x", *buffers]
    assert not {f"d.{b}" for b in buffers} & {name for name, _ in Differentiate().run(infer).outputs}


def test_other_moments_act_the_same_in_both_modes() -> None:
    graph = parse("x / max(std[b,w,h](x), v1 * x + std[w,h](x))")
    infer = inference_graph(graph)
    x, v1 = np.random.default_rng(0).standard_normal((2, 3, 4)), np.ones(3)
    var = np.array([1.0, 2.0, 3.0])
    assert value_shape(running_statistics(graph)[0].axes, x.shape) == var.shape
    got = evaluate(infer, {"x": x, "v1": v1, "running_var": var})["y"]
    instance = np.sqrt(x.var(2, keepdims=True) + 1e-5)
    assert_close(got, x / np.maximum(np.sqrt(var + 1e-5)[None, :, None], x + instance), length=4)
