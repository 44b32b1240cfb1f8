"""Fingerprints: equal layers share them, layers that differ where numbers can see do not."""

from __future__ import annotations

import pytest

from normforge.ir import layers, parse
from normforge.passes import fingerprint, simplify


def test_named_layers_are_all_different() -> None:
    prints = [fingerprint(g) for g in layers.values() if g.is_plain]
    assert None not in prints
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("name", layers)
def test_other_forms_of_named_layers_share_it(name: str) -> None:
    graph = layers[name]
    assert fingerprint(simplify(graph)) == fingerprint(graph)
    turned = parse(f"0 + 1 * ({graph}) * 1" if ";" not in str(graph) else str(graph))
    assert fingerprint(turned) == fingerprint(graph)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("max(exp(x), x)", "exp(x)"),
        ("tanh(x) * x", "tanh(abs(x)) * abs(x)"),
        ("sqrt(tanh(x) / std[w,h](x)) / sqrt(tanh(x) / std[w,h](x))", "x / x"),  # a gradient that is rounding alone
        ("sigmoid(max(x, 0))", "max(sigmoid(x), sigmoid(0))"),
        ("x / (x * (1 + exp(x))) * tanh(x) * v0 / v0", "tanh(x) / (1 + exp(x)) * x / x * v0 / v0"),
    ],
)
def test_it_sees_what_algebra_does_not(a: str, b: str) -> None:
    assert fingerprint(parse(a)) == fingerprint(parse(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x * v1", "x"),  # at the start of v1 the same
        ("max(x, 0) * v1", "max(x * v1, 0)"),  # for positive v1 the same
        ("x * x / x", "x"),  # not on zeros
        ("tanh(x) * v0 / v0", "tanh(x)"),  # not at the start of v0
        ("std[w,h](x) * x", "std[b,w,h](x) * x"),
        ("std[w,h,c](x) * x", "std[w,h,c/g](x) * x"),
        ("x + 1e-3 * tanh(x)", "x"),
        ("sqrt(square(x))", "x"),
    ],
)
def test_it_tells_apart(a: str, b: str) -> None:
    assert fingerprint(parse(a)) != fingerprint(parse(b))


def test_gradients_take_part() -> None:
    # Equal values everywhere but at ties, where slopes are split; the inputs have none, so the values decide.
    assert fingerprint(parse("max(x, x * 2)")) != fingerprint(parse("max(x * 2, 0)"))


def test_nothing_finite_has_none() -> None:
    assert fingerprint(parse("x / 0")) is None
    assert fingerprint(parse("x + exp(1000)")) is None
