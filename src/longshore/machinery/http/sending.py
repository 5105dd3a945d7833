"""Files as bodies: by sendfile(2) on a plain socket, in pieces where the octets must pass through us (TLS, chunks)."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longshore.machinery.http.connection import Connection
    from longshore.machinery.http.message import BodyWriter

_PIECE = 1 << 20
_AT_ONCE = 8 << 20
#: Seconds that a peer may take nothing of a file.
STALLED = 300.0


async def send_file(
    writer: BodyWriter, connection: Connection, file: int, offset: int, count: int, *, direct: bool
) -> int:
    """Send a part of a file over a connection; octets that the file had. See BodyWriter.send_file."""
    end = offset + count
    begin = offset
    socket = connection.transport.get_extra_info("socket")
    if direct and socket is not None and connection.transport.get_extra_info("ssl_object") is None:
        return await _direct(connection, socket.fileno(), file, offset, count)
    while offset < end:
        data = await asyncio.to_thread(os.pread, file, min(_PIECE, end - offset), offset)
        if not data:
            break
        writer.write(data)
        await writer.drain()
        offset += len(data)
    return offset - begin


async def _direct(connection: Connection, socket: int, file: int, offset: int, count: int) -> int:
    loop = asyncio.get_running_loop()
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
    begin, end = offset, offset + count
    # A descriptor of our own: the loop lets nobody else watch those of its transports.
    out = os.dup(socket)
    try:
        while offset < end:
            if connection.lost:
                raise ConnectionResetError("the peer has gone")
            try:
                # In a thread: the file's pages may have to come from the disk first.
                sent = await loop.run_in_executor(None, os.sendfile, out, file, offset, min(_AT_ONCE, end - offset))
            except BlockingIOError:
                await _writable(loop, out)
                continue
            except BrokenPipeError:
                raise ConnectionResetError("the peer has gone") from None
            if not sent:
                break
            offset += sent
    finally:
        os.close(out)
    return offset - begin


async def _writable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Returns when a socket takes more. Raises ConnectionResetError when it takes nothing for long."""
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, wake)
    try:
        async with asyncio.timeout(STALLED):
            await ready
    except TimeoutError:
        raise ConnectionResetError("the peer takes nothing") from None
    finally:
        loop.remove_writer(fd)
