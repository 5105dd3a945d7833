"""HTTP/2 inside an upgraded connection: a gRPC server on the one the client opened for us, a client on its session."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.protocol import H2Protocol

from longshore.engine.build.buildkit.schemas import bridge
from longshore.machinery.grpc import RpcError, Server, Status

if TYPE_CHECKING:
    from longshore.machinery.http import Duplex

_WINDOW = 4 << 20
# As BuildKit: a longer message is refused before it is read.
MESSAGE_LIMIT = 16 << 20
_PIECE = 1 << 17


async def _pump(duplex: Duplex | StreamDuplex, inner: socket.socket) -> None:
    """Carry octets both ways until one side ends."""
    loop = asyncio.get_running_loop()

    async def outward() -> None:
        while data := await loop.sock_recv(inner, _PIECE):
            duplex.write(data)
            await duplex.drain()

    async def inward() -> None:
        while data := await duplex.read(_PIECE):
            await loop.sock_sendall(inner, data)

    tasks = [asyncio.ensure_future(outward()), asyncio.ensure_future(inward())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        inner.close()


class StreamDuplex:
    """A connection inside a gRPC stream of byte messages, as far as a session uses one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._held = self._pending = b""
        self._out: asyncio.Queue[bytes] = asyncio.Queue(64)

    async def read(self, n: int = 65536) -> bytes:
        while not self._held:
            message = await self._stream.recv_message()
            if message is None:
                return b""
            self._held = bytes(message.data)
        data, self._held = self._held[:n], self._held[n:]
        return data

    def write(self, data: bytes) -> None:
        self._pending = data

    async def drain(self) -> None:
        data, self._pending = self._pending, b""
        if data:
            await self._out.put(data)

    def close(self) -> None:
        """End what written() gives."""
        if self._out.full():
            self._out.get_nowait()
        self._out.put_nowait(b"")

    async def written(self) -> AsyncIterator[bytes]:
        """What is to go to the client."""
        while data := await self._out.get():
            yield data


class DetailsCodec(StatusDetailsCodecBase):  # type: ignore[misc]
    """google.rpc.Status with its details: a list of (type URL, bytes)."""

    def encode(self, status: Any, message: str | None, details: Any) -> bytes:
        made = bridge.Status(code=status.value, message=message or "")
        for url, value in details or ():
            made.details.add(type_url=url, value=value)
        return bytes(made.SerializeToString())

    def decode(self, status: Any, message: str | None, data: bytes) -> Any:
        made = bridge.Status()
        made.ParseFromString(data)
        return [(detail.type_url, detail.value) for detail in made.details]


def limit_messages(protocol: H2Protocol) -> None:
    """Make a connection's streams refuse messages that are longer than MESSAGE_LIMIT: what comes is held in memory."""
    connection = protocol.connection
    create = connection.create_stream

    def limited(**options: Any) -> Any:
        stream = create(**options)
        receive = stream.recv_data

        async def recv_data(size: int) -> bytes:
            if size > MESSAGE_LIMIT:
                words = f"grpc: received message larger than max ({size} vs. {MESSAGE_LIMIT})"
                raise RpcError(Status.RESOURCE_EXHAUSTED, words)
            data: bytes = await receive(size)
            return data

        stream.recv_data = recv_data
        return stream

    connection.create_stream = limited


async def serve(duplex: Duplex, server: Server) -> None:
    """Answer gRPC calls on a connection until it ends."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    grpc = server._server
    grpc._status_details_codec = DetailsCodec()
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_accepted_socket(grpc._protocol_factory, theirs)
    limit_messages(protocol)
    try:
        await _pump(duplex, ours)
    finally:
        transport.close()


class SessionChannel(Channel):  # type: ignore[misc]
    """A gRPC channel whose one connection is already there."""

    def __init__(self, duplex: Duplex | StreamDuplex) -> None:
        super().__init__(
            "session",
            80,
            config=Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW),
            status_details_codec=DetailsCodec(),
            codec=None,
        )
        self._duplex = duplex
        self._used = False
        self._pumping: asyncio.Task[None] | None = None

    async def _create_connection(self) -> H2Protocol:
        if self._used:
            raise ConnectionError("the client's session has ended")
        self._used = True
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        self._pumping = asyncio.ensure_future(_pump(self._duplex, ours))
        _, protocol = await loop.create_connection(self._protocol_factory, sock=theirs)
        limit_messages(protocol)
        return protocol

    async def ended(self) -> None:
        """Returns when the connection has ended."""
        await self.__connect__()
        if self._pumping is not None:
            with contextlib.suppress(Exception):
                await self._pumping
