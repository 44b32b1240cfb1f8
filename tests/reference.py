"""What a compiled layer is compared with: the eager backend in float64 (torch's own derivatives) and the numpy
evaluator, and the one function that says how close is close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import normforge as nf
from normforge.codegen.shapes import plan_dims
from normforge.ir import evaluate
from normforge.passes.single import moment_axes, single_axes

SHAPES: list[tuple[tuple[int, ...], int | None]] = [
    ((3, 6, 4, 5), 3),  # several channels a group
    ((1, 8, 3, 3), None),  # N = 1
    ((2, 8, 1, 1), 2),  # H = W = 1
    ((2, 40, 3, 7), None),  # C not divisible by 32, odd sizes
    ((5, 12), 4),  # no space
    ((2, 6, 2, 3, 2), 2),  # three spatial axes
    ((2, 4, 97, 53), 2),  # rows longer than a tile
]


def tolerance(dtype: torch.dtype, length: int, scale: float, order: int = 0) -> float:
    """Largest absolute error allowed for values of size `scale` that sum `length` terms.

    Rounding errors of a sum of n terms grow like sqrt(n) at worst for random signs; each derivative multiplies
    the operations that an element goes through by about four. Low-precision outputs are rounded once (twice where
    the cotangent of a derivative was rounded too).
    """
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    unit = torch.finfo(arithmetic).eps
    rounding = torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 0.0
    return scale * (16.0 * 4.0**order * unit * (8 + length**0.5) + 4 * rounding)


@dataclass
class Run:
    """y, gradients, and gradients of a random scalar of the gradients; inputs beside them."""

    y: Tensor
    first: list[Tensor]
    second: list[Tensor]
    names: list[str]


def make(layer: nf.Graph, backend: str, channels: int, groups: int | None, dtype: torch.dtype, seed: int) -> nf.Layer:
    """A module with parameters moved away from their starts, equal for equal seeds; rounded to float32 first."""
    module = nf.compile(layer, channels=channels, groups=groups, backend=backend)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module.to(dtype)


def random_input(shape: Sequence[int], seed: int, dtype: torch.dtype, layout: str = "nchw") -> Tensor:
    """Normal numbers, the same for each dtype up to rounding to it, in a memory layout."""
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "nhwc" else x


def run(module: nf.Layer, x: Tensor, cotangents: Sequence[Tensor], *, second_order: bool = True) -> Run:
    """All orders, or the first two. `cotangents`: of y, of dx, then of each parameter's gradient; converted to fit."""
    x = x.detach().requires_grad_()
    params = list(module.parameters())
    names = ["x", *(n for n, _ in module.named_parameters()), "dy"]
    y = module(x)
    dy = cotangents[0].to(y.dtype).detach().requires_grad_()
    first = torch.autograd.grad(y, [x, *params], dy, create_graph=True, materialize_grads=True)
    scalar = sum((c.to(g.dtype) * g).sum() for c, g in zip(cotangents[1:], first, strict=True))
    second: Sequence[Tensor] = []
    if second_order and scalar.requires_grad:
        second = torch.autograd.grad(scalar, [x, *params, dy], materialize_grads=True)
    return Run(y.detach(), [g.detach() for g in first], [g.detach() for g in second], names)


