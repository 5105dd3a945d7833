"""Tells when the kernel's links, addresses or routes change: what routes of ours an interface took along must come back.

Source: rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Sequence

from longshore.machinery import netns

log = logging.getLogger("longshore.machinery.routemonitor")

_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400
_NEWLINK, _NEWADDR, _DELROUTE = 16, 20, 25
_NAME, _PRIORITY = 3, 6
_UP, _LOWER_UP = 0x1, 0x10000


class RouteMonitor:
    """Calls `changed` on the running loop when a route of one metric has gone, or a link or an address has come up.

    metric: of the routes that matter (0: all). passing: how the names of links begin that come and go without meaning
    anything (pods' interfaces). namespace: the network namespace to watch (None: our own).
    """

    def __init__(
        self,
        changed: Callable[[], None],
        *,
        metric: int = 0,
        passing: Sequence[str] = (),
        namespace: netns.Namespace | None = None,
    ) -> None:
        self._changed = changed
        self._metric = metric
        self._passing = tuple(prefix.encode() for prefix in passing)
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = netns.make_socket(namespace, socket.AF_NETLINK, kind, 0)
        self._socket.bind((0, _LINK | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV6_ADDRESS | _IPV6_ROUTE))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        touched = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    touched = True  # notices were lost: nobody knows
                    continue
                log.warning("notices of routes ended: %s", error)
                self.close()
                break
            touched = self._matters(data) or touched
        if touched:
            self._changed()

    def _matters(self, data: bytes) -> bool:
        offset = 0
        while offset + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, offset)
            if length < 16:
                return False
            body = data[offset + 16 : offset + length]
            offset += (length + 3) & ~3
            if kind == _NEWADDR:
                return True
            if kind == _NEWLINK:
                (flags,) = struct.unpack_from("=I", body, 8)
                if (
                    flags & _UP
                    and flags & _LOWER_UP
                    and not (self._passing and _attribute(body[16:], _NAME).startswith(self._passing))
                ):
                    return True
            if kind == _DELROUTE:
                priority = _attribute(body[12:], _PRIORITY)
                if not self._metric or (len(priority) == 4 and struct.unpack("=I", priority)[0] == self._metric):
                    return True
        return False

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()


def _attribute(data: bytes, wanted: int) -> bytes:
    """One attribute's value; empty when it is not there."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        if kind & 0x3FFF == wanted:
            return data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return b""
