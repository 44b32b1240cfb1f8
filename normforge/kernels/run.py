"""One functional custom op for every layer and every order, whose autograd rule calls itself with the next order.

The op mutates nothing: running statistics are outputs, and the module updates its buffers. Saved statistics are
caches of functions of x, so the gradient to them is None and derivatives are total in x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normforge.kernels.job import Job, allocate, execute


@torch.library.custom_op("normforge::run", mutates_args=())
def run(inputs: list[Tensor], key: str) -> list[Tensor]:
    """Run the job of `key` on its operands; see `normforge.codegen.orders.program` for both lists."""
    return execute(Job.parse(key), inputs)


@run.register_fake
def _(inputs: list[Tensor], key: str) -> list[Tensor]:
    return allocate(Job.parse(key), inputs)


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], str], output: list[Tensor]) -> None:
    tensors, key = inputs
    job = Job.parse(key)
    ctx.key = key
    # Forward keeps its statistics; a derivative was given them.
    saved = output[len(output) - len(job.program.saved) :] if job.order == 0 and job.program.saved else []
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *saved)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[list[Tensor | None], None]:
    job = Job.parse(ctx.key)
    p = job.program
    after = job.next()
    tensors = list(ctx.saved_tensors)
    given, saved = tensors[: ctx.count], tensors[ctx.count :]
    if job.order:
        given, saved = given[: ctx.count - len(p.saved)], given[ctx.count - len(p.saved) :]
    position = {node: i for i, node in enumerate(p.operands)}
    if job.order == 0:
        like = [given[0]]
    else:
        like = [tensors[position[node]] for node in p.wrt_before]
    seeds = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, like, strict=False)]
    results = run([*given, *seeds, *saved], after.key)
    out: list[Tensor | None] = [None] * ctx.count
    for node, r in zip(after.program.wrt_before, results, strict=True):
        if ctx.needs_input_grad[0][position[node]]:
            out[position[node]] = r
    return out, None


run.register_autograd(_backward, setup_context=_setup_context)
