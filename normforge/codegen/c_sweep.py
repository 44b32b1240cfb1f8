"""C for the sweeps of a plan.

Two loops walk a chunk of one sample: the inner one over the axis that is contiguous in memory (space in NCHW,
channels in NHWC), the middle one over the other. A sum over the inner axis is a scalar of the middle loop; a sum
over the middle axis is a vector as long as the inner one. Variances take a second walk over data that is still in
the cache, centred by the mean of the tile or chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from normforge.codegen.c_names import CODE, Storage, address, is_full_input, is_stored
from normforge.codegen.c_small import has_variance
from normforge.codegen.plan import Sweep
from normforge.codegen.text import Lines
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import C, G, K, S

TILE = 4096  # elements of a row between two visits of the same data: 16 KiB, half of a level-1 cache


@dataclass
class SweepEmitter:
    """Emits `static void sweepN(const Ctx *x, Region r)` for one sweep."""

    out: Lines
    storage: Storage
    sweep: Sweep

    def __post_init__(self) -> None:
        self.inner = S if self.storage.plan.layout == "nchw" else C
        sums = [n for n in self.sweep.sums if n.op is Op.SUM or (n.op is Op.MEAN and not has_variance(n, self.storage))]
        pairs = [n for n in self.sweep.sums if n.op is Op.VAR]
        self.inner_sums = [n for n in sums if n.reduced & self.inner]
        self.outer_sums = [n for n in sums if not n.reduced & self.inner]
        self.inner_pairs = [n for n in pairs if n.reduced & self.inner]
        self.outer_pairs = [n for n in pairs if not n.reduced & self.inner]

    # -- values at one element

    def values(self, roots: Iterable[Node]) -> None:
        """Emit the full values below `roots` as locals of the inner loop."""
        out, st = self.out, self.storage
        for node in self.below(roots):
            if is_full_input(node):
                out(f"const T {st.var(node)} = LOAD({st.array(node)}, at + {self.step});")
            elif self.varies(node):
                out(f"const T {st.var(node)} = {self.stored(node)};")
            elif not is_stored(node):
                args = [st.leaf(a) or st.var(a) for a in node.args]
                out(f"const T {st.var(node)} = {CODE[node.op].format(*args)};")

    def hoisted(self, roots: Iterable[Node]) -> None:
        """Emit the small values that do not change along the inner axis."""
        for node in self.below(roots):
            if is_stored(node) and not is_full_input(node) and not self.varies(node) and self.storage.leaf(node) is None:
                self.out(f"const T {self.storage.var(node)} = {self.stored(node)};")

    def below(self, roots: Iterable[Node]) -> list[Node]:
        """Everything that the roots need at an element: full values down to full inputs and stored values."""
        roots = list(roots)
        inside: set[Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node not in inside:
                inside.add(node)
                if not is_full_input(node) and not is_stored(node):
                    stack.extend(node.args)
        return [n for n in self.storage.plan.graph.nodes if n in inside]

    def varies(self, node: Node) -> bool:
        """True for a stored value that changes along the inner axis."""
        return is_stored(node) and not is_full_input(node) and bool(node.axes & self.inner)

    def stored(self, node: Node) -> str:
        """A stored value at n, c, s."""
        if self.inner == C and node.axes & G and not node.axes & K:
            if node.axes & S:
                return f"{self.storage.array(node)}[{address(node.axes).replace('g', '(c / K)')}]"
            return f"{self.storage.expanded(node)}[{address(node.axes | K)}]"
        return self.storage.load(node)

    @property
    def step(self) -> str:
        """The index that the inner loop advances."""
        return "s" if self.inner == S else "c"

    def value(self, node: Node) -> str:
        """An operand, as the text of its value at the element."""
        return self.storage.leaf(node) or self.storage.var(node)

    # -- the walk

    def emit(self, number: int) -> None:
        """The function of this sweep."""
        out = self.out
        with out.block(f"static void sweep{number}(const Ctx *x, Region r) {{"):
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
        out("")

    def _rows(self) -> None:
        """NCHW: the middle loop walks channels."""
        out = self.out
        for node in self.outer_sums:
            self._clear_column(node)
        for node in self.outer_pairs:
            self._clear_column(node, "cm")
            self._clear_column(node, "cq")
        with self._channels():
            self._row()
        for node in self.outer_sums:
            if node.op is Op.MEAN:
                self._finish_column(node, self._column(node), f"{self._count(node)}")
        for node in self.outer_pairs:
            self._finish_column(node, self._column(node, "cm"), self._count(node))
        if self.outer_pairs:
            with self._channels():
                roots = [n.args[0] for n in self.outer_pairs]
                self.hoisted(roots)
                out("#pragma omp simd")
                with out.block("for (int64_t s = lo; s < hi; ++s) {"):
                    self.values(roots)
                    for node in self.outer_pairs:
                        d = f"e{self.storage.var(node)}"
                        out(f"const T {d} = {self.value(node.args[0])} - {self._column(node, 'cm')};")
                        out(f"{self._column(node, 'cq')} += {self._once(node, f'{d} * {d}')};")
            for node in self.outer_pairs:
                self._finish_column(node, self._column(node, "cq"), self._count(node))
                self._deliver(node)

    def _channels(self):  # type: ignore[no-untyped-def]
        """The loop over channels of one sample, with the row's base index."""
        out = self.out

        class Loop:
            def __enter__(self) -> None:
                self.block = out.block("for (int64_t c = r.c0; c < r.c1; ++c) {")
                self.block.__enter__()
                out("const int64_t g = c / K, at = (n * C + c) * S;", "(void)g; (void)at;")

            def __exit__(self, *e: object) -> None:
                self.block.__exit__(None, None, None)

        return Loop()

    def _row(self) -> None:
        out, st = self.out, self.storage
        roots = self._first_roots()
        self.hoisted(roots)
        for node in self.inner_sums:
            out(f"double r{st.var(node)} = 0;")
        for node in self.inner_pairs:
            v = st.var(node)
            out(f"T m{v} = 0, q{v} = 0;")
        tiled = bool(self.inner_sums or self.inner_pairs)
        with out.block(f"for (int64_t t = lo; t < hi; t += {TILE}) {{" if tiled else "{"):
            lo, hi = ("t", f"MIN2(hi, t + {TILE})") if tiled else ("lo", "hi")
            out(f"const int64_t first = {lo}, last = {hi};")
            self._inner_loop(roots, "s", "first", "last")
            for node in self.inner_sums:
                out(f"r{st.var(node)} += (double)a{st.var(node)};")
            if self.inner_pairs:
                out("const T here = (T)(last - first), before = (T)(first - lo);")
                self._centred_inner("s", "first", "last", "here")
                for node in self.inner_pairs:  # Chan et al., Updating Formulae, 1979
                    v = st.var(node)
                    out(f"const T d{v} = a{v} - m{v};")
                    out(f"m{v} += d{v} * (here / (before + here));")
                    out(f"q{v} += b{v} + d{v} * d{v} * (before * here / (before + here));")
        for node in self.inner_sums:
            v = st.var(node)
            if st.chunked:
                out(f"{st.partial(node)}[(n * Q + q) * C + c] = (T)r{v};")
            else:
                mean = " / (double)S" if node.op is Op.MEAN else ""
                out(f"{st.array(node)}[{address(node.axes)}] = (T)(r{v}{mean});")
        for node in self.inner_pairs:
            v = st.var(node)
            if st.chunked:
                a = node.args[0]
                out(f"{st.partial(a, 'm')}[(n * Q + q) * C + c] = m{v};")
                out(f"{st.partial(a, 'q')}[(n * Q + q) * C + c] = q{v};")
            else:
                out(f"{st.array(node)}[{address(node.axes)}] = q{v} / (T)S;")
                for mean in self._means(node):
                    out(f"{st.array(mean)}[{address(mean.axes)}] = m{v};")

    def _positions(self) -> None:
        """NHWC: the middle loop walks positions, sums over space are vectors over channels."""
        out, st = self.out, self.storage
        vectors = [st.partial(n) for n in self.outer_sums]
        vectors += [st.partial(n.args[0], k) for n in self.outer_pairs for k in "mq"]
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
                out("#pragma omp simd")
                with out.block("for (int64_t c = r.c0; c < r.c1; ++c) {"):
                    self.values(roots)
                    for node in self.outer_pairs:
                        m, q = (st.partial(node.args[0], k) for k in "mq")
                        d = f"e{st.var(node)}"
                        out(f"const T {d} = {self.value(node.args[0])} - {m}[row + c];", f"{q}[row + c] += {d} * {d};")
                return
            # Sums over the channels of each group need the groups one by one.
            grouped = any(n.axes & G for n in [*self.inner_sums, *self.inner_pairs])
            with out.block("for (int64_t g = r.c0 / K; g < (r.c1 + K - 1) / K; ++g) {" if grouped else "{"):
                lo, hi = ("MAX2(r.c0, g * K)", "MIN2(r.c1, (g + 1) * K)") if grouped else ("r.c0", "r.c1")
                out(f"const int64_t first = {lo}, last = {hi};")
                self._inner_loop(roots, "c", "first", "last")
                for node in self.inner_sums:
                    v = st.var(node)
                    scale = f" / {self._count(node)}" if node.op is Op.MEAN else ""
                    out(f"{st.array(node)}[{address(node.axes)}] = a{v}{scale};")
                if self.inner_pairs:
                    self._centred_inner("c", "first", "last", "")
                for node in self.inner_pairs:
                    v = st.var(node)
                    out(f"{st.array(node)}[{address(node.axes)}] = b{v} / {self._count(node)};")
                    for mean in self._means(node):
                        out(f"{st.array(mean)}[{address(mean.axes)}] = a{v};")

    # -- pieces

    def _first_roots(self) -> list[Node]:
        roots = [n.args[0] for n in self.sweep.sums]
        return [*roots, *(n for _, n in self.sweep.stores)]

    def _inner_loop(self, roots: list[Node], i: str, first: str, last: str) -> None:
        """Sums over the inner axis as a<v>, sums over the middle axis in place, outputs stored."""
        out, st = self.out, self.storage
        scalars = [f"a{st.var(n)}" for n in [*self.inner_sums, *self.inner_pairs]]
        if scalars:
            out(f"T {', '.join(f'{a} = 0' for a in scalars)};")
        out("#pragma omp simd" + (f" reduction(+: {', '.join(scalars)})" if scalars else ""))
        with out.block(f"for (int64_t {i} = {first}; {i} < {last}; ++{i}) {{"):
            self.values(roots)
            for node in [*self.inner_sums, *self.inner_pairs]:
                out(f"a{st.var(node)} += {self._once(node, self.value(node.args[0]))};")
            for node in self.outer_sums:
                target = self._column(node) if self.inner == S else f"{st.partial(node)}[row + c]"
                out(f"{target} += {self._once(node, self.value(node.args[0]))};")
            for node in self.outer_pairs:
                target = self._column(node, "cm") if self.inner == S else f"{st.partial(node.args[0], 'm')}[row + c]"
                out(f"{target} += {self._once(node, self.value(node.args[0]))};")
            names = [name for name, _ in st.plan.outputs]
            for name, node in self.sweep.stores:
                out(f"STORE(out{names.index(name)}, at + {i}, {self.value(node)});")

    def _centred_inner(self, i: str, first: str, last: str, count: str) -> None:
        """a<v> becomes the mean of the tile and b<v> its sum of squared deviations."""
        out, st = self.out, self.storage
        squares = [f"b{st.var(n)}" for n in self.inner_pairs]
        for node in self.inner_pairs:
            out(f"a{st.var(node)} /= {count or self._count(node)};")
        out(f"T {', '.join(f'{b} = 0' for b in squares)};")
        out(f"#pragma omp simd reduction(+: {', '.join(squares)})")
        with out.block(f"for (int64_t {i} = {first}; {i} < {last}; ++{i}) {{"):
            self.values([n.args[0] for n in self.inner_pairs])
            for node in self.inner_pairs:
                v = st.var(node)
                out(f"const T e{v} = {self.value(node.args[0])} - a{v};")
                out(f"b{v} += {self._once(node, f'e{v} * e{v}')};")

    def _once(self, node: Node, text: str) -> str:
        """A sum over channels of what is the same for all channels of a group takes each group once."""
        if not node.reduced & S and not node.args[0].axes & K:
            return f"(c == c / K * K ? {text} : (T)0)"
        return text

    def _count(self, node: Node) -> str:
        """How many values a sum over channels adds."""
        axes = node.reduced & node.args[0].axes
        return "(T)C" if axes == C else "(T)G" if axes == G else "(T)K"

    def _column(self, node: Node, kind: str = "") -> str:
        """An element of a sum over channels."""
        name = self.storage.array(node)
        if kind:
            name = self.storage.workspace(f"{kind}{self.storage.index[node]}", "T", "N * S" if not node.axes & G else "N * G * S")
        return f"{name}[{address(node.axes)}]"

    def _over_column(self, node: Node, body: str) -> None:
        out = self.out
        if node.axes & G:
            with out.block("for (int64_t g = r.c0 / K; g < (r.c1 + K - 1) / K; ++g) {"):
                out("for (int64_t s = lo; s < hi; ++s) " + body)
        else:
            out("for (int64_t s = lo; s < hi; ++s) " + body)

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


