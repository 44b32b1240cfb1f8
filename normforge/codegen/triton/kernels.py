"""The kernels that a GPU runs for a plan: what each takes, reads and stores, and over what its programs lie."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property

from normforge.codegen.index import Ceil, Count, extents
from normforge.codegen.plan import Plan, is_sweep_sum
from normforge.codegen.triton.slabs import Slabs, SlabWalk
from normforge.codegen.triton.walks import SweepWalk
from normforge.ir.node import Node, make, preorder
from normforge.ir.ops import LEAF, Op
from normforge.ir.types import B, S, axes_name


@dataclass(frozen=True)
class SweepKernel:
    """One launch over the full tensors.

    Attributes:
        index: of the sweep in the plan.
        walk: of its programs.
        sums, stores: what it takes of the sweep.
        reads: the stored small values that it loads.
        values: what a walk over channels stores for each position: its sums, and values that follow from them.
    """

    index: int
    walk: SweepWalk
    sums: tuple[Node, ...]
    stores: tuple[tuple[str, Node], ...]
    reads: frozenset[Node]
    values: tuple[Node, ...] = ()

    @property
    def programs(self) -> Count:
        """How many there are."""
        return self.walk.programs(self.index)

    @property
    def chunks(self) -> tuple[tuple[str, Count], ...]:
        """How the positions of a sample are divided."""
        return self.walk.chunks(self.index)

    def __str__(self) -> str:
        stored = f"stores {', '.join(name for name, _ in self.stores)}" if self.stores else ""
        what = [f"sweep {self.index + 1} by {self.walk}", counted(self.sums) if self.sums else "", stored]
        return ", ".join(filter(None, what))

    @property
    def label(self) -> str:
        """In the names of functions."""
        return f"sweep{self.index + 1}"

    @property
    def roots(self) -> tuple[Node, ...]:
        """The full values that it needs."""
        return (*(n.args[0] for n in self.sums), *(n for _, n in self.stores))

    @property
    def needs(self) -> frozenset[Node]:
        """What kernels before it have to give."""
        return self.reads

    @property
    def gives(self) -> frozenset[Node]:
        """What kernels after it can read: partials of rows, and values of columns."""
        return frozenset((*(n for n in self.sums if n.reduced & S), *self.values))


@dataclass(frozen=True)
class Nest:
    """What is computed in one walk over `axes` beyond the points: sums, and stores of larger values."""

    axes: int
    sums: tuple[Node, ...]
    stores: tuple[Node, ...]


@dataclass(frozen=True)
class SmallKernel:
    """One launch over the points of an index space.

    Attributes:
        space: the axes of the points.
        sums: reductions of larger values to the space, operands before users.
        stores: values that others read; their axes hold those of the space.
        copies: (position, value) of outputs that are leaves.
        reads: the stored values that it loads.
        merges: numbers of the sweeps whose partials it merges.
    """

    space: int
    sums: tuple[Node, ...]
    stores: tuple[Node, ...]
    copies: tuple[tuple[int, Node], ...]
    reads: frozenset[Node]
    merges: tuple[int, ...] = ()

    @cached_property
    def rows(self) -> frozenset[Node]:
        """The sums of sweeps whose partials it merges."""

        def operands(node: Node) -> tuple[Node, ...]:
            if is_sweep_sum(node) or node in self.reads or node.op in LEAF:
                return ()
            return (sum_operand(node),) if node.op is Op.SUM else node.args

        below = preorder((*self.sums, *self.stores), operands)
        return frozenset(n for n in below if is_sweep_sum(n))

    @property
    def needs(self) -> frozenset[Node]:
        """What kernels before it have to give: stored values, and the rows whose partials it merges."""
        return self.reads | self.rows

    @property
    def walked(self) -> tuple[int, ...]:
        """Axes that it sums over or stores along beyond its points."""
        larger = [sum_operand(n).axes for n in self.sums] + [n.axes for n in self.stores]
        return tuple(dict.fromkeys(a & ~self.space for a in larger if a & ~self.space))

    @cached_property
    def nests(self) -> tuple[Nest, ...]:
        """Walks in an order that respects operands: sums that need others of this kernel come after them."""
        level: dict[Node, int] = {}
        sums: dict[tuple[int, int], list[Node]] = {}
        stores: dict[tuple[int, int], list[Node]] = {}

        def after(node: Node) -> int:
            return max((level[n] + 1 for n in needed([node], self.reads) if n in level), default=0)

        for node in self.sums:
            level[node] = after(sum_operand(node))
            sums.setdefault((level[node], sum_operand(node).axes), []).append(node)
        for node in self.stores:
            if node.axes != self.space:
                stores.setdefault((after(node), node.axes), []).append(node)
        keys = sorted({*sums, *stores})
        return tuple(Nest(key[1], tuple(sums.get(key, ())), tuple(stores.get(key, ()))) for key in keys)

    @property
    def needed(self) -> list[Node]:
        """Everything that it evaluates or loads, its sums and their operands included."""
        roots = [*self.stores, *(n for _, n in self.copies)]
        return needed([*roots, *self.sums, *map(sum_operand, self.sums)], self.reads)

    @property
    def programs(self) -> Count:
        """How many there are."""
        return Count((Ceil(extents(self.space), "BLOCK_P"),))

    @property
    def chunks(self) -> tuple[tuple[str, Count], ...]:
        """As `SweepKernel.chunks`: it divides none."""
        return ()

    def __str__(self) -> str:
        merged = f" from sweep {' and '.join(str(m + 1) for m in self.merges)}" if self.merges else ""
        return f"small values at {axes_name(self.space)}{merged}" + (f", {counted(self.sums)}" if self.sums else "")

    label = "small"

    @property
    def gives(self) -> frozenset[Node]:
        """What kernels after it can read."""
        return frozenset(self.stores)


@dataclass(frozen=True)
class SlabKernel:
    """One launch whose programs hold whole slabs.

    Attributes:
        slabs: how they lie in programs.
        stores: full outputs. values: small values that are stored. partials: sums over the positions of a program.
        reads: the stored small values that it loads.
    """

    slabs: Slabs
    stores: tuple[tuple[str, Node], ...]
    values: tuple[Node, ...]
    partials: tuple[Node, ...]
    reads: frozenset[Node]

    @property
    def walk(self) -> SlabWalk:
        """Which axes lie along which side of a tile."""
        return self.slabs.walk

    @property
    def programs(self) -> Count:
        """How many there are."""
        return self.slabs.programs

    @property
    def chunks(self) -> tuple[tuple[str, Count], ...]:
        """How the positions of a sample are divided."""
        return self.slabs.chunks

    def __str__(self) -> str:
        how = ", tile by tile" if self.slabs.loop else ""
        folded = ", samples one after the other as one" if self.slabs.folds else ""
        return f"slabs {axes_name(self.walk.slab)} by {self.walk.name}{how}{folded}"

    label = "slabs"

    @property
    def roots(self) -> tuple[Node, ...]:
        """What it computes."""
        return (*(n.args[0] for n in self.partials), *self.values, *(n for _, n in self.stores))

    @property
    def needs(self) -> frozenset[Node]:
        """What kernels before it have to give."""
        return self.reads

    @property
    def gives(self) -> frozenset[Node]:
        """What kernels after it can read."""
        return frozenset((*self.partials, *self.values))


Kernel = SweepKernel | SmallKernel | SlabKernel


def sum_operand(node: Node) -> Node:
    """What a small sum adds up: its operand, or for a sum over the batch and more the sum over one of them."""
    a = node.args[0]
    over = node.reduced & a.axes
    if over & B and over & ~B:
        first = over & S or B
        return make(Op.SUM, (a,), (first,))
    return a


def needed(roots: Iterable[Node], stop: Set[Node]) -> list[Node]:
    """What has to be there for `roots`: down to leaves, `stop`, and sums that sweeps take."""

    def operands(node: Node) -> tuple[Node, ...]:
        return () if node in stop or is_sweep_sum(node) or node.op is Op.SUM else node.args

    return [n for n in preorder(roots, operands) if n.op not in (Op.CONST, Op.SIZE)]


def counted(sums: tuple[Node, ...]) -> str:
    """`2 sums`."""
    return f"{len(sums)} sum{'s' * (len(sums) > 1)}"


def is_small_sum(node: Node) -> bool:
    """True for a sum of small values."""
    return node.op is Op.SUM and not is_sweep_sum(node)


def is_merge(node: Node) -> bool:
    """True for a row sum, which a small kernel merges from the partials of its chunks."""
    return is_sweep_sum(node) and bool(node.reduced & S)


def sweep_numbers(plan: Plan) -> dict[Node, int]:
    """The sweep that takes each sum, by whose number its chunks go: all walk the same where programs own slabs."""
    return {node: 0 if plan.tile else i for i, sweep in enumerate(plan.sweeps) for node in sweep.sums}
