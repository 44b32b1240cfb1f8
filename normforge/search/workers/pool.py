"""A pool of workers, wherever they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from normforge.search.funnel import Outcome
from normforge.search.tasks import Task

STARTUP_SECONDS = 120.0  # for importing torch and timm, on top of the first task's time limit


class WorkerPool(Protocol):
    """A pool of workers, where tasks are evaluated.

    What becomes of a task does not depend on where, or after which others, it was run, as far as time allows.
    """

    @property
    def free(self) -> int:
        """The number of tasks that can be submitted."""

    @property
    def busy(self) -> int:
        """The number of tasks that are under way."""

    def submit(self, task: Task) -> None:
        """Begin a task; `free` must not be 0."""

    def collect(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """Wait up to `timeout` seconds until at least one task has ended: with an outcome, by a crash, at a limit.

        Raises:
            RunError: no worker can be started or reached.
        """

    def stop(self) -> None:
        """End all workers and what they started; tasks under way are lost."""


def run_all(pool: WorkerPool, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
    """The tasks as they end; each is submitted as soon as there is room.

    Raises:
        RunError: no worker can be started or reached.
    """
    waiting = deque(tasks)
    while waiting or pool.busy:
        while waiting and pool.free:
            pool.submit(waiting.popleft())
        yield from pool.collect(1.0)
