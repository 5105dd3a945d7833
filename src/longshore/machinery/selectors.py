"""Label and field selectors in the form of query parameters.

Source: apimachinery pkg/labels/selector.go and pkg/fields/selector.go (grammar, meaning and error texts).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

_SYMBOLS = "=!(),<>"
_TOKENS = {"(", ")", ",", "!", "=", "==", "!=", ">", "<", "in", "notin"}
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_NAME_TEXT = (
    "consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
    " (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is"
    " '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and"
    " end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is"
    " '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_OPERATORS = {"=": "=", "==": "=", "!=": "!=", "in": "in", "notin": "notin", ">": "gt", "<": "lt"}


class SelectorError(ValueError):
    """The text is no selector; str() is upstream's message."""


class Requirement(NamedTuple):
    """operator: "=", "!=", "in", "notin", "exists", "!", "gt" or "lt"."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        operator = self.operator
        if operator in ("=", "in"):
            return value is not None and value in self.values
        if operator in ("!=", "notin"):
            return value is None or value not in self.values
        if operator == "exists":
            return value is not None
        if operator == "!":
            return value is None
        if value is None:
            return False
        try:
            number = int(value)
        except ValueError:
            return False
        return number > int(self.values[0]) if operator == "gt" else number < int(self.values[0])


class LabelSelector(NamedTuple):
    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(r.matches(labels) for r in self.requirements)


def _lex(text: str) -> list[tuple[str, bool]]:
    """Tokens with whether they are identifiers; symbols are joined to the longest operator."""
    out: list[tuple[str, bool]] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char in " \t\r\n":
            at += 1
        elif char in _SYMBOLS:
            end = at + 2 if text[at : at + 2] in ("==", "!=") else at + 1
            out.append((text[at:end], False))
            at = end
        else:
            end = at
            while end < len(text) and text[end] not in _SYMBOLS and text[end] not in " \t\r\n":
                end += 1
            out.append((text[at:end], True))
            at = end
    return out


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _lex(text)
        self.at = 0

    def peek(self) -> tuple[str, bool]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("", False)

    def take(self) -> tuple[str, bool]:
        token = self.peek()
        self.at += 1
        return token

    def selector(self) -> LabelSelector:
        found: list[Requirement] = []
        while True:
            text, identifier = self.peek()
            if identifier or text == "!":
                try:
                    found.append(self.requirement())
                except SelectorError as error:
                    raise SelectorError(f"unable to parse requirement: {error}") from None
                text, _ = self.take()
                if not text:
                    break
                if text != ",":
                    raise SelectorError(f"found '{text}', expected: ',' or 'end of string'")
                text, identifier = self.peek()
                if not identifier and text != "!":
                    raise SelectorError(f"found '{text}', expected: identifier after ','")
            elif not text:
                break
            else:
                raise SelectorError(f"found '{text}', expected: !, identifier, or 'end of string'")
        found.sort(key=lambda r: r.key)
        return LabelSelector(tuple(found))

    def requirement(self) -> Requirement:
        text, identifier = self.take()
        absent = text == "!" and not identifier
        if absent:
            text, identifier = self.take()
        if not identifier:
            raise SelectorError(f"found '{text}', expected: identifier")
        key = text
        _check_key(key)
        following, _ = self.peek()
        if absent:
            return Requirement(key, "!")
        if following in ("", ","):
            return Requirement(key, "exists")
        word, _ = self.take()
        operator = _OPERATORS.get(word)
        if operator is None:
            raise SelectorError(f"found '{word}', expected: in, notin, =, ==, !=, gt, lt")
        values = self.values() if operator in ("in", "notin") else (self.exact(),)
        if operator in ("gt", "lt") and not re.fullmatch(r"[+-]?\d+", values[0]):
            raise SelectorError(
                f"values[0]: Invalid value: \"{values[0]}\": for 'Gt', 'Lt' operators, the value must be an integer"
            )
        for index, value in enumerate(values):
            _check_value(f"values[{index}][{key}]", value)
        return Requirement(key, operator, values)

    def values(self) -> tuple[str, ...]:
        text, identifier = self.take()
        if text != "(" or identifier:
            raise SelectorError(f"found '{text}' expected: '('")
        found: list[str] = []
        expecting = True
        while True:
            text, identifier = self.take()
            if identifier:
                found.append(text)
                expecting = False
                following, named = self.peek()
                if following not in (",", ")") or named:
                    raise SelectorError(f"found '{following}', expected: ',' or ')'")
            elif text == ",":
                if expecting:
                    found.append("")
                expecting = True
            elif text == ")":
                if expecting:
                    found.append("")
                return tuple(sorted(set(found)))
            else:
                raise SelectorError(f"found '{text}', expected: ',', or identifier")

    def exact(self) -> str:
        text, identifier = self.peek()
        if not text or (text == "," and not identifier):
            return ""
        text, identifier = self.take()
        if not identifier:
            raise SelectorError(f"found '{text}', expected: identifier")
        return text


def _check_key(key: str) -> None:
    def wrong(why: str) -> SelectorError:
        return SelectorError(f'<nil>: Invalid value: "{key}": {why}')

    parts = key.split("/")
    if len(parts) > 2:
        raise wrong(
            f"a valid label key must {_NAME_TEXT} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        )
    name = parts[-1]
    if len(parts) == 2:
        if not parts[0]:
            raise wrong("prefix part must be non-empty")
        if len(parts[0]) > 253:
            raise wrong("prefix part must be no more than 253 bytes")
        if not _SUBDOMAIN.fullmatch(parts[0]):
            raise wrong(
                "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.',"
                " and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
                " '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            )
    if not name:
        raise wrong("name part must be non-empty")
    if len(name) > 63:
        raise wrong("name part must be no more than 63 bytes")
    if not _QUALIFIED.fullmatch(name):
        raise wrong(f"name part must {_NAME_TEXT}")


def _check_value(where: str, value: str) -> None:
    if len(value) > 63:
        raise SelectorError(f'{where}: Invalid value: "{value}": must be no more than 63 bytes')
    if not _VALUE.fullmatch(value):
        raise SelectorError(f'{where}: Invalid value: "{value}": {_VALUE_TEXT}')


@lru_cache(maxsize=1024)
def parse_labels(text: str) -> LabelSelector | None:
    """A labelSelector; None when it selects everything. SelectorError."""
    parsed = _Parser(text).selector()
    return parsed if parsed.requirements else None


class FieldTerm(NamedTuple):
    field: str
    equal: bool
    value: str


class FieldSelector(NamedTuple):
    terms: tuple[FieldTerm, ...]

    def matches(self, values: Mapping[str, str]) -> bool:
        return all((values.get(t.field, "") == t.value) == t.equal for t in self.terms)

    def names(self) -> Iterable[str]:
        """The fields that it asks for."""
        return [t.field for t in self.terms]

    def required(self) -> dict[str, str]:
        """Fields that must have one very value."""
        return {t.field: t.value for t in self.terms if t.equal}


def _split(text: str) -> list[str]:
    terms, start, escaped = [], 0, False
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == ",":
            terms.append(text[start:at])
            start = at + 1
    terms.append(text[start:])
    return terms


def _unescape(value: str) -> str:
    if "\\" not in value:
        for char in value:
            if char in ",=":
                raise SelectorError(f"invalid field selector: unescaped character in value: {char}")
        return value
    out, escaped = [], False
    for char in value:
        if escaped:
            if char not in "\\,=":
                raise SelectorError(f"invalid field selector: invalid escape sequence: \\{char}")
            out.append(char)
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in ",=":
            raise SelectorError(f"invalid field selector: unescaped character in value: {char}")
        else:
            out.append(char)
    if escaped:
        raise SelectorError("invalid field selector: invalid escape sequence: \\")
    return "".join(out)


@lru_cache(maxsize=1024)
def parse_fields(text: str) -> FieldSelector | None:
    """A fieldSelector; None when it selects everything. SelectorError."""
    terms = []
    for part in _split(text):
        if not part:
            continue
        for at, char in enumerate(part):
            operator = part[at : at + 2] if part[at : at + 2] in ("!=", "==") else char if char == "=" else ""
            if operator:
                terms.append(FieldTerm(part[:at], operator != "!=", _unescape(part[at + len(operator) :])))
                break
        else:
            raise SelectorError(f"invalid selector: '{text}'; can't understand '{part}'")
    return FieldSelector(tuple(terms)) if terms else None


_OBJECT_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


def from_object(selector: Mapping[str, object] | None) -> LabelSelector:
    """A LabelSelector object (matchLabels, matchExpressions). None matches nothing, an empty one everything. SelectorError."""
    if selector is None:
        return NOTHING
    labels = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or ()
    assert isinstance(labels, Mapping) and isinstance(expressions, Iterable)
    found = [Requirement(key, "=", (value,)) for key, value in labels.items()]
    for expression in expressions:
        operator = _OBJECT_OPERATORS.get(expression.get("operator", ""))
        if operator is None:
            raise SelectorError(f'"{expression.get("operator", "")}" is not a valid label selector operator')
        values = tuple(expression.get("values") or ())
        if operator in ("in", "notin") and not values:
            raise SelectorError("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty")
        found.append(Requirement(expression.get("key", ""), operator, values))
    return LabelSelector(tuple(found))


# No label is both there and absent.
NOTHING = LabelSelector((Requirement("", "exists"),))
