"""Runs by arrival and their replay; runs that share a cache of evaluations."""

import shutil
import signal
import time
from dataclasses import replace

import pytest
from run_tools import FAULTY, TINY, contents, events, quiet, start, wait_for_candidates

from normforge.errors import OptionError, RunError
from normforge.ir import parse
from normforge.search.cache import EvaluationCache
from normforge.search.config import load
from normforge.search.provenance import Provenance
from normforge.search.run import run
from normforge.search.store import Record, Store

HERE = Provenance("data", 10, "cpu", "machine", "code")
ARRIVAL = "evolution.order=arrival"
SHORT = [*TINY, "budget.candidates=60", "final.candidates=1"]


def candidates(directory, part=events):
    return [(key, data) for key, data in part(directory) if key[0] == "candidate"]


@pytest.fixture(scope="module")
def by_arrival(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "arrival"
    assert run(load("digits", [*SHORT, ARRIVAL]), directory, quiet(), work=FAULTY)
    return directory


def test_a_recorded_order_can_be_replayed(by_arrival, tmp_path):
    again = tmp_path / "again"
    config = load("digits", [*SHORT, ARRIVAL, "workers.count=1"])
    assert run(config, again, quiet(), work=FAULTY, replay=by_arrival)
    known = [data["known"] for _, data in candidates(by_arrival)]
    assert known != sorted(known) or max(known) > 2  # proposals knew different numbers of outcomes
    assert dict(candidates(again)) == dict(candidates(by_arrival))
    evaluated = [[key for key, data in candidates(d) if "hash" in data] for d in (again, by_arrival)]
    assert evaluated[0] == evaluated[1]  # in the same order
    with pytest.raises(RunError, match=f"go on with --replay {by_arrival}"):
        run(config, again, quiet(), work=FAULTY)


@pytest.mark.slow
def test_a_replay_ends_where_the_run_did_whatever_its_budget(by_arrival, tmp_path):
    settings = [*SHORT, ARRIVAL, "budget.minutes=0.01", "budget.candidates=2"]
    assert run(load("digits", settings), tmp_path / "again", quiet(), work=FAULTY, replay=by_arrival)
    assert dict(candidates(tmp_path / "again")) == dict(candidates(by_arrival))


@pytest.mark.slow
def test_a_replay_without_what_was_asked_for_last(by_arrival, tmp_path):
    """As a run leaves it that had no time to evaluate that."""
    copy = tmp_path / "stopped"
    shutil.copytree(by_arrival, copy)
    store = Store(copy, write=True)
    last = store.record("asked", max((r.key for r in store.records("asked")), key=int))
    store.append([Record("asked", "60", 1.0, last.data)])
    store.close()
    assert run(load("digits", [*SHORT, ARRIVAL]), tmp_path / "again", quiet(), work=FAULTY, replay=copy)
    assert dict(candidates(tmp_path / "again")) == dict(candidates(by_arrival))


def test_only_arrival_can_be_replayed_and_only_with_the_same_settings(by_arrival, tmp_path):
    with pytest.raises(OptionError, match=r"evolution\.order = arrival"):
        run(load("digits", SHORT), tmp_path / "a", quiet(), work=FAULTY, replay=by_arrival)
    with pytest.raises(RunError, match="seed = 0, not 1"):
        run(load("digits", [*SHORT, ARRIVAL, "seed=1"]), tmp_path / "b", quiet(), work=FAULTY, replay=by_arrival)


@pytest.mark.slow
def test_by_arrival_a_kill_loses_nothing_either(tmp_path):
    directory = tmp_path / "killed"
    settings = (ARRIVAL, "budget.candidates=80", "final.candidates=1")
    process = start(directory, *settings)
    wait_for_candidates(directory, 2)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    kept = contents(directory)
    assert start(directory, *settings).wait(120) == 0
    after = contents(directory)
    assert kept.items() <= after.items()
    assert sorted(int(key) for kind, key in after if kind == "candidate") == list(range(80))
    asked = {key: data for (kind, key), data in after.items() if kind == "asked"}
    for key, data in asked.items():  # what was under way at the kill is evaluated as it was asked for
        assert after["candidate", key].items() >= data.items()


def cached(directory) -> int:
    store = Store(directory)
    found = sum(e.data.get("cached", 0) for e in store.records())
    store.close()
    return found


@pytest.mark.slow
def test_runs_share_evaluations_and_come_out_the_same(tmp_path):
    cache = f"cache.file={tmp_path / 'cache.db'}"
    for name, settings in (("alone", []), ("first", [cache]), ("second", [cache])):
        assert run(load("digits", [*SHORT, *settings]), tmp_path / name, quiet(), work=FAULTY)
    assert contents(tmp_path / "first") == contents(tmp_path / "second") == contents(tmp_path / "alone")
    assert cached(tmp_path / "alone") == cached(tmp_path / "first") == 0 < cached(tmp_path / "second")


def test_a_lease_makes_others_wait_until_it_expires(tmp_path):
    config = load("digits", ["cache.lease=0.5", "workers.time_limit=0.5"])
    one, other = (EvaluationCache(tmp_path / "c.db", config, HERE, run) for run in ("runs/one", "runs/other"))
    keys = one.keys(parse("bn-relu"), 0, False)
    assert one.lease(keys.values()) and one.lease(keys.values())
    assert not other.lease(keys.values())
    assert other.lease(other.keys(parse("gn-silu"), 0, False).values())
    one.keep(keys, {"quality/resnet": {"accuracy": 0.5}})
    assert other.lease(keys.values())
    assert other.find(keys) == {"quality/resnet": {"accuracy": 0.5}}
    assert not one.lease(keys.values())
    again = EvaluationCache(tmp_path / "c.db", config, HERE, "runs/other")  # the run goes on after a SIGKILL
    assert again.lease(keys.values())
    time.sleep(0.6)
    assert one.lease(keys.values())  # whoever held it is gone
    one.close()
    assert other.lease(keys.values())


def test_keys_name_all_that_an_evaluation_depends_on(tmp_path):
    def key(*settings, layer="bn-relu", repeat=0, **changed):
        cache = EvaluationCache(tmp_path / "c.db", load("digits", list(settings)), replace(HERE, **changed), "run")
        try:
            return cache.keys(parse(layer), repeat, False)["resnet"]
        finally:
            cache.close()

    same = [key(), key("seed=5"), key("networks.use=vit,resnet"), key("space.nodes=4"), key("networks.vit.dim=24")]
    assert len(set(same)) == 1
    changed = [
        key("recipe.seed=1"), key("networks.resnet.depths=1"), key("networks.groups=4"), key("stability.steps=3"),
        key("data.seed=1"), key(layer="gn-relu"), key(repeat=1),
        key(digest="other"), key(device="cuda"), key(machine="other"), key(code="other"),
    ]  # fmt: skip
    assert len({*changed, same[0]}) == len(changed) + 1


def test_a_file_that_is_no_cache(tmp_path):
    (tmp_path / "c.db").write_bytes(b"no database" * 100)
    with pytest.raises(RunError, match=r"cache\.file"):
        EvaluationCache(tmp_path / "c.db", load("digits"), HERE, "run")
