"""Endpoints: the addresses behind a Service in the form of the first years (one object a Service).

Source: kubernetes pkg/controller/endpoint, described behaviour.
"""

from __future__ import annotations

from collections import defaultdict

from longshore.client.objects import copy, is_ready
from longshore.client.resources import ENDPOINTS, PODS, SERVICES
from longshore.client.rest import is_already_exists, is_namespace_terminating, is_not_found
from longshore.client.selectors import map_matcher
from longshore.client.store import Object, key_of, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import serving
from longshore.master.controllers.base import Controller
from longshore.master.controllers.pods import text

MANAGED_BY = "endpoints.kubernetes.io/managed-by"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
CAPACITY = 1000


class EndpointsController(Controller):
    """Writes the Endpoints of every Service that has a selector."""

    name = "endpoints-controller"
    account = "endpoint-controller"
    component = "endpoint-controller"

    def setup(self) -> None:
        self.triggers = serving.TriggerTimes()
        self.services = self.watch(SERVICES, add=self.enqueue, update=self.enqueue_update, delete=self.enqueue)
        self.pods = self.watch(PODS, add=self._pod, update=self._pod_changed, delete=self._pod)
        self.endpoints = self.watch(ENDPOINTS, delete=self.enqueue)

    def _pod(self, pod: Object) -> None:
        for key in serving.services_of(self.services.store, pod):
            self.queue.add(key)

    def _pod_changed(self, old: Object, new: Object) -> None:
        for key in serving.changed_services(self.services.store, old, new):
            self.queue.add(key)

    async def started(self) -> None:
        # Endpoints of Services that went while nobody looked; those without our mark may be a person's.
        for found in self.endpoints.store:
            if key_of(found) not in self.services.store and _is_ours(found):
                self.enqueue(found)

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        service = self.services.store.named(namespace, name)
        current = self.endpoints.store.named(namespace, name)
        if service is None:
            self.triggers.forget(key)
            if current is not None:
                try:
                    await self.client.delete(ENDPOINTS, name, namespace)
                except StatusError as error:
                    if not is_not_found(error):
                        raise
            return None
        if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            return None
        matches = map_matcher(service["spec"]["selector"])
        pods = [p for p in self.pods.store.list(namespace) if matches(p["metadata"].get("labels") or {})]
        body, truncated = subsets(service, pods)
        await self._write(service, current, body, truncated, self.triggers.of(service, pods))
        return None

    async def _write(
        self, service: Object, current: Object | None, body: list[Object], truncated: bool, changed_at: str
    ) -> None:
        labels = dict(service["metadata"].get("labels") or {})
        labels.pop(serving.HEADLESS, None)
        if serving.is_headless(service):
            labels[serving.HEADLESS] = ""
        labels[MANAGED_BY] = "endpoint-controller"
        annotations = dict((current or {"metadata": {}})["metadata"].get("annotations") or {})
        same_capacity = truncated == (OVER_CAPACITY in annotations)
        if (
            current is not None
            and (current.get("subsets") or []) == body
            and (current["metadata"].get("labels") or {}) == labels
            and same_capacity
        ):
            return
        annotations.pop(serving.LAST_CHANGE, None)
        if changed_at:
            annotations[serving.LAST_CHANGE] = changed_at
        annotations.pop(OVER_CAPACITY, None)
        if truncated:
            annotations[OVER_CAPACITY] = "truncated"
        metadata: Object = {**(copy(current["metadata"]) if current is not None else {}), "labels": labels}
        metadata.update(name=service["metadata"]["name"], namespace=service["metadata"]["namespace"])
        metadata.pop("annotations", None)
        if annotations:
            metadata["annotations"] = annotations
        fresh: Object = {"metadata": metadata}
        if body:
            fresh["subsets"] = body
        try:
            if current is None:
                await self.client.create(ENDPOINTS, fresh)
            else:
                await self.client.update(ENDPOINTS, fresh)
        except StatusError as error:
            if is_namespace_terminating(error):
                return
            if not is_already_exists(error):
                verb, reason = (
                    ("create", "FailedToCreateEndpoint") if current is None else ("update", "FailedToUpdateEndpoint")
                )
                message = f"Failed to {verb} endpoint {key_of(service)}: {text(error)}"
                self.event(fresh | {"kind": "Endpoints", "apiVersion": "v1"}, "Warning", reason, message)
            raise


def _is_ours(endpoints: Object) -> bool:
    return (endpoints["metadata"].get("labels") or {}).get(MANAGED_BY) == "endpoint-controller"


def subsets(service: Object, pods: list[Object]) -> tuple[list[Object], bool]:
    """The subsets of a Service's Endpoints, and whether some addresses were left out for their number.

    Only addresses of the Service's first family appear. Addresses with the same ports share a subset.
    """
    unready_too = bool(service["spec"].get("publishNotReadyAddresses"))
    family = serving.families(service)[0]
    ports_of: dict[tuple[str, str, bool], set[tuple[str, int, str, str]]] = defaultdict(set)
    entries: dict[tuple[str, str, bool], Object] = {}
    for pod in sorted(pods, key=lambda p: p["metadata"]["name"]):
        if not serving.may_publish(pod, terminating=unready_too):
            continue
        ips = serving.addresses(pod, family)
        if not ips:
            continue
        entry: Object = {"ip": ips[0], "nodeName": pod["spec"].get("nodeName", ""), "targetRef": serving.target(pod)}
        if not entry["nodeName"]:
            del entry["nodeName"]
        name = serving.hostname(pod, service)
        if name:
            entry["hostname"] = name
        key = (ips[0], pod["metadata"]["uid"], unready_too or is_ready(pod))
        service_ports = service["spec"].get("ports") or []
        if not service_ports:
            if serving.is_headless(service):
                entries[key] = entry
                ports_of[key]  # an entry without ports
            continue
        for port in service_ports:
            number = serving.find_port(pod, port)
            if number is not None:
                entries[key] = entry
                protocol = port.get("protocol") or "TCP"
                ports_of[key].add((port.get("name") or "", number, protocol, port.get("appProtocol") or ""))
    ready = sorted(k for k in entries if k[2])
    kept = set(ready[:CAPACITY]) | set(sorted(k for k in entries if not k[2])[: max(0, CAPACITY - len(ready))])
    groups: dict[tuple[tuple[str, int, str, str], ...], Object] = {}
    for key in sorted(kept):
        group = groups.setdefault(tuple(sorted(ports_of[key])), {"addresses": [], "notReadyAddresses": []})
        group["addresses" if key[2] else "notReadyAddresses"].append(entries[key])
    result = []
    for ports, group in sorted(groups.items()):
        subset = {k: v for k, v in group.items() if v}
        if ports:
            subset["ports"] = [
                {k: v for k, v in zip(("name", "port", "protocol", "appProtocol"), port, strict=True) if v}
                for port in ports
            ]
        result.append(subset)
    return result, len(kept) < len(entries)
