"""A collection's live copy: list once, watch from there, tell handlers what changed.

One informer per resource is shared by everything in a process (`InformerFactory`), because each holds the objects.
Source: client-go's tools/cache, described behaviour.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from sys import intern
from typing import Any, Protocol

import orjson

from longshore.client.resources import Resource
from longshore.client.rest import Client
from longshore.client.store import IndexFunction, Object, Store, by_namespace, key_of
from longshore.machinery.errors import StatusError

log = logging.getLogger("longshore.client.informer")

WATCH_SECONDS = (
    300  # the shortest that we ask a watch to last; up to twice that, so that watches end at different times
)
WATCH_SLACK_SECONDS = 30.0
SHORTEST_WATCH_SECONDS = 1.0
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
BACKOFF_START, BACKOFF_END = 0.1, 30.0


class Handler(Protocol):
    """What is told of changes. Calls come from the event loop, in the order of the changes; they must not block."""

    def on_add(self, obj: Object) -> None: ...
    def on_update(self, old: Object, new: Object) -> None: ...
    def on_delete(self, obj: Object) -> None: ...


class Callbacks:
    """A Handler made of functions; what is not given is ignored."""

    __slots__ = ("_add", "_delete", "_update")

    def __init__(
        self,
        add: Callable[[Object], Any] | None = None,
        update: Callable[[Object, Object], Any] | None = None,
        delete: Callable[[Object], Any] | None = None,
    ) -> None:
        self._add, self._update, self._delete = add, update, delete

    def on_add(self, obj: Object) -> None:
        if self._add is not None:
            self._add(obj)

    def on_update(self, old: Object, new: Object) -> None:
        if self._update is not None:
            self._update(old, new)

    def on_delete(self, obj: Object) -> None:
        if self._delete is not None:
            self._delete(obj)


def strip_managed_fields(obj: Object) -> Object:
    """Drop metadata.managedFields, which no controller reads and which is often half of an object."""
    obj["metadata"].pop("managedFields", None)
    return obj


# The last pod seen in each state (phase, whether it has a node) of each controller (its UID); nodes: of no controller.
_siblings: dict[str, dict[tuple[str, bool], Object]] = {}
SIBLINGS = 8192
_NODE = ("Node", False)
# What was met lately, and before that: what nobody asks for any more goes with the older ones.
_parts: dict[bytes, Any] = {}
_older_parts: dict[bytes, Any] = {}
PARTS = 2048
# Texts that several objects, or several places of one, have in common.
_COMMON = frozenset(
    ("creationTimestamp", "hostIP", "ip", "lastTransitionTime", "name", "nodeName", "podIP", "startTime", "startedAt")
)


def compact(obj: Object) -> Object:
    """strip_managed_fields, and let a pod share with the last one of its controller in the same state whatever is equal in both.

    Pods of one controller differ in a few names and times; a copy of a hundred thousand of them is mostly the same
    few templates. Objects of an informer are never changed, so that they may share parts.
    """
    meta = obj["metadata"]
    meta.pop("managedFields", None)
    controller = _controller(obj)
    if controller and "spec" in obj:
        _share_with_sibling(controller, ((obj.get("status") or {}).get("phase", ""), "nodeName" in obj["spec"]), obj)
        _pool(meta, obj["spec"], obj.get("status") or {})
    return obj


def forget(obj: Object) -> None:
    """A pod is gone: what is kept of it for its siblings goes as well, or each controller that ever was would leave a pod."""
    controller = _controller(obj)
    known = _siblings.get(controller)
    if not controller or known is None:
        return
    uid = obj["metadata"].get("uid")
    for state in [state for state, kept in known.items() if kept["metadata"].get("uid") == uid]:
        del known[state]
    if not known:
        del _siblings[controller]


def _controller(obj: Object) -> str:
    """The UID of the object's controller, "" where there is none."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def _share_with_sibling(controller: str, state: tuple[str, bool], obj: Object) -> None:
    known = _siblings.get(controller)
    if known is None:
        if len(_siblings) >= SIBLINGS:
            _siblings.clear()
        known = _siblings[controller] = {}
    elif state in known:
        _share(known[state], obj)
    known[state] = obj


def compact_node(obj: Object) -> Object:
    """The same for a node: machines of a kind differ in their names, addresses and times."""
    obj["metadata"].pop("managedFields", None)
    _share_with_sibling("", _NODE, obj)
    status = obj.get("status") or {}
    for key in ("capacity", "allocatable", "conditions", "nodeInfo", "images"):
        if part := status.get(key):
            status[key] = _one_for_all(part)
    return obj


