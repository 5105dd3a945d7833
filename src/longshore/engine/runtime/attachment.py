"""The attach socket of a monitor: a container's output as it comes, and its input.

conmon listens on a SEQPACKET socket; each packet it sends starts with a byte that names the stream. Packets sent to it
are input. Source: conmon's conn_sock.c and ctr_stdio.c (what goes over the socket).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

STDOUT, STDERR = 1, 2
_PIPES = {2: STDOUT, 3: STDERR}
_PACKET = 65536
# conmon reads packets into a buffer of 32 KiB and would lose what is longer.
_INPUT_PACKET = 16384
_PATIENCE = struct.pack("ll", 2, 0)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def connect(folder: Path) -> socket.socket:
    """Connect to the monitor's socket `folder`/attach (the path may be longer than a socket address allows).

    Raises FileNotFoundError or ConnectionRefusedError when the monitor has gone.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        # The monitor keeps few callers waiting, and takes them at once: when hundreds come together, each waits a moment.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{fd}/attach")
        finally:
            os.close(fd)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Attachment(ABC):
    """One connection to a container's or an exec's stdio.

    `read()` gives (stream, data) with stream 1 for stdout and 2 for stderr, None when the process has ended and all its
    output was given. Reading slowly slows the container down, as a full pipe does.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._waiting: dict[asyncio.Future[None], Callable[[], None]] = {}

    @property
    def closed(self) -> bool:
        """Whether this side has let go."""
        return self._closed

    @abstractmethod
    async def read(self) -> tuple[int, bytes] | None:
        """The next piece of output, as the process wrote it."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Send input. Waits while the process does not read. Raises BrokenPipeError when it has ended."""

    @abstractmethod
    def close_input(self) -> None:
        """End the container's input; output goes on. (With stdin that stays open after detach, nothing happens.)"""

    @abstractmethod
    def close(self, *, keep_input: bool | None = None) -> None:
        """Detach. keep_input: overrides the rule given at creation (docker's detach keys leave input open)."""

    async def _readable(self, *fds: int) -> None:
        """Returns when one of the descriptors can be read, or this is woken."""
        await self._ready(self._loop.add_reader, self._loop.remove_reader, fds)

    async def _writable(self, fd: int) -> None:
        await self._ready(self._loop.add_writer, self._loop.remove_writer, (fd,))

    async def _ready(self, add: Callable[..., object], remove: Callable[[int], object], fds: Sequence[int]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        if any(fd < 0 for fd in fds):
            return

        def leave() -> None:
            for fd in fds:
                with contextlib.suppress(OSError, ValueError):
                    remove(fd)

        for fd in fds:
            add(fd, _resolve, future)
        self._waiting[future] = leave
        try:
            await future
        finally:
            if self._waiting.pop(future, None) is not None:
                leave()

    def _wake(self) -> None:
        """Let everybody look again. Comes before a descriptor is closed: nobody waits for it then."""
        for future, leave in self._waiting.items():
            leave()
            _resolve(future)
        self._waiting.clear()


class MonitorAttachment(Attachment):
    """Stdio that a monitor holds."""

    def __init__(
        self, sock: socket.socket, *, keep_input: bool = False, on_close: Callable[[socket.socket], None] | None = None
    ) -> None:
        """keep_input: closing this attachment must not end the container's input.
        on_close: takes the half-shut socket over in that case, to be held until the container ends."""
        super().__init__()
        self._sock = sock
        self._keep_input = keep_input
        self._on_close = on_close

    async def read(self) -> tuple[int, bytes] | None:
        while not self._closed:
            try:
                packet = self._sock.recv(_PACKET)
            except (BlockingIOError, InterruptedError):
                await self._readable(self._sock.fileno())
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
        view = memoryview(data)
        while view:
            if self._closed:
                raise BrokenPipeError(32, "attachment is closed")
            try:
                sent = self._sock.send(view[:_INPUT_PACKET])
            except (BlockingIOError, InterruptedError):
                await self._writable(self._sock.fileno())
                continue
            except ConnectionError:
                raise BrokenPipeError(32, "process has ended") from None
            view = view[sent:]

    def close_input(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self, *, keep_input: bool | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake()
        if (self._keep_input if keep_input is None else keep_input) and self._on_close is not None:
            # The monitor takes the end of any connection for the end of input; so hold it, but take no more output.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)
            self._on_close(self._sock)
        else:
            self._sock.close()
