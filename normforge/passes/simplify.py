"""simplify: the cheapest of several forms of a graph: as written, by the rules, and by sympy over elementwise regions.

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
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import FULL, B, FloatClass, G, K, S
from normforge.passes.algebra import Algebra
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.normal_form.identity import MAX_NODES
from normforge.passes.pipeline import run_passes

MAX_ROUNDS = 16  # of algebra and rules in turn; two or three are the rule


def cost(graph: Graph) -> float:
    """Cost of a graph by the rows of its operations (ir/ops.py), in additions."""
    return sum(n.op.traits.cost for n in graph.nodes)


@dataclass(frozen=True)
class Simplify:
    """The cheapest form by `cost`; of those that tie, the one that is made last.

    Equal where everything is finite, so never what is compiled; a layer keeps its `hash`. Derivatives are simplified
    like layers; their inputs, outputs and types stay.
    """

    def run(self, graph: Graph) -> Graph:
        """Simplify a surface or core graph; idempotent."""
        best = graph
        for _ in range(MAX_ROUNDS):
            found = next(f for f in sorted(_forms(best), key=cost) if f is best or _equal(graph, f))
            # A form as cheap as the last one is taken once, and not exchanged for ever.
            if found is best or (best is not graph and cost(found) == cost(best)):
                break
            best = found
        return best


def _equal(graph: Graph, form: Graph) -> bool:
    """True when a form is the function that the graph is, as far as hashes say; a derivative's has been checked."""
    return not graph.is_surface or form.hash == graph.hash


def simplify(graph: Graph) -> Graph:
    """The same function as a layer, with fewer operations; see `Simplify`."""
    return Simplify().run(graph)


def _forms(graph: Graph) -> tuple[Graph, ...]:
    """Equal graphs, the one that is given last, each once."""
    canonical = run_passes(graph, Canonicalise(finite_only=True))
    if not graph.is_surface and not _same_types(canonical, graph):
        canonical = run_passes(graph, Canonicalise())
    forms = {}
    if len(graph.nodes) <= MAX_NODES:
        plain = _fixpoint(canonical, factor=False)
        for form in (plain, _fixpoint(plain, factor=True)) if _may_factor(plain) else (plain,):
            if graph.is_surface or _same_types(form, graph):
                forms[form.structure] = form
    forms[canonical.structure] = canonical
    if graph.structure in forms:
        forms[graph.structure] = graph
        return tuple(forms.values())
    return (*forms.values(), graph)


def _may_factor(graph: Graph) -> bool:
    """True where a value is used twice: without one, no two terms have a factor in common."""
    met: set[Node] = set()
    for node in graph.nodes:
        for a in node.args:
            if a in met and a.op is not Op.CONST:
                return True
            met.add(a)
    return False


def _same_types(a: Graph, b: Graph) -> bool:
    return [n.type for _, n in a.outputs] == [n.type for _, n in b.outputs]


_kept: OrderedDict[tuple[str, bool], Graph] = OrderedDict()  # fixpoints by start: candidates have much in common
MAX_KEPT = 8192


def _fixpoint(start: Graph, factor: bool) -> Graph:
    """Algebra and rules in turn until nothing changes; from every graph of a cycle, the same member of it."""
    seen: dict[str, Graph] = {}
    current = start
    while current.structure not in seen and (current.structure, factor) not in _kept:
        if len(seen) == MAX_ROUNDS:
            current = start
            break
        seen[current.structure] = current
        new = run_passes(current, Algebra(factor), Canonicalise(finite_only=True))
        if new.structure != current.structure and len(new.nodes) <= MAX_NODES and _agree(current, new):
            current = new
    end = _kept.get((current.structure, factor))
    if end is None:
        met = list(seen)
        end = seen[min(met[met.index(current.structure) :])] if len(seen) < MAX_ROUNDS else start
    for structure in seen:
        _kept[structure, factor] = end
    while len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)
    return end


_PROBE_SHAPE, _PROBE_GROUPS = (3, 4, 2, 3), 2
_PROBE_EXTENTS = {B: 3, G: 2, K: 2, S: 6}


@lru_cache(maxsize=256)
def _probe(name: str, axes: int) -> Any:
    shape = _PROBE_SHAPE if axes == FULL else tuple(n for bit, n in _PROBE_EXTENTS.items() if axes & bit)
    return np.random.default_rng(list(name.encode())).standard_normal(shape or 1)


def probe_values(graph: Graph) -> dict[str, Any]:
    """Fixed inputs on which two forms of one graph are compared: parameters moved away from their starts.

    Statistics that a graph takes are kept away from zero, as deviations are.
    """
    values = {}
    for n in graph.inputs:
        value = _probe(n.name, n.axes)
        values[n.name] = 0.5 + np.abs(value) if n.type.cls is FloatClass.STAT else value
    return values | {p.name: p.attr[2] + 0.5 * _probe(p.name, p.axes) for p in graph.params}


def _agree(a: Graph, b: Graph) -> bool:
    """True when two graphs agree on the probe wherever the first is finite."""
    values = probe_values(a)
    if any(p.name not in values for p in b.params):
        return False
    one = evaluate(a, values, groups=_PROBE_GROUPS)
    two = evaluate(b, values, groups=_PROBE_GROUPS)
    # Rounding alone separates them; a wrong identity does so by far more.
    with np.errstate(invalid="ignore"):
        return all(
            bool(np.all(np.abs(y - two[name])[np.isfinite(y)] <= 1e-7 * (1 + np.abs(y[np.isfinite(y)]))))
            for name, y in one.items()
        )
