"""CSI's node side with a small driver: registration, CSINode, stage and publish, giving back, a restart in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from longshore.client.resources import (
    CSI_DRIVERS,
    CSI_NODES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
)
from longshore.client.rest import is_not_found
from longshore.machinery import mounts
from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import RpcError, Server, Status
from longshore.node.kubelet import plugins
from longshore.node.kubelet.volumes import csi

from .conftest import Node

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
NAME = "csi.example.test"


class Driver:
    """A driver whose volumes are folders; it writes down what it was asked."""

    def __init__(self, node: Node) -> None:
        self.registry = node.root / "k" / "plugins_registry" / f"{NAME}-reg.sock"
        self.endpoint = node.root / "csi.sock"
        self.data = node.root / "csi-data"
        self.asked: list[tuple[str, Any]] = []
        self.told: list[tuple[bool, str]] = []
        self.versions = ["1.11.0"]
        self.failures = 0
        self.messages = csi.schema()
        self.registration = plugins.schema()
        self.servers: list[Server] = []

    async def start(self) -> None:
        self.registry.parent.mkdir(parents=True, exist_ok=True)
        self.servers = [Server((self.messages.Node, self)), Server((self.registration.Registration, self))]
        await self.servers[0].listen_unix(self.endpoint)
        await self.servers[1].listen_unix(self.registry)

    async def stop(self) -> None:
        for server in self.servers:
            await server.close(0.1)
        self.servers = []
        for path in (self.registry, self.endpoint):
            path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]

    async def get_info(self, _: Any) -> Any:
        return self.registration.PluginInfo(
            type="CSIPlugin", name=NAME, endpoint=str(self.endpoint), supported_versions=self.versions
        )

    async def notify_registration_status(self, request: Any) -> Any:
        self.told.append((request.plugin_registered, request.error))
        return self.registration.RegistrationStatusResponse()

    async def node_get_info(self, _: Any) -> Any:
        topology = self.messages.Topology(segments={"example.test/rack": "r1"})
        return self.messages.NodeGetInfoResponse(node_id="n-1", max_volumes_per_node=7, accessible_topology=topology)

    async def node_get_capabilities(self, _: Any) -> Any:
        one = self.messages.NodeServiceCapability(rpc=self.messages.NodeServiceRPC(type=1))
        return self.messages.NodeGetCapabilitiesResponse(capabilities=[one])

    async def node_stage_volume(self, request: Any) -> Any:
        self.asked.append(("stage", request))
        if self.failures:
            self.failures -= 1
            raise RpcError(Status.INTERNAL, "the array is warming up")
        source = self.data / request.volume_id
        source.mkdir(parents=True, exist_ok=True)
        if not mounts.is_mounted(request.staging_target_path):
            mounts.bind(source, request.staging_target_path)
        return self.messages.NodeStageVolumeResponse()

    async def node_publish_volume(self, request: Any) -> Any:
        self.asked.append(("publish", request))
        target = Path(request.target_path)
        target.mkdir(exist_ok=True)
        if not mounts.is_mounted(target):
            if request.staging_target_path:
                mounts.bind(request.staging_target_path, target)
            else:
                mounts.mount("tmpfs", target, "tmpfs", [])
                (target / "who").write_text(request.volume_context["csi.storage.k8s.io/pod.name"])
        return self.messages.NodePublishVolumeResponse()

    async def node_unpublish_volume(self, request: Any) -> Any:
        self.asked.append(("unpublish", request))
        mounts.unmount(request.target_path)
        Path(request.target_path).rmdir()
        return self.messages.NodeUnpublishVolumeResponse()

    async def node_unstage_volume(self, request: Any) -> Any:
        self.asked.append(("unstage", request))
        mounts.unmount(request.staging_target_path)
        return self.messages.NodeUnstageVolumeResponse()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(node: Node) -> AsyncIterator[Driver]:
    found = Driver(node)
    about = {"attachRequired": False, "podInfoOnMount": True, "volumeLifecycleModes": ["Persistent", "Ephemeral"]}
    await node.client.create(CSI_DRIVERS, {"metadata": {"name": NAME}, "spec": {**about, "fsGroupPolicy": "File"}})
    await found.start()
    try:
        yield found
    finally:
        await found.stop()


async def registered(node: Node) -> list[dict[str, Any]]:
    try:
        return (await node.client.get(CSI_NODES, node.name))["spec"]["drivers"] or []
    except StatusError as error:
        if is_not_found(error):
            return []
        raise


async def volume(node: Node, name: str) -> None:
    """A volume of the driver with a claim of the same name."""
    size = {"storage": "1Gi"}
    secret = {"namespace": "default", "name": "stage"}
    source = {
        "driver": NAME, "volumeHandle": f"handle-{name}", "volumeAttributes": {"colour": "red"},
        "nodeStageSecretRef": secret,
    }  # fmt: skip
    await node.client.create(
        PERSISTENT_VOLUMES,
        {
            "metadata": {"name": name},
            "spec": {
                "capacity": size, "accessModes": ["ReadWriteOnce"], "csi": source, "storageClassName": "",
                "claimRef": {"namespace": "default", "name": name}, "persistentVolumeReclaimPolicy": "Retain",
            },
        },
    )  # fmt: skip
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": size}, "volumeName": name}
    claim = {"metadata": {"name": name}, "spec": {**spec, "storageClassName": ""}}
    await node.client.create(PERSISTENT_VOLUME_CLAIMS, claim, "default")


def user(name: str) -> dict[str, Any]:
    return {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]}


WRITER = {"command": ["sh", "-c", "id; echo kept >> /v/file; sleep 1000"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}  # fmt: skip


async def test_a_driver_registers(node: Node, driver: Driver) -> None:
    found = await node.until(lambda: registered(node))
    want = {"name": NAME, "nodeID": "n-1", "topologyKeys": ["example.test/rack"], "allocatable": {"count": 7}}
    assert found == [want]
    me = await node.client.get(NODES, node.name)
    assert me["metadata"]["annotations"][csi.NODE_ID] == f'{{"{NAME}":"n-1"}}'
    assert me["metadata"]["labels"]["example.test/rack"] == "r1"

    async def told() -> bool:
        return driver.told == [(True, "")]

    await node.until(told)


async def test_a_persistent_volume(node: Node, driver: Driver) -> None:
    """Staged and published for each of two pods; a failure is told and tried again; given back in order."""
    await node.client.create(SECRETS, {"metadata": {"name": "stage"}, "data": {"key": "c2VjcmV0"}}, "default")
    await node.until(lambda: registered(node))
    await volume(node, "disk")
    driver.failures = 1
    await node.create("one", WRITER, **user("disk"), securityContext={"fsGroup": 4321})
    await node.ready("one", 30)
    first = [request for name, request in driver.asked if name == "stage"]
    assert len(first) == 2, "the first attempt failed"
    stage = first[1]
    assert stage.volume_id == "handle-disk" and dict(stage.secrets) == {"key": "secret"}
    assert dict(stage.volume_context) == {"colour": "red"} and stage.volume_capability.access_mode.mode == 1
    publish = next(request for name, request in driver.asked if name == "publish")
    assert publish.volume_context["csi.storage.k8s.io/pod.name"] == "one"
    assert publish.volume_context["csi.storage.k8s.io/ephemeral"] == "false"
    assert publish.staging_target_path == stage.staging_target_path and not publish.readonly
    assert (driver.data / "handle-disk").stat().st_gid == 4321
    await node.create("two", WRITER, **user("disk"))
    await node.ready("two")
    assert driver.names().count("stage") == 3 and driver.names().count("publish") == 2
    # A restart finds what is published, and knows how to give it back.
    await node.stop_kubelet()
    node.start_kubelet()
    await node.until(lambda: registered(node))
    await node.delete("one")
    assert driver.names().count("unpublish") == 1 and "unstage" not in driver.names()
    await node.delete("two")
    assert driver.names()[-2:] == ["unpublish", "unstage"] and driver.names().count("publish") == 2
    assert (driver.data / "handle-disk" / "file").read_text() == "kept\nkept\n"
    assert not mounts.is_mounted(stage.staging_target_path) and not Path(stage.staging_target_path).parent.exists()


async def test_a_volume_of_the_pod_itself(node: Node, driver: Driver) -> None:
    await node.until(lambda: registered(node))
    driver.asked.clear()
    volumes = [{"name": "v", "csi": {"driver": NAME, "volumeAttributes": {"a": "b"}}}]
    reader = {**WRITER, "command": ["sh", "-c", "cat /v/who; sleep 1000"]}
    await node.create("inline", reader, volumes=volumes)
    await node.ready("inline")

    async def said() -> bool:
        return await node.logs("inline") == "inline"

    await node.until(said)
    assert driver.names() == ["publish"]
    request = driver.asked[0][1]
    assert request.volume_id.startswith("csi-") and len(request.volume_id) == 68
    assert request.volume_context["csi.storage.k8s.io/ephemeral"] == "true" and request.volume_context["a"] == "b"
    await node.delete("inline")
    assert driver.names() == ["publish", "unpublish"]


async def test_a_driver_that_goes_and_comes_back(node: Node, driver: Driver) -> None:
    """A pod waits for its driver, and one that has gone keeps its volume until the driver is there to take it."""
    await node.until(lambda: registered(node))
    await driver.stop()

    async def none() -> bool:
        return not await registered(node)

    await node.until(none)
    volumes = [{"name": "v", "csi": {"driver": NAME}}]
    await node.create("waits", WRITER, volumes=volumes)
    await asyncio.sleep(0.5)
    assert (await node.pod("waits"))["status"]["phase"] == "Pending"
    await driver.start()
    await node.ready("waits", 30)
    await driver.stop()
    await node.until(none)
    await node.client.delete(PODS, "waits", "default")
    await asyncio.sleep(1.5)
    assert not await node.gone("waits")
    await driver.start()
    await node.until(lambda: node.gone("waits"), 30)
    assert driver.names()[-1] == "unpublish"


async def test_a_version_that_is_not_known_is_refused(node: Node, driver: Driver) -> None:
    await driver.stop()
    driver.told.clear()
    driver.versions = ["0.3.0"]
    try:
        await driver.start()

        async def told() -> bool:
            return bool(driver.told)

        await node.until(told)
        assert driver.told[0][0] is False and "0.3.0" in driver.told[0][1]
        assert not await registered(node)
    finally:
        await driver.stop()
        driver.versions = ["1.11.0"]
        await driver.start()
        await node.until(lambda: registered(node))
