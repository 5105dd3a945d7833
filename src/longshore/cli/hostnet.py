"""The host's side of a cluster's network: forwarding, fences round the cluster's ranges, nodes as namespaces on a bridge."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from collections.abc import Iterator
from pathlib import Path

from longshore.cli.cluster import ClusterConfig, NodeConfig
from longshore.machinery import netns
from longshore.machinery.netlink import Netlink, NetlinkError
from longshore.machinery.nftables import Nftables, NftablesError
from longshore.machinery.paths import Layout

#: Under any real route, above none: a packet for a pod or Service that does not exist goes nowhere.
FENCE_METRIC = 4_000_100
TABLE = "longshore-host"
ANYWHERE = ipaddress.ip_network("0.0.0.0/0")


@contextlib.contextmanager
def tolerating(*numbers: int) -> Iterator[None]:
    """Let pass that something is there (or gone) already."""
    try:
        yield
    except NetlinkError as error:
        if error.errno not in numbers:
            raise


def netns_path(layout: Layout, node: NodeConfig) -> Path | None:
    """Where a node's network namespace is pinned; None for the node that is the host itself."""
    return layout.run / "netns" / node.netns if node.netns else None


def port_name(config: ClusterConfig, number: int) -> str:
    """The host's end of a node's link, on the bridge; an interface's name has at most 15 characters."""
    return f"{(config.bridge or '')[:9]}n{number}"


def set_up(layout: Layout, config: ClusterConfig) -> None:
    """Make what is missing; safe to repeat at any moment (after a crash, after a reboot). Blocks for milliseconds."""
    netns.write_sysctl(None, "net/ipv4/ip_forward", "1")
    with Netlink() as host:
        _fence(host, config)
        if config.bridge is None:
            return
        with tolerating(errno.EEXIST):
            host.add_bridge(config.bridge)
        bridge = host.index(config.bridge)
        prefix = config.node_cidr.split("/")[1]
        with tolerating(errno.EEXIST):
            host.add_address(bridge, ipaddress.ip_interface(f"{config.host_ip}/{prefix}"))
        host.set_link(bridge, up=True)
        for number, node in enumerate(config.nodes, 1):
            path = netns_path(layout, node)
            if path is not None and not netns.pinned(path):
                _join(host, bridge, port_name(config, number), path, f"{node.ip}/{prefix}", config)
        _ways_in(host, bridge, layout, config)
    # Several nodes reach the world through the host, as machines behind a router do.
    if len(config.nodes) > 1:
        with Nftables() as nft:
            nft.run(
                f"""table ip {TABLE}
                delete table ip {TABLE}
                table ip {TABLE} {{
                    chain postrouting {{
                        type nat hook postrouting priority srcnat; policy accept;
                        ip saddr {config.node_cidr} oifname != "{config.bridge}" masquerade
                    }}
                }}"""
            )


def _fence(link: Netlink, config: ClusterConfig) -> None:
    for text in (config.pod_cidr, config.service_cidr):
        with tolerating(errno.EEXIST):
            link.add_route(ipaddress.ip_network(text), kind="unreachable", metric=FENCE_METRIC)


def _ways_in(host: Netlink, bridge: int, layout: Layout, config: ClusterConfig) -> None:
    """The host's way to pods and Services (the API server's proxies, webhooks): through its first node, which has both."""
    for node in [n for n in config.nodes if netns_path(layout, n) is not None][:1]:
        for text in (config.pod_cidr, config.service_cidr):
            with tolerating(errno.EEXIST):
                host.add_route(ipaddress.ip_network(text), gateway=ipaddress.ip_address(node.ip), link=bridge)


def _join(host: Netlink, bridge: int, port: str, path: Path, address: str, config: ClusterConfig) -> None:
    """Make a node's namespace and plug it into the bridge."""
    netns.create(path)
    stale = host.link(port)
    if stale is not None:
        host.delete_link(stale.index)
    with netns.opened(path) as namespace:
        host.add_veth(port, "eth0", peer_namespace=namespace, master=bridge, up=True)
    with Netlink(path) as inside:
        index = inside.index("eth0")
        inside.add_address(index, ipaddress.ip_interface(address))
        inside.set_link(index, up=True)
        inside.add_route(ANYWHERE, gateway=ipaddress.ip_address(config.host_ip), link=index)
        _fence(inside, config)
    netns.write_sysctl(path, "net/ipv4/ip_forward", "1")


def tear_down(layout: Layout, config: ClusterConfig) -> None:
    """Take away all that `set_up` made. What is not there is no error."""
    for node in config.nodes:
        path = netns_path(layout, node)
        if path is not None:
            netns.delete(path)
    with Netlink() as host:
        for text in (config.pod_cidr, config.service_cidr):
            with tolerating(errno.ESRCH):
                host.delete_route(ipaddress.ip_network(text), kind="unreachable", metric=FENCE_METRIC)
        # A namespace's end of a link goes with it only some time later: take our ends away now.
        mine = [config.bridge, *(port_name(config, number) for number in range(1, len(config.nodes) + 1))]
        for name in mine if config.bridge else ():
            found = host.link(str(name))
            if found is not None:
                host.delete_link(found.index)
    if len(config.nodes) > 1:
        with Nftables() as nft, contextlib.suppress(NftablesError):
            nft.run(f"delete table ip {TABLE}")
