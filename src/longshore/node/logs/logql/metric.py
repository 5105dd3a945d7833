"""Metric queries: samples from lines, values at steps, vectors from vectors."""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from longshore.node.logs.logql.ast import (
    Binary,
    Expression,
    Given,
    Grouping,
    LabelReplace,
    LogQLError,
    LogQuery,
    Number,
    RangeAggregation,
    Stage,
    VectorAggregation,
)
from longshore.node.logs.logql.pipeline import COMPARE, ERROR, Labels, number

Key = tuple[tuple[str, str], ...]
#: A series: its labels, and a value (or none) at each of the steps.
Series = dict[Key, list[float | None]]
#: (log query, start, end) -> (time, line, labels), start excluded and end included, as a range is.
Source = Callable[[LogQuery, int, int], Iterator[tuple[int, str, Labels]]]

MOST_SERIES = 10_000


def key_of(labels: Labels) -> Key:
    return tuple(sorted(labels.items()))


def grouped(key: Key, grouping: Grouping) -> Key:
    """A key cut to (or freed of) the grouping's names."""
    if grouping.without:
        return tuple(pair for pair in key if pair[0] not in grouping.names)
    return tuple(pair for pair in key if pair[0] in grouping.names)


def evaluate(tree: Expression, steps: Sequence[int], source: Source) -> Series:
    """The series of a metric expression at the given times (nanoseconds, ascending).

    Raises LogQLError for a log query in place of a metric, and past MOST_SERIES.
    """
    if isinstance(tree, Number):
        return {(): [tree.value] * len(steps)}
    if isinstance(tree, Given):
        return tree.series
    if isinstance(tree, RangeAggregation):
        return _range(tree, steps, source)
    if isinstance(tree, VectorAggregation):
        return _vector(tree, evaluate(tree.inner, steps, source), len(steps))
    if isinstance(tree, LabelReplace):
        return _label_replace(tree, evaluate(tree.inner, steps, source))
    if isinstance(tree, Binary):
        return _binary(tree, steps, source)
    raise LogQLError("a log query gives lines, not numbers")


def _range(tree: RangeAggregation, steps: Sequence[int], source: Source) -> Series:
    unwrap = next((s for s in tree.query.stages if isinstance(s, Stage) and s.name == "unwrap"), None)
    times: dict[Key, list[int]] = defaultdict(list)
    values: dict[Key, list[float]] = defaultdict(list)
    size = tree.function.startswith("bytes")
    start, end = steps[0] - tree.range - tree.offset, steps[-1] - tree.offset
    for when, line, labels in source(tree.query, start, end):
        if ERROR in labels:
            shown = ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
            raise LogQLError(
                f"pipeline error: '{labels[ERROR]}' for series: '{{{shown}}}'.\n"
                'Use a label filter to intentionally skip this error. (e.g | __error__!="'
                f'{labels[ERROR]}").\nTo skip all potential errors you can match empty errors.(e.g __error__="")'
            )
        if unwrap is not None:
            label, conversion = unwrap.arguments
            value = number(labels[label], conversion)
            key = key_of({k: v for k, v in labels.items() if k != label})
        else:
            value = float(len(line.encode())) if size else 1.0
            key = key_of(labels)
        if tree.grouping is not None:
            key = grouped(key, tree.grouping)
        if key not in times and len(times) >= MOST_SERIES:
            raise LogQLError(f"maximum of series ({MOST_SERIES}) reached for a single query")
        times[key].append(when)
        values[key].append(value)
    if tree.function == "absent_over_time":
        return _absent(tree, steps, times)
    result: Series = {}
    over = _OVER[tree.function]
    seconds = tree.range / 1e9
    for key, stamps in times.items():
        order = sorted(range(len(stamps)), key=stamps.__getitem__)
        stamps = [stamps[i] for i in order]
        numbers = [values[key][i] for i in order]
        row: list[float | None] = []
        for step in steps:
            first = bisect_right(stamps, step - tree.offset - tree.range)
            last = bisect_right(stamps, step - tree.offset)
            row.append(over(numbers[first:last], seconds, tree.parameter or 0.0) if last > first else None)
        result[key] = row
    return result


