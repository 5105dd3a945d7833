"""Connections of threads that come and go."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from longshore.engine.images.database import Database
from longshore.machinery.sqlite import Connections
from longshore.registry.storage import Storage


def in_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def open_files(path: Path) -> int:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link) == str(path) for link in links)


def test_a_connection_lives_no_longer_than_its_thread(tmp_path: Path) -> None:
    connections = Connections(tmp_path / "a.db", ("journal_mode=WAL",))
    mine = connections.get()
    mine.execute("CREATE TABLE t (n)")
    for n in range(20):
        in_thread(lambda n=n: connections.get().execute("INSERT INTO t VALUES (?)", (n,)))
    assert len(connections) <= 2, "this thread's and the last one's"
    assert connections.get() is mine
    assert mine.execute("SELECT count(*) FROM t").fetchone() == (20,)
    connections.close()
    assert len(connections) == 0
    assert connections.get().execute("SELECT count(*) FROM t").fetchone() == (20,)
    connections.close()


@pytest.mark.parametrize("kind", ["images", "registry"])
def test_short_lived_threads_leave_no_open_database(tmp_path: Path, kind: str) -> None:
    store: Database | Storage
    if kind == "images":
        path = tmp_path / "images.db"
        store = Database(path)
    else:
        path = tmp_path / "registry.db"
        store = Storage(tmp_path)
    for _ in range(10):
        in_thread(lambda: store.one("SELECT count(*) FROM sqlite_master"))
    assert open_files(path) <= 2 * 2, "SQLite may hold a file twice"
    store.close()
    assert open_files(path) == 0
