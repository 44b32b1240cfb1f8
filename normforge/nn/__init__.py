"""What people put into their models: conversion, factories, exported layers; scaled convolutions and NFNets.

The names here are imported when they are first asked for: `import normforge` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normforge.nn.scaled import ScaledConv1d, ScaledConv2d, ScaledConv3d, ScaledLinear, fold

_LAZY = {
    **dict.fromkeys(("ScaledConv1d", "ScaledConv2d", "ScaledConv3d", "ScaledLinear", "fold"), "scaled"),
}

__all__ = ["ScaledConv1d", "ScaledConv2d", "ScaledConv3d", "ScaledLinear", "fold"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
