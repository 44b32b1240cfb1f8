import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_search_workers import alive, drain, eventually, pids, task, workers

from normforge.errors import OptionError, RunError
from normforge.search.funnel import Fate, Outcome
from normforge.search.workers import WorkerPool, open_pool
from normforge.testing import PoolProperties

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    pytest.skip("needs Ray", allow_module_level=True)

# The nodes' processes find `search_faults`, and the normforge that is tested.
PATH = os.pathsep.join([str(Path(__file__).parent), *sys.path])
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and one more node, each with room for one worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        cluster.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@contextmanager
def opened(time_limit: float) -> Iterator[WorkerPool]:
    handler = signal.getsignal(signal.SIGTERM)
    pool = open_pool("search_faults:by_key", workers(on="ray", count=2, time_limit=time_limit))
    try:
        yield pool
    finally:
        pool.stop()
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow  # its limits of seconds need a machine that is not busy otherwise
@pytest.mark.usefixtures("cluster")
class TestRay(PoolProperties):
    on = "ray"


@pytest.mark.slow
def test_what_is_lost_with_ray_ends_as_it_does_without(cluster: Cluster, tmp_path: Path):
    file = tmp_path / "pids"
    with opened(time_limit=5) as pool:
        outcomes = drain(pool, ["a", "hang", "suicide", "grow", f"kill_host:{file}", "b", "pid"])
        pid = int(outcomes["pid"].reason)
        assert alive([pid])
    assert eventually(lambda: not alive([pid, *pids(file)]), 2)
    assert outcomes["a"].fate is outcomes["b"].fate is Fate.SCORED
    assert outcomes["suicide"].fate is Fate.CRASHED and "killed by SIGKILL twice" in outcomes["suicide"].reason
    assert outcomes["hang"] == Outcome(Fate.TIMEOUT, "stopped at the time limit of 5 s")
    assert outcomes["grow"] == Outcome(Fate.MEMORY, "stopped at the memory limit of 0.25 GiB")
    lost = outcomes[f"kill_host:{file}"]  # it takes its actor along
    assert lost.fate is Fate.CRASHED and "lost twice" in lost.reason and len(pids(file)) == 2


def test_a_lost_node_costs_no_task(cluster: Cluster, tmp_path: Path):
    held = [tmp_path / "0", tmp_path / "1"]
    keys = [f"held:{file}" for file in held] + list("abcdef")
    tasks, outcomes = [task(key) for key in keys], {}
    with opened(time_limit=40) as pool:
        end = time.monotonic() + 60
        while (tasks or pool.busy) and time.monotonic() < end:
            while tasks and pool.free:
                pool.submit(tasks.pop(0))
            outcomes.update({t.key: o for t, o in pool.collect(0.1)})
            if cluster.worker_nodes and all(file.exists() for file in held):  # one on each node
                running = [pid for file in held for pid in pids(file)]
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
                assert eventually(lambda running=running: len(alive(running)) == 1)
                for file in held:
                    file.with_suffix(".go").touch()
    assert outcomes.keys() == set(keys)
    assert all(outcome.fate is Fate.SCORED for outcome in outcomes.values())
    once, twice = sorted(held, key=lambda file: len(pids(file)))
    assert (len(pids(once)), len(pids(twice))) == (1, 2)  # the lost one was run again
    assert not alive(pids(twice))


def test_clusters_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(RunError, match="does not let us in"):
            open_pool("search_faults:by_key", workers(on=f"ray://127.0.0.1:{closed.getsockname()[1]}"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"pip install 'normforge\[ray\]'"):
        open_pool("search_faults:by_key", workers(on="ray"))


@pytest.mark.slow
def test_without_a_cluster_one_is_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", PATH)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with opened(time_limit=5) as pool:
        assert drain(pool, ["a", "exit"])["a"].fate is Fate.SCORED
