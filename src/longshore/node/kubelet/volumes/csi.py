"""The node's side of CSI: drivers that have registered, and the volumes that they stage and publish for pods.

Source: CSI specification 1.11 (Node service), kubernetes pkg/volume/csi (paths, contexts, order, what is written down).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from longshore.client.resources import CSI_DRIVERS, CSI_NODES, NODES, SECRETS, VOLUME_ATTACHMENTS
from longshore.client.rest import Client, is_not_found
from longshore.machinery import mounts
from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import Client as GrpcClient
from longshore.machinery.grpc import RpcError
from longshore.node.kubelet.plugins import PluginRefused
from longshore.node.kubelet.volumes import atomic
from longshore.wire.protobuf import Schema

log = logging.getLogger("longshore.kubelet.csi")
Pod = dict[str, Any]
PLUGIN = "kubernetes.io~csi"
NODE_ID = "csi.volume.kubernetes.io/nodeid"
CALL_SECONDS = 120.0
_DATA = "vol_data.json"
_STAGE_UNSTAGE, _SINGLE_NODE_MULTI_WRITER, _MOUNT_GROUP = 1, 5, 6
CSI = """
service Node: NodeStageVolume, NodeUnstageVolume, NodePublishVolume, NodeUnpublishVolume, NodeGetCapabilities, NodeGetInfo
VolumeCapability: 1 block BlockVolume @access_type, 2 mount MountVolume @access_type, 3 access_mode AccessMode
BlockVolume:
MountVolume: 1 fs_type string, 2 mount_flags *string, 3 volume_mount_group string
AccessMode: 1 mode int32
NodeStageVolumeRequest: 1 volume_id string, 2 publish_context {string:string}, 3 staging_target_path string,
 4 volume_capability VolumeCapability, 5 secrets {string:string}, 6 volume_context {string:string}
NodeStageVolumeResponse:
NodeUnstageVolumeRequest: 1 volume_id string, 2 staging_target_path string
NodeUnstageVolumeResponse:
NodePublishVolumeRequest: 1 volume_id string, 2 publish_context {string:string}, 3 staging_target_path string,
 4 target_path string, 5 volume_capability VolumeCapability, 6 readonly bool, 7 secrets {string:string},
 8 volume_context {string:string}
NodePublishVolumeResponse:
NodeUnpublishVolumeRequest: 1 volume_id string, 2 target_path string
NodeUnpublishVolumeResponse:
NodeGetCapabilitiesRequest:
NodeGetCapabilitiesResponse: 1 capabilities *NodeServiceCapability
NodeServiceCapability: 1 rpc NodeServiceRPC
NodeServiceRPC: 1 type int32
NodeGetInfoRequest:
NodeGetInfoResponse: 1 node_id string, 2 max_volumes_per_node int64, 3 accessible_topology Topology
Topology: 1 segments {string:string}
"""
_schema: Schema | None = None


def schema() -> Schema:
    """The Node service's messages, made at first use."""
    global _schema
    if _schema is None:
        _schema = Schema("csi.v1", CSI)
    return _schema


class CsiError(Exception):
    """A volume cannot be had or given back now; the text tells why."""


