"""The public functions that look at a layer without running it: check, grad, plan, source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from normforge.codegen.kinds import TYPICAL_DEVICE, choose_plan
from normforge.codegen.orders import program
from normforge.codegen.plan import DTYPES, LAYOUTS, Plan, make_plan
from normforge.codegen.shapes import place, plan_dims
from normforge.errors import DtypeError, NormforgeError, OptionError, nearest
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer
from normforge.passes.degeneracy import Degeneracy, Finding
from normforge.passes.describe import Describe
from normforge.passes.differentiate import Differentiate
from normforge.passes.keys import lower

if TYPE_CHECKING:
    from normforge.search.probing import Propagation

TARGETS = ("c", "triton")


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        findings: why it is degenerate, each with stage, node and reason.
        properties: facts about it, by name: those of `normforge.passes.Describe`, and `traffic`: full tensors read and
            written by each order's kernels, when slabs stay on chip.
        remarks: what the probing stage saw on inputs that it does not refuse for, by input.
        propagation: signals by depth in a stack of convolutions (see `normforge.search.probing`); None where no
            number was computed.
        seconds: by stage.
    """

    findings: tuple[Finding, ...]
    properties: dict[str, object] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    propagation: Propagation | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when there are no findings."""
        return not self.findings


def check(layer: Graph | str, *, probe: bool = True) -> Report:
    """Is the layer degenerate, and what is it like?

    The stages in order of cost, up to the first that refuses: by type, dependence, range, form, and by probing.

    Args:
        layer: a graph, a layer's name, or a formula.
        probe: also the last of them, which runs the layer; without it, no number is computed.

    Raises:
        OptionError: not a layer but a derivative graph. ParseError: no such layer, or a bad formula.
    """
    graph = as_layer(layer, "check")
    static, seconds = Degeneracy().timed(graph)
    properties = Describe().run(graph)
    plans = [plan(graph, order) for order in range(3)]
    properties["traffic"] = [p.reads + p.writes for p in plans]
    if static or not probe:
        return Report(static, properties, seconds=seconds)
    from normforge.search.probing import probe as run_probe

    probed = run_probe(graph)
    seconds |= {f"probing, {part}": t for part, t in probed.seconds.items()}
    return Report(probed.findings, properties, probed.remarks, probed.propagation, seconds)


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
    layer: Graph | str,
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
        layer: a graph, a layer's name, or a formula.
        order: 0 forward, 1 backward, 2 double backward.
        shape: (N, C, *spatial); without it, the plan for a slab that stays on chip.
        dtype, layout ("nchw" or "nhwc"), target ("triton" or "c"), train: what it is for.

    Raises:
        OptionError, DtypeError, ShapeError: an argument without meaning. ParseError: no such layer, or a bad formula.
    """
    graph = as_layer(layer, "plan")
    if not isinstance(order, int) or not 0 <= order <= 3:
        raise OptionError(f"order is 0, 1, 2 or 3, not {order!r}")
    choose(target, TARGETS, "target")
    choose(layout, LAYOUTS, "layout")
    choose(dtype, DTYPES, "dtype", DtypeError)
    what = program(graph, order, train)
    if target == "c":
        return place(make_plan(what, target, dtype, layout), shape)
    from normforge.codegen.triton import launch_count

    dims = None if shape is None else plan_dims(shape)
    made = place(choose_plan(what, dtype, layout, dims, TYPICAL_DEVICE), shape)
    return replace(made, launches=launch_count(made))


def source(
    layer: Graph | str,
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
    graph = as_layer(layer, "source")
    p = plan(graph, order, dtype=dtype, layout=layout, target=choose(backend, TARGETS, "backend"), train=train)
    title = f"{graph}"
    if backend == "c":
        from normforge.codegen.c import emit_c

        return emit_c(p, p.symbol, title)
    from normforge.codegen.triton import emit_triton

    return emit_triton(p, p.symbol, title).source
