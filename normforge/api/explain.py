"""explain: the plans of a layer in words and numbers, order by order."""

from __future__ import annotations

from collections.abc import Sequence

from normforge.codegen.memory import account
from normforge.codegen.orders import program
from normforge.codegen.plan import Plan
from normforge.codegen.public import plan
from normforge.codegen.registry import find_target
from normforge.ir.graph import Graph
from normforge.ir.types import INDEX_NAMES, axes_name, reduced_name
from normforge.passes.running import running_statistics

ORDER_NAMES = ("forward", "backward", "double backward")


def explain(
    graph: Graph,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    layout: str = "nchw",
    target: str = "triton",
    *,
    groups: int | None = None,
    ir: bool = False,
) -> str:
    """Text for people: what each order loads, sums, stores, launches and saves, and what that costs at a shape.

    Args:
        graph: a layer.
        shape: (N, C, *spatial); without it, slabs are taken to stay on chip and no bytes are given.
        dtype, layout, target, groups: as in `normforge.plan`.
        ir: also the typed SSA of each order.
    """
    lines = [str(graph), ""]
    for r in running_statistics(graph):
        lines.append(f"keeps {r.name}, one value for each of {axes_name(r.axes)}, in training mode")
    labels = _statistics(graph)
    for order, name in enumerate(ORDER_NAMES):
        p = plan(graph, order, shape=shape, dtype=dtype, layout=layout, target=target, groups=groups)
        lines += ["", f"{name}: {_numbers(p)}", *p.summary.split("\n")[1 : 1 + len(p.sweeps)]]
        lines += str(p.schedule).split("\n")
        lines += _bytes(p, labels, groups) if shape is not None else [f"  saves {_listing(_saved_names(p), labels)}"]
        if ir:
            lines += ["", p.graph.dump()]
    return "\n".join(lines)


def _numbers(p: Plan) -> str:
    kind = f"{p.kind}, " if find_target(p.target).kinds else ""
    where = f"slab {axes_name(p.slab)} stays in {p.resident_in}" if p.resident_in else "slab does not stay on chip"
    return (
        f"{kind}{_count(len(p.sweeps), 'sweep')}, {_count(p.launches, 'launch')}, {_count(p.loads, 'load')} "
        f"({p.reads} from memory), {_count(p.writes, 'write')}, {_count(p.accumulators, 'row or column sum')}; {where}"
    )


def _bytes(p: Plan, labels: dict[str, str], groups: int | None) -> list[str]:
    a = account(p, groups)
    sizes = {name: f" {human(size)}" for name, size in a.saved}
    if find_target(p.target).keeps_workspace:
        peak = f"{human(a.outputs)} of outputs, and a workspace that is kept from call to call"
    else:
        peak = f"{human(a.outputs)} of outputs, {human(a.workspace)} of workspace"
    partials = f" and {human(a.partials)} of partial sums, written and read" if a.partials else ""
    return [
        f"  moves {human(a.moved)} of full tensors, {human(a.tensor)} each{partials}: {a.ratio:.2f} times the floor, "
        f"{a.floor // a.tensor} S = {human(a.floor)}; {human(a.small)} of small ones",
        f"  saves {_listing(list(sizes), labels, sizes)}; {human(a.saved_bytes)} in all",
        f"  allocates {peak}",
    ]


def _statistics(graph: Graph) -> dict[str, str]:
    """`saved.0` -> `saved.0 (mean over w,h)`."""
    forward = program(graph, 0, True)
    names = {s.name for s in forward.saved}
    moments = {name: node for name, node in forward.graph.outputs if name in names}
    over = {name: INDEX_NAMES.get(n.reduced) or reduced_name(n.reduced) for name, n in moments.items()}
    return {name: f"{name} ({node.op} over {over[name]})" for name, node in moments.items()}


def _saved_names(p: Plan) -> list[str]:
    """What autograd keeps for the next derivative."""
    return [n.name for n in p.operands] + [name for name, _ in p.outputs if p.order == 0 and name in p.saved]


def _listing(names: list[str], labels: dict[str, str], sizes: dict[str, str] | None = None) -> str:
    return ", ".join(labels.get(name, name) + (sizes[name] if sizes else "") for name in names)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('ch') else 's'}"


def human(size: int) -> str:
    """A size as text: `256 B`, `16.4 kB`, `51.4 MB`, `1.6 GB`, powers of a thousand."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
