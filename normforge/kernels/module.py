"""`Layer`, the nn.Module of a formula, and `BatchLayer`, the one that keeps running statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active as transforms_active
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from normforge.codegen.eager import Gather, run_eager
from normforge.errors import DtypeError, NotABatchNormError, OptionError, ShapeError, TransformError, described
from normforge.ir.evaluate import evaluate
from normforge.ir.forms.formula import parse_formula
from normforge.ir.graph import Graph
from normforge.ir.types import B, G, K, S
from normforge.kernels.backends import RUNNERS, look_around, resolve
from normforge.kernels.job import Job, key_of, layer_text
from normforge.kernels.run import run_plain
from normforge.kernels.scripted import scriptable
from normforge.kernels.split import is_exact, run_split
from normforge.kernels.sync import gather_over
from normforge.passes.inputs import at_one
from normforge.passes.running import Running, running_statistics
from normforge.passes.single import moment_axes, single_axes

# Torch's names for the two affine parameters.
TORCH_NAMES = {"gamma": "weight", "beta": "bias"}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Layer(nn.Module):
    """A normalization-activation layer.

    Parameters carry the names of the formula, but for `gamma`, which is `weight`, and `beta`, which is `bias`;
    each of shape (C,), or () for a scalar. Input and output: (N, C, *spatial), or (B, *positions, C) with
    `channel_dim=-1`; the output has the dtype and the strides of the input.

    Attributes:
        names: of parameters, as attributes, by their names in the formula.
        graph, channels, groups, channel_dim: what was compiled. num_features: the channels, by torch's name.
        backend: as given to `compile`; see `normforge.kernels.settings.set_backend`.
        momentum: weight of the new value in running statistics; None averages all of them.
        frozen: True uses running statistics in training too; see `normforge.kernels.settings.freeze`.
        synced, group: whether moments over the batch are of several processes, and of which; see `...settings.sync`.
    """

    def __init__(
        self, graph: Graph, channels: int, groups: int, channel_dim: int, backend: str, momentum: float | None
    ) -> None:
        nn.Module.__init__(self)  # not that of BatchNorm, which `BatchLayer` is one of only by its name
        self.graph, self.channels, self.groups = graph, channels, groups
        self.channel_dim, self.backend, self.momentum = channel_dim, backend, momentum
        self.num_features, self.frozen = channels, False
        self.synced, self.group = False, None
        self.names = {p.name: TORCH_NAMES.get(p.name, p.name) for p in graph.params}
        taken = set(dir(self)) | {"weight", "bias"}
        for p in graph.params:
            if p.name not in TORCH_NAMES and p.name in taken:  # a formula may call a parameter `training`
                self.names[p.name] = f"{p.name}_"
            value = torch.full((channels,) if p.axes else (), p.attr[2])
            self.register_parameter(self.names[p.name], nn.Parameter(value))
        self.running: tuple[Running, ...] = running_statistics(graph)
        for r in self.running:
            shape = () if not r.axes & G else (channels,) if r.axes & K else (groups,)
            if r.axes & (B | S):  # cannot be: the index set of a running moment has b, w and h
                raise OptionError(f"running statistic {r.name} varies along the batch")
            self.register_buffer(r.name, torch.full(shape, r.start))
        self._running_names = tuple(r.name for r in self.running)
        if self.running:
            self.num_batches_tracked: Any
            self.register_buffer("num_batches_tracked", torch.tensor(0))
        self._look_around()

    @property
    def eps(self) -> float:
        """ε of the formula; set, it is another formula."""
        return self.graph.eps

    @eps.setter
    def eps(self, value: float) -> None:
        self.graph = with_eps(self.graph, value)
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

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """By what it was made of and what it holds: so that torch.load knows it with `weights_only=True` too, since
        nothing but `rebuilt` is called, which reads the formula."""
        made = (layer_text(self.graph), self.channels, self.groups, self.channel_dim, self.backend, self.momentum)
        # Of the rest what is not as it was made: most kinds of hooks there are none of.
        state = {k: v for k, v in self.__dict__.items() if k not in _MADE and not (isinstance(v, dict) and not v)}
        return rebuilt, (type(self), *made), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._look_around()  # a copy may be on another machine

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script: the formula in torch's operations, with the tensors of this module."""
        return scriptable(self)

    def reset_parameters(self) -> None:
        """Set parameters and running statistics to their start values."""
        with torch.no_grad():
            for p in self.graph.params:
                getattr(self, self.names[p.name]).fill_(p.attr[2])
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Set running statistics to their start values, as if no batch had been seen."""
        with torch.no_grad():
            for r in self.running:
                getattr(self, r.name).fill_(r.start)
            if self.running:
                self.num_batches_tracked.zero_()

    def extra_repr(self) -> str:
        """The formula and what `compile` was told."""
        frozen = ", frozen" if self.frozen else ""
        return f"{self.graph}, channels={self.channels}, groups={self.groups}, backend={self.backend}{frozen}"

    def _apply(self, fn: Any, recurse: bool = True) -> Layer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for r in self.running:  # statistics stay float32 under .half() and .bfloat16(), as long as they are real
            buffer = getattr(self, r.name)
            if buffer.dtype in (torch.float16, torch.bfloat16):
                setattr(self, r.name, buffer.float())
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}v" in state_dict and "v" not in self._parameters and "v1" in self._parameters:
            state_dict[f"{prefix}v1"] = state_dict.pop(f"{prefix}v")  # timm's name for it in EvoNorms
        name = f"{prefix}num_batches_tracked"
        if not self.running:
            state_dict.pop(name, None)  # of a BatchNorm, whose other names are the same
        elif name not in state_dict:  # as was saved before there were any
            state_dict[name] = self.num_batches_tracked
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """The output y, of x's shape, dtype and layout.

        Raises:
            ShapeError, DtypeError: x does not fit; or it has one value a channel, of which a layer that normalizes
                over the batch would leave nothing in training.
            BackendError: a backend asked for by name cannot run on the device of x.
            TransformError: running statistics would be updated under torch.func.vmap, as torch refuses too.
        """
        if type(x) is Proxy:  # type: ignore[comparison-overlap]  # a symbolic trace, in which the layer is a leaf
            return traced(self, x)
        self._check(x)
        if self.channel_dim == -1:
            x = x.movedim(-1, 1)
        y = self._results(x, [])[0]
        return y.movedim(1, -1) if self.channel_dim == -1 else y

    def _results(self, x: Tensor, inputs: list[Tensor]) -> Sequence[Tensor]:
        """The results for x as (N, C, *spatial) and further inputs.

        Raises:
            ShapeError: batches are normalized in training, and x has one value a channel, of which nothing is left.
        """
        if self.running and x.shape[0] == 1:
            self._check_batch(x)
        if self.synced and self.training and not self.frozen and (gather := gather_over(self.group)):
            return self._synced(x, inputs, gather)
        keys = self._keys.get(resolve(self.backend, x))  # none for eager, which runs no jobs
        return self._eager(x, inputs) if keys is None else self._compiled(x, inputs, keys)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise OptionError(f"the input is {described(x)}: give a tensor")
        shape = x.shape
        if len(shape) > 1 and shape[self.channel_dim] == self.channels and x.dtype in DTYPES:
            return
        if x.dtype not in DTYPES:
            raise DtypeError(f"the input is {x.dtype}: convert it to float32, float64, bfloat16 or float16")
        want = "(N, C, *spatial)" if self.channel_dim == 1 else "(B, *positions, C)"
        if x.dim() < 2:
            raise ShapeError(f"the input has {x.dim()} axes and the layer needs {want}: add a batch axis")
        if self.channel_dim == 1 and shape[0] == self.channels:
            raise ShapeError(
                f"the input of shape {tuple(shape)} seems to be one sample, and the layer needs {want}: add a batch "
                "axis, as in x[None]"
            )
        last = self.channel_dim == 1 and shape[-1] == self.channels
        again = "channel_dim=-1" if last else f"channels={shape[self.channel_dim]}"
        raise ShapeError(
            f"the input has {shape[self.channel_dim]} channels along axis {self.channel_dim} and the layer was "
            f"compiled for {self.channels}: compile it again with {again}"
        )

    def _check_batch(self, x: Tensor) -> None:
        """Refuse, as torch does, to normalize one value by itself in training.

        Args:
            x: of one sample.

        Raises:
            ShapeError: x has one value a channel, and the result would be the same for every such x.
        """
        if (
            self.training
            and not self.frozen
            and not self.synced
            and x.numel() == self.channels
            and _is_lost(self.graph)
        ):
            raise ShapeError(
                f"an input of shape {tuple(x.shape)} has one value a channel, of which normalization over the batch "
                "leaves nothing in training: give more, or use .eval()"
            )

    def _values(self) -> list[Tensor]:
        """Parameters in the order of the formula."""
        return _held(self, self._parameters, self.names.values())

    def _buffers_of(self) -> list[Tensor]:
        """Running statistics in order."""
        return _held(self, self._buffers, self._running_names)

    def _compiled(self, x: Tensor, inputs: list[Tensor], keys: list[list[list[str]]]) -> Sequence[Tensor]:
        operands = [x, *inputs, *self._values()]
        training = self.training and not self.frozen
        # Questions, not numbers: tracers of shapes that are not known yet take them for guards.
        forms = keys[1] if x.shape[0] == 1 else keys[0]
        mode = 1 if training else 0  # no bool, which compilers refuse as an index
        key = (forms[1] if x.numel() == x.shape[0] * self.channels else forms[0])[mode]
        if not training:
            operands += self._buffers_of()
        out = run_plain(operands, key)
        results = len(self.graph.outputs)
        if training and self.running:
            self._update(out[results : results + len(self.running)], x)
        return out[:results]

    def _synced(self, x: Tensor, inputs: list[Tensor], gather: Gather) -> Sequence[Tensor]:
        target = resolve(self.backend, x)
        if target not in self._keys or not is_exact(self.graph, x.dtype):
            return self._eager(x, inputs, gather)

        def run(graph: Graph, single: int, operands: list[Tensor]) -> Sequence[Tensor]:
            return run_plain(operands, key_of(graph, self.groups, target, single))[: len(graph.outputs)]

        results, statistics = run_split(self.graph, [x, *inputs], self._values(), self.groups, run, gather)
        self._update(statistics, x)
        return results

    def _eager(self, x: Tensor, inputs: list[Tensor], gather: Gather | None = None) -> Sequence[Tensor]:
        values = {n.name: t for n, t in zip(self.graph.inputs, (x, *inputs), strict=True)}
        values |= dict(zip(self.names, self._values(), strict=True))
        training = self.training and not self.frozen
        buffers = None if training else dict(zip(self._running_names, self._buffers_of(), strict=True))
        results, statistics = run_eager(self.graph, values, self.groups, buffers=buffers, gather=gather)
        if training and self.running:
            self._update(statistics, x)
        return results

    def _update(self, statistics: Sequence[Tensor], x: Tensor) -> None:
        """Running statistics take one step, (1 - m) old + m new, all in one operation."""
        if x.numel() == 0:
            return
        buffers = self._buffers_of()
        values = []
        if transforms_active() and any(map(torch._C._functorch.is_batchedtensor, statistics)):
            raise TransformError(
                "running statistics cannot be updated under torch.func.vmap, one for each of its batch: use .eval() or "
                "nf.freeze(model)"
            )
        for value, buffer in zip(statistics, buffers, strict=True):
            if value.dtype is not buffer.dtype or value.requires_grad:
                value = value.detach().to(buffer.dtype)
            values.append(value)
        (count,) = _held(self, self._buffers, ("num_batches_tracked",))
        count.add_(1)
        if self.momentum is None:
            share = count.reciprocal()
            shares: list[Any] = [share.to(buffer.dtype) for buffer in buffers]
            torch._foreach_lerp_(buffers, values, shares)
        else:
            torch._foreach_lerp_(buffers, values, self.momentum)


class BatchLayer(Layer, _BatchNorm):
    """A layer with running statistics: buffers (see `normforge.passes.running`), float32, or float64 in a float64
    module, and `num_batches_tracked`.

    It is a BatchNorm for those who look for what has running statistics, such as `torch.optim.swa_utils.update_bn`.
    """

    track_running_stats = True

    def __getattr__(self, name: str) -> Any:
        """What nn.Module finds; `affine` is asked for by those who make another BatchNorm of one.

        Raises:
            NotABatchNormError: for `affine`; a layer of a formula has no such twin.
        """
        if name == "affine":
            raise NotABatchNormError(
                f"{self.graph} is no BatchNorm whose parts could be put into another one, as convert_sync_batchnorm "
                "does: for statistics of several processes use nf.sync(model, group)"
            )
        return super().__getattr__(name)


@lru_cache(maxsize=256)
def _is_lost(graph: Graph) -> bool:
    """Are the results the same whatever x is, if it has one value a channel?"""
    values = {p.name: np.full(2 if p.axes else 1, p.attr[2]) for p in graph.params}
    layer = at_one(graph)
    one, other = (
        evaluate(layer, values | {"x": np.array([[[a]], [[b]]]).reshape(1, 2, 1, 1)}, groups=2)
        for a, b in ((0.7, -1.9), (-0.4, 2.3))
    )
    return all(np.array_equal(one[name], other[name]) for name in one)


# Of a module's attributes those that `rebuilt` makes.
_MADE = {
    "graph", "channels", "groups", "channel_dim", "backend", "momentum", "num_features", "names", "running",
    "_running_names", "_keys", "group", "_non_persistent_buffers_set", "_is_full_backward_hook",
}  # fmt: skip


def rebuilt(
    cls: type[Layer],
    text: str,
    channels: int,
    groups: int,
    channel_dim: int,
    backend: str,
    momentum: float | None,
) -> Layer:
    """A layer as it was made, for unpickling; `torch.load` may call it with `weights_only=True`.

    Raises:
        ParseError: the text is no layer. OptionError: the class is none.
    """
    if not (isinstance(cls, type) and issubclass(cls, Layer)):
        raise OptionError(f"a stored layer names {cls!r}, which is none")
    graph = Graph.from_json(text) if text.startswith("{") else parse_formula(text)
    return cls(graph, channels, groups, channel_dim, backend, momentum)


torch.serialization.add_safe_globals([rebuilt, Layer, BatchLayer])


def traced(layer: Layer, *args: Any, **named: Any) -> Any:
    """The node of a call of a layer, in the symbolic trace that one of its arguments belongs to."""
    tracer: Any = next(a for a in (*args, *named.values()) if isinstance(a, Proxy)).tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, named)


def with_eps(graph: Graph, eps: float) -> Graph:
    """A layer with another ε.

    Raises:
        OptionError: it is no number, or negative.
    """
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < float("inf"):
        raise OptionError(f"eps is a number of at least 0, not {eps!r}")
    return replace(graph, eps=float(eps))


def _held(module: nn.Module, tensors: Mapping[str, Tensor | None], names: Iterable[str]) -> list[Any]:
    """Tensors of a module by name: those it has registered without asking the module, which takes many times as long,
    and by asking where something else, such as a parametrization, holds them."""
    try:
        return [tensors[name] for name in names]
    except KeyError:
        return [getattr(module, name) for name in names]
