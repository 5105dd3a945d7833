"""Files as bodies: whole, in parts, over TLS, to a reader that is slow or goes away."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from longshore.machinery.http import Client, Request, Server, client_context, server_context
from longshore.machinery.http.errors import ClientError
from longshore.machinery.pki import issue, make_ca

SIZE = 24 << 20
Serve = Callable[..., Awaitable[int]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(os.urandom(SIZE))
    return tmp_path / "file"


@pytest.fixture
async def serve(path: Path) -> AsyncIterator[Serve]:
    servers: list[Server] = []

    async def handler(request: Request) -> None:
        offset, count = int(request.param("offset", "0")), int(request.param("count", str(SIZE)))
        headers = [] if request.param("chunked") else [("Content-Length", str(count))]
        writer = await request.start(200, headers)
        fd = os.open(path, os.O_RDONLY)
        try:
            if await writer.send_file(fd, offset, count) < count and request.method != "HEAD":
                raise RuntimeError("the file is shorter")
        finally:
            os.close(fd)

    async def start(context: ssl.SSLContext | None = None) -> int:
        servers.append(Server(handler))
        return await servers[-1].listen_tcp("127.0.0.1", 0, ssl=context)

    yield start
    for server in servers:
        await server.close()


async def digest(client: Client, url: str) -> tuple[int, str]:
    response = await client.request("GET", url)
    total, size = hashlib.sha256(), 0
    async for data in response.chunks():
        total.update(data)
        size += len(data)
    return size, total.hexdigest()


async def test_whole_and_in_parts(serve: Serve, path: Path) -> None:
    url = f"http://127.0.0.1:{await serve()}/"
    data = path.read_bytes()
    async with Client() as client:
        assert await digest(client, url) == (SIZE, hashlib.sha256(data).hexdigest())
        assert (await digest(client, f"{url}?offset=5&count=70000"))[1] == hashlib.sha256(data[5:70005]).hexdigest()
        assert await digest(client, f"{url}?chunked=1") == (SIZE, hashlib.sha256(data).hexdigest())
        assert (await digest(client, f"{url}?count=0"))[0] == 0
        head = await client.request("HEAD", url)
        assert head.headers.get("Content-Length") == str(SIZE) and await head.read() == b""
        # The connection goes on after each.
        assert (await digest(client, f"{url}?count=3"))[0] == 3


async def test_several_at_once_to_slow_readers(serve: Serve, path: Path) -> None:
    port = await serve()
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()

    async def slowly() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        total = hashlib.sha256()
        left = SIZE
        while left:
            data = await reader.read(1 << 18)
            total.update(data)
            left -= len(data)
            await asyncio.sleep(0.001)
        writer.close()
        return total.hexdigest()

    assert await asyncio.gather(*(slowly() for _ in range(8))) == [wanted] * 8


async def test_a_shorter_file_cuts_the_answer(serve: Serve) -> None:
    async with Client() as client:
        with pytest.raises(ClientError):
            await digest(client, f"http://127.0.0.1:{await serve()}/?offset={SIZE - 10}&count=100")


async def test_a_peer_that_goes(serve: Serve) -> None:
    port = await serve()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.read(1000)
        writer.transport.abort()
    for _ in range(100):
        if len(os.listdir("/proc/self/fd")) <= before:
            break
        await asyncio.sleep(0.02)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_over_tls(serve: Serve, path: Path, tmp_path: Path) -> None:
    ca = make_ca()
    (tmp_path / "ca").write_bytes(ca.certificate)
    issue(ca, "server", names=["127.0.0.1"], server=True).write(tmp_path / "cert", tmp_path / "key")
    port = await serve(server_context(tmp_path / "cert", tmp_path / "key"))
    async with Client(ssl=client_context(ca=tmp_path / "ca")) as client:
        found = await digest(client, f"https://127.0.0.1:{port}/")
    assert found == (SIZE, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("secure", [False, True])
async def test_what_an_iterator_makes(secure: bool, tmp_path: Path) -> None:
    made = [os.urandom(size) for size in (3, 0, 70_000, 1 << 20, 1, 400_000)] * 4

    async def handler(request: Request) -> None:
        headers = [] if request.param("chunked") else [("Content-Length", str(sum(map(len, made))))]
        writer = await request.start(200, headers)
        await writer.send_pieces(broken() if request.param("broken") else iter(made))

    def broken() -> Iterator[bytes]:
        yield made[2]
        raise RuntimeError("the source broke")

    ca = make_ca()
    (tmp_path / "ca").write_bytes(ca.certificate)
    issue(ca, "server", names=["127.0.0.1"], server=True).write(tmp_path / "cert", tmp_path / "key")
    server = Server(handler)
    port = await server.listen_tcp(
        "127.0.0.1", 0, ssl=server_context(tmp_path / "cert", tmp_path / "key") if secure else None
    )
    base = f"{'https' if secure else 'http'}://127.0.0.1:{port}/"
    wanted = hashlib.sha256(b"".join(made)).hexdigest()
    async with Client(ssl=client_context(ca=tmp_path / "ca") if secure else None) as client:
        for query in ("", "?chunked=1", ""):
            assert (await digest(client, base + query))[1] == wanted
        with pytest.raises(ClientError):
            await digest(client, base + "?chunked=1&broken=1")
    await server.close()


async def test_a_file_that_is_cut_meanwhile_cuts_the_answer(serve: Serve, path: Path) -> None:
    """It is read as memory: what is no more there is an error, not the end of the process."""
    port = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.3)  # the socket is full, the file is not through
    os.truncate(path, 1 << 20)
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(SIZE)
    writer.close()
    async with Client() as client:
        assert (await digest(client, f"http://127.0.0.1:{port}/?count=1000"))[0] == 1000
