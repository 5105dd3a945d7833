"""Events as the forward protocol carries them: entries, messages in four modes, acknowledgements.

Source: github.com/fluent/fluentd/wiki "Forward Protocol Specification v1" and v1.5 (zstd).
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

SECOND = 1_000_000_000
_EVENT_TIME, _STAMP = 0, struct.Struct(">II")
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


def stamp(when: int) -> msgpack.ExtType:
    """EventTime of nanoseconds since 1970: ext type 0, seconds and nanoseconds, 32 bits each."""
    seconds, nanoseconds = divmod(when, SECOND)
    return msgpack.ExtType(_EVENT_TIME, _STAMP.pack(seconds & 0xFFFFFFFF, nanoseconds))


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one tag in one message. chunk: the id to acknowledge, None when the peer asks for none."""

    tag: str
    events: list[Event]
    chunk: str | None = None


#: An extension type as it is read: a plain pair (code, data), which no other msgpack value becomes (arrays are lists).
#: Making a class of its own for each time would cost as much as the rest of a record.
Extension = tuple[int, bytes]


def _extension(code: int, data: bytes) -> Extension:
    return code, data


def event_time(value: Extension) -> int | None:
    """An extension as a time in nanoseconds since 1970; None: it is another one."""
    code, data = value
    if code != _EVENT_TIME or len(data) != 8:
        return None
    seconds, nanoseconds = _STAMP.unpack(data)
    return int(seconds * SECOND + nanoseconds)


def unpacker_of(limit: int, data: bytes | None = None) -> msgpack.Unpacker:
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


BROKEN = (ValueError, TypeError, MemoryError, OverflowError, msgpack.UnpackException)


def _nanoseconds(when: object) -> int:
    """An entry's time: EventTime, or seconds; Fluent Bit's [time, metadata] gives its first."""
    if type(when) is tuple:
        found = event_time(when)
        return _bad_time(when) if found is None else found
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
    add, stamp_of = events.append, _STAMP.unpack
    for entry in entries:
        if type(entry) is not list or len(entry) != 2:
            raise ForwardError("an entry is not [time, record]")
        when, record = entry
        if type(record) is not dict:
            raise ForwardError("a record is not a map")
        if type(when) is tuple and when[0] == _EVENT_TIME and len(when[1]) == 8:
            seconds, nanoseconds = stamp_of(when[1])
            add((seconds * SECOND + nanoseconds, record))
        else:
            add((_nanoseconds(when), record))
    return events


def unpack_entries(data: bytes, limit: int = DEFAULT_LIMIT) -> list[Event]:
    """The events of a packed stream of [time, record]. Raises ForwardError."""
    unpacker = unpacker_of(limit + 1, data)
    unpacker.feed(b"\xc0")  # nil marks the end: an entry that is cut short swallows it
    try:
        entries = list(unpacker)
        if not entries or entries.pop() is not None:
            raise ForwardError("a chunk ends inside an entry")
        return _events(entries)
    except ForwardError:
        raise
    except BROKEN as error:
        raise ForwardError(f"a chunk cannot be read: {error}") from None


def unpack_value(data: bytes, limit: int = DEFAULT_LIMIT) -> Any:
    """One msgpack value. Raises ForwardError."""
    unpacker = unpacker_of(limit, data)
    try:
        return unpacker.unpack()
    except BROKEN as error:
        raise ForwardError(f"not msgpack: {error}") from None


def pack_entries(events: Iterable[Event]) -> bytes:
    """Events as a packed stream, times as EventTime."""
    # strict_types: a pair is an extension that was read, and goes out as one.
    packer = msgpack.Packer(
        use_bin_type=True, unicode_errors="surrogateescape", default=_default, strict_types=True, autoreset=False
    )
    for when, record in events:
        packer.pack([stamp(when), record])
    return bytes(packer.bytes())


def _default(value: object) -> object:
    return msgpack.ExtType(*value) if type(value) is tuple else str(value)


def _expanded(how: object, data: bytes, limit: int) -> bytes:
    """An entries' part freed of its compression, bounded. Raises ForwardError."""
    if how in ("text", None):
        return data
    if how == "gzip":
        return _inflate(data, limit)
    if how != "zstd":
        raise ForwardError(f"unknown compression {repr(how)[:40]}")
    import zstandard

    whole: list[bytes] = []
    size = 0
    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    try:
        while piece := reader.read(min(2**20, limit - size + 1)):
            whole.append(piece)
            size += len(piece)
            if size > limit:
                raise ForwardError("a compressed chunk is too big")
    except zstandard.ZstdError as error:
        raise ForwardError(f"a compressed chunk cannot be read: {error}") from None
    return b"".join(whole)


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


def octets(value: object) -> bytes:
    """A bin, or an older client's str that holds octets."""
    if isinstance(value, bytes):
        return value
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""


def text_of(value: object) -> str:
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
        packed, option = octets(second), message[2:3]
        events = unpack_entries(_expanded(_option(option).get("compressed"), packed, limit), limit)
    else:
        if len(message) < 3:
            raise ForwardError("a message has no record")
        events, option = _events([message[1:3]]), message[3:4]
    chunk = _option(option).get("chunk")
    name = octets(tag).decode("utf-8", "replace")
    return Batch(name, events, text_of(chunk) if isinstance(chunk, str | bytes) else None)


def _option(rest: list[Any]) -> dict[Any, Any]:
    if not rest or rest[0] is None:
        return {}
    if not isinstance(rest[0], dict):
        raise ForwardError("options are not a map")
    return rest[0]


def encode_batch(tag: str, entries: bytes, *, size: int, chunk: str | None = None, compressed: str = "") -> bytes:
    """A packed (or compressed packed) message. entries: of `pack_entries`; size: how many events; compressed: gzip, zstd or ""."""
    option: dict[str, Any] = {"size": size}
    if chunk is not None:
        option["chunk"] = chunk
    if compressed:
        option["compressed"] = compressed
        if compressed == "zstd":
            import zstandard

            entries = zstandard.ZstdCompressor().compress(entries)
        else:
            entries = gzip.compress(entries, 6, mtime=0)
    return bytes(msgpack.packb([tag, entries, option], use_bin_type=True))


def encode_event(
    tag: str, when: int, record: Mapping[str, Any], *, chunk: str | None = None, precise: bool = True
) -> bytes:
    """One event in message mode. when: nanoseconds since 1970; precise: as EventTime, else whole seconds."""
    option: dict[str, Any] = {} if chunk is None else {"chunk": chunk}
    time: object = stamp(when) if precise else when // SECOND
    return bytes(msgpack.packb([tag, time, record, option], use_bin_type=True, unicode_errors="surrogateescape"))


def encode_ack(chunk: str) -> bytes:
    """The answer to a chunk that is kept."""
    return bytes(msgpack.packb({"ack": chunk}, unicode_errors="surrogateescape"))


def chunk_id() -> str:
    """A new chunk id: 128 random bits, base64 as upstream sends them."""
    import base64

    return base64.b64encode(os.urandom(16)).decode()
