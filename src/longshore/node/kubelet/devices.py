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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from longshore.machinery.grpc import Client, RpcError, Server, Status
from longshore.node.kubelet.placement import devices as placing
from longshore.node.kubelet.placement.errors import AllocationError
from longshore.node.kubelet.placement.hints import Hint, Hints
from longshore.node.kubelet.resources import amount, is_sidecar, pod_total
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
Device: 1 ID string, 2 health string, 3 topology TopologyInfo
TopologyInfo: 1 nodes *NUMANode
NUMANode: 1 ID int64
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


@cache
def schema() -> Schema:
    """The protocol's messages, made at first use."""
    return Schema(VERSION, DEVICE_PLUGIN)


class DeviceError(AllocationError):
    """A container cannot have its devices; the text is upstream's."""


@dataclass(slots=True)
class _Resource:
    """One resource name: its plugin, when there is one, its devices (id -> healthy) and the NUMA nodes that they are near."""

    endpoint: Path | None = None
    devices: dict[str, bool] = field(default_factory=dict)
    homes: dict[str, tuple[int, ...]] = field(default_factory=dict)
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

    def __init__(self, root: Path, changed: Callable[[str], None]) -> None:
        """root: the kubelet's. changed(resource): its devices are others than before, or otherwise."""
        self._folder, self._file, self._changed = root / "device-plugins", root / "devices.json", changed
        self._resources: dict[str, _Resource] = {}
        #: pod uid -> container -> resource
        self._grants: dict[str, dict[str, dict[str, _Grant]]] = {}
        #: what init containers of a pod leave to those after them: uid -> resource -> ids
        self._passing: dict[str, dict[str, list[str]]] = {}
        self._dirty = False
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
                resource.homes = {str(d.ID): tuple(int(n.ID) for n in d.topology.nodes) for d in answer.devices}
                if fresh != resource.devices:
                    resource.devices = fresh
                    await asyncio.to_thread(self._save)
                    self._changed(name)
        except RpcError as error:
            log.warning("device plugin of %s: %s", name, error.message)
        finally:
            client.close()
        if resource.endpoint == endpoint:
            # Without its plugin no device can be given; it registers anew when it comes back.
            resource.endpoint = None
            resource.devices = dict.fromkeys(resource.devices, False)
            self._changed(name)

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

    def is_healthy(self, name: str, device: str) -> bool:
        """Whether a device is well; one that its plugin does not tell of any more counts as well."""
        resource = self._resources.get(name)
        return resource is None or resource.devices.get(device, True)

    def users(self, name: str) -> set[str]:
        """The uids of pods that have devices of a resource."""
        return {uid for uid, own in self._grants.items() if any(name in granted for granted in own.values())}

    def homes(self, name: str, device: str) -> tuple[int, ...]:
        """The NUMA nodes that a device is near."""
        resource = self._resources.get(name)
        return resource.homes.get(device, ()) if resource else ()

    # -- pods --------------------------------------------------------------------------------------------------------

    def hints(self, pod: Pod, container: Mapping[str, Any]) -> Hints:
        """The NUMA nodes on which a container's devices could be."""
        uid = pod["metadata"]["uid"]
        own = self.of_container(uid, container["name"])
        passing = self._passing.get(uid, {})
        return {n: self._hints(n, count, own.get(n, []), passing.get(n, [])) for n, count in self._asked(container)}

    def pod_hints(self, pod: Pod) -> Hints:
        """The NUMA nodes on which all devices of a pod could be."""
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        wanted: dict[str, int] = {}
        for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
            wanted |= {name: 0 for name, _ in self._asked(container) if name not in wanted}
        mine = {n: [i for c in self._grants.get(uid, {}) for i in self.of_container(uid, c).get(n, ())] for n in wanted}
        return {n: self._hints(n, pod_total(pod, n, "limits"), sorted(set(mine[n])), []) for n in wanted}

    def _hints(self, name: str, count: int, own: list[str], reusable: list[str]) -> list[Hint] | None:
        resource = self._resources[name]
        if not any(resource.homes.values()):
            return None
        if own:
            return placing.hints(resource.homes, own, (), count) if len(own) == count else []
        free = [d for d in self._free(name) if d not in reusable]
        if len(free) + len(reusable) < count:
            return []
        return placing.hints(resource.homes, free, reusable, count)

    def _asked(self, container: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
        """What of the devices that are known here a container asks for."""
        for name, text in ((container.get("resources") or {}).get("limits") or {}).items():
            if name in self._resources and (count := amount(text)):
                yield name, count

    def _free(self, name: str) -> list[str]:
        taken = {i for c in self._grants.values() for g in c.values() if name in g for i in g[name].ids}
        return sorted(i for i, healthy in self._resources[name].devices.items() if healthy and i not in taken)

    async def allocate(self, pod: Pod, container: Mapping[str, Any], place: Hint) -> None:
        """Choose a container's devices, those of a place first. Raises DeviceError. `save` writes it down."""
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        passing = self._passing.setdefault(uid, {})
        is_init = container in (spec.get("initContainers") or ())
        for name, count in self._asked(container):
            granted = self._grants.setdefault(uid, {}).setdefault(container["name"], {})
            if name not in granted:
                try:
                    granted[name] = await self._grant(name, count, passing.get(name, []), place)
                except RpcError as error:
                    raise DeviceError(error.message) from error
                self._dirty = True
            # What an init container had, the containers after it may have; a sidecar keeps its own.
            ids = granted[name].ids
            rest = [i for i in passing.get(name, ()) if i not in ids]
            passing[name] = rest + (ids if is_init and not is_sidecar(container) else [])

    async def _grant(self, name: str, count: int, reused: list[str], place: Hint) -> _Grant:
        resource = self._resources[name]
        ids = await self._choose(name, resource, count, reused, place)
        assert resource.endpoint is not None
        answer = await self._call(resource.endpoint, "Allocate", {"container_requests": [{"devices_ids": ids}]})
        if len(answer.container_responses) != 1:
            raise DeviceError("no containers return in allocation response")
        return _Grant(ids, answer.container_responses[0].SerializeToString())

    async def _choose(self, name: str, resource: _Resource, count: int, reused: list[str], place: Hint) -> list[str]:
        if resource.endpoint is None:
            raise DeviceError(f"no healthy devices present; cannot allocate unhealthy devices {name}")
        must = [i for i in reused if resource.devices.get(i)][:count]
        free = [i for i in self._free(name) if i not in must]
        if len(must) + len(free) < count:
            raise DeviceError(f"requested number of devices unavailable for {name}. Requested: {count}, Available: {len(must) + len(free)}")  # fmt: skip
        near, far = placing.at_place(resource.homes, free, place.mask)
        # Where the place has enough of them the plugin chooses among these, else it is asked about what is missing.
        for pool in (near, far):
            if len(must) < count <= len(must) + len(pool) and resource.prefers and count < len(must) + len(pool):
                pool = await self._preferred(resource.endpoint, must, pool, count)
            must += pool[: count - len(must)]
        return must

    async def _preferred(self, endpoint: Path, must: list[str], pool: list[str], count: int) -> list[str]:
        """A pool in the order that the plugin wishes."""
        asked = {"available_deviceIDs": must + pool, "must_include_deviceIDs": must, "allocation_size": count}
        answer = await self._call(endpoint, "GetPreferredAllocation", {"container_requests": [asked]})
        wished = [i for one in answer.container_responses for i in one.deviceIDs if i in pool]
        return wished + [i for i in pool if i not in wished]

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
        self._passing.pop(uid, None)
        if self._grants.pop(uid, None) is not None:
            self._save()

    async def save(self) -> None:
        """Write down what was chosen since."""
        if self._dirty:
            self._dirty = False
            await asyncio.to_thread(self._save)

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
