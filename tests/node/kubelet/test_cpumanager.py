"""CPUs of one's own: who gets which, what the others keep, and after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import Client
from longshore.node.kubelet import cpumanager, podresources
from longshore.node.kubelet.cpumanager import CpuError, CpuManager, parse, render

from .conftest import Node

#: two sockets of two cores of two threads, numbered as Linux does
PLACES = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1), 4: (0, 0), 5: (0, 1), 6: (1, 0), 7: (1, 1)}


def pod(uid: str, *cpus: str, inits: tuple[str, ...] = ()) -> dict[str, Any]:
    def one(name: str, cpu: str) -> dict[str, Any]:
        amounts = {"cpu": cpu, "memory": "1Mi"}
        return {"name": name, "resources": {"requests": amounts, "limits": amounts}}

    return {
        "metadata": {"uid": uid},
        "spec": {
            "initContainers": [one(f"i{n}", cpu) for n, cpu in enumerate(inits)],
            "containers": [one(f"c{n}", cpu) for n, cpu in enumerate(cpus)],
        },
    }


def test_lists() -> None:
    assert parse("0-2,7, 9") == {0, 1, 2, 7, 9} and render({9, 0, 1, 2, 7}) == "0-2,7,9" and render(()) == ""


def test_whole_cores_go_first(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, PLACES, 1)
    assert cpus.reserved == {0}
    assert cpus.allocate(pod("a", "2"))
    assert cpus.of_container("a", "c0") == {1, 5}  # a core; core 0 is no longer whole
    assert cpus.allocate(pod("b", "4"))
    assert cpus.of_container("b", "c0") == {2, 3, 6, 7}  # a socket
    assert cpus.shared == {0, 4} and cpus.cpuset("x", "c0") == "0,4"
    # parts of a CPU, and pods that are not Guaranteed, share
    assert not cpus.allocate(pod("c", "500m", "1500m"))
    burstable = pod("d", "1")
    del burstable["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert not cpus.allocate(burstable)
    with pytest.raises(CpuError, match=r"^not enough cpus available to satisfy request: requested=2, available=1$"):
        cpus.allocate(pod("e", "2"))
    assert cpus.users() == {"a", "b"}
    again = CpuManager(tmp_path, PLACES, 1)
    assert again.of_container("b", "c0") == {2, 3, 6, 7} and again.shared == {0, 4}
    assert again.release("b") and not again.release("b")
    assert again.shared == {0, 2, 3, 4, 6, 7}


def test_init_containers_hand_theirs_on(tmp_path: Path) -> None:
    cpus = CpuManager(tmp_path, PLACES, 0, "0,4")
    made = pod("a", "1", "2", inits=("2", "4"))
    assert cpus.allocate(made)
    first, second = cpus.of_container("a", "i0"), cpus.of_container("a", "i1")
    assert first < second and cpus.of_container("a", "c0") | cpus.of_container("a", "c1") < second
    assert not cpus.of_container("a", "c0") & cpus.of_container("a", "c1")
    assert len(cpus.shared) == 4


def test_something_must_be_reserved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unable to determine reserved CPU resources for static policy"):
        CpuManager(tmp_path, PLACES, 0)
    with pytest.raises(ValueError, match="not all online"):
        CpuManager(tmp_path, PLACES, 0, "9")


async def _allowed(node: Node, name: str) -> str:
    return (await node.logs(name)).split()[-1]


@pytest.mark.root
@pytest.mark.asyncio(loop_scope="module")
async def test_on_a_node(node: Node) -> None:
    online = set(cpumanager.machine())
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
