"""CPUs, memory and devices of one's own on a real node."""

from __future__ import annotations

import pytest

from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import Client
from longshore.node.kubelet import podresources
from longshore.node.kubelet.placement import machine
from longshore.node.kubelet.placement.cpusets import parse

from .conftest import Node


async def _allowed(node: Node, name: str) -> str:
    return (await node.logs(name)).split()[-1]


@pytest.mark.root
@pytest.mark.asyncio(loop_scope="module")
async def test_on_a_node(node: Node) -> None:
    online = set(machine.read().cpus)
    if len(online) < 2:
        pytest.skip("one CPU is nobody's own")
    await node.stop_kubelet()
    settings = {"cpuManagerPolicy": "static", "reservedSystemCPUs": str(min(online))}
    node.start_kubelet(settings=settings)
    say = "while :; do grep Cpus_allowed_list /proc/self/status; sleep 0.2; done"
    amounts = {"cpu": "1", "memory": "64Mi"}
    await node.create("shares", {"command": ["sh", "-c", say]})
    await node.ready("shares")
    await node.create("owns", {"command": ["sh", "-c", say], "resources": {"requests": amounts, "limits": amounts}})
    await node.ready("owns")
    mine = parse(await _allowed(node, "owns"))
    assert len(mine) == 1 and mine <= online - {min(online)}

    async def left() -> bool:
        return parse(await _allowed(node, "shares")) == online - mine

    await node.until(left)
    agent = Client(podresources.schema().PodResourcesLister, path=node.root / "k" / "pod-resources" / "kubelet.sock")
    (listed,) = (p for p in (await agent.call("List")).pod_resources if p.name == "owns")
    assert set(listed.containers[0].cpu_ids) == mine
    assert set((await agent.call("GetAllocatableResources")).cpu_ids) == online - {min(online)}
    agent.close()
    # it keeps them over a restart; then they are everybody's again
    await node.stop_kubelet()
    node.start_kubelet(settings=settings)

    async def keeps() -> bool:
        try:
            return parse(await _allowed(node, "owns")) == mine
        except StatusError:
            return False

    await node.until(keeps, 30)
    await node.delete("owns")

    async def all_again() -> bool:
        return parse(await _allowed(node, "shares")) == online

    await node.until(all_again)
    await node.delete("shares")
