"""BigGAN: a generator with the layer in every norm-act place, and a discriminator, which has none.

Source: Brock et al., Large Scale GAN Training for High Fidelity Natural Image Synthesis, arXiv 1809.11096, appendix B;
the widths and all that the paper leaves open as in ajbrock/BigGAN-PyTorch (BigGAN.py, layers.py). 16 px are not there:
that network is the one of 32 px less a block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import relu

from normforge.errors import OptionError
from normforge.ir.graph import Graph
from normforge.train.networks.build import compiled
from normforge.train.transfer.synthesis.conditional import ConditionalLayer
from normforge.train.transfer.synthesis.parts import Attention, convolution, draw, spectral

# Widths by the side of the image, in units of `channels`: of the generator's first map and after each of its blocks;
# after each block of the discriminator, and how many of these halve the map.
_GENERATOR = {16: (4, 4, 4), 32: (4, 4, 4, 4), 64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1)}
_DISCRIMINATOR = {
    16: ((4, 4, 4, 4), 2),
    32: ((4, 4, 4, 4), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
}
_FIRST = 4  # side of the generator's first map
_ATTENTION = 64  # side of the maps with attention
SIDES = tuple(_GENERATOR)
"""Sides of images that there is a BigGAN for, in pixels."""


def check_side(side: int) -> None:
    """Refuse a side that there is no BigGAN for.

    Raises:
        OptionError: it names those that there are.
    """
    if side not in SIDES:
        raise OptionError(f"there is no BigGAN for images of {side} px: give {', '.join(map(str, SIDES[:-1]))} or 128")


class Generator(nn.Module):
    """Images of noise and labels.

    The noise is in chunks: one makes the first map, each further one and the class embedding are the condition of a
    block. The embedding is not spectral-normed, all else is. The last layer has no condition.

    Attributes:
        noise: numbers of noise in all. classes: number of labels.
    """

    def __init__(
        self,
        graph: Graph,
        side: int,
        classes: int,
        *,
        image_channels: int = 3,
        channels: int = 96,
        z: int = 20,
        shared: int = 128,
        backend: str = "auto",
        groups: int | None = None,
        init: str = "orthogonal",
    ) -> None:
        """Weights are drawn by torch's global generator, and do not depend on the layer.

        Args:
            graph: the layer.
            side: of the images, in pixels: one of `SIDES`.
            classes: number of labels.
            image_channels: 1 or 3.
            channels: unit of width.
            z: numbers of noise in a chunk.
            shared: size of the class embedding.
            backend, groups: as of `ConditionalLayer`.
            init: of the weights, orthogonal or normal.

        Raises:
            OptionError: another side; the layer has neither gamma nor beta, or is not of x alone.
        """
        super().__init__()
        check_side(side)
        widths = [channels * unit for unit in _GENERATOR[side]]
        self.z, self.noise, self.classes = z, z * len(widths), classes
        self.shared = draw(nn.Embedding(classes, shared), init)
        self.linear = spectral(nn.Linear(z, widths[0] * _FIRST**2), init)
        self.blocks, self.attention = nn.ModuleList(), nn.ModuleDict()
        layer = partial(ConditionalLayer, graph, condition=shared + z, backend=backend, groups=groups, init=init)
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            self.blocks.append(GeneratorBlock(layer, inputs, outputs, init))
            if _FIRST * 2 ** (i + 1) == _ATTENTION:
                self.attention[str(i)] = Attention(outputs, init)
        self.layer = compiled(graph, backend, groups)(widths[-1])
        self.out = convolution(widths[-1], image_channels, 3, init)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images (N, image_channels, side, side) between -1 and 1.

        Args:
            z: (N, `noise`), standard normal.
            labels: (N,) of int64.
        """
        first, *chunks = z.split(self.z, 1)
        embedded = self.shared(labels)
        h: Tensor = self.linear(first).unflatten(1, (-1, _FIRST, _FIRST))
        for i, (block, chunk) in enumerate(zip(self.blocks, chunks, strict=True)):
            h = block(h, torch.cat([embedded, chunk], 1))
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        return torch.tanh(self.out(self.layer(h)))


class GeneratorBlock(nn.Module):
    """Layer, doubled size, 3×3, layer, 3×3; beside it doubled size and 1×1."""

    def __init__(self, layer: Callable[[int], ConditionalLayer], inputs: int, outputs: int, init: str) -> None:
        super().__init__()
        self.layer1 = layer(inputs)
        self.conv1 = convolution(inputs, outputs, 3, init)
        self.layer2 = layer(outputs)
        self.conv2 = convolution(outputs, outputs, 3, init)
        self.shortcut = convolution(inputs, outputs, 1, init)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, inputs, H, W) and the condition (N, condition) to (N, outputs, 2H, 2W)."""
        h = functional.interpolate(self.layer1(x, y), scale_factor=2)
        h = self.conv2(self.layer2(self.conv1(h), y))
        # The same as doubling first, at a quarter of the work: the convolution is of single pixels.
        out: Tensor = h + functional.interpolate(self.shortcut(x), scale_factor=2)
        return out


class Discriminator(nn.Module):
    """How real images of labels look: w · h + <e(label), h>, of features h and spectral-normed w and e (the projection
    of Miyato and Koyama, arXiv 1802.05637)."""

    def __init__(
        self, side: int, classes: int, *, image_channels: int = 3, channels: int = 96, init: str = "orthogonal"
    ) -> None:
        """Weights are drawn by torch's global generator.

        Args:
            side: of the images, in pixels: one of `SIDES`.
            classes: number of labels.
            image_channels: 1 or 3.
            channels: unit of width.
            init: of the weights, orthogonal or normal.

        Raises:
            OptionError: another side.
        """
        super().__init__()
        check_side(side)
        units, halved = _DISCRIMINATOR[side]
        widths = [image_channels, *(channels * unit for unit in units)]
        blocks: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            blocks.append(DiscriminatorBlock(inputs, outputs, first=i == 0, halve=i < halved, init=init))
            if i < halved and side >> (i + 1) == _ATTENTION:
                blocks.append(Attention(outputs, init))
        self.blocks = nn.Sequential(*blocks)
        self.linear = spectral(nn.Linear(widths[-1], 1), init)
        self.embedding = spectral(nn.Embedding(classes, widths[-1]), init)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scores (N,) of images (N, image_channels, side, side) between -1 and 1 and their labels (N,)."""
        h = relu(self.blocks(images)).sum((2, 3))
        score: Tensor = self.linear(h)[:, 0] + (self.embedding(labels) * h).sum(1)
        return score


class DiscriminatorBlock(nn.Module):
    """ReLU, 3×3, ReLU, 3×3, and half the size; beside it 1×1, where width or size changes. The first ReLU is left out
    on images."""

    def __init__(self, inputs: int, outputs: int, *, first: bool, halve: bool, init: str) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = convolution(inputs, outputs, 3, init)
        self.conv2 = convolution(outputs, outputs, 3, init)
        self.shortcut = convolution(inputs, outputs, 1, init) if halve or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W), or of half of H and W."""
        h: Tensor = self.conv2(relu(self.conv1(x if self.first else relu(x))))
        if self.halve:
            # Pooling and the shortcut's convolution, which is of single pixels, commute: pooled first it costs less.
            h, x = functional.avg_pool2d(h, 2), functional.avg_pool2d(x, 2)
        out: Tensor = h + self.shortcut(x)
        return out
