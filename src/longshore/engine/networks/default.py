"""The default network, "bridge", as an administrator's daemon.json has it.

Source: dockerd's reference ("Daemon configuration file": bip, fixed-cidr, ipv6, default-gateway and their like).
"""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

from longshore.engine.configuration import Configuration
from longshore.engine.errors import SystemFailure
from longshore.machinery.netlink import Netlink

from .model import GATEWAY_OF, Network

Json = dict[str, Any]

#: daemon.json's "bridge" where there is to be no default network.
NO_BRIDGE = "none"


def free_bridge_name(netlink: Netlink) -> str:
    """docker0 as scripts and firewalls know it, unless a dockerd or another engine beside this one owns it."""
    names = itertools.chain(["docker0"], (f"longshore{number}" for number in itertools.count()))
    return next(name for name in names if netlink.link(name) is None)


def options(given: Configuration, bridge: str) -> dict[str, str]:
    """The network's options, as inspect shows them."""
    return {
        "com.docker.network.bridge.default_bridge": "true",
        "com.docker.network.bridge.enable_icc": str(given.icc).lower(),
        "com.docker.network.bridge.enable_ip_masquerade": str(given.masquerade).lower(),
        "com.docker.network.bridge.host_binding_ipv4": given.binding_address or "0.0.0.0",
        "com.docker.network.bridge.name": bridge,
        "com.docker.network.driver.mtu": str(given.mtu or 1500),
    }


def subnets(given: Configuration, kept: list[Json]) -> list[Json]:
    """The network's IPAM.Config: what the settings name, and of a family of which they name nothing what was there before.

    A family without an entry gets a subnet of the address pools.
    """
    before = {6 if ":" in entry["Subnet"] else 4: entry for entry in kept}
    asked = {4: (given.bridge_address, given.bridge_range, given.gateway)}
    if given.ipv6:
        asked[6] = (given.bridge_address6, given.bridge_range6, given.gateway6)
    result = []
    for version, (address, within, gateway) in asked.items():
        entry = _entry(address, within) or dict(before.get(version) or {})
        entry.pop("AuxiliaryAddresses", None)
        if gateway:
            entry["AuxiliaryAddresses"] = {GATEWAY_OF.format(version): gateway}
        if entry:
            result.append(entry)
    return result


def _entry(address: str, within: str) -> Json:
    entry: Json = {}
    if address:
        own = ipaddress.ip_interface(address)
        entry = {"Subnet": str(own.network), "Gateway": str(own.ip)}
    if within:
        inner = ipaddress.ip_interface(within).network
        entry.setdefault("Subnet", str(inner))
        entry["IPRange"] = str(inner)
    return entry


def adopted(netlink: Netlink, bridge: str, given: Configuration) -> list[Json]:
    """The network's IPAM.Config on an interface that is there already, from its addresses. Raises SystemFailure."""
    link = netlink.link(bridge)
    if link is None:
        raise SystemFailure(
            f'error creating default "bridge" network: bridge device with non default name {bridge} must be created manually'
        )
    found = []
    for version, within in ((4, given.bridge_range), *(((6, given.bridge_range6),) if given.ipv6 else ())):
        own = next(
            (a for _, a in netlink.addresses(link.index) if a.version == version and not a.ip.is_link_local), None
        )
        entry = _entry(str(own) if own is not None else "", within)
        gateway = given.gateway if version == 4 else given.gateway6
        if gateway:
            entry["AuxiliaryAddresses"] = {GATEWAY_OF.format(version): gateway}
        if entry:
            found.append(entry)
    return found


def forget_addresses(netlink: Netlink, network: Network, config: list[Json]) -> None:
    """Take addresses of an interface that is there already for ranges that the network has no more."""
    link = netlink.link(network.bridge)
    if link is None:
        return
    wanted = {ipaddress.ip_network(entry["Subnet"]) for entry in config if entry.get("Subnet")}
    for _, address in netlink.addresses(link.index):
        if address.network not in wanted and not address.ip.is_link_local:
            netlink.delete_address(link.index, address)
