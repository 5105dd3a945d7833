"""Coscheduling: the pods of a group get their nodes together, or none of them does. Off unless a profile enables it.

A pod names its group by the label scheduling.x-k8s.io/pod-group, or in spec.schedulingGroup; the group is a PodGroup of
scheduling.x-k8s.io/v1alpha1 with spec.minMember and spec.scheduleTimeoutSeconds. Pods that have found a node hold it,
unbound, until enough others have one too; when one of them cannot have any, or time is over, all let go.
Source: kubernetes-sigs/scheduler-plugins pkg/coscheduling and its CustomResourceDefinition, described behaviour.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from longshore.client.objects import is_deleting, is_terminal
from longshore.client.resources import PODS, Resource
from longshore.client.store import Object, key_of
from longshore.master.scheduler.framework import Action, ClusterEvent, CycleState, Handle, Plugin, Status
from longshore.master.scheduler.podinfo import PodInfo

POD_GROUPS = Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup")
LABEL = "scheduling.x-k8s.io/pod-group"
PERMIT_SECONDS = 60.0


def group_of(pod: Object) -> str:
    """The key of the group that a pod belongs to; "" for none."""
    name = (pod["metadata"].get("labels") or {}).get(LABEL)
    name = name or (pod["spec"].get("schedulingGroup") or {}).get("podGroupName")
    return f"{pod['metadata'].get('namespace', '')}/{name}" if name else ""


def _group_index(pod: Object) -> tuple[str, ...]:
    key = group_of(pod)
    return (key,) if key else ()


class Coscheduling(Plugin):
    """All or nothing for groups of pods."""

    name = "Coscheduling"
    wants: ClassVar[frozenset[str]] = frozenset({"Pod", "PodGroup", "Node"})

    def __init__(self, handle: Handle, args: Object) -> None:
        super().__init__(handle, args)
        self.seconds = float(args.get("permitWaitingTimeSeconds") or PERMIT_SECONDS)
        # Not by handle.watch: the scheduler starts without the definition too, and single pods do not wait for it.
        self.groups = handle.informers.informer(POD_GROUPS)
        self.groups.on(
            lambda group: handle.tell(ClusterEvent("PodGroup", Action.ADD, None, group)),
            lambda old, new: handle.tell(ClusterEvent("PodGroup", Action.UPDATE, old, new)),
        )
        self.pods = handle.informers.informer(PODS, indexers={"pod-group": _group_index})
        self.pods.on(add=self._sibling_came)
        self._waiting: dict[str, dict[str, asyncio.Future[bool]]] = {}  # group -> pod -> whether it may go on
        self._going: dict[str, set[str]] = {}  # group -> pods that were let go on, and are not seen bound yet

    def _sibling_came(self, pod: Object) -> None:
        key = group_of(pod)
        if key and not pod["spec"].get("nodeName"):
            self.handle.tell(ClusterEvent("PodGroup", Action.UPDATE, None, pod))

    def queue_hint(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.kind != "PodGroup" or event.new is None:
            return True
        about = key_of(event.new) if event.new.get("kind") == "PodGroup" else group_of(event.new)
        return about == group_of(pod.pod)

    # -- the group

    def _members(self, key: str) -> list[Object]:
        return [p for p in self.pods.store.index("pod-group", key) if not is_terminal(p) and not is_deleting(p)]

    def _least(self, key: str) -> int | None:
        """How many of a group must have nodes; None when there is no such group."""
        group = self.groups.store.get(key)
        return None if group is None else int((group.get("spec") or {}).get("minMember") or 1)

    def _placed(self, key: str) -> int:
        """How many members are bound, on their way to it, or hold a node."""
        members = self._members(key)
        bound = {key_of(p) for p in members if p["spec"].get("nodeName")}
        going = self._going.get(key, set())
        going &= {key_of(p) for p in members}
        return len(bound | going | set(self._waiting.get(key, ())))

    def _release(self, key: str, go: bool) -> None:
        """Tell all that wait whether they may go on."""
        for pod, future in list(self._waiting.get(key, {}).items()):
            if not future.done():
                future.set_result(go)
            if go:
                self._going.setdefault(key, set()).add(pod)
        if go:
            self._waiting.pop(key, None)

    # -- extension points

    def pre_filter(self, state: CycleState, pod: PodInfo) -> Status | None:
        key = group_of(pod.pod)
        if not key:
            return None
        least = self._least(key)
        if least is None:
            return Status.unresolvable(f'PodGroup "{key.rpartition("/")[2]}" not found')
        count = len(self._members(key))
        if count < least:
            return Status.unresolvable(
                f"pre-filter pod {pod.name} cannot find enough sibling pods, "
                f"current pods number: {count}, minMember of group: {least}"
            )
        return None

    async def post_filter(
        self, state: CycleState, pod: PodInfo, refused: dict[str, Status]
    ) -> tuple[str, Status | None]:
        key = group_of(pod.pod)
        least = self._least(key) if key else None
        if least is None or self._placed(key) >= least:
            return "", Status.unschedulable()
        self._release(key, False)
        return "", Status.unschedulable(
            f"PodGroup {key} gets rejected due to Pod {pod.name} is unschedulable even after PostFilter"
        )

    async def permit(self, state: CycleState, pod: PodInfo, node: str) -> Status | None:
        key = group_of(pod.pod)
        least = self._least(key) if key else None
        if least is None:
            return None
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, {})[pod.key] = future
        if self._placed(key) >= least:
            self._release(key, True)
        group = self.groups.store.get(key) or {}
        seconds = float((group.get("spec") or {}).get("scheduleTimeoutSeconds") or self.seconds)
        try:
            async with asyncio.timeout(seconds):
                if await future:
                    return None
            return Status.unschedulable(f"rejected with the other pods of PodGroup {key}")
        except TimeoutError:
            self._release(key, False)
            return Status.unschedulable(f"rejected due to timeout after waiting {seconds:g}s at plugin {self.name}")
        finally:
            waiting = self._waiting.get(key)
            if waiting is not None and waiting.get(pod.key) is future:
                del waiting[pod.key]
                if not waiting:
                    del self._waiting[key]

    def unreserve(self, state: CycleState, pod: PodInfo, node: str) -> None:
        key = group_of(pod.pod)
        if key:
            self._going.get(key, set()).discard(pod.key)
            self._release(key, False)

    def post_bind(self, state: CycleState, pod: PodInfo, node: str) -> None:
        key = group_of(pod.pod)
        if key and not self._waiting.get(key) and self._placed(key) >= (self._least(key) or 0):
            self._going[key] = {p for p in self._going.get(key, set()) if not self._is_bound(p)}
            if not self._going[key]:
                del self._going[key]

    def _is_bound(self, key: str) -> bool:
        pod = self.pods.store.get(key)
        return pod is None or bool(pod["spec"].get("nodeName"))
