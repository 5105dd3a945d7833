"""What this server serves: groups, versions and resources; built in, from definitions, and aggregated.

A `Storage` is one resource with its cache; an `Endpoint` is one version of it as the REST paths see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from longshore.api.kinds import KINDS
from longshore.machinery.patch import fieldset
from longshore.machinery.patch.schema import DEDUCED, Node, SchemaBuilder
from longshore.master.apiserver import keys
from longshore.master.apiserver.cache import ResourceCache

if TYPE_CHECKING:
    from longshore.master.apiserver.conversion import Conversions

Object = dict[str, Any]

# Virtual resources: answered by a computation, not kept.
UNSTORED = frozenset(
    {
        ("", "bindings"),
        ("", "componentstatuses"),
        ("authentication.k8s.io", "selfsubjectreviews"),
        ("authentication.k8s.io", "tokenreviews"),
        ("authorization.k8s.io", "localsubjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectrulesreviews"),
        ("authorization.k8s.io", "subjectaccessreviews"),
    }
)
# The groups that are built in.
KNOWN_GROUPS = frozenset(group for group, _ in KINDS)
_SHARED = {("events.k8s.io", "events"): ("", "events")}


class Storage:
    """One resource: its rules (api.kinds.Resource or a custom one) and its cache (None for virtual resources)."""

    __slots__ = ("cache", "conversions", "custom", "reshaped", "resource")

    def __init__(self, resource: Any, *, custom: bool = False) -> None:
        self.resource = resource
        self.custom = custom
        # The definition has been changed: what is stored may not fit its schemas, and is fitted as it is read.
        self.reshaped = False
        self.conversions: Conversions | None = None  # where a webhook converts
        self.cache: ResourceCache | None = None
        if (resource.group, resource.plural) not in UNSTORED:
            self.cache = ResourceCache(keys.folder(resource.group, resource.plural, custom))


class Endpoint:
    """One version of a resource under its REST path."""

    __slots__ = (
        "api_version",
        "cache",
        "custom",
        "deprecation",
        "foreign",
        "group",
        "head",
        "kind",
        "list_head",
        "namespaced",
        "native",
        "plural",
        "resource",
        "separator",
        "storage",
        "stored_head",
        "verbs",
        "version",
    )  # fmt: skip

    def __init__(self, storage: Storage, resource: Any, version: str) -> None:
        self.storage = storage
        self.resource = resource
        self.cache = storage.cache
        self.custom = storage.custom
        self.group: str = resource.group
        self.version = version
        self.plural: str = resource.plural
        self.kind: str = resource.kind
        self.namespaced: bool = resource.namespaced
        self.verbs = frozenset(resource.verbs)
        self.api_version = f"{self.group}/{version}" if self.group else version
        names = (self.kind, self.api_version)
        self.head = b'{"kind":"%b","apiVersion":"%b",' % tuple(n.encode() for n in names)
        self.list_head = b'{"kind":"%b","apiVersion":"%b",' % (resource.list_kind.encode(), self.api_version.encode())
        # Items of a built-in list carry no kind of their own; custom ones do.
        self.separator = b"," + (self.head if self.custom else b"{")
        # Whether stored bodies can be handed out in this version without conversion.
        self.native = resource is storage.resource and version == resource.storage_version and not storage.reshaped
        stored = storage.resource
        # Objects are converted by a webhook on their way out and in: not at once.
        self.foreign = storage.conversions is not None and version != resource.storage_version
        # The Warning that a deprecated version carries.
        self.deprecation: str = resource.deprecation(version) if self.custom else ""
        self.stored_head = f"{stored.group}/{stored.storage_version}" if stored.group else stored.storage_version

    @property
    def group_resource(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def __repr__(self) -> str:
        return f"Endpoint({self.api_version} {self.plural})"

    def present(self, obj: Object) -> Object:
        """A stored object (without kind and apiVersion) in this version."""
        full = {"kind": self.storage.resource.kind, "apiVersion": self.stored_head, **obj}
        if not self.native:
            full = self.convert(full, self.version)
        return full

    def convert(self, obj: Object, version: str) -> Object:
        """An object of this resource in another version of it (across the two groups of events as well)."""
        if self.custom:
            return self._fitted(obj, version)
        out: Object = self.resource.convert(obj, version)
        return out

    def _fitted(self, obj: Object, version: str) -> Object:
        """A custom object in a version: only the name of the version changes, and what its schema does not have goes.

        Defaults are those of the version that is stored.
        """
        from longshore.api.crd import structural

        resource, out = self.resource, _copy(obj)
        kept = resource.storage_version
        wanted = resource.api_version(version)
        if out.get("apiVersion") == resource.api_version(kept):
            if self.storage.reshaped:
                structural.prune(out, resource.node(kept), root=True)
            resource.default(out, kept)
        if out.get("apiVersion") != wanted and self.storage.conversions is not None:
            taken: Object = self.storage.conversions.take(out, version)
            return taken
        if out.get("apiVersion") != wanted:
            out = self.renamed(out, version)
            if version == kept:
                resource.default(out, kept)
        found: Object = out
        return found

    def renamed(self, obj: Object, version: str) -> Object:
        """A custom object under the name of another version, without what that does not have."""
        from longshore.api.crd import structural

        out: Object = _copy(obj)
        out["apiVersion"] = self.resource.api_version(version)
        structural.prune(out, self.resource.node(version), root=True)
        return out

    def stored(self, obj: Object) -> Object:
        """An object of this version as it is stored."""
        if self.native:
            return obj
        resource = self.storage.resource
        if self.custom:
            return self._fitted(obj, resource.storage_version)
        out: Object = resource.convert(obj, resource.storage_version)
        return out


async def kept(endpoint: Endpoint, obj: Object) -> Object:
    """A custom object of an endpoint's version in the form in which it is stored."""
    conversions = endpoint.storage.conversions
    if not endpoint.foreign or conversions is None:
        return endpoint.stored(obj)
    resource = endpoint.resource
    out = (await conversions.convert([obj], resource.api_version(resource.storage_version)))[0]
    out = resource.decode(out, resource.storage_version)
    resource.default(out, resource.storage_version)
    found: Object = out
    return found


