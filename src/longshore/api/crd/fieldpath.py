"""Field paths of CEL rules (fieldPath): .a.b, ['a'], for properties and map keys."""

from __future__ import annotations

import re
from typing import Any

_STEP = re.compile(r"\.([A-Za-z_][\w\-]*)|\['([^']*)'\]")


def steps(path: str) -> list[str] | None:
    """The names of a path, None when it is malformed."""
    out = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            return None
        out.append(match[1] if match[1] is not None else match[2])
        at = match.end()
    return out or None


def resolve(path: str, schema: dict[str, Any]) -> str | None:
    """The path as error messages write it (".a" and "[key]" for map keys), None when the schema has no such field."""
    names = steps(path)
    if names is None:
        return None
    out = ""
    node: Any = schema
    for name in names:
        if name in (node.get("properties") or {}):
            node = node["properties"][name]
            out += f".{name}"
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
            out += f"[{name}]"
        else:
            return None
    return out
