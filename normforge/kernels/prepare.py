"""Preparation of a call, done once for a job and a form of input: its plan, its kernel, the shapes of its tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normforge.codegen.eager import arithmetic_dtype
from normforge.codegen.plan import is_data
from normforge.codegen.registry import find_target
from normforge.codegen.shapes import Dims
from normforge.ir.node import Node
from normforge.ir.types import B, G, K, S
from normforge.kernels.backends import RUNNERS, Kernel, serving
from normforge.kernels.call import PreparedCall
from normforge.kernels.empty import Allocator, allocator
from normforge.kernels.job import Job, layer_text
from normforge.kernels.pool import MIN_BYTES, POOL, Form, form_of

_differentiates_twice = False  # has this process asked for the gradient of a gradient?
_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def layout_of(like: Tensor) -> str | None:
    """The layout of a tensor (N, C, *spatial) in memory: "nchw", "nhwc", or None for any other order of axes.

    Without space, or with one position, both hold; channels are then walked as contiguous.
    """
    last = like.movedim(1, -1).is_contiguous()
    if like.is_contiguous():
        positions = 1
        for extent in like.shape[2:]:
            positions *= extent
        return "nhwc" if last and positions == 1 else "nchw"
    return "nhwc" if last else None


def statistic_shape(axes: int, x: Tensor, groups: int) -> tuple[int, ...]:
    """The shape of a statistic: b, then c or g, then all positions flattened."""
    n, c = x.shape[:2]
    shape = [n] if axes & B else []
    if axes & G:
        shape.append(c if axes & K else groups)
    if axes & S:
        shape.append(x[0, 0].numel() if n and c else 0)
    return tuple(shape)


def prepare(job: Job, x: Tensor) -> PreparedCall | None:
    """A prepared call of a job; None where the axes of x lie in memory in an order that no kernel walks."""
    like = torch.empty_like(x, device="meta")
    layout = layout_of(like)
    if layout is None:
        return None
    n, c = x.shape[:2]
    dims = (n, job.groups, c // job.groups, x.numel() // (n * c))
    strides, wide = like.stride(), arithmetic_dtype(x.dtype)
    empty = allocator(x.device)
    large = x.is_cpu and x.nbytes >= MIN_BYTES
    full = _pooled(form_of(x.shape, strides, x.dtype)) if large else empty

    def shape(node: Node) -> tuple[int, ...]:
        return tuple(x.shape) if is_data(node) else statistic_shape(node.axes, x, job.groups)

    outputs = []
    for (like_what, which), (_, node) in zip(job.specs, job.program.graph.outputs, strict=True):
        if like_what == "full":
            outputs.append((full, shape(node), strides, x.dtype, -1))
        else:
            dense = torch.empty(shape(node), device="meta").stride()
            outputs.append((empty, shape(node), dense, wide, which if like_what == "operand" else -1))
    return PreparedCall(
        x.device,
        x.device.index if x.is_cuda else -1,
        strides,
        full,
        wide,
        tuple((math.prod(shape(node)), is_data(node)) for node in job.program.operands),
        tuple(outputs),
        kernel_for(job, x.dtype, layout, x.device, dims),
        dims,
    )


def _pooled(form: Form) -> Allocator:
    return lambda *_: POOL.take(form)


def kernel_for(job: Job, dtype: torch.dtype, layout: str, device: torch.device, dims: Dims) -> Kernel:
    """The kernel for a dtype, layout, device and shape, compiled when it is first asked for."""
    target = serving(job.target, device)
    runner = RUNNERS[target]
    described = runner.describe(device) if runner.describe else None
    plan = find_target(target).plan(job.program, _NAMES[dtype], layout, dims, described)
    key = (dtype, layout, target, plan.kind)
    if key not in job.kernels:
        job.kernels[key] = runner.load(plan, layer_text(job.layer))
    return job.kernels[key]


def compile_ahead(job: Job, x: Tensor) -> None:
    """Start compiling for a first call on inputs like x, of which a gradient may be asked for, and for what follows it.

    After forward comes backward. After a call of backward that may itself be differentiated, and from then on in this
    process after every forward, comes the gradient of that of x; which other gradients will have a cotangent, nobody
    knows yet. All are compiled at once.
    """
    form = (x.dtype, x.is_contiguous())
    if form in job.compiled_ahead:
        return
    job.compiled_ahead.add(form)
    global _differentiates_twice
    _differentiates_twice |= job.order > 0
    layout = layout_of(torch.empty_like(x, device="meta"))
    target = serving(job.target, x.device)
    prefetch = RUNNERS[target].prefetch
    if prefetch is not None and layout is not None and job.order < 2:
        jobs = [job, job.after()]
        if not job.order and _differentiates_twice:
            jobs.append(jobs[-1].after())
        planned = find_target(target).plan
        prefetch((planned(j.program, _NAMES[x.dtype], layout) for j in jobs), layer_text(job.layer))
