"""CRI's own metrics, with cadvisor's names: what each container's cgroup, processes and each pod's interfaces tell.

Source: CRI api.proto (ListMetricDescriptors, ListPodSandboxMetrics); cadvisor docs/storage/prometheus.md (names, meaning).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longshore.engine.cri.records import Container, Sandbox
from longshore.engine.cri.stats import Statistics
from longshore.engine.runtime import cgroups
from longshore.engine.runtime.runtime import NoSuchContainer
from longshore.machinery import netns
from longshore.wire.cri import cri

BASE = ("container", "id", "image", "name", "namespace", "pod")
#: extra label values and a value
Rows = list[tuple[tuple[str, ...], float]]


@dataclass(slots=True)
class Reading:
    """Everything read of one container at once."""

    container: Container
    figures: cgroups.Stats
    layer: tuple[int, int]
    disk: os.statvfs_result
    processes: list[int] = field(default_factory=list)
    threads: int = 0
    files: int = 0
    sockets: int = 0

    @property
    def limits(self) -> Any:
        return self.container.config.linux.resources


def _one(value: float) -> Rows:
    return [((), value)]


def _memory(*names: str) -> Callable[[Reading], Rows]:
    return lambda r: _one(next((r.figures.memory_stat[n] for n in names if n in r.figures.memory_stat), 0))


def _io(operation: str, index: int) -> Callable[[Reading], Rows]:
    def rows(r: Reading) -> Rows:
        total = sum(int(entry[index]) for entry in r.figures.io if entry[2].lower() == operation)
        return [(("",), total)]

    return rows


def _failures(r: Reading) -> Rows:
    stat = r.figures.memory_stat
    return [
        ((kind, "container"), stat.get("total_" + key, stat.get(key, 0)))
        for kind, key in (("pgfault", "pgfault"), ("pgmajfault", "pgmajfault"))
    ]


def _blkio(r: Reading) -> Rows:
    return [
        (("", str(major), str(minor), operation), amount)
        for major, minor, operation, amount, _ in r.figures.io
        if operation.lower() in ("read", "write")
    ]


COUNTER, GAUGE = cri.COUNTER, cri.GAUGE
#: name -> (help, kind, further labels, reader)
CONTAINER: dict[str, tuple[str, int, tuple[str, ...], Callable[[Reading], Rows]]] = {
    "container_blkio_device_usage_total": ("Bytes a device has carried for the container.", COUNTER, ("device", "major", "minor", "operation"), _blkio),
    "container_cpu_cfs_periods_total": ("Enforcement periods that have passed.", COUNTER, (), lambda r: _one(r.figures.periods)),
    "container_cpu_cfs_throttled_periods_total": ("Periods in which the container was held back.", COUNTER, (), lambda r: _one(r.figures.throttled_periods)),
    "container_cpu_cfs_throttled_seconds_total": ("Seconds for which the container was held back.", COUNTER, (), lambda r: _one(r.figures.throttled_time / 1e9)),
    "container_cpu_system_seconds_total": ("CPU seconds in the kernel.", COUNTER, (), lambda r: _one(r.figures.cpu_system / 1e9)),
    "container_cpu_usage_seconds_total": ("CPU seconds.", COUNTER, ("cpu",), lambda r: [(("total",), r.figures.cpu_total / 1e9)]),
    "container_cpu_user_seconds_total": ("CPU seconds in user mode.", COUNTER, (), lambda r: _one(r.figures.cpu_user / 1e9)),
    "container_file_descriptors": ("Open file descriptors.", GAUGE, (), lambda r: _one(r.files)),
    "container_fs_inodes_free": ("Free inodes of the file system.", GAUGE, ("device",), lambda r: [(("",), r.disk.f_ffree)]),
    "container_fs_inodes_total": ("Inodes of the file system.", GAUGE, ("device",), lambda r: [(("",), r.disk.f_files)]),
    "container_fs_limit_bytes": ("Bytes that the container can use on the file system.", GAUGE, ("device",), lambda r: [(("",), r.disk.f_blocks * r.disk.f_frsize)]),
    "container_fs_reads_bytes_total": ("Bytes read.", COUNTER, ("device",), _io("read", 3)),
    "container_fs_reads_total": ("Reads completed.", COUNTER, ("device",), _io("read", 4)),
    "container_fs_usage_bytes": ("Bytes that the container uses on the file system.", GAUGE, ("device",), lambda r: [(("",), r.layer[0])]),
    "container_fs_writes_bytes_total": ("Bytes written.", COUNTER, ("device",), _io("write", 3)),
    "container_fs_writes_total": ("Writes completed.", COUNTER, ("device",), _io("write", 4)),
    "container_last_seen": ("When the container was last seen, in seconds since 1970.", GAUGE, (), lambda r: _one(r.figures.time_ns // 10**9)),
    "container_memory_cache": ("Bytes of page cache.", GAUGE, (), _memory("total_cache", "file")),
    "container_memory_failcnt": ("How often memory use hit its limit.", COUNTER, (), lambda r: _one(r.figures.memory_failures)),
    "container_memory_failures_total": ("Failed memory allocations.", COUNTER, ("failure_type", "scope"), _failures),
    "container_memory_kernel_usage": ("Bytes of kernel memory.", GAUGE, (), _memory("kernel", "total_kernel_stack", "kernel_stack")),
    "container_memory_mapped_file": ("Bytes of mapped files.", GAUGE, (), _memory("total_mapped_file", "file_mapped")),
    "container_memory_max_usage_bytes": ("The most bytes ever used.", GAUGE, (), lambda r: _one(r.figures.memory_max_usage)),
    "container_memory_rss": ("Bytes of resident memory.", GAUGE, (), _memory("total_rss", "anon")),
    "container_memory_swap": ("Bytes swapped out.", GAUGE, (), lambda r: _one(r.figures.memory_swap)),
    "container_memory_usage_bytes": ("Bytes used, all of them.", GAUGE, (), lambda r: _one(r.figures.memory_usage)),
    "container_memory_working_set_bytes": ("Bytes of the working set.", GAUGE, (), lambda r: _one(r.figures.memory_working_set)),
    "container_oom_events_total": ("Processes killed for want of memory.", COUNTER, (), lambda r: _one(int(r.container.reason == "OOMKilled"))),
    "container_processes": ("Processes.", GAUGE, (), lambda r: _one(len(r.processes))),
    "container_sockets": ("Open sockets.", GAUGE, (), lambda r: _one(r.sockets)),
    "container_spec_cpu_period": ("CPU period in microseconds.", GAUGE, (), lambda r: _one(r.limits.cpu_period)),
    "container_spec_cpu_quota": ("CPU quota in microseconds a period.", GAUGE, (), lambda r: _one(r.limits.cpu_quota)),
    "container_spec_cpu_shares": ("CPU shares.", GAUGE, (), lambda r: _one(r.limits.cpu_shares)),
    "container_spec_memory_limit_bytes": ("Memory limit.", GAUGE, (), lambda r: _one(r.limits.memory_limit_in_bytes)),
    "container_spec_memory_reservation_limit_bytes": ("Memory reservation.", GAUGE, (), lambda _: _one(0)),
    "container_spec_memory_swap_limit_bytes": ("Memory and swap limit.", GAUGE, (), lambda r: _one(r.limits.memory_swap_limit_in_bytes)),
    "container_start_time_seconds": ("When the container started, in seconds since 1970.", GAUGE, (), lambda r: _one(r.container.started_at // 10**9)),
    "container_threads": ("Threads.", GAUGE, (), lambda r: _one(r.threads)),
    "container_threads_max": ("The most threads allowed, 0: no limit.", GAUGE, (), lambda r: _one(r.figures.pids_limit)),
}  # fmt: skip
_NETWORK = {
    f"container_network_{direction}_{what}_total": (
        f"Network {what.replace('_', ' ')} {'received' if direction == 'receive' else 'sent'}.", base + offset
    )
    for direction, base in (("receive", 0), ("transmit", 8))
    for what, offset in (("bytes", 0), ("packets", 1), ("errors", 2), ("packets_dropped", 3))
}  # fmt: skip


def descriptors() -> list[Any]:
    """MetricDescriptor messages of everything that is measured."""
    found = [
        cri.MetricDescriptor(name=name, help=words, label_keys=[*BASE, *labels])
        for name, (words, _, labels, _) in CONTAINER.items()
    ]
    found += [
        cri.MetricDescriptor(name=name, help=words, label_keys=[*BASE, "interface"])
        for name, (words, _) in _NETWORK.items()
    ]
    return found


def _metric(name: str, kind: int, labels: Iterable[str], value: float, when: int) -> Any:
    return cri.Metric(
        name=name, timestamp=when, metric_type=kind, label_values=list(labels), value=cri.UInt64Value(value=max(0, int(value)))
    )  # fmt: skip


class Metrics:
    """Measures pods when asked."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def _read(self, container: Container) -> Reading | None:
        containers = self._statistics.containers
        try:
            figures = containers.runtime.stats(container.id)
            pids = containers.runtime.processes(container.id)
        except NoSuchContainer:
            return None
        reading = Reading(
            container, figures, self._statistics.layer(container.id), os.statvfs(containers.images.state), pids
        )
        for pid in pids:
            try:
                reading.threads += len(os.listdir(f"/proc/{pid}/task"))
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    reading.files += 1
                    reading.sockets += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
            except OSError:
                continue
        return reading

    def _labels(self, sandbox: Sandbox, container: Container | None) -> list[str]:
        metadata = sandbox.metadata
        if container is None:
            return ["", sandbox.id, "", sandbox.id, metadata.namespace, metadata.name]
        image = container.config.image.user_specified_image or container.config.image.image
        return [container.metadata.name, container.id, image, container.id, metadata.namespace, metadata.name]

    def _pod(self, sandbox: Sandbox) -> Any:
        found = cri.PodSandboxMetrics(pod_sandbox_id=sandbox.id)
        when = time.time_ns()
        boxes = self._statistics.sandboxes
        pin = boxes.pin(sandbox, "net")
        if pin:
            base = self._labels(sandbox, None)
            for name, columns in _interfaces(Path(pin)):
                for metric, (_, column) in _NETWORK.items():
                    found.metrics.append(_metric(metric, COUNTER, [*base, name], columns[column], when))
        for container in self._statistics.containers.of_sandbox(sandbox.id):
            if container.state != cri.CONTAINER_RUNNING:
                continue
            reading = self._read(container)
            if reading is None:
                continue
            base = self._labels(sandbox, container)
            own = found.container_metrics.add(container_id=container.id)
            for name, (_, kind, _, reader) in CONTAINER.items():
                for extra, value in reader(reading):
                    own.metrics.append(_metric(name, kind, [*base, *extra], value, when))
        return found

    async def pods(self) -> list[Any]:
        """PodSandboxMetrics of every ready sandbox."""
        ready = [s for s in self._statistics.sandboxes.records if s.ready]
        return await asyncio.to_thread(lambda: [self._pod(s) for s in ready])


def _interfaces(namespace: Path) -> list[tuple[str, list[int]]]:
    """(name, the columns of /proc/net/dev) of a namespace's interfaces but lo. Blocking."""
    text = netns.call(namespace, lambda: Path("/proc/thread-self/net/dev").read_text())
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        if name.strip() != "lo":
            found.append((name.strip(), [int(x) for x in rest.split()]))
    return found
