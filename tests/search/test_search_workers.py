import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from normforge.errors import OptionError, RunError
from normforge.ir.layers import layers
from normforge.search.config import Config, Workers, load
from normforge.search.funnel import Fate, Outcome
from normforge.search.tasks import Task
from normforge.search.workers import LocalPool, WorkerPool, open_pool
from normforge.search.workers.gpus import Gpu, names, visible_gpus
from normforge.testing import PoolProperties


def task(key: str) -> Task:
    return Task(key, layers["bn-relu"], Config())


def workers(**values: object) -> Workers:
    given = {"count": 1, "time_limit": 5.0, "memory_limit": 0.25, "device": "cpu"} | values
    return Workers.model_validate(given)


def drain(pool: WorkerPool, keys: list[str], seconds: float = 50) -> dict[str, Outcome]:
    """Run tasks to their ends."""
    outcomes: dict[str, Outcome] = {}
    tasks = [task(key) for key in keys]
    end = time.monotonic() + seconds
    while (tasks or pool.busy) and time.monotonic() < end:
        while tasks and pool.free:
            pool.submit(tasks.pop(0))
        outcomes.update({t.key: o for t, o in pool.collect(0.2)})
    assert outcomes.keys() == set(keys)
    return outcomes


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def pids(file: Path) -> list[int]:
    """What the tasks have left there."""
    return [int(n) for n in file.read_text().split()] if file.exists() else []


def alive(numbers: list[int]) -> list[int]:
    found = []
    for number in numbers:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                found.append(number)
    return found


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalPool]:
    pool = LocalPool("search_faults:by_key", workers())
    yield pool
    pool.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pids"


class TestLocal(PoolProperties):
    pass


def test_further_faults_cost_themselves_alone():
    pool = open_pool("search_faults:by_key", workers(count=2, time_limit=1.5))
    keys = ["a", "hang", "b", "locked", "cuda", "c"]
    try:
        outcomes = drain(pool, keys)
    finally:
        pool.stop()
    assert all(outcomes[k].fate is Fate.SCORED for k in "abc")
    assert outcomes["cuda"] == Outcome(Fate.ERROR, "RuntimeError: CUDA error: device-side assert triggered")
    for key in ("hang", "locked"):
        assert outcomes[key] == Outcome(Fate.TIMEOUT, "stopped at the time limit of 1.5 s")


def test_a_memory_bomb_is_refused_memory(pool: LocalPool, file: Path):
    key = f"numpy:{file}"
    assert drain(pool, [key])[key] == Outcome(Fate.MEMORY, "stopped at the memory limit of 0.25 GiB")
    assert len(pids(file)) == 2  # it heard of the limit
    assert drain(pool, ["a"])["a"].fate is Fate.SCORED


def test_a_memory_bomb_in_a_child_is_stopped(pool: LocalPool):
    assert drain(pool, ["grow"])["grow"] == Outcome(Fate.MEMORY, "stopped at the memory limit of 0.25 GiB")


def test_a_full_worker_is_not_the_tasks_fault(pool: LocalPool):
    """Each task leaves memory in use, and has enough in a fresh worker."""
    outcomes = drain(pool, [f"fill:{n}" for n in range(4)])
    assert all(outcome.fate is Fate.SCORED for outcome in outcomes.values())


def test_torch_in_a_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pool = LocalPool("search_faults:by_key", workers(threads=2, memory_limit=2, time_limit=60))
    try:
        outcomes = drain(pool, ["threads", "torch"])
    finally:
        pool.stop()
    assert outcomes["threads"].reason == "2 2"
    assert outcomes["torch"] == Outcome(Fate.MEMORY, "stopped at the memory limit of 2 GiB")


def test_a_worker_is_kept_unless_it_is_spoilt(pool: LocalPool, file: Path):
    def pid() -> str:
        return drain(pool, ["pid"])["pid"].reason

    first = pid()
    drain(pool, ["a", "raise"])
    second = pid()
    drain(pool, ["cuda"])
    third = pid()
    drain(pool, [f"leave:{file}"])
    assert first == second != third != pid()


@pytest.mark.parametrize("of", ["worker", "guard"])
def test_a_kill_from_outside_is_not_the_tasks_fault(pool: LocalPool, file: Path, of: str):
    pool.submit(task(f"wait:{file}"))
    assert eventually(lambda: bool(pool.collect(0.05) or pids(file)))
    [worker] = pids(file)
    os.kill(worker if of == "worker" else psutil.Process(worker).ppid(), signal.SIGKILL)
    assert eventually(lambda: not alive([worker]), 2)
    [(_, outcome)] = pool.collect(20)
    assert outcome.fate is Fate.SCORED and len(pids(file)) == 2


