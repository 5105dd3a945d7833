"""Taint eviction: pods that do not tolerate a node's NoExecute taints are deleted, at once or when their time is over.

Source: kubernetes pkg/controller/tainteviction, described behaviour.
"""

from __future__ import annotations

import time

from longshore.client.objects import is_deleting, is_terminal, now, seconds, toleration_matches
from longshore.client.resources import NODES, PODS
from longshore.client.rest import Client, is_not_found
from longshore.client.store import Object, key_of
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller


def no_execute(node: Object) -> list[Object]:
    return [t for t in node["spec"].get("taints") or () if t.get("effect") == "NoExecute"]


def time_left(pod: Object, taints: list[Object]) -> float | None:
    """Seconds for which the pod tolerates all of the taints; None for ever, 0 when it does not tolerate one of them."""
    tolerations = pod["spec"].get("tolerations") or []
    used: list[Object] = []
    for taint in taints:
        matching = [t for t in tolerations if toleration_matches(t, taint)]
        if not matching:
            return 0.0
        used.extend(matching)
    limits = [max(0.0, float(t["tolerationSeconds"])) for t in used if t.get("tolerationSeconds") is not None]
    return min(limits) if limits else None


class TaintEvictionController(Controller):
    """Keys are pods; a node's taints put its pods into the queue."""

    name = "taint-eviction-controller"
    account = "node-controller"
    component = "taint-eviction-controller"

    def setup(self) -> None:
        self._since: dict[str, float] = {}  # pod -> when its time began (epoch seconds)
        self.nodes = self.watch(NODES, add=self._node, update=self._node_changed)
        self.pods = self.watch(
            PODS,
            add=self._pod,
            update=self._pod_changed,
            delete=lambda pod: self._since.pop(key_of(pod), None),
            indexers={"node": lambda p: (p["spec"].get("nodeName") or "",)},
        )

    def _node(self, node: Object) -> None:
        if no_execute(node):
            self._all_pods(node)

    def _node_changed(self, old: Object, new: Object) -> None:
        if no_execute(old) != no_execute(new):
            self._all_pods(new)

    def _all_pods(self, node: Object) -> None:
        for pod in self.pods.store.index("node", node["metadata"]["name"]):
            self.enqueue(pod)

    def _pod(self, pod: Object) -> None:
        node = self.nodes.store.get(pod["spec"].get("nodeName") or "")
        if node is not None and no_execute(node):
            self.enqueue(pod)

    def _pod_changed(self, old: Object, new: Object) -> None:
        if (old["spec"].get("nodeName"), old["spec"].get("tolerations")) != (
            new["spec"].get("nodeName"),
            new["spec"].get("tolerations"),
        ):
            self._pod(new)

    async def reconcile(self, key: str) -> float | None:
        pod = self.pods.store.get(key)
        node = self.nodes.store.get(pod["spec"].get("nodeName") or "") if pod is not None else None
        if pod is None or node is None or is_deleting(pod):
            self._since.pop(key, None)
            return None
        taints = no_execute(node)
        left = time_left(pod, taints) if taints else None
        if left is None:
            if self._since.pop(key, None) is not None:
                self.event(pod, "Normal", "TaintManagerEviction", f"Cancelling deletion of Pod {key}")
            return None
        if left > 0:
            begun = min((seconds(t["timeAdded"]) for t in taints if t.get("timeAdded")), default=time.time())
            begun = self._since.setdefault(key, max(begun, seconds(pod["metadata"].get("creationTimestamp"))))
            rest = begun + left - time.time()
            if rest > 0:
                return rest
        await self._evict(key, pod)
        return None

    async def _evict(self, key: str, pod: Object) -> None:
        self.event(pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {key}")
        await evict(self.client, pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
        self._since.pop(key, None)


async def evict(client: Client, pod: Object, reason: str, message: str) -> None:
    """Write into a pod's DisruptionTarget condition why it goes, and delete it. That it has gone already is fine."""
    meta = pod["metadata"]
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": now(),
    }
    try:
        if not is_terminal(pod):
            patch = {"metadata": {"uid": meta["uid"]}, "status": {"conditions": [condition]}}
            await client.patch(PODS, meta["name"], patch, meta["namespace"], kind="strategic", subresource="status")
        await client.delete(PODS, meta["name"], meta["namespace"], uid=meta["uid"])
    except StatusError as error:
        if not (is_not_found(error) or error.code == 409):  # another pod has its name by now
            raise
