"""A pre-activation ResNet with a feature pyramid, as Mask R-CNN's backbone.

The feature pyramid is that of arXiv 1612.03144. Where norms stand follows the detection code of EvoNorm's authors: in
the backbone wherever ResNet-v2 has one, and one more at each level that leaves for the pyramid, since features of
pre-activation blocks end without; in the pyramid one on each output, without activation, and none on the laterals.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from normforge.train.networks.places import Affine, Place
from normforge.train.networks.resnet import stages
from normforge.train.transfer.detection.settings import Detector


class ResNetFPN(nn.Module):
    """ResNet-v2 of bottlenecks with a 7×7 stem of stride 4, and an FPN from level 2 on; places are not yet filled.

    Args:
        config: width, depths, channels, top.
        in_channels: of images.

    Attributes:
        out_channels: of each level. levels: of the pyramid; level k has stride 2^k.
    """

    def __init__(self, config: Detector, in_channels: int = 3) -> None:
        super().__init__()
        channels = stages(config.width, len(config.depths))
        made: Any = ResNetV2(
            layers=list(config.depths),
            channels=channels,
            num_classes=0,
            in_chans=in_channels,
            stem_chs=max(8, int(64 * config.width)),
            conv_layer=create_conv2d,
            norm_layer=BatchNormAct2d,
        )
        self.stem, self.stages = made.stem, made.stages
        self.ends = nn.ModuleList(Place(c) for c in channels)
        self.out_channels = config.channels
        last = 1 + len(config.depths)
        self.levels = tuple(range(2, max(last, config.top) + 1))
        self.pyramid = FeaturePyramidNetwork(list(channels), config.channels)
        self.coarser = nn.ModuleList(
            nn.Conv2d(config.channels, config.channels, 3, stride=2, padding=1) for _ in self.levels[len(channels) :]
        )
        self.norms = nn.ModuleList(Affine(config.channels) for _ in self.levels)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Features by level, "2", "3", ...: (N, out_channels, H / 2^k, W / 2^k), rounded up."""
        x = self.stem(x)
        features: OrderedDict[str, Tensor] = OrderedDict()
        for level, (stage, end) in enumerate(zip(self.stages, self.ends, strict=True), start=2):
            x = stage(x)
            features[str(level)] = end(x)
        outputs = [*self.pyramid(features).values()]
        for conv in self.coarser:
            outputs.append(conv(outputs[-1]))
        return OrderedDict(
            (str(level), norm(y)) for level, norm, y in zip(self.levels, self.norms, outputs, strict=True)
        )
