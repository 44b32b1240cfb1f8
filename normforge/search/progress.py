"""The progress of a run, for the display: plain data, kept by the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from normforge.search.events import Candidate
from normforge.search.funnel import Fate
from normforge.search.selection import best_first, front


@dataclass
class Progress:
    """The progress of a run: counts by fate, the Pareto front, and the clock of the phase.

    Attributes:
        limit: seconds of search allowed.
        candidates: layers to draw; None for as many as the time allows.
        evaluations: candidates to evaluate; None for as many as the time allows.
        phase: `search`, `re-ranking` or `final training`.
        fates: candidates by fate.
        leaders: the Pareto front of all scored layers, the best mean rank first.
        elapsed: seconds of search, earlier sessions included.
        before: seconds and evaluations of earlier sessions.
        evaluated: candidates that came to the stages with numbers.
        done: tasks of the phase that have ended.
        total: tasks of the phase, after the search.
    """

    limit: float
    candidates: int | None = None
    evaluations: int | None = None
    phase: str = "search"
    fates: Counter[Fate] = field(default_factory=Counter)
    leaders: list[Candidate] = field(default_factory=list)
    elapsed: float = 0.0
    before: tuple[float, int] = (0.0, 0)
    evaluated: int = 0
    done: int = 0
    total: int = 0

    @property
    def drawn(self) -> int:
        """The number of candidates whose fate is known."""
        return sum(self.fates.values())

    @property
    def rate(self) -> float:
        """Evaluations an hour in this session."""
        seconds = self.elapsed - self.before[0]
        return 3600 * (self.evaluated - self.before[1]) / seconds if seconds > 0 else 0.0

    def count(self, candidate: Candidate) -> None:
        """Count a candidate whose fate is known."""
        self.fates[candidate.outcome.fate] += 1
        if candidate.outcome.scores:
            leaders = [*self.leaders, candidate]
            leaders = [leaders[i] for i in front([list(c.outcome.scores.values()) for c in leaders])]
            self.leaders = [leaders[i] for i in best_first([list(c.outcome.scores.values()) for c in leaders])]
