"""Indices and masks of the tile of a program that holds slabs: which element of which slab lies where.

A class a walk, for the blocks of positions of two walks the same. All speak of a and e, the places along BLOCK_A and
BLOCK_E, whose masks are a_in and e_in; `inside` is both. What is the same for all elements along an axis has extent 1.
"""

from __future__ import annotations

from normforge.codegen.index import chunk, element, extents, full
from normforge.codegen.stage import Stage
from normforge.codegen.triton.slabs import SlabWalk
from normforge.ir.types import B, C, G, K, S


class SlabTile:
    """A block of positions of all channels (of a group): walks over columns and over positions.

    Attributes:
        walk: of the slabs.
        persistent: programs walk one slab after the other.
        slab_sums: sums over a whole slab are taken by `sum_slab`, for any number of slabs in a tile.
        positions, channels: the axes of the tile along which those lie.
    """

    slab_sums = False

    def __init__(self, walk: SlabWalk, *, persistent: bool = False) -> None:
        self.walk, self.persistent = walk, persistent
        self.positions, self.channels = ("e", "a") if walk.on_e & S else ("a", "e")

    # -- what the program decides

    def place(self, out: Stage) -> None:
        """Everything about the place of the program."""
        out("N, S = N.to(tl.int64), S.to(tl.int64)", "C = G * K")
        aligned, contiguous = out.constexpr("ALIGNED"), "S" if self.walk.on_e & S else "C"
        with out.block(f"if {aligned} > 1:", ""):
            out(f"{contiguous} = {contiguous} // {aligned} * {aligned}  # says so to the compiler: wide accesses")
        if self.persistent:
            q, length = out.size("Q0"), out.size("L0")
            out(f"first = (pid % {q}).to(tl.int64) * {length}  # position of the chunk", f"q = pid % {q}")
        out("pid += tl.arange(0, 1)[:, None]  # [1, 1]")
        self.lanes(out)
        self.slab(out)

    def lanes(self, out: Stage) -> None:
        """The places along both axes."""
        out(f"a = tl.arange(0, {out.constexpr('BLOCK_A')})[:, None]  # [BLOCK_A, 1]", along_e(out))

    def slab(self, out: Stage) -> None:
        """Which slab, and which part of it."""
        if self.persistent:
            self.sample(out, out.size("Q0"))
            self.across(out)
            return
        block, positions = out.constexpr(f"BLOCK_{self.positions.upper()}"), self.positions
        out(f"Q = tl.cdiv(S, {block}).to(tl.int32)", "q = (pid % Q).to(tl.int64)  # block of positions")
        self.sample(out, "Q")
        out(f"s = q * {block} + {positions}", f"{positions}_in = s < S")

    def sample(self, out: Stage, chunks: str) -> None:
        """n, and g where a program owns a group."""
        if self.walk.slab & G:
            out(f"g = (pid // {chunks} % G).to(tl.int64)", f"n = (pid // {chunks} // G).to(tl.int64)")
        else:
            out(f"n = (pid // {chunks}).to(tl.int64)")

    def across(self, out: Stage) -> None:
        """The channels that lie along an axis of the tile as a whole."""
        channels = self.channels
        if self.walk.slab & G:
            out(f"k = {channels}", "c = g * K + k", f"{channels}_in = k < K")
        else:
            out(f"channel = {channels}", f"{channels}_in = channel < C", *OF_A_CHANNEL)

    # -- what the place in the tile decides

    def step(self, out: Stage) -> None:
        """Indices and masks of the elements of a tile."""
        if self.persistent:
            out("s = first + s0 + a  # [BLOCK_A, 1]", "a_in = s < S")
        else:
            self.across(out)
        self.address(out)

    def address(self, out: Stage) -> None:
        """The mask and the place of each element."""
        at = full("nchw" if self.walk.on_e & S else "nhwc").plain
        out("inside = a_in & e_in", f"at = {at}  # [BLOCK_A, BLOCK_E]")

    # -- masks

    def varies(self, axes: int) -> tuple[bool, bool]:
        """Does a value of these axes vary along BLOCK_A, along BLOCK_E?"""
        return bool(axes & self.walk.on_a), bool(axes & self.walk.on_e)

    def loaded(self, axes: int) -> str:
        """The mask of a load of a small value."""
        along_a, along_e = self.varies(axes)
        return "inside" if along_a and along_e else "a_in" if along_a else "e_in" if along_e else ""

    def writer(self, axes: int) -> str:
        """The mask of a store of a small value: one element of the tile for each element of it."""
        along_a, along_e = self.varies(axes)
        terms = ["a_in"] * self.masks_a(along_a=along_a) + ["e_in"] * along_e
        terms += self.once(self.walk.crossed & ~axes, along_a, along_e)
        return " & ".join(dict.fromkeys(terms)) or "pid >= 0"

    def masks_a(self, *, along_a: bool) -> bool:
        """Do stores of small values ask for a_in?"""
        return along_a

    def beside(self, axes: int) -> str:
        """Gives the address of a small value the shape of its mask; 0 in a writer."""
        return "" if axes else " + (pid * 0).to(tl.int64)"

    def once(self, missing: int, along_a: bool, along_e: bool) -> list[str]:
        """Conditions that pick one of the elements of the tile that hold the same value, `missing` axes apart."""
        on = self.walk.on_a * along_a | self.walk.on_e * along_e
        names = {B: "n", G: "g", K: "k", S: "s"}
        return [f"({names[axis]} == 0)" for axis in names if axis & missing & on]

    def chunk(self, out: Stage) -> str:
        """The address of a partial sum."""
        return out.at(chunk(count=out.size("Q0") if self.persistent else "Q")).plain


