"""Compilation for GPUs that are not there: no spills, no float64, no atomics, 64-bit offsets."""

from __future__ import annotations

import importlib.util
import os
import re

import pytest

import normforge as nf
from normforge.codegen.kinds import plan_of_kind
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.codegen.resident import slabs_of
from normforge.codegen.triton_slabs import Dims, Rung, Slabs
from normforge.kernels.launch_triton import compile_aot, emit_ptx, resources

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled under the interpreter"),
]


def check(name: str, order: int, dtype: str, layout: str, target: int | str) -> None:
    plan = make_plan(program(nf.parse(name), order, True), "triton", dtype, layout)
    for kernel in compile_aot(plan, target, title=name):
        found = resources(kernel)
        assert found.spills == 0, f"{kernel.name} of {name} order {order} spills: {found}"
        assert not found.float64 and not found.atomics and not found.narrow_offsets, f"{kernel.name}: {found}"


@pytest.mark.parametrize("target", [90, "gfx942"])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(("name", "dtype", "layout"), [("gn-silu", "float32", "nchw"), ("bn-relu", "bfloat16", "nhwc")])
def test_sample(name: str, dtype: str, layout: str, order: int, target: int | str) -> None:
    check(name, order, dtype, layout, target)


def slab_shapes(slabs: Slabs) -> dict[Rung, Dims]:
    """A shape for each tile of a plan whose programs own slabs."""
    found: dict[Rung, Dims] = {}
    for n in (2, 32):
        for k in (1, 2, 8, 32, 128):
            for s in (16, 64, 256, 784, 3136, 12544):
                blocks = slabs.blocks((n, 8, k, s))
                if blocks is not None:
                    found.setdefault(blocks.rung, (n, 8, k, s))
    return found


def check_slabs(name: str, order: int, dtype: str, layout: str, target: int | str, kind: str, count: int = 9) -> None:
    plan = plan_of_kind(kind, program(nf.parse(name), order, True), dtype, layout)
    if plan is None:
        return
    for rung, dims in list(slab_shapes(slabs_of(plan)).items())[-count:]:
        for kernel in compile_aot(plan, target, title=name, dims=dims):
            found = resources(kernel)
            assert found.spills == 0, f"{kernel.name} of {name} order {order} {layout} {rung} spills: {found}"
            assert not found.float64 and not found.atomics and not found.narrow_offsets, f"{kernel.name}: {found}"


@pytest.mark.parametrize("kind", ["resident", "swept"])
@pytest.mark.parametrize("order", [0, 1])
def test_slabs(order: int, kind: str) -> None:
    """The largest tile."""
    check_slabs("gn-silu", order, "bfloat16", "nchw", 90, kind, count=1)


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90, 100, "gfx942"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["resident", "swept"])
@pytest.mark.parametrize("name", nf.layers)
def test_every_slab(name: str, kind: str, layout: str, dtype: str, target: int | str) -> None:
    for order in range(3):
        check_slabs(name, order, dtype, layout, target, kind)


def test_wide_accesses() -> None:
    """Where the contiguous extent is a multiple of 16, full tensors move 16 bytes a thread; each is loaded once."""
    plan = plan_of_kind("resident", program(nf.parse("gn-silu"), 1, True), "bfloat16", "nchw")
    assert plan is not None
    kernel = compile_aot(plan, 90, dims=(8, 8, 4, 1024))[0]
    per_thread = 64 * 64 // (8 * 32)
    wide = len(re.findall(r"ld\.global\S*\.v4", kernel.asm["ptx"]))
    assert wide == 2 * per_thread // 8


def test_ptx() -> None:
    plan = make_plan(program(nf.parse("gn-silu"), 0, True), "triton", "float32", "nchw")
    text = emit_ptx(plan, 90)
    assert text.count(".visible .entry") == 3
    assert ".target sm_90" in text


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90, 100, "gfx942"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", nf.layers)
def test_every_layer(name: str, dtype: str, layout: str, target: int | str) -> None:
    for order in range(3):
        check(name, order, dtype, layout, target)
