"""Parsers: a text to a record and its time. Source: docs.fluentd.org "Parser Plugins"."""

from __future__ import annotations

import csv
import datetime
import re
import time
from collections.abc import Callable
from typing import Any

import orjson

from longshore.node.logs.fluentd.config import Element
from longshore.node.logs.fluentd.settings import (
    ZONE_FIELDS,
    Field,
    array,
    boolean,
    choice,
    mapping,
    regexp,
    settings,
    string,
    zone_of,
)
from longshore.wire import crilog, syslog
from longshore.wire.forward import Event

#: A text to its event; None: it is not in the format.
Parse = Callable[[str], Event | None]
SECOND = 1_000_000_000

COMMON = {
    "time_key": Field(string, ""),
    "time_type": Field(choice("float", "unixtime", "string", "mixed"), "string"),
    "time_format": Field(string, ""),
    **ZONE_FIELDS,
    "keep_time_key": Field(boolean, False),
    "types": Field(mapping, {}),
    "null_value_pattern": Field(regexp, None),
    "null_empty_string": Field(boolean, False),
    "estimate_current_event": Field(boolean, True),
}
_NGINX = (
    r'^(?P<remote>[^ ]*) (?P<host>[^ ]*) (?P<user>[^ ]*) \[(?P<time>[^\]]*)\] "(?P<method>\S+)(?: +(?P<path>[^\"]*?)'
    r'(?: +\S*)?)?" (?P<code>[^ ]*) (?P<size>[^ ]*)(?: "(?P<referer>[^\"]*)" "(?P<agent>[^\"]*)"'
    r"(?:\s+(?P<http_x_forwarded_for>[^ ]+))?)?$"
)
_APACHE = (
    r'^(?P<host>[^ ]*) [^ ]* (?P<user>[^ ]*) \[(?P<time>[^\]]*)\] "(?P<method>\S+)(?: +(?P<path>(?:[^\"]|\\.)*?)'
    r'(?: +\S*)?)?" (?P<code>[^ ]*) (?P<size>[^ ]*)(?: "(?P<referer>(?:[^\"]|\\.)*)" "(?P<agent>(?:[^\"]|\\.)*)")?$'
)
_WEB_TIME = "%d/%b/%Y:%H:%M:%S %z"
_LOGFMT = re.compile(r'([^\s=]+)=(?:"((?:\\.|[^"\\])*)"|(\S*))|(\S+)')
_CASTS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "integer": int,
    "float": float,
    "bool": lambda text: text.lower() in ("true", "yes", "1"),
    "array": lambda text: text.split(","),
}


