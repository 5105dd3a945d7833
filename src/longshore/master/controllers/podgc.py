"""Pod garbage collection: pods whose node is gone, pods that never got one, and ended pods past a number.

Source: kubernetes pkg/controller/podgc, described behaviour.
"""

from __future__ import annotations

import asyncio
import time

from longshore.client.objects import condition_is, is_deleting, is_terminal, now, seconds
from longshore.client.resources import NODES, PODS
from longshore.client.rest import is_not_found
from longshore.client.store import Object, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
QUARANTINE_SECONDS = 40.0
ENDED = "ended pods"


class PodGarbageCollector(Controller):
    """Keys are pods that nobody else will remove, and one word for the count of ended pods."""

    name = "pod-garbage-collector-controller"
    account = "pod-garbage-collector"
    component = "pod-garbage-collector-controller"

    def setup(self) -> None:
        self._missing_since: dict[str, float] = {}
        self.nodes = self.watch(NODES, update=self._node_changed, delete=self._node_gone)
        self.pods = self.watch(
            PODS,
            add=self._pod,
            update=lambda old, new: self._pod(new),
            indexers={"node": lambda p: (p["spec"].get("nodeName") or "",)},
        )

    def _node_gone(self, node: Object) -> None:
        for pod in self.pods.store.index("node", node["metadata"]["name"]):
            self.enqueue(pod)

    def _node_changed(self, old: Object, new: Object) -> None:
        if any(t.get("key") == OUT_OF_SERVICE for t in new["spec"].get("taints") or ()):
            self._node_gone(new)

    def _pod(self, pod: Object) -> None:
        node = pod["spec"].get("nodeName")
        if is_terminal(pod):
            self.queue.add(ENDED)
        if (node and node not in self.nodes.store) or (not node and is_deleting(pod)):
            self.enqueue(pod)

    async def reconcile(self, key: str) -> float | None:
        if key == ENDED:
            await self._ended()
            return None
        pod = self.pods.store.named(*split_key(key))
        if pod is None:
            self._missing_since.pop(key, None)
            return None
        node = pod["spec"].get("nodeName")
        if not node:
            if is_deleting(pod):
                await self._delete(pod)
            return None
        found = self.nodes.store.get(node)
        if found is not None:
            self._missing_since.pop(key, None)
            taints = found["spec"].get("taints") or ()
            out = any(t.get("key") == OUT_OF_SERVICE for t in taints)
            if out and is_deleting(pod) and not condition_is(found, "Ready"):
                await self._delete(pod)
            return None
        # A node that was only just deleted may be on its way back.
        since = self._missing_since.setdefault(key, time.monotonic())
        rest = QUARANTINE_SECONDS - (time.monotonic() - since)
        if rest > 0:
            return rest
        try:
            await self.client.get(NODES, node)
        except StatusError as error:
            if not is_not_found(error):
                raise
            await self._delete(pod, "PodGC: node no longer exists")
        self._missing_since.pop(key, None)
        return None

    async def _ended(self) -> None:
        ended = [p for p in self.pods.store if is_terminal(p) and not is_deleting(p)]
        excess = len(ended) - self.options.terminated_pod_gc_threshold
        if excess <= 0 or self.options.terminated_pod_gc_threshold <= 0:
            return
        ended.sort(key=lambda p: (seconds(p["metadata"].get("creationTimestamp")), p["metadata"]["name"]))
        await asyncio.gather(*(self._delete(p) for p in ended[:excess]))

    async def _delete(self, pod: Object, message: str = "") -> None:
        meta = pod["metadata"]
        try:
            if not is_terminal(pod):
                status: Object = {"phase": "Failed"}
                if message:
                    condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}
                    status["conditions"] = [{**condition, "message": message, "lastTransitionTime": now()}]
                await self.client.patch(
                    PODS, meta["name"], {"status": status}, meta["namespace"], kind="strategic", subresource="status"
                )
            await self.client.delete(PODS, meta["name"], meta["namespace"], grace_seconds=0, uid=meta["uid"])
        except StatusError as error:
            if not is_not_found(error):
                raise
