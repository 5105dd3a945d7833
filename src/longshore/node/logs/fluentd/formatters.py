"""Formatters: an event to octets. Source: docs.fluentd.org "Formatter Plugins"."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Callable
from typing import Any

import orjson

from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.settings import ZONE_FIELDS, Field, array, boolean, choice, settings, string, zone_of
from longshore.node.logs.inputs.emit import json_of

#: (tag, time in nanoseconds, record) -> octets.
Format = Callable[[str, int, dict[Any, Any]], bytes]
_DELIMITERS = {"TAB": "\t", "SPACE": " ", "COMMA": ",", "\\t": "\t"}

FORMATS: dict[str, dict[str, Field]] = {
    "json": {"add_newline": Field(boolean, True)},
    "ltsv": {"delimiter": Field(string, "\t"), "label_delimiter": Field(string, ":"), "add_newline": Field(boolean, True)},
    "csv": {"fields": Field(array, None, True), "delimiter": Field(string, ","), "force_quotes": Field(boolean, True), "add_newline": Field(boolean, True)},
    "out_file": {"delimiter": Field(string, "\t"), "output_time": Field(boolean, True), "output_tag": Field(boolean, True), "newline": Field(choice("lf", "crlf"), "lf"), "time_format": Field(string, ""), **ZONE_FIELDS},
    "single_value": {"message_key": Field(string, "message"), "add_newline": Field(boolean, True)},
    "msgpack": {},
}  # fmt: skip


def json_line(record: dict[Any, Any]) -> bytes:
    """A record as JSON, whatever is in it."""
    try:
        return orjson.dumps(record)
    except TypeError:
        return json_of(record)


def text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json_of(value).decode()


def make_formatter(element: Element | None, default: str = "out_file") -> Format:
    """A <format> section's formatter. Raises ConfigError."""
    kind = element.text("@type", default) if element else default
    if kind not in FORMATS:
        assert element is not None
        raise element.error(f"Unknown formatter plugin '{kind}'", "@type")
    found = settings(element, FORMATS[kind]) if element else {name: f.default for name, f in FORMATS[kind].items()}
    end = b"\n" if found.get("add_newline", True) else b""
    if kind == "json":
        return lambda _tag, _when, record: json_line(record) + end
    if kind == "msgpack":
        import msgpack

        return lambda _tag, _when, record: bytes(msgpack.packb(record, default=str, unicode_errors="surrogateescape"))
    if kind == "single_value":
        key = found["message_key"]
        return lambda _tag, _when, record: text_of(record.get(key)).encode("utf-8", "surrogateescape") + end
    delimiter = _DELIMITERS.get(found["delimiter"], found["delimiter"])
    if kind == "ltsv":
        label = found["label_delimiter"]
        return lambda _tag, _when, record: (
            delimiter.join(
                f"{text_of(k)}{label}{text_of(v).replace(delimiter, ' ').replace(chr(10), ' ')}"
                for k, v in record.items()
            ).encode("utf-8", "replace")
            + end
        )
    if kind == "csv":
        names, every = found["fields"], found["force_quotes"]

        def rows(_tag: str, _when: int, record: dict[Any, Any]) -> bytes:
            out = io.StringIO()
            writer = csv.writer(
                out, delimiter=delimiter, quoting=csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL, lineterminator=""
            )
            writer.writerow([text_of(record.get(name)) for name in names])
            return out.getvalue().encode("utf-8", "replace") + end

        return rows
    line_end = b"\r\n" if found["newline"] == "crlf" else b"\n"

    zone, pattern = zone_of(found, local=True), found["time_format"]
    offsets: dict[int, bytes] = {}

    def shown(when: int) -> bytes:
        """The time as `time_format` has it, by default ISO 8601 in the zone; times of one second share their text."""
        seconds = when // 10**9
        if "%N" in pattern or "%L" in pattern:
            moment = datetime.datetime.fromtimestamp(seconds, zone).astimezone(zone)
            exact = pattern.replace("%L", f"{when % 10**9 // 10**6:03d}").replace("%N", f"{when % 10**9:09d}")
            return moment.strftime(exact).encode()
        text = offsets.get(seconds)
        if text is None:
            moment = datetime.datetime.fromtimestamp(seconds, zone).astimezone(zone)
            text = (moment.strftime(pattern) if pattern else moment.isoformat(timespec="seconds")).encode()
            if len(offsets) > 1024:
                offsets.clear()
            offsets[seconds] = text
        return text

    def out_file(tag: str, when: int, record: dict[Any, Any]) -> bytes:
        parts = []
        if found["output_time"]:
            parts.append(shown(when))
        if found["output_tag"]:
            parts.append(tag.encode("utf-8", "replace"))
        return bytes(delimiter.encode().join([*parts, json_line(record)]) + line_end)

    return out_file
