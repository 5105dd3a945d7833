"""The host's side of a cluster's network: forwarding, fences round the cluster's ranges, nodes as namespaces on a bridge."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
from collections.abc import Iterator
from pathlib import Path

from longshore.cli.cluster import ClusterConfig, NodeConfig, networks
from longshore.machinery import netns
from longshore.machinery.netlink import Address, Netlink, NetlinkError, Network
from longshore.machinery.nftables import ChangeMonitor, Nftables, NftablesError
from longshore.machinery.paths import Layout

log = logging.getLogger("longshore.hostnet")

#: Under any real route, above none: a packet for a pod or Service that does not exist goes nowhere.
FENCE_METRIC = 4_000_100
TABLE = "longshore-host"
ANYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


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
    _forward(None, config)
    with Netlink() as host:
        _fence(host, config)
        for network, machine in _ways(config):
            with tolerating(errno.EEXIST):
                host.add_route(network, gateway=machine)
        if config.bridge is None:
            return
        with tolerating(errno.EEXIST):
            host.add_bridge(config.bridge)
        bridge = host.index(config.bridge)
        for address in _on_bridge(config, config.host_ips):
            with tolerating(errno.EEXIST):
                host.add_address(bridge, address)
        host.set_link(bridge, up=True)
        for number, node in enumerate(config.nodes, 1):
            path = netns_path(layout, node)
            if path is not None and not netns.pinned(path):
                _join(host, bridge, port_name(config, number), path, node, config)
        _ways_in(host, bridge, layout, config)
    if len(config.nodes) > 1:
        with Nftables() as nft:
            _masquerade(nft, config)


def _masquerade(nft: Nftables, config: ClusterConfig) -> None:
    """Several nodes reach the world through the host, as machines behind a router do."""
    for network in networks(config.node_cidr):
        ip = _ip(network.version)
        nft.run(
            f"""table {ip} {TABLE}
            delete table {ip} {TABLE}
            table {ip} {TABLE} {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat; policy accept;
                    {ip} saddr {network} oifname != "{config.bridge}" masquerade
                }}
            }}"""
        )


async def keep(config: ClusterConfig) -> None:
    """Put the host's rules back whenever somebody takes them away, until cancelled. Raises NftablesUnavailable."""
    with Nftables() as nft:

        def repair() -> None:
            log.warning("the host's rules were changed by someone else; restoring them")
            with contextlib.suppress(NftablesError):
                _masquerade(nft, config)

        monitor = ChangeMonitor({TABLE}, repair, own_ports={nft.port}, removals_only=True)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            monitor.close()


def _ip(version: int) -> str:
    """nftables' word for an IP family."""
    return "ip" if version == 4 else "ip6"


def _forward(namespace: netns.Namespace | None, config: ClusterConfig) -> None:
    netns.write_sysctl(namespace, "net/ipv4/ip_forward", "1")
    if 6 in config.families:
        netns.write_sysctl(namespace, "net/ipv6/conf/all/forwarding", "1")


def _on_bridge(config: ClusterConfig, ips: list[str]) -> list[Interface]:
    """Those addresses that are of the nodes' own range, with its prefix."""
    ranges = networks(config.node_cidr)
    found = [(ip, network) for ip in ips for network in ranges if ipaddress.ip_address(ip) in network]
    return [ipaddress.ip_interface(f"{ip}/{network.prefixlen}") for ip, network in found]


def _fence(link: Netlink, config: ClusterConfig) -> None:
    for network in networks(f"{config.pod_cidr},{config.service_cidr}"):
        with tolerating(errno.EEXIST):
            link.add_route(network, kind="unreachable", metric=FENCE_METRIC)


def _ways(config: ClusterConfig) -> list[tuple[Network, Address]]:
    """How a machine that has joined reaches the first machine's own nodes: ranges, through that machine."""
    if not config.ways:
        return []
    *ranges, machine = config.ways
    gateway = ipaddress.ip_address(machine)
    found = [network for network in networks(",".join(ranges)) if network.version == gateway.version]
    return [(network, gateway) for network in found if gateway not in network]


def _ways_in(host: Netlink, bridge: int, layout: Layout, config: ClusterConfig) -> None:
    """The host's way to pods and Services (the API server's proxies, webhooks): through its first node, which has both."""
    for node in [n for n in config.nodes if netns_path(layout, n) is not None][:1]:
        gateways = {address.version: address for address in map(ipaddress.ip_address, node.ips)}
        for network in networks(f"{config.pod_cidr},{config.service_cidr}"):
            if network.version in gateways:
                with tolerating(errno.EEXIST):
                    host.add_route(network, gateway=gateways[network.version], link=bridge)


def _join(host: Netlink, bridge: int, port: str, path: Path, node: NodeConfig, config: ClusterConfig) -> None:
    """Make a node's namespace and plug it into the bridge."""
    netns.create(path)
    stale = host.link(port)
    if stale is not None:
        host.delete_link(stale.index)
    with netns.opened(path) as namespace:
        host.add_veth(port, "eth0", peer_namespace=namespace, master=bridge, up=True)
    with Netlink(path) as inside:
        index = inside.index("eth0")
        for address in _on_bridge(config, node.ips):
            inside.add_address(index, address)
        inside.set_link(index, up=True)
        for gateway in map(ipaddress.ip_address, config.host_ips):
            inside.add_route(ANYWHERE[gateway.version], gateway=gateway, link=index, onlink=True)
        _fence(inside, config)
    _forward(path, config)


def tear_down(layout: Layout, config: ClusterConfig) -> None:
    """Take away all that `set_up` made. What is not there is no error."""
    for node in config.nodes:
        path = netns_path(layout, node)
        if path is not None:
            netns.delete(path)
    with Netlink() as host:
        for network in networks(f"{config.pod_cidr},{config.service_cidr}"):
            with tolerating(errno.ESRCH):
                host.delete_route(network, kind="unreachable", metric=FENCE_METRIC)
        for network, machine in _ways(config):
            with tolerating(errno.ESRCH):
                host.delete_route(network, gateway=machine)
        # A namespace's end of a link goes with it only some time later: take our ends away now.
        mine = [config.bridge, *(port_name(config, number) for number in range(1, len(config.nodes) + 1))]
        for name in mine if config.bridge else ():
            found = host.link(str(name))
            if found is not None:
                host.delete_link(found.index)
    if len(config.nodes) > 1:
        with Nftables() as nft:
            for version in config.families:
                with contextlib.suppress(NftablesError):
                    nft.run(f"delete table {_ip(version)} {TABLE}")
