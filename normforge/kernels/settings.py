"""Settings of all layers of a model at once."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from normforge.errors import BackendError, OptionError, nearest
from normforge.kernels.backends import backend_names, look_around
from normforge.kernels.module import Layer

Model = TypeVar("Model", bound=nn.Module)


def set_backend(model: Model, backend: str) -> Model:
    """Let all layers of a model run on a backend.

    Args:
        model: a layer, or any module that has some; changed in place, and returned.
        backend: as of `compile`.

    Raises:
        BackendError: it cannot be had here. OptionError: there is none of that name.
    """
    check_backend(backend)
    for layer in _layers(model):
        layer.backend = backend
    return model


def freeze(model: Model, frozen: bool = True) -> Model:
    """Let all layers of a model use their running statistics, in training too, and leave them as they are.

    Parameters go on to train; set `requires_grad` for them. Layers without running statistics do not change.

    Args:
        model: a layer, or any module that has some; changed in place, and returned.
        frozen: False takes it back.
    """
    for layer in _layers(model):
        layer.frozen = frozen
    return model


def sync(model: Model, group: Any = None) -> Model:
    """Let all layers of a model take their moments over the batch of several processes, in training.

    Results, gradients of any order and running statistics are those of one process with the whole batch, whatever part
    of it each process has; the loss is the sum of those of all processes. Processes exchange one vector for each level
    of moments, and merge in the order of ranks, so that nothing depends on timing. Such a step runs on torch's
    operations. In inference, with one process, and in layers without moments over the batch nothing changes.

    Args:
        model: a layer, or any module that has some; changed in place, and returned.
        group: of torch.distributed; None is all processes.
    """
    for layer in _layers(model):
        if layer.running:
            layer.synced, layer.group = True, group
    return model


def check_backend(backend: str) -> None:
    """Raise where a backend has no meaning, or is asked for by name and cannot be had.

    Raises:
        BackendError, OptionError: as above.
    """
    if backend not in (known := backend_names()):
        raise OptionError(f"backend is one of {', '.join(known)}, not {backend!r}{nearest(str(backend), known)}")
    if backend in (lacking := look_around()):
        raise BackendError(f"backend={backend!r} cannot be had: {lacking[backend]}")


def _layers(model: nn.Module) -> list[Layer]:
    return [module for module in model.modules() if isinstance(module, Layer)]
