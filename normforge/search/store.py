"""The store: everything that happened in a run, as append-only records in one SQLite file.

What the records mean, `events` knows. Any number of processes may write; WAL lets readers go on meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from normforge.errors import RunError
from normforge.search.sqlite import BUSY_SECONDS, transaction

SCHEMA = 2
FILE = "search.db"

_TABLES = """
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,       -- event type: session, asked, candidate, promoted, rerank, final
    key TEXT NOT NULL,        -- which of its type: the candidate's index, ...
    time REAL NOT NULL,       -- seconds since the epoch, for people
    elapsed REAL NOT NULL,    -- seconds of search up to this event, all sessions together
    data TEXT NOT NULL,       -- JSON object
    UNIQUE (kind, key)
);
CREATE TRIGGER no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""


class Record(NamedTuple):
    """An event as it is stored; `type` and `key` together are unique in a store."""

    type: str
    key: str
    elapsed: float
    data: dict[str, Any]


class Store:
    """The events of one run directory.

    Args:
        directory: of the run.
        write: False opens an existing store read-only.

    Raises:
        RunError: a directory that cannot be made or read, a damaged file, or another schema version.
    """

    def __init__(self, directory: Path, *, write: bool = False) -> None:
        self.path = directory / FILE
        try:
            if write:
                directory.mkdir(parents=True, exist_ok=True)
            elif not self.path.is_file():
                raise RunError(f"{directory} holds no search run: give the --out directory of one")
            mode = "rwc" if write else "ro"
            self._db = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            )
        except (OSError, sqlite3.Error) as e:
            raise RunError(f"the run directory {directory} cannot be used ({e}): choose another --out") from None
        try:
            with self._readable():
                if write:
                    self._create()
                self._check_version()
        except RunError:
            self._db.close()
            raise

    def _create(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        with transaction(self._db):
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone():
                for statement in _TABLES.split(";\n"):
                    if statement.strip():
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA}")

    def _check_version(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA:
            raise RunError(
                f"{self.path} has schema version {version} and this normforge reads {SCHEMA}: use another --out"
            )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, json.JSONDecodeError) as e:
            raise RunError(f"{self.path} cannot be read ({e}): restore it from a copy, or use another --out") from None

    def append(self, records: Iterable[Record]) -> None:
        """Add records, all or none.

        Raises:
            RunError: one of them is stored already, or the file cannot be written.
        """
        now = time.time()
        rows = [(e.type, e.key, now, e.elapsed, json.dumps(e.data, allow_nan=False)) for e in records]
        try:
            with transaction(self._db):
                self._db.executemany("INSERT INTO events (kind, key, time, elapsed, data) VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as e:
            full = getattr(e, "sqlite_errorname", "") == "SQLITE_FULL"
            then = "make room, and the same command goes on" if full else "is another process at work on it?"
            raise RunError(f"{self.path} cannot be written ({e}): {then}") from None

    def records(self, event_type: str | None = None) -> Iterator[Record]:
        """The records in the order in which they were stored, all or of one event type.

        Raises:
            RunError: the file is damaged.
        """
        with self._readable():
            rows = self._db.execute(
                "SELECT kind, key, elapsed, data FROM events WHERE :type IS NULL OR kind = :type ORDER BY id",
                {"type": event_type},
            )
            for name, key, elapsed, data in rows:
                yield Record(name, key, elapsed, json.loads(data))

    def record(self, event_type: str, key: str) -> Record | None:
        """The one record of that type and key, if there is one."""
        with self._readable():
            row = self._db.execute(
                "SELECT kind, key, elapsed, data FROM events WHERE kind = ? AND key = ?", (event_type, key)
            ).fetchone()
            return Record(row[0], row[1], row[2], json.loads(row[3])) if row else None

    def times(self, event_type: str) -> dict[str, float]:
        """The times at which events of that type were stored, by key, in seconds since the epoch."""
        with self._readable():
            return dict(self._db.execute("SELECT key, time FROM events WHERE kind = ?", (event_type,)))

    def close(self) -> None:
        """Close the file."""
        self._db.close()


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold a run directory; released by the system when the process dies, however it dies.

    Raises:
        RunError: another process holds it.
    """
    db = sqlite3.connect(directory / "lock", timeout=0, isolation_level=None)
    try:
        try:
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as e:
            raise RunError(
                f"another process is at work in {directory} ({e}): wait for it, or use another --out"
            ) from None
        yield
    finally:
        db.close()
