"""A transfer: layers, seeds and batches, each a training of its own; how far they are, and what they came to."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from normforge.errors import NormforgeError, OptionError, RunError
from normforge.ir.layers import parse
from normforge.train.data.parts import Data
from normforge.train.device import device_of
from normforge.train.harness.hold import LOCK_FILE, lock, stoppable
from normforge.train.settings import validated
from normforge.train.transfer import data as data_of
from normforge.train.transfer import report
from normforge.train.transfer.config import AFFINE_RELU, NONE, Config
from normforge.train.transfer.results import Asked, Done, Entrant, write_results
from normforge.train.transfer.run import Result, finished, make_task
from normforge.train.transfer.run import run as run_one
from normforge.train.transfer.synthesis.features import classifier

_LINE_SECONDS = 30.0
_TELL_SECONDS = 1.0


def entrants(layers: dict[str, str]) -> list[Entrant]:
    """Layers by label, of the names and formulas they are.

    Raises:
        ParseError, OptionError: no layer, or one that is given more than x.
    """
    made = []
    for label, formula in layers.items():
        formula = AFFINE_RELU if formula == NONE else formula
        graph = parse(formula)
        if not graph.is_plain:
            raise OptionError(f"{label} is given more than x, or has several results: networks give a layer x alone")
        made.append(Entrant(label, formula))
    return made


def trainings(
    config: Config, layers: list[Entrant], seeds: list[int], batches: list[int] | None, out: Path
) -> list[Asked]:
    """The trainings of a study, seed by seed, so that a study that is stopped has all layers."""
    asked = []
    for seed in seeds:
        for batch in batches or [config.recipe.batch]:
            for layer in layers:
                recipe = config.recipe.model_copy(update={"batch": batch})
                own = config.model_copy(update={"layer": layer.formula, "seed": seed, "recipe": recipe})
                folder = out / layer.slug / f"batch-{batch}-seed-{seed}"
                asked.append(Asked(layer, validated(type(config), own.model_dump()), folder))
    return asked


def transfer(
    config: Config,
    layers: dict[str, str],
    out: Path,
    *,
    seeds: list[int],
    batches: list[int] | None = None,
    workers: int = 1,
    console: Console | None = None,
) -> list[Done] | None:
    """Train what is missing of a study, and write its table and report.

    Args:
        config: of all trainings, but for layer, seed and batch.
        layers: names or formulas by label; none is gain, bias and ReLU.
        out: directory; a folder a layer in it, a folder a training in that.
        seeds: of the trainings of each layer.
        batches: images a step, a column of results for each; None is the recipe's.
        workers: processes; on GPUs each takes the next one in turn.
        console: is told how far it is; None prints nothing.

    Returns:
        All trainings, or None where SIGINT or SIGTERM stopped the study.

    Raises:
        NormforgeError: before anything is trained, what cannot be: layers, settings, data.
        RunError: a process ended without a result, such as one that was killed for memory.
    """
    console = console or Console(quiet=True)
    asked = trainings(config, entrants(layers), seeds, batches, out)
    with console.status(f"reading {config.data.source}"):
        data = data_of.load(config)
        data_of.check(config, data, [one.config.recipe.batch for one in asked])
        for first in {(a.entrant, a.config.recipe.batch): a for a in asked}.values():
            make_task(first.config, data, torch.device("cpu")).close()  # what cannot be made is told now
    if isinstance(data, Data):
        with console.status("training the classifier that samples are judged by, unless it is there"):
            classifier(data)  # kept in the cache directory: the trainings find it
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / LOCK_FILE).exists():
            raise RunError(f"{out} holds other things than a study: use another --out")
        out.mkdir(parents=True, exist_ok=True)
        held = lock(out)
    except OSError as e:
        raise RunError(f"{out} cannot be written ({e.strerror}): use another --out") from None
    with held, stoppable() as stop:
        missing = [one for one in asked if finished(one.out, one.config) is None]
        if missing and not _train(missing, workers, console, stop):
            console.print("Stopped. The same command goes on from there.", soft_wrap=True)
            return None
    done = [Done(one, found) for one in asked if (found := finished(one.out, one.config))]
    write_results(done, out)
    report.write(config, done, out)
    return done


def _train(missing: list[Asked], workers: int, console: Console, stop: list[int]) -> bool:
    """Train in processes, one a training; False where it was stopped."""
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    workers = min(workers, len(missing))
    threads = max(1, (os.cpu_count() or 1) // workers)
    running: dict[int, tuple[Asked, Any]] = {}  # by place
    waiting, told_to_stop = [*reversed(missing)], False
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
                    show(*told.get(timeout=0.2))
                if stop and not told_to_stop:
                    told_to_stop = True  # once: a second signal would not wait for the checkpoint
                    for _, process in running.values():
                        process.terminate()
                for place, (one, process) in [*running.items()]:
                    if process.is_alive():
                        continue
                    process.join()
                    del running[place]
                    ended = finished(one.out, one.config)
                    if ended:
                        show(one.name, None, ended)
                    elif not stop:
                        raise _ended(one, process.exitcode, told)
        finally:
            for _, process in running.values():
                process.kill()
    return not stop


def _ended(one: Asked, code: int, told: Any) -> NormforgeError:
    """Why a process ended without a result."""
    time.sleep(0.2)
    with suppress(queue.Empty):
        while True:
            name, _, said = told.get_nowait()
            if name == one.name and isinstance(said, str):
                return RunError(f"{one.name}: {said}")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    return RunError(f"{one.name} {how}, such as for want of memory: the same command goes on, --workers 1 takes less")


def _work(one: Asked, place: int, threads: int, told: Any) -> None:
    """A process: one training, with what it says put into a queue."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process stops the others
    parent, last = os.getppid(), [0.0]
    kind = device_of(one.config.run.device)
    device = torch.device(kind, place % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
    torch.set_num_threads(one.config.run.threads or threads)

    def tell(done: int, total: int, loss: float) -> None:
        if os.getppid() != parent:  # nobody is there any more who would read this
            os.kill(os.getpid(), signal.SIGTERM)
        if done == total or time.monotonic() - last[0] > _TELL_SECONDS:
            last[0] = time.monotonic()
            told.put((one.name, (done, total), loss))

    try:
        run_one(one.config, data_of.load(one.config), one.out, device, tell)
    except NormforgeError as e:
        told.put((one.name, None, str(e)))
        raise SystemExit(2) from None


@contextmanager
def _showing(console: Console, count: int) -> Iterator[Any]:
    """A function that is told of steps and ends: bars on a terminal, lines elsewhere."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")
    live = Progress(*columns, TimeRemainingColumn(), console=console, transient=True) if console.is_terminal else None
    tasks: dict[str, Any] = {}
    ended, next_line = 0, time.monotonic() + _LINE_SECONDS
    if live:
        live.start()
        tasks[""] = live.add_task("trainings", total=count, said="")
    console.print(f"{count} trainings", highlight=False)

    def show(name: str, steps: tuple[int, int] | None, said: Any) -> None:
        nonlocal ended, next_line
        if isinstance(said, Result):
            ended += 1
            if live:
                live.update(tasks[""], completed=ended)
                if name in tasks:
                    live.remove_task(tasks.pop(name))
            figures = ", ".join(f"{k} {v:.4g}" for k, v in said.figures.items())
            what = said.failed or figures
            console.print(f"[{ended} of {count}] {name}: {what}, {said.seconds:.0f} s", highlight=False, markup=False)
            return
        if steps is None:
            return
        done, total = steps
        if live:
            if name not in tasks:
                tasks[name] = live.add_task(name, total=total, said="")
            live.update(tasks[name], completed=done, said=f"loss {said:.3f}")
        elif time.monotonic() >= next_line:
            next_line = time.monotonic() + _LINE_SECONDS
            console.print(f"{name}: step {done} of {total}, loss {said:.3f}", highlight=False)

    try:
        yield show
    finally:
        if live:
            live.stop()
