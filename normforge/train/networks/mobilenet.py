"""MobileNetV2: inverted residuals, 1×1, layer, depthwise, layer, 1×1 (Sandler et al., arXiv 1801.04381)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from timm.layers import BatchNormAct2d
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet as TimmEfficientNet
from torch import nn

from normforge.train.config import EfficientNet, MobileNet

# timm's text form of table 2 of the paper: type, repeats, kernel, stride, expansion and channels of each stage.
STAGES = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)

# The stages of stride 2, by how often an image is halved: never, ..., four times. The original has all of stages 1, 2,
# 3, 5 and the stem; three halvings of 32×32 are common practice for CIFAR; fewer are spread evenly.
STRIDED = ((), (2,), (1, 3), (2, 3, 5), (1, 2, 3, 5))


def mobilenet(config: MobileNet, *, in_channels: int, classes: int, size: int) -> nn.Module:
    """A MobileNetV2: timm's, with its own norm-acts; see `inverted_residuals`."""
    return inverted_residuals(STAGES, config, in_channels=in_channels, classes=classes, size=size)


def inverted_residuals(
    stages: tuple[str, ...], config: MobileNet | EfficientNet, *, in_channels: int, classes: int, size: int
) -> nn.Module:
    """A stem, inverted residuals and a 1×1 head by timm's builder, with timm's norm-acts and initial weights.

    Places of the layer: the stem, two in each block (one where a block does not expand) and the head; the last 1×1
    of a block has the affine only.

    Args:
        stages: in timm's text form, with the strides for 224×224 images.
        config: width of all stages, stem and head, in multiples of 8 channels; depth of each stage; number of stages.
        in_channels: of the images.
        classes: of the logits.
        size: of an image's side in pixels, by which strides are left out.

    Returns:
        A module from images (N, in_channels, size, size) to logits (N, classes).
    """
    rounded = partial(round_channels, multiplier=config.width)
    blocks = decode_arch_def([[stage] for stage in stages[: config.stages]], config.depth)
    stem_stride = adapt(blocks, size)
    model = TimmEfficientNet(
        blocks,
        num_classes=classes,
        in_chans=in_channels,
        # timm and the paper keep MobileNetV2's head at 1280 below width 1, where it would outweigh a thin network.
        num_features=rounded(1280),
        round_chs_fn=rounded,
        norm_layer=BatchNormAct2d,
        act_layer=nn.SiLU,  # what remains of it is inside EfficientNet's squeeze-and-excitation
    )
    model.conv_stem.stride = (stem_stride, stem_stride)
    # timm's range, 1/√classes, is meant for 1000 of them: with 10 the first logits are so large that GroupNorm-ReLU and
    # the EvoNorms fail at the usual learning rate of 0.1. As in timm's ResNet:
    nn.init.normal_(model.classifier.weight, 0.0, 0.01)
    return model


def adapt(stages: list[list[dict[str, Any]]], size: int) -> int:
    """Change strides and kernels, in place, to what small images afford; return the stride of the stem.

    Args:
        stages: arguments of timm's blocks.
        size: of an image's side in pixels.
    """
    halvings = max(0, math.ceil(math.log2(size / 4)))  # down to a map of 4×4, 3×3 at least
    wanted = STRIDED[min(halvings, len(STRIDED) - 1)]
    strided = {i for i in wanted if i < len(stages)}
    # Where the later stages are left out, the earlier ones halve in their place.
    strided |= set([i for i in range(1, len(stages)) if i not in strided][: len(wanted) - len(strided)])
    stem_stride = 2 if halvings >= len(STRIDED) else 1
    side = math.ceil(size / stem_stride)
    for i, stage in enumerate(stages):
        stage[0]["stride"] = 2 if i in strided else 1
        side = math.ceil(side / stage[0]["stride"])
        for block in stage:
            # On a 4×4 map most of a 5×5 filter reads padding, which is also where oneDNN is several times slower.
            if block["dw_kernel_size"] > side:
                block["dw_kernel_size"] = 3
    return stem_stride
