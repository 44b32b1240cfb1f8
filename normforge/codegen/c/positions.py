"""C for a sweep over positions (NHWC): the middle loop walks positions, the inner one the channels of a position.

Sums over space are vectors over channels, the partials of the chunk. Sums over the channels of each group walk the
groups one by one; all else walks a position at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from normforge.codegen.c.values import TILE
from normforge.codegen.c.walk import Walk, Work
from normforge.codegen.index import chunk, full
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import G

_CHANNELS = "for (int64_t c = r.c0; c < r.c1; ++c) {"


class PositionsWalk(Walk):
    """Sums over channels are scalars; sums over space are added up in the partials [N][Q][C]."""

    def emit(self) -> None:
        """Write the loops."""
        out, work = self.out, self.work
        columns = [out.partial(n) for n in work.columns]
        columns += [out.partial(n.args[0], k) for n in work.column_pairs for k in "mqk"]
        if columns:
            with out.block(_CHANNELS):
                out(*(f"{element} = 0;" for element in dict.fromkeys(columns)))
        self._each_position(work.roots, self._position)
        if work.column_pairs:
            with out.block(_CHANNELS):
                out(*(f"{out.partial(n.args[0], 'm')} /= (T)(hi - lo);" for n in work.column_pairs))
            self._each_position(tuple(n.args[0] for n in work.column_pairs), self._column_deviations)

    def column(self, node: Node) -> str:
        """The element of a vector to which the operand of a sum over space is added."""
        return f"{self._partial(node.args[0], 'm') if node.op is Op.VAR else self._partial(node)}[row + c]"

    def mask_once(self) -> None:
        """Write `once`: the channels of a vector that open a group."""
        out = self.out
        out("I first_of[W];", f"for (int64_t l = 0; l < W; ++l) first_of[l] = -(I)((c + l) % {out.size('K')} == 0);")
        out(f"const M once = {out.call('load_mask', 'first_of')};")

    def ahead(self) -> str:
        """The usual distance: a region is contiguous."""
        return "AHEAD"

    def place_in_slab(self) -> str:
        """Where the elements from `first` on are in the buffer of a slab."""
        return "((n - r.n0) * width + s - start) * (r.c1 - r.c0) + first - r.c0"

    def _partial(self, node: Node, kind: str = "p") -> str:
        """The array of partials of a sum over space."""
        return self.out.array(self.storage.partial(node, kind))

    def _each_position(self, roots: tuple[Node, ...], body: Callable[[], None]) -> None:
        """The loop over the positions of the chunk; `roots` are what the body needs."""
        out = self.out
        with out.block("for (int64_t s = lo; s < hi; ++s) {"):
            at, row = out.at(full("nhwc")).row, out.at(chunk()).row
            out(f"const int64_t at = {at}, row = {row};", "(void)at; (void)row;")
            self.element.hoisted(roots)
            body()

    def _position(self) -> None:
        """Sums, columns and outputs of one position."""
        out, work = self.out, self.work
        by_group = tuple(n for n in work.inner if n.axes & G)
        if by_group:
            k = out.size("K")
            with out.block(f"for (int64_t g = r.c0 / {k}; g < (r.c1 + K - 1) / K; ++g) {{"):
                out("const int64_t first = MAX2(r.c0, g * K), last = MIN2(r.c1, (g + 1) * K);")
                self._part(_only(replace(work, columns=(), column_pairs=(), stores=()), by_group))
        rest = _only(work, tuple(n for n in work.inner if not n.axes & G))
        if rest.inner or rest.columns or rest.column_pairs or rest.stores:
            with out.block("{"):
                out("const int64_t first = r.c0, last = r.c1;")
                self._part(rest)

    def _part(self, work: Work) -> None:
        """Some of the sums over channels of a position, from `first` to `last`, and what else the work has."""
        out, st = self.out, self.storage
        sums = [st.var(n) for n in work.inner]
        if sums:
            out(f"T {', '.join(f'a{v}' for v in sums)};")
        kept = self.kept_below(work.roots)
        if kept:
            self.element.hoisted([a for n in kept for a in n.args])
            out(*(f"double r{v} = 0;" for v in sums))
            with out.block(f"for (int64_t t = r.c0; t < r.c1; t += {TILE}) {{"):
                out(f"const int64_t first = t, last = MIN2(r.c1, t + {TILE});")
                self.fill(kept, "0")
                self.inner_loop(work)
                out(*(f"r{v} += (double)a{v};" for v in sums))
            out(*(f"a{v} = (T)r{v};" for v in sums))
        else:
            self.inner_loop(work)
        for node in work.sums:
            scale = f" / {self.count(node)}" if node.op is Op.MEAN else ""
            out(f"{out.small(node)} = a{st.var(node)}{scale};")
        if work.pairs:
            out(*(f"a{st.var(n)} /= {self.count(n)};" for n in work.pairs))
            self.deviations(work.pairs)
        for node in work.pairs:
            v, count = st.var(node), self.count(node)
            out(f"{out.small(node)} = (b{v} - c{v} * c{v} / {count}) / {count};")
            for mean in self.means(node):
                out(f"{out.small(mean)} = a{v} + c{v} / {count};")

    def _column_deviations(self) -> None:
        """Variances over space, at one position, from means that are there."""
        out, st, element, pairs = self.out, self.storage, self.element, self.work.column_pairs
        roots = [n.args[0] for n in pairs]

        def body(_: int, tail: bool) -> None:
            element.values(roots, tail=tail)
            for node in pairs:
                m, q, k = (f"{self._partial(node.args[0], kind)} + row + c" for kind in "mqk")
                d = f"e{st.var(node)}"
                out(f"const V {d} = {element.value(node.args[0])} - {out.load(m, tail=tail)};")
                out.store(q, out.call("fma_", d, d, out.load(q, tail=tail)), tail=tail)
                out.store(k, f"{out.load(k, tail=tail)} + {d}", tail=tail)

        out("const int64_t first = r.c0, last = r.c1;")
        self.strips([], 1, body)


def _only(work: Work, inner: tuple[Node, ...]) -> Work:
    """The work without all but these of the sums over channels."""
    chosen = set(inner)
    sums = tuple(n for n in work.sums if n in chosen)
    pairs = tuple(n for n in work.pairs if n in chosen)
    taken = (*sums, *pairs, *work.columns, *work.column_pairs)
    return replace(work, roots=(*(n.args[0] for n in taken), *(n for _, n in work.stores)), sums=sums, pairs=pairs)
