"""A part's own small door for the supervisor: /healthz and /metrics on a unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from longshore.machinery.http import Request, Response, Server


@asynccontextmanager
async def healthy(socket: Path) -> AsyncIterator[None]:
    """Answer on `socket` for as long as the block runs: that the event loop answers is the health."""

    def answer(request: Request) -> Response:
        if request.path in ("/healthz", "/livez", "/readyz"):
            return Response(200, b"ok", content_type="text/plain; charset=utf-8")
        if request.path == "/metrics":
            from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

            return Response(200, generate_latest(), content_type=CONTENT_TYPE_LATEST)
        return Response(404, b"404 page not found\n", content_type="text/plain; charset=utf-8")

    server = Server(answer)
    await server.listen_unix(socket, mode=0o600)
    try:
        yield
    finally:
        await server.close()
