"""ResourceQuota: what a write would add is charged to the namespace's quotas before it is stored.

Source: staging apiserver pkg/admission/plugin/resourcequota and pkg/quota/v1/evaluator/core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from longshore.api.core.qos import qos_class
from longshore.machinery import quantity
from longshore.machinery.errors import StatusError
from longshore.master.apiserver.admission.base import Object, Plugin, refuse
from longshore.master.apiserver.admission.configuration import PluginConfiguration
from longshore.master.apiserver.admission.limits import pod_amounts
from longshore.master.apiserver.configfile import ConfigurationError
from longshore.master.apiserver.context import AdmissionRequest

Amounts = dict[str, int]
_COMPUTE = ("cpu", "memory", "ephemeral-storage")
_COUNTED = {
    "services",
    "secrets",
    "configmaps",
    "resourcequotas",
    "replicationcontrollers",
    "persistentvolumeclaims",
    "pods",
}
_RETRIES = 5


class ResourceQuota(Plugin):
    """Charges creations, and updates that grow."""

    name = "ResourceQuota"
    subresources = frozenset(("", "resize"))

    def __init__(self, limited: Sequence[Object] = ()) -> None:
        """limited: what may not be used without a quota that covers it (LimitedResource)."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._limited = limited

    async def validate(self, a: AdmissionRequest) -> None:
        namespace = a.attributes.namespace
        if not namespace or a.object is None or a.attributes.resource == "namespaces":
            return
        quotas = a.api.list("", "resourcequotas", namespace)
        if not quotas and not self._limited:
            return
        used, measure = _usage(a, a.object)
        before = _usage(a, a.old)[0] if a.operation == "UPDATE" and a.old is not None else {}
        delta = {k: v - before.get(k, 0) for k, v in used.items()}
        delta = {k: v for k, v in delta.items() if v > 0} if a.operation == "UPDATE" else delta
        if not delta and measure is None:
            return
        if self._limited:
            self._check_covered(a, quotas, used, delta)
        if not quotas:
            return
        lock = self._locks.setdefault(namespace, asyncio.Lock())
        async with lock:
            await self._charge(a, namespace, delta, measure)

    def _check_covered(self, a: AdmissionRequest, quotas: list[Object], used: Amounts, delta: Amounts) -> None:
        """Refuses what is limited unless a quota says how much of it there may be."""
        if not any(delta.values()):
            return
        at, obj = a.attributes, a.object or {}
        covered: set[str] = set()
        scopes: set[str] = set()
        for quota in quotas:
            if _in_scope(a, quota):
                covered |= set((quota.get("status") or {}).get("hard") or ())
            scopes |= {s["scopeName"] for s in _scopes(quota) if _matches(at.resource, obj, s)}
        wanted = {
            name
            for entry in self._limited
            if (entry.get("apiGroup") or "", entry.get("resource")) == (at.group, at.resource)
            for name, amount in used.items()
            if amount > 0 and any(part in name for part in entry.get("matchContains") or ())
        }
        if wanted - covered:
            raise refuse(a, f"insufficient quota to consume: {','.join(sorted(wanted - covered))}")
        if at.group or at.resource not in ("pods", "persistentvolumeclaims"):
            return
        matched = [
            s for entry in self._limited for s in entry.get("matchScopes") or () if _matches(at.resource, obj, s)
        ]
        missing = [s for s in matched if s.get("scopeName") not in scopes]
        if missing:
            shown = " ".join(
                f"{{{s.get('scopeName')} {s.get('operator')} [{' '.join(s.get('values') or ())}]}}" for s in missing
            )
            # Upstream's plugin gives no reason here, which makes it a failure of the server.
            raise StatusError(500, "", f"insufficient quota to match these scopes: [{shown}]")

    async def _charge(
        self, a: AdmissionRequest, namespace: str, delta: Amounts, required: Callable[[set[str]], str] | None
    ) -> None:
        for attempt in range(_RETRIES):
            quotas = a.api.list("", "resourcequotas", namespace)
            if attempt:
                # The cache may lag behind whoever was faster.
                names = [q["metadata"]["name"] for q in quotas]
                live = [await a.api.get_live("", "resourcequotas", namespace, name) for name in names]
                quotas = [q for q in live if q is not None]
            changed = self._plan(a, sorted(quotas, key=lambda q: q["metadata"]["name"]), delta, required)
            if a.dry_run:
                return
            try:
                for quota in changed:
                    await a.api.update("", "resourcequotas", namespace, quota, "status")
                return
            except StatusError as error:
                if error.code != 409 or attempt == _RETRIES - 1:
                    raise

    @staticmethod
    def _plan(
        a: AdmissionRequest, quotas: list[Object], delta: Amounts, required: Callable[[set[str]], str] | None
    ) -> list[Object]:
        """The quotas with the charge in their status; refuses what exceeds one."""
        changed = []
        for quota in quotas:
            if not _in_scope(a, quota):
                continue
            status = quota.get("status") or {}
            hard, used = status.get("hard") or {}, status.get("used") or {}
            if required is not None and a.operation == "CREATE":
                missing = required(set(hard))
                if missing:
                    raise refuse(a, f"failed quota: {quota['metadata']['name']}: must specify {missing}")
            mine = {k: v for k, v in delta.items() if k in hard and v}
            if not mine:
                continue
            over = [
                k for k, v in mine.items() if quantity.parse(used.get(k, "0")).nanos + v > quantity.parse(hard[k]).nanos
            ]
            if over:
                names = sorted(over)
                asked = ",".join(f"{k}={_show(mine[k], hard[k])}" for k in names)
                have = ",".join(f"{k}={used.get(k, '0')}" for k in names)
                most = ",".join(f"{k}={hard[k]}" for k in names)
                raise refuse(
                    a, f"exceeded quota: {quota['metadata']['name']}, requested: {asked}, used: {have}, limited: {most}"
                )
            new = {
                k: _show(
                    quantity.parse(used.get(k, "0")).nanos + v, used.get(k) if used.get(k, "0") != "0" else hard[k]
                )
                for k, v in mine.items()
            }
            quota["status"] = {**status, "used": {**used, **new}}
            changed.append(quota)
        return changed


