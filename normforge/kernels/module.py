"""`Layer`, the nn.Module of a formula, and `compile`, which makes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normforge.codegen.eager import arithmetic_dtype, run_eager
from normforge.codegen.shapes import resolve_groups
from normforge.errors import BackendError, DtypeError, OptionError, ShapeError, nearest
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer
from normforge.ir.node import Node
from normforge.ir.types import FULL, INPUT_NAMES, B, G, K, S
from normforge.kernels.backends import RUNNERS, backend_names, look_around, resolve
from normforge.kernels.job import Job
from normforge.kernels.run import run_plain
from normforge.passes.running import Running, running_statistics
from normforge.passes.single import moment_axes, single_axes

# Torch's names for the two affine parameters.
TORCH_NAMES = {"gamma": "weight", "beta": "bias"}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def compile(
    layer: Graph | str,
    channels: int,
    groups: int | None = None,
    channel_dim: int = 1,
    backend: str = "auto",
    momentum: float = 0.1,
) -> Layer:
    """An nn.Module that computes a layer with fused kernels, differentiable to the third order.

    Args:
        layer: a graph, a layer's name, or a formula.
        channels: C, the size of the channel axis.
        groups: of the index set w,h,c/g; None means 32 lowered to the largest divisor of C not above it.
        channel_dim: 1 for (N, C, *spatial), -1 for (B, *positions, C).
        backend: "auto" (Triton on a GPU, C on a CPU, eager with one warning where neither can be had),
            "triton", "c", "eager", or a target of one's own (see `normforge.codegen.target`).
        momentum: weight of the new value in running statistics.

    Raises:
        ParseError: no such layer, or a bad formula.
        ShapeError: `groups` does not divide `channels`.
        BackendError: a backend asked for by name cannot be had.
        OptionError: any other argument has no meaning.
    """
    graph = as_layer(layer, "compile")
    if not isinstance(channels, int) or channels < 1:
        raise ShapeError(f"channels is a positive number, not {channels!r}")
    if channel_dim not in (1, -1):
        raise OptionError(f"channel_dim is 1 or -1, not {channel_dim!r}")
    if backend not in (known := backend_names()):
        raise OptionError(f"backend is one of {', '.join(known)}, not {backend!r}{nearest(str(backend), known)}")
    if not 0 <= momentum <= 1:
        raise OptionError(f"momentum lies between 0 and 1, not {momentum!r}")
    if backend in (lacking := look_around()):
        raise BackendError(f"backend={backend!r} cannot be had: {lacking[backend]}")
    made = Layer if graph.is_plain else LayerOfInputs
    return made(graph, channels, resolve_groups(groups, channels), channel_dim, backend, momentum)


class Layer(nn.Module):
    """A normalization-activation layer.

    Parameters carry the names of the formula, but for `gamma`, which is `weight`, and `beta`, which is `bias`;
    each of shape (C,), or () for a scalar. Running statistics are buffers (see `normforge.passes.running`),
    float32, or float64 in a float64 module. Input and output: (N, C, *spatial), or (B, *positions, C) with
    `channel_dim=-1`; the output has the dtype and the strides of the input.
    """

    def __init__(
        self, graph: Graph, channels: int, groups: int, channel_dim: int, backend: str, momentum: float
    ) -> None:
        super().__init__()
        self.graph, self.channels, self.groups = graph, channels, groups
        self.channel_dim, self.backend, self.momentum = channel_dim, backend, momentum
        self._names = {p.name: TORCH_NAMES.get(p.name, p.name) for p in graph.params}
        taken = set(dir(self)) | {"weight", "bias"}
        for p in graph.params:
            if p.name not in TORCH_NAMES and p.name in taken:  # a formula may call a parameter `training`
                self._names[p.name] = f"{p.name}_"
            value = torch.full((channels,) if p.axes else (), p.attr[2])
            self.register_parameter(self._names[p.name], nn.Parameter(value))
        self.running: tuple[Running, ...] = running_statistics(graph)
        for r in self.running:
            shape = () if not r.axes & G else (channels,) if r.axes & K else (groups,)
            if r.axes & (B | S):  # cannot be: the index set of a running moment has b, w and h
                raise OptionError(f"running statistic {r.name} varies along the batch")
            self.register_buffer(r.name, torch.full(shape, r.start))
        self._running_names = tuple(r.name for r in self.running)
        self._look_around()

    def _look_around(self) -> None:
        """What calls need to know of this machine, and keys of forward jobs by target: of several samples or one, of
        several positions or one, in inference or training."""
        look_around()
        moments = moment_axes(self.graph)
        channels = (self.groups, self.channels // self.groups)
        self._keys = {
            target: [
                [self._keys_of(target, single_axes(moments, (samples, *channels, positions))) for positions in (2, 1)]
                for samples in (2, 1)
            ]
            for target in RUNNERS
        }

    def _keys_of(self, target: str, single: int) -> list[str]:
        modes = (False, True)
        return [Job(0, mode, self.groups, self.graph, target=target, single=single).key for mode in modes]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._look_around()  # a copy may be on another machine

    def reset_parameters(self) -> None:
        """Set parameters and running statistics to their start values."""
        with torch.no_grad():
            for p in self.graph.params:
                getattr(self, self._names[p.name]).fill_(p.attr[2])
            for r in self.running:
                getattr(self, r.name).fill_(r.start)

    def extra_repr(self) -> str:
        """The formula and what `compile` was told."""
        return f"{self.graph}, channels={self.channels}, groups={self.groups}, backend={self.backend}"

    def _apply(self, fn: Any, recurse: bool = True) -> Layer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for r in self.running:  # statistics stay float32 under .half() and .bfloat16(), as long as they are real
            buffer = getattr(self, r.name)
            if buffer.dtype in (torch.float16, torch.bfloat16):
                setattr(self, r.name, buffer.float())
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of a BatchNorm, whose other names are the same
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """The output y, of x's shape, dtype and layout.

        Raises:
            ShapeError, DtypeError: x does not fit.
            BackendError: a backend asked for by name cannot run on the device of x.
            TransformError: a torch.func transform is active and the backend is a compiled one.
        """
        self._check(x)
        if self.channel_dim == -1:
            x = x.movedim(-1, 1)
        y = self._results(x, [])[0]
        return y.movedim(1, -1) if self.channel_dim == -1 else y

    def _results(self, x: Tensor, inputs: list[Tensor]) -> Sequence[Tensor]:
        """The results for x as (N, C, *spatial) and further inputs."""
        keys = self._keys.get(resolve(self.backend, x))  # none for eager, which runs no jobs
        return self._eager(x, inputs) if keys is None else self._compiled(x, inputs, keys)

    def _check(self, x: Tensor) -> None:
        shape = x.shape
        if len(shape) > 1 and shape[self.channel_dim] == self.channels and x.dtype in _DTYPES:
            return
        if x.dtype not in _DTYPES:
            raise DtypeError(f"the input is {x.dtype}: convert it to float32, float64, bfloat16 or float16")
        if x.dim() < 2:
            want = "(N, C, *spatial)" if self.channel_dim == 1 else "(B, *positions, C)"
            raise ShapeError(f"the input has {x.dim()} axes and the layer needs {want}: add a batch axis")
        last = self.channel_dim == 1 and shape[-1] == self.channels
        again = "channel_dim=-1" if last else f"channels={shape[self.channel_dim]}"
        raise ShapeError(
            f"the input has {shape[self.channel_dim]} channels along axis {self.channel_dim} and the layer was "
            f"compiled for {self.channels}: compile it again with {again}"
        )

    def _values(self) -> list[Tensor]:
        """Parameters in the order of the formula."""
        return _held(self, self._parameters, self._names.values())

    def _buffers_of(self) -> list[Tensor]:
        """Running statistics in order."""
        return _held(self, self._buffers, self._running_names)

    def _compiled(self, x: Tensor, inputs: list[Tensor], keys: list[list[list[str]]]) -> Sequence[Tensor]:
        operands = [x, *inputs, *self._values()]
        training = self.training
        # Questions, not numbers: tracers of shapes that are not known yet take them for guards.
        forms = keys[1] if x.shape[0] == 1 else keys[0]
        key = (forms[1] if x.numel() == x.shape[0] * self.channels else forms[0])[training]
        if not training:
            operands += self._buffers_of()
        out = run_plain(operands, key)
        results = len(self.graph.outputs)
        if training and self.running:
            self._update(out[results : results + len(self.running)], x)
        return out[:results]

    def _eager(self, x: Tensor, inputs: list[Tensor]) -> Sequence[Tensor]:
        values = {n.name: t for n, t in zip(self.graph.inputs, (x, *inputs), strict=True)}
        values |= dict(zip(self._names, self._values(), strict=True))
        buffers = None if self.training else dict(zip(self._running_names, self._buffers_of(), strict=True))
        results, statistics = run_eager(self.graph, values, self.groups, buffers=buffers)
        if self.training and self.running:
            self._update(statistics, x)
        return results

    def _update(self, statistics: Sequence[Tensor], x: Tensor) -> None:
        """Running statistics take one step, (1 - m) old + m new, all in one operation."""
        if x.numel() == 0:
            return
        buffers = self._buffers_of()
        values = []
        for value, buffer in zip(statistics, buffers, strict=True):
            if value.dtype is not buffer.dtype or value.requires_grad:
                value = value.detach().to(buffer.dtype)
            values.append(value)
        torch._foreach_lerp_(buffers, values, self.momentum)


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
            raise OptionError(f"the input {node.name!r} is a {type(t).__name__}: give a tensor")
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


def _held(module: nn.Module, tensors: Mapping[str, Tensor | None], names: Iterable[str]) -> list[Any]:
    """Tensors of a module by name: those it has registered without asking the module, which takes many times as long,
    and by asking where something else, such as a parametrization, holds them."""
    try:
        return [tensors[name] for name in names]
    except KeyError:
        return [getattr(module, name) for name in names]
