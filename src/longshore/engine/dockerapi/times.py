"""Times in query parameters: seconds since 1970 with a fraction, RFC 3339, and durations back from now.

Source: Docker Engine API (since, until); the texts of errors are dockerd's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.wire.crilog import parse_time

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def parse_unix(text: str) -> int:
    """ "1700000000.5" in nanoseconds; 0 for "". Raises SystemFailure with Go's text."""
    if not text:
        return 0
    seconds, _, fraction = text.partition(".")
    for part in (seconds, fraction):
        if part and not re.fullmatch(r"-?\d+", part):
            raise SystemFailure(f'strconv.ParseInt: parsing "{part}": invalid syntax')
    if not seconds:
        raise SystemFailure(f'strconv.ParseInt: parsing "{seconds}": invalid syntax')
    return int(seconds) * 10**9 + int((fraction + "000000000")[:9] or 0)


def parse_timestamp(text: str) -> int:
    """As parse_unix."""
    return parse_unix(text)


def parse_until(values: Sequence[str]) -> int:
    """An `until` filter in nanoseconds since 1970: a duration back from now ("1h30m"), RFC 3339, or seconds; 0 for none.

    Raises InvalidParameter.
    """
    if not values:
        return 0
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    text = values[0]
    matches = _DURATION.findall(text)
    if matches and "".join(number + unit for number, unit in matches) == text:
        return time.time_ns() - sum(int(float(number) * _UNITS[unit]) for number, unit in matches)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return parse_unix(text)
    try:
        padded = text if "T" in text else f"{text}T00:00:00Z"
        if not re.search(r"(Z|[+-]\d\d:\d\d)$", padded):
            padded += "Z"
        return parse_time(padded.encode())
    except ValueError:
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"') from None
