"""Parameters of Loki's HTTP API: times, spans, limits, with Loki's words for what cannot be read."""

from __future__ import annotations

import re
import time

from longshore.node.logs.logql.lexer import duration
from longshore.wire import crilog

SECOND = 1_000_000_000
MOST_LINES = 5_000_000

#: Names and values of a query string or form.
Parameters = dict[str, list[str]]


class BadRequest(ValueError):
    """A parameter that cannot be read: answered with 400 and its text, as Loki does."""


def one(parameters: Parameters, name: str) -> str:
    value = parameters.get(name, [""])[0]
    if not value:
        raise BadRequest("parse error : syntax error: unexpected $end" if name == "query" else f"{name} is missing")
    return value


def moment(text: str) -> int | None:
    """Nanoseconds, seconds with a fraction, or RFC 3339, as nanoseconds; None for no text."""
    if not text:
        return None
    try:
        if re.fullmatch(r"[0-9]+", text):
            return int(text) if len(text) > 10 else int(text) * SECOND
        if re.fullmatch(r"[0-9]*\.[0-9]+", text):
            return int(float(text) * SECOND)
        return crilog.parse_time(text.encode())
    except ValueError:
        raise BadRequest(f"could not parse '{text}' as a time") from None


def span(parameters: Parameters) -> tuple[int, int]:
    end = moment(parameters.get("end", [""])[0]) or time.time_ns()
    since = parameters.get("since", [""])[0]
    try:
        back = duration(since) if since else 3600 * SECOND
    except ValueError as error:
        raise BadRequest(str(error)) from None
    start = moment(parameters.get("start", [""])[0])
    if start is None:
        start = end - back
    if start > end or (start == end and "leaf" not in parameters):
        raise BadRequest("end timestamp must not be before or equal to start time")
    return start, end


def limit(parameters: Parameters) -> int:
    text = parameters.get("limit", [""])[0] or "100"
    if not text.isdigit() or int(text) == 0:
        raise BadRequest("limit must be a positive value")
    if int(text) > MOST_LINES:
        raise BadRequest(
            f"max entries limit per query exceeded, limit > max_entries_limit_per_query ({text} > {MOST_LINES})"
        )
    return int(text)


def newest_first(parameters: Parameters) -> bool:
    """Whether newest first."""
    text = (parameters.get("direction", [""])[0] or "backward").lower()
    if text not in ("forward", "backward"):
        raise BadRequest(f"invalid direction '{text}'")
    return text == "backward"


def step_of(parameters: Parameters, start: int, end: int) -> int:
    text = parameters.get("step", [""])[0]
    try:
        if not text:
            return max(SECOND, (end - start) // 250)
        step = int(float(text) * SECOND) if re.fullmatch(r"[0-9.]+", text) else duration(text)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if step <= 0:
        raise BadRequest("zero or negative query resolution step widths are not accepted. Try a positive integer")
    return step
