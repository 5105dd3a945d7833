"""Plugins that need only the pod and the node object: name, taints, affinity, gates, ports, images, binding.

Source: kubernetes pkg/scheduler/framework/plugins, described behaviour and reasons.
"""

from __future__ import annotations

import logging

import numpy as np

from longshore.client.objects import tolerates
from longshore.client.resources import PODS
from longshore.client.store import Object
from longshore.machinery.errors import StatusError
from longshore.master.scheduler.framework import (
    Action,
    ClusterEvent,
    CycleState,
    Plugin,
    Scores,
    Status,
    default_normalize,
)
from longshore.master.scheduler.nodes import NodeRow, Rows
from longshore.master.scheduler.podinfo import PodInfo, ports_collide
from longshore.master.scheduler.terms import NodeTerms

log = logging.getLogger("longshore.scheduler")

UNSCHEDULABLE_TAINT = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


class SchedulingGates(Plugin):
    """Holds pods back while spec.schedulingGates is not empty."""

    name = "SchedulingGates"

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        gates = [g["name"] for g in pod.pod["spec"].get("schedulingGates") or ()]
        if not gates:
            return None
        return Status.unresolvable(f"waiting for scheduling gates: [{' '.join(gates)}]")


class PrioritySort(Plugin):
    """Orders the queue by priority, then by age: the queue's own order, named so that profiles can list it."""

    name = "PrioritySort"


class NodeName(Plugin):
    """spec.nodeName of a pod that nobody bound yet."""

    name = "NodeName"

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        return None if pod.pod["spec"].get("nodeName") else Status.skip()

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        if pod.pod["spec"].get("nodeName") in (None, "", node.name):
            return None
        return Status.unresolvable("node(s) didn't match the requested node name")


class NodeUnschedulable(Plugin):
    """Cordoned nodes."""

    name = "NodeUnschedulable"
    filter_scope = "static"
    wants = frozenset({"Node"})

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        spec = (node.node or {}).get("spec") or {}
        if not spec.get("unschedulable") or tolerates(pod.cls.tolerations, UNSCHEDULABLE_TAINT):
            return None
        return Status.unresolvable("node(s) were unschedulable")

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        return not ((event.new or {}).get("spec") or {}).get("unschedulable")


class TaintToleration(Plugin):
    """Taints of effect NoSchedule and NoExecute refuse, PreferNoSchedule makes a node worse."""

    name = "TaintToleration"
    filter_scope = "static"
    score_scope = "static"
    wants = frozenset({"Node"})

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        for taint in node.taints:
            if taint.get("effect") in ("NoSchedule", "NoExecute") and not tolerates(pod.cls.tolerations, taint):
                return Status.unresolvable("node(s) had untolerated taint(s)")
        return None

    def pre_score(self, state: CycleState, pod: PodInfo, rows: Rows) -> Status | None:
        # With no such taint anywhere every node would get the same.
        return None if self.handle.table.prefer_no_schedule else Status.skip()

    def score(self, state: CycleState, pod: PodInfo, node: NodeRow) -> float:
        bearing = [t for t in pod.cls.tolerations if not t.get("effect") or t["effect"] == "PreferNoSchedule"]
        return sum(1 for t in node.taints if t.get("effect") == "PreferNoSchedule" and not tolerates(bearing, t))

    def normalize(self, state: CycleState, pod: PodInfo, scores: Scores) -> Scores:
        return default_normalize(scores, reverse=True)


class NodeAffinity(Plugin):
    """nodeSelector and nodeAffinity of the pod, and addedAffinity of the profile."""

    name = "NodeAffinity"
    filter_scope = "static"
    score_scope = "static"
    wants = frozenset({"Node"})

    def __init__(self, handle: object, args: Object) -> None:
        super().__init__(handle, args)  # type: ignore[arg-type]
        self.added = NodeTerms({}, args.get("addedAffinity") or {})

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        terms = pod.cls.node_terms
        if terms.any_node and self.added.any_node:
            return Status.skip()
        if terms.names is not None:
            state.only = set(terms.names) if state.only is None else state.only & terms.names
            if not terms.names:
                return Status.unresolvable("pod affinity terms conflict")
        return None

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        if not self.added.match(node.labels, node.name):
            return Status.unresolvable("node(s) didn't match scheduler-enforced node affinity")
        if not pod.cls.node_terms.match(node.labels, node.name):
            return Status.unresolvable("node(s) didn't match Pod's node affinity/selector")
        return None

    def pre_score(self, state: CycleState, pod: PodInfo, rows: Rows) -> Status | None:
        return None if pod.cls.node_terms.preferred or self.added.preferred else Status.skip()

    def score(self, state: CycleState, pod: PodInfo, node: NodeRow) -> float:
        terms = pod.cls.node_terms
        return terms.preference(node.labels, node.name) + self.added.preference(node.labels, node.name)

    def normalize(self, state: CycleState, pod: PodInfo, scores: Scores) -> Scores:
        return default_normalize(scores)

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        meta = (event.new or {"metadata": {}})["metadata"]
        return bool(meta) and pod.cls.node_terms.match(meta.get("labels") or {}, meta["name"])


