"""kill -9 of the manager, again and again, while deployments roll and jobs run: the end is right, nothing runs twice."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_golden_controllers import LABELS, Cluster, cluster, template  # noqa: F401

from longshore.client.resources import DEPLOYMENTS, JOBS, PODS, REPLICA_SETS


async def test_the_end_is_right(cluster: Cluster) -> None:  # noqa: F811
    namespace = "killed"
    await cluster.namespace(namespace)
    spec = {"replicas": 8, "selector": {"matchLabels": LABELS}, "template": template()}
    await cluster.client.create(DEPLOYMENTS, {"metadata": {"name": "web"}, "spec": spec}, namespace)
    pod = {"spec": {"containers": [{"name": "c", "image": "done"}], "restartPolicy": "Never"}}
    job = {"template": pod, "completions": 20, "parallelism": 5}
    await cluster.client.create(JOBS, {"metadata": {"name": "job"}, "spec": job}, namespace)
    made: set[str] = set()
    for turn in range(5):
        for _ in range(6):
            await asyncio.sleep(0.1)
            await cluster.play_kubelet(namespace)
            pods = (await cluster.client.list(PODS, namespace, label_selector="job-name=job"))["items"]
            made.update(p["metadata"]["name"] for p in pods)
        manager = cluster.live.children[-1]
        manager.send_signal(signal.SIGKILL)
        await manager.wait()
        image = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": f"i:{turn + 2}"}]}}}}
        await cluster.client.patch(DEPLOYMENTS, "web", image, namespace, kind="strategic")
        await cluster.live.spawn("manager")

    async def settled() -> bool:
        web = await cluster.client.get(DEPLOYMENTS, "web", namespace)
        d = web.get("status") or {}
        j = (await cluster.client.get(JOBS, "job", namespace)).get("status") or {}
        return (
            d.get("observedGeneration") == web["metadata"]["generation"]  # not the end of the rollout before
            and d.get("updatedReplicas") == d.get("availableReplicas") == d.get("replicas") == 8
            and len(j.get("conditions", ())) == 2
        )

    await cluster.until(namespace, settled, 60)
    running = (await cluster.client.list(PODS, namespace, label_selector="a=b"))["items"]
    alive = [p for p in running if not p["metadata"].get("deletionTimestamp")]
    assert len(alive) == 8 and {p["spec"]["containers"][0]["image"] for p in alive} == {"i:6"}
    sets = (await cluster.client.list(REPLICA_SETS, namespace))["items"]
    assert sorted(s["spec"]["replicas"] for s in sets) == [0] * (len(sets) - 1) + [8]
    finished = await cluster.client.get(JOBS, "job", namespace)
    assert finished["status"]["succeeded"] == 20
    pods = (await cluster.client.list(PODS, namespace, label_selector="job-name=job"))["items"]
    assert len(pods) == 20 and made <= {p["metadata"]["name"] for p in pods}


async def test_the_api_server_comes_and_goes(cluster: Cluster) -> None:  # noqa: F811
    namespace = "gone"
    await cluster.namespace(namespace)
    spec = {"replicas": 4, "selector": {"matchLabels": LABELS}, "template": template()}
    await cluster.client.create(DEPLOYMENTS, {"metadata": {"name": "web"}, "spec": spec}, namespace)
    for turn in range(3):
        server = cluster.live.children[0] if turn == 0 else cluster.live.children[-1]
        server.send_signal(signal.SIGKILL)
        await server.wait()
        await asyncio.sleep(0.5)
        await cluster.live.apiserver()
        image = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": f"i:{turn + 2}"}]}}}}
        await cluster.client.patch(DEPLOYMENTS, "web", image, namespace, kind="strategic")
        await cluster.play_kubelet(namespace)

    async def settled() -> bool:
        d = (await cluster.client.get(DEPLOYMENTS, "web", namespace)).get("status") or {}
        return (
            d.get("updatedReplicas") == d.get("availableReplicas") == d.get("replicas") == 4
            and d["observedGeneration"] == 4
        )

    await cluster.until(namespace, settled, 60)
    pods = (await cluster.client.list(PODS, namespace))["items"]
    assert {p["spec"]["containers"][0]["image"] for p in pods} == {"i:4"} and len(pods) == 4
    assert cluster.live.children[1].returncode is None  # the manager that was started first
