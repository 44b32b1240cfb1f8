"""Rows of a run: one JSON object a line, on the disk as soon as it is known, for a run may be stopped at any time."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Rows:
    """A file that stages append to.

    Attributes:
        path: the file. stage: who writes.
        end: when the stage is stopped, by the clock of `time.monotonic`.
    """

    def __init__(self, path: Path, stage: str, seconds: float = math.inf) -> None:
        self.path, self.stage, self.end = path, stage, time.monotonic() + seconds
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds until the stage is stopped."""
        return self.end - time.monotonic()

    def has(self, what: str, **about: Any) -> bool:
        """Has this stage a row of that, written by it or by the process that it took over from?"""
        found = (row for row in of(read(self.path), what) if row["stage"] == self.stage)
        return any(all(row.get(key) == value for key, value in about.items()) for row in found)

    def add(self, what: str, **found: Any) -> Row:
        """Write a row of this stage."""
        row = {"stage": self.stage, "what": what, **found}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return row

    def attempt(self, what: str, measure: Callable[[], Row], **about: Any) -> Row:
        """The row that `measure` gives, or one that says why there is none: a failure costs itself alone."""
        try:
            found = measure()
        except Exception as error:
            found = {"error": words(error)}
        return self.add(what, **about, **found)


def read(path: Path) -> list[Row]:
    """The rows of a file; a last line that was cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def of(rows: Iterable[Row], what: str) -> list[Row]:
    """Those of one kind."""
    return [row for row in rows if row["what"] == what]


def words(error: BaseException) -> str:
    """The first line of a message."""
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0][:200]}"
