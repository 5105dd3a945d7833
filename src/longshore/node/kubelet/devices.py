"""Device plugins: what hardware the node has, and which container has which of it.

A plugin registers on ROOT/device-plugins/kubelet.sock and then streams its devices; a pod's devices are chosen before its
first sandbox and written down, so that a restart gives nothing away twice.
Source: k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1, kubernetes pkg/kubelet/cm/devicemanager (rules and texts).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery.grpc import Client, RpcError, Server, Status
from longshore.node.kubelet.resources import amount, is_sidecar
from longshore.wire.cri import cri
from longshore.wire.protobuf import Schema

log = logging.getLogger("longshore.kubelet.devices")
Pod = dict[str, Any]
VERSION = "v1beta1"
DEVICE_PLUGIN = """
service Registration: Register(RegisterRequest)Empty
service DevicePlugin: GetDevicePluginOptions(Empty)DevicePluginOptions, ListAndWatch(Empty)~ListAndWatchResponse,
 GetPreferredAllocation(PreferredAllocationRequest)PreferredAllocationResponse, Allocate(AllocateRequest)AllocateResponse,
 PreStartContainer(PreStartContainerRequest)PreStartContainerResponse
Empty:
DevicePluginOptions: 1 pre_start_required bool, 2 get_preferred_allocation_available bool
RegisterRequest: 1 version string, 2 endpoint string, 3 resource_name string, 4 options DevicePluginOptions
ListAndWatchResponse: 1 devices *Device
Device: 1 ID string, 2 health string
PreStartContainerRequest: 1 devices_ids *string
PreStartContainerResponse:
PreferredAllocationRequest: 1 container_requests *ContainerPreferredAllocationRequest
ContainerPreferredAllocationRequest: 1 available_deviceIDs *string, 2 must_include_deviceIDs *string, 3 allocation_size int32
PreferredAllocationResponse: 1 container_responses *ContainerPreferredAllocationResponse
ContainerPreferredAllocationResponse: 1 deviceIDs *string
AllocateRequest: 1 container_requests *ContainerAllocateRequest
ContainerAllocateRequest: 1 devices_ids *string
AllocateResponse: 1 container_responses *ContainerAllocateResponse
ContainerAllocateResponse: 1 envs {string:string}, 2 mounts *Mount, 3 devices *DeviceSpec, 4 annotations {string:string},
 5 cdi_devices *CDIDevice
Mount: 1 container_path string, 2 host_path string, 3 read_only bool
DeviceSpec: 1 container_path string, 2 host_path string, 3 permissions string
CDIDevice: 1 name string
"""
CALL_SECONDS = 30.0
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_schema: Schema | None = None


def schema() -> Schema:
    """The protocol's messages, made at first use."""
    global _schema
    if _schema is None:
        _schema = Schema(VERSION, DEVICE_PLUGIN)
    return _schema


class DeviceError(Exception):
    """A container cannot have its devices; the text is upstream's."""


@dataclass(slots=True)
class _Resource:
    """One resource name: its plugin, when there is one, and its devices (id -> healthy)."""

    endpoint: Path | None = None
    devices: dict[str, bool] = field(default_factory=dict)
    prepare: bool = False
    prefers: bool = False
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Grant:
    """What a container has of one resource. answer: the plugin's ContainerAllocateResponse, encoded."""

    ids: list[str]
    answer: bytes


