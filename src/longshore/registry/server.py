"""The registry as a process: listen, serve, collect garbage now and then."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from longshore.machinery.http import Response, Server
from longshore.registry.auth import Access, Passwords
from longshore.registry.blobs import Quota
from longshore.registry.errors import RegistryError
from longshore.registry.service import Service
from longshore.registry.storage import Storage
from longshore.registry.upstream import Upstream

log = logging.getLogger("longshore.registry")


def _error(status: int, message: str) -> Response:
    code = {413: "SIZE_INVALID", 404: "UNSUPPORTED"}.get(status, "UNKNOWN" if status >= 500 else "UNSUPPORTED")
    return RegistryError(code, status=status, message=message).response()


async def serve(
    *,
    data_dir: Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    tls: ssl.SSLContext | None = None,
    htpasswd: Path | None = None,
    access: Access | None = None,
    read_only: bool = False,
    blob_limit: int | None = None,
    quotas: Sequence[Quota] = (),
    upstream: Upstream | None = None,
    sparse: bool = False,
    collect_every: float = 3600.0,
    collect_grace: int = 3600,
    collect_untagged: bool = False,
    metrics: CollectorRegistry | None = None,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Serve the OCI distribution protocol until cancelled.

    data_dir: where content is kept. port 0: any; `ready` is told the port. htpasswd: a password file (Basic
    authentication); access: a whole policy in its place (tokens, permissions). read_only: pull only.
    blob_limit: most bytes of one blob. quotas: most bytes of a repository. upstream: be a pull-through mirror of this
    registry. collect_*: seconds between garbage collections (0: none), seconds that unreferenced content is left alone, whether untagged manifests go too. Raises OSError when it cannot listen.
    """
    service = Service(
        Storage(data_dir),
        access=access or Access(Passwords(htpasswd) if htpasswd else None),
        read_only=read_only,
        blob_limit=blob_limit,
        quotas=quotas,
        upstream=upstream,
        metrics=metrics,
        sparse=sparse,
    )
    server = Server(service.handle, error=_error)
    bound = await server.listen_tcp(host, port, ssl=tls)
    log.info("registry on %s:%d", host, bound)
    if ready is not None:
        ready(bound)
    try:
        while True:
            if not collect_every:
                await asyncio.Event().wait()
            await asyncio.sleep(collect_every)
            try:
                freed = await asyncio.to_thread(service.storage.collect, grace=collect_grace, untagged=collect_untagged)
            except OSError as error:
                log.warning("garbage collection: %s", error)
                continue
            if freed["blobs"]:
                log.info("garbage collection: %(blobs)d blobs, %(bytes)d bytes", freed)
    finally:
        await server.close(1)
        if upstream is not None:
            await upstream.close()
        service.close()
