"""Plans: factored sums mean what they meant, and need one reducing sweep in every derivative."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from named import LAYERS

import normforge as nf
from normforge.codegen.c.emit import emit_c
from normforge.codegen.orders import program
from normforge.codegen.plan import LAYOUTS, Plan
from normforge.codegen.registry import find_target
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kernels import SweepKernel
from normforge.codegen.triton.kinds import KINDS, plan_of_kind
from normforge.codegen.triton.launches import TritonSchedule
from normforge.ir import evaluate, verify
from normforge.ir.types import FULL
from normforge.passes.factor import Factor

TWO_LEVELS = [
    "sigmoid(x / std[w,h,c/g](x)) * x / rms[b,w,h](x * sigmoid(x) / std[w,h](x)) * gamma + beta",
    "tanh(x / rms[w,h](x - mean[b,w,h](x))) / std[w,h,c](x * sigmoid(v1 * x / std[w,h,c/g](x))) * gamma + beta",
]
COLUMN_LAYERS = {"layernorm-gelu", "rmsnorm"}
WITHOUT_SUMS = {"dyt", "derf"}
# Moments of each sample beside those of the batch, where channels are contiguous: no tile holds both.
NOT_RESIDENT = {(name, "nhwc") for name in ("evonorm-b0", "evonorm-b1", "evonorm-b2")}
GOLDEN = Path(__file__).parents[1] / "goldens" / "plans.txt"


@pytest.mark.parametrize("layer", [*LAYERS, *TWO_LEVELS])
def test_derivatives_take_one_reducing_sweep(layer: str) -> None:
    graph = nf.parse(layer)
    for target in ("c", "triton"):
        for train in (True, False):
            for order, (full_loads, full_writes) in enumerate(((1, 1), (2, 1), (3, 2))):
                p = nf.plan(graph, order, target=target, train=train)
                reducing = [s for s in p.sweeps if s.sums]
                assert p.writes == full_writes and p.reads <= full_loads
                if order and layer not in COLUMN_LAYERS:
                    assert len(reducing) <= 1
                    assert p.loads <= 2 * full_loads
                # A column sum in double backward makes rows of what it gives: summed while outputs are written.
                assert len(p.sweeps) <= (2 if order or layer not in TWO_LEVELS else 3)


@pytest.mark.parametrize("layer", TWO_LEVELS)
def test_forward_pays_a_read_a_level(layer: str) -> None:
    """Where slabs do not stay in registers."""
    assert nf.plan(nf.parse(layer), 0, target="c").loads == 3


@pytest.mark.parametrize("name", LAYERS)
def test_residency(name: str) -> None:
    g = nf.layers[name]
    small = nf.plan(g, 1, shape=(8, 32, 8, 8), target="c")
    assert small.resident_in and small.reads <= 2
    if name in ("ln-relu",):  # one sample is one slab
        large = nf.plan(g, 1, shape=(2, 256, 128, 128), target="c")
        assert large.resident_in is None and large.reads == large.loads == 4


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", LAYERS)
def test_resident_floors(name: str, layout: str) -> None:
    """Where a slab fits registers each full tensor is read once and written once, in at most two launches."""
    g = nf.layers[name]
    for shape in ((64, 128, 7, 7), (16, 64, 4, 4)):
        for order, (reads, writes) in enumerate(((1, 1), (2, 1), (3, 2))):
            p = nf.plan(g, order, shape=shape, dtype="bfloat16", layout=layout)
            if p.kind == "resident":
                assert p.resident_in == "registers" and p.loads == p.reads == reads and p.writes == writes
                assert p.launches <= (1 if order == 0 else 2)
    if name not in WITHOUT_SUMS and (name, layout) not in NOT_RESIDENT:
        assert nf.plan(g, 0, shape=(2, 32, 4, 4), layout=layout).kind == "resident"


@pytest.mark.parametrize("layer", [*LAYERS, *TWO_LEVELS])
@pytest.mark.parametrize("train", [True, False])
def test_factoring_keeps_the_meaning(layer: str, train: bool) -> None:
    graph = nf.parse(layer)
    rng = np.random.default_rng(1)
    extents = {1: 3, 2: 2, 4: 2, 8: 6}
    values: dict[str, np.ndarray] = {"x": rng.standard_normal((3, 4, 2, 3))}
    for order in range(3):
        p = program(graph, order, train)
        factored = Factor(expand=order > 0).run(p.graph)
        verify(factored)
        for node in p.operands:
            if node.name not in values:
                size = int(np.prod([e for bit, e in extents.items() if node.axes & bit]))
                values[node.name] = rng.standard_normal((3, 4, 2, 3) if node.axes == FULL else size)
                if node.name.startswith("running") or node.name in ("gamma", "v1", "alpha"):
                    values[node.name] = np.abs(values[node.name]) + 0.5
        before = evaluate(p.graph, values, groups=2)
        after = evaluate(factored, values, groups=2)
        for name, want in before.items():
            np.testing.assert_allclose(after[name], want, rtol=1e-9, atol=1e-9 * (1 + np.abs(want).max()))
            if name.startswith("saved"):
                values[name] = want


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_emitted_loads_and_stores_are_the_plan_s(name: str, layout: str) -> None:
    for order in range(3):
        p = nf.plan(nf.layers[name], order, target="c", layout=layout)
        text = emit_c(p, "nf_test")
        loads = stores = 0
        for body in re.split(r"\n(?:static|LOCAL) void sweep\d+\(.*\) \{", text)[1:]:
            body = re.split(r"\n(?:static|LOCAL) void ", body)[0]
            # A variance visits its tile twice, the second time from the cache: one tensor counts once a sweep.
            loads += len(set(re.findall(r"GET(?:_N)?\((in\d+)", body)))
            stores += len(set(re.findall(r"PUT(?:_N)?\((out\d+)", body)))
        assert (loads, stores) == (p.loads, p.writes)


def test_plans_match_the_golden_file() -> None:
    """NORMFORGE_GOLDENS=1 accepts the plans as they are now."""
    lines = []
    for name in LAYERS:
        graph = nf.layers[name]
        for target in ("c", "triton"):
            for order in range(3):
                lines.append(f"{name} {nf.plan(graph, order, target=target)}")
    for name in ("bn-relu", "gn-silu", "layernorm-gelu"):
        for kind in KINDS:
            for layout in LAYOUTS:
                for order in range(3):
                    plan = plan_of_kind(kind, program(nf.layers[name], order, True), "bfloat16", layout)
                    if plan is not None:
                        lines.append(f"{name} {kind} {plan}")
    text = "\n".join(lines) + "\n"
    if os.environ.get("NORMFORGE_GOLDENS"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


DIMS = ((8, 32, 2, 14 * 14), (3, 5, 3, 49), (256, 1, 512, 1), (4, 8, 2, 56 * 56))


@pytest.mark.parametrize("name", ["bn-relu", "gn-silu", "evonorm-b0", "layernorm-gelu"])
def test_the_schedule_says_what_the_source_does(name: str) -> None:
    """The stages that name an array are those that the schedule says write or read it; kernels have the names of its
    launches; and chunks are as many as its formulas say."""
    for order in range(3):
        for layout in LAYOUTS:
            for kind in KINDS:
                plan = plan_of_kind(kind, program(nf.layers[name], order, True), "float32", layout)
                if plan is not None:
                    check_schedule(plan)


def check_schedule(plan: Plan) -> None:
    schedule, module = plan.schedule, emit_triton(plan, plan.symbol)
    assert isinstance(schedule, TritonSchedule)
    assert module.schedule == schedule and plan.launches == len(schedule.launches)
    counters = plan.kind == "cooperative"
    named = [f"{plan.symbol}_{launch.name}" for launch in schedule.launches[counters:]]
    assert [launch.kernel for launch in module.launches] == named
    stages = [stage for launch in module.launches for stage in launch.stages]
    for array in schedule.arrays:
        using = [s.kernel for s in stages if f"{array.name}_ptr" in s.pointers]
        assert using == [f"{plan.symbol}_{s}" for s in (*array.written, *array.read)]
        assert array.written and array.read
    for dims in DIMS:
        if schedule.slabs is not None and schedule.slabs.blocks(dims) is None:
            continue
        sizes = schedule.sizes(dims)
        ends = sum(array.count.value(sizes) for array in schedule.arrays)
        assert ends <= schedule.places(sizes)[1] == find_target("triton").workspace(plan, dims) // 4
        for group in schedule.groups:
            for stage in group.stages:
                own = stage.kernel.index if isinstance(stage.kernel, SweepKernel) else ""
                blocks = sizes | {b: sizes[f"{b}{own}"] for b in ("BLOCK_C", "BLOCK_S") if own != ""}
                for chunks, count in stage.chunks:
                    assert count.value(blocks) == sizes[chunks]
