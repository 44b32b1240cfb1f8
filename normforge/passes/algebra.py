"""Elementwise regions of a graph through sympy, and back.

Everything that sympy could rewrite with rules of its own that ε breaks (log of exp, sqrt of square, abs) is an
opaque symbol to it, with the sign that `ranges` proves; so what it contributes is the algebra of sums, products and
integer powers over rationals. What may be zero is not cancelled: its reciprocal is a symbol of its own.

sympy recurses over expressions and computes with exact numbers of any length, so every bound is checked before
it is given work: an operation that would pass one stays a node of its own, opaque to what stands above it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy

from normforge.ir.graph import Graph
from normforge.ir.node import Node, broadcast, const, make
from normforge.ir.ops import LEAF, Op, Table
from normforge.passes.memo import Memo
from normforge.passes.ranges import Ranges

# What sympy sees of operations over sympy forms; all others are symbols to it.
SYMPY: Table[Callable[..., Any]] = Table(
    "sympy form (passes/algebra.py)",
    (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.NEG, Op.SQUARE),
    {
        Op.ADD: operator.add,
        Op.SUB: operator.sub,
        Op.MUL: operator.mul,
        Op.DIV: operator.truediv,
        Op.NEG: operator.neg,
        Op.SQUARE: lambda a: a**2,
    },
)
MAX_TREE = 2_000  # operations of one region, counted as a tree: sharing is lost on sympy
MAX_LEVELS = 24  # alternations of sums and products: sympy recurses over them
MAX_DEGREE = 8  # of a polynomial that is factored
MAX_BITS = 1_000  # of the numerator and of the denominator of a number; float64 ends at 1024


MAX_FACTORED = 24  # terms of a sum that is factored

_memo = Memo("factored")


@dataclass(frozen=True)
class Algebra:
    """Rebuild every arithmetic region through sympy, innermost first; the outputs keep their types.

    Attributes:
        factor: factor sums, where that takes fewer operations; answers are kept on disk.
    """

    factor: bool = False

    def run(self, graph: Graph) -> Graph:
        """The graph with every arithmetic region rebuilt; of any graph."""
        rebuilt = _Regions(Ranges(graph.eps), self.factor)
        for node in graph.nodes:
            rebuilt.add(node)
        outputs = ((name, node, rebuilt.settle(node)) for name, node in graph.outputs)
        if graph.is_surface:
            return graph.with_outputs(*((name, new) for name, _, new in outputs))
        return graph.with_outputs(*((name, broadcast(new, old.type)) for name, old, new in outputs))


class _Regions:
    def __init__(self, ranges: Ranges, factor: bool) -> None:
        self.ranges = ranges
        self.factor = factor
        self.form: dict[Node, Any] = {}  # of each node of the graph, a sympy expression
        self.tree: dict[Node, int] = {}
        self.levels: dict[Node, int] = {}
        self.out: dict[Node, Node] = {}
        self.leaves: dict[str, Node] = {}
        self.divisors: dict[str, Node] = {}  # symbols that stand for 1 / node

    def add(self, node: Node) -> None:
        if node.op is Op.CONST and math.isfinite(node.value):
            self.put(node, sympy.Rational(repr(node.value)), 1, 0)
        elif node.op in LEAF:
            self.put(node, self.leaf(node), 1, 0)
        elif node.op in SYMPY.over:
            tree = 1 + sum(self.tree[a] for a in node.args)
            args = [self.form[a] for a in node.args]
            hole = node.op is Op.DIV and not self.ranges.interval(node.args[1]).nonzero
            if hole:
                args[1] = 1 / self.divisor(node.args[1])
            if tree <= MAX_TREE and not (hole and args[0] == 0):  # 0 / a has a hole
                form = SYMPY[node.op](*args)
                # A sum of sums and a product of products are one level.
                levels = max(self.levels[a] + (self.form[a].is_Add != form.is_Add) for a in node.args)
                if levels <= MAX_LEVELS and _fits(form):
                    self.put(node, form, tree, levels)
                    return
            self.opaque(node)
        else:  # a function or a moment of rebuilt operands
            self.opaque(node)

    def put(self, node: Node, form: Any, tree: int, levels: int) -> None:
        self.form[node], self.tree[node], self.levels[node] = form, tree, levels

    def opaque(self, node: Node) -> None:
        new = make(node.op, tuple(self.settle(a) for a in node.args), node.attr)
        self.out[node] = new
        self.put(node, self.leaf(new), 1, 0)

    def leaf(self, node: Node) -> Any:
        name = f"n{node.digest.hex()}"
        self.leaves[name] = node
        interval = self.ranges.interval(node)
        return _symbol(name, "positive" if interval.positive else "negative" if interval.negative else "real")

    def divisor(self, node: Node) -> Any:
        """1 / node, where that may be infinite: a symbol, so that it does not cancel."""
        settled = self.settle(node)
        name = f"d{settled.digest.hex()}"
        self.divisors[name] = settled
        return _symbol(name, "real")

    def settle(self, node: Node) -> Node:
        """The rebuilt node of an expression that sympy holds."""
        if node not in self.out:
            form = self.form[node]
            if self.factor and form.is_Add and len(form.args) <= MAX_FACTORED and _shares(form):
                form = _factored(form)
            self.out[node] = _Builder(self.leaves, self.divisors).build(form)
        return self.out[node]


@lru_cache(maxsize=65536)
def _symbol(name: str, sign: str) -> Any:
    return sympy.Symbol(name, **{sign: True})


def _shares(form: Any) -> bool:
    """True when a symbol occurs in two terms of a sum: otherwise only a number can be taken out."""
    met: set[Any] = set()
    for term in form.args:
        symbols = term.free_symbols
        if met & symbols:
            return True
        met |= symbols
    return False


def _factored(form: Any) -> Any:
    """A sum with its common factors, and those of its parts, taken out. The answer depends on the structure alone."""
    symbols = sorted(form.free_symbols, key=lambda s: s.name)
    plain = {s: sympy.Symbol(f"a{i}") for i, s in enumerate(symbols)}
    back = {f"a{i}": s for i, s in enumerate(symbols)}
    answer = _memo.get([str(form.xreplace(plain))], _ask)
    return sympy.parse_expr(answer, local_dict=dict(back)) if answer else form


def _ask(question: list[str]) -> str:
    """sympy's factored form, in its own notation; empty where that is not simpler by its count of operations."""
    form = sympy.parse_expr(question[0])
    degree = sum(sympy.degree(form, s) for s in form.free_symbols) if form.is_polynomial() else MAX_DEGREE + 1
    best = sympy.factor(form) if degree <= MAX_DEGREE else sympy.factor_terms(form)
    exact = all(_literal(n) or (_literal(n.p) and _literal(n.q)) for n in best.atoms(sympy.Number))
    return str(best) if exact and best.count_ops() < form.count_ops() else ""


