"""The door of the room: every resource that the API server serves, by group and plural.

`KINDS[("apps", "deployments")]` is a `Resource`, which answers for all versions of it. A kind's own behaviour lives in
a `Strategy` in the module of its API group, imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from longshore.api import schema as schemas
from longshore.api import table
from longshore.api.schema import DecodeError, Schema
from longshore.api.strategy import Object, Strategy, utc_now
from longshore.api.validation import metadata
from longshore.api.validation.errors import Errors, FieldError
from longshore.api.validation.names import path_segment

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_UPDATE_VERBS = ("get", "patch", "update")

_GROUP_MODULES = {
    "": "core",
    "rbac.authorization.k8s.io": "rbac",
    "flowcontrol.apiserver.k8s.io": "flowcontrol",
}


@dataclass(frozen=True, slots=True)
class Subresource:
    """A subresource as discovery shows it; group, version and kind of what it takes and answers."""

    name: str
    kind: str
    group: str
    version: str
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; priority 1 is for wide output."""

    name: str
    type: str = "string"
    format: str = ""
    priority: int = 0
    description: str = ""


class Resource:
    """One served resource, all its versions.

    Objects are dicts as JSON holds them; methods that change one do so in place. Unless a version is named, an object
    is in the first version's form.
    """

    # Told apart from a CustomResourceDefinition's resource, which offers the same methods.
    builtin = True

    def __init__(
        self,
        group: str,
        plural: str,
        kind: str,
        *,
        namespaced: bool,
        verbs: tuple[str, ...] = ALL_VERBS,
        versions: tuple[str, ...] = ("v1",),
        short_names: tuple[str, ...] = (),
        categories: tuple[str, ...] = (),
        subresources: dict[str, Subresource] | None = None,
    ) -> None:
        self.group = group
        self.plural = plural
        self.kind = kind
        self.singular = kind.lower()
        self.list_kind = kind + "List"
        self.namespaced = namespaced
        self.verbs = verbs
        self.versions = versions
        self.storage_version = versions[0]
        # Two groups may show the same stored objects: where they are kept, as (group, plural).
        self.storage = table.STORED_AS.get((group, plural), (group, plural))
        self.short_names = short_names
        self.categories = categories
        self.subresources = subresources or {}
        self._strategy: Strategy | None = None
        self._schemas: dict[str, Schema] = {}
        self._columns: dict[str, list[Column]] = {}

    def __repr__(self) -> str:
        return f"Resource({self.group_resource})"

    @property
    def group_resource(self) -> str:
        """ "deployments.apps"."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def group_kind(self) -> str:
        """ "Deployment.apps"."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    def api_version(self, version: str) -> str:
        """ "apps/v1"."""
        return f"{self.group}/{version}" if self.group else version

    @property
    def strategy(self) -> Strategy:
        """The kind's own behaviour."""
        if self._strategy is None:
            self._strategy = _strategy_for(self.group, self.kind)
        return self._strategy

    @property
    def unconditional_update(self) -> bool:
        """Whether an update may leave out the resourceVersion."""
        return self.strategy.unconditional_update

    @property
    def create_on_update(self) -> bool:
        """Whether an update may create the object."""
        return self.strategy.create_on_update

    def schema(self, version: str) -> Schema:
        """The structural type of a version: what patches, apply and decoding work with."""
        found = self._schemas.get(version)
        if found is None:
            found = self._schemas[version] = kind_schema(self.group, version, self.kind)
        return found

    def decode(self, value: Any, version: str, unknown: list[str] | None = None) -> Object:
        """A parsed body as an object of this kind: pruned, canonical, with what is always there.

        unknown receives the paths of unknown fields. DecodeError (Go's words) when a value does not fit.
        """
        obj: Object = self.schema(version).decode(value, unknown)
        return obj

    def default(self, obj: Object, version: str) -> None:
        """Fill in the defaults of version, in place."""
        self.strategy.default_version(obj, version)

    def prepare_create(self, obj: Object, version: str = "") -> None:
        """What happens to an object before it is validated at creation: status goes, generation begins."""
        strategy = self.strategy
        if strategy.status and "status" in self.subresources and "status" in obj:
            fields = self.schema(self.storage_version).fields
            status = fields["status"]
            if status.omit or status.pointer:
                del obj["status"]
            else:
                obj["status"] = status.type.zero()
        meta = obj["metadata"]
        if strategy.generation:
            meta["generation"] = 1
        else:
            meta.pop("generation", None)
        strategy.prepare_create(obj)

    def prepare_update(self, new: Object, old: Object, version: str = "", subresource: str = "") -> None:
        """What an update keeps of the old object: the status at an update of the object, the rest at one of the status.

        Raises the generation when something besides metadata and status changed.
        """
        strategy = self.strategy
        meta, before = new["metadata"], old["metadata"]
        if "generation" in before:
            meta["generation"] = before["generation"]
        else:
            meta.pop("generation", None)
        if subresource == "status":
            for key in [k for k in new if k not in ("apiVersion", "kind", "metadata", "status")]:
                if key not in old:
                    del new[key]
            for key, value in old.items():
                if key not in ("apiVersion", "kind", "metadata", "status"):
                    new[key] = value
            strategy.prepare_status(new, old)
            return
        if subresource:
            strategy.prepare_subresource(new, old, subresource)
        else:
            if strategy.status and "status" in self.subresources:
                if "status" in old:
                    new["status"] = old["status"]
                else:
                    new.pop("status", None)
            strategy.prepare_update(new, old)
        if strategy.generation and _changed(new, old):
            new["metadata"]["generation"] = before.get("generation", 0) + 1

    def validate(self, obj: Object) -> list[FieldError]:
        """Everything that is wrong with a new object, in upstream's order."""
        errors = Errors()
        strategy = self.strategy
        if not strategy.loose_metadata:
            strategy.validate_meta(obj, errors, self.namespaced)
        strategy.validate(obj, errors)
        if strategy.loose_metadata and not errors:
            metadata.create(errors, obj["metadata"], self.namespaced, path_segment)
        return errors

    def validate_update(self, new: Object, old: Object, subresource: str = "") -> list[FieldError]:
        """Everything that is wrong with an update, in upstream's order."""
        errors = Errors()
        strategy = self.strategy
        # Upstream's generic layer checks metadata, and each kind's strategy does it over again: both complaints show.
        metadata.update(errors, new["metadata"], old["metadata"])
        if errors and not strategy.loose_metadata:
            strategy.validate_meta_update(new, old, errors, self.namespaced)
        elif strategy.standard_finalizers and not strategy.loose_metadata and "finalizers" in new["metadata"]:
            metadata.standard_finalizers(errors, new["metadata"])
        if subresource == "status":
            strategy.validate_status(new, old, errors)
        elif subresource:
            strategy.validate_subresource(new, old, subresource, errors)
        else:
            strategy.validate_update(new, old, errors)
        return errors

    def warnings(self, obj: Object, old: Object | None = None) -> list[str]:
        """Warnings about an object that is good (after validation)."""
        return self.strategy.warnings(obj, old)

    def columns(self, version: str = "") -> list[Column]:
        """The columns of a table."""
        found = self._columns.get(version)
        if found is None:
            found = self._columns[version] = _columns(self.group, self.plural)
        return found

    def row(self, obj: Object, version: str = "", now: datetime | None = None) -> list[Any]:
        """The cells of obj (in any version), one a column."""
        return self.strategy.row(self.to_storage(obj), now or utc_now())

    def selectable(self, obj: Object) -> dict[str, str]:
        """The values that field selectors see."""
        meta = obj["metadata"]
        out = {"metadata.name": meta.get("name", "")}
        if self.namespaced:
            out["metadata.namespace"] = meta.get("namespace", "")
        out.update(self.strategy.selectable(obj))
        return out

    def convert(self, obj: Object, to_version: str) -> Object:
        """obj in another version (the same object where nothing differs but apiVersion is right)."""
        source = obj.get("apiVersion") or self.api_version(self.storage_version)
        target = self.api_version(to_version)
        if source == target:
            return obj
        out = self.strategy.convert(obj, source, target)
        out["apiVersion"] = target
        return out

    def to_storage(self, obj: Object) -> Object:
        """obj in the form in which it is stored: the storage version of the group that keeps it."""
        if self.storage != (self.group, self.plural):
            return KINDS[self.storage].convert(obj, KINDS[self.storage].storage_version)
        return self.convert(obj, self.storage_version)


