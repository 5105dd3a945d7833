"""SQLite databases for a process of many threads."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_DURABLE = ("journal_mode=WAL", "synchronous=FULL")

#: Bytes of unused pages that are worth writing a database anew for.
_MUCH = 4 << 20


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

    def shrink(self) -> None:
        """Give the disk back what deleted rows have left in the file and its log, where that is much. Blocking; writers wait.

        Raises sqlite3.OperationalError where another process keeps the database busy.
        """
        connection = self.get()
        size, pages, free = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        if free * size >= _MUCH and free * 4 >= pages:
            connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

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


class Database:
    """One connection a thread; every write is one `with database.write() as c` transaction.

    path: the SQLite file, made where absent. schema: statements that make what is not there yet, each ended by a semicolon.
    settings: further PRAGMA assignments. Raises sqlite3.Error when the file is no database.
    """

    def __init__(self, path: Path, schema: str, settings: Sequence[str] = ()) -> None:
        self._path = path
        self._connections = Connections(path, (*_DURABLE, *settings))
        # WAL mode and the schema are set under one writer's lock: several processes may start at once.
        with self.write() as connection:
            for statement in filter(str.strip, schema.split(";")):
                connection.execute(statement)

    def close(self) -> None:
        self._connections.close()

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction; rolled back when the block raises. durable: on disk when the block has ended.

        OSError (ENOSPC) when the disk is full.
        """
        connection = self._connections.get()
        if not durable:
            connection.execute("PRAGMA synchronous=NORMAL")
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from None
        finally:
            if not durable:
                connection.execute("PRAGMA synchronous=FULL")

    def shrink(self) -> None:
        """Give the disk back what deleted rows have left, unless somebody keeps the database busy. Blocking."""
        with contextlib.suppress(sqlite3.OperationalError):
            self._connections.shrink()

    def all(self, sql: str, *arguments: object) -> list[Any]:
        """All rows."""
        return self._connections.get().execute(sql, arguments).fetchall()

    def one(self, sql: str, *arguments: object) -> Any:
        """The first row or None."""
        return self._connections.get().execute(sql, arguments).fetchone()
