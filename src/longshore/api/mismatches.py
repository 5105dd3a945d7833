"""What Go's JSON package says of a body that does not fit its type: the place and the words, and the fields that are unknown.

Decoding itself (`schema`) only finds out that something is wrong.
"""

from __future__ import annotations

from typing import Any

from longshore.api import times
from longshore.api.schema import (
    BYTES,
    DURATION,
    INT_OR_STRING,
    INTEGER,
    LIST,
    MAP,
    MICRO_TIME,
    STRUCT,
    TIME,
    UNION,
    DecodeError,
    Mismatch,
    Schema,
    decode_scalar,
)
from longshore.machinery import quantity

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


def json_kind(value: Any) -> str:
    """What Go's JSON package calls the kind of a value."""
    if isinstance(value, dict | list):
        return "object" if isinstance(value, dict) else "array"
    return "string" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"


def _embedded(definition: str, field: str) -> tuple[str, ...]:
    """The Go structures within a definition's own that have a field: they stand in the paths of messages."""
    for names, fields, others in _EMBEDDED.get(definition, ()):
        if (field in fields) is not others:
            return names
    return ()


def explain(root: Schema, value: Any) -> None:
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
            found.append(mismatch(json_kind(v), t.name))
            return
        for key, x in v.items():
            field = t.fields.get(key)
            if field is not None:
                _walk(field.type, x, [*path, *_embedded(t.definition, key), key], t, found)
        return
    if kind in (LIST, MAP):
        if not isinstance(v, list if kind == LIST else dict):
            found.append(mismatch(json_kind(v), t.name))
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
    shown = json_kind(v)
    if shown == "number" and kind in (INTEGER, INT_OR_STRING):
        shown = f"number {v!r}"
    if kind in (TIME, MICRO_TIME, DURATION) and not isinstance(v, str):
        raise mismatch(shown, "string")
    try:
        decode_scalar(t, v, [])
    except Mismatch:
        if kind == INT_OR_STRING:
            raise mismatch(shown, "int32") from None
        found.append(mismatch(shown, t.name))
    except (quantity.QuantityError, times.TimeError, ValueError) as error:
        if kind != BYTES:
            raise DecodeError(str(error)) from None
        found.append(DecodeError(str(error)))


def unknown_fields(t: Schema, v: Any, path: str, found: list[str]) -> None:
    """The paths of unknown fields, a struct's children before its own as upstream reports them in document order."""
    if t.kind == STRUCT and isinstance(v, dict):
        for key, x in v.items():
            field = t.fields.get(key)
            here = f"{path}.{key}" if path else key
            if field is None:
                found.append(here)
            else:
                unknown_fields(field.type, x, here, found)
    elif t.kind == LIST and isinstance(v, list):
        assert t.items is not None
        for index, x in enumerate(v):
            unknown_fields(t.items, x, f"{path}[{index}]", found)
    elif t.kind == MAP and isinstance(v, dict):
        assert t.items is not None
        if t.items.kind in (STRUCT, LIST, MAP):
            for key, x in v.items():
                unknown_fields(t.items, x, f"{path}.{key}", found)
