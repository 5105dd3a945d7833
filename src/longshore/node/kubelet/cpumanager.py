"""The static CPU policy: containers of Guaranteed pods that ask for whole CPUs get some of their own.

All others share the rest. What is given is written down before it is used, as upstream's cpu_manager_state.
Source: kubernetes pkg/kubelet/cm/cpumanager (policy_static.go, cpu_assignment.go: rules and texts).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from longshore.node.kubelet import resources
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.resources import is_sidecar

Pod = dict[str, Any]
_SYSTEM = Path("/sys/devices/system/cpu")


class CpuError(Exception):
    """A container cannot have CPUs of its own; the text is upstream's."""


def parse(text: str) -> set[int]:
    """CPUs of a list ("0-2,7"). Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, dash, last = part.partition("-")
        found.update(range(int(first), int(last if dash else first) + 1))
    return found


def render(cpus: Iterable[int]) -> str:
    """CPUs as a list ("0-2,7")."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][1] + 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def machine(root: Path = _SYSTEM) -> dict[int, tuple[int, int]]:
    """CPU -> (socket, core) of the CPUs that are online."""

    def number(cpu: int, name: str) -> int:
        try:
            return int((root / f"cpu{cpu}" / "topology" / name).read_text())
        except (OSError, ValueError):
            return cpu if name == "core_id" else 0

    online = parse((root / "online").read_text())
    return {cpu: (number(cpu, "physical_package_id"), number(cpu, "core_id")) for cpu in online}


class CpuManager:
    """The node's CPUs under the static policy."""

    def __init__(self, root: Path, topology: Mapping[int, tuple[int, int]], reserved: int, explicit: str = "") -> None:
        """root: the kubelet's. reserved: how many CPUs are nobody's own; explicit: which, where that is said.

        Raises ValueError where none is reserved.
        """
        self._file, self._topology = root / "cpu_manager_state", dict(topology)
        if explicit:
            self.reserved = parse(explicit)
        else:
            if reserved <= 0:
                raise ValueError("[cpumanager] unable to determine reserved CPU resources for static policy")
            self.reserved = set(self._take(set(self._topology), reserved))
        if not self.reserved <= set(self._topology):
            raise ValueError(f"[cpumanager] reserved CPUs {render(self.reserved)} are not all online")
        #: pod uid -> container -> its CPUs
        self._given: dict[str, dict[str, set[int]]] = {}
        self._load()

    # -- who has what ------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> set[int]:
        """What is nobody's own."""
        return set(self._topology) - {c for own in self._given.values() for cpus in own.values() for c in cpus}

    @property
    def allocatable(self) -> set[int]:
        """What can be somebody's own."""
        return set(self._topology) - self.reserved

    def of_container(self, uid: str, name: str) -> set[int]:
        """A container's own CPUs; none for one that shares."""
        return set(self._given.get(uid, {}).get(name, ()))

    def cpuset(self, uid: str, name: str) -> str:
        """The CPUs that a container may run on."""
        return render(self.of_container(uid, name) or self.shared)

    def allocate(self, pod: Pod) -> bool:
        """Give a pod its CPUs; whether the shared ones are others now. Blocking. Raises CpuError; it then has none."""
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        if uid in self._given or resources.qos_class(pod) != resources.GUARANTEED:
            return False
        mine: dict[str, set[int]] = {}
        reusable: set[int] = set()
        for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
            milli = resources.requested(container, "cpu")
            if milli % 1000 or not milli:
                continue
            count = milli // 1000
            taken = {c for cpus in mine.values() for c in cpus}
            free = self.shared - self.reserved - (taken - reusable)
            if len(free) < count:
                raise CpuError(
                    f"not enough cpus available to satisfy request: requested={count}, available={len(free)}"
                )
            # What an init container had, the containers after it may have; a sidecar keeps its own.
            again = sorted(reusable & free)[:count]
            chosen = set(again) | set(self._take(free - set(again), count - len(again)))
            mine[container["name"]] = chosen
            if container in (spec.get("initContainers") or ()) and not is_sidecar(container):
                reusable |= chosen
            else:
                reusable -= chosen
        if not mine:
            return False
        self._given[uid] = mine
        self._save()
        return True

    def release(self, uid: str) -> bool:
        """The pod has ended; whether the shared CPUs are others now. Blocking."""
        if self._given.pop(uid, None) is None:
            return False
        self._save()
        return True

    def pinned(self, uid: str) -> bool:
        """Whether a pod has CPUs of its own."""
        return uid in self._given

    def users(self) -> set[str]:
        """The uids of pods that have CPUs of their own."""
        return set(self._given)

    def _take(self, free: set[int], count: int) -> list[int]:
        """So many CPUs: whole sockets first, then whole cores, then single threads where the least is left."""
        chosen: list[int] = []
        left = set(free)

        def group(index: int) -> list[list[int]]:
            whole: dict[Any, list[int]] = {}
            size: dict[Any, int] = {}
            for cpu, place in self._topology.items():
                key = place[:index]
                size[key] = size.get(key, 0) + 1
                if cpu in left:
                    whole.setdefault(key, []).append(cpu)
            return [sorted(cpus) for key, cpus in sorted(whole.items()) if len(cpus) == size[key]]

        for index in (1, 2):
            for cpus in group(index):
                if len(cpus) <= count - len(chosen):
                    chosen += cpus
                    left -= set(cpus)
        fullness = {self._topology[c]: sum(self._topology[o] == self._topology[c] for o in left) for c in left}
        rest = sorted(left, key=lambda c: (fullness[self._topology[c]], self._topology[c], c))
        return chosen + rest[: count - len(chosen)]

    # -- what is written down ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            kept = orjson.loads(self._file.read_bytes())
            if kept["policyName"] != "static":
                return
            given = {u: {n: parse(t) for n, t in own.items()} for u, own in (kept.get("entries") or {}).items()}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"[cpumanager] state file {self._file} is unreadable: {error}") from error
        self._given = {u: own for u, own in given.items() if all(c <= set(self._topology) for c in own.values())}

    def _save(self) -> None:
        entries = {u: {n: render(c) for n, c in own.items()} for u, own in self._given.items()}
        kept = {"policyName": "static", "defaultCpuSet": render(self.shared), "entries": entries}
        temporary = self._file.with_suffix(".new")
        with open(temporary, "wb") as file:
            file.write(orjson.dumps(kept))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._file)


def manager(config: Config) -> CpuManager | None:
    """The manager that the settings ask for; None under the policy "none". Raises ValueError."""
    if config.cpu_manager_policy != "static":
        return None
    kept = (config.kube_reserved, config.system_reserved)
    milli = sum(resources.milli(amounts["cpu"]) for amounts in kept if "cpu" in amounts)
    return CpuManager(config.root, machine(), -(-milli // 1000), config.reserved_system_cpus)
