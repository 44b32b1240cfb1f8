"""A run in the words of other tools: scalars for TensorBoard, a study for Optuna and its dashboard."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normforge.errors import OptionError, RunError
from normforge.search import events
from normforge.search.events import Candidate, Promoted
from normforge.search.funnel import Fate
from normforge.search.reports.summary import Summary, summarise
from normforge.search.space import INITIAL, SearchSpace
from normforge.search.store import Store

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_INSTALL = "install it with pip install 'normforge[export]'"
_FAILED = (Fate.ERROR, Fate.CRASHED, Fate.TIMEOUT, Fate.MEMORY)


def to_tensorboard(directory: Path, out: Path) -> None:
    """Write a run as TensorBoard scalars, at the times at which things happened; a step is an evaluation.

    `score/*` are scores of each scored layer by objective, `best/*` the least so far, `accuracy/*` validation
    accuracies by network, `fates/*` how many candidates had ended so by then.

    Args:
        directory: of the run.
        out: directory of the log; it must not hold one already, since TensorBoard would mix the two.

    Raises:
        OptionError: TensorBoard is not installed.
        RunError: the run cannot be read, or `out` cannot be used.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise OptionError(f"TensorBoard is not there: {_INSTALL}") from None
    with _run(directory) as (store, _):
        if out.is_file() or any(out.glob("events.out.tfevents*")):
            raise RunError(f"{out} holds something already: give a new directory for the scalars")
        try:
            writer = SummaryWriter(str(out))
        except OSError as e:
            raise RunError(f"the scalars cannot be written into {out} ({e.strerror}): give another directory") from None
        with writer:
            for name, value, step, at in _scalars(store):
                writer.add_scalar(name, value, step, walltime=at)


def _scalars(store: Store) -> Iterator[tuple[str, float, int, float]]:
    """Name, value, step and time."""
    times = {cls.TYPE: store.times(cls.TYPE) for cls in (Candidate, Promoted)}
    best: dict[str, float] = {}
    fates: Counter[Fate] = Counter()
    changed: set[Fate] = set()
    step = 0
    fate_of: dict[int, Fate] = {}
    for event in events.every(store):
        if not isinstance(event, (Candidate, Promoted)):
            continue
        outcome, at = event.outcome, times[event.TYPE][event.record().key]
        if event.index in fate_of:  # it was promoted
            fates[fate_of[event.index]] -= 1
            changed.add(fate_of[event.index])
        fates[outcome.fate] += 1
        changed.add(outcome.fate)
        if isinstance(event, Candidate) and not event.evaluated:
            continue
        fate_of[event.index] = outcome.fate
        step += 1
        for fate in sorted(changed):
            yield f"fates/{fate}", fates[fate], step, at
        changed.clear()
        rung = "" if outcome.fate is Fate.SCORED else f" on {outcome.rung}"  # losses of other rungs do not compare
        for name, score in ((name + rung, score) for name, score in outcome.scores.items()):
            best[name] = min(score, best.get(name, score))
            yield f"score/{name}", score, step, at
            yield f"best/{name}", best[name], step, at
        for network, accuracy in outcome.accuracy.items() if outcome.scores else ():
            yield f"accuracy/{network}{rung}", accuracy, step, at
    for fate in sorted(changed):  # refused after the last evaluation
        yield f"fates/{fate}", fates[fate], step, at


def to_optuna(directory: Path, storage: str) -> None:
    """Write a run as a study named after its directory, with one trial for each evaluated candidate.

    Values are scores by objective, all to minimise; parameters are the genes (`n4` is the primitive of the first drawn
    node, `n4.0` the node that it reads first); fate, reason, formula, parents and seconds are user attributes. A
    scored candidate is COMPLETE, one that a stage refused PRUNED, one that failed otherwise FAIL.

    Args:
        directory: of the run.
        storage: a database, such as `sqlite:///study.db`, or a file, which becomes a journal: 5 ms a trial instead of
            a database's 50 or more. Optuna's dashboard opens both.

    Raises:
        OptionError: Optuna is not installed, or there is no such storage.
        RunError: the run cannot be read, or the storage has a study of this name.
    """
    try:
        import optuna
        from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise OptionError(f"Optuna is not there: {_INSTALL}") from None
    name = directory.resolve().name
    with _run(directory) as (store, summary):
        times, distributions = store.times("candidate"), _distributions(SearchSpace(summary.config.space))
    trials = [_trial(c, summary, times[str(c.index)], distributions) for c in summary.evaluated]
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(summary.objectives)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(study_name=name, storage=_storage(storage), directions=directions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(summary.objectives))
        study.set_user_attr("settings", summary.config.model_dump(mode="json"))
        study.add_trials(trials)
    except DuplicatedStudyError:
        raise RunError(
            f"{storage} has a study {name!r} already: give another storage, or remove it with "
            f"optuna delete-study --study-name {name} --storage {storage}"
        ) from None
    except (SQLAlchemyError, ValueError, ImportError, OSError) as e:
        reason = str(e).strip().split("\n")[0]
        raise OptionError(f"the storage {storage} cannot be used ({reason}): write sqlite:///FILE, or FILE") from None
    finally:
        optuna.logging.set_verbosity(before)


def _storage(text: str) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return text if "://" in text else JournalStorage(JournalFileBackend(text))


def _distributions(drawn: SearchSpace) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    primitives = CategoricalDistribution(tuple(drawn.primitives))
    found: dict[str, BaseDistribution] = {}
    for node in range(INITIAL, INITIAL + drawn.nodes):
        found[f"n{node}"] = primitives
        for k in range(max(p.arity for p in drawn.primitives.values())):
            found[f"n{node}.{k}"] = IntDistribution(0, node - 1)
    return found


def _trial(
    candidate: Candidate, summary: Summary, ended: float, distributions: dict[str, BaseDistribution]
) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    outcome = candidate.outcome
    params: dict[str, Any] = {}
    for node, gene in enumerate(candidate.genotype, INITIAL):
        params[f"n{node}"] = gene.primitive
        params |= {f"n{node}.{k}": operand for k, operand in enumerate(gene.inputs)}
    scored = outcome.fate is Fate.SCORED
    trial = create_trial(
        state=TrialState.COMPLETE if scored else TrialState.FAIL if outcome.fate in _FAILED else TrialState.PRUNED,
        values=[outcome.scores[name] for name in summary.objectives] if scored else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs={
            "index": candidate.index,
            "fate": str(outcome.fate),
            "reason": outcome.reason,
            "formula": candidate.formula,
            "parents": list(candidate.parents),
            "seconds": outcome.seconds,
        },
    )
    trial.datetime_complete = datetime.fromtimestamp(ended)
    trial.datetime_start = trial.datetime_complete - timedelta(seconds=candidate.seconds)
    return trial


@contextmanager
def _run(directory: Path) -> Iterator[tuple[Store, Summary]]:
    store = Store(directory)
    try:
        yield store, summarise(store)
    finally:
        store.close()
