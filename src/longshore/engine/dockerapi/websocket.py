"""Attach over a WebSocket: GET /containers/NAME/attach/ws. Source: Docker Engine API; RFC 6455."""

from __future__ import annotations

from longshore.engine.errors import InvalidParameter
from longshore.machinery.http import Duplex
from longshore.wire import websocket

from .router import Call

_KEPT = 65536


async def accept(call: Call) -> WebSocket:
    """Take the connection over. Raises InvalidParameter where the client asks for no WebSocket."""
    key = call.request.headers.get("sec-websocket-key")
    if not call.request.wants_upgrade or not key:
        raise InvalidParameter("not websocket protocol")
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", websocket.accept_key(key))]
    connection = await call.request.upgrade(101, headers)
    return WebSocket(connection, websocket.BINARY if call.version >= (1, 28) else websocket.TEXT)


class WebSocket:
    """A WebSocket as one stream of bytes each way; where messages begin and end means nothing."""

    def __init__(self, connection: Duplex, kind: int) -> None:
        """kind: of the frames sent."""
        self._connection = connection
        self._kind = kind
        self._receiver = websocket.Receiver(client=False)
        self._given: list[bytes] = []
        self._over = False

    async def read(self) -> bytes:
        """What the client's messages hold; b"" when it has closed or gone."""
        while not self._given:
            if self._over:
                return b""
            await self._receive()
        data = b"".join(self._given)
        self._given.clear()
        return data

    async def _receive(self) -> None:
        data = await self._connection.read()
        self._over = not data
        try:
            for event in self._receiver.feed(data):
                if isinstance(event, websocket.Close):
                    self.close()
                elif isinstance(event, websocket.Ping):
                    self._connection.write(websocket.frame(websocket.PONG, event.data, client=False))
                elif isinstance(event, websocket.Message) and event.data:
                    self._given.append(event.data)
        except websocket.WebSocketError:
            self._connection.close()
            self._over = True

    def write(self, data: bytes) -> None:
        if data:
            self._connection.write(websocket.frame(self._kind, data, client=False))

    async def drain(self) -> None:
        await self._connection.drain()

    async def closed(self) -> None:
        """Returns when the client has closed or gone. What it sends until then is kept for `read`, or stays with it."""
        while not self._over and sum(map(len, self._given)) < _KEPT:
            await self._receive()
        if not self._over:
            await self._connection.closed()

    def close(self) -> None:
        """Say that nothing more comes."""
        self._over = True
        self._connection.write(
            websocket.frame(websocket.CLOSE, websocket.close_payload(websocket.NORMAL), client=False)
        )
        self._connection.close()
