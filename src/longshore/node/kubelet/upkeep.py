"""What must be looked after while pods run: pressure and eviction, log rotation, dead containers, unused images.

Sources: kubernetes pkg/kubelet/{eviction,logs,images} (rules); container and image garbage collection of the kubelet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from longshore.machinery.grpc import RpcError
from longshore.node.kubelet import eviction
from longshore.node.kubelet.eviction import Pressures, Threshold
from longshore.node.kubelet.figures import tree_usage
from longshore.node.kubelet.kubelet import Kubelet
from longshore.node.kubelet.resources import requested
from longshore.node.kubelet.runtime import CONTAINER_NAME, POD_UID
from longshore.wire.cri import cri

log = logging.getLogger("longshore.kubelet.upkeep")
Pod = dict[str, Any]
PERIOD = 10.0
IMAGE_PERIOD = 300.0


def _volume_bytes(base: Path, name: str) -> int:
    return tree_usage(base / name)[0]


class Upkeep:
    """Looks every ten seconds, as upstream; each look is a few file system calls unless something is to be done."""

    def __init__(self, kubelet: Kubelet, changed: Callable[[], None]) -> None:
        """changed(): the node's conditions may be new."""
        self.kubelet, self._changed = kubelet, changed
        hard = [Threshold(s, t) for s, t in kubelet.config.eviction_hard.items() if s in eviction.SIGNALS]
        soft = [
            Threshold(s, t, kubelet.config.eviction_soft_grace.get(s, 90.0))
            for s, t in kubelet.config.eviction_soft.items()
            if s in eviction.SIGNALS
        ]
        self.pressures = Pressures([*hard, *soft])
        self._images_seen: dict[str, float] = {}
        self._images_at = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            for look in (self.pressure, self.storage, self.rotate_logs, self.collect_images):
                try:
                    await look()
                except (RpcError, OSError) as error:
                    log.debug("%s: %s", look.__name__, error)

    # -- pressure ----------------------------------------------------------------------------------------------------

    async def pressure(self) -> None:
        """Evict one pod, if the node is short of something."""
        before = set(self.pressures.conditions())
        due = self.pressures.update(eviction.observe(self.kubelet.config.root))
        if set(self.pressures.conditions()) != before:
            self._changed()
        if due and eviction.SIGNALS[due[0][0].signal][0] == "DiskPressure":
            try:
                await self.reclaim()
            except RpcError as error:
                log.info("not all that nobody needs could be removed: %s", error.message)
            due = self.pressures.update(eviction.observe(self.kubelet.config.root))
        if not due:
            return
        threshold, seen = due[0]
        resource = eviction.SIGNALS[threshold.signal][1]
        usage = await self._usage()
        pods = [w.pod for w in self.kubelet.workers.values() if not w.ending]

        def used(pod: Pod) -> int:
            found = usage.get(pod["metadata"]["uid"], {})
            index = 0 if resource == "memory" else 1
            return sum(pair[index] for pair in found.values())

        for pod in eviction.rank(pods, used, resource):
            worker = self.kubelet.workers.get(pod["metadata"]["uid"])
            if worker is None:
                continue
            found = usage.get(worker.uid, {})
            rows = [
                (c["name"], found.get(c["name"], (0, 0))[0 if resource == "memory" else 1], requested(c, resource))
                for c in pod["spec"]["containers"]
            ]
            text = eviction.message(threshold, seen, rows if resource in ("memory", "ephemeral-storage") else ())
            self._evict(worker, text, 0 if not threshold.grace else None)
            return

    async def reclaim(self) -> None:
        """Give back what nobody needs before a pod must go for it: containers of finished pods, images without use."""
        kubelet = self.kubelet
        over = {uid for uid in kubelet.pods if kubelet.is_finished(uid)}
        for sandbox in (await kubelet.runtime.call("ListPodSandbox")).items:
            if sandbox.labels.get(POD_UID) in over:
                await kubelet.runtime.call("StopPodSandbox", pod_sandbox_id=sandbox.id)
                await kubelet.runtime.call("RemovePodSandbox", pod_sandbox_id=sandbox.id)
        await self._remove_images(math.inf)

    def _evict(self, worker: Any, text: str, grace: int | None) -> None:
        log.warning(
            "pod %s/%s is evicted: %s", worker.pod["metadata"]["namespace"], worker.pod["metadata"]["name"], text
        )
        self.kubelet.pod_event(worker.pod, "Warning", "Evicted", text)
        self.kubelet.disruptions[worker.uid] = text
        worker.end(grace=grace if grace is None else max(1, grace), verdict=("Failed", "Evicted", text))

    async def _usage(self) -> dict[str, dict[str, tuple[int, int]]]:
        """uid -> container -> (working set, bytes written outside volumes)."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for stats in (await self.kubelet.runtime.call("ListContainerStats")).stats:
            labels = stats.attributes.labels
            found.setdefault(labels.get(POD_UID, ""), {})[labels.get(CONTAINER_NAME, "")] = (
                stats.memory.working_set_bytes.value,
                stats.writable_layer.used_bytes.value,
            )
        return found

    async def storage(self) -> None:
        """Evict pods that have written more than they may."""
        limited = [w for w in self.kubelet.workers.values() if not w.ending and eviction.limits_storage(w.pod)]
        if not limited:
            return
        usage = await self._usage()
        for worker in limited:
            base = self.kubelet.config.pod_folder(worker.uid) / "volumes" / "kubernetes.io~empty-dir"
            layers = {name: pair[1] for name, pair in usage.get(worker.uid, {}).items()}
            why = await asyncio.to_thread(eviction.storage_excess, worker.pod, partial(_volume_bytes, base), layers)
            if why is not None:
                self._evict(worker, why, 0)

    # -- logs --------------------------------------------------------------------------------------------------------

    async def rotate_logs(self) -> None:
        """Rotate logs that have grown past the limit; keep so many files of a container."""
        config = self.kubelet.config
        if config.container_log_max_size <= 0:
            return
        for uid in list(self.kubelet.workers):
            made = self.kubelet.statuses.get(uid) or {}
            for field in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
                for entry in made.get(field) or ():
                    if "running" not in entry["state"]:
                        continue
                    pod = self.kubelet.workers[uid].pod["metadata"]
                    folder = config.pod_log_folder(pod["namespace"], pod["name"], uid) / entry["name"]
                    path = folder / f"{entry['restartCount']}.log"
                    with contextlib.suppress(FileNotFoundError):
                        if path.stat().st_size > config.container_log_max_size:
                            await self._rotate(path, entry["containerID"].rpartition("/")[2])

    async def _rotate(self, path: Path, container_id: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        os.replace(path, path.with_name(f"{path.name}.{stamp}"))
        try:
            await self.kubelet.runtime.call("ReopenContainerLog", container_id=container_id)
        except RpcError:
            if not path.exists():
                os.replace(path.with_name(f"{path.name}.{stamp}"), path)
            raise
        old = sorted(p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}."))
        for extra in old[: max(0, len(old) - (self.kubelet.config.container_log_max_files - 1))]:
            extra.unlink(missing_ok=True)

    # -- images ------------------------------------------------------------------------------------------------------

    async def collect_images(self) -> None:
        """Remove images that nothing uses, the longest unused first, when their file system is too full."""
        config = self.kubelet.config
        if config.image_gc_high_percent >= 100 or time.monotonic() - self._images_at < IMAGE_PERIOD:
            return
        self._images_at = time.monotonic()
        info = await self.kubelet.runtime.image_call("ImageFsInfo")
        if not info.image_filesystems:
            return
        where = info.image_filesystems[0].fs_id.mountpoint
        disk = os.statvfs(where)
        total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        if not total or (total - free) * 100 // total < config.image_gc_high_percent:
            return
        to_free = total * (100 - config.image_gc_low_percent) // 100 - free
        freed = await self._remove_images(to_free)
        if freed < to_free:
            node = {"kind": "Node", "name": config.node_name, "uid": config.node_name, "apiVersion": "v1"}
            self.kubelet.recorder.event(node, "Warning", "FreeDiskSpaceFailed", f"Failed to garbage collect required amount of images. Attempted to free {to_free} bytes, but only found {freed} bytes eligible to free.")  # fmt: skip

    async def _remove_images(self, to_free: float) -> int:
        """Remove images that nothing uses until so many octets are free; how many are."""
        images = (await self.kubelet.runtime.image_call("ListImages")).images
        await asyncio.to_thread(self.kubelet.pull_records.keep, {image.id for image in images})
        used = {c.image_id or c.image_ref for c in (await self.kubelet.runtime.call("ListContainers")).containers}
        now = time.time()
        freed = 0
        for image in images:
            if image.id in used or image.id not in self._images_seen:
                self._images_seen[image.id] = now
        for image in sorted(images, key=lambda i: self._images_seen[i.id]):
            if freed >= to_free:
                break
            if (
                image.id in used
                or image.pinned
                or now - self._images_seen[image.id] < self.kubelet.config.image_minimum_age
            ):
                continue
            await self.kubelet.runtime.image_call("RemoveImage", image=cri.ImageSpec(image=image.id))
            freed += image.size
        return freed
