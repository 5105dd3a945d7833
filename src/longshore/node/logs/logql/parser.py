"""LogQL text to its tree, by recursive descent; binary operators by precedence climbing."""

from __future__ import annotations

import re

from longshore.node.logs.logql.ast import (
    Binary,
    Expression,
    Grouping,
    LabelReplace,
    LogQLError,
    LogQuery,
    Number,
    RangeAggregation,
    Stage,
    VectorAggregation,
)
from longshore.node.logs.logql.lexer import duration
from longshore.node.logs.logql.stages import LogQueryParser

RANGE_FUNCTIONS = frozenset(
    [
        "rate",
        "rate_counter",
        "count_over_time",
        "bytes_rate",
        "bytes_over_time",
        "sum_over_time",
        "avg_over_time",
        "min_over_time",
        "max_over_time",
        "first_over_time",
        "last_over_time",
        "stdvar_over_time",
        "stddev_over_time",
        "quantile_over_time",
        "absent_over_time",
    ]
)
NEED_UNWRAP = RANGE_FUNCTIONS - {"rate", "count_over_time", "bytes_rate", "bytes_over_time", "absent_over_time"}
VECTOR_FUNCTIONS = frozenset(
    ["sum", "avg", "min", "max", "count", "topk", "bottomk", "stddev", "stdvar", "sort", "sort_desc"]
)
_PRECEDENCE = {"or": 1, "and": 2, "unless": 2, "==": 3, "!=": 3, ">": 3, ">=": 3, "<": 3, "<=": 3}
_PRECEDENCE |= {"+": 4, "-": 4, "*": 5, "/": 5, "%": 5, "^": 6}
LONGEST_QUERY = 131072


def parse(source: str) -> Expression:
    """A query's tree. Raises LogQLError with the place of the fault."""
    if len(source) > LONGEST_QUERY:
        raise LogQLError(f"query too long, length {len(source)}, maximum {LONGEST_QUERY}")
    parser = _Parser(source)
    tree = parser.expression(0)
    parser.expect("end")
    return tree


def parse_log_query(source: str) -> LogQuery:
    """A query that must be a log query (no metric)."""
    tree = parse(source)
    if not isinstance(tree, LogQuery):
        raise LogQLError("only log queries are supported here")
    return tree


class _Parser(LogQueryParser):
    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._depth = 0

    def expression(self, least: int) -> Expression:
        self._depth += 1
        if self._depth > 100:
            raise LogQLError("query is nested too deeply")
        left = self._operand()
        while True:
            op = self.next.text if self.next.kind in ("op", "name") else ""
            strength = _PRECEDENCE.get(op, 0)
            if strength == 0 or strength <= least:
                break
            if isinstance(left, LogQuery):
                raise self.fail()
            self.take()
            boolean = self.accept("bool", "name")
            matching = None
            many = ""
            include: tuple[str, ...] = ()
            if self.is_("on", "name") or self.is_("ignoring", "name"):
                without = self.take().text == "ignoring"
                matching = Grouping(self._names(), without)
                if self.is_("group_left", "name") or self.is_("group_right", "name"):
                    many = self.take().text.removeprefix("group_")
                    include = self._names() if self.is_("(") else ()
                    if op in ("and", "or", "unless"):
                        raise LogQLError(f"parse error: no grouping allowed for {op} operation")
            # ^ binds to the right, the others to the left.
            right = self.expression(strength - 1 if op == "^" else strength)
            if isinstance(right, LogQuery):
                raise LogQLError(f"unexpected type for right leg of binary operation ({op}): a log query")
            left = Binary(op, left, right, boolean, matching, many, include)
        self._depth -= 1
        return left

    def _operand(self) -> Expression:
        word = self.next
        if word.kind == "op":
            if word.text == "{":
                return self.log_query()
            if word.text == "(":
                self.take()
                inner = self.expression(0)
                self.expect(")")
                return inner
            if word.text in "+-":
                self.take()
                inner = self._operand()
                if not isinstance(inner, Number):
                    raise self.fail("NUMBER")
                return Number(-inner.value if word.text == "-" else inner.value)
        if word.kind == "number":
            return Number(float(self.take().text))
        if word.kind == "name":
            if word.text in RANGE_FUNCTIONS:
                return self._range_aggregation()
            if word.text in VECTOR_FUNCTIONS:
                return self._vector_aggregation()
            if word.text == "label_replace":
                return self._label_replace()
            if word.text == "vector":
                self.take()
                self.expect("(")
                value = float(self.expect("number").text)
                self.expect(")")
                return Number(value)
        raise self.fail()

    def _label_replace(self) -> LabelReplace:
        self.take()
        self.expect("(")
        inner = self.expression(0)
        texts = []
        for _ in range(4):
            self.expect(",")
            texts.append(self.expect("string").text)
        self.expect(")")
        if isinstance(inner, LogQuery):
            raise LogQLError("parse error: label_replace needs a metric query")
        target, replacement, source, pattern = texts
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", target):
            raise LogQLError(f"parse error: invalid destination label name in label_replace(): {target}")
        self._check_regex(pattern)
        return LabelReplace(inner, target, replacement, source, pattern)

    def _names(self) -> tuple[str, ...]:
        self.expect("(")
        names: list[str] = []
        while not self.is_(")"):
            names.append(self.expect("name").text)
            if not self.accept(","):
                break
        self.expect(")")
        return tuple(names)

    def _grouping(self) -> Grouping | None:
        if self.is_("by", "name") or self.is_("without", "name"):
            without = self.take().text == "without"
            return Grouping(self._names(), without)
        return None

    def _parameter(self) -> float | None:
        if self.next.kind == "number" and self.words[self.at + 1].text == ",":
            value = float(self.take().text)
            self.take()
            return value
        return None

    def _range_aggregation(self) -> RangeAggregation:
        function = self.take().text
        self.expect("(")
        parameter = self._parameter()
        if (function == "quantile_over_time") != (parameter is not None):
            raise LogQLError(
                f"parse error: parameter {'required' if parameter is None else 'not supported'} for operation {function}"
            )
        wrapped = self.accept("(")
        matchers = self.selector()
        range_ = None
        if self.is_("["):
            range_ = self._range()
        stages = self.pipeline()
        if wrapped:
            self.expect(")")
        if range_ is None:
            range_ = self._range()
        offset = 0
        if self.accept("offset", "name"):
            offset = duration(self.expect("duration").text)
        self.expect(")")
        query = LogQuery(matchers, stages)
        unwrapped = any(isinstance(stage, Stage) and stage.name == "unwrap" for stage in stages)
        if function in NEED_UNWRAP and not unwrapped:
            raise LogQLError(f"parse error: invalid aggregation {function} without unwrap")
        return RangeAggregation(function, query, range_, offset, parameter, self._grouping())

    def _range(self) -> int:
        self.expect("[")
        text = self.expect("duration").text
        self.expect("]")
        return duration(text)

    def _vector_aggregation(self) -> VectorAggregation:
        function = self.take().text
        grouping = self._grouping()
        self.expect("(")
        parameter = self._parameter()
        if (function in ("topk", "bottomk")) != (parameter is not None):
            raise LogQLError(
                f"parse error: parameter {'required' if parameter is None else 'not supported'} for operation {function}"
            )
        inner = self.expression(0)
        self.expect(")")
        grouping = grouping or self._grouping() or Grouping((), function in ("topk", "bottomk", "sort", "sort_desc"))
        return VectorAggregation(function, inner, grouping, parameter)
