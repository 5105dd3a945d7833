"""Health check node ports and the proxy's own pages, over HTTP."""

from __future__ import annotations

import asyncio

import orjson
from prometheus_client import CollectorRegistry, Gauge

from longshore.machinery.http import Client, ClientError, Server
from longshore.node.proxy.health import HealthPorts, status_handler


async def test_health_check_node_ports_come_change_and_go() -> None:
    healthy = True
    ports = HealthPorts(lambda: healthy, host="127.0.0.1")
    task = asyncio.create_task(ports.run())
    client = Client()

    async def ask(port: int) -> tuple[int, dict[str, object]]:
        for _ in range(100):
            try:
                answer = await client.request("GET", f"http://127.0.0.1:{port}/")
            except (OSError, ClientError):
                await asyncio.sleep(0.01)
                continue
            return answer.status, orjson.loads(await answer.read())
        raise AssertionError("nobody answers")

    ports.set({32001: ("shop", "front", 2), 32002: ("shop", "back", 0)})
    status, body = await ask(32001)
    assert status == 200
    assert body == {
        "service": {"namespace": "shop", "name": "front"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert (await ask(32002))[0] == 503
    ports.set({32002: ("shop", "back", 1)})
    assert (await ask(32002))[0] == 200
    healthy = False
    assert (await ask(32002))[0] == 503
    for _ in range(100):
        try:
            answer = await client.request("GET", "http://127.0.0.1:32001/")
            await answer.read()
        except (OSError, ClientError):
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("a port that nobody wants is still open")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()


async def test_the_proxys_own_pages() -> None:
    registry = CollectorRegistry()
    Gauge("some_figure", "x", registry=registry).set(7)
    good = False
    server = Server(status_handler(lambda: good, lambda: 1_700_000_000.0, registry))
    port = await server.listen_tcp("127.0.0.1", 0)
    client = Client()

    async def ask(path: str) -> tuple[int, bytes]:
        answer = await client.request("GET", f"http://127.0.0.1:{port}{path}")
        return answer.status, await answer.read()

    assert (await ask("/healthz"))[0] == 503
    good = True
    status, body = await ask("/healthz")
    assert status == 200 and orjson.loads(body)["lastUpdated"] == "2023-11-14T22:13:20Z"
    assert b"some_figure 7.0" in (await ask("/metrics"))[1]
    assert (await ask("/proxyMode")) == (200, b"nftables")
    assert (await ask("/nothing"))[0] == 404
    await client.close()
    await server.close()
