"""Figures of containers' control groups. Where the groups are, and their end: machinery.cgroups, offered here too.

Source: kernel documentation cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from longshore.machinery.cgroups import folder as _folder
from longshore.machinery.cgroups import (
    folders,
    frozen,
    holds,
    kill_all,
    mounts,
    processes,
    remove,
    remove_empty,
    thaw,
    unified,
)
from longshore.machinery.cgroups import read as _read


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdigit() else 0


def _table(text: str) -> dict[str, int]:
    result = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.strip().lstrip("-").isdigit():
            result[name] = int(value)
    return result


def oom_kills(path: str) -> int:
    """How often the kernel killed a process of this cgroup for want of memory."""
    if unified():
        return _table(_read(_folder(path, ""), "memory.events")).get("oom_kill", 0)
    return _table(_read(_folder(path, "memory"), "memory.oom_control")).get("oom_kill", 0)


@dataclass(slots=True)
class Stats:
    """Figures of one cgroup at `time_ns`; times in nanoseconds, sizes in bytes. A limit of 0: none."""

    time_ns: int = 0
    cpu_total: int = 0
    cpu_user: int = 0
    cpu_system: int = 0
    cpu_per_cpu: list[int] = field(default_factory=list)
    periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0
    memory_usage: int = 0
    memory_max_usage: int = 0
    memory_limit: int = 0
    memory_failures: int = 0
    memory_swap: int = 0
    memory_stat: dict[str, int] = field(default_factory=dict)
    pids: int = 0
    pids_limit: int = 0
    io: list[tuple[int, int, str, int, int]] = field(default_factory=list)
    """Block device figures: (major, minor, operation, bytes, requests)."""

    @property
    def memory_working_set(self) -> int:
        """Usage less the inactive page cache, as kubelet and `docker stats` show it."""
        inactive = self.memory_stat.get("total_inactive_file", self.memory_stat.get("inactive_file", 0))
        return max(self.memory_usage - inactive, 0)


def _io_v1(folder: Path | None) -> list[tuple[int, int, str, int, int]]:
    figures: dict[tuple[int, int, str], list[int]] = {}
    for index, name in enumerate(("io_service_bytes", "io_serviced")):
        text = _read(folder, f"blkio.{name}_recursive") or _read(folder, f"blkio.throttle.{name}_recursive")
        text = text or _read(folder, f"blkio.throttle.{name}")
        for line in text.splitlines():
            parts = line.split()
            if len(parts) == 3 and ":" in parts[0]:
                major, _, minor = parts[0].partition(":")
                figures.setdefault((int(major), int(minor), parts[1]), [0, 0])[index] = int(parts[2])
    return [(*key, *value) for key, value in figures.items()]  # type: ignore[misc]


def _io_v2(folder: Path | None) -> list[tuple[int, int, str, int, int]]:
    result = []
    for line in _read(folder, "io.stat").splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        values = dict(pair.partition("=")[::2] for pair in pairs)
        for operation, size, count in (("read", "rbytes", "rios"), ("write", "wbytes", "wios")):
            result.append(
                (int(major), int(minor), operation, _number(values.get(size, "")), _number(values.get(count, "")))
            )
    return result


def stats(path: str) -> Stats:
    """Read the figures of a cgroup; what the kernel does not keep stays 0."""
    s = Stats(time_ns=time.time_ns())
    if unified():
        folder = _folder(path, "")
        cpu = _table(_read(folder, "cpu.stat"))
        s.cpu_total, s.cpu_user, s.cpu_system = (
            cpu.get(k, 0) * 1000 for k in ("usage_usec", "user_usec", "system_usec")
        )
        s.periods, s.throttled_periods = cpu.get("nr_periods", 0), cpu.get("nr_throttled", 0)
        s.throttled_time = cpu.get("throttled_usec", 0) * 1000
        s.memory_usage = _number(_read(folder, "memory.current"))
        s.memory_max_usage = _number(_read(folder, "memory.peak"))
        s.memory_limit = _number(_read(folder, "memory.max"))
        s.memory_swap = _number(_read(folder, "memory.swap.current"))
        s.memory_failures = _table(_read(folder, "memory.events")).get("oom", 0)
        s.memory_stat = _table(_read(folder, "memory.stat"))
        s.pids, s.pids_limit = _number(_read(folder, "pids.current")), _number(_read(folder, "pids.max"))
        s.io = _io_v2(folder)
        return s
    account, cpu_folder, memory = _folder(path, "cpuacct"), _folder(path, "cpu"), _folder(path, "memory")
    s.cpu_total = _number(_read(account, "cpuacct.usage"))
    s.cpu_per_cpu = [int(x) for x in _read(account, "cpuacct.usage_percpu").split()]
    ticks = _table(_read(account, "cpuacct.stat"))
    s.cpu_user, s.cpu_system = ticks.get("user", 0) * 10_000_000, ticks.get("system", 0) * 10_000_000
    throttling = _table(_read(cpu_folder, "cpu.stat"))
    s.periods, s.throttled_periods = throttling.get("nr_periods", 0), throttling.get("nr_throttled", 0)
    s.throttled_time = throttling.get("throttled_time", 0)
    s.memory_usage = _number(_read(memory, "memory.usage_in_bytes"))
    s.memory_max_usage = _number(_read(memory, "memory.max_usage_in_bytes"))
    limit = _number(_read(memory, "memory.limit_in_bytes"))
    s.memory_limit = limit if limit < 2**62 else 0
    s.memory_failures = _number(_read(memory, "memory.failcnt"))
    s.memory_stat = _table(_read(memory, "memory.stat"))
    s.memory_swap = s.memory_stat.get("total_swap", 0)
    pids = _folder(path, "pids")
    s.pids, s.pids_limit = _number(_read(pids, "pids.current")), _number(_read(pids, "pids.max"))
    s.io = _io_v1(_folder(path, "blkio"))
    return s


__all__ = [
    "Stats",
    "folders",
    "frozen",
    "holds",
    "kill_all",
    "mounts",
    "oom_kills",
    "processes",
    "remove",
    "remove_empty",
    "stats",
    "thaw",
    "unified",
]
