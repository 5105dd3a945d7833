"""The node's side of CSI: drivers that have registered, and the volumes that they stage and publish for pods.

Source: CSI specification 1.11 (Node service), kubernetes pkg/volume/csi (paths, contexts, order, what is written down).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from longshore.client.objects import attachment_name, volume_name
from longshore.client.resources import CSI_DRIVERS, CSI_NODES, NODES, SECRETS, VOLUME_ATTACHMENTS
from longshore.client.rest import Client, is_not_found
from longshore.machinery import mounts
from longshore.machinery.errors import StatusError
from longshore.machinery.grpc import Client as GrpcClient
from longshore.machinery.grpc import RpcError
from longshore.node.kubelet.plugins import PluginRefused
from longshore.node.kubelet.volumes import atomic
from longshore.node.kubelet.volumes.csiprotocol import (
    EXPAND,
    MOUNT_GROUP,
    STAGE_UNSTAGE,
    STATS,
    capability,
    expiry,
    go_code,
    owned_by_group,
    pod_info,
    schema,
)

log = logging.getLogger("longshore.kubelet.csi")
Pod = dict[str, Any]
Token = Callable[[Pod, str, int], Awaitable[tuple[str, float]]]
PLUGIN = "kubernetes.io~csi"
NODE_ID = "csi.volume.kubernetes.io/nodeid"
CALL_SECONDS = 120.0
_DATA = "vol_data.json"
TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"
#: seconds after which a volume is published again whose driver asks for that, and looked at for a new size
LOOK_AGAIN = 60.0


class CsiError(Exception):
    """A volume cannot be had or given back now; the text tells why."""


@dataclass(frozen=True, slots=True)
class Published:
    """A volume that a pod has. path: a folder, or a device. again: seconds until it must be looked at; 0: never."""

    path: Path
    again: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a driver says of a volume: octets and inodes; None: it does not say."""

    available: int | None = None
    capacity: int | None = None
    used: int | None = None
    inodes_free: int | None = None
    inodes: int | None = None
    inodes_used: int | None = None


