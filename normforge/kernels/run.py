"""One functional custom op for every layer and every order, whose autograd rule calls itself with the next order.

The op mutates nothing: running statistics are outputs, and the module updates its buffers. Saved statistics are
caches of functions of x, so the gradient to them is None and derivatives are total in x.

Two doors lead to it. Compilers and tracers take `run`, the registered op. A plain eager call takes `run_plain`,
an autograd.Function around the same execution and the same rule, which spares it the dispatcher's bookkeeping for
lists of tensors, most of the time of a small layer; tests hold the two to equal numbers and equal errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import is_legacy_batchedtensor
from torch.compiler import is_compiling
from torch.onnx import is_in_onnx_export

from normforge.errors import BackendError
from normforge.kernels.execute import allocate, execute
from normforge.kernels.job import Job
from normforge.kernels.prepare import compile_ahead
from normforge.kernels.transforms import forward_by_torch, gradients_by_torch

Runner = Callable[[list[Tensor], str], Sequence[Tensor]]


@torch.library.custom_op("normforge::run", mutates_args=())
def run(inputs: list[Tensor], key: str) -> list[Tensor]:
    """Run the job of `key` on its operands; see `normforge.codegen.orders.program` for both lists."""
    return execute(Job.parse(key), inputs)


@run.register_fake
def _(inputs: list[Tensor], key: str) -> list[Tensor]:
    return allocate(Job.parse(key), inputs)


def _gradients(ctx: Any, grads: Sequence[Tensor | None], needed: Sequence[bool], runner: Runner) -> list[Tensor | None]:
    """Gradients of the operands: the next order, run on the operands, the cotangents and the statistics. Outputs
    without a cotangent are left out of it."""
    job: Job = ctx.job
    tensors = ctx.saved_tensors
    count = len(tensors) - job.saved  # of the operands, statistics left out
    seeds = {i: g for i, g in enumerate(grads[: job.differentiable]) if g is not None}
    out: list[Tensor | None] = [None] * len(needed)
    if not seeds:
        return out
    if not job.order and len(seeds) < job.differentiable:  # of several results, some not used
        like = next(iter(seeds.values()))
        seeds = {i: seeds.get(i, torch.zeros_like(like)) for i in range(job.differentiable)}
    after = job.after(tuple(seeds))
    if transforms_active() or any(map(is_legacy_batchedtensor, seeds.values())):
        results: Sequence[Tensor] = gradients_by_torch(after, [*tensors[:count], *seeds.values(), *tensors[count:]])
    else:
        results = runner([*tensors[:count], *seeds.values(), *tensors[count:]], after.key)
    for k, r in zip(after.gradients_of, results, strict=True):
        if needed[k]:
            out[k] = r
    return out


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], str], output: list[Tensor]) -> None:
    """Forward keeps its operands and its statistics; a derivative was given the statistics."""
    operands, key = inputs
    ctx.set_materialize_grads(False)
    ctx.job = job = Job.parse(key)
    ctx.save_for_backward(*operands, *output[job.public :])


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[list[Tensor | None], None]:
    return _gradients(ctx, grads, ctx.needs_input_grad[0], run), None


run.register_autograd(_backward, setup_context=_setup_context)


class LayerFunction(torch.autograd.Function):
    """The op for plain eager tensors.

    Of forward the results alone are outputs that autograd sees; the statistics go through a list, which spares autograd
    the tracking of tensors that have no gradient.
    """

    @staticmethod
    def forward(ctx: Any, job: Job, statistics: list[Tensor], *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The differentiable outputs of the job, run on its operands."""
        outputs = execute(job, inputs)
        ctx.set_materialize_grads(False)
        ctx.job = job
        ctx.save_for_backward(*inputs, *outputs[job.public :])
        if job.order:
            return tuple(outputs)
        results = job.differentiable
        statistics += outputs[results:]
        return outputs[0] if results == 1 else tuple(outputs[:results])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the operands: the next order, differentiable in turn."""
        return (None, None, *_gradients(ctx, grads, ctx.needs_input_grad[2:], run_plain))


def run_plain(inputs: list[Tensor], key: str) -> Sequence[Tensor]:
    """The operator `run` for plain eager tensors; hands over to it where anything traces, fakes or intercepts."""
    if is_compiling() or _len_torch_dispatch_stack():
        if is_in_onnx_export() and not (job := Job.parse(key)).order:
            return forward_by_torch(job, inputs)
        return run(inputs, key)  # type: ignore[no-any-return]
    tracked = False
    for t in inputs:
        if type(t) not in _PLAIN or t.is_neg():
            if type(t).__name__ == "DTensor":
                raise BackendError(
                    "layers take no DTensor: give its part, x.to_local(), where each process has samples of its own; "
                    "under DDP and FSDP2 layers are given plain tensors"
                )
            return run(inputs, key)  # type: ignore[no-any-return]
        if t.requires_grad:
            tracked = True
    job = Job.parse(key)
    if not tracked or not is_grad_enabled():
        return execute(job, inputs)
    compile_ahead(job, inputs[0])
    statistics: list[Tensor] = []
    result = LayerFunction.apply(job, statistics, *inputs)
    if job.order:
        return result  # type: ignore[no-any-return]
    return [*(result if job.differentiable > 1 else (result,)), *statistics]


_PLAIN = (Tensor, torch.nn.Parameter)
