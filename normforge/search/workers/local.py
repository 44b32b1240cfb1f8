"""Workers on this machine. A task that crashes, raises, hangs or takes all memory costs itself alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from normforge.errors import RunError
from normforge.search.config import Workers
from normforge.search.funnel import GPU_FULL, Fate, Outcome
from normforge.search.tasks import Task
from normforge.search.workers.gpus import Gpu, visible_gpus
from normforge.search.workers.pool import STARTUP_SECONDS

_END_SECONDS = 15.0  # a guard needs less, unless the kernel does not let go of a process
_FAILED_STARTS = 3  # one after the other, before the run is given up
_GUARD = Path(__file__).with_name("guard.py")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read when the libraries are loaded
# Signals that are sent by the kernel, an administrator or a batch system; a faulty computation raises others.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT)


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]  # the guard, which leads a session of its own
    pipe: Connection  # to the worker: tasks and outcomes
    control: Connection  # to its guard: closing it ends both, and the guard's verdict comes from it
    gpu: Gpu | None = None
    alone: bool = False  # nothing may run beside its task
    ready: bool = False
    fresh: bool = True  # no task has ended in it
    mute: bool = False  # its pipe is closed; the guard will say why
    task: Task | None = None
    deadline: float = 0.0
    killed: int = 0  # how often a worker of this task was killed from outside


class LocalPool:
    """A pool of processes on this machine, `config.count` at most; see `open_pool` for the first two arguments.

    Where there are GPUs, each worker has one, and each GPU as many workers as it has memory for by the most that a task
    has taken so far: one at first, and one more with each that has ended. A task that finds no memory beside others is
    run again alone.

    Args:
        gpus: to work on, none for the CPU; what `config.device` asks for where it is left out.
    """

    def __init__(self, work: str, config: Workers, gpus: Sequence[Gpu] | None = None) -> None:
        self._work, self._config = work, config
        self._gpus = visible_gpus(config.device) if gpus is None else list(gpus)
        self._peak = 0.0  # MiB on a GPU, of all tasks so far
        self._alone: deque[Task] = deque()  # to be run with nothing beside them
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    @property
    def free(self) -> int:
        """The number of tasks that can be submitted."""
        if self._alone or any(w.alone for w in self._workers):
            return 0
        left = self._config.count - self.busy
        return min(left, sum(self._left(g) for g in self._gpus)) if self._gpus else left

    @property
    def busy(self) -> int:
        """The number of tasks that are under way."""
        return sum(w.task is not None for w in self._workers) + len(self._alone)

    def submit(self, task: Task) -> None:
        """Give a task to a free worker, which is started if need be."""
        for idle in [w for w in self._workers if w.task is None]:
            if idle.pipe.poll() or idle.control.poll():  # it died after its last task
                self._end(idle)
        gpu = max(self._gpus, key=self._left, default=None)
        worker = next((w for w in self._workers if w.task is None and w.gpu is gpu), None)
        self._give(task, worker or self._start(gpu))

    def _left(self, gpu: Gpu) -> int:
        """How many more tasks a GPU can take."""
        at_work = sum(w.gpu is gpu and w.task is not None for w in self._workers)
        return max(0, gpu.room(self._peak) - at_work)

    def collect(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """Wait up to `timeout` seconds until at least one task has ended.

        Raises:
            RunError: workers die before they are ready, one after the other.
        """
        ended: list[tuple[Task, Outcome]] = []
        end = time.monotonic() + timeout
        while True:
            nearest = min((w.deadline for w in self._workers if w.task is not None), default=end)
            connections = [w.pipe for w in self._workers if not w.mute] + [w.control for w in self._workers]
            ready = set(wait(connections, max(0.0, min(end, nearest) - time.monotonic())))
            for worker in list(self._workers):
                self._look(worker, worker.pipe in ready, worker.control in ready, ended)
            if self._alone and self.busy == len(self._alone):
                self._run_alone()
            if ended or time.monotonic() >= end:
                return ended

    def stop(self) -> None:
        """End all workers and what they started; tasks under way are lost."""
        for worker in self._workers:  # all are told before any is waited for
            worker.control.close()
        for worker in list(self._workers):
            self._end(worker)

    def _run_alone(self) -> None:
        """The next of the tasks that found no memory, on a GPU that no other worker holds memory of."""
        gpu = self._gpus[0]
        for worker in [w for w in self._workers if w.gpu is gpu]:
            self._end(worker)
        worker = self._start(gpu)
        worker.alone = True
        self._give(self._alone.popleft(), worker)

    def _start(self, gpu: Gpu | None) -> _Worker:
        (pipe, workers_end), (control, guards_end) = Pipe(), Pipe()
        descriptors = (workers_end.fileno(), guards_end.fileno())
        limit = round(self._config.memory_limit * 2**30)
        process = subprocess.Popen(
            # -P: or the modules of this folder would come before the standard library's
            [sys.executable, "-P", str(_GUARD), *map(str, (*descriptors, os.getpid(), limit))],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env=os.environ | dict.fromkeys(_THREADS, str(self._config.threads)) | _only(gpu),
            start_new_session=True,  # away from the terminal's Ctrl-C, which is for the main process to answer
        )
        workers_end.close()
        guards_end.close()
        worker = _Worker(process, pipe, control, gpu)
        self._workers.append(worker)
        with suppress(OSError):  # it has died; `collect` will hear of it
            pipe.send(sys.path)
            pipe.send((self._work, self._config))
        return worker

    def _give(self, task: Task, worker: _Worker, killed: int = 0) -> None:
        worker.task, worker.killed = task, killed
        worker.deadline = time.monotonic() + self._config.time_limit + (0 if worker.ready else STARTUP_SECONDS)
        with suppress(OSError):  # it has died; `collect` will hear of it
            worker.pipe.send(task)

    def _look(self, worker: _Worker, spoke: bool, gone: bool, ended: list[tuple[Task, Outcome]]) -> None:
        """See to one worker, whose pipe and control have something to read or not."""
        if worker not in self._workers:  # ended for what another had to say
            return
        if spoke:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                worker.mute = True
            else:
                self._hear(worker, message, ended)
            return  # the guard's word waits for the next round
        if gone:
            self._bury(worker, ended)
        elif worker.task is not None and time.monotonic() > worker.deadline:
            self._end(worker)
            reason = f"stopped at the time limit of {self._config.time_limit:g} s"
            self._settle(worker, Outcome(Fate.TIMEOUT, reason), ended)

    def _hear(self, worker: _Worker, message: tuple[Outcome, bool] | float, ended: list[tuple[Task, Outcome]]) -> None:
        if isinstance(message, float):
            worker.ready, self._failed_starts = True, 0
            worker.deadline = time.monotonic() + self._config.time_limit
            if worker.gpu and not worker.gpu.memory:
                worker.gpu.memory = message
            return
        outcome, spent = message
        if spent:
            self._end(worker)
        self._settle(worker, outcome, ended)
        worker.task, worker.fresh, worker.alone = None, False, False
        if worker.gpu and outcome.seconds.keys() & {Fate.QUALITY, Fate.FULL}:  # others took no memory to speak of
            self._peak = max(self._peak, outcome.peak)
            worker.gpu.trained += 1
            self._end_spare()

    def _end_spare(self) -> None:
        """Idle workers for which there is no room any more: torch keeps what a task has freed."""
        for gpu in self._gpus:
            here = [w for w in self._workers if w.gpu is gpu]
            for idle in [w for w in here if w.task is None][: max(0, len(here) - gpu.room(self._peak))]:
                self._end(idle)

    def _bury(self, worker: _Worker, ended: list[tuple[Task, Outcome]]) -> None:
        """A worker is gone: hear from its guard why."""
        code, over = None, False
        with suppress(EOFError, OSError):  # the guard was killed itself
            code, over = worker.control.recv()
        self._end(worker)
        if over:
            outcome = Outcome(Fate.MEMORY, f"stopped at the memory limit of {self._config.memory_limit:g} GiB")
        else:
            code = worker.process.returncode if code is None else code
            how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
            if worker.task is not None and worker.ready and code in _FROM_OUTSIDE:
                if not worker.killed:  # not the task's fault, unless it happens again
                    self._again(worker, killed=1)
                    return
                how += " twice, by itself or from outside: the system may have run out of memory"
            outcome = Outcome(Fate.CRASHED, f"the worker died ({how})")
        self._settle(worker, outcome, ended)

    def _settle(self, worker: _Worker, outcome: Outcome, ended: list[tuple[Task, Outcome]]) -> None:
        """Record the end of a worker's task, or run it again where it may be the worker's fault."""
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise RunError(f"worker processes do not start: {outcome.reason}; see the messages above")
        if worker.task is None:
            return
        beside = worker.gpu and any(w.gpu is worker.gpu and w is not worker for w in self._workers)
        if beside and outcome.fate is Fate.MEMORY and outcome.reason.startswith(GPU_FULL):
            self._alone.append(worker.task)
        # Earlier tasks may have left the worker with less memory.
        elif worker.ready and (worker.fresh or outcome.fate is not Fate.MEMORY):
            ended.append((worker.task, outcome))
        else:
            self._again(worker, worker.killed)

    def _again(self, worker: _Worker, killed: int) -> None:
        """Give the task of a worker that has ended to a fresh one."""
        assert worker.task is not None
        fresh = self._start(worker.gpu)
        fresh.alone = worker.alone
        self._give(worker.task, fresh, killed)

    def _end(self, worker: _Worker) -> None:
        """End a worker and whatever it started, and forget it."""
        self._workers.remove(worker)
        worker.control.close()
        worker.pipe.close()
        try:
            worker.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        with suppress(ProcessLookupError, PermissionError):  # what is left where the guard could not see to it
            os.killpg(worker.process.pid, signal.SIGKILL)


def _only(gpu: Gpu | None) -> dict[str, str]:
    """The environment in which CUDA sees no other."""
    return {"CUDA_VISIBLE_DEVICES": gpu.name} if gpu else {}
