"""Runs that an earlier version has made: tests/corpus/run_before holds two, of schema 2, made on digits.

Each was run to its end with 30 candidates, then with 70, and interrupted while some were under way.
"""

import shutil
from pathlib import Path

import pytest
from run_tools import contents, quiet
from search_fabricated import printed

import normforge as nf
from normforge.errors import RunError
from normforge.search import events
from normforge.search.events import Candidate
from normforge.search.reports.lineage import show
from normforge.search.reports.report import report
from normforge.search.reports.summary import summary_of
from normforge.search.run import run
from normforge.search.store import FILE, Record, Store

BEFORE = Path(__file__).parent.parent / "corpus" / "run_before"


@pytest.fixture(params=["fixed", "arrival"])
def before(request, tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    shutil.copy(BEFORE / request.param / FILE, tmp_path / "run" / FILE)
    return tmp_path / "run"


def test_it_is_reported_and_shown(before):
    stored = contents(before)
    drawn = sum(kind == "candidate" for kind, _ in stored)
    console = quiet()
    report(before, console)
    assert f"{drawn} layers drawn" in printed(console) and "bn-relu" in printed(console)
    best = quiet()
    show(f"{before}#best", best)
    assert "#0: scored" in printed(best) and "tanh(x)" in printed(best)
    assert nf.load(f"{before}#0") == nf.parse("tanh(x) * gamma + beta")
    held_out = stored["rerank", "#0"]["holdout"]["resnet"]
    assert f"{held_out:.4g}" in printed(best)


def test_the_nearest_of_its_layers_is_found(before):
    near = nf.check("5 * tanh(x) * gamma", run=before).stored
    assert near is not None and near.name == "#0" and near.cosine > 0.999 and not near.same
    itself = nf.check("tanh(x) * gamma + beta", run=before).stored
    assert itself is not None and itself.same
    other = nf.check(nf.load(f"{before}#0"), run=f"{before}#0").stored
    assert other is not None and other.name != "#0"


def test_what_is_read_is_what_is_stored(before):
    store = Store(before)
    records = list(store.records())
    assert [e.record() for e in events.every(store)] == records
    store.close()


@pytest.mark.parametrize("before", ["arrival", pytest.param("fixed", marks=pytest.mark.slow)], indirect=True)
def test_it_goes_on_and_nothing_is_computed_again(before, tmp_path, monkeypatch):
    """What is under way at the interrupt is evaluated as it was asked for."""
    kept, config = contents(before), summary_of(before).config
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    console = quiet()
    assert run(config, before, console, work="search_faults:real_and_noted")
    assert "other code of normforge" in printed(console)
    after = contents(before)
    assert kept.items() <= after.items()
    assert sorted(int(key) for kind, key in after if kind == "candidate") == list(range(70))
    computed = (tmp_path / "notes").read_text().split()
    evaluations = {key for (kind, key), data in after.items() if kind != "candidate" or "hash" in data}
    stored = {key for (kind, key), data in kept.items() if kind in ("rerank", "final") or "hash" in data}
    assert stored and computed and len(computed) == len(set(computed))
    assert set(computed) == evaluations - stored
    for (kind, key), asked in after.items():
        if kind == "asked":
            assert after["candidate", key].items() >= asked.items()


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        ("candidate", {"genes": [], "parents": []}, "the event candidate 900 lacks 'fate'"),
        ("candidate", {"genes": [], "parents": [], "fate": "lost"}, "'lost' is not a valid Fate"),
        ("final", {"fate": "scored", "energy": 3}, "unknown fields energy"),
        ("merger", {}, "of type 'merger'"),
    ],
)
def test_events_of_another_version_are_named(tmp_path, kind, data, says):
    store = Store(tmp_path, write=True)
    store.append([Record(kind, "900", 0.0, data)])
    with pytest.raises(RunError, match=says):
        list(events.every(store))
    if kind == "candidate":
        with pytest.raises(RunError, match=says):
            events.find(store, Candidate, "900")
    store.close()
