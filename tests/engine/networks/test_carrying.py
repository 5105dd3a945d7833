"""Connections and datagrams that the engine carries to a published port itself."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from longshore.engine.networks.carrying import Carrier


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """The socket that holds a port of the host."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


async def test_both_directions_half_closed_ends_and_much_data(held: socket.socket) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Answers when it has heard everything, as many protocols do.
        data = await reader.read(-1)
        writer.write(data[::-1])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    descriptors = len(os.listdir("/proc/self/fd"))
    carrier = Carrier("tcp", [held], server.sockets[0].getsockname())

    async def ask(size: int) -> None:
        sent = os.urandom(size)
        reader, writer = await asyncio.open_connection(*held.getsockname())
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent[::-1]
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(ask(size) for size in (0, 1, 70_000, 8_000_000, *range(20))))
    carrier.target = None
    with pytest.raises(ConnectionResetError):
        reader, _ = await asyncio.open_connection(*held.getsockname())
        await reader.read()
    for _ in range(100):
        await asyncio.sleep(0.01)
        if len(os.listdir("/proc/self/fd")) <= descriptors:
            break
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    carrier.close()
    server.close()


async def test_a_closed_port_is_refused_and_closing_ends_what_is_open(held: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        target = gone.getsockname()
    carrier = Carrier("tcp", [held], target)
    with pytest.raises(ConnectionResetError):
        reader, _ = await asyncio.open_connection(*held.getsockname())
        await reader.read()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        carrier.target = silent.getsockname()
        reader, writer = await asyncio.open_connection(*held.getsockname())
        await asyncio.sleep(0.05)
        carrier.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_datagrams_find_their_way_back() -> None:
    loop = asyncio.get_running_loop()
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    server, held, *clients = sockets
    for sock in (server, held):
        sock.bind(("127.0.0.1", 0))
    server.setblocking(False)

    def answer() -> None:
        data, peer = server.recvfrom(100)
        server.sendto(b"to " + data, peer)

    loop.add_reader(server.fileno(), answer)
    carrier = Carrier("udp", [held], server.getsockname())
    for number, client in enumerate(clients):
        client.setblocking(False)
        client.connect(held.getsockname())
        client.send(b"%d" % number)
    for number, client in enumerate(clients):
        assert await asyncio.wait_for(loop.sock_recv(client, 100), 5) == b"to %d" % number
    carrier.close()
    loop.remove_reader(server.fileno())
    for sock in sockets:
        sock.close()
