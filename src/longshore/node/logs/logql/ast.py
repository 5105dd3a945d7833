"""The tree of a LogQL query."""

from __future__ import annotations

from dataclasses import dataclass, field


class LogQLError(ValueError):
    """A query that cannot be read; the message tells line and column as Loki's does."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """`name op value` of a stream selector; op is =, !=, =~ or !~."""

    name: str
    op: str
    value: str


@dataclass(frozen=True, slots=True)
class LineFilter:
    """|= != |~ !~ with one or several texts ("or")."""

    op: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A label filter's leaf. value: a text for = != =~ !~, a number for the others."""

    label: str
    op: str
    value: str | float
    unit: str = ""  # "duration" and "bytes" compare in seconds and bytes


@dataclass(frozen=True, slots=True)
class Logical:
    """A label filter's `and` or `or`."""

    op: str
    left: LabelFilter
    right: LabelFilter


LabelFilter = Comparison | Logical


@dataclass(frozen=True, slots=True)
class Stage:
    """A parser or formatter: its name and its arguments.

    json, logfmt: pairs (label, expression), none for all; regexp, pattern, line_format: (text,);
    label_format: pairs (label, text or source label); drop, keep: names; unwrap: (label, conversion).
    """

    name: str
    arguments: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class LogQuery:
    """A selector and its pipeline."""

    matchers: tuple[Matcher, ...]
    stages: tuple[LineFilter | Comparison | Logical | Stage, ...] = ()


@dataclass(frozen=True, slots=True)
class Grouping:
    """by (names) or without (names)."""

    names: tuple[str, ...]
    without: bool = False


@dataclass(frozen=True, slots=True)
class RangeAggregation:
    """rate, count_over_time, ... over a log range; times in nanoseconds."""

    function: str
    query: LogQuery
    range: int
    offset: int = 0
    parameter: float | None = None
    grouping: Grouping | None = None


@dataclass(frozen=True, slots=True)
class VectorAggregation:
    """sum, avg, topk, ... over a vector."""

    function: str
    inner: Expression
    grouping: Grouping = field(default_factory=lambda: Grouping(()))
    parameter: float | None = None


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic, comparison or set operation between two expressions."""

    op: str
    left: Expression
    right: Expression
    boolean: bool = False
    on: Grouping | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A literal."""

    value: float


Expression = LogQuery | RangeAggregation | VectorAggregation | Binary | Number
