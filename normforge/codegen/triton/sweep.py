"""Triton text for the sweeps of a plan: programs over tiles [BLOCK_C, BLOCK_S] of one sample.

Walk "rows": a program owns a block of channels and a chunk of positions, and walks the chunk tile by tile. Walks
"columns" and "groups": it owns a block of positions and walks all channels (of a group). Sums along the walk are kept
by each thread for itself, over the elements of a tile that it holds, and threads are joined once after the walk: the
loop has no barrier and no shuffle. A variance is taken as (mean, sum of squared deviations) of a thread's elements of
a tile, two passes over registers, and tiles and threads are joined by Chan's formula, so every full tensor is loaded
once. Each partial has one writer; nothing is atomic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from normforge.codegen.index import chunk, full
from normforge.codegen.plan import is_full_input
from normforge.codegen.stage import Stage
from normforge.codegen.triton.kernels import SweepKernel
from normforge.codegen.triton.names import TritonStorage, below
from normforge.codegen.triton.walks import ROWS
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import C, G, K, S
from normforge.passes.factor import is_full

# Of the pipeline of derivatives: asynchronous copies bring tiles to shared memory two ahead. Their registers leave room
# for few programs, too few to hide the time that loads take; those of forward do.
STAGES = 3
PARTIAL = chunk()


@dataclass
class SweepText:
    """Emits the body of one sweep kernel."""

    storage: TritonStorage
    kernel: SweepKernel

    def __post_init__(self) -> None:
        pairs = {(n.args, n.attr) for n in self.kernel.sums if n.op is Op.VAR}
        sums = [n for n in self.kernel.sums if n.op is not Op.VAR and (n.args, n.attr) not in pairs]
        variances = [n for n in self.kernel.sums if n.op is Op.VAR]
        self.row_sums = [n for n in sums if n.reduced & S]
        self.row_pairs = [n for n in variances if n.reduced & S]
        self.column_sums = [n for n in sums if not n.reduced & S]
        self.column_pairs = [n for n in variances if not n.reduced & S]
        self.walk = self.kernel.walk
        self.rows = self.walk is ROWS  # else partials of rows are of single tiles
        # Along the walk, which is axis 1 of a tile for rows.
        self.sums, self.pairs = (self.row_sums, self.row_pairs) if self.rows else (self.column_sums, self.column_pairs)
        self.nodes = below(self.storage, self.kernel.roots, self.kernel.reads)
        columns = {n for n in self.kernel.sums if not n.reduced & S}
        following = below(self.storage, self.kernel.values, self.kernel.reads | columns)
        self.column_values = [n for n in following if n in columns]  # sums that something reads
        self.following = [n for n in following if n not in columns and n not in self.nodes]

    def emit(self, out: Stage) -> None:
        """Write it."""
        self._place(out)
        self.storage.define_sizes(out, (n for n in (*self.nodes, *self.following) if n not in self.kernel.reads))
        self._values(out, (n for n in self.nodes if not n.axes & self.walk.axes))
        out(f"size = {self.walk.size(out)}  # of the walk")
        block = out.constexpr(self.walk.block)
        if not (self.sums or self.pairs):
            with out.block(self._loop("0", f"tl.cdiv(size, {block})", f"{STAGES}"), ""):
                self._step(out, "{0} & {1}")
                self._tile(out)
            return
        out(f"whole = size // {block}")
        self._open(out)
        with out.block("for REST in tl.static_range(2):  # whole tiles, then what is left over, with masks", ""):
            first, last = "whole if REST else 0", f"tl.cdiv(size, {block}) if REST else whole"
            with out.block(self._loop(first, last, f"1 if REST else {STAGES}"), ""):
                self._step(out, "{0} & {1} if REST else {0}")
                self._tile(out)
        self._close(out)

    def _loop(self, first: str, last: str, stages: str) -> str:
        """The head of a walk over tiles; those of derivatives are brought ahead in so many stages."""
        if self.storage.plan.order == 0:
            return f"for t in range({first}, {last}):"
        return f"for t in tl.range({first}, {last}, num_stages={stages}):"

    def _tile(self, out: Stage) -> None:
        self._values(out, (n for n in self.nodes if n.axes & self.walk.axes))
        names = [name for name, _ in self.storage.plan.outputs]
        for name, node in self.kernel.stores:
            pointer = out.array(self.storage.outputs[names.index(name)])
            out(f"tl.store({pointer} + at, {self._value(node)}, mask=inside)")
        self._accumulate(out)

    # -- indices

    def _place(self, out: Stage) -> None:
        contiguous = "S" if self.storage.plan.layout == "nchw" else "C"
        out("N, S = N.to(tl.int64), S.to(tl.int64)", "C = G * K")
        aligned = out.constexpr("ALIGNED")
        with out.block(f"if {aligned} > 1:", ""):
            out(f"{contiguous} = {contiguous} // {aligned} * {aligned}  # says so to the compiler: wide loads")
        self.walk.place(out)

    def _step(self, out: Stage, inside: str) -> None:
        """Indices of the tile; `inside` is its mask, of those of what a program keeps and of what it walks."""
        self.walk.step(out)
        kept = "c_in" if self.rows else "s_in"
        out(f"inside = {inside.format(kept, self.walk.mask)}")
        out(f"at = {full(self.storage.plan.layout).plain}  # [BLOCK_C, BLOCK_S]")

    # -- values

    def _values(self, out: Stage, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if is_full_input(node):
                load = f"tl.load({out.array(self.storage.array(node))} + at, mask=inside, other=0.0)"
                out(f"{self.storage.var(node)} = {load}.to(tl.float32)")
            elif node in self.kernel.reads or node.op in (Op.INPUT, Op.PARAM):
                channel = "c_in" if self.walk.fetched(node.axes) else ""
                mask = "inside" if is_full(node.axes) and channel else channel or ("s_in" if node.axes & S else "")
                self.storage.fetch(out, node, mask)
            else:
                self.storage.assign(out, node)

    def _value(self, node: Node) -> str:
        return self.storage.constant(node) or self.storage.var(node)

    # -- sums

    def _open(self, out: Stage) -> None:
        """Accumulators that live over the whole walk, one for each thread along it."""
        threads = out.constexpr("THREADS")
        shape = "[BLOCK_C, THREADS]" if self.rows else "[THREADS, BLOCK_S]"
        for node in self.sums:
            out(f"{self.storage.var(node)} = tl.zeros({shape}, tl.float32)")
        for node in self.pairs:
            v = self.storage.var(node)
            out(f"mean_{v} = tl.zeros({shape}, tl.float32)", f"m2_{v} = tl.zeros({shape}, tl.float32)")
        if any(map(self._once, self.pairs)):
            out(f"groups = tl.zeros([{threads}, 1], tl.float32)  # that each thread has seen")
        if not all(map(self._once, self.pairs)):
            block = out.constexpr(self.walk.block)
            seen = out.call("own_seen", "size", f"{self.walk.axis}", block, threads, out.constexpr("VECTOR"))
            out(f"seen = {seen}", f"left = seen - (whole * ({block} // {threads})).to(tl.float32)")

    def _accumulate(self, out: Stage) -> None:
        st = self.storage
        for node in self.sums:
            out(f"{st.var(node)} += {out.call('own_sum', *self._own(out, node))}")
        for once in dict.fromkeys(map(self._once, self.pairs)):
            self._accumulate_pairs(out, [n for n in self.pairs if self._once(n) == once], once=once)
        if self.rows or not (self.row_sums or self.row_pairs):
            return
        # Beside columns, each row of a tile is a chunk of its own.
        out(f"row = {out.at(PARTIAL).plain}")
        for node in self.row_sums:
            total = f"tl.sum(tl.where(s_in, {self._value(node.args[0])}, 0.0), axis=1, keep_dims=True)"
            out(f"tl.store({out.array(st.partial(node))} + row, {total}, mask=c_in)")
        if self.row_pairs:
            block = out.constexpr("BLOCK_S")
            out(f"row_count = tl.minimum(S - q * {block}, {block}).to(tl.float32)")
        for node in self.row_pairs:
            value = self._value(node.args[0])
            means, squares = (out.array(st.partial(node, kind)) for kind in "mq")
            out(
                f"tile_mean = tl.sum(tl.where(s_in, {value}, 0.0), axis=1, keep_dims=True) / row_count",
                f"delta = tl.where(s_in, {value} - tile_mean, 0.0)",
                f"tl.store({means} + row, tile_mean, mask=c_in)",
                f"tl.store({squares} + row, tl.sum(delta * delta, axis=1, keep_dims=True), mask=c_in)",
            )

    def _accumulate_pairs(self, out: Stage, nodes: list[Node], *, once: bool) -> None:
        """A tile added to (mean, sum of squared deviations) of what threads have seen."""
        before, count = ("groups", "count_groups") if once else ("before", "count")
        block, threads = out.constexpr(self.walk.block), out.constexpr("THREADS")
        if once:
            ones = ("tl.where(c % K == 0, 1.0, 0.0)", "c_in", "True", "0", out.constexpr("BLOCK_C"), "1")
            out(f"count_groups = {out.call('own_sum', *ones, threads, out.constexpr('VECTOR'))}")
        else:
            out(f"before = tl.cast(t, tl.float32) * ({block} // {threads})")
            out(f"count = left if REST else tl.full([], {block} // {threads}, tl.float32)")
        for node in nodes:
            v = self.storage.var(node)
            value, *rest = self._own(out, node)
            out(f"tile_mean, tile_m2 = {out.call('own_pair', value, count, *rest)}")
            joined = out.call("chan", f"mean_{v}", f"m2_{v}", before, "tile_mean", "tile_m2", count)
            out(f"mean_{v}, m2_{v} = {joined}")
        if once:
            out("groups += count_groups")

    def _own(self, out: Stage, node: Node) -> tuple[str, ...]:
        """Arguments of the functions that take what one thread holds of a tile: the value, its mask, the shape."""
        mask, masked = self.walk.mask, "REST"
        if self._once(node):
            mask, masked = f"{mask} & (c % K == 0)", "True"
        blocks = map(out.constexpr, ("BLOCK_C", "BLOCK_S", "THREADS", "VECTOR"))
        return self._value(node.args[0]), mask, masked, f"{self.walk.axis}", *blocks

    def _once(self, node: Node) -> bool:
        """A sum over channels of what is the same for all channels of a group takes each group once."""
        return not node.reduced & S and not node.args[0].axes & K

    def _close(self, out: Stage) -> None:
        """Threads are joined; partials of rows, and values of columns, are stored."""
        st, axis = self.storage, self.walk.axis
        for node in self.sums:
            out(f"{st.var(node)} = tl.sum({st.var(node)}, axis={axis}, keep_dims=True)")
        for node in self.pairs:
            v, seen = st.var(node), "groups" if self._once(node) else "seen"
            out(f"mean_{v}, m2_{v} = {out.call('join', f'mean_{v}', f'm2_{v}', seen, f'{axis}')}")
        if self.rows:
            out(f"row = {out.at(PARTIAL).plain}")
            for node in self.row_sums:
                out(f"tl.store({out.array(st.partial(node))} + row, {st.var(node)}, mask=c_in)")
            for node in self.row_pairs:
                v = st.var(node)
                out(f"tl.store({out.array(st.partial(node, 'm'))} + row, mean_{v}, mask=c_in)")
                out(f"tl.store({out.array(st.partial(node, 'q'))} + row, m2_{v}, mask=c_in)")
            return
        for node in self.column_values:
            v = st.var(node)
            if node in self.column_pairs:
                out(f"{v} = m2_{v} / {self._count(node)}")
            elif node not in self.column_sums:
                out(f"{v} = mean_{st.var(self._variance(node))}")
            elif node.op is Op.MEAN:
                out(f"{v} = {v} / {self._count(node)}")
        self._values(out, self.following)
        for node in self.kernel.values:
            st.store(out, node, st.var(node), "s_in")

    def _count(self, node: Node) -> str:
        """How many values a sum over channels adds."""
        axes = node.reduced & node.args[0].axes
        return f"{'C' if axes == C else 'G' if axes == G else 'K'}.to(tl.float32)"

    def _variance(self, mean: Node) -> Node:
        """The variance beside which a mean is taken."""
        return next(n for n in self.column_pairs if n.args == mean.args and n.attr == mean.attr)
