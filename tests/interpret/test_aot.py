"""Compilation for GPUs that are not there: no spills, no float64, no atomics, 64-bit offsets."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import replace

import pytest

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.codegen.triton import emit_triton
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


def check_cooperative(name: str, order: int, dtype: str, target: int) -> None:
    plan = replace(make_plan(program(nf.parse(name), order, True), "triton", dtype, "nchw"), kind="cooperative")
    (kernel,) = compile_aot(plan, target, title=name)
    found = resources(kernel)
    assert found.spills == 0, f"{name} order {order} spills: {found}"
    assert not found.float64 and not found.narrow_offsets, f"{name} order {order}: {found}"
    ptx = kernel.asm["ptx"]
    atomics = set(re.findall(r"\b(?:atom|red)\.[\w.]+", ptx))
    assert atomics and all(a.endswith((".s32", ".u32", ".b32")) for a in atomics), atomics
    # A barrier: what was stored is released before the count. Each wait reads with acquire ordering, in a loop that
    # looks at the value; triton 3.6 optimises away an acquiring read whose value nobody wants, and its ordering too.
    assert any(".release." in a for a in atomics), atomics
    waits = re.findall(r"^\s+wait\(", emit_triton(plan, plan.symbol, name).source, re.MULTILINE)
    acquires = re.findall(r"^.*\.acquire\.\S+ (%r\d+)", ptx, re.MULTILINE)
    assert len(acquires) == len(waits) >= 2
    for register in acquires:
        assert len(re.findall(rf"{register}\b", ptx)) >= 3, "set to 0, read, and used"


def test_cooperative() -> None:
    check_cooperative("bn-relu", 1, "float32", 90)


@pytest.mark.slow
@pytest.mark.parametrize("target", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["bn-silu", "gn-silu", "in-relu", "ln-relu", "evonorm-b0", "evonorm-s0"])
def test_more_cooperative(name: str, dtype: str, target: int) -> None:
    for order in range(3):
        check_cooperative(name, order, dtype, target)


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
