"""Memory of small outputs and of workspace, without the parsing of arguments by `torch.empty`, which takes longer than
the allocation; and for tensors that have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

# shape, strides, dtype -> a tensor with any content
Allocator = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]


@lru_cache(maxsize=64)
def allocator(device: torch.device) -> Allocator:
    """The fastest `torch.empty_strided` for a device: Inductor's, where its generated code has a shorter one. On CUDA
    it allocates on the current device, which has to be this one."""
    known = device.type in ("cpu", "cuda")
    found: Allocator | None = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None) if known else None
    if found is None:
        return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device=device)
    return found


def addressed(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[int]]:
    """The tensors of a launch, and their addresses. What autograd knows to be zero may come without memory (a
    ZeroTensor): there it has zeros in memory in its place."""
    addresses = [t.data_ptr() for t in tensors]
    if 0 in addresses:
        tensors = [torch.empty_like(t, device=t.device).copy_(t) if t._is_zerotensor() else t for t in tensors]
        addresses = [t.data_ptr() for t in tensors]
    return tensors, addresses
