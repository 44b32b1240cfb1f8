"""When the weights of scaled layers are standardized: all of a model in one call, and again only once they changed.

What is kept of a layer holds while its weight and gain are the tensors that they were, of the same version and address,
no optimizer has taken a step and the layer is in the same mode. Steps count because some optimizers write through
`.data`, which counts no versions; whoever writes there by hand calls `forget`. Nothing is kept where other hands may be
at the memory: where processes train together (FSDP puts other weights in the place of the last), in shared memory, of
weights that are views of a longer tensor; nor in float64, where numerical derivatives change single elements through
`.data`; nor in a graph that is being captured.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from normforge.kernels.backends import EAGER
from normforge.kernels.rows.formula import Standardization, Standardized, standardize
from normforge.kernels.rows.standardize import standardize_all, target_of

torch.fx.wrap("standardize")  # one node of a symbolic trace

KEPT, READY = "_kept", "_ready"  # attributes of layers that are no part of their state
_steps = 0  # of all optimizers of this process


def _count(*_: Any) -> None:
    global _steps
    if not torch.compiler.is_compiling():  # a compiled step counts versions
        _steps += 1


register_optimizer_step_post_hook(_count)


class Standardizing:
    """What layers whose weight is standardized have."""

    weight: Any  # (out, ...)
    gain: Any  # (out,)
    how: Standardization
    training: bool


class _Kept(NamedTuple):
    of: tuple[weakref.ref[Tensor], weakref.ref[Tensor]]  # weight and gain; a new tensor may have the address of an old
    key: tuple[Any, ...]
    value: Standardized


class _Ready(NamedTuple):
    of: tuple[weakref.ref[Tensor], weakref.ref[Tensor]]
    key: tuple[Any, ...]
    where: tuple[Any, ...]  # the thread that computed it, and whether with a gradient
    value: Tensor


def weights_of(layers: Sequence[Standardizing]) -> list[Tensor]:
    """Ŵ of layers, in one call where they are of one dtype on one device; what is kept is not computed again."""
    weights, gains = [layer.weight for layer in layers], [layer.gain for layer in layers]
    target = target_of(weights, gains)
    hows = [layer.how for layer in layers]
    if target == EAGER or not all(map(_may_keep, (*weights, *gains))):
        return standardize_all(weights, gains, hows, target)[0]
    found = [_find(layer) for layer in layers]
    fresh = [i for i, value in enumerate(found) if value is None]
    if fresh and len(fresh) < len(layers):  # some are kept: the rest in a call of its own
        with torch.no_grad():
            _, made = standardize_all(
                [weights[i] for i in fresh], [gains[i] for i in fresh], [hows[i] for i in fresh], target
            )
        for i, value in zip(fresh, made, strict=True):
            found[i] = value
    values, kept = standardize_all(weights, gains, hows, target, found)
    for i in fresh:
        layers[i].__dict__[KEPT] = _Kept(_references(layers[i]), _key(layers[i]), kept[i])  # type: ignore[arg-type]
    return values


def weight_of(layer: Standardizing) -> Tensor:
    """Ŵ of one layer."""
    if torch.compiler.is_compiling() or _is_traced():
        return standardize(layer.weight, layer.gain, layer.how)
    ready: _Ready | None = layer.__dict__.pop(READY, None)
    # Under activation checkpointing a region is run twice, and has to save as many tensors both times.
    if ready is not None and not _saves_elsewhere() and ready.where == _where() and _holds(layer, ready):
        return ready.value
    return weights_of([layer])[0]


def forget(model: nn.Module) -> None:
    """Let go of the standardized weights that a model keeps, as after writing to its weights through `.data`."""
    for module in model.modules():
        module.__dict__.pop(KEPT, None)


def together(model: nn.Module) -> None:
    """Let a model standardize all its weights at the beginning of its forward, in one call.

    Not under torch.compile, torch.func or tracing, nor where processes train together: there each layer does so by
    itself, so that gradients are ready one after the other.
    """
    model.register_forward_pre_hook(_before)
    model.register_forward_hook(_after, always_call=True)


def _before(model: nn.Module, inputs: Any) -> None:
    if not _may_join():
        return
    groups: dict[tuple[Any, ...], list[Standardizing]] = {}
    for module in model.modules():
        if isinstance(module, Standardizing):
            groups.setdefault((module.weight.dtype, module.weight.device), []).append(module)
    for layers in groups.values():
        tensors = [m.weight for m in layers], [m.gain for m in layers]
        if target_of(*tensors) != EAGER and all(map(_may_keep, (*tensors[0], *tensors[1]))):
            for layer, value in zip(layers, weights_of(layers), strict=True):
                layer.__dict__[READY] = _Ready(_references(layer), _key(layer), _where(), value)


def _after(model: nn.Module, inputs: Any, output: Any) -> None:
    if _may_join():
        for module in model.modules():
            module.__dict__.pop(READY, None)


def _may_join() -> bool:
    return not (torch.compiler.is_compiling() or _is_distributed() or _is_traced())


def _is_traced() -> bool:
    return torch.fx._symbolic_trace.is_fx_symbolic_tracing() or torch._C._get_tracing_state() is not None


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _saves_elsewhere() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _may_keep(t: Tensor) -> bool:
    if _is_distributed() or t.is_inference() or torch.is_inference_mode_enabled() or t.dtype == torch.float64:
        return False
    if torch.cuda.is_current_stream_capturing() if t.is_cuda else t.is_shared():
        return False
    return t.untyped_storage().nbytes() == t.nbytes


def _key(layer: Standardizing) -> tuple[Any, ...]:
    w, g = layer.weight, layer.gain
    return _steps, layer.training, layer.how, w._version, w.data_ptr(), g._version, g.data_ptr()


def _references(layer: Standardizing) -> tuple[weakref.ref[Tensor], weakref.ref[Tensor]]:
    return weakref.ref(layer.weight), weakref.ref(layer.gain)


def _where() -> tuple[Any, ...]:
    return threading.get_ident(), torch.is_grad_enabled()


def _holds(layer: Standardizing, found: _Kept | _Ready) -> bool:
    return found.key == _key(layer) and found.of[0]() is layer.weight and found.of[1]() is layer.gain


def _find(layer: Standardizing) -> Standardized | None:
    kept: _Kept | None = layer.__dict__.get(KEPT)
    return kept.value if kept is not None and _holds(layer, kept) else None
