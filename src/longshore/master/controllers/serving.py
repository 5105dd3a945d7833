"""What Endpoints and EndpointSlices have in common: which pods a Service means, on which ports, since when.

Sources: kubernetes pkg/controller/util/endpoint and k8s.io/endpointslice/util, described behaviour.
"""

from __future__ import annotations

from typing import Any

from longshore.client.objects import condition, is_deleting, is_ready, is_terminal, seconds, timestamp
from longshore.client.selectors import map_matcher
from longshore.client.store import Object, Store, key_of

LAST_CHANGE = "endpoints.kubernetes.io/last-change-trigger-time"
HEADLESS = "service.kubernetes.io/headless"
SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"


def services_of(services: Store, pod: Object) -> list[str]:
    """Keys of the Services whose selector the pod's labels match."""
    labels = pod["metadata"].get("labels") or {}
    return [
        key_of(s)
        for s in services.list(pod["metadata"].get("namespace", ""))
        if s["spec"].get("selector") and map_matcher(s["spec"]["selector"])(labels)
    ]


def concerns(old: Object, new: Object) -> bool:
    """Whether a pod's change can change what is published of it."""
    a, b = old.get("status") or {}, new.get("status") or {}
    return (
        old["metadata"].get("labels") != new["metadata"].get("labels")
        or is_deleting(old) != is_deleting(new)
        or is_ready(old) != is_ready(new)
        or a.get("phase") != b.get("phase")
        or a.get("podIPs") != b.get("podIPs")
        or a.get("podIP") != b.get("podIP")
        or old["spec"].get("nodeName") != new["spec"].get("nodeName")
    )


def changed_services(services: Store, old: Object, new: Object) -> set[str]:
    """Services that a pod's change concerns."""
    if not concerns(old, new):
        return set()
    keys = set(services_of(services, new))
    if old["metadata"].get("labels") != new["metadata"].get("labels"):
        keys.update(services_of(services, old))
    return keys


def has_address(pod: Object) -> bool:
    status = pod.get("status") or {}
    return bool(status.get("podIP") or status.get("podIPs"))


def may_publish(pod: Object, *, terminating: bool) -> bool:
    """Whether the pod has an address that somebody could ask. terminating: also while it is being deleted."""
    if is_terminal(pod) or not has_address(pod):
        return False
    return terminating or not is_deleting(pod)


def addresses(pod: Object, family: str) -> list[str]:
    """The pod's addresses of one family ("IPv4" or "IPv6")."""
    status = pod.get("status") or {}
    all_of_them = [entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip")]
    if not all_of_them and status.get("podIP"):
        all_of_them = [status["podIP"]]
    return [ip for ip in all_of_them if (":" in ip) == (family == "IPv6")]


def families(service: Object) -> list[str]:
    return list(service["spec"].get("ipFamilies") or ["IPv4"])


def find_port(pod: Object, port: Object) -> int | None:
    """The number that a Service's port has on this pod; None when the pod has no port of that name."""
    target: Any = port.get("targetPort")
    if isinstance(target, int) and target > 0:
        return target
    if not target:
        return int(port["port"])
    protocol = port.get("protocol") or "TCP"
    spec = pod.get("spec") or {}
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in [*(spec.get("containers") or ()), *sidecars]:
        for entry in container.get("ports") or ():
            if entry.get("name") == target and (entry.get("protocol") or "TCP") == protocol:
                return int(entry["containerPort"])
    return None


def hostname(pod: Object, service: Object) -> str:
    """The name under which the Service publishes the pod, or ""."""
    spec, meta = pod.get("spec") or {}, service["metadata"]
    same = pod["metadata"].get("namespace") == meta.get("namespace")
    return str(spec["hostname"]) if spec.get("hostname") and spec.get("subdomain") == meta["name"] and same else ""


def target(pod: Object) -> Object:
    meta = pod["metadata"]
    return {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]}


def is_headless(service: Object) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


class TriggerTimes:
    """When the change that is about to be written happened: the earliest pod or Service change not yet seen."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, dict[str, float]]] = {}

    def of(self, service: Object, pods: list[Object]) -> str:
        """RFC 3339, or "" when nothing new happened."""
        key = key_of(service)
        last_service, last_pods = self._seen.get(key, (0.0, {}))
        created = seconds(service["metadata"].get("creationTimestamp"))
        moments = [created] if created > last_service else []
        now: dict[str, float] = {}
        for pod in pods:
            ready = condition(pod, "Ready")
            at = seconds(ready.get("lastTransitionTime")) if ready else 0.0
            if at:
                now[pod["metadata"]["name"]] = at
                if at > last_pods.get(pod["metadata"]["name"], 0.0):
                    moments.append(at)
        self._seen[key] = (created, now)
        return timestamp(min(moments)) if moments else ""

    def forget(self, key: str) -> None:
        self._seen.pop(key, None)
