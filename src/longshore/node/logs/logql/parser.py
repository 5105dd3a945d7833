"""LogQL text to its tree, by recursive descent; binary operators by precedence climbing."""

from __future__ import annotations

import re

from longshore.node.logs.logql.ast import (
    Binary,
    Comparison,
    Expression,
    Grouping,
    LabelFilter,
    LineFilter,
    Logical,
    LogQLError,
    LogQuery,
    Matcher,
    Number,
    RangeAggregation,
    Stage,
    VectorAggregation,
)
from longshore.node.logs.logql.lexer import Word, byte_size, duration, place, words

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


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._words = words(source)
        self._at = 0
        self._depth = 0

    @property
    def _next(self) -> Word:
        return self._words[self._at]

    def _take(self) -> Word:
        word = self._words[self._at]
        self._at += 1
        return word

    def _fail(self, wanted: str = "") -> LogQLError:
        word = self._next
        seen = "$end" if word.kind == "end" else (word.text if word.kind == "op" else word.kind.upper())
        more = f", expecting {wanted}" if wanted else ""
        return LogQLError(f"parse error at {place(self._source, word.position)}: syntax error: unexpected {seen}{more}")

    def _is(self, text: str, kind: str = "op") -> bool:
        return self._next.kind == kind and self._next.text == text

    def _accept(self, text: str, kind: str = "op") -> bool:
        if self._is(text, kind):
            self._at += 1
            return True
        return False

    def expect(self, text_or_kind: str) -> Word:
        word = self._next
        if word.kind == text_or_kind or (word.kind == "op" and word.text == text_or_kind):
            return self._take()
        raise self._fail(text_or_kind)

    def expression(self, least: int) -> Expression:
        self._depth += 1
        if self._depth > 100:
            raise LogQLError("query is nested too deeply")
        left = self._operand()
        while True:
            op = self._next.text if self._next.kind in ("op", "name") else ""
            strength = _PRECEDENCE.get(op, 0)
            if strength == 0 or strength <= least:
                break
            if isinstance(left, LogQuery):
                raise self._fail()
            self._take()
            boolean = self._accept("bool", "name")
            matching = None
            if self._is("on", "name") or self._is("ignoring", "name"):
                without = self._take().text == "ignoring"
                matching = Grouping(self._names(), without)
            # ^ binds to the right, the others to the left.
            right = self.expression(strength - 1 if op == "^" else strength)
            if isinstance(right, LogQuery):
                raise LogQLError(f"unexpected type for right leg of binary operation ({op}): a log query")
            left = Binary(op, left, right, boolean, matching)
        self._depth -= 1
        return left

    def _operand(self) -> Expression:
        word = self._next
        if word.kind == "op":
            if word.text == "{":
                return self._log_query()
            if word.text == "(":
                self._take()
                inner = self.expression(0)
                self.expect(")")
                return inner
            if word.text in "+-":
                self._take()
                inner = self._operand()
                if not isinstance(inner, Number):
                    raise self._fail("NUMBER")
                return Number(-inner.value if word.text == "-" else inner.value)
        if word.kind == "number":
            return Number(float(self._take().text))
        if word.kind == "name":
            if word.text in RANGE_FUNCTIONS:
                return self._range_aggregation()
            if word.text in VECTOR_FUNCTIONS:
                return self._vector_aggregation()
            if word.text == "vector":
                self._take()
                self.expect("(")
                value = float(self.expect("number").text)
                self.expect(")")
                return Number(value)
        raise self._fail()

    def _names(self) -> tuple[str, ...]:
        self.expect("(")
        names: list[str] = []
        while not self._is(")"):
            names.append(self.expect("name").text)
            if not self._accept(","):
                break
        self.expect(")")
        return tuple(names)

    def _grouping(self) -> Grouping | None:
        if self._is("by", "name") or self._is("without", "name"):
            without = self._take().text == "without"
            return Grouping(self._names(), without)
        return None

    def _parameter(self) -> float | None:
        if self._next.kind == "number" and self._words[self._at + 1].text == ",":
            value = float(self._take().text)
            self._take()
            return value
        return None

    def _range_aggregation(self) -> RangeAggregation:
        function = self._take().text
        self.expect("(")
        parameter = self._parameter()
        if (function == "quantile_over_time") != (parameter is not None):
            raise LogQLError(
                f"parse error: parameter {'required' if parameter is None else 'not supported'} for operation {function}"
            )
        wrapped = self._accept("(")
        matchers = self._selector()
        range_ = None
        if self._is("["):
            range_ = self._range()
        stages = self._pipeline()
        if wrapped:
            self.expect(")")
        if range_ is None:
            range_ = self._range()
        offset = 0
        if self._accept("offset", "name"):
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
        function = self._take().text
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

    def _log_query(self) -> LogQuery:
        return LogQuery(self._selector(), self._pipeline())

    def _selector(self) -> tuple[Matcher, ...]:
        self.expect("{")
        matchers: list[Matcher] = []
        while not self._is("}"):
            name = self.expect("name").text
            if self._next.text not in ("=", "!=", "=~", "!~"):
                raise self._fail("= or != or =~ or !~")
            op = self._take().text
            value = self.expect("string").text
            if op in ("=~", "!~"):
                self._check_regex(value)
            matchers.append(Matcher(name, op, value))
            if not self._accept(","):
                break
        self.expect("}")
        if not any(not _matches_empty(m) for m in matchers):
            raise LogQLError(
                "parse error : queries require at least one regexp or equality matcher that does not have an"
                ' empty-compatible value. For instance, app=~".*" does not meet this requirement, but app=~".+" will'
            )
        return tuple(matchers)

    def _check_regex(self, text: str) -> None:
        try:
            re.compile(text)
        except re.error as error:
            raise LogQLError(f"parse error: error parsing regexp: {error}: `{text}`") from None

    def _pipeline(self) -> tuple[LineFilter | Comparison | Logical | Stage, ...]:
        stages: list[LineFilter | Comparison | Logical | Stage] = []
        while self._next.kind == "op" and self._next.text in ("|=", "!=", "|~", "!~", "|"):
            # `!=` after a complete query is a comparison of metrics only where no string follows.
            if self._next.text == "!=" and self._words[self._at + 1].kind != "string":
                break
            op = self._take().text
            stages.append(self._stage() if op == "|" else self._line_filter(op))
        return tuple(stages)

    def _line_filter(self, op: str) -> LineFilter:
        values = [self.expect("string").text]
        while self._accept("or", "name"):
            values.append(self.expect("string").text)
        if op in ("|~", "!~"):
            for value in values:
                self._check_regex(value)
        return LineFilter(op, tuple(values))

    def _stage(self) -> Comparison | Logical | Stage:
        word = self._next
        follower = self._words[self._at + 1]
        is_filter = follower.kind == "op" and follower.text in ("=", "!=", "=~", "!~", "==", ">", ">=", "<", "<=")
        if word.kind == "op" and word.text == "(":
            return self._label_filter(0)
        if word.kind != "name":
            raise self._fail()
        if is_filter:
            return self._label_filter(0)
        name = self._take().text
        if name in ("json", "logfmt"):
            while self._accept("-"):  # --strict, --keep-empty
                pass
            return Stage(name, pairs=self._pairs(optional=True))
        if name in ("regexp", "pattern", "line_format"):
            text = self.expect("string").text
            if name == "regexp":
                self._check_regex(text)
                if not re.compile(text).groupindex:
                    raise LogQLError("parse error : at least one named capture must be supplied")
            return Stage(name, (text,))
        if name in ("unpack", "decolorize"):
            return Stage(name)
        if name == "label_format":
            return Stage(name, pairs=self._pairs(optional=False))
        if name in ("drop", "keep"):
            names = [self.expect("name").text]
            while self._accept(","):
                names.append(self.expect("name").text)
            return Stage(name, tuple(names))
        if name == "unwrap":
            first = self.expect("name").text
            if self._accept("("):
                if first not in ("duration", "duration_seconds", "bytes"):
                    raise LogQLError(f"parse error: unknown conversion {first}")
                label = self.expect("name").text
                self.expect(")")
                return Stage("unwrap", (label, first))
            return Stage("unwrap", (first, ""))
        raise LogQLError(f"parse error at {place(self._source, word.position)}: syntax error: unexpected IDENTIFIER")

    def _pairs(self, optional: bool) -> tuple[tuple[str, str, bool], ...]:
        """label="text" or label=other pairs; the third item tells whether it was a text."""
        pairs: list[tuple[str, str, bool]] = []
        if optional and self._next.kind != "name":
            return ()
        while True:
            label = self.expect("name").text
            if self._accept("="):
                word = self._take()
                if word.kind not in ("string", "name"):
                    self._at -= 1
                    raise self._fail("STRING")
                pairs.append((label, word.text, word.kind == "string"))
            elif optional:
                pairs.append((label, label, True))
            else:
                raise self._fail("=")
            if not self._accept(","):
                return tuple(pairs)

    def _label_filter(self, least: int) -> LabelFilter:
        if self._accept("("):
            left = self._label_filter(0)
            self.expect(")")
        else:
            left = self._comparison()
        while True:
            if self._is("and", "name") or self._is(","):
                op, strength = "and", 2
            elif self._is("or", "name"):
                op, strength = "or", 1
            elif self._next.kind == "name" and least == 0:
                op, strength = "and", 2  # two filters side by side
                left = Logical(op, left, self._label_filter(strength))
                continue
            else:
                return left
            if strength <= least:
                return left
            self._take()
            left = Logical(op, left, self._label_filter(strength))

    def _comparison(self) -> Comparison:
        label = self.expect("name").text
        op = self.expect("op").text
        word = self._take()
        if word.kind == "string":
            if op not in ("=", "!=", "=~", "!~"):
                self._at -= 1
                raise self._fail("NUMBER")
            if op in ("=~", "!~"):
                self._check_regex(word.text)
            return Comparison(label, op, word.text)
        negative = word.kind == "op" and word.text == "-"
        if negative:
            word = self._take()
        sign = -1.0 if negative else 1.0
        op = "==" if op == "=" else op
        if op in ("=~", "!~"):
            raise self._fail("STRING")
        if word.kind == "number":
            return Comparison(label, op, sign * float(word.text))
        if word.kind == "duration":
            return Comparison(label, op, sign * duration(word.text) / 1e9, "duration")
        if word.kind == "bytes":
            return Comparison(label, op, sign * byte_size(word.text), "bytes")
        self._at -= 1
        raise self._fail()


def _matches_empty(matcher: Matcher) -> bool:
    if matcher.op == "=":
        return matcher.value == ""
    if matcher.op == "!=":
        return matcher.value != ""
    hit = re.fullmatch(matcher.value, "") is not None
    return hit if matcher.op == "=~" else not hit
