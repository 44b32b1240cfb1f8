"""Evaluations kept across runs, in one SQLite file that any number of runs may share at the same time.

An entry is what the stages found on one network, and it is found again by all that it depends on: the layer (its
`hash`, and its `content_hash`, since layers that are one function up to rounding train differently), the network,
the recipe, the rules of the stages, the data and the code. So a result from the cache is the result that the run
would have computed, and a run comes out the same with a full cache as with an empty one.

A run that is about to evaluate a layer takes a lease on it; another run that wants the same one meanwhile waits for
the result until the lease expires.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from normforge.errors import RunError
from normforge.ir.graph import Graph
from normforge.search.config import Config
from normforge.search.provenance import Provenance
from normforge.search.sqlite import BUSY_SECONDS, transaction
from normforge.search.tasks import Piece

SCHEMA = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS pieces (key TEXT, stage TEXT, time REAL, data TEXT, PRIMARY KEY (key, stage)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (key TEXT PRIMARY KEY, owner TEXT, expires REAL) WITHOUT ROWID;
"""


class EvaluationCache:
    """The pieces of one configuration's evaluations.

    Args:
        path: of the file; made if need be.
        config: of the run.
        provenance: its data, device, machine and code.
        run: who holds the leases; what an earlier session of the run has left is its own.

    Raises:
        RunError: the file cannot be used, or is of another version.
    """

    def __init__(self, path: Path, config: Config, provenance: Provenance, run: str) -> None:
        self.path, self._config = path, config
        self._owner = run
        shared = [config.recipe, config.quality, config.stability, config.early.at, config.objectives, config.data]
        self._micro = config.ladder.micro.model_dump(mode="json"), config.networks.plain.model_dump(mode="json")
        self._shared = repr([*map(_plain, shared), config.final.longer, provenance])
        self._lease = max(config.cache.lease, config.workers.time_limit)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise RunError(f"the cache {path} cannot be used ({e}): give another cache.file") from None
        with self._usable():
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA):
                raise RunError(f"{path} is a cache of schema version {version}, not {SCHEMA}: give another cache.file")
        with self._transaction():
            for statement in filter(str.strip, _TABLES.split(";\n")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={SCHEMA}")

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, json.JSONDecodeError) as e:
            raise RunError(f"the cache {self.path} cannot be used ({e}): give another cache.file") from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._usable(), transaction(self._db):
            yield

    def keys(self, graph: Graph, repeat: int, final: bool, rung: str = "") -> dict[str, str]:
        """The key of a layer's evaluation on each network of the run, or on `micro` alone."""
        layer = (graph.hash, graph.content_hash, repeat, final)
        networks = self._config.networks

        def key(network: str) -> str:
            options = self._micro if network == "micro" else _plain(getattr(networks, network))
            parts = (layer, network, options, networks.groups, self._shared)
            return blake2b(repr(parts).encode(), digest_size=16).hexdigest()

        return {network: key(network) for network in (("micro",) if rung == "micro" else networks.use)}

    def find(self, keys: Mapping[str, str]) -> dict[str, Piece]:
        """The pieces that are there, by `stage/network`."""
        found: dict[str, Piece] = {}
        with self._usable():
            for network, key in keys.items():
                for stage, data in self._db.execute("SELECT stage, data FROM pieces WHERE key = ?", (key,)):
                    found[f"{stage}/{network}"] = json.loads(data)
        return found

    def lease(self, keys: Iterable[str]) -> bool:
        """Take the evaluations of these keys, all or none; False while another run has one of them."""
        now, keys = time.time(), list(keys)
        marks = ",".join("?" * len(keys))
        with self._transaction():
            held = self._db.execute(
                f"SELECT 1 FROM leases WHERE key IN ({marks}) AND expires > ? AND owner != ?", (*keys, now, self._owner)
            ).fetchone()
            if not held:
                rows = [(key, self._owner, now + self._lease) for key in keys]
                self._db.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", rows)
        return not held

    def keep(self, keys: Mapping[str, str], pieces: Mapping[str, Piece]) -> None:
        """Store pieces and give the leases back."""
        rows = []
        for name, piece in pieces.items():
            stage, _, network = name.partition("/")
            rows.append((keys[network], stage, time.time(), json.dumps(piece, allow_nan=False)))
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO pieces VALUES (?, ?, ?, ?)", rows)
            gone = [(key, self._owner) for key in keys.values()]
            self._db.executemany("DELETE FROM leases WHERE key = ? AND owner = ?", gone)

    def close(self) -> None:
        """Give all leases back and close the file."""
        with self._transaction():
            self._db.execute("DELETE FROM leases WHERE owner = ?", (self._owner,))
        self._db.close()


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
