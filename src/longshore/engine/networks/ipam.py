"""Address pools and addresses: which ranges networks get, and which address each container.

Source: Docker's documented default address pools; RFC 1918.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from longshore.engine.errors import Forbidden, InvalidParameter, SystemFailure

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def default_pools() -> Iterator[ipaddress.IPv4Network]:
    """172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in pieces of /20."""
    for second in range(17, 32):
        yield ipaddress.IPv4Network(f"172.{second}.0.0/16")
    yield from ipaddress.IPv4Network("192.168.0.0/16").subnets(new_prefix=20)


def choose_pool(taken: Iterable[Network], own: Sequence[tuple[str, int]] = ()) -> ipaddress.IPv4Network:
    """The first pool that overlaps nothing taken, of the default ones or of `own`: (base, size). Raises SystemFailure."""
    used = [n for n in taken if isinstance(n, ipaddress.IPv4Network)]
    chosen = (
        subnet
        for base, size in own
        if ":" not in base
        for subnet in ipaddress.IPv4Network(base).subnets(new_prefix=size)
    )
    for pool in chosen if own else default_pools():
        if not any(pool.overlaps(other) for other in used):
            return pool
    raise SystemFailure("all predefined address pools have been fully subnetted")


def choose_pool6(network_id: str) -> ipaddress.IPv6Network:
    """A unique local /64 made from the network's id (RFC 4193)."""
    return ipaddress.IPv6Network((int("fd" + network_id[:14], 16) << 64, 64))


class Pool:
    """The addresses of one subnet. Gives the lowest free one, as dockerd does: a container that is run again has its address."""

    def __init__(self, subnet: Network, within: Network | None = None) -> None:
        self.subnet = subnet
        self._range = within or subnet
        self._taken: set[int] = set()
        # The network's own address (of IPv6: that of its routers), and in IPv4 the broadcast address; a link has neither.
        hosts = subnet.max_prefixlen - subnet.prefixlen
        if subnet.version == 6 or hosts > 1:
            self._taken.add(int(subnet.network_address))
        if subnet.version == 4 and hosts > 1:
            self._taken.add(int(subnet.broadcast_address))
        first, last = int(self._range.network_address), int(self._range.broadcast_address)
        self._first, self._last = first, last
        self._lowest = first  # all below are taken

    def reserve(self, address: Address) -> None:
        """Take a certain address. Raises InvalidParameter outside the subnet, Forbidden when it is taken."""
        if address not in self.subnet:
            raise InvalidParameter(f"no configured subnet or ip-range contain the IP address {address}")
        number = int(address)
        if number in self._taken:
            raise Forbidden("Address already in use")
        self._taken.add(number)

    def allocate(self) -> Address:
        """Take the lowest free address. Raises SystemFailure when there is none."""
        for number in range(self._lowest, self._last + 1):
            if number not in self._taken:
                self._taken.add(number)
                self._lowest = number + 1
                return ipaddress.ip_address(number) if self.subnet.version == 4 else ipaddress.IPv6Address(number)
        raise SystemFailure("no available addresses on this pool")

    def release(self, address: Address) -> None:
        number = int(address)
        self._taken.discard(number)
        self._lowest = max(self._first, min(self._lowest, number))
