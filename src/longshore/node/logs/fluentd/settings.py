"""Parameters of plugins: what each is called, of which type, with which default; anything else is an error with its line."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from longshore.node.logs.fluentd.config import Element

_SIZE = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_TIME = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: Words that any plugin takes.
COMMON = frozenset({"@type", "@id", "@label", "@log_level"})


def string(text: str) -> str:
    return text


def integer(text: str) -> int:
    return int(text)


def number(text: str) -> float:
    return float(text)


def boolean(text: str) -> bool:
    if text in ("true", "yes", ""):
        return True
    if text in ("false", "no"):
        return False
    raise ValueError(f"{text!r} is not a boolean")


def size(text: str) -> int:
    """`8m` in bytes."""
    match = re.fullmatch(r"([0-9]+)([kmgt]?)b?", text.lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    return int(match[1]) * _SIZE[match[2]]


def seconds(text: str) -> float:
    """`1h` in seconds."""
    match = re.fullmatch(r"(-?[0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a time")
    return float(match[1]) * _TIME[match[2]]


def timezone(text: str) -> datetime.tzinfo:
    """`+09:00`, `+0900`, `+09`, `Asia/Tokyo`, `UTC`."""
    match = re.fullmatch(r"([+-])(\d\d)(?::?(\d\d))?", text)
    if match:
        sign = 1 if match[1] == "+" else -1
        return datetime.timezone(sign * datetime.timedelta(hours=int(match[2]), minutes=int(match[3] or 0)))
    if text in ("Z", "UTC"):
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"invalid timezone {text!r}") from None


def zone_of(found: Mapping[str, Any], *, local: bool) -> datetime.tzinfo | None:
    """The zone that `timezone`, `utc` and `localtime` parameters mean; None: the machine's own."""
    if found["timezone"] is not None:
        zone: datetime.tzinfo = found["timezone"]
        return zone
    if found["utc"] or not (found["localtime"] if found["localtime"] is not None else local):
        return datetime.UTC
    return None


def offset_at(zone: datetime.tzinfo | None, when: int) -> int:
    """Seconds east of UTC at a time (seconds since 1970)."""
    if zone is datetime.UTC:
        return 0
    moment = datetime.datetime.fromtimestamp(when, zone) if zone else datetime.datetime.fromtimestamp(when).astimezone()
    offset = moment.utcoffset()
    return int(offset.total_seconds()) if offset else 0


def array(text: str) -> list[str]:
    if text.startswith("["):
        value = orjson.loads(text)
        return [item if isinstance(item, str) else orjson.dumps(item).decode() for item in value]
    return [part.strip() for part in text.split(",") if part.strip()]


def mapping(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        value = orjson.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"{text[:40]!r} is not a hash")
        return value
    return {key.strip(): value.strip() for key, _, value in (part.partition(":") for part in text.split(",")) if key}


def regexp(text: str) -> re.Pattern[str]:
    """A Ruby regular expression, `/.../imx` or bare."""
    flags = 0
    match = re.fullmatch(r"/(.*)/([imx]*)", text, re.DOTALL)
    if match:
        text = match[1]
        flags = (
            (re.IGNORECASE if "i" in match[2] else 0)
            | (re.DOTALL if "m" in match[2] else 0)
            | (re.VERBOSE if "x" in match[2] else 0)
        )
    text = re.sub(r"\(\?<([A-Za-z_]\w*)>", r"(?P<\1>", text)
    text = (
        text.replace(r"\h", "[0-9a-fA-F]").replace(r"\z", "\x00z").replace(r"\Z", r"(?=\n?\Z)").replace("\x00z", r"\Z")
    )
    try:
        return re.compile(text, flags | re.MULTILINE)
    except re.error as error:
        raise ValueError(f"bad regular expression: {error}") from None


def choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"valid options are {','.join(words)} but got {text}")
        return text

    return read


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter. read: text to value, raising ValueError; default: its value when it is not there."""

    read: Callable[[str], Any]
    default: Any = None
    required: bool = False


def settings(element: Element, fields: Mapping[str, Field], sections: frozenset[str] = frozenset()) -> dict[str, Any]:
    """An element's parameters as values. Raises ConfigError for what is unknown, missing or cannot be read."""
    found: dict[str, Any] = {name: f.default for name, f in fields.items()}
    for name, value in element.parameters.items():
        if name in COMMON:
            continue
        known = fields.get(name)
        if known is None:
            raise element.error(f"unknown parameter '{name}' in <{element.name}>", name)
        try:
            found[name] = known.read(value.text)
        except ValueError as error:
            raise element.error(f"'{name}': {error}", name) from None
    for name, f in fields.items():
        if f.required and name not in element.parameters:
            raise element.error(f"'{name}' parameter is required")
    for child in element.children:
        if child.name not in sections:
            raise child.error(f"unknown section '<{child.name}>' in <{element.name}>")
    return found


#: How a time's text is read or written.
ZONE_FIELDS = {
    "timezone": Field(timezone),
    "utc": Field(boolean, False),
    "localtime": Field(boolean),
}
