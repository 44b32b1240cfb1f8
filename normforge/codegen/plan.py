"""The plan of one derivative: which sums, in which sweeps over memory, what each sweep loads and stores.

A plan is made before any source exists, and both targets emit from it. Its words:

full value     varies over space and channels; never stored, computed again in each sweep that needs it
sweep          one pass over the full tensors: sums rows over space or columns over channels, or stores outputs
small value    everything else; `prologue` before the first sweep, `stages[i]` after sweep i, where a later
               sweep needs them, `epilogue` last
slab           the part of the tensors that no needed sum crosses, named by the axes that all of them keep
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b

from normforge.codegen.orders import Program
from normforge.codegen.registry import find_target
from normforge.codegen.schedule import Schedule
from normforge.ir.graph import Graph
from normforge.ir.node import Node, preorder
from normforge.ir.ops import LEAF, REDUCE, Op
from normforge.ir.types import FULL, FloatClass, S, axes_name
from normforge.passes.factor import is_full
from normforge.passes.pipeline import factored

LAYOUTS = ("nchw", "nhwc")
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Sweep:
    """One pass over the full tensors.

    Attributes:
        sums: reductions of full values taken here: `sum`, `mean` or `var`, over space or over channels.
        stores: (output name, value) of full outputs written here.
        loads: full inputs read here.
        frontier: small values read here.
    """

    sums: tuple[Node, ...]
    stores: tuple[tuple[str, Node], ...]
    loads: tuple[Node, ...]
    frontier: tuple[Node, ...]


@dataclass(frozen=True)
class Plan:
    """How one derivative of a layer is computed, for a target, a dtype and a layout.

    Printed, it says what each sweep does, and what a call launches.

    Attributes:
        graph: factored; the nodes that the sweeps and stages name.
        operands: tensors given, in order. outputs: (name, node) returned, in order.
        order, target, dtype, layout: what the plan is for.
        sweeps, prologue, stages, epilogue: see the module's text.
        slab: the axes that every needed sum keeps.
        shape: (N, C, *spatial) where given; None for a slab that stays on chip.
        saved: names of the statistics that forward keeps beside x.
        resident_in: what holds a slab between its uses ("registers", "cache", "L2"), or None when it does not fit.
        kind: how a GPU runs it (see `normforge.codegen.triton.kinds`).
        tile: elements of the largest tile of a program, for kinds whose programs own slabs; else 0.
    """

    graph: Graph
    operands: tuple[Node, ...]
    order: int
    target: str
    dtype: str
    layout: str
    sweeps: tuple[Sweep, ...]
    prologue: tuple[Node, ...]
    stages: tuple[tuple[Node, ...], ...]
    epilogue: tuple[Node, ...]
    slab: int
    saved: tuple[str, ...]
    shape: tuple[int, ...] | None = None
    resident_in: str | None = None
    kind: str = "multi-launch"
    tile: int = 0

    @property
    def outputs(self) -> tuple[tuple[str, Node], ...]:
        """Names and values returned, in order."""
        return self.graph.outputs

    @cached_property
    def loads(self) -> int:
        """Loads of full tensors in the emitted text: one a sweep and tensor."""
        return sum(len(s.loads) for s in self.sweeps)

    @cached_property
    def reads(self) -> int:
        """Full tensors read from memory: each once where the slab stays on chip, else as often as it is loaded."""
        if self.resident_in is None:
            return self.loads
        return len({n for s in self.sweeps for n in s.loads})

    @cached_property
    def writes(self) -> int:
        """Full tensors written."""
        return sum(len(s.stores) for s in self.sweeps)

    @property
    def schedule(self) -> Schedule:
        """What one call launches, and the workspace between the launches: made by the target, when first asked for."""
        return find_target(self.target).schedule(self)

    @cached_property
    def launches(self) -> int:
        """Kernels that one call launches."""
        return len(self.schedule.launches)

    @cached_property
    def symbol(self) -> str:
        """A name that is this kernel's alone: of its graph, order, target, dtype and layout."""
        parts = (self.graph.structure, str(self.order), self.target, self.dtype, self.layout, self.kind)
        return "nf_" + blake2b("|".join(parts).encode(), digest_size=12).hexdigest()

    @cached_property
    def accumulators(self) -> int:
        """Row and column sums over all sweeps."""
        return sum(len(s.sums) for s in self.sweeps)

    def __str__(self) -> str:
        return f"{self.summary}\n{self.schedule}"

    @property
    def summary(self) -> str:
        """The text without the launches: the numbers of the plan, and a line a sweep."""
        lines = [
            f"order {self.order}, {self.target}, {self.dtype}, {self.layout}: {len(self.sweeps)} sweeps, "
            f"{self.loads} loads, {self.reads} reads, {self.writes} writes, {self.launches} launches, "
            f"slab {axes_name(self.slab)}" + (f" in {self.resident_in}" if self.resident_in else ""),
        ]
        for i, sweep in enumerate(self.sweeps):
            what = [f"loads {', '.join(n.name for n in sweep.loads) or 'nothing'}"]
            if sweep.sums:
                kinds: dict[str, int] = {}
                for n in sweep.sums:
                    key = f"{n.op} over {'space' if n.reduced & S else 'channels'}"
                    kinds[key] = kinds.get(key, 0) + 1
                what.append("takes " + ", ".join(f"{v} {k}" for k, v in kinds.items()))
            if sweep.stores:
                what.append(f"stores {', '.join(k for k, _ in sweep.stores)}")
            lines.append(f"  sweep {i + 1}: {'; '.join(what)}")
        if self.order == 0:
            lines.append(f"  saves x and {len(self.saved)} statistics for backward")
        return "\n".join(lines)


