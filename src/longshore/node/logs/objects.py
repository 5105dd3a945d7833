"""What the API server tells for the logs: labels of a node's pods, and the cluster's Events as a stream of their own."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import orjson

from longshore.client.informer import Informer
from longshore.client.resources import EVENTS, PODS
from longshore.client.rest import Client
from longshore.node.logs.inputs.emit import OLDEST
from longshore.node.logs.store.index import Checkpoint
from longshore.node.logs.store.store import LogStore
from longshore.wire import crilog

Object = dict[str, Any]
#: (namespace, pod, uid): its labels may be others now.
Changed = Callable[[str, str, str], None]


def _slim(pod: Object) -> Object:
    """What labels come from, and no more: a node holds a hundred pods and more."""
    meta = pod["metadata"]
    kept = {
        key: meta[key]
        for key in ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences")
        if key in meta
    }
    spec = pod.get("spec") or {}
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    return {"metadata": kept, "images": {c["name"]: c.get("image", "") for c in containers}}


class PodLabels:
    """Labels, `app`, `owner` and `image` of the containers of one node's pods, live."""

    def __init__(self, client: Client, node: str) -> None:
        self._informer = Informer(client, PODS, field_selector=f"spec.nodeName={node}", transform=_slim)
        self._pods: dict[str, Object] = {}

    async def run(self, changed: Changed) -> None:
        """Follow the pods until cancelled. changed: called with each pod that is new or has other labels."""

        def seen(pod: Object) -> None:
            meta = pod["metadata"]
            before = self._pods.get(meta["uid"])
            self._pods[meta["uid"]] = pod
            if before is None or _facts(before) != _facts(pod):
                changed(meta["namespace"], meta["name"], meta["uid"])

        self._informer.on(
            seen, lambda _old, new: seen(new), lambda pod: self._pods.pop(pod["metadata"].get("uid", ""), None)
        )
        await self._informer.run()

    def describe(self, _namespace: str, _pod: str, uid: str, container: str) -> dict[str, str]:
        """The further labels of a container's stream; none for a pod that is not known (yet)."""
        pod = self._pods.get(uid)
        if pod is None:
            return {}
        found = dict(_facts(pod))
        image = pod["images"].get(container, "")
        return {**found, "image": image} if image else found


#: Labels that differ with each template: they would only multiply series.
_HASHES = frozenset({"pod-template-hash", "controller-revision-hash", "pod-template-generation"})
MOST_LABELS = 32
_NOT_OF_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


def _facts(pod: Object) -> tuple[tuple[str, str], ...]:
    """The pod's labels as `label_NAME`, `app` from them, `owner` as KIND/NAME: a Deployment for its ReplicaSets' pods."""
    meta = pod["metadata"]
    labels = meta.get("labels") or {}
    found: list[tuple[str, str]] = [
        (f"label_{_NOT_OF_A_NAME.sub('_', name)}", value)
        for name, value in sorted(labels.items())[:MOST_LABELS]
        if name not in _HASHES
    ]
    app = labels.get("app.kubernetes.io/name") or labels.get("app") or labels.get("k8s-app")
    if app:
        found.append(("app", app))
    for owner in meta.get("ownerReferences") or ():
        if owner.get("controller"):
            kind, name = owner["kind"].lower(), owner["name"]
            suffix = "-" + labels.get("pod-template-hash", "")
            if kind == "replicaset" and len(suffix) > 1 and name.endswith(suffix):
                kind, name = "deployment", name.removesuffix(suffix)
            found.append(("owner", f"{kind}/{name}"))
    return tuple(found)


class EventLog:
    """The cluster's Events as lines of JSON in the stream `{job="events"}`, each state of one once."""

    FILE = "events:"  # of its checkpoint: the newest resourceVersion that is stored

    def __init__(self, client: Client, store: LogStore, node: str) -> None:
        self._informer = Informer(client, EVENTS, transform=_line)
        self._store = store
        self._stream = store.stream("events", {"job": "events", "node": node})
        self._seen = next((c.position for c in store.index.checkpoints() if c.file == self.FILE), 0)
        self._waiting: list[tuple[int, Object]] = []
        self._time = 0

    async def run(self) -> None:
        """Follow them until cancelled."""
        self._informer.on(self._take, lambda _old, new: self._take(new))
        await self._informer.run()

    def _take(self, event: Object) -> None:
        version = int(event["metadata"].get("resourceVersion") or 0)
        if version <= self._seen:
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._write)
        self._waiting.append((version, event))

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        waiting.sort(key=lambda item: item[0])
        now = time.time_ns()
        records: list[bytes] = []
        for _, event in waiting:
            try:
                when = crilog.parse_time(event["line"].get("time", "").encode())
            except ValueError:
                when = now
            self._time = max(self._time, when if now - OLDEST < when < now else now)
            records.append(crilog.format_line(self._time, b"stdout", orjson.dumps(event["line"])))
        self._seen = waiting[-1][0]
        self._store.append(self._stream, b"".join(records), Checkpoint(self.FILE, 0, self._seen))


def _line(event: Object) -> Object:
    """What is kept of an Event: its names, and its line."""
    meta, about = event["metadata"], event.get("involvedObject") or {}
    line = {
        "time": event.get("lastTimestamp") or event.get("eventTime") or meta.get("creationTimestamp") or "",
        "type": event.get("type", ""),
        "reason": event.get("reason", ""),
        "kind": about.get("kind", ""),
        "namespace": about.get("namespace", ""),
        "name": about.get("name", ""),
        "count": event.get("count") or (event.get("series") or {}).get("count") or 1,
        "source": event.get("reportingComponent") or (event.get("source") or {}).get("component", ""),
        "message": event.get("message", ""),
    }
    kept = {key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in meta}
    return {"metadata": kept, "line": {key: value for key, value in line.items() if value != ""}}
