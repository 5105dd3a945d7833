"""The index: which streams there are, where their blocks lie, how far each log file has been read."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from longshore.node.logs.store.segment import Frame, scan

_SCHEMA = """
CREATE TABLE IF NOT EXISTS stream (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, labels TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS block (
    stream INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, records INTEGER NOT NULL,
    raw_size INTEGER NOT NULL, segment TEXT NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (stream, first, segment, offset)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS block_segment ON block (segment);
CREATE TABLE IF NOT EXISTS checkpoint (file TEXT PRIMARY KEY, inode INTEGER NOT NULL, position INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """One log stream: a container's log. key: what it is known by; labels: name to value, as queries see them."""

    id: int
    key: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """A block of a stream in a segment (named relative to the store's folder)."""

    segment: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a log file has been stored: its inode and the position in bytes."""

    file: str
    inode: int
    position: int


@contextlib.contextmanager
def told_as_oserror() -> Iterator[None]:
    """What SQLite cannot write is an OSError like that of any other file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(errno.EIO, str(error)) from error


class Index:
    """SQLite in WAL mode; used from one thread. A lost or damaged index is made again from the segments."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "index.db"
        try:
            self._db = self._open(path)
        except sqlite3.DatabaseError:
            for name in ("index.db", "index.db-wal", "index.db-shm"):
                (folder / name).unlink(missing_ok=True)
            self._db = self._open(path)
            self._rebuild()
        # Queries read beside the writer's transactions, from threads of their own.
        self._reader = self._open(path)
        self.streams: dict[int, Stream] = {}
        self._ids: dict[str, int] = {}
        for number, key, labels in self._db.execute("SELECT id, key, labels FROM stream"):
            self.streams[number] = Stream(number, key, orjson.loads(labels))
            self._ids[key] = number

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA cache_size=-2000")
        db.executescript(_SCHEMA)
        return db

    def _rebuild(self) -> None:
        """Find every block again; the streams' labels stand beside the segments in a file of their own."""
        known = self._folder / "streams.jsonl"
        if known.exists():
            rows = []
            for line in known.read_bytes().splitlines():
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue  # a torn last line
                rows.append((row["id"], row["key"], orjson.dumps(row["labels"]).decode()))
            self._db.executemany("INSERT OR REPLACE INTO stream VALUES (?, ?, ?)", rows)
        for segment in sorted(self._folder.glob("*/*.seg")):
            name = f"{segment.parent.name}/{segment.name}"
            self._db.executemany(
                "INSERT OR IGNORE INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(f.stream, f.first, f.last, f.records, f.raw_size, name, f.offset, f.size) for f in scan(segment)],
            )

    def known(self, key: str) -> bool:
        """Whether a stream of this key is there."""
        return key in self._ids

    def stream(self, key: str, labels: dict[str, str]) -> Stream:
        """The stream of a key, made or given new labels when they differ. Raises OSError: the disk is full."""
        number = self._ids.get(key)
        if number is not None and self.streams[number].labels == labels:
            return self.streams[number]
        with told_as_oserror():
            return self._write_stream(number, key, labels)

    def _write_stream(self, number: int | None, key: str, labels: dict[str, str]) -> Stream:
        text = orjson.dumps(labels).decode()
        if number is None:
            cursor = self._db.execute("INSERT INTO stream (key, labels) VALUES (?, ?)", (key, text))
            number = int(cursor.lastrowid or 0)
        else:
            self._db.execute("UPDATE stream SET labels = ? WHERE id = ?", (text, number))
        made = Stream(number, key, labels)
        with (self._folder / "streams.jsonl").open("ab") as out:
            out.write(orjson.dumps(made) + b"\n")
        self._ids[key] = number
        self.streams[number] = made
        return made

    def present(self, stream: Stream) -> Stream:
        """The stream as it is known now: with its newest labels, or made again where it was forgotten meanwhile."""
        number = self._ids.get(stream.key)
        return self.stream(stream.key, stream.labels) if number is None else self.streams[number]

    def without_blocks(self) -> list[int]:
        """The streams that have no blocks. Never the newest one: its number would be given again."""
        rows = self._db.execute(
            "SELECT id FROM stream WHERE id < (SELECT max(id) FROM stream)"
            " AND NOT EXISTS (SELECT 1 FROM block WHERE block.stream = stream.id)"
        )
        return [number for (number,) in rows]

    def forget(self, numbers: Sequence[int]) -> None:
        """Streams are no more; `present` brings back one that somebody still holds. Raises OSError: the disk is full."""
        with told_as_oserror():
            self._db.execute(
                "DELETE FROM stream WHERE id IN (SELECT value FROM json_each(?))", (orjson.dumps(numbers).decode(),)
            )
        for number in numbers:
            del self._ids[self.streams.pop(number).key]
        new = self._folder / "streams.jsonl.new"
        new.write_bytes(b"".join(orjson.dumps(stream) + b"\n" for stream in self.streams.values()))
        new.rename(self._folder / "streams.jsonl")

    def add(self, places: Iterable[Place], checkpoints: Iterable[Checkpoint]) -> None:
        """Make blocks visible and move the checkpoints on, in one transaction. Raises OSError: the disk is full."""
        with told_as_oserror():
            self._add(places, checkpoints)

    def _add(self, places: Iterable[Place], checkpoints: Iterable[Checkpoint]) -> None:
        self._db.execute("BEGIN")
        try:
            self._db.executemany(
                "INSERT OR IGNORE INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (f.stream, f.first, f.last, f.records, f.raw_size, p.segment, f.offset, f.size)
                    for p in places
                    for f in (p.frame,)
                ],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?)",
                [(c.file, c.inode, c.position) for c in checkpoints],
            )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has ended it already
                self._db.execute("ROLLBACK")
            raise

    def checkpoints(self) -> list[Checkpoint]:
        return [Checkpoint(*row) for row in self._db.execute("SELECT file, inode, position FROM checkpoint")]

    def forget_checkpoints(self, files: Iterable[str]) -> None:
        """Log files that are gone for good. Raises OSError: the disk is full."""
        with told_as_oserror():
            self._db.executemany("DELETE FROM checkpoint WHERE file = ?", [(file,) for file in files])

    def blocks(self, streams: Sequence[int], start: int, end: int) -> list[Place]:
        """The blocks of streams that touch [start, end), by first time."""
        found: list[Place] = []
        for number in streams:
            rows = self._reader.execute(
                "SELECT segment, stream, first, last, records, raw_size, offset, size FROM block"
                " WHERE stream = ? AND first < ? AND last >= ? ORDER BY first",
                (number, min(end, 2**63 - 1), max(start, 0)),
            )
            found.extend(Place(row[0], Frame(*row[1:])) for row in rows)
        found.sort(key=lambda place: place.frame.first)
        return found

    def segments(self) -> list[tuple[str, int, int]]:
        """Every segment with its last time and its bytes of blocks."""
        return list(
            self._db.execute("SELECT segment, max(last), sum(size) FROM block GROUP BY segment ORDER BY max(last)")
        )

    def drop_segment(self, segment: str) -> None:
        """Forget a segment's blocks. Raises OSError: the disk is full."""
        with told_as_oserror():
            self._db.execute("DELETE FROM block WHERE segment = ?", (segment,))

    def totals(self) -> tuple[int, int, int]:
        """Records, raw bytes, stored bytes."""
        row = self._db.execute(
            "SELECT coalesce(sum(records),0), coalesce(sum(raw_size),0), coalesce(sum(size),0) FROM block"
        ).fetchone()
        return int(row[0]), int(row[1]), int(row[2])

    def close(self) -> None:
        self._reader.close()
        self._db.close()
