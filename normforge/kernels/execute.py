"""Running a job on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.autograd.profiler import record_function

from normforge.codegen.eager import arithmetic_dtype
from normforge.kernels.call import run_call
from normforge.kernels.job import Job
from normforge.kernels.prepare import prepare, statistic_shape

MAX_CALLS = 1024  # prepared calls that a job keeps


def allocate(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a job: full ones like x (its strides where it is dense, else its order of strides), gradients
    like what they are gradients of, statistics in the arithmetic dtype. Works on fake tensors too."""
    x = inputs[0]
    outputs = []
    for like, which in job.specs:
        if like == "full":
            outputs.append(torch.empty_like(x))
        elif like == "operand":
            outputs.append(torch.empty_like(inputs[which], memory_format=torch.contiguous_format))
        else:
            shape = statistic_shape(which, x, job.groups)
            outputs.append(torch.empty(shape, dtype=arithmetic_dtype(x.dtype), device=x.device))
    return outputs


def execute(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a job on real tensors; a profiler sees it by the name of its layer."""
    if _profiler_enabled():
        with record_function(job.title):
            return _execute(job, inputs)
    return _execute(job, inputs)


def _execute(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    x = inputs[0]
    key = (x.dtype, x.device, x.shape, x.stride())
    call = job.calls.get(key)
    if call is None:
        if x.numel() == 0:
            return [o.zero_() for o in allocate(job, inputs)]
        call = prepare(job, x)
        if call is None:
            return _permuted(job, inputs)
        if len(job.calls) >= MAX_CALLS:
            job.calls.clear()
        job.calls[key] = call
    if call.current >= 0 and torch.cuda.current_device() != call.current:
        with torch.cuda.device(call.current):
            return run_call(call, inputs)
    return run_call(call, inputs)


def _permuted(job: Job, inputs: Sequence[Tensor]) -> list[Tensor]:
    """x lies in memory in some other order of its axes: compute on copies, return in the order of x."""
    outputs = allocate(job, inputs)
    shape = inputs[0].shape
    plain = [t.contiguous() if t.shape == shape and t.dim() > 1 else t for t in inputs]
    for o, r in zip(outputs, _execute(job, plain), strict=True):
        o.copy_(r)
    return outputs
