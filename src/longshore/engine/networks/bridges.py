"""The bridge of a network: an interface of the host with the gateways' addresses. Everything here blocks.

Source: rtnetlink(7); Docker's bridge network driver.
"""

from __future__ import annotations

import contextlib
import ipaddress

from longshore.engine.errors import SystemFailure
from longshore.machinery import netns
from longshore.machinery.netlink import Netlink, NetlinkError

from .model import Network

_UNREACHABLE_METRIC = 0xFF001000


def make(nl: Netlink, network: Network) -> int:
    """The interface, its addresses, and an unreachable route below them, so that no packet for the range gets out.

    What is there already is left. Returns the interface's index. Raises NetlinkError, SystemFailure.
    """
    link = nl.link(network.bridge)
    if link is not None and link.kind != "bridge":
        raise SystemFailure(f"existing interface {network.bridge} is not a bridge")
    index = link.index if link else nl.add_bridge(network.bridge, mtu=network.mtu)
    have = {address for _, address in nl.addresses(index)}
    for pool, gateway in zip(network.pools, network.gateways, strict=True):
        if gateway is None or not network.bridge_has_address(gateway.version):
            continue
        address = ipaddress.ip_interface(f"{gateway}/{pool.subnet.prefixlen}")
        if address not in have:
            with contextlib.suppress(NetlinkError):
                nl.add_address(index, address)
        with contextlib.suppress(NetlinkError):
            nl.add_route(pool.subnet, kind="unreachable", metric=_UNREACHABLE_METRIC)
    _set_ipv6(network)
    nl.set_link(index, up=True)
    with contextlib.suppress(OSError):
        # Published ports are reachable at 127.0.0.1 too; the firewall masquerades what comes from there.
        netns.write_sysctl(None, f"net/ipv4/conf/{network.bridge}/route_localnet", "1")
    if any(pool.subnet.version == 6 for pool in network.pools):
        with contextlib.suppress(OSError):
            netns.write_sysctl(None, "net/ipv6/conf/all/forwarding", "1")
    return index


def _set_ipv6(network: Network) -> None:
    """No container may tell the host of routes (CVE-2020-13401), and a bridge that is isolated has no address at all."""
    settings = {"accept_ra": "0"}
    if any(pool.subnet.version == 6 for pool in network.pools):
        settings["disable_ipv6"] = "1" if network.gateway_mode(6) == "isolated" else "0"
    for name, value in settings.items():
        with contextlib.suppress(OSError):
            netns.write_sysctl(None, f"net/ipv6/conf/{network.bridge}/{name}", value)


def remove(nl: Netlink, network: Network) -> None:
    """Take the interface and the routes away; an interface that an administrator had made stays."""
    link = nl.link(network.bridge) if network.own_bridge else None
    if link is not None and link.kind == "bridge":
        with contextlib.suppress(NetlinkError):
            nl.delete_link(link.index)
    forget_ranges(nl, network)


def forget_ranges(nl: Netlink, network: Network) -> None:
    """Take the unreachable routes of a network's ranges away."""
    for pool in network.pools:
        with contextlib.suppress(NetlinkError):
            nl.delete_route(pool.subnet, kind="unreachable", metric=_UNREACHABLE_METRIC)
