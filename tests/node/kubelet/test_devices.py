"""Device plugins with a small plugin: registration, figures, allocation, preparation, restarts, health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from longshore.client.resources import NODES, PODS
from longshore.machinery.grpc import Client, RpcError, Server
from longshore.node.kubelet import devices, podresources

from .conftest import Node

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
NAME = "example.test/toy"


class Plugin:
    """Offers toys; each is the null device under another name."""

    def __init__(self, node: Node) -> None:
        self.folder = node.root / "k" / "device-plugins"
        self.messages = devices.schema()
        self.health = {"a": "Healthy", "b": "Healthy", "c": "Unhealthy"}
        self.changed = asyncio.Condition()
        self.allocated: list[list[str]] = []
        self.prepared: list[list[str]] = []
        self.server: Server | None = None

    async def start(self) -> None:
        async with asyncio.timeout(10):
            while not (self.folder / "kubelet.sock").exists():
                await asyncio.sleep(0.02)
        self.server = Server((self.messages.DevicePlugin, self))
        await self.server.listen_unix(self.folder / "toy.sock")
        await self.register()

    async def register(self, **other: Any) -> None:
        client = Client(self.messages.Registration, path=self.folder / "kubelet.sock")
        options = {"pre_start_required": True, "get_preferred_allocation_available": True}
        fields = {"version": "v1beta1", "endpoint": "toy.sock", "resource_name": NAME, "options": options, **other}
        try:
            await client.call("Register", deadline=10, **fields)
        finally:
            client.close()

    async def stop(self) -> None:
        server, self.server = self.server, None
        async with self.changed:
            self.changed.notify_all()
        if server is not None:
            await asyncio.sleep(0.1)
            await server.close(0.1)
        (self.folder / "toy.sock").unlink(missing_ok=True)

    async def set(self, name: str, health: str) -> None:
        async with self.changed:
            self.health[name] = health
            self.changed.notify_all()

    async def list_and_watch(self, _: Any) -> AsyncIterator[Any]:
        while self.server is not None:
            yield self.messages.ListAndWatchResponse(devices=[{"ID": k, "health": v} for k, v in self.health.items()])
            async with self.changed:
                await self.changed.wait()

    async def get_preferred_allocation(self, request: Any) -> Any:
        found = [{"deviceIDs": sorted(c.available_deviceIDs)[::-1]} for c in request.container_requests]
        return self.messages.PreferredAllocationResponse(container_responses=found)

    async def allocate(self, request: Any) -> Any:
        found = []
        for one in request.container_requests:
            ids = list(one.devices_ids)
            self.allocated.append(ids)
            found.append(
                {
                    "envs": {"TOYS": ",".join(ids)},
                    "devices": [
                        {"container_path": f"/dev/toy-{i}", "host_path": "/dev/null", "permissions": "rw"} for i in ids
                    ],
                    "mounts": [
                        {"container_path": "/toys", "host_path": str(self.folder.parent / "toys"), "read_only": True}
                    ],
                }
            )
        return self.messages.AllocateResponse(container_responses=found)

    async def pre_start_container(self, request: Any) -> Any:
        self.prepared.append(list(request.devices_ids))
        return self.messages.PreStartContainerResponse()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plugin(node: Node) -> AsyncIterator[Plugin]:
    found = Plugin(node)
    toys: Path = found.folder.parent / "toys"
    toys.mkdir()
    (toys / "manual").write_text("play")
    await found.start()
    try:
        yield found
    finally:
        await found.stop()


async def shows(node: Node, capacity: str, allocatable: str) -> None:
    async def so() -> bool:
        status = (await node.client.get(NODES, node.name))["status"]
        return (status["capacity"].get(NAME), status["allocatable"].get(NAME)) == (capacity, allocatable)

    await node.until(so)


def toys(count: int, **more: Any) -> dict[str, Any]:
    limits = {NAME: str(count)}
    script = "echo $TOYS $(ls /dev | grep toy) $(cat /toys/manual); echo x > /dev/toy-$TOYS; echo $?; sleep 1000"
    return {"command": ["sh", "-c", script], "resources": {"limits": limits, "requests": limits}, **more}


async def test_a_container_has_its_devices(node: Node, plugin: Plugin) -> None:
    await shows(node, "3", "2")
    await node.create("player", toys(1))
    await node.ready("player")

    async def said() -> bool:
        return await node.logs("player") == "b toy-b play\n0\n"

    # The plugin prefers the last one.
    await node.until(said)
    assert plugin.allocated == [["b"]] and plugin.prepared == [["b"]]


async def test_agents_see_who_has_what(node: Node, plugin: Plugin) -> None:
    await node.create("seen", toys(1, name="one"))
    await node.ready("seen")
    agent = Client(podresources.schema().PodResourcesLister, path=node.root / "k" / "pod-resources" / "kubelet.sock")
    try:
        (mine,) = (p for p in (await agent.call("List")).pod_resources if p.name == "seen")
        (given,) = mine.containers[0].devices
        assert (
            mine.containers[0].name == "one"
            and given.resource_name == NAME
            and list(given.device_ids) in (["a"], ["b"])
        )
        all_of_them = (await agent.call("GetAllocatableResources")).devices
        assert {(d.resource_name, *d.device_ids) for d in all_of_them} == {(NAME, "a"), (NAME, "b")}
    finally:
        agent.close()
    await node.delete("seen")


async def test_more_than_there_is(node: Node, plugin: Plugin) -> None:
    await node.create("greedy", toys(2))
    failed = await node.phase("greedy", "Failed")
    assert failed["status"]["reason"] == f"OutOf{NAME}"
    await node.delete("greedy")


async def test_init_containers_hand_their_devices_on(node: Node, plugin: Plugin) -> None:
    first = {**toys(1), "name": "first", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["true"]}
    await node.create("chain", toys(1), initContainers=[first])
    await node.ready("chain")
    assert plugin.allocated[-2:] == [["a"], ["a"]]
    await node.delete("chain")


async def test_a_restart_gives_nothing_away_twice(node: Node, plugin: Plugin) -> None:
    await node.stop_kubelet()
    await plugin.stop()
    node.start_kubelet()
    await shows(node, "0", "0")
    await plugin.start()
    await shows(node, "3", "2")
    await node.create("other", toys(1))
    await node.ready("other")
    assert plugin.allocated[-1] == ["a"]
    await node.delete("player")
    await node.create("third", toys(1))
    await node.ready("third")
    assert plugin.allocated[-1] == ["b"]
    await asyncio.gather(node.delete("other"), node.delete("third"))


async def test_health_and_the_end_of_a_plugin(node: Node, plugin: Plugin) -> None:
    await node.create("watched", toys(1))
    await node.ready("watched")
    (mine,) = plugin.allocated[-1]
    await plugin.set(mine, "Unhealthy")
    await shows(node, "3", "1")

    async def told(state: str) -> bool:
        (container,) = (await node.client.get(PODS, "watched", "default"))["status"]["containerStatuses"]
        want = [{"name": NAME, "resources": [{"resourceID": mine, "health": state}]}]
        return container.get("allocatedResourcesStatus") == want

    await node.until(lambda: told("Unhealthy"))
    await plugin.set(mine, "Healthy")
    await shows(node, "3", "2")
    await node.until(lambda: told("Healthy"))
    await node.delete("watched")
    await plugin.stop()
    await shows(node, "0", "0")
    await plugin.start()
    await shows(node, "3", "2")


async def test_wrong_registrations_are_refused(node: Node, plugin: Plugin) -> None:
    for other in ({"version": "v1alpha"}, {"resource_name": "cpu"}, {"endpoint": "../x.sock"}):
        with pytest.raises(RpcError):
            await plugin.register(**other)