def cotangents_for(module: nf.Layer, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Random cotangents, exact in `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [tuple(shape), tuple(shape), *(tuple(p.shape) for p in module.parameters())]
    return [torch.randn(s, generator=generator).to(dtype).double() for s in shapes]


def evaluate_numpy(layer: nf.Graph, module: nf.Layer, x: Tensor) -> Tensor:
    """y by the float64 evaluator."""
    values = {"x": x.detach().double().numpy()}
    for p in layer.params:
        name = {"gamma": "weight", "beta": "bias"}.get(p.name, p.name)
        values[p.name] = getattr(module, name).detach().double().numpy()
    return torch.from_numpy(evaluate(layer, values, groups=module.groups)["y"].copy())


def compare(got: Tensor, want: Tensor, allowed: float, what: str) -> None:
    """Fail with the largest errors and where they are. Non-finite values of the reference are not compared."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    got, want = got.double(), want.double()
    finite = torch.isfinite(want)
    error = torch.where(finite, (got - want).abs(), torch.zeros_like(want))
    error = torch.where(finite & ~torch.isfinite(got), torch.full_like(error, float("inf")), error)
    if error.numel() and not error.max() <= allowed:
        at = int(error.argmax())
        raise AssertionError(
            f"{what}: error {error.max():.3e} > {allowed:.3e} at flat index {at}: "
            f"got {got.reshape(-1)[at]:.9g}, want {want.reshape(-1)[at]:.9g}"
        )


def condition(layer: nf.Graph, shape: Sequence[int], groups: int | None) -> float:
    """What a derivative of a kernel may be larger than its value by: 1/√ε where some moment is over a single element,
    whose variance is zero, so that terms of this size cancel exactly in real numbers; else 1. Modules run other
    kernels at such shapes (`normforge.passes.single`)."""
    extents = plan_dims(shape, groups)
    return layer.eps**-0.5 if single_axes(moment_axes(layer), extents) else 1.0


def check_against_eager(
    layer: nf.Graph,
    shape: Sequence[int],
    groups: int | None,
    dtype: torch.dtype,
    layout: str,
    *,
    backend: str = "c",
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """y (values, strides, dtype), gradients and second-order gradients against eager in float64."""
    module = make(layer, backend, shape[1], groups, dtype, seed).to(device)
    reference = make(layer, "eager", shape[1], groups, dtype, seed).double()
    x = random_input(shape, seed + 1, dtype, layout)
    cotangents = cotangents_for(module, shape, dtype, seed + 2)
    if layout == "nhwc":
        cotangents[0] = cotangents[0].movedim(1, -1).contiguous().movedim(-1, 1)
    got = run(module, x.to(device), [c.to(device) for c in cotangents])
    want = run(reference, x.double(), cotangents)
    assert got.y.dtype == dtype and got.y.stride() == x.stride()
    assert got.first[0].dtype == dtype and got.first[0].stride() == x.stride()
    length = x.numel()
    where = f"{layer} {tuple(shape)} groups={groups} {dtype} {layout}"
    if device == "cpu":
        want_y = evaluate_numpy(layer, reference, x)
        compare(got.y, want_y, tolerance(dtype, length, 1 + _scale(want_y)), f"y (numpy) of {where}")
    compare(got.y.cpu(), want.y, tolerance(dtype, length, 1 + _scale(want.y)), f"y of {where}")
    largest = max(_scale(g) for g in want.first)
    for name, a, b in zip(want.names, got.first, want.first, strict=False):
        allowed = tolerance(dtype, length, 1 + largest, 1)
        compare(a.cpu(), b, allowed, f"gradient of {name} of {where}")
    assert len(got.second) == len(want.second)
    largest = max((_scale(g) for g in want.second), default=0.0)
    for name, a, b in zip(want.names, got.second, want.second, strict=bool(want.second)):
        allowed = tolerance(dtype, length, 1 + largest, 2)
        compare(a.cpu(), b, allowed, f"second-order gradient of {name} of {where}")
    for (name, a), (_, b) in zip(module.named_buffers(), reference.named_buffers(), strict=True):
        if name == "num_batches_tracked":
            assert torch.equal(a.cpu(), b)
            continue
        assert a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        compare(a.cpu(), b, tolerance(a.dtype, length, 1 + _scale(b)), f"buffer {name} of {where}")


def _scale(t: Tensor) -> float:
    """Largest finite magnitude."""
    finite = t[torch.isfinite(t)]
    return float(finite.abs().max()) if finite.numel() else 0.0


EXTREME = ["bn-relu", "gn-silu", "ln-relu", "in-relu", "layernorm-gelu", "evonorm-b0", "evonorm-s0"]


def check_extreme(name: str, backend: str, layout: str, device: str = "cpu") -> None:
    """mean/std = 1e4 in float32. The mean itself is rounded to float32, half a unit in its last place: relative to
    the deviation that is 1e4 · 2⁻²⁴ ≈ 6e-4, and no float32 statistic can do better; a variance from E[x²] − E[x]²
    would be off by more than itself."""
    shape = (4, 8, 23, 29)
    x = random_input(shape, 5, torch.float32, layout) + 1e4
    got = make(nf.layers[name], backend, 8, 4, torch.float32, 0).to(device)
    want = make(nf.layers[name], "eager", 8, 4, torch.float32, 0).double()
    cotangents = cotangents_for(got, shape, torch.float32, 6)
    a = run(got, x.to(device), [c.to(device) for c in cotangents], second_order=False)
    b = run(want, x.double(), cotangents, second_order=False)
    rounding = 1e4 * 2.0**-24
    compare(a.y.cpu(), b.y, 4 * rounding * (1 + _scale(b.y)), f"y of {name}")
    # relu's kink turns a shifted zero into another gradient: only smooth layers are held to theirs.
    smooth = "relu" not in name and not name.startswith("evonorm-b")
    for p, q, what in zip(a.first, b.first, a.names, strict=False):
        if smooth:
            compare(p.cpu(), q, 64 * rounding * (1 + _scale(q)), f"gradient of {what} of {name}")
    for (label, p), (_, q) in zip(got.named_buffers(), want.named_buffers(), strict=True):
        compare(p.cpu(), q, 1e-5 * _scale(q), label)


# Shapes that need every variant of a kernel that SECOND_SHAPES need: positions on each rung of the ladder of blocks,
# multiples of 16, of 4 and of neither, one sample and several, one channel a group and several.
FIRST_SHAPES: list[tuple[int, ...]] = [
    (5, 64, 2, 2), (1, 32, 3, 3), (5, 64, 3, 3), (1, 32, 4, 4), (2, 64, 5, 6), (1, 32, 7, 7), (1, 32, 8, 8),
    (4, 48, 8, 8), (4, 48, 14, 14), (2, 48, 15, 15), (1, 32, 16, 16), (4, 48, 18, 18), (4, 48, 25, 25), (4, 48, 28, 28),
    (2, 80, 28, 28), (1, 32, 45, 45), (1, 32, 57, 57), (1, 32, 60, 60), (1, 32, 72, 72), (1, 32, 2, 2),
]  # fmt: skip
SECOND_SHAPES: list[tuple[int, ...]] = [
    (3, 64, 3, 3), (2, 96, 2, 4), (5, 32, 4, 4), (2, 64, 5, 5), (3, 80, 7, 6), (2, 48, 8, 6), (4, 64, 8, 8),
    (2, 40, 9, 9), (2, 64, 12, 12), (3, 32, 14, 15), (2, 32, 16, 15), (3, 64, 16, 16), (2, 48, 20, 21),
    (2, 32, 24, 24), (2, 32, 31, 31), (2, 64, 32, 32), (3, 32, 33, 47), (1, 32, 48, 48), (2, 32, 56, 56),
    (1, 64, 61, 67),
]  # fmt: skip
