"""Structured allocation of devices: the search by itself, and the plugin against the API in memory."""

from __future__ import annotations

from typing import Any

import pytest
from scheduler_bench import node, pod

from fake_api import eventually
from longshore.client.resources import (
    DEVICE_CLASSES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    STORAGE_CLASSES,
)
from longshore.machinery.quantity import parse
from longshore.master.scheduler.allocation import Allocator, NotAllocatable, Taken
from longshore.master.scheduler.devices import Inventory, SelectorError
from longshore.master.scheduler.extended import BackedResources, requests_of
from longshore.master.scheduler.nodes import NodeRow, NodeTable

Object = dict[str, Any]
DRIVER = "gpu.example.com"
GPU = "example.com/gpu"


def row(name: str = "n1", **labels: str) -> NodeRow:
    table = NodeTable()
    table.set_node(node(name, labels=labels))
    return table.by_name[name]


def device(name: str, *, memory: str = "8Gi", **fields: Any) -> Object:
    attributes = {"model": {"string": "a100"}, "numa": {"int": 0}, **fields.pop("attributes", {})}
    return {"name": name, "attributes": attributes, "capacity": {"memory": {"value": memory}}, **fields}


def slice_of(
    *devices: Object, node: str = "n1", pool: str = "p", count: int = 1, generation: int = 1, **spec: Any
) -> Object:
    where = {"nodeName": node} if node else {}
    return {
        "metadata": {"name": f"{node}-{pool}-{generation}-{devices[0]['name'] if devices else 'counters'}"},
        "spec": {
            "driver": DRIVER,
            "pool": {"name": pool, "generation": generation, "resourceSliceCount": count},
            "devices": list(devices),
            **where,
            **spec,
        },
    }


def claim(*requests: Object, name: str = "c", constraints: list[Object] | None = None, **devices: Any) -> Object:
    spec = {"requests": list(requests), **({"constraints": constraints} if constraints else {}), **devices}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {"devices": spec}}


def asks(name: str = "r", *, count: int = 1, cel: str = "", **fields: Any) -> Object:
    exactly = {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count, **fields}
    if cel:
        exactly["selectors"] = [{"cel": {"expression": cel}}]
    return {"name": name, "exactly": exactly}


CLASS = {
    "metadata": {"name": "gpu"},
    "spec": {
        "selectors": [{"cel": {"expression": f"device.driver == '{DRIVER}'"}}],
        "config": [{"opaque": {"driver": DRIVER, "parameters": {"from": "class"}}}],
    },
}


def search(slices: list[Object], *claims: Object, taken: Taken | None = None, at: NodeRow | None = None) -> Any:
    """The allocations, each as its results' device names; None when there are none."""
    at = at or row()
    classes = {"gpu": CLASS}
    return Allocator(list(claims), classes.get, Inventory(slices).pools(at), taken or Taken()).allocate(at)


def names(allocations: Any) -> Any:
    return allocations and [[r["device"] for r in a["devices"]["results"]] for a in allocations]


def test_an_allocation_as_it_is_written() -> None:
    config = [{"opaque": {"driver": DRIVER, "parameters": {"from": "claim"}}}]
    (found,) = search([slice_of(device("a"))], claim(asks(), config=config))
    assert found.pop("allocationTimestamp")
    assert found == {
        "devices": {
            "results": [{"request": "r", "driver": DRIVER, "pool": "p", "device": "a"}],
            "config": [{"source": "FromClass", "requests": ["r"], **CLASS["spec"]["config"][0]}, {"source": "FromClaim", **config[0]}],
        },
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "devices"),
    [
        (f"device.attributes['{DRIVER}'].model == 'a100'", ["a"]),
        (f"device.capacity['{DRIVER}'].memory.compareTo(quantity('16Gi')) >= 0", ["b"]),
        ("'other.example.com' in device.attributes", None),
        (f"device.attributes['{DRIVER}'].firmware.isGreaterThan(semver('1.2.0'))", ["c"]),
        ("device.attributes['ext.example.com'].?link.orValue('') == 'x'", ["c"]),
    ],
)
def test_selectors(expression: str, devices: Any) -> None:
    firmware = {"firmware": {"version": "1.10.0"}}
    old = {"firmware": {"version": "1.0.0"}}
    slices = [
        slice_of(
            device("a", attributes=old),
            device("b", memory="16Gi", attributes={**old, "model": {"string": "x"}}),
            device("c", attributes={**firmware, "model": {"string": "x"}, "ext.example.com/link": {"string": "x"}}),
        )
    ]
    assert names(search(slices, claim(asks(cel=expression)))) == (devices and [devices])


