"""Scaled weight standardization of many weights at once: the kernels behind autograd, to any order.

The first three orders run compiled, all weights of a call in one launch; what those cannot serve, and anything beyond,
is the formula in torch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _transforms_active
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import is_legacy_batchedtensor
from torch.compiler import is_compiling

from normforge.kernels.backends import AUTO, EAGER, resolve
from normforge.kernels.rows import launch_c
from normforge.kernels.rows.formula import Standardization, Standardized, standardize
from normforge.kernels.rows.layout import has_rows, like

_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def target_of(weights: Sequence[Tensor], gains: Sequence[Tensor]) -> str:
    """The target that serves these weights in one call, or "eager": the formula."""
    if is_compiling() or _len_torch_dispatch_stack() or _transforms_active():
        return EAGER
    first = weights[0]
    for w, g in zip(weights, gains, strict=True):
        same = w.dtype == g.dtype == first.dtype and w.device == g.device == first.device
        if type(w) not in _PLAIN or type(g) not in _PLAIN or not same or not has_rows(w) or not g.is_contiguous():
            return EAGER
    if first.dtype not in _DTYPES:
        return EAGER
    target = resolve(AUTO, first)
    return EAGER if target == "triton" and first.dtype == torch.float64 else target


def standardize_all(
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    hows: Sequence[Standardization],
    target: str,
    kept: Sequence[Standardized | None] | None = None,
) -> tuple[list[Tensor], Sequence[Standardized | None]]:
    """The standardized weights.

    Args:
        weights, gains: of each (out, ...) and (out,); of one dtype, on one device where the target is not "eager".
        hows: the rule of each.
        target: from `target_of`.
        kept: what was computed of the same weights and gains before, where it was; not computed again.

    Returns:
        Ŵ of each, and what may be kept.
    """
    if target == EAGER:
        return [standardize(w, g, how) for w, g, how in zip(weights, gains, hows, strict=True)], [None] * len(hows)
    if kept is None or None in kept:
        with torch.no_grad():
            kept = _kernels(target).forward(weights, gains, hows)
    made = kept  # mypy: none of them is None
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (*weights, *gains)):
        return [k.value for k in made if k is not None], kept
    return list(_Standardize.apply(target, hows, made, *weights, *gains)), kept


def _kernels(target: str) -> Any:
    if target == "c":
        return launch_c
    from normforge.kernels.rows import launch_triton  # Triton is imported where it is used

    return launch_triton


class _Standardize(torch.autograd.Function):
    """Ŵ of many weights, computed before."""

    @staticmethod
    def forward(ctx: Any, target: str, hows: Any, kept: Sequence[Standardized], *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.target, ctx.hows, ctx.statistics = target, hows, [k.saved for k in kept]
        ctx.save_for_backward(*tensors)
        return tuple(k.value.data for k in kept)  # each a tensor of its own, since what is kept may be asked for again

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        count = len(ctx.hows)
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        out: list[Tensor | None] = [None] * (2 * count)
        asked = [i for i, u in enumerate(cotangents) if u is not None and (needed[i] or needed[count + i])]
        if asked:
            weights, gains = [tensors[i] for i in asked], [tensors[count + i] for i in asked]
            us: list[Any] = [cotangents[i] for i in asked]
            hows, statistics = [ctx.hows[i] for i in asked], [ctx.statistics[i] for i in asked]
            if _transforms_active() or any(map(is_legacy_batchedtensor, us)):
                found = _gradients_by_torch(hows, us, weights, gains)
            else:
                found = _Gradients.apply(ctx.target, hows, statistics, *us, *weights, *gains)
            for place, i in enumerate(asked):
                out[i], out[count + i] = found[place], found[len(asked) + place]
        return None, None, None, *out


class _Gradients(torch.autograd.Function):
    """The gradients of weights and gains, from cotangents of Ŵ."""

    @staticmethod
    def forward(ctx: Any, target: str, hows: Any, statistics: Any, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.target, ctx.hows, ctx.statistics = target, hows, statistics
        ctx.save_for_backward(*tensors)
        us, weights, gains = _thirds(tensors)
        us = [like(u, w) for u, w in zip(us, weights, strict=True)]
        dws, dgains = _kernels(target).backward(us, weights, gains, hows, statistics)
        return (*dws, *dgains)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        tensors: Sequence[Tensor] = ctx.saved_tensors
        count = len(ctx.hows)
        if torch.is_grad_enabled():
            return None, None, None, *_again_by_torch(ctx.hows, tensors, cotangents)
        us, weights, gains = _thirds(tensors)
        us = [like(u, w) for u, w in zip(us, weights, strict=True)]
        of_w = [None if a is None else like(a, w) for a, w in zip(cotangents[:count], weights, strict=True)]
        of_gain = [None if b is None else b.contiguous() for b in cotangents[count:]]
        found = _kernels(ctx.target).again(of_w, of_gain, us, weights, gains, ctx.hows, ctx.statistics)
        return None, None, None, *(t for group in found for t in group)


def _thirds(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    n = len(tensors) // 3
    return tensors[:n], tensors[n : 2 * n], tensors[2 * n :]


def _gradients_by_torch(
    hows: Sequence[Standardization], us: Sequence[Tensor], weights: Sequence[Tensor], gains: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of the formula, differentiable in turn where gradients are enabled."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [t if again and t.requires_grad else t.detach().requires_grad_() for t in (*weights, *gains)]
        own = [t.view_as(t) for t in inputs]  # derivatives stop here, however the inputs depend on one another
        made = [standardize(w, g, h) for w, g, h in zip(own[: len(us)], own[len(us) :], hows, strict=True)]
        return list(torch.autograd.grad(made, own, list(us), create_graph=again))


def _again_by_torch(
    hows: Sequence[Standardization], tensors: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The derivative of the gradients, differentiable in turn."""
    own = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors]
    made = _gradients_by_torch(hows, *_thirds(own))
    pairs = [(m, c) for m, c in zip(made, cotangents, strict=True) if c is not None]
    if not pairs:
        return [None] * len(own)
    outputs, seeds = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, own, seeds, create_graph=True, allow_unused=True))
