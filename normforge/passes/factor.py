"""factor: rewrite every sum over a full tensor as row or column sums that can be taken in one sweep.

After this pass a reduction of a full tensor is one of four, all of one axis group and so of one memory sweep:
`sum[s]`, `mean[s]`/`var[s]` (a row over space), and the same over channels (a column). Everything else is
arithmetic and sums of small tensors. In a derivative, Σ k·f with k constant along the row and not yet known
becomes k·Σ f: the row sums of all the f are taken together, whatever the levels of moments in forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, make, size
from normforge.ir.ops import REDUCE, Op
from normforge.ir.types import C, G, S
from normforge.passes.canonicalise import Canonicalise

MAX_TERMS = 64  # of one factored sum; beyond, one more sweep is cheaper than the accumulators
_ONE = const(1.0)
Terms = dict[Node, Node]  # key -> f, for Σ key·f


def is_full(axes: int) -> bool:
    """True for a value that varies over space and channels: never stored, computed again in each sweep."""
    return bool(axes & S and axes & G)


@dataclass(frozen=True)
class Factor:
    """Factored graph of a lowered one.

    Attributes:
        expand: hoist factors that are not yet known out of sums. For derivatives; in forward the sums would
            lose digits (x·x − 2·x·μ + μ² for (x − μ)²).
        rows: sum rows or columns first; otherwise a sum is taken at once over all its axes, by a program that holds
            them, and is left as it is where an unknown factor varies along one of them.
    """

    expand: bool
    rows: bool = True

    def run(self, graph: Graph) -> Graph:
        """Rewrite; outputs and inputs keep their names and types."""
        state = _State(self.expand, self.rows)
        for node in graph.nodes:
            state.out[node] = state.rewrite(node)
        outputs = tuple((k, state.out[n]) for k, n in graph.outputs)
        return Canonicalise().run(graph.with_outputs(*outputs))


@dataclass
class _State:
    expand: bool
    rows: bool
    out: dict[Node, Node] = field(default_factory=dict)
    # Memo of "depends on a sum taken in a sweep of this graph", on rewritten nodes.
    unknown: dict[Node, bool] = field(default_factory=dict)
    terms: dict[tuple[Node, int], Terms | None] = field(default_factory=dict)

    def rewrite(self, node: Node) -> Node:
        args = tuple(self.out[a] for a in node.args)
        if node.op not in REDUCE:
            return self.regroup(_joined(_strengthen(make(node.op, args, node.attr)))) if args else node
        a = args[0]
        axes = a.axes & node.reduced
        if not axes:
            return const(0.0) if node.op is Op.VAR else a
        if not is_full(a.axes):
            return _small(node.op, a, axes)
        if node.op is Op.SUM:
            return self.full_sum(a, axes)
        if not self.rows:
            return make(node.op, args, (axes,))
        # Forward's moments: of rows over space, or of columns over channels, merged by the law of total variance.
        first = S if axes & S else axes & C
        rest = axes & ~first
        row_mean = make(Op.MEAN, (a,), (first,))
        if node.op is Op.MEAN:
            return _small(Op.MEAN, row_mean, rest)
        row_var = make(Op.VAR, (a,), (first,))
        if not rest:
            return row_var
        return make(Op.ADD, (_small(Op.MEAN, row_var, rest), _small(Op.VAR, row_mean, rest)))

    def regroup(self, node: Node) -> Node:
        """A product as (full part) · (product of its small factors): fewer operations an element, and the very
        factor that sums of it are scaled with, so that what cancels in exact arithmetic (f·k − k·Σf/n for n = 1)
        cancels in floats. Only where the small product can neither overflow nor vanish."""
        if node.op not in (Op.MUL, Op.NEG) or not is_full(node.axes) or self.depends(node):
            return node
        terms = self.split(node, S)
        if terms is None or len(terms) != 1:
            return node
        ((key, f),) = terms.items()
        if key is _ONE or f is _ONE or not _moderate(key):
            return node
        return make(Op.MUL, (f, key))

    def full_sum(self, a: Node, axes: int) -> Node:
        """Sum of a full tensor, by rows when the unknown factors allow it, else by columns, else unfactored."""
        for first in (S, axes & C) if self.rows else (axes,):
            if not first & axes:
                continue
            terms = self.split(a, first)
            if terms is not None and len(terms) <= MAX_TERMS:
                return self.combine(terms, a.axes, first, axes & ~first)
        if not self.rows:
            return make(Op.SUM, (a,), (axes,))
        first = S if axes & S else axes & C
        return _small(Op.SUM, make(Op.SUM, (a,), (first,)), axes & ~first)

    def combine(self, terms: dict[Node, Node], declared: int, first: int, rest: int) -> Node:
        """Σ over `rest` of Σ key · (sum of f over `first`)."""
        total: Node | None = None
        for key, f in terms.items():
            part = _sum_along(f, first)
            part = part if key is _ONE else make(Op.MUL, (key, part))
            part = _sum_along(part, rest & declared) if rest else part
            total = part if total is None else make(Op.ADD, (total, part))
        return total if total is not None else const(0.0)

    def depends(self, node: Node) -> bool:
        """True when the node needs a sum that a sweep of this graph takes."""
        known = self.unknown.get(node)
        if known is not None:
            return known
        stack = [node]
        while stack:
            n = stack[-1]
            missing = [a for a in n.args if a not in self.unknown]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            own = n.op in REDUCE and is_full(n.args[0].axes)
            self.unknown[n] = own or any(self.unknown[a] for a in n.args)
        return self.unknown[node]

    def split(self, node: Node, first: int) -> Terms | None:
        """`node` as Σ key·f, keys constant along `first`, every f known; None where that is impossible.

        Factors that are constant along `first` are taken out of products even when known (equal row sums then
        merge); sums are only opened where something unknown is inside (x − μ stays centred).
        """
        memo = (node, first)
        if memo not in self.terms:
            self.terms[memo] = self._split(node, first)
        return self.terms[memo]

    def _split(self, node: Node, first: int) -> Terms | None:
        if not node.axes & first and not is_full(node.axes):
            return {node: _ONE}
        unknown = self.depends(node)
        if unknown and not self.expand:
            return None
        op = node.op
        if op is Op.MUL or (op is Op.SQUARE and unknown):
            a, b = (node.args * 2)[:2]
            return _product(self.split(a, first), self.split(b, first))
        if op is Op.NEG:
            return _scale(self.split(node.args[0], first), lambda k: make(Op.NEG, (k,)))
        if op is Op.DIV:
            top, bottom = node.args
            terms = self.split(top, first)
            if not bottom.axes & first and not is_full(bottom.axes):
                return _scale(terms, lambda k: make(Op.DIV, (k, bottom)))
            if self.depends(bottom):
                return None
            return _map(terms, lambda f: make(Op.DIV, (f, bottom)))
        if op is Op.GATE and not self.depends(node.args[0]) and not self.depends(node.args[1]):
            return _map(self.split(node.args[2], first), lambda f: make(Op.GATE, (*node.args[:2], f)))
        if op is Op.BROADCAST:
            return self.split(node.args[0], first)
        if not unknown:
            return {_ONE: node}
        if op is Op.ADD or op is Op.SUB:
            left, right = (self.split(a, first) for a in node.args)
            if left is None or right is None:
                return None
            total = dict(left)
            for key, f in right.items():
                f = f if op is Op.ADD else make(Op.NEG, (f,))
                total[key] = make(Op.ADD, (total[key], f)) if key in total else f
            return total
        return None


def _product(left: Terms | None, right: Terms | None) -> Terms | None:
    if left is None or right is None or len(left) * len(right) > MAX_TERMS:
        return None
    total: dict[Node, Node] = {}
    for k1, f1 in left.items():
        for k2, f2 in right.items():
            key, f = _times(k1, k2), _times(f1, f2)
            total[key] = make(Op.ADD, (total[key], f)) if key in total else f
    return total


def _times(a: Node, b: Node) -> Node:
    if a is _ONE:
        return b
    if b is _ONE:
        return a
    return make(Op.MUL, (a, b) if a.digest <= b.digest else (b, a))


def _scale(terms: Terms | None, change: Callable[[Node], Node]) -> Terms | None:
    return None if terms is None else {change(k): f for k, f in terms.items()}


def _map(terms: Terms | None, change: Callable[[Node], Node]) -> Terms | None:
    return None if terms is None else {k: change(f) for k, f in terms.items()}


def _sum_along(node: Node, axes: int) -> Node:
    """Sum where `node` is broadcast along the axes that it lacks."""
    present, missing = axes & node.axes, axes & ~node.axes
    if present:
        node = make(Op.SUM, (node,), (present,))
    return make(Op.MUL, (node, size(missing))) if missing else node


def _small(op: Op, a: Node, axes: int) -> Node:
    """A reduction of a small tensor as sums; the variance is centred first."""
    axes &= a.axes
    if not axes:
        return const(0.0) if op is Op.VAR else a
    if op is Op.SUM:
        return make(Op.SUM, (a,), (axes,))
    mean = make(Op.DIV, (make(Op.SUM, (a,), (axes,)), size(axes)))
    if op is Op.MEAN:
        return mean
    centred = make(Op.SQUARE, (make(Op.SUB, (a, mean)),))
    return make(Op.DIV, (make(Op.SUM, (centred,), (axes,)), size(axes)))


def bounded_away_from_zero(node: Node) -> bool:
    """True for √(a + ε) with a a mean of squares or a variance, products of such, and the larger of such and
    anything: never near 0, 0 or infinite unless something infinite is inside."""
    if node.op is Op.ROOT and node.args[0].op is Op.ADD:
        return any(a.op is Op.CONST and a.value > 0 for a in node.args[0].args)
    if node.op is Op.MUL:
        return all(bounded_away_from_zero(a) for a in node.args)
    if node.op is Op.MAX:
        return any(bounded_away_from_zero(a) for a in node.args)
    return node.op is Op.SIZE


def _moderate(node: Node) -> bool:
    """True for parameters, sizes, ordinary constants, 1/√(a + ε), and products of such."""
    if node.op is Op.CONST:
        return 1e-3 <= abs(node.value) <= 1e3
    if node.op is Op.DIV:
        return _moderate(node.args[0]) and bounded_away_from_zero(node.args[1])
    if node.op in (Op.MUL, Op.NEG):
        return all(_moderate(a) for a in node.args)
    return node.op is Op.PARAM or node.op is Op.SIZE


def _joined(node: Node) -> Node:
    """(full · small) · small as full · (small · small): one product an element fewer."""
    if node.op is not Op.MUL or not is_full(node.axes):
        return node
    inner, k = sorted(node.args, key=lambda n: not is_full(n.axes))
    if inner.op is not Op.MUL or is_full(k.axes) or not _moderate(k):
        return node
    f, j = sorted(inner.args, key=lambda n: not is_full(n.axes))
    if is_full(j.axes | k.axes) or not _moderate(j):
        return node
    return make(Op.MUL, (f, make(Op.MUL, (j, k))))


def _strengthen(node: Node) -> Node:
    """A full tensor over a small one: one division a row instead of one an element."""
    if (
        node.op is Op.DIV
        and is_full(node.axes)
        and not is_full(node.args[1].axes)
        and bounded_away_from_zero(node.args[1])
    ):
        return make(Op.MUL, (node.args[0], make(Op.DIV, (_ONE, node.args[1]))))
    return node
