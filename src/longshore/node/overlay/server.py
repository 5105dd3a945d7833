"""Keeps one route a node and pod range: through its address where a link is shared, else through the VXLAN tunnel to it.

Both ends of a tunnel work out each other's hardware and link-local addresses from the node's IP address, so that nothing
has to be announced, and a range of one IP family crosses a network that has only the other. VXLAN: RFC 7348, port 8472 as
flannel and the kernel's default have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from longshore.client.informer import Informer
from longshore.machinery.netlink import Netlink, NetlinkError
from longshore.machinery.routemonitor import RouteMonitor

log = logging.getLogger("longshore.node.overlay")

DEVICE = "pods-vxlan"
VNI, PORT = 1, 8472
#: Better than the fence (an unreachable route of a far higher metric) and told apart from an administrator's routes.
METRIC = 50
#: What VXLAN puts around a frame, by the IP family of the outside: Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40.
OVERHEAD = {4: 50, 6: 70}
#: Changes come in swarms: a link that comes up, its addresses, nodes that join together.
SETTLE_SECONDS = 0.02

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Way:
    """How one pod range of another node is reached: through `gateway`, on a link that both share (direct) or in the tunnel.

    end: the node's address outside the tunnel.
    """

    destination: Network
    gateway: Address
    direct: bool
    end: Address


def hardware_address(node_ip: str) -> str:
    """A tunnel end's hardware address: locally administered, made from the node's address."""
    address = ipaddress.ip_address(node_ip)
    raw = address.packed if address.version == 4 else hashlib.blake2b(address.packed, digest_size=4).digest()
    return f"0a:{58 if address.version == 4 else 66}:" + ":".join(f"{octet:02x}" for octet in raw)


def inside(end: Address, version: int) -> Address:
    """The address by which a tunnel end is the gateway to a range of this IP family: its own, or a link-local one made from it."""
    if end.version == version:
        return end
    raw = end.packed if version == 6 else hashlib.blake2b(end.packed, digest_size=2).digest()
    return (
        ipaddress.IPv6Address(b"\xfe\x80" + bytes(10) + raw)
        if version == 6
        else ipaddress.IPv4Address(b"\xa9\xfe" + raw)
    )


def ways(nodes: Iterable[dict[str, Any]], own: str, links: Sequence[Network]) -> set[Way]:
    """The ways to all other nodes' pods. nodes: Node objects; own: this node's name; links: networks joined directly."""
    found: set[Way] = set()
    for node in nodes:
        if node["metadata"]["name"] == own:
            continue
        try:
            addresses = [
                ipaddress.ip_address(a["address"])
                for a in node.get("status", {}).get("addresses", [])
                if a["type"] == "InternalIP"
            ]
            ranges = [ipaddress.ip_network(text) for text in node.get("spec", {}).get("podCIDRs", [])]
        except ValueError:
            continue
        if not addresses:
            continue
        for network in ranges:
            same = next((a for a in addresses if a.version == network.version), None)
            direct = same is not None and any(same in link for link in links if link.version == same.version)
            if same is not None and direct:
                found.add(Way(network, same, True, same))
            else:
                # One tunnel for both families, from primary address to primary address.
                found.add(Way(network, inside(addresses[0], network.version), False, addresses[0]))
    return found


async def serve(*, nodes: Informer, node_name: str, node_ip: str) -> None:
    """Follow the Nodes until cancelled; routes stay when this ends, for the pods go on talking.

    What an interface that went down took along comes back with it.

    node_ip: this node's primary address, the tunnel's end.
    """
    changed = asyncio.Event()

    def updated(old: dict[str, Any], new: dict[str, Any]) -> None:
        if _differs(old, new):
            changed.set()

    nodes.on(lambda _: changed.set(), updated, lambda _: changed.set())
    await nodes.wait_synced()
    monitor = RouteMonitor(changed.set, metric=METRIC, passing=("pod", "veth"))
    try:
        while True:
            changed.clear()
            try:
                await asyncio.to_thread(reconcile, list(nodes.store), node_name, node_ip)
            except OSError as error:
                log.error("cannot set the routes to other nodes' pods: %s", error)
                await asyncio.sleep(1)
                continue
            await changed.wait()
            await asyncio.sleep(SETTLE_SECONDS)
    finally:
        monitor.close()


def _differs(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether an update touches what routes are made of (heartbeats do not)."""
    before, after = (
        (node.get("spec", {}).get("podCIDRs"), node.get("status", {}).get("addresses")) for node in (old, new)
    )
    return bool(before != after)


def reconcile(nodes: list[dict[str, Any]], node_name: str, node_ip: str) -> None:
    """Make the kernel's routes what the Nodes ask for. Blocking; raises OSError."""
    with Netlink() as link:
        networks = [a.network for index, a in link.addresses() if a.network.prefixlen < a.network.max_prefixlen]
        wanted = ways(nodes, node_name, networks)
        device = _device(link, node_ip) if any(not way.direct for way in wanted) else 0
        have = {
            (route.destination, route.gateway): route
            for version in (4, 6)
            for route in link.routes(version)
            if route.metric == METRIC
        }
        for way in wanted:
            if (way.destination, way.gateway) in have:
                continue
            if not way.direct:
                mac = hardware_address(str(way.end))
                link.set_neighbour(device, way.gateway, mac)
                link.set_forwarding(device, mac, way.end)
            link.add_route(
                way.destination,
                gateway=way.gateway,
                link=0 if way.direct else device,
                metric=METRIC,
                onlink=not way.direct,
                replace=True,
            )
            log.info("pods of %s through %s%s", way.destination, way.end, "" if way.direct else " by VXLAN")
        keep = {(way.destination, way.gateway) for way in wanted}
        for destination, gateway in have:
            if (destination, gateway) not in keep:
                with contextlib.suppress(NetlinkError):
                    link.delete_route(destination, gateway=gateway, metric=METRIC)


def clean_up() -> None:
    """Take the routes and the tunnel away. Blocking."""
    with Netlink() as link:
        for version in (4, 6):
            for route in link.routes(version):
                if route.metric == METRIC and route.gateway is not None:
                    with contextlib.suppress(NetlinkError):
                        link.delete_route(route.destination, gateway=route.gateway, metric=METRIC)
        found = link.link(DEVICE)
        if found is not None:
            link.delete_link(found.index)


def _device(link: Netlink, node_ip: str) -> int:
    """The tunnel's interface, made when missing; frames fit into what the node's own link carries."""
    local = ipaddress.ip_address(node_ip)
    found = link.link(DEVICE)
    if found is None:
        outside = {index for index, address in link.addresses() if address.ip == local}
        mtu = min((one.mtu for one in link.links() if one.index in outside), default=1500)
        try:
            link.add_vxlan(DEVICE, VNI, port=PORT, local=local, mtu=max(mtu - OVERHEAD[local.version], 1280))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
        index = link.index(DEVICE)
        link.set_link(index, mac=hardware_address(node_ip))
    else:
        index = found.index
    link.set_link(index, up=True)
    return index
