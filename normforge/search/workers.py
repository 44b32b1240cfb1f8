"""Workers: spawned processes of one thread each. A task that crashes, raises or hangs costs one worker at most."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from normforge.errors import RunError
from normforge.search.funnel import Fate, Outcome
from normforge.search.tasks import Task

_STARTUP_SECONDS = 120.0  # for importing torch and timm, on top of the first task's time limit


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    task: Task | None = None
    deadline: float = 0.0


class Pool:
    """Processes that run `work` on one task at a time.

    Args:
        work: `module:function` from `Task` to `Outcome`, imported in the workers alone.
        count: number of processes.
        time_limit: seconds for one task.
    """

    def __init__(self, work: str, count: int, time_limit: float) -> None:
        self._work, self._time_limit = work, time_limit
        self._context = mp.get_context("spawn")
        self._workers = [self._start() for _ in range(count)]
        self._failed_starts = 0

    @property
    def free(self) -> int:
        """How many workers have nothing to do."""
        return sum(w.task is None for w in self._workers)

    @property
    def busy(self) -> int:
        """How many tasks are under way."""
        return len(self._workers) - self.free

    def submit(self, task: Task) -> None:
        """Give a task to a free worker; there must be one."""
        worker = next(w for w in self._workers if w.task is None)
        worker.task = task
        worker.deadline = time.monotonic() + self._time_limit + (0 if worker.ready else _STARTUP_SECONDS)
        with suppress(OSError):  # it has died; `collect` will see the end of its pipe
            worker.pipe.send(task)

    def collect(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """Tasks that ended within `timeout` seconds: with an outcome, by a crash, or at the time limit.

        Raises:
            RunError: workers die before they are ready, one after the other.
        """
        ended: list[tuple[Task, Outcome]] = []
        nearest = min((w.deadline for w in self._workers if w.task is not None), default=float("inf"))
        ready = wait([w.pipe for w in self._workers], max(0.0, min(timeout, nearest - time.monotonic())))
        for i, worker in enumerate(self._workers):
            if worker.pipe in ready:
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    self._replace(i, self._crash(worker), ended)
                    continue
                if message is None:
                    worker.ready, self._failed_starts = True, 0
                    if worker.task is not None:
                        worker.deadline = time.monotonic() + self._time_limit
                elif worker.task is not None:
                    ended.append((worker.task, message))
                    worker.task = None
            elif worker.task is not None and time.monotonic() > worker.deadline:
                reason = f"stopped at the time limit of {self._time_limit:g} s"
                self._replace(i, Outcome(Fate.TIMEOUT, reason), ended)
        return ended

    def stop(self) -> None:
        """End all workers and what they started; tasks under way are lost."""
        for worker in self._workers:
            self._kill(worker)
        self._workers = []

    def _start(self) -> _Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_main, args=(there, self._work, os.getpid()), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    def _crash(self, worker: _Worker) -> Outcome:
        worker.process.join(5)
        code = worker.process.exitcode
        how = f"exit code {code}" if code is None or code >= 0 else f"killed by {signal.Signals(-code).name}"
        return Outcome(Fate.CRASHED, f"the worker died ({how})")

    def _replace(self, i: int, outcome: Outcome, ended: list[tuple[Task, Outcome]]) -> None:
        worker = self._workers[i]
        self._kill(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > len(self._workers):
                raise RunError(f"worker processes do not start: {outcome.reason}; see the messages above")
        replacement = self._start()
        if worker.task is not None and worker.ready:
            ended.append((worker.task, outcome))
        self._workers[i] = replacement
        if worker.task is not None and not worker.ready:  # not the task's fault
            self.submit(worker.task)

    @staticmethod
    def _kill(worker: _Worker) -> None:
        worker.pipe.close()
        if worker.process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                # A worker leads a group of its own, so the compilers that it runs end with it.
                os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.kill()
        worker.process.join(5)


def _main(pipe: Connection, work: str, parent: int) -> None:
    os.setsid()  # away from the terminal's Ctrl-C, which is for the main process to answer
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and the compiled kernels are loaded, which is later
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    module, _, name = work.partition(":")
    function: Callable[[Task], Outcome] = getattr(import_module(module), name)
    pipe.send(None)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            outcome = function(task)
        except Exception as e:
            message = (str(e).strip() or "no message").splitlines()[0]
            outcome = Outcome(Fate.ERROR, f"{type(e).__name__}: {message}")
        try:
            pipe.send(outcome)
        except OSError:
            return


def _end_with(parent: int) -> None:
    """A worker whose main process was killed must not go on for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
