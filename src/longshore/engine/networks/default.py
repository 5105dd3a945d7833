"""The default network, "bridge", as an administrator's daemon.json has it.

Source: dockerd's reference ("Daemon configuration file": bip, fixed-cidr, ipv6, default-gateway and their like).
"""

from __future__ import annotations

import ipaddress
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from longshore.engine.configuration import Configuration
from longshore.engine.errors import SystemFailure
from longshore.machinery.netlink import Netlink

from .model import GATEWAY_OF, Network

Json = dict[str, Any]
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
log = logging.getLogger("longshore.engine")
_LINK_LOCAL = ipaddress.ip_network("fe80::/64")

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
    have = [address for _, address in netlink.addresses(link.index)]
    for version, within in ((4, given.bridge_range), *(((6, given.bridge_range6),) if given.ipv6 else ())):
        inner = ipaddress.ip_interface(within) if within else None
        own = _own_address([address for address in have if address.version == version], inner)
        if own is not None and inner is not None and not _lies_in(inner, own):
            text = f"fixed-cidr{'-v6' if version == 6 else ''}={within} is outside any subnet implied by addresses on the user-managed default bridge"
            if version == 6:
                raise SystemFailure(text)
            log.warning("%s, this may be treated as an error in a future release", text)
            within = ""
        entry = _entry(str(own) if own is not None else "", within)
        if entry and own is None:
            entry["Gateway"] = str(ipaddress.ip_network(entry["Subnet"])[1])
        gateway = given.gateway if version == 4 else given.gateway6
        if gateway:
            entry["AuxiliaryAddresses"] = {GATEWAY_OF.format(version): gateway}
        if entry:
            found.append(entry)
    return found


def _own_address(have: Sequence[Interface], within: Interface | None) -> Interface | None:
    """The address of the bridge that its network is to have: one whose range holds the given one, else one in it.

    The kernel's own link-local address counts only where such a range is given. Source: moby daemon/daemon_unix.go, selectBIP.
    """
    if within is None or within.ip not in _LINK_LOCAL:
        have = [address for address in have if address.ip not in _LINK_LOCAL]
    if not have or within is None:
        return have[0] if have else None
    chosen = have[0]
    for address in have:
        if within.ip in address.network:
            return address
        if address.ip in within.network and chosen.ip not in within.network:
            chosen = address
    return chosen


def _lies_in(within: Interface, own: Interface) -> bool:
    return within.ip in own.network and within.network.prefixlen >= own.network.prefixlen


def forget_addresses(netlink: Netlink, network: Network, config: list[Json]) -> None:
    """Take addresses of an interface that is there already for ranges that the network has no more."""
    link = netlink.link(network.bridge)
    if link is None:
        return
    wanted = {ipaddress.ip_network(entry["Subnet"]) for entry in config if entry.get("Subnet")}
    for _, address in netlink.addresses(link.index):
        if address.network not in wanted and not address.ip.is_link_local:
            netlink.delete_address(link.index, address)
