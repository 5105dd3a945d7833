"""Eviction: what the node runs short of, and which pod goes first.

Sources: kubernetes pkg/kubelet/eviction (eviction_manager.go, helpers.go: ranking and texts).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshore.machinery import quantity
from longshore.node.kubelet import resources

Pod = dict[str, Any]
# signal -> (node condition, resource in messages)
SIGNALS = {
    "memory.available": ("MemoryPressure", "memory"),
    "nodefs.available": ("DiskPressure", "ephemeral-storage"),
    "nodefs.inodesFree": ("DiskPressure", "inodes"),
    "imagefs.available": ("DiskPressure", "ephemeral-storage"),
    "imagefs.inodesFree": ("DiskPressure", "inodes"),
    "pid.available": ("PIDPressure", "pids"),
}
_REASONS = {
    "MemoryPressure": ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
    "DiskPressure": ("KubeletHasDiskPressure", "kubelet has disk pressure"),
    "PIDPressure": ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
}
TRANSITION_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Observation:
    """How much of a resource is left, of how much."""

    available: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Threshold:
    """A signal below which something must go. grace: seconds that it must last (soft thresholds)."""

    signal: str
    text: str
    grace: float = 0.0

    def limit(self, capacity: int) -> int:
        """The threshold in units of the resource."""
        if self.text.endswith("%"):
            return int(capacity * float(self.text[:-1]) / 100)
        return quantity.parse(self.text).value


def observe(root: Path) -> dict[str, Observation]:
    """The node's signals now."""
    info: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        info[name] = int(rest.split()[0]) * 1024
    working = max(0, info["MemTotal"] - info["MemFree"] - info.get("Inactive(file)", 0))
    disk = os.statvfs(root)
    space = Observation(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)
    inodes = Observation(disk.f_favail, disk.f_files)
    pids = int(Path("/proc/sys/kernel/pid_max").read_text())
    used = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return {
        "memory.available": Observation(info["MemTotal"] - working, info["MemTotal"]),
        "nodefs.available": space, "imagefs.available": space,
        "nodefs.inodesFree": inodes, "imagefs.inodesFree": inodes,
        "pid.available": Observation(max(0, pids - used), pids),
    }  # fmt: skip


class Pressures:
    """The node's pressure conditions and the thresholds that call for an eviction."""

    def __init__(self, thresholds: Iterable[Threshold], clock: Callable[[], float] = time.monotonic) -> None:
        self._thresholds, self._clock = list(thresholds), clock
        self._since: dict[Threshold, float] = {}
        self._last_met: dict[str, float] = {}

    def update(self, seen: Mapping[str, Observation]) -> list[tuple[Threshold, Observation]]:
        """The thresholds that are met (long enough, for soft ones), the most urgent first."""
        now = self._clock()
        due: list[tuple[Threshold, Observation]] = []
        for threshold in self._thresholds:
            found = seen.get(threshold.signal)
            if found is None or not found.capacity or found.available >= threshold.limit(found.capacity):
                self._since.pop(threshold, None)
                continue
            begin = self._since.setdefault(threshold, now)
            self._last_met[SIGNALS[threshold.signal][0]] = now
            if now - begin >= threshold.grace:
                due.append((threshold, found))
        # Memory first: it kills without asking.
        return sorted(due, key=lambda pair: pair[0].signal != "memory.available")

    def conditions(self) -> dict[str, tuple[bool, str, str]]:
        """Condition type -> (holds, reason, message); one that has ended holds on for a while."""
        now = self._clock()
        return {
            kind: (True, *_REASONS[kind]) for kind, when in self._last_met.items() if now - when < TRANSITION_SECONDS
        }


def rank(pods: Iterable[Pod], usage: Callable[[Pod], int], resource: str) -> list[Pod]:
    """Pods in the order in which they go: above their request first, then low priority, then the most above."""

    def key(pod: Pod) -> tuple[bool, int, int]:
        used = usage(pod)
        request = resources.pod_total(pod, resource) if resource in ("memory", "ephemeral-storage") else 0
        return (used <= request, int(pod["spec"].get("priority") or 0), -(used - request))

    return sorted((p for p in pods if not resources.is_critical(p)), key=key)


def message(threshold: Threshold, seen: Observation, containers: Iterable[tuple[str, int, int]]) -> str:
    """The text of an eviction. containers: (name, usage, request) of those above their request."""
    resource = SIGNALS[threshold.signal][1]

    def shown(amount: int) -> str:
        form = quantity.BINARY if resource in ("memory", "ephemeral-storage") else quantity.DECIMAL
        if form == quantity.BINARY:
            amount = amount // 1024 * 1024
        return str(quantity.from_number(amount, form))

    text = (
        f"The node was low on resource: {resource}. Threshold quantity: {shown(threshold.limit(seen.capacity))}, "
        f"available: {shown(seen.available)}. "
    )
    for name, used, request in containers:
        if used > request:
            text += (
                f"Container {name} was using {shown(used)}, request is {shown(request)}, "
                f"has larger consumption of {resource}. "
            )
    return text


def storage_excess(pod: Pod, volumes: Callable[[str], int], layers: Mapping[str, int]) -> str | None:
    """Why a pod has used more local storage than it may; None when it has not.

    volumes(name): bytes of an emptyDir. layers: container -> bytes it wrote outside volumes.
    """
    used_by_volumes = 0
    for volume in pod["spec"].get("volumes") or ():
        source = volume.get("emptyDir")
        if source is None or (source or {}).get("medium"):
            continue
        limit = (source or {}).get("sizeLimit")
        used = volumes(volume["name"])
        used_by_volumes += used
        if limit and quantity.parse(str(limit)).nanos and used > resources.amount(limit):
            return f'Usage of EmptyDir volume "{volume["name"]}" exceeds the limit "{limit}". '
    for container in pod["spec"]["containers"]:
        limit = ((container.get("resources") or {}).get("limits") or {}).get("ephemeral-storage")
        if limit and layers.get(container["name"], 0) > resources.amount(limit):
            return f'Container {container["name"]} exceeded its local ephemeral storage limit "{limit}". '
    limit_of_pod = resources.pod_total(pod, "ephemeral-storage", "limits")
    if limit_of_pod and sum(layers.values()) + used_by_volumes > limit_of_pod:
        shown = str(quantity.from_number(limit_of_pod, quantity.BINARY))
        return f"Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "
    return None


def limits_storage(pod: Pod) -> bool:
    """Whether anything of the pod limits local storage."""
    if any((v.get("emptyDir") or {}).get("sizeLimit") for v in pod["spec"].get("volumes") or ()):
        return True
    return any(resources.requested(c, "ephemeral-storage", "limits") for c in pod["spec"]["containers"])
