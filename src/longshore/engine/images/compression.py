"""Compressed streams: told by their first bytes, unpacked piece by piece."""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable
from typing import Protocol

GZIP_MAGIC, ZSTD_MAGIC, BZIP2_MAGIC, XZ_MAGIC = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00"
_SKIPPABLE = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))
_PIECE = 1 << 18

Read = Callable[[int], bytes]


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class BrokenStream(ValueError):
    """The compressed data is damaged or cut off."""


def kind(head: bytes) -> str:
    """ "gzip", "zstd", "bzip2", "xz" or "" from the first six bytes or more."""
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    if head.startswith(ZSTD_MAGIC) or head.startswith(_SKIPPABLE):
        return "zstd"
    if head.startswith(BZIP2_MAGIC):
        return "bzip2"
    if head.startswith(XZ_MAGIC):
        return "xz"
    return ""


class _Members:
    """Reads a stream of one or more members of a format whose decompressor knows a length limit."""

    def __init__(self, read: Read, make: Callable[[], _Decompressor], waits: bool) -> None:
        self._read, self._make, self._waits = read, make, waits
        self._one = make()
        self._input = b""
        self._started = False

    def __call__(self, limit: int) -> bytes:
        while True:
            if self._one.eof:
                rest = self._one.unused_data or self._read(_PIECE)
                if not rest.strip(b"\0"):
                    if not rest:
                        return b""
                    continue_with = self._read(_PIECE)
                    while continue_with and not continue_with.strip(b"\0"):
                        continue_with = self._read(_PIECE)
                    if not continue_with:
                        return b""
                    rest = continue_with
                self._one, self._input, self._started = self._make(), rest, False
            if not self._input and getattr(self._one, "needs_input", True):
                self._input = self._read(_PIECE)
                if not self._input:
                    raise BrokenStream("unexpected EOF")
            try:
                data = self._one.decompress(self._input, limit)
            except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
                raise BrokenStream(f"invalid compressed data: {error}") from None
            except Exception as error:
                if type(error).__module__.startswith("isal"):
                    raise BrokenStream(f"invalid compressed data: {error}") from None
                raise
            self._input = b"" if self._waits else getattr(self._one, "unconsumed_tail", b"")
            if data:
                return data


def reader(read: Read) -> Read:
    """A reader of the plain content of a stream in whatever compression it has (none included).

    read: returns up to n bytes, b"" at the end. Raises BrokenStream while reading damaged data.
    """
    head = b""
    while len(head) < 6:
        data = read(_PIECE)
        if not data:
            break
        head += data
    started = False

    def whole(limit: int) -> bytes:
        nonlocal started
        if not started:
            started = True
            return head
        return read(limit)

    form = kind(head)
    if form == "gzip":
        from isal import isal_zlib

        return _Members(whole, lambda: _Gzip(isal_zlib.decompressobj(wbits=31)), waits=False)
    if form == "bzip2":
        return _Members(whole, bz2.BZ2Decompressor, waits=True)
    if form == "xz":
        return _Members(whole, lambda: lzma.LZMADecompressor(memlimit=256 << 20), waits=True)
    if form == "zstd":
        import zstandard

        class Source:
            def read(self, count: int) -> bytes:
                return whole(count)

        stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            Source(),  # type: ignore[arg-type]
            read_size=_PIECE,
            read_across_frames=True,
        )

        def read_zstd(limit: int) -> bytes:
            try:
                return bytes(stream.read(limit))
            except zstandard.ZstdError as error:
                raise BrokenStream(f"invalid compressed data: {error}") from None

        return read_zstd
    return whole


class _Gzip:
    """isal's decompressor with the attributes that _Members reads."""

    def __init__(self, one: object) -> None:
        self._one = one

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        return self._one.decompress(data, max_length)  # type: ignore[attr-defined, no-any-return]

    @property
    def eof(self) -> bool:
        return bool(self._one.eof)  # type: ignore[attr-defined]

    @property
    def unused_data(self) -> bytes:
        return self._one.unused_data  # type: ignore[attr-defined, no-any-return]

    @property
    def unconsumed_tail(self) -> bytes:
        return self._one.unconsumed_tail  # type: ignore[attr-defined, no-any-return]

    @property
    def needs_input(self) -> bool:
        # What was held back by the length limit is in unconsumed_tail, which the caller hands in again.
        return True
