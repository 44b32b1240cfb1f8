"""One order of a layer on drawn numbers: operands, what float64 makes of them, and how close is close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from zlib import crc32

import numpy as np
import torch
from cases import Case
from reference import compare, condition, tolerance
from torch import Tensor

from normforge.codegen.orders import program
from normforge.codegen.plan import is_data
from normforge.ir import evaluate
from normforge.ir.graph import Graph
from normforge.ir.node import Node, make, substitute
from normforge.ir.ops import Op
from normforge.ir.types import FULL, B, G, K, S

Values = dict[str, np.ndarray]
# Is given operands and outputs, flat and in the layout of the case, and writes the outputs.
Run = Callable[[Sequence[Tensor], tuple[int, int, int, int]], None]


def draw(case: Case) -> Values:
    """Operands in float64, rounded to the dtypes that they are given in; saved statistics are those of x."""
    rng = np.random.default_rng(crc32(" ".join((case.layer, case.input)).encode()))
    values: Values = {}
    for order in sorted({0, case.order}):
        p = program(case.graph, order, True)
        for node in p.operands:
            if node.name not in values:
                value = rng.standard_normal(case.shape if node.axes == FULL else _extents(node.axes, case.dims))
                if node.op is Op.PARAM:
                    value = node.attr[2] + 0.3 * value
                dtype = getattr(torch, case.dtype) if node.axes == FULL else torch.float32
                values[node.name] = torch.tensor(value).to(dtype).double().numpy()
        if order == 0:
            made = evaluate(p.graph, values, groups=case.dims[1])
            values |= {name: v for name, v in made.items() if name.startswith("saved")}
    return values


def expected(case: Case, values: Values) -> Values:
    """Outputs by the evaluator in float64."""
    return evaluate(case.program.graph, values, groups=case.dims[1])


def tensors(case: Case, values: Values, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Operands, and outputs full of NaN, each in memory that starts `offset` elements after an aligned address."""
    given = [_place(case, _in_layout(case, n, values[n.name]), device) for n in case.program.operands]
    made = []
    for _, node in case.program.graph.outputs:
        size = prod(case.shape) if node.axes == FULL else prod(_extents(node.axes, case.dims))
        dtype = getattr(torch, case.dtype) if is_data(node) else torch.float32
        made.append(_place(case, torch.full((size,), float("nan"), dtype=dtype), device))
    return given, made


def check(case: Case, run: Run, values: Values, want: Values, device: str = "cpu") -> list[Tensor]:
    """Run on drawn values and compare every output. The outputs as they lie in memory."""
    given, made = tensors(case, values, device)
    run([*given, *made], case.dims)
    largest = max(float(np.abs(v[np.isfinite(v)]).max(initial=0)) for v in want.values())
    blowup = condition(case.graph, case.shape, case.dims[1])
    scale = largest + (1.0 if case.order == 0 else blowup ** (2 * case.order - 1))
    allowed = tolerance(getattr(torch, case.dtype), prod(case.shape), scale, case.order)
    for (name, node), tensor in zip(case.program.graph.outputs, made, strict=True):
        right = torch.tensor(want[name])
        got = tensor.cpu()
        if node.axes == FULL:
            n, c = case.shape[:2]
            got = got.reshape(n, -1, c).transpose(1, 2) if case.layout == "nhwc" else got.reshape(n, c, -1)
            right = right.reshape(n, c, -1)
        compare(got.reshape(right.shape), right, allowed, f"{name} of {case}")
    return made


def mutations(graph: Graph) -> list[Graph]:
    """The graph without one term of one sum each; but for constants such as ε, which are below any tolerance."""
    found = []
    for node in graph.nodes:
        if node.op not in (Op.ADD, Op.SUB):
            continue
        for dropped, kept in (node.args, node.args[::-1]):
            if dropped.op is Op.CONST or kept.axes != node.axes:
                continue
            rest = make(Op.NEG, (kept,)) if node.op is Op.SUB and kept is node.args[1] else kept
            out = substitute([n for _, n in graph.outputs], {node: rest})
            found.append(graph.with_outputs(*((name, out[n]) for name, n in graph.outputs)))
    return found


def evaluator(case: Case, graph: Graph, values: Values) -> Run:
    """The evaluator in the place of kernels."""

    def run(tensors: Sequence[Tensor], dims: tuple[int, int, int, int]) -> None:
        made = evaluate(graph, values, groups=dims[1])
        for (name, node), t in zip(graph.outputs, tensors[-len(graph.outputs) :], strict=True):
            t.copy_(_in_layout(case, node, made[name]))

    return run


def _extents(axes: int, dims: tuple[int, int, int, int]) -> list[int]:
    return [extent for axis, extent in zip((B, G, K, S), dims, strict=True) if axes & axis]


def _in_layout(case: Case, node: Node, value: np.ndarray) -> Tensor:
    t = torch.tensor(value)
    if node.axes != FULL:
        return t.float().reshape(-1)
    t = t.to(getattr(torch, case.dtype)).reshape(*case.shape[:2], -1)
    return (t.transpose(1, 2).contiguous() if case.layout == "nhwc" else t.contiguous()).reshape(-1)


def _place(case: Case, t: Tensor, device: str) -> Tensor:
    room = torch.empty(t.numel() + case.offset, dtype=t.dtype, device=device)
    return room[case.offset :].copy_(t)
