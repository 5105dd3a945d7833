"""What a cluster on this machine is made of: nodes, addresses, ports. Written once, at its first start."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from longshore.machinery.paths import Layout

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What is chosen where nothing else is asked for, by family: pods, Services, nodes that are namespaces.
RANGES = {
    4: ("10.244.0.0/16", "10.96.0.0/16", "172.30.0.0/24"),
    6: ("fd00:10:244::/56", "fd00:10:96::/112", "fd00:172:30::/64"),
}
FAMILIES = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}


def networks(text: str) -> list[Network]:
    """The ranges of a "range,range" text, one an IP family, the primary first. Raises ValueError."""
    return [ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip()]


def default_ranges(families: Sequence[int]) -> tuple[str, str, str]:
    """Ranges of pods, Services and nodes for these IP families (4, 6), the primary first."""
    pods, services, nodes = (",".join(RANGES[family][i] for family in families) for i in range(3))
    return pods, services, nodes


def authority(address: str, port: int) -> str:
    """An address and a port as a URL has them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node: its name, address, and the network namespace that it is (None: the host's own).

    also: its address in the other IP family, where the cluster has two.
    """

    name: str
    ip: str
    netns: str | None = None
    also: list[str] = field(default_factory=list)

    @property
    def ips(self) -> list[str]:
        """All its addresses, the primary first."""
        return [self.ip, *self.also]


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A cluster's fixed facts.

    bridge: the host's bridge that joins the nodes, with host_ip on it. Networks are CIDR texts ("v4,v6" for two families,
    the primary first), ports TCP ports. host_also: the host's address in the other family. remote: the API server of
    another machine whose cluster this machine has joined ("": the cluster is this machine's own). ways: ranges of that
    cluster that are reached through the API server's machine (its nodes that are namespaces), and its address. pool: that
    cluster's addresses for load balancers.
    """

    nodes: list[NodeConfig]
    host_ip: str
    bridge: str | None
    secure_port: int = 6443
    registry_port: int = 5000
    ingress_http_port: int = 80
    ingress_https_port: int = 443
    docker_port: int | None = None
    service_cidr: str = "10.96.0.0/16"
    pod_cidr: str = "10.244.0.0/16"
    node_cidr: str = "172.30.0.0/24"
    cluster_domain: str = "cluster.local"
    extra_names: list[str] = field(default_factory=list)
    host_also: list[str] = field(default_factory=list)
    remote: str = ""
    ways: list[str] = field(default_factory=list)
    pool: str | None = None
    node_monitor_grace_period: float = 50.0

    @property
    def families(self) -> list[int]:
        """The IP families of the cluster (4, 6), the primary first."""
        return [network.version for network in networks(self.service_cidr)]

    @property
    def host_ips(self) -> list[str]:
        return [self.host_ip, *self.host_also]

    @property
    def dns_addresses(self) -> list[str]:
        """The cluster DNS addresses: the tenth of each Service range, as kubeadm gives it."""
        return [str(network[10]) for network in networks(self.service_cidr)]

    @property
    def cluster_dns(self) -> str:
        """The cluster DNS address that pods are told: the one of the primary family."""
        return self.dns_addresses[0]

    @property
    def load_balancer_pool(self) -> str:
        """Addresses for Services of type LoadBalancer: the upper half of the nodes' range, where no node is.

        Nothing of a range that is the machine's own network, whose addresses are not ours to give; "" where none is left.
        """
        if self.pool is not None:
            return self.pool
        own = [ipaddress.ip_address(ip) for ip in self.host_ips]
        found = []
        for network in networks(self.node_cidr):
            if self.bridge is None and any(ip in network for ip in own if ip.version == network.version):
                continue
            found.append(str(list(network.subnets(1))[1]))
        return ",".join(found)

    @property
    def api_service_ip(self) -> str:
        """The address of the Service `kubernetes`: the first of the range."""
        return str(networks(self.service_cidr)[0][1])

    @property
    def server(self) -> str:
        return self.remote or f"https://{authority(self.host_ip, self.secure_port)}"

    @property
    def local_server(self) -> str:
        return self.remote or f"https://127.0.0.1:{self.secure_port}"


#: Connecting a datagram socket only asks the routing table; the addresses are documentation's (RFC 5737, RFC 3849).
_ELSEWHERE = {4: (socket.AF_INET, "203.0.113.1"), 6: (socket.AF_INET6, "2001:db8::1")}


def default_host_ip(family: int = 4, towards: str = "") -> str | None:
    """The address this machine would use towards others, None when it has no route there. Sends nothing."""
    kind, address = _ELSEWHERE[family]
    with socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect((towards or address, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0]).partition("%")[0]


def host_name() -> str:
    """This machine's name as a node name (lower case, RFC 1123)."""
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname().lower()).strip("-.")
    return name or "longshore"


def plan(
    *,
    nodes: int = 1,
    host_ip: str | None = None,
    names: Sequence[str] | None = None,
    **facts: Any,
) -> ClusterConfig:
    """Lay out a cluster: one node is the host itself, several are namespaces on a bridge of their own.

    nodes: how many; host_ip: the address to advertise ("v4,v6" for two; None: found out); names: of the nodes (None:
    from the host's). A bridge is made as well where the host has no address of a family that the cluster has.
    """
    families = [network.version for network in networks(facts.get("service_cidr", RANGES[4][1]))]
    node_cidr = networks(facts.setdefault("node_cidr", default_ranges(families)[2]))
    base = host_name()
    given = {ipaddress.ip_address(text.strip()).version: text.strip() for text in (host_ip or "").split(",") if text}
    made = {network.version: str(network[1]) for network in node_cidr}
    if nodes == 1:
        found = {family: given.get(family) or default_host_ip(family) for family in families}
        bridge = None if all(found.values()) else "nodes0"
        hosts = [found[family] or made[family] for family in families]
        node = NodeConfig(names[0] if names else base, hosts[0], also=hosts[1:])
        return ClusterConfig([node], hosts[0], bridge, host_also=hosts[1:], **facts)
    hosts = [given.get(family) or made[family] for family in families]
    members = []
    for i in range(nodes):
        ips = [str(network[11 + i]) for family in families for network in node_cidr if network.version == family]
        name = names[i] if names else f"{base}-{i + 1}"
        members.append(NodeConfig(name, ips[0], netns=f"node-{i + 1}", also=ips[1:]))
    return ClusterConfig(members, hosts[0], "nodes0", host_also=hosts[1:], **facts)


def load(layout: Layout) -> ClusterConfig | None:
    """The cluster that this data folder holds, None when there is none yet."""
    try:
        raw = orjson.loads((layout.data / "cluster.json").read_bytes())
    except FileNotFoundError:
        return None
    raw["nodes"] = [NodeConfig(**node) for node in raw["nodes"]]
    return ClusterConfig(**raw)


def save(layout: Layout, config: ClusterConfig) -> None:
    """Write the cluster's facts, whole or not at all."""
    layout.data.mkdir(parents=True, exist_ok=True)
    target = layout.data / "cluster.json"
    temporary = target.with_suffix(".new")
    temporary.write_bytes(orjson.dumps(asdict(config), option=orjson.OPT_INDENT_2))
    temporary.replace(target)
