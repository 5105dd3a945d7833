"""Field errors and lists of them, in upstream's words (apimachinery pkg/util/validation/field/errors.go)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

# type -> (words of the message, reason of the cause)
TYPES = {
    "NotFound": ("Not found", "FieldValueNotFound"),
    "Required": ("Required value", "FieldValueRequired"),
    "Duplicate": ("Duplicate value", "FieldValueDuplicate"),
    "Invalid": ("Invalid value", "FieldValueInvalid"),
    "NotSupported": ("Unsupported value", "FieldValueNotSupported"),
    "Forbidden": ("Forbidden", "FieldValueForbidden"),
    "TooLong": ("Too long", "FieldValueTooLong"),
    "TooMany": ("Too many", "FieldValueTooMany"),
    "Internal": ("Internal error", "InternalError"),
    "TypeInvalid": ("Invalid value", "FieldValueTypeInvalid"),
}
_SILENT = frozenset(("Required", "Forbidden", "TooLong", "Internal"))
_PLAIN = str.maketrans(
    {
        "\\": "\\\\",
        '"': '\\"',
        "\n": "\\n",
        "\t": "\\t",
        "\r": "\\r",
        "\a": "\\a",
        "\b": "\\b",
        "\f": "\\f",
        "\v": "\\v",
    }
)


def quote(text: str) -> str:
    """text as Go's %q prints it."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    out = []
    for char in text.translate(_PLAIN):
        if char.isprintable():
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        elif ord(char) < 0x10000:
            out.append(f"\\u{ord(char):04x}")
        else:
            out.append(f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'


class Raw(str):
    """A value that is printed as it stands, without quotes."""

    __slots__ = ()


def _ordered(value: Any) -> Any:
    """Maps in the order in which Go prints them: by key; structures as they stand."""
    if isinstance(value, dict):
        if value.keys() <= {"matchLabels", "matchExpressions"}:
            return {key: _ordered(value[key]) for key in ("matchLabels", "matchExpressions") if key in value}
        if value.keys() <= {"key", "operator", "values"} and "operator" in value:
            return {key: value[key] for key in ("key", "operator", "values") if key in value}
        if all(isinstance(v, str) for v in value.values()) and not any(k[:1].isupper() for k in value):
            return {key: value[key] for key in sorted(value)} if "kind" not in value else value
        return {key: _ordered(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_ordered(child) for child in value]
    return value


def show(value: Any) -> str:
    """A bad value as it stands in a message."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, dict | list | tuple):
        text = json.dumps(_ordered(value), separators=(",", ":"), ensure_ascii=False)
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return str(value)


class _Omitted:
    """A bad value that the message leaves out."""


OMITTED = _Omitted()


class FieldError:
    """One field that is wrong: type (a key of TYPES), field (path), value, detail."""

    __slots__ = ("detail", "field", "type", "value")

    def __init__(self, type: str, field: str, value: Any, detail: str) -> None:
        self.type = type
        self.field = field
        self.value = value
        self.detail = detail

    def body(self) -> str:
        """The message without the field's path."""
        words = TYPES[self.type][0]
        if self.type not in _SILENT and self.value is not OMITTED:
            words = f"{words}: {show(self.value)}"
        return f"{words}: {self.detail}" if self.detail else words

    def message(self) -> str:
        """The whole message: path and body."""
        return f"{self.field}: {self.body()}"

    def cause(self) -> dict[str, str]:
        """The entry of a Status's details.causes."""
        return {"reason": TYPES[self.type][1], "message": self.body(), "field": self.field}

    def __repr__(self) -> str:
        return f"FieldError({self.message()})"


class Errors(list[FieldError]):
    """A list of field errors with a method per type."""

    def required(self, field: str, detail: str = "") -> None:
        """A value must be given."""
        self.append(FieldError("Required", field, "", detail))

    def invalid(self, field: str, value: Any, detail: str = "") -> None:
        """A value is malformed or out of bounds."""
        self.append(FieldError("Invalid", field, value, detail))

    def unsupported(self, field: str, value: Any, supported: Iterable[str]) -> None:
        """A value is none of a set (in the order in which it is shown)."""
        listed = ", ".join(quote(v) for v in supported)
        self.append(FieldError("NotSupported", field, value, f"supported values: {listed}" if listed else ""))

    def duplicate(self, field: str, value: Any) -> None:
        """A value that must be unique is there twice."""
        self.append(FieldError("Duplicate", field, value, ""))

    def forbidden(self, field: str, detail: str = "") -> None:
        """A value is not allowed here."""
        self.append(FieldError("Forbidden", field, "", detail))

    def too_long(self, field: str, limit: int) -> None:
        """A string or byte value exceeds limit bytes."""
        self.append(FieldError("TooLong", field, "", f"may not be more than {limit} bytes"))

    def too_many(self, field: str, count: int, limit: int) -> None:
        """A list exceeds limit entries."""
        self.append(
            FieldError("TooMany", field, count, f"must have at most {limit} item" + ("" if limit == 1 else "s"))
        )

    def not_found(self, field: str, value: Any) -> None:
        """A reference leads nowhere."""
        self.append(FieldError("NotFound", field, value, ""))

    def internal(self, field: str, detail: str) -> None:
        """The server could not tell."""
        self.append(FieldError("Internal", field, None, detail))


def aggregate(errors: Iterable[FieldError]) -> str:
    """All messages as one, as upstream joins them: each once, in brackets when there are several."""
    messages = list(dict.fromkeys(e.message() for e in errors))
    return messages[0] if len(messages) == 1 else "[" + ", ".join(messages) + "]"


def invalid_message(kind: str, group: str, name: str, errors: Iterable[FieldError]) -> str:
    """The message of an Invalid status: `Pod "x" is invalid: ...`."""
    return f"{kind}{'.' + group if group else ''} {quote(name)} is invalid: {aggregate(errors)}"