class CsiVolumes:
    """Drivers by name (a PluginHandler) and what they have published."""

    def __init__(self, client: Client, node_name: str, root: Path, changed: Callable[[], None]) -> None:
        """root: the kubelet's. changed(): a driver has come; pods that wait for it may go on."""
        self._client, self._node, self._root, self._changed = client, node_name, root, changed
        self._drivers: dict[str, tuple[Path, set[int]]] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._busy: dict[str, asyncio.Lock] = {}
        self._telling = asyncio.Lock()

    # -- drivers -----------------------------------------------------------------------------------------------------

    async def register(self, name: str, endpoint: Path, versions: Sequence[str]) -> None:
        """A driver has come: learn what it can and tell the CSINode. Raises PluginRefused."""
        if not any(v.lstrip("v").partition(".")[0] == "1" for v in versions):
            raise PluginRefused(
                f"CSI driver {name} supports none of the versions that this node does: {list(versions)}"
            )
        try:
            info = await self._call(endpoint, "NodeGetInfo")
            answer = await self._call(endpoint, "NodeGetCapabilities")
        except RpcError as error:
            raise PluginRefused(f"error during CSI NodeGetInfo() call: {error.message}") from error
        if not info.node_id:
            raise PluginRefused(f"CSI driver {name} tells no node ID")
        entry: dict[str, Any] = {
            "name": name, "nodeID": info.node_id, "topologyKeys": sorted(info.accessible_topology.segments) or None,
        }  # fmt: skip
        if info.max_volumes_per_node > 0:
            entry["allocatable"] = {"count": min(info.max_volumes_per_node, 2**31 - 1)}
        self._told[name] = {k: v for k, v in entry.items() if v is not None}
        try:
            await self._tell(dict(info.accessible_topology.segments))
        except (StatusError, OSError, TimeoutError) as error:
            raise PluginRefused(f"error updating CSINode object: {error}") from error
        self._drivers[name] = (endpoint, {c.rpc.type for c in answer.capabilities})
        self._changed()

    async def deregister(self, name: str, endpoint: Path) -> None:
        """A driver's socket has gone; what it has published stays."""
        if self._drivers.get(name, (None,))[0] != endpoint:
            return
        del self._drivers[name]
        self._told.pop(name, None)
        try:
            await self._tell({})
        except (StatusError, OSError, TimeoutError) as error:
            log.warning("CSINode: %s", error)

    async def _tell(self, labels: Mapping[str, str]) -> None:
        """Write the CSINode, the node's annotation of node IDs and the labels of its topology."""
        async with self._telling:
            ids = orjson.dumps({n: d["nodeID"] for n, d in sorted(self._told.items())}).decode() if self._told else None
            change: dict[str, Any] = {"annotations": {NODE_ID: ids}}
            if labels:
                change["labels"] = dict(labels)
            node = await self._client.patch(NODES, self._node, {"metadata": change}, kind="strategic")
            owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node["metadata"]["uid"]}
            drivers = list(self._told.values())
            try:
                await self._client.patch(CSI_NODES, self._node, {"spec": {"drivers": drivers}}, kind="merge")
            except StatusError as error:
                if not is_not_found(error):
                    raise
                metadata = {"name": self._node, "ownerReferences": [owner]}
                await self._client.create(CSI_NODES, {"metadata": metadata, "spec": {"drivers": drivers}})

    async def _call(self, endpoint: Path, name: str, **fields: Any) -> Any:
        client = GrpcClient(schema().Node, path=endpoint)
        try:
            return await client.call(name, deadline=CALL_SECONDS, **fields)
        finally:
            client.close()

    def _driver(self, name: str) -> tuple[Path, set[int]]:
        found = self._drivers.get(name)
        if found is None:
            raise CsiError(f"kubernetes.io/csi: driver name {name} not found in the list of registered CSI drivers")
        return found

    def _lock(self, key: str) -> asyncio.Lock:
        """One operation a volume at a time: a driver need not bear two."""
        if len(self._busy) > 1000:
            self._busy = {k: lock for k, lock in self._busy.items() if lock.locked()}
        return self._busy.setdefault(key, asyncio.Lock())

    # -- publishing --------------------------------------------------------------------------------------------------

    async def ephemeral(self, pod: Pod, name: str, source: Mapping[str, Any]) -> Path:
        """A volume of the pod's own, described in its spec. Raises CsiError."""
        driver = await self._about(source["driver"])
        modes = driver.get("volumeLifecycleModes") or ["Persistent"]
        if "Ephemeral" not in modes:
            shown = ",".join(modes)
            raise CsiError(
                f'volume mode "Ephemeral" not supported by driver {source["driver"]} (only supports "{shown}")'
            )
        handle = "csi-" + hashlib.sha256(f"{pod['metadata']['uid']}{name}".encode()).hexdigest()
        secret = source.get("nodePublishSecretRef")
        reference = {"namespace": pod["metadata"]["namespace"], "name": secret["name"]} if secret else None
        spec = {
            "driver": source["driver"], "volumeHandle": handle, "fsType": source.get("fsType"),
            "volumeAttributes": source.get("volumeAttributes"), "nodePublishSecretRef": reference,
        }  # fmt: skip
        return await self._publish(pod, name, spec, driver, bool(source.get("readOnly")), [], [], ephemeral=True)

    async def persistent(self, pod: Pod, volume: Mapping[str, Any], readonly: bool) -> Path:
        """A PersistentVolume of CSI for a pod. Raises CsiError."""
        spec = volume["spec"]
        if spec.get("volumeMode") == "Block":
            raise CsiError("block volumes are not supported by this node")
        driver = await self._about(spec["csi"]["driver"])
        return await self._publish(
            pod, volume["metadata"]["name"], spec["csi"], driver, readonly or bool(spec["csi"].get("readOnly")),
            spec.get("accessModes") or [], spec.get("mountOptions") or [], ephemeral=False,
        )  # fmt: skip

    async def _about(self, name: str) -> dict[str, Any]:
        try:
            return dict((await self._client.get(CSI_DRIVERS, name)).get("spec") or {})
        except StatusError as error:
            if is_not_found(error):
                return {}
            raise CsiError(error.message) from error

    async def _publish(
        self,
        pod: Pod,
        name: str,
        spec: Mapping[str, Any],
        driver: Mapping[str, Any],
        readonly: bool,
        modes: Sequence[str],
        flags: Sequence[str],
        *,
        ephemeral: bool,
    ) -> Path:
        endpoint, can = self._driver(spec["driver"])
        handle = str(spec["volumeHandle"])
        folder: Path = self._root / "pods" / pod["metadata"]["uid"] / "volumes" / PLUGIN / name
        target = folder / "mount"
        record = {"driverName": spec["driver"], "volumeHandle": handle, "specVolID": name, "nodeName": self._node,
                  "volumeLifecycleMode": "Ephemeral" if ephemeral else "Persistent"}  # fmt: skip
        async with self._lock(f"{spec['driver']}^{handle}"):
            if (folder / _DATA).exists() and await asyncio.to_thread(mounts.is_mounted, target):
                return target
            group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
            mount = {"fs_type": spec.get("fsType") or "", "mount_flags": list(flags)}
            if group is not None and _MOUNT_GROUP in can:
                mount["volume_mount_group"] = str(group)
            capability = {"mount": mount, "access_mode": {"mode": _access_mode(modes, can)}}
            context = dict(spec.get("volumeAttributes") or {})
            published: dict[str, str] = {}
            if not ephemeral and driver.get("attachRequired", True):
                published = await self._attached(handle, spec["driver"])
            staging = self._staging(spec["driver"], handle) if _STAGE_UNSTAGE in can and not ephemeral else None
            # Written before the driver is asked, so that what is cut short is given back too.
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            (folder / _DATA).write_bytes(orjson.dumps(record))
            try:
                if staging is not None:
                    staging.mkdir(parents=True, exist_ok=True, mode=0o750)
                    (staging.parent / _DATA).write_bytes(orjson.dumps(record))
                    secrets = await self._secrets(spec.get("nodeStageSecretRef"))
                    await self._call(
                        endpoint, "NodeStageVolume", volume_id=handle, publish_context=published,
                        staging_target_path=str(staging), volume_capability=capability, secrets=secrets,
                        volume_context=context,
                    )  # fmt: skip
                if driver.get("podInfoOnMount"):
                    context |= _pod_info(pod, ephemeral)
                await self._call(
                    endpoint, "NodePublishVolume", volume_id=handle, publish_context=published,
                    staging_target_path=str(staging or ""), target_path=str(target), volume_capability=capability,
                    readonly=readonly, secrets=await self._secrets(spec.get("nodePublishSecretRef")),
                    volume_context=context,
                )  # fmt: skip
            except RpcError as error:
                raise CsiError(f"rpc error: code = {_go_code(error)} desc = {error.message}") from error
            if group is not None and _MOUNT_GROUP not in can and _owned_by_group(driver, spec, modes, readonly):
                await asyncio.to_thread(atomic.own, target, group, readonly=False)
            return target

    async def _attached(self, handle: str, driver: str) -> dict[str, str]:
        """What the attacher says of the volume, once it is attached to this node. Raises CsiError."""
        name = "csi-" + hashlib.sha256(f"{handle}{driver}{self._node}".encode()).hexdigest()
        try:
            found = await self._client.get(VOLUME_ATTACHMENTS, name)
        except StatusError as error:
            raise CsiError(f"volume attachment of {handle} cannot be read: {error.message}") from error
        status = found.get("status") or {}
        if not status.get("attached"):
            problem = (status.get("attachError") or {}).get("message") or "it is not attached yet"
            raise CsiError(f"volume attachment {name}: {problem}")
        return dict(status.get("attachmentMetadata") or {})

    async def _secrets(self, reference: Mapping[str, Any] | None) -> dict[str, str]:
        if not reference:
            return {}
        from longshore.node.kubelet.volumes.payload import object_bytes

        try:
            found = await self._client.get(SECRETS, reference["name"], reference["namespace"])
        except StatusError as error:
            raise CsiError(f"failed to get secrets {reference['namespace']}/{reference['name']}: {error.message}") from error  # fmt: skip
        return {k: v.decode("utf-8", "replace") for k, v in object_bytes("Secret", found).items()}

    def _staging(self, driver: str, handle: str) -> Path:
        digest = hashlib.sha256(handle.encode()).hexdigest()
        return self._root / "plugins" / "kubernetes.io" / "csi" / driver / digest / "globalmount"

    # -- giving back -------------------------------------------------------------------------------------------------

    async def release(self, uid: str) -> None:
        """Give back all that was published for a pod. Raises OSError when something cannot be given back yet."""
        try:
            folders = [f for f in (self._root / "pods" / uid / "volumes" / PLUGIN).iterdir() if f.is_dir()]
        except FileNotFoundError:
            return
        for folder in folders:
            record = _read(folder / _DATA)
            if record is None:
                continue
            driver, handle = str(record["driverName"]), str(record["volumeHandle"])
            try:
                async with self._lock(f"{driver}^{handle}"):
                    await self._unpublish(folder, driver, handle)
            except RpcError as error:
                raise OSError(5, f"volume {folder.name}: rpc error: code = {_go_code(error)} desc = {error.message}") from error  # fmt: skip
            except CsiError as error:
                raise OSError(5, f"volume {folder.name}: {error}") from error

    async def _unpublish(self, folder: Path, driver: str, handle: str) -> None:
        endpoint, _ = self._driver(driver)
        target = folder / "mount"
        await self._call(endpoint, "NodeUnpublishVolume", volume_id=handle, target_path=str(target))
        if await asyncio.to_thread(mounts.is_mounted, target):
            raise CsiError(f"{target} is still mounted")
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(target)
        staging = self._staging(driver, handle)
        if staging.parent.exists() and not await asyncio.to_thread(self._used_elsewhere, folder, driver, handle):
            await self._call(endpoint, "NodeUnstageVolume", volume_id=handle, staging_target_path=str(staging))
            if await asyncio.to_thread(mounts.is_mounted, staging):
                raise CsiError(f"{staging} is still mounted")
            await asyncio.to_thread(shutil.rmtree, staging.parent, True)
        (folder / _DATA).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()

    def _used_elsewhere(self, folder: Path, driver: str, handle: str) -> bool:
        """Whether another pod of this node has the volume. Blocking."""
        for path in (self._root / "pods").glob(f"*/volumes/{PLUGIN}/*/{_DATA}"):
            record = _read(path)
            if path.parent != folder and record is not None:
                if (record.get("driverName"), record.get("volumeHandle")) == (driver, handle):
                    return True
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "driverName" in found and "volumeHandle" in found else None


