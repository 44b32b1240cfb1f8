"""fingerprint: a layer by what it computes: float64 outputs and input gradients on fixed inputs, quantised.

It sees what algebra does not, and proposes duplicates; `hash` proves them. Two layers that differ by less than the
quantum, as by a change of ε, may share one. Parameters are moved away from their starts, where different layers give
equal numbers, some to the other sign; x has several batch elements, H ≠ W and several channels in a group. Where a
layer is not finite on an input with zeros is part of the fingerprint: x·x/x is another layer than x for a network
that has zeros in it.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from normforge.ir.evaluate import evaluate
from normforge.ir.graph import Graph
from normforge.passes.differentiate import CT, Differentiate
from normforge.passes.inputs import at_one
from normforge.passes.legalise import Legalise

SHAPE, GROUPS = (3, 6, 2, 3), 2
DIGITS = 6  # decimal digits of each number, relative to the norm of the output that it is taken of
NOTHING = 1e-12  # a gradient this small beside the cotangent is the rounding of one that is zero
PROJECTIONS = 4  # numbers of each output: few, since each may fall beside a boundary that rounding moves it across


def fingerprint(graph: Graph) -> str | None:
    """Hex digest of a layer's numbers, of its first result with further inputs at 1; None where no output is finite on
    ordinary noise."""
    graph = at_one(graph)
    backward = Differentiate(wrt=(graph.inputs[0],)).run(graph)
    layer = Legalise().run(graph)
    values = {"x": _noise("x"), f"{CT}y": _noise("cotangent")} | _parameters(graph, moved=True)
    y = evaluate(layer, values, groups=GROUPS)["y"]
    dx = np.broadcast_to(evaluate(backward, values, groups=GROUPS)["d.x"], SHAPE)
    if not np.isfinite(y).any():
        return None
    if _norm(dx) <= NOTHING * _norm(values[f"{CT}y"]):
        dx = np.zeros(SHAPE)
    h = blake2b(digest_size=16)
    for value in (y, dx):
        finite = np.isfinite(value)
        h.update(np.packbits(finite).tobytes())
        h.update(_quantised(np.where(finite, value, 0.0)))
    for moved in (False, True):
        sparse = {"x": _sparse()} | _parameters(graph, moved=moved)
        h.update(np.packbits(np.isfinite(evaluate(layer, sparse, groups=GROUPS)["y"])).tobytes())
    return h.hexdigest()


def _norm(value: Any) -> float:
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(value))


def _quantised(value: Any) -> bytes:
    norm = _norm(value)
    if norm == 0 or not np.isfinite(norm):
        return repr(norm).encode()
    numbers = _directions() @ (value.ravel() / norm)
    size = f"{norm:.{DIGITS - 1}e}"
    return (size + ",".join(str(round(float(n) * 10**DIGITS)) for n in numbers)).encode()


@lru_cache(maxsize=4)
def _noise(name: str) -> Any:
    noise = np.random.default_rng(list(name.encode())).standard_normal(SHAPE)
    # Small, ordinary and large inputs: what is clipped far out, or added near zero, shows in one of them.
    return noise * np.array([0.1, 1.0, 6.0]).reshape(3, 1, 1, 1) if name == "x" else noise


@lru_cache(maxsize=1)
def _sparse() -> Any:
    return np.where(_noise("kept") < 0, 0.0, _noise("x"))


@lru_cache(maxsize=1)
def _directions() -> Any:
    return np.random.default_rng(11).standard_normal((PROJECTIONS, int(np.prod(SHAPE))))


def _parameters(graph: Graph, *, moved: bool) -> dict[str, Any]:
    out = {}
    for p in graph.params:
        noise = np.random.default_rng(list(p.name.encode())).standard_normal(SHAPE[1] if p.axes else 1)
        out[p.name] = np.broadcast_to(p.attr[2], noise.shape) + noise * moved
    return out
