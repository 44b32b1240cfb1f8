"""Cooperative plans on a device: the bits of the multi-launch kind, alone, on several streams, and replayed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import Case
from steps import COOPERATIVE, COOPERATIVE_GROUPS, COOPERATIVE_SHAPE
from torch import Tensor

import normforge as nf
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import plan_dims
from normforge.ir.types import FULL
from normforge.kernels.job import layer_text
from normforge.kernels.launch_cooperative import CooperativeObject
from normforge.kernels.prepare import statistic_shape

SHAPE, GROUPS = COOPERATIVE_SHAPE, COOPERATIVE_GROUPS
DIMS = plan_dims(SHAPE, GROUPS)


def plan_of(name: str, order: int) -> Plan:
    (case,) = (c for c in COOPERATIVE if (c.layer, c.order) == (name, order))
    assert case.plan is not None
    return case.plan


def load(plan: Plan, name: str) -> CooperativeObject:
    from normforge.kernels.launch_triton import load as load_plan  # imports triton

    loaded = load_plan(plan, layer_text(nf.layers[name]))
    assert isinstance(loaded, CooperativeObject)
    return loaded


def tensors(plan: Plan, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Operands (variances positive) and outputs full of NaN."""
    generator = torch.Generator("cuda").manual_seed(seed)
    like = torch.empty(SHAPE, device="meta")
    given, made = [], []
    for node in plan.operands:
        shape = SHAPE if node.axes == FULL else statistic_shape(node.axes, like, GROUPS)
        value = torch.randn(shape, device="cuda", generator=generator)
        given.append(value.abs() + 0.5 if node.name.startswith("saved") else value)
    for _, node in plan.outputs:
        shape = SHAPE if node.axes == FULL else statistic_shape(node.axes, like, GROUPS)
        made.append(torch.full(shape, float("nan"), device="cuda"))
    return given, made


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("case", COOPERATIVE, ids=lambda c: f"{c.layer} {c.order}")
def test_bits_of_the_twin(case: Case) -> None:
    order, plan = case.order, plan_of(case.layer, case.order)
    whole = load(plan, case.layer)
    given, made = tensors(plan, order)
    expected = [torch.full_like(m, float("nan")) for m in made]
    whole.twin([*given, *expected], DIMS)
    for _ in range(3):
        for m in made:
            m.fill_(float("nan"))
        whole([*given, *made], DIMS)
        assert not whole.refused
        assert same(made, expected)


def test_streams_and_graphs() -> None:
    """Each call has its own counters; a graph zeroes them again at each replay."""
    plan = plan_of("bn-relu", 1)
    whole = load(plan, "bn-relu")
    sets = [tensors(plan, seed) for seed in range(3)]
    expected = []
    for given, made in sets:
        whole.twin([*given, *made], DIMS)
        expected.append([m.clone() for m in made])
    streams = [torch.cuda.Stream() for _ in sets]
    torch.cuda.synchronize()
    for _ in range(5):
        for stream, (given, made) in zip(streams, sets, strict=True):
            with torch.cuda.stream(stream):
                whole([*given, *made], DIMS)
    torch.cuda.synchronize()
    assert not whole.refused
    assert all(same(made, want) for (_, made), want in zip(sets, expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        whole([*sets[0][0], *sets[0][1]], DIMS)
    for _ in range(3):
        for m in sets[0][1]:
            m.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert same(sets[0][1], expected[0])


def test_too_many_programs_run_the_twin() -> None:
    """A grid that cannot run at once is refused by the driver, never waited for."""
    plan = plan_of("bn-relu", 0)
    whole = replace(load(plan, "bn-relu"), refused={}, _calls={})
    given, made = tensors(plan, 0)
    whole([*given, *made], DIMS)
    assert not whole.refused
    (call,) = whole._calls.values()
    call.ready = {key: [k._replace(programs=1 << 20) for k in kernels] for key, kernels in call.ready.items()}
    expected = [m.clone() for m in made]
    for m in made:
        m.fill_(float("nan"))
    whole([*given, *made], DIMS)
    assert "cooperative" in next(iter(whole.refused.values()))
    assert same(made, expected)
