"""The pod-resources door: monitoring agents ask on ROOT/pod-resources/kubelet.sock which container has which device.

Source: k8s.io/kubelet/pkg/apis/podresources/v1, kubernetes pkg/kubelet/apis/podresources.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from longshore.machinery.grpc import RpcError, Server, Status
from longshore.node.kubelet.devices import DeviceManager
from longshore.node.kubelet.dra import ClaimManager
from longshore.node.kubelet.placement.manager import Placement
from longshore.node.kubelet.placement.memory import Block
from longshore.node.kubelet.resources import is_sidecar
from longshore.wire.protobuf import Schema

Pod = dict[str, Any]
POD_RESOURCES = """
service PodResourcesLister: List(ListPodResourcesRequest)ListPodResourcesResponse,
 GetAllocatableResources(AllocatableResourcesRequest)AllocatableResourcesResponse, Get(GetPodResourcesRequest)GetPodResourcesResponse
AllocatableResourcesRequest:
AllocatableResourcesResponse: 1 devices *ContainerDevices, 2 cpu_ids *int64, 3 memory *ContainerMemory
ListPodResourcesRequest:
ListPodResourcesResponse: 1 pod_resources *PodResources
PodResources: 1 name string, 2 namespace string, 3 containers *ContainerResources
ContainerResources: 1 name string, 2 devices *ContainerDevices, 3 cpu_ids *int64, 4 memory *ContainerMemory,
 5 dynamic_resources *DynamicResource
ContainerMemory: 1 memory_type string, 2 size uint64, 3 topology NUMATopology
ContainerDevices: 1 resource_name string, 2 device_ids *string, 3 topology NUMATopology
NUMATopology: 1 nodes *NUMANode
NUMANode: 1 ID int64
GetPodResourcesRequest: 1 pod_name string, 2 pod_namespace string
GetPodResourcesResponse: 1 pod_resources PodResources
DynamicResource: 1 class_name string, 2 claim_name string, 3 claim_namespace string, 4 claim_resources *ClaimResource
ClaimResource: 1 cdi_devices *CDIDevice, 2 driver_name string, 3 pool_name string, 4 device_name string
CDIDevice: 1 name string
"""


@cache
def schema() -> Schema:
    """The protocol's messages, made at first use."""
    return Schema("v1", POD_RESOURCES)


class PodResources:
    """Serves PodResourcesLister."""

    def __init__(
        self,
        root: Path,
        pods: Callable[[], Iterable[Pod]],
        devices: DeviceManager,
        claims: ClaimManager,
        placement: Placement,
    ) -> None:
        """root: the kubelet's. pods(): those whose containers may run."""
        self._cpus, self._memory = placement.cpus, placement.memory
        self._socket, self._pods = root / "pod-resources" / "kubelet.sock", pods
        self._devices, self._claims = devices, claims

    async def run(self) -> None:
        """Serve until cancelled."""
        server = Server((schema().PodResourcesLister, self))
        await server.listen_unix(self._socket, mode=0o600)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await server.close(0)

    async def list(self, _: Any) -> Any:
        """The RPC List."""
        return schema().ListPodResourcesResponse(pod_resources=[self._pod(pod) for pod in self._pods()])

    async def get(self, request: Any) -> Any:
        """The RPC Get."""
        name, namespace = request.pod_name, request.pod_namespace
        for pod in self._pods():
            if (pod["metadata"]["name"], pod["metadata"]["namespace"]) == (name, namespace):
                return schema().GetPodResourcesResponse(pod_resources=self._pod(pod))
        raise RpcError(Status.UNKNOWN, f"pod {name} in namespace {namespace} not found")

    async def get_allocatable_resources(self, _: Any) -> Any:
        """The RPC GetAllocatableResources."""
        answer = schema().AllocatableResourcesResponse()
        if self._cpus is not None:
            answer.cpu_ids.extend(sorted(self._cpus.allocatable))
        for name, ids in self._devices.healthy().items():
            # One entry a device, as each may be of another NUMA node.
            for device in ids:
                self._add_device(answer, name, device)
        if self._memory is not None:
            _add_memory(answer, self._memory.allocatable)
        return answer

    def _add_device(self, answer: Any, name: str, device: str) -> None:
        entry = answer.devices.add(resource_name=name, device_ids=[device])
        for node in self._devices.homes(name, device):
            entry.topology.nodes.add(ID=node)

    def _pod(self, pod: Pod) -> Any:
        metadata, spec = pod["metadata"], pod["spec"]
        found = schema().PodResources(name=metadata["name"], namespace=metadata["namespace"])
        for container in [*(c for c in spec.get("initContainers") or () if is_sidecar(c)), *spec["containers"]]:
            entry = found.containers.add(name=container["name"])
            if self._cpus is not None:
                entry.cpu_ids.extend(sorted(self._cpus.of_container(metadata["uid"], container["name"])))
            for name, ids in self._devices.of_container(metadata["uid"], container["name"]).items():
                for device in ids:
                    self._add_device(entry, name, device)
            if self._memory is not None:
                _add_memory(entry, self._memory.of_container(metadata["uid"], container["name"]))
            for claim, devices in self._claims.of_container(pod, container):
                own = entry.dynamic_resources.add(claim_name=claim, claim_namespace=metadata["namespace"])
                for driver, pool, device, names in devices:
                    resource = own.claim_resources.add(driver_name=driver, pool_name=pool, device_name=device)
                    for name in names:
                        resource.cdi_devices.add(name=name)
        return found


def _add_memory(answer: Any, blocks: Iterable[Block]) -> None:
    for block in blocks:
        entry = answer.memory.add(memory_type=block.kind, size=block.size)
        for node in block.nodes:
            entry.topology.nodes.add(ID=node)
