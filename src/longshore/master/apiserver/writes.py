"""CREATE, UPDATE and PATCH: decode, default, own the fields, admit, prepare, validate, store.

Source: apiserver's endpoints/handlers (create.go, update.go, patch.go) and registry/generic/registry/store.go, whose
order of steps decides what clients see.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson

from longshore.api import times
from longshore.machinery.errors import (
    Cause,
    StatusError,
    already_exists,
    bad_request,
    conflict,
    generate_name_conflict,
    invalid,
    modified,
    not_found,
    request_entity_too_large,
)
from longshore.machinery.patch import managedfields
from longshore.machinery.patch.typed import equal
from longshore.master.apiserver import rendering
from longshore.master.apiserver.admit import Admission
from longshore.master.apiserver.cache import Hub, Item, with_version
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.fieldtypes import FieldTypes
from longshore.master.apiserver.keys import path
from longshore.master.apiserver.metadata import clear_system, dedup_owners, keep_reset, keep_system, settle_times
from longshore.master.apiserver.options import WriteOptions
from longshore.master.apiserver.ownership import Ownership
from longshore.master.apiserver.scheme import Endpoint, Scheme, kept, reset_metadata

Object = dict[str, Any]
SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
MAX_OBJECT = 1536 * 1024
_RETRIES = 5
Change = Callable[[Object | None], Object | Awaitable[Object]]


class View(NamedTuple):
    """Another kind as which a subresource shows an object: its (group, version, kind), how to show it, how to take it over."""

    kind: tuple[str, str, str]
    show: Callable[[Object], Object]
    take: Callable[[Object, Object], None]


def random_suffix() -> str:
    return "".join(random.choices(SUFFIX, k=5))


def new_uid() -> str:
    """A random UUID (version 4); the uuid module takes three times as long."""
    h = os.urandom(16).hex()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"


def encoded_body(obj: Object, version: int = 0) -> bytes:
    return with_version(rendering.encode_stored(obj), version)


class Writer:
    """Answers calls that write one object; what the kinds need besides (allocators ...) comes in as hooks."""

    def __init__(self, hub: Hub, scheme: Scheme, admission: Admission) -> None:
        self.hub = hub
        self.scheme = scheme
        self.admission = admission
        self.hooks: dict[tuple[str, str], Any] = {}
        self.ttl: dict[tuple[str, str], Callable[[Object], Awaitable[int]]] = {}
        self.ownership = Ownership()
        self._types: dict[tuple[Endpoint, str], FieldTypes] = {}

    def field_types(self, endpoint: Endpoint, subresource: str = "") -> FieldTypes:
        found = self._types.get((endpoint, subresource))
        if found is None:
            if len(self._types) > 2000:
                self._types.clear()
            found = self._types[endpoint, subresource] = FieldTypes(self.scheme, endpoint, subresource)
        return found

    # Create.

    async def create(
        self, call: Call, obj: Object, options: WriteOptions, *, owned: bool = False
    ) -> tuple[Object, Item | None]:
        """Store a new object. The object (in the request's version) and its item (None for a dry run).

        owned: its managedFields are set already (by an apply).
        """
        endpoint, info = call.endpoint, call.info
        metadata = self._metadata(endpoint, obj)
        self._match_namespace(endpoint, metadata, info.namespace)
        endpoint.resource.default(obj, endpoint.version)
        dedup_owners(call, metadata, "owner")
        if metadata.get("resourceVersion"):
            raise StatusError(500, "", "resourceVersion should not be set on objects to be created")
        clear_system(metadata)
        converted(endpoint, obj)
        if not owned:
            self.ownership.of_new(self.field_types(endpoint), endpoint, obj, options.manager, times.now())
        generated = False
        if not metadata.get("name") and metadata.get("generateName"):
            generated = True
            metadata["name"] = self._generate(metadata["generateName"])
        request = self.admission.request(call, "CREATE", obj, None, options.as_object(), options.dry_run)
        await self.admission.admit(request)
        obj = request.object or obj
        attempts = 8 if generated else 1
        for attempt in range(attempts):
            try:
                return await self._create(call, obj, options, request)
            except StatusError as error:
                if error.reason != "AlreadyExists" or not generated:
                    raise
                metadata = obj["metadata"]
                if attempt == attempts - 1:
                    raise generate_name_conflict(endpoint.group, endpoint.plural, metadata["name"]) from None
                metadata["name"] = self._generate(metadata["generateName"])
        raise AssertionError("unreachable")

    async def _create(self, call: Call, obj: Object, options: WriteOptions, request: Any) -> tuple[Object, Item | None]:
        endpoint = call.endpoint
        metadata = obj["metadata"]
        dedup_owners(call, metadata, "owner after mutating")
        # Built-in objects are checked in the form in which they are kept, custom ones in the version that was asked.
        stored = obj if endpoint.custom else endpoint.stored(obj)
        metadata = stored["metadata"]
        metadata["uid"] = new_uid()
        metadata["creationTimestamp"] = times.now()
        resource = endpoint.storage.resource if endpoint.storage.resource is endpoint.resource else endpoint.resource
        resource.prepare_create(stored, endpoint.version)
        hook = self.hooks.get((endpoint.group, endpoint.plural))
        undo = await hook.before_create(call, stored, options.dry_run) if hook is not None else None
        try:
            causes = resource.validate(stored)
            if causes:
                raise self.invalid(endpoint, stored, causes)
            for text in resource.warnings(stored):
                call.warn(text)
            request.object = stored if endpoint.native else endpoint.convert(stored, endpoint.version)
            await self.admission.validate(request)
            asked = stored
            if endpoint.custom:
                stored = await kept(endpoint, stored)
            key = path(call.namespace if endpoint.namespaced else "", metadata["name"])
            if options.dry_run:
                cache = endpoint.cache
                assert cache is not None
                await self.hub.fresh()
                if key in cache.items:
                    raise self._exists(endpoint, cache.items[key])
                if endpoint.foreign:
                    return asked, None
                return (stored if endpoint.native else endpoint.convert(stored, endpoint.version)), None
            item = await self.store_new(endpoint, key, stored)
            _remember(endpoint, asked, item.version)
        except BaseException:
            if undo is not None:
                await undo()
            raise
        return stored, item

    async def store_new(self, endpoint: Endpoint, key: str, stored: Object) -> Item:
        """Put a finished object into the store, if there is none of that key."""
        cache = endpoint.cache
        assert cache is not None
        value = rendering.encode_stored(stored)
        _check_size(value)
        lease = 0
        ttl = self.ttl.get((endpoint.storage.resource.group, endpoint.plural))
        if ttl is not None:
            lease = await ttl(stored)
        result = await self.hub.store.create(cache.prefix + key.encode(), value, lease=lease)
        if not result.succeeded:
            raise self._exists(
                endpoint, Item(key, result.kv.mod_revision, with_version(result.kv.value, result.kv.mod_revision))
            )
        stored["metadata"]["resourceVersion"] = str(result.revision)
        return Item(key, result.revision, with_version(value, result.revision))

    def _exists(self, endpoint: Endpoint, item: Item) -> StatusError:
        name = item.name
        error = already_exists(endpoint.group, endpoint.plural, name)
        if b'"deletionTimestamp":' in item.body and item.decode()["metadata"].get("deletionTimestamp"):
            error = StatusError(409, "AlreadyExists", "object is being deleted: " + error.message, error.details)
        return error

    # Update and patch.

    async def update(
        self, call: Call, obj: Object, options: WriteOptions, subresource: str = "", *, allow_create: bool = False
    ) -> tuple[Object, Item | None, bool]:
        """Replace an object. The object, its item, whether it was created."""
        endpoint, info = call.endpoint, call.info
        metadata = self._metadata(endpoint, obj)
        self._match_name(metadata, info.name)
        self._match_namespace(endpoint, metadata, info.namespace)
        endpoint.resource.default(obj, endpoint.version)
        converted(endpoint, obj)
        version = metadata.get("resourceVersion") or ""
        uid = metadata.get("uid") or ""

        def change(live: Object | None) -> Object:
            new = copy_tree(obj)
            if live is not None:
                managedfields.update(
                    self.field_types(endpoint, subresource),
                    live,
                    new,
                    options.manager,
                    endpoint.api_version,
                    subresource,
                    times.now(),
                )
            return new

        dedup_owners(call, metadata, "owner")
        create = allow_create or (not subresource and endpoint.resource.create_on_update)
        return await self.guaranteed_update(
            call, change, options, subresource, version=version, uid=uid, create=create, operation="UPDATE"
        )

    async def guaranteed_update(
        self,
        call: Call,
        change: Change,
        options: WriteOptions,
        subresource: str,
        *,
        version: str = "",
        uid: str = "",
        create: bool = False,
        operation: str = "UPDATE",
        view: View | None = None,
    ) -> tuple[Object, Item | None, bool]:
        """Read, change, check and write under the version read; again when somebody else was faster.

        change: gets the live object in the request's version (None: there is none), gives the new one.
        version, uid: what the client says the object has; "" when it does not say. view: what admission sees of an object
        (a Scale), with its kind.
        """
        endpoint, info = call.endpoint, call.info
        cache = endpoint.cache
        assert cache is not None
        key = path(info.namespace if endpoint.namespaced else "", info.name)
        current = cache.items.get(key)
        if not self.hub.current() and not self._newest(endpoint, key, current):
            await self.hub.fresh()
            current = cache.items.get(key)
        for _ in range(_RETRIES * 4):
            if current is None:
                if not create:
                    raise not_found(endpoint.group, endpoint.plural, info.name)
                made = change(None)
                new = made if isinstance(made, dict) else await made
                if uid:
                    why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    raise conflict(endpoint.group, endpoint.plural, info.name, why)
                try:
                    out, item = await self.create(call, new, options, owned=operation == "APPLY")
                except StatusError as error:
                    if error.reason != "AlreadyExists" or options.dry_run:
                        raise
                    await self.hub.fresh()
                    current = cache.items.get(key)
                    continue
                return out, item, True
            if endpoint.foreign and endpoint.storage.conversions is not None:
                await endpoint.storage.conversions.fill(endpoint.version, [current])
            live = endpoint.present(current.decode())
            made = change(live)
            new = made if isinstance(made, dict) else await made
            result = await self._update_once(
                call, current, live, new, options, subresource, version, uid, operation, view
            )
            if result is not None:
                return result[0], result[1], False
            await self.hub.fresh()
            newest = cache.items.get(key)
            if newest is current:
                # The cache has not heard of what is in the way: read the store itself.
                newest = await self.read(endpoint, key)
            current = newest
        raise modified(endpoint.group, endpoint.plural, info.name)

    async def change_stored(
        self, endpoint: Endpoint, namespace: str, name: str, change: Callable[[Object], None], dry_run: bool
    ) -> Item | None:
        """Read, change and write a built-in object as it is stored, past its kind's strategy, as a binding does.

        change: changes the object in place, or refuses it; called again when somebody else was faster. The item (None
        for a dry run).
        """
        cache = endpoint.cache
        assert cache is not None
        key = path(namespace, name)
        current = cache.items.get(key)
        if not self.hub.current() and not self._newest(endpoint, key, current):
            await self.hub.fresh()
            current = cache.items.get(key)
        for _ in range(_RETRIES * 4):
            if current is None:
                raise not_found(endpoint.group, endpoint.plural, name)
            obj = {"kind": endpoint.kind, "apiVersion": endpoint.stored_head, **current.decode()}
            change(obj)
            if dry_run:
                return None
            value = rendering.encode_stored(obj)
            _check_size(value)
            result = await self.hub.store.update(cache.prefix + key.encode(), value, current.version)
            if result.succeeded:
                return Item(key, result.revision, with_version(value, result.revision))
            await self.hub.fresh()
            newest = cache.items.get(key)
            current = await self.read(endpoint, key) if newest is current else newest
        raise modified(endpoint.group, endpoint.plural, name)

    def _newest(self, endpoint: Endpoint, key: str, item: Item | None) -> bool:
        """Whether the cache has an object as it is stored, though it may lag with others: then nobody need wait for it.

        Only the embedded store can tell.
        """
        ask = getattr(self.hub.store, "newest_revision", None)
        cache = endpoint.cache
        if ask is None or cache is None:
            return False
        return bool(ask(cache.prefix + key.encode()) == (item.version if item is not None else 0))

    async def read(self, endpoint: Endpoint, key: str) -> Item | None:
        """The newest version of an object, from the store."""
        cache = endpoint.cache
        assert cache is not None
        result = await self.hub.store.range(cache.prefix + key.encode())
        if not result.kvs:
            return None
        kv = result.kvs[0]
        return Item(key, kv.mod_revision, with_version(kv.value, kv.mod_revision))

    async def _update_once(
        self,
        call: Call,
        current: Item,
        live: Object,
        new: Object,
        options: WriteOptions,
        subresource: str,
        version: str,
        uid: str,
        operation: str,
        view: View | None = None,
    ) -> tuple[Object, Item | None] | None:
        """One attempt; None when the object has changed meanwhile and the client did not name a version."""
        endpoint, info = call.endpoint, call.info
        old_metadata = live["metadata"]
        if uid and uid != old_metadata.get("uid"):
            raise self._uid_conflict(endpoint, current, uid, old_metadata.get("uid", ""))
        wanted = new["metadata"].get("resourceVersion") or version
        if wanted and wanted != "0":
            if not wanted.isdigit():
                raise self._bad_version(endpoint, info.name, wanted)
            if int(wanted) != current.version:
                raise modified(endpoint.group, endpoint.plural, info.name)
        elif not endpoint.resource.unconditional_update and not subresource and not version and call.verb == "update":
            cause = Cause(
                "FieldValueInvalid", "Invalid value: 0: must be specified for an update", "metadata.resourceVersion"
            )
            raise invalid(endpoint.group, endpoint.kind, info.name, [cause])
        if view is None:
            verb = "UPDATE" if operation == "APPLY" else operation
            request = self.admission.request(call, verb, new, live, options.as_object(), options.dry_run)
            await self.admission.admit(request)
            new = request.object or new
        else:
            request = self.admission.request(
                call, operation, view.show(new), view.show(live), options.as_object(), options.dry_run, view.kind
            )
            await self.admission.admit(request)
            view.take(new, request.object or {})
        dedup_owners(call, new["metadata"], "owner after mutating")
        old_stored = live if endpoint.custom else endpoint.stored(live)
        stored = new if endpoint.custom else endpoint.stored(new)
        metadata = stored["metadata"]
        keep_system(metadata, old_stored["metadata"])
        resource = endpoint.resource
        hook = self.hooks.get((endpoint.group, endpoint.plural))
        undo = None
        resource.prepare_update(stored, old_stored, endpoint.version, subresource)
        metadata = stored["metadata"]
        if subresource == "status":
            keep_reset(metadata, old_stored["metadata"], reset_metadata(endpoint))
        try:
            if hook is not None:
                undo = await hook.before_update(call, stored, old_stored, subresource, options.dry_run)
            causes = resource.validate_update(stored, old_stored, subresource)
            if causes:
                raise self.invalid(endpoint, stored, causes)
            if not subresource:
                for text in resource.warnings(stored, old_stored):
                    call.warn(text)
            request.object = stored if endpoint.native else endpoint.convert(stored, endpoint.version)
            await self.admission.validate(request)
            asked = stored
            if endpoint.custom:
                stored = await kept(endpoint, stored)
                metadata = stored["metadata"]
            if (
                metadata.get("deletionTimestamp")
                and not metadata.get("finalizers")
                and self._may_vanish(endpoint, stored)
            ):
                done = await self._remove(endpoint, current, options)
                if not done:
                    if undo is not None:
                        await undo()
                    return None
                if hook is not None and not options.dry_run:
                    await hook.after_delete(call, stored)
                metadata["resourceVersion"] = old_metadata["resourceVersion"]
                return stored, None
            settle_times(stored, old_stored)
            value = rendering.encode_stored(stored)
            if self._same(current, value) and not self._stale(endpoint, current):
                if undo is not None:
                    await undo()
                metadata["resourceVersion"] = old_metadata["resourceVersion"]
                return stored, current
            _check_size(value)
            if options.dry_run:
                metadata["resourceVersion"] = old_metadata["resourceVersion"]
                return stored, None
            cache = endpoint.cache
            assert cache is not None
            lease = 0
            ttl = self.ttl.get((endpoint.storage.resource.group, endpoint.plural))
            if ttl is not None:
                lease = await ttl(stored)
            result = await self.hub.store.update(
                cache.prefix + current.key.encode(), value, current.version, lease=lease
            )
        except BaseException:
            if undo is not None:
                await undo()
            raise
        if not result.succeeded:
            if undo is not None:
                await undo()
            if wanted:
                raise modified(endpoint.group, endpoint.plural, info.name)
            return None
        if hook is not None:
            await hook.after_update(call, stored, old_stored)
        metadata["resourceVersion"] = str(result.revision)
        _remember(endpoint, asked, result.revision)
        return stored, Item(current.key, result.revision, with_version(value, result.revision))

    def _stale(self, endpoint: Endpoint, current: Item) -> bool:
        """Whether what is stored wants to be written again, changed or not: in the newest cipher."""
        stale: set[bytes] = getattr(self.hub.store, "stale", set())
        return bool(stale) and endpoint.cache is not None and endpoint.cache.prefix + current.key.encode() in stale

    def _same(self, current: Item, value: bytes) -> bool:
        """Whether a value is what is stored already."""
        body = with_version(value, current.version)
        if body == current.body:
            return True
        # The same content may have its keys in another order.
        return len(body) == len(current.body) and equal(orjson.loads(b"{" + body), current.decode())

    def _may_vanish(self, endpoint: Endpoint, stored: Object) -> bool:
        """Whether an object that is being deleted goes when its last finalizer does."""
        if (endpoint.group, endpoint.plural) == ("", "namespaces"):
            return not (stored.get("spec") or {}).get("finalizers")
        if (endpoint.group, endpoint.plural) == ("", "pods"):
            return bool(stored["metadata"].get("deletionGracePeriodSeconds", 0) == 0)
        return not stored["metadata"].get("deletionGracePeriodSeconds")

    async def _remove(self, endpoint: Endpoint, current: Item, options: WriteOptions) -> bool:
        if options.dry_run:
            return True
        cache = endpoint.cache
        assert cache is not None
        result = await self.hub.store.delete_at(cache.prefix + current.key.encode(), current.version)
        return bool(result.succeeded) or result.kv is None

    # Checks.

    def invalid(self, endpoint: Endpoint, obj: Object, causes: Any) -> StatusError:
        """422 with everything that is wrong."""
        name = obj["metadata"].get("name", "")
        group = endpoint.storage.resource.group  # of the kind that is kept: an event is always the core group's
        return invalid(group, endpoint.kind, name, [Cause(**c.cause()) for c in causes])

    def _metadata(self, endpoint: Endpoint, obj: Object) -> Object:
        metadata = obj.get("metadata")
        if not isinstance(metadata, dict):
            metadata = obj["metadata"] = {}
        return metadata

    def _match_name(self, metadata: Object, name: str) -> None:
        have = metadata.get("name")
        if not have:
            raise bad_request(f"the name of the object ({name} based on URL) was undeterminable: name must be provided")
        if have != name:
            raise bad_request(f"the name of the object ({have}) does not match the name on the URL ({name})")

    def _match_namespace(self, endpoint: Endpoint, metadata: Object, namespace: str) -> None:
        if not endpoint.namespaced:
            metadata.pop("namespace", None)
            return
        have = metadata.get("namespace")
        if not have:
            metadata["namespace"] = namespace
        elif have != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")

    def _generate(self, base: str) -> str:
        return base[:58] + random_suffix()

    def _bad_version(self, endpoint: Endpoint, name: str, text: str) -> StatusError:
        message = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        return StatusError(500, "", message)

    def _uid_conflict(self, endpoint: Endpoint, current: Item, uid: str, have: str) -> StatusError:
        cache = endpoint.cache
        assert cache is not None
        why = (
            f"StorageError: invalid object, Code: 4, Key: {(cache.prefix + current.key.encode()).decode()}, ResourceVersion: 0,"
            f" AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {have}"
        )
        return conflict(endpoint.group, endpoint.plural, current.name, why)


def converted(endpoint: Endpoint, obj: Object) -> None:
    """What upstream's conversion to the internal form makes equal: a pod's podIP and the first of its podIPs."""
    if endpoint.plural == "daemonsets" and endpoint.group == "apps":
        annotations = obj["metadata"].setdefault("annotations", {})
        annotations.setdefault("deprecated.daemonset.template.generation", "0")
        return
    if endpoint.plural != "pods" or endpoint.group:
        return
    status = obj.get("status") or {}
    first, every = status.get("podIP"), status.get("podIPs")
    if first and (not every or every[0].get("ip") != first):
        status["podIPs"] = [{"ip": first}]
    elif every and not first:
        status["podIP"] = every[0].get("ip", "")


def _remember(endpoint: Endpoint, obj: Object, version: int) -> None:
    """What was just stored is known in the version in which it was sent."""
    if endpoint.foreign and endpoint.storage.conversions is not None:
        metadata = {**obj["metadata"], "resourceVersion": str(version)}
        endpoint.storage.conversions.keep({**obj, "metadata": metadata}, endpoint.version, str(version))


def _copy(value: Any) -> Any:
    """A deep copy of a JSON tree."""
    if value.__class__ is dict:
        return {k: _copy(v) if v.__class__ is dict or v.__class__ is list else v for k, v in value.items()}
    if value.__class__ is list:
        return [_copy(v) if v.__class__ is dict or v.__class__ is list else v for v in value]
    return value


def copy_tree(value: Object) -> Object:
    """A deep copy of a JSON object: the round trip through octets takes a third of the walk."""
    try:
        found: Object = orjson.loads(orjson.dumps(value))
    except TypeError:  # a number past 64 bits
        return _copy(value)  # type: ignore[no-any-return]
    return found


def _check_size(value: bytes) -> None:
    if len(value) > MAX_OBJECT:
        raise request_entity_too_large(f"limit is {MAX_OBJECT}")
