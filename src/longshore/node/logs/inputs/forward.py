"""The forward protocol's input: what a Fluentd, a Fluent Bit or docker's fluentd log driver sends."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Mapping

from longshore.node.logs.inputs.emit import Emit
from longshore.node.logs.inputs.stream import READ_SIZE, Listener
from longshore.wire import forward
from longshore.wire.forward import Event

log = logging.getLogger("longshore.logs.forward")

DEFAULT_PORT = 24224
#: Reads of one connection whose events are on their way to disk.
MOST_KEEPING = 8


class ForwardInput:
    """Listens on TCP (or TLS) for events, and on the same UDP port for heartbeats.

    A chunk with an id is acknowledged after `emit` has kept it. shared_key, users: as the peer's configuration has them;
    shared: other processes listen on the port too.
    """

    def __init__(
        self,
        emit: Emit,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        tls: ssl.SSLContext | None = None,
        shared_key: str | None = None,
        users: Mapping[str, str] | None = None,
        hostname: str = "",
        limit: int = forward.DEFAULT_LIMIT,
        shared: bool = False,
    ) -> None:
        self._emit = emit
        self._host = host
        self.port = port
        self._tls = tls
        self._shared_key = shared_key
        self._users = users
        self._hostname = hostname or socket.gethostname()
        self._limit = limit
        self._listener = Listener(shared=shared)
        self.records = self.lost = 0

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self.port = await self._listener.tcp(self._serve, self._host, self.port, self._tls)
        udp = await self._listener.udp(lambda _data, peer: udp.sendto(b"\0", peer), self._host, self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = forward.Server(self._hostname, shared_key=self._shared_key, users=self._users, limit=self._limit)
        writer.write(session.output())
        keeping: deque[asyncio.Task[None]] = deque()
        try:
            while data := await reader.read(READ_SIZE):
                try:
                    batches = session.feed(data)
                finally:
                    writer.write(session.output())
                if batches:
                    keeping.append(asyncio.ensure_future(self._take(batches, writer)))
                # The next events are read while the last ones go to disk; a full store stops that.
                while keeping and (keeping[0].done() or len(keeping) >= MOST_KEEPING):
                    await keeping.popleft()
                await writer.drain()
                if session.closing:
                    log.warning("%s is refused: shared key or user differ", writer.get_extra_info("peername"))
                    return
        finally:
            results = await asyncio.gather(*keeping, return_exceptions=True)
            for error in results:
                if isinstance(error, BaseException):
                    log.warning("events are not kept: %s", error)

    async def _take(self, batches: list[forward.Batch], writer: asyncio.StreamWriter) -> None:
        """Keep what one read brought: single events of a tag together, and one wait for all acknowledgements."""
        by_tag: dict[str, list[Event]] = {}
        for batch in batches:
            held = by_tag.get(batch.tag)
            if held is None:
                by_tag[batch.tag] = batch.events
            else:
                held.extend(batch.events)
            self.records += len(batch.events)
        chunks = [batch.chunk for batch in batches if batch.chunk is not None]
        for tag, events in by_tag.items():
            try:
                await self._emit(tag, events, durable=bool(chunks))
            except OSError:
                self.lost += len(events)
                raise
        for chunk in chunks:
            writer.write(forward.encode_ack(chunk))

    async def close(self) -> None:
        await self._listener.close()
