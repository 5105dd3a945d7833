"""Whole structures as upstream's messages print them: JSON of Go's internal types, with Go's names, order and nulls."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from longshore.api import schema as schemas
from longshore.api.definitions import DATA

Object = dict[str, Any]
_CORE = "io.k8s.api.core.v1."
_META = ("name", "generateName", "namespace", "uid", "labels", "annotations", "ownerReferences", "finalizers")
_TEMPLATES = frozenset(
    (
        _CORE + "PersistentVolumeClaimTemplate",
        _CORE + "PodTemplateSpec",
        "io.k8s.api.batch.v1.JobTemplateSpec",
        "io.k8s.api.resource.v1.ResourceClaimTemplateSpec",
    )
)
_POD_NAMESPACES = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers")


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    out = {}
    for line in (DATA / "go-names.txt").read_text().splitlines():
        if line.startswith("~a."):
            name, _, rest = line.partition(" ")
            out["io.k8s.api." + name[3:]] = rest
    return out


@lru_cache(maxsize=256)
def fields_of(definition: str) -> tuple[tuple[str, str], ...] | None:
    """(Go's name, JSON's name) of each field in order; None for types that print with their JSON names."""
    text = _names().get(definition)
    if text is None:
        return None
    out: list[tuple[str, str]] = []
    package = definition.rsplit(".", 1)[0] + "."
    for token in text.split():
        if token.startswith("+"):
            base = token[1:]
            inner = (
                fields_of(package + base)
                or fields_of(_CORE + base)
                or fields_of(_CORE + "Container" if base == "EphemeralContainerCommon" else package + base)
            )
            out.extend(inner or _plain(package + base))
            continue
        go, _, name = token.partition("=")
        out.append((go, name or go[0].lower() + go[1:]))
    return tuple(out)


def _plain(definition: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((name[0].upper() + name[1:], name) for name in schemas.named(definition).fields)
    except KeyError:
        return ()


def dump(definition: str, value: Object | None) -> Any:
    """value (of a definition) as Go's JSON package would print the internal structure."""
    if value is None:
        return None
    return _struct(schemas.named(definition), value)


def _struct(type_: schemas.Schema, value: Object) -> Any:
    fields = fields_of(type_.definition)
    if fields is None:
        return {key: dict(sorted(child.items())) if isinstance(child, dict) else child for key, child in value.items()}
    if type_.definition in _TEMPLATES:
        # Metadata is embedded and keeps its JSON names.
        meta = value.get("metadata") or {}
        shown = {name: meta[name] for name in _META if name in meta}
        return {**shown, "Spec": _struct(type_.fields["spec"].type, value.get("spec") or {})}
    known = type_.fields
    out: Object = {}
    pod = type_.definition == _CORE + "PodSpec"
    for go, name in fields:
        if pod and (name in _POD_NAMESPACES or name == "serviceAccount"):
            continue
        field = known.get(name)
        if field is None:
            continue
        out[go] = _value(field.type, value.get(name), field.pointer)
        if pod and name == "securityContext":
            out[go] = _pod_security(known, value)
    return out


def _pod_security(known: dict[str, schemas.Field], value: Object) -> Object:
    shared: Object = {}
    for go, name in (("HostNetwork", "hostNetwork"), ("HostPID", "hostPID"), ("HostIPC", "hostIPC")):
        shared[go] = bool(value.get(name))
    shared["ShareProcessNamespace"] = value.get("shareProcessNamespace")
    shared["HostUsers"] = value.get("hostUsers")
    shared.update(_struct(known["securityContext"].type, value.get("securityContext") or {}))
    return shared


def _value(type_: schemas.Schema, value: Any, pointer: bool) -> Any:
    kind = type_.kind
    if value is None:
        if pointer or kind in (schemas.LIST, schemas.MAP, schemas.BYTES, schemas.TIME, schemas.MICRO_TIME, schemas.ANY):
            return None
        if kind == schemas.STRUCT:
            return _struct(type_, {})
        return {schemas.STRING: "", schemas.BOOLEAN: False, schemas.QUANTITY: "0", schemas.DURATION: "0s"}.get(kind, 0)
    if kind == schemas.STRUCT:
        return _struct(type_, value)
    if kind == schemas.LIST and type_.items is not None:
        items = type_.items
        return [_value(items, item, False) for item in value]
    if kind == schemas.MAP and type_.items is not None:
        items = type_.items
        return {key: _value(items, value[key], False) for key in sorted(value)}
    return value


def indented_diff(definition: str, old: Object, new: Object) -> str:
    """How two structures differ: a unified diff of their dumps, three lines of context, without the file names."""
    import difflib
    import json

    before = json.dumps(dump(definition, old), indent=1, ensure_ascii=False).split("\n")
    after = json.dumps(dump(definition, new), indent=1, ensure_ascii=False).split("\n")
    lines = list(difflib.unified_diff(before, after, lineterm="", n=3))[2:]
    return "\n".join(lines) + "\n"
