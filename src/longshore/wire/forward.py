"""The Fluent forward protocol, version 1: both sides' messages and handshake, without I/O.

Source: github.com/fluent/fluentd/wiki "Forward Protocol Specification v1". A connection carries msgpack values: the
handshake (HELO, PING, PONG) where a shared key is set, then events in one of four modes (message, forward, packed,
compressed packed); an event chunk with an id is answered with `{"ack": id}` when it is kept.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

SECOND = 1_000_000_000
#: Octets of one message before it is whole, and of one decompressed chunk.
DEFAULT_LIMIT = 64 * 2**20
MOST_ENTRIES = 2**20
MOST_KEYS = 2**16

#: One event: its time in nanoseconds since 1970 and its record.
Event = tuple[int, dict[Any, Any]]


class ForwardError(ValueError):
    """The peer broke the protocol or a limit: the connection ends."""


class AuthenticationFailed(ForwardError):
    """A shared key, user or password is wrong; the message is the peer's reason."""


class EventTime(int):
    """A time in nanoseconds since 1970 that travels as ext type 0: seconds and nanoseconds, 32 bits each."""

    def pack(self) -> msgpack.ExtType:
        seconds, nanoseconds = divmod(int(self), SECOND)
        return msgpack.ExtType(0, struct.pack(">II", seconds & 0xFFFFFFFF, nanoseconds))


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one tag in one message. chunk: the id to acknowledge, None when the peer asks for none."""

    tag: str
    events: list[Event]
    chunk: str | None = None


def _extension(code: int, data: bytes) -> object:
    if code == 0 and len(data) == 8:
        seconds, nanoseconds = struct.unpack(">II", data)
        return EventTime(seconds * SECOND + nanoseconds)
    return msgpack.ExtType(code, data)


def _unpacker(limit: int, data: bytes | None = None) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker(
        raw=False,
        unicode_errors="surrogateescape",
        strict_map_key=False,
        ext_hook=_extension,
        max_buffer_size=limit,
        max_array_len=MOST_ENTRIES,
        max_map_len=MOST_KEYS,
    )
    if data is not None:
        try:
            unpacker.feed(data)
        except msgpack.BufferFull:
            raise ForwardError("a chunk is too big") from None
    return unpacker


_BROKEN = (ValueError, TypeError, MemoryError, OverflowError, msgpack.UnpackException)


def _nanoseconds(when: object) -> int:
    """An entry's time: EventTime, or seconds; Fluent Bit's [time, metadata] gives its first."""
    if type(when) is EventTime:
        return int(when)
    if isinstance(when, list) and when:
        return _nanoseconds(when[0]) if not isinstance(when[0], list) else _bad_time(when)
    if isinstance(when, bool) or not isinstance(when, int | float):
        return _bad_time(when)
    if isinstance(when, float) and not abs(when) < 1e11:
        return _bad_time(when)
    return int(when * SECOND)


def _bad_time(when: object) -> int:
    raise ForwardError(f"not an event's time: {repr(when)[:80]}")


def _events(entries: Iterable[Any]) -> list[Event]:
    events: list[Event] = []
    add = events.append
    for entry in entries:
        if type(entry) is not list or len(entry) != 2:
            raise ForwardError("an entry is not [time, record]")
        when, record = entry
        if type(record) is not dict:
            raise ForwardError("a record is not a map")
        add((int(when) if type(when) is EventTime else _nanoseconds(when), record))
    return events


def unpack_entries(data: bytes, limit: int = DEFAULT_LIMIT) -> list[Event]:
    """The events of a packed stream of [time, record]. Raises ForwardError."""
    unpacker = _unpacker(limit + 1, data)
    unpacker.feed(b"\xc0")  # nil marks the end: an entry that is cut short swallows it
    try:
        entries = list(unpacker)
        if not entries or entries.pop() is not None:
            raise ForwardError("a chunk ends inside an entry")
        return _events(entries)
    except ForwardError:
        raise
    except _BROKEN as error:
        raise ForwardError(f"a chunk cannot be read: {error}") from None


def unpack_value(data: bytes, limit: int = DEFAULT_LIMIT) -> Any:
    """One msgpack value. Raises ForwardError."""
    unpacker = _unpacker(limit, data)
    try:
        return unpacker.unpack()
    except _BROKEN as error:
        raise ForwardError(f"not msgpack: {error}") from None


def pack_entries(events: Iterable[Event]) -> bytes:
    """Events as a packed stream, times as EventTime."""
    packer = msgpack.Packer(use_bin_type=True, unicode_errors="surrogateescape", default=_default, autoreset=False)
    for when, record in events:
        packer.pack([EventTime(when).pack(), record])
    return bytes(packer.bytes())


def _default(value: object) -> object:
    return value.pack() if isinstance(value, EventTime) else str(value)


def _inflate(data: bytes, limit: int) -> bytes:
    """Gzip members one after another, bounded. Raises ForwardError."""
    whole: list[bytes] = []
    size = 0
    while data:
        inflater = zlib.decompressobj(31)
        try:
            part = inflater.decompress(data, limit - size + 1)
        except zlib.error as error:
            raise ForwardError(f"a compressed chunk cannot be read: {error}") from None
        size += len(part)
        if size > limit:
            raise ForwardError("a compressed chunk is too big")
        if not inflater.eof:
            raise ForwardError("a compressed chunk is cut short")
        whole.append(part)
        data = inflater.unused_data
    return b"".join(whole)


def _octets(value: object) -> bytes:
    """A bin, or an older client's str that holds octets."""
    if isinstance(value, bytes):
        return value
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def decode_message(message: object, limit: int = DEFAULT_LIMIT) -> Batch | None:
    """One message in any of the four modes; None for nil, which keeps a connection alive. Raises ForwardError."""
    if message is None:
        return None
    if not isinstance(message, list) or len(message) < 2:
        raise ForwardError("a message is not [tag, ...]")
    tag = message[0]
    if not isinstance(tag, str | bytes):
        raise ForwardError("a tag is not a text")
    second = message[1]
    if isinstance(second, list):
        events, option = _events(second), message[2:3]
    elif isinstance(second, bytes | str):
        packed, option = _octets(second), message[2:3]
        how = _option(option).get("compressed", "text")
        if how == "gzip":
            packed = _inflate(packed, limit)
        elif how not in ("text", None):
            raise ForwardError(f"unknown compression {repr(how)[:40]}")
        events = unpack_entries(packed, limit)
    else:
        if len(message) < 3:
            raise ForwardError("a message has no record")
        events, option = _events([message[1:3]]), message[3:4]
    chunk = _option(option).get("chunk")
    name = _octets(tag).decode("utf-8", "replace")
    return Batch(name, events, _text(chunk) if isinstance(chunk, str | bytes) else None)


