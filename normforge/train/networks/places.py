"""The places where the layer goes: every norm-act of a network, found after its weights are drawn."""

from __future__ import annotations

from typing import Protocol

import torch
from timm.layers import BatchNormAct2d
from torch import nn


class LayerFactory(Protocol):
    """A factory that makes a layer for one place of a network."""

    def __call__(self, channels: int, *, channel_dim: int = 1) -> nn.Module:
        """A new module of `channels` channels along axis `channel_dim`: 1 of (N, C, H, W), or -1 of (N, T, C)."""
        ...


class Affine(nn.Module):
    """The layer of a linear bottleneck: x · weight + bias by channel, for x (N, C, H, W).

    A place without activation keeps of any layer its affine part alone (EvoNorm, arXiv 2004.02967, and its authors'
    code).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output, of the shape of x."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Place(nn.Module):
    """A mark of a norm-act in a network of our own, as timm's BatchNormAct2d is in timm's; it cannot run."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_features = channels


def put(model: nn.Module, layer: LayerFactory) -> nn.Module:
    """Replace, in place, every BatchNormAct2d and `Place` by a layer, one without activation by `Affine`, and every
    LayerNorm by a layer over channels last.

    The layers are made after the weights of the model, so that these do not depend on what a layer draws.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, BatchNormAct2d) and isinstance(module.act, nn.Identity):
            model.set_submodule(name, Affine(module.num_features))
        elif isinstance(module, (BatchNormAct2d, Place)):
            model.set_submodule(name, layer(module.num_features))
        elif isinstance(module, nn.LayerNorm):
            model.set_submodule(name, layer(module.normalized_shape[-1], channel_dim=-1))
    return model
