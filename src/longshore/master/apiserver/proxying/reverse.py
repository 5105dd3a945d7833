"""Carrying a request to a backend and its answer back, upgrades included.

Source: k8s.io/apimachinery/pkg/util/proxy (upgradeaware.go, transport.go), net/http/httputil.ReverseProxy.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterable, Callable, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from longshore.machinery.errors import StatusError, bad_request, service_unavailable
from longshore.machinery.http import Client, ClientError, ClientResponse, Duplex, Headers, Request, Response, tunnel

from .links import Links, Page

T = TypeVar("T")
Fields = list[tuple[str, str]]
# Of one connection only (RFC 9110 section 7.6.1), as ReverseProxy drops them.
_HOP = frozenset(
    [
        "connection",
        "proxy-connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
# What tells who the client is: it ends at this server.
_CREDENTIALS = ("authorization", "impersonate-")
_CORS = "access-control-"
MAX_BODY = 1 << 20


def forwarded(request: Request, *, upgrade: bool) -> Fields:
    """The request's fields for the backend: without credentials and fields of the connection, with X-Forwarded-For."""
    named = set(request.headers.tokens("connection"))
    out: Fields = []
    hops: list[str] = []
    for name, value in request.headers.items():
        lower = name.lower()
        if lower.startswith(_CREDENTIALS) or lower == "expect":
            continue
        if lower == "x-forwarded-for":
            hops.append(value)
            continue
        if lower == "sec-websocket-protocol":
            value = ", ".join(p for p in (e.strip() for e in value.split(",")) if not p.startswith("base64url.bearer."))
            if not value:
                continue
        if (upgrade and lower in ("connection", "upgrade")) or (
            lower not in _HOP and lower not in named and (not upgrade or lower != "content-length")
        ):
            out.append((name, value))
    address = request.peer.address
    if address is not None:
        hops.append(address[0])
    if hops:
        out.append(("X-Forwarded-For", ", ".join(hops)))
    return out


def returned(headers: Headers) -> Fields:
    """The answer's fields for the client."""
    named = set(headers.tokens("connection"))
    return [
        (n, v)
        for n, v in headers.items()
        if (lower := n.lower()) not in _HOP and lower not in named and lower != "date" and not lower.startswith(_CORS)
    ]


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, given up when the client goes before: nobody waits for a backend that hangs."""
    task, gone = asyncio.create_task(work), asyncio.create_task(request.disconnected())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionResetError("the client has gone")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()


def _own(fields: Fields) -> Fields:
    """Without what only this server may say to the backend, and without the client's Host."""
    return [(n, v) for n, v in fields if not n.lower().startswith("x-remote-") and n.lower() != "host"]


async def upgrade(request: Request, client: Client, url: str, extra: Sequence[tuple[str, str]] = ()) -> Response | None:
    """Carries an upgrade through; what the backend refuses with is the answer."""
    body = await request.read(MAX_BODY) if request.has_body else None
    fields = forwarded(request, upgrade=True)
    if extra:
        fields = [*_own(fields), *extra]
    try:
        response, far = await while_there(request, client.upgrade(request.method, url, headers=fields, body=body))
    except (ClientError, TimeoutError) as error:
        raise StatusError(500, "", f"error dialing backend: {error}") from error
    if far is None or response.status != 101:
        return await _refused(response, far)
    head = [(n, v) for n, v in response.headers.items() if n.lower() != "date"]
    try:
        near = await request.upgrade(101, head)
    except BaseException:
        far.abort()
        raise
    await tunnel(near, far)
    return None


async def _refused(response: ClientResponse, far: Duplex | None) -> Response:
    if far is not None:
        far.abort()
    if response.status < 400:
        await response.close()
        raise StatusError(500, "", f"invalid upgrade response: status code {response.status}")
    body = await response.read(MAX_BODY)
    fields = [(n, v) for n, v in returned(response.headers) if n.lower() != "content-length"]
    return Response(response.status, body, fields)


async def carry(
    request: Request, client: Client, url: str, *, prefix: str = "", extra: Sequence[tuple[str, str]] = ()
) -> Response | None:
    """Carries an ordinary request through, streaming both ways.

    prefix: the path under which the client sees the backend's root: redirects and links in HTML pages are put under it.
    extra: fields for the backend; with them it sees nothing of that kind from the client, and its own Host.
    503 when the backend cannot be reached.
    """
    fields = forwarded(request, upgrade=False)
    fields.append(("X-Forwarded-Uri", prefix + urlsplit(url).path))
    if extra:
        fields = [*_own(fields), *extra]
    body: AsyncIterable[bytes] | None = None
    if request.has_body:
        body = request.chunks()
    else:
        fields = [(n, v) for n, v in fields if n.lower() != "content-length"]
    try:
        response = await while_there(request, client.request(request.method, url, headers=fields, body=body))
    except ClientError as error:
        raise service_unavailable(f"error trying to reach service: {error}") from error
    head = returned(response.headers)
    links = Links(prefix, frozenset((urlsplit(url).netloc, request.headers.get("host") or "")))
    page: Page | None = None
    unpack: Callable[[bytes], bytes] | None = None
    if not prefix:
        pass  # the backend knows its own paths
    elif response.headers.get("location"):
        head = [(n, links.change(v) if n.lower() == "location" else v) for n, v in head]
    elif (response.headers.get("content-type") or "").split(";")[0].strip() == "text/html":
        coding = (response.headers.get("content-encoding") or "").lower()
        if coding in ("", "gzip", "deflate") and request.method != "HEAD":
            page = Page(links)
            head = [(n, v) for n, v in head if n.lower() not in ("content-length", "content-encoding")]
            if coding:
                unpack = zlib.decompressobj(31 if coding == "gzip" else -15).decompress
    async with response:
        writer = await request.start(response.status, head)
        try:
            async for piece in response.chunks():
                if unpack is not None:
                    piece = unpack(piece)
                writer.write(page.feed(piece) if page is not None else piece)
                await writer.drain()
        except zlib.error as error:
            raise ConnectionResetError("the backend's page cannot be unpacked") from error
        if page is not None:
            writer.write(page.finish())
    return None


def need_upgrade(request: Request) -> None:
    """400 for a request that must upgrade and does not ask to."""
    if not request.wants_upgrade:
        raise bad_request("Upgrade request required")
