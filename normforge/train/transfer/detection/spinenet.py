"""SpineNet: a backbone whose blocks are in a learned order of scales (Du et al., arXiv 1912.05027)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from timm.layers import lecun_normal_
from torch import Tensor, nn
from torch.nn.functional import interpolate

from normforge.errors import OptionError
from normforge.train.networks.places import Affine, LayerFactory, Place, put


class _Block(NamedTuple):
    level: int
    bottleneck: bool  # or a residual block
    inputs: tuple[int, ...]  # by index; the first two blocks have none, and follow the stem
    leaves: bool = False


_WIDTHS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
# Table and widths of the authors' code (tensorflow/models, official/vision/modeling/backbones/spinenet.py).
_BLOCKS = (
    _Block(2, True, ()),
    _Block(2, True, ()),
    _Block(2, True, (0, 1)),
    _Block(4, False, (0, 1)),
    _Block(3, True, (2, 3)),
    _Block(4, True, (2, 4)),
    _Block(6, False, (3, 5)),
    _Block(4, True, (3, 5)),
    _Block(5, False, (6, 7)),
    _Block(7, False, (6, 8)),
    _Block(5, True, (8, 9)),
    _Block(5, True, (8, 10)),
    _Block(4, True, (5, 10), leaves=True),
    _Block(3, True, (4, 10), leaves=True),
    _Block(5, True, (7, 12), leaves=True),
    _Block(7, True, (5, 14), leaves=True),
    _Block(6, True, (12, 14), leaves=True),
    _Block(2, True, (2, 13), leaves=True),
)


@dataclass(frozen=True)
class SpineNetConfig:
    """The size of a SpineNet.

    Attributes:
        ends: channels of each level that leaves.
        scale: of the widths of all blocks.
        alpha: channels of a connection, as a share of those of the block that it comes from.
        repeats: units a block.
        stem: channels of the stem, which is not scaled.
        min_level, max_level: the levels that leave, between 2 and 7; blocks that none of them needs are not built.
        deepest: the blocks of levels above it work at its size; 7, as published, changes none.

    Raises:
        OptionError: a level that does not exist, a size that is not positive, or so small that no channel is left.
    """

    ends: int = 256
    scale: float = 1.0
    alpha: float = 0.5
    repeats: int = 1
    stem: int = 64
    min_level: int = 3
    max_level: int = 7
    deepest: int = 7

    def __post_init__(self) -> None:
        if not 2 <= self.min_level <= self.max_level <= 7:
            raise OptionError(
                f"levels {self.min_level} to {self.max_level} cannot leave a SpineNet: give some between 2 and 7"
            )
        if not max(4, self.max_level) <= self.deepest <= 7:  # from 4 on all levels are of one width
            raise OptionError(
                f"the deepest level of a SpineNet cannot be {self.deepest}: give one from {max(4, self.max_level)} to 7"
            )
        if min(self.ends, self.stem, self.repeats) < 1:
            raise OptionError("ends, stem and repeats of a SpineNet are counts: give each at least 1")
        if int(int(_WIDTHS[2] * self.scale) * self.alpha) < 1:
            raise OptionError(
                f"scale {self.scale:g} and alpha {self.alpha:g} leave a connection of a SpineNet no channel: "
                "raise one of them"
            )


CONFIGS: dict[str, SpineNetConfig] = {
    "spinenet49s": SpineNetConfig(ends=128, scale=0.65),
    "spinenet49": SpineNetConfig(),
    "spinenet96": SpineNetConfig(repeats=2),
    "spinenet143": SpineNetConfig(alpha=1.0, repeats=3),
    "spinenet190": SpineNetConfig(ends=512, scale=1.3, alpha=1.0, repeats=4),
    "spinenet_tiny": SpineNetConfig(ends=48, scale=0.125, stem=16, min_level=2, max_level=4, deepest=5),
}
"""The published sizes, and a tiny one for images of about 100 pixels: of strides up to 32, and 4, 8 and 16 leave."""


class SpineNet(nn.Module):
    """A SpineNet without a head, which torchvision's MaskRCNN takes as its backbone.

    A layer stands in every place of a norm with an activation, `Affine` in every place of a norm without, and after
    each sum a bare activation, as published, post-activation. The paper of EvoNorm (arXiv 2004.02967) does not
    document how it put a layer that is norm and activation in one there; this changes least.

    Level k has stride 2**k. Blocks of levels up to 7 work inside whatever leaves, and of an image of up to 128 pixels
    level 7 is one position: the variance of one image and one channel is 0 there, and EvoNorm-S0 divides by it. For
    small images lower `deepest`, or choose layers of several channels a group.

    Convolutions start as the authors' do: N(0, 1 / fan-in), truncated at two deviations. They pad both sides alike,
    as do the poolings.

    Args:
        config: its size, for instance one of `CONFIGS`.
        layer: makes a layer for each place, after all weights have been drawn.
        in_channels: of the images.
        activation: makes the bare activations after sums.

    Attributes:
        levels: that leave, ascending.
        out_channels: of each of them.
    """

    def __init__(
        self,
        config: SpineNetConfig,
        layer: LayerFactory,
        in_channels: int = 3,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.levels = tuple(range(config.min_level, config.max_level + 1))
        self.out_channels = config.ends
        self._graph, self._ends = _wired(config)
        stem = _conv(in_channels, config.stem, 7, 2), Place(config.stem), nn.MaxPool2d(3, 2, 1)
        self.stem = nn.Sequential(*stem)
        joins, blocks = {}, {}
        for i, block in self._graph.items():
            width = int(_WIDTHS[block.level] * config.scale)
            if block.inputs:
                joins[str(i)] = _Join([self._graph[j] for j in block.inputs[:2]], block, config, activation())
            channels = config.stem if i == 0 else _channels(block, config)
            units = []
            for _ in range(config.repeats):
                units.append(_Unit(channels, width, block.bottleneck, activation()))
                channels = _channels(block, config)
            blocks[str(i)] = nn.Sequential(*units)
        self.joins, self.blocks = nn.ModuleDict(joins), nn.ModuleDict(blocks)
        self.ends = nn.ModuleDict(
            {
                str(level): nn.Sequential(_conv(_channels(_BLOCKS[i], config), config.ends), Place(config.ends))
                for level, i in self._ends.items()
            }
        )
        put(self, layer)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The levels that leave, of images x (N, in_channels, H, W) of any size.

        Returns:
            By the level's number as text, ascending: (N, out_channels, ceil(H / 2**k), ceil(W / 2**k)).
        """
        height, width = x.shape[-2:]
        last = self.stem(x)
        done: dict[int, Tensor] = {}
        for i, block in self._graph.items():
            if block.inputs:
                size = -(-height // 2**block.level), -(-width // 2**block.level)
                last = self.joins[str(i)]([done[j] for j in block.inputs], size)
            last = done[i] = self.blocks[str(i)](last)
        return OrderedDict((str(level), self.ends[str(level)](done[i])) for level, i in self._ends.items())


def _wired(config: SpineNetConfig) -> tuple[dict[int, _Block], dict[int, int]]:
    """The blocks that are needed, in order, with all their inputs; and by level the block that leaves."""
    graph: dict[int, _Block] = {}
    ends: dict[int, int] = {}
    unread: set[int] = set()
    for i, block in enumerate(_BLOCKS):
        inputs = block.inputs
        if block.leaves:  # it takes in what nobody has read, where that has its shape
            inputs += tuple(j for j in sorted(unread.difference(inputs)) if _BLOCKS[j][:2] == block[:2])
            if config.min_level <= block.level <= config.max_level:
                ends[block.level] = i
        unread = unread.difference(inputs) | {i}
        graph[i] = block._replace(level=min(block.level, config.deepest), inputs=inputs)
    needed = {0, 1, *ends.values()}
    for i in reversed(graph):
        if i in needed:
            needed.update(graph[i].inputs)
    return {i: block for i, block in graph.items() if i in needed}, dict(sorted(ends.items()))


def _channels(block: _Block, config: SpineNetConfig) -> int:
    return int(_WIDTHS[block.level] * config.scale) * (4 if block.bottleneck else 1)


def _conv(channels: int, out: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
    lecun_normal_(conv.weight)
    return conv


class _Join(nn.Module):
    """The sum of two blocks resampled, and of others as they are, then an activation."""

    def __init__(self, sources: list[_Block], target: _Block, config: SpineNetConfig, activation: nn.Module) -> None:
        super().__init__()
        self.resampled = nn.ModuleList(_Resample(source, target, config) for source in sources)
        self.activation = activation

    def forward(self, inputs: list[Tensor], size: tuple[int, int]) -> Tensor:
        total = sum(inputs[len(self.resampled) :])  # 0 of none
        for resample, x in zip(self.resampled, inputs, strict=False):
            total = total + resample(x, size)
        result: Tensor = self.activation(total)
        return result


class _Resample(nn.Module):
    """A block's output, (N, C, H, W), at another size and width."""

    def __init__(self, source: _Block, target: _Block, config: SpineNetConfig) -> None:
        super().__init__()
        out = _channels(target, config)
        middle = int(int(_WIDTHS[source.level] * config.scale) * config.alpha)
        parts: list[nn.Module] = [_conv(_channels(source, config), middle), Place(middle)]
        if target.level > source.level:
            parts += _conv(middle, middle, 3, 2), Place(middle)
            parts += (nn.MaxPool2d(3, 2, 1) for _ in range(target.level - source.level - 1))
        self.enlarges = target.level < source.level
        self.steps = nn.Sequential(*parts, _conv(middle, out), Affine(out))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        # Published, a small map is enlarged before the last convolution. That is 1×1 and an affine map follows, so the
        # values are the same, from a quarter of the work or less. Going down, the size is right already: halves
        # rounded up, one after the other, are the division rounded up.
        resampled: Tensor = self.steps(x)
        return interpolate(resampled, size) if self.enlarges else resampled


class _Unit(nn.Module):
    """A bottleneck or residual unit of stride 1: a branch, a shortcut, and an activation on their sum."""

    def __init__(self, channels: int, width: int, bottleneck: bool, activation: nn.Module) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        parts: list[nn.Module] = []
        into = channels
        for kernel in kernels[:-1]:
            parts += _conv(into, width, kernel), Place(width)
            into = width
        self.branch = nn.Sequential(*parts, _conv(width, out, kernels[-1]), Affine(out))
        projects = channels != out
        self.shortcut = nn.Sequential(_conv(channels, out), Affine(out)) if projects else nn.Identity()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return result
