"""The public functions that look at a layer without running it: check, grad, plan, source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from normforge.codegen.orders import program
from normforge.codegen.plan import DTYPES, LAYOUTS, Plan, make_plan
from normforge.codegen.shapes import place
from normforge.errors import DtypeError, NormforgeError, OptionError, nearest
from normforge.ir.graph import Graph
from normforge.passes.degeneracy import Degeneracy, Finding
from normforge.passes.describe import Describe
from normforge.passes.differentiate import Differentiate
from normforge.passes.keys import lower

TARGETS = ("c", "triton")


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        ok: True when nothing speaks against the layer.
        findings: why it is degenerate, each with stage, node and reason.
        properties: facts about it, by name.
    """

    findings: tuple[Finding, ...]
    properties: dict[str, object] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when there are no findings."""
        return not self.findings


def check(graph: Graph) -> Report:
    """Is the layer degenerate, and what is it like? Static: no number is computed.

    Raises:
        OptionError: not a layer but a derivative graph.
    """
    if not graph.is_surface:
        raise OptionError("check takes a layer (one input x, one output y), not a derivative graph")
    return Report(Degeneracy().run(graph), Describe().run(graph))


def grad(graph: Graph) -> Graph:
    """The vector-Jacobian product of all outputs, as a core graph: cotangents `ct.<output>` in, `d.<name>` out."""
    return lower(Differentiate().run(graph))


def choose(value: str, known: Sequence[str], what: str, error: type[NormforgeError] = OptionError) -> str:
    """`value` when it is one of `known`.

    Raises:
        OptionError (or `error`): it is not; the message names the nearest.
    """
    if value not in known:
        raise error(f"{what} is one of {', '.join(known)}, not {value!r}{nearest(str(value), known)}")
    return value


def plan(
    graph: Graph,
    order: int = 0,
    *,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    layout: str = "nchw",
    target: str = "triton",
    train: bool = True,
) -> Plan:
    """How a derivative is computed: sweeps, loads, reads, writes, launches.

    Args:
        graph: a layer.
        order: 0 forward, 1 backward, 2 double backward.
        shape: (N, C, *spatial); without it, the plan for a slab that stays on chip.
        dtype, layout ("nchw" or "nhwc"), target ("triton" or "c"), train: what it is for.

    Raises:
        OptionError, DtypeError, ShapeError: an argument without meaning.
    """
    if not graph.is_surface:
        raise OptionError("plan takes a layer (one input x, one output y), not a derivative graph")
    if not isinstance(order, int) or not 0 <= order <= 3:
        raise OptionError(f"order is 0, 1, 2 or 3, not {order!r}")
    choose(target, TARGETS, "target")
    choose(layout, LAYOUTS, "layout")
    choose(dtype, DTYPES, "dtype", DtypeError)
    made = place(make_plan(program(graph, order, train), target, dtype, layout), shape)
    if target == "triton":
        from normforge.codegen.triton import launch_count

        made = replace(made, launches=launch_count(made))
    return made


def source(
    graph: Graph,
    backend: str = "triton",
    order: int = 0,
    dtype: str = "float32",
    layout: str = "nchw",
    train: bool = True,
) -> str:
    """The generated source of one derivative.

    Raises:
        OptionError, DtypeError: an argument without meaning. BackendError: a dtype that the backend lacks.
    """
    p = plan(graph, order, dtype=dtype, layout=layout, target=choose(backend, TARGETS, "backend"), train=train)
    title = f"{graph}"
    if backend == "c":
        from normforge.codegen.c import emit_c

        return emit_c(p, p.symbol, title)
    from normforge.codegen.triton import emit_triton

    return emit_triton(p, p.symbol, title).source
