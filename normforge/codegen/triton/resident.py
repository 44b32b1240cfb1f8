"""Triton text for resident plans: one program holds whole slabs in registers.

Every full operand is loaded once into a tile; all sums of the slab are taken there, with small values in between, and
outputs are stored from there. What is the same for all elements along an axis of the tile has extent 1 on it and is
broadcast. Sums that cross slabs are left as small values or partial sums, with one writer each, for a small kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from normforge.codegen.index import element, extents
from normforge.codegen.plan import is_full_input
from normforge.codegen.stage import Stage
from normforge.codegen.text import wrapped
from normforge.codegen.triton.kernels import SlabKernel
from normforge.codegen.triton.names import TritonStorage
from normforge.codegen.triton.slab_tile import SLAB_TILES, SlabTile
from normforge.codegen.triton.swept_tile import STAGES
from normforge.ir.node import Node, toposort
from normforge.ir.ops import LEAF, REDUCE, Op
from normforge.ir.types import S, axes_name

Step = tuple[str, tuple[str, ...]]  # a function, and what it is given beside a value


@dataclass(frozen=True)
class Total:
    """How a sum is taken of a tile.

    Attributes:
        terms: of the mask of what is added; none where all is.
        steps: what takes the sum, one after the other; where it is one of JOINED, several sums are taken at once.
    """

    terms: tuple[str, ...]
    steps: tuple[Step, ...]

    def added(self, value: str) -> str:
        """What is added of a value."""
        if not self.terms:
            return value
        return f"tl.where({' & '.join(self.terms)}, {value}, 0.0)"


JOINED = ("sum_row", "sum_slab")
LANGUAGE = ("tl.sum",)
DOWN: Step = ("tl.sum", ("axis=0", "keep_dims=True"))  # along BLOCK_A


def fold(out: Stage, steps: Iterable[Step], value: str) -> str:
    """The text of steps, one after the other."""
    for function, given in steps:
        known = function if function in LANGUAGE else out.function(function)
        value = f"{known}({', '.join((value, *given))})"
    return value


@dataclass
class ResidentText:
    """Emits the body of the kernel of a resident plan."""

    storage: TritonStorage
    kernel: SlabKernel

    def __post_init__(self) -> None:
        self.walk = self.kernel.walk
        self.tile = self._make_tile()
        self.persistent = self.kernel.slabs.persistent
        self.done: set[Node] = set()
        self.means: dict[tuple[tuple[Node, ...], tuple[object, ...]], str] = {}

    def _make_tile(self) -> SlabTile:
        """Where elements lie."""
        return SLAB_TILES[self.walk.name](self.walk, persistent=self.kernel.slabs.persistent)

    def emit(self, out: Stage) -> None:
        """Write it."""
        nodes = toposort(self.kernel.roots, self._operands)
        self.tile.place(out)
        self.storage.define_sizes(out, (n for n in nodes if n not in self.kernel.reads))
        if not self.persistent:
            self._slab(out, nodes)
            return
        self._values(out, (n for n in nodes if not n.axes & S))
        partials = [(node, f"sum_{self.storage.var(node)}") for node in self.kernel.partials]
        shape = f"[{out.constexpr('BLOCK_A')}, {out.constexpr('BLOCK_E')}]"
        out(*(f"{total} = tl.zeros({shape}, tl.float32)" for _, total in partials))
        before = set(self.done)
        length, block = f"tl.minimum(S - first, {out.size('L0')}).to(tl.int32)", out.constexpr("BLOCK_A")
        with out.block(f"for s0 in tl.range(0, {length}, {block}, num_stages={STAGES}):", ""):
            self._slab(out, nodes)
        self.done = before
        for node, total in partials:
            self._store_partial(out, node, f"tl.sum({total}, axis=0, keep_dims=True)")

    def _slab(self, out: Stage, nodes: list[Node]) -> None:
        """The work on one tile."""
        self.tile.step(out)
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
            self._keep(out, node)
        self._store(out, self.kernel.stores)

    def _keep(self, out: Stage, node: Node) -> None:
        """Store a small value."""
        mask, beside = self.tile.writer(node.axes), self.tile.beside(node.axes)
        self.storage.store(out, node, self._value(node), mask, beside=beside)

    def _store(self, out: Stage, stores: Iterable[tuple[str, Node]]) -> None:
        """Full outputs of a tile."""
        names = [name for name, _ in self.storage.plan.outputs]
        for name, node in stores:
            self._need(out, node)
            pointer = out.array(self.storage.outputs[names.index(name)])
            out(f"tl.store({pointer} + at, {self._value(node)}, mask=inside)")

    def _need(self, out: Stage, node: Node) -> None:
        self._values(out, toposort([node], lambda n: () if n in self.done else self._operands(n)))

    def _operands(self, node: Node) -> tuple[Node, ...]:
        return () if node in self.kernel.reads else node.args

    # -- values

    def _values(self, out: Stage, nodes: Iterable[Node]) -> None:
        st = self.storage
        for node in nodes:
            if node in self.done or node.op in (Op.CONST, Op.SIZE):
                continue
            self.done.add(node)
            if is_full_input(node):
                out(
                    f"{st.var(node)} = tl.load({out.array(st.array(node))} + at, mask=inside, other=0.0).to(tl.float32)"
                )
            elif node in self.kernel.reads or node.op in LEAF:
                st.fetch(out, node, self.tile.loaded(node.axes))
            elif node.op in REDUCE:
                self._sums(out, [node])
            else:
                st.assign(out, node)

    def _value(self, node: Node) -> str:
        return self.storage.constant(node) or self.storage.var(node)

    # -- sums

    def _sums(self, out: Stage, nodes: list[Node]) -> None:
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

    def _joined(self, out: Stage, terms: list[tuple[Node, str, str]]) -> None:
        """Take the sums of `terms`, divided by what they count where they are no plain sums."""
        alike: dict[tuple[Total, tuple[bool, bool]], list[tuple[Node, str, str]]] = {}
        for term in terms:
            key = self._total(out, term[0]), self.tile.varies(term[0].args[0].axes)
            alike.setdefault(key, []).append(term)
        for (total, _), mine in alike.items():
            joins = bool(total.terms) and len(total.steps) == 1 and total.steps[0][0] in JOINED
            i = 0
            while i < len(mine):
                count = next(n for n in (4, 2, 1) if n <= len(mine) - i) if joins else 1
                part, i = mine[i : i + count], i + count
                if count > 1:
                    function, given = total.steps[0]
                    items = [*(total.added(v) for _, v, _ in part), *given]
                    head = f"{', '.join(name for _, _, name in part)} = {out.function(f'{function}{count}')}"
                    out(*wrapped(head, items, ""))
                else:
                    node, value, name = part[0]
                    out(f"{name} = {fold(out, total.steps, total.added(value))}  # {axes_name(node.axes)}")
            for node, _, name in mine:
                if node.op is not Op.SUM:
                    over = node.reduced & node.args[0].axes
                    out(f"{name} = {name} / ({' * '.join(extents(over))}).to(tl.float32)")

    def _total(self, out: Stage, node: Node) -> Total:
        """How a sum is taken: along BLOCK_E, along BLOCK_A, and by groups of channels along BLOCK_E last."""
        walk, operand = self.walk, node.args[0]
        kept = operand.axes & ~node.reduced
        over = node.reduced & operand.axes
        stays = walk.slab | kept
        sum_e, sum_a = bool(over & walk.on_e), bool(over & walk.on_a)
        keyed_e = sum_e and bool(stays & walk.on_e)
        keyed_a = sum_a and bool(stays & walk.on_a)
        steps: list[Step] = []
        if keyed_a and self.tile.slab_sums and not kept & walk.crossed:
            vector = out.constexpr("VECTOR") if sum_e else "1"
            steps.append(("sum_slab", ("slab", out.constexpr("MANY"), vector)))
        else:
            if sum_e and not keyed_e:
                steps.append(("sum_row", (out.constexpr("VECTOR"),)))
            if keyed_a:
                steps.append(("sum_equal", (f"{element(stays & ~S).triton}.to(tl.int32)", "0")))
            elif sum_a:
                steps.append(DOWN)
        if keyed_e:
            steps.append(by_key(stays & walk.on_e))
        return Total(self._counted(node), tuple(steps))

    def _counted(self, node: Node) -> tuple[str, ...]:
        """The mask of what a sum adds, every element of its operand once: what is there, and which of those that hold
        the same."""
        operand = node.args[0]
        along_a, along_e = self.tile.varies(operand.axes)
        merged = self.walk.crossed & ~(operand.axes & ~node.reduced)
        inside = "inside" if along_a and along_e else "a_in" if along_a else "e_in"
        return (inside, *self.tile.once(merged & ~operand.axes, along_a, along_e))

    def _partial(self, out: Stage, node: Node) -> None:
        """A sum over the positions of each chunk."""
        value = f"tl.where(inside, {self._value(node.args[0])}, 0.0)"
        if self.persistent:
            out(f"sum_{self.storage.var(node)} += {value}")
            return
        step: Step = ("sum_row", (out.constexpr("VECTOR"),)) if self.walk.on_e & S else DOWN
        self._store_partial(out, node, fold(out, [step], value))

    def _store_partial(self, out: Stage, node: Node, value: str) -> None:
        pointer = out.array(self.storage.partial(node))
        out(f"tl.store({pointer} + ({self.tile.chunk(out)}), {value}, mask={self.tile.channels}_in)")


def by_key(axes: int) -> Step:
    """The sum along BLOCK_E of each group of channels, which the place at these axes tells apart."""
    return "sum_equal", (f"{element(axes).triton}.to(tl.int32)", "1")