def test_killed_twice_is_recorded(pool: LocalPool):
    outcome = drain(pool, ["suicide"])["suicide"]
    assert outcome.fate is Fate.CRASHED and "killed by SIGKILL twice" in outcome.reason


def test_a_worker_that_dies_idle_costs_no_task(pool: LocalPool):
    pid = int(drain(pool, ["pid"])["pid"].reason)
    os.kill(pid, signal.SIGSEGV)
    assert eventually(lambda: not alive([pid]))
    assert drain(pool, ["a"])["a"].fate is Fate.SCORED


@pytest.mark.parametrize(("fault", "fate"), [("leave", Fate.SCORED), ("orphan", Fate.CRASHED), ("keep", Fate.TIMEOUT)])
def test_what_a_task_leaves_behind_ends_with_it(pool: LocalPool, file: Path, fault: str, fate: Fate):
    key = f"{fault}:{file}"
    assert drain(pool, [key])[key].fate is fate
    assert len(pids(file)) == 2
    assert not alive(pids(file))


def test_nothing_survives_the_main_process(tmp_path: Path):
    files = [tmp_path / "0", tmp_path / "1"]
    code = f"""if True:
        import sys
        sys.path[:] = {sys.path!r}
        from test_search_workers import *
        pool = LocalPool("search_faults:by_key", workers(count=2, time_limit=100))
        for file in {[str(f) for f in files]!r}:
            pool.submit(task("keep:" + file))
        while True:
            pool.collect(1)
    """
    main = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert eventually(lambda: all(len(pids(f)) == 2 for f in files))
        started = psutil.Process(main.pid).children(recursive=True)
        assert len(started) == 6  # guards, workers and their children
    finally:
        main.kill()
        main.wait()
    assert eventually(lambda: not alive([p.pid for p in started]), 2)


@pytest.mark.parametrize(
    ("work", "limits"), [("search_faults:missing", {}), ("search_faults:by_key", {"memory_limit": 0.05})]
)
def test_workers_that_never_start_end_the_run(work: str, limits: dict[str, float]):
    """A function that is not there; a limit below what the worker itself takes."""
    pool = LocalPool(work, workers(**limits))
    try:
        pool.submit(task("a"))
        with pytest.raises(RunError, match="do not start"):
            pool.collect(30)
    finally:
        pool.stop()


def test_workers_start_with_tasks_and_end_with_the_pool():
    before = set(psutil.Process().children(recursive=True))
    pool = LocalPool("search_faults:by_key", workers(count=2))
    assert (pool.free, pool.busy) == (2, 0)
    assert set(psutil.Process().children()) <= before
    drain(pool, ["a", "b", "c"])
    started = set(psutil.Process().children(recursive=True)) - before
    pool.stop()
    assert len(started) == 4 and not alive([p.pid for p in started])


def test_a_gpu_has_as_many_tasks_as_it_has_memory_for():
    """No GPU is needed: what is given out is a number, and CUDA's environment variable."""
    gpus = [Gpu("0", memory=6000.0), Gpu("1", memory=6000.0)]
    pool = LocalPool("search_faults:by_key", workers(count=5), gpus)
    try:
        assert pool.free == 2  # one each, until it is known what a task takes
        outcomes = drain(pool, ["gpu:a", "gpu:b"])
        assert {o.reason for o in outcomes.values()} == {"0", "1"}
        assert pool.free == 4
        outcomes = drain(pool, [f"gpu:{n}" for n in range(4)])
        assert sorted(o.reason for o in outcomes.values()) == ["0", "0", "1", "1"]
    finally:
        pool.stop()


def test_no_memory_beside_others_is_not_the_tasks_fault(file: Path):
    pool = LocalPool("search_faults:by_key", workers(count=2), [Gpu("0", memory=6000.0)])
    try:
        drain(pool, ["gpu:a"])
        outcomes = drain(pool, [f"wait:{file}", f"large:{file}"])
        assert outcomes[f"large:{file}"] == Outcome(Fate.SCORED, "0", seconds={"quality": 0.1}, peak=5000.0)
        assert pool.free == 1  # from now on
    finally:
        pool.stop()


def test_a_gpu_takes_one_more_with_each_task_that_trained():
    gpu = Gpu("0", memory=80_000.0)
    rooms = []
    for _ in range(4):
        rooms.append(gpu.room(peak=20_000.0))
        gpu.trained += 1
    assert rooms == [1, 2, 3, 3] and Gpu("0").room(0.0) == 1


def test_gpus_that_workers_may_use():
    assert visible_gpus("cpu") == []
    assert names(None, 2) == ["0", "1"]
    assert names("3, GPU-7a,9", 2) == ["3", "GPU-7a"]
    assert names("0", 0) == []


def test_places_to_work():
    for place in ("slurm", "two", "ray://host"):
        with pytest.raises(OptionError, match="write local, ray or ray://"):
            load("digits", [f"workers.on={place}"])
