"""The CPU manager: containers of Guaranteed pods that ask for whole CPUs get some of their own.

All others share the rest. Source: kubernetes pkg/kubelet/cm/cpumanager (policy_static.go, policy_options.go: rules and texts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshore.node.kubelet import resources
from longshore.node.kubelet.placement import checkpoint
from longshore.node.kubelet.placement.assignment import NotEnough, distributed, packed
from longshore.node.kubelet.placement.cpusets import parse, render
from longshore.node.kubelet.placement.errors import AllocationError
from longshore.node.kubelet.placement.hints import Hint, Hints, masks, nodes_of, prefer
from longshore.node.kubelet.placement.machine import Machine
from longshore.node.kubelet.placement.options import boolean
from longshore.node.kubelet.resources import is_sidecar

Pod = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CpuOptions:
    """cpuManagerPolicyOptions; upstream says what each is for."""

    full_pcpus_only: bool = False
    distribute_cpus_across_numa: bool = False
    align_by_socket: bool = False
    distribute_cpus_across_cores: bool = False
    strict_cpu_reservation: bool = False
    prefer_align_cpus_by_uncorecache: bool = False

    @classmethod
    def read(cls, given: Mapping[str, str], *, alpha: bool = False) -> CpuOptions:
        """Options by upstream's names. alpha: the feature gate CPUManagerPolicyAlphaOptions. Raises ValueError."""
        known = {name.replace("_", "-"): name for name in cls.__dataclass_fields__}
        for name in given:
            if name not in known:
                raise ValueError(f'unknown CPU Manager Policy option: "{name}"')
            if name in _ALPHA and not alpha:
                raise ValueError(f'CPU Manager Policy Alpha-level Options not enabled, but option "{name}" provided')
        found = cls(**{known[name]: boolean(name, value) for name, value in given.items()})
        for pair in _APART:
            if all(getattr(found, known[name]) for name in pair):
                raise ValueError(f"static policy options {pair[0]} and {pair[1]} can not be used at the same time")
        return found


