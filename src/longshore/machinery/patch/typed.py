"""Typed operations on JSON trees: validate, list the fields, compare, merge, remove.

Source: structured-merge-diff's typed package, whose results (and error texts) clients see in managedFields and in the
answers to apply requests.
"""

from __future__ import annotations

from typing import Any

import orjson

from longshore.machinery.patch.fieldset import Set
from longshore.machinery.patch.schema import DEDUCED, Node

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "ABSENT"})()
_SELF: Set = {}


class TypedError(ValueError):
    """An object does not fit its schema; the text is upstream's."""


def _go(value: Any) -> str:
    """A value as Go prints it in these messages."""
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _go_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "int64"
    if isinstance(value, float):
        return "float64"
    return "[]interface {}" if isinstance(value, list) else "map[string]interface {}"


def form(node: Node, value: Any) -> str:
    """Which form of the node a value takes: "map", "list" or "scalar"."""
    if not node.single:
        if isinstance(value, dict):
            if node.is_map:
                return "map"
        elif isinstance(value, list):
            if node.list_kind:
                return "list"
        elif value is not None and value is not ABSENT and node.scalar:
            return "scalar"
    if node.is_map:
        return "map"
    return "scalar" if node.scalar else "list"


def element(node: Node, item: Any) -> str:
    """The path element of a list's item. TypedError when the item cannot be an item of such a list."""
    if node.list_kind == "map":
        if item is None:
            raise TypedError("associative list with keys may not have a null element")
        if not isinstance(item, dict):
            raise TypedError("associative list with keys may not have non-map elements")
        keys = {}
        for key in node.keys:
            value = item.get(key, ABSENT)
            if value is ABSENT:
                value = node.key_defaults.get(key, ABSENT)
            if value is not ABSENT:
                keys[key] = value
        if not keys:
            names = " ".join(f'"{k}"' for k in node.keys)
            raise TypedError(
                f"associative list with keys has an element that omits all key fields [{names}]"
                " (and doesn't have default values for any key fields)"
            )
        return "k:" + orjson.dumps(keys, option=orjson.OPT_SORT_KEYS).decode()
    if isinstance(item, dict):
        raise TypedError("associative list without keys has an element that's a map type")
    if isinstance(item, list):
        raise TypedError("not supported: associative list with lists as elements")
    if item is None:
        raise TypedError("associative list without keys has an element that's an explicit null")
    return "v:" + orjson.dumps(item).decode()


def _text(pe: str) -> str:
    from longshore.machinery.patch.fieldset import element_text

    return element_text(pe)


def validate(node: Node, value: Any, duplicates: bool = False) -> list[str]:
    """The errors of a value against its schema, each as "path: text"; duplicates: allow equal items in sets and maps."""
    errors: list[str] = []
    _validate(node, value, "", errors, duplicates)
    return errors


def _error(errors: list[str], path: str, text: str) -> None:
    errors.append(f"{path}: {text}" if path else text)


def _validate(node: Node, value: Any, path: str, errors: list[str], duplicates: bool) -> None:
    kind = form(node, value)
    if value is None:
        return
    if kind == "scalar":
        _scalar(node, value, path, errors)
    elif kind == "list":
        if not isinstance(value, list):
            _error(errors, path, f"expected list, got &{{{_go(value)}}}")
            return
        seen = set()
        for index, item in enumerate(value):
            if node.list_kind == "atomic":
                where = f"[{index}]"
            else:
                try:
                    pe = element(node, item)
                except TypedError as e:
                    _error(errors, path, f"element {index}: {e}")
                    return
                where = _text(pe)
                if pe in seen and not duplicates:
                    _error(errors, path, f"duplicate entries for key {where}")
                seen.add(pe)
            _validate(node.items, item, path + where, errors, duplicates)
    else:
        if not isinstance(value, dict):
            _error(errors, path, f"expected map, got &{{{_go(value)}}}")
            return
        for key, item in value.items():
            child = node.field(key)
            if child is None:
                _error(errors, f"{path}.{key}", "field not declared in schema")
                return
            _validate(child, item, f"{path}.{key}", errors, duplicates)


