"""C for the full values of a sweep at one element: vectors of W, or the `some` elements of a tail.

What is kept in a buffer between loops, and which products are rounded together with a sum, is decided here too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from normforge.codegen.c.names import VECTOR_CODE, Storage, address, is_stored
from normforge.codegen.plan import Plan, Sweep, is_full_input, is_sweep_sum
from normforge.codegen.text import Lines
from normforge.ir.node import Node, preorder
from normforge.ir.ops import LIBRARY, Op
from normforge.ir.types import B, C, G, K, S
from normforge.passes.factor import is_full

# What costs more than a store and a load: computed once a slab, kept in a small buffer from sweep to sweep.
DEAR = LIBRARY
KEEP = 1 << 15  # elements of such a buffer, on the stack of each thread: 128 KiB
MAX_KEPT = 4  # buffers: a level-2 cache, and the stack of a small thread, hold no more
TILE = 4096  # elements of rows between two visits of the same data: 16 KiB, half of a level-1 cache


def kept(plan: Plan) -> list[Node]:
    """The full values that are dear to compute and read by two loops: two sweeps over a slab, or mean and deviations.

    Of all that both loops compute, only what something else reads is kept: dy · silu'(a) rather than the sigmoid in
    it, unless that takes more buffers. A slab that crosses samples is too large for a buffer.
    """
    columns = [n for s in plan.sweeps for n in s.sums if not n.reduced & S]
    variances = any(n.op is Op.VAR for s in plan.sweeps for n in s.sums)
    if plan.layout == "nhwc" and (not plan.slab & S or variances or any(n.axes & G for n in columns)):
        return []  # a slab of whole positions is too large, or a position is walked more than once
    pairs = [[n.args[0] for n in s.sums if n.op is Op.VAR and n.reduced & S] for s in plan.sweeps]
    again = [below(plan, roots) for roots in pairs if roots]
    first = [below(plan, [n.args[0] for n in s.sums] + [n for _, n in s.stores]) for s in plan.sweeps]
    walks = [*(first if plan.slab & B else again), *again]
    seen = Counter(n for walk in walks for n in walk if is_full(n.axes) and not is_full_input(n))
    costly: set[Node] = set()
    for node in plan.graph.nodes:
        if seen[node] > 1 and (node.op in DEAR or any(a in costly for a in node.args)):
            costly.add(node)
    read = {a for walk in walks for n in walk if n not in costly for a in n.args}
    read |= {n.args[0] for s in plan.sweeps for n in s.sums} | {n for s in plan.sweeps for _, n in s.stores}
    last = [n for n in plan.graph.nodes if n in costly and n in read]
    dear = [n for n in plan.graph.nodes if n in costly and n.op in DEAR]
    return (last if len(last) <= len(dear) else dear)[:MAX_KEPT]


def below(plan: Plan, roots: Iterable[Node], stop: Iterable[Node] = ()) -> list[Node]:
    """Everything that the roots need at an element: full values down to full inputs, stored values and `stop`."""
    ends = set(stop)
    inside = set(preorder(roots, lambda n: () if is_full_input(n) or is_stored(n) or n in ends else n.args))
    return [n for n in plan.graph.nodes if n in inside]


def fused(plan: Plan) -> set[Node]:
    """The products that are rounded together with the one sum that they are added to.

    Written in the source, so that vector loops and what is left over agree. Not where x·x − mean(x·x) of one element
    would no longer be 0: never a product that is used twice, nor one that meets a moment, which may be its own.
    """
    uses = Counter(a for node in plan.graph.nodes for a in node.args)
    uses.update(node for _, node in plan.outputs)

    def free(node: Node) -> bool:
        return node.op in (Op.MUL, Op.SQUARE) and is_full(node.axes) and uses[node] == 1

    def meets_moment(node: Node) -> bool:
        return any(not is_full(a.axes) and a.op not in (Op.PARAM, Op.CONST) for a in node.args)

    found: set[Node] = set()
    for node in plan.graph.nodes:
        if (node.op in (Op.ADD, Op.SUB) and not meets_moment(node)) or (
            node.op is Op.SUM and is_sweep_sum(node) and counts_all(node)
        ):
            found |= set(list(filter(free, reversed(node.args)))[:1])
    return found


def counts_all(node: Node) -> bool:
    """False for a sum over channels of what is the same for all channels of a group: it takes each group once."""
    return bool(node.reduced & S or node.args[0].axes & K)


def load(place: str, *, tail: bool) -> str:
    """A vector of the arithmetic type, or the `some` elements of a tail."""
    return f"load_n({place}, some)" if tail else f"load({place})"


def store(place: str, value: str, *, tail: bool) -> str:
    """The statement that stores such a vector."""
    return f"store_n({place}, {value}, some);" if tail else f"store({place}, {value});"


@dataclass
class ElementEmitter:
    """Emits values at one element of a sweep.

    Attributes:
        out: where to. storage: names. sweep: which.
        filling: the kept values that are being computed; all other kept ones are read.
    """

    out: Lines
    storage: Storage
    sweep: Sweep
    filling: list[Node] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.inner = S if self.storage.plan.layout == "nchw" else C
        self.kept = kept(self.storage.plan)
        self.fused = fused(self.storage.plan)

    def values(self, roots: Iterable[Node], *, tail: bool) -> None:
        """Emit the full values below `roots` as vectors: W elements from the index on, or `some` in a tail."""
        out, st = self.out, self.storage
        for node in self.below(roots):
            v = st.var(node)
            if is_full_input(node):
                place = f"{st.array(node)} + at + {self.step}"
                out(f"const V {v} = GET_N({place}, some);" if tail else f"const V {v} = GET({place});")
            elif self.varies(node):
                self._load_varying(node, tail=tail)
            elif node in self.kept and node not in self.filling:
                out(f"const V {v} = {load(f'k{v} + {self.step} - first', tail=tail)};")
            elif not is_stored(node) and node not in self.fused:
                out(f"const V {v} = {self._expression(node)};")

    def _load_varying(self, node: Node, *, tail: bool) -> None:
        """A stored value that changes along the inner axis; one by group does so in steps."""
        out, v, text = self.out, self.storage.var(node), self.stored(node)
        if "c / K" not in text:
            out(f"const V {v} = {load(f'&{text}', tail=tail)};")
            return
        out(f"T b{v}[W];")
        with out.block("for (int64_t l = 0, from_c = c; l < W; ++l) {"):
            out("const int64_t c = MIN2(from_c + l, last - 1);", f"b{v}[l] = {text};")
        out(f"const V {v} = load(b{v});")

    def _expression(self, node: Node) -> str:
        """The text of an operation on the values of its operands."""
        if node.op in (Op.ADD, Op.SUB):
            a, b = node.args
            minus = "-" if node.op is Op.SUB else ""
            if b in self.fused:
                return f"fma_({minus}{self._factors(b)}, {self.value(a)})"
            if a in self.fused:
                return f"fma_({self._factors(a)}, {minus}{self.value(b)})"
        if node.op in (Op.MAX, Op.MIN):
            a, b = sorted(node.args, key=lambda n: n.op is Op.CONST)
            if b.op is Op.CONST and not math.isnan(b.value):  # only a can be NaN: one instruction
                return f"{node.op}_or({self.value(a)}, {self.value(b)})"
        return VECTOR_CODE[node.op].format(*(self.value(a) for a in node.args))

    def _factors(self, product: Node) -> str:
        a, b = (product.args * 2)[:2]
        return f"{self.value(a)}, {self.value(b)}"

    def plus(self, total: str, node: Node, *, tail: bool) -> str:
        """`total` and the operand of a sum."""
        a = node.args[0]
        if a in self.fused:
            text = f"fma_({self._factors(a)}, {total})"
            return f"either(here, {text}, {total})" if tail else text
        value = self.once(node, self.value(a))
        return f"{total} + bits_if(here, {value})" if tail else f"{total} + {value}"

    def add(self, target: str, node: Node, *, tail: bool) -> None:
        """Add the operand of a sum over the middle axis to an array, in place."""
        v = f"o{self.storage.index[node]}"
        self.out(f"const V {v} = {load(f'&{target}', tail=tail)};")
        self.out(store(f"&{target}", self.plus(v, node, tail=False), tail=tail))

    def hoisted(self, roots: Iterable[Node]) -> None:
        """Emit the small values that do not change along the inner axis."""
        for node in self.below(roots):
            if is_full_input(node) or not is_stored(node) or self.varies(node):
                continue
            if self.storage.leaf(node) is None:
                self.out(f"const V {self.storage.var(node)} = set({self.stored(node)});")

    def below(self, roots: Iterable[Node]) -> list[Node]:
        """Everything that the roots need at an element, kept values as they are."""
        return below(self.storage.plan, roots, [n for n in self.kept if n not in self.filling])

    def varies(self, node: Node) -> bool:
        """True for a stored value that changes along the inner axis."""
        return is_stored(node) and not is_full_input(node) and bool(node.axes & self.inner)

    def stored(self, node: Node) -> str:
        """A stored value at n, c, s."""
        if self.storage.is_expanded(node):
            return f"{self.storage.expanded(node)}[{address(node.axes | K)}]"
        if self.inner == C and node.axes & S and node.axes & G and not node.axes & K:
            return f"{self.storage.array(node)}[{address(node.axes).replace('g', '(c / K)')}]"
        return self.storage.load(node)

    @property
    def step(self) -> str:
        """The index that the inner loop advances."""
        return "s" if self.inner == S else "c"

    def value(self, node: Node) -> str:
        """An operand, as the text of its value at the element."""
        leaf = self.storage.leaf(node)
        return f"set({leaf})" if leaf else self.storage.var(node)

    def once(self, node: Node, text: str) -> str:
        """A sum over channels of what is the same for all channels of a group takes each group once."""
        return text if counts_all(node) else f"bits_if(once, {text})"
