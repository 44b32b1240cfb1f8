import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from search_fabricated import THREE, chain_of_three, finished, stored

from normforge.errors import OptionError, RunError
from normforge.search.reports.exports import to_optuna, to_tensorboard
from normforge.search.reports.plots import best_so_far


@pytest.fixture(scope="module", params=[1, 3])
def run(request, tmp_path_factory) -> Path:
    """Finished runs with one and with three networks."""
    more = [] if request.param == 1 else [THREE, "evolution.crossover=0.3"]
    return finished(tmp_path_factory.mktemp("runs") / "run", *more)


def test_a_study_for_optuna(run, tmp_path):
    optuna = pytest.importorskip("optuna")
    to_optuna(run, str(tmp_path / "study.journal"))
    with pytest.raises(RunError, match="has a study"):
        to_optuna(run, str(tmp_path / "study.journal"))
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )
    study = optuna.load_study(study_name=run.name, storage=storage)
    events = {int(k): d for k, d in stored(run, "candidate").items() if "hash" in d}
    assert len(study.trials) == len(events)
    assert all(d == optuna.study.StudyDirection.MINIMIZE for d in study.directions)
    states = {"scored": "COMPLETE"} | dict.fromkeys(("error", "timeout", "crashed", "memory"), "FAIL")
    for trial in study.trials:
        event = events[trial.user_attrs["index"]]
        assert trial.state.name == states.get(event["fate"], "PRUNED")
        assert trial.values == (list(event["scores"].values()) if "scores" in event else None)
        assert trial.user_attrs["reason"] == event.get("reason", "")
        assert trial.user_attrs["formula"] == event["formula"]
        for node, (primitive, *operands) in enumerate(event["genes"], 4):
            assert trial.params[f"n{node}"] == primitive
            assert [trial.params[f"n{node}.{k}"] for k in range(len(operands))] == operands
        assert trial.datetime_start <= trial.datetime_complete <= datetime.now()


def test_a_study_in_a_database(tmp_path):
    optuna = pytest.importorskip("optuna")
    chain_of_three(tmp_path / "run")
    storage = f"sqlite:///{tmp_path}/study.db"
    to_optuna(tmp_path / "run", storage)
    study = optuna.load_study(study_name="run", storage=storage)
    assert study.best_value == 0.7 and len(study.trials) == 6
    with pytest.raises(RunError, match="delete-study"):
        to_optuna(tmp_path / "run", storage)
    with pytest.raises(OptionError, match="cannot be used"):
        to_optuna(tmp_path / "run", f"sqlite:///{tmp_path}/no/such/study.db")


def test_scalars_for_tensorboard(run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    to_tensorboard(run, tmp_path / "log")
    with pytest.raises(RunError, match="already"):
        to_tensorboard(run, tmp_path / "log")
    log = EventAccumulator(str(tmp_path / "log"), size_guidance={"scalars": 0})
    log.Reload()
    events = list(stored(run, "candidate").values())
    evaluated = [d for d in events if "hash" in d]
    for name in evaluated and next(d for d in evaluated if "scores" in d)["scores"]:
        scores = [(k, d["scores"][name]) for k, d in enumerate(evaluated, 1) if "scores" in d]
        assert [(s.step, s.value) for s in log.Scalars(f"score/{name}")] == [(k, pytest.approx(v)) for k, v in scores]
        best = best_so_far([v for _, v in scores]).tolist()
        assert [s.value for s in log.Scalars(f"best/{name}")] == pytest.approx(best)
    last = len(events) - next(k for k, d in enumerate(reversed(events)) if "hash" in d)
    for fate, count in Counter(d["fate"] for d in events[:last]).items():
        assert log.Scalars(f"fates/{fate}")[-1].value == count
    assert all(s.wall_time > 1e9 for s in log.Scalars("best/resnet"))


@pytest.mark.parametrize(("missing", "export"), [("torch.utils.tensorboard", to_tensorboard), ("optuna", to_optuna)])
def test_exports_say_what_to_install(run, tmp_path, monkeypatch, missing, export):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(OptionError, match=r"pip install 'normforge\[export\]'"):
        export(run, tmp_path / "out")
