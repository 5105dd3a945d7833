"""Plugins over volumes: claims are bound (or can be) on the node, in its zone, and by nobody else.

Sources: kubernetes pkg/scheduler/framework/plugins/volumebinding, volumezone, volumerestrictions, nodevolumelimits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from longshore.client.objects import is_deleting, promised_volume
from longshore.client.resources import (
    CSI_DRIVERS,
    CSI_NODES,
    CSI_STORAGE_CAPACITIES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    STORAGE_CLASSES,
)
from longshore.client.selectors import matcher
from longshore.client.store import Object
from longshore.machinery.quantity import parse
from longshore.master.scheduler.framework import CycleState, Handle, Plugin, Status
from longshore.master.scheduler.nodes import NodeRow
from longshore.master.scheduler.podinfo import PodInfo
from longshore.master.scheduler.terms import node_term

SELECTED_NODE = "volume.kubernetes.io/selected-node"
BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
BIND_SECONDS = 600.0
ZONES = (
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
)


def is_bound(claim: Object) -> bool:
    return bool(claim["spec"].get("volumeName")) and BIND_COMPLETED in (claim["metadata"].get("annotations") or {})


def reaches(volume: Object, node: NodeRow) -> bool:
    """Whether a volume can be used on a node."""
    required = (volume["spec"].get("nodeAffinity") or {}).get("required")
    if not required:
        return True
    return any(node_term(t)(node.labels, node.name) for t in required.get("nodeSelectorTerms") or ())


def suits(volume: Object, claim: Object) -> bool:
    """Whether an available volume could be bound to a claim."""
    spec, wanted = volume["spec"], claim["spec"]
    ref = spec.get("claimRef")
    meta = claim["metadata"]
    if ref and (ref.get("namespace"), ref.get("name")) != (meta["namespace"], meta["name"]):
        return False
    if ref and ref.get("uid") and ref["uid"] != meta["uid"]:
        return False
    if is_deleting(volume) or (volume.get("status") or {}).get("phase") not in ("Available", None, ""):
        return False
    if (spec.get("storageClassName") or "") != (wanted.get("storageClassName") or ""):
        return False
    if (spec.get("volumeMode") or "Filesystem") != (wanted.get("volumeMode") or "Filesystem"):
        return False
    if not set(wanted.get("accessModes") or ()) <= set(spec.get("accessModes") or ()):
        return False
    if wanted.get("selector") and not matcher(wanted["selector"])(volume["metadata"].get("labels") or {}):
        return False
    return capacity(volume) >= request(claim)


def capacity(volume: Object) -> int:
    return parse(str((volume["spec"].get("capacity") or {}).get("storage", "0"))).value


def request(claim: Object) -> int:
    return parse(str(((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0"))).value


class VolumeBinding(Plugin):
    """Claims that wait for a first consumer are bound or provisioned for the node that is chosen."""

    name = "VolumeBinding"
    wants = frozenset(
        {"PersistentVolumeClaim", "PersistentVolume", "StorageClass", "Node", "CSIDriver", "CSIStorageCapacity"}
    )

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        self.claims = handle.watch(PERSISTENT_VOLUME_CLAIMS)
        self.volumes = handle.watch(PERSISTENT_VOLUMES)
        self.classes = handle.watch(STORAGE_CLASSES)
        self.drivers = handle.watch(CSI_DRIVERS)
        self.capacities = handle.watch(CSI_STORAGE_CAPACITIES)
        self.seconds = float(args.get("bindTimeoutSeconds") or BIND_SECONDS)
        self._assumed: dict[str, str] = {}  # volume -> the claim that it is promised to
        self._waiters: set[asyncio.Event] = set()
        self.claims.on(update=self._claim_changed, delete=lambda o: self._claim_changed(o, o))

    def _claim_changed(self, old: Object, new: Object) -> None:
        for waiter in self._waiters:
            waiter.set()

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        if not pod.cls.claims:
            return Status.skip()
        bound, waiting = [], []
        for name in pod.cls.claims:
            claim = self.claims.store.named(pod.namespace, name)
            if claim is None:
                return Status.unresolvable(f'persistentvolumeclaim "{name}" not found')
            if (claim.get("status") or {}).get("phase") == "Lost":
                volume = claim["spec"].get("volumeName")
                return Status.unresolvable(
                    f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume "{volume}"'
                )
            if is_deleting(claim):
                return Status.unresolvable(f'persistentvolumeclaim "{name}" is being deleted')
            if is_bound(claim):
                bound.append(claim)
            elif self._waits(claim):
                waiting.append(claim)
            else:
                return Status.unresolvable("pod has unbound immediate PersistentVolumeClaims")
        state.data[self.name] = (bound, waiting)
        return None

    def _waits(self, claim: Object) -> bool:
        found = self.classes.store.get(claim["spec"].get("storageClassName") or "")
        return found is not None and found.get("volumeBindingMode") == "WaitForFirstConsumer"

    def _plan(self, state: CycleState, node: NodeRow) -> tuple[list[tuple[Object, Object]], list[Object]] | Status:
        """(claims with the volumes to bind them to, claims to provision) on a node, or why not."""
        bound, waiting = state.data[self.name]
        for claim in bound:
            volume = self.volumes.store.get(claim["spec"]["volumeName"])
            if volume is None:
                return Status.unresolvable("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
            if not reaches(volume, node):
                return Status.unresolvable("node(s) didn't match PersistentVolume's node affinity")
        matched: list[tuple[Object, Object]] = []
        provision: list[Object] = []
        taken = set()
        for claim in sorted(waiting, key=request):
            chosen_node = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE)
            if chosen_node:
                if chosen_node != node.name:
                    return Status.unresolvable("node(s) didn't match PersistentVolume's node affinity")
                provision.append(claim)
                continue
            fitting = [
                v
                for v in self.volumes.store
                if v["metadata"]["name"] not in taken
                and self._assumed.get(v["metadata"]["name"], claim["metadata"]["uid"]) == claim["metadata"]["uid"]
                and suits(v, claim)
                and reaches(v, node)
            ]
            if fitting:
                volume = min(fitting, key=capacity)
                taken.add(volume["metadata"]["name"])
                matched.append((claim, volume))
                continue
            found = self.classes.store.get(claim["spec"].get("storageClassName") or "")
            if found is None or found.get("provisioner") in (None, "", NO_PROVISIONER):
                return Status.unresolvable("node(s) didn't find available persistent volumes to bind")
            topologies = found.get("allowedTopologies") or ()
            if topologies and not any(_in_topology(t, node) for t in topologies):
                return Status.unresolvable("node(s) didn't find available persistent volumes to bind")
            if not self._room(found, claim, node):
                return Status.unresolvable("node(s) did not have enough free storage")
            provision.append(claim)
        return matched, provision

    def _room(self, storage_class: Object, claim: Object, node: NodeRow) -> bool:
        """Whether the provisioner says that it has room for a claim where the node is, if it says anything."""
        driver = self.drivers.store.get(storage_class["provisioner"])
        if driver is None or not driver["spec"].get("storageCapacity"):
            return True
        wanted, name = request(claim), storage_class["metadata"]["name"]
        for told in self.capacities.store:
            most = told.get("maximumVolumeSize") or told.get("capacity")
            if told["storageClassName"] == name and most is not None and parse(str(most)).value >= wanted:
                topology = told.get("nodeTopology")
                if topology is not None and matcher(topology)(node.labels):
                    return True
        return False

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        if self.name not in state.data:
            return None
        plan = self._plan(state, node)
        return plan if isinstance(plan, Status) else None

    def reserve(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        if self.name not in state.data:
            return None
        row = self.handle.table.by_name[node]
        plan = self._plan(state, row)
        if isinstance(plan, Status):
            return plan
        state.data["volume plan"] = plan
        for claim, volume in plan[0]:
            self._assumed[volume["metadata"]["name"]] = claim["metadata"]["uid"]
        return None

    def unreserve(self, state: CycleState, pod: PodInfo, node: str) -> None:
        for _, volume in state.data.get("volume plan", ([], []))[0]:
            self._assumed.pop(volume["metadata"]["name"], None)

    async def pre_bind(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        plan = state.data.get("volume plan")
        if plan is None or not (plan[0] or plan[1]):
            return None
        client = self.handle.client
        waiter = asyncio.Event()
        self._waiters.add(waiter)
        try:
            for claim, volume in plan[0]:
                await client.update(PERSISTENT_VOLUMES, promised_volume(volume, claim))
            for claim in plan[1]:
                if (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE) != node:
                    patch = {"metadata": {"annotations": {SELECTED_NODE: node}, "uid": claim["metadata"]["uid"]}}
                    await client.patch(PERSISTENT_VOLUME_CLAIMS, claim["metadata"]["name"], patch, pod.namespace)
            names = [c["metadata"]["name"] for c, _ in plan[0]] + [c["metadata"]["name"] for c in plan[1]]
            async with asyncio.timeout(self.seconds):
                while True:
                    waiter.clear()
                    status = self._outcome(pod, names, node)
                    if status is not False:
                        return status if isinstance(status, Status) else None
                    await waiter.wait()
        except TimeoutError:
            return Status.error("timed out waiting for the condition")
        finally:
            self._waiters.discard(waiter)
            self.unreserve(state, pod, node)

    def _outcome(self, pod: PodInfo, names: list[str], node: str) -> Status | bool:
        """True when all claims are bound, False while they are not, a Status when they never will be."""
        for name in names:
            claim = self.claims.store.named(pod.namespace, name)
            if claim is None:
                return Status.error(f'persistentvolumeclaim "{name}" not found')
            if is_bound(claim):
                continue
            chosen = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE)
            if chosen not in (None, node):
                return Status.error(f'selectedNode annotation value "{chosen}" not set to scheduled node "{node}"')
            return False
        return True


def _in_topology(topology: Object, node: NodeRow) -> bool:
    return all(
        node.labels.get(e["key"]) in (e.get("values") or ()) for e in topology.get("matchLabelExpressions") or ()
    )


class _OverClaims(Plugin):
    """What plugins over claims share."""

    wants = frozenset({"PersistentVolumeClaim", "PersistentVolume", "Pod", "Node", "CSINode"})

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        self.claims = handle.watch(PERSISTENT_VOLUME_CLAIMS)
        self.volumes = handle.watch(PERSISTENT_VOLUMES)

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        return None if pod.cls.claims else Status.skip()

    def _volumes(self, pod: PodInfo) -> list[Object]:
        """The volumes that the pod's claims are bound to."""
        found = []
        for name in pod.cls.claims:
            claim = self.claims.store.named(pod.namespace, name)
            volume = self.volumes.store.get((claim or {"spec": {}})["spec"].get("volumeName") or "")
            if volume is not None:
                found.append(volume)
        return found


