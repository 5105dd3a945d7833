"""CSI's node side with a small driver: registration, CSINode, stage and publish, giving back, a restart in between."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from longshore.client.resources import (
    CSI_DRIVERS,
    CSI_NODES,
    EVENTS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    VOLUME_ATTACHMENTS,
)
from longshore.client.rest import is_not_found
from longshore.machinery import mounts
from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import RpcError, Server, Status
from longshore.node.kubelet import plugins
from longshore.node.kubelet.volumes import csi, csiprotocol

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
        self.seen_at_stage: Callable[[], Awaitable[list[str]]] | None = None
        self.at_stage: list[str] = []
        self.messages = csiprotocol.schema()
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
        # staging, figures, expansion
        able = [self.messages.NodeServiceCapability(rpc=self.messages.NodeServiceRPC(type=n)) for n in (1, 2, 3)]
        return self.messages.NodeGetCapabilitiesResponse(capabilities=able)

    async def node_expand_volume(self, request: Any) -> Any:
        self.asked.append(("expand", request))
        return self.messages.NodeExpandVolumeResponse(capacity_bytes=request.capacity_range.required_bytes)

    async def node_get_volume_stats(self, request: Any) -> Any:
        assert mounts.is_mounted(request.volume_path)
        usage = [{"available": 60, "total": 100, "used": 40, "unit": 1}, {"available": 6, "total": 10, "used": 4, "unit": 2}]  # fmt: skip
        return self.messages.NodeGetVolumeStatsResponse(usage=usage)

    async def node_stage_volume(self, request: Any) -> Any:
        self.asked.append(("stage", request))
        if self.failures:
            self.failures -= 1
            raise RpcError(Status.INTERNAL, "the array is warming up")
        if self.seen_at_stage is not None:
            self.at_stage = await self.seen_at_stage()
        source = self.data / request.volume_id
        source.mkdir(parents=True, exist_ok=True)
        if not mounts.is_mounted(request.staging_target_path):
            mounts.bind(source, request.staging_target_path)
        return self.messages.NodeStageVolumeResponse()

    async def node_publish_volume(self, request: Any) -> Any:
        self.asked.append(("publish", request))
        target = Path(request.target_path)
        if request.volume_capability.HasField("block"):
            device = self.data / f"{request.volume_id}.device"
            device.unlink(missing_ok=True)
            os.mknod(device, 0o600 | stat.S_IFBLK, os.makedev(7, 250))
            target.touch()
            mounts.bind(device, target)
            return self.messages.NodePublishVolumeResponse()
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
        target = Path(request.target_path)
        target.rmdir() if target.is_dir() else target.unlink()
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


async def volume(node: Node, name: str, **more: Any) -> None:
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
                **more,
            },
        },
    )  # fmt: skip
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": size}, "volumeName": name, **more}
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
    assert me["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"] == f'{{"{NAME}":"n-1"}}'
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


async def test_an_attached_volume_is_told_of_before_it_is_mounted(node: Node, driver: Driver) -> None:
    """Until the kubelet has given a volume back, its node's status says that it is in use: nobody may detach it."""
    await node.until(lambda: registered(node))
    await node.client.delete(CSI_DRIVERS, NAME)
    await node.client.create(CSI_DRIVERS, {"metadata": {"name": NAME}, "spec": {"attachRequired": True}})
    await volume(node, "far")
    name = "csi-" + hashlib.sha256(f"handle-far{NAME}{node.name}".encode()).hexdigest()

    async def in_use() -> list[str]:
        return (await node.client.get(NODES, node.name))["status"].get("volumesInUse") or []

    assert await in_use() == []
    driver.seen_at_stage = in_use
    await node.create("traveller", WRITER, **user("far"))

    async def attach() -> bool:
        """As a CSI attacher does it to what the controller has asked for."""
        try:
            await node.client.patch(VOLUME_ATTACHMENTS, name, {"status": {"attached": True}}, subresource="status")
        except StatusError as error:
            return not is_not_found(error)
        return True

    await node.until(attach)
    await node.ready("traveller", 30)
    wanted = [f"kubernetes.io/csi/{NAME}^handle-far"]
    assert driver.at_stage == wanted and await in_use() == wanted
    await node.stop_kubelet()
    node.start_kubelet()
    await node.until(lambda: registered(node))
    assert await in_use() == wanted
    await node.delete("traveller")

    async def gone() -> bool:
        return await in_use() == []

    await node.until(gone)
    driver.seen_at_stage = None
    await node.client.delete(CSI_DRIVERS, NAME)
    about = {"attachRequired": False, "podInfoOnMount": True, "volumeLifecycleModes": ["Persistent", "Ephemeral"]}
    await node.client.create(CSI_DRIVERS, {"metadata": {"name": NAME}, "spec": {**about, "fsGroupPolicy": "File"}})


