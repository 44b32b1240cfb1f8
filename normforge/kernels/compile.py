"""`compile`: a module of a layer."""

from __future__ import annotations

import operator
from typing import Any

import torch

from normforge.codegen.shapes import resolve_groups
from normforge.errors import DtypeError, OptionError, ShapeError
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer
from normforge.kernels.inputs import BatchLayerOfInputs, LayerOfInputs
from normforge.kernels.module import DTYPES, BatchLayer, Layer, with_eps
from normforge.kernels.settings import check_backend
from normforge.passes.running import running_statistics


def compile(
    layer: Graph | str,
    channels: int,
    groups: int | None = None,
    channel_dim: int = 1,
    backend: str = "auto",
    momentum: float | None = 0.1,
    *,
    eps: float | None = None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> Layer:
    """An nn.Module that computes a layer with fused kernels, differentiable to the third order.

    Args:
        layer: a graph, a layer's name, or a formula.
        channels: C, the size of the channel axis.
        groups: of the index set w,h,c/g; None means 32 lowered to the largest divisor of C not above it.
        channel_dim: 1 for (N, C, *spatial), -1 for (B, *positions, C).
        backend: "auto" (Triton on a GPU, C on a CPU, eager with one warning where neither can be had),
            "triton", "c", "eager", or a target of one's own (see `normforge.codegen.target`).
        momentum: weight of the new value in running statistics; None averages over all batches alike, as in torch.
        eps: ε in place of the formula's.
        device, dtype: of parameters and running statistics; float32, float64, bfloat16 or float16. Running statistics
            are float32 under the last two.

    Raises:
        ParseError: no such layer, or a bad formula.
        ShapeError: `channels` is no positive whole number, or `groups` does not divide it.
        BackendError: a backend asked for by name cannot be had.
        DtypeError: a dtype that no layer computes in.
        OptionError: any other argument has no meaning.
    """
    graph = as_layer(layer, "compile")
    channels = whole("channels", channels)
    groups = None if groups is None else whole("groups", groups)
    if channel_dim not in (1, -1):
        raise OptionError(f"channel_dim is 1 or -1, not {channel_dim!r}")
    check_backend(backend)
    if momentum is not None and (not isinstance(momentum, int | float) or not 0 <= momentum <= 1):
        raise OptionError(f"momentum lies between 0 and 1, or is None for the average of all, not {momentum!r}")
    if dtype is not None and dtype not in DTYPES:
        raise DtypeError(f"dtype is float32, float64, bfloat16 or float16, not {dtype!r}")
    if eps is not None:
        graph = with_eps(graph, eps)
    made: type[Layer]
    if running_statistics(graph):
        made = BatchLayer if graph.is_plain else BatchLayerOfInputs
    else:
        made = Layer if graph.is_plain else LayerOfInputs
    module = made(graph, channels, resolve_groups(groups, channels), channel_dim, backend, momentum)
    return module if device is None and dtype is None else module.to(device=device, dtype=dtype)


def whole(name: str, value: Any) -> int:
    """A positive whole number, of any type that says it is one.

    Raises:
        ShapeError: it is none.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ShapeError(f"{name} is a positive number, not {value!r}")
    return number
