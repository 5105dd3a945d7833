"""The memory manager: containers of Guaranteed pods get their memory and huge pages from NUMA nodes that are told them.

Source: kubernetes pkg/kubelet/cm/memorymanager (policy_static.go, memory_manager.go: rules and texts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longshore.machinery import quantity
from longshore.node.kubelet import resources
from longshore.node.kubelet.placement import checkpoint
from longshore.node.kubelet.placement.errors import AllocationError
from longshore.node.kubelet.placement.hints import Hint, Hints, mask_of, masks, narrower, nodes_of, prefer
from longshore.node.kubelet.placement.machine import Machine
from longshore.node.kubelet.resources import is_sidecar

Pod = dict[str, Any]
MEMORY = "memory"


@dataclass(slots=True)
class Table:
    """One sort of memory of a node, in bytes."""

    total: int
    systemReserved: int
    allocatable: int
    reserved: int
    free: int


@dataclass(slots=True)
class NodeState:
    """What of a NUMA node is given. cells: the nodes with which it serves as one."""

    cells: list[int]
    tables: dict[str, Table]
    assignments: int = 0


@dataclass(slots=True)
class Block:
    """What a container has of one sort of memory. size: bytes."""

    nodes: list[int]
    kind: str
    size: int

    def as_json(self) -> dict[str, Any]:
        return {"numaAffinity": self.nodes, "type": self.kind, "size": self.size}


@dataclass(slots=True)
class _Reusable:
    """What init containers of a pod leave to those after them: (mask, kind) -> bytes."""

    sizes: dict[tuple[int, str], int] = field(default_factory=dict)


class MemoryManager:
    """The node's memory under the static policy."""

    def __init__(self, root: Path, machine: Machine, reserved: Mapping[int, Mapping[str, int]]) -> None:
        """root: the kubelet's. reserved: NUMA node -> kind -> bytes that are nobody's own.

        Raises ValueError where nothing is reserved, or what was written down does not fit this machine. Blocking.
        """
        if not any(limits.get(MEMORY) for limits in reserved.values()):
            raise ValueError("[memorymanager] you should specify the system reserved memory")
        self._file = root / "memory_manager_state"
        self._nodes = {n: _fresh(n, node.memory, node.hugepages, reserved.get(n, {})) for n, node in machine.nodes.items()}  # fmt: skip
        self._given: dict[str, dict[str, list[Block]]] = {}
        self._reusable: dict[str, _Reusable] = {}
        self.counts: Counter[str] = Counter()
        self._load()

    # -- who has what ------------------------------------------------------------------------------------------------

    def of_container(self, uid: str, name: str) -> list[Block]:
        return list(self._given.get(uid, {}).get(name, ()))

    def nodes_of(self, uid: str, name: str) -> set[int]:
        """The NUMA nodes that a container may take memory of; none: any."""
        return {node for block in self.of_container(uid, name) for node in block.nodes}

    @property
    def allocatable(self) -> list[Block]:
        """What can be somebody's own."""
        return [
            Block([number], kind, table.allocatable)
            for number, node in sorted(self._nodes.items())
            for kind, table in node.tables.items()
            if table.allocatable
        ]

    def users(self) -> set[str]:
        return set(self._given)

    # -- hints -------------------------------------------------------------------------------------------------------

    def hints(self, pod: Pod, container: Mapping[str, Any]) -> Hints:
        """The NUMA nodes on which a container's memory could be."""
        wanted = _asked(pod, container)
        own = self._given.get(pod["metadata"]["uid"], {}).get(container["name"])
        return self._again(own, wanted) if own is not None else self._hints(pod, wanted)

    def pod_hints(self, pod: Pod) -> Hints:
        """The NUMA nodes on which all memory of a pod could be."""
        wanted = _of_pod(pod)
        for own in self._given.get(pod["metadata"]["uid"], {}).values():
            return self._again(own, wanted)
        return self._hints(pod, wanted)

    @staticmethod
    def _again(own: list[Block], wanted: Mapping[str, int]) -> Hints:
        """The same place once more, for what has been given already."""
        if {block.kind: block.size for block in own} != dict(wanted):
            return {}
        return {block.kind: [Hint(mask_of(block.nodes), True)] for block in own}

    def _hints(self, pod: Pod, wanted: Mapping[str, int]) -> dict[str, list[Hint]]:
        if not wanted:
            return {}
        smallest, found = len(self._nodes), []
        for mask in masks(self._nodes):
            nodes = nodes_of(mask)
            if any(self._sum(nodes, kind, "allocatable") < size for kind, size in wanted.items()):
                continue
            smallest = min(smallest, len(nodes))
            again = self._reusable.get(pod["metadata"]["uid"], _Reusable()).sizes
            if self._fits_group(nodes, single_is_free=False) and all(
                self._sum(nodes, kind, "free") + again.get((mask, kind), 0) >= size for kind, size in wanted.items()
            ):
                found.append(mask)
        # What cannot be had anywhere gives no hint at all, as upstream's: it is refused when it is allocated.
        return {kind: prefer(found, smallest) for kind in wanted} if found else {}

    def _sum(self, nodes: Iterable[int], kind: str, name: str) -> int:
        tables = (self._nodes[n].tables.get(kind) for n in nodes)
        return sum(getattr(table, name) for table in tables if table is not None)

    def _fits_group(self, nodes: list[int], *, single_is_free: bool) -> bool:
        """A node serves alone or in one group of nodes, not both. single_is_free: one node may always be asked again."""
        if len(nodes) == 1:
            return single_is_free or len(self._nodes[nodes[0]].cells) == 1
        return all(not self._nodes[n].assignments or sorted(self._nodes[n].cells) == nodes for n in nodes)

    # -- giving and taking -------------------------------------------------------------------------------------------

    def allocate(self, pod: Pod, container: Mapping[str, Any], place: Hint) -> None:
        """Give a container its memory at a place, or around it. Raises AllocationError. `save` writes it down."""
        if not _is_managed(pod):
            return
        self.counts["memory_manager_pinning_requests_total"] += 1
        uid = pod["metadata"]["uid"]
        own = self._given.get(uid, {}).get(container["name"])
        try:
            if own is None:
                own = self._choose(pod, _asked(pod, container), place)
                self._given.setdefault(uid, {})[container["name"]] = own
                self._lessen_inits(pod, container, own)
        except AllocationError:
            self.counts["memory_manager_pinning_errors_total"] += 1
            raise
        self._hand_on(pod, container, own)

    def _choose(self, pod: Pod, wanted: Mapping[str, int], place: Hint) -> list[Block]:
        if not wanted:
            return []
        mask = place.mask
        if mask is None:
            found = self._hints(pod, wanted)
            if not found:
                raise AllocationError("[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available")  # fmt: skip
            best = _best(found[MEMORY])
            if place.preferred and not best.preferred:
                raise AllocationError("[memorymanager] failed to find the default preferred hint")
            place, mask = best, best.mask or 0
        if any(self._sum(nodes_of(mask), kind, "free") < size for kind, size in wanted.items()):
            around = [h for h in self._hints(pod, wanted).get(MEMORY, ()) if h.mask is not None and mask & ~h.mask == 0]
            if not around:
                raise AllocationError("[memorymanager] failed to find NUMA nodes to extend the current topology hint")
            best = _best(around)
            if place.preferred and not best.preferred:
                raise AllocationError("[memorymanager] failed to find the extended preferred hint")
            mask = best.mask or 0
        if not self._fits_group(nodes_of(mask), single_is_free=True):
            raise AllocationError("[memorymanager] preferred hint violates NUMA node allocation")
        return self._take(pod, wanted, mask)

    def _take(self, pod: Pod, wanted: Mapping[str, int], mask: int) -> list[Block]:
        nodes = nodes_of(mask)
        again = self._reusable.get(pod["metadata"]["uid"], _Reusable()).sizes
        for kind, size in wanted.items():
            left = max(0, size - again.get((mask, kind), 0))
            for number in nodes:
                node, table = self._nodes[number], self._nodes[number].tables[kind]
                node.assignments += 1
                node.cells = list(nodes)
                part = min(left, table.free)
                table.reserved += part
                table.free -= part
                left -= part
        return [Block(list(nodes), kind, size) for kind, size in wanted.items()]

    def _lessen_inits(self, pod: Pod, container: Mapping[str, Any], own: list[Block]) -> None:
        """What a container uses again is not told of the init containers any more: blocks sum up to what is taken."""
        blocks = self._given[pod["metadata"]["uid"]]
        for block in own:
            left = block.size
            for init in pod["spec"].get("initContainers") or ():
                if init["name"] == container["name"]:
                    break
                for other in [] if is_sidecar(init) else blocks.get(init["name"], ()):
                    if other.kind == block.kind and other.nodes == block.nodes:
                        part = min(left, other.size)
                        other.size -= part
                        left -= part

    def _hand_on(self, pod: Pod, container: Mapping[str, Any], own: list[Block]) -> None:
        uid = pod["metadata"]["uid"]
        sizes = self._reusable.setdefault(uid, _Reusable()).sizes
        is_init = container in (pod["spec"].get("initContainers") or ())
        for block in own:
            key = mask_of(block.nodes), block.kind
            if is_init and not is_sidecar(container):
                sizes[key] = max(sizes.get(key, 0), block.size)
            else:
                sizes[key] = max(0, sizes.get(key, 0) - block.size)

    def release(self, uid: str) -> bool:
        """The pod has ended; whether it had anything. `save` writes it down."""
        self._reusable.pop(uid, None)
        given = self._given.pop(uid, None)
        if given is None:
            return False
        for blocks in given.values():
            for block in blocks:
                self._give_back(block)
        return True

    def _give_back(self, block: Block) -> None:
        left = block.size
        for number in block.nodes:
            node, table = self._nodes[number], self._nodes[number].tables[block.kind]
            node.assignments -= 1
            if node.assignments == 0:
                node.cells = [number]
            part = min(left, table.reserved)
            table.reserved -= part
            table.free += part
            left -= part

    # -- what is written down ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        kept = checkpoint.of_policy(self._file, "Static", "memory")
        if kept is None:
            return
        fixed = ("total", "systemReserved", "allocatable")

        def shape(state: Mapping[str, Any]) -> Any:
            return {n: {k: [t[f] for f in fixed] for k, t in s["memoryMap"].items()} for n, s in state.items()}

        if kept["machineState"] and shape(kept["machineState"]) != shape(self._state()):
            raise ValueError(
                f"invalid state, please drain node and remove policy state file {self._file}: [memorymanager] the expected"
                " machine state is different from the real one"
            )
        for number, state in kept["machineState"].items():
            tables = {kind: Table(**table) for kind, table in state["memoryMap"].items()}
            self._nodes[int(number)] = NodeState(list(state["cells"]), tables, int(state["numberOfAssignments"]))
        self._given = {
            uid: {n: [Block(b["numaAffinity"], b["type"], b["size"]) for b in blocks] for n, blocks in own.items()}
            for uid, own in (kept.get("entries") or {}).items()
        }

    def _state(self) -> dict[str, Any]:
        return {
            str(number): {
                "numberOfAssignments": node.assignments,
                "memoryMap": {kind: asdict(table) for kind, table in sorted(node.tables.items())},
                "cells": node.cells,
            }
            for number, node in sorted(self._nodes.items())
        }

    def save(self) -> None:
        """Write down who has what. Blocking."""
        entries = {u: {n: [b.as_json() for b in blocks] for n, blocks in own.items()} for u, own in self._given.items()}
        checkpoint.write(self._file, {"policyName": "Static", "machineState": self._state(), "entries": entries})


