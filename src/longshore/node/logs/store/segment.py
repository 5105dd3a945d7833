"""Segment files: append-only, a frame a block, each frame able to prove itself.

Frame: magic (4), CRC-32 of the rest (4), stream id (8), first and last time (8 + 8, nanoseconds), records (4),
raw length (4), stored length (4), then the records, zstd-compressed: as they are (LSB1), or (LSB2 and LSB3, where all
times are of one length) the length of the messages' part (4), the messages without their times, and the times' characters column by
column, each compressed by itself: columns of times compress to little, and a search for a text need not touch them. Damage to one frame loses that frame only: the
others are found through the index, or by their magic when the index is lost.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from longshore.wire import crilog

MAGIC = b"LSB1"
SPLIT = b"LSB2"  # and every record is a whole line
PIECES = b"LSB3"  # split as well, with pieces of lines
_ANY = re.compile(rb"LSB[123]")
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


class Plain(bytes):
    """A block of which it is known that every record is a whole line."""


class Codec:
    """Compresses and checks frames; one a thread."""

    def __init__(self, level: int = 4) -> None:
        self._compress = zstandard.ZstdCompressor(level=level)
        self._decompress = zstandard.ZstdDecompressor()

    def encode(self, stream: int, first: int, last: int, records: int, block: bytes) -> bytes:
        """The frame of a block."""
        found = crilog.columns(block)
        if found is None:
            magic, stored = MAGIC, self._compress.compress(block)
        else:
            magic, stored = SPLIT if found[3] else PIECES, self._split(*found[:3])
        rest = _HEAD.pack(magic, 0, stream, first, last, records, len(block), len(stored))[8:]
        return b"".join((magic, struct.pack("<I", zlib.crc32(stored, zlib.crc32(rest))), rest, stored))

    def _split(self, times: bytes, rest: bytes, count: int) -> bytes:
        width = len(times) // count
        messages = self._compress.compress(rest)
        by_column = self._compress.compress(b"".join([times[n::width] for n in range(width)]))
        return b"".join((struct.pack("<I", len(messages)), messages, by_column))

    def decode(self, frame: bytes, texts: Sequence[bytes] = ()) -> bytes | None:
        """A frame's block; None when it is known that no message of it holds all of `texts`. Raises Damaged."""
        if len(frame) < HEAD_SIZE or not _ANY.match(frame):
            raise Damaged("not a frame")
        crc = struct.unpack_from("<I", frame, 4)[0]
        if zlib.crc32(memoryview(frame)[8:]) != crc:
            raise Damaged("checksum differs")
        raw_size = _HEAD.unpack_from(frame)[6]
        stored = memoryview(frame)[HEAD_SIZE:]
        try:
            if frame[:4] == MAGIC:
                return self._decompress.decompress(stored, max_output_size=raw_size)
            end = 4 + struct.unpack_from("<I", stored)[0]
            rest = self._decompress.decompress(stored[4:end], max_output_size=raw_size)
            plain = frame[:4] == SPLIT
            if plain and any(text not in rest for text in texts):
                return None
            lines = rest.split(b"\n")
            columns = self._decompress.decompress(stored[end:], max_output_size=raw_size)
        except (zstandard.ZstdError, struct.error) as error:
            raise Damaged(str(error)) from error
        width = len(columns) // len(lines)
        times = bytearray(len(columns))
        for n in range(width):
            times[n::width] = columns[n * len(lines) : (n + 1) * len(lines)]
        whole = bytes(times)
        pieces = [whole[at : at + width] for at in range(0, len(whole), width)]
        block = b"".join([b"%b%b\n" % pair for pair in zip(pieces, lines, strict=True)])
        return Plain(block) if plain else block


def scan(path: Path) -> Iterator[Frame]:
    """Every frame that proves itself, in order; what lies between is passed over (a torn end, a damaged frame)."""
    data = path.read_bytes()
    offset = _next(data, 0)
    while offset >= 0:
        if offset + HEAD_SIZE <= len(data):
            _, crc, stream, first, last, records, raw_size, stored = _HEAD.unpack_from(data, offset)
            end = offset + HEAD_SIZE + stored
            if end <= len(data) and zlib.crc32(memoryview(data)[offset + 8 : end]) == crc:
                yield Frame(stream, first, last, records, raw_size, offset, HEAD_SIZE + stored)
                offset = _next(data, end)
                continue
        offset = _next(data, offset + 1)


def _next(data: bytes, at: int) -> int:
    found = _ANY.search(data, at)
    return found.start() if found else -1


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
