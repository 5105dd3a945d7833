"""A custom resource as the server sees it: the methods of `longshore.api.kinds.Resource`, from its definition."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import orjson

from longshore.api import mismatches
from longshore.api import schema as schemas
from longshore.api.crd import celrules, jsonpath, structural
from longshore.api.kinds import ALL_VERBS, Column, Subresource
from longshore.api.schema import DecodeError
from longshore.api.strategy import Object, age, utc_now
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors, FieldError
from longshore.api.validation.names import dns1123_subdomain

_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_RANK = {"": 2, "beta": 1, "alpha": 0}


def version_key(name: str) -> tuple[int, int, int, int, str]:
    """Orders versions as discovery does: v2, v1, v2beta1, v1alpha1, then the rest by name."""
    import re

    match = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", name)
    if match is None:
        return (1, 0, 0, 0, name)
    return (0, -_RANK[match[2] or ""], -int(match[1]), -int(match[3] or 0), "")


def _pack(schema: Object) -> bytes:
    return zlib.compress(orjson.dumps(schema), 1)


def _without_texts(schema: Object) -> Object:
    """The schema without what only people read, in place."""
    schema.pop("description", None)
    for child in (schema.get("properties") or {}).values():
        _without_texts(child)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _without_texts(schema[key])
    return schema


class CustomResource:
    """One custom resource, all its versions. Objects are kept in the storage version; conversion None changes only apiVersion.

    webhook_conversion tells that another server converts; the caller then does that before `convert` is asked.
    """

    builtin = False
    unconditional_update = False
    create_on_update = False

    def __init__(self, crd: Object) -> None:
        spec = crd["spec"]
        names = (crd.get("status") or {}).get("acceptedNames") or {}
        if not names.get("plural") or not names.get("kind"):
            names = spec["names"]
        # Schemas are large and mostly text: they are kept packed until somebody uses the version.
        self._schemas = {
            v["name"]: _pack((v.get("schema") or {}).get("openAPIV3Schema") or {}) for v in spec["versions"]
        }
        versions = [{key: value for key, value in v.items() if key != "schema"} for v in spec["versions"]]
        spec = {**spec, "versions": versions}
        self.crd = {**crd, "spec": spec}
        self.group: str = spec["group"]
        self.plural: str = names["plural"]
        self.kind: str = names["kind"]
        self.singular: str = names.get("singular") or self.kind.lower()
        self.list_kind: str = names.get("listKind") or self.kind + "List"
        self.short_names = tuple(names.get("shortNames") or ())
        self.categories = tuple(names.get("categories") or ())
        self.namespaced = spec.get("scope") == "Namespaced"
        self.verbs = tuple(sorted(ALL_VERBS))
        self._versions = {v["name"]: v for v in spec["versions"]}
        served = [v["name"] for v in spec["versions"] if v.get("served")]
        self.versions = tuple(sorted(served, key=version_key))
        self.storage_version: str = next(v["name"] for v in spec["versions"] if v.get("storage"))
        self.storage = (self.group, self.plural)
        self.webhook_conversion = (spec.get("conversion") or {}).get("strategy") == "Webhook"
        self.subresources = self._subresources(self.storage_version)
        self._nodes: dict[str, structural.Node] = {}
        self._embedded: dict[str, bool] = {}

    @property
    def group_resource(self) -> str:
        return f"{self.plural}.{self.group}"

    @property
    def group_kind(self) -> str:
        return f"{self.kind}.{self.group}"

    def api_version(self, version: str) -> str:
        return f"{self.group}/{version}"

    def _subresources(self, version: str) -> dict[str, Subresource]:
        given = self._versions[version].get("subresources") or {}
        out = {}
        if given.get("status") is not None:
            out["status"] = Subresource("status", self.kind, self.group, version, ("get", "patch", "update"))
        if given.get("scale") is not None:
            out["scale"] = Subresource("scale", "Scale", "autoscaling", "v1", ("get", "patch", "update"))
        return out

    def subresources_of(self, version: str) -> dict[str, Subresource]:
        """The subresources of one version, which may differ."""
        return self._subresources(version)

    def scale_paths(self, version: str) -> Object | None:
        """specReplicasPath, statusReplicasPath and labelSelectorPath; None without the scale subresource."""
        found: Object | None = (self._versions[version].get("subresources") or {}).get("scale")
        return found

    def deprecation(self, version: str) -> str:
        """The warning about a deprecated version, "" when it is not."""
        given = self._versions[version]
        if not given.get("deprecated"):
            return ""
        if given.get("deprecationWarning") is not None:
            return str(given["deprecationWarning"])
        text = f"{self.api_version(version)} {self.kind} is deprecated"
        newer = [
            v
            for v in self.versions
            if not self._versions[v].get("deprecated") and version_key(v) < version_key(version)
        ]
        return f"{text}; use {self.api_version(newer[0])} {self.kind}" if newer else text

    def openapi(self, version: str) -> Object:
        """The version's OpenAPI v3 schema as the definition gives it ({} when it gives none)."""
        out: Object = orjson.loads(zlib.decompress(self._schemas[version]))
        return out

    def node(self, version: str) -> structural.Node:
        """The compiled schema of a version."""
        found = self._nodes.get(version)
        if found is None:
            found = self._nodes[version] = structural.Node(_without_texts(self.openapi(version)))
            if self.crd["spec"].get("preserveUnknownFields"):
                found.preserve = True
        return found

    def decode(self, value: Any, version: str, unknown: list[str] | None = None) -> Object:
        """A parsed body: metadata as every object's, the rest pruned to the schema. DecodeError when it is no object."""
        if not isinstance(value, dict):
            raise DecodeError(
                f"json: cannot unmarshal {mismatches.json_kind(value)} into Go value of type map[string]interface {{}}"
            )
        obj = dict(value)
        meta_unknown: list[str] = []
        meta = obj.get("metadata")
        obj["metadata"] = schemas.named(_META).decode(meta if meta is not None else {}, meta_unknown)
        if unknown is not None:
            unknown.extend(f"metadata.{p}" for p in meta_unknown)
        node = self.node(version)
        structural.prune(obj, node, unknown, root=True)
        embedded = self._embedded.get(version)
        if embedded is None:
            embedded = self._embedded[version] = _has_embedded(node)
        if embedded:
            _coerce_embedded(obj, node, unknown, "")
        return obj

    def default(self, obj: Object, version: str) -> None:
        """Defaults of the version's schema, in place."""
        node = self.node(version)
        if node.has_defaults:
            structural.prune_defaulted_nulls(obj, node)
            structural.fill(obj, node)

    def convert(self, obj: Object, to_version: str) -> Object:
        """obj as to_version; between versions only the name changes, and what the other schema does not have goes."""
        if obj.get("apiVersion") == self.api_version(to_version):
            return obj
        out = {**obj, "apiVersion": self.api_version(to_version)}
        structural.prune(out, self.node(to_version), root=True)
        self.default(out, to_version)
        return out

    def to_storage(self, obj: Object) -> Object:
        return self.convert(obj, self.storage_version)

    def _has_status(self, version: str) -> bool:
        return (self._versions[version or self.storage_version].get("subresources") or {}).get("status") is not None

    def prepare_create(self, obj: Object, version: str = "") -> None:
        """status goes where it is a subresource; generation begins."""
        if self._has_status(version):
            obj.pop("status", None)
        obj["metadata"]["generation"] = 1

    def prepare_update(self, new: Object, old: Object, version: str = "", subresource: str = "") -> None:
        """What an update keeps of the old object, and the generation."""
        meta, before = new["metadata"], old["metadata"]
        if subresource == "status":
            # Only the status and the bookkeeping of its fields change.
            status, managed = new.get("status"), meta.get("managedFields")
            for key in [k for k in new if k not in ("apiVersion", "kind", "metadata", "status")]:
                if key not in old:
                    del new[key]
            new.update({k: v for k, v in old.items() if k not in ("apiVersion", "kind", "metadata", "status")})
            version_now = meta.get("resourceVersion")
            new["metadata"] = {**before}
            if managed is not None:
                new["metadata"]["managedFields"] = managed
            if version_now is not None:
                new["metadata"]["resourceVersion"] = version_now
            if status is None:
                new.pop("status", None)
            return
        if self._has_status(version):
            if "status" in old:
                new["status"] = old["status"]
            else:
                new.pop("status", None)
        meta["generation"] = before.get("generation", 1)
        skip = (
            ("metadata", "apiVersion", "kind", "status")
            if self._has_status(version)
            else ("metadata", "apiVersion", "kind")
        )
        if {k: v for k, v in new.items() if k not in skip} != {k: v for k, v in old.items() if k not in skip}:
            meta["generation"] = before.get("generation", 1) + 1

    def validate(self, obj: Object) -> list[FieldError]:
        """Everything that is wrong with a new object."""
        errors = Errors()
        metadata.create(errors, obj["metadata"], self.namespaced, dns1123_subdomain)
        self._validate(obj, None, errors)
        return errors

    def _validate(self, obj: Object, old: Object | None, errors: Errors) -> None:
        version = str(obj.get("apiVersion", "")).rpartition("/")[2] or self.storage_version
        if version not in self._versions:
            version = self.storage_version
        node = self.node(version)
        found = Errors()
        structural.check(obj, node, found, "", structural.MISSING if old is None else old, root=True)
        structural.check_lists(obj, node, found, "")
        if not found:
            self._scale(obj, version, found)
        errors.extend(found)
        if node.has_rules:
            if found:
                errors.append(
                    FieldError(
                        "Invalid",
                        "<nil>",
                        None,
                        "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
                    )
                )
            else:
                celrules.evaluate(obj, structural.MISSING if old is None else old, node, errors)

    def _scale(self, obj: Object, version: str, errors: Errors) -> None:
        paths = self.scale_paths(version)
        if paths is None:
            return
        for key in ("specReplicasPath", "statusReplicasPath"):
            path = paths.get(key, "")
            value = jsonpath.first(obj, path) if path else None
            if isinstance(value, int) and value < 0:
                errors.invalid(path, value, "should be a non-negative integer")

    def validate_update(self, new: Object, old: Object, subresource: str = "") -> list[FieldError]:
        """Everything that is wrong with an update; what was wrong before and has not changed is let pass."""
        errors = Errors()
        metadata.update(errors, new["metadata"], old["metadata"])
        if errors:
            metadata.update(errors, new["metadata"], old["metadata"])
        self._validate(new, old, errors)
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        return []

    def columns(self, version: str = "") -> list[Column]:
        """The name, and the version's printer columns or the age."""
        out = [Column("Name", "string", "name")]
        given = self._versions[version or self.storage_version].get("additionalPrinterColumns")
        for column in given or [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]:
            text = (
                column.get("description")
                or f"Custom resource definition column (in JSONPath format): {column['jsonPath']}"
            )
            if not given:
                text = ""
            out.append(
                Column(column["name"], column["type"], column.get("format", ""), column.get("priority", 0), text)
            )
        return out

    def row(self, obj: Object, version: str = "", now: datetime | None = None) -> list[Any]:
        """The cells of obj."""
        given = self._versions[version or self.storage_version].get("additionalPrinterColumns")
        cells: list[Any] = [obj["metadata"].get("name", "")]
        for column in given or [{"type": "date", "jsonPath": ".metadata.creationTimestamp"}]:
            cells.append(_cell(obj, column["jsonPath"], column["type"], now or utc_now()))
        return cells

    def selectable(self, obj: Object) -> dict[str, str]:
        """metadata.name, metadata.namespace and the fields that the definition offers."""
        out = {"metadata.name": obj["metadata"].get("name", "")}
        if self.namespaced:
            out["metadata.namespace"] = obj["metadata"].get("namespace", "")
        version = str(obj.get("apiVersion", "")).rpartition("/")[2] or self.storage_version
        for field in self._versions.get(version, {}).get("selectableFields") or ():
            path = field.get("jsonPath", "")
            value = jsonpath.first(obj, path)
            out[path.removeprefix(".")] = (
                "" if value is None else ("true" if value else "false") if isinstance(value, bool) else str(value)
            )
        return out

    def selectable_names(self, version: str) -> set[str]:
        """The names of the fields that selectors may use in a version."""
        out = {"metadata.name", *(("metadata.namespace",) if self.namespaced else ())}
        return out | {
            f.get("jsonPath", "").removeprefix(".") for f in self._versions[version].get("selectableFields") or ()
        }


