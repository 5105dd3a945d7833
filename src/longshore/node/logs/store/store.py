"""The log store: heads in memory, blocks on disk, retention by age and size."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from longshore.node.logs.store.index import Checkpoint, Index, Place, Stream
from longshore.node.logs.store.journal import PREFIX, Journal
from longshore.node.logs.store.segment import Codec, Damaged, Frame, SegmentWriter
from longshore.wire import crilog

log = logging.getLogger("longshore.logs.store")

BLOCK_SIZE = 512 * 1024
FLUSH_SECONDS = 30.0
MOST_PENDING = 4 * 2**20
HOUR = 3600 * 1_000_000_000
_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long and how much: age in seconds, size in bytes of stored blocks; None: no bound.

    by_namespace: bounds of single namespaces, which take the place of the general ones.
    """

    age: float | None = 7 * 86400.0
    size: int | None = 4 * 2**30
    by_namespace: dict[str, Retention] = field(default_factory=dict)


@dataclass(slots=True)
class Head:
    """What has been collected of a stream and is not on disk yet: whole records, and the checkpoint behind them."""

    stream: Stream
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    since: float = 0.0
    checkpoint: Checkpoint | None = None
    journal: int = 0  # the number of its first record in the journal, 0: it came from a log file
    last: bytes = b""  # the time of the newest record that came over the network, as text
    ordered: bool = True

    def block(self) -> bytes:
        """The records in the order of their times: what comes over the network may come in any order."""
        block = b"".join(self.parts)
        if self.ordered:
            return block
        records = block.split(b"\n")
        records.pop()
        records.sort(key=_time_text)
        return b"\n".join(records) + b"\n" if records else b""

    def arrived(self, records: bytes, ordered: bool) -> None:
        """Look whether records that came over the network go on where the last ones ended."""
        self.ordered = self.ordered and ordered and self.last <= records[:30]
        begin = records.rfind(b"\n", 0, len(records) - 1) + 1
        self.last = records[begin : begin + 30]


def _time_text(record: bytes) -> bytes:
    return record[:30]


