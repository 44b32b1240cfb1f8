"""Rewrite rules as data: pattern, replacement and soundness, all three written in formulas.

A lower-case letter in a pattern stands for any value; the same letter twice for the same node. Tags:
`exact`: true of every IEEE input, Inf and NaN included, up to rounding and the sign of zero;
`finite_only`: true wherever both sides are finite. Compiled code may use exact rules alone.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from normforge.ir.node import Node, make, toposort
from normforge.ir.ops import COMMUTATIVE, Op
from normforge.ir.text import parse_formula


class Soundness(enum.StrEnum):
    """When a rule holds; see the module's text."""

    EXACT = "exact"
    FINITE_ONLY = "finite_only"


@dataclass(frozen=True)
class Rule:
    """`pattern` -> `rewrite`, both formulas over the letters a, b, k."""

    pattern: str
    rewrite: str
    tag: Soundness

    @cached_property
    def nodes(self) -> tuple[Node, Node]:
        """Pattern and replacement as nodes."""
        head = "param a = 0; param b = 0; "
        return parse_formula(head + self.pattern).output, parse_formula(head + self.rewrite).output

    def apply(self, node: Node) -> Node | None:
        """The rewritten node, or None where the pattern does not match."""
        pattern, rewrite = self.nodes
        bound: dict[str, Node] = {}
        return _build(rewrite, bound) if _match(pattern, node, bound) else None


def _match(pattern: Node, node: Node, bound: dict[str, Node]) -> bool:
    if pattern.op is Op.PARAM:
        return bound.setdefault(pattern.name, node) is node
    if pattern.op is not node.op or pattern.attr != node.attr:
        return False
    for args in (node.args, node.args[::-1]) if node.op in COMMUTATIVE else (node.args,):
        trial = dict(bound)
        if all(_match(p, a, trial) for p, a in zip(pattern.args, args, strict=True)):
            bound.update(trial)
            return True
    return False


def _build(rewrite: Node, bound: dict[str, Node]) -> Node:
    out: dict[Node, Node] = {}
    for node in toposort([rewrite]):
        if node.op is Op.PARAM:
            out[node] = bound[node.name]
        else:
            out[node] = make(node.op, tuple(out[a] for a in node.args), node.attr)
    return out[rewrite]


_E, _F = Soundness.EXACT, Soundness.FINITE_ONLY
RULES: tuple[Rule, ...] = (
    Rule("a + 0", "a", _E),
    Rule("a - 0", "a", _E),
    Rule("0 - a", "-a", _E),
    Rule("a * 1", "a", _E),
    Rule("a / 1", "a", _E),
    Rule("a * -1", "-a", _E),
    Rule("a / -1", "-a", _E),
    Rule("-(-a)", "a", _E),
    Rule("a + (-b)", "a - b", _E),
    Rule("a - (-b)", "a + b", _E),
    Rule("-(a - b)", "b - a", _E),
    Rule("(-a) * b", "-(a * b)", _E),
    Rule("(-a) / b", "-(a / b)", _E),
    Rule("a / (-b)", "-(a / b)", _E),
    Rule("a * a", "square(a)", _E),
    Rule("max(a, a)", "a", _E),
    Rule("min(a, a)", "a", _E),
    Rule("max(a, -a)", "abs(a)", _E),
    Rule("min(a, -a)", "-abs(a)", _E),
    Rule("abs(-a)", "abs(a)", _E),
    Rule("abs(abs(a))", "abs(a)", _E),
    Rule("abs(square(a))", "square(a)", _E),
    Rule("abs(exp(a))", "exp(a)", _E),
    Rule("abs(sigmoid(a))", "sigmoid(a)", _E),
    Rule("square(-a)", "square(a)", _E),
    Rule("square(abs(a))", "square(a)", _E),
    Rule("tanh(-a)", "-tanh(a)", _E),
    Rule("erf(-a)", "-erf(a)", _E),
    Rule("sqrt(-a)", "-sqrt(a)", _E),
    Rule("log(-a)", "-log(a)", _E),
    Rule("a - a", "0", _F),
    Rule("a * 0", "0", _F),
    Rule("0 / a", "0", _F),
    Rule("a / a", "1", _F),
)

FIRED: Counter[str] = Counter()  # matches by pattern; a test lists the rules that never fire

_BY_OP: dict[tuple[Op, bool], tuple[Rule, ...]] = {}


def rules_for(op: Op, *, finite_only: bool) -> tuple[Rule, ...]:
    """The rules whose pattern starts with `op`."""
    key = (op, finite_only)
    if key not in _BY_OP:
        _BY_OP[key] = tuple(r for r in RULES if r.nodes[0].op is op and (finite_only or r.tag is _E))
    return _BY_OP[key]
