"""One functional custom op for every layer and every order, whose autograd rule calls itself with the next order.

The op mutates nothing: running statistics are outputs, and the module updates its buffers. Saved statistics are
caches of functions of x, so the gradient to them is None and derivatives are total in x.

Two doors lead to it. Compilers and tracers take `run`, the registered op. A plain eager call takes `Direct`, an
autograd.Function around the same execution and the same rule, which spares it the dispatcher's bookkeeping for
lists of tensors, most of the time of a small layer; tests hold the two to equal numbers and equal errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normforge.kernels.job import Job, allocate, execute

Runner = Callable[[list[Tensor], str], Sequence[Tensor]]


@torch.library.custom_op("normforge::run", mutates_args=())
def run(inputs: list[Tensor], key: str) -> list[Tensor]:
    """Run the job of `key` on its operands; see `normforge.codegen.orders.program` for both lists."""
    return execute(Job.parse(key), inputs)


@run.register_fake
def _(inputs: list[Tensor], key: str) -> list[Tensor]:
    return allocate(Job.parse(key), inputs)


def _save(ctx: Any, inputs: Sequence[Tensor], key: str, outputs: Sequence[Tensor]) -> None:
    """Forward keeps its operands and its statistics; a derivative was given the statistics."""
    job = Job.parse(key)
    count = len(job.program.saved)
    saved = outputs[len(outputs) - count :] if job.order == 0 and count else ()
    ctx.key, ctx.count = key, len(inputs)
    ctx.save_for_backward(*inputs, *saved)


def _gradients(ctx: Any, grads: Sequence[Tensor | None], needed: Sequence[bool], runner: Runner) -> list[Tensor | None]:
    """Gradients of the operands: the next order, run on the operands, the cotangents and the statistics. Outputs
    without a cotangent are left out of it."""
    job = Job.parse(ctx.key)
    tensors = list(ctx.saved_tensors)
    count = len(tensors) - len(job.program.saved)
    given, saved = tensors[:count], tensors[count:]
    seeds = {i: g for i, g in enumerate(grads[: job.differentiable]) if g is not None}
    out: list[Tensor | None] = [None] * ctx.count
    if not seeds:
        return out
    after = job.after(tuple(seeds))
    results = runner([*given, *seeds.values(), *saved], after.key)
    for k, r in zip(after.gradients_of, results, strict=True):
        if needed[k]:
            out[k] = r
    return out


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], str], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    _save(ctx, inputs[0], inputs[1], output)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[list[Tensor | None], None]:
    return _gradients(ctx, grads, ctx.needs_input_grad[0], run), None


run.register_autograd(_backward, setup_context=_setup_context)


class Direct(torch.autograd.Function):
    """The op for plain eager tensors."""

    @staticmethod
    def forward(ctx: Any, key: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Operands in, outputs out."""
        job = Job.parse(key)
        outputs = execute(job, inputs)
        if job.order == 0:
            ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)
        _save(ctx, inputs, key, outputs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The next order, differentiable in turn."""
        return (None, *_gradients(ctx, grads, ctx.needs_input_grad[1:], direct))


def direct(inputs: list[Tensor], key: str) -> Sequence[Tensor]:
    """`run` for plain eager tensors; hands over to it where anything traces, fakes or intercepts."""
    outputs: Sequence[Tensor]
    special = any(type(t) not in _PLAIN or t.is_neg() for t in inputs)
    if special or torch._C._len_torch_dispatch_stack() or torch.compiler.is_compiling():
        outputs = run(inputs, key)
    elif torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        Job.parse(key).prepare(inputs[0])
        outputs = Direct.apply(key, *inputs)
    else:
        outputs = execute(Job.parse(key), inputs)
    return outputs


_PLAIN = (Tensor, torch.nn.Parameter)
