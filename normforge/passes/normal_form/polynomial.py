"""Sparse polynomials with integer coefficients, over variables that are named by digests.

A monomial is a sorted tuple of (variable, power); a polynomial maps monomials to coefficients that are not zero.
Factoring is sympy's; everything else here is what would be too slow there: a layer is a few terms, and there are
many layers.
"""

from __future__ import annotations

from collections import Counter
from math import gcd
from typing import Any

from normforge.passes.memo import Memo

Key = bytes
Monomial = tuple[tuple[Key, int], ...]
Poly = dict[Monomial, int]

ONE: Monomial = ()
# Above these a polynomial counts as irreducible: sympy's time grows with them, and no clock may decide.
MAX_TERMS, MAX_DEGREE, MAX_VARIABLES, MAX_COEFFICIENT = 32, 16, 8, 10**9

_memo = Memo("factors")


def times(a: Monomial, b: Monomial) -> Monomial:
    """The product of two monomials."""
    if not a or not b:
        return a or b
    powers = dict(a)
    for key, p in b:
        powers[key] = powers.get(key, 0) + p
    return tuple(sorted(powers.items()))


def add(a: Poly, b: Poly, factor: int = 1) -> Poly:
    """The polynomial a + factor · b."""
    out = dict(a)
    for m, c in b.items():
        total = out.get(m, 0) + c * factor
        if total:
            out[m] = total
        else:
            del out[m]
    return out


def multiply(a: Poly, b: Poly) -> Poly:
    """The product of two polynomials."""
    if len(b) == 1:
        a, b = b, a
    if len(a) == 1:
        ((m, c),) = a.items()
        return {times(m, n): c * d for n, d in b.items()}
    out: Counter[Monomial] = Counter()
    for m, c in a.items():
        for n, d in b.items():
            out[times(m, n)] += c * d
    return {m: c for m, c in out.items() if c}


def variables(poly: Poly) -> set[Key]:
    """The variables that occur."""
    return {key for m in poly for key, _ in m}


def leading(poly: Poly) -> Monomial:
    """The monomial whose coefficient decides the sign: the constant, so that variance + ε is positive, or the last."""
    return ONE if ONE in poly else max(poly)


def split(poly: Poly) -> tuple[int, dict[Key, int], Poly]:
    """The parts of a polynomial that is not zero: content · monomial · primitive part, the last with a positive leading
    coefficient."""
    content = gcd(*poly.values())
    if poly[leading(poly)] < 0:
        content = -content
    terms = iter(poly)
    common = dict(next(terms))
    for m in terms:
        if not common:
            break
        powers = dict(m)
        common = {k: min(p, powers[k]) for k, p in common.items() if k in powers}
    if not common:
        return content, {}, {m: c // content for m, c in poly.items()}
    rest: Poly = {}
    for m, c in poly.items():
        kept = ((k, p - common.get(k, 0)) for k, p in m)
        rest[tuple((k, p) for k, p in kept if p)] = c // content
    # Dividing by a monomial may change which one leads.
    if rest[leading(rest)] < 0:
        content, rest = -content, {m: -c for m, c in rest.items()}
    return content, common, rest


def factors(poly: Poly) -> tuple[int, list[tuple[Poly, int]]]:
    """A sign, and the irreducible factors with their powers, of a primitive polynomial of two terms or more.

    Each factor has a positive leading coefficient. Too large a polynomial is its own only factor.
    """
    degree: dict[Key, int] = {}
    holders: Counter[Key] = Counter()
    for m in poly:
        for key, p in m:
            degree[key] = max(degree.get(key, 0), p)
            holders[key] += 1
    # a·m + (terms without a), m a monomial: a factor without a would divide m and the rest, and `split` took that out.
    if any(p == 1 and holders[key] == 1 for key, p in degree.items()):
        return 1, [(poly, 1)]
    large = max(map(abs, poly.values())) > MAX_COEFFICIENT or sum(degree.values()) > MAX_DEGREE
    if large or len(poly) > MAX_TERMS or len(degree) > MAX_VARIABLES:
        return 1, [(poly, 1)]
    variables = sorted(degree)
    place = {key: i for i, key in enumerate(variables)}
    terms = []
    for m, c in poly.items():
        exponents = [0] * len(variables)
        for key, p in m:
            exponents[place[key]] = p
        terms.append([*exponents, c])
    sign, found = _memo.get([len(variables), *sorted(terms)], _factor)
    out = []
    for rows, power in found:
        part = {tuple((k, e) for k, e in zip(variables, row, strict=False) if e): row[-1] for row in rows}
        if part[leading(part)] < 0:
            part, sign = {m: -c for m, c in part.items()}, sign * (-1) ** power
        out.append((part, power))
    return sign, out


def _factor(shape: list[Any]) -> tuple[int, list[tuple[list[list[int]], int]]]:
    """sympy's factorisation of a primitive polynomial, given as [variables, [exponents..., coefficient], ...]."""
    from sympy import ZZ
    from sympy.polys.rings import PolyRing

    n, *terms = shape
    ring = PolyRing([f"a{i}" for i in range(n)], ZZ)
    unit, parts = ring.from_dict({tuple(t[:-1]): ZZ(t[-1]) for t in terms}).factor_list()
    return int(unit), [(sorted([*map(int, e), int(c)] for e, c in part.terms()), int(power)) for part, power in parts]
