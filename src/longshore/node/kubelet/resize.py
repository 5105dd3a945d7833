"""Resources in place: what a pod has been given, what it asks for now, and the change from one to the other.

Source: kubernetes pkg/kubelet/allocation, KEP-1287 (in-place update of pod resources).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import orjson

from longshore.machinery.grpc import RpcError
from longshore.node.kubelet import admission, cgroups, podspec, resources, swapping
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.runtime import RUNNING, Container, PodState, Runtime

log = logging.getLogger("longshore.kubelet.resize")
Pod = dict[str, Any]
PENDING, IN_PROGRESS = "PodResizePending", "PodResizeInProgress"
_NAMES = ("cpu", "memory")


def _shape(pod: Pod) -> dict[str, Any]:
    """The resizable resources of a pod: container -> requests and limits of cpu and memory."""
    found: dict[str, Any] = {}
    for group in ("initContainers", "containers"):
        for container in pod["spec"].get(group) or ():
            own = container.get("resources") or {}
            found[container["name"]] = {k: dict(own[k]) for k in ("requests", "limits") if own.get(k)}
    if pod["spec"].get("resources"):
        found[""] = pod["spec"]["resources"]
    return found


class Allocations:
    """What each pod has been given; kept on disk beside the pod's volumes."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        memory_capacity: Callable[[], int],
        event: Callable[[Pod, str, str, str], None],
    ) -> None:
        self._config, self._runtime, self._memory, self._event = config, runtime, memory_capacity, event
        self._given: dict[str, dict[str, Any]] = {}
        #: whether a pod has CPUs of its own, which cannot be given more or fewer while it runs
        self.pinned: Callable[[str], bool] = lambda _: False
        #: uid -> (condition type, reason, message, generation)
        self.conditions: dict[str, list[tuple[str, str, str, int]]] = {}

    def _file(self, uid: str) -> Any:
        return self._config.pod_folder(uid) / "allocated.json"

    def _load(self, uid: str) -> dict[str, Any] | None:
        if uid not in self._given:
            try:
                self._given[uid] = orjson.loads(self._file(uid).read_bytes())
            except (OSError, orjson.JSONDecodeError):
                return None
        return self._given[uid]

    def _save(self, uid: str, shape: dict[str, Any]) -> None:
        path = self._file(uid)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_bytes(orjson.dumps(shape))
        os.replace(temporary, path)
        self._given[uid] = shape

    def forget(self, uid: str) -> None:
        self._given.pop(uid, None)
        self.conditions.pop(uid, None)

    def waiting(self) -> list[str]:
        """The pods whose resize was put off."""
        return [uid for uid, found in self.conditions.items() if any(c[0] == PENDING for c in found)]

    def effective(self, pod: Pod, others: Collection[Pod], node: Mapping[str, Any] | None) -> Pod:
        """The pod with the resources that it has been given; a resize that the node can bear is given now.

        others: the node's other pods, as given.
        """
        uid = pod["metadata"]["uid"]
        wanted = _shape(pod)
        given = self._load(uid)
        if given is None:
            self._save(uid, wanted)
            return pod
        kept = [c for c in self.conditions.get(uid, []) if c[0] != PENDING]
        if given == wanted:
            self._set(uid, kept)
            return pod
        generation = int(pod["metadata"].get("generation") or 0)
        problem = self._problem(pod, others, node)
        if problem is None:
            self._save(uid, wanted)
            self._set(uid, [(IN_PROGRESS, "", "", generation)])
            self._event(pod, "Normal", "ResizeStarted", f"Pod resize started: {orjson.dumps(wanted).decode()}")
            return pod
        reason, message = problem
        before = [c for c in self.conditions.get(uid, []) if c[0] == PENDING]
        if not before or before[0][1:3] != problem:
            kind = "ResizeInfeasible" if reason == "Infeasible" else "ResizeDeferred"
            self._event(pod, "Warning", kind, f"Pod resize {reason}: {message}")
        self._set(uid, [*kept, (PENDING, reason, message, generation)])
        return applied(pod, given)

    def given(self, pod: Pod) -> Pod:
        """The pod with the resources that it has been given."""
        shape = self._given.get(pod["metadata"]["uid"])
        return pod if shape is None or shape == _shape(pod) else applied(pod, shape)

    def _set(self, uid: str, found: list[tuple[str, str, str, int]]) -> None:
        if found:
            self.conditions[uid] = found
        else:
            self.conditions.pop(uid, None)

    def _problem(self, pod: Pod, others: Collection[Pod], node: Mapping[str, Any] | None) -> tuple[str, str] | None:
        """(Infeasible or Deferred, why) of a resize that the node cannot bear."""
        if resources.is_static(pod):
            return "Infeasible", "In-place resize of static-pods is not supported"
        if self.pinned(pod["metadata"]["uid"]):
            return "Infeasible", "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy"
        allocatable = ((node or {}).get("status") or {}).get("allocatable") or {}
        for name in _NAMES:
            if name not in allocatable:
                continue
            have = resources.milli(allocatable[name]) if name == "cpu" else resources.amount(allocatable[name])
            asked = resources.pod_total(pod, name)
            if asked > have:
                return "Infeasible", f"Node didn't have enough capacity: {name}, requested: {asked}, capacity: {have}"
        short = admission.refusal(pod, others, node, self._config)
        if short is not None and short[0].startswith("OutOf"):
            return "Deferred", short[1]
        return None

    # -- carrying it out ---------------------------------------------------------------------------------------------

    def restarts(self, pod: Pod, container: Mapping[str, Any], known: Container) -> bool:
        """Whether a running container must be started anew to have its resources, by its resizePolicy."""
        changed = self._changed(pod, container, known)
        policy = {p["resourceName"]: p.get("restartPolicy") for p in container.get("resizePolicy") or ()}
        return any(policy.get(name) == "RestartContainer" for name in changed)

    def _changed(self, pod: Pod, container: Mapping[str, Any], known: Container) -> set[str]:
        """Which of cpu and memory a running container has otherwise than it should."""
        if known.resources is None or not known.resources.HasField("linux"):
            return set()
        have = known.resources.linux
        want = podspec.container_resources(
            pod, container, self._memory(), self._config.cpu_cfs_quota, self._config.swap_behavior
        )
        found = set()
        if have.cpu_shares != want.cpu_shares or max(0, have.cpu_quota) != want.cpu_quota:
            found.add("cpu")
        if max(0, have.memory_limit_in_bytes) != want.memory_limit_in_bytes:
            found.add("memory")
        return found

    async def carry_out(self, pod: Pod, state: PodState, cgroup: str) -> bool:
        """Bring running containers and the pod's cgroup to what was given; True when something was changed.

        Growing goes from the pod down, shrinking from the containers up, so that no container ever stands above its
        pod. Raises RpcError when the runtime refuses.
        """
        uid = pod["metadata"]["uid"]
        todo: list[tuple[dict[str, Any], Container]] = []
        for container in resources.all_containers(pod):
            known = state.latest(container["name"])
            if known is not None and known.state == RUNNING and self._changed(pod, container, known):
                if not self.restarts(pod, container, known):
                    todo.append((container, known))
        busy = any(c[0] == IN_PROGRESS for c in self.conditions.get(uid, ()))
        if not todo:
            if busy and not self._unfinished(pod, state):
                await self._limit_pod(pod, cgroup)
                self._set(uid, [c for c in self.conditions.get(uid, []) if c[0] != IN_PROGRESS])
                self._event(pod, "Normal", "ResizeCompleted", "Pod resize completed")
                return True
            return False
        await self._limit_pod(pod, cgroup, grow=True)
        for container, known in todo:
            want = podspec.container_resources(
                pod, container, self._memory(), self._config.cpu_cfs_quota, self._config.swap_behavior
            )
            if not want.cpu_quota:
                want.cpu_quota = -1
            if not want.memory_limit_in_bytes:
                want.memory_limit_in_bytes = -1
                if not swapping.unified() and swapping.available():
                    want.memory_swap_limit_in_bytes = -1
            try:
                await self._runtime.call("UpdateContainerResources", container_id=known.id, linux=want)
            except RpcError as error:
                generation = int(pod["metadata"].get("generation") or 0)
                self._set(uid, [(IN_PROGRESS, "Error", str(error.message), generation)])
                self._event(pod, "Warning", "ResizeError", f"Error resizing pod: {error.message}")
                raise
        await self._limit_pod(pod, cgroup)
        return True

    def _unfinished(self, pod: Pod, state: PodState) -> bool:
        for container in resources.all_containers(pod):
            known = state.latest(container["name"])
            if known is not None and known.state == RUNNING and self._changed(pod, container, known):
                return True
        return False

    async def _limit_pod(self, pod: Pod, cgroup: str, grow: bool = False) -> None:
        if not self._config.cgroups_per_qos:
            return
        limits = cgroups.pod_limits(pod)
        if grow:
            # Out of the way of what is to grow; the right figures are set once the containers have theirs.
            limits = {"shares": limits["shares"], "quota": -1, "memory": -1}
        await asyncio.to_thread(lambda: cgroups.set_limits(cgroup, **limits))


def applied(pod: Pod, shape: Mapping[str, Any]) -> Pod:
    """A copy of the pod with other resources."""
    spec = dict(pod["spec"])
    for group in ("initContainers", "containers"):
        if spec.get(group):
            spec[group] = [
                {**c, "resources": {**(c.get("resources") or {}), **shape[c["name"]]}} if c["name"] in shape else c
                for c in spec[group]
            ]
    if "" in shape:
        spec["resources"] = shape[""]
    return {**pod, "spec": spec}
