"""The module surface: running statistics, state, strides, dtypes, errors, autograd checks, torch.compile."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import LAYERS
from reference import (
    EXTREME,
    check_against_eager,
    check_extreme,
    compare,
    cotangents_for,
    make,
    random_input,
    run,
    tolerance,
)
from torch.utils._python_dispatch import TorchDispatchMode

import normforge as nf
from normforge.errors import BackendError, ShapeError
from normforge.kernels import toolchain
from normforge.kernels.job import Job
from normforge.kernels.run import run as op
from normforge.kernels.run import run_plain

pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")

BATCH_LAYERS = ["bn-relu", "bn-silu", "evonorm-b0", "evonorm-b1", "evonorm-b2"]
NESTED = "x / std[b,w,h](x - mean[b,w,h](x * sigmoid(v1 * x))) * gamma + rms[b,w,h,c](std[w,h](x)) + beta"


@pytest.mark.parametrize("layer", [*BATCH_LAYERS, NESTED])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_inference_after_training_steps(layer: str, layout: str) -> None:
    graph, shape = nf.parse(layer), (4, 6, 3, 5)
    got = make(graph, "c", 6, 3, torch.float32, 0)
    want = make(graph, "eager", 6, 3, torch.float32, 0).double()
    for step in range(4):
        x = random_input(shape, step, torch.float32, layout) * (1 + step) + step
        got(x), want(x.double())
    for (name, a), (_, b) in zip(got.named_buffers(), want.named_buffers(), strict=True):
        compare(a, b, tolerance(torch.float32, 360, float(b.abs().max())), name)
    got.eval(), want.eval()
    before = {k: v.clone() for k, v in got.named_buffers()}
    x = random_input(shape, 9, torch.float32, layout)
    cotangents = cotangents_for(got, shape, torch.float32, 1)
    a, b = run(got, x, cotangents), run(want, x.double(), cotangents)
    compare(a.y, b.y, tolerance(torch.float32, 360, 1 + float(b.y.abs().max())), "y")
    for order, (mine, theirs) in enumerate(((a.first, b.first), (a.second, b.second)), 1):
        scale = 1 + max(float(t.abs().max()) for t in theirs)
        for name, p, q in zip(a.names, mine, theirs, strict=False):
            compare(p, q, tolerance(torch.float32, 360, scale, order), f"order {order}, {name}")
    assert all(torch.equal(before[k], v) for k, v in got.named_buffers())


def test_running_statistics_follow_the_definition() -> None:
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64)
    m = nf.compile("bn-relu", channels=3, backend="c", momentum=0.25).double()
    assert [n for n, _ in m.named_buffers()] == ["running_mean", "running_var", "num_batches_tracked"]
    m(x)
    n = 4 * 5 * 2
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False) * n / (n - 1)
    torch.testing.assert_close(m.running_mean, 0.25 * mean)
    torch.testing.assert_close(m.running_var, 0.75 + 0.25 * var)
    r = nf.compile("x / rms[b,w,h](x)", channels=3, backend="c").double()
    r(x)
    torch.testing.assert_close(r.running_ms, 0.9 + 0.1 * x.square().mean((0, 2, 3)))
    one = nf.compile("evonorm-b0", channels=3, backend="c").double()
    one(x[:1, :, :1, :1])  # n = 1: no correction, and no division by zero
    torch.testing.assert_close(one.running_var, torch.full((3,), 0.9, dtype=torch.float64))


class Mutations(TorchDispatchMode):
    """Notes the operations that change a tensor in place."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["c", "eager"])
@pytest.mark.parametrize("layer", [*BATCH_LAYERS, NESTED])
def test_running_statistics_take_one_operation(layer: str, backend: str) -> None:
    """However many there are, a step changes all of them by one call, beside the one that counts batches; inference
    changes none."""
    m = nf.compile(layer, channels=4, groups=2, backend=backend)
    x = torch.randn(3, 4, 5, 2)
    for mode in (True, False):
        m.train(mode)
        with Mutations() as seen:
            m(x)
        assert seen.names == ["add_.Tensor", "_foreach_lerp_.Scalar"] * mode
    x = x.requires_grad_()
    m.train()
    m(x)
    assert not any(b.requires_grad for b in m.buffers())