def _pool(meta: Object, spec: Object, status: Object) -> None:
    """What pods of one zone, of one node, of one second have in common, whosever they are."""
    holders = [(meta, "labels"), (spec, "tolerations"), (status, "hostIPs"), (status, "conditions")]
    holders += [(volume, "projected") for volume in spec.get("volumes") or ()]
    holders += [(container, "state") for container in status.get("containerStatuses") or ()]
    for holder, key in holders:
        part = holder.get(key)
        if part:
            holder[key] = _one_for_all(part)


def _one_for_all(part: Any) -> Any:
    """The part that was the first of all that are equal to this one."""
    global _parts, _older_parts
    key = bytes(memoryview(orjson.dumps(part)))  # a copy: as it comes it holds 4 KB
    found = _parts.get(key)
    if found is None:
        if len(_parts) >= PARTS:
            _older_parts, _parts = _parts, {}
        found = _parts[key] = _older_parts.get(key, part)
    return found


def _share(old: Any, new: Any) -> None:
    """Put parts of old in the place of equal parts of new, in place."""
    if new.__class__ is dict:
        for key, value in new.items():
            known = old.get(key)
            if known == value:
                if known is not value and known.__class__ is value.__class__:
                    new[key] = known  # no key is added: the dict may be walked on
            elif value.__class__ is str:
                if key in _COMMON:
                    new[key] = intern(value)
            elif known.__class__ is value.__class__ and (value.__class__ is dict or value.__class__ is list):
                _share(known, value)
        return
    for index, (known, value) in enumerate(zip(old, new, strict=False)):
        if known == value:
            if known is not value and known.__class__ is value.__class__:
                new[index] = known
        elif known.__class__ is value.__class__ and (value.__class__ is dict or value.__class__ is list):
            _share(known, value)


_TRANSFORMS = {"Pod": compact, "Node": compact_node}


