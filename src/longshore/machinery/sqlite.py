"""SQLite connections for a process of many threads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path


class Connections:
    """One connection a thread; what belonged to a thread that has ended is closed when another thread asks for one.

    path: the database file, made where absent. settings: PRAGMA assignments for every connection ("synchronous=FULL").
    """

    def __init__(self, path: Path, settings: Sequence[str]) -> None:
        self._path = path
        self._settings = settings
        self._local = threading.local()
        self._open: dict[threading.Thread, sqlite3.Connection] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def get(self) -> sqlite3.Connection:
        """The calling thread's connection, in autocommit mode. Raises sqlite3.Error when the file is no database."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=30, check_same_thread=False)
            for setting in self._settings:
                connection.execute(f"PRAGMA {setting}")
            self._local.connection = connection
            with self._lock:
                self._close_abandoned()
                self._open[threading.current_thread()] = connection
        return connection

    def _close_abandoned(self) -> None:
        for thread in [thread for thread in self._open if not thread.is_alive()]:
            self._open.pop(thread).close()

    def close(self) -> None:
        """Close them all; `get` opens again."""
        with self._lock:
            for connection in self._open.values():
                connection.close()
            self._open.clear()
            self._local = threading.local()
