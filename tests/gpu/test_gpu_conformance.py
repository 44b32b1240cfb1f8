"""Compiled kernels on a device: every kind of plan against float64, and whole modules against torch's derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case, table
from derivatives import check, draw, expected
from reference import check_against_eager, check_extreme
from steps import DETERMINISTIC, EXTREME, MODULES, MUTATED, Module, mutated

import normforge as nf
from normforge.codegen.plan import Plan


def load(case: Case, plan: Plan | None) -> Any:
    from normforge.kernels.launch_triton import load as load_plan  # imports triton

    assert plan is not None, f"there is no such plan any more: run tests/gpu/cases.py ({case})"
    return load_plan(plan, case.title)


@pytest.mark.parametrize("case", table(), ids=str)
def test_kernels(case: Case) -> None:
    """Right, and the same bits every time."""
    run, values = load(case, case.plan), draw(case)
    want = expected(case, values)
    first, again, third = (check(case, run, values, want, "cuda") for _ in range(3))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, third, strict=True))
    assert not getattr(run, "refused", None), f"{case} ran another kind: {run.refused}"


@pytest.mark.parametrize("case", MUTATED, ids=lambda case: case.kind)
def test_a_kernel_without_a_term_fails(case: Case) -> None:
    values = draw(case)
    want = expected(case, values)
    with pytest.raises(AssertionError, match="error"):
        check(case, load(case, mutated(case)), values, want, "cuda")


@pytest.mark.parametrize("step", MODULES, ids=str)
def test_modules(step: Module) -> None:
    dtype = getattr(torch, step.dtype)
    check_against_eager(
        nf.parse(step.layer), step.shape, step.groups, dtype, step.layout, backend="triton", device="cuda"
    )


@pytest.mark.parametrize("step", EXTREME, ids=str)
def test_large_mean(step: Module) -> None:
    check_extreme(step.layer, "triton", step.layout, device="cuda")


@pytest.mark.parametrize("step", DETERMINISTIC, ids=str)
def test_large_tensor_is_the_same_every_time(step: Module) -> None:
    module = nf.compile(step.layer, channels=step.shape[1], backend="triton").cuda()
    x = torch.randn(step.shape, device="cuda", requires_grad=True)
    results = []
    for _ in range(3):
        y = module(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
