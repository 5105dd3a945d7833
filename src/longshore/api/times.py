"""Times as Kubernetes writes them: RFC 3339 in UTC, to the second (Time) or to the microsecond (MicroTime), and Go durations."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from functools import lru_cache

_FORM = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)")
SECONDS = "2006-01-02T15:04:05Z07:00"
MICRO = "2006-01-02T15:04:05.000000Z07:00"


class TimeError(ValueError):
    """The text is no time; str() is Go's message."""


def _fail(text: str, layout: str) -> TimeError:
    """Go's message about the first part of the layout that the text does not fit."""
    parts = [
        ("2006", r"\d{4}"),
        ("-", "-"),
        ("01", r"\d\d"),
        ("-", "-"),
        ("02", r"\d\d"),
        ("T", "T"),
        ("15", r"\d\d"),
        (":", ":"),
        ("04", r"\d\d"),
        (":", ":"),
        ("05", r"\d\d"),
    ]
    rest = text
    if layout == MICRO:
        parts.append((".000000", r"\.\d{6}"))
    parts.append(("Z07:00", r"Z|[+-]\d\d:\d\d"))
    for name, form in parts:
        match = re.match(form, rest)
        if match is None and name == "Z07:00":
            rest = re.sub(r"^\.\d+", "", rest)
            match = re.match(form, rest)
        if match is None:
            return TimeError(f'parsing time "{text}" as "{layout}": cannot parse "{rest}" as "{name}"')
        rest = rest[match.end() :]
    if rest:
        return TimeError(f'parsing time "{text}": extra text: "{rest}"')
    for name, first, last, low, high in (
        ("month", 5, 7, 1, 12),
        ("day", 8, 10, 1, 31),
        ("hour", 11, 13, 0, 23),
        ("minute", 14, 16, 0, 59),
        ("second", 17, 19, 0, 59),
    ):
        if not low <= int(text[first:last]) <= high:
            return TimeError(f'parsing time "{text}": {name} out of range')
    return TimeError(f'parsing time "{text}": day out of range')


def parse(text: str, layout: str = SECONDS) -> datetime:
    """text (RFC 3339) as an aware datetime in UTC; TimeError otherwise."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise _fail(text, layout)
    if layout == MICRO and len(match[7] or "") != 6:
        raise _fail(text, layout)
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    micro = int(((match[7] or "") + "000000")[:6])
    try:
        if match[8] == "Z":
            return datetime(year, month, day, hour, minute, second, micro, UTC)
        return datetime.fromisoformat(f"{text[:10]}T{text[11:19]}.{micro:06d}{match[8]}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise _fail(text, layout) from None


@lru_cache(maxsize=2048)
def canonical(text: str) -> str:
    """A Time as upstream prints it."""
    return (
        parse(text).strftime("%Y-%m-%dT%H:%M:%SZ")
        if not text.startswith("0")
        else parse(text).isoformat(timespec="seconds").replace("+00:00", "Z")
    )


def canonical_micro(text: str) -> str:
    """A MicroTime as upstream prints it."""
    return parse(text, MICRO).isoformat(timespec="microseconds").replace("+00:00", "Z")


def now() -> str:
    """The present time as a Time."""
    return _second(int(time.time()))


@lru_cache(2)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    """The present time as a MicroTime."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str) -> int:
    """A Go duration ("1h2m3.5s") in nanoseconds; ValueError with Go's message otherwise."""
    rest, sign = text, 1
    if rest[:1] in ("+", "-"):
        sign, rest = (-1 if rest[0] == "-" else 1), rest[1:]
    if rest == "0":
        return 0
    total = 0
    if not rest:
        raise ValueError(f'time: invalid duration "{text}"')
    while rest:
        match = _DURATION.match(rest)
        if match is None or not (match[1] or match[2]):
            if re.fullmatch(r"\d+\.?\d*", rest):
                raise ValueError(f'time: missing unit in duration "{text}"')
            raise ValueError(f'time: invalid duration "{text}"')
        unit = _UNITS[match[3]]
        total += int(match[1] or 0) * unit
        if match[2]:
            total += int(match[2]) * unit // 10 ** len(match[2])
        rest = rest[match.end() :]
    if total >= 2**63:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * total


def format_duration(nanoseconds: int) -> str:
    """Nanoseconds as Go prints a duration ("1m30s", "1.5s", "0s")."""
    if nanoseconds == 0:
        return "0s"
    sign, n = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)

    def decimal(amount: int, unit: int) -> str:
        whole, rest = divmod(amount, unit)
        if not rest:
            return str(whole)
        return f"{whole}.{str(rest).zfill(len(str(unit)) - 1).rstrip('0')}"

    for name, unit in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if n < unit * 1000:
            return f"{sign}{decimal(n, unit)}{name}"
    hours, n = divmod(n, 3600 * 10**9)
    minutes, n = divmod(n, 60 * 10**9)
    seconds = decimal(n, 10**9) + "s"
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds}"
    return f"{sign}{minutes}m{seconds}" if minutes else sign + seconds
