"""Processes that train, one a training at a time, and what is shown of them."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from normforge.errors import NormforgeError
from normforge.train.device import device_of
from normforge.train.harness.hold import stoppable
from normforge.train.transfer import data as data_of
from normforge.train.transfer.results import Asked
from normforge.train.transfer.run import Result, finished
from normforge.train.transfer.run import run as run_one

_LINE_SECONDS = 30.0
_TELL_SECONDS = 1.0


def cores() -> int:
    """Of the processor, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train_all(missing: list[Asked], digest: str, workers: int, console: Console, stop: list[int]) -> dict[str, str]:
    """Train in processes, one a training, until all have ended or something is in `stop`.

    Args:
        missing: what is to be trained. digest: of the data.
        workers: processes at a time. console: is told how far they are.
        stop: as of `stoppable`; the trainings under way keep a checkpoint then.

    Returns:
        Why trainings ended without a result, by name.
    """
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    threads = max(1, cores() // workers)  # whatever is missing, so that a training goes on with as many
    running: dict[int, tuple[Asked, Any]] = {}  # by place
    waiting, told_to_stop = [*reversed(missing)], False
    said: dict[str, str] = {}
    broken: dict[str, str] = {}
    with _showing(console, len(missing)) as show:
        try:
            while (waiting and not stop) or running:
                for place in range(workers):
                    if place not in running and waiting and not stop:
                        one = waiting.pop()
                        process = context.Process(target=_work, args=(one, place, threads, told), daemon=True)
                        process.start()
                        running[place] = one, process
                with suppress(queue.Empty):
                    _take(told.get(timeout=0.2), said, show)
                if stop and not told_to_stop:
                    told_to_stop = True
                    for _, process in running.values():
                        process.terminate()
                for place, (one, process) in [*running.items()]:
                    if process.is_alive():
                        continue
                    process.join()
                    del running[place]
                    if result := finished(one.out, one.config, digest):
                        show(one.name, None, result)
                    elif not stop or process.exitcode not in (0, -signal.SIGTERM):  # told twice, once it was ending
                        with suppress(queue.Empty):  # its last words may still be on their way
                            while True:
                                _take(told.get(timeout=0.5), said, show)
                        why = said.get(one.name) or _how(process.exitcode)
                        broken[one.name] = why
                        show(one.name, None, why)
        finally:
            for _, process in running.values():
                process.kill()
    return broken


def _take(message: tuple[str, tuple[int, int] | None, Any], said: dict[str, str], show: Any) -> None:
    name, steps, what = message
    if isinstance(what, str):
        said[name] = what
    else:
        show(name, steps, what)


def _how(code: int) -> str:
    """How a process ended that said nothing."""
    if code < 0:
        return f"it was killed by signal {-code}, perhaps for want of memory (--workers 1 takes less)"
    return f"its process ended with {code}"


def _work(one: Asked, place: int, threads: int, told: Any) -> None:
    """A process: one training, with what it says put into a queue."""
    # Ctrl-C reaches all processes; the first one tells the others. A scheduler's SIGTERM may reach this one twice.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stoppable((signal.SIGTERM,), patient=True) as stop:
        last, parent = [0.0], parent_process()

        def tell(done: int, total: int, loss: float) -> None:
            if parent is not None and not parent.is_alive():
                stop.append(signal.SIGTERM)  # nobody is there any more who would read this
            if done == total or time.monotonic() - last[0] > _TELL_SECONDS:
                last[0] = time.monotonic()
                told.put((one.name, (done, total), loss))

        kind = device_of(one.config.run.device)
        device = torch.device(kind, place % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
        torch.set_num_threads(one.config.run.threads or threads)
        try:
            run_one(one.config, data_of.load(one.config), one.out, device, tell, stop)
        except NormforgeError as e:
            told.put((one.name, None, str(e)))
            raise SystemExit(2) from None
        except Exception as e:
            reason = str(e).strip().split("\n")[0]
            told.put((one.name, None, f"{type(e).__name__}: {reason}"))
            raise


@contextmanager
def _showing(console: Console, count: int) -> Iterator[Any]:
    """A function that is told of steps and ends: bars on a terminal, lines elsewhere."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
    )
    live = Progress(*columns, TimeRemainingColumn(), console=console, transient=True) if console.is_terminal else None
    tasks: dict[str, Any] = {}
    ended, next_line = 0, time.monotonic() + _LINE_SECONDS
    if live:
        live.start()
        tasks[""] = live.add_task("trainings", total=count, said="")
    console.print(f"{count} trainings", highlight=False)

    def show(name: str, steps: tuple[int, int] | None, said: Any) -> None:
        nonlocal ended, next_line
        if steps is None:
            ended += 1
            if live:
                live.update(tasks[""], completed=ended)
                if name in tasks:
                    live.remove_task(tasks.pop(name))
            what = said
            if isinstance(said, Result):
                figures = ", ".join(f"{k} {v:.4g}" for k, v in said.figures.items())
                what = f"{said.failed or figures}, {said.seconds:.0f} s"
            console.print(f"[{ended} of {count}] {name}: {what}", highlight=False, markup=False, soft_wrap=True)
            return
        done, total = steps
        if live:
            if name not in tasks:
                tasks[name] = live.add_task(name, total=total, said="")
            live.update(tasks[name], completed=done, said=f"loss {said:.3f}")
        elif time.monotonic() >= next_line:
            next_line = time.monotonic() + _LINE_SECONDS
            console.print(f"{name}: step {done} of {total}, loss {said:.3f}", highlight=False, markup=False)

    try:
        yield show
    finally:
        if live:
            live.stop()
