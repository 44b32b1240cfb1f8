import json
import signal
from pathlib import Path

import pytest
from run_tools import FAULTY, TINY, contents, quiet, start, wait_for_candidates
from search_faults import PLANTED, STARTS

import normforge as nf
from normforge.errors import RunError, UnknownNameError
from normforge.search import results
from normforge.search.config import Config, load
from normforge.search.reports.report import report
from normforge.search.run import run
from normforge.search.space import PAPER
from normforge.search.store import FILE, Store


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A tiny run, with one faulty candidate, left alone to its end."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert run(load("digits", TINY), directory, quiet(), work=FAULTY)
    return directory


def test_a_run_ends_with_everything_recorded(finished):
    events = contents(finished)
    candidates = {int(key): data for (kind, key), data in events.items() if kind == "candidate"}
    assert sorted(candidates) == list(range(150))
    assert all(data["fate"] == "scored" or data["reason"] for data in candidates.values())
    assert all(len(data["genes"]) == 10 for data in candidates.values())
    assert any(data["parents"] for data in candidates.values())
    assert json.loads((finished / "config.json").read_text())["recipe"]["steps"] == 2


def test_a_planted_fault_is_recorded(finished):
    event = contents(finished)["candidate", "6"]
    assert (event["fate"], event["reason"]) == ("error", "ValueError: a fault that was planted")


@pytest.mark.slow  # 20 s are the endless loop's
def test_a_run_with_every_fault_finishes_and_records_each(tmp_path):
    settings = [f"evolution.start={STARTS}", "workers.time_limit=20", "workers.memory_limit=3"]
    assert run(load("digits", TINY + settings), tmp_path, quiet(), work="search_faults:real_but_for_six")
    events = contents(tmp_path)
    found = {PLANTED[key]: data for (kind, key), data in events.items() if kind == "candidate" and key in PLANTED}
    assert {fault: (data["fate"], data.get("reason", "")) for fault, data in found.items()} == {
        "spin": ("timeout", "stopped at the time limit of 20 s"),
        "bomb": ("memory", "stopped at the memory limit of 3 GiB"),
        "segfault": ("crashed", "the worker died (killed by SIGSEGV)"),
        "nan": ("probing", found["nan"].get("reason", "")),
        "data": ("error", "OSError: images/17.png is damaged"),
        "raise": ("error", "ValueError: a fault that was planted"),
    }
    assert "finite" in found["nan"]["reason"]
    scored = {key for (kind, key), data in events.items() if kind == "candidate" and data["fate"] == "scored"}
    assert scored - PLANTED.keys()  # others went through
    assert any(kind == "final" for kind, _ in events)


def test_one_worker_finds_what_two_find_and_sigkill_loses_nothing(finished, tmp_path):
    directory = tmp_path / "killed"
    first = start(directory, "workers.count=1")
    wait_for_candidates(directory, 3)
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    kept = contents(directory)
    assert 0 < len(kept) < len(contents(finished))
    second = start(directory, "workers.count=1")
    assert second.wait(90) == 0
    assert contents(directory) == contents(finished)
    assert kept.items() <= contents(directory).items()


@pytest.mark.slow
def test_ctrl_c_stops_and_the_same_command_goes_on(finished, tmp_path):
    directory = tmp_path / "stopped"
    process = start(directory, "workers.count=1")
    wait_for_candidates(directory, 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert run(load("digits", TINY), directory, quiet(), work=FAULTY)
    assert contents(directory) == contents(finished)


def test_a_finished_run_prints_its_table_again(finished):
    before = contents(finished)
    assert run(load("digits", TINY), finished, quiet(), work="search_faults:missing")  # no worker is started
    assert contents(finished) == before
    console = quiet()
    report(finished, console)
    text = console.file.getvalue()
    assert "150 layers drawn" in text and "bn-relu" in text and "#" in text
    assert (finished / "search.png").stat().st_size > 10_000


def test_results_are_layers(finished):
    store = Store(finished)
    top = results.best_distinct(results.scored(store), 2, PAPER)
    best = results.reranked(store, top, 1)[0]
    assert best in top and len(top) == 2 and results.reranked(store, top[1:], 1) == top[1:]
    store.close()
    assert nf.load(f"{finished}#best") == PAPER.to_graph(best.genotype) == nf.load(f"{finished}#{best.index}")
    assert nf.compile(f"{finished}#best", 4).graph == PAPER.to_graph(best.genotype)
    with pytest.raises(UnknownNameError, match="names no search result"):
        results.layer_of("runs/demo#first")
    with pytest.raises(UnknownNameError, match="no candidate #150"):
        results.layer_of(f"{finished}#150")
    with pytest.raises(RunError, match="no search run"):
        results.layer_of(f"{finished.parent}#1")


def test_a_run_goes_on_with_its_own_settings_only(finished):
    with pytest.raises(RunError, match="seed = 0, not 1"):
        run(load("digits", [*TINY, "seed=1"]), finished, quiet())
    with pytest.raises(RunError, match=r"recipe\.steps = 2, not 3"):
        run(load("digits", [*TINY, "recipe.steps=3"]), finished, quiet())


def test_a_directory_that_cannot_be_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        run(Config(), tmp_path / "file", quiet())
    with pytest.raises(RunError, match="holds other files"):
        run(Config(), tmp_path, quiet())
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(RunError, match="cannot be read"):
        run(Config(), tmp_path / "damaged", quiet())


@pytest.mark.slow
def test_bad_trainings_are_stopped_halfway(tmp_path):
    settings = ["early.keep=0.5", "early.least=2", "recipe.steps=4", "quality.steps=1", "budget.candidates=200"]
    assert run(load("digits", [*TINY, *settings]), tmp_path / "run", quiet())
    found = contents(tmp_path / "run")
    evaluated = [data for (kind, _), data in found.items() if kind == "candidate" and data.get("halfway")]
    stopped = [data for data in evaluated if data["fate"] == "early"]
    assert stopped and all("not among the best 50%" in data["reason"] for data in stopped)
    scored = sorted(data["halfway"]["resnet"] for data in evaluated if data["fate"] == "scored")
    assert all(data["halfway"]["resnet"] > scored[0] for data in stopped)
