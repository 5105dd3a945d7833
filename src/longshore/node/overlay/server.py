"""Keeps one route a node: to its pod ranges, through its address or through the VXLAN tunnel to it.

Both ends of a tunnel work out each other's hardware address from the node's IP address, so that nothing has to be
announced. VXLAN: RFC 7348, port 8472 as flannel and the kernel's default have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from longshore.client.informer import Informer
from longshore.machinery.netlink import Netlink, NetlinkError

log = logging.getLogger("longshore.node.overlay")

DEVICE = "pods-vxlan"
VNI, PORT = 1, 8472
#: Better than the fence (an unreachable route of a far higher metric) and told apart from an administrator's routes.
METRIC = 50

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Way:
    """How one pod range of another node is reached. direct: over a link that both nodes share."""

    destination: Network
    gateway: Address
    direct: bool


def hardware_address(node_ip: str) -> str:
    """A tunnel end's hardware address: locally administered, made from the node's IPv4 address."""
    return "0a:58:" + ":".join(f"{octet:02x}" for octet in ipaddress.IPv4Address(node_ip).packed)


def ways(nodes: Iterator[dict[str, Any]] | list[dict[str, Any]], own: str, links: list[Network]) -> set[Way]:
    """The ways to all other nodes' pods. nodes: Node objects; own: this node's name; links: networks joined directly."""
    found: set[Way] = set()
    for node in nodes:
        if node["metadata"]["name"] == own:
            continue
        address = next(
            (a["address"] for a in node.get("status", {}).get("addresses", []) if a["type"] == "InternalIP"), ""
        )
        try:
            gateway = ipaddress.ip_address(address)
            ranges = [ipaddress.ip_network(text) for text in node.get("spec", {}).get("podCIDRs", [])]
        except ValueError:
            continue
        direct = any(gateway in link for link in links if link.version == gateway.version)
        found.update(Way(r, gateway, direct) for r in ranges if r.version == gateway.version)
    return found


async def serve(*, nodes: Informer, node_name: str, node_ip: str) -> None:
    """Follow the Nodes until cancelled; routes stay when this ends, for the pods go on talking."""
    changed = asyncio.Event()

    def updated(old: dict[str, Any], new: dict[str, Any]) -> None:
        if _differs(old, new):
            changed.set()

    nodes.on(lambda _: changed.set(), updated, lambda _: changed.set())
    await nodes.wait_synced()
    while True:
        changed.clear()
        try:
            await asyncio.to_thread(reconcile, list(nodes.store), node_name, node_ip)
        except OSError as error:
            log.error("cannot set the routes to other nodes' pods: %s", error)
            await asyncio.sleep(1)
            continue
        await changed.wait()


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
        have = {(route.destination, route.gateway): route for route in link.routes() if route.metric == METRIC}
        for way in wanted:
            if (way.destination, way.gateway) in have:
                continue
            if not way.direct:
                mac = hardware_address(str(way.gateway))
                link.set_neighbour(device, way.gateway, mac)
                link.set_forwarding(device, mac, way.gateway)
            link.add_route(
                way.destination,
                gateway=way.gateway,
                link=0 if way.direct else device,
                metric=METRIC,
                onlink=not way.direct,
                replace=True,
            )
            log.info("pods of %s through %s%s", way.destination, way.gateway, "" if way.direct else " by VXLAN")
        keep = {(way.destination, way.gateway) for way in wanted}
        for destination, gateway in have:
            if (destination, gateway) not in keep:
                with contextlib.suppress(NetlinkError):
                    link.delete_route(destination, gateway=gateway, metric=METRIC)


def _device(link: Netlink, node_ip: str) -> int:
    """The tunnel's interface, made when missing."""
    found = link.link(DEVICE)
    if found is None:
        try:
            link.add_vxlan(DEVICE, VNI, port=PORT, local=ipaddress.ip_address(node_ip))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
        index = link.index(DEVICE)
        link.set_link(index, mac=hardware_address(node_ip))
    else:
        index = found.index
    link.set_link(index, up=True)
    return index