@pytest.mark.parametrize("layer", ["bn-relu", "evonorm-s0", "layernorm-gelu"])
def test_a_prepared_call_asks_torch_for_memory_alone(layer: str) -> None:
    """From the second call of a shape on: no conversion, no copy, no view, in any order."""
    m = nf.compile(layer, channels=4, groups=2, backend="c")
    x = torch.randn(3, 4, 5, 2, requires_grad=True)
    leaves = [x, *m.parameters()]
    dy = torch.randn(3, 4, 5, 2, requires_grad=True)

    def orders() -> None:
        first = torch.autograd.grad(m(x), leaves, dy, create_graph=True)
        torch.autograd.grad(first[0], [*leaves, dy], dy, materialize_grads=True)

    orders()
    with torch.autograd.profiler.profile() as seen:
        orders()
    names = {e.name for e in seen.function_events if e.name.startswith("aten::")}
    assert "LayerFunction" in {e.name for e in seen.function_events}
    materialized = {"aten::zeros", "aten::zero_", "aten::fill_"}  # of parameters that the gradient does not depend on
    statistics = {"aten::_foreach_lerp_", "aten::lerp_", "aten::add_"}
    assert names <= {"aten::empty", "aten::empty_strided", *statistics, *materialized}


def test_parameters_that_something_else_holds() -> None:
    """A parametrization, `functional_call`, and a parameter of another shape with as many elements."""

    class Double(torch.nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return 2 * w

    m = make(nf.layers["gn-silu"], "c", 4, 2, torch.float32, 0)
    x = torch.randn(3, 4, 5, 2)
    doubled = {name: 2 * p for name, p in m.named_parameters()}
    want = torch.func.functional_call(m, doubled, (x,))
    assert not torch.equal(want, m(x))
    other = copy.deepcopy(m)
    for name in ("weight", "bias"):
        torch.nn.utils.parametrize.register_parametrization(other, name, Double())
    assert torch.equal(other(x), want)
    m.weight = torch.nn.Parameter(m.weight.detach().reshape(4, 1, 1))
    m(x).square().sum().backward()
    assert m.weight.grad.shape == (4, 1, 1)
    plain = torch.nn.Parameter(m.weight.detach().reshape(4))
    (grad,) = torch.autograd.grad(torch.func.functional_call(m, {"weight": plain}, (x,)).square().sum(), plain)
    assert torch.equal(m.weight.grad.reshape(4), grad)


def test_matches_torch_batch_norm() -> None:
    torch.manual_seed(0)
    mine = nf.compile("bn-relu", channels=5, backend="c")
    theirs = torch.nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(4, 5, 6, 6) * 2 + 1
        compare(mine(x), theirs(x).relu(), tolerance(torch.float32, 144, 5.0), "train")
    compare(mine.running_var, theirs.running_var, tolerance(torch.float32, 144, 5.0), "running_var")
    mine.eval(), theirs.eval()
    compare(mine(x), theirs(x).relu(), tolerance(torch.float32, 144, 5.0), "eval")


@pytest.mark.parametrize("dy_kind", ["nhwc", "expanded", "sliced", "permuted"])
@pytest.mark.parametrize("x_kind", ["nchw", "nhwc", "sliced", "permuted", "expanded"])
def test_any_strides(x_kind: str, dy_kind: str) -> None:
    shape = (2, 4, 3, 5)

    def lay(kind: str, seed: int) -> torch.Tensor:
        t = random_input(shape, seed, torch.float32)
        if kind == "nhwc":
            return t.to(memory_format=torch.channels_last)
        if kind == "sliced":
            wide = torch.zeros(2, 8, 3, 10)
            wide[:, ::2, :, ::2] = t
            return wide[:, ::2, :, ::2]
        if kind == "permuted":
            return t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        return t[:1, :, :1, :1].expand(shape) if kind == "expanded" else t

    for layer in ("evonorm-b0", "gn-silu"):
        m = make(nf.layers[layer], "c", 4, 2, torch.float32, 0)
        x, dy = lay(x_kind, 1).requires_grad_(), lay(dy_kind, 2)
        y = m(x)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert y.stride() == torch.empty_like(x).stride()
        plain = x.detach().contiguous().requires_grad_()
        y2 = m(plain)
        (dx2,) = torch.autograd.grad(y2, plain, dy.contiguous())
        compare(y, y2, tolerance(torch.float32, 120, 5.0), "y")
        compare(dx, dx2, tolerance(torch.float32, 120, 5.0, 1), "dx")


def test_channel_dim_last() -> None:
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    last = nf.compile("layernorm-gelu", channels=6, channel_dim=-1, backend="c").double()
    want = torch.nn.functional.gelu(torch.nn.functional.layer_norm(x, (6,)))
    torch.testing.assert_close(last(x), want)
    assert last(x).stride() == x.stride()
    assert last(x[:, 0]).shape == (2, 6)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck_and_gradgradcheck(name: str) -> None:
    m = make(nf.layers[name], "c", 4, 2, torch.float64, 3)
    x = random_input((2, 4, 2, 2), 4, torch.float64).requires_grad_()
    params = tuple(m.parameters())

    def f(x: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(m, dict(zip((n for n, _ in m.named_parameters()), params, strict=True)), x)

    assert torch.autograd.gradcheck(f, (x, *params))
    assert torch.autograd.gradgradcheck(f, (x, *params))


@pytest.mark.parametrize("layer", ["evonorm-b0", "gn-silu", "layernorm-gelu"])
@pytest.mark.parametrize("train", [True, False])
def test_opcheck_each_order(layer: str, train: bool) -> None:
    graph = nf.layers[layer]
    for order in range(3):
        job = Job(order, train, 2, graph)
        x = torch.randn(2, 4, 3, 2)
        shapes = {15: (2, 4, 3, 2), 6: (4,), 2: (2,), 3: (2, 2), 7: (2, 4), 9: (2, 6), 0: (), 1: (2,)}
        inputs = [x, *(torch.rand(shapes[n.axes]) + 0.5 for n in job.program.operands[1:])]
        for t in inputs[: len(inputs) - (len(job.program.saved) if order else 0)]:
            t.requires_grad_()
        torch.library.opcheck(
            op, (inputs, job.key), test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
        )


@pytest.mark.parametrize("name", ["bn-relu", "evonorm-s0", "dyt"])
def test_third_order(name: str) -> None:
    got, want = (make(nf.layers[name], b, 4, 2, torch.float64, 0) for b in ("c", "eager"))
    x = random_input((2, 4, 2, 3), 1, torch.float64)

    def third(m: nf.Layer) -> torch.Tensor:
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(m(z).square().sum(), z, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), z, create_graph=True)
        return torch.autograd.grad(h.square().sum(), z, create_graph=True)[0]

    a, b = third(got), third(want)
    compare(a.detach(), b.detach(), tolerance(torch.float64, 48, float(b.abs().max()), 3), "third order")
    with pytest.raises(BackendError, match="order 4"):
        torch.autograd.grad(a.sum(), list(got.parameters()))


@pytest.mark.parametrize("name", LAYERS)
def test_penalties_on_some_gradients(name: str) -> None:
    """Gradients without a cotangent are left out of the second derivative: the same numbers, whichever they are."""
    got, want = (make(nf.layers[name], b, 4, 2, torch.float64, 0) for b in ("c", "eager"))
    x = random_input((3, 4, 2, 3), 1, torch.float64)
    weights = cotangents_for(got, x.shape, torch.float64, 2)[1:]

    def penalty(m: nf.Layer, chosen: tuple[int, ...]) -> list[torch.Tensor]:
        z = x.clone().requires_grad_()
        leaves = [z, *m.parameters()]
        first = torch.autograd.grad(m(z).square().sum(), leaves, create_graph=True)
        scalar = sum((first[i] * weights[i]).square().sum() for i in chosen)
        second = torch.autograd.grad(scalar, leaves, create_graph=True, materialize_grads=True)
        return [*second, *torch.autograd.grad(second[0].square().sum(), leaves, materialize_grads=True)]

    last = len(list(got.parameters()))
    for chosen in ((0,), (last,), (0, last)):
        mine, theirs = penalty(got, chosen), penalty(want, chosen)
        for order, part in ((2, slice(0, last + 1)), (3, slice(last + 1, None))):
            scale = 1 + max(float(t.detach().abs().max()) for t in theirs[part])
            for k, (a, b) in enumerate(zip(mine[part], theirs[part], strict=True)):
                what = f"order {order}, value {k} of {name} with cotangents of {chosen}"
                compare(a.detach(), b.detach(), tolerance(torch.float64, 72, scale, order), what)


def test_a_key_says_which_gradients_have_cotangents() -> None:
    job = Job(0, True, 2, nf.layers["gn-silu"]).after().after((0, 2)).after((0,))
    assert job.seeded == ((0, 2), (0,)) and Job.parse(job.key) == job
    whole = Job(1, True, 2, nf.layers["gn-silu"]).after((0, 1, 2))
    assert whole == Job(2, True, 2, nf.layers["gn-silu"], (None,)) and Job.parse(whole.key) == whole
    assert len(whole.program.operands) == len(Job(1, True, 2, nf.layers["gn-silu"]).after().program.operands) + 2


def test_a_key_says_the_target_and_old_ones_leave_it_to_the_device() -> None:
    """Exported programs hold keys: one of an older version has no target, and one that was moved has another's."""
    graph = nf.layers["gn-silu"]
    x, params = torch.randn(2, 4, 3, 3), [torch.ones(4), torch.zeros(4)]
    new, moved = Job(0, True, 2, graph, target="c"), Job(0, True, 2, graph, target="triton")
    old = Job.parse(f"0|train|2||{graph}")
    assert Job.parse(new.key) == new and new.after().after().target == "c" and old == Job(0, True, 2, graph)
    results = [op([x, *params], job.key if job is not old else f"0|train|2||{graph}") for job in (new, moved, old)]
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("layer", ["evonorm-b0", "layernorm-gelu"])
def test_both_doors_agree(layer: str) -> None:
    """The autograd.Function of plain calls and the registered op: equal bits in every order, equal errors."""
    job = Job(0, True, 2, nf.layers[layer])
    outcomes = []
    for door in (run_plain, op):
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(3, 4, 5, 2, generator=generator),
            *(torch.rand(4, generator=generator) for _ in job.layer.params),
        ]
        leaves = [t.requires_grad_() for t in inputs]
        y = door(leaves, job.key)[0]
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, create_graph=True)
        third = torch.autograd.grad(sum(g.square().sum() for g in second), leaves, create_graph=True)
        with pytest.raises(BackendError, match="order 4"):
            torch.autograd.grad(third[0].sum(), leaves)
        outcomes.append([y, *first, *second, *third])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_backward_keeps_x_and_small_statistics(name: str) -> None:
    """Bytes saved for backward in a training step: x itself, parameters, and statistics of one value a row."""
    m = nf.compile(name, channels=8, groups=4, backend="c")
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        m(x)
    assert kept.pop(x.untyped_storage().data_ptr()) == x.numel() * 4
    for p in m.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    rows = 4 * 32 * 32 if name in ("layernorm-gelu", "rmsnorm") else 4 * 8
    assert sum(kept.values()) <= 4 * rows * 4  # at most four statistics, float32


