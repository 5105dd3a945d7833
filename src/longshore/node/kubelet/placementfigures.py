"""What CPU, memory and topology manager tell at /metrics, under upstream's names.

Source: kubernetes pkg/kubelet/metrics/metrics.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from longshore.node.kubelet.placement.manager import BUCKETS, Placement
from longshore.node.kubelet.textformat import line

_ALIGNED = "kubelet_container_aligned_compute_resources_count"
_UNALIGNED = "kubelet_container_aligned_compute_resources_failure_count"


def lines(placement: Placement) -> Iterator[str]:
    """Samples in the text format; of each manager only where it has a policy."""
    if placement.cpus is not None:
        cpus = placement.cpus
        for name in ("cpu_manager_pinning_requests_total", "cpu_manager_pinning_errors_total"):
            yield from _one(f"kubelet_{name}", "counter", cpus.counts[name])
        free = len(cpus.shared - cpus.reserved)
        yield from _one("kubelet_cpu_manager_shared_pool_size_millicores", "gauge", free * 1000)
        by_node = cpus.by_node()
        yield from _one("kubelet_cpu_manager_exclusive_cpu_allocation_count", "gauge", by_node.total())
        yield "# TYPE kubelet_cpu_manager_allocation_per_numa gauge"
        for node, count in sorted(by_node.items()):
            yield line("kubelet_cpu_manager_allocation_per_numa", {"numa_node": str(node)}, count)
    if placement.memory is not None:
        for name in ("memory_manager_pinning_requests_total", "memory_manager_pinning_errors_total"):
            yield from _one(f"kubelet_{name}", "counter", placement.memory.counts[name])
    for name in ("topology_manager_admission_requests_total", "topology_manager_admission_errors_total"):
        yield from _one(f"kubelet_{name}", "counter", placement.counts[name])
    yield from _durations(placement)
    yield from _alignment(placement)


def _one(name: str, kind: str, value: float) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield line(name, {}, value)


def _durations(placement: Placement) -> Iterator[str]:
    name, total = "kubelet_topology_manager_admission_duration_ms", 0
    yield f"# TYPE {name} histogram"
    for bound in (*BUCKETS, inf):
        total += placement.durations[bound]
        yield line(f"{name}_bucket", {"le": "+Inf" if bound == inf else f"{bound:g}"}, total)
    yield line(f"{name}_sum", {}, placement.seconds * 1000)
    yield line(f"{name}_count", {}, total)


def _alignment(placement: Placement) -> Iterator[str]:
    yield f"# TYPE {_ALIGNED} counter"
    if placement.cpus is not None:
        for boundary in ("physical_cpu", "uncore_cache"):
            labels = {"scope": "container", "boundary": boundary}
            yield line(_ALIGNED, labels, placement.cpus.counts[boundary])
    for name, how in ((_ALIGNED, "aligned"), (_UNALIGNED, "unaligned")):
        if how == "unaligned":
            yield f"# TYPE {name} counter"
        for scope in ("container", "pod"):
            yield line(name, {"scope": scope, "boundary": "numa_node"}, placement.counts[how, scope])
