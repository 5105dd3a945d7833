"""Structural schemas of custom resources: pruning, defaults, and validation in the words of upstream's go-openapi.

A `Node` is compiled once a schema; the functions walk values with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from longshore.api.crd import formats
from longshore.api.crd.patterns import PatternError, compile_go
from longshore.api.validation.errors import Errors, FieldError

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: (isinstance(v, int) and not isinstance(v, bool)) or (isinstance(v, float) and v.is_integer()),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
}


class Node:
    """One schema node. properties, items and values hold nodes; closed says that other properties are forbidden."""

    __slots__ = (
        "closed", "default", "embedded", "has_default", "has_defaults", "has_rules", "int_or_string", "items", "keys", "list_type",
        "map_type", "nullable", "pattern", "preserve", "properties", "raw", "rules", "type", "values",
    )  # fmt: skip

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.type: str = raw.get("type", "")
        self.nullable = bool(raw.get("nullable"))
        self.preserve = bool(raw.get("x-kubernetes-preserve-unknown-fields"))
        self.embedded = bool(raw.get("x-kubernetes-embedded-resource"))
        self.int_or_string = bool(raw.get("x-kubernetes-int-or-string"))
        self.list_type: str = raw.get("x-kubernetes-list-type", "atomic")
        self.keys: tuple[str, ...] = tuple(raw.get("x-kubernetes-list-map-keys") or ())
        self.map_type: str = raw.get("x-kubernetes-map-type", "granular")
        self.properties = {name: Node(child) for name, child in (raw.get("properties") or {}).items()}
        items, values = raw.get("items"), raw.get("additionalProperties")
        self.items = Node(items) if isinstance(items, dict) else None
        self.values = Node(values) if isinstance(values, dict) else None
        self.closed = values is False
        if values is True and not self.properties:
            self.preserve = True
        self.has_default = raw.get("default") is not None
        self.default = raw.get("default")
        self.rules: list[dict[str, Any]] = list(raw.get("x-kubernetes-validations") or ())
        self.pattern = _go_pattern(raw["pattern"]) if raw.get("pattern") else None
        children = [*self.properties.values(), *(c for c in (self.items, self.values) if c is not None)]
        self.has_defaults: bool = self.has_default or any(c.has_defaults for c in children)
        self.has_rules: bool = bool(self.rules) or any(c.has_rules for c in children)


def _go_pattern(text: str) -> re.Pattern[str] | None:
    try:
        return compile_go(text)
    except PatternError:
        return None


def prune(value: Any, node: Node, unknown: list[str] | None = None, path: str = "", *, root: bool = False) -> None:
    """Take away what the schema does not have, in place; unknown receives the paths."""
    if isinstance(value, dict):
        embedded = root or node.embedded
        for key in list(value):
            here = f"{path}.{key}" if path else key
            child = node.properties.get(key)
            if embedded and key in ("apiVersion", "kind", "metadata"):
                continue
            if child is not None:
                prune(value[key], child, unknown, here)
            elif node.values is not None:
                prune(value[key], node.values, unknown, here)
            elif not node.preserve:
                if unknown is not None:
                    unknown.append(here)
                del value[key]
    elif isinstance(value, list) and node.items is not None:
        for index, item in enumerate(value):
            prune(item, node.items, unknown, f"{path}[{index}]")


def prune_defaulted_nulls(value: Any, node: Node) -> None:
    """A null where nothing may be null, but a default is, is as good as absent."""
    if isinstance(value, dict):
        for key in list(value):
            child = node.properties.get(key) or node.values
            if child is None:
                continue
            if value[key] is None:
                if child.has_default and not child.nullable:
                    del value[key]
            else:
                prune_defaulted_nulls(value[key], child)
    elif isinstance(value, list) and node.items is not None:
        for item in value:
            prune_defaulted_nulls(item, node.items)


def fill(value: Any, node: Node) -> None:
    """Put defaults in, in place."""
    if not node.has_defaults:
        return
    if isinstance(value, dict):
        for name, child in node.properties.items():
            if child.has_default and (name not in value or (value[name] is None and not child.nullable)):
                value[name] = _copy(child.default)
        for name, item in value.items():
            next_node = node.properties.get(name) or node.values
            if next_node is not None:
                fill(item, next_node)
    elif isinstance(value, list) and node.items is not None:
        for item in value:
            fill(item, node.items)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def type_name(value: Any) -> str:
    """The JSON type of a value, as upstream's messages name it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


class _Missing:
    """No old value to compare with."""


