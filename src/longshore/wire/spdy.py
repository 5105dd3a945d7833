"""SPDY/3.1 framing as Kubernetes streams use it: control and data frames, compressed header blocks. No I/O.

Source: SPDY Protocol draft 3.1, sections 2.2 to 2.6; github.com/moby/spdystream for what is used of it. There is no
flow control: WINDOW_UPDATE and SETTINGS are read over, as upstream's streams do; TCP holds the peer back.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

VERSION = 3
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FLAG_FIN, FLAG_UNIDIRECTIONAL = 1, 2
PROTOCOL_ERROR, INVALID_STREAM, REFUSED_STREAM, UNSUPPORTED_VERSION, CANCEL, INTERNAL_ERROR = 1, 2, 3, 4, 5, 6
MAX_FRAME = 1 << 24
MAX_HEADER_BLOCK = 256 * 1024  # decompressed octets of one block
MAX_DATA = 1 << 20  # octets that one data frame of ours carries

# Section 2.6.10.1: names and values that are to be expected, each behind its length in four octets, then loose text.
_EXPECTED = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_LOOSE = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 "
    "Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 "
    "Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept "
    "Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack("!I", len(w)) + w.replace("_", " ").encode() for w in _EXPECTED.split()) + _LOOSE.encode()
)

Fields = Mapping[str, str | list[str]]


class SpdyError(Exception):
    """The peer broke the protocol: the session cannot go on."""


@dataclass(frozen=True, slots=True)
class Opened:
    """SYN_STREAM: the peer opened a stream. `headers`: lower-case name to values."""

    stream: int
    headers: dict[str, list[str]]
    fin: bool
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class Replied:
    """SYN_REPLY, or HEADERS later."""

    stream: int
    headers: dict[str, list[str]]
    fin: bool


@dataclass(frozen=True, slots=True)
class Data:
    stream: int
    data: bytes
    fin: bool


@dataclass(frozen=True, slots=True)
class Reset:
    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class Pinged:
    id: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    last: int
    status: int


Event = Opened | Replied | Data | Reset | Pinged | GoneAway


class Sender:
    """Makes frames. The header blocks of one direction share a compression state: send frames in the order made."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(zlib.Z_BEST_COMPRESSION, zlib.DEFLATED, 15, 8, 0, DICTIONARY)

    def _block(self, headers: Fields) -> bytes:
        parts = [struct.pack("!I", len(headers))]
        for name, value in headers.items():
            key = name.lower().encode()
            joined = value.encode() if isinstance(value, str) else "\0".join(value).encode()
            parts += [struct.pack("!I", len(key)), key, struct.pack("!I", len(joined)), joined]
        return self._zlib.compress(b"".join(parts)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def syn_stream(self, stream: int, headers: Fields, *, fin: bool = False, priority: int = 0) -> bytes:
        body = struct.pack("!IIBB", stream, 0, priority << 5, 0) + self._block(headers)
        return control(SYN_STREAM, body, FLAG_FIN if fin else 0)

    def syn_reply(self, stream: int, headers: Fields | None = None, *, fin: bool = False) -> bytes:
        return control(SYN_REPLY, struct.pack("!I", stream) + self._block(headers or {}), FLAG_FIN if fin else 0)


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    """A control frame."""
    return struct.pack("!HHI", 0x8000 | VERSION, kind, flags << 24 | len(body)) + body


def data_frames(stream: int, data: bytes, *, fin: bool = False) -> list[bytes]:
    """`data` as frames, heads and bodies apart so that nothing is copied."""
    out: list[bytes] = []
    if len(data) <= MAX_DATA:
        head = struct.pack("!II", stream, (FLAG_FIN if fin else 0) << 24 | len(data))
        return [head, data] if data else [head]
    for start in range(0, len(data), MAX_DATA):
        piece = data[start : start + MAX_DATA]
        last = fin and start + MAX_DATA >= len(data)
        out += [struct.pack("!II", stream, (FLAG_FIN if last else 0) << 24 | len(piece)), piece]
    return out


def rst_stream(stream: int, status: int) -> bytes:
    return control(RST_STREAM, struct.pack("!II", stream, status))


def ping(id: int) -> bytes:
    return control(PING, struct.pack("!I", id))


def goaway(last: int, status: int = 0) -> bytes:
    return control(GOAWAY, struct.pack("!II", last, status))


class Receiver:
    """Octets in, events out. Data comes in the pieces in which it arrived; a frame's FIN is with its last piece."""

    def __init__(self) -> None:
        self._buffer = b""
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)
        self._stream = 0
        self._left = 0  # octets of the data frame under way
        self._fin = False

    def feed(self, data: bytes) -> list[Event]:
        """Events found in `data`. SpdyError when the peer broke the protocol."""
        events: list[Event] = []
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        pos, end = 0, len(data)
        while pos < end:
            if self._left:
                take = min(self._left, end - pos)
                self._left -= take
                piece = data if take == end else data[pos : pos + take]
                events.append(Data(self._stream, piece, self._fin and not self._left))
                pos += take
                continue
            if end - pos < 8:
                break
            word, sized = struct.unpack_from("!II", data, pos)
            length, flags = sized & 0xFFFFFF, sized >> 24
            if not word & 0x80000000:
                pos += 8
                if not word:
                    raise SpdyError("data on stream 0")
                if length:
                    self._stream, self._left, self._fin = word, length, bool(flags & FLAG_FIN)
                else:
                    events.append(Data(word, b"", bool(flags & FLAG_FIN)))
                continue
            if length > MAX_HEADER_BLOCK:
                raise SpdyError("control frame is too long")
            if end - pos < 8 + length:
                break
            if (word >> 16) & 0x7FFF != VERSION:
                raise SpdyError("unsupported version")
            event = self._control(word & 0xFFFF, flags, data[pos + 8 : pos + 8 + length])
            pos += 8 + length
            if event is not None:
                events.append(event)
        if pos < end:
            self._buffer = data[pos:]
        return events

    def _control(self, kind: int, flags: int, body: bytes) -> Event | None:
        try:
            if kind == SYN_STREAM:
                (stream,) = struct.unpack_from("!I", body)
                headers = self._block(body[10:])
                return Opened(_id(stream), headers, bool(flags & FLAG_FIN), bool(flags & FLAG_UNIDIRECTIONAL))
            if kind in (SYN_REPLY, HEADERS):
                (stream,) = struct.unpack_from("!I", body)
                return Replied(_id(stream), self._block(body[4:]), bool(flags & FLAG_FIN))
            if kind == RST_STREAM:
                stream, status = struct.unpack("!II", body)
                return Reset(_id(stream), status)
            if kind == PING:
                return Pinged(struct.unpack("!I", body)[0])
            if kind == GOAWAY:
                last, status = struct.unpack("!II", body)
                return GoneAway(last & 0x7FFFFFFF, status)
        except struct.error as error:
            raise SpdyError(f"short control frame of type {kind}") from error
        return None  # SETTINGS, WINDOW_UPDATE and what nobody knows

    def _block(self, data: bytes) -> dict[str, list[str]]:
        try:
            raw = self._zlib.decompress(data, MAX_HEADER_BLOCK)
        except zlib.error as error:
            raise SpdyError("bad header compression") from error
        if self._zlib.unconsumed_tail:
            raise SpdyError("header block is too long")
        (count,) = struct.unpack_from("!I", raw)
        pos = 4
        headers: dict[str, list[str]] = {}
        for _ in range(count):
            pair = []
            for _ in range(2):
                (length,) = struct.unpack_from("!I", raw, pos)
                pos += 4
                if pos + length > len(raw):
                    raise SpdyError("header block is cut")
                pair.append(raw[pos : pos + length].decode("utf-8", "replace"))
                pos += length
            name, value = pair
            if not name or name in headers:
                raise SpdyError("empty or repeated header name")
            headers[name.lower()] = value.split("\0")
        return headers


def _id(stream: int) -> int:
    stream &= 0x7FFFFFFF
    if not stream:
        raise SpdyError("stream 0")
    return stream


def first(headers: Mapping[str, Iterable[str]], name: str) -> str:
    """The first value of a header; "" without one."""
    return next(iter(headers.get(name.lower(), ())), "")
