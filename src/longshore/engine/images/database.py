"""The image store's facts: which images, layers, names and users there are.

SQLite in WAL mode, because several engines (one a node) share the store of a machine: short transactions, and the file
locks are SQLite's. What a client was told is durable is written with synchronous=FULL. Facts that a container's own
state holds as well (who uses which image) need not survive a power cut and go without the fsync.
"""

from __future__ import annotations

import os
from pathlib import Path

from longshore.machinery import sqlite

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


class Database(sqlite.Database):
    """The engine's. path: the file, made where absent."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA, ("cache_size=-512",))


def own_process() -> tuple[int, int]:
    """(pid, start) of this process, as leases hold it."""
    pid = os.getpid()
    return pid, process_start(pid)
