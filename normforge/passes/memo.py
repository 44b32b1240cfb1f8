"""Answers that cost time, kept by question: in memory for this process, on disk for the others and the next.

A question is a JSON value that says all the answer depends on. The file is a cache: one that is damaged, locked or not
writable costs the time to answer again, and nothing else.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from normforge.cache import cache_directory

Answer = TypeVar("Answer")
MAX_KEPT = 100_000  # answers in memory
VERSION = 1  # of what the answers mean; another one is another table


class Memo:
    """Answers to questions of one sort, such as "what are the factors of this polynomial?".

    Attributes:
        table: that they have in `passes.sqlite` of the cache directory.
    """

    def __init__(self, table: str) -> None:
        self.table = f"{table}_{VERSION}"
        self.kept: dict[str, object] = {}
        self._file: sqlite3.Connection | None = None
        self._process = 0

    def get(self, question: list[Any], answer: Callable[[list[Any]], Answer]) -> Answer:
        """The answer to `question`, asked for by `answer(question)` where nobody knows it yet. JSON both."""
        key = json.dumps(question, separators=(",", ":"))
        if key not in self.kept:
            if len(self.kept) >= MAX_KEPT:
                self.kept.clear()
            self.kept[key] = self._stored(key, question, answer)
        return self.kept[key]  # type: ignore[return-value]

    def _stored(self, key: str, question: list[Any], answer: Callable[[list[Any]], Answer]) -> object:
        with suppress(sqlite3.Error, OSError, ValueError):
            row = self._database().execute(f"SELECT answer FROM {self.table} WHERE question = ?", (key,)).fetchone()
            if row:
                return json.loads(row[0])
        found = json.loads(json.dumps(answer(question)))  # as it will be read back
        with suppress(sqlite3.Error, OSError):
            self._database().execute(f"INSERT OR IGNORE INTO {self.table} VALUES (?, ?)", (key, json.dumps(found)))
        return found

    def _database(self) -> sqlite3.Connection:
        if self._file is None or self._process != os.getpid():  # a connection must not be used across a fork
            self._process = os.getpid()
            path = cache_directory() / "passes.sqlite"
            self._file = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=OFF")
            self._file.execute(f"CREATE TABLE IF NOT EXISTS {self.table} (question TEXT PRIMARY KEY, answer TEXT)")
        return self._file
