"""Layers that are given more than x, or give more than one result: numbers of every order, shapes, dtypes, errors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from named import WITH_INPUTS
from reference import compare, random_input, tolerance
from torch import Tensor

import normforge as nf
from normforge.errors import DtypeError, OptionError, ShapeError
from normforge.ir import Graph, evaluate
from normforge.ir.graph import declared_input, result_name
from normforge.ir.node import data, substitute, toposort
from normforge.ir.ops import Op
from normforge.ir.types import INPUT_NAMES
from normforge.kernels import toolchain
from normforge.kernels.job import Job
from normforge.kernels.run import run
from normforge.passes import Check, Degeneracy
from normforge.search import moves
from normforge.search.space import PAPER
from normforge.streams import stream

pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")

EXTRA = (
    "input m[b,w,h]; mu = mean[b,w,h](x * m) / mean[b,w,h](m); (x - mu) * m * gamma + beta",  # masked
    "input s[]; input t[c]; input u[b]; tanh(x * s + t) * u + std[b,w,h](x * u) * gamma, x * t",
    "input z[b,c,w,h]; input m[b,w,h]; h = x * sigmoid(z) * m; h / std[w,h,c/g](h), mean[c](h) * z, h",
    "x / rms[c](x), mean[w,h](x)",
)
SHAPES: list[tuple[tuple[int, ...], int | None]] = [((3, 6, 4, 5), 3), ((2, 8, 1, 1), 2), ((5, 12), 4)]


def shape_of(axes: int, x: Tensor) -> tuple[int, ...]:
    n, c, *space = x.shape
    return {"": (), "b": (n,), "c": (c,), "b,c": (n, c), "b,w,h": (n, *space), "b,c,w,h": tuple(x.shape)}[
        INPUT_NAMES[axes]
    ]


def given(layer: nf.Graph, x: Tensor, seed: int) -> list[Tensor]:
    """Further inputs around 1, exact in the dtype of x, large ones in its layout."""
    made = []
    for i, node in enumerate(layer.inputs[1:]):
        value = 1 + 0.5 * torch.randn(shape_of(node.axes, x), generator=torch.Generator().manual_seed(seed + i))
        value = value.to(x.dtype)
        made.append(torch.empty_like(x).copy_(value) if value.shape == x.shape else value)
    return made


def module_of(layer: nf.Graph, backend: str, channels: int, groups: int | None, dtype: torch.dtype) -> nf.Layer:
    module = nf.compile(layer, channels, groups=groups, backend=backend)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.3 * torch.sin(i + torch.arange(float(p.numel())).reshape(p.shape)))
    return module.to(dtype)


def orders(module: nf.Layer, tensors: Sequence[Tensor], up_to: int) -> list[list[Tensor]]:
    """The results, and the gradients of everything, of random scalars of those before."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    found = module(*leaves)
    found = [*found] if isinstance(found, tuple) else [found]
    values = [*leaves, *module.parameters()]
    every = [found]
    generator = torch.Generator().manual_seed(3)
    for _ in range(up_to):
        weights = [torch.randn(f.shape, generator=generator).to(f.dtype) for f in found]
        scalar = sum((w * f).sum() for w, f in zip(weights, found, strict=True))
        found = list(torch.autograd.grad(scalar, values, create_graph=True, materialize_grads=True))
        every.append(found)
        if not any(f.requires_grad for f in found):
            break
    return [[f.detach() for f in part] for part in every]


def check(
    layer: nf.Graph, shape: tuple[int, ...], groups: int | None, dtype: torch.dtype, layout: str, up_to: int
) -> None:
    x = random_input(shape, 1, dtype, layout)
    tensors = [x, *given(layer, x, 2)]
    got = orders(module_of(layer, "c", shape[1], groups, dtype), tensors, up_to)
    want = orders(
        module_of(layer, "eager", shape[1], groups, torch.float64), [t.double() for t in tensors], len(got) - 1
    )
    assert not any(t.any() for part in got[len(want) :] for t in part)  # eager knows that these are zero
    for order, (ours, theirs) in enumerate(zip(got, want, strict=False)):
        scale = 1 + max(float(t.abs().max()) for t in theirs)
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            allowed = tolerance(dtype, x.numel(), scale, order)
            compare(a, b, allowed, f"order {order}, value {k} of {layer} {shape} groups={groups} {dtype} {layout}")
            if a.shape == x.shape:
                assert a.dtype == x.dtype and (order or a.stride() == x.stride())


