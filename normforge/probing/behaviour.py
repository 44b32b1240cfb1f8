"""What a layer does, as one unit vector: its outputs on fixed noise, without what gain and bias undo.

Two layers whose vectors have a cosine near 1 or -1 do nearly the same to a network, whatever their formulas are.
Channels and samples of the noise differ in mean and in size, and not by a factor of the channel times one of the
sample, so that moments over different axes differ; there are several channels in each of several groups; and two
batches, since on a single one what is divided by a moment over the batch differs by no more than gains.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from normforge.ir.graph import Graph
from normforge.ir.layers import layers
from normforge.passes.pipeline import lower
from normforge.probing.reproducible import Array, evaluate, mean, variance
from normforge.streams import stream

BATCHES, SHAPE, GROUPS = 2, (3, 6, 3, 4), 2
LENGTH = BATCHES * int(np.prod(SHAPE))  # of a vector
# Elements are multiples of it, so that every partial sum of a product of two vectors is exact in float64.
QUANTUM = 2.0**-20
ROUNDING = 2.0**-18  # a deviation this small beside the values is float32's own
SPREAD = 0.7  # of the logarithms of sizes, of the means, and of the parameters around their starts

Vector = npt.NDArray[np.float32]


def behaviour(graph: Graph, *, moved: bool = True) -> Vector | None:
    """The vector, in arithmetic whose results do not depend on the machine (see `reproducible`).

    Parameters are moved off their starts, where different layers give equal numbers, but for gamma and beta. The
    outputs of each channel are centred and scaled to the same size, over both batches; a channel that is constant is
    zero. What is left of a sign of gamma is the sign of the vector: compare absolute cosines.

    Args:
        graph: a layer.
        moved: False leaves all parameters at their starts: what training begins with.

    Returns:
        float32 (LENGTH,), of norm 1 up to 1e-5; None where an output is not finite, or every channel constant.
    """
    core, channels = lower(graph), SHAPE[1]
    values = {p.name: _parameter(p.name, p.attr[2], channels if p.axes else 1, moved) for p in graph.params}
    found = [evaluate(core, values | {"x": x}, groups=GROUPS)["y"] for x in _inputs()]
    full = (SHAPE[0], GROUPS, channels // GROUPS, SHAPE[2] * SHAPE[3])
    y = np.stack([np.broadcast_to(f, full).reshape(SHAPE) for f in found]).astype(np.float64)
    if not np.isfinite(y).all():
        return None
    over = (0, 1, 3, 4)
    centred, deviation = y - mean(y, over), np.sqrt(variance(y, over))
    alive = deviation > ROUNDING * np.abs(y).max(over, keepdims=True)
    if not alive.any():
        return None
    unit = np.where(alive, centred / np.where(alive, deviation, 1.0), 0.0).ravel()
    unit /= np.sqrt(LENGTH * np.count_nonzero(alive) / channels)
    return np.asarray(np.rint(unit / QUANTUM) * QUANTUM, np.float32)


def cosines(vectors: npt.NDArray[np.float32], vector: Vector) -> npt.NDArray[np.float64]:
    """Absolute cosines of the rows of `vectors` (n, LENGTH) with a vector: (n,), the same bits in any order of sums."""
    return np.asarray(np.abs(np.einsum("nk,k->n", vectors.astype(np.float64), vector.astype(np.float64))))


class Near(NamedTuple):
    """A layer beside another one.

    Attributes:
        name: of a known layer, or of a candidate of a run (#17).
        cosine: of the two behaviours, absolute.
        same: whether it is the same function, by `Graph.hash`.
    """

    name: str
    cosine: float
    same: bool = False

    def __str__(self) -> str:
        what = next(words for least, words in _WORDS if self.cosine >= least)
        return f"{self.name}, cosine {self.cosine:.3f}: {'the same function' if self.same else what}"


_WORDS = (
    (0.999, "does the same"),
    (0.98, "the same up to a bend"),
    (0.9, "akin"),
    (0.0, "does something else"),
)


def nearest_known(graph: Graph, count: int = 2) -> tuple[Near, ...]:
    """The named layers that a layer is nearest to by behaviour, the nearest first; none where it has no behaviour."""
    vector = behaviour(graph)
    if vector is None:
        return ()
    names, vectors = _known()
    found = cosines(vectors, vector)
    order = np.argsort(-found, kind="stable")[:count]
    return tuple(Near(names[i], float(found[i]), layers[names[i]].hash == graph.hash) for i in order)


@lru_cache(maxsize=1)
def _known() -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    found = {name: behaviour(graph) for name, graph in layers.items() if graph.is_plain}
    rows = {name: v for name, v in found.items() if v is not None}
    return tuple(rows), np.stack(list(rows.values()))


@lru_cache(maxsize=1)
def _inputs() -> tuple[Array, ...]:
    """The batches, float32 (N, C, H, W)."""
    rng = stream(0, "behaviour", 0)
    made = []
    for _ in range(BATCHES):
        size, shift = rng.standard_normal((2, *SHAPE[:2], 1, 1)) * SPREAD
        sizes = np.rint(64 * np.exp2(2 * size)) / 64  # no last bit of a machine's own exponential
        made.append((rng.standard_normal(SHAPE) * sizes + shift).astype(np.float32))
    return tuple(made)


def _parameter(name: str, start: float, count: int, moved: bool) -> Array:
    if name in ("gamma", "beta") or not moved:
        return np.full(count, start, np.float32)
    rng = stream(0, f"behaviour {name}", 0)
    return (start + SPREAD * rng.standard_normal(count)).astype(np.float32)
