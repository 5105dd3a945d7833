"""The attach socket of a monitor: a container's output as it comes, and its input.

conmon listens on a SEQPACKET socket; each packet it sends starts with a byte that names the stream. Packets sent to it
are input. Source: conmon's conn_sock.c and ctr_stdio.c (what goes over the socket).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

STDOUT, STDERR = 1, 2
_PIPES = {2: STDOUT, 3: STDERR}
_PACKET = 65536
# conmon reads packets into a buffer of 32 KiB and would lose what is longer.
_INPUT_PACKET = 16384


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def connect(folder: Path) -> socket.socket:
    """Connect to the monitor's socket `folder`/attach (the path may be longer than a socket address allows).

    Raises FileNotFoundError or ConnectionRefusedError when the monitor has gone.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{fd}/attach")
        finally:
            os.close(fd)
    except BaseException:
        sock.close()
        raise
    return sock


class Attachment:
    """One connection to a container's or an exec's stdio.

    `read()` gives (stream, data) with stream 1 for stdout and 2 for stderr, None when the process has ended and all its
    output was given. Reading slowly slows the container down, as a full pipe does.
    """

    def __init__(
        self, sock: socket.socket, *, keep_input: bool = False, on_close: Callable[[socket.socket], None] | None = None
    ) -> None:
        """keep_input: closing this attachment must not end the container's input.
        on_close: takes the half-shut socket over in that case, to be held until the container ends."""
        self._sock = sock
        self._keep_input = keep_input
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._waiting: set[asyncio.Future[None]] = set()

    async def read(self) -> tuple[int, bytes] | None:
        """The next piece of output, as the process wrote it."""
        while not self._closed:
            try:
                packet = self._sock.recv(_PACKET)
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
                continue
            except OSError:
                return None
            if not packet:
                return None
            stream = _PIPES.get(packet[0])
            if stream is not None and len(packet) > 1:
                return stream, packet[1:]
        return None

    async def write(self, data: bytes) -> None:
        """Send input. Waits while the process does not read. Raises BrokenPipeError when it has ended."""
        view = memoryview(data)
        while view:
            if self._closed:
                raise BrokenPipeError(32, "attachment is closed")
            try:
                sent = self._sock.send(view[:_INPUT_PACKET])
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
                continue
            except ConnectionError:
                raise BrokenPipeError(32, "process has ended") from None
            view = view[sent:]

    async def _ready(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        fd = self._sock.fileno()
        if fd < 0:
            return
        add(fd, _resolve, future)
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            with contextlib.suppress(OSError, ValueError):
                remove(fd)

    def close_input(self) -> None:
        """End the container's input; output goes on. (With stdin that stays open after detach, nothing happens.)"""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self, *, keep_input: bool | None = None) -> None:
        """Detach. keep_input: overrides the rule given at creation (docker's detach keys leave input open)."""
        if self._closed:
            return
        self._closed = True
        fd = self._sock.fileno()
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        if (self._keep_input if keep_input is None else keep_input) and self._on_close is not None:
            # The monitor takes the end of any connection for the end of input; so hold it, but take no more output.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)
            self._on_close(self._sock)
        else:
            self._sock.close()
