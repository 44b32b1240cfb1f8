"""The summary of a run, read once for all reports: counts by fate, costs by stage, evaluated layers, comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from normforge.errors import RunError
from normforge.search import events, objectives
from normforge.search.config import Config, unflat
from normforge.search.events import Began, Candidate, Compared, Promoted, Reranked, Trained
from normforge.search.funnel import Fate
from normforge.search.results import Row, best_distinct, comparison, reranked
from normforge.search.selection import best_first, front
from normforge.search.space import SearchSpace
from normforge.search.store import Store

# Stages in the order of the funnel, by the fate of those that each refuses; the static ones are timed together.
STAGE = {
    Fate.DEGENERATE: "static",
    Fate.GATE: "signal",
    Fate.PROBING: "probing",
    Fate.MICRO: "micro",
    Fate.QUALITY: "quality",
    Fate.STABILITY: "stability",
    Fate.EARLY: "early",
    Fate.FULL: "full",
}
_ENDS: dict[type[events.Event], str] = {Reranked: "re-ranking", Compared: "final training"}


class Cost(NamedTuple):
    """The cost of a stage: seconds, all workers together, and on how many layers they were spent."""

    seconds: float = 0.0
    layers: int = 0

    def plus(self, seconds: float) -> Cost:
        """The cost with one more layer."""
        return Cost(self.seconds + seconds, self.layers + 1)


class Step(NamedTuple):
    """A row of the funnel: how many ended there, how many are left, and seconds of the stage that refuses them."""

    fate: Fate
    ended: int
    left: int
    seconds: float | None


class Scored(NamedTuple):
    """A layer when it was scored, and what had been spent by then.

    Attributes:
        candidate: the layer.
        trained: in full trainings of the first rung; 0 in a run that did not count them.
        seconds: of workers.
    """

    candidate: Candidate
    trained: float
    seconds: float


@dataclass
class Summary:
    """The summary of a run, as far as it has come.

    Attributes:
        directory: of the run.
        config: of its last session.
        sessions: how often it was started.
        classes: of its data.
        elapsed: seconds of search, all sessions together.
        fates: candidates by fate.
        costs: by stage, in the order of the funnel, then those of the end.
        trained: in the search, in full trainings of the first rung; 0 in a run that did not count them.
        seconds: of workers, in the search.
        curve: scored layers in the order in which they were scored.
        evaluated: candidates that came to the stages with numbers, in the order in which they ended.
        cached: pieces of evaluations that came from the cache.
        ranked: the scored ones, by Pareto front and within a front by mean rank.
        rows: of the final comparison; none before it has begun.
    """

    directory: Path
    config: Config
    sessions: int = 0
    classes: int = 0
    elapsed: float = 0.0
    fates: Counter[Fate] = field(default_factory=Counter)
    costs: dict[str, Cost] = field(default_factory=dict)
    trained: float = 0.0
    seconds: float = 0.0
    curve: list[Scored] = field(default_factory=list)
    evaluated: list[Candidate] = field(default_factory=list)
    cached: int = 0
    ranked: list[Candidate] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def drawn(self) -> int:
        """The number of candidates whose fate is known."""
        return sum(self.fates.values())

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the objectives, in the order of the scores: networks, then further ones."""
        return objectives.names(self.config)

    @property
    def funnel(self) -> list[Step]:
        """The rows of the funnel, stage by stage; fates that no candidate met are left out, and so is `scored`."""
        left, steps = self.drawn, []
        for fate in Fate:
            count = self.fates[fate]
            if count and fate is not Fate.SCORED:
                left -= count
                cost = self.costs.get(STAGE.get(fate, ""))
                steps.append(Step(fate, count, left, cost.seconds if cost else None))
        return steps

    @property
    def front(self) -> list[tuple[Candidate, int]]:
        """The Pareto front, the best mean rank first, and how many further candidates have the same scores."""
        rows = [list(c.outcome.scores.values()) for c in self.ranked]
        members: dict[tuple[float, ...], list[Candidate]] = {}
        for i in front(rows) if rows else ():
            members.setdefault(tuple(round(s, 6) for s in rows[i]), []).append(self.ranked[i])
        return [(same[0], len(same) - 1) for same in members.values()]

    def spent(self, seconds: Mapping[str, float], trained: float) -> None:
        """Add what an evaluation took: seconds by stage, and its training."""
        for stage, taken in seconds.items():
            self.costs[stage] = self.costs.get(stage, Cost()).plus(taken)
        self.seconds += sum(seconds.values())
        self.trained += trained

    def rate(self, count: int) -> float:
        """The rate an hour of search, of something that came `count` times in all of it."""
        return 3600 * count / self.elapsed if self.elapsed else 0.0

    def best(self, count: int) -> list[Candidate]:
        """The first candidates that are distinct, as the second ranking takes them."""
        return best_distinct(self.ranked, count, SearchSpace(self.config.space))


def summarise(store: Store) -> Summary:
    """Read a run, finished or not.

    Raises:
        RunError: it has not begun, is another version's, or is damaged.
    """
    directory = store.path.parent
    sessions: list[Began] = []
    summary = Summary(directory, Config())
    evaluated: dict[int, Candidate] = {}
    for event in events.every(store):
        summary.elapsed = max(summary.elapsed, event.elapsed)
        if isinstance(event, Began):
            sessions.append(event)
        elif isinstance(event, (Candidate, Promoted)):
            summary.spent(event.outcome.seconds, event.outcome.trained)
            candidate = event if isinstance(event, Candidate) else evaluated[event.index].after(event)
            summary.fates[candidate.outcome.fate] += 1
            if isinstance(event, Promoted):
                summary.fates[evaluated[event.index].outcome.fate] -= 1
            if candidate.evaluated:  # most are refused without numbers, and would only take memory
                evaluated[candidate.index] = candidate
            if candidate.outcome.fate is Fate.SCORED:
                summary.curve.append(Scored(candidate, summary.trained, summary.seconds))
        elif isinstance(event, Trained):
            stage = _ENDS[type(event)]
            summary.costs[stage] = summary.costs.get(stage, Cost()).plus(sum(event.outcome.seconds.values()))
    if not sessions:
        raise RunError(f"{directory} holds a run that has not begun: start it with normforge search")
    last, costs = sessions[-1], summary.costs
    summary.config, summary.sessions, summary.classes = unflat(last.settings), len(sessions), last.classes
    summary.evaluated = list(evaluated.values())
    summary.costs = {stage: costs[stage] for stage in (*STAGE.values(), *_ENDS.values()) if stage in costs}
    summary.cached = sum(c.outcome.cached for c in summary.evaluated)
    scored = [c for c in summary.evaluated if c.outcome.fate is Fate.SCORED]
    summary.ranked = [scored[i] for i in best_first([list(c.outcome.scores.values()) for c in scored])]
    top = summary.best(summary.config.final.candidates)
    found = reranked(store, top, summary.config.final.best)
    rows = comparison(store, found, summary.config)
    summary.rows = rows if any(row.outcomes for row in rows) else []
    return summary


def summary_of(directory: Path) -> Summary:
    """The summary of a run by its directory; see `summarise`.

    Raises:
        RunError: it holds no run that can be read.
    """
    store = Store(directory)
    try:
        return summarise(store)
    finally:
        store.close()


def plus_minus(row: Row, what: str, network: str) -> str:
    """The mean and deviation of a comparison's row as text; no deviation of one training, nothing of none."""
    mean, deviation = row.mean(what, network)
    several = len(row.good(network)) > 1
    return "-" if math.isnan(mean) else f"{mean:.3f} ± {deviation:.3f}" if several else f"{mean:.3f}"
