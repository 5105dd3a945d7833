"""Structural types of the built-in kinds, and the decoding that Go's JSON package does with them.

`Schema` is one type: a struct, a map, a list or a scalar, with what patches and apply need (list types, map keys, patch
strategies, merge keys). `decode` turns a parsed body into the object as upstream would hold it: unknown fields and
nulls are gone, quantities and times are canonical, empty optional values are dropped and required ones are there.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from longshore.api import definitions, times
from longshore.machinery import quantity

(
    STRING,
    INTEGER,
    BOOLEAN,
    NUMBER,
    BYTES,
    QUANTITY,
    INT_OR_STRING,
    TIME,
    MICRO_TIME,
    DURATION,
    STRUCT,
    LIST,
    MAP,
    ANY,
    UNION,
) = range(15)
SCALARS = frozenset((STRING, INTEGER, BOOLEAN, NUMBER, BYTES, QUANTITY, INT_OR_STRING, TIME, MICRO_TIME, DURATION))

# Kinds that are structures in Go.
_GO_STRUCTS = frozenset((STRUCT, QUANTITY, INT_OR_STRING, TIME, MICRO_TIME, DURATION))
# Lists whose defaults tell an empty one from an absent one.
_EMPTY_IS_SAID = frozenset((("io.k8s.api.autoscaling.v2.HPAScalingRules", "policies"),))
_NAMED = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": QUANTITY,
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": INT_OR_STRING,
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": TIME,
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": MICRO_TIME,
    "io.k8s.apimachinery.pkg.apis.meta.v1.Duration": DURATION,
    "io.k8s.apimachinery.pkg.runtime.RawExtension": ANY,
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": ANY,
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch": ANY,
}
_EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
_STORED_AS_JSON = (_EXTENSIONS, "io.k8s.kube-aggregator.")
_UNIONS = {
    _EXTENSIONS + "JSONSchemaPropsOrBool": "JSONSchemaProps",
    _EXTENSIONS + "JSONSchemaPropsOrArray": "JSONSchemaProps",
    _EXTENSIONS + "JSONSchemaPropsOrStringArray": "JSONSchemaProps",
}


class DecodeError(Exception):
    """A value does not fit its type; str() is the message of Go's JSON package."""


class Mismatch(Exception):
    """Raised on the fast path; the slow path then finds the place and the words."""


class Field:
    """A field of a struct.

    pointer: Go holds a pointer, so that a zero is kept; omit: an empty value is left out; default: the value that
    OpenAPI tells (None for none); nulls: an empty list or map becomes null, as in upstream's store; patch_strategy and merge_key: of strategic merge patch.
    """

    __slots__ = (
        "default",
        "keep",
        "merge_key",
        "name",
        "nulls",
        "omit",
        "patch_strategy",
        "pointer",
        "required",
        "type",
    )

    def __init__(
        self, name: str, type_: Schema, *, pointer: bool, omit: bool, required: bool, default: Any, node: dict[str, Any]
    ) -> None:
        self.name = name
        self.type = type_
        self.pointer = pointer
        self.omit = omit
        self.required = required
        self.default = default
        self.keep = pointer or not omit
        self.nulls = False
        self.patch_strategy: tuple[str, ...] = tuple(
            filter(None, node.get("x-kubernetes-patch-strategy", "").split(","))
        )
        self.merge_key: str = node.get("x-kubernetes-patch-merge-key", "")


class Schema:
    """One type.

    kind: STRUCT, LIST, MAP, ANY or a scalar; name: Go's name for messages; fields: of a struct; items: of a list or the
    values of a map; list_type: "atomic", "set" or "map"; map_keys: of a list map; map_type: "granular" or "atomic".
    """

    __slots__ = (
        "_always",
        "_fields",
        "_source",
        "bits",
        "definition",
        "items",
        "kind",
        "list_type",
        "map_keys",
        "map_type",
        "name",
        "preserve",
    )

    def __init__(self, kind: int, name: str) -> None:
        self.kind = kind
        self.name = name
        self.definition = ""
        self.items: Schema | None = None
        self.list_type = "atomic"
        self.map_keys: tuple[str, ...] = ()
        self.map_type = "granular"
        self.preserve = False
        self.bits = 64
        self._fields: dict[str, Field] | None = None
        self._always: list[tuple[str, Callable[[], Any]]] | None = None
        self._source: Callable[[Schema], dict[str, Field]] | None = None

    @property
    def fields(self) -> dict[str, Field]:
        """The fields of a struct (compiled on first use); empty for other kinds."""
        if self._fields is None:
            self._fields = self._source(self) if self._source else {}
        return self._fields

    @fields.setter
    def fields(self, value: dict[str, Field]) -> None:
        self._fields = value

    @property
    def scalar(self) -> bool:
        """Neither a struct nor a list nor a map."""
        return self.kind in SCALARS

    def zero(self) -> dict[str, Any]:
        """A struct's value when nothing is given."""
        out: dict[str, Any] = {}
        for key, make in self.always:
            out[key] = make()
        return out

    @property
    def always(self) -> list[tuple[str, Callable[[], Any]]]:
        """What a struct always shows: field names with the maker of the value when it is absent."""
        if self._always is None:
            found: list[tuple[str, Callable[[], Any]]] = []
            for field in self.fields.values():
                if field.omit:
                    continue
                if field.type.kind == STRUCT and not field.pointer:
                    found.append((field.name, field.type.zero))
                elif field.pointer or field.type.kind in (LIST, MAP, BYTES, TIME, MICRO_TIME, ANY, UNION):
                    found.append((field.name, _none))
                else:
                    value = {STRING: "", BOOLEAN: False, QUANTITY: "0", DURATION: "0s"}.get(field.type.kind, 0)
                    found.append((field.name, _constant(value)))
            self._always = found
        return self._always

    def decode(self, value: Any, unknown: list[str] | None = None) -> Any:
        """value as Go's JSON package would hold it; DecodeError when it does not fit.

        unknown, where given, receives the paths of fields that the type does not have, in upstream's order.
        """
        trouble: list[None] = []
        try:
            out = _decode(self, value, trouble)
        except (Mismatch, quantity.QuantityError, times.TimeError, ValueError):
            from longshore.api.mismatches import explain

            explain(self, value)
            raise DecodeError("unable to decode the object") from None
        if trouble and unknown is not None:
            from longshore.api.mismatches import unknown_fields

            unknown_fields(self, value, "", unknown)
        return out


