"""Load balancer addresses on a link of the node: which of them this node answers for, and telling the neighbours.

An address of the pool is nobody's own; a node that serves it answers ARP and neighbour solicitations for it in its owner's
place (proxy neighbour entries). Under external policy Local only nodes with endpoints do, so that clients come to where
somebody answers. Source: arp(7), RFC 826, RFC 4861 section 7.2.6 (unsolicited advertisements).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable, Sequence

from longshore.machinery import netns
from longshore.machinery.netlink import Address, Netlink, NetlinkError, Network

logger = logging.getLogger("longshore.proxy")

_ARP, _OVERRIDE = 0x0806, 0x20000000
_ALL_NODES = "ff02::1"


class Announcer:
    """Keeps the proxy neighbour entries of this node's links what `set` last said.

    pools: the ranges of which addresses are announced at all. Entries of these ranges that are there already are ours, of
    an earlier run.
    """

    def __init__(self, pools: Sequence[Network], *, namespace: netns.Namespace | None = None) -> None:
        self._pools = list(pools)
        self._namespace = namespace
        self._wanted: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def set(self, addresses: Iterable[str]) -> None:
        """All addresses that this node is to answer for."""
        wanted = frozenset(addresses)
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    async def run(self) -> None:
        """Announce what is wanted until cancelled; what is announced then stays."""
        self._changed.set()
        while self._pools:
            await self._changed.wait()
            self._changed.clear()
            try:
                await asyncio.to_thread(self._reconcile, self._wanted)
            except OSError as error:
                logger.error("load balancer addresses cannot be announced: %s", error)

    def _reconcile(self, texts: frozenset[str]) -> None:
        wanted = [address for address in map(ipaddress.ip_address, texts) if self._is_ours(address)]
        with Netlink(self._namespace) as netlink:
            names = {link.index: (link.name, link.mac) for link in netlink.links()}
            should: set[tuple[int, Address]] = set()
            for index, interface in netlink.addresses():
                for address in wanted:
                    if address in interface.network and interface.network.prefixlen < address.max_prefixlen:
                        should.add((index, address))
            there = {(index, address) for index, address in netlink.proxied() if self._is_ours(address)}
            for index, address in there - should:
                with contextlib.suppress(NetlinkError):
                    netlink.delete_proxied(index, address)
            for index, address in should - there:
                name, mac = names.get(index, ("", ""))
                if address.version == 6:
                    netns.write_sysctl(self._namespace, f"net/ipv6/conf/{name}/proxy_ndp", "1")
                netlink.add_proxied(index, address)
                netns.write_sysctl(self._namespace, f"net/ipv{address.version}/neigh/{name}/proxy_delay", "0")
                try:
                    tell(address, name, index, mac, namespace=self._namespace)
                except OSError as error:
                    logger.debug("neighbours on %s are not told of %s: %s", name, address, error)

    def _is_ours(self, address: Address) -> bool:
        return any(address in network for network in self._pools if network.version == address.version)


def tell(address: Address, link: str, index: int, mac: str, *, namespace: netns.Namespace | None = None) -> None:
    """Tell everybody on a link that an address is at this hardware address now. Raises OSError."""
    own = bytes.fromhex(mac.replace(":", ""))
    if address.version == 4:
        everybody = b"\xff" * 6
        frame = everybody + own + struct.pack("!HHHBBH", _ARP, 1, 0x0800, 6, 4, 1)
        frame += own + address.packed + bytes(6) + address.packed
        with netns.make_socket(namespace, socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as raw:
            raw.bind((link, 0))
            raw.send(frame)
        return
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with netns.make_socket(namespace, socket.AF_INET6, kind, socket.IPPROTO_ICMPV6) as icmp:
        icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        # Type 136, the override flag, the address, and option 2: where it is. The kernel adds the checksum.
        message = struct.pack("!BBHI", 136, 0, 0, _OVERRIDE) + address.packed + struct.pack("!BB", 2, 1) + own
        icmp.sendto(message, (_ALL_NODES, 0, 0, index))
