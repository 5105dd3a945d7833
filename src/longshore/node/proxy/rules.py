"""What a Service is in nftables: elements of maps and, per number of endpoints, a chain. Pure.

A connection's destination is looked up in `service-ips` (address . protocol . port) or `service-nodeports` (protocol .
port), whose verdict names a chain for the number of endpoints; that chain draws a number below it and finds the endpoint in
one map (per protocol, because nft ties a port's type to it) keyed by destination and number. So the work of a change does
not grow with the number of Services, and chains are few: one for each number of endpoints that occurs. Services with
session affinity have a map and chains of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longshore.machinery.ruleset import Element, Rules, RuleSet
from longshore.node.proxy.service import Endpoint, ServicePort
from longshore.node.proxy.topology import Choice

MASQUERADE_MARK = 0x4000
LOCAL_OFFSET = 1 << 16
"""Numbers from here on in the endpoint maps are endpoints of this node, for external policy Local."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The words of one IP family, and what the node is: pod_cidrs and service_cidrs of this family."""

    family: int
    pod_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()

    @property
    def ip(self) -> str:
        return "ip" if self.family == 4 else "ip6"

    @property
    def address(self) -> str:
        return "ipv4_addr" if self.family == 4 else "ipv6_addr"

    @property
    def by_address(self) -> str:
        return f"{self.ip} daddr . meta l4proto . th dport"

    @property
    def by_port(self) -> str:
        return "meta l4proto . th dport"


def render(port: ServicePort, choice: Choice, dialect: Dialect) -> Rules:
    """The rules of one port of a Service."""
    rules = Rules(lasting=not port.affinity)
    key = f"{port.cluster_ip} . {port.protocol} . {port.port}"
    rules.elements.add(Element("cluster-ips", port.cluster_ip))
    for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
        rules.elements.add(Element("service-addresses", address))
    for endpoint in (*choice.cluster, *choice.local):
        if endpoint.local:
            rules.elements.add(Element("hairpin", f"{endpoint.address} . {endpoint.address}"))
    internal = choice.local if port.internal_local else choice.cluster
    writer = _Writer(rules, port, dialect)
    if internal:
        writer.destination(key, "cluster", internal, [], nodeport=False)
    else:
        verdict = "drop" if choice.any else "goto reject-connection"
        rules.elements.add(Element("no-endpoint-services", key, verdict))
    local = choice.local if port.external_local else []
    external = [
        f"{a} . {port.protocol} . {port.port}" for a in dict.fromkeys((*port.external_ips, *port.load_balancer_ips))
    ]
    nodeport = f"{port.protocol} . {port.node_port}"
    if choice.cluster or local:
        kind = "local" if port.external_local else "external"
        for address in external:
            writer.destination(address, kind, choice.cluster, local, nodeport=False)
        if port.node_port:
            writer.destination(nodeport, kind, choice.cluster, local, nodeport=True)
    if not choice.cluster or (port.external_local and not local):
        verdict = "drop" if choice.any else "goto reject-connection"
        rules.elements.update(Element("no-endpoint-services", address, verdict) for address in external)
        if port.node_port:
            rules.elements.add(Element("no-endpoint-nodeports", nodeport, verdict))
    if port.source_ranges is not None:
        for address in port.load_balancer_ips:
            guarded = f"{address} . {port.protocol} . {port.port}"
            rules.elements.add(Element("guarded", guarded))
            if port.source_ranges:
                rules.elements.add(Element("source-ranges", guarded, " ".join(port.source_ranges)))
    return rules


