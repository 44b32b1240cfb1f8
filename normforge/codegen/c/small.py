"""C for the small values of a plan: loops over a region, elementwise values and sums of one shape fused."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from normforge.codegen.c.names import SMALL_CODE, Storage, address, size_of
from normforge.codegen.plan import is_sweep_sum
from normforge.codegen.text import Lines
from normforge.ir.node import Node
from normforge.ir.ops import LEAF, Op
from normforge.ir.types import B, C, G, K, S

_ATOMS = (B, G, K, S)


@dataclass
class Group:
    """Values computed in one loop nest over `axes`: merges of partials, elementwise values, and sums."""

    axes: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def elementwise(self) -> list[Node]:
        """What has a value at every point of the nest."""
        return [n for n in self.nodes if n.op is not Op.SUM or is_sweep_sum(n)]

    @property
    def sums(self) -> list[Node]:
        """What is summed over the nest."""
        return [n for n in self.nodes if n.op is Op.SUM and not is_sweep_sum(n)]


def loop_axes(node: Node) -> int:
    """The axes of the loops that compute a small value."""
    return node.args[0].axes if node.op is Op.SUM and not is_sweep_sum(node) else node.axes


def group(nodes: Iterable[Node], storage: Storage) -> list[Group]:
    """Greedily collect what can share a nest, in an order that respects operands."""
    pending = [n for n in nodes if storage.chunked or not is_sweep_sum(n)]
    # Column sums are stored by their sweep, finished.
    pending = [n for n in pending if not (is_sweep_sum(n) and not n.reduced & S)]
    waiting = set(pending)
    groups: list[Group] = []
    while pending:
        new = Group(loop_axes(pending[0]))
        inside: set[Node] = set()
        rest = []
        for node in pending:
            blocked = not is_sweep_sum(node) and any(a in waiting and a not in inside for a in node.args)
            if blocked or loop_axes(node) != new.axes:
                rest.append(node)
                continue
            new.nodes.append(node)
            if node.op is not Op.SUM or is_sweep_sum(node):
                inside.add(node)
        waiting -= set(new.nodes)
        groups.append(new)
        pending = rest
    return groups


def emit(out: Lines, groups: list[Group], storage: Storage, keep: set[Node]) -> None:
    """Emit the nests; `keep` are the values that something outside their own nest reads."""
    for g in groups:
        _emit_group(out, g, storage, keep)


def _emit_group(out: Lines, group: Group, storage: Storage, keep: set[Node]) -> None:
    nest = [a for a in _ATOMS if group.axes & a]
    inside = set(group.elementwise)
    scalars: dict[int, list[Node]] = {}  # depth of the loops that a sum is complete after -> sums
    arrays: list[Node] = []
    for node in group.sums:
        depth = bin(node.axes).count("1")
        if node.axes == sum(nest[:depth]):
            scalars.setdefault(depth, []).append(node)
        else:
            arrays.append(node)
    for axes, nodes in _by_axes(arrays).items():
        with _loops(out, _atoms(axes)):
            for node in nodes:
                out(f"{_wide(node, storage)}[{address(axes)}] = 0;")
    # Channels are walked group by group only where a value by group is read or made inside.
    used = {a for n in group.nodes for a in n.args if a.op not in LEAF or a.op in (Op.INPUT, Op.PARAM)}
    by_group = any(a.axes & G and not a.axes & K for a in used - inside) or any(
        n.axes & G and not n.axes & K for n in group.nodes
    )
    merged = G in nest and K in nest and not by_group
    steps = _merge_channels(nest) if merged else [(a,) for a in nest]
    with ExitStack() as stack:
        done = 0
        _open_sums(out, scalars.get(0, ()), storage, stack)
        for step in steps:
            done += len(step)
            # Without a pragma the compiler does not vectorise; sums over the innermost axis would need lanes.
            apart = not any(scalars.get(d) for d in range(done)) and all(n.axes & step[-1] for n in arrays)
            if done == len(nest) and step[-1] in (K, S) and apart:
                out("#pragma omp simd")
            stack.enter_context(_loops(out, step))
            _open_sums(out, scalars.get(done, ()), storage, stack)
        for node in group.elementwise:
            if is_sweep_sum(node):
                _emit_merge(out, node, storage)
            else:
                args = [storage.var(a) if a in inside else storage.load_wide(a) for a in node.args]
                out(f"const double {storage.var(node)} = {SMALL_CODE[node.op].format(*args)};")
            if node in keep:
                out(f"{storage.array(node)}[{address(node.axes)}] = {storage.var(node)};")
        for node in group.sums:
            a = node.args[0]
            value = storage.var(a) if a in inside else storage.load_wide(a)
            target = f"a{storage.index[node]}"
            if node in arrays:
                target = f"{_wide(node, storage)}[{address(node.axes)}]"
            out(f"{target} += {value};")
    for axes, nodes in _by_axes([n for n in arrays if _wide(n, storage) != storage.array(n)]).items():
        with _loops(out, _atoms(axes)):
            for node in nodes:
                out(f"{storage.array(node)}[{address(axes)}] = {_wide(node, storage)}[{address(axes)}];")


def _wide(node: Node, storage: Storage) -> str:
    """The array in which a sum is added up in double: its own where that is one."""
    own = storage.array(node)
    if own in storage.arrays and storage.arrays[own].ctype == "double":
        return own
    return storage.workspace(f"d{storage.index[node]}", "double", size_of(node.axes))


def _by_axes(nodes: Iterable[Node]) -> dict[int, list[Node]]:
    found: dict[int, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.axes, []).append(node)
    return found


def _open_sums(out: Lines, sums: Iterable[Node], storage: Storage, stack: ExitStack) -> None:
    """Declare double accumulators here and store them where this scope ends."""
    for node in sums:
        out(f"double a{storage.index[node]} = 0;")
        stack.callback(out, f"{storage.array(node)}[{address(node.axes)}] = a{storage.index[node]};")


def _atoms(axes: int) -> tuple[int, ...]:
    atoms = [a for a in _ATOMS if axes & a]
    return tuple(atoms)


def _merge_channels(nest: list[int]) -> list[tuple[int, ...]]:
    steps: list[tuple[int, ...]] = []
    for a in nest:
        if a == K:
            steps[-1] = (G, K)
        else:
            steps.append((a,))
    return steps


def _loops(out: Lines, atoms: tuple[int, ...]) -> ExitStack:
    """Open the loops over these axes of the region r, outermost first."""
    stack = ExitStack()
    axes = sum(atoms)
    if axes & B:
        stack.enter_context(out.block("for (int64_t n = r.n0; n < r.n1; ++n) {"))
    if axes & C == C:
        stack.enter_context(out.block("for (int64_t c = r.c0; c < r.c1; ++c) {"))
    elif axes & G:
        stack.enter_context(out.block("for (int64_t g = r.c0 / K; g < (r.c1 + K - 1) / K; ++g) {"))
    elif axes & K:
        head = "for (int64_t c = MAX2(r.c0, g * K); c < MIN2(r.c1, (g + 1) * K); ++c) {"
        stack.enter_context(out.block(head))
    if axes & S:
        stack.enter_context(out.block("for (int64_t s = r.q0 * L; s < MIN2(S, r.q1 * L); ++s) {"))
    return stack


def _emit_merge(out: Lines, node: Node, storage: Storage) -> None:
    """A row's value from the partials of its chunks; (mean, M2) by Chan's formula with the exact total mean."""
    v = storage.var(node)
    row = "(n * Q + q) * C + " + ("c" if node.axes & K else "g * K" if node.axes & G else "0")
    loop = "for (int64_t q = 0; q < Q; ++q)"
    if node.op is Op.SUM or (node.op is Op.MEAN and not has_variance(node, storage)):
        p = storage.partial(node)
        out(f"double t{v} = 0;", f"{loop} t{v} += (double){p}[{row}];")
        out(f"const double {v} = t{v}{' / (double)S' if node.op is Op.MEAN else ''};")
        return
    m, k = (storage.partial(node.args[0], kind) for kind in "mk")
    length = "(double)(MIN2(S, (q + 1) * L) - q * L)"
    # A chunk's mean is m, rounded, and what the deviations from it add up to, divided by their number.
    out(f"double t{v} = 0;", f"{loop} t{v} += (double){m}[{row}] * {length} + (double){k}[{row}];")
    out(f"t{v} /= (double)S;")
    if node.op is Op.MEAN:
        out(f"const double {v} = t{v};")
        return
    q = storage.partial(node.args[0], "q")
    out(f"double u{v} = 0;")
    with out.block(f"{loop} {{"):
        out(f"const double l = {length}, k = (double){k}[{row}], e = (double){m}[{row}] + k / l - t{v};")
        out(f"u{v} += (double){q}[{row}] - k * k / l + e * e * l;")
    out(f"const double {v} = u{v} / (double)S;")


def has_variance(node: Node, storage: Storage) -> bool:
    """True when the variance of the same rows (or columns) is taken too: mean and M2 then come as a pair."""
    return any(
        n.op is Op.VAR and n.args == node.args and n.attr == node.attr
        for sweep in storage.plan.sweeps
        for n in sweep.sums
    )
