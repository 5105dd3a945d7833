"""The volumes of one node's pods: folders under the kubelet's root, with upstream's names."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshore.machinery import mounts, quantity, rooted
from longshore.node.kubelet.volumes import atomic
from longshore.node.kubelet.volumes.csi import CsiError, CsiVolumes
from longshore.node.kubelet.volumes.localdevices import DeviceError, LocalDevices
from longshore.node.kubelet.volumes.payload import PayloadError, Sources, collect

log = logging.getLogger("longshore.kubelet.volumes")
Pod = dict[str, Any]
#: a claim's or a persistent volume's object by (kind, namespace, name); None when there is none
Claims = Callable[[str, str, str], Awaitable[dict[str, Any] | None]]
_PAYLOADS = {
    "configMap": "kubernetes.io~configmap", "secret": "kubernetes.io~secret",
    "downwardAPI": "kubernetes.io~downward-api", "projected": "kubernetes.io~projected",
}  # fmt: skip
EMPTY_DIR = "kubernetes.io~empty-dir"


class VolumeError(Exception):
    """A volume cannot be had now; the text is upstream's and tells which. It may work later."""


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """A volume on the node. path: where it is; readonly: the volume itself may not be written; image: an OCI image;
    device: it is a block device; claim: the PersistentVolumeClaim that it is of."""

    name: str
    path: Path
    readonly: bool = False
    image: Mapping[str, Any] | None = None
    device: bool = False
    claim: str = ""


