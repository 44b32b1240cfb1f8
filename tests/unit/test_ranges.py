"""Intervals hold every value, and what is called never finite never is."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normforge.ir import Graph, evaluate, layers, parse
from normforge.passes import Legalise, Ranges
from normforge.passes.normal_form.intervals import EVERYTHING, INFINITY, Interval, point
from normforge.passes.ranges import FLOAT32_MAX, Finite
from normforge.testing import any_layers, random_values

ENDS = st.one_of(st.fractions(min_value=-5, max_value=5, max_denominator=8), st.sampled_from([-INFINITY, INFINITY, 0]))


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    lo, hi = sorted((draw(ENDS), draw(ENDS)))
    if lo == hi:
        lo = hi = 0 if abs(lo) == INFINITY else lo
        return point(lo)
    return Interval(lo, hi, draw(st.booleans()) or lo == -INFINITY, draw(st.booleans()) or hi == INFINITY)


def inside(i: Interval, draw: st.DrawFn) -> Fraction:
    lo = max(i.lo, Fraction(-50)) if i.lo != -INFINITY else Fraction(-50)
    hi = min(i.hi, Fraction(50)) if i.hi != INFINITY else Fraction(50)
    value = Fraction(lo) + (Fraction(hi) - Fraction(lo)) * draw(
        st.fractions(min_value=0, max_value=1, max_denominator=64)
    )
    if (value == i.lo and i.lo_open) or (value == i.hi and i.hi_open):
        value = (Fraction(lo) + Fraction(hi)) / 2
    return value


def holds(i: Interval, value: Fraction) -> bool:
    above = value > i.lo or (value == i.lo and not i.lo_open)
    return above and (value < i.hi or (value == i.hi and not i.hi_open))


@given(st.data())
def test_interval_arithmetic_holds_every_result(data: st.DataObject) -> None:
    a, b = data.draw(intervals()), data.draw(intervals())
    u, v = inside(a, data.draw), inside(b, data.draw)
    assert holds(a, u) and holds(b, v)
    assert holds(a.plus(b), u + v)
    assert holds(a.times(b), u * v)
    assert holds(-a, -u)
    assert holds(a.magnitude(), abs(u))
    assert holds(a.larger(b), max(u, v))
    assert holds(a.join(b), u) and holds(a.join(b), v)
    for n in (0, 1, 2, 3):
        assert holds(a.power(n), u**n)
    if u:
        assert holds(a.inverse(), 1 / u)
        assert holds(a.power(-2), 1 / u**2)
    if abs(u) < 15:  # further out float64 says 1
        assert holds(a.rising(math.tanh, Interval(-1, 1, True, True)), Fraction(math.tanh(u)))
    if a.nonzero:
        assert u != 0
    assert a.positive == (not holds(a, Fraction(0)) and a.lo >= 0)


@given(any_layers(), st.sampled_from([1e-3, 1.0, 40.0]))
def test_every_value_lies_in_its_range(graph: Graph, scale: float) -> None:
    for form in (graph, Legalise().run(graph)):
        known = Ranges(graph.eps).run(form)
        values = random_values(graph, (3, 4, 2, 3), groups=2, scale=scale)
        every = form.with_outputs(*((str(i), n) for i, n in enumerate(form.nodes)))
        out = evaluate(every, values, groups=2)
        for i, node in enumerate(form.nodes):
            found = out[str(i)]
            finite = found[np.isfinite(found)]
            if known[node].finite is not Finite.MAYBE:
                assert not finite.size or np.abs(finite).min() > FLOAT32_MAX
            elif finite.size:
                slack = 1e-12 * (1 + np.abs(finite).max())
                assert float(known[node].interval.lo) - slack <= finite.min()
                assert finite.max() <= float(known[node].interval.hi) + slack


@pytest.mark.parametrize(
    ("formula", "interval"),
    [
        ("sigmoid(x)", "(0, 1)"),
        ("tanh(x) + 1", "(0, 2)"),
        ("square(x) + 1", "[1, inf)"),
        ("std[w,h](x)", "[0.00316228, inf)"),
        ("rms[w,h](tanh(x))", "[0.00316228, 1)"),
        ("std[w,h](tanh(x))", "[0.00316228, 1]"),
        ("exp(-abs(x))", "(0, 1]"),
        ("1 / (2 + sigmoid(x))", "(0.333333, 0.5)"),
        ("max(x, 0)", "[0, inf)"),
        ("min(exp(x), 3)", "(0, 3]"),
        ("x * x", "[0, inf)"),
        ("x - x", "[0, 0]"),
        ("log(2 + square(x))", "[0.693152, inf)"),
        ("sqrt(sigmoid(x))", "(0, 0.999995)"),
        ("x / square(x)", "(-inf, inf)"),
        ("softplus(x)", "(0, inf)"),
        ("softplus(abs(x))", "[0.693147, inf)"),
        ("tanh(softplus(x))", "(0, 1)"),
        ("2 - sin(x) * cos(v1 * x)", "[1, 3]"),
    ],
)
def test_intervals(formula: str, interval: str) -> None:
    graph = parse(formula)
    assert str(Ranges(graph.eps).interval(graph.output)) == interval


@pytest.mark.parametrize(
    ("formula", "finite"),
    [
        ("x / 0", Finite.NEVER),
        ("0 / (x - x)", Finite.NAN),
        ("x + exp(1000)", Finite.NEVER),
        ("tanh(1 / 0) * x", Finite.MAYBE),
        ("x / (1 / 0)", Finite.MAYBE),
        ("max(x, exp(100))", Finite.NEVER),
        ("min(x, exp(100))", Finite.MAYBE),
        ("std[w,h](x / (x - x))", Finite.NEVER),
        ("sigmoid(0 / 0) + x", Finite.NAN),
        ("x / v0", Finite.MAYBE),
        ("softplus(exp(1000)) + x", Finite.NEVER),
        ("softplus(-exp(1000)) + x", Finite.MAYBE),
        ("sin(exp(1000)) + x", Finite.NAN),
        ("cos(x / 0)", Finite.NAN),
    ],
)
def test_what_is_never_finite(formula: str, finite: Finite) -> None:
    graph = parse(formula)
    assert Ranges(graph.eps).of(graph.output).finite is finite


def test_start_values_decide_more() -> None:
    graph = parse("x / v0")
    assert Ranges(graph.eps, start=True).of(graph.output).finite is Finite.NEVER
    assert Ranges(graph.eps, start=True).interval(parse("v1 * 2").output) == point(2)


def test_named_layers_are_finite_somewhere() -> None:
    for graph in layers.values():
        for start in (False, True):
            assert Ranges(graph.eps, start=start).of(graph.output).finite is Finite.MAYBE


def test_long_fractions_are_rounded_outward() -> None:
    third = point(Fraction(1, 3))
    many = third.power(60).times(third.power(60)).times(third.power(60)).times(third.power(60))
    assert holds(many, Fraction(1, 3) ** 240)
    assert many.lo < many.hi
    assert EVERYTHING.times(point(0)) == point(0)
