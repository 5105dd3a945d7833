"""Port forwarding: the server's end over SPDY and WebSocket, the client's end over SPDY."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from longshore.machinery.http import Client, Request
from longshore.wire import portforward as wire

from . import spdy, websocket
from .channel import ByteStream, Channel, linger, refuse
from .remotecommand import _SocketSession

log = logging.getLogger("longshore.streams")
PAIR_TIMEOUT = 30.0  # upstream's streamCreationTimeout
MAX_PORTS = 256 // 2 - 1  # channels are numbered in one octet

Dial = Callable[[int], Awaitable[ByteStream]]
Complaint = Callable[[int, Exception], str]


def _plain_complaint(port: int, error: Exception) -> str:
    return f"an error occurred forwarding {port}: {error}"


async def serve(
    request: Request, dial: Dial, *, complaint: Complaint = _plain_complaint, ports: Sequence[int] = ()
) -> None:
    """Forwards ports for as long as the client stays.

    dial: opens a connection to a port; what it raises (OSError, StatusError) goes to the client as `complaint` words it.
    ports: of a WebSocket session; by default the request's `port` parameters.
    Raises Refused before the upgrade.
    """
    if websocket.is_websocket(request):
        await _serve_websocket(request, dial, complaint, ports)
    else:
        await _serve_spdy(request, dial, complaint)


async def _forward(port: int, data: Channel, error: Channel, dial: Dial, complaint: Complaint) -> None:
    """Carries one connection. The error stream gets a text only when something failed; then both end."""
    try:
        try:
            far = await dial(port)
        except Exception as problem:
            if not isinstance(problem, OSError):
                log.debug("port %d cannot be dialled", port, exc_info=problem)
            error.write(complaint(port, problem).encode())
            return

        async def to_far() -> None:
            try:
                async for piece in data:
                    far.write(piece)
                    await far.drain()
                far.write_eof()
            except ConnectionError:
                far.close()

        async def to_client() -> None:
            try:
                while piece := await far.read():
                    data.write(piece)
                    await data.drain()
            except ConnectionError:
                pass

        sending = asyncio.create_task(to_far())
        try:
            # when the server in the pod has said all, the connection is over, as upstream's kubelet has it
            await to_client()
        finally:
            sending.cancel()
            far.close()
    finally:
        data.close()
        error.close()


async def _serve_spdy(request: Request, dial: Dial, complaint: Complaint) -> None:
    protocol = spdy.negotiate(request, [wire.PROTOCOL])
    half: dict[str, dict[str, spdy.Stream]] = {}
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    def late(request_id: str, pair: dict[str, spdy.Stream]) -> None:
        if half.get(request_id) is pair:
            del half[request_id]
            for stream in pair.values():
                stream.reset()

    def opened(stream: spdy.Stream) -> None:
        kind, port, request_id = wire.stream_port(stream.headers)
        if not request_id:
            # clients before 1.2 named no request: an error stream comes first, its data stream has the next id
            request_id = str(stream.id if kind == wire.ERROR else stream.id - 2)
        pair = half.setdefault(request_id, {})
        if kind in pair:
            raise ValueError(f"{kind} stream already assigned to request {request_id}")
        pair[kind] = stream
        if len(pair) < 2:
            loop.call_later(PAIR_TIMEOUT, late, request_id, pair)
            return
        del half[request_id]

        async def run() -> None:
            data, error = pair[wire.DATA], pair[wire.ERROR]
            await _forward(port, data, error, dial, complaint)
            data.reset()
            error.reset()

        task = loop.create_task(run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    session = await spdy.accept(request, protocol, opened)
    try:
        await session.closed()
    finally:
        for task in list(tasks):
            task.cancel()
        session.close()


async def _serve_websocket(request: Request, dial: Dial, complaint: Complaint, ports: Sequence[int]) -> None:
    if not ports:
        try:
            ports = wire.parse_ports(request.query.get("port", []))
        except wire.BadStream as bad:
            raise refuse(400, str(bad)) from bad
    if len(ports) > MAX_PORTS:
        raise refuse(400, f"at most {MAX_PORTS} ports can be forwarded over one WebSocket")
    socket = await websocket.accept(request, wire.WEBSOCKET_PROTOCOLS)
    session = _SocketSession(socket, {2 * i for i in range(len(ports))}, client=False)
    pairs = [(port, session.channel(2 * i), session.channel(2 * i + 1)) for i, port in enumerate(ports)]
    for port, data, error in pairs:
        data.write(wire.port_message(port))
        error.write(wire.port_message(port))
    session.run()
    tasks = [asyncio.create_task(_forward(port, data, error, dial, complaint)) for port, data, error in pairs]
    everything = asyncio.gather(*tasks)
    try:
        await asyncio.wait((everything, session.reader), return_when=asyncio.FIRST_COMPLETED)
        if everything.done():
            socket.close()
            await linger(socket.stream, session.reader)
    finally:
        for task in tasks:
            task.cancel()
        session.close()
        await asyncio.gather(*tasks, return_exceptions=True)


class Forwarder:
    """The client's end: each `open` is one connection to a port."""

    def __init__(self, session: spdy.Session) -> None:
        self.session = session
        self._request = 0

    async def open(self, port: int) -> tuple[spdy.Stream, spdy.Stream]:
        """(data, error) streams of a new connection; the error stream ends empty when all went well."""
        self._request += 1
        error = await self.session.open(wire.stream_headers(wire.ERROR, port, self._request))
        error.close()  # nothing is ever written on it
        data = await self.session.open(wire.stream_headers(wire.DATA, port, self._request))
        return data, error

    def close(self) -> None:
        self.session.close()


async def connect(
    client: Client, url: str, *, headers: Sequence[tuple[str, str]] = (), timeout: float | None = 30.0
) -> Forwarder:
    """Opens a port-forward session over SPDY. Raises StatusError or spdy.UpgradeError when the server gives none."""
    duplex, _ = await spdy.upgrade(client, url, [wire.PROTOCOL], headers=headers, timeout=timeout)
    return Forwarder(spdy.Session(duplex, client=True))


async def connect_tunnel(client: Client, url: str, *, headers: Sequence[tuple[str, str]] = ()) -> Forwarder:
    """The same over SPDY in WebSocket messages, as kubectl 1.31 and later ask for it."""
    response, socket = await websocket.connect(client, url, [wire.TUNNEL_PROTOCOL], headers=headers)
    if socket is None:
        raise spdy._refusal(response.status, await response.read(64 * 1024))
    return Forwarder(spdy.Session(websocket.MessageStream(socket), client=True))
