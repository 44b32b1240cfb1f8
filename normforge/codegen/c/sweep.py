"""C for the sweeps of a plan: a function each, which walks the samples and chunks of a region.

What it does in a chunk is a walk: `rows` where space is contiguous in memory, `positions` where channels are.
"""

from __future__ import annotations

from collections.abc import Sequence

from normforge.codegen.c.function import Function
from normforge.codegen.c.names import CStorage
from normforge.codegen.c.positions import PositionsWalk
from normforge.codegen.c.rows import RowsWalk
from normforge.ir.node import Node
from normforge.ir.types import S


def emit_sweep(storage: CStorage, number: int, kept: Sequence[Node], fused: frozenset[Node]) -> Function:
    """`sweepN(const Ctx *x, Region r, void *keep, int slab)` for the sweep of this number.

    `keep` has room for the values of `kept`: those of the region r where `slab` is true, else those of a tile.
    """
    out = Function(storage, f"sweep{number}", "const Ctx *x, Region r, void *keep, int slab")
    sweep = storage.plan.sweeps[number]
    walk = (RowsWalk if storage.inner == S else PositionsWalk)(out, sweep, tuple(kept), fused)
    size, chunks = out.size, "for (int64_t q = r.q0; q < r.q1; ++q) {" if storage.chunked else "{"
    if sweep.loads and len(sweep.stores) <= 1:
        out(f"const int64_t ahead = {walk.ahead()};")
    with out.block("for (int64_t n = r.n0; n < r.n1; ++n) {"), out.block(chunks):
        lo, hi = "0", size("S")
        if storage.chunked:
            lo, hi = f"q * {size('L')}", f"MIN2({size('S')}, (q + 1) * L)"
        out(f"const int64_t lo = {lo}, hi = {hi};")
        walk.emit()
    if sweep.stores:
        out(f"SETTLE({size('past')});")
    return out
