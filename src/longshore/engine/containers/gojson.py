"""What Go's JSON decoder says of text that is no JSON: clients have come to know these sentences."""

from __future__ import annotations

import json

_LITERALS = {"t": "true", "f": "false", "n": "null"}


def explain(text: str) -> str:
    """The error for a text that cannot be decoded, without any prefix."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            return "unexpected EOF" if text.strip() else "EOF"
        shown = repr(text[error.pos])
        literal = _LITERALS.get(text[error.pos]) if error.msg.startswith("Expecting value") else None
        if literal is not None:
            given = text[error.pos : error.pos + len(literal)]
            wrong = next(place for place, letter in enumerate(literal) if given[place : place + 1] != letter)
            if wrong == len(given):
                return "unexpected EOF"
            return f"invalid character {given[wrong]!r} in literal {literal} (expecting {literal[wrong]!r})"
        if error.msg.startswith("Expecting property name"):
            return f"invalid character {shown} looking for beginning of object key string"
        if error.msg.startswith("Expecting ':'"):
            return f"invalid character {shown} after object key"
        if error.msg.startswith("Expecting ','"):
            inside = (
                "object key:value pair"
                if text.rfind("{", 0, error.pos) > text.rfind("[", 0, error.pos)
                else "array element"
            )
            return f"invalid character {shown} after {inside}"
        if error.msg.startswith("Extra data"):
            return f"invalid character {shown} after top-level value"
        return f"invalid character {shown} looking for beginning of value"
    except RecursionError:
        return "exceeded max depth"
    return "invalid JSON"
