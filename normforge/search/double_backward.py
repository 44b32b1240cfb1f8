"""Grouped convolutions that are cheap to differentiate twice.

PyTorch's double backward of a convolution goes group by group, which in a network of depthwise convolutions takes
longer than everything else together. The derivatives of the two gradients are
convolutions and their gradients again: with y = x * w, and dx, dw of a cotangent dy,

    in dy:  ddx * w + x * ddw        in x: the dx of dy with ddw for w        in w: the dw of dy with ddx for x
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# stride, padding, dilation, groups
_Options = tuple[list[int], list[int], list[int], int]


class FastDoubleBackward(TorchFunctionMode):
    """A context in which grouped 2-d convolutions have a cheap double backward, and no third derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups == 1 or isinstance(padding, str):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    y: Tensor = _Convolution.apply(x, weight, (_pair(stride), _pair(padding), _pair(dilation), groups))
    return y if bias is None else y + bias[:, None, None]


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _convolution(x: Tensor, weight: Tensor, options: _Options) -> Tensor:
    stride, padding, dilation, groups = options
    made: Tensor = torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)
    return made


def _gradients(dy: Tensor, x: Tensor, weight: Tensor, options: _Options, mask: list[bool]) -> tuple[Tensor, Tensor]:
    stride, padding, dilation, groups = options
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*mask, False]
    )
    return dx, dw


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, options: _Options) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return _convolution(x, weight, options)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dx, dw = _ConvolutionBackward.apply(dy, x, weight, ctx.options, ctx.needs_input_grad[0])
        return dx, dw, None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, options: _Options, of_x: bool
    ) -> tuple[Tensor | None, Tensor]:
        ctx.save_for_backward(dy, x, weight)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return _gradients(dy, x, weight, options, [of_x, True])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ddx: Tensor | None, ddw: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x, weight = ctx.saved_tensors
        in_dy = in_x = in_w = None
        if ddx is not None:
            in_dy = _convolution(ddx, weight, ctx.options)
            in_w = _gradients(dy, ddx, weight, ctx.options, [False, True])[1]
        if ddw is not None:
            from_w = _convolution(x, ddw, ctx.options)
            in_dy = from_w if in_dy is None else in_dy + from_w
            if ctx.needs_input_grad[1]:
                in_x = _gradients(dy, x, ddw, ctx.options, [True, False])[0]
        return in_dy, in_x, in_w, None, None
