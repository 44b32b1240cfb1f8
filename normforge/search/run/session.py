"""One session of a run: what its directory holds already, whether it may go on, and what it is going on with."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

from normforge.errors import RunError
from normforge.search import events
from normforge.search.config import Config, check_same
from normforge.search.events import Asked, Began, Candidate, Promoted, Trained
from normforge.search.funnel import Fate
from normforge.search.progress import Progress
from normforge.search.provenance import Provenance
from normforge.search.space import SearchSpace
from normforge.search.store import Store
from normforge.search.turns import RecordedTurns
from normforge.train.settings import flat

CONFIG_FILE = "config.json"


class Session:
    """A session of a run: what is stored is read and compared, and that the session begins is stored.

    Args:
        config: of the run.
        store: of the run, open for writing.
        origin: what results depend on beside the configuration, here and now.
        space: what is drawn from.
        replay: a run whose turns are followed; None where none is.
        recorded: those turns.

    Attributes:
        notes: what the user should know.
        last_stored: the last candidate whose fate is stored; -1 for none.
        arrived: evaluations in the order in which they were stored, by the keys of their tasks.
        promoted: of these, those on higher rungs of the ladder.
        trained: the trainings after the search that are stored, by event type and key.
        progress: for the display.

    Raises:
        RunError: the run was started with other settings, other data, on another device, or following another run.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        origin: Provenance,
        space: SearchSpace,
        replay: Path | None = None,
        recorded: RecordedTurns | None = None,
    ) -> None:
        self.config, self.store, self.origin, self.space = config, store, origin, space
        self.directory = store.path.parent
        self.replay = str(replay.resolve()) if replay else ""
        self.notes: list[str] = []
        self.last_stored = -1
        self.arrived: list[str] = []
        self.promoted: set[str] = set()
        self._passed: dict[int, Candidate] = {}  # that may be promoted, or were
        self.trained: set[tuple[str, str]] = set()
        budget = config.budget
        limits: tuple[float, int | None, int | None, float | None]
        limits = budget.minutes * 60, budget.candidates, budget.evaluations, budget.trained
        if recorded:  # it ends where the other run did
            limits = math.inf, 1 + max(recorded.known, default=-1), None, None
        self.progress = Progress(*limits)
        number, self._offset = self._read()
        self.progress.goes_on(self._offset)
        began = Began(number, self._offset, dict(flat(config)), **dataclasses.asdict(origin), replay=self.replay)
        store.append([began.record()])
        (self.directory / CONFIG_FILE).write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
        self._start = time.monotonic()
        self._note_idle_workers()

    @property
    def elapsed(self) -> float:
        """The seconds of search, earlier sessions included."""
        return self._offset + time.monotonic() - self._start

    def record(self, event: Candidate | Promoted) -> None:
        """Store what became of a candidate, on its first rung or a higher one."""
        self.store.append([event.record()])
        self._count(event)

    def _count(self, event: Candidate | Promoted) -> None:
        before = None
        if isinstance(event, Promoted):
            before = self._passed[event.index]
            event = before.after(event)
        if event.outcome.fate is Fate.PASSED or before:
            self._passed[event.index] = event
        self.progress.count(event, before)

    def _read(self) -> tuple[int, float]:
        """How many sessions there were, and seconds of search in all of them."""
        sessions, offset = 0, 0.0
        for event in events.every(self.store):
            offset = max(offset, event.elapsed)
            if isinstance(event, Began):
                if not sessions:
                    self._check_same(event)
                sessions += 1
            elif isinstance(event, Candidate):
                self.last_stored = max(self.last_stored, event.index)
                if event.evaluated:
                    self.arrived.append(str(event.index))
                self._count(event)
            elif isinstance(event, Promoted):
                self.arrived.append(event.key)
                self.promoted.add(event.key)
                self._count(event)
            elif isinstance(event, Trained):
                self.trained.add((event.TYPE, event.key))
        return sessions, offset

    def _check_same(self, first: Began) -> None:
        where = str(self.directory)
        check_same(first.settings, self.config, where)
        check_data(first, self.origin, where, self.config)
        if first.device != self.origin.device:
            raise RunError(
                f"{where} was started on {first.device}, and scores of {self.origin.device} do not "
                f"compare: set workers.device={first.device}, or use another --out"
            )
        if first.replay != self.replay:
            raise RunError(
                f"{where} follows {first.replay}: go on with --replay {first.replay}"
                if first.replay
                else f"{where} follows no other run: go on without --replay, or use another --out"
            )
        for changed, what in (
            (first.machine != self.origin.machine, "another machine or other libraries"),
            (first.code != self.origin.code, "other code of normforge"),
        ):
            if changed:
                self.notes.append(f"{where} was started with {what}: results may differ in their last bits")

    def _note_idle_workers(self) -> None:
        rules, count = self.config.evolution, self.config.workers.count
        if rules.order == "fixed" and count > rules.lag:
            self.notes.append(
                f"{count} workers, but evolution.lag = {rules.lag} leaves no more than {rules.lag} "
                "at work: start with a larger one, or with evolution.order = arrival"
            )


def check_data(began: Began, origin: Provenance, where: str, config: Config) -> None:
    """Compare the data of a run with those that are here.

    Raises:
        RunError: they differ.
    """
    if began.digest != origin.digest:
        raise RunError(f"{where} was started with other data: the files of {config.data.source} have changed")


def recorded_turns(replay: Path, config: Config, origin: Provenance) -> RecordedTurns:
    """The turns of a run whose proposals went by arrival.

    Raises:
        RunError: it has not begun, or with other settings or data.
    """
    arrived: list[str] = []
    known: dict[int, int] = {}
    last = -1
    store = Store(replay)
    try:
        if (began := events.find(store, Began, "0")) is None:
            raise RunError(f"{replay} holds a run that has not begun")
        check_same(began.settings, config, str(replay))
        check_data(began, origin, str(replay), config)
        for event in events.every(store):
            if isinstance(event, Asked) and event.known is not None:
                known[event.index] = event.known
            if isinstance(event, Candidate):
                last = max(last, event.index)
                if event.evaluated:
                    arrived.append(str(event.index))
    finally:
        store.close()
    # What was asked for last, and not evaluated for lack of time, is no part of the run.
    return RecordedTurns(arrived, {index: told for index, told in known.items() if index <= last})
