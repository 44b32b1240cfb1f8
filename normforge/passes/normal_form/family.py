"""family: what function a layer is, up to what its trainable parameters absorb.

A parameter p may be written anew as s·p or p + c: training undoes both. So each is brought to a scale and to a sign
that the value of the output decides (see `identity`), and what stands beside it in a sum or in a product, and is made
of numbers and of other parameters alone, is dropped: 2·gamma·x is the family of gamma·x, gamma·(f + 3) + beta that of
gamma·f + beta, and gamma·v1·f that of gamma·f.

What comes out of a root counts as if ε came out with it: sqrt(v1·x) is of the family of sqrt(x), rms(2·x) of that of
2·rms(x), and rms(rms(x)) of that of rms(x). The functions differ where ε does not vanish beside their operands, and
nowhere else.

A factor is dropped only where it is neither zero nor infinite when training starts: v0·gamma·f, which starts at zero,
is another family than gamma·f. What is not seen: a parameter inside a function that is no power, as in sigmoid(v1²·x);
f(-x), which convolutions before the layer would absorb, and it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from hashlib import blake2b
from itertools import islice, product
from math import erf, exp, gcd, prod, tanh

from normforge.ir.graph import Graph
from normforge.ir.ops import Op
from normforge.passes.normal_form.identity import Identity
from normforge.passes.normal_form.moments import terms
from normforge.passes.normal_form.polynomial import Key, Monomial, Poly
from normforge.passes.normal_form.values import OPAQUE, TooLarge, Value

MAX_ROUNDS = 16
MAX_TURNS = 2  # of one parameter's scale: in some forms, each asks for another
MAX_SIGNS = 4  # parameters whose signs are tried
NOTHING = 1e-4  # a factor this small when training starts counts as zero


# Parameters start at one value for all channels, so a mean of them is that value.
_AT_START: dict[Op, Callable[[float], float]] = {
    Op.ABS: abs,
    Op.ROOT: lambda a: abs(a) ** 0.5,
    Op.MEAN: float,
    Op.TANH: tanh,
    Op.ERF: erf,
    Op.EXP: lambda a: exp(min(a, 100.0)),
}


def family_key(graph: Graph) -> Key:
    """The digest of a layer's family; that of its function where a budget of `identity` is passed on the way."""
    for scales in (True, False):
        try:
            if key := _family(graph, Identity(graph.eps, scales=scales)):
                return key
        except (TooLarge, OverflowError):  # the latter where an interval's ends are beyond float64
            pass
    return Identity(graph.eps).value(graph).key


def _family(graph: Graph, space: Identity) -> Key | None:
    """The digest; None of what x cancels in because ε was counted for nothing."""
    scale: dict[str, Fraction] = {}
    if space.scales and not space.depends(space.value(graph)):
        return None
    names = {space.atom(Op.PARAM, (), name=repr(p.attr), axes=p.axes).powers[0][0]: p.name for p in graph.params}
    used = {key for poly, _ in _polynomials(space, space.value(graph)) for m in poly for key, _ in m}
    names = {key: name for key, name in names.items() if key in used}
    start_of = {p.name: p.attr[2] for p in graph.params}
    starts = {key: start_of[name] for key, name in names.items()}
    turned: list[str] = []
    for _ in range(MAX_ROUNDS):
        shift, value, left = _absorbed(space, graph, scale, names, starts)
        often = Counter(turned)
        scales = ((names[atom], _scale(space, value, atom)) for atom in left if often[names[atom]] < MAX_TURNS)
        name, factor = next(((n, s) for n, s in scales if s != 1), ("", Fraction(1)))
        if factor == 1:
            break
        # One at a time: two that are measured by each other would turn around each other.
        scale[name] = scale.get(name, Fraction(1)) * factor
        turned.append(name)
    # A sign inside an odd function has gone outside: every choice of signs is tried.
    inside = sorted(names[key] for key in left)[:MAX_SIGNS]
    for signs in islice(product((1, -1), repeat=len(inside)), 1, None):
        signed = scale | {n: s * scale.get(n, Fraction(1)) for n, s in zip(inside, signs, strict=True)}
        other_shift, other, _ = _absorbed(space, graph, signed, names, starts)
        if (other_shift, other.key) < (shift, value.key):
            shift, value = other_shift, other
    return blake2b(shift + value.key, digest_size=16).digest()


def _absorbed(
    space: Identity,
    graph: Graph,
    scale: Mapping[str, Fraction],
    names: Mapping[Key, str],
    starts: Mapping[Key, float],
) -> tuple[Key, Value, list[Key]]:
    """The parameter that is added to all else, that without what parameters absorb, and those whose scale is open."""
    shift, value = _without_shift(space, graph, scale, names, starts)
    value, holder = _without_scale(space, value, names, starts)
    there = {k for key, _ in value.powers for k in _atoms(space, key)}
    return shift, value, [key for key in sorted(names) if key in there and key not in (shift, holder)]


