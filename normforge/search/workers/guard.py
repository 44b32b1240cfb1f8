"""The process side of a worker: a guard that runs none of the candidate's code, and the worker that it forks.

Run as a script, not imported. The guard stays between the main process and one worker. It ends the worker and all
that the worker started when the main process closes its pipe or is gone, when their memory is above the limit, or
when the worker is gone; then it reports what it saw and ends too. It is a process and not a thread, because a candidate
may hold the interpreter lock for ever or take its whole process down. On Linux it adopts orphans, so that neither
`setsid` nor the death of a parent takes a process out of its reach.

Arguments: the file descriptors of the worker's and the guard's pipe, the main process, and the limit in bytes.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:  # the guard itself stays small, and forks before any library starts a thread
    from normforge.search.config import Workers
    from normforge.search.funnel import Outcome
    from normforge.search.tasks import Task

LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LOOK_SECONDS, _MEMORY_SECONDS, _END_SECONDS = 0.05, 0.25, 10.0
_LOST_DEVICE = ("CUDA error", "AcceleratorError")


def main(worker_pipe: int, guard_pipe: int, parent: int, limit: int) -> None:
    """The process of a guard: forks the worker and stays with it."""
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where the main process ignores it, there is no exit code
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # gigabytes a crash
    guard = os.getpid()
    worker = os.fork()
    if not worker:
        os.close(guard_pipe)
        _end_with(guard)
        _serve(Connection(worker_pipe))
        return
    os.close(worker_pipe)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for all: the guard still has to clean up
        signal.signal(number, signal.SIG_IGN)
    control = Connection(guard_pipe)
    verdict = _watch(worker, control, parent, limit)
    _end_all()
    with suppress(OSError):
        control.send(verdict)


# -- the guard


def _watch(worker: int, control: Connection, parent: int, limit: int) -> tuple[int | None, bool]:
    """Waits for an end: the worker's exit code if it went by itself, and whether memory was above the limit."""
    next_check = 0.0
    while True:
        code = _reap(worker)
        if code is not None:
            return code, False
        if control.poll(_LOOK_SECONDS) or os.getppid() != parent:
            return None, False
        start = time.monotonic()
        if start >= next_check:
            if _above(limit):
                return None, True
            now = time.monotonic()
            next_check = now + max(_MEMORY_SECONDS, 50 * (now - start))  # 2 % of a core where processes are many


def _reap(worker: int) -> int | None:
    """Bury what has ended, orphans too; the worker's exit code if it is among them."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == worker:
                return os.waitstatus_to_exitcode(status)
            if not pid:
                break
    return None


def _above(limit: int) -> bool:
    """Whether the worker and what it started have more than `limit` bytes resident."""
    tree = psutil.Process().children(recursive=True)
    total = 0
    for process in tree:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    if LINUX and total > limit and len(tree) > 1:  # pages that processes share were counted in each of them
        total = 0
        for process in tree:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss  # slow, so it comes last
    return total > limit


def _end_all() -> None:
    """Kill until nothing is left: what is forked meanwhile is found in the next round."""
    end = time.monotonic() + _END_SECONDS
    while (tree := psutil.Process().children(recursive=True)) and time.monotonic() < end:
        for process in tree:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.005)
        _reap(0)


# -- the worker


def _serve(pipe: Connection) -> None:
    """Answer the GPU's memory in MiB when ready (0.0 on the CPU), then every task with its outcome and whether this
    process had better be replaced."""
    sys.path[:] = pipe.recv()
    work, config = pipe.recv()
    module, _, name = work.partition(":")
    function: Callable[[Task], Outcome] = getattr(import_module(module), name)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(config.threads)
    limit = None
    if LINUX and not _on_cuda(config):
        memory = psutil.Process().memory_info()
        limit = memory.data + round(config.memory_limit * 2**30) - memory.rss  # what is writable when the rest is used
        if limit <= memory.data:
            sys.exit(f"a worker alone takes {memory.rss / 2**30:.2g} GiB: give a larger workers.memory_limit")
    pipe.send(torch.cuda.mem_get_info()[1] / 2**20 if torch and _on_cuda(config) else 0.0)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        outcome = _attempt(function, task, limit, config.memory_limit)
        if pool := sys.modules.get("normforge.kernels.pool"):
            pool.empty_pool()  # or the next task would be charged for this one's memory
        # After a fault of the device its context is lost, with all that is on it.
        spent = outcome.fate == "memory" or any(sign in outcome.reason for sign in _LOST_DEVICE) or _left_behind()
        try:
            pipe.send((outcome, spent))
        except OSError:
            return


def _attempt(function: Callable[[Task], Outcome], task: Task, limit: int | None, allowed: float) -> Outcome:
    from normforge.search.funnel import GPU_FULL, Fate, Outcome, out_of_memory

    try:
        with _data_limit(limit):
            outcome = function(task)
            torch = sys.modules.get("torch")
            if torch and torch.cuda.is_initialized():
                torch.cuda.synchronize()  # a fault of a kernel under way is this task's, not the next one's
            return outcome
    except Exception as e:
        text = str(e)
        message = (text.strip() or "no message").splitlines()[0]
        if out_of_memory(e):
            if "CUDA" in text or "CUDNN" in text:
                return Outcome(Fate.MEMORY, f"{GPU_FULL}: {message}")
            if limit is None:
                return Outcome(Fate.MEMORY, f"the machine has no memory left: {message}")
            return Outcome(Fate.MEMORY, f"stopped at the memory limit of {allowed:g} GiB")
        return Outcome(Fate.ERROR, f"{type(e).__name__}: {message}")


@contextmanager
def _data_limit(limit: int | None) -> Iterator[None]:
    """A bomb gets MemoryError at once. For the task alone: answering for it takes memory too."""
    if limit is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [n for n in (limit, soft, hard) if n != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _on_cuda(config: Workers) -> bool:
    """CUDA reserves far more than it uses, so that a limit on the address space would stop it."""
    torch = sys.modules.get("torch")
    return config.device == "cuda" or (config.device == "auto" and torch is not None and torch.cuda.is_available())


def _left_behind() -> bool:
    """Whether the task left processes that would run on beside the next one."""
    with suppress(psutil.Error):
        tree = psutil.Process(os.getppid()).children(recursive=True)
        return any(p.pid != os.getpid() and p.status() != psutil.STATUS_ZOMBIE for p in tree)
    return True


def _end_with(guard: int) -> None:
    """Without its guard a worker ends as well."""
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != guard:
            os._exit(1)
        return

    def look() -> None:
        while os.getppid() == guard:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
