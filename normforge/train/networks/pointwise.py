"""1×1 convolutions as products of matrices, which they are where channels lie side by side.

A library of convolutions takes several times as long for the small maps of a proxy network, in double backward above
all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Pointwise(nn.Conv2d):
    """A 1×1 convolution; one product where x is channels-last, nn.Conv2d elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """The output (N, out_channels, H / stride, W / stride) of x (N, C, H, W)."""
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        across, down = self.stride
        rows = x[:, :, ::across, ::down].permute(0, 2, 3, 1)
        return linear(rows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def use_products(model: nn.Module) -> None:
    """Turn the 1×1 convolutions of a model into `Pointwise`, parameters as they are."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.groups == 1
        if plain and module.padding == (0, 0):
            module.__class__ = Pointwise
