import multiprocessing as mp
import sqlite3
from pathlib import Path

import pytest

from normforge.errors import RunError
from normforge.search.store import FILE, Record, Store, run_lock


def write_many(directory: Path, writer: int, count: int) -> None:
    store = Store(directory, write=True)
    for i in range(count):
        store.append([Record("candidate", f"{writer}-{i}", float(i), {"writer": writer})])
    store.close()


def hold_lock(directory: Path, held, release) -> None:
    with run_lock(directory):
        held.set()
        release.wait(30)


def test_events_come_back_in_order(tmp_path):
    store = Store(tmp_path / "a" / "b", write=True)
    first = [Record("session", "0", 0.0, {"seed": 0}), Record("candidate", "0", 0.5, {"genes": [["add", 0, 1]]})]
    store.append(first)
    store.append([Record("candidate", "1", 0.6, {})])
    assert list(store.records())[:2] == first
    assert [e.key for e in store.records("candidate")] == ["0", "1"]
    assert store.record("candidate", "0") == first[1]
    assert store.record("candidate", "9") is None
    reader = Store(tmp_path / "a" / "b")
    assert len(list(reader.records())) == 3
    with pytest.raises(RunError, match="cannot be written"):
        reader.append([Record("candidate", "2", 0.0, {})])


def test_an_event_is_stored_once_and_for_ever(tmp_path):
    store = Store(tmp_path, write=True)
    store.append([Record("candidate", "0", 0.0, {})])
    with pytest.raises(RunError):
        store.append([Record("candidate", "1", 0.0, {}), Record("candidate", "0", 0.0, {})])
    assert [e.key for e in store.records()] == ["0"]  # all or none
    db = sqlite3.connect(tmp_path / FILE)
    for change in ("UPDATE events SET key = 'x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(change)


def test_several_processes_write(tmp_path):
    context = mp.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, w, 100)) for w in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
    assert [p.exitcode for p in writers] == [0] * 4
    keys = [e.key for e in Store(tmp_path).records()]
    assert len(keys) == len(set(keys)) == 400
    for w in range(4):  # each writer's events are in its order
        assert [k for k in keys if k.startswith(f"{w}-")] == [f"{w}-{i}" for i in range(100)]
    assert sqlite3.connect(tmp_path / FILE).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_full_disk(tmp_path):
    """SQLite's own word for it, from a file that may not grow."""
    store = Store(tmp_path, write=True)
    store._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(RunError, match=r"full.*make room, and the same command goes on"):
        for i in range(100):
            store.append([Record("candidate", str(i), 0.0, {"what": "x" * 2000})])
    store.close()


def test_one_process_holds_a_run(tmp_path):
    context = mp.get_context("spawn")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=hold_lock, args=(tmp_path, held, release))
    holder.start()
    assert held.wait(30)
    with pytest.raises(RunError, match="another process"), run_lock(tmp_path):
        pass
    holder.kill()
    holder.join(30)
    with run_lock(tmp_path):  # the system has released it
        pass


def test_a_directory_without_a_run(tmp_path):
    with pytest.raises(RunError, match="no search run"):
        Store(tmp_path)


def test_a_damaged_store(tmp_path):
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    for write in (False, True):
        with pytest.raises(RunError, match="cannot be read"):
            Store(tmp_path, write=write)


def test_a_store_cut_short(tmp_path):
    store = Store(tmp_path, write=True)
    store.append([Record("candidate", str(i), 0.0, {"filler": "x" * 500}) for i in range(200)])
    store.close()
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(RunError, match="cannot be read"):
        list(Store(tmp_path).records())


def test_another_schema_version(tmp_path):
    Store(tmp_path, write=True).close()
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(RunError, match="schema version 99"):
        Store(tmp_path)
