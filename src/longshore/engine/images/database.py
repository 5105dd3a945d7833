"""The image store's facts: which images, layers, names and users there are.

SQLite in WAL mode, because several engines (one a node) share the store of a machine: short transactions, and the file
locks are SQLite's. What a client was told is durable is written with synchronous=FULL. Facts that a container's own
state holds as well (who uses which image) need not survive a power cut and go without the fsync.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longshore.machinery.sqlite import Connections

_SCHEMA = """
CREATE TABLE IF NOT EXISTS images(
    id TEXT PRIMARY KEY, parent TEXT NOT NULL, chain TEXT NOT NULL, config BLOB NOT NULL, size INTEGER NOT NULL,
    created INTEGER NOT NULL, tagged INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS images_parent ON images(parent);
CREATE INDEX IF NOT EXISTS images_chain ON images(chain);
CREATE TABLE IF NOT EXISTS names(
    name TEXT PRIMARY KEY, repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, image TEXT NOT NULL
    ) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_image ON names(image);
CREATE INDEX IF NOT EXISTS names_repository ON names(repository);
CREATE TABLE IF NOT EXISTS layers(
    chain TEXT PRIMARY KEY, diff TEXT NOT NULL, parent TEXT NOT NULL, size INTEGER NOT NULL, blob TEXT NOT NULL,
    media TEXT NOT NULL, blob_size INTEGER NOT NULL, folder TEXT NOT NULL,
    tar_size INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS layers_parent ON layers(parent);
CREATE INDEX IF NOT EXISTS layers_diff ON layers(diff);
CREATE TABLE IF NOT EXISTS manifests(
    digest TEXT PRIMARY KEY, media TEXT NOT NULL, image TEXT NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS manifests_image ON manifests(image);
CREATE TABLE IF NOT EXISTS indexes(name TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS indexes_digest ON indexes(digest);
CREATE TABLE IF NOT EXISTS members(
    digest TEXT NOT NULL, manifest TEXT NOT NULL, image TEXT NOT NULL, PRIMARY KEY(digest, manifest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS members_image ON members(image);
CREATE TABLE IF NOT EXISTS sources(
    diff TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, media TEXT NOT NULL, repository TEXT NOT NULL,
    PRIMARY KEY(diff, digest, repository)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses(
    container TEXT PRIMARY KEY, image TEXT NOT NULL, chain TEXT NOT NULL, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uses_image ON uses(image);
CREATE INDEX IF NOT EXISTS uses_chain ON uses(chain);
CREATE TABLE IF NOT EXISTS leases(
    lease TEXT NOT NULL, key TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, PRIMARY KEY(lease, key)
    ) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_key ON leases(key);
CREATE TABLE IF NOT EXISTS unsynced(chain TEXT PRIMARY KEY, boot TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seals(chain TEXT PRIMARY KEY, seal INTEGER NOT NULL) WITHOUT ROWID;
"""


def process_start(pid: int) -> int:
    """A process's start time in ticks since boot (with the pid it names the process for good), 0 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


_SETTINGS = ("journal_mode=WAL", "synchronous=FULL", "cache_size=-512")


class Database:
    """One connection a thread; every write is one `with database.write() as c` transaction.

    path: the SQLite file, made where absent. Raises sqlite3.Error when the file is no database of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connections = Connections(path, _SETTINGS)
        # WAL mode and the schema are set under one writer's lock: engines of several nodes may start at once.
        connection = self._connections.get()
        connection.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            connection.execute(statement)
        connection.execute("COMMIT")

    def close(self) -> None:
        self._connections.close()

    @contextlib.contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction; rolled back when the block raises. durable: on disk when the block has ended."""
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

    def all(self, sql: str, *arguments: object) -> list[Any]:
        return self._connections.get().execute(sql, arguments).fetchall()

    def one(self, sql: str, *arguments: object) -> Any:
        """The first row or None."""
        return self._connections.get().execute(sql, arguments).fetchone()


def own_process() -> tuple[int, int]:
    """(pid, start) of this process, as leases hold it."""
    pid = os.getpid()
    return pid, process_start(pid)
