"""Jobs by torch's operations, where compiled kernels cannot serve.

A layer called under a torch.func transform runs on its formula (see `backends.resolve`). Here are the other cases:
forward ran compiled, and then its backward is asked for under a transform, as `is_grads_batched=True` does; and an
export to ONNX, which knows torch's operators alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normforge.codegen.eager import run_eager
from normforge.kernels.backends import note_transforms
from normforge.kernels.job import Job


def forward_by_torch(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The results of a layer, and in training what running statistics take in."""
    results, statistics = _formula(job, inputs)
    return [*results, *statistics]


def gradients_by_torch(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that a job of order 1 or more computes.

    Args:
        job: of a derivative.
        inputs: its operands; statistics, which come last, are not used.
    """
    note_transforms()
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        operands = [_apart(t, again) for t in _own(job, inputs)]
        return _differentiated(job, operands, again)


def _apart(t: Tensor, again: bool) -> Tensor:
    """An operand that derivatives stop at, however the operands depend on one another; and go on from, if asked."""
    if again and t.requires_grad:
        return t.view_as(t)
    batched = torch._C._functorch.is_batchedtensor(t) or torch._C._functorch.is_legacy_batchedtensor(t)
    return t if batched or not t.is_floating_point() else t.detach().requires_grad_()


def _own(job: Job, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The operands without the statistics that forward saved."""
    return inputs[: len(inputs) - job.saved] if job.order else inputs


def _differentiated(job: Job, operands: Sequence[Tensor], again: bool) -> list[Tensor]:
    """The results of a job that can be given cotangents."""
    if job.order == 0:
        return _formula(job, operands)[0]
    masks = job.seeded
    before = Job.parse(
        Job(job.order - 1, job.train, job.groups, job.layer, masks[: job.order - 2], job.target, job.single).key
    )
    count = len(_own(before, before.program.operands))  # type: ignore[arg-type]
    inner, seeds = operands[:count], operands[count:]
    made = _differentiated(before, inner, True)
    mask = masks[job.order - 2] if job.order > 1 else None
    chosen = made if mask is None else [made[i] for i in mask]
    wanted = [inner[i] for i in job.gradients_of]
    found: Any = torch.autograd.grad(chosen, wanted, list(seeds), create_graph=again, materialize_grads=True)
    return list(found)


def _formula(job: Job, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    named = dict(zip((n.name for n in job.program.operands), operands, strict=True))
    values = {n.name: named.pop(n.name) for n in (*job.layer.inputs, *job.layer.params)}
    return run_eager(job.layer, values, job.groups, buffers=None if job.train else named)