def test_a_selector_that_cannot_be_evaluated() -> None:
    with pytest.raises(SelectorError):
        search([slice_of(device("a"))], claim(asks(cel=f"device.attributes['{DRIVER}'].missing == 1")))


def test_the_search_goes_back_when_a_first_choice_leaves_nothing() -> None:
    slices = [slice_of(device("a"), device("b", attributes={"model": {"string": "x"}}))]
    picky = asks("picky", cel=f"device.attributes['{DRIVER}'].model == 'a100'")
    assert names(search(slices, claim(asks("any"), picky))) == [["b", "a"]]
    assert names(search(slices, claim(asks(), name="c1"), claim(picky, name="c2"))) == [["b"], ["a"]]
    assert search(slices, claim(asks(count=3))) is None


def test_constraints() -> None:
    numa = [device(n, attributes={"numa": {"int": i}}) for n, i in (("a", 0), ("b", 1), ("c", 1))]
    same = [{"matchAttribute": f"{DRIVER}/numa"}]
    assert names(search([slice_of(*numa)], claim(asks(count=2), constraints=same))) == [["b", "c"]]
    assert search([slice_of(*numa)], claim(asks(count=3), constraints=same)) is None
    apart = [{"distinctAttribute": f"{DRIVER}/numa", "requests": ["r"]}]
    assert names(search([slice_of(*numa)], claim(asks(count=2), constraints=apart))) == [["a", "b"]]


def test_first_available_and_all() -> None:
    options = [
        {"name": "big", "deviceClassName": "gpu", "count": 1, "selectors": [{"cel": {"expression": f"device.capacity['{DRIVER}'].memory.isGreaterThan(quantity('99Gi'))"}}]},
        {"name": "two", "deviceClassName": "gpu", "count": 2},
    ]  # fmt: skip
    slices = [slice_of(device("a"), device("b"))]
    (found,) = search(slices, claim({"name": "r", "firstAvailable": options}))
    assert [(r["request"], r["device"]) for r in found["devices"]["results"]] == [("r/two", "a"), ("r/two", "b")]
    every = claim(asks(allocationMode="All"))
    assert names(search(slices, every)) == [["a", "b"]]
    assert search([slice_of(device("a"), count=2)], every) is None  # half a pool is not all of it
    taken = Taken({(DRIVER, "p", "a")})
    assert search(slices, every, taken=taken) is None
    assert names(search(slices, claim(asks(allocationMode="All", adminAccess=True)), taken=taken)) == [["a", "b"]]


def test_only_the_newest_generation_of_a_pool_counts() -> None:
    slices = [slice_of(device("old")), slice_of(device("new"), generation=2)]
    assert names(search(slices, claim(asks()))) == [["new"]]
    assert search([*slices, slice_of(device("newer"), generation=3, count=2)], claim(asks())) is None


def test_taints_and_tolerations() -> None:
    taint = {"key": "sick", "effect": "NoSchedule"}
    slices = [slice_of(device("a", taints=[taint]))]
    assert search(slices, claim(asks())) is None
    assert names(search(slices, claim(asks(tolerations=[{"key": "sick", "operator": "Exists"}])))) == [["a"]]
    assert names(search([slice_of(device("a", taints=[{**taint, "effect": "None"}]))], claim(asks()))) == [["a"]]


