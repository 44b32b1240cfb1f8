"""Probing: a layer alone on several inputs, and in a deep stack of random convolutions, forward and backward.

Signal propagation follows NF-ResNets (Brock et al., arXiv 2101.08692, section 3): on white noise, by depth, the mean
over channels of the squared channel mean, the mean channel variance, and the norm of the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from normforge.codegen.shapes import resolve_groups
from normforge.ir.graph import Graph
from normforge.passes.degeneracy import Check, Finding, describe_node
from normforge.passes.differentiate import CT
from normforge.passes.pipeline import derivative, lower
from normforge.probing.reproducible import (
    Array,
    convolve,
    convolve_back,
    evaluate,
    mean,
    quantised_weights,
    total,
)
from normforge.streams import stream

SHAPE = (8, 32, 4, 4)  # of the inputs of a layer alone
DEPTH, WIDTH, SIZE, BATCH = 12, 32, 8, 8  # of the stack
# Chosen on 2308 random layers: none that they refuse could be trained. docs/passes.md has figures of others.
MAX_VARIANCE, MIN_VARIANCE = 1e8, 1e-10  # after 12 layers; per layer the same factor in deeper stacks
# Share of the stack that finite gradients must reach back through: those of c / x reach 5 to 8 of 12, by chance.
GRADIENT_REACH = 0.25
FLOAT32_MAX = 2.0**128

# Inputs that every layer must bear, and others that it is only described by.
NOISE = "normal noise"
NEEDED = (NOISE, "noise of size 0.001", "noise of size 10", "ones")
OTHERS = ("noise of size 1000", "sparse noise", "zeros")


@dataclass(frozen=True)
class Propagation:
    """The sizes of signals by depth, depth 0 being the input; lists stop at the first value that is not finite.

    Attributes:
        mean: mean over channels of the squared channel mean, after each layer.
        variance: mean over channels of the channel variance, after each layer.
        gradient: norm of the gradient in the activations at each depth, of a random projection of the last.
        depth: layers in the stack.
    """

    mean: list[float]
    variance: list[float]
    gradient: list[float]
    depth: int

    @property
    def forward_ok(self) -> bool:
        """True where all activations are finite."""
        return len(self.variance) == self.depth + 1

    @property
    def backward_ok(self) -> bool:
        """True where all gradients are finite."""
        return self.forward_ok and len(self.gradient) == self.depth + 1


class Layer:
    """A layer with its parameters at their starts, and its gradient, in reproducible arithmetic.

    Args:
        graph: the layer.
        channels: C.
        groups: divides C; None as in `compile`.
    """

    def __init__(self, graph: Graph, channels: int, groups: int | None = None) -> None:
        self.groups = resolve_groups(groups, channels)
        self.start = {p.name: np.full(channels if p.axes else (), p.attr[2], np.float32) for p in graph.params}
        self._graph, self._forward = graph, lower(graph)

    @cached_property
    def _backward(self) -> Graph:
        """Most layers that are asked for their forward signals are never asked for more."""
        return derivative(self._graph)

    @cached_property
    def _dx(self) -> Graph:
        return self._backward.with_outputs(("d.x", dict(self._backward.outputs)["d.x"]))

    def forward(self, x: Array) -> Array:
        """y, of the shape of x (N, C, H, W)."""
        return self._like(evaluate(self._forward, self.start | {"x": x}, groups=self.groups)["y"], x)

    def gradients(self, x: Array, dy: Array) -> dict[str, Array]:
        """By `d.` and the name: the gradient in x, of its shape, and in each parameter."""
        found = evaluate(self._backward, self.start | {"x": x, f"{CT}y": dy}, groups=self.groups)
        return found | {"d.x": self._like(found["d.x"], x)}

    def dx(self, x: Array, dy: Array) -> Array:
        """The gradient in x alone."""
        return self._like(evaluate(self._dx, self.start | {"x": x, f"{CT}y": dy}, groups=self.groups)["d.x"], x)

    def _like(self, value: Array, x: Array) -> Array:
        n, c, height, width = x.shape
        return np.broadcast_to(value, (n, self.groups, c // self.groups, height * width)).reshape(x.shape)


# Several questions are asked of one layer in turn, and deriving it takes as long as an answer.
layer_of = lru_cache(maxsize=4)(Layer)


@np.errstate(all="ignore")
def propagate(
    graph: Graph,
    *,
    depth: int = DEPTH,
    width: int = WIDTH,
    size: int = SIZE,
    batch: int = BATCH,
    groups: int | None = None,
    seed: int = 0,
    enough: Callable[[Propagation], bool] | None = None,
) -> Propagation:
    """The signals of noise (batch, width, size, size) that goes through `depth` times a 3×3 convolution and the layer.

    Weights are normal, of variance 2 / fan-in; arithmetic is float32; then a random cotangent goes back, unless the
    signals forward are `enough`. The numbers do not depend on the machine (`reproducible`).
    """
    layer = layer_of(graph, width, groups)
    rng = stream(seed, "propagation", width)
    signal, gradient = (_noise(rng, (batch, width, size, size)) for _ in range(2))
    deviation = (2 / (9 * width)) ** 0.5
    weights = [quantised_weights(rng.standard_normal((width, width, 3, 3)) * deviation) for _ in range(depth)]
    inputs: list[Array] = []  # of the layer, by depth
    means: list[float] = []
    variances: list[float] = []
    while True:
        over = (0, 2, 3)
        centre = mean(signal, over)
        m, v = (mean(s, (1,)).item() for s in (np.square(centre), mean(np.square(signal - centre), over)))
        if not (_finite(m) and _finite(v)):
            return Propagation(means, variances, [], depth)
        means.append(m)
        variances.append(v)
        if len(inputs) == depth:
            break
        inputs.append(convolve(signal, weights[len(inputs)]))
        signal = layer.forward(inputs[-1])
    forward = Propagation(means, variances, [], depth)
    if enough and enough(forward):
        return forward
    norms: list[float] = []
    while _finite(square := total(np.square(gradient, dtype=np.float64), (0, 1, 2, 3)).item()):
        norms.insert(0, math.sqrt(square))
        if not inputs:
            break
        dx = layer.dx(inputs.pop(), gradient)
        gradient = convolve_back(dx, weights[len(inputs)])  # not finite where dx is not
    return Propagation(means, variances, norms, depth)


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _finite(square: float) -> bool:
    """Is the mean or sum of squares one that float32 holds?"""
    return bool(square < FLOAT32_MAX)


@dataclass(frozen=True)
class Probed:
    """The result of probing a layer.

    Attributes:
        findings: why the layer is refused; empty where it is not.
        remarks: what else happened, by input: of other inputs, nothing that speaks against the layer by itself.
        propagation: signals by depth; None where the layer failed before.
        seconds: by part of probing.
    """

    findings: tuple[Finding, ...]
    remarks: dict[str, str]
    propagation: Propagation | None
    seconds: dict[str, float]


def probe(graph: Graph, *, depth: int = DEPTH, width: int = WIDTH, seed: int = 0) -> Probed:
    """Probe a layer: alone on several inputs, and in a deep stack of random convolutions.

    Args:
        graph: a layer.
        depth, width: of the stack of convolutions.
        seed: of inputs and weights.
    """
    start = time.perf_counter()
    alone = trials(graph, seed)
    seconds = {"alone": time.perf_counter() - start}
    remarks = {name: what for name, what in alone.items() if what and name not in NEEDED}
    reasons = [f"{alone[name]} on {name}" for name in NEEDED if "not finite" in alone[name]]
    if not reasons and alone[NOISE]:
        reasons = [f"{alone[NOISE]} on {NOISE}"]
    signals = None
    if not reasons:
        start = time.perf_counter()
        signals = propagate(graph, depth=depth, width=width, seed=seed)
        seconds["propagation"] = time.perf_counter() - start
        reasons = _broken(signals)
    node = describe_node(graph, graph.output)
    return Probed(tuple(Finding(Check.PROBING, node, r) for r in reasons[:1]), remarks, signals, seconds)


def _broken(s: Propagation) -> list[str]:
    where = f"in a stack of {s.depth} convolutions, each followed by the layer,"
    if not s.forward_ok:
        return [f"{where} activations are not finite after {len(s.variance)} of them"]
    layers = s.depth / DEPTH
    highest, lowest = min(MAX_VARIANCE**layers, 1e30), max(MIN_VARIANCE**layers, 1e-36)
    if max(s.variance) > highest:
        at = next(i for i, v in enumerate(s.variance) if v > highest)
        return [f"{where} the channels' variance explodes: {s.variance[at]:.0e} after {at} of them"]
    if s.variance[-1] < lowest:
        return [f"{where} the channels' variance dies out: {s.variance[-1]:.0e} at the end"]
    if len(s.gradient) <= GRADIENT_REACH * s.depth:
        return [f"{where} gradients are not finite {len(s.gradient)} of them back from the end"]
    return []


def _inputs(seed: int) -> dict[str, Array]:
    rng = stream(seed, "probe", 0)
    noise = _noise(rng, SHAPE)
    kept = rng.random(SHAPE) < 0.1
    needed = (noise, noise * np.float32(1e-3), noise * np.float32(10), np.ones(SHAPE, np.float32))
    others = (noise * np.float32(1e3), noise * kept, np.zeros(SHAPE, np.float32))
    return dict(zip((*NEEDED, *OTHERS), (*needed, *others), strict=True))


def trials(graph: Graph, seed: int = 0) -> dict[str, str]:
    """The faults of the layer alone, by input: values or gradients not finite, or zero; empty text for a good one."""
    layer = layer_of(graph, SHAPE[1])
    cotangent = _noise(stream(seed, "cotangent", 0), SHAPE)
    out = {}
    for name, x in _inputs(seed).items():
        y, found = layer.forward(x), layer.gradients(x, cotangent)
        dx = found.pop("d.x")
        out[name] = ""
        if not np.isfinite(y).all():
            out[name] = "y is not finite"
        elif not np.isfinite(dx).all():
            out[name] = "dx is not finite"
        elif not all(np.isfinite(g).all() for g in found.values()):
            out[name] = "a parameter's gradient is not finite"
        elif not dx.any():
            out[name] = "dx is zero"
    return out
