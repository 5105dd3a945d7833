"""Files as bodies: by sendfile(2) on a plain socket, in pieces where the octets must pass through us (TLS, chunks)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING

from longshore.machinery.http.lending import Lent, Turn, lend, lendable

if TYPE_CHECKING:
    from longshore.machinery.http.connection import Connection
    from longshore.machinery.http.message import BodyWriter

_PIECE = 1 << 20
_AT_ONCE = 8 << 20
#: What the kernel may hold of an answer: as much as it would allow itself in time (tcp_wmem), so that it wakes us less often.
_SEND_BUFFER = 4 << 20
_SO_SNDBUFFORCE = 32  # see socket(7)


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


async def _direct(connection: Connection, file: int, offset: int, count: int) -> int:
    transport = connection.transport
    low, high = transport.get_write_buffer_limits()
    # What was written before (the head) goes first: with limits of nothing, drain() waits until it has gone.
    transport.set_write_buffer_limits(high=0)
    try:
        while transport.get_write_buffer_size() and not connection.lost:
            await asyncio.sleep(0)
            await connection.drain()
    finally:
        transport.set_write_buffer_limits(high=high, low=low)
    position, end = offset, offset + count

    def work(lent: Lent) -> Turn:
        nonlocal position
        if position == offset and count > _SEND_BUFFER:
            with contextlib.suppress(OSError):  # only for the administrator of the network
                lent.socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
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