async def test_a_block_volume_is_a_device(node: Node, driver: Driver) -> None:
    await volume(node, "raw", volumeMode="Block")
    look = {"command": ["sh", "-c", "test -b /dev/raw && echo a device; ls /dev; sleep 1000"]}
    await node.create("wrong", {**look, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}, **user("raw"))

    async def told() -> bool:
        found = await node.client.list(EVENTS, "default", field_selector="involvedObject.name=wrong")
        return any("volume v has volumeMode Block, but is specified in volumeMounts" in e["message"] for e in found["items"])  # fmt: skip

    await node.until(told)
    await node.delete("wrong")
    await node.create("raw", {**look, "volumeDevices": [{"name": "v", "devicePath": "/dev/raw"}]}, **user("raw"))
    await node.ready("raw")
    await node.until(lambda: _says(node, "raw", "a device"))
    request = [r for n, r in driver.asked if n == "publish"][-1]
    assert request.volume_capability.HasField("block") and "/volumeDevices/publish/raw/" in request.target_path
    assert request.staging_target_path.endswith("/volumeDevices/staging/raw")
    await node.delete("raw")
    assert driver.names()[-2:] == ["unpublish", "unstage"]
    assert not Path(request.target_path).exists() and not Path(request.staging_target_path).exists()


async def _says(node: Node, name: str, text: str) -> bool:
    return text in await node.logs(name)


async def test_a_volume_grows_and_tells_how_full_it_is(node: Node, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(csi, "LOOK_AGAIN", 1.0)
    await volume(node, "grows")
    await node.create("grows", WRITER, **user("grows"))
    await node.ready("grows")
    larger = {"capacity": {"storage": "2Gi"}}
    await node.client.patch(PERSISTENT_VOLUMES, "grows", {"spec": larger})
    pending = {"type": "FileSystemResizePending", "status": "True", "lastTransitionTime": None}
    await node.client.patch(PERSISTENT_VOLUME_CLAIMS, "grows", {"status": {"conditions": [pending]}}, "default", subresource="status")  # fmt: skip

    async def grown() -> bool:
        status = (await node.client.get(PERSISTENT_VOLUME_CLAIMS, "grows", "default"))["status"]
        return bool(status["capacity"] == {"storage": "2Gi"} and not status.get("conditions"))

    await node.until(grown)
    request = next(r for n, r in driver.asked if n == "expand")
    assert request.capacity_range.required_bytes == 2 * 2**30 and request.volume_path.endswith("/grows/mount")
    assert [n for n in driver.names() if n == "expand"] == ["expand"]
    path = f"/api/v1/nodes/{node.name}/proxy"
    summary = orjson.loads(await node.client.raw("GET", f"{path}/stats/summary"))
    mine = next(p for p in summary["pods"] if p["podRef"]["name"] == "grows")
    figures = {v["name"]: v for v in mine["volume"]}["v"]
    assert figures["pvcRef"] == {"name": "grows", "namespace": "default"}
    assert (figures["capacityBytes"], figures["usedBytes"], figures["inodesFree"]) == (100, 40, 6)
    metrics = (await node.client.raw("GET", f"{path}/metrics")).decode()
    assert 'kubelet_volume_stats_available_bytes{namespace="default",persistentvolumeclaim="grows"} 60' in metrics
    await node.delete("grows")


async def test_a_driver_gets_tokens_and_publishes_again(node: Node, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(csi, "LOOK_AGAIN", 1.0)
    change = {"spec": {"requiresRepublish": True, "tokenRequests": [{"audience": "vault", "expirationSeconds": 600}]}}
    await node.client.patch(CSI_DRIVERS, NAME, change)
    await volume(node, "tokens")
    before = driver.names().count("publish")
    await node.create("tokens", WRITER, **user("tokens"))
    await node.ready("tokens")

    async def again() -> bool:
        return driver.names().count("publish") >= before + 2

    await node.until(again)
    request = [r for n, r in driver.asked if n == "publish"][-1]
    token = orjson.loads(request.volume_context["csi.storage.k8s.io/serviceAccount.tokens"])["vault"]
    assert token["token"].count(".") == 2 and token["expirationTimestamp"].endswith("Z")
    await node.delete("tokens")
    await node.client.patch(CSI_DRIVERS, NAME, {"spec": {"requiresRepublish": False, "tokenRequests": None}})
