"""Cron schedules as robfig/cron reads them: five fields, month and day names, @daily and the like, @every."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from longshore.api.times import parse_duration
from longshore.api.validation.errors import Errors

_MONTHS = {
    m: i for i, m in enumerate(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1)
}
_DAYS = {d: i for i, d in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_BOUNDS: tuple[tuple[int, int, dict[str, int]], ...] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, _MONTHS),
    (0, 6, _DAYS),
)
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class Schedule(NamedTuple):
    """What a schedule allows: sets of minutes, hours, days of the month, months, days of the week; or a period.

    day_star, week_star: the field was a star, so that the other of the two decides alone. every: seconds, 0 for none.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    day_star: bool
    week_star: bool
    every: int = 0


@lru_cache(maxsize=512)
def parse(text: str) -> Schedule:
    """The schedule that text writes; ValueError in robfig/cron's words."""
    if not text:
        raise ValueError("empty spec string")
    if text.startswith(("TZ=", "CRON_TZ=")):
        text = text.partition(" ")[2]
        text = text.strip()
    if text.startswith("@"):
        if text in _NAMED:
            return parse(_NAMED[text])
        if text.startswith("@every "):
            try:
                nanoseconds = parse_duration(text[7:])
            except ValueError as error:
                raise ValueError(f"failed to parse duration {text}: {error}") from None
            none: frozenset[int] = frozenset()
            return Schedule(none, none, none, none, none, False, False, max(1, nanoseconds // 10**9))
        raise ValueError(f"unrecognized descriptor: {text}")
    fields = text.split()
    if len(fields) != 5:
        raise ValueError(f"expected exactly 5 fields, found {len(fields)}: [{' '.join(fields)}]")
    sets = [_field(field, *bounds) for field, bounds in zip(fields, _BOUNDS, strict=True)]
    return Schedule(sets[0], sets[1], sets[2], sets[3], sets[4], fields[2][:1] in "*?", fields[4][:1] in "*?")


def _field(text: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        found |= _range(part, low, high, names)
    return frozenset(found)


def _range(text: str, low: int, high: int, names: dict[str, int]) -> set[int]:
    bits = text.split("/")
    ends = bits[0].split("-")
    if bits[0] in ("*", "?"):
        start, end = low, high
    else:
        if len(ends) > 2:
            raise ValueError(f"too many hyphens: {text}")
        start = _number(ends[0], names)
        end = _number(ends[1], names) if len(ends) == 2 else start
    step = 1
    if len(bits) == 2:
        step = _number(bits[1], {})
        if len(ends) == 1 and bits[0] not in ("*", "?"):
            end = high
        if step == 0:
            raise ValueError(f"step of range should be a positive number: {text}")
    elif len(bits) > 2:
        raise ValueError(f"too many slashes: {text}")
    if start < low:
        raise ValueError(f"beginning of range ({start}) below minimum ({low}): {text}")
    if end > high:
        raise ValueError(f"end of range ({end}) above maximum ({high}): {text}")
    if start > end:
        raise ValueError(f"beginning of range ({start}) beyond end of range ({end}): {text}")
    return set(range(start, end + 1, step))


def _number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f'failed to parse int from {text}: strconv.Atoi: parsing "{text}": invalid syntax') from None
    if number < 0:
        raise ValueError(f"negative number ({number}) not allowed: {text}")
    return number


def time_zone(errors: Errors, zone: str) -> None:
    """A CronJob's spec.timeZone: the name of a zone of the IANA's."""
    if not zone:
        errors.invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string")
        return
    if zone.lower() == "local":
        errors.invalid(
            "spec.timeZone",
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        )
    if zone in ("UTC", "Etc/UTC"):
        return
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        errors.invalid("spec.timeZone", zone, f"unknown time zone {zone}")
