"""Every named layer on the C backend: all shapes, layouts and orders against float64."""

from __future__ import annotations

import pytest
import torch
from reference import SHAPES, check_against_eager

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
    "identity": "x",
    "constant": "beta * 2",
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", [*nf.layers, *EXTRA])
def test_layer(name: str, dtype: torch.dtype) -> None:
    layer = nf.parse(EXTRA.get(name, name))
    for i, (shape, groups) in enumerate(SHAPES):
        for layout in ("nchw", "nhwc"):
            check_against_eager(layer, shape, groups, dtype, layout, seed=10 * i)
            if groups is not None and dtype == torch.float32:
                check_against_eager(layer, shape, None, dtype, layout, seed=10 * i + 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["evonorm-b0", "evonorm-s0", "bn-relu", "gn-silu", "layernorm-gelu", "dyt"])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    for layout in ("nchw", "nhwc"):
        check_against_eager(nf.layers[name], (3, 8, 5, 6), 4, dtype, layout)
