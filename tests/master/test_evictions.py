"""A pod that is evicted says so, and a Job's failure policy listens."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_golden_controllers import Cluster, cluster  # noqa: F401

from longshore.client.resources import JOBS, PODS


async def test_an_eviction_is_no_failure_of_the_job(cluster: Cluster) -> None:  # noqa: F811
    namespace = "evicted"
    await cluster.namespace(namespace)
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    pod = {"spec": {"containers": [{"name": "c", "image": "i:1"}], "restartPolicy": "Never"}}
    spec = {"backoffLimit": 0, "podFailurePolicy": {"rules": [rule]}, "template": pod}
    await cluster.client.create(JOBS, {"metadata": {"name": "job"}, "spec": spec}, namespace)

    async def running() -> list[str]:
        await cluster.play_kubelet(namespace)
        pods = (await cluster.client.list(PODS, namespace))["items"]
        return [p["metadata"]["name"] for p in pods if (p.get("status") or {}).get("phase") == "Running"]

    async with asyncio.timeout(30):
        while not (first := await running()):
            await asyncio.sleep(0.05)
    eviction = {"metadata": {"name": first[0], "namespace": namespace}}
    await cluster.client.create(PODS, eviction, namespace, name=first[0], subresource="eviction")
    evicted = await cluster.client.get(PODS, first[0], namespace)
    why = next(c for c in evicted["status"]["conditions"] if c["type"] == "DisruptionTarget")
    assert (why["status"], why["reason"]) == ("True", "EvictionByEvictionAPI")
    assert why["message"] == "Eviction API: evicting" and evicted["metadata"]["deletionTimestamp"]
    await cluster.client.patch(PODS, first[0], {"status": {"phase": "Failed"}}, namespace, subresource="status")
    async with asyncio.timeout(30):
        while not (second := await running()) or second == first:
            await asyncio.sleep(0.05)
    status = (await cluster.client.get(JOBS, "job", namespace))["status"]
    assert not status.get("failed") and not status.get("conditions")
