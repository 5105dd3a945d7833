"""File systems on local volumes that are block devices: made when there is none, checked, mounted once a node.

Source: kubernetes pkg/volume/local (MountDevice), k8s.io/mount-utils SafeFormatAndMount.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from longshore.machinery import mounts
from longshore.machinery.process import run

log = logging.getLogger("longshore.kubelet.volumes")
DEFAULT_TYPE = "ext4"
#: fsck(8): mistakes were found and could not be mended
_UNCORRECTED = 4
#: blkid(8): nothing was found on the device
_NOTHING = 2


class DeviceError(Exception):
    """A device cannot be mounted; the text is upstream's."""


class LocalDevices:
    """ROOT/plugins/kubernetes.io/local-volume/mounts/VOLUME, which pods' folders are bound to."""

    def __init__(self, root: Path) -> None:
        """root: the kubelet's."""
        self._mounts, self._pods = root / "plugins/kubernetes.io/local-volume/mounts", root / "pods"
        self._lock = asyncio.Lock()

    async def stage(self, volume: str, device: Path, kind: str, options: Sequence[str], *, readonly: bool) -> Path:
        """Where a volume's file system is mounted. kind: of file system; "" what it has, or ext4. Raises DeviceError."""
        target = self._mounts / volume
        async with self._lock:
            if await asyncio.to_thread(mounts.is_mounted, target):
                return target
            found = await _format(device)
            if not found:
                if readonly:
                    raise DeviceError(f"cannot mount unformatted disk {device} as we are manipulating it in read-only mode")  # fmt: skip
                await _make(device, kind or DEFAULT_TYPE)
            elif not readonly:
                await _check(device)
            try:
                await asyncio.to_thread(_mount, device, target, kind or found or DEFAULT_TYPE, options, readonly)
            except OSError as error:
                detail = f' as "{kind}", it already contains {found}' if kind and found and kind != found else ""
                raise DeviceError(f"failed to mount the volume{detail}: {error.strerror}") from error
        return target

    async def release(self) -> None:
        """Unmount what no pod's folder is bound to any more."""
        if self._mounts.exists():
            async with self._lock:
                await asyncio.to_thread(self._release)

    def _release(self) -> None:
        table = mounts.table()
        pods = f"{os.path.realpath(self._pods)}/"
        used = {m.source for m in table if m.path.startswith(pods)}
        for target in self._mounts.iterdir():
            mounted = [m for m in table if m.path == os.path.realpath(target)]
            if all(m.source not in used for m in mounted):
                for _ in mounted:
                    mounts.unmount(target, detach=False)
                target.rmdir()


def _mount(device: Path, target: Path, kind: str, options: Sequence[str], readonly: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    mounts.mount(device, target, kind, [*options, *(["ro"] if readonly else [])])


async def _format(device: Path) -> str:
    """What is on a device: the file system's type, "" for nothing. Raises DeviceError for what must not be overwritten."""
    asked = await run(["blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", str(device)], check=False)
    if asked.returncode == _NOTHING:
        return ""
    if asked.returncode:
        raise DeviceError(f"could not determine if disk {device} is formatted: {asked.stderr.decode(errors='replace').strip()}")  # fmt: skip
    words = dict(line.partition("=")[::2] for line in asked.stdout.decode(errors="replace").splitlines() if "=" in line)
    if "PTTYPE" in words:
        raise DeviceError(f"failed to mount the volume {device}: it already contains unknown data, probably partitions")
    return words.get("TYPE", "")


async def _make(device: Path, kind: str) -> None:
    flags = {"ext3": ["-F", "-m0"], "ext4": ["-F", "-m0"], "xfs": ["-f"]}.get(kind, [])
    log.info("%s appears to be unformatted: making %s on it", device, kind)
    try:
        made = await run([f"mkfs.{kind}", *flags, str(device)], check=False)
    except OSError as error:
        raise DeviceError(f"format of disk {device} failed: type:({kind!r}) error: mkfs.{kind}: {error.strerror}") from error  # fmt: skip
    if made.returncode:
        raise DeviceError(f"format of disk {device} failed: type:({kind!r}) errcode: exit status {made.returncode}, output: {made.stderr.decode(errors='replace').strip()}")  # fmt: skip


async def _check(device: Path) -> None:
    try:
        checked = await run(["fsck", "-a", str(device)], check=False)
    except OSError:
        return  # without fsck it is mounted as it is, as upstream does
    if checked.returncode == _UNCORRECTED:
        raise DeviceError(f"'fsck' found errors on device {device} but could not correct them: {checked.stdout.decode(errors='replace').strip()}.")  # fmt: skip
