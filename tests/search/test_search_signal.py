"""Behaviour and signal: what they tell apart, what they do not, and the same bits everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from named import LAYERS

from normforge.ir import layers, parse
from normforge.probing.behaviour import LENGTH, QUANTUM, behaviour, cosines
from normforge.probing.signal import Signal, signal

SETS = ("w,h", "w,h,c", "w,h,c/g", "b,w,h", "c", "b,w,h,c")
NORMALIZING = [name for name in LAYERS if name not in ("dyt", "derf")]


def cosine(a: str, b: str) -> float:
    one, other = behaviour(parse(a)), behaviour(parse(b))
    assert one is not None and other is not None
    return float(abs(cosines(one[None], other)[0]))


def test_a_behaviour_is_a_unit_vector_of_multiples_of_its_quantum() -> None:
    vector = behaviour(layers["gn-silu"])
    assert vector is not None and vector.dtype == np.float32 and vector.shape == (LENGTH,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert (vector / QUANTUM == np.rint(vector / QUANTUM)).all()


@pytest.mark.parametrize("formula", ["x / 0", "beta", "1 + 0 * x", "exp(exp(exp(square(x) * 9)))", "v0"])
def test_there_is_none_of_what_is_constant_or_not_finite(formula: str) -> None:
    assert behaviour(parse(formula)) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("tanh(x) * gamma + beta", "beta - 3 * gamma * tanh(x)"),
        ("relu(x) * gamma + abs(v0)", "relu(x)"),
        ("gn-silu", "silu((x - mean[w,h,c/g](x)) / std[w,h,c/g](x))"),
        ("x / mean[c](rms[w,h](x))", "x / rms[w,h,c](x)"),
        ("tanh(x)", "erf(x)"),
    ],
)
def test_what_does_the_same(a: str, b: str) -> None:
    assert cosine(a, b) > 0.995


@pytest.mark.parametrize("index", SETS)
@pytest.mark.parametrize("form", ["x / rms[@](x)", "tanh(x / std[@](x))"])
def test_moments_over_different_axes_differ(form: str, index: str) -> None:
    others = [other for other in SETS if other != index]
    assert max(cosine(form.replace("@", index), form.replace("@", other)) for other in others) < 0.98


def test_the_size_that_a_batch_gives_its_channels_is_seen() -> None:
    """On one batch it would be a gain."""
    assert cosine("relu(x)", "relu(x) / std[b,w,h](x)") < 0.98


def test_known_layers_differ() -> None:
    """But for two of the EvoNorms: x·sigmoid(x) by its deviation, or by its root mean square."""
    names = [name for name, graph in layers.items() if graph.is_plain]
    vectors = np.array([behaviour(layers[name]) for name in names])
    near = {(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if cosine(a, b) > 0.995}
    assert near == {("evonorm-s1", "evonorm-s2")}
    order = np.random.default_rng(0).permutation(LENGTH)
    for vector in vectors:  # the same in any order of sums, to the last bit
        assert np.array_equal(cosines(vectors, vector), cosines(vectors[:, order], vector[order]))


@pytest.mark.parametrize("name", NORMALIZING)
def test_the_signal_keeps_its_size_in_known_layers(name: str) -> None:
    found = signal(layers[name])
    assert found.z < 0.9
    assert found.gated(2.0) < 1.5


@pytest.mark.parametrize(
    "formula", ["dyt", "derf", "relu(x)", "x * gamma + beta", "square(x)", "1 / x", "x * v0", "x / 0"]
)
def test_and_not_in_others(formula: str) -> None:
    assert signal(parse(formula)).z > 2


def test_linearity_and_its_penalty() -> None:
    assert signal(layers["bn-relu"]).linearity < 0.8
    linear = signal(parse("(x - mean[b,w,h](x)) / std[b,w,h](x)"))
    assert linear.linearity == pytest.approx(1) and linear.z < 0.1
    assert linear.gated(2.0) == pytest.approx(linear.z + 2)
    assert Signal(0.1, 0.2, 0.3, 0.95).gated(2.0) == pytest.approx(0.9)
    assert Signal(0.1, 0.2, 0.3, 0.975).gated(2.0) == pytest.approx(1.9)
    assert signal(parse("x / 0")).z == math.inf
