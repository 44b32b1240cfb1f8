"""Cooperative plans: the same stages with the same blocks as the multi-launch kind, in an order that never waits for
what has not begun; tiles that fit; and which shapes get such a plan."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import normforge as nf
from normforge.codegen.kinds import Device, choose_plan
from normforge.codegen.orders import program
from normforge.codegen.plan import Plan, make_plan
from normforge.codegen.triton import emit_triton
from normforge.codegen.triton_cooperative import divide, programs_at_once, tile_channels
from normforge.codegen.triton_launch import arguments
from normforge.codegen.triton_schedule import SweepKernel
from normforge.errors import BackendError
from normforge.ir.types import B, G, K

LAYERS = ["bn-relu", "gn-silu", "ln-relu", "in-relu", "frn-tlu", "evonorm-b0", "evonorm-s0"]
TWO_LEVELS = "sigmoid(x / std[b,w,h](x)) * x / rms[b,w,h](x * sigmoid(x) / std[w,h](x)) * gamma + beta"
DIMS = (32, 32, 8, 56 * 56)
H200 = Device(132, 50 << 20)


def plan_of(layer: str, order: int, kind: str = "cooperative", layout: str = "nchw") -> Plan:
    return replace(make_plan(program(nf.parse(layer), order, True), "triton", "float32", layout), kind=kind)


def functions(source: str) -> dict[str, str]:
    """Text of each function by name."""
    return {text.split("(", 1)[0]: text for text in re.split(r"\n@triton\.jit.*\ndef ", source)[1:]}


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("layer", [*LAYERS, TWO_LEVELS])
def test_calls_the_stages_of_the_twin(layer: str, order: int) -> None:
    ours, twins = (emit_triton(plan_of(layer, order, kind), "nf") for kind in ("cooperative", "multi-launch"))
    mine, theirs = functions(ours.source), functions(twins.source)
    stages = [name for name in theirs if name.endswith("_stage")]
    assert [name for name in mine if name.endswith("_stage")] == stages
    assert all(mine[name] == theirs[name] for name in stages)
    calls = re.findall(r"(nf_\w+_stage)\(", mine["nf_cooperative"])
    assert sorted(calls) == sorted(stages)
    sizes = ours.shape(DIMS)
    blocks = arguments(ours.launches[0], sizes)[1]
    separate = [arguments(launch, sizes)[1] for launch in twins.launches]
    assert list(blocks.values()) == [value for one in separate for value in one.values()]
    assert ours.launches[0].pointers[-1] == "counters_ptr" and ours.work == twins.work


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("layer", [*LAYERS, TWO_LEVELS])
def test_nothing_waits_for_what_has_not_begun(layer: str, order: int) -> None:
    division = divide(plan_of(layer, order))
    assert division is not None
    passed: list[tuple[int, int]] = []
    tiles = 4
    for step in range(tiles + max(t.lag for t in division.tiled)):
        for t in division.tiled:
            if 0 <= step - t.lag < tiles:
                assert t.after < 0 or (t.after, step - t.lag) in passed
                passed.append((t.number, step - t.lag))
    assert len(set(passed)) == len(passed) == tiles * len(division.tiled)
    for _, _, after in division.last:
        assert (after, tiles - 1) in passed
    # Each stage waits for what it reads, by way of the stages before it.
    chain = {t.number: t.after for t in division.tiled}
    kernels = {t.number: t.kernel for t in division.tiled}
    for number, kernel, after in [(t.number, t.kernel, t.after) for t in division.tiled] + list(division.last):
        before = set()
        while after >= 0:
            before.add(after)
            after = chain[after]
        assert {i for i, k in kernels.items() if i != number and k.gives & kernel.needs} <= before, number


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dims", [DIMS, (128, 32, 64, 49), (3, 6, 8, 20), (8, 32, 4, 512 * 512)])
def test_tiles_are_whole_blocks_and_fit(layer: str, dims: tuple[int, int, int, int]) -> None:
    plan = plan_of(layer, 1)
    module = emit_triton(plan, "nf")
    tile = tile_channels(plan, module, dims, 50 << 20)
    if tile is None:
        return
    _, blocks, _ = arguments(module.launches[0], module.shape(dims))
    n, g, k, s = dims
    division = divide(plan)
    assert division is not None
    for t in division.tiled:
        if isinstance(t.kernel, SweepKernel):
            assert tile % blocks[f"BLOCK_C_{t.number}"] == 0
    samples = 1 if plan.slab & B else n
    assert tile * samples * s * 4 * (2 * 2 + 1) <= 0.4 * (50 << 20)  # two inputs of two tiles, and an output
    slab = 1 if plan.slab & K else k if plan.slab & G else g * k
    assert tile % slab == 0


def test_only_what_can_be_cut() -> None:
    for layer in ("rmsnorm", "layernorm-gelu", "dyt"):
        assert divide(plan_of(layer, 0)) is None
    assert divide(plan_of("bn-relu", 0, layout="nhwc")) is None
    assert divide(make_plan(program(nf.parse("bn-relu"), 0, False), "triton", "float32", "nchw")) is None
    with pytest.raises(BackendError, match="cooperative"):
        emit_triton(plan_of("dyt", 0), "nf")


def chosen(layer: str, dims: tuple[int, int, int, int], layout: str = "nchw", *, cooperative: bool = True) -> str:
    device = replace(H200, cooperative=cooperative)
    return choose_plan(program(nf.parse(layer), 0, True), "float32", layout, dims, device).kind


def test_which_shapes() -> None:
    assert chosen("bn-relu", DIMS) == "cooperative"
    assert chosen("bn-relu", DIMS, cooperative=False) == "multi-launch"
    assert chosen("bn-relu", (8, 32, 2, 28 * 28)) == "resident"
    assert chosen("bn-relu", (16, 32, 2, 56 * 56)) != "cooperative"  # stays in the level-2 cache anyway
    assert chosen("bn-relu", (256, 32, 2, 224 * 224)) == "multi-launch"  # one channel of the batch does not
    assert chosen("bn-relu", DIMS, "nhwc") != "cooperative"


def test_programs_at_once() -> None:
    hopper = {"warps": 4, "threads": 2048, "register_file": 65536, "shared_memory": 228 << 10}
    assert programs_at_once(64, 512, **hopper) == 8
    assert programs_at_once(79, 512, **hopper) == 6
    assert programs_at_once(32, 512, **hopper) == 16
    assert programs_at_once(16, 0, **hopper) == 16  # threads
    assert programs_at_once(32, 100 << 10, **hopper) == 2
    assert programs_at_once(255, 300 << 10, **hopper) == 1
