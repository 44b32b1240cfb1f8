"""Every named layer on the C backend: all shapes, layouts and orders against float64."""

from __future__ import annotations

import pytest
import torch
from named import LAYERS
from reference import SHAPES, check_against_eager, compare, make, random_input, tolerance

import normforge as nf
from normforge.kernels import toolchain

pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")

# Two levels of moments; c mixed with w,h; moments of parameters; everything broadcast; x itself.
EXTRA = {
    "two levels": "sigmoid(x / std[w,h,c/g](x)) * x / rms[b,w,h](x * sigmoid(x) / std[w,h](x)) * gamma + beta",
    "columns and rows": "(x - mean[c](x)) / std[w,h](x) * gamma + mean[b,w,h](max(x, v1))",
    "nested columns": "x * std[b,w,h,c](std[c](x) * v1) + tanh(mean[w,h,c](x * x))",
    "groups and columns": "mean[c](x) * mean[w,h,c/g](x) * x + std[c](mean[c](x) * mean[w,h,c/g](x * x)) * gamma",
    "nested batch": "x / std[b,w,h](x - mean[b,w,h](x * sigmoid(v1 * x))) + log(x) * sqrt(x)",
    "of a parameter": "x * std[b,w,h,c](gamma) + mean[w,h,c/g](beta * v1)",
    "broadcast": "mean[w,h](x) * gamma + min(v0, v1)",
    "mish": "x * tanh(softplus(x))",
    "periodic moments": "cos(x / rms[w,h](x)) * softplus(std[w,h,c/g](sin(x) * v1)) + beta",
    "variance": "(x - mean[c](x)) * rsqrt(var[c](x) + 1e-5) * gamma + var[b,w,h](x)",
    "branches": "where(x > v1, tanh(x), square(x)) / std[w,h](x) + where(gamma <= mean[w,h](x), v1, x) * sign(x - 0.1)",
    "sums": "x / sum[w,h](square(x)) + sum[c](x) * gamma + sum[w,h,c/g](v1)",
    "identity": "x",
    "constant": "beta * 2",
}


# Every layer in float32, a third of them in float64, which is the same text with another type; the rest when slow.
NAMES = [*LAYERS, *EXTRA]
CASES = [pytest.param(name, torch.float32, id=f"{name}-float32") for name in NAMES] + [
    pytest.param(name, torch.float64, id=f"{name}-float64", marks=[pytest.mark.slow] * bool(i % 3))
    for i, name in enumerate(NAMES)
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_layer(name: str, dtype: torch.dtype) -> None:
    layer = nf.parse(EXTRA.get(name, name))
    for i, (shape, groups) in enumerate(SHAPES):
        for layout in ("nchw", "nhwc"):
            check_against_eager(layer, shape, groups, dtype, layout, seed=10 * i)
            if groups is not None and dtype == torch.float32:
                check_against_eager(layer, shape, None, dtype, layout, seed=10 * i + 5)


LOW = ["evonorm-b0", "evonorm-s0", "bn-relu", "gn-silu", "layernorm-gelu", "dyt"]


@pytest.mark.parametrize(("name", "dtype"), list(zip(LOW, [torch.bfloat16, torch.float16] * 3, strict=True)), ids=str)
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    for layout in ("nchw", "nhwc"):
        check_against_eager(nf.layers[name], (3, 8, 5, 6), 4, dtype, layout)


@pytest.mark.parametrize("name", ["mish", "periodic moments"])
def test_third_order(name: str) -> None:
    """The gradient of the gradient of the gradient, against eager in float64."""
    layer, shape = nf.parse(EXTRA[name]), (2, 6, 3, 5)
    for layout in ("nchw", "nhwc"):
        got = _third(layer, "c", random_input(shape, 1, torch.float32, layout))
        want = _third(layer, "eager", random_input(shape, 1, torch.float32, layout).double())
        for order, (a, b) in enumerate(zip(got, want, strict=True), start=1):
            largest = float(b.abs().max())
            compare(a, b, tolerance(torch.float32, a.numel(), 1 + largest, order), f"order {order} of {name} {layout}")


def _third(layer: nf.Graph, backend: str, x: torch.Tensor) -> list[torch.Tensor]:
    y = make(layer, backend, x.shape[1], 2, x.dtype, 0)(x.requires_grad_())
    weights = random_input(x.shape, 2, torch.float32).to(x.dtype)
    found = []
    for _ in range(3):
        (y,) = torch.autograd.grad((y * weights).sum(), x, create_graph=True)
        found.append(y.detach())
    return found


@pytest.mark.parametrize(
    "word", ["silu", "gelu", "swish", "mish", "elu", "leaky_relu", "relu6", "hardsigmoid", "hardswish"]
)
def test_words_for_activations_are_torchs(word: str) -> None:
    """Values and slopes, but where two branches meet; torch's slope of hardsigmoid holds a sixth in float32."""
    x = (
        torch.tensor([-1e3, -7, -3.5, -2.5, -1, -1e-3, 1e-3, 0.5, 2.5, 3.5, 5.5, 6.5, 1e3])
        .double()[None]
        .requires_grad_()
    )
    reference = getattr(torch.nn.functional, "silu" if word == "swish" else word)
    want = reference(x)
    got = nf.compile(f"{word}(x)", x.shape[1], backend="c").double()(x)
    (slopes,), (wanted,) = (torch.autograd.grad(y.sum(), x) for y in (got, want))
    compare(got, want, tolerance(torch.float64, 1, 1e3), word)
    compare(slopes, wanted, tolerance(torch.float32, 1, 1.0, 1), f"slope of {word}")


def test_clamp_is_torchs() -> None:
    x = random_input((2, 4, 3, 3), 0, torch.float32)
    assert torch.equal(nf.compile("clamp(x, -0.5, 1)", 4, backend="c")(x), x.clamp(-0.5, 1))