def _value(space: Identity, graph: Graph, scale: Mapping[str, Fraction], **more: int) -> Value:
    """The layer with its parameters scaled, some of them `more`."""

    def change(factor: Fraction) -> Callable[[Identity, Value], Value]:
        return lambda space, p: space.scale(p, factor)

    names = {*scale, *more}
    space.replace = {name: change(scale.get(name, Fraction(1)) * more.get(name, 1)) for name in names}
    return space.value(graph)


def _without_shift(
    space: Identity,
    graph: Graph,
    scale: Mapping[str, Fraction],
    names: Mapping[Key, str],
    starts: Mapping[Key, float],
) -> tuple[Key, Value]:
    """The parameter that is added to all else, and what it is added to, without what it absorbs."""
    plain = _value(space, graph, scale)
    for shift, name in sorted(names.items(), key=lambda item: (item[1] != "beta", item)):
        axes = space.factor[shift].axes
        # f + n·p, if it is that, moves by n·p when p is doubled.
        double, triple = (_value(space, graph, scale, **{name: n}) for n in (2, 3))
        poles = {key for key, p in plain.powers if p < 0}  # where it is not finite anyway
        step, again = (_filled(space, space.sub(*pair), starts, poles) for pair in ((double, plain), (triple, double)))
        if step.powers != ((shift, 1),) or step.holes or again.key != step.key:
            continue

        def absorbed(v: Value, axes: int = axes) -> bool:
            return not space.depends(v) and not space.axes(v) & ~axes

        rest = _filled(space, space.sub(plain, step), starts, poles)
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


def _without_scale(
    space: Identity, value: Value, names: Mapping[Key, str], starts: Mapping[Key, float]
) -> tuple[Value, Key]:
    """A product without its number and the factors that a parameter absorbs which is one of them and stands nowhere
    else in it, and that parameter; where none does, as it is."""
    powers = dict(value.powers)
    inside = [(k, f) for f in powers for k in _atoms(space, f) if k in names]
    holders = [k for k in names if abs(powers.get(k, 0)) == 1 and sum(j == k for j, _ in inside) == 1]
    if not holders or not value.number:
        return value, b""
    holder = min(holders, key=lambda k: (names[k] != "gamma", -space.factor[k].axes.bit_count(), names[k]))
    axes = space.factor[holder].axes

    def absorbed(key: Key) -> bool:
        f = space.factor[key]
        return key != holder and not f.depends and not f.axes & ~axes and _away_from_zero(space, key, starts)

    kept = {k: p for k, p in powers.items() if not absorbed(k)}
    return _filled(space, space.build(Fraction(1), kept, value.holes), starts), holder


def _filled(space: Identity, v: Value, starts: Mapping[Key, float], poles: Collection[Key] = ()) -> Value:
    """The value without the holes at `poles`, and where a parameter is zero that is not when training starts."""
    left = {h for h in v.holes if space.factor[h].depends or not _away_from_zero(space, h, starts)}
    return Value(v.number, v.powers, frozenset(left.difference(poles)))


def _atoms(space: Identity, key: Key) -> set[Key]:
    """All atoms that a factor is made of, itself included."""
    found: set[Key] = set()
    waiting = [key]
    while waiting:
        k = waiting.pop()
        if k not in found:
            found.add(k)
            f = space.factor[k]
            waiting += [j for m in f.poly for j, _ in m] if f.op is None else [j for a in f.args for j, _ in a.powers]
    return found


def _away_from_zero(space: Identity, key: Key, starts: Mapping[Key, float]) -> bool:
    """Whether a factor that x is not in is not zero, whatever the parameters are or when training starts."""
    f = space.factor[key]
    if f.interval.nonzero:
        return True
    start = _at_start(space, key, starts)
    return start is not None and abs(start) > NOTHING


def _at_start(space: Identity, key: Key, starts: Mapping[Key, float]) -> float | None:
    """The value of a factor of parameters when training starts; None where it is more than powers and sums of them."""
    f = space.factor[key]
    if key in starts:
        return starts[key]
    if f.op in _AT_START and f.name != OPAQUE:
        (inside,) = f.args
        parts = [(_at_start(space, k, starts), p) for k, p in inside.powers]
        if any(v is None or (v == 0 and p < 0) for v, p in parts):
            return None
        return _AT_START[f.op](float(inside.number) * prod(v**p for v, p in parts if v is not None))
    if f.op is not None:
        return None
    total = 0.0
    for m, c in f.poly.items():
        parts = [(_at_start(space, k, starts), p) for k, p in m]
        if any(v is None for v, _ in parts):
            return None
        total += c * prod(v**p for v, p in parts if v is not None)
    return total


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
