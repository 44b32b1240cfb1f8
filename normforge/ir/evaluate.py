"""The meaning of the IR: a plain numpy float64 evaluator, independent of torch and of every pass.

A value of type T is an array of shape (N or 1, groups or 1, channels a group or 1, positions or 1), so that
numpy's broadcasting is the IR's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from normforge.errors import GraphError, ShapeError
from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import ELEMENTWISE, REDUCTION, SURFACE_ONLY, Op, Table, no_row
from normforge.ir.types import FULL, B, G, K, S

Array = npt.NDArray[np.float64]


def sigmoid(a: Array) -> Array:
    """The function 1 / (1 + e^-a) without overflow: e^a / (1 + e^a) for negative a."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e))


def softplus(a: Array) -> Array:
    """The function ln(1 + e^a) without overflow, and with all digits where it is small."""
    return np.asarray(np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a))))


def erf(a: Array) -> Array:
    """The error function, element by element."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(a)) if a.size else a


def gate(a: Array, b: Array, t: Array) -> Array:
    """The operation gate(a, b, t): t where a > b or unordered, t/2 where a == b, 0 where a < b."""
    return np.where(a == b, t * 0.5, np.where(a < b, 0.0, t))


# Elementwise meanings, over the operands alone; `sqrt` and `log` also take ε.
EVALUATE: Table[Callable[..., Any]] = Table(
    "float64 evaluator (ir/evaluate.py)",
    ELEMENTWISE - SURFACE_ONLY,
    {
        Op.ADD: np.add,
        Op.SUB: np.subtract,
        Op.MUL: np.multiply,
        Op.DIV: np.divide,
        Op.MAX: np.maximum,
        Op.MIN: np.minimum,
        Op.NEG: np.negative,
        Op.ABS: np.abs,
        Op.SQUARE: np.square,
        Op.EXP: np.exp,
        Op.SIGMOID: sigmoid,
        Op.TANH: np.tanh,
        Op.ERF: erf,
        Op.SOFTPLUS: softplus,
        Op.SIN: np.sin,
        Op.COS: np.cos,
        Op.ROOT: np.sqrt,
        Op.LN: np.log,
        Op.SIGN: np.sign,
        Op.GATE: gate,
        Op.WHERE: lambda a, b, c, d: np.where(a > b, c, d),
        Op.WHERE_GE: lambda a, b, c, d: np.where(a >= b, c, d),
    },
)


def axes_of(axes: int) -> tuple[int, ...]:
    """The positions of a set of axes in a shape of four."""
    return tuple(i for i, bit in enumerate((B, G, K, S)) if axes & bit)


def evaluate(graph: Graph, values: Mapping[str, npt.ArrayLike], *, groups: int = 1) -> dict[str, Array]:
    """Evaluate every output in float64.

    Args:
        graph: any graph, surface or core, in training mode.
        values: by name: inputs of type {b,c,s} as arrays (N, C, *spatial); parameters and smaller inputs
            as arrays of one value an element of their type, in the order b, c (or g), s.
        groups: number of groups; must divide C.

    Returns:
        By output name: (N, C, *spatial) for a full type, else the shape of the type in the order b, c (or g), s.

    Raises:
        ShapeError: an array that does not fit; GraphError: a value is missing.
    """
    full = next((np.asarray(values[n.name]) for n in graph.inputs if n.axes == FULL and n.name in values), None)
    if full is None or full.ndim < 2:
        raise ShapeError("evaluate needs at least one input of shape (N, C, *spatial)")
    n, c, *spatial = full.shape
    if groups < 1 or c % groups:
        raise ShapeError(f"groups={groups} does not divide {c} channels: choose a divisor")
    extents = (n, groups, c // groups, int(np.prod(spatial, dtype=np.int64)))
    env: dict[Node, Array] = {}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            if node.op in (Op.INPUT, Op.PARAM):
                if node.name not in values:
                    raise GraphError(f"no value for {node.op} {node.name!r}")
                env[node] = _shaped(np.asarray(values[node.name], dtype=np.float64), node, extents)
            else:
                env[node] = _apply(node, [env[a] for a in node.args], extents, graph.eps)
    out = {name: _unshaped(env[node], node.axes, extents, spatial) for name, node in graph.outputs}
    for name, node in graph.results:  # they always have the shape of x
        out[name] = np.broadcast_to(env[node], extents).reshape(full.shape)
    return out


def _apply(node: Node, args: list[Array], extents: tuple[int, ...], eps: float) -> Array:
    op = node.op
    if op in EVALUATE.over:
        return np.asarray(EVALUATE[op](*args), dtype=np.float64)
    if op is Op.CONST:
        return np.full((1, 1, 1, 1), node.value)
    if op is Op.SIZE:
        return np.full((1, 1, 1, 1), float(np.prod([extents[i] for i in axes_of(node.reduced)])))
    if op is Op.BROADCAST:
        shape = [e if node.axes & bit else 1 for e, bit in zip(extents, (B, G, K, S), strict=True)]
        return np.broadcast_to(args[0], shape)
    if op is Op.SQRT:
        return args[0] / np.sqrt(np.abs(args[0]) + eps)
    if op is Op.RSQRT:
        return 1.0 / np.sqrt(args[0])
    if op is Op.LOG:
        return np.sign(args[0]) * np.log(np.abs(args[0]) + eps)
    if op is Op.TOTAL:  # as if the operand were broadcast along axes that it lacks
        count = math.prod(extents[i] for i in axes_of(node.reduced))
        return np.asarray(np.mean(args[0], axis=axes_of(node.reduced & node.args[0].axes), keepdims=True) * count)
    if op in REDUCTION:
        return _reduce(node, args[0], eps)
    raise no_row(op, EVALUATE.name)


def _reduce(node: Node, a: Array, eps: float) -> Array:
    op = node.op
    # A reduction over an axis that the operand lacks is one over a broadcast axis: only a sum would notice,
    # and a sum over a missing axis is defined as no sum at all.
    over = axes_of(node.reduced & node.args[0].axes)
    result: Array
    if op is Op.SUM:
        result = np.sum(a, axis=over, keepdims=True)
    elif op is Op.MEAN:
        result = np.mean(a, axis=over, keepdims=True)
    elif op is Op.RMS:
        result = np.sqrt(np.mean(a * a, axis=over, keepdims=True) + eps)
    elif op is Op.VAR or op is Op.STD:
        result = np.mean(np.square(a - np.mean(a, axis=over, keepdims=True)), axis=over, keepdims=True)
        if op is Op.STD:
            result = np.sqrt(result + eps)
    else:
        raise no_row(op, f"reductions of the {EVALUATE.name}")
    return result


def _shaped(a: Array, node: Node, extents: tuple[int, ...]) -> Array:
    shape = tuple(e if node.axes & bit else 1 for e, bit in zip(extents, (B, G, K, S), strict=True))
    if a.size != np.prod(shape):
        raise ShapeError(
            f"{node.op} {node.name!r} has {a.size} elements and its type {node.type} needs {np.prod(shape)}"
        )
    return a.reshape(shape)


def _unshaped(a: Array, axes: int, extents: tuple[int, ...], spatial: list[int]) -> Array:
    n, g, k, _ = extents
    shape: list[int] = [n] if axes & B else []
    if axes & G:
        shape.append(g * k if axes & K else g)
    shape += spatial if axes & S else []
    return a.reshape(shape)