def test_partitions_share_counters() -> None:
    counters = {"sharedCounters": [{"name": "set", "counters": {"memory": {"value": "8Gi"}}}]}

    def part(name: str, memory: str) -> Object:
        used = {"counterSet": "set", "counters": {"memory": {"value": memory}}}
        return device(name, memory=memory, consumesCounters=[used])

    slices = [
        slice_of(count=2, **counters),
        slice_of(part("whole", "8Gi"), part("h1", "4Gi"), part("h2", "4Gi"), count=2),
    ]
    assert names(search(slices, claim(asks(count=2)))) == [["h1", "h2"]]
    assert names(search(slices, claim(asks()), taken=Taken({(DRIVER, "p", "h1")}))) == [["h2"]]


def test_a_shared_device_is_taken_by_parts() -> None:
    policy = {"requestPolicy": {"default": "1Gi", "validRange": {"min": "1Gi", "step": "1Gi"}}}
    shared = device("a", allowMultipleAllocations=True)
    shared["capacity"]["memory"].update(policy)
    asked = asks(capacity={"requests": {"memory": "2500Mi"}})
    (found,) = search([slice_of(shared)], claim(asked))
    (result,) = found["devices"]["results"]
    assert parse(result["consumedCapacity"]["memory"]).value == 3 << 30 and result["shareID"]
    taken = Taken()
    taken.add(found)
    taken.add(found)
    assert search([slice_of(shared)], claim(asked), taken=taken) is None
    assert names(search([slice_of(shared)], claim(asks()), taken=taken)) == [["a"]]


def test_where_a_device_can_be_used() -> None:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "rack", "operator": "In", "values": ["1"]}]}]}
    net = [slice_of(device("a"), node="", nodeSelector=terms)]
    assert search(net, claim(asks())) is None
    (found,) = search(net, claim(asks()), at=row("n2", rack="1"))
    assert found["nodeSelector"] == terms
    (found,) = search([slice_of(device("a"), node="", allNodes=True)], claim(asks()))
    assert "nodeSelector" not in found
    each = [slice_of(device("a", nodeName="n2"), device("b", nodeName="n1"), node="", perDeviceNodeSelection=True)]
    assert names(search(each, claim(asks()))) == [["b"]]


def test_a_class_that_is_missing() -> None:
    with pytest.raises(NotAllocatable, match="request r: device class nope does not exist"):
        search([], claim({"name": "r", "exactly": {"deviceClassName": "nope"}}))


# -- the plugin


def using(name: str, *claims: str) -> Object:
    return pod(name, resourceClaims=[{"name": f"c{i}", "resourceClaimName": c} for i, c in enumerate(claims)])


def status(bench: Any, name: str) -> Object:
    found = next(c for c in bench.api.all(RESOURCE_CLAIMS) if c["metadata"]["name"] == name)
    return found.get("status") or {}


async def test_pods_get_devices_and_the_last_waits_for_one(bench: Any) -> None:
    bench.nodes(node("n1"), node("n2"))
    bench.api.put(DEVICE_CLASSES, CLASS)
    bench.api.put(RESOURCE_SLICES, slice_of(device("a")))
    bench.api.put(RESOURCE_SLICES, slice_of(device("b"), node="n2", pool="q"))
    for name in ("c1", "c2", "c3"):
        bench.api.put(RESOURCE_CLAIMS, claim(asks(), name=name))
    await bench.start()
    bench.pods(*(using(f"p{i}", f"c{i}") for i in (1, 2, 3)))
    await eventually(lambda: sum(bool(bench.where(f"p{i}")) for i in (1, 2, 3)) == 2)
    left = next(i for i in (1, 2, 3) if not bench.where(f"p{i}"))
    expected = "0/2 nodes are available: 2 cannot allocate all claims. no new claims to deallocate"
    assert (await eventually(lambda: bench.why(f"p{left}"))).startswith(expected)
    first = next(i for i in (1, 2, 3) if i != left)
    had = status(bench, f"c{first}")
    assert [(r["name"], r["resource"]) for r in had["reservedFor"]] == [(f"p{first}", "pods")]
    held = next(c for c in bench.api.all(RESOURCE_CLAIMS) if c["metadata"]["name"] == f"c{first}")
    assert held["metadata"]["finalizers"] == ["resource.kubernetes.io/delete-protection"]
    node_name = bench.where(f"p{first}")
    # What the resource claim controller does once the pod has gone:
    bench.api.drop(PODS, f"p{first}", "default")
    bench.api.put(RESOURCE_CLAIMS, {**held, "status": {}})
    await eventually(lambda: bench.where(f"p{left}") == node_name)


