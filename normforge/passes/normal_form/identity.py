"""identity: what function of its inputs and parameters a layer is, in a form that equal layers share.

Every value is a product

    rational number · irreducible factors with powers, negative ones too

whose factors are atoms (x, a parameter, tanh of a value, a mean, ...) or sums: polynomials in atoms that do not factor.
Sums are expanded over one denominator and factored again, so that the order of operands, the distributive law and the
cancelling of factors are settled by arithmetic alone, and the sign and the size of factors are known by intervals.
On top of it, each function is written by few others, in one way:

    tanh, erf, log       odd: the sign of the operand goes outside
    sigmoid(a)           (1 + tanh(a/2)) / 2
    exp(a - 2b)          exp(a) · exp(b)^-2
    sin(-a), cos(-a)     -sin(a), cos(|a|), and so of every other odd or even function
    max(a, b)            (a + b + |a - b|) / 2; of more than two, a set, without what all have in common; min by max
    |a·b|                |a| · |b|; |a|² is a²
    mean[I](k·a + b)     k · mean(a) + mean(b), k constant along I; means of means are one mean
    std[I](a)            root of E[a²] - E[a]² + ε;  rms[I](a): root of E[a²] + ε;  sqrt(a): a / root of |a| + ε
    root(a)²             a

so shifts leave std alone, rms² - mean² = std², and ε is kept exactly. None of this is ever compiled: in floating point
E[a²] - E[a]² loses every digit.

A value equals another where both are finite. But what may be zero does not cancel for nothing: x·x/x has a hole at
x = 0, and stays another function than x. Holes are kept beside the factors.

Budgets count terms and products, never seconds: where one is passed, an operation is an atom of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache, reduce

from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import ELEMENTWISE, MOMENT, SURFACE, UNARY, Op, Table
from normforge.passes.normal_form.intervals import Interval, point
from normforge.passes.normal_form.moments import mean, plain_root, rms, root, std, terms, total, var
from normforge.passes.normal_form.polynomial import Key
from normforge.passes.normal_form.values import OPAQUE, UNIT, UNIT_NUMBER, ZERO, Algebra, TooLarge, Value
from normforge.passes.ranges import INTERVALS, guarded_log

MAX_NODES = 400  # of a graph whose value is asked for: a budget in steps, never in seconds
MAX_OPERANDS = 6  # of a maximum that is looked into
_HALF, _MINUS = Fraction(1, 2), Fraction(-1)


@dataclass
class Identity(Algebra):
    """The values of one graph's nodes.

    Attributes:
        replace: what to take for inputs and parameters, by name, given their own values; by default those.
    """

    replace: Mapping[str, Callable[[Identity, Value], Value]] = field(default_factory=dict)

    def value(self, graph: Graph) -> Value:
        """The value of a layer's output. The graph must be a surface graph."""
        of = self._values(graph)
        if self.late:  # what came before a deviation did not know of it: the order of operands would show
            known, self.factor = self.factor, {}
            self.steps, self.late = 0, False
            of = self._values(graph)
            self.factor = known | self.factor  # values of before keep their factors
        return of[graph.output]

    def _values(self, graph: Graph) -> dict[Node, Value]:
        of: dict[Node, Value] = {}
        for node in graph.nodes:
            of[node] = self.node(node, [of[a] for a in node.args])
        return of

    def node(self, node: Node, args: list[Value]) -> Value:
        """The value of an operation on values."""
        op, self.before = node.op, len(self.factor)
        if op is Op.CONST:
            if not math.isfinite(node.value):
                return self.atom(op, (), name=repr(node.value))
            return Value(Fraction(repr(node.value)))
        if op in (Op.INPUT, Op.PARAM):
            is_x = op is Op.INPUT and node.name == "x"  # dependence and degree are of x, whatever else is given
            leaf = self.atom(op, (), name=repr(node.attr), axes=node.axes, depends=is_x, degree=int(is_x))
            change = self.replace.get(node.name)
            return change(self, leaf) if change else leaf
        try:
            if op in MOMENT:
                return MOMENTS[op](self, args[0], node.reduced)
            return FUNCTIONS[op](self, *args)
        except TooLarge:
            if op in (Op.STD, Op.RMS, Op.VAR) and args[0].number < 0:  # even, whatever stands inside
                args = [Value(-args[0].number, args[0].powers, args[0].holes)]
            return self.opaque(op, args, node.reduced if op in MOMENT else 0)


@lru_cache(maxsize=64)
def value_of(graph: Graph) -> tuple[Identity, Value]:
    """The value of a layer's output, and the space that knows its factors. Several passes ask in turn."""
    space = Identity(graph.eps)
    return space, space.value(graph)


# -- functions of one value


def _odd(op: Op) -> Callable[[Algebra, Value], Value]:
    """A bounded odd function that rises from -1 to 1."""

    def apply(space: Algebra, v: Value) -> Value:
        if v.number == 0:
            return v
        if v.number < 0:
            return space.scale(apply(space, space.scale(v, _MINUS)), _MINUS)
        inner = _without_abs(space, v)
        if inner.key != v.key and absolute(space, inner).key == v.key:  # f(|a|) is |f(a)|
            return absolute(space, apply(space, inner))
        return space.atom(op, (v,), interval=INTERVALS[op](space.interval(v)))

    return apply


