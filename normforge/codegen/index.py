"""Places of elements in arrays, and numbers of them, as values that a target writes as text.

All arrays are row-major, and loops of every target call the coordinates of a point n, c or g, s: sample, channel or
group, position. Chunks of a row are numbered q.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from normforge.ir.types import B, C, G, K, S


@dataclass(frozen=True)
class Index:
    """The place of one element of a row-major array.

    Attributes:
        places: its coordinates, outermost first; none for an array of one element.
        extents: the names of the sizes of the axes that they run along.
        within: names of sizes that the coordinates themselves are computed with.
    """

    places: tuple[str, ...]
    extents: tuple[str, ...]
    within: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[str, ...]:
        """The sizes that the text names: the outermost extent never enters an address."""
        return (*self.extents[1:], *self.within)

    @property
    def c(self) -> str:
        """What stands between the brackets of a C array."""
        return self._text(len(self.places), alone=True)

    @property
    def triton(self) -> str:
        """What is added to a Triton pointer: in parentheses where it is more than a coordinate."""
        text = self.plain
        return f"({text})" if len(self.places) > 1 else text

    @property
    def plain(self) -> str:
        """The expression by itself, the same in both targets: `(n * C + c) * S + s`."""
        return self._text(len(self.places))

    @property
    def row(self) -> str:
        """The place at which the innermost axis begins: `(n * C + c) * S`."""
        return f"{_enclosed(self._text(len(self.places) - 1))} * {self.extents[-1]}"

    def _text(self, count: int, *, alone: bool = False) -> str:
        """Of the outer `count` coordinates; `alone` encloses one that stands alone before the positions too."""
        text = self.places[0] if count else "0"
        for place, extent in zip(self.places[1:count], self.extents[1:count], strict=True):
            text = f"({text})" if alone and extent == "S" else _enclosed(text)
            text = f"{text} * {extent} + {place}"
        return text


def _enclosed(text: str) -> str:
    return text if text.isidentifier() else f"({text})"


def extents(axes: int) -> tuple[str, ...]:
    """The shape of a value of these axes, as names of sizes: N, C or G or K, S."""
    shape: tuple[str, ...] = ("N",) if axes & B else ()
    if axes & G:
        shape += ("C",) if axes & K else ("G",)
    elif axes & K:
        shape += ("K",)
    return shape + (("S",) if axes & S else ())


def element(axes: int, *, by_channel: bool = False) -> Index:
    """The element of a value of these axes at n, c (or g), s; `by_channel` finds the group of a value by group from c,
    in loops that know no g."""
    places: tuple[str, ...] = ("n",) if axes & B else ()
    within: tuple[str, ...] = ()
    if axes & G and axes & K:
        places += ("c",)
    elif axes & G and by_channel:
        places, within = (*places, "(c / K)" if axes & S else "c / K"), ("K",)
    elif axes & G:
        places += ("g",)
    places += ("s",) if axes & S else ()
    return Index(places, extents(axes & ~K if not axes & G else axes), within)


def chunk(axes: int = C, *, count: str = "Q") -> Index:
    """The partial sum of chunk q of a row in an array [N][Q][C]: that of channel c for a value that varies along
    channels, of the first channel of g for one by group, of channel 0 for any other. `count` names Q."""
    places, within = ("c", ()) if axes & K else ("g * K", ("K",)) if axes & G else ("0", ())
    return Index(("n", "q", places), ("N", count, "C"), within)


def full(layout: str) -> Index:
    """The element of a full tensor, in memory "nchw" or "nhwc"."""
    return Index(("n", "c", "s"), ("N", "C", "S")) if layout == "nchw" else Index(("n", "s", "c"), ("N", "S", "C"))


@dataclass(frozen=True)
class Ceil:
    """How many blocks cover what there is of something: `ceil(N * G / BLOCK_P)`.

    Attributes:
        of: names of sizes, whose product is covered; 1 for none.
        by: the name of the extent of a block.
    """

    of: tuple[str, ...]
    by: str

    def __str__(self) -> str:
        return f"ceil({' * '.join(self.of) or '1'} / {self.by})"

    def value(self, sizes: Mapping[str, int]) -> int:
        """The number at these sizes."""
        return -(-prod(sizes[name] for name in self.of) // sizes[self.by])


@dataclass(frozen=True)
class Count:
    """A product of sizes and of numbers of blocks, such as the programs of a kernel: `N * ceil(C / BLOCK_C) * Q0`.

    Attributes:
        factors: names of sizes, and numbers of blocks; 1 for none.
    """

    factors: tuple[str | Ceil, ...]

    def __str__(self) -> str:
        return " * ".join(map(str, self.factors)) or "1"

    def value(self, sizes: Mapping[str, int]) -> int:
        """The number at these sizes."""
        return prod(sizes[f] if isinstance(f, str) else f.value(sizes) for f in self.factors)
