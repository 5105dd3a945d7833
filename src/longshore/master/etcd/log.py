"""The log: every change as one row of one slim, append-only table, on SQLite or in memory.

The SQLite log is written by the committer thread alone, read by the event loop (single rows) and by a reader thread
(scans, snapshots), each over a connection of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from longshore.master.etcd.model import KeyValue, Unavailable
from longshore.master.etcd.revision import revision_of
from longshore.master.etcd.wal import WalFile

# row, key, create revision, version (0: tombstone), lease, value
Row = tuple[int, bytes, int, int, int, bytes]

SCHEMA_VERSION = 1
WAL_BYTES = 32 * 2**20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (
    row INTEGER PRIMARY KEY, key BLOB NOT NULL, create_revision INTEGER NOT NULL, version INTEGER NOT NULL,
    lease INTEGER NOT NULL, value BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS lease (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "row, key, create_revision, version, lease, value"
_ROWS_A_STATEMENT = 64


def key_value(row: Row) -> KeyValue:
    """A row as a version of its key."""
    number, key, create_revision, version, lease, value = row
    return KeyValue(key, value, create_revision, revision_of(number), version, lease, number)


class Log(Protocol):
    """Where rows are kept. `append` and `execute` belong to the committer, the rest may be called beside it."""

    def append(self, rows: Sequence[Row], leases: Sequence[tuple[int, int]]) -> None:
        """Store rows, and leases as (id, ttl; ttl 0 removes it), all or nothing, and return when they are on disk."""

    def delete(self, rows: Sequence[int], compact_revision: int) -> None: ...

    def index(self) -> Iterator[tuple[int, bytes, int, int, int]]: ...

    def leases(self) -> list[tuple[int, int]]: ...

    def compact_revision(self) -> int: ...

    def get(self, row: int) -> KeyValue | None: ...

    def get_many(self, rows: Sequence[int]) -> dict[int, KeyValue]: ...

    def scan(self, first: int, last: int, key: bytes, end: bytes, limit: int) -> list[KeyValue]:
        """Rows first..last of keys in [key, end), at most `limit`, but never part of a revision. In order."""

    def size(self) -> tuple[int, int]: ...

    def copy(self, path: Path) -> None: ...

    def close(self) -> None: ...


def connect(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """Open a store file for one thread."""
    uri = f"{path.absolute().as_uri()}{'?mode=ro' if readonly else ''}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=160)
    connection.execute("PRAGMA busy_timeout=10000")
    return connection


def create(path: Path) -> sqlite3.Connection:
    """Open a store file for writing, made when it is absent."""
    connection = connect(path)
    connection.execute("PRAGMA page_size=4096")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA cache_size=-4096")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found not in (0, SCHEMA_VERSION):
        connection.close()
        raise Unavailable(f"{path} was written by a newer Longshore (schema {found})")
    if not found:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    return connection


class SqliteLog:
    """The log in an SQLite file in WAL mode with synchronous=FULL.

    path: the file; its folder is made (mode 0700). Unavailable when another process has it open for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._writer = create(path)
        except OSError as error:
            os.close(self._lock)
            if error.errno == errno.EWOULDBLOCK:
                raise Unavailable(f"{path} is in use by another process") from None
            raise
        except BaseException:
            os.close(self._lock)
            raise
        self._reader = connect(path, readonly=True)
        self._reader.execute("PRAGMA cache_size=-1024")
        self._scanner: sqlite3.Connection | None = None
        self._inserts = [
            f"INSERT INTO log ({_COLUMNS}) VALUES " + ",".join(["(?,?,?,?,?,?)"] * count)
            for count in range(_ROWS_A_STATEMENT + 1)
        ]
        self.wal = WalFile(path, WAL_BYTES)

    def append(self, rows: Sequence[Row], leases: Sequence[tuple[int, int]]) -> None:
        # One statement is one stay outside the interpreter's lock, and needs no BEGIN and COMMIT around it: few
        # rows (the usual batch) cost one hand-over between the committer and the event loop instead of several.
        writer = self._writer
        if len(rows) <= _ROWS_A_STATEMENT and not leases:
            writer.execute(self._inserts[len(rows)], [field for row in rows for field in row])
        else:
            writer.execute("BEGIN IMMEDIATE")
            try:
                for start in range(0, len(rows), _ROWS_A_STATEMENT):
                    part = rows[start : start + _ROWS_A_STATEMENT]
                    writer.execute(self._inserts[len(part)], [field for row in part for field in row])
                for id_, ttl in leases:
                    if ttl:
                        writer.execute("INSERT OR REPLACE INTO lease VALUES (?,?)", (id_, ttl))
                    else:
                        writer.execute("DELETE FROM lease WHERE id=?", (id_,))
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    def delete(self, rows: Sequence[int], compact_revision: int) -> None:
        """Remove compacted rows and remember up to where history is forgotten."""
        writer = self._writer
        writer.execute("BEGIN IMMEDIATE")
        try:
            writer.execute("INSERT OR REPLACE INTO meta VALUES ('compact_revision', ?)", (compact_revision,))
            writer.executemany("DELETE FROM log WHERE row=?", [(row,) for row in rows])
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise

    def checkpoint(self) -> None:
        """Copy what is in the WAL into the file, beside the writer (from the reader thread)."""
        self._scan_connection().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def restart_wal(self) -> bool:
        """Make the next commit begin the WAL anew (from the committer thread, between two commits).

        False where a reader is still at it. The file keeps its size, unless a long read has let it become too large.
        """
        mode = "TRUNCATE" if self.wal.size > 2 * WAL_BYTES else "RESTART"
        self._writer.execute("PRAGMA busy_timeout=0")
        try:
            busy = self._writer.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0]
        finally:
            self._writer.execute("PRAGMA busy_timeout=10000")
        if not busy:
            self.wal.begun_anew(mode == "TRUNCATE")
        return not busy

    def index(self) -> Iterator[tuple[int, bytes, int, int, int]]:
        yield from self._reader.execute("SELECT row, key, create_revision, version, lease FROM log ORDER BY row")

    def leases(self) -> list[tuple[int, int]]:
        return list(self._reader.execute("SELECT id, ttl FROM lease"))

    def compact_revision(self) -> int:
        found = self._reader.execute("SELECT number FROM meta WHERE name='compact_revision'").fetchone()
        return int(found[0]) if found else 0

    def get(self, row: int) -> KeyValue | None:
        found = self._reader.execute(f"SELECT {_COLUMNS} FROM log WHERE row=?", (row,)).fetchone()
        return key_value(found) if found else None

    def _scan_connection(self) -> sqlite3.Connection:
        if self._scanner is None:
            self._scanner = connect(self.path)
            self._scanner.execute("PRAGMA synchronous=FULL")
            self._scanner.execute("PRAGMA cache_size=-1024")
        return self._scanner

    def get_many(self, rows: Sequence[int]) -> dict[int, KeyValue]:
        found: dict[int, KeyValue] = {}
        connection = self._scan_connection()
        for start in range(0, len(rows), 512):
            part = rows[start : start + 512]
            marks = ",".join("?" * len(part))
            for row in connection.execute(f"SELECT {_COLUMNS} FROM log WHERE row IN ({marks})", part):
                found[row[0]] = key_value(row)
        return found

    def scan(self, first: int, last: int, key: bytes, end: bytes, limit: int) -> list[KeyValue]:
        query = f"SELECT {_COLUMNS} FROM log WHERE row BETWEEN ? AND ?"
        arguments: list[int | bytes] = [first, last]
        if not end:
            query += " AND key = ?"
            arguments.append(key)
        else:
            query += " AND key >= ?"
            arguments.append(key)
            if end != b"\0":
                query += " AND key < ?"
                arguments.append(end)
        found: list[KeyValue] = []
        with closing(self._scan_connection().execute(f"{query} ORDER BY row", arguments)) as cursor:
            for row in cursor:
                kv = key_value(row)
                if len(found) >= limit and kv.mod_revision != found[-1].mod_revision:
                    break
                found.append(kv)
        return found

    def size(self) -> tuple[int, int]:
        pages, free, page_size = (
            self._reader.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return pages * page_size + self.wal.size, (pages - free) * page_size

    def copy(self, path: Path) -> None:
        with closing(connect(self.path)) as source:
            source.execute("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        if self._scanner is not None:
            self._scanner.close()
        self._reader.close()
        self._writer.close()
        self.wal.close()
        os.close(self._lock)


class MemoryLog:
    """The log in this process's memory, for tests: nothing on disk, nothing left behind."""

    def __init__(self) -> None:
        self._rows: dict[int, KeyValue] = {}
        self._order: list[int] = []
        self._dropped = 0
        self._leases: dict[int, int] = {}
        self._compact_revision = 0

    def append(self, rows: Sequence[Row], leases: Sequence[tuple[int, int]]) -> None:
        for row in rows:
            self._rows[row[0]] = key_value(row)
            self._order.append(row[0])
        for id_, ttl in leases:
            if ttl:
                self._leases[id_] = ttl
            else:
                self._leases.pop(id_, None)

    def delete(self, rows: Sequence[int], compact_revision: int) -> None:
        self._compact_revision = compact_revision
        for row in rows:
            del self._rows[row]
        self._dropped += len(rows)
        if self._dropped * 2 > len(self._order):
            self._order = sorted(self._rows)
            self._dropped = 0

    def index(self) -> Iterator[tuple[int, bytes, int, int, int]]:
        for row in self._order:
            if kv := self._rows.get(row):
                yield row, kv.key, kv.create_revision, kv.version, kv.lease

    def leases(self) -> list[tuple[int, int]]:
        return list(self._leases.items())

    def compact_revision(self) -> int:
        return self._compact_revision

    def get(self, row: int) -> KeyValue | None:
        return self._rows.get(row)

    def get_many(self, rows: Sequence[int]) -> dict[int, KeyValue]:
        return {row: self._rows[row] for row in rows if row in self._rows}

    def scan(self, first: int, last: int, key: bytes, end: bytes, limit: int) -> list[KeyValue]:
        found: list[KeyValue] = []
        for place in range(bisect_left(self._order, first), len(self._order)):
            row = self._order[place]
            if row > last:
                break
            kv = self._rows.get(row)
            if kv is None or not (kv.key == key if not end else kv.key >= key and (end == b"\0" or kv.key < end)):
                continue
            if len(found) >= limit and kv.mod_revision != found[-1].mod_revision:
                break
            found.append(kv)
        return found

    def size(self) -> tuple[int, int]:
        total = sum(len(kv.key) + len(kv.value) for kv in self._rows.values())
        return total, total

    def copy(self, path: Path) -> None:
        with closing(create(path)) as target:
            target.execute("PRAGMA journal_mode=DELETE")
            target.execute("BEGIN")
            target.executemany(
                "INSERT INTO log VALUES (?,?,?,?,?,?)",
                [
                    (kv.row, kv.key, kv.create_revision, kv.version, kv.lease, kv.value)
                    for kv in (self._rows[row] for row in self._order if row in self._rows)
                ],
            )
            target.executemany("INSERT INTO lease VALUES (?,?)", list(self._leases.items()))
            target.execute("INSERT INTO meta VALUES ('compact_revision', ?)", (self._compact_revision,))
            target.execute("COMMIT")

    def close(self) -> None:
        self._rows.clear()
        self._order.clear()
