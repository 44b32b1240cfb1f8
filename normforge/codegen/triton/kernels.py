"""The kernels that a GPU runs for a plan: what each takes, reads and stores, and over what its programs lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from normforge.codegen.index import extents
from normforge.codegen.plan import Plan, is_sweep_sum
from normforge.codegen.triton.slabs import SlabWalk
from normforge.codegen.triton.walks import SweepWalk
from normforge.ir.node import Node, make, preorder
from normforge.ir.ops import LEAF, Op
from normforge.ir.types import B, S


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
    def grid(self) -> str:
        """Its programs, as plans print them."""
        return self.walk.grid

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

    @property
    def grid(self) -> str:
        """Its programs, as plans print them."""
        return f"cdiv({' * '.join(extents(self.space)) or '1'}, BLOCK_P)"

    @property
    def gives(self) -> frozenset[Node]:
        """What kernels after it can read."""
        return frozenset(self.stores)


@dataclass(frozen=True)
class SlabKernel:
    """One launch whose programs hold whole slabs.

    Attributes:
        walk: how slabs lie in programs.
        stores: full outputs. values: small values that are stored. partials: sums over the positions of a program.
        reads: the stored small values that it loads.
    """

    walk: SlabWalk
    stores: tuple[tuple[str, Node], ...]
    values: tuple[Node, ...]
    partials: tuple[Node, ...]
    reads: frozenset[Node]

    @property
    def grid(self) -> str:
        """Its programs, as plans print them."""
        return self.walk.grid

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


def is_small_sum(node: Node) -> bool:
    """True for a sum of small values."""
    return node.op is Op.SUM and not is_sweep_sum(node)


def is_merge(node: Node) -> bool:
    """True for a row sum, which a small kernel merges from the partials of its chunks."""
    return is_sweep_sum(node) and bool(node.reduced & S)


def sweep_numbers(plan: Plan) -> dict[Node, int]:
    """The sweep that takes each sum, by whose number its chunks go: all walk the same where programs own slabs."""
    return {node: 0 if plan.tile else i for i, sweep in enumerate(plan.sweeps) for node in sweep.sums}
