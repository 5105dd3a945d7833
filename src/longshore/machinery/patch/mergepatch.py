"""RFC 7396 JSON merge patch."""

from __future__ import annotations

from typing import Any


def apply(document: Any, patch: Any) -> Any:
    """The document with the patch laid over it; neither argument is changed (parts may be shared)."""
    if not isinstance(patch, dict):
        return patch
    out = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict):
            out[key] = apply(out.get(key), value)
        else:
            out[key] = value
    return out


def diff(old: Any, new: Any) -> dict[str, Any]:
    """The merge patch that leads from one object to the other."""
    out: dict[str, Any] = {}
    for key, before in old.items():
        if key not in new:
            out[key] = None
            continue
        after = new[key]
        if isinstance(before, dict) and isinstance(after, dict):
            inner = diff(before, after)
            if inner:
                out[key] = inner
        elif before != after:
            out[key] = after
    out.update({key: after for key, after in new.items() if key not in old})
    return out
