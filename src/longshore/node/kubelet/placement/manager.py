"""The topology manager: a pod's CPUs, memory and devices are asked for their places, and then taken at one of them.

Source: kubernetes pkg/kubelet/cm/topologymanager (topology_manager.go, scope_*.go).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, inf
from typing import Any, Protocol

from longshore.node.kubelet.config import Config
from longshore.node.kubelet.placement import cpus as cpu_manager
from longshore.node.kubelet.placement import hints as places
from longshore.node.kubelet.placement import machine as machines
from longshore.node.kubelet.placement import memory as memory_manager
from longshore.node.kubelet.placement.cpus import CpuManager, CpuOptions
from longshore.node.kubelet.placement.cpusets import render
from longshore.node.kubelet.placement.errors import AllocationError, TopologyAffinityError
from longshore.node.kubelet.placement.hints import ANYWHERE, Hint, Hints, Merger
from longshore.node.kubelet.placement.machine import Machine
from longshore.node.kubelet.placement.memory import MemoryManager
from longshore.node.kubelet.placement.options import boolean
from longshore.node.kubelet.resources import amount, milli

Pod = dict[str, Any]
MAX_NODES = 8
_NONE = ("none", "None", places.NONE)
BUCKETS = tuple(0.05 * 2**n for n in range(15))


class Devices(Protocol):
    """What has devices to give: the device manager."""

    def hints(self, pod: Pod, container: Mapping[str, Any]) -> Hints: ...
    def pod_hints(self, pod: Pod) -> Hints: ...
    async def allocate(self, pod: Pod, container: Mapping[str, Any], place: Hint) -> None: ...
    def forget(self, uid: str) -> None: ...
    async def save(self) -> None: ...


class Placement:
    """Gives pods what is theirs alone. cpus, memory: None where nobody has any of their own."""

    def __init__(
        self,
        devices: Devices,
        cpus: CpuManager | None = None,
        memory: MemoryManager | None = None,
        merger: Merger | None = None,
        scope: str = "container",
    ) -> None:
        """merger: the topology manager's policy; None: places are not looked at. scope: "container" or "pod"."""
        self.devices, self.cpus, self.memory = devices, cpus, memory
        self._merger, self._scope = merger, scope
        self._lock = asyncio.Lock()
        #: counts by metric name; ("aligned" | "unaligned", scope) of single-numa-node
        self.counts: Counter[str | tuple[str, str]] = Counter()
        #: milliseconds of admissions: (up to, how many), upstream's buckets; and their sum
        self.durations: Counter[float] = Counter()
        self.seconds = 0.0

    async def admit(self, pod: Pod) -> None:
        """Give a pod what it asks for; asked again it keeps what it has. Raises AllocationError; it then has nothing."""
        async with self._lock:
            began = time.perf_counter()
            self.counts["topology_manager_admission_requests_total"] += 1
            try:
                await self._admit(pod)
            except AllocationError:
                if self._merger is not None:
                    self.counts["topology_manager_admission_errors_total"] += 1
                self._release(pod["metadata"]["uid"])
                raise
            finally:
                await self.devices.save()
                if self._managers:
                    await asyncio.to_thread(self._save)
                if self._merger is not None:
                    self._observe(time.perf_counter() - began)

    def _observe(self, seconds: float) -> None:
        self.seconds += seconds
        self.durations[next((bound for bound in BUCKETS if seconds * 1000 <= bound), inf)] += 1

    async def _admit(self, pod: Pod) -> None:
        place = ANYWHERE
        if self._merger is not None and self._scope == "pod":
            place = self._place([p.pod_hints(pod) for p in self._providers])
            self._count_aligned("aligned")
        for container in _containers(pod):
            if self._merger is not None and self._scope != "pod":
                place = self._place([p.hints(pod, container) for p in self._providers])
            await self.devices.allocate(pod, container, place)
            for manager in self._managers:
                manager.allocate(pod, container, place)
            if self._scope != "pod":
                self._count_aligned("aligned")

    def _place(self, hints: Iterable[Hints]) -> Hint:
        assert self._merger is not None
        best, admitted = self._merger.merge(hints)
        if not admitted:
            self._count_aligned("unaligned")
            raise TopologyAffinityError
        return best

    def _count_aligned(self, how: str) -> None:
        if self._merger is not None and self._merger.policy == places.SINGLE_NUMA_NODE:
            self.counts[how, self._scope] += 1

    @property
    def _managers(self) -> Sequence[CpuManager | MemoryManager]:
        return [manager for manager in (self.cpus, self.memory) if manager is not None]

    @property
    def _providers(self) -> Sequence[Devices | CpuManager | MemoryManager]:
        return [self.devices, *self._managers]

    def cpuset(self, uid: str, name: str) -> tuple[str, str]:
        """The CPUs that a container may run on and the NUMA nodes that it may take memory of; "": any."""
        cpus = self.cpus.cpuset(uid, name) if self.cpus is not None else ""
        nodes = render(self.memory.nodes_of(uid, name)) if self.memory is not None else ""
        return cpus, nodes

    def users(self) -> set[str]:
        """The uids of pods that have CPUs or memory of their own."""
        return {uid for manager in self._managers for uid in manager.users()}

    def release(self, uid: str) -> bool:
        """The pod has ended; whether the shared CPUs are others now. Blocking."""
        changed = self._release(uid)
        if changed:
            self._save()
        return changed

    def _release(self, uid: str) -> bool:
        self.devices.forget(uid)
        return sum(manager.release(uid) for manager in self._managers) > 0

    def _save(self) -> None:
        for manager in self._managers:
            manager.save()