@pytest.mark.parametrize("name", [*WITH_INPUTS, *EXTRA])
def test_every_order(name: str) -> None:
    layer = nf.parse(name)
    (usual, groups), (one_position, few), (no_space, some) = SHAPES
    check(layer, usual, groups, torch.float32, "nchw", 3)
    check(layer, usual, groups, torch.float64, "nhwc", 3)
    check(layer, one_position, few, torch.float64, "nhwc", 2)
    check(layer, no_space, some, torch.float64, "nhwc", 2)


def drawn(count: int) -> list[nf.Graph]:
    """Random layers, each function once, with further inputs in the place of v0, v1 or 0, and every other one with a
    second result."""
    found: dict[str, nf.Graph] = {}
    for index in itertools.count():
        rng = stream(0, "inputs", index)
        graph = PAPER.to_graph(moves.grown(rng, PAPER))
        leaves = [n for n in graph.nodes if n.op is Op.CONST or (n.op is Op.PARAM and n.name in ("v0", "v1"))]
        axes = rng.choice(list(INPUT_NAMES), size=len(leaves))
        replace = {n: declared_input(f"z{i}", int(a)) for i, (n, a) in enumerate(zip(leaves, axes, strict=True))}
        results = [graph.output, *rng.choice(graph.nodes, size=index % 2)]
        out = substitute(results, replace)
        used = [z for z in replace.values() if z in toposort(out[r] for r in results)]
        layer = Graph(tuple((result_name(i), out[r]) for i, r in enumerate(results)), (data("x"), *used))
        if used and not Degeneracy((Check.TYPE, Check.DEPENDENCE, Check.RANGE)).run(layer):
            found.setdefault(layer.hash, layer)
        if len(found) == count:
            return list(found.values())
    raise AssertionError


def check_drawn(layer: nf.Graph, index: int, up_to: int) -> None:
    """Against float64, where float32 allows: an error is held beside that of torch's own float32 operations."""
    (shape, groups), layout = SHAPES[index % len(SHAPES)], ("nchw", "nhwc")[index % 2]
    x = random_input(shape, index, torch.float32, layout)
    tensors = [x, *given(layer, x, index)]
    wide = [t.double() for t in tensors]
    got, rough = (orders(module_of(layer, b, shape[1], groups, torch.float32), tensors, up_to) for b in ("c", "eager"))
    fine, want = (orders(module_of(layer, b, shape[1], groups, torch.float64), wide, up_to) for b in ("c", "eager"))
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    for order, (a, r, f, w) in enumerate(zip(got, rough, fine, want, strict=False)):
        finite = [torch.isfinite(t) & (t.abs() < 1e30) for t in w]
        scale = max((float(t[m].abs().max()) for t, m in zip(w, finite, strict=True) if m.any()), default=0.0)
        errors = [(t - q.double())[m].abs() for t, q, m in zip(w, r, finite, strict=True)]
        noise = max((float(e[e.isfinite()].max()) for e in errors if e.isfinite().any()), default=0.0)
        allowed = 64 * 4**order * (noise + torch.finfo(torch.float32).eps * scale)
        for k, (t32, t64, t, q, m) in enumerate(zip(a, f, w, r, finite, strict=True)):
            what = f"order {order}, value {k} of {layer} {shape} {layout}"
            target = torch.where(m, t, torch.nan)
            compare(t64, target, 64 * ratio * allowed, f"float64: {what}")
            if torch.isfinite(q).all():  # where float32 itself overflows there is nothing to compare
                compare(t32, target, allowed, what)


def test_random_formulas() -> None:
    for index, layer in enumerate(drawn(6)):
        check_drawn(layer, index, 2)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 200, 20))
def test_more_random_formulas(start: int) -> None:
    for index, layer in enumerate(drawn(200)[start : start + 20], start):
        check_drawn(layer, index, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["adagn-silu", "add-rmsnorm", EXTRA[1]])
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    check(nf.parse(name), (3, 8, 5, 6), 4, dtype, "nhwc", 1)