class VolumeZone(_OverClaims):
    """Volumes with zone labels stay in their zone."""

    name = "VolumeZone"

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        if not any(node.labels.get(z) for z in ZONES):
            return None
        for volume in self._volumes(pod):
            for label in ZONES:
                value = (volume["metadata"].get("labels") or {}).get(label)
                if value and node.labels.get(label) not in value.split("__"):
                    return Status.unresolvable("node(s) had no available volume zone")
        return None


class VolumeRestrictions(_OverClaims):
    """A ReadWriteOncePod claim is for one pod in the whole cluster."""

    name = "VolumeRestrictions"

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        names = set()
        for name in pod.cls.claims:
            claim = self.claims.store.named(pod.namespace, name)
            if claim is not None and "ReadWriteOncePod" in (claim["spec"].get("accessModes") or ()):
                names.add(name)
        if not names:
            return Status.skip()
        state.data[self.name] = names
        return None

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        names: set[str] = state.data.get(self.name, set())
        table: Any = self.handle.table
        for row in table.by_name.values():
            for other in row.pods.values():
                if other.key != pod.key and other.namespace == pod.namespace and names.intersection(other.cls.claims):
                    message = (
                        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
                    )
                    return Status.unschedulable(message)
        return None


class NodeVolumeLimits(_OverClaims):
    """CSI drivers attach only so many volumes to a node."""

    name = "NodeVolumeLimits"

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        self.csi_nodes = handle.watch(CSI_NODES)

    def _by_driver(self, pod: PodInfo) -> dict[str, set[str]]:
        result: dict[str, set[str]] = {}
        for volume in self._volumes(pod):
            csi = volume["spec"].get("csi")
            if csi:
                result.setdefault(csi["driver"], set()).add(csi["volumeHandle"])
        return result

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        wanted = self._by_driver(pod)
        csi_node = self.csi_nodes.store.get(node.name)
        if not wanted or csi_node is None:
            return None
        for driver in csi_node["spec"].get("drivers") or ():
            limit = (driver.get("allocatable") or {}).get("count")
            new = wanted.get(driver["name"])
            if limit is None or not new:
                continue
            attached = set(new)
            for other in node.pods.values():
                attached |= self._by_driver(other).get(driver["name"], set())
            if len(attached) > int(limit):
                return Status.unschedulable("node(s) exceed max volume count")
        return None