def _children(value: Any, node: structural.Node, path: str) -> Iterator[tuple[Any, structural.Node, str]]:
    """What is below a value and has a schema."""
    if isinstance(value, dict):
        for key, child in value.items():
            below = node.properties.get(key) or node.values
            if below is not None:
                yield child, below, f"{path}.{key}" if path else key
    elif isinstance(value, list) and node.items is not None:
        for index, child in enumerate(value):
            yield child, node.items, f"{path}[{index}]"


def _has_embedded(node: structural.Node) -> bool:
    below = [*node.properties.values(), *(n for n in (node.items, node.values) if n is not None)]
    return any(n.embedded or _has_embedded(n) for n in below)


def _coerce_embedded(value: Any, node: structural.Node, unknown: list[str] | None, path: str) -> None:
    """The metadata of objects inside an object is metadata too: unknown fields go."""
    for child, below, here in _children(value, node, path):
        if below.embedded and isinstance(child, dict) and isinstance(child.get("metadata"), dict):
            found: list[str] = []
            try:
                schemas.named(_META).decode(child["metadata"], found)
            except DecodeError:
                continue
            for name in found:
                child["metadata"].pop(name, None)
            if unknown is not None:
                unknown.extend(f"{here}.metadata.{name}" for name in found)
        _coerce_embedded(child, below, unknown, here)


def _cell(obj: Object, path: str, kind: str, now: datetime) -> Any:
    value = jsonpath.first(obj, path)
    if value is None:
        return None
    if kind == "integer":
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return int(value)
    if kind == "number":
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if kind == "date":
        return age(value, now) if isinstance(value, str) else "<unknown>"
    if isinstance(value, dict | list):
        import orjson

        return orjson.dumps(value).decode()
    return (
        ("true" if value else "false")
        if isinstance(value, bool)
        else str(value)
        if not isinstance(value, str)
        else value
    )
