"""kubectl against our streams: the server's ends and the translators, without a cluster around them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from longshore.machinery.errors import route_not_found
from longshore.machinery.http import Client, Request, Response, Server
from longshore.machinery.streams import (
    Options,
    Refused,
    accept_command,
    connect_command,
    exit_status,
    serve_port_forward,
    spdy,
    translate,
)

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "default", "uid": "u"},
    "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "stdin": True, "tty": True}]},
    "status": {"phase": "Running", "containerStatuses": [{"name": "c", "ready": True, "state": {"running": {}}}]},
}
DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [{"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get"]}],
    },
}


def options_of(request: Request) -> Options:
    return Options(*(request.param(n) == "true" for n in ("stdin", "stdout", "stderr", "tty")))


async def kubelet(request: Request) -> Response | None:
    """Runs "commands": `wc` counts stdin, `fail N` ends with N, `size` tells the terminal's."""
    words = request.query.get("command", [])
    try:
        if request.path.endswith("/portforward"):

            async def dial(port: int) -> object:
                reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["FAR_PORT"]))
                return Socket(reader, writer)

            await serve_port_forward(request, dial)  # type: ignore[arg-type]
            return None
        command = await accept_command(request, options_of(request))
    except Refused as refused:
        return refused.response
    code = 0
    assert command.stdout
    if words and words[0] == "wc":
        assert command.stdin
        total = 0
        async for data in command.stdin:
            total += len(data)
        command.stdout.write(f"{total}\n".encode())
    elif words and words[0] == "fail":
        if command.stderr:
            command.stderr.write(b"bad\n")
        code = int(words[1])
    elif words and words[0] == "big":
        for _ in range(200):
            command.stdout.write(bytes(65536))
            await command.stdout.drain()
    else:
        command.stdout.write(b"hello\n")
    await command.finish(exit_status(code))
    return None


class Socket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, n: int = 65536) -> bytes:
        return await self._reader.read(n)

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    def write_eof(self) -> None:
        self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    back = Server(kubelet)
    back_url = f"http://127.0.0.1:{await back.listen_tcp('127.0.0.1', 0)}"
    client = Client()

    async def apiserver(request: Request) -> Response | None:
        if request.path in DISCOVERY:
            return Response.json(DISCOVERY[request.path])
        if request.path == "/api/v1/namespaces/default/pods/p":
            return Response.json(POD)
        if not request.path.startswith("/api/v1/namespaces/default/pods/p/"):
            return Response.json(route_not_found().status(), 404)
        url = back_url + request.target
        options = options_of(request)
        try:
            if translate.wants_translation(request):
                await translate.remote_command(request, options, lambda: connect_command(client, url, options))
                return None
            if translate.wants_tunnel(request):

                async def dial() -> object:
                    return (await spdy.upgrade(client, url, ["portforward.k8s.io"]))[0]

                await translate.port_forward(request, dial)  # type: ignore[arg-type]
                return None
        except Refused as refused:
            return refused.response
        return await kubelet(request)

    front = Server(apiserver)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield f"http://127.0.0.1:{await front.listen_tcp('127.0.0.1', 0)}"
    await client.close()
    await front.close()
    await back.close()


async def kubectl(server: str, *words: str, stdin: bytes | None = None, websockets: bool) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        "kubectl",
        f"--server={server}",
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ
        | {
            "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": str(websockets).lower(),
            "KUBECTL_PORT_FORWARD_WEBSOCKETS": str(websockets).lower(),
        },
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    return process.returncode or 0, out, err


@pytest.mark.parametrize("websockets", [True, False])
async def test_exec(server: str, websockets: bool) -> None:
    assert await kubectl(server, "exec", "p", "--", "hi", websockets=websockets) == (0, b"hello\n", b"")
    code, out, err = await kubectl(server, "exec", "p", "--", "fail", "7", websockets=websockets)
    assert (code, out) == (7, b"") and err == b"bad\ncommand terminated with exit code 7\n"
    data = os.urandom(3_000_000)
    assert (await kubectl(server, "exec", "-i", "p", "--", "wc", stdin=data, websockets=websockets))[1] == b"3000000\n"
    assert len((await kubectl(server, "exec", "p", "--", "big", websockets=websockets))[1]) == 200 * 65536
    code, out, err = await kubectl(server, "attach", "p", "-c", "c", websockets=websockets)
    assert out.endswith(b"hello\n"), err


@pytest.mark.parametrize("websockets", [True, False])
async def test_port_forward(server: str, websockets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(far, "127.0.0.1", 0)
    monkeypatch.setenv("FAR_PORT", str(listener.sockets[0].getsockname()[1]))
    process = await asyncio.create_subprocess_exec(
        "kubectl",
        f"--server={server}",
        "port-forward",
        "p",
        ":80",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"KUBECTL_PORT_FORWARD_WEBSOCKETS": str(websockets).lower()},
    )
    try:
        assert process.stdout and process.stderr
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        port = int(line.split("127.0.0.1:")[1].split(" ")[0])
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x" * 500_000)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 30) == b"X" * 500_000
            writer.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        listener.close()
