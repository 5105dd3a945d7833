"""When probes begin, what holds before their first result, and what counts as a failure."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import uvloop

from longshore.machinery.http import Request, Response, Server
from longshore.node.kubelet.handlers import Handlers
from longshore.node.kubelet.probes import ProbeManager
from longshore.node.kubelet.runtime import PodState

from .test_rules import ran, state

FAST = {"periodSeconds": 1, "tcpSocket": {"port": 1}}


class Answers:
    """Handlers whose answer to each TCP probe is a function's."""

    def __init__(self, answer: Callable[[int], Awaitable[None]]) -> None:
        self.answer, self.count = answer, 0

    async def tcp(self, *_: Any) -> None:
        self.count += 1
        await self.answer(self.count)


def pod(ready: bool, started: bool, container_id: str = "id-main", **probes: Any) -> dict[str, Any]:
    entry = {"name": "main", "containerID": f"longshore://{container_id}", "ready": ready, "started": started}
    return {
        "metadata": {"uid": "u", "name": "p", "namespace": "n"},
        "spec": {"containers": [{"name": "main", **probes}]},
        "status": {"containerStatuses": [entry]},
    }


def running(began: float) -> PodState:
    one = ran("main")
    one.id, one.started_at = "id-main", int(began * 1e9)
    return state(one)


def manager(handlers: Any, changes: list[str]) -> ProbeManager:
    return ProbeManager(handlers, changed=changes.append, event=lambda *_: None, pod_ip=lambda _: "127.0.0.1")


async def refused(_: int) -> None:
    raise ConnectionRefusedError(111, "Connection refused")


async def test_a_container_that_ran_before_keeps_what_was_told() -> None:
    changes: list[str] = []
    probes = manager(Answers(refused), changes)
    found = running(time.time() - 100)
    readiness = {**FAST, "failureThreshold": 2}
    probes.sync(pod(True, True, startupProbe=FAST, readinessProbe=readiness), found)
    assert probes.result("startup", "id-main") is True and probes.result("readiness", "id-main") is True
    async with asyncio.timeout(10):
        while probes.result("readiness", "id-main"):
            await asyncio.sleep(0.01)
    # Only what really failed as often as it must took it back; the startup probe is over for good.
    assert probes._handlers.count == 2 and changes == ["u"]
    assert probes.result("startup", "id-main") is True
    await probes.close()


async def test_what_was_told_of_another_container_says_nothing() -> None:
    probes = manager(Answers(refused), [])
    probes.sync(pod(True, True, "other", startupProbe=FAST, readinessProbe=FAST), running(time.time()))
    assert probes.result("readiness", "id-main") is False and probes.result("startup", "id-main") is None
    await probes.close()


async def test_a_container_that_was_not_ready_is_not() -> None:
    probes = manager(Answers(refused), [])
    probes.sync(pod(False, True, readinessProbe=FAST), running(time.time() - 100))
    assert probes.result("readiness", "id-main") is False
    await probes.close()


async def test_one_timeout_fails_no_liveness() -> None:
    """Failures must come in a row: one that times out between others that pass kills nothing."""

    async def answer(number: int) -> None:
        if number == 2:
            raise TimeoutError

    changes: list[str] = []
    handlers = Answers(answer)
    probes = manager(handlers, changes)
    probes.sync(pod(True, True, livenessProbe={**FAST, "failureThreshold": 2}), running(time.time()))
    async with asyncio.timeout(20):
        while handlers.count < 4:
            await asyncio.sleep(0.01)
    assert changes == [] and probes.result("liveness", "id-main") is True
    await probes.close()


async def test_a_timeout_that_comes_late_is_tried_again() -> None:
    """A kubelet that had no time itself to look for the answer does not hold it against the container."""

    async def answer(number: int) -> None:
        if number == 1:
            time.sleep(1.2)
            raise TimeoutError

    changes: list[str] = []
    handlers = Answers(answer)
    probes = manager(handlers, changes)
    probes.sync(pod(True, True, livenessProbe={**FAST, "failureThreshold": 1}), running(time.time()))
    async with asyncio.timeout(20):
        while handlers.count < 3:
            await asyncio.sleep(0.01)
    assert changes == [] and probes.result("liveness", "id-main") is True
    await probes.close()


async def test_a_redirect_to_another_host_passes_with_a_warning() -> None:
    def answer(request: Request) -> Response:
        if request.path == "/far":
            return Response(302, b"there", [("Location", "http://0.0.0.0/")])
        if request.path == "/near":
            return Response(302, b"", [("Location", "gone?x=1")])
        if request.path == "/round":
            return Response(307, b"", [("Location", f"/round?{request.raw_query}x")])
        return Response(404 if request.path == "/gone" else 200, b"")

    server = Server(answer)
    port = await server.listen_tcp("127.0.0.1", 0)
    handlers = Handlers(None)  # type: ignore[arg-type]
    told: list[str] = []
    probes = ProbeManager(
        handlers, changed=told.append, event=lambda _p, _c, *words: told.append(words[2]), pod_ip=lambda _: "127.0.0.1"
    )
    one = ran("main")

    async def probe(path: str) -> bool:
        spec = {"httpGet": {"path": path, "port": port}}
        return await probes._probe(pod(True, True), {"name": "main"}, one, "liveness", spec)

    assert await probe("/far")
    assert told == ["Liveness probe warning: Probe terminated redirects, Response body: there"]
    assert not await probe("/near")
    assert told[1] == "Liveness probe failed: HTTP probe failed with statuscode: 404"
    assert not await probe("/round")
    assert told[2].endswith("stopped after 10 redirects")
    await handlers.close()
    await server.close()


def test_an_answer_that_came_while_nobody_looked_is_taken() -> None:
    """The process had no time of its own for longer than the probe's timeout."""
    ready, port = threading.Event(), [0]

    def serve() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port[0] = server.getsockname()[1]
            ready.set()
            client, _ = server.accept()
            with client:
                client.recv(1000)
                time.sleep(0.2)  # the asking loop is held up by now
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def ask() -> tuple[int, bytes, str]:
        handlers = Handlers(cast(Any, None))
        asyncio.get_running_loop().call_later(0.05, time.sleep, 1.0)
        try:
            return await handlers.http({"port": port[0]}, {"name": "c"}, "127.0.0.1", 0.3)
        finally:
            await handlers.close()

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(ask())[:2] == (200, b"ok")
    finally:
        thread.join()


async def test_silence_is_a_timeout_in_time() -> None:
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(30), "127.0.0.1", 0)
    handlers = Handlers(cast(Any, None))
    try:
        with pytest.raises(TimeoutError):
            await handlers.http({"port": silent.sockets[0].getsockname()[1]}, {"name": "c"}, "127.0.0.1", 0.1)
    finally:
        await handlers.close()
        silent.close()