def _absent(tree: RangeAggregation, steps: Sequence[int], times: dict[Key, list[int]]) -> Series:
    stamps = sorted(t for series in times.values() for t in series)
    row: list[float | None] = []
    for step in steps:
        low, high = step - tree.offset - tree.range, step - tree.offset
        row.append(None if bisect_right(stamps, high) > bisect_left(stamps, low + 1) else 1.0)
    return {key_of({m.name: m.value for m in tree.query.matchers if m.op == "="}): row}


def _deviation(numbers: Sequence[float]) -> float:
    mean = sum(numbers) / len(numbers)
    return sum((n - mean) ** 2 for n in numbers) / len(numbers)


def quantile(q: float, numbers: Sequence[float]) -> float:
    """Linear interpolation between the ranks, as Prometheus does it."""
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    ordered = sorted(numbers)
    rank = q * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] * (1 - (rank - low)) + ordered[high] * (rank - low)


_OVER: dict[str, Callable[[list[float], float, float], float]] = {
    "rate": lambda n, s, _: sum(n) / s,
    "rate_counter": lambda n, s, _: _increase(n) / s,
    "count_over_time": lambda n, _s, _p: float(len(n)),
    "bytes_rate": lambda n, s, _: sum(n) / s,
    "bytes_over_time": lambda n, _s, _p: sum(n),
    "sum_over_time": lambda n, _s, _p: sum(n),
    "avg_over_time": lambda n, _s, _p: sum(n) / len(n),
    "min_over_time": lambda n, _s, _p: min(n),
    "max_over_time": lambda n, _s, _p: max(n),
    "first_over_time": lambda n, _s, _p: n[0],
    "last_over_time": lambda n, _s, _p: n[-1],
    "stdvar_over_time": lambda n, _s, _p: _deviation(n),
    "stddev_over_time": lambda n, _s, _p: math.sqrt(_deviation(n)),
    "quantile_over_time": lambda n, _s, q: quantile(q, n),
}


def _increase(numbers: Sequence[float]) -> float:
    """A counter's growth, resets counted from zero."""
    return sum(b - a if b >= a else b for a, b in itertools.pairwise(numbers))


_ACROSS: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "avg": lambda n: sum(n) / len(n),
    "min": min,
    "max": max,
    "count": lambda n: float(len(n)),
    "stdvar": _deviation,
    "stddev": lambda n: math.sqrt(_deviation(n)),
}


def _vector(tree: VectorAggregation, inner: Series, width: int) -> Series:
    groups: dict[Key, list[Key]] = defaultdict(list)
    for key in inner:
        groups[grouped(key, tree.grouping)].append(key)
    if tree.function in ("sort", "sort_desc"):
        ordered = sorted(inner, key=lambda key: inner[key][-1] or 0.0, reverse=tree.function == "sort_desc")
        return {key: inner[key] for key in ordered}
    if tree.function in ("topk", "bottomk"):
        chosen: Series = {}
        sign = -1 if tree.function == "topk" else 1
        # topk without a grouping ranks all series together.
        together = list(groups.values()) if tree.grouping.names or not tree.grouping.without else [list(inner)]
        for keys in together:
            for at in range(width):
                present = [(inner[k][at], k) for k in keys if inner[k][at] is not None]
                present.sort(key=lambda pair: (sign * (pair[0] or 0.0), pair[1]))
                for value, key in present[: int(tree.parameter or 0)]:
                    chosen.setdefault(key, [None] * width)[at] = value
        return chosen
    across = _ACROSS[tree.function]
    result: Series = {}
    for group, keys in groups.items():
        row: list[float | None] = []
        for at in range(width):
            present_values = [v for k in keys if (v := inner[k][at]) is not None]
            row.append(across(present_values) if present_values else None)
        result[group] = row
    return result


_GROUP = re.compile(r"\$(?:\$|(\w+)|\{(\w+)\})")


