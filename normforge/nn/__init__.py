"""What people put into their models: conversion, factories, exported layers; scaled convolutions and NFNets.

The names here are imported when they are first asked for: `import normforge` loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normforge.loading import lazy

if TYPE_CHECKING:
    from normforge.nn.gamma import gamma_of
    from normforge.nn.kept import forget, together
    from normforge.nn.nfnets import NormFreeNet, nf_resnet, nfnet
    from normforge.nn.pretrained import load_pretrained
    from normforge.nn.scaled import ScaledConv1d, ScaledConv2d, ScaledConv3d, ScaledLinear, fold
    from normforge.nn.signal import signal_propagation

_LAZY = {
    **dict.fromkeys(("ScaledConv1d", "ScaledConv2d", "ScaledConv3d", "ScaledLinear", "fold"), "normforge.nn.scaled"),
    **dict.fromkeys(("forget", "together"), "normforge.nn.kept"),
    **dict.fromkeys(("NormFreeNet", "nf_resnet", "nfnet"), "normforge.nn.nfnets"),
    "gamma_of": "normforge.nn.gamma",
    "load_pretrained": "normforge.nn.pretrained",
    "signal_propagation": "normforge.nn.signal",
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


__getattr__ = lazy(__name__, _LAZY)
