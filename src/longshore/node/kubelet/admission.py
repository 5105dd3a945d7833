"""Whether a node takes a pod: what the kubelet checks before a pod's first container.

Sources: kubernetes pkg/kubelet/lifecycle/predicate.go, pkg/kubelet/sysctl/allowlist.go (texts).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from longshore.node.kubelet import resources
from longshore.node.kubelet.config import Config

Pod = dict[str, Any]
SAFE_SYSCTLS = frozenset(
    (
        "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
    )
)  # fmt: skip


def refusal(
    pod: Pod, others: Collection[Pod], node: Mapping[str, Any] | None, config: Config
) -> tuple[str, str] | None:
    """(reason, message) of a pod that is refused; None for one that is taken. others: looked at only where it matters."""
    for sysctl in (pod["spec"].get("securityContext") or {}).get("sysctls") or ():
        name = sysctl["name"].replace("/", ".")
        allowed = name in SAFE_SYSCTLS or any(
            name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))
            for pattern in config.allowed_unsafe_sysctls
        )
        if not allowed:
            return "SysctlForbidden", f'forbidden sysctl: "{sysctl["name"]}" not allowlisted'
    if node is None or resources.is_critical(pod):
        return None
    short = _short_of(pod, others, node)
    if short is not None:
        return short
    wanted = _host_ports(pod)
    if wanted and any(_collide(mine, theirs) for other in others for theirs in _host_ports(other) for mine in wanted):
        return "NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    return _unfitting(pod, node)


def _host_ports(pod: Pod) -> list[tuple[str, str, int]]:
    """(address, protocol, port) of each port of the node that the pod's long-lived containers ask for."""
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    return [
        (port.get("hostIP") or "0.0.0.0", port.get("protocol") or "TCP", port["hostPort"])
        for container in (*spec["containers"], *sidecars)
        for port in container.get("ports") or ()
        if port.get("hostPort")
    ]


def _collide(mine: tuple[str, str, int], theirs: tuple[str, str, int]) -> bool:
    return mine[1:] == theirs[1:] and (mine[0] == theirs[0] or "0.0.0.0" in (mine[0], theirs[0]))


def _short_of(pod: Pod, others: Collection[Pod], node: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first resource of which the node has not enough left."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    if "pods" in allocatable and len(others) + 1 > resources.amount(allocatable["pods"]):
        return _out_of("pods", 1, len(others), resources.amount(allocatable["pods"]))
    names = {n for c in resources.all_containers(pod) for n in ((c.get("resources") or {}).get("requests") or {})}
    for name in sorted(names):
        wanted = resources.pod_total(pod, name)
        if not wanted:
            continue
        if name not in allocatable:
            have = 0
        else:
            have = resources.milli(allocatable[name]) if name == "cpu" else resources.amount(allocatable[name])
        used = sum(resources.pod_total(other, name) for other in others)
        if used + wanted > have:
            return _out_of(name, wanted, used, have)
    return None


def _out_of(name: str, wanted: int, used: int, have: int) -> tuple[str, str]:
    return (
        f"OutOf{name}",
        f"Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {have}",
    )


def _unfitting(pod: Pod, node: Mapping[str, Any]) -> tuple[str, str] | None:
    labels = node["metadata"].get("labels") or {}
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(k) != v for k, v in wanted.items()):
        return "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
    for taint in node["spec"].get("taints") or ():
        if taint.get("effect") == "NoExecute" and not any(
            _tolerates(t, taint) for t in pod["spec"].get("tolerations") or ()
        ):
            return (
                "TaintToleration",
                "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
            )
    return None


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    if (toleration.get("operator") or "Equal") == "Exists":
        return True
    return (toleration.get("value") or "") == (taint.get("value") or "")