@pytest.mark.parametrize("name", ["bn-relu", "evonorm-b0"])
def test_the_formula_in_torch_is_one_graph(name: str) -> None:
    """Of layers with running statistics too: what torch.compile makes of it is what kernels are compared with."""
    m, x = nf.compile(name, 4, backend="eager"), torch.randn(2, 4, 3, 3)
    whole = torch.compile(m, fullgraph=True, backend="eager")
    for train in (True, False):
        whole.train(train)
        assert whole(x).shape == x.shape


def test_torch_compile_fullgraph() -> None:
    for layer in ("evonorm-b0", "gn-silu"):
        m = make(nf.layers[layer], "c", 4, 2, torch.float32, 0)
        other = copy.deepcopy(m)
        x = torch.randn(3, 4, 5, 5)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = torch.compile(m, fullgraph=True)(a)
        z = other(b)
        y.square().sum().backward()
        z.square().sum().backward()
        assert torch.equal(y, z) and torch.equal(a.grad, b.grad)
        for p, q in zip(m.buffers(), other.buffers(), strict=True):
            # Not bit for bit: inductor may contract the blend of the running moment into an fma.
            torch.testing.assert_close(p, q, rtol=2**-22, atol=0)


def test_state_dict_and_casts() -> None:
    m = make(nf.layers["evonorm-b0"], "c", 4, None, torch.float32, 0)
    m(torch.randn(3, 4, 2, 2))
    other = nf.compile("evonorm-b0", channels=4, backend="c")
    other.load_state_dict(m.state_dict())
    assert sorted(m.state_dict()) == ["bias", "num_batches_tracked", "running_var", "v1", "weight"]
    old = {name: value for name, value in m.state_dict().items() if name != "num_batches_tracked"}
    other.load_state_dict(old)  # as they were before batches were counted
    m.eval(), other.eval()
    x = torch.randn(3, 4, 2, 2)
    assert torch.equal(m(x), other(x))
    assert m.double().running_var.dtype == torch.float64
    assert m.half().running_var.dtype == torch.float32 and m.weight.dtype == torch.float16
    assert m(x.half()).dtype == torch.float16
    assert "std[b,w,h](x)" in repr(m)
    assert m.bfloat16().running_var.dtype == torch.float32