class Informer:
    """The live copy of one collection.

    A caller may rely on: `store` never goes back in time for one object; every state that the store takes is told
    to every handler, and a handler added late first gets an add for everything that is there; after a gap (410,
    restart of the server) the difference is told as adds, updates and deletes, so that nothing is missed, though
    states in between may be; `synced` is true once the first list was told in full.
    Not to be relied on: that two informers are at the same version, or that an object just written is already here.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        indexers: dict[str, IndexFunction] | None = None,
        transform: Callable[[Object], Object] | None = None,
        accept: str = "",
    ) -> None:
        """accept: METADATA_ONLY for a copy that knows only the objects' metadata, and is that much smaller."""
        self.client = client
        self.accept = accept
        self.resource = resource
        self.namespace = namespace
        self.label_selector = label_selector
        self.field_selector = field_selector
        self.store = Store({"namespace": by_namespace, **(indexers or {})})
        self.resource_version = ""
        self._transform = transform or _TRANSFORMS.get(resource.kind, strip_managed_fields)
        self._handlers: list[Handler] = []
        self._synced = asyncio.Event()

    @property
    def synced(self) -> bool:
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Return when the first list has been stored and told."""
        await self._synced.wait()

    def add_handler(self, handler: Handler) -> None:
        """Tell handler of all changes from now on, after an add for each object that is there already."""
        self._handlers.append(handler)
        for obj in self.store:
            self._call(handler.on_add, obj)

    def on(
        self,
        add: Callable[[Object], Any] | None = None,
        update: Callable[[Object, Object], Any] | None = None,
        delete: Callable[[Object], Any] | None = None,
    ) -> None:
        """add_handler with functions."""
        self.add_handler(Callbacks(add, update, delete))

    async def run(self) -> None:
        """List and watch until cancelled. Errors are logged and tried again with growing, jittered pauses."""
        pause = BACKOFF_START
        failing = False
        while True:
            try:
                if not self.resource_version:
                    await self._list(stale=not self.synced)
                if failing:
                    log.info("%s: connected again", self.resource)
                    failing = False
                begun = time.monotonic()
                await self._watch()
                if time.monotonic() - begun > SHORTEST_WATCH_SECONDS:
                    pause = BACKOFF_START
                    continue
                # A server that ends watches at once must not be asked in a tight loop.
            except StatusError as error:
                if error.code == 410 or error.reason in ("Expired", "Gone"):
                    self.resource_version = ""
                    log.debug("%s: %s; listing again", self.resource, error)
                elif error.code == 404 and not self.resource_version:
                    # Not served (by an older server, or not yet): nothing is there, and others need not wait for it.
                    log.log(logging.DEBUG if failing else logging.INFO, "%s is not served", self.resource)
                    self._synced.set()
                    failing = True
                else:
                    log.log(logging.DEBUG if failing else logging.WARNING, "%s: %s", self.resource, error)
                    failing = True
            except (TimeoutError, OSError, EOFError) as error:
                log.log(logging.DEBUG if failing else logging.INFO, "%s: %s", self.resource, error or type(error))
                failing = True
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, BACKOFF_END)

    async def _list(self, stale: bool) -> None:
        answer = await self.client.list(
            self.resource,
            self.namespace,
            label_selector=self.label_selector,
            field_selector=self.field_selector,
            resource_version="0" if stale else "",
            accept=self.accept.replace("PartialObjectMetadata", "PartialObjectMetadataList"),
        )
        items: list[Object] = answer["items"]
        answer["items"] = ()
        fresh: set[str] = set()
        for item in items:
            obj = self._transform(item)
            fresh.add(key_of(obj))
            self._changed(obj)
        for key in [k for k in self.store.keys() if k not in fresh]:  # noqa: SIM118
            self._deleted(key, None)
        self.resource_version = answer.get("metadata", {}).get("resourceVersion", "")
        self._synced.set()

    async def _watch(self) -> None:
        seconds = int(WATCH_SECONDS * (1 + random.random()))
        events = self.client.watch(
            self.resource,
            self.namespace,
            resource_version=self.resource_version,
            label_selector=self.label_selector,
            field_selector=self.field_selector,
            timeout_seconds=seconds,
            accept=self.accept,
        )
        try:
            async with asyncio.timeout(seconds + WATCH_SLACK_SECONDS):
                async for batch in events:
                    for kind, obj in batch:
                        if kind == "BOOKMARK":
                            self.resource_version = obj["metadata"]["resourceVersion"]
                            continue
                        obj = self._transform(obj)
                        if kind == "DELETED":
                            self._deleted(key_of(obj), obj)
                        else:
                            self._changed(obj)
                        self.resource_version = obj["metadata"]["resourceVersion"]
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    def _changed(self, obj: Object) -> None:
        # Items of a list carry no kind of their own; with it, events and owner references need no look-up.
        if self.resource.kind and (self.accept or "kind" not in obj):
            obj["kind"] = self.resource.kind
            obj["apiVersion"] = self.resource.api_version
        key = key_of(obj)
        old = self.store.put(key, obj)
        if old is None:
            for handler in self._handlers:
                self._call(handler.on_add, obj)
        elif old["metadata"].get("uid") != obj["metadata"].get("uid"):
            # Deleted and made again while we were not looking.
            forget(old)
            for handler in self._handlers:
                self._call(handler.on_delete, old)
                self._call(handler.on_add, obj)
        elif old["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
            for handler in self._handlers:
                self._call(handler.on_update, old, obj)

    def _deleted(self, key: str, last: Object | None) -> None:
        old = self.store.remove(key)
        forget(last or old or {"metadata": {}})
        if old is None:
            return
        if last is not None and "kind" not in last:
            last["kind"], last["apiVersion"] = old.get("kind", ""), old.get("apiVersion", "")
        for handler in self._handlers:
            self._call(handler.on_delete, last or old)

    def _call(self, function: Callable[..., None], *args: Object) -> None:
        try:
            function(*args)
        except Exception:
            log.exception("%s: a handler failed", self.resource)


class InformerFactory:
    """One informer per resource and selector, shared by everything in the process."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._informers: dict[tuple[Any, ...], Informer] = {}
        self._tasks: dict[tuple[Any, ...], asyncio.Task[None]] = {}
        self._started = False

    def informer(
        self,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        indexers: dict[str, IndexFunction] | None = None,
    ) -> Informer:
        """The informer of a resource (made on first use, started with the factory); indexers are added to it."""
        key = (resource.group, resource.plural, namespace, label_selector, field_selector)
        found = self._informers.get(key)
        if found is None:
            found = self._informers[key] = Informer(
                self.client,
                resource,
                namespace=namespace,
                label_selector=label_selector,
                field_selector=field_selector,
            )
            if self._started:
                self._tasks[key] = asyncio.create_task(found.run(), name=f"informer {resource}")
        for name, function in (indexers or {}).items():
            found.store.add_index(name, function)
        return found

    def existing(self, resource: Resource) -> Informer | None:
        """The informer of a whole resource when somebody has asked for it already."""
        return self._informers.get((resource.group, resource.plural, "", "", ""))

    def start(self) -> None:
        """Run every informer, and those that are asked for from now on."""
        self._started = True
        for key, informer in self._informers.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(informer.run(), name=f"informer {informer.resource}")

    async def wait_synced(self, informers: Iterable[Informer] | None = None) -> None:
        """Return when these informers (all: None) have told their first list."""
        for informer in list(self._informers.values() if informers is None else informers):
            await informer.wait_synced()

    async def stop(self) -> None:
        """Cancel all watches."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        self._started = False
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
