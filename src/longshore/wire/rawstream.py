"""Docker's multiplexed stream: frames of stdout and stderr in one byte stream.

Source: Docker Engine API, "Attach to a container", stream format: one octet stream, three of zero, four of length.
"""

from __future__ import annotations

import struct

STDIN, STDOUT, STDERR, SYSTEM_ERROR = 0, 1, 2, 3
MAX_FRAME = 16 * 1024 * 1024


class RawStreamError(ValueError):
    """Not a multiplexed stream."""


def head(stream: int, length: int) -> bytes:
    """The head of a frame."""
    return struct.pack("!BxxxI", stream, length)


def encode(stream: int, data: bytes) -> bytes:
    """One frame."""
    return struct.pack("!BxxxI", stream, len(data)) + data


class Decoder:
    """Octets in, (stream, data) out; data comes in the pieces in which it arrived."""

    def __init__(self) -> None:
        self._head = b""
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """RawStreamError where a frame's head is none."""
        out: list[tuple[int, bytes]] = []
        pos, end = 0, len(data)
        while pos < end:
            if self._left:
                take = min(self._left, end - pos)
                out.append((self._stream, data[pos : pos + take]))
                self._left -= take
                pos += take
                continue
            need = 8 - len(self._head)
            self._head += data[pos : pos + need]
            pos += need
            if len(self._head) < 8:
                break
            stream, a, b, c, length = struct.unpack("!BBBBI", self._head)
            if stream > SYSTEM_ERROR or a or b or c or length > MAX_FRAME:
                raise RawStreamError(f"unrecognized stream: {stream}")
            self._head, self._stream, self._left = b"", stream, length
        return out
