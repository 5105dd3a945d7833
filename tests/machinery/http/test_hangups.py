"""A client that has gone is told from one that only said its last word."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from longshore.machinery.http import Duplex, Request, Response, Server

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


class Hijacked:
    """A server that takes each connection over and tells when its peer has gone."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Duplex] = asyncio.Queue()
        self.ended: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, request: Request) -> Response | None:
        connection = await request.upgrade()
        self.connections.put_nowait(connection)
        await connection.closed()
        self.ended.put_nowait(await connection.read())
        return None


async def connect(path: Path, data: bytes = b"") -> socket.socket:
    loop = asyncio.get_running_loop()
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    await loop.sock_connect(client, str(path))
    await loop.sock_sendall(client, HEAD + data)
    assert (await loop.sock_recv(client, 65536)).startswith(b"HTTP/1.1 101")
    return client


async def test_a_half_closed_connection_lives_until_its_peer_closes(tmp_path: Path) -> None:
    handler = Hijacked()
    server = Server(handler)
    await server.listen_unix(tmp_path / "s")
    try:
        client = await connect(tmp_path / "s")
        connection = await handler.connections.get()
        client.shutdown(socket.SHUT_WR)
        assert await connection.read() == b""
        connection.write(b"still here")
        assert await asyncio.get_running_loop().sock_recv(client, 100) == b"still here"
        assert handler.ended.empty()
        client.close()
        await asyncio.wait_for(handler.ended.get(), 10)
    finally:
        await server.close()


async def test_what_a_gone_client_sent_is_still_read(tmp_path: Path) -> None:
    handler = Hijacked()
    server = Server(handler)
    await server.listen_unix(tmp_path / "s")
    try:
        (await connect(tmp_path / "s", b"last words")).close()
        assert await asyncio.wait_for(handler.ended.get(), 10) == b"last words"
    finally:
        await server.close()


@pytest.mark.parametrize("half", [False, True])
async def test_vanished_clients_leave_no_descriptors(tmp_path: Path, half: bool) -> None:
    handler = Hijacked()
    server = Server(handler)
    await server.listen_unix(tmp_path / "s")
    try:
        for cycle in range(21):
            client = await connect(tmp_path / "s")
            if half:
                client.shutdown(socket.SHUT_WR)
            client.close()
            await asyncio.wait_for(handler.ended.get(), 10)
            await asyncio.sleep(0.01)
            if cycle == 0:
                before = len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) <= before + 1
    finally:
        await server.close()
