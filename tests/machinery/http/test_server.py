"""The server side, spoken to in raw octets and with our own client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from longshore.machinery.http import BodyTooLarge, Client, ProtocolError, Request, Response, Server


async def handler(request: Request) -> Response | None:
    if request.path == "/echo":
        return Response(200, await request.read(1 << 24), (), "application/octet-stream")
    if request.path == "/small":
        return Response(200, await request.read(10))
    if request.path == "/stream":
        writer = await request.start(200, [("Content-Type", "text/plain")])
        for i in range(int(request.param("n", "3"))):
            writer.write(b"piece %d\n" % i)
            await writer.drain()
        return None
    if request.path == "/count":
        n = 0
        async for piece in request.chunks():
            n += len(piece)
        return Response(200, str(n).encode())
    if request.path == "/told":
        return Response(200, b"", [("Content-Length", "12345")])
    if request.path == "/fail":
        raise ValueError("secret")
    if request.path == "/cut":
        (await request.start(200)).write(b"half")
        raise ValueError("secret")
    if request.path == "/hijack":
        await request.read(1 << 20)
        status = 101 if request.wants_upgrade else 200
        duplex = await request.upgrade(status, [("Content-Type", "application/vnd.docker.raw-stream")])
        while data := await duplex.read():
            duplex.write(data.upper())
            await duplex.drain()
        duplex.write(b"bye")
        return None
    if request.path == "/big":
        return Response(200, [b"x" * 100_000] * 30)
    return Response(200, request.method.encode() + b" " + request.raw_path.encode(), [("X-Q", request.param("q"))])


def plain(request: Request) -> Response:
    return Response(200, b"ok")


class Running:
    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port = server, port
        self.url = f"http://127.0.0.1:{port}"

    async def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        if half_close:
            writer.write_eof()
        out = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return out


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    server = Server(handler, idle_timeout=0.4, head_timeout=0.3, body_timeout=0.3, max_head=8192)
    yield Running(server, await server.listen_tcp("127.0.0.1", 0))
    await server.close()


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])


GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"GET /%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    out = await running.raw(
        GET % b"one"
        + b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        + GET % b"stream"
        + CLOSE % b"four"
    )
    places = [out.index(t) for t in (b"GET /one", b"hello", b"piece 2", b"GET /four")]
    assert places == sorted(places)
    assert out.count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: magic\r\n\r\nab", 417),
        (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET foo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 9000, 431),
        (b"POST /small HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 11\r\n\r\n01234567890", 413),
        (b"GET / HTTP/1.1\r\nHost:", 408),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nabc", 408),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /fail HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 500),
    ],
)
async def test_what_is_wrong_gets_its_status(running: Running, head: bytes, code: int) -> None:
    out = await running.raw(head)
    assert status(out) == code
    assert b"secret" not in out


async def test_targets(running: Running) -> None:
    assert b"GET /a%20b" in await running.raw(CLOSE % b"a%20b")
    assert b"GET /p" in await running.raw(b"GET http://host:1/p?q=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"OPTIONS *" in await running.raw(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert (await running.raw(b"FROB /p HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).endswith(b"FROB /p")
    body = b"FROB /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
    assert (await running.raw(body + CLOSE % b"two")).count(b"HTTP/1.1 200 OK") == 2
    assert b"X-Q: a b" in await running.raw(CLOSE % b"x?q=a+b&q=2&bad=%zz")


async def test_a_header_value_cannot_make_a_field(running: Running) -> None:
    out = await running.raw(CLOSE % b"x?q=a%0d%0aEvil:%201")
    assert b"\r\nEvil" not in out


async def test_head_and_old_clients(running: Running) -> None:
    out = await running.raw(b"HEAD /one HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"Content-Length: 9\r\n" in out and out.endswith(b"\r\n\r\n")
    out = await running.raw(b"HEAD /told HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"Content-Length: 12345\r\n" in out and out.count(b"Content-Length") == 1
    out = await running.raw(b"GET /stream HTTP/1.0\r\n\r\n")
    assert out.endswith(b"piece 0\npiece 1\npiece 2\n") and b"chunked" not in out


async def test_half_closed_client_is_answered(running: Running) -> None:
    assert (await running.raw(GET % b"one", half_close=True)).endswith(b"GET /one")


async def test_chunked_body_byte_by_byte(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    message = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5;x=y\r\nhello\r\nA\r\n0123456789\r\n0\r\nT: r\r\n\r\n"
    for i in range(len(message)):
        writer.write(message[i : i + 1])
        await writer.drain()
    assert (await reader.read()).endswith(b"hello0123456789")
    writer.close()


async def test_expect_continue(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ab")
    assert (await reader.read()).endswith(b"ab")
    writer.close()
    # a handler that does not read asks for nothing, and the connection cannot be used again
    out = await running.raw(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert status(out) == 200 and b"Connection: close" in out


async def test_unread_bodies(running: Running) -> None:
    small = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    assert (await running.raw(small + CLOSE % b"two")).endswith(b"GET /two")
    async with Client() as client:
        response = await client.request("POST", running.url + "/x", body=b"z" * 5_000_000)
        assert response.status == 200 and await response.read() == b"POST /x"


async def test_a_failing_stream_is_cut(running: Running) -> None:
    async with Client() as client:
        response = await client.request("GET", running.url + "/cut")
        with pytest.raises(ProtocolError):
            await response.read()


async def test_idle_connections_are_closed(running: Running) -> None:
    assert status(await running.raw(GET % b"one")) == 200
    assert await running.raw(b"") == b""


@pytest.mark.parametrize("upgrade", [b"Connection: Upgrade\r\nUpgrade: tcp\r\n", b""])
async def test_hijack(running: Running, upgrade: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    # the body and what follows it come in one packet: the rest belongs to the raw stream
    writer.write(b"POST /hijack HTTP/1.1\r\nHost: a\r\n" + upgrade + b"Content-Length: 2\r\n\r\n{}early ")
    head = await reader.readuntil(b"\r\n\r\n")
    assert status(head) == (101 if upgrade else 200)
    assert b"Content-Length" not in head and b"chunked" not in head
    writer.write(b"late")
    writer.write_eof()
    assert await reader.read() == b"EARLY LATEbye"
    writer.close()


async def test_an_upgrade_field_may_be_ignored(running: Running) -> None:
    message = b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab"
    assert (await running.raw(message + CLOSE % b"two")).count(b"HTTP/1.1 200 OK") == 2


async def test_streaming_handler_is_cancelled_when_the_peer_goes() -> None:
    ended = asyncio.Event()

    async def watch(request: Request) -> None:
        writer = await request.start(200)
        writer.write(b"x")
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    server = Server(watch)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        response = await client.request("GET", f"http://127.0.0.1:{port}/")
        await response.close()
        await asyncio.wait_for(ended.wait(), 5)
    await server.close()


async def test_disconnected() -> None:
    gone = asyncio.Event()

    async def wait(request: Request) -> Response:
        await request.disconnected()
        gone.set()
        return Response(200)

    server = Server(wait)
    port = await server.listen_tcp("127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET % b"")
    await asyncio.sleep(0.01)
    writer.close()
    await asyncio.wait_for(gone.wait(), 5)
    await server.close()


async def test_slow_reader_holds_a_stream_back() -> None:
    written = 0

    async def pour(request: Request) -> None:
        nonlocal written
        writer = await request.start(200)
        for _ in range(2000):
            writer.write(b"x" * 65536)
            written += 65536
            await writer.drain()

    server = Server(pour)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        response = await client.request("GET", f"http://127.0.0.1:{port}/")
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.2)
        assert written < 64 * 1024 * 1024
        size = 0
        async for piece in response.chunks():
            size += len(piece)
        assert size == 2000 * 65536
    await server.close()


async def test_slow_handler_holds_an_upload_back() -> None:
    go = asyncio.Event()

    async def count(request: Request) -> Response:
        await go.wait()
        n = 0
        async for piece in request.chunks():
            n += len(piece)
        return Response(200, str(n).encode())

    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 65536
            yield b"x" * 65536

    server = Server(count)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        task = asyncio.create_task(client.request("POST", f"http://127.0.0.1:{port}/", body=body()))
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 32 * 1024 * 1024
        go.set()
        assert await (await task).read() == str(1000 * 65536).encode()
    await server.close()


async def test_unix_socket_credentials_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "s" / "x.sock"

    def who(request: Request) -> Response:
        return Response.json([request.peer.uid, request.peer.pid])

    server = Server(who)
    await server.listen_unix(path, mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="in use"):
        await Server(who).listen_unix(path)
    async with Client(unix=path) as client:
        response = await client.request("GET", "http://docker/x")
        assert await response.read() == f"[{os.getuid()},{os.getpid()}]".encode()
    await server.close()
    assert not path.exists()


async def test_read_limit_without_a_length() -> None:
    seen: list[BaseException] = []

    async def read(request: Request) -> Response:
        try:
            await request.read(10)
        except BodyTooLarge as error:
            seen.append(error)
            raise
        return Response()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"12345"

    server = Server(read)
    port = await server.listen_tcp("127.0.0.1", 0)
    async with Client() as client:
        assert (await client.request("POST", f"http://127.0.0.1:{port}/", body=body())).status == 413
    assert seen
    await server.close()


async def test_a_closing_server_waits_for_answers_and_cuts_streams() -> None:
    cut = asyncio.Event()

    async def handle(request: Request) -> Response | None:
        if request.path == "/slow":
            await asyncio.sleep(0.2)
            return Response(200, b"done")
        await request.start(200)
        try:
            await asyncio.sleep(60)
        finally:
            cut.set()
        return None

    server = Server(handle)
    url = f"http://127.0.0.1:{await server.listen_tcp('127.0.0.1', 0)}"
    async with Client() as client:
        stream = await client.request("GET", f"{url}/stream")
        slow = asyncio.create_task(client.request("GET", f"{url}/slow"))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(server.close(grace=30), 10)
        answer = await slow
        assert await answer.read() == b"done" and answer.headers.get("Connection") == "close"
        assert cut.is_set()
        with pytest.raises(ProtocolError):
            await stream.read()
