"""An ordered set of keys: chunks of sorted lists, so that adding one moves a thousand pointers at most."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bytes, str)
_CHUNK = 1024


class SortedKeys(Generic[Key]):
    """Sorted, unique strings of octets or characters. add and remove in about a microsecond, ranges as ready slices."""

    __slots__ = ("_chunks", "_firsts", "_size")

    def __init__(self) -> None:
        self._chunks: list[list[Key]] = []
        self._firsts: list[Key] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Key]:
        for chunk in self._chunks:
            yield from chunk

    def load(self, keys: list[Key]) -> None:
        """Replace all by `keys`, which must be sorted and unique."""
        self._chunks = [keys[i : i + _CHUNK] for i in range(0, len(keys), _CHUNK)]
        self._firsts = [chunk[0] for chunk in self._chunks]
        self._size = len(keys)

    def add(self, key: Key) -> None:
        """Add a key that is not in the set."""
        self._size += 1
        if not self._chunks:
            self._chunks.append([key])
            self._firsts.append(key)
            return
        place = max(bisect_right(self._firsts, key) - 1, 0)
        chunk = self._chunks[place]
        insort(chunk, key)
        self._firsts[place] = chunk[0]
        if len(chunk) > 2 * _CHUNK:
            tail = chunk[_CHUNK:]
            del chunk[_CHUNK:]
            self._chunks.insert(place + 1, tail)
            self._firsts.insert(place + 1, tail[0])

    def remove(self, key: Key) -> None:
        """Remove a key that is in the set."""
        place = bisect_right(self._firsts, key) - 1
        chunk = self._chunks[place]
        del chunk[bisect_left(chunk, key)]
        self._size -= 1
        if chunk:
            self._firsts[place] = chunk[0]
        else:
            del self._chunks[place]
            del self._firsts[place]

    def slices(self, start: Key, end: Key | None) -> Iterator[list[Key]]:
        """The keys of [start, end) in order, in lists (end None: to the last). The set must not change meanwhile."""
        if not self._chunks:
            return
        place = max(bisect_right(self._firsts, start) - 1, 0)
        low = bisect_left(self._chunks[place], start)
        for index in range(place, len(self._chunks)):
            chunk = self._chunks[index]
            if end is not None and chunk[-1] >= end:
                part = chunk[low : bisect_left(chunk, end)]
                if part:
                    yield part
                return
            if low < len(chunk):
                yield chunk[low:] if low else chunk
            low = 0

    def count(self, start: Key, end: Key | None) -> int:
        """How many keys there are in [start, end)."""
        return sum(map(len, self.slices(start, end)))
