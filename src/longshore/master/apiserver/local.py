"""The server's own access to its objects: for admission, authentication and everything that runs inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from longshore.machinery.errors import StatusError
from longshore.machinery.http import Headers
from longshore.master.apiserver.cache import Hub, Item
from longshore.master.apiserver.call import Call
from longshore.master.apiserver.context import LOOPBACK, NO_OPINION, Attributes, Authorizer, Decision
from longshore.master.apiserver.deletion import Deleter
from longshore.master.apiserver.keys import path
from longshore.master.apiserver.options import DeleteOptions, WriteOptions
from longshore.master.apiserver.paths import PathInfo
from longshore.master.apiserver.scheme import Endpoint, Scheme
from longshore.master.apiserver.writes import Writer, copy_tree

Object = dict[str, Any]
MOST_PEEKED = 512


class LocalRequest:
    """What the write path asks of a request, for calls that come from inside."""

    raw_query = ""
    query: dict[str, list[str]] = {}
    path = ""
    raw_path = ""
    has_body = False

    def __init__(self, agent: str = "kube-apiserver") -> None:
        self.headers = Headers([("user-agent", agent)])

    def param(self, name: str, default: str = "") -> str:
        return default


class LocalAPI:
    """context.API over the caches and the write path."""

    def __init__(self, scheme: Scheme, hub: Hub, writer: Writer, deleter: Deleter) -> None:
        self.scheme = scheme
        self.hub = hub
        self.writer = writer
        self.deleter = deleter
        self.authorization: Authorizer | None = None
        self._peeked: dict[tuple[str, str, str], tuple[Item, Object]] = {}

    def endpoint(self, group: str, resource: str, version: str = "") -> Endpoint:
        storage = self.scheme.storages.get((group, resource))
        if storage is None:
            raise StatusError(404, "NotFound", "the server could not find the requested resource", {})
        wanted = version or storage.resource.storage_version
        found = self.scheme.endpoints.get((group, wanted, resource))
        if found is None:
            found = next(e for k, e in self.scheme.endpoints.items() if k[0] == group and k[2] == resource)
        return found

    def _cache(self, group: str, resource: str) -> Any:
        storage = self.scheme.storages.get((group, resource))
        return storage.cache if storage is not None else None

    def _full(self, group: str, resource: str, item: Item) -> Object:
        storage = self.scheme.storages[group, resource]
        r = storage.resource
        version = f"{r.group}/{r.storage_version}" if r.group else r.storage_version
        return {"kind": r.kind, "apiVersion": version, **item.decode()}

    def get(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        cache = self._cache(group, resource)
        item = cache.items.get(path(namespace, name)) if cache is not None else None
        return self._full(group, resource, item) if item is not None else None

    def peek(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        cache = self._cache(group, resource)
        item = cache.items.get(path(namespace, name)) if cache is not None else None
        if item is None:
            return None
        key = (group, resource, item.key)
        kept = self._peeked.get(key)
        if kept is None or kept[0] is not item:
            if len(self._peeked) >= MOST_PEEKED:
                self._peeked.clear()
            kept = self._peeked[key] = (item, self._full(group, resource, item))
        return kept[1]

    def list(
        self, group: str, resource: str, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        cache = self._cache(group, resource)
        if cache is None:
            return []
        items = cache.select(namespace)
        if labels:
            items = [i for i in items if all(i.labels.get(k) == v for k, v in labels.items())]
        return [self._full(group, resource, i) for i in items]

    def generation(self, group: str, resource: str) -> int:
        cache = self._cache(group, resource)
        return cache.generation if cache is not None else 0

    def on_change(self, group: str, resource: str, listener: Callable[[str, str], None]) -> None:
        cache = self._cache(group, resource)
        if cache is not None:
            cache.listeners.append(lambda event: listener(event.item.namespace, event.item.name))
            for item in list(cache.items.values()):
                listener(item.namespace, item.name)

    async def get_live(self, group: str, resource: str, namespace: str, name: str) -> Object | None:
        await self.hub.fresh()
        return self.get(group, resource, namespace, name)

    def call(self, group: str, resource: str, namespace: str, name: str, verb: str, subresource: str = "") -> Call:
        endpoint = self.endpoint(group, resource)
        info = PathInfo(
            True, "apis" if group else "api", group, endpoint.version, namespace, resource, name, subresource
        )
        return Call(LocalRequest(), info, endpoint, verb, LOOPBACK)  # type: ignore[arg-type]

    async def create(
        self, group: str, resource: str, namespace: str, obj: Object, manager: str = "kube-apiserver"
    ) -> Object:
        call = self.call(group, resource, namespace, "", "create")
        endpoint = call.endpoint
        decoded = endpoint.resource.decode(copy_tree(obj), endpoint.version)
        decoded["apiVersion"], decoded["kind"] = endpoint.api_version, endpoint.kind
        out, _ = await self.writer.create(call, decoded, WriteOptions("CreateOptions", manager=manager))
        return out

    async def update(
        self,
        group: str,
        resource: str,
        namespace: str,
        obj: Object,
        subresource: str = "",
        manager: str = "kube-apiserver",
    ) -> Object:
        call = self.call(group, resource, namespace, obj["metadata"]["name"], "update", subresource)
        endpoint = call.endpoint
        decoded = endpoint.resource.decode(copy_tree(obj), endpoint.version)
        decoded["apiVersion"], decoded["kind"] = endpoint.api_version, endpoint.kind
        out, _, _ = await self.writer.update(call, decoded, WriteOptions("UpdateOptions", manager=manager), subresource)
        return out

    async def delete(self, group: str, resource: str, namespace: str, name: str) -> None:
        await self.deleter.delete_one(self.call(group, resource, namespace, name, "delete"), DeleteOptions())

    async def authorize(self, a: Attributes) -> Decision:
        if self.authorization is None:
            return NO_OPINION
        decision = self.authorization.authorize(a)
        return decision if isinstance(decision, Decision) else await decision

    def resource(self, group: str, plural: str) -> Any | None:
        storage = self.scheme.storages.get((group, plural))
        return storage.resource if storage is not None else None