@pytest.mark.parametrize("name", [*WITH_INPUTS, *EXTRA])
def test_inference_and_the_evaluator(name: str) -> None:
    """Values in training by the numpy evaluator, and in inference, with running statistics, by eager."""
    layer, x = nf.parse(name), random_input((3, 6, 4, 5), 0, torch.float64)
    tensors = [x, *given(layer, x, 5)]
    compiled, eager = (module_of(layer, backend, 6, 3, torch.float64) for backend in ("c", "eager"))
    values = {n.name: t.numpy() for n, t in zip(layer.inputs, tensors, strict=True)}
    values |= {p.name: getattr(compiled, compiled.names[p.name]).detach().numpy() for p in layer.params}
    want = evaluate(layer, values, groups=3)
    for _ in range(2):
        for module in (compiled, eager):
            found = module(*tensors)
            for y, key in zip(found if isinstance(found, tuple) else (found,), want, strict=True):
                compare(y, torch.from_numpy(np.array(want[key])), 1e-12, f"{key} of {name}")
        for (label, a), (_, b) in zip(compiled.named_buffers(), eager.named_buffers(), strict=True):
            compare(a, b, 1e-12, f"{label} of {name}")
    for a, b in zip(compiled.eval()(*tensors), eager.eval()(*tensors), strict=True):
        compare(a, b, 1e-12, f"{name} in inference")


def test_the_masked_mean_is_of_what_is_not_masked() -> None:
    layer = nf.compile("input m[b,w,h]; x * 0 + mean[b,w,h](x * m) / mean[b,w,h](m)", 4)
    x = random_input((2, 4, 3, 5), 0, torch.float32)
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    want = torch.stack([x[:, c][mask].mean() for c in range(4)])
    for given_mask in (mask, mask.int(), mask[:, None], mask.to(torch.bfloat16)):
        compare(layer(x, given_mask)[0, :, 0, 0], want, tolerance(torch.float32, 30, 1.0), "masked mean")


def test_channels_last_axis() -> None:
    """With channel_dim=-1 the axes mean the same: (B, C) beside (B, *positions, C)."""
    for name in ("adaln", "add-rmsnorm", EXTRA[2]):
        layer = nf.parse(name)
        x = random_input((2, 8, 5), 0, torch.float32)
        tensors = [x, *given(layer, x, 1)]
        want = nf.compile(layer, 8, groups=4)(*tensors)
        last = [t.movedim(1, -1) if t.shape == x.shape else t for t in tensors]
        got = nf.compile(layer, 8, groups=4, channel_dim=-1)(*last)
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, want)), strict=True):
            compare(a.movedim(-1, 1), b, tolerance(torch.float32, 8, 4.0), name)
    masked = nf.compile(EXTRA[0], 8, channel_dim=-1)
    x, m = torch.randn(2, 5, 8), torch.ones(2, 5)
    assert torch.equal(masked(x, m), masked(x, m[..., None]))


