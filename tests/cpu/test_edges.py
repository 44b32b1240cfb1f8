"""Numbers at the edges: moments over one element, sums over many channels, operands that are not finite, tensors
without memory."""

from __future__ import annotations

import pytest
import torch
from named import LAYERS
from reference import check_against_eager, compare, cotangents_for, make, random_input, tolerance

import normforge as nf
from normforge.kernels import toolchain
from normforge.kernels.job import Job
from normforge.passes.single import moment_axes, single_axes

pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")

ONE_ELEMENT: list[tuple[tuple[int, ...], int | None]] = [
    ((1, 16, 1, 1), None),  # of w,h; b,w,h; w,h,c/g
    ((8, 4, 1, 1), None),
    ((8, 1), None),  # of c and w,h,c too
    ((1, 1, 1), None),  # of all
    ((4, 6, 1, 1), 3),  # not of w,h,c/g
    ((2, 1, 3, 2), None),  # of c alone
]
NESTED = "x / std[b,w,h](x - mean[b,w,h](x * sigmoid(v1 * x))) + std[w,h](rms[c](x)) * gamma"


def derivatives(layer: nf.Graph, backend: str, x: torch.Tensor, groups: int | None) -> list[torch.Tensor]:
    """y, and the gradients of x three times over."""
    y = make(layer, backend, x.shape[1], groups, x.dtype, 0)(x.requires_grad_())
    weights = random_input(x.shape, 2, torch.float32).to(x.dtype)
    found = [y.detach()]
    for _ in range(3):
        (y,) = torch.autograd.grad((y * weights).sum(), x, create_graph=True)
        found.append(y.detach())
    return found


# Normalization over the batch alone refuses, in training, what it would make nothing of.
@pytest.mark.parametrize("name", [*(n for n in LAYERS if not n.startswith(("bn-", "batchnorm"))), NESTED])
def test_moments_over_one_element(name):
    layer = nf.parse(name)
    # Each shape is code of its own: all of them for layers with moments of several kinds.
    every = name in (NESTED, "evonorm-b0", "gn-silu")
    for shape, groups in ONE_ELEMENT if every else ONE_ELEMENT[:1]:
        layouts = ("nchw", "nhwc") if shape[1] > 1 else ("nchw",)
        for layout in layouts:
            got = derivatives(layer, "c", random_input(shape, 1, torch.float32, layout), groups)
            want = derivatives(layer, "eager", random_input(shape, 1, torch.float32, layout).double(), groups)
            for order, (a, b) in enumerate(zip(got, want, strict=True)):
                allowed = tolerance(torch.float32, a.numel(), 1 + float(b.abs().max()), order)
                compare(a, b, allowed, f"order {order} of {name} {shape} groups={groups} {layout}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_moments_over_one_element_in_other_dtypes(dtype):
    for name in ("gn-silu", "evonorm-b2"):
        for shape, groups in ONE_ELEMENT[:2]:
            check_against_eager(nf.layers[name], shape, groups, dtype, "nchw")


def test_what_is_zero_is_exactly_zero():
    x = random_input((1, 16, 1, 1), 0, torch.float32).requires_grad_()
    (dx,) = torch.autograd.grad(nf.compile("in-relu", 16, backend="c")(x).sum(), x, create_graph=True)
    assert not dx.any()


def test_which_moments_are_over_one_element():
    groups, batch = (moment_axes(nf.parse(f)) for f in ("x / std[w,h,c/g](x)", "x - mean[b,w,h](x)"))
    moments = moment_axes(nf.parse("x / std[w,h,c/g](x) + mean[b,w,h](x) + std[w,h](v1)"))
    assert moments == (*groups, *batch)  # v1 does not vary along w,h
    assert not any(single_axes(moments, extents) for extents in ((2, 4, 3, 5), (1, 4, 3, 5), (2, 4, 3, 1)))
    assert single_axes(moments, (2, 12, 1, 1)) == groups[0] and single_axes(moments, (1, 4, 3, 1)) == batch[0]
    assert single_axes(moments, (1, 12, 1, 1)) == groups[0] | batch[0]
    job = Job(0, True, 4, nf.parse("gn-silu"), target="c", single=12)
    assert Job.parse(job.key) == job and Job.parse(job.after().key).single == 12
    assert job.key != Job(0, True, 4, nf.parse("gn-silu"), target="c").key


def test_shapes_of_one_element_and_others_in_turn():
    layer, reference = (make(nf.parse("evonorm-b2"), backend, 4, None, torch.float32, 0) for backend in ("c", "eager"))
    for shape in ((1, 4, 1, 1), (1, 4, 2, 1), (3, 4), (1, 4, 1, 1)):
        x = random_input(shape, 0, torch.float32)
        compare(layer(x), reference(x), tolerance(torch.float32, x.numel(), 4.0), f"{shape}")
    assert all(torch.allclose(a, b) for a, b in zip(layer.buffers(), reference.buffers(), strict=True))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_sums_over_many_channels(layout):
    """A mean of 2000 is rounded to float32 by 6.1e-5 at most; four such roundings are allowed."""
    half = 2000 * 2.0**-24
    x = random_input((2, 16384, 5, 3), 0, torch.float32, layout) + 2000
    for formula, size in (
        ("x - mean[c](x)", 1.0),
        ("(x - mean[c](x)) / std[c](x)", 1.0),
        ("x / rms[c](x)", 1 / 2000),
        ("(x - mean[c](x)) / std[w,h](x)", 4.0),  # rows whose variance is taken meanwhile
    ):
        want = nf.compile(formula, 16384, backend="eager").double()(x.double())
        compare(nf.compile(formula, 16384, backend="c")(x), want, 4 * half * size, f"{formula} {layout}")


def test_the_deviation_of_what_is_not_finite_is_not_a_number():
    x = random_input((2, 4, 3, 3), 0, torch.float32)
    for formula in ("x + std[c](1 / 0)", "x * std[w,h](x / 0)"):
        for backend in ("c", "eager"):
            assert nf.compile(formula, 4, backend=backend)(x).isnan().all(), (formula, backend)


def test_a_parameter_under_a_moment_has_a_gradient_everywhere():
    for backend in ("c", "eager"):
        layer = nf.compile("x * 0 + mean[b,w,h,c](std[b,w,h](v0))", 4, backend=backend)
        y = layer(torch.ones(2, 4, 3, 3))
        assert y.requires_grad
        y.sum().backward()
        assert layer.v0.grad is not None and not layer.v0.grad.any()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_tensors_without_memory(layout):
    """What autograd knows to be zero may come as a tensor without memory, as input, parameter or cotangent."""
    layer = make(nf.parse("gn-silu"), "c", 4, 2, torch.float32, 0)
    x = random_input((2, 4, 3, 3), 0, torch.float32, layout)
    zero = torch._efficientzerotensor(x.shape)
    assert zero._is_zerotensor()
    assert torch.equal(layer(zero), layer(torch.zeros_like(zero)))
    y = layer(x.requires_grad_())
    inputs = [x, *layer.parameters()]
    first = torch.autograd.grad(y, inputs, zero, retain_graph=True)
    assert not any(g.any() for g in first)
    one = cotangents_for(layer, x.shape, torch.float32, 0)[0].float().requires_grad_()
    (dx,) = torch.autograd.grad(y, x, one, create_graph=True)
    assert not any(g.any() for g in torch.autograd.grad(dx, [*inputs, one], zero, allow_unused=True) if g is not None)
    with torch.no_grad():
        layer.weight = torch.nn.Parameter(torch._efficientzerotensor((4,)))
        layer.bias.zero_()
    assert not layer(x).any()
