"""WebSocket connections on the HTTP core: the handshake of both sides, messages, and octets carried in messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from longshore.machinery.http import Client, ClientResponse, Duplex, ProtocolError, Request
from longshore.wire import websocket as wire

from .channel import ByteStream, refuse


class WebSocket:
    """An open WebSocket. `protocol` is the subprotocol agreed, "" for none."""

    def __init__(
        self, stream: ByteStream, *, client: bool, protocol: str = "", limit: int = wire.DEFAULT_LIMIT
    ) -> None:
        self.stream = stream
        self.protocol = protocol
        self._client = client
        self._receiver = wire.Receiver(client=client, limit=limit)
        self._messages: deque[wire.Message] = deque()
        self._close_sent = False
        self.close_code: int | None = None  # what the peer's close frame said; None: it just went
        self._over = False

    async def receive(self) -> wire.Message | None:
        """The next message; None at the end. Pings are answered here."""
        while not self._messages:
            if self._over:
                return None
            data = await self.stream.read()
            if not data:
                self._over = True
                return None
            try:
                events = self._receiver.feed(data)
            except wire.WebSocketError as error:
                self.close(error.code, str(error))
                self._over = True
                return None
            for event in events:
                if isinstance(event, wire.Message):
                    self._messages.append(event)
                elif isinstance(event, wire.Ping):
                    self.stream.write(wire.frame(wire.PONG, event.data, client=self._client))
                elif isinstance(event, wire.Close):
                    self.close_code = event.code
                    self.close(wire.NORMAL if event.code == wire.NO_STATUS else event.code)
                    self._over = True
        return self._messages.popleft()

    def send(self, data: bytes, *, text: bool = False) -> None:
        """Queues a message."""
        if not self._close_sent:
            self.stream.write(wire.frame(wire.TEXT if text else wire.BINARY, data, client=self._client))

    def ping(self, data: bytes = b"") -> None:
        if not self._close_sent:
            self.stream.write(wire.frame(wire.PING, data, client=self._client))

    async def drain(self) -> None:
        await self.stream.drain()

    def close(self, code: int = wire.NORMAL, reason: str = "") -> None:
        """Sends the close frame. The connection itself is closed by `stream.close()`."""
        if not self._close_sent:
            self._close_sent = True
            self.stream.write(wire.frame(wire.CLOSE, wire.close_payload(code, reason), client=self._client))


def is_websocket(request: Request) -> bool:
    """Whether a request asks for a WebSocket (wsstream.IsWebSocketRequest)."""
    return request.wants_upgrade and request.headers.get("upgrade", "").lower() == "websocket"  # type: ignore[union-attr]


def offered(request: Request) -> list[str]:
    """The subprotocols that a client offers, in its order."""
    return [p for v in request.headers.getall("sec-websocket-protocol") for p in (e.strip() for e in v.split(",")) if p]


async def accept(request: Request, protocols: Sequence[str], *, limit: int = wire.DEFAULT_LIMIT) -> WebSocket:
    """Answers the opening handshake, taking the client's first subprotocol that is in `protocols`.

    "" in `protocols` admits clients that offer none. Raises Refused.
    """
    if request.method != "GET":
        raise refuse(405, "Method Not Allowed")
    if request.headers.get("sec-websocket-version") != "13":
        raise refuse(400, "Bad Request: websocket version", (("Sec-WebSocket-Version", "13"),))
    key = request.headers.get("sec-websocket-key", "") or ""
    if not wire.valid_key(key):
        raise refuse(400, "Bad Request: websocket key")
    client = offered(request)
    chosen = next((p for p in client if p in protocols), None)
    if chosen is None:
        if client or "" not in protocols:
            raise refuse(403, f"requested protocol(s) are not supported: {client}; supports {list(protocols)}")
        chosen = ""
    headers = [("Sec-WebSocket-Accept", wire.accept_key(key)), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
    if chosen:
        headers.append(("Sec-WebSocket-Protocol", chosen))
    return WebSocket(await request.upgrade(101, headers), client=False, protocol=chosen, limit=limit)


async def connect(
    client: Client,
    url: str,
    protocols: Sequence[str] = (),
    *,
    headers: Sequence[tuple[str, str]] = (),
    timeout: float | None = 30.0,
) -> tuple[ClientResponse, WebSocket | None]:
    """Opens a WebSocket; without one where the server answered otherwise. ProtocolError for a false handshake."""
    key = wire.new_key()
    fields = [
        *headers,
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
    ]
    if protocols:
        fields.append(("Sec-WebSocket-Protocol", ", ".join(protocols)))
    response, duplex = await client.upgrade("GET", url, headers=fields, timeout=timeout)
    if duplex is None:
        return response, None
    chosen = response.headers.get("sec-websocket-protocol") or ""
    if response.headers.get("sec-websocket-accept") != wire.accept_key(key) or (chosen and chosen not in protocols):
        duplex.abort()
        raise ProtocolError("websocket: bad handshake")
    return response, WebSocket(duplex, client=True, protocol=chosen)


class MessageStream:
    """Octets carried in binary messages: what SPDY is tunnelled through."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._rest = b""
        self._ended = asyncio.Event()

    async def read(self, n: int = 65536) -> bytes:
        while not self._rest:
            message = await self._socket.receive()
            if message is None:
                self._ended.set()
                return b""
            self._rest = message.data
        data, self._rest = self._rest[:n], self._rest[n:]
        return data

    def write(self, data: bytes) -> None:
        if data:
            self._socket.send(data)

    def writelines(self, data: list[bytes]) -> None:
        self.write(b"".join(data))

    async def drain(self) -> None:
        await self._socket.drain()

    def write_eof(self) -> None:
        self._socket.close()

    def close(self) -> None:
        self._socket.close()
        self._socket.stream.close()

    async def closed(self) -> None:
        await self._socket.stream.closed()


async def carry(messages: MessageStream, duplex: Duplex) -> None:
    """Tunnels octets between WebSocket messages and a raw connection until either side ends; closes both."""

    async def pump(source: ByteStream, target: ByteStream) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass

    tasks = [asyncio.create_task(pump(messages, duplex)), asyncio.create_task(pump(duplex, messages))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        messages.write_eof()
    finally:
        for task in tasks:
            task.cancel()
        messages.close()
        duplex.close()