def _changed(new: Object, old: Object) -> bool:
    skip = ("metadata", "status", "apiVersion", "kind")
    return {k: v for k, v in new.items() if k not in skip} != {k: v for k, v in old.items() if k not in skip}


def kind_schema(group: str, version: str, kind: str) -> Schema:
    """The type of any defined kind, also of those that are no resources (Scale, Eviction, DeleteOptions); KeyError when unknown."""
    from longshore.api import definitions

    return schemas.named(definitions.by_kind()[group, version, kind])


def _strategy_for(group: str, kind: str) -> Strategy:
    module = _GROUP_MODULES.get(group, group.split(".")[0])
    try:
        package = importlib.import_module(f"longshore.api.{module}")
    except ModuleNotFoundError as error:
        if error.name != f"longshore.api.{module}":
            raise
        return Strategy()
    found: dict[str, type[Strategy]] = package.STRATEGIES
    if kind not in found:
        return Strategy()
    return found[kind]()


_column_lines: dict[str, str] = {}


def _columns(group: str, plural: str) -> list[Column]:
    if not _column_lines:
        _column_lines.update((line.partition(" ")[0], line.partition(" ")[2]) for line in table.COLUMNS.splitlines())
    out: list[Column] = []
    for text in _column_lines.get(f"{group}/{plural}", "Name|Age").split("|"):
        name, _, type_ = text.rstrip("*").partition(":")
        name, _, form = name.partition("/")
        priority = 1 if text.endswith("*") else 0
        out.append(Column(name, type_ or "string", form or ("name" if name == "Name" else ""), priority))
    return out


