"""Clearing up: what runs or lies on the node though no source asks for it.

Source: kubernetes pkg/kubelet/kubelet_pods.go (HandlePodCleanups).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import Any, Protocol

from longshore.machinery.cgroups import remove as remove_cgroup
from longshore.machinery.grpc import RpcError
from longshore.node.kubelet import cgroups
from longshore.node.kubelet.config import Config
from longshore.node.kubelet.kill import Killer
from longshore.node.kubelet.runtime import POD_UID, Runtime
from longshore.node.kubelet.volumes import VolumeManager
from longshore.wire.cri import cri

log = logging.getLogger("longshore.kubelet")
Pod = dict[str, Any]
# Seconds that a pod nobody asks for gets to end.
ORPHAN_GRACE = 1


class Wanted(Protocol):
    """Whether somebody still asks for a pod."""

    def __call__(self, uid: str, /) -> bool: ...


class Cleaner:
    """Removes what pods leave behind."""

    def __init__(
        self, config: Config, runtime: Runtime, killer: Killer, volumes: VolumeManager, wanted: Wanted
    ) -> None:
        self._config, self._runtime, self._killer, self._volumes, self._wanted = (
            config,
            runtime,
            killer,
            volumes,
            wanted,
        )

    async def everything(self) -> None:
        """End and remove whatever is here of pods that no source knows (they were deleted while we were away)."""
        try:
            present = await self._runtime.pods()
        except RpcError as error:
            log.warning("the runtime cannot be asked for leftovers: %s", error.message)
            present = {}
        await asyncio.gather(*(self.orphan(uid) for uid in present if not self._wanted(uid)))
        await self.volumes()
        for uid, path in cgroups.pods_present(self._config.cgroup_root).items():
            if not self._wanted(uid):
                await asyncio.to_thread(remove_cgroup, path)
        if self._config.pod_logs.is_dir():
            for folder in list(self._config.pod_logs.iterdir()):
                if not self._wanted(folder.name.rpartition("_")[2]):
                    await asyncio.to_thread(shutil.rmtree, folder, True)

    async def volumes(self) -> None:
        """Remove the volumes of pods that nobody asks for; what a driver that is not there has given stays for it."""
        for uid in self._volumes.known():
            if not self._wanted(uid):
                try:
                    await self._volumes.remove(uid)
                except OSError as error:
                    log.info("volumes of pod %s: %s", uid, error)

    async def orphan(self, uid: str) -> None:
        """End a pod that runs though nobody asks for it; what its containers carry tells how."""
        try:
            state = await self._runtime.pod(uid)
            if not state.sandboxes and not state.containers:
                return
            log.info("pod %s/%s (%s) is not wanted any more and is ended", state.namespace, state.name, uid)
            await self._killer.kill_pod(None, state, override=ORPHAN_GRACE)
            await self.from_runtime(uid)
            await self._volumes.remove(uid)
            path = cgroups.pods_present(self._config.cgroup_root).get(uid)
            if path is not None:
                await asyncio.to_thread(remove_cgroup, path)
        except (RpcError, OSError) as error:
            log.warning("orphaned pod %s: %s", uid, error)

    async def from_runtime(self, uid: str) -> None:
        """Remove a pod's sandboxes with their containers. Raises RpcError."""
        listed = await self._runtime.call("ListPodSandbox", filter=cri.PodSandboxFilter(label_selector={POD_UID: uid}))
        for sandbox in listed.items:
            await self._runtime.call("StopPodSandbox", pod_sandbox_id=sandbox.id)
            await self._runtime.call("RemovePodSandbox", pod_sandbox_id=sandbox.id)

    async def logs(self, pod: Pod) -> None:
        """Remove a pod's log folder."""
        metadata = pod["metadata"]
        folder = self._config.pod_log_folder(metadata["namespace"], metadata["name"], metadata["uid"])
        await asyncio.to_thread(shutil.rmtree, folder, True)
