"""canonicalise: one order for the operands of + * max min, constants folded, and the rewrite rules to a fixpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from normforge.errors import GraphError
from normforge.ir.evaluate import EVALUATE
from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, make
from normforge.ir.ops import COMMUTATIVE, MOMENT, REDUCE, Op
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
        for node in graph.nodes:
            args = tuple(out[a] for a in node.args)
            out[node] = self.node(make(node.op, args, node.attr) if args else node, graph.eps)
        return graph.with_outputs(*((name, out[n]) for name, n in graph.outputs))

    def node(self, node: Node, eps: float) -> Node:
        """One node whose operands are canonical already."""
        for _ in range(MAX_STEPS):
            new = self._step(node, eps)
            if new is node:
                return node
            node = self._below(new, eps)
        raise GraphError(f"canonicalise did not come to rest on {node!r}")

    def _below(self, node: Node, eps: float) -> Node:
        """A rewrite may have built new operands (at most two deep): bring them to canonical form first."""
        if not node.args:
            return node
        args = tuple(self._settle(a, eps) for a in node.args)
        return node if args == node.args else make(node.op, args, node.attr)

    def _settle(self, node: Node, eps: float) -> Node:
        new = self._step(node, eps)
        return node if new is node else self._settle(self._below(new, eps), eps)

    def _step(self, node: Node, eps: float) -> Node:
        op = node.op
        if op in COMMUTATIVE and node.args[0].digest > node.args[1].digest:
            node = make(op, (node.args[1], node.args[0]))
        if op in EVALUATE and all(a.op is Op.CONST for a in node.args):
            with np.errstate(all="ignore"):
                value = float(EVALUATE[op](*(np.float64(a.value) for a in node.args)))
            if math.isfinite(value):
                return const(value)
        if (op in REDUCE or op in MOMENT) and not node.args[0].axes & node.reduced:
            # A moment of what does not vary along its axes, decided by type.
            if op is Op.MEAN or op is Op.SUM:
                return node.args[0]
            if op is Op.VAR:
                return const(0.0)
            if op is Op.STD:
                return const(math.sqrt(eps))
        for rule in rules_for(op, finite_only=self.finite_only):
            new = rule.apply(node)
            if new is not None:
                FIRED[rule.pattern] += 1
                return new
        return node
