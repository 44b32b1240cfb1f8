"""Which tensors have their rows one after the other in memory, and others made so."""

from __future__ import annotations

import torch
from torch import Tensor

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def has_rows(t: Tensor) -> bool:
    """True where the elements of t[0] lie together in memory, then those of t[1], and so on, without gaps."""
    if t.is_contiguous():
        return True
    form = _LAST.get(t.dim())
    return form is not None and t.is_contiguous(memory_format=form)


def like(t: Tensor, other: Tensor) -> Tensor:
    """t, with its elements in the order in memory that those of the other have, which has rows, and of its dtype."""
    if t.stride() == other.stride() and t.dtype == other.dtype and not t.is_neg() and not t._is_zerotensor():
        return t
    return torch.empty_like(other).copy_(t)
