"""Tells when the peer of a half-closed unix connection has gone altogether.

After the peer's end of stream a transport watches its socket no more, so that a client which has gone and one which only
has nothing more to say look alike until something is written. The kernel knows: it hangs the socket up. Source: epoll(7),
EPOLLHUP.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable
from weakref import WeakKeyDictionary


class HangUps:
    """One epoll descriptor for all connections of a loop; the loop watches that."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._notice)

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        """Call once when the socket is hung up. A descriptor that the kernel cannot watch is passed over."""
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        with contextlib.suppress(OSError):
            self._epoll.register(fd, select.EPOLLET)
            self._calls[fd] = call

    def forget(self, fd: int, call: Callable[[], None]) -> None:
        """The socket is closed, or nobody asks any more. The kernel drops a closed one by itself."""
        if self._calls.get(fd) == call:
            del self._calls[fd]
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _notice(self) -> None:
        for fd, event in self._epoll.poll(0):
            if event & (select.EPOLLHUP | select.EPOLLERR) and (call := self._calls.pop(fd, None)) is not None:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)
                call()


_OF_LOOP: WeakKeyDictionary[asyncio.AbstractEventLoop, HangUps] = WeakKeyDictionary()


def of_loop(loop: asyncio.AbstractEventLoop) -> HangUps:
    """The loop's own, made when first asked for."""
    found = _OF_LOOP.get(loop)
    if found is None:
        found = _OF_LOOP[loop] = HangUps(loop)
    return found
