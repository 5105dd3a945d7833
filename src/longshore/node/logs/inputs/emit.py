"""How events go from an input to what keeps them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from longshore.node.logs.store.index import Stream
from longshore.node.logs.store.store import LogStore
from longshore.wire import crilog
from longshore.wire.forward import Event, event_time

SECOND = 1_000_000_000
#: Times outside this span around now are not believed: the record gets the time of its arrival.
OLDEST, NEWEST = 7 * 86400 * SECOND, 3600 * SECOND
MOST_STREAMS = 5000
_DEPTH = 64


class Emit(Protocol):
    """Takes events of a tag. durable: return when they are kept so that a kill does not lose them. Raises OSError."""

    async def __call__(self, tag: str, events: Sequence[Event], *, durable: bool = True) -> None: ...


class StoreEmit:
    """Puts events into the node's store: a stream a tag, a record a line of JSON."""

    def __init__(self, store: LogStore, node: str, job: str) -> None:
        self._store = store
        self._node = node
        self._job = job
        self._streams: dict[str, Stream] = {}

    async def __call__(self, tag: str, events: Sequence[Event], *, durable: bool = True) -> None:
        if not events:
            return
        await self._store.room()
        records, ordered = records_of(events)
        self._store.put(self._stream(tag), records, ordered=ordered)
        if durable:
            await self._store.commit()

    def _stream(self, tag: str) -> Stream:
        stream = self._streams.get(tag)
        if stream is None:
            tag = tag[:256]
            if len(self._streams) >= MOST_STREAMS:
                tag = "other"
            labels = {"job": self._job, "node": self._node, "tag": tag}
            stream = self._streams[tag] = self._store.stream(f"input/{self._job}/{tag}", labels)
        return stream


def records_of(events: Sequence[Event]) -> tuple[bytes, bool]:
    """Events as CRI-format records of JSON, and whether they are in the order of their times."""
    now = time.time_ns()
    low, high = now - OLDEST, now + NEWEST
    dumps = orjson.dumps
    parts: list[bytes] = []
    second, head = -1, b""
    last, ordered = 0, True
    for when, record in events:
        if not low < when < high:
            when = now
        if when < last:
            ordered = False
        last = when
        seconds, nanoseconds = divmod(when, SECOND)
        if seconds != second:  # events that come together share their second
            second, head = seconds, crilog.format_time(seconds * SECOND)[:20]
        try:
            line = dumps(record)
        except TypeError:
            line = json_of(record)
        # Docker's driver tells in `source` which of the two streams it was.
        stream = b"stderr" if record.get("source") == "stderr" else b"stdout"
        parts.append(b"%b%09dZ %b F %b\n" % (head, nanoseconds, stream, line))
    return b"".join(parts), ordered


def json_of(value: object) -> bytes:
    """Any msgpack value as JSON: octets as text, keys as text, what is too deep or too big as its representation."""
    return orjson.dumps(_plain(value, 0))


def _plain(value: Any, depth: int) -> Any:
    if depth > _DEPTH:
        return "..."
    if isinstance(value, dict):
        return {_name(key): _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, tuple):  # an extension: EventTime, or one whose meaning nobody told
        when = event_time(value)
        return repr(value[1]) if when is None else when / SECOND
    if isinstance(value, list):
        return [_plain(inner, depth + 1) for inner in value]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    return repr(value)


def _name(key: Any) -> str:
    plain = _plain(key, _DEPTH)
    return plain if isinstance(plain, str) else orjson.dumps(plain).decode()
