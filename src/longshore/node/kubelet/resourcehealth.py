"""allocatedResourcesStatus: how the devices of a pod's containers are.

Source: kubernetes pkg/kubelet/cm/{devicemanager,dra}/manager.go (UpdateAllocatedResourcesStatus).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longshore.node.kubelet.devices import DeviceManager
from longshore.node.kubelet.dra import ClaimManager

Pod = dict[str, Any]


def tell(pod: Pod, statuses: Iterable[dict[str, Any]], devices: DeviceManager, claims: ClaimManager) -> None:
    """Put the devices' health into the statuses of a pod's containers; nothing where a container has none."""
    containers = {c["name"]: c for c in pod["spec"]["containers"]}
    for entry in statuses:
        found = [*_of_plugins(pod, entry["name"], devices), *_of_claims(pod, containers[entry["name"]], claims)]
        if found:
            entry["allocatedResourcesStatus"] = found


def _of_plugins(pod: Pod, container: str, devices: DeviceManager) -> Iterable[dict[str, Any]]:
    for resource, ids in devices.of_container(pod["metadata"]["uid"], container).items():
        states = (("Healthy" if devices.is_healthy(resource, i) else "Unhealthy", i) for i in sorted(ids))
        yield {"name": resource, "resources": [{"resourceID": i, "health": state} for state, i in states]}


def _of_claims(pod: Pod, container: Mapping[str, Any], claims: ClaimManager) -> Iterable[dict[str, Any]]:
    for name, request, found in claims.devices_of(pod, container):
        told: dict[str, dict[str, Any]] = {}
        for driver, pool, device, ids in found:
            key = ids[0] if ids else f"{driver}/{pool}/{device}"
            state, message = claims.health.of(driver, pool, device)
            told.setdefault(key, {"resourceID": key, "health": state} | ({"message": message} if message else {}))
        if told:
            yield {"name": f"claim:{name}" + (f"/{request}" if request else ""), "resources": list(told.values())}
