"""Which stages the two commands have, how long each may take, and how one is run so that it cannot take longer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import IO, NamedTuple, Protocol

sys.path.insert(0, str(Path(__file__).parents[1]))

from first.rows import Rows

BENCH = Path(__file__).parents[1]


class Stage(NamedTuple):
    """A part of a command, in a process of its own.

    Attributes:
        name: of the stage. seconds: its budget; what stages before it leave over is added.
        home: "module:function" under `first`.
    """

    name: str
    seconds: float
    home: str


COMMANDS: dict[str, tuple[Stage, ...]] = {
    "knowledge": (
        Stage("card", 20, "machine:run"),
        Stage("cache", 38, "cache:run"),
        Stage("launches", 20, "launches:run"),
        Stage("suite", 115, "suite:run"),
        Stage("kinds", 80, "kinds:run"),
        Stage("profile", 28, "profile:run"),
        Stage("experiments", 25, "experiments:run"),
    ),
    "numbers": (
        Stage("unpack", 8, "cache:unpacked"),
        Stage("again", 36, "suite:again"),
        Stage("bench", 222, "bench:run"),
    ),
}
LIMITS = {"knowledge": 330.0, "numbers": 270.0}  # seconds of a whole command
TABLE = 4.0  # of them for what comes after the stages
HIDDEN = {"profiled": "profile:profiled", "predict": "kinds:predict"}  # of no command


def function(name: str) -> Callable[..., None]:
    """What a stage does, given rows and whether it is a rehearsal."""
    homes = {s.name: s.home for stages in COMMANDS.values() for s in stages} | HIDDEN
    module, _, what = homes[name].partition(":")
    found: Callable[..., None] = getattr(import_module(f"first.{module}"), what)
    return found


def run(stage: Stage, seconds: float, rows: Path, log: IO[str], *, rehearse: bool) -> None:
    """Run a stage; whatever happens, it is over after `seconds`, and a row says how it ended."""
    start = time.monotonic()
    log.write(f"==== {stage.name}, {seconds:.0f} s\n")
    log.flush()
    process = (_fork if rehearse else _spawn)(stage, seconds, rows, log)
    ended = "done"
    try:
        if process.wait(seconds):
            ended = f"failed: it returned {process.wait(0)}"
    except subprocess.TimeoutExpired:
        ended = "stopped at its limit"
    stop(process)
    took = round(time.monotonic() - start, 1)
    Rows(rows, stage.name).add("stage", ended=ended, seconds=took, limit=round(seconds, 1))


class Process(Protocol):
    """The leader of a process group."""

    pid: int

    def wait(self, timeout: float) -> int:
        """Its exit status.

        Raises:
            subprocess.TimeoutExpired: it is still running then.
        """


def _spawn(stage: Stage, seconds: float, rows: Path, log: IO[str]) -> Process:
    """A process of its own, in a group of its own, so that what it starts can be stopped with it."""
    command = [
        sys.executable, str(BENCH / "first_gpu.py"), "--stage", stage.name, "--rows", str(rows),
        "--seconds", f"{seconds:.1f}",
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


class _Forked:
    """A rehearsed stage: a fork, which need not import everything again."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._process = get_context("fork").Process(target=work)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a stage", timeout)
        return self._process.exitcode


def _fork(stage: Stage, seconds: float, rows: Path, log: IO[str]) -> Process:
    what = function(stage.name)

    def work() -> None:
        os.setsid()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        what(Rows(rows, stage.name, seconds), rehearse=True)

    return _Forked(work)


def stop(process: Process) -> None:
    """End a stage and everything that it started, which may have outlived it."""
    for sign, seconds in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if not _alive(process.pid):
                return


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
