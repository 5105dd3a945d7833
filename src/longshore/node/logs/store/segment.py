"""Segment files: append-only, a frame a block, each frame able to prove itself.

Frame: magic (4), CRC-32 of the rest (4), stream id (8), first and last time (8 + 8, nanoseconds), records (4),
raw length (4), stored length (4), then the zstd-compressed records. Damage to one frame loses that frame only: the
others are found through the index, or by their magic when the index is lost.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

MAGIC = b"LSB1"
_HEAD = struct.Struct("<4sIQQQIII")
HEAD_SIZE = _HEAD.size


class Damaged(ValueError):
    """A frame that does not prove itself."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One block's place and span; times in nanoseconds since 1970, sizes in bytes."""

    stream: int
    first: int
    last: int
    records: int
    raw_size: int
    offset: int
    size: int


class Codec:
    """Compresses and checks frames; one a thread."""

    def __init__(self, level: int = 3) -> None:
        self._compress = zstandard.ZstdCompressor(level=level)
        self._decompress = zstandard.ZstdDecompressor()

    def encode(self, stream: int, first: int, last: int, records: int, block: bytes) -> bytes:
        """The frame of a block."""
        stored = self._compress.compress(block)
        rest = _HEAD.pack(MAGIC, 0, stream, first, last, records, len(block), len(stored))[8:]
        return b"".join((MAGIC, struct.pack("<I", zlib.crc32(stored, zlib.crc32(rest))), rest, stored))

    def decode(self, frame: bytes) -> bytes:
        """A frame's block. Raises Damaged."""
        if len(frame) < HEAD_SIZE or frame[:4] != MAGIC:
            raise Damaged("not a frame")
        crc = struct.unpack_from("<I", frame, 4)[0]
        if zlib.crc32(memoryview(frame)[8:]) != crc:
            raise Damaged("checksum differs")
        raw_size = _HEAD.unpack_from(frame)[6]
        try:
            return self._decompress.decompress(memoryview(frame)[HEAD_SIZE:], max_output_size=raw_size)
        except zstandard.ZstdError as error:
            raise Damaged(str(error)) from error


def scan(path: Path) -> Iterator[Frame]:
    """Every frame that proves itself, in order; what lies between is passed over (a torn end, a damaged frame)."""
    data = path.read_bytes()
    offset = data.find(MAGIC)
    while offset >= 0:
        if offset + HEAD_SIZE <= len(data):
            _, crc, stream, first, last, records, raw_size, stored = _HEAD.unpack_from(data, offset)
            end = offset + HEAD_SIZE + stored
            if end <= len(data) and zlib.crc32(memoryview(data)[offset + 8 : end]) == crc:
                yield Frame(stream, first, last, records, raw_size, offset, HEAD_SIZE + stored)
                offset = data.find(MAGIC, end)
                continue
        offset = data.find(MAGIC, offset + 1)


class SegmentWriter:
    """Appends frames to one file; `sync` makes them last."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self.size = os.fstat(self._fd).st_size

    def append(self, frame: bytes) -> int:
        """Write one frame; returns its offset. Raises OSError, after which the file is cut back to what it was."""
        offset = self.size
        view = memoryview(frame)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, offset)
            raise
        self.size = offset + len(frame)
        return offset

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)
