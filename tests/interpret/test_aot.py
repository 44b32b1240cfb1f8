"""Compilation for GPUs that are not there: no spills, no float64, no atomics, 64-bit offsets, wide accesses."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from named import LAYERS, WITH_INPUTS

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.codegen.shapes import ITEM_BYTES
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kinds import KINDS, plan_of_kind
from normforge.codegen.triton.slab_limits import tile_dims
from normforge.codegen.triton.slab_plan import slabs_of
from normforge.codegen.triton.slabs import Dims
from normforge.kernels.assembly import atomics, is_float_atomic, ptx_accesses
from normforge.kernels.launch_triton import TYPICAL_DIMS, compile_aot, emit_ptx, full_pointers, resources, typical_dims

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


def widths(name: str, order: int, dtype: str, layout: str, dims: tuple[int, int, int, int]) -> list[int]:
    """Bytes of the accesses to full tensors."""
    plan = make_plan(program(nf.parse(name), order, True), "triton", dtype, layout)
    module = emit_triton(plan, plan.symbol)
    full, found = full_pointers(plan, module), []
    for launch, kernel in zip(module.launches, compile_aot(plan, 90, dims=dims), strict=True):
        places = [i for i, pointer in enumerate(launch.pointers) if pointer in full]
        accesses = ptx_accesses(kernel.asm["ptx"], kernel.name, places)
        assert bool(accesses.loads or accesses.stores) == bool(places)
        found += [*accesses.loads, *accesses.stores]
    return found


@pytest.mark.parametrize(("dtype", "layout"), [("float32", "nchw"), ("bfloat16", "nchw"), ("bfloat16", "nhwc")])
def test_aligned_rows_are_read_in_vectors(dtype: str, layout: str) -> None:
    """Several elements an access to full tensors where rows are multiples of 16; one where they are not."""
    assert min(widths("evonorm-s0", 1, dtype, layout, TYPICAL_DIMS)) > ITEM_BYTES[dtype]
    assert min(widths("evonorm-s0", 0, dtype, layout, (8, 5, 3, 7 * 7))) == ITEM_BYTES[dtype]


def test_atomics_are_told_apart() -> None:
    text = """
        atom.global.gpu.acq_rel.add.u32 %r1, [%rd1], 1;
        red.global.add.f32 [%rd2], %f1;
        red.async.relaxed.gpu.global.add.noftz.bf16x2 [%rd2], %r2;
        redux.sync.add.s32 %r1, %r2, 0xffffffff;
        global_atomic_add_u32 v0, v1, s[0:1]
        global_atomic_add_f32 v0, v1, s[0:1]
        global_atomic_pk_add_bf16 v0, v1, s[0:1]
    """
    found = atomics(text)
    assert len(found) == 6 and not any("redux" in a for a in found)
    assert [a for a in found if not is_float_atomic(a)] == [
        "atom.global.gpu.acq_rel.add.u32", "global_atomic_add_u32",
    ]  # fmt: skip


def check_cooperative(name: str, order: int, dtype: str, target: int) -> None:
    plan = plan_of_kind("cooperative", program(nf.parse(name), order, True), dtype, "nchw")
    assert plan is not None
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


def check_slabs(name: str, order: int, dtype: str, layout: str, target: int | str, kind: str, count: int = 9) -> None:
    plan = plan_of_kind(kind, program(nf.parse(name), order, True), dtype, layout)
    if plan is None:
        return
    slabs = slabs_of(plan)
    wanted = slabs.rungs_on(target) if kind == "resident" and isinstance(target, int) else slabs.rungs
    shapes = [(rung, dims) for (rung, _), dims in tile_dims(slabs).items() if rung in wanted]
    for rung, dims in shapes[-count:]:
        for kernel in compile_aot(plan, target, title=name, dims=dims):
            found = resources(kernel)
            assert found.spills == 0, f"{kernel.name} of {name} order {order} {layout} {rung} spills: {found}"
            assert not found.float64 and not found.atomics and not found.narrow_offsets, f"{kernel.name}: {found}"


@pytest.mark.parametrize("kind", ["resident", "swept"])
@pytest.mark.parametrize("order", [0, 1])
def test_slabs(order: int, kind: str) -> None:
    """The largest tile."""
    check_slabs("gn-silu", order, "bfloat16", "nchw", 90, kind, count=1)


def shared_out() -> list[tuple[str, str, str, str, int | str]]:
    """Every layer with every kind, layout and dtype; a target for each, so that all pairs of the five are there."""
    targets: list[int | str] = [80, 90, 100, "gfx942"]
    rows = list(itertools.product(["resident", "swept"], ["nchw", "nhwc"], ["float32", "bfloat16"]))
    # A row and its opposite in all three share a target, which so meets each of their values; layers begin elsewhere.
    share = [min(i, len(rows) - 1 - i) for i in range(len(rows))]
    return [
        (name, *row, targets[(start + k) % len(targets)])
        for start, name in enumerate((*LAYERS, *WITH_INPUTS))
        for row, k in zip(rows, share, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "layout", "dtype", "target"), shared_out())
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


def slab_ptx(name: str, order: int, layout: str, kind: str, dims: Dims) -> str:
    plan = plan_of_kind(kind, program(nf.parse(name), order, True), "bfloat16", layout)
    assert plan is not None
    return str(compile_aot(plan, 90, dims=dims)[0].asm["ptx"])


def inner_loops(ptx: str) -> list[str]:
    """The bodies of loops that hold no other loop."""
    lines = ptx.split("\n")
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\$L\w+):", line))}
    jumps = ((i, re.search(r"\bbra\S*\s+(\$L\w+);", line)) for i, line in enumerate(lines))
    loops = [(labels[to[1]], i) for i, to in jumps if to and labels[to[1]] < i]
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in loops)]
    return ["\n".join(lines[a : b + 1]) for a, b in inner]


@pytest.mark.parametrize(
    ("name", "order", "layout"),
    [("gn-silu", 0, "nchw"), ("gn-silu", 1, "nchw"), ("gn-silu", 0, "nhwc"), ("layernorm-gelu", 0, "nhwc")],
)
def test_threads_meet_after_the_tiles_of_a_slab(name: str, order: int, layout: str) -> None:
    """Loops over the tiles of a sum pass nothing between threads; a barrier comes with an asynchronous copy."""
    loops = inner_loops(slab_ptx(name, order, layout, "swept", (8, 32, 8, 12544)))
    assert len(loops) >= 2
    summing = [body for body in loops if "st.global" not in body]
    assert summing
    for body in summing:
        assert "shfl" not in body
        assert "bar." not in body or "cp.async" in body


def test_one_exchange_a_slab() -> None:
    """Where a program walks slab after slab, the sums of each are taken together, and nothing waits for memory."""
    (loop,) = inner_loops(slab_ptx("layernorm-gelu", 1, "nhwc", "resident", (8, 32, 64, 4096)))
    assert len(re.findall(r"bar\.sync", loop)) <= 4 and "cp.async" in loop
    assert "ld.global" not in loop


def test_rows_of_14_by_14_move_eight_bytes() -> None:
    for order in range(3):
        plan = plan_of_kind("resident", program(nf.parse("gn-silu"), order, True), "bfloat16", "nchw")
        assert plan is not None
        full = full_pointers(plan, emit_triton(plan, plan.symbol))
        kernel = compile_aot(plan, 90, dims=(32, 32, 4, 14 * 14))[0]
        launch = emit_triton(plan, plan.symbol).launches[0]
        found = ptx_accesses(kernel.asm["ptx"], kernel.name, [i for i, p in enumerate(launch.pointers) if p in full])
        assert {*found.loads, *found.stores} == {8}


@pytest.mark.parametrize(("layout", "kind"), [("nhwc", "resident"), ("nchw", "resident"), ("nhwc", "swept")])
def test_no_division_of_64_bits(layout: str, kind: str) -> None:
    for name in ("gn-silu", "bn-relu"):
        ptx = slab_ptx(name, 0, layout, kind, (2, 8, 4, 64))
        assert not re.search(r"\b(?:div|rem)\.[su]64", ptx)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("layer", [*LAYERS, *WITH_INPUTS, "x / rms[b,w,h,c](x) * gamma"])
def test_every_plan_has_a_shape_to_be_compiled_for(layer: str, layout: str) -> None:
    for order in range(3):
        for kind in KINDS:
            plan = plan_of_kind(kind, program(nf.parse(layer), order, True), "float32", layout)
            if plan is not None:
                module = emit_triton(plan, plan.symbol)
                assert module.schedule.sizes(typical_dims(module))["N"] > 0


def test_ptx() -> None:
    plan = make_plan(program(nf.parse("gn-silu"), 0, True), "triton", "float32", "nchw")
    text = emit_ptx(plan, 90)
    assert text.count(".visible .entry") == 3
    assert ".target sm_90" in text


def test_sass(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "normforge", "compile", "gn-silu", "--emit", "sass", "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    texts = [(tmp_path / f"order{order}.sass").read_text() for order in range(3)]
    assert all("EF_CUDA_SM90" in text and "LDG.E" in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "dtype", "target"), [(name, *row) for name, _, *row in shared_out()])
def test_every_layer(name: str, layout: str, dtype: str, target: int | str) -> None:
    for order in range(3):
        check(name, order, dtype, layout, target)