def _read() -> dict[tuple[str, str], Resource]:
    out: dict[tuple[str, str], Resource] = {}
    for line in table.RESOURCES.splitlines():
        group, plural, kind, scope, verbs, short, categories, subs = line.split("|")
        versions = table.VERSIONS.get((group, plural), ("v1",))
        subresources = {}
        for text in subs.split():
            name, sub_verbs, sub_kind = [*text.split(":"), "", ""][:3]
            parts = sub_kind.split("/")
            subresources[name] = Subresource(
                name,
                parts[-1] or kind,
                parts[0] if len(parts) == 3 else ("" if sub_kind else group),
                parts[1] if len(parts) == 3 else "v1" if sub_kind else versions[0],
                tuple(sub_verbs.split(",")) if sub_verbs else _UPDATE_VERBS,
            )
        out[group, plural] = Resource(
            group,
            plural,
            kind,
            namespaced=scope == "n",
            verbs=ALL_VERBS if verbs == "*" else tuple(verbs.split()),
            versions=versions,
            short_names=tuple(short.split()),
            categories=tuple(categories.split()),
            subresources=subresources,
        )
    return out


KINDS: dict[tuple[str, str], Resource] = _read()
BY_KIND: dict[tuple[str, str], Resource] = {(r.group, r.kind): r for r in KINDS.values()}

__all__ = [
    "ALL_VERBS",
    "BY_KIND",
    "KINDS",
    "Column",
    "DecodeError",
    "Errors",
    "FieldError",
    "Resource",
    "Schema",
    "Subresource",
    "kind_schema",
]
