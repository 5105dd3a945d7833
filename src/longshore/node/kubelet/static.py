"""Static pods: manifests in a folder, run without the API server, shown in it by mirror pods.

Sources: kubernetes pkg/kubelet/config/{file_linux,common}.go, pkg/kubelet/pod/mirror_client.go.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from longshore.client.resources import PODS
from longshore.client.rest import Client, is_not_found
from longshore.machinery.errors import StatusError
from longshore.machinery.inotify import Inotify, Mask
from longshore.node.kubelet.resources import MIRROR, SOURCE

log = logging.getLogger("longshore.kubelet.static")
Pod = dict[str, Any]
HASH, SEEN = "kubernetes.io/config.hash", "kubernetes.io/config.seen"
SIZE_LIMIT = 1 << 20
_RETRY = 5.0


def parse(data: bytes, node_name: str, path: str) -> Pod:
    """A manifest as the pod that runs. Raises ValueError."""
    from longshore.api.decoding import parse_yaml
    from longshore.api.kinds import KINDS
    from longshore.api.schema import DecodeError

    pod = parse_yaml(data).value
    if not isinstance(pod, dict) or pod.get("kind") != "Pod" or not isinstance(pod.get("spec"), dict):
        raise ValueError("not a Pod")
    metadata = pod.setdefault("metadata", {})
    if not metadata.get("name"):
        raise ValueError("the pod has no name")
    digest = hashlib.md5(orjson.dumps(pod, option=orjson.OPT_SORT_KEYS), usedforsecurity=False)
    digest.update(f"host:{node_name}file:{path}".encode())
    uid = digest.hexdigest()
    metadata.update(uid=metadata.get("uid") or uid, name=f"{metadata['name']}-{node_name}")
    metadata["namespace"] = metadata.get("namespace") or "default"
    notes = metadata.setdefault("annotations", {})
    notes.update({HASH: uid, SOURCE: "file"})
    spec = pod["spec"]
    spec["nodeName"] = node_name
    tolerations = spec.setdefault("tolerations", [])
    tolerations.append({"operator": "Exists", "effect": "NoExecute"})
    resource = KINDS["", "pods"]
    try:
        pod = resource.decode(pod, "v1")
    except (DecodeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"not a Pod: {error}") from error
    resource.default(pod, "v1")
    problems = [e for e in resource.validate(pod) if e.field != "metadata.uid"]
    if problems:
        raise ValueError("; ".join(str(e) for e in problems[:3]))
    found: Pod = {**pod, "status": {"phase": "Pending"}}
    return found


class StaticPods:
    """The pods of one folder, kept true by inotify."""

    def __init__(
        self,
        folder: Path,
        node_name: str,
        *,
        added: Callable[[Pod], None],
        removed: Callable[[Pod], None],
    ) -> None:
        """added, removed: told of each pod; a changed manifest is another pod (its uid is of its content)."""
        self._folder, self._node, self._added, self._removed = folder, node_name, added, removed
        self.pods: dict[str, Pod] = {}

    async def run(self) -> None:
        """Follow the folder until cancelled."""
        self._folder.mkdir(parents=True, exist_ok=True)
        watch = Inotify()
        wake = asyncio.Event()
        mask = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE
        try:
            watch.watch(self._folder, mask, lambda *_: wake.set())
            while True:
                wake.clear()
                await self._look()
                await wake.wait()
        finally:
            watch.close()

    async def _look(self) -> None:
        found: dict[str, Pod] = {}
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") or not path.is_file():
                continue
            try:
                if path.stat().st_size > SIZE_LIMIT:
                    raise ValueError("too large")
                pod = parse(path.read_bytes(), self._node, str(path))
            except (OSError, ValueError) as error:
                log.warning("static pod %s: %s", path, error)
                continue
            found[pod["metadata"]["uid"]] = pod
        for uid in [u for u in self.pods if u not in found]:
            self._removed(self.pods.pop(uid))
        for uid, pod in found.items():
            if uid not in self.pods:
                self.pods[uid] = pod
                self._added(pod)


class Mirrors:
    """Mirror pods: for each static pod one object in the API server, made anew whenever it goes."""

    def __init__(self, client: Client, node: Callable[[], Mapping[str, Any] | None]) -> None:
        self._client, self._node = client, node
        self._static: dict[tuple[str, str], Pod] = {}
        self.known: dict[tuple[str, str], Pod] = {}
        self._wake = asyncio.Event()

    def want(self, pod: Pod) -> None:
        self._static[_key(pod)] = pod
        self._wake.set()

    def drop(self, pod: Pod) -> None:
        if self._static.get(_key(pod), {}).get("metadata", {}).get("uid") == pod["metadata"]["uid"]:
            del self._static[_key(pod)]
        self._wake.set()

    def seen(self, mirror: Pod | None, key: tuple[str, str]) -> None:
        """The API server's mirror pod of this name is such (None: gone)."""
        if mirror is None:
            self.known.pop(key, None)
        else:
            self.known[key] = mirror
        self._wake.set()

    def of(self, pod: Pod) -> Pod | None:
        """The mirror of a static pod, if it shows the pod as it is."""
        mirror = self.known.get(_key(pod))
        if mirror is None or not _same(mirror, pod):
            return None
        return mirror

    async def run(self) -> None:
        """Keep the mirrors right until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self._settle()
            except (StatusError, OSError, TimeoutError) as error:
                log.info("mirror pods: %s", error)
                try:
                    async with asyncio.timeout(_RETRY):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            await self._wake.wait()

    async def _settle(self) -> None:
        for key, mirror in list(self.known.items()):
            static = self._static.get(key)
            if static is None or not _same(mirror, static) or mirror["metadata"].get("deletionTimestamp"):
                namespace, name = key
                try:
                    await self._client.delete(PODS, name, namespace, grace_seconds=0, uid=mirror["metadata"]["uid"])
                except StatusError as error:
                    if not is_not_found(error) and error.code != 409:
                        raise
                self.known.pop(key, None)
        for key, static in list(self._static.items()):
            if key in self.known:
                continue
            body = copy.deepcopy(static)
            metadata = body["metadata"]
            for name in ("uid", "resourceVersion", "creationTimestamp"):
                metadata.pop(name, None)
            body.pop("status", None)
            metadata["annotations"][MIRROR] = metadata["annotations"][HASH]
            node = self._node()
            if node is not None:
                metadata["ownerReferences"] = [
                    {"apiVersion": "v1", "kind": "Node", "name": node["metadata"]["name"],
                     "uid": node["metadata"]["uid"], "controller": True}
                ]  # fmt: skip
            try:
                self.known[key] = await self._client.create(PODS, body, key[0])
            except StatusError as error:
                if error.code != 409:
                    raise


def _key(pod: Mapping[str, Any]) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _same(mirror: Mapping[str, Any], static: Mapping[str, Any]) -> bool:
    one = (mirror["metadata"].get("annotations") or {}).get(MIRROR)
    return bool(one == (static["metadata"].get("annotations") or {}).get(HASH))
