"""Rewrite rules as data: pattern, replacement and soundness, all three written in formulas.

A lower-case letter in a pattern stands for any value; the same letter twice for the same node. A rule may ask for more,
which `ranges` must prove: `a > 0`, `a >= 0`, `a <= 0`, `a != 0`, `a >= b`; or that `k` is constant along the index
set I, for which any may stand. Tags:

`exact`: true of every IEEE input, Inf and NaN included, up to rounding and the sign of zero;
`finite_only`: true wherever both sides are finite;
`identity_only`: true like that, and not to be lowered: it would cost more, or lose digits.

Compiled code may use exact rules alone. `Canonicalise` rewrites by `RULES`; `IDENTITIES` state what `identity` knows
beside them.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from normforge.ir.forms.formula import parse_formula
from normforge.ir.node import Node, make, toposort
from normforge.ir.ops import COMMUTATIVE, UNARY, Op
from normforge.passes.normal_form.intervals import point
from normforge.passes.ranges import Ranges


class Soundness(enum.StrEnum):
    """The conditions under which a rule holds; the module's text explains each."""

    EXACT = "exact"
    FINITE_ONLY = "finite_only"
    IDENTITY_ONLY = "identity_only"


@dataclass(frozen=True)
class Rule:
    """A rule `pattern` -> `rewrite`, both formulas over the letters a, b, c, k; `given` has to be proved first."""

    pattern: str
    rewrite: str
    tag: Soundness
    given: str = ""

    @cached_property
    def nodes(self) -> tuple[Node, Node]:
        """Pattern and replacement as nodes."""
        head = "param a = 0; param b = 0; "
        return parse_formula(head + self.pattern).output, parse_formula(head + self.rewrite).output

    @cached_property
    def _needs(self) -> tuple[frozenset[Op], bool]:
        """What operands must be there, and whether both must be one: a quick refusal of most nodes."""
        args = self.nodes[0].args
        return frozenset(a.op for a in args if a.op is not Op.PARAM), len(args) == 2 and args[0] is args[1]

    def apply(self, node: Node, ranges: Ranges) -> Node | None:
        """The rewritten node, or None where the pattern does not match, or what it asks for is not known."""
        needs, same = self._needs
        if (same and node.args[0] is not node.args[1]) or not needs.issubset([a.op for a in node.args]):
            return None
        pattern, rewrite = self.nodes
        bound: dict[str, Node] = {}
        if not _match(pattern, node, bound) or not self.holds(bound, ranges):
            return None
        return _build(rewrite, bound)

    def holds(self, bound: dict[str, Node], ranges: Ranges) -> bool:
        """True when `ranges` proves what the rule asks for."""
        if not self.given:
            return True
        left, relation, right = self.given.split()
        a = ranges.interval(bound[left])
        if relation in ("!=", ">"):
            return a.positive or (relation == "!=" and a.nonzero)
        b = ranges.interval(bound[right]) if right in bound else point(int(right))
        return a.at_least(b) if relation == ">=" else b.at_least(a)


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


# What the traits of functions say; of -(-a) and abs(abs(a)) a rule speaks already.
_EVEN = tuple(f for f in UNARY if f.traits.even)
_ODD = tuple(f for f in UNARY if f.traits.odd and f is not Op.NEG)
_NONNEGATIVE = tuple(f for f in UNARY if f.traits.range and f.traits.range.low >= 0 and f is not Op.ABS)
_E, _F, _I = Soundness.EXACT, Soundness.FINITE_ONLY, Soundness.IDENTITY_ONLY
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
    *(Rule(f"{f}(-a)", f"{f}(a)", _E) for f in _EVEN),
    *(Rule(f"{f}(abs(a))", f"{f}(a)", _E) for f in _EVEN),
    *(Rule(f"abs({f}(a))", f"{f}(a)", _E) for f in _NONNEGATIVE),
    *(Rule(f"{f}(-a)", f"-{f}(a)", _E) for f in _ODD),
    Rule("abs(a)", "a", _E, "a > 0"),  # where a may be 0, the slopes differ there
    Rule("abs(a)", "a", _F, "a >= 0"),
    Rule("abs(a)", "-a", _F, "a <= 0"),
    Rule("max(a, b)", "a", _F, "a >= b"),  # NaN in b would show in the maximum
    Rule("min(a, b)", "b", _F, "a >= b"),
    Rule("a - a", "0", _F),
    Rule("a * 0", "0", _F),
    Rule("0 / a", "0", _F, "a != 0"),
    Rule("a / a", "1", _F, "a != 0"),
)

