"""Snapshots: one SQLite file with everything in it, taken while the store runs, and putting one in a store's place."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from longshore.master.etcd.log import SCHEMA_VERSION, Log, connect
from longshore.master.etcd.model import Corrupt, Unavailable
from longshore.master.etcd.revision import revision_of


def take(log: Log, path: Path) -> int:
    """Write a consistent copy of the log to a new file and flush it to disk. Returns the revision it holds.

    FileExistsError when there is a file already: a snapshot never overwrites one.
    """
    if path.exists():
        raise FileExistsError(path)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        log.copy(part)
        os.chmod(part, 0o600)
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        revision = inspect(part)
        os.rename(part, path)
        _sync_folder(path.parent)
    finally:
        for rest in (part, Path(f"{part}-journal"), Path(f"{part}-wal"), Path(f"{part}-shm")):
            rest.unlink(missing_ok=True)
    return revision


def inspect(path: Path) -> int:
    """The revision of a snapshot. Corrupt when the file is not a whole one."""
    try:
        with closing(connect(path, readonly=True)) as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                raise Corrupt(f"{path} is not a snapshot of this version")
            found = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found is None or found[0] != "ok":
                raise Corrupt(f"{path} is damaged: {found[0] if found else 'empty'}")
            row = connection.execute("SELECT max(row) FROM log").fetchone()[0]
    except sqlite3.Error as error:
        raise Corrupt(f"{path} is not a snapshot: {error}") from None
    return max(revision_of(row or 0), 1)


def restore(snapshot: Path, store: Path) -> int:
    """Make a new store file of a snapshot. FileExistsError when there is a store already. Returns its revision."""
    if store.exists():
        raise FileExistsError(store)
    revision = inspect(snapshot)
    store.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = store.with_name(store.name + ".restoring")
    try:
        shutil.copyfile(snapshot, part)
        os.chmod(part, 0o600)
        fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(part, store)
        _sync_folder(store.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Unavailable(f"{store} cannot be restored: {error}") from error
    return revision


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
