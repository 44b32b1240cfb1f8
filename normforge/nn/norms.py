"""The norms that conversion knows, each as a formula: torch's, torchvision's and timm's, told by their class.

A class counts by its own name and not by what it inherits, since a subclass may compute something else; one that keeps
the `forward` of a known class, and adds no part of its own, is that class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

BATCH, GROUP, CHANNEL, INSTANCE = "b,w,h", "w,h,c/g", "c", "w,h"


@dataclass(frozen=True)
class Norm:
    """A norm in a model.

    Attributes:
        module: it.
        core: its formula without ε, gain and bias.
        channels, groups, channel_dim: as of `compile`; groups None where the norm has none.
        eps: ε. momentum: of running statistics; None for their average.
        activation: that it applies itself, a module; None where it applies none.
        synced, group: whether its statistics are of several processes, and of which.
    """

    module: nn.Module
    core: str
    channels: int
    eps: float
    groups: int | None = None
    channel_dim: int = 1
    momentum: float | None = 0.1
    activation: nn.Module | None = None
    synced: bool = False
    group: Any = None

    @property
    def affine(self) -> str:
        """The formula with the gain and the bias that the norm has, without ε."""
        gain = " * gamma" if getattr(self.module, "weight", None) is not None else ""
        bias = " + beta" if getattr(self.module, "bias", None) is not None else ""
        return f"{self.core}{gain}{bias}"


class Unsayable(Exception):
    """A norm that is left as it is; the reason is the message."""


def norm_of(module: nn.Module) -> Norm | None:
    """The norm that a module is, or None where it is something else.

    Raises:
        Unsayable: it is a norm that no layer can stand for.
    """
    known = _class(module)
    if known is None:
        return None
    return _READ[known](module)


def _class(module: nn.Module) -> str | None:
    """The known class that a module is of, by name."""
    classes: tuple[Any, ...] = type(module).__mro__
    for cls in classes:
        name = f"{cls.__module__}.{cls.__qualname__}"
        known = _NAMES.get(name)
        if known is None:
            known = _NAMES.get(f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}")
        if known is None:
            continue
        same = classes[0].forward is cls.forward and len(module._modules) == len(_parts(module))
        if cls is classes[0] or same:
            return known
        if hasattr(module, "parametrizations"):
            raise Unsayable("its weights are parametrized")
        raise Unsayable(f"{type(module).__name__} has a forward of its own, unlike {cls.__name__}")
    return None


def _parts(module: nn.Module) -> list[str]:
    """What a known norm may hold."""
    return [name for name in module._modules if name in ("act", "drop")]


def _normalised(index: str) -> str:
    return f"(x - mean[{index}](x)) / std[{index}](x)"


def _own(module: Any) -> nn.Module | None:
    """The activation of timm's norms that have one.

    Raises:
        Unsayable: something else stands before it.
    """
    if not isinstance(getattr(module, "drop", None), nn.Identity | None):
        raise Unsayable(f"it drops values ({type(module.drop).__name__}) before its activation")
    act = getattr(module, "act", None)
    return None if act is None or isinstance(act, nn.Identity) else act


def _batch(module: Any) -> Norm:
    if not module.track_running_stats or module.running_mean is None:
        raise Unsayable("it keeps no running statistics (track_running_stats=False), and layers of moments over b do")
    channels, own = module.num_features, _own(module)
    return Norm(module, _normalised(BATCH), channels, module.eps, momentum=module.momentum, activation=own)


def _synchronised(module: Any) -> Norm:
    return replace(_batch(module), synced=True, group=module.process_group)


def _instance(module: Any) -> Norm:
    if module.track_running_stats:
        raise Unsayable("it keeps running statistics of single samples, which no formula does")
    return Norm(module, _normalised(INSTANCE), module.num_features, module.eps)


def _group(module: Any) -> Norm:
    channels, own = module.num_channels, _own(module)
    return Norm(module, _normalised(GROUP), channels, module.eps, groups=module.num_groups, activation=own)


def _frozen(module: Any) -> Norm:
    raise Unsayable("its statistics and weights are constants")


def _over_channels(core: str, channel_dim: int) -> Callable[[Any], Norm]:
    def read(module: Any) -> Norm:
        shape = tuple(module.normalized_shape)
        if len(shape) != 1:
            raise Unsayable(f"it normalizes over several axes, {shape}, and formulas know one axis of channels")
        eps = module.eps
        if eps is None:  # torch: that of the dtype it computes in
            double = getattr(module, "weight", None) is not None and module.weight.dtype == torch.float64
            eps = torch.finfo(torch.float64 if double else torch.float32).eps
        formula = core
        if "VARIANCE" in core:  # unbiased
            formula = core.replace("VARIANCE", f"var[c](x) * {shape[0] / max(shape[0] - 1, 1)!r} + {eps!r}")
        return Norm(module, formula, shape[0], eps, channel_dim=channel_dim, activation=_own(module))

    return read


_LAYER, _RMS, _SIMPLE = _normalised(CHANNEL), "x / rms[c](x)", "x * rsqrt(VARIANCE)"
_READ: dict[str, Callable[[Any], Norm]] = {
    "batch": _batch,
    "synchronised": _synchronised,
    "instance": _instance,
    "group": _group,
    "layer": _over_channels(_LAYER, -1),
    "layer2d": _over_channels(_LAYER, 1),
    "rms": _over_channels(_RMS, -1),
    "rms2d": _over_channels(_RMS, 1),
    "simple": _over_channels(_SIMPLE, -1),
    "simple2d": _over_channels(_SIMPLE, 1),
    "frozen": _frozen,
}
_TIMM = {
    "batch": ("BatchNormAct2d",),
    "synchronised": ("SyncBatchNormAct",),
    "frozen": ("FrozenBatchNormAct2d",),
    "group": ("GroupNorm", "GroupNorm1", "GroupNormAct", "GroupNorm1Act"),
    "layer": ("LayerNorm", "LayerNormFp32", "LayerNormAct", "LayerNormActFp32"),
    "layer2d": ("LayerNorm2d", "LayerNorm2dFp32", "LayerNormExp2d", "LayerNormAct2d", "LayerNormAct2dFp32"),
    "rms": ("RmsNorm", "RmsNormFp32", "RmsNormAct", "RmsNormActFp32"),
    "rms2d": ("RmsNorm2d", "RmsNorm2dFp32", "RmsNormAct2d", "RmsNormAct2dFp32"),
    "simple": ("SimpleNorm", "SimpleNormFp32"),
    "simple2d": ("SimpleNorm2d", "SimpleNorm2dFp32"),
}
_TORCH = {
    "batch": ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
    "synchronised": ("SyncBatchNorm",),
    "instance": ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    "group": ("GroupNorm",),
    "layer": ("LayerNorm",),
    "rms": ("RMSNorm",),
}
_TORCHVISION = {"layer2d": ("LayerNorm2d",), "frozen": ("FrozenBatchNorm2d",)}
_NAMES = {
    f"{package}.{name}": kind
    for package, kinds in (("torch", _TORCH), ("timm", _TIMM), ("torchvision", _TORCHVISION))
    for kind, names in kinds.items()
    for name in names
}
