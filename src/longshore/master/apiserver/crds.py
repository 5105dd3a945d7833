"""CustomResourceDefinitions: names accepted or refused, resources served and taken away, objects of a deleted one removed.

Source: apiextensions-apiserver's naming, establishing and finalizer controllers, and its customresource handler.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

from longshore.api import times
from longshore.machinery.errors import StatusError
from longshore.machinery.patch.schema import DEDUCED, Node, SchemaBuilder
from longshore.master.apiserver.cache import CacheEvent, ResourceCache
from longshore.master.apiserver.keys import folder
from longshore.master.apiserver.options import DeleteOptions
from longshore.master.apiserver.scheme import Storage

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer

Object = dict[str, Any]
log = logging.getLogger("longshore.apiserver.crds")
GROUP, PLURAL = "apiextensions.k8s.io", "customresourcedefinitions"
FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
_NAMES = (
    # field of names, reason of the conflict, whether it is a kind's name
    ("plural", "PluralConflict"), ("singular", "SingularConflict"), ("shortNames", "ShortNamesConflict"),
    ("kind", "KindConflict"), ("listKind", "ListKindConflict"),
)  # fmt: skip
_VERSION = re.compile(r"v([1-9]\d*)(?:(alpha|beta)([1-9]\d*))?")


def version_priority(version: str) -> tuple[Any, ...]:
    """Sorts versions as discovery prefers them: v2 before v1 before v1beta2 before v1alpha1 before anything else."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return (1, version)
    stage = {None: 0, "beta": 1, "alpha": 2}[found[2]]
    return (0, stage, -int(found[1]), -int(found[3] or 0))


def condition(kind: str, status: str, reason: str, message: str) -> Object:
    return {"type": kind, "status": status, "lastTransitionTime": times.now(), "reason": reason, "message": message}


def set_condition(conditions: list[Object], new: Object) -> bool:
    """Put a condition into a list; whether that changed anything."""
    for at, old in enumerate(conditions):
        if old.get("type") == new["type"]:
            if all(old.get(k) == new[k] for k in ("status", "reason", "message")):
                return False
            if old.get("status") == new["status"]:
                new["lastTransitionTime"] = old.get("lastTransitionTime", new["lastTransitionTime"])
            conditions[at] = new
            return True
    conditions.append(new)
    return True


def is_true(obj: Object, kind: str) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == kind and c.get("status") == "True" for c in conditions)


