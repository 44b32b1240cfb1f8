"""The main loop: propose, refuse, dispatch, tell, record; then train the best and the baselines alike.

A run is a function of its configuration. Candidates that need numbers take slots in order, and the proposal for
slot k knows the outcomes of slots 0 to k - lag, no more and no fewer, whichever worker ended first. So a run goes
the same way with any number of workers, and resuming is replay: what is stored is not done again.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from normforge.errors import RunError
from normforge.ir.graph import Graph
from normforge.search import space
from normforge.search.config import Config, check_same, flat
from normforge.search.display import Display
from normforge.search.evolution import Member, Proposal, TournamentEvolution
from normforge.search.funnel import UNDECIDED, Fate, Outcome, Seen, formula, refuse_static
from normforge.search.progress import Best, Progress
from normforge.search.results import Scored, best_distinct, final_layers, scored
from normforge.search.store import Event, Store, run_lock
from normforge.search.tasks import Task
from normforge.search.workers import Pool

WORK = "normforge.search.evaluate:run_task"
CONFIG_FILE = "config.json"


def run(config: Config, directory: Path, console: Console, work: str = WORK) -> bool:
    """Start a run, or go on with it, until it is finished or Ctrl-C is pressed.

    Args:
        config: of the run; only its budget and workers may differ from those it was started with.
        directory: of the run; made if need be.
        console: for the display.
        work: `module:function` that evaluates a task in a worker.

    Returns:
        True when the run is finished, False when it was interrupted; what was finished is stored.

    Raises:
        RunError: the directory cannot be used, or was started with another configuration.
    """
    _check_directory(directory)
    with ExitStack() as stack:
        store = Store(directory, write=True)
        stack.callback(store.close)
        stack.enter_context(run_lock(directory))
        search = _Search(config, directory, store, work)
        stack.callback(search.stop_workers)
        interrupted = stack.enter_context(_interruptible())
        with Display(console, search.progress) as display:
            while not interrupted.is_set() and search.step():
                display.update()
            display.update(force=True)
            if interrupted.is_set():
                return False
            search.begin_final()
            while not interrupted.is_set() and search.step_final():
                display.update()
            display.update(force=True)
        return not interrupted.is_set()


def _check_directory(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise RunError(f"{directory} is a file: give a directory as --out")
    if directory.is_dir() and not (directory / "search.db").exists() and any(directory.iterdir()):
        raise RunError(f"{directory} holds other files and no search run: give a new or empty directory as --out")


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


class _Search:
    def __init__(self, config: Config, directory: Path, store: Store, work: str) -> None:
        self.config, self.store, self.work = config, store, work
        self.pool: Pool | None = None
        self.stored: dict[int, Event] = {}
        self.finals: set[str] = set()
        self.offset = 0.0
        sessions = self._read(str(directory))
        store.append([Event("session", str(sessions), self.offset, dict(flat(config)))])
        (directory / CONFIG_FILE).write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
        self.last_stored = max(self.stored, default=-1)
        self.start = time.monotonic()
        self.progress = Progress(limit=config.budget.minutes * 60, elapsed=self.offset)

        self.evolution = TournamentEvolution(config.evolution, config.space.nodes, config.seed, _identity)
        self.index = 0  # of the next candidate
        self.slots: list[int] = []  # candidate of each slot
        self.told = 0  # slots that evolution knows
        self.proposals: dict[int, Proposal] = {}  # of candidates with a slot, until they are told
        self.outcomes: dict[int, Outcome] = {}
        self.seen = Seen()
        self.keys: dict[int, dict[str, str]] = {}  # of candidates that have a slot and no outcome
        self.pending: deque[Task] = deque()

    def _read(self, where: str) -> int:
        sessions = 0
        for event in self.store.events():
            self.offset = max(self.offset, event.elapsed)
            if event.kind == "session":
                if not sessions:
                    check_same(event.data, self.config, where)
                sessions += 1
            elif event.kind == "candidate":
                self.stored[int(event.key)] = event
            elif event.kind == "final":
                self.finals.add(event.key)
        return sessions

    # -- the search

    def step(self) -> bool:
        """One move of the loop: tell, draw, dispatch or wait. False when the search is over."""
        self.progress.elapsed = self.offset + time.monotonic() - self.start
        known = max(0, len(self.slots) - self.config.evolution.lag + 1)
        while self.told < known and self.slots[self.told] in self.outcomes:
            self._tell()
        late = self.progress.elapsed >= self.progress.limit and self.index > self.last_stored
        counted = self.config.budget.candidates
        if late:
            self.pending.clear()  # it is asked for again if the run is continued with a larger budget
        can_draw = not late and self.told == known and (counted is None or self.index < counted)
        if can_draw and not self.pending:
            self._draw()
            return True
        if not self.pending and not self._busy():
            return False
        for task, outcome in self._exchange(more=can_draw):
            self._record(int(task.key), self.proposals[int(task.key)], outcome, Graph.from_json(task.graph))
            self.outcomes[int(task.key)] = outcome
        return True

    def _tell(self) -> None:
        index = self.slots[self.told]
        outcome, proposal = self.outcomes.pop(index), self.proposals.pop(index)
        if outcome.fate is Fate.SCORED and outcome.loss is not None:
            self.evolution.tell(Member(index, proposal.genotype, (outcome.loss,)))
        self.told += 1

    def _draw(self) -> None:
        index, event = self.index, self.stored.pop(self.index, None)
        self.index += 1
        if event is not None:
            outcome = Outcome.from_json(event.data)
            self._count(index, outcome, event.data.get("formula", ""))
            if "hash" in event.data:
                self.proposals[index] = Proposal(space.from_json(event.data["genes"]), event.data.get("parent"))
                self.seen.add(index, event.data)
                self.slots.append(index)
                self.outcomes[index] = outcome
            return
        proposal = self.evolution.ask(index)
        graph = space.to_graph(proposal.genotype)
        start = time.perf_counter()
        refused, keys = refuse_static(graph, self.seen)
        if refused is not None:
            refused.seconds["static"] = round(time.perf_counter() - start, 5)
            self._record(index, proposal, refused, None)
            return
        self.seen.add(index, keys)
        self.keys[index] = keys
        self.slots.append(index)
        self.proposals[index] = proposal
        self.pending.append(Task(str(index), graph.to_json(), self.config))

    def _record(self, index: int, proposal: Proposal, outcome: Outcome, graph: Graph | None) -> None:
        """Store what became of a candidate; one that was refused without numbers in short."""
        data = {"genes": space.to_json(proposal.genotype), "parent": proposal.parent, **outcome.to_json()}
        if graph is not None:
            data |= self.keys.pop(index) | {"formula": formula(graph)}
        self.store.append([Event("candidate", str(index), self.progress.elapsed, data)])
        self._count(index, outcome, data.get("formula", ""))

    def _count(self, index: int, outcome: Outcome, text: str) -> None:
        self.progress.fates[outcome.fate] += 1
        best = self.progress.best
        if outcome.loss is not None and (best is None or outcome.loss < best.loss):
            self.progress.best = Best(index, outcome.loss, outcome.accuracy or 0.0, text)

    # -- the final training

    def begin_final(self) -> None:
        """Queue what is missing of the final training."""
        final = self.config.final
        found: list[Scored] = best_distinct(scored(self.store), final.best)
        tasks = [
            Task(f"{name}/{repeat}", graph.to_json(), self.config, repeat, final=True)
            for repeat in range(1, final.seeds + 1)
            for name, graph in final_layers(found, final.baselines)
        ]
        self.pending.extend(task for task in tasks if task.key not in self.finals)
        self.progress.phase = "final training"
        self.progress.total = len(tasks)
        self.progress.done = len(tasks) - len(self.pending)

    def step_final(self) -> bool:
        """Dispatch and wait. False when all is trained."""
        if not self.pending and not self._busy():
            return False
        for task, outcome in self._exchange(more=False):
            self.store.append([Event("final", task.key, self.progress.elapsed, outcome.to_json())])
            self.progress.done += 1
        return True

    # -- workers

    def _busy(self) -> int:
        return self.pool.busy if self.pool else 0

    def _exchange(self, *, more: bool) -> list[tuple[Task, Outcome]]:
        """Give pending tasks to free workers, then wait a moment for whatever ends: not at all where a worker is
        left idle and there is `more` to draw."""
        if self.pool is None:
            workers = self.config.workers
            self.pool = Pool(self.work, workers.count, workers.time_limit)
        while self.pending and self.pool.free:
            self.pool.submit(self.pending.popleft())
        return self.pool.collect(0.0 if more and self.pool.free else 0.2)

    def stop_workers(self) -> None:
        """End all workers, if there are any."""
        if self.pool:
            self.pool.stop()


def _identity(genotype: space.Genotype) -> str:
    graph = space.to_graph(genotype)
    try:
        return graph.hash
    except UNDECIDED:  # whatever is wrong with a drawn layer, the static stages say it
        return graph.structure
