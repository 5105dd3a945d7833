"""Flow control both ways over one asyncio transport, and the raw duplex that an upgrade leaves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from . import hangups

HIGH_WATER = 256 * 1024
SLICE = 256 * 1024


class Inbox:
    """Octets that came and were not read yet. Past `high` octets reading from the transport pauses."""

    __slots__ = ("_pause", "_paused", "_resume", "_waiter", "chunks", "eof", "error", "high", "size")

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None], high: int = HIGH_WATER) -> None:
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.eof = False
        self.error: BaseException | None = None
        self.high = high
        self._pause, self._resume = pause, resume
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        self.chunks.append(data)
        self.size += len(data)
        if self.size > self.high and not self._paused:
            self._paused = True
            self._pause()
        if self._waiter is not None:
            self._wake()

    def feed_eof(self) -> None:
        self.eof = True
        self._wake()

    def unthrottle(self) -> None:
        """Reading from the transport goes on, however much lies here; nothing more will be fed."""
        if self._paused:
            self._paused = False
            self._resume()

    def fail(self, error: BaseException) -> None:
        if not self.eof and self.error is None:
            self.error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def get(self, most: int = 0) -> bytes:
        """The next piece (at most `most` octets where given); b"" at the end; raises what `fail` was given."""
        while not self.chunks:
            if self.eof:
                return b""
            if self.error is not None:
                raise self.error
            if self._waiter is not None:
                raise RuntimeError("two readers of one stream")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self.chunks.popleft()
        if most and len(data) > most:
            self.chunks.appendleft(data[most:])
            data = data[:most]
        self.size -= len(data)
        if self._paused and self.size <= self.high // 2:
            self._paused = False
            self._resume()
        return data


class FlowProtocol(asyncio.Protocol):
    """Pause and resume in both directions, and the end of the connection, for the server and the client side."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.lost = False
        self._hung_up = False
        self._watched = -1
        self._secured = False
        self.write_paused = False
        self._read_paused = False
        self._drainers: deque[asyncio.Future[None]] = deque()
        self._closers: list[asyncio.Future[None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._secured = transport.get_extra_info("ssl_object") is not None

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("connection lost"))
        self._drainers.clear()
        if self._watched >= 0:
            hangups.of_loop(self.loop).forget(self._watched, self._hang_up)
        self._hang_up()

    def half_closed(self) -> None:
        """The peer has ended its side of what is no longer HTTP: from here on only the kernel tells that it is gone."""
        if self._secured or self.lost or self._watched >= 0:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            self._watched = sock.fileno()
            hangups.of_loop(self.loop).watch(self._watched, self._hang_up)

    def _hang_up(self) -> None:
        self._hung_up = True
        for waiter in self._closers:
            if not waiter.done():
                waiter.set_result(None)
        self._closers.clear()

    def can_half_close(self) -> bool:
        """Whether the connection may stay open for writing after the peer's end: TLS has no half-closed connections."""
        return not self._secured

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_result(None)
        self._drainers.clear()

    def pause_reading(self) -> None:
        if not self._read_paused and not self.lost and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._read_paused:
            self._read_paused = False
            if not self.lost and not self.transport.is_closing():
                self.transport.resume_reading()

    async def drain(self) -> None:
        """Waits until the peer has taken enough; raises ConnectionResetError when it has gone."""
        if self.lost:
            raise ConnectionResetError("connection lost")
        if self.write_paused:
            waiter = self.loop.create_future()
            self._drainers.append(waiter)
            await waiter

    async def closed(self) -> None:
        """Returns when the peer has gone: the connection is lost, or a unix socket hung up."""
        if not self._hung_up:
            waiter = self.loop.create_future()
            self._closers.append(waiter)
            try:
                await waiter
            finally:
                with contextlib.suppress(ValueError):
                    self._closers.remove(waiter)


class Duplex:
    """A connection that has left HTTP: raw octets both ways.

    `subprotocol` of a WebSocket and the like are for those above; `info` gives the transport's extra information.
    """

    __slots__ = ("_eof_sent", "_inbox", "_protocol")

    def __init__(self, protocol: FlowProtocol, early: bytes = b"") -> None:
        self._protocol = protocol
        self._inbox = Inbox(protocol.pause_reading, protocol.resume_reading)
        self._eof_sent = False
        if early:
            self._inbox.feed(early)

    # what the protocol hands in
    def feed(self, data: bytes) -> None:
        self._inbox.feed(data)

    def feed_eof(self) -> None:
        self._inbox.feed_eof()

    # what the user calls
    async def read(self, n: int = 65536) -> bytes:
        """At most `n` octets; b"" when the peer has ended its side or gone."""
        return await self._inbox.get(n)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[bytes]:
        while data := await self._inbox.get():
            yield data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queues octets; without effect once the connection is gone or `write_eof` was called."""
        if data and not self._eof_sent and not self._protocol.lost:
            self._protocol.transport.write(data)

    def writelines(self, data: list[bytes]) -> None:
        if data and not self._eof_sent and not self._protocol.lost:
            self._protocol.transport.writelines(data)

    async def drain(self) -> None:
        """Back-pressure; ConnectionResetError when the peer has gone."""
        await self._protocol.drain()

    @property
    def can_write_eof(self) -> bool:
        """Whether half of the connection can be closed: not over TLS."""
        return not self._protocol.lost and self._protocol.transport.can_write_eof()

    def write_eof(self) -> None:
        """Ends the writing side after what is queued. Over TLS there is no half: then the connection stays as it is."""
        if not self._eof_sent and self.can_write_eof:
            self._eof_sent = True
            self._protocol.transport.write_eof()

    def close(self) -> None:
        """Closes after what is queued was sent."""
        if not self._protocol.lost:
            self._protocol.resume_reading()
            self._protocol.transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if not self._protocol.lost:
            self._protocol.transport.abort()

    def is_closing(self) -> bool:
        return self._protocol.lost or self._protocol.transport.is_closing()

    async def closed(self) -> None:
        """Returns when the peer has gone. One that only ended its side has not: unix sockets tell the difference at once, TCP
        when something is written."""
        await self._protocol.closed()

    def info(self, name: str) -> Any:
        """The transport's extra information: "peername", "sockname", "ssl_object" ..."""
        return self._protocol.transport.get_extra_info(name)


async def tunnel(a: Duplex, b: Duplex) -> None:
    """Carries octets both ways until both sides have ended or one is gone; closes both.

    A half that ends is passed on as a half close where the other side can do so, else both are closed.
    """

    async def carry(source: Duplex, target: Duplex) -> None:
        try:
            while data := await source.read(SLICE):
                target.write(data)
                await target.drain()
        except (ConnectionError, OSError):
            target.close()
            return
        if target.can_write_eof:
            target.write_eof()
        else:
            target.close()

    try:
        await asyncio.gather(carry(a, b), carry(b, a))
    finally:
        a.close()
        b.close()