class RowTile(SlabTile):
    """Rows over space, in chunks: several slabs along BLOCK_A, or one."""

    slab_sums = True

    def slab(self, out: Stage) -> None:
        """As `SlabTile.slab`."""
        block = out.constexpr("BLOCK_E")
        out(f"chunks = tl.cdiv(S, {block}).to(tl.int32)  # of a row")
        out(f"each = {' * '.join([*narrow(self.walk.crossed & ~S), 'chunks'])}  # chunks of a slab")
        with out.block(f"if {out.constexpr('MANY')}:", ""):
            out(f"slab = pid * {out.size('SLABS')} + a // each")
        with out.block("else:", ""):
            out("slab = pid")
        out(f"slab_in = slab < {out.product(extents(self.walk.slab))}")
        decode(out, self.walk.slab, "slab")

    def step(self, out: Stage) -> None:
        """As `SlabTile.step`."""
        rows, block = self.walk.crossed & ~S, out.constexpr("BLOCK_E")
        if rows:
            out("row = a % each // chunks")
        out(
            "q = (a % chunks).to(tl.int64)",
            f"a_in = (a < {out.size('SLABS')} * each) & slab_in",
            f"s = q * {block} + e  # [BLOCK_A, BLOCK_E]",
            "e_in = s < S",
        )
        decode(out, rows, "row")
        if self.walk.slab & G and not self.walk.slab & K:
            out("c = g * K + k")
        self.address(out)

    def loaded(self, axes: int) -> str:
        """As `SlabTile.loaded`."""
        if all(self.varies(axes)):
            return "inside"
        return "slab_in" if axes and not axes & ~self.walk.slab else "a_in" if axes else ""

    def masks_a(self, *, along_a: bool) -> bool:
        """As `SlabTile.masks_a`."""
        return True

    def beside(self, axes: int) -> str:
        """As `SlabTile.beside`."""
        return "" if axes & S else " + q"

    def once(self, missing: int, along_a: bool, along_e: bool) -> list[str]:
        """As `SlabTile.once`."""
        found = super().once(missing & ~S, along_a, along_e)
        on = self.walk.on_a * along_a | self.walk.on_e * along_e
        return [*found, "(q == 0)"] if S & missing & on and along_a else found

    def chunk(self, out: Stage) -> str:
        """As `SlabTile.chunk`."""
        return out.at(chunk(count="chunks")).plain


class ChannelTile(SlabTile):
    """All positions (of the batch) of a block of channels."""

    def slab(self, out: Stage) -> None:
        """As `SlabTile.slab`."""
        if self.walk.slab & G:
            aligned, width = out.constexpr("ALIGNED"), out.size("WIDTH")
            with out.block(f"if {aligned} > 1:", ""):
                out(f"{width} = {width} // {aligned} * {aligned}")
            out(f"blocks = tl.cdiv(C, {width})  # of WIDTH channels", f"first = pid % blocks * {width}")
            out("channel = first + e  # [1, BLOCK_E]", f"e_in = (e < {width}) & (channel < C)")
        else:
            out("blocks = 1", "channel = e  # [1, BLOCK_E]", "e_in = channel < C")
        out(*OF_A_CHANNEL)
        if self.walk.slab & B:
            out("n = (pid // blocks).to(tl.int64)")

    def step(self, out: Stage) -> None:
        """As `SlabTile.step`."""
        if self.walk.slab & B:
            out("s = a.to(tl.int64)  # [BLOCK_A, 1]", "a_in = s < S")
        else:
            out("positions = S.to(tl.int32)", "n = (a // positions).to(tl.int64)")
            out("s = (a % positions).to(tl.int64)", "a_in = n < N")
        self.address(out)

    def chunk(self, out: Stage) -> str:
        """As `SlabTile.chunk`."""
        return out.at(element(B | C)).plain


# c, g and k of a channel; 64-bit divisions would be subroutines.
OF_A_CHANNEL = ("c = channel.to(tl.int64)", "g = (channel // K).to(tl.int64)", "k = channel % K")
SLAB_TILES: dict[str, type[SlabTile]] = {
    "rows": RowTile, "columns": SlabTile, "positions": SlabTile, "channels": ChannelTile,
}  # fmt: skip


def along_e(out: Stage) -> str:
    """The statement of the places along BLOCK_E."""
    return f"e = tl.arange(0, {out.constexpr('BLOCK_E')})[None, :]  # [1, BLOCK_E]"


def narrow(axes: int) -> list[str]:
    """The extents of axes as 32-bit numbers: N has been widened."""
    return ["N.to(tl.int32)" if name == "N" else name for name in extents(axes)]


def decode(out: Stage, axes: int, index: str) -> None:
    """n, c or g or k from a number of a slab or a row."""
    names = [("n", "N")] if axes & B else []
    if axes & C:
        names.append(("c", "C") if axes & C == C else ("g", "G") if axes & G else ("k", "K"))
    number = index
    if len(names) == 2:
        (first, _), (second, count) = names
        out(f"{first} = ({index} // {count}).to(tl.int64)", f"{second} = ({index} % {count}).to(tl.int64)")
        number = f"({index} % {count})"
    elif names:
        out(f"{names[0][0]} = {index}.to(tl.int64)")
    if axes & C == C:
        out(f"g = ({number} // K).to(tl.int64)", f"k = {number} % K")
