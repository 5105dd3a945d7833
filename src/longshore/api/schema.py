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

_CORE = "io.k8s.api.core.v1."
_ADMISSION = "io.k8s.api.admissionregistration.v1."
_REFERENCE = ((("LocalObjectReference",), frozenset(("name",)), False),)
_RULE = frozenset(("apiGroups", "apiVersions", "resources", "scope"))
_DEVICE = ((("DeviceConfiguration",), frozenset(("opaque",)), False),)
# definition -> the Go structures it embeds, each with the fields it has (True: all but these).
_EMBEDDED: dict[str, tuple[tuple[tuple[str, ...], frozenset[str], bool], ...]] = {
    **{
        _CORE + name: _REFERENCE
        for name in (
            "ConfigMapEnvSource", "ConfigMapKeySelector", "ConfigMapProjection", "ConfigMapVolumeSource",
            "SecretEnvSource", "SecretKeySelector", "SecretProjection",
        )
    },
    **{
        "io.k8s.api.resource.v1." + name: _DEVICE
        for name in ("DeviceAllocationConfiguration", "DeviceClaimConfiguration", "DeviceClassConfiguration")
    },
    _ADMISSION + "NamedRuleWithOperations": (
        (("RuleWithOperations",), frozenset(("operations",)), False),
        (("RuleWithOperations", "Rule"), _RULE, False),
    ),
    _ADMISSION + "RuleWithOperations": ((("Rule",), _RULE, False),),
    _CORE + "EphemeralContainer": ((("EphemeralContainerCommon",), frozenset(("targetContainerName",)), True),),
    _CORE + "PersistentVolumeSpec": (
        (
            ("PersistentVolumeSource",),
            frozenset((
                "accessModes", "capacity", "claimRef", "mountOptions", "nodeAffinity", "persistentVolumeReclaimPolicy",
                "storageClassName", "volumeAttributesClassName", "volumeMode",
            )),
            True,
        ),
    ),
    _CORE + "Probe": ((("ProbeHandler",), frozenset(("exec", "grpc", "httpGet", "tcpSocket")), False),),
    _CORE + "Volume": ((("VolumeSource",), frozenset(("name",)), True),),
    "io.k8s.api.networking.v1.IngressRule": ((("IngressRuleValue",), frozenset(("http",)), False),),
}  # fmt: skip


class DecodeError(Exception):
    """A value does not fit its type; str() is the message of Go's JSON package."""


class _Mismatch(Exception):
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
        except (_Mismatch, quantity.QuantityError, times.TimeError, ValueError):
            _explain(self, value)
            raise DecodeError("unable to decode the object") from None
        if trouble and unknown is not None:
            _unknown(self, value, "", unknown)
        return out


def _none() -> None:
    return None


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _decode(t: Schema, v: Any, trouble: list[None]) -> Any:
    kind = t.kind
    if kind == STRUCT:
        if v.__class__ is not dict:
            raise _Mismatch
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
                    raise _Mismatch
                if x or field.keep:
                    out[key] = x
                continue
            if fk == BOOLEAN:
                if x.__class__ is not bool:
                    raise _Mismatch
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
            raise _Mismatch
        items = t.items
        assert items is not None
        ik = items.kind
        if ik == STRING:
            for x in v:
                if x.__class__ is not str:
                    if x is not None:
                        raise _Mismatch
                    return ["" if y is None else _decode(items, y, trouble) for y in v]
            return v
        return [_zero(items) if x is None else _decode(items, x, trouble) for x in v]
    if kind == MAP:
        if v.__class__ is not dict:
            raise _Mismatch
        items = t.items
        assert items is not None
        if items.kind == STRING:
            for x in v.values():
                if x.__class__ is not str:
                    if x is not None:
                        raise _Mismatch
                    return {k: "" if y is None else _decode(items, y, trouble) for k, y in v.items()}
            return v
        return {k: _zero(items) if x is None else _decode(items, x, trouble) for k, x in v.items()}
    return _scalar(t, v, trouble)


