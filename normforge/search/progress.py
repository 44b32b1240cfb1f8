"""The progress of a run, for the display: plain data, kept by the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from normforge.search.config import RUNGS
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
        eq: to train, in full trainings of the first rung; None for as many as the time allows.
        phase: `search`, `re-ranking` or `final training`.
        fates: candidates by fate.
        leaders: the Pareto front of the layers that came through the highest rung so far, the best mean rank first.
        elapsed: seconds of search, earlier sessions included.
        before: seconds and evaluations of earlier sessions.
        evaluated: candidates that came to the stages with numbers, as far as they have ended there.
        promoted: evaluations on higher rungs of the ladder that have ended.
        trained: in all of these, in full trainings of the first rung.
        seconds: of workers in all of these.
        done: tasks of the phase that have ended.
        total: tasks of the phase, after the search.
    """

    limit: float
    candidates: int | None = None
    evaluations: int | None = None
    eq: float | None = None
    phase: str = "search"
    fates: Counter[Fate] = field(default_factory=Counter)
    leaders: list[Candidate] = field(default_factory=list)
    elapsed: float = 0.0
    before: tuple[float, int] = (0.0, 0)
    evaluated: int = 0
    promoted: int = 0
    trained: float = 0.0
    seconds: float = 0.0
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

    def goes_on(self, elapsed: float) -> None:
        """Begin a session after `elapsed` seconds of earlier ones, whose candidates were counted."""
        self.elapsed, self.before = elapsed, (elapsed, self.evaluated)

    def count(self, candidate: Candidate, before: Candidate | None = None) -> None:
        """Count a candidate whose fate is known.

        Args:
            candidate: with what all its rungs have found.
            before: the same before its promotion; None for one that is new.
        """
        outcome = candidate.outcome
        self.fates[outcome.fate] += 1
        if before:
            self.promoted += 1
            self.fates[before.outcome.fate] -= 1
            self.trained -= before.outcome.trained
            self.seconds -= before.seconds
        else:
            self.evaluated += candidate.evaluated
        self.trained += outcome.trained
        self.seconds += candidate.seconds
        leaders = [c for c in self.leaders if c is not before]
        if outcome.fate in (Fate.PASSED, Fate.SCORED) and outcome.scores:
            leaders.append(candidate)
        if leaders != self.leaders:
            highest = max((_height(c) for c in leaders), default=0)
            leaders = [c for c in leaders if _height(c) == highest]
            leaders = [leaders[i] for i in best_first([list(c.outcome.scores.values()) for c in leaders])]
            kept = set(front([list(c.outcome.scores.values()) for c in leaders]) if leaders else ())
            self.leaders = [c for i, c in enumerate(leaders) if i in kept]


def _height(candidate: Candidate) -> int:
    rung = candidate.outcome.rung
    return RUNGS.index(rung) if rung else 0
