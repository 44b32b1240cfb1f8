"""The search: propose, refuse, dispatch, tell, record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from normforge.errors import RunError
from normforge.ir.graph import Graph
from normforge.search import events, objectives
from normforge.search.events import Asked, Candidate
from normforge.search.evolution import Member, TournamentEvolution
from normforge.search.filters import Filters, Keys
from normforge.search.funnel import UNDECIDED, Fate, Outcome, formula
from normforge.search.run.dispatcher import Dispatcher
from normforge.search.run.session import Session
from normforge.search.space import Genotype
from normforge.search.tasks import Task
from normforge.search.turns import RecordedTurns, Turns


@dataclass(frozen=True)
class _Drawn:
    """A candidate between its draw and its fate."""

    asked: Asked
    graph: Graph
    keys: Keys

    def candidate(self, outcome: Outcome, elapsed: float) -> Candidate:
        """With its fate."""
        asked = self.asked
        outcome.seconds.update(self.keys.seconds)
        return Candidate(
            asked.index,
            elapsed,
            asked.genotype,
            asked.parents,
            asked.known,
            asked.limits,
            outcome=outcome,
            formula=formula(self.graph) if self.keys.hash else "",
            **self.keys.stored,
        )


class SearchPhase:
    """The phase in which layers are drawn.

    Args:
        session: of the run.
        dispatcher: for evaluations.
        turns: in which evolution hears of them.
        start: proposed first.
    """

    def __init__(self, session: Session, dispatcher: Dispatcher, turns: Turns, start: Sequence[Genotype]) -> None:
        self._session, self._dispatcher, self._turns = session, dispatcher, turns
        config = session.config
        self._by_arrival = config.evolution.order == "arrival"
        self._objectives = objectives.names(config)
        self._evolution = TournamentEvolution(config.evolution, session.space, config.seed, self._identity, start)
        self._index = 0  # of the next candidate
        self._slots: list[int] = []  # candidate of each slot
        self._told = 0  # slots that evolution knows
        self._halfways: list[dict[str, float]] = []  # of those, as far as they were scored
        self._under_way: dict[int, _Drawn] = {}
        self._ended: dict[int, Candidate] = {}  # evaluated, and not told yet
        self._unstored: set[int] = set()  # of those
        self._filters = Filters(config)

    def step(self) -> bool:
        """One move: tell, draw, dispatch or wait. False when the search is over.

        Raises:
            RunError: a run that is followed went another way.
        """
        session, turns, progress = self._session, self._turns, self._session.progress
        progress.elapsed = session.elapsed
        while (index := turns.next(self._index, self._slots, self._told, self._ended)) is not None:
            self._tell(index)
        stored_left = self._index <= session.last_stored
        late = progress.elapsed >= progress.limit and not stored_left
        if late:
            self._dispatcher.drop()  # asked for again if the run is continued with a larger budget
        # What is stored needs no proposal, nor does what was asked for; with fixed turns a gap between does.
        may_ask = (stored_left and self._by_arrival) or turns.may_ask(self._index, self._slots, self._told)
        may_draw = may_ask and not late and self._within_budget()
        if may_draw and not self._dispatcher.queued:
            self._draw()
            return True
        if not self._dispatcher.busy:
            self._check_followed()
            return False
        for task, outcome in self._dispatcher.exchange(more=may_draw):
            self._end(int(task.key), outcome)
        return True

    def _within_budget(self) -> bool:
        p = self._session.progress
        drawn = p.candidates is None or self._index < p.candidates
        return drawn and (p.evaluations is None or len(self._slots) < p.evaluations)

    def _check_followed(self) -> None:
        if isinstance(self._turns, RecordedTurns) and self._told < len(self._turns.arrived):
            missing = self._turns.arrived[self._told]
            raise RunError(
                f"{self._session.replay} cannot be followed: #{missing} was evaluated there, and is not reached here"
            )

    def _draw(self) -> None:
        index, store = self._index, self._session.store
        self._index += 1
        if index <= self._session.last_stored and (stored := events.find(store, Candidate, str(index))):
            self._take_stored(stored)
            return
        # An evaluation that was under way when the run was stopped is asked for again as it was.
        before = events.find(store, Asked, str(index)) if self._by_arrival else None
        asked = before or self._ask(index)
        graph = self._session.space.to_graph(asked.genotype)
        refused, keys = self._filters.refuse(graph)
        drawn = _Drawn(asked, graph, keys)
        if refused is not None:
            self._store(drawn.candidate(refused, self._session.progress.elapsed))
            return
        limits = before.limits if before else self._limits()
        if self._by_arrival and not before:
            drawn = replace(drawn, asked=replace(asked, limits=limits))
            store.append([drawn.asked.record()])
        self._under_way[index] = drawn
        self._take_slot(index, keys)
        self._dispatcher.put([Task(str(index), graph, self._session.config, limits=limits)])

    def _ask(self, index: int) -> Asked:
        proposal = self._evolution.ask(index)
        known = self._told if self._by_arrival else None
        return Asked(index, self._session.progress.elapsed, proposal.genotype, proposal.parents, known)

    def _take_stored(self, candidate: Candidate) -> None:
        progress = self._session.progress
        progress.count(candidate)
        if candidate.evaluated:
            self._ended[candidate.index] = candidate
            graph = self._session.space.to_graph(candidate.genotype)
            self._take_slot(candidate.index, self._filters.restored(graph, candidate.keys))
        progress.before = (progress.elapsed, progress.evaluated)

    def _take_slot(self, index: int, keys: Keys) -> None:
        self._slots.append(index)
        self._filters.add(index, keys)
        self._session.progress.evaluated += 1

    def _limits(self) -> dict[str, float]:
        """By network, the halfway loss of the worst layer that is among the share to keep."""
        rules = self._session.config.early
        if rules.keep == 1 or len(self._halfways) < rules.least:
            return {}
        limits: dict[str, float] = {}
        for network in self._session.config.networks.use:
            losses = sorted(h.get(network, math.inf) for h in self._halfways)
            limits[network] = losses[max(0, round(rules.keep * len(losses)) - 1)]
        # A network on which even those to keep have no finite loss stops nothing.
        return limits if all(map(math.isfinite, limits.values())) else {}

    def _end(self, index: int, outcome: Outcome) -> None:
        """An evaluation has ended."""
        candidate = self._under_way.pop(index).candidate(outcome, self._session.progress.elapsed)
        self._ended[index] = candidate
        self._turns.ended(index)
        if isinstance(self._turns, RecordedTurns):  # events have the order in which outcomes are told
            self._unstored.add(index)
        else:
            self._store(candidate)

    def _tell(self, index: int) -> None:
        candidate = self._ended.pop(index)
        if index in self._unstored:
            self._unstored.remove(index)
            self._store(replace(candidate, elapsed=self._session.progress.elapsed))
        outcome = candidate.outcome
        if outcome.fate is Fate.SCORED:
            scores = tuple(outcome.scores[name] for name in self._objectives)
            self._evolution.tell(Member(index, candidate.genotype, scores))
            self._halfways.append(outcome.halfway)
        self._told += 1

    def _store(self, candidate: Candidate) -> None:
        """Store what became of a candidate."""
        self._session.store.append([candidate.record()])
        self._session.progress.count(candidate)

    def _identity(self, genotype: Genotype) -> str:
        graph = self._session.space.to_graph(genotype)
        try:
            return graph.hash
        except UNDECIDED:  # whatever is wrong with a drawn layer, the static stages say it
            return graph.structure