# What `identity` knows, both sides of which have one hash; beside the rules above.
IDENTITIES: tuple[Rule, ...] = (
    Rule("a + b", "b + a", _E),
    Rule("a * b", "b * a", _E),
    Rule("max(a, b)", "max(b, a)", _E),
    Rule("(a + b) + c", "a + (b + c)", _F),
    Rule("(a * b) * c", "a * (b * c)", _F),
    Rule("max(max(a, b), c)", "max(a, max(b, c))", _E),
    Rule("min(min(a, b), c)", "min(a, min(b, c))", _E),
    Rule("a / b / c", "a / (b * c)", _F),
    Rule("a / (b / c)", "a * c / b", _F),
    Rule("a * (b + c)", "a * b + a * c", _F),
    Rule("min(a, b)", "-max(-a, -b)", _E),
    Rule("max(a, b)", "0.5 * (a + b + abs(a - b))", _I),
    Rule("max(a + c, b + c)", "max(a, b) + c", _F),
    Rule("max(a * c, b * c)", "max(a, b) * c", _F, "c >= 0"),
    Rule("max(a, min(a, b))", "a", _F),
    Rule("max(a, b) + min(a, b)", "a + b", _F),
    Rule("abs(a * b)", "abs(a) * abs(b)", _E),
    Rule("abs(a / b)", "abs(a) / abs(b)", _E),
    Rule("abs(tanh(a))", "tanh(abs(a))", _E),
    Rule("abs(erf(a))", "erf(abs(a))", _E),
    Rule("abs(sqrt(a))", "sqrt(abs(a))", _E),
    Rule("sigmoid(-a)", "1 - sigmoid(a)", _I),
    Rule("tanh(a)", "2 * sigmoid(2 * a) - 1", _I),
    Rule("exp(a + b)", "exp(a) * exp(b)", _I),
    Rule("exp(-a)", "1 / exp(a)", _I),
    Rule("mean[I](k)", "k", _E, "k constant"),
    Rule("mean[I](a + k)", "mean[I](a) + k", _F, "k constant"),
    Rule("mean[I](k * a)", "k * mean[I](a)", _F, "k constant"),
    Rule("mean[I](a / k)", "mean[I](a) / k", _F, "k constant"),
    Rule("mean[I](a + b)", "mean[I](a) + mean[I](b)", _I),
    Rule("mean[I](mean[I](a))", "mean[I](a)", _F),
    Rule("mean[b,w,h](mean[w,h](a))", "mean[b,w,h](a)", _F),
    Rule("mean[c](mean[w,h](a))", "mean[w,h,c](a)", _F),
    Rule("mean[w,h,c](mean[w,h,c/g](a))", "mean[w,h,c](a)", _F),
    Rule("mean[I](a - mean[I](a))", "0", _F),
    Rule("std[I](a + k)", "std[I](a)", _F, "k constant"),
    Rule("std[I](a - mean[I](a))", "std[I](a)", _F),
    Rule("std[I](-a)", "std[I](a)", _E),
    Rule("rms[I](-a)", "rms[I](a)", _E),
    Rule("rms[I](abs(a))", "rms[I](a)", _E),
    Rule("rms[I](a - mean[I](a))", "std[I](a)", _F),
    Rule("square(rms[I](a)) - square(mean[I](a))", "square(std[I](a))", _I),  # both carry ε
)

FIRED: Counter[tuple[str, str]] = Counter()  # matches by pattern and condition; a test lists the rules that never fire

_BY_OP: dict[tuple[Op, bool], tuple[Rule, ...]] = {}


def rules_for(op: Op, *, finite_only: bool) -> tuple[Rule, ...]:
    """The rules whose pattern starts with `op`."""
    key = (op, finite_only)
    if key not in _BY_OP:
        _BY_OP[key] = tuple(r for r in RULES if r.nodes[0].op is op and (finite_only or r.tag is _E))
    return _BY_OP[key]
