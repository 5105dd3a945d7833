"""POST /grpc, /session and /build/cancel of the Docker Engine API. Source: moby api/server/router/grpc, session, build."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from longshore.engine.dockerapi.router import Router, empty
from longshore.engine.errors import InvalidParameter, SystemFailure

if TYPE_CHECKING:
    from longshore.engine.build.buildkit.control import Services
    from longshore.engine.build.buildkit.posted import PostedBuilds
    from longshore.engine.dockerapi.router import Call
    from longshore.machinery.http import Duplex, Response

log = logging.getLogger("longshore.engine.build")
_EXPOSE = "X-Docker-Expose-Session-"


async def _upgrade(call: Call) -> Duplex:
    return await call.request.upgrade(101, [("Connection", "Upgrade"), ("Upgrade", "h2c")])


def routes(services: Callable[[], Awaitable[Services]], posted: Callable[[], Awaitable[PostedBuilds]]) -> Router:
    """The routes. services: gives BuildKit's services, made at first use; posted: the builds of POST /build?version=2."""
    router = Router()

    @router.route("POST", "/grpc")
    async def grpc(call: Call) -> Response | None:
        from longshore.engine.build.buildkit.transport import serve

        if (call.request.headers.get("Upgrade") or "") != "h2c":
            if not call.request.headers.get("Upgrade"):
                raise SystemFailure("no upgrade proto in request")
            raise InvalidParameter(f"protocol {call.request.headers.get('Upgrade')} not supported")
        made = await services()
        server = made.server()
        await serve(await _upgrade(call), server)
        return None

    @router.route("POST", "/session")
    async def session(call: Call) -> Response | None:
        from longshore.engine.build.buildkit.session import Session

        made = await services()
        headers = call.request.headers
        session_id = headers.get(f"{_EXPOSE}Uuid") or ""
        if session_id in made.sessions:
            raise InvalidParameter(f"session {session_id} already exists")
        protocol = headers.get("Upgrade")
        if not protocol:
            raise InvalidParameter("no upgrade proto in request")
        if protocol != "h2c":
            raise InvalidParameter(f"protocol {protocol} not supported")
        duplex = await _upgrade(call)
        opened = Session(session_id, duplex, headers.getall(f"{_EXPOSE}Grpc-Method"))
        try:
            # The connection preface goes out at once: the client waits for it before it asks for anything.
            ending = asyncio.ensure_future(opened.ended())
            await made.sessions.add(opened)
            await ending
        finally:
            made.sessions.remove(opened)
        return None

    @router.route("POST", "/build/cancel")
    async def cancel(call: Call) -> Response:
        if not call.param("id"):
            raise InvalidParameter("build ID not provided")
        (await posted()).cancel(call.param("id"))
        return empty(200)

    return router
