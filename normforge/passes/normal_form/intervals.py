"""Intervals of real numbers with open or closed ends. Ends are exact (rational or infinite), so that 1 + tanh is
known to be positive; where a function's value is not rational, the end is rounded outward."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

End = Fraction | int | float  # a float only where it is infinite
INFINITY = math.inf
MAX_BITS = 256  # longer fractions are rounded outward


class Interval(NamedTuple):
    """An interval: lo <= a <= hi, or < at an open end. Infinite ends are open."""

    lo: End
    hi: End
    lo_open: bool = False
    hi_open: bool = False

    def __str__(self) -> str:
        lo, hi = (f"{float(e):.6g}" for e in (self.lo, self.hi))
        return f"{'(' if self.lo_open else '['}{lo}, {hi}{')' if self.hi_open else ']'}"

    # -- questions

    @property
    def positive(self) -> bool:
        """True where all values are above 0."""
        return self.lo > 0 or (self.lo == 0 and self.lo_open)

    @property
    def negative(self) -> bool:
        """True where all values are below 0."""
        return self.hi < 0 or (self.hi == 0 and self.hi_open)

    @property
    def nonzero(self) -> bool:
        """True where no value is 0."""
        return self.positive or self.negative

    @property
    def nonnegative(self) -> bool:
        """True where all values are 0 or above."""
        return self.lo >= 0

    @property
    def nonpositive(self) -> bool:
        """True where all values are 0 or below."""
        return self.hi <= 0

    @property
    def bounded(self) -> bool:
        """True where both ends are finite."""
        return self.lo > -INFINITY and self.hi < INFINITY

    def at_least(self, other: Interval) -> bool:
        """True where every value of this interval is >= every value of the other."""
        return bool(self.lo >= other.hi)

    # -- arithmetic; each gives an interval that holds every result

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo, self.hi_open, self.lo_open)

    def plus(self, other: Interval) -> Interval:
        """The interval of the sums of two values, one from each."""
        return _trim(
            Interval(
                self.lo + other.lo, self.hi + other.hi, self.lo_open or other.lo_open, self.hi_open or other.hi_open
            )
        )

    def times(self, other: Interval) -> Interval:
        """The interval of the products of two values, one from each."""
        # The frequent cases first; an end that is a float is infinite, which is quicker to ask than to compare.
        if type(self.lo) is float and type(self.hi) is float:
            self, other = other, self
        if type(other.lo) is float and type(other.hi) is float:
            return NOTHING if not self.lo and not self.hi else EVERYTHING
        if type(other.lo) is int and other.lo == 1 == other.hi:
            return self
        ends = [
            (_product(a, b), _product_open(a, a_open, b, b_open))
            for a, a_open in ((self.lo, self.lo_open), (self.hi, self.hi_open))
            for b, b_open in ((other.lo, other.lo_open), (other.hi, other.hi_open))
        ]
        lo, hi = min(e for e, _ in ends), max(e for e, _ in ends)
        return _trim(Interval(lo, hi, all(o for e, o in ends if e == lo), all(o for e, o in ends if e == hi)))

    def inverse(self) -> Interval:
        """The interval of the reciprocals; everything where 0 is among the values."""
        if not self.nonzero:
            return EVERYTHING
        lo = _reciprocal(self.hi, negative=self.negative)
        hi = _reciprocal(self.lo, negative=self.negative)
        return _trim(Interval(lo, hi, self.hi_open, self.lo_open))

    def power(self, n: int) -> Interval:
        """The interval of the n-th powers, n any whole number."""
        if n < 0:
            return self.power(-n).inverse()
        if n == 0:
            return point(1)
        out = self if n % 2 else self.magnitude()
        base = out
        for _ in range(min(n, 64) - 1):
            out = out.times(base)
        return out

    def magnitude(self) -> Interval:
        """The interval of the absolute values."""
        if self.lo >= 0:
            return self
        if self.hi <= 0:
            return -self
        if -self.lo == self.hi:
            return Interval(0, self.hi, False, self.hi_open and self.lo_open)
        larger = -self.lo > self.hi
        return Interval(0, -self.lo if larger else self.hi, False, self.lo_open if larger else self.hi_open)

    def larger(self, other: Interval) -> Interval:
        """The interval of the larger of two values, one from each."""
        lo, lo_open = max((self.lo, self.lo_open), (other.lo, other.lo_open))
        if self.hi == other.hi:
            return Interval(lo, self.hi, lo_open, self.hi_open and other.hi_open)
        hi, hi_open = (self.hi, self.hi_open) if self.hi > other.hi else (other.hi, other.hi_open)
        return Interval(lo, hi, lo_open, hi_open)

    def meet(self, other: Interval) -> Interval:
        """The interval of what is in both, for two intervals that hold one value."""
        lo, lo_open = max((self.lo, self.lo_open), (other.lo, other.lo_open))
        hi, hi_closed = min((self.hi, not self.hi_open), (other.hi, not other.hi_open))
        return Interval(lo, hi, lo_open, not hi_closed)

    def join(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        lo, lo_open = min((self.lo, self.lo_open), (other.lo, other.lo_open))
        hi, hi_closed = max((self.hi, not self.hi_open), (other.hi, not other.hi_open))
        return Interval(lo, hi, lo_open, not hi_closed)

    def rising(self, function: Callable[[float], float], limits: Interval) -> Interval:
        """The interval of the values of a function that rises strictly; `limits` holds them all.

        The function is taken to be right to two units in the last place.
        """
        lo, lo_open = _value(function, self.lo, limits.lo, -INFINITY)
        hi, hi_open = _value(function, self.hi, limits.hi, INFINITY)
        return Interval(lo, hi, lo_open or self.lo_open, hi_open or self.hi_open).meet(limits)


def point(value: End) -> Interval:
    """The interval of one number."""
    if type(value) is Fraction and value.denominator == 1:
        value = value.numerator  # whole numbers are much the quicker
    return Interval(value, value)


NOTHING = Interval(0, 0)
EVERYTHING = Interval(-INFINITY, INFINITY, True, True)
NONNEGATIVE = Interval(0, INFINITY, False, True)
POSITIVE = Interval(0, INFINITY, True, True)


def _product(a: End, b: End) -> End:
    return 0 if a == 0 or b == 0 else a * b


def _product_open(a: End, a_open: bool, b: End, b_open: bool) -> bool:
    # A closed end at 0 is reached whatever the other is; an open one only through the other's zero.
    if a == 0 and not a_open:
        return False
    if b == 0 and not b_open:
        return False
    return a_open or b_open


def _reciprocal(end: End, *, negative: bool) -> End:
    if abs(end) == INFINITY:
        return 0
    if end == 0:
        return -INFINITY if negative else INFINITY
    return 1 / Fraction(end)


def _value(function: Callable[[float], float], end: End, limit: End, way: float) -> tuple[End, bool]:
    """function(end), rounded toward `way`, and whether it is certainly not reached."""
    if end == 0 and (at_zero := function(0.0)) in (0.0, 0.5, 1.0):  # nothing was rounded
        return point(Fraction(at_zero)).lo, False
    try:
        near = float(end)
        value = function(near if near == end else math.nextafter(near, way))
    except OverflowError:
        return limit, True
    if value == -way and -INFINITY < end < INFINITY:  # beyond float64 on the far side
        return Fraction(math.copysign(sys.float_info.max, value)), False
    if not math.isfinite(value) or abs(end) == INFINITY:
        return limit, True
    for _ in range(3):
        value = math.nextafter(value, way)
    return Fraction(value), False


def _trim(interval: Interval) -> Interval:
    """Long fractions rounded outward, infinite ends open."""
    lo, hi, lo_open, hi_open = interval
    if isinstance(lo, Fraction) and lo.numerator.bit_length() + lo.denominator.bit_length() > MAX_BITS:
        lo = _rounded(lo, -INFINITY)
    if isinstance(hi, Fraction) and hi.numerator.bit_length() + hi.denominator.bit_length() > MAX_BITS:
        hi = _rounded(hi, INFINITY)
    return Interval(lo, hi, lo_open or lo == -INFINITY, hi_open or hi == INFINITY)


def _rounded(end: Fraction, way: float) -> End:
    try:
        near = math.nextafter(float(end), way)
    except OverflowError:
        largest = Fraction(1.7976931348623157e308)
        return (largest if way < 0 else INFINITY) if end > 0 else (-INFINITY if way < 0 else -largest)
    return Fraction(near) if abs(near) < INFINITY else near