def _label_replace(tree: LabelReplace, inner: Series) -> Series:
    """Prometheus' label_replace: the pattern is anchored, what does not match stays, an empty value drops the label."""
    pattern = re.compile(tree.pattern, re.DOTALL)
    result: Series = {}
    for key, row in inner.items():
        labels = dict(key)
        found = pattern.fullmatch(labels.get(tree.source, ""))
        if found is not None:
            labels.pop(tree.target, None)
            if value := _GROUP.sub(partial(_group, found), tree.replacement):
                labels[tree.target] = value
        made = key_of(labels)
        if made in result:
            raise LogQLError("vector cannot contain metrics with the same labelset")
        result[made] = row
    return result


def _group(found: re.Match[str], name: re.Match[str]) -> str:
    wanted = name[1] or name[2]
    if wanted is None:
        return "$"
    try:
        return found[int(wanted) if wanted.isdigit() else wanted] or ""
    except IndexError:
        return ""


def _divide(a: float, b: float) -> float:
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)
    return a / b


_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "%": lambda a, b: math.fmod(a, b) if b else math.nan,
    "^": lambda a, b: a**b,
}


def _binary(tree: Binary, steps: Sequence[int], source: Source) -> Series:
    left, right = evaluate(tree.left, steps, source), evaluate(tree.right, steps, source)
    width = len(steps)
    if isinstance(tree.left, Number) or isinstance(tree.right, Number):
        scalar_left = isinstance(tree.left, Number)
        many, scalar = (right, left[()]) if scalar_left else (left, right[()])
        return {
            key: [
                _combine(tree, s, v, v) if scalar_left else _combine(tree, v, s, v)
                for v, s in zip(row, scalar, strict=True)
            ]
            for key, row in many.items()
        }
    match = tree.on or Grouping((), without=True)
    if tree.many:
        return _many_to_one(tree, match, left, right)
    partner = {grouped(key, match): row for key, row in right.items()}
    result: Series = {}
    for key, row in left.items():
        other = partner.get(grouped(key, match))
        if tree.op in ("and", "or", "unless"):
            there = other or [None] * width
            if tree.op == "or":
                result[key] = row
            else:
                wanted = tree.op == "and"
                result[key] = [v if (o is not None) == wanted else None for v, o in zip(row, there, strict=True)]
        elif other is not None:
            result[grouped(key, match) if tree.on else key] = [
                _combine(tree, v, o, v) for v, o in zip(row, other, strict=True)
            ]
    if tree.op == "or":
        mine = {grouped(key, match) for key in left}
        result.update({key: row for key, row in right.items() if grouped(key, match) not in mine})
    return result


def _many_to_one(tree: Binary, match: Grouping, left: Series, right: Series) -> Series:
    """group_left and group_right: each series of the many meets its one, and takes the named labels from it."""
    many, ones = (left, right) if tree.many == "left" else (right, left)
    one_of: dict[Key, tuple[Key, list[float | None]]] = {}
    for key, row in ones.items():
        group = grouped(key, match)
        if group in one_of:
            raise LogQLError(
                f"found duplicate series on the {'right' if tree.many == 'left' else 'left'} side of many-to-one"
            )
        one_of[group] = key, row
    result: Series = {}
    for key, row in many.items():
        found = one_of.get(grouped(key, match))
        if found is None:
            continue
        labels, given = dict(key), dict(found[0])
        for name in tree.include:
            labels.pop(name, None)
            if name in given:
                labels[name] = given[name]
        pairs = zip(row, found[1], strict=True)
        result[key_of(labels)] = [
            _combine(tree, v, o, v) if tree.many == "left" else _combine(tree, o, v, o) for v, o in pairs
        ]
    return result


def _combine(tree: Binary, a: float | None, b: float | None, kept: float | None) -> float | None:
    if a is None or b is None:
        return None
    if tree.op in COMPARE:
        holds = COMPARE[tree.op](a, b)
        return (1.0 if holds else 0.0) if tree.boolean else (kept if holds else None)
    return _ARITHMETIC[tree.op](a, b)