class _Writer:
    """Elements and chains of one port's destinations."""

    def __init__(self, rules: Rules, port: ServicePort, dialect: Dialect) -> None:
        self.rules = rules
        self.port = port
        self.dialect = dialect
        self.affinity = ""
        if port.affinity:
            words = "/".join((*port.name, str(port.affinity)))
            self.affinity = hashlib.sha256(words.encode()).hexdigest()[:12]

    def destination(
        self, key: str, kind: str, cluster: Sequence[Endpoint], local: Sequence[Endpoint], *, nodeport: bool
    ) -> None:
        """An address (or node port) and where its connections go."""
        elements = self.rules.elements
        protocol = self.port.protocol
        endpoints = f"nodeport-endpoints-{protocol}" if nodeport else f"endpoints-{protocol}"
        target = key.replace(f"{protocol} . ", "", 1)
        for offset, chosen in ((0, cluster), (LOCAL_OFFSET, local)):
            elements.update(
                Element(endpoints, f"{target} . {offset + place}", f"{e.address} . {e.port}")
                for place, e in enumerate(chosen)
            )
        services = "service-nodeports" if nodeport else "service-ips"
        chain = self._chain(kind, len(cluster), len(local), (*cluster, *local), nodeport)
        elements.add(Element(services, key, f"goto {chain}"))
        if self.affinity:
            remember = self._remember((*cluster, *local))
            elements.add(Element("remember-nodeports" if nodeport else "remember-ips", key, f"goto {remember}"))

    def _chain(self, kind: str, cluster: int, local: int, endpoints: Iterable[Endpoint], nodeport: bool) -> str:
        ports = sorted({e.port for e in endpoints})
        pick = self._pick(cluster, 0, ports, nodeport) if cluster else ""
        name = f"{kind}-{self._words(nodeport)}{cluster}"
        masquerade = "jump mark-for-masquerade"
        away = (
            f"{self.dialect.ip} saddr != {{ {', '.join(self.dialect.pod_cidrs)} }} " if self.dialect.pod_cidrs else ""
        )
        body: tuple[str, ...]
        if kind == "cluster":
            if not away:
                return pick
            body = (f"{away}{masquerade}", f"goto {pick}")
        elif kind == "external":
            body = (masquerade, f"goto {pick}")
        else:
            # Policy Local is for clients outside: pods and the node itself reach every endpoint.
            name += f"-of-{local}"
            words: list[str] = []
            if pick:
                if self.dialect.pod_cidrs:
                    words.append(f"{self.dialect.ip} saddr {{ {', '.join(self.dialect.pod_cidrs)} }} goto {pick}")
                words.append(f"fib saddr type local {masquerade}")
                words.append(f"fib saddr type local goto {pick}")
            if local:
                words.append(f"goto {self._pick(local, LOCAL_OFFSET, ports, nodeport)}")
            body = tuple(words)
        return self._add(name, body, ports)

    def _pick(self, count: int, offset: int, ports: Sequence[int], nodeport: bool) -> str:
        protocol = self.port.protocol
        key = f"{protocol} dport" if nodeport else f"{self.dialect.ip} daddr . {protocol} dport"
        endpoints = f"nodeport-endpoints-{protocol}" if nodeport else f"endpoints-{protocol}"
        start = f" offset {offset}" if offset else ""
        rules = [f"dnat to {key} . numgen random mod {count}{start} map @{endpoints}"]
        if self.affinity:
            for port in ports:
                name = self._affinity_map(port)
                known = f"meta l4proto {self.port.protocol} dnat to {self.dialect.ip} saddr map @{name} : {port}"
                rules.insert(-1, known)
        return self._add(f"pick-{self._words(nodeport)}{'local-' if offset else ''}{count}", tuple(rules), ports)

    def _words(self, nodeport: bool) -> str:
        return f"{self.port.protocol}-{'node-' if nodeport else ''}"

    def _affinity_map(self, port: int) -> str:
        name = f"affinity-{self.affinity}-{port}"
        address = self.dialect.address
        self.rules.sets[name] = (
            f"map {{ type {address} : {address}; flags dynamic,timeout; timeout {self.port.affinity}s; size 65535; }}"
        )
        return name

    def _remember(self, endpoints: Iterable[Endpoint]) -> str:
        ip = self.dialect.ip
        ports = sorted({e.port for e in endpoints})
        return self._add(
            "remember",
            tuple(
                f"th dport {port} update @{self._affinity_map(port)} {{ ct original {ip} saddr : {ip} daddr }}"
                for port in ports
            ),
            ports,
        )

    def _add(self, name: str, rules: tuple[str, ...], ports: Sequence[int]) -> str:
        if self.affinity:
            # A chain of this Service alone; its name says what is in it, so that a chain never changes.
            name = f"{name}-{self.affinity}-{'-'.join(map(str, ports[:8]))}"
            if len(ports) > 8:
                name += "-" + hashlib.sha256(repr(ports).encode()).hexdigest()[:8]
        self.rules.chains[name] = rules
        return name


