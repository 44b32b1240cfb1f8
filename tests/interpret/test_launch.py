"""What a launch passes: prepared calls of the compiled kernels against Triton's front, without a device."""

from __future__ import annotations

import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from named import LAYERS
from reference import FIRST_SHAPES, SECOND_SHAPES
from torch import Tensor

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.codegen.shapes import plan_dims
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kinds import plan_of_kind
from normforge.codegen.triton.launch import arguments
from normforge.kernels.direct import ALIGNMENT, aligned, at_any_address
from normforge.kernels.execute import allocate
from normforge.kernels.job import Job
from normforge.kernels.launch_cooperative import CooperativeObject, refusals
from normforge.kernels.launch_triton import CUDA_OPTIONS, TritonObject, execute_text

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")

Dims = tuple[int, int, int, int]
SHAPES = [(2, 8, 5, 7), (4, 12)]


class Recorder:
    """In the place of a function that Triton decorated: notes launches through the front, and those of the compiled
    kernel that the front returns, instead of making them."""

    def __init__(self, name: str, log: list[tuple[str, str, int, tuple[int, ...]]]) -> None:
        self.name, self.log = name, log
        self.function, self.packed_metadata = hash(name), (4, 1, 0)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Recorder]:
        def front(*args: Any, num_warps: int, enable_fp_fusion: bool, maxnreg: int = 0, **blocks: int) -> Recorder:
            blocks.pop("launch_cooperative_grid", None)
            plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in args]
            self.log.append(("front", self.name, grid[0], (*plain, *blocks.values())))
            return self

        return front

    def run(
        self, x: int, y: int, z: int, stream: int, function: int, metadata: Any, launch_metadata: None,
        enter: None, leave: None, *args: int,
    ) -> None:  # fmt: skip
        assert (y, z, stream) == (1, 1, 77) and function == self.function and metadata == self.packed_metadata
        self.log.append(("direct", self.name, x, args))


def recording(plan: Any) -> tuple[TritonObject, list[tuple[str, str, int, tuple[int, ...]]]]:
    module = emit_triton(plan, plan.symbol)
    log: list[tuple[str, str, int, tuple[int, ...]]] = []
    functions = {launch.kernel: Recorder(launch.kernel, log) for launch in module.launches}
    return TritonObject(module, functions, lambda index: 77), log


def tensors(name: str, order: int, shape: tuple[int, ...]) -> tuple[list[Tensor], Dims]:
    """Operands and outputs of a job, which nobody reads or writes."""
    dims = plan_dims(shape)
    job = Job(order, True, dims[1], nf.layers[name])
    x = torch.empty(shape)
    extents = dict(zip((1, 2, 4, 8), dims, strict=True))
    given = []
    for node, full in zip(job.program.operands, job.full_operands, strict=True):
        sizes = [e for axis, e in extents.items() if node.axes & axis]
        given.append(torch.empty_like(x) if full else torch.empty(sizes))
    return [*given, *allocate(job, given)], dims


def in_workspace(object_: TritonObject, args: tuple[int, ...], launch: Any, count: int, block: int) -> tuple[int, ...]:
    """Arguments of a launch with the addresses of the workspace, new in each call, counted from its start."""
    names = [*object_.module.operands, *object_.module.outputs]
    places = [len(names) if p not in names else names.index(p) for p in launch.pointers]
    pointers = [a - block if place >= count else a for a, place in zip(args, places, strict=False)]
    return (*pointers, *args[len(pointers) :])


@pytest.mark.parametrize("kind", ["multi-launch", "resident", "swept"])
@pytest.mark.parametrize("name", LAYERS)
def test_direct_launches_pass_what_the_front_does(name: str, kind: str) -> None:
    for order in range(3):
        for shape in SHAPES:
            given, dims = tensors(name, order, shape)
            layout = "nhwc" if len(shape) == 2 else "nchw"
            plan = plan_of_kind(kind, program(nf.layers[name], order, True), "float32", layout)
            if plan is None:
                continue
            object_, log = recording(plan)
            calls = []
            for _ in range(3):
                log.clear()
                object_(given, dims)
                calls.append(list(log))
            assert {kind for kind, *_ in calls[0]} == {"front"}
            assert {kind for call in calls[1:] for kind, *_ in call} == {"direct"}
            launches = object_.module.launches
            plain = []
            for call in calls:
                outside = {t.data_ptr() for t in given}
                inside = [
                    a
                    for (*_, args), launch in zip(call, launches, strict=True)
                    for a in args[: len(launch.pointers)]
                    if a not in outside
                ]
                block = min(inside, default=0)
                plain.append(
                    [
                        (function, grid, in_workspace(object_, args, launch, len(given), block))
                        for (_, function, grid, args), launch in zip(call, launches, strict=True)
                    ]
                )
            assert plain[0] == plain[1] == plain[2]


