"""`plan` and `source`: how a derivative of a layer is computed, and the text that does it."""

from __future__ import annotations

from collections.abc import Sequence

from normforge.codegen.orders import program
from normforge.codegen.plan import DTYPES, LAYOUTS, Plan, make_plan
from normforge.codegen.shapes import place, plan_dims
from normforge.codegen.triton.kinds import TYPICAL_DEVICE, choose_plan
from normforge.errors import DtypeError, NormforgeError, OptionError, nearest
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer

TARGETS = ("c", "triton")


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
    dims = None if shape is None else plan_dims(shape)
    return place(choose_plan(what, dtype, layout, dims, TYPICAL_DEVICE), shape)


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
        from normforge.codegen.c.emit import emit_c

        return emit_c(p, p.symbol, title)
    from normforge.codegen.triton.emit import emit_triton

    return emit_triton(p, p.symbol, title).source
