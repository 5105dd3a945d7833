"""Published ports, masquerading and isolation: an nftables table of the engine's own for IPv4 and one for IPv6, changed
element by element.

Ports are elements of maps (address . protocol . port to container address . port), so that a published port costs the same
among ten and among ten thousand, and none has a process. Container traffic from elsewhere reaches a bridge only when it was
translated or belongs to a connection. Source: nft(8).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longshore.machinery.nftables import ChangeMonitor, Nftables, NftablesError

if TYPE_CHECKING:
    from .model import Network


@dataclass(frozen=True, slots=True)
class PortRule:
    """One published port, of one family. host_ip "", 0.0.0.0 or :: - every address of the host. host_port 0: none; the
    container's own address and port are open to those that have a route to it."""

    protocol: str
    host_ip: str
    host_port: int
    container_ip: str
    container_port: int


@dataclass(frozen=True, slots=True)
class LinkRule:
    """A container that may reach a port of another though their bridge keeps containers apart (IPv4 addresses)."""

    source: str
    target: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class BridgeRule:
    """What a bridge needs: its subnet, whether its containers may talk to one another and to the outside, its gateway
    modes (see Network.gateway_mode), interfaces of the host whose packets may reach all its containers, the addresses of
    the host that outgoing connections get ("": that of the interface they leave through)."""

    bridge: str
    subnet: str
    icc: bool
    internal: bool
    masquerade: bool
    subnet6: str = ""
    mode: str = "nat"
    mode6: str = "nat"
    trusted: tuple[str, ...] = ()
    source: str = ""
    source6: str = ""

    @classmethod
    def of(cls, network: Network) -> BridgeRule:
        """What a bridge network's options say."""
        subnets = {version: _subnet(network, version) for version in (4, 6)}
        options = network.options
        return cls(
            network.bridge,
            subnets[4],
            options.get("com.docker.network.bridge.enable_icc", "true") != "false",
            network.internal,
            options.get("com.docker.network.bridge.enable_ip_masquerade", "true") != "false",
            subnets[6],
            network.gateway_mode(4),
            network.gateway_mode(6),
            tuple(filter(None, options.get("com.docker.network.bridge.trusted_host_interfaces", "").split(":"))),
            options.get("com.docker.network.host_ipv4", ""),
            options.get("com.docker.network.host_ipv6", ""),
        )


def _subnet(network: Network, version: int) -> str:
    return next((str(pool.subnet) for pool in network.pools if pool.subnet.version == version), "")


_ADDRESS = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _link(rule: LinkRule) -> str:
    return f"{rule.source} . {rule.target} . {rule.protocol} . {rule.port}"