MISSING = _Missing()


def check(value: Any, node: Node, errors: Errors, path: str, old: Any = MISSING, *, root: bool = False) -> None:
    """Validate value; with an old value, what has not changed is not complained of (ratcheting)."""
    if old is not MISSING and type(old) is type(value) and old == value:
        return
    raw = node.raw
    where = path or ""
    if value is None:
        if node.nullable:
            return
        if node.type or node.int_or_string:
            _type_error(errors, path, node.type or "integer,string", value)
        return
    if node.int_or_string:
        if not (isinstance(value, str) or _TYPES["integer"](value)):
            _type_error(errors, path, "integer,string", value)
            return
    elif node.type and not _TYPES.get(node.type, lambda v: True)(value):
        _type_error(errors, path, node.type, value)
        return
    if "enum" in raw and raw["enum"] is not None and not any(_same(value, e) for e in raw["enum"]):
        _not_supported(errors, path, value, raw["enum"])
    if isinstance(value, str):
        _string(value, node, errors, path)
    elif isinstance(value, dict):
        _object(value, node, errors, path, old, root)
    elif isinstance(value, list):
        _array(value, node, errors, path, old)
    elif not isinstance(value, bool):
        _number(value, raw, errors, path)
    if raw.get("allOf") or raw.get("anyOf") or raw.get("oneOf") or raw.get("not"):
        _logic(value, raw, errors, path, where)


def _same(value: Any, other: Any) -> bool:
    return bool(value == other and isinstance(value, bool) == isinstance(other, bool))


def _type_error(errors: Errors, path: str, want: str, value: Any) -> None:
    shown = type_name(value)
    errors.append(
        FieldError(
            "TypeInvalid", path or "<nil>", shown, f'{path or ""} in body must be of type {want}: "{shown}"'.lstrip()
        )
    )


def _not_supported(errors: Errors, path: str, value: Any, allowed: list[Any]) -> None:
    import json

    listed = ", ".join(f'"{a}"' if isinstance(a, str) else f'"{json.dumps(a)}"' for a in allowed)
    errors.append(FieldError("NotSupported", path or "<nil>", value, f"supported values: {listed}"))


def _say(errors: Errors, path: str, value: Any, text: str) -> None:
    errors.invalid(path or "<nil>", value, f"{path} in body {text}")


def _string(value: str, node: Node, errors: Errors, path: str) -> None:
    raw = node.raw
    if raw.get("maxLength") is not None and len(value) > raw["maxLength"]:
        errors.too_long(path, raw["maxLength"])
    if raw.get("minLength") is not None and len(value) < raw["minLength"]:
        _say(errors, path, value, f"should be at least {raw['minLength']} chars long")
    if node.pattern is not None and not node.pattern.search(value):
        _say(errors, path, value, f"should match '{raw['pattern']}'")
    form = raw.get("format")
    if form and not formats.valid(form, value):
        _say(errors, path, value, f'must be of type {form}: "{value}"')


def _number(value: float, raw: dict[str, Any], errors: Errors, path: str) -> None:
    top, bottom, step = raw.get("maximum"), raw.get("minimum"), raw.get("multipleOf")
    if top is not None and (value >= top if raw.get("exclusiveMaximum") else value > top):
        _say(
            errors,
            path,
            value,
            f"should be less than {'' if raw.get('exclusiveMaximum') else 'or equal to '}{_trim(top)}",
        )
    if bottom is not None and (value <= bottom if raw.get("exclusiveMinimum") else value < bottom):
        _say(
            errors,
            path,
            value,
            f"should be greater than {'' if raw.get('exclusiveMinimum') else 'or equal to '}{_trim(bottom)}",
        )
    if step and (value / step) != int(value / step):
        _say(errors, path, value, f"should be a multiple of {_trim(step)}")
    if raw.get("format") == "int32" and not -(2**31) <= value < 2**31:
        _say(errors, path, value, f'must be of type int32: "{_trim(value)}"')


