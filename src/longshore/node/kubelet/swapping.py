"""How much swap a container may use.

Source: KEP-2400, kubernetes pkg/kubelet/kuberuntime/kuberuntime_container_linux.go (configureContainerSwapResources).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from longshore.machinery import cgroups
from longshore.node.kubelet import resources

Pod = dict[str, Any]


def unified() -> bool:
    """Whether the machine has the unified hierarchy only."""
    return cgroups.unified()


@cache
def available() -> bool:
    """Whether the kernel counts swap."""
    if cgroups.unified():
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        # The root has no such file; any group below it has.
        return any(
            Path(f"/sys/fs/cgroup{path}/memory.swap.max").exists() for path in (own, "/system.slice", "/init.scope")
        )
    where = cgroups.mounts().get("memory")
    return where is not None and os.path.exists(where / "memory.memsw.limit_in_bytes")


def capacity() -> int:
    """The machine's swap in octets."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("SwapTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def allowance(pod: Pod, container: Mapping[str, Any], behavior: str, memory_capacity: int, swap: int) -> int:
    """Octets of swap that a container may use: with LimitedSwap a Burstable pod's share of it is that of its memory."""
    if behavior != "LimitedSwap" or resources.qos_class(pod) != resources.BURSTABLE or resources.is_critical(pod):
        return 0
    request = resources.requested(container, "memory")
    if not request or request == resources.requested(container, "memory", "limits"):
        return 0
    return request * swap // max(1, memory_capacity)


def limit(found: Any, pod: Pod, container: Mapping[str, Any], behavior: str, memory_capacity: int) -> None:
    """Put the limit into a LinuxContainerResources."""
    if not available():
        return
    swap = allowance(pod, container, behavior, memory_capacity, capacity())
    if cgroups.unified():
        found.unified["memory.swap.max"] = str(swap)
    elif found.memory_limit_in_bytes > 0:
        # v1 limits memory and swap together.
        found.memory_swap_limit_in_bytes = found.memory_limit_in_bytes + swap
