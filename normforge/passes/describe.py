"""describe: properties of a layer, proved from the IR where that is possible, and looked for by numbers where not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from normforge.ir.evaluate import evaluate
from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import LEAF, MOMENT, Op
from normforge.ir.types import FULL, INDEX_NAMES, INDEX_SETS, B
from normforge.passes.inputs import at_one
from normforge.passes.normal_form.identity import MAX_NODES, Identity, value_of
from normforge.passes.normal_form.moments import mean
from normforge.passes.normal_form.values import TooLarge, Value
from normforge.passes.properties import Monotone, homogeneity, is_bounded, monotony
from normforge.passes.running import running_statistics
from normforge.passes.simplify import Simplify


@dataclass(frozen=True)
class Describe:
    """Facts about a layer, by name.

    Those named in `probed` were decided by numbers: a counterexample found, or none in the numbers tried.

    batch_dependent: a moment over the batch is left in the simplified layer.
    scale_degree: d, where f(t·x) = t^d · f(x) for t > 0 (in the limit ε -> 0; f without terms that x does not
        change, such as beta); 0 is scale-invariant. None: there is no such d.
    shift_invariant: y(x + t) = y(x) for one number t.
    centred: the index sets over which the mean of y does not depend on x.
    monotone: see `Monotone`.
    bounded: |y| stays below a bound that x does not change.
    linear: y is affine in x.
    moments, moment_levels: of the simplified layer; the levels are how deep moments stand inside moments.
    parameters: in order of appearance. running: the running statistics.
    operations: of the simplified layer. cost: theirs by the rows of ir/ops.py, in additions, moments as one sweep each.
    flops: the same without the sweeps, an element of x.
    """

    def run(self, graph: Graph) -> dict[str, object]:
        """The properties of a surface graph: of its first result, with further inputs at 1."""
        graph = at_one(graph)
        simple = Simplify().run(graph)
        level: dict[Node, int] = {}
        moments: list[str] = []
        batch = False
        for node in simple.nodes:
            own = node.op in MOMENT and bool(node.args[0].axes & node.reduced)
            level[node] = max((level[a] for a in node.args), default=0) + own
            batch |= own and bool(node.reduced & B)
            if own:
                moments.append(f"{node.op}[{INDEX_NAMES[node.reduced]}]")
        cost = sum(n.op.traits.cost for n in simple.nodes)
        probed: list[str] = []
        return {
            "batch_dependent": batch,
            "scale_degree": _number(homogeneity(simple)),
            **_identities(graph),
            "monotone": _monotone(simple, bool(moments), probed),
            "bounded": _bounded(simple, probed),
            "moments": sorted(set(moments)),
            "moment_levels": level[simple.output],
            "parameters": [p.name for p in graph.params],
            "running": [r.name for r in running_statistics(graph)],
            "operations": sum(n.op not in LEAF for n in simple.nodes),
            "cost": cost,
            "flops": sum(n.op.traits.cost for n in simple.nodes if n.axes == FULL and n.op not in LEAF)
            + sum(n.op in MOMENT for n in simple.nodes) * 2,
            "probed": probed,
        }


def _number(d: Fraction | None) -> float | int | None:
    return None if d is None else int(d) if d.denominator == 1 else float(d)


def _identities(graph: Graph) -> dict[str, object]:
    """What the value of the output, and that of a shifted layer, prove."""
    if len(graph.nodes) > MAX_NODES:
        return {"shift_invariant": None, "centred": None, "linear": None}
    space, y = value_of(graph)

    def moved(space: Identity, x: Value) -> Value:
        return space.add(x, space.atom(Op.PARAM, (), name="a number"))

    shifted = Identity(graph.eps, replace={"x": moved}).value(graph)
    centred = []
    for name, axes in INDEX_SETS.items():
        with suppress(TooLarge):
            if space.axes(y) & axes and not space.depends(mean(space, y, axes)):
                centred.append(name)
    return {
        "shift_invariant": shifted.key == y.key,
        "centred": centred if space.depends(y) else [],
        "linear": space.degree(y) <= 1,
    }


def _monotone(graph: Graph, moments: bool, probed: list[str]) -> str:
    proved = monotony(graph)
    if proved is not Monotone.NO or moments:
        return proved.value
    probed.append("monotone")
    x = np.linspace(-20, 20, 4001).reshape(1, 1, 4001)
    values = {"x": x} | {p.name: np.array([p.attr[2] or 0.1]) for p in graph.params}
    steps = np.diff(evaluate(graph, values)["y"].ravel())
    steps = steps[np.isfinite(steps)]
    up, down = bool(np.any(steps > 1e-12)), bool(np.any(steps < -1e-12))
    return (Monotone.NO if up and down else Monotone.RISING if up else Monotone.FALLING).value


def _bounded(graph: Graph, probed: list[str]) -> bool:
    if is_bounded(graph):
        return True
    probed.append("bounded")
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((2, 4, 3, 3))
    largest = []
    for scale in (1e2, 1e4, 1e6):
        # Far from the mean, far from zero, one large element: where what normalises does not keep up.
        one = np.zeros_like(noise)
        one[0, 0, 0, 0] = 1
        inputs = (noise * scale, noise + scale, noise * scale + scale, one * scale, -one * scale, -noise - scale)
        values = {p.name: np.full(4 if p.axes else 1, p.attr[2] or 0.1) for p in graph.params}
        found = [np.abs(evaluate(graph, {"x": x, **values}, groups=2)["y"]).max() for x in inputs]
        largest.append(max(f if np.isfinite(f) else np.inf for f in found))
    return bool(largest[2] < np.inf and largest[2] <= 1.01 * largest[1] and largest[1] <= 1.01 * largest[0] + 1e-9)
