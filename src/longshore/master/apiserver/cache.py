"""The watch cache: every object as the bytes that clients get, and the recent events of each resource.

One watch on the store feeds all caches. An object is kept as `body`, its JSON from `"metadata":` on with the
resourceVersion inside; the head (kind and apiVersion) is put before it when it goes out: so a GET is two pieces, a LIST
a join, and a watch event is made once for all watchers that want the same form.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import orjson

from longshore.machinery.errors import StatusError
from longshore.machinery.sorted_keys import SortedKeys
from longshore.master.apiserver import keys as store_keys
from longshore.master.apiserver.fanout import Fanout

log = logging.getLogger("longshore.apiserver.cache")
ASK_SECONDS = 0.2
FRESH_SECONDS = 30.0
RING_EVENTS = 1024
RING_BYTES = 4 * 1024 * 1024
_METADATA = b'"metadata":'
_UID = b'"uid":"'
_VERSION = b',"resourceVersion":"%d"'


def with_version(value: bytes, version: int) -> bytes:
    """A stored value as a body: cut before `"metadata":`, the resourceVersion put in behind the uid."""
    start = value.find(_METADATA)
    uid = value.find(_UID, start)
    if start < 0 or uid < 0:
        obj = orjson.loads(value)
        metadata = obj.get("metadata") or {}
        metadata["resourceVersion"] = str(version)
        rest = {k: v for k, v in obj.items() if k not in ("kind", "apiVersion", "metadata")}
        return orjson.dumps({"metadata": metadata, **rest})[1:]
    end = value.index(b'"', uid + 7) + 1
    return b"".join((value[start:end], _VERSION % version, value[end:]))


def change_version(body: bytes, old: int, new: int) -> bytes:
    """The body with another resourceVersion (for the last state of a deleted object)."""
    return body.replace(_VERSION % old, _VERSION % new, 1)


class Item:
    """One version of one object. Never changed; what is derived from it is kept with it."""

    __slots__ = ("_labels", "_meta", "body", "fields", "key", "version")

    def __init__(self, key: str, version: int, body: bytes) -> None:
        self.key = key
        self.version = version
        self.body = body
        self._labels: Any = None
        self.fields: dict[str, dict[str, str]] | None = (
            None  # version ("" for built-in kinds) -> what selectors ask for
        )

    def decode(self) -> dict[str, Any]:
        """A fresh dict of the object, without kind and apiVersion."""
        obj: dict[str, Any] = orjson.loads(b"{" + self.body)
        return obj

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def namespace(self) -> str:
        return self.key.rpartition("/")[0]

    @property
    def labels(self) -> dict[str, str]:
        if self._labels is None:
            self._labels = self.decode()["metadata"].get("labels") or {}
        labels: dict[str, str] = self._labels
        return labels


class CacheEvent:
    """A change of one object. For DELETED, `item` is its last state with the version of the deletion."""

    __slots__ = ("forms", "item", "previous", "type", "version")

    def __init__(self, type: str, item: Item, previous: Item | None, version: int) -> None:
        self.type = type
        self.item = item
        self.previous = previous
        self.version = version
        self.forms: dict[Any, bytes] = {}


class ResourceCache:
    """The objects of one resource, sorted by key, with a ring of recent events."""

    def __init__(self, folder: str, head: Callable[[], tuple[str, str]] | None = None) -> None:
        self.folder = folder
        self.prefix = (store_keys.ROOT + folder + "/").encode()
        self.items: dict[str, Item] = {}
        self.keys: SortedKeys[str] = SortedKeys()
        self.ring: deque[CacheEvent] = deque()
        self.ring_bytes = 0
        self.ring_floor = 0  # events after this version are all in the ring
        self.version = 0  # of the newest event or of the load
        self.generation = 0
        self.fanout = Fanout()
        self.loading: list[tuple[bytes, int, bytes | None]] | None = None
        self.listeners: list[Callable[[CacheEvent], None]] = []
        self._head = head

    def _slices(self, namespace: str, start: str) -> Iterator[list[str]]:
        if not namespace:
            return self.keys.slices(start, None)
        return self.keys.slices(max(start, namespace + "/"), namespace + "0")

    def select(self, namespace: str = "", start: str = "") -> list[Item]:
        """The objects in key order, of one namespace where one is given, from a key on."""
        items = self.items
        return [items[key] for part in self._slices(namespace, start) for key in part]

    def walk(self, namespace: str = "", start: str = "") -> Iterator[Item]:
        """The same one by one. The cache must not change meanwhile."""
        items = self.items
        for part in self._slices(namespace, start):
            for key in part:
                yield items[key]

    def count(self, namespace: str = "", start: str = "") -> int:
        """How many that are."""
        return sum(map(len, self._slices(namespace, start)))

    def load(self, kvs: Iterable[Any], version: int) -> None:
        cut = len(self.prefix)
        self.items = {}
        for kv in kvs:
            key = kv.key[cut:].decode()
            self.items[key] = Item(key, kv.mod_revision, with_version(kv.value, kv.mod_revision))
        self.keys.load(sorted(self.items))
        self.ring.clear()
        self.ring_bytes = 0
        self.ring_floor = self.version = version
        self.generation += 1

    def apply(self, key: bytes, version: int, value: bytes | None) -> CacheEvent | None:
        """One change from the store (value None: deleted)."""
        name = key[len(self.prefix) :].decode()
        previous = self.items.get(name)
        if value is None:
            if previous is None:
                return None
            del self.items[name]
            self.keys.remove(name)
            item = Item(name, version, change_version(previous.body, previous.version, version))
            event = CacheEvent("DELETED", item, previous, version)
        else:
            item = Item(name, version, with_version(value, version))
            self.items[name] = item
            if previous is None:
                self.keys.add(name)
                event = CacheEvent("ADDED", item, None, version)
            else:
                event = CacheEvent("MODIFIED", item, previous, version)
        self.version = version
        self.generation += 1
        self._remember(event)
        for listener in self.listeners:
            listener(event)
        return event

    def _remember(self, event: CacheEvent) -> None:
        ring = self.ring
        ring.append(event)
        self.ring_bytes += len(event.item.body)
        while len(ring) > RING_EVENTS or (self.ring_bytes > RING_BYTES and len(ring) > 16):
            oldest = ring.popleft()
            self.ring_bytes -= len(oldest.item.body)
            self.ring_floor = oldest.version

    def since(self, version: int) -> list[CacheEvent] | None:
        """The events after a version, None when the ring does not reach back that far."""
        if version < self.ring_floor:
            return None
        return [e for e in self.ring if e.version > version]


class Hub:
    """All caches, and the watch on the store that feeds them."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.caches: dict[str, ResourceCache] = {}
        self.version = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._watch: Any = None
        self._task: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] | None = None

    def add(self, cache: ResourceCache) -> None:
        """Register a cache before start()."""
        self.caches[cache.folder] = cache

    async def start(self) -> None:
        """Load everything and begin to follow the store."""
        root = store_keys.ROOT.encode()
        result = await self.store.range(root, root[:-1] + b"0")
        by_folder: dict[str, list[Any]] = {}
        for kv in result.kvs:
            folder = self.folder_of(kv.key)
            if folder is not None:
                by_folder.setdefault(folder, []).append(kv)
        self.version = result.revision
        for folder, cache in self.caches.items():
            cache.load(by_folder.get(folder, ()), result.revision)
        self._watch = self.store.watch(root, root[:-1] + b"0", start_revision=result.revision + 1, progress=True)
        self.failed = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._pump(), name="watch cache")

    def folder_of(self, key: bytes) -> str | None:
        """The folder of a cache that a key belongs to."""
        parts = key.split(b"/", 4)
        if len(parts) < 4:
            return None
        first = parts[2].decode()
        if first in self.caches:
            return first
        if len(parts) > 4:
            both = first + "/" + parts[3].decode()
            if both in self.caches:
                return both
        return None

    async def attach(self, cache: ResourceCache) -> None:
        """Add a cache while running (a custom resource): load it without missing an event."""
        cache.loading = []
        self.caches[cache.folder] = cache
        result = await self.store.range(cache.prefix, cache.prefix[:-1] + b"0")
        pending, cache.loading = cache.loading, None
        cache.load(result.kvs, max(result.revision, self.version))
        cache.ring_floor = result.revision
        for key, version, value in pending:
            if version > result.revision:
                cache.apply(key, version, value)

    def detach(self, folder: str) -> None:
        cache = self.caches.pop(folder, None)
        if cache is not None:
            cache.fanout.expire()

    async def _pump(self) -> None:
        try:
            async for batch in self._watch:
                touched: list[ResourceCache] = []
                for event in batch.events:
                    kv = event.kv
                    folder = self.folder_of(kv.key)
                    if folder is None:
                        continue
                    cache = self.caches[folder]
                    value = kv.value if event.type == "PUT" else None
                    if cache.loading is not None:
                        cache.loading.append((kv.key, kv.mod_revision, value))
                        continue
                    try:
                        made = cache.apply(kv.key, kv.mod_revision, value)
                    except (ValueError, KeyError):
                        log.exception("an unreadable value at %r is left out", kv.key)
                        continue
                    if made is not None and cache.fanout.channels:
                        cache.fanout.offer(made)
                        touched.append(cache)
                self.version = max(self.version, batch.revision)
                self._wake()
                for cache in dict.fromkeys(touched):
                    cache.fanout.deliver()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.error("the watch on the store ended: %s", error)
            if self.failed is not None and not self.failed.done():
                self.failed.set_exception(error)
                self.failed.exception()
            raise

    def _wake(self) -> None:
        if not self._waiters:
            return
        waiting, self._waiters = self._waiters, []
        for version, future in waiting:
            if version > self.version:
                self._waiters.append((version, future))
            elif not future.done():
                future.set_result(None)

    def current(self) -> bool:
        """Whether the caches hold everything that this process knows to be stored."""
        return not self.store.shared and self.version >= int(self.store.revision)

    def catch_up(self) -> Awaitable[bool] | None:
        """What to wait for until the caches hold what this process has stored; None: they do."""
        if self.store.shared or self.current():
            return None
        return self.reached(int(self.store.revision))

    async def reached(self, version: int, limit: float = 3.0) -> bool:
        """Wait until the caches are as new as `version`; False when they are not after `limit` seconds."""
        if self.version >= version:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((version, future))
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        while not future.done() and loop.time() < end:
            self._watch.request_progress()
            # Asked again: another member of etcd than the one that told the version may still be behind.
            await asyncio.wait([future], timeout=min(ASK_SECONDS, max(end - loop.time(), 0.0)))
        return future.done()

    async def fresh(self) -> None:
        """Wait until the caches hold what was stored when this was called, whoever stored it."""
        store = self.store
        wanted = await store.newest() if store.shared else int(store.revision)
        if not await self.reached(wanted, FRESH_SECONDS):
            raise StatusError(504, "Timeout", f"the watch cache has not reached resource version {wanted}", {})

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
