"""Tasks on their way: queued, at work in the pool, or under evaluation by another run that shares the cache."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable

from normforge.search.cache import EvaluationCache
from normforge.search.config import Workers
from normforge.search.funnel import Outcome
from normforge.search.tasks import Task
from normforge.search.workers import WorkerPool, open_pool

_ASK_SECONDS = 1.0  # between two questions whether another run has ended an evaluation
_WAIT_SECONDS = 0.2


class Dispatcher:
    """The way of tasks to workers: gives them what the cache has of each.

    Args:
        work: `module:function` that evaluates a task in a worker.
        workers: where; the pool is opened with the first task, since a finished run needs none.
        cache: of evaluations; None keeps none.
    """

    def __init__(self, work: str, workers: Workers, cache: EvaluationCache | None) -> None:
        self._work, self._workers, self._cache = work, workers, cache
        self._pool: WorkerPool | None = None
        self._queue: deque[Task] = deque()
        self._elsewhere: deque[Task] = deque()  # under evaluation by another run
        self._asked = 0.0  # when the cache was last asked for those
        self._keys: dict[str, dict[str, str]] = {}  # in the cache, of tasks under way

    @property
    def queued(self) -> int:
        """True while tasks wait for a worker here."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """True while any task is on its way."""
        return bool(self._queue or self._elsewhere or (self._pool and self._pool.busy))

    def put(self, tasks: Iterable[Task]) -> None:
        """Queue tasks."""
        self._queue.extend(tasks)

    def drop(self) -> None:
        """Forget the tasks that are not at work in this run."""
        self._queue.clear()
        self._elsewhere.clear()

    def exchange(self, *, more: bool) -> list[tuple[Task, Outcome]]:
        """Give queued tasks to free workers, then wait a moment for whatever ends: not at all where a worker is left
        idle and there is `more` to come.

        Raises:
            RunError: no worker can be started or reached, or the cache cannot be used.
        """
        if self._pool is None:
            self._pool = open_pool(self._work, self._workers)
        now = time.monotonic()
        if self._elsewhere and now > self._asked + _ASK_SECONDS:
            self._asked = now
            self._queue.extendleft(reversed(self._elsewhere))
            self._elsewhere.clear()
        while self._queue and self._pool.free:
            task = self._queue.popleft()
            if (ready := self._with_cache(task)) is not None:
                self._pool.submit(ready)
            else:
                self._elsewhere.append(task)
        ended = self._pool.collect(0.0 if more and self._pool.free else _WAIT_SECONDS)
        for task, outcome in ended:
            if self._cache:
                self._cache.keep(self._keys.pop(task.key), outcome.pieces)
        return ended

    def _with_cache(self, task: Task) -> Task | None:
        """The task with the pieces that the cache has; None while another run evaluates the same layer."""
        if self._cache is None:
            return task
        if task.key not in self._keys:
            self._keys[task.key] = self._cache.keys(task.graph, task.repeat, task.final)
        keys = self._keys[task.key]
        return dataclasses.replace(task, known=self._cache.find(keys)) if self._cache.lease(keys.values()) else None

    def close(self) -> None:
        """End all workers, if there are any, and give leases back."""
        if self._pool:
            self._pool.stop()
        if self._cache:
            self._cache.close()
