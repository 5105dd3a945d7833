"""Extended resources that devices stand behind: `example.com/gpu: 2` of a container becomes a claim for two devices.

Source: kubernetes pkg/scheduler/framework/plugins/dynamicresources (extendeddynamicresources), described behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from longshore.client.store import Object
from longshore.master.scheduler.podinfo import amount

IMPLICIT = "deviceclass.resource.kubernetes.io/"  # every class is a resource of this name, too
ANNOTATION = "resource.kubernetes.io/extended-resource-claim"


def backed_by(device_class: Object) -> set[str]:
    """The extended resources that a class may stand behind."""
    named = (device_class.get("spec") or {}).get("extendedResourceName")
    return {IMPLICIT + device_class["metadata"]["name"], *((named,) if named else ())}


class BackedResources:
    """Which class of devices stands behind an extended resource. `refresh` must be called when a class changes."""

    def __init__(self, classes: Iterable[Object], changed: Callable[[], None]) -> None:
        """changed: called when other resources than before are backed."""
        self._classes, self._changed = classes, changed
        self._by_resource: dict[str, str] = {}
        self.refresh()

    def refresh(self, *_: Object) -> None:
        """Of two classes that name the same resource the newer counts, of two of one age the first by name."""
        found: dict[str, str] = {}
        by_age = sorted(self._classes, key=lambda c: c["metadata"]["name"], reverse=True)
        by_age.sort(key=lambda c: str(c["metadata"].get("creationTimestamp") or ""))
        for each in by_age:
            found |= dict.fromkeys(backed_by(each), each["metadata"]["name"])
        if found != self._by_resource:
            self._by_resource = found
            self._changed()

    def get(self, resource: str) -> str | None:
        """The name of the class, None when the resource is a plain one."""
        return self._by_resource.get(resource)

    def of(self, requests: Iterable[str]) -> dict[str, str]:
        """Those among resources that are backed, with their classes."""
        return {r: self._by_resource[r] for r in requests if r in self._by_resource} if self._by_resource else {}


def _is_short_lived(pod: Object, index: int) -> bool:
    inits = pod["spec"].get("initContainers") or ()
    return index < len(inits) and inits[index].get("restartPolicy") != "Always"


def _request(
    index: int, container: Object, resource: str, device_class: str, reusable: Iterable[Object]
) -> tuple[Object | None, list[Object]]:
    """(the request that a container adds for a resource, which requests serve it). reusable: it takes of those first."""
    asked = (container.get("resources") or {}).get("requests") or {}
    count = amount(resource, asked.get(resource) or 0)
    if not count:
        return None, []
    served = []
    for request in reusable:
        served.append(request["name"])
        count -= request["exactly"]["count"]
        if count <= 0:
            break
    made: Object | None = None
    if count > 0:
        exactly = {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": count}
        made = {"name": f"container-{index}-request-{sorted(asked).index(resource)}", "exactly": exactly}
        served.append(made["name"])
    container_name = container["name"]
    return made, [{"containerName": container_name, "resourceName": resource, "requestName": r} for r in served]


def requests_of(pod: Object, backed: dict[str, str]) -> tuple[list[Object], list[Object]]:
    """The special claim's requests, and which of them serve which container's resource.

    backed: the resources to ask devices for, with their classes. Init containers that end use what later containers
    will have, and of what they need besides only the most.
    """
    containers = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
    requests: list[Object] = []
    mappings: list[Object] = []
    for resource, device_class in sorted(backed.items()):
        lasting: dict[int, Object] = {}
        for index, container in enumerate(containers):
            if not _is_short_lived(pod, index):
                made, served = _request(index, container, resource, device_class, ())
                mappings += served
                if made is not None:
                    lasting[index] = made
        passing: list[Object] = []
        passing_served: list[Object] = []
        for index, container in enumerate(containers):
            if _is_short_lived(pod, index):
                later = [request for at, request in lasting.items() if at >= index]
                made, served = _request(index, container, resource, device_class, later)
                passing_served += served
                if made is not None:
                    passing.append(made)
        if passing:
            widest = max(passing, key=lambda request: int(request["exactly"]["count"]))
            names = {request["name"] for request in passing}
            for mapping in passing_served:
                if mapping["requestName"] in names:
                    mapping["requestName"] = widest["name"]
            requests.append(widest)
        requests.extend(lasting.values())
        mappings += passing_served
    return sorted(requests, key=lambda request: str(request["name"])), mappings


def special_claim(pod: Object, requests: Collection[Object]) -> Object:
    """The claim for a pod's extended resources, as it is created."""
    meta = pod["metadata"]
    return {
        "metadata": {
            "namespace": meta["namespace"],
            "generateName": meta["name"] + "-extended-resources-",
            "annotations": {ANNOTATION: "true"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"], "controller": True}
            ],
        },
        "spec": {"devices": {"requests": list(requests)}},
    }


def is_special_claim_of(claim: Object, uid: str) -> bool:
    """Whether an earlier attempt made the claim for the pod of this uid."""
    meta = claim["metadata"]
    return (meta.get("annotations") or {}).get(ANNOTATION) == "true" and any(
        owner["uid"] == uid and owner.get("controller") for owner in meta.get("ownerReferences") or ()
    )
