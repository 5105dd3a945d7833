"""Endpoints, ownership, nodes, namespaces, volumes, budgets, quotas: what is kept in order around the workloads."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.client.objects import BOUND_BY_CONTROLLER, now
from longshore.client.resources import (
    CLUSTER_ROLES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    JOBS,
    NAMESPACES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    REPLICA_SETS,
    RESOURCE_QUOTAS,
    SERVICE_ACCOUNTS,
    SERVICES,
    STORAGE_CLASSES,
)
from longshore.master.controllers import endpointslice, registry, storagematch, tainteviction
from longshore.master.controllers.nodeipam import CIDRSet
from longshore.master.controllers.options import Options

LABELS = {"a": "b"}


def pod(name: str, **fields: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default", "labels": LABELS, **fields.pop("meta", {})}
    spec = {"nodeName": "n1", "containers": [{"name": "c"}], **fields.pop("spec", {})}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Pending", **fields}}


def service(**spec: Any) -> dict[str, Any]:
    base = {
        "selector": LABELS,
        "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}],
        "clusterIP": "10.96.0.9",
    }
    return {"metadata": {"name": "svc", "namespace": "default"}, "spec": {**base, **spec}}


# -- endpoints


async def test_endpoints_and_slices_as_recorded(manager: Any) -> None:
    await manager.start("endpoints-controller", "endpointslice-controller")
    manager.api.put(SERVICES, service())
    await manager.settle(lambda: len(manager.api.all(ENDPOINT_SLICES)) == 1)
    placeholder = manager.api.all(ENDPOINT_SLICES)[0]["metadata"]["name"]
    manager.api.put(PODS, pod("p1"))
    manager.api.put(PODS, pod("p2"))
    await manager.settle(lambda: len(manager.api.all(ENDPOINT_SLICES)[0]["endpoints"]) == 2)
    (found,) = manager.api.all(ENDPOINT_SLICES)
    assert found["metadata"]["name"] == placeholder
    assert found["metadata"]["labels"] == {
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": "svc",
    }
    assert found["ports"] == [{"name": "", "port": 8080, "protocol": "TCP"}]
    first = found["endpoints"][0]
    assert first["conditions"] == {"ready": True, "serving": True, "terminating": False}
    assert first["targetRef"]["kind"] == "Pod" and first["nodeName"] == "n1"
    await manager.settle(lambda: len(manager.api.all(ENDPOINTS)[0]["subsets"][0]["addresses"]) == 2)
    endpoints = manager.api.all(ENDPOINTS)[0]
    assert endpoints["metadata"]["labels"] == {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}
    assert endpoints["metadata"]["annotations"] == {
        "endpoints.kubernetes.io/last-change-trigger-time": "2020-01-01T00:00:00Z"
    }
    assert endpoints["subsets"][0]["ports"] == [{"port": 8080, "protocol": "TCP"}]
    gone = next(p for p in manager.api.all(PODS) if p["metadata"]["name"] == "p1")
    manager.set_pod(gone, ready=False)
    await manager.settle(lambda: manager.api.all(ENDPOINTS)[0]["subsets"][0].get("notReadyAddresses"))
    await manager.settle(
        lambda: any(not e["conditions"]["ready"] for e in manager.api.all(ENDPOINT_SLICES)[0]["endpoints"])
    )
    manager.api.drop(SERVICES, "svc", "default")
    await manager.settle(lambda: not manager.api.all(ENDPOINTS))


async def test_slices_are_filled_and_named_ports_found(manager: Any) -> None:
    await manager.start("endpointslice-controller", options=replace(manager.options, max_endpoints_per_slice=3))
    manager.api.put(SERVICES, service(ports=[{"name": "web", "port": 80, "targetPort": "http"}], clusterIP="None"))
    container = {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 9000}]}]}
    for i in range(7):
        manager.api.put(PODS, pod(f"p{i}", spec=container))

    def sizes() -> list[int]:
        return sorted(len(s["endpoints"]) for s in manager.api.all(ENDPOINT_SLICES))

    await manager.settle(lambda: sum(sizes()) == 7 and max(sizes()) <= 3)
    assert manager.api.all(ENDPOINT_SLICES)[0]["ports"][0]["port"] == 9000
    assert manager.api.all(ENDPOINT_SLICES)[0]["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


addresses = st.dictionaries(st.integers(0, 30).map(str), st.booleans(), max_size=20)


@given(st.lists(addresses, min_size=1, max_size=6), st.integers(1, 5))
@settings(deadline=None)
def test_slice_changes_always_reach_what_is_wanted(rounds: list[dict[str, bool]], limit: int) -> None:
    owner = service() | {"kind": "Service", "apiVersion": "v1"}
    owner["metadata"]["uid"] = "u"
    slices: dict[str, dict[str, Any]] = {}
    for number, wanted in enumerate(rounds):
        endpoints = {
            uid: {"addresses": [f"10.0.0.{uid}"], "conditions": {"ready": ready}, "targetRef": {"uid": uid}}
            for uid, ready in wanted.items()
        }
        groups = {("IPv4", (("", 80, "TCP", ""),)): endpoints} if endpoints else {}
        plan = endpointslice.changes(owner, list(slices.values()), groups, limit)
        for index, obj in enumerate(plan.create):
            obj["metadata"]["name"] = f"s{number}-{index}"
            slices[obj["metadata"]["name"]] = obj
        for obj in plan.update:
            slices[obj["metadata"]["name"]] = obj
        for obj in plan.delete:
            del slices[obj["metadata"]["name"]]
        seen = [e for s in slices.values() for e in s["endpoints"]]
        assert {e["targetRef"]["uid"]: e["conditions"]["ready"] for e in seen} == wanted
        assert len(seen) == len(wanted) and all(len(s["endpoints"]) <= limit for s in slices.values())
        assert slices


async def test_endpoints_written_by_hand_are_mirrored(manager: Any) -> None:
    await manager.start("endpointslice-mirroring-controller")
    manager.api.put(SERVICES, service(selector=None))
    subset = {"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 80, "protocol": "TCP"}]}
    manager.api.put(ENDPOINTS, {"metadata": {"name": "svc", "namespace": "default"}, "subsets": [subset]})
    await manager.settle(lambda: manager.api.all(ENDPOINT_SLICES)[0]["endpoints"][0]["addresses"] == ["1.2.3.4"])
    manager.api.drop(ENDPOINTS, "svc", "default")
    await manager.settle(lambda: not manager.api.all(ENDPOINT_SLICES))


# -- publishers


async def test_every_namespace_gets_its_account_and_ca(manager: Any) -> None:
    manager.api.config.ca = b"CERT"
    await manager.start("serviceaccount-controller", "root-ca-certificate-publisher-controller")
    await manager.api.create(NAMESPACES, {"metadata": {"name": "x"}})
    await manager.settle(lambda: manager.api.all(SERVICE_ACCOUNTS, "x") and manager.api.all(CONFIG_MAPS, "x"))
    assert manager.api.all(CONFIG_MAPS, "x")[0]["data"] == {"ca.crt": "CERT"}
    await manager.api.delete(CONFIG_MAPS, "kube-root-ca.crt", "x")
    await manager.settle(lambda: manager.api.all(CONFIG_MAPS, "x"))


async def test_roles_are_aggregated(manager: Any) -> None:
    rule = {"verbs": ["get"], "resources": ["pods"]}
    selector = {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}
    await manager.start("clusterrole-aggregation-controller")
    manager.api.put(CLUSTER_ROLES, {"metadata": {"name": "view"}, "aggregationRule": selector})
    manager.api.put(CLUSTER_ROLES, {"metadata": {"name": "part", "labels": {"to": "view"}}, "rules": [rule]})
    await manager.settle(lambda: manager.api.all(CLUSTER_ROLES)[0].get("rules") == [rule])


# -- nodes


def test_pod_ranges_are_given_once() -> None:
    pool = CIDRSet("10.244.0.0/22", 24)
    pool.occupy("10.244.1.0/24")
    given = [pool.allocate() for _ in range(3)]
    assert given == ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"] and pool.allocate() is None
    pool.release("10.244.2.0/24")
    assert pool.allocate() == "10.244.2.0/24"
    with pytest.raises(ValueError):
        CIDRSet("10.0.0.0/24", 16)


def node(name: str, ready: str = "True", **spec: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready, "lastHeartbeatTime": now()}]
    return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": conditions}}


async def test_node_conditions_become_taints_and_silence_is_noticed(manager: Any) -> None:
    fast = Options(service_accounts=False, node_monitor_grace_period=0.3, node_startup_grace_period=0.3)
    await manager.start("node-lifecycle-controller", "node-ipam-controller", options=fast)
    manager.api.put(NODES, node("n1", taints=[{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]))
    manager.api.put(NODES, node("n2"))
    manager.set_pod(manager.api.put(PODS, pod("p")))
    stop = asyncio.Event()

    async def heartbeat() -> None:
        while not stop.is_set():
            found = next(n for n in manager.api.all(NODES) if n["metadata"]["name"] == "n2")
            found["status"]["conditions"][0]["lastHeartbeatTime"] = str(asyncio.get_running_loop().time())
            manager.api.put(NODES, found)
            await asyncio.sleep(0.03)

    beat = asyncio.create_task(heartbeat())

    def first() -> dict[str, Any]:
        return next(n for n in manager.api.all(NODES) if n["metadata"]["name"] == "n1")

    await manager.settle(lambda: not first()["spec"].get("taints") and first()["spec"].get("podCIDR"), pods=False)
    await manager.settle(lambda: first()["status"]["conditions"][0]["status"] == "Unknown", pods=False)
    await manager.settle(
        lambda: (
            {(t["key"], t["effect"]) for t in first()["spec"]["taints"]}
            == {("node.kubernetes.io/unreachable", e) for e in ("NoSchedule", "NoExecute")}
        ),
        pods=False,
    )
    await manager.settle(lambda: manager.api.all(PODS)[0]["status"]["conditions"][0]["status"] == "False", pods=False)
    second = next(n for n in manager.api.all(NODES) if n["metadata"]["name"] == "n2")
    assert not second["spec"].get("taints")
    await manager.settle(lambda: "NodeNotReady: Node n1 status is now: NodeNotReady" in manager.events(), pods=False)
    found = first()
    found["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastHeartbeatTime": "again"}]
    manager.api.put(NODES, found)
    await manager.settle(lambda: not first()["spec"].get("taints"), pods=False)
    stop.set()
    await beat


async def test_taint_eviction(manager: Any) -> None:
    await manager.start("taint-eviction-controller")
    manager.api.put(NODES, node("n1"))
    tolerant = [{"key": "k", "operator": "Exists"}]
    manager.api.put(PODS, pod("goes"))
    manager.api.put(PODS, pod("stays", spec={"tolerations": tolerant}))
    manager.api.put(PODS, pod("later", spec={"tolerations": [{**tolerant[0], "tolerationSeconds": 1}]}))
    manager.api.put(NODES, node("n1", taints=[{"key": "k", "effect": "NoExecute", "timeAdded": now()}]))
    await manager.settle(lambda: len(manager.api.all(PODS)) == 2, pods=False)
    await manager.settle(lambda: [p["metadata"]["name"] for p in manager.api.all(PODS)] == ["stays"], pods=False)
    assert tainteviction.time_left(pod("x"), [{"key": "z", "effect": "NoExecute"}]) == 0


# -- ownership


def owned(name: str, owner: dict[str, Any], kind: str, block: bool = True) -> dict[str, Any]:
    ref = {"apiVersion": "apps/v1", "kind": kind, "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
    ref.update(controller=True, blockOwnerDeletion=block)
    return {"metadata": {"name": name, "namespace": "default", "ownerReferences": [ref]}, "spec": {}}


@pytest.fixture
def discovered(monkeypatch: pytest.MonkeyPatch) -> None:
    from longshore.client.discovery import Discovery, Served
    from longshore.master.controllers import garbagecollector

    async def discover(client: Any) -> Discovery:
        verbs = frozenset({"list", "watch", "delete"})
        return Discovery([Served(r, verbs) for r in (DEPLOYMENTS, REPLICA_SETS, PODS)], {})

    monkeypatch.setattr(garbagecollector, "discover", discover)


@pytest.mark.usefixtures("discovered")
async def test_dependents_go_with_their_owner(manager: Any) -> None:
    await manager.start("garbage-collector-controller")
    owner = manager.api.put(DEPLOYMENTS, {"metadata": {"name": "d"}, "spec": {}})
    middle = manager.api.put(REPLICA_SETS, owned("rs", owner, "Deployment"))
    manager.api.put(PODS, owned("p", middle, "ReplicaSet"))
    await asyncio.sleep(0.05)
    await manager.api.delete(DEPLOYMENTS, "d", "default")
    await manager.settle(lambda: not manager.api.all(REPLICA_SETS) and not manager.api.all(PODS), pods=False)


@pytest.mark.usefixtures("discovered")
async def test_foreground_waits_and_orphan_lets_go(manager: Any) -> None:
    await manager.start("garbage-collector-controller")
    owner = manager.api.put(DEPLOYMENTS, {"metadata": {"name": "d"}, "spec": {}})
    middle = manager.api.put(REPLICA_SETS, owned("rs", owner, "Deployment"))
    held = owned("p", middle, "ReplicaSet")
    held["metadata"]["finalizers"] = ["x/y"]
    manager.api.put(PODS, held)
    await asyncio.sleep(0.05)
    await manager.api.delete(DEPLOYMENTS, "d", "default", propagation="Foreground")
    await manager.settle(lambda: manager.api.all(PODS)[0]["metadata"].get("deletionTimestamp"), pods=False)
    assert manager.api.all(DEPLOYMENTS) and manager.api.all(REPLICA_SETS)
    manager.api.drop(PODS, "p", "default")
    await manager.settle(lambda: not manager.api.all(DEPLOYMENTS) and not manager.api.all(REPLICA_SETS), pods=False)
    owner = manager.api.put(DEPLOYMENTS, {"metadata": {"name": "e"}, "spec": {}})
    manager.api.put(REPLICA_SETS, owned("kept", owner, "Deployment"))
    await asyncio.sleep(0.05)
    await manager.api.delete(DEPLOYMENTS, "e", "default", propagation="Orphan")
    await manager.settle(lambda: not manager.api.all(DEPLOYMENTS), pods=False)
    assert not manager.api.all(REPLICA_SETS)[0]["metadata"].get("ownerReferences")


@pytest.mark.usefixtures("discovered")
async def test_a_circle_of_owners_is_deleted(manager: Any) -> None:
    await manager.start("garbage-collector-controller")
    sets = [manager.api.put(REPLICA_SETS, {"metadata": {"name": n}, "spec": {}}) for n in "abc"]
    for one, owner in zip(sets, (sets[2], sets[0], sets[1]), strict=True):
        reference = owned("x", owner, "ReplicaSet")["metadata"]["ownerReferences"]
        await manager.api.patch(
            REPLICA_SETS, one["metadata"]["name"], {"metadata": {"ownerReferences": reference}}, "default"
        )
    await asyncio.sleep(0.05)
    await manager.api.delete(REPLICA_SETS, "a", "default", propagation="Foreground")
    await manager.settle(lambda: not manager.api.all(REPLICA_SETS), pods=False)


@pytest.mark.usefixtures("discovered")
async def test_an_owner_that_never_was(manager: Any) -> None:
    await manager.start("garbage-collector-controller")
    ghost = {"metadata": {"name": "ghost", "uid": "no-such"}}
    real = manager.api.put(DEPLOYMENTS, {"metadata": {"name": "d"}, "spec": {}})
    manager.api.put(REPLICA_SETS, owned("gone", ghost, "Deployment"))
    both = owned("half", ghost, "Deployment")
    both["metadata"]["ownerReferences"].append(
        {**owned("x", real, "Deployment")["metadata"]["ownerReferences"][0], "controller": False}
    )
    manager.api.put(REPLICA_SETS, both)
    await manager.settle(lambda: [r["metadata"]["name"] for r in manager.api.all(REPLICA_SETS)] == ["half"], pods=False)
    await manager.settle(lambda: len(manager.api.all(REPLICA_SETS)[0]["metadata"]["ownerReferences"]) == 1, pods=False)


# -- storage


def claim(name: str = "data", cls: str = "manual", **spec: Any) -> dict[str, Any]:
    base = {"storageClassName": cls, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**base, **spec},
        "status": {"phase": "Pending"},
    }


def volume(name: str, size: str = "1Gi", cls: str = "manual", **spec: Any) -> dict[str, Any]:
    base = {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": cls}
    return {"metadata": {"name": name}, "spec": {**base, **spec}}


async def test_claims_take_the_smallest_volume_and_release_it(manager: Any) -> None:
    await manager.start("persistentvolume-binder-controller")
    for name, size in (("big", "5Gi"), ("small", "1Gi")):
        manager.api.put(PERSISTENT_VOLUMES, volume(name, size))
    await manager.api.create(PERSISTENT_VOLUME_CLAIMS, claim())
    await manager.settle(
        lambda: manager.api.all(PERSISTENT_VOLUME_CLAIMS)[0]["status"].get("phase") == "Bound", pods=False
    )
    bound = manager.api.all(PERSISTENT_VOLUME_CLAIMS)[0]
    assert bound["spec"]["volumeName"] == "small"
    assert bound["metadata"]["annotations"] == {
        storagematch.BIND_COMPLETED: "yes",
        BOUND_BY_CONTROLLER: "yes",
    }
    assert bound["status"] == {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}
    await manager.settle(
        lambda: (
            {v["metadata"]["name"]: v["status"]["phase"] for v in manager.api.all(PERSISTENT_VOLUMES)}
            == {"big": "Available", "small": "Bound"}
        ),
        pods=False,
    )
    manager.api.drop(PERSISTENT_VOLUME_CLAIMS, "data", "default")
    await manager.settle(lambda: manager.api.all(PERSISTENT_VOLUMES)[1]["status"]["phase"] == "Released", pods=False)
    await manager.api.create(PERSISTENT_VOLUME_CLAIMS, claim("huge", resources={"requests": {"storage": "9Gi"}}))
    await manager.settle(
        lambda: any(e.startswith("ProvisioningFailed: storageclass") for e in manager.events()), pods=False
    )


async def test_local_path_from_claim_to_folder_and_back(manager: Any, tmp_path: Any) -> None:
    options = Options(service_accounts=False, local_path=tmp_path)
    await manager.start("persistentvolume-binder-controller", "local-path-provisioner-controller", options=options)
    manager.api.put(NODES, node("n1"))
    cls = {
        "metadata": {"name": "local-path"},
        "provisioner": "longshore.io/local-path",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    manager.api.put(STORAGE_CLASSES, cls)
    await manager.api.create(PERSISTENT_VOLUME_CLAIMS, claim(cls="local-path"))
    await manager.settle(
        lambda: any(e.startswith("WaitForFirstConsumer: waiting for first") for e in manager.events()), pods=False
    )
    note = {"metadata": {"annotations": {storagematch.SELECTED_NODE: "n1"}}}
    await manager.api.patch(PERSISTENT_VOLUME_CLAIMS, "data", note, "default")
    await manager.settle(
        lambda: manager.api.all(PERSISTENT_VOLUME_CLAIMS)[0]["status"].get("phase") == "Bound", pods=False
    )
    made = manager.api.all(PERSISTENT_VOLUMES)[0]
    folder = tmp_path / made["spec"]["hostPath"]["path"]
    assert folder.stat().st_mode & 0o777 == 0o777
    (folder / "file").write_text("x")
    manager.api.drop(PERSISTENT_VOLUME_CLAIMS, "data", "default")
    await manager.settle(lambda: not manager.api.all(PERSISTENT_VOLUMES) and not folder.exists(), pods=False)


async def test_claims_in_use_stay(manager: Any) -> None:
    await manager.start("persistentvolumeclaim-protection-controller")
    await manager.api.create(PERSISTENT_VOLUME_CLAIMS, claim())
    await manager.settle(lambda: manager.api.all(PERSISTENT_VOLUME_CLAIMS)[0]["metadata"].get("finalizers"), pods=False)
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]
    manager.api.put(PODS, pod("p", spec={"volumes": volumes}))
    await manager.api.delete(PERSISTENT_VOLUME_CLAIMS, "data", "default")
    await asyncio.sleep(0.05)
    assert manager.api.all(PERSISTENT_VOLUME_CLAIMS)
    manager.api.drop(PODS, "p", "default")
    await manager.settle(lambda: not manager.api.all(PERSISTENT_VOLUME_CLAIMS), pods=False)


# -- budgets, quotas, clean-up


async def test_budget_as_recorded(manager: Any) -> None:
    await manager.start("disruption-controller")
    manager.api.put(PODS, pod("p1"))
    manager.api.put(PODS, pod("p2"))
    spec = {"minAvailable": 1, "selector": {"matchLabels": LABELS}}
    manager.api.put(POD_DISRUPTION_BUDGETS, {"metadata": {"name": "pdb", "namespace": "default"}, "spec": spec})
    await manager.settle(lambda: manager.api.all(POD_DISRUPTION_BUDGETS)[0]["status"]["disruptionsAllowed"] == 1)
    status = manager.api.all(POD_DISRUPTION_BUDGETS)[0]["status"]
    status["conditions"][0].pop("lastTransitionTime")
    assert status == {
        "conditions": [
            {
                "message": "",
                "observedGeneration": 1,
                "reason": "SufficientPods",
                "status": "True",
                "type": "DisruptionAllowed",
            }
        ],
        "currentHealthy": 2,
        "desiredHealthy": 1,
        "disruptionsAllowed": 1,
        "expectedPods": 2,
        "observedGeneration": 1,
    }
    await manager.api.patch(POD_DISRUPTION_BUDGETS, "pdb", {"spec": {"minAvailable": 2}}, "default")
    await manager.settle(lambda: manager.api.all(POD_DISRUPTION_BUDGETS)[0]["status"]["disruptionsAllowed"] == 0)


async def test_quota_as_recorded(manager: Any) -> None:
    await manager.start("resourcequota-controller")
    manager.api.put(DEPLOYMENTS, {"metadata": {"name": "d"}, "spec": {}})
    manager.api.put(SERVICES, service())
    manager.api.put(PODS, pod("p1", spec={"containers": [{"resources": {"requests": {"cpu": "250m"}}}]}))
    manager.api.put(PODS, pod("p2", spec={"containers": [{"resources": {"requests": {"cpu": "1"}}}]}))
    hard = {"count/deployments.apps": "4", "pods": "5", "requests.cpu": "2", "services": "3"}
    manager.api.put(RESOURCE_QUOTAS, {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}})
    used = {"count/deployments.apps": "1", "pods": "2", "requests.cpu": "1250m", "services": "1"}
    await manager.settle(
        lambda: manager.api.all(RESOURCE_QUOTAS)[0]["status"] == {"hard": hard, "used": used}, pods=False
    )
    manager.api.drop(PODS, "p2", "default")
    await manager.settle(
        lambda: manager.api.all(RESOURCE_QUOTAS)[0]["status"]["used"]["requests.cpu"] == "250m", pods=False
    )
    # A kind that no controller watches: its deletions are heard of all the same.
    await asyncio.sleep(0.05)
    manager.api.drop(DEPLOYMENTS, "d", "default")
    await manager.settle(
        lambda: manager.api.all(RESOURCE_QUOTAS)[0]["status"]["used"]["count/deployments.apps"] == "0", pods=False
    )


async def test_jobs_and_pods_are_cleared_away(manager: Any) -> None:
    options = Options(service_accounts=False, terminated_pod_gc_threshold=1)
    await manager.start("ttl-after-finished-controller", "pod-garbage-collector-controller", options=options)
    done = [{"type": "Complete", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]
    job = {"metadata": {"name": "j"}, "spec": {"ttlSecondsAfterFinished": 1}, "status": {"conditions": done}}
    manager.api.put(JOBS, job)
    manager.api.put(NODES, node("n1"))
    for i in range(3):
        manager.api.put(PODS, pod(f"p{i}", phase="Succeeded"))
    await manager.settle(
        lambda: (
            all(j["metadata"].get("deletionTimestamp") for j in manager.api.all(JOBS))
            and len(manager.api.all(PODS)) == 1
        ),
        pods=False,
    )


def test_the_list_of_controllers() -> None:
    everything = registry.chosen(["*"])
    assert len(everything) == len(registry.CONTROLLERS) == len(registry.NAMES)
    assert [c.name for c in registry.chosen(["deployment"])] == ["deployment-controller"]
    assert len(registry.chosen(["*", "-job-controller"])) == len(everything) - 1
    with pytest.raises(ValueError):
        registry.chosen(["nobody"])


async def test_node_ttl_grows_with_the_cluster(manager: Any) -> None:
    await manager.start("ttl-controller")

    def values() -> set[str]:
        return {
            (n["metadata"].get("annotations") or {}).get("node.alpha.kubernetes.io/ttl", "")
            for n in manager.api.all(NODES)
        }

    manager.api.put(NODES, node("n0"))
    await manager.settle(lambda: values() == {"0"}, pods=False)
    for i in range(1, 101):
        manager.api.put(NODES, node(f"n{i}"))
    await manager.settle(lambda: values() == {"15"}, pods=False)
