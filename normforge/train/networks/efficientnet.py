"""EfficientNet-B0: inverted residuals, squeeze-and-excitation before the last 1×1 (Tan and Le, arXiv 1905.11946)."""

from __future__ import annotations

from torch import nn

from normforge.train.config import EfficientNet
from normforge.train.networks.mobilenet import inverted_residuals

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
    """An EfficientNet-B0: timm's, with its own norm-acts; see `inverted_residuals`."""
    return inverted_residuals(STAGES, config, in_channels=in_channels, classes=classes, size=size)