def test_weights_of_a_batch_norm_are_loaded() -> None:
    norm = torch.nn.BatchNorm2d(4)
    norm(torch.randn(3, 4, 5, 5) * 3 + 1)
    theirs = torch.nn.Sequential(norm, torch.nn.ReLU()).eval()
    ours = torch.nn.Sequential(nf.compile("bn-relu", channels=4, backend="c"), torch.nn.Identity()).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_bfloat16_input_with_float32_parameters() -> None:
    m = nf.compile("evonorm-s0", channels=4, backend="c")
    x = torch.randn(2, 4, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    y = m(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == torch.bfloat16 and m.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_results_do_not_depend_on_threads(layout: str) -> None:
    before = torch.get_num_threads()
    for layer in ("evonorm-b0", "gn-silu", "layernorm-gelu", "ln-relu"):
        for shape in ((8, 16, 24, 24), (1, 8, 96, 64), (3, 32, 40, 40)):
            outcomes = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                m = make(nf.layers[layer], "c", shape[1], 4, torch.float32, 0)
                r = run(m, random_input(shape, 1, torch.float32, layout), cotangents_for(m, shape, torch.float32, 2))
                outcomes.append([r.y, *r.first, *r.second])
                torch.set_num_threads(before)
            for other in outcomes[1:]:
                assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True)), (layer, shape)