class DeviceManager:
    """The node's devices."""

    def __init__(self, root: Path, changed: Callable[[], None]) -> None:
        """root: the kubelet's. changed(): there are other devices than before."""
        self._folder, self._file, self._changed = root / "device-plugins", root / "devices.json", changed
        self._resources: dict[str, _Resource] = {}
        #: pod uid -> container -> resource
        self._grants: dict[str, dict[str, dict[str, _Grant]]] = {}
        self._lock = asyncio.Lock()
        self._load()

    # -- plugins -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take registrations until cancelled. Plugins register anew when they see the socket made anew."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        for path in self._folder.glob("*.sock"):
            # Upstream's kubelet clears the folder too: what is stale cannot be told from what is not.
            with contextlib.suppress(OSError):
                path.unlink()
        server = Server((schema().Registration, self))
        await server.listen_unix(self._folder / "kubelet.sock")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for resource in self._resources.values():
                if resource.task is not None:
                    resource.task.cancel()
            await server.close(0)

    async def register(self, request: Any) -> Any:
        """The RPC Register."""
        name = str(request.resource_name)
        if request.version != VERSION:
            raise RpcError(Status.UNKNOWN, f"requested API version {request.version!r} is not supported by kubelet. Supported version is [{VERSION!r}]")  # fmt: skip
        if not _NAME.fullmatch(name) or name.partition("/")[0].endswith("kubernetes.io"):
            raise RpcError(Status.UNKNOWN, f"the ResourceName {name!r} is invalid")
        if not request.endpoint or "/" in request.endpoint:
            raise RpcError(Status.UNKNOWN, f"invalid endpoint {request.endpoint!r}")
        found = self._resources.setdefault(name, _Resource())
        if found.task is not None:
            found.task.cancel()
        found.endpoint = self._folder / str(request.endpoint)
        found.prepare = bool(request.options.pre_start_required)
        found.prefers = bool(request.options.get_preferred_allocation_available)
        found.task = asyncio.create_task(self._follow(name, found, found.endpoint), name=f"devices {name}")
        return schema().Empty()

    async def _follow(self, name: str, resource: _Resource, endpoint: Path) -> None:
        client = Client(schema().DevicePlugin, path=endpoint)
        try:
            async for answer in client.stream("ListAndWatch"):
                fresh = {str(d.ID): d.health == "Healthy" for d in answer.devices}
                if fresh != resource.devices:
                    resource.devices = fresh
                    await asyncio.to_thread(self._save)
                    self._changed()
        except RpcError as error:
            log.warning("device plugin of %s: %s", name, error.message)
        finally:
            client.close()
        if resource.endpoint == endpoint:
            # Without its plugin no device can be given; it registers anew when it comes back.
            resource.endpoint = None
            resource.devices = dict.fromkeys(resource.devices, False)
            self._changed()

    def figures(self) -> tuple[dict[str, str], dict[str, str]]:
        """(capacity, allocatable) by resource; a resource that once was there stays, with none of it."""
        capacity = {n: str(len(r.devices) if r.endpoint else 0) for n, r in self._resources.items()}
        return capacity, {n: str(sum(r.devices.values())) for n, r in self._resources.items()}

    def healthy(self) -> dict[str, list[str]]:
        """Resource -> the ids of its healthy devices."""
        return {n: sorted(i for i, good in r.devices.items() if good) for n, r in self._resources.items()}

    def of_container(self, uid: str, name: str) -> dict[str, list[str]]:
        """Resource -> the ids that a container has."""
        return {resource: list(grant.ids) for resource, grant in self._grants.get(uid, {}).get(name, {}).items()}

    # -- pods --------------------------------------------------------------------------------------------------------

    async def allocate(self, pod: Pod) -> None:
        """Choose the devices of all containers of a pod. Raises DeviceError; then the pod has none."""
        uid = pod["metadata"]["uid"]
        if not self._resources:
            return
        async with self._lock:
            try:
                passing: dict[str, list[str]] = {}
                for container in pod["spec"].get("initContainers") or ():
                    for name, ids in (await self._container(uid, container, passing)).items():
                        # What an init container had, the containers after it may have; a sidecar keeps its own.
                        kept = [] if is_sidecar(container) else ids
                        rest = [i for i in passing.get(name, ()) if i not in ids]
                        passing[name] = rest + kept
                for container in pod["spec"]["containers"]:
                    for name, ids in (await self._container(uid, container, passing)).items():
                        passing[name] = [i for i in passing.get(name, ()) if i not in ids]
            except (DeviceError, RpcError) as error:
                self._grants.pop(uid, None)
                text = error.message if isinstance(error, RpcError) else str(error)
                raise DeviceError(f"Allocate failed due to {text}, which is unexpected") from error
            finally:
                await asyncio.to_thread(self._save)

    async def _container(self, uid: str, container: Mapping[str, Any], passing: Mapping[str, list[str]]) -> dict[str, list[str]]:  # fmt: skip
        found: dict[str, list[str]] = {}
        for name, text in ((container.get("resources") or {}).get("limits") or {}).items():
            resource, count = self._resources.get(name), 0
            if resource is None or not (count := amount(text)):
                continue
            granted = self._grants.setdefault(uid, {}).setdefault(container["name"], {})
            if name not in granted:
                ids = await self._choose(name, resource, count, passing.get(name, []))
                assert resource.endpoint is not None
                request = {"container_requests": [{"devices_ids": ids}]}
                answer = await self._call(resource.endpoint, "Allocate", request)
                if len(answer.container_responses) != 1:
                    raise DeviceError("no containers return in allocation response")
                granted[name] = _Grant(ids, answer.container_responses[0].SerializeToString())
            found[name] = granted[name].ids
        return found

    async def _choose(self, name: str, resource: _Resource, count: int, reused: list[str]) -> list[str]:
        if resource.endpoint is None:
            raise DeviceError(f"no healthy devices present; cannot allocate unhealthy devices {name}")
        taken = {i for c in self._grants.values() for g in c.values() if name in g for i in g[name].ids}
        free = sorted(i for i, healthy in resource.devices.items() if healthy and i not in taken)
        must = [i for i in reused if resource.devices.get(i)][:count]
        available = must + [i for i in free if i not in must]
        if len(available) < count:
            raise DeviceError(f"requested number of devices unavailable for {name}. Requested: {count}, Available: {len(available)}")  # fmt: skip
        if resource.prefers and count < len(available):
            asked = {"available_deviceIDs": available, "must_include_deviceIDs": must, "allocation_size": count}
            answer = await self._call(resource.endpoint, "GetPreferredAllocation", {"container_requests": [asked]})
            for one in answer.container_responses:
                wished = [i for i in one.deviceIDs if i in available and i not in must]
                available = must + wished + [i for i in available if i not in must and i not in wished]
        return available[:count]

    async def _call(self, endpoint: Path, name: str, fields: dict[str, Any]) -> Any:
        client = Client(schema().DevicePlugin, path=endpoint)
        try:
            return await client.call(name, deadline=CALL_SECONDS, **fields)
        finally:
            client.close()

    async def add_to(self, config: Any, pod: Pod, container: Mapping[str, Any]) -> None:
        """Add a container's devices to its CRI configuration. Raises DeviceError when its plugin cannot prepare them."""
        granted = self._grants.get(pod["metadata"]["uid"], {}).get(container["name"], {})
        for name, grant in granted.items():
            resource = self._resources.get(name)
            if resource is not None and resource.prepare and resource.endpoint is not None:
                try:
                    await self._call(resource.endpoint, "PreStartContainer", {"devices_ids": grant.ids})
                except RpcError as error:
                    raise DeviceError(
                        f"device plugin PreStartContainer rpc failed with err: {error.message}"
                    ) from error
            answer = schema().ContainerAllocateResponse.FromString(grant.answer)
            own = {e.key for e in config.envs}
            config.envs.extend(cri.KeyValue(key=k, value=v.encode()) for k, v in answer.envs.items() if k not in own)
            for mount in answer.mounts:
                config.mounts.append(
                    cri.Mount(container_path=mount.container_path, host_path=mount.host_path, readonly=mount.read_only)
                )
            for device in answer.devices:
                config.devices.append(
                    cri.Device(
                        container_path=device.container_path, host_path=device.host_path, permissions=device.permissions
                    )
                )
            for key, value in answer.annotations.items():
                config.annotations[key] = value
            config.CDI_devices.extend(cri.CDIDevice(name=d.name) for d in answer.cdi_devices)

    def forget(self, uid: str) -> None:
        """The pod has ended: its devices are free."""
        if self._grants.pop(uid, None) is not None:
            self._save()

    def keep(self, uids: set[str]) -> None:
        """Free the devices of all pods but these (some were deleted while the kubelet was away)."""
        for uid in self._grants.keys() - uids:
            self.forget(uid)

    # -- what is written down ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            found = orjson.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return
        for name, ids in found["resources"].items():
            self._resources[name] = _Resource(devices=dict.fromkeys(ids, False))
        for uid, containers in found["pods"].items():
            self._grants[uid] = {
                c: {n: _Grant(g["ids"], base64.b64decode(g["answer"])) for n, g in granted.items()}
                for c, granted in containers.items()
            }

    def _save(self) -> None:
        pods = {
            uid: {
                c: {n: {"ids": g.ids, "answer": base64.b64encode(g.answer).decode()} for n, g in granted.items()}
                for c, granted in containers.items()
            }
            for uid, containers in list(self._grants.items())
        }
        data = {"resources": {n: list(r.devices) for n, r in self._resources.items()}, "pods": pods}
        temporary = self._file.with_suffix(".new")
        with open(temporary, "wb") as file:
            file.write(orjson.dumps(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._file)
