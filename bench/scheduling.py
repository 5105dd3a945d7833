"""Claims: the algorithm alone places at least 3,000 pods/s on 5,000 nodes, 1,500 with zone spreading, 1,000 with required
affinity or anti-affinity, 1,500 by preemption (CPU time: what one core alone would do); live, through our API server and store, at least 1,000 pods/s. A pod in an informer costs
half of its decoded form or less. Upstream's figures stand as targets: its own thresholds (basic none, spreading 460, affinity 35,
anti-affinity 60, preemption 570) and 213 pods/s live on 100 nodes, 156 on 1,000, measured on a 2-core machine; it cannot run here beside ours.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import orjson

from bench.report import figure
from longshore.cli.main import complete

ROOT = Path(__file__).parents[1]
for folder in ("tests", "tests/master", "tests/master/scheduler"):
    sys.path.insert(0, str(ROOT / folder))

ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
SELECTOR = {"matchLabels": {"app": "x"}}


def required(kind: str, key: str) -> dict[str, Any]:
    term = {"labelSelector": SELECTOR, "topologyKey": key}
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


SPREAD = {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": SELECTOR}


async def algorithm(nodes: int, pods: int, **spec: Any) -> float:
    """Pods placed a second of CPU time, without an API."""
    from scheduler_bench import node, pod

    from fake_api import FakeAPI
    from longshore.client.informer import InformerFactory
    from longshore.master.scheduler.configuration import Configuration
    from longshore.master.scheduler.core import Scheduler
    from longshore.master.scheduler.framework import CycleState
    from longshore.master.scheduler.podinfo import PodInfo

    api = FakeAPI()
    scheduler = Scheduler(api, InformerFactory(api), Configuration().profiles)
    table, profile = scheduler.table, scheduler.profiles["default-scheduler"]
    for i in range(nodes):
        table.set_node(node(f"n{i}", cpu="32", memory="64Gi", labels={ZONE: f"z{i % 10}"}))
    objects = [pod(f"p{i}", cpu="100m", memory="500Mi", labels={"app": "x"}, **spec) for i in range(pods)]
    started = time.process_time()
    for obj in objects:
        info, state = PodInfo(obj), CycleState()
        assert profile.pre_filter(state, info) is None
        row = table.rows[profile.choose(state, info, profile.feasible(state, info))]
        assert row is not None
        table.add_pod(info, row.name)
    return pods / (time.process_time() - started)


async def preemption(nodes: int, pods: int) -> float:
    """Pods placed a second of CPU time where each must take the place of three of the four that fill every node, without an API.

    As upstream's PreemptionBasic: an attempt that fails, victims chosen among a tenth of the nodes, their end, the room
    kept for the pod by its nomination, and the attempt that places it.
    """
    from scheduler_bench import node, pod

    from fake_api import FakeAPI
    from longshore.client.informer import InformerFactory
    from longshore.master.scheduler.configuration import Configuration
    from longshore.master.scheduler.core import Scheduler
    from longshore.master.scheduler.framework import CycleState
    from longshore.master.scheduler.podinfo import PodInfo

    api = FakeAPI()
    scheduler = Scheduler(api, InformerFactory(api), Configuration().profiles)
    table, profile = scheduler.table, scheduler.profiles["default-scheduler"]
    preempt = profile.by_name["DefaultPreemption"]
    for i in range(nodes):
        table.set_node(node(f"n{i}", cpu="4", memory="32Gi"))
        for j in range(4):
            table.add_pod(PodInfo(pod(f"low-{i}-{j}", cpu="900m", memory="500Mi")), f"n{i}")
    objects = [pod(f"p{i}", cpu="3000m", memory="500Mi", priority=10) for i in range(pods)]
    started = time.process_time()
    for obj in objects:
        info, state = PodInfo(obj), CycleState()
        assert profile.pre_filter(state, info) is None
        assert not len(profile.feasible(state, info))
        chosen, _ = preempt.choose(state, info, profile.diagnose(state, info).statuses)
        assert chosen is not None and len(chosen.victims) == 3
        scheduler._nominate(info, chosen.row.name)
        for victim in chosen.victims:
            table.remove_pod(victim.key, chosen.row.name)
        state = CycleState()
        assert profile.pre_filter(state, info) is None
        rows = scheduler._prefer_nominated(state, profile, info, profile.feasible(state, info))
        row = table.rows[profile.choose(state, info, rows)]
        assert row is chosen.row
        table.add_pod(info, row.name)
        scheduler._unnominate(info.key)
    return pods / (time.process_time() - started)


async def settled(client: Any) -> None:
    """Return when no controller writes to the nodes any more: their ranges and annotations cost as much as many pods."""
    from longshore.client.resources import NODES

    before, still = None, 0
    while still < 3:
        await asyncio.sleep(1)
        listed = await client.list(NODES, resource_version="0")
        now = max((int(n["metadata"]["resourceVersion"]) for n in listed["items"]), default=0)
        before, still = now, still + 1 if now == before else 0


async def live(nodes: int, pods: int) -> float:
    """Pods bound a second, from the creation of the first to the binding of the last, by our processes."""
    from live import Live

    from longshore.client.resources import NODES, PODS

    with tempfile.TemporaryDirectory() as folder:
        cluster = Live(Path(folder))
        try:
            await cluster.apiserver()
            await cluster.spawn("manager")
            client = cluster.client
            capacity = {"cpu": "32", "memory": "64Gi", "pods": "110"}
            ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
            status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}

            async def add(number: int) -> None:
                name = f"n{number}"
                await client.create(NODES, {"metadata": {"name": name, "labels": {HOST: name}}})
                await client.patch(NODES, name, {"status": status}, kind="strategic", subresource="status")

            await asyncio.gather(*(add(i) for i in range(nodes)))
            await settled(client)
            container = {"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "100m"}}}

            async def make(number: int) -> None:
                await client.create(
                    PODS, {"metadata": {"name": f"p{number}"}, "spec": {"containers": [container]}}, "default"
                )

            started = time.monotonic()
            await asyncio.gather(*(make(i) for i in range(pods)))
            while True:
                left = await client.list(PODS, "default", field_selector="spec.nodeName=", resource_version="0")
                if not left["items"]:
                    return pods / (time.monotonic() - started)
                await asyncio.sleep(0.05)
        finally:
            await cluster.stop()


def memory() -> tuple[float, float]:
    """Bytes a pod: (as an informer keeps it, plainly decoded)."""
    from longshore.client.informer import compact, strip_managed_fields

    owner = {"uid": "rs", "controller": True, "kind": "ReplicaSet", "apiVersion": "apps/v1", "name": "web"}
    tolerations = [
        {"key": f"node.kubernetes.io/{k}", "effect": "NoExecute", "tolerationSeconds": 300} for k in ("a", "b")
    ]
    texts = []
    for i in range(5000):
        mount = {"name": f"kube-api-access-{i}", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
        container = {"name": "c", "image": "registry.example/app:1", "resources": {}, "volumeMounts": [mount]}
        token = {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}
        volumes = [{"name": mount["name"], "projected": {"defaultMode": 420, "sources": [token]}}]
        conditions = [{"type": t, "status": "True", "lastTransitionTime": f"t{i}"} for t in ("Ready", "PodScheduled")]
        meta = {"name": f"web-{i}", "uid": str(i), "ownerReferences": [owner], "labels": {"app": "web"}}
        spec = {"containers": [container], "volumes": volumes, "tolerations": tolerations, "nodeName": f"n{i}"}
        texts.append(orjson.dumps({"metadata": meta, "spec": spec, "status": {"conditions": conditions}}))

    def measured(transform: Any) -> float:
        tracemalloc.start()
        kept = [transform(orjson.loads(text)) for text in texts]
        size = tracemalloc.get_traced_memory()[0] / len(kept)
        tracemalloc.stop()
        return size

    return measured(compact), measured(strip_managed_fields)


def main() -> None:
    for claim, target, spec in (
        ("basic", "> 3000", {}),
        ("spread over zones", "> 1500 (upstream 460)", {"topologySpreadConstraints": [SPREAD]}),
        ("required anti-affinity, host", "> 1000 (upstream 60)", required("podAntiAffinity", HOST)),
        ("required affinity, zone", "> 1000 (upstream 35)", required("podAffinity", ZONE)),
    ):
        figure(f"algorithm, 5,000 nodes, {claim}", asyncio.run(algorithm(5000, 3000, **spec)), "pods/s", target=target)
    figure(
        "algorithm, 5,000 nodes, preemption",
        asyncio.run(preemption(5000, 2000)),
        "pods/s",
        target="> 1500 (upstream 570)",
    )
    for nodes, upstream in ((100, 213), (1000, 156), (5000, 152)):
        found = complete(live(nodes, 2000))
        figure(f"live, {nodes:,} nodes, 2,000 pods", found, "pods/s", target=f"> 1000 (upstream {upstream})")
    ours, plain = memory()
    figure("a pod in an informer", ours, "bytes", peer="plainly decoded", theirs=plain)


if __name__ == "__main__":
    main()
