"""Triton text for swept plans: one program walks a slab that is too long for registers, tile by tile.

The parts are those of a resident plan. Each walk loads the full operands that it needs, adds to accumulators in
registers, and the last one stores; small values are computed between walks. A variance is (mean, sum of squared
deviations) of each tile, two passes over registers, joined by Chan's formula.
"""

from __future__ import annotations

from normforge.codegen.plan import Sweep
from normforge.codegen.text import Lines
from normforge.codegen.triton_names import extents
from normforge.codegen.triton_resident import ResidentText
from normforge.codegen.triton_slabs import along_loop
from normforge.ir.node import Node, toposort
from normforge.ir.ops import Op
from normforge.ir.types import B, G, axes_name


class SweptText(ResidentText):
    """Emits the body of the kernel of a swept plan."""

    def emit(self, out: Lines) -> None:
        """Write it."""
        st, kernel = self.storage, self.kernel
        self._place(out)
        st.define_sizes(out, (n for n in toposort(kernel.roots, self._operands) if n not in kernel.reads))
        for sweep in st.plan.sweeps:
            self._sweep(out, sweep)
        for node in kernel.values:
            self._need(out, node)
            out(*st.stores(node, self._value(node), self._writer(node), beside=self._beside(node)))

    def _sweep(self, out: Lines, sweep: Sweep) -> None:
        st = self.storage
        names = [name for name, _ in st.plan.outputs]
        chunked = self.kernel.partials if self.walk.name != "channels" else ()  # else a row is one program's
        sums = [n for n in sweep.sums if n not in chunked]
        roots = [*(n.args[0] for n in sweep.sums), *(n for _, n in sweep.stores)]
        for node in toposort(roots, self._operands):
            if not along_loop(self.walk, node.axes):
                self._values(out, [node])
        pairs = {(n.args, n.attr) for n in sums if n.op is Op.VAR}
        added = [n for n in sums if n.op is Op.VAR or (n.args, n.attr) not in pairs]
        counts = dict.fromkeys(self._tile_total(n)[0] for n in added if n.op is Op.VAR)
        seen = {text: f"seen{i}" for i, text in enumerate(counts)}
        for node in added:
            names_of = [f"mean_{st.var(node)}", f"m2_{st.var(node)}"] if node.op is Op.VAR else [st.var(node)]
            out(*(f"{name} = tl.zeros({self._shape(node)}, tl.float32)" for name in names_of))
        for text, name in seen.items():
            shape = next(self._shape(n) for n in added if n.op is Op.VAR and self._tile_total(n)[0] == text)
            out(f"{name} = tl.zeros({shape}, tl.float32)  # elements")
        before = set(self.done)
        with out.block(self._loop(), ""):
            self._tile(out)
            self._values(out, sweep.loads)
            for node in added:
                self._need(out, node.args[0])
                if node.op is not Op.VAR:
                    out(f"{st.var(node)} += {self._tile_total(node)[0].format(self._value(node.args[0]))}")
            for text, name in seen.items():
                out(f"count = {text.format('1.0')}")
                for node in added:
                    if node.op is Op.VAR and self._tile_total(node)[0] == text:
                        self._add_pair(out, node, text, name)
                out(f"{name} += count")
            for node in chunked:
                if node in sweep.sums:
                    self._need(out, node.args[0])
                    self._partial(out, node)
            for label, node in sweep.stores:
                self._need(out, node)
                out(f"tl.store({st.outputs[names.index(label)]} + at, {self._value(node)}, mask=inside)")
        self.done = before | set(sums)
        for node in added:
            self._close(out, node, seen, [n for n in sums if n.op is Op.MEAN and n.args == node.args])

    # -- indices

    def _lanes(self) -> tuple[str, ...]:
        a, e = super()._lanes()
        return (a,) if self.walk.name == "positions" else (e,)

    def _number(self, out: Lines) -> None:
        out("slab = pid")

    def _chunk_in(self) -> str:
        return "a < each"

    def _loop(self) -> str:
        channels = "K" if self.walk.slab & G else "C"
        if self.walk.name == "positions":
            return f"for e0 in range(0, {channels}, BLOCK_E):"
        length = {"rows": "each", "columns": channels, "channels": "S" if self.walk.slab & B else "N * S"}
        return f"for a0 in range(0, {length[self.walk.name]}, BLOCK_A):"

    def _tile(self, out: Lines) -> None:
        if self.walk.name == "positions":
            out("e = e0 + tl.arange(0, BLOCK_E)[None, :]  # [1, BLOCK_E]")
        else:
            out("a = a0 + tl.arange(0, BLOCK_A)[:, None]  # [BLOCK_A, 1]")
        super()._tile(out)

    def _writer(self, node: Node) -> str:
        return "slab_in" if self.walk.name == "rows" else super()._writer(node)

    def _beside(self, node: Node) -> str:
        return "" if node.axes else " + (pid * 0).to(tl.int64)"

    # -- sums

    def _slab_total(self, text: str) -> str:
        return f"tl.sum({text}, axis=0, keep_dims=True)"

    def _shape(self, node: Node) -> str:
        """Of an accumulator: what a sum keeps along the axis of the tile that is not walked."""
        operand = node.args[0]
        kept = self.walk.slab | (operand.axes & ~node.reduced)
        along_a, along_e = self._varies(operand.axes)
        over = node.reduced & operand.axes
        if self.walk.name == "positions":
            return "[BLOCK_A, 1]" if along_a else "[1, 1]"
        plain = over & self.walk.on_e and not kept & self.walk.on_e
        return "[1, BLOCK_E]" if along_e and not plain else "[1, 1]"

    def _add_pair(self, out: Lines, node: Node, text: str, seen: str) -> None:
        v, value = self.storage.var(node), self._value(node.args[0])
        out(
            f"tile_mean = {text.format(value)} / tl.maximum(count, 1.0)",
            f"delta = {value} - tile_mean",
            f"tile_m2 = {text.format('delta * delta')}",
            f"mean_{v}, m2_{v} = chan(mean_{v}, m2_{v}, {seen}, tile_mean, tile_m2, count)",
        )

    def _close(self, out: Lines, node: Node, seen: dict[str, str], means: list[Node]) -> None:
        """The sum of the slab from the accumulator; channels of a group are joined here."""
        st, v = self.storage, self.storage.var(node)
        text, key = self._tile_total(node)
        over = node.reduced & node.args[0].axes
        comment = f"  # {axes_name(node.axes)}"
        if node.op is not Op.VAR:
            total = v if key is None else f"sum_equal({v}, {key}, 1)"
            if node.op is Op.MEAN:
                total += f" / ({' * '.join(extents(over))}).to(tl.float32)"
            if total != v:
                out(f"{v} = {total}{comment}")
            if node in self.kernel.partials:
                out(f"tl.store({st.partial(node)} + (n * C + c), {v}, mask=e_in)")
            return
        mean, m2, elements = f"mean_{v}", f"m2_{v}", seen[text]
        if key is not None:
            out(
                f"counted = {elements} > 0",
                f"elements = sum_equal({elements}, {key}, 1)",
                f"channel_mean = {mean}",
                f"{mean} = sum_equal(tl.where(counted, channel_mean * {elements}, 0.0), {key}, 1) / elements",
                f"delta = channel_mean - {mean}",
                f"{m2} = sum_equal(tl.where(counted, {m2} + delta * delta * {elements}, 0.0), {key}, 1)",
            )
            elements = "elements"
        out(*(f"{st.var(n)} = {mean}  # {axes_name(n.axes)}" for n in means))
        out(f"{v} = {m2} / {elements}{comment}")
