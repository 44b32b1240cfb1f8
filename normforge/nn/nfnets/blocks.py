"""The residual block of normalization-free networks, with its shortcut and its attention over channels."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath, EcaModule
from torch import Tensor, nn

from normforge.errors import OptionError
from normforge.nn.gamma import gamma_of
from normforge.nn.nfnets.config import Config, Place
from normforge.nn.scaled import ScaledConv2d

_ACTIVATIONS: dict[str, Any] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
}
# A branch without normalization keeps its variance if the gate, which is about 1/2 at the start, is doubled.
_ATTENTION_GAIN = 2.0


class Maker:
    """Makes the layers of one network.

    γ, and what a block divides its input by, are constant factors of activations that nothing but convolutions read:
    conv(γ·a; Ŵ) = conv(a; γ·Ŵ). So they are factors of weights, and cost no pass over activations.

    Attributes:
        gamma: γ of the network's activation.
        outer: the factor of convolutions that read no activation: the first, and the 1×1 at the end. timm's networks
            have γ there too, and none at the end.
        last: the factor of the pooled activations.
    """

    def __init__(self, config: Config) -> None:
        if config.activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise OptionError(f"the activation of a network is one of {known}, not {config.activation!r}")
        self.config = config
        self.gamma = gamma_of(config.activation, config.gamma)
        self.outer, self.last = (self.gamma, 1.0) if config.gamma_everywhere else (1.0, self.gamma)

    def act(self, inplace: bool = False) -> nn.Module:
        """The activation, without γ; in place where that saves memory, of what nothing else reads."""
        if inplace and self.config.activation == "relu":
            return nn.ReLU(inplace=True)
        made: nn.Module = _ACTIVATIONS[self.config.activation]()
        return made

    def conv(self, inputs: int, outputs: int, kernel: int, scale: float, **options: Any) -> ScaledConv2d:
        """A convolution whose weight has the factor `scale`."""
        padding = "same" if self.config.same else kernel // 2
        return ScaledConv2d(inputs, outputs, kernel, padding=padding, scale=scale, rule=self.config.rule, **options)


class SqueezeExcite(nn.Module):
    """The gates of squeeze and excitation (Hu et al., arXiv 1709.01507): (N, C, 1, 1) for x (N, C, H, W)."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, int(channels * ratio))  # not rounded to a multiple of 8
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        # The paper's text says GELU between them; its code and weights are of ReLU.
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The gates."""
        made: Tensor = self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()
        return made


class ChannelAttention(EcaModule):  # type: ignore[misc]
    """The gates of efficient channel attention (Wang et al., arXiv 1910.03151): (N, C, 1, 1) for x (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """The gates."""
        made: Tensor = self.conv(x.mean((2, 3))[:, None]).sigmoid()
        return made[:, 0, :, None, None]


class Shortcut(nn.Module):
    """The convolution of a transition's shortcut: x (N, inputs, H, W) to (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, make: Maker, place: Place, scale: float) -> None:
        super().__init__()
        pooled = make.config.pooled and place.stride > 1
        # A window over the edge, at odd sizes, is the mean of what lies inside.
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if pooled else nn.Identity()
        stride = 1 if pooled else place.stride
        self.conv = make.conv(place.inputs, place.outputs, 1, scale, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled, then convolved."""
        made: Tensor = self.conv(self.pool(x))
        return made


class NormFreeBlock(nn.Module):
    """y = shortcut + α · skip gain · drop(2 · attention(f(h))) with h = γ · act(x) / std, all of it before activation.

    f is 1×1, 3×3 (one or two, grouped), 1×1, with γ · act between. The shortcut is x, or at a transition a convolution
    of h (Brock et al., arXiv 2102.06171, section 4.1 and appendix; the code divides by std after the activation).
    Submodules have timm's names.

    Args:
        make: of the network's layers.
        place: where the block stands.

    Attributes:
        expected_variance: std², that of x at the start, if all goes as predicted.
        predicted_variance: that of y, with a skip gain of 1.
    """

    def __init__(self, make: Maker, place: Place) -> None:
        super().__init__()
        config = make.config
        self.alpha, self.expected_variance, self.predicted_variance = config.alpha, place.variance, place.after
        middle, groups = int(place.outputs * config.bottleneck), 1
        if config.group_size:
            groups = middle // config.group_size
            middle = groups * config.group_size
        scale = make.gamma * place.variance**-0.5
        self.downsample = Shortcut(make, place, scale) if place.transition else None
        self.act1 = make.act()
        self.conv1 = make.conv(place.inputs, middle, 1, scale)
        self.act2 = make.act(inplace=True)
        self.conv2 = make.conv(middle, middle, 3, make.gamma, stride=place.stride, groups=groups)
        self.act2b = make.act(inplace=True) if config.two_convs else None
        self.conv2b = make.conv(middle, middle, 3, make.gamma, groups=groups) if config.two_convs else None
        self.act3 = make.act(inplace=True)
        gain = 1.0 if config.skip_gain else 0.0
        self.conv3 = make.conv(middle, place.outputs, 1, make.gamma, gain_init=gain)
        self.attn_last: nn.Module | None = None
        if config.attention == "se":
            self.attn_last = SqueezeExcite(place.outputs, config.se_ratio)
        elif config.attention == "eca":
            self.attn_last = ChannelAttention(place.outputs)
        # The authors never divide by what is kept, timm does.
        self.drop_path = DropPath(place.drop, scale_by_keep=config.rule == "timm") if place.drop else nn.Identity()
        self.skipinit_gain = nn.Parameter(torch.zeros(())) if config.skip_gain else None

    def forward(self, x: Tensor) -> Tensor:
        """y (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉) of x (N, inputs, H, W)."""
        h = self.act1(x)
        shortcut = x if self.downsample is None else self.downsample(h)
        y = self.conv2(self.act2(self.conv1(h)))
        if self.conv2b is not None and self.act2b is not None:
            y = self.conv2b(self.act2b(y))
        y = self.conv3(self.act3(y))
        # Gates, skip gain and drop are one factor of few elements, so that one pass over y does all of it.
        factor = y.new_ones(y.shape[0], 1, 1, 1) if self.attn_last is None else _ATTENTION_GAIN * self.attn_last(y)
        if self.skipinit_gain is not None:
            factor = factor * self.skipinit_gain
        return torch.addcmul(shortcut, y, self.drop_path(factor).to(y.dtype), value=self.alpha)
