"""Figures of containers and pods from their cgroups, interfaces and writable layers.

Source: CRI api.proto (ContainerStats, PodSandboxStats).
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from longshore.engine.cri import network
from longshore.engine.cri.containers import Containers
from longshore.engine.cri.records import Container, Sandbox
from longshore.engine.cri.sandboxes import Sandboxes
from longshore.engine.runtime import cgroups
from longshore.engine.runtime.runtime import NoSuchContainer
from longshore.wire.cri import cri

_LAYER_SECONDS = 10.0


def _u(value: int) -> Any:
    return cri.UInt64Value(value=max(0, value))


class Statistics:
    """Reads figures when asked; keeps the last cpu reading of each container, for the rate."""

    def __init__(self, sandboxes: Sandboxes, containers: Containers) -> None:
        self.sandboxes, self.containers = sandboxes, containers
        self._last: dict[str, tuple[int, int, int]] = {}
        self._layers: dict[str, tuple[float, int, int]] = {}

    def forget(self, container_id: str) -> None:
        self._last.pop(container_id, None)
        self._layers.pop(container_id, None)

    def _rate(self, key: str, when: int, total: int) -> int:
        """Nanocores since the last reading (of at least a tenth of a second ago)."""
        last = self._last.get(key)
        if last is None:
            self._last[key] = (when, total, 0)
            return 0
        if when - last[0] < 100_000_000:
            return last[2]
        rate = max(0, (total - last[1]) * 10**9 // (when - last[0]))
        self._last[key] = (when, total, rate)
        return rate

    @staticmethod
    def _memory(figures: cgroups.Stats) -> Any:
        stat = figures.memory_stat
        available = max(0, figures.memory_limit - figures.memory_working_set) if figures.memory_limit else 0
        return cri.MemoryUsage(
            timestamp=figures.time_ns,
            working_set_bytes=_u(figures.memory_working_set),
            available_bytes=_u(available),
            usage_bytes=_u(figures.memory_usage),
            rss_bytes=_u(stat.get("total_rss", stat.get("anon", 0))),
            page_faults=_u(stat.get("total_pgfault", stat.get("pgfault", 0))),
            major_page_faults=_u(stat.get("total_pgmajfault", stat.get("pgmajfault", 0))),
        )

    def _cpu(self, key: str, figures: cgroups.Stats) -> Any:
        return cri.CpuUsage(
            timestamp=figures.time_ns,
            usage_core_nano_seconds=_u(figures.cpu_total),
            usage_nano_cores=_u(self._rate(key, figures.time_ns, figures.cpu_total)),
        )

    def layer(self, container_id: str) -> tuple[int, int]:
        """Bytes and inodes of a container's writable layer; walked at most every ten seconds. Blocking."""
        when, used, inodes = self._layers.get(container_id, (0.0, 0, 0))
        if not when or time.monotonic() - when > _LAYER_SECONDS:
            used = inodes = 0
            for folder, names, files in os.walk(self.containers.images.state / container_id / "diff"):
                inodes += len(names) + len(files)
                for name in files:
                    try:
                        used += os.lstat(os.path.join(folder, name)).st_blocks * 512
                    except OSError:
                        continue
            self._layers[container_id] = (time.monotonic(), used, inodes)
        return used, inodes

    def _container(self, container: Container) -> Any:
        try:
            figures = self.containers.runtime.stats(container.id)
        except NoSuchContainer:
            figures = cgroups.Stats(time_ns=time.time_ns())
        used, inodes = self.layer(container.id)
        return cri.ContainerStats(
            attributes=cri.ContainerAttributes(
                id=container.id,
                metadata=container.metadata,
                labels=container.config.labels,
                annotations=container.config.annotations,
            ),
            cpu=self._cpu(container.id, figures),
            memory=self._memory(figures),
            writable_layer=cri.FilesystemUsage(
                timestamp=figures.time_ns,
                fs_id=cri.FilesystemIdentifier(mountpoint=str(self.containers.images.state)),
                used_bytes=_u(used),
                inodes_used=_u(inodes),
            ),
            swap=cri.SwapUsage(timestamp=figures.time_ns, swap_usage_bytes=_u(figures.memory_swap)),
        )

    async def container(self, container: Container) -> Any:
        """A ContainerStats message."""
        return await asyncio.to_thread(self._container, container)

    async def select(self, wanted: Any) -> list[Any]:
        """ContainerStats of the running containers that a ContainerStatsFilter lets through."""
        chosen = [
            c
            for c in self.containers.records.labelled(wanted.label_selector)
            if c.state == cri.CONTAINER_RUNNING
            and c.id.startswith(wanted.id)
            and c.sandbox_id.startswith(wanted.pod_sandbox_id)
        ]
        return await asyncio.to_thread(lambda: [self._container(c) for c in chosen])

    def _pod(self, sandbox: Sandbox) -> Any:
        figures = cgroups.stats(self.sandboxes.cgroup_parent(sandbox))
        linux = cri.LinuxPodSandboxStats(
            cpu=self._cpu(sandbox.id, figures),
            memory=self._memory(figures),
            process=cri.ProcessUsage(timestamp=figures.time_ns, process_count=_u(figures.pids)),
            containers=[
                self._container(c) for c in self.containers.of_sandbox(sandbox.id) if c.state == cri.CONTAINER_RUNNING
            ],
        )
        pin = self.sandboxes.pin(sandbox, "net")
        if pin and sandbox.ready:
            usages = [
                cri.NetworkInterfaceUsage(
                    name=name, rx_bytes=_u(rx), rx_errors=_u(rx_bad), tx_bytes=_u(tx), tx_errors=_u(tx_bad)
                )
                for name, rx, rx_bad, tx, tx_bad in network.statistics(Path(pin))
            ]
            linux.network.timestamp = figures.time_ns
            if usages:
                linux.network.default_interface.CopyFrom(usages[0])
                linux.network.interfaces.extend(usages[1:])
        return cri.PodSandboxStats(
            attributes=cri.PodSandboxAttributes(
                id=sandbox.id,
                metadata=sandbox.metadata,
                labels=sandbox.config.labels,
                annotations=sandbox.config.annotations,
            ),
            linux=linux,
        )

    async def pod(self, sandbox: Sandbox) -> Any:
        """A PodSandboxStats message."""
        return await asyncio.to_thread(self._pod, sandbox)

    async def pods(self, wanted: Any) -> list[Any]:
        """PodSandboxStats of the ready sandboxes that a PodSandboxStatsFilter lets through."""
        chosen = [
            s for s in self.sandboxes.records.labelled(wanted.label_selector) if s.ready and s.id.startswith(wanted.id)
        ]
        return await asyncio.to_thread(lambda: [self._pod(s) for s in chosen])
