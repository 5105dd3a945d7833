"""Puts the rooms of the API server together: authentication, authorization, admission, proxying and the special resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longshore.master.apiserver import access
from longshore.master.apiserver.podwrites import PodWrites
from longshore.master.apiserver.scale import ScaleHandler

if TYPE_CHECKING:
    from longshore.master.apiserver.server import APIServer


async def assemble(server: APIServer) -> None:
    """Wire everything into a server whose caches are loaded."""
    special = server.dispatcher.special
    scale = ScaleHandler(server.writer)
    server.dispatcher.scale = scale.handle
    pods = PodWrites(server.writer, server.deleter, server.api)
    special["", "pods", "binding"] = pods.bind
    special["", "bindings", ""] = pods.bind
    special["", "pods", "eviction"] = pods.evict
    server.access = access.install(server)
    server.set_admission([*server.admission.plugins, *server.access.plugins])