class LogStore:
    """One node's log store.

    `append` never waits: a collector asks `full` and stops reading when it is true, for the log file itself is the
    buffer. A query sees heads and blocks alike.
    """

    def __init__(self, folder: Path, retention: Retention | None = None) -> None:
        self.folder = folder
        self.index = Index(folder)
        self.retention = retention or Retention()
        self._heads: dict[int, Head] = {}
        self._writing: list[Head] = []
        self._writers: dict[str, SegmentWriter] = {}
        self._codec = Codec()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-store")
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        self._commit: asyncio.Task[None] | None = None
        self._wanted: set[int] = set()
        #: Records are in a head, or in a block that the index has, for whoever holds this: never in both or in neither.
        self._moving = threading.Lock()
        self._room: list[Callable[[], None]] = []
        #: Called with every piece of records as it comes in, for those who follow.
        self.followers: set[Callable[[Stream, bytes], None]] = set()
        self._next_retention = 0.0
        self._emptied: list[int] = []  # streams that had no blocks left after the last retention
        self.failures = self.damaged = self.retired = 0
        self._journal = Journal(folder / "journal")
        self._journal_thread = ThreadPoolExecutor(1, thread_name_prefix="log-journal")
        self._waiters: list[asyncio.Future[None]] = []
        self._syncing: asyncio.Task[None] | None = None
        self._replay()

    @property
    def pending(self) -> int:
        """Octets in memory that are in no block yet."""
        return self._pending

    @property
    def full(self) -> bool:
        """Whether a collector should wait: too much is in memory already."""
        return self._pending >= MOST_PENDING

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call back once when `full` has ended."""
        self._room.append(callback)

    def stream(self, key: str, labels: dict[str, str]) -> Stream:
        return self.index.stream(key, labels)

    def append(self, stream: Stream, records: bytes, checkpoint: Checkpoint | None = None) -> None:
        """Take whole CRI-format records of a stream. checkpoint: where the collector stands after them."""
        self._append(self.index.present(stream), records, checkpoint, 0)

    def put(self, stream: Stream, records: bytes, *, ordered: bool = False) -> None:
        """Take whole CRI-format records that came over the network; they last when a later `commit` returns.

        Their times are as `crilog.format_time` writes them, and may come in any order. ordered: these are in theirs.
        """
        stream = self.index.present(stream)
        number = self._journal.add(stream.id, records)
        self._append(stream, records, Checkpoint(f"{PREFIX}{stream.id}", 0, number), number, ordered)

    async def commit(self) -> None:
        """Return when all that has been put is synced to disk. Raises OSError; all who wait share one sync."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(done)
        if self._syncing is None:
            self._syncing = asyncio.ensure_future(self._sync_loop())
        await done

    async def _sync_loop(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiters:
                waiters, self._waiters = self._waiters, []
                first, data = self._journal.take()
                error: OSError | None = None
                if data:
                    try:
                        await loop.run_in_executor(self._journal_thread, self._journal.sync, first, data)
                    except OSError as failure:
                        self.failures += 1
                        log.error("cannot write the journal: %s", failure)
                        error = failure
                for done in waiters:
                    if not done.done():
                        done.set_exception(error) if error else done.set_result(None)
        finally:
            self._syncing = None

    async def room(self) -> None:
        """Return when `full` has ended."""
        while self.full:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.on_room(lambda ended=ended: ended.done() or ended.set_result(None))  # type: ignore[misc]
            await ended

    def _replay(self) -> None:
        """Take from the journal what a kill kept from becoming blocks."""
        stored = {c.file: c.position for c in self.index.checkpoints() if c.file.startswith(PREFIX)}
        for number, stream, records in self._journal.replay():
            name = f"{PREFIX}{stream}"
            if number > stored.get(name, 0) and stream in self.index.streams:
                self._append(self.index.streams[stream], records, Checkpoint(name, 0, number), number)
        self._journal.number = max(self._journal.number, *stored.values(), 0)

    def _append(
        self, stream: Stream, records: bytes, checkpoint: Checkpoint | None, journal: int, ordered: bool = False
    ) -> None:
        head = self._heads.get(stream.id)
        if head is None:
            head = self._heads[stream.id] = Head(stream, since=time.monotonic(), journal=journal)
        if journal:
            head.arrived(records, ordered)
        head.parts.append(records)
        head.size += len(records)
        head.checkpoint = checkpoint or head.checkpoint
        self._pending += len(records)
        for follower in tuple(self.followers):
            follower(stream, records)
        if head.size >= BLOCK_SIZE or self.full:
            self.flush(stream.id)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush_old)

    def flush(self, stream: int) -> None:
        """Ask for a stream's head to be written soon (its log file is going away, its head is big)."""
        self._wanted.add(stream)
        if self._commit is None:
            self._commit = asyncio.ensure_future(self._commit_loop())

    def _flush_old(self) -> None:
        self._timer = None
        for stream in list(self._heads):
            self.flush(stream)

    async def _commit_loop(self) -> None:
        """Write wanted heads until none is left: all that wait go into one commit."""
        loop = asyncio.get_running_loop()
        backoff = 0.5
        try:
            while self._wanted or self._writing:
                if not self._writing:
                    with self._moving:
                        taken = (self._heads.pop(number, None) for number in self._wanted)
                        self._writing.extend(head for head in taken if head)
                    self._wanted.clear()
                try:
                    await loop.run_in_executor(self._thread, self._write, list(self._writing))
                except OSError as error:
                    # A full disk: what is in memory stays readable, the log files keep the rest, try again later.
                    self.failures += 1
                    log.error("cannot store logs: %s", error)
                    await asyncio.sleep(backoff)
                    backoff = min(backoff * 2, 30)
                    continue
                backoff = 0.5
                self._pending -= sum(job.size for job in self._writing)
                self._writing.clear()
                self._forget_emptied()
                self._journal.release(min((h.journal for h in self._heads.values() if h.journal), default=2**63))
                if not self.full:
                    waiting, self._room = self._room, []
                    for callback in waiting:
                        callback()
        finally:
            self._commit = None

    def _forget_emptied(self) -> None:
        """Let go of streams that retention has left nothing of and that have nothing new."""
        emptied, self._emptied = self._emptied, []
        emptied = [number for number in emptied if number not in self._heads]
        if emptied:
            try:
                self.index.forget(emptied)
            except OSError as error:  # the next retention finds them again
                log.warning("streams without blocks stay: %s", error)

    def _write(self, jobs: Sequence[Head]) -> None:
        """In the store's thread: frames to segments, sync, then the index; nothing is visible before it lasts."""
        places: list[Place] = []
        used: set[SegmentWriter] = set()
        for job in jobs:
            block = job.block()
            if not block:
                continue
            for piece in _pieces(block):
                first, last = span(piece)
                writer, name = self._writer(job.stream, first)
                frame = self._codec.encode(job.stream.id, first, last, piece.count(b"\n"), piece)
                offset = writer.append(frame)
                places.append(
                    Place(name, Frame(job.stream.id, first, last, piece.count(b"\n"), len(piece), offset, len(frame)))
                )
                used.add(writer)
        for writer in used:
            writer.sync()
        with self._moving:
            self.index.add(places, [job.checkpoint for job in jobs if job.checkpoint])
            for job in jobs:
                job.parts = []
        now = time.time()
        if now >= self._next_retention:
            self._next_retention = now + 60
            self._apply_retention(now)

    def _writer(self, stream: Stream, when: int) -> tuple[SegmentWriter, str]:
        namespace = stream.labels.get("namespace", "")
        if not _NAMESPACE.fullmatch(namespace):
            namespace = "_node"  # a pushed label may be anything; a folder's name may not
        name = f"{namespace}/{when // HOUR * 3600}.seg"
        writer = self._writers.get(name)
        if writer is None:
            while len(self._writers) >= 32:
                self._writers.pop(next(iter(self._writers))).close()
            writer = self._writers[name] = SegmentWriter(self.folder / name)
        return writer, name

    def _apply_retention(self, now: float) -> None:
        """Drop whole segments: those past their age, then the oldest of what is too much."""
        sizes: dict[str, int] = {}
        segments = self.index.segments()
        for name, _, size in segments:
            namespace = name.split("/")[0]
            sizes[namespace] = sizes.get(namespace, 0) + size
        total = sum(sizes.values())
        for name, last, size in segments:
            namespace = name.split("/")[0]
            own = self.retention.by_namespace.get(namespace)
            rule = own or self.retention
            held = sizes[namespace] if own else total
            too_old = rule.age is not None and last < (now - rule.age) * 1e9
            too_much = rule.size is not None and held > rule.size
            if not (too_old or too_much):
                continue
            self.index.drop_segment(name)
            self.retired += 1
            writer = self._writers.pop(name, None)
            if writer:
                writer.close()
            (self.folder / name).unlink(missing_ok=True)
            sizes[namespace] -= size
            total -= size
        self._emptied = self.index.without_blocks()

    def matching(self, keep: Callable[[dict[str, str]], bool]) -> list[Stream]:
        """The streams whose labels satisfy `keep`."""
        # A copy: queries have threads of their own, and streams come and go meanwhile.
        return [stream for stream in list(self.index.streams.values()) if keep(stream.labels)]

    def blocks(
        self,
        streams: Sequence[Stream],
        start: int,
        end: int,
        newest_first: bool = False,
        texts: Sequence[bytes] = (),
        skip: Callable[[int, int], bool] | None = None,
    ) -> Iterator[tuple[Stream, bytes]]:
        """Blocks of streams that may hold records in [start, end) nanoseconds, heads included.

        In order of their first time (by their last, newest first, when asked); skip: whether a block with these first
        and last times is not wanted any more, asked before it is read. Blocks without any of `texts` may be left out. A damaged block is left out and told in the log.
        """
        by_id = {stream.id: stream for stream in streams}
        heads: list[tuple[int, int, Stream, bytes]] = []
        with self._moving:
            for job in [*self._writing, *(head for number in by_id if (head := self._heads.get(number)))]:
                if job.stream.id in by_id and job.parts:
                    heads.append(_with_time(by_id[job.stream.id], job.block()))
            places = self.index.blocks(list(by_id), start, end)
        heads = [head for head in heads if head[0] < end]
        written = [(place.frame.first, place.frame.last, by_id[place.frame.stream], place) for place in places]
        merged: list[tuple[int, int, Stream, bytes | Place]] = sorted(
            [*written, *heads],
            key=(lambda item: item[1]) if newest_first else (lambda item: item[0]),
            reverse=newest_first,
        )
        codec = Codec()
        for first, last, stream, where in merged:
            if skip is not None and skip(first, last):
                continue
            if isinstance(where, bytes):
                yield stream, where
                continue
            try:
                block = codec.decode(self._read(where), texts)
            except (Damaged, OSError) as error:
                self.damaged += 1
                log.error("a block of %s at %d is lost: %s", where.segment, where.frame.offset, error)
                continue
            if block is not None:
                yield stream, block

    def _read(self, place: Place) -> bytes:
        fd = os.open(self.folder / place.segment, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, place.frame.size, place.frame.offset)
        finally:
            os.close(fd)

    async def close(self) -> None:
        """Write every head, then end."""
        if self._timer:
            self._timer.cancel()
        self._flush_old()
        if self._commit:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await asyncio.shield(self._commit)
        if self._syncing:
            await self._syncing
        self._thread.shutdown(wait=True)
        self._journal_thread.shutdown(wait=True)
        self._journal.close()
        for writer in self._writers.values():
            writer.close()
        self.index.close()


def span(block: bytes) -> tuple[int, int]:
    """First and last time of a block of records; now, where a record's time cannot be read."""
    times = []
    for raw in (block[: block.find(b"\n")], block[block.rfind(b"\n", 0, len(block) - 1) + 1 : -1]):
        try:
            times.append(crilog.parse_time(raw.split(b" ", 1)[0]))
        except ValueError:
            times.append(time.time_ns())
    return min(times), max(times)


def _with_time(stream: Stream, block: bytes) -> tuple[int, int, Stream, bytes]:
    return *span(block), stream, block


def _pieces(block: bytes) -> Iterator[bytes]:
    """Cut a block into pieces of about BLOCK_SIZE at record ends."""
    start = 0
    while len(block) - start > BLOCK_SIZE * 2:
        cut = block.rfind(b"\n", start, start + BLOCK_SIZE) + 1
        if cut <= start:
            cut = block.find(b"\n", start + BLOCK_SIZE) + 1
            if cut <= 0:
                break
        yield block[start:cut]
        start = cut
    yield block[start:]
