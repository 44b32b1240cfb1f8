"""The processes that train together: torchrun's, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from normforge.errors import NormforgeError, OptionError
from normforge.train.device import checked_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: its number. world: how many there are.
        device: of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Does this one print and write?"""
        return self.rank == 0

    def mean(self, loss: Tensor) -> Tensor:
        """The mean of a number over all processes."""
        if self.world == 1:
            return loss
        total = loss.detach().clone()
        distributed.all_reduce(total)
        return total / self.world

    def sums(self, *numbers: float) -> list[float]:
        """Sums over all processes, in float64."""
        if self.world == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(totals)
        return totals.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """A value of each process, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes those of the first, such as running statistics."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def together(self, work: Callable[[], T]) -> T:
        """What a work gives in this process, or its mistake in any, raised in all: or some would wait for the others.

        Raises:
            NormforgeError: of this process, or of another one.
        """
        error: NormforgeError | None = None
        try:
            value = work()
        except NormforgeError as e:
            error = e
        said = [text for text in self.gathered(None if error is None else str(error)) if text is not None]
        if error is not None:
            raise error
        if said:
            raise OptionError(said[0])
        return value

    def wrapped(self, model: nn.Module, parallel: str) -> nn.Module | None:
        """What a step calls in the model's place; None is the model itself. With "fsdp" the model is changed.

        Raises:
            OptionError: FSDP2 for one process.
        """
        if self.world == 1:
            if parallel == "fsdp":
                raise OptionError("run.parallel = fsdp shards a model over processes: start several, by torchrun")
            return None
        if parallel == "ddp":
            ids = None if self.device.type == "cpu" else [self.device]
            return DistributedDataParallel(model, device_ids=ids)
        return _sharded(model)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes of torchrun, which are told by its environment, met and parted from; or this one alone.

    Args:
        device: auto, cpu or cuda.

    Raises:
        OptionError: more processes on a machine than it has GPUs, or no GPU where one is asked for.
    """
    kind = checked_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes(0, 1, torch.device(kind))
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise OptionError(
                f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local)
        place = torch.device("cuda", local)
    else:
        place = torch.device(kind)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), place)
    finally:
        distributed.destroy_process_group()


def _sharded(model: nn.Module) -> nn.Module:
    """The model with its own rows of parameters alone (FSDP2), a unit for each larger member of a list of modules.

    Single numbers stay whole, since FSDP2 takes none: their gradients are averaged here.
    """
    from torch.distributed.fsdp import fully_shard

    world: int = distributed.get_world_size()
    whole = {p for p in model.parameters() if p.ndim == 0}

    def average(p: Tensor) -> None:
        assert p.grad is not None
        distributed.all_reduce(p.grad)
        p.grad /= world

    for p in whole:
        p.register_post_accumulate_grad_hook(average)
    for module in [*model.modules()]:
        if isinstance(module, nn.Sequential | nn.ModuleList):
            for child in module:
                if sum(p.numel() for p in child.parameters()) >= _UNIT and not isinstance(child, nn.Sequential):
                    fully_shard(child, ignored_params=whole)
    fully_shard(model, ignored_params=whole)
    return model


_UNIT = 1 << 16  # numbers of a module that has an exchange of its own


def gathered(tree: Any) -> Any:
    """A tree of dicts and lists with whole tensors in the place of sharded ones, in all processes."""
    if isinstance(tree, DTensor):
        return tree.full_tensor()
    if isinstance(tree, dict):
        return {k: gathered(v) for k, v in tree.items()}
    return [gathered(v) for v in tree] if isinstance(tree, list) else tree


def sharded_as(whole: Any, like: Any) -> Any:
    """The inverse of `gathered`, for a tensor beside one that has its place."""
    if isinstance(like, DTensor) and isinstance(whole, Tensor) and whole.shape == like.shape:
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
    return whole
