"""The main loop: propose, refuse, dispatch, tell, record; then rank the best again, and train them beside known ones.

A run is a function of its configuration (and, where proposals go by arrival, of the order that it records), so
resuming is replay: what is stored is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console

from normforge.errors import GraphError, OptionError, RunError
from normforge.ir.graph import Graph
from normforge.ir.layers import parse
from normforge.search import objectives, results, space
from normforge.search.cache import EvaluationCache
from normforge.search.config import Config, check_same, flat
from normforge.search.display import Display
from normforge.search.evolution import Member, Proposal, TournamentEvolution
from normforge.search.funnel import UNDECIDED, Fate, Outcome, Seen, formula, refuse_static
from normforge.search.order import Arrival, Fixed, Order, Recorded
from normforge.search.progress import Progress
from normforge.search.provenance import Provenance, provenance
from normforge.search.space import Genotype, SearchSpace
from normforge.search.store import Event, Store, run_lock
from normforge.search.tasks import WORK, Task
from normforge.search.workers import WorkerPool, open_pool
from normforge.streams import stream

CONFIG_FILE = "config.json"
_ASK_SECONDS = 1.0  # between two questions whether another run has ended an evaluation


def run(
    config: Config,
    directory: Path,
    console: Console,
    *,
    work: str = WORK,
    replay: Path | None = None,
    download: bool = False,
) -> bool:
    """Start a run, or go on with it, until it is finished or Ctrl-C is pressed.

    Args:
        config: of the run; only its budget, workers and cache may differ from those it was started with.
        directory: of the run; made if need be.
        console: for the display.
        work: `module:function` that evaluates a task in a worker.
        replay: a run whose proposals went by arrival, with the same configuration, whose order is followed.
        download: fetch data that torchvision knows where to find.

    Returns:
        True when the run is finished, False when it was interrupted; what was finished is stored.

    Raises:
        RunError: the directory cannot be used, or was started with another configuration or other data.
        OptionError: settings that cannot be, or data that cannot be read.
    """
    _check_directory(directory)
    drawn = SearchSpace(config.space)
    start = [_start_genotype(drawn, text, i, config.seed) for i, text in enumerate(config.evolution.start)]
    origin = provenance(config, download=download)
    # What `auto` means here is what it means everywhere, also on the machines of a cluster.
    config = config.model_copy(update={"workers": config.workers.model_copy(update={"device": origin.device})})
    with ExitStack() as stack:
        store = Store(directory, write=True)
        stack.callback(store.close)
        stack.enter_context(run_lock(directory))
        search = _Search(config, directory, store, origin, drawn, start, replay)
        stack.callback(search.stop)
        for note in search.begin(work):
            console.print(f"Note: {note}", highlight=False, soft_wrap=True)
        interrupted = stack.enter_context(_interruptible())
        with Display(console, search.progress) as display:
            for begin, step in (
                (None, search.step),
                (search.begin_rerank, search.step_final),
                (search.begin_final, search.step_final),
            ):
                if begin and not interrupted.is_set():
                    begin()
                while not interrupted.is_set() and step():
                    display.update()
                display.update(force=True)
        return not interrupted.is_set()


def _check_directory(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise RunError(f"{directory} is a file: give a directory as --out")
    if directory.is_dir() and not (directory / "search.db").exists() and any(directory.iterdir()):
        raise RunError(f"{directory} holds other files and no search run: give a new or empty directory as --out")


def _start_genotype(drawn: SearchSpace, text: str, index: int, seed: int) -> Genotype:
    try:
        return drawn.encode(parse(text), stream(seed, "start", index))
    except GraphError as e:
        raise OptionError(f"evolution.start: {text!r} cannot be a candidate: {e}") from None


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C (or SIGTERM) into a flag, so that it never falls into the middle of a write."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are for the main thread alone
        yield flag
        return

    def handler(number: int, frame: FrameType | None) -> None:
        flag.set()
        signal.signal(number, before[signal.Signals(number)])  # the second one ends the process at once

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@dataclass
class _Candidate:
    """One that was drawn.

    Attributes:
        proposal: its genotype and parents.
        known: slots that evolution knew when it was drawn.
        static: seconds of the static stages.
        keys: hash and fingerprint.
        task: its evaluation; none where the static stages refused it, or it was stored by an earlier session.
        stored: its fate is.
    """

    proposal: Proposal
    known: int = 0
    static: float = 0.0
    keys: dict[str, str] = field(default_factory=dict)
    task: Task | None = None
    stored: bool = False


class _Search:
    def __init__(
        self,
        config: Config,
        directory: Path,
        store: Store,
        origin: Provenance,
        drawn: SearchSpace,
        start: list[Genotype],
        replay: Path | None,
    ) -> None:
        self.config, self.directory, self.store, self.space = config, directory, store, drawn
        self.origin = origin
        self.objectives = objectives.names(config)
        self.evolution = TournamentEvolution(config.evolution, drawn, config.seed, self._identity, start)
        self.order: Order = _order(config, replay, origin)
        self.replay = str(replay.resolve()) if replay else ""
        self.pool: WorkerPool | None = None
        self.cache: EvaluationCache | None = None
        self.index = 0  # of the next candidate
        self.slots: list[int] = []  # candidate of each slot
        self.told = 0  # slots that evolution knows
        self.halfways: list[dict[str, float]] = []  # of those, as far as they were scored
        self.candidates: dict[int, _Candidate] = {}  # those that have a slot, until they are told
        self.outcomes: dict[int, Outcome] = {}  # of those that were evaluated
        self.seen = Seen()
        self.pending: deque[Task] = deque()
        self.elsewhere: deque[Task] = deque()  # under evaluation by another run, which shares the cache
        self.asked_cache = 0.0  # when it was last asked for those
        self.cache_keys: dict[str, dict[str, str]] = {}  # of tasks under way

    def begin(self, work: str) -> list[str]:
        """Read what is stored, and store that a session begins. Returns what its user should know."""
        self.work = work
        notes = []
        sessions, offset, self.last_stored = 0, 0.0, -1
        self.done: set[tuple[str, str]] = set()
        for event in self.store.events():
            offset = max(offset, event.elapsed)
            if event.kind == "session":
                if not sessions:
                    notes += self._check_same(event)
                sessions += 1
            elif event.kind == "candidate":
                self.last_stored = max(self.last_stored, int(event.key))
                if "hash" in event.data and isinstance(self.order, Arrival):
                    self.order.ended(int(event.key))
            elif event.kind != "asked":
                self.done.add((event.kind, event.key))
        session = {"settings": dict(flat(self.config)), **dataclasses.asdict(self.origin), "replay": self.replay}
        self.store.append([Event("session", str(sessions), offset, session)])
        (self.directory / CONFIG_FILE).write_text(json.dumps(self.config.model_dump(mode="json"), indent=2) + "\n")
        self.offset, self.start = offset, time.monotonic()
        budget, rules = self.config.budget, self.config.evolution
        limits: tuple[float, int | None, int | None] = (budget.minutes * 60, budget.candidates, budget.evaluations)
        if isinstance(self.order, Recorded):  # it ends where the other run did
            limits = (math.inf, 1 + max(self.order.known, default=-1), None)
        self.progress = Progress(*limits, elapsed=offset, before=(offset, 0))
        if self.config.cache.file:
            # One process at a time has the directory.
            name = f"{platform.node()}:{self.directory.resolve()}"
            self.cache = EvaluationCache(Path(self.config.cache.file).expanduser(), self.config, self.origin, name)
        if rules.order == "fixed" and self.config.workers.count > rules.lag:
            notes.append(
                f"{self.config.workers.count} workers, but evolution.lag = {rules.lag} leaves no more than {rules.lag} "
                "at work: start with a larger one, or with evolution.order = arrival"
            )
        return notes

    def _check_same(self, first: Event) -> list[str]:
        check_same(first.data["settings"], self.config, str(self.directory))
        _check_data(first, self.origin, str(self.directory), self.config)
        if first.data["device"] != self.origin.device:
            raise RunError(
                f"{self.directory} was started on {first.data['device']}, and scores of {self.origin.device} do not "
                f"compare: set workers.device={first.data['device']}, or use another --out"
            )
        other = first.data.get("replay", "")
        if other != self.replay:
            raise RunError(
                f"{self.directory} follows {other}: go on with --replay {other}"
                if other
                else f"{self.directory} follows no other run: go on without --replay, or use another --out"
            )
        changed = [name for name in ("machine", "code") if first.data[name] != getattr(self.origin, name)]
        what = {"machine": "another machine or other libraries", "code": "other code of normforge"}
        return [f"{self.directory} was started with {what[n]}: results may differ in their last bits" for n in changed]

    # -- the search

    def step(self) -> bool:
        """One move of the loop: tell, draw, dispatch or wait. False when the search is over."""
        self.progress.elapsed = self.offset + time.monotonic() - self.start
        while (index := self.order.next(self.index, self.slots, self.told, self.outcomes)) is not None:
            self._tell(index)
        stored_left = self.index <= self.last_stored
        late = self.progress.elapsed >= self.progress.limit and not stored_left
        if late:
            self.pending.clear()  # they are asked for again if the run is continued with a larger budget
            self.elsewhere.clear()
        # What is stored needs no proposal, nor does what was asked for; in a fixed order a gap between does.
        stored = stored_left and self.config.evolution.order == "arrival"
        may_ask = stored or self.order.may_ask(self.index, self.slots, self.told)
        may_draw = may_ask and not late and self._within_budget()
        if may_draw and not self.pending:
            self._draw()
            return True
        if not self._busy():
            if isinstance(self.order, Recorded) and self.told < len(self.order.arrived):
                missing = self.order.arrived[self.told]
                raise RunError(
                    f"{self.replay} cannot be followed: #{missing} was evaluated there, and is not reached here"
                )
            return False
        for task, outcome in self._exchange(more=may_draw):
            index = int(task.key)
            self.outcomes[index] = outcome
            self.order.ended(index)
            if not isinstance(self.order, Recorded):  # events have the order in which outcomes are told
                self._record_once(index, self.candidates[index], outcome)
        return True

    def _within_budget(self) -> bool:
        p = self.progress
        drawn = p.candidates is None or self.index < p.candidates
        return drawn and (p.evaluations is None or len(self.slots) < p.evaluations)

    def _tell(self, index: int) -> None:
        outcome, candidate = self.outcomes.pop(index), self.candidates.pop(index)
        self._record_once(index, candidate, outcome)
        if outcome.fate is Fate.SCORED:
            scores = tuple(outcome.scores[name] for name in self.objectives)
            self.evolution.tell(Member(index, candidate.proposal.genotype, scores))
            self.halfways.append(outcome.halfway)
        self.told += 1

    def _draw(self) -> None:
        index, event = self.index, None
        self.index += 1
        if index <= self.last_stored:
            event = self.store.event("candidate", str(index))
        if event is not None:
            self._take_stored(index, event)
            return
        # An evaluation that was under way when the run was stopped is asked for again as it was.
        asked = self.store.event("asked", str(index)) if self.config.evolution.order == "arrival" else None
        if asked:
            candidate = _Candidate(_proposal(asked), int(asked.data["known"]))
        else:
            candidate = _Candidate(self.evolution.ask(index), self.told)
        graph = self.space.to_graph(candidate.proposal.genotype)
        start = time.perf_counter()
        refused, candidate.keys = refuse_static(graph, self.seen)
        candidate.static = round(time.perf_counter() - start, 5)
        if refused is not None:
            self._record_once(index, candidate, refused)
            return
        limits = asked.data.get("limits", {}) if asked else self._limits()
        candidate.task = Task(str(index), graph.to_json(), self.config, limits=limits)
        if self.config.evolution.order == "arrival" and not asked:
            self.store.append([Event("asked", str(index), self.progress.elapsed, self._made(candidate))])
        self._take_slot(index, candidate)
        self.seen.add(index, candidate.keys)
        self.pending.append(candidate.task)

    def _take_stored(self, index: int, event: Event) -> None:
        outcome = Outcome.from_json(event.data)
        self.progress.count(index, outcome, event.data.get("formula", ""))
        if "hash" in event.data:
            self._take_slot(index, _Candidate(_proposal(event), stored=True))
            self.seen.add(index, event.data)
            self.outcomes[index] = outcome
        self.progress.before = (self.progress.elapsed, self.progress.evaluated)

    def _take_slot(self, index: int, candidate: _Candidate) -> None:
        self.candidates[index] = candidate
        self.slots.append(index)
        self.progress.evaluated += 1

    def _limits(self) -> dict[str, float]:
        """By network, the halfway loss of the worst layer that is among the share to keep."""
        rules = self.config.early
        if rules.keep == 1 or len(self.halfways) < rules.least:
            return {}
        limits: dict[str, float] = {}
        for network in self.config.networks.use:
            losses = sorted(h.get(network, float("inf")) for h in self.halfways)
            limits[network] = losses[max(0, round(rules.keep * len(losses)) - 1)]
        # A network on which even those to keep have no finite loss stops nothing.
        return limits if all(map(math.isfinite, limits.values())) else {}

    def _made(self, candidate: _Candidate) -> dict[str, object]:
        """How a candidate came about."""
        proposal = candidate.proposal
        made: dict[str, object] = {"genes": space.to_json(proposal.genotype), "parents": list(proposal.parents)}
        if self.config.evolution.order == "arrival":
            made["known"] = candidate.known
            if candidate.task and candidate.task.limits:
                made["limits"] = candidate.task.limits
        return made

    def _record_once(self, index: int, candidate: _Candidate, outcome: Outcome) -> None:
        """Store what became of a candidate, unless it is; one that was refused without numbers in short."""
        if candidate.stored:
            return
        candidate.stored = True
        outcome.seconds["static"] = candidate.static
        data = {**self._made(candidate), **outcome.to_json()}
        if candidate.task:
            data |= candidate.keys | {"formula": formula(Graph.from_json(candidate.task.graph))}
        self.store.append([Event("candidate", str(index), self.progress.elapsed, data)])
        self.progress.count(index, outcome, str(data.get("formula", "")))

    # -- the end

    def begin_rerank(self) -> None:
        """Queue what is missing of the second ranking."""
        final = self.config.final
        self.top = results.best_distinct(results.scored(self.store, self.space), final.candidates)
        repeat = final.seeds + 1  # weights and batches that neither the search nor the comparison uses
        self._queue("rerank", "re-ranking", [self._final_task(s.name, s.graph, repeat) for s in self.top])

    def begin_final(self) -> None:
        """Queue what is missing of the final training."""
        final = self.config.final
        found = results.reranked(self.store, self.top, final.best)
        tasks = [
            self._final_task(f"{name}/{repeat}", graph, repeat)
            for repeat in range(1, final.seeds + 1)
            for name, graph in results.final_layers(found, final.baselines)
        ]
        self._queue("final", "final training", tasks)

    def _final_task(self, key: str, graph: Graph, repeat: int) -> Task:
        return Task(key, graph.to_json(), self.config, repeat, final=True)

    def _queue(self, kind: str, phase: str, tasks: list[Task]) -> None:
        self.kind = kind
        self.pending.extend(task for task in tasks if (kind, task.key) not in self.done)
        self.progress.phase, self.progress.total = phase, len(tasks)
        self.progress.done = len(tasks) - len(self.pending)

    def step_final(self) -> bool:
        """Dispatch and wait. False when all is trained."""
        if not self._busy():
            return False
        for task, outcome in self._exchange(more=False):
            self.store.append([Event(self.kind, task.key, self.progress.elapsed, outcome.to_json())])
            self.progress.done += 1
        return True

    # -- workers

    def _busy(self) -> bool:
        return bool(self.pending or self.elsewhere or (self.pool and self.pool.busy))

    def _exchange(self, *, more: bool) -> list[tuple[Task, Outcome]]:
        """Give pending tasks to free workers, then wait a moment for whatever ends: not at all where a worker is
        left idle and there is `more` to draw."""
        if self.pool is None:
            self.pool = open_pool(self.work, self.config.workers)
        now = time.monotonic()
        if self.elsewhere and now > self.asked_cache + _ASK_SECONDS:
            self.asked_cache = now
            self.pending.extendleft(reversed(self.elsewhere))
            self.elsewhere.clear()
        while self.pending and self.pool.free:
            task = self.pending.popleft()
            if (ready := self._with_cache(task)) is not None:
                self.pool.submit(ready)
            else:
                self.elsewhere.append(task)
        ended = self.pool.collect(0.0 if more and self.pool.free else 0.2)
        for task, outcome in ended:
            if self.cache:
                self.cache.keep(self.cache_keys.pop(task.key), outcome.pieces)
        return ended

    def _with_cache(self, task: Task) -> Task | None:
        """The task with the pieces that the cache has; None while another run evaluates the same layer."""
        if self.cache is None:
            return task
        if task.key not in self.cache_keys:
            self.cache_keys[task.key] = self.cache.keys(Graph.from_json(task.graph), task.repeat, task.final)
        keys = self.cache_keys[task.key]
        return dataclasses.replace(task, known=self.cache.find(keys)) if self.cache.lease(keys.values()) else None

    def stop(self) -> None:
        """End all workers, if there are any, and give leases back."""
        if self.pool:
            self.pool.stop()
        if self.cache:
            self.cache.close()

    def _identity(self, genotype: Genotype) -> str:
        graph = self.space.to_graph(genotype)
        try:
            return graph.hash
        except UNDECIDED:  # whatever is wrong with a drawn layer, the static stages say it
            return graph.structure


def _proposal(event: Event) -> Proposal:
    return Proposal(space.from_json(event.data["genes"]), tuple(event.data["parents"]))


def _check_data(session: Event, origin: Provenance, where: str, config: Config) -> None:
    if session.data["digest"] != origin.digest:
        raise RunError(f"{where} was started with other data: the files of {config.data.source} have changed")


def _order(config: Config, replay: Path | None, origin: Provenance) -> Order:
    if config.evolution.order == "fixed":
        if replay:
            raise OptionError("--replay follows a run with evolution.order = arrival; others go the same way by seed")
        return Fixed(config.evolution.lag)
    if replay is None:
        return Arrival()
    arrived: list[int] = []
    known: dict[int, int] = {}
    store = Store(replay)
    try:
        if (session := store.event("session", "0")) is None:
            raise RunError(f"{replay} holds a run that has not begun")
        check_same(session.data["settings"], config, str(replay))
        _check_data(session, origin, str(replay), config)
        last = -1
        for event in store.events():
            if event.kind in ("asked", "candidate"):
                known[int(event.key)] = int(event.data["known"])
            if event.kind == "candidate":
                last = max(last, int(event.key))
                if "hash" in event.data:
                    arrived.append(int(event.key))
    finally:
        store.close()
    # What was asked for last, and not evaluated for lack of time, is no part of the run.
    return Recorded(arrived, {index: told for index, told in known.items() if index <= last})