class Definitions:
    """Follows the definitions in the cache and keeps what is served in step with them."""

    def __init__(self, server: APIServer) -> None:
        self.server = server
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._served: dict[str, tuple[str, str, int]] = {}  # name -> group, plural, generation
        cache = server.scheme.storages[GROUP, PLURAL].cache
        assert cache is not None
        self._cache: ResourceCache = cache
        cache.listeners.append(self._changed)

    def _changed(self, event: CacheEvent) -> None:
        self._add(event.item.key)

    def _add(self, name: str) -> None:
        if name not in self._queued:
            self._queued.add(name)
            self._queue.put_nowait(name)

    def _definition(self, name: str) -> Object | None:
        return self.server.api.get(GROUP, PLURAL, "", name)

    async def start(self) -> None:
        """Serve what is established already, then follow."""
        for name in list(self._cache.keys):
            obj = self._definition(name)
            if obj is not None and is_true(obj, "Established"):
                await self._serve(name, obj)
            self._add(name)
        self.server.spawn(self._run(), "custom resource definitions")

    async def _run(self) -> None:
        while True:
            name = await self._queue.get()
            self._queued.discard(name)
            try:
                await self._sync(name)
            except StatusError as error:
                if error.reason in ("Conflict", "NotFound"):
                    await self.server.hub.fresh()
                    if error.reason == "Conflict":
                        self._add(name)
                else:
                    log.warning("definition %s: %s", name, error.message)
            except Exception:
                log.exception("definition %s could not be served", name)

    async def _sync(self, name: str) -> None:
        obj = self._definition(name)
        if obj is None:
            self._withdraw(name)
            return
        if obj["metadata"].get("deletionTimestamp"):
            await self._finalize(name, obj)
            return
        if await self._accept_names(obj):
            return  # the change comes back as an event
        if is_true(obj, "Established"):
            await self._serve(name, obj)

    # Names.

    def _taken(self, obj: Object) -> tuple[set[str], set[str]]:
        """The resource names and the kinds that other definitions of the group hold."""
        group, own = obj["spec"]["group"], obj["metadata"]["name"]
        names: set[str] = set()
        kinds: set[str] = set()
        for other in self.server.api.list(GROUP, PLURAL):
            if other["spec"]["group"] != group or other["metadata"]["name"] == own:
                continue
            accepted = (other.get("status") or {}).get("acceptedNames") or {}
            names |= {accepted.get("plural", ""), accepted.get("singular", ""), *(accepted.get("shortNames") or ())}
            kinds |= {accepted.get("kind", ""), accepted.get("listKind", "")}
        return names - {""}, kinds - {""}

    async def _accept_names(self, obj: Object) -> bool:
        """Settle acceptedNames and the conditions; whether the definition was written."""
        wanted = obj["spec"]["names"]
        status = obj.get("status") or {}
        before = dict(status.get("acceptedNames") or {})
        accepted = {"plural": before.get("plural", ""), "kind": before.get("kind", "")} | before
        names, kinds = self._taken(obj)
        conflict = None
        for field, reason in _NAMES:
            value = wanted.get(field)
            held = kinds if field in ("kind", "listKind") else names
            clash = next((v for v in (value if isinstance(value, list) else [value]) if v and v in held), None)
            if clash is None:
                if value:
                    accepted[field] = value
                else:
                    accepted.pop(field, None)
            else:
                conflict = (reason, clash)
        if conflict is None and wanted.get("categories"):
            accepted["categories"] = wanted["categories"]
        elif conflict is None:
            accepted.pop("categories", None)
        conditions = list(status.get("conditions") or ())
        if conflict is None:
            changed = set_condition(conditions, condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"))
            if not is_true(obj, "Established"):
                new = condition("Established", "True", "InitialNamesAccepted", "the initial names have been accepted")
                changed |= set_condition(conditions, new)
        else:
            reason, clash = conflict
            changed = set_condition(
                conditions, condition("NamesAccepted", "False", reason, f'"{clash}" is already in use')
            )
            if not is_true(obj, "Established"):
                changed |= set_condition(
                    conditions, condition("Established", "False", "NotAccepted", "not all names are accepted")
                )
        stored = list(status.get("storedVersions") or ())
        storage = next((v["name"] for v in obj["spec"]["versions"] if v.get("storage")), "")
        if storage and storage not in stored:
            stored.append(storage)
            changed = True
        if not changed and accepted == before:
            return False
        obj["status"] = {**status, "acceptedNames": accepted, "conditions": conditions, "storedVersions": stored}
        await self.server.api.update(GROUP, PLURAL, "", obj, "status")
        return True

    # Serving.

    async def _serve(self, name: str, obj: Object) -> None:
        generation = obj["metadata"].get("generation", 1)
        spec = obj["spec"]
        held = self._served.get(name)
        if held is not None and held[2] == generation:
            return
        from longshore.api.crd import CustomResource

        resource: Any = CustomResource(obj)
        versions = sorted((v["name"] for v in spec["versions"] if v.get("served")), key=version_priority)
        storage = Storage(resource, custom=True)
        key = folder(resource.group, resource.plural, True)
        present = self.server.hub.caches.get(key)
        if present is None:
            assert storage.cache is not None
            await self.server.hub.attach(storage.cache)
        else:
            storage.cache = present
        nodes = {v["name"]: _node(v) for v in spec["versions"]}
        self._served[name] = (resource.group, resource.plural, generation)
        assert self.server.openapi is not None
        for version in spec["versions"]:
            self.server.openapi.custom.setdefault((resource.group, version["name"]), {}).update(
                _published(spec, version)
            )
        self.server.scheme.add_custom(storage, versions, nodes)
        for version in versions:
            await self.server.bootstrap.local_service(resource.group, version, 1000, 100, "true")

    def _withdraw(self, name: str) -> None:
        held = self._served.pop(name, None)
        if held is None:
            return
        group, plural, _ = held
        self.server.scheme.remove_custom(group, plural)
        self.server.hub.detach(folder(group, plural, True))
        if self.server.openapi is not None:
            for key in [k for k in self.server.openapi.custom if k[0] == group]:
                if key[1] not in self.server.scheme.groups.get(group, ()):
                    del self.server.openapi.custom[key]
        self.server.spawn(self._forget_services(group), "services of a withdrawn group")

    async def _forget_services(self, group: str) -> None:
        """Remove the APIServices of versions that are served no longer."""
        served = self.server.scheme.groups.get(group, ())
        for service in self.server.api.list("apiregistration.k8s.io", "apiservices"):
            spec = service["spec"]
            if spec.get("group") == group and not spec.get("service") and spec.get("version") not in served:
                try:
                    await self.server.api.delete(
                        "apiregistration.k8s.io", "apiservices", "", service["metadata"]["name"]
                    )
                except StatusError as error:
                    log.debug("%s", error.message)

    # Deletion.

    async def _finalize(self, name: str, obj: Object) -> None:
        """Delete all objects of a definition that is going, then let it go."""
        finalizers = obj["metadata"].get("finalizers") or []
        if FINALIZER not in finalizers:
            return
        held = self._served.get(name)
        if held is not None:
            group, plural, _ = held
            storage = self.server.scheme.storages.get((group, plural))
            if storage is not None and storage.cache is not None:
                for item in storage.cache.select():
                    call = self.server.api.call(group, plural, item.namespace, item.name, "delete")
                    try:
                        await self.server.deleter.delete_one(call, DeleteOptions())
                    except StatusError as error:
                        if error.code != 404:
                            log.warning("%s %s could not be deleted: %s", plural, item.key, error.message)
                await self.server.hub.fresh()
                if storage.cache.items:
                    asyncio.get_running_loop().call_later(1.0, self._add, name)  # finalizers of objects hold it up
                    return
        obj["metadata"]["finalizers"] = [f for f in finalizers if f != FINALIZER]
        await self.server.api.update(GROUP, PLURAL, "", obj)
        self._withdraw(name)

    def mark(self, obj: Object) -> None:
        """What the first DELETE does to a definition, in place."""
        metadata = obj["metadata"]
        metadata["deletionTimestamp"] = times.now()
        finalizers = metadata.setdefault("finalizers", [])
        if FINALIZER not in finalizers:
            finalizers.append(FINALIZER)
        status = obj.setdefault("status", {})
        conditions = status["conditions"] = list(status.get("conditions") or ())
        message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
        set_condition(conditions, condition("Terminating", "True", "InstanceDeletionPending", message))


def _schema(version: Object) -> Object:
    found: Object = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    return found


def _node(version: Object) -> Node:
    """The type that patches and apply work with: the schema with Kubernetes' own metadata."""
    schema = _schema(version)
    if not schema:
        return DEDUCED
    from longshore.api import definitions

    builder = SchemaBuilder(lambda name: definitions.definition(name)[0])
    text = {"type": "string"}
    meta = {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    whole = {
        **schema,
        "properties": {**(schema.get("properties") or {}), "apiVersion": text, "kind": text, "metadata": meta},
    }
    return builder.build(whole)


_DOCS = {
    "apiVersion": "APIVersion defines the versioned schema of this representation of an object.",
    "kind": "Kind is a string value representing the REST resource this object represents.",
}


def _published(spec: Object, version: Object) -> dict[str, Object]:
    """The definitions that OpenAPI shows of one version."""
    names, group = spec["names"], spec["group"]
    prefix = ".".join([*reversed(group.split(".")), version["name"]])
    gvk = {"group": group, "version": version["name"], "kind": names["kind"]}
    schema = _schema(version)
    properties = dict(schema.get("properties") or {})
    preserve = schema.get("x-kubernetes-preserve-unknown-fields")
    head = {k: {"type": "string", "description": d} for k, d in _DOCS.items()}
    metadata = {"allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}]}
    own = {k: v for k, v in schema.items() if k not in ("properties", "x-kubernetes-validations")}
    own |= {"type": "object", "x-kubernetes-group-version-kind": [gvk]}
    if properties or not preserve:
        own["properties"] = {**properties, **head, "metadata": metadata}
    lists = names.get("listKind") or names["kind"] + "List"
    reference = f"#/components/schemas/{prefix}.{names['kind']}"
    listing = {
        "type": "object", "description": f"{lists} is a list of {names['kind']}", "required": ["items"],
        "properties": {
            **head, "items": {"type": "array", "items": {"$ref": reference}},
            "metadata": {"allOf": [{"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"}]},
        },
        "x-kubernetes-group-version-kind": [{**gvk, "kind": lists}],
    }  # fmt: skip
    return {f"{prefix}.{names['kind']}": own, f"{prefix}.{lists}": listing}
