"""Claims of pods with a small driver: preparation, CDI devices in the container, sharing, errors, giving back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from longshore.client.resources import EVENTS, PODS, RESOURCE_CLAIMS
from longshore.machinery.grpc import Client, RpcError, Server
from longshore.node.kubelet import dra, drahealth, plugins, podresources

from .conftest import Node

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
DRIVER = "dra.example.test"
TELL = {"command": ["sh", "-c", "echo -$TOY_ZERO-$TOY_ONE-; cat /toys; echo; ls /dev; exec sleep 1000"]}


class Driver:
    """Prepares every claim with one CDI device; remembers what it was asked."""

    def __init__(self, node: Node) -> None:
        self.node, self.problem = node, ""
        self.prepared: list[str] = []
        self.returned: list[str] = []
        self.messages = dra.schema(dra.SERVICES["v1.DRAPlugin"])
        self.health: asyncio.Queue[Any] = asyncio.Queue()
        self.server: Server | None = None

    async def start(self) -> None:
        folder = self.node.root / "k" / "plugins_registry"
        self.socket = folder / "dra.sock"
        registration = plugins.schema()
        self.registration = registration
        self.server = Server(
            (self.messages.DRAPlugin, self),
            (registration.Registration, self),
            (drahealth.schema().DRAResourceHealth, self),
        )
        folder.mkdir(parents=True, exist_ok=True)
        await self.server.listen_unix(self.socket)

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.close(0)
            self.server = None

    async def get_info(self, _: Any) -> Any:
        return self.registration.PluginInfo(type="DRAPlugin", name=DRIVER, endpoint=str(self.socket), supported_versions=["v1.DRAPlugin"])  # fmt: skip

    async def notify_registration_status(self, request: Any) -> Any:
        assert request.plugin_registered, request.error
        return self.registration.RegistrationStatusResponse()

    def well(self, device: str, state: int, message: str = "", seconds: int = 0) -> None:
        one = {
            "device": {"pool_name": "p", "device_name": device}, "health": state, "message": message,
            "health_check_timeout_seconds": seconds,
        }  # fmt: skip
        self.health.put_nowait(drahealth.schema().NodeWatchResourcesResponse(devices=[one]))

    async def node_watch_resources(self, _: Any) -> AsyncIterator[Any]:
        while True:
            yield await self.health.get()

    async def node_prepare_resources(self, request: Any) -> Any:
        answer = self.messages.NodePrepareResourcesResponse()
        for claim in request.claims:
            entry = answer.claims[claim.uid]
            if self.problem:
                entry.error = self.problem
                continue
            self.prepared.append(claim.name)
            for name in ("zero", "one"):
                entry.devices.add(request_names=[f"r-{name}"], pool_name="p", device_name=name, cdi_device_ids=[f"example.test/toy={name}"])  # fmt: skip
        return answer

    async def node_unprepare_resources(self, request: Any) -> Any:
        answer = self.messages.NodeUnprepareResourcesResponse()
        for claim in request.claims:
            answer.claims[claim.uid].error = self.problem
            if not self.problem:
                self.returned.append(claim.name)
        return answer


@pytest_asyncio.fixture(loop_scope="module")
async def driver(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Driver]:
    data = tmp_path / "data"
    data.write_text("of the device")
    device = {"path": "/dev/toy-{}", "hostPath": "/dev/null"}
    spec = {
        "cdiVersion": "0.6.0", "kind": "example.test/toy",
        "containerEdits": {"mounts": [{"hostPath": str(data), "containerPath": "/toys"}]},
        "devices": [
            {"name": n, "containerEdits": {"env": [f"TOY_{n.upper()}=yes"], "deviceNodes": [{**device, "path": f"/dev/toy-{n}"}]}}
            for n in ("zero", "one")
        ],
    }  # fmt: skip
    (tmp_path / "toy.json").write_bytes(orjson.dumps(spec))
    from longshore.engine import cdi

    monkeypatch.setattr(cdi.inject, "__defaults__", ((tmp_path,),))
    found = Driver(node)
    await found.start()
    yield found
    await found.stop()


async def claim(node: Node, name: str) -> None:
    """An allocated claim; the cluster's controller reserves it for the pods that are bound to the node."""
    spec = {"devices": {"requests": [{"name": "r-zero", "exactly": {"deviceClassName": "toy"}}, {"name": "r-one", "exactly": {"deviceClassName": "toy"}}]}}  # fmt: skip
    made = await node.client.create(RESOURCE_CLAIMS, {"metadata": {"name": name, "namespace": "default"}, "spec": spec})
    results = [{"request": f"r-{d}", "driver": DRIVER, "pool": "p", "device": d} for d in ("zero", "one")]
    made["status"] = {"allocation": {"devices": {"results": results}}}
    await node.client.update(RESOURCE_CLAIMS, made, subresource="status")


