"""The rule that chooses a kind of plan: what fits registers, what sweeps well, and the rest."""

from __future__ import annotations

import pytest

import normforge as nf
from normforge.codegen.memory import account
from normforge.codegen.orders import program
from normforge.codegen.target import Device
from normforge.codegen.triton.kinds import TYPICAL_DEVICE, choose_plan

Dims = tuple[int, int, int, int]


def kind(name: str, dims: Dims, *, order: int = 0, dtype: str = "bfloat16", device: Device = TYPICAL_DEVICE) -> str:
    return choose_plan(program(nf.parse(name), order, True), dtype, "nchw", dims, device).kind


@pytest.mark.parametrize("order", [0, 1, 2])
def test_small_slabs_are_resident(order: int) -> None:
    assert kind("gn-silu", (8, 32, 2, 196), order=order) == "resident"
    assert kind("bn-relu", (16, 8, 4, 64), order=order) == "resident"


def test_a_device_of_smaller_tiles() -> None:
    tight = Device(148, 126 << 20, capability=100)
    large: Dims = (64, 32, 1, 88 * 88)
    assert kind("in-relu", large) == "resident" and kind("in-relu", large, device=tight) == "swept"
    for order in range(3):
        assert kind("gn-silu", (8, 32, 2, 196), order=order, device=tight) == "resident"


def test_rows_that_are_no_multiple_of_16_have_smaller_tiles() -> None:
    """Their addresses and masks take the registers of the rest; compiled for sm_80, these slabs would spill."""
    assert kind("gn-silu", (4, 8, 32, 256)) == "resident"
    assert kind("gn-silu", (4, 8, 32, 196)) == "swept"


def test_a_slab_too_long_for_registers_is_swept_where_there_are_enough() -> None:
    many: Dims = (64, 32, 1, 160 * 160)
    assert kind("in-relu", many) == "swept"
    assert kind("in-relu", (1, 8, 1, 160 * 160 * 4)) == "multi-launch"  # eight slabs for all processors


def test_derivatives_are_swept_where_that_saves_launches() -> None:
    """Predicted by bench/predict.py: sums from kernels of their own are faster where there is much to read."""
    program_1 = program(nf.parse("in-relu"), 1, True)
    few, many = (16, 32, 8, 28 * 28), (64, 32, 1, 160 * 160)
    found = {
        (layout, dims): choose_plan(program_1, "bfloat16", layout, dims, TYPICAL_DEVICE).kind
        for layout in ("nchw", "nhwc")
        for dims in (few, many)
    }
    assert found["nhwc", few] == "swept"
    assert found["nhwc", many] == found["nchw", many] == "multi-launch"
    small_cache = Device(132, 4 << 20)
    assert choose_plan(program_1, "bfloat16", "nhwc", few, small_cache).kind == "multi-launch"


def test_moments_of_large_batches_are_divided_among_processors() -> None:
    assert kind("bn-relu", (64, 32, 2, 56 * 56)) == "multi-launch"


def test_layers_without_sums_are_one_launch_anyway() -> None:
    p = choose_plan(program(nf.parse("dyt"), 0, True), "float32", "nchw", (8, 32, 2, 196), TYPICAL_DEVICE)
    assert p.kind == "multi-launch" and p.loads == p.writes == 1


def test_reads_of_a_swept_plan() -> None:
    p = nf.plan(nf.parse("in-relu"), 0, shape=(64, 32, 160, 160), dtype="bfloat16")
    assert (p.kind, p.loads, p.reads, p.writes, p.resident_in) == ("swept", 2, 1, 1, "L2")
    p = nf.plan(nf.parse("in-relu"), 0, shape=(64, 32, 320, 320), dtype="bfloat16")  # the cache holds too few slabs
    assert (p.kind, p.loads, p.reads, p.writes, p.resident_in) == ("swept", 2, 2, 1, None)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["layernorm-gelu", "rmsnorm"])
def test_partial_sums_of_layers_over_channels_are_few(name: str, order: int) -> None:
    """Written and read, they are less than a twentieth of what the tensors take, also of (batch, channels)."""
    for shape in ((8, 2048, 4096), (32768, 2048)):
        p = nf.plan(nf.parse(name), order, shape=shape, dtype="bfloat16", layout="nhwc")
        cost = account(p)
        assert p.kind == "resident" and 0 < 2 * cost.workspace < cost.floor / 20
