"""Triton text for swept plans: one program walks a slab that is too long for registers, tile by tile.

The parts are those of a resident plan. Each walk loads the full operands that it needs; every thread adds what it holds
of a tile to accumulators of its own, and threads exchange them once, when the walk is over. Small values are computed
between walks, and the last one stores. A variance is (mean, sum of squared deviations) of a thread's elements of each
tile, joined by Chan's formula.

A slab of rows over space is walked row by row, several at once where they are short: what belongs to a row is computed
once for it, and its partial sums are taken at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import nullcontext

from normforge.codegen.plan import Sweep
from normforge.codegen.text import Lines
from normforge.codegen.triton.names import address, extents
from normforge.codegen.triton.resident import STAGES, ResidentText
from normforge.codegen.triton.slabs import along_loop
from normforge.ir.node import Node, toposort
from normforge.ir.ops import Op
from normforge.ir.types import B, G, S, axes_name


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
        rows = self.walk.name == "rows"
        chunked = self.kernel.partials if self.walk.name != "channels" else ()  # else a row is one program's
        partials = [n for n in sweep.sums if n in chunked]
        sums = [n for n in sweep.sums if n not in chunked]
        roots = [*(n.args[0] for n in sweep.sums), *(n for _, n in sweep.stores)]
        needed = toposort(roots, self._operands)
        self._values(out, (n for n in needed if not along_loop(self.walk, n.axes)))
        pairs = {(n.args, n.attr) for n in sums if n.op is Op.VAR}
        added = [n for n in sums if n.op is Op.VAR or (n.args, n.attr) not in pairs]
        seen = {key: f"seen{i}" for i, key in enumerate(dict.fromkeys(map(self._like, self._variances(added))))}
        for node in added:
            v = st.var(node)
            names = [f"center_{v}", f"mean_{v}", f"m2_{v}"] if node.op is Op.VAR else [f"sum_{v}"]
            out(*(f"{name} = tl.zeros({self._shape(node)}, tl.float32)" for name in names))
        for (_, shape), name in seen.items():
            out(f"{name} = tl.zeros({shape}, tl.float32)  # elements")
        before = set(self.done)
        row_sums = [n for n in added if rows and not n.args[0].axes & S]
        with out.block(self._loop(), ""):
            if rows:
                self._row(out)
                self._values(out, (n for n in needed if not n.axes & S))
                out(*(f"sum_{st.var(n)} = tl.zeros({self._shape(n)}, tl.float32)" for n in partials))
                self._add(out, row_sums, seen)
            along = f"for s0 in tl.range(0, positions, BLOCK_E, num_stages={STAGES}):"
            with out.block(along, "") if rows else nullcontext():
                self._tile(out)
                self._values(out, sweep.loads)
                self._add(out, [n for n in added if n not in row_sums], seen)
                for node in partials:
                    self._need(out, node.args[0])
                    self._partial(out, node)
                names = [name for name, _ in st.plan.outputs]
                for label, node in sweep.stores:
                    self._need(out, node)
                    out(f"tl.store({st.outputs[names.index(label)]} + at, {self._value(node)}, mask=inside)")
            for i in range(0, len(partials) if rows else 0, 2):
                self._store_rows(out, partials[i : i + 2])
        self.done = before | set(sums)
        for node in added:
            self._close(out, node, seen, [n for n in sums if n.op is Op.MEAN and n.args == node.args])

    # -- indices

    def _lanes(self) -> tuple[str, ...]:
        a, e = super()._lanes()
        vector = "vector = tl.arange(0, BLOCK_E // VECTOR)[None, :] * VECTOR  # where each begins"
        if self.walk.name == "positions":
            return a, vector
        return e, vector

    def _slab_rows(self, out: Lines) -> None:
        slab = self.walk.slab
        out("positions = S.to(tl.int32)", "slab = pid", f"slab_in = slab < {' * '.join(extents(slab)) or '1'}")
        counts = [name.replace("N", "N.to(tl.int32)") for name in extents(self.walk.crossed & ~S)]
        out(f"rows = {' * '.join(counts) or '1'}  # of a slab")
        self._decode(out, slab, "slab")

    def _row(self, out: Lines) -> None:
        rows = self.walk.crossed & ~S
        out("a = a0 + tl.arange(0, BLOCK_A)[:, None]  # [BLOCK_A, 1]", "a_in = (a < rows) & slab_in")
        self._decode(out, rows, "a")
        if self.walk.slab & G and rows:
            out("c = g * K + k")

    def _loop(self) -> str:
        channels = "K" if self.walk.slab & G else "C"
        if self.walk.name == "rows":
            return "for a0 in range(0, rows, BLOCK_A):"
        if self.walk.name == "positions":
            return f"for e0 in tl.range(0, {channels}, BLOCK_E, num_stages={STAGES}):"
        length = channels if self.walk.name == "columns" else "S" if self.walk.slab & B else "(N * S)"
        length = length if self.walk.name == "columns" else f"{length}.to(tl.int32)"
        return f"for a0 in tl.range(0, {length}, BLOCK_A, num_stages={STAGES}):"

    def _tile(self, out: Lines) -> None:
        if self.walk.name == "rows":
            out("s = s0 + e  # [1, BLOCK_E]", "e_in = s < positions", "inside = a_in & e_in")
            out("vector_in = s0 + vector < positions")
            out("at = (n * C + c) * S + s  # [BLOCK_A, BLOCK_E]")
            return
        if self.walk.name == "positions":
            out("e = e0 + tl.arange(0, BLOCK_E)[None, :]  # [1, BLOCK_E]")
            out(f"vector_in = e0 + vector < {'K' if self.walk.slab & G else 'C'}")
        else:
            out("a = a0 + tl.arange(0, BLOCK_A)[:, None]  # [BLOCK_A, 1]")
        if self.walk.name == "channels":
            out("vector_in = vector < C")
        super()._tile(out)

    def _writer(self, node: Node) -> str:
        return "slab_in" if self.walk.name == "rows" else super()._writer(node)

    def _loaded(self, axes: int) -> str:
        if self.walk.name == "rows" and axes & S:
            return "inside" if axes & ~self.walk.slab & ~S else "e_in"
        return super()._loaded(axes)

    def _beside(self, node: Node) -> str:
        return "" if node.axes else " + (pid * 0).to(tl.int64)"

    def _once(self, missing: int, along_a: bool, along_e: bool) -> list[str]:
        return super()._once(missing & ~S if self.walk.name == "rows" else missing, along_a, along_e)

    # -- sums

    @staticmethod
    def _variances(nodes: Iterable[Node]) -> list[Node]:
        return [n for n in nodes if n.op is Op.VAR]

    def _key(self, node: Node) -> str | None:
        """What tells groups apart along BLOCK_E, where each has a sum of its own."""
        operand = node.args[0]
        stays = (self.walk.slab | (operand.axes & ~node.reduced)) & self.walk.on_e
        over = node.reduced & operand.axes & self.walk.on_e
        return f"{address(stays)}.to(tl.int32)" if over and stays else None

    def _vector(self, node: Node) -> str:
        """Neighbours along BLOCK_E that enter one sum."""
        axes = node.args[0].axes & self.walk.on_e
        return "VECTOR" if axes and node.reduced & axes and self._key(node) is None else "1"

    def _shape(self, node: Node) -> str:
        """Of an accumulator: what each thread keeps of a tile."""
        along_a, along_e = self._varies(node.args[0].axes)
        wide = "BLOCK_E" if self._vector(node) == "1" else "BLOCK_E // VECTOR"
        return f"[{'BLOCK_A' if along_a else 1}, {wide if along_e else 1}]"

    def _like(self, node: Node) -> tuple[str, str]:
        """What decides how many elements an accumulator has seen: the mask, and the shape of the count. Where nothing
        is added along BLOCK_E, what lies beyond its end is never stored, and need not be told apart."""
        mask, shape = self._counted(node), self._shape(node)
        if self._vector(node) == "1" and mask == "inside":
            return "a_in", "[BLOCK_A, 1]"
        return mask, shape

    def _add(self, out: Lines, nodes: list[Node], seen: dict[tuple[str, str], str]) -> None:
        st = self.storage
        for node in nodes:
            self._need(out, node.args[0])
            if node.op is not Op.VAR:
                text = f"tl.where({self._counted(node)}, {self._value(node.args[0])}, 0.0)"
                vector = self._vector(node)
                out(f"sum_{st.var(node)} += {text if vector == '1' else f'lanes({text}, {vector})'}")
        for like, name in seen.items():
            mine = [n for n in self._variances(nodes) if self._like(n) == like]
            if not mine:
                continue
            vector = self._vector(mine[0])
            out(f"count = {self._count(like[0], vector)}")
            for node in mine:
                v = st.var(node)
                parts = f"center_{v}, mean_{v}, m2_{v}"
                given = f"{name}, {self._value(node.args[0])}, {self._counted(node)}, count, {vector}"
                out(f"{parts} = add_pair({parts}, {given})")
            out(f"{name} += count")

    @staticmethod
    def _count(mask: str, vector: str) -> str:
        """Elements of a tile that an accumulator takes: rows begin and end between vectors."""
        if vector == "1":
            return f"tl.where({mask}, 1.0, 0.0)"
        alone = re.sub(r"\be_in\b", "vector_in", mask.replace("inside", "a_in & e_in"))
        if "==" in alone:  # one element of each group of channels
            return f"lanes(tl.where({mask}, 1.0, 0.0), {vector})"
        return f"tl.where({alone}, VECTOR * 1.0, 0.0)"

    def _total(self, node: Node) -> str:
        """The text of the sum of what all threads keep."""
        key = self._key(node)
        if key is not None:
            return f"sum_equal(tl.sum({{}}, axis=0, keep_dims=True), {key}, 1)"
        if self._vector(node) == "1":
            return "tl.sum({}, axis=0, keep_dims=True)"
        return "sum_row({}, 1)" if self.walk.name == "positions" else "sum_all({})"

    def _partial(self, out: Lines, node: Node) -> None:
        if self.walk.name != "rows":
            super()._partial(out, node)
            return
        value = f"tl.where(inside, {self._value(node.args[0])}, 0.0)"
        out(f"sum_{self.storage.var(node)} += lanes({value}, VECTOR)")

    def _store_rows(self, out: Lines, nodes: list[Node]) -> None:
        sums = [f"sum_{self.storage.var(n)}" for n in nodes]
        call = f"sum_row({sums[0]}, 1)" if len(sums) == 1 else f"sum_rows2({', '.join(sums)})"
        out(f"{', '.join(sums)} = {call}")
        for node, total in zip(nodes, sums, strict=True):
            self._store_partial(out, node, total)

    def _chunk(self) -> str:
        return "n * C + c" if self.walk.name == "rows" else super()._chunk()

    def _close(self, out: Lines, node: Node, seen: dict[tuple[str, str], str], means: list[Node]) -> None:
        """The sum of the slab from what threads keep."""
        st, v = self.storage, self.storage.var(node)
        total, over = self._total(node), node.reduced & node.args[0].axes
        comment = f"  # {axes_name(node.axes)}"
        count = f"({' * '.join(extents(over))}).to(tl.float32)"
        if node.op is not Op.VAR:
            out(f"{v} = {total.format(f'sum_{v}')}" + (f" / {count}" if node.op is Op.MEAN else "") + comment)
            if node in self.kernel.partials:
                out(f"tl.store({st.partial(node)} + (n * C + c), {v}, mask=e_in)")
            return
        elements = seen[self._like(node)]
        some = f"{elements} > 0"
        if self._shape(node) != self._like(node)[1]:
            out(f"{elements} += tl.zeros({self._shape(node)}, tl.float32)")
        out(
            f"threads = {total.format(f'tl.where({some}, 1.0, 0.0)')}",
            f"base = {total.format(f'tl.where({some}, center_{v}, 0.0)')} / tl.maximum(threads, 1.0)",
            f"offset = tl.where({some}, center_{v} - base + mean_{v}, 0.0)  # small, so that squares keep their digits",
            f"shift = {total.format(f'offset * {elements}')} / {count}",
            "offset -= shift",
            f"{v} = {total.format(f'm2_{v} + offset * offset * {elements}')} / {count}{comment}",
        )
        out(*(f"{st.var(n)} = base + shift  # {axes_name(n.axes)}" for n in means))
