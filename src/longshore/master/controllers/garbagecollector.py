"""Garbage collection: what has no owner any more goes; foreground and orphan deletions are finished.

Every served resource is watched: by the informers that other controllers share, and for the rest by copies that know
only metadata. From them grows a graph of owners (by uid). A key of the queue is a uid.
Source: kubernetes pkg/controller/garbagecollector, described behaviour.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from longshore.client.discovery import discover
from longshore.client.informer import METADATA_ONLY, Informer
from longshore.client.resources import CUSTOM_RESOURCE_DEFINITIONS, Resource
from longshore.client.rest import is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

log = logging.getLogger("longshore.controllers.gc")

IGNORED = frozenset({("", "events"), ("events.k8s.io", "events")})
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
ABSENT_SECONDS = 30.0
NOBODY: set[str] = set()  # of most items: a set of its own would be half of what an item takes. Never added to.
DISCOVERY_PAUSE_SECONDS = 1.0


@dataclass(slots=True)
class Item:
    """One object of the graph. Virtual: known only from the references of its dependents."""

    uid: str
    resource: Resource | None
    namespace: str
    name: str
    owners: list[Object] = field(default_factory=list)
    dependents: set[str] = field(default_factory=lambda: NOBODY)
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    virtual: bool = False

    @property
    def foreground(self) -> bool:
        return self.deleting and FOREGROUND in self.finalizers

    @property
    def orphaning(self) -> bool:
        return self.deleting and ORPHAN in self.finalizers


class GarbageCollector(Controller):
    """Deletes objects whose owners are gone."""

    name = "garbage-collector-controller"
    account = "generic-garbage-collector"
    component = "garbage-collector-controller"
    workers = 20

    def setup(self) -> None:
        self.items: dict[str, Item] = {}
        self._absent: dict[tuple[str, str], float] = {}  # (uid, namespace) of owners that the server does not have
        self._watching: dict[Resource, Informer] = {}
        self._tasks_of: dict[Resource, asyncio.Task[None]] = {}
        self._by_kind: dict[tuple[str, str], Resource] = {}
        self._rediscover = asyncio.Event()
        self._complete = asyncio.Event()  # the graph has been whole once
        self.definitions = self.watch(
            CUSTOM_RESOURCE_DEFINITIONS,
            add=lambda o: self._rediscover.set(),
            update=lambda old, new: self._rediscover.set(),
            delete=lambda o: self._rediscover.set(),
        )

    async def run(self) -> None:
        finder = asyncio.create_task(self._find_resources())
        try:
            await super().run()
        finally:
            finder.cancel()
            for task in self._tasks_of.values():
                task.cancel()

    async def started(self) -> None:
        await self._complete.wait()

    async def _find_resources(self) -> None:
        """Watch what can be deleted; look again when definitions change."""
        while True:
            self._rediscover.clear()
            try:
                found = await discover(self.client)
            except (StatusError, OSError, TimeoutError) as error:
                log.info("discovery: %s", error)
                await asyncio.sleep(DISCOVERY_PAUSE_SECONDS)
                continue
            wanted = {
                s.resource
                for s in found.served
                if {"list", "watch", "delete"} <= s.verbs and (s.resource.group, s.resource.plural) not in IGNORED
            }
            self._by_kind = {(r.group, r.kind): r for r in wanted}
            for resource in wanted - self._watching.keys():
                self._start(resource)
            # What has an owner of a kind that was not served then may be judged now: the owner may be gone by this time.
            for item in self.items.values():
                if item.virtual and item.resource is None:
                    for dependent in item.dependents:
                        self.queue.add(dependent)
            if not found.failures:
                for resource in self._watching.keys() - wanted:
                    self._stop(resource)
            if not self._complete.is_set():
                for informer in self._watching.values():
                    await informer.wait_synced()
                self._complete.set()
            if found.failures:
                await asyncio.sleep(DISCOVERY_PAUSE_SECONDS * 5)
                continue
            await self._rediscover.wait()
            await asyncio.sleep(DISCOVERY_PAUSE_SECONDS)  # definitions come in crowds, and are served a little later

    def _start(self, resource: Resource) -> None:
        shared = self.context.informers.existing(resource)
        if shared is not None:
            informer = shared
        else:
            informer = Informer(self.context.client, resource, accept=METADATA_ONLY)
            self._tasks_of[resource] = asyncio.create_task(informer.run(), name=f"metadata {resource}")
        self._watching[resource] = informer
        informer.on(
            lambda o: self._seen(resource, o),
            lambda old, new: self._seen(resource, new),
            lambda o: self._gone(o),
        )

    def _stop(self, resource: Resource) -> None:
        task = self._tasks_of.pop(resource, None)
        if task is None:
            return  # shared with others: it stays
        task.cancel()
        informer = self._watching.pop(resource)
        for obj in informer.store:
            self._gone(obj)

    # -- the graph -------------------------------------------------------------------------------------------------------

    def _seen(self, resource: Resource, obj: Object) -> None:
        meta = obj["metadata"]
        uid = meta["uid"]
        item = self.items.get(uid)
        fresh = item is None or item.virtual
        if item is None:
            item = self.items[uid] = Item(uid, resource, meta.get("namespace", ""), meta["name"])
        item.resource, item.namespace, item.name, item.virtual = (
            resource,
            meta.get("namespace", ""),
            meta["name"],
            False,
        )
        owners = meta.get("ownerReferences") or []
        was_deleting, was_foreground = item.deleting, item.foreground
        had = {o["uid"] for o in item.owners}
        released = had - {o["uid"] for o in owners if o.get("blockOwnerDeletion")}
        item.owners = owners
        item.deleting = bool(meta.get("deletionTimestamp"))
        item.finalizers = tuple(meta.get("finalizers") or ())
        have = {o["uid"] for o in owners}
        for gone in had - have:
            self._unlink(gone, uid)
        for ref in owners:
            if ref["uid"] not in had:
                self._link(ref, item)
        if item.orphaning or (item.foreground and (not was_foreground or fresh)):
            self.queue.add(uid)
            if item.foreground:
                for dependent in item.dependents:
                    self.queue.add(dependent)
        elif owners and (fresh or had != have or (was_deleting != item.deleting)):
            self._judge_later(item)
        for owner in released:
            # An owner that waits for its dependents may wait no longer.
            if owner in self.items and self.items[owner].foreground:
                self.queue.add(owner)

    def _judge_later(self, item: Item) -> None:
        """Queue an item when one of its owners may be gone."""
        for ref in item.owners:
            owner = self.items.get(ref["uid"])
            if owner is None or owner.virtual or owner.foreground or not _may_own(owner, item):
                self.queue.add(item.uid)
                return

    def _link(self, ref: Object, item: Item) -> None:
        owner = self.items.get(ref["uid"])
        if owner is None:
            resource = self._by_kind.get((_group(ref), ref["kind"]))
            namespace = item.namespace if resource is None or resource.namespaced else ""
            owner = self.items[ref["uid"]] = Item(ref["uid"], resource, namespace, ref["name"], virtual=True)
        if owner.dependents is NOBODY:
            owner.dependents = set()
        owner.dependents.add(item.uid)

    def _unlink(self, owner_uid: str, uid: str) -> None:
        owner = self.items.get(owner_uid)
        if owner is not None:
            owner.dependents.discard(uid)
            if owner.virtual and not owner.dependents:
                del self.items[owner_uid]

    def _gone(self, obj: Object) -> None:
        uid = obj["metadata"]["uid"]
        item = self.items.pop(uid, None)
        if item is None:
            return
        self._absent[(uid, item.namespace)] = time.monotonic()
        if len(self._absent) > 5000:
            limit = time.monotonic() - ABSENT_SECONDS
            self._absent = {k: t for k, t in self._absent.items() if t > limit}
        for ref in item.owners:
            owner = self.items.get(ref["uid"])
            self._unlink(ref["uid"], uid)
            if owner is not None and owner.foreground:
                self.queue.add(owner.uid)
        if item.dependents:
            # They still refer to it: a virtual owner, so that they are found again.
            rest = Item(uid, item.resource, item.namespace, item.name, virtual=True)
            rest.dependents = item.dependents
            self.items[uid] = rest
            for dependent in item.dependents:
                self.queue.add(dependent)

    # -- reconcile -------------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        item = self.items.get(key)
        if item is None or item.virtual or item.resource is None:
            return None
        if item.orphaning:
            await self._orphan(item)
            return None
        if item.foreground:
            await self._finish_foreground(item)
            return None
        if item.deleting or not item.owners:
            return None
        return await self._judge(item)

    async def _judge(self, item: Item) -> float | None:
        """Delete the item when no owner is left, drop references to owners that are gone when one is."""
        assert item.resource is not None
        solid: list[Object] = []
        dangling: list[Object] = []
        waiting: list[Object] = []
        for ref in item.owners:
            state = await self._owner_state(ref, item)
            (solid if state == "there" else waiting if state == "waiting" else dangling).append(ref)
        if not dangling and not waiting:
            return None
        try:
            latest = await self.client.get(item.resource, item.name, item.namespace)
        except StatusError as error:
            if is_not_found(error):
                return None
            raise
        if latest["metadata"]["uid"] != item.uid:
            return None
        if (latest["metadata"].get("ownerReferences") or []) != item.owners:
            return 0.5  # the graph is behind
        if solid:
            stale = {r["uid"] for r in (*dangling, *waiting)}
            await self._drop_references(item, stale)
            return None
        if waiting and item.dependents:
            # Somebody waits for us in the foreground, and we have dependents: so do we.
            policy = "Foreground"
            if any(d in self.items and self.items[d].foreground for d in item.dependents):
                # A circle, perhaps: our owners do not wait for us.
                freed = [{**o, "blockOwnerDeletion": False} for o in item.owners]
                await self._patch(item, {"metadata": {"uid": item.uid, "ownerReferences": freed}})
        else:
            finalizers = latest["metadata"].get("finalizers") or []
            policy = "Orphan" if ORPHAN in finalizers else "Foreground" if FOREGROUND in finalizers else "Background"
        try:
            await self.client.delete(
                item.resource,
                item.name,
                item.namespace,
                propagation=policy,  # type: ignore[arg-type]
                uid=item.uid,
                resource_version=latest["metadata"]["resourceVersion"] if dangling and not waiting else "",
            )
        except StatusError as error:
            if not is_not_found(error):
                raise
        return None

    async def _owner_state(self, ref: Object, item: Item) -> str:
        """ "there", "gone", or "waiting" (being deleted in the foreground, for dependents that block it)."""
        owner = self.items.get(ref["uid"])
        if owner is not None and not owner.virtual:
            if not _may_own(owner, item):
                return "gone"
            return "waiting" if owner.foreground and ref.get("blockOwnerDeletion") else "there"
        resource = self._by_kind.get((_group(ref), ref["kind"]))
        if resource is None:
            return "there"  # of a kind that is not served (any more, or yet): nothing is known
        namespace = item.namespace if resource.namespaced else ""
        if resource.namespaced and not namespace:
            self._warn_of_reference(item, ref)
            return "there"
        seen = self._absent.get((ref["uid"], namespace))
        if seen is not None and time.monotonic() - seen < ABSENT_SECONDS:
            return "gone"
        try:
            found = await self.client.get(resource, ref["name"], namespace)
        except StatusError as error:
            if not is_not_found(error):
                raise
            found = None
        if found is None or found["metadata"]["uid"] != ref["uid"]:
            self._absent[(ref["uid"], namespace)] = time.monotonic()
            return "gone"
        meta = found["metadata"]
        waits = meta.get("deletionTimestamp") and FOREGROUND in (meta.get("finalizers") or ())
        return "waiting" if waits and ref.get("blockOwnerDeletion") else "there"

    def _warn_of_reference(self, item: Item, ref: Object) -> None:
        assert item.resource is not None
        involved = {
            "kind": item.resource.kind,
            "apiVersion": item.resource.api_version,
            "name": item.name,
            "uid": item.uid,
        }
        reference = f"[{ref['apiVersion']}/{ref['kind']}, namespace: , name: {ref['name']}, uid: {ref['uid']}]"
        message = f'ownerRef {reference} does not exist in namespace "{item.namespace}"'
        self.recorder.event(involved, "Warning", "OwnerRefInvalidNamespace", message)

    async def _drop_references(self, item: Item, uids: set[str]) -> None:
        assert item.resource is not None
        kept = [o for o in item.owners if o["uid"] not in uids]
        patch = {"metadata": {"uid": item.uid, "ownerReferences": kept or None}}
        await self._patch(item, patch)

    async def _patch(self, item: Item, patch: Object) -> None:
        assert item.resource is not None
        try:
            await self.client.patch(item.resource, item.name, patch, item.namespace)
        except StatusError as error:
            if error.code not in (404, 409, 422):
                raise

    async def _orphan(self, item: Item) -> None:
        """Let the dependents go, then the item."""
        for uid in list(item.dependents):
            dependent = self.items.get(uid)
            if dependent is not None and dependent.resource is not None and not dependent.virtual:
                await self._drop_references(dependent, {item.uid})
        await self._remove_finalizer(item, ORPHAN)

    async def _finish_foreground(self, item: Item) -> None:
        blocking = []
        for uid in list(item.dependents):
            dependent = self.items.get(uid)
            if dependent is None or dependent.virtual:
                continue
            ref = next((o for o in dependent.owners if o["uid"] == item.uid), None)
            if ref is not None and ref.get("blockOwnerDeletion"):
                blocking.append(dependent)
        if not blocking:
            await self._remove_finalizer(item, FOREGROUND)
            return
        for dependent in blocking:
            if not dependent.deleting:
                self.queue.add(dependent.uid)

    async def _remove_finalizer(self, item: Item, name: str) -> None:
        assert item.resource is not None
        try:
            latest = await self.client.get(item.resource, item.name, item.namespace)
        except StatusError as error:
            if is_not_found(error):
                return
            raise
        finalizers = [f for f in latest["metadata"].get("finalizers") or () if f != name]
        meta = {
            "resourceVersion": latest["metadata"]["resourceVersion"],
            "uid": item.uid,
            "finalizers": finalizers or None,
        }
        try:
            await self.client.patch(item.resource, item.name, {"metadata": meta}, item.namespace)
        except StatusError as error:
            if not is_not_found(error):
                raise


def _group(ref: Object) -> str:
    group, slash, _ = ref["apiVersion"].partition("/")
    return group if slash else ""


def _may_own(owner: Item, item: Item) -> bool:
    """An owner is cluster-wide or of the same namespace."""
    return not owner.namespace or owner.namespace == item.namespace
