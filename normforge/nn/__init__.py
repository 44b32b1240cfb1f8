"""What people put into their models: conversion, factories, exported layers; scaled convolutions and NFNets.

The names here are imported when they are first asked for: `import normforge` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normforge.nn.gamma import gamma_of
    from normforge.nn.kept import forget, together
    from normforge.nn.nfnets import NormFreeNet, nf_resnet, nfnet
    from normforge.nn.pretrained import load_pretrained
    from normforge.nn.scaled import ScaledConv1d, ScaledConv2d, ScaledConv3d, ScaledLinear, fold
    from normforge.nn.signal import signal_propagation

_LAZY = {
    **dict.fromkeys(("ScaledConv1d", "ScaledConv2d", "ScaledConv3d", "ScaledLinear", "fold"), "scaled"),
    **dict.fromkeys(("forget", "together"), "kept"),
    **dict.fromkeys(("NormFreeNet", "nf_resnet", "nfnet"), "nfnets"),
    "gamma_of": "gamma",
    "load_pretrained": "pretrained",
    "signal_propagation": "signal",
}

__all__ = [
    "NormFreeNet",
    "ScaledConv1d",
    "ScaledConv2d",
    "ScaledConv3d",
    "ScaledLinear",
    "fold",
    "forget",
    "gamma_of",
    "load_pretrained",
    "nf_resnet",
    "nfnet",
    "signal_propagation",
    "together",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