def _fits(form: Any) -> bool:
    """True when literals can say the numbers at the top of an expression. Those below were checked before."""
    terms = form.args if form.is_Add else (form,)
    numbers = (t if t.is_Number else t.args[0] if t.is_Mul and t.args[0].is_Number else None for t in terms)
    return all(n is None or _literal(n) or (_literal(n.p) and _literal(n.q)) for n in numbers)


def _literal(number: Any) -> bool:
    """True when a float64 literal reads as exactly this number."""
    top, bottom = (int(number.p), int(number.q)) if hasattr(number, "p") else (int(number), 1)
    if max(abs(top).bit_length(), bottom.bit_length()) > MAX_BITS:
        return False
    near = top / bottom
    return Fraction(repr(near)) == Fraction(top, bottom)


class _Builder:
    """Nodes of a sympy expression: a sum, product, integer power, rational or symbol."""

    def __init__(self, leaves: dict[str, Node], divisors: dict[str, Node]) -> None:
        self.leaves = leaves
        self.divisors = divisors
        self.done: dict[Any, Node] = {}

    def build(self, expr: Any) -> Node:
        self.done = {s: self.node(s) for s in expr.free_symbols}
        stack = [expr]
        while stack:
            e = stack[-1]
            missing = [] if e in self.done else [a for a in _parts(e) if a not in self.done]
            if missing:
                stack.extend(missing)
                continue
            if e not in self.done:
                self.done[e] = self.node(e)
            stack.pop()
        return self.done[expr]

    def node(self, e: Any) -> Node:
        if e.is_Symbol and e.name in self.leaves:
            return self.leaves[e.name]
        if e.is_Number and _literal(e):
            return const(_float(e))
        if e.is_Add:
            return self.sum(e)
        return self.product(e)

    def sum(self, e: Any) -> Node:
        """Terms without a minus sign first, both in the order of the digests."""
        positive = [self.done[a] for a in e.args if not _negative(a)]
        negative = [self.product(-a) for a in e.args if _negative(a)]
        if not positive:
            return make(Op.NEG, (_chain(Op.ADD, negative),))
        total = _chain(Op.ADD, positive)
        return make(Op.SUB, (total, _chain(Op.ADD, negative))) if negative else total

    def product(self, e: Any) -> Node:
        """(number · factors) / factors of negative power, with the sign outside. Also a power, number or symbol."""
        number = sympy.S.One
        top: list[Node] = []
        bottom: list[Node] = []
        for a in e.args if e.is_Mul else (e,):
            base, power = (a.base, int(a.exp)) if a.is_Pow else (a, 1)
            if a.is_Number:
                number = a
            elif base.is_Symbol and base.name in self.divisors:
                (bottom if power > 0 else top).append(_power(self.divisors[base.name], abs(power)))
            elif a.is_Pow:
                (top if a.exp > 0 else bottom).append(_power(self.done[a.base], abs(int(a.exp))))
            else:
                top.append(self.done[a])
        if number is not None and not _literal(number):
            bottom.append(const(_float(sympy.Integer(number.q))))
            number = sympy.Integer(number.p)
        if abs(number) != 1 or not top:
            top.append(const(abs(_float(number))))
        node = _chain(Op.MUL, top)
        if bottom:
            node = make(Op.DIV, (node, _chain(Op.MUL, bottom)))
        return make(Op.NEG, (node,)) if number < 0 else node


