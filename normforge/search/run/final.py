"""The end of a run: the best are ranked again on the longer recipe, then trained beside known layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from normforge.ir.graph import Graph
from normforge.search import results
from normforge.search.events import Candidate, Compared, Reranked
from normforge.search.run.dispatcher import Dispatcher
from normforge.search.run.session import Session
from normforge.search.tasks import Task


class FinalPhase:
    """A phase of trainings after the search; those that are stored are not done again.

    Args:
        session: of the run.
        dispatcher: for the trainings.
        event: what each becomes.
        name: of the phase, for people.
        tasks: all of them.
    """

    def __init__(
        self,
        session: Session,
        dispatcher: Dispatcher,
        event: type[Reranked | Compared],
        name: str,
        tasks: Sequence[Task],
    ) -> None:
        self._session, self._dispatcher, self._event = session, dispatcher, event
        missing = [task for task in tasks if (event.TYPE, task.key) not in session.trained]
        dispatcher.put(missing)
        progress = session.progress
        progress.phase, progress.total, progress.done = name, len(tasks), len(tasks) - len(missing)

    def step(self) -> bool:
        """One move: dispatch and wait. False when all is trained."""
        if not self._dispatcher.busy:
            return False
        progress = self._session.progress
        for task, outcome in self._dispatcher.exchange(more=False):
            self._session.store.append([self._event(task.key, progress.elapsed, outcome).record()])
            progress.done += 1
        return True


def best(session: Session) -> list[Candidate]:
    """The layers that are ranked again."""
    return results.best_distinct(results.scored(session.store), session.config.final.candidates, session.space)


def reranking(session: Session, dispatcher: Dispatcher, top: Sequence[Candidate]) -> FinalPhase:
    """The phase of the second ranking, of `best`."""
    repeat = session.config.final.seeds + 1  # weights and batches that neither the search nor the comparison uses
    tasks = [_task(session, c.name, session.space.to_graph(c.genotype), repeat) for c in top]
    return FinalPhase(session, dispatcher, Reranked, "re-ranking", tasks)


def comparison(session: Session, dispatcher: Dispatcher, top: Sequence[Candidate]) -> FinalPhase:
    """The phase of the comparison: the best of `top` after the second ranking, and known layers."""
    final = session.config.final
    found = results.reranked(session.store, top, final.best)
    tasks = [
        _task(session, f"{name}/{repeat}", graph, repeat)
        for repeat in range(1, final.seeds + 1)
        for name, graph in results.final_layers(found, session.config, session.space)
    ]
    return FinalPhase(session, dispatcher, Compared, "final training", tasks)


def telling_apart(session: Session, dispatcher: Dispatcher, top: Sequence[Candidate]) -> Iterator[FinalPhase]:
    """Phases after the comparison: one more training of each found layer, and of the known one nearest to it, as long
    as some pair cannot be told apart."""
    final, config = session.config.final, session.config
    found = results.reranked(session.store, top, final.best)
    graphs = dict(results.final_layers(found, config, session.space))
    for k in range(final.seeds + 1, final.apart + 1):
        rows = results.comparison(session.store, found, config)
        alike = [v for v in results.verdicts(rows, config.networks.use) if not v.apart]
        names = dict.fromkeys(name for v in alike for name in (v.found, v.near.name))
        if not names:
            return
        repeat = k + 1  # the second ranking has the number after `seeds`
        tasks = [_task(session, f"{name}/{repeat}", graphs[name], repeat) for name in names]
        yield FinalPhase(session, dispatcher, Compared, f"telling {len(alike)} from known layers", tasks)


def _task(session: Session, key: str, graph: Graph, repeat: int) -> Task:
    return Task(key, graph, session.config, repeat, final=True)
