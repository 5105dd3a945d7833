"""What the machine is made of, as the kernel tells it under /sys: sockets, NUMA nodes, caches, cores, memory.

Source: Linux Documentation/ABI/stable/sysfs-devices-node, Documentation/admin-guide/cputopology.rst; cadvisor's machine
information, which upstream's managers are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from longshore.node.kubelet.placement.cpusets import parse

Level = Literal["socket", "numa", "uncore", "core"]
SYS = Path("/sys")


class Cpu(NamedTuple):
    """Where a CPU (a hardware thread) is. core: the lowest CPU of its core. uncore: its last-level cache."""

    socket: int
    core: int
    numa: int = 0
    uncore: int = 0


@dataclass(frozen=True, slots=True)
class NumaNode:
    """memory: bytes. hugepages: page size in bytes -> how many. distances: to the nodes 0, 1, ... as in SLIT."""

    memory: int
    hugepages: Mapping[int, int] = field(default_factory=dict)
    distances: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """The CPUs that are online and the NUMA nodes, by number."""

    cpus: Mapping[int, Cpu]
    nodes: Mapping[int, NumaNode]

    def groups(self, level: Level, cpus: Iterable[int] | None = None) -> dict[int, set[int]]:
        """The sockets, nodes, caches or cores, each with its CPUs; of those that are given."""
        found: dict[int, set[int]] = {}
        for cpu in self.cpus if cpus is None else cpus:
            found.setdefault(getattr(self.cpus[cpu], level), set()).add(cpu)
        return found

    @property
    def cpus_per_core(self) -> int:
        return len(self.cpus) // max(1, len(self.groups("core")))


def read(root: Path = SYS) -> Machine:
    """This machine, or the one of another root folder that is laid out as /sys. Blocking. Raises OSError."""
    system = root / "devices" / "system"
    online = parse((system / "cpu" / "online").read_text())
    nodes = _nodes(system / "node")
    homes = {cpu: number for number, (_, cpus) in nodes.items() for cpu in cpus}
    cpus = {cpu: _cpu(system / "cpu" / f"cpu{cpu}", cpu, online, homes.get(cpu, 0)) for cpu in sorted(online)}
    return Machine(cpus, {number: node for number, (node, _) in nodes.items()})


def _cpu(folder: Path, cpu: int, online: set[int], numa: int) -> Cpu:
    siblings = parse(_text(folder / "topology" / "thread_siblings_list")) & online or {cpu}
    return Cpu(
        max(0, _number(folder / "topology" / "physical_package_id", 0)), min(siblings), numa, _uncore(folder, numa)
    )


def _uncore(folder: Path, numa: int) -> int:
    """The last-level cache: its id, else the first CPU that shares it; the NUMA node where the kernel tells of none."""
    for cache in sorted(folder.glob("cache/index*")):
        if _number(cache / "level", 0) == 3:
            shared = parse(_text(cache / "shared_cpu_list"))
            return _number(cache / "id", min(shared, default=numa))
    return numa


def _nodes(folder: Path) -> dict[int, tuple[NumaNode, set[int]]]:
    numbers = parse(_text(folder / "online"))
    if not numbers:
        return {0: (NumaNode(_memory(Path("/proc/meminfo"))), set())}
    return {number: _node(folder / f"node{number}") for number in sorted(numbers)}


def _node(folder: Path) -> tuple[NumaNode, set[int]]:
    pages = {}
    for size in folder.glob("hugepages/hugepages-*kB"):
        pages[int(size.name.removeprefix("hugepages-").removesuffix("kB")) * 1024] = _number(size / "nr_hugepages", 0)
    distances = tuple(map(int, _text(folder / "distance").split()))
    return NumaNode(_memory(folder / "meminfo"), pages, distances), parse(_text(folder / "cpulist"))


def _memory(file: Path) -> int:
    for line in _text(file).splitlines():
        _, found, rest = line.partition("MemTotal:")
        if found:
            return int(rest.split()[0]) * 1024
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _number(file: Path, absent: int) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return absent
