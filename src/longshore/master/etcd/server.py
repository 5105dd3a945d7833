"""The store as a server of its own: the embedded store behind etcd's v3 gRPC."""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from collections.abc import Callable, Sequence
from pathlib import Path

from longshore.master.etcd.embedded import EmbeddedStore
from longshore.master.etcd.face import Face, server

logger = logging.getLogger("longshore.etcd")


async def serve(
    *,
    path: Path | None,
    listen: Sequence[tuple[str, int]] = (("127.0.0.1", 2379),),
    advertise: Sequence[str] = (),
    name: str = "default",
    tls: ssl_module.SSLContext | None = None,
    compact_every: float = 0.0,
    ready: Callable[[list[int]], None] | None = None,
) -> None:
    """Serve a store file (None: in memory) until cancelled.

    listen: (host, port) pairs; port 0 takes a free one. advertise: URLs that clients are told (default: from listen).
    tls: a server's context (with client verification where wanted). compact_every: seconds between compactions up to
    the revision of the round before; 0: none. ready: told the ports. Raises Unavailable (the file is in use), OSError.
    """
    store = await EmbeddedStore.open(path)
    scheme = "http" if tls is None else "https"
    urls = tuple(advertise) or tuple(f"{scheme}://{host}:{port}" for host, port in listen)
    face = Face(store, name=name, client_urls=urls, folder=path.parent if path is not None else None)
    servers = []
    try:
        ports = []
        for host, port in listen:
            door = server(face)
            servers.append(door)
            ports.append(await door.listen_tcp(host, port, ssl=tls))
        logger.info("etcd v3 of %s at %s", path or "memory", ", ".join(urls))
        if ready is not None:
            ready(ports)
        while True:
            if not compact_every:
                await asyncio.Event().wait()
            before = store.revision
            await asyncio.sleep(compact_every)
            if before > store.compact_revision:
                await store.compact(before)
    finally:
        for door in servers:
            await door.close()
        await store.close()
