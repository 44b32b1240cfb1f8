"""How a run stands, for the display: plain data, kept by the runner."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from normforge.search.funnel import Fate


@dataclass(frozen=True)
class Best:
    """The best layer so far."""

    index: int
    loss: float
    accuracy: float
    formula: str


@dataclass
class Progress:
    """Counts by fate, the best layer, and the clock of the phase.

    Attributes:
        phase: `search` or `final training`.
        fates: candidates by fate.
        best: by validation loss; None before the first scored layer.
        elapsed: seconds of search.
        limit: seconds of search allowed.
        done: tasks of the final training that have ended.
        total: tasks of the final training.
    """

    limit: float
    phase: str = "search"
    fates: Counter[Fate] = field(default_factory=Counter)
    best: Best | None = None
    elapsed: float = 0.0
    done: int = 0
    total: int = 0

    @property
    def drawn(self) -> int:
        """Candidates whose fate is known."""
        return sum(self.fates.values())
