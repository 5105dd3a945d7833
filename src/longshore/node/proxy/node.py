"""What a node needs for Services to work besides rules: a route for their range, forwarding, a few switches.

The Service range is routed to a dummy interface: a process of the node that connects to a cluster IP needs some route
before the rules can send it elsewhere, and what no rule takes goes nowhere.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
from collections.abc import Sequence

from longshore.machinery import netns
from longshore.machinery.netlink import Netlink, NetlinkError

logger = logging.getLogger("longshore.proxy")

LINK = "longshore-svc"
_SWITCHES = (
    ("net/ipv4/ip_forward", "1"),
    # Node ports on 127.0.0.1; the table drops what comes from outside for 127.0.0.0/8.
    ("net/ipv4/conf/all/route_localnet", "1"),
    # Answers between pods on one bridge pass the rules, so that they get the Service's address back.
    ("net/bridge/bridge-nf-call-iptables", "1"),
    ("net/bridge/bridge-nf-call-ip6tables", "1"),
)


def prepare(service_cidrs: Sequence[str], *, source: str = "", namespace: netns.Namespace | None = None) -> None:
    """Set the node up for Services; safe to repeat.

    service_cidrs: ranges of cluster IPs. source: the node's addresses ("v4,v6"), from which it reaches them ("": the
    kernel chooses).
    Raises NetlinkError where even the route cannot be made.
    """
    for name, value in _SWITCHES:
        try:
            netns.write_sysctl(namespace, name, value)
        except OSError as error:
            level = logging.DEBUG if error.errno == errno.ENOENT else logging.WARNING
            logger.log(level, "%s cannot be set to %s: %s", name, value, error)
    try:
        netns.write_sysctl(namespace, "net/ipv6/conf/all/forwarding", "1")
    except OSError as error:
        logger.debug("IPv6 is not forwarded: %s", error)
    with Netlink(namespace) as netlink:
        index = ensure_link(netlink)
        for text in service_cidrs:
            network = ipaddress.ip_network(text)
            own = [ipaddress.ip_address(text) for text in source.split(",") if text]
            preferred = next((address for address in own if address.version == network.version), None)
            try:
                netlink.add_route(network, link=index, source=preferred, replace=True)
            except NetlinkError as error:
                if network.version == 6 and error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES):
                    logger.debug("no IPv6 on this node: %s", error)
                    continue
                raise


def ensure_link(netlink: Netlink) -> int:
    """The dummy interface of Services, made and up; its index."""
    found = netlink.link(LINK)
    if found is not None:
        index = found.index
    else:
        try:
            index = netlink.add_dummy(LINK)
        except NetlinkError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # A kernel without dummy interfaces: a bridge without ports swallows packets as well.
            index = netlink.add_bridge(LINK)
    netlink.set_link(index, up=True)
    return index


def clean_up(*, namespace: netns.Namespace | None = None) -> None:
    """Take the interface away, and its routes with it."""
    with Netlink(namespace) as netlink:
        found = netlink.link(LINK)
        if found is not None:
            netlink.delete_link(found.index)
