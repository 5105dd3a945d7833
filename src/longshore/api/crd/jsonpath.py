"""The JSONPath of printer columns and selectable fields: fields, indices, wildcards, filters, recursion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

_TOKEN = re.compile(
    r"\.\.|\.(?P<field>(?:[^.\[\]'\"\\]|\\.)+)|\[(?P<quote>['\"])(?P<key>.*?)(?P=quote)\]|\[\?\((?P<filter>.*?)\)\]|\[(?P<slice>-?\d*:-?\d*(?::-?\d*)?)\]|\[(?P<index>-?\d+)\]|\[\*\]|\.\*"
)
_FILTER = re.compile(r"@((?:\.[\w\-]+|\[['\"][^'\"]*['\"]\])+)\s*(?:(==|!=|<=|>=|<|>)\s*(.+))?")
Step = tuple[str, Any]


@lru_cache(maxsize=1024)
def parse(text: str) -> tuple[Step, ...]:
    """The steps of a path (".spec.a[0]"); ValueError when it is none."""
    inner = text.strip()
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1]
    inner = inner.removeprefix("$")
    steps: list[Step] = []
    at = 0
    while at < len(inner):
        match = _TOKEN.match(inner, at)
        if match is None:
            raise ValueError(f"unrecognized character in action: {inner[at]!r}")
        if match[0] == "..":
            name = re.match(r"[\w\-]+", inner[match.end() :])
            steps.append(("deep", name[0] if name else "*"))
            at = match.end() + (name.end() if name else 0)
            continue
        if match["field"] is not None:
            field = re.sub(r"\\(.)", r"\1", match["field"])
            steps.append(("all", None) if field == "*" else ("field", field))
        elif match["key"] is not None:
            steps.append(("field", match["key"]))
        elif match["filter"] is not None:
            steps.append(("filter", _parse_filter(match["filter"])))
        elif match["slice"] is not None:
            steps.append(("slice", slice(*(int(p) if p else None for p in match["slice"].split(":")))))
        elif match["index"] is not None:
            steps.append(("index", int(match["index"])))
        else:
            steps.append(("all", None))
        at = match.end()
    return tuple(steps)


def _parse_filter(text: str) -> tuple[tuple[Step, ...], str, Any]:
    match = _FILTER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"unsupported filter {text}")
    raw = (match[3] or "").strip()
    value: Any = None
    if raw:
        if raw[0] in "'\"" and raw[-1] == raw[0]:
            value = raw[1:-1]
        elif raw in ("true", "false"):
            value = raw == "true"
        else:
            value = float(raw) if "." in raw else int(raw)
    return parse(match[1]), match[2] or "", value


def find(value: Any, steps: tuple[Step, ...]) -> Iterator[Any]:
    """The values that a path leads to."""
    if not steps:
        yield value
        return
    kind, detail = steps[0]
    rest = steps[1:]
    if kind == "field":
        if isinstance(value, dict) and detail in value:
            yield from find(value[detail], rest)
    elif kind == "index":
        if isinstance(value, list) and -len(value) <= detail < len(value):
            yield from find(value[detail], rest)
    elif kind == "slice":
        if isinstance(value, list):
            for item in value[detail]:
                yield from find(item, rest)
    elif kind == "all":
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from find(item, rest)
    elif kind == "deep":
        for item in _descend(value):
            if isinstance(item, dict) and detail in item:
                yield from find(item[detail], rest)
    elif kind == "filter":
        path, operator, wanted = detail
        for item in value if isinstance(value, list) else (value.values() if isinstance(value, dict) else ()):
            if any(_compare(found, operator, wanted) for found in find(item, path)):
                yield from find(item, rest)


def _descend(value: Any) -> Iterator[Any]:
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _descend(item)


def _compare(found: Any, operator: str, wanted: Any) -> bool:
    if not operator:
        return True
    try:
        if operator == "==":
            return bool(found == wanted)
        if operator == "!=":
            return bool(found != wanted)
        return bool({"<": found < wanted, "<=": found <= wanted, ">": found > wanted, ">=": found >= wanted}[operator])
    except TypeError:
        return False


def first(value: Any, text: str) -> Any:
    """The first value of a path, None when there is none."""
    return next(find(value, parse(text)), None)
