"""Node lifecycle: a node that stops talking is marked, and marks become taints.

Nothing is polled: each sign of life pushes the node's deadline on, and the deadline is a delayed key in the queue.
Source: kubernetes pkg/controller/nodelifecycle, described behaviour.
"""

from __future__ import annotations

import time
from typing import Literal

from longshore.client.objects import condition, condition_is, copy, is_terminal, now
from longshore.client.resources import LEASES, NODES, PODS
from longshore.client.rest import is_not_found
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
LEASE_NAMESPACE = "kube-node-lease"

# (condition, its status) -> the NoSchedule taint that stands for it
CONDITION_TAINTS: dict[tuple[str, str], str] = {
    ("Ready", "False"): NOT_READY,
    ("Ready", "Unknown"): UNREACHABLE,
    ("MemoryPressure", "True"): "node.kubernetes.io/memory-pressure",
    ("DiskPressure", "True"): "node.kubernetes.io/disk-pressure",
    ("NetworkUnavailable", "True"): "node.kubernetes.io/network-unavailable",
    ("PIDPressure", "True"): "node.kubernetes.io/pid-pressure",
}
OWN_NO_SCHEDULE = frozenset({*CONDITION_TAINTS.values(), UNSCHEDULABLE})
OWN_NO_EXECUTE = frozenset({NOT_READY, UNREACHABLE})

ZoneState = Literal["Normal", "PartialDisruption", "FullDisruption"]


def wanted_no_schedule(node: Object) -> set[str]:
    """Keys of the NoSchedule taints that a node's conditions and spec ask for."""
    keys = {
        key
        for (type, status), key in CONDITION_TAINTS.items()
        if (found := condition(node, type)) is not None and found.get("status") == status
    }
    if node["spec"].get("unschedulable"):
        keys.add(UNSCHEDULABLE)
    return keys


def zone_of(node: Object) -> str:
    labels = node["metadata"].get("labels") or {}
    return f"{labels.get('topology.kubernetes.io/region', '')}:{labels.get('topology.kubernetes.io/zone', '')}"


