"""PodDisruptionBudgets: how many pods are healthy, how many must be, how many may go.

Source: kubernetes pkg/controller/disruption, described behaviour.
"""

from __future__ import annotations

import time

from longshore.client.objects import condition, controller_of, is_deleting, is_ready, is_terminal, now, seconds
from longshore.client.resources import (
    BY_KIND,
    DEPLOYMENTS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    REPLICA_SETS,
    REPLICATION_CONTROLLERS,
    STATEFUL_SETS,
)
from longshore.client.rest import is_conflict, is_not_found
from longshore.client.selectors import matcher
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers.base import Controller
from longshore.master.controllers.rollout import percent

DELETION_SECONDS = 120.0
STALE_SECONDS = 120.0


class DisruptionController(Controller):
    """Keeps the status of disruption budgets, and takes stale disruption marks off pods."""

    name = "disruption-controller"
    component = "controllermanager"

    def setup(self) -> None:
        self.budgets = self.watch(POD_DISRUPTION_BUDGETS, add=self.enqueue, update=self.enqueue_update)
        self.pods = self.watch(PODS, add=self._pod, update=self._pod_changed, delete=self._pod)
        self.owners = {
            r.kind: self.watch(r) for r in (REPLICA_SETS, DEPLOYMENTS, STATEFUL_SETS, REPLICATION_CONTROLLERS)
        }

    def _pod(self, pod: Object) -> None:
        labels = pod["metadata"].get("labels") or {}
        for budget in self.budgets.store.list(pod["metadata"]["namespace"]):
            if matcher(budget["spec"].get("selector"))(labels):
                self.enqueue(budget)

    def _pod_changed(self, old: Object, new: Object) -> None:
        self._pod(new)
        if old["metadata"].get("labels") != new["metadata"].get("labels"):
            self._pod(old)
        mark = condition(new, "DisruptionTarget")
        if mark is not None and mark.get("status") == "True" and not is_deleting(new) and not is_terminal(new):
            self.queue.add_after("stale:" + key_of(new), STALE_SECONDS)

    async def reconcile(self, key: str) -> float | None:
        if key.startswith("stale:"):
            await self._unmark(key.removeprefix("stale:"))
            return None
        namespace, name = split_key(key)
        budget = self.budgets.store.named(namespace, name)
        if budget is None:
            return None
        matches = matcher(budget["spec"].get("selector"))
        pods = [p for p in self.pods.store.list(namespace) if matches(p["metadata"].get("labels") or {})]
        if not pods:
            self.event(budget, "Normal", "NoPods", "No matching pods found")
        try:
            expected, desired, unmanaged = await self._expected(budget, pods)
        except ValueError as error:
            self.event(
                budget,
                "Warning",
                "CalculateExpectedPodCountFailed",
                f"Failed to calculate the number of expected pods: {error}",
            )
            await self._fail_safe(budget, str(error))
            return None
        if unmanaged:
            message = "Pods selected by this PodDisruptionBudget (selector: "
            message += (
                f"{budget['spec'].get('selector')}) were found to be unmanaged. As a result, the status of the PDB "
            )
            message += (
                "cannot be calculated correctly, which may result in undefined behavior. To account for these pods "
            )
            message += 'please set ".spec.minAvailable" field of the PDB to an integer value.'
            self.event(budget, "Warning", "UnmanagedPods", message)
        at = time.time()
        disrupted, again, spared = self._disrupted(budget, pods, at)
        namespace = budget["metadata"]["namespace"]
        for pod in spared:
            message = (
                f"Pod was expected by PDB {namespace}/{namespace} to be deleted but it wasn't"  # twice, as upstream
            )
            self.event(pod, "Warning", "NotDeleted", message)
        healthy = sum(1 for p in pods if not is_deleting(p) and p["metadata"]["name"] not in disrupted and is_ready(p))
        await self._write(budget, healthy, desired, expected, disrupted)
        return again

    # -- counts ------------------------------------------------------------------------------------------------------------

    async def _expected(self, budget: Object, pods: list[Object]) -> tuple[int, int, list[str]]:
        """(expected pods, healthy ones needed, names of pods that nobody manages)."""
        spec = budget["spec"]
        if spec.get("maxUnavailable") is not None:
            count, unmanaged = await self._scale(pods)
            wanted = count - percent(spec["maxUnavailable"], count, up=True)
            return count, max(0, wanted), unmanaged
        least = spec.get("minAvailable", 1)
        if isinstance(least, int):
            return len(pods), least, []
        count, unmanaged = await self._scale(pods)
        return count, percent(least, count, up=True), unmanaged

    async def _scale(self, pods: list[Object]) -> tuple[int, list[str]]:
        """The sum of the sizes of the pods' controllers."""
        sizes: dict[str, int] = {}
        unmanaged = []
        for pod in pods:
            ref = controller_of(pod)
            if ref is None:
                unmanaged.append(pod["metadata"]["name"])
                continue
            if ref["uid"] not in sizes:
                top, size = await self._size(pod["metadata"]["namespace"], ref)
                sizes[ref["uid"]] = 0
                sizes[top] = size
        return sum(sizes.values()), unmanaged

    async def _size(self, namespace: str, ref: Object) -> tuple[str, int]:
        """(uid, size) of the controller that decides how many pods there are."""
        informer = self.owners.get(ref["kind"])
        if informer is not None:
            found = informer.store.named(namespace, ref["name"])
            if found is None:
                return ref["uid"], 0
            above = controller_of(found)
            if ref["kind"] == "ReplicaSet" and above is not None and above["kind"] == "Deployment":
                return await self._size(namespace, above)
            return ref["uid"], int(found["spec"].get("replicas", 1))
        group = ref["apiVersion"].rpartition("/")[0]
        resource = BY_KIND.get((group, ref["kind"]))
        if resource is not None:
            try:
                scale = await self.client.get(resource, ref["name"], namespace, subresource="scale")
                return ref["uid"], int((scale.get("spec") or {}).get("replicas") or 0)
            except StatusError as error:
                if not is_not_found(error):
                    raise
        raise ValueError(f"{resource or ref['kind']} does not implement the scale subresource")

    @staticmethod
    def _disrupted(budget: Object, pods: list[Object], at: float) -> tuple[dict[str, str], float | None, list[Object]]:
        """Pods whose eviction was allowed and is not yet seen, when the first of them is given up, and which are by now."""
        by_name = {p["metadata"]["name"]: p for p in pods}
        kept: dict[str, str] = {}
        again: float | None = None
        spared = []
        for name, since in ((budget.get("status") or {}).get("disruptedPods") or {}).items():
            pod = by_name.get(name)
            if pod is None or is_deleting(pod):
                continue
            left = seconds(since) + DELETION_SECONDS - at
            if left > 0:
                kept[name] = since
                again = left if again is None else min(again, left)
            else:
                spared.append(pod)
        return kept, again, spared

    # -- status ------------------------------------------------------------------------------------------------------------

    async def _write(
        self, budget: Object, healthy: int, desired: int, expected: int, disrupted: dict[str, str]
    ) -> None:
        allowed = max(0, healthy - desired) if expected > 0 else 0
        generation = budget["metadata"].get("generation", 0)
        old = budget.get("status") or {}
        entry = {
            "type": "DisruptionAllowed",
            "status": "True" if allowed else "False",
            "reason": "SufficientPods" if allowed else "InsufficientPods",
            "message": "",
            "observedGeneration": generation,
        }
        known = condition(budget, "DisruptionAllowed")
        same = known is not None and known.get("status") == entry["status"]
        entry["lastTransitionTime"] = known["lastTransitionTime"] if known is not None and same else now()
        conditions = [c for c in old.get("conditions") or () if c["type"] != "DisruptionAllowed"]
        status: Object = {
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": allowed,
            "expectedPods": expected,
            "observedGeneration": generation,
            "conditions": [*conditions, entry],
        }
        if disrupted:
            status["disruptedPods"] = disrupted
        if status != old:
            await self.client.update(POD_DISRUPTION_BUDGETS, {**budget, "status": status}, subresource="status")

    async def _fail_safe(self, budget: Object, message: str) -> None:
        """When nothing is known, nobody may go."""
        old = budget.get("status") or {}
        entry = {
            "type": "DisruptionAllowed",
            "status": "False",
            "reason": "SyncFailed",
            "message": message,
            "observedGeneration": budget["metadata"].get("generation", 0),
            "lastTransitionTime": now(),
        }
        known = condition(budget, "DisruptionAllowed")
        if known is not None and (known.get("reason"), known.get("message")) == ("SyncFailed", message):
            return
        conditions = [*(c for c in old.get("conditions") or () if c["type"] != "DisruptionAllowed"), entry]
        status = {"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, **old}
        status.update(disruptionsAllowed=0, conditions=conditions)
        await self.client.update(POD_DISRUPTION_BUDGETS, {**budget, "status": status}, subresource="status")

    async def _unmark(self, key: str) -> None:
        """A pod that was to go and did not: its mark goes."""
        pod = self.pods.store.named(*split_key(key))
        mark = condition(pod, "DisruptionTarget") if pod is not None else None
        if pod is None or mark is None or mark.get("status") != "True" or is_deleting(pod) or is_terminal(pod):
            return
        if mark.get("reason") == "TerminationByKubelet":
            return
        entry = {"type": "DisruptionTarget", "status": "False", "lastTransitionTime": now()}
        meta = pod["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "status": {"conditions": [entry]}}
        try:
            await self.client.patch(
                PODS, meta["name"], patch, meta["namespace"], kind="strategic", subresource="status"
            )
        except StatusError as error:
            if not is_not_found(error) and not is_conflict(error):
                raise
