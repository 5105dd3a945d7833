"""Addresses that lead nowhere: for simulated pods and nodes.

Pods take theirs from their node's range where the cluster gives nodes ranges, else from 198.18.0.0/15 (RFC 2544, never
routed on the internet). Nodes take theirs from 127.64.0.0/10: what asks a simulated node something is refused at once,
and no packet leaves the machine.
"""

from __future__ import annotations

import ipaddress

DEFAULT_PODS = "198.18.0.0/15"
NODES = ipaddress.ip_network("127.64.0.0/10")


class Pool:
    """The addresses of one range, given in turn. When all are taken, they are given a second time."""

    def __init__(self, network: str) -> None:
        """network: in CIDR form. Its first two addresses (network, gateway) and its last are never given."""
        parsed = ipaddress.ip_network(network, strict=False)
        self._base = parsed.network_address
        self._size = max(1, parsed.num_addresses - 3)
        self._first = 2 if parsed.num_addresses > 3 else 0
        self._next = 0
        self._taken: set[str] = set()

    def take(self) -> str:
        for _ in range(min(self._size, len(self._taken) + 1)):
            found = str(self._base + (self._first + self._next % self._size))
            self._next += 1
            if found not in self._taken:
                break
        self._taken.add(found)
        return found

    def note(self, address: str) -> None:
        """An address is taken already: by a pod from before a restart."""
        self._taken.add(address)

    def give_back(self, address: str) -> None:
        self._taken.discard(address)


def of_node(number: int) -> str:
    """The address of the node of that number, from 0."""
    return str(NODES.network_address + 1 + number % (NODES.num_addresses - 2))