class PersistentRecorder(Recorder):
    """The same for a cooperative kernel: it tells its registers before it is launched."""

    n_regs, metadata = 80, SimpleNamespace(shared=1024)

    def warmup(self, *args: Any, **options: Any) -> Recorder:
        return self

    def _init_handles(self) -> None:
        pass


def test_a_cooperative_launch_passes_what_the_front_does() -> None:
    """Tile, grid and zeroed counters too; for each alignment class the front comes first."""
    given, _ = tensors("bn-relu", 1, (4, 64, 3, 5))
    dims = (4, 32, 2, 15)
    plan = plan_of_kind("cooperative", program(nf.layers["bn-relu"], 1, True), "float32", "nchw")
    assert plan is not None
    module = emit_triton(plan, plan.symbol)
    (launch,) = module.launches
    log: list[tuple[str, str, int, tuple[int, ...]]] = []
    device = SimpleNamespace(
        L2_cache_size=1 << 18, multi_processor_count=2, max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536, shared_memory_per_multiprocessor=233472,
    )  # fmt: skip
    function = PersistentRecorder(launch.kernel, log)
    object_ = CooperativeObject(plan, module, function, None, CUDA_OPTIONS, lambda index: 77, lambda index: device)
    room = torch.empty(given[0].numel() + 1)
    moved = [room[1:].view(given[0].shape), *given[1:]]
    for some in (given, moved):
        log.clear()
        for _ in range(3):
            object_(some, dims)
        assert [kind for kind, *_ in log] == ["front", "direct", "direct"]
        assert {programs for _, _, programs, _ in log} == {12}  # six fit a processor
        outside = {t.data_ptr() for t in some}
        count = len(launch.pointers) - 1  # the counters, whose memory is their own, come last
        plain = []
        for *_, args in log:
            inside = [a for a in args[:count] if a not in outside]
            plain.append([a if a in outside else a - min(inside) for a in args[:count]] + [*args[count + 1 :]])
        assert plain[0] == plain[1] == plain[2]
    assert not object_.refused


