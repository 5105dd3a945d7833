"""Exec and attach sessions: one interface over SPDY and WebSocket, server and client side."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from longshore.machinery.http import Client, Request
from longshore.wire import remotecommand as wire
from longshore.wire.remotecommand import Options

from . import spdy, websocket
from .channel import Channel, Gate, Refused, linger, refuse

log = logging.getLogger("longshore.streams")
STREAM_TIMEOUT = 30.0  # upstream's streamCreationTimeout
PIECE = 32 * 1024  # of one WebSocket message


class RemoteCommand:
    """The server's end of a session.

    stdin, stdout, stderr: streams, None where the session has none. `stdin.read()` gives b"" when the client ended it
    or went. `resize` yields (columns, rows). `finish` ends the session.
    """

    def __init__(self, protocol: str, options: Options) -> None:
        self.protocol = protocol
        self.options = options
        self.stdin: Channel | None = None
        self.stdout: Channel | None = None
        self.stderr: Channel | None = None
        self._error: Channel = None  # type: ignore[assignment]
        self._sizes: Channel | None = None

    @property
    def resize(self) -> AsyncIterator[tuple[int, int]]:
        """Terminal sizes as they change; ends with the session."""
        return self._resize()

    async def _resize(self) -> AsyncIterator[tuple[int, int]]:
        if self._sizes is None:
            return
        parser = wire.SizeParser()
        try:
            async for data in self._sizes:
                for size in parser.feed(data):
                    yield size
        except (wire.ChannelError, ConnectionError) as error:
            log.debug("no more terminal sizes: %s", error)

    async def closed(self) -> None:
        """Returns when the client has gone."""
        raise NotImplementedError

    async def finish(self, status: dict[str, Any]) -> None:
        """Sends the Status (wire.remotecommand.exit_status, failure, SUCCESS), ends the streams and the connection."""
        payload = wire.status_payload(self.protocol, status)
        for channel in (self.stdout, self.stderr):
            if channel is not None:
                channel.close()
        self._error.write(payload)
        self._error.close()
        await self._end()

    async def _end(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        """Closes the connection at once."""
        raise NotImplementedError


# ---- SPDY


class _SpdyRemoteCommand(RemoteCommand):
    session: spdy.Session

    async def closed(self) -> None:
        await self.session.closed()

    async def _end(self) -> None:
        await self.session.finish()

    def abort(self) -> None:
        self.session.close()


async def _accept_spdy(request: Request, options: Options) -> RemoteCommand:
    protocol = spdy.negotiate(request, wire.SPDY_SERVER_PROTOCOLS)
    command = _SpdyRemoteCommand(protocol, options)
    wanted = {"error"} | {n for n in ("stdin", "stdout", "stderr") if getattr(options, n)}
    if options.tty and protocol in (wire.V4, wire.V3):
        wanted.add("resize")
    found: dict[str, spdy.Stream] = {}
    complete = asyncio.get_running_loop().create_future()

    def opened(stream: spdy.Stream) -> None:
        kind = stream.header("streamType")
        if kind not in wanted:
            raise ValueError(f"unexpected stream type: {kind!r}")
        if kind in found:
            raise ValueError(f"repeated stream type: {kind!r}")
        found[kind] = stream
        if len(found) == len(wanted) and not complete.done():
            complete.set_result(None)

    command.session = session = await spdy.accept(request, protocol, opened)
    try:
        async with asyncio.timeout(STREAM_TIMEOUT):
            await asyncio.wait((complete, session.reader), return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        pass
    if not complete.done():
        session.close()
        raise ConnectionResetError("timed out waiting for client to create streams")
    command.stdin, command.stdout, command.stderr = (found.get(n) for n in ("stdin", "stdout", "stderr"))
    command._error, command._sizes = found["error"], found.get("resize")
    return command


# ---- WebSocket


class _SocketChannel(Channel):
    def __init__(self, owner: _SocketSession, id: int) -> None:
        super().__init__(owner.gate)
        self._owner = owner
        self._id = id

    def _send(self, data: bytes) -> None:
        self._owner.send(self._id, data)

    def _send_close(self) -> None:
        self._owner.send_close(self._id)

    async def drain(self) -> None:
        await self._owner.socket.drain()


class _SocketSession:
    """The channels of one WebSocket. `readable`: those on which the peer may send."""

    def __init__(self, socket: websocket.WebSocket, readable: set[int], *, client: bool) -> None:
        self.socket = socket
        self.gate = Gate()
        self._client = client
        self._channels: dict[int, _SocketChannel] = {}
        self._readable = readable
        self.reader: asyncio.Task[None] = None  # type: ignore[assignment]

    def channel(self, id: int) -> _SocketChannel:
        made = self._channels[id] = _SocketChannel(self, id)
        return made

    def run(self) -> None:
        self.reader = asyncio.create_task(self._read())

    def send(self, id: int, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            message, text = wire.encode(self.socket.protocol, id, data[start : start + PIECE])
            self.socket.send(message, text=text)

    def send_empty(self, id: int) -> None:
        message, text = wire.encode(self.socket.protocol, id, b"")
        self.socket.send(message, text=text)

    def send_close(self, id: int) -> None:
        # only clients of v5 can end one direction; otherwise the channel stays until the session ends
        if self._client and self.socket.protocol == wire.V5:
            self.socket.send(bytes((wire.CLOSE_SIGNAL, id)))

    async def _read(self) -> None:
        try:
            while (message := await self.socket.receive()) is not None:
                try:
                    id, data = wire.decode(self.socket.protocol, message.data)
                except wire.ChannelError as error:
                    log.debug("WebSocket session: %s", error)
                    continue
                if id == wire.CLOSE_SIGNAL and self.socket.protocol == wire.V5:
                    if data and data[0] in self._readable and (channel := self._channels.get(data[0])):
                        channel._inbox.feed_eof()
                elif data and id in self._readable and (channel := self._channels.get(id)):
                    if not channel._inbox.eof:
                        channel._inbox.feed(data)
                await self.gate.passed()
        except ConnectionError:
            pass
        finally:
            for channel in self._channels.values():
                channel._write_closed = True
                channel._inbox.feed_eof()

    async def finish(self) -> None:
        for channel in self._channels.values():
            channel._inbox.feed_eof()  # what still comes is not wanted
        self.socket.close()
        await linger(self.socket.stream, self.reader)

    def close(self) -> None:
        self.socket.close()
        self.socket.stream.close()


class _SocketRemoteCommand(RemoteCommand):
    session: _SocketSession

    async def closed(self) -> None:
        await asyncio.shield(self.session.reader)

    async def _end(self) -> None:
        await self.session.finish()

    def abort(self) -> None:
        self.session.close()


async def _accept_websocket(request: Request, options: Options, protocols: Sequence[str]) -> RemoteCommand:
    socket = await websocket.accept(request, protocols)
    if not socket.protocol:
        socket.protocol = wire.V1
    session = _SocketSession(socket, {wire.STDIN, wire.RESIZE}, client=False)
    command = _SocketRemoteCommand(socket.protocol, options)
    command.session = session
    command._error = session.channel(wire.ERROR)
    if options.stdin:
        command.stdin = session.channel(wire.STDIN)
    if options.stdout:
        command.stdout = session.channel(wire.STDOUT)
    if options.stderr:
        command.stderr = session.channel(wire.STDERR)
    if options.tty:
        command._sizes = session.channel(wire.RESIZE)
    session.run()
    # tells the client that the session stands: clients wait for this first, empty message
    session.send_empty(wire.STDOUT if options.stdout else wire.STDERR if options.stderr else wire.ERROR)
    return command


async def accept(
    request: Request, options: Options, *, websocket_protocols: Sequence[str] = (*wire.WEBSOCKET_SERVER_PROTOCOLS, "")
) -> RemoteCommand:
    """Takes an exec or attach request over SPDY or WebSocket.

    Raises Refused (answer with its `response`) before the upgrade, ConnectionResetError after it when the client does
    not open its streams.
    """
    problem = options.problem()
    if problem:
        raise refuse(400, problem)
    if websocket.is_websocket(request):
        return await _accept_websocket(request, options, websocket_protocols)
    return await _accept_spdy(request, options)


# ---- the client's end


class RemoteSession:
    """The client's end of a session: write stdin, read stdout and stderr, then `status()`."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.stdin: Channel | None = None
        self.stdout: Channel | None = None
        self.stderr: Channel | None = None
        self._error: Channel = None  # type: ignore[assignment]
        self._sizes: Channel | None = None
        self._session: spdy.Session | _SocketSession = None  # type: ignore[assignment]

    def resize(self, columns: int, rows: int) -> None:
        if self._sizes is not None:
            self._sizes.write(wire.size_message(columns, rows))

    async def status(self) -> dict[str, Any]:
        """The Status at the end; waits until the server sends it."""
        return wire.parse_status(self.protocol, await self._error.read_all())

    def close(self) -> None:
        self._session.close()


