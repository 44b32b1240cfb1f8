"""ranges: between which numbers each value of a graph lies, whatever x is, and which are never finite.

Intervals are those of real arithmetic, ε included: std and rms are at least √ε, sigmoid lies in (0, 1). Whether a value
is finite is asked of float32, the arithmetic that layers run in.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from normforge.ir.graph import Graph
from normforge.ir.node import Node, toposort
from normforge.ir.ops import LEAF, Op, Table
from normforge.passes.normal_form.intervals import EVERYTHING, INFINITY, NONNEGATIVE, Interval, point

FLOAT32_MAX = Fraction(3.4028234663852886e38)


class Finite(enum.IntEnum):
    """The knowledge that a value is never finite, and how; `MAYBE` where it may be."""

    MAYBE = 0
    PLUS = 1  # +∞ everywhere
    MINUS = 2  # -∞ everywhere
    NEVER = 3  # infinite or NaN everywhere
    NAN = 4  # NaN everywhere


@dataclass(frozen=True)
class Range:
    """The interval of a value where it is finite, and whether it ever is."""

    interval: Interval
    finite: Finite = Finite.MAYBE


@dataclass
class Ranges:
    """Facts about nodes, computed when asked for and kept.

    Attributes:
        eps: of the layer.
        start: parameters have their start values; without it, any value.
    """

    eps: float
    start: bool = False
    known: dict[Node, Range] = field(default_factory=dict)

    def run(self, graph: Graph) -> dict[Node, Range]:
        """The range of every node of a graph."""
        return {node: self.of(node) for node in graph.nodes}

    def of(self, node: Node) -> Range:
        """The range of one node."""
        if node not in self.known:
            for n in toposort([node], lambda n: () if n in self.known else n.args):
                if n not in self.known:
                    self.known[n] = self._fresh(n, [self.known[a] for a in n.args])
        return self.known[node]

    def interval(self, node: Node) -> Interval:
        """The interval of one node."""
        return self.of(node).interval

    def _fresh(self, node: Node, args: list[Range]) -> Range:
        finite = FINITE[node.op](*(a.finite for a in args))
        interval = self._interval(node, [a.interval for a in args])
        if node.op is Op.DIV and finite is Finite.MAYBE:
            if args[1].interval == point(0):
                finite = Finite.NAN if args[0].interval == point(0) else Finite.NEVER
            elif args[1].finite:
                interval = point(0) if args[1].finite in (Finite.PLUS, Finite.MINUS) else EVERYTHING
        if any(a.finite for a in args) and finite is Finite.MAYBE and node.op is not Op.DIV:
            interval = LIMITS.get(node.op, EVERYTHING)
        if finite is Finite.MAYBE and interval.lo > FLOAT32_MAX:
            finite = Finite.PLUS
        if finite is Finite.MAYBE and interval.hi < -FLOAT32_MAX:
            finite = Finite.MINUS
        return Range(interval, finite)

    def _interval(self, node: Node, a: list[Interval]) -> Interval:
        op = node.op
        if op is Op.CONST:
            return point(Fraction(repr(node.value))) if math.isfinite(node.value) else EVERYTHING
        if op is Op.INPUT or op is Op.PARAM:
            return point(Fraction(repr(node.attr[2]))) if op is Op.PARAM and self.start else EVERYTHING
        if op is Op.SIZE:
            return Interval(1, INFINITY, False, True)
        if op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV) and node.args[0] is node.args[1]:
            return _twice(op, a[0])
        if op in (Op.STD, Op.RMS, Op.VAR):
            return self._moment(node, a[0])
        if op is Op.SQRT:
            return a[0].rising(lambda v: v / math.sqrt(abs(v) + self.eps), EVERYTHING)
        if op is Op.LOG:
            return guarded_log(a[0], Fraction(repr(self.eps)))
        return INTERVALS[op](*a)

    def _moment(self, node: Node, a: Interval) -> Interval:
        eps = Fraction(repr(self.eps))
        if node.op is Op.RMS:
            square = a.power(2)
        elif not node.args[0].axes & node.reduced:
            square = point(0)
        else:  # Popoviciu: the variance of values between lo and hi is at most (hi - lo)² / 4
            square = Interval(0, ((a.hi - a.lo) / 2) ** 2 if a.bounded else INFINITY, False, not a.bounded)
        if node.op is Op.VAR:
            return square
        limits = Interval(Fraction(math.sqrt(eps) * (1 - 2.0**-50)), INFINITY, False, True)
        return square.plus(point(eps)).rising(math.sqrt, limits)


def guarded_log(a: Interval, eps: Fraction) -> Interval:
    """The interval of sign(a) · ln(|a| + ε)."""
    out = a.magnitude().plus(point(eps)).rising(lambda v: math.log(v) if v > 0 else -math.inf, EVERYTHING)
    if a.nonnegative or a.nonpositive:
        out = out if a.nonnegative else -out
        return out if a.nonzero else out.join(point(0))
    return out.join(-out).join(point(0))


def _twice(op: Op, a: Interval) -> Interval:
    if op is Op.ADD:
        return a.times(point(2))
    if op is Op.MUL:
        return a.power(2)
    return point(0) if op is Op.SUB else point(1)


def _exp(a: float) -> float:
    return math.exp(a) if a < 709 else math.inf


def _sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a)) if a > -700 else 0.0


def _softplus(a: float) -> float:
    return max(a, 0.0) + math.log1p(math.exp(-abs(a)))


# Whatever the operand is.
LIMITS: dict[Op, Interval] = {
    op: Interval(r.low, r.high if r.high == INFINITY else int(r.high), not r.closed, not r.closed or r.high == INFINITY)
    for op in Op
    if (r := op.traits.range) is not None
}
# The rest knows more than its operands' intervals: `Ranges` asks for it by name.
INTERVALS: Table[Callable[..., Interval]] = Table(
    "intervals (passes/ranges.py)",
    frozenset(Op) - LEAF - {Op.STD, Op.RMS, Op.VAR, Op.SQRT, Op.LOG},
    {
        Op.ADD: Interval.plus,
        Op.SUB: lambda a, b: a.plus(-b),
        Op.MUL: Interval.times,
        Op.DIV: lambda a, b: a.times(b.inverse()),
        Op.MAX: Interval.larger,
        Op.MIN: lambda a, b: -(-a).larger(-b),
        Op.NEG: lambda a: -a,
        Op.ABS: Interval.magnitude,
        Op.SQUARE: lambda a: a.power(2),
        Op.EXP: lambda a: a.rising(_exp, LIMITS[Op.EXP]),
        Op.SIGMOID: lambda a: a.rising(_sigmoid, LIMITS[Op.SIGMOID]),
        Op.TANH: lambda a: a.rising(math.tanh, LIMITS[Op.TANH]),
        Op.ERF: lambda a: a.rising(math.erf, LIMITS[Op.ERF]),
        Op.SOFTPLUS: lambda a: a.rising(_softplus, LIMITS[Op.SOFTPLUS]),
        Op.SIN: lambda a: LIMITS[Op.SIN],
        Op.COS: lambda a: LIMITS[Op.COS],
        Op.ROOT: lambda a: a.meet(NONNEGATIVE).rising(math.sqrt, NONNEGATIVE) if a.hi >= 0 else EVERYTHING,
        Op.RSQRT: lambda a: INTERVALS[Op.ROOT](a).inverse().meet(NONNEGATIVE) if a.hi >= 0 else EVERYTHING,
        Op.LN: lambda a: EVERYTHING,
        Op.SIGN: lambda a: Interval(-1, 1).meet(Interval(int(a.positive) or (0 if a.nonnegative else -1), 1)),
        Op.GATE: lambda a, b, t: t.join(point(0)),
        Op.WHERE: lambda a, b, c, d: c.join(d),
        Op.WHERE_GE: lambda a, b, c, d: c.join(d),
        Op.TOTAL: lambda a: a.times(Interval(1, INFINITY, False, True)),
        Op.MEAN: lambda a: a,
        Op.SUM: lambda a: EVERYTHING,
        Op.BROADCAST: lambda a: a,
    },
)


def _any(*args: Finite) -> Finite:
    """Sums, products, means: what is never finite stays so."""
    if Finite.NAN in args:
        return Finite.NAN
    return Finite.NEVER if any(args) else Finite.MAYBE


def _nan(a: Finite) -> Finite:
    """Functions that bring infinities back: only NaN is certain to stay."""
    return Finite.NAN if a is Finite.NAN else Finite.MAYBE


def _div(a: Finite, b: Finite) -> Finite:
    if Finite.NAN in (a, b):
        return Finite.NAN
    return Finite.NEVER if a else Finite.MAYBE


def _max(a: Finite, b: Finite, high: Finite, low: Finite) -> Finite:
    if Finite.NAN in (a, b):
        return Finite.NAN
    if high in (a, b):
        return Finite.NEVER  # +∞, or NaN where the other is
    if a is low:
        return b
    if b is low:
        return a
    return Finite.NEVER if a and b else Finite.MAYBE


def _negated(a: Finite) -> Finite:
    return _SWAP.get(a, a)


_SWAP = {Finite.PLUS: Finite.MINUS, Finite.MINUS: Finite.PLUS}
FINITE: Table[Callable[..., Finite]] = Table(
    "finiteness (passes/ranges.py)",
    Op,
    dict.fromkeys(LEAF, _any)
    | dict.fromkeys((Op.ADD, Op.SUB, Op.MUL, Op.MEAN, Op.STD, Op.RMS, Op.VAR, Op.SUM, Op.BROADCAST), _any)
    | {
        Op.DIV: _div,
        Op.MAX: lambda a, b: _max(a, b, Finite.PLUS, Finite.MINUS),
        Op.MIN: lambda a, b: _max(a, b, Finite.MINUS, Finite.PLUS),
        Op.NEG: _negated,
        Op.ABS: lambda a: Finite.PLUS if a in _SWAP else a,
        Op.SQUARE: lambda a: Finite.PLUS if a in _SWAP else a,
        Op.EXP: lambda a: a if a in (Finite.PLUS, Finite.NAN) else Finite.MAYBE,
        Op.SOFTPLUS: lambda a: a if a in (Finite.PLUS, Finite.NAN) else Finite.MAYBE,
        Op.SIN: lambda a: Finite.NAN if a else Finite.MAYBE,
        Op.COS: lambda a: Finite.NAN if a else Finite.MAYBE,
        Op.SIGMOID: _nan,
        Op.TANH: _nan,
        Op.ERF: _nan,
        Op.SQRT: _any,
        Op.LOG: _any,
        Op.ROOT: _any,
        Op.LN: _any,
        Op.SIGN: _nan,
        Op.RSQRT: _nan,
        Op.GATE: lambda a, b, t: Finite.MAYBE,
        Op.WHERE: lambda a, b, c, d: c if c is d else Finite.NEVER if c and d else Finite.MAYBE,
        Op.WHERE_GE: lambda a, b, c, d: c if c is d else Finite.NEVER if c and d else Finite.MAYBE,
        Op.TOTAL: _any,
    },
)