def _fresh(number: int, memory: int, hugepages: Mapping[int, int], reserved: Mapping[str, int]) -> NodeState:
    sizes = {
        f"hugepages-{quantity.from_number(size, quantity.BINARY)}": size * count for size, count in hugepages.items()
    }
    tables = {}
    for kind, total, usable in (*((k, s, s) for k, s in sizes.items()), (MEMORY, memory, memory - sum(sizes.values()))):
        allocatable = max(0, usable - reserved.get(kind, 0))
        tables[kind] = Table(total, reserved.get(kind, 0), allocatable, 0, allocatable)
    return NodeState([number], tables)


def _best(hints: Iterable[Hint]) -> Hint:
    best: Hint | None = None
    for hint in hints:
        if (
            best is None
            or (hint.preferred and not best.preferred)
            or (hint.preferred == best.preferred and narrower(hint.mask or 0, best.mask or 0))
        ):
            best = hint
    assert best is not None
    return best


def _is_managed(pod: Pod) -> bool:
    return not pod["spec"].get("resources") and resources.qos_class(pod) == resources.GUARANTEED


def _asked(pod: Pod, container: Mapping[str, Any]) -> dict[str, int]:
    """What a container asks for: kind -> bytes."""
    if not _is_managed(pod):
        return {}
    requests = (container.get("resources") or {}).get("requests") or {}
    return {
        name: size
        for name, text in requests.items()
        if (name == MEMORY or name.startswith("hugepages-")) and (size := resources.amount(text))
    }


def _of_pod(pod: Pod) -> dict[str, int]:
    """What a pod needs at most at once."""
    sidecars: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in pod["spec"].get("initContainers") or ():
        own = Counter(_asked(pod, container))
        if is_sidecar(container):
            sidecars += own
        else:
            peak |= sidecars + own
    total = Counter(sidecars)
    for container in pod["spec"]["containers"]:
        total += Counter(_asked(pod, container))
    return dict(total | peak)


def write_none(root: Path) -> None:
    """What the policy "None" leaves behind. Blocking. Raises ValueError where containers have memory of their own."""
    file = root / "memory_manager_state"
    checkpoint.of_policy(file, "None", "memory")
    checkpoint.write(file, {"policyName": "None", "machineState": {}, "entries": {}})
