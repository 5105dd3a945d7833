"""Nodes without machines: Node objects with capacity, conditions and a Lease each, and the kubelet's part for their pods.

Source: the objects that kubernetes' kubelet registers (pkg/kubelet/nodestatus); kwok's documented behaviour.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from longshore.client.informer import Informer
from longshore.client.objects import now
from longshore.client.resources import LEASES, NODES, PODS
from longshore.client.rest import Client, is_already_exists, is_conflict, is_not_found
from longshore.machinery.errors import StatusError
from longshore.machinery.http import ClientError
from longshore.simulate import addresses
from longshore.simulate.kubelet import Kubelets
from longshore.simulate.rules import Rules

log = logging.getLogger("longshore.simulate")

Object = dict[str, Any]
LABEL = "longshore.dev/simulated"  # on every simulated node, with the value "true"
LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
HEARTBEAT_SECONDS = 15.0
AT_ONCE = 24  # registrations and renewals under way
NOT_READY = "node.kubernetes.io/not-ready"
MOST_NODES = 100_000
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "the node is simulated"),
)


def node_object(
    number: int, *, name: str = "simulated", cpu: str = "32", memory: str = "128Gi", pods: int = 110, zones: int = 3,
    taints: Sequence[Object] = (), labels: dict[str, str] | None = None,
) -> Object:  # fmt: skip
    """A Node as its kubelet would register it. number: from 0; it makes the name, the address and the zone."""
    full = f"{name}-{number}"
    architecture = ARCHITECTURES.get(platform.machine(), "amd64")
    marks = {
        "kubernetes.io/hostname": full,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        LABEL: "true",
    }
    if zones > 0:
        marks["topology.kubernetes.io/zone"] = f"zone-{number % zones + 1}"
        marks["topology.kubernetes.io/region"] = "simulated"
    capacity = {"cpu": cpu, "memory": memory, "pods": str(pods), "ephemeral-storage": "256Gi"}
    at = now()
    conditions = [
        {"type": t, "status": s, "reason": r, "message": m, "lastHeartbeatTime": at, "lastTransitionTime": at}
        for t, s, r, m in CONDITIONS
    ]
    return {
        "metadata": {"name": full, "labels": {**marks, **(labels or {})}},
        "spec": {"taints": list(taints)} if taints else {},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": addresses.of_node(number)},
                {"type": "Hostname", "address": full},
            ],
            "nodeInfo": {
                "machineID": full, "systemUUID": full, "bootID": full, "kernelVersion": "simulated",
                "osImage": "simulated", "containerRuntimeVersion": "simulated://1", "kubeletVersion": "v1.36.1",
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": architecture,
            },
        },
    }  # fmt: skip


class SimulatedNodes:
    """A number of nodes and what lives on them."""

    def __init__(self, client: Client, nodes: Sequence[Object], rules: Rules, *, pod_range: str) -> None:
        self.client = client
        self.objects = {node["metadata"]["name"]: node for node in nodes}
        self.kubelets = Kubelets(client, rules, pod_range=pod_range)
        self.nodes = Informer(client, NODES, label_selector=f"{LABEL}=true")
        self.nodes.on(self._node, lambda _old, new: self._node(new), self._node_gone)
        # Pods without a node are nobody's here, and in a full cluster they are the ones that change most.
        self.pods = Informer(client, PODS, field_selector="spec.nodeName!=")
        self.pods.on(self.kubelets.pod, lambda _old, new: self.kubelets.pod(new), self.kubelets.pod_gone)
        self._slots = asyncio.Semaphore(AT_ONCE)

    # -- nodes -----------------------------------------------------------------------------------------------------------

    def _node(self, node: Object) -> None:
        name = node["metadata"]["name"]
        if name in self.objects:
            status = node.get("status") or {}
            address = next((a["address"] for a in status.get("addresses") or () if a["type"] == "InternalIP"), "")
            self.kubelets.node(name, address, (node.get("spec") or {}).get("podCIDRs") or [])

    def _node_gone(self, node: Object) -> None:
        """Deleted by somebody: a machine that was taken out. It does not come back by itself."""
        name = node["metadata"]["name"]
        if self.objects.pop(name, None) is not None:
            self.kubelets.node_gone(name)

    async def register_all(self) -> None:
        """Make the Node objects and their leases; those that are there already get their status anew."""
        async with asyncio.TaskGroup() as tasks:
            for node in self.objects.values():
                tasks.create_task(self._register(node))

    async def _register(self, node: Object) -> None:
        name = node["metadata"]["name"]
        async with self._slots:
            try:
                made = await self.client.create(NODES, node)
            except StatusError as error:
                if not is_already_exists(error):
                    raise
                made = await self.client.patch(NODES, name, {"status": node["status"]}, kind="strategic", subresource="status")  # fmt: skip
                marks = made["metadata"].get("labels") or {}
                if any(marks.get(key) != value for key, value in node["metadata"]["labels"].items()):
                    labels = {"metadata": {"labels": node["metadata"]["labels"]}}
                    made = await self.client.patch(NODES, name, labels)
            await self._untaint(made)
            await self._lease(made)

    async def _untaint(self, node: Object) -> None:
        """A new node is tainted until it is seen to be Ready; it is, and there may be no node lifecycle controller."""
        taints = (node.get("spec") or {}).get("taints") or []
        left = [taint for taint in taints if taint["key"] != NOT_READY]
        if len(left) == len(taints):
            return
        meta = {"resourceVersion": node["metadata"]["resourceVersion"]}
        try:
            await self.client.patch(NODES, node["metadata"]["name"], {"metadata": meta, "spec": {"taints": left}})
        except StatusError as error:
            if not is_conflict(error):  # a conflict: the controller was quicker
                raise

    async def _lease(self, node: Object) -> None:
        name = node["metadata"]["name"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
        spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": _micro_now()}
        lease = {"metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]}, "spec": spec}
        try:
            await self.client.create(LEASES, lease)
        except StatusError as error:
            if not is_already_exists(error):
                raise
            patch = {"metadata": {"ownerReferences": [owner]}, "spec": spec}
            await self.client.patch(LEASES, name, patch, LEASE_NAMESPACE)

    async def heartbeat(self, period: float) -> None:
        """Renew all leases once a period (seconds), evenly spread over it; until cancelled."""
        loop = asyncio.get_running_loop()
        renewals: set[asyncio.Task[None]] = set()
        while True:
            begun = loop.time()
            names = list(self.objects)
            for number, name in enumerate(names):
                ahead = begun + period * number / len(names) - loop.time()
                if ahead > 0.02:
                    await asyncio.sleep(ahead)
                await self._slots.acquire()
                task = asyncio.create_task(self._renew(name))
                renewals.add(task)
                task.add_done_callback(renewals.discard)
            await asyncio.sleep(max(0.05, begun + period - loop.time()))

    async def _renew(self, name: str) -> None:
        try:
            await self.client.patch(LEASES, name, {"spec": {"renewTime": _micro_now()}}, LEASE_NAMESPACE)
        except (StatusError, OSError, TimeoutError, ClientError) as error:
            if is_not_found(error) and name in self.nodes.store:
                await self._lease_again(name)
            else:
                log.debug("lease of %s: %s", name, error)
        finally:
            self._slots.release()

    async def _lease_again(self, name: str) -> None:
        node = self.nodes.store.get(name)
        try:
            if node is not None:
                await self._lease(node)
        except (StatusError, OSError, TimeoutError, ClientError) as error:
            log.debug("lease of %s: %s", name, error)

    async def remove_all(self) -> None:
        """Delete the Node objects (their leases and pods follow them)."""

        async def remove(name: str) -> None:
            async with self._slots:
                try:
                    await self.client.delete(NODES, name)
                except StatusError as error:
                    if not is_not_found(error):
                        raise

        await asyncio.gather(*(remove(name) for name in list(self.objects)))


def _micro_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def serve(
    *, client: Client, count: int, name: str = "simulated", cpu: str = "32", memory: str = "128Gi", pods: int = 110,
    zones: int = 3, taints: Sequence[Object] = (), labels: dict[str, str] | None = None, rules: Rules | None = None,
    pod_range: str = addresses.DEFAULT_PODS, heartbeat: float = HEARTBEAT_SECONDS, remove: bool = False,
    ready: asyncio.Event | None = None, started: list[SimulatedNodes] | None = None,
) -> None:  # fmt: skip
    """Run simulated nodes NAME-0 ... until cancelled.

    client: may write nodes, leases in kube-node-lease, pods and their status. cpu, memory, pods: of each node; zones:
    over which they are spread, 0 for no zone label. rules: what their pods do (rules.Rules; default: run for ever,
    Jobs end well at once). pod_range: addresses of pods where the cluster gives nodes no ranges. heartbeat: seconds
    between a node's lease renewals, 0 for none. remove: delete the Node objects at the end. ready: set when all nodes
    are registered and their pods are known. started: given the running SimulatedNodes, for its counts.
    Nodes of those names that are there already are taken over, with the pods on them.
    Raises StatusError (not allowed to), ValueError (count).
    """
    if not 0 < count <= MOST_NODES:
        raise ValueError(f"count must be from 1 to {MOST_NODES}")
    objects = [
        node_object(i, name=name, cpu=cpu, memory=memory, pods=pods, zones=zones, taints=taints, labels=labels)
        for i in range(count)
    ]
    simulated = SimulatedNodes(client, objects, rules or Rules(), pod_range=pod_range)
    if started is not None:
        started.append(simulated)
    try:
        async with asyncio.TaskGroup() as tasks:
            await simulated.register_all()
            if heartbeat > 0:
                tasks.create_task(simulated.heartbeat(heartbeat))
            tasks.create_task(simulated.kubelets.run())
            tasks.create_task(simulated.nodes.run())
            await simulated.nodes.wait_synced()
            # Only now: a pod is known as ours by its node.
            tasks.create_task(simulated.pods.run())
            await simulated.pods.wait_synced()
            log.info("%d nodes, %d pods", len(simulated.objects), len(simulated.kubelets.lives))
            if ready is not None:
                ready.set()
    finally:
        if remove:
            await simulated.remove_all()
