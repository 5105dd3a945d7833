"""What every stream of a session offers, whichever protocol carries it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from longshore.machinery.http import Response
from longshore.machinery.http.flow import Inbox


class ByteStream(Protocol):
    """Raw octets both ways: an HTTP Duplex, or WebSocket messages that carry another protocol."""

    async def read(self, n: int = 65536) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def writelines(self, data: list[bytes]) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    async def closed(self) -> None: ...


class Refused(Exception):
    """A request for streams that cannot be granted; `response` is the answer for the client."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"status {response.status}")
        self.response = response


def refuse(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Refused:
    """A refusal as Go's http.Error writes one."""
    fields = (*headers, ("X-Content-Type-Options", "nosniff"))
    return Refused(Response(status, (message + "\n").encode(), fields, "text/plain; charset=utf-8"))


class Gate:
    """Stops a session's reader while any of its streams holds too much that nobody reads."""

    def __init__(self) -> None:
        self._shut = 0
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self._shut += 1
        self._open.clear()

    def release(self) -> None:
        self._shut -= 1
        if not self._shut:
            self._open.set()

    async def passed(self) -> None:
        await self._open.wait()


class Channel:
    """One stream: read until b"", write, close the writing half.

    After the session has gone, `read` gives what had come and then b"" (or raises ConnectionResetError when the peer
    reset the stream), `write` is without effect and `drain` raises ConnectionResetError.
    """

    def __init__(self, gate: Gate) -> None:
        self._inbox = Inbox(gate.shut, gate.release)
        self._write_closed = False

    async def read(self, n: int = 0) -> bytes:
        """The next octets (at most `n` where given); b"" at the end."""
        return await self._inbox.get(n)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[bytes]:
        while data := await self._inbox.get():
            yield data

    async def read_all(self, limit: int = 1 << 20) -> bytes:
        """Everything up to the end, cut at `limit` octets."""
        out = bytearray()
        while data := await self._inbox.get():
            out += data[: limit - len(out)]
        return bytes(out)

    def write(self, data: bytes) -> None:
        if data and not self._write_closed:
            self._send(data)

    async def drain(self) -> None:
        """Back-pressure; ConnectionResetError when the peer has gone."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the writing half."""
        if not self._write_closed:
            self._write_closed = True
            self._send_close()

    def _send(self, data: bytes) -> None:
        raise NotImplementedError

    def _send_close(self) -> None:
        raise NotImplementedError


async def linger(wire: ByteStream, reader: asyncio.Task[None], seconds: float = 2.0) -> None:
    """Lets the peer take what was sent and end its side first, then closes.

    A close while the peer still sends resets the connection, and the reset can overtake the last output.
    reader: the task that reads until the peer's end.
    """
    wire.write_eof()
    try:
        await asyncio.wait((reader,), timeout=seconds)
    finally:
        wire.close()
