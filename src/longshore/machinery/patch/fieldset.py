"""Sets of field paths, kept in the very form that managedFields writes down (FieldsV1).

A set is a dict from path element ("f:name", 'k:{"name":"c"}', 'v:"x"', "i:0") to what lies below. An element without
anything below it is a member; one with children is a member only if they contain ".". The empty set is {}.
Source: structured-merge-diff's fieldpath package and its FieldsV1 serialization.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

Set = dict[str, Any]
_SELF: Set = {}


def is_member(node: Set) -> bool:
    """Whether the path that leads to this node is itself in the set."""
    return not node or "." in node


def union(a: Set, b: Set) -> Set:
    if not a:
        return b
    if not b:
        return a
    out = dict(a)
    for key, there in b.items():
        here = out.get(key)
        out[key] = there if here is None else _union(here, there)
    return out


def _union(a: Set, b: Set) -> Set:
    if not a:
        return {".": _SELF, **b} if b else a
    if not b:
        return {".": _SELF, **a}
    return union(a, b)


def _pack(children: Set, member: bool) -> Set | None:
    if not children:
        return _SELF if member else None
    if member:
        children["."] = _SELF
    return children


def difference(a: Set, b: Set) -> Set:
    """The paths of a that are not paths of b (children of what b contains stay); a itself where that is all of them."""
    out: Set | None = None
    for key, there in b.items():
        here = a.get(key)
        if here is None or key == ".":
            continue
        below, member = _below(here), is_member(here)
        left, stays = difference(below, _below(there)), member and not is_member(there)
        if left is below and stays == member:
            continue
        if out is None:
            out = dict(a)
        packed = _pack(left, stays)
        if packed is None:
            del out[key]
        else:
            out[key] = packed
    return a if out is None else out


def recursive_difference(a: Set, b: Set) -> Set:
    """The paths of a that are neither paths of b nor below one."""
    if not b:
        return a
    out: Set = {}
    for key, here in a.items():
        if key == ".":
            continue
        there = b.get(key)
        if there is None:
            out[key] = here
        elif not is_member(there):
            packed = _pack(recursive_difference(_below(here), there), is_member(here))
            if packed is not None:
                out[key] = packed
    return out


def intersection(a: Set, b: Set) -> Set:
    out: Set = {}
    for key, here in a.items():
        there = b.get(key)
        if there is None or key == ".":
            continue
        packed = _pack(intersection(_below(here), _below(there)), is_member(here) and is_member(there))
        if packed is not None:
            out[key] = packed
    return out


def restrict(a: Set, b: Set) -> Set:
    """The paths of a that are paths of b or below one."""
    out: Set = {}
    for key, here in a.items():
        there = b.get(key)
        if there is None or key == ".":
            continue
        if is_member(there):
            out[key] = here
        else:
            inner = restrict(here, there)
            if inner:
                out[key] = inner
    return out


def _below(node: Set) -> Set:
    return {k: v for k, v in node.items() if k != "."} if "." in node else node


def order(element: str) -> tuple[int, str]:
    """The order in which path elements are listed: fields, keys, values, indices."""
    return ("fkvi".find(element[0]), element[2:])


def paths(a: Set, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All paths of a set, members of a level before what lies deeper."""
    keys = sorted((k for k in a if k != "."), key=order)
    for key in keys:
        if is_member(a[key]):
            yield (*prefix, key)
    for key in keys:
        below = _below(a[key])
        if below:
            yield from paths(below, (*prefix, key))


def has(a: Set, path: tuple[str, ...]) -> bool:
    node = a
    for element in path:
        found = node.get(element)
        if found is None:
            return False
        node = found
    return is_member(node)


def element_text(element: str) -> str:
    """A path element as messages show it: .name, [name="c"], [="x"], [0]."""
    kind, rest = element[0], element[2:]
    if kind == "f":
        return "." + rest
    if kind == "v":
        return f"[={rest}]"
    if kind == "i":
        return f"[{rest}]"
    keys = orjson.loads(rest)
    return "[" + ",".join(f"{k}={orjson.dumps(keys[k]).decode()}" for k in sorted(keys)) + "]"


def path_text(path: tuple[str, ...]) -> str:
    return "".join(map(element_text, path))


def valid(node: Any, depth: int = 0) -> bool:
    """Whether a value read from managedFields has the form of a set."""
    if not isinstance(node, dict) or depth > 128:
        return False
    return all(
        (k == "." or (len(k) > 1 and k[1] == ":" and k[0] in "fkvi")) and valid(v, depth + 1) for k, v in node.items()
    )


def path_set(*names: str) -> Set:
    """The set of one path of field names."""
    out: Set = {}
    for name in reversed(names):
        out = {"f:" + name: out}
    return out
