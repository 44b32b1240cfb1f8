"""A sheet of samples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from normforge.errors import OptionError
from normforge.streams import torch_seed
from normforge.train.transfer.synthesis.biggan import Generator
from normforge.train.transfer.synthesis.sampling import images, noise

ROWS, COLUMNS = 16, 10
"""Classes at most, and samples of each."""
PADDING = 2  # pixels around each sample
SMALLEST = 64  # pixels that a sample's side has in the picture, or more


def sheet(generator: Generator, file: Path, truncation: float | None = None) -> Path:
    """Write a picture of samples: a row a class, in a column all of the same noise. The noise is the same in every call
    for as much of it as the generator takes.

    Args:
        generator: in inference mode; see `standing`.
        file: of the picture; the ending says the format.
        truncation: of the noise.

    Returns:
        The file.

    Raises:
        OptionError: torchvision cannot be imported.
    """
    rows = min(ROWS, generator.classes)
    rng = torch.Generator().manual_seed(torch_seed(0, "synthesis pictures", 0))
    z = noise(COLUMNS, generator.noise, rng, truncation).repeat(rows, 1)
    drawn = images(generator, z, torch.arange(rows).repeat_interleave(COLUMNS)).cpu()
    write(drawn, COLUMNS, file)
    return file


def write(samples: Tensor, columns: int, file: Path) -> None:
    """Write images (N, 1 or 3, S, S) between -1 and 1 in rows of `columns`; small ones are enlarged by a whole
    number.

    Raises:
        OptionError: torchvision cannot be imported.
    """
    try:
        from torchvision.utils import make_grid, save_image
    except (ImportError, RuntimeError) as e:  # RuntimeError: of one built for another torch
        reason = str(e).split("\n")[0]
        raise OptionError(
            f"pictures need torchvision, which cannot be imported: {reason}: pip install torchvision"
        ) from None
    times = -(-SMALLEST // samples.shape[-1])
    large = ((samples + 1) / 2).repeat_interleave(times, 2).repeat_interleave(times, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_image(make_grid(large, nrow=columns, padding=PADDING, pad_value=1), file)
