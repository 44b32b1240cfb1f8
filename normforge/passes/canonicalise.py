"""canonicalise: one order for the operands of + * max min, constants folded, and the rewrite rules to a fixpoint."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from normforge.errors import GraphError
from normforge.ir.evaluate import EVALUATE
from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, make
from normforge.ir.ops import COMMUTATIVE, LIBRARY, REDUCTION, Op
from normforge.ir.types import INDEX_NAMES, B
from normforge.passes.ranges import Ranges
from normforge.passes.rules import FIRED, rules_for

MAX_STEPS = 32  # rewrites of one node; each rule shrinks or moves a sign outward, so few are ever needed


@dataclass(frozen=True)
class Canonicalise:
    """Rewrite every node, operands first.

    Attributes:
        finite_only: also use rules that hold only where everything is finite. For identity, never for
            compiled code.
    """

    finite_only: bool = False

    def run(self, graph: Graph) -> Graph:
        """The canonical graph; idempotent."""
        out: dict[Node, Node] = {}
        ranges = Ranges(graph.eps)
        for node in graph.nodes:
            args = tuple(out[a] for a in node.args)
            out[node] = self.node(make(node.op, args, node.attr) if args else node, ranges)
        return graph.with_outputs(*((name, out[n]) for name, n in graph.outputs))

    def node(self, node: Node, ranges: Ranges) -> Node:
        """One node whose operands are canonical already."""
        for _ in range(MAX_STEPS):
            new = self._step(node, ranges)
            if new is node:
                return node
            node = self._below(new, ranges)
        raise GraphError(f"canonicalise did not come to rest on {node!r}")

    def _below(self, node: Node, ranges: Ranges) -> Node:
        """A rewrite may have built new operands: bring them to canonical form first.

        This recurses into what a rewrite built, never into the graph: a canonical operand comes back at once.
        """
        if not node.args:
            return node
        args = tuple(self.node(a, ranges) for a in node.args)
        return node if args == node.args else make(node.op, args, node.attr)

    def _step(self, node: Node, ranges: Ranges) -> Node:
        op = node.op
        if op in COMMUTATIVE and node.args[0].digest > node.args[1].digest:
            node = make(op, (node.args[1], node.args[0]))
        if op in EVALUATE and all(a.op is Op.CONST for a in node.args):
            value = self._fold(op, [a.value for a in node.args])
            if value is not None:
                return const(value)
        if op in REDUCTION:
            present = node.args[0].axes & node.reduced
            if not present:  # a moment of what does not vary along its axes, decided by type
                if op is Op.MEAN or op is Op.SUM:
                    return node.args[0]
                if op is Op.VAR:  # NaN where the operand is not finite
                    return const(0.0) if self.finite_only else make(Op.MUL, (node.args[0], const(0.0)))
            axes = present if op is Op.SUM else _smallest(present, node.reduced, node.args[0].axes)
            if op is Op.STD and node.reduced & B:
                axes = node.reduced  # its running variance counts the elements under the index set
            if axes != node.reduced:
                return make(op, node.args, (axes,))
        for rule in rules_for(op, finite_only=self.finite_only):
            new = rule.apply(node, ranges)
            if new is not None:
                FIRED[rule.pattern, rule.given] += 1
                return new
        return node

    def _fold(self, op: Op, values: list[float]) -> float | None:
        """The value of an operation on constants; None where it must stay an operation."""
        with np.errstate(all="ignore"):
            value = float(EVALUATE[op](*map(np.float64, values)))
        if not math.isfinite(value):
            return None
        if self.finite_only:
            # An identity may depend neither on which of three constants met first nor on the machine's exp.
            if op in LIBRARY:
                return value if values == [0.0] and op.traits.at_zero is not None else None
            if op in _RATIONAL and _decimal(value) != _RATIONAL[op](*map(_decimal, values)):
                return None
        return value


_RATIONAL: dict[Op, Callable[..., Fraction]] = {
    Op.ADD: operator.add,
    Op.SUB: operator.sub,
    Op.MUL: operator.mul,
    Op.DIV: operator.truediv,
    Op.SQUARE: lambda a: a * a,
}


def _decimal(value: float) -> Fraction:
    """What a person reads in the number: 0.1 is a tenth."""
    return Fraction(repr(value))


def _smallest(present: int, reduced: int, axes: int) -> int:
    """The smallest index set that reduces the same axes of a value that varies along `axes`."""
    same = [s for s in INDEX_NAMES if s & axes == present]
    return min(same, key=lambda s: (s.bit_count(), s)) if same and reduced in INDEX_NAMES else reduced
