"""How full pods' volumes are: the volumes of /stats/summary and the kubelet_volume_stats metrics.

Source: kubernetes pkg/kubelet/server/stats/volume_stat_calculator.go, k8s.io/kubelet/pkg/apis/stats/v1alpha1.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longshore.node.kubelet.volumes.csi import PLUGIN, CsiVolumes, Figures
from longshore.node.kubelet.volumes.manager import MountedVolume, VolumeManager

Pod = dict[str, Any]
#: seconds that what was counted holds: a walk over many files is dear
KEPT_SECONDS = 60.0


class VolumeFigures:
    """Looks at volumes when asked, and then not again for a minute."""

    def __init__(
        self, root: Path, volumes: VolumeManager, csi: CsiVolumes, usage: Callable[[Path], tuple[int, int]]
    ) -> None:
        """root: the kubelet's. usage(folder): octets and inodes of what is in it."""
        self._root, self._volumes, self._csi, self._usage = root / "pods", volumes, csi, usage
        self._kept: dict[str, tuple[float, list[dict[str, Any]]]] = {}

    async def of(self, pod: Pod, now: str) -> list[dict[str, Any]]:
        """A pod's VolumeStats. now: the time that they tell."""
        uid = pod["metadata"]["uid"]
        when, found = self._kept.get(uid, (0.0, []))
        if not when or time.monotonic() - when > KEPT_SECONDS:
            present = self._volumes.present.get(uid, {})
            told = await self._csi.figures(uid) if present else {}
            found = await asyncio.to_thread(self._look, list(present.values()), told)
            self._kept[uid] = (time.monotonic(), found)
            for other in self._kept.keys() - self._volumes.present.keys():
                del self._kept[other]
        namespace = pod["metadata"]["namespace"]
        return [
            {"time": now, **{k: v for k, v in e.items() if k != "claim"},
             **({"pvcRef": {"name": e["claim"], "namespace": namespace}} if e["claim"] else {})}
            for e in found
        ]  # fmt: skip

    def _look(self, volumes: list[MountedVolume], told: dict[str, Figures]) -> list[dict[str, Any]]:
        found = []
        for volume in volumes:
            # The host's own folders are nobody's volume, and what is in an image does not grow.
            if volume.image is not None or not volume.path.is_relative_to(self._root):
                continue
            driver = told.get(volume.path.parent.name) if volume.path.parent.parent.name == PLUGIN else None
            try:
                figures = _of_driver(driver) if driver is not None else self._of_folder(volume.path)
            except OSError:
                continue
            found.append({"name": volume.name, "claim": volume.claim, **figures})
        return found

    def _of_folder(self, path: Path) -> dict[str, int]:
        info = os.statvfs(path)
        found = {
            "availableBytes": info.f_bavail * info.f_frsize, "capacityBytes": info.f_blocks * info.f_frsize,
            "inodesFree": info.f_favail, "inodes": info.f_files,
        }  # fmt: skip
        if os.stat(path).st_dev != os.stat(self._root).st_dev:
            # A file system of its own: it counts itself.
            used, inodes = (info.f_blocks - info.f_bfree) * info.f_frsize, info.f_files - info.f_ffree
        else:
            used, inodes = self._usage(path)
        return {**found, "usedBytes": used, "inodesUsed": inodes}


def _of_driver(figures: Figures) -> dict[str, int]:
    named = {
        "availableBytes": figures.available, "capacityBytes": figures.capacity, "usedBytes": figures.used,
        "inodesFree": figures.inodes_free, "inodes": figures.inodes, "inodesUsed": figures.inodes_used,
    }  # fmt: skip
    return {name: value for name, value in named.items() if value is not None}
