"""Typed views of Services and EndpointSlices: only what the proxy needs, read from API objects once.

Source: kubernetes.io "Service", "EndpointSlices", "Virtual IPs and Service Proxies"; the labels of well-known labels.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

Object = dict[str, Any]

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
DEFAULT_AFFINITY_SECONDS = 10800
_NOWHERE: frozenset[str] = frozenset()
PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}


class PortName(NamedTuple):
    """Which port of which Service: what endpoints are matched by."""

    namespace: str
    service: str
    port: str
    protocol: str


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of one Service in one IP family.

    protocol: "tcp", "udp" or "sctp". affinity: seconds, 0 for none. source_ranges: None when everyone may come.
    """

    name: PortName
    protocol: str
    port: int
    cluster_ip: str
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    affinity: int = 0
    internal_local: bool = False
    external_local: bool = False
    source_ranges: tuple[str, ...] | None = None
    prefers: str = ""

    @property
    def external(self) -> bool:
        """Whether clients outside the cluster can address it."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address behind a port. local: on this node. zones, nodes: hints for which it is meant."""

    address: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False
    zones: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()


def _read(address: str) -> tuple[int, str]:
    """(IP family, canonical text) of an address; (0, "") for what is none. Ten thousand Services call it often."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return 6 if family == socket.AF_INET6 else 4, socket.inet_ntop(family, socket.inet_pton(family, address))
    except OSError:
        return 0, ""


def _family(address: str) -> int:
    return _read(address)[0]


def _canonical(address: str) -> str:
    return _read(address)[1]


def _network_family(network: str) -> int:
    try:
        return ipaddress.ip_network(network.strip(), strict=False).version
    except ValueError:
        return 0


def is_proxied(service: Object) -> bool:
    """Whether this Service has addresses of its own that this proxy serves."""
    spec = service.get("spec") or {}
    labels = service["metadata"].get("labels") or {}
    if spec.get("type") == "ExternalName" or PROXY_NAME_LABEL in labels or HEADLESS_LABEL in labels:
        return False
    return spec.get("clusterIP") not in (None, "", "None")


def service_ports(service: Object, family: int) -> list[ServicePort]:
    """The ports of a Service in one IP family (4 or 6); [] when it has none there."""
    if not is_proxied(service):
        return []
    spec = service["spec"]
    metadata = service["metadata"]
    addresses = spec.get("clusterIPs") or [spec["clusterIP"]]
    cluster_ip = next((a for a in addresses if _family(a) == family), "")
    if not cluster_ip:
        return []
    affinity = 0
    if spec.get("sessionAffinity") == "ClientIP":
        config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        affinity = int(config.get("timeoutSeconds") or DEFAULT_AFFINITY_SECONDS)
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    balancers: tuple[str, ...] = ()
    if spec.get("type") == "LoadBalancer":
        balancers = tuple(
            _canonical(entry["ip"])
            for entry in ingress
            if entry.get("ip") and entry.get("ipMode", "VIP") != "Proxy" and _family(entry["ip"]) == family
        )
    ranges: tuple[str, ...] | None = None
    if spec.get("loadBalancerSourceRanges"):
        given = [r for r in spec["loadBalancerSourceRanges"] if _network_family(r) == family]
        networks = [ipaddress.ip_network(r.strip(), strict=False) for r in given]
        collapsed = ipaddress.collapse_addresses(networks)  # type: ignore[type-var]
        ranges = tuple(str(network) for network in collapsed)
    annotations = metadata.get("annotations") or {}
    prefers = spec.get("trafficDistribution") or ""
    if not prefers and annotations.get("service.kubernetes.io/topology-mode", "").lower() == "auto":
        prefers = "Auto"
    return [
        ServicePort(
            PortName(metadata["namespace"], metadata["name"], port.get("name") or "", port.get("protocol") or "TCP"),
            PROTOCOLS[port.get("protocol") or "TCP"],
            int(port["port"]),
            _canonical(cluster_ip),
            int(port.get("nodePort") or 0),
            tuple(_canonical(a) for a in spec.get("externalIPs") or () if _family(a) == family),
            balancers,
            affinity,
            spec.get("internalTrafficPolicy") == "Local",
            spec.get("externalTrafficPolicy") == "Local",
            ranges,
            prefers,
        )
        for port in spec.get("ports") or ()
        if (port.get("protocol") or "TCP") in PROTOCOLS
    ]


def slice_owner(slice_: Object) -> str:
    """The `namespace/name` of the Service that a slice belongs to; "" when no proxy is to look at it."""
    labels = slice_["metadata"].get("labels") or {}
    name = labels.get(SERVICE_NAME_LABEL, "")
    if not name or HEADLESS_LABEL in labels or PROXY_NAME_LABEL in labels:
        return ""
    return f"{slice_['metadata']['namespace']}/{name}"


def endpoints_of(slices: Iterable[Object], family: int, node_name: str) -> dict[tuple[str, str], list[Endpoint]]:
    """All endpoints of a Service's slices in one family, by (port name, protocol), in a stable order, each once."""
    wanted = f"IPv{family}"
    found: dict[tuple[str, str], dict[tuple[str, int], Endpoint]] = {}
    for slice_ in sorted(slices, key=lambda s: str(s["metadata"]["name"])):
        if slice_.get("addressType") != wanted:
            continue
        for port in slice_.get("ports") or ():
            if port.get("port") is None:
                continue
            table = found.setdefault((port.get("name") or "", port.get("protocol") or "TCP"), {})
            for item in slice_.get("endpoints") or ():
                endpoint = _endpoint(item, int(port["port"]), node_name)
                if endpoint is None:
                    continue
                key = (endpoint.address, endpoint.port)
                # The same address in two slices while it moves between them: the one that can be used counts.
                if key not in table or (endpoint.ready and not table[key].ready):
                    table[key] = endpoint
    return {key: sorted(table.values(), key=lambda e: (e.address, e.port)) for key, table in found.items()}


def _endpoint(item: Object, port: int, node_name: str) -> Endpoint | None:
    addresses = item.get("addresses")
    address = _read(addresses[0])[1] if addresses else ""
    if not address:
        return None
    conditions = item.get("conditions") or {}
    ready = conditions.get("ready")
    serving = conditions.get("serving")
    hints = item.get("hints") or {}
    ready = True if ready is None else bool(ready)
    return Endpoint(
        address,
        port,
        ready,
        ready if serving is None else bool(serving),
        bool(conditions.get("terminating")),
        bool(node_name) and item.get("nodeName") == node_name,
        frozenset(zone["name"] for zone in hints.get("forZones") or ()) if hints else _NOWHERE,
        frozenset(node["name"] for node in hints.get("forNodes") or ()) if hints else _NOWHERE,
    )
