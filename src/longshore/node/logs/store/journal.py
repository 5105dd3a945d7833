"""The journal: what came in over the network is on disk here before it is acknowledged.

A container's log file is its own buffer; a record from the network has none, so it is written and synced here first,
many at a time, and goes on into a stream's head like any other. When the head has become a block, the index holds the
number of the last record in it; a file of the journal whose records are all in blocks is removed.

Frame: CRC-32 of the rest (4), length of the records (4), number (8), stream id (8), then CRI-format records.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_HEAD = struct.Struct("<IIQQ")
FILE_SIZE = 8 * 2**20
PREFIX = "journal:"


class Journal:
    """Numbered frames in numbered files. `add` and `release` belong to the loop's thread, `sync` to the store's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files: list[tuple[int, Path]] = []  # first number, path; oldest first
        self._pending: list[bytes] = []
        self._fd = -1
        self._size = 0
        self.number = 0

    def replay(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, stream id and records of every whole frame; what a kill left torn at the end is passed over."""
        for path in sorted(self._folder.glob("*.jnl")):
            first = int(path.stem)
            self._files.append((first, path))
            data = path.read_bytes()
            at = 0
            while at + _HEAD.size <= len(data):
                crc, length, number, stream = _HEAD.unpack_from(data, at)
                end = at + _HEAD.size + length
                if end > len(data) or zlib.crc32(memoryview(data)[at + 4 : end]) != crc:
                    break
                self.number = max(self.number, number)
                yield number, stream, data[at + _HEAD.size : end]
                at = end

    def add(self, stream: int, records: bytes) -> int:
        """Take records; on disk after the next `sync`. Returns their number."""
        self.number += 1
        rest = _HEAD.pack(0, len(records), self.number, stream)[4:]
        crc = zlib.crc32(records, zlib.crc32(rest))
        self._pending += (struct.pack("<I", crc), rest, records)
        return self.number

    def take(self) -> tuple[int, bytes]:
        """What waits to be written, and the number of its first frame."""
        pending, self._pending = self._pending, []
        return self.number + 1 - len(pending) // 3, b"".join(pending)

    def sync(self, first: int, data: bytes) -> None:
        """Write and sync what `take` gave. Raises OSError; nothing torn stays."""
        if self._fd < 0 or self._size >= FILE_SIZE:
            if self._fd >= 0:
                os.close(self._fd)
            path = self._folder / f"{first:020d}.jnl"
            self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._fd).st_size
            self._files.append((first, path))
            folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def release(self, needed: int) -> None:
        """Remove files whose frames all have numbers below `needed`."""
        while len(self._files) > 1 and self._files[1][0] <= needed:
            self._files.pop(0)[1].unlink(missing_ok=True)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