def test_gradients_come_in_the_dtype_and_shape_of_their_inputs() -> None:
    layer = nf.compile("input z[b,c,w,h]; input m[b,w,h]; input t[c]; x * z * m + t", 4)
    x = torch.randn(2, 4, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    z = torch.randn(2, 4, 3, 3, dtype=torch.float32, requires_grad=True)
    m = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    t = torch.randn(4, dtype=torch.float16, requires_grad=True)
    layer(x, z, m, t).sum().backward()
    assert all(i.grad is not None and i.grad.dtype == i.dtype and i.grad.shape == i.shape for i in (x, z, m, t))
    compare(t.grad, torch.full((4,), 18.0), 0.0, "gradient of t")


def test_by_name_and_by_place() -> None:
    layer = nf.compile("adagn-silu", 8)
    x, scale, shift = torch.randn(2, 8, 3, 3), torch.randn(2, 8), torch.randn(2, 8)
    want = layer(x, scale, shift)
    assert torch.equal(layer(x, shift=shift, scale=scale), want) and torch.equal(layer(x, scale, shift=shift), want)


MISTAKES = [
    (lambda m, x, s: m(x), OptionError, "needs scale, shift beside x"),
    (lambda m, x, s: m(x, s), OptionError, "needs shift beside x"),
    (lambda m, x, s: m(x, s, s, s), OptionError, "takes scale, shift beside x, and 3 tensors"),
    (lambda m, x, s: m(x, s, shifts=s), OptionError, "no input 'shifts'; did you mean 'shift'"),
    (lambda m, x, s: m(x, s, s, scale=s), OptionError, "'scale' is given twice"),
    (lambda m, x, s: m(x, s, s[0]), ShapeError, r"'shift' has the shape \(8,\) and \[b,c\] of this x is \(2, 8\)"),
    (lambda m, x, s: m(x, s[:1], s), ShapeError, r"'scale' has the shape \(1, 8\)"),
    (lambda m, x, s: m(x, s, 1.0), OptionError, "'shift' is a float: give a tensor"),
    (lambda m, x, s: m(x, s, s.to(torch.complex64)), DtypeError, "'shift' is torch.complex64"),
]


@pytest.mark.parametrize("case", range(len(MISTAKES)))
def test_mistakes(case: int) -> None:
    call, error, message = MISTAKES[case]
    with pytest.raises(error, match=message):
        call(nf.compile("adagn-silu", 8), torch.randn(2, 8, 3, 3), torch.randn(2, 8))


def test_a_result_that_is_not_used() -> None:
    layer, reference = (module_of(nf.parse("add-layernorm"), b, 8, None, torch.float64) for b in ("c", "eager"))
    tensors = [torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for which in (0, 1):
        grads = [
            torch.autograd.grad(m(*tensors)[which].square().sum(), tensors, create_graph=True)
            for m in (layer, reference)
        ]
        for a, b in zip(*grads, strict=True):
            compare(a, b, 1e-11, f"result {which}")


def test_compiled_and_checked_by_torch() -> None:
    """torch.compile traces both results and all gradients; opcheck tests the operator with further operands."""
    layer = nf.compile("add-rmsnorm", 8)
    x, r = torch.randn(2, 8, 3, 3, requires_grad=True), torch.randn(2, 8, 3, 3, requires_grad=True)
    traced = torch.compile(layer, fullgraph=True)
    for a, b in zip(traced(x, r), layer(x, r), strict=True):
        compare(a, b, 0.0, "traced")
    grads = [torch.autograd.grad(sum(y.square().sum() for y in m(x, r)), [x, r]) for m in (traced, layer)]
    for a, b in zip(*grads, strict=True):
        compare(a, b, 1e-5, "gradient of traced")
    graph = nf.layers["adagn-silu"]
    operands = [torch.randn(2, 8, 3, 3, requires_grad=True), *(torch.randn(2, 8, requires_grad=True) for _ in range(2))]
    torch.library.opcheck(run, (operands, Job(0, True, 4, graph, target="c").key))


def test_copies_and_state() -> None:
    layer = module_of(nf.parse("cond-evonorm-b0"), "c", 8, None, torch.float32)
    x, gain, bias = torch.randn(2, 8, 3, 3), torch.randn(2, 8), torch.randn(2, 8)
    want = layer(x, gain, bias)
    other = copy.deepcopy(layer)
    assert torch.equal(other(x, gain, bias), want) and list(layer.state_dict()) == [
        "v1",
        "running_var",
        "num_batches_tracked",
    ]
    assert type(nf.compile("gn-relu", 8)) is nf.Layer and isinstance(layer, nf.Layer)


def test_conditional() -> None:
    """With the values of gamma and beta as inputs it is the layer itself."""
    for name in ("evonorm-s0", "rmsnorm", "frn-tlu"):
        layer = module_of(nf.parse(name), "c", 8, None, torch.float32)
        conditional = nf.compile(nf.conditional(name), 8)
        conditional.load_state_dict(layer.state_dict(), strict=False)
        x = torch.randn(3, 8, 4, 4)
        inputs = [p.expand(3, 8) for n in ("weight", "bias") if (p := getattr(layer, n, None)) is not None]
        compare(conditional(x, *inputs), layer(x), 1e-6, name)
    assert nf.conditional("bn-relu") == nf.layers["cond-bn-relu"]
    with pytest.raises(OptionError, match="neither"):
        nf.conditional("tanh(x)")
    for taken in ("param gain = 1; x * gamma + gain", "input bias[b]; x * beta + bias"):
        with pytest.raises(OptionError, match="something of that name"):
            nf.conditional(taken)
