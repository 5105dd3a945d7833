"""Requests and limits: QoS class, cgroup figures, out-of-memory scores.

Sources: kubernetes pkg/apis/core/v1/helper/qos, pkg/kubelet/cm helpers_linux.go, pkg/kubelet/qos/policy.go,
component-helpers/resource (pod requests with init containers, sidecars, overhead, pod-level resources).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longshore.machinery import quantity

Pod = dict[str, Any]
MIN_SHARES, MAX_SHARES, SHARES_PER_CPU = 2, 262144, 1024
PERIOD = 100_000  # microseconds
MIN_QUOTA = 1_000
SYSTEM_CRITICAL = 2_000_000_000
GUARANTEED, BURSTABLE, BEST_EFFORT = "Guaranteed", "Burstable", "BestEffort"
MIRROR = "kubernetes.io/config.mirror"
SOURCE = "kubernetes.io/config.source"


def milli(text: str | int | float) -> int:
    """A cpu quantity in thousandths of a core, rounded up."""
    return quantity.parse(str(text)).milli_value


def amount(text: str | int | float) -> int:
    """A quantity as a whole number, rounded up."""
    return quantity.parse(str(text)).value


def is_sidecar(container: Mapping[str, Any]) -> bool:
    """Whether an init container is a restartable one (restartPolicy Always)."""
    return container.get("restartPolicy") == "Always"


def all_containers(pod: Pod) -> list[dict[str, Any]]:
    """Init, ordinary and ephemeral containers, in this order."""
    spec = pod["spec"]
    return [c for k in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(k) or ()]


def qos_class(pod: Pod) -> str:
    """The pod's quality of service: what the status says, else computed from requests and limits of cpu and memory."""
    found = (pod.get("status") or {}).get("qosClass")
    return found or compute_qos(pod)


def compute_qos(pod: Pod) -> str:
    spec = pod["spec"]
    level = spec.get("resources") or {}
    sources = [level] if level.get("requests") or level.get("limits") else []
    if not sources:
        sources = [c.get("resources") or {} for c in (*(spec.get("initContainers") or ()), *spec["containers"])]
    seen = False
    guaranteed = True
    for resources in sources:
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        for name in ("cpu", "memory"):
            request, limit = (quantity.parse(str(q.get(name, "0"))).nanos for q in (requests, limits))
            seen = seen or request > 0 or limit > 0
            if limit <= 0 or (name in requests and request != limit):
                guaranteed = False
    if not seen:
        return BEST_EFFORT
    return GUARANTEED if guaranteed else BURSTABLE


def shares(milli_cpu: int) -> int:
    """cpu.shares for so many thousandths of a core."""
    return min(MAX_SHARES, max(MIN_SHARES, milli_cpu * SHARES_PER_CPU // 1000))


def quota(milli_cpu: int, period: int = PERIOD) -> int:
    """cpu.cfs_quota_us a period; 0 for no limit."""
    return max(MIN_QUOTA, milli_cpu * period // 1000) if milli_cpu else 0


def weight(cpu_shares: int) -> int:
    """cgroup v2's cpu.weight of v1 shares (the linear formula of KEP-2254)."""
    return 1 + ((min(MAX_SHARES, max(2, cpu_shares)) - 2) * 9999) // 262142


def requested(container: Mapping[str, Any], name: str, kind: str = "requests") -> int:
    """One container's request or limit: thousandths for cpu, whole units otherwise; 0 when absent."""
    text = ((container.get("resources") or {}).get(kind) or {}).get(name)
    if text is None:
        return 0
    return milli(text) if name == "cpu" else amount(text)


def pod_total(pod: Pod, name: str, kind: str = "requests") -> int:
    """What the whole pod asks for: ordinary containers and sidecars together, or the greediest init step if more.

    Pod-level resources win over the sum; overhead is added (for limits only when there is one).
    """
    spec = pod["spec"]
    level = ((spec.get("resources") or {}).get(kind) or {}).get(name)
    if level is not None:
        total = milli(level) if name == "cpu" else amount(level)
    else:
        total = sum(requested(c, name, kind) for c in spec["containers"])
        sidecars = peak = 0
        for container in spec.get("initContainers") or ():
            own = requested(container, name, kind)
            if is_sidecar(container):
                sidecars += own
                total += own
                peak = max(peak, sidecars)
            else:
                peak = max(peak, own + sidecars)
        total = max(total, peak)
    over = (spec.get("overhead") or {}).get(name)
    if over is not None and (kind == "requests" or total):
        total += milli(over) if name == "cpu" else amount(over)
    return total


def has_limit(pod: Pod, name: str) -> bool:
    """Whether every container (or the pod itself) has a limit of this resource."""
    spec = pod["spec"]
    if name in ((spec.get("resources") or {}).get("limits") or {}):
        return True
    containers = (*spec["containers"], *(spec.get("initContainers") or ()))
    return all(requested(c, name, "limits") for c in containers)


def is_static(pod: Pod) -> bool:
    source = (pod["metadata"].get("annotations") or {}).get(SOURCE)
    return source is not None and source != "api"


def is_mirror(pod: Pod) -> bool:
    return MIRROR in (pod["metadata"].get("annotations") or {})


def is_critical(pod: Pod) -> bool:
    """Static, mirror and system-critical pods are not evicted and lowest in the out-of-memory order."""
    return is_static(pod) or is_mirror(pod) or (pod["spec"].get("priority") or 0) >= SYSTEM_CRITICAL


def oom_score_adj(pod: Pod, container: Mapping[str, Any], memory_capacity: int) -> int:
    """The container's oom_score_adj: -997 guaranteed and critical, 1000 best effort, by memory request in between."""
    if is_critical(pod) or qos_class(pod) == GUARANTEED:
        return -997
    if qos_class(pod) == BEST_EFFORT:
        return 1000

    def burstable(memory: int) -> int:
        score = 1000 - 1000 * memory // max(1, memory_capacity)
        return 3 if score < 3 else 999 if score == 1000 else score

    spec = pod["spec"]
    request = requested(container, "memory")
    level = ((spec.get("resources") or {}).get("requests") or {}).get("memory")
    if level is not None:
        ordinary = (*spec["containers"], *(c for c in spec.get("initContainers") or () if is_sidecar(c)))
        rest = amount(level) - sum(requested(c, "memory") for c in ordinary)
        request += max(0, rest) // max(1, len(ordinary))
    score = burstable(request)
    if is_sidecar(container):
        score = min(score, *(burstable(requested(c, "memory")) for c in spec["containers"]))
    return score


def hugepage_limits(container: Mapping[str, Any], sizes: Iterable[str]) -> list[tuple[str, int]]:
    """(page size as cgroup names it ("2MB"), limit in bytes) for each size that the node has; 0 where not asked."""
    limits = (container.get("resources") or {}).get("limits") or {}
    wanted = {amount(name.removeprefix("hugepages-")): amount(value) for name, value in limits.items()
              if name.startswith("hugepages-")}  # fmt: skip
    return [(size, wanted.get(_page_bytes(size), 0)) for size in sizes]


def _page_bytes(size: str) -> int:
    return amount(size.removesuffix("B") + "i")