def _scalar(node: Node, value: Any, path: str, errors: list[str]) -> None:
    want = node.scalar
    if want == "numeric":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            _error(errors, path, f"expected numeric (int or float), got {_go_type(value)}")
    elif want == "string":
        if not isinstance(value, str):
            _error(errors, path, f"expected string, got &value.valueUnstructured{{Value:{_go(value)}}}")
    elif want == "boolean":
        if not isinstance(value, bool):
            _error(errors, path, f"expected boolean, got &{{{_go(value)}}}")
    elif isinstance(value, (dict, list)):
        _error(errors, path, f"expected any scalar, got &{{{_go(value)}}}")


def field_set(node: Node, value: Any) -> Set:
    """All fields of an object: what an applier owns."""
    return _fields(node, value)[0]


def _fields(node: Node, value: Any) -> tuple[Set, bool]:
    """The set below a value, and whether the value's own path belongs to it."""
    kind = form(node, value)
    if kind == "scalar":
        return {}, True
    if kind == "list":
        if node.list_kind == "atomic":
            return {}, True
        out: Set = {}
        if not isinstance(value, list):
            return out, False
        keyed = [(element(node, item), item) for item in value]
        seen: dict[str, int] = {}
        for pe, _ in keyed:
            seen[pe] = seen.get(pe, 0) + 1
        for pe, item in keyed:
            if seen[pe] > 1:
                out[pe] = _SELF
                continue
            below, _ = _fields(node.items, item)
            out[pe] = {".": _SELF, **below} if below else _SELF
        return out, False
    if node.atomic_map:
        return {}, True
    out = {}
    if not isinstance(value, dict):
        return out, False
    for key, item in value.items():
        declared = node.declared(key)
        child = declared or node.values or DEDUCED
        below, member = _fields(child, item)
        if item is None or item == {} or declared is None:
            member = True
        if below:
            out["f:" + key] = {".": _SELF, **below} if member else below
        elif member:
            out["f:" + key] = _SELF
    return out, False


class Comparison:
    """What changed from one object to another: three sets."""

    __slots__ = ("added", "modified", "removed")

    def __init__(self, removed: Set, modified: Set, added: Set) -> None:
        self.removed, self.modified, self.added = removed, modified, added

    @property
    def same(self) -> bool:
        return not (self.removed or self.modified or self.added)


Three = tuple[Set | None, Set | None, Set | None]
_NONE: Three = (None, None, None)


def compare(node: Node, old: Any, new: Any) -> Comparison:
    removed, modified, added = _compare(node, old, new)
    return Comparison(removed or {}, modified or {}, added or {})


def _leaf(old: Any, new: Any) -> Three:
    if old is ABSENT:
        return None, None, _SELF
    if new is ABSENT:
        return _SELF, None, None
    return _NONE if equal(old, new) else (None, _SELF, None)


def equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict):
        return isinstance(b, dict) and len(a) == len(b) and all(k in b and equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def _put(out: Set, pe: str, found: Set | None) -> None:
    if found is not None:
        out[pe] = found


def _finish(out: Set, member: bool) -> Set | None:
    if member:
        return {".": _SELF, **out} if out else _SELF
    return out or None


def _compare(node: Node, old: Any, new: Any) -> Three:
    if old is ABSENT and new is ABSENT:
        return _NONE
    left, right = form(node, old), form(node, new)
    if new is ABSENT:
        kind = left
    elif old is ABSENT or left == right:
        kind = right
    else:
        first, second = _compare_as(node, left, old, new), _compare_as(node, right, old, new)
        return tuple(_either(a, b) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]
    return _compare_as(node, kind, old, new)


def _either(a: Set | None, b: Set | None) -> Set | None:
    if a is None or b is None:
        return b if a is None else a
    return {**a, **b}


def _compare_as(node: Node, kind: str, old: Any, new: Any) -> Three:
    if kind == "scalar":
        return _leaf(old, new)
    wanted = dict if kind == "map" else list
    left = old if isinstance(old, wanted) else None
    right = new if isinstance(new, wanted) else None
    if (node.atomic_map if kind == "map" else node.list_kind == "atomic") or (not left and not right):
        return _leaf(old, new)
    removed: Set = {}
    modified: Set = {}
    added: Set = {}
    if kind == "map":
        _compare_maps(node, left or {}, right or {}, removed, modified, added)
    else:
        _compare_lists(node, left or [], right or [], removed, modified, added)
    return _finish(removed, new is ABSENT), modified or None, _finish(added, old is ABSENT)


def _compare_maps(node: Node, left: Any, right: Any, removed: Set, modified: Set, added: Set) -> None:
    for key, old in left.items():
        new = right.get(key, ABSENT)
        if old is new:
            continue
        a, b, c = _compare(node.field(key) or DEDUCED, old, new)
        pe = "f:" + key
        _put(removed, pe, a)
        _put(modified, pe, b)
        _put(added, pe, c)
    for key, new in right.items():
        if key not in left:
            added["f:" + key] = _added(node.field(key) or DEDUCED, new)


def _added(node: Node, new: Any) -> Set:
    """What `_compare` finds added where there was nothing before: most of the work of a creation, so it has a way of its own."""
    kind = new.__class__
    if kind is dict:
        if not new or node.atomic_map or not node.is_map:
            return _SELF
        out: Set = {".": _SELF}
        fields = node._fields
        for key, value in new.items():
            below = value.__class__
            if below is dict or below is list:
                out["f:" + key] = _added(fields.get(key) or node.field(key) or DEDUCED, value)
            else:
                out["f:" + key] = _SELF
        return out
    if kind is not list or not new or node.list_kind == "atomic":
        return _SELF
    if not node.list_kind:
        return _SELF if node.is_map or node.scalar else _compare(node, ABSENT, new)[2] or _SELF
    out = {}
    for pe, items in _index(node, new).items():
        out[pe] = _added(node.items, items[0]) if len(items) == 1 else _SELF
    return {".": _SELF, **out} if out else _SELF


def _index(node: Node, items: Any) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {}
    for item in items:
        try:
            out.setdefault(element(node, item), []).append(item)
        except TypedError:
            continue
    return out


def _compare_lists(node: Node, left: Any, right: Any, removed: Set, modified: Set, added: Set) -> None:
    if left == right and equal(left, right):
        return
    olds, news = _index(node, left), _index(node, right)
    for pe in {**olds, **news}:
        before, after = olds.get(pe, []), news.get(pe, [])
        if len(before) <= 1 and len(after) <= 1:
            a, b, c = _compare(node.items, before[0] if before else ABSENT, after[0] if after else ABSENT)
            _put(removed, pe, a)
            _put(modified, pe, b)
            _put(added, pe, c)
        elif len(before) >= 2 and len(after) >= 2:
            if not equal(before, after):
                modified[pe] = _SELF
        elif len(before) >= 2:
            if after:
                _put(added, pe, _compare(node.items, ABSENT, after[0])[2])
            removed[pe] = _SELF
        else:
            if before:
                _put(removed, pe, _compare(node.items, before[0], ABSENT)[0])
            added[pe] = _SELF


def merge(node: Node, live: Any, config: Any) -> Any:
    """The live value with an applied configuration laid over it; ABSENT when nothing is left."""
    if live is ABSENT and config is ABSENT:
        return ABSENT
    kind = form(node, live) if config is ABSENT else form(node, config)
    if kind == "scalar":
        return live if config is ABSENT else config
    wanted = dict if kind == "map" else list
    left: Any = live if isinstance(live, wanted) else None
    right: Any = config if isinstance(config, wanted) else None
    if (node.atomic_map if kind == "map" else node.list_kind == "atomic") or (not left and not right):
        return live if config is ABSENT else config
    if kind == "list":
        return _merge_lists(node, left or [], right or []) or ABSENT
    out: dict[str, Any] = {}
    left, right = left or {}, right or {}
    for key, old in left.items():
        if key in right:
            merged = merge(node.field(key) or DEDUCED, old, right[key])
            if merged is not ABSENT:
                out[key] = merged
        else:
            out[key] = old
    out.update({key: new for key, new in right.items() if key not in left})
    return out or ABSENT


def _merge_lists(node: Node, left: list[Any], right: list[Any]) -> list[Any]:
    lefts = [element(node, item) for item in left]
    rights = [element(node, item) for item in right]
    old: dict[str, Any] = {}
    for pe, item in zip(lefts, left, strict=True):
        old[pe] = None if pe in old else item  # duplicates are not merged with the new value
    new = dict(zip(rights, right, strict=True))
    if len(new) != len(rights):
        twice = next(pe for pe in rights if rights.count(pe) > 1)
        raise TypedError(f"duplicate entries for key {_text(twice)}")
    shared = [pe for pe in rights if pe in old]
    wanted, shared_at = (shared[0] if shared else None), 1
    done: set[str] = set()
    out: list[Any] = []
    i = j = 0

    def advance() -> None:
        nonlocal wanted, shared_at
        wanted = shared[shared_at] if shared_at < len(shared) else None
        shared_at += 1

    while i < len(lefts) or j < len(rights):
        if i < len(lefts) and j < len(rights):
            pe = lefts[i]
            if pe == rights[j]:
                done.add(pe)
                out.append(merge(node.items, old[pe], new[pe]))
                i, j = i + 1, j + 1
                advance()
                continue
            if pe in new and wanted is not None and wanted != pe:
                i += 1
                continue
        if i < len(lefts):
            pe = lefts[i]
            if pe not in new:
                out.append(left[i])
                i += 1
                continue
            if pe in done:
                i += 1
        if j < len(rights):
            pe = rights[j]
            done.add(pe)
            out.append(merge(node.items, old.get(pe, ABSENT), new[pe]))
            j += 1
            if wanted == pe:
                advance()
    return [item for item in out if item is not ABSENT]


def remove(node: Node, value: Any, paths: Set) -> Any:
    """The value without the given fields; None where a map or list has lost everything."""
    kind = form(node, value)
    if kind == "scalar":
        return value
    if kind == "list":
        if not isinstance(value, list) or not value or node.list_kind == "atomic":
            return None
        items = []
        for item in value:
            below = paths.get(element(node, item))
            if below is None:
                items.append(item)
            elif below and "." not in below:
                items.append(remove(node.items, item, below))
        return items or None
    if not isinstance(value, dict) or not value or node.atomic_map:
        return None
    out = {}
    for key, item in value.items():
        below = paths.get("f:" + key)
        if below is None:
            out[key] = item
        elif below and "." not in below:
            out[key] = remove(node.field(key) or DEDUCED, item, below)
    return out or None


def ensure_named_fields(node: Node, paths: Set) -> Set:
    """The set with every declared field on its paths made a member (so that removing them removes structs too)."""
    out: Set = {}
    for key, below in paths.items():
        if key == ".":
            out[key] = below
            continue
        if not below:
            out[key] = below
            continue
        if key[0] == "f":
            declared = node.declared(key[2:])
            inner = ensure_named_fields(declared or node.values or DEDUCED, below)
            if declared is not None and "." not in inner:
                inner = {".": _SELF, **inner}
        else:
            inner = ensure_named_fields(node.items, below)
        out[key] = inner
    return out
