"""The launches of a plan: which kernels run in which order, and what each of them stores.

A sweep is one kernel. Small values are computed by kernels whose programs each own a block of points of one index
space, such as every (n, g): sums that end in that space are taken there, in a fixed order. A sum that needs the
result of a sum of another space waits for the next kernel. Elementwise values are computed again where they are
needed, unless they hide a reduction or are long. Kernels that do not wait for each other share a launch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from normforge.codegen.plan import Plan, Sweep, is_sweep_sum
from normforge.codegen.triton.kernels import (
    Kernel,
    SlabKernel,
    SmallKernel,
    SweepKernel,
    is_small_sum,
    sum_operand,
    sweep_numbers,
)
from normforge.codegen.triton.slab_plan import SLAB_KINDS, divide, slabs_of
from normforge.codegen.triton.walks import COLUMNS, GROUPS, ROWS
from normforge.ir.node import Node, preorder, toposort
from normforge.ir.ops import LEAF, Op
from normforge.ir.types import B, G, S
from normforge.passes.factor import is_full

# A small value that follows from stored ones by at most this many operations is computed again by each sweep.
INLINE_OPS = 8


@lru_cache(maxsize=1024)
def make_kernels(plan: Plan) -> tuple[Kernel, ...]:
    """The kernels of a plan, in order."""
    return _Scheduler(plan).run()


@lru_cache(maxsize=1024)
def launch_groups(plan: Plan) -> tuple[tuple[Kernel, ...], ...]:
    """The kernels of each launch. One of small values joins a launch before it that is not earlier than what it
    reads: that of other small values, such as the statistics beside which gradients of parameters are merged, or else
    that of a sweep, which comes last in its launch. Slabs are alone in theirs, which has warps of its own."""
    groups: list[list[Kernel]] = []
    for kernel in make_kernels(plan):
        needs = kernel.needs
        last = max((i for i, group in enumerate(groups) for k in group if needs & k.gives), default=-1)
        free = groups[last + 1 :] if isinstance(kernel, SmallKernel) else []
        free = [g for g in free if not isinstance(g[-1], SlabKernel)]
        home = next((g for g in free if all(isinstance(k, SmallKernel) for k in g)), free[0] if free else None)
        if home is None:
            groups.append([kernel])
        else:
            home.insert(len(home) - isinstance(home[-1], SweepKernel), kernel)
    return tuple(map(tuple, groups))


class _Scheduler:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.level: dict[Node, int] = {}
        for node in plan.graph.nodes:
            self.level[node] = max((self.level[a] for a in node.args), default=0) + is_sweep_sum(node)
        self.sweep_of = sweep_numbers(plan)
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
        self.kernels.append(SlabKernel(slabs_of(self.plan), stores, parts.values, parts.partials, reads))
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
            values: list[Node] = []
            for node in wanted:
                new = self.unstored([node])
                fits = new and node not in taken and node.axes & space == space
                if fits and self.worth(node, new) and all(n in taken for n in new if is_small_sum(n)):
                    values.append(node)
            columns = None if sums else self.columns_before(space, values)
            if columns:
                self.kernels[-1] = replace(columns, values=tuple(values))
            else:
                self.kernels.append(SmallKernel(space, tuple(sums), (*sums, *values), (), frozenset(self.stored)))
            self.stored |= taken | set(values)
            must = [n for n in must if n not in self.stored and (done >= len(self.plan.sweeps) or not self.ready(n))]

    def columns_before(self, space: int, values: list[Node]) -> SweepKernel | None:
        """The last kernel, where it is a walk over all channels whose programs can go on to these values: they have
        the sums of their positions at hand."""
        last = self.kernels[-1] if self.kernels else None
        if not isinstance(last, SweepKernel) or last.walk is not COLUMNS or space != B | S or last.values:
            return None
        sums = self.stored - last.reads  # of this sweep; those of another walk over it are not there yet
        below = preorder(values, lambda n: () if n in self.stored else self.operands(n))
        return last if all(not n.axes & ~space and (n not in sums or n in last.sums) for n in below) else None

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
            walk = COLUMNS if len(columns) > len(by_group) else ROWS
            self.kernels.append(SweepKernel(index, walk, rest, sweep.stores, reads))
        if by_group:
            self.kernels.append(SweepKernel(index, GROUPS, tuple(by_group), (), reads))
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
                columns = [n for n in kernel.sums if not n.reduced & S]
                values = tuple(n for n in (*columns, *kernel.values) if n in read)
                reads = self._reads(kernel.roots)
                self.stored |= set(columns)
                reads |= self._reads(values) - set(columns)
                out.append(replace(kernel, reads=reads, values=values))
            else:
                stores = tuple(n for n in kernel.stores if n in read)
                reads = self._reads([*kernel.sums, *stores, *(n for _, n in kernel.copies)])
                new = replace(kernel, stores=stores, reads=reads)
                out.append(replace(new, merges=tuple(sorted({self.sweep_of[n] for n in new.rows}))))
            read |= reads
        return out[::-1]

    def _reads(self, roots: Iterable[Node]) -> frozenset[Node]:
        return frozenset(n for n in preorder(roots, self.operands) if n in self.stored)
