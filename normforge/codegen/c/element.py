"""C for the full values of a sweep at one element: vectors of W, or the `some` elements of a tail."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from normforge.codegen.c.function import Function
from normforge.codegen.c.names import CStorage, is_stored
from normforge.codegen.c.values import below, counts_all
from normforge.codegen.index import element
from normforge.codegen.plan import is_full_input
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import C, G, K, S


@dataclass(frozen=True)
class ElementEmitter:
    """Emits values at one element of a sweep.

    Attributes:
        out: where to.
        kept: values that are read from a buffer instead of being computed.
        fused: products that are rounded together with a sum.
        fetched: full inputs that come from memory here: what is a little ahead of the element is asked for.
    """

    out: Function
    kept: tuple[Node, ...]
    fused: frozenset[Node]
    fetched: frozenset[Node] = frozenset()

    @property
    def storage(self) -> CStorage:
        """Where values live."""
        return self.out.storage

    @property
    def inner(self) -> int:
        """The axis that the inner loop walks: S or C."""
        return self.storage.inner

    @property
    def step(self) -> str:
        """The index that the inner loop advances."""
        return "s" if self.inner == S else "c"

    def computing(self, nodes: Iterable[Node]) -> ElementEmitter:
        """The same, where these kept values are not in the buffer yet."""
        absent = set(nodes)
        return replace(self, kept=tuple(n for n in self.kept if n not in absent))

    def below(self, roots: Iterable[Node]) -> list[Node]:
        """Everything that the roots need at an element, kept values as they are."""
        return below(self.storage.plan, roots, self.kept)

    def hoisted(self, roots: Iterable[Node]) -> None:
        """Emit the small values that do not change along the inner axis."""
        out = self.out
        for node in self.below(roots):
            if is_full_input(node) or not is_stored(node) or self.varies(node):
                continue
            if out.leaf(node) is None:
                out(f"const V {self.storage.var(node)} = {out.call('set', self.stored(node))};")

    def values(self, roots: Iterable[Node], *, tail: bool) -> None:
        """Emit the full values below `roots` as vectors: W elements from the index on, or `some` in a tail."""
        out, st = self.out, self.storage
        for node in self.below(roots):
            v = st.var(node)
            if is_full_input(node):
                place = f"{out.array(st.array(node))} + at + {self.step}"
                if node in self.fetched and not tail:
                    out(f"{out.call('FETCH', place, 'ahead')};")
                got = out.call("GET_N", place, "some") if tail else out.call("GET", place)
                out(f"const V {v} = {got};")
            elif self.varies(node):
                self._load_varying(node, tail=tail)
            elif node in self.kept:
                out(f"const V {v} = {out.load(f'k{v} + {self.step} - first', tail=tail)};")
            elif not is_stored(node) and node not in self.fused:
                out(f"const V {v} = {self._expression(node)};")

    # -- stored values

    def varies(self, node: Node) -> bool:
        """True for a stored value that changes along the inner axis."""
        return is_stored(node) and not is_full_input(node) and bool(node.axes & self.inner)

    def stored(self, node: Node) -> str:
        """A stored value at n, c, s."""
        st = self.storage
        if st.is_expanded(node):
            return self.out.item(st.expanded(node), element(node.axes | K))
        return self.out.item(st.array(node), element(node.axes, by_channel=self._in_steps(node)))

    def _in_steps(self, node: Node) -> bool:
        """True for a value by group and position where the inner loop walks channels."""
        return self.inner == C and bool(node.axes & S and node.axes & G and not node.axes & K)

    def _load_varying(self, node: Node, *, tail: bool) -> None:
        """A stored value that changes along the inner axis; one by group does so in steps."""
        out, v, text = self.out, self.storage.var(node), self.stored(node)
        if not self._in_steps(node):
            out(f"const V {v} = {out.load(f'&{text}', tail=tail)};")
            return
        out(f"T b{v}[W];")
        with out.block("for (int64_t l = 0, from_c = c; l < W; ++l) {"):
            out("const int64_t c = MIN2(from_c + l, last - 1);", f"b{v}[l] = {text};")
        out(f"const V {v} = {out.call('load', f'b{v}')};")

    # -- operations

    def value(self, node: Node) -> str:
        """An operand, as the text of its value at the element."""
        leaf = self.out.leaf(node)
        return self.out.call("set", leaf) if leaf else self.storage.var(node)

    def _expression(self, node: Node) -> str:
        """The text of an operation on the values of its operands."""
        out = self.out
        if node.op in (Op.ADD, Op.SUB):
            a, b = node.args
            minus = "-" if node.op is Op.SUB else ""
            if b in self.fused:
                return out.call("fma_", f"{minus}{self._factors(b)}", self.value(a))
            if a in self.fused:
                return out.call("fma_", self._factors(a), f"{minus}{self.value(b)}")
        if node.op in (Op.MAX, Op.MIN):
            a, b = sorted(node.args, key=lambda n: n.op is Op.CONST)
            if b.op is Op.CONST and not math.isnan(b.value):  # only a can be NaN: one instruction
                return out.call(f"{node.op}_or", self.value(a), self.value(b))
        return out.vector(node.op, *map(self.value, node.args))

    def _factors(self, product: Node) -> str:
        a, b = (product.args * 2)[:2]
        return f"{self.value(a)}, {self.value(b)}"

    # -- sums

    def plus(self, total: str, node: Node, *, tail: bool) -> str:
        """`total` and the operand of a sum."""
        out, a = self.out, node.args[0]
        if a in self.fused:
            text = out.call("fma_", self._factors(a), total)
            return out.call("either", "here", text, total) if tail else text
        value = self.once(node, self.value(a))
        return f"{total} + {out.call('bits_if', 'here', value) if tail else value}"

    def add(self, target: str, node: Node, *, tail: bool) -> None:
        """Add the operand of a sum over the middle axis to an array, in place."""
        out, v = self.out, f"o{self.storage.index[node]}"
        out(f"const V {v} = {out.load(f'&{target}', tail=tail)};")
        out.store(f"&{target}", self.plus(v, node, tail=False), tail=tail)

    def once(self, node: Node, text: str) -> str:
        """A sum over channels of what is the same for all channels of a group takes each group once."""
        return text if counts_all(node) else self.out.call("bits_if", "once", text)
