"""Workers on many machines: Ray actors, each with one local worker.

Ray places the actors and notices when machines go; limits and crashes are the local pool's business on the actor's own
machine. So whatever a candidate does ends as it would without Ray, and an actor that is lost is not the candidate's
fault: its task is run again elsewhere. All nodes need the same Python, Ray and normforge.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normforge.errors import OptionError, RunError
from normforge.search.config import Workers
from normforge.search.funnel import Fate, Outcome
from normforge.search.tasks import Task
from normforge.search.workers.local import LocalPool
from normforge.search.workers.pool import STARTUP_SECONDS

_PLACE_SECONDS = 600.0  # without any worker, which a cluster that grows may take
_LISTEN_SECONDS = 5.0
_OBJECT_STORE = 80 * 2**20  # bytes; tasks and outcomes are small, and Ray takes no less than 75 MiB
# Ray prints what happens to nodes and actors on standard output, and reads these when it is imported.
_QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_SCHEDULER_EVENTS": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class Host:
    """A Ray actor: a local pool of one worker."""

    def __init__(self, work: str, config: Workers) -> None:
        self._pool = LocalPool(work, config.model_copy(update={"on": "local", "count": 1}))

    def node(self) -> str:
        """The id of the node that the actor was placed on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def run(self, task: Task) -> Outcome:
        """The outcome of a task; it takes `time_limit`, twice if the worker is killed from outside."""
        self._pool.submit(task)
        while True:
            for _, outcome in self._pool.collect(3600.0):
                return outcome


@dataclass
class _Actor:
    handle: Any
    node: str = ""  # known once it is placed
    task: Task | None = None
    deadline: float = math.inf


