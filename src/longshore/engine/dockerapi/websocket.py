"""Attach over a WebSocket: GET /containers/NAME/attach/ws. Source: Docker Engine API; RFC 6455."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from longshore.engine.errors import InvalidParameter
from longshore.machinery.http import Response

from .router import Call

if TYPE_CHECKING:
    from longshore.engine.containers.model import Container


async def serve(call: Call, container: Container, keys: bytes) -> Response | None:
    """Carry the container's stdio in binary messages, not framed. Raises InvalidParameter without an upgrade."""
    from longshore.wire import websocket

    key = call.request.headers.get("sec-websocket-key")
    if not call.request.wants_upgrade or not key:
        raise InvalidParameter("not websocket protocol")
    service = call.api.containers
    stdin, stdout, stderr = call.flag("stdin"), call.flag("stdout"), call.flag("stderr")
    io = await service.attachment(container, stdin=stdin)
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", websocket.accept_key(key))]
    connection = await call.request.upgrade(101, headers)
    receiver = websocket.Receiver(client=False)

    async def output() -> None:
        while (piece := await io.read()) is not None:
            if stdout if piece[0] == 1 else stderr:
                connection.write(websocket.frame(0x2, piece[1], client=False))
                await connection.drain()

    async def input() -> None:
        while data := await connection.read():
            for event in receiver.feed(data):
                if isinstance(event, websocket.Close):
                    return
                if isinstance(event, websocket.Ping):
                    connection.write(websocket.frame(0xA, event.data, client=False))
                elif stdin and isinstance(event, websocket.Message):
                    await io.write(event.data)

    tasks = {asyncio.ensure_future(output()), asyncio.ensure_future(input())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        io.close()
    return None
