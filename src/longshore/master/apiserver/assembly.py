"""Puts the rooms of the API server together: authentication, authorization, admission, proxying and the special resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.master.apiserver import admission
from longshore.master.apiserver.aggregation import Aggregator
from longshore.master.apiserver.allocation import ServiceAllocator
from longshore.master.apiserver.auth import Access
from longshore.master.apiserver.components import Components
from longshore.master.apiserver.crds import Definitions
from longshore.master.apiserver.debugging import Debugging
from longshore.master.apiserver.kindhooks import CertificateRequests, DaemonSets
from longshore.master.apiserver.leases import EventLeases
from longshore.master.apiserver.openapi import OpenAPI
from longshore.master.apiserver.podwrites import PodWrites
from longshore.master.apiserver.proxying import Proxying
from longshore.master.apiserver.reviews import ReviewHandlers
from longshore.master.apiserver.scale import ScaleHandler

if TYPE_CHECKING:
    from longshore.master.apiserver.proxying.handlers import Connects
    from longshore.master.apiserver.server import APIServer


async def assemble(server: APIServer) -> None:
    """Wire everything into a server whose caches are loaded."""
    config, dispatcher = server.config, server.dispatcher
    special = dispatcher.special
    dispatcher.scale = ScaleHandler(server.writer).handle
    pods = PodWrites(server.writer, server.deleter, server.api)
    special["", "pods", "binding"] = pods.bind
    special["", "bindings", ""] = pods.bind
    special["", "pods", "eviction"] = pods.evict
    server.allocator = ServiceAllocator(server.api, server.store, config.service_cidrs, config.node_ports)
    server.writer.hooks["", "services"] = server.allocator
    server.writer.hooks["certificates.k8s.io", "certificatesigningrequests"] = CertificateRequests()
    server.writer.hooks["apps", "daemonsets"] = DaemonSets()
    server.writer.ttl["", "events"] = EventLeases(server.store, config.event_ttl).lease
    _access(server)
    _admission(server)
    proxying = Proxying(lambda: _connects(server))
    special.update(proxying.handlers())
    server.closers.append(proxying.close)
    special["", "componentstatuses", ""] = Components(server.api, server.store_alive).handle
    Debugging(server)
    _gauges(server)
    server.openapi = OpenAPI(server.scheme, server.discovery)
    server.path_handlers["openapi"] = server.openapi.handle
    server.definitions = Definitions(server)
    server.deleter.mark = server.definitions.mark
    server.aggregator = Aggregator(
        server.api, server.discovery, server.openapi, certificate=config.proxy_certificate, key=config.proxy_key
    )
    server.spawn(server.aggregator.run(), "aggregator")


def _connects(server: APIServer) -> Connects:
    # The code that carries streams: an idle server does without.
    from .proxying.handlers import Connects

    config = server.config
    return Connects(
        server.api,
        server.admission,
        certificate=config.kubelet_certificate,
        key=config.kubelet_key,
        ca=config.kubelet_ca,
    )


def _access(server: APIServer) -> None:
    """Who asks and may they."""
    access = Access.from_config(server.api, server.config, server.hub.catch_up)
    server.access = access
    server.api.authorization = access.authorization
    reviews = ReviewHandlers(access, server.admission, server.scheme, lambda: server.discovery.server_address)
    server.dispatcher.special.update(reviews.handlers)
    server.path_handlers[".well-known"] = reviews.well_known
    server.path_handlers["openid"] = reviews.jwks


def _admission(server: APIServer) -> None:
    """The chain: what the admission room brings, then the checks that belong to authorization."""
    assert server.access is not None
    server.set_admission([*admission.plugins(server.config, server.api), *server.access.plugins])


def _gauges(server: APIServer) -> None:
    """What is measured when somebody looks."""
    gauges, fairness = server.metrics.gauges, server.fairness

    def objects() -> list[tuple[list[tuple[str, str]], float]]:
        return [
            ([("group", g), ("resource", p)], float(len(s.cache.items)))
            for (g, p), s in server.scheme.storages.items()
            if s.cache is not None
        ]

    def executing() -> list[tuple[list[tuple[str, str]], float]]:
        return [([("priority_level", n)], float(x.executing)) for n, x in fairness.levels.items()]

    def limits() -> list[tuple[list[tuple[str, str]], float]]:
        return [([("priority_level", n)], float(x.seats)) for n, x in fairness.levels.items()]

    def waiting() -> list[tuple[list[tuple[str, str]], float]]:
        return [([("priority_level", n)], float(x.waiting)) for n, x in fairness.levels.items()]

    def running() -> list[tuple[list[tuple[str, str]], float]]:
        now = sum(x.executing for x in fairness.levels.values())
        return [([("request_kind", "executing")], float(now))]

    gauges["apiserver_storage_objects"] = ("[STABLE] Number of stored objects by resource.", objects)
    gauges["apiserver_resource_objects"] = ("[ALPHA] Number of stored objects by resource.", objects)
    gauges["apiserver_current_inflight_requests"] = ("[STABLE] Requests under way.", running)
    gauges["apiserver_flowcontrol_current_executing_requests"] = ("[BETA] Requests that have a seat.", executing)
    gauges["apiserver_flowcontrol_current_inqueue_requests"] = ("[BETA] Requests that wait for a seat.", waiting)
    gauges["apiserver_flowcontrol_nominal_limit_seats"] = ("[BETA] Seats by priority level.", limits)
    gauges["apiserver_longrunning_requests"] = (
        "[STABLE] Open watches.", lambda: [([("component", "apiserver"), ("verb", "WATCH")], float(server.watcher.open))],
    )  # fmt: skip
    gauges["apiserver_registered_watchers"] = ("[ALPHA] Open watches.", lambda: [([], float(server.watcher.open))])
    gauges["apiserver_watch_cache_resource_version"] = (
        "[ALPHA] The version that the cache has reached.", lambda: [([], float(server.hub.version))],
    )  # fmt: skip
