"""Work functions that the tests plant in worker processes."""

import os
import signal
import time

from normforge.search.funnel import Fate, Outcome
from normforge.search.tasks import Task


def by_key(task: Task) -> Outcome:
    """Does what the task's key says."""
    if task.key == "raise":
        raise ValueError("a fault that was planted")
    if task.key == "exit":
        os._exit(3)
    if task.key == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.key == "hang":
        time.sleep(3600)
    return Outcome(Fate.SCORED, loss=1.0, accuracy=0.5)


def real_but_for_one(task: Task) -> Outcome:
    """The real evaluation, but for one candidate."""
    from normforge.search.evaluate import run_task

    if not task.final and task.key == "6":
        raise ValueError("a fault that was planted")
    return run_task(task)
