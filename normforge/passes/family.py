"""family: the normal form up to what trainable parameters absorb.

A parameter that is used once is free: whatever constant stands beside it, training can undo. So a free factor of a
product absorbs the constant factors and the sign of the product, also those that a sum among the factors has in
common; a free term of a sum absorbs the constant terms, also those inside a product whose other factors are
parameters, as in (f + 2) * gamma + beta.
"""

from __future__ import annotations

import math

from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, make
from normforge.ir.ops import Op
from normforge.passes.simplify import normal_form

MAX_ROUNDS = 8
_PRODUCT, _SUM = (Op.MUL, Op.DIV), (Op.ADD, Op.SUB)

# (node, +1 or -1): a factor and its power, or a term and its sign.
Part = tuple[Node, int]


def family_form(graph: Graph) -> Graph:
    """A layer in normal form, without what its free parameters absorb."""
    graph = normal_form(graph)
    for _ in range(MAX_ROUNDS):
        new = normal_form(_Absorb(graph).run())
        if new.structure == graph.structure:
            break
        graph = new
    return graph


class _Absorb:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.uses: dict[Node, int] = {}
        self.varies: set[Node] = set()  # nodes that depend on an input
        for node in graph.nodes:
            if node.op is Op.INPUT or any(a in self.varies for a in node.args):
                self.varies.add(node)
            for a in node.args:
                self.uses[a] = self.uses.get(a, 0) + 1
        for _, node in graph.outputs:
            self.uses[node] = self.uses.get(node, 0) + 1
        # What a sum or a product above looks through: only the whole chain is rebuilt, once.
        self.inside_sum: set[Node] = set()
        self.inside_product: set[Node] = set()
        for node in graph.nodes:
            once = [a for a in node.args if self.uses[a] == 1]
            if node.op in (*_SUM, Op.NEG):
                self.inside_sum.update(once)
            if node.op in (*_PRODUCT, Op.NEG):
                self.inside_product.update(once)
        self.out: dict[Node, Node] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            self.out[node] = self.node(node)
        return self.graph.with_outputs(*((name, self.out[n]) for name, n in self.graph.outputs))

    def node(self, node: Node) -> Node:
        inner = node.args[0] if node.op is Op.NEG else node
        if inner.op in _SUM and (inner is node or self.uses[inner] == 1):
            terms = self.terms(node) if node not in self.inside_sum else []
            if any(self.free(t) for t, _ in terms):
                return self.without_shifts(terms)
        elif inner.op in _PRODUCT or node.op is Op.NEG:
            factors = self.factors(node)[0] if node not in self.inside_product else []
            if any(self.free(f) for f, _ in factors):
                return self.without_constants(factors)
        return make(node.op, tuple(self.out[a] for a in node.args), node.attr) if node.args else node

    def free(self, node: Node) -> bool:
        return node.op is Op.PARAM and self.uses[node] == 1

    # -- products

    def factors(self, node: Node) -> tuple[list[Part], int]:
        """The factors of a product with their powers, seen through products that nothing else uses; and its sign."""
        found: list[Part] = []
        sign, stack = 1, [(node, 1)]
        while stack:
            n, power = stack.pop()
            inside = n is node or self.uses[n] == 1
            if n.op in _PRODUCT and inside:
                stack += [(n.args[1], power if n.op is Op.MUL else -power), (n.args[0], power)]
            elif n.op is Op.NEG and inside:
                sign = -sign
                stack.append((n.args[0], power))
            else:
                found.append((n, power))
        return found, sign

    def without_constants(self, factors: list[Part]) -> Node:
        """The product without constant factors, and its sums without the factor that their terms have in common."""
        parts: list[Part] = []
        for f, power in factors:
            if _constant(f):
                continue
            scale = self.leading(f) if f.op in _SUM and self.uses[f] == 1 else 1.0
            parts.append((self.out[f] if scale == 1 else make(Op.DIV, (self.out[f], const(scale))), power))
        return _product(parts)

    def leading(self, node: Node) -> float:
        """The constant factor of the first term of a sum, in an order that constant factors do not change."""
        best: tuple[list[bytes], float] | None = None
        for term, sign in self.terms(node):
            factors, minus = self.factors(term)
            scale = float(sign * minus)
            for f, power in factors:
                scale *= f.value**power if _constant(f) else 1.0
            key = sorted(f.digest + bytes([power + 1]) for f, power in factors if not _constant(f))
            if key and (best is None or key < best[0]):
                best = key, scale
        return best[1] if best and best[1] and math.isfinite(best[1]) else 1.0

    # -- sums

    def terms(self, node: Node) -> list[Part]:
        """The terms of a sum with their signs, seen through sums that nothing else uses."""
        found: list[Part] = []
        stack = [(node, 1)]
        while stack:
            n, sign = stack.pop()
            inside = n is node or self.uses[n] == 1
            if n.op in _SUM and inside:
                stack += [(n.args[1], sign if n.op is Op.ADD else -sign), (n.args[0], sign)]
            elif n.op is Op.NEG and inside:
                stack.append((n.args[0], -sign))
            else:
                found.append((n, sign))
        return found

    def without_shifts(self, terms: list[Part]) -> Node:
        """The sum without constant terms, and with a plus wherever a free parameter absorbs the minus."""
        shift = next(t for t, _ in terms if self.free(t))
        parts: list[Part] = []
        for t, sign in terms:
            if t.op is Op.CONST:
                continue
            factors, minus = self.factors(t) if self.uses[t] == 1 else ([(t, 1)], 1)
            absorbed = any(self.free(f) for f, _ in factors)
            parts.append((self.shifted(factors, minus, shift.axes) or self.out[t], 1 if absorbed else sign))
        return _sum(parts)

    def shifted(self, factors: list[Part], sign: int, axes: int) -> Node | None:
        """A product of parameters with one sum, without the sum's constant terms; None where there is none to drop."""
        varying = [f for f, _ in factors if f in self.varies]
        others = [f for f, _ in factors if f not in self.varies]
        if len(varying) != 1 or any(f.axes & ~axes for f in others):
            return None
        inner = varying[0]
        if inner.op not in _SUM or self.uses[inner] != 1 or (inner, 1) not in factors:
            return None
        terms = self.terms(inner)
        kept = [(self.out[t], s) for t, s in terms if t.op is not Op.CONST]
        if len(kept) == len(terms):
            return None
        parts = [(_sum(kept) if f is inner else self.out[f], power) for f, power in factors]
        return _product(parts) if sign > 0 else make(Op.NEG, (_product(parts),))


def _constant(node: Node) -> bool:
    return node.op is Op.CONST and node.value != 0


def _product(parts: list[Part]) -> Node:
    top, bottom = ([n for n, power in parts if power * side > 0] for side in (1, -1))
    node = _chain(Op.MUL, top) if top else const(1.0)
    return make(Op.DIV, (node, _chain(Op.MUL, bottom))) if bottom else node


def _sum(parts: list[Part]) -> Node:
    return _chain(Op.ADD, [n if sign > 0 else make(Op.NEG, (n,)) for n, sign in parts])


def _chain(op: Op, nodes: list[Node]) -> Node:
    node = nodes[0]
    for n in nodes[1:]:
        node = make(op, (node, n))
    return node
