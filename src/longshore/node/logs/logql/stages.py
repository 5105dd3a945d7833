"""Selectors and pipelines of a log query: `{...} |= ... | json | level="x"`."""

from __future__ import annotations

import re

from longshore.node.logs.logql.addresses import ip_test
from longshore.node.logs.logql.ast import (
    Comparison,
    LabelFilter,
    LineFilter,
    Logical,
    LogQLError,
    LogQuery,
    Matcher,
    Stage,
)
from longshore.node.logs.logql.cursor import Cursor
from longshore.node.logs.logql.lexer import byte_size, duration, place


class LogQueryParser(Cursor):
    """Reads log queries; metric queries are read around it."""

    def log_query(self) -> LogQuery:
        return LogQuery(self.selector(), self.pipeline())

    def selector(self) -> tuple[Matcher, ...]:
        self.expect("{")
        matchers: list[Matcher] = []
        while not self.is_("}"):
            name = self.expect("name").text
            if self.next.text not in ("=", "!=", "=~", "!~"):
                raise self.fail("= or != or =~ or !~")
            op = self.take().text
            value = self.expect("string").text
            if op in ("=~", "!~"):
                self._check_regex(value)
            matchers.append(Matcher(name, op, value))
            if not self.accept(","):
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

    def pipeline(self) -> tuple[LineFilter | Comparison | Logical | Stage, ...]:
        stages: list[LineFilter | Comparison | Logical | Stage] = []
        while self.next.kind == "op" and self.next.text in ("|=", "!=", "|~", "!~", "|>", "!>", "|"):
            # `!=` after a complete query is a comparison of metrics only where no string follows.
            follower = self.words[self.at + 1]
            if self.next.text == "!=" and follower.kind != "string" and follower.text != "ip":
                break
            op = self.take().text
            stages.append(self._stage() if op == "|" else self._line_filter(op))
        return tuple(stages)

    def _line_filter(self, op: str) -> LineFilter:
        if op in ("|=", "!=") and self.is_("ip", "name"):
            return LineFilter(op, (self._ip(),), ip=True)
        values = [self.expect("string").text]
        while self.accept("or", "name"):
            values.append(self.expect("string").text)
        if op in ("|~", "!~"):
            for value in values:
                self._check_regex(value)
        return LineFilter(op, tuple(values))

    def _ip(self) -> str:
        """ip("pattern")."""
        self.take()
        self.expect("(")
        pattern = self.expect("string").text
        self.expect(")")
        ip_test(pattern)
        return pattern

    def _stage(self) -> Comparison | Logical | Stage:
        word = self.next
        follower = self.words[self.at + 1]
        is_filter = follower.kind == "op" and follower.text in ("=", "!=", "=~", "!~", "==", ">", ">=", "<", "<=")
        if word.kind == "op" and word.text == "(":
            return self._label_filter(0)
        if word.kind != "name":
            raise self.fail()
        if is_filter:
            return self._label_filter(0)
        name = self.take().text
        if name in ("json", "logfmt"):
            while self.accept("-"):  # --strict, --keep-empty
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
            while self.accept(","):
                names.append(self.expect("name").text)
            return Stage(name, tuple(names))
        if name == "unwrap":
            first = self.expect("name").text
            if self.accept("("):
                if first not in ("duration", "duration_seconds", "bytes"):
                    raise LogQLError(f"parse error: unknown conversion {first}")
                label = self.expect("name").text
                self.expect(")")
                return Stage("unwrap", (label, first))
            return Stage("unwrap", (first, ""))
        raise LogQLError(f"parse error at {place(self.source, word.position)}: syntax error: unexpected IDENTIFIER")

    def _pairs(self, optional: bool) -> tuple[tuple[str, str, bool], ...]:
        """label="text" or label=other pairs; the third item tells whether it was a text."""
        pairs: list[tuple[str, str, bool]] = []
        if optional and self.next.kind != "name":
            return ()
        while True:
            label = self.expect("name").text
            if self.accept("="):
                word = self.take()
                if word.kind not in ("string", "name"):
                    self.at -= 1
                    raise self.fail("STRING")
                pairs.append((label, word.text, word.kind == "string"))
            elif optional:
                pairs.append((label, label, True))
            else:
                raise self.fail("=")
            if not self.accept(","):
                return tuple(pairs)

    def _label_filter(self, least: int) -> LabelFilter:
        if self.accept("("):
            left = self._label_filter(0)
            self.expect(")")
        else:
            left = self._comparison()
        while True:
            if self.is_("and", "name") or self.is_(","):
                op, strength = "and", 2
            elif self.is_("or", "name"):
                op, strength = "or", 1
            elif self.next.kind == "name" and least == 0:
                op, strength = "and", 2  # two filters side by side
                left = Logical(op, left, self._label_filter(strength))
                continue
            else:
                return left
            if strength <= least:
                return left
            self.take()
            left = Logical(op, left, self._label_filter(strength))

    def _comparison(self) -> Comparison:
        label = self.expect("name").text
        op = self.expect("op").text
        if op in ("=", "!=") and self.is_("ip", "name"):
            return Comparison(label, op, self._ip(), "ip")
        word = self.take()
        if word.kind == "string":
            if op not in ("=", "!=", "=~", "!~"):
                self.at -= 1
                raise self.fail("NUMBER")
            if op in ("=~", "!~"):
                self._check_regex(word.text)
            return Comparison(label, op, word.text)
        negative = word.kind == "op" and word.text == "-"
        if negative:
            word = self.take()
        sign = -1.0 if negative else 1.0
        op = "==" if op == "=" else op
        if op in ("=~", "!~"):
            raise self.fail("STRING")
        if word.kind == "number":
            return Comparison(label, op, sign * float(word.text))
        if word.kind == "duration":
            return Comparison(label, op, sign * duration(word.text) / 1e9, "duration")
        if word.kind == "bytes":
            return Comparison(label, op, sign * byte_size(word.text), "bytes")
        self.at -= 1
        raise self.fail()


def _matches_empty(matcher: Matcher) -> bool:
    if matcher.op == "=":
        return matcher.value == ""
    if matcher.op == "!=":
        return matcher.value != ""
    hit = re.fullmatch(matcher.value, "") is not None
    return hit if matcher.op == "=~" else not hit
