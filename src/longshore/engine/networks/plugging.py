"""Interfaces of containers: made inside a namespace, given their addresses and routes. Everything here blocks.

A bridge's is a veth pair; a macvlan's or ipvlan's is born on its parent, an interface of the host.
Source: rtnetlink(7); Docker's bridge, macvlan and ipvlan network drivers.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from longshore.engine.errors import InvalidParameter, SystemFailure
from longshore.machinery import netns
from longshore.machinery.netlink import Netlink, NetlinkError

from .model import Endpoint, Network

#: An endpoint to plug in: with its interface's name and the IP versions whose default route it has.
Plug = tuple[Endpoint, str, Collection[int]]
_PREFIX = "com.docker.network.container_iface_prefix"
SYSCTLS = "com.docker.network.endpoint.sysctls"
_EVERYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
_FLAGS = ("bridge", "private", "vepa")
_MODES = {"macvlan": ("bridge", "private", "vepa", "passthru"), "ipvlan": ("l2", "l3", "l3s")}


def plug(sandbox: Path, plugs: Sequence[Plug]) -> None:
    """Put endpoints into a namespace. Raises OSError (NetlinkError)."""
    with netns.opened(sandbox) as fd, Netlink() as host, Netlink(fd) as inside:
        for endpoint, interface, versions in plugs:
            if endpoint.network.driver == "bridge":
                _add_veth(host, fd, endpoint, interface)
            else:
                _add_on_parent(host, fd, endpoint, interface)
            index = inside.index(interface)
            _set_sysctls(fd, endpoint, interface)
            for address, prefix in endpoint.addresses:
                inside.add_address(index, ipaddress.ip_interface(f"{address}/{prefix}"))
            for text in endpoint.link_local:
                inside.add_address(index, ipaddress.ip_interface(f"{text}/{64 if ':' in text else 16}"))
            inside.set_link(index, up=True)
            for version in versions:
                _set_default_route(inside, version, endpoint, index)


def name_interfaces(endpoints: Sequence[Endpoint], taken: Collection[str] = ()) -> list[str]:
    """The names of endpoints' interfaces: those asked for, else the network's prefix and the lowest number that is free.

    taken: names that are in the namespace already.
    """
    names = {*taken, *(endpoint.interface for endpoint in endpoints)}
    chosen = []
    for endpoint in endpoints:
        name = endpoint.interface
        if not name:
            prefix = endpoint.network.options.get(_PREFIX) or "eth"
            name = next(f"{prefix}{number}" for number in itertools.count() if f"{prefix}{number}" not in names)
            names.add(name)
        chosen.append(name)
    return chosen


def next_name(sandbox: Path, endpoint: Endpoint) -> str:
    """The name of a further interface in a living namespace. Blocking."""
    with Netlink(sandbox) as inside:
        return name_interfaces([endpoint], [link.name for link in inside.links()])[0]


def _add_veth(host: Netlink, fd: int, endpoint: Endpoint, interface: str) -> None:
    network, name = endpoint.network, veth(endpoint)
    bridge = host.index(network.bridge)
    for attempt in range(2):
        try:
            host.add_veth(
                name, interface, peer_namespace=fd, peer_mac=endpoint.mac, mtu=network.mtu, master=bridge, up=True
            )
            break
        except NetlinkError as error:
            # An interface of a dead namespace lingers until the kernel has taken it down.
            lingering = host.link(name)
            if attempt or error.errno != errno.EEXIST or lingering is None:
                if error.errno in (errno.EEXIST, errno.EINVAL, errno.ERANGE):
                    reason = (error.strerror or "").lower()
                    raise SystemFailure(f'error renaming interface "{name}" to "{interface}": {reason}') from None
                raise
            host.delete_link(lingering.index)
    # Where br_netfilter is on, a container's way to itself through a published port stays on the bridge.
    host.set_bridge_port(host.index(name), hairpin=True)


def _add_on_parent(host: Netlink, fd: int, endpoint: Endpoint, interface: str) -> None:
    network = endpoint.network
    parent, mode = host.index(parent_of(network)), mode_of(network)
    if network.driver == "macvlan":
        host.add_macvlan(interface, parent, mode=mode, namespace=fd, mac=endpoint.mac)
    else:
        host.add_ipvlan(interface, parent, mode=mode, namespace=fd)


def _set_sysctls(fd: int, endpoint: Endpoint, interface: str) -> None:
    """What the endpoint asks for; and no IPv6, not even a link-local address, where the network has none."""
    wanted = endpoint_sysctls(endpoint.sysctls, interface)
    if not endpoint.network.enable_ipv6:
        wanted[f"net/ipv6/conf/{interface}/disable_ipv6"] = "1"
    for name, value in wanted.items():
        try:
            netns.write_sysctl(fd, name, value)
        except FileNotFoundError:
            # A kernel without IPv6.
            if not name.startswith("net/ipv6/"):
                raise SystemFailure(f"/proc/sys/{name} is not a sysctl file") from None
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise SystemFailure(f"unable to write to '/proc/sys/{name}': write /proc/sys/{name}: {reason}") from None


def endpoint_sysctls(text: str, interface: str = "IFNAME") -> dict[str, str]:
    """ "net.ipv4.conf.IFNAME.log_martians=1,..." as names under /proc/sys and values. Raises InvalidParameter."""
    found = {}
    for entry in filter(None, text.split(",")):
        name, equals, value = entry.partition("=")
        parts = name.strip().split(".")
        if not equals or len(parts) != 5 or parts[0] != "net" or parts[3].upper() != "IFNAME":
            raise InvalidParameter(
                f"unrecognised network interface sysctl '{entry}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V'"
            )
        if parts[1] not in ("ipv4", "ipv6", "mpls") or any("/" in part or not part for part in parts):
            raise InvalidParameter(f"unable to determine network endpoint for sysctl {name}")
        parts[3] = interface
        found["/".join(parts)] = value
    return found


def _set_default_route(inside: Netlink, version: int, endpoint: Endpoint | None, index: int = 0) -> None:
    everywhere = _EVERYWHERE[version]
    network = endpoint.network if endpoint is not None else None
    gateway = network.gateway(version) if network is not None else None
    if endpoint is not None and not index:
        own = {address for address, _ in endpoint.addresses}
        index = next((number for number, address in inside.addresses() if address.ip in own), 0)
    if network is not None and routes_itself(network) and not network.internal:
        inside.add_route(everywhere, link=index, replace=True)
    elif gateway is not None:
        inside.add_route(everywhere, gateway=gateway, link=index, replace=True)
    else:
        with contextlib.suppress(NetlinkError):
            inside.delete_route(everywhere)


def route(sandbox: Path, gateways: Mapping[int, Endpoint]) -> None:
    """Set the default routes of a living namespace: IP version to the endpoint that has it."""
    with netns.opened(sandbox) as fd, Netlink(fd) as inside:
        for version in (4, 6):
            _set_default_route(inside, version, gateways.get(version))


def unplug(sandbox: Path, endpoint: Endpoint) -> None:
    """Take an endpoint's interface out of a living namespace."""
    if endpoint.network.driver == "bridge":
        with Netlink() as host:
            link = host.link(veth(endpoint))
            if link is not None:
                host.delete_link(link.index)
        return
    own = {address for address, _ in endpoint.addresses}
    with netns.opened(sandbox) as fd, Netlink(fd) as inside:
        index = next((number for number, address in inside.addresses() if address.ip in own), 0)
        if index:
            inside.delete_link(index)


