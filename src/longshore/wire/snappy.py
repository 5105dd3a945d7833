"""Snappy's block format, read only: what Loki's and Prometheus' clients compress their requests with.

Source: github.com/google/snappy format_description.txt. A varint length, then literals and copies of what came before.
"""

from __future__ import annotations


class SnappyError(ValueError):
    """Not a Snappy block, or larger than allowed."""


def decompress(data: bytes, limit: int) -> bytes:
    """A block's contents, at most `limit` octets. Raises SnappyError."""
    size, at, shift = 0, 0, 0
    while True:
        if at >= len(data) or shift > 28:
            raise SnappyError("the length cannot be read")
        octet = data[at]
        size |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            break
    if size > limit:
        raise SnappyError(f"{size} octets are more than {limit}")
    out = bytearray()
    end = len(data)
    while at < end:
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == 0:
            length = (tag >> 2) + 1
            if length > 60:
                width = length - 60
                length = int.from_bytes(data[at : at + width], "little") + 1
                at += width
            if at + length > end:
                raise SnappyError("a literal is cut short")
            out += data[at : at + length]
            at += length
        else:
            if kind == 1:
                length, width = 4 + (tag >> 2 & 7), 1
                offset = (tag >> 5) << 8
            else:
                length, width = (tag >> 2) + 1, 2 if kind == 2 else 4
                offset = 0
            offset |= int.from_bytes(data[at : at + width], "little")
            at += width
            if at > end or not 0 < offset <= len(out):
                raise SnappyError("a copy leads outside")
            start = len(out) - offset
            if offset >= length:
                out += out[start : start + length]
            else:  # a copy that runs into what it writes repeats it
                piece = bytes(out[start:])
                out += (piece * (length // offset + 1))[:length]
        if len(out) > size:
            raise SnappyError("there is more than the length says")
    if len(out) != size:
        raise SnappyError("there is less than the length says")
    return bytes(out)