class NodeLifecycleController(Controller):
    """Marks nodes whose kubelet is silent, and keeps the taints that conditions mean."""

    name = "node-lifecycle-controller"
    account = "node-controller"
    component = "node-controller"
    workers = 8

    def setup(self) -> None:
        self._heard: dict[
            str, tuple[tuple[str, str], float]
        ] = {}  # node -> (signs of life, when they changed, our clock)
        self._next_eviction: dict[str, float] = {}  # zone -> when the next node may be tainted NoExecute
        self.nodes = self.watch(NODES, add=self._added, update=self._changed, delete=self._gone)
        self.leases = self.context.informers.informer(LEASES, namespace=LEASE_NAMESPACE)
        self.needs.append(self.leases)
        self.leases.on(self._lease, lambda old, new: self._lease(new))
        self.pods = self.watch(PODS, indexers={"node": lambda p: (p["spec"].get("nodeName") or "",)})

    def _added(self, node: Object) -> None:
        self.event_on_node(
            node["metadata"]["name"],
            node,
            "RegisteredNode",
            f"Registered Node {node['metadata']['name']} in Controller",
        )
        self._hear(node["metadata"]["name"])
        self.enqueue(node)

    def event_on_node(self, name: str, node: Object, reason: str, what: str) -> None:
        uid = node["metadata"].get("uid", "")
        involved = {"kind": "Node", "name": name, "uid": uid, "apiVersion": "v1"}
        self.recorder.event(involved, "Normal", reason, f"Node {name} event: {what}")

    def _changed(self, old: Object, node: Object) -> None:
        self._hear(node["metadata"]["name"])
        spec, before = node["spec"], old["spec"]
        status, past = node.get("status") or {}, old.get("status") or {}
        statuses = [(c["type"], c.get("status")) for c in status.get("conditions") or ()]
        if (
            spec.get("taints") != before.get("taints")
            or spec.get("unschedulable") != before.get("unschedulable")
            or statuses != [(c["type"], c.get("status")) for c in past.get("conditions") or ()]
        ):
            self.enqueue(node)

    def _gone(self, node: Object) -> None:
        name = node["metadata"]["name"]
        self._heard.pop(name, None)
        self.event_on_node(name, node, "RemovingNode", f"Removing Node {name} from Controller")

    def _lease(self, lease: Object) -> None:
        self._hear(lease["metadata"]["name"])

    def _hear(self, name: str) -> None:
        """Something was heard of a node: when it differs from the last, the node lives."""
        node, lease = self.nodes.store.get(name), self.leases.store.named(LEASE_NAMESPACE, name)
        if node is None:
            return
        ready = condition(node, "Ready") or {}
        signs = (ready.get("lastHeartbeatTime") or "", ((lease or {}).get("spec") or {}).get("renewTime") or "")
        known = self._heard.get(name)
        if known is None or known[0] != signs:
            self._heard[name] = (signs, time.monotonic())
            if known is not None and ready.get("status") == "Unknown":
                self.queue.add(name)

    # -- reconcile -------------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        node = self.nodes.store.get(key)
        if node is None:
            return None
        grace = self.options.node_monitor_grace_period
        if condition(node, "Ready") is None:
            grace = max(grace, self.options.node_startup_grace_period)
        silence = time.monotonic() - self._heard[key][1] if key in self._heard else 0.0
        if silence >= grace:
            node = await self._mark_silent(node)
        again = grace - silence if silence < grace else None
        wait = await self._taint(node)
        if not condition_is(node, "Ready") and condition(node, "Ready") is not None:
            await self._pods_not_ready(key)
        waits = [w for w in (again, wait) if w is not None]
        return min(waits) + 0.05 if waits else None

    async def _mark_silent(self, node: Object) -> Object:
        """All conditions that a kubelet posts become Unknown."""
        changed = copy(node)
        conditions: list[Object] = changed.setdefault("status", {}).setdefault("conditions", [])
        stamp, moved = now(), False
        was_ready = condition_is(node, "Ready")
        for type in ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure"):
            known = next((c for c in conditions if c["type"] == type), None)
            if known is None:
                created = node["metadata"].get("creationTimestamp")
                conditions.append(
                    {
                        "type": type,
                        "status": "Unknown",
                        "reason": "NodeStatusNeverUpdated",
                        "message": "Kubelet never posted node status.",
                        "lastHeartbeatTime": created,
                        "lastTransitionTime": stamp,
                    }
                )
                moved = True
            elif known["status"] != "Unknown":
                known.update(
                    status="Unknown",
                    reason="NodeStatusUnknown",
                    message="Kubelet stopped posting node status.",
                    lastTransitionTime=stamp,
                )
                moved = True
        if not moved:
            return node
        written = await self.client.update(NODES, changed, subresource="status")
        if was_ready:
            name = node["metadata"]["name"]
            involved = {"kind": "Node", "name": name, "uid": node["metadata"].get("uid", ""), "apiVersion": "v1"}
            self.recorder.event(involved, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady")
        return written

    async def _taint(self, node: Object) -> float | None:
        """Bring the taints in line with the conditions; seconds to wait where the zone's rate holds one back."""
        taints: list[Object] = list(node["spec"].get("taints") or [])
        want = wanted_no_schedule(node)
        kept = [
            t for t in taints if t.get("effect") != "NoSchedule" or t["key"] not in OWN_NO_SCHEDULE or t["key"] in want
        ]
        have = {t["key"] for t in kept if t.get("effect") == "NoSchedule"}
        stamp = now()
        kept.extend({"key": k, "effect": "NoSchedule", "timeAdded": stamp} for k in sorted(want - have))
        ready = (condition(node, "Ready") or {}).get("status")
        execute = {"False": NOT_READY, "Unknown": UNREACHABLE}.get(ready or "")
        wait: float | None = None
        if self._everything_down():
            execute = None  # then it is rather us who hear nothing
        present = {t["key"] for t in kept if t.get("effect") == "NoExecute"}
        if execute is not None and not present & OWN_NO_EXECUTE:
            wait = self._eviction_wait(zone_of(node))
            if wait > 0:
                execute = None
        if wait is None or wait <= 0:
            kept = [
                t
                for t in kept
                if t.get("effect") != "NoExecute" or t["key"] not in OWN_NO_EXECUTE or t["key"] == execute
            ]
            if execute is not None and execute not in present:
                kept.append({"key": execute, "effect": "NoExecute", "timeAdded": stamp})
        if kept != taints:
            patch = {
                "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
                "spec": {"taints": kept or None},
            }
            await self.client.patch(NODES, node["metadata"]["name"], patch)
        return wait if wait is not None and wait > 0 else None

    # -- zones -----------------------------------------------------------------------------------------------------------

    def _everything_down(self) -> bool:
        nodes = list(self.nodes.store)
        return len(nodes) > 0 and not any(condition_is(n, "Ready") for n in nodes)

    def zone_state(self, zone: str) -> tuple[ZoneState, int]:
        """How a zone is, and how many nodes it has."""
        nodes = [n for n in self.nodes.store if zone_of(n) == zone]
        bad = sum(1 for n in nodes if not condition_is(n, "Ready"))
        if nodes and bad == len(nodes):
            return "FullDisruption", len(nodes)
        if bad > 2 and bad / len(nodes) >= self.options.unhealthy_zone_threshold:
            return "PartialDisruption", len(nodes)
        return "Normal", len(nodes)

    def _eviction_wait(self, zone: str) -> float:
        """Seconds until the zone's rate allows one more node to be emptied; 0 takes the place."""
        state, size = self.zone_state(zone)
        rate = self.options.node_eviction_rate
        if state == "PartialDisruption":
            large = size > self.options.large_cluster_size_threshold
            rate = self.options.secondary_node_eviction_rate if large else 0.0
        if rate <= 0:
            return 30.0
        at = time.monotonic()
        due = self._next_eviction.get(zone, 0.0)
        if at < due:
            return due - at
        self._next_eviction[zone] = at + 1 / rate
        return 0.0

    # -- pods ------------------------------------------------------------------------------------------------------------

    async def _pods_not_ready(self, node: str) -> None:
        """Pods of a node that is not ready are not ready: Services leave them out."""
        for pod in self.pods.store.index("node", node):
            if is_terminal(pod) or not condition_is(pod, "Ready"):
                continue
            ready = {"type": "Ready", "status": "False", "lastTransitionTime": now()}
            meta = pod["metadata"]
            try:
                await self.client.patch(
                    PODS,
                    meta["name"],
                    {"metadata": {"uid": meta["uid"]}, "status": {"conditions": [ready]}},
                    meta["namespace"],
                    kind="strategic",
                    subresource="status",
                )
            except StatusError as error:
                if not is_not_found(error) and error.code != 409:
                    raise
                continue
            self.event(pod, "Warning", "NodeNotReady", "Node is not ready")