def _option(rest: list[Any]) -> dict[Any, Any]:
    if not rest or rest[0] is None:
        return {}
    if not isinstance(rest[0], dict):
        raise ForwardError("options are not a map")
    return rest[0]


def encode_batch(tag: str, entries: bytes, *, size: int, chunk: str | None = None, compressed: bool = False) -> bytes:
    """A packed (or compressed packed) message. entries: of `pack_entries`; size: how many events."""
    option: dict[str, Any] = {"size": size}
    if chunk is not None:
        option["chunk"] = chunk
    if compressed:
        option["compressed"] = "gzip"
        entries = gzip.compress(entries, 6, mtime=0)
    return bytes(msgpack.packb([tag, entries, option], use_bin_type=True))


def encode_event(
    tag: str, when: int, record: Mapping[str, Any], *, chunk: str | None = None, precise: bool = True
) -> bytes:
    """One event in message mode. when: nanoseconds since 1970; precise: as EventTime, else whole seconds."""
    option: dict[str, Any] = {} if chunk is None else {"chunk": chunk}
    stamp: object = EventTime(when).pack() if precise else when // SECOND
    return bytes(msgpack.packb([tag, stamp, record, option], use_bin_type=True, unicode_errors="surrogateescape"))


class Acknowledgements:
    """Reads a receiver's answers."""

    def __init__(self) -> None:
        self._unpacker = _unpacker(65536)

    def feed(self, data: bytes) -> list[str]:
        """The chunks that `data` acknowledges. Raises ForwardError."""
        try:
            self._unpacker.feed(data)
            return [_text(value.get("ack", "")) for value in self._unpacker if isinstance(value, dict)]
        except (*_BROKEN, msgpack.BufferFull) as error:
            raise ForwardError(f"not an acknowledgement: {error}") from None


def encode_ack(chunk: str) -> bytes:
    """The answer to a chunk that is kept."""
    return bytes(msgpack.packb({"ack": chunk}, unicode_errors="surrogateescape"))


def _digest(*parts: bytes) -> str:
    return hashlib.sha512(b"".join(parts)).hexdigest()


