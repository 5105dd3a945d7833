"""The figures of `docker stats` and `docker top`. Source: Docker Engine API, ContainerStats."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshore.engine.errors import Conflict, SystemFailure
from longshore.engine.runtime import cgroups
from longshore.engine.runtime.runtime import NoSuchContainer
from longshore.machinery import process

from .model import Container, format_time

if TYPE_CHECKING:
    from .service import ContainerService

Json = dict[str, Any]

_BLKIO = (
    "io_service_bytes_recursive", "io_serviced_recursive", "io_queue_recursive", "io_service_time_recursive",
    "io_wait_time_recursive", "io_merged_recursive", "io_time_recursive", "sectors_recursive",
)  # fmt: skip
_ZERO = "0001-01-01T00:00:00Z"


def _system_cpu() -> int:
    """CPU time of the whole machine in nanoseconds."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    return sum(int(f) for f in fields) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _memory_total() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _networks(container: Container) -> Json:
    """Counters of the container's interfaces, as its network namespace shows them."""
    try:
        text = Path(f"/proc/{container.state.pid}/net/dev").read_text()
    except OSError:
        return {}
    result: Json = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        name = name.strip()
        n = rest.split()
        if name == "lo" or len(n) < 12:
            continue
        result[name] = {
            "rx_bytes": int(n[0]), "rx_packets": int(n[1]), "rx_errors": int(n[2]), "rx_dropped": int(n[3]),
            "tx_bytes": int(n[8]), "tx_packets": int(n[9]), "tx_errors": int(n[10]), "tx_dropped": int(n[11]),
        }  # fmt: skip
    return result


def empty_cpu() -> Json:
    return {
        "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    }


def empty(container: Container) -> Json:
    """What a container that does not run has."""
    return {
        "name": container.name,
        "id": container.id,
        "read": _ZERO,
        "preread": _ZERO,
        "pids_stats": {},
        "blkio_stats": dict.fromkeys(_BLKIO),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": empty_cpu(),
        "precpu_stats": empty_cpu(),
        "memory_stats": {},
    }


def _cpu(s: cgroups.Stats) -> Json:
    usage: Json = {"total_usage": s.cpu_total}
    if s.cpu_per_cpu:
        usage["percpu_usage"] = s.cpu_per_cpu
    usage["usage_in_kernelmode"], usage["usage_in_usermode"] = s.cpu_system, s.cpu_user
    return {
        "cpu_usage": usage,
        "system_cpu_usage": _system_cpu(),
        "online_cpus": os.cpu_count() or 1,
        "throttling_data": {
            "periods": s.periods,
            "throttled_periods": s.throttled_periods,
            "throttled_time": s.throttled_time,
        },
    }


_SHOWN_V1 = (
    "active_anon", "active_file", "cache", "dirty", "hierarchical_memory_limit", "hierarchical_memsw_limit",
    "inactive_anon", "inactive_file", "mapped_file", "pgfault", "pgmajfault", "pgpgin", "pgpgout", "rss", "rss_huge",
    "total_active_anon", "total_active_file", "total_cache", "total_dirty", "total_inactive_anon", "total_inactive_file",
    "total_mapped_file", "total_pgfault", "total_pgmajfault", "total_pgpgin", "total_pgpgout", "total_rss",
    "total_rss_huge", "total_unevictable", "total_writeback", "unevictable", "writeback",
)  # fmt: skip


def sample(
    service: ContainerService, container: Container, previous: Json | None = None, *, named: bool = True
) -> Json:
    """One answer; previous: the one before, whose CPU figures become precpu_stats."""
    try:
        s = service.runtime.stats(container.id)
    except NoSuchContainer:
        return empty(container)
    limit = s.memory_limit or _memory_total()
    memory: Json = {"usage": s.memory_usage}
    if cgroups.unified():
        memory["stats"] = dict(sorted(s.memory_stat.items()))
    else:
        memory["max_usage"] = s.memory_max_usage
        memory["stats"] = {name: s.memory_stat.get(name, 0) for name in _SHOWN_V1}
        if s.memory_failures:
            memory["failcnt"] = s.memory_failures
    memory["limit"] = min(limit, _memory_total())
    block: Json = {name: [] for name in _BLKIO}
    for major, minor, operation, size, count in s.io:
        block["io_service_bytes_recursive"].append({"major": major, "minor": minor, "op": operation, "value": size})
        block["io_serviced_recursive"].append({"major": major, "minor": minor, "op": operation, "value": count})
    if cgroups.unified():
        block = {name: (block[name] or None) for name in _BLKIO}
    pids: Json = {"current": s.pids}
    if s.pids_limit:
        pids["limit"] = s.pids_limit
    shown: Json = {"name": container.name, "id": container.id} if named else {}
    shown.update(
        {
            "read": format_time(time.time_ns()),
            "preread": previous["read"] if previous else _ZERO,
            "pids_stats": pids,
            "blkio_stats": block,
            "num_procs": 0,
            "storage_stats": {},
            "cpu_stats": _cpu(s),
            "precpu_stats": previous["cpu_stats"] if previous else empty_cpu(),
            "memory_stats": memory,
        }
    )
    networks = _networks(container)
    if networks:
        shown["networks"] = networks
    return shown


async def top(service: ContainerService, container: Container, ps_args: str) -> Json:
    """The processes of a container as ps(1) shows them. Raises Conflict, SystemFailure."""
    if not container.state.running:
        raise Conflict(f"container {container.id} is not running")
    if container.state.restarting:
        raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
    pids = service.runtime.processes(container.id)
    try:
        arguments = shlex.split(ps_args or "-ef")
    except ValueError as error:
        raise SystemFailure(str(error)) from None
    done = await process.run(["ps", *arguments, "-q", ",".join(map(str, pids)) or "0"], check=False)
    if done.returncode != 0 and not done.stdout.strip():
        # Options that cannot be combined with -q: list all, and choose.
        done = await process.run(["ps", *arguments], check=False)
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            raise SystemFailure(f"error running ps: exit status {done.returncode}" + (f": {words[0]}" if words else ""))
    lines = done.stdout.decode(errors="replace").splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise SystemFailure("Couldn't find PID field in ps output")
    column = titles.index("PID")
    wanted = set(map(str, pids))
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column] in wanted:
            rows.append(fields)
    return {"Processes": rows, "Titles": titles}
