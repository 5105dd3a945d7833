"""Graceful node shutdown: who is ended when, what is told of it, and the node afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from longshore.client.resources import NODES
from longshore.node.kubelet import server

from .conftest import Node, condition

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
LAST = {"command": ["sh", "-c", "trap 'date +%s%N; exit 0' TERM; while :; do sleep 0.05; done"]}


async def test_pods_end_in_order_before_the_kubelet_goes(node: Node) -> None:
    await node.stop_kubelet()
    node.start_kubelet(settings={"shutdownGracePeriod": "12s", "shutdownGracePeriodCriticalPods": "5s"})
    for name, more in (("plain", {}), ("critical", {"priorityClassName": "system-node-critical"})):
        await node.create(name, LAST, **more, terminationGracePeriodSeconds=600)
        await node.ready(name)
    await node.create("stubborn", {"command": ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]})
    await node.ready("stubborn")
    assert node.kubelet is not None
    stopping = asyncio.create_task(node.stop_kubelet())
    await asyncio.wait([stopping], timeout=30)
    assert stopping.done()
    ended: dict[str, str] = {}
    for name in ("plain", "stubborn", "critical"):
        pod = await node.pod(name)
        status = pod["status"]
        assert (status["phase"], status["reason"]) == ("Failed", "Terminated")
        assert status["message"] == "Pod was terminated in response to imminent node shutdown."
        assert condition(pod, "DisruptionTarget") == "True" and condition(pod, "Ready") == "False"
        ended[name] = status["containerStatuses"][0]["state"]["terminated"]["finishedAt"]
    assert ended["critical"] >= ended["plain"] and ended["critical"] >= ended["stubborn"]
    found = await node.client.get(NODES, node.name)
    ready: dict[str, Any] = next(c for c in found["status"]["conditions"] if c["type"] == "Ready")
    assert ready["status"] == "False" and "node is shutting down" in ready["message"]
    node.start_kubelet()
    await node.until(node._node_ready, 30)
    await asyncio.gather(*(node.delete(name) for name in ended))
    await node.create("after", {"command": ["sleep", "1000"]})
    await node.ready("after")
    await node.delete("after")


async def test_periods_that_do_not_fit_are_refused(node: Node) -> None:
    with pytest.raises(ValueError, match="shutdownGracePeriod"):
        await server.serve(
            kubeconfig=node.layout.kubeconfig(), node_name="x", node_ip="127.0.0.1", cri_endpoint="unix:///nothing",
            root_dir=node.root / "x", pod_logs_dir=node.root / "xl", cluster_dns=[],
            settings={"shutdownGracePeriod": "1s", "shutdownGracePeriodCriticalPods": "2s"},
        )  # fmt: skip
