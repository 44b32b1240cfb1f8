"""A normalizer-free ResNet (Brock et al., arXiv 2101.08692): scaled weight standardization, tracked variance."""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import ClassifierHead, ScaledStdConv2d
from torch import nn

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
    stem = _conv(in_channels, channels, 3)
    variance = 1.0
    for i, (out, depth) in enumerate(zip(stages(config.width, len(config.depths)), config.depths, strict=True)):
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            blocks.append(NFBlock(channels, out, stride, transition=j == 0, alpha=config.alpha, beta=variance**-0.5))
            if j == 0:
                variance = 1.0  # the shortcut of a transition is a convolution of what was normalised
            variance += config.alpha**2
            channels = out
    head = ClassifierHead(channels, classes)
    model = nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), norm=Place(channels), head=head))
    for module in model.modules():  # as timm starts its NFNets
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.normal_(head.fc.weight, 0.0, 0.01)
    nn.init.zeros_(head.fc.bias)
    return model


class NFBlock(nn.Module):
    """A block y = shortcut + alpha · skip_gain · f(layer(beta · x)), x and y (N, C, H, W) (section 3 and appendix).

    Args:
        channels: of x.
        out: of y.
        stride: of the 3×3 convolution, and of the shortcut.
        transition: the shortcut is a convolution of layer(beta · x), not x.
        alpha: standard deviation that the branch adds when skip_gain is 1.
        beta: one over the expected standard deviation of x.
    """

    def __init__(self, channels: int, out: int, stride: int, *, transition: bool, alpha: float, beta: float) -> None:
        super().__init__()
        middle = max(8, out // 4)
        self.alpha, self.beta = alpha, beta
        self.shortcut = _conv(channels, out, 1, stride) if transition else None
        self.norm1, self.conv1 = Place(channels), _conv(channels, middle, 1)
        self.norm2, self.conv2 = Place(middle), _conv(middle, middle, 3, stride)
        self.norm3, self.conv3 = Place(middle), _conv(middle, out, 1)
        # A block starts as its shortcut (SkipInit, De and Smith, arXiv 2002.10444).
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output y of the block."""
        active = self.norm1(x * self.beta)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        branch = self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(active)))))
        return shortcut + self.alpha * self.skip_gain * branch


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Module:
    conv = ScaledStdConv2d(channels, out, kernel, stride)
    # timm's gain is (C, 1, 1, 1), which would decay like a filter and be clipped by channel; the authors' is a vector.
    conv.gain = nn.Parameter(conv.gain.detach().flatten())
    return conv