@pytest.mark.parametrize("params, x", [("bfloat16", "float32"), ("float32", "float64"), ("float64", "float32")])
def test_parameters_of_another_dtype_than_x(params: str, x: str) -> None:
    """Gradients are written in the kernel's dtype and delivered in the parameter's."""
    got, want = (make(nf.layers["gn-silu"], b, 64, None, getattr(torch, params), 0) for b in ("c", "eager"))
    z = random_input((2, 64, 5, 5), 1, getattr(torch, x)).requires_grad_()
    mine, theirs = (
        torch.autograd.grad(m(z).square().sum(), [z, *m.parameters()], create_graph=True) for m in (got, want)
    )
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype
        allowed = tolerance(torch.float32, 3200, 1 + float(b.detach().abs().max()), 1)
        compare(
            a.detach(), b.detach(), max(allowed, float(b.detach().abs().max()) * torch.finfo(b.dtype).eps), "gradient"
        )
    torch.autograd.grad(sum(g.double().square().sum() for g in mine), list(got.parameters()))


@pytest.mark.parametrize(
    "layer", ["silu(x) / std[c](silu(x))", "(sigmoid(x) - mean[c](sigmoid(x))) / std[c](sigmoid(x))"]
)
@pytest.mark.parametrize("shape", [(3, 6, 4, 5), (2, 4, 97, 53)])
def test_variances_of_dear_values_over_channels(layer: str, shape: tuple[int, ...]) -> None:
    for layout in ("nchw", "nhwc"):
        check_against_eager(nf.parse(layer), shape, 2, torch.float32, layout)


def test_products_with_a_mean_cancel_exactly() -> None:
    """x·x less its mean over one element is zero, and stays so when 1/√ε scales it."""
    x = random_input((2, 4, 1, 1), 0, torch.float32).requires_grad_()
    (g,) = torch.autograd.grad(nf.compile("x / std[w,h](x * x)", 4, backend="c")(x).sum(), x)
    torch.testing.assert_close(g, torch.full_like(x, 1e-5**-0.5), rtol=1e-5, atol=0)


def test_factors_of_unknown_size_do_not_meet_early() -> None:
    x = torch.full((2, 4, 2, 2), 50.0)
    y = nf.compile("square((exp(x) + 1) * sigmoid(-x))", 4, backend="c")(x)
    torch.testing.assert_close(y, torch.ones_like(y), rtol=1e-5, atol=0)


def test_special_tensors() -> None:
    m = nf.compile("tanh(x)", 4, backend="c")
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(m(torch._neg_view(x)), m(-x))
    with torch.device("meta"):
        assert torch.isfinite(m(x)).all()
    with torch.autograd.forward_ad.dual_level():
        y = m(torch.autograd.forward_ad.make_dual(x, x))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, x * (1 - torch.tanh(x) ** 2))
    gn = nf.compile("gn-silu", 4, backend="c")
    gn.weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ShapeError, match="1 elements"):
        gn(x)


