"""SIGKILL at random moments, of the main process and of workers: every resume goes on as if nothing had happened."""

import random
import signal
import sqlite3
import time
from contextlib import suppress

import psutil
import pytest
from run_tools import FAULTY, TINY, contents, quiet, start

from normforge.search import results
from normforge.search.config import load
from normforge.search.evolution import Member
from normforge.search.run import run
from normforge.search.space import PAPER
from normforge.search.store import FILE, Store

KILLS = 50
LONG = ("budget.candidates=1500", "final.seeds=3", "final.baselines=bn-relu,gn-relu")
RUNS = {
    "funnel": LONG,
    "ladder": (
        *LONG,
        "ladder.use=micro,quality,full,stability",
        "ladder.promote=0.5",
        "ladder.micro.steps=4",
        "ladder.micro.look=2",
        "ladder.micro.begun=0",
        "networks.plain.channels=4,8",
        "evolution.protocol=structural",
        "filters.family=true",
        "filters.behaviour=0.995",
        "filters.signal=3",
        "filters.probing=true",
        "final.apart=4",
        "final.seeds=2",
    ),
}


def front_and_population(directory) -> tuple[list[Member], list[str]]:
    store = Store(directory)
    try:
        found = results.scored(store)
        best = [layer.name for layer in results.best_distinct(found, 10, PAPER)]
        return sorted((m.index, m.genotype, tuple(m.outcome.scores.values())) for m in found), best
    finally:
        store.close()


def workers_of(process) -> list[psutil.Process]:
    """The workers and their guards."""
    found = []
    with suppress(psutil.Error):
        found = psutil.Process(process.pid).children(recursive=True)
    return [p for p in found if "guard.py" in cmdline(p)]


def wait(process, seconds: float, until=lambda process: False) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not until(process):
        time.sleep(0.01)


def cmdline(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_fifty_kills(kind, tmp_path):
    settings = RUNS[kind]
    rng = random.Random(0)
    alone = tmp_path / "alone"
    assert run(load("digits", [*TINY, *settings]), alone, quiet(), work=FAULTY)
    directory = tmp_path / "killed"
    killed = {"main": 0, "worker": 0}
    while sum(killed.values()) < KILLS:
        before = contents(directory) if (directory / FILE).exists() else {}
        process = start(directory, *settings)
        with_worker = rng.random() < 0.5
        if with_worker:  # wherever the first worker is by then: imports, compilation, training
            wait(process, 60.0, workers_of)
        wait(process, rng.uniform(0.0, 8.0))
        if process.poll() is not None:
            break  # it has finished: fewer kills than asked for fail below
        if with_worker and (victims := workers_of(process)):
            with suppress(psutil.NoSuchProcess):
                rng.choice(victims).kill()
                killed["worker"] += 1
            wait(process, rng.uniform(0.0, 4.0))
        process.send_signal(signal.SIGKILL)
        killed["main"] += 1
        process.wait(30)
        assert before.items() <= (contents(directory).items() if (directory / FILE).exists() else set())
        if (directory / FILE).exists():
            db = sqlite3.connect(directory / FILE)
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            db.close()
    print(f"killed {killed}")
    assert killed["worker"] > 0 and sum(killed.values()) >= KILLS
    assert start(directory, *settings).wait(600) == 0
    assert contents(directory) == contents(alone)
    assert front_and_population(directory) == front_and_population(alone)
    time.sleep(2.5)
    assert [p for p in psutil.process_iter() if str(directory) in cmdline(p)] == []