class NodeDeclaredFeatures(Plugin):
    """What a pod needs that not every kubelet can: nodes tell in status.declaredFeatures."""

    name = "NodeDeclaredFeatures"
    filter_scope = "static"
    wants = frozenset({"Node"})

    @staticmethod
    def needs(spec: Object) -> set[str]:
        """The features that a pod needs (component-helpers nodedeclaredfeatures)."""
        found = set()
        every = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
        rules = (rule for container in every for rule in container.get("restartPolicyRules") or ())
        if any(rule.get("action") == "RestartAllContainers" for rule in rules):
            found.add("RestartAllContainersOnContainerExits")
        if spec.get("hostNetwork") and spec.get("hostUsers") is False:
            found.add("UserNamespacesHostNetworkSupport")
        return found

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        return None if self.needs(pod.pod["spec"]) else Status.skip()

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        declared = ((node.node or {}).get("status") or {}).get("declaredFeatures") or ()
        if self.needs(pod.pod["spec"]).issubset(declared):
            return None
        return Status.unresolvable("node(s) didn't match Pod's required features")

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        declared = ((event.new or {}).get("status") or {}).get("declaredFeatures") or ()
        return self.needs(pod.pod["spec"]).issubset(declared)


class NodePorts(Plugin):
    """Host ports that another pod of the node has taken."""

    name = "NodePorts"
    filter_scope = "node"
    wants = frozenset({"Pod", "Node"})

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        return None if pod.cls.ports else Status.skip()

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        for port in pod.cls.ports:
            if any(ports_collide(port, taken) for taken in node.ports):
                return Status.unschedulable("node(s) didn't have free ports for the requested pod ports")
        return None

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.kind == "Node":
            return event.action is Action.ADD
        if event.action is not Action.DELETE or event.old is None:
            return False
        other = PodInfo(event.old)
        return any(ports_collide(a, b) for a in pod.cls.ports for b in other.cls.ports)


class ImageLocality(Plugin):
    """Nodes that have the pod's images already, weighted by how many nodes do."""

    name = "ImageLocality"
    score_scope = "static"

    LEAST, MOST = 23 * 1024 * 1024, 1000 * 1024 * 1024

    def pre_score(self, state: CycleState, pod: PodInfo, rows: Rows) -> Status | None:
        return None if any(pod.cls.images) or pod.cls.volume_images else Status.skip()

    def score_rows(self, state: CycleState, pod: PodInfo, rows: Rows) -> Scores:
        table = self.handle.table
        names = [normalized_image(image) for image in (*pod.cls.images, *pod.cls.volume_images)]
        sums: Scores = np.zeros(len(rows), dtype=np.float64)
        for name in names:
            sizes = np.fromiter(
                (row.images.get(name, 0) if (row := table.rows[i]) is not None else 0 for i in rows.tolist()),
                dtype=np.float64,
                count=len(rows),
            )
            if sizes.any():
                nodes = max(1, len(table))
                have = sum(1 for row in table.by_name.values() if name in row.images)
                sums += np.floor(sizes * have / nodes)
        most = self.MOST * max(1, len(pod.cls.images))
        clipped = np.clip(sums, self.LEAST, most)
        return np.floor(100 * (clipped - self.LEAST) / (most - self.LEAST))


def normalized_image(name: str) -> str:
    """An image name with a tag, as kubelets list them."""
    return name if name.rfind(":") > name.rfind("/") else name + ":latest"


class DefaultBinder(Plugin):
    """Binds through the pod's binding subresource."""

    name = "DefaultBinder"

    async def bind(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "target": {"kind": "Node", "name": node},
        }
        try:
            await self.handle.client.create(PODS, binding, pod.namespace, name=pod.name, subresource="binding")
        except StatusError as error:
            return Status.error(error.message)
        return None