class TooMany(PersistentRecorder):
    """A device that refuses the launch."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            raise RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch")

        return launch


def test_a_refused_launch_is_told() -> None:
    """The multi-launch kind runs, from then on without asking the device; a warning, once, and a list say so."""
    given, _ = tensors("bn-relu", 0, (4, 64, 3, 5))
    dims = (4, 32, 2, 15)
    plan = plan_of_kind("cooperative", program(nf.layers["bn-relu"], 0, True), "float32", "nchw")
    assert plan is not None
    module = emit_triton(plan, plan.symbol)
    device = SimpleNamespace(
        L2_cache_size=1 << 18, multi_processor_count=2, max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536, shared_memory_per_multiprocessor=233472,
    )  # fmt: skip
    runs: list[tuple[int, ...]] = []
    function = TooMany(module.launches[0].kernel, [])
    object_ = CooperativeObject(
        plan, module, function, lambda _, at: runs.append(at), CUDA_OPTIONS, lambda index: 77, lambda index: device
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            object_(given, dims)
    assert runs == [dims] * 3 and len(told) == 1 and "too many blocks" in str(told[0].message)
    assert list(object_.refused) == [(-1, *dims)]
    assert refusals.pop((module.launches[0].kernel, -1, *dims)) in str(told[0].message)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="signatures of compiled functions")
@pytest.mark.parametrize(
    ("kind", "layout"), [("multi-launch", "nhwc"), ("resident", "nhwc"), ("swept", "nhwc"), ("cooperative", "nchw")]
)
@pytest.mark.parametrize("name", LAYERS)
def test_arguments_are_those_of_the_functions(name: str, kind: str, layout: str) -> None:
    """Pointers, sizes and blocks in the order of the parameters: a compiled kernel takes them by position."""
    for order in range(3):
        plan = plan_of_kind(kind, program(nf.layers[name], order, True), "bfloat16", layout)
        if plan is None:
            continue
        module = emit_triton(plan, plan.symbol)
        functions = execute_text(module.source, plan.symbol)
        sizes = module.schedule.sizes((2, 4, 3, 9))
        for launch in module.launches:
            values, blocks, _ = arguments(launch, sizes)
            parameters = list(inspect.signature(functions[launch.kernel].fn).parameters)
            assert parameters == [*launch.pointers, *launch.size_names, *blocks]
            assert len(values) == len(launch.size_names)


def test_a_misaligned_view_never_meets_an_aligned_kernel() -> None:
    """x at every offset, the others aligned: both classes go through the front first, and are kept apart."""
    plan = make_plan(program(nf.layers["gn-silu"], 1, True), "triton", "float32", "nchw")
    object_, log = recording(plan)
    given, dims = tensors("gn-silu", 1, SHAPES[0])
    room = torch.empty(given[0].numel() + 8)
    seen: set[bool] = set()
    for which in (0, next(i for i, t in enumerate(given) if i and t.shape == given[0].shape)):
        for offset in (0, 1, 2, 3, 4, 7, 0, 1):
            moved = list(given)
            moved[which] = room[offset : offset + room.numel() - 8].view(given[0].shape)
            key = aligned([t.data_ptr() for t in moved])
            log.clear()
            object_(moved, dims)
            assert {kind for kind, *_ in log} == {"direct" if key in seen else "front"}
            seen.add(key)
    assert seen == {True, False}


def test_triton_specialises_alike_within_an_alignment_class() -> None:
    """Aligned tensors all as aligned, and tensors of which one is not as if none were."""
    from triton.backends.compiler import BaseBackend
    from triton.runtime.jit import native_specialize_impl

    found: dict[tuple[torch.dtype, bool], set[tuple[Any, ...]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        room = torch.empty(256, dtype=dtype)
        for first in range(20):
            for second in (0, 1, 8, 9):
                pair = [room[first:], room[second:]]
                key = aligned([t.data_ptr() for t in pair])
                kinds = tuple(native_specialize_impl(BaseBackend, t, False, True, key) for t in pair)
                found.setdefault((dtype, key), set()).add(kinds)
                assert key == all(t.data_ptr() % ALIGNMENT == 0 for t in pair)
    assert len(found) == 4 and all(len(kinds) == 1 for kinds in found.values())


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="signatures of compiled functions")
def test_kernels_for_any_address_ask_no_pointer() -> None:
    plan = make_plan(program(nf.layers["gn-silu"], 1, True), "triton", "float32", "nchw")
    module = emit_triton(plan, plan.symbol)
    functions = execute_text(module.source, plan.symbol)
    for launch in module.launches:
        usual = functions[launch.kernel]
        other = at_any_address(usual, launch.pointers)
        for a, b in zip(usual.params, other.params, strict=True):
            assert (a.name, a.is_constexpr, a.do_not_specialize) == (b.name, b.is_constexpr, b.do_not_specialize)
            assert not a.do_not_specialize_on_alignment
            assert b.do_not_specialize_on_alignment == (b.name in launch.pointers)


def test_one_block_of_workspace_holds_every_array_apart() -> None:
    for name in LAYERS:
        for order in range(3):
            plan = make_plan(program(nf.layers[name], order, True), "triton", "float32", "nchw")
            object_, _ = recording(plan)
            given, dims = tensors(name, order, SHAPES[0])
            object_(given, dims)
            ((_, call),) = object_._calls.items()
            spans = call.work
            assert all(last <= after for (_, last), (after, _) in pairwise(spans))
            assert call.offsets == [4 * first for first, _ in spans]
            assert all(offset % 256 == 0 for offset in call.offsets)
            assert not spans or spans[-1][1] <= call.total


@pytest.mark.parametrize("name", LAYERS)
def test_twenty_more_shapes_need_no_new_kernel(name: str) -> None:
    """Of the multi-launch kind: every combination of a kernel and its blocks has been met before."""
    assert len(FIRST_SHAPES) == len(SECOND_SHAPES) == 20 and not set(FIRST_SHAPES) & set(SECOND_SHAPES)
    for order in range(3):
        module = emit_triton(make_plan(program(nf.layers[name], order, True), "triton", "float32", "nchw"), "t")
        met, more = (
            {
                (launch.kernel, *arguments(launch, module.schedule.sizes(dims))[1].items())
                for dims in map(plan_dims, shapes)
                for launch in module.launches
            }
            for shapes in (FIRST_SHAPES, SECOND_SHAPES)
        )
        assert more <= met, more - met