def _access_mode(modes: Sequence[str], can: set[int]) -> int:
    """CSI's number for a volume's access modes. Source: kubernetes pkg/volume/csi/csi_client.go."""
    several = _SINGLE_NODE_MULTI_WRITER in can
    if "ReadWriteMany" in modes:
        return 5
    if "ReadOnlyMany" in modes:
        return 3
    if "ReadWriteOncePod" in modes:
        return 6 if several else 1
    return 7 if several else 1


def _pod_info(pod: Pod, ephemeral: bool) -> dict[str, str]:
    metadata = pod["metadata"]
    return {
        "csi.storage.k8s.io/pod.name": metadata["name"],
        "csi.storage.k8s.io/pod.namespace": metadata["namespace"],
        "csi.storage.k8s.io/pod.uid": metadata["uid"],
        "csi.storage.k8s.io/serviceAccount.name": pod["spec"].get("serviceAccountName") or "",
        "csi.storage.k8s.io/ephemeral": "true" if ephemeral else "false",
    }


def _owned_by_group(driver: Mapping[str, Any], spec: Mapping[str, Any], modes: Sequence[str], readonly: bool) -> bool:
    """Whether the pod's fsGroup is given the volume's files. Source: CSIDriver.spec.fsGroupPolicy."""
    if readonly:
        return False
    policy = driver.get("fsGroupPolicy") or "ReadWriteOnceWithFSType"
    if policy == "File":
        return True
    return policy == "ReadWriteOnceWithFSType" and bool(spec.get("fsType")) and "ReadWriteOnce" in modes


def _go_code(error: RpcError) -> str:
    return "".join(word.capitalize() for word in error.status.name.split("_"))
