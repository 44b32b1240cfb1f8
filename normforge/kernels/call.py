"""One call of a job: what is prepared for it, and running that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normforge.codegen.shapes import Dims
from normforge.errors import ShapeError
from normforge.kernels.backends import Kernel
from normforge.kernels.empty import Allocator


class PreparedCall(NamedTuple):
    """A call of a job, prepared: what the first operand's dtype, device, shape and strides decide.

    Attributes:
        device: of all tensors. current: the CUDA device that must be the current one; -1 for none.
        strides: of full tensors. full: what allocates them: the pool, for large ones on CPUs.
        wide: dtype of small tensors.
        operands: elements of each, and whether it is full.
        outputs: of each its allocator, shape, strides and dtype in the kernel, and the place of the operand that it
            is the gradient of, whose shape and dtype it is returned in; -1 for none.
        launch: the kernel. dims: its extents.
    """

    device: torch.device
    current: int
    strides: tuple[int, ...]
    full: Allocator
    wide: torch.dtype
    operands: tuple[tuple[int, bool], ...]
    outputs: tuple[tuple[Allocator, tuple[int, ...], tuple[int, ...], torch.dtype, int], ...]
    launch: Kernel
    dims: Dims


def run_call(call: PreparedCall, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Bring operands into shape, allocate outputs, launch. Most of what a small layer costs is here: no torch
    operation is called, and no property asked for, that the prepared call can spare."""
    device, _, strides, _, wide, operands, specs, launch, dims = call
    tensors: list[Tensor] = []
    for t, (size, full) in zip(inputs, operands, strict=True):
        if t.numel() != size:
            raise ShapeError(
                f"an operand has {t.numel()} elements and the layer needs {size}: was a parameter replaced?"
            )
        if full:
            if t.stride() != strides:
                t = _like(t, inputs[0], call)
        elif t.dtype is not wide or not t.is_contiguous() or t.device != device:
            t = _small(t, inputs[0], wide)
        tensors.append(t)
    outputs: list[Tensor] = []
    others: list[tuple[Tensor, Tensor]] = []
    for empty, shape, own, dtype, of in specs:
        made = result = empty(shape, own, dtype)
        if of >= 0:
            like = inputs[of]
            if like.dtype is not dtype or like.shape != shape or like.device != device:
                result = torch.empty_like(like, memory_format=torch.contiguous_format)
                others.append((result, made))
        tensors.append(made)
        outputs.append(result)
    launch(tensors, dims)
    for result, made in others:
        result.copy_(made.view(result.shape))
    return outputs


def _small(t: Tensor, x: Tensor, wide: torch.dtype) -> Tensor:
    return t.to(device=x.device, dtype=wide).contiguous()


def _like(t: Tensor, x: Tensor, call: PreparedCall) -> Tensor:
    """A full operand with the strides of x made dense: a cotangent may come with any, and x too."""
    if t.dtype is x.dtype and t.device == x.device:
        return call.full(tuple(x.shape), call.strides, x.dtype).copy_(t)
    return torch.empty_strided(x.shape, call.strides, dtype=t.dtype, device=t.device).copy_(t)
