"""Every named layer on the Triton backend, on a device: all shapes, layouts and orders against float64."""

from __future__ import annotations

import pytest
import torch
from reference import EXTREME, SHAPES, check_against_eager, check_extreme

import normforge as nf

NESTED = [
    "sigmoid(x / std[w,h,c/g](x)) * x / rms[b,w,h](x * sigmoid(x)/std[w,h](x)) * gamma + beta",
    "(x-mean[c](x))/std[w,h](x)*gamma + mean[b,w,h](max(x,v1))",
    "x*std[b,w,h,c](std[c](x)*v1)+tanh(mean[w,h,c](x*x))",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*nf.layers, *NESTED])
def test_layer(name: str, dtype: torch.dtype) -> None:
    for i, (shape, groups) in enumerate(SHAPES):
        for layout in ("nchw", "nhwc"):
            check_against_eager(
                nf.parse(name), shape, groups, dtype, layout, backend="triton", device="cuda", seed=10 * i
            )


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", EXTREME)
def test_large_mean(name: str, layout: str) -> None:
    check_extreme(name, "triton", layout, device="cuda")


@pytest.mark.parametrize("name", ["gn-silu", "bn-relu", "evonorm-b0", "layernorm-gelu"])
def test_large_tensor_is_the_same_every_time(name: str) -> None:
    module = nf.compile(name, channels=64, backend="triton").cuda()
    x = torch.randn(32, 64, 56, 56, device="cuda", requires_grad=True)
    results = []
    for _ in range(3):
        y = module(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
