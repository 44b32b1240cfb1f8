"""simplify: sympy over maximal elementwise regions, under a budget of nodes, believed only after a numeric check.

Everything that sympy could rewrite with rules of its own that ε breaks (log of exp, sqrt of square, abs) is an
opaque function to it, so what it contributes is the algebra of sums, products and powers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import sympy

from normforge.ir.evaluate import evaluate
from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, make
from normforge.ir.ops import ELEMENTWISE, LEAF, Op
from normforge.passes.canonicalise import Canonicalise

MAX_NODES = 400  # graphs above this many nodes are only canonicalised: a budget in steps, never in seconds
_ARITHMETIC = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.NEG, Op.SQUARE})

# Rough cost of one element in a fused kernel, in additions; chooses what is compiled, never what is hashed.
COST: dict[Op, float] = {op: 1.0 for op in ELEMENTWISE} | {
    Op.DIV: 4.0,
    Op.ROOT: 4.0,
    Op.SQRT: 9.0,
    Op.EXP: 10.0,
    Op.LN: 12.0,
    Op.LOG: 15.0,
    Op.SIGMOID: 15.0,
    Op.TANH: 16.0,
    Op.ERF: 16.0,
}
SWEEP = 40.0  # a moment: one more pass over memory


def cost(graph: Graph) -> float:
    """Cost of a graph by the table above."""
    return sum(0.0 if n.op in LEAF else COST.get(n.op, SWEEP) for n in graph.nodes)


@dataclass(frozen=True)
class Simplify:
    """The cheaper, by `cost`, of the canonical graph and its normal form."""

    def run(self, graph: Graph) -> Graph:
        """Simplify a surface or core graph; idempotent."""
        plain = Canonicalise(finite_only=graph.is_surface).run(graph)
        if not graph.is_surface:
            return plain
        normal = normal_form(graph)
        return normal if cost(normal) <= cost(plain) else plain


def simplify(graph: Graph) -> Graph:
    """The same function with fewer operations; see `Simplify`."""
    return Simplify().run(graph)


_memo: OrderedDict[str, Graph] = OrderedDict()


def normal_form(graph: Graph) -> Graph:
    """The normal form that `hash` is taken from: equal where everything is finite. Deterministic."""
    if graph.structure in _memo:
        _memo.move_to_end(graph.structure)
        return _memo[graph.structure]
    current = Canonicalise(finite_only=True).run(graph)
    if graph.is_surface and len(current.nodes) <= MAX_NODES:
        for _ in range(4):
            new = Canonicalise(finite_only=True).run(_sympy_pass(current))
            if new.structure == current.structure or not _agree(current, new):
                break
            current = new
    _memo[graph.structure] = current
    if len(_memo) > 4096:
        _memo.popitem(last=False)
    return current


def _sympy_pass(graph: Graph) -> Graph:
    """Rebuild every elementwise region through sympy, innermost first."""
    out: dict[Node, Node] = {}
    form: dict[Node, Any] = {}
    leaves: dict[str, Node] = {}

    def leaf(node: Node) -> Any:
        name = f"n{node.digest.hex()}"
        leaves[name] = node
        return _symbol(name)

    def settle(node: Node) -> Node:
        """The rewritten node of an expression that sympy holds."""
        if node not in out:
            out[node] = _from_sympy(form[node], leaves)
        return out[node]

    for node in graph.nodes:
        if node.op is Op.CONST:
            form[node] = sympy.Rational(repr(node.value))
        elif node.op in _ARITHMETIC:
            form[node] = _arithmetic(node.op, [form[a] for a in node.args])
        elif node.op in LEAF:
            form[node] = leaf(node)
        else:  # opaque: a function or a moment of simplified operands
            form[node] = leaf(make(node.op, tuple(settle(a) for a in node.args), node.attr))
    return graph.with_outputs(*((name, settle(n)) for name, n in graph.outputs))


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


def _from_sympy(expr: Any, leaves: dict[str, Node]) -> Node:
    """Nodes of a sympy expression. Anything but a sum, product, integer power, number or leaf is not expected."""
    done: dict[Any, Node] = {}
    for e in sympy.postorder_traversal(expr):
        if e in done:
            continue
        if e.is_Symbol:
            done[e] = leaves[e.name]
        elif e.is_Number:
            done[e] = const(float(e))
        elif e.is_Add:
            done[e] = _sum(e, done)
        elif e.is_Mul:
            done[e] = _product(e, done)
        elif e.is_Pow and e.exp.is_Integer:
            top = _power(done[e.base], abs(int(e.exp)))
            done[e] = top if e.exp > 0 else make(Op.DIV, (const(1.0), top))
        else:  # complex infinity and the like: 1/0 in the formula
            done[e] = const(float("nan"))
    return done[expr]


def _sum(e: Any, done: dict[Any, Node]) -> Node:
    positive = [done[a] for a in e.args if not a.could_extract_minus_sign()]
    negative = [_from_known(-a, done) for a in e.args if a.could_extract_minus_sign()]
    positive.sort(key=lambda n: n.digest)
    negative.sort(key=lambda n: n.digest)
    total = _chain(Op.ADD, positive) if positive else None
    if negative:
        minus = _chain(Op.ADD, negative)
        return make(Op.SUB, (total, minus)) if total is not None else make(Op.NEG, (minus,))
    assert total is not None
    return total


def _product(e: Any, done: dict[Any, Node]) -> Node:
    number, top, bottom = 1.0, [], []
    for a in e.args:
        if a.is_Number:
            number = float(a)
        elif a.is_Pow and a.exp.is_Integer and a.exp < 0:
            bottom.append(_power(done[a.base], -int(a.exp)))
        else:
            top.append(done[a])
    if abs(number) != 1.0:
        top.append(const(abs(number)))
    top.sort(key=lambda n: n.digest)
    bottom.sort(key=lambda n: n.digest)
    node = _chain(Op.MUL, top) if top else const(1.0)
    if bottom:
        node = make(Op.DIV, (node, _chain(Op.MUL, bottom)))
    return make(Op.NEG, (node,)) if number < 0 else node


def _from_known(e: Any, done: dict[Any, Node]) -> Node:
    """A term whose sign was taken off: its parts are known already, the term may be new."""
    if e in done:
        return done[e]
    if e.is_Number:
        return const(float(e))
    if e.is_Mul:
        return _product(e, done)
    return _sum(e, {**done, **{a: _from_known(a, done) for a in e.args}})


def _power(base: Node, exponent: int) -> Node:
    node, square = None, base
    while exponent:
        if exponent & 1:
            node = square if node is None else make(Op.MUL, (node, square))
        exponent >>= 1
        if exponent:
            square = make(Op.SQUARE, (square,))
    return node if node is not None else const(1.0)


def _chain(op: Op, terms: list[Node]) -> Node:
    node = terms[0]
    for t in terms[1:]:
        node = make(op, (node, t))
    return node


_PROBE_SHAPE, _PROBE_GROUPS = (3, 4, 2, 3), 2


@lru_cache(maxsize=1)
def _probe_x() -> Any:
    return np.random.default_rng(20).standard_normal(_PROBE_SHAPE)


def probe_values(graph: Graph) -> dict[str, Any]:
    """Fixed inputs on which two forms of one layer are compared: parameters moved away from their starts."""
    values = {"x": _probe_x()}
    for p in graph.params:
        rng = np.random.default_rng(list(p.name.encode()))
        values[p.name] = p.attr[2] + 0.5 * rng.standard_normal(_PROBE_SHAPE[1] if p.axes else 1)
    return values


def _agree(a: Graph, b: Graph) -> bool:
    """True when two layers agree on the probe wherever both are finite."""
    values = probe_values(a)
    if any(p.name not in values for p in b.params):
        return False
    ya = evaluate(a, values, groups=_PROBE_GROUPS)["y"]
    yb = evaluate(b, values, groups=_PROBE_GROUPS)["y"]
    both = np.isfinite(ya) & np.isfinite(yb)
    # Rounding alone separates them; a wrong identity does so by far more.
    return bool(np.all(np.abs(ya - yb)[both] <= 1e-7 * (1 + np.abs(ya[both]))))


