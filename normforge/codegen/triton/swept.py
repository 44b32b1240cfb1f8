"""Triton text for swept plans: one program walks a slab that is too long for registers, tile by tile.

The parts are those of a resident plan. Each walk loads the full operands that it needs; every thread adds what it holds
of a tile to accumulators of its own, and threads exchange them once, when the walk is over. Small values are computed
between walks, and the last one stores. A variance is (mean, sum of squared deviations) of a thread's elements of each
tile, joined by Chan's formula.

A slab of rows over space is walked row by row, several at once where they are short: what belongs to a row is computed
once for it, and its partial sums are taken at its end.
"""

from __future__ import annotations

from collections.abc import Iterable

from normforge.codegen.index import element, extents
from normforge.codegen.plan import Sweep
from normforge.codegen.stage import Stage
from normforge.codegen.triton.resident import DOWN, ResidentText, Step, Total, by_key, fold
from normforge.codegen.triton.swept_tile import STAGES, SWEPT_TILES, SweptRows, SweptTile
from normforge.ir.node import Node, toposort
from normforge.ir.ops import Op
from normforge.ir.types import B, C, S, axes_name

Like = tuple[tuple[str, ...], str]  # terms of a mask, a shape


class SweptText(ResidentText):
    """Emits the body of the kernel of a swept plan."""

    tile: SweptTile

    def _make_tile(self) -> SweptTile:
        return SWEPT_TILES[self.walk.name](self.walk)

    def emit(self, out: Stage) -> None:
        """Write it."""
        st, kernel = self.storage, self.kernel
        self.tile.place(out)
        st.define_sizes(out, (n for n in toposort(kernel.roots, self._operands) if n not in kernel.reads))
        for sweep in st.plan.sweeps:
            self._sweep(out, sweep)
        for node in kernel.values:
            self._need(out, node)
            self._keep(out, node)

    def _sweep(self, out: Stage, sweep: Sweep) -> None:
        """One walk over the slab."""
        st = self.storage
        chunked = self.kernel.partials if self.tile.chunked else ()
        partials = [n for n in sweep.sums if n in chunked]
        sums = [n for n in sweep.sums if n not in chunked]
        roots = [*(n.args[0] for n in sweep.sums), *(n for _, n in sweep.stores)]
        needed = toposort(roots, self._operands)
        self._values(out, (n for n in needed if not self.walk.along_loop(n.axes)))
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
        with out.block(self.tile.loop(out), ""):
            if isinstance(self.tile, SweptRows):
                self._rows(out, self.tile, sweep, needed, added, partials, seen)
            else:
                self._step(out, sweep, added, partials, seen)
        self.done = before | set(sums)
        for node in added:
            self._close(out, node, seen, [n for n in sums if n.op is Op.MEAN and n.args == node.args])

    def _rows(
        self, out: Stage, tile: SweptRows, sweep: Sweep, needed: list[Node], added: list[Node], partials: list[Node],
        seen: dict[Like, str],
    ) -> None:  # fmt: skip
        """Rows, and a walk over their positions."""
        tile.row(out)
        self._values(out, (n for n in needed if not n.axes & S))
        out(*(f"sum_{self.storage.var(n)} = tl.zeros({self._shape(n)}, tl.float32)" for n in partials))
        row_sums = [n for n in added if not n.args[0].axes & S]
        self._add(out, row_sums, seen)
        along = f"for s0 in tl.range(0, positions, {out.constexpr('BLOCK_E')}, num_stages={STAGES}):"
        with out.block(along, ""):
            self._step(out, sweep, [n for n in added if n not in row_sums], partials, seen)
        for i in range(0, len(partials), 2):
            self._store_rows(out, partials[i : i + 2])

    def _step(self, out: Stage, sweep: Sweep, added: list[Node], partials: list[Node], seen: dict[Like, str]) -> None:
        """The work on one tile."""
        self.tile.step(out)
        self._values(out, sweep.loads)
        self._add(out, added, seen)
        for node in partials:
            self._need(out, node.args[0])
            self._partial(out, node)
        self._store(out, sweep.stores)

    # -- sums

    @staticmethod
    def _variances(nodes: Iterable[Node]) -> list[Node]:
        return [n for n in nodes if n.op is Op.VAR]

    def _key(self, node: Node) -> int:
        """The axes that tell groups apart along BLOCK_E, where each has a sum of its own."""
        operand = node.args[0]
        stays = (self.walk.slab | (operand.axes & ~node.reduced)) & self.walk.on_e
        return stays if node.reduced & operand.axes & self.walk.on_e else 0

    def _vector(self, node: Node) -> str:
        """Neighbours along BLOCK_E that enter one sum."""
        axes = node.args[0].axes & self.walk.on_e
        return "VECTOR" if axes and node.reduced & axes and not self._key(node) else "1"

    def _shape(self, node: Node) -> str:
        """Of an accumulator: what each thread keeps of a tile."""
        along_a, along_e = self.tile.varies(node.args[0].axes)
        wide = "BLOCK_E" if self._vector(node) == "1" else "BLOCK_E // VECTOR"
        return f"[{'BLOCK_A' if along_a else 1}, {wide if along_e else 1}]"

    def _like(self, node: Node) -> Like:
        """What decides how many elements an accumulator has seen: the mask, and the shape of the count. Where nothing
        is added along BLOCK_E, what lies beyond its end is never stored, and need not be told apart."""
        terms, shape = self._counted(node), self._shape(node)
        if self._vector(node) == "1" and terms == ("inside",):
            return ("a_in",), "[BLOCK_A, 1]"
        return terms, shape

    def _add(self, out: Stage, nodes: list[Node], seen: dict[Like, str]) -> None:
        st = self.storage
        for node in nodes:
            self._need(out, node.args[0])
            if node.op is not Op.VAR:
                text = f"tl.where({' & '.join(self._counted(node))}, {self._value(node.args[0])}, 0.0)"
                vector = self._vector(node)
                out(f"sum_{st.var(node)} += {text if vector == '1' else out.call('lanes', text, vector)}")
        for like, name in seen.items():
            mine = [n for n in self._variances(nodes) if self._like(n) == like]
            if not mine:
                continue
            vector = self._vector(mine[0])
            out(f"count = {self._count(out, like[0], vector)}")
            for node in mine:
                v = st.var(node)
                parts = (f"center_{v}", f"mean_{v}", f"m2_{v}")
                mask = " & ".join(self._counted(node))
                added = out.call("add_pair", *parts, name, self._value(node.args[0]), mask, "count", vector)
                out(f"{', '.join(parts)} = {added}")
            out(f"{name} += count")

    @staticmethod
    def _count(out: Stage, terms: tuple[str, ...], vector: str) -> str:
        """Elements of a tile that an accumulator takes: rows begin and end between vectors."""
        ones = f"tl.where({' & '.join(terms)}, 1.0, 0.0)"
        if vector == "1":
            return ones
        if len(terms) > 1:  # one element of each group of channels
            return out.call("lanes", ones, vector)
        mask = {"inside": "a_in & vector_in", "e_in": "vector_in"}.get(terms[0], terms[0])
        return f"tl.where({mask}, VECTOR * 1.0, 0.0)"

    def _total(self, out: Stage, node: Node) -> Total:
        """Of small values: as what threads keep."""
        return Total((), self._joining(node))

    def _joining(self, node: Node) -> tuple[Step, ...]:
        """What takes the sum of what all threads keep."""
        key = self._key(node)
        if key:
            return DOWN, by_key(key)
        return (DOWN if self._vector(node) == "1" else self.tile.total,)

    def _partial(self, out: Stage, node: Node) -> None:
        if not self.tile.by_row:
            super()._partial(out, node)
            return
        value = f"tl.where(inside, {self._value(node.args[0])}, 0.0)"
        out(f"sum_{self.storage.var(node)} += {out.call('lanes', value, out.constexpr('VECTOR'))}")

    def _store_rows(self, out: Stage, nodes: list[Node]) -> None:
        sums = [f"sum_{self.storage.var(n)}" for n in nodes]
        call = out.call("sum_row", *sums, "1") if len(sums) == 1 else out.call("sum_rows2", *sums)
        out(f"{', '.join(sums)} = {call}")
        for node, total in zip(nodes, sums, strict=True):
            self._store_partial(out, node, total)

    def _close(self, out: Stage, node: Node, seen: dict[Like, str], means: list[Node]) -> None:
        """The sum of the slab from what threads keep."""
        st, v, over = self.storage, self.storage.var(node), node.reduced & node.args[0].axes

        def total(kept: str) -> str:
            return fold(out, self._joining(node), kept)

        comment = f"  # {axes_name(node.axes)}"
        count = f"({' * '.join(extents(over))}).to(tl.float32)"
        if node.op is not Op.VAR:
            out(f"{v} = {total(f'sum_{v}')}" + (f" / {count}" if node.op is Op.MEAN else "") + comment)
            if node in self.kernel.partials:
                at = out.at(element(B | C)).triton
                out(f"tl.store({out.array(st.partial(node))} + {at}, {v}, mask=e_in)")
            return
        elements = seen[self._like(node)]
        some = f"{elements} > 0"
        if self._shape(node) != self._like(node)[1]:
            out(f"{elements} += tl.zeros({self._shape(node)}, tl.float32)")
        out(
            f"threads = {total(f'tl.where({some}, 1.0, 0.0)')}",
            f"base = {total(f'tl.where({some}, center_{v}, 0.0)')} / tl.maximum(threads, 1.0)",
            f"offset = tl.where({some}, center_{v} - base + mean_{v}, 0.0)  # small, so that squares keep their digits",
            f"shift = {total(f'offset * {elements}')} / {count}",
            "offset -= shift",
            f"{v} = {total(f'm2_{v} + offset * offset * {elements}')} / {count}{comment}",
        )
        out(*(f"{st.var(n)} = base + shift  # {axes_name(n.axes)}" for n in means))
