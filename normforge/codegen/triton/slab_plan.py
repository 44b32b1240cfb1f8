"""Plans for slabs that one program of a GPU holds: one sweep that loads and stores each full tensor once.

Levels of sums cost nothing where a slab stays in registers, so sums stay as the layer has them. Only those that cross
slabs, such as gradients of parameters, are split: the part inside a slab is taken by the program that holds it, the
rest by a small kernel afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from normforge.codegen.orders import Program
from normforge.codegen.plan import Plan, Sweep, is_full_input, is_sweep_sum
from normforge.codegen.shapes import ITEM_BYTES
from normforge.codegen.triton.slab_limits import holds, largest_tile, loops
from normforge.codegen.triton.slabs import SlabColumns, SlabPositions, Slabs, SlabWalk, make_walk
from normforge.ir.graph import Graph
from normforge.ir.node import Node, make, toposort
from normforge.ir.ops import LEAF, REDUCE, Op
from normforge.ir.types import FULL, B, S
from normforge.passes.canonicalise import Canonicalise
from normforge.passes.factor import is_full
from normforge.passes.pipeline import factored

TARGET_NAME = "triton"
SLAB_KINDS = ("resident", "swept")


@dataclass(frozen=True)
class Parts:
    """How the work of a resident plan is divided.

    Attributes:
        before: small sums over several slabs that programs read; a small kernel takes them first.
        inside: everything that a program computes, operands first, its loads included.
        values: small values that each program stores for its slabs: outputs, and what is read after.
        partials: sums over space that are only read after: programs store what they have of them, by chunks.
    """

    before: tuple[Node, ...]
    inside: tuple[Node, ...]
    values: tuple[Node, ...]
    partials: tuple[Node, ...]


@lru_cache(maxsize=4096)
def slab_plan(program: Program, dtype: str, layout: str, kind: str = "resident") -> Plan | None:
    """The plan of kind "resident" or "swept" for target "triton".

    None where there is none: nothing is summed that stores wait for, or a sum is of a form that `slabs.holds`
    (for swept plans also `slabs.loops`) refuses; and derivatives are not swept along channels that lie far apart, whose
    sums, one for each position of a tile, are more than a thread has registers for.
    """
    graph = factored(program.graph, program.order, rows=False)
    slab = slab_of(graph)
    walk = make_walk(layout, slab)
    if walk is None or (kind == "swept" and program.order and type(walk) is SlabColumns):
        return None
    graph = Canonicalise().run(split_sums(graph, slab))
    parts = divide(graph, slab)
    if parts is None or slab_of(graph) != slab:
        return None
    inside = [n for n in parts.inside if n not in parts.before]
    taken = [n for n in inside if n.op in REDUCE]
    if not holds(walk, taken) or (kind == "swept" and not loops(walk, [*taken, *parts.values])):
        return None
    divides = any(n.op is Op.DIV and is_full(n.args[1].axes) for n in inside)
    item, loop = ITEM_BYTES[dtype], kind == "swept"
    given = set(program.operands[: len(program.operands) - len(program.saved)] if program.order else program.operands)
    conditioned = any(n in given and not is_full(n.axes) and n.axes & B for n in inside)
    tile = largest_tile(walk, taken, program.order, item, loop=loop, divides=divides, conditioned=conditioned)
    stores = tuple((k, n) for k, n in graph.outputs if is_full(n.axes))
    if kind == "swept":
        sweeps = phases(graph, walk, parts, stores)
    else:
        sums = tuple(n for n in (*inside, *parts.partials) if is_sweep_sum(n))
        sweeps = (Sweep(sums, stores, tuple(n for n in inside if is_full_input(n)), ()),)
    small = tuple(n for n in inside if not is_full(n.axes) and n.op not in LEAF)
    after = tuple(n for n in graph.nodes if not is_full(n.axes) and n.op not in LEAF and n not in parts.inside)
    return Plan(
        graph, program.operands, program.order, TARGET_NAME, dtype, layout, sweeps, (), (small,), after, slab,
        tuple(s.name for s in program.saved), kind=kind, tile=tile,
    )  # fmt: skip


def phases(graph: Graph, walk: SlabWalk, parts: Parts, stores: tuple[tuple[str, Node], ...]) -> tuple[Sweep, ...]:
    """The walks over a slab: sums that wait for other sums are taken in the next one, and stores come as soon as
    their sums are there."""
    inside = [n for n in parts.inside if n not in parts.before]
    known = {*inside, *parts.partials}
    phase: dict[Node, int] = {}  # the walk in which a value can be computed
    taken: dict[Node, int] = {}  # the walk that takes a sum
    for node in [*inside, *parts.partials]:
        first = max((phase[a] for a in node.args if a in known), default=0)
        if node.op in REDUCE and walk.along_loop(node.args[0].axes):
            taken[node] = first
            first += 1
        phase[node] = first
    last = max([phase[n] for _, n in stores], default=0)
    count = max([last, *taken.values()]) + 1
    sweeps = []
    for i in range(count):
        sums = tuple(n for n in taken if taken[n] == i)
        here = stores if i == last else ()
        ends = [n.args[0] for n in sums] + [n for _, n in here]
        below = toposort(ends, lambda n: () if n in taken or n in parts.before else n.args)
        sweeps.append(Sweep(sums, here, tuple(n for n in below if is_full_input(n)), ()))
    return tuple(sweeps)


def slab_of(graph: Graph) -> int:
    """The axes kept by every sum that full outputs need, and by what is computed from them."""
    known: dict[Node, bool] = {}
    slab = FULL
    for node in toposort(n for _, n in graph.outputs if is_full(n.axes)):
        summed = is_sweep_sum(node)
        known[node] = summed or any(known[a] for a in node.args)
        if known[node] and (summed or not is_full(node.axes)):
            slab &= node.axes
    return slab


def split_sums(graph: Graph, slab: int) -> Graph:
    """Every sum of a full value that crosses slabs as a sum inside the slab and one of its small results; where
    nothing is summed inside, over the positions first."""
    out: dict[Node, Node] = {}
    for node in graph.nodes:
        args = tuple(out[a] for a in node.args)
        new = make(node.op, args, node.attr) if args else node
        if node.op is Op.SUM and is_sweep_sum(node):
            over = node.reduced & args[0].axes
            first = over & ~slab or over & S
            if over & slab and over & ~first:
                new = make(Op.SUM, (make(Op.SUM, args, (first,)),), (over & ~first,))
        out[node] = new
    return graph.with_outputs(*((k, out[n]) for k, n in graph.outputs))


def divide(graph: Graph, slab: int) -> Parts | None:
    """Who computes what; None where a program cannot compute a full output from its slabs and small tensors."""
    crossing = {n for n in graph.nodes if n.op in REDUCE and n.reduced & n.args[0].axes & slab}
    summed: set[Node] = set()  # depends on a sum of a full value
    after: set[Node] = set()  # depends on a sum that crosses slabs
    for node in graph.nodes:
        if is_sweep_sum(node) or any(a in summed for a in node.args):
            summed.add(node)
    before = {n for n in crossing if n not in summed and n.op is Op.SUM}
    for node in graph.nodes:
        if node not in before and (node in crossing or any(a in after for a in node.args)):
            after.add(node)
    outputs = {n for _, n in graph.outputs}
    users: dict[Node, list[Node]] = {n: [] for n in graph.nodes}
    for node in graph.nodes:
        for a in node.args:
            users[a].append(node)
    rows = {n for n in users if n.op is Op.SUM and is_sweep_sum(n) and n.reduced & n.args[0].axes == S} - outputs
    values, partials = [], []
    for node in graph.nodes:
        if node not in after:
            continue
        if node in crossing and node.op is not Op.SUM:
            return None
        if node in crossing and is_full(node.args[0].axes):
            if node.reduced & node.args[0].axes != S or node.args[0] in after:
                return None
            partials.append(node)
            continue
        if is_full(node.axes):
            return None
        for a in node.args:
            if a in rows and not any(u not in after for u in users[a]):
                partials.append(a)
            elif a in summed and a not in after:
                values.append(a)
    values += [n for _, n in graph.outputs if n in summed and n not in after and not is_full(n.axes)]
    partials = list(dict.fromkeys(partials))
    values = [n for n in dict.fromkeys(values) if n not in partials]
    stores = [n for _, n in graph.outputs if is_full(n.axes)]
    roots = [*stores, *values, *(n.args[0] for n in partials)]
    inside = toposort(roots, lambda n: () if n in before else n.args)
    if any(is_full(n.axes) for n in values):
        return None
    first = tuple(n for n in inside if n in before)
    return Parts(first, tuple(inside), tuple(values), tuple(partials))


@lru_cache(maxsize=4096)
def slabs_of(plan: Plan) -> Slabs:
    """How the programs of a resident or swept plan own slabs."""
    walk = make_walk(plan.layout, plan.slab)
    parts = divide(plan.graph, plan.slab)
    assert walk is not None and parts is not None
    partials, item = parts.partials, ITEM_BYTES[plan.dtype]
    folds = isinstance(walk, SlabPositions) and folds_batch(plan.graph, partials)
    return Slabs(walk, plan.tile, plan.order, plan.kind == "swept", len(partials), folds, item)


def folds_batch(graph: Graph, partials: tuple[Node, ...]) -> bool:
    """True where every value varies along the batch and the positions or along neither, but for partial sums that are
    summed along the batch next."""
    both = B | S
    for node in graph.nodes:
        if node.op is Op.SIZE and node.reduced & both not in (0, both):
            return False
        if node not in partials and node.axes & both not in (0, both):
            return False
        crossed = [a for a in node.args if a in partials]
        if crossed and not (node.op is Op.SUM and node.reduced & B):
            return False
    return not any(n in partials for _, n in graph.outputs)
