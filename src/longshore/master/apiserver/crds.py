"""CustomResourceDefinitions: names accepted or refused, resources served and taken away, objects of a deleted one removed.

Source: apiextensions-apiserver's naming, establishing and finalizer controllers, and its customresource handler.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from longshore.api import times
from longshore.api.crd import CustomResource, names
from longshore.machinery.errors import StatusError
from longshore.machinery.patch.schema import DEDUCED, Node, SchemaBuilder
from longshore.master.apiserver.cache import CacheEvent, ResourceCache
from longshore.master.apiserver.conversion import Conversions
from longshore.master.apiserver.keys import folder
from longshore.master.apiserver.options import DeleteOptions
from longshore.master.apiserver.scheme import Storage

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer

Object = dict[str, Any]
log = logging.getLogger("longshore.apiserver.crds")
GROUP, PLURAL = "apiextensions.k8s.io", "customresourcedefinitions"
FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


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


class Definitions:
    """Follows the definitions in the cache and keeps what is served in step with them."""

    def __init__(self, server: APIServer) -> None:
        self.server = server
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._served: dict[str, tuple[str, str, Any]] = {}  # name -> group, plural, generation with names
        self._published: dict[str, list[tuple[tuple[str, str], list[str]]]] = {}
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
            if obj is not None and names.is_established(obj):
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
                    asyncio.get_running_loop().call_later(5.0, self._add, name)
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
        if name not in self._served:
            for version in obj["spec"]["versions"]:
                if version.get("served"):
                    await self.server.bootstrap.local_service(obj["spec"]["group"], version["name"], 1000, 100, "true")
        if await self._accept_names(obj):
            return  # the change comes back as an event
        if names.is_established(obj):
            await self._serve(name, obj)

    # Names.

    async def _accept_names(self, obj: Object) -> bool:
        """Settle acceptedNames, the conditions and storedVersions; whether the definition was written."""
        before = obj.get("status") or {}
        # A definition is named PLURAL.GROUP: only those of its group can be in its way. They are large, so one at a time.
        others = (self._definition(n) for n in list(self._cache.keys) if n.endswith("." + obj["spec"]["group"]))
        status = names.conditions(obj, (o for o in others if o is not None))
        status["storedVersions"] = list(status.get("storedVersions") or ())
        storage = next((v["name"] for v in obj["spec"]["versions"] if v.get("storage")), "")
        if storage and storage not in status["storedVersions"]:
            status["storedVersions"].append(storage)
        if status == before:
            return False
        obj["status"] = status
        if names.is_established(obj):
            # Whoever reads that it is established may use it at once: it is served before it says so.
            await self._serve(obj["metadata"]["name"], obj)
        await self.server.api.update(GROUP, PLURAL, "", obj, "status")
        return True

    # Serving.

    async def _serve(self, name: str, obj: Object) -> None:
        generation = obj["metadata"].get("generation", 1)
        shape = (generation, obj["status"].get("acceptedNames"))
        spec = obj["spec"]
        held = self._served.get(name)
        if held is not None and held[2] == shape:
            return
        resource: Any = CustomResource(obj)
        versions = list(resource.versions)
        storage = Storage(resource, custom=True)
        storage.reshaped = generation > 1
        if resource.webhook_conversion:
            storage.conversions = Conversions(self.server.api, resource)
        key = folder(resource.group, resource.plural, True)
        present = self.server.hub.caches.get(key)
        if present is None:
            assert storage.cache is not None
            await self.server.hub.attach(storage.cache)
        else:
            storage.cache = present
            for item in present.items.values():
                item.fields = None  # the definition may name others now
        before = self.server.scheme.storages.get((resource.group, resource.plural))
        if storage.conversions is not None:
            assert storage.cache is not None
            if before is not None and before.resource.storage_version != resource.storage_version:
                await storage.conversions.migrate(before.resource.storage_version, storage.cache, self.server.store)
            storage.cache.listeners.append(storage.conversions.changed)
        if before is not None and before.conversions is not None:
            if before.cache is not None:
                before.cache.listeners.remove(before.conversions.changed)
            await before.conversions.close()
        nodes = {v["name"]: _node(v) for v in spec["versions"]}
        self._served[name] = (resource.group, resource.plural, shape)
        self._unpublish(name)
        assert self.server.openapi is not None
        for version in spec["versions"]:
            if version.get("served"):
                key_of, shown = (resource.group, version["name"]), _published(spec, version)
                self.server.openapi.custom.setdefault(key_of, {}).update(shown)
                self._published.setdefault(name, []).append((key_of, list(shown)))
        self.server.scheme.add_custom(storage, versions, nodes)

    def _withdraw(self, name: str) -> None:
        held = self._served.pop(name, None)
        if held is None:
            return
        group, plural, _ = held
        storage = self.server.scheme.storages.get((group, plural))
        if storage is not None and storage.conversions is not None:
            self.server.spawn(storage.conversions.close(), "closing a webhook's client")
        self._unpublish(name)
        self.server.scheme.remove_custom(group, plural)
        self.server.hub.detach(folder(group, plural, True))
        self.server.spawn(self._forget_services(group), "services of a withdrawn group")

    def _unpublish(self, name: str) -> None:
        assert self.server.openapi is not None
        for key, shown in self._published.pop(name, ()):
            definitions = self.server.openapi.custom.get(key, {})
            for definition in shown:
                definitions.pop(definition, None)
            if not definitions:
                self.server.openapi.custom.pop(key, None)

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
    own = {"apiVersion": text, "kind": text, "metadata": meta}
    schema = _with_embedded(schema, own)
    return builder.build({**schema, "properties": {**(schema.get("properties") or {}), **own}})


def _with_embedded(schema: Object, head: Object) -> Object:
    """A schema in which objects with x-kubernetes-embedded-resource have what every object has."""
    out = dict(schema)
    if isinstance(out.get("properties"), dict):
        out["properties"] = {k: _with_embedded(v, head) for k, v in out["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(out.get(name), dict):
            out[name] = _with_embedded(out[name], head)
    if out.get("x-kubernetes-embedded-resource"):
        out["properties"] = {**(out.get("properties") or {}), **head}
        required = list(out.get("required") or ())
        out["required"] = required + [n for n in ("kind", "apiVersion") if n not in required]
    return out


_CONVENTIONS = "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#"
_DOCS = {
    "apiVersion": "APIVersion defines the versioned schema of this representation of an object. Servers should convert"
    " recognized schemas to the latest internal value, and may reject unrecognized values. "
    + _CONVENTIONS
    + "resources",
    "kind": "Kind is a string value representing the REST resource this object represents. Servers may infer this from"
    " the endpoint the client submits requests to. Cannot be updated. In CamelCase. " + _CONVENTIONS + "types-kinds",
}
_META = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1."


def _published(spec: Object, version: Object) -> dict[str, Object]:
    """The definitions that OpenAPI shows of one version."""
    called, group = spec["names"], spec["group"]
    prefix = ".".join([*reversed(group.split(".")), version["name"]])
    gvk = {"group": group, "version": version["name"], "kind": called["kind"]}
    schema = _schema(version)
    head = {k: {"type": "string", "description": d} for k, d in _DOCS.items()}
    metadata = {
        "description": "Standard object's metadata. " + _CONVENTIONS + "metadata",
        "allOf": [{"$ref": _META + "ObjectMeta"}],
    }
    schema = _with_embedded(schema, {**head, "metadata": metadata})
    own = {k: v for k, v in schema.items() if k != "properties"}
    own |= {"type": "object", "x-kubernetes-group-version-kind": [gvk]}
    if schema:
        own["properties"] = {**(schema.get("properties") or {}), **head, "metadata": metadata}
    lists = called.get("listKind") or called["kind"] + "List"
    reference = f"#/components/schemas/{prefix}.{called['kind']}"
    described = (
        "List of "
        + called["plural"]
        + ". More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md"
    )
    listing = {
        "type": "object", "description": f"{lists} is a list of {called['kind']}", "required": ["items"],
        "properties": {
            **head, "items": {"type": "array", "items": {"$ref": reference}, "description": described},
            "metadata": {
                "description": "Standard list metadata. " + _CONVENTIONS + "types-kinds",
                "allOf": [{"$ref": _META + "ListMeta"}],
            },
        },
        "x-kubernetes-group-version-kind": [{**gvk, "kind": lists}],
    }  # fmt: skip
    return {f"{prefix}.{called['kind']}": own, f"{prefix}.{lists}": listing}
