"""products: one form for equal products, so that each is computed, and summed, once.

Derivatives are full of the same few factors: in different orders, under different signs, divided again and again by
one value, in sums whose terms have most of them in common. `Collect` writes every value as

    coefficient · gates · factors / divisors · small factors

(small factors only in full values: there they are what `Factor` takes out of sums) with what the terms of a sum
share taken out of it, and signs and coefficients taken out of sums over memory, which then turn out to be equal.
`Share` chooses the order of the factors for the whole graph, the most frequent first, so that products share their
beginnings, and makes one reciprocal of what is divided by twice.

Values change by rounding alone, as long as the square of a full value does not overflow. What a factor of unknown size
is in (an exponential, a quotient by what may be zero) stays in the order in which it is written: in another it may
overflow on the way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeVar

from normforge.ir.graph import Graph
from normforge.ir.node import Node, broadcast, const, make
from normforge.ir.ops import CORE, Op
from normforge.passes.factor import bounded_away_from_zero, is_full

MAX_FACTORS = 12  # of one product; longer ones stay as they are
MAX_POWER = 2  # of a full factor that is taken apart from small ones
# What is bounded whatever its operand, so that nobody needs to know how large that is.
BOUNDED = frozenset(op for op in CORE if (r := op.traits.range) and r.high < math.inf)
Gate = tuple[Node, Node]
Small = tuple[Node, bool]
Part = TypeVar("Part", Node, Gate, Small)


@dataclass(frozen=True)
class Product:
    """A product.

    Attributes:
        coefficient: in front of all.
        gates: conditions (a, b) of `gate`, with repetition, sorted.
        factors: likewise; full ones of a full value.
        divisors: likewise, each bounded away from zero.
        small: of a full value, (factor or divisor that is not full, is it a divisor?), in order.
    """

    coefficient: float = 1.0
    gates: tuple[Gate, ...] = ()
    factors: tuple[Node, ...] = ()
    divisors: tuple[Node, ...] = ()
    small: tuple[Small, ...] = ()

    def times(self, other: Product) -> Product:
        """The product of two."""
        return Product(
            self.coefficient * other.coefficient,
            tuple(sorted((*self.gates, *other.gates), key=_order)),
            tuple(sorted((*self.factors, *other.factors), key=_order)),
            tuple(sorted((*self.divisors, *other.divisors), key=_order)),
            (*self.small, *other.small),
        )

    def over(self, other: Product) -> Product | None:
        """The quotient, where every full factor of `other` is bounded away from zero and no gate closes it."""
        if other.gates or other.divisors or not other.coefficient:
            return None
        if not all(map(bounded_away_from_zero, other.factors)):
            return None
        small = tuple((n, not divides) for n, divides in other.small)
        return self.times(Product(1.0 / other.coefficient, (), (), other.factors, small))

    def common(self, other: Product) -> Product:
        """The parts that two products share, but for the coefficient."""
        return Product(
            1.0,
            _both(self.gates, other.gates),
            _both(self.factors, other.factors),
            _both(self.divisors, other.divisors),
            _both(self.small, other.small),
        )

    def without(self, other: Product) -> Product:
        """The product that is left when the parts of `other`, all in this product, are taken out."""
        return Product(
            self.coefficient,
            _less(self.gates, other.gates),
            _less(self.factors, other.factors),
            _less(self.divisors, other.divisors),
            _less(self.small, other.small),
        )

    @property
    def parts(self) -> tuple[object, ...]:
        """The product without its coefficient, as a key: equal for products that differ in the coefficient alone."""
        return self.gates, self.factors, self.divisors, tuple(sorted((n.digest, d) for n, d in self.small))


def _times(a: Node | None, b: Node) -> Node:
    """a · b, of which a may be nothing yet."""
    return b if a is None else make(Op.MUL, (a, b))


def _over(a: Node | None, b: Node) -> Node:
    return make(Op.DIV, (const(1.0) if a is None else a, b))


def _gate(condition: Gate, value: Node | None) -> Node:
    return make(Op.GATE, (*condition, const(1.0) if value is None else value))


def _order(part: Node | Gate | Small) -> tuple[bytes, ...]:
    if isinstance(part, Node):
        return (part.digest,)
    return part[0].digest, part[1].digest if isinstance(part[1], Node) else bytes([part[1]])


def _both(a: tuple[Part, ...], b: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(sorted((Counter(a) & Counter(b)).elements(), key=_order))


def _less(a: tuple[Part, ...], b: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(sorted((Counter(a) - Counter(b)).elements(), key=_order))


def _product_of(node: Node, args: list[Product]) -> Product | None:
    """A node as a product, given its operands as products; None where it is not one."""
    found: Product | None = None
    if node.op is Op.NEG:
        found = replace(args[0], coefficient=-args[0].coefficient)
    elif node.op is Op.SQUARE:
        found = args[0].times(args[0])
    elif node.op is Op.MUL:
        found = args[0].times(args[1])
    elif node.op is Op.DIV:
        found = args[0].over(args[1])
    elif node.op is Op.GATE:
        found = args[2].times(Product(gates=((node.args[0], node.args[1]),)))
    if found is None or len(found.factors) + len(found.divisors) > MAX_FACTORS:
        return None
    # Apart from its scale a high power overflows, and a coefficient has to be a float32.
    if found.small and max(Counter(found.factors).values(), default=0) > MAX_POWER:
        return None
    return found if not found.coefficient or 1e-30 < abs(found.coefficient) < 1e30 else None


def _wild(node: Node, known: set[Node], args: list[Product]) -> bool:
    """Given its operands as products, true for values of unknown size: exponentials of what may be positive, quotients
    by what may be zero (but for those of a full value by a small one, which keep their place anyway), and all that is
    made of them, up to a bounded function."""
    if node.op in BOUNDED:
        return False
    if node.op is Op.EXP:
        return not _never_positive(args[0])
    same = node.op is Op.DIV and is_full(node.axes) == is_full(node.args[1].axes)
    unsafe = same and not bounded_away_from_zero(node.args[1])
    return unsafe or any(a in known for a in node.args)


def _never_positive(p: Product) -> bool:
    """True for squares with a negative coefficient: the exponent in the derivative of erf."""
    parts = Counter[Node]([*p.factors, *p.divisors, *(n for n, _ in p.small)])
    return p.coefficient < 0 and not p.gates and all(count % 2 == 0 for count in parts.values())


@dataclass(frozen=True)
class Collect:
    """Rewrite full values as products, with common factors outside sums."""

    def run(self, graph: Graph) -> Graph:
        """The graph with products collected; outputs and inputs keep their names and types."""
        state = _Collect()
        for node in graph.nodes:
            state.visit(node)
        return graph.with_outputs(*((k, state.node(n)) for k, n in graph.outputs))


@dataclass
class _Collect:
    out: dict[Node, Node] = field(default_factory=dict)  # of those that were asked for
    products: dict[Node, Product] = field(default_factory=dict)  # in terms of new nodes
    wild: set[Node] = field(default_factory=set)  # among new nodes

    def visit(self, node: Node) -> None:
        """Rewrite a node whose operands are rewritten."""
        args = [self.of(a, node) for a in node.args]
        found = None
        if node.op is Op.CONST:
            found = Product(coefficient=node.value)
        elif node.op in (Op.ADD, Op.SUB):
            found = self._sum(node, *args)
        elif node.op is Op.SUM:
            found = self._total(node)
        elif node.args and not any(self._is_wild(a) for a in node.args):
            new = node
            if node.op is Op.GATE:  # conditions are compared as new nodes
                new = make(Op.GATE, (self.node(node.args[0]), self.node(node.args[1]), node.args[2]))
            found = _product_of(new, args)
        if found is None:
            new = make(node.op, tuple(map(self.node, node.args)), node.attr) if node.args else node
            if _wild(new, self.wild, args):
                self.wild.add(new)
            found = Product(factors=(new,))
        self.products[node] = found

    def of(self, node: Node, user: Node) -> Product:
        """A node as a product of new nodes; for a full user, a small one as one factor."""
        p = self.products[node]
        if is_full(user.axes) and not is_full(node.axes) and (p.factors or p.divisors or p.gates):
            return Product(p.coefficient, small=((_core(p), False),))
        return p

    def node(self, node: Node) -> Node:
        """The new node of a node."""
        if node not in self.out:
            self.out[node] = broadcast(_chain(self.products[node]), node.type)
        return self.out[node]

    def _is_wild(self, node: Node) -> bool:
        return any(n in self.wild for n in self.products[node].factors)

    def _total(self, node: Node) -> Product | None:
        """A sum without the coefficient of what it adds up and, where that is small, without what is constant."""
        p = self.products[node.args[0]]
        if self._is_wild(node.args[0]) or not p.coefficient:
            return None
        outside = Product(p.coefficient)
        if not is_full(node.args[0].axes):
            outside = Product(
                p.coefficient,
                tuple(g for g in p.gates if not (g[0].axes | g[1].axes) & node.reduced),
                tuple(n for n in p.factors if not n.axes & node.reduced),
                tuple(n for n in p.divisors if not n.axes & node.reduced),
            )
        inside = _core(p.without(outside))
        if inside.axes & node.reduced != node.args[0].axes & node.reduced:
            return None
        return outside.times(Product(factors=(make(Op.SUM, (inside,), node.attr),)))

    def _sum(self, node: Node, a: Product, b: Product) -> Product | None:
        """A sum or difference as what both terms share, times the rest."""
        if node.op is Op.SUB:
            b = replace(b, coefficient=-b.coefficient)
        if any(map(self._is_wild, node.args)) or not a.coefficient or not b.coefficient:
            return None
        shared = a.common(b)
        a, b = a.without(shared), b.without(shared)
        if a.parts == b.parts:
            total = a.coefficient + b.coefficient
            return shared.times(replace(a, coefficient=total)) if total else None
        # One orientation for a - b and b - a: constants before full values before small ones.
        if _rank(b) < _rank(a):
            a, b = b, a
        scale = a.coefficient if abs(a.coefficient) == abs(b.coefficient) else 1.0 if a.coefficient > 0 else -1.0
        a = replace(a, coefficient=a.coefficient / scale)
        b = replace(b, coefficient=b.coefficient / scale)
        op = Op.SUB if b.coefficient < 0 else Op.ADD
        rest = make(op, (_chain(a), _chain(replace(b, coefficient=abs(b.coefficient)))))
        if is_full(rest.axes) or not is_full(node.axes):
            return shared.times(Product(coefficient=scale, factors=(rest,)))
        return shared.times(Product(coefficient=scale, small=((rest, False),))) if shared.factors else None


def _rank(p: Product) -> tuple[int, bytes]:
    alone = not (p.gates or p.factors or p.divisors or p.small)
    return (0 if alone else 1 if p.gates or p.factors or p.divisors else 2), _core(p).digest


def _scaled(value: Node, coefficient: float) -> Node:
    if coefficient == 1.0:
        return value
    return make(Op.NEG, (value,)) if coefficient == -1.0 else make(Op.MUL, (value, const(coefficient)))


def _chain(p: Product) -> Node:
    """A product in the order of its parts."""
    value: Node | None = None
    for n in p.factors:
        value = _times(value, n)
    for n in p.divisors:
        value = _over(value, n)
    for condition in p.gates:
        value = _gate(condition, value)
    return _finish(value, p)


def _core(p: Product) -> Node:
    """The same without the coefficient."""
    return _chain(replace(p, coefficient=1.0))


def _finish(value: Node | None, p: Product) -> Node:
    """Small factors and the coefficient behind the full part of a product."""
    for n, divides in p.small:
        value = (_over if divides else _times)(value, n)
    return const(p.coefficient) if value is None else _scaled(value, p.coefficient)


@dataclass(frozen=True)
class Share:
    """Order the factors of all products so that they have their beginnings in common."""

    def run(self, graph: Graph) -> Graph:
        """The graph with shared beginnings; outputs and inputs keep their names and types."""
        state = _Share()
        for node in graph.nodes:
            state.read(node)
        state.count(n for _, n in graph.outputs)
        for node in graph.nodes:
            state.write(node)
        return graph.with_outputs(*((k, state.out[n]) for k, n in graph.outputs))


# One part of a product: a factor, a divisor or a gate, and which of its repetitions.
Token = tuple[Node | Gate, bool, int]


def _tokens(p: Product) -> list[Token]:
    found: list[Token] = []
    parts: tuple[tuple[tuple[Node | Gate, ...], bool], ...] = ((p.factors, False), (p.divisors, True), (p.gates, False))
    for part, divides in parts:
        seen: Counter[Node | Gate] = Counter()
        for one in part:
            found.append((one, divides, seen[one]))
            seen[one] += 1
    return found


def _negated(value: Node) -> Node:
    """-value without an operation of its own, where a difference or a small factor can take the sign."""
    if value.op is Op.SUB:
        return make(Op.SUB, value.args[::-1])
    if value.op is Op.MUL and not all(is_full(a.axes) for a in value.args):
        full, small = value.args if is_full(value.args[0].axes) else value.args[::-1]
        return make(Op.MUL, (full, make(Op.NEG, (small,))))
    if value.op is Op.ADD:
        for first, second in (value.args, value.args[::-1]):
            negative = _negated(first)
            if negative.op is not Op.NEG:
                return make(Op.SUB, (negative, second))
    return make(Op.NEG, (value,))


@dataclass
class _Share:
    products: dict[Node, Product] = field(default_factory=dict)
    wild: set[Node] = field(default_factory=set)
    uses: Counter[Token] = field(default_factory=Counter)  # in how many different products
    divisions: Counter[Node] = field(default_factory=Counter)  # by a divisor, in all products
    out: dict[Node, Node] = field(default_factory=dict)

    def read(self, node: Node) -> None:
        """Note the product that a full node is."""
        args = [self._of(a, node) for a in node.args]
        if _wild(node, self.wild, args):
            self.wild.add(node)
        elif (found := _product_of(node, args)) is not None:
            self.products[node] = found

    def _of(self, node: Node, user: Node) -> Product:
        if node.op is Op.CONST:
            return Product(coefficient=node.value)
        if is_full(user.axes) and not is_full(node.axes):
            return Product(small=((node, False),))
        return self.products.get(node) or Product(factors=(node,))

    def count(self, roots: Iterable[Node]) -> None:
        """Count the parts of the products that something other than a product needs."""
        stack: list[Node] = list(roots)
        nodes: set[Node] = set()
        products: set[tuple[object, ...]] = set()
        while stack:
            node = stack.pop()
            if node in nodes:
                continue
            nodes.add(node)
            p = self.products.get(node)
            if p is None:
                stack.extend(node.args)
                continue
            stack += [*p.factors, *p.divisors, *(n for n, _ in p.small), *(n for g in p.gates for n in g)]
            if len(_tokens(p)) > 1 and (p.factors, p.divisors, p.gates) not in products:
                products.add((p.factors, p.divisors, p.gates))
                self.uses.update(_tokens(p))
                self.divisions.update(p.divisors)

    def write(self, node: Node) -> None:
        """Make the new node of a node whose operands have theirs."""
        p = self.products.get(node)
        if p is None:
            self.out[node] = make(node.op, tuple(self.out[a] for a in node.args), node.attr) if node.args else node
            return
        chain = sorted(_tokens(p), key=self._place)
        first = next((t for t in chain if isinstance(t[0], Node)), None)
        if first is not None:
            chain.remove(first)
            chain.insert(0, first)
        value: Node | None = None
        last: list[Node] = []
        for part, divides, _ in chain:
            if isinstance(part, tuple):
                value = _gate((self.out[part[0]], self.out[part[1]]), value)
            elif divides and self.divisions[part] == 1:
                last.append(self.out[part])  # one division is right to half a unit; a reciprocal is for two
            else:
                value = _times(value, _over(None, self.out[part]) if divides else self.out[part])
        for n in last:
            value = _over(value, n)
        new = _finish(value, self._grouped(p))
        if new.op is Op.NEG and is_full(new.axes):
            new = _negated(new.args[0])
        self.out[node] = broadcast(new, node.type)

    def _place(self, t: Token) -> tuple[object, ...]:
        """Where a part goes: what varies along fewer axes first, for loops that are inside fewer; then the most
        frequent; of two as frequent a factor before a gate, which needs something to close."""
        gate = isinstance(t[0], tuple)
        axes = t[0].axes if isinstance(t[0], Node) else t[0][0].axes | t[0][1].axes
        return 4 if is_full(axes) else axes.bit_count(), -self.uses[t], gate, _order(t[0]), t[1:]

    def _grouped(self, p: Product) -> Product:
        """All small factors and the coefficient as one, so that an element is multiplied once; a divisor stays one."""
        factors = sorted((self.out[n] for n, divides in p.small if not divides), key=_order)
        divisors = tuple((self.out[n], True) for n, divides in p.small if divides)
        if not factors:
            return replace(p, small=divisors)
        return replace(p, coefficient=1.0, small=((_scaled(reduce(_times, factors), p.coefficient), False), *divisors))
