"""Puts the rooms of the API server together: authentication, authorization, admission, proxying and the special resources."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from longshore.master.apiserver.allocation import ServiceAllocator
from longshore.master.apiserver.auth import Access
from longshore.master.apiserver.leases import EventLeases
from longshore.master.apiserver.openapi import OpenAPI
from longshore.master.apiserver.podwrites import PodWrites
from longshore.master.apiserver.proxying import Proxying
from longshore.master.apiserver.reviews import ReviewHandlers
from longshore.master.apiserver.scale import ScaleHandler

if TYPE_CHECKING:
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
    server.writer.ttl["", "events"] = EventLeases(server.store, config.event_ttl).lease
    _access(server)
    _admission(server)
    proxying = Proxying(
        server.api,
        server.admission,
        certificate=config.kubelet_certificate,
        key=config.kubelet_key,
        ca=config.kubelet_ca,
    )
    special.update(proxying.handlers())
    server.closers.append(proxying.close)
    server.openapi = OpenAPI(server.scheme, server.discovery)
    server.path_handlers["openapi"] = server.openapi.handle
    proxying = Proxying(
        server.api,
        server.admission,
        certificate=config.kubelet_certificate,
        key=config.kubelet_key,
        ca=config.kubelet_ca,
    )
    special.update(proxying.handlers())
    server.closers.append(proxying.close)


def _access(server: APIServer) -> None:
    """Who asks and may they."""
    access = Access.from_config(server.api, server.config)
    server.access = access
    server.authenticators = [access.authentication]
    server.authorizers = [access.authorization]
    server.api.authorizers = server.authorizers
    reviews = ReviewHandlers(access, server.admission, server.scheme, lambda: server.discovery.server_address)
    server.dispatcher.special.update(reviews.handlers)
    server.path_handlers[".well-known"] = reviews.well_known
    server.path_handlers["openid"] = reviews.jwks


def _admission(server: APIServer) -> None:
    plugins = list(server.access.plugins) if server.access is not None else []
    if importlib.util.find_spec("longshore.master.apiserver.admission") is not None:
        from longshore.master.apiserver import admission

        plugins = [*admission.plugins(server.config, server.api), *plugins]
    server.set_admission(plugins)
