"""Random crops and mirroring of training images."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from normforge.train.config import DataConfig


def augment(images: torch.Tensor, rng: np.random.Generator, config: DataConfig) -> torch.Tensor:
    """Crop and mirror each image at random.

    Args:
        images: (N, C, S, S), on any device.
        rng: draws offsets and mirrorings; on the host, so that they are the same for every device.
        config: `crop`, `pad` and `flip`.

    Returns:
        (N, C, crop, crop) on the images' device, or `images` themselves where nothing is asked.
    """
    if config.crop is None and not config.flip:
        return images
    count, channels, side, _ = images.shape
    crop = side if config.crop is None else config.crop
    rows = columns = np.broadcast_to(np.arange(crop), (count, crop))
    if config.crop is not None:
        images = pad(images, [config.pad] * 4)
        top, left = rng.integers(side + 2 * config.pad - crop + 1, size=(2, count, 1))
        rows, columns = rows + top, columns + left
    if config.flip:
        columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    # One gather of (N, C, crop, crop): image, channel, row and column of each pixel.
    return images[
        torch.arange(count, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[:, None, None],
        _on(images, rows)[:, None, :, None],
        _on(images, columns)[:, None, None, :],
    ]


def _on(images: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(index)).to(images.device)  # a copy: broadcast and mirrored arrays have no storage
