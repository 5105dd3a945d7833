"""Syslog messages, RFC 5424 and RFC 3164, and their framing over TCP (RFC 6587), without I/O."""

from __future__ import annotations

import re
import time as clock
from dataclasses import dataclass, field

from longshore.wire import crilog

SEVERITIES = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "audit", "alert", "at", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
DEFAULT_LIMIT = 65536

_PRIORITY = re.compile(rb"<(0|[1-9][0-9]{0,2})>")
_NEW = re.compile(r"1 (\S{1,64}) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32}) ")
_OLD = re.compile(r"([A-Z][a-z]{2}) ([ 0-9][0-9]) ([0-9]{2}):([0-9]{2}):([0-9]{2}) (?:(\S+) )?")
_ISO = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T\S+) (?:(\S+) )?")
_TAG = re.compile(r"([^\s:\[\]]{1,255})(?:\[([^\]]{0,128})\])?: ?")
_DATA_NAME = re.compile(r'[^\s="\]]{1,64}')
_MONTHS = {
    name: number
    for number, name in enumerate(
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], 1
    )
}


class SyslogError(ValueError):
    """What came is no syslog message, or longer than the limit."""


@dataclass(slots=True)
class Message:
    """One message; time in nanoseconds since 1970 (None: the sender gave none that can be read), "" for what is absent."""

    facility: str
    severity: str
    time: int | None
    host: str
    ident: str
    pid: str
    message: str
    msgid: str = ""
    data: dict[str, dict[str, str]] = field(default_factory=dict)


def parse(raw: bytes, *, now: float | None = None) -> Message:
    """One message in either form. now: seconds since 1970, which give RFC 3164 its year. Raises SyslogError."""
    match = _PRIORITY.match(raw)
    if match is None or int(match[1]) > 191:
        raise SyslogError("no priority")
    priority = int(match[1])
    facility, severity = FACILITIES[priority >> 3], SEVERITIES[priority & 7]
    text = raw[match.end() :].decode("utf-8", "replace").rstrip("\r\n\0")
    new = _NEW.match(text)
    if new is not None:
        return _new(facility, severity, new, text[new.end() :])
    return _old(facility, severity, text, clock.time() if now is None else now)


def _new(facility: str, severity: str, head: re.Match[str], rest: str) -> Message:
    stamp, host, ident, pid, msgid = ("" if part == "-" else part for part in head.groups())
    data, message = _data(rest)
    try:
        when = crilog.parse_time(stamp.encode()) if stamp else None
    except ValueError:
        when = None
    return Message(facility, severity, when, host, ident, pid, message.removeprefix("\ufeff"), msgid, data)


def _data(text: str) -> tuple[dict[str, dict[str, str]], str]:
    """Structured data and what follows it."""
    if text.startswith("-"):
        return {}, text[1:].removeprefix(" ")
    found: dict[str, dict[str, str]] = {}
    at = 0
    while text.startswith("[", at):
        name = _DATA_NAME.match(text, at + 1)
        if name is None:
            raise SyslogError("bad structured data")
        values = found.setdefault(name[0], {})
        at = name.end()
        while text.startswith(" ", at):
            key = _DATA_NAME.match(text, at + 1)
            if key is None or not text.startswith('="', key.end()):
                raise SyslogError("bad structured data")
            value, at = _quoted(text, key.end() + 2)
            values[key[0]] = value
        if not text.startswith("]", at):
            raise SyslogError("bad structured data")
        at += 1
    return found, text[at:].removeprefix(" ")


def _quoted(text: str, at: int) -> tuple[str, int]:
    parts: list[str] = []
    while at < len(text):
        char = text[at]
        if char == '"':
            return "".join(parts), at + 1
        if char == "\\" and text[at + 1 : at + 2] in ('"', "\\", "]"):
            at += 1
            char = text[at]
        parts.append(char)
        at += 1
    raise SyslogError("bad structured data")


def _old(facility: str, severity: str, text: str, now: float) -> Message:
    when: int | None = None
    host = ""
    old = _OLD.match(text)
    iso = None if old else _ISO.match(text)
    if old and old[1] in _MONTHS:
        when, host = _local(old, now), old[6] or ""
        text = text[old.end() :]
    elif iso:
        try:
            when, host = crilog.parse_time(iso[1].encode()), iso[2] or ""
            text = text[iso.end() :]
        except ValueError:
            when = None
    if host.endswith(":"):  # local senders leave the host out: what stands there is the tag
        text, host = f"{host} {text}", ""
    tag = _TAG.match(text)
    if tag is None:
        return Message(facility, severity, when, host, "", "", text)
    return Message(facility, severity, when, host, tag[1], tag[2] or "", text[tag.end() :])


def _local(match: re.Match[str], now: float) -> int | None:
    """RFC 3164's time is local and has no year: the one that is nearest to now, and not far ahead of it."""
    year = clock.localtime(now).tm_year
    fields = (_MONTHS[match[1]], int(match[2]), int(match[3]), int(match[4]), int(match[5]))
    try:
        when = clock.mktime((year, *fields, 0, 0, -1))
        if when > now + 7 * 86400:
            when = clock.mktime((year - 1, *fields, 0, 0, -1))
    except (ValueError, OverflowError):
        return None
    return int(when) * 1_000_000_000


class Framer:
    """Messages out of a TCP stream: octet counting (`LEN SP MESSAGE`) or ended by a line break, told a frame at a time."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes. Raises SyslogError past the limit."""
        buffer = self._buffer
        buffer += data
        found: list[bytes] = []
        at = 0
        while at < len(buffer):
            if 0x31 <= buffer[at] <= 0x39:
                space = buffer.find(b" ", at, at + 8)
                if space < 0:
                    if len(buffer) - at >= 8:
                        raise SyslogError("bad octet count")
                    break
                if not buffer[at:space].isdigit() or int(buffer[at:space]) > self._limit:
                    raise SyslogError("message is too long")
                end = space + 1 + int(buffer[at:space])
                if len(buffer) < end:
                    break
                found.append(bytes(buffer[space + 1 : end]))
                at = end
                continue
            end = buffer.find(b"\n", at)
            if end < 0:
                break
            if end > at:
                found.append(bytes(buffer[at:end]))
            at = end + 1
        del buffer[:at]
        if len(buffer) > self._limit + 8:
            raise SyslogError("message is too long")
        return found

    def rest(self) -> bytes:
        """What stands at the end without a line break."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest
