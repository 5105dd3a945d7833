"""Device taint eviction: pods whose devices were given a NoExecute taint that their claims do not tolerate are deleted.

Source: kubernetes pkg/controller/devicetainteviction, described behaviour.
"""

from __future__ import annotations

import time
from typing import Any

from longshore.client.objects import is_deleting, is_terminal, seconds, toleration_matches
from longshore.client.resources import PODS, RESOURCE_CLAIMS, RESOURCE_SLICES
from longshore.client.store import Object, key_of
from longshore.master.controllers.base import Controller
from longshore.master.controllers.tainteviction import evict

DeviceID = tuple[str, str, str]  # driver, pool, device


def tainted(obj: Object) -> dict[DeviceID, list[Object]]:
    """A slice's devices that have NoExecute taints."""
    spec = obj["spec"]
    found = {}
    for device in spec.get("devices") or ():
        taints = [t for t in device.get("taints") or () if t.get("effect") == "NoExecute"]
        if taints:
            found[spec["driver"], spec["pool"]["name"], device["name"]] = taints
    return found


def end_of(taint: Object, tolerations: list[Object], at: float) -> float | None:
    """When (epoch seconds) users of a device with this taint must go; None for never."""
    matching = [t for t in tolerations if toleration_matches(t, taint)]
    since = seconds(taint.get("timeAdded")) or at
    if not matching:
        return since
    limits = [max(0.0, float(t["tolerationSeconds"])) for t in matching if t.get("tolerationSeconds") is not None]
    return since + min(limits) if limits else None


class DeviceTaintEviction(Controller):
    """Keys are claims; slices and pods put the claims that they concern into the queue."""

    name = "device-taint-eviction-controller"
    component = "device-taint-eviction-controller"

    def setup(self) -> None:
        self.slices = self.watch(RESOURCE_SLICES, add=self._slice, update=lambda old, new: self._slice(new))
        self.claims = self.watch(
            RESOURCE_CLAIMS, add=self.enqueue, update=self.enqueue_update, indexers={"device": self._devices}
        )
        self.pods = self.watch(PODS)

    @staticmethod
    def _results(claim: Object) -> list[Object]:
        devices: Any = ((claim.get("status") or {}).get("allocation") or {}).get("devices") or {}
        return devices.get("results") or []

    @classmethod
    def _devices(cls, claim: Object) -> tuple[str, ...]:
        return tuple(f"{r['driver']}/{r['pool']}/{r['device']}" for r in cls._results(claim))

    def _slice(self, obj: Object) -> None:
        for device in tainted(obj):
            for claim in self.claims.store.index("device", "/".join(device)):
                self.enqueue(claim)

    def _taints(self, result: Object) -> list[Object]:
        """The taints of an allocated device now, as the newest generation of its pool says."""
        newest = -1
        found: list[Object] = []
        for obj in self.slices.store:
            spec = obj["spec"]
            if (spec["driver"], spec["pool"]["name"]) != (result["driver"], result["pool"]):
                continue
            generation = int(spec["pool"].get("generation") or 0)
            if generation >= newest:
                found = found if generation == newest else []
                newest = generation
                found = found + tainted(obj).get((result["driver"], result["pool"], result["device"]), [])
        return found

    async def reconcile(self, key: str) -> float | None:
        claim = self.claims.store.get(key)
        if claim is None:
            return None
        at = time.time()
        ends = [
            end
            for result in self._results(claim)
            for taint in self._taints(result)
            if (end := end_of(taint, result.get("tolerations") or [], at)) is not None
        ]
        users = (claim["status"].get("reservedFor") or ()) if ends else ()
        if not users:
            return None
        left = min(ends) - at
        if left > 0:
            return left
        for ref in users:
            if ref.get("apiGroup") or ref.get("resource") != "pods":
                continue
            pod = self.pods.store.named(claim["metadata"]["namespace"], ref["name"])
            if pod is None or pod["metadata"]["uid"] != ref["uid"] or is_deleting(pod) or is_terminal(pod):
                continue
            self.event(pod, "Normal", "DeviceTaintManagerEviction", f"Marking for deletion Pod {key_of(pod)}")
            message = "Device Taint manager: deleting due to NoExecute taint"
            await evict(self.client, pod, "DeletionByDeviceTaintManager", message)
        return None