def _parts(e: Any) -> tuple[Any, ...]:
    """What must be built before `e`: a factor's base instead of the factor, a negative term without its sign."""
    if e.is_Add:
        return tuple(p for a in e.args for p in (_factors(-a) if _negative(a) else (a,)))
    return _factors(e) if e.is_Mul or e.is_Pow else ()


def _factors(e: Any) -> tuple[Any, ...]:
    factors = e.args if e.is_Mul else (e,)
    return tuple(f.base if f.is_Pow else f for f in factors if not f.is_Number)


def _float(number: Any) -> float:
    return int(number.p) / int(number.q)  # division of integers rounds once


def _negative(term: Any) -> bool:
    """True for a term of a sum that starts with a negative number."""
    number = term.args[0] if term.is_Mul else term
    return bool(number.is_Number and number < 0)


def _power(base: Node, exponent: int) -> Node:
    node, square = None, base
    while exponent:
        if exponent & 1:
            node = square if node is None else make(Op.MUL, (node, square))
        exponent >>= 1
        if exponent:
            square = make(Op.SQUARE, (square,))
    assert node is not None
    return node


def _chain(op: Op, terms: list[Node]) -> Node:
    terms = sorted(terms, key=lambda n: n.digest)
    node = terms[0]
    for t in terms[1:]:
        node = make(op, (node, t))
    return node
