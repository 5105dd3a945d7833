"""Links, addresses, routes and neighbours of a network namespace, spoken to the kernel directly.

A `Netlink` belongs to the network namespace in which its socket was made and keeps to it, whichever thread uses it; so
one made inside a container's namespace configures that container from outside. Calls are synchronous: the kernel answers
within some ten microseconds, unless it is busy tearing another namespace down. Source: rtnetlink(7), linux/rtnetlink.h,
linux/if_link.h, linux/neighbour.h.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import netns

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")

_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_REPLACE, _EXCL, _CREATE, _APPEND = 0x100, 0x200, 0x400, 0x800
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_ERROR, _DONE = 2, 3
_PROXY = 0x08  # NTF_PROXY

IFF_UP, IFF_LOOPBACK, IFF_PROMISC, IFF_RUNNING = 0x1, 0x8, 0x100, 0x40
_NESTED = 0x8000
ROUTE_TYPES = {"unicast": 1, "local": 2, "broadcast": 3, "blackhole": 6, "unreachable": 7, "prohibit": 8}
_ROUTE_NAMES = {number: name for name, number in ROUTE_TYPES.items()}
MAIN_TABLE = 254


class NetlinkError(OSError):
    """The kernel refused; errno tells why (EEXIST, ENODEV, EBUSY ...)."""


@dataclass(frozen=True, slots=True)
class Link:
    """One network interface."""

    index: int
    name: str
    kind: str
    flags: int
    mtu: int
    mac: str
    master: int
    peer: int
    """Index of the other end of a veth (in its namespace), or of the parent of a macvlan and the like."""

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True, slots=True)
class Route:
    """One route. destination 0.0.0.0/0 or ::/0: the default route."""

    destination: Network
    gateway: Address | None
    link: int
    kind: str
    table: int
    metric: int
    protocol: int
    source: Address | None


def _attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + b"\0" * (-length & 3)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _u32(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _u8(kind: int, number: int) -> bytes:
    return _attribute(kind, bytes((number,)))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _attributes(data: bytes) -> dict[int, bytes]:
    result: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        result[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return result


def _number(attributes: dict[int, bytes], kind: int) -> int:
    return int(struct.unpack("=I", attributes[kind])[0]) if kind in attributes else 0


def _family(address: Address | Network | Interface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


class Netlink:
    """A conversation with one network namespace, in which several threads may take turns.

    namespace: path or descriptor of it; None: the caller's own.
    """

    def __init__(self, namespace: str | os.PathLike[str] | int | None = None) -> None:
        self._socket = netns.make_socket(
            namespace, socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._sequence = 0
        self._turn = threading.Lock()  # whoever asks reads its own answer

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ messages

    def _exchange(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """The answers to a request, once it is acknowledged or the dump at its end. Raises NetlinkError."""
        with self._turn:
            self._sequence += 1
            self._socket.send(_HEADER.pack(16 + len(body), kind, flags, self._sequence, 0) + body)
            return list(self._answers(self._sequence))

    def _answers(self, sequence: int) -> Iterator[bytes]:
        while True:
            data = self._socket.recv(1 << 17)
            offset = 0
            while offset + 16 <= len(data):
                length, kind, _, number, _ = _HEADER.unpack_from(data, offset)
                body = data[offset + 16 : offset + length]
                offset += (length + 3) & ~3
                if number != sequence:
                    continue
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise NetlinkError(-code, os.strerror(-code))
                    return
                if kind == _DONE:
                    return
                yield body

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        self._exchange(kind, _REQUEST | _ACK | flags, body)

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        return self._exchange(kind, _REQUEST | _DUMP, body)

    # ------------------------------------------------------------------ links

    @staticmethod
    def _link(body: bytes) -> Link:
        _, _, index, flags, _ = _IFINFO.unpack_from(body)
        a = _attributes(body[_IFINFO.size :])
        info = _attributes(a[18]) if 18 in a else {}
        return Link(
            index,
            a.get(3, b"").rstrip(b"\0").decode(),
            info.get(1, b"").rstrip(b"\0").decode(),
            flags,
            _number(a, 4),
            ":".join(f"{byte:02x}" for byte in a.get(1, b"")),
            _number(a, 10),
            _number(a, 5),
        )

    def links(self) -> list[Link]:
        """All interfaces."""
        return [self._link(body) for body in self._dump(_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """One interface by name; None when there is none."""
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _text(3, name)
        try:
            answers = self._exchange(_GETLINK, _REQUEST | _ACK, body)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return self._link(answers[0])

    def index(self, name: str) -> int:
        """The interface's number. Raises NetlinkError (ENODEV)."""
        found = self.link(name)
        if found is None:
            raise NetlinkError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        return found.index

    def _create(
        self,
        name: str,
        kind: str,
        data: bytes = b"",
        *,
        mac: str = "",
        mtu: int = 0,
        master: int = 0,
        up: bool = False,
        extra: bytes = b"",
    ) -> None:
        info = _text(1, kind)
        if data:
            info += _attribute(2 | _NESTED, data)
        flags = IFF_UP if up else 0
        body = _IFINFO.pack(0, 0, 0, flags, flags) + _text(3, name) + extra
        if mac:
            body += _attribute(1, _mac(mac))
        if mtu:
            body += _u32(4, mtu)
        if master:
            body += _u32(10, master)
        body += _attribute(18 | _NESTED, info)
        self._ask(_NEWLINK, _CREATE | _EXCL, body)

    def add_bridge(self, name: str, *, mac: str = "", mtu: int = 0) -> int:
        """A bridge; returns its index. Raises NetlinkError (EEXIST)."""
        self._create(name, "bridge", mac=mac, mtu=mtu)
        return self.index(name)

    def add_dummy(self, name: str) -> int:
        self._create(name, "dummy")
        return self.index(name)

    def add_veth(
        self,
        name: str,
        peer: str,
        *,
        peer_namespace: int | None = None,
        peer_mac: str = "",
        mtu: int = 0,
        master: int = 0,
        up: bool = False,
    ) -> None:
        """A pair of interfaces; the peer is made right inside the namespace of the descriptor `peer_namespace`."""
        other = _IFINFO.pack(0, 0, 0, 0, 0) + _text(3, peer)
        if peer_mac:
            other += _attribute(1, _mac(peer_mac))
        if mtu:
            other += _u32(4, mtu)
        if peer_namespace is not None:
            other += _u32(28, peer_namespace)
        self._create(name, "veth", _attribute(1 | _NESTED, other), mtu=mtu, master=master, up=up)

    def add_vxlan(
        self,
        name: str,
        vni: int,
        *,
        port: int,
        local: Address | None = None,
        link: int = 0,
        learning: bool = False,
        mac: str = "",
        mtu: int = 0,
    ) -> int:
        """A VXLAN end point; returns its index."""
        data = _u32(1, vni) + _attribute(15, struct.pack(">H", port)) + _u8(7, int(learning))
        if link:
            data += _u32(3, link)
        if local is not None:
            data += _attribute(4 if local.version == 4 else 17, local.packed)
        self._create(name, "vxlan", data, mac=mac, mtu=mtu)
        return self.index(name)

    def add_macvlan(
        self, name: str, link: int, *, mode: str = "bridge", namespace: int | None = None, mac: str = ""
    ) -> None:
        """A macvlan on the parent `link`, made right inside a namespace."""
        modes = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
        extra = _u32(5, link) + (_u32(28, namespace) if namespace is not None else b"")
        self._create(name, "macvlan", _u32(1, modes[mode]), mac=mac, extra=extra)

    def add_ipvlan(self, name: str, link: int, *, mode: str = "l2", namespace: int | None = None) -> None:
        """An ipvlan on the parent `link`, made right inside a namespace."""
        modes = {"l2": 0, "l3": 1, "l3s": 2}
        extra = _u32(5, link) + (_u32(28, namespace) if namespace is not None else b"")
        self._create(name, "ipvlan", _attribute(1, struct.pack("=H", modes[mode])), extra=extra)

    def add_vlan(self, name: str, link: int, vlan: int) -> int:
        """An 802.1Q sub-interface; returns its index."""
        self._create(name, "vlan", _attribute(1, struct.pack("=H", vlan)), extra=_u32(5, link))
        return self.index(name)

    def set_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        master: int | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        name: str | None = None,
        namespace: int | None = None,
        promiscuous: bool | None = None,
    ) -> None:
        """Change what is given. master: 0 leaves the bridge. namespace: descriptor of the namespace to move to."""
        flags = change = 0
        if up is not None:
            change |= IFF_UP
            flags |= IFF_UP if up else 0
        if promiscuous is not None:
            change |= IFF_PROMISC
            flags |= IFF_PROMISC if promiscuous else 0
        body = _IFINFO.pack(0, 0, index, flags, change)
        if master is not None:
            body += _u32(10, master)
        if mtu is not None:
            body += _u32(4, mtu)
        if mac is not None:
            body += _attribute(1, _mac(mac))
        if name is not None:
            body += _text(3, name)
        if namespace is not None:
            body += _u32(28, namespace)
        self._ask(_NEWLINK, 0, body)

    def set_bridge_port(self, index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> None:
        """Options of an interface in a bridge: hairpin (may send back where it came from), isolated (from its like)."""
        data = b""
        if hairpin is not None:
            data += _u8(4, int(hairpin))
        if isolated is not None:
            data += _u8(33, int(isolated))
        self._ask(_SETLINK, 0, _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0) + _attribute(12 | _NESTED, data))

    def delete_link(self, index: int) -> None:
        self._ask(_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))

    # ------------------------------------------------------------------ addresses

    def add_address(
        self, index: int, address: Interface, *, noprefixroute: bool = False, never_source: bool = False
    ) -> None:
        """Give an interface an address. Raises NetlinkError (EEXIST).

        never_source: the node answers at it, but the kernel never chooses it for what the node itself begins.
        """
        flags = 0x200 if noprefixroute else 0
        if address.version == 6:
            flags |= 0x02  # no duplicate address detection: we hand the addresses out
        scope = 254 if never_source and address.version == 4 else 0  # RT_SCOPE_HOST
        body = _IFADDR.pack(_family(address), address.network.prefixlen, flags & 0xFF, scope, index)
        body += _attribute(2, address.ip.packed) + _attribute(1, address.ip.packed)
        if never_source and address.version == 6:
            body += _attribute(6, struct.pack("=IIII", 0, 0xFFFFFFFF, 0, 0))  # deprecated from the start
        if address.version == 4 and address.network.prefixlen < 31:
            body += _attribute(4, address.network.broadcast_address.packed)
        body += _u32(8, flags)
        self._ask(_NEWADDR, _CREATE | _EXCL, body)

    def delete_address(self, index: int, address: Interface) -> None:
        body = _IFADDR.pack(_family(address), address.network.prefixlen, 0, 0, index) + _attribute(2, address.ip.packed)
        self._ask(_DELADDR, 0, body)

    def addresses(self, index: int = 0) -> list[tuple[int, Interface]]:
        """(interface number, address) of one interface, or of all."""
        result: list[tuple[int, Interface]] = []
        for body in self._dump(_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
            family, prefix, _, _, number = _IFADDR.unpack_from(body)
            a = _attributes(body[_IFADDR.size :])
            raw = a.get(2) or a.get(1)
            if raw is None or (index and number != index) or family not in (socket.AF_INET, socket.AF_INET6):
                continue
            result.append((number, ipaddress.ip_interface((raw, prefix))))
        return result

    # ------------------------------------------------------------------ routes

    def _route(
        self,
        destination: Network,
        gateway: Address | None,
        link: int,
        kind: str,
        table: int,
        metric: int,
        source: Address | None,
        onlink: bool,
        scope: int | None,
    ) -> bytes:
        number = ROUTE_TYPES[kind]
        if scope is None:
            scope = 253 if kind == "unicast" and gateway is None and destination.version == 4 else 0
        body = _RTMSG.pack(
            _family(destination), destination.prefixlen, 0, 0, min(table, 255), 4, scope, number, 4 if onlink else 0
        )
        body += _u32(15, table)
        if destination.prefixlen:
            body += _attribute(1, destination.network_address.packed)
        if gateway is not None:
            body += _attribute(5, gateway.packed)
        if link:
            body += _u32(4, link)
        if metric:
            body += _u32(6, metric)
        if source is not None:
            body += _attribute(7, source.packed)
        return body

    def add_route(
        self,
        destination: Network,
        *,
        gateway: Address | None = None,
        link: int = 0,
        kind: str = "unicast",
        table: int = MAIN_TABLE,
        metric: int = 0,
        source: Address | None = None,
        onlink: bool = False,
        replace: bool = False,
    ) -> None:
        """Add a route. kind: "unicast", "unreachable", "blackhole", "local" ... Raises NetlinkError (EEXIST)."""
        body = self._route(destination, gateway, link, kind, table, metric, source, onlink, None)
        self._ask(_NEWROUTE, _CREATE | (_REPLACE if replace else _EXCL), body)

    def delete_route(
        self,
        destination: Network,
        *,
        gateway: Address | None = None,
        link: int = 0,
        kind: str = "unicast",
        table: int = MAIN_TABLE,
        metric: int = 0,
    ) -> None:
        """Remove a route. Raises NetlinkError (ESRCH)."""
        self._ask(_DELROUTE, 0, self._route(destination, gateway, link, kind, table, metric, None, False, 255))

    def routes(self, version: int = 4, table: int = MAIN_TABLE) -> list[Route]:
        """The routes of one table. version: 4 or 6."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        result = []
        for body in self._dump(_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, prefix, _, _, short, protocol, _, kind, _ = _RTMSG.unpack_from(body)
            a = _attributes(body[_RTMSG.size :])
            if (_number(a, 15) or short) != table:
                continue
            raw = a.get(1, b"\0" * (4 if version == 4 else 16))
            gateway: Any = ipaddress.ip_address(a[5]) if 5 in a else None
            source: Any = ipaddress.ip_address(a[7]) if 7 in a else None
            network: Any = ipaddress.ip_network((raw, prefix))
            result.append(
                Route(
                    network,
                    gateway,
                    _number(a, 4),
                    _ROUTE_NAMES.get(kind, str(kind)),
                    table,
                    _number(a, 6),
                    protocol,
                    source,
                )
            )
        return result

    # ------------------------------------------------------------------ neighbours

    def set_neighbour(self, index: int, address: Address, mac: str) -> None:
        """A permanent entry in the ARP or neighbour table."""
        body = (
            _NDMSG.pack(_family(address), index, 0x80, 0, 0) + _attribute(1, address.packed) + _attribute(2, _mac(mac))
        )
        self._ask(_NEWNEIGH, _CREATE | _REPLACE, body)

    def delete_neighbour(self, index: int, address: Address) -> None:
        self._ask(_DELNEIGH, 0, _NDMSG.pack(_family(address), index, 0, 0, 0) + _attribute(1, address.packed))

    def add_proxied(self, index: int, address: Address) -> None:
        """Have an interface answer for another's address (proxy ARP, NDP); what is there already stays."""
        self._ask(_NEWNEIGH, _CREATE | _REPLACE, self._proxied(index, address))

    def delete_proxied(self, index: int, address: Address) -> None:
        self._ask(_DELNEIGH, 0, self._proxied(index, address))

    def proxied(self) -> list[tuple[int, Address]]:
        """(interface number, address) of all that is answered for another."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self._dump(_GETNEIGH, _NDMSG.pack(family, 0, 0, _PROXY, 0)):
                there, index, _, flags, _ = _NDMSG.unpack_from(body)
                raw = _attributes(body[_NDMSG.size :]).get(1)
                if flags & _PROXY and raw is not None and there == family:
                    found.append((index, ipaddress.ip_address(raw)))
        return found

    @staticmethod
    def _proxied(index: int, address: Address) -> bytes:
        return _NDMSG.pack(_family(address), index, 0x80, _PROXY, 0) + _attribute(1, address.packed)

    def set_forwarding(self, index: int, mac: str, destination: Address, *, append: bool = False) -> None:
        """A VXLAN's forwarding entry: frames for `mac` go to the end point `destination`."""
        body = (
            _NDMSG.pack(socket.AF_BRIDGE, index, 0x80, 0x02, 0)
            + _attribute(1, destination.packed)
            + _attribute(2, _mac(mac))
        )
        self._ask(_NEWNEIGH, _CREATE | (_APPEND if append else _REPLACE), body)

    def delete_forwarding(self, index: int, mac: str, destination: Address) -> None:
        body = (
            _NDMSG.pack(socket.AF_BRIDGE, index, 0x80, 0x02, 0)
            + _attribute(1, destination.packed)
            + _attribute(2, _mac(mac))
        )
        self._ask(_DELNEIGH, 0, body)