async def connect(
    client: Client,
    url: str,
    options: Options,
    *,
    headers: Sequence[tuple[str, str]] = (),
    timeout: float | None = 30.0,
) -> RemoteSession:
    """Opens a session over SPDY. Raises StatusError or spdy.UpgradeError when the server gives none."""
    duplex, chosen = await spdy.upgrade(client, url, wire.SPDY_CLIENT_PROTOCOLS, headers=headers, timeout=timeout)
    protocol = chosen or wire.V1
    session = spdy.Session(duplex, client=True)
    out = RemoteSession(protocol)
    out._session = session
    try:
        out._error = await session.open({"streamType": "error"})
        if options.stdin:
            out.stdin = await session.open({"streamType": "stdin"})
        if options.stdout:
            out.stdout = await session.open({"streamType": "stdout"})
        if options.stderr and not options.tty:
            out.stderr = await session.open({"streamType": "stderr"})
        if options.tty and protocol in (wire.V5, wire.V4, wire.V3):
            out._sizes = await session.open({"streamType": "resize"})
    except BaseException:
        session.close()
        raise
    return out


async def connect_websocket(
    client: Client,
    url: str,
    options: Options,
    *,
    protocols: Sequence[str] = (wire.V5, wire.V4),
    headers: Sequence[tuple[str, str]] = (),
    timeout: float | None = 30.0,
) -> RemoteSession:
    """Opens a session over WebSocket. Raises StatusError or spdy.UpgradeError when the server gives none."""
    response, socket = await websocket.connect(client, url, protocols, headers=headers, timeout=timeout)
    if socket is None:
        raise spdy._refusal(response.status, await response.read(64 * 1024))
    out = RemoteSession(socket.protocol or wire.V1)
    session = _SocketSession(socket, {wire.STDOUT, wire.STDERR, wire.ERROR}, client=True)
    out._session = session
    out._error = session.channel(wire.ERROR)
    if options.stdin:
        out.stdin = session.channel(wire.STDIN)
    if options.stdout:
        out.stdout = session.channel(wire.STDOUT)
    if options.stderr and not options.tty:
        out.stderr = session.channel(wire.STDERR)
    if options.tty:
        out._sizes = session.channel(wire.RESIZE)
    session.run()
    return out


__all__ = ["Options", "Refused", "RemoteCommand", "RemoteSession", "accept", "connect", "connect_websocket"]
