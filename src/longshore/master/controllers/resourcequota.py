"""ResourceQuotas: what a namespace uses of what it may.

The API server's admission counts as objects come; this controller counts anew when they go, and when quotas change.
Sources: kubernetes pkg/controller/resourcequota and pkg/quota/v1/evaluator/core, described behaviour.
"""

from __future__ import annotations

import asyncio

from longshore.client.discovery import Served, discover
from longshore.client.informer import METADATA_ONLY, Informer
from longshore.client.objects import is_terminal
from longshore.client.resources import (
    BY_PLURAL,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    RESOURCE_QUOTAS,
    SERVICES,
    Resource,
)
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.quantity import add, canonical, parse
from longshore.master.controllers.base import Controller

COUNTED_BY_NAME = {
    "configmaps": "configmaps",
    "secrets": "secrets",
    "persistentvolumeclaims": "persistentvolumeclaims",
    "replicationcontrollers": "replicationcontrollers",
    "resourcequotas": "resourcequotas",
}
COMPUTE = ("cpu", "memory", "ephemeral-storage")
SOON_SECONDS = 0.05  # a burst of deletions is counted once


def amounts(pod: Object, field: str) -> dict[str, str]:
    """The pod's requests or limits by resource, as quantities."""
    spec = pod["spec"]

    def of(container: Object) -> dict[str, str]:
        return (container.get("resources") or {}).get(field) or {}

    total: dict[str, str] = {}
    for container in spec.get("containers") or ():
        for name, value in of(container).items():
            total[name] = add(total.get(name, "0"), str(value)) if name in total else canonical(str(value))
    for container in spec.get("initContainers") or ():
        sidecar = container.get("restartPolicy") == "Always"
        for name, value in of(container).items():
            if sidecar and name in total:
                total[name] = add(total[name], str(value))
            elif name not in total or parse(str(value)).nanos > parse(total[name]).nanos:
                total[name] = canonical(str(value))
    for name, value in (spec.get("overhead") or {}).items():
        if field == "requests" or name in total:
            total[name] = add(total.get(name, "0"), str(value))
    for name, value in ((spec.get("resources") or {}).get(field) or {}).items():
        total[name] = canonical(str(value))
    return total


def is_best_effort(pod: Object) -> bool:
    return not any(
        (c.get("resources") or {}).get("requests") or (c.get("resources") or {}).get("limits")
        for c in [*(pod["spec"].get("containers") or ()), *(pod["spec"].get("initContainers") or ())]
    )


def in_scope(pod: Object, quota: Object) -> bool:
    """Whether a quota's scopes take in the pod."""
    spec = pod["spec"]
    terminating = spec.get("activeDeadlineSeconds") is not None
    entries = [{"scopeName": s, "operator": "Exists"} for s in quota["spec"].get("scopes") or ()]
    entries.extend((quota["spec"].get("scopeSelector") or {}).get("matchExpressions") or ())
    for entry in entries:
        scope, operator, values = entry["scopeName"], entry.get("operator"), entry.get("values") or ()
        if scope == "Terminating":
            fits = terminating
        elif scope == "NotTerminating":
            fits = not terminating
        elif scope == "BestEffort":
            fits = is_best_effort(pod)
        elif scope == "NotBestEffort":
            fits = not is_best_effort(pod)
        elif scope == "PriorityClass":
            name = spec.get("priorityClassName") or ""
            fits = {
                "In": name in values,
                "NotIn": name not in values,
                "Exists": bool(name),
                "DoesNotExist": not name,
            }.get(str(operator), False)
        elif scope == "CrossNamespacePodAffinity":
            fits = _crosses(spec)
        else:
            fits = False
        if not fits:
            return False
    return True


def _crosses(spec: Object) -> bool:
    for kind in ("podAffinity", "podAntiAffinity"):
        group = (spec.get("affinity") or {}).get(kind) or {}
        terms = list(group.get("requiredDuringSchedulingIgnoredDuringExecution") or ())
        preferred = group.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        terms.extend(p.get("podAffinityTerm") or {} for p in preferred)
        if any(t.get("namespaces") or t.get("namespaceSelector") is not None for t in terms):
            return True
    return False


def pod_usage(pods: list[Object], names: list[str]) -> dict[str, str]:
    """What pods use of the named quota resources."""
    used = dict.fromkeys(names, "0")
    count = 0
    for pod in pods:
        if is_terminal(pod):
            continue
        count += 1
        requests, limits = amounts(pod, "requests"), amounts(pod, "limits")
        for name in names:
            value = None
            if name.startswith("requests."):
                value = requests.get(name.removeprefix("requests."))
            elif name.startswith("limits."):
                value = limits.get(name.removeprefix("limits."))
            elif name in COMPUTE:
                value = requests.get(name)
            if value is not None:
                used[name] = add(used[name], value) if used[name] != "0" else value
    for name in ("pods", "count/pods"):
        if name in used:
            used[name] = str(count if name == "pods" else len(pods))
    return used


