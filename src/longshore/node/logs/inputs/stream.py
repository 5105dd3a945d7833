"""What the inputs share: TCP listeners with one task a connection, and UDP sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

log = logging.getLogger("longshore.logs.inputs")

READ_SIZE = 256 * 1024
MOST_CONNECTIONS = 1000
MOST_DATAGRAMS = 10_000
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Datagram = Callable[[bytes, tuple[str, int]], None]
T = TypeVar("T")


def shared_socket(host: str, port: int) -> socket.socket:
    """A bound TCP socket whose port other processes may listen on too. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


class Backlog(Generic[T]):
    """What came by UDP and waits to be taken, in order: the sender cannot be told to wait, so there is an end to it."""

    def __init__(self, take: Callable[[list[T]], Awaitable[object]]) -> None:
        """take: receives all that waits. An OSError of it loses what it was given, and is told."""
        self._take = take
        self._waiting: list[T] = []
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def add(self, item: T) -> None:
        if len(self._waiting) >= MOST_DATAGRAMS:
            self.dropped += 1
            return
        self._waiting.append(item)
        if self._task is None:
            self._task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                await self._take(waiting)
        except OSError as error:
            log.error("datagrams are lost: %s", error)
        finally:
            self._task = None

    async def close(self) -> None:
        """Return when nothing waits."""
        if self._task:
            await self._task


class Listener:
    """TCP and UDP sockets of one input. `close` ends them and every connection."""

    def __init__(self, *, shared: bool = False) -> None:
        """shared: other processes listen on the same ports."""
        self._shared = shared
        self._servers: list[asyncio.Server] = []
        self._sockets: list[asyncio.DatagramTransport] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def tcp(self, handle: Handle, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; `handle` has a connection until it returns. Returns the port, which other workers may listen on too."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            if len(self._connections) >= MOST_CONNECTIONS:
                writer.transport.abort()
                return
            self._connections.add(task)
            try:
                await handle(reader, writer)
            except (OSError, asyncio.IncompleteReadError) as error:
                log.debug("connection lost: %s", error)
            except asyncio.CancelledError:
                writer.transport.abort()
            except ValueError as error:
                log.warning("from %s: %s", writer.get_extra_info("peername"), error)
            finally:
                self._connections.discard(task)
                with contextlib.suppress(OSError):
                    writer.close()

        server = await asyncio.start_server(serve, host, port, ssl=tls, limit=READ_SIZE, reuse_port=self._shared)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def udp(self, received: Datagram, host: str, port: int) -> asyncio.DatagramTransport:
        """Call `received` with each datagram."""

        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                received(data, addr)

        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            Protocol, (host, port), reuse_port=self._shared
        )
        self._sockets.append(transport)
        return transport

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for transport in self._sockets:
            transport.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
