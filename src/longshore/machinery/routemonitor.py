"""Tells when the kernel's links, addresses or routes change: what routes of ours an interface took along must come back.

Source: rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable

from longshore.machinery import netns

log = logging.getLogger("longshore.machinery.routemonitor")

_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400
_NEWLINK, _NEWADDR, _DELROUTE = 16, 20, 25
_PRIORITY = 6
_UP, _LOWER_UP = 0x1, 0x10000


class RouteMonitor:
    """Calls `changed` on the running loop when a route of one metric has gone, or a link or an address has come up.

    metric: of the routes that matter (0: all). namespace: the network namespace to watch (None: our own).
    """

    def __init__(
        self, changed: Callable[[], None], *, metric: int = 0, namespace: netns.Namespace | None = None
    ) -> None:
        self._changed = changed
        self._metric = metric
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
                if flags & _UP and flags & _LOWER_UP:
                    return True
            if kind == _DELROUTE and (not self._metric or self._priority(body[12:]) == self._metric):
                return True
        return False

    @staticmethod
    def _priority(attributes: bytes) -> int:
        offset = 0
        while offset + 4 <= len(attributes):
            length, kind = struct.unpack_from("=HH", attributes, offset)
            if length < 4:
                break
            if kind == _PRIORITY and length >= 8:
                return int(struct.unpack_from("=I", attributes, offset + 4)[0])
            offset += (length + 3) & ~3
        return 0

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
