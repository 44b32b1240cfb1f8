"""Run in a process of its own, with TRITON_INTERPRET=1: `python interpreted.py KIND CHECK:LAYERS...`.

Emitted kernels under the interpreter against the numpy evaluator in float64, on the graph of each order. KIND forces
a kind of plan; what no program of it can hold is left out, and a check that runs nothing fails.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mended import mend_interpreter
from reference import compare, condition, tolerance

import normforge as nf
from normforge.codegen.orders import Program, program
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import plan_dims
from normforge.codegen.triton import blocks as triton_blocks
from normforge.codegen.triton.cooperative import tile_channels
from normforge.codegen.triton.division import counters, divide
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kinds import plan_of_kind
from normforge.codegen.triton.launch import arguments
from normforge.errors import ShapeError
from normforge.ir import evaluate
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import FULL, B, G, K, S
from normforge.kernels.launch_triton import execute_text, load
from normforge.passes.single import moment_axes, single_axes

KIND = sys.argv[1]
runs = 0  # programs run

Shape = tuple[int, ...]
Array = np.ndarray

SHAPES: list[tuple[Shape, int]] = [((3, 6, 4, 5), 3), ((4, 12), 4)]
# Of swept plans: slabs of several tiles, along space and along channels.
LONG_ROWS: list[tuple[Shape, int]] = [((2, 4, 17, 67), 2)]
LONG_COLUMNS: list[tuple[Shape, int]] = [((1, 300, 3, 2), 2), ((2, 1100), 2)]
MORE_SHAPES: list[tuple[Shape, int]] = [
    ((1, 8, 1, 1), 2),
    ((2, 40, 3, 7), 8),
    ((2, 6, 2, 3, 2), 2),
    ((1, 4, 31, 53), 2),  # rows of several chunks
    ((1, 600, 2, 1), 3),  # channels of several blocks
]
NESTED = {
    "two-levels": "sigmoid(x / std[w,h,c/g](x)) * x / rms[b,w,h](x * sigmoid(x)/std[w,h](x)) * gamma + beta",
    "columns-and-rows": "(x-mean[c](x))/std[w,h](x)*gamma + mean[b,w,h](max(x,v1))",
    "nested-columns": "x*std[b,w,h,c](std[c](x)*v1)+tanh(mean[w,h,c](x*x))",
    "columns-by-group": "mean[c](x) * mean[w,h,c/g](x) * x + std[c](mean[c](x) * mean[w,h,c/g](x * x)) * gamma",
    "batch-levels": "x / std[b,w,h](x) * tanh(v1 * x / rms[b,w,h](x * sigmoid(x / std[b,w,h](x)))) * gamma + beta",
    "small-output": "mean[w,h](x) * gamma + min(v0, v1)",
    "constant": "beta * 2",
    "mish": "x * tanh(softplus(x))",
    "periodic": "sin(v1 * x) * gamma + beta",
    "branches": "where(x >= v1, tanh(x), square(x)) / std[w,h](x) + where(gamma > 1, v1, 0) * sign(x - 0.1)",
    "masked": "input m[b,w,h]; (x - mean[b,w,h](x * m) / mean[b,w,h](square(m))) * m * gamma + beta",
    "all-axes": "input s[]; input t[c]; input u[b]; input z[b,c,w,h]; tanh(x * s + t) * u + std[w,h](x * z), x * z",
}


def extents(shape: Shape, groups: int) -> dict[int, int]:
    return {B: shape[0], G: groups, K: shape[1] // groups, S: int(np.prod(shape[2:]))}


def draw(node: Node, shape: Shape, groups: int, rng: np.random.Generator) -> Array:
    """A value for an operand: normal numbers, variances positive."""
    sizes = [e for axis, e in extents(shape, groups).items() if node.axes & axis]
    value = rng.standard_normal(shape if node.axes == FULL else sizes)
    if node.op is Op.PARAM:
        value = node.attr[2] + 0.3 * value
    if node.name.startswith("running_") and not node.name.startswith("running_mean"):
        value = 0.5 + np.abs(value)
    return value


def check(
    layer: nf.Graph,
    shape: Shape,
    groups: int,
    layout: str,
    *,
    train: bool = True,
    dtype: torch.dtype = torch.float32,
    orders: int = 3,
    seed: int = 0,
) -> None:
    """Every output of every order; where a moment is over one element, of the kernels for such shapes too."""
    for single in dict.fromkeys((0, single_axes(moment_axes(layer), plan_dims(shape, groups)))):
        _check(layer, shape, groups, layout, train, dtype, orders, seed, single)


def _check(
    layer: nf.Graph,
    shape: Shape,
    groups: int,
    layout: str,
    train: bool,
    dtype: torch.dtype,
    orders: int,
    seed: int,
    single: int,
) -> None:
    rng = np.random.default_rng(seed)
    values: dict[str, Array] = {}
    blowup = 1.0 if single else condition(layer, shape, groups)
    for order in range(orders):
        p = program(layer, order, train, single=single)
        for node in p.operands:
            if node.name not in values:
                kind = dtype if node.axes == FULL else torch.float32
                values[node.name] = torch.tensor(draw(node, shape, groups, rng)).to(kind).double().numpy()
        expected = evaluate(p.graph, values, groups=groups)
        values |= {k: v for k, v in expected.items() if k.startswith("saved")}
        made = call(p, layer, values, shape, groups, layout, dtype)
        if made is None:
            continue
        largest = max(float(np.abs(expected[k][np.isfinite(expected[k])]).max(initial=0)) for k, _ in p.graph.outputs)
        scale = largest + (1.0 if order == 0 else blowup ** (2 * order - 1))
        allowed = tolerance(dtype, int(np.prod(shape)), scale, order)
        for (name, node), got in zip(p.graph.outputs, made, strict=True):
            want = torch.tensor(expected[name])
            if node.axes == FULL:
                got, want = from_layout(got, shape, layout), want.reshape(shape[0], shape[1], -1)
            where = f"{name} of {layer}, order {order}, {shape} groups={groups} {layout} {dtype} train={train}"
            compare(got.reshape(want.shape), want, allowed, where)


def call(
    p: Program,
    layer: nf.Graph,
    values: dict[str, Array],
    shape: Shape,
    groups: int,
    layout: str,
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor] | None:
    """The outputs of a program, flat, in the layout; poisoned before, so that what is not written shows. None where
    no plan of the kind can run it."""
    global runs
    sizes = extents(shape, groups)
    given, made = [], []
    for node in p.operands:
        value = values[node.name]
        given.append(to_layout(value, shape, layout, dtype) if node.axes == FULL else torch.tensor(value).float())
    for _, node in p.graph.outputs:
        size = int(np.prod([e for axis, e in sizes.items() if node.axes & axis]))
        made.append(torch.full((size,), float("nan"), dtype=dtype if node.axes == FULL else torch.float32))
    plan = plan_of_kind(KIND, p, str(dtype).removeprefix("torch."), layout)
    if plan is None:
        return None
    try:
        load(plan, str(layer))([*given, *made], tuple(sizes.values()))
    except ShapeError:
        return None
    runs += 1
    return made


def to_layout(value: Array, shape: Shape, layout: str, dtype: torch.dtype) -> torch.Tensor:
    full = torch.tensor(value).reshape(shape[0], shape[1], -1).to(dtype)
    return full.transpose(1, 2).contiguous() if layout == "nhwc" else full.contiguous()


def from_layout(got: torch.Tensor, shape: Shape, layout: str) -> torch.Tensor:
    if layout == "nhwc":
        return got.reshape(shape[0], -1, shape[1]).transpose(1, 2)
    return got.reshape(shape[0], shape[1], -1)


def usual(layer: nf.Graph) -> None:
    shapes = SHAPES
    if KIND == "swept":
        plan = plan_of_kind(KIND, program(layer, 0, True), "float32", "nchw")
        shapes = LONG_COLUMNS if plan is not None and plan.slab & S else LONG_ROWS
    for i, (shape, groups) in enumerate(shapes):
        for layout in ("nchw", "nhwc")[len(shape) == 2 :]:  # without space channels are contiguous
            check(layer, shape, groups, layout, seed=i)
    check(layer, *shapes[0], "nchw", train=False)


def more(layer: nf.Graph) -> None:
    for i, (shape, groups) in enumerate(MORE_SHAPES):
        for layout in ("nchw", "nhwc"):
            for train in (True, False):
                check(layer, shape, groups, layout, train=train, seed=i)


def chunks(layer: nf.Graph) -> None:
    """Chunks of several tiles, which only large tensors have."""
    usual_number = triton_blocks.ENOUGH_PROGRAMS
    triton_blocks.ENOUGH_PROGRAMS = 4
    for layout in ("nchw", "nhwc"):
        check(layer, (2, 6, 41, 53), 2, layout)
    triton_blocks.ENOUGH_PROGRAMS = usual_number


def low_precision(layer: nf.Graph) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for layout in ("nchw", "nhwc"):
            check(layer, (3, 8, 5, 6), 4, layout, dtype=dtype)


def extreme(layer: nf.Graph) -> None:
    """mean/std = 1e4: the mean itself is rounded to float32, 1e4 · 2⁻²⁴ of the deviation; a variance from
    E[x²] - E[x]² would be off by more than itself."""
    shape, groups = (2, 8, 23, 29), 4
    x = torch.tensor(np.random.default_rng(5).standard_normal(shape)).float() + 1e4
    for layout in ("nchw", "nhwc"):
        p = program(layer, 0, True)
        values = {n.name: np.full(8 if n.axes else 1, n.attr[-1]) for n in p.operands if n.op is Op.PARAM}
        values["x"] = x.double().numpy()
        want = torch.tensor(evaluate(p.graph, values, groups=groups)["y"])
        made = call(p, layer, values, shape, groups, layout)
        if made is None:
            continue
        allowed = 4 * 1e4 * 2.0**-24 * (1 + float(want.abs().max()))
        compare(from_layout(made[0], shape, layout).reshape(shape), want, allowed, f"y of {layer} {layout}")


def outlier(layer: nf.Graph) -> None:
    """mean/std = 1e4, and the first element of each row far from it: variances keep five digits, over several tiles."""
    shape, groups = (1, 4, 47, 97), 2
    x = torch.tensor(np.random.default_rng(6).standard_normal(shape)).float() + 1e4
    x[:, :, 0, 0] += 3e3
    for layout in ("nchw", "nhwc"):
        p = program(layer, 0, True)
        values = {n.name: np.full(4 if n.axes else 1, n.attr[-1]) for n in p.operands if n.op is Op.PARAM}
        values["x"] = x.double().numpy()
        want = evaluate(p.graph, values, groups=groups)
        made = call(p, layer, values, shape, groups, layout)
        if made is None:
            continue
        for (name, node), got in zip(p.graph.outputs, made, strict=True):
            if node.op is Op.VAR:
                expected = torch.tensor(want[name]).flatten()
                error = float(((got.double() - expected) / expected).abs().max())
                assert error < 1e-5, f"{name} of {layer} {layout}: relative error {error}"


def not_finite(layer: nf.Graph) -> None:
    """NaN and infinities reach the output where the evaluator has them."""
    for bad in (float("nan"), float("inf")):
        x = np.ones((2, 4, 3, 3)) * np.arange(9).reshape(3, 3)
        x[0, 1, 1, 1] = bad
        p = program(layer, 0, True)
        values = {n.name: np.full(4 if n.axes else 1, n.attr[-1]) for n in p.operands if n.op is Op.PARAM}
        values["x"] = x
        want = torch.tensor(evaluate(p.graph, values, groups=2)["y"])
        made = call(p, layer, values, x.shape, 2, "nchw")
        if made is None:
            continue
        got = made[0].reshape(want.shape)
        assert torch.equal(torch.isnan(got), torch.isnan(want)), f"{layer} with {bad}: {got} and not {want}"


WHOLE_BLOCKS: tuple[Shape, int] = ((3, 256, 4, 5), 32)  # a shape and its groups: every block ends where a sample does


def by_sample(layer: nf.Graph) -> bool:
    """Does each sample have slabs of its own?"""
    plan = plan_of_kind("cooperative", program(layer, 0, True), "float32", "nchw")
    return plan is not None and bool(plan.slab & B)


def cooperative(layer: nf.Graph) -> None:
    """Tiles of several blocks; the last one is not full where blocks need not end with samples."""
    check_cooperative(layer, *(WHOLE_BLOCKS if by_sample(layer) else ((3, 48, 4, 5), 6)), orders=1)


def more_cooperative(layer: nf.Graph) -> None:
    """Channels that are no multiple of a block, rows of several chunks, every order."""
    check_cooperative(layer, *(WHOLE_BLOCKS if by_sample(layer) else ((3, 144, 4, 5), 6)), orders=3)
    check_cooperative(layer, (2, 6, 31, 53), 3, orders=3)


def check_cooperative(layer: nf.Graph, shape: Shape, groups: int, *, orders: int) -> None:
    """A cooperative launch gives the bits of the multi-launch kind.

    One program alone passes all counters in turn: the order within a program is right. Several programs run one after
    the other here, so they cannot wait: with counters that let them pass, what a stage makes of values that are not
    there yet is made again by as many further runs as there are stages. So every work item is somebody's.
    """
    rng = np.random.default_rng(7)
    values: dict[str, Array] = {}
    for order in range(orders):
        p = program(layer, order, True)
        for node in p.operands:
            if node.name not in values:
                values[node.name] = draw(node, shape, groups, rng)
        plan = plan_of_kind("cooperative", p, "float32", "nchw")
        assert plan is not None
        given = [torch.tensor(values[n.name]).float().reshape(shape if n.axes == FULL else -1) for n in p.operands]
        expected = call(p, layer, values, shape, groups, "nchw")
        dims = tuple(extents(shape, groups).values())
        where = f"order {order} of {layer}, {shape} groups={groups}"
        for programs, tile in ((1, 1), (3, 1), (1, 2))[:orders]:
            run_cooperative(plan, given, expected, dims, programs, tile, where)
        for (name, node), made in zip(p.graph.outputs, expected, strict=True):
            if name.startswith("saved"):
                sizes = [e for axis, e in extents(shape, groups).items() if node.axes & axis]
                values[name] = made.double().numpy().reshape(sizes)


def run_cooperative(
    plan: Plan,
    given: list[torch.Tensor],
    expected: list[torch.Tensor],
    dims: Shape,
    programs: int,
    tile: int,
    where: str,
) -> None:
    """`tile` is in multiples of the smallest tile."""
    module = emit_triton(plan, "nf")
    launch = module.launches[0]
    function = execute_text(module.source, f"nf_{plan.symbol}")[launch.kernel]
    smallest = next(t for b in range(8, 30) if (t := tile_channels(plan, module, dims, 1 << b)))
    smallest = math.gcd(smallest, *(tile_channels(plan, module, dims, 1 << b) or 0 for b in range(8, 30)))
    sizes = module.schedule.sizes(dims) | {"TILE": smallest * tile}
    values, blocks, _ = arguments(launch, sizes)
    made = [torch.full_like(e, float("nan")) for e in expected]
    named = dict(zip((*module.operands, *module.outputs), (*given, *made), strict=True))
    for array in module.schedule.arrays:
        named[f"{array.name}_ptr"] = torch.full((math.prod(sizes[n] for n in array.shape),), float("nan"))
    division = divide(plan)
    runs = 1 if programs == 1 else len(division.tiled) + len(division.last)
    start = 0 if programs == 1 else 1 << 20
    count = counters(plan, dims, sizes["TILE"])
    assert count >= 2 * len(division.counted) + division.ends or tile > 1, f"{where}: one tile only"
    named["counters_ptr"] = torch.full((count,), start, dtype=torch.int32)
    for _ in range(runs):
        function[(programs,)](*(named[p] for p in launch.pointers), *values, **blocks)
    arrived = named["counters_ptr"] - start  # of programs that have an item
    assert ((arrived >= runs) & (arrived <= runs * programs)).all(), f"{where}: arrivals {arrived}"
    for got, want, (name, _) in zip(made, expected, plan.outputs, strict=True):
        assert torch.equal(got.view(torch.int32), want.view(torch.int32)), f"{name}, {where}, {programs} programs"


CHECKS = {
    f.__name__: f
    for f in (usual, more, chunks, low_precision, extreme, outlier, not_finite, cooperative, more_cooperative)
}

if __name__ == "__main__":
    mend_interpreter()
    for wanted in sys.argv[2:]:
        name, _, labels = wanted.partition(":")
        runs = 0
        for label in labels.split(","):
            CHECKS[name](nf.parse(NESTED.get(label, label)))
        assert runs, f"{name}: no plan of kind {KIND} could be run"