class CsiVolumes:
    """Drivers by name (a PluginHandler) and what they have published."""

    def __init__(
        self, client: Client, node_name: str, root: Path, changed: Callable[[], None], token: Token | None = None
    ) -> None:
        """root: the kubelet's. changed(): a driver has come; pods that wait for it may go on. token(pod, audience,
        seconds): a token of the pod's account and when to renew it."""
        self._token = token
        self._client, self._node, self._root, self._changed = client, node_name, root, changed
        self._drivers: dict[str, tuple[Path, set[int]]] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._busy: dict[str, asyncio.Lock] = {}
        #: Makes the node's status tell of `in_use` now, before anything is mounted; set by who reports it.
        self.report: Callable[[], Awaitable[None]] = _unreported
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

    async def ephemeral(self, pod: Pod, name: str, source: Mapping[str, Any]) -> Published:
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

    async def persistent(self, pod: Pod, volume: Mapping[str, Any], readonly: bool) -> Published:
        """A PersistentVolume of CSI for a pod: a folder, or a device where its mode is Block. Raises CsiError."""
        spec = volume["spec"]
        driver = await self._about(spec["csi"]["driver"])
        return await self._publish(
            pod, volume["metadata"]["name"], spec["csi"], driver, readonly or bool(spec["csi"].get("readOnly")),
            spec.get("accessModes") or [], spec.get("mountOptions") or [], ephemeral=False,
            block=spec.get("volumeMode") == "Block",
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
        block: bool = False,
    ) -> Published:
        endpoint, can = self._driver(spec["driver"])
        handle, uid = str(spec["volumeHandle"]), pod["metadata"]["uid"]
        folder: Path = self._root / "pods" / uid / "volumes" / PLUGIN / name
        target = self._devices("publish", name) / uid if block else folder / "mount"
        record = {"driverName": spec["driver"], "volumeHandle": handle, "specVolID": name, "nodeName": self._node,
                  "volumeLifecycleMode": "Ephemeral" if ephemeral else "Persistent"}  # fmt: skip
        if block:
            record["volumeMode"] = "Block"
        republish = bool(driver.get("requiresRepublish"))
        again = LOOK_AGAIN if republish or (EXPAND in can and not ephemeral) else 0.0
        async with self._lock(f"{spec['driver']}^{handle}"):
            there = (folder / _DATA).exists() and await asyncio.to_thread(mounts.is_mounted, target)
            if there and not republish:
                return Published(target, again)
            group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
            wanted = capability(spec, modes, flags, can, group, block)
            context = dict(spec.get("volumeAttributes") or {})
            published: dict[str, str] = {}
            attached = not ephemeral and driver.get("attachRequired", True)
            if attached:
                published = await self._attached(handle, spec["driver"])
                await self._use(volume_name(spec["driver"], handle))
                record["attachable"] = "true"
            staging: Path | None = None
            if STAGE_UNSTAGE in can and not ephemeral:
                staging = self._devices("staging", name) if block else self._staging(spec["driver"], handle)
            # Written before the driver is asked, so that what is cut short is given back too.
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            (folder / _DATA).write_bytes(orjson.dumps(record))
            try:
                if staging is not None and not there:
                    staging.mkdir(parents=True, exist_ok=True, mode=0o750)
                    if not block:
                        (staging.parent / _DATA).write_bytes(orjson.dumps(record))
                    secrets = await self._secrets(spec.get("nodeStageSecretRef"))
                    await self._call(
                        endpoint, "NodeStageVolume", volume_id=handle, publish_context=published,
                        staging_target_path=str(staging), volume_capability=wanted, secrets=secrets,
                        volume_context=context,
                    )  # fmt: skip
                if driver.get("podInfoOnMount"):
                    context |= pod_info(pod, ephemeral)
                if driver.get("tokenRequests"):
                    context[TOKENS] = await self._tokens(pod, driver["tokenRequests"])
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
                await self._call(
                    endpoint, "NodePublishVolume", volume_id=handle, publish_context=published,
                    staging_target_path=str(staging or ""), target_path=str(target), volume_capability=wanted,
                    readonly=readonly, secrets=await self._secrets(spec.get("nodePublishSecretRef")),
                    volume_context=context,
                )  # fmt: skip
            except RpcError as error:
                raise CsiError(f"rpc error: code = {go_code(error)} desc = {error.message}") from error
            if there or block:
                return Published(target, again)
            if group is not None and MOUNT_GROUP not in can and owned_by_group(driver, spec, modes, readonly):
                await asyncio.to_thread(atomic.own, target, group, readonly=False)
            return Published(target, again)

    async def _tokens(self, pod: Pod, requests: Sequence[Mapping[str, Any]]) -> str:
        """Tokens of the pod's account for a driver, as JSON by audience. Raises CsiError."""
        found: dict[str, dict[str, str]] = {}
        for request in requests:
            audience = str(request.get("audience") or "")
            try:
                if self._token is None:
                    raise CsiError("this node gives no tokens to drivers")
                token, _ = await self._token(pod, audience, int(request.get("expirationSeconds") or 3600))
            except (StatusError, OSError, TimeoutError) as error:
                raise CsiError(f"failed to get service accoount token attributes: {error}") from error
            found[audience] = {"token": token, "expirationTimestamp": expiry(token)}
        return orjson.dumps(found).decode()

    async def expand(self, volume: Mapping[str, Any], path: Path, required: int) -> bool:
        """Let a published volume's driver make what is on it as large as the volume; False where it has no part in that.

        required: octets. Raises CsiError.
        """
        spec = volume["spec"]
        source, name = spec["csi"], volume["metadata"]["name"]
        endpoint, can = self._driver(source["driver"])
        if EXPAND not in can:
            return False
        block, handle = spec.get("volumeMode") == "Block", str(source["volumeHandle"])
        staging = ""
        if STAGE_UNSTAGE in can:
            staging = str(self._devices("staging", name) if block else self._staging(source["driver"], handle))
        modes, flags = spec.get("accessModes") or [], spec.get("mountOptions") or []
        async with self._lock(f"{source['driver']}^{handle}"):
            try:
                await self._call(
                    endpoint, "NodeExpandVolume", volume_id=handle, volume_path=str(path),
                    capacity_range={"required_bytes": required}, staging_target_path=staging,
                    volume_capability=capability(source, modes, flags, can, None, block),
                    secrets=await self._secrets(source.get("nodeExpandSecretRef")),
                )  # fmt: skip
            except RpcError as error:
                raise CsiError(f"rpc error: code = {go_code(error)} desc = {error.message}") from error
        return True

    async def figures(self, uid: str) -> dict[str, Figures]:
        """What drivers say of a pod's volumes, by the volume's name on the node (a PersistentVolume's, or the pod's own)."""
        found: dict[str, Figures] = {}
        for path in (self._root / "pods" / uid / "volumes" / PLUGIN).glob(f"*/{_DATA}"):
            record = _read(path)
            if record is None or record["driverName"] not in self._drivers:
                continue
            endpoint, can = self._drivers[record["driverName"]]
            if STATS not in can:
                continue
            where = self._target(path.parent, record)
            try:
                answer = await self._call(
                    endpoint, "NodeGetVolumeStats", volume_id=str(record["volumeHandle"]), volume_path=str(where)
                )
            except RpcError as error:
                log.debug("figures of %s: %s", path.parent.name, error.message)
                continue
            octets = next((u for u in answer.usage if u.unit == 1), None)
            inodes = next((u for u in answer.usage if u.unit == 2), None)
            found[path.parent.name] = Figures(
                *((octets.available, octets.total, octets.used) if octets else (None, None, None)),
                *((inodes.available, inodes.total, inodes.used) if inodes else (None, None, None)),
            )
        return found

    async def _attached(self, handle: str, driver: str) -> dict[str, str]:
        """What the attacher says of the volume, once it is attached to this node. Raises CsiError."""
        name = attachment_name(driver, handle, self._node)
        try:
            found = await self._client.get(VOLUME_ATTACHMENTS, name)
        except StatusError as error:
            raise CsiError(f"volume attachment of {handle} cannot be read: {error.message}") from error
        status = found.get("status") or {}
        if not status.get("attached"):
            problem = (status.get("attachError") or {}).get("message") or "it is not attached yet"
            raise CsiError(f"volume attachment {name}: {problem}")
        return dict(status.get("attachmentMetadata") or {})

    @cached_property
    def _used(self) -> set[str]:
        """Names of attached volumes that are mounted here or soon will be, at first as the records on disk tell."""
        records = map(_read, (self._root / "pods").glob(f"*/volumes/{PLUGIN}/*/{_DATA}"))
        return {
            volume_name(r["driverName"], r["volumeHandle"]) for r in records if r is not None and r.get("attachable")
        }

    def in_use(self) -> list[str]:
        """What may not be detached, for the node's status."""
        return sorted(self._used)

    async def _use(self, name: str) -> None:
        """Say that a volume is in use before it is mounted, as upstream's kubelet does. Raises CsiError."""
        if name in self._used:
            return
        self._used.add(name)
        try:
            await self.report()
        except (StatusError, OSError, TimeoutError) as error:
            self._used.discard(name)
            raise CsiError(f"volume {name} cannot be reported as in use: {error}") from error

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

    def _devices(self, kind: str, name: str) -> Path:
        """Where devices are staged, and published for pods."""
        return self._root / "plugins" / "kubernetes.io" / "csi" / "volumeDevices" / kind / name

    def _target(self, folder: Path, record: Mapping[str, Any]) -> Path:
        """Where the volume is that a pod's record tells of."""
        if record.get("volumeMode") == "Block":
            return self._devices("publish", folder.name) / folder.parents[2].name
        return folder / "mount"

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
                    await self._unpublish(folder, record)
            except RpcError as error:
                raise OSError(5, f"volume {folder.name}: rpc error: code = {go_code(error)} desc = {error.message}") from error  # fmt: skip
            except CsiError as error:
                raise OSError(5, f"volume {folder.name}: {error}") from error

    async def _unpublish(self, folder: Path, record: Mapping[str, Any]) -> None:
        driver, handle = str(record["driverName"]), str(record["volumeHandle"])
        endpoint, _ = self._driver(driver)
        block, target = record.get("volumeMode") == "Block", self._target(folder, record)
        await self._call(endpoint, "NodeUnpublishVolume", volume_id=handle, target_path=str(target))
        if await asyncio.to_thread(mounts.is_mounted, target):
            raise CsiError(f"{target} is still mounted")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.unlink() if block else target.rmdir()
        staging = self._devices("staging", folder.name) if block else self._staging(driver, handle)
        kept = staging if block else staging.parent
        if kept.exists() and not await asyncio.to_thread(self._used_elsewhere, folder, driver, handle):
            await self._call(endpoint, "NodeUnstageVolume", volume_id=handle, staging_target_path=str(staging))
            if await asyncio.to_thread(mounts.is_mounted, staging):
                raise CsiError(f"{staging} is still mounted")
            await asyncio.to_thread(shutil.rmtree, kept, True)
        (folder / _DATA).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        name = volume_name(driver, handle)
        if name in self._used and not await asyncio.to_thread(self._used_elsewhere, folder, driver, handle):
            self._used.discard(name)
            # What cannot be told now stands in the next report.
            with contextlib.suppress(StatusError, OSError, TimeoutError):
                await self.report()

    def _used_elsewhere(self, folder: Path, driver: str, handle: str) -> bool:
        """Whether another pod of this node has the volume. Blocking."""
        for path in (self._root / "pods").glob(f"*/volumes/{PLUGIN}/*/{_DATA}"):
            record = _read(path)
            if path.parent != folder and record is not None:
                if (record.get("driverName"), record.get("volumeHandle")) == (driver, handle):
                    return True
        return False


async def _unreported() -> None:
    """Until somebody reports the node's status."""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "driverName" in found and "volumeHandle" in found else None
