"""POST /build of the Docker Engine API on the builder."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from longshore.engine.build.options import parse_options
from longshore.engine.errors import Conflict

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.control import Services
    from longshore.engine.build.buildkit.posted import PostedBuilds
    from longshore.engine.build.classic import Builder
    from longshore.engine.dockerapi.router import Call
    from longshore.engine.server import Engine
    from longshore.machinery.http import Response


def decode_auths(header: str | None) -> dict[str, dict[str, str]]:
    """X-Registry-Config: base64url JSON, registry host to credentials. What cannot be read is none."""
    if not header:
        return {}
    try:
        loaded: Any = orjson.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (binascii.Error, ValueError):
        return {}
    if not isinstance(loaded, dict):
        return {}
    return {
        str(host): {str(key).lower(): str(value) for key, value in entry.items() if value}
        for host, entry in loaded.items()
        if isinstance(entry, dict)
    }


def make(engine: Engine) -> Callable[[Call], Awaitable[Response | None]]:
    """The handler of POST /build for an engine; BuildKit's routes are added to its API.

    The builder and BuildKit's services are made at first use.
    """
    from longshore.engine.build.buildkit.routes import routes
    from longshore.engine.build.runner import RuncRunner

    def joined(name: str) -> Path:
        """The network namespace of a container that runs. Raises EngineError."""
        container = engine.containers.find(name)
        if not container.state.running:
            raise Conflict(f"cannot join network namespace of a non running container: {container.id}")
        return Path(f"/proc/{container.state.pid}/ns/net")

    builder: Builder | None = None
    kit: Services | None = None
    builds: PostedBuilds | None = None
    settings = engine.configuration
    runner = RuncRunner(
        engine.run / "build",
        engine.networks,
        cgroup=f"{engine.node_layout.cgroup}/build",
        owners=engine.owners,
        namespaces=engine.run / "userns",
        joined=joined,
        device_folders=[Path(folder) for folder in settings.cdi_folders] if settings.cdi else (),
    )
    sweeping = asyncio.ensure_future(runner.sweep())

    async def ready() -> Builder:
        nonlocal builder
        from longshore.engine.build.classic import Builder

        await sweeping
        if builder is None:
            builder = Builder(engine.images, runner)
        return builder

    async def services() -> Services:
        nonlocal kit
        from longshore.engine.build.buildkit.control import Services

        made = await ready()
        if kit is None:
            kit = Services(made, settings=engine.configuration.builder)
        return kit

    async def posted() -> PostedBuilds:
        nonlocal builds
        from longshore.engine.build.buildkit.posted import PostedBuilds

        made = await services()
        if builds is None:
            builds = PostedBuilds(made)
        return builds

    async def build(call: Call) -> Response | None:
        from longshore.engine.dockerapi.images import stream

        options = parse_options(call.request.query, decode_auths(call.request.headers.get("x-registry-config")))
        body = call.request.chunks()
        if options.version == "2":
            builds = await posted()
            return await stream(call, lambda say: builds.build(body, options, say))
        made = await ready()
        return await stream(call, lambda say: made.build(body, options, say))

    async def close() -> None:
        if kit is not None:
            await kit.close()

    engine.closing.append(close)
    if engine.docker is not None:
        engine.docker.router.include(routes(services, posted))
        engine.docker.builder_version = "2"
    return build
