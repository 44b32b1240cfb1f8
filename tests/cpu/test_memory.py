"""Bytes that autograd keeps for a derivative: what the plan says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from named import LAYERS
from torch import Tensor

import normforge as nf
from normforge.codegen.memory import account
from normforge.kernels import toolchain

SHAPE = (4, 8, 16, 16)
compiled_only = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")


def kept_by(step: Callable[[], object]) -> dict[int, int]:
    """Bytes of each storage that autograd saves during a step, by address."""
    found: dict[int, int] = {}
    alive = []

    def pack(t: Tensor) -> Tensor:
        alive.append(t)  # or its address would be used again
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return found


def planned(name: str, order: int, dtype: str) -> int:
    return account(nf.plan(nf.layers[name], order, shape=SHAPE, dtype=dtype, target="c"), groups=4).saved_bytes


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_saved_bytes_are_the_plan_s(name: str, dtype: torch.dtype) -> None:
    """x, parameters and statistics for backward; x, dy, parameters and statistics for double backward, each storage
    counted once."""
    module = nf.compile(name, channels=8, groups=4, backend="c")  # parameters stay float32, as under autocast
    x = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    dy = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    label = str(dtype).removeprefix("torch.")
    made: list[Tensor] = []
    kept = kept_by(lambda: made.append(module(x)))
    assert sum(kept.values()) == planned(name, 0, label)
    assert kept[x.untyped_storage().data_ptr()] == x.nbytes
    assert made[0].untyped_storage().data_ptr() not in kept  # y is computed again, not kept
    kept = kept_by(lambda: torch.autograd.grad(made[0], [x, *module.parameters()], dy, create_graph=True))
    assert sum(kept.values()) == planned(name, 1, label)
    full = [size for size in kept.values() if size >= x.nbytes]
    assert full == [x.nbytes, x.nbytes] and dy.untyped_storage().data_ptr() in kept


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_eager_keeps_more(name: str, dtype: torch.dtype) -> None:
    counts = {}
    for backend in ("eager", "c"):
        module = nf.compile(name, channels=8, groups=4, backend=backend)
        x = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
        keep: list[Tensor] = []
        counts[backend] = sum(kept_by(lambda m=module, x=x, k=keep: k.append(m(x))).values())  # type: ignore[misc]
    assert counts["eager"] > counts["c"], counts


@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (3, 10)])
def test_the_floor_is_each_tensor_once(shape: tuple[int, ...]) -> None:
    for name in LAYERS:
        for target in ("c", "triton"):
            for order, tensors in enumerate((2, 3, 5)):
                a = account(nf.plan(nf.layers[name], order, shape=shape, target=target))
                assert a.floor == tensors * a.tensor <= a.moved
                assert a.partials == 2 * a.workspace and a.ratio == (a.moved + a.partials) / a.floor
                assert a.peak == a.outputs + a.workspace and a.outputs >= (1 + (order == 2)) * a.tensor


def test_partial_sums_are_traffic() -> None:
    """Gradients of LayerNorm's gain are sums over all positions, by parts that other programs merge; a resident forward
    leaves none."""
    shape = (8, 1024, 512)
    forward, backward = (
        account(nf.plan(nf.layers["layernorm-gelu"], order, shape=shape, layout="nhwc", dtype="bfloat16"))
        for order in (0, 1)
    )
    assert forward.partials == 0 and forward.ratio == 1
    assert backward.partials >= 2 * 4 * 2 * 1024  # of two parameters, one row at least
    assert backward.ratio > backward.moved / backward.floor
