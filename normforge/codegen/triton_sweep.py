"""Triton text for the sweeps of a plan: programs over tiles [BLOCK_C, BLOCK_S] of one sample.

Walk "rows": a program owns a block of channels and a chunk of positions, and walks the chunk tile by tile. Walks
"columns" and "groups": it owns a block of positions and walks all channels (of a group). A variance is taken as
(mean, sum of squared deviations) of each tile, two passes over registers, and tiles are joined by Chan's formula, so
every full tensor is loaded once. Each partial has one writer; nothing is atomic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from normforge.codegen.factor import is_full
from normforge.codegen.plan import is_full_input
from normforge.codegen.text import Lines
from normforge.codegen.triton_names import Storage, below
from normforge.codegen.triton_schedule import SweepKernel
from normforge.ir.node import Node
from normforge.ir.ops import Op
from normforge.ir.types import C, G, K, S


@dataclass
class SweepText:
    """Emits the body of one sweep kernel."""

    storage: Storage
    kernel: SweepKernel

    def __post_init__(self) -> None:
        pairs = {(n.args, n.attr) for n in self.kernel.sums if n.op is Op.VAR}
        sums = [n for n in self.kernel.sums if n.op is not Op.VAR and (n.args, n.attr) not in pairs]
        variances = [n for n in self.kernel.sums if n.op is Op.VAR]
        self.row_sums = [n for n in sums if n.reduced & S]
        self.row_pairs = [n for n in variances if n.reduced & S]
        self.column_sums = [n for n in sums if not n.reduced & S]
        self.column_pairs = [n for n in variances if not n.reduced & S]
        self.rows = self.kernel.walk == "rows"
        self.nodes = below(self.storage, self.kernel.roots, self.kernel.reads)
        columns = {n for n in self.kernel.sums if not n.reduced & S}
        following = below(self.storage, self.kernel.values, self.kernel.reads | columns)
        self.column_values = [n for n in following if n in columns]  # sums that something reads
        self.following = [n for n in following if n not in columns and n not in self.nodes]

    def emit(self, out: Lines) -> None:
        """Write it."""
        self._place(out)
        self.storage.define_sizes(out, (n for n in (*self.nodes, *self.following) if n not in self.kernel.reads))
        walked = S if self.rows else C
        self._values(out, (n for n in self.nodes if not n.axes & walked))
        accumulators = self._open(out)
        if self.rows:
            head = "for t in range(0, tl.cdiv(tl.minimum(S - q * L, L), BLOCK_S)):"
        elif self.kernel.walk == "columns":
            head = "for c0 in range(0, C, BLOCK_C):"
        else:
            head = "for k0 in range(0, K, BLOCK_C):"
        with out.block(head, ""):
            self._step(out)
            self._values(out, (n for n in self.nodes if n.axes & walked))
            names = [name for name, _ in self.storage.plan.outputs]
            for name, node in self.kernel.stores:
                pointer = self.storage.outputs[names.index(name)]
                out(f"tl.store({pointer} + at, {self._value(node)}, mask=inside)")
            self._accumulate(out)
        if accumulators:
            self._close(out)

    # -- indices

    def _place(self, out: Lines) -> None:
        contiguous = "S" if self.storage.plan.layout == "nchw" else "C"
        out("N, S = N.to(tl.int64), S.to(tl.int64)", "C = G * K")
        with out.block("if ALIGNED:", ""):
            out(f"{contiguous} = {contiguous} // 16 * 16  # says so to the compiler: wide loads")
        if self.rows:
            out(
                "L = L // BLOCK_S * BLOCK_S  # as it is: says that chunks start at multiples of a tile",
                "blocks = tl.cdiv(C, BLOCK_C)",
                "q = (pid % Q).to(tl.int64)  # chunk of L positions",
                "n = (pid // Q // blocks).to(tl.int64)",
                "channel = pid // Q % blocks * BLOCK_C + tl.arange(0, BLOCK_C)",
                "c = channel.to(tl.int64)[:, None]  # [BLOCK_C, 1]",
                "g = (channel // K).to(tl.int64)[:, None]",
                "c_in = c < C",
            )
            return
        out("q = (pid % Q).to(tl.int64)  # block of positions")
        if self.kernel.walk == "columns":
            out("n = (pid // Q).to(tl.int64)")
        else:
            out("g = (pid // Q % G).to(tl.int64)", "n = (pid // Q // G).to(tl.int64)")
        out("s = (q * BLOCK_S + tl.arange(0, BLOCK_S))[None, :]  # [1, BLOCK_S]", "s_in = s < S")

    def _step(self, out: Lines) -> None:
        """Indices of the tile."""
        if self.rows:
            out(
                "s0 = q * L + t * BLOCK_S",
                "s = (s0 + tl.arange(0, BLOCK_S))[None, :]  # [1, BLOCK_S]",
                "s_in = s < S",
            )
        elif self.kernel.walk == "columns":
            out(
                "channel = c0 + tl.arange(0, BLOCK_C)",
                "c = channel.to(tl.int64)[:, None]  # [BLOCK_C, 1]",
                "g = (channel // K).to(tl.int64)[:, None]",
                "c_in = c < C",
            )
        else:
            out(
                "k = (k0 + tl.arange(0, BLOCK_C))[:, None]  # [BLOCK_C, 1]",
                "c = g * K + k",
                "c_in = k < K",
            )
        out("inside = c_in & s_in")
        at = "(n * C + c) * S + s" if self.storage.plan.layout == "nchw" else "(n * S + s) * C + c"
        out(f"at = {at}  # [BLOCK_C, BLOCK_S]")

    # -- values

    def _values(self, out: Lines, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if is_full_input(node):
                load = f"tl.load({self.storage.array(node)} + at, mask=inside, other=0.0)"
                out(f"{self.storage.var(node)} = {load}.to(tl.float32)")
            elif node in self.kernel.reads or node.op in (Op.INPUT, Op.PARAM):
                scalar_group = self.kernel.walk == "groups" and not node.axes & K
                channel = "c_in" if node.axes & G and not scalar_group else ""
                mask = "inside" if is_full(node.axes) and channel else channel or ("s_in" if node.axes & S else "")
                self.storage.fetch(out, node, mask)
            else:
                self.storage.assign(out, node)

    def _value(self, node: Node) -> str:
        return self.storage.constant(node) or self.storage.var(node)

    # -- sums

    def _open(self, out: Lines) -> bool:
        """Accumulators that live over the whole walk; True when there are any."""
        sums, pairs = (self.row_sums, self.row_pairs) if self.rows else (self.column_sums, self.column_pairs)
        shape = "[BLOCK_C, 1]" if self.rows else "[1, BLOCK_S]"
        for node in sums:
            out(f"{self.storage.var(node)} = tl.zeros({shape}, tl.float32)")
        for node in pairs:
            v = self.storage.var(node)
            out(f"mean_{v} = tl.zeros({shape}, tl.float32)", f"m2_{v} = tl.zeros({shape}, tl.float32)")
        if pairs and not self.rows:
            for v in dict.fromkeys(self._seen(n) for n in pairs):
                out(f"{v} = tl.zeros({shape}, tl.float32)")
        return bool(sums or pairs)

    def _accumulate(self, out: Lines) -> None:
        st = self.storage
        sums, pairs = (self.row_sums, self.row_pairs) if self.rows else (self.column_sums, self.column_pairs)
        axis = 1 if self.rows else 0
        for node in sums:
            out(f"{st.var(node)} += {self._sum(node, self._value(node.args[0]), axis)}")
        if pairs and self.rows:
            out("seen = (s0 - q * L).to(tl.float32)", "count = tl.minimum(S - s0, BLOCK_S).to(tl.float32)")
        for once in dict.fromkeys(self._seen(n) for n in pairs):
            if not self.rows:
                out(f"here = {self._mask(once.endswith('groups'))}")
                out("count = tl.sum(tl.where(here, 1.0, 0.0), axis=0, keep_dims=True)  # a block may have none")
            for node in pairs:
                if self._seen(node) == once:
                    v = st.var(node)
                    self._tile_pair(out, node, axis, "count" if self.rows else "tl.maximum(count, 1.0)")
                    out(f"mean_{v}, m2_{v} = chan(mean_{v}, m2_{v}, {once}, tile_mean, tile_m2, count)")
            if not self.rows:
                out(f"{once} += count")
        if self.rows or not (self.row_sums or self.row_pairs):
            return
        # Beside columns, each row of a tile is a chunk of its own.
        out("row = (n * Q + q) * C + c")
        for node in self.row_sums:
            out(f"tl.store({st.partial(node)} + row, {self._sum(node, self._value(node.args[0]), 1)}, mask=c_in)")
        if self.row_pairs:
            out("row_count = tl.minimum(S - q * BLOCK_S, BLOCK_S).to(tl.float32)")
        for node in self.row_pairs:
            self._tile_pair(out, node, 1, "row_count")
            out(f"tl.store({st.partial(node, 'm')} + row, tile_mean, mask=c_in)")
            out(f"tl.store({st.partial(node, 'q')} + row, tile_m2, mask=c_in)")

    def _tile_pair(self, out: Lines, node: Node, axis: int, count: str) -> None:
        value, mask = self._value(node.args[0]), self._mask(self._once(node))
        out(f"tile_mean = {self._sum(node, value, axis)} / {count}")
        out(f"delta = tl.where({mask}, {value} - tile_mean, 0.0)")
        out(f"tile_m2 = tl.sum(delta * delta, axis={axis}, keep_dims=True)")

    def _sum(self, node: Node, value: str, axis: int) -> str:
        return f"tl.sum(tl.where({self._mask(self._once(node))}, {value}, 0.0), axis={axis}, keep_dims=True)"

    def _once(self, node: Node) -> bool:
        """A sum over channels of what is the same for all channels of a group takes each group once."""
        return not node.reduced & S and not node.args[0].axes & K

    def _mask(self, once: bool) -> str:
        return "(inside & (c % K == 0))" if once else "inside"

    def _seen(self, node: Node) -> str:
        """The count of elements before this tile."""
        return "seen" if self.rows else "seen_groups" if self._once(node) else "seen_channels"

    def _close(self, out: Lines) -> None:
        st = self.storage
        if self.rows:
            out("row = (n * Q + q) * C + c")
            for node in self.row_sums:
                out(f"tl.store({st.partial(node)} + row, {st.var(node)}, mask=c_in)")
            for node in self.row_pairs:
                v = st.var(node)
                out(f"tl.store({st.partial(node, 'm')} + row, mean_{v}, mask=c_in)")
                out(f"tl.store({st.partial(node, 'q')} + row, m2_{v}, mask=c_in)")
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
            out(*st.stores(node, st.var(node), "s_in"))

    def _count(self, node: Node) -> str:
        """How many values a sum over channels adds."""
        axes = node.reduced & node.args[0].axes
        return f"{'C' if axes == C else 'G' if axes == G else 'K'}.to(tl.float32)"

    def _variance(self, mean: Node) -> Node:
        """The variance beside which a mean is taken."""
        return next(n for n in self.column_pairs if n.args == mean.args and n.attr == mean.attr)
