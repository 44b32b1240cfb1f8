"""Walks of Triton sweeps, in machine code for a GPU that is not there: no loop over tiles of one sum may wait."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kernels import SmallKernel
from normforge.kernels.launch_triton import compile_aot, resources
from normforge.kernels.sass import Instruction, disassemble, parse

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled under the interpreter"),
]

Dims = tuple[int, int, int, int]
LARGE = (128, 32, 8, 56 * 56)
LOADS = ("LDG", "LDGSTS")


def walks(name: str, order: int, dtype: str, layout: str, dims: Dims) -> Iterator[list[Instruction]]:
    """The instructions of each loop over tiles of full tensors."""
    plan = make_plan(program(nf.parse(name), order, True), "triton", dtype, layout)
    module = emit_triton(plan, plan.symbol)
    for launch, kernel in zip(module.launches, compile_aot(plan, 90, dims=dims), strict=True):
        if isinstance(launch.does, SmallKernel):
            continue
        assert resources(kernel).spills == 0
        code = parse(disassemble(kernel.asm["cubin"]))
        bodies = [body for body in map(code.own, code.loops) if any(i.name in LOADS for i in body)]
        assert bodies, f"{kernel.name} walks nothing"
        yield from bodies


@pytest.mark.parametrize(
    ("name", "order", "dtype", "layout", "dims", "load_bytes"),
    [
        ("bn-relu", 0, "bfloat16", "nhwc", LARGE, 16),
        ("bn-relu", 1, "float32", "nhwc", LARGE, 16),
        ("bn-relu", 2, "bfloat16", "nchw", LARGE, 16),
        ("bn-relu", 0, "bfloat16", "nchw", (128, 32, 18, 14 * 14), 8),
    ],
)
def test_threads_keep_their_sums(name: str, order: int, dtype: str, layout: str, dims: Dims, load_bytes: int) -> None:
    """No shuffle, and no barrier but for asynchronous copies; full tensors by the widest loads."""
    for body in walks(name, order, dtype, layout, dims):
        names = {i.name for i in body}
        assert "SHFL" not in names
        assert ("BAR" in names) <= ("LDGSTS" in names)
        assert {i.bytes for i in body if i.name in LOADS} == {load_bytes}
