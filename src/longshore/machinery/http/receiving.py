"""Bodies that go to a function in a thread: read from a plain socket there, without copies, or batch by batch from the loop."""

from __future__ import annotations

import asyncio
import functools
import select
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from longshore.machinery.http.body import Body, BodyError, LengthBody
from longshore.machinery.http.heads import RefusedRequest
from longshore.machinery.http.lending import Lent, Turn, lend, lendable, unbroken

if TYPE_CHECKING:
    from longshore.machinery.http.connection import Connection
    from longshore.machinery.http.message import Request

_PIECE = 1 << 20
#: A body that has less to come is not worth a thread's buffer.
_LEAST = 1 << 18

Sink = Callable[[Sequence[bytes | memoryview]], None]


async def receive(request: Request, connection: Connection, sink: Sink) -> None:
    """Hand a request's body to `sink`. See Request.receive."""
    inbox = request._inbox
    first = await connection.next_body(request, timeout=False)
    if not first:
        return
    body = connection._body
    if body is None or not lendable(connection) or (isinstance(body, LengthBody) and body.remaining < _LEAST):
        await pour(_stream(request, connection, first), sink)
        return
    held = [first, *inbox.chunks]
    inbox.chunks.clear()
    inbox.size = 0
    inbox.unthrottle()
    connection.pause_reading()
    work = _Work(body, sink, held)
    try:
        await lend(connection, select.POLLIN, work.spell)
    except BodyError as error:
        connection.broken_body()
        raise RefusedRequest(400, f"Bad Request: {error}") from None
    else:
        connection.whole_body(work.rest)
        inbox.feed_eof()
    finally:
        connection.resume_reading()


class _Work:
    """Reads what is left of a body from its socket, in a thread. rest: what follows the body."""

    def __init__(self, body: Body, sink: Sink, held: list[bytes]) -> None:
        self._body, self._sink = body, sink
        self._held: list[bytes | memoryview] = list(held)
        self._room = memoryview(bytearray(_PIECE))
        self.rest = b""

    def spell(self, lent: Lent) -> Turn:
        self._hand_over()
        while not self._body.done:
            slow = self._fill(lent)
            self._hand_over()
            if slow:
                return Turn.WAIT
            if lent.over and not self._body.done:
                return Turn.AGAIN
        return Turn.DONE

    def _hand_over(self) -> None:
        held, self._held = self._held, []
        if held:
            self._sink(held)

    def _fill(self, lent: Lent) -> bool:
        """Read until the room is full or the body has ended; True when the peer is slow."""
        body, filled = self._body, 0
        while filled < _PIECE and not body.done:
            most = min(_PIECE, filled + body.remaining) if isinstance(body, LengthBody) else _PIECE
            try:
                count = lent.socket.recv_into(self._room[filled:most])
            except BlockingIOError:
                if not lent.ready():
                    return True
                continue
            if not count:
                self._hand_over()
                raise ConnectionResetError("unexpected EOF")
            pieces, rest = body.feed(self._room[filled : filled + count])
            self._held += pieces
            self.rest = bytes(rest)
            filled += count
        return False


async def _stream(request: Request, connection: Connection, first: bytes) -> AsyncIterator[bytes]:
    yield first
    while data := await connection.next_body(request, timeout=False):
        yield data


async def pour(source: AsyncIterator[bytes], sink: Sink) -> None:
    """Hand what comes to a function in a thread, gathered: it works on one batch while the next one comes.

    Raises what the source and `sink` raise; what came before the source broke has been handed over.
    """
    held: list[bytes] = []
    size = 0
    working: asyncio.Future[None] | None = None
    try:
        async for data in source:
            held.append(data)
            size += len(data)
            if size >= _PIECE:
                if working is not None:
                    await working
                working = asyncio.ensure_future(unbroken(functools.partial(sink, held)))
                held, size = [], 0
    finally:
        if working is not None:
            await working
        if held:
            await unbroken(functools.partial(sink, held))