def rule_set(table: str, dialect: Dialect) -> RuleSet:
    """An empty table of one IP family."""
    return RuleSet(
        dialect.ip,
        table,
        table_text(table, dialect),
        anchors=("nat-prerouting", "nat-output", "services"),
        ranges=("source-ranges",),
    )


def table_text(name: str, dialect: Dialect) -> str:
    """The table with everything that does not depend on any Service."""
    ip, address = dialect.ip, dialect.address
    key = f"{address} . inet_proto . inet_service"
    mark = f"{MASQUERADE_MARK:#x}"
    numbered = "numgen random mod 4294967295"
    endpoints = "\n  ".join(
        f"map endpoints-{p} {{ typeof {ip} daddr . {p} dport . {numbered} : {ip} daddr . {p} dport; }}\n"
        f"  map nodeport-endpoints-{p} {{ typeof {p} dport . {numbered} : {ip} daddr . {p} dport; }}"
        for p in ("tcp", "udp", "sctp")
    )
    unallocated = f"{ip} daddr {{ {', '.join(dialect.service_cidrs)} }} drop" if dialect.service_cidrs else ""
    original = [
        f"ct state new ct status dnat meta l4proto {p} ct original {ip} daddr . meta l4proto . ct original proto-dst "
        f"vmap @remember-ips"
        for p in ("tcp", "udp", "sctp")
    ] + [
        f"ct state new ct status dnat ct original {ip} daddr != @service-addresses meta l4proto {p} "
        f"meta l4proto . ct original proto-dst vmap @remember-nodeports"
        for p in ("tcp", "udp", "sctp")
    ]
    remember = "\n    ".join(original)
    martian = "iif != lo ip daddr 127.0.0.0/8 drop" if dialect.family == 4 else ""
    return f"""table {ip} {name} {{
  comment "Services, by Longshore's kube-proxy"
  map service-ips {{ type {key} : verdict; }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; }}
  {endpoints}
  map no-endpoint-services {{ type {key} : verdict; }}
  map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
  map remember-ips {{ type {key} : verdict; }}
  map remember-nodeports {{ type inet_proto . inet_service : verdict; }}
  set cluster-ips {{ type {address}; }}
  set service-addresses {{ type {address}; }}
  set hairpin {{ type {address} . {address}; }}
  set guarded {{ type {key}; }}
  set source-ranges {{ type {key} . {address}; flags interval; }}
  chain mark-for-masquerade {{
    meta mark set meta mark or {mark}
  }}
  chain reject-connection {{
    reject
  }}
  chain services {{
    {dialect.by_address} vmap @service-ips
    fib daddr type local {dialect.by_port} vmap @service-nodeports
  }}
  chain endpoints-check {{
    {dialect.by_address} vmap @no-endpoint-services
    fib daddr type local {dialect.by_port} vmap @no-endpoint-nodeports
  }}
  chain cluster-ips-check {{
    fib daddr type local return
    {ip} daddr @cluster-ips reject
    {unallocated}
  }}
  chain source-check {{
    {dialect.by_address} @guarded {dialect.by_address} . {ip} saddr != @source-ranges drop
  }}
  chain remember {{
    {remember}
  }}
  chain raw-prerouting {{
    type filter hook prerouting priority raw; policy accept;
    {martian}
  }}
  chain filter-prerouting {{
    type filter hook prerouting priority dstnat - 10; policy accept;
    ct state new jump source-check
  }}
  chain filter-input {{
    type filter hook input priority -110; policy accept;
    ct state new jump endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority -110; policy accept;
    ct state new jump endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-output {{
    type filter hook output priority -110; policy accept;
    ct state new jump source-check
  }}
  chain filter-output-after {{
    type filter hook output priority -90; policy accept;
    ct state new jump endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain remember-postrouting {{
    type filter hook postrouting priority srcnat - 10; policy accept;
    jump remember
  }}
  chain remember-input {{
    type filter hook input priority -100; policy accept;
    jump remember
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    {ip} saddr . {ip} daddr @hairpin ct status dnat masquerade fully-random
    meta mark & {mark} != {mark} return
    meta mark set meta mark xor {mark}
    masquerade fully-random
  }}
}}
"""
