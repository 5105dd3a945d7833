"""What is wrong with an asked network or endpoint, in dockerd's words.

Source: Docker Engine API, NetworkCreateRequest and EndpointSettings; the texts are dockerd's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from longshore.engine.errors import Forbidden, InvalidParameter, SystemFailure

from .model import FALSE, TRUE, Network
from .plugging import SYSCTLS

Json = dict[str, Any]

_BRIDGE = "com.docker.network.bridge."
_GATEWAY_MODES = ("nat", "nat-unprotected", "routed", "isolated")
_NOT_A_BOOLEAN = 'strconv.ParseBool: parsing "{}": invalid syntax'
_NOT_A_NUMBER = 'strconv.Atoi: parsing "{}": invalid syntax'
_ADVERTISED = "com.docker.network.advertise_addr_nmsgs"
_ADVERTISED_EVERY = "com.docker.network.advertise_addr_ms"
_LONGEST_INTERFACE = 15
_PREDEFINED_MODES = ("bridge", "host", "none", "default")


def joined(problems: Sequence[str]) -> str:
    """Several errors as Go's multierror shows them: a line each, with a bullet where there are more than one."""
    return "\n".join(f"* {problem}" if len(problems) > 1 else problem for problem in problems)


def enabled(body: Json, options: dict[str, str], version: int, otherwise: bool) -> bool:
    """Whether a new network has an IP version: by its own field, or by an option, which is taken out where the field says.

    Raises InvalidParameter for an option that is neither true nor false.
    """
    name = f"com.docker.network.enable_ipv{version}"
    asked = body.get(f"EnableIPv{version}")
    if asked is not None:
        options.pop(name, None)
        return bool(asked)
    text = options.get(name)
    if text is None:
        return otherwise
    if text not in TRUE + FALSE:
        raise InvalidParameter(f'driver-opt "{name}" is not a valid bool')
    return text in TRUE


# ---------------------------------------------------------------------- networks


def check_ipam(config: Sequence[Json], ipv6: bool) -> None:
    """Raises InvalidParameter for an IPAM.Config that cannot be. ipv6: whether the network has IPv6; if not, its IPv6
    subnets are passed over."""
    problems: list[str] = []
    for entry in config:
        text = entry.get("Subnet") or ""
        try:
            subnet = _prefix(text)
        except ValueError:
            problems.append(f"invalid subnet {text}: invalid CIDR block notation")
            continue
        if subnet.version == 6 and not ipv6:
            continue
        if subnet.ip != subnet.network.network_address:
            problems.append(f"invalid subnet {subnet}: it should be {subnet.network}")
        problems += _range_problems(entry.get("IPRange") or "", subnet)
        addresses = [(f"gateway {entry.get('Gateway')}", entry.get("Gateway"))]
        addresses += [(f"auxiliary address {k}", v) for k, v in (entry.get("AuxiliaryAddresses") or {}).items()]
        for what, value in addresses:
            problem = _address_problem(value or "", subnet)
            if problem:
                problems.append(f"invalid {what}: {problem}")
    if problems:
        raise InvalidParameter("invalid network config:\n" + joined(problems))


_Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def _prefix(text: str) -> _Interface:
    """ "10.0.0.1/8"; a mask in another form is none. Raises ValueError."""
    if not re.fullmatch(r"[^/%]+/[0-9]{1,3}", text):
        raise ValueError(text)
    return ipaddress.ip_interface(text)


