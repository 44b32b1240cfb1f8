"""Normalization-free networks: stem, stages of blocks, head."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normforge.nn.kept import together
from normforge.nn.nfnets.blocks import Maker, NormFreeBlock, SqueezeExcite
from normforge.nn.nfnets.config import Config, places
from normforge.nn.scaled import pad_same

torch.fx.wrap("pad_same")  # sizes are not known in a symbolic trace


class Head(nn.Module):
    """Mean over positions, times a constant, dropout, and the classifier: (N, C, H, W) to (N, classes)."""

    def __init__(self, channels: int, classes: int, drop_rate: float, scale: float) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale
        self.drop = nn.Dropout(drop_rate)
        self.fc = _classifier(channels, classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The logits, or what the classifier is given (N, C)."""
        pooled: Tensor = self.drop(x.mean((2, 3)) * self.scale)
        return pooled if pre_logits else self.fc(pooled)


class MaxPoolSame(nn.Module):
    """The largest of 3×3 at stride 2, padded by TensorFlow's rule with -∞: (N, C, H, W) to (N, C, ⌈H/2⌉, ⌈W/2⌉)."""

    def forward(self, x: Tensor) -> Tensor:
        """The pooled x."""
        return F.max_pool2d(pad_same(x, (3, 3), (2, 2), (1, 1), value=-torch.inf), 3, 2)


class NormFreeNet(nn.Module):
    """A normalization-free network for images x (N, in_chans, H, W) (Brock et al., arXiv 2101.08692, 2102.06171).

    Submodules have the names of timm's `NormFreeNet`, whose state dicts it loads. All weights are standardized in one
    call where `together` allows it.

    Args:
        config: what it is made of.
        num_classes: of the classifier; 0 for none.
        in_chans: channels of images.

    Attributes:
        config: as given.
        num_features: channels that the classifier is given.
    """

    def __init__(self, config: Config, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.config, self.num_classes, self.in_chans = config, num_classes, in_chans
        make = Maker(config)
        self.stem = _stem(make, in_chans)
        blocks = [(place.stage, NormFreeBlock(make, place)) for place in places(config)]
        by_stage = itertools.groupby(blocks, key=lambda b: b[0])
        self.stages = nn.Sequential(*(nn.Sequential(*(block for _, block in group)) for _, group in by_stage))
        width = config.widths[-1]
        self.num_features = config.head or width
        self.final_conv = make.conv(width, config.head, 1, make.outer) if config.head else nn.Identity()
        self.final_act = make.act()
        self.head = Head(self.num_features, num_classes, config.drop_rate, make.last)
        self._start_attention()
        together(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head is given, (N, num_features, ⌈H/32⌉, ⌈W/32⌉), without the last γ."""
        made: Tensor = self.final_act(self.final_conv(self.stages(self.stem(x))))
        return made

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of features, or with `pre_logits` what the classifier is given (N, num_features)."""
        made: Tensor = self.head(x, pre_logits)
        return made

    def get_classifier(self) -> nn.Module:
        """The last linear layer, which AGC leaves alone."""
        return self.head.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier, as at the start; with 0 classes none."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head.fc = _classifier(self.num_features, num_classes).to(like.device, like.dtype)

    @torch.no_grad()
    def _start_attention(self) -> None:
        """Squeeze and excitation: biases 0, weights normal, σ 1/√fan-in, cut at 2σ as haiku's, or as timm's not cut."""
        for block in self.modules():
            if isinstance(block, SqueezeExcite):
                for layer in (block.fc1, block.fc2):
                    std = layer.in_channels**-0.5
                    if self.config.rule == "timm":
                        nn.init.normal_(layer.weight, 0.0, std)
                    else:
                        nn.init.trunc_normal_(layer.weight, 0.0, std, -2 * std, 2 * std)
                    assert layer.bias is not None
                    nn.init.zeros_(layer.bias)


def _stem(make: Maker, inputs: int) -> nn.Sequential:
    """Stride 4: four 3×3 convolutions, or a 7×7 and a max pool. There is no activation at the end."""
    widths, stem = make.config.stem, nn.Sequential()
    if len(widths) == 1:
        stem.add_module("conv", make.conv(inputs, widths[0], 7, make.outer, stride=2))
        stem.add_module("pool", MaxPoolSame() if make.config.same else nn.MaxPool2d(3, 2, 1))
        return stem
    for i, width in enumerate(widths, 1):
        if i > 1:
            stem.add_module(f"act{i}", make.act(inplace=True))
        scale = make.outer if i == 1 else make.gamma
        stem.add_module(f"conv{i}", make.conv(inputs, width, 3, scale, stride=2 if i in (1, len(widths)) else 1))
        inputs = width
    return stem


def _classifier(channels: int, classes: int) -> nn.Module:
    """N(0, 0.01²); zeros, the usual start, were unstable with many classes (arXiv 2102.06171, appendix)."""
    if not classes:
        return nn.Identity()
    made = nn.Linear(channels, classes)
    nn.init.normal_(made.weight, 0.0, 0.01)
    nn.init.zeros_(made.bias)
    return made