class Fields:
    """What all formats do with the fields that they found: time, types, empty values."""

    def __init__(self, element: Element, found: dict[str, Any], time_key: str, time_format: str) -> None:
        self._key = found["time_key"] or time_key
        self._format = found["time_format"] or time_format
        self._kind = found["time_type"]
        self._keep = found["keep_time_key"]
        self._null = found["null_value_pattern"]
        self._empty = found["null_empty_string"]
        self._zone = zone_of(found, local=True)
        self._types: dict[str, Callable[[str], Any]] = {}
        for name, kind in found["types"].items():
            cast = _CASTS.get(str(kind).partition(":")[0])
            if cast is None:
                raise element.error(f"unknown value conversion for key:{name}, type:{kind}", "types")
            self._types[name] = cast

    def event(self, record: dict[Any, Any]) -> Event | None:
        when = time.time_ns()
        if self._key and self._key in record:
            text = record[self._key] if self._keep else record.pop(self._key)
            try:
                when = self.time(text)
            except (ValueError, TypeError, OverflowError):
                return None
        for name, cast in self._types.items():
            if isinstance(record.get(name), str):
                try:
                    record[name] = cast(record[name])
                except ValueError:
                    record[name] = None
        if self._null is not None or self._empty:
            for name, value in record.items():
                if isinstance(value, str) and (
                    (self._empty and not value) or (self._null is not None and self._null.search(value))
                ):
                    record[name] = None
        return when, record

    def time(self, value: Any) -> int:
        """A time field's value in nanoseconds. Raises ValueError."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value * SECOND)
        text = str(value)
        if self._kind in ("float", "unixtime"):
            return int(float(text) * SECOND)
        if not self._format or self._format in ("%iso8601", "%Y-%m-%dT%H:%M:%S.%N%z", "%Y-%m-%dT%H:%M:%S.%NZ"):
            try:
                return crilog.parse_time(text.encode())
            except ValueError:
                if self._format:
                    raise
                return int(float(text) * SECOND)
        moment = datetime.datetime.strptime(
            re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text),
            re.sub(r"%[0-9]?[NL]", "%f", self._format).replace("%T", "%H:%M:%S"),
        )
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self._zone)
        if moment.year == 1900:
            moment = moment.replace(year=time.localtime().tm_year)
        return int(moment.timestamp()) * SECOND + moment.microsecond * 1000


def _json(text: str) -> dict[Any, Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _logfmt(text: str) -> dict[Any, Any] | None:
    found: dict[Any, Any] = {}
    for m in _LOGFMT.finditer(text):
        if m[1]:
            found[m[1]] = re.sub(r"\\(.)", r"\1", m[2]) if m[2] is not None else m[3]
        else:
            found[m[4]] = True
    return found or None


def _cri(text: str) -> dict[Any, Any] | None:
    try:
        when, stream, tag, message = text.split(" ", 3)
    except ValueError:
        return None
    return {"time": when, "stream": stream, "logtag": tag, "message": message}


def _by_pattern(pattern: re.Pattern[str]) -> Callable[[str], dict[Any, Any] | None]:
    def read(text: str) -> dict[Any, Any] | None:
        match = pattern.search(text)
        return None if match is None else {k: v for k, v in match.groupdict().items() if v is not None}

    return read


def _web(pattern: str, dashes: bool) -> Callable[[str], dict[Any, Any] | None]:
    read = _by_pattern(re.compile(pattern))

    def parse(text: str) -> dict[Any, Any] | None:
        record = read(text)
        if record is None or not dashes:
            return record
        record = {k: None if v == "-" else v for k, v in record.items()}
        for name in ("code", "size"):
            value = record.get(name)
            record[name] = int(value) if value and value.isdigit() else None
        return record

    return parse


def _ltsv(delimiter: str, label: str) -> Callable[[str], dict[Any, Any] | None]:
    def read(text: str) -> dict[Any, Any] | None:
        pairs = (part.partition(label) for part in text.split(delimiter))
        return {key: value for key, sep, value in pairs if sep} or None

    return read


def _csv(keys: list[str], delimiter: str) -> Callable[[str], dict[Any, Any] | None]:
    return lambda text: dict(zip(keys, next(csv.reader([text], delimiter=delimiter), []), strict=False))


def _syslog(text: str) -> Event | None:
    from longshore.node.logs.inputs.lines import record_of

    try:
        message = syslog.parse(text.encode() if text.startswith("<") else b"<13>" + text.encode())
    except syslog.SyslogError:
        return None
    return message.time or time.time_ns(), record_of(message)


#: @type -> parameters beyond the common ones.
FORMATS: dict[str, dict[str, Field]] = {
    "json": {"json_parser": Field(string, "")},
    "regexp": {"expression": Field(regexp, None, True)},
    "apache2": {},
    "nginx": {},
    "syslog": {"message_format": Field(string, ""), "with_priority": Field(boolean, True)},
    "csv": {"keys": Field(array, None, True), "delimiter": Field(string, ",")},
    "tsv": {"keys": Field(array, None, True), "delimiter": Field(string, "\t")},
    "ltsv": {"delimiter": Field(string, "\t"), "label_delimiter": Field(string, ":")},
    "logfmt": {},
    "multiline": {"format_firstline": Field(regexp, None), **{f"format{n}": Field(string, "") for n in range(1, 21)}},
    "cri": {},
    "none": {"message_key": Field(string, "message")},
}


def make_parser(element: Element) -> tuple[Parse, re.Pattern[str] | None]:
    """A <parse> section's parser, and for multiline what its first lines look like. Raises ConfigError."""
    kind = element.text("@type")
    if kind not in FORMATS:
        raise element.error(f"Unknown parser plugin '{kind}'", "@type")
    found = settings(element, {**COMMON, **FORMATS[kind]})
    if kind == "syslog":
        return _syslog, None
    time_key, time_format = "time", ""
    first: re.Pattern[str] | None = None
    read: Callable[[str], dict[Any, Any] | None]
    if kind == "json":
        read = _json
    elif kind == "regexp":
        read = _by_pattern(found["expression"])
    elif kind in ("apache2", "nginx"):
        read, time_format = _web(_APACHE if kind == "apache2" else _NGINX, kind == "apache2"), _WEB_TIME
    elif kind in ("csv", "tsv"):
        read, time_key = _csv(found["keys"], found["delimiter"]), ""
    elif kind == "ltsv":
        read = _ltsv(found["delimiter"], found["label_delimiter"])
    elif kind == "logfmt":
        read = _logfmt
    elif kind == "multiline":
        texts = [found[f"format{n}"] for n in range(1, 21) if found[f"format{n}"]]
        try:
            read = _by_pattern(regexp("/" + "".join(t.removeprefix("/").removesuffix("/") for t in texts) + "/m"))
        except ValueError as error:
            raise element.error(str(error)) from None
        first = found["format_firstline"]
    elif kind == "cri":
        read = _cri
    else:
        key = found["message_key"]
        read, time_key = (lambda text: {key: text}), ""
    fields = Fields(element, found, time_key, time_format)

    def parse(text: str) -> Event | None:
        record = read(text)
        return None if record is None else fields.event(record)

    return parse, first
