"""EfficientNet-B0: inverted residuals with squeeze-and-excitation before the last 1×1 (Tan and Le, arXiv 1905.11946)."""

from __future__ import annotations

import torch
from timm.models._efficientnet_blocks import SqueezeExcite as TimmSqueezeExcite
from torch import nn
from torch.nn.functional import linear

from normforge.search.config import EfficientNet
from normforge.search.networks.mobilenet import inverted_residuals

# timm's text form of table 1 of the paper.
STAGES = (
    "ds_r1_k3_s1_e1_c16_se0.25",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r2_k5_s2_e6_c40_se0.25",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
)


def efficientnet(config: EfficientNet, *, in_channels: int, classes: int, size: int) -> nn.Module:
    """timm's EfficientNet-B0 with its own norm-acts; see `inverted_residuals`."""
    return inverted_residuals(
        STAGES, config, in_channels=in_channels, classes=classes, size=size, se_layer=SqueezeExcite
    )


class SqueezeExcite(TimmSqueezeExcite):
    """timm's, x · sigmoid(expand(silu(reduce(mean of x)))), with its 1×1 convolutions of 1×1 maps as matrix products,
    which take half the time on a CPU.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Like x (N, C, H, W)."""
        reduced = linear(x.mean((2, 3)), self.conv_reduce.weight.flatten(1), self.conv_reduce.bias)
        gate = linear(self.act1(reduced), self.conv_expand.weight.flatten(1), self.conv_expand.bias)
        return x * self.gate(gate)[:, :, None, None]