class Firewall:
    """The tables `longshore_<name>` of the network namespace that the engine lives in."""

    def __init__(self, name: str = "engine") -> None:
        self._table = f"longshore_{name}"
        self._nft = Nftables()
        self._families = ("ip", "ip6") if os.path.exists("/proc/net/if_inet6") else ("ip",)

    def reset(self, bridges: Sequence[BridgeRule], ports: Sequence[PortRule], links: Sequence[LinkRule] = ()) -> None:
        """Write both tables in one transaction. Raises NftablesError."""
        text = [self._table_text(family) for family in self._families]
        text += [self._bridge_text(rule) for rule in bridges]
        text += [self._port_text(rule) for rule in ports if _family(rule.container_ip) in self._families]
        text += [f"add element ip {self._table} linked {{ {_link(rule)} }}" for rule in links]
        self._nft.run("\n".join(text))

    def _table_text(self, family: str) -> str:
        t = self._table
        address = _ADDRESS[family]
        return f"""table {family} {t}
delete table {family} {t}
table {family} {t} {{
  map ports {{ type {address} . inet_proto . inet_service : {address} . inet_service; }}
  map any_ports {{ type inet_proto . inet_service : {address} . inet_service; }}
  map into {{ type ifname : verdict; }}
  set open_ports {{ type {address} . inet_proto . inet_service; }}
  set bridges {{ type ifname; }}
  set linked {{ type {address} . {address} . inet_proto . inet_service; }}
  chain from_internal {{ }}
  chain masquerading {{ }}
  chain dnat_ports {{
    dnat {family} to {family} daddr . meta l4proto . th dport map @ports
    dnat {family} to meta l4proto . th dport map @any_ports
  }}
  chain loopback {{{self._loopback_rules(family)}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    meta l4proto {{ tcp, udp, sctp }} fib daddr type local jump dnat_ports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    {"ip6 daddr != ::1 " if family == "ip6" else ""}meta l4proto {{ tcp, udp, sctp }} fib daddr type local jump dnat_ports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct status dnat oifname @bridges fib saddr type local masquerade
    jump masquerading
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    jump from_internal
    oifname vmap @into
  }}
}}"""

    @staticmethod
    def _loopback_rules(family: str) -> str:
        """Bridges let the host's loopback addresses pass (route_localnet), for ports published there: nobody may come with one."""
        if family != "ip":
            return ""
        return """
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
    iifname != "lo" ip saddr 127.0.0.0/8 drop"""

    def _chain(self, bridge: str) -> str:
        return "into_" + hashlib.sha1(bridge.encode()).hexdigest()[:12]

    def _bridge_text(self, rule: BridgeRule) -> str:
        texts = [self._bridge_rules("ip", rule, rule.subnet, rule.mode, rule.source)]
        if rule.subnet6 and "ip6" in self._families:
            texts.append(self._bridge_rules("ip6", rule, rule.subnet6, rule.mode6, rule.source6))
        return "\n".join(texts)

    def _bridge_rules(self, family: str, rule: BridgeRule, subnet: str, mode: str, source: str) -> str:
        t, chain, bridge = self._table, self._chain(rule.bridge), f'"{rule.bridge}"'
        lines = [
            f"add set {family} {t} bridges {{ type ifname; }}",
            f"add element {family} {t} bridges {{ {bridge} }}",
            f"add chain {family} {t} {chain}",
        ]
        lines.append(
            f"add rule {family} {t} {chain} iifname {bridge} " + ("accept" if rule.icc else "ct status dnat accept")
        )
        if not rule.icc:
            lines.append(
                f"add rule {family} {t} {chain} iifname {bridge} "
                f"{family} saddr . {family} daddr . meta l4proto . th dport @linked accept"
            )
            lines.append(f"add rule {family} {t} {chain} iifname {bridge} drop")
        if not rule.internal:
            lines.append(f"add rule {family} {t} {chain} ct status dnat accept")
            lines += [f'add rule {family} {t} {chain} iifname "{name}" accept' for name in rule.trusted]
            if mode == "nat-unprotected":
                lines.append(f"add rule {family} {t} {chain} accept")
            elif mode == "routed":
                ping = "icmpv6" if family == "ip6" else "icmp"
                lines.append(
                    f"add set {family} {t} open_ports {{ type {_ADDRESS[family]} . inet_proto . inet_service; }}"
                )
                lines.append(f"add rule {family} {t} {chain} meta l4proto {ping} accept")
                lines.append(
                    f"add rule {family} {t} {chain} {family} daddr . meta l4proto . th dport @open_ports accept"
                )
        lines.append(f"add rule {family} {t} {chain} drop")
        lines.append(f"add element {family} {t} into {{ {bridge} : jump {chain} }}")
        if rule.internal:
            lines.append(f"add rule {family} {t} from_internal iifname {bridge} oifname != {bridge} drop")
        if subnet:
            # A container that reaches itself or a neighbour through the host's port must see the answer come back.
            lines.append(
                f"add rule {family} {t} masquerading {family} saddr {subnet} oifname {bridge} ct status dnat masquerade"
            )
            if rule.masquerade and not rule.internal and mode != "routed":
                outgoing = f"snat {family} to {source}" if source else "masquerade"
                lines.append(
                    f"add rule {family} {t} masquerading {family} saddr {subnet} oifname != {bridge} {outgoing}"
                )
        return "\n".join(lines)

    def add_bridge(self, rule: BridgeRule) -> None:
        """Rules for a further bridge. Raises NftablesError."""
        self._nft.run(self._bridge_text(rule))

    def _element(self, rule: PortRule) -> tuple[str, str, str]:
        target = f"{rule.container_ip} . {rule.container_port}"
        if not rule.host_port:
            return "open_ports", f"{rule.container_ip} . {rule.protocol} . {rule.container_port}", ""
        if rule.host_ip in ("", "0.0.0.0", "::"):
            return "any_ports", f"{rule.protocol} . {rule.host_port}", target
        return "ports", f"{rule.host_ip} . {rule.protocol} . {rule.host_port}", target

    def _port_text(self, rule: PortRule) -> str:
        name, key, target = self._element(rule)
        if target:
            key += f" : {target}"
        return f"add element {_family(rule.container_ip)} {self._table} {name} {{ {key} }}"

    def add_ports(self, rules: Sequence[PortRule]) -> None:
        """Publish ports, all or none. Raises NftablesError."""
        rules = [rule for rule in rules if _family(rule.container_ip) in self._families]
        if rules:
            self._nft.run("\n".join(self._port_text(rule) for rule in rules))

    def remove_ports(self, rules: Sequence[PortRule]) -> None:
        """Withdraw ports; what is gone already is left."""
        for rule in rules:
            name, key, _ = self._element(rule)
            with contextlib.suppress(NftablesError):
                self._nft.run(f"delete element {_family(rule.container_ip)} {self._table} {name} {{ {key} }}")

    def add_links(self, rules: Sequence[LinkRule]) -> None:
        """Let linked containers through. Raises NftablesError."""
        if rules:
            self._nft.run("\n".join(f"add element ip {self._table} linked {{ {_link(rule)} }}" for rule in rules))

    def remove_links(self, rules: Sequence[LinkRule]) -> None:
        """Withdraw links; what is gone already is left."""
        for rule in rules:
            with contextlib.suppress(NftablesError):
                self._nft.run(f"delete element ip {self._table} linked {{ {_link(rule)} }}")

    def watch(self, changed: Callable[[], None]) -> ChangeMonitor:
        """Call on the running loop when somebody else has taken of the tables (`nft flush ruleset`)."""
        return ChangeMonitor({self._table}, changed, own_ports={self._nft.port}, removals_only=True)

    def remove(self) -> None:
        """Take the tables away."""
        for family in self._families:
            with contextlib.suppress(NftablesError):
                self._nft.run(f"delete table {family} {self._table}")

    def close(self) -> None:
        self._nft.close()