async def test_pods_share_a_claim_where_it_is(bench: Any) -> None:
    bench.nodes(node("n1"), node("n2"))
    bench.api.put(DEVICE_CLASSES, CLASS)
    bench.api.put(RESOURCE_SLICES, slice_of(device("a"), node="n2"))
    bench.api.put(RESOURCE_CLAIMS, claim(asks()))
    await bench.start()
    bench.pods(*(using(f"p{i}", "c") for i in range(4)))
    await eventually(lambda: all(bench.where(f"p{i}") == "n2" for i in range(4)))
    assert sorted(r["name"] for r in status(bench, "c")["reservedFor"]) == ["p0", "p1", "p2", "p3"]


async def test_a_claim_that_is_in_the_way_gives_its_devices_back(bench: Any) -> None:
    bench.nodes(node("n1"))
    bench.api.put(DEVICE_CLASSES, CLASS)
    bench.api.put(RESOURCE_SLICES, slice_of(device("a")))
    elsewhere = {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gone"]}]}]
    }
    results = [{"request": "r", "driver": DRIVER, "pool": "q", "device": "z"}]
    allocation = {"devices": {"results": results}, "nodeSelector": elsewhere}
    bench.api.put(RESOURCE_CLAIMS, {**claim(asks()), "status": {"allocation": allocation}})
    await bench.start()
    bench.pods(using("p", "c"))
    await eventually(lambda: bench.where("p") == "n1")
    assert status(bench, "c")["allocation"]["devices"]["results"][0]["device"] == "a"


async def test_a_pod_waits_outside_until_its_claim_is_made(bench: Any) -> None:
    bench.nodes(node("n1"))
    bench.api.put(DEVICE_CLASSES, CLASS)
    bench.api.put(RESOURCE_SLICES, slice_of(device("a")))
    await bench.start()
    waiting = pod("p", resourceClaims=[{"name": "x", "resourceClaimTemplateName": "t"}])
    bench.pods(waiting)
    await eventually(lambda: bench.scheduler.queue.counts()["gated"] == 1)
    made = claim(asks(), name="p-x")
    made["metadata"]["ownerReferences"] = [{"uid": bench.get("p")["metadata"]["uid"], "kind": "Pod", "name": "p"}]
    bench.api.put(RESOURCE_CLAIMS, made)
    told = bench.get("p")
    told["status"]["resourceClaimStatuses"] = [{"name": "x", "resourceClaimName": "p-x"}]
    bench.pods(told)
    await eventually(lambda: bench.where("p") == "n1")
    assert not [e for e in bench.events() if e.startswith("FailedScheduling")]


