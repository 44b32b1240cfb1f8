"""Moments of values in the form of `identity`: means are linear, and std and rms are roots of means."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from normforge.ir.ops import Op
from normforge.ir.types import B, G, K, S
from normforge.passes.normal_form.intervals import INFINITY, Interval, point
from normforge.passes.normal_form.polynomial import ONE, Key, Poly, add, multiply, split
from normforge.passes.normal_form.values import UNIT, UNIT_NUMBER, Algebra, TooLarge, Value
from normforge.passes.ranges import INTERVALS

MAX_SQUARED = 8  # terms of a value whose square is averaged term by term
MOST_EPS = 64  # times ε: a constant beside what stands under a root that counts as ε
Part = tuple[Key, int]
Rational = Any  # a polynomial with rational coefficients


def mean(space: Algebra, v: Value, reduced: int) -> Value:
    """The value E[v], term by term, what is constant along the axes outside."""
    axes = space.axes(v) & reduced
    if not axes:
        return v
    outside = [(k, p) for k, p in v.powers if not space.factor[k].axes & axes]
    inside = [(k, p) for k, p in v.powers if space.factor[k].axes & axes]
    below = [(k, p) for k, p in inside if p < 0]
    scale, poly = space.expand({k: p for k, p in inside if p > 0})
    terms = []
    for part, divisors in proper_terms(space, poly, below):
        for m, c in sorted(part.items()):
            term = _product_mean(space, axes, [*m, *divisors])
            terms.append(space.scale(term, c * scale))
    return space.mul(Value(v.number, tuple(outside), v.holes), space.total(terms))


def proper_terms(space: Algebra, poly: Rational, below: list[Part]) -> list[tuple[Rational, list[Part]]]:
    """A fraction as a sum of fractions whose denominators do not go into their numerators.

    (f·P + b·P) / P has b for one of its terms. Only by denominators that have a power of a variable, its highest, for
    a term of its own.
    """
    for key, _ in below:
        divisor = space.factor[key].poly
        variable = _leader(divisor)
        if variable is None:
            continue
        quotient, rest = _divide(space, poly, divisor, variable)
        if quotient:
            fewer = [(k, q) for k, q in ((k, q + (k == key)) for k, q in below) if q]
            return proper_terms(space, quotient, fewer) + (proper_terms(space, rest, below) if rest else [])
    return [(poly, below)]


def _leader(divisor: Poly) -> Key | None:
    """The variable to divide by: the first whose highest power stands alone."""
    highest: dict[Key, int] = {}
    for m in divisor:
        for k, p in m:
            highest[k] = max(highest.get(k, 0), p)
    for v in sorted(highest):
        if [m for m in divisor if (v, highest[v]) in m] == [((v, highest[v]),)]:
            return v
    return None


def _divide(space: Algebra, poly: Rational, divisor: Poly, variable: Key) -> tuple[Rational, Rational]:
    """Quotient and rest, with rational coefficients, by powers of `variable`."""
    power = max(dict(m).get(variable, 0) for m in divisor)
    leading = Fraction(1, divisor[((variable, power),)])
    quotient: Rational = {}
    while True:
        m = max(poly, key=lambda m: (dict(m).get(variable, 0), m), default=None)
        if m is None or dict(m).get(variable, 0) < power:
            return quotient, poly
        powers = dict(m)
        powers[variable] -= power
        step: Rational = {tuple(sorted((k, q) for k, q in powers.items() if q)): poly[m] * leading}
        space.count(len(divisor))
        quotient = add(quotient, step)
        poly = add(poly, multiply(step, divisor), -1)


def terms(space: Algebra, v: Value) -> list[Value]:
    """A value as a sum of products, as far as denominators allow."""
    scale, poly = space.expand({k: p for k, p in v.powers if p > 0})
    below = [(k, p) for k, p in v.powers if p < 0]
    return [
        space.mul(space.build(v.number * scale * c, dict(m)), space.build(UNIT_NUMBER, dict(divisors)))
        for part, divisors in proper_terms(space, poly, below)
        for m, c in sorted(part.items())
    ]


def _product_mean(space: Algebra, axes: int, parts: list[Part]) -> Value:
    """The mean of a product: of parts that share no axis, the product of their means; constants outside."""
    out = space.build(UNIT_NUMBER, {k: p for k, p in parts if not space.factor[k].axes & axes})
    left = [(k, p) for k, p in parts if space.factor[k].axes & axes]
    while left:
        group = [left.pop()]
        common = space.factor[group[0][0]].axes & axes
        grown = True
        while grown:
            joined = [q for q in left if space.factor[q[0]].axes & common]
            grown = bool(joined)
            for q in joined:
                left.remove(q)
                group.append(q)
                common |= space.factor[q[0]].axes & axes
        out = space.mul(out, _joint_mean(space, common, group))
    return out


def _joint_mean(space: Algebra, axes: int, parts: list[Part]) -> Value:
    """The mean of factors that hang together: along axes that only some of them vary along, these come first."""
    along = {a: [q for q in parts if space.factor[q[0]].axes & a] for a in (B, G, K, S) if axes & a}
    fewest = min(along.values(), key=len)
    if len(fewest) < len(parts):
        first = sum(a for a, varying in along.items() if all(q in fewest for q in varying))
        inner = _product_mean(space, first, fewest)
        rest = [q for q in parts if q not in fewest]
        return mean(space, space.mul(inner, space.build(UNIT_NUMBER, dict(rest))), axes & ~first)
    if len(parts) == 1 and parts[0][1] == 1:
        factor = space.factor[parts[0][0]]
        if factor.op is Op.MEAN and not factor.name:  # a mean of means
            return _product_mean(space, axes | factor.reduced, list(factor.args[0].powers))
    inside = Value(UNIT_NUMBER, tuple(sorted(parts)))
    return space.atom(Op.MEAN, (inside,), reduced=axes, interval=space.interval(inside), degree=space.degree(inside))


def root(space: Algebra, v: Value) -> Value:
    """The square root of a value that holds ε: it is never below √ε."""
    if space.scales:
        outside, v = _scale_of(space, v)
        if not (outside.is_number and outside.number == 1):
            return space.mul(plain_root(space, outside), _root(space, v))
    return _root(space, v)


def _scale_of(space: Algebra, v: Value) -> tuple[Value, Value]:
    """m and P + ε of m·P + k·ε: m a number times what does not depend on x and is not negative; else 1 and v."""
    whole = UNIT, v
    if len(v.powers) != 1 or v.powers[0][1] != 1 or v.number <= 0 or not space.depends(v):
        return whole
    poly = dict(space.factor[v.powers[0][0]].poly)
    constant = poly.pop(ONE, 0) * v.number
    if not poly or not constant > 0:
        return whole
    content, common, rest = split(poly)
    number = content * v.number
    if number < 0 or constant > MOST_EPS * space.exact_eps * max(number, UNIT_NUMBER):
        return whole
    outside: dict[Key, int] = {}
    inside: dict[Key, int] = {}
    for key, p in common.items():
        f = space.factor[key]
        taken = 0 if f.depends else p if f.interval.nonnegative else p - p % 2
        outside[key], inside[key] = taken, p - taken
    product = space.mul(space.build(UNIT_NUMBER, inside), space.factored(UNIT_NUMBER, rest))
    held = space.add(product, Value(space.exact_eps))
    return space.build(number, outside), Value(held.number, held.powers, held.holes | v.holes)


def plain_root(space: Algebra, v: Value) -> Value:
    """The root of a number times what is not negative."""
    if v.number != 1:
        return space.mul(_root(space, Value(v.number)), plain_root(space, Value(UNIT_NUMBER, v.powers, v.holes)))
    out = UNIT
    for key, p in v.powers:
        f = space.factor[key]
        base = space.build(UNIT_NUMBER, {key: 1})
        if p % 2 == 0:
            if not f.interval.nonnegative:
                square = space.power(base, 2)
                base = space.atom(Op.ABS, (base,), interval=f.interval.magnitude(), square=square)
            out = space.mul(out, space.power(base, p // 2))
        else:
            atom = space.atom(Op.ROOT, (base,), interval=INTERVALS[Op.ROOT](f.interval), square=base)
            out = space.mul(out, space.power(atom, p))
    return out


def _root(space: Algebra, v: Value) -> Value:
    if v.is_number and v.number > 0:
        top, bottom = math.isqrt(v.number.numerator), math.isqrt(v.number.denominator)
        if top * top == v.number.numerator and bottom * bottom == v.number.denominator:
            return Value(Fraction(top, bottom), (), v.holes)
    above = Interval(space.exact_eps, INFINITY, False, True)
    if len(v.powers) == 1 and v.powers[0][1] == 1 and v.number:  # E[a²] - E[a]² + ε does not show it by itself
        space.narrow(v.powers[0][0], above.times(point(1 / v.number)))
    interval = INTERVALS[Op.ROOT](space.interval(v).meet(above))
    return space.atom(Op.ROOT, (v,), interval=interval, square=v)


def total(space: Algebra, v: Value, reduced: int) -> Value:
    """The value E[v] · n, n the elements along the axes."""
    count = space.atom(Op.SIZE, (), name=repr(reduced), axes=0, interval=Interval(1, INFINITY, False, True))
    return space.mul(mean(space, v, reduced), count)


def rms(space: Algebra, v: Value, reduced: int) -> Value:
    """The value root(E[v²] + ε)."""
    square = mean(space, space.power(_small(space, v), 2), reduced)
    return root(space, space.add(square, Value(space.exact_eps)))


def var(space: Algebra, v: Value, reduced: int) -> Value:
    """The value E[v²] - E[v]²."""
    v = _centred(space, v, reduced)
    square = mean(space, space.power(_small(space, v), 2), reduced)
    variance = space.sub(square, space.power(mean(space, v, reduced), 2))
    return Value(variance.number, variance.powers, variance.holes | v.holes)


def std(space: Algebra, v: Value, reduced: int) -> Value:
    """The value root(E[v²] - E[v]² + ε)."""
    return root(space, space.add(var(space, v, reduced), Value(space.exact_eps)))


def _centred(space: Algebra, v: Value, reduced: int) -> Value:
    """Without the terms of a sum that are constant along the axes: they would cancel."""
    axes = space.axes(v) & reduced
    parts = terms(space, v)
    varying = [t for t in parts if space.axes(t) & axes]
    if not varying or len(varying) == len(parts):
        return v
    part = space.total(varying)
    return Value(part.number, part.powers, v.holes | part.holes)


def _small(space: Algebra, v: Value) -> Value:
    """The value, if its square is small enough to be looked into."""
    _, poly = space.expand({k: p for k, p in v.powers if p > 0})
    if len(poly) > MAX_SQUARED:
        raise TooLarge
    return v
