"""The tree of a LogQL query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace


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
    """|= != |~ !~ |> !> with one or several texts ("or"). ip: the texts are patterns of addresses (with |= and !=)."""

    op: str
    values: tuple[str, ...]
    ip: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """A label filter's leaf. value: a text for = != =~ !~, a number for the others."""

    label: str
    op: str
    value: str | float
    unit: str = ""  # "duration" and "bytes" compare in seconds and bytes; "ip": value is a pattern of addresses


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
    many: str = ""  # "left" or "right": the side of which several series meet one of the other
    include: tuple[str, ...] = ()  # labels that the result takes from the one


@dataclass(frozen=True, slots=True)
class LabelReplace:
    """label_replace(inner, "target", "replacement", "source", "pattern")."""

    inner: Expression
    target: str
    replacement: str
    source: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Number:
    """A literal."""

    value: float


@dataclass(frozen=True, slots=True)
class Given:
    """A range aggregation whose series are known already: what several nodes answered, put together."""

    series: dict[tuple[tuple[str, str], ...], list[float | None]]


Expression = LogQuery | RangeAggregation | VectorAggregation | Binary | LabelReplace | Number | Given


def leaves(tree: Expression) -> list[RangeAggregation]:
    """The range aggregations of a metric expression, from left to right."""
    if isinstance(tree, RangeAggregation):
        return [tree]
    if isinstance(tree, VectorAggregation | LabelReplace):
        return leaves(tree.inner)
    if isinstance(tree, Binary):
        return leaves(tree.left) + leaves(tree.right)
    return []


def with_leaves(tree: Expression, given: Iterator[Given]) -> Expression:
    """The same expression with its range aggregations replaced, in the order of `leaves`."""
    if isinstance(tree, RangeAggregation):
        return next(given)
    if isinstance(tree, VectorAggregation | LabelReplace):
        return replace(tree, inner=with_leaves(tree.inner, given))
    if isinstance(tree, Binary):
        left = with_leaves(tree.left, given)
        return replace(tree, left=left, right=with_leaves(tree.right, given))
    return tree


def told_apart(leaf: RangeAggregation) -> bool:
    """Whether the series of different nodes are different series: their `node` label is still there."""
    if leaf.function == "absent_over_time" or leaf.grouping is not None:
        return False
    for stage in leaf.query.stages:
        if isinstance(stage, Stage) and (
            stage.name in ("keep", "label_format") or (stage.name == "drop" and "node" in stage.arguments)
        ):
            return False
    return True
