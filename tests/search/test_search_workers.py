import os
import time

import pytest

from normforge.errors import RunError
from normforge.search.config import Config
from normforge.search.funnel import Fate, Outcome
from normforge.search.tasks import Task
from normforge.search.workers import Pool


def task(key: str) -> Task:
    return Task(key, "", Config())


def drain(pool: Pool, tasks: list[Task]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    end = time.monotonic() + 50
    while (tasks or pool.busy) and time.monotonic() < end:
        while tasks and pool.free:
            pool.submit(tasks.pop(0))
        outcomes.update({t.key: o for t, o in pool.collect(0.2)})
    return outcomes


def test_faulty_tasks_cost_themselves_alone():
    pool = Pool("search_faults:by_key", count=2, time_limit=1.5)
    try:
        keys = ["a", "raise", "exit", "b", "segfault", "hang", "c"]
        outcomes = drain(pool, [task(k) for k in keys])
    finally:
        pool.stop()
    assert outcomes.keys() == set(keys)
    assert all(outcomes[k].fate is Fate.SCORED for k in "abc")
    assert outcomes["raise"] == Outcome(Fate.ERROR, "ValueError: a fault that was planted")
    assert outcomes["exit"] == Outcome(Fate.CRASHED, "the worker died (exit code 3)")
    assert outcomes["segfault"] == Outcome(Fate.CRASHED, "the worker died (killed by SIGSEGV)")
    assert outcomes["hang"] == Outcome(Fate.TIMEOUT, "stopped at the time limit of 1.5 s")


def test_workers_that_never_start_end_the_run():
    pool = Pool("search_faults:missing", count=1, time_limit=5)
    try:
        pool.submit(task("a"))
        with pytest.raises(RunError, match="do not start"):
            drain(pool, [])
    finally:
        pool.stop()


def test_stopped_workers_are_gone():
    pool = Pool("search_faults:by_key", count=2, time_limit=5)
    drain(pool, [task("a"), task("b"), task("c")])
    pids = [w.process.pid for w in pool._workers]
    pool.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
