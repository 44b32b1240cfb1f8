"""A plain network of 3×3 convolutions, each followed by the layer, without skips: the cheapest proxy."""

from __future__ import annotations

from collections import OrderedDict

from timm.layers import ClassifierHead, create_conv2d
from torch import nn

from normforge.train.config import Plain
from normforge.train.networks.places import Place


def plain(config: Plain, *, in_channels: int, classes: int, size: int) -> nn.Module:
    """Convolutions, global pooling and a linear head.

    Places of the layer: one after each convolution. Nothing passes a layer by, so what a layer does to values and
    gradients adds up over the depth.

    Args:
        config: output channels of each convolution.
        in_channels: of the images.
        classes: of the logits.
        size: of an image's side, which does not matter here.

    Returns:
        A module from images (N, in_channels, H, W) to logits (N, classes). Every second convolution after the first
        has stride 2.
    """
    body: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for i, out in enumerate(config.channels):
        conv = create_conv2d(channels, out, 3, stride=2 if i and i % 2 == 0 else 1)
        # Unit variance in is unit variance out, so that a layer which keeps it needs nothing from the weights.
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="linear")
        body |= {f"conv{i}": conv, f"norm{i}": Place(out)}
        channels = out
    head = ClassifierHead(channels, classes)
    nn.init.normal_(head.fc.weight, 0.0, 0.01)
    nn.init.zeros_(head.fc.bias)
    return nn.Sequential(OrderedDict(body=nn.Sequential(body), head=head))
