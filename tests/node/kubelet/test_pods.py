"""Pods from the API server to containers and back, on the real API server."""

from __future__ import annotations

import pytest

from longshore.client.resources import PODS

from .conftest import Node, condition

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_a_pod_runs_and_goes(node: Node) -> None:
    await node.create("plain", {"command": ["sh", "-c", "echo hello; sleep 1000"]})
    pod = await node.ready("plain")
    status = pod["status"]
    assert status["phase"] == "Running" and status["podIP"].startswith("10.244.")
    assert status["hostIP"] == "10.99.0.1" and status["qosClass"] == "BestEffort"
    for kind in ("PodReadyToStartContainers", "Initialized", "ContainersReady", "PodScheduled"):
        assert condition(pod, kind) == "True"
    one = status["containerStatuses"][0]
    assert one["ready"] and one["started"] and one["restartCount"] == 0 and "running" in one["state"]

    async def said() -> bool:
        return await node.logs("plain") == "hello\n"

    await node.until(said)
    await node.delete("plain")
    assert not (await node.client.list(PODS, "default"))["items"]
    assert not list((node.root / "k" / "pods").iterdir())