def _trim(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _object(value: dict[str, Any], node: Node, errors: Errors, path: str, old: Any, root: bool) -> None:
    raw = node.raw
    if raw.get("maxProperties") is not None and len(value) > raw["maxProperties"]:
        errors.too_many(path or "<nil>", len(value), raw["maxProperties"])
    if raw.get("minProperties") is not None and len(value) < raw["minProperties"]:
        _say(errors, path, value, f"should have at least {raw['minProperties']} properties")
    for name in raw.get("required") or ():
        if name not in value:
            errors.required(f"{path}.{name}" if path else name)
    before = old if isinstance(old, dict) else {}
    for name, item in value.items():
        if root and name in ("apiVersion", "kind", "metadata"):
            continue
        child = node.properties.get(name)
        here = f"{path}.{name}" if path else name
        if child is None:
            child = node.values
            if child is None:
                if node.closed:
                    _say(errors, here, item, "is a forbidden property")
                continue
        check(item, child, errors, here, before.get(name, MISSING))


def _array(value: list[Any], node: Node, errors: Errors, path: str, old: Any) -> None:
    raw = node.raw
    if raw.get("maxItems") is not None and len(value) > raw["maxItems"]:
        errors.too_many(path, len(value), raw["maxItems"])
    if raw.get("minItems") is not None and len(value) < raw["minItems"]:
        _say(errors, path, value, f"should have at least {raw['minItems']} items")
    if raw.get("uniqueItems") and any(item in value[:i] for i, item in enumerate(value)):
        _say(errors, path, value, "shouldn't contain duplicates")
    known: dict[Any, Any] = {}
    if node.list_type == "map" and isinstance(old, list):
        known = {list_key(item, node): item for item in old}
    if node.items is not None:
        for index, item in enumerate(value):
            check(
                item,
                node.items,
                errors,
                f"{path}[{index}]",
                known.get(list_key(item, node), MISSING) if known else MISSING,
            )


def list_key(item: Any, node: Node) -> tuple[Any, ...]:
    """The key of an item of a list map."""
    if not isinstance(item, dict):
        return ()
    out = []
    for key in node.keys:
        value = item.get(key)
        if value is None and node.items is not None and key in node.items.properties:
            value = node.items.properties[key].default
        out.append(repr(value))
    return tuple(out)


def _logic(value: Any, raw: dict[str, Any], errors: Errors, path: str, where: str) -> None:
    def holds(schema: dict[str, Any]) -> bool:
        found = Errors()
        check(value, _logic_node(schema), found, path)
        return not found

    quoted = f'"{where}"'
    if raw.get("anyOf") and not any(holds(s) for s in raw["anyOf"]):
        errors.invalid(path or "<nil>", _shown(value), f"{quoted} must validate at least one schema (anyOf)")
    if raw.get("oneOf"):
        count = sum(holds(s) for s in raw["oneOf"])
        if count != 1:
            tail = "Found none valid" if count == 0 else f"Found {count} valid alternatives"
            errors.invalid(
                path or "<nil>", _shown(value), f"{quoted} must validate one and only one schema (oneOf). {tail}"
            )
    for schema in raw.get("allOf") or ():
        found = Errors()
        check(value, _logic_node(schema), found, path)
        if found:
            errors.extend(found)
            errors.invalid(path or "<nil>", _shown(value), f"{quoted} must validate all the schemas (allOf)")
            break
    if raw.get("not") and holds(raw["not"]):
        errors.invalid(path or "<nil>", _shown(value), f"{quoted} must not validate the schema (not)")


def _shown(value: Any) -> Any:
    return value


_logic_nodes: dict[int, tuple[dict[str, Any], Node]] = {}


def _logic_node(raw: dict[str, Any]) -> Node:
    kept = _logic_nodes.get(id(raw))
    if kept is None or kept[0] is not raw:
        if len(_logic_nodes) > 4096:
            _logic_nodes.clear()
        kept = _logic_nodes[id(raw)] = (raw, Node(raw))
    return kept[1]


def check_lists(value: Any, node: Node, errors: Errors, path: str) -> None:
    """Lists of type set and map hold nothing twice."""
    if isinstance(value, dict):
        for name, item in value.items():
            child = node.properties.get(name) or node.values
            if child is not None:
                check_lists(
                    item,
                    child,
                    errors,
                    f"{path}[{name}]" if name not in node.properties else (f"{path}.{name}" if path else name),
                )
    elif isinstance(value, list):
        if node.list_type == "set":
            for index, item in enumerate(value):
                if item in value[:index]:
                    errors.duplicate(f"{path}[{index}]", item)
        elif node.list_type == "map":
            seen: set[tuple[Any, ...]] = set()
            for index, item in enumerate(value):
                key = list_key(item, node)
                if key in seen:
                    errors.duplicate(f"{path}[{index}]", {k: item.get(k) for k in sorted(node.keys) if k in item})
                seen.add(key)
        if node.items is not None:
            for index, item in enumerate(value):
                check_lists(item, node.items, errors, f"{path}[{index}]")
