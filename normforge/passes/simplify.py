"""simplify: the normal form (rules, and sympy over elementwise regions), and the choice of the cheapest form.

Budgets count nodes and rounds, never seconds. What sympy answers is believed only after a numeric check.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from normforge.ir.evaluate import evaluate
from normforge.ir.graph import Graph
from normforge.ir.ops import ELEMENTWISE, LEAF, MOMENT, REDUCE, Op
from normforge.passes.algebra import algebra
from normforge.passes.canonicalise import Canonicalise

MAX_NODES = 400  # graphs above this many nodes are only canonicalised: a budget in steps, never in seconds
MAX_ROUNDS = 16  # of algebra and rules in turn; two or three are the rule

SWEEP = 40.0  # a moment: one more pass over memory
# Rough cost of one element in a fused kernel, in additions; chooses among equal forms, never what is hashed.
COST: dict[Op, float] = dict.fromkeys(ELEMENTWISE, 1.0) | {
    Op.DIV: 4.0,
    Op.ROOT: 4.0,
    Op.SQRT: 9.0,
    Op.EXP: 10.0,
    Op.LN: 12.0,
    Op.LOG: 15.0,
    Op.SIGMOID: 15.0,
    Op.TANH: 16.0,
    Op.ERF: 16.0,
    **dict.fromkeys(LEAF | {Op.BROADCAST}, 0.0),
    **dict.fromkeys(MOMENT | REDUCE, SWEEP),
}


def cost(graph: Graph) -> float:
    """Cost of a graph by the table above."""
    return sum(COST[n.op] for n in graph.nodes)


@dataclass(frozen=True)
class Simplify:
    """The cheapest, by `cost`, of a layer, its canonical form and its normal form; the latter where they tie."""

    def run(self, graph: Graph) -> Graph:
        """Simplify a surface or core graph; idempotent. A graph that is no layer is rewritten by exact rules alone."""
        if not graph.is_surface:
            return min(Canonicalise().run(graph), graph, key=cost)
        return min(normal_form(graph), Canonicalise(finite_only=True).run(graph), graph, key=cost)


def simplify(graph: Graph) -> Graph:
    """The same function with fewer operations; see `Simplify`."""
    return Simplify().run(graph)


_memo: OrderedDict[str, Graph] = OrderedDict()


def normal_form(graph: Graph) -> Graph:
    """The normal form that `hash` is taken from: equal where everything is finite. Deterministic and idempotent.

    A graph that is not a layer, or above `MAX_NODES`, is only canonicalised.
    """
    if graph.structure in _memo:
        _memo.move_to_end(graph.structure)
        return _memo[graph.structure]
    _memo[graph.structure] = normal = _fixpoint(Canonicalise(finite_only=True).run(graph))
    if len(_memo) > 4096:
        _memo.popitem(last=False)
    return normal


def _fixpoint(start: Graph) -> Graph:
    """Algebra and rules in turn until nothing changes; from every graph of a cycle, the same member of it."""
    if not start.is_surface or len(start.nodes) > MAX_NODES:
        return start
    seen: dict[str, Graph] = {}
    current = start
    while current.structure not in seen:
        if len(seen) == MAX_ROUNDS:
            return start
        seen[current.structure] = current
        new = Canonicalise(finite_only=True).run(algebra(current))
        if len(new.nodes) <= MAX_NODES and _agree(current, new):
            current = new
    order = list(seen)
    return seen[min(order[order.index(current.structure) :])]


_PROBE_SHAPE, _PROBE_GROUPS = (3, 4, 2, 3), 2


@lru_cache(maxsize=1)
def _probe_x() -> Any:
    return np.random.default_rng(20).standard_normal(_PROBE_SHAPE)


def probe_values(graph: Graph) -> dict[str, Any]:
    """Fixed inputs on which two forms of one layer are compared: parameters moved away from their starts."""
    values = {"x": _probe_x()}
    for p in graph.params:
        rng = np.random.default_rng(list(p.name.encode()))
        values[p.name] = p.attr[2] + 0.5 * rng.standard_normal(_PROBE_SHAPE[1] if p.axes else 1)
    return values


def _agree(a: Graph, b: Graph) -> bool:
    """True when two layers agree on the probe wherever the first is finite."""
    values = probe_values(a)
    if any(p.name not in values for p in b.params):
        return False
    ya = evaluate(a, values, groups=_PROBE_GROUPS)["y"]
    yb = evaluate(b, values, groups=_PROBE_GROUPS)["y"]
    finite = np.isfinite(ya)
    # Rounding alone separates them; a wrong identity does so by far more.
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.abs(ya - yb)[finite] <= 1e-7 * (1 + np.abs(ya[finite]))))