def _show(nanos: int, like: str | None) -> str:
    return str(quantity.Quantity(nanos, quantity.parse(like or "0").format))


def _usage(a: AdmissionRequest, obj: Object | None) -> tuple[Amounts, Callable[[set[str]], str] | None]:
    """What obj counts for, and for pods which required amounts are missing."""
    if obj is None:
        return {}, None
    group, resource = a.attributes.group, a.attributes.resource
    used: Amounts = {}
    qualified = f"{resource}.{group}" if group else resource
    used[f"count/{qualified}"] = quantity.NANO
    if not group and resource in _COUNTED:
        used[resource] = quantity.NANO
    if group:
        if resource == "persistentvolumeclaims":
            used.pop(resource, None)
        return used, None
    if resource == "pods":
        return _pod_usage(obj, used)
    if resource == "services":
        _service_usage(obj["spec"], used)
    elif resource == "persistentvolumeclaims":
        storage = ((obj["spec"].get("resources") or {}).get("requests") or {}).get("storage")
        if storage is not None:
            used["requests.storage"] = quantity.parse(storage).nanos
        name = obj["spec"].get("storageClassName")
        if name:
            used[f"{name}.storageclass.storage.k8s.io/persistentvolumeclaims"] = quantity.NANO
            if storage is not None:
                used[f"{name}.storageclass.storage.k8s.io/requests.storage"] = quantity.parse(storage).nanos
    return used, None


def _service_usage(spec: Object, used: Amounts) -> None:
    ports = len(spec.get("ports") or ())
    if spec.get("type") == "NodePort":
        used["services.nodeports"] = ports * quantity.NANO
    elif spec.get("type") == "LoadBalancer":
        used["services.loadbalancers"] = quantity.NANO
        if spec.get("allocateLoadBalancerNodePorts") is not False:
            used["services.nodeports"] = ports * quantity.NANO
        else:
            used["services.nodeports"] = sum(1 for p in spec.get("ports") or () if p.get("nodePort")) * quantity.NANO


