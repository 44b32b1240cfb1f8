"""Triton text for resident plans: one program holds whole slabs in registers.

Every full operand is loaded once into a tile; all sums of the slab are taken there, with small values in between, and
outputs are stored from there. What is the same for all elements along an axis of the tile has extent 1 on it and is
broadcast. Sums that cross slabs are left as small values or partial sums, with one writer each, for a small kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from normforge.codegen.plan import is_full_input
from normforge.codegen.text import Lines, wrapped
from normforge.codegen.triton.names import Storage, address, extents
from normforge.codegen.triton.schedule import SlabKernel
from normforge.codegen.triton.slab_plan import slabs_of
from normforge.ir.node import Node, toposort
from normforge.ir.ops import LEAF, REDUCE, Op
from normforge.ir.types import B, C, G, K, S, axes_name

STAGES = 3  # tiles that are on their way to a program while it works on one, and that one


@dataclass
class ResidentText:
    """Emits the body of the kernel of a resident plan."""

    storage: Storage
    kernel: SlabKernel

    def __post_init__(self) -> None:
        self.walk = self.kernel.walk
        self.persistent = slabs_of(self.storage.plan).persistent
        self.done: set[Node] = set()
        self.means: dict[tuple[tuple[Node, ...], tuple[object, ...]], str] = {}

    def emit(self, out: Lines) -> None:
        """Write it."""
        nodes = toposort(self.kernel.roots, self._operands)
        self._place(out)
        self.storage.define_sizes(out, (n for n in nodes if n not in self.kernel.reads))
        if not self.persistent:
            self._slab(out, nodes)
            return
        self._values(out, (n for n in nodes if not n.axes & S))
        partials = [(node, f"sum_{self.storage.var(node)}") for node in self.kernel.partials]
        out(*(f"{total} = tl.zeros([BLOCK_A, BLOCK_E], tl.float32)" for _, total in partials))
        before = set(self.done)
        length = "tl.minimum(S - first, L0).to(tl.int32)"
        with out.block(f"for s0 in tl.range(0, {length}, BLOCK_A, num_stages={STAGES}):", ""):
            self._slab(out, nodes)
        self.done = before
        for node, total in partials:
            self._store_partial(out, node, f"tl.sum({total}, axis=0, keep_dims=True)")

    def _slab(self, out: Lines, nodes: list[Node]) -> None:
        """The work on one tile."""
        self._tile(out)
        self._values(out, (n for n in nodes if is_full_input(n)))
        sums = {n for n in nodes if n.op in REDUCE and n not in self.kernel.reads}
        level: dict[Node, int] = {}
        for node in nodes:
            level[node] = max((level[a] for a in self._operands(node)), default=0) + (node in sums)
        for i in range(max(level.values(), default=0) + 1):
            self._sums(out, [n for n in nodes if n in sums and level[n] == i])
            for node in self.kernel.partials:
                if level[node.args[0]] == i:
                    self._need(out, node.args[0])
                    self._partial(out, node)
        for node in self.kernel.values:
            self._need(out, node)
            out(*self.storage.stores(node, self._value(node), self._writer(node), beside=self._beside(node)))
        names = [name for name, _ in self.storage.plan.outputs]
        for name, node in self.kernel.stores:
            self._need(out, node)
            out(f"tl.store({self.storage.outputs[names.index(name)]} + at, {self._value(node)}, mask=inside)")

    def _need(self, out: Lines, node: Node) -> None:
        self._values(out, toposort([node], lambda n: () if n in self.done else self._operands(n)))

    def _operands(self, node: Node) -> tuple[Node, ...]:
        return () if node in self.kernel.reads else node.args

    # -- indices

    def _place(self, out: Lines) -> None:
        """What the program decides."""
        out("N, S = N.to(tl.int64), S.to(tl.int64)", "C = G * K")
        with out.block("if ALIGNED > 1:", ""):
            contiguous = "S" if self.walk.on_e & S else "C"
            out(f"{contiguous} = {contiguous} // ALIGNED * ALIGNED  # says so to the compiler: wide accesses")
        if self.persistent:
            out("first = (pid % Q0).to(tl.int64) * L0  # position of the chunk", "q = pid % Q0")
        out("pid += tl.arange(0, 1)[:, None]  # [1, 1]", *self._lanes())
        {"rows": self._slab_rows, "channels": self._slab_channels}.get(self.walk.name, self._slab_block)(out)

    def _lanes(self) -> tuple[str, ...]:
        return (
            "a = tl.arange(0, BLOCK_A)[:, None]  # [BLOCK_A, 1]",
            "e = tl.arange(0, BLOCK_E)[None, :]  # [1, BLOCK_E]",
        )

    def _slab_rows(self, out: Lines) -> None:
        slab, rows = self.walk.slab, self.walk.crossed & ~S
        out("chunks = tl.cdiv(S, BLOCK_E).to(tl.int32)  # of a row")
        counts = [name.replace("N", "N.to(tl.int32)") for name in extents(rows)]
        out(f"each = {' * '.join([*counts, 'chunks'])}  # chunks of a slab")
        self._number(out)
        out(f"slab_in = slab < {' * '.join(extents(slab)) or '1'}")
        self._decode(out, slab, "slab")

    def _number(self, out: Lines) -> None:
        """The number of the slab: several along BLOCK_A, or one."""
        with out.block("if MANY:", ""):
            out("slab = pid * SLABS + a // each")
        with out.block("else:", ""):
            out("slab = pid")

    def _slab_channels(self, out: Lines) -> None:
        if self.walk.slab & G:
            with out.block("if ALIGNED > 1:", ""):
                out("WIDTH = WIDTH // ALIGNED * ALIGNED")
            out("blocks = tl.cdiv(C, WIDTH)  # of WIDTH channels", "first = pid % blocks * WIDTH")
            out("channel = first + e  # [1, BLOCK_E]", "e_in = (e < WIDTH) & (channel < C)")
        else:
            out("blocks = 1", "channel = e  # [1, BLOCK_E]", "e_in = channel < C")
        self._channel(out)
        if self.walk.slab & B:
            out("n = (pid // blocks).to(tl.int64)")

    def _slab_block(self, out: Lines) -> None:
        """A block of positions; all channels (of a group) lie along the other axis of the tile."""
        positions = "e" if self.walk.on_e & S else "a"
        block = f"BLOCK_{positions.upper()}"
        if self.persistent:
            self._sample(out, "Q0")
            self._across(out)
            return
        out(f"Q = tl.cdiv(S, {block}).to(tl.int32)", "q = (pid % Q).to(tl.int64)  # block of positions")
        self._sample(out, "Q")
        out(f"s = q * {block} + {positions}", f"{positions}_in = s < S")

    def _sample(self, out: Lines, chunks: str) -> None:
        """n, and g where a program owns a group."""
        if self.walk.slab & G:
            out(f"g = (pid // {chunks} % G).to(tl.int64)", f"n = (pid // {chunks} // G).to(tl.int64)")
        else:
            out(f"n = (pid // {chunks}).to(tl.int64)")

    def _tile(self, out: Lines) -> None:
        """What the place in the tile decides."""
        walk = self.walk
        if walk.name == "rows":
            rows = walk.crossed & ~S
            if rows:
                out("row = a % each // chunks")
            out(
                "q = (a % chunks).to(tl.int64)",
                f"a_in = {self._chunk_in()}",
                "s = q * BLOCK_E + e  # [BLOCK_A, BLOCK_E]",
                "e_in = s < S",
            )
            self._decode(out, rows, "row")
            if walk.slab & G and not walk.slab & K:
                out("c = g * K + k")
        elif walk.name == "channels":
            if walk.slab & B:
                out("s = a.to(tl.int64)  # [BLOCK_A, 1]", "a_in = s < S")
            else:
                out("positions = S.to(tl.int32)", "n = (a // positions).to(tl.int64)")
                out("s = (a % positions).to(tl.int64)", "a_in = n < N")
        elif self.persistent:
            out("s = first + s0 + a  # [BLOCK_A, 1]", "a_in = s < S")
        else:
            self._across(out)
        at = "(n * C + c) * S + s" if walk.on_e & S else "(n * S + s) * C + c"
        out("inside = a_in & e_in", f"at = {at}  # [BLOCK_A, BLOCK_E]")

    def _across(self, out: Lines) -> None:
        """The channels that lie along an axis of the tile as a whole."""
        channels = "a" if self.walk.on_e & S else "e"
        if self.walk.slab & G:
            out(f"k = {channels}", "c = g * K + k", f"{channels}_in = k < K")
        else:
            out(f"channel = {channels}", f"{channels}_in = channel < C")
            self._channel(out)

    @staticmethod
    def _channel(out: Lines) -> None:
        """c, g and k of a channel; 64-bit divisions would be subroutines."""
        out("c = channel.to(tl.int64)", "g = (channel // K).to(tl.int64)", "k = channel % K")

    def _chunk_in(self) -> str:
        return "(a < SLABS * each) & slab_in"

    def _decode(self, out: Lines, axes: int, index: str) -> None:
        """n, c or g or k from a number of a slab or a row."""
        names = [("n", "N")] if axes & B else []
        if axes & C:
            names.append(("c", "C") if axes & C == C else ("g", "G") if axes & G else ("k", "K"))
        if len(names) == 2:
            (first, _), (second, count) = names
            out(f"{first} = ({index} // {count}).to(tl.int64)", f"{second} = ({index} % {count}).to(tl.int64)")
            number = f"({index} % {count})"
        elif names:
            out(f"{names[0][0]} = {index}.to(tl.int64)")
            number = index
        if axes & C == C:
            out(f"g = ({number} // K).to(tl.int64)", f"k = {number} % K")

    # -- values

    def _values(self, out: Lines, nodes: Iterable[Node]) -> None:
        st = self.storage
        for node in nodes:
            if node in self.done or node.op in (Op.CONST, Op.SIZE):
                continue
            self.done.add(node)
            if is_full_input(node):
                out(f"{st.var(node)} = tl.load({st.array(node)} + at, mask=inside, other=0.0).to(tl.float32)")
            elif node in self.kernel.reads or node.op in LEAF:
                st.fetch(out, node, self._loaded(node.axes))
            elif node.op in REDUCE:
                self._sums(out, [node])
            else:
                st.assign(out, node)

    def _value(self, node: Node) -> str:
        return self.storage.constant(node) or self.storage.var(node)

    def _varies(self, axes: int) -> tuple[bool, bool]:
        """Does a value of these axes vary along BLOCK_A, along BLOCK_E?"""
        return bool(axes & self.walk.on_a), bool(axes & self.walk.on_e)

    def _loaded(self, axes: int) -> str:
        """The mask of a load of a small value."""
        along_a, along_e = self._varies(axes)
        if along_a and along_e:
            return "inside"
        if self.walk.name == "rows":
            return "slab_in" if axes and not axes & ~self.walk.slab else "a_in" if axes else ""
        return "a_in" if along_a else "e_in" if along_e else ""

    def _writer(self, node: Node) -> str:
        """The mask of a store of a small value: one element of the tile for each element of it."""
        along_a, along_e = self._varies(node.axes)
        terms = ["a_in"] * (along_a or self.walk.name == "rows") + ["e_in"] * along_e
        return self._and([*terms, *self._once(self.walk.crossed & ~node.axes, along_a, along_e)]) or "pid >= 0"

    def _beside(self, node: Node) -> str:
        """Gives the address of a small value the shape of its mask; 0 in a writer."""
        if self.walk.name == "rows":
            return "" if node.axes & S else " + q"
        return "" if node.axes else " + (pid * 0).to(tl.int64)"

    def _once(self, missing: int, along_a: bool, along_e: bool) -> list[str]:
        """Conditions that pick one of the elements of the tile that hold the same value, `missing` axes apart."""
        on = self.walk.on_a * along_a | self.walk.on_e * along_e
        rows = self.walk.name == "rows"
        names = {B: "n", G: "g", K: "k", S: "q" if rows else "s"}
        return [f"({names[axis]} == 0)" for axis in names if axis & missing & on and (axis != S or not rows or along_a)]

    @staticmethod
    def _and(terms: Iterable[str]) -> str:
        return " & ".join(dict.fromkeys(terms))

    # -- sums

    def _sums(self, out: Lines, nodes: list[Node]) -> None:
        """Sums that do not wait for each other: those along one axis of the tile are joined."""
        st = self.storage
        for node in nodes:
            self._need(out, node.args[0])
        self.done.update(nodes)
        terms: list[tuple[Node, str, str]] = []  # sum, what it adds, what it is called
        for node in nodes:
            key, name = (node.args, node.attr), st.var(node)
            if node.op is Op.SUM:
                terms.append((node, self._value(node.args[0]), name))
            elif key not in self.means:
                self.means[key] = next((st.var(n) for n in nodes if n.op is Op.MEAN and (n.args, n.attr) == key), "")
                self.means[key] = self.means[key] or f"mean_{name}"
                terms.append((node, self._value(node.args[0]), self.means[key]))
        self._joined(out, terms)
        variances = [n for n in nodes if n.op is Op.VAR]
        for node in variances:
            mean = self.means[node.args, node.attr]
            out(f"delta_{st.var(node)} = {self._value(node.args[0])} - {mean}")
        squares = [(n, f"delta_{st.var(n)} * delta_{st.var(n)}", st.var(n)) for n in variances]
        self._joined(out, squares)
        for node in nodes:
            if node.op is Op.MEAN and st.var(node) != self.means[node.args, node.attr]:
                out(f"{st.var(node)} = {self.means[node.args, node.attr]}")

    def _joined(self, out: Lines, terms: list[tuple[Node, str, str]]) -> None:
        """Take the sums of `terms`, divided by what they count where they are no plain sums."""
        alike: dict[tuple[str, tuple[bool, bool]], list[tuple[Node, str, str]]] = {}
        for term in terms:
            alike.setdefault((self._total(term[0]), self._varies(term[0].args[0].axes)), []).append(term)
        for (total, _), mine in alike.items():
            joins = re.fullmatch(r"(sum_row|sum_slab)\((tl\.where\(.*\), )((?:slab, MANY, )?\w+)\)", total)
            i = 0
            while i < len(mine):
                count = next(n for n in (4, 2, 1) if n <= len(mine) - i) if joins else 1
                part, i = mine[i : i + count], i + count
                if joins and count > 1:
                    name, inner, rest = joins.groups()
                    items = [*(inner.format(v)[:-2] for _, v, _ in part), *rest.split(", ")]
                    out(*wrapped(f"{', '.join(name for _, _, name in part)} = {name}{count}", items, ""))
                else:
                    node, value, name = part[0]
                    out(f"{name} = {total.format(value)}  # {axes_name(node.axes)}")
            for node, _, name in mine:
                if node.op is not Op.SUM:
                    over = node.reduced & node.args[0].axes
                    out(f"{name} = {name} / ({' * '.join(extents(over))}).to(tl.float32)")

    def _total(self, node: Node) -> str:
        """The text of a sum of what stands for `{}`."""
        text, along_e = self._tile_total(node)
        return text if along_e is None else f"sum_equal({text}, {along_e}, 1)"

    def _tile_total(self, node: Node) -> tuple[str, str | None]:
        """The same without the last step, and the key along BLOCK_E of that step: each group of channels."""
        walk, operand = self.walk, node.args[0]
        kept = operand.axes & ~node.reduced
        over = node.reduced & operand.axes
        text = counted = f"tl.where({self._counted(node)}, {{}}, 0.0)"
        stays = walk.slab | kept
        sum_e, sum_a = bool(over & walk.on_e), bool(over & walk.on_a)
        vector = "VECTOR" if sum_e else "1"
        keyed_e = sum_e and bool(stays & walk.on_e)
        keyed_a = sum_a and bool(stays & walk.on_a)
        if sum_e and not keyed_e:
            text = f"sum_row({text}, {vector})"
        if keyed_a and walk.name == "rows" and not kept & walk.crossed:
            text = f"sum_slab({counted}, slab, MANY, {vector})"
        elif keyed_a:
            text = f"sum_equal({text}, {address(stays & ~S)}.to(tl.int32), 0)"
        elif sum_a:
            text = f"tl.sum({text}, axis=0, keep_dims=True)"
        return text, f"{address(stays & walk.on_e)}.to(tl.int32)" if keyed_e else None

    def _counted(self, node: Node) -> str:
        """The mask of what a sum adds: every element of its operand once."""
        operand = node.args[0]
        along_a, along_e = self._varies(operand.axes)
        merged = self.walk.crossed & ~(operand.axes & ~node.reduced)
        inside = "inside" if along_a and along_e else "a_in" if along_a else "e_in"
        return self._and([inside, *self._once(merged & ~operand.axes, along_a, along_e)])

    def _partial(self, out: Lines, node: Node) -> None:
        """A sum over the positions of each chunk."""
        axis = 1 if self.walk.on_e & S else 0
        value = f"tl.where(inside, {self._value(node.args[0])}, 0.0)"
        if self.persistent:
            out(f"sum_{self.storage.var(node)} += {value}")
            return
        total = f"sum_row({value}, VECTOR)" if axis else f"tl.sum({value}, axis=0, keep_dims=True)"
        self._store_partial(out, node, total)

    def _store_partial(self, out: Lines, node: Node, value: str) -> None:
        along = "a_in" if self.walk.on_e & S else "e_in"
        out(f"tl.store({self.storage.partial(node)} + ({self._chunk()}), {value}, mask={along})")

    def _chunk(self) -> str:
        """The address of a partial sum."""
        found = {"rows": "(n * chunks + q) * C + c", "channels": "n * C + c"}
        return found.get(self.walk.name, f"(n * {'Q0' if self.persistent else 'Q'} + q) * C + c")
