"""Affinity, spreading, preemption and volumes; and the columns against a slow, plain count."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import node, pod

from fake_api import FakeAPI, eventually
from longshore.client.informer import InformerFactory
from longshore.client.resources import (
    CSI_DRIVERS,
    CSI_STORAGE_CAPACITIES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    STORAGE_CLASSES,
)
from longshore.master.scheduler.counters import Counters, by_domain, spread_back
from longshore.master.scheduler.framework import CycleState, Handle
from longshore.master.scheduler.nodes import NodeTable
from longshore.master.scheduler.plugins.resources import NodeResourcesBalancedAllocation, NodeResourcesFit
from longshore.master.scheduler.podinfo import PodInfo, pod_requests
from longshore.master.scheduler.terms import AffinityTerm

ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"


def term(key: str, **labels: str) -> dict[str, Any]:
    return {"labelSelector": {"matchLabels": labels}, "topologyKey": key}


def required(kind: str, *terms: dict[str, Any]) -> dict[str, Any]:
    return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}


def preferred(kind: str, *terms: dict[str, Any]) -> dict[str, Any]:
    weighted = [{"weight": 100, "podAffinityTerm": t} for t in terms]
    return {kind: {"preferredDuringSchedulingIgnoredDuringExecution": weighted}}


def zones(*names: str) -> list[dict[str, Any]]:
    return [node(f"n{i}", labels={ZONE: name}) for i, name in enumerate(names)]


async def test_anti_affinity_keeps_apart_both_ways(bench: Any) -> None:
    bench.nodes(*zones("a", "b"))
    await bench.start()
    apart = required("podAntiAffinity", term(HOST, app="x"))
    bench.pods(*(pod(f"p{i}", labels={"app": "x"}, affinity=apart) for i in range(3)))
    await eventually(lambda: sum(1 for i in range(3) if bench.where(f"p{i}")) == 2)
    left = next(f"p{i}" for i in range(3) if not bench.where(f"p{i}"))
    assert "2 node(s) didn't match pod anti-affinity rules" in await eventually(lambda: bench.why(left))
    bench.pods(pod("plain", labels={"app": "x"}))
    assert "2 node(s) didn't satisfy existing pods anti-affinity rules" in await eventually(lambda: bench.why("plain"))
    bench.api.drop(PODS, next(f"p{i}" for i in range(3) if bench.where(f"p{i}")), "default")
    await eventually(lambda: bench.where(left) or bench.where("plain"))


async def test_affinity_follows_and_the_first_may_start(bench: Any) -> None:
    bench.nodes(*zones("a", "a", "b"), node("bare"))
    await bench.start()
    near = required("podAffinity", term(ZONE, app="db"))
    bench.pods(pod("web", labels={"app": "web"}, affinity=near))
    assert "4 node(s) didn't match pod affinity rules" in await eventually(lambda: bench.why("web"))
    bench.pods(pod("db", labels={"app": "db"}, affinity=near, nodeSelector={ZONE: "b"}))
    await eventually(lambda: bench.where("db") == "n2" and bench.where("web") == "n2")


async def test_preferred_affinity(bench: Any) -> None:
    bench.nodes(*zones("a", "b", "b"))
    await bench.start()
    bench.pods(pod("db", labels={"app": "db"}, nodeSelector={ZONE: "a"}))
    await eventually(lambda: bench.where("db"))
    bench.pods(pod("near", affinity=preferred("podAffinity", term(ZONE, app="db"))))
    bench.pods(pod("far", affinity=preferred("podAntiAffinity", term(ZONE, app="db"))))
    await eventually(lambda: bench.where("near") == "n0" and bench.where("far") in ("n1", "n2"))


def spread(key: str, skew: int = 1, when: str = "DoNotSchedule", **more: Any) -> dict[str, Any]:
    selector = {"matchLabels": {"app": "x"}}
    entry = {"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": when, "labelSelector": selector, **more}
    return {"topologySpreadConstraints": [entry]}


async def test_spread_is_even_over_zones(bench: Any) -> None:
    bench.nodes(*zones("a", "a", "a", "b", "c"), node("bare"))
    await bench.start()
    bench.pods(*(pod(f"p{i}", labels={"app": "x"}, **spread(ZONE)) for i in range(9)))
    await eventually(lambda: all(bench.where(f"p{i}") for i in range(9)))
    zone_of = {"n0": "a", "n1": "a", "n2": "a", "n3": "b", "n4": "c"}
    assert Counter(zone_of[bench.where(f"p{i}")] for i in range(9)) == {"a": 3, "b": 3, "c": 3}


async def test_spread_refuses_with_reasons(bench: Any) -> None:
    bench.nodes(*zones("a", "b"), node("bare"))
    await bench.start()
    bench.pods(pod("p", labels={"app": "x"}, **spread(ZONE, minDomains=3)))
    await eventually(lambda: bench.where("p"))
    bench.pods(pod("q", labels={"app": "x"}, **spread(ZONE, minDomains=3), nodeSelector={HOST: bench.where("p")}))
    why = await eventually(lambda: bench.why("q"))
    assert "1 node(s) didn't match pod topology spread constraints" in why


async def test_soft_spread_prefers_the_emptier(bench: Any) -> None:
    bench.nodes(*zones("a", "b"))
    await bench.start()
    bench.pods(pod("one", labels={"app": "x"}, nodeSelector={ZONE: "a"}))
    await eventually(lambda: bench.where("one"))
    bench.pods(pod("two", labels={"app": "x"}, **spread(ZONE, when="ScheduleAnyway")))
    await eventually(lambda: bench.where("two") == "n1")


async def test_preemption_takes_the_least(bench: Any) -> None:
    bench.nodes(node("n0", cpu="2"), node("n1", cpu="2"))
    await bench.start()
    bench.pods(pod("low0", cpu="2", priority=1, nodeSelector={HOST: "n0"}))
    bench.pods(pod("mid1", cpu="2", priority=5, nodeSelector={HOST: "n1"}))
    await eventually(lambda: bench.where("low0") and bench.where("mid1"))
    bench.pods(pod("high", cpu="2", priority=100))
    await eventually(lambda: bench.where("high") == "n0")
    remaining = {p["metadata"]["name"] for p in bench.api.all(PODS)}
    assert remaining == {"mid1", "high"}
    await eventually(lambda: any(e.startswith("Preempted: Preempted by pod ") for e in bench.events()))


async def test_preemption_spares_budgets_and_knows_when_it_is_no_help(bench: Any) -> None:
    bench.nodes(node("n0", cpu="2"), node("n1", cpu="2"))
    budget = {"metadata": {"name": "b"}, "spec": {"selector": {"matchLabels": {"a": "b"}}}, "status": {}}
    bench.api.put(POD_DISRUPTION_BUDGETS, budget)
    await bench.start()
    bench.pods(pod("kept", cpu="2", priority=1, labels={"a": "b"}, nodeSelector={HOST: "n0"}))
    bench.pods(pod("taken", cpu="2", priority=2, nodeSelector={HOST: "n1"}))
    await eventually(lambda: bench.where("kept") and bench.where("taken"))
    bench.pods(pod("high", cpu="2", priority=100))
    await eventually(lambda: bench.where("high") == "n1")
    bench.pods(pod("huge", cpu="20", priority=1000), pod("polite", cpu="2", priority=200, preemptionPolicy="Never"))
    assert (await eventually(lambda: bench.why("huge"))) == (
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: "
        "0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    )
    assert "not eligible due to preemptionPolicy=Never." in await eventually(lambda: bench.why("polite"))
    bench.pods(pod("equal", cpu="1", priority=0))
    assert "2 No preemption victims found for incoming pod." in await eventually(lambda: bench.why("equal"))


async def test_nominated_room_is_kept(bench: Any) -> None:
    bench.nodes(node("n0", cpu="2"))
    scheduler = await bench.start()
    bench.pods(pod("low", cpu="2", priority=1))
    await eventually(lambda: bench.where("low"))
    victim = bench.get("low")
    victim["metadata"]["finalizers"] = ["keep/it"]
    bench.api.put(PODS, victim)
    bench.pods(pod("high", cpu="2", priority=100))
    await eventually(lambda: bench.get("high")["status"].get("nominatedNodeName") == "n0")
    assert [p.name for p in scheduler.nominated("n0")] == ["high"]
    bench.pods(pod("sneaky", cpu="1", priority=1))
    await eventually(lambda: bench.why("sneaky"))
    bench.api.drop(PODS, "low", "default")
    await eventually(lambda: bench.where("high") == "n0")
    assert not bench.where("sneaky")


# -- volumes


def claim(name: str, cls: str = "local", mode: str = "ReadWriteOnce", **fields: Any) -> dict[str, Any]:
    spec = {"storageClassName": cls, "accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    spec.update(fields)
    return {"metadata": {"name": name}, "spec": spec, "status": {"phase": "Pending"}}


def with_claim(name: str, claim_name: str) -> dict[str, Any]:
    return pod(name, volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": claim_name}}])


async def test_claims_that_wait_get_the_node(bench: Any) -> None:
    bench.nodes(*zones("a", "b"))
    mode = "WaitForFirstConsumer"
    bench.api.put(STORAGE_CLASSES, {"metadata": {"name": "local"}, "provisioner": "x/y", "volumeBindingMode": mode})
    bench.api.put(
        STORAGE_CLASSES, {"metadata": {"name": "now"}, "provisioner": "x/y", "volumeBindingMode": "Immediate"}
    )
    await bench.start()
    bench.pods(with_claim("p", "data"))
    why = await eventually(lambda: bench.why("p"))
    assert why == '0/2 nodes are available: persistentvolumeclaim "data" not found. not found'
    bench.api.put(PERSISTENT_VOLUME_CLAIMS, claim("data"))

    def selected() -> str:
        found = bench.api.all(PERSISTENT_VOLUME_CLAIMS)[0]
        return str(found["metadata"].get("annotations", {}).get("volume.kubernetes.io/selected-node", ""))

    chosen = await eventually(selected)
    assert not bench.where("p")  # the binding waits for the claim
    bound = bench.api.all(PERSISTENT_VOLUME_CLAIMS)[0]
    affinity = {
        "required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": HOST, "operator": "In", "values": [chosen]}]}]}
    }
    bench.api.put(PERSISTENT_VOLUMES, {"metadata": {"name": "pv"}, "spec": {"nodeAffinity": affinity}})
    bound["spec"]["volumeName"] = "pv"
    bound["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = "yes"
    bench.api.put(PERSISTENT_VOLUME_CLAIMS, bound)
    await eventually(lambda: bench.where("p") == chosen)
    bench.pods(with_claim("q", "data"))
    await eventually(lambda: bench.where("q") == chosen)
    bench.api.put(PERSISTENT_VOLUME_CLAIMS, claim("instant", "now"))
    bench.pods(with_claim("r", "instant"))
    why = await eventually(lambda: bench.why("r"))
    assert why == "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"


async def test_a_volume_that_is_there_is_promised_once(bench: Any) -> None:
    bench.nodes(*zones("a"))
    mode = "WaitForFirstConsumer"
    bench.api.put(
        STORAGE_CLASSES,
        {"metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": mode},
    )
    volume = {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local"}
    bench.api.put(PERSISTENT_VOLUMES, {"metadata": {"name": "pv"}, "spec": volume, "status": {"phase": "Available"}})
    bench.api.put(PERSISTENT_VOLUME_CLAIMS, claim("one"))
    bench.api.put(PERSISTENT_VOLUME_CLAIMS, claim("two"))
    await bench.start()
    bench.pods(with_claim("p", "one"), with_claim("q", "two"))
    await eventually(lambda: bench.api.all(PERSISTENT_VOLUMES)[0]["spec"].get("claimRef"))
    loser = await eventually(lambda: bench.why("p") or bench.why("q"))
    assert "1 node(s) didn't find available persistent volumes to bind" in loser


# -- the columns


labels = st.fixed_dictionaries({"app": st.sampled_from("xy")})
steps = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), labels, st.booleans()), max_size=40)


@given(steps)
@settings(deadline=None)
def test_counters_equal_a_plain_count(moves: list[tuple[int, int, dict[str, str], bool]]) -> None:
    table = NodeTable()
    counters = Counters(table, lambda name: {})
    for i in range(6):
        table.set_node(node(f"n{i}", labels={ZONE: f"z{i % 3}"}))
    info = PodInfo(pod("probe", affinity=required("podAffinity", term(ZONE, app="x"))))
    wanted: AffinityTerm = info.cls.affinity[0]
    counter = counters.of_term(wanted)
    placed: dict[str, tuple[int, dict[str, str]]] = {}
    for where, number, own, add in moves:
        key = f"default/p{number}"
        if key in placed:
            table.remove_pod(key, f"n{placed.pop(key)[0]}")
        if add:
            table.add_pod(PodInfo(pod(f"p{number}", cpu="100m", labels=own)), f"n{where}")
            placed[key] = (where, own)
    column = table.labels(ZONE)
    per_zone = spread_back(by_domain(counter.rows(table.size), column.codes, len(column.values)), column.codes)
    for i in range(6):
        plain = sum(1 for where, own in placed.values() if where % 3 == i % 3 and own["app"] == "x")
        assert per_zone[table.by_name[f"n{i}"].index] == plain
        count = sum(1 for where, _ in placed.values() if where == i)
        assert table.pod_count[table.by_name[f"n{i}"].index] == count
        assert table.requested[0, table.by_name[f"n{i}"].index] == 100 * count


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"containers": [{"resources": {"requests": {"cpu": "1"}}}] * 2}, {"cpu": 2000}),
        (
            {
                "containers": [{"resources": {"requests": {"cpu": "1"}}}],
                "initContainers": [{"resources": {"requests": {"cpu": "3"}}}],
            },
            {"cpu": 3000},
        ),
        (
            {
                "containers": [{"resources": {"requests": {"cpu": "1"}}}],
                "initContainers": [
                    {"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
                    {"resources": {"requests": {"cpu": "2"}}},
                ],
                "overhead": {"cpu": "10m"},
            },
            {"cpu": 2510},
        ),
        ({"containers": [{"resources": {}}], "resources": {"requests": {"memory": "1Mi"}}}, {"memory": 1 << 20}),
    ],
)
def test_requests(spec: dict[str, Any], expected: dict[str, int]) -> None:
    assert pod_requests({"spec": spec}) == expected


async def test_many_pods_many_nodes(bench: Any) -> None:
    bench.nodes(*(node(f"n{i}", cpu="8") for i in range(200)))
    await bench.start()
    for i in range(600):
        bench.pods(pod(f"p{i}", cpu="100m", memory="64Mi"))
        if i % 100 == 0:
            await asyncio.sleep(0)
    await eventually(lambda: len(bench.scheduler.placed) == 600, 60)
    assert max(len(r.pods) for r in bench.scheduler.table.by_name.values()) <= 4


async def test_a_claim_goes_where_its_driver_has_room(bench: Any) -> None:
    bench.nodes(*zones("a", "b"))
    classes = {
        "metadata": {"name": "fast"},
        "provisioner": "d.example.com",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    bench.api.put(STORAGE_CLASSES, classes)
    bench.api.put(CSI_DRIVERS, {"metadata": {"name": "d.example.com"}, "spec": {"storageCapacity": True}})

    def has(zone: str, capacity: str, **fields: str) -> None:
        told = {"storageClassName": "fast", "capacity": capacity, "nodeTopology": {"matchLabels": {ZONE: zone}}}
        bench.api.put(CSI_STORAGE_CAPACITIES, {"metadata": {"name": zone}, **told, **fields})

    has("a", "1Gi")
    has("b", "100Gi", maximumVolumeSize="5Gi")
    spec = {"storageClassName": "fast", "resources": {"requests": {"storage": "10Gi"}}}
    bench.api.put(PERSISTENT_VOLUME_CLAIMS, {"metadata": {"name": "c"}, "spec": spec, "status": {"phase": "Pending"}})
    await bench.start()
    bench.pods(pod("p", volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]))
    assert "2 node(s) did not have enough free storage" in await eventually(lambda: bench.why("p"))
    has("b", "100Gi", maximumVolumeSize="50Gi")
    notes = lambda: bench.api.all(PERSISTENT_VOLUME_CLAIMS)[0]["metadata"].get("annotations") or {}  # noqa: E731
    await eventually(lambda: notes().get("volume.kubernetes.io/selected-node") == "n1")


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(("LeastAllocated", "MostAllocated", "RequestedToCapacityRatio")),
    nodes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 16), st.integers(0, 4)), min_size=1, max_size=4),
    there=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5000), st.integers(0, 9), st.integers(0, 2)), max_size=6
    ),
    asked=st.tuples(st.integers(0, 5000), st.integers(0, 9), st.integers(0, 2)),
)
def test_one_node_gets_the_score_that_it_has_among_many(
    strategy: str, nodes: list[Any], there: list[Any], asked: tuple[int, int, int]
) -> None:
    """What is kept of a class is renewed node by node, or column by column: both must say the same."""
    resources = [{"name": "cpu", "weight": 3}, {"name": "memory", "weight": 1}, {"name": "a/gpu", "weight": 2}]
    shape = [{"utilization": 0, "score": 0}, {"utilization": 70, "score": 10}, {"utilization": 100, "score": 3}]
    args = {"resources": resources, "type": strategy, "requestedToCapacityRatio": {"shape": shape}}
    handle = Handle(FakeAPI(), InformerFactory(FakeAPI()), table := NodeTable(), Counters(table, lambda _: {}), None)  # type: ignore[arg-type]

    def made(name: str, milli: int, gigas: int, gpus: int) -> PodInfo:
        wanted = {"cpu": f"{milli}m", "memory": f"{gigas}Gi", "a/gpu": str(gpus)}
        requests = {k: v for k, v in wanted.items() if v.rstrip("mGi") != "0"}
        return PodInfo(pod(name, container={"resources": {"requests": requests}}))

    for index, (cpu, memory, gpus) in enumerate(nodes):
        table.set_node(node(f"n{index}", cpu=str(cpu), memory=f"{memory}Gi", more={"a/gpu": str(gpus)}))
    for index, (where, *size) in enumerate(there):
        if where < len(nodes):
            table.add_pod(made(f"p{index}", *size), f"n{where}")
    info, state, rows = made("new", *asked), CycleState(), table.all_rows()
    for plugin in (
        NodeResourcesFit(handle, {"scoringStrategy": args}),
        NodeResourcesBalancedAllocation(handle, {"resources": resources}),
    ):
        each = [plugin.score(state, info, table.rows[i]) for i in rows.tolist()]
        assert plugin.score_rows(state, info, rows).tolist() == each


@given(st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=60), st.lists(st.integers(0, 60), max_size=10))
def test_rows_that_changed_are_known(moves: list[tuple[int, bool]], asked: list[int]) -> None:
    table = NodeTable()
    for number, (which, stays) in enumerate(moves):
        name = f"n{which}"
        if stays or name not in table.by_name:
            table.set_node(node(name))
        else:
            table.remove_node(name)
        for since in (*asked, number):
            plain = [i for i in table.all_rows().tolist() if table.changed[i] > since]
            if since <= table.generation:
                assert sorted(table.changed_since(since).tolist()) == plain


async def test_a_pod_goes_where_the_kubelet_can_do_what_it_needs(bench: Any) -> None:
    bench.nodes(node("n1"))
    rule = {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [3]}}
    await bench.start()
    bench.pods(pod("p", container={"restartPolicy": "Never", "restartPolicyRules": [rule]}), pod("plain"))
    await eventually(lambda: "1 node(s) didn't match Pod's required features" in bench.why("p"))
    await eventually(lambda: bench.where("plain"))
    bench.nodes(node("n1", declaredFeatures=["RestartAllContainersOnContainerExits"]))
    await eventually(lambda: bench.where("p") == "n1")


@pytest.mark.parametrize(
    ("cpu", "memory", "there", "asked", "expected"),
    [
        # (milli CPU, MiB) on a node of these sizes; 75 is a pod that leaves the balance as it is.
        (10_000, 10_000, (0, 0), (1000, 1000), 75.0),
        (10_000, 10_000, (4000, 0), (0, 4000), 85.0),  # evens out: 80 becomes 100
        (10_000, 10_000, (2000, 2000), (4000, 0), 65.0),
        (10_000, 20_000, (0, 0), (3000, 5000), 73.0),  # 100 becomes 97.5, cut off twice
        (0, 10_000, (0, 0), (0, 5000), 75.0),  # a single resource is always even
    ],
)
def test_balance_is_judged_by_what_the_pod_changes(
    cpu: int, memory: int, there: tuple[int, int], asked: tuple[int, int], expected: float
) -> None:
    handle = Handle(FakeAPI(), InformerFactory(FakeAPI()), table := NodeTable(), Counters(table, lambda _: {}), None)  # type: ignore[arg-type]
    table.set_node(node("n", cpu=f"{cpu}m", memory=f"{memory}Mi"))
    table.add_pod(PodInfo(pod("there", cpu=f"{there[0]}m", memory=f"{there[1]}Mi")), "n")
    plugin = NodeResourcesBalancedAllocation(handle, {})
    info = PodInfo(pod("new", cpu=f"{asked[0]}m", memory=f"{asked[1]}Mi"))
    assert plugin.score(CycleState(), info, table.by_name["n"]) == expected


async def test_images_of_volumes_draw_a_pod_too(bench: Any) -> None:
    images = [{"names": ["model:1"], "sizeBytes": 900 * 1024 * 1024}]
    bench.nodes(*(node(f"n{i}", images=images if i == 2 else []) for i in range(4)))
    await bench.start()
    bench.pods(*(pod(f"p{i}", volumes=[{"name": "m", "image": {"reference": "model:1"}}]) for i in range(3)))
    await eventually(lambda: [bench.where(f"p{i}") for i in range(3)] == ["n2"] * 3)
