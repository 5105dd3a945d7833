"""ReplicaSets (and, in replicationcontroller.py, their elder sibling): so many pods of one template.

Source: kubernetes pkg/controller/replicaset, described behaviour.
"""

from __future__ import annotations

import time
from typing import ClassVar

from longshore.client.objects import (
    condition,
    controller_of,
    is_active,
    is_available,
    is_deleting,
    is_ready,
    is_terminal,
    now,
    seconds,
)
from longshore.client.resources import PODS, REPLICA_SETS, Resource
from longshore.client.rest import is_namespace_terminating
from longshore.client.store import Object, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import pods as pod_control
from longshore.master.controllers.adoption import claim
from longshore.master.controllers.podowner import PodOwnerController


class ReplicaSetController(PodOwnerController):
    """Keeps each ReplicaSet's pods at spec.replicas."""

    name = "replicaset-controller"
    account = "replicaset-controller"
    component = "replicaset-controller"
    workers = 20
    resource: ClassVar[Resource] = REPLICA_SETS
    counts_terminating: ClassVar[bool] = True

    def setup(self) -> None:
        self.watch_pods()

    def pod_changed(self, old: Object, pod: Object) -> None:
        super().pod_changed(old, pod)
        after = self.owner(pod)
        if after is not None and not is_deleting(pod) and not is_ready(old) and is_ready(pod):
            wait = self._min_ready(self.owners.store.get(after) or {})
            if wait:
                # One second over, so that the clock of the check is surely past.
                self.queue.add_after(after, wait + 1)

    @staticmethod
    def _min_ready(obj: Object) -> int:
        return int((obj.get("spec") or {}).get("minReadySeconds") or 0)

    # -- reconcile -----------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        obj = self.owners.store.named(namespace, name)
        if obj is None:
            self.expectations.forget(key)
            return None
        fresh = await self.caught_up(obj)
        owned = self.pods.store.index("controller", obj["metadata"]["uid"])
        candidates = [p for p in self.candidates(obj) if is_active(p)]
        active = await claim(self.client, obj, self.resource, PODS, candidates, self.selector(obj))
        terminating = sum(1 for p in owned if is_deleting(p) and not is_terminal(p))
        failure: BaseException | None = None
        if fresh and not is_deleting(obj):
            failure = await self._manage(key, obj, active)
        status = self._status(obj, active, terminating, failure)
        await self._write_status(obj, status)
        if failure is not None:
            raise failure
        wait = self._min_ready(obj)
        if wait and status.get("readyReplicas") == obj["spec"].get("replicas", 1) != status.get("availableReplicas", 0):
            return self._next_available(active, wait)
        return None

    @staticmethod
    def _next_available(active: list[Object], wait: int) -> float:
        at = time.time()
        ends = [
            seconds((condition(p, "Ready") or {}).get("lastTransitionTime")) + wait - at
            for p in active
            if is_ready(p) and not is_available(p, wait, at)
        ]
        return max(0.1, min(ends, default=float(wait)))

    async def _manage(self, key: str, obj: Object, active: list[Object]) -> BaseException | None:
        wanted = int(obj["spec"].get("replicas", 1))
        missing = wanted - len(active)
        if missing > 0:
            return await self._create(obj, min(missing, pod_control.BURST))
        if missing < 0:
            return await self._delete(obj, active, min(-missing, pod_control.BURST))
        return None

    async def _create(self, obj: Object, count: int) -> BaseException | None:
        async def one() -> None:
            try:
                await self.make_pod(obj, pod_control.from_template(obj["spec"]["template"], obj))
            except StatusError as error:
                if not is_namespace_terminating(error):
                    raise

        _, error = await pod_control.in_batches(count, one)
        return error

    async def _delete(self, obj: Object, active: list[Object], count: int) -> BaseException | None:
        chosen = pod_control.deletion_order(active, self._related(obj))[:count]
        rest = iter(chosen)

        async def one() -> None:
            await self.remove_pod(obj, next(rest))

        _, error = await pod_control.in_batches(len(chosen), one)
        return error

    def _related(self, obj: Object) -> list[Object]:
        """The pods of all sets with the same controller: they say how crowded the nodes are."""
        ref = controller_of(obj)
        siblings = self.owners.store.index("controller", ref["uid"]) if ref is not None else [obj]
        return [p for s in siblings for p in self.pods.store.index("controller", s["metadata"]["uid"]) if is_active(p)]

    # -- status --------------------------------------------------------------------------------------------------------

    def _status(self, obj: Object, active: list[Object], terminating: int, failure: BaseException | None) -> Object:
        old = obj.get("status") or {}
        template_labels = (obj["spec"].get("template", {}).get("metadata") or {}).get("labels") or {}
        wait, at = self._min_ready(obj), time.time()
        labelled = ready = available = 0
        for pod in active:
            labels = pod["metadata"].get("labels") or {}
            labelled += all(labels.get(k) == v for k, v in template_labels.items())
            if is_ready(pod):
                ready += 1
                available += is_available(pod, wait, at)
        status: Object = {"replicas": len(active)}
        for field, value in (
            ("fullyLabeledReplicas", labelled),
            ("readyReplicas", ready),
            ("availableReplicas", available),
        ):
            if value:
                status[field] = value
        if self.counts_terminating:
            status["terminatingReplicas"] = terminating
        status["observedGeneration"] = obj["metadata"].get("generation", 0)
        conditions = [c for c in old.get("conditions") or () if c["type"] != "ReplicaFailure"]
        known = condition(obj, "ReplicaFailure")
        if failure is not None:
            excess = len(active) > int(obj["spec"].get("replicas", 1))
            fresh = {
                "type": "ReplicaFailure",
                "status": "True",
                "reason": "FailedDelete" if excess else "FailedCreate",
                "message": pod_control.text(failure),
                "lastTransitionTime": now(),
            }
            conditions.append(known if known is not None and known["reason"] == fresh["reason"] else fresh)
        if conditions:
            status["conditions"] = conditions
        return status

    async def _write_status(self, obj: Object, status: Object) -> None:
        if status != (obj.get("status") or {}):
            await self.client.update(self.resource, {**obj, "status": status}, subresource="status")