async def test_a_pod_is_woken_by_what_refused_it_last(bench: Any) -> None:
    bench.nodes(node("n1"))
    bench.api.put(DEVICE_CLASSES, CLASS)
    bench.api.put(RESOURCE_CLAIMS, claim(asks()))
    storage = {"storageClassName": "s", "accessModes": ["ReadWriteOnce"]}
    held = {**storage, "resources": {"requests": {"storage": "1Gi"}}}
    bench.api.put(STORAGE_CLASSES, {"metadata": {"name": "s"}, "volumeBindingMode": "WaitForFirstConsumer"})
    bench.api.put(PERSISTENT_VOLUME_CLAIMS, {"metadata": {"name": "v"}, "spec": held, "status": {"phase": "Pending"}})
    await bench.start()
    waiting = using("p", "c")
    waiting["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}]
    bench.pods(waiting)
    await eventually(lambda: "didn't find available persistent volumes" in bench.why("p"))
    bench.api.put(PERSISTENT_VOLUMES, {"metadata": {"name": "pv"}, "spec": {**storage, "capacity": {"storage": "1Gi"}}})
    await eventually(lambda: "cannot allocate all claims" in bench.why("p"))
    bench.api.put(RESOURCE_SLICES, slice_of(device("a")))
    await eventually(
        lambda: status(bench, "c").get("allocation") or bench.api.all(PERSISTENT_VOLUMES)[0]["spec"].get("claimRef")
    )


@pytest.mark.parametrize("ready", [True, False])
async def test_a_pod_is_bound_when_its_device_is_ready(bench: Any, ready: bool) -> None:
    conditions = {"bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]}
    bench.nodes(node("n1"))
    bench.api.put(DEVICE_CLASSES, CLASS)
    bench.api.put(RESOURCE_SLICES, slice_of(device("a", **conditions)))
    bench.api.put(RESOURCE_CLAIMS, claim(asks()))
    await bench.start(backoff=5)
    bench.pods(using("p", "c"))
    await eventually(lambda: status(bench, "c").get("allocation"))
    assert not bench.where("p")
    (held,) = bench.api.all(RESOURCE_CLAIMS)
    told = [{"type": "Attached" if ready else "Broken", "status": "True", "message": "it broke"}]
    held["status"]["devices"] = [{"driver": DRIVER, "pool": "p", "device": "a", "conditions": told}]
    bench.api.put(RESOURCE_CLAIMS, held)
    if ready:
        await eventually(lambda: bench.where("p") == "n1")
    else:
        await eventually(lambda: bench.why("p") == f"device {DRIVER}/p/a failed to bind: it broke")
        assert "allocation" not in status(bench, "c")


# -- extended resources that devices stand behind


def asking(count: int, *, name: str = "c", resource: str = GPU, **fields: Any) -> Object:
    return {"name": name, "image": "i", "resources": {"requests": {"cpu": "1", resource: str(count)}}, **fields}


def counts(requests: list[Object]) -> dict[str, int]:
    return {r["name"]: r["exactly"]["count"] for r in requests}


@pytest.mark.parametrize(
    ("inits", "containers", "requests", "served"),
    [
        ([], [asking(2)], {"container-0-request-1": 2}, {("c", 0)}),
        ([], [asking(1, name="a"), asking(3, name="b")], {"container-0-request-1": 1, "container-1-request-1": 3}, {("a", 0), ("b", 1)}),
        # An init container that ends takes what later containers will have, and asks for the rest.
        ([asking(2, name="i")], [asking(2)], {"container-1-request-1": 2}, {("i", 1), ("c", 1)}),
        ([asking(3, name="i")], [asking(1)], {"container-0-request-1": 2, "container-1-request-1": 1}, {("i", 0), ("i", 1), ("c", 1)}),
        # Of several of them only the most counts, for they run one after the other.
        ([asking(1, name="i"), asking(4, name="j")], [], {"container-1-request-1": 4}, {("i", 1), ("j", 1)}),
        # A sidecar keeps its own, and what started before it may use that.
        ([asking(1, name="i"), asking(2, name="s", restartPolicy="Always")], [], {"container-1-request-1": 2}, {("i", 1), ("s", 1)}),
        # ... but not what starts after it.
        ([asking(2, name="s", restartPolicy="Always"), asking(1, name="i")], [], {"container-0-request-1": 2, "container-1-request-1": 1}, {("i", 1), ("s", 0)}),
        ([], [asking(0)], {}, set()),
    ],
)  # fmt: skip
def test_what_a_pod_claims_for_its_extended_resources(
    inits: list[Object], containers: list[Object], requests: dict[str, int], served: set[tuple[str, int]]
) -> None:
    spec = {"initContainers": inits, "containers": containers}
    found, mappings = requests_of({"spec": spec}, {GPU: "gpu"})
    assert counts(found) == requests and {r["exactly"]["deviceClassName"] for r in found} <= {"gpu"}
    by_number = {(m["containerName"], int(m["requestName"].split("-")[1])) for m in mappings}
    assert by_number == served and {m["resourceName"] for m in mappings} <= {GPU}


def test_the_newest_class_stands_behind_a_resource() -> None:
    def named(name: str, made: str) -> Object:
        return {"metadata": {"name": name, "creationTimestamp": made}, "spec": {"extendedResourceName": GPU}}

    classes = [
        named("b", "2026-01-02T00:00:00Z"),
        named("a", "2026-01-02T00:00:00Z"),
        named("c", "2026-01-01T00:00:00Z"),
    ]
    told: list[int] = []
    backed = BackedResources(classes, lambda: told.append(1))
    assert backed.get(GPU) == "a" and backed.get("deviceclass.resource.kubernetes.io/c") == "c"
    assert backed.of(["cpu", GPU]) == {GPU: "a"}
    backed.refresh()
    assert told == [1]
    del classes[:2]
    backed.refresh()
    assert backed.get(GPU) == "c" and told == [1, 1]


def wanting(name: str, count: int) -> Object:
    return pod(name, container={"resources": {"requests": {GPU: str(count)}}})


async def test_an_extended_resource_is_claimed_where_no_plugin_offers_it(bench: Any) -> None:
    bench.nodes(node("n1"))
    bench.api.put(RESOURCE_SLICES, slice_of(device("a"), device("b"), device("c")))
    await bench.start()
    bench.pods(wanting("p", 2), wanting("q", 2))
    await eventually(lambda: "Insufficient " + GPU in bench.why("p") and "Insufficient " + GPU in bench.why("q"))
    bench.api.put(DEVICE_CLASSES, {**CLASS, "spec": {**CLASS["spec"], "extendedResourceName": GPU}})
    await eventually(lambda: bench.where("p") or bench.where("q"))
    first, left = ("p", "q") if bench.where("p") else ("q", "p")
    (made,) = bench.api.all(RESOURCE_CLAIMS)
    meta = made["metadata"]
    assert meta["name"].startswith(first + "-extended-resources-")
    assert meta["annotations"] == {"resource.kubernetes.io/extended-resource-claim": "true"}
    uid = bench.get(first)["metadata"]["uid"]
    assert meta["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": first, "uid": uid, "controller": True}
    ]
    assert counts(made["spec"]["devices"]["requests"]) == {"container-0-request-0": 2}
    assert [r["device"] for r in made["status"]["allocation"]["devices"]["results"]] == ["a", "b"]
    assert [r["name"] for r in made["status"]["reservedFor"]] == [first]
    assert bench.get(first)["status"]["extendedResourceClaimStatus"] == {
        "resourceClaimName": meta["name"],
        "requestMappings": [{"containerName": "c", "resourceName": GPU, "requestName": "container-0-request-0"}],
    }
    await eventually(lambda: "cannot allocate all claims" in bench.why(left))
    assert len(bench.api.all(RESOURCE_CLAIMS)) == 1
    # A node whose plugin offers the resource itself needs no claim.
    bench.nodes(node("n2", more={GPU: "2"}))
    await eventually(lambda: bench.where(left) == "n2")
    assert len(bench.api.all(RESOURCE_CLAIMS)) == 1


async def test_a_special_claim_goes_when_its_attempt_comes_to_nothing(bench: Any) -> None:
    bench.nodes(node("n1"))
    bench.api.put(DEVICE_CLASSES, {**CLASS, "spec": {**CLASS["spec"], "extendedResourceName": GPU}})
    bench.api.put(RESOURCE_SLICES, slice_of(device("a")))
    bench.pods(wanting("p", 1))
    uid = bench.get("p")["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": True}
    stale = claim(asks(), name="left")
    stale["metadata"] |= {
        "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"}, "ownerReferences": [owner],
        "finalizers": ["resource.kubernetes.io/delete-protection"],
    }  # fmt: skip
    results = [{"request": "r", "driver": DRIVER, "pool": "p", "device": "a"}]
    bench.api.put(RESOURCE_CLAIMS, {**stale, "status": {"allocation": {"devices": {"results": results}}}})
    await bench.start()
    await eventually(lambda: bench.where("p") == "n1")
    (made,) = bench.api.all(RESOURCE_CLAIMS)
    assert made["metadata"]["name"] != "left"
    told = [e for e in bench.events() if "deletion of ResourceClaim completed" in e]
    assert told