def _none() -> None:
    return None


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _decode(t: Schema, v: Any, trouble: list[None]) -> Any:
    kind = t.kind
    if kind == STRUCT:
        if v.__class__ is not dict:
            raise Mismatch
        out: dict[str, Any] = {}
        fields = t.fields
        for key, x in v.items():
            field = fields.get(key)
            if field is None:
                trouble.append(None)
                continue
            if x is None:
                continue
            ft = field.type
            fk = ft.kind
            if fk == STRING:
                if x.__class__ is not str:
                    raise Mismatch
                if x or field.keep:
                    out[key] = x
                continue
            if fk == BOOLEAN:
                if x.__class__ is not bool:
                    raise Mismatch
                if x or field.keep:
                    out[key] = x
                continue
            y = _decode(ft, x, trouble)
            if not y and fk != STRUCT and fk != ANY and y is not None:
                if field.nulls:
                    y = None
                elif not field.keep and fk != INT_OR_STRING:
                    continue
            if fk == STRUCT and field.omit and not field.pointer and y == ft.zero():
                continue
            out[key] = y
        for key, make in t.always:
            if key not in out:
                out[key] = make()
        return out
    if kind == LIST:
        if v.__class__ is not list:
            raise Mismatch
        items = t.items
        assert items is not None
        ik = items.kind
        if ik == STRING:
            for x in v:
                if x.__class__ is not str:
                    if x is not None:
                        raise Mismatch
                    return ["" if y is None else _decode(items, y, trouble) for y in v]
            return v
        return [_zero(items) if x is None else _decode(items, x, trouble) for x in v]
    if kind == MAP:
        if v.__class__ is not dict:
            raise Mismatch
        items = t.items
        assert items is not None
        if items.kind == STRING:
            for x in v.values():
                if x.__class__ is not str:
                    if x is not None:
                        raise Mismatch
                    return {k: "" if y is None else _decode(items, y, trouble) for k, y in v.items()}
            return v
        return {k: _zero(items) if x is None else _decode(items, x, trouble) for k, x in v.items()}
    return decode_scalar(t, v, trouble)


def decode_scalar(t: Schema, v: Any, trouble: list[None]) -> Any:
    """One scalar as Go would hold it. Mismatch for a value of another kind; what parsing raises for a wrong text."""
    kind = t.kind
    if kind == INTEGER:
        if v.__class__ is not int or not -(1 << (t.bits - 1)) <= v < 1 << (t.bits - 1):
            raise Mismatch
        return v
    if kind == QUANTITY:
        return quantity.canonical(v if v.__class__ is str else _number(v))
    if kind == INT_OR_STRING:
        if v.__class__ is str or (v.__class__ is int and -0x80000000 <= v <= 0x7FFFFFFF):
            return v
        raise Mismatch
    if kind == STRING:
        if v.__class__ is str:
            return v
        raise Mismatch
    if kind == BOOLEAN:
        if v.__class__ is bool:
            return v
        raise Mismatch
    if kind == TIME:
        if v.__class__ is str:
            return times.canonical(v)
        raise Mismatch
    if kind == MICRO_TIME:
        if v.__class__ is str:
            return times.canonical_micro(v)
        raise Mismatch
    if kind == DURATION:
        if v.__class__ is str:
            return times.format_duration(times.parse_duration(v))
        raise Mismatch
    if kind == BYTES:
        if v.__class__ is not str:
            raise Mismatch
        _check_base64(v)
        return v if "\n" not in v and "\r" not in v else v.replace("\n", "").replace("\r", "")
    if kind == NUMBER:
        if v.__class__ is float or v.__class__ is int:
            return v
        raise Mismatch
    if kind == UNION:
        assert t.items is not None
        if v.__class__ is dict:
            return _decode(t.items, v, trouble)
        if v.__class__ is list:
            return [_decode(t.items, x, trouble) if x.__class__ is dict else x for x in v]
        return v
    return v


