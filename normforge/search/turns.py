"""The turns in which evolution hears of evaluations, and what a proposal waits for.

Candidates that need numbers take slots in the order in which they are drawn. Evolution is told their outcomes one
after the other; `next` says whose turn it is, `may_ask` whether a proposal may be made with what was told so far.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Turns(Protocol):
    """The turns: whose outcome evolution is told next, and when it may propose."""

    def next(self, index: int, slots: Sequence[int], told: int, outcomes: Container[int]) -> int | None:
        """The candidate to tell now, before `index` is drawn, given how many were told; None while there is none."""

    def may_ask(self, index: int, slots: Sequence[int], told: int) -> bool:
        """True when candidate `index` may be drawn now."""

    def ended(self, index: int) -> None:
        """Note that the evaluation of a candidate with a slot has ended."""


@dataclass
class FixedTurns:
    """Turns in which the proposal for slot k knows the outcomes of slots 0 to k - lag, no more and no fewer, whichever
    worker ended first: so a run goes the same way with any number of workers."""

    lag: int

    def _known(self, slots: Sequence[int]) -> int:
        return max(0, len(slots) - self.lag + 1)

    def next(self, index: int, slots: Sequence[int], told: int, outcomes: Container[int]) -> int | None:
        """The next slot's candidate, up to the last that the next proposal may know."""
        return slots[told] if told < self._known(slots) and slots[told] in outcomes else None

    def may_ask(self, index: int, slots: Sequence[int], told: int) -> bool:
        """True when all that the proposal must know was told."""
        return told == self._known(slots)

    def ended(self, index: int) -> None:
        """Do nothing: the turns are known."""


@dataclass
class ArrivalTurns:
    """Turns in which whatever has arrived is told at once: no worker waits, and the same seed may go another way.

    Attributes:
        arrived: candidates in the order in which their evaluations ended; the stored ones when a run is continued.
    """

    arrived: list[int] = field(default_factory=list)

    def next(self, index: int, slots: Sequence[int], told: int, outcomes: Container[int]) -> int | None:
        """The earliest arrival that was not told."""
        return self.arrived[told] if told < len(self.arrived) and self.arrived[told] in outcomes else None

    def may_ask(self, index: int, slots: Sequence[int], told: int) -> bool:
        """True when all that arrived was told."""
        return told == len(self.arrived)

    def ended(self, index: int) -> None:
        """Note the arrival."""
        self.arrived.append(index)


@dataclass
class RecordedTurns:
    """The turns of another run.

    Attributes:
        arrived: candidates in the order in which they were told.
        known: how many had been told when a candidate was drawn, by candidate.
    """

    arrived: Sequence[int]
    known: Mapping[int, int]

    def next(self, index: int, slots: Sequence[int], told: int, outcomes: Container[int]) -> int | None:
        """The candidate whose turn it was, as long as it came before `index` was drawn."""
        if told >= self.known.get(index, len(self.arrived)):
            return None
        return self.arrived[told] if self.arrived[told] in outcomes else None

    def may_ask(self, index: int, slots: Sequence[int], told: int) -> bool:
        """True when as many were told as then; never for a candidate that the other run had not drawn."""
        return self.known.get(index) == told

    def ended(self, index: int) -> None:
        """Do nothing: the turns are known."""
