"""EndpointSlices for Endpoints that somebody writes by hand (Services without a selector).

Source: kubernetes pkg/controller/endpointslicemirroring, described behaviour.
"""

from __future__ import annotations

from typing import Any

from longshore.client.objects import is_deleting, owner_reference
from longshore.client.resources import ENDPOINT_SLICES, ENDPOINTS, SERVICES
from longshore.client.rest import is_namespace_terminating, is_not_found
from longshore.client.store import Object, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import serving
from longshore.master.controllers.base import Controller
from longshore.master.controllers.endpointslice import service_key

MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
LEADER = "control-plane.alpha.kubernetes.io/leader"
OWN_LABELS = frozenset({serving.SERVICE_NAME, serving.MANAGED_BY})


def is_ours(obj: Object) -> bool:
    return (obj["metadata"].get("labels") or {}).get(serving.MANAGED_BY) == MANAGER


def mirrored(endpoints: Object) -> bool:
    """Whether Endpoints are to be mirrored at all."""
    meta = endpoints["metadata"]
    return (meta.get("labels") or {}).get(SKIP) != "true" and LEADER not in (meta.get("annotations") or {})


def slices_of(endpoints: Object, limit: int) -> list[Object]:
    """The slices that say what the Endpoints say, without names: one a subset and address family."""
    meta = endpoints["metadata"]
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k not in OWN_LABELS}
    labels[serving.SERVICE_NAME], labels[serving.MANAGED_BY] = meta["name"], MANAGER
    notes = {
        k: v
        for k, v in (meta.get("annotations") or {}).items()
        if k not in ("kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/over-capacity")
    }
    result = []
    for subset in endpoints.get("subsets") or ():
        ports: list[Any] = [{"name": "", **p} for p in subset.get("ports") or ()]
        families: dict[str, list[Object]] = {"IPv4": [], "IPv6": []}
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in (subset.get(field) or ())[:limit]:
                entry: Object = {"addresses": [address["ip"]], "conditions": {"ready": ready}}
                for name in ("hostname", "nodeName", "targetRef"):
                    if address.get(name):
                        entry[name] = address[name]
                families["IPv6" if ":" in address["ip"] else "IPv4"].append(entry)
        for family, entries in families.items():
            if entries:
                metadata: Object = {
                    "generateName": meta["name"] + "-",
                    "namespace": meta["namespace"],
                    "labels": labels,
                    "ownerReferences": [owner_reference({**endpoints, "kind": "Endpoints", "apiVersion": "v1"})],
                }
                if notes:
                    metadata["annotations"] = notes
                result.append({"metadata": metadata, "addressType": family, "endpoints": entries, "ports": ports})
    return result


class EndpointSliceMirroring(Controller):
    """Mirrors custom Endpoints."""

    name = "endpointslice-mirroring-controller"
    account = "endpointslicemirroring-controller"
    component = "endpoint-slice-mirroring-controller"

    def setup(self) -> None:
        self.endpoints = self.watch(ENDPOINTS, add=self.enqueue, update=self.enqueue_update, delete=self.enqueue)
        self.services = self.watch(SERVICES, add=self.enqueue, update=self.enqueue_update, delete=self.enqueue)
        self.slices = self.watch(
            ENDPOINT_SLICES,
            update=lambda old, new: self._slice(new),
            delete=self._slice,
            indexers={"service": lambda obj: (service_key(obj),)},
        )

    def _slice(self, obj: Object) -> None:
        if is_ours(obj) and service_key(obj):
            self.queue.add(service_key(obj))

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        endpoints = self.endpoints.store.named(namespace, name)
        service = self.services.store.named(namespace, name)
        have = [s for s in self.slices.store.index("service", key) if is_ours(s)]
        wanted: list[Object] = []
        if endpoints is not None and service is not None and not service["spec"].get("selector"):
            if mirrored(endpoints) and not is_deleting(endpoints):
                wanted = slices_of(endpoints, self.options.mirroring_max_endpoints_per_subset)
        for obj in have:
            same = next((w for w in wanted if self._same(w, obj)), None)
            if same is not None:
                wanted.remove(same)
                continue
            reuse = next((w for w in wanted if w["addressType"] == obj["addressType"]), None)
            if reuse is not None:
                wanted.remove(reuse)
                metadata = {**obj["metadata"], "labels": reuse["metadata"]["labels"]}
                metadata["annotations"] = reuse["metadata"].get("annotations", {})
                await self.client.update(ENDPOINT_SLICES, {**obj, **reuse, "metadata": metadata})
            else:
                try:
                    await self.client.delete(ENDPOINT_SLICES, obj["metadata"]["name"], namespace)
                except StatusError as error:
                    if not is_not_found(error):
                        raise
        for obj in wanted:
            try:
                await self.client.create(ENDPOINT_SLICES, obj)
            except StatusError as error:
                if not is_namespace_terminating(error):
                    raise
        return None

    @staticmethod
    def _same(wanted: Object, obj: Object) -> bool:
        return (
            wanted["addressType"] == obj["addressType"]
            and wanted["endpoints"] == (obj.get("endpoints") or [])
            and [{"protocol": "TCP", **p} for p in wanted["ports"]] == (obj.get("ports") or [])
            and wanted["metadata"]["labels"] == (obj["metadata"].get("labels") or {})
        )
