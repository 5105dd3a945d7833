"""LimitRanger: a namespace's LimitRanges give pods requests and limits, and bound what they and claims ask for."""

from __future__ import annotations

from typing import Any

from longshore.machinery import quantity
from longshore.master.apiserver.admission.base import Object, Plugin, refuse
from longshore.master.apiserver.context import AdmissionRequest

ANNOTATION = "kubernetes.io/limit-ranger"


class LimitRanger(Plugin):
    """Source: plugin/pkg/admission/limitranger."""

    name = "LimitRanger"
    resources = frozenset((("", "pods"), ("", "persistentvolumeclaims")))
    subresources = frozenset(("", "resize"))

    def handles(self, operation: str, resource: str, subresource: str = "", group: str = "") -> bool:
        if not super().handles(operation, resource, subresource, group):
            return False
        if resource == "pods":
            # Resources of a pod only change through resize.
            return (operation == "CREATE" and not subresource) or (operation == "UPDATE" and subresource == "resize")
        return not subresource

    def _ranges(self, a: AdmissionRequest) -> list[Object]:
        return a.api.list("", "limitranges", a.attributes.namespace)

    async def admit(self, a: AdmissionRequest) -> None:
        if a.object is None or a.attributes.resource != "pods":
            return
        for limit_range in self._ranges(a):
            for item in limit_range["spec"].get("limits") or ():
                if item.get("type") == "Container":
                    _fill(a.object, item)

    async def validate(self, a: AdmissionRequest) -> None:
        if a.object is None:
            return
        for limit_range in self._ranges(a):
            complaints: list[str] = []
            for item in limit_range["spec"].get("limits") or ():
                if a.attributes.resource == "pods":
                    complaints.extend(_check_pod(a.object, item))
                elif item.get("type") == "PersistentVolumeClaim":
                    requests = (a.object["spec"].get("resources") or {}).get("requests") or {}
                    for name, least in (item.get("min") or {}).items():
                        complaints.extend(_minimum("PersistentVolumeClaim", name, least, requests, {}))
                    for name, most in (item.get("max") or {}).items():
                        complaints.extend(_maximum_request("PersistentVolumeClaim", name, most, requests))
            if complaints:
                raise refuse(a, complaints[0] if len(complaints) == 1 else "[" + ", ".join(complaints) + "]")


def _fill(pod: Object, item: Object) -> None:
    limits, requests = item.get("default") or {}, item.get("defaultRequest") or {}
    notes: list[str] = []
    for kind, what in (("containers", "container"), ("initContainers", "init container")):
        for container in pod["spec"].get(kind) or ():
            resources = container.setdefault("resources", {})
            for part, given, label in (("requests", requests, "request"), ("limits", limits, "limit")):
                have = resources.get(part) or {}
                added = [name for name in sorted(given) if name not in have]
                if added:
                    resources[part] = {**have, **{name: given[name] for name in added}}
                    notes.append(f"{', '.join(added)} {label} for {what} {container.get('name', '')}")
    if notes:
        annotations = pod["metadata"].setdefault("annotations", {})
        annotations[ANNOTATION] = "LimitRanger plugin set: " + "; ".join(notes)


def _nanos(amounts: dict[str, str], name: str) -> int | None:
    return quantity.parse(amounts[name]).nanos if name in amounts else None


def _minimum(kind: str, name: str, least: str, requests: dict[str, str], limits: dict[str, str]) -> list[str]:
    bound = quantity.parse(least).nanos
    request, limit = _nanos(requests, name), _nanos(limits, name)
    if request is None:
        return [f"minimum {name} usage per {kind} is {least}.  No request is specified"]
    if request < bound:
        return [f"minimum {name} usage per {kind} is {least}, but request is {requests[name]}"]
    if limit is not None and limit < bound:
        return [f"minimum {name} usage per {kind} is {least}, but limit is {limits[name]}"]
    return []