def _range_problems(text: str, subnet: _Interface) -> list[str]:
    if not text:
        return []
    try:
        inner = _prefix(text)
    except ValueError:
        return [f"invalid ip-range {text}: invalid CIDR block notation"]
    if inner.version != subnet.version:
        return [f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"]
    problems = []
    if inner.network.prefixlen < subnet.network.prefixlen:
        problems.append(f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}")
    if inner.ip != inner.network.network_address:
        problems.append(f"invalid ip-range {inner}: it should be {inner.network}")
    if not subnet.network.overlaps(inner.network):
        problems.append(f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range")
    return problems


def _address_problem(text: str, subnet: _Interface) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "invalid address"
    if address.version != subnet.version:
        return f"parent subnet is an IPv{subnet.version} block"
    if address not in subnet.network:
        return f"parent subnet {subnet} doesn't contain this address"
    return ""


def check_template(network: Network, given: Json, driver_options: Json) -> None:
    """Raises Forbidden for settings that a configuration-only network, or one made from it, may not have.

    given: IPAM of the request; driver_options: its Options. Raises SystemFailure for intervals that cannot be.
    """
    if network.config_only and (network.internal or network.attachable or network.scope != ""):
        raise Forbidden(
            "configuration network can only contain network specific fields. Network operator fields like "
            "[ ingress | internal | attachable | scope ] are not supported."
        )
    if not network.config_from:
        _check_advertising(driver_options)
        return
    if network.config_only:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    own_ipam = given.get("Driver") not in (None, "", "default") or given.get("Options") or given.get("Config")
    if own_ipam or not network.enable_ipv4 or network.enable_ipv6 or network.labels:
        raise Forbidden(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    if driver_options:
        raise Forbidden("network driver options are not supported if the network depends on a configuration network")


def _check_advertising(options: Json) -> None:
    problems = []
    for name, low, high, kind in (
        (_ADVERTISED, 0, 3, "an integer"),
        (_ADVERTISED_EVERY, 100, 2000, "integer milliseconds"),
    ):
        text = options.get(name)
        if text is None:
            continue
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            problems.append(f'value for option {name} "{text}" must be {kind}')
        elif not low <= int(text) <= high:
            problems.append(f"{name} must be in the range {low} to {high}")
    if problems:
        raise SystemFailure("\n".join(problems))


def check_bridge_options(network: Network) -> None:
    """Raises InvalidParameter for an option that the bridge driver cannot read, SystemFailure for one out of place."""
    for name, text in network.options.items():
        reason = _option_problem(name, text)
        if reason:
            raise InvalidParameter(f"failed to parse {name} value: {text} ({reason})")
    if len(network.bridge.encode()) > _LONGEST_INTERFACE:
        raise SystemFailure("numerical result out of range")
    if "isolated" in (network.gateway_mode(4), network.gateway_mode(6)) and not network.internal:
        raise SystemFailure("gateway mode 'isolated' can only be used for an internal network")


def _option_problem(name: str, text: str) -> str:
    if name == "com.docker.network.driver.mtu":
        return "" if re.fullmatch(r"[+-]?[0-9]+", text) else _NOT_A_NUMBER.format(text)
    if name in (f"{_BRIDGE}gateway_mode_ipv4", f"{_BRIDGE}gateway_mode_ipv6"):
        return "" if text in _GATEWAY_MODES else f"unknown gateway mode {text}"
    if name in (f"{_BRIDGE}host_binding_ipv4", "com.docker.network.host_ipv4", "com.docker.network.host_ipv6"):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            return "nil ip"
    booleans = ("enable_icc", "enable_ip_masquerade", "inhibit_ipv4", "default_bridge")
    booleans_of_ours = (
        *(_BRIDGE + b for b in booleans),
        "com.docker.network.enable_ipv4",
        "com.docker.network.enable_ipv6",
    )
    if name in booleans_of_ours and text not in TRUE + FALSE:
        return _NOT_A_BOOLEAN.format(text)
    return ""


# ---------------------------------------------------------------------- endpoints


def valid_mac(text: str) -> bool:
    return bool(
        re.fullmatch(
            r"([0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(\2[0-9a-fA-F]{2}){4})|([0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2})", text
        )
    )


def check_endpoint(network: Network | None, mode_name: str, settings: Json) -> None:
    """Raises InvalidParameter for endpoint settings that cannot be. mode_name: the network as it was named."""
    mac = settings.get("MacAddress") or ""
    if mac and not valid_mac(mac):
        raise InvalidParameter(f"invalid MAC address {mac}")
    problems = _endpoint_problems(network, mode_name, settings)
    if problems:
        raise InvalidParameter("invalid endpoint settings:\n" + joined(problems))


def _endpoint_problems(network: Network | None, mode_name: str, settings: Json) -> list[str]:
    problems: list[str] = []
    asked = settings.get("IPAMConfig") or {}
    addresses = {4: asked.get("IPv4Address") or "", 6: asked.get("IPv6Address") or ""}
    if mode_name in _PREDEFINED_MODES:
        if any(addresses.values()):
            problems.append("user specified IP address is supported on user defined networks only")
        if settings.get("Aliases"):
            problems.append("network-scoped aliases are only supported for user-defined networks")
    parsed = {version: _endpoint_address(text) for version, text in addresses.items()}
    for version, text in addresses.items():
        address = parsed[version]
        if text and (address is None or address.version != version):
            problems.append(f"invalid IPv{version} address: {text}")
    for text in asked.get("LinkLocalIPs") or []:
        if _endpoint_address(text) is None:
            problems.append(f"invalid link-local IP address: {text}")
    if network is not None:
        for version, text in addresses.items():
            if text:
                problems += _static_problem(network, version, text, parsed[version])
    return problems + _sysctl_problems((settings.get("DriverOpts") or {}).get(SYSCTLS))


def _endpoint_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if address.is_unspecified else address


def _static_problem(network: Network, version: int, text: str, address: Any) -> list[str]:
    if not network.has_own_subnet(version):
        return ["user specified IP address is supported only when connecting to networks with user configured subnets"]
    if address is None or not any(address in pool.subnet for pool in network.pools if pool.subnet.version == version):
        return [f"no configured subnet or ip-range contain the IP address {text}"]
    return []


def _sysctl_problems(text: str | None) -> list[str]:
    problems = []
    for entry in [] if text is None else text.split(","):
        parts = entry.split(".", 4)
        if len(parts) != 5 or parts[1] not in ("ipv4", "ipv6", "mpls") or parts[3] not in ("IFNAME", "ifname"):
            problems.append(
                f"unrecognised network interface sysctl '{entry}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', "
                "'X' must be 'ipv4', 'ipv6' or 'mpls'"
            )
    return problems
