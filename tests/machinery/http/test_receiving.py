"""Bodies that go to a function in a thread: with a length, in chunks, over TLS, cut off, refused, cancelled."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from longshore.machinery.http import Client, Request, Response, Server, client_context, server_context
from longshore.machinery.pki import issue, make_ca

SIZE = (9 << 20) + 12345
Serve = Callable[..., Awaitable[int]]


class Kept:
    """What the server's sinks were given, by path."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytearray] = {}
        self.errors: list[str] = []

    async def handle(self, request: Request) -> Response:
        body = self.bodies[request.path] = bytearray()
        limit = int(request.param("limit", "0"))

        def sink(pieces: Sequence[bytes | memoryview]) -> None:
            assert threading.current_thread() is not threading.main_thread()
            for piece in pieces:
                body.extend(piece)
            if limit and len(body) > limit:
                raise ValueError("too much")

        try:
            await request.receive(sink)
        except (ValueError, ConnectionError) as error:
            self.errors.append(type(error).__name__)
            return Response(400, b"refused")
        return Response(200, hashlib.sha256(body).hexdigest().encode())


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def serve(kept: Kept) -> AsyncIterator[Serve]:
    servers: list[Server] = []

    async def start(context: ssl.SSLContext | None = None) -> int:
        servers.append(Server(kept.handle))
        return await servers[-1].listen_tcp("127.0.0.1", 0, ssl=context)

    yield start
    for server in servers:
        await server.close()


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [0, 10, 70_000, SIZE])
async def test_with_a_length_and_in_chunks(serve: Serve, size: int) -> None:
    data = os.urandom(size)
    wanted = hashlib.sha256(data).hexdigest().encode()
    async with Client() as client:
        url = f"http://127.0.0.1:{await serve()}"
        for path, body in (("/a", data), ("/b", chunks(data, 32768)), ("/c", chunks(data, 999_983)), ("/d", data)):
            answer = await client.request("PUT", url + path, body=body)
            assert (answer.status, await answer.read()) == (200, wanted)


async def test_a_slow_sender_that_pipelines_its_next_request(serve: Serve) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", await serve())
    data = os.urandom(1 << 20)
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for start in range(0, len(data), 1 << 18):
        piece = data[start : start + (1 << 18)]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await asyncio.sleep(0.15)
    writer.write(b"0\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answers = await reader.read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert hashlib.sha256(data).hexdigest().encode() in answers
    writer.close()


async def test_what_came_before_the_end_is_handed_over(serve: Serve, kept: Kept) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", await serve())
    data = os.urandom(3 << 20)
    writer.write(b"PUT /cut HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + data)
    await writer.drain()
    writer.close()
    for _ in range(200):
        if kept.errors:
            break
        await asyncio.sleep(0.02)
    assert kept.errors == ["ConnectionResetError"]
    assert bytes(kept.bodies["/cut"]) == data


async def test_a_sink_that_refuses(serve: Serve) -> None:
    async with Client() as client:
        url = f"http://127.0.0.1:{await serve()}/x?limit=2000000"
        answer = await client.request("PUT", url, body=bytes((2 << 20) + 70_000))
        assert (answer.status, await answer.read()) == (400, b"refused")
        assert (await client.request("PUT", url, body=b"small")).status == 200


async def test_broken_chunks_are_refused(serve: Serve) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", await serve())
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await asyncio.sleep(0.05)
    writer.write(b"nonsense\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_a_server_that_closes_ends_its_threads(serve: Serve, kept: Kept) -> None:
    server = Server(kept.handle)
    port = await server.listen_tcp("127.0.0.1", 0)
    before = len(os.listdir("/proc/self/fd"))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PUT /cut HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\nbegun")
    await asyncio.sleep(0.3)
    await server.close()
    writer.transport.abort()
    await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert bytes(kept.bodies["/cut"]) == b"begun"


async def test_over_tls(serve: Serve, tmp_path: Path) -> None:
    ca = make_ca()
    (tmp_path / "ca").write_bytes(ca.certificate)
    issue(ca, "server", names=["127.0.0.1"], server=True).write(tmp_path / "cert", tmp_path / "key")
    port = await serve(server_context(tmp_path / "cert", tmp_path / "key"))
    data = os.urandom(SIZE)
    async with Client(ssl=client_context(ca=tmp_path / "ca")) as client:
        answer = await client.request("PUT", f"https://127.0.0.1:{port}/tls", body=data)
        assert await answer.read() == hashlib.sha256(data).hexdigest().encode()
