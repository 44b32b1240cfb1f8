"""Properties of a layer that one walk over its nodes proves: degree of homogeneity, monotony, boundedness."""

from __future__ import annotations

import enum
from collections.abc import Callable
from fractions import Fraction

from normforge.ir.graph import Graph
from normforge.ir.node import Node, make
from normforge.ir.ops import Op
from normforge.passes.differentiate import depending
from normforge.passes.ranges import Ranges


class Monotone(enum.StrEnum):
    """The way an output moves when its own element of x grows, all parameters fixed."""

    CONSTANT = "constant"
    RISING = "rising"
    FALLING = "falling"
    EITHER = "rising or falling, by the signs of the parameters"
    NO = "no"


_FLIP = {Monotone.RISING: Monotone.FALLING, Monotone.FALLING: Monotone.RISING}


def without_shift(graph: Graph, varies: set[Node]) -> Node:
    """The output without the terms that x does not change."""
    y = graph.output
    while y.op in (Op.ADD, Op.SUB):
        inside = [a for a in y.args if a in varies]
        if len(inside) != 1:
            break
        (y,) = inside
    return y


def homogeneity(graph: Graph) -> Fraction | None:
    """The d for which f(t·x) = t^d · f(x) for every t > 0, in the limit ε -> 0; None where there is none.

    f is the output without what is added to it and does not depend on x, such as beta.
    """
    varies = depending(graph, set(graph.inputs))
    target = without_shift(graph, varies)
    degree: dict[Node, Fraction | None] = {}
    for node in graph.nodes:
        a = [degree[n] for n in node.args]
        zero = [n.op is Op.CONST and n.value == 0 for n in node.args]
        out: Fraction | None = None
        if node not in varies:
            out = Fraction(0)
        elif node.op is Op.INPUT:
            out = Fraction(1)
        elif node.op in (Op.ADD, Op.SUB, Op.MAX, Op.MIN):
            out = a[1] if zero[0] else a[0] if zero[1] or a[0] == a[1] else None
        elif None not in a:
            known = [d for d in a if d is not None]
            if node.op is Op.MUL:
                out = known[0] + known[1]
            elif node.op is Op.DIV:
                out = known[0] - known[1]
            elif node.op.traits.degree is not None:
                out = Fraction(node.op.traits.degree) * known[0]
            elif not any(known):
                out = Fraction(0)
        degree[node] = out
    return degree[target] if target in varies else None


def monotony(graph: Graph) -> Monotone:
    """The monotony that the operations prove; `NO` where they prove nothing. A layer with moments of x has none."""
    varies = depending(graph, set(graph.inputs))
    ranges = Ranges(graph.eps)
    known: dict[Node, Monotone] = {}
    for node in graph.nodes:
        if node not in varies:
            known[node] = Monotone.CONSTANT
        elif node.op is Op.INPUT:
            known[node] = Monotone.RISING
        else:
            known[node] = _monotone(node, [known[a] for a in node.args], ranges)
    return known[graph.output]


def _monotone(node: Node, a: list[Monotone], ranges: Ranges) -> Monotone:
    op = node.op
    if op.traits.rising:
        return a[0]
    if op is Op.NEG:
        return _FLIP.get(a[0], a[0])
    if op in (Op.ADD, Op.MAX, Op.MIN):
        return _together(*a)
    if op is Op.SUB:
        return _together(a[0], _FLIP.get(a[1], a[1]))
    inside = ranges.interval(node.args[0])
    if op in (Op.ABS, Op.SQUARE):
        return a[0] if inside.nonnegative else _FLIP.get(a[0], a[0]) if inside.nonpositive else Monotone.NO
    if op is Op.LOG:
        return a[0] if inside.nonzero else Monotone.NO
    if op is Op.MUL:
        if Monotone.CONSTANT in a:
            at = a.index(Monotone.CONSTANT)
            return _scaled(a[1 - at], node.args[at], ranges)
        both = all(ranges.interval(n).nonnegative for n in node.args)
        return _together(*a) if both else Monotone.NO
    if op is Op.DIV:
        if a[1] is Monotone.CONSTANT:
            return _scaled(a[0], node.args[1], ranges)
        if a[0] is Monotone.CONSTANT and ranges.interval(node.args[1]).nonzero:
            return _scaled(_FLIP.get(a[1], a[1]), node.args[0], ranges)
    return Monotone.NO  # nothing is proved of other operations: true of any


def _together(a: Monotone, b: Monotone) -> Monotone:
    if Monotone.CONSTANT in (a, b):
        return b if a is Monotone.CONSTANT else a
    return a if a is b and a is not Monotone.EITHER else Monotone.NO


def _scaled(a: Monotone, by: Node, ranges: Ranges) -> Monotone:
    interval = ranges.interval(by)
    if interval.nonnegative or a is Monotone.NO:
        return a
    return _FLIP.get(a, a) if interval.nonpositive else Monotone.EITHER


def is_bounded(graph: Graph) -> bool:
    """True where the output is proved to stay below some bound, for fixed parameters and shape, whatever x is."""
    varies = depending(graph, set(graph.inputs))
    ranges = Ranges(graph.eps)
    bounded: set[Node] = set()
    for node in graph.nodes:
        if node not in varies or ranges.interval(node).bounded or _stays_bounded(node, bounded, varies, ranges):
            bounded.add(node)
    return graph.output in bounded


def _stays_bounded(node: Node, bounded: set[Node], varies: set[Node], ranges: Ranges) -> bool:
    if node.op is Op.DIV:
        top, bottom = node.args
        away = bottom not in varies or ranges.interval(bottom).lo > 0 or ranges.interval(bottom).hi < 0
        return (top in bounded and away) or _normalised(top, bottom, bounded)
    if node.op is Op.MUL and Op.DIV in (n.op for n in node.args):  # (a / d) · b as (a · b) / d
        for n, other in (node.args, node.args[::-1]):
            if n.op is Op.DIV and _normalised(make(Op.MUL, (n.args[0], other)), n.args[1], bounded):
                return True
    return bool(node.args) and all(a in bounded for a in node.args)


def _normalised(top: Node, bottom: Node, bounded: set[Node]) -> bool:
    """a / rms[I](a) is at most √n, and so is (a - mean[I](a)) / std[I](a); so is what is smaller than those."""
    if bottom.op is Op.RMS:
        return _below(top, lambda n: n is bottom.args[0], bounded)
    if bottom.op is Op.STD:
        a = bottom.args[0]
        return _below(top, lambda n: _is_centred(n, a, bottom.reduced), bounded)
    return False


def _is_centred(node: Node, a: Node, reduced: int) -> bool:
    """True for a - mean[I](a), and for a where that is centred itself."""

    def subtracts_mean(n: Node) -> bool:
        if n.op is not Op.SUB:
            return False
        value, mean = n.args
        return mean.op is Op.MEAN and mean.args[0] is value and mean.reduced == reduced

    return subtracts_mean(node) and (node is a or node.args[0] is a)


def _below(node: Node, test: Callable[[Node], bool], bounded: set[Node]) -> bool:
    """|node| is at most a constant times a value that passes the test."""
    while not test(node):
        if node.op.traits.contracts:
            node = node.args[0]
        elif node.op is Op.MUL and any(a in bounded for a in node.args):
            node = node.args[1] if node.args[0] in bounded else node.args[0]
        elif node.op in (Op.MAX, Op.MIN) and any(a.op is Op.CONST and a.value == 0 for a in node.args):
            node = next(a for a in node.args if not (a.op is Op.CONST and a.value == 0))
        else:
            return False
    return True