class RayPool:
    """A pool of actors: of the Ray cluster that `config.on` names, or of one started here; arguments as of `open_pool`.

    A task is only given to an actor that is placed, so one that finds no room on the cluster delays nothing.
    """

    def __init__(self, work: str, config: Workers) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError:
            raise OptionError(f"workers.on = {config.on!r} needs Ray: pip install 'normforge[ray]'") from None
        self._ray: Any = ray
        self._work, self._config = work, config
        self._queue: deque[Task] = deque()
        self._idle: list[_Actor] = []
        self._waiting: dict[Any, _Actor] = {}  # by the reference to its answer: its node at first, then an outcome
        self._lost: Counter[str] = Counter()  # actors, by the key of the task that they had
        self._heard = time.monotonic()  # from any actor
        self._connected_here = _connect(ray, config)
        self._share = self._gpu_share()
        self._remote = ray.remote(Host).options(
            num_cpus=config.threads, num_gpus=self._share, max_restarts=0, max_task_retries=0
        )

    @property
    def free(self) -> int:
        """The number of tasks that can be submitted."""
        return self._config.count - self.busy

    @property
    def busy(self) -> int:
        """The number of tasks that are under way or wait for an actor."""
        return len(self._queue) + sum(a.task is not None for a in self._waiting.values())

    def submit(self, task: Task) -> None:
        """Give a task to the first actor that is free."""
        if not self.busy:
            self._heard = time.monotonic()
        self._queue.append(task)
        self._dispatch()

    def collect(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """Wait up to `timeout` seconds until at least one task has ended.

        Raises:
            RunError: Ray is gone, places no worker, or normforge does not work on one of its nodes.
        """
        ended: list[tuple[Task, Outcome]] = []
        end = time.monotonic() + timeout
        while True:
            try:
                for reference in self._answered(max(0.0, end - time.monotonic())):
                    self._hear(reference, self._waiting.pop(reference), ended)
                self._check_deadlines(ended)
                self._dispatch()
            except (ConnectionError, self._ray.exceptions.RaySystemError) as e:
                raise RunError(f"the Ray cluster does not answer: {_first_line(e)}; start the run again") from None
            if ended or time.monotonic() >= end:
                return ended

    def stop(self) -> None:
        """End all workers and what they started; tasks under way are lost."""
        for actor in (*self._idle, *self._waiting.values()):
            self._kill(actor)
        self._idle, self._waiting = [], {}
        self._queue.clear()
        if self._connected_here:
            with _own_sigterm():
                self._ray.shutdown()

    def _gpu_share(self) -> float:
        """Of one GPU for each worker, such that all find a place."""
        gpus = 0 if self._config.device == "cpu" else int(self._ray.cluster_resources().get("GPU", 0))
        if not gpus and self._config.device == "cuda":
            self.stop()
            raise OptionError("workers.device = cuda, but no node of the Ray cluster has a GPU")
        return math.floor(1e4 / math.ceil(self._config.count / gpus)) / 1e4 if gpus else 0.0

    def _dispatch(self) -> None:
        """Hand out what waits, and start actors for the rest."""
        while self._queue and self._idle:
            actor, task = self._idle.pop(), self._queue.popleft()
            actor.task = task
            # The local pool keeps the time; this is for an actor that says nothing at all.
            actor.deadline = time.monotonic() + 2 * (self._config.time_limit + STARTUP_SECONDS) + 60
            self._waiting[actor.handle.run.remote(task)] = actor
        starting = sum(a.task is None for a in self._waiting.values())
        room = self._config.count - len(self._waiting) - len(self._idle)
        for _ in range(min(room, len(self._queue) - starting)):
            actor = _Actor(self._remote.remote(self._work, self._config))
            self._waiting[actor.handle.node.remote()] = actor

    def _answered(self, timeout: float) -> list[Any]:
        references = list(self._waiting)
        if not references:
            time.sleep(timeout)
            return []
        nearest = min(a.deadline for a in self._waiting.values()) - time.monotonic()
        self._ray.wait(references, timeout=max(0.0, min(timeout, nearest)))
        return list(self._ray.wait(references, num_returns=len(references), timeout=0)[0])

    def _hear(self, reference: Any, actor: _Actor, ended: list[tuple[Task, Outcome]]) -> None:
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except errors.RaySystemError:
            raise
        except errors.RayTaskError as e:  # of `Host`, never of a candidate
            raise RunError(f"{_first_line(e.cause or e)} (on a Ray node: in Ray's log there)") from None
        except errors.RayError as e:
            if getattr(e, "actor_init_failed", False):
                why = str(e).strip().splitlines()[-1]
                raise RunError(f"a Ray worker does not start ({why}): install normforge on all nodes") from None
            self._lose(actor, e, ended)
            return
        self._heard, actor.deadline = time.monotonic(), math.inf
        if actor.task is None:
            actor.node = answer
        else:
            ended.append((actor.task, answer))
            actor.task = None
        self._idle.append(actor)

    def _check_deadlines(self, ended: list[tuple[Task, Outcome]]) -> None:
        now = time.monotonic()
        for reference, actor in list(self._waiting.items()):
            if now > actor.deadline:
                self._lose(self._waiting.pop(reference), TimeoutError(), ended)
        if self._queue and now > self._heard + _PLACE_SECONDS and all(a.task is None for a in self._waiting.values()):
            needs = f"{self._config.threads} CPUs" + (" and a share of a GPU" if self._share else "")
            raise RunError(f"Ray has found no place for a worker, which needs {needs}, in {_PLACE_SECONDS:g} s")

    def _lose(self, actor: _Actor, error: Exception, ended: list[tuple[Task, Outcome]]) -> None:
        """An actor is gone: its task is run again, unless it is the second that went alone, and not with its node."""
        self._kill(actor)
        if actor.task is None:
            return
        key, errors = actor.task.key, self._ray.exceptions
        # Ray says "unavailable" of an actor whose node does not answer, and finds out later that the node is dead.
        with_node = isinstance(error, errors.ActorUnavailableError | errors.NodeDiedError)
        if not with_node and not getattr(error, "preempted", False):
            self._lost[key] += any(n["Alive"] and n["NodeID"] == actor.node for n in self._ray.nodes())
        if self._lost[key] < 2:
            self._queue.appendleft(actor.task)
        elif isinstance(error, errors.OutOfMemoryError):
            ended.append((actor.task, Outcome(Fate.MEMORY, "ended by Ray twice: its node had no memory left")))
        else:
            reason = f"its Ray worker was lost twice on nodes that go on ({type(error).__name__})"
            ended.append((actor.task, Outcome(Fate.CRASHED, reason)))

    def _kill(self, actor: _Actor) -> None:
        with suppress(self._ray.exceptions.RayError, ValueError, ConnectionError):
            self._ray.kill(actor.handle)


def _connect(ray: Any, config: Workers) -> bool:
    """Join the cluster, or start one for `ray` where none is; False if this process has joined one before."""
    if ray.is_initialized():
        return False
    address = _started_cluster() if config.on == "ray" else config.on
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _own_sigterm():
            if address:
                _check_listens(address)
                # With "auto" Ray finds the cluster's token too; a cluster elsewhere needs it in the environment.
                ray.init("auto" if config.on == "ray" else address, **quiet)
            else:
                cpus = max(os.cpu_count() or 1, config.count * config.threads)
                ray.init("local", num_cpus=cpus, object_store_memory=_OBJECT_STORE, include_dashboard=False, **quiet)
    except (OSError, RuntimeError, ValueError) as e:
        what = f"the cluster at {address} does not let us in" if address else "Ray does not start"
        hint = "; a cluster that asks for a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" if address else ""
        raise RunError(f"workers.on = {config.on}: {what}: {_first_line(e)}{hint}") from None
    return True


def _started_cluster() -> str | None:
    """Address of the cluster in RAY_ADDRESS, or of the last `ray start` on this machine if that still runs.

    "auto" alone would join any Ray on this machine, also one that another run started for itself and will take down.
    """
    given = os.environ.get("RAY_ADDRESS", "auto") or "auto"
    if given != "auto":
        return None if given == "local" else given
    with suppress(OSError, ValueError):
        address = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text().strip()
        _check_listens(address)  # the file outlives a cluster that was killed
        return address
    return None


def _check_listens(address: str) -> None:
    """Ray itself tries for minutes, and says so on standard error."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _LISTEN_SECONDS).close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts its own handler of SIGTERM in the place of the run's, which lets the current write end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
