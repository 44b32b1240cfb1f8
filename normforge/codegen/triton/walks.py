"""How programs of a sweep walk its tiles [BLOCK_C, BLOCK_S]: which axis, over how far, and where a tile lies.

rows      a program walks the positions of a block of channels, a chunk of them
columns   a program walks all channels of a block of positions
groups    a program walks the channels of one group, of a block of positions
"""

from __future__ import annotations

from collections.abc import Mapping

from normforge.codegen.index import Ceil, Count
from normforge.codegen.stage import Stage
from normforge.ir.types import C, G, K, S

CHANNELS = (
    "c = channel.to(tl.int64)[:, None]  # [BLOCK_C, 1]",
    "g = (channel // K).to(tl.int64)[:, None]",
    "c_in = c < C",
)
POSITIONS_IN = "s_in = s < S"


class SweepWalk:
    """A walk over columns, and what differs for the others.

    Attributes:
        name: as plans print it.
        axes: that a program walks.
        axis: of a tile along which it walks. block: its extent. mask: of it.
        length: how far a program walks, as text.
        each_group: programs own a group.
    """

    name = "columns"
    axes = C
    axis, block, mask = 0, "BLOCK_C", "c_in"
    length = "C"
    each_group = False

    def __repr__(self) -> str:
        return self.name

    # -- sizes

    def along(self, layout: str) -> bool:
        """Does a program walk along the axis that is contiguous in memory?"""
        return layout == "nhwc"

    def channels(self, sizes: Mapping[str, int]) -> int:
        """That a program walks, or that programs share."""
        return sizes["C"]

    def tiles(self, chunks: int, wanted: int) -> int:
        """Blocks of positions that one program takes, of `chunks` of a row; `wanted` programs a row are enough."""
        return 1

    @property
    def beside(self) -> Count:
        """Programs for one chunk of the positions of a sample."""
        return Count(())

    def programs(self, sweep: int) -> Count:
        """Of a sweep of this number, by which its chunks go."""
        return Count(("N", *self.beside.factors, f"Q{sweep}"))

    def chunks(self, sweep: int) -> tuple[tuple[str, Count], ...]:
        """How the positions of a sample are divided: L of them, whole tiles, are a chunk."""
        return ((f"Q{sweep}", Count((Ceil(("S",), f"L{sweep}"),))),)

    # -- text

    def place(self, out: Stage) -> None:
        """What the program decides."""
        out(f"q = (pid % {out.size('Q')}).to(tl.int64)  # block of positions")
        self.sample(out)
        block = out.constexpr("BLOCK_S")
        out(f"s = (q * {block} + tl.arange(0, {block}))[None, :]  # [1, BLOCK_S]", POSITIONS_IN)

    def sample(self, out: Stage) -> None:
        """n, and g where a program owns a group."""
        out(f"n = (pid // {out.size('Q')}).to(tl.int64)")

    def step(self, out: Stage) -> None:
        """Indices along the walk of tile t."""
        block = out.constexpr("BLOCK_C")
        out(f"channel = t * {block} + tl.arange(0, {block})", *CHANNELS)

    def size(self, out: Stage) -> str:
        """How far this program walks."""
        return self.length

    def fetched(self, axes: int) -> bool:
        """Does a small value of these axes differ from channel to channel of a tile?"""
        return bool(axes & G)


class Groups(SweepWalk):
    """A walk over the channels of one group."""

    name = "groups"
    length = "K"
    each_group = True

    def channels(self, sizes: Mapping[str, int]) -> int:
        """As `SweepWalk.channels`."""
        return sizes["K"]

    @property
    def beside(self) -> Count:
        """As `SweepWalk.beside`."""
        return Count(("G",))

    def sample(self, out: Stage) -> None:
        """As `SweepWalk.sample`."""
        q = out.size("Q")
        out(f"g = (pid // {q} % G).to(tl.int64)", f"n = (pid // {q} // G).to(tl.int64)")

    def step(self, out: Stage) -> None:
        """As `SweepWalk.step`."""
        block = out.constexpr("BLOCK_C")
        out(f"k = (t * {block} + tl.arange(0, {block}))[:, None]  # [BLOCK_C, 1]", "c = g * K + k", "c_in = k < K")

    def fetched(self, axes: int) -> bool:
        """As `SweepWalk.fetched`."""
        return bool(axes & G and axes & K)


class Rows(SweepWalk):
    """A walk over the positions of a chunk."""

    name = "rows"
    axes = S
    axis, block, mask = 1, "BLOCK_S", "s_in"
    length = "L"

    def along(self, layout: str) -> bool:
        """As `SweepWalk.along`."""
        return layout == "nchw"

    def tiles(self, chunks: int, wanted: int) -> int:
        """As `SweepWalk.tiles`."""
        return -(-chunks // min(wanted, chunks))

    @property
    def beside(self) -> Count:
        """As `SweepWalk.beside`."""
        return Count((Ceil(("C",), "BLOCK_C"),))

    def place(self, out: Stage) -> None:
        """As `SweepWalk.place`."""
        length, q = out.size("L"), out.size("Q")
        channels, positions = out.constexpr("BLOCK_C"), out.constexpr("BLOCK_S")
        out(
            f"{length} = {length} // {positions} * {positions}"
            "  # as it is: says that chunks start at multiples of a tile",
            f"blocks = tl.cdiv(C, {channels})",
            f"q = (pid % {q}).to(tl.int64)  # chunk of L positions",
            f"n = (pid // {q} // blocks).to(tl.int64)",
            f"channel = pid // {q} % blocks * {channels} + tl.arange(0, {channels})",
            *CHANNELS,
        )

    def step(self, out: Stage) -> None:
        """As `SweepWalk.step`."""
        length, block = out.size("L"), out.constexpr("BLOCK_S")
        out(f"s = (q * {length} + t * {block} + tl.arange(0, {block}))[None, :]  # [1, BLOCK_S]", POSITIONS_IN)

    def size(self, out: Stage) -> str:
        """As `SweepWalk.size`."""
        length = out.size("L")
        return f"tl.minimum(S - q * {length}, {length})"


ROWS, COLUMNS, GROUPS = Rows(), SweepWalk(), Groups()
SWEEP_WALKS = (ROWS, COLUMNS, GROUPS)
