"""ResourceClaims of pods, and pods whose devices are tainted."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from longshore.client.objects import now
from longshore.client.resources import PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS, RESOURCE_SLICES
from longshore.master.controllers import devicetaints

Object = dict[str, Any]
FINALIZER = "resource.kubernetes.io/delete-protection"
SPEC: Object = {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}}
RESULT = {"request": "r", "driver": "d", "pool": "p", "device": "a"}


def pod(name: str, phase: str = "Running", **spec: Any) -> Object:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-of-{name}"}
    return {"metadata": metadata, "spec": {"containers": [], **spec}, "status": {"phase": phase}}


def claim(name: str, *users: str, **result: Any) -> Object:
    allocation = {"devices": {"results": [{**RESULT, **result}]}}
    reserved = [{"resource": "pods", "name": u, "uid": f"uid-of-{u}"} for u in users]
    return {
        "metadata": {"name": name, "namespace": "default", "finalizers": [FINALIZER]},
        "spec": SPEC,
        "status": {"allocation": allocation, **({"reservedFor": reserved} if reserved else {})},
    }


def tainted_slice(generation: int = 1, **taint: Any) -> Object:
    taints = [{"key": "sick", "effect": "NoExecute", **taint}] if taint.get("effect") != "" else []
    pool = {"name": "p", "generation": generation, "resourceSliceCount": 1}
    spec = {"driver": "d", "pool": pool, "nodeName": "n1", "devices": [{"name": "a", "taints": taints}]}
    return {"metadata": {"name": f"s{generation}"}, "spec": spec}


async def test_a_template_becomes_the_pods_own_claim_and_goes_with_it(manager: Any) -> None:
    manager.api.put(RESOURCE_CLAIM_TEMPLATES, {"metadata": {"name": "t"}, "spec": {"spec": SPEC}})
    manager.api.put(PODS, pod("p", "Pending", resourceClaims=[{"name": "x", "resourceClaimTemplateName": "t"}]))
    await manager.start("resourceclaim-controller")
    await manager.settle(lambda: manager.api.all(PODS)[0]["status"]["resourceClaimStatuses"], pods=False)
    (made,) = manager.api.all(RESOURCE_CLAIMS)
    assert made["spec"] == SPEC and made["metadata"]["ownerReferences"][0]["name"] == "p"
    manager.api.put(RESOURCE_CLAIMS, {**made, "status": claim("c", "p")["status"]})
    ended = manager.api.all(PODS)[0]
    ended["status"]["phase"] = "Succeeded"
    manager.api.put(PODS, ended)
    await manager.settle(lambda: not manager.api.all(RESOURCE_CLAIMS), pods=False)


async def test_the_claim_for_extended_resources_goes_when_the_pod_ends(manager: Any) -> None:
    running = pod("p", nodeName="n1")
    running["status"]["extendedResourceClaimStatus"] = {"resourceClaimName": "special", "requestMappings": []}
    special = claim("special", "p")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-of-p", "controller": True}
    special["metadata"]["ownerReferences"] = [owner]
    manager.api.put(PODS, running)
    manager.api.put(RESOURCE_CLAIMS, special)
    await manager.start("resourceclaim-controller")
    await manager.settle(lambda: manager.api.all(RESOURCE_CLAIMS), pods=False)
    assert manager.api.all(RESOURCE_CLAIMS)[0]["status"]["reservedFor"]
    manager.api.put(PODS, {**running, "status": {**running["status"], "phase": "Succeeded"}})
    await manager.settle(lambda: not manager.api.all(RESOURCE_CLAIMS), pods=False)


async def test_users_come_and_go(manager: Any) -> None:
    manager.api.put(RESOURCE_CLAIMS, claim("c", "gone"))
    manager.api.put(RESOURCE_CLAIMS, claim("shared", "there", "gone"))
    manager.api.put(PODS, pod("there", nodeName="n1"))
    await manager.start("resourceclaim-controller")

    def of(name: str) -> Object:
        return next(c for c in manager.api.all(RESOURCE_CLAIMS) if c["metadata"]["name"] == name)["status"]

    await manager.settle(lambda: of("c") == {}, pods=False)
    await manager.settle(lambda: [r["name"] for r in of("shared")["reservedFor"]] == ["there"], pods=False)
    assert "allocation" in of("shared")
    # A pod that was put onto its node by hand enters itself as a user.
    manager.api.put(PODS, pod("direct", nodeName="n1", resourceClaims=[{"name": "x", "resourceClaimName": "shared"}]))
    await manager.settle(lambda: [r["name"] for r in of("shared")["reservedFor"]] == ["there", "direct"], pods=False)


async def test_a_deleted_claim_gives_its_devices_back_before_it_goes(manager: Any) -> None:
    leaving = claim("c")
    leaving["metadata"]["deletionTimestamp"] = now()
    manager.api.put(RESOURCE_CLAIMS, leaving)
    await manager.start("resourceclaim-controller")
    await manager.settle(
        lambda: (
            not manager.api.all(RESOURCE_CLAIMS) or not manager.api.all(RESOURCE_CLAIMS)[0]["metadata"]["finalizers"]
        ),
        pods=False,
    )
    assert all("allocation" not in c["status"] for c in manager.api.all(RESOURCE_CLAIMS))


async def test_pods_of_a_tainted_device_are_evicted_unless_they_tolerate_it(manager: Any) -> None:
    tolerations = [{"key": "sick", "operator": "Exists"}]
    manager.api.put(RESOURCE_CLAIMS, claim("c", "p"))
    manager.api.put(RESOURCE_CLAIMS, claim("patient", "q", tolerations=tolerations))
    manager.api.put(RESOURCE_CLAIMS, claim("other", "r", device="b"))
    for name in "pqr":
        manager.api.put(
            PODS, {**pod(name, nodeName="n1"), "metadata": {**pod(name)["metadata"], "finalizers": ["f/x"]}}
        )
    await manager.start("device-taint-eviction-controller")
    manager.api.put(RESOURCE_SLICES, tainted_slice())

    def going() -> list[str]:
        return [p["metadata"]["name"] for p in manager.api.all(PODS) if p["metadata"].get("deletionTimestamp")]

    await manager.settle(lambda: going() == ["p"], pods=False)
    (victim,) = [p for p in manager.api.all(PODS) if p["metadata"]["name"] == "p"]
    (why,) = victim["status"]["conditions"]
    assert (why["type"], why["reason"]) == ("DisruptionTarget", "DeletionByDeviceTaintManager")
    await asyncio.sleep(0.05)
    assert going() == ["p"]
    await manager.settle(
        lambda: "DeviceTaintManagerEviction: Marking for deletion Pod default/p" in manager.events(), pods=False
    )


async def test_a_taint_that_the_newest_slice_no_longer_has_evicts_nobody(manager: Any) -> None:
    manager.api.put(RESOURCE_SLICES, tainted_slice())
    manager.api.put(RESOURCE_SLICES, tainted_slice(2, effect=""))
    manager.api.put(PODS, pod("p", nodeName="n1"))
    manager.api.put(RESOURCE_CLAIMS, claim("c", "p"))
    await manager.start("device-taint-eviction-controller")
    await asyncio.sleep(0.1)
    assert not any(method == "DELETE" for method, _ in manager.api.calls)


def test_the_end_of_tolerance() -> None:
    at = time.time()
    added = datetime.fromtimestamp(at - 10, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    taint = {"key": "k", "value": "v", "effect": "NoExecute", "timeAdded": added}
    patient = {"key": "k", "value": "v", "tolerationSeconds": 60}
    assert abs((devicetaints.end_of(taint, [patient], at) or 0) - (at + 50)) < 2
    assert devicetaints.end_of(taint, [{"operator": "Exists"}], at) is None
    assert (devicetaints.end_of(taint, [{"key": "k", "value": "w"}], at) or at) < at
