"""A network and an endpoint, as the engine keeps and shows them."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine import durable
from longshore.engine.errors import EngineError, InvalidParameter

from .ipam import Address, Pool

if TYPE_CHECKING:
    from .firewall import PortRule

Json = dict[str, Any]

#: What Go's strconv.ParseBool takes.
TRUE = ("1", "t", "T", "TRUE", "true", "True")
FALSE = ("0", "f", "F", "FALSE", "false", "False")
#: The auxiliary address through which containers leave, in place of the bridge's own, by IP version.
GATEWAY_OF = "DefaultGatewayIPv{}"

_SAVED = (
    "id", "name", "driver", "created", "scope", "enable_ipv4", "enable_ipv6", "internal", "attachable", "config_only",
    "config_from", "options", "labels", "ipam_driver", "ipam_options", "ipam_config", "auto_ipv4", "auto_ipv6",
    "own_parent",
)  # fmt: skip


def _now() -> str:
    stamp = time.time_ns()
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stamp // 10**9))
    return f"{text}.{stamp % 10**9:09d}Z"


@dataclass(eq=False)
class Network:
    """One network; ipam_config is what the API shows, pools and gateways what is in force."""

    name: str
    driver: str
    id: str = field(default_factory=lambda: secrets.token_hex(32))
    created: str = field(default_factory=_now)
    scope: str = "local"
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    config_only: bool = False
    config_from: str = ""
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ipam_driver: str = "default"
    ipam_options: Json | None = None
    ipam_config: list[Json] = field(default_factory=list)
    auto_ipv4: bool = False
    auto_ipv6: bool = False
    pools: list[Pool] = field(default_factory=list)
    gateways: list[Address | None] = field(default_factory=list)
    own_parent: bool = False

    @property
    def predefined(self) -> bool:
        return self.name in ("bridge", "host", "none")

    @property
    def bridge(self) -> str:
        return self.options.get("com.docker.network.bridge.name") or "br-" + self.id[:12]

    def gateway_mode(self, version: int) -> str:
        """nat, nat-unprotected, routed or isolated: how an IP version of a bridge meets the world."""
        return self.options.get(f"com.docker.network.bridge.gateway_mode_ipv{version}") or "nat"

    def bridge_has_address(self, version: int) -> bool:
        """Whether the bridge itself has its gateway's address."""
        if version == 4 and self.options.get("com.docker.network.bridge.inhibit_ipv4", "").lower() in (
            "1",
            "t",
            "true",
        ):
            return False
        return self.gateway_mode(version) != "isolated"

    @property
    def binding_address(self) -> str:
        """The host's address that published ports get when none is named; "" for all."""
        address = self.options.get("com.docker.network.bridge.host_binding_ipv4", "")
        return "" if address == "0.0.0.0" else address

    def gateway(self, version: int) -> Address | None:
        """The address of an IP version through which containers leave; None where they do not."""
        if self.internal:
            return None
        for entry in self.ipam_config:
            other = (entry.get("AuxiliaryAddresses") or {}).get(GATEWAY_OF.format(version))
            if other:
                return ipaddress.ip_address(other)
        return next((g for g in self.gateways if g is not None and g.version == version), None)

    @property
    def mtu(self) -> int:
        return int(self.options.get("com.docker.network.driver.mtu") or 1500)

    @property
    def user_defined(self) -> bool:
        return not self.predefined

    def check_options(self) -> None:
        """Raises InvalidParameter for an option that the bridge driver cannot read."""
        for name in ("com.docker.network.driver.mtu",):
            text = self.options.get(name)
            if text is not None and not re.fullmatch(r"-?\d+", text):
                raise InvalidParameter(
                    f'failed to parse {name} value: {text} (strconv.Atoi: parsing "{text}": invalid syntax)'
                )
        for version in (4, 6):
            mode = self.gateway_mode(version)
            if mode not in ("nat", "nat-unprotected", "routed", "isolated"):
                raise InvalidParameter(f"unknown gateway mode {mode}")
        for name in ("enable_icc", "enable_ip_masquerade", "inhibit_ipv4", "default_bridge"):
            text = self.options.get(f"com.docker.network.bridge.{name}")
            if text is not None and text not in TRUE + FALSE:
                raise InvalidParameter(
                    f'failed to parse com.docker.network.bridge.{name} value: {text} (strconv.ParseBool: parsing "{text}": invalid syntax)'
                )

    def make_pools(self) -> None:
        """Pools and gateways from the configuration; the first address is the gateway where none is named."""
        self.pools, self.gateways = [], []
        for entry in self.ipam_config:
            subnet = ipaddress.ip_network(entry["Subnet"])
            within = ipaddress.ip_network(entry["IPRange"]) if entry.get("IPRange") else None
            pool = Pool(subnet, within)
            gateway: Address | None = None
            text = entry.get("Gateway")
            gateway = (
                ipaddress.ip_address(text.partition("/")[0])
                if text
                else (within or subnet)[1 if within is None or within.network_address == subnet.network_address else 0]
            )
            for extra in (entry.get("AuxiliaryAddresses") or {}).values():
                pool.reserve(ipaddress.ip_address(extra))
            try:
                pool.reserve(gateway)
            except EngineError:
                gateway = None
            self.pools.append(pool)
            self.gateways.append(gateway)

    def make_mac(self, endpoint: Endpoint) -> str:
        """02:42 and the address: a container that comes back with its address needs no new ARP."""
        ipv4 = endpoint.ipv4
        tail = ipaddress.ip_address(ipv4).packed if ipv4 else secrets.token_bytes(4)
        return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + tail)

    def save(self, folder: Path) -> None:
        data = orjson.dumps({name: getattr(self, name) for name in _SAVED})
        temporary = folder / f".{self.id}.new"
        temporary.write_bytes(data)
        os.replace(temporary, folder / f"{self.id}.json")

    def delete(self, folder: Path) -> None:
        durable.remove(folder / f"{self.id}.json")

    @classmethod
    def load(cls, file: Path) -> Network:
        """Read a record back. Raises ValueError or TypeError when it is damaged."""
        error: Exception = ValueError("no record")
        for data in durable.copies(file):
            try:
                return cls(**orjson.loads(data))
            except (ValueError, TypeError) as damaged:
                error = damaged
        raise error

    def show(self, endpoints: dict[str, Endpoint]) -> Json:
        """As inspect gives it."""
        shown_ipam = [
            {k: e[k] for k in ("Subnet", "IPRange", "Gateway", "AuxiliaryAddresses") if e.get(k)}
            for e in self.ipam_config
        ]
        return {
            "Name": self.name,
            "Id": self.id,
            "Created": self.created,
            "Scope": self.scope,
            "Driver": self.driver,
            "EnableIPv4": self.enable_ipv4,
            "EnableIPv6": self.enable_ipv6,
            "IPAM": {"Driver": self.ipam_driver, "Options": self.ipam_options, "Config": shown_ipam or None},
            "Internal": self.internal,
            "Attachable": self.attachable,
            "Ingress": False,
            "ConfigFrom": {"Network": self.config_from},
            "ConfigOnly": self.config_only,
            "Containers": {e.container: e.show() for e in endpoints.values()},
            "Options": self.options,
            "Labels": self.labels,
        }