class _Side:
    """What both sides share: octets in, values out, answers waiting to be sent."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unpacker = _unpacker(limit)
        self._out: list[bytes] = []

    def _values(self, data: bytes) -> Iterable[Any]:
        try:
            self._unpacker.feed(data)
            yield from self._unpacker
        except ForwardError:
            raise
        except msgpack.BufferFull:
            raise ForwardError(f"a message is longer than {self._limit} octets") from None
        except _BROKEN as error:
            raise ForwardError(f"not msgpack: {error}") from None

    def _say(self, value: object) -> None:
        self._out.append(msgpack.packb(value, use_bin_type=True, unicode_errors="surrogateescape"))

    def output(self) -> bytes:
        """What is to be sent now."""
        out, self._out = self._out, []
        return b"".join(out)


class Server(_Side):
    """The receiving side of a connection.

    shared_key: None for no handshake; users: name to password, None for no user authentication.
    """

    def __init__(
        self,
        hostname: str = "",
        *,
        shared_key: str | None = None,
        users: Mapping[str, str] | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        super().__init__(limit)
        self._hostname = hostname
        self._key = shared_key
        self._users = users
        self.ready = shared_key is None
        self.closing = False
        self._nonce, self._salt = os.urandom(16), os.urandom(16)
        if shared_key is not None:
            self._say(
                ["HELO", {"nonce": self._nonce, "auth": self._salt if users is not None else b"", "keepalive": True}]
            )

    def feed(self, data: bytes) -> list[Batch]:
        """The batches that `data` completes; `closing` afterwards: send the output, then end. Raises ForwardError."""
        batches: list[Batch] = []
        for value in self._values(data):
            if self.closing:
                break
            if not self.ready:
                self._ping(value)
                continue
            batch = decode_message(value, self._limit)
            if batch is not None:
                batches.append(batch)
        return batches

    def _ping(self, value: object) -> None:
        if not isinstance(value, list) or len(value) != 6 or value[0] != "PING":
            raise ForwardError("PING is expected")
        host, salt, digest, user, password = (_octets(part) for part in value[1:])
        key = (self._key or "").encode()
        reason = ""
        if not hmac.compare_digest(_digest(salt, host, self._nonce, key).encode(), digest):
            reason = "shared_key mismatch"
        elif self._users is not None:
            known = self._users.get(user.decode("utf-8", "replace"))
            expected = _digest(self._salt, user, (known or "").encode()).encode()
            if not hmac.compare_digest(expected, password) or known is None:
                reason = "username/password mismatch"
        if reason:
            self.closing = True
            self._say(["PONG", False, reason, "", ""])
            return
        self.ready = True
        self._say(["PONG", True, "", self._hostname, _digest(salt, self._hostname.encode(), self._nonce, key)])


class Client(_Side):
    """The sending side of a connection; `ready` when batches may be sent."""

    def __init__(
        self, hostname: str = "", *, shared_key: str | None = None, username: str = "", password: str = ""
    ) -> None:
        super().__init__(2**20)
        self._hostname, self._key, self._user, self._password = hostname, shared_key, username, password
        self._salt = os.urandom(16)
        self._nonce: bytes | None = None
        self.ready = shared_key is None

    def feed(self, data: bytes) -> list[str]:
        """The chunk ids that `data` acknowledges. Raises AuthenticationFailed, ForwardError."""
        acknowledged: list[str] = []
        for value in self._values(data):
            if self.ready:
                if isinstance(value, dict) and isinstance(value.get("ack"), str | bytes):
                    acknowledged.append(_text(value["ack"]))
            elif self._nonce is None:
                self._helo(value)
            else:
                self._pong(value)
        return acknowledged

    def _helo(self, value: object) -> None:
        if not isinstance(value, list) or len(value) != 2 or value[0] != "HELO" or not isinstance(value[1], dict):
            raise ForwardError("HELO is expected")
        self._nonce = _octets(value[1].get("nonce", b""))
        auth = _octets(value[1].get("auth", b""))
        digest = _digest(self._salt, self._hostname.encode(), self._nonce, (self._key or "").encode())
        user = self._user if auth else ""
        password = _digest(auth, self._user.encode(), self._password.encode()) if auth else ""
        self._say(["PING", self._hostname, self._salt, digest, user, password])

    def _pong(self, value: object) -> None:
        if not isinstance(value, list) or len(value) != 5 or value[0] != "PONG":
            raise ForwardError("PONG is expected")
        if value[1] is not True:
            raise AuthenticationFailed(f"authentication failed: {_text(value[2])[:200]}")
        host = _octets(value[3])
        expected = _digest(self._salt, host, self._nonce or b"", (self._key or "").encode()).encode()
        if not hmac.compare_digest(expected, _octets(value[4])):
            raise AuthenticationFailed("shared key mismatch")
        self.ready = True


def chunk_id() -> str:
    """A new chunk id: 128 random bits, base64 as upstream sends them."""
    import base64

    return base64.b64encode(os.urandom(16)).decode()
