"""Triton text for small values: programs over blocks of points of an index space.

A program owns BLOCK_P points and walks what is summed away in blocks of BLOCK_R: tiles [BLOCK_P, BLOCK_R]. Rows
are merged from the partials of their chunks where they are needed, BLOCK_Q chunks at a time. Each thread adds up what
it meets on a walk, and threads are joined after it, so that the loads of several rounds can be under way at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from normforge.codegen.plan import is_sweep_sum
from normforge.codegen.text import Lines
from normforge.codegen.triton.names import Storage, below, extents
from normforge.codegen.triton.schedule import SmallKernel, is_merge, is_small_sum, sum_operand
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import B, C, G, K, S, axes_name, reduced_name


@dataclass
class Nest:
    """What is computed in one walk over `axes` beyond the points: sums, and stores of larger values."""

    axes: int
    sums: list[Node] = field(default_factory=list)
    stores: list[Node] = field(default_factory=list)


@dataclass
class SmallText:
    """Emits one kernel of small values."""

    storage: Storage
    kernel: SmallKernel

    def __post_init__(self) -> None:
        self.done: set[Node] = set()  # values at the points that are there

    def emit(self, out: Lines) -> None:
        """The body of the kernel."""
        space = self.kernel.space
        out("N, S = N.to(tl.int64), S.to(tl.int64)", "C = G * K")
        points = " * ".join(extents(space)) or "1"
        out(f"points = {points}")
        out("p = tl.cast(pid, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]  # [BLOCK_P, 1]")
        out("p_in = p < points")
        self._decode(out, space, "p", 0)
        if space & K and self._uses_group():
            out("g = c // K")
        self.storage.define_sizes(out, (n for n in self._all() if n not in self.kernel.reads))
        for nest in self._nests():
            self._emit_nest(out, nest)
        stores = [n for n in self.kernel.stores if n.axes == space]
        copies = [n for _, n in self.kernel.copies]
        self._values(out, [*stores, *copies], "p_in")
        for node in stores:
            self._store(out, node, "p_in")
        for i, node in self.kernel.copies:
            value = self.storage.constant(node) or self.storage.var(node)
            out(f"tl.store({self.storage.outputs[i]} + p, {value}, mask=p_in)")

    def _all(self) -> list[Node]:
        """Everything that the kernel evaluates, its sums and their operands included."""
        roots = [*self.kernel.stores, *(n for _, n in self.kernel.copies)]
        return below(self.storage, [*roots, *self.kernel.sums, *map(sum_operand, self.kernel.sums)], self.kernel.reads)

    def _uses_group(self) -> bool:
        return any(n.axes & G and not n.axes & K for n in self._all())

    def _decode(self, out: Lines, axes: int, index: str, outside: int) -> None:
        """n, c or g, s from a flat index over `axes`, whose order is b, c, s; `outside` are known already."""
        names = []
        if axes & B:
            names.append(("n", "N"))
        if axes & C == C:
            names.append(("c", "C"))
        elif axes & G:
            names.append(("g", "G"))
        elif axes & K:
            names.append(("k", "K"))
        if axes & S:
            names.append(("s", "S"))
        rest = index
        for name, extent in reversed(names):
            last = name == names[0][0]
            out(f"{name} = {rest}" if last else f"{name} = {rest} % {extent}")
            rest = f"{rest} // {extent}"
        if axes & K and not axes & G and outside & G:
            out("c = g * K + k")

    # -- nests

    def _nests(self) -> list[Nest]:
        """Walks in an order that respects operands: sums that need others of this kernel come after them."""
        level: dict[Node, int] = {}
        nests: dict[tuple[int, int], Nest] = {}
        for node in self.kernel.sums:
            level[node] = self._level(sum_operand(node), level)
            axes = sum_operand(node).axes
            nests.setdefault((level[node], axes), Nest(axes)).sums.append(node)
        for node in self.kernel.stores:
            if node.axes != self.kernel.space:
                key = (self._level(node, level), node.axes)
                nests.setdefault(key, Nest(node.axes)).stores.append(node)
        return [nests[key] for key in sorted(nests)]

    def _level(self, node: Node, level: dict[Node, int]) -> int:
        found = below(self.storage, [node], self.kernel.reads)
        return max((level[n] + 1 for n in found if n in level), default=0)

    def _emit_nest(self, out: Lines, nest: Nest) -> None:
        st, space = self.storage, self.kernel.space
        roots = [*map(sum_operand, nest.sums), *nest.stores]
        nodes = below(st, roots, self.kernel.reads)
        self._values(out, [n for n in nodes if not n.axes & ~space], "p_in")
        for node in nest.sums:
            out(f"{st.var(node)} = tl.zeros([BLOCK_P, BLOCK_R], tl.float32)")
        walked = nest.axes & ~space
        length = " * ".join(extents(walked)) if walked != C else "C"
        with out.block(f"for r0 in range(0, {length}, BLOCK_R):  # {reduced_name(walked)}", ""):
            out("r = (r0 + tl.arange(0, BLOCK_R)).to(tl.int64)[None, :]  # [1, BLOCK_R]")
            out(f"inside = p_in & (r < {length})")
            self._decode(out, walked, "r", space)
            if walked & G and walked & K and any(n.axes & G and not n.axes & K for n in nodes):
                out("g = c // K")
            here = set(self.done)
            self._emit_values(out, nodes, "inside", here)
            for node in nest.sums:
                value = st.constant(sum_operand(node)) or st.var(sum_operand(node))
                out(f"{st.var(node)} += tl.where(inside, {value}, 0.0)")
            for node in nest.stores:
                self._store(out, node, "inside")
        for node in nest.sums:
            out(f"{st.var(node)} = tl.sum({st.var(node)}, axis=1, keep_dims=True)  # {axes_name(node.axes)}")
            self.done.add(node)

    # -- values

    def _values(self, out: Lines, roots: Iterable[Node], mask: str) -> None:
        """Evaluate at the points what is not there yet."""
        self._emit_values(out, below(self.storage, roots, self.kernel.reads), mask, self.done)

    def _emit_values(self, out: Lines, nodes: Iterable[Node], mask: str, done: set[Node]) -> None:
        new = [n for n in nodes if n not in done]
        done.update(new)
        merges = [n for n in new if is_merge(n) and n not in self.kernel.reads]
        self._merge(out, merges, mask)
        for node in new:
            if node in self.kernel.reads or node.op in (Op.INPUT, Op.PARAM):
                self.storage.fetch(out, node, mask if node.axes else "")
            elif not is_sweep_sum(node) and not is_small_sum(node):
                self.storage.assign(out, node)

    def _store(self, out: Lines, node: Node, mask: str) -> None:
        out(*self.storage.stores(node, self.storage.var(node), mask, beside=self._beside()))

    def _beside(self) -> str:
        """Where the space is one point, addresses still need the shape of the tile; p is 0 there."""
        return "" if self.kernel.space else " + p"

    def _merge(self, out: Lines, merges: list[Node], mask: str) -> None:
        """Values of rows from the partials of their chunks."""
        st = self.storage
        variances = [n for n in merges if n.op is Op.VAR]
        for sweep in sorted({st.sweep_of[n] for n in merges}):
            mine = [n for n in merges if st.sweep_of[n] == sweep]
            q, length = f"Q{sweep}", f"L{sweep}"
            channel = "c" if any(n.axes & K for n in mine) else "g * K" if any(n.axes & G for n in mine) else "0"
            batch = "n" if any(n.axes & B for n in mine) else "0"
            out(f"row{sweep} = {batch} * {q} * C + {channel}{self._beside()}  # first chunk of the row")
            sums = [n for n in mine if n.op is Op.SUM or (n.op is Op.MEAN and not self._paired(n))]
            if sums:
                self._merge_sums(out, sums, sweep, mask)
            for node in mine:
                args = f"row{sweep}, {mask}, C, S, {length}, {q}, BLOCK_Q)  # {axes_name(node.axes)}"
                if node.op is Op.MEAN and node not in sums:
                    out(f"{st.var(node)} = merge_mean({st.partial(node, 'm')}, {args}")
            for node in variances:
                if st.sweep_of[node] != sweep:
                    continue
                args = f"row{sweep}, {mask}, C, S, {length}, {q}, BLOCK_Q)  # {axes_name(node.axes)}"
                mean = next((st.var(n) for n in mine if n.op is Op.MEAN and n.args == node.args), "")
                if not mean:
                    mean = f"mean_{st.var(node)}"
                    out(f"{mean} = merge_mean({st.partial(node, 'm')}, {args}")
                out(f"{st.var(node)} = merge_var({st.partial(node, 'm')}, {st.partial(node, 'q')}, {mean}, {args}")

    def _merge_sums(self, out: Lines, sums: list[Node], sweep: int, mask: str) -> None:
        st = self.storage
        shape = "[BLOCK_P, BLOCK_R, BLOCK_Q]" if mask == "inside" else "[BLOCK_P, 1, BLOCK_Q]"
        for node in sums:
            out(f"{st.var(node)} = tl.zeros({shape}, tl.float32)")
        with out.block(f"for q0 in range(0, Q{sweep}, BLOCK_Q):", ""):
            out(
                "q = (q0 + tl.arange(0, BLOCK_Q)).to(tl.int64)[None, None, :]",
                f"at_chunk = row{sweep}[:, :, None] + q * C",
                f"here = {mask}[:, :, None] & (q < Q{sweep})",
            )
            for node in sums:
                out(f"{st.var(node)} += tl.load({st.partial(node)} + at_chunk, mask=here, other=0.0)")
        for node in sums:
            share = " / S.to(tl.float32)" if node.op is Op.MEAN else ""
            out(f"{st.var(node)} = tl.sum({st.var(node)}, axis=2){share}  # {axes_name(node.axes)}")

    def _paired(self, node: Node) -> bool:
        """True for a mean that comes with a variance of the same rows."""
        sums = self.storage.plan.sweeps[self.storage.sweep_of[node]].sums
        return any(n.op is Op.VAR and n.args == node.args and n.attr == node.attr for n in sums)