def is_data(node: Node) -> bool:
    """True for a tensor as large as x in x's dtype."""
    return node.axes == FULL and node.type.cls is FloatClass.DATA


def is_full_input(node: Node) -> bool:
    """True for such a tensor that is given."""
    return node.op is Op.INPUT and is_data(node)


def is_sweep_sum(node: Node) -> bool:
    """True for a reduction that a sweep takes."""
    return node.op in REDUCE and is_full(node.args[0].axes)


@lru_cache(maxsize=4096)
def make_plan(program: Program, target: str, dtype: str, layout: str) -> Plan:
    """Plan a program for a target. No shape enters: one plan serves every shape."""
    graph = factored(program.graph, program.order)
    level: dict[Node, int] = {}
    for node in graph.nodes:
        level[node] = max((level[a] for a in node.args), default=0) + is_sweep_sum(node)
    full_outputs = [(k, n) for k, n in graph.outputs if is_full(n.axes)]
    count = max([level[n] + 1 for _, n in full_outputs] + [level[n] for n in graph.nodes], default=1)
    sweeps = []
    for i in range(count):
        sums = tuple(n for n in graph.nodes if is_sweep_sum(n) and level[n] == i + 1)
        stores = tuple(full_outputs) if i == count - 1 else ()
        loads, frontier = _reads([n.args[0] for n in sums] + [n for _, n in stores])
        sweeps.append(Sweep(sums, stores, loads, frontier))
    prologue, stages, epilogue = _place(graph, sweeps, level)
    slab = FULL
    for stage in stages:
        for node in stage:
            slab &= node.axes
    saved = tuple(s.name for s in program.saved)
    return Plan(
        graph, program.operands, program.order, target, dtype, layout, tuple(sweeps), prologue, stages, epilogue,
        slab, saved,
    )  # fmt: skip


def _reads(roots: list[Node]) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Full inputs and small values under full expressions; sums of other sweeps are small values."""
    ends = [n for n in preorder(roots, lambda n: () if _is_read(n) else n.args) if _is_read(n)]
    return tuple(n for n in ends if is_full_input(n)), tuple(n for n in ends if not is_full_input(n))


def _is_read(node: Node) -> bool:
    """True for what a sweep reads instead of computing it."""
    return not is_full(node.axes) or is_sweep_sum(node) or node.op is Op.INPUT


def _place(
    graph: Graph, sweeps: list[Sweep], level: dict[Node, int]
) -> tuple[tuple[Node, ...], tuple[tuple[Node, ...], ...], tuple[Node, ...]]:
    """Where each small value is computed: as late as its users allow, before any sweep if it is known then."""
    needed_by: dict[Node, int] = {}
    for i, sweep in enumerate(sweeps):
        for node in _small_below(sweep.frontier):
            needed_by.setdefault(node, i)
    last = len(sweeps)
    for node in _small_below(tuple(n for _, n in graph.outputs if not is_full(n.axes))):
        needed_by.setdefault(node, last)
    prologue, epilogue = [], []
    stages: list[list[Node]] = [[] for _ in sweeps]
    for node in graph.nodes:
        if node not in needed_by or node.op in LEAF:
            continue
        if level[node] == 0:
            prologue.append(node)
        elif needed_by[node] < last:
            stages[level[node] - 1].append(node)
        else:
            epilogue.append(node)
    return tuple(prologue), tuple(map(tuple, stages)), tuple(epilogue)


def _small_below(roots: tuple[Node, ...]) -> list[Node]:
    """The small values that have to be there for `roots`: down to leaves and sums that sweeps take."""
    return preorder(roots, lambda n: () if is_sweep_sum(n) else n.args)
