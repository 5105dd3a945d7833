"""Pieces of table cells that several kinds share (upstream pkg/printers/internalversion/printers.go)."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def labels(value: dict[str, str] | None) -> str:
    """Labels as a cell: a=b,c=d or <none>."""
    if not value:
        return "<none>"
    return ",".join(f"{k}={value[k]}" for k in sorted(value))


def selector(value: Object | None) -> str:
    """A label selector as a cell."""
    text = selector_text(value)
    return text or "<none>"


def selector_text(value: Object | None) -> str:
    """A label selector in the text form of selectors, sorted by key."""
    if not value:
        return ""
    parts = [(k, f"{k}={v}") for k, v in (value.get("matchLabels") or {}).items()]
    for expression in value.get("matchExpressions") or ():
        key, operator, values = (
            expression["key"],
            expression["operator"],
            ",".join(sorted(expression.get("values") or ())),
        )
        parts.append(
            (
                key,
                {
                    "In": f"{key} in ({values})",
                    "NotIn": f"{key} notin ({values})",
                    "Exists": key,
                    "DoesNotExist": f"!{key}",
                }.get(operator, ""),
            )
        )
    return ",".join(text for _, text in sorted(parts, key=lambda p: p[0]))


def containers(spec: Object) -> tuple[str, str]:
    """Names and images of a spec's containers."""
    listed = spec.get("containers") or ()
    return ",".join(c.get("name", "") for c in listed), ",".join(c.get("image", "") for c in listed)


def access_modes(modes: list[str] | None) -> str:
    """Access modes as abbreviations, in upstream's order."""
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
    given = set(modes or ())
    return ",".join(text for mode, text in short.items() if mode in given)
