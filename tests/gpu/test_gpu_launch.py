"""How kernels are launched on a device: graphs, streams, torch.compile, alignment, compilation, memory, the same
numbers every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from reference import FIRST_SHAPES, SECOND_SHAPES, compare, cotangents_for, make, random_input, run, tolerance
from steps import CAPTURED, MEMORY, OTHERS, SHIFTED, STEPS, TRACED, TWENTY, WAITING, Module, first_order, second_order
from torch import Tensor

import normforge as nf


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, dy = (random_input(shape, seed + k, dtype).cuda() for k in range(2))
    return x.requires_grad_(), dy


def assert_equal(a: list[Tensor], b: list[Tensor], what: str) -> None:
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(p, q), f"{what}: tensor {i} of {len(a)} differs by up to {(p - q).abs().max()}"


def module_of(step: Module) -> nf.Layer:
    dtype = getattr(torch, step.dtype)
    return make(step.graph, "triton", step.shape[1], step.groups, dtype, 0).cuda().train(step.train)


@pytest.mark.parametrize("what", CAPTURED, ids=str)
def test_a_captured_graph_replays_the_eager_call(what: Module) -> None:
    module, step = module_of(what), STEPS[what.what]
    x, dy = inputs(what.shape)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and takes memory that capture must not
        for _ in range(3):
            step(module, x, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(module, x, dy)
    for seed in (10, 20):
        with torch.no_grad():
            x.copy_(random_input(x.shape, seed, x.dtype))
            dy.copy_(random_input(x.shape, seed + 1, x.dtype))
        graph.replay()
        got = [t.clone() for t in captured]
        assert_equal(got, step(module, x, dy), str(what))


@pytest.mark.parametrize("what", TRACED, ids=str)
def test_torch_compile_takes_the_layer_whole(what: Module) -> None:
    module = module_of(what)
    x, dy = inputs(what.shape)
    want = first_order(module, x, dy)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    y = compiled(x)
    got = [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]
    assert_equal(got, want, str(what))


@pytest.mark.parametrize("what", WAITING, ids=str)
def test_nothing_waits_for_the_device(what: Module) -> None:
    """Once compiled. torch raises at whatever it does itself that synchronises."""
    module = module_of(what)
    x, dy = inputs(what.shape)
    second_order(module, x, dy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second_order(module, x, dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("what", SHIFTED, ids=str)
def test_views_at_odd_offsets(what: Module) -> None:
    """x and dy that start at any element, after aligned ones of the same shape and before: a kernel compiled for
    aligned pointers reads wrongly, or fails, at others. Positions are a multiple of 16, so that aligned tensors are
    read in vectors."""
    shape, dtype = what.shape, getattr(torch, what.dtype)
    module = module_of(what)
    reference = make(what.graph, "eager", shape[1], what.groups, dtype, 0).double()
    x = random_input(shape, 1, dtype)
    cotangents = cotangents_for(reference, shape, dtype, 2)
    want = run(reference, x.double(), cotangents)
    on_device = [c.cuda() for c in cotangents]
    largest = max(float(g.abs().max()) for g in want.first)
    for first, second in ((0, 0), (1, 0), (0, 1), (3, 5), (2, 4), (0, 0), (7, 0)):
        got = run(module, shifted(x.cuda(), first), [shifted(on_device[0].to(dtype), second), *on_device[1:]])
        where = f"{what} at offsets {first}, {second}"
        compare(got.y.cpu(), want.y, tolerance(dtype, x.numel(), 1 + float(want.y.abs().max())), f"y of {where}")
        for label, a, b in zip(want.names, got.first, want.first, strict=False):
            compare(a.cpu(), b, tolerance(dtype, x.numel(), 1 + largest, 1), f"gradient of {label} of {where}")


def shifted(t: Tensor, elements: int) -> Tensor:
    """The same numbers in memory that starts some elements after an aligned address."""
    room = torch.empty(t.numel() + elements, dtype=t.dtype, device=t.device)
    return room[elements:].view(t.shape).copy_(t)


@contextmanager
def counting() -> Iterator[list[Any]]:
    """The kernels that Triton makes ready for use in this process, compiled or read from its cache on disk."""
    from triton import knobs

    made: list[Any] = []

    def note(**about: Any) -> None:
        made.append(about["repr"])

    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = note
    try:
        yield made
    finally:
        knobs.runtime.jit_post_compile_hook = before


def test_twenty_more_shapes_compile_nothing() -> None:
    assert [what.shape for what in TWENTY] == FIRST_SHAPES
    with counting() as made:
        for shapes in (FIRST_SHAPES, SECOND_SHAPES):
            for shape in shapes:
                module = nf.compile(TWENTY[0].layer, channels=shape[1], backend="triton").cuda()
                x, dy = inputs(shape)
                second_order(module, x, dy)
            if shapes is FIRST_SHAPES:
                assert made  # the hook works
                made.clear()
    assert not made, f"{len(made)} kernels compiled for shapes like those before: {made[:3]}"


def test_kernels_run_on_the_current_stream() -> None:
    """x is written late on a stream of its own: on any other, kernels would read what was there before."""
    (what,) = OTHERS
    module = module_of(what)
    new = random_input(what.shape, 3, torch.float32).cuda()
    want = module(new).clone()
    x = torch.zeros_like(new)
    for _ in range(2):
        module(x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.copy_(new)
        got = module(x)
    side.synchronize()
    assert torch.equal(got, want)


def test_launch_hooks_are_called() -> None:
    """A profiler's hooks see every launch, also of kernels that are launched directly otherwise."""
    from triton import knobs

    module = nf.compile("gn-silu", channels=32, backend="triton").cuda()
    x, _ = inputs((4, 32, 14, 14))
    want = [module(x) for _ in range(3)][-1]
    seen: list[Any] = []
    knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        got = module(x)
    finally:
        knobs.runtime.launch_enter_hook.remove(seen.append)
    assert torch.equal(got, want)
    assert len(seen) == nf.plan(nf.layers["gn-silu"], shape=tuple(x.shape)).launches


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_tensors_on_another_device_than_the_current_one() -> None:
    module = make(nf.layers["gn-silu"], "triton", 32, None, torch.float32, 0)
    x = random_input((4, 32, 14, 14), 0, torch.float32)
    first = [module.to(f"cuda:{i}")(x.to(f"cuda:{i}")).cpu() for i in (0, 1, 0, 1)]
    assert all(torch.equal(first[0], other) for other in first[1:])


@pytest.mark.parametrize("what", MEMORY, ids=str)
def test_forward_leaves_y_and_statistics_in_memory(what: Module) -> None:
    """Bytes of the device that a forward call takes and keeps for backward, to torch's 512 a tensor."""
    module = module_of(what)
    x = random_input(what.shape, 0, getattr(torch, what.dtype)).cuda().requires_grad_()
    for _ in range(2):
        module(x)
    before = torch.cuda.memory_allocated()
    y = module(x)
    kept = torch.cuda.memory_allocated() - before
    positions = 8 * 32 * 32 if what.layer in ("layernorm-gelu", "rmsnorm") else 0
    statistics = 4 * 4 * (8 * 32 + positions) + 16 * 512
    assert y.numel() * y.element_size() <= kept <= y.numel() * y.element_size() + statistics
