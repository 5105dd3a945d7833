"""LabelSelector objects (matchLabels, matchExpressions) as predicates over labels.

Source: apimachinery pkg/apis/meta/v1 LabelSelectorAsSelector; meaning in kubernetes.io "Labels and Selectors".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import orjson

Labels = Mapping[str, str]
Predicate = Callable[[Labels], bool]


def nothing(labels: Labels) -> bool:
    """The selector that matches no object."""
    return False


def everything(labels: Labels) -> bool:
    """The selector that matches every object."""
    return True


def matcher(selector: Mapping[str, Any] | None) -> Predicate:
    """The predicate of a LabelSelector object: None matches nothing, an empty one everything.

    Raises ValueError for an operator that does not exist. Equal selectors share one predicate.
    """
    if selector is None:
        return nothing
    return _compiled(orjson.dumps(selector, option=orjson.OPT_SORT_KEYS))


def map_matcher(pairs: Mapping[str, str] | None) -> Predicate:
    """The predicate of a plain map (Service and ReplicationController selectors): empty matches nothing."""
    return matcher({"matchLabels": dict(pairs)}) if pairs else nothing


@lru_cache(maxsize=8192)
def _compiled(text: bytes) -> Predicate:
    selector = orjson.loads(text)
    pairs = tuple((selector.get("matchLabels") or {}).items())
    tests = [requirement(e) for e in selector.get("matchExpressions") or ()]
    if not tests:
        if not pairs:
            return everything
        if len(pairs) == 1:
            ((key, value),) = pairs
            return lambda labels: labels.get(key) == value
        return lambda labels: all(labels.get(k) == v for k, v in pairs)
    return lambda labels: all(labels.get(k) == v for k, v in pairs) and all(test(labels) for test in tests)


def requirement(expression: Mapping[str, Any]) -> Predicate:
    """The predicate of one expression: In, NotIn, Exists, DoesNotExist, and for node selectors Gt and Lt."""
    key, operator = expression["key"], expression["operator"]
    values = frozenset(expression.get("values") or ())
    if operator == "In":
        return lambda labels: labels.get(key) in values
    if operator == "NotIn":
        return lambda labels: labels.get(key) not in values
    if operator == "Exists":
        return lambda labels: key in labels
    if operator == "DoesNotExist":
        return lambda labels: key not in labels
    if operator in ("Gt", "Lt"):
        try:
            (bound,) = (int(v) for v in values)
        except ValueError:
            return nothing
        return lambda labels: _compare(labels.get(key), bound, operator == "Gt")
    raise ValueError(f"{operator!r} is not a valid label selector operator")


def _compare(text: str | None, bound: int, greater: bool) -> bool:
    try:
        number = int(text or "")
    except ValueError:
        return False
    return number > bound if greater else number < bound


def as_text(selector: Mapping[str, Any] | None) -> str:
    """A LabelSelector object in the form of the labelSelector query parameter, keys in order."""
    parts: list[tuple[str, str]] = [(k, f"{k}={v}") for k, v in ((selector or {}).get("matchLabels") or {}).items()]
    for e in (selector or {}).get("matchExpressions") or ():
        key, values = e["key"], ",".join(sorted(e.get("values") or ()))
        forms = {
            "In": f"{key} in ({values})",
            "NotIn": f"{key} notin ({values})",
            "Exists": key,
            "DoesNotExist": f"!{key}",
        }
        parts.append((key, forms[e["operator"]]))
    return ",".join(text for _, text in sorted(parts))
