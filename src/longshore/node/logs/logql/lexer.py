"""LogQL's words."""

from __future__ import annotations

import ast as python_ast
import re
from dataclasses import dataclass

from longshore.node.logs.logql.ast import LogQLError

_WORDS = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      |(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)
      |(?P<duration>[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h|d|w|y)(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h|d|w|y))*(?![A-Za-z]))
      |(?P<bytes>[0-9]+(?:\.[0-9]+)?(?:[kKMGTPE]i?)?B(?![A-Za-z]))
      |(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)
      |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<op>\|=|\|~|\|>|!>|!=|!~|=~|==|>=|<=|[{}()\[\],|=<>+\-*/%^])""",
    re.VERBOSE,
)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h|d|w|y)")
_SECOND = 1_000_000_000
_UNITS = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "ms": 1_000_000,
    "s": _SECOND,
    "m": 60 * _SECOND,
    "h": 3600 * _SECOND,
    "d": 86400 * _SECOND,
    "w": 7 * 86400 * _SECOND,
    "y": 365 * 86400 * _SECOND,
}
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kKMGTPE]?)(i?)B$")


@dataclass(frozen=True, slots=True)
class Word:
    """kind: string, duration, bytes, number, name, op or end; text as read (a string's without its quotes)."""

    kind: str
    text: str
    position: int


def words(source: str) -> list[Word]:
    """All words of a query, an `end` last. Raises LogQLError at what is none."""
    found: list[Word] = []
    at = 0
    while at < len(source):
        match = _WORDS.match(source, at)
        if match is None:
            raise LogQLError(f"parse error at {place(source, at)}: syntax error: unexpected character {source[at]!r}")
        kind = match.lastgroup or ""
        text = match.group()
        if kind == "string":
            text = text[1:-1] if text[0] == "`" else _unquote(source, text, at)
        if kind != "space":
            found.append(Word(kind, text, at))
        at = match.end()
    found.append(Word("end", "", len(source)))
    return found


def _unquote(source: str, text: str, at: int) -> str:
    try:
        value = python_ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise LogQLError(f"parse error at {place(source, at)}: invalid char escape") from None
    return str(value)


def place(source: str, at: int) -> str:
    """`line L, col C`, both from 1."""
    line = source.count("\n", 0, at) + 1
    column = at - (source.rfind("\n", 0, at) + 1) + 1
    return f"line {line}, col {column}"


def duration(text: str) -> int:
    """`1h30m` in nanoseconds. Raises ValueError."""
    parts = _DURATION.findall(text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise ValueError(f"not a valid duration string: {text!r}")
    return int(sum(float(amount) * _UNITS[unit] for amount, unit in parts))


def byte_size(text: str) -> float:
    """`1.5MiB` in bytes. Raises ValueError."""
    match = _BYTES.match(text)
    if not match:
        raise ValueError(f"not a byte size: {text!r}")
    power = " kMGTPE".upper().index(match[2].upper()) if match[2] else 0
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** power
