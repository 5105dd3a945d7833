"""DynamicResources: pods that use ResourceClaims run where their claims are allocated.

Claims that are allocated and shared are honoured; allocation itself is not done here, and such a pod is told so.
Source: kubernetes pkg/scheduler/framework/plugins/dynamicresources, reasons.
"""

from __future__ import annotations

from longshore.client.resources import RESOURCE_CLAIMS
from longshore.client.store import Object
from longshore.master.scheduler.framework import CycleState, Handle, Plugin, Status
from longshore.master.scheduler.nodes import NodeRow
from longshore.master.scheduler.podinfo import PodInfo
from longshore.master.scheduler.terms import node_term


class DynamicResources(Plugin):
    """Keeps pods on nodes that their allocated claims can be used from."""

    name = "DynamicResources"
    wants = frozenset({"ResourceClaim", "Pod"})

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        self.claims = handle.watch(RESOURCE_CLAIMS)

    def _names(self, pod: PodInfo) -> list[tuple[str, str | None]]:
        """(the pod's name for a claim, the claim's own name or None while it is not made)."""
        made = {
            s["name"]: s.get("resourceClaimName")
            for s in (pod.pod.get("status") or {}).get("resourceClaimStatuses") or ()
        }
        return [
            (entry["name"], entry.get("resourceClaimName") or made.get(entry["name"]))
            for entry in pod.pod["spec"].get("resourceClaims") or ()
        ]

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        names = self._names(pod)
        if not names:
            return Status.skip()
        allocations = []
        for local, name in names:
            if name is None:
                return Status.unresolvable(f'pod "{pod.key}": ResourceClaim "{local}" not created yet')
            claim = self.claims.store.named(pod.namespace, name)
            if claim is None:
                return Status.unresolvable(f'resourceclaim "{name}" not found')
            allocation = (claim.get("status") or {}).get("allocation")
            if allocation is None:
                return Status.unresolvable("cannot allocate all claims")
            allocations.append(allocation)
        state.data[self.name] = allocations
        return None

    def filter(self, state: CycleState, pod: PodInfo, node: NodeRow) -> Status | None:
        for allocation in state.data.get(self.name, ()):
            selector = allocation.get("nodeSelector")
            terms = (selector or {}).get("nodeSelectorTerms") or ()
            if selector and not any(node_term(t)(node.labels, node.name) for t in terms):
                return Status.unresolvable("resourceclaim not available on the node")
        return None

    async def post_filter(
        self, state: CycleState, pod: PodInfo, refused: dict[str, Status]
    ) -> tuple[str, Status | None]:
        return "", Status.unschedulable("no new claims to deallocate")
