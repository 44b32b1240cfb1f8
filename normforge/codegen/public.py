"""`plan` and `source`: how a derivative of a layer is computed, and the text that does it."""

from __future__ import annotations

from collections.abc import Sequence

from normforge.codegen.orders import program
from normforge.codegen.plan import DTYPES, LAYOUTS, Plan
from normforge.codegen.registry import find_target, target_names
from normforge.codegen.shapes import plan_dims
from normforge.errors import DtypeError, NormforgeError, OptionError, nearest
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer
from normforge.passes.single import moment_axes, single_axes


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
    groups: int | None = None,
) -> Plan:
    """How a derivative is computed: sweeps, loads, reads, writes, launches.

    Args:
        layer: a graph, a layer's name, or a formula.
        order: 0 forward, 1 backward, 2 double backward.
        shape: (N, C, *spatial); without it, the plan for a slab that stays on chip.
        dtype, layout ("nchw" or "nhwc"), target ("triton", "c", or one that was registered), train: what it is for.
        groups: of the index set w,h,c/g at the shape; None is as for `compile`.

    Raises:
        OptionError, DtypeError, ShapeError: an argument without meaning. ParseError: no such layer, or a bad formula.
    """
    graph = as_layer(layer, "plan")
    if not isinstance(order, int) or not 0 <= order <= 3:
        raise OptionError(f"order is 0, 1, 2 or 3, not {order!r}")
    choose(target, target_names(), "target")
    choose(layout, LAYOUTS, "layout")
    choose(dtype, DTYPES, "dtype", DtypeError)
    found = find_target(target)
    dims = None if shape is None else plan_dims(shape, groups)
    single = single_axes(moment_axes(graph), dims) if dims else 0
    return found.place(found.plan(program(graph, order, train, single=single), dtype, layout, dims), shape, groups)


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
    target = choose(backend, target_names(), "backend")
    p = plan(graph, order, dtype=dtype, layout=layout, target=target, train=train)
    return find_target(target).emit(p, str(graph))
