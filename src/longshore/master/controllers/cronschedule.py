"""Cron schedules: five fields, names, steps, @daily and the like, in a time zone; when they next fall due.

Source: github.com/robfig/cron v3 standard parser, described behaviour (day of month OR day of week when both are set).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

MONTHS = {
    n: i + 1 for i, n in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
}
DAYS = {n: i for i, n in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
YEARS_AHEAD = 5
_EVERY = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


class ScheduleError(ValueError):
    """The text is no schedule."""


class Schedule:
    """A parsed schedule. Minutes, hours... are the sets of numbers that match."""

    def __init__(self, text: str, zone: tzinfo = UTC) -> None:
        """text: the five fields, optionally after TZ=NAME or CRON_TZ=NAME. Raises ScheduleError."""
        self.zone = zone
        self.every: float | None = None
        text = text.strip()
        prefix = re.match(r"(?:CRON_)?TZ=(\S+)\s+", text)
        if prefix:
            self.zone, text = zone_of(prefix[1]), text[prefix.end() :]
        if text.startswith("@every "):
            self.every = _duration(text[7:])
            return
        fields = NAMED.get(text, text).split()
        if len(fields) != 5:
            raise ScheduleError(f"expected exactly 5 fields, found {len(fields)}: [{text}]")
        self.minutes = _field(fields[0], 0, 59, {})
        self.hours = _field(fields[1], 0, 23, {})
        self.days = _field(fields[2], 1, 31, {})
        self.months = _field(fields[3], 1, 12, MONTHS)
        self.weekdays = {d % 7 for d in _field(fields[4], 0, 7, DAYS)}
        self.any_day = fields[2][0] in "*?"
        self.any_weekday = fields[4][0] in "*?"

    def after(self, moment: datetime) -> datetime | None:
        """The first time due strictly after moment (aware; the answer is in UTC); None when there is none in years."""
        if self.every is not None:
            return moment.replace(microsecond=0) + timedelta(seconds=max(1.0, self.every))
        local = moment.astimezone(self.zone).replace(second=0, microsecond=0)
        walk = (local + timedelta(minutes=1)).replace(tzinfo=None)
        limit = walk.year + YEARS_AHEAD
        while walk.year <= limit:
            if walk.month not in self.months:
                walk = (walk.replace(day=1, hour=0, minute=0) + timedelta(days=32)).replace(day=1)
            elif not self._day(walk):
                walk = walk.replace(hour=0, minute=0) + timedelta(days=1)
            elif walk.hour not in self.hours:
                walk = walk.replace(minute=0) + timedelta(hours=1)
            elif walk.minute not in self.minutes:
                walk += timedelta(minutes=1)
            else:
                due = walk.replace(tzinfo=self.zone).astimezone(UTC)
                # A local time that does not exist (clocks went forward) comes back changed: it is skipped.
                if due.astimezone(self.zone).replace(tzinfo=None) == walk and due > moment:
                    return due
                walk += timedelta(minutes=1)
        return None

    def _day(self, day: datetime) -> bool:
        in_month, in_week = day.day in self.days, (day.weekday() + 1) % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return in_month and in_week
        return in_month or in_week


def zone_of(name: str) -> tzinfo:
    """A time zone by name. Raises ScheduleError."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise ScheduleError(f"unknown time zone {name}") from error


def _field(text: str, low: int, high: int, names: dict[str, int]) -> set[int]:
    result: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        first, dash, last = span.partition("-")
        if first in ("*", "?"):
            if dash:
                raise ScheduleError(f"too many hyphens: {part}")
            start, end = low, high
        else:
            start = _number(first, names)
            end = _number(last, names) if dash else (high if slash else start)
        step = int(step_text) if slash and step_text.isdigit() else 1
        if slash and (not step_text.isdigit() or step == 0):
            raise ScheduleError(f"step of range should be a positive number: {part}")
        if start < low:
            raise ScheduleError(f"beginning of range ({start}) below minimum ({low}): {part}")
        if end > high:
            raise ScheduleError(f"end of range ({end}) above maximum ({high}): {part}")
        if start > end:
            raise ScheduleError(f"beginning of range ({start}) beyond end of range ({end}): {part}")
        result.update(range(start, end + 1, step))
    return result


def _number(text: str, names: dict[str, int]) -> int:
    known = names.get(text.lower())
    if known is not None:
        return known
    if not text.isdigit():
        raise ScheduleError(f"failed to parse int from {text}")
    return int(text)


def _duration(text: str) -> float:
    units = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = _EVERY.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text.strip():
        raise ScheduleError(f"failed to parse duration @every {text}")
    return sum(float(n) * units[u] for n, u in parts)
