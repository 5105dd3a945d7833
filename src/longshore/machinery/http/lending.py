"""A connection's socket in the hands of threads: bulk bodies pass between socket and file without the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import select
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from longshore.machinery.http.connection import Connection

T = TypeVar("T")

#: Seconds that a peer may take or send nothing.
STALLED = 300.0
#: Milliseconds that a thread waits for the peer before it hands the waiting to the loop, and seconds that it may work on.
_PATIENCE = 100
_SPELL = 0.5
_SO_SNDBUFFORCE = 32  # see socket(7)

_threads: ThreadPoolExecutor | None = None


class Turn(enum.Enum):
    """How a spell of work ended: all done, the peer is slow, or it is somebody else's turn."""

    DONE = enum.auto()
    WAIT = enum.auto()
    AGAIN = enum.auto()


class Lent:
    """The socket (not blocking) and the clock of one spell of work, in a thread."""

    def __init__(self, own: socket.socket, events: int) -> None:
        self.socket = own
        self._poll = select.poll()
        self._poll.register(own, events)
        self._end = 0.0

    def begin(self) -> None:
        self._end = time.monotonic() + _SPELL

    def send_buffer(self, size: int) -> None:
        """Let the kernel hold so much that the peer has not taken, where we may say so (it is for administrators)."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)

    @property
    def over(self) -> bool:
        """Others wait for a thread too."""
        return time.monotonic() > self._end

    def ready(self) -> bool:
        """Wait a little for the socket; False when the peer is slow."""
        return bool(self._poll.poll(_PATIENCE))


def lendable(connection: Connection) -> bool:
    """Whether the octets on the connection's socket are those of HTTP: not with TLS."""
    get = connection.transport.get_extra_info
    return get("socket") is not None and get("ssl_object") is None


async def lend(connection: Connection, events: int, work: Callable[[Lent], Turn]) -> None:
    """Let threads work with a connection's socket, a spell at a time, until the work is DONE.

    events: select.POLLIN or POLLOUT, what the work waits for. The caller sees to it that the transport leaves the socket alone
    meanwhile. Raises what the work raises, ConnectionResetError when the peer does nothing for long.
    """
    # A descriptor of our own: the loop lets nobody else watch those of its transports, nor may it close this one under a thread.
    own = socket.socket(fileno=socket.dup(connection.transport.get_extra_info("socket").fileno()))
    lent = Lent(own, events)

    def spell() -> Turn:
        lent.begin()
        return work(lent)

    try:
        while not connection.lost:
            turn = await unbroken(spell, lambda: own.shutdown(socket.SHUT_RDWR))
            if turn is Turn.DONE:
                return
            if turn is Turn.WAIT:
                await _ready(connection.loop, own.fileno(), events)
    finally:
        own.close()
    raise ConnectionResetError("the peer has gone")


async def unbroken(work: Callable[[], T], hurry: Callable[[], None] | None = None) -> T:
    """Run a function in a thread for bulk work; also who is cancelled waits for its end, since it works with the caller's files.

    hurry: called at a cancellation, to end the thread's own waiting.
    """
    global _threads
    if _threads is None:
        # Those who wait for a peer hold no thread: this many move octets at the same time.
        _threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="bulk")
    running = asyncio.get_running_loop().run_in_executor(_threads, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if hurry is not None:
            with contextlib.suppress(OSError):
                hurry()
        await asyncio.wait([running])
        running.exception()
        raise


async def _ready(loop: asyncio.AbstractEventLoop, fd: int, events: int) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    watch, leave = (
        (loop.add_reader, loop.remove_reader) if events & select.POLLIN else (loop.add_writer, loop.remove_writer)
    )
    watch(fd, wake)
    try:
        async with asyncio.timeout(STALLED):
            await ready
    except TimeoutError:
        raise ConnectionResetError("the peer does nothing") from None
    finally:
        leave(fd)
