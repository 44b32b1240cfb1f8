"""The main loop: a session is opened, and goes through the search, the second ranking and the comparison.

A run is a function of its configuration (and, where proposals go by arrival, of the turns that it records), so
resuming is replay: what is stored is not done again.
"""

from __future__ import annotations

import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Protocol

from rich.console import Console

from normforge.errors import GraphError, OptionError, RunError
from normforge.ir.layers import parse
from normforge.search.cache import EvaluationCache
from normforge.search.config import Config
from normforge.search.display import Display
from normforge.search.provenance import provenance
from normforge.search.run import final
from normforge.search.run.dispatcher import Dispatcher
from normforge.search.run.search import SearchPhase
from normforge.search.run.session import Session, recorded_turns
from normforge.search.space import Genotype, SearchSpace
from normforge.search.store import FILE, Store, run_lock
from normforge.search.tasks import WORK
from normforge.search.turns import ArrivalTurns, FixedTurns, Turns
from normforge.streams import stream


class _Phase(Protocol):
    def step(self) -> bool: ...


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
        replay: a run whose proposals went by arrival, with the same configuration, whose turns are followed.
        download: fetch data that torchvision knows where to find.

    Returns:
        True when the run is finished, False when it was interrupted; what was finished is stored.

    Raises:
        RunError: the directory cannot be used, or was started with another configuration or other data.
        OptionError: settings that cannot be, or data that cannot be read.
    """
    _check_directory(directory)
    space = SearchSpace(config.space)
    start = [_start_genotype(space, text, i, config.seed) for i, text in enumerate(config.evolution.start)]
    origin = provenance(config, download=download)
    # What `auto` means here is what it means everywhere, also on the machines of a cluster.
    config = config.model_copy(update={"workers": config.workers.model_copy(update={"device": origin.device})})
    with ExitStack() as stack:
        store = Store(directory, write=True)
        stack.callback(store.close)
        stack.enter_context(run_lock(directory))
        if replay and config.evolution.order == "fixed":
            raise OptionError("--replay follows a run with evolution.order = arrival; others go the same way by seed")
        recorded = recorded_turns(replay, config, origin) if replay else None
        session = Session(config, store, origin, space, replay, recorded)
        dispatcher = Dispatcher(work, config.workers, _cache(session))
        stack.callback(dispatcher.close)
        for note in session.notes:
            console.print(f"Note: {note}", highlight=False, soft_wrap=True)
        interrupted = stack.enter_context(_interruptible())
        search = SearchPhase(session, dispatcher, recorded or _turns(session), start)
        with Display(console, session.progress) as display:
            _go_through(session, dispatcher, search, display, interrupted.is_set)
        return not interrupted.is_set()


def _go_through(
    session: Session, dispatcher: Dispatcher, search: SearchPhase, display: Display, interrupted: Callable[[], bool]
) -> None:
    """The phases, one after the other, as long as nobody interrupts them."""

    def ends(phase: _Phase) -> bool:
        while not interrupted() and phase.step():
            display.update()
        display.update(force=True)
        return not interrupted()

    if ends(search):
        top = final.best(session)
        if ends(final.reranking(session, dispatcher, top)):
            phases = chain([final.comparison(session, dispatcher, top)], final.telling_apart(session, dispatcher, top))
            all(ends(phase) for phase in phases)


def _turns(session: Session) -> Turns:
    rules = session.config.evolution
    return FixedTurns(rules.lag) if rules.order == "fixed" else ArrivalTurns(session.arrived)


def _cache(session: Session) -> EvaluationCache | None:
    file = session.config.cache.file
    if not file:
        return None
    name = f"{platform.node()}:{session.directory.resolve()}"  # one process at a time has the directory
    return EvaluationCache(Path(file).expanduser(), session.config, session.origin, name)


def _check_directory(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise RunError(f"{directory} is a file: give a directory as --out")
    if directory.is_dir() and not (directory / FILE).exists() and any(directory.iterdir()):
        raise RunError(f"{directory} holds other files and no search run: give a new or empty directory as --out")


def _start_genotype(space: SearchSpace, text: str, index: int, seed: int) -> Genotype:
    try:
        return space.encode(parse(text), stream(seed, "start", index))
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