def uses(name: str, request: str = "") -> dict[str, Any]:
    wanted = {"name": "toys", **({"request": request} if request else {})}
    return {**TELL, "resources": {"claims": [wanted]}}


async def said(node: Node, name: str) -> str:
    async def whole() -> str:
        text = await node.logs(name)
        return text if "zero\n" in text or "toy-one\n" in text else ""

    return str(await node.until(whole))


async def events(node: Node, name: str) -> list[str]:
    found = await node.client.list(EVENTS, "default", field_selector=f"involvedObject.name={name}")
    return [e["message"] for e in found["items"] if e["reason"] == "FailedPrepareDynamicResources"]


async def test_a_claim_is_prepared_given_and_returned(node: Node, driver: Driver) -> None:
    await claim(node, "both")
    more = {"resourceClaims": [{"name": "toys", "resourceClaimName": "both"}]}
    await node.create("first", uses("both"), **more)

    await node.ready("first")
    answer = await said(node, "first")
    assert answer.startswith("-yes-yes-\nof the device\n") and "toy-zero" in answer and "toy-one" in answer
    # a second pod shares it; it asked for one device only
    await node.create("second", uses("both", "r-one"), **more)
    await node.ready("second")
    answer = await said(node, "second")
    assert answer.startswith("--yes-\nof the device\n") and "toy-zero" not in answer
    assert driver.prepared == ["both"]
    agent = Client(podresources.schema().PodResourcesLister, path=node.root / "k" / "pod-resources" / "kubelet.sock")
    listed = {p.name: p for p in (await agent.call("List")).pod_resources}
    for name, want in (("first", ["zero", "one"]), ("second", ["one"])):
        (given,) = listed[name].containers[0].dynamic_resources
        assert (given.claim_name, given.claim_namespace) == ("both", "default")
        assert [(r.driver_name, r.pool_name, r.device_name) for r in given.claim_resources] == [(DRIVER, "p", d) for d in want]  # fmt: skip
        assert [c.name for r in given.claim_resources for c in r.cdi_devices] == [f"example.test/toy={d}" for d in want]
    assert (await agent.call("Get", pod_name="first", pod_namespace="default")).pod_resources == listed["first"]
    with pytest.raises(RpcError, match="pod first in namespace other not found"):
        await agent.call("Get", pod_name="first", pod_namespace="other")
    agent.close()
    await node.delete("first")
    assert driver.returned == []
    # deleted while the kubelet is away: given back when it is there again
    await node.stop_kubelet()
    await node.client.delete(PODS, "second", "default", grace_seconds=0)
    node.start_kubelet()

    async def returned() -> bool:
        return driver.returned == ["both"]

    await node.until(returned)
    await node.client.delete(RESOURCE_CLAIMS, "both", "default")


async def test_how_devices_are_is_told(node: Node, driver: Driver) -> None:
    await claim(node, "watched")
    more = {"resourceClaims": [{"name": "toys", "resourceClaimName": "watched"}]}
    await node.create("watches", uses("watched", "r-one"), **more)
    await node.ready("watches")

    async def told(state: str, **words: str) -> bool:
        (container,) = (await node.client.get(PODS, "watches", "default"))["status"]["containerStatuses"]
        health = {"resourceID": "example.test/toy=one", "health": state, **words}
        return container.get("allocatedResourcesStatus") == [{"name": "claim:toys/r-one", "resources": [health]}]

    await node.until(lambda: told("Unknown"))
    driver.well("one", 1)
    await node.until(lambda: told("Healthy"))
    driver.well("one", 2, "too hot", seconds=1)
    await node.until(lambda: told("Unhealthy", message="too hot"))
    # What a driver says is believed for so long only.
    await node.until(lambda: told("Unknown"))
    await node.delete("watches")
    await node.client.delete(RESOURCE_CLAIMS, "watched", "default")


async def test_what_a_driver_says_is_told(node: Node, driver: Driver) -> None:
    driver.problem = "the toy is broken"
    await claim(node, "broken")
    await node.create("waits", uses("broken"), resourceClaims=[{"name": "toys", "resourceClaimName": "broken"}])

    async def told() -> bool:
        text = "Failed to prepare dynamic resources: prepare dynamic resources: NodePrepareResources failed for ResourceClaim broken: the toy is broken"
        return text in await events(node, "waits")

    await node.until(told)
    driver.problem = ""
    await node.ready("waits", 40)
    driver.problem = "not now"
    deleting = asyncio.create_task(node.delete("waits"))
    await asyncio.sleep(2)
    assert not deleting.done()
    driver.problem = ""
    await deleting
    await node.client.delete(RESOURCE_CLAIMS, "broken", "default")
