"""The key index: every key's newest version in memory, what is being committed beside it, and where its history lies.

Reads see `Entry.kv` only, which changes when a commit is on disk. Transactions are checked against `Entry.pending` first,
so that several may be under way to the disk at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator

from longshore.machinery.sorted_keys import SortedKeys
from longshore.master.etcd.model import KeyValue
from longshore.master.etcd.revision import last_row_of

EVICTED = bytes(bytearray(b"(value is in the log)"))
"""Stands, by identity, for a value that is kept in the log only."""


class Entry:
    """One key.

    kv: newest committed version, None when deleted. pending: newest version on its way to the disk (a tombstone has
    version 0). history: rows of earlier versions that can still be read, ascending, each as row * 2 + (1 if tombstone).
    """

    __slots__ = ("cached", "history", "key", "kv", "pending")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.kv: KeyValue | None = None
        self.pending: KeyValue | None = None
        self.history: list[int] | None = None
        self.cached = False

    def newest(self) -> KeyValue | None:
        """The version that a transaction sees: the pending one if there is one."""
        pending = self.pending
        if pending is None:
            return self.kv
        return pending if pending.version else None

    def row_at(self, revision: int) -> int:
        """The row of the version that was valid at a revision; 0 when the key did not exist then."""
        limit = last_row_of(revision)
        if self.kv is not None and self.kv.row <= limit:
            return self.kv.row
        return self._history_before(limit)

    def row_before(self, row: int) -> int:
        """The row of the version that `row` superseded; 0 when there was none or it is compacted."""
        return self._history_before(row - 1)

    def _history_before(self, limit: int) -> int:
        if not self.history:
            return 0
        place = bisect_right(self.history, limit * 2 + 1)
        if place == 0:
            return 0
        found = self.history[place - 1]
        return 0 if found & 1 else found >> 1


class KeyIndex:
    """All keys, their order, what compaction may take, and a budget for values kept in memory.

    cache_bytes: values past this total are evicted, oldest first, and read from the log when asked for.
    """

    def __init__(self, cache_bytes: int) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.keys: SortedKeys[bytes] = SortedKeys()
        # What a compaction takes, in the order in which it may: (revision at which it was superseded, row, entry).
        self.superseded: deque[tuple[int, int, Entry]] = deque()
        self.tombstones: deque[tuple[int, int, Entry]] = deque()
        self.cache_bytes = cache_bytes
        self.cached = 0
        self._cache_order: deque[Entry] = deque()

    def entry(self, key: bytes) -> Entry:
        """The entry of a key, made when it is new."""
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = Entry(key)
            self.keys.add(key)
        return entry

    def entries_in(self, key: bytes, end: bytes) -> Iterator[Entry]:
        """Entries of [key, end) in key order, deleted ones among them. The index must not change meanwhile."""
        entries = self.entries
        if not end:
            entry = entries.get(key)
            if entry is not None:
                yield entry
            return
        for part in self.keys.slices(key, None if end == b"\0" else end):
            for name in part:
                yield entries[name]

    def newest(self, key: bytes) -> KeyValue | None:
        entry = self.entries.get(key)
        return None if entry is None else entry.newest()

    def commit(self, entry: Entry, kv: KeyValue) -> None:
        """A version is on disk: make it the one that readers see."""
        old = entry.kv
        revision = kv.mod_revision
        if old is not None:
            if entry.history is None:
                entry.history = []
            entry.history.append(old.row * 2)
            self.superseded.append((revision, old.row, entry))
            if old.value is not EVICTED:
                self.cached -= len(old.value)
        if kv.version:
            entry.kv = kv
            self._remember(entry, kv)
        else:
            entry.kv = None
            if entry.history is None:
                entry.history = []
            entry.history.append(kv.row * 2 + 1)
            self.tombstones.append((revision, kv.row, entry))
        if entry.pending is kv:
            entry.pending = None

    def _remember(self, entry: Entry, kv: KeyValue) -> None:
        if kv.value is EVICTED:
            return
        self.cached += len(kv.value)
        if not entry.cached:
            entry.cached = True
            self._cache_order.append(entry)
        while self.cached > self.cache_bytes and self._cache_order:
            victim = self._cache_order.popleft()
            victim.cached = False
            old = victim.kv
            if old is not None and old.value is not EVICTED:
                self.cached -= len(old.value)
                victim.kv = with_value(old, EVICTED)

    def rollback(self, entries: Iterable[Entry]) -> None:
        """Forget what was on its way to the disk."""
        for entry in entries:
            entry.pending = None
            self.drop_if_empty(entry)

    def forget(self, row: int, entry: Entry) -> None:
        """A row of a key's history is compacted."""
        if entry.history:
            for place, marked in enumerate(entry.history):
                if marked >> 1 == row:
                    del entry.history[place]
                    break
            if not entry.history:
                entry.history = None
        self.drop_if_empty(entry)

    def drop_if_empty(self, entry: Entry) -> None:
        """Remove an entry that stands for nothing: never stored, or all of it compacted."""
        if entry.kv is None and entry.pending is None and not entry.history and self.entries.get(entry.key) is entry:
            del self.entries[entry.key]
            self.keys.remove(entry.key)

    def load(self, rows: Iterator[tuple[int, bytes, int, int, int]]) -> int:
        """Build the index of an existing log: (row, key, create revision, version, lease) in row order.

        Values stay in the log. Returns the last row, 0 for an empty log.
        """
        entries = self.entries
        row = 0
        for row, key, create_revision, version, lease in rows:
            entry = entries.get(key)
            if entry is None:
                entry = entries[key] = Entry(key)
            kv = KeyValue(key, EVICTED, create_revision, row >> 20, version, lease, row)
            self.commit(entry, kv)
        self.keys.load(sorted(entries))
        return row


def with_value(kv: KeyValue, value: bytes) -> KeyValue:
    """The same version of the key with another value."""
    return KeyValue(kv.key, value, kv.create_revision, kv.mod_revision, kv.version, kv.lease, kv.row)
