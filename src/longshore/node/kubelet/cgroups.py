"""Cgroups of pods and of the qualities of service, on unified (v2) and legacy (v1) hierarchies.

Sources: kubernetes pkg/kubelet/cm (names and figures of the tree), kernel documentation cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from longshore.machinery.cgroups import folder as _folder
from longshore.machinery.cgroups import mounts, unified
from longshore.node.kubelet import resources

log = logging.getLogger("longshore.kubelet.cgroups")
Pod = dict[str, Any]
ROOT = "kubepods"
#: the hierarchies in which the kubelet makes groups itself
_V1 = ("cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb", "devices", "freezer", "blkio")


def _hierarchies() -> dict[str, Path]:
    """Controller -> where its hierarchy is mounted ("" on a unified machine)."""
    return {name: where for name, where in mounts().items() if not name or name in _V1}


def pod_path(root: str, pod: Pod, per_qos: bool = True) -> str:
    """The cgroup of a pod ("/kubepods/burstable/podUID"), as CRI's cgroup_parent."""
    if not per_qos:
        return root
    qos = resources.qos_class(pod)
    middle = "" if qos == resources.GUARANTEED else f"/{qos.lower()}"
    return f"{root.rstrip('/')}/{ROOT}{middle}/pod{pod['metadata']['uid']}"


def make(path: str) -> None:
    """Make a cgroup in every hierarchy, with controllers passed down. Raises OSError."""
    for controller, top in _hierarchies().items():
        current = top
        for part in path.strip("/").split("/"):
            if unified():
                _pass_down(current)
            parent, current = current, current / part
            current.mkdir(exist_ok=True)
            if controller == "cpuset":
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if not (current / name).read_text().strip():
                        (current / name).write_text((parent / name).read_text())


def _pass_down(folder: Path) -> None:
    try:
        have = set((folder / "cgroup.controllers").read_text().split())
        on = set((folder / "cgroup.subtree_control").read_text().split())
    except OSError:
        return
    for name in sorted(have & {"cpu", "cpuset", "memory", "pids", "hugetlb", "io"} - on):
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{name}")


def _write(folder: Path | None, name: str, value: str) -> None:
    if folder is None or not (folder / name).exists():
        return
    try:
        if (folder / name).read_text().strip() != value:
            (folder / name).write_text(value)
    except OSError as error:
        log.debug("%s/%s = %s: %s", folder, name, value, error.strerror)


def set_limits(path: str, *, shares: int = 0, quota: int = 0, memory: int = 0, pids: int = 0) -> None:
    """Set what is not 0. shares: v1 cpu shares; quota: microseconds of 100 ms (-1: none); memory: bytes (-1: none)."""
    if unified():
        folder = _folder(path, "")
        if shares:
            _write(folder, "cpu.weight", str(resources.weight(shares)))
        if quota:
            _write(folder, "cpu.max", f"{'max' if quota < 0 else quota} {resources.PERIOD}")
        if memory:
            _write(folder, "memory.max", "max" if memory < 0 else str(memory))
        if pids:
            _write(folder, "pids.max", str(pids))
        return
    cpu = _folder(path, "cpu")
    if shares:
        _write(cpu, "cpu.shares", str(shares))
    if quota:
        _write(cpu, "cpu.cfs_period_us", str(resources.PERIOD))
        _write(cpu, "cpu.cfs_quota_us", str(quota))
    if memory:
        _write(_folder(path, "memory"), "memory.limit_in_bytes", str(memory))
    if pids:
        _write(_folder(path, "pids"), "pids.max", str(pids))


def pod_limits(pod: Pod) -> dict[str, int]:
    """The figures of a pod's own cgroup: the sum of its containers', -1 where one of them is unbounded."""
    qos = resources.qos_class(pod)
    found = {"shares": resources.shares(resources.pod_total(pod, "cpu")), "quota": -1, "memory": -1}
    if qos != resources.BEST_EFFORT:
        if resources.has_limit(pod, "cpu"):
            found["quota"] = resources.quota(resources.pod_total(pod, "cpu", "limits"))
        if resources.has_limit(pod, "memory"):
            found["memory"] = resources.pod_total(pod, "memory", "limits")
    return found


def ensure_pod(root: str, pod: Pod, per_qos: bool = True, pids: int = -1) -> str:
    """Make the pod's cgroup with its figures; returns its path. Blocking. Raises OSError."""
    path = pod_path(root, pod, per_qos)
    if per_qos:
        make(path)
        set_limits(path, **pod_limits(pod), pids=pids if pids > 0 else 0)
    return path


def ensure_qos(root: str, milli_cpu: int, memory: int) -> None:
    """Make the tree of qualities of service with the node's allocatable figures. Blocking."""
    top = f"{root.rstrip('/')}/{ROOT}"
    make(top)
    set_limits(top, shares=resources.shares(milli_cpu), memory=memory)
    for quality in (resources.BURSTABLE, resources.BEST_EFFORT):
        make(f"{top}/{quality.lower()}")
        set_limits(f"{top}/{quality.lower()}", shares=resources.MIN_SHARES)


def pods_present(root: str) -> dict[str, str]:
    """uid -> path of every pod cgroup there is."""
    found: dict[str, str] = {}
    base = f"{root.rstrip('/')}/{ROOT}"
    for quality in ("", "/burstable", "/besteffort"):
        folder = _folder(base + quality, "memory")
        if folder is None or not folder.is_dir():
            continue
        for name in os.listdir(folder):
            if name.startswith("pod") and (folder / name).is_dir():
                found[name[3:]] = f"{base}{quality}/{name}"
    return found
