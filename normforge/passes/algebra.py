"""Elementwise regions of a layer through sympy, and back.

Everything that sympy could rewrite with rules of its own that ε breaks (log of exp, sqrt of square, abs) is an
opaque symbol to it, so what it contributes is the algebra of sums, products and integer powers over rationals.

sympy recurses over expressions and computes with exact numbers of any length, so every bound is checked before
it is given work: an operation that would pass one stays a node of its own, opaque to what stands above it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sympy

from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, make
from normforge.ir.ops import LEAF, Op

ARITHMETIC = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.NEG, Op.SQUARE})
MAX_TREE = 2_000  # operations of one region, counted as a tree: sharing is lost on sympy
MAX_LEVELS = 24  # alternations of sums and products: sympy recurses over them
MAX_BITS = 1_000  # of the numerator and of the denominator of a number; float64 ends at 1024


def algebra(graph: Graph) -> Graph:
    """Rebuild every arithmetic region through sympy, innermost first; never raises on a surface graph."""
    rebuilt = _Regions()
    for node in graph.nodes:
        rebuilt.add(node)
    return graph.with_outputs(*((name, rebuilt.settle(n)) for name, n in graph.outputs))


class _Regions:
    def __init__(self) -> None:
        self.form: dict[Node, Any] = {}  # of each node of the graph, a sympy expression
        self.tree: dict[Node, int] = {}
        self.levels: dict[Node, int] = {}
        self.out: dict[Node, Node] = {}
        self.leaves: dict[str, Node] = {}

    def add(self, node: Node) -> None:
        if node.op is Op.CONST:
            self.put(node, sympy.Rational(repr(node.value)), 1, 0)
        elif node.op in LEAF:
            self.put(node, self.leaf(node), 1, 0)
        elif node.op in ARITHMETIC:
            tree = 1 + sum(self.tree[a] for a in node.args)
            args = [self.form[a] for a in node.args]
            by_zero = node.op is Op.DIV and args[1] is sympy.S.Zero  # sympy's answer would be complex infinity
            if tree <= MAX_TREE and not by_zero:
                form = _arithmetic(node.op, args)
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
        return _symbol(name)

    def settle(self, node: Node) -> Node:
        """The rebuilt node of an expression that sympy holds."""
        if node not in self.out:
            self.out[node] = _Builder(self.leaves).build(self.form[node])
        return self.out[node]


@lru_cache(maxsize=65536)
def _symbol(name: str) -> Any:
    return sympy.Symbol(name, real=True)


def _arithmetic(op: Op, args: list[Any]) -> Any:
    a = args[0]
    if op is Op.NEG:
        return -a
    if op is Op.SQUARE:
        return a**2
    b = args[1]
    if op is Op.ADD:
        return a + b
    if op is Op.SUB:
        return a - b
    return a * b if op is Op.MUL else a / b


def _fits(form: Any) -> bool:
    """True when the numbers at the top of an expression are float64 numbers. Those below were checked before."""
    terms = form.args if form.is_Add else (form,)
    for term in terms:
        number = term if term.is_Number else term.args[0] if term.is_Mul and term.args[0].is_Number else None
        if number is not None and max(int(abs(number.p)).bit_length(), int(number.q).bit_length()) > MAX_BITS:
            return False
    return True


class _Builder:
    """Nodes of a sympy expression: a sum, product, integer power, rational or symbol."""

    def __init__(self, leaves: dict[str, Node]) -> None:
        self.leaves = leaves
        self.done: dict[Any, Node] = {}

    def build(self, expr: Any) -> Node:
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
        if e.is_Symbol:
            return self.leaves[e.name]
        if e.is_Number:
            return const(_float(e))
        if e.is_Add:
            return self.sum(e)
        return self.product(e)

    def sum(self, e: Any) -> Node:
        """Terms without a minus sign first, each kind in the order of the digests."""
        positive = [self.done[a] for a in e.args if not _negative(a)]
        negative = [self.product(-a) for a in e.args if _negative(a)]
        if not positive:
            return make(Op.NEG, (_chain(Op.ADD, negative),))
        total = _chain(Op.ADD, positive)
        return make(Op.SUB, (total, _chain(Op.ADD, negative))) if negative else total

    def product(self, e: Any) -> Node:
        """(number · factors) / factors of negative power, with the sign outside. Also a power, number or symbol."""
        number = 1.0
        top: list[Node] = []
        bottom: list[Node] = []
        for a in e.args if e.is_Mul else (e,):
            if a.is_Number:
                number = _float(a)
            elif a.is_Pow:
                (top if a.exp > 0 else bottom).append(_power(self.done[a.base], abs(int(a.exp))))
            else:
                top.append(self.done[a])
        if abs(number) != 1.0 or not top:
            top.append(const(abs(number)))
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
