"""Values in one form: a rational number times irreducible factors with powers; see `identity`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from hashlib import blake2b
from itertools import islice

from normforge.ir.ops import COMMUTATIVE, SURFACE_ONLY, Op
from normforge.passes.normal_form.intervals import EVERYTHING, NONNEGATIVE, Interval, point
from normforge.passes.normal_form.polynomial import (
    ONE,
    Key,
    Poly,
    add,
    factors,
    multiply,
    split,
    times,
)
from normforge.passes.ranges import INTERVALS

MAX_TERMS = 64  # of an expanded product
MAX_SUM = 256  # of a sum
MAX_STEPS = 40_000  # products of terms, in one layer
MAX_BITS = 1_000  # of a coefficient
MAX_POWER = 64
MAX_EXPONENT = 8  # of exp: the largest whole number that is taken out of an operand as a power


@dataclass(frozen=True, eq=False)
class Irreducible:
    """An atom, or an irreducible sum of two terms or more.

    Attributes:
        key: digest of what it is.
        poly: of a sum; an atom's is the atom itself.
        axes: along which it varies.
        depends: on an input?
        interval: of its values.
        op: of an atom: what made it; None for a sum.
        args: of an atom: the values that it is made of.
        reduced: of a mean: the axes.
        square: of an atom that is a root or an absolute value: its square.
        degree: 0 where it does not depend on x, 1 where it is affine in x, 2 for all else.
    """

    key: Key
    poly: Poly
    axes: int
    depends: bool
    interval: Interval
    op: Op | None = None
    args: tuple[Value, ...] = ()
    reduced: int = 0
    square: Value | None = None
    degree: int = 0
    name: str = ""


Powers = Mapping[Key, int]


@dataclass(frozen=True, eq=False)
class Value:
    """A value: number · ∏ factor^power, undefined where a hole is zero."""

    number: Fraction
    powers: tuple[tuple[Key, int], ...] = ()
    holes: frozenset[Key] = frozenset()

    @cached_property
    def key(self) -> Key:
        """Digest of the value; equal values have equal ones."""
        return _digest("value", str(self.number), self.powers, sorted(self.holes))

    @property
    def is_number(self) -> bool:
        """True where the value has no factors."""
        return not self.powers


def _digest(*parts: object) -> Key:
    return blake2b(repr(parts).encode(), digest_size=16).digest()


OPAQUE = "opaque"  # name of an atom that stands for an operation as it was written
UNIT_NUMBER = Fraction(1)
ZERO, UNIT = Value(Fraction(0)), Value(UNIT_NUMBER)


class TooLarge(Exception):
    """A budget is passed: the operation becomes an atom."""


def _check(number: Fraction) -> None:
    """Refuse a coefficient that is too long."""
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MAX_BITS:
        raise TooLarge


@dataclass
class Algebra:
    """The space of values: what is known of the factors that they are made of, and arithmetic on them.

    Attributes:
        eps: ε of the layer.
        factor: every factor met so far.
        steps: products of terms formed so far.
        learned: intervals of factors that do not show them by themselves, as that of a variance.
        late: such an interval was learned after the factor had been used without it.
        before: how many factors there were when the operation at hand began.
        scales: take numbers and parameters out of roots, as if ε were scaled with the rest; see `family`.
    """

    eps: float
    factor: dict[Key, Irreducible] = field(default_factory=dict)
    steps: int = 0
    learned: dict[Key, Interval] = field(default_factory=dict)
    late: bool = False
    before: int = 0
    scales: bool = False

    # -- questions

    def interval(self, v: Value) -> Interval:
        """The interval that holds the value, whatever x and the parameters are."""
        out = point(v.number)
        for key, p in v.powers:
            out = out.times(self.factor[key].interval.power(p))
        return out

    def axes(self, v: Value) -> int:
        """The axes along which a value varies."""
        out = 0
        for key, _ in v.powers:
            out |= self.factor[key].axes
        return out

    def depends(self, v: Value) -> bool:
        """True where the value depends on an input."""
        return any(self.factor[key].depends for key, _ in v.powers)

    def degree(self, v: Value) -> int:
        """The degree in x. 0: does not depend on x. 1: affine in x. 2: all else."""
        found = [(self.factor[key].degree, p) for key, p in v.powers if self.factor[key].depends]
        if not found:
            return 0
        return 1 if found == [(1, 1)] else 2

    # -- atoms

    def atom(
        self,
        op: Op,
        args: tuple[Value, ...],
        *,
        name: str = "",
        reduced: int = 0,
        interval: Interval = EVERYTHING,
        square: Value | None = None,
        axes: int | None = None,
        depends: bool = False,
        degree: int | None = None,
    ) -> Value:
        """The value that is one atom; what it is made of decides the rest where nothing is said."""
        key = _digest(op.value, name, reduced, [a.key for a in args])
        if key not in self.factor:
            depends = depends or any(self.depends(a) for a in args)
            if axes is None:
                axes = 0
                for a in args:
                    axes |= self.axes(a)
                axes &= ~reduced
            if degree is None:
                degree = 2 if depends else 0
            self.factor[key] = Irreducible(
                key, {((key, 1),): 1}, axes, depends, interval, op, args, reduced, square, degree, name
            )
        holes = frozenset().union(*(a.holes for a in args))
        return Value(UNIT_NUMBER, ((key, 1),), holes)

    def opaque(self, op: Op, args: list[Value], reduced: int = 0) -> Value:
        """An operation that is not looked into: beyond a budget, or undefined."""
        if op in COMMUTATIVE:
            args = sorted(args, key=lambda v: v.key)
        if op in SURFACE_ONLY:  # they hold ε
            args = [*args, Value(self.exact_eps)]
        bounds = op.traits.range
        interval = NONNEGATIVE if bounds and bounds.low >= 0 else EVERYTHING
        return self.atom(op, tuple(args), name=OPAQUE, reduced=reduced, interval=interval)

    def narrow(self, key: Key, interval: Interval) -> None:
        """Learn that a factor is always inside an interval."""
        f = self.factor[key]
        if key not in self.learned:
            self.learned[key] = interval
            self.late |= key in islice(self.factor, self.before)
            self.factor[key] = replace(f, interval=f.interval.meet(interval))

    def sum_factor(self, poly: Poly) -> Key:
        """The factor of an irreducible sum."""
        terms = sorted(poly.items())
        key = _digest("sum", terms)
        if key not in self.factor:
            axes, depends, degree = 0, False, 0
            for m in poly:
                inside = 0
                for k, p in m:
                    f = self.factor[k]
                    axes |= f.axes
                    depends |= f.depends
                    inside += f.degree * p
                degree = max(degree, min(inside, 2))
            interval = self.poly_interval(poly)
            if key in self.learned:
                interval = interval.meet(self.learned[key])
            self.factor[key] = Irreducible(key, poly, axes, depends, interval, degree=degree)
        return key

    # -- products

    def build(self, number: Fraction, powers: Mapping[Key, int], holes: Iterable[Key] = ()) -> Value:
        """The canonical value of a product: squares of roots and of absolute values resolved."""
        if not number:
            return Value(number, (), frozenset(holes))
        _check(number)
        powers = self.one_exponential(powers)
        simple: dict[Key, int] = {}
        rest: list[tuple[Value, int]] = []
        for key, p in powers.items():
            if abs(p) > MAX_POWER:
                raise TooLarge
            square = self.factor[key].square
            if square is None or p in (0, 1):
                if p:
                    simple[key] = p
            else:
                if p % 2:
                    simple[key] = 1
                rest.append((square, p // 2))
        if not rest:
            return self.resolve(number, simple, frozenset(holes))
        out = self.build(number, simple, holes)
        for square, n in rest:
            out = self.mul(out, self.power(square, n))
        return out

    def exponential(self, inside: Value, number: Fraction) -> Value:
        """The value exp(number · inside), `inside` without a number; a small whole number as a power of exp(inside)."""
        whole = number.denominator == 1 and abs(number) <= MAX_EXPONENT
        base = inside if whole else Value(abs(number), inside.powers, inside.holes)
        atom = self.atom(Op.EXP, (base,), interval=INTERVALS[Op.EXP](self.interval(base)))
        power = int(number) if whole else 1 if number > 0 else -1
        return Value(UNIT_NUMBER, ((atom.powers[0][0], power),) if power else (), atom.holes)

    def one_exponential(self, powers: Mapping[Key, int]) -> Mapping[Key, int]:
        """The powers of a product with one exponential of each product inside: exp(a/2) · exp(a) is exp(3a/2)."""
        found: dict[tuple[tuple[Key, int], ...], list[Key]] = {}
        for key, p in powers.items():
            f = self.factor[key]
            if p and f.op is Op.EXP and f.name != OPAQUE:
                found.setdefault(f.args[0].powers, []).append(key)
        out = dict(powers)
        for keys in found.values():
            bases = [self.factor[key].args[0] for key in keys]
            only = abs(powers[keys[0]])
            if len(keys) == 1 and (only == 1 or (bases[0].number == 1 and only <= MAX_EXPONENT)):
                continue
            total = sum((b.number * powers[key] for b, key in zip(bases, keys, strict=True)), Fraction(0))
            inside = Value(UNIT_NUMBER, bases[0].powers, frozenset().union(*(b.holes for b in bases)))
            for key in keys:
                del out[key]
            for key, p in self.exponential(inside, total).powers:
                out[key] = out.get(key, 0) + p
        return out

    def resolve(self, number: Fraction, powers: dict[Key, int], holes: frozenset[Key]) -> Value:
        """Expand the factors that share a root or an absolute value: their product has its square in it."""
        uses: dict[Key, list[Key]] = {}
        for key, p in powers.items():
            if p > 0:
                for k in self.algebraic(key):
                    uses.setdefault(k, []).extend([key] * min(p, 2))
        shared = {key for keys in uses.values() if len(keys) > 1 for key in keys}
        if shared:
            try:
                scale, poly = self.expand({k: powers[k] for k in shared})
            except TooLarge:
                shared, poly = set(), {}
            if shared:
                rest = {k: p for k, p in powers.items() if k not in shared}
                product = self.factored(number * scale, poly)
                return self.mul(Value(UNIT_NUMBER, tuple(sorted(rest.items())), holes), product)
        left = frozenset(h for h in holes if powers.get(h, 0) >= 0)
        return Value(number, tuple(sorted(powers.items())), left)

    def algebraic(self, key: Key) -> set[Key]:
        """The roots and absolute values that a factor is a polynomial in."""
        f = self.factor[key]
        return {k for m in f.poly for k, _ in m if self.whole(k)}

    def mul(self, v: Value, w: Value) -> Value:
        """The value v · w."""
        if v.is_number and not v.holes:
            v, w = w, v
        if w.is_number and not w.holes:
            return self.scale(v, w.number)
        powers = dict(v.powers)
        holes = set(v.holes | w.holes)
        for key, p in w.powers:
            before = powers.get(key, 0)
            if before * p < 0 and not self.factor[key].interval.nonzero:
                holes.add(self.hole(key))
            powers[key] = before + p
        number = v.number if w.number is UNIT_NUMBER else w.number if v.number is UNIT_NUMBER else v.number * w.number
        return self.build(number, powers, holes)

    def hole(self, key: Key) -> Key:
        """The place where a factor is zero, under one name for a and |a|."""
        f = self.factor[key]
        return f.args[0].powers[0][0] if f.op is Op.ABS and f.args[0].powers else key

    def scale(self, v: Value, number: Fraction) -> Value:
        """The value number · v."""
        if number is UNIT_NUMBER or number == 1:
            return v
        if number == 0:
            return ZERO
        total = v.number * number
        _check(total)
        return Value(total, v.powers, v.holes)

    def power(self, v: Value, n: int) -> Value:
        """The value v^n, n a whole number; v is not zero where n is negative."""
        if n == 1:
            return v
        if v.number == 0 and n < 0:
            raise TooLarge
        if abs(n) > MAX_POWER:
            raise TooLarge
        powers = dict(v.powers)
        for key, p in v.powers:
            f = self.factor[key]
            if n < 0 and p == 1 and f.op is Op.ABS and f.square is not None:
                # |a| / a² came from 1 / |a|, whose reciprocal has no hole.
                inside = f.square.powers[0][0]
                if powers.get(inside, 0) <= -2:
                    powers[key], powers[inside] = -1, powers[inside] + 2
        return self.build(v.number**n, {k: p * n for k, p in powers.items()}, v.holes)

    def div(self, v: Value, w: Value) -> Value:
        """The value v / w; division by zero is an atom of its own."""
        if w.number == 0:
            if v.number == 0:
                return self.opaque(Op.DIV, [v, ZERO])
            return self.mul(v, self.opaque(Op.DIV, [UNIT, ZERO]))
        if v.number == 0:
            zeros = {self.hole(k) for k, p in w.powers if p > 0 and not self.factor[k].interval.nonzero}
            return Value(Fraction(0), (), v.holes | w.holes | zeros)
        # a / (b / c) is a·c / b also where c is 0, and the quotient of the two infinite: no hole.
        return self.mul(v, self.power(w, -1))

    # -- sums

    def add(self, v: Value, w: Value) -> Value:
        """The value v + w, over one denominator, factored."""
        if not v.number or not w.number:
            v, w = (w, v) if not v.number else (v, w)
            return self.build(v.number, dict(v.powers), v.holes | w.holes) if w.holes else v
        a, b = dict(v.powers), dict(w.powers)
        holes = v.holes | w.holes
        common: dict[Key, int] = {}
        for key in a.keys() | b.keys():
            p = min(a.get(key, 0), b.get(key, 0))
            if p:
                common[key] = p
        left = {k: p - common.get(k, 0) for k, p in a.items()} | {k: -p for k, p in common.items() if k not in a}
        right = {k: p - common.get(k, 0) for k, p in b.items()} | {k: -p for k, p in common.items() if k not in b}
        scale_a, poly_a = self.expand(left)
        scale_b, poly_b = self.expand(right)
        one, two = v.number * scale_a, w.number * scale_b
        over = math.lcm(one.denominator, two.denominator)
        total = add({m: c * int(one * over) for m, c in poly_a.items()}, poly_b, int(two * over))
        if len(total) > MAX_SUM:
            raise TooLarge
        self.count(len(total))
        if not total:
            return ZERO
        return self.mul(
            Value(UNIT_NUMBER, tuple(sorted(common.items())), holes), self.factored(Fraction(1, over), total)
        )

    def sub(self, v: Value, w: Value) -> Value:
        """The value v - w."""
        return self.add(v, self.scale(w, Fraction(-1)))

    def total(self, values: Iterable[Value]) -> Value:
        """The sum of values."""
        out = ZERO
        for v in values:
            out = self.add(out, v)
        return out

    def expand(self, powers: Powers) -> tuple[Fraction, Poly]:
        """The polynomial of a product of positive powers, and a number in front of it."""
        scale, out = UNIT_NUMBER, {ONE: 1}
        for key, p in sorted(powers.items()):
            f = self.factor[key].poly
            if len(f) == 1:
                out = multiply(out, {((key, p),): 1}) if p else out
                continue
            for _ in range(p):
                self.count(len(out) * len(f))
                out = multiply(out, f)
                if len(out) > MAX_TERMS:
                    raise TooLarge
        more, out = self.reduce(out)
        return more if scale is UNIT_NUMBER else scale * more, out

    def reduce(self, poly: Poly) -> tuple[Fraction, Poly]:
        """A polynomial in which no root and no absolute value is squared, and a number in front of it."""
        scale = UNIT_NUMBER
        for _ in range(16):
            found = next((k for m in poly for k, p in m if p > 1 and self.whole(k)), None)
            if found is None:
                return scale, poly
            square = self.factor[found].square
            assert square is not None
            inner, by = self.expand(dict(square.powers))
            inner *= square.number
            over = inner.denominator
            # poly = Σ found^p · part_p; found² = inner · by, so over·found² = (inner·over) · by.
            highest = max(p // 2 for m in poly for k, p in m if k == found)
            out: Poly = {}
            for m, c in poly.items():
                p = dict(m).get(found, 0)
                rest = tuple((k, q) for k, q in m if k != found)
                part: Poly = {times(rest, ((found, 1),) if p % 2 else ONE): c * over ** (highest - p // 2)}
                for _ in range(p // 2):
                    self.count(len(part) * len(by))
                    part = multiply(part, {n: d * int(inner * over) for n, d in by.items()})
                out = add(out, part)
                if len(out) > MAX_SUM:
                    raise TooLarge
            poly, scale = out, scale / over**highest
        raise TooLarge

    def whole(self, key: Key) -> bool:
        """True when an atom's square has no denominator."""
        square = self.factor[key].square
        return square is not None and all(p > 0 for _, p in square.powers)

    def factored(self, scale: Fraction, poly: Poly) -> Value:
        """The value of a polynomial."""
        if not poly:
            return ZERO
        content, monomial, rest = split(poly)
        powers = dict(monomial)
        if len(rest) > 1:
            sign, parts = factors(rest)
            content *= sign
            for part, p in parts:
                key = self.sum_factor(part)
                powers[key] = powers.get(key, 0) + p
        number = scale * content
        _check(number)
        return Value(number, tuple(sorted(powers.items())))

    @cached_property
    def exact_eps(self) -> Fraction:
        """The rational number that ε is as written."""
        return Fraction(repr(self.eps))

    def count(self, steps: int) -> None:
        """Spend some of the budget."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise TooLarge

    def poly_interval(self, poly: Poly) -> Interval:
        """The interval of a polynomial; r + k·|f| with k >= 0 is also the larger of r + k·f and r - k·f."""
        out = self._plain_interval(poly)
        for m in poly:
            for key, p in m:
                f = self.factor[key]
                if f.op is not Op.ABS or p != 1:
                    continue
                beside = tuple((k, q) for k, q in m if k != key)
                if sum(1 for n in poly if any(k == key for k, _ in n)) > 1:
                    continue
                if not self._plain_interval({beside: 1}).nonnegative:
                    continue
                (inside,) = f.args
                scale, inner = self.expand(dict(inside.powers))
                scale *= abs(inside.number)
                rest = {n: c * scale.denominator for n, c in poly.items() if n != m}
                product = multiply({beside: poly[m] * scale.numerator}, inner)
                branches = [self._plain_interval(add(rest, product, sign)) for sign in (1, -1)]
                one, two = (b.times(point(Fraction(1, scale.denominator))) for b in branches)
                # r - k·|f| is the smaller.
                out = out.meet(one.larger(two) if poly[m] > 0 else -(-one).larger(-two))
        return out

    def _plain_interval(self, poly: Poly) -> Interval:
        out = point(0)
        for m, c in poly.items():
            term = point(c)
            for key, p in m:
                term = term.times(self.factor[key].interval.power(p))
            if term is EVERYTHING:
                return term
            out = out.plus(term)
        return out