class Scheme:
    """All endpoints by (group, version, plural), with the patch schema of each kind."""

    def __init__(self) -> None:
        self.endpoints: dict[tuple[str, str, str], Endpoint] = {}
        self.storages: dict[tuple[str, str], Storage] = {}
        self.groups: dict[str, list[str]] = {}
        self.generation = 0
        self.listeners: list[Callable[[], None]] = []
        self._builder = SchemaBuilder(_definition)
        self._custom_nodes: dict[tuple[str, str, str], Node] = {}
        for key, resource in KINDS.items():
            shared = _SHARED.get(key)
            storage = self.storages[shared] if shared else Storage(resource)
            self.storages[key] = storage
            for version in resource.versions:
                self._add(Endpoint(storage, resource, version))

    def _add(self, endpoint: Endpoint) -> None:
        self.endpoints[endpoint.group, endpoint.version, endpoint.plural] = endpoint
        versions = self.groups.setdefault(endpoint.group, [])
        if endpoint.version not in versions:
            versions.append(endpoint.version)

    def add_custom(self, storage: Storage, versions: list[str], nodes: dict[str, Node]) -> None:
        """Serve a custom resource in `versions` (preferred first); replaces what was served of it before."""
        resource = storage.resource
        self.remove_custom(resource.group, resource.plural, notify=False)
        self.storages[resource.group, resource.plural] = storage
        for version in versions:
            self._add(Endpoint(storage, resource, version))
            self._custom_nodes[resource.group, version, resource.plural] = nodes.get(version, DEDUCED)
        self.changed()

    def remove_custom(self, group: str, plural: str, notify: bool = True) -> None:
        for key in [k for k in self.endpoints if k[0] == group and k[2] == plural]:
            if self.endpoints[key].custom:
                del self.endpoints[key]
                self._custom_nodes.pop(key, None)
        storage = self.storages.get((group, plural))
        if storage is not None and storage.custom:
            del self.storages[group, plural]
        left = [v for v in self.groups.get(group, ()) if any(k[0] == group and k[1] == v for k in self.endpoints)]
        if left:
            self.groups[group] = left
        else:
            self.groups.pop(group, None)
        if notify:
            self.changed()

    def changed(self) -> None:
        """Something is served now that was not, or the other way round."""
        self.generation += 1
        for listener in self.listeners:
            listener()

    def of(self, group: str, version: str) -> Iterator[Endpoint]:
        """The endpoints of one version of a group."""
        for key, endpoint in self.endpoints.items():
            if key[0] == group and key[1] == version:
                yield endpoint

    def caches(self) -> Iterator[ResourceCache]:
        seen = set()
        for storage in self.storages.values():
            if storage.cache is not None and id(storage.cache) not in seen:
                seen.add(id(storage.cache))
                yield storage.cache

    def node(self, endpoint: Endpoint, api_version: str = "") -> Node | None:
        """The patch schema of an endpoint's kind in a version; None when that version is not served."""
        group, _, version = (api_version or endpoint.api_version).rpartition("/")
        if endpoint.custom:
            return self._custom_nodes.get((group, version, endpoint.plural))
        return self.kind_node(group, version, endpoint.kind)

    def kind_node(self, group: str, version: str, kind: str) -> Node | None:
        from longshore.api import definitions

        name = definitions.by_kind().get((group, version, kind))
        return self._builder.definition(name) if name is not None else None


