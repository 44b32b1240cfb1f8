"""The emitted Triton text, read rather than run: loads, stores, launches, what it imports."""

from __future__ import annotations

import ast
import re

import pytest
from named import LAYERS, WITH_INPUTS

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import Plan, make_plan
from normforge.codegen.shapes import plan_dims
from normforge.codegen.triton.blocks import SWEEP_THREADS, ladder, own_elements, sweep_blocks
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kinds import plan_of_kind
from normforge.codegen.triton.launch import arguments, warps
from normforge.codegen.triton.names import CODE
from normforge.codegen.triton.slab_plan import slabs_of
from normforge.codegen.triton.walks import SWEEP_WALKS, SweepWalk
from normforge.errors import BackendError
from normforge.ir.ops import CORE, LEAF, REDUCE

# Full tensors, and nothing else, are addressed by `at`.
FULL_LOAD = re.compile(r"tl\.load\(\w+ \+ at,")
FULL_STORE = re.compile(r"tl\.store\(\w+ \+ at,")


def plan_of(name: str, order: int, layout: str = "nchw", *, train: bool = True, dtype: str = "float32") -> Plan:
    return make_plan(program(nf.parse(name), order, train), "triton", dtype, layout)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", [*LAYERS, *WITH_INPUTS])
def test_loads_and_stores_are_those_of_the_plan(name: str, layout: str) -> None:
    for order in range(3):
        for train in (True, False):
            plan = plan_of(name, order, layout, train=train)
            source = emit_triton(plan, "t", name).source
            assert len(FULL_LOAD.findall(source)) == plan.loads
            assert len(FULL_STORE.findall(source)) == plan.writes


@pytest.mark.parametrize("name", LAYERS)
def test_text_is_self_contained(name: str) -> None:
    for order in range(3):
        module = emit_triton(plan_of(name, order), "t", name)
        tree = ast.parse(module.source)
        imported = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
        assert imported == ["triton", "triton.language"]
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {launch.kernel for launch in module.launches} <= functions
        assert module.source.startswith(f"# {name}\n")
        for word in ("atomic", "float64"):
            assert word not in module.source


def test_launches() -> None:
    # A sweep, its merge, and a sweep; gradients of parameters share a launch with what does not wait for them.
    counts = {name: [plan_of(name, order).launches for order in range(3)] for name in LAYERS}
    assert counts["gn-silu"] == [3, 3, 3]
    assert counts["bn-relu"] == [3, 3, 3]
    assert counts["evonorm-b0"] == [3, 3, 3]
    assert counts["layernorm-gelu"] == [2, 2, 3]
    assert counts["dyt"] == [1, 3, 3]
    assert max(map(max, counts.values())) == 3


@pytest.mark.parametrize("name", LAYERS)
def test_sweeps_read_no_partials(name: str) -> None:
    # Merged once, in a stage of their own: N partials a row in every program of a sweep may be more than its row.
    for order in range(3):
        source = emit_triton(plan_of(name, order), "t", name).source
        stages = [text for text in source.split("@triton.jit") if re.match(r"\ndef t_\d+_sweep\d+_stage\(", text)]
        assert stages and not any(re.search(r"tl\.load\([mpq]\d+_ptr|merge_", text) for text in stages)


def test_float64_is_refused() -> None:
    with pytest.raises(BackendError, match="float32"):
        emit_triton(plan_of("gn-silu", 0, dtype="float64"), "t")


def test_every_operation_has_text() -> None:
    assert set(CODE) == CORE - LEAF - REDUCE


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("walk", SWEEP_WALKS, ids=repr)
def test_few_block_classes(layout: str, walk: SweepWalk) -> None:
    for tile in (512, 1024, 4096):
        rungs = ladder(layout, walk, tile)
        assert len(rungs) <= 5
        assert all(c * s == tile for c, s in rungs)
        for s in (1, 2, 49, 3136):
            for c in (1, 3, 64, 1000):
                blocks = sweep_blocks(layout, walk, tile, {"S": s, "C": c, "K": c}, 2)
                assert blocks in rungs
                for vector in (1, 4, 8):
                    threads, each = own_elements(layout, walk, blocks, vector)
                    walked = blocks[walk.axis]
                    assert walked % (threads * each) == 0
                    along = walk.along(layout)
                    assert each == (min(vector, walked, tile // SWEEP_THREADS) if along else 1)


SHAPES = [(n, c, s) for n in (1, 3, 8, 64) for c in (6, 32, 64, 96, 320, 1024) for s in (1, 7, 16, 49, 196, 784, 3136)]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["resident", "swept"])
@pytest.mark.parametrize("name", ["gn-silu", "bn-relu", "ln-relu", "in-relu", "layernorm-gelu"])
def test_new_shapes_soon_compile_nothing(name: str, kind: str, layout: str) -> None:
    """Over many shapes a kernel has at most five classes of blocks, each of one of the alignments."""
    for order in range(3):
        plan = plan_of_kind(kind, program(nf.parse(name), order, True), "bfloat16", layout)
        if plan is None:  # a slab of columns is swept by a forward only
            assert (name, kind, layout) == ("layernorm-gelu", "swept", "nchw") and order > 0
            continue
        module = emit_triton(plan, "t")
        variants: dict[str, set[tuple[tuple[str, int], ...]]] = {}
        for n, c, s in SHAPES:
            dims = plan_dims((n, c, s))
            if slabs_of(plan).blocks(dims) is None:
                continue
            sizes = module.schedule.sizes(dims)
            for launch in module.launches:
                _, blocks, programs = arguments(launch, sizes)
                constants = (*sorted(blocks.items()), ("warps", warps(launch, sizes)))
                variants.setdefault(launch.kernel, set()).add(constants)
                assert programs > 0
        for constants in variants.values():
            assert len({tuple(v for v in c if v[0] not in ("ALIGNED", "VECTOR", "warps")) for c in constants}) <= 5
            assert len(constants) <= 15


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", LAYERS)
def test_slabs_load_and_store_what_the_plan_says(name: str, layout: str) -> None:
    for kind in ("resident", "swept"):
        for order in range(3):
            plan = plan_of_kind(kind, program(nf.parse(name), order, True), "float32", layout)
            if plan is None:
                continue
            source = emit_triton(plan, "t", name).source
            assert len(FULL_LOAD.findall(source)) == plan.loads
            assert len(FULL_STORE.findall(source)) == plan.writes
            assert plan.loads == plan.reads or kind == "swept"
            assert plan.launches <= (1 if order == 0 else 2)
