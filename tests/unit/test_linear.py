"""What of a layer is a norm, and what an activation."""

from __future__ import annotations

import pytest

import normforge as nf
from normforge.errors import OptionError
from normforge.passes.linear import is_linear, linear_twin, name_of, then


@pytest.mark.parametrize(
    "name, twin",
    [
        ("bn-relu", "batchnorm"),
        ("bn-silu", "batchnorm"),
        ("gn-relu", "groupnorm"),
        ("gn-silu", "groupnorm"),
        ("in-relu", "instancenorm"),
        ("layernorm-gelu", "layernorm"),
        ("ln-relu", "(x - mean[w,h,c](x)) / std[w,h,c](x) * gamma + beta"),
        ("frn-tlu", "x / rms[w,h](x) * gamma + beta"),
        ("evonorm-s0", "x * gamma + beta"),
        ("evonorm-b0", "x * gamma + beta"),
        ("dyt", "x * gamma + beta"),
        ("rmsnorm", "rmsnorm"),
        ("groupnorm", "groupnorm"),
        ("tanh(x / std[w,h](x)) * gamma + beta", "x / std[w,h](x) * gamma + beta"),
        ("max(x / std[w,h](x), 0)", "x / std[w,h](x)"),
        ("max(x / rms[c](x) + x, x)", "x * gamma + beta"),  # the bend sees x by itself too
        ("eps = 1e-3; relu((x - mean[b,w,h](x)) / std[b,w,h](x))", "eps = 1e-3; (x - mean[b,w,h](x)) / std[b,w,h](x)"),
    ],
)
def test_linear_twin(name: str, twin: str) -> None:
    layer, want = nf.parse(name), nf.parse(twin)
    found = linear_twin(layer)
    assert found == want or str(found) == str(want)
    assert is_linear(found) and is_linear(layer) == (found is layer)


def test_linear_twin_of_more_than_x() -> None:
    with pytest.raises(OptionError, match="more than x"):
        linear_twin(nf.layers["adaln"])


def test_names_whatever_the_epsilon() -> None:
    assert name_of(nf.parse("eps = 1e-3; x / rms[c](x) * gamma")) == "rmsnorm"
    assert name_of(nf.parse("x * gamma")) == "x * gamma"


def test_one_layer_after_another() -> None:
    assert then(nf.layers["batchnorm"], nf.parse("relu(x)")) == nf.layers["bn-relu"]
    assert then(nf.parse("eps = 1e-3; x / rms[c](x)"), nf.parse("silu(x)")).eps == 1e-3
