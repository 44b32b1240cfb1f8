"""Which tiles there are for plans whose programs hold slabs, and how large they may be: tables of what was compiled.

Tiles come from ladders of at most five rungs, so that new shapes soon compile nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One tile of a ladder.

    Attributes:
        a, e: BLOCK_A and BLOCK_E.
        many: a program may own several slabs along BLOCK_A.
    """

    a: int
    e: int
    many: bool = False

    @property
    def elements(self) -> int:
        """Of the tile."""
        return self.a * self.e


LADDERS: dict[str, tuple[Rung, ...]] = {
    "rows": (Rung(32, 32, True), Rung(64, 64), Rung(64, 128), Rung(64, 256)),
    "columns": (Rung(32, 32), Rung(128, 32), Rung(256, 32), Rung(512, 32), Rung(1024, 32)),
    "positions": (Rung(16, 64), Rung(4, 256), Rung(1, 1024), Rung(1, 2048), Rung(1, 4096)),
    "channels": (Rung(32, 32), Rung(128, 32), Rung(256, 32), Rung(512, 32), Rung(1024, 32)),
}
# What kernels are told of rows; 14 x 14 positions are a multiple of 4.
ALIGNMENTS = (16, 4, 1)
# Elements of the largest tile of 16-bit numbers, by walk and order; half for float32. Meant not to spill under triton
# 3.6 to 3.9 for sm_80, sm_90 and gfx942 (bench/tiles.py); for others see `SHARES`. In most a thread has at most 128
# registers, so that one program loads while another stores; what is larger is swept. "keyed" is a walk over rows some
# of whose sums end in rows.
TILES: dict[str, tuple[int, int, int]] = {
    "rows": (8192, 4096, 1024),
    "keyed": (8192, 4096, 1024),
    "columns": (8192, 4096, 1024),
    "positions": (4096, 4096, 2048),
    "channels": (4096, 4096, 1024),
}
# From a compute capability on (100 is sm_100), the share of these limits that resident plans get: the largest tile of a
# device whose compilers spill above that.
SHARES: dict[int, float] = {100: 0.5}
# Elements of the largest tile, by order, where the contiguous axis is no multiple of 16: each element then has an
# address and a mask of its own from loads to stores.
RAGGED = (4096, 4096, 1024)
# Tiles that walk a slab, by the extent that does not grow with it; BLOCK_A follows from the elements of a tile.
LOOPS: dict[str, tuple[Rung, ...]] = {
    "rows": (Rung(64, 64), Rung(16, 256), Rung(4, 1024), Rung(2, 2048), Rung(1, 4096)),
    "columns": (Rung(32, 32),),
    "positions": (Rung(1, 2048),),
    "partials": (Rung(64, 64),),  # over positions, so that partial sums are few
    "channels": (Rung(32, 32), Rung(16, 64)),
}
# Elements of the largest of these, by walk and order.
LOOP_TILES: dict[str, tuple[int, int, int]] = {
    "rows": (4096, 2048, 1024),
    "columns": (2048, 1024, 1024),
    "positions": (2048, 2048, 1024),
    "channels": (2048, 2048, 1024),
}
# Of layers with further inputs for each sample half of these, but no less than this.
CONDITIONED = {"rows": 1024, "columns": 512, "positions": 2048, "channels": 512}


def share(capability: int) -> float:
    """The share of the limits of resident plans that a device gets, by its compute capability as in `Device`."""
    return next((found for least, found in sorted(SHARES.items(), reverse=True) if capability >= least), 1.0)
