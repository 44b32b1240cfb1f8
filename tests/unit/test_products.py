"""Products: the same values in one form, with fewer operations an element and fewer sums."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from named import LAYERS

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.ir import evaluate, verify
from normforge.ir.graph import EPS, Graph
from normforge.ir.node import const, data, make, param
from normforge.ir.ops import LEAF, Op
from normforge.passes.factor import Factor, is_full
from normforge.passes.products import Collect, Share
from normforge.testing import layer_graphs, random_values

SHAPE = (3, 4, 2, 3)
X, DY, GAMMA = data("x"), data("dy"), param("gamma", 1.0)


def graph(*outputs: nf.ir.Node) -> Graph:
    return Graph(tuple((f"o{i}", o) for i, o in enumerate(outputs)), (X, DY), EPS)


def cost(g: Graph) -> int:
    """Operations an element, a division as eight."""
    return sum(8 if n.op is Op.DIV else 1 for n in g.nodes if is_full(n.axes) and n.op not in LEAF)


def check(g: Graph, values: dict[str, np.ndarray], groups: int = 2) -> None:
    before = evaluate(g, values, groups=groups)
    new = Share().run(Collect().run(g))
    verify(new)
    after = evaluate(new, values, groups=groups)
    for name, want in before.items():
        finite = np.isfinite(want)
        scale = np.abs(want[finite]).max(initial=1.0)
        np.testing.assert_allclose(after[name][finite], want[finite], rtol=1e-9, atol=1e-9 * scale, err_msg=name)


def derivative_values(g: Graph, seed: int) -> dict[str, np.ndarray]:
    values = random_values(g, SHAPE, groups=2, seed=seed)
    for name in values:
        if name.startswith(("saved", "running")):
            values[name] = np.abs(values[name]) + 0.5
    values["x"].reshape(-1)[:6] = (0.0, 0.0, 1.0, 1.0, -1.0, -1.0)  # ties and the kink of relu
    return values


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_named_layers_keep_their_meaning_and_get_cheaper(name: str, order: int) -> None:
    g = program(nf.layers[name], order, True).graph
    check(g, derivative_values(g, order))
    factor = Factor(expand=order > 0)
    assert cost(make_plan(program(nf.layers[name], order, True), "c", "float32", "nchw").graph) <= cost(factor.run(g))


@given(layer_graphs(smooth=True, max_nodes=8), st.integers(1, 2), st.integers(0, 99))
@settings(max_examples=60)
def test_any_smooth_layer_keeps_its_meaning(layer: Graph, order: int, seed: int) -> None:
    g = program(layer, order, True).graph
    check(g, derivative_values(g, seed))


def test_sums_that_differ_in_order_sign_or_scale_are_one() -> None:
    def total(a: nf.ir.Node) -> nf.ir.Node:
        return make(Op.SUM, (a,), (8,))

    mean = make(Op.MEAN, (X,), (8,))
    left, right = make(Op.SUB, (X, mean)), make(Op.SUB, (mean, X))
    g = graph(
        total(make(Op.MUL, (left, DY))),
        total(make(Op.MUL, (DY, right))),
        total(make(Op.NEG, (make(Op.MUL, (make(Op.MUL, (DY, const(2.0))), left)),))),
    )
    new = Collect().run(g)
    assert sum(n.op is Op.SUM for n in new.nodes) == 1
    check(g, random_values(g, SHAPE))


def test_common_factors_leave_a_sum() -> None:
    s = make(Op.SIGMOID, (X,))

    def product(*factors: nf.ir.Node) -> nf.ir.Node:
        return reduce(lambda a, b: make(Op.MUL, (a, b)), factors)

    a, b, c = product(s, DY, X), product(X, DY, X, s), product(DY, s)
    g = graph(make(Op.ADD, (make(Op.ADD, (a, b)), c)))
    new = Share().run(Collect().run(g))
    # s, x + 1, x·(x + 1), + 1, and two products with s and dy
    assert cost(new) == 6 < cost(g)
    check(g, random_values(g, SHAPE))


def test_one_reciprocal_for_many_divisions() -> None:
    safe = make(Op.MAX, (X, make(Op.ROOT, (make(Op.ADD, (make(Op.VAR, (X,), (8,)), const(1e-5))),))))

    def twice(d: nf.ir.Node) -> Graph:
        return graph(make(Op.DIV, (make(Op.DIV, (DY, d)), d)), make(Op.DIV, (X, d)))

    assert sum(n.op is Op.DIV for n in Share().run(Collect().run(twice(safe))).nodes) == 1
    # What may be zero keeps its quotients.
    assert sum(n.op is Op.DIV for n in Share().run(Collect().run(twice(X))).nodes) == 3
    check(twice(safe), random_values(twice(safe), SHAPE))


def test_factors_of_unknown_size_keep_their_order() -> None:
    e = make(Op.EXP, (X,))
    product = make(Op.MUL, (make(Op.MUL, (e, DY)), make(Op.EXP, (make(Op.NEG, (X,)),))))
    g = graph(product)
    assert Share().run(Collect().run(g)).outputs[0][1] is product


def test_differences_stay_whole() -> None:
    mean = make(Op.MEAN, (X,), (8,))
    g = graph(make(Op.MUL, (make(Op.SUB, (X, mean)), GAMMA)))
    values = random_values(g, SHAPE)
    values["x"] = values["x"] + 1e8
    new = Share().run(Collect().run(g))
    np.testing.assert_array_equal(evaluate(new, values)["o0"], evaluate(g, values)["o0"])
