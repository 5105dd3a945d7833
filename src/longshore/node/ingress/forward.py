"""Requests carried to a pod and answers back, streaming both ways; upgrades (WebSocket) become tunnels.

Source: RFC 9110, 7.6 (fields of one hop); the X-Forwarded fields as reverse proxies commonly set them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from longshore.machinery.http import Client, ClientError, ClientResponse, ConnectError, Request, Response, tunnel
from longshore.node.ingress.routes import Routes

logger = logging.getLogger("longshore.ingress")

_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_OURS = frozenset(
    {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "x-real-ip", "expect"}
)
_HEAD_SECONDS = 60.0
_TRIES = 3


def _text(status: int, words: str) -> Response:
    return Response(status, words.encode() + b"\n", (), "text/plain; charset=utf-8")


class Forwarder:
    """The handler of one listener. scheme: "http" or "https", as the client sees it."""

    def __init__(self, routes: Routes, client: Client, scheme: str, port: int) -> None:
        self._routes = routes
        self._client = client
        self._scheme = scheme
        self._port = port

    async def __call__(self, request: Request) -> Response | None:
        host = (request.headers.get("host") or "").lower()
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        backend = self._routes.find(name, request.path)
        if backend is None:
            return _text(404, "default backend - 404")
        targets = self._routes.targets(backend)
        if not targets:
            return _text(503, "503 Service Temporarily Unavailable")
        headers = self._request_headers(request)
        for place, target in enumerate(targets[:_TRIES]):
            url = f"http://{target}{request.target if request.target.startswith('/') else request.raw_path}"
            try:
                if request.wants_upgrade:
                    await self._upgrade(request, url, headers)
                    return None
                body = request.chunks() if request.has_body else None
                answer = await self._client.request(
                    request.method, url, headers=headers, body=body, timeout=_HEAD_SECONDS
                )
            except ConnectError as error:
                logger.info("%s: %s", target, error)
                # Nothing was sent: another endpoint may have it. A body that has begun to be read cannot be sent twice.
                if place + 1 < min(len(targets), _TRIES) and not request.has_body:
                    continue
                return _text(502, "502 Bad Gateway")
            except TimeoutError:
                return _text(504, "504 Gateway Time-out")
            except (ClientError, OSError, ValueError) as error:
                logger.info("%s: %s", target, error)
                return _text(502, "502 Bad Gateway")
            await self._answer(request, answer)
            return None
        return _text(502, "502 Bad Gateway")

    def _request_headers(self, request: Request) -> list[tuple[str, str]]:
        dropped = _HOP | _OURS | _named(request.headers.getall("connection"))
        fields = [(name, value) for name, value in request.headers.items() if name.lower() not in dropped]
        address = request.peer.address[0] if request.peer.address else ""
        host = request.headers.get("host") or ""
        fields += [
            # What the client says of itself is not believed: only we are in front of the pod.
            ("X-Forwarded-For", address),
            ("X-Real-IP", address),
            ("X-Forwarded-Host", host),
            ("X-Forwarded-Proto", self._scheme),
            ("X-Forwarded-Port", str(self._port)),
        ]
        if request.wants_upgrade:
            fields += [("Connection", "Upgrade"), ("Upgrade", request.headers.get("upgrade") or "")]
        return fields

    async def _upgrade(self, request: Request, url: str, headers: list[tuple[str, str]]) -> None:
        answer, upstream = await self._client.upgrade(request.method, url, headers=headers, timeout=_HEAD_SECONDS)
        if upstream is None:
            await self._answer(request, answer)
            return
        fields = [(n, v) for n, v in answer.headers.items() if n.lower() not in ("content-length", "transfer-encoding")]
        await tunnel(await request.upgrade(answer.status, fields), upstream)

    @staticmethod
    async def _answer(request: Request, answer: ClientResponse) -> None:
        dropped = _HOP | _named(answer.headers.getall("connection"))
        fields = [(name, value) for name, value in answer.headers.items() if name.lower() not in dropped]
        gone = asyncio.ensure_future(request.disconnected())
        try:
            writer = await request.start(answer.status, fields)
            async for chunk in answer.chunks():
                writer.write(chunk)
                await writer.drain()
                if gone.done():
                    return
            await writer.finish()
        finally:
            gone.cancel()
            await answer.close()


def _named(values: Iterable[str]) -> frozenset[str]:
    """The fields that a Connection field names."""
    return frozenset(part.strip().lower() for value in values for part in value.split(","))
