"""What a Service's type asks for: addresses, ports on nodes, a port for health checks."""

from __future__ import annotations

from longshore.api.strategy import Object

#: Types that are reached from outside the cluster.
ACCESSIBLE = ("NodePort", "LoadBalancer")


def needs_cluster_ip(spec: Object) -> bool:
    """Services of every type but ExternalName have an address."""
    return spec.get("type") in ("ClusterIP", "NodePort", "LoadBalancer")


def needs_node_port(spec: Object) -> bool:
    """Whether the type opens ports on nodes."""
    if spec.get("type") == "NodePort":
        return True
    return spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False


def needs_health_check_port(spec: Object) -> bool:
    """Whether a port for health checks belongs to the service."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def is_headless(spec: Object) -> bool:
    """A service without an address of its own."""
    return list(spec.get("clusterIPs") or ()) == ["None"]
