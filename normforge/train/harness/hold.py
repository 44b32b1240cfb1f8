"""What a training holds while it runs: its directory, and the signals that stop it."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from normforge.errors import RunError

LOCK_FILE = "lock"


def lock(directory: Path) -> IO[str]:
    """A file that is held until it is closed, or the process ends; no other process can hold it meanwhile.

    Raises:
        RunError: another one does. OSError: the directory cannot be written.
    """
    file = (directory / LOCK_FILE).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(f"a training is running in {directory}: wait for it, or use another --out") from None
    return file


@contextmanager
def stoppable(
    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM), *, patient: bool = False
) -> Iterator[list[int]]:
    """A list that signals write themselves into.

    Args:
        signals: that are told like that.
        patient: a further one changes nothing; else it interrupts at once.
    """
    told: list[int] = []

    def tell(number: int, frame: object) -> None:
        if told and not patient:
            raise KeyboardInterrupt
        told.append(number)

    before = {}
    try:
        for number in signals:
            before[number] = signal.signal(number, tell)
    except ValueError:  # not the main thread, which signals are of
        pass
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
