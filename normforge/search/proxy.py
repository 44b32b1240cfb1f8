"""The proxy network: a small ResNet-v2 built on timm, with the layer under search in every norm-act place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

import normforge as nf
from normforge.ir.graph import Graph
from normforge.search.config import Network

Layer = Callable[[int], nn.Module]


def compiled(graph: Graph) -> Layer:
    """A factory of compiled modules of one layer, by channel count."""
    return lambda channels: nf.compile(graph, channels=channels)


def resnet_v2(config: Network, layer: Layer, *, in_channels: int, classes: int, seed: int) -> nn.Module:
    """Pre-activation bottleneck blocks (timm's ResNetV2), one a width, the second and later of stride 2.

    Args:
        config: widths of the blocks and of the stem.
        layer: makes the norm-act of a channel count: three in each block and one before the head.
        in_channels: of the images.
        classes: of the logits.
        seed: of the weights.

    Returns:
        A module from images (N, in_channels, H, W) to logits (N, classes). The stem is one 3×3 convolution of
        stride 1, as small images need.
    """

    # timm asks for a plain function, and passes device and dtype, which stay at torch's defaults here.
    def norm_act(channels: int, device: None = None, dtype: None = None) -> nn.Module:
        return layer(channels)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetV2(
            layers=[1] * len(config.widths),
            channels=config.widths,
            num_classes=classes,
            in_chans=in_channels,
            stem_chs=config.stem,
            conv_layer=create_conv2d,
            norm_layer=norm_act,
        )
        stem = create_conv2d(in_channels, model.stem.conv.out_channels, 3)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as timm starts its convolutions
        model.stem = nn.Sequential(stem)
    return model
