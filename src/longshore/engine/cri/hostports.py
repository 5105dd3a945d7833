"""hostPort and the pods' way out: one nftables table an address family, one map element a port.

Ports of the node lead to pods; what a pod sends beyond the cluster's own ranges takes the node's address.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from longshore.engine.cri.records import Sandbox
from longshore.machinery.nftables import ChangeMonitor, Nftables, NftablesError
from longshore.wire.cri import cri

log = logging.getLogger("longshore.engine.cri.hostports")
_PROTOCOLS = {cri.TCP: "tcp", cri.UDP: "udp", cri.SCTP: "sctp"}


def ports_of(sandbox: Sandbox, ip: str) -> list[tuple[str, str, int, int]]:
    """(host address or "", protocol, host port, container port) of a sandbox's mappings for one of its addresses."""
    version = ipaddress.ip_address(ip).version
    found = []
    for mapping in sandbox.config.port_mappings:
        if mapping.host_port <= 0:
            continue
        host = mapping.host_ip
        if host:
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                continue
            if address.version != version:
                continue
            if address.is_unspecified:
                host = ""
        found.append((host, _PROTOCOLS.get(mapping.protocol, "tcp"), mapping.host_port, mapping.container_port))
    return found


class HostPorts:
    """The table of one engine. Calls block for a millisecond or two."""

    def __init__(self, table: str = "longshore_pods", *, cluster: Sequence[str] = ()) -> None:
        """table: its name. cluster: ranges to which pods keep their own address."""
        self.table = table
        self.cluster = list(cluster)
        self._nft: Nftables | None = None
        self._monitor: ChangeMonitor | None = None

    def watch(self, sandboxes: Callable[[], Iterable[Sandbox]], ranges: Callable[[], Iterable[Any]]) -> None:
        """Put the table back whenever somebody else takes of it (`nft flush ruleset`); on the running loop."""

        def repair() -> None:
            log.warning("the rules of host ports were changed by someone else; restoring them")
            try:
                self.rebuild(sandboxes(), ranges())
            except NftablesError as error:
                log.error("host ports cannot be restored: %s", error)

        if self._nft is None:
            self._nft = Nftables()
        self._monitor = ChangeMonitor({self.table}, repair, own_ports={self._nft.port}, removals_only=True)

    def close(self) -> None:
        """Stop watching; the table stays."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _run(self, text: str) -> None:
        if self._nft is None:
            self._nft = Nftables()
        self._nft.run(text)

    def rebuild(self, sandboxes: Iterable[Sandbox], ranges: Iterable[Any]) -> None:
        """Make the whole table anew, in one transaction. Raises NftablesError."""
        networks = list(ranges)
        held = [s for s in sandboxes if s.ready and s.ips]
        text = ""
        for version in (4, 6):
            own = [str(n) for n in networks if n.version == version]
            pods = [(s, ip) for s in held for ip in s.ips if ipaddress.ip_address(ip).version == version]
            if not own and not pods:
                continue
            text += self._family(version, own, pods)
        if text:
            self._run(text)

    def _family(self, version: int, own: list[str], pods: list[tuple[Sandbox, str]]) -> str:
        ip, kind, loop = ("ip", "ipv4_addr", "127.0.0.0/8") if version == 4 else ("ip6", "ipv6_addr", "::1")
        name = f"{ip} {self.table}"
        keep = own + [c for c in self.cluster if ipaddress.ip_network(c).version == version]
        anywhere, addressed, itself = self._elements(pods)
        masquerade = (
            f"{ip} saddr {{ {', '.join(own)} }} {ip} daddr != {{ {', '.join(dict.fromkeys(keep))} }} "
            "fib daddr type != local masquerade"
            if own
            else ""
        )
        lead = (
            f"fib daddr type local dnat {ip} to {ip} daddr . meta l4proto . th dport map @addressed\n"
            f"fib daddr type local dnat {ip} to meta l4proto . th dport map @anywhere\n"
        )
        return f"""
add table {name}
delete table {name}
table {name} {{
  map anywhere {{
    type inet_proto . inet_service : {kind} . inet_service
    {anywhere}
  }}
  map addressed {{
    type {kind} . inet_proto . inet_service : {kind} . inet_service
    {addressed}
  }}
  set itself {{
    type {kind} . {kind}
    {itself}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat - 1
    {lead}
  }}
  chain output {{
    type nat hook output priority -101
    {lead}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat - 1
    {ip} saddr . {ip} daddr @itself masquerade
    {ip} saddr {loop} oifname "pod*" masquerade
    {masquerade}
  }}
}}
"""

    def _elements(self, pods: list[tuple[Sandbox, str]]) -> tuple[str, str, str]:
        anywhere: dict[str, str] = {}
        addressed: dict[str, str] = {}
        itself: list[str] = []
        for sandbox, ip in pods:
            found = ports_of(sandbox, ip)
            for host, protocol, port, inner in found:
                if host:
                    addressed.setdefault(f"{host} . {protocol} . {port}", f"{ip} . {inner}")
                else:
                    anywhere.setdefault(f"{protocol} . {port}", f"{ip} . {inner}")
            if found:
                itself.append(f"{ip} . {ip}")

        def listing(items: list[str]) -> str:
            return f"elements = {{ {', '.join(items)} }}" if items else ""

        return (
            listing([f"{k} : {v}" for k, v in anywhere.items()]),
            listing([f"{k} : {v}" for k, v in addressed.items()]),
            listing(itself),
        )

    def change(self, sandbox: Sandbox, *, add: bool) -> None:
        """Add or take away one sandbox's ports; a port that is another's already stays his. Raises NftablesError."""
        for ip in sandbox.ips:
            family = "ip" if ipaddress.ip_address(ip).version == 4 else "ip6"
            found = ports_of(sandbox, ip)
            lines = [
                (f"addressed {{ {h} . {p} . {n}" if h else f"anywhere {{ {p} . {n}") + f" : {ip} . {c} }}"
                for h, p, n, c in found
            ]
            if found:
                lines.append(f"itself {{ {ip} . {ip} }}")
            for line in lines:
                try:
                    self._run(f"{'add' if add else 'delete'} element {family} {self.table} {line}")
                except NftablesError as error:
                    if add:
                        raise
                    if not error.missing:
                        log.warning("host port of %s: %s", sandbox.id, error)

    def purge(self) -> None:
        """Remove the tables."""
        for ip in ("ip", "ip6"):
            self._run(f"add table {ip} {self.table}\ndelete table {ip} {self.table}")