@pytest.mark.parametrize("layer", EXTREME)
def test_mean_far_larger_than_deviation(layer: str) -> None:
    for layout in ("nchw", "nhwc"):
        check_extreme(layer, "c", layout)


def test_nan_and_infinity_propagate() -> None:
    m = nf.compile("max(x, v0) + abs(x) + square(x) + tanh(x) + erf(x) + sigmoid(x)", 2, backend="c")
    x = torch.tensor([[float("nan"), 1.0], [float("inf"), -float("inf")]])
    assert torch.isnan(m(x))[0, 0] and torch.isinf(m(x)[1]).all() and torch.isfinite(m(x)[0, 1])
    for formula in ("max(x, v1)", "max(v1, x)", "min(x, v1)", "min(v1, x)"):
        assert torch.isnan(nf.compile(formula, 2, backend="c")(x)[0, 0])
    for function in ("exp", "log", "sqrt", "tanh", "sigmoid", "erf", "softplus", "sin", "cos"):
        formula = f"{function}(x)"
        got = nf.compile(formula, 1, backend="c")
        x = torch.cat([torch.linspace(-120, 120, 4001), torch.tensor([1e-40, -1e-40, 3e38, -3e38, 0.0]),
                       torch.tensor([float("inf"), -float("inf")])])[:, None]  # fmt: skip
        want = nf.compile(formula, 1, backend="eager").double()(x.double())
        relative = ((got(x).double() - want) / want.abs().clamp(min=1e-38)).abs()
        same = (got(x).double() == want.float().double()) | (torch.isnan(got(x)) & torch.isnan(want))
        small = (got(x).double() - want).abs() < 1e-37  # denormals keep what digits they have
        assert (same | small | (relative < 4e-6)).all(), (formula, x[(~(same | small | (relative < 4e-6)))])


def test_missing_compiler() -> None:
    """A real process without a compiler on its path: one warning and eager, or an error when asked for by name."""
    program = """
import warnings, torch, normforge as nf
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        nf.compile("bn-relu", channels=2)(torch.randn(2, 2))
assert len([w for w in seen if "C compiler" in str(w.message)]) == 1, seen
try:
    nf.compile("bn-relu", channels=2, backend="c")
except nf.errors.BackendError as e:
    assert "install" in str(e)
else:
    raise SystemExit("no error")
"""
    env = {k: v for k, v in os.environ.items() if k not in ("CC", "NORMFORGE_CC")} | {"PATH": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_each_compiler(compiler: str) -> None:
    """A real process told to use it: both know the flags they are given, and agree with eager."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    program = """
import torch, normforge as nf
from reference import check_against_eager
for layer in ("evonorm-b0", "layernorm-gelu"):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for layout in ("nchw", "nhwc"):
            check_against_eager(nf.layers[layer], (3, 6, 5, 7), 3, dtype, layout)
"""
    env = os.environ | {"NORMFORGE_CC": compiler, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_after_first_use() -> None:
    """A child has no OpenMP threads: it must neither wait for them nor compute anything else."""
    program = """
import os, signal, sys, torch, normforge as nf
torch.set_num_threads(2)
module = nf.compile("gn-silu", channels=64, backend="c")
x = torch.randn(8, 64, 32, 32)
before = module(x).detach().numpy()
if os.fork() == 0:
    signal.alarm(60)
    y = module(x).detach().numpy()
    os._exit(0 if (y == before).all() else 1)  # by numpy: torch's own kernels do hang here
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_meta_tensors_have_shapes() -> None:
    m = nf.compile("bn-relu", channels=4).to("meta")
    y = m(torch.empty(2, 4, 3, 3, device="meta"))
    assert y.shape == (2, 4, 3, 3) and y.device.type == "meta"
    with pytest.raises(BackendError, match="does not run on meta"):
        nf.compile("bn-relu", channels=4, backend="triton").to("meta")(torch.empty(2, 4, device="meta"))


def test_empty_batch() -> None:
    m = nf.compile("evonorm-b0", channels=4, backend="c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.empty(0, 4, 3, 3, requires_grad=True)
        y = m(x)
        y.sum().backward()
    assert y.shape == (0, 4, 3, 3) and np.isfinite(m.running_var.numpy()).all()
