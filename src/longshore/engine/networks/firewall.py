"""Published ports, masquerading and isolation: one nftables table of the engine's own, changed element by element.

Ports are elements of maps (address . protocol . port to container address . port), so that a published port costs the same
among ten and among ten thousand, and none has a process. Container traffic from elsewhere reaches a bridge only when it was
translated or belongs to a connection. Source: nft(8).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from longshore.machinery.nftables import Nftables, NftablesError


@dataclass(frozen=True, slots=True)
class PortRule:
    """One published port. host_ip "" or 0.0.0.0: every address of the host."""

    protocol: str
    host_ip: str
    host_port: int
    container_ip: str
    container_port: int


@dataclass(frozen=True, slots=True)
class BridgeRule:
    """What a bridge needs: its subnet, whether its containers may talk to one another and to the outside."""

    bridge: str
    subnet: str
    icc: bool
    internal: bool
    masquerade: bool


class Firewall:
    """The table `longshore_<name>` of the network namespace that the engine lives in."""

    def __init__(self, name: str = "engine") -> None:
        self._table = f"longshore_{name}"
        self._nft = Nftables()

    def reset(self, bridges: Sequence[BridgeRule], ports: Sequence[PortRule]) -> None:
        """Write the whole table in one transaction. Raises NftablesError."""
        t = self._table
        text = [
            f"table ip {t}\ndelete table ip {t}",
            f"""table ip {t} {{
  map ports {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map any_ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map into {{ type ifname : verdict; }}
  set bridges {{ type ifname; }}
  chain from_internal {{ }}
  chain masquerading {{ }}
  chain dnat_ports {{
    dnat ip to ip daddr . meta l4proto . th dport map @ports
    dnat ip to meta l4proto . th dport map @any_ports
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    meta l4proto {{ tcp, udp, sctp }} fib daddr type local jump dnat_ports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    meta l4proto {{ tcp, udp, sctp }} fib daddr type local jump dnat_ports
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
}}""",
        ]
        text += [self._bridge_text(rule) for rule in bridges]
        text += [self._port_text(rule) for rule in ports]
        self._nft.run("\n".join(text))

    def _chain(self, bridge: str) -> str:
        return "into_" + hashlib.sha1(bridge.encode()).hexdigest()[:12]

    def _bridge_text(self, rule: BridgeRule) -> str:
        t, chain, bridge = self._table, self._chain(rule.bridge), f'"{rule.bridge}"'
        lines = [
            f"add set ip {t} bridges {{ type ifname; }}",
            f"add element ip {t} bridges {{ {bridge} }}",
            f"add chain ip {t} {chain}",
        ]
        lines.append(f"add rule ip {t} {chain} iifname {bridge} " + ("accept" if rule.icc else "ct status dnat accept"))
        if not rule.icc:
            lines.append(f"add rule ip {t} {chain} iifname {bridge} drop")
        if not rule.internal:
            lines.append(f"add rule ip {t} {chain} ct status dnat accept")
        lines.append(f"add rule ip {t} {chain} drop")
        lines.append(f"add element ip {t} into {{ {bridge} : jump {chain} }}")
        if rule.internal:
            lines.append(f"add rule ip {t} from_internal iifname {bridge} oifname != {bridge} drop")
        if rule.subnet:
            # A container that reaches itself or a neighbour through the host's port must see the answer come back.
            lines.append(
                f"add rule ip {t} masquerading ip saddr {rule.subnet} oifname {bridge} ct status dnat masquerade"
            )
            if rule.masquerade and not rule.internal:
                lines.append(f"add rule ip {t} masquerading ip saddr {rule.subnet} oifname != {bridge} masquerade")
        return "\n".join(lines)

    def add_bridge(self, rule: BridgeRule) -> None:
        """Rules for a further bridge. Raises NftablesError."""
        self._nft.run(self._bridge_text(rule))

    def _element(self, rule: PortRule) -> tuple[str, str, str]:
        target = f"{rule.container_ip} . {rule.container_port}"
        if rule.host_ip in ("", "0.0.0.0"):
            return "any_ports", f"{rule.protocol} . {rule.host_port}", target
        return "ports", f"{rule.host_ip} . {rule.protocol} . {rule.host_port}", target

    def _port_text(self, rule: PortRule) -> str:
        name, key, target = self._element(rule)
        return f"add element ip {self._table} {name} {{ {key} : {target} }}"

    def add_ports(self, rules: Sequence[PortRule]) -> None:
        """Publish ports, all or none. Raises NftablesError."""
        if rules:
            self._nft.run("\n".join(self._port_text(rule) for rule in rules))

    def remove_ports(self, rules: Sequence[PortRule]) -> None:
        """Withdraw ports; what is gone already is left."""
        for rule in rules:
            name, key, _ = self._element(rule)
            with contextlib.suppress(NftablesError):
                self._nft.run(f"delete element ip {self._table} {name} {{ {key} }}")

    def remove(self) -> None:
        """Take the whole table away."""
        with contextlib.suppress(NftablesError):
            self._nft.run(f"delete table ip {self._table}")

    def close(self) -> None:
        self._nft.close()
