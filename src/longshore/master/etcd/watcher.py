"""Watchers: ordered, unique, gap-free events of a key range, after they are on disk.

A watcher is either synced, and gets each commit's events pushed into its buffer, or it catches up by reading the log.
One that falls too far behind is sent back to the log, so that a slow reader costs no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from longshore.master.etcd.key_index import EVICTED, KeyIndex, with_value
from longshore.master.etcd.log import Log
from longshore.master.etcd.model import DELETE, PUT, Compacted, Event, KeyValue, StoreError, WatchBatch, prefix_end
from longshore.master.etcd.revision import last_row_of, row_of

T = TypeVar("T")

_BUFFER_EVENTS = 10_000
_SCAN_ROWS = 1000
PROGRESS_SECONDS = 600.0
"""etcd's interval of progress notifications to an idle watcher."""


class InReader(Protocol):
    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


class Watcher:
    """One open watch; made by WatcherHub.open."""

    __slots__ = (
        "_buffer", "_closed", "_error", "_hub", "_progress_asked", "_revision", "_synced", "_waiter",
        "end", "key", "prev_kv", "start_revision", "want_progress",
    )  # fmt: skip

    def __init__(
        self, hub: WatcherHub, key: bytes, end: bytes, start_revision: int, prev_kv: bool, progress: bool
    ) -> None:
        self._hub = hub
        self.key = key
        self.end = end
        self.prev_kv = prev_kv
        self.want_progress = progress
        self.start_revision = start_revision or hub.revision + 1
        self._revision = self.start_revision - 1  # everything up to here has been put into the buffer
        self._buffer: list[Event] = []
        self._synced = False
        self._progress_asked = False
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._error: StoreError | None = None

    def __aiter__(self) -> AsyncIterator[WatchBatch]:
        return self

    async def __anext__(self) -> WatchBatch:
        while True:
            if self._buffer:
                events, self._buffer = self._buffer, []
                if any(e.prev_kv is not None and e.prev_kv.value is EVICTED for e in events):
                    events = await self._hub.fill(events)
                return WatchBatch(events[-1].kv.mod_revision, events)
            if self._closed:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            if not self._synced:
                if self._revision >= self._hub.revision:
                    self._synced = True
                    self._hub.add(self)
                    continue
                batch = await self._catch_up()
                if batch is not None:
                    return batch
                continue
            if self._progress_asked:
                self._progress_asked = False
                if self._hub.revision >= self.start_revision:
                    return WatchBatch(self._hub.revision, [])
            self._waiter = self._hub.loop.create_future()
            timer = self._hub.loop.call_later(PROGRESS_SECONDS, self.request_progress) if self.want_progress else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()

    async def _catch_up(self) -> WatchBatch | None:
        first, target = self._revision + 1, self._hub.revision
        if first < self._hub.compact_revision:
            raise Compacted(self._hub.compact_revision)
        events = await self._hub.history(self, first, target, _SCAN_ROWS)
        if first < self._hub.compact_revision:
            raise Compacted(self._hub.compact_revision)
        # Fewer rows than asked for: the scan went all the way.
        self._revision = events[-1].kv.mod_revision if len(events) >= _SCAN_ROWS else target
        return WatchBatch(events[-1].kv.mod_revision, events) if events else None

    def offer(self, event: Event) -> None:
        """A committed event of this range, in order (hub)."""
        revision = event.kv.mod_revision
        if revision < self.start_revision:
            return
        if len(self._buffer) >= _BUFFER_EVENTS and revision != self._buffer[-1].kv.mod_revision:
            # What is buffered is still delivered; what follows comes from the log.
            self._revision = self._buffer[-1].kv.mod_revision
            self._synced = False
            self._hub.remove(self)
            return
        self._buffer.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def request_progress(self) -> None:
        self._progress_asked = True
        self._wake()

    def fail(self, error: StoreError) -> None:
        self._error = error
        self._wake()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._synced:
                self._hub.remove(self)
            self._hub.all.discard(self)
            self._buffer.clear()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class WatcherHub:
    """All watchers of a store, found by an event's key: single keys, prefixes (by length) and other ranges.

    in_reader: runs a function in the reader thread (or at once, when the log is in memory).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        index: KeyIndex,
        in_reader: InReader,
    ) -> None:
        self.loop = loop
        self.revision = 0
        self.compact_revision = 0
        self.all: set[Watcher] = set()
        self._log = log
        self._index = index
        self._in_reader = in_reader
        self._keys: dict[bytes, set[Watcher]] = {}
        self._prefixes: dict[bytes, set[Watcher]] = {}
        self._lengths: tuple[int, ...] = ()
        self._ranges: set[Watcher] = set()

    def open(self, key: bytes, end: bytes, start_revision: int, prev_kv: bool, progress: bool) -> Watcher:
        watcher = Watcher(self, key, end, start_revision, prev_kv, progress)
        self.all.add(watcher)
        if watcher.start_revision > self.revision:
            watcher._synced = True
            self.add(watcher)
        return watcher

    def add(self, watcher: Watcher) -> None:
        if not watcher.end:
            self._keys.setdefault(watcher.key, set()).add(watcher)
        elif watcher.key != b"\0" and watcher.end == prefix_end(watcher.key):
            self._prefixes.setdefault(watcher.key, set()).add(watcher)
            self._lengths = tuple(sorted({len(prefix) for prefix in self._prefixes}))
        else:
            self._ranges.add(watcher)

    def remove(self, watcher: Watcher) -> None:
        for table in (self._keys, self._prefixes):
            found = table.get(watcher.key)
            if found is not None and watcher in found:
                found.discard(watcher)
                if not found:
                    del table[watcher.key]
                    self._lengths = tuple(sorted({len(prefix) for prefix in self._prefixes}))
                return
        self._ranges.discard(watcher)

    def publish(self, revision: int, changes: Sequence[tuple[object, KeyValue, KeyValue | None, object]]) -> None:
        """A transaction is on disk: push its events to the synced watchers."""
        self.revision = revision
        keys, prefixes, lengths, ranges = self._keys, self._prefixes, self._lengths, self._ranges
        if not (keys or prefixes or ranges):
            return
        for _, kv, before, _ in changes:
            key = kv.key
            matching: list[Watcher] = []
            if key in keys:
                matching += keys[key]
            for length in lengths:
                found = prefixes.get(key[:length])
                if found is not None and length <= len(key):
                    matching += found
            if ranges:
                matching += [w for w in ranges if w.key <= key and (w.end == b"\0" or key < w.end)]
            if not matching:
                continue
            kind = PUT if kv.version else DELETE
            bare = Event(kind, kv)
            full = Event(kind, kv, before)
            for watcher in matching:
                watcher.offer(full if watcher.prev_kv else bare)

    async def history(self, watcher: Watcher, first: int, target: int, limit: int) -> list[Event]:
        """Events of revisions first..target from the log."""
        key, end = watcher.key, watcher.end
        kvs = await self._in_reader(lambda: self._log.scan(row_of(first), last_row_of(target), key, end, limit))
        before: dict[int, KeyValue] = {}
        wanted: dict[int, int] = {}
        if watcher.prev_kv:
            for kv in kvs:
                entry = self._index.entries.get(kv.key)
                row = entry.row_before(kv.row) if entry is not None else 0
                if row:
                    wanted[kv.row] = row
            rows = list(wanted.values())
            before = await self._in_reader(lambda: self._log.get_many(rows))
        return [Event(PUT if kv.version else DELETE, kv, before.get(wanted.get(kv.row, 0))) for kv in kvs]

    async def fill(self, events: list[Event]) -> list[Event]:
        """The same events with previous values that were no longer in memory read from the log."""
        rows = [e.prev_kv.row for e in events if e.prev_kv is not None and e.prev_kv.value is EVICTED]
        found = await self._in_reader(lambda: self._log.get_many(rows))
        filled: list[Event] = []
        for event in events:
            before = event.prev_kv
            if before is not None and before.value is EVICTED:
                kv = found.get(before.row)
                event = Event(event.type, event.kv, with_value(before, kv.value) if kv is not None else None)
            filled.append(event)
        return filled

    def fail(self, error: StoreError) -> None:
        """End every watch with an error (the store closes)."""
        for watcher in list(self.all):
            watcher.fail(error)