def _number(v: Any) -> str:
    if v.__class__ is int:
        return str(v)
    if v.__class__ is float:
        return repr(v)
    raise quantity.QuantityError(quantity.MESSAGE)


def _check_base64(text: str) -> None:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        clean = text.replace("\n", "").replace("\r", "")
        try:
            base64.b64decode(clean, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"illegal base64 data at input byte {_bad_byte(clean)}") from None


def _bad_byte(text: str) -> int:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = text.rstrip("=")
    for at, char in enumerate(text):
        if char not in alphabet:
            if char == "=" and at == len(body) and at % 4 >= 2:
                continue
            if char == "=" and at > len(body) and at == len(text) - 1 and len(text) % 4 == 0:
                continue
            return at
    return len(text) - len(text) % 4 if len(text) % 4 == 1 else max(len(text) // 4 * 4, 0)


def _zero(t: Schema) -> Any:
    if t.kind == STRUCT:
        return t.zero()
    return {STRING: "", BOOLEAN: False, INTEGER: 0, NUMBER: 0, QUANTITY: "0", DURATION: "0s", INT_OR_STRING: 0}.get(
        t.kind
    )


_compiled: dict[str, Schema] = {}


def named(name: str) -> Schema:
    """The type of a definition ("io.k8s.api.core.v1.Pod"); KeyError when there is none."""
    found = _compiled.get(name)
    if found is not None:
        return found
    display = ".".join(name.rsplit(".", 2)[1:])
    kind = _NAMED.get(name)
    if kind is not None:
        schema = Schema(kind, display)
    elif name in _UNIONS:
        schema = Schema(UNION, display)
        schema.items = named(_EXTENSIONS + _UNIONS[name])
    else:
        source, _ = definitions.definition(name)
        if "properties" in source or source.get("type") == "object":
            schema = Schema(STRUCT, display)
            schema._source = _compile
        else:
            schema = Schema(ANY, display)
        schema.map_type = source.get("x-kubernetes-map-type", "granular")
    schema.definition = name
    _compiled[name] = schema
    return schema


def _compile(owner: Schema) -> dict[str, Field]:
    source, go = definitions.definition(owner.definition)
    required = set(source.get("required", ()))
    fields: dict[str, Field] = {}
    for name, node in source.get("properties", {}).items():
        flags, _, display = go.get(name, "").partition("=")
        pointer = "*" in flags
        type_ = _node(node, display)
        omit = (name not in required) != ("!" in flags)
        if not pointer and (type_.kind in _GO_STRUCTS or type_.definition.endswith(".RawExtension")):
            # Go's omitempty does not leave out structures.
            omit = "0" in flags
        fields[name] = Field(
            name, type_, pointer=pointer, omit=omit, required=name in required, default=node.get("default"), node=node
        )
        if (owner.definition, name) in _EMPTY_IS_SAID:
            fields[name].keep = True
        elif type_.kind in (LIST, MAP) and not (omit or pointer) and not owner.definition.startswith(_STORED_AS_JSON):
            # Protocol buffers, in which upstream stores these, cannot tell an empty list from none.
            fields[name].nulls = True
    return fields


def _node(node: dict[str, Any], display: str) -> Schema:
    reference = node.get("$ref") or (node["allOf"][0]["$ref"] if "allOf" in node else "")
    if reference:
        found = named(reference.rsplit("/", 1)[1])
        map_type = node.get("x-kubernetes-map-type")
        if map_type and map_type != found.map_type and found.kind == STRUCT:
            copy = Schema(STRUCT, found.name)
            copy.definition, copy._source, copy.map_type = found.definition, _compile, map_type
            return copy
        return found
    type_ = node.get("type")
    if type_ == "array":
        items = _node(node["items"], display.removeprefix("[]"))
        schema = Schema(LIST, display or "[]" + items.name)
        schema.items = items
        schema.list_type = node.get("x-kubernetes-list-type", "atomic")
        schema.map_keys = tuple(node.get("x-kubernetes-list-map-keys", ()))
        return schema
    if type_ == "object":
        inner = node.get("additionalProperties")
        items = _node(inner, "") if isinstance(inner, dict) else Schema(ANY, "interface {}")
        schema = Schema(MAP, display or ("v1.ResourceList" if items.kind == QUANTITY else "map[string]" + items.name))
        schema.items = items
        schema.map_type = node.get("x-kubernetes-map-type", "granular")
        return schema
    form = node.get("format", "")
    if type_ == "integer":
        schema = Schema(INTEGER, display or (form or "int64"))
        schema.bits = 32 if form == "int32" else 64
        return schema
    if type_ == "boolean":
        return Schema(BOOLEAN, display or "bool")
    if type_ == "number":
        return Schema(NUMBER, display or "float64")
    if type_ == "string":
        return Schema(BYTES, "[]uint8") if form == "byte" else Schema(STRING, display or "string")
    return Schema(ANY, display or "interface {}")
