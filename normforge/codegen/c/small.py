"""C for the small values of a plan, before, between and after the sweeps: loops over a region, with elementwise values
and sums of one shape in one nest.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from normforge.codegen.c.function import Function
from normforge.codegen.c.names import CStorage
from normforge.codegen.index import chunk, element, extents
from normforge.codegen.plan import is_sweep_sum
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


def group(nodes: Iterable[Node], storage: CStorage) -> list[Group]:
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


def emit(out: Function, groups: list[Group], keep: set[Node]) -> None:
    """Emit the nests; `keep` are the values that something outside their own nest reads."""
    for g in groups:
        _emit_group(out, g, keep)


def _emit_group(out: Function, group: Group, keep: set[Node]) -> None:
    nest = _atoms(group.axes)
    scalars: dict[int, list[Node]] = {}  # depth of the loops that a sum is complete after -> sums
    arrays: list[Node] = []
    for node in group.sums:
        depth = node.axes.bit_count()
        if node.axes == sum(nest[:depth]):
            scalars.setdefault(depth, []).append(node)
        else:
            arrays.append(node)
    for axes, nodes in _by_axes(arrays).items():
        with _loops(out, _atoms(axes)):
            out(*(f"{_wide(out, node)} = 0;" for node in nodes))
    with ExitStack() as stack:
        done = 0
        _open_sums(out, scalars.get(0, ()), stack)
        for step in _steps(group, nest):
            done += len(step)
            # Without a pragma the compiler does not vectorise; sums over the innermost axis would need lanes.
            apart = not any(scalars.get(d) for d in range(done)) and all(n.axes & step[-1] for n in arrays)
            if done == len(nest) and step[-1] in (K, S) and apart:
                out("#pragma omp simd")
            stack.enter_context(_loops(out, step))
            _open_sums(out, scalars.get(done, ()), stack)
        _emit_point(out, group, arrays, keep)
    st = out.storage
    for axes, nodes in _by_axes([n for n in arrays if _wide_array(st, n) != st.array(n)]).items():
        with _loops(out, _atoms(axes)):
            out(*(f"{out.small(node)} = {_wide(out, node)};" for node in nodes))


def _emit_point(out: Function, group: Group, arrays: list[Node], keep: set[Node]) -> None:
    """What is done at one point of a nest; `arrays` are the sums that are added up in place."""
    st, inside = out.storage, set(group.elementwise)
    for node in group.elementwise:
        if is_sweep_sum(node):
            _emit_merge(out, node)
        else:
            args = [st.var(a) if a in inside else out.wide(a) for a in node.args]
            out(f"const double {st.var(node)} = {out.double(node.op, *args)};")
        if node in keep:
            out(f"{out.small(node)} = {st.var(node)};")
    for node in group.sums:
        a = node.args[0]
        value = st.var(a) if a in inside else out.wide(a)
        out(f"{_wide(out, node) if node in arrays else f'a{st.index[node]}'} += {value};")


def _steps(group: Group, nest: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The loops of a nest, by the axes that each walks. Channels are walked group by group only where a value by group
    is read or made inside."""
    inside = set(group.elementwise)
    used = {a for n in group.nodes for a in n.args if a.op not in LEAF or a.op in (Op.INPUT, Op.PARAM)}
    by_group = any(n.axes & G and not n.axes & K for n in (*(used - inside), *group.nodes))
    if G in nest and K in nest and not by_group:
        return [(G, K) if a == G else (a,) for a in nest if a != K]
    return [(a,) for a in nest]


def _wide_array(storage: CStorage, node: Node) -> str:
    """The array in which a sum is added up in double: its own where that is one."""
    own = storage.array(node)
    if own in storage.arrays and storage.arrays[own].ctype == "double":
        return own
    return storage.workspace(f"d{storage.index[node]}", "double", extents(node.axes))


def _wide(out: Function, node: Node) -> str:
    """Its element."""
    return out.item(_wide_array(out.storage, node), element(node.axes))


def _by_axes(nodes: Iterable[Node]) -> dict[int, list[Node]]:
    found: dict[int, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.axes, []).append(node)
    return found


def _open_sums(out: Function, sums: Iterable[Node], stack: ExitStack) -> None:
    """Declare double accumulators here and store them where this scope ends."""
    for node in sums:
        total = f"a{out.storage.index[node]}"
        out(f"double {total} = 0;")
        stack.callback(out, f"{out.small(node)} = {total};")


def _atoms(axes: int) -> tuple[int, ...]:
    return tuple(a for a in _ATOMS if axes & a)


def _loops(out: Function, atoms: tuple[int, ...]) -> ExitStack:
    """Open the loops over these axes of the region r, outermost first."""
    stack, axes, size = ExitStack(), sum(atoms), out.size
    if axes & B:
        stack.enter_context(out.block("for (int64_t n = r.n0; n < r.n1; ++n) {"))
    if axes & C == C:
        stack.enter_context(out.block("for (int64_t c = r.c0; c < r.c1; ++c) {"))
    elif axes & G:
        head = f"for (int64_t g = r.c0 / {size('K')}; g < (r.c1 + K - 1) / K; ++g) {{"
        stack.enter_context(out.block(head))
    elif axes & K:
        head = f"for (int64_t c = MAX2(r.c0, g * {size('K')}); c < MIN2(r.c1, (g + 1) * K); ++c) {{"
        stack.enter_context(out.block(head))
    if axes & S:
        head = f"for (int64_t s = r.q0 * {size('L')}; s < MIN2({size('S')}, r.q1 * L); ++s) {{"
        stack.enter_context(out.block(head))
    return stack


def _emit_merge(out: Function, node: Node) -> None:
    """A row's value from the partials of its chunks; (mean, M2) by Chan's formula with the exact total mean."""
    v, row, size = out.storage.var(node), chunk(node.axes), out.size
    loop = f"for (int64_t q = 0; q < {size('Q')}; ++q)"
    if node.op is Op.SUM or (node.op is Op.MEAN and not has_variance(node, out.storage)):
        out(f"double t{v} = 0;", f"{loop} t{v} += (double){out.partial(node, 'p', row)};")
        share = f" / (double){size('S')}" if node.op is Op.MEAN else ""
        out(f"const double {v} = t{v}{share};")
        return
    m, k = (out.partial(node.args[0], kind, row) for kind in "mk")
    positions = f"(double){size('S')}"
    length = f"(double)(MIN2(S, (q + 1) * {size('L')}) - q * L)"
    # A chunk's mean is m, rounded, and what the deviations from it add up to, divided by their number.
    out(f"double t{v} = 0;", f"{loop} t{v} += (double){m} * {length} + (double){k};")
    out(f"t{v} /= {positions};")
    if node.op is Op.MEAN:
        out(f"const double {v} = t{v};")
        return
    q = out.partial(node.args[0], "q", row)
    out(f"double u{v} = 0;")
    with out.block(f"{loop} {{"):
        out(f"const double l = {length}, k = (double){k}, e = (double){m} + k / l - t{v};")
        out(f"u{v} += (double){q} - k * k / l + e * e * l;")
    out(f"const double {v} = u{v} / {positions};")


def has_variance(node: Node, storage: CStorage) -> bool:
    """True when the variance of the same rows (or columns) is taken too: mean and M2 then come as a pair."""
    return any(
        n.op is Op.VAR and n.args == node.args and n.attr == node.attr
        for sweep in storage.plan.sweeps
        for n in sweep.sums
    )
