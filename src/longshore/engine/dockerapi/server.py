"""`DockerAPI`: the Docker Engine API on a unix socket (and on TCP when asked)."""

from __future__ import annotations

import contextlib
import grp
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from longshore.machinery import process
from longshore.machinery.http import Response, Server

from . import containers, execs, hosts, images, networks, streams, swarm, system, volumes
from .router import HEADERS, Call, Dispatcher, Router, error_response

if TYPE_CHECKING:
    from longshore.engine.containers.events import Events
    from longshore.engine.containers.service import ContainerService
    from longshore.engine.images.store import ImageStore
    from longshore.engine.networks.service import NetworkService
    from longshore.engine.volumes.service import VolumeService

log = logging.getLogger("longshore.engine.docker")


class DockerAPI:
    """What the routes work on. folder: the engine's data root. build: answers POST /build; None: there is no builder."""

    def __init__(
        self,
        *,
        folder: Path,
        containers: ContainerService,
        images: ImageStore,
        networks: NetworkService,
        volumes: VolumeService,
        events: Events,
        build: Callable[[Call], Awaitable[Response | None]] | None = None,
    ) -> None:
        self.folder = folder
        self.containers, self.images, self.networks, self.volumes, self.events = (
            containers,
            images,
            networks,
            volumes,
            events,
        )
        self.build = build
        #: What /info warns of.
        self.warnings: list[str] = []
        self.builder_version = "1"
        self.runtime_version: tuple[str, str] | None = None
        self._features: str | None = None
        self.router = make_router()
        self.server = Server(Dispatcher(self, self.router), error=_core_error, idle_timeout=86400.0)

    async def runtime_features(self) -> str:
        """What `runc features` says, as one line of JSON; "" when the runtime cannot tell. Asked once."""
        if self._features is None:
            import orjson

            self._features = ""
            done = await process.run([self.containers.runtime.runtimes["runc"], "features"], check=False)
            if done.returncode == 0:
                with contextlib.suppress(orjson.JSONDecodeError):
                    self._features = orjson.dumps(orjson.loads(done.stdout)).decode()
        return self._features

    async def listen(self, socket: Path, group: str = "docker") -> None:
        """Serve on a unix socket of mode 0660, owned by `group` (a name or a number) where there is one."""
        gid: int | None = int(group) if group.isdigit() else None
        if gid is None:
            try:
                gid = grp.getgrnam(group).gr_gid
            except KeyError:
                if group != "docker":
                    raise ValueError(f"group {group} not found") from None
        await self.server.listen_unix(socket, mode=0o660, gid=gid)

    async def listen_host(self, text: str, tls: hosts.TLSFiles | None, group: str = "docker") -> int:
        """Serve on one --host; returns the port (0: a unix socket). Raises ValueError, OSError."""
        where = hosts.parse(text, tls=tls is not None)
        if where.path is not None:
            await self.listen(where.path, group)
            return 0
        context = tls.context() if tls is not None else None
        port = await self.server.listen_tcp(where.host, where.port, ssl=context)
        if context is None or context.verify_mode != ssl.CERT_REQUIRED:
            log.warning("%s lets everyone who reaches it act as root on this machine: use --tlsverify", text)
            self.warnings.append(hosts.warning(where.host, port, tls=context is not None))
        return port

    async def close(self) -> None:
        await self.server.close()


def _core_error(status: int, message: str) -> Response:
    answer = error_response(status, message)
    return Response(status, answer.body, HEADERS, "application/json")


def make_router() -> Router:
    """All routes."""
    router = Router()
    for module in (system, containers, streams, execs, images, networks, volumes, swarm):
        router.include(module.routes)
    return router