def _scalar(t: Schema, v: Any, trouble: list[None]) -> Any:
    kind = t.kind
    if kind == INTEGER:
        if v.__class__ is not int or not -(1 << (t.bits - 1)) <= v < 1 << (t.bits - 1):
            raise _Mismatch
        return v
    if kind == QUANTITY:
        return quantity.canonical(v if v.__class__ is str else _number(v))
    if kind == INT_OR_STRING:
        if v.__class__ is str or (v.__class__ is int and -0x80000000 <= v <= 0x7FFFFFFF):
            return v
        raise _Mismatch
    if kind == STRING:
        if v.__class__ is str:
            return v
        raise _Mismatch
    if kind == BOOLEAN:
        if v.__class__ is bool:
            return v
        raise _Mismatch
    if kind == TIME:
        if v.__class__ is str:
            return times.canonical(v)
        raise _Mismatch
    if kind == MICRO_TIME:
        if v.__class__ is str:
            return times.canonical_micro(v)
        raise _Mismatch
    if kind == DURATION:
        if v.__class__ is str:
            return times.format_duration(times.parse_duration(v))
        raise _Mismatch
    if kind == BYTES:
        if v.__class__ is not str:
            raise _Mismatch
        _check_base64(v)
        return v if "\n" not in v and "\r" not in v else v.replace("\n", "").replace("\r", "")
    if kind == NUMBER:
        if v.__class__ is float or v.__class__ is int:
            return v
        raise _Mismatch
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


def _go_kind(v: Any) -> str:
    if v is True or v is False:
        return "bool"
    if isinstance(v, str):
        return "string"
    if isinstance(v, dict):
        return "object"
    if isinstance(v, list):
        return "array"
    return "number"


def _embedded(definition: str, field: str) -> tuple[str, ...]:
    """The Go structures within a definition's own that have a field: they stand in the paths of messages."""
    for names, fields, others in _EMBEDDED.get(definition, ()):
        if (field in fields) is not others:
            return names
    return ()


def _explain(root: Schema, value: Any) -> None:
    """Raise DecodeError for what Go's decoder reports of a value that does not fit.

    It goes on after a value of a wrong kind and tells of the first one at the end, unless a type that decodes itself
    (a quantity, a time) gives up before.
    """
    found: list[DecodeError] = []
    _walk(root, value, [], root, found)
    if found:
        raise found[0]


def _walk(t: Schema, v: Any, path: list[str], owner: Schema, found: list[DecodeError]) -> None:
    if v is None:
        return
    kind = t.kind

    def mismatch(value: str, target: str) -> DecodeError:
        into = (
            f"Go struct field {owner.name.rsplit('.', 1)[1]}.{'.'.join(path)} of type " if path else "Go value of type "
        )
        return DecodeError(f"json: cannot unmarshal {value} into {into}{target}")

    if kind == STRUCT:
        if not isinstance(v, dict):
            found.append(mismatch(_go_kind(v), t.name))
            return
        for key, x in v.items():
            field = t.fields.get(key)
            if field is not None:
                _walk(field.type, x, [*path, *_embedded(t.definition, key), key], t, found)
        return
    if kind in (LIST, MAP):
        if not isinstance(v, list if kind == LIST else dict):
            found.append(mismatch(_go_kind(v), t.name))
            return
        assert t.items is not None
        for x in v if isinstance(v, list) else v.values():
            _walk(t.items, x, path, owner, found)
        return
    if kind == UNION:
        assert t.items is not None
        inner: list[DecodeError] = []
        for x in v if isinstance(v, list) else (v,):
            if isinstance(x, dict):
                _walk(t.items, x, path, owner, inner)
        if inner:
            raise inner[0]
        return
    shown = _go_kind(v)
    if shown == "number" and kind in (INTEGER, INT_OR_STRING):
        shown = f"number {v!r}"
    if kind in (TIME, MICRO_TIME, DURATION) and not isinstance(v, str):
        raise mismatch(shown, "string")
    try:
        _scalar(t, v, [])
    except _Mismatch:
        if kind == INT_OR_STRING:
            raise mismatch(shown, "int32") from None
        found.append(mismatch(shown, t.name))
    except (quantity.QuantityError, times.TimeError, ValueError) as error:
        if kind != BYTES:
            raise DecodeError(str(error)) from None
        found.append(DecodeError(str(error)))


def _unknown(t: Schema, v: Any, path: str, found: list[str]) -> None:
    """The paths of unknown fields, a struct's children before its own as upstream reports them in document order."""
    if t.kind == STRUCT and isinstance(v, dict):
        for key, x in v.items():
            field = t.fields.get(key)
            here = f"{path}.{key}" if path else key
            if field is None:
                found.append(here)
            else:
                _unknown(field.type, x, here, found)
    elif t.kind == LIST and isinstance(v, list):
        assert t.items is not None
        for index, x in enumerate(v):
            _unknown(t.items, x, f"{path}[{index}]", found)
    elif t.kind == MAP and isinstance(v, dict):
        assert t.items is not None
        if t.items.kind in (STRUCT, LIST, MAP):
            for key, x in v.items():
                _unknown(t.items, x, f"{path}.{key}", found)


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