def _without_abs(space: Algebra, v: Value) -> Value:
    """The value with a for every factor |a|."""
    powers: dict[Key, int] = {}
    for key, p in v.powers:
        f = space.factor[key]
        inner = f.args[0].powers[0][0] if f.op is Op.ABS and f.name != OPAQUE else key
        powers[inner] = powers.get(inner, 0) + p
    return space.build(v.number, powers, v.holes)


tanh, erf = _odd(Op.TANH), _odd(Op.ERF)


def _by_traits(op: Op) -> Callable[[Algebra, Value], Value]:
    """An atom: signs outside an odd function, none in an even one, and its value at 0 where that is exact."""
    traits = op.traits

    def apply(space: Algebra, v: Value) -> Value:
        if v.number == 0 and traits.at_zero is not None:
            return Value(Fraction(traits.at_zero), (), v.holes)
        if traits.odd and v.number < 0:
            return space.scale(apply(space, space.scale(v, _MINUS)), _MINUS)
        if traits.even:
            v = absolute(space, v)
        return space.atom(op, (v,), interval=INTERVALS[op](space.interval(v)))

    return apply


def sigmoid(space: Algebra, v: Value) -> Value:
    """The value sigmoid(v) = (1 + tanh(v / 2)) / 2."""
    return space.scale(space.add(UNIT, tanh(space, space.scale(v, _HALF))), _HALF)


def log(space: Algebra, v: Value) -> Value:
    """The value sign(v) · ln(|v| + ε), an odd function."""
    if v.number == 0:
        return v
    if v.number < 0:
        return space.scale(log(space, space.scale(v, _MINUS)), _MINUS)
    return space.atom(Op.LOG, (v, Value(space.exact_eps)), interval=guarded_log(space.interval(v), space.exact_eps))


def exp(space: Algebra, v: Value) -> Value:
    """The value exp(v): a product over the terms of v, sign and whole part of each coefficient as a power."""
    out = Value(UNIT_NUMBER, (), v.holes)
    for t in terms(space, v):
        out = space.mul(out, space.exponential(Value(UNIT_NUMBER, t.powers, t.holes), t.number))
    return out


def absolute(space: Algebra, v: Value) -> Value:
    """The value |v| = |number| · ∏ |factor|^power."""
    out = Value(abs(v.number), (), v.holes)
    for key, p in v.powers:
        f = space.factor[key]
        factor = Value(UNIT_NUMBER, ((key, 1),))
        if p % 2 and not f.interval.nonnegative:
            if f.interval.nonpositive:
                factor = space.scale(factor, _MINUS)
            else:
                square = space.power(factor, 2)
                factor = space.atom(Op.ABS, (factor,), interval=f.interval.magnitude(), square=square)
        out = space.mul(out, space.power(factor, p))
    return out


def sqrt(space: Algebra, v: Value) -> Value:
    """The value v / root(|v| + ε)."""
    size, outside = absolute(space, v), UNIT
    if space.scales and v.number:
        fixed = tuple((k, p) for k, p in size.powers if not space.factor[k].depends)
        outside = plain_root(space, Value(size.number, fixed))
        if not space.depends(size):
            return space.div(v, outside)
        size = space.build(UNIT_NUMBER, {k: p for k, p in size.powers if space.factor[k].depends}, size.holes)
    inside = space.add(size, Value(space.exact_eps))
    return space.div(v, space.mul(outside, root(space, inside)))


# -- max and min


def maximum(space: Algebra, v: Value, w: Value) -> Value:
    """The largest of v and w, and of what these are maxima of."""
    left = _undecided(space, sorted({o.key: o for o in (v, w)}.values(), key=lambda o: o.key))
    if len(left) == 1:
        return left[0]
    # What both have in common stays outside: only what their distance has in it makes them maxima of others.
    apart = {k for key, _ in space.sub(v, w).powers for m in space.factor[key].poly for k, _ in m}
    flat = {o.key: o for u in (v, w) for o in _branches(space, u, apart)}
    for a in list(flat.values()):
        lowest = _branches(space, space.scale(a, _MINUS), apart)
        if len(lowest) > 1 and any(space.scale(o, _MINUS).key in flat for o in lowest):  # max(a, min(a, b))
            del flat[a.key]
    left = _undecided(space, sorted(flat.values(), key=lambda o: o.key))
    if len(left) == 1:
        return left[0]
    if len(left) == 2:
        a, b = left
        return space.scale(space.total([a, b, absolute(space, space.sub(a, b))]), _HALF)
    return _largest(space, left)


def _branches(space: Algebra, v: Value, atoms: set[Key]) -> list[Value]:
    """The values that v is the maximum of: f and -f of |f|, also under a positive factor and beside other terms.

    Only of those absolute values and maxima that are among `atoms`, or come to light on the way.
    """
    out: list[Value] = []
    waiting = [v]
    while waiting:
        one = waiting.pop()
        parts = _one_branching(space, one, atoms) if len(out) + len(waiting) < MAX_OPERANDS else []
        waiting += parts
        if not parts:
            out.append(one)
    return out


