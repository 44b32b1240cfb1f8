"""C for the sweeps of a plan.

Two loops walk a chunk of one sample: the inner one over the axis that is contiguous in memory (space in NCHW,
channels in NHWC), the middle one over the other. A sum over the inner axis is a scalar of the middle loop; a sum
over the middle axis is a vector as long as the inner one. Variances take a second walk over data that is still in
the cache, centred by the mean of the tile or chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from normforge.codegen.c.element import KEEP, TILE, ElementEmitter, below, counts_all, load, store
from normforge.codegen.c.names import address, is_stored
from normforge.codegen.c.small import has_variance
from normforge.codegen.plan import is_full_input
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import C, G, S

MAX_ROWS = 64  # short rows visited together


@dataclass
class SweepEmitter(ElementEmitter):
    """Emits `static void sweepN(const Ctx *x, Region r, void *keep, int slab)` for one sweep.

    `keep` has room for the values of `kept`: those of the region r where `slab` is true, else those of a tile.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        sums = [n for n in self.sweep.sums if n.op is Op.SUM or (n.op is Op.MEAN and not has_variance(n, self.storage))]
        pairs = [n for n in self.sweep.sums if n.op is Op.VAR]
        self.inner_sums = [n for n in sums if n.reduced & self.inner]
        self.outer_sums = [n for n in sums if not n.reduced & self.inner]
        self.inner_pairs = [n for n in pairs if n.reduced & self.inner]
        self.outer_pairs = [n for n in pairs if not n.reduced & self.inner]

    def emit(self, number: int) -> None:
        """The function of this sweep."""
        out = self.out
        with out.block(f"static void sweep{number}(const Ctx *x, Region r, void *keep, int slab) {{"):
            out("UNPACK")
            with out.block("for (int64_t n = r.n0; n < r.n1; ++n) {"):
                head = "for (int64_t q = r.q0; q < r.q1; ++q) {" if self.storage.chunked else "{"
                with out.block(head):
                    lo, hi = ("q * L", "MIN2(S, (q + 1) * L)") if self.storage.chunked else ("0", "S")
                    out(f"const int64_t lo = {lo}, hi = {hi};")
                    if self.inner == S:
                        self._rows()
                    else:
                        self._positions()
            if self.sweep.stores:
                out("SETTLE(past);")
        out("")

    def _rows(self) -> None:
        """NCHW: the middle loop walks channels."""
        out = self.out
        for node in self.outer_sums:
            self._clear_column(node)
        for node in self.outer_pairs:
            self._clear_column(node, "cm")
            self._clear_column(node, "cq")
        if self.inner_pairs:
            self._paired_rows()
        else:
            with self._channels():
                self._row()
        for node in self.outer_sums:
            if node.op is Op.MEAN:
                self._finish_column(node, self._column(node), f"{self._count(node)}")
        for node in self.outer_pairs:
            self._finish_column(node, self._column(node, "cm"), self._count(node))
        if self.outer_pairs:
            # The buffer holds a tile of the last row unless it holds a slab: kept values are computed again.
            kept, self.kept = self.kept, []
            with self._channels():
                roots = [n.args[0] for n in self.outer_pairs]
                self.hoisted(roots)

                def body(_: int, tail: bool) -> None:
                    self.values(roots, tail=tail)
                    for node in self.outer_pairs:
                        d = f"e{self.storage.var(node)}"
                        m, q = (f"&{self._column(node, kind)}" for kind in ("cm", "cq"))
                        out(f"const V {d} = {self.value(node.args[0])} - {load(m, tail=tail)};")
                        square = self.once(node, f"{d} * {d}")
                        out(store(q, f"{load(q, tail=tail)} + {square}", tail=tail))

                self._strips("s", "lo", "hi", [], 1, body)
            self.kept = kept
            for node in self.outer_pairs:
                self._finish_column(node, self._column(node, "cq"), self._count(node))
                self._deliver(node)

    @contextmanager
    def _channels(self, first: str = "r.c0", last: str = "r.c1") -> Iterator[None]:
        """The loop over channels of one sample, with the row's base index."""
        with self.out.block(f"for (int64_t c = {first}; c < {last}; ++c) {{"):
            self.out("const int64_t g = c / K, at = (n * C + c) * S;", "(void)g; (void)at;")
            yield

    def _row(self) -> None:
        """Sums, columns and outputs of one row, tile by tile; a row of one tile keeps its sums as they are."""
        out, st = self.out, self.storage
        roots = self._first_roots()
        kept = [n for n in below(st.plan, roots) if n in self.kept]
        self.hoisted([*roots, *(a for n in kept for a in n.args)])
        sums = [st.var(n) for n in self.inner_sums]
        if sums:
            out(f"T {', '.join(f'a{v}' for v in sums)};", f"double {', '.join(f'r{v} = 0' for v in sums)};")
        tiled = bool(sums or kept)
        with out.block(f"for (int64_t t = lo; t < hi; t += {TILE}) {{" if tiled else "{"):
            lo, hi = ("t", f"MIN2(hi, t + {TILE})") if tiled else ("lo", "hi")
            out(f"const int64_t first = {lo}, last = {hi};")
            self._fill(kept, "0")
            self._inner_loop(roots, "s", "first", "last")
            if sums:
                with out.block(f"if (hi - lo > {TILE}) {{"):
                    out(*(f"r{v} += (double)a{v};" for v in sums))
        if sums:
            with out.block(f"if (hi - lo > {TILE}) {{"):
                out(*(f"a{v} = (T)r{v};" for v in sums))
        for node in self.inner_sums:
            self._deliver_row(node, f"a{st.var(node)}")

    def _deliver_row(self, node: Node, value: str) -> None:
        """A finished row sum: of a chunk, or of the row."""
        st = self.storage
        if st.chunked:
            self.out(f"{st.partial(node)}[(n * Q + q) * C + c] = {value};")
        else:
            scale = " / (double)S" if node.op is Op.MEAN else ""
            self.out(f"{st.array(node)}[{address(node.axes)}] = {value}{scale};")

    def _paired_rows(self) -> None:
        """Rows whose variance is taken: short ones a tile's worth at once, so that the second walk of one need not
        wait for the last of its first."""
        out, st = self.out, self.storage
        roots, pairs = self._first_roots(), [n.args[0] for n in self.inner_pairs]
        kept = [n for n in below(st.plan, roots) if n in self.kept]
        again = [n for n in below(st.plan, pairs) if n in self.kept]
        out(f"const int64_t rows = MIN2({MAX_ROWS}, MAX2(1, {TILE} / MAX2(hi - lo, 1)));")
        with out.block("for (int64_t cb = r.c0; cb < r.c1; cb += rows) {"):
            out("const int64_t ce = MIN2(r.c1, cb + rows);")
            for node in self.inner_sums:
                out(f"double r{st.var(node)}[{MAX_ROWS}];")
            for node in self.inner_pairs:
                v = st.var(node)
                out(f"double m{v}[{MAX_ROWS}], q{v}[{MAX_ROWS}];", f"T h{v}[{MAX_ROWS}];")
            with out.block(f"for (int64_t t = lo; t < hi; t += {TILE}) {{"):
                out(f"const int64_t first = t, last = MIN2(hi, t + {TILE});")
                out("const double here = (double)(last - first), before = (double)(first - lo), one = 1.0 / here;")
                with self._channels("cb", "ce"):
                    self.hoisted([*roots, *(a for n in kept for a in n.args)])
                    self._fill(kept, "(c - cb) * (hi - lo)")
                    out(f"T {', '.join(f'a{st.var(n)}' for n in [*self.inner_sums, *self.inner_pairs])};")
                    self._inner_loop(roots, "s", "first", "last")
                    for node in self.inner_sums:
                        v = st.var(node)
                        out(f"r{v}[c - cb] = (t == lo ? 0 : r{v}[c - cb]) + (double)a{v};")
                    for node in self.inner_pairs:
                        out(f"h{st.var(node)}[c - cb] = a{st.var(node)} * (T)one;")
                with self._channels("cb", "ce"):
                    self.hoisted(pairs)
                    self._slots(again, "(c - cb) * (hi - lo)")
                    out(*(f"const T a{st.var(n)} = h{st.var(n)}[c - cb];" for n in self.inner_pairs))
                    self._deviations("s", "first", "last")
                    for node in self.inner_pairs:  # Chan et al., Updating Formulae, 1979
                        v = st.var(node)
                        out(f"const double f{v} = (double)a{v} + (double)c{v} * one;")
                        out(f"const double g{v} = b{v} - (double)c{v} * c{v} * one;")
                        with out.block("if (t == lo) {"):
                            out(f"m{v}[c - cb] = f{v};", f"q{v}[c - cb] = g{v};")
                        with out.block("else {"):
                            out(f"const double d{v} = f{v} - m{v}[c - cb], share = here / (before + here);")
                            out(
                                f"m{v}[c - cb] += d{v} * share;",
                                f"q{v}[c - cb] += g{v} + d{v} * d{v} * before * share;",
                            )
            with self._channels("cb", "ce"):
                for node in self.inner_sums:
                    self._deliver_row(node, f"r{st.var(node)}[c - cb]")
                for node in self.inner_pairs:
                    self._deliver_pair(node)

    def _deliver_pair(self, node: Node) -> None:
        """A finished mean and sum of squared deviations of a row, or of a chunk."""
        out, st = self.out, self.storage
        m, q = (f"{k}{st.var(node)}[c - cb]" for k in "mq")
        if st.chunked:
            a, v = node.args[0], st.var(node)
            out(f"const double k{v} = {m} - (T){m}, l{v} = (double)(hi - lo);")
            out(f"{st.partial(a, 'm')}[(n * Q + q) * C + c] = {m};")
            out(f"{st.partial(a, 'k')}[(n * Q + q) * C + c] = k{v} * l{v};")
            out(f"{st.partial(a, 'q')}[(n * Q + q) * C + c] = {q} + k{v} * k{v} * l{v};")
            return
        out(f"{st.array(node)}[{address(node.axes)}] = {q} / (double)S;")
        for mean in self._means(node):
            out(f"{st.array(mean)}[{address(mean.axes)}] = {m};")

    def _slots(self, kept: list[Node], tile: str) -> None:
        """Where the kept values of the tile are: `tile` elements into the buffer where that is not a slab's."""
        if not kept:
            return
        self.out("const int64_t start = r.q0 * L, width = MIN2(S, r.q1 * L) - start;")
        if self.inner == S:
            place = "((n - r.n0) * (r.c1 - r.c0) + c - r.c0) * width + first - start"
        else:
            place = "((n - r.n0) * width + s - start) * (r.c1 - r.c0) + first - r.c0"
        self.out(f"const int64_t tile = slab ? {place} : {tile};")
        for node in kept:
            slot = f"(slab ? {KEEP} : {TILE}) * {self.kept.index(node)}"
            self.out(f"T *restrict k{self.storage.var(node)} = (T *)keep + {slot} + tile;")

    def _fill(self, kept: list[Node], tile: str) -> None:
        """Kept values of the tile, where no earlier sweep of the slab has left them."""
        out, st = self.out, self.storage
        self._slots(kept, tile)
        earlier = st.plan.sweeps[: st.plan.sweeps.index(self.sweep)]
        before = set(below(st.plan, [n.args[0] for s in earlier for n in s.sums]))
        for there in (True, False):
            nodes = [n for n in kept if (n in before) is there]
            if not nodes:
                continue

            def body(_: int, tail: bool, nodes: list[Node] = nodes) -> None:
                self.values(nodes, tail=tail)
                for node in nodes:
                    out(store(f"k{st.var(node)} + {self.step} - first", st.var(node), tail=tail))

            self.filling = nodes
            with out.block("if (!slab) {" if there else "{"):
                self._strips(self.step, "first", "last", [], 1, body)
            self.filling = []

    def _positions(self) -> None:
        """NHWC: the middle loop walks positions, sums over space are vectors over channels."""
        out, st = self.out, self.storage
        vectors = [st.partial(n) for n in self.outer_sums]
        vectors += [st.partial(n.args[0], k) for n in self.outer_pairs for k in "mqk"]
        if vectors:
            with out.block("for (int64_t c = r.c0; c < r.c1; ++c) {"):
                for p in dict.fromkeys(vectors):
                    out(f"{p}[(n * Q + q) * C + c] = 0;")
        self._position_loop(self._first_roots(), second=False)
        if self.outer_pairs:
            with out.block("for (int64_t c = r.c0; c < r.c1; ++c) {"):
                for node in self.outer_pairs:
                    out(f"{st.partial(node.args[0], 'm')}[(n * Q + q) * C + c] /= (T)(hi - lo);")
            self._position_loop([n.args[0] for n in self.outer_pairs], second=True)

    def _position_loop(self, roots: list[Node], *, second: bool) -> None:
        out, st = self.out, self.storage
        with out.block("for (int64_t s = lo; s < hi; ++s) {"):
            out("const int64_t at = (n * S + s) * C, row = (n * Q + q) * C;", "(void)at; (void)row;")
            self.hoisted(roots)
            if second:

                def body(_: int, tail: bool) -> None:
                    self.values(roots, tail=tail)
                    for node in self.outer_pairs:
                        m, q, k = (f"{st.partial(node.args[0], kind)} + row + c" for kind in "mqk")
                        d = f"e{st.var(node)}"
                        out(f"const V {d} = {self.value(node.args[0])} - {load(m, tail=tail)};")
                        out(store(q, f"fma_({d}, {d}, {load(q, tail=tail)})", tail=tail))
                        out(store(k, f"{load(k, tail=tail)} + {d}", tail=tail))

                out("const int64_t first = r.c0, last = r.c1;")
                self._strips("c", "first", "last", [], 1, body)
                return
            # Sums over the channels of each group walk the groups one by one; all else walks the position at once.
            by_group = [n for n in [*self.inner_sums, *self.inner_pairs] if n.axes & G]
            if by_group:
                with out.block("for (int64_t g = r.c0 / K; g < (r.c1 + K - 1) / K; ++g) {"):
                    out("const int64_t first = MAX2(r.c0, g * K), last = MIN2(r.c1, (g + 1) * K);")
                    self._position(by_group, alone=True)
            rest = [n for n in [*self.inner_sums, *self.inner_pairs] if not n.axes & G]
            if rest or self.outer_sums or self.outer_pairs or self.sweep.stores:
                with out.block("{"):
                    out("const int64_t first = r.c0, last = r.c1;")
                    self._position(rest, alone=False)

    def _position(self, over_channels: list[Node], *, alone: bool) -> None:
        """Part of a position: these sums over channels, and unless `alone` what else the sweep does there."""
        out, st = self.out, self.storage
        before = self.inner_sums, self.inner_pairs
        self.inner_sums, self.inner_pairs = ([n for n in part if n in over_channels] for part in before)
        roots = [n.args[0] for n in over_channels] if alone else self._remaining_roots()
        sums = [st.var(n) for n in over_channels]
        if sums:
            out(f"T {', '.join(f'a{v}' for v in sums)};")
        kept = [n for n in below(st.plan, roots) if n in self.kept]
        if kept:
            self.hoisted([a for n in kept for a in n.args])
            out(*(f"double r{v} = 0;" for v in sums))
            with out.block(f"for (int64_t t = r.c0; t < r.c1; t += {TILE}) {{"):
                out(f"const int64_t first = t, last = MIN2(r.c1, t + {TILE});")
                self._fill(kept, "0")
                self._inner_loop(roots, "c", "first", "last")
                out(*(f"r{v} += (double)a{v};" for v in sums))
            out(*(f"a{v} = (T)r{v};" for v in sums))
        else:
            self._inner_loop(roots, "c", "first", "last", alone=alone)
        for node in self.inner_sums:
            scale = f" / {self._count(node)}" if node.op is Op.MEAN else ""
            out(f"{st.array(node)}[{address(node.axes)}] = a{st.var(node)}{scale};")
        if self.inner_pairs:
            out(*(f"a{st.var(n)} /= {self._count(n)};" for n in self.inner_pairs))
            self._deviations("c", "first", "last")
        for node in self.inner_pairs:
            v = st.var(node)
            count = self._count(node)
            out(f"{st.array(node)}[{address(node.axes)}] = (b{v} - c{v} * c{v} / {count}) / {count};")
            for mean in self._means(node):
                out(f"{st.array(mean)}[{address(mean.axes)}] = a{v} + c{v} / {count};")
        self.inner_sums, self.inner_pairs = before

    # -- pieces

    def _first_roots(self) -> list[Node]:
        roots = [n.args[0] for n in self.sweep.sums]
        return [*roots, *(n for _, n in self.sweep.stores)]

    def _remaining_roots(self) -> list[Node]:
        """What the loop over all channels of a position needs."""
        sums = [*self.inner_sums, *self.inner_pairs, *self.outer_sums, *self.outer_pairs]
        return [*(n.args[0] for n in sums), *(n for _, n in self.sweep.stores)]

    def _inner_loop(self, roots: list[Node], i: str, first: str, last: str, *, alone: bool = False) -> None:
        """Sums over the inner axis as a<v>, sums over the middle axis in place, outputs stored."""
        out, st = self.out, self.storage
        names = [name for name, _ in st.plan.outputs]

        def body(stream: int, tail: bool) -> None:
            self.values(roots, tail=tail)
            for node in [*self.inner_sums, *self.inner_pairs]:
                lane = f"la{st.var(node)}_{stream}"
                out(f"{lane} = {self.plus(lane, node, tail=tail)};")
            if alone:
                return
            for node in self.outer_sums:
                self.add(self._column(node) if self.inner == S else f"{st.partial(node)}[row + c]", node, tail=tail)
            for node in self.outer_pairs:
                target = self._column(node, "cm") if self.inner == S else f"{st.partial(node.args[0], 'm')}[row + c]"
                self.add(target, node, tail=tail)
            for name, node in self.sweep.stores:
                place = f"out{names.index(name)} + at + {i}"
                out(
                    f"PUT_N({place}, {self.value(node)}, some);" if tail else f"PUT({place}, {self.value(node)}, past);"
                )

        scalars = [f"a{st.var(n)}" for n in [*self.inner_sums, *self.inner_pairs]]
        self._strips(i, first, last, scalars, self._streams(roots), body)

    def _deviations(self, i: str, first: str, last: str) -> None:
        """From a<v>, the mean, rounded: b<v>, the sum of squared deviations from it, and c<v>, that of the deviations,
        which tells the rounding (the corrected two-pass algorithm, Chan, Golub and LeVeque 1983)."""
        out, st = self.out, self.storage
        roots = [n.args[0] for n in self.inner_pairs]

        def body(stream: int, tail: bool) -> None:
            self.values(roots, tail=tail)
            for node in self.inner_pairs:
                v = st.var(node)
                e = self.once(node, f"{self.value(node.args[0])} - a{v}")
                out(f"const V e{v} = {f'bits_if(here, {e})' if tail else e};")
                out(f"lb{v}_{stream} = fma_(e{v}, e{v}, lb{v}_{stream});", f"lc{v}_{stream} += e{v};")

        sums = [f"{k}{st.var(n)}" for n in self.inner_pairs for k in "bc"]
        out(f"T {', '.join(sums)};")
        self._strips(i, first, last, sums, self._streams(roots), body)

    def _streams(self, roots: list[Node]) -> int:
        """How many elements far apart one iteration takes: where it does little, the sums wait for themselves."""
        if self.outer_sums or self.outer_pairs or self.sweep.stores or len(roots) > 2:
            return 1
        work = sum(not is_stored(n) or is_full_input(n) for n in self.below(roots))
        return 4 if work <= 3 else 2 if work <= 8 else 1

    def _strips(
        self, i: str, first: str, last: str, sums: list[str], streams: int, body: Callable[[int, bool], None]
    ) -> None:
        """Loops over [first, last) that set the sums: vectors of W elements, `streams` of them at a time as long as
        they last, then the `some` elements that are left, of which `here` is the mask. A sum is a vector for each
        stream until the end."""
        out = self.out
        every = [f"l{a}_{k}" for a in sums for k in range(streams)]
        if every:
            out(f"V {', '.join(f'{v} = {{0}}' for v in every)};")
        with out.block("{"):
            out(f"int64_t from = {first};")
            for width in sorted({1, streams}, reverse=True):
                with out.block(f"for (; from + {width} * W <= {last}; from += {width} * W) {{"):
                    for k in range(width):
                        with out.block("{"):
                            out(f"const int64_t {i} = from + {k} * W;")
                            self._mask()
                            body(k, False)
            with out.block(f"if (from < {last}) {{"):
                out(f"const int64_t {i} = from, some = {last} - from;")
                if sums:
                    out("const M here = lanes(some);")
                self._mask()
                body(0, True)
        for a in sums:
            terms = [f"l{a}_{k}" for k in range(streams)]
            while len(terms) > 1:
                terms = [f"({x} + {y})" for x, y in zip(terms[::2], terms[1::2], strict=True)]
            out(f"{a} = total({terms[0]});")

    def _mask(self) -> None:
        """`once`: the mask of the first channel of each group, where a sum takes each group once."""
        if all(counts_all(n) for n in self.sweep.sums):
            return
        if self.inner == S:
            self.out("const M once = (M){0} - (I)(c == c / K * K);")
            return
        self.out("I first_of[W];", "for (int64_t l = 0; l < W; ++l) first_of[l] = -(I)((c + l) % K == 0);")
        self.out("const M once = load_mask(first_of);")

    def _count(self, node: Node) -> str:
        """How many values a sum over channels adds."""
        axes = node.reduced & node.args[0].axes
        return "(T)C" if axes == C else "(T)G" if axes == G else "(T)K"

    def _column(self, node: Node, kind: str = "") -> str:
        """An element of a sum over channels."""
        name = self.storage.array(node)
        if kind:
            size = "N * G * S" if node.axes & G else "N * S"
            name = self.storage.workspace(f"{kind}{self.storage.index[node]}", "T", size)
        return f"{name}[{address(node.axes)}]"

    def _over_column(self, node: Node, body: str) -> None:
        out = self.out
        if node.axes & G:
            with out.block("for (int64_t g = r.c0 / K; g < (r.c1 + K - 1) / K; ++g) {"):
                out("#pragma omp simd", "for (int64_t s = lo; s < hi; ++s) " + body)
        else:
            out("#pragma omp simd", "for (int64_t s = lo; s < hi; ++s) " + body)

    def _clear_column(self, node: Node, kind: str = "") -> None:
        self._over_column(node, f"{self._column(node, kind)} = 0;")

    def _finish_column(self, node: Node, target: str, count: str) -> None:
        self._over_column(node, f"{target} /= {count};")

    def _deliver(self, node: Node) -> None:
        self._over_column(node, f"{self._column(node)} = {self._column(node, 'cq')};")
        for mean in self._means(node):
            self._over_column(node, f"{self._column(mean)} = {self._column(node, 'cm')};")

    def _means(self, node: Node) -> list[Node]:
        """The mean taken beside a variance, where the plan asks for it."""
        return [n for n in self.sweep.sums if n.op is Op.MEAN and n.args == node.args and n.attr == node.attr]