def service_usage(services: list[Object], names: list[str]) -> dict[str, str]:
    ports = balancers = 0
    for service in services:
        spec = service["spec"]
        if spec.get("type") == "NodePort":
            ports += len(spec.get("ports") or ())
        elif spec.get("type") == "LoadBalancer":
            balancers += 1
            if spec.get("allocateLoadBalancerNodePorts", True):
                ports += len(spec.get("ports") or ())
            else:
                ports += sum(1 for p in spec.get("ports") or () if p.get("nodePort"))
    counts = {
        "services": len(services),
        "count/services": len(services),
        "services.nodeports": ports,
        "services.loadbalancers": balancers,
    }
    return {name: str(counts[name]) for name in names if name in counts}


def claim_usage(claims: list[Object], names: list[str]) -> dict[str, str]:
    used: dict[str, str] = {}
    for name in names:
        cls, _, rest = name.partition(".storageclass.storage.k8s.io/")
        chosen = [c for c in claims if (c["spec"].get("storageClassName") or "") == cls] if rest else claims
        what = rest or name
        if what in ("persistentvolumeclaims", "count/persistentvolumeclaims"):
            used[name] = str(len(chosen))
        elif what == "requests.storage":
            sizes = [
                str(((c["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0")) for c in chosen
            ]
            used[name] = add(*sizes)
    return used


class ResourceQuotaController(Controller):
    """Keeps status.used of quotas."""

    name = "resourcequota-controller"
    component = "resourcequota-controller"

    def setup(self) -> None:
        self._served: dict[tuple[str, str], Resource] = {}
        self._finding = asyncio.Lock()
        self._heard: dict[Resource, asyncio.Task[None] | None] = {}  # counted kinds; the task of a copy of our own
        self.quotas = self.watch(RESOURCE_QUOTAS, add=self.enqueue, update=self._quota_changed)
        self.pods = self.watch(PODS, update=self._pod_changed, delete=self._freed)
        self.services = self.watch(SERVICES, update=lambda old, new: self._freed(new), delete=self._freed)
        self.claims = self.watch(PERSISTENT_VOLUME_CLAIMS, delete=self._freed)

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            for copy in self._heard.values():
                if copy is not None:
                    copy.cancel()

    def _quota_changed(self, old: Object, new: Object) -> None:
        if old["spec"] != new["spec"] or (new.get("status") or {}).get("hard") != new["spec"].get("hard"):
            self.enqueue(new)

    def _pod_changed(self, old: Object, new: Object) -> None:
        if is_terminal(new) and not is_terminal(old):
            self._freed(new)

    def _freed(self, obj: Object) -> None:
        for quota in self.quotas.store.list(obj["metadata"]["namespace"]):
            self.queue.add_after(key_of(quota), SOON_SECONDS)

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        quota = self.quotas.store.named(namespace, name)
        if quota is None:
            return None
        hard = quota["spec"].get("hard") or {}
        used = await self._used(quota, namespace, list(hard))
        status = {"hard": hard, "used": {n: used[n] for n in hard if n in used}}
        if status != (quota.get("status") or {}):
            await self.client.update(RESOURCE_QUOTAS, {**quota, "status": status}, subresource="status")
        return self.options.resource_quota_sync_period

    async def _used(self, quota: Object, namespace: str, names: list[str]) -> dict[str, str]:
        used: dict[str, str] = {}
        pods = [p for p in self.pods.store.list(namespace) if in_scope(p, quota)]
        computed = [
            n
            for n in names
            if n in ("pods", "count/pods", *COMPUTE)
            or (n.startswith(("requests.", "limits.")) and n != "requests.storage")
        ]
        used.update(pod_usage(pods, computed))
        used.update(service_usage(self.services.store.list(namespace), names))
        used.update(claim_usage(self.claims.store.list(namespace), names))
        for name in names:
            if name in used:
                continue
            plural = COUNTED_BY_NAME.get(name) or (name.removeprefix("count/") if name.startswith("count/") else "")
            if plural:
                resource = await self._resource(plural)
                if resource is not None:
                    used[name] = str(await self._count(resource, namespace))
        return used

    async def _resource(self, name: str) -> Resource | None:
        """`plural` or `plural.group` as a resource."""
        plural, _, group = name.partition(".")
        known = BY_PLURAL.get((group, plural)) or self._served.get((group, plural))
        if known is None:
            async with self._finding:
                found: list[Served] = (await discover(self.client)).served
                self._served = {(s.resource.group, s.resource.plural): s.resource for s in found}
            known = self._served.get((group, plural))
        return known

    async def _count(self, resource: Resource, namespace: str) -> int:
        """How many there are, of a kind that others may not watch: from then on its deletions are heard of."""
        if resource not in self._heard:
            shared = self.context.informers.existing(resource)
            informer = shared or Informer(self.context.client, resource, accept=METADATA_ONLY)
            informer.on(delete=self._freed)
            copy = asyncio.create_task(informer.run(), name=f"metadata {resource}") if shared is None else None
            self._heard[resource] = copy
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        return len((await self.context.client.list(resource, namespace, accept=accept))["items"])
