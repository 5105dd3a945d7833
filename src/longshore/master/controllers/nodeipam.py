"""Node IPAM: every node gets its own piece of the cluster's pod range, for as long as it lives.

Source: kubernetes pkg/controller/nodeipam/ipam (range allocator), described behaviour.
"""

from __future__ import annotations

import ipaddress
import logging

from longshore.client.resources import NODES
from longshore.client.store import Object
from longshore.master.controllers.base import Controller

log = logging.getLogger("longshore.controllers.nodeipam")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class CIDRSet:
    """Subnets of one size out of a range: the lowest free one first after the last given, as upstream."""

    def __init__(self, network: str, mask: int) -> None:
        self.network: Network = ipaddress.ip_network(network)
        if mask < self.network.prefixlen or mask > self.network.max_prefixlen:
            raise ValueError(f"{network} cannot be cut into subnets of /{mask}")
        self.mask = mask
        self.count: int = 1 << (mask - self.network.prefixlen)
        self._step = 1 << (self.network.max_prefixlen - mask)
        self._used: set[int] = set()
        self._next = 0

    def allocate(self) -> str | None:
        """A free subnet, or None when the range is used up."""
        if len(self._used) >= self.count:
            return None
        while self._next in self._used:
            self._next = (self._next + 1) % self.count
        index = self._next
        self._used.add(index)
        self._next = (index + 1) % self.count
        return f"{self.network.network_address + index * self._step}/{self.mask}"

    def _index(self, cidr: str) -> int | None:
        try:
            network: Network = ipaddress.ip_network(cidr)
        except ValueError:
            return None
        if network.version != self.network.version or network.network_address not in self.network:
            return None
        return (int(network.network_address) - int(self.network.network_address)) // self._step

    def occupy(self, cidr: str) -> None:
        """Mark a subnet as given. Foreign ones are ignored."""
        index = self._index(cidr)
        if index is not None:
            self._used.add(index)

    def release(self, cidr: str) -> None:
        index = self._index(cidr)
        if index is not None:
            self._used.discard(index)


class NodeIPAMController(Controller):
    """Writes spec.podCIDR and spec.podCIDRs of nodes that have none."""

    name = "node-ipam-controller"
    account = "node-controller"
    component = "cidrAllocator"
    workers = 1  # one hand gives, so that no piece is given twice

    def setup(self) -> None:
        options = self.options
        self._given: dict[str, str] = {}  # node -> uid, of those that this process has served
        self.sets = []
        for cidr in options.cluster_cidr if options.allocate_node_cidrs else ():
            mask = options.node_cidr_mask_size_ipv6 if ":" in cidr else options.node_cidr_mask_size_ipv4
            self.sets.append(CIDRSet(cidr, max(mask, ipaddress.ip_network(cidr).prefixlen)))
        self.nodes = self.watch(NODES, add=self._added, update=self._changed, delete=self._gone)

    def _added(self, node: Object) -> None:
        self._occupy(node)
        self.enqueue(node)

    def _changed(self, old: Object, node: Object) -> None:
        if not node["spec"].get("podCIDR") and not node["spec"].get("podCIDRs"):
            self.enqueue(node)

    def _occupy(self, node: Object) -> None:
        for cidr_set, cidr in zip(self.sets, node["spec"].get("podCIDRs") or (), strict=False):
            cidr_set.occupy(cidr)

    def _gone(self, node: Object) -> None:
        self._given.pop(node["metadata"]["name"], None)
        for cidr_set, cidr in zip(self.sets, node["spec"].get("podCIDRs") or (), strict=False):
            cidr_set.release(cidr)

    async def reconcile(self, key: str) -> float | None:
        node = self.nodes.store.get(key)
        if node is None or node["spec"].get("podCIDR") or not self.sets:
            return None
        if self._given.get(key) == node["metadata"]["uid"]:
            return None  # written already; the cache is behind
        given: list[str] = []
        for cidr_set in self.sets:
            cidr = cidr_set.allocate()
            if cidr is None:
                for owner, back in zip(self.sets, given, strict=False):
                    owner.release(back)
                self.event(node, "Normal", "CIDRNotAvailable", f"Node {key} status is now: CIDRNotAvailable")
                log.warning("no pod range is left for node %s", key)
                return 60.0
            given.append(cidr)
        try:
            await self.client.patch(NODES, key, {"spec": {"podCIDR": given[0], "podCIDRs": given}}, kind="strategic")
        except BaseException:
            # Whether it was written is not known when the connection broke: the update tells, and occupies it again.
            for owner, back in zip(self.sets, given, strict=False):
                owner.release(back)
            raise
        self._given[key] = node["metadata"]["uid"]
        return None
