"""Connection tracking over ctnetlink: list flows and delete those that lead to the wrong place.

Source: linux/netfilter/nfnetlink_conntrack.h, conntrack(8).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from longshore.machinery import netns

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_HEADER = struct.Struct("=IHHII")
_ORIGINAL, _REPLY, _STATUS = 1, 2, 3
_TUPLE_IP, _TUPLE_PROTO = 1, 2
IPS_SRC_NAT, IPS_DST_NAT = 1 << 4, 1 << 5
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked flow: as its first packet was sent, and where answers come from.

    original: the bytes by which the kernel knows it (for `Conntrack.delete`).
    """

    family: int
    protocol: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    reply_source: str
    reply_source_port: int
    status: int
    original: bytes

    @property
    def destination_nat(self) -> bool:
        return bool(self.status & IPS_DST_NAT)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _tuple(data: bytes) -> tuple[str, str, int, int, int]:
    """(source, destination, protocol, source port, destination port)."""
    source = destination = ""
    protocol = source_port = destination_port = 0
    for kind, value in _attributes(data):
        if kind == _TUPLE_IP:
            for part, address in _attributes(value):
                if part in (1, 3):
                    source = str(ipaddress.ip_address(address))
                elif part in (2, 4):
                    destination = str(ipaddress.ip_address(address))
        elif kind == _TUPLE_PROTO:
            for part, number in _attributes(value):
                if part == 1:
                    protocol = number[0]
                elif part == 2:
                    (source_port,) = struct.unpack("!H", number[:2])
                elif part == 3:
                    (destination_port,) = struct.unpack("!H", number[:2])
    return source, destination, protocol, source_port, destination_port


class Conntrack:
    """A conversation with the connection tracker of one network namespace (None: the caller's own). Synchronous."""

    def __init__(self, namespace: netns.Namespace | None = None) -> None:
        self._socket = netns.make_socket(namespace, socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flows(self, family: int, protocol: str) -> list[Flow]:
        """All flows of a family (4 or 6) and protocol ("tcp", "udp", "sctp"). Raises OSError."""
        number = PROTOCOLS[protocol]
        wanted = socket.AF_INET if family == 4 else socket.AF_INET6
        body = struct.pack("!BBH", wanted, 0, 0)
        found: list[Flow] = []
        for answer in self._ask(_GET, _DUMP, body):
            original = reply = b""
            status = 0
            for kind, value in _attributes(answer[4:]):
                if kind == _ORIGINAL:
                    original = value
                elif kind == _REPLY:
                    reply = value
                elif kind == _STATUS:
                    (status,) = struct.unpack("!I", value)
            source, destination, protocol_number, source_port, destination_port = _tuple(original)
            if protocol_number != number or not reply:
                continue
            reply_source, _, _, reply_source_port, _ = _tuple(reply)
            found.append(
                Flow(
                    family, number, source, destination, source_port, destination_port,
                    reply_source, reply_source_port, status, original,
                )
            )  # fmt: skip
        return found

    def delete(self, flow: Flow) -> bool:
        """Forget a flow; False when it was gone already."""
        wanted = socket.AF_INET if flow.family == 4 else socket.AF_INET6
        data = struct.pack("=HH", 4 + len(flow.original), _ORIGINAL | 0x8000) + flow.original
        try:
            for _ in self._ask(_DELETE, _ACK, struct.pack("!BBH", wanted, 0, 0) + data):
                continue
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(_HEADER.pack(16 + len(body), kind, _REQUEST | flags, self._sequence, 0) + body)
        while True:
            data = self._socket.recv(1 << 17)
            offset = 0
            while offset + 16 <= len(data):
                length, answer, _, number, _ = _HEADER.unpack_from(data, offset)
                part = data[offset + 16 : offset + length]
                offset += (length + 3) & ~3
                if number != self._sequence:
                    continue
                if answer == 2:
                    (code,) = struct.unpack_from("=i", part)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                if answer == 3:
                    return
                yield part
