"""The proxy's state: Services and slices in, one transaction of nftables out whenever something has changed.

Changes are collected while a transaction is under way, so that a storm of events costs few of them. Whatever goes wrong
ends in a rebuild: the whole table replaced in one transaction, which is also what a start and a repair are.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from longshore.machinery import netns
from longshore.machinery.conntrack import Conntrack
from longshore.machinery.nftables import ChangeMonitor, NftablesError
from longshore.machinery.ruleset import Rules, RuleSet
from longshore.machinery.tablekeeper import TableKeeper
from longshore.node.proxy.metrics import ProxyMetrics
from longshore.node.proxy.rules import Dialect, render, rule_set
from longshore.node.proxy.service import (
    Endpoint,
    Object,
    PortName,
    ServicePort,
    endpoints_of,
    is_proxied,
    service_ports,
    slice_owner,
)
from longshore.node.proxy.topology import choose

logger = logging.getLogger("longshore.proxy")

TABLE = "longshore-proxy"
_SLICE = 200
"""Services computed before the event loop gets a turn."""


class Proxier(TableKeeper):
    """Keeps the tables of one node right.

    dialects: one per IP family that the node serves. node_local: Services ("namespace/name") that a process of this node
    answers itself at their cluster IP. namespace: network namespace to work in (None: the caller's own).
    health_changed: told of every Service with a health check node port: {port: (namespace, name, local endpoints)}.
    serves: told of all load balancer addresses that this node serves.
    """

    def __init__(
        self,
        node_name: str,
        dialects: Sequence[Dialect],
        *,
        node_local: Collection[str] = (),
        namespace: netns.Namespace | None = None,
        metrics: ProxyMetrics | None = None,
        health_changed: Callable[[Mapping[int, tuple[str, str, int]]], None] | None = None,
        serves: Callable[[Iterable[str]], None] | None = None,
    ) -> None:
        super().__init__("Services", logger, namespace)
        self.node_name = node_name
        self.zone = ""
        self.table = TABLE
        self.last_sync = 0.0
        self._node_local = frozenset(node_local)
        self._metrics = metrics or ProxyMetrics()
        self._health_changed = health_changed
        self._serves = serves
        self._served: dict[str, set[str]] = {}
        self._health: dict[int, tuple[str, str, int]] = {}
        self._dialects = list(dialects)
        self._sets = [rule_set(TABLE, dialect) for dialect in dialects]
        self._services: dict[str, Object] = {}
        self._slices: dict[str, dict[str, Object]] = {}
        self._ports: dict[str, set[tuple[int, PortName]]] = {}
        # What UDP flows may lead to: per owner its destinations and its endpoints, as they were last put in force.
        self._dirty: dict[str, None] = {}
        self._conntrack: Conntrack | None = None
        self._doubtful = False

    # What the API server says.

    def service(self, obj: Object) -> None:
        """A Service is new or changed."""
        key = _key(obj)
        self._services[key] = obj
        self._mark(key)

    def service_gone(self, obj: Object) -> None:
        self._services.pop(_key(obj), None)
        self._mark(_key(obj))

    def slice(self, obj: Object, old: Object | None = None) -> None:
        """An EndpointSlice is new or changed."""
        if old is not None and slice_owner(old) != slice_owner(obj):
            self.slice_gone(old)
        owner = slice_owner(obj)
        if owner:
            self._slices.setdefault(owner, {})[obj["metadata"]["name"]] = obj
            self._mark(owner)

    def slice_gone(self, obj: Object) -> None:
        owner = slice_owner(obj)
        slices = self._slices.get(owner)
        if slices is not None:
            slices.pop(obj["metadata"]["name"], None)
            if not slices:
                del self._slices[owner]
            self._mark(owner)

    def node(self, obj: Object) -> None:
        """This node's own object: its zone decides where hints lead."""
        zone = (obj["metadata"].get("labels") or {}).get("topology.kubernetes.io/zone", "")
        if zone != self.zone:
            self.zone = zone
            for key in self._services:
                self._mark(key)

    def _mark(self, key: str) -> None:
        self._dirty[key] = None
        self.touch()

    # What is done about it.

    def _is_pending(self) -> bool:
        return bool(self._dirty) or self._doubtful

    def _repaired(self) -> None:
        self._metrics.repairs.inc()

    def _failed(self) -> None:
        self._metrics.failures.inc()

    async def _open(self) -> None:
        await super()._open()
        self._conntrack = await self._call(lambda: Conntrack(self._namespace))
        self._watch_tables()

    def _close(self) -> None:
        super()._close()
        if self._conntrack is not None:
            self._conntrack.close()

    def _watch_tables(self) -> None:
        assert self._nft is not None
        if self._monitor is not None:
            self._monitor.close()
        self._monitor = ChangeMonitor(
            {TABLE}, self.repair, lost=self._suspect, own_ports={self._nft.port}, namespace=self._namespace
        )

    def _suspect(self) -> None:
        """Notices of changes were lost: look at the tables themselves."""
        self._doubtful = True
        self.touch()

    async def _sync(self) -> None:
        started = time.monotonic()
        if self._doubtful:
            self._doubtful = False
            if not await self._call(self._tables_are_there):
                self.repair()
        dirty, self._dirty = list(self._dirty), {}
        rebuild, self._rebuild = self._rebuild, False
        changes: list[list[tuple[Any, Rules | None]]] = [[] for _ in self._sets]
        flows: dict[tuple[int, str, int], set[tuple[str, int]]] = {}
        affine: list[tuple[RuleSet, Rules, list[Endpoint]]] = []
        with _collector_paused(len(dirty) > _SLICE):
            for count, key in enumerate(dirty, 1):
                self._compute(key, changes, flows, affine)
                if count % _SLICE == 0:
                    await asyncio.sleep(0)
            if rebuild:
                for rules, part in zip(self._sets, changes, strict=True):
                    rules.take(part)
                kept = await self._call(self._affinity)
                texts = [*(rules.text() for rules in self._sets), *kept]
            else:
                texts = [rules.update(part) for rules, part in zip(self._sets, changes, strict=True)]
            text = "\n".join(part for part in texts if part)
        nft = self._nft
        assert nft is not None
        if text:
            if rebuild and self._monitor is not None:
                # The kernel tells of every element; nobody reads the notices of a rebuild, so that they are not missed.
                self._monitor.close()
            try:
                await self._call(lambda: nft.run(text))
            except BaseException:
                # What was computed stands; only its way into the kernel failed.
                self._rebuild = True
                raise
            finally:
                if rebuild:
                    self._watch_tables()
            if rebuild:
                self._suspect()
        if flows:
            await self._call(functools.partial(self._forget_flows, flows))
        if not rebuild:
            for rules, rendered, endpoints in affine:
                await self._call(functools.partial(self._forget_affinity, rules, rendered, endpoints))
        self.last_sync = time.time()
        self._metrics.synced(time.monotonic() - started, self.last_sync, rebuild, len(self._services), self._sets)
        if self._health_changed is not None:
            self._health_changed(self._health)
        if self._serves is not None:
            self._serves(address for addresses in self._served.values() for address in addresses)
        self.synced.set()

    def _compute(
        self,
        key: str,
        changes: list[list[tuple[Any, Rules | None]]],
        flows: dict[tuple[int, str, int], set[tuple[str, int]]],
        affine: list[tuple[RuleSet, Rules, list[Endpoint]]],
    ) -> None:
        """The rules of one Service as it is now, against those it had."""
        service = self._services.get(key)
        slices = list(self._slices.get(key, {}).values())
        before = self._ports.pop(key, set())
        now: set[tuple[int, PortName]] = set()
        served: set[str] = set()
        for place, (dialect, rules) in enumerate(zip(self._dialects, self._sets, strict=True)):
            family = dialect.family
            if service is None or key in self._node_local or not is_proxied(service):
                continue
            endpoints = endpoints_of(slices, family, self.node_name)
            for port in service_ports(service, family):
                found = endpoints.get((port.name.port, port.name.protocol), [])
                choice = choose(port, found, self.node_name, self.zone)
                rendered = render(port, choice, dialect)
                owner = (family, port.name)
                now.add(owner)
                if choice.local or not port.external_local:
                    served.update(port.load_balancer_ips)
                old = rules.owner_elements(owner)
                changes[place].append((owner, rendered))
                if port.protocol == "udp" and old != rendered.elements:
                    targets = {(e.address, e.port) for e in (*choice.cluster, *choice.local)}
                    for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
                        flows[(family, address, port.port)] = targets
                    if port.node_port:
                        flows[(family, "", port.node_port)] = targets
                if port.affinity and old != rendered.elements:
                    affine.append((rules, rendered, [*choice.cluster, *choice.local]))
        for owner in before - now:
            family, name = owner
            for place, (dialect, rules) in enumerate(zip(self._dialects, self._sets, strict=True)):
                if dialect.family == family:
                    if name.protocol == "UDP":
                        for element in rules.owner_elements(owner):
                            if element.table == "service-ips":
                                address, _, number = element.key.split(" . ")
                                flows.setdefault((family, address, int(number)), set())
                    changes[place].append((owner, None))
        if now:
            self._ports[key] = now
        self._served.pop(key, None)
        if served:
            self._served[key] = served
        self._compute_health(key, service, slices)

    def _compute_health(self, key: str, service: Object | None, slices: list[Object]) -> None:
        for number in [n for n, (namespace, name, _) in self._health.items() if f"{namespace}/{name}" == key]:
            del self._health[number]
        spec = (service or {}).get("spec") or {}
        number = int(spec.get("healthCheckNodePort") or 0)
        if service is None or not number or spec.get("externalTrafficPolicy") != "Local":
            return
        local: set[str] = set()
        for dialect in self._dialects:
            for endpoints in endpoints_of(slices, dialect.family, self.node_name).values():
                local |= {e.address for e in endpoints if e.local and e.ready}
        self._health[number] = (service["metadata"]["namespace"], service["metadata"]["name"], len(local))

    def _affinity(self) -> list[str]:
        """Commands that give clients back, after the rebuild, the endpoints to which they are bound now."""
        assert self._nft is not None
        found: list[str] = []
        for rules in self._sets:
            names = rules.set_names()
            targets = rules.values("endpoints-") | rules.values("nodeport-endpoints-") if names else frozenset()
            for name in names:
                place = f"{rules.family} {rules.table} {name}"
                port = name.rpartition("-")[2]
                try:
                    listed = [item["map"] for item in self._nft.json(f"list map {place}") if "map" in item]
                except NftablesError:
                    continue
                words = [
                    f"{client['elem']['val']} expires {max(int(client['elem'].get('expires', 1)), 1)}s : {target}"
                    for client, target in (listed[0].get("elem", ()) if listed else ())
                    if isinstance(client, dict) and f"{target} . {port}" in targets
                ]
                if words:
                    found.append(f"add element {place} {{ {', '.join(words)} }}")
        return found

    def _tables_are_there(self) -> bool:
        """Whether every chain of ours is in the kernel (one transaction put them all there)."""
        assert self._nft is not None
        for rules in self._sets:
            try:
                listed = self._nft.json(f"list table {rules.family} {rules.table}", terse=True)
            except NftablesError:
                return False
            if not rules.chain_names() <= {item["chain"]["name"] for item in listed if "chain" in item}:
                return False
        return True

    def _forget_flows(self, wanted: dict[tuple[int, str, int], set[tuple[str, int]]]) -> None:
        """Delete UDP flows that lead to an endpoint that is none any more (or to nothing at all)."""
        assert self._conntrack is not None
        deleted = 0
        for family in {family for family, _, _ in wanted}:
            try:
                for flow in self._conntrack.flows(family, "udp"):
                    targets = wanted.get((family, flow.destination, flow.destination_port))
                    if targets is None and flow.destination_nat:
                        targets = wanted.get((family, "", flow.destination_port))
                    if targets is not None and (flow.reply_source, flow.reply_source_port) not in targets:
                        deleted += self._conntrack.delete(flow)
            except OSError as error:
                logger.warning("stale UDP flows cannot be deleted: %s", error)
        if deleted:
            self._metrics.flows.inc(deleted)

    def _forget_affinity(self, rules: RuleSet, rendered: Rules, endpoints: list[Endpoint]) -> None:
        """Clients that are bound to an endpoint that is none any more choose anew."""
        assert self._nft is not None
        for name in rendered.sets:
            port = int(name.rpartition("-")[2])
            good = {e.address for e in endpoints if e.port == port}
            place = f"{rules.family} {rules.table} {name}"
            try:
                (found,) = [item["map"] for item in self._nft.json(f"list map {place}") if "map" in item]
                stale = [_client(item[0]) for item in found.get("elem", ()) if _client(item[1]) not in good]
                if stale:
                    self._nft.run(f"delete element {place} {{ {', '.join(stale)} }}")
            except NftablesError as error:
                if not error.missing:  # an entry may run out between the look and the deletion
                    logger.warning("session affinity of gone endpoints cannot be cleared: %s", error)


@contextlib.contextmanager
def _collector_paused(much: bool) -> Iterator[None]:
    """Keep the garbage collector from walking what is being made, again and again, and all of which stays."""
    pause = much and gc.isenabled()
    if pause:
        gc.disable()
    try:
        yield
    finally:
        if pause:
            gc.enable()


def _client(item: Any) -> str:
    """An address in libnftables' JSON, with or without its timeout around it."""
    return str(item["elem"]["val"]) if isinstance(item, dict) else str(item)


def _key(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"


__all__ = ["TABLE", "Proxier", "ServicePort"]