_ALPHA = frozenset(("align-by-socket", "distribute-cpus-across-cores"))
_APART = (
    ("full-pcpus-only", "distribute-cpus-across-cores"),
    ("distribute-cpus-across-numa", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"),
)


class SMTAlignmentError(AllocationError):
    """Not whole cores are asked for, or there are not so many."""

    reason = "SMTAlignmentError"

    def __init__(self, asked: int, per_core: int, available: int | None = None) -> None:
        if available is None:
            super().__init__(f"SMT Alignment Error: requested {asked} cpus not multiple cpus per core = {per_core}")
        else:
            super().__init__(
                "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = "
                f"{available}, requested CPUs = {asked}, CPUs per core = {per_core}"
            )


class CpuManager:
    """The node's CPUs under the static policy."""

    def __init__(
        self, root: Path, machine: Machine, reserved: int, explicit: str = "", options: CpuOptions | None = None
    ) -> None:
        """root: the kubelet's. reserved: how many CPUs are nobody's own; explicit: which, where that is said.

        Raises ValueError where none is reserved, or where what was written down does not fit this machine. Blocking.
        """
        self._file, self._machine, self.options = root / "cpu_manager_state", machine, options or CpuOptions()
        #: counts by upstream's metric names, and allocations aligned to caches and cores
        self.counts: Counter[str] = Counter()
        if explicit:
            self.reserved = parse(explicit)
        else:
            if reserved <= 0:
                raise ValueError("[cpumanager] unable to determine reserved CPU resources for static policy")
            self.reserved = self._take(set(machine.cpus), reserved)
        sockets, nodes = len(machine.groups("socket")), len(machine.groups("numa"))
        if self.options.align_by_socket and sockets > nodes:
            raise ValueError("Align by socket is not compatible with hardware where number of sockets are more than number of NUMA")  # fmt: skip
        if not self.reserved <= set(machine.cpus):
            raise ValueError(f"[cpumanager] reserved CPUs {render(self.reserved)} are not all online")
        cores = machine.groups("core")
        self._reserved_cores = {cpu for c in self.reserved for cpu in cores[machine.cpus[c].core]}
        #: pod uid -> container -> its CPUs
        self._given: dict[str, dict[str, set[int]]] = {}
        #: what init containers of the pod that is being admitted leave to those after them
        self._reusable: dict[str, set[int]] = {}
        self._load()

    # -- who has what ------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> set[int]:
        """What is nobody's own."""
        own = {c for mine in self._given.values() for cpus in mine.values() for c in cpus}
        return set(self._machine.cpus) - own - (self.reserved if self.options.strict_cpu_reservation else set())

    @property
    def allocatable(self) -> set[int]:
        """What can be somebody's own."""
        return set(self._machine.cpus) - self.reserved

    def of_container(self, uid: str, name: str) -> set[int]:
        """A container's own CPUs; none for one that shares."""
        return set(self._given.get(uid, {}).get(name, ()))

    def cpuset(self, uid: str, name: str) -> str:
        """The CPUs that a container may run on."""
        return render(self.of_container(uid, name) or self.shared)

    def pinned(self, uid: str) -> bool:
        """Whether a pod has CPUs of its own."""
        return uid in self._given

    def users(self) -> set[str]:
        """The uids of pods that have CPUs of their own."""
        return set(self._given)

    def by_node(self) -> Counter[int]:
        """NUMA node -> how many of its CPUs are somebody's own."""
        own = set(self._machine.cpus) - self.shared - self.reserved
        return Counter(self._machine.cpus[cpu].numa for cpu in own)

    # -- hints -------------------------------------------------------------------------------------------------------

    def hints(self, pod: Pod, container: Mapping[str, Any]) -> Hints:
        """The NUMA nodes on which a container's CPUs could be."""
        count, uid = _exclusive(pod, container), pod["metadata"]["uid"]
        if not count:
            return {}
        own = self._given.get(uid, {}).get(container["name"])
        if own is not None:
            return {"cpu": self._hints(own, set(), count) if len(own) == count else []}
        return {"cpu": self._hints(self.shared - self.reserved, self._reusable.get(uid, set()), count)}

    def pod_hints(self, pod: Pod) -> Hints:
        """The NUMA nodes on which all CPUs of a pod could be."""
        count, own = _of_pod(pod), self._given.get(pod["metadata"]["uid"], {})
        if not count:
            return {}
        asked = {c["name"]: _exclusive(pod, c) for c in _containers(pod)}
        if any(len(cpus) != asked.get(name) for name, cpus in own.items()):
            return {"cpu": []}
        mine = {cpu for cpus in own.values() for cpu in cpus}
        if len(mine) == count:
            return {"cpu": self._hints(mine, set(), count)}
        return {"cpu": self._hints(self.shared - self.reserved, mine, count)}

    def _hints(self, free: set[int], reusable: set[int], count: int) -> list[Hint]:
        groups = self._machine.groups("numa")
        smallest, found = len(groups), []
        free_on = Counter(self._machine.cpus[cpu].numa for cpu in free)
        again = {self._machine.cpus[cpu].numa for cpu in reusable}
        for mask in masks(groups):
            nodes = nodes_of(mask)
            if sum(len(groups[n]) for n in nodes) >= count:
                smallest = min(smallest, len(nodes))
            if again <= set(nodes) and len(reusable - free) + sum(free_on[n] for n in nodes) >= count:
                found.append(mask)
        return [
            Hint(h.mask, h.preferred or self._on_few_sockets(mask, smallest))
            for h, mask in zip(prefer(found, smallest), found, strict=True)
        ]

    def _on_few_sockets(self, mask: int, smallest: int) -> bool:
        """With align-by-socket: whether the nodes are of no more sockets than the smallest place has."""
        if not self.options.align_by_socket:
            return False
        per_socket = len(self._machine.groups("numa")) // len(self._machine.groups("socket"))
        return per_socket > 0 and len(self._sockets(mask)) == -(-smallest // per_socket)

    def _sockets(self, mask: int) -> set[int]:
        return {cpu.socket for cpu in self._machine.cpus.values() if mask >> cpu.numa & 1}

    # -- giving and taking -------------------------------------------------------------------------------------------

    def allocate(self, pod: Pod, container: Mapping[str, Any], place: Hint) -> None:
        """Give a container its CPUs, those of a place first. Raises AllocationError. `save` writes it down."""
        count = _exclusive(pod, container)
        if not count:
            return
        self.counts["cpu_manager_pinning_requests_total"] += 1
        try:
            uid = pod["metadata"]["uid"]
            own = self._given.get(uid, {}).get(container["name"])
            if own is None:
                own = self._choose(count, place, self._reusable.setdefault(uid, set()))
                self._given.setdefault(uid, {})[container["name"]] = own
                self._count_aligned(own)
            self._hand_on(pod, container, own)
        except AllocationError:
            self.counts["cpu_manager_pinning_errors_total"] += 1
            raise

    def _choose(self, count: int, place: Hint, reusable: set[int]) -> set[int]:
        self._check_whole_cores(count)
        free = self.shared - self.reserved
        # What init containers leave goes first: the pod then takes no more than the scheduler has counted for it.
        pools = [reusable, free] if place.mask is None else [reusable, self._near(free, place.mask), free]
        taken: set[int] = set()
        try:
            for pool in pools[:-1]:
                left = pool - taken
                taken |= self._take(left, min(count - len(taken), len(left)))
            return taken | self._take(free - taken, count - len(taken))
        except NotEnough as error:
            raise AllocationError(str(error)) from error

    def _near(self, free: set[int], mask: int) -> set[int]:
        """The free CPUs of a place, which with align-by-socket is made one of whole sockets."""
        if self.options.align_by_socket:
            sockets = self._sockets(mask)
            return {c for c in free if self._machine.cpus[c].socket in sockets}
        return {c for c in free if mask >> self._machine.cpus[c].numa & 1}

    def _check_whole_cores(self, count: int) -> None:
        if not self.options.full_pcpus_only:
            return
        per_core = self._machine.cpus_per_core
        if count % per_core:
            raise SMTAlignmentError(count, per_core)
        whole = len(self.shared - self._reserved_cores)
        if count > whole:
            raise SMTAlignmentError(count, per_core, whole)

    def _take(self, free: set[int], count: int) -> set[int]:
        if self.options.distribute_cpus_across_numa:
            group = self._machine.cpus_per_core if self.options.full_pcpus_only else 1
            return distributed(self._machine, free, count, group)
        options = self.options
        spread, uncore = options.distribute_cpus_across_cores, options.prefer_align_cpus_by_uncorecache
        return packed(self._machine, free, count, spread=spread, uncore=uncore)

    def _hand_on(self, pod: Pod, container: Mapping[str, Any], own: set[int]) -> None:
        """What an init container had, the containers after it may have; a sidecar keeps its own."""
        uid = pod["metadata"]["uid"]
        reusable = self._reusable.setdefault(uid, set())
        if container in (pod["spec"].get("initContainers") or ()) and not is_sidecar(container):
            self._reusable[uid] = reusable | own
        else:
            self._reusable[uid] = reusable - own

    def _count_aligned(self, own: set[int]) -> None:
        if len(self._machine.groups("uncore", own)) == 1:
            self.counts["uncore_cache"] += 1
        if self.options.full_pcpus_only:
            self.counts["physical_cpu"] += 1

    def release(self, uid: str) -> bool:
        """The pod has ended; whether the shared CPUs are others now. `save` writes it down."""
        self._reusable.pop(uid, None)
        return self._given.pop(uid, None) is not None

    # -- what is written down ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        kept = checkpoint.of_policy(self._file, "static", "CPU")
        if kept is None:
            return
        given = {u: {n: parse(t) for n, t in own.items()} for u, own in (kept.get("entries") or {}).items()}
        default, online = parse(kept["defaultCpuSet"]), set(self._machine.cpus)
        if not default and not given:
            return
        known = default.union(*(cpus for own in given.values() for cpus in own.values()))
        wrong = self._mismatch(default, known, online)
        if wrong:
            raise ValueError(f"invalid state, please drain node and remove policy state file {self._file}: {wrong}")
        self._given = given

    def _mismatch(self, default: set[int], known: set[int], online: set[int]) -> str:
        if self.options.strict_cpu_reservation:
            if self.reserved & default:
                return f'some of strictly reserved cpus: "{render(self.reserved & default)}" are present in defaultCpuSet: "{render(default)}"'  # fmt: skip
            online = online - self.reserved
        elif not self.reserved <= default:
            return f'not all reserved cpus: "{render(self.reserved)}" are present in defaultCpuSet: "{render(default)}"'
        if known != online:
            return (
                f'current set of available CPUs "{render(online)}" doesn\'t match with CPUs in state "{render(known)}"'
            )
        return ""

    def save(self) -> None:
        """Write down who has what. Blocking."""
        entries = {u: {n: render(c) for n, c in own.items()} for u, own in list(self._given.items())}
        checkpoint.write(self._file, {"policyName": "static", "defaultCpuSet": render(self.shared), "entries": entries})


def write_none(root: Path) -> None:
    """What the policy "none" leaves behind. Blocking. Raises ValueError where containers have CPUs of their own."""
    file = root / "cpu_manager_state"
    checkpoint.of_policy(file, "none", "CPU")
    checkpoint.write(file, {"policyName": "none", "defaultCpuSet": "", "entries": {}})


def _containers(pod: Pod) -> Iterable[dict[str, Any]]:
    return [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]


def _exclusive(pod: Pod, container: Mapping[str, Any]) -> int:
    """How many CPUs of its own a container asks for."""
    if pod["spec"].get("resources") or resources.qos_class(pod) != resources.GUARANTEED:
        return 0
    milli = resources.requested(container, "cpu")
    return 0 if milli % 1000 else milli // 1000


def _of_pod(pod: Pod) -> int:
    """How many CPUs of its own a pod needs at most at once."""
    sidecars = peak = 0
    for container in pod["spec"].get("initContainers") or ():
        own = _exclusive(pod, container)
        if is_sidecar(container):
            sidecars += own
        else:
            peak = max(peak, sidecars + own)
    return max(peak, sidecars + sum(_exclusive(pod, c) for c in pod["spec"]["containers"]))