class VolumeManager:
    """Makes, refreshes and removes volumes."""

    def __init__(
        self,
        root: Path,
        sources: Sources,
        claims: Claims,
        node_name: str,
        memory: Callable[[], int],
        csi: CsiVolumes,
        grown: Callable[[Pod, Mapping[str, Any], Mapping[str, Any]], Awaitable[None]],
    ) -> None:
        """root: the kubelet's. memory: allocatable bytes of the node, for volumes in memory. grown(pod, claim, volume):
        the volume's file system is as large as the volume now."""
        self._csi, self._grown, self._local_devices = csi, grown, LocalDevices(root)
        self._root, self._sources, self._claims, self._node, self._memory = root, sources, claims, node_name, memory
        #: uid -> when to look at the pod's volumes again (seconds since 1970), for tokens
        self.due: dict[str, float] = {}
        #: uid -> the pod's volumes by name, as last prepared
        self.present: dict[str, dict[str, MountedVolume]] = {}

    def folder(self, uid: str) -> Path:
        return self._root / "pods" / uid / "volumes"

    # -- preparing ---------------------------------------------------------------------------------------------------

    async def prepare(self, pod: Pod) -> dict[str, MountedVolume]:
        """Have every volume that a container mounts, with present content. Raises VolumeError."""
        wanted = _used(pod)
        found: dict[str, MountedVolume] = {}
        problems: list[str] = []
        due = 0.0
        for volume in pod["spec"].get("volumes") or ():
            if volume["name"] not in wanted:
                continue
            try:
                mounted, again = await self._one(pod, volume)
            except (VolumeError, PayloadError, CsiError, DeviceError, atomic.BadPath) as error:
                problems.append(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}')
                continue
            except OSError as error:
                problems.append(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}')
                continue
            problem = _misused(pod, mounted)
            if problem:
                problems.append(problem)
            found[volume["name"]] = mounted
            if again:
                due = min(due or again, again)
        uid = pod["metadata"]["uid"]
        if due:
            self.due[uid] = due
        else:
            self.due.pop(uid, None)
        if problems:
            raise VolumeError("\n".join(problems))
        self.present[uid] = found
        return found

    async def _one(self, pod: Pod, volume: Mapping[str, Any]) -> tuple[MountedVolume, float]:
        name, uid = volume["name"], pod["metadata"]["uid"]
        gid = (pod["spec"].get("securityContext") or {}).get("fsGroup")
        for key, plugin in _PAYLOADS.items():
            if key in volume:
                files, again = await collect(pod, volume, self._sources)
                folder = self.folder(uid) / plugin / name
                in_memory = key in ("secret", "projected")
                await asyncio.to_thread(self._write, folder, files, gid, in_memory)
                return MountedVolume(name, folder, readonly=False), again
        if "emptyDir" in volume:
            folder = self.folder(uid) / EMPTY_DIR / name
            await asyncio.to_thread(self._empty_dir, folder, volume["emptyDir"] or {}, gid)
            return MountedVolume(name, folder), 0.0
        if "hostPath" in volume:
            source = volume["hostPath"]
            await asyncio.to_thread(_host_path, Path(source["path"]), source.get("type") or "")
            return MountedVolume(name, Path(source["path"])), 0.0
        if "image" in volume:
            return MountedVolume(name, Path("/"), readonly=True, image=volume["image"]), 0.0
        if "csi" in volume:
            source = volume["csi"]
            own = await self._csi.ephemeral(pod, name, source)
            return MountedVolume(name, own.path, bool(source.get("readOnly"))), own.again and time.time() + own.again
        if "persistentVolumeClaim" in volume:
            return await self._claim(pod, name, volume["persistentVolumeClaim"]["claimName"],
                                     bool(volume["persistentVolumeClaim"].get("readOnly")), gid)  # fmt: skip
        if "ephemeral" in volume:
            return await self._claim(pod, name, f"{pod['metadata']['name']}-{name}", False, gid)
        kind = next((k for k in volume if k != "name"), "")
        raise VolumeError(f"no volume plugin matched: {kind}")

    def _write(self, folder: Path, files: Mapping[str, atomic.File], gid: int | None, in_memory: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if in_memory and not _own_file_system(folder):
            # Never on a disk. noswap would be better still, where the kernel has it.
            mounts.mount("tmpfs", folder, "tmpfs", [f"size={max(2**20, self._memory())}", "mode=0755"])
        atomic.write(folder, files, gid)
        mode = 0o777 | stat.S_ISVTX
        os.chmod(folder, mode)
        if gid is not None:
            os.chown(folder, -1, gid)
            os.chmod(folder, mode | 0o2000)

    def _empty_dir(self, folder: Path, source: Mapping[str, Any], gid: int | None) -> None:
        ready = folder / ".." / f".{folder.name}.ready"
        folder.mkdir(parents=True, exist_ok=True)
        medium = source.get("medium") or ""
        if medium == "Memory":
            if not _own_file_system(folder):
                size = self._memory()
                if source.get("sizeLimit"):
                    size = min(size or 2**63, quantity.parse(str(source["sizeLimit"])).value) or size
                mounts.mount("tmpfs", folder, "tmpfs", [f"size={size}"] if size else [])
                ready.unlink(missing_ok=True)
        elif medium.startswith("HugePages"):
            if not _own_file_system(folder):
                page = medium.partition("-")[2]
                options = [f"pagesize={page.removesuffix('i')}"] if page else []
                mounts.mount("nodev", folder, "hugetlbfs", options)
        elif medium:
            raise VolumeError(f'unknown storage medium "{medium}"')
        if ready.exists():
            return
        os.chmod(folder, 0o777)
        if gid is not None:
            os.chown(folder, -1, gid)
            os.chmod(folder, 0o2777)
        ready.touch()

    async def _claim(
        self, pod: Pod, name: str, claim_name: str, readonly: bool, gid: int | None
    ) -> tuple[MountedVolume, float]:
        namespace = pod["metadata"]["namespace"]
        claim = await self._claims("PersistentVolumeClaim", namespace, claim_name)
        if claim is None:
            raise VolumeError(f'error processing PVC {namespace}/{claim_name}: failed to fetch PVC from API server: persistentvolumeclaims "{claim_name}" not found')  # fmt: skip
        if (claim.get("status") or {}).get("phase") != "Bound" or not claim["spec"].get("volumeName"):
            raise VolumeError(f"error processing PVC {namespace}/{claim_name}: PVC is not bound")
        volume = await self._claims("PersistentVolume", "", claim["spec"]["volumeName"])
        if volume is None:
            raise VolumeError(f'persistentvolume "{claim["spec"]["volumeName"]}" not found')
        spec = volume["spec"]
        if (spec.get("claimRef") or {}).get("uid") != claim["metadata"]["uid"]:
            raise VolumeError(f"volume {volume['metadata']['name']} is bound to another claim")
        if "hostPath" in spec:
            source = Path(spec["hostPath"]["path"])
            await asyncio.to_thread(_host_path, source, spec["hostPath"].get("type") or "")
            return MountedVolume(name, source, readonly, claim=claim_name), 0.0
        if "local" in spec:
            source = Path(spec["local"]["path"])
            if spec.get("volumeMode") == "Block":
                await asyncio.to_thread(_block_device, source)
                return MountedVolume(name, source, readonly, device=True, claim=claim_name), 0.0
            target = self.folder(pod["metadata"]["uid"]) / "kubernetes.io~local-volume" / volume["metadata"]["name"]
            if not source.exists():
                raise VolumeError(f'local volume path "{source}" does not exist')
            if stat.S_ISBLK(os.stat(source).st_mode):
                source = await self._local_devices.stage(
                    volume["metadata"]["name"], source, spec["local"].get("fsType") or "",
                    spec.get("mountOptions") or (), readonly=readonly,
                )  # fmt: skip
            await asyncio.to_thread(self._local, source, target, gid)
            return MountedVolume(name, target, readonly, claim=claim_name), 0.0
        if "csi" in spec:
            published = await self._csi.persistent(pod, volume, readonly)
            await self._grow(pod, claim, volume, published.path)
            mounted = MountedVolume(
                name, published.path, readonly, device=spec.get("volumeMode") == "Block", claim=claim_name
            )
            return mounted, published.again and time.time() + published.again
        kind = next((k for k in spec if k in ("nfs", "iscsi", "fc", "rbd", "cephfs")), "volume")
        raise VolumeError(f"no volume plugin matched: {kind}")

    async def _grow(self, pod: Pod, claim: Mapping[str, Any], volume: Mapping[str, Any], path: Path) -> None:
        """After a volume has been made larger: what is on it, and what the claim says of it. Raises CsiError."""
        want, have = (quantity.parse(str((o.get("capacity") or {}).get("storage") or "0")).value
                      for o in (volume["spec"], claim.get("status") or {}))  # fmt: skip
        if not have or want <= have:
            return
        if await self._csi.expand(volume, path, want):
            await self._grown(pod, claim, volume)

    def _local(self, source: Path, target: Path, gid: int | None) -> None:
        target.mkdir(parents=True, exist_ok=True)
        if not mounts.is_mounted(target):
            mounts.bind(source, target)
            if gid is not None:
                atomic.own(target, gid, readonly=False)

    # -- parts of volumes --------------------------------------------------------------------------------------------

    def sub_path(self, uid: str, volume: MountedVolume, container: str, index: int, path: str) -> Path:
        """A folder or file inside a volume, bound where no link of the volume's content can move it. Blocking.

        path: relative, without "..". A missing one is made as a folder. Raises VolumeError.
        """
        target = self._root / "pods" / uid / "volume-subpaths" / volume.name / container / str(index)
        if target.exists():
            mounts.unmount(target)
        fd = -1
        try:
            try:
                fd = rooted.open_in(volume.path, path, os.O_PATH)
            except FileNotFoundError:
                if volume.readonly:
                    raise
                mode = stat.S_IMODE(os.stat(volume.path).st_mode)
                fd = rooted.make_dirs(volume.path, path, mode=(mode & 0o7777) | 0o700)
            # What was opened is what is bound: a swapped link in between changes nothing.
            target.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                target.mkdir(exist_ok=True)
            else:
                target.touch()
            mounts.bind(f"/proc/self/fd/{fd}", target, recursive=True)
        except OSError as error:
            raise VolumeError(f"failed to prepare subPath for volumeMount {volume.name!r} of container {container!r}: {error.strerror}") from error  # fmt: skip
        finally:
            if fd >= 0:
                os.close(fd)
        return target

    # -- removing ----------------------------------------------------------------------------------------------------

    async def remove(self, uid: str) -> None:
        """Give back and remove every volume and everything else of a pod's folder.

        Raises OSError when something cannot be removed yet.
        """
        await self._csi.release(uid)
        await asyncio.to_thread(self._remove, uid)
        await self._local_devices.release()

    def _remove(self, uid: str) -> None:
        self.due.pop(uid, None)
        self.present.pop(uid, None)
        folder = self._root / "pods" / uid
        if not folder.exists():
            return
        mounts.unmount_below(folder)
        left = [m.path for m in mounts.table() if m.path.startswith(f"{os.path.realpath(folder)}/")]
        if left:
            # Deleting now could delete another's files through a mount that is still there.
            raise OSError(16, f"still mounted: {', '.join(left)}", str(folder))
        for _ in range(3):
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
            if not folder.exists():
                return
            time.sleep(0.01)
        shutil.rmtree(folder)

    def known(self) -> list[str]:
        """The uids of pods that have a folder here."""
        try:
            return os.listdir(self._root / "pods")
        except FileNotFoundError:
            return []


def _own_file_system(folder: Path) -> bool:
    """Whether a file system of its own is mounted at the folder (asked of the folder, not of the whole mount table)."""
    return os.stat(folder).st_dev != os.stat(folder.parent).st_dev


def _used(pod: Pod) -> set[str]:
    names: set[str] = set()
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod["spec"].get(group) or ():
            names.update(m["name"] for m in container.get("volumeMounts") or ())
            names.update(d["name"] for d in container.get("volumeDevices") or ())
            for variable in container.get("env") or ():
                ref = (variable.get("valueFrom") or {}).get("fileKeyRef")
                if ref:
                    names.add(ref["volumeName"])
    return names


def _misused(pod: Pod, volume: MountedVolume) -> str:
    """Why a volume of one mode cannot be had in the other; "" when nobody wants that."""
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod["spec"].get(group) or ():
            wrong = container.get("volumeMounts" if volume.device else "volumeDevices") or ()
            if any(entry["name"] == volume.name for entry in wrong):
                mode, field = ("Block", "volumeMounts") if volume.device else ("Filesystem", "volumeDevices")
                return f"volume {volume.name} has volumeMode {mode}, but is specified in {field}"
    return ""


def _block_device(path: Path) -> None:
    """Raises VolumeError unless the path is a block device."""
    try:
        if stat.S_ISBLK(os.stat(path).st_mode):
            return
    except OSError as error:
        raise VolumeError(f'local volume path "{path}": {error.strerror}') from error
    raise VolumeError(f'local volume path "{path}" is not a block device')


def _host_path(path: Path, kind: str) -> None:
    """Check, and for the ...OrCreate types make, a path of the host. Raises VolumeError."""
    if kind == "":
        return
    if kind == "DirectoryOrCreate":
        if not path.exists():
            path.mkdir(mode=0o755, parents=True)
        kind = "Directory"
    if kind == "FileOrCreate":
        if not path.exists():
            path.touch(mode=0o644)
        kind = "File"
    try:
        mode = os.stat(path).st_mode
    except OSError:
        word = {"Directory": "directory", "File": "file", "Socket": "socket", "CharDevice": "character device",
                "BlockDevice": "block device"}.get(kind, kind)  # fmt: skip
        raise VolumeError(f"hostPath type check failed: {path} is not a {word}") from None
    checks = {
        "Directory": (stat.S_ISDIR, "directory"), "File": (stat.S_ISREG, "file"), "Socket": (stat.S_ISSOCK, "socket file"),
        "CharDevice": (stat.S_ISCHR, "character device"), "BlockDevice": (stat.S_ISBLK, "block device"),
    }  # fmt: skip
    if kind not in checks:
        raise VolumeError(f"{kind} is an invalid volume type")
    test, word = checks[kind]
    if not test(mode):
        raise VolumeError(f"hostPath type check failed: {path} is not a {word}")
