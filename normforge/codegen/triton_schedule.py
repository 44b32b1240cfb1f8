"""The launches of a plan: which kernels run in which order, and what each of them stores.

A sweep is one launch. Small values are computed by kernels whose programs each own a block of points of one index
space, such as every (n, g): sums that end in that space are taken there, in a fixed order. A sum that needs the
result of a sum of another space waits for the next kernel. Elementwise values are computed again where they are
needed, unless they hide a reduction or are long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from normforge.codegen.factor import is_full
from normforge.codegen.plan import Plan, Sweep, is_sweep_sum
from normforge.codegen.resident import SLAB_KINDS, divide, slabs_of
from normforge.codegen.triton_slabs import Walk
from normforge.ir.node import Node, make, preorder, toposort
from normforge.ir.ops import LEAF, Op
from normforge.ir.types import B, G, S

# A small value that follows from stored ones by at most this many operations is computed again by each sweep.
INLINE_OPS = 8


@dataclass(frozen=True)
class SweepKernel:
    """One launch over the full tensors.

    Attributes:
        index: of the sweep in the plan.
        walk: "rows" (a program walks the positions of a block of channels), "columns" (the channels of a block of
            positions), "groups" (the same for one group).
        sums, stores: what it takes of the sweep.
        reads: the stored small values that it loads.
    """

    index: int
    walk: str
    sums: tuple[Node, ...]
    stores: tuple[tuple[str, Node], ...]
    reads: frozenset[Node]

    @property
    def roots(self) -> tuple[Node, ...]:
        """The full values that it needs."""
        return (*(n.args[0] for n in self.sums), *(n for _, n in self.stores))


@dataclass(frozen=True)
class SmallKernel:
    """One launch over the points of an index space.

    Attributes:
        space: the axes of the points.
        sums: reductions of larger values to the space, operands before users.
        stores: values that others read; their axes hold those of the space.
        copies: (position, value) of outputs that are leaves.
        reads: the stored values that it loads.
    """

    space: int
    sums: tuple[Node, ...]
    stores: tuple[Node, ...]
    copies: tuple[tuple[int, Node], ...]
    reads: frozenset[Node]


@dataclass(frozen=True)
class SlabKernel:
    """One launch whose programs hold whole slabs.

    Attributes:
        walk: how slabs lie in programs.
        stores: full outputs. values: small values that are stored. partials: sums over the positions of a program.
        reads: the stored small values that it loads.
    """

    walk: Walk
    stores: tuple[tuple[str, Node], ...]
    values: tuple[Node, ...]
    partials: tuple[Node, ...]
    reads: frozenset[Node]

    @property
    def roots(self) -> tuple[Node, ...]:
        """What it computes."""
        return (*(n.args[0] for n in self.partials), *self.values, *(n for _, n in self.stores))


Kernel = SweepKernel | SmallKernel | SlabKernel


@lru_cache(maxsize=1024)
def schedule(plan: Plan) -> tuple[Kernel, ...]:
    """The launches of a plan, in order."""
    return _Scheduler(plan).run()


def launch_count(plan: Plan) -> int:
    """How many kernels one call launches."""
    return len(schedule(plan))


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


class _Scheduler:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.level: dict[Node, int] = {}
        for node in plan.graph.nodes:
            self.level[node] = max((self.level[a] for a in node.args), default=0) + is_sweep_sum(node)
        self.stored: set[Node] = set()
        self.kernels: list[Kernel] = []

    def run(self) -> tuple[Kernel, ...]:
        outputs = [n for _, n in self.plan.outputs if not is_full(n.axes) and n.op not in LEAF]
        if self.plan.kind in SLAB_KINDS:
            self.slabs()
        else:
            self.sweeps(outputs)
        while missing := [n for n in outputs if n not in self.stored]:
            self.prepare(missing[:1], outputs, len(self.level))
        self.copy()
        return tuple(self.used())

    def sweeps(self, outputs: list[Node]) -> None:
        """One kernel a sweep, and small ones between."""
        for i, sweep in enumerate(self.plan.sweeps):
            later = [n for s in self.plan.sweeps[i:] for n in s.frontier]
            self.prepare([n for n in sweep.frontier if not self.ready(n)], [*later, *outputs], i)
            self.sweep(i, sweep)

    def slabs(self) -> None:
        """One kernel for all slabs; before it one for the sums of small tensors that it reads, if there are any."""
        parts = divide(self.plan.graph, self.plan.slab)
        assert parts is not None
        if parts.before:
            self.prepare(list(parts.before), [], 0)
        reads = frozenset(n for n in parts.inside if n in self.stored)
        stores = self.plan.sweeps[-1].stores
        self.kernels.append(SlabKernel(slabs_of(self.plan).walk, stores, parts.values, parts.partials, reads))
        self.stored |= set(parts.values)

    # -- what is there

    def operands(self, node: Node) -> tuple[Node, ...]:
        if is_sweep_sum(node) or node in self.stored or node.op in LEAF:
            return ()
        return (sum_operand(node),) if node.op is Op.SUM else node.args

    def unstored(self, roots: Iterable[Node]) -> list[Node]:
        """Everything below that has to be computed, operands first."""
        below = toposort(roots, self.operands)
        return [n for n in below if n not in self.stored and n.op not in LEAF]

    def ready(self, node: Node) -> bool:
        """True for what a sweep can read, or compute again at little cost."""
        new = self.unstored([node])
        if any(is_sweep_sum(n) or n.op is Op.SUM for n in new):
            return False
        return self.level[node] == 0 or len(new) <= INLINE_OPS

    # -- kernels

    def prepare(self, must: list[Node], wanted: list[Node], done: int) -> None:
        """Kernels until every value of `must` is there; they take along what they can of `wanted`."""
        wanted = [n for n in dict.fromkeys([*must, *wanted]) if self.level.get(n, 0) <= done and n.op not in LEAF]
        while must:
            needed = [n for n in self.unstored(must) if is_small_sum(n)]
            every = [n for n in self.unstored(wanted) if is_small_sum(n)]
            choices = [(self.takes(axes, every), axes) for axes in dict.fromkeys(n.axes for n in needed)]
            if choices:
                asked = set(needed)
                sums, space = max(choices, key=lambda c: (len(asked & set(c[0])), c[1].bit_count()))
            else:
                sums, space = [], must[0].axes
            taken = set(sums)
            values = []
            for node in wanted:
                new = self.unstored([node])
                fits = new and node not in taken and node.axes & space == space
                if fits and self.worth(node, new) and all(n in taken for n in new if is_small_sum(n)):
                    values.append(node)
            self.kernels.append(SmallKernel(space, tuple(sums), (*sums, *values), (), frozenset(self.stored)))
            self.stored |= taken | set(values)
            must = [n for n in must if n not in self.stored and (done >= len(self.plan.sweeps) or not self.ready(n))]

    def worth(self, node: Node, new: list[Node]) -> bool:
        """False for values that follow from leaves alone: sweeps compute them again. Outputs are always stored."""
        return self.level[node] > 0 or any(n.op is Op.SUM for n in new) or any(n is node for _, n in self.plan.outputs)

    def takes(self, space: int, sums: list[Node]) -> list[Node]:
        """The sums that one kernel over this space can take, operands first."""
        taken: dict[Node, None] = {}
        for node in sums:
            if node.axes == space:
                before = [n for n in self.unstored([node]) if is_small_sum(n) and n is not node]
                if all(n in taken for n in before):
                    taken[node] = None
        return list(taken)

    def sweep(self, index: int, sweep: Sweep) -> None:
        """One kernel; another for sums over the channels of each group, whose programs own a group."""
        columns = [n for n in sweep.sums if not n.reduced & S]
        by_group = [n for n in columns if n.axes & G]
        rest = tuple(n for n in sweep.sums if n not in by_group)
        reads = frozenset(self.stored)
        if rest or sweep.stores or not by_group:
            walk = "columns" if len(columns) > len(by_group) else "rows"
            self.kernels.append(SweepKernel(index, walk, rest, sweep.stores, reads))
        if by_group:
            self.kernels.append(SweepKernel(index, "groups", tuple(by_group), (), reads))
        self.stored |= set(columns)

    def copy(self) -> None:
        """Outputs that are leaves."""
        by_space: dict[int, list[tuple[int, Node]]] = {}
        for i, (_, node) in enumerate(self.plan.outputs):
            if node.op in LEAF and not is_full(node.axes):
                by_space.setdefault(node.axes, []).append((i, node))
        for space, copies in by_space.items():
            self.kernels.append(SmallKernel(space, (), (), tuple(copies), frozenset(self.stored)))

    def used(self) -> list[Kernel]:
        """The kernels with only the reads that they make and the stores that somebody reads."""
        read: set[Node] = {n for _, n in self.plan.outputs}
        out: list[Kernel] = []
        for kernel in reversed(self.kernels):
            self.stored = set(kernel.reads)
            if isinstance(kernel, SlabKernel):
                out.append(kernel)
                read |= kernel.reads
                continue
            if isinstance(kernel, SweepKernel):
                reads = self._reads(kernel.roots)
                out.append(SweepKernel(kernel.index, kernel.walk, kernel.sums, kernel.stores, reads))
            else:
                stores = tuple(n for n in kernel.stores if n in read)
                reads = self._reads([*kernel.sums, *stores, *(n for _, n in kernel.copies)])
                out.append(SmallKernel(kernel.space, kernel.sums, stores, kernel.copies, reads))
            read |= reads
        return out[::-1]

    def _reads(self, roots: Iterable[Node]) -> frozenset[Node]:
        return frozenset(n for n in preorder(roots, self.operands) if n in self.stored)
