"""Random streams: each is named by (seed, purpose, index), so resuming repeats nothing and order does not matter."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def stream(seed: int, purpose: str, index: int) -> np.random.Generator:
    """The generator of one purpose at one index."""
    return np.random.default_rng([seed, crc32(purpose.encode()), index])


def torch_seed(seed: int, purpose: str, index: int) -> int:
    """A seed for `torch.Generator.manual_seed` from the same naming."""
    return int(stream(seed, purpose, index).integers(2**63))
