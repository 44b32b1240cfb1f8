"""family: what function a layer is, up to what its trainable parameters absorb.

A parameter p may be written anew as s·p or p + c: training undoes both. So each is brought to a scale and to a sign
that the value of the output decides (see `identity`), and what stands beside it in a sum, and is made of numbers and
of other parameters alone, is dropped: 2·gamma·x is the family of gamma·x, and gamma·(f + 3) + beta that of
gamma·f + beta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from hashlib import blake2b
from itertools import product
from math import gcd

from normforge.ir.graph import Graph
from normforge.ir.ops import Op
from normforge.passes.normal_form.identity import Identity
from normforge.passes.normal_form.moments import terms
from normforge.passes.normal_form.polynomial import Key, Monomial, Poly
from normforge.passes.normal_form.values import TooLarge, Value

MAX_ROUNDS = 16
MAX_SIGNS = 4  # parameters whose signs are tried


def family_key(graph: Graph) -> Key:
    """The digest of a layer's family; that of its function where a budget of `identity` is passed on the way."""
    try:
        return _family(graph)
    except TooLarge:
        return Identity(graph.eps).value(graph).key


def _family(graph: Graph) -> Key:
    scale: dict[str, Fraction] = {}
    space = Identity(graph.eps)
    names = {space.atom(Op.PARAM, (), name=repr(p.attr), axes=p.axes).powers[0][0]: p.name for p in graph.params}
    used = {key for poly, _ in _polynomials(space, space.value(graph)) for m in poly for key, _ in m}
    names = {key: name for key, name in names.items() if key in used}
    for _ in range(MAX_ROUNDS):
        shift, value = _without_shift(space, graph, scale, names)
        scales = ((name, _scale(space, value, atom)) for atom, name in sorted(names.items()) if atom != shift)
        name, factor = next(((n, s) for n, s in scales if s != 1), ("", Fraction(1)))
        if factor == 1:
            break
        # One at a time: two that are measured by each other would turn around each other.
        scale[name] = scale.get(name, Fraction(1)) * factor
    # A sign inside an odd function has gone outside: every choice of signs is tried.
    inside = sorted(name for key, name in names.items() if key != shift)[:MAX_SIGNS]
    for signs in product((1, -1), repeat=len(inside)):
        turned = scale | {n: s * scale.get(n, Fraction(1)) for n, s in zip(inside, signs, strict=True)}
        other_shift, other = _without_shift(space, graph, turned, names)
        if (other_shift, other.key) < (shift, value.key):
            shift, value = other_shift, other
    return blake2b(shift + value.key, digest_size=16).digest()


def _value(space: Identity, graph: Graph, scale: Mapping[str, Fraction], **more: int) -> Value:
    """The layer with its parameters scaled, some of them `more`."""

    def change(factor: Fraction) -> Callable[[Identity, Value], Value]:
        return lambda space, p: space.scale(p, factor)

    names = {*scale, *more}
    space.replace = {name: change(scale.get(name, Fraction(1)) * more.get(name, 1)) for name in names}
    return space.value(graph)


def _without_shift(
    space: Identity, graph: Graph, scale: Mapping[str, Fraction], names: Mapping[Key, str]
) -> tuple[Key, Value]:
    """The parameter that is added to all else, and what it is added to, without what it absorbs."""
    plain = _value(space, graph, scale)
    for shift, name in sorted(names.items(), key=lambda item: (item[1] != "beta", item)):
        axes = space.factor[shift].axes
        # f + n·p, if it is that, moves by n·p when p is doubled.
        double, triple = (_value(space, graph, scale, **{name: n}) for n in (2, 3))
        step = space.sub(double, plain)
        if step.powers != ((shift, 1),) or step.holes or space.sub(triple, double).key != step.key:
            continue

        def absorbed(v: Value, axes: int = axes) -> bool:
            return not space.depends(v) and not space.axes(v) & ~axes

        rest = space.sub(plain, step)
        for other in sorted(set(names.values()) - {name}):
            twice = space.sub(_value(space, graph, scale, **{other: 2}), step)
            constant = space.sub(space.add(rest, rest), twice)  # c of p·f + c
            if constant.number and absorbed(constant):
                rest = space.sub(rest, constant)
        parts = terms(space, rest)  # as in gamma * (f + 3) + beta
        kept = [t for t in parts if not absorbed(t)]
        if len(kept) < len(parts):
            rest = space.total(kept)
        return shift, rest
    return b"", plain


def _scale(space: Identity, value: Value, atom: Key) -> Fraction:
    """The number by which a parameter is to be multiplied."""
    for poly, number in _polynomials(space, value):
        if len(poly) == 1:
            power = dict(next(iter(poly))).get(atom, 0)
            if abs(power) == 1:
                return number**-power
            continue
        linear = {m: c for m, c in poly.items() if (atom, 1) in m}
        if not linear:
            continue
        others = [m for m in poly if all(k != atom for k, _ in m)]
        content = gcd(*linear.values())
        if not others:
            continue
        shared = gcd(*(poly[m] for m in others))
        first, reference = min(linear), min(others)
        sign = 1 if (poly[first] > 0) == (poly[reference] > 0) else -1
        return Fraction(shared * sign, content)
    return Fraction(1)


def _polynomials(space: Identity, value: Value) -> list[tuple[Poly, Fraction]]:
    """The polynomials that a value is made of, the outermost first, each with the number in front of it."""
    found: list[tuple[Poly, Fraction]] = []
    queue: list[Value] = [value]
    seen: set[Key] = set()
    while queue:
        v = queue.pop(0)
        if v.key in seen:
            continue
        seen.add(v.key)
        monomial: Monomial = tuple((k, p) for k, p in v.powers if space.factor[k].op is not None)
        if monomial:
            found.append(({monomial: 1}, v.number))
        for key, _ in v.powers:
            f = space.factor[key]
            if f.op is None:
                found.append((f.poly, Fraction(1)))
            for m in f.poly:
                for k, _ in m:
                    queue += space.factor[k].args
    return found
