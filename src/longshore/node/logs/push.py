"""Loki's push: JSON (plain or gzip) or protobuf in Snappy, as Promtail and Grafana Alloy send it, to streams of the store, answered after it is synced.

Source: grafana.com/docs/loki "Ingest logs", limits as Loki's defaults have them.
"""

from __future__ import annotations

import functools
import re
import time
from typing import Any

import orjson

from longshore.node.logs.inputs.emit import MOST_STREAMS, NEWEST, OLDEST
from longshore.node.logs.inputs.http import decoded
from longshore.node.logs.store.store import LogStore
from longshore.wire import crilog

BODY_LIMIT = 32 * 2**20
LONGEST_LINE = 256 * 1024
MOST_LABELS = 15
LONGEST_NAME, LONGEST_VALUE = 1024, 2048
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


class PushRefused(ValueError):
    """What cannot be taken, with the HTTP status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@functools.cache
def _schema() -> Any:
    """Source: grafana/loki pkg/push/push.proto."""
    from longshore.wire.protobuf import Schema

    return Schema(
        "logproto",
        """
        PushRequest: 1 streams *Stream
        Stream: 1 labels string, 2 entries *Entry, 3 hash uint64
        Entry: 1 timestamp Timestamp, 2 line string, 3 structuredMetadata *LabelPair
        Timestamp: 1 seconds int64, 2 nanos int32
        LabelPair: 1 name string, 2 value string
        """.replace("\n        ", "\n"),
    )


def _of_protobuf(body: bytes) -> dict[str, Any]:
    """A protobuf request in the JSON form. Raises ValueError."""
    from google.protobuf.message import DecodeError

    from longshore.node.logs.logql.parser import parse_log_query
    from longshore.wire.snappy import decompress

    request = _schema().PushRequest()
    try:
        request.ParseFromString(decompress(body, BODY_LIMIT))
    except DecodeError as error:
        raise ValueError(str(error)) from None
    streams = []
    for stream in request.streams:
        query = parse_log_query(stream.labels)
        if query.stages or any(matcher.op != "=" for matcher in query.matchers):
            raise ValueError(f"error parsing labels {stream.labels[:200]!r}")
        values = [[str(e.timestamp.seconds * 10**9 + e.timestamp.nanos), e.line] for e in stream.entries]
        streams.append({"stream": {m.name: m.value for m in query.matchers}, "values": values})
    return {"streams": streams}


async def push(store: LogStore, body: bytes, encoding: str, node: str, *, protobuf: bool = False) -> None:
    """Keep every entry of a push request's body. Raises PushRefused, OSError; nothing is kept when it is refused."""
    try:
        tree = _of_protobuf(body) if protobuf else orjson.loads(decoded(body, encoding, BODY_LIMIT))
    except ValueError as error:
        raise PushRefused(400, str(error)) from None
    streams = tree.get("streams") if isinstance(tree, dict) else None
    if not isinstance(streams, list):
        raise PushRefused(400, "streams are missing")
    now = time.time_ns()
    read = [_stream(item, now) for item in streams]
    await store.room()
    for labels, records in read:
        key = "push/" + orjson.dumps(labels, option=orjson.OPT_SORT_KEYS).decode()
        if not store.index.known(key) and len(store.index.streams) >= MOST_STREAMS * 4:
            raise PushRefused(
                429, f"Maximum active stream limit exceeded when trying to create stream {labels_text(labels)}"
            )
        if records:
            store.put(store.stream(key, {**labels, "node": labels.get("node", node)}), records)
    await store.commit()


def _stream(item: Any, now: int) -> tuple[dict[str, str], bytes]:
    labels = item.get("stream") if isinstance(item, dict) else None
    values = item.get("values") if isinstance(item, dict) else None
    if not isinstance(labels, dict) or not isinstance(values, list):
        raise PushRefused(400, "a stream has no labels or no values")
    if not labels:
        raise PushRefused(400, "error at least one label pair is required per stream")
    if len(labels) > MOST_LABELS:
        raise PushRefused(
            400,
            f"entry for stream '{labels_text(labels)}' has {len(labels)} label names; limit {MOST_LABELS}",
        )
    for name, value in labels.items():
        if not isinstance(value, str) or not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            raise PushRefused(400, f"bad label {name[:80]!r}")
        if len(value) > LONGEST_VALUE:
            raise PushRefused(400, f"stream has label value too long: {name!r}")
    labels = dict(labels)
    where = labels.pop("stream", "stdout")
    if where not in ("stdout", "stderr"):
        labels["stream_extracted"], where = where, "stdout"
    return labels, b"".join(_record(value, where.encode(), labels, now) for value in values)


def _record(value: Any, stream: bytes, labels: dict[str, str], now: int) -> bytes:
    if not isinstance(value, list) or not 2 <= len(value) <= 3 or not all(isinstance(v, str) for v in value[:2]):
        raise PushRefused(400, "a value is not [time, line]")
    text, line = value[0], value[1].encode()
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise PushRefused(400, f"cannot parse {text[:40]!r} as nanoseconds")
    when = int(text)
    if when < now - OLDEST:
        raise PushRefused(
            400,
            f"entry for stream '{labels_text(labels)}' has timestamp too old: {_shown(when)}, "
            f"oldest acceptable timestamp is: {_shown(now - OLDEST)}",
        )
    if when > now + NEWEST:
        raise PushRefused(400, f"entry for stream '{labels_text(labels)}' has timestamp too new: {_shown(when)}")
    if len(line) > LONGEST_LINE:
        raise PushRefused(
            400,
            f"Max entry size '{LONGEST_LINE}' bytes exceeded for stream '{labels_text(labels)}' "
            f"while adding an entry with length '{len(line)}' bytes",
        )
    return crilog.format_line(when, stream, line)


def _shown(when: int) -> str:
    return crilog.format_time(when // 10**9 * 10**9)[:19].decode() + "Z"


def labels_text(labels: dict[str, Any]) -> str:
    """Labels as Loki writes them: `{a="b"}`."""
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"
