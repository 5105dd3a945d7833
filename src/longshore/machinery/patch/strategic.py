"""Strategic merge patch: merge by schema, with its directives.

`$patch: replace|delete|merge`, `$retainKeys`, `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`.
Source: apimachinery's strategicpatch package (behaviour and error texts).
"""

from __future__ import annotations

from typing import Any

import orjson

from longshore.machinery.patch.schema import DEDUCED, Node

_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


class PatchRefused(ValueError):
    """The patch is no strategic merge patch for such an object (the text is upstream's)."""


def _go_map(value: Any) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_go_map(value[k])}" for k in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(map(_go_map, value)) + "]"
    if value is None:
        return "<nil>"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


go_text = _go_map


def _no_merge_key(item: Any, key: str) -> PatchRefused:
    return PatchRefused(f"map: {_go_map(item)} does not contain declared merge key: {key}")


def apply(node: Node, original: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """The object with the patch merged in; neither argument is changed. PatchRefused."""
    return _merge_map(node, original, patch)


def _strategy(node: Node) -> str:
    rest = [s for s in node.strategies if s != "retainKeys"]
    return rest[0] if rest else ""


def _child(node: Node, key: str) -> Node:
    return node.field(key) or DEDUCED


def _clean(value: Any) -> tuple[Any, bool]:
    """A new value without directives and without nulls in its maps; False when the value itself is to go."""
    if isinstance(value, dict):
        if _DIRECTIVE in value:
            return None, False
        out = {}
        for key, item in value.items():
            if item is None or key == _RETAIN or key.startswith((_ORDER, _DELETE)):
                continue
            cleaned, keep = _clean(item)
            if keep:
                out[key] = cleaned
        return out, True
    if isinstance(value, list):
        items = []
        for item in value:
            cleaned, keep = _clean(item)
            if keep:
                items.append(cleaned)
        return items, True
    return value, True


def _merge_map(node: Node, original: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    if _DIRECTIVE in patch:
        directive = patch[_DIRECTIVE]
        if directive == "replace":
            return {k: v for k, v in patch.items() if k != _DIRECTIVE}
        if directive == "delete":
            return {}
        raise PatchRefused(f"unknown patch type: {_go_map(directive)} in map: {_go_map(patch)}")
    out = dict(original)
    patch = dict(patch)
    if _RETAIN in patch:
        out = _retain(out, patch)
    for key in [k for k in patch if k.startswith(_ORDER)]:
        _order_list(node, out, patch, key)
    for key, value in patch.items():
        deleting = key.startswith(_DELETE)
        if deleting:
            key = key[len(_DELETE) :]
        if value is None:
            out.pop(key, None)
            continue
        have = out.get(key)
        if have is None or type(have) is not type(value):
            if not deleting:
                cleaned, keep = _clean(value)
                if keep:
                    out[key] = cleaned
                else:
                    out.pop(key, None)
            continue
        child = _child(node, key)
        if isinstance(value, dict):
            out[key] = value if _strategy(child) == "replace" else _merge_map(child, have, value)
        elif isinstance(value, list):
            if deleting or _strategy(child) == "merge":
                out[key] = _merge_list(child, have, value, deleting)
            else:
                out[key] = value
        else:
            out[key] = value
    return out


def _retain(original: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    keys = patch.pop(_RETAIN)
    if not isinstance(keys, list):
        raise PatchRefused("invalid patch format of retainKeys")
    for key, value in patch.items():
        if value is not None and not key.startswith((_ORDER, _DELETE)) and key not in keys:
            raise PatchRefused("invalid patch format of retainKeys")
    return {k: v for k, v in original.items() if k in keys}


def _order_list(node: Node, out: dict[str, Any], patch: dict[str, Any], directive: str) -> None:
    order = patch.pop(directive)
    key = directive[len(_ORDER) :]
    have, wanted = out.get(key), patch.get(key)
    if not isinstance(order, list) or not isinstance(have or [], list) or not isinstance(wanted or [], list):
        raise PatchRefused("invalid patch format of setElementOrder list")
    child = _child(node, key)
    _check_order(wanted or [], order, child.merge_key)
    if have is None and wanted is None:
        return
    if wanted is None:
        merged = have or []
    elif have is None:
        merged = _clean(wanted)[0]
    else:
        merged = _merge_list(child, have, wanted, False) if _strategy(child) == "merge" else wanted
    ours, theirs = _partition(merged, order, child.merge_key)
    out[key] = _normalize(ours, theirs, order, have or [], child.merge_key)
    patch.pop(key, None)


def _check_order(patch: list[Any], order: list[Any], merge_key: str) -> None:
    if not order or not patch:
        return
    left = [i for i in patch if not (isinstance(i, dict) and _DIRECTIVE in i)]
    at = 0
    for wanted in order:
        if at < len(left) and _identity(left[at], merge_key) == _identity(wanted, merge_key):
            at += 1
    if at < len(left):
        raise PatchRefused(
            f"The order in patch list:\n{_go_map(patch)}\n doesn't match {_ORDER[:-1]} list:\n{_go_map(order)}\n"
        )


def _identity(item: Any, merge_key: str) -> Any:
    if not merge_key:
        return item
    if not isinstance(item, dict):
        raise PatchRefused(f"expected a map[string]interface {{}}, but received a {_kind(item)}")
    if merge_key not in item:
        raise _no_merge_key(item, merge_key)
    return item[merge_key]


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "int64"
    return "float64" if isinstance(value, float) else "[]interface {}"


def _partition(items: list[Any], by: list[Any], merge_key: str) -> tuple[list[Any], list[Any]]:
    if merge_key:
        names = [item.get(merge_key) for item in by if isinstance(item, dict)]
        ours = [i for i in items if _identity(i, merge_key) in names]
        return ours, [i for i in items if _identity(i, merge_key) not in names]
    return [i for i in items if i in by], [i for i in items if i not in by]


def _position(items: list[Any], merge_key: str) -> dict[Any, int]:
    out: dict[Any, int] = {}
    for index, item in enumerate(items):
        key = _identity(item, merge_key)
        if isinstance(key, (str, int, float, bool)):
            out.setdefault(key, index)
    return out


def _normalize(ours: list[Any], theirs: list[Any], order: list[Any], server: list[Any], merge_key: str) -> list[Any]:
    """The patch's items in its order, with items that only the server has kept where they stood."""
    wanted = _position(order, merge_key)
    ours = sorted(ours, key=lambda i: wanted.get(_identity(i, merge_key), len(order)))
    present = _position(server, merge_key)
    theirs = sorted(theirs, key=lambda i: present.get(_identity(i, merge_key), len(server)))
    out: list[Any] = []
    i = j = 0
    while i < len(ours) and j < len(theirs):
        left = present.get(_identity(theirs[j], merge_key))
        right = present.get(_identity(ours[i], merge_key))
        # What is new comes before what only the server has.
        if left is not None and right is not None and left < right:
            out.append(theirs[j])
            j += 1
        else:
            out.append(ours[i])
            i += 1
    return out + ours[i:] + theirs[j:]


def _merge_list(node: Node, original: list[Any], patch: list[Any], deleting: bool) -> list[Any]:
    if not original and not patch:
        return original
    first = (original or patch)[0]
    if not isinstance(first, dict):
        if deleting:
            return [i for i in original if i not in patch]
        merged: list[Any] = []
        for item in [*original, *patch]:
            if item not in merged:
                merged.append(item)
        ours, theirs = _partition(merged, patch, "")
        return _normalize(ours, theirs, patch, original, "")
    key = node.merge_key
    if not key:
        raise PatchRefused(f"cannot merge lists without merge key for {node.name}")
    rest: list[Any] = []
    current = list(original)
    replace = False
    for item in patch:
        if not isinstance(item, dict):
            raise PatchRefused(f"expected a map[string]interface {{}}, but received a {_kind(item)}")
        directive = item.get(_DIRECTIVE)
        if _DIRECTIVE not in item:
            rest.append(item)
        elif directive == "delete":
            if key not in item:
                raise _no_merge_key(item, key)
            current = [i for i in current if not (isinstance(i, dict) and i.get(key) == item[key] and key in i)]
        elif directive == "replace":
            replace = True
        elif directive == "merge":
            raise PatchRefused("merging lists cannot yet be specified in the patch")
        else:
            raise PatchRefused(f"unknown patch type: {_go_map(directive)} in map: {_go_map(item)}")
    if replace:
        return rest
    before = list(current)
    for item in rest:
        if key not in item:
            raise _no_merge_key(item, key)
        for index, have in enumerate(current):
            if isinstance(have, dict) and key in have and have[key] == item[key]:
                current[index] = _merge_map(node.items, have, item)
                break
        else:
            current.append(_clean(item)[0])
    ours, theirs = _partition(current, rest, key)
    return _normalize(ours, theirs, rest, before, key)
