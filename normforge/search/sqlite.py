"""Transactions of several writers on one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

BUSY_SECONDS = 60.0  # that a writer waits for others


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction, all or nothing. The write lock is taken at the start, since one that turns from reading to writing
    fails at once when another process has written in between."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:  # on a full disk SQLite has rolled back by itself
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
