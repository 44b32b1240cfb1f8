"""Layers that are given more than x, or have several results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Proxy

from normforge.codegen.eager import arithmetic_dtype
from normforge.errors import DtypeError, OptionError, ShapeError, described, nearest
from normforge.ir.node import Node
from normforge.ir.types import FULL, INPUT_NAMES, B, G, S
from normforge.kernels.module import BatchLayer, Layer, traced


class LayerOfInputs(Layer):
    """A layer that is given further tensors at each call, in the order in which its formula declares them, or by name;
    or that has several results, which come as a tuple.

    Shapes, by the axes of the declaration, for x (N, C, *spatial): `[b,c]` (N, C); `[b]` (N,); `[c]` (C,); `[b,w,h]`
    (N, *spatial), or with one channel where x has its own; `[b,c,w,h]` that of x; `[]` (). Integers and booleans count
    as their value, without gradient. A gradient has the shape and dtype of its input.
    """

    def forward(self, x: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """The result or results, each of x's shape, dtype and layout.

        Raises:
            ShapeError, DtypeError: x or an input does not fit. OptionError: an input is missing, or given twice, or
            there is none of that name.
            BackendError, TransformError: as without further inputs.
        """
        if any(isinstance(t, Proxy) for t in (x, *inputs, *named.values())):
            return traced(self, x, *inputs, **named)  # type: ignore[no-any-return]
        self._check(x)
        given = [
            self._input(node, t, x) for node, t in zip(self.graph.inputs[1:], self._given(inputs, named), strict=True)
        ]
        last = self.channel_dim == -1
        results = tuple(self._results(x.movedim(-1, 1) if last else x, given))
        if last:
            results = tuple(y.movedim(1, -1) for y in results)
        return results if len(results) > 1 else results[0]

    def _given(self, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> list[Tensor]:
        names = [n.name for n in self.graph.inputs[1:]]
        if len(inputs) > len(names):
            raise OptionError(f"the layer takes {_listed(names)} beside x, and {len(inputs)} tensors were given")
        values = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name not in names:
                raise OptionError(f"the layer has no input {name!r}{nearest(name, names)}: it takes {_listed(names)}")
            if name in values:
                raise OptionError(f"the input {name!r} is given twice, by its place and by name")
            values[name] = value
        if missing := [name for name in names if name not in values]:
            raise OptionError(f"the layer needs {_listed(missing)} beside x")
        return [values[name] for name in names]

    def _input(self, node: Node, t: Tensor, x: Tensor) -> Tensor:
        """An input as jobs take it."""
        if not isinstance(t, Tensor):
            raise OptionError(f"the input {node.name!r} is {described(t)}: give a tensor")
        if t.dtype.is_complex:
            raise DtypeError(f"the input {node.name!r} is {t.dtype}: give real numbers")
        shapes = input_shapes(node.axes, x, self.channel_dim)
        if t.shape not in shapes:
            want = " or ".join(str(tuple(s)) for s in shapes)
            axes = INPUT_NAMES[node.axes]
            raise ShapeError(f"the input {node.name!r} has the shape {tuple(t.shape)} and [{axes}] of this x is {want}")
        if node.axes == FULL:
            t = t.movedim(-1, 1) if self.channel_dim == -1 else t
            return t if t.dtype is x.dtype else t.to(x.dtype)
        return t if t.dtype.is_floating_point else t.to(arithmetic_dtype(x.dtype))


def input_shapes(axes: int, x: Tensor, channel_dim: int = 1) -> list[tuple[int, ...]]:
    """The shapes that an input along these axes may have beside x, the usual one first."""
    last = channel_dim == -1
    n, c, *space = [x.shape[0], x.shape[-1], *x.shape[1:-1]] if last else x.shape
    if axes == FULL:
        return [tuple(x.shape)]
    if axes & S:
        return [(n, *space), (n, *space, 1) if last else (n, 1, *space)]
    return [(*([n] if axes & B else []), *([c] if axes & G else []))]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no input"


class BatchLayerOfInputs(LayerOfInputs, BatchLayer):  # type: ignore[misc]
    """The same with running statistics."""


torch.serialization.add_safe_globals([LayerOfInputs, BatchLayerOfInputs])