def _one_branching(space: Algebra, v: Value, atoms: set[Key]) -> list[Value]:
    """The values that v is the maximum of by its first absolute value or maximum; none where it has none."""
    for key, p in v.powers:
        if p != 1:
            continue
        poly = space.factor[key].poly
        outside = Value(v.number, tuple(q for q in v.powers if q[0] != key), v.holes)
        for m in sorted(poly):
            for k, q in m:
                f = space.factor[k]
                if k not in atoms or f.op not in (Op.ABS, Op.MAX) or f.name == OPAQUE or q != 1:
                    continue
                beside = space.factored(UNIT_NUMBER, {tuple(r for r in m if r[0] != k): poly[m]})
                alone = sum(1 for n in poly if any(j == k for j, _ in n)) == 1
                if not alone or not space.interval(space.mul(outside, beside)).nonnegative:
                    continue
                rest = space.factored(UNIT_NUMBER, {n: c for n, c in poly.items() if n != m})
                atoms |= {j for a in f.args for i, _ in a.powers for n in space.factor[i].poly for j, _ in n}
                inner = f.args if f.op is Op.MAX else (f.args[0], space.scale(f.args[0], _MINUS))
                return [space.mul(outside, space.add(rest, space.mul(beside, a))) for a in inner]
    return []


def _undecided(space: Algebra, values: list[Value]) -> list[Value]:
    """The values that no other one is known to be as large as."""
    out: list[Value] = []
    for i, a in enumerate(values):
        others = out + values[i + 1 :]
        if not any(
            space.interval(b).at_least(space.interval(a)) or space.interval(space.sub(b, a)).nonnegative for b in others
        ):
            out.append(a)
    return out


def _largest(space: Algebra, values: list[Value]) -> Value:
    """Three or more: the one that its distances to the others mark out, plus scale · max(0, distances / scale)."""
    if len(values) > MAX_OPERANDS:
        raise TooLarge
    rows = [[space.sub(b, a) for b in values if b is not a] for a in values]
    scale = _common(space, [d for row in rows for d in row])
    rows = [sorted((space.div(d, scale) for d in row), key=lambda d: d.key) for row in rows]
    at = min(range(len(values)), key=lambda i: [d.key for d in rows[i]])
    interval = reduce(Interval.larger, (space.interval(d) for d in rows[at]), point(0))
    atom = space.atom(Op.MAX, (ZERO, *rows[at]), interval=interval)
    return space.add(values[at], space.mul(scale, atom))


def _common(space: Algebra, values: list[Value]) -> Value:
    """What is certainly not negative and divides all values: a number and factors."""
    shared: dict[Key, int] = {}
    first, *rest = (dict(v.powers) for v in values)
    for key, p in first.items():
        lowest = min([p, *(powers.get(key, 0) for powers in rest)])
        if lowest > 0 and space.factor[key].interval.nonnegative:
            shared[key] = lowest
        highest = max([p, *(powers.get(key, 0) for powers in rest)])
        if highest < 0 and space.factor[key].interval.positive:
            shared[key] = highest
    over = math.lcm(*(v.number.denominator for v in values))
    number = Fraction(math.gcd(*(int(v.number * over) for v in values)), over)
    return space.build(number, shared)


def minimum(space: Algebra, v: Value, w: Value) -> Value:
    """The value min(v, w) = -max(-v, -w)."""
    return space.scale(maximum(space, space.scale(v, _MINUS), space.scale(w, _MINUS)), _MINUS)


FUNCTIONS: Table[Callable[..., Value]] = Table(
    "normal form (passes/normal_form/identity.py)",
    ELEMENTWISE & SURFACE,
    {op: _by_traits(op) for op in UNARY}  # those that nothing else is known of
    | {
        Op.ADD: Algebra.add,
        Op.SUB: Algebra.sub,
        Op.MUL: Algebra.mul,
        Op.DIV: Algebra.div,
        Op.MAX: maximum,
        Op.MIN: minimum,
        Op.NEG: lambda space, v: space.scale(v, _MINUS),
        Op.ABS: absolute,
        Op.SQUARE: lambda space, v: space.power(v, 2),
        Op.EXP: exp,
        Op.SIGMOID: sigmoid,
        Op.TANH: tanh,
        Op.ERF: erf,
        Op.SQRT: sqrt,
        Op.LOG: log,
        Op.WHERE: lambda space, *v: space.atom(Op.WHERE, v, interval=space.interval(v[2]).join(space.interval(v[3]))),
        Op.WHERE_GE: lambda space, *v: space.atom(
            Op.WHERE_GE, v, interval=space.interval(v[2]).join(space.interval(v[3]))
        ),
    },
)
MOMENTS: Table[Callable[[Algebra, Value, int], Value]] = Table(
    "normal form of moments (passes/normal_form/identity.py)",
    MOMENT,
    {Op.MEAN: mean, Op.TOTAL: total, Op.VAR: var, Op.STD: std, Op.RMS: rms},
)
