"""What a cluster on this machine is made of: nodes, addresses, ports. Written once, at its first start."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from longshore.machinery.paths import Layout


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node: its name, address, and the network namespace that it is (None: the host's own)."""

    name: str
    ip: str
    netns: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A cluster's fixed facts.

    bridge: the host's bridge that joins the nodes, with host_ip on it. Networks are CIDR texts, ports TCP ports.
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

    @property
    def cluster_dns(self) -> str:
        """The cluster DNS address: the tenth of the Service range, as kubeadm gives it."""
        return str(ipaddress.ip_network(self.service_cidr)[10])

    @property
    def load_balancer_pool(self) -> str:
        """Addresses for Services of type LoadBalancer: the upper half of the nodes' range, where no node is.

        "" where that range is the machine's own network, whose addresses are not ours to give.
        """
        network = ipaddress.ip_network(self.node_cidr)
        if self.bridge is None and ipaddress.ip_address(self.host_ip) in network:
            return ""
        return str(list(network.subnets(1))[1])

    @property
    def api_service_ip(self) -> str:
        """The address of the Service `kubernetes`: the first of the range."""
        return str(ipaddress.ip_network(self.service_cidr)[1])

    @property
    def server(self) -> str:
        return f"https://{self.host_ip}:{self.secure_port}"

    @property
    def local_server(self) -> str:
        return f"https://127.0.0.1:{self.secure_port}"


def default_host_ip() -> str | None:
    """The address this machine would use towards others, None when it has no default route. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket only asks the routing table; the address is from RFC 5737's documentation range.
            probe.connect(("203.0.113.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


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

    nodes: how many; host_ip: the address to advertise (None: found out); names: of the nodes (None: from the host's).
    """
    node_cidr = ipaddress.ip_network(facts.get("node_cidr", "172.30.0.0/24"))
    base = host_name()
    if nodes == 1:
        found = host_ip or default_host_ip()
        bridge = None if found else "nodes0"
        address = found or str(node_cidr[1])
        return ClusterConfig([NodeConfig(names[0] if names else base, address)], address, bridge, **facts)
    address = host_ip or str(node_cidr[1])
    made = [
        NodeConfig(names[i] if names else f"{base}-{i + 1}", str(node_cidr[11 + i]), netns=f"node-{i + 1}")
        for i in range(nodes)
    ]
    return ClusterConfig(made, address, "nodes0", **facts)


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
