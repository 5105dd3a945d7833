"""A network and an endpoint, as the engine keeps and shows them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine import durable
from longshore.engine.errors import EngineError, InvalidParameter, SystemFailure

from .ipam import Address, Pool

if TYPE_CHECKING:
    from .firewall import LinkRule, PortRule

Json = dict[str, Any]

#: What Go's strconv.ParseBool takes.
TRUE = ("1", "t", "T", "TRUE", "true", "True")
FALSE = ("0", "f", "F", "FALSE", "false", "False")
#: The auxiliary address through which containers leave, in place of the bridge's own, by IP version.
GATEWAY_OF = "DefaultGatewayIPv{}"

_SAVED = (
    "id", "name", "driver", "created", "scope", "enable_ipv4", "enable_ipv6", "internal", "attachable", "config_only",
    "config_from", "options", "labels", "ipam_driver", "ipam_options", "ipam_config", "auto_ipv4", "auto_ipv6",
    "own_parent", "own_bridge",
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
    own_bridge: bool = True

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
        if version == 4 and self._is_true("com.docker.network.bridge.inhibit_ipv4"):
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

    def needs_gateway(self, version: int) -> bool:
        """Whether an address of the subnet is the gateway's though none was asked for."""
        if self.driver == "bridge":
            inhibited = self.internal and version == 4 and self._is_true("com.docker.network.bridge.inhibit_ipv4")
            return self.gateway_mode(version) != "isolated" and not inhibited
        return not self.internal and not self.options.get("ipvlan_mode", "").startswith("l3")

    def _is_true(self, option: str) -> bool:
        return self.options.get(option, "") in TRUE

    def has_own_subnet(self, version: int) -> bool:
        """Whether the subnet was asked for, so that containers may ask for addresses of it."""
        if self.auto_ipv4 if version == 4 else self.auto_ipv6:
            return False
        return any((6 if ":" in entry["Subnet"] else 4) == version for entry in self.ipam_config)

    def make_pools(self) -> None:
        """Pools and gateways from the configuration; the first address is the gateway where none is named.

        Raises SystemFailure when two of the named addresses are the same, or one is no host's.
        """
        self.pools, self.gateways = [], []
        for entry in self.ipam_config:
            subnet = ipaddress.ip_network(entry["Subnet"])
            if not (self.enable_ipv4 if subnet.version == 4 else self.enable_ipv6):
                continue
            within = ipaddress.ip_network(entry["IPRange"]) if entry.get("IPRange") else None
            pool = Pool(subnet, within)
            text = entry.get("Gateway") or ""
            gateway: Address | None = None
            try:
                if text:
                    gateway = ipaddress.ip_address(text.partition("/")[0])
                    pool.reserve(gateway)
                elif self.needs_gateway(subnet.version):
                    gateway = pool.allocate()
            except EngineError as error:
                raise SystemFailure(f"failed to allocate gateway ({text}): {error.message}") from None
            for name, extra in (entry.get("AuxiliaryAddresses") or {}).items():
                try:
                    pool.reserve(ipaddress.ip_address(extra))
                except EngineError as error:
                    raise SystemFailure(
                        f"failed to allocate secondary ip address ({name}:{extra}): {error.message}"
                    ) from None
            self.pools.append(pool)
            self.gateways.append(gateway)

    def take_address(self, version: int, asked: str = "") -> tuple[Address, int]:
        """An address of the network and its prefix length: the next free one, or a certain one.

        Raises Forbidden when that is taken, InvalidParameter when it is outside, SystemFailure when none is free.
        """
        pools = [pool for pool in self.pools if pool.subnet.version == version]
        if asked:
            address = ipaddress.ip_address(asked)
            pool = next((pool for pool in pools if address in pool.subnet), None)
            if pool is None:
                raise InvalidParameter(f"invalid address {asked}: It does not belong to any of this network's subnets")
            pool.reserve(address)
            return address, pool.subnet.prefixlen
        for pool in pools:
            with contextlib.suppress(SystemFailure):
                return pool.allocate(), pool.subnet.prefixlen
        raise SystemFailure(
            f"no available IPv{version} addresses on this network's address pools: {self.name} ({self.id})"
        )

    def make_mac(self, endpoint: Endpoint) -> str:
        """02:42 and the address: a container that comes back with its address needs no new ARP."""
        ipv4 = endpoint.ipv4
        tail = ipaddress.ip_address(ipv4).packed if ipv4 else secrets.token_bytes(4)
        return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + tail)

    def _record(self) -> bytes:
        return orjson.dumps({name: getattr(self, name) for name in _SAVED})

    def save(self, folder: Path) -> None:
        """Replace the record."""
        temporary = folder / f".{self.id}.new"
        temporary.write_bytes(self._record())
        os.replace(temporary, folder / f"{self.id}.json")

    def begin(self, folder: Path) -> None:
        """Write down that the network is being made: a killed engine finds what it left. `save` or `abandon` ends it."""
        (folder / f".{self.id}.new").write_bytes(self._record())

    def abandon(self, folder: Path) -> None:
        """Forget a network that was begun."""
        (folder / f".{self.id}.new").unlink(missing_ok=True)

    @classmethod
    def begun(cls, folder: Path) -> Iterator[Network]:
        """The networks whose making was cut short."""
        for file in folder.glob(".*.new"):
            try:
                network = cls(**orjson.loads(file.read_bytes()))
                network.make_pools()
            except (ValueError, TypeError, KeyError, EngineError):
                file.unlink(missing_ok=True)
                continue
            if (folder / f"{network.id}.json").exists():
                file.unlink()
            else:
                yield network

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
    links: list[LinkRule] = field(default_factory=list)
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
