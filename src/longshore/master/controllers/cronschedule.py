"""Cron schedules in a time zone: when they next fall due.

Source: github.com/robfig/cron v3 standard parser, described behaviour (day of month OR day of week when both are set).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from longshore.api.validation import cron

YEARS_AHEAD = 5
_ZONE = re.compile(r"(?:CRON_)?TZ=(\S+)\s")


class ScheduleError(ValueError):
    """The text is no schedule, or names no time zone."""


class Schedule:
    """A schedule in its time zone."""

    def __init__(self, text: str, zone: tzinfo = UTC) -> None:
        """text: as `api.validation.cron` reads it, optionally after TZ=NAME or CRON_TZ=NAME. Raises ScheduleError."""
        prefix = _ZONE.match(text)
        self.zone = zone_of(prefix[1]) if prefix else zone
        try:
            self._allowed = cron.parse(text)
        except ValueError as error:
            raise ScheduleError(str(error)) from None

    def after(self, moment: datetime) -> datetime | None:
        """The first time due strictly after moment (aware; the answer is in UTC); None when there is none in years."""
        allowed = self._allowed
        if allowed.every:
            return moment.replace(microsecond=0) + timedelta(seconds=allowed.every)
        local = moment.astimezone(self.zone).replace(second=0, microsecond=0)
        walk = (local + timedelta(minutes=1)).replace(tzinfo=None)
        limit = walk.year + YEARS_AHEAD
        while walk.year <= limit:
            if walk.month not in allowed.months:
                walk = (walk.replace(day=1, hour=0, minute=0) + timedelta(days=32)).replace(day=1)
            elif not self._day(walk):
                walk = walk.replace(hour=0, minute=0) + timedelta(days=1)
            elif walk.hour not in allowed.hours:
                walk = walk.replace(minute=0) + timedelta(hours=1)
            elif walk.minute not in allowed.minutes:
                walk += timedelta(minutes=1)
            else:
                due = walk.replace(tzinfo=self.zone).astimezone(UTC)
                # A local time that does not exist (clocks went forward) comes back changed: it is skipped.
                if due.astimezone(self.zone).replace(tzinfo=None) == walk and due > moment:
                    return due
                walk += timedelta(minutes=1)
        return None

    def _day(self, day: datetime) -> bool:
        allowed = self._allowed
        in_month, in_week = day.day in allowed.days, (day.weekday() + 1) % 7 in allowed.weekdays
        if allowed.day_star or allowed.week_star:
            return in_month and in_week
        return in_month or in_week


def zone_of(name: str) -> tzinfo:
    """A time zone by name. Raises ScheduleError."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise ScheduleError(f"unknown time zone {name}") from error
