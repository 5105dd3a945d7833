"""What a rule may cost at most, judged by its text and the sizes that the schema allows (cel-go's cost estimator, in outline).

Sizes that the schema leaves open are those of the largest request. The estimate never stands in for the limits at run
time; it refuses definitions whose rules could not be afforded.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from longshore.api.cel.parser import SyntaxProblem, parse
from longshore.api.crd.structural import Node

REQUEST = 3 * 1024 * 1024
RULE_LIMIT = 10_000_000
SCHEMA_LIMIT = 100_000_000
# What walks over the whole of a text; everything else costs the same for texts of every size.
_READERS = frozenset(
    ("url", "isURL", "ip", "isIP", "cidr", "isCIDR", "quantity", "isQuantity", "semver", "isSemver", "bytes",
     "sets.contains", "sets.equivalent", "sets.intersects")
)  # fmt: skip
_TRAVERSALS = frozenset(("lowerAscii", "upperAscii", "trim", "substring", "replace", "split", "charAt", "validate"))
_SMALLEST_TEXT = {"date": 12, "date-time": 21, "duration": 4}
_LOOPS = frozenset(("all", "exists", "exists_one", "existsOne", "map", "filter", "transformList", "transformMap"))


class Place(NamedTuple):
    """Where in a schema: how often what is here occurs at most (None: no limit), whether oldSelf can be told, else within what not."""

    times: int | None
    correlatable: bool
    within: str


class Total:
    """The sum over a schema."""

    def __init__(self) -> None:
        self.cost = 0
        self._parts: list[tuple[str, int]] = []

    def add(self, path: str, cost: int) -> None:
        """Count a rule."""
        self.cost += cost
        self._parts.append((path, cost))

    def contributors(self) -> list[tuple[str, int]]:
        """The dearest rules, when the sum is too much: those of more than one percent of the limit, at most ten."""
        if self.cost <= SCHEMA_LIMIT:
            return []
        dear = sorted((p for p in self._parts if p[1] > SCHEMA_LIMIT // 100), key=lambda p: -p[1])
        return dear[:10]


def excess(what: str, cost: int, limit: int) -> str:
    """The complaint about a cost above its limit."""
    factor = cost / limit
    shown = "more than 100x" if factor > 100 else f"{max(factor, 1.1):.1f}x"
    return f"{what} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"


def _smallest(node: Node | None) -> int:
    """The fewest bytes that a value of a schema takes in a request."""
    if node is None:
        return 1
    if node.type == "object" and node.values is None:
        required = node.raw.get("required") or ()
        parts = ((name, node.properties.get(name)) for name in required)
        return 2 + sum(len(name) + 4 + _smallest(part) for name, part in parts if part is None or not part.has_default)
    if node.type == "string":
        return _SMALLEST_TEXT.get(node.raw.get("format", ""), 2)
    return {"object": 2, "array": 2, "boolean": 4}.get(node.type, 1)


def occurrences(node: Node, place: Place) -> int:
    """How many values of node a request can hold: as the limits around it say, or as many as there is room for."""
    return place.times if place.times is not None else REQUEST // (_smallest(node) + 1)


def within(node: Node, place: Place) -> int | None:
    """How often the items of node occur at most, None when nothing limits them."""
    given = node.raw.get("maxItems" if node.type == "array" else "maxProperties")
    return place.times * int(given) if given is not None and place.times is not None else None


def count(node: Node) -> int:
    """The most items of a list, or entries of a map."""
    if node.type == "array":
        given = node.raw.get("maxItems")
        return int(given) if given is not None else (REQUEST - 2) // (_smallest(node.items) + 1)
    given = node.raw.get("maxProperties")
    return int(given) if given is not None else (REQUEST - 2) // (_smallest(node.values) + 6)


def _length(node: Node | None) -> int:
    if node is None:
        return REQUEST
    if node.type == "string":
        if node.raw.get("enum"):
            return max(len(str(e)) for e in node.raw["enum"])
        form = node.raw.get("format")
        if form in ("date", "date-time", "duration"):
            return 30
        given = node.raw.get("maxLength")
        return int(given) * (4 if given is not None else 1) if given is not None else REQUEST - 2
    if node.type in ("array", "object") and (node.items is not None or node.values is not None):
        return count(node)
    return 1


def estimate(text: str, node: Node) -> int:
    """The most that a rule on node costs once."""
    try:
        tree = parse(text)
    except (SyntaxProblem, RecursionError):
        return 0
    return max(1, int(_cost(tree, {"self": node, "oldSelf": node})[0]))


def _cost(tree: Any, scope: dict[str, Any]) -> tuple[float, Any]:
    """(cost, the schema node of the result or its size as an int, None when unknown)."""
    kind = tree[0]
    if kind == "lit":
        return 0, len(tree[2]) if isinstance(tree[2], str | bytes) else 1
    if kind == "id":
        return 1, scope.get(tree[2], 1)
    if kind in ("sel", "optsel"):
        cost, inner = _cost(tree[2], scope)
        found = inner.properties.get(tree[3]) or inner.values if isinstance(inner, Node) else None
        return cost + 1, found if found is not None else 64
    if kind in ("idx", "optidx"):
        cost, inner = _cost(tree[2], scope)
        other, _ = _cost(tree[3], scope)
        found = (inner.items or inner.values) if isinstance(inner, Node) else None
        return cost + other + 1, found if found is not None else 64
    if kind in ("not", "neg"):
        cost, _ = _cost(tree[2], scope)
        return cost + 1, 1
    if kind == "op":
        left, a = _cost(tree[3], scope)
        right, b = _cost(tree[4], scope)
        if tree[2] in ("&&", "||"):
            return left + right, 1
        if tree[2] in ("==", "!=", "<", "<=", ">", ">="):
            return left + right + math.ceil(0.1 * max(1, min(_bytes(a), _bytes(b)))), 1
        if tree[2] == "in":
            keyed = isinstance(b, Node) and b.type == "object"
            return left + right + (1 if keyed else max(1, _bytes(b))), 1
        if tree[2] == "+":
            size = _bytes(a) + _bytes(b)
            return left + right + math.ceil(0.1 * size), size
        return left + right + 1, 1
    if kind == "cond":
        condition, _ = _cost(tree[2], scope)
        yes, a = _cost(tree[3], scope)
        no, b = _cost(tree[4], scope)
        return condition + max(yes, no), a if _bytes(a) >= _bytes(b) else b
    if kind == "list":
        return 10 + sum(_cost(item, scope)[0] for item, _ in tree[2]), len(tree[2])
    if kind == "map":
        return 30 + sum(_cost(k, scope)[0] + _cost(v, scope)[0] for k, v, _ in tree[2]), len(tree[2])
    if kind == "msg":
        return 40 + sum(_cost(v, scope)[0] for _, v, _ in tree[3]), 1
    if kind == "call" and tree[2] == "has":
        # Asking whether a field is there costs what it takes to come to it.
        return _cost(tree[3][0][2], scope)[0] if tree[3] and tree[3][0][0] in ("sel", "optsel") else 1, 1
    if kind == "call":
        parts = [_cost(a, scope) for a in tree[3]]
        walked = sum(_bytes(s) for _, s in parts) if tree[2] in _READERS else 0
        return 1 + sum(c for c, _ in parts) + 0.1 * walked, parts[0][1] if tree[2] == "string" and parts else 1
    if kind == "mcall":
        return _method(tree, scope)
    return 1, 1


def _method(tree: Any, scope: dict[str, Any]) -> tuple[float, Any]:
    cost, inner = _cost(tree[2], scope)
    name, arguments = tree[3], tree[4]
    if name in _LOOPS and len(arguments) >= 2 and arguments[0][0] == "id":
        times = count(inner) if isinstance(inner, Node) and inner.type in ("array", "object") else _bytes(inner)
        # The keys of a map count as empty.
        element = (inner.items if inner.type == "array" else 0) if isinstance(inner, Node) else 64
        body = sum(_cost(a, {**scope, arguments[0][2]: element})[0] for a in arguments[1:])
        return cost + times * (body + 2), inner
    others = [_cost(a, scope) for a in arguments]
    size = _bytes(inner)
    total = cost + 1 + sum(c for c, _ in others)
    if name in ("size", "hasValue", "value"):
        return total, 1
    if name in ("matches", "find", "findAll"):
        return total - 1 + math.ceil((size + 1) * 0.1) * math.ceil(0.25 * sum(_bytes(s) for _, s in others)), inner
    if name in ("contains", "indexOf", "lastIndexOf"):
        return total + size * 0.1 * max(1.0, 0.1 * sum(_bytes(s) for _, s in others)), 1
    if name in ("startsWith", "endsWith"):
        return total + 0.1 * sum(_bytes(s) for _, s in others), 1
    if name in _TRAVERSALS:
        return total + 0.1 * size, inner
    if name in ("isSorted", "sum", "min", "max", "join", "distinct", "flatten", "sort", "reverse", "slice"):
        return total + size, inner
    return total, inner if name == "orValue" else 1


def _bytes(size: Any) -> int:
    return _length(size) if isinstance(size, Node) else int(size) if size is not None else REQUEST