def veth(endpoint: Endpoint) -> str:
    """The name of the host's end."""
    return "veth" + endpoint.id[:7]


# ---------------------------------------------------------------------- parents


def mode_of(network: Network) -> str:
    """The mode of a macvlan or ipvlan network. Raises SystemFailure for one that there is not."""
    kind = network.driver
    mode = network.options.get(f"{kind}_mode") or _MODES[kind][0]
    if mode not in _MODES[kind]:
        raise SystemFailure(
            f"requested {kind} mode '{mode}' is not valid, '{_MODES[kind][0]}' mode is the {kind} driver default"
        )
    return mode


def check_options(network: Network) -> None:
    """Raises SystemFailure for options of a macvlan or ipvlan network that cannot be."""
    mode_of(network)
    kind = network.driver
    flag = network.options.get("ipvlan_flag") or "bridge"
    if kind == "ipvlan" and flag not in _FLAGS:
        raise SystemFailure(f"requested ipvlan flag '{flag}' is not valid, 'bridge' is the ipvlan driver default")
    if network.options.get("parent") == "lo":
        raise SystemFailure(f"loopback interface is not a valid {kind} parent link")


def routes_itself(network: Network) -> bool:
    """Whether containers need no gateway: the parent routes for them (ipvlan's layer 3 modes)."""
    return network.driver == "ipvlan" and network.options.get("ipvlan_mode", "").startswith("l3")


def parent_of(network: Network) -> str:
    """The interface of the host that containers' interfaces lie on; without one, a dummy of the network's own."""
    return network.options.get("parent") or ("dm-" if network.driver == "macvlan" else "di-") + network.id[:12]


def make_parent(nl: Netlink, network: Network) -> None:
    """Make the parent where it is the network's own: a dummy, or a VLAN "eth0.10". Raises SystemFailure, NetlinkError."""
    mode_of(network)
    name = parent_of(network)
    if nl.link(name) is not None:
        return
    if not network.options.get("parent"):
        nl.set_link(nl.add_dummy(name), up=True)
        return
    below, dot, vlan = name.rpartition(".")
    if not dot or not vlan.isdecimal() or not 1 <= int(vlan) <= 4094:
        raise SystemFailure(f"invalid subinterface vlan name {name}, example formatting is eth0.10")
    lower = nl.link(below)
    if lower is None:
        raise SystemFailure(f"failed to find master interface {below} on the Docker host: Link not found")
    nl.set_link(nl.add_vlan(name, lower.index, int(vlan)), up=True)
    network.own_parent = True


def remove_parent(nl: Netlink, network: Network) -> None:
    """Take away what make_parent made."""
    if network.own_parent or not network.options.get("parent"):
        link = nl.link(parent_of(network))
        if link is not None:
            with contextlib.suppress(NetlinkError):
                nl.delete_link(link.index)