def _copy(value: Any) -> Any:
    if value.__class__ is dict:
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if value.__class__ is list else value


def _definition(name: str) -> Any:
    from longshore.api import definitions

    return definitions.definition(name)[0]


_META_RESET: dict[tuple[str, str], list[tuple[str, ...]]] = {
    # What a status endpoint may not write besides spec (upstream: the strategies' GetResetFields).
    ("", "pods"): [("spec",), ("metadata", "deletionTimestamp"), ("metadata", "ownerReferences")],
    ("apps", "deployments"): [("spec",), ("metadata", "labels")],
    ("batch", "cronjobs"): [("spec",)],
    ("apiregistration.k8s.io", "apiservices"): [("spec",), ("metadata",)],
    ("apiextensions.k8s.io", "customresourcedefinitions"): [("spec",), ("metadata",)],
    ("certificates.k8s.io", "certificatesigningrequests"): [("spec",), ("status", "conditions")],
    ("flowcontrol.apiserver.k8s.io", "flowschemas"): [("spec",), ("metadata",)],
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations"): [("spec",), ("metadata",)],
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"): [("spec",), ("metadata",)],
    ("networking.k8s.io", "servicecidrs"): [("spec",), ("metadata",)],
    ("resource.k8s.io", "resourceclaims"): [("spec",), ("metadata",)],
    ("storage.k8s.io", "volumeattachments"): [("spec",), ("metadata",)],
}


def reset_fields(endpoint: Endpoint, subresource: str) -> fieldset.Set:
    """The fields that an endpoint does not write, whatever the body says: nobody comes to own them there."""
    key = (endpoint.group, endpoint.plural)
    out: fieldset.Set = {}
    if subresource == "status":
        if endpoint.custom:
            paths: list[tuple[str, ...]] = [("metadata",), ("spec",)]
        else:
            paths = _META_RESET.get(key, [("spec",)])
    elif (
        subresource in ("", "ephemeralcontainers", "resize", "approval", "finalize")
        and "status" in endpoint.resource.subresources
    ):
        paths = [("status",)]
    else:
        paths = []
    if key == ("certificates.k8s.io", "certificatesigningrequests"):
        if not subresource:
            paths = [("spec",), ("status",)]
        elif subresource == "approval":
            paths = [("spec",)]
    for path in paths:
        out = fieldset.union(out, fieldset.path_set(*path))
    return out


_WHOLE_METADATA = ("labels", "annotations", "ownerReferences", "finalizers")


def reset_metadata(endpoint: Endpoint) -> tuple[str, ...]:
    """The parts of metadata that the kind's status endpoint does not write."""
    if endpoint.custom:
        return ()
    out: tuple[str, ...] = ()
    for path in _META_RESET.get((endpoint.group, endpoint.plural), ()):
        if path == ("metadata",):
            return _WHOLE_METADATA
        if path[0] == "metadata" and len(path) == 2:
            out += (path[1],)
    return out
