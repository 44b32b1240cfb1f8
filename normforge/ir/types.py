"""Types: along which axes a value varies, and its float class. No shape is ever stored.

Four atoms span every layout of (N, C, *spatial): the batch `b`, the group `g`, the channel inside its
group `k`, and all spatial axes together `s`. A channel is a group and a place in it, so `c` = `g` + `k`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

B, G, K, S = 1, 2, 4, 8
C = G | K
FULL = B | C | S

# The paper's index sets (EvoNorm, section 3.2), and two more: `c` (LayerNorm, RMSNorm at each position) and
# `b,w,h,c`. The key is the spelling that is printed.
INDEX_SETS: dict[str, int] = {
    "b,w,h": B | S,
    "w,h": S,
    "w,h,c": S | C,
    "w,h,c/g": S | K,
    "c": C,
    "b,w,h,c": B | S | C,
}
INDEX_NAMES = {axes: name for name, axes in INDEX_SETS.items()}
# Along what a further input of a layer may vary: (), (N,), (C,), (N, C), (N, *spatial), and like x.
INPUT_AXES: dict[str, int] = {"": 0, "b": B, "c": C, "b,c": B | C, "b,w,h": B | S, "b,c,w,h": FULL}
INPUT_NAMES = {axes: name for name, axes in INPUT_AXES.items()}


class FloatClass(enum.StrEnum):
    """The dtype in which a value is stored when it has to be: that of the input, or that of a statistic.

    `data` is the dtype of x; `stat` is float32, or float64 under a float64 x.
    """

    DATA = "data"
    STAT = "stat"


class Type(NamedTuple):
    """The axes along which a value varies (a union of B, G, K, S) and its float class."""

    axes: int
    cls: FloatClass

    def __str__(self) -> str:
        return f"{axes_name(self.axes)} {self.cls}"


def axes_name(axes: int) -> str:
    """The name of a set of axes: `{b,c,s}`; `g` stands for the group where the channel inside it is gone."""
    channel = "c" if axes & K else "g" if axes & G else ""
    names = ("b" if axes & B else "", channel, "s" if axes & S else "")
    return "{" + ",".join(n for n in names if n) + "}"


_BY_NAME = {axes_name(a): a for a in range(16) if not (a & K and not a & G)}


def parse_axes(text: str) -> int | None:
    """The inverse of `axes_name`; None where `text` names no set of axes."""
    return _BY_NAME.get(text.replace(" ", ""))


def reduced_name(axes: int) -> str:
    """The name of the axes that are summed away: `b,s,k`; here `k`, the channels of one group, may stand alone."""
    return ",".join(n for n, bit in zip("bgks", (B, G, K, S), strict=True) if axes & bit)


def parse_reduced(text: str) -> int | None:
    """The inverse of `reduced_name`; None where `text` names no set of axes."""
    bits = dict(zip("bgks", (B, G, K, S), strict=True))
    names = text.split(",")
    if not set(names) <= bits.keys() or len(set(names)) != len(names):
        return None
    return sum(bits[n] for n in names)


def valid_axes(axes: int) -> bool:
    """True for a set of axes that means something: a channel inside a group needs the group."""
    return 0 <= axes <= FULL and not (axes & K and not axes & G)
