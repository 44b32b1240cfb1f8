"""Tests of what every pool of workers owes: `normforge.testing.PoolProperties`.

    from normforge.testing import PoolProperties

    class TestMyPool(PoolProperties):
        def open(self, work, config):
            return MyPool(work, config)

Needs psutil, which workers need too, and no test library.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from normforge.ir.layers import layers
from normforge.search.config import Config, Workers
from normforge.search.funnel import Fate, Outcome
from normforge.search.tasks import Task
from normforge.search.workers.open import open_pool
from normforge.search.workers.pool import WorkerPool, run_all

WORK = f"{__name__}:planted"
_SCORED = Outcome(Fate.SCORED, loss={"resnet": 1.0}, accuracy={"resnet": 0.5})
_TIME_LIMIT, _MEMORY_LIMIT = 5.0, 0.25
_LIMIT = f"stopped at the memory limit of {_MEMORY_LIMIT:g} GiB"
# By fault, what has to become of a task.
ENDS = {
    "none": _SCORED,
    "raise": Outcome(Fate.ERROR, "ValueError: a fault that was planted"),
    "exit": Outcome(Fate.CRASHED, "the worker died (exit code 3)"),
    "segfault": Outcome(Fate.CRASHED, "the worker died (killed by SIGSEGV)"),
    "bomb": Outcome(Fate.MEMORY, _LIMIT),
    "spin": Outcome(Fate.TIMEOUT, f"stopped at the time limit of {_TIME_LIMIT:g} s"),
}


def planted(task: Task) -> Outcome:
    """A task's evaluation in a worker: does what the task's key says before its colon."""
    match task.key.partition(":")[0]:
        case "raise":
            raise ValueError("a fault that was planted")
        case "exit":
            os._exit(3)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "spin":
            while True:
                pass
        case "bomb":
            kept = []
            while True:
                kept.append(bytearray(2**24))
        case "pid":
            return Outcome(Fate.SCORED, reason=str(os.getpid()))
    return _SCORED


class PoolProperties:
    """The tests that every pool owes. Derive a class and give it `open`, or `on`.

    Attributes:
        on: `workers.on` of a pool that `open_pool` knows.
    """

    on = "local"

    def open(self, work: str, config: Workers) -> WorkerPool:
        """The pool; `config` has counts and limits."""
        return open_pool(work, config)

    @contextmanager
    def _opened(self, count: int = 2) -> Iterator[WorkerPool]:
        limits = {"time_limit": _TIME_LIMIT, "memory_limit": _MEMORY_LIMIT, "device": "cpu"}
        pool = self.open(WORK, Workers.model_validate({"on": self.on, "count": count, **limits}))
        try:
            yield pool
        finally:
            pool.stop()

    def test_every_task_ends_as_it_should(self) -> None:
        """One of each fault, tasks without one before and after it: each has one outcome, its own."""
        keys = [f"{fault}:{k}" for k, end in enumerate(ENDS) for fault in (end, "none")]
        with self._opened() as pool:
            ended = [(task.key, outcome) for task, outcome in run_all(pool, map(_task, keys))]
        assert sorted(key for key, _ in ended) == sorted(keys)
        for key, outcome in ended:
            assert outcome == ENDS[key.partition(":")[0]], key

    def test_no_more_is_under_way_than_was_asked_for(self) -> None:
        """`free` and `busy` count, and what has ended makes room."""
        with self._opened(count=2) as pool:
            assert (pool.free, pool.busy) == (2, 0)
            pool.submit(_task("none:0"))
            assert (pool.free, pool.busy) == (1, 1)
            pool.submit(_task("none:1"))
            assert (pool.free, pool.busy) == (0, 2)
            ended: list[tuple[Task, Outcome]] = []
            while pool.busy:
                ended += pool.collect(1.0)
            assert pool.free == 2 and {task.key for task, _ in ended} == {"none:0", "none:1"}
            assert pool.collect(0.0) == []

    def test_nothing_is_left_when_it_is_closed(self) -> None:
        """Neither an idle worker nor one at work outlives the pool."""
        with self._opened(count=2) as pool:
            (_, outcome) = next(run_all(pool, [_task("pid:0")]))
            pool.submit(_task("spin:1"))
            worker = int(outcome.reason)
            assert _alive(worker)
        end = time.monotonic() + 15
        while _alive(worker) and time.monotonic() < end:
            time.sleep(0.05)
        assert not _alive(worker)


def _task(key: str) -> Task:
    return Task(key, layers["bn-relu"], Config())


def _alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