def _pod_usage(pod: Object, used: Amounts) -> tuple[Amounts, Callable[[set[str]], str]]:
    spec = pod["spec"]
    phase = (pod.get("status") or {}).get("phase")
    if phase in ("Failed", "Succeeded"):
        used.pop("pods", None)
    else:
        requests, limits = pod_amounts(spec, "requests"), pod_amounts(spec, "limits")
        for name, text in requests.items():
            nanos = quantity.parse(text).nanos
            if name in _COMPUTE:
                used[name] = nanos
            used[f"requests.{name}"] = nanos
            if name.startswith("hugepages-"):
                used[name] = nanos
        for name, text in limits.items():
            if name in _COMPUTE:
                used[f"limits.{name}"] = quantity.parse(text).nanos

    def missing(hard: set[str]) -> str:
        if (spec.get("resources") or {}).get("requests") or (spec.get("resources") or {}).get("limits"):
            return ""
        found: dict[str, list[str]] = {}
        for kind in ("containers", "initContainers"):
            for container in spec.get(kind) or ():
                resources = container.get("resources") or {}
                have = set(resources.get("requests") or ()) | {f"requests.{n}" for n in resources.get("requests") or ()}
                have |= {f"limits.{n}" for n in resources.get("limits") or ()}
                for name in hard:
                    base = name.removeprefix("requests.").removeprefix("limits.")
                    if (
                        base in ("cpu", "memory", "ephemeral-storage")
                        and base != "ephemeral-storage"
                        and name not in have
                    ):
                        found.setdefault(name, []).append(container.get("name", ""))
        return "; ".join(f"{name} for: {','.join(sorted(names))}" for name, names in sorted(found.items()))

    return used, missing


def _in_scope(a: AdmissionRequest, quota: Object) -> bool:
    """Whether the quota's scopes take in the object."""
    scopes = _scopes(quota)
    if not scopes:
        return True
    assert a.object is not None
    if a.attributes.group or a.attributes.resource not in ("pods", "persistentvolumeclaims"):
        return False
    return all(_matches(a.attributes.resource, a.object, scope) for scope in scopes)


def _scopes(quota: Object) -> list[Object]:
    """The scopes of a quota, of both its fields."""
    spec = quota["spec"]
    named: list[Object] = [{"scopeName": s, "operator": "Exists"} for s in spec.get("scopes") or ()]
    return named + ((spec.get("scopeSelector") or {}).get("matchExpressions") or [])


def limited(configuration: PluginConfiguration) -> list[Object]:
    """The limited resources of the plugin's configuration. ConfigurationError."""
    versions = [f"apiserver.config.k8s.io/{v}" for v in ("v1",)]
    versions += [f"resourcequota.admission.k8s.io/{v}" for v in ("v1", "v1beta1", "v1alpha1")]
    given = configuration.of("ResourceQuota") or {}
    kind = (
        "ResourceQuotaConfiguration"
        if str(given.get("apiVersion", "")).startswith("apiserver.config")
        else "Configuration"
    )
    found = configuration.of("ResourceQuota", kind, versions) or {}
    entries: list[Object] = found.get("limitedResources") or []
    for i, entry in enumerate(entries):
        if not entry.get("resource"):
            raise ConfigurationError(f"limitedResources[{i}].resource: Required value: must have at least one value")
    return entries


def _matches(resource: str, obj: Object, scope: Object) -> bool:
    name, operator, values = scope.get("scopeName"), scope.get("operator"), scope.get("values") or []
    spec = obj["spec"]
    if name == "VolumeAttributesClass":
        return resource == "persistentvolumeclaims" and _selected(
            spec.get("volumeAttributesClassName"), operator, values
        )
    if resource != "pods":
        return False
    if name in ("Terminating", "NotTerminating"):
        return bool((spec.get("activeDeadlineSeconds") is not None) == (name == "Terminating"))
    if name in ("BestEffort", "NotBestEffort"):
        return bool((qos_class(spec) == "BestEffort") == (name == "BestEffort"))
    if name == "PriorityClass":
        return _selected(spec.get("priorityClassName") or None, operator, values)
    if name == "CrossNamespacePodAffinity":
        return _crosses(spec)
    return False


def _selected(value: str | None, operator: Any, values: list[str]) -> bool:
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    return (value in values) is (operator == "In")


def _crosses(spec: Object) -> bool:
    affinity = spec.get("affinity") or {}
    for kind in ("podAffinity", "podAntiAffinity"):
        part = affinity.get(kind) or {}
        terms = [*(part.get("requiredDuringSchedulingIgnoredDuringExecution") or ())]
        terms += [
            t.get("podAffinityTerm") or {} for t in part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        ]
        if any(t.get("namespaces") or t.get("namespaceSelector") is not None for t in terms):
            return True
    return False
