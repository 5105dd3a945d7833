"""Carrying a request to a backend and its answer back, upgrades included.

Source: k8s.io/apimachinery/pkg/util/proxy (upgradeaware.go, transport.go), net/http/httputil.ReverseProxy.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from urllib.parse import urlsplit

from longshore.machinery.errors import StatusError, bad_request, service_unavailable
from longshore.machinery.http import Client, ClientError, ClientResponse, Duplex, Headers, Request, Response, tunnel

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


async def upgrade(request: Request, client: Client, url: str, extra: Sequence[tuple[str, str]] = ()) -> Response | None:
    """Carries an upgrade through; what the backend refuses with is the answer."""
    body = await request.read(MAX_BODY) if request.has_body else None
    fields = [*forwarded(request, upgrade=True), *extra]
    try:
        response, far = await client.upgrade(request.method, url, headers=fields, body=body)
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


async def carry(request: Request, client: Client, url: str, *, prefix: str = "", backend: str = "") -> Response | None:
    """Carries an ordinary request through, streaming both ways.

    prefix: the path under which the client sees the backend's root: redirects within `backend` (scheme and authority)
    are put under it. 503 when the backend cannot be reached.
    """
    fields = forwarded(request, upgrade=False)
    host = request.headers.get("host") or ""
    fields += [
        ("X-Forwarded-Uri", prefix + urlsplit(url).path),
        ("X-Forwarded-Host", host),
        ("X-Forwarded-Proto", "https"),
    ]
    body: AsyncIterable[bytes] | None = None
    if request.has_body:
        body = request.chunks()
    else:
        fields = [(n, v) for n, v in fields if n.lower() != "content-length"]
    try:
        response = await client.request(request.method, url, headers=fields, body=body)
    except ClientError as error:
        raise service_unavailable(f"error trying to reach service: {error}") from error
    head = returned(response.headers)
    if prefix:
        head = [(n, _moved(v, url, prefix, backend) if n.lower() == "location" else v) for n, v in head]
    async with response:
        writer = await request.start(response.status, head)
        async for piece in response.chunks():
            writer.write(piece)
            await writer.drain()
    return None


def _moved(location: str, url: str, prefix: str, backend: str) -> str:
    """Where a redirect leads as seen from the client (proxyutil.Transport.rewriteURL)."""
    parts = urlsplit(location)
    if parts.netloc:
        if f"{parts.scheme or urlsplit(url).scheme}://{parts.netloc}" != backend:
            return location
    path = parts.path
    if not path.startswith("/"):
        return location if not parts.netloc else prefix + "/" + location.split(parts.netloc, 1)[1].lstrip("/")
    rest = path + (f"?{parts.query}" if parts.query else "") + (f"#{parts.fragment}" if parts.fragment else "")
    return prefix + rest


def need_upgrade(request: Request) -> None:
    """400 for a request that must upgrade and does not ask to."""
    if not request.wants_upgrade:
        raise bad_request("Upgrade request required")
