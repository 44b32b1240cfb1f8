"""Arithmetic whose results do not depend on the machine: float32, as layers run in, but rounded once.

A probed layer may be chaotic: a last bit of one value decides whether the hundredth is finite. So no last bit may be
the machine's own. Sums, products, quotients and roots are, by IEEE 754, as long as each is an operation of its own.
Sums over an axis and convolutions are not, since libraries add in the order that suits their registers and threads;
here they are taken of multiples of a quantum, so coarse that every partial sum is exact in float64 in whatever order,
and so fine that less is lost than by adding in float32. exp, tanh and their like are computed in float64, where
machines differ in the last bit or two, and rounded to float32, where one result in 10⁸ may still differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from normforge.errors import GraphError
from normforge.ir.evaluate import EVALUATE, axes_of
from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import LIBRARY, Op
from normforge.ir.types import B, G, K, S

Array = npt.NDArray[Any]

MANTISSA = 53  # bits of float64
# Of the weights of convolutions. A coarse one makes sums that are exactly zero, which no convolution of float32 has.
WEIGHT_QUANTUM = 2.0**-24


def _rounded(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda a: function(a.astype(np.float64)).astype(np.float32)


# Operations on float32 arrays. Adding 0 makes +0 of the -0 that max and min of zeros may give.
ELEMENTWISE: dict[Op, Callable[..., Array]] = EVALUATE | {
    Op.MAX: lambda a, b: np.maximum(a, b) + np.float32(0),
    Op.MIN: lambda a, b: np.minimum(a, b) + np.float32(0),
    **{op: _rounded(EVALUATE[op]) for op in LIBRARY},
}


def evaluate(graph: Graph, values: Mapping[str, Array], *, groups: int = 1) -> dict[str, Array]:
    """Evaluate every output in float32, reproducibly.

    Args:
        graph: a core graph, in training mode.
        values: float32, by name: inputs (N, C, *spatial) and parameters (C,) or ().
        groups: divides C.

    Returns:
        By output name, float32: (N or 1, groups or 1, channels a group or 1, positions or 1).

    Raises:
        GraphError: an operation that `legalise` removes.
    """
    n, c, *spatial = values[graph.inputs[0].name].shape
    extents = (n, groups, c // groups, int(np.prod(spatial, dtype=np.int64)))
    env: dict[Node, Array] = {}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            if node.op in (Op.INPUT, Op.PARAM):
                shape = [e if node.axes & bit else 1 for e, bit in zip(extents, (B, G, K, S), strict=True)]
                env[node] = values[node.name].reshape(shape)
            else:
                env[node] = _apply(node, [env[a] for a in node.args], extents)
    return {name: env[node] for name, node in graph.outputs}


def _apply(node: Node, args: list[Array], extents: tuple[int, ...]) -> Array:
    op = node.op
    if op in ELEMENTWISE:
        return np.asarray(ELEMENTWISE[op](*args), dtype=np.float32)
    if op is Op.CONST:
        return np.full((1, 1, 1, 1), node.value, np.float32)
    if op is Op.SIZE:
        return np.full((1, 1, 1, 1), np.prod([extents[i] for i in axes_of(node.reduced)]), np.float32)
    if op is Op.BROADCAST:
        shape = [e if node.axes & bit else 1 for e, bit in zip(extents, (B, G, K, S), strict=True)]
        return np.broadcast_to(args[0], shape)
    if op not in REDUCTIONS:
        raise GraphError(f"{op} is no core operation: legalise the graph first")
    return REDUCTIONS[op](args[0], axes_of(node.reduced & node.args[0].axes)).astype(np.float32)


def total(a: Array, over: tuple[int, ...]) -> Array:
    """The sum over some axes, kept at length 1, in float64: the same in any order.

    What is lost of each element is below 2^(log2 n - 53) of the largest, n of them being added.
    """
    if not over:
        return a.astype(np.float64)
    count = int(np.prod([a.shape[i] for i in over]))
    quantum = _quantum(a, over, MANTISSA - (count - 1).bit_length())
    return np.asarray(np.sum(np.rint(a / quantum), axis=over, keepdims=True) * quantum)


def mean(a: Array, over: tuple[int, ...]) -> Array:
    """The mean over some axes, kept at length 1, in float64. The mean of equal numbers is that number."""
    return total(a, over) / np.prod([a.shape[i] for i in over], dtype=np.int64)


def variance(a: Array, over: tuple[int, ...]) -> Array:
    """The biased variance over some axes, kept at length 1, in float64."""
    return mean(np.square(a - mean(a, over)), over)


REDUCTIONS = {Op.SUM: total, Op.MEAN: mean, Op.VAR: variance}


def _quantum(a: Array, over: tuple[int, ...], bits: int) -> Array:
    """A power of two, float64, of which the largest magnitude over some axes is at most 2^bits; 1 if not finite."""
    largest = np.max(np.abs(a), axis=over, keepdims=True).astype(np.float64)
    _, exponent = np.frexp(largest)
    return np.where(np.isfinite(largest), np.ldexp(1.0, exponent - bits), 1.0)


def quantised_weights(weights: Array) -> Array:
    """Weights (out, in, h, w) as multiples of `WEIGHT_QUANTUM`, float64."""
    return np.rint(weights.astype(np.float64) / WEIGHT_QUANTUM) * WEIGHT_QUANTUM


def convolve(x: Array, weights: Array) -> Array:
    """A 3×3 convolution with padding 1, rounded to float32 once.

    Args:
        x: float32 (N, in, H, W). What is not finite makes every output that it reaches infinite or NaN.
        weights: (out, in, 3, 3), from `quantised_weights`.

    Returns:
        float32 (N, out, H, W).
    """
    n, channels, height, width = x.shape
    padded = np.zeros((n, height + 2, width + 2, channels))
    padded[:, 1:-1, 1:-1] = x.transpose(0, 2, 3, 1)
    # Integers whose products with the weights of any output add up to less than 2^53.
    factors = weights.transpose(2, 3, 1, 0).reshape(9 * channels, -1) / WEIGHT_QUANTUM
    most = int(np.abs(factors).sum(0).max())
    largest = _largest_of_three(_largest_of_three(np.abs(padded).max(3), 1), 2)
    quantum = _quantum(largest[..., None], (3,), MANTISSA - most.bit_length())
    # Three pixels of a row of a window lie beside each other in memory.
    sample, row, pixel, number = padded.strides
    rows = np.lib.stride_tricks.as_strided(
        padded, (n, height, width, 3, 3 * channels), (sample, row, pixel, row, number), writeable=False
    )
    patches = np.empty(rows.shape)
    np.multiply(rows, 1 / quantum[..., None], out=patches)  # powers of two: as exact as to divide
    np.rint(patches, out=patches)
    # One product a row of the image: so small ones BLAS does on one thread, and waits for no core that others use.
    product = patches.reshape(n, height, width, 9 * channels) @ factors
    with np.errstate(over="ignore"):
        y = (product * (quantum * WEIGHT_QUANTUM)).astype(np.float32)
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2))


def _largest_of_three(a: Array, axis: int) -> Array:
    """The maxima of each three neighbours along an axis, which gets two shorter."""
    a = np.moveaxis(a, axis, 0)
    return np.moveaxis(np.maximum(np.maximum(a[:-2], a[1:-1]), a[2:]), 0, axis)


def convolve_back(dy: Array, weights: Array) -> Array:
    """The gradient in the input of `convolve`: the convolution with the weights turned round."""
    return convolve(dy, np.ascontiguousarray(weights[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)))
