"""The search: propose or promote, refuse, dispatch, tell, record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from normforge.errors import RunError
from normforge.ir.graph import Graph
from normforge.probing.behaviour import Vector, behaviour
from normforge.search import events
from normforge.search.events import Asked, Candidate, Promoted
from normforge.search.evolution import Member, TournamentEvolution
from normforge.search.filters import Filters, Keys
from normforge.search.funnel import UNDECIDED, Fate, Outcome, formula
from normforge.search.ladder import Ladder
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
    """The phase in which layers are drawn, and promoted from rung to rung where there is a ladder.

    A slot that is free is filled with a promotion, if one is due by what was told so far, else with a new layer.

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
        self._ladder = Ladder(config.ladder.use or ("",), config.ladder.promote)
        self._evolution = TournamentEvolution(
            config.evolution, session.space, config.seed, self._identity, start, self._behaviour
        )
        self._index = 0  # of the next candidate
        self._slots: list[str] = []  # evaluation of each slot, by the key of its task
        self._evaluated = 0  # candidates that have taken a slot
        self._told = 0  # slots that evolution and the ladder know
        self._trained = 0.0  # in those, in eq
        self._halfways: list[dict[str, float]] = []  # of those, as far as they were scored
        self._members: dict[int, Member] = {}  # of those, the layers that came through a rung
        self._under_way: dict[str, _Drawn] = {}
        self._ended: dict[str, Candidate | Promoted] = {}  # evaluated, and not told yet
        self._unstored: set[str] = set()  # of those
        self._filters = Filters(config)

    def step(self) -> bool:
        """One move: tell, draw, dispatch or wait. False when the search is over.

        Raises:
            RunError: a run that is followed went another way.
        """
        session, turns, progress = self._session, self._turns, self._session.progress
        progress.elapsed = session.elapsed
        while (key := turns.next(self._index, self._slots, self._told, self._ended)) is not None:
            self._tell(key)
        stored_left = self._index <= session.last_stored or len(self._slots) < len(session.arrived)
        late = progress.elapsed >= progress.limit and not stored_left
        if late:
            self._dispatcher.drop()  # asked for again if the run is continued with a larger budget
        # What is stored needs no proposal, nor does what was asked for; with fixed turns a gap between does.
        may_ask = (stored_left and self._by_arrival) or turns.may_ask(self._index, self._slots, self._told)
        may_fill = may_ask and not late
        if may_fill and not self._dispatcher.queued:
            if self._fill():
                return True
            may_fill = False
        if not self._dispatcher.busy:
            self._check_followed()
            return False
        for task, outcome in self._dispatcher.exchange(more=may_fill):
            self._end(task, outcome)
        return True

    def _fill(self) -> bool:
        """Promote a layer, or draw one as far as the budget goes; False where none may be."""
        if promotion := self._ladder.next():
            self._promote(*promotion)
        elif self._within_budget():
            self._draw()
        else:
            return False
        return True

    def _within_budget(self) -> bool:
        """True while a layer may be drawn: by counts, and by what was trained in slots that were told."""
        p = self._session.progress
        if p.eq is not None and self._trained >= p.eq:
            return False
        drawn = p.candidates is None or self._index < p.candidates
        return drawn and (p.evaluations is None or self._evaluated < p.evaluations)

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
            self._session.record(drawn.candidate(refused, self._session.progress.elapsed))
            return
        limits = before.limits if before else self._limits()
        if self._by_arrival and not before:
            drawn = replace(drawn, asked=replace(asked, limits=limits))
            store.append([drawn.asked.record()])
        self._under_way[str(index)] = drawn
        self._take_slot(index, keys)
        rung = self._ladder.rungs[0]
        self._dispatcher.put([Task(str(index), graph, self._session.config, rung=rung, limits=limits)])

    def _promote(self, index: int, rung: str) -> None:
        key = f"{index}/{rung}"
        self._slots.append(key)
        if key in self._session.promoted and (stored := events.find(self._session.store, Promoted, key)):
            self._ended[key] = stored
            return
        graph = self._session.space.to_graph(self._members[index].genotype)
        self._dispatcher.put([Task(key, graph, self._session.config, rung=rung)])

    def _ask(self, index: int) -> Asked:
        proposal = self._evolution.ask(index)
        known = self._told if self._by_arrival else None
        return Asked(index, self._session.progress.elapsed, proposal.genotype, proposal.parents, known)

    def _take_stored(self, candidate: Candidate) -> None:
        if candidate.evaluated:
            self._ended[str(candidate.index)] = candidate
            graph = self._session.space.to_graph(candidate.genotype)
            self._take_slot(candidate.index, self._filters.restored(graph, candidate.keys))

    def _take_slot(self, index: int, keys: Keys) -> None:
        self._slots.append(str(index))
        self._evaluated += 1
        self._filters.add(index, keys)

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

    def _end(self, task: Task, outcome: Outcome) -> None:
        """Note that an evaluation has ended."""
        key, elapsed = task.key, self._session.progress.elapsed
        event: Candidate | Promoted
        if key in self._under_way:
            event = self._under_way.pop(key).candidate(outcome, elapsed)
        else:
            event = Promoted(int(key.partition("/")[0]), task.rung, elapsed, outcome)
        self._ended[key] = event
        self._turns.ended(key)
        if isinstance(self._turns, RecordedTurns):  # events have the order in which outcomes are told
            self._unstored.add(key)
        else:
            self._session.record(event)

    def _tell(self, key: str) -> None:
        event = self._ended.pop(key)
        if key in self._unstored:
            self._unstored.remove(key)
            self._session.record(replace(event, elapsed=self._session.progress.elapsed))
        index, outcome = event.index, event.outcome
        rung = self._ladder.rungs.index(event.rung) if isinstance(event, Promoted) else 0
        self._told += 1
        self._trained += outcome.trained
        if outcome.fate not in (Fate.SCORED, Fate.PASSED):
            return
        if isinstance(event, Candidate):
            self._members[index] = Member(index, event.genotype, ())
        # A rung that only refuses leaves the scores of the one below.
        scores = tuple(outcome.scores.values()) or self._members[index].scores
        self._members[index] = replace(self._members[index], scores=scores, rung=rung)
        self._ladder.tell(rung, index, scores)
        self._evolution.tell(self._members[index])
        self._halfways.append(outcome.halfway)

    def _behaviour(self, genotype: Genotype) -> Vector | None:
        return behaviour(self._session.space.to_graph(genotype))

    def _identity(self, genotype: Genotype) -> str:
        graph = self._session.space.to_graph(genotype)
        try:
            return graph.hash
        except UNDECIDED:  # whatever is wrong with a drawn layer, the static stages say it
            return graph.structure
