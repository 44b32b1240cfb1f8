"""Moments over the batch of several processes: what SyncBatchNorm is to BatchNorm, for any layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from normforge.codegen.eager import Gather

Model = TypeVar("Model", bound=nn.Module)


def gather_over(group: Any) -> Gather | None:
    """What exchanges statistics in a group of processes; None where there is one process alone."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size(group) < 2:
        return None
    return lambda vector: _AllGather.apply(vector, group)


class _AllGather(torch.autograd.Function):
    """The vectors of all ranks, in their order. Backward sums the gradients of all ranks, and is differentiable."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, group: Any) -> tuple[Tensor, ...]:
        ctx.group = group
        vector = vector.contiguous()
        found = [torch.empty_like(vector) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(found, vector, group=group)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _SumOfMine.apply(torch.stack(grads), ctx.group), None


class _SumOfMine(torch.autograd.Function):
    """Of rows (ranks, n), one for each rank, the sum over all processes of the row of this one: (n,)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any) -> Tensor:
        ctx.group = group
        # Gathered and added in the order of ranks, so that no bit depends on who came first.
        every: Sequence[Tensor] = [torch.empty_like(rows) for _ in range(len(rows))]
        distributed.all_gather(list(every), rows.contiguous(), group=group)
        return torch.stack(list(every))[:, distributed.get_rank(group)].sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.stack(_AllGather.apply(grad, ctx.group)), None