@dataclass(eq=False)
class Endpoint:
    """A container's place in a network."""

    network: Network
    container: str
    name: str
    id: str = field(default_factory=lambda: secrets.token_hex(32))
    addresses: list[tuple[Address, int]] = field(default_factory=list)
    mac: str = ""
    interface: str = ""
    rules: list[PortRule] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sysctls: str = ""
    link_local: tuple[str, ...] = ()

    @property
    def ipv4(self) -> str:
        return next((str(a) for a, _ in self.addresses if a.version == 4), "")

    @property
    def ipv6(self) -> str:
        return next((str(a) for a, _ in self.addresses if a.version == 6), "")

    def fill(self, settings: Json) -> None:
        """Write the operational data into endpoint settings."""
        settings["NetworkID"] = self.network.id
        settings["EndpointID"] = self.id
        settings["MacAddress"] = self.mac
        gateways = {version: str(self.network.gateway(version) or "") for version in (4, 6)}
        for address, prefix in self.addresses:
            if address.version == 4:
                settings["IPAddress"], settings["IPPrefixLen"] = str(address), prefix
                settings["Gateway"] = gateways[4]
            else:
                settings["GlobalIPv6Address"], settings["GlobalIPv6PrefixLen"] = str(address), prefix
                settings["IPv6Gateway"] = gateways[6]

    def show(self) -> Json:
        """As a network's inspect lists it."""
        by_version = {a.version: f"{a}/{p}" for a, p in self.addresses}
        return {
            "Name": self.name,
            "EndpointID": self.id,
            "MacAddress": self.mac,
            "IPv4Address": by_version.get(4, ""),
            "IPv6Address": by_version.get(6, ""),
        }


