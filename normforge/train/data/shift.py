"""Images of another distribution than those that weights were fitted to: noise, contrast and scale are shifted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional

from normforge.streams import stream
from normforge.train.data.parts import Part

NOISE = 0.5  # deviation, of standardised images
CONTRAST = 0.5
SCALE = 0.75  # of the side of what is seen


def shifted(part: Part) -> Iterator[Part]:
    """The part with each of three shifts by itself.

    Args:
        part: standardised images (N, C, H, W), and labels.

    Returns:
        Gaussian noise added, the same for every layer; contrast halved; the image drawn at three quarters of its size
        in the middle of its own edges.
    """
    images = part.images
    noise = stream(0, "shift", 0).standard_normal(tuple(images.shape), dtype="float32")
    yield replace(part, images=images + NOISE * torch.from_numpy(noise).to(images))
    yield replace(part, images=images * CONTRAST)
    side = images.shape[-2:]
    small = functional.interpolate(images, scale_factor=SCALE, mode="bilinear", antialias=True)
    missing = [full - part for full, part in zip(side, small.shape[-2:], strict=True)]
    pad = (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2)
    yield replace(part, images=functional.pad(small, pad, mode="replicate"))
