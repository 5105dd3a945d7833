"""What patches need to know of a type: which lists are maps or sets, what is atomic, how strategic merge treats a field.

Built lazily from OpenAPI v3 schemas with their x-kubernetes-* extensions, so that built-in kinds and custom resources
are one thing. Source: structured-merge-diff's schema conversion (schemaconv) and the OpenAPI extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Resolver = Callable[[str], Mapping[str, Any]]
"""A definition's schema by name (the last part of its $ref); KeyError when there is none."""

_UNTYPED_SUFFIXES = (".api.resource.Quantity", ".util.intstr.IntOrString", ".v1.Time", ".v1.MicroTime")


class Node:
    """One type: any of a scalar, a list and a map form (several only where the schema leaves the form open).

    scalar: "string", "numeric", "boolean", "untyped" or "" (none); list_kind: "atomic", "set", "map" or "" (no list);
    is_map with atomic_map; `keys` the list-map keys with `key_defaults`; strategies: strategic merge's patchStrategy.
    """

    __slots__ = (
        "_build", "_fields", "_items", "_raw_fields", "_raw_items", "_raw_values", "_values", "atomic_map",
        "is_map", "key_defaults", "keys", "list_kind", "merge_key", "name", "scalar", "strategies",
    )  # fmt: skip

    def __init__(self, build: Callable[[Any], Node] | None = None) -> None:
        self._build = build
        self._fields: dict[str, Node] = {}
        self._raw_fields: Mapping[str, Any] = {}
        self._raw_items: Any = None
        self._raw_values: Any = None
        self._items: Node | None = None
        self._values: Node | None = None
        self.name = ""
        self.scalar = ""
        self.list_kind = ""
        self.is_map = False
        self.atomic_map = False
        self.keys: tuple[str, ...] = ()
        self.key_defaults: dict[str, Any] = {}
        self.strategies: tuple[str, ...] = ()
        self.merge_key = ""

    def declared(self, name: str) -> Node | None:
        """The node of a declared (struct) field; None when the name is not declared."""
        node = self._fields.get(name)
        if node is None:
            raw = self._raw_fields.get(name)
            if raw is None or self._build is None:
                return None
            node = self._fields[name] = self._build(raw)
        return node

    def field(self, name: str) -> Node | None:
        """The node of a key: a declared field's, else the map's value type; None where neither exists."""
        return self.declared(name) or self.values

    @property
    def values(self) -> Node | None:
        if self._values is None and self._raw_values is not None and self._build is not None:
            self._values = self._build(self._raw_values)
        return self._values

    @property
    def items(self) -> Node:
        if self._items is None:
            self._items = self._build(self._raw_items) if self._build and self._raw_items is not None else DEDUCED
        return self._items

    @property
    def single(self) -> bool:
        """Whether only one form is possible."""
        return bool(self.scalar) + bool(self.list_kind) + self.is_map <= 1


def _make_deduced() -> Node:
    node = Node()
    node.scalar, node.list_kind, node.is_map = "untyped", "atomic", True
    node._values = node._items = node
    node.name = "__untyped_deduced_"
    return node


DEDUCED = _make_deduced()
"""Anything: lists atomic, maps merged key by key (the type of what a schema does not describe)."""


class SchemaBuilder:
    """Makes nodes from OpenAPI schemas; a definition is made once."""

    def __init__(self, resolve: Resolver) -> None:
        self._resolve = resolve
        self._named: dict[str, Node] = {}

    def definition(self, name: str) -> Node:
        """The node of a named definition. KeyError when the resolver does not know it."""
        node = self._named.get(name)
        if node is None:
            raw = self._resolve(name)
            node = self._named[name] = Node(self.build)
            self._fill(node, raw, name)
        return node

    def build(self, raw: Any) -> Node:
        """The node of an inline schema (with what stands beside its reference taken into account)."""
        reference, siblings = _reference(raw)
        if not reference:
            node = Node(self.build)
            self._fill(node, raw, "")
            return node
        node = self.definition(reference.rsplit("/", 1)[1])
        own = {k: v for k, v in siblings.items() if k.startswith("x-kubernetes-")}
        if not own:
            return node
        changed = Node(self.build)
        for slot in Node.__slots__:
            setattr(changed, slot, getattr(node, slot))
        self._extensions(changed, own)
        return changed

    def _fill(self, node: Node, raw: Mapping[str, Any], name: str) -> None:
        node.name = name
        kind = raw.get("type", "")
        if raw.get("x-kubernetes-int-or-string") or name.endswith(_UNTYPED_SUFFIXES):
            node.scalar = "untyped"
        elif kind == "object" or (not kind and "properties" in raw):
            properties, additional = raw.get("properties"), raw.get("additionalProperties")
            preserve = raw.get("x-kubernetes-preserve-unknown-fields")
            node.is_map = True
            if not properties and not isinstance(additional, dict):
                node._values = DEDUCED
            if properties:
                node._raw_fields = properties
            if isinstance(additional, dict):
                node._raw_values = additional
            elif preserve or additional is True:
                node._values = DEDUCED
        elif kind == "array":
            node.list_kind = "atomic"
            node._raw_items = raw.get("items", {})
        elif kind in ("integer", "number"):
            node.scalar = "numeric"
        elif kind in ("string", "boolean"):
            node.scalar = "untyped" if raw.get("format") in ("int-or-string",) else kind
        else:
            node.scalar, node.list_kind, node.is_map = "untyped", "atomic", True
            node._values = node._items = DEDUCED
        self._extensions(node, raw)

    def _extensions(self, node: Node, raw: Mapping[str, Any]) -> None:
        node.strategies = (
            tuple(s for s in str(raw.get("x-kubernetes-patch-strategy", "")).split(",") if s) or node.strategies
        )
        node.merge_key = raw.get("x-kubernetes-patch-merge-key", node.merge_key)
        if "x-kubernetes-map-type" in raw:
            node.atomic_map = raw["x-kubernetes-map-type"] == "atomic"
        list_type = raw.get("x-kubernetes-list-type")
        if list_type:
            node.list_kind = list_type
            node.keys = tuple(sorted(raw.get("x-kubernetes-list-map-keys", ())))
        elif node.list_kind == "atomic" and "merge" in node.strategies:
            node.list_kind = "map" if node.merge_key else "set"
            node.keys = (node.merge_key,) if node.merge_key else ()
        if node.keys:
            node.key_defaults = self._defaults(raw.get("items"), node.keys)

    def _defaults(self, items: Any, keys: tuple[str, ...]) -> dict[str, Any]:
        reference, _ = _reference(items or {})
        raw = self._resolve(reference.rsplit("/", 1)[1]) if reference else items or {}
        properties = raw.get("properties", {})
        found = {}
        for key in keys:
            default = properties.get(key, {}).get("default")
            if default is not None:
                found[key] = default
        return found


def _reference(raw: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if "$ref" in raw:
        return raw["$ref"], raw
    every = raw.get("allOf")
    if every and len(every) == 1 and "$ref" in every[0] and "properties" not in raw:
        return every[0]["$ref"], raw
    return "", raw