def clear(settings: Json) -> None:
    """Take the operational data out of endpoint settings (the network's id stays)."""
    for name in ("EndpointID", "Gateway", "IPAddress", "IPv6Gateway", "GlobalIPv6Address"):
        settings[name] = ""
    settings["MacAddress"] = settings.get("_mac") or ""
    settings["IPPrefixLen"] = settings["GlobalIPv6PrefixLen"] = 0


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


def ipam_errors(config: list[Json], ipv6: bool) -> list[str]:
    """What is wrong with IPAM.Config, in dockerd's words."""
    problems = []
    for entry in config:
        text = entry.get("Subnet")
        if not text:
            continue
        try:
            subnet = ipaddress.ip_network(text, strict=False)
            if "/" not in text:
                raise ValueError(text)
        except ValueError:
            problems.append(f"invalid subnet {text}: invalid CIDR block notation")
            continue
        if (
            str(subnet) != str(ipaddress.ip_interface(text))
            and ipaddress.ip_interface(text).ip != subnet.network_address
        ):
            problems.append(f"invalid subnet {text}: it should be {subnet}")
        within = entry.get("IPRange")
        if within:
            try:
                inner = ipaddress.ip_network(within, strict=False)
                if inner.version != subnet.version or not inner.subnet_of(subnet):  # type: ignore[arg-type]
                    problems.append(f"invalid ip-range {within}: parent subnet {subnet} doesn't contain ip-range")
                elif inner.network_address != ipaddress.ip_interface(within).ip:
                    problems.append(f"invalid ip-range {within}: it should be {inner}")
            except ValueError:
                problems.append(f"invalid ip-range {within}: invalid CIDR block notation")
        addresses = [("gateway", entry.get("Gateway"))]
        addresses += [(f"auxiliary address {k}", v) for k, v in (entry.get("AuxiliaryAddresses") or {}).items()]
        for what, value in addresses:
            if not value:
                continue
            try:
                address = ipaddress.ip_address(value.partition("/")[0])
            except ValueError:
                problems.append(f"invalid {what} {value}: invalid address")
                continue
            if address not in subnet:
                problems.append(f"invalid {what} {value}: parent subnet {subnet} doesn't contain this address")
    return problems


def valid_mac(text: str) -> bool:
    return bool(
        re.fullmatch(
            r"([0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(\2[0-9a-fA-F]{2}){4})|([0-9a-fA-F]{4}(\.[0-9a-fA-F]{4}){2})", text
        )
    )


def check_endpoint(network: Network | None, mode_name: str, settings: Json) -> list[str]:
    """What is wrong with asked endpoint settings, in dockerd's words."""
    problems: list[str] = []
    asked = settings.get("IPAMConfig") or {}
    ipv4, ipv6 = asked.get("IPv4Address") or "", asked.get("IPv6Address") or ""
    if (ipv4 or ipv6) and mode_name in ("bridge", "host", "none", "default"):
        problems.append("user specified IP address is supported on user defined networks only")
    if settings.get("Aliases") and mode_name in ("bridge", "host", "none", "default"):
        problems.append("network-scoped aliases are only supported for user-defined networks")
    parsed: dict[int, Address | None] = {}
    for version, text in ((4, ipv4), (6, ipv6)):
        if not text:
            continue
        try:
            address: Address | None = ipaddress.ip_address(text)
            if address is not None and address.version != version:
                raise ValueError(text)
        except ValueError:
            problems.append(f"invalid IPv{version} address: {text}")
            address = None
        parsed[version] = address
    for link_local in asked.get("LinkLocalIPs") or []:
        try:
            ipaddress.ip_address(link_local)
        except ValueError:
            problems.append(f"invalid link-local IP address: {link_local}")
    if network is not None:
        for version, text in ((4, ipv4), (6, ipv6)):
            if not text:
                continue
            if network.auto_ipv4 if version == 4 else network.auto_ipv6:
                problems.append(
                    "user specified IP address is supported only when connecting to networks with user configured subnets"
                )
                continue
            address = parsed.get(version)
            if address is None or not any(address in p.subnet for p in network.pools if p.subnet.version == version):
                problems.append(f"no configured subnet or ip-range contain the IP address {text}")
    return problems