def _maximum(kind: str, name: str, most: str, requests: dict[str, str], limits: dict[str, str]) -> list[str]:
    bound = quantity.parse(most).nanos
    request, limit = _nanos(requests, name), _nanos(limits, name)
    if limit is None:
        return [f"maximum {name} usage per {kind} is {most}.  No limit is specified"]
    if limit > bound:
        return [f"maximum {name} usage per {kind} is {most}, but limit is {limits[name]}"]
    if request is not None and request > bound:
        return [f"maximum {name} usage per {kind} is {most}, but request is {requests[name]}"]
    return []


def _maximum_request(kind: str, name: str, most: str, requests: dict[str, str]) -> list[str]:
    request = _nanos(requests, name)
    if request is None:
        return [f"maximum {name} usage per {kind} is {most}.  No request is specified"]
    if request > quantity.parse(most).nanos:
        return [f"maximum {name} usage per {kind} is {most}, but request is {requests[name]}"]
    return []


def _ratio(kind: str, name: str, ratio: str, requests: dict[str, str], limits: dict[str, str]) -> list[str]:
    request, limit = _nanos(requests, name), _nanos(limits, name)
    if not request:
        return [f"{name} max limit to request ratio per {kind} is {ratio}, but no request is specified or request is 0"]
    if not limit:
        return [f"{name} max limit to request ratio per {kind} is {ratio}, but no limit is specified or limit is 0"]
    observed = limit / request
    if observed > quantity.parse(ratio).nanos / quantity.NANO:
        return [f"{name} max limit to request ratio per {kind} is {ratio}, but provided ratio is {observed:f}"]
    return []


def _check(kind: str, item: Object, requests: dict[str, str], limits: dict[str, str]) -> list[str]:
    found: list[str] = []
    for name, least in sorted((item.get("min") or {}).items()):
        found.extend(_minimum(kind, name, least, requests, limits))
    for name, most in sorted((item.get("max") or {}).items()):
        found.extend(_maximum(kind, name, most, requests, limits))
    for name, ratio in sorted((item.get("maxLimitRequestRatio") or {}).items()):
        found.extend(_ratio(kind, name, ratio, requests, limits))
    return found


def _check_pod(pod: Object, item: Object) -> list[str]:
    spec = pod["spec"]
    if item.get("type") == "Container":
        found: list[str] = []
        for kind in ("containers", "initContainers"):
            for container in spec.get(kind) or ():
                resources = container.get("resources") or {}
                found.extend(_check("Container", item, resources.get("requests") or {}, resources.get("limits") or {}))
        return found
    if item.get("type") == "Pod":
        return _check("Pod", item, pod_amounts(spec, "requests"), pod_amounts(spec, "limits"))
    return []


def pod_amounts(spec: Object, part: str) -> dict[str, str]:
    """What a whole pod asks for: the containers' sum with sidecars, or the largest init container, and the overhead.

    A limit counts only where every container has one, as upstream adds them up.
    """
    totals: dict[str, quantity.Quantity] = {}

    def add(into: dict[str, quantity.Quantity], amounts: dict[str, Any]) -> None:
        for name, text in amounts.items():
            parsed = quantity.parse(text)
            have = into.get(name)
            into[name] = parsed if have is None else quantity.Quantity(have.nanos + parsed.nanos, have.format)

    def of(container: Object) -> dict[str, Any]:
        return (container.get("resources") or {}).get(part) or {}

    for container in spec.get("containers") or ():
        add(totals, of(container))
    sidecars: dict[str, quantity.Quantity] = {}
    peaks: dict[str, quantity.Quantity] = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            add(totals, of(container))
            add(sidecars, of(container))
            current = dict(sidecars)
        else:
            current = dict(sidecars)
            add(current, of(container))
        for name, amount in current.items():
            if name not in peaks or peaks[name].nanos < amount.nanos:
                peaks[name] = amount
    for name, amount in peaks.items():
        if name not in totals or totals[name].nanos < amount.nanos:
            totals[name] = amount
    whole = ((spec.get("resources") or {}).get(part)) or {}
    for name, text in whole.items():
        totals[name] = quantity.parse(text)
    overhead = spec.get("overhead") or {}
    for name, text in overhead.items():
        if part == "requests" or name in totals:
            add(totals, {name: text})
    return {name: str(amount) for name, amount in totals.items()}
