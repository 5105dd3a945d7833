"""The client on the wire: a small server speaks the REST shape through the shared HTTP core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from longshore.client.config import Config
from longshore.client.informer import InformerFactory
from longshore.client.resources import CONFIG_MAPS, NODES, PODS, Resource
from longshore.client.rest import Client, is_already_exists, is_not_found
from longshore.machinery.errors import StatusError
from longshore.machinery.http import Request, Response, Server


class Door:
    """Answers scripted by path, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes, str]] = []
        self.lists: list[list[dict]] = []
        self.streams: list[list[bytes]] = []
        self.expired_once = False

    async def __call__(self, request: Request) -> Response | None:
        body = await request.read(1 << 20)
        self.asked.append((request.method, request.target, body, request.headers.get("content-type") or ""))
        if request.param("watch"):
            if not self.streams:
                await request.disconnected()
                return None
            writer = await request.start(200, [("content-type", "application/json")])
            for part in self.streams.pop(0):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            await writer.finish()
            return None
        if request.method == "GET" and request.path.endswith("/configmaps"):
            items = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            return answer(200, {"metadata": {"resourceVersion": "10"}, "items": items})
        if request.path.endswith("/missing"):
            status = {"kind": "Status", "code": 404, "reason": "NotFound", "message": 'pods "missing" not found'}
            return answer(404, status)
        return answer(200, {"kind": "Echo", "metadata": {"name": "echo"}})


def answer(status: int, obj: object) -> Response:
    return Response(status, orjson.dumps(obj), content_type="application/json")


def line(kind: str, name: str, version: int) -> bytes:
    obj = {"metadata": {"name": name, "namespace": "d", "uid": name, "resourceVersion": str(version)}}
    return orjson.dumps({"type": kind, "object": obj}) + b"\n"


@pytest.fixture
async def door() -> AsyncIterator[tuple[Door, Client]]:
    handler = Door()
    server = Server(handler)
    port = await server.listen_tcp("127.0.0.1", 0)
    client = Client(Config(f"http://127.0.0.1:{port}", token="t"))
    yield handler, client
    await client.close()
    await server.close()


async def test_paths_queries_and_bodies(door: tuple[Door, Client]) -> None:
    handler, client = door
    await client.get(PODS, "p", "d")
    await client.create(PODS, {"metadata": {"generateName": "a-"}}, "d")
    await client.patch(NODES, "n", {"spec": {}}, kind="strategic", subresource="status")
    await client.patch(PODS, "p", {}, "d", kind="apply", field_manager="me", force=True)
    await client.delete(PODS, "p", "d", propagation="Foreground", grace_seconds=0, uid="u")
    targets = [(method, target) for method, target, _, _ in handler.asked]
    assert targets == [
        ("GET", "/api/v1/namespaces/d/pods/p"),
        ("POST", "/api/v1/namespaces/d/pods"),
        ("PATCH", "/api/v1/nodes/n/status"),
        ("PATCH", "/api/v1/namespaces/d/pods/p?fieldManager=me&force=true"),
        ("DELETE", "/api/v1/namespaces/d/pods/p"),
    ]
    assert orjson.loads(handler.asked[1][2])["kind"] == "Pod"
    assert handler.asked[2][3] == "application/strategic-merge-patch+json"
    assert orjson.loads(handler.asked[4][2])["preconditions"] == {"uid": "u"}


async def test_errors_are_status_errors(door: tuple[Door, Client]) -> None:
    _, client = door
    with pytest.raises(StatusError) as caught:
        await client.get(PODS, "missing", "d")
    assert is_not_found(caught.value) and not is_already_exists(caught.value)
    assert caught.value.message == 'pods "missing" not found'


async def test_unreachable_is_an_os_error() -> None:
    client = Client(Config("http://127.0.0.1:1"))
    with pytest.raises(OSError):
        await client.get(PODS, "p", "d")


async def test_informer_over_gaps(door: tuple[Door, Client]) -> None:
    handler, client = door
    first = {"metadata": {"name": "a", "namespace": "d", "uid": "a", "resourceVersion": "9"}}
    later = {"metadata": {"name": "c", "namespace": "d", "uid": "c", "resourceVersion": "30"}}
    gone = orjson.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}) + b"\n"
    both = line("ADDED", "b", 11) + line("MODIFIED", "a", 12)
    handler.lists = [[first], [later]]
    handler.streams = [
        [both[:40], both[40:], line("BOOKMARK", "x", 20)],  # cut in the middle of an event
        [line("DELETED", "b", 21), gone],
    ]
    factory = InformerFactory(client)
    informer = factory.informer(CONFIG_MAPS)
    seen: list[str] = []
    informer.on(
        lambda o: seen.append("+" + o["metadata"]["name"]),
        lambda _, o: seen.append("~" + o["metadata"]["name"]),
        lambda o: seen.append("-" + o["metadata"]["name"]),
    )
    factory.start()
    await factory.wait_synced()
    async with asyncio.timeout(5):
        while len(seen) < 6:
            await asyncio.sleep(0.01)
    assert seen == ["+a", "+b", "~a", "-b", "+c", "-a"]
    assert informer.store.named("d", "c")["kind"] == "ConfigMap"
    watches = [target for _, target, _, _ in handler.asked if "watch=1" in target]
    assert "resourceVersion=10&" in watches[0] and "resourceVersion=20&" in watches[1]
    lists = [target for _, target, _, _ in handler.asked if "watch" not in target]
    assert lists == ["/api/v1/configmaps?resourceVersion=0", "/api/v1/configmaps"]
    late: list[str] = []
    informer.on(lambda o: late.append(o["metadata"]["name"]))
    assert late == ["c"]
    await factory.stop()


async def test_a_resource_that_is_not_served_holds_nobody_up(door: tuple[Door, Client]) -> None:
    _, client = door
    factory = InformerFactory(client)
    informer = factory.informer(Resource("", "v1", "missing", "Missing"))
    factory.start()
    await asyncio.wait_for(factory.wait_synced(), 5)
    assert len(informer.store) == 0
    await factory.stop()
