"""What Go's JSON decoder says of text that is no JSON: clients have come to know these sentences."""

from __future__ import annotations

import json


def explain(text: str) -> str:
    """The error for a text that cannot be decoded, without any prefix."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            return "unexpected EOF" if text.strip() else "EOF"
        shown = repr(text[error.pos])
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
