"""Where pods come from: the API server, and a folder of manifests; and what the API server shows of them.

Source: kubernetes pkg/kubelet/kubelet.go (syncLoop), pkg/kubelet/pod (mirror pods).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from longshore.node.kubelet import resources
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.objects import ObjectCache
from longshore.node.kubelet.static import Mirrors, StaticPods
from longshore.node.kubelet.statuses import StatusManager
from longshore.node.kubelet.worker import Worker

Pod = dict[str, Any]


class PodSources(ABC):
    """The part of the kubelet that takes pods in, and hands them to their workers."""

    config: Config
    pods: dict[str, Pod]
    workers: dict[str, Worker]
    objects: ObjectCache
    statuses: StatusManager
    mirrors: Mirrors
    #: pods that came before every source had told its first list
    _waiting: dict[str, Pod]
    _synced: bool

    @abstractmethod
    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """A background task that lives as long as the kubelet."""

    @abstractmethod
    def _start(self, pod: Pod) -> None:
        """Give a pod its worker."""

    @abstractmethod
    async def _bury(self, pod: Pod) -> None:
        """Remove what is left of a pod that ended by itself and is deleted now."""

    def _added(self, pod: Pod) -> None:
        uid = pod["metadata"]["uid"]
        if not self._synced:
            # Variables of Services and the node's labels must be known before the first pod starts.
            self._waiting[uid] = pod
            return
        if resources.is_mirror(pod):
            self._mirror_seen(pod, pod)
            return
        self.pods[uid] = pod
        self.objects.register(pod)
        worker = self.workers.get(uid)
        if worker is not None:
            worker.update(pod)
            return
        phase = (pod.get("status") or {}).get("phase")
        self._start(pod)
        if phase in ("Succeeded", "Failed") or pod["metadata"].get("deletionTimestamp"):
            self.workers[uid].end()

    def _updated(self, old: Pod, new: Pod) -> None:
        uid = new["metadata"]["uid"]
        if not self._synced:
            self._waiting[uid] = new
            return
        if resources.is_mirror(new):
            self._mirror_seen(new, new)
            return
        self.pods[uid] = new
        self.statuses.reconcile(uid, old.get("status") or {}, new.get("status") or {})
        self.objects.register(new)
        worker = self.workers.get(uid)
        if worker is None:
            if new["metadata"].get("deletionTimestamp") and not old["metadata"].get("deletionTimestamp"):
                self.spawn(self._bury(new), f"remains of {uid}")
            return
        if _concerns_us(old, new):
            worker.update(new)
        else:
            worker.pod = new

    def _deleted(self, pod: Pod) -> None:
        uid = pod["metadata"]["uid"]
        self._waiting.pop(uid, None)
        if resources.is_mirror(pod):
            self._mirror_seen(pod, None)
            return
        self.pods.pop(uid, None)
        self.objects.unregister(uid)
        worker = self.workers.get(uid)
        if worker is not None:
            worker.removed = True
            worker.end()
            worker.nudge()
        else:
            self.statuses.forget(uid)
            self.spawn(self._bury(pod), f"remains of {uid}")

    def _start_static(self) -> None:
        if self.config.static_pods is None:
            return
        static = StaticPods(
            self.config.static_pods, self.config.node_name, added=self._static_added, removed=self._static_removed
        )
        self.spawn(static.run(), "static pods")
        self.spawn(self.mirrors.run(), "mirror pods")

    def _static_added(self, pod: Pod) -> None:
        self.mirrors.want(pod)
        self._added(pod)

    def _static_removed(self, pod: Pod) -> None:
        self.mirrors.drop(pod)
        self._deleted(pod)

    def _mirror_seen(self, pod: Pod, now: Pod | None) -> None:
        metadata = pod["metadata"]
        self.mirrors.seen(now, (metadata["namespace"], metadata["name"]))
        if now is None:
            return
        for static in self.pods.values():
            if resources.is_static(static) and self.mirrors.of(static) is now:
                self.statuses.resend(static["metadata"]["uid"])

    def api_pod(self, uid: str) -> Pod | None:
        """The API server's object of a pod: itself, or a static pod's mirror."""
        pod = self.pods.get(uid)
        return self.mirrors.of(pod) if pod is not None and resources.is_static(pod) else pod

    def _told(self, pod: Pod) -> Mapping[str, Any]:
        """The status that the API server has of a pod."""
        return (self.api_pod(pod["metadata"]["uid"]) or pod).get("status") or {}


def _concerns_us(old: Pod, new: Pod) -> bool:
    """Whether a change is more than the echo of a status that we sent ourselves."""
    for name in ("labels", "annotations", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
        if old["metadata"].get(name) != new["metadata"].get(name):
            return True
    if old["spec"] != new["spec"]:
        return True
    gates = {g["conditionType"] for g in new["spec"].get("readinessGates") or ()}
    if gates:
        return _chosen(old, gates) != _chosen(new, gates)
    return False


def _chosen(pod: Pod, kinds: set[str]) -> list[Any]:
    return [c for c in (pod.get("status") or {}).get("conditions") or () if c["type"] in kinds]
