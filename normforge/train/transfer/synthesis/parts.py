"""Parts of both networks of BigGAN: weights divided by their largest singular value, and self-attention."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def draw(module: Module, init: str) -> Module:
    """The module with its weight drawn anew by torch's global generator, orthogonal or normal of deviation 0.02, and
    its bias, where it has one, at 0."""
    weight = module.get_parameter("weight")
    if init == "orthogonal":
        nn.init.orthogonal_(weight)
    else:
        nn.init.normal_(weight, 0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.get_parameter("bias"))
    return module


def spectral(module: nn.Module, init: str) -> nn.Module:
    """The module with its weight drawn, and from then on divided by an estimate of its largest singular value; in
    training mode each call improves that by an iteration (Miyato et al., arXiv 1802.05957)."""
    return spectral_norm(draw(module, init))


def convolution(inputs: int, outputs: int, kernel: int, init: str, bias: bool = True) -> nn.Module:
    """A convolution that keeps the size of the map, spectral-normed."""
    return spectral(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias), init)


class Attention(nn.Module):
    """The non-local block of SA-GAN (Zhang et al., arXiv 1805.08318): x + gamma · attention, gamma from 0.

    Keys and values are pooled by 2, and have an eighth and a half of the channels, as in BigGAN's code.
    """

    def __init__(self, channels: int, init: str) -> None:
        super().__init__()
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        self.query = convolution(channels, narrow, 1, init, bias=False)
        self.key = convolution(channels, narrow, 1, init, bias=False)
        self.value = convolution(channels, half, 1, init, bias=False)
        self.out = convolution(half, channels, 1, init, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) of even H and W to the same shape."""
        query = self.query(x).flatten(2).mT
        key, value = (functional.max_pool2d(part(x), 2).flatten(2).mT for part in (self.key, self.value))
        # No scale: the source has none.
        seen = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        out: Tensor = x + self.gamma * self.out(seen.mT.unflatten(2, x.shape[2:]))
        return out
