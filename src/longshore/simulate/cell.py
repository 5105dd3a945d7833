"""A cell: the real scheduler's tables, plugins and profiles on a copy of a cluster, where placing a pod writes nothing.

Source of the word, and of what is asked of one: Verma and others, "Large-scale cluster management at Google with Borg".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from longshore.client.informer import InformerFactory
from longshore.client.objects import controller_of, copy, is_terminal, seconds
from longshore.client.resources import NODES, PODS, PRIORITY_CLASSES
from longshore.client.store import key_of
from longshore.master.scheduler.configuration import Configuration
from longshore.master.scheduler.core import Scheduler
from longshore.master.scheduler.framework import CycleState
from longshore.master.scheduler.nodes import NodeTable
from longshore.master.scheduler.podinfo import PodInfo
from longshore.master.scheduler.profile import Diagnosis, Profile
from longshore.simulate.snapshot import Snapshot

Object = dict[str, Any]
MIRROR = "kubernetes.io/config.mirror"
DEFAULT_PROFILE = "default-scheduler"


def belongs_to_node(pod: Object) -> bool:
    """Whether the pod comes and goes with its node: a DaemonSet's, or a static one."""
    if MIRROR in (pod["metadata"].get("annotations") or {}):
        return True
    return (controller_of(pod) or {}).get("kind") in ("DaemonSet", "Node")


def unbound(pod: Object, name: str = "") -> Object:
    """The pod as its controller would make it anew: without a node and a status."""
    fresh: Object = copy(pod)
    fresh["spec"].pop("nodeName", None)
    fresh["status"] = {"phase": "Pending"}
    if name:
        fresh["metadata"] |= {"name": name, "uid": name}
    return fresh


class Cell:
    """Use as `async with Cell(snapshot) as cell`. Everything but entering and leaving is plain calls."""

    def __init__(self, snapshot: Snapshot, configuration: Configuration | None = None) -> None:
        """configuration: profiles and plugins to judge by (default: upstream's); extenders are not asked."""
        self.snapshot = snapshot
        self.configuration = configuration or Configuration()
        self._informers = InformerFactory(snapshot)
        self._scheduler: Scheduler | None = None
        self._placed: dict[str, tuple[CycleState, PodInfo, str]] = {}
        self._classes = {c["metadata"]["name"]: c for c in snapshot.of(PRIORITY_CLASSES)}

    async def __aenter__(self) -> Cell:
        self._scheduler = Scheduler(self.snapshot, self._informers, self.configuration.profiles)
        self._informers.start()
        await self._informers.wait_synced()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._informers.stop()
        if self._scheduler is not None:
            self._scheduler.queue.close()

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def scheduler(self) -> Scheduler:
        assert self._scheduler is not None, "a cell is used within `async with`"
        return self._scheduler

    @property
    def table(self) -> NodeTable:
        return self.scheduler.table

    @property
    def nodes(self) -> dict[str, Object]:
        """The nodes that are there now."""
        return {row.name: row.node for row in self.table.by_name.values() if row.node is not None}

    @property
    def all_nodes(self) -> dict[str, Object]:
        """The nodes of the snapshot."""
        return {node["metadata"]["name"]: node for node in self.snapshot.of(NODES)}

    def pods_on(self, node: str) -> list[PodInfo]:
        row = self.table.by_name.get(node)
        return list(row.pods.values()) if row is not None else []

    def bound(self) -> list[Object]:
        """The snapshot's pods that run on a node."""
        return [p for p in self.snapshot.of(PODS) if p["spec"].get("nodeName") and not is_terminal(p)]

    def profile(self, info: PodInfo) -> Profile:
        profiles = self.scheduler.profiles
        return profiles.get(info.cls.scheduler) or profiles.get(DEFAULT_PROFILE) or next(iter(profiles.values()))

    def in_queue_order(self, pods: Iterable[Object]) -> list[Object]:
        """Pods as the scheduler's queue would give them: by priority, then by age."""

        def place(pod: Object) -> tuple[int, float, str]:
            age = seconds(pod["metadata"].get("creationTimestamp"))
            return -int(pod["spec"].get("priority") or 0), age, key_of(pod)

        return sorted(pods, key=place)

    def admitted(self, pod: Object) -> Object:
        """The pod with the priority that its class gives it, as admission would set it."""
        name = pod["spec"].get("priorityClassName")
        found = self._classes.get(name or "")
        if found is None and not name:
            found = next((c for c in self._classes.values() if c.get("globalDefault")), None)
        if found is None or pod["spec"].get("priority") is not None:
            return pod
        policy = found.get("preemptionPolicy") or "PreemptLowerPriority"
        return {**pod, "spec": {**pod["spec"], "priority": int(found.get("value") or 0), "preemptionPolicy": policy}}

    # -- changes -------------------------------------------------------------------------------------------------------

    def place(self, info: PodInfo, *, explain: bool = True) -> str | Diagnosis:
        """Choose a node for a pod and take the pod as running there: the node's name, or why there is none.

        explain: False for an empty Diagnosis, which costs nothing. Nobody is preempted for the pod.
        """
        profile, state = self.profile(info), CycleState()
        if not self.table.by_name:
            return Diagnosis()
        refused = profile.pre_filter(state, info)
        if refused is not None:
            return refused
        rows = profile.feasible(state, info)
        if not len(rows):
            return profile.diagnose(state, info) if explain else Diagnosis()
        row = self.table.rows[profile.choose(state, info, rows)]
        assert row is not None
        self.table.add_pod(info, row.name)
        self._placed[info.key] = (state, info, row.name)
        for plugin in profile.reserves:
            status = plugin.reserve(state, info, row.name)
            if status is not None:
                self.take_out(info.key, row.name)
                return Diagnosis({row.name: status}, "", frozenset({plugin.name}), len(self.nodes))
        return row.name

    def take_out(self, key: str, node: str) -> PodInfo | None:
        """A pod no longer runs on a node; what was reserved for it by place() is free again."""
        placed = self._placed.pop(key, None)
        if placed is not None:
            state, info, name = placed
            for plugin in reversed(self.profile(info).reserves):
                plugin.unreserve(state, info, name)
        return self.table.remove_pod(key, node)

    def remove_node(self, name: str) -> list[PodInfo]:
        """A node goes, with everything on it: its pods."""
        pods = self.pods_on(name)
        for info in pods:
            self.take_out(info.key, name)
        self.table.remove_node(name)
        return pods

    def add_node(self, node: Object, pods: Iterable[PodInfo] = ()) -> None:
        """A node comes (back), with pods that belong to it."""
        self.table.set_node(node)
        for info in pods:
            self.table.add_pod(info, node["metadata"]["name"])

    async def breathe(self) -> None:
        """Let others have a turn during long answers."""
        await asyncio.sleep(0)
