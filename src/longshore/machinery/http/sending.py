"""Bodies that a thread sends: files by sendfile(2), what an iterator makes; piece by piece through the loop with TLS."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING

from longshore.machinery.http.flow import SLICE
from longshore.machinery.http.lending import Lent, Turn, lend, lendable, unbroken

if TYPE_CHECKING:
    from longshore.machinery.http.connection import Connection
    from longshore.machinery.http.message import BodyWriter

_PIECE = 1 << 20
_AT_ONCE = 8 << 20
#: What the kernel may hold of an answer: as much as it would allow itself in time (tcp_wmem), so that it wakes us less often.
_SEND_BUFFER = 4 << 20
_VECTOR = 1024


async def send_file(
    writer: BodyWriter, connection: Connection, file: int, offset: int, count: int, *, direct: bool
) -> int:
    """Send a part of a file over a connection; octets that the file had. See BodyWriter.send_file."""
    if direct and lendable(connection):
        return await _direct(connection, file, offset, count)
    end = offset + count
    begin = offset
    while offset < end:
        data = await asyncio.to_thread(os.pread, file, min(_PIECE, end - offset), offset)
        if not data:
            break
        writer.write(data)
        await writer.drain()
        offset += len(data)
    return offset - begin


async def send_pieces(writer: BodyWriter, connection: Connection, pieces: Iterator[bytes], *, chunked: bool) -> None:
    """Send what an iterator makes in a thread. See BodyWriter.send_pieces."""
    if not lendable(connection):
        while (data := await unbroken(lambda: next(pieces, None))) is not None:
            writer.write(data)
            await writer.drain()
        return
    await _flushed(connection)
    await lend(connection, select.POLLOUT, _Stream(pieces, chunked).spell)


class _Stream:
    """Writes to the socket what an iterator gives, framed in chunks or raw, in a thread."""

    def __init__(self, pieces: Iterator[bytes], chunked: bool) -> None:
        self._pieces, self._chunked = pieces, chunked
        self._held: list[bytes | memoryview] = []
        self._begun = False

    def spell(self, lent: Lent) -> Turn:
        if not self._begun:
            self._begun = True
            lent.send_buffer(_SEND_BUFFER)
        while self._held or self._gather():
            try:
                sent = lent.socket.sendmsg(self._held[:_VECTOR])
            except BlockingIOError:
                if not lent.ready():
                    return Turn.WAIT
                continue
            except (BrokenPipeError, ConnectionResetError):
                raise ConnectionResetError("the peer has gone") from None
            while self._held and sent >= len(self._held[0]):
                sent -= len(self._held.pop(0))
            if sent:
                self._held[0] = memoryview(self._held[0])[sent:]
            if lent.over:
                return Turn.AGAIN
        return Turn.DONE

    def _gather(self) -> bool:
        """Take enough pieces for a write; False at their end."""
        size = 0
        while size < SLICE and (data := next(self._pieces, None)) is not None:
            self._held.append(data)
            size += len(data)
        if size and self._chunked:
            self._held = [b"%x\r\n" % size, *self._held, b"\r\n"]
        return size > 0


async def _direct(connection: Connection, file: int, offset: int, count: int) -> int:
    await _flushed(connection)
    position, end = offset, offset + count

    def work(lent: Lent) -> Turn:
        nonlocal position
        if position == offset and count > _SEND_BUFFER:
            lent.send_buffer(_SEND_BUFFER)
        while position < end:
            try:
                sent = os.sendfile(lent.socket.fileno(), file, position, min(_AT_ONCE, end - position))
            except BlockingIOError:
                if not lent.ready():
                    return Turn.WAIT
                continue
            except BrokenPipeError:
                raise ConnectionResetError("the peer has gone") from None
            if not sent:
                break
            position += sent
            if lent.over:
                return Turn.AGAIN
        return Turn.DONE

    await lend(connection, select.POLLOUT, work)
    return position - offset


async def _flushed(connection: Connection) -> None:
    """Return when what was written before (the head) has gone: with limits of nothing, drain() waits for that."""
    transport = connection.transport
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high=0)
    try:
        while transport.get_write_buffer_size() and not connection.lost:
            await asyncio.sleep(0)
            await connection.drain()
    finally:
        transport.set_write_buffer_limits(high=high, low=low)
