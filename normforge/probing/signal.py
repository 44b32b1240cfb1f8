"""The signal score of a layer: does a signal keep its size on its way through it, without training?

z is |Δ log10 of the variance| and |Δ log10 of the gradient| between the output of the first and of the last layer in a
stack of random convolutions each followed by the layer (NF-ResNets, Brock et al., arXiv 2101.08692, section 3), and
twice |log10 of std(f(10·x)) / std(f(x))|. It is small for a layer that normalizes, and large for one whose signal dies,
explodes, or grows with its input. The first output counts, and not the noise before it, since a layer may give its
signal any size as long as it keeps it. R² says how much of the layer is a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from normforge.ir.graph import Graph
from normforge.probing.probe import DEPTH, Propagation, layer_of, propagate
from normforge.probing.reproducible import Array, mean, variance
from normforge.streams import stream

WIDTH, GROUPS = 16, 4  # several channels a group, so that the moments of groups are not those of channels
SHAPE = (8, WIDTH, 4, 4)  # of the noise that the layer alone sees
SCALE_WEIGHT = 2.0
LINEAR = 0.95  # R² above which a layer counts as linear in part


@dataclass(frozen=True)
class Signal:
    """What `signal` found; infinite where a signal did not come through.

    Attributes:
        variance: |Δ log10| of the channels' variance, from the first layer's output to the last's.
        gradient: |Δ log10| of the gradient's norm, back from there.
        scale: |log10 of std(f(10·x)) / std(f(x))|.
        linearity: R² of y on x, each channel fitted by itself, on noise; 0 for a constant layer.
    """

    variance: float
    gradient: float
    scale: float
    linearity: float

    @property
    def z(self) -> float:
        """variance + gradient + 2·scale."""
        return self.variance + self.gradient + SCALE_WEIGHT * self.scale

    def gated(self, penalty: float) -> float:
        """z and what being linear adds to it: nothing up to R² of 0.95, `penalty` at 1."""
        return self.z + penalty * max(0.0, self.linearity - LINEAR) / (1 - LINEAR)


@np.errstate(all="ignore")
def signal(
    graph: Graph, *, depth: int = DEPTH, seed: int = 0, enough: Callable[[Signal], bool] | None = None
) -> Signal:
    """z and R² of a layer with its parameters at their starts. The numbers do not depend on the machine.

    Args:
        graph: a layer.
        depth: convolutions in the stack.
        seed: of noise and weights.
        enough: asked of the layer alone, and of the signals forward, whether what is known suffices; what was not
            measured then is 0.
    """
    layer, every = layer_of(graph, WIDTH, GROUPS), (0, 1, 2, 3)
    x = stream(seed, "signal", WIDTH).standard_normal(SHAPE).astype(np.float32)
    y, far = layer.forward(x), layer.forward(np.float32(10) * x)
    scale = _change(variance(y, every).item(), variance(far, every).item()) / 2
    alone = Signal(0.0, 0.0, scale, _linearity(x, y))
    if enough and enough(alone):
        return alone

    def forward(s: Propagation) -> Signal:
        return replace(alone, variance=_change(s.variance[1], s.variance[-1]) if s.forward_ok else math.inf)

    asked = (lambda s: enough(forward(s))) if enough else None
    s = propagate(graph, depth=depth, width=WIDTH, groups=GROUPS, seed=seed, enough=asked)
    found = forward(s)
    if enough and enough(found):
        return found
    return replace(found, gradient=_change(s.gradient[1], s.gradient[-1]) if s.backward_ok else math.inf)


def _change(a: float, b: float) -> float:
    """|log10(b / a)|; infinite unless both are finite and above zero."""
    good = 0 < a < math.inf and 0 < b < math.inf
    return abs(math.log10(b) - math.log10(a)) if good else math.inf


def _linearity(x: Array, y: Array) -> float:
    over = (0, 2, 3)  # every channel has its own slope and offset
    below, all_of_it = variance(x, over), variance(y, over)
    together = mean((x - mean(x, over)) * (y - mean(y, over)), over)
    explained, whole = mean(together**2 / below, (1,)).item(), mean(all_of_it, (1,)).item()
    return explained / whole if 0 < whole < math.inf else 0.0
