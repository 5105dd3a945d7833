"""EndpointSlices: the addresses behind a Service in slices of at most a hundred, so that one change writes little.

Sources: kubernetes pkg/controller/endpointslice and k8s.io/endpointslice, described behaviour.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import orjson

from longshore.client.objects import is_deleting, is_ready, owner_reference
from longshore.client.resources import ENDPOINT_SLICES, NODES, PODS, SERVICES
from longshore.client.rest import is_namespace_terminating, is_not_found
from longshore.client.selectors import map_matcher
from longshore.client.store import Object, split_key
from longshore.machinery.errors import StatusError
from longshore.master.controllers import serving
from longshore.master.controllers.base import Controller
from longshore.master.controllers.pods import text

MANAGER = "endpointslice-controller.k8s.io"
ZONE = "topology.kubernetes.io/zone"


class SliceTracker:
    """Which versions of our slices the cache must have reached before we may judge by it."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, int]] = defaultdict(dict)  # service -> slice name -> version, -1: deleted

    def wrote(self, service: str, obj: Object) -> None:
        self._versions[service][obj["metadata"]["name"]] = int(obj["metadata"]["resourceVersion"])

    def deleted(self, service: str, name: str) -> None:
        self._versions[service][name] = -1

    def is_stale(self, service: str, slices: list[Object]) -> bool:
        """Whether the cached slices are behind what we wrote."""
        expected = self._versions.get(service)
        if not expected:
            return False
        seen = {s["metadata"]["name"]: int(s["metadata"]["resourceVersion"]) for s in slices}
        for name, version in list(expected.items()):
            if version == -1:
                if name in seen:
                    return True
                del expected[name]
            elif name not in seen or seen[name] < version:
                return True
        return False

    def gone(self, service: str, name: str) -> None:
        """The informer told that a slice is gone."""
        self._versions.get(service, {}).pop(name, None)

    def forget(self, service: str) -> None:
        self._versions.pop(service, None)


def service_key(obj: Object) -> str:
    """The key of the Service that a slice belongs to, "" when it belongs to none."""
    name = (obj["metadata"].get("labels") or {}).get(serving.SERVICE_NAME)
    return f"{obj['metadata']['namespace']}/{name}" if name else ""


def is_ours(obj: Object) -> bool:
    return (obj["metadata"].get("labels") or {}).get(serving.MANAGED_BY) == MANAGER


