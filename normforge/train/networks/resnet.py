"""ResNet-v2: pre-activation bottleneck blocks, layer, 1×1, layer, 3×3, layer, 1×1 (He et al., arXiv 1603.05027)."""

from __future__ import annotations

from timm.layers import BatchNormAct2d, create_conv2d, make_divisible
from timm.models.resnetv2 import ResNetV2
from torch import nn

from normforge.train.config import ResNet


def stages(width: float, count: int) -> tuple[int, ...]:
    """The output channels of each stage: 256, 512, ... as in ResNet-50, times the width, in multiples of 8."""
    return tuple(make_divisible(round(256 * 2**i * width)) for i in range(count))


def resnet(config: ResNet, *, in_channels: int, classes: int, size: int) -> nn.Module:
    """A ResNet-v2: timm's, with its own norm-acts: three places a block and one before the head.

    Args:
        config: width and depths.
        in_channels: of the images.
        classes: of the logits.
        size: of an image's side, which does not matter here.

    Returns:
        A module from images (N, in_channels, H, W) to logits (N, classes). The stem is one 3×3 convolution of
        stride 1, and the first stage has stride 1 too, as small images need (EvoNorm's proxy on CIFAR-10).
    """
    model = ResNetV2(
        layers=list(config.depths),
        channels=stages(config.width, len(config.depths)),
        num_classes=classes,
        in_chans=in_channels,
        stem_chs=max(1, int(64 * config.width)),
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
    )
    stem = create_conv2d(in_channels, model.stem.conv.out_channels, 3)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as timm starts its convolutions
    model.stem = nn.Sequential(stem)
    return model
