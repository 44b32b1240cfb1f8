"""C for a sweep over rows of positions (NCHW): the middle loop walks channels, the inner one the positions of a row.

Where a row's variance is taken, several short rows are walked together, so that the second walk over one need not wait
for the end of its first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from normforge.codegen.c.values import COLUMN_CHUNK, TILE
from normforge.codegen.c.walk import Walk
from normforge.codegen.index import element, full
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import G

MAX_ROWS = 64  # short rows visited together
BLOCK = 16  # channels whose sum is taken apart


class RowsWalk(Walk):
    """Sums over space are scalars; sums over channels are added up in arrays [N][S] or [N][G][S]."""

    def emit(self) -> None:
        """Write the loops."""
        work = self.work
        with self._blocks([*((n, "") for n in work.columns), *((n, "cm") for n in work.column_pairs)]) as (first, last):
            if work.pairs:
                self._paired_rows(first, last)
            else:
                with self._channels(first, last):
                    self._row()
        for node in work.columns:
            if node.op is Op.MEAN:
                self._each_position(node, f"{self._sum(node)} /= {self.count(node)};")
        for node in work.column_pairs:
            self._each_position(node, f"{self._sum(node, 'cm')} /= {self.count(node)};")
        if work.column_pairs:
            self._column_deviations()

    def column(self, node: Node) -> str:
        """The element of a vector to which the operand of a sum over channels is added."""
        return self._added_to(node, "cm" if node.op is Op.VAR else "")

    def mask_once(self) -> None:
        """Write `once`: all or nothing of a row."""
        self.out(f"const M once = (M){{0}} - (I)(c == c / {self.out.size('K')} * K);")

    def ahead(self) -> str:
        """The usual distance, or that to the next sample where a region has little of each."""
        c, s = map(self.out.size, "CS")
        return f"r.n1 - r.n0 > 1 && (r.c1 - r.c0) * {s} * sizeof(X) <= 4 * AHEAD ? {c} * {s} * sizeof(X) : AHEAD"

    def place_in_slab(self) -> str:
        """Where the elements from `first` on are in the buffer of a slab."""
        return "((n - r.n0) * (r.c1 - r.c0) + c - r.c0) * width + first - start"

    @contextmanager
    def _channels(self, first: str, last: str) -> Iterator[None]:
        """The loop over channels of one sample, with the row's base index."""
        out = self.out
        with out.block(f"for (int64_t c = {first}; c < {last}; ++c) {{"):
            out(f"const int64_t g = c / {out.size('K')}, at = {out.at(full('nchw')).row};", "(void)g; (void)at;")
            yield

    # -- rows, tile by tile

    def _row(self) -> None:
        """Sums, columns and outputs of one row, tile by tile; a row of one tile keeps its sums as they are."""
        out, st, work = self.out, self.storage, self.work
        kept = self.kept_below(work.roots)
        self.element.hoisted([*work.roots, *(a for n in kept for a in n.args)])
        sums = [st.var(n) for n in work.sums]
        if sums:
            out(f"T {', '.join(f'a{v}' for v in sums)};", f"double {', '.join(f'r{v} = 0' for v in sums)};")
        tiled = bool(sums or kept)
        with out.block(f"for (int64_t t = lo; t < hi; t += {TILE}) {{" if tiled else "{"):
            lo, hi = ("t", f"MIN2(hi, t + {TILE})") if tiled else ("lo", "hi")
            out(f"const int64_t first = {lo}, last = {hi};")
            self.fill(kept, "0")
            self.inner_loop(work)
            if sums:
                with out.block(f"if (hi - lo > {TILE}) {{"):
                    out(*(f"r{v} += (double)a{v};" for v in sums))
        if sums:
            with out.block(f"if (hi - lo > {TILE}) {{"):
                out(*(f"a{v} = (T)r{v};" for v in sums))
        for node in work.sums:
            self._deliver_sum(node, f"a{st.var(node)}")

    def _paired_rows(self, first: str, last: str) -> None:
        """Rows whose variance is taken: short ones a tile's worth at once."""
        out, st, work = self.out, self.storage, self.work
        out(f"const int64_t rows = MIN2({MAX_ROWS}, MAX2(1, {TILE} / MAX2(hi - lo, 1)));")
        with out.block(f"for (int64_t cb = {first}; cb < {last}; cb += rows) {{"):
            out(f"const int64_t ce = MIN2({last}, cb + rows);")
            for node in work.sums:
                out(f"double r{st.var(node)}[{MAX_ROWS}];")
            for node in work.pairs:
                v = st.var(node)
                out(f"double m{v}[{MAX_ROWS}], q{v}[{MAX_ROWS}];", f"T h{v}[{MAX_ROWS}];")
            with out.block(f"for (int64_t t = lo; t < hi; t += {TILE}) {{"):
                out(f"const int64_t first = t, last = MIN2(hi, t + {TILE});")
                out("const double here = (double)(last - first), before = (double)(first - lo), one = 1.0 / here;")
                with self._channels("cb", "ce"):
                    self._first_walk()
                with self._channels("cb", "ce"):
                    self._second_walk()
            with self._channels("cb", "ce"):
                for node in work.sums:
                    self._deliver_sum(node, f"r{st.var(node)}[c - cb]")
                for node in work.pairs:
                    self._deliver_pair(node)

    def _first_walk(self) -> None:
        """Of a tile of a row: its sums, and the means of pairs."""
        out, st, work = self.out, self.storage, self.work
        kept = self.kept_below(work.roots)
        self.element.hoisted([*work.roots, *(a for n in kept for a in n.args)])
        self.fill(kept, "(c - cb) * (hi - lo)")
        out(f"T {', '.join(f'a{st.var(n)}' for n in work.inner)};")
        self.inner_loop(work)
        for node in work.sums:
            v = st.var(node)
            out(f"r{v}[c - cb] = (t == lo ? 0 : r{v}[c - cb]) + (double)a{v};")
        for node in work.pairs:
            out(f"h{st.var(node)}[c - cb] = a{st.var(node)} * (T)one;")

    def _second_walk(self) -> None:
        """Of the same tile: deviations from its mean, joined with what tiles before gave."""
        out, st, pairs = self.out, self.storage, self.work.pairs
        roots = [n.args[0] for n in pairs]
        self.element.hoisted(roots)
        self.slots(self.kept_below(roots), "(c - cb) * (hi - lo)")
        out(*(f"const T a{st.var(n)} = h{st.var(n)}[c - cb];" for n in pairs))
        self.deviations(pairs)
        for node in pairs:  # Chan et al., Updating Formulae, 1979
            v = st.var(node)
            out(f"const double f{v} = (double)a{v} + (double)c{v} * one;")
            out(f"const double g{v} = b{v} - (double)c{v} * c{v} * one;")
            with out.block("if (t == lo) {"):
                out(f"m{v}[c - cb] = f{v};", f"q{v}[c - cb] = g{v};")
            with out.block("else {"):
                out(f"const double d{v} = f{v} - m{v}[c - cb], share = here / (before + here);")
                out(f"m{v}[c - cb] += d{v} * share;", f"q{v}[c - cb] += g{v} + d{v} * d{v} * before * share;")

    def _deliver_sum(self, node: Node, value: str) -> None:
        """A finished row sum: of a chunk, or of the row."""
        out = self.out
        if self.storage.chunked:
            out(f"{out.partial(node)} = {value};")
        else:
            scale = f" / (double){out.size('S')}" if node.op is Op.MEAN else ""
            out(f"{out.small(node)} = {value}{scale};")

    def _deliver_pair(self, node: Node) -> None:
        """A finished mean and sum of squared deviations of a row, or of a chunk."""
        out, v = self.out, self.storage.var(node)
        m, q = (f"{k}{v}[c - cb]" for k in "mq")
        if self.storage.chunked:
            a = node.args[0]
            out(f"const double k{v} = {m} - (T){m}, l{v} = (double)(hi - lo);")
            out(f"{out.partial(a, 'm')} = {m};")
            out(f"{out.partial(a, 'k')} = k{v} * l{v};")
            out(f"{out.partial(a, 'q')} = {q} + k{v} * k{v} * l{v};")
            return
        out(f"{out.small(node)} = {q} / (double){out.size('S')};")
        for mean in self.means(node):
            out(f"{out.small(mean)} = {m};")

    # -- columns

    def _sum(self, node: Node, kind: str = "") -> str:
        """An element of a sum over channels, or of a kind of the arrays that a variance is taken from."""
        st = self.storage
        return self.out.item(st.column(node, kind) if kind else st.array(node), element(node.axes))

    def _added_to(self, node: Node, kind: str) -> str:
        """The element to which a channel is added: the sum's own, or that of the block's (see `_blocks`)."""
        return self._sum(node, kind) if node.axes & G else self._part(node, kind)

    def _part(self, node: Node, kind: str = "", of: str = "part") -> str:
        """An element of what a block of channels adds to a sum over channels, or of `all` of them so far."""
        return f"{of}{kind}{self.storage.var(node)}[{self.element.step} - lo]"

    @contextmanager
    def _blocks(self, targets: list[tuple[Node, str]]) -> Iterator[tuple[str, str]]:
        """The loop over blocks of channels: first and last of each.

        A sum over all channels adds those of a few apart, and in double what these come to, so that its rounding does
        not grow with the number of channels. A sum over the channels of a group is added up in place.

        Args:
            targets: sums over channels and the kinds of their arrays; without any over all there is one block.
        """
        out = self.out
        parted = [(node, kind) for node, kind in targets if not node.axes & G]
        for node, kind in targets:
            if node.axes & G:
                self._each_position(node, f"{self._sum(node, kind)} = 0;")
            else:
                out(f"double all{kind}{self.storage.var(node)}[{COLUMN_CHUNK}];")
                self._each_position(node, f"{self._part(node, kind, 'all')} = 0;")
        if not parted:
            yield "r.c0", "r.c1"
            return
        with out.block(f"for (int64_t c0 = r.c0; c0 < r.c1; c0 += {BLOCK}) {{"):
            out(f"const int64_t c1 = MIN2(r.c1, c0 + {BLOCK});")
            for node, kind in parted:
                out(f"T part{kind}{self.storage.var(node)}[{COLUMN_CHUNK}];")
                self._each_position(node, f"{self._part(node, kind)} = 0;")
            yield "c0", "c1"
            for node, kind in parted:
                self._each_position(node, f"{self._part(node, kind, 'all')} += {self._part(node, kind)};")
        for node, kind in parted:
            self._each_position(node, f"{self._sum(node, kind)} = {self._part(node, kind, 'all')};")

    def _each_position(self, node: Node, statement: str) -> None:
        """A statement at every element of a sum over channels."""
        out = self.out
        loop = f"for (int64_t s = lo; s < hi; ++s) {statement}"
        if node.axes & G:
            with out.block(f"for (int64_t g = r.c0 / {out.size('K')}; g < (r.c1 + K - 1) / K; ++g) {{"):
                out("#pragma omp simd", loop)
        else:
            out("#pragma omp simd", loop)

    def _column_deviations(self) -> None:
        """Variances over channels, from means that are there."""
        out, st, pairs = self.out, self.storage, self.work.column_pairs
        roots = [n.args[0] for n in pairs]
        # The buffer holds a tile of the last row unless it holds a slab: kept values are computed again.
        again = self.element.computing(self.kept)

        def body(_: int, tail: bool) -> None:
            again.values(roots, tail=tail)
            for node in pairs:
                d = f"e{st.var(node)}"
                m = f"&{self._sum(node, 'cm')}"
                q = f"&{self._added_to(node, 'cq')}"
                out(f"const V {d} = {again.value(node.args[0])} - {out.load(m, tail=tail)};")
                square = again.once(node, f"{d} * {d}")
                out.store(q, f"{out.load(q, tail=tail)} + {square}", tail=tail)

        with self._blocks([(n, "cq") for n in pairs]) as (first, last), self._channels(first, last):
            again.hoisted(roots)
            self.strips([], 1, body, "lo", "hi")
        for node in pairs:
            self._each_position(node, f"{self._sum(node, 'cq')} /= {self.count(node)};")
            self._each_position(node, f"{self._sum(node)} = {self._sum(node, 'cq')};")
            for mean in self.means(node):
                self._each_position(mean, f"{self._sum(mean)} = {self._sum(node, 'cm')};")
