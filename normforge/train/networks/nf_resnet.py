"""A normalizer-free ResNet (Brock et al., arXiv 2101.08692): scaled weight standardization, tracked variance."""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import ClassifierHead
from torch import nn

from normforge.nn.scaled import ScaledConv2d
from normforge.train.config import NFResNet
from normforge.train.networks.places import Place
from normforge.train.networks.resnet import stages


def nf_resnet(config: NFResNet, *, in_channels: int, classes: int, size: int) -> nn.Module:
    """A normalizer-free ResNet of pre-activation bottleneck blocks whose inputs have known variance at the start.

    Places of the layer: three a block and one before the head, as in `resnet`. Nothing else normalises: a layer is
    expected to give unit variance for unit variance, such as silu times 1.787 does (section 4.2).

    Args:
        config: width and depths as in `resnet`; alpha, the size of the residual branches.
        in_channels: of the images.
        classes: of the logits.
        size: of an image's side, which does not matter here.

    Returns:
        A module from images (N, in_channels, H, W) to logits (N, classes); the stem and the first stage have stride 1.
    """
    channels = max(8, int(64 * config.width))
    blocks: list[nn.Module] = []
    stem = _conv(config, in_channels, channels, 3)
    variance = 1.0
    for i, (out, depth) in enumerate(zip(stages(config.width, len(config.depths)), config.depths, strict=True)):
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            blocks.append(NFBlock(config, channels, out, stride, transition=j == 0, beta=variance**-0.5))
            if j == 0:
                variance = 1.0  # the shortcut of a transition is a convolution of what was normalised
            variance += config.alpha**2
            channels = out
    head = ClassifierHead(channels, classes)
    model = nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), norm=Place(channels), head=head))
    nn.init.normal_(head.fc.weight, 0.0, 0.01)
    nn.init.zeros_(head.fc.bias)
    return model


class NFBlock(nn.Module):
    """A block y = shortcut + alpha · skip_gain · f(layer(beta · x)), x and y (N, C, H, W) (section 3 and appendix).

    Args:
        config: says alpha, the standard deviation that the branch adds when skip_gain is 1.
        channels: of x.
        out: of y.
        stride: of the 3×3 convolution, and of the shortcut.
        transition: the shortcut is a convolution of layer(beta · x), not x.
        beta: one over the expected standard deviation of x.
    """

    def __init__(
        self, config: NFResNet, channels: int, out: int, stride: int, *, transition: bool, beta: float
    ) -> None:
        super().__init__()
        middle = max(8, out // 4)
        self.alpha, self.beta = config.alpha, beta
        self.shortcut = _conv(config, channels, out, 1, stride) if transition else None
        self.norm1, self.conv1 = Place(channels), _conv(config, channels, middle, 1)
        self.norm2, self.conv2 = Place(middle), _conv(config, middle, middle, 3, stride)
        self.norm3, self.conv3 = Place(middle), _conv(config, middle, out, 1)
        # A block starts as its shortcut (SkipInit, De and Smith, arXiv 2002.10444).
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output y of the block."""
        active = self.norm1(x * self.beta)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        branch = self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(active)))))
        return shortcut + self.alpha * self.skip_gain * branch


def _conv(config: NFResNet, channels: int, out: int, kernel: int, stride: int = 1) -> nn.Module:
    """With weights from N(0, 1/fan-in), and zero biases."""
    if config.standardized:
        return ScaledConv2d(channels, out, kernel, stride, padding=kernel // 2)
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="linear")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
