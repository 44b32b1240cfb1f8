"""What the first minutes on a GPU are spent on: layers, shapes and layouts, large tensors first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu_peers import graph_of

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import plan_dims
from normforge.codegen.triton.cooperative import tile_channels
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kinds import KINDS, plan_of_kind
from normforge.codegen.triton.slab_plan import SLAB_KINDS, slabs_of
from normforge.kernels.job import layer_text

Dims = tuple[int, int, int, int]
L2_BYTES = 50 << 20


class Place(NamedTuple):
    """A layer on an input (N, C, *spatial)."""

    layer: str
    shape: tuple[int, ...]
    layout: str
    dtype: str = "bfloat16"

    @property
    def graph(self) -> nf.Graph:
        """The layer."""
        return graph_of(self.layer)

    @property
    def title(self) -> str:
        """Of emitted text, as modules have it, so that kernels are found in the cache."""
        return layer_text(self.graph)

    @property
    def dims(self) -> Dims:
        """N, groups, channels a group, positions."""
        return plan_dims(self.shape)

    def plan(self, order: int, kind: str) -> Plan | None:
        """None where there is no such plan, or it cannot run the shape."""
        plan = plan_of_kind(kind, program(self.graph, order, True), self.dtype, self.layout)
        if plan is None or (kind in SLAB_KINDS and slabs_of(plan).blocks(self.dims) is None):
            return None
        if kind == "cooperative":
            text = emit_triton(plan, plan.symbol, self.title)
            return plan if tile_channels(plan, text, self.dims, L2_BYTES) is not None else None
        return plan

    def __str__(self) -> str:
        return f"{self.layer} {'x'.join(map(str, self.shape))} {self.dtype} {self.layout}"


TOKENS = (8, 4096, 2048)  # (N, C, positions): 2048 positions of 4096 channels
PLACES = (
    Place("bn-relu", (128, 256, 56, 56), "nhwc"),
    Place("evonorm-s0", (128, 256, 56, 56), "nhwc"),
    Place("evonorm-b0", (128, 256, 56, 56), "nchw"),
    Place("bn-relu", (128, 256, 56, 56), "nchw"),
    Place("gn-silu", (128, 64, 112, 112), "nchw"),
    Place("evonorm-b0", (128, 64, 112, 112), "nhwc"),
    Place("layernorm-gelu", TOKENS, "nhwc"),
    Place("rmsnorm", TOKENS, "nhwc"),
    Place("gn-silu", (128, 256, 56, 56), "nhwc"),
    Place("evonorm-s0", (128, 256, 56, 56), "nchw"),
    Place("gn-silu", (1, 128, 512, 512), "nchw"),
    Place("gn-silu", (128, 1024, 14, 14), "nhwc"),
    Place("bn-relu", (128, 2048, 7, 7), "nchw"),
    Place("evonorm-s0", (128, 128, 16, 16), "nhwc"),
)
# The same walk for a machine without a GPU: shapes that no program is long busy with.
TINY = (Place("gn-silu", (1, 16, 16, 16), "nchw"),)


def plans(place: Place, orders: tuple[int, ...] = (0, 1, 2)) -> list[Plan]:
    """Every order by every kind that can run the shape."""
    return [p for order in orders for kind in KINDS if (p := place.plan(order, kind)) is not None]
