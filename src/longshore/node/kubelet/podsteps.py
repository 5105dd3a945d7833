"""What a pod's worker does: sync, terminate, clear up.

Source: kubernetes pkg/kubelet/kubelet.go (SyncPod, SyncTerminatingPod, SyncTerminatedPod).
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from longshore.client.events import EventRecorder, reference
from longshore.client.informer import Informer
from longshore.client.resources import Resource
from longshore.client.rest import Client, is_not_found
from longshore.machinery.cgroups import remove as remove_cgroup
from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import RpcError
from longshore.node.kubelet import admission, cgroups, podspec, shutdown
from longshore.node.kubelet.cleanup import Cleaner
from longshore.node.kubelet.kill import Killer
from longshore.node.kubelet.placement.cpusets import render
from longshore.node.kubelet.placement.errors import AllocationError
from longshore.node.kubelet.placement.manager import Placement
from longshore.node.kubelet.podstatus import StatusMaker
from longshore.node.kubelet.resize import Allocations
from longshore.node.kubelet.volumes import VolumeError, VolumeManager
from longshore.node.kubelet.worker import Worker
from longshore.wire.cri import cri

log = logging.getLogger("longshore.kubelet")
Pod = dict[str, Any]
RUNTIME_CLASSES = Resource("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", False)


class OtherPods(Collection[Pod]):
    """Pods as they have been given their resources, worked out when somebody looks: most steps only count them."""

    def __init__(self, workers: list[Worker], allocations: Allocations) -> None:
        self._workers, self._allocations = workers, allocations

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Pod]:
        return (self._allocations.given(worker.pod) for worker in self._workers)

    def __contains__(self, pod: object) -> bool:
        return any(pod is worker.pod for worker in self._workers)


class PodSteps(StatusMaker, ABC):
    """The part of the kubelet that its workers call."""

    client: Client
    recorder: EventRecorder
    node: Informer
    workers: dict[str, Worker]
    volumes: VolumeManager
    killer: Killer
    cleaner: Cleaner
    placement: Placement
    network_problem: str
    shutting_down: bool
    #: uid -> handler of the pod's RuntimeClass
    _handlers_of: dict[str, str]

    @abstractmethod
    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """A background task that lives as long as the kubelet."""

    async def sync_pod(self, worker: Worker) -> tuple[bool, float | None]:
        """Make the pod as its spec says. (it has ended by itself, seconds until it must be looked at again)."""
        uid = worker.uid
        pod = self.allocations.effective(worker.pod, self._others(uid), self._node())
        metadata = pod["metadata"]
        state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
        self.probes.sync(pod, state)
        made, phase = self.make_status(pod, state)
        if phase in ("Succeeded", "Failed"):
            self.statuses.set(pod, made)
            return True, None
        deadline = self._deadline(pod, made)
        if deadline is not None and deadline <= 0:
            text = "Pod was active on the node longer than the specified deadline"
            self.pod_event(pod, "Normal", "DeadlineExceeded", text)
            worker.verdict = ("Failed", "DeadlineExceeded", text)
            return True, None
        if not state.sandboxes:
            refusal = await self._admit(pod)
            if refusal is not None:
                self.pod_event(pod, "Warning", refusal[0], refusal[1])
                worker.verdict = ("Failed", *refusal)
                return True, None
        self.statuses.set(pod, made)
        if self.network_problem and not podspec.host_network(pod):
            self.pod_event(pod, "Warning", "NetworkNotReady", f"network is not ready: {self.network_problem}")
            return False, worker.miss()
        cgroup = await asyncio.to_thread(
            cgroups.ensure_pod, self.config.cgroup_root, pod, self.config.cgroups_per_qos, self.config.pod_pids_limit
        )
        await asyncio.to_thread(self._make_folders, uid)
        try:
            volumes = await self.volumes.prepare(pod)
        except VolumeError as error:
            for line in str(error).splitlines():
                self.pod_event(pod, "Warning", "FailedMount", line)
            return False, worker.miss()
        try:
            resized = await self.allocations.carry_out(pod, state, cgroup)
            outcome = await self.syncer.sync(pod, state, volumes, cgroup)
        except RpcError as error:
            log.info("pod %s/%s: %s", metadata["namespace"], metadata["name"], error.message)
            return False, worker.miss()
        worker.hit()
        if outcome.changed or resized or outcome.again is not None:
            state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
            pod = self.allocations.given(worker.pod)
            if await self.allocations.carry_out(pod, state, cgroup):
                state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
            self.probes.sync(pod, state)
            made, phase = self.make_status(pod, state)
            self.statuses.set(worker.pod, made)
            if phase in ("Succeeded", "Failed"):
                return True, None
        again = [t for t in (outcome.again, deadline) if t is not None]
        if uid in self.volumes.due:
            again.append(max(1.0, self.volumes.due[uid] - time.time()))
        return False, min(again) if again else None

    def _make_folders(self, uid: str) -> None:
        for name in ("volumes", "plugins"):
            (self.config.pod_folder(uid) / name).mkdir(parents=True, exist_ok=True, mode=0o750)

    def _deadline(self, pod: Pod, made: Mapping[str, Any]) -> float | None:
        """Seconds that a pod with activeDeadlineSeconds still has."""
        seconds = pod["spec"].get("activeDeadlineSeconds")
        if seconds is None or not made.get("startTime"):
            return None
        return float(seconds) - (time.time() - _seconds(made["startTime"]))

    async def _admit(self, pod: Pod) -> tuple[str, str] | None:
        if self.shutting_down:
            return shutdown.REFUSED
        name = pod["spec"].get("runtimeClassName")
        if name:
            try:
                found = await self.client.get(RUNTIME_CLASSES, name)
                self._handlers_of[pod["metadata"]["uid"]] = found.get("handler", "")
            except StatusError as error:
                if not is_not_found(error):
                    raise
                return "RuntimeClassNotFound", f'runtimeclass.node.k8s.io "{name}" not found'
        refused = admission.refusal(pod, self._others(pod["metadata"]["uid"]), self._node(), self.config)
        if refused is None:
            cpus = self.placement.cpus
            shared = cpus.shared if cpus is not None else set()
            try:
                await self.placement.admit(pod)
            except AllocationError as error:
                return error.reason, error.message
            if cpus is not None and cpus.shared != shared:
                self.spawn(self._share_cpus(), "shared CPUs")
        return refused

    async def _share_cpus(self) -> None:
        """Containers without CPUs of their own run on what is left."""
        cpus = self.placement.cpus
        assert cpus is not None
        linux = cri.LinuxContainerResources(cpuset_cpus=render(cpus.shared))
        for state in (await self.runtime.pods()).values():
            for known in state.running():
                if state.uid in self.workers and not cpus.of_container(state.uid, known.name):
                    try:
                        await self.runtime.call("UpdateContainerResources", container_id=known.id, linux=linux)
                    except RpcError as error:
                        log.warning("CPUs of %s/%s: %s", state.namespace, state.name, error.message)

    def _others(self, uid: str) -> Collection[Pod]:
        """The node's other pods, with the resources that they have been given."""
        return OtherPods([w for w in self.workers.values() if w.uid != uid and not w.ending], self.allocations)

    def _node(self) -> dict[str, Any] | None:
        return self.node.store.named("", self.config.node_name)

    async def sync_terminating(self, worker: Worker) -> None:
        """End the pod's containers and tell how they ended."""
        pod, uid = worker.pod, worker.uid
        metadata = pod["metadata"]
        state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
        self.probes.stop_liveness(uid)
        if not worker.removed:
            self.statuses.set(pod, self.make_status(pod, state, verdict=worker.verdict)[0])
        await self.killer.kill_pod(pod, state, override=worker.grace)
        self.probes.forget(uid)
        state = await self.runtime.pod(uid, metadata["name"], metadata["namespace"])
        if state.running():
            raise RuntimeError(f"containers still run: {', '.join(c.name for c in state.running())}")
        await self.claims.unprepare(uid)
        if not worker.removed:
            made, _ = self.make_status(worker.pod, state, verdict=worker.verdict, terminal=True)
            self.statuses.set(worker.pod, made)

    async def sync_terminated(self, worker: Worker) -> None:
        """Remove what the pod had on the node."""
        uid = worker.uid
        await self.volumes.remove(uid)
        path = cgroups.pod_path(self.config.cgroup_root, worker.pod, self.config.cgroups_per_qos)
        if self.config.cgroups_per_qos:
            if not await asyncio.to_thread(remove_cgroup, path):
                raise RuntimeError(f"cgroup {path} could not be removed yet")
        if worker.removed or worker.pod["metadata"].get("deletionTimestamp"):
            await self.cleaner.from_runtime(uid)

    # -- events ------------------------------------------------------------------------------------------------------

    def pod_event(self, pod: Pod, kind: str, reason: str, message: str) -> None:
        """Tell an event about a pod."""
        if not pod["metadata"].get("name"):
            return
        self.recorder.event({"apiVersion": "v1", "kind": "Pod", **pod}, kind, reason, message)

    def container_event(
        self, pod: Pod, container: Mapping[str, Any] | None, kind: str, reason: str, message: str
    ) -> None:
        """Tell an event about a container of a pod (None: the pod itself)."""
        if not pod["metadata"].get("name"):
            return
        ref = reference({"apiVersion": "v1", "kind": "Pod", **pod})
        if container is not None:
            for group in ("initContainers", "containers", "ephemeralContainers"):
                if any(c["name"] == container["name"] for c in pod["spec"].get(group) or ()):
                    ref["fieldPath"] = f"spec.{group}{{{container['name']}}}"
        self.recorder.event(ref, kind, reason, message)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