def _containers(pod: Pod) -> list[dict[str, Any]]:
    return [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]


def placement(config: Config, devices: Devices) -> Placement:
    """The managers that the settings ask for. Blocking. Raises ValueError in upstream's words."""
    if (config.cpu_manager_policy, config.memory_manager_policy, config.topology_manager_policy) == _NONE:
        cpu_manager.write_none(config.root)
        memory_manager.write_none(config.root)
        return Placement(devices)
    machine = machines.read(config.sys_root)
    merger = _merger(config, machine)
    cpus = memory = None
    if config.cpu_manager_policy == "static":
        cpus = _cpus(config, machine)
    else:
        cpu_manager.write_none(config.root)
    if config.memory_manager_policy == "Static":
        memory = MemoryManager(config.root, machine, _reserved(config, machine))
    else:
        memory_manager.write_none(config.root)
    return Placement(devices, cpus, memory, merger, config.topology_manager_scope)


def _cpus(config: Config, machine: Machine) -> CpuManager:
    alpha = config.feature_gates.get("CPUManagerPolicyAlphaOptions", False)
    options = CpuOptions.read(config.cpu_manager_options, alpha=alpha)
    if options.align_by_socket and config.topology_manager_policy == places.SINGLE_NUMA_NODE:
        raise ValueError("Topolgy manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option")  # fmt: skip
    kept = (config.kube_reserved, config.system_reserved)
    total = sum(milli(amounts["cpu"]) for amounts in kept if "cpu" in amounts)
    return CpuManager(config.root, machine, ceil(total / 1000), config.reserved_system_cpus, options)


def _merger(config: Config, machine: Machine) -> Merger | None:
    closest, most = False, MAX_NODES
    for name, value in config.topology_manager_options.items():
        if name == "prefer-closest-numa-nodes":
            closest = boolean(name, value)
        elif name == "max-allowable-numa-nodes":
            most = _whole(name, value)
        else:
            raise ValueError(f'unknown Topology Manager Policy option: "{name}"')
    if config.topology_manager_policy == places.NONE:
        return None
    if len(machine.nodes) > most:
        raise ValueError(f"unsupported on machines with more than {most} NUMA Nodes")
    distances = {number: node.distances for number, node in machine.nodes.items()} if closest else None
    if distances is not None and not all(distances.values()):
        raise ValueError("cannot discover NUMA topology: error getting NUMA distances from cadvisor")
    return Merger(config.topology_manager_policy, tuple(sorted(machine.nodes)), distances)


def _whole(name: str, value: str) -> int:
    try:
        found = int(value)
    except ValueError:
        raise ValueError(f'unable to convert policy option to integer "{name}": invalid syntax') from None
    if found < MAX_NODES:
        raise ValueError(f'the minimum value of "{name}" should not be less than {MAX_NODES}')
    return found


def _reserved(config: Config, machine: Machine) -> dict[int, dict[str, int]]:
    """reservedMemory by NUMA node, which must be in sum what Node Allocatable keeps back. Raises ValueError."""
    found: dict[int, dict[str, int]] = {number: {} for number in machine.nodes}
    total: Counter[str] = Counter()
    for number, limits in config.reserved_memory:
        if number not in found:
            raise ValueError(f"the reserved memory configuration references a NUMA node {number} that does not exist on this machine")  # fmt: skip
        for kind, text in limits.items():
            found[number][kind] = amount(text)
            total[kind] += amount(text)
    kept: Counter[str] = Counter()
    for amounts in (config.kube_reserved, config.system_reserved):
        for kind, text in amounts.items():
            if kind == "memory" or kind.startswith("hugepages-"):
                kept[kind] += amount(text)
    threshold = config.eviction_hard.get("memory.available", "")
    if threshold.endswith("%"):
        kept["memory"] += int(sum(n.memory for n in machine.nodes.values()) * float(threshold[:-1]) / 100)
    elif threshold:
        kept["memory"] += amount(threshold)
    for kind in total.keys() | kept.keys():
        if total[kind] != kept[kind]:
            raise ValueError(f'the total amount "{total[kind]}" of type "{kind}" is not equal to the value "{kept[kind]}" determined by Node Allocatable feature')  # fmt: skip
    return found
