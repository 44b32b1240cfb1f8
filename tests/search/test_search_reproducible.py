"""Reproducible arithmetic: right, in any order the same bits, and on plainer instruction sets too."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from normforge.errors import GraphError
from normforge.ir import evaluate as float64
from normforge.ir import layers, parse
from normforge.passes.differentiate import Differentiate
from normforge.passes.pipeline import lower
from normforge.probing.probe import propagate, trials
from normforge.probing.reproducible import convolve, convolve_back, evaluate, mean, quantised_weights, total, variance
from normforge.testing import assert_close

# 1 / x and log diverge from a last bit within four layers; evonorm-s0 and std have all kinds of operations.
CHAOTIC = ("sqrt(1e-5) / abs(x)", "x / mean[w,h](x)", "log(x)", "std[w,h](sigmoid(x) / x) * tanh(x)", "evonorm-s0")
ALL = (0, 1, 2, 3)


def wild(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Quotients of normal numbers: a few are larger than all others together."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) / rng.standard_normal(shape)).astype(np.float32)


def test_sums_are_right_and_the_same_in_any_order() -> None:
    a = wild((8, 4, 8, 81))
    shuffled = np.random.default_rng(1).permutation(a.ravel()).reshape(a.shape)
    assert total(a, ALL).item() == total(shuffled, ALL).item()
    assert variance(a, ALL).item() == variance(shuffled, ALL).item()
    assert_close(total(a, ALL).item(), math.fsum(a.ravel().tolist()), "float32")
    assert_close(variance(a, ALL).item(), np.var(a, dtype=np.float64), "float32")
    assert np.array_equal(total(a, ()), a)


@pytest.mark.parametrize("value", [0.1, 3.4e38, 1e-45])
@pytest.mark.parametrize("count", [3, 81, 2048])
def test_equal_numbers_have_their_mean_and_no_variance(value: float, count: int) -> None:
    a = np.full((2, 1, 1, count), value, np.float32)
    assert (mean(a, (0, 3)) == a[0, 0, 0, 0]).all()
    assert (variance(a, (0, 3)) == 0).all()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    a = np.ones((2, 2, 2, 2), np.float32)
    a[0, 0, 0, 0] = bad
    with np.errstate(all="ignore"):
        found = total(a, (1, 2, 3)).ravel()
        y = convolve(a, quantised_weights(np.ones((1, 2, 3, 3))))
    assert not np.isfinite(found[0]) and found[1] == 8
    assert not np.isfinite(y[0]).any() and (y[1] == 8).all()


def test_a_convolution_is_torchs_in_any_order_of_channels() -> None:
    x = wild((3, 6, 5, 7))
    weights = quantised_weights(np.random.default_rng(2).standard_normal((4, 6, 3, 3)) / 7)
    y, order = convolve(x, weights), np.random.default_rng(3).permutation(6)
    assert np.array_equal(y, convolve(x[:, order], weights[:, order]))
    given = torch.tensor(x).double().requires_grad_()
    expected = torch.nn.functional.conv2d(given, torch.tensor(weights), padding=1)
    assert_close(y, expected.detach(), "float32", 54)
    dy = wild(y.shape, 4)
    (dx,) = torch.autograd.grad(expected, given, torch.tensor(dy).double())
    assert_close(convolve_back(dy, weights), dx, "float32", 36)


def test_what_cancels_in_a_convolution_leaves_nothing() -> None:
    """Sums of float64 as they come would leave a rounding error, another in each order."""
    half, order = wild((3, 8, 5, 7)), np.random.default_rng(6).permutation(16)
    weights = quantised_weights(np.random.default_rng(7).standard_normal((4, 8, 3, 3)) / 7)
    x, both = np.concatenate([half, -half], 1)[:, order], np.concatenate([weights, weights], 1)[:, order]
    assert not convolve(x, both).any()


@pytest.mark.parametrize("name", ["bn-relu", "evonorm-b0", "evonorm-s0", "frn-tlu", "gn-silu", "layernorm-gelu"])
def test_layers_and_gradients_are_those_of_float64(name: str) -> None:
    rng = np.random.default_rng(5)
    x, dy = (rng.standard_normal((3, 6, 4, 5)).astype(np.float32) for _ in range(2))
    values = {"x": x, "ct.y": dy} | {p.name: np.full(6, p.attr[2], np.float32) for p in layers[name].params}
    for graph in (lower(layers[name]), lower(Differentiate().run(layers[name]))):
        expected = float64(graph, values, groups=2)
        for key, value in evaluate(graph, values, groups=2).items():
            assert value.dtype == np.float32
            assert_close(value.ravel(), expected[key].ravel(), "float32", 60, f"{key} of {name}")


def test_only_core_graphs_are_evaluated() -> None:
    with pytest.raises(GraphError, match="legalise"):
        evaluate(parse("std[w,h](x)"), {"x": wild((2, 3, 4, 5))})


def numbers() -> list[object]:
    """What probing decides by, of each chaotic layer, as JSON gives it back."""
    graphs = [layers[f] if f in layers else parse(f) for f in CHAOTIC]
    found = [[trials(g), asdict(propagate(g, depth=6, width=16, seed=1))] for g in graphs]
    return json.loads(json.dumps(found))


def test_plain_instructions_give_the_same_bits() -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    environment = os.environ | {
        "NPY_DISABLE_CPU_FEATURES": " ".join(f for f in __cpu_dispatch__ if __cpu_features__.get(f)),
        "OPENBLAS_CORETYPE": "Prescott",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    code = f"import json, {__name__} as test; print(json.dumps(test.numbers()))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == numbers()
