"""ConfigMaps, Secrets and other single objects that pods refer to, each watched while a pod refers to it.

Source: kubernetes pkg/kubelet/util/manager/watch_based_manager.go (one watch an object, because a node may read only
what its pods name).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from longshore.client.informer import Informer
from longshore.client.resources import CONFIG_MAPS, SECRETS, Resource
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError

Pod = dict[str, Any]
Key = tuple[str, str, str]
RESOURCES: dict[str, Resource] = {"ConfigMap": CONFIG_MAPS, "Secret": SECRETS}
FIRST_LIST_SECONDS = 10.0


def references(pod: Pod) -> set[Key]:
    """(kind, namespace, name) of every ConfigMap and Secret that a pod names."""
    namespace, spec = pod["metadata"]["namespace"], pod["spec"]
    found: set[Key] = set()

    def add(kind: str, name: str | None) -> None:
        if name:
            found.add((kind, namespace, name))

    for entry in spec.get("imagePullSecrets") or ():
        add("Secret", entry.get("name"))
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(group) or ():
            for source in container.get("envFrom") or ():
                add("ConfigMap", (source.get("configMapRef") or {}).get("name"))
                add("Secret", (source.get("secretRef") or {}).get("name"))
            for variable in container.get("env") or ():
                value = variable.get("valueFrom") or {}
                add("ConfigMap", (value.get("configMapKeyRef") or {}).get("name"))
                add("Secret", (value.get("secretKeyRef") or {}).get("name"))
    for volume in spec.get("volumes") or ():
        add("ConfigMap", (volume.get("configMap") or {}).get("name"))
        add("Secret", (volume.get("secret") or {}).get("secretName"))
        for source in (volume.get("projected") or {}).get("sources") or ():
            add("ConfigMap", (source.get("configMap") or {}).get("name"))
            add("Secret", (source.get("secret") or {}).get("name"))
    return found


class ObjectCache:
    """Live copies of the objects that the node's pods name."""

    def __init__(self, client: Client, changed: Callable[[set[str]], None]) -> None:
        """changed(uids): the pods that refer to an object that has changed."""
        self._client, self._changed = client, changed
        self._users: dict[Key, set[str]] = {}
        self._of_pod: dict[str, set[Key]] = {}
        self._informers: dict[Key, tuple[Informer, asyncio.Task[None]]] = {}

    def register(self, pod: Pod) -> None:
        """From now on (again) the pod refers to what its spec names."""
        uid = pod["metadata"]["uid"]
        keys = references(pod)
        before = self._of_pod.get(uid, set())
        for key in keys - before:
            self._users.setdefault(key, set()).add(uid)
        for key in before - keys:
            self._release(key, uid)
        self._of_pod[uid] = keys

    def unregister(self, uid: str) -> None:
        for key in self._of_pod.pop(uid, set()):
            self._release(key, uid)

    def _release(self, key: Key, uid: str) -> None:
        users = self._users.get(key)
        if users is None:
            return
        users.discard(uid)
        if not users:
            del self._users[key]
            found = self._informers.pop(key, None)
            if found is not None:
                found[1].cancel()

    def _watch(self, key: Key) -> Informer:
        kind, namespace, name = key
        informer = Informer(self._client, RESOURCES[kind], namespace=namespace, field_selector=f"metadata.name={name}")

        def tell(*_: Any) -> None:
            if informer.synced:
                self._changed(set(self._users.get(key, ())))

        informer.on(tell, tell, tell)
        self._informers[key] = (informer, asyncio.create_task(informer.run(), name=f"watch {kind} {namespace}/{name}"))
        return informer

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """The object, None when there is none. Raises StatusError or OSError when the server cannot tell."""
        key = (kind, namespace, name)
        found = self._informers.get(key)
        if key in self._users:
            informer = found[0] if found is not None else self._watch(key)
            try:
                async with asyncio.timeout(FIRST_LIST_SECONDS):
                    await informer.wait_synced()
            except TimeoutError:
                raise OSError(f"timed out waiting for {kind} {namespace}/{name}") from None
            obj = informer.store.named(namespace, name)
            if obj is not None:
                return obj
        try:
            # The watch may lag behind what the pod's creator saw; the server's own word counts.
            return await self._client.get(RESOURCES[kind], name, namespace)
        except StatusError as error:
            if is_not_found(error):
                return None
            raise

    async def close(self) -> None:
        tasks = [task for _, task in self._informers.values()]
        self._informers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
