"""Bodies that a thread sends: files from the page cache, what an iterator makes; piece by piece through the loop with TLS."""

from __future__ import annotations

import asyncio
import errno
import mmap
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
#: Octets of a file that are mapped at a time: what a connection holds of memory that is not only the page cache's.
_WINDOW = 16 << 20
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
    sending = _Mapped(file, offset, min(offset + count, os.fstat(file).st_size))
    try:
        await lend(connection, select.POLLOUT, sending.spell)
    finally:
        sending.close()
    return sending.position - offset


class _Mapped:
    """Sends a part of a file, mapped a window at a time, in a thread.

    The kernel copies from the page cache into large pieces of socket memory. sendfile(2) copies nothing, and passes on every
    page of 4 KB by itself, which takes twice the time and the CPU. Nothing here reads the mapping but the kernel, so that a file
    that was cut meanwhile is an error (EFAULT) and no signal.
    """

    def __init__(self, file: int, position: int, end: int) -> None:
        self._file, self.position, self._end = file, position, end
        self._map: mmap.mmap | None = None
        self._view = memoryview(b"")
        self._base = 0

    def spell(self, lent: Lent) -> Turn:
        while self.position < self._end:
            at = self.position - self._base
            if at >= len(self._view):
                if not self._advance():
                    break
                continue
            try:
                self.position += lent.socket.send(self._view[at : at + _PIECE])
            except BlockingIOError:
                if not lent.ready():
                    return Turn.WAIT
            except (BrokenPipeError, ConnectionResetError):
                raise ConnectionResetError("the peer has gone") from None
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                break
            if lent.over:
                return Turn.AGAIN
        return Turn.DONE

    def _advance(self) -> bool:
        """Map what comes next; False where the file has become shorter."""
        self.close()
        self._end = min(self._end, os.fstat(self._file).st_size)
        if self.position >= self._end:
            return False
        self._base = self.position - self.position % mmap.ALLOCATIONGRANULARITY
        length = min(_WINDOW, self._end - self._base)
        # All its pages at once: a fault for every few of them would cost a sixth of the time.
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._map = mmap.mmap(self._file, length, flags=flags, prot=mmap.PROT_READ, offset=self._base)
        self._view = memoryview(self._map)
        return True

    def close(self) -> None:
        self._view.release()
        self._view = memoryview(b"")
        if self._map is not None:
            self._map.close()
            self._map = None


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
