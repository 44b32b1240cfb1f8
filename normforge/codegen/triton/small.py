"""Triton text for small values: programs over blocks of points of an index space.

A program owns BLOCK_P points and walks what is summed away in blocks of BLOCK_R: tiles [BLOCK_P, BLOCK_R]. Rows
are merged from the partials of their chunks where they are needed, BLOCK_Q chunks at a time. Each thread adds up what
it meets on a walk, and threads are joined after it, so that the loads of several rounds can be under way at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from normforge.codegen.index import chunk, extents
from normforge.codegen.plan import is_sweep_sum
from normforge.codegen.stage import Stage
from normforge.codegen.triton.kernels import Nest, SmallKernel, is_merge, is_small_sum, sum_operand
from normforge.codegen.triton.names import TritonStorage, below, in_order
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import B, C, G, K, S, axes_name, reduced_name


@dataclass
class SmallText:
    """Emits one kernel of small values."""

    storage: TritonStorage
    kernel: SmallKernel

    def __post_init__(self) -> None:
        self.done: set[Node] = set()  # values at the points that are there
        self.needed = in_order(self.storage, self.kernel.needed)

    def emit(self, out: Stage) -> None:
        """The body of the kernel."""
        space = self.kernel.space
        out("N, S = N.to(tl.int64), S.to(tl.int64)", "C = G * K")
        block = out.constexpr("BLOCK_P")
        out(f"points = {out.product(extents(space))}")
        out(f"p = tl.cast(pid, tl.int64) * {block} + tl.arange(0, {block})[:, None]  # [BLOCK_P, 1]")
        out("p_in = p < points")
        self._decode(out, space, "p", 0)
        if space & K and self._uses_group():
            out("g = c // K")
        self.storage.define_sizes(out, (n for n in self.needed if n not in self.kernel.reads))
        for nest in self.kernel.nests:
            self._emit_nest(out, nest)
        stores = [n for n in self.kernel.stores if n.axes == space]
        copies = [n for _, n in self.kernel.copies]
        self._values(out, [*stores, *copies], "p_in")
        for node in stores:
            self._store(out, node, "p_in")
        for i, node in self.kernel.copies:
            value = self.storage.constant(node) or self.storage.var(node)
            out(f"tl.store({out.array(self.storage.outputs[i])} + p, {value}, mask=p_in)")

    def _uses_group(self) -> bool:
        return any(n.axes & G and not n.axes & K for n in self.needed)

    def _decode(self, out: Stage, axes: int, index: str, outside: int) -> None:
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

    def _emit_nest(self, out: Stage, nest: Nest) -> None:
        st, space = self.storage, self.kernel.space
        roots = [*map(sum_operand, nest.sums), *nest.stores]
        nodes = below(st, roots, self.kernel.reads)
        self._values(out, [n for n in nodes if not n.axes & ~space], "p_in")
        block = out.constexpr("BLOCK_R")
        for node in nest.sums:
            out(f"{st.var(node)} = tl.zeros([{out.constexpr('BLOCK_P')}, {block}], tl.float32)")
        walked = nest.axes & ~space
        length = out.product(extents(walked))
        with out.block(f"for r0 in range(0, {length}, {block}):  # {reduced_name(walked)}", ""):
            out(f"r = (r0 + tl.arange(0, {block})).to(tl.int64)[None, :]  # [1, BLOCK_R]")
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

    def _values(self, out: Stage, roots: Iterable[Node], mask: str) -> None:
        """Evaluate at the points what is not there yet."""
        self._emit_values(out, below(self.storage, roots, self.kernel.reads), mask, self.done)

    def _emit_values(self, out: Stage, nodes: Iterable[Node], mask: str, done: set[Node]) -> None:
        new = [n for n in nodes if n not in done]
        done.update(new)
        merges = [n for n in new if is_merge(n) and n not in self.kernel.reads]
        self._merge(out, merges, mask)
        for node in new:
            if node in self.kernel.reads or node.op in (Op.INPUT, Op.PARAM):
                self.storage.fetch(out, node, mask if node.axes else "")
            elif not is_sweep_sum(node) and not is_small_sum(node):
                self.storage.assign(out, node)

    def _store(self, out: Stage, node: Node, mask: str) -> None:
        self.storage.store(out, node, self.storage.var(node), mask, beside=self._beside())

    def _beside(self) -> str:
        """Where the space is one point, addresses still need the shape of the tile; p is 0 there."""
        return "" if self.kernel.space else " + p"

    def _merge(self, out: Stage, merges: list[Node], mask: str) -> None:
        """Values of rows from the partials of their chunks."""
        for sweep in sorted({self.storage.sweep_of[n] for n in merges}):
            self._merge_rows(out, [n for n in merges if self.storage.sweep_of[n] == sweep], sweep, mask)

    def _merge_rows(self, out: Stage, mine: list[Node], sweep: int, mask: str) -> None:
        """The same for those of one sweep."""
        st, q = self.storage, out.size(f"Q{sweep}")
        axes = 0
        for node in mine:
            axes |= node.axes
        sample, channel = "n" if axes & B else "0", chunk(axes).places[2]
        out(f"row{sweep} = {sample} * {q} * C + {channel}{self._beside()}  # first chunk of the row")
        sums = [n for n in mine if n.op is Op.SUM or (n.op is Op.MEAN and not self._paired(n))]
        if sums:
            self._merge_sums(out, sums, sweep, mask)

        def merged(function: str, *given: str) -> str:
            length, block = out.size(f"L{sweep}"), out.constexpr("BLOCK_Q")
            return out.call(function, *given, f"row{sweep}", mask, "C", "S", length, q, block)

        for node in mine:
            if node.op is Op.MEAN and node not in sums:
                mean = merged("merge_mean", out.array(st.partial(node, "m")))
                out(f"{st.var(node)} = {mean}  # {axes_name(node.axes)}")
        for node in (n for n in mine if n.op is Op.VAR):
            comment = f"  # {axes_name(node.axes)}"
            mean = next((st.var(n) for n in mine if n.op is Op.MEAN and n.args == node.args), "")
            means, squares = (out.array(st.partial(node, kind)) for kind in "mq")
            if not mean:
                mean = f"mean_{st.var(node)}"
                out(f"{mean} = {merged('merge_mean', means)}{comment}")
            out(f"{st.var(node)} = {merged('merge_var', means, squares, mean)}{comment}")

    def _merge_sums(self, out: Stage, sums: list[Node], sweep: int, mask: str) -> None:
        st, q = self.storage, out.size(f"Q{sweep}")
        points, block = out.constexpr("BLOCK_P"), out.constexpr("BLOCK_Q")
        rows = out.constexpr("BLOCK_R") if mask == "inside" else "1"
        for node in sums:
            out(f"{st.var(node)} = tl.zeros([{points}, {rows}, {block}], tl.float32)")
        with out.block(f"for q0 in range(0, {q}, {block}):", ""):
            out(
                f"q = (q0 + tl.arange(0, {block})).to(tl.int64)[None, None, :]",
                f"at_chunk = row{sweep}[:, :, None] + q * C",
                f"here = {mask}[:, :, None] & (q < {q})",
            )
            for node in sums:
                out(f"{st.var(node)} += tl.load({out.array(st.partial(node))} + at_chunk, mask=here, other=0.0)")
        for node in sums:
            share = " / S.to(tl.float32)" if node.op is Op.MEAN else ""
            out(f"{st.var(node)} = tl.sum({st.var(node)}, axis=2){share}  # {axes_name(node.axes)}")

    def _paired(self, node: Node) -> bool:
        """True for a mean that comes with a variance of the same rows."""
        sums = self.storage.plan.sweeps[self.storage.sweep_of[node]].sums
        return any(n.op is Op.VAR and n.args == node.args and n.attr == node.attr for n in sums)
