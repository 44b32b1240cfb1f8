"""The probing stage: a layer alone on several inputs, and in a deep stack of random convolutions, forward and backward.

Signal propagation follows NF-ResNets (Brock et al., arXiv 2101.08692, section 3): on white noise, by depth, the mean
over channels of the squared channel mean, the mean channel variance, and the norm of the gradient.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import normforge as nf
from normforge.ir.graph import Graph
from normforge.passes.degeneracy import Finding, Stage, describe_node
from normforge.search.streams import torch_seed

SHAPE = (8, 32, 4, 4)  # of the inputs of a layer alone
DEPTH, WIDTH, SIZE, BATCH = 12, 32, 8, 8  # of the stack
# Chosen on 2308 random layers: none that they refuse could be trained. docs/passes.md has figures of others.
MAX_VARIANCE, MIN_VARIANCE = 1e8, 1e-10  # after 12 layers; per layer the same factor in deeper stacks
GRADIENT_REACH = 0.5  # share of the stack that finite gradients must reach back through

# Inputs that every layer must bear, and others that it is only described by.
NOISE = "normal noise"
NEEDED = (NOISE, "noise of size 0.001", "noise of size 10", "ones")
OTHERS = ("noise of size 1000", "sparse noise", "zeros")


@dataclass(frozen=True)
class Propagation:
    """Signals by depth, depth 0 being the input; lists stop at the first value that is not finite.

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
        """All activations are finite."""
        return len(self.variance) == self.depth + 1

    @property
    def backward_ok(self) -> bool:
        """All gradients are finite."""
        return self.forward_ok and len(self.gradient) == self.depth + 1


def propagate(
    graph: Graph, *, depth: int = DEPTH, width: int = WIDTH, size: int = SIZE, batch: int = BATCH, seed: int = 0
) -> Propagation:
    """Noise (batch, width, size, size) through `depth` times a 3×3 convolution (normal weights, variance 2 / fan-in)
    and the layer, in float32, and a random cotangent back."""
    generator = torch.Generator().manual_seed(torch_seed(seed, "propagation", width))
    layer = nf.compile(graph, channels=width, backend="eager")
    signals = [torch.randn(batch, width, size, size, generator=generator).requires_grad_()]
    deviation = (2 / (9 * width)) ** 0.5
    for _ in range(depth):
        weight = torch.randn(width, width, 3, 3, generator=generator) * deviation
        signals.append(layer(nn.functional.conv2d(signals[-1], weight, padding=1)))
    mean, variance = [], []
    for s in signals:
        over = (0, 2, 3)
        m, v = float(s.detach().mean(over).square().mean()), float(s.detach().var(over, unbiased=False).mean())
        if not (_finite(m) and _finite(v)):
            break
        mean.append(m)
        variance.append(v)
    gradient: list[float] = []
    if len(variance) == depth + 1:
        cotangent = torch.randn(signals[-1].shape, generator=generator)
        if signals[-1].requires_grad:
            found = torch.autograd.grad(signals[-1], signals, cotangent, allow_unused=True, materialize_grads=True)
        else:
            found = tuple(torch.zeros_like(s) for s in signals)
        for g in reversed(found):
            norm = float(g.norm())
            if not _finite(norm):
                break
            gradient.insert(0, norm)
    return Propagation(mean, variance, gradient, depth)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


@dataclass(frozen=True)
class Probed:
    """What the probing stage found.

    Attributes:
        findings: why the layer is refused; empty where it is not.
        remarks: what else happened, by input: of other inputs, nothing that speaks against the layer by itself.
        propagation: signals by depth; None where the layer failed before.
        seconds: by part of the stage.
    """

    findings: tuple[Finding, ...]
    remarks: dict[str, str]
    propagation: Propagation | None
    seconds: dict[str, float]


def probe(graph: Graph, *, depth: int = DEPTH, width: int = WIDTH, seed: int = 0) -> Probed:
    """The probing stage.

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
    return Probed(tuple(Finding(Stage.PROBING, node, r) for r in reasons[:1]), remarks, signals, seconds)


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


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(torch_seed(seed, "probe", 0))
    noise = torch.randn(SHAPE, generator=generator)
    kept = torch.rand(SHAPE, generator=generator) < 0.1
    needed = (noise, noise * 1e-3, noise * 10, torch.ones(SHAPE))
    others = (noise * 1e3, noise * kept, torch.zeros(SHAPE))
    return dict(zip((*NEEDED, *OTHERS), (*needed, *others), strict=True))


def trials(graph: Graph, seed: int = 0) -> dict[str, str]:
    """What is wrong with the layer alone, by input: values or gradients not finite, or zero; empty for a good one."""
    layer = nf.compile(graph, channels=SHAPE[1], backend="eager")
    generator = torch.Generator().manual_seed(torch_seed(seed, "cotangent", 0))
    cotangent = torch.randn(SHAPE, generator=generator)
    out = {}
    for name, value in _inputs(seed).items():
        x = value.requires_grad_()
        y = layer(x)
        parameters = list(layer.parameters())
        if y.requires_grad:
            found = torch.autograd.grad(y, [x, *parameters], cotangent, allow_unused=True, materialize_grads=True)
        else:
            found = (torch.zeros_like(x),)
        out[name] = ""
        if not bool(y.isfinite().all()):
            out[name] = "y is not finite"
        elif not bool(found[0].isfinite().all()):
            out[name] = "dx is not finite"
        elif not all(bool(g.isfinite().all()) for g in found[1:]):
            out[name] = "a parameter's gradient is not finite"
        elif not bool(found[0].any()):
            out[name] = "dx is zero"
    return out
