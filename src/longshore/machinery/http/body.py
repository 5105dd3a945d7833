"""Message bodies on the wire: how long one is, and where it ends (RFC 9112 sections 6 and 7)."""

from __future__ import annotations

from typing import TypeVar

MAX_CHUNK_LINE = 4096
MAX_TRAILERS = 16384
#: What is looked at for a line's end: chunk lines are short.
_WINDOW = 128
_HEX = frozenset(b"0123456789abcdefABCDEF")

Octets = TypeVar("Octets", bytes, memoryview)


class BodyError(ValueError):
    """The framing of a body is broken."""


class LengthBody:
    """A body of a known number of octets."""

    __slots__ = ("done", "remaining")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = length == 0

    def feed(self, data: Octets) -> tuple[list[Octets], Octets]:
        """Octets of the body found in `data`, and what follows the body."""
        if len(data) < self.remaining:
            self.remaining -= len(data)
            return [data], data[:0]
        n, self.remaining, self.done = self.remaining, 0, True
        return ([data] if n == len(data) else [data[:n]]), data[n:]


class EOFBody:
    """A response body that ends with the connection."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: Octets) -> tuple[list[Octets], Octets]:
        return [data], data[:0]


class ChunkedBody:
    """The chunked transfer coding. Chunk extensions and trailers are read over; their sizes are limited."""

    __slots__ = ("_left", "_line", "_state", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._state = "size"
        self._left = 0
        self._line = b""
        self._trailers = 0

    def feed(self, data: Octets) -> tuple[list[Octets], Octets]:
        """Octets of the body found in `data`, and what follows the body.

        Raises BodyError where the framing is broken: a chunk size that is no hexadecimal number, a missing line end,
        lines or trailers past their limits.
        """
        out: list[Octets] = []
        pos, end = 0, len(data)
        while pos < end:
            if self._state == "data":
                take = min(self._left, end - pos)
                out.append(data if take == end else data[pos : pos + take])
                pos += take
                self._left -= take
                if not self._left:
                    self._state = "crlf"
                continue
            # every other state wants a whole line
            piece = bytes(data[pos : pos + _WINDOW])
            stop = piece.find(b"\n")
            if stop >= 0:
                piece = piece[: stop + 1]
            line = self._line + piece if self._line else piece
            if len(line) > MAX_CHUNK_LINE:
                raise BodyError("chunk line is too long")
            pos += len(piece)
            if stop < 0:
                if self._state == "crlf" and not b"\r\n".startswith(line):
                    raise BodyError("malformed chunked encoding")
                self._line = line
                continue
            self._line = b""
            if not line.endswith(b"\r\n"):
                raise BodyError("malformed chunked encoding")
            line = line[:-2]
            if self._state == "crlf":
                if line:
                    raise BodyError("malformed chunked encoding")
                self._state = "size"
            elif self._state == "size":
                size = line.split(b";", 1)[0].rstrip(b" \t")
                if not size or len(size) > 16 or not _HEX.issuperset(size) or b"\r" in line:
                    raise BodyError("invalid byte in chunk length")
                self._left = int(size, 16)
                self._state = "data" if self._left else "trailer"
            elif line:
                self._trailers += len(line)
                if self._trailers > MAX_TRAILERS:
                    raise BodyError("trailers are too long")
            else:
                self.done = True
                return out, data[pos:]
        return out, data[:0]


Body = LengthBody | ChunkedBody | EOFBody
