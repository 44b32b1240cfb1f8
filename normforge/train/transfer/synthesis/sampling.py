"""Samples of a generator: noise, standing statistics, images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from normforge.kernels.module import Layer
from normforge.train.transfer.synthesis.biggan import Generator

_AT_ONCE = 250  # images in inference


def noise(count: int, size: int, rng: torch.Generator, truncation: float | None = None) -> Tensor:
    """Standard normal numbers (count, size) on the CPU, none of a magnitude above `truncation`: what is above it is
    drawn again (the truncation trick, arXiv 1809.11096, section 3.1)."""
    z = torch.empty(count, size)
    if truncation is None:
        return z.normal_(generator=rng)
    return nn.init.trunc_normal_(z, a=-truncation, b=truncation, generator=rng)


def labels(count: int, classes: int, rng: torch.Generator) -> Tensor:
    """Labels (count,) drawn alike, on the CPU."""
    return torch.randint(classes, (count,), generator=rng)


@torch.no_grad()
def standing(
    generator: Generator, batches: int, batch: int, rng: torch.Generator, truncation: float | None = None
) -> Generator:
    """A copy of a generator to sample from, in inference mode.

    Its running statistics are averages over batches of fresh noise alone (standing statistics, arXiv 1809.11096,
    appendix D), and each batch is an iteration of its spectral norms: an average of weights comes with neither.

    Args:
        generator: left as it is.
        batches: number of batches.
        batch: samples of each.
        rng: draws noise and labels.
        truncation: of the noise.
    """
    made = copy.deepcopy(generator)
    for module in made.modules():
        if isinstance(module, Layer) and module.running:
            module.reset_running_stats()
            module.momentum = None  # all batches weigh the same
    device = made.shared.weight.device
    made.train()
    for _ in range(batches):
        z = noise(batch, made.noise, rng, truncation)
        made(z.to(device), labels(batch, made.classes, rng).to(device))
    return made.eval()


@torch.no_grad()
def images(generator: Generator, z: Tensor, y: Tensor) -> Tensor:
    """Images (N, C, S, S) between -1 and 1 of noise (N, size) and labels (N,), on the generator's device."""
    device = generator.shared.weight.device
    drawn = [generator(a.to(device), b.to(device)) for a, b in zip(z.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)]
    return torch.cat(drawn)