class EndpointSliceController(Controller):
    """Writes the EndpointSlices of every Service that has a selector."""

    name = "endpointslice-controller"
    component = "endpoint-slice-controller"

    def setup(self) -> None:
        self.tracker = SliceTracker()
        self.triggers = serving.TriggerTimes()
        self.services = self.watch(SERVICES, add=self.enqueue, update=self.enqueue_update, delete=self.enqueue)
        self.pods = self.watch(PODS, add=self._pod, update=self._pod_changed, delete=self._pod)
        self.nodes = self.watch(NODES, add=self._node, update=self._node_changed, delete=self._node)
        self.slices = self.watch(
            ENDPOINT_SLICES,
            add=self._slice,
            update=lambda old, new: self._slice(new),
            delete=self._slice_gone,
            indexers={"service": lambda obj: (service_key(obj),)},
        )

    def _pod(self, pod: Object) -> None:
        for key in serving.services_of(self.services.store, pod):
            self.queue.add(key)

    def _pod_changed(self, old: Object, new: Object) -> None:
        for key in serving.changed_services(self.services.store, old, new):
            self.queue.add(key)

    def _node(self, node: Object) -> None:
        if (node["metadata"].get("labels") or {}).get(ZONE):
            self._zone_changed(node["metadata"]["name"])

    def _node_changed(self, old: Object, new: Object) -> None:
        if (old["metadata"].get("labels") or {}).get(ZONE) != (new["metadata"].get("labels") or {}).get(ZONE):
            self._zone_changed(new["metadata"]["name"])

    def _zone_changed(self, name: str) -> None:
        for pod in self.pods.store:
            if pod["spec"].get("nodeName") == name:
                self._pod(pod)

    def _slice(self, obj: Object) -> None:
        key = service_key(obj)
        if key and is_ours(obj):
            self.queue.add(key)

    def _slice_gone(self, obj: Object) -> None:
        key = service_key(obj)
        if key and is_ours(obj):
            self.tracker.gone(key, obj["metadata"]["name"])
            self.queue.add(key)

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        service = self.services.store.named(namespace, name)
        if service is None or is_deleting(service):
            # Their owner reference takes the slices away.
            self.tracker.forget(key)
            self.triggers.forget(key)
            return None
        if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            return None
        matches = map_matcher(service["spec"]["selector"])
        pods = [p for p in self.pods.store.list(namespace) if matches(p["metadata"].get("labels") or {})]
        slices = [s for s in self.slices.store.index("service", key) if is_ours(s) and not is_deleting(s)]
        if self.tracker.is_stale(key, slices):
            return None  # the event that brings the cache up to date brings the key back
        zones = {n["metadata"]["name"]: (n["metadata"].get("labels") or {}).get(ZONE, "") for n in self.nodes.store}
        wanted = desired(service, pods, zones)
        changed_at = self.triggers.of(service, pods)
        plan = changes(service, slices, wanted, self.options.max_endpoints_per_slice)
        if changed_at:
            for obj in (*plan.create, *plan.update):
                obj["metadata"].setdefault("annotations", {})[serving.LAST_CHANGE] = changed_at
        try:
            await self._carry_out(key, plan)
        except StatusError as error:
            if is_namespace_terminating(error):
                return None
            if error.code != 409:
                message = f"Error updating Endpoint Slices for Service {key}: {text(error)}"
                self.event(service, "Warning", "FailedToUpdateEndpointSlices", message)
            raise
        return None

    async def _carry_out(self, key: str, plan: Plan) -> None:
        async def create(obj: Object) -> None:
            self.tracker.wrote(key, await self.client.create(ENDPOINT_SLICES, obj))

        async def update(obj: Object) -> None:
            self.tracker.wrote(key, await self.client.update(ENDPOINT_SLICES, obj))

        async def delete(obj: Object) -> None:
            name = obj["metadata"]["name"]
            try:
                await self.client.delete(ENDPOINT_SLICES, name, obj["metadata"]["namespace"])
                self.tracker.deleted(key, name)
            except StatusError as error:
                if not is_not_found(error):
                    raise

        results = await asyncio.gather(
            *(create(o) for o in plan.create),
            *(update(o) for o in plan.update),
            *(delete(o) for o in plan.delete),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result


class Plan:
    """Slices to write."""

    def __init__(self) -> None:
        self.create: list[Object] = []
        self.update: list[Object] = []
        self.delete: list[Object] = []


PortKey = tuple[str, tuple[tuple[Any, ...], ...]]  # address type, ports


def desired(service: Object, pods: list[Object], zones: dict[str, str]) -> dict[PortKey, dict[str, Object]]:
    """Endpoints by pod uid, by address type and ports (as (name, port, protocol, appProtocol) tuples)."""
    result: dict[PortKey, dict[str, Object]] = {}
    unready_too = bool(service["spec"].get("publishNotReadyAddresses"))
    nearby = service["spec"].get("trafficDistribution")
    for family in serving.families(service):
        for pod in pods:
            if not serving.may_publish(pod, terminating=True):
                continue
            ips = serving.addresses(pod, family)
            if not ips:
                continue
            ports = []
            for port in service["spec"].get("ports") or ():
                number = serving.find_port(pod, port)
                if number is not None:
                    protocol = port.get("protocol") or "TCP"
                    ports.append((port.get("name") or "", number, protocol, port.get("appProtocol") or ""))
            endpoint = _endpoint(service, pod, ips, unready_too, zones, nearby)
            result.setdefault((family, tuple(sorted(ports))), {})[pod["metadata"]["uid"]] = endpoint
    return result


def _endpoint(
    service: Object, pod: Object, ips: list[str], unready_too: bool, zones: dict[str, str], nearby: str | None
) -> Object:
    serves, ends = is_ready(pod), is_deleting(pod)
    endpoint: Object = {
        "addresses": ips,
        "conditions": {"ready": unready_too or (serves and not ends), "serving": serves, "terminating": ends},
        "targetRef": serving.target(pod),
    }
    node = pod["spec"].get("nodeName")
    if node:
        endpoint["nodeName"] = node
        if zones.get(node):
            endpoint["zone"] = zones[node]
    name = serving.hostname(pod, service)
    if name:
        endpoint["hostname"] = name
    if nearby and endpoint["conditions"]["ready"]:
        hints: Object = {}
        if "zone" in endpoint:
            hints["forZones"] = [{"name": endpoint["zone"]}]
        if nearby == "PreferSameNode" and node:
            hints["forNodes"] = [{"name": node}]
        if hints:
            endpoint["hints"] = hints
    return endpoint


def slice_labels(service: Object, manager: str = MANAGER) -> dict[str, str]:
    labels = dict(service["metadata"].get("labels") or {})
    labels.pop(serving.HEADLESS, None)
    if serving.is_headless(service):
        labels[serving.HEADLESS] = ""
    labels[serving.SERVICE_NAME] = service["metadata"]["name"]
    labels[serving.MANAGED_BY] = manager
    return labels


def _port_objects(ports: tuple[tuple[Any, ...], ...]) -> list[Object]:
    result = []
    for name, number, protocol, application in ports:
        entry: Object = {"name": name, "port": number, "protocol": protocol}
        if application:
            entry["appProtocol"] = application
        result.append(entry)
    return result


def _ports_of(obj: Object) -> PortKey:
    ports = (
        (p.get("name") or "", p.get("port"), p.get("protocol") or "TCP", p.get("appProtocol") or "")
        for p in obj.get("ports") or ()
    )
    return obj["addressType"], tuple(sorted(ports))


def changes(service: Object, slices: list[Object], wanted: dict[PortKey, dict[str, Object]], limit: int) -> Plan:
    """What to write so that the slices hold exactly `wanted`, touching as few slices as possible.

    slices: the Service's present ones. limit: endpoints a slice. Endpoints that stay are left where they are, changed
    ones are changed in place, new ones fill slices that change anyway, then the fullest that still has room.
    """
    plan = Plan()
    labels = slice_labels(service)
    by_ports: dict[PortKey, list[Object]] = defaultdict(list)
    for obj in slices:
        by_ports[_ports_of(obj)].append(obj)
    groups = dict(wanted)
    for family in serving.families(service):
        if not any(key[0] == family for key in groups):
            groups[(family, ())] = {}  # a placeholder, so that it shows that there is nobody
    for key, endpoints in groups.items():
        _changes_of_ports(plan, service, labels, key, dict(endpoints), by_ports.pop(key, []), limit)
    for left in by_ports.values():
        plan.delete.extend(left)
    _recycle(plan)
    return plan


def _recycle(plan: Plan) -> None:
    """Give what is to be made the names of what is to be deleted: one write instead of two."""
    for old in list(plan.delete):
        fresh = next((c for c in plan.create if c["addressType"] == old["addressType"]), None)
        if fresh is not None:
            plan.create.remove(fresh)
            plan.delete.remove(old)
            updated = _updated(old, fresh["metadata"]["labels"], fresh["endpoints"])
            plan.update.append({**updated, "ports": fresh["ports"]})


def _changes_of_ports(
    plan: Plan,
    service: Object,
    labels: dict[str, str],
    key: PortKey,
    missing: dict[str, Object],
    slices: list[Object],
    limit: int,
) -> None:
    contents: list[tuple[Object, list[Object], bool]] = []
    for obj in sorted(slices, key=lambda s: s["metadata"]["name"]):
        kept, changed = [], (obj["metadata"].get("labels") or {}) != labels
        for endpoint in obj.get("endpoints") or ():
            uid = (endpoint.get("targetRef") or {}).get("uid", "")
            fresh = missing.pop(uid, None)
            if fresh is None:
                changed = True
                continue
            changed = changed or orjson.dumps(fresh, option=orjson.OPT_SORT_KEYS) != orjson.dumps(
                endpoint, option=orjson.OPT_SORT_KEYS
            )
            kept.append(fresh)
        contents.append((obj, kept, changed))
    rest = list(missing.values())
    empty = [c for c in contents if not c[1]]
    if rest:
        # First where something is written anyway, then the fullest slice with room for all, then new slices.
        for index, (obj, kept, changed) in enumerate(contents):
            if changed and rest:
                room = limit - len(kept)
                kept.extend(rest[:room])
                rest = rest[room:]
                contents[index] = (obj, kept, True)
        fitting = [c for c in contents if 0 < len(rest) <= limit - len(c[1])]
        if fitting:
            best = max(fitting, key=lambda c: len(c[1]))
            best[1].extend(rest)
            rest = []
            contents[contents.index(best)] = (best[0], best[1], True)
        while rest:
            plan.create.append(_new_slice(service, labels, key, rest[:limit]))
            rest = rest[limit:]
    survivors = [c for c in contents if c[1]]
    for obj, kept, changed in survivors:
        if changed:
            plan.update.append(_updated(obj, labels, kept))
    if not survivors and not plan.create and empty:
        # The last slice stays, empty.
        obj, _, changed = empty.pop(0)
        if changed:
            plan.update.append(_updated(obj, labels, []))
    elif not survivors and not any(_ports_of(c) == key for c in plan.create):
        plan.create.append(_new_slice(service, labels, key, []))
    plan.delete.extend(obj for obj, kept, _ in empty if not kept)


def _updated(obj: Object, labels: dict[str, str], endpoints: list[Object]) -> Object:
    metadata = {**obj["metadata"], "labels": labels}
    metadata["annotations"] = dict(metadata.get("annotations") or {})
    return {**obj, "metadata": metadata, "endpoints": endpoints}


def _new_slice(service: Object, labels: dict[str, str], key: PortKey, endpoints: list[Object]) -> Object:
    family, ports = key
    prefix = service["metadata"]["name"] + "-"
    return {
        "addressType": family,
        "metadata": {
            "generateName": prefix,
            "namespace": service["metadata"]["namespace"],
            "labels": dict(labels),
            "ownerReferences": [owner_reference({**service, "kind": "Service", "apiVersion": "v1"})],
        },
        "endpoints": endpoints,
        "ports": _port_objects(ports),
    }
